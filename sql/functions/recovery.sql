-- Recovery: every attempt to get a run going again is kept; and the outbox of the webhooks that tell somebody to.

create or replace function tidebase_private.check_recovery_status(status text)
returns void
language plpgsql volatile
as $$
begin
  if status is null or status not in ('succeeded', 'failed') then
    perform tidebase_private.raise_invalid('status', 'must be succeeded or failed');
  end if;
end
$$;
comment on function tidebase_private.check_recovery_status(text) is 'Raises TB002 unless a recovery can end like this.';

create or replace function tidebase_private.find_recovery(run_id text, request_id text)
returns integer
language plpgsql stable
as $$
begin
  if request_id is null then
    return null;
  end if;
  perform tidebase_private.require_name(request_id, 'request_id', 255);
  return ((tidebase_private.find_request(run_id, request_id, array['recovery.started'])).payload ->> 'recovery')::integer;
end
$$;
comment on function tidebase_private.find_recovery(text, text) is
  'The number of the recovery that an earlier call with this request_id recorded, or NULL. Errors: TB002.';

-- Records an attempt to get a run going. Where the run has a webhook, what to send goes into the outbox in the same transaction:
-- it is sent if, and only if, this commits.
create or replace function tidebase_private.begin_recovery(
  head tidebase.run_heads, reason text, actor text, request_id text default null, delay interval default '0')
returns integer
language plpgsql volatile
as $$
declare
  run tidebase.runs;
  number integer;
begin
  select r.* into run from tidebase.runs r where r.run_id = head.run_id;
  select coalesce(max(v.recovery), 0) + 1 into number from tidebase.recoveries v where v.run_id = head.run_id;
  insert into tidebase.recoveries (run_id, recovery, reason, actor, found_status)
  values (head.run_id, number, begin_recovery.reason, begin_recovery.actor, head.status);
  if run.recovery_webhook is not null then
    insert into tidebase.deliveries (run_id, delivery, recovery, url, body, next_at)
    select head.run_id, coalesce(max(d.delivery), 0) + 1, number, run.recovery_webhook,
      jsonb_build_object('type', 'run.resume', 'runId', head.run_id, 'workflowName', run.workflow, 'attempt', head.attempt,
        'status', head.status, 'reason', begin_recovery.reason, 'recovery', number),
      clock_timestamp() + delay
    from tidebase.deliveries d where d.run_id = head.run_id;
  end if;
  perform tidebase_private.emit(tidebase_private.advance(head.run_id), 'recovery.started', jsonb_build_object('recovery', number,
    'reason', reason, 'actor', actor, 'found_status', head.status), request_id);
  return number;
end
$$;
comment on function tidebase_private.begin_recovery(tidebase.run_heads, text, text, text, interval) is
  'Records an attempt to recover a run and returns its number; its webhook is told after the delay. The caller holds the head''s lock.';

-- A run stands still: it has failed, or its lease has run out. Who wants to know is told, once: not while it is to be told
-- already; and later and later, up to an hour, while that happens again and again.
create or replace function tidebase_private.call_for_recovery(head tidebase.run_heads, reason text)
returns void
language plpgsql volatile
as $$
declare
  calls integer;
begin
  if not exists (select from tidebase.runs r where r.run_id = head.run_id and r.recovery_webhook is not null) or exists (
    select from tidebase.deliveries d where d.run_id = head.run_id and d.status = 'pending' and d.recovery is not null)
  then
    return;
  end if;
  select count(*)::integer into calls from tidebase.recoveries v
  where v.run_id = head.run_id and v.created_at > clock_timestamp() - interval '1 hour';
  perform tidebase_private.begin_recovery(head, reason, 'tidebase',
    delay => case when calls = 0 then '0' else tidebase_private.retry_delay(calls, '5 seconds', '1 hour') end);
end
$$;
comment on function tidebase_private.call_for_recovery(tidebase.run_heads, text) is
  'Tells the webhook of a run, if it has one, that nobody goes on with it; reason: run_failed or lease_expired. The caller holds the head''s lock.';

create or replace function tidebase.record_recovery(
  run_id text, reason text default 'manual', actor text default null, request_id text default null)
returns integer
language plpgsql volatile security definer
set search_path = pg_catalog, tidebase, pg_temp
set enable_seqscan = off
as $$
declare
  head run_heads;
  number integer;
begin
  reason := coalesce(reason, 'manual');
  perform tidebase_private.require_name(reason, 'reason', 4096);
  perform tidebase_private.require_text(actor, 'actor');
  perform tidebase_private.commit_durably();
  head := tidebase_private.lock_head(run_id);
  number := tidebase_private.find_recovery(run_id, request_id);
  if number is not null then
    return number;
  end if;
  if head.status in ('completed', 'cancelled') then
    perform tidebase_private.raise_fenced(run_id, head.lease_token);
  end if;
  return tidebase_private.begin_recovery(head, reason, coalesce(actor, tidebase_private.caller()), request_id);
