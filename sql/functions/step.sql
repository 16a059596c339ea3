-- Steps: named units of work whose result is kept.
--
--   begin_step --> execute --> complete_step        the checkpoint is written; the step never runs again
--        |            `------> fail_step            says whether and when to begin it again
--        `-------> replay                           the checkpoint is handed out; nothing is written
--
-- A step is known by its name in the run. A client that runs the same step for several things puts the thing's key
-- into the name as `name[key]`.
--
-- These are the calls that a run makes most, so they are written for speed: a PERFORM starts the executor, an IF over
-- built-in or inlined functions does not. What most calls do not need stands behind an IF.

create or replace function tidebase_private.raise_other_input(step tidebase.steps, given bytea)
returns void
language plpgsql volatile
as $$
begin
  perform tidebase_private.raise('TB006', format('step %L of run %L was begun with another input', step.name, step.run_id),
    jsonb_build_object('run_id', step.run_id, 'step', step.name, 'status', step.status,
      'input_hash', encode(step.input_hash, 'hex'), 'given_hash', encode(given, 'hex')),
    'Give the step its first input, or another name (or key) if it is another piece of work.');
end
$$;
comment on function tidebase_private.raise_other_input(tidebase.steps, bytea) is 'Raises TB006 for a step.';

create or replace function tidebase_private.raise_not_running(run_id text, token bigint, name text)
returns void
language plpgsql volatile
as $$
declare
  step tidebase.steps;
begin
  select s.* into step from tidebase.steps s where s.run_id = raise_not_running.run_id and s.name = raise_not_running.name;
  perform tidebase_private.raise('TB007', format('step %L of run %L is %s', name, run_id, case
      when step.name is null then 'not begun'
      when step.status = 'running' and step.lease_token <> token then 'not begun under this lease'
      when step.status = 'completed' then 'completed already'
      else step.status end),
    jsonb_build_object('run_id', run_id, 'step', name, 'status', step.status, 'lease_token', step.lease_token),
    'Call begin_step and do what it says.');
end
$$;
comment on function tidebase_private.raise_not_running(text, bigint, text) is 'Raises TB007: the step cannot be completed or failed now.';

create or replace function tidebase_private.find_checkpoint(run_id text, token bigint, name text, input_hash bytea)
returns tidebase.step_start
language plpgsql stable
as $$
declare
  step tidebase.steps;
begin
  select s.* into step from tidebase.steps s
  where s.run_id = find_checkpoint.run_id and s.name = find_checkpoint.name and s.status = 'completed';
  if not found or not exists (
    select from tidebase.run_heads h
    where h.run_id = find_checkpoint.run_id and h.lease_token = find_checkpoint.token and h.status = 'running')
  then
    return null;
  elsif step.input_hash <> input_hash then
    perform tidebase_private.raise_other_input(step, input_hash);
  end if;
  return row('replay', step.attempt, step.output)::tidebase.step_start;
end
$$;
comment on function tidebase_private.find_checkpoint(text, bigint, text, bytea) is
  'The checkpoint of a completed step for who holds the lease; a row of NULLs if there is none. Errors: TB006.';

-- What begin_step answers when the step could not simply be begun. Called under the head's lock, with one number taken.
create or replace function tidebase_private.begun_already(
  head tidebase.run_heads, name text, input_hash bytea, request_id text, idempotency_key text default null)
returns tidebase.step_start
language plpgsql volatile
as $$
declare
  step tidebase.steps;
begin
  select s.* into strict step from tidebase.steps s where s.run_id = head.run_id and s.name = begun_already.name;
  if step.input_hash <> input_hash then
    perform tidebase_private.raise_other_input(step, input_hash);
  end if;
  perform tidebase_private.give_back(head, 1);
  if step.status = 'completed' then
    return row('replay', step.attempt, step.output)::tidebase.step_start;
  elsif step.status = 'review' or step.status = 'running' and step.lease_token <> head.lease_token
    or step.status = 'failed' and step.decision <> 'fail_hard'
  then
    perform tidebase_private.ask_about(head, step, idempotency_key);
    return row('review', step.attempt, null)::tidebase.step_start;
  elsif step.status = 'failed' then
    perform tidebase_private.raise('TB007', format('step %L of run %L failed for good', name, head.run_id),
      jsonb_build_object('run_id', head.run_id, 'step', name, 'status', step.status, 'decision', step.decision),
      'It is not executed again in this run. A new run, or a fork from before the step, may.');
  elsif step.request_id = request_id then
    return row('execute', step.attempt, null)::tidebase.step_start;  -- the same call again: its answer was lost on the way
  end if;
  perform tidebase_private.raise('TB007', format('step %L of run %L is running already under this lease', name, head.run_id),
    jsonb_build_object('run_id', head.run_id, 'step', name, 'status', step.status, 'lease_token', step.lease_token),
    'Two threads began the same step. Give each piece of work its own name or key.');
  return null;
