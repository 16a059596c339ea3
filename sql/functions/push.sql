-- Push: the runs of a queue with an endpoint are taken up where a URL is told of them.
--
-- To tell is not to lease: who is told acquires the run, as anybody may, and works on it there; until then it is queued. An
-- invocation puts the run's entry off until it would be sent again, so whatever dies on the way, dispatcher or receiver, the
-- run comes up by itself; and where it was begun, the entry is gone with the grant. What is on its way counts towards the
-- limits of the queue as what is leased does.
--
-- An endpoint that fails is asked less and less, up to once a minute, with one run at a time, whatever waits; each run that was not
-- begun waits by itself, up to an hour, and is given up after a day.

create or replace function tidebase_private.require_endpoint(url text)
returns void
language plpgsql volatile
as $$
begin
  if url <> '' and (url !~ '^https?://[^[:space:]]+$' or octet_length(url) > 4096) then
    perform tidebase_private.raise_invalid('endpoint', 'must be an http or https URL of at most 4096 bytes, or empty for none');
  end if;
end
$$;
comment on function tidebase_private.require_endpoint(text) is 'Raises TB002 unless it is NULL, empty, or a URL.';

-- A new address, or the old one given anew, is tried at once.
create or replace function tidebase_private.put_endpoint(queue text, url text)
returns void
language plpgsql volatile
as $$
begin
  if url is null then
    return;
  elsif url = '' then
    delete from tidebase.endpoints p where p.queue = put_endpoint.queue;
  else
    insert into tidebase.endpoints as p (queue, url) values (put_endpoint.queue, put_endpoint.url)
    on conflict on constraint endpoints_pkey do update
    set url = excluded.url, failures = 0, failing_since = null, next_at = clock_timestamp();
  end if;
  update tidebase.queue_entries e set ready_at = clock_timestamp(), turn = clock_timestamp()
  where e.run_id in (
    select q.run_id from tidebase.queue_entries q
    join tidebase.invocations i on i.run_id = q.run_id and i.status = 'waiting'
    where q.queue = put_endpoint.queue and q.place is null
    order by q.ready_at limit 1000
    for no key update of q skip locked);
end
$$;
comment on function tidebase_private.put_endpoint(text, text) is
  'Gives a queue an endpoint, or (empty) takes it away; NULL leaves it. The caller holds the lock of the queue''s row.';

-- What was told of and is not begun so far takes a place as a lease does; of one whose former lease has run out its slot is it.
create or replace function tidebase_private.in_flight(queue text, key text, own text)
returns integer
language sql volatile
as $$
  select count(*)::integer
  from tidebase.invocations i
  join tidebase.run_heads h on h.run_id = i.run_id and h.attempt < i.attempt and h.status in ('queued', 'running', 'waiting')
  where i.queue = in_flight.queue and i.status in ('sending', 'sent') and (in_flight.key is null or i.key = in_flight.key)
    and i.next_at > clock_timestamp() and i.run_id is distinct from own
    and not exists (select from tidebase.slots s where s.run_id = i.run_id);
$$;
comment on function tidebase_private.in_flight(text, text, text) is
  'How many invocations of a queue, or of one of its keys, may lead to a lease at any moment, besides that of the run `own`.';

-- The heads are locked with them: nobody waits for one while he holds the other.
create or replace function tidebase_private.settle_invocations(queue text)
returns void
language plpgsql volatile
set enable_seqscan = off
as $$
begin
  update tidebase.invocations i
  set status = 'begun', failures = 0, failing_since = null, error = null
  where i.run_id in (
    select j.run_id from tidebase.invocations j
    join tidebase.run_heads h on h.run_id = j.run_id and h.attempt >= j.attempt
    where j.queue = settle_invocations.queue and j.status in ('sending', 'sent')
    limit 1000
    for no key update skip locked);
end
$$;
comment on function tidebase_private.settle_invocations(text) is 'Notes which of the invocations of a queue have led to a lease.';

