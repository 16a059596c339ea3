-- Contracts: what a step says about its effects, and what follows from that when it fails or is left behind.

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

-- The contract in the words of the published SDKs: a JSON object in camelCase, in which two members of older ones still count.
-- A side effect and a wish for a review are never lost on the way: what is not understood is refused.
create or replace function tidebase_private.require_options(options jsonb)
returns void
language plpgsql volatile
as $$
declare
  wrong text;
begin
  if jsonb_typeof(options) <> 'object' then
    perform tidebase_private.raise_invalid('options', 'must be a JSON object');
  end if;
  perform tidebase_private.require_note(options, 'options');
  select o.key into wrong
  from jsonb_each(options) o
  where o.value <> 'null' and case o.key
    when 'sideEffects' then not tidebase_private.has_only(o.value, array['string'])
    when 'credentials' then not tidebase_private.has_only(o.value, array['string', 'object'])
    when 'idempotencyKey' then jsonb_typeof(o.value) <> 'string'
    when 'retries' then not jsonb_path_exists(o.value, '$ ? (@.type() == "number" && @ >= 0 && @ <= 1000 && @ == @.floor())')
    when 'timeoutMs' then not jsonb_path_exists(o.value, '$ ? (@.type() == "number" && @ >= 1 && @ <= 31536000000)')
    when 'replay' then o.value not in ('"auto"', '"manual"', '"never"')
    when 'sideEffect' then o.value not in ('"none"', '"read"', '"write"', '"external"')
    when 'onAmbiguousFailure' then o.value not in ('"retry"', '"review"', '"fail"')
    else false end
  order by o.key
  limit 1;
  if wrong is not null then
    perform tidebase_private.raise_invalid('options', format('must have another %s', wrong));
  end if;
end
$$;
comment on function tidebase_private.require_options(jsonb) is
  'Raises TB002 unless it is NULL or a contract in the words of the SDKs: sideEffects, idempotencyKey, replay, retries, timeoutMs, credentials, and of older ones sideEffect and onAmbiguousFailure; null members say nothing, others are not looked at.';

create or replace function tidebase_private.has_only(list jsonb, types text[])
returns boolean
language sql immutable
as $$
  select case when jsonb_typeof(list) = 'array'
    then not exists (select from jsonb_array_elements(list) e (item) where jsonb_typeof(e.item) <> all (types))
    else false end;
$$;
comment on function tidebase_private.has_only(jsonb, text[]) is 'Whether it is an array with elements of these types only.';

create or replace function tidebase_private.side_effects_of(options jsonb)
returns text[]
language sql immutable
as $$
  select coalesce(
    (select array_agg(e.effect order by e.place)
      from jsonb_array_elements_text(case jsonb_typeof(options -> 'sideEffects') when 'array' then options -> 'sideEffects' else '[]' end)
        with ordinality e (effect, place)
      where e.effect <> ''),
    array[nullif(options ->> 'sideEffect', 'none')])
  where options ->> 'sideEffects' is not null or nullif(options ->> 'sideEffect', 'none') is not null;
$$;
comment on function tidebase_private.side_effects_of(jsonb) is
  'What a contract in the words of the SDKs says about side effects: sideEffects, or sideEffect where there are none; NULL if nothing.';

create or replace function tidebase_private.replay_of(options jsonb)
returns text
language sql immutable
as $$
  select coalesce(options ->> 'replay', case options ->> 'onAmbiguousFailure'
    when 'retry' then 'auto' when 'review' then 'manual' when 'fail' then 'never' end);
$$;
comment on function tidebase_private.replay_of(jsonb) is 'What a contract in the words of the SDKs says about a replay: replay, or onAmbiguousFailure.';

create or replace function tidebase_private.credentials_of(options jsonb)
returns text[]
language sql immutable
as $$
  select array_agg(distinct c.name)
  from jsonb_array_elements(case jsonb_typeof(options -> 'credentials') when 'array' then options -> 'credentials' else '[]' end) e (item),
    lateral (select case jsonb_typeof(e.item) when 'object' then e.item ->> 'name' else e.item #>> array[]::text[] end) c (name)
  where c.name <> '';
$$;
comment on function tidebase_private.credentials_of(jsonb) is 'The names of the credentials, each a text or an object {name, scopes, reason}.';