end
$$;
comment on function tidebase_private.begun_already(tidebase.run_heads, text, bytea, text, text) is
  'The answer of begin_step for a step that is completed, needs a review, was begun by the very same call, or cannot be begun: TB006, TB007.';

-- Says what to do with a step: execute it, or take its checkpoint.
--
-- The checkpoint of a completed step is handed out without a lock and without a write: it cannot change. Everything
-- else happens under the head's lock, so nobody else begins the step between the look and the write: it is begun, or
-- begun anew when it failed or when an earlier lease left it unfinished and its contract allows a repetition. What it
-- does not allow goes to a person.
create or replace function tidebase.begin_step(
  run_id text, token bigint, name text, input jsonb default null,
  side_effects text[] default null, idempotency_key text default null, replay text default null,
  checkpoint_invariant text default null, verified_by text default null, retries integer default null,
  retry_delay interval default null, retry_max_delay interval default null, timeout interval default null,
  credentials text[] default null, request_id text default null)
returns tidebase.step_start
language plpgsql volatile security definer
set search_path = pg_catalog, tidebase, pg_temp
set enable_seqscan = off
as $$
declare
  head run_heads;
  hash bytea;
  start step_start;
  unsettled steps;
begin
  if not tidebase_private.is_small(input) then
    perform tidebase_private.require_payload(input, 'input');
  end if;
  hash := tidebase_private.hash_input(input);
  start := tidebase_private.find_checkpoint(run_id, token, name, hash);
  if start.outcome = 'replay' then
    return start;
  end if;

  if not tidebase_private.is_name(name, 1024) then
    perform tidebase_private.require_name(name, 'name', 1024);
  end if;
  if request_id is not null and not tidebase_private.is_name(request_id, 255) then
    perform tidebase_private.require_name(request_id, 'request_id', 255);
  end if;
  if num_nonnulls(side_effects, idempotency_key, replay, checkpoint_invariant, verified_by, credentials, retries,
    retry_delay, retry_max_delay, timeout) > 0
  then
    perform tidebase_private.require_contract(side_effects, idempotency_key, replay, checkpoint_invariant, verified_by,
      credentials, retries, retry_delay, retry_max_delay, timeout);
  end if;
  if tidebase_private.writes_outside(side_effects) then
    perform tidebase_private.commit_durably();
  else
    perform tidebase_private.commit_lazily();
  end if;

  head := tidebase_private.fence(run_id, token, 1);
  -- Whatever the time, a checkpoint is handed out: also one that came while we waited.
  if head.deadline_at is not null and (tidebase_private.find_checkpoint(run_id, token, name, hash)).outcome is null then
    perform tidebase_private.require_time_left(head);
  end if;
  if head.attempt > 1 and tidebase_private.writes_outside(side_effects) then
    unsettled := tidebase_private.find_unsettled(head, name);
    if unsettled.name is not null then
      perform tidebase_private.give_back(head, 1);
      perform tidebase_private.ask_about(head, unsettled);
      return row('review', unsettled.attempt, jsonb_build_object('step', unsettled.name))::step_start;
    end if;
  end if;
  start := row('execute', 1, null)::step_start;
  insert into steps (run_id, name, lease_token, attempt, tries, status, input_hash, input, request_id, side_effects,
    idempotency_key, replay, checkpoint_invariant, verified_by, credentials, retries, retry_delay, retry_max_delay, timeout)
  select head.run_id, begin_step.name, head.lease_token, 1, 1, 'running', hash, begin_step.input, begin_step.request_id,
    begin_step.side_effects, begin_step.idempotency_key, begin_step.replay, begin_step.checkpoint_invariant,
    begin_step.verified_by, begin_step.credentials, begin_step.retries, begin_step.retry_delay,
    begin_step.retry_max_delay, begin_step.timeout
  where not exists (select from steps s where s.run_id = begin_step.run_id and s.name = begin_step.name);
  if not found then
    update steps s
    set lease_token = head.lease_token, started_at = clock_timestamp(), status = 'running',
        request_id = begin_step.request_id, side_effects = begin_step.side_effects,
        idempotency_key = begin_step.idempotency_key, replay = begin_step.replay,
        checkpoint_invariant = begin_step.checkpoint_invariant, verified_by = begin_step.verified_by,
        credentials = begin_step.credentials, retries = begin_step.retries, retry_delay = begin_step.retry_delay,
        retry_max_delay = begin_step.retry_max_delay, timeout = begin_step.timeout,
        attempt = s.attempt + 1,
        tries = case when s.lease_token = head.lease_token then s.tries + 1 else 1 end,
        error = null, decision = null, retry_at = null
    where s.run_id = begin_step.run_id and s.name = begin_step.name and s.input_hash = hash
      and tidebase_private.may_begin_again(s, head.lease_token, begin_step.side_effects, begin_step.idempotency_key, begin_step.replay)
    returning s.attempt into start.attempt;
    if not found then
      return tidebase_private.begun_already(head, name, hash, request_id, idempotency_key);
    end if;
  end if;
  if head.has_budget then
    perform tidebase_private.require_funds(head);  -- or nothing of this call has happened
  end if;
  perform tidebase_private.emit(head, 'step.started',
    jsonb_build_object('name', name, 'attempt', start.attempt, 'token', head.lease_token));
  return start;
