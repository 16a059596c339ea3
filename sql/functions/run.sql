-- Runs: made once, finished once, looked at by anyone who may.

-- Which of 65,536 buckets a run lies in: whoever spreads runs over several databases keeps a bucket together. A generated
-- id says it in its last four digits, so that an id can be made for a bucket. Of another id it is a hash, or that of the
-- {tag} in it, as Redis Cluster has it. Only built-in, immutable functions: it can be inlined, and the expression can stand
-- in the row filter of a publication.
create or replace function tidebase_private.bucket_of(run_id text)
returns integer
language sql immutable
as $$
  select ('x' || case
    when run_id ~ '^run_[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$' then right(run_id, 4)
    else left(encode(sha256(replace(
      coalesce(nullif(substring(run_id from '[{]([^}]*)[}]'), ''), run_id), E'\\', E'\\\\')::bytea), 'hex'), 4)
  end)::bit(16)::integer;
$$;
comment on function tidebase_private.bucket_of(text) is
  'The bucket of a run, 0 to 65535: the last four hexadecimal digits of a generated id, else the first 16 bits of the SHA-256 of the id, or of what stands in its first {braces}.';

-- A UUIDv7 (RFC 9562, section 5.7): milliseconds first, so that new runs are neighbours in the index.
create or replace function tidebase.new_run_id(beside text default null)
returns text
language plpgsql volatile security definer
set search_path = pg_catalog, tidebase, pg_temp
as $$
declare
  bytes bytea := uuid_send(gen_random_uuid());
begin
  bytes := overlay(bytes placing substring(int8send((extract(epoch from clock_timestamp()) * 1000)::bigint) from 3) from 1 for 6);
  if beside is not null then
    perform tidebase_private.require_name(beside, 'beside', 255);
    bytes := overlay(bytes placing substring(int4send(tidebase_private.bucket_of(beside)) from 3) from 15 for 2);
  end if;
  return 'run_' || encode(set_bit(set_bit(bytes, 52, 1), 53, 1), 'hex')::uuid;
end
$$;
comment on function tidebase.new_run_id(text) is
  'A fresh id: run_ and a UUIDv7. beside: a run into whose bucket it shall fall, as the ids of children and forks do with that of their root: so a tree of runs stays together wherever runs are spread over several databases. Errors: TB002.';

create or replace function tidebase_private.require_same(run tidebase.runs, workflow text, input jsonb)
returns void
language plpgsql volatile
as $$
begin
  if run.workflow <> workflow then
    perform tidebase_private.raise('TB006', format('run %L belongs to workflow %L, not to %L', run.run_id, run.workflow, workflow),
      jsonb_build_object('run_id', run.run_id, 'workflow', run.workflow, 'given', workflow), 'Use another run_id.');
  elsif input is not null and input is distinct from run.input then
    perform tidebase_private.raise('TB006', format('run %L was created with another input', run.run_id),
      jsonb_build_object('run_id', run.run_id, 'workflow', workflow), 'Use another run_id, or leave the input out to go on with the existing run.');
  end if;
end
$$;
comment on function tidebase_private.require_same(tidebase.runs, text, jsonb) is
  'Raises TB006 unless the run is what create_run is asked for: of the same workflow and, where one is given, with the same input.';

-- Makes a run, or finds the one that an earlier call with the same id made.
create or replace function tidebase.create_run(
  workflow text, input jsonb default null, run_id text default null, metadata jsonb default null,
  deadline timestamptz default null, max_attempts integer default null, retry_delay interval default null,
  recovery_webhook text default null, budget jsonb default null, traceparent text default null)
returns text
language plpgsql volatile security definer
set search_path = pg_catalog, tidebase, pg_temp
as $$
declare
  id text := coalesce(run_id, tidebase_private.own_run_id());
  existing runs;
  head run_heads;
  made timestamptz;