-- The dead letter of those who never came to life.
create or replace function tidebase_private.fail_unbegun(head tidebase.run_heads, told tidebase.invocations)
returns void
language plpgsql volatile
as $$
declare
  failure jsonb := jsonb_build_object('type', 'NotBegun', 'message',
    format('given up after %s invocations since %s: %s', told.failures, date_trunc('second', told.failing_since), told.error));
begin
  update tidebase.runs r set error = failure, finished_at = clock_timestamp(), failure_class = 'not_begun'
  where r.run_id = head.run_id;
  update tidebase.run_heads h
  set status = 'failed', last_seq = h.last_seq + 1, durable_seq = h.last_seq + 1, updated_at = clock_timestamp()
  where h.run_id = head.run_id
  returning h.* into head;
  perform tidebase_private.leave_queue(head);
  perform tidebase_private.emit(head, 'run.failed',
    jsonb_build_object('attempt', head.attempt, 'token', head.lease_token, 'error', failure, 'status', 'failed'));
  update tidebase.invocations i set status = 'failed', error = failure ->> 'message' where i.run_id = head.run_id;
  perform tidebase_private.call_for_recovery(head, 'run_failed');
  perform tidebase_private.wake_parents(head.run_id);
end
$$;
comment on function tidebase_private.fail_unbegun(tidebase.run_heads, tidebase.invocations) is
  'Fails a queued run that its queue''s endpoint does not begin. The caller holds the head''s lock.';

-- A turn that has passed would lie before the mark from which a lane is searched.
create or replace function tidebase_private.put_entry_off(run_id text, until timestamptz)
returns void
language sql volatile
as $$
  update tidebase.queue_entries e set place = null, ready_at = until, turn = until where e.run_id = put_entry_off.run_id;
$$;
comment on function tidebase_private.put_entry_off(text, timestamptz) is
  'Lets a queued run come up again later. The caller holds the head''s lock.';

-- Of one run: it is to be sent now, or not; NULL then.
create or replace function tidebase_private.invoke(
  head tidebase.run_heads, queue text, url text, ttl interval, give_up_after interval)
returns tidebase.invocation
language plpgsql volatile
as $$
declare
  as_of timestamptz := clock_timestamp();
  run tidebase.runs;
  told tidebase.invocations;
begin
  if head.status not in ('queued', 'running', 'waiting') or head.status <> 'queued' and tidebase_private.is_taken(head, null) then
    perform tidebase_private.leave_queue(head);  -- what becomes of it puts it back
    return null;
  elsif head.deadline_at <= as_of then
    perform tidebase_private.put_entry_off(head.run_id, as_of + interval '1 minute');  -- reconcile cancels it
    return null;
  elsif head.available_at > as_of then
    perform tidebase_private.put_entry_off(head.run_id, head.available_at);
    return null;
  end if;
  select r.* into run from tidebase.runs r where r.run_id = head.run_id;
  select i.* into told from tidebase.invocations i where i.run_id = head.run_id;
  if told.attempt = head.attempt + 1 and told.status in ('sending', 'sent') and told.next_at > as_of then
    perform tidebase_private.put_entry_off(head.run_id, told.next_at);  -- it came back into the queue meanwhile: moved, replaced
    return null;
  elsif told.attempt = head.attempt + 1 and told.status in ('sending', 'sent', 'waiting') and head.status = 'queued'
    and told.failing_since <= as_of - give_up_after
  then
    perform tidebase_private.fail_unbegun(head, told);
    return null;
  end if;
  insert into tidebase.invocations as i (run_id, invocation, attempt, queue, key, status, next_at)
  values (head.run_id, 1, head.attempt + 1, invoke.queue, run.queue_key, 'sending', as_of + ttl)
  on conflict on constraint invocations_pkey do update
  set invocation = i.invocation + 1, attempt = excluded.attempt, queue = excluded.queue, key = excluded.key, status = excluded.status,
      sent_at = clock_timestamp(), next_at = excluded.next_at,
      failures = case when i.attempt = excluded.attempt and i.status <> 'failed' then i.failures else 0 end,
      failing_since = case when i.attempt = excluded.attempt and i.status <> 'failed' then i.failing_since end
  returning i.* into told;
  perform tidebase_private.put_entry_off(head.run_id, told.next_at);
  return row(head.run_id, told.invocation, invoke.queue, invoke.url, jsonb_build_object('type', 'run.invoke', 'runId', head.run_id,
    'workflowName', run.workflow, 'attempt', told.attempt, 'queue', invoke.queue, 'invocation', told.invocation))::tidebase.invocation;
