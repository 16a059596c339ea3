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

create or replace function tidebase_private.writes_outside(side_effects text[])
returns boolean
language sql immutable
as $$
  select coalesce(not side_effects <@ array['read'], false);
$$;
comment on function tidebase_private.writes_outside(text[]) is 'Whether a step declared an effect on the outside: any side effect but "read".';

-- The table of the resume contract, for a step that was begun and did not complete. Retries come first, but never for a
-- write to the outside that the outside could not recognise as a repetition.
create or replace function tidebase_private.decide_replay(step tidebase.steps, may_retry boolean)
returns text
language sql immutable
as $$
  select case
    when tidebase_private.writes_outside(step.side_effects) and step.idempotency_key is null
      then case step.replay when 'never' then 'fail_hard' else 'manual_review' end
    when may_retry and step.tries <= coalesce(step.retries, 0) then 'auto_retry'
    when step.replay = 'never' then 'fail_hard'
    when step.replay = 'manual' then 'manual_review'
    else 'safe_replay'
  end;
$$;
comment on function tidebase_private.decide_replay(tidebase.steps, boolean) is
  'What may become of a step that was begun and did not complete: auto_retry, safe_replay, manual_review or fail_hard. may_retry: whether the retries of the contract apply.';

create or replace function tidebase_private.allows_repetition(side_effects text[], idempotency_key text, replay text)
returns boolean
language sql immutable
as $$
  select coalesce(replay, 'auto') = 'auto' and (idempotency_key is not null or not tidebase_private.writes_outside(side_effects));
$$;
comment on function tidebase_private.allows_repetition(text[], text, text) is
  'Whether a contract lets a step be executed again, without asking anybody, that was begun and did not complete.';

-- Two contracts count: that under which the step may have taken effect, and that under which it would do so again. The
-- outside recognises a repetition by its key, so the key must be the same. A failure that is retried has been judged by the
-- former contract; retries come before what `replay` says.
create or replace function tidebase_private.may_repeat(step tidebase.steps, side_effects text[], idempotency_key text, replay text)
returns boolean
language sql immutable
as $$
  select step.idempotency_key is not distinct from may_repeat.idempotency_key and case
    when step.status = 'failed' and step.decision = 'auto_retry'
      then tidebase_private.allows_repetition(may_repeat.side_effects, may_repeat.idempotency_key, 'auto')
    else tidebase_private.allows_repetition(step.side_effects, step.idempotency_key, step.replay)
      and tidebase_private.allows_repetition(may_repeat.side_effects, may_repeat.idempotency_key, may_repeat.replay)
  end;
$$;
comment on function tidebase_private.may_repeat(tidebase.steps, text[], text, text) is
  'Whether a step that did not complete may be executed again under this contract, by what it declared before and what it declares now.';

create or replace function tidebase_private.may_begin_again(
  step tidebase.steps, lease_token bigint, side_effects text[], idempotency_key text, replay text)
returns boolean
language sql stable
as $$
  select case step.status
    when 'running' then step.lease_token <> may_begin_again.lease_token
      and tidebase_private.may_repeat(step, side_effects, idempotency_key, replay)
    when 'failed' then step.decision <> 'fail_hard' and (
      tidebase_private.may_repeat(step, side_effects, idempotency_key, replay) or exists (
        select from tidebase.reviews v
        where v.run_id = step.run_id and v.step = step.name and v.attempt = step.attempt and v.decision = 'retry'))
    else false
  end;
$$;
comment on function tidebase_private.may_begin_again(tidebase.steps, bigint, text[], text, text) is
  'Whether a step may be executed again, under this contract, without asking anybody: it failed, or an earlier lease left it unfinished, and both contracts allow a repetition; or a person has allowed this one.';

-- Exponential backoff with "equal jitter" (Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015):
-- half of the delay is kept, the other half is random, so that failures which fell together do not return together.
create or replace function tidebase_private.retry_delay(tries integer, first interval, cap interval)
returns interval
language sql volatile
as $$
  select make_interval(secs => (0.5 + random() / 2) * least(
    extract(epoch from coalesce(cap, '5 minutes'))::float8,
    extract(epoch from coalesce(first, '1 second'))::float8 * power(2, least(tries - 1, 60))));
