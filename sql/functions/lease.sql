-- Leases: who may work on a run, until when, and who did.

-- Ends the attempt that the head's current token stands for.
create or replace function tidebase_private.end_attempt(head tidebase.run_heads, outcome text, error jsonb default null)
returns void
language plpgsql volatile
as $$
begin
  update tidebase.attempts a
  set ended_at = clock_timestamp(), outcome = end_attempt.outcome, error = end_attempt.error
  where a.run_id = head.run_id and a.attempt = head.attempt and a.ended_at is null;
end
$$;
comment on function tidebase_private.end_attempt(tidebase.run_heads, text, jsonb) is 'Closes the attempts row of the present lease.';

-- What a caller gets who does not get the lease.
create or replace function tidebase_private.lease_refused(head tidebase.run_heads)
returns tidebase.lease
language plpgsql volatile
as $$
declare
  run tidebase.runs;
  answer tidebase.lease;
begin
  answer.outcome := case when head.status = 'running' then 'held'
    when head.status = 'pending' or head.status = 'queued' and head.available_at > clock_timestamp() then 'waiting' else head.status end;
  answer.attempt := head.attempt;
  answer.checkpoints := head.steps_completed;
  answer.holder := head.holder;
  answer.expires_at := coalesce(head.lease_expires_at,
    (select g.timeout_at from tidebase.gates g where g.run_id = head.run_id and g.name = head.waiting_for),
    head.available_at);
  select r.* into run from tidebase.runs r where r.run_id = head.run_id;
  if not found then  -- purged since its head was read
    perform tidebase_private.raise_run_not_found(head.run_id);
  end if;
  answer.workflow := run.workflow;
  answer.result := run.result;
  return answer;
end
$$;
comment on function tidebase_private.lease_refused(tidebase.run_heads) is 'The answer of acquire_run when nothing is granted. Errors: TB001.';

create or replace function tidebase_private.lease_granted(head tidebase.run_heads)
returns tidebase.lease
language plpgsql stable
as $$
declare
  answer tidebase.lease;
begin
  answer.outcome := 'granted';
  answer.token := head.lease_token;
  answer.attempt := head.attempt;
  answer.checkpoints := head.steps_completed;
  answer.holder := head.holder;
  answer.expires_at := head.lease_expires_at;
  answer.has_budget := head.has_budget;
  select r.workflow, r.input, coalesce(earlier.traceparent, r.traceparent)
  into answer.workflow, answer.input, answer.traceparent
  from tidebase.runs r
  left join tidebase.attempts earlier on earlier.run_id = r.run_id and earlier.attempt = head.attempt - 1
  where r.run_id = head.run_id;
  return answer;
end
$$;
comment on function tidebase_private.lease_granted(tidebase.run_heads) is 'The answer of acquire_run when the lease is granted.';

create or replace function tidebase_private.is_live(head tidebase.run_heads)
returns boolean
language sql volatile
as $$
  select head.status = 'running' and head.lease_expires_at > clock_timestamp();
$$;
comment on function tidebase_private.is_live(tidebase.run_heads) is 'Whether the run is leased and the lease has not run out, by the clock of this moment.';

create or replace function tidebase_private.require_traceparent(traceparent text)
returns void
language plpgsql immutable
as $$
begin
  if traceparent !~ '^[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$' then
    perform tidebase_private.raise_invalid('traceparent', 'must be as in W3C Trace Context: 00-<32 hex digits>-<16>-<2>');
  end if;
end
$$;
comment on function tidebase_private.require_traceparent(text) is
  'Raises TB002 unless it is NULL or a traceparent of W3C Trace Context (Recommendation of 2021, section 3.2).';

-- Whether acquire_run has nothing to grant now: somebody else holds the lease, the run waits for a time to come, for a gate
-- or for its children, or it has killed as many workers as it may.
create or replace function tidebase_private.is_taken(head tidebase.run_heads, request_id text)
returns boolean
language plpgsql volatile
as $$
begin
  if head.status in ('pending', 'queued') then
    return coalesce(head.available_at > clock_timestamp(), false);
  elsif head.status = 'running' then
    return head.lease_expires_at > clock_timestamp() and not exists (
      select from tidebase.attempts a
      where a.run_id = head.run_id and a.attempt = head.attempt and a.request_id = is_taken.request_id);
  elsif head.status = 'waiting' then
    return not exists (
        select from tidebase.gates g
        where g.run_id = head.run_id and g.name = head.waiting_for and g.timeout_at <= clock_timestamp())
      and not tidebase_private.has_ready_child(head.run_id);
  elsif head.status = 'failed' then
    return (select r.failure_class = 'crashed' from tidebase.runs r where r.run_id = head.run_id);
  end if;
  return coalesce(head.status in ('completed', 'review'), false);
