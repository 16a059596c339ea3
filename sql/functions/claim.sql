-- Claims: a worker takes up what is due, as many runs as it has hands for, in one call.
--
-- Lock order: the rows of all limited queues that a call names, in the order of their names (see limit.sql), before any entry or
-- head. Entries and heads that somebody else has are passed over, so a claim waits for nobody but another claim of the same
-- limited queue.

-- Whether this worker may go on with a run, as far as code goes: one that is pinned only with the code it began with.
create or replace function tidebase_private.fits(entry tidebase.queue_entries, workflows text[], code_version text, versions text[])
returns boolean
language sql immutable
as $$
  select (workflows is null or entry.workflow = any (workflows))
    and (entry.code_version is null or entry.code_version is not distinct from fits.code_version
      or not entry.pinned and (versions is null or entry.code_version = any (versions)));
$$;
comment on function tidebase_private.fits(tidebase.queue_entries, text[], text, text[]) is
  'Whether a worker that knows these workflows, and takes over from these versions (NULL: from any), may take the run.';

-- Runs that were put off and whose time has come get their place.
create or replace function tidebase_private.promote(queue text)
returns void
language plpgsql volatile
as $$
declare
  as_of timestamptz := clock_timestamp();
begin
  with due as (
    select e.run_id, e.priority, e.key, e.ready_at from tidebase.queue_entries e
    where e.queue = promote.queue and e.place is null and e.ready_at <= as_of
    order by e.ready_at
    limit 1000
    for no key update skip locked)
  update tidebase.queue_entries e
  set place = tidebase_private.next_place(promote.queue, d.priority, d.key) + d.behind
  from (
    select due.*, case when due.key is null then 0
      else row_number() over (partition by due.priority, due.key order by due.ready_at) - 1 end as behind
    from due) d
  where e.run_id = d.run_id;
end
$$;
comment on function tidebase_private.promote(text) is 'Gives up to 1,000 entries of a queue that are due their places.';

-- The next entries of a lane that this worker may take, with the locks of the entry and of the run's head. What somebody else has
-- is passed over.
create or replace function tidebase_private.lock_entries(
  lane tidebase.lanes, max integer, workflows text[], code_version text, versions text[])
returns setof tidebase.queue_entries
language plpgsql volatile
set plan_cache_mode = force_custom_plan
set enable_seqscan = off
set enable_bitmapscan = off
set enable_hashjoin = off
set enable_mergejoin = off
as $$
begin
  return query
    select e.* from tidebase.queue_entries e
    join tidebase.run_heads h on h.run_id = e.run_id
    where e.queue = lane.queue and e.priority = lane.priority and e.place is not null
      and (e.place, e.turn) >= (lane.place, lane.turn)
      and tidebase_private.fits(e, workflows, lock_entries.code_version, versions)
    order by e.place, e.turn
    limit max
    for no key update skip locked;
end
$$;
comment on function tidebase_private.lock_entries(tidebase.lanes, integer, text[], text, text[]) is
  'Entries in their order, at most max, each with its lock and that of its run''s head.';

-- Of a queue that limits keys: no more of each key than there is room for. Claims of such a queue are serial, so nobody competes for
-- the entries; locks are taken by lock_chosen. Where the first entries are all of keys that have no room, the keys are looked at
-- one after the other, beginning anywhere: there are no more full keys than runs at work.
create or replace function tidebase_private.choose_by_key(
  queue tidebase.queues, lane tidebase.lanes, max integer, workflows text[], code_version text, versions text[])
returns text[]
language plpgsql volatile
set enable_seqscan = off
as $$
declare
  entry tidebase.queue_entries;
  room jsonb := jsonb_build_object();
  left_of_key integer;
  chosen text[] := array[]::text[];
  passed integer := 0;