end
$$;
comment on function tidebase.begin_step(text, bigint, text, jsonb, text[], text, text, text, text, integer, interval, interval, interval, text[], text) is
  'Begins a step, or hands out its checkpoint. outcome: execute (do the work as this attempt, then complete_step or fail_step), replay (output is the checkpoint), review (the step may have taken effect before, and the contract that it had then, or the one it has now, does not allow to repeat it, or its idempotency key is another one: a person must decide; where an earlier attempt left it, the run is in review now, and the lease is given up; a step that failed in this attempt leaves the lease alone, and fail_run puts the run into review). A step that writes to the outside gets the same answer, with {"step": name} as output, while another one is undecided that an earlier attempt left unfinished. name: 1 to 1024 bytes, unique in the run; by convention name[key] for one of several. input: hashed in canonical form; the same step with another input raises TB006. The resume contract: side_effects ({read} is harmless, anything else writes to the outside), idempotency_key, replay (auto, manual, never), checkpoint_invariant, verified_by, credentials (names only), retries (0 to 1000) with retry_delay and retry_max_delay, timeout. request_id: an id made up for this call; the call repeated with it gets the first answer again (after review TB003, because the lease is given up; acquire_run says review); without it a running step raises TB007. The start of a step that writes to the outside commits synchronously. Errors: TB001, TB002, TB003, TB004, TB005, TB006, TB007, TB010 (a budget is used up; checkpoints are still handed out).';

-- What the published SDKs begin a step with: their own hash of the input, and the contract as one JSON object, which is kept as
-- it came. Everything else is begin_step's.
--
-- Where both calls brought a hash, it alone decides whether the input is the same: begin_step is then asked about the input
-- that it knows, or about one that is surely another.
create or replace function tidebase_private.input_to_compare(step tidebase.steps, input jsonb, input_hash text)
returns jsonb
language sql immutable
as $$
  select case
    when step.client_hash = input_hash then step.input
    when step.client_hash is not null then jsonb_build_object('input', input, 'inputHash', input_hash)
    -- As the hash was kept before 0007.
    when step.input = jsonb_build_object('input', step.input -> 'input', 'inputHash', input_hash) then step.input
    else input end;
$$;
comment on function tidebase_private.input_to_compare(tidebase.steps, jsonb, text) is
  'The input for which begin_step finds that a step has the same input, or another one, as the client''s own hash says.';

create or replace function tidebase.begin_step_with(
  run_id text, token bigint, name text, input jsonb default null, input_hash text default null, options jsonb default null,
  request_id text default null)
returns tidebase.step_start
language plpgsql volatile security definer
set search_path = pg_catalog, tidebase, pg_temp
set enable_seqscan = off
as $$
declare
  known steps;
  start step_start;
