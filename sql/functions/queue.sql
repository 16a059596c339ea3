-- Queues: what waits to be taken up, in which order, and how much of it may be at work at once.
--
-- An entry says where to look, the head of its run decides. The highest priority goes first; within it the queue is fair
-- between keys by start-time fair queueing (Goyal, Vin, Cheng, SIGCOMM 1996): each run of a key gets a place one round behind
-- the one before it, and whoever comes new gets the round that is being served. So the order is that of one index, and a key
-- with a million runs delays one with three by a round. A run without a key is a key of its own.
--
-- What was taken stays in the index as dead rows, for as long as an old snapshot needs it. So a search begins at a lane's mark,
-- which moves with what was taken, and from the very beginning only now and then, for those who came late: a run is enqueued
-- in its caller's transaction, which may commit long after it was given its place.

create or replace function tidebase_private.require_queue(queue text)
returns void
language plpgsql volatile
as $$
begin
  if not tidebase_private.is_name(queue, 255) then
    perform tidebase_private.require_name(queue, 'queue', 255);
  end if;
end
$$;
comment on function tidebase_private.require_queue(text) is 'Raises TB002 unless the text can name a queue.';

create or replace function tidebase_private.require_limit(value integer, parameter text)
returns void
language plpgsql volatile
as $$
begin
  if value not between 1 and 1000000 then
    perform tidebase_private.raise_invalid(parameter, 'must be a number from 1 to 1000000, or NULL for no limit');
  end if;
end
$$;
comment on function tidebase_private.require_limit(integer, text) is 'Raises TB002 unless it is NULL or a limit of a queue.';

-- The round that is being served in a lane: where whoever comes new begins.
create or replace function tidebase_private.lane_place(queue text, priority integer)
returns bigint
language sql stable
as $$
  select coalesce((select min(l.place) from tidebase.lanes l where l.queue = lane_place.queue and l.priority = lane_place.priority), 0);
$$;
comment on function tidebase_private.lane_place(text, integer) is 'The round that is being served among the runs of a queue with this priority.';

create or replace function tidebase_private.next_place(queue text, priority integer, key text)
returns bigint
language sql stable
as $$
  select greatest(tidebase_private.lane_place(queue, priority), (
    select e.place + 1 from tidebase.queue_entries e
    where e.queue = next_place.queue and e.priority = next_place.priority and e.key = next_place.key and e.place is not null
    order by e.place desc limit 1));
$$;
comment on function tidebase_private.next_place(text, integer, text) is 'The place of a run that comes to a lane now: a round behind the last one of its key.';

-- Wakes who sleeps until something is enqueued. NOTIFY takes a server-wide lock at commit: nobody rings where nobody sleeps,
-- and a transaction rings once, however much it enqueues.
create or replace function tidebase_private.ring_queue(queue text)
returns void
language plpgsql volatile
as $$
begin
  if exists (
      select from tidebase.workers w
      where w.listening_until > clock_timestamp() and w.queues @> array[queue])
    and pg_notification_queue_usage() < 0.1
  then
    perform pg_notify('tidebase_events', 'queue:' || queue);
  end if;
end
$$;
comment on function tidebase_private.ring_queue(text) is 'Notifies the workers of a queue, if one of them sleeps.';

-- A run that is free again goes back to its queue by itself: to the front of its priority, for it was served before.
create or replace function tidebase_private.requeue(head tidebase.run_heads, behind boolean default false)
returns void
language plpgsql volatile
as $$
declare
  run tidebase.runs;
  lane tidebase.lanes;
  free_at timestamptz := coalesce(head.available_at, clock_timestamp());
begin
  if not head.in_queue then
    return;
  end if;
  select r.* into run from tidebase.runs r where r.run_id = head.run_id;
  select l.* into lane from tidebase.lanes l where l.queue = run.queue and l.priority = run.priority order by l.place, l.turn limit 1;
  insert into tidebase.queue_entries (run_id, ready_at, turn, place, priority, pinned, queue, workflow, key, code_version)
  values (head.run_id, free_at, case when behind or free_at > clock_timestamp() then free_at else coalesce(lane.turn, '-infinity') end,
    case when free_at > clock_timestamp() then null
      when behind then tidebase_private.next_place(run.queue, run.priority, run.queue_key)
      else coalesce(lane.place, 0) end,
    run.priority, run.pinned, run.queue, run.workflow, run.queue_key, tidebase_private.version_of(head, run.pinned))
  on conflict on constraint queue_entries_pkey do update
  set ready_at = excluded.ready_at, turn = excluded.turn, place = excluded.place, code_version = excluded.code_version;
  perform tidebase_private.ring_queue(run.queue);