begin
  for entry in
    select e.* from tidebase.queue_entries e
    where e.queue = lane.queue and e.priority = lane.priority and e.place is not null
      and (e.place, e.turn) >= (lane.place, lane.turn)
      and tidebase_private.fits(e, workflows, choose_by_key.code_version, versions)
    order by e.place, e.turn
    limit 4 * max + 100
  loop
    left_of_key := coalesce((room ->> entry.key)::integer, tidebase_private.room_of_key(queue, entry.key, entry.run_id));
    if left_of_key > 0 then
      chosen := chosen || entry.run_id;
    else
      passed := passed + 1;
    end if;
    if entry.key is not null then
      room := room || jsonb_build_object(entry.key, left_of_key - 1);
    end if;
    exit when cardinality(chosen) >= max;
  end loop;
  if cardinality(chosen) = 0 and passed >= 4 * max + 100 then
    chosen := tidebase_private.choose_any_key(queue, lane, max, workflows, code_version, versions);
  end if;
  return chosen;
end
$$;
comment on function tidebase_private.choose_by_key(tidebase.queues, tidebase.lanes, integer, text[], text, text[]) is
  'Up to max runs of a lane whose keys have room. The caller holds the queue''s lock.';

create or replace function tidebase_private.choose_any_key(
  queue tidebase.queues, lane tidebase.lanes, max integer, workflows text[], code_version text, versions text[])
returns text[]
language plpgsql volatile
set enable_seqscan = off
as $$
declare
  keys text[];
  at text;
  entry tidebase.queue_entries;
  chosen text[] := array[]::text[];
begin
  with recursive k as (
    (select e.key from tidebase.queue_entries e
      where e.queue = lane.queue and e.priority = lane.priority and e.place is not null and e.key is not null
      order by e.key limit 1)
    union all
    select (
      select e.key from tidebase.queue_entries e
      where e.queue = lane.queue and e.priority = lane.priority and e.place is not null and e.key > k.key
      order by e.key limit 1)
    from k where k.key is not null)
  select array_agg(k.key order by random()) into keys from (select k.key from k where k.key is not null limit 10000) k;
  foreach at in array coalesce(keys, array[]::text[]) loop
    continue when tidebase_private.room_of_key(queue, at) < 1;
    select e.* into entry from tidebase.queue_entries e
    where e.queue = lane.queue and e.priority = lane.priority and e.key = at and e.place is not null
      and tidebase_private.fits(e, workflows, choose_any_key.code_version, versions)
    order by e.place limit 1;
    if found then
      chosen := chosen || entry.run_id;
    end if;
    exit when cardinality(chosen) >= max;
  end loop;
  return chosen;
end
$$;
comment on function tidebase_private.choose_any_key(tidebase.queues, tidebase.lanes, integer, text[], text, text[]) is
  'One run each of up to max keys that have room, beginning anywhere. The caller holds the queue''s lock.';

create or replace function tidebase_private.lock_chosen(queue text, chosen text[])
returns text[]
language sql volatile
set enable_seqscan = off
as $$
  with mine as (
    select e.run_id, e.place, e.turn from tidebase.queue_entries e
    join tidebase.run_heads h on h.run_id = e.run_id
    where e.run_id = any (chosen) and e.queue = lock_chosen.queue  -- it may have been moved meanwhile
    for no key update skip locked)
  select coalesce(array_agg(m.run_id order by m.place, m.turn), '{}') from mine m;
$$;
comment on function tidebase_private.lock_chosen(text, text[]) is 'Those of these runs of a queue whose entry and head nobody else has, with their locks.';

-- What is done to the runs of a list is planned once: for a list that is known the planner takes a plan of its own to be the better
-- one each time, and planning is half of what a claim costs. The plan is the same: look up each.

-- Grants what waits for nothing but a worker, by one statement a table. The rest is asked for as anybody would: a lease that has run
-- out is taken over, a run that is not to be had any more leaves the queue.
create or replace function tidebase_private.grant_runs(
  chosen text[], holder text, ttl interval, code_version text, request_id text)