end
$$;
comment on function tidebase.record_recovery(text, text, text, text) is
  'Records an attempt to get a run going again and returns its number; where the run has a recovery_webhook, it is told: {"type": "run.resume", "runId", "workflowName", "attempt", "status", "reason", "recovery"}. It is told so without this call, too, when the run fails, and when reconcile finds that its lease has run out: once, and if that happens again within an hour, after 5 seconds, 10 seconds and so on. actor: the database role unless told. request_id: an id made up for this call; the call repeated with it returns the same number. Errors: TB001, TB002, TB004, TB005.';

create or replace function tidebase.finish_recovery(
  run_id text, recovery integer, status text, http_status integer default null, response text default null, error text default null)
returns void
language plpgsql volatile security definer
set search_path = pg_catalog, tidebase, pg_temp
set enable_seqscan = off
as $$
declare
  head run_heads;
begin
  perform tidebase_private.check_recovery_status(status);
  perform tidebase_private.commit_durably();
  head := tidebase_private.lock_head(run_id);
  update recoveries v
  set status = finish_recovery.status, http_status = finish_recovery.http_status, response = left(finish_recovery.response, 10000),
      error = left(finish_recovery.error, 10000), finished_at = clock_timestamp()
  where v.run_id = finish_recovery.run_id and v.recovery = finish_recovery.recovery and v.status = 'pending';
  if found then
    if head.status not in ('completed', 'cancelled') then  -- nothing follows the last event of a run
      perform tidebase_private.emit(tidebase_private.advance(run_id),
        case status when 'succeeded' then 'recovery.delivered' else 'recovery.failed' end,
        jsonb_strip_nulls(jsonb_build_object('recovery', recovery, 'http_status', http_status, 'error', left(error, 10000))));
    end if;
  elsif not exists (
    select from recoveries v where v.run_id = finish_recovery.run_id and v.recovery = finish_recovery.recovery)
  then
    perform tidebase_private.raise('TB012', format('run %L has no recovery %s', run_id, coalesce(recovery::text, 'NULL')),
      jsonb_build_object('run_id', run_id, 'recovery', recovery), 'Recoveries are made by record_recovery.');
  end if;
end
$$;
comment on function tidebase.finish_recovery(text, integer, text, integer, text, text) is
  'Records how an attempt to recover ended: succeeded or failed, with what the webhook answered. The first word stands. Errors: TB001, TB002, TB012.';

-- Gets a run going again as far as the database can: a failure is cleared away, and the attempts that count towards
-- max_attempts begin anew, so that any worker may acquire the run at once; the webhook, if there is one, is told.
create or replace function tidebase.recover_run(
  run_id text, reason text default 'manual', actor text default null, request_id text default null)
returns integer
language plpgsql volatile security definer
set search_path = pg_catalog, tidebase, pg_temp
set enable_seqscan = off
as $$
declare
  head run_heads;
  number integer;
  keyed dedupe_keys := tidebase_private.take_key_back(run_id);
begin
  head := tidebase_private.lock_head(run_id);
  number := tidebase_private.find_recovery(run_id, request_id);
  if number is not null then
    return number;
  end if;
  if head.status = 'failed' and keyed.run_id is not null then
    perform tidebase_private.answer_duplicate(keyed, 'reject', null, null, null);
  end if;
  if tidebase_private.is_live(head) then
    perform tidebase_private.raise('TB002', format('run %L needs no recovery: %s holds it', run_id, head.holder),
      jsonb_build_object('run_id', run_id, 'holder', head.holder, 'expires_at', head.lease_expires_at),
      'Wait for the lease to run out, or cancel the run.');
  end if;
  number := record_recovery(run_id, reason, actor, request_id);
  update runs r set attempts_forgiven = head.attempt, failure_class = null where r.run_id = recover_run.run_id;
  if head.status = 'running' then
    perform tidebase_private.mark_lapsed(head);
  elsif head.status in ('failed', 'pending', 'queued') then
    update run_heads h set status = tidebase_private.free_status(h), available_at = null where h.run_id = recover_run.run_id
    returning h.* into head;
    perform tidebase_private.requeue(head);
  end if;
  perform tidebase_private.wake_parents(run_id);
  if not exists (select from runs r where r.run_id = recover_run.run_id and r.recovery_webhook is not null) then
    perform finish_recovery(run_id, number, 'succeeded');
  end if;
  return number;
end
$$;
comment on function tidebase.recover_run(text, text, text, text) is
  'Makes a run that was left by its worker or has failed acquirable at once, records the attempt, and tells the recovery webhook where there is one. Returns the number of the recovery. A run in review or waiting stays so. Whoever still holds a lease that has run out may go on until it is taken over. The attempts made so far do not count towards max_attempts any more. request_id: an id made up for this call; the call repeated with it returns the same number. Errors: TB001, TB002 (a worker holds it), TB004, TB005, TB013 (another run of its queue has its dedupe_key by now).';

create or replace function tidebase_private.receiver_of(url text)
returns text
language sql immutable
as $$
  select substring(url from '^[^/]*//[^/?#]*');
$$;
comment on function tidebase_private.receiver_of(text) is 'Whom a URL leads to: all of it before its path.';