begin
  perform tidebase_private.require_options(options);
  if input_hash is not null then
    perform tidebase_private.require_name(input_hash, 'input_hash', 1024);
    select s.* into known from steps s where s.run_id = begin_step_with.run_id and s.name = begin_step_with.name;
    if known.name is not null then
      input := tidebase_private.input_to_compare(known, input, input_hash);
    end if;
  end if;
  start := begin_step(run_id, token, name, input,
    side_effects => tidebase_private.side_effects_of(options),
    idempotency_key => nullif(options ->> 'idempotencyKey', ''),
    replay => tidebase_private.replay_of(options),
    checkpoint_invariant => nullif(options ->> 'checkpointInvariant', ''),
    verified_by => nullif(options ->> 'verifiedBy', ''),
    retries => (options ->> 'retries')::numeric::integer,
    timeout => (options ->> 'timeoutMs')::float8 * interval '1 millisecond',
    credentials => tidebase_private.credentials_of(options),
    request_id => request_id);
  if start.outcome = 'execute' then
    update steps s
    set client_hash = coalesce(begin_step_with.input_hash, s.client_hash), options = begin_step_with.options
    where s.run_id = begin_step_with.run_id and s.name = begin_step_with.name;
  end if;
  return start;
end
$$;
comment on function tidebase.begin_step_with(text, bigint, text, jsonb, text, jsonb, text) is
  'As begin_step, for clients that bring a hash of the input of their own, and the contract as one JSON object in the words of the published SDKs. input_hash: 1 to 1024 bytes; where the step was begun with one before, the two alone decide whether the input is the same (TB006), whatever the input. options: kept as they are (steps are shown with them); sideEffects, idempotencyKey, replay, retries, timeoutMs (milliseconds), checkpointInvariant and verifiedBy (any JSON), credentials (names, or objects with a name) say what the parameters of begin_step do, and of older clients sideEffect (read, write, external) and onAmbiguousFailure (retry, review, fail). Errors: TB001, TB002, TB003, TB004, TB005, TB006, TB007, TB010.';

create or replace function tidebase.complete_step(run_id text, token bigint, name text, output jsonb default null)
returns bigint
language plpgsql volatile security definer
set search_path = pg_catalog, tidebase, pg_temp
set enable_seqscan = off
as $$
declare
  head run_heads;
  wanted jsonb := coalesce(output, 'null');
  nth integer;
  earlier bigint;
begin
  if not tidebase_private.is_small(output) then
    perform tidebase_private.require_payload(output, 'output');
  end if;
  if not tidebase_private.is_durable() then
    perform tidebase_private.commit_durably();
  end if;
  head := tidebase_private.fence_done(run_id, token, 1, checkpoints => 1);
  update steps s
  set status = 'completed', output = wanted, completed_at = clock_timestamp(), completed_seq = head.last_seq
  where s.run_id = complete_step.run_id and s.name = complete_step.name
    and s.status = 'running' and s.lease_token = complete_step.token
  returning s.attempt into nth;
  if found then
    perform tidebase_private.emit(head, 'step.completed', jsonb_build_object('name', name, 'attempt', nth));
    return head.last_seq;
  end if;

  select s.completed_seq into earlier from steps s
  where s.run_id = complete_step.run_id and s.name = complete_step.name
    and s.status = 'completed' and s.lease_token = complete_step.token and s.output = wanted;
  if not found then
    perform tidebase_private.raise_not_running(run_id, token, name);
  end if;
  perform tidebase_private.give_back(head, 1, checkpoints => 1);
  return earlier;  -- the same call again
end
$$;
comment on function tidebase.complete_step(text, bigint, text, jsonb) is
  'Stores the output of a running step as its checkpoint and returns the seq of the event. Commits synchronously: once it has returned, the step never runs again. A SQL NULL is stored as the JSON null. Also under a lease that was given up, as long as no newer one was granted: the work is done. The same call again returns the same seq. Errors: TB001, TB003, TB004, TB005, TB007.';

-- Stores the checkpoint of a step that nobody has begun: one call and one flush, for work that may simply be done again
-- when its worker dies. So it can declare nothing about the outside.
create or replace function tidebase.record_step(
  run_id text, token bigint, name text, input jsonb default null, output jsonb default null,
  duration interval default null, log_start boolean default false)