returns text[]
language plpgsql volatile
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set enable_hashjoin = off
set enable_mergejoin = off
as $$
declare
  floor bigint := tidebase_private.tokens_before();
  granted text[];
  other record;
  outcome text;
  watcher record;
begin
  with granting as (
    update tidebase.run_heads h
    set status = 'running', lease_token = greatest(h.lease_token, floor) + 1, attempt = h.attempt + 1, holder = grant_runs.holder,
        lease_expires_at = clock_timestamp() + ttl, due_at = least(h.due_at, clock_timestamp() + ttl), available_at = null,
        last_seq = h.last_seq + 1, durable_seq = h.last_seq + 1, updated_at = clock_timestamp()
    where h.run_id = any (chosen) and h.status = 'queued'
      and coalesce(h.available_at, '-infinity') <= clock_timestamp() and coalesce(h.deadline_at, 'infinity') > clock_timestamp()
    returning h.run_id, h.attempt, h.lease_token, h.last_seq),
  attempted as (
    insert into tidebase.attempts (run_id, attempt, lease_token, holder, code_version, request_id)
    select g.run_id, g.attempt, g.lease_token, grant_runs.holder, grant_runs.code_version, grant_runs.request_id from granting g),
  logged as (
    insert into tidebase.events (run_id, seq, type, payload)
    select g.run_id, g.last_seq, 'run.started', jsonb_strip_nulls(jsonb_build_object('attempt', g.attempt,
      'token', g.lease_token, 'holder', grant_runs.holder, 'code_version', grant_runs.code_version))
    from granting g),
  gone as (
    delete from tidebase.queue_entries e using granting g where e.run_id = g.run_id)
  select coalesce(array_agg(g.run_id order by array_position(chosen, g.run_id)), '{}') into granted from granting g;
  for watcher in
    select w.run_id, h.last_seq from tidebase.watches w
    join tidebase.run_heads h on h.run_id = w.run_id
    where w.run_id = any (granted) and w.watched_until > clock_timestamp()
  loop
    perform tidebase_private.ring(watcher.run_id, watcher.last_seq);
  end loop;
  for other in
    select h.run_id, h.status, h.available_at, h.deadline_at from tidebase.run_heads h
    where h.run_id = any (chosen) and h.run_id <> all (granted)
    order by array_position(chosen, h.run_id)
  loop
    if other.status = 'queued' and other.available_at > clock_timestamp() then
      continue;
    elsif other.deadline_at <= clock_timestamp() then
      perform tidebase_private.put_entry_off(other.run_id, clock_timestamp() + interval '1 minute');  -- reconcile cancels it
      continue;
    end if;
    outcome := case when other.status in ('running', 'waiting')
      then (tidebase.acquire_run(other.run_id, holder, ttl, code_version, request_id)).outcome else 'not to be had' end;
    if outcome = 'granted' then
      granted := granted || other.run_id;
    elsif outcome <> 'queued' then  -- where only a limit is in the way it stays: nobody else would put it back
      delete from tidebase.queue_entries e where e.run_id = other.run_id;
    end if;
  end loop;
  return granted;
end
$$;
comment on function tidebase_private.grant_runs(text[], text, interval, text, text) is
  'Leases these runs, as far as they may be leased, and returns their ids. The caller holds the locks of their entries and heads.';

-- Leases whose time is over come back by themselves, also where nobody reconciles; and in a limited queue each in its own slot,
-- whether or not there is room for others.
create or replace function tidebase_private.claim_overdue(
  queue tidebase.queues, max integer, holder text, ttl interval, workflows text[], code_version text, versions text[], request_id text)
returns text[]
language plpgsql volatile
as $$
declare
  chosen text[];
  room integer := max;
