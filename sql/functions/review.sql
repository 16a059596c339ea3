-- Reviews: a step that may have taken effect, and what a person decides about it.

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
  freed run_heads;
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
    update run_heads h set status = case when hopeless then 'failed' else tidebase_private.free_status(h) end
    where h.run_id = resolve_review.run_id
    returning h.* into freed;
    if not hopeless then
      perform tidebase_private.requeue(freed);
    end if;
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

select tidebase_private.allow('function tidebase.resolve_review', 'approver', 'operator');
select tidebase_private.allow('table tidebase.review_inbox', 'worker', 'approver', 'operator', 'reader');
