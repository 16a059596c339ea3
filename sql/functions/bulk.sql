-- Many runs at once: cancelled, tried again, moved; each with an event of its own, in batches, so that nobody waits for long.

-- The next runs that a filter finds, newest first; NULL means any. By an index where there is one for the filter.
create or replace function tidebase_private.find_runs(
  queue text, workflow text, status text, failure_class text, older_than interval, metadata jsonb, statuses text[], max integer)
returns text[]
language plpgsql volatile
set plan_cache_mode = force_custom_plan
as $$
declare
  before timestamptz := clock_timestamp() - older_than;
  wanted text[] := case when status is not null then array[status] else statuses end;
begin
  return array(
    select r.run_id
    from tidebase.runs r
    join tidebase.run_heads h on h.run_id = r.run_id
    where (find_runs.queue is null or r.queue = find_runs.queue)
      and (find_runs.workflow is null or r.workflow = find_runs.workflow)
      and (find_runs.failure_class is null or r.failure_class = find_runs.failure_class)
      and (before is null or r.created_at < before)
      and (find_runs.metadata is null or r.metadata @> find_runs.metadata)
      and lower(h.status) = any (wanted) and h.status = any (statuses)
    limit find_runs.max);
end
$$;
comment on function tidebase_private.find_runs(text, text, text, text, interval, jsonb, text[], integer) is
  'The ids of up to max runs that a filter finds and whose status is one of statuses.';

create or replace function tidebase_private.require_filter(
  queue text, workflow text, status text, failure_class text, older_than interval, metadata jsonb, statuses text[], max integer)
returns void
language plpgsql volatile
as $$
begin
  if num_nonnulls(queue, workflow, status, failure_class, older_than, nullif(metadata, '{}')) = 0 then
    perform tidebase_private.raise_invalid('queue', 'or another filter must be given: nothing is done to all runs by mistake');
  elsif status <> all (statuses) then
    perform tidebase_private.raise_invalid('status', format('must be one of: %s', array_to_string(statuses, ', ')));
  elsif failure_class not in ('error', 'max_attempts', 'crashed', 'deadline', 'not_begun') then
    perform tidebase_private.raise_invalid('failure_class', 'must be error, max_attempts, crashed, not_begun or deadline');
  elsif max not between 1 and 10000 then
    perform tidebase_private.raise_invalid('max', 'must be a number from 1 to 10000');
  end if;
  if jsonb_typeof(metadata) <> 'object' then
    perform tidebase_private.raise_invalid('metadata', 'must be a JSON object');
  end if;
  perform tidebase_private.require_note(metadata, 'metadata');
  perform tidebase_private.require_interval(coalesce(older_than, '0'), 'older_than', '0', '1000 years');
end
$$;
comment on function tidebase_private.require_filter(text, text, text, text, interval, jsonb, text[], integer) is
  'Raises TB002 unless a filter is one.';

-- Locks are taken in the order of the ids; what somebody else has just now is passed over, and found by the next call.
create or replace function tidebase_private.lock_runs(run_ids text[], statuses text[])
returns setof tidebase.run_heads
language plpgsql volatile
set enable_seqscan = off
as $$
begin
  return query
    select h.* from tidebase.run_heads h
    where h.run_id = any (run_ids) and h.status = any (statuses)
    order by h.run_id
    for no key update skip locked;
end
$$;
comment on function tidebase_private.lock_runs(text[], text[]) is 'The heads of those runs that are in one of these statuses, locked.';

create or replace function tidebase.cancel_runs(
  queue text default null, workflow text default null, status text default null, failure_class text default null,
  older_than interval default null, metadata jsonb default null, reason text default null, actor text default null,
  dry_run boolean default false, max integer default 1000)
returns tidebase.bulk
language plpgsql volatile security definer
set search_path = pg_catalog, tidebase, pg_temp
as $$
declare
  statuses constant text[] := array['pending', 'queued', 'running', 'waiting', 'review', 'failed'];
  who text := coalesce(actor, tidebase_private.caller());
  found_runs text[];
  head run_heads;
  done integer := 0;
begin
  max := coalesce(max, 1000);
  perform tidebase_private.require_filter(queue, workflow, status, failure_class, older_than, metadata, statuses, max);
  perform tidebase_private.require_text(reason, 'reason');
  perform tidebase_private.require_text(actor, 'actor');
  found_runs := tidebase_private.find_runs(queue, workflow, status, failure_class, older_than, metadata, statuses, max);
  if not coalesce(dry_run, false) then
    perform tidebase_private.commit_durably();
    for head in select * from tidebase_private.lock_runs(found_runs, statuses) loop
      done := done + tidebase_private.cancel_one(head, reason, who)::integer;
    end loop;
  end if;
  return row(cardinality(found_runs), done)::bulk;