returns tidebase.step_start
language plpgsql volatile security definer
set search_path = pg_catalog, tidebase, pg_temp
set enable_seqscan = off
as $$
declare
  head run_heads;
  hash bytea;
  wanted jsonb := coalesce(output, 'null');
  nth integer := 1;
  starts integer := case when log_start then 1 else 0 end;
begin
  if not tidebase_private.is_name(name, 1024) then
    perform tidebase_private.require_name(name, 'name', 1024);
  end if;
  if duration is not null then
    perform tidebase_private.require_interval(duration, 'duration', '0', '365 days');
  end if;
  if not (tidebase_private.is_small(input) and tidebase_private.is_small(output)) then
    perform tidebase_private.require_payload(input, 'input');
    perform tidebase_private.require_payload(output, 'output');
  end if;
  hash := tidebase_private.hash_input(input);
  if not tidebase_private.is_durable() then
    perform tidebase_private.commit_durably();
  end if;
  head := tidebase_private.fence_done(run_id, token, starts + 1, checkpoints => 1);
  -- Whatever the time, the same call again finds what it stored.
  if head.deadline_at is not null and not exists (
    select from steps s where s.run_id = record_step.run_id and s.name = record_step.name and s.status = 'completed')
  then
    perform tidebase_private.require_time_left(head);
  end if;
  insert into steps (run_id, name, lease_token, attempt, tries, status, input_hash, input, started_at, output,
    completed_at, completed_seq)
  select head.run_id, record_step.name, head.lease_token, 1, 1, 'completed', hash, record_step.input,
    clock_timestamp() - coalesce(duration, '0'), wanted, clock_timestamp(), head.last_seq
  where not exists (select from steps s where s.run_id = record_step.run_id and s.name = record_step.name);
  if not found then
    update steps s
    set lease_token = head.lease_token, started_at = clock_timestamp() - coalesce(duration, '0'), status = 'completed',
        output = wanted, completed_at = clock_timestamp(), completed_seq = head.last_seq, request_id = null,
        attempt = s.attempt + 1, error = null, decision = null, retry_at = null
    where s.run_id = record_step.run_id and s.name = record_step.name and s.input_hash = hash
      and tidebase_private.may_begin_again(s, head.lease_token, null, null, null)
    returning s.attempt into nth;
    if not found then
      perform tidebase_private.give_back(head, starts, checkpoints => 1);
      return tidebase_private.begun_already(head, name, hash, null);
    end if;
  end if;
  if head.has_budget then
    perform tidebase_private.require_funds(head);
  end if;
  if log_start then
    perform tidebase_private.emit_step(head, name, nth);
  else
    perform tidebase_private.emit(head, 'step.completed', jsonb_build_object('name', name, 'attempt', nth));
  end if;
  return row('recorded', nth, null)::step_start;
end
$$;
comment on function tidebase.record_step(text, bigint, text, jsonb, jsonb, interval, boolean) is
  'Stores the output of a step that was not begun: instead of begin_step and complete_step, for work that does nothing to the outside and may be done again. outcome: recorded; replay (it was completed before: output is the checkpoint that stands, and this one is dropped); review (it was begun before, and may have taken effect). duration: how long it took. log_start: the log has a step.started before the step.completed, as if it had been begun. Also under a lease that was given up, as complete_step. Commits synchronously: once it has returned, the step never runs again. The same call again says replay, with the same output, also after the deadline. Errors: TB001, TB002, TB003, TB004, TB005, TB006, TB007 (it failed for good, or was begun under this lease), TB010 (a budget is used up: nothing is stored).';

-- What completes while another call is under way goes together: one call, one lock, one flush for all of it. Where the
-- steps are new, which they nearly always are, they are written by one statement a table; else one by one, as they came.
create or replace function tidebase_private.are_steps(steps jsonb)
returns boolean
language plpgsql immutable
as $$
begin
  return (
    select case when jsonb_typeof(steps) = 'array' then jsonb_array_length(steps) between 1 and 1000
      and not exists (
        select from jsonb_array_elements(steps) step
        where jsonb_typeof(step) <> 'object' or jsonb_typeof(step -> 'name') is distinct from 'string'
          or jsonb_typeof(step -> 'duration') not in ('number', 'null')
          or jsonb_typeof(step -> 'log_start') not in ('boolean', 'null'))
      else false end);
end
$$;
comment on function tidebase_private.are_steps(jsonb) is 'Whether it is an array of 1 to 1000 steps, as record_steps takes them.';