begin
  if queue.rate is not null then
    room := least(max, queue.rate - tidebase_private.starts_within(queue.queue, null, queue.rate_period)::integer);
  end if;
  if queue.paused or room < 1 then
    return array[]::text[];
  end if;
  select array_agg(e.run_id) into chosen
  from tidebase.slots s
  join tidebase.queue_entries e on e.run_id = s.run_id
  join tidebase.run_heads h on h.run_id = s.run_id and h.status = 'running' and h.lease_expires_at <= clock_timestamp()
  where s.queue = claim_overdue.queue.queue and tidebase_private.fits(e, workflows, claim_overdue.code_version, versions);
  if chosen is null then
    return array[]::text[];
  end if;
  return tidebase_private.grant_runs((tidebase_private.lock_chosen(queue.queue, chosen))[:room], holder, ttl, code_version, request_id);
end
$$;
comment on function tidebase_private.claim_overdue(tidebase.queues, integer, text, interval, text[], text, text[], text) is
  'Takes over runs of a limited queue whose lease has run out. The caller holds the queue''s lock.';

-- What one lane gives.
create or replace function tidebase_private.claim_from_lane(
  queue tidebase.queues, lane tidebase.lanes, max integer, holder text, ttl interval, workflows text[], code_version text,
  versions text[], request_id text)
returns text[]
language plpgsql volatile
as $$
declare
  chosen text[];
  fresh text[];
  granted text[];
begin
  if coalesce(queue.key_concurrency, queue.key_rate) is not null then
    chosen := tidebase_private.lock_chosen(queue.queue,
      tidebase_private.choose_by_key(queue, lane, max, workflows, code_version, versions));
  else
    chosen := array(select e.run_id from tidebase_private.lock_entries(lane, max, workflows, code_version, versions) e);
  end if;
  if cardinality(chosen) = 0 then
    return chosen;
  elsif not tidebase_private.has_limits(queue) then
    return tidebase_private.grant_runs(chosen, holder, ttl, code_version, request_id);
  end if;
  fresh := array(select h.run_id from tidebase.run_heads h where h.run_id = any (chosen) and h.status = 'queued');
  granted := tidebase_private.grant_runs(chosen, holder, ttl, code_version, request_id);
  perform tidebase_private.take_slots(queue, array(select g.run_id from unnest(granted) g (run_id) where g.run_id = any (fresh)));
  return granted;  -- the others have counted themselves
end
$$;
comment on function tidebase_private.claim_from_lane(tidebase.queues, tidebase.lanes, integer, text, interval, text[], text, text[], text) is
  'Leases up to max runs of one priority of a queue, and counts them towards its limits.';

-- The lanes of a queue in the order in which they are served: the highest priority first; but one time in eight first the one whose
-- next run has waited longest, if that is more than a minute: a low priority is late, never starved.
create or replace function tidebase_private.lanes_in_order(queue text)
returns setof tidebase.lanes
language plpgsql volatile rows 5
as $$
declare
  starved integer;
begin
  if random() < 0.125 then
    select l.priority into starved
    from tidebase.lanes l
    cross join lateral (
      select e.ready_at from tidebase.queue_entries e
      where e.queue = l.queue and e.priority = l.priority and e.place is not null and (e.place, e.turn) >= (l.place, l.turn)
      order by e.place, e.turn limit 1) front
    where l.queue = lanes_in_order.queue and front.ready_at <= clock_timestamp() - interval '1 minute'
    order by front.ready_at limit 1;
  end if;
  return query
    select * from (
      select distinct on (l.priority) l.* from tidebase.lanes l where l.queue = lanes_in_order.queue
      order by l.priority, l.place, l.turn) one
    order by (one.priority is not distinct from starved) desc, one.priority desc;
end
$$;
comment on function tidebase_private.lanes_in_order(text) is 'The lanes of a queue in the order in which a claim looks at them.';

create or replace function tidebase_private.claim_from_queue(
  queue tidebase.queues, max integer, holder text, ttl interval, workflows text[], code_version text, versions text[], request_id text,
  whole boolean)
returns text[]
language plpgsql volatile
as $$
declare
  lane tidebase.lanes;
  limited boolean := tidebase_private.has_limits(queue);
  room integer := max;
  taken text[] := array[]::text[];
  more text[];