begin
  perform tidebase_private.require_name(workflow, 'workflow', 255);
  perform tidebase_private.require_name(id, 'run_id', 255);
  if jsonb_typeof(metadata) <> 'object' then
    perform tidebase_private.raise_invalid('metadata', 'must be a JSON object');
  elsif max_attempts not between 1 and 1000 then
    perform tidebase_private.raise_invalid('max_attempts', 'must be a number from 1 to 1000');
  elsif recovery_webhook !~ '^https?://[^[:space:]]+$' or octet_length(recovery_webhook) > 4096 then
    perform tidebase_private.raise_invalid('recovery_webhook', 'must be an http or https URL of at most 4096 bytes');
  end if;
  perform tidebase_private.require_payload(input, 'input');
  perform tidebase_private.require_note(metadata, 'metadata');
  perform tidebase_private.require_moment(deadline, 'deadline');
  perform tidebase_private.require_interval(coalesce(retry_delay, '1 second'), 'retry_delay', '0', '30 days');
  perform tidebase_private.require_budget(budget);
  perform tidebase_private.require_traceparent(traceparent);
  perform tidebase_private.commit_durably();

  loop
    insert into runs (run_id, workflow, input, metadata, max_attempts, retry_delay, recovery_webhook, traceparent)
    values (id, create_run.workflow, create_run.input, coalesce(create_run.metadata, '{}'), create_run.max_attempts,
      create_run.retry_delay, create_run.recovery_webhook, create_run.traceparent)
    on conflict on constraint runs_pkey do nothing
    returning created_at into made;
    exit when found;
    select r.* into existing from runs r where r.run_id = id;
    if found then  -- else it was purged in between
      perform tidebase_private.require_same(existing, workflow, input);
      return id;
    end if;
  end loop;

  insert into run_heads (run_id, last_seq, durable_seq, deadline_at, due_at, has_budget, created_at, workflow_key)
  values (id, 1, 1, create_run.deadline, create_run.deadline, budget is not null, made, hashtextextended(create_run.workflow, 0))
  returning * into head;
  if budget is not null then
    perform tidebase_private.open_account(id, budget);
  end if;
  perform tidebase_private.emit(head, 'run.created', jsonb_build_object('workflow', workflow));
  return id;
end
$$;
comment on function tidebase.create_run(text, jsonb, text, jsonb, timestamptz, integer, interval, text, jsonb, text) is
  'Makes a run and returns its id, generated when run_id is NULL. The same id with the same workflow and an equal input is the same run; with others TB006. An input of SQL NULL makes no claim: it finds an existing run whatever its input. run_id: 1 to 255 bytes. metadata: an object of your own, kept from the first call; {"tidebase.session": true} in it says that the run is worked on when somebody comes, and is not missed meanwhile (see stalled_runs). deadline: from when the run may not go on: it is cancelled. max_attempts (1 to 1000) and retry_delay (by default 1 second, doubled each time, at most 1 hour): how fail_run goes on; where max_attempts is given, an attempt whose worker died counts, too, and the last one fails the run. Without it the first failure is final, and a crash never is. recovery_webhook: the URL that is told when the run fails, loses its worker, or is to be recovered. budget: {"cost_usd": 2.50, "tokens": 100000}, either or both: what the run and its descendants may use together; see set_budget. traceparent: of the W3C Trace Context in which the run is made, for its first attempt to link to. Errors: TB002, TB006.';

-- What becomes of steps that have not ended when their run is completed: one that may have taken effect is a question that
-- must not be buried; any other is closed.
create or replace function tidebase_private.close_steps(head tidebase.run_heads)
returns text[]
language plpgsql volatile
as $$
declare
  step tidebase.steps;
  closed text[];
begin
  if not exists (select from tidebase.steps s where s.run_id = head.run_id and s.status in ('running', 'review')) then
    return null;
  end if;
  select s.* into step from tidebase.steps s
  where s.run_id = head.run_id and (s.status = 'review'
    or s.status = 'running' and not tidebase_private.allows_repetition(s.side_effects, s.idempotency_key, s.replay))
  order by s.started_at, s.name
  limit 1;
  if found then
    perform tidebase_private.raise('TB014', format('run %L cannot be completed: its step %L may have taken effect, and nobody has decided what came of it',
        head.run_id, step.name),
      jsonb_build_object('run_id', head.run_id, 'step', step.name, 'status', step.status),
      'End the attempt with fail_run, and decide with resolve_review; or complete the step, if its result is known.');
  end if;
  with closing as (
    update tidebase.steps s
    set status = 'failed', decision = 'safe_replay',
        error = '{"type": "Unfinished", "message": "the run was completed while the step was at work"}'
    where s.run_id = head.run_id and s.status = 'running'
    returning s.name)
  select array_agg(c.name order by c.name) into closed from closing c;
  return closed;