create or replace function tidebase_private.are_new(run_id text, steps jsonb)
returns boolean
language plpgsql stable
as $$
begin
  return (
    select count(distinct step ->> 'name') = count(*)
      and bool_and(tidebase_private.is_name(step ->> 'name', 1024)
        and coalesce(tidebase_private.is_small(step -> 'input'), true)
        and coalesce(tidebase_private.is_small(step -> 'output'), true)
        and coalesce((step ->> 'duration')::numeric between 0 and 31536000, true)
        and not exists (select from tidebase.steps s where s.run_id = are_new.run_id and s.name = step ->> 'name'))
    from jsonb_array_elements(steps) step);
end
$$;
comment on function tidebase_private.are_new(text, jsonb) is
  'Whether nobody has begun any of these steps, and there is nothing about them that record_step would have to look at.';

-- The numbers are those that as many calls of record_step would have taken.
create or replace function tidebase_private.add_steps(head tidebase.run_heads, steps jsonb, first_seq bigint)
returns void
language plpgsql volatile
as $$
begin
  with given as (
    select e.step ->> 'name' as name, e.step -> 'input' as input, coalesce(e.step -> 'output', 'null') as output,
      coalesce((e.step ->> 'duration')::float8, 0) * interval '1 second' as duration,
      coalesce((e.step ->> 'log_start')::boolean, false) as log_start,
      first_seq - 1 + sum(case when (e.step ->> 'log_start')::boolean then 2 else 1 end) over (order by e.nth) as seq
    from jsonb_array_elements(steps) with ordinality e (step, nth)),
  made as (
    insert into tidebase.steps (run_id, name, lease_token, attempt, tries, status, input_hash, input, started_at, output,
      completed_at, completed_seq)
    select head.run_id, g.name, head.lease_token, 1, 1, 'completed', tidebase_private.hash_input(g.input), g.input,
      clock_timestamp() - g.duration, g.output, clock_timestamp(), g.seq
    from given g)
  insert into tidebase.events (run_id, seq, type, payload)
  select head.run_id, g.seq - 1, 'step.started', jsonb_build_object('name', g.name, 'attempt', 1, 'token', head.lease_token)
  from given g where g.log_start
  union all
  select head.run_id, g.seq, 'step.completed', jsonb_build_object('name', g.name, 'attempt', 1) from given g;
  if exists (select from tidebase.watches w where w.run_id = head.run_id and w.watched_until > clock_timestamp()) then
    perform tidebase_private.ring(head.run_id, first_seq);
  end if;
end
$$;
comment on function tidebase_private.add_steps(tidebase.run_heads, jsonb, bigint) is
  'Writes new steps, completed, and their events, numbered from first_seq on; the caller holds the head''s lock and took the numbers there.';

create or replace function tidebase_private.events_of(steps jsonb)
returns integer
language plpgsql immutable
as $$
begin
  return (
    select sum(case when (step ->> 'log_start')::boolean then 2 else 1 end)::integer from jsonb_array_elements(steps) step);
end
$$;
comment on function tidebase_private.events_of(jsonb) is 'How many events record_steps writes for these steps, if they are new.';

create or replace function tidebase.record_steps(run_id text, token bigint, steps jsonb)
returns setof tidebase.step_start
language plpgsql volatile security definer rows 10
set search_path = pg_catalog, tidebase, pg_temp
set enable_seqscan = off
as $$
declare
  head run_heads;
  step jsonb;
  many integer;
  events integer;
begin
  if not tidebase_private.are_steps(steps) then
    perform tidebase_private.raise_invalid('steps', 'must be an array of 1 to 1000 objects with a name, and if need be input, output, duration and log_start');
  end if;
  many := jsonb_array_length(steps);
  events := tidebase_private.events_of(steps);
  if not tidebase_private.is_durable() then
    perform tidebase_private.commit_durably();
  end if;
  head := tidebase_private.fence_done(run_id, token, events, checkpoints => many);
  if tidebase_private.are_new(run_id, steps) then
    if head.deadline_at is not null then
      perform tidebase_private.require_time_left(head);
    end if;
    if head.has_budget then
      perform tidebase_private.require_funds(head);
    end if;
    perform tidebase_private.add_steps(head, steps, head.last_seq - events + 1);
    return query select 'recorded', 1, null::jsonb from generate_series(1, many);
    return;
  end if;
  perform tidebase_private.give_back(head, events, checkpoints => many);
  for step in select e.step from jsonb_array_elements(steps) with ordinality e (step, nth) order by e.nth loop
    return next record_step(run_id, token, step ->> 'name', step -> 'input', step -> 'output',
      (step ->> 'duration')::float8 * interval '1 second', coalesce((step ->> 'log_start')::boolean, false));
  end loop;