end
$$;
comment on function tidebase_private.requeue(tidebase.run_heads, boolean) is
  'Puts a run that may be taken up, now or from available_at on, back into its queue, if it has one; behind: at the end, as if it came new. The caller holds the head''s lock.';

create or replace function tidebase_private.version_of(head tidebase.run_heads, first boolean)
returns text
language sql stable
as $$
  select a.code_version from tidebase.attempts a
  where a.run_id = head.run_id and a.attempt = case when first then 1 else head.attempt end;
$$;
comment on function tidebase_private.version_of(tidebase.run_heads, boolean) is 'The code_version of a run''s first or latest attempt.';

create or replace function tidebase_private.leave_queue(head tidebase.run_heads)
returns void
language sql volatile
as $$
  delete from tidebase.queue_entries e where e.run_id = head.run_id;
$$;
comment on function tidebase_private.leave_queue(tidebase.run_heads) is 'Takes a run out of the search. The caller holds the head''s lock.';

-- A status that says: whoever comes may take the run up.
create or replace function tidebase_private.free_status(head tidebase.run_heads)
returns text
language sql immutable
as $$
  select case when head.in_queue then 'queued' else 'pending' end;
$$;
comment on function tidebase_private.free_status(tidebase.run_heads) is 'What a run is that may be taken up: queued where it belongs to a queue, else pending.';

-- A priority that a queue has not seen: between those that it has, so that nothing of theirs is looked at.
create or replace function tidebase_private.open_lanes(queue text)
returns integer
language plpgsql volatile
set enable_seqscan = off
as $$
declare
  opened integer;
begin
  insert into tidebase.lanes (queue, priority, opened_by, place, turn, moved_at, sweep_at)
  select open_lanes.queue, fresh.priority, pg_backend_pid(), 0, '-infinity', clock_timestamp(), clock_timestamp()
  from (
    select 100000 as above, coalesce(max(l.priority), -100000) as below from tidebase.lanes l where l.queue = open_lanes.queue
    union all
    select l.priority, lead(l.priority, 1, -100000) over (order by l.priority desc)
    from (select distinct k.priority from tidebase.lanes k where k.queue = open_lanes.queue) l) gap
  cross join lateral (
    select e.priority from tidebase.queue_entries e
    where e.queue = open_lanes.queue and e.place is not null and e.priority < gap.above and e.priority > gap.below
    order by e.priority desc limit 1) fresh
  on conflict on constraint lanes_pkey do nothing;
  get diagnostics opened = row_count;
  return opened;
end
$$;
comment on function tidebase_private.open_lanes(text) is
  'Makes lanes for priorities that are new in a queue, one in each gap between those that are there; how many. Call it until it makes none.';

-- Moves the marks of a queue's lanes to the first entry that is left: from where they are, or (whole) from the beginning, which
-- also finds who came late. What that costs decides when it is done again: it takes a twentieth of the time.
create or replace function tidebase_private.tend_lanes(queue text, whole boolean)
returns void
language plpgsql volatile
set enable_seqscan = off
as $$
declare
  begun timestamptz := clock_timestamp();
  lane tidebase.lanes;
  mark tidebase.queue_entries;
begin
  for lane in select l.* from tidebase.lanes l where l.queue = tend_lanes.queue order by l.priority loop
    select e.* into mark
    from tidebase.queue_entries e
    where e.queue = lane.queue and e.priority = lane.priority and e.place is not null
      and (e.place, e.turn) >= (case when whole then -1 else lane.place end, case when whole then '-infinity' else lane.turn end)
    order by e.place, e.turn limit 1;
    update tidebase.lanes l
    set place = coalesce(mark.place, lane.place), turn = coalesce(mark.turn, lane.turn), moved_at = clock_timestamp(),
        sweep_at = case when whole
          then clock_timestamp() + greatest(interval '0.5 seconds', 20 * (clock_timestamp() - begun)) else l.sweep_at end
    where l.queue = lane.queue and l.priority = lane.priority and l.opened_by = lane.opened_by;
  end loop;
end
$$;
comment on function tidebase_private.tend_lanes(text, boolean) is
  'Moves the marks from which the lanes of a queue are searched. The caller has the locks of the lanes.';

-- Where somebody else is at it, it is left to him.
create or replace function tidebase_private.tend_if_due(queue text)
returns void
language plpgsql volatile
as $$
declare
  moved_at timestamptz;
  sweep_at timestamptz;
  known bigint;
  mine bigint;