end
$$;
comment on function tidebase.cancel_runs(text, text, text, text, interval, jsonb, text, text, boolean, integer) is
  'Cancels up to max (1 to 10000) runs that are not over: of a queue, a workflow, in a status, failed in a way, made longer than older_than ago, with this in their metadata; at least one of these. Call it again while it finds max. Each as cancel_run does, without its descendants. dry_run: only counts. What somebody else has locked just now is passed over. Errors: TB002.';

create or replace function tidebase.retry_runs(
  queue text default null, workflow text default null, failure_class text default null, older_than interval default null,
  metadata jsonb default null, reason text default null, actor text default null, dry_run boolean default false,
  max integer default 1000)
returns tidebase.bulk
language plpgsql volatile security definer
set search_path = pg_catalog, tidebase, pg_temp
as $$
declare
  statuses constant text[] := array['failed'];
  who text := coalesce(actor, tidebase_private.caller());
  found_runs text[];
  matched integer;
  head run_heads;
  keyed record;
  done integer := 0;
begin
  max := coalesce(max, 1000);
  perform tidebase_private.require_filter(queue, workflow, 'failed', failure_class, older_than, metadata, statuses, max);
  perform tidebase_private.require_text(reason, 'reason');
  perform tidebase_private.require_text(actor, 'actor');
  if num_nonnulls(queue, workflow, failure_class, older_than, nullif(metadata, '{}')) = 0 then
    perform tidebase_private.raise_invalid('queue', 'or another filter must be given: nothing is done to all runs by mistake');
  end if;
  found_runs := tidebase_private.find_runs(queue, workflow, null, failure_class, older_than, metadata, statuses, max);
  matched := cardinality(found_runs);
  if not coalesce(dry_run, false) then
    perform tidebase_private.commit_durably();
    -- A key that another run has meanwhile is not to be had again; of several with one key it is the youngest that goes on. The
    -- keys' locks come before the heads'.
    for keyed in
      select r.run_id, r.queue, r.dedupe_key,
        row_number() over (partition by r.queue, r.dedupe_key order by r.created_at desc, r.run_id desc) as place
      from runs r
      where r.run_id = any (found_runs) and r.dedupe_key is not null
      order by r.queue, r.dedupe_key
    loop
      if keyed.place > 1 or (tidebase_private.take_dedupe_key(keyed.queue, keyed.dedupe_key, keyed.run_id, null)).run_id is not null then
        found_runs := array_remove(found_runs, keyed.run_id);
      end if;
    end loop;
    for head in select * from tidebase_private.lock_runs(found_runs, statuses) loop
      update runs r set attempts_forgiven = head.attempt, failure_class = null, finished_at = null where r.run_id = head.run_id;
      update run_heads h set status = tidebase_private.free_status(h), available_at = null where h.run_id = head.run_id
      returning h.* into head;
      perform tidebase_private.emit(tidebase_private.advance(head.run_id), 'run.retried', jsonb_build_object('actor', who, 'reason', reason));
      perform tidebase_private.requeue(head);
      perform tidebase_private.wake_parents(head.run_id);
      done := done + 1;
    end loop;
  end if;
  return row(matched, done)::bulk;
end
$$;
comment on function tidebase.retry_runs(text, text, text, interval, jsonb, text, text, boolean, integer) is
  'Lets up to max (1 to 10000) failed runs be taken up again, with all their attempts anew: those that a filter finds, as cancel_runs has it; one of a queue returns to it. What is completed of them is not done again. A run whose dedupe_key another one has by now stays as it is; of several with one key the youngest goes on. dry_run: only counts. Errors: TB002.';

-- Puts those of some runs into another queue that wait for a worker.
create or replace function tidebase_private.move_found(found_runs text[], to_queue text, new_priority integer, who text)
returns integer
language plpgsql volatile
as $$
declare
  head tidebase.run_heads;
  keyed record;
  done integer := 0;