end
$$;
comment on function tidebase_private.invoke(tidebase.run_heads, text, text, interval, interval) is
  'What to send so that a run is begun; NULL where it cannot be now, or is given up. The caller holds the locks of its entry and head.';

-- The next runs of one queue, in the order of a claim, with their locks. A lease that has run out goes before, in its own slot.
create or replace function tidebase_private.choose_to_invoke(queue tidebase.queues, max integer)
returns text[]
language plpgsql volatile
set enable_seqscan = off
as $$
declare
  lane tidebase.lanes;
  limited boolean := tidebase_private.has_limits(queue);
  room integer := max;
  chosen text[] := array[]::text[];
begin
  if queue.paused then
    return chosen;
  end if;
  if limited then
    chosen := (tidebase_private.lock_chosen(queue.queue, array(
      select e.run_id from tidebase.slots s
      join tidebase.queue_entries e on e.run_id = s.run_id and e.place is not null
      join tidebase.run_heads h on h.run_id = s.run_id and h.status = 'running' and h.lease_expires_at <= clock_timestamp()
      where s.queue = choose_to_invoke.queue.queue
      order by e.place, e.turn limit max)));
    room := least(max - cardinality(chosen), tidebase_private.room_of(queue));
  end if;
  for lane in select * from tidebase_private.lanes_in_order(queue.queue) loop
    exit when room <= 0;
    declare
      more text[];
    begin
      if coalesce(queue.key_concurrency, queue.key_rate) is not null then
        more := tidebase_private.lock_chosen(queue.queue, tidebase_private.choose_by_key(queue, lane, room, null, null, null));
      else
        more := array(select e.run_id from tidebase_private.lock_entries(lane, room, null, null, null) e);
      end if;
      more := array(select m.run_id from unnest(more) with ordinality m (run_id, place) where m.run_id <> all (chosen) order by m.place);
      chosen := chosen || more;
      room := room - cardinality(more);
    end;
  end loop;
  return chosen;
end
$$;
comment on function tidebase_private.choose_to_invoke(tidebase.queues, integer) is
  'Up to max runs of a queue that may be begun now, with the locks of their entries and heads. The caller holds the queue''s lock, if it has limits.';

create or replace function tidebase_private.invoke_from_queue(
  settings tidebase.queues, endpoint tidebase.endpoints, max integer, ttl interval, give_up_after interval)
returns setof tidebase.invocation
language plpgsql volatile rows 10
as $$
declare
  chosen text;
  head tidebase.run_heads;
  told tidebase.invocation;
  sent integer := 0;
begin
  perform tidebase_private.settle_invocations(endpoint.queue);
  perform tidebase_private.promote(endpoint.queue), tidebase_private.tend_if_due(endpoint.queue);
  foreach chosen in array tidebase_private.choose_to_invoke(settings, max) loop
    select h.* into head from tidebase.run_heads h where h.run_id = chosen;
    told := tidebase_private.invoke(head, endpoint.queue, endpoint.url, ttl, give_up_after);
    if told.run_id is not null then
      sent := sent + 1;
      return next told;
    end if;
  end loop;
  if sent > 0 then
    update tidebase.endpoints p set next_at = clock_timestamp() + case when p.failures > 0 then ttl else '0' end
    where p.queue = endpoint.queue;
  end if;
end
$$;
comment on function tidebase_private.invoke_from_queue(tidebase.queues, tidebase.endpoints, integer, interval, interval) is
  'What to send to the endpoint of one queue. The caller holds the locks of the queue, if it has limits, and of the endpoint.';

create or replace function tidebase.claim_invocations(
  max integer default 10, ttl interval default '1 minute', failing boolean default false, besides text[] default null,
  give_up_after interval default '1 day')