end
$$;
comment on function tidebase_private.close_steps(tidebase.run_heads) is
  'Closes the steps of a run that is about to be completed, and returns their names; NULL if all have ended. Errors: TB014.';

create or replace function tidebase.complete_run(run_id text, token bigint, result jsonb default null)
returns bigint
language plpgsql volatile security definer
set search_path = pg_catalog, tidebase, pg_temp
set enable_seqscan = off
as $$
declare
  head run_heads;
  wanted jsonb := coalesce(result, 'null');
  open_steps text[];
begin
  if not tidebase_private.is_small(result) then
    perform tidebase_private.require_payload(result, 'result');
  end if;
  if not tidebase_private.is_durable() then
    perform tidebase_private.commit_durably();
  end if;
  -- The fence, which here changes the status, too.
  update run_heads h
  set status = 'completed', lease_expires_at = null, due_at = null,
      last_seq = h.last_seq + 1, durable_seq = h.last_seq + 1, updated_at = clock_timestamp()
  where h.run_id = complete_run.run_id and h.lease_token = complete_run.token and h.status = 'running'
  returning h.* into head;
  if found then
    open_steps := tidebase_private.close_steps(head);
  else
    select h.* into head from run_heads h
    join runs r on r.run_id = h.run_id and r.result = wanted
    where h.run_id = complete_run.run_id and h.lease_token = complete_run.token and h.status = 'completed';
    if not found then
      perform tidebase_private.raise_fenced(run_id, token);
    end if;
    return head.last_seq;  -- the same call again
  end if;
  update runs r set result = wanted, error = null, finished_at = clock_timestamp() where r.run_id = complete_run.run_id;
  perform tidebase_private.end_attempt(head, 'completed');
  update gates g set status = 'cancelled' where g.run_id = complete_run.run_id and g.status = 'pending';
  if head.in_queue then
    perform tidebase_private.leave_queue(head);  -- where its lease had run out
  end if;
  perform tidebase_private.emit(head, 'run.completed', jsonb_strip_nulls(jsonb_build_object(
    'attempt', head.attempt, 'token', head.lease_token, 'unfinished', open_steps)));
  perform tidebase_private.wake_parents(run_id);
  return head.last_seq;
end
$$;
comment on function tidebase.complete_run(text, bigint, jsonb) is
  'Stores the result and ends the run for good, with its gates that are still open, and the steps that were begun and never ended; returns the seq of its last event. The same call again returns the same. Errors: TB001, TB003, TB004, TB005, TB014 (a step is in review, or was left unfinished and may have taken effect: end the attempt with fail_run, and the run goes into review).';

-- As a row what is otherwise raised: of many runs one that cannot be completed is its own affair.
create or replace function tidebase_private.try_to_complete(run_id text, token bigint, result jsonb)
returns tidebase.completion
language plpgsql volatile
as $$
declare
  answer tidebase.completion;
  details text;
begin
  answer.run_id := run_id;
  answer.seq := tidebase.complete_run(run_id, token, result);
  return answer;
exception when others then
  if sqlstate !~ '^TB' then
    raise;
  end if;
  get stacked diagnostics answer.code = returned_sqlstate, answer.message = message_text, details = pg_exception_detail,
    answer.hint = pg_exception_hint;
  answer.detail := details::jsonb;
  return answer;
end
$$;
comment on function tidebase_private.try_to_complete(text, bigint, jsonb) is 'complete_run, and what it says of a run that it cannot complete.';

-- Many runs that have ended at about the same time: one commit, and what is plain by one statement a table.
--
-- A head that is locked just now is left out, as in renew_leases: to wait for it while others are held could close a circle. So
-- nobody waits for this call longer than it takes. What is looked at of a run is looked at under its lock, by a statement of its own.
create or replace function tidebase.complete_runs(run_ids text[], tokens bigint[], results jsonb[] default null)
returns setof tidebase.completion
language plpgsql volatile security definer rows 100
set search_path = pg_catalog, tidebase, pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set enable_hashjoin = off
set enable_mergejoin = off
as $$
declare
  held integer[];
  plain integer[];
  ended text[];
  child text;
  watcher record;