end
$$;
comment on function tidebase_private.is_taken(tidebase.run_heads, text) is
  'Whether acquire_run refuses the run; not when the very call that was granted the lease is made again.';

-- Grants the run's lease to `holder`, or says who has it.
--
-- The head row is locked first, so two callers are served one after the other and the second sees the first's token.
-- A grant always raises the token: a former holder is fenced from that moment, whether it knows or not. An expired
-- lease is taken over right here; no janitor has to run first.
create or replace function tidebase.acquire_run(
  run_id text, holder text, ttl interval default '60 seconds', code_version text default null, request_id text default null,
  traceparent text default null)
returns tidebase.lease
language plpgsql volatile security definer
set search_path = pg_catalog, tidebase, pg_temp
set enable_seqscan = off
as $$
declare
  head run_heads;
  lapsed jsonb;
  allowed integer;
  queue queues;
  keyed dedupe_keys;
  has_key boolean := false;
  answer lease;
begin
  if ttl is null then
    ttl := '60 seconds';
  end if;
  if not tidebase_private.is_name(holder, 255) then
    perform tidebase_private.require_name(holder, 'holder', 255);
  end if;
  perform tidebase_private.require_interval(ttl, 'ttl', '1 millisecond', '1 day');
  if code_version is not null and not tidebase_private.is_name(code_version, 255) then
    perform tidebase_private.require_name(code_version, 'code_version', 255);
  end if;
  if request_id is not null and not tidebase_private.is_name(request_id, 255) then
    perform tidebase_private.require_name(request_id, 'request_id', 255);
  end if;
  if traceparent is not null then
    perform tidebase_private.require_traceparent(traceparent);
  end if;
  -- Whoever polls for a run that is taken gets the answer without a lock and without a write.
  select h.* into head from run_heads h where h.run_id = acquire_run.run_id;
  if tidebase_private.is_taken(head, request_id) then
    return tidebase_private.lease_refused(head);
  end if;

  if not tidebase_private.is_durable() then
    perform tidebase_private.commit_durably();
  end if;
  if head.in_queue then
    queue := tidebase_private.may_start(run_id);
    if head.status = 'failed' then
      keyed := tidebase_private.take_key_back(run_id);
      has_key := keyed.run_id is null;
    end if;
  end if;
  head := tidebase_private.lock_head(run_id);
  if head.status = 'waiting' then
    head := tidebase_private.settle_overdue(head);
  end if;
  if head.status = 'cancelled' then
    perform tidebase_private.raise_fenced(run_id, head.lease_token);
  elsif tidebase_private.is_taken(head, request_id) then
    return tidebase_private.lease_refused(head);
  end if;
  if head.deadline_at is not null then
    perform tidebase_private.require_time_left(head);
  end if;
  if tidebase_private.is_live(head) then
    return tidebase_private.lease_granted(head);  -- the same call again: its answer was lost on the way
  elsif queue.paused or head.in_queue and head.status = 'failed' and not has_key or head.in_queue and queue.queue is distinct from (
    select r.queue from runs r where r.run_id = acquire_run.run_id)  -- moved while the lock was waited for: the limits are others
  then
    answer := tidebase_private.lease_refused(head);
    answer.outcome := 'queued';
    return answer;
  end if;

  if head.status = 'running' then
    lapsed := jsonb_build_object('token', head.lease_token, 'holder', head.holder, 'expired_at', head.lease_expires_at);
    perform tidebase_private.end_attempt(head, 'lapsed');
    select r.max_attempts into allowed from runs r where r.run_id = acquire_run.run_id;
    if tidebase_private.attempts_used(head) >= allowed then
      return tidebase_private.lease_refused(tidebase_private.fail_crashed(head, allowed));
    end if;
  elsif head.status = 'waiting' then
    delete from awaited w where w.run_id = acquire_run.run_id;
  end if;
  update run_heads h
  set status = 'running',
      lease_token = greatest(h.lease_token, tidebase_private.tokens_before()) + 1,
      attempt = h.attempt + 1,
      holder = acquire_run.holder,
      lease_expires_at = clock_timestamp() + ttl,
      due_at = least(h.due_at, clock_timestamp() + ttl),
      available_at = null,
      waiting_for = null,
      last_seq = h.last_seq + 1,
      durable_seq = h.last_seq + 1,
      updated_at = clock_timestamp()
  where h.run_id = acquire_run.run_id
  returning h.* into head;
  insert into attempts (run_id, attempt, lease_token, holder, code_version, request_id, traceparent)
  values (head.run_id, head.attempt, head.lease_token, head.holder, acquire_run.code_version, acquire_run.request_id, acquire_run.traceparent);
  perform tidebase_private.emit(head, 'run.started', jsonb_strip_nulls(jsonb_build_object('attempt', head.attempt,
    'token', head.lease_token, 'holder', head.holder, 'code_version', code_version, 'lapsed', lapsed)));
  if head.in_queue then
    perform tidebase_private.leave_queue(head);
    perform tidebase_private.take_slots(queue, array[run_id]);
  end if;
  return tidebase_private.lease_granted(head);