returns setof tidebase.invocation
language plpgsql volatile security definer rows 10
set search_path = pg_catalog, tidebase, pg_temp
set enable_seqscan = off
as $$
declare
  as_of timestamptz := clock_timestamp();  -- a volatile function in the condition would rule out the index
  queues text[];
  settings tidebase.queues[];
  own tidebase.queues;
  endpoint endpoints;
  told invocation;
  sent integer := 0;
begin
  max := coalesce(max, 10);
  ttl := coalesce(ttl, '1 minute');
  failing := coalesce(failing, false);
  give_up_after := coalesce(give_up_after, '1 day');
  perform tidebase_private.require_claim(max, ttl);
  perform tidebase_private.require_list(besides, 'besides');
  perform tidebase_private.require_interval(give_up_after, 'give_up_after', '0', '1 year');
  for round in 1..2 loop
    queues := array(
      select p.queue from endpoints p
      where least(p.failures, 1) = failing::integer and p.next_at <= as_of and p.queue <> all (coalesce(besides, '{}'))
        and (exists (select from queue_entries e where e.queue = p.queue and e.place is not null)
          or exists (select from queue_entries e where e.queue = p.queue and e.place is null and e.ready_at <= as_of))
      order by p.next_at
      limit claim_invocations.max);
    if cardinality(queues) > 0 then
      perform tidebase_private.commit_durably();
      -- The queues' locks first, in the order of their names, as a claim takes them.
      settings := array(select tidebase_private.lock_queue(q.queue) from (select u.queue from unnest(queues) u (queue) order by u.queue) q);
      for endpoint in
        select p.* from endpoints p
        where p.queue = any (queues) and p.next_at <= as_of and least(p.failures, 1) = failing::integer
        order by p.next_at
        for no key update skip locked
      loop
        exit when sent >= max;
        own := coalesce((select s from unnest(settings) s where s.queue = endpoint.queue),
          jsonb_populate_record(null::tidebase.queues, jsonb_build_object('queue', endpoint.queue, 'paused', false)));
        for told in
          select i.* from tidebase_private.invoke_from_queue(own, endpoint,
            case when failing then 1 else max - sent end, ttl, give_up_after) i
        loop
          sent := sent + 1;
          return next told;
        end loop;
      end loop;
    end if;
    exit when sent > 0 or round = 2 or failing or not exists (select from endpoints);
    -- Nothing: perhaps a schedule's time has come, or somebody's lease has run out.
    perform tidebase_private.fire_due(50);
    perform tidebase_private.reconcile_due(50);
    as_of := clock_timestamp();
  end loop;
end
$$;
comment on function tidebase.claim_invocations(integer, interval, boolean, text[], interval) is
  'Takes up to max (1 to 1000) runs of queues with an endpoint, in the order and within the limits in which claim_runs would lease them, for ttl: post each body to its URL, signed, and report it with finish_invocation. The run is not leased: who is told acquires it. One that is begun is not told of again while its lease lives; one that is not, after a while: of each run one dispatcher tells at a time. failing: of endpoints whose last answer was none, or an error, one run each, instead of those that do well: give each kind a share of what you can do at once. besides: not of these queues. give_up_after (up to a year): a run that was not begun for so long, however often it was told of, is failed with the failure class not_begun. A pinned run is told of until it was begun; then it waits for a worker with its code_version. Errors: TB002.';

-- What an answer says of the endpoint. What was sent before the last failure is of the same one.
create or replace function tidebase_private.note_endpoint(told tidebase.invocations, well boolean, http_status integer, error text)
returns void
language plpgsql volatile
as $$
declare
  as_of timestamptz := clock_timestamp();
begin
  if well then
    update tidebase.endpoints p set failures = 0, failing_since = null, next_at = as_of, http_status = note_endpoint.http_status
    where p.queue = told.queue and p.failures > 0;
    return;
  end if;
  update tidebase.endpoints p
  set failures = p.failures + 1, failing_since = coalesce(p.failing_since, as_of), failed_at = as_of,
      next_at = as_of + tidebase_private.retry_delay(p.failures + 1, '1 second', '1 minute'),
      http_status = note_endpoint.http_status, error = left(note_endpoint.error, 10000)
  where p.queue = told.queue and (p.failed_at is null or told.sent_at > p.failed_at);