-- Hands out what is due of the outbox. A dispatcher that dies leaves its rows due again after ttl.
create or replace function tidebase.claim_deliveries(
  max integer default 10, ttl interval default '1 minute', failing boolean default null, besides text[] default null)
returns setof tidebase.deliveries
language plpgsql volatile security definer rows 10
set search_path = pg_catalog, tidebase, pg_temp
as $$
declare
  as_of timestamptz := clock_timestamp();  -- a volatile function in the condition would rule out the index
begin
  max := coalesce(max, 10);
  ttl := coalesce(ttl, '1 minute');
  perform tidebase_private.require_claim(max, ttl);
  perform tidebase_private.require_list(besides, 'besides');
  return query
    update deliveries d
    set attempts = d.attempts + 1, next_at = clock_timestamp() + ttl
    from (
      select p.run_id, p.delivery from deliveries p
      where p.status = 'pending' and p.next_at <= as_of
        and (failing is null or (p.attempts > 0) = failing)
        and (besides is null or tidebase_private.receiver_of(p.url) <> all (besides))
      order by p.next_at
      limit claim_deliveries.max
      for no key update skip locked) as due
    where d.run_id = due.run_id and d.delivery = due.delivery
    returning d.*;
end
$$;
comment on function tidebase.claim_deliveries(integer, interval, boolean, text[]) is
  'Takes deliveries that are due, at most max (1 to 1000), for ttl: send each and report it with finish_delivery. attempts is the number of this attempt; a report must carry it. failing: only those that were tried before (true), or that were not (false): give each kind a share of what you can do at once. besides: none to these receivers, each all of a URL before its path. Errors: TB002.';

create or replace function tidebase.finish_delivery(
  run_id text, delivery integer, attempt integer, delivered boolean, http_status integer default null, response text default null,
  error text default null, max_attempts integer default 8)
returns text
language plpgsql volatile security definer
set search_path = pg_catalog, tidebase, pg_temp
set enable_seqscan = off
as $$
declare
  sent deliveries;
  next_status text;
begin
  max_attempts := coalesce(max_attempts, 8);
  perform tidebase_private.commit_durably();
  perform tidebase_private.lock_head(run_id);
  select d.* into sent from deliveries d
  where d.run_id = finish_delivery.run_id and d.delivery = finish_delivery.delivery
  for no key update;  -- who claims it does so without the head's lock
  if not found then
    perform tidebase_private.raise('TB012', format('run %L has no delivery %s', run_id, coalesce(delivery::text, 'NULL')),
      jsonb_build_object('run_id', run_id, 'delivery', delivery), 'Deliveries are handed out by claim_deliveries.');
  elsif sent.status <> 'pending' or sent.attempts is distinct from attempt then
    return sent.status;  -- reported before, or taken over by another dispatcher
  end if;
  next_status := case when delivered then 'delivered' when attempt >= max_attempts then 'failed' else 'pending' end;
  update deliveries d
  set status = next_status, http_status = finish_delivery.http_status, response = left(finish_delivery.response, 10000),
      error = left(finish_delivery.error, 10000), finished_at = case when next_status <> 'pending' then clock_timestamp() end,
      next_at = case when next_status = 'pending'
        then clock_timestamp() + tidebase_private.retry_delay(attempt, '5 seconds', '1 hour') end
  where d.run_id = finish_delivery.run_id and d.delivery = finish_delivery.delivery;
  if next_status <> 'pending' and sent.recovery is not null then
    perform finish_recovery(run_id, sent.recovery, case when delivered then 'succeeded' else 'failed' end, http_status, response, error);
  end if;
  return next_status;
end
$$;
comment on function tidebase.finish_delivery(text, integer, integer, boolean, integer, text, text, integer) is
  'Reports how an attempt at a delivery ended; returns delivered, pending (it is tried again, with exponential backoff up to an hour) or failed (after max_attempts). A report for an attempt that another dispatcher has taken over changes nothing. Errors: TB001, TB012.';

create or replace view tidebase.recovery_history with (security_barrier = true) as
  select
    v.run_id,
    v.recovery,
    v.reason,
    v.actor,
    v.found_status,
    v.status,
    d.url,
    coalesce(d.attempts, 0) as delivery_attempts,
    coalesce(v.http_status, d.http_status) as http_status,
    coalesce(v.response, d.response) as response,
    coalesce(v.error, d.error) as error,
    v.created_at,
    v.finished_at
  from tidebase.recoveries v
  left join tidebase.deliveries d on d.run_id = v.run_id and d.recovery = v.recovery;
comment on view tidebase.recovery_history is 'Every attempt to recover a run: why, by whom, what its webhook answered, how it ended.';

select tidebase_private.allow('function tidebase.record_recovery', 'operator');
select tidebase_private.allow('function tidebase.finish_recovery', 'operator');
select tidebase_private.allow('function tidebase.recover_run', 'operator');
select tidebase_private.allow('function tidebase.claim_deliveries', 'operator');
select tidebase_private.allow('function tidebase.finish_delivery', 'operator');
select tidebase_private.allow('table tidebase.recovery_history', 'worker', 'approver', 'operator', 'reader');