begin
  for round in 1..100 loop
    exit when tidebase_private.open_lanes(queue) = 0;
  end loop;
  select min(l.moved_at), min(l.sweep_at), count(*) into moved_at, sweep_at, known
  from tidebase.lanes l where l.queue = tend_if_due.queue;
  if known = 0 or sweep_at > clock_timestamp() and moved_at > clock_timestamp() - interval '0.2 seconds' then
    return;
  end if;
  select count(*) into mine from (
    select from tidebase.lanes l where l.queue = tend_if_due.queue for no key update skip locked) locked;
  if mine = known then
    delete from tidebase.lanes l using tidebase.lanes k
    where l.queue = tend_if_due.queue and k.queue = l.queue and k.priority = l.priority and k.opened_by < l.opened_by;
    perform tidebase_private.tend_lanes(queue, whole => sweep_at <= clock_timestamp());
  end if;
end
$$;
comment on function tidebase_private.tend_if_due(text) is
  'Moves the marks of a queue where that was not done for a while. A claim does so for its queues in the order of their names.';

create or replace function tidebase.put_queue(
  queue text, concurrency integer default null, key_concurrency integer default null, rate integer default null,
  rate_period interval default '1 minute', key_rate integer default null, paused boolean default null,
  lease interval default null, max_attempts integer default null, retry_delay interval default null, endpoint text default null)
returns void
language plpgsql volatile security definer
set search_path = pg_catalog, tidebase, pg_temp
as $$
begin
  rate_period := coalesce(rate_period, '1 minute');
  perform tidebase_private.require_queue(queue);
  perform tidebase_private.require_limit(concurrency, 'concurrency');
  perform tidebase_private.require_limit(key_concurrency, 'key_concurrency');
  perform tidebase_private.require_limit(rate, 'rate');
  perform tidebase_private.require_limit(key_rate, 'key_rate');
  perform tidebase_private.require_interval(rate_period, 'rate_period', '1 second', '31 days');
  perform tidebase_private.require_interval(coalesce(lease, '1 minute'), 'lease', '1 second', '1 day');
  perform tidebase_private.require_interval(coalesce(retry_delay, '1 second'), 'retry_delay', '0', '30 days');
  if max_attempts not between 1 and 1000 then
    perform tidebase_private.raise_invalid('max_attempts', 'must be a number from 1 to 1000');
  end if;
  perform tidebase_private.require_endpoint(endpoint);
  perform tidebase_private.commit_durably();
  insert into queues as q
    (queue, concurrency, key_concurrency, rate, rate_period, key_rate, paused, lease, max_attempts, retry_delay)
  values (put_queue.queue, put_queue.concurrency, put_queue.key_concurrency, put_queue.rate, put_queue.rate_period,
    put_queue.key_rate, coalesce(put_queue.paused, false), put_queue.lease, put_queue.max_attempts, put_queue.retry_delay)
  on conflict on constraint queues_pkey do update
  set concurrency = excluded.concurrency, key_concurrency = excluded.key_concurrency, rate = excluded.rate,
      rate_period = excluded.rate_period, key_rate = excluded.key_rate, paused = coalesce(put_queue.paused, q.paused),
      lease = excluded.lease, max_attempts = excluded.max_attempts, retry_delay = excluded.retry_delay,
      updated_at = clock_timestamp();
  if coalesce(concurrency, key_concurrency) is not null then
    perform tidebase_private.adopt_leases(queue);
  end if;
  perform tidebase_private.put_endpoint(queue, endpoint);
  perform tidebase_private.ring_queue(queue);
end
$$;
comment on function tidebase.put_queue(text, integer, integer, integer, interval, integer, boolean, interval, integer, interval, text) is
  'Makes a queue what is said here, also while it runs: what is not given has no limit. concurrency: how many of its runs may be leased at once; key_concurrency: how many with the same key. rate: how many leases may be granted within any rate_period (1 second to 31 days); key_rate: to runs with the same key. Limits are never exceeded, whatever crashes or is taken over; what is leased when a limit is set stays so, and counts. A suspended run takes no place. paused: NULL leaves that as it is; see pause_queue. lease (1 second to 1 day): how long a lease lasts where claim_runs says nothing; max_attempts and retry_delay: of runs that are enqueued without. endpoint: a URL that is told of each run, so that it is taken up there (see claim_invocations); given again, it is tried at once; NULL leaves that as it is, empty takes it away. Errors: TB002.';

create or replace function tidebase_private.set_paused(queue text, paused boolean)
returns boolean
language plpgsql volatile
as $$
declare
  changed boolean;