begin
  if queue.paused then
    return taken;
  end if;
  if limited then
    taken := tidebase_private.claim_overdue(queue, max, holder, ttl, workflows, code_version, versions, request_id);
    room := least(max - cardinality(taken), tidebase_private.room_of(queue));
  end if;
  for lane in select * from tidebase_private.lanes_in_order(queue.queue) loop
    exit when room <= 0;
    if whole and lane.sweep_at <= clock_timestamp() + interval '0.5 seconds' then  -- to look at the whole lane is cheap
      lane.place := -1;
      lane.turn := '-infinity';
    end if;
    -- To lock what comes next is planned anew each time: not for a priority that has nothing just now.
    continue when not exists (
      select from tidebase.queue_entries e
      where e.queue = lane.queue and e.priority = lane.priority and e.place is not null and (e.place, e.turn) >= (lane.place, lane.turn));
    more := tidebase_private.claim_from_lane(queue, lane, room, holder, ttl, workflows, code_version, versions, request_id);
    taken := taken || more;
    room := room - cardinality(more);
  end loop;
  return taken;
end
$$;
comment on function tidebase_private.claim_from_queue(tidebase.queues, integer, text, interval, text[], text, text[], text, boolean) is
  'Leases up to max runs of one queue; whole: also looks before the marks, for who came late. The caller holds the queue''s lock, if it has limits.';

-- What a worker is and does, for people and for the doorbell: written every few seconds at most.
create or replace function tidebase_private.note_worker(holder text, queues text[], code_version text, listen_for interval)
returns void
language plpgsql volatile
as $$
begin
  if exists (
    select from tidebase.workers w
    where w.holder = note_worker.holder and w.seen_at > clock_timestamp() - interval '5 seconds'
      and w.queues = note_worker.queues and w.code_version is not distinct from note_worker.code_version
      and (listen_for is null or w.listening_until > clock_timestamp() + listen_for / 2))
  then
    return;
  end if;
  update tidebase.workers w
  set queues = note_worker.queues, code_version = note_worker.code_version, seen_at = clock_timestamp(),
      listening_until = greatest(w.listening_until, clock_timestamp() + listen_for)
  where w.holder = (select o.holder from tidebase.workers o where o.holder = note_worker.holder for no key update skip locked);
  if not found and not exists (select from tidebase.workers w where w.holder = note_worker.holder) then
    insert into tidebase.workers (holder, queues, code_version, listening_until)
    values (note_worker.holder, note_worker.queues, note_worker.code_version, clock_timestamp() + listen_for)
    on conflict on constraint workers_pkey do nothing;
  end if;
end
$$;
comment on function tidebase_private.note_worker(text, text[], text, interval) is 'Notes who takes runs from queues, and until when it wants to be woken.';

create or replace function tidebase_private.find_claim(request_id text)
returns setof tidebase.claim
language sql stable
as $$
  select h.run_id, h.lease_token, h.attempt, r.workflow, r.input, r.queue, h.lease_expires_at, h.steps_completed, h.has_budget, r.traceparent
  from tidebase.claims c
  cross join lateral unnest(c.run_ids, c.tokens) with ordinality g (run_id, token, place)
  join tidebase.run_heads h on h.run_id = g.run_id and h.lease_token = g.token and h.status = 'running'
  join tidebase.runs r on r.run_id = h.run_id
  where c.request_id = find_claim.request_id
  order by g.place;
$$;
comment on function tidebase_private.find_claim(text) is 'What an earlier call with this request_id was granted, as far as it still holds it.';

-- As the claim of a call that was made just now.
create or replace function tidebase_private.claims_of(run_ids text[])
returns setof tidebase.claim
language plpgsql stable
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set enable_hashjoin = off
set enable_mergejoin = off
as $$
begin
  return query
    select h.run_id, h.lease_token, h.attempt, r.workflow, r.input, r.queue, h.lease_expires_at, h.steps_completed, h.has_budget,
      coalesce(earlier.traceparent, r.traceparent)
    from unnest(run_ids) with ordinality g (run_id, place)
    join tidebase.run_heads h on h.run_id = g.run_id
    join tidebase.runs r on r.run_id = h.run_id
    left join tidebase.attempts earlier on earlier.run_id = h.run_id and earlier.attempt = h.attempt - 1
    order by g.place;