begin
  if coalesce(array_ndims(run_ids), 1) > 1 or coalesce(array_ndims(tokens), 1) > 1 or coalesce(array_ndims(results), 1) > 1
    or cardinality(run_ids) is distinct from cardinality(tokens)
    or cardinality(run_ids) is distinct from coalesce(cardinality(results), cardinality(run_ids))
    or coalesce(cardinality(run_ids), 1001) > 1000
  then
    perform tidebase_private.raise_invalid('run_ids, tokens and results', 'must be lists of the same length, up to 1000');
  elsif cardinality(run_ids) > (select count(distinct u.run_id) from unnest(run_ids) u (run_id)) then
    perform tidebase_private.raise_invalid('run_ids', 'must name each run once');
  end if;
  perform tidebase_private.commit_durably();
  with mine as (  -- the fence
    select g.place
    from unnest(run_ids, tokens) with ordinality g (run_id, token, place)
    join run_heads h on h.run_id = g.run_id and h.lease_token = g.token and h.status = 'running'
    order by g.run_id
    for no key update of h skip locked)
  select coalesce(array_agg(m.place::integer), '{}') into held from mine m;
  plain := array(
    select p.place from unnest(held) p (place)
    where coalesce(tidebase_private.is_small(results[p.place]), true)
      and not exists (select from steps s where s.run_id = run_ids[p.place] and s.status in ('running', 'review')));
  ended := array(select run_ids[p.place] from unnest(plain) p (place));
  return query
    with wanted as materialized (
      select run_ids[p.place] as run_id, coalesce(results[p.place], 'null') as result from unnest(plain) p (place)),
    ending as (
      update run_heads h
      set status = 'completed', lease_expires_at = null, due_at = null,
          last_seq = h.last_seq + 1, durable_seq = h.last_seq + 1, updated_at = clock_timestamp()
      from wanted w
      where h.run_id = w.run_id
      returning h.run_id, h.last_seq, h.attempt, h.lease_token),
    stored as (
      update runs r set result = w.result, error = null, finished_at = clock_timestamp() from wanted w where r.run_id = w.run_id),
    closed as (
      update attempts a set ended_at = clock_timestamp(), outcome = 'completed', error = null
      from ending e
      where a.run_id = e.run_id and a.attempt = e.attempt and a.ended_at is null),
    withdrawn as (
      update gates g set status = 'cancelled' from wanted w where g.run_id = w.run_id and g.status = 'pending'),
    gone as (  -- where the lease had run out
      delete from queue_entries q using wanted w where q.run_id = w.run_id),
    logged as (
      insert into events (run_id, seq, type, payload)
      select e.run_id, e.last_seq, 'run.completed', jsonb_build_object('attempt', e.attempt, 'token', e.lease_token) from ending e)
    select e.run_id, e.last_seq, null::text, null::text, null::jsonb, null::text from ending e;
  for watcher in
    select w.run_id, h.last_seq from watches w
    join run_heads h on h.run_id = w.run_id
    where w.run_id = any (ended) and w.watched_until > clock_timestamp()
  loop
    perform tidebase_private.ring(watcher.run_id, watcher.last_seq);
  end loop;
  for child in select distinct w.child_run_id from awaited w where w.child_run_id = any (ended) loop
    perform tidebase_private.wake_parents(child);
  end loop;

  for place in 1..cardinality(run_ids) loop
    continue when place = any (plain);
    if place <> all (held) and exists (
      select from run_heads h where h.run_id = run_ids[place] and h.lease_token = tokens[place] and h.status = 'running')
    then
      return next row(run_ids[place], null, '55P03', format('run %L is locked by another call at this moment', run_ids[place]),
        jsonb_build_object('run_id', run_ids[place]), 'Call complete_run, which waits for it.')::completion;
    else
      return next tidebase_private.try_to_complete(run_ids[place], tokens[place], results[place]);
    end if;
  end loop;
end
$$;
comment on function tidebase.complete_runs(text[], bigint[], jsonb[]) is
  'Completes many runs at once, by one commit: run_ids, tokens and results (NULL: none has one) are lists of the same length, up to 1000, and name each run once. Each is completed as complete_run does it, or not at all: one row a run, in no order, with the seq of its last event, or with the code (SQLSTATE), message, detail and hint of the error that complete_run would have raised for it; the others do not suffer from it. Waits for nobody: a run that is locked at that moment is reported as 55P03, and is left to complete_run. The same call again returns the same. Errors: TB002.';