end
$$;
comment on function tidebase_private.note_endpoint(tidebase.invocations, boolean, integer, text) is
  'Lets an endpoint that fails be asked less and less, and one that answers as often as there is something.';

create or replace function tidebase.finish_invocation(
  run_id text, invocation integer, delivered boolean, http_status integer default null, error text default null)
returns text
language plpgsql volatile security definer
set search_path = pg_catalog, tidebase, pg_temp
set enable_seqscan = off
as $$
declare
  head run_heads := tidebase_private.lock_head(run_id);
  told invocations;
  wrong text;
begin
  perform tidebase_private.commit_lazily();
  select i.* into told from invocations i where i.run_id = finish_invocation.run_id for no key update;
  if not found then
    perform tidebase_private.raise('TB012', format('of run %L no endpoint was told', run_id),
      jsonb_build_object('run_id', run_id), 'Invocations are handed out by claim_invocations.');
  elsif told.invocation is distinct from invocation or told.status <> 'sending' then
    return told.status;  -- reported before, or sent again meanwhile
  end if;
  delivered := coalesce(delivered, false);
  if head.attempt >= told.attempt then  -- whatever became of the answer
    update invocations i
    set status = 'begun', failures = 0, failing_since = null, http_status = finish_invocation.http_status, error = null
    where i.run_id = finish_invocation.run_id;
    perform tidebase_private.note_endpoint(told, true, http_status, null);
    return 'begun';
  end if;
  wrong := case when delivered then format('answered with HTTP %s, and not begun', coalesce(http_status::text, '2xx'))
    else left(coalesce(error, 'not delivered'), 10000) end;
  update invocations i
  set status = case when delivered then 'sent' else 'waiting' end, failures = i.failures + 1,
      failing_since = coalesce(i.failing_since, i.sent_at), http_status = finish_invocation.http_status, error = wrong,
      next_at = clock_timestamp() + tidebase_private.retry_delay(i.failures + 1,
        case when delivered then interval '10 seconds' else interval '5 seconds' end, '1 hour')
  where i.run_id = finish_invocation.run_id
  returning i.* into told;
  update queue_entries e set ready_at = told.next_at, turn = told.next_at
  where e.run_id = finish_invocation.run_id and e.place is null;
  perform tidebase_private.note_endpoint(told, delivered, http_status, wrong);
  return told.status;
end
$$;
comment on function tidebase.finish_invocation(text, integer, boolean, integer, text) is
  'Reports how an invocation ended; returns begun (the run was taken up, whatever came of the answer), sent (it was answered, and the run is not begun so far: it is told of again after 10 seconds, 20 seconds and so on up to an hour), waiting (it was not delivered: after 5 seconds, 10 seconds ...) or failed. A report of an invocation that is not the latest one, or that was reported before, changes nothing. Errors: TB001, TB012.';

create or replace view tidebase.invocation_overview with (security_barrier = true) as
  select
    i.run_id,
    i.queue,
    case when h.attempt >= i.attempt then 'begun' else i.status end as status,
    i.invocation as invocations,
    i.attempt,
    i.failures,
    i.failing_since,
    i.sent_at,
    case when h.attempt < i.attempt and i.status in ('sending', 'sent', 'waiting') then i.next_at end as next_at,
    i.http_status,
    i.error
  from tidebase.invocations i
  join tidebase.run_heads h on h.run_id = i.run_id;
comment on view tidebase.invocation_overview is
  'Of which runs the endpoint of their queue was told, and what became of the latest invocation: sending (a dispatcher is at it), sent (answered, and not begun so far), waiting (for another try, at next_at), begun (attempt was taken up), failed (given up: error says why). invocations: how often in all; failures: how often in a row it was not begun, since failing_since.';

select tidebase_private.allow('function tidebase.claim_invocations', 'operator');
select tidebase_private.allow('function tidebase.finish_invocation', 'operator');
select tidebase_private.allow('table tidebase.invocation_overview', 'worker', 'approver', 'operator', 'reader');