$$;
comment on function tidebase_private.retry_delay(integer, interval, interval) is
  'How long to wait after this many tries: first (1 second unless told), doubled each time, capped (5 minutes), at least half of it.';

create or replace function tidebase_private.require_contract(
  side_effects text[], idempotency_key text, replay text, checkpoint_invariant text, verified_by text,
  credentials text[], retries integer, retry_delay interval, retry_max_delay interval, timeout interval)
returns void
language plpgsql volatile
as $$
begin
  perform tidebase_private.require_list(side_effects, 'side_effects');
  perform tidebase_private.require_list(credentials, 'credentials');
  perform tidebase_private.require_text(idempotency_key, 'idempotency_key');
  perform tidebase_private.require_text(checkpoint_invariant, 'checkpoint_invariant');
  perform tidebase_private.require_text(verified_by, 'verified_by');
  if '' in (idempotency_key, checkpoint_invariant, verified_by) then
    perform tidebase_private.raise_invalid('idempotency_key, checkpoint_invariant and verified_by', 'must not be empty');
  elsif replay not in ('auto', 'manual', 'never') then
    perform tidebase_private.raise_invalid('replay', 'must be auto, manual or never');
  elsif retries not between 0 and 1000 then
    perform tidebase_private.raise_invalid('retries', 'must be a number from 0 to 1000');
  end if;
  perform tidebase_private.require_interval(coalesce(retry_delay, '1 second'), 'retry_delay', '0', '1 day');
  perform tidebase_private.require_interval(coalesce(retry_max_delay, '5 minutes'), 'retry_max_delay', '0', '30 days');
  perform tidebase_private.require_interval(coalesce(timeout, '1 day'), 'timeout', '1 millisecond', '365 days');
end
$$;
comment on function tidebase_private.require_contract(text[], text, text, text, text, text[], integer, interval, interval, interval) is
  'Raises TB002 when a part of the resume contract makes no sense.';

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

-- Opens the review of a step that may have taken effect. Takes an event number of its own.
create or replace function tidebase_private.open_review(
  run_id text, name text, attempt integer, cause text, explanation text default null)
returns void
language plpgsql volatile
as $$
begin
  update tidebase.steps s set status = 'review', decision = 'manual_review'
  where s.run_id = open_review.run_id and s.name = open_review.name;
  insert into tidebase.reviews (run_id, step, attempt, cause, explanation)
  values (run_id, name, attempt, cause, explanation);
  perform tidebase_private.emit(tidebase_private.advance(run_id), 'step.review', jsonb_strip_nulls(
    jsonb_build_object('name', name, 'attempt', attempt, 'cause', cause, 'explanation', explanation)));
end
$$;
comment on function tidebase_private.open_review(text, text, integer, text, text) is
  'Puts a step into review; cause: crash (it was begun and neither completed nor failed), error, or contract (what it declares now, or its idempotency key, is not what it was begun with). The caller holds the head''s lock.';

-- The step of an earlier attempt that may have taken effect and was not begun again, so that nobody has asked about it:
-- under another name it would do it a second time.
create or replace function tidebase_private.find_unsettled(head tidebase.run_heads, name text default null)
returns tidebase.steps
language sql stable
as $$
  select s.* from tidebase.steps s
  where s.run_id = head.run_id and s.status = 'running' and s.lease_token <> head.lease_token
    and s.name is distinct from find_unsettled.name
    and not tidebase_private.allows_repetition(s.side_effects, s.idempotency_key, s.replay)
  order by s.started_at, s.name
  limit 1;
$$;
comment on function tidebase_private.find_unsettled(tidebase.run_heads, text) is
  'A step but this one which an earlier lease left unfinished and whose contract does not allow a repetition; a row of NULLs if there is none.';

create or replace function tidebase_private.review_unsettled(head tidebase.run_heads)
returns void
language plpgsql volatile
as $$
declare
  step tidebase.steps;
begin
  loop
    step := tidebase_private.find_unsettled(head);
    exit when step.name is null;
    perform tidebase_private.open_review(head.run_id, step.name, step.attempt, 'crash');
  end loop;
end
$$;
comment on function tidebase_private.review_unsettled(tidebase.run_heads) is
  'Asks a person about every step that an earlier lease left unfinished and that may have taken effect. The caller holds the head''s lock.';