end
$$;
comment on function tidebase.acquire_run(text, text, interval, text, text, text) is
  'Grants the run''s lease, or says why not. outcome: granted (with token, attempt, input, number of checkpoints), held (by holder until expires_at), completed (with result), waiting (for a gate, a timer or its children, or until expires_at after a failed attempt), queued (its queue is paused, or has no room for it now, or it has failed and another run has its dedupe_key), review (a person must decide about a step), failed (it has killed max_attempts workers: recover_run gives it as many again). holder: a name for people and logs. ttl: 1 millisecond to 1 day; renew_lease extends it. code_version: what the worker runs, kept with the attempt. request_id: an id made up for this call; the call repeated with it gets the lease that it was granted. traceparent: of the attempt''s own span (W3C Trace Context), kept with the attempt; the answer''s traceparent is that of the attempt before it, or of who made the run, to link to. has_budget: whether a step may meet TB010. A failed run is granted again. A lease that ran out is taken over, which counts as one of max_attempts. Commits synchronously. Errors: TB001, TB002, TB004.';

-- due_at stays as it is while the lease is alive, so that a heartbeat is a HOT update; once reconcile has seen the lease run
-- out it looks for the end of the new one.
create or replace function tidebase.renew_lease(run_id text, token bigint, ttl interval default '60 seconds')
returns timestamptz
language plpgsql volatile security definer
set search_path = pg_catalog, tidebase, pg_temp
set enable_seqscan = off
as $$
declare
  renewed_until timestamptz;
begin
  if ttl is null then
    ttl := '60 seconds';
  end if;
  perform tidebase_private.require_interval(ttl, 'ttl', '1 millisecond', '1 day');
  perform tidebase_private.commit_lazily();
  update run_heads h
  set lease_expires_at = clock_timestamp() + ttl,
      due_at = case when h.lease_expires_at > clock_timestamp() then h.due_at else least(h.due_at, clock_timestamp() + ttl) end
  where h.run_id = renew_lease.run_id and h.lease_token = renew_lease.token and h.status = 'running'
  returning h.lease_expires_at into renewed_until;
  if not found then
    perform tidebase_private.raise_fenced(run_id, token);
  end if;
  return renewed_until;
end
$$;
comment on function tidebase.renew_lease(text, bigint, interval) is
  'Extends the lease to ttl from now (1 millisecond to 1 day) and returns when it ends. Also revives a lease that has run out, as long as nobody has taken over. Commits asynchronously: a heartbeat lost with a crashed server only lets the lease end sooner. Errors: TB001, TB002, TB003, TB004, TB005.';

-- The heartbeat of a worker with many runs: one statement, one commit.
--
-- A head that is locked just now is left out: to wait for it could close a circle with somebody who holds several, and
-- who has it is at work on the run. So whoever misses a run in the answer asks renew_lease about it.
create or replace function tidebase.renew_leases(run_ids text[], tokens bigint[], ttl interval default '60 seconds')
returns setof tidebase.renewal
language plpgsql volatile security definer rows 100
set search_path = pg_catalog, tidebase, pg_temp
set enable_seqscan = off
as $$
begin
  if ttl is null then
    ttl := '60 seconds';
  end if;
  if coalesce(array_ndims(run_ids), 1) > 1 or coalesce(array_ndims(tokens), 1) > 1
    or cardinality(run_ids) is distinct from cardinality(tokens) or coalesce(cardinality(run_ids), 10001) > 10000
  then
    perform tidebase_private.raise_invalid('run_ids and tokens', 'must be two lists of the same length, up to 10000');
  end if;
  perform tidebase_private.require_interval(ttl, 'ttl', '1 millisecond', '1 day');
  perform tidebase_private.commit_lazily();
  return query
    with held as (
      select h.run_id
      from unnest(run_ids, tokens) lease (run_id, token)
      join run_heads h on h.run_id = lease.run_id and h.lease_token = lease.token and h.status = 'running'
      for no key update of h skip locked)
    update run_heads h
    set lease_expires_at = clock_timestamp() + ttl,
        due_at = case when h.lease_expires_at > clock_timestamp() then h.due_at else least(h.due_at, clock_timestamp() + ttl) end
    from held
    where h.run_id = held.run_id
    returning h.run_id, h.lease_expires_at;