-- A lease that was given up, or suspended, has used no attempt up; a worker that died has.
create or replace function tidebase_private.attempts_used(head tidebase.run_heads)
returns integer
language sql stable
as $$
  select count(*)::integer
  from tidebase.runs r
  join tidebase.attempts a on a.run_id = r.run_id and a.attempt > r.attempts_forgiven
  where r.run_id = head.run_id and a.outcome in ('failed', 'lapsed');
$$;
comment on function tidebase_private.attempts_used(tidebase.run_heads) is
  'How many attempts have failed, or lost their worker, since the run was recovered last.';

-- Ends a run whose worker died, for the last time that max_attempts allows: it must not kill one worker after the other.
create or replace function tidebase_private.fail_crashed(head tidebase.run_heads, attempts integer)
returns tidebase.run_heads
language plpgsql volatile
as $$
declare
  failure jsonb := jsonb_build_object('type', 'WorkerLost', 'message',
    format('%s attempts have failed or lost their worker, the last one without a word', attempts));
begin
  update tidebase.runs r set error = failure, finished_at = clock_timestamp(), failure_class = 'crashed'
  where r.run_id = head.run_id;
  update tidebase.run_heads h
  set status = 'failed', lease_expires_at = null, last_seq = h.last_seq + 1, durable_seq = h.last_seq + 1, updated_at = clock_timestamp()
  where h.run_id = head.run_id
  returning h.* into head;
  perform tidebase_private.leave_queue(head);
  perform tidebase_private.emit(head, 'run.failed',
    jsonb_build_object('attempt', head.attempt, 'token', head.lease_token, 'error', failure, 'status', 'failed'));
  perform tidebase_private.wake_parents(head.run_id);
  return head;
end
$$;
comment on function tidebase_private.fail_crashed(tidebase.run_heads, integer) is
  'Fails a run whose lease has run out and that has used up its attempts. The caller holds the head''s lock.';

-- Ends an attempt with an error, and decides what becomes of the run.
--
-- A step in review comes first: nothing can go on before a person has decided. Then the attempts that are left, with
-- the same backoff as a step's retries.
create or replace function tidebase.fail_run(run_id text, token bigint, error jsonb default null, retryable boolean default true)
returns tidebase.run_failure
language plpgsql volatile security definer
set search_path = pg_catalog, tidebase, pg_temp
set enable_seqscan = off
as $$
declare
  head run_heads;
  run runs;
  wanted jsonb := coalesce(error, 'null');
  next_status text;
  delay interval;
  failures integer;
begin
  perform tidebase_private.require_payload(error, 'error');
  perform tidebase_private.commit_durably();
  head := tidebase_private.lock_head(run_id);
  if head.lease_token = token and head.status in ('failed', 'pending', 'queued', 'review') and exists (
    select from attempts a where a.run_id = head.run_id and a.attempt = head.attempt and a.outcome = 'failed')
  then
    return row(tidebase_private.last_of_type(run_id, 'run.failed'), head.status, head.available_at)::run_failure;  -- again
  end if;
  head := tidebase_private.fence(run_id, token, 0);
  perform tidebase_private.review_unsettled(head);
  select r.* into run from runs r where r.run_id = fail_run.run_id;
  failures := tidebase_private.attempts_used(head) + 1;
  next_status := case
    when exists (select from steps s where s.run_id = fail_run.run_id and s.status = 'review') then 'review'
    when coalesce(retryable, true) and failures < coalesce(run.max_attempts, 1) then tidebase_private.free_status(head)
    else 'failed'
  end;
  if next_status in ('pending', 'queued') then
    delay := tidebase_private.retry_delay(failures, run.retry_delay, '1 hour');
  end if;

  update runs r
  set error = wanted, finished_at = case when next_status = 'failed' then clock_timestamp() end,
      failure_class = case when next_status <> 'failed' then null when coalesce(retryable, true) and failures > 1 then 'max_attempts' else 'error' end
  where r.run_id = fail_run.run_id;
  perform tidebase_private.end_attempt(head, 'failed', wanted);
  update run_heads h
  set status = next_status, lease_expires_at = null, available_at = clock_timestamp() + delay,
      last_seq = h.last_seq + 1, durable_seq = h.last_seq + 1
  where h.run_id = fail_run.run_id
  returning h.* into head;
  perform tidebase_private.emit(head, 'run.failed',
    jsonb_build_object('attempt', head.attempt, 'token', head.lease_token, 'error', wanted, 'status', next_status)
      || case when delay is null then '{}' else jsonb_build_object('retry_after', round(extract(epoch from delay), 3)) end);
  if next_status = 'queued' then
    perform tidebase_private.requeue(head);
  elsif head.in_queue then
    perform tidebase_private.leave_queue(head);
  end if;
  if next_status = 'failed' then
    perform tidebase_private.call_for_recovery(head, 'run_failed');
  end if;
  perform tidebase_private.wake_parents(run_id);
  return row(head.last_seq, next_status, head.available_at)::run_failure;