-- Parks the run: nobody works on it before a person has decided about the step.
create or replace function tidebase_private.park(head tidebase.run_heads, name text)
returns void
language plpgsql volatile
as $$
begin
  if head.status = 'running' then
    perform tidebase_private.end_attempt(head, 'released');
    update tidebase.run_heads h set status = 'review', lease_expires_at = null where h.run_id = head.run_id;
    perform tidebase_private.emit(tidebase_private.advance(head.run_id), 'run.review', jsonb_build_object('name', name));
  end if;
end
$$;
comment on function tidebase_private.park(tidebase.run_heads, text) is
  'Ends the attempt and puts the run into review, unless its lease was given up already. The caller holds the head''s lock.';

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

-- Asks a person about a step. Where an earlier attempt left it, the run is parked for that. What this attempt has seen fail
-- does not keep it from the rest of its work; when that is done, fail_run puts the run into review.
create or replace function tidebase_private.ask_about(head tidebase.run_heads, step tidebase.steps, idempotency_key text default null)
returns void
language plpgsql volatile
as $$
declare
  repeatable boolean := step.status = 'failed' or tidebase_private.allows_repetition(step.side_effects, step.idempotency_key, step.replay);
begin
  if step.status <> 'review' then
    perform tidebase_private.open_review(head.run_id, step.name, step.attempt,
      case when repeatable then 'contract' else 'crash' end,
      case when not repeatable then null
        when step.idempotency_key is distinct from ask_about.idempotency_key then 'its idempotency key was another one'
        else 'it declares now that it must not be repeated' end);
  end if;
  if step.lease_token <> head.lease_token then
    perform tidebase_private.park(head, step.name);
  end if;
end
$$;
comment on function tidebase_private.ask_about(tidebase.run_heads, tidebase.steps, text) is
  'Puts a step into review, unless it is there, with the cause; idempotency_key: that with which it would be begun now. The caller holds the head''s lock.';

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

-- What a person decided about a step that may have taken effect.
create or replace function tidebase.resolve_review(
  run_id text, step text, decision text, output jsonb default null, actor text default null, reason text default null,
  request_id text default null)
returns bigint
language plpgsql volatile security definer
set search_path = pg_catalog, tidebase, pg_temp
set enable_seqscan = off
as $$
declare
  head run_heads;
  reviewed steps;
  hopeless boolean;
  earlier events;
  who text := coalesce(actor, tidebase_private.caller());
begin
  if decision is null or decision not in ('retry', 'accept', 'fail') then
    perform tidebase_private.raise_invalid('decision', 'must be retry, accept or fail');
  end if;
  if decision = 'accept' and output is null then  -- it would be the step's result for good
    perform tidebase_private.raise_invalid('output', 'must be given with accept: what the step did, or the JSON null if that is nothing');
  end if;
  perform tidebase_private.require_payload(output, 'output');
  perform tidebase_private.require_text(actor, 'actor');
  perform tidebase_private.require_text(reason, 'reason');
  perform tidebase_private.commit_durably();
  head := tidebase_private.lock_head(run_id);
  if request_id is not null then
    perform tidebase_private.require_name(request_id, 'request_id', 255);
    earlier := tidebase_private.find_request(run_id, request_id, array['step.reviewed']);
    if earlier.seq is not null then
      return earlier.seq;  -- the same call again, whatever became of the run since
    end if;
  end if;
  if head.status in ('cancelled', 'completed') then
    perform tidebase_private.raise_fenced(run_id, head.lease_token);
  end if;
  select s.* into reviewed from steps s
  where s.run_id = resolve_review.run_id and s.name = resolve_review.step and s.status = 'review';
  if not found then
    perform tidebase_private.raise('TB008', format('step %L of run %L is not in review', step, run_id),
      jsonb_build_object('run_id', run_id, 'step', step), 'It was decided already, or never asked; see read_events.');
  end if;

  head := tidebase_private.advance(run_id);
  perform tidebase_private.emit(head, 'step.reviewed', jsonb_build_object('name', step, 'attempt', reviewed.attempt,
    'decision', decision, 'actor', who, 'reason', reason), request_id);
  update reviews v
  set resolved_at = clock_timestamp(), decision = resolve_review.decision, actor = who, reason = resolve_review.reason
  where v.run_id = resolve_review.run_id and v.step = resolve_review.step and v.attempt = reviewed.attempt;
  if decision = 'accept' then
    perform tidebase_private.accept_step(reviewed, output);
  else
    update steps s
    set status = 'failed', decision = case resolve_review.decision when 'retry' then 'safe_replay' else 'fail_hard' end
    where s.run_id = resolve_review.run_id and s.name = resolve_review.step;
  end if;
  if head.status = 'review' and not exists (
    select from steps s where s.run_id = resolve_review.run_id and s.status = 'review')
  then
    -- A step that failed for good fails the run, whichever of several reviews was decided last.
    hopeless := exists (
      select from steps s where s.run_id = resolve_review.run_id and s.status = 'failed' and s.decision = 'fail_hard');
    update run_heads h set status = case when hopeless then 'failed' else 'pending' end
    where h.run_id = resolve_review.run_id;
    update runs r set finished_at = clock_timestamp(), failure_class = 'error' where r.run_id = resolve_review.run_id and hopeless;
    perform tidebase_private.wake_parents(run_id);
  end if;
  return head.last_seq;