end
$$;
comment on function tidebase_private.claims_of(text[]) is 'What claim_runs says of the runs that it has leased, in this order.';

create or replace function tidebase.claim_runs(
  queues text[] default array['default'], holder text default null, max integer default 1, ttl interval default null,
  workflows text[] default null, code_version text default null, versions text[] default null, request_id text default null,
  listen_for interval default null)
returns setof tidebase.claim
language plpgsql volatile security definer rows 10
set search_path = pg_catalog, tidebase, pg_temp
set enable_seqscan = off
as $$
declare
  settings tidebase.queues[];
  taken text[] := array[]::text[];
  own_ttl interval;
begin
  max := coalesce(max, 1);
  queues := coalesce(queues, array['default']);
  holder := coalesce(holder, tidebase_private.caller());
  perform tidebase_private.require_list(queues, 'queues');
  perform tidebase_private.require_list(workflows, 'workflows');
  perform tidebase_private.require_list(versions, 'versions');
  perform tidebase_private.require_name(holder, 'holder', 255);
  perform tidebase_private.require_interval(coalesce(ttl, '1 minute'), 'ttl', '1 millisecond', '1 day');
  perform tidebase_private.require_interval(coalesce(listen_for, '1 minute'), 'listen_for', '0', '1 hour');
  if coalesce(cardinality(queues), 0) = 0 then
    perform tidebase_private.raise_invalid('queues', 'must not be empty');
  elsif max not between 1 and 1000 then
    perform tidebase_private.raise_invalid('max', 'must be a number from 1 to 1000');
  elsif code_version is not null then
    perform tidebase_private.require_name(code_version, 'code_version', 255);
  end if;
  if request_id is not null then
    perform tidebase_private.require_name(request_id, 'request_id', 255);
    -- Who asks again while the first call is not over waits for its answer: else that would be granted to nobody. Two ids
    -- with one hash wait for each other, too, and that is all.
    perform pg_advisory_xact_lock(hashtextextended(request_id, 0));
    return query select * from tidebase_private.find_claim(request_id);
    if found or exists (select from claims c where c.request_id = claim_runs.request_id) then
      return;  -- the same call again: its answer was lost on the way
    end if;
  end if;
  perform tidebase_private.note_worker(holder, queues, code_version, listen_for);
  perform tidebase_private.commit_durably();
  select array_agg(tidebase_private.lock_queue(q.queue) order by q.queue) into settings
  from (select distinct u.queue from unnest(queues) u (queue) order by u.queue) q;

  for round in 1..2 loop
    perform tidebase_private.promote(q.queue), tidebase_private.tend_if_due(q.queue)
    from (select distinct u.queue from unnest(queues) u (queue) order by u.queue) q;
    for at in 1..cardinality(queues) loop
      exit when cardinality(taken) >= max;
      declare
        queue tidebase.queues := coalesce((select s from unnest(settings) s where s.queue = queues[at]),
          jsonb_populate_record(null::tidebase.queues, jsonb_build_object('queue', queues[at], 'paused', false)));
      begin
        own_ttl := coalesce(ttl, queue.lease, '1 minute');
        taken := taken || tidebase_private.claim_from_queue(queue, max - cardinality(taken), holder, own_ttl, workflows,
          code_version, versions, request_id, whole => round = 2);
      end;
    end loop;
    exit when cardinality(taken) > 0 or round = 2;
    -- Nothing: perhaps somebody's lease has run out, a timer or a schedule's time has come, or somebody came late.
    perform tidebase_private.fire_due(50);
    perform tidebase_private.reconcile_due(50);
  end loop;
  if request_id is not null and cardinality(taken) > 0 then
    insert into claims (request_id, run_ids, tokens)
    select claim_runs.request_id, taken, array(
      select h.lease_token from run_heads h where h.run_id = any (taken) order by array_position(taken, h.run_id))
    on conflict on constraint claims_pkey do nothing;
    if not found then
      perform tidebase_private.raise('40001', 'the same claim is made by another call at this moment',
        jsonb_build_object('request_id', request_id), 'Make it again: it gets what the other one got.');
    end if;
  end if;
  return query select * from tidebase_private.claims_of(taken);