begin
  perform tidebase_private.require_queue(queue);
  perform tidebase_private.commit_durably();
  if paused then
    insert into tidebase.queues as q (queue, paused) values (set_paused.queue, true)
    on conflict on constraint queues_pkey do update set paused = true, updated_at = clock_timestamp()
    where not q.paused;
    return found;
  end if;
  update tidebase.queues q set paused = false, updated_at = clock_timestamp() where q.queue = set_paused.queue and q.paused;
  changed := found;
  perform tidebase_private.ring_queue(queue);
  return changed;
end
$$;
comment on function tidebase_private.set_paused(text, boolean) is 'Pauses a queue or lets it go on; whether that changed something. Errors: TB002.';

create or replace function tidebase.pause_queue(queue text)
returns boolean
language plpgsql volatile security definer
set search_path = pg_catalog, tidebase, pg_temp
as $$
begin
  return tidebase_private.set_paused(queue, true);
end
$$;
comment on function tidebase.pause_queue(text) is
  'Grants no lease of the queue''s runs any more until resume_queue; what is leased goes on. False when it was paused before. Errors: TB002.';

create or replace function tidebase.resume_queue(queue text)
returns boolean
language plpgsql volatile security definer
set search_path = pg_catalog, tidebase, pg_temp
as $$
begin
  return tidebase_private.set_paused(queue, false);
end
$$;
comment on function tidebase.resume_queue(text) is 'Ends a pause. False when the queue was not paused. Errors: TB002.';

-- What is counted is counted off an index, and no further than to ten thousand. A queue has a row, or a lane, or something
-- that waits.
create or replace view tidebase.queue_overview with (security_barrier = true) as
  with recursive waiting as (
    (select e.queue from tidebase.queue_entries e order by e.queue limit 1)
    union all
    select (select e.queue from tidebase.queue_entries e where e.queue > w.queue order by e.queue limit 1)
    from waiting w where w.queue is not null),
  known as (
    select q.queue from tidebase.queues q
    union select l.queue from tidebase.lanes l
    union select w.queue from waiting w where w.queue is not null),
  alive as (
    select r.queue, h.status, count(*) as runs
    from (
      (select h.run_id, h.status from tidebase.run_heads h where lower(h.status) = 'running' and h.in_queue limit 10000)
      union all
      (select h.run_id, h.status from tidebase.run_heads h where lower(h.status) = 'waiting' and h.in_queue limit 10000)
      union all
      (select h.run_id, h.status from tidebase.run_heads h where lower(h.status) = 'review' and h.in_queue limit 10000)
      union all
      (select h.run_id, h.status from tidebase.run_heads h where lower(h.status) = 'failed' and h.in_queue limit 10000)) h
    join tidebase.runs r on r.run_id = h.run_id
    group by r.queue, h.status)
  select
    k.queue,
    ready.runs as ready,
    greatest(delayed.runs - invoked.runs, 0) as delayed,
    coalesce((select a.runs from alive a where a.queue = k.queue and a.status = 'running'), 0) as running,
    coalesce((select a.runs from alive a where a.queue = k.queue and a.status = 'waiting'), 0) as waiting,
    coalesce((select a.runs from alive a where a.queue = k.queue and a.status = 'review'), 0) as review,
    coalesce((select a.runs from alive a where a.queue = k.queue and a.status = 'failed'), 0) as failed,
    coalesce((
      select min(front.ready_at)
      from tidebase.lanes l
      cross join lateral (
        select e.ready_at from tidebase.queue_entries e
        where e.queue = l.queue and e.priority = l.priority and e.place is not null
          and (e.place, e.turn) >= (l.place, l.turn)
        order by e.place, e.turn limit 1) front
      where l.queue = k.queue), (
      select e.ready_at from tidebase.queue_entries e  -- of which nothing was taken so far
      where e.queue = k.queue and e.place is not null
      order by e.priority desc, e.place, e.turn limit 1)) as oldest_ready,
    coalesce(q.paused, false) as paused,
    q.concurrency,
    q.key_concurrency,
    q.rate,
    q.key_rate,
    case when coalesce(q.rate, q.key_rate) is not null then q.rate_period end as rate_period,
    q.lease,
    q.max_attempts,
    q.retry_delay,
    case
      when ready.runs = 0 then null
      when q.paused then 'paused'
      when coalesce((select a.runs from alive a where a.queue = k.queue and a.status = 'running'), 0) + invoked.runs >= q.concurrency
        then 'concurrency'
      when q.rate <= (
          select count(*) from tidebase.queue_starts s
          where s.queue = k.queue and s.started_at > statement_timestamp() - q.rate_period)
        then 'rate'
      when p.failures > 0 then 'endpoint'
      when p.queue is null and not exists (
          select from tidebase.workers w
          where w.seen_at > statement_timestamp() - interval '1 minute' and w.queues @> array[k.queue])
        then 'no worker'
    end as held_back_by,
    p.url as endpoint,
    p.failures as endpoint_failures,
    case when p.failures > 0 then p.error end as endpoint_error,
    invoked.runs as invoked
  from known k
  left join tidebase.queues q on q.queue = k.queue
  left join tidebase.endpoints p on p.queue = k.queue
  cross join lateral (
    select count(*) as runs from (
      select from tidebase.invocations i
      join tidebase.run_heads h on h.run_id = i.run_id and h.attempt < i.attempt and h.status in ('queued', 'running', 'waiting')
      where i.queue = k.queue and i.status in ('sending', 'sent') and i.next_at > statement_timestamp() limit 10000) few) invoked
  cross join lateral (
    select count(*) as runs from (
      select from tidebase.queue_entries e where e.queue = k.queue and e.place is not null limit 10000) few) ready
  cross join lateral (
    select count(*) as runs from (
      select from tidebase.queue_entries e where e.queue = k.queue and e.place is null limit 10000) few) delayed;