end
$$;
comment on function tidebase.resolve_review(text, text, text, jsonb, text, text, text) is
  'Decides about a step in review, once: retry (it is executed again when the run is resumed), accept (it did take effect: output is what really came of it, and becomes its checkpoint; it must be given, and may be the JSON null), fail (it is never executed again in this run, and the run fails). The run may be acquired again, unless it failed. actor: who decides, by default the database role; kept with the reason in the log. request_id: an id made up for this call; the call repeated with it returns the same seq, and decides no later review of the step. Returns the seq of the event. Errors: TB001, TB002, TB004, TB005, TB008.';

create or replace function tidebase_private.accept_step(step tidebase.steps, output jsonb)
returns void
language plpgsql volatile
as $$
declare
  head tidebase.run_heads := tidebase_private.advance(step.run_id);
begin
  update tidebase.steps s
  set status = 'completed', output = accept_step.output, completed_at = clock_timestamp(),
      completed_seq = head.last_seq
  where s.run_id = step.run_id and s.name = step.name;
  update tidebase.run_heads h set steps_completed = h.steps_completed + 1 where h.run_id = step.run_id;
  perform tidebase_private.emit(head, 'step.completed',
    jsonb_build_object('name', step.name, 'attempt', step.attempt, 'accepted', true));
end
$$;
comment on function tidebase_private.accept_step(tidebase.steps, jsonb) is
  'Makes a person''s word the checkpoint of a step. The caller holds the head''s lock.';

create or replace view tidebase.review_inbox with (security_barrier = true) as
  select
    v.run_id,
    r.workflow,
    v.step,
    v.attempt,
    v.cause,
    v.opened_at,
    s.side_effects,
    s.verified_by,
    s.checkpoint_invariant,
    s.input,
    s.error,
    v.explanation
  from tidebase.reviews v
  join tidebase.runs r on r.run_id = v.run_id
  join tidebase.steps s on s.run_id = v.run_id and s.name = v.step
  join tidebase.run_heads h on h.run_id = v.run_id and h.status not in ('completed', 'cancelled')
  where v.resolved_at is null;
comment on view tidebase.review_inbox is
  'The steps that wait for a person''s decision (resolve_review), with what their contract says about how to find out what happened. Order by opened_at.';

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
    s.timeout
  from tidebase.steps s;
comment on view tidebase.step_timeline is
  'One row a step: how often it was begun (attempt), under which lease last, from when to when, its checkpoint, its failure and what was decided, and its resume contract. Order by started_at.';

select tidebase_private.allow('function tidebase.begin_step', 'worker');
select tidebase_private.allow('function tidebase.complete_step', 'worker');
select tidebase_private.allow('function tidebase.record_step', 'worker');
select tidebase_private.allow('function tidebase.fail_step', 'worker');
select tidebase_private.allow('function tidebase.load_checkpoints', 'worker');
select tidebase_private.allow('function tidebase.resolve_review', 'approver', 'operator');
select tidebase_private.allow('table tidebase.review_inbox', 'worker', 'approver', 'operator', 'reader');
select tidebase_private.allow('table tidebase.step_timeline', 'worker', 'approver', 'operator', 'reader');