end
$$;
comment on function tidebase.fail_run(text, bigint, jsonb, boolean) is
  'Ends this attempt with an error and gives the lease up. status: failed (may still be resumed: acquire_run grants it again, and its checkpoints replay), pending, or queued where it belongs to a queue (attempts are left: it may be acquired again from retry_at on), review (a person must decide about a step first). The recovery_webhook of a run that has failed is told (see record_recovery). error: any JSON, by convention {type, message}. retryable: false rules further attempts out. The same call again returns the same. Errors: TB001, TB003, TB004, TB005.';

-- No barrier: it hides no row, and would keep a LIMIT from stopping the search. So does a volatile clock: a statement has one.
create or replace view tidebase.run_overview as
  select
    r.run_id,
    r.workflow,
    h.status,
    h.attempt,
    h.lease_token,
    h.holder,
    h.lease_expires_at,
    h.status = 'running' and h.lease_expires_at <= statement_timestamp() as lease_lapsed,
    h.steps_completed,
    h.last_seq,
    a.code_version,
    r.input,
    r.metadata,
    r.result,
    r.error,
    r.created_at,
    h.updated_at,
    case when h.status in ('completed', 'failed', 'cancelled') then coalesce(r.cancelled_at, r.finished_at) end as finished_at,
    h.waiting_for,
    h.available_at,
    h.deadline_at,
    r.max_attempts,
    r.recovery_webhook,
    r.cancelled_at,
    r.cancel_reason,
    r.cancel_actor,
    r.compacted_at,
    case when h.status in ('failed', 'cancelled') then r.failure_class end as failure_class,
    r.parent_run_id,
    r.queue,
    r.priority,
    r.queue_key,
    r.dedupe_key,
    r.pinned
  from tidebase.runs r
  join tidebase.run_heads h on h.run_id = r.run_id
  left join tidebase.attempts a on a.run_id = h.run_id and a.attempt = h.attempt;
comment on view tidebase.run_overview is
  'One row a run: what it was asked, how far it is, who holds it, what came of it. lease_lapsed: the holder had gone silent when the statement began, and another worker may take over. code_version: of the latest attempt. waiting_for: the gate, the timer or the children for which it was suspended. failure_class: of a failed run, error (its work raised one), max_attempts (the last of several attempts did), crashed (it lost its worker max_attempts times) or not_begun (its queue''s endpoint did not take it up); of a cancelled one, deadline, if that was why. queue: where it waits for a worker, if it was enqueued, with its priority, the key between which the queue is fair (queue_key), its dedupe_key, and whether it is pinned to the code it began with.';

create or replace function tidebase.get_run(run_id text)
returns setof tidebase.run_overview
language plpgsql stable security definer rows 1
set search_path = pg_catalog, tidebase, pg_temp
set enable_seqscan = off
as $$
begin
  return query select o.* from run_overview o where o.run_id = get_run.run_id;
  if not found then
    perform tidebase_private.raise_run_not_found(run_id);
  end if;
end
$$;
comment on function tidebase.get_run(text) is 'The run_overview row of one run. Errors: TB001.';

select tidebase_private.allow('function tidebase.new_run_id', 'worker', 'operator');
select tidebase_private.allow('function tidebase.create_run', 'worker');
select tidebase_private.allow('function tidebase.complete_run', 'worker');
select tidebase_private.allow('function tidebase.complete_runs', 'worker');
select tidebase_private.allow('function tidebase.fail_run', 'worker');
select tidebase_private.allow('function tidebase.get_run', 'worker', 'approver', 'operator', 'reader');
select tidebase_private.allow('table tidebase.run_overview', 'worker', 'approver', 'operator', 'reader');