end
$$;
comment on function tidebase.record_steps(text, bigint, jsonb) is
  'Records many steps of a run that were not begun, in one call and one flush: an array of 1 to 1000 objects whose members are the parameters of record_step (duration in seconds). Returns what that returns, in their order; the log has what as many calls of it would have written. All or none: one that is refused raises, and nothing is stored. The same call again says replay for each. Errors: TB001, TB002, TB003, TB004, TB005, TB006, TB007, TB010.';

-- Several runs in one transaction hold the locks of several heads. So this one waits for none of them: a run whose head is
-- locked is left out, as claim_runs does it, and whoever holds it waits for nobody that waits for him. So is a run about
-- which there is anything to be said: it raises nothing that the others would suffer from.
create or replace function tidebase.record_steps_of_runs(runs jsonb)
returns boolean[]
language plpgsql volatile security definer
set search_path = pg_catalog, tidebase, pg_temp
set enable_seqscan = off
as $$
declare
  head run_heads;
  item record;
  events integer;
  recorded boolean[];
begin
  if jsonb_typeof(runs) is distinct from 'array' or jsonb_array_length(runs) not between 1 and 1000
    or exists (
      select from jsonb_array_elements(runs) run
      where jsonb_typeof(run -> 'run_id') is distinct from 'string' or jsonb_typeof(run -> 'token') is distinct from 'number'
        or not tidebase_private.are_steps(run -> 'steps'))
  then
    perform tidebase_private.raise_invalid('runs', 'must be an array of 1 to 1000 objects with run_id, token and steps');
  end if;
  if not tidebase_private.is_durable() then
    perform tidebase_private.commit_durably();
  end if;
  recorded := array_fill(false, array[jsonb_array_length(runs)]);
  for item in
    select e.nth, e.run ->> 'run_id' as run_id, (e.run ->> 'token')::numeric as token, e.run -> 'steps' as steps
    from jsonb_array_elements(runs) with ordinality e (run, nth)
    order by e.run ->> 'run_id', e.nth
  loop
    select h.* into head from run_heads h
    where h.run_id = item.run_id and h.lease_token::numeric = item.token and h.lease_token > 0
      and h.status not in ('completed', 'cancelled') and h.deadline_at is null and not h.has_budget
    for no key update skip locked;
    if found and tidebase_private.are_new(item.run_id, item.steps) then
      events := tidebase_private.events_of(item.steps);
      head := tidebase_private.fence_done(item.run_id, head.lease_token, events, checkpoints => jsonb_array_length(item.steps));
      perform tidebase_private.add_steps(head, item.steps, head.last_seq - events + 1);
      recorded[item.nth] := true;
    end if;
  end loop;
  return recorded;
end
$$;
comment on function tidebase.record_steps_of_runs(jsonb) is
  'Records new steps of many runs in one transaction: an array of 1 to 1000 objects with run_id, token and steps (as record_steps takes them). Returns for each, in their order, whether its steps were recorded: all of them, or none; then call record_steps for that run, which says why. None are recorded of a run whose head somebody has locked, whose token is not the current one, that is over, has a deadline or a budget, or a step that was begun before. It waits for no lock. Commits synchronously. Errors: TB002.';

create or replace function tidebase.fail_step(run_id text, token bigint, name text, error jsonb default null, retryable boolean default true)
returns tidebase.step_failure
language plpgsql volatile security definer
set search_path = pg_catalog, tidebase, pg_temp
set enable_seqscan = off
as $$
declare
  head run_heads;
  step steps;
  delay interval;