comment on view tidebase.queue_overview is
  'One row a queue: how many of its runs are ready, delayed, running, waiting (suspended), in review, failed (no more than 10,000 are counted of each); since when the next ones wait; its limits; held_back_by: what keeps those that are ready from being taken: paused, concurrency, rate, endpoint (it fails: endpoint_failures times in a row, endpoint_error says how), no worker (none was seen for a minute, and there is no endpoint), or NULL; how many its endpoint was told of and has not begun so far (invoked).';

-- Nothing is counted while runs are at work: what ended is looked for among those that were made last.
create or replace view tidebase.queue_rates with (security_barrier = true) as
  with newest as materialized (
    (select h.run_id, 'completed' as status, h.updated_at
    from tidebase.run_heads h where lower(h.status) = 'completed' order by h.created_at desc, h.run_id desc limit 5000)
    union all
    (select h.run_id, 'failed', h.updated_at
    from tidebase.run_heads h where lower(h.status) = 'failed' order by h.created_at desc, h.run_id desc limit 5000)),
  looked_at as (
    select n.status,
      greatest(statement_timestamp() - interval '5 minutes', case when count(*) = 5000 then min(n.updated_at) end) as since
    from newest n group by n.status),
  ended as (
    select r.queue, n.status,
      count(*) * 60 / greatest(extract(epoch from statement_timestamp() - l.since), 1)::double precision as a_minute
    from newest n
    join looked_at l on l.status = n.status
    join tidebase.runs r on r.run_id = n.run_id
    where n.updated_at >= l.since and r.finished_at >= l.since and r.queue is not null
    group by r.queue, n.status, l.since)
  select
    e.queue,
    coalesce(max(e.a_minute) filter (where e.status = 'completed'), 0) as completed_per_minute,
    coalesce(max(e.a_minute) filter (where e.status = 'failed'), 0) as failed_per_minute
  from ended e group by e.queue;
comment on view tidebase.queue_rates is
  'How many runs of each queue were completed, and failed for good, a minute: those of the last five minutes, among the 5,000 of either kind that were made last; where all of these ended within less, those of that time. A queue in which nothing ended has no row.';

create or replace view tidebase.worker_overview with (security_barrier = true) as
  select
    w.holder,
    w.queues,
    w.code_version,
    (select count(*) from tidebase.run_heads h where lower(h.status) = 'running' and h.holder = w.holder) as running,
    w.started_at,
    w.seen_at
  from tidebase.workers w
  where w.seen_at > statement_timestamp() - interval '1 day';
comment on view tidebase.worker_overview is
  'Who took runs from queues within a day: from which, with what code, how many it holds, since when, and when it was seen last (noted every few seconds).';

select tidebase_private.allow('function tidebase.put_queue', 'operator');
select tidebase_private.allow('function tidebase.pause_queue', 'operator');
select tidebase_private.allow('function tidebase.resume_queue', 'operator');
select tidebase_private.allow('table tidebase.queue_rates', 'worker', 'approver', 'operator', 'reader');
select tidebase_private.allow('table tidebase.queue_overview', 'worker', 'approver', 'operator', 'reader');
select tidebase_private.allow('table tidebase.worker_overview', 'worker', 'approver', 'operator', 'reader');
