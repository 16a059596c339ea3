-- Runs: made once, finished once, looked at by anyone who may.

-- A UUIDv7 (RFC 9562, section 5.7): milliseconds first, so that new runs are neighbours in the index.
create or replace function tidebase_private.new_run_id()
returns text
language sql volatile
as $$
  select 'run_' || encode(
    set_bit(set_bit(
      overlay(uuid_send(gen_random_uuid())
        placing substring(int8send((extract(epoch from clock_timestamp()) * 1000)::bigint) from 3) from 1 for 6),
      52, 1), 53, 1), 'hex')::uuid;
$$;
comment on function tidebase_private.new_run_id() is 'A fresh id: run_ and a UUIDv7.';

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
  id text := coalesce(run_id, tidebase_private.new_run_id());
  existing runs;
  head run_heads;
begin
  perform tidebase_private.require_name(workflow, 'workflow', 255);
  perform tidebase_private.require_name(id, 'run_id', 255);
  if jsonb_typeof(metadata) <> 'object' then
    perform tidebase_private.raise_invalid('metadata', 'must be a JSON object');
  elsif max_attempts not between 1 and 1000 then
    perform tidebase_private.raise_invalid('max_attempts', 'must be a number from 1 to 1000');
  elsif recovery_webhook !~ '^https?://[^[:space:]]+$' then
    perform tidebase_private.raise_invalid('recovery_webhook', 'must be an http or https URL');
  end if;
  if pg_column_size(input) > 1000000 or pg_column_size(metadata) > 1000000 then
    perform tidebase_private.require_size(input, 'input');
    perform tidebase_private.require_size(metadata, 'metadata');
  end if;
  perform tidebase_private.require_interval(coalesce(retry_delay, '1 second'), 'retry_delay', '0', '30 days');
  perform tidebase_private.require_budget(budget);
  perform tidebase_private.require_traceparent(traceparent);
  perform tidebase_private.commit_durably();

  loop
    insert into runs (run_id, workflow, input, metadata, max_attempts, retry_delay, recovery_webhook, traceparent)
    values (id, create_run.workflow, create_run.input, coalesce(create_run.metadata, '{}'), create_run.max_attempts,
      create_run.retry_delay, create_run.recovery_webhook, create_run.traceparent)
    on conflict on constraint runs_pkey do nothing;
    exit when found;
    select r.* into existing from runs r where r.run_id = id;
    if found then  -- else it was purged in between
      perform tidebase_private.require_same(existing, workflow, input);
      return id;
    end if;
  end loop;

  insert into run_heads (run_id, last_seq, durable_seq, deadline_at, due_at, has_budget)
  values (id, 1, 1, create_run.deadline, create_run.deadline, budget is not null)
  returning * into head;
  if budget is not null then
    perform tidebase_private.open_account(id, budget);
  end if;
  perform tidebase_private.emit(head, 'run.created', jsonb_build_object('workflow', workflow));
  return id;
end
$$;
comment on function tidebase.create_run(text, jsonb, text, jsonb, timestamptz, integer, interval, text, jsonb, text) is
  'Makes a run and returns its id, generated when run_id is NULL. The same id with the same workflow and an equal input is the same run; with others TB006. An input of SQL NULL makes no claim: it finds an existing run whatever its input. run_id: 1 to 255 bytes. metadata: an object of your own, kept from the first call. deadline: from when the run may not go on: it is cancelled. max_attempts (1 to 1000, by default 1) and retry_delay (by default 1 second, doubled each time, at most 1 hour): how fail_run goes on. recovery_webhook: the URL that is told when the run is to be recovered. budget: {"cost_usd": 2.50, "tokens": 100000}, either or both: what the run and its descendants may use together; see set_budget. traceparent: of the W3C Trace Context in which the run is made, for its first attempt to link to. Errors: TB002, TB006.';

create or replace function tidebase.complete_run(run_id text, token bigint, result jsonb default null)
returns bigint
language plpgsql volatile security definer
set search_path = pg_catalog, tidebase, pg_temp
set enable_seqscan = off
as $$
declare
  head run_heads;
  wanted jsonb := coalesce(result, 'null');
begin
  if pg_column_size(result) > 1000000 then
    perform tidebase_private.require_size(result, 'result');
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
  if not found then
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
  perform tidebase_private.emit(head, 'run.completed', jsonb_build_object('attempt', head.attempt, 'token', head.lease_token));
  return head.last_seq;