end
$$;
comment on function tidebase.claim_runs(text[], text, integer, interval, text[], text, text[], text, interval) is
  'Leases up to max (1 to 1000) runs of these queues, of the first one first, and returns them: as acquire_run would grant each (token, attempt, input, ...). Of a queue the highest priority goes first, then it is fair between keys, then the oldest; a low priority that has waited for more than a minute comes up one time in eight. Also those whose lease has run out, whose gate, timer or children are settled, whose retry is due. holder: a name for people and logs, of one worker. ttl: 1 millisecond to 1 day, by default the queue''s lease, or a minute. workflows: only runs of these; NULL: of any. code_version: what the worker runs; versions: from which other versions it takes runs over, NULL: from any; a pinned run goes only to the version that it began with. request_id: an id made up for this call; the call repeated with it returns the same. listen_for: the doorbell (LISTEN tidebase_events, payload queue:<name>) rings when something is enqueued for these queues within that time (0 to 1 hour). The limits of the queues are kept. It waits for nobody but other claims of the same limited queue, and the same call. Commits synchronously. Errors: TB002.';

-- When the worker that found nothing should look again, if nobody wakes it.
create or replace function tidebase.next_ready(queues text[])
returns timestamptz
language plpgsql stable security definer
set search_path = pg_catalog, tidebase, pg_temp
set enable_seqscan = off
as $$
begin
  perform tidebase_private.require_list(queues, 'queues');
  return (
    select min(front.ready_at)
    from unnest(queues) q (queue)
    cross join lateral (
      select e.ready_at from queue_entries e where e.queue = q.queue and e.place is null order by e.ready_at limit 1) front);
end
$$;
comment on function tidebase.next_ready(text[]) is
  'When the next of the delayed runs of these queues is due, by the clock of the database; NULL when none is delayed. Errors: TB002.';

-- The same for who has another clock.
create or replace function tidebase.ready_in(queues text[])
returns interval
language plpgsql volatile security definer
set search_path = pg_catalog, tidebase, pg_temp
as $$
declare
  due timestamptz := tidebase.next_ready(queues);
begin
  return case when due is not null then greatest(due - clock_timestamp(), '0') end;
end
$$;
comment on function tidebase.ready_in(text[]) is
  'In how long the next of the delayed runs of these queues is due: 0 when it is by now, NULL when none is delayed. For a worker that found nothing and sleeps: it goes by the clock of the database, whatever its own says. Errors: TB002.';

-- What has served its time.
create or replace function tidebase_private.tidy_queues()
returns void
language plpgsql volatile
as $$
declare
  as_of timestamptz := clock_timestamp();  -- a volatile function in the condition would rule out the index
begin
  delete from tidebase.claims c
  where c.request_id in (
    select o.request_id from tidebase.claims o where o.claimed_at < as_of - interval '1 hour'
    order by o.claimed_at limit 1000 for update skip locked);
  delete from tidebase.workers w
  where w.holder in (
    select o.holder from tidebase.workers o where o.seen_at < as_of - interval '1 day' limit 1000 for update skip locked);
end
$$;
comment on function tidebase_private.tidy_queues() is 'Forgets the answers of claims after an hour, and workers after a day.';

select tidebase_private.allow('function tidebase.claim_runs', 'worker');
select tidebase_private.allow('function tidebase.next_ready', 'worker');
select tidebase_private.allow('function tidebase.ready_in', 'worker');