begin
  perform tidebase_private.require_payload(error, 'error');
  perform tidebase_private.commit_durably();
  head := tidebase_private.fence_done(run_id, token, 1);
  select s.* into step from steps s
  where s.run_id = fail_step.run_id and s.name = fail_step.name and s.lease_token = fail_step.token
    and s.status in ('running', 'failed', 'review');
  if not found then
    perform tidebase_private.raise_not_running(run_id, token, name);
  elsif step.status <> 'running' then
    perform tidebase_private.give_back(head, 1);  -- the same call again
    return row(step.decision, case when step.decision = 'auto_retry' then greatest(step.retry_at - clock_timestamp(), '0') end,
      step.attempt)::step_failure;
  end if;

  step.decision := tidebase_private.decide_replay(step, may_retry => coalesce(retryable, true));
  if step.decision = 'auto_retry' then
    delay := tidebase_private.retry_delay(step.tries, step.retry_delay, step.retry_max_delay);
  end if;
  update steps s
  set status = 'failed', error = coalesce(fail_step.error, 'null'), decision = step.decision, retry_at = clock_timestamp() + delay
  where s.run_id = fail_step.run_id and s.name = fail_step.name;
  perform tidebase_private.emit(head, 'step.failed', jsonb_build_object('name', name, 'attempt', step.attempt,
      'error', error, 'decision', step.decision)
    || case when delay is null then '{}' else jsonb_build_object('retry_after', round(extract(epoch from delay), 3)) end);
  if step.decision = 'manual_review' then
    perform tidebase_private.open_review(run_id, name, step.attempt, 'error');
  end if;
  return row(step.decision, delay, step.attempt)::step_failure;
end
$$;
comment on function tidebase.fail_step(text, bigint, text, jsonb, boolean) is
  'Records that a running step failed, and decides what may happen: auto_retry (begin it again after retry_after: exponential, jittered, capped), safe_replay (retries are used up, but resuming the run may execute it again), manual_review (a person must decide before it is executed again: the step is in review), fail_hard (it must not be executed again). A step that writes to the outside without an idempotency key is never retried. error: any JSON, by convention {type, message}. retryable: false rules the retries out. The same call again returns the same decision. Errors: TB001, TB003, TB004, TB005, TB007.';

create or replace function tidebase.load_checkpoints(run_id text, unfinished boolean default false)
returns setof tidebase.checkpoint
language plpgsql stable security definer rows 100
set search_path = pg_catalog, tidebase, pg_temp
set enable_seqscan = off
as $$
begin
  return query
    select s.name, s.input_hash, s.output
    from steps s
    where s.run_id = load_checkpoints.run_id and (s.status = 'completed' or load_checkpoints.unfinished);
  if not found and not exists (select from run_heads h where h.run_id = load_checkpoints.run_id) then
    perform tidebase_private.raise_run_not_found(run_id);
  end if;
end
$$;
comment on function tidebase.load_checkpoints(text, boolean) is
  'Every completed step of the run, in no particular order: name, SHA-256 of the canonical input, output. One call replays a whole run. unfinished: also those that were begun and did not complete, with an output of NULL. Errors: TB001.';

create or replace view tidebase.step_timeline with (security_barrier = true) as
  select
    s.run_id,
    s.name,
    s.status,
    s.attempt,
    s.lease_token,
    s.started_at,
    s.completed_at,
    s.completed_at - s.started_at as duration,
    s.completed_seq,
    s.decision,
    s.retry_at,
    s.error,
    s.input,
    encode(s.input_hash, 'hex') as input_hash,
    s.output,
    s.side_effects,
    s.idempotency_key,
    coalesce(s.replay, 'auto') as replay,
    s.checkpoint_invariant,
    s.verified_by,
    s.credentials,
    coalesce(s.retries, 0) as retries,
    s.timeout,
    s.options,
    s.client_hash
  from tidebase.steps s;
comment on view tidebase.step_timeline is
  'One row a step: how often it was begun (attempt), under which lease last, from when to when, its checkpoint, its failure and what was decided, and its resume contract; options and client_hash: as begin_step_with was given them. Order by started_at.';

select tidebase_private.allow('function tidebase.begin_step', 'worker');
select tidebase_private.allow('function tidebase.begin_step_with', 'worker');
select tidebase_private.allow('function tidebase.complete_step', 'worker');
select tidebase_private.allow('function tidebase.record_step', 'worker');
select tidebase_private.allow('function tidebase.record_steps', 'worker');
select tidebase_private.allow('function tidebase.record_steps_of_runs', 'worker');
select tidebase_private.allow('function tidebase.fail_step', 'worker');
select tidebase_private.allow('function tidebase.load_checkpoints', 'worker');
select tidebase_private.allow('table tidebase.step_timeline', 'worker', 'approver', 'operator', 'reader');