end
$$;
comment on function tidebase.complete_run(text, bigint, jsonb) is
  'Stores the result and ends the run for good, with its gates that are still open; returns the seq of its last event. The same call again returns the same. Errors: TB001, TB003, TB004, TB005.';

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
  if pg_column_size(error) > 1000000 then
    perform tidebase_private.require_size(error, 'error');
  end if;
  perform tidebase_private.commit_durably();
  head := tidebase_private.lock_head(run_id);
  if head.lease_token = token and head.status in ('failed', 'pending', 'review') and exists (
    select from attempts a where a.run_id = head.run_id and a.attempt = head.attempt and a.outcome = 'failed')
  then
    return row(tidebase_private.last_of_type(run_id, 'run.failed'), head.status, head.available_at)::run_failure;  -- again
  end if;
  head := tidebase_private.fence(run_id, token, 1);
  select r.* into run from runs r where r.run_id = fail_run.run_id;
  -- A lease that was given up, or suspended for a gate, has used no attempt up.
  select count(*)::integer + 1 into failures from attempts a
  where a.run_id = fail_run.run_id and a.outcome in ('failed', 'lapsed');
  next_status := case
    when exists (select from steps s where s.run_id = fail_run.run_id and s.status = 'review') then 'review'
    when coalesce(retryable, true) and failures < coalesce(run.max_attempts, 1) then 'pending'
    else 'failed'
  end;
  if next_status = 'pending' then
    delay := tidebase_private.retry_delay(failures, run.retry_delay, '1 hour');
  end if;

  update runs r
  set error = wanted, finished_at = case when next_status = 'failed' then clock_timestamp() end
  where r.run_id = fail_run.run_id;
  perform tidebase_private.end_attempt(head, 'failed', wanted);
  update run_heads h
  set status = next_status, lease_expires_at = null, available_at = clock_timestamp() + delay
  where h.run_id = fail_run.run_id
  returning h.* into head;
  perform tidebase_private.emit(head, 'run.failed',
    jsonb_build_object('attempt', head.attempt, 'token', head.lease_token, 'error', wanted, 'status', next_status)
      || case when delay is null then '{}' else jsonb_build_object('retry_after', round(extract(epoch from delay), 3)) end);
  return row(head.last_seq, next_status, head.available_at)::run_failure;
end
$$;
comment on function tidebase.fail_run(text, bigint, jsonb, boolean) is
  'Ends this attempt with an error and gives the lease up. status: failed (may still be resumed: acquire_run grants it again, and its checkpoints replay), pending (attempts are left: it may be acquired again from retry_at on), review (a person must decide about a step first). error: any JSON, by convention {type, message}. retryable: false rules further attempts out. The same call again returns the same. Errors: TB001, TB003, TB004, TB005.';

create or replace view tidebase.run_overview with (security_barrier = true) as
  select
    r.run_id,
    r.workflow,
    h.status,
    h.attempt,
    h.lease_token,
    h.holder,
    h.lease_expires_at,
    h.status = 'running' and h.lease_expires_at <= clock_timestamp() as lease_lapsed,
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
    r.compacted_at
  from tidebase.runs r
  join tidebase.run_heads h on h.run_id = r.run_id
  left join tidebase.attempts a on a.run_id = h.run_id and a.attempt = h.attempt;
comment on view tidebase.run_overview is
  'One row a run: what it was asked, how far it is, who holds it, what came of it. lease_lapsed: the holder has gone silent, and another worker may take over. code_version: of the latest attempt. waiting_for: the gate or timer for which it was suspended.';

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

-- The plan depends on which filters are given, so it is made for each call's values.
create or replace function tidebase.list_runs(
  workflow text default null, status text default null, before text default null, max integer default 100,
  created_after timestamptz default null, created_before timestamptz default null)
returns setof tidebase.run_overview
language plpgsql stable security definer rows 100
set search_path = pg_catalog, tidebase, pg_temp
set plan_cache_mode = force_custom_plan
as $$
begin
  if max is null or max < 1 or max > 1000 then
    perform tidebase_private.raise_invalid('max', 'must be a number from 1 to 1000');
  end if;
  if before is not null and not exists (select from runs r where r.run_id = list_runs.before) then
    perform tidebase_private.raise_run_not_found(list_runs.before);
  end if;
  return query
    select o.*
    from run_overview o
    where (list_runs.workflow is null or o.workflow = list_runs.workflow)
      and (list_runs.status is null or o.status = list_runs.status)
      and (list_runs.before is null
        or (o.created_at, o.run_id) < (select r.created_at, r.run_id from runs r where r.run_id = list_runs.before))
      and (created_after is null or o.created_at > created_after)
      and (created_before is null or o.created_at < created_before)
    order by o.created_at desc, o.run_id desc
    limit list_runs.max;
end
$$;
comment on function tidebase.list_runs(text, text, text, integer, timestamptz, timestamptz) is
  'Runs, newest first: of a workflow, in a status, older than the run `before` (to page on: the last row''s run_id), created after and before these times, at most max (1 to 1000). NULL means any. Errors: TB001, TB002.';

select tidebase_private.allow('function tidebase.create_run', 'worker');
select tidebase_private.allow('function tidebase.complete_run', 'worker');
select tidebase_private.allow('function tidebase.fail_run', 'worker');
select tidebase_private.allow('function tidebase.get_run', 'worker', 'approver', 'operator', 'reader');
select tidebase_private.allow('function tidebase.list_runs', 'worker', 'approver', 'operator', 'reader');
select tidebase_private.allow('table tidebase.run_overview', 'worker', 'approver', 'operator', 'reader');