end
$$;
comment on function tidebase.renew_leases(text[], bigint[], interval) is
  'Extends many leases at once to ttl from now (1 millisecond to 1 day): run_ids and tokens are two lists of the same length, up to 10000. Returns those that were renewed. A lease that is not among them is lost, or its run was locked at that moment: renew_lease tells which. Commits asynchronously, as renew_lease does. Errors: TB002.';

-- A run is also pending under its last token when its gate, or a review of one of its steps, was decided.
create or replace function tidebase_private.released_as(head tidebase.run_heads)
returns bigint
language sql stable
as $$
  select newest.seq
  from (
    select e.seq, e.type from tidebase.events e
    where e.run_id = head.run_id and e.type in ('run.released', 'run.started')
    order by e.seq desc limit 1) newest
  where newest.type = 'run.released';
$$;
comment on function tidebase_private.released_as(tidebase.run_heads) is
  'The seq of the event with which the newest attempt gave its lease up; NULL when it ended in another way.';

create or replace function tidebase_private.give_up(head tidebase.run_heads)
returns void
language plpgsql volatile
as $$
begin
  perform tidebase_private.end_attempt(head, 'released');
  perform tidebase_private.emit(head, 'run.released', jsonb_build_object('attempt', head.attempt, 'token', head.lease_token));
  update tidebase.run_heads h set status = tidebase_private.free_status(h), lease_expires_at = null where h.run_id = head.run_id
  returning h.* into head;
  perform tidebase_private.requeue(head);
  perform tidebase_private.wake_parents(head.run_id);
end
$$;
comment on function tidebase_private.give_up(tidebase.run_heads) is
  'Makes a leased run pending, or queued. The caller has passed the fence for one event.';

create or replace function tidebase.release_run(run_id text, token bigint)
returns bigint
language plpgsql volatile security definer
set search_path = pg_catalog, tidebase, pg_temp
set enable_seqscan = off
as $$
declare
  head run_heads;
  earlier bigint;
begin
  perform tidebase_private.commit_durably();
  select h.* into head from run_heads h where h.run_id = release_run.run_id for no key update;
  if head.status in ('pending', 'queued') and head.lease_token = token then
    earlier := tidebase_private.released_as(head);
    if earlier is not null then
      return earlier;  -- the same call again
    end if;
  end if;
  head := tidebase_private.fence(run_id, token, 1);
  perform tidebase_private.give_up(head);
  return head.last_seq;
end
$$;
comment on function tidebase.release_run(text, bigint) is
  'Gives the lease up at once, so that another worker can go on without waiting for it to run out (graceful shutdown). The run is pending again. What was done by then may still be stored (complete_step, fail_step, record_step), until a newer lease is granted. Returns the event''s seq. Errors: TB001, TB003, TB004, TB005.';

-- For a worker that was interrupted in the moment of the grant and does not know the token it was given.
create or replace function tidebase.withdraw_grant(run_id text, request_id text)
returns boolean
language plpgsql volatile security definer
set search_path = pg_catalog, tidebase, pg_temp
set enable_seqscan = off
as $$
declare
  head run_heads;
begin
  perform tidebase_private.require_name(request_id, 'request_id', 255);
  perform tidebase_private.commit_durably();
  head := tidebase_private.lock_head(run_id);
  if head.status <> 'running' or not exists (
    select from attempts a
    where a.run_id = head.run_id and a.attempt = head.attempt and a.request_id = withdraw_grant.request_id)
  then
    return false;
  end if;
  perform tidebase_private.give_up(tidebase_private.advance(run_id));
  return true;
end
$$;
comment on function tidebase.withdraw_grant(text, text) is
  'Gives the lease back that the call of acquire_run with this request_id was granted, for who was interrupted before it had the answer; as release_run does. False when that call was granted nothing, or its lease is over. Make it after that call has ended, on whatever connection. Errors: TB001, TB002.';

create or replace view tidebase.run_attempts with (security_barrier = true) as
  select
    a.run_id,
    a.attempt,
    a.lease_token,
    a.holder,
    a.code_version,
    a.started_at,
    a.ended_at,
    a.outcome,
    a.error,
    a.traceparent,
    a.lapsed_at
  from tidebase.attempts a;
comment on view tidebase.run_attempts is
  'One row a lease granted: who worked on the run, with which code, from when to when, how it ended (NULL while it lasts). lapsed_at: the end of its lease that reconcile saw pass last; nothing has ended by that.';

select tidebase_private.allow('table tidebase.run_attempts', 'worker', 'approver', 'operator', 'reader');
select tidebase_private.allow('function tidebase.acquire_run', 'worker');
select tidebase_private.allow('function tidebase.renew_lease', 'worker');
select tidebase_private.allow('function tidebase.renew_leases', 'worker');
select tidebase_private.allow('function tidebase.release_run', 'worker');
select tidebase_private.allow('function tidebase.withdraw_grant', 'worker');