begin
  perform tidebase_private.commit_durably();
  -- The keys that are given up, and those that are to be had: all in one order, and before any head.
  perform from tidebase.dedupe_keys d
  where d.queue in (select r.queue from tidebase.runs r where r.run_id = any (found_runs) union select to_queue)
    and d.dedupe_key in (
      select r.dedupe_key from tidebase.runs r where r.run_id = any (found_runs) and r.queue <> to_queue)
  order by d.queue, d.dedupe_key
  for no key update;
  for keyed in
    select r.run_id, r.dedupe_key from tidebase.runs r
    where r.run_id = any (found_runs) and r.dedupe_key is not null and r.queue <> to_queue
    order by r.dedupe_key
  loop
    if (tidebase_private.take_dedupe_key(to_queue, keyed.dedupe_key, keyed.run_id, null)).run_id is not null then
      found_runs := array_remove(found_runs, keyed.run_id);
    end if;
  end loop;
  for head in select * from tidebase_private.lock_runs(found_runs, array['pending', 'queued']) loop
    delete from tidebase.dedupe_keys d using tidebase.runs r
    where r.run_id = head.run_id and d.run_id = head.run_id and d.queue = r.queue and r.queue <> to_queue;
    update tidebase.runs r
    set queue = to_queue, priority = coalesce(new_priority, r.priority, 0),
        max_attempts = coalesce(r.max_attempts, (select q.max_attempts from tidebase.queues q where q.queue = to_queue), 5)
    where r.run_id = head.run_id;
    update tidebase.run_heads h set status = 'queued', in_queue = true where h.run_id = head.run_id returning h.* into head;
    perform tidebase_private.leave_queue(head);
    perform tidebase_private.requeue(head, behind => true);
    perform tidebase_private.emit(tidebase_private.advance(head.run_id), 'run.moved', jsonb_strip_nulls(jsonb_build_object(
      'queue', to_queue, 'priority', new_priority, 'actor', who)));
    done := done + 1;
  end loop;
  -- Who was passed over does not have the key where it did not come to.
  delete from tidebase.dedupe_keys d using tidebase.runs r
  where d.queue = to_queue and d.run_id = any (found_runs) and r.run_id = d.run_id and r.queue is distinct from to_queue;
  return done;
end
$$;
comment on function tidebase_private.move_found(text[], text, integer, text) is
  'Moves those of these runs that are pending or queued, and returns how many; what somebody else has locked is passed over, and what has a key that is taken there.';

create or replace function tidebase.move_runs(
  to_queue text, queue text default null, workflow text default null, older_than interval default null, metadata jsonb default null,
  priority integer default null, actor text default null, dry_run boolean default false, max integer default 1000)
returns tidebase.bulk
language plpgsql volatile security definer
set search_path = pg_catalog, tidebase, pg_temp
as $$
declare
  statuses constant text[] := array['pending', 'queued'];
  who text := coalesce(actor, tidebase_private.caller());
  found_runs text[];
  done integer := 0;
begin
  max := coalesce(max, 1000);
  perform tidebase_private.require_queue(to_queue);
  perform tidebase_private.require_priority(priority);
  perform tidebase_private.require_text(actor, 'actor');
  perform tidebase_private.require_filter(queue, workflow, null, null, older_than, metadata, statuses, max);
  found_runs := tidebase_private.find_runs(queue, workflow, null, null, older_than, metadata, statuses, max);
  if not coalesce(dry_run, false) then
    done := tidebase_private.move_found(found_runs, to_queue, priority, who);
  end if;
  return row(cardinality(found_runs), done)::bulk;
end
$$;
comment on function tidebase.move_runs(text, text, text, interval, jsonb, integer, text, boolean, integer) is
  'Puts up to max (1 to 10000) runs that wait for a worker into another queue, or gives them another priority there: those that a filter finds, as cancel_runs has it; also runs that were in no queue. What is at work stays where it is. A run whose dedupe_key is taken in the other queue stays, too. dry_run: only counts. Errors: TB002.';

create or replace function tidebase.move_run(run_id text, to_queue text, priority integer default null, actor text default null)
returns boolean
language plpgsql volatile security definer
set search_path = pg_catalog, tidebase, pg_temp
set enable_seqscan = off
as $$
begin
  perform tidebase_private.require_queue(to_queue);
  perform tidebase_private.require_priority(priority);
  perform tidebase_private.require_text(actor, 'actor');
  if not exists (select from run_heads h where h.run_id = move_run.run_id) then
    perform tidebase_private.raise_run_not_found(run_id);
  end if;
  return tidebase_private.move_found(array[run_id], to_queue, priority, coalesce(actor, tidebase_private.caller())) = 1;
end
$$;
comment on function tidebase.move_run(text, text, integer, text) is
  'Puts one run that waits for a worker into another queue, or gives it another priority there, as move_runs does. False: it is not waiting for one (any more), somebody has it locked just now, or its dedupe_key is taken there. Errors: TB001, TB002.';

select tidebase_private.allow('function tidebase.cancel_runs', 'operator');
select tidebase_private.allow('function tidebase.retry_runs', 'operator');
select tidebase_private.allow('function tidebase.move_runs', 'operator');
select tidebase_private.allow('function tidebase.move_run', 'operator');
