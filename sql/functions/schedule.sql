-- Schedules: runs that are enqueued by the clock.
--
-- One run a fire time, however many processes look at the clock: they pass over a schedule that somebody else has, and the
-- run's id is made of the schedule's name and the time. reconcile fires what is due, and so does every worker.

create or replace function tidebase_private.raise_schedule_not_found(name text)
returns void
language plpgsql volatile
as $$
begin
  perform tidebase_private.raise('TB012', format('there is no schedule %s', coalesce(quote_literal(left(name, 255)), 'NULL')),
    jsonb_build_object('schedule', left(name, 255)), 'Schedules are made by put_schedule; see schedule_overview.');
end
$$;
comment on function tidebase_private.raise_schedule_not_found(text) is 'Raises TB012.';

-- A row of its own for each call, so that what is computed does not depend on what is stored.
create or replace function tidebase_private.next_time(wanted tidebase.schedules, after timestamptz)
returns timestamptz
language plpgsql stable
as $$
begin
  if wanted.cron is not null then
    return tidebase_private.next_fire(wanted.cron, wanted.timezone, after);
  end if;
  return wanted.anchor + wanted.every * (floor(extract(epoch from after - wanted.anchor) / extract(epoch from wanted.every)) + 1);
end
$$;
comment on function tidebase_private.next_time(tidebase.schedules, timestamptz) is 'The first fire time of a schedule after a moment; NULL: never.';

create or replace function tidebase_private.fire_id(name text, fires_at timestamptz)
returns text
language sql immutable
as $$
  select format('sched:%s:%s', name, to_char(fires_at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"'));
$$;
comment on function tidebase_private.fire_id(text, timestamptz) is 'The id of the run of a fire time.';

-- Where there are several databases, the run lies beside its queue, as its id then says.
create or replace function tidebase_private.id_of_fire(wanted tidebase.schedules, fires_at timestamptz)
returns text
language sql stable
as $$
  select tidebase_private.fire_id(wanted.schedule, fires_at)
    || case when tidebase_private.is_shard() then format('{queue:%s}', wanted.queue) else '' end;
$$;
comment on function tidebase_private.id_of_fire(tidebase.schedules, timestamptz) is
  'The id of the run of a fire time; where the database is one of several, with the tag of its queue.';

-- Spread by the name and the time: the same for whoever computes it.
create or replace function tidebase_private.jittered(wanted tidebase.schedules, fires_at timestamptz)
returns timestamptz
language sql immutable
as $$
  select fires_at + wanted.jitter * (('x' || left(encode(sha256(convert_to(tidebase_private.fire_id(wanted.schedule, fires_at), 'UTF8')), 'hex'), 7))::bit(28)::integer / 268435456.0);
$$;
comment on function tidebase_private.jittered(tidebase.schedules, timestamptz) is 'When the run of a fire time may be taken up.';

create or replace function tidebase_private.is_over(run_id text)
returns boolean
language sql stable
as $$
  select coalesce((
    select h.status in ('completed', 'failed', 'cancelled') from tidebase.run_heads h where h.run_id = is_over.run_id), true);
$$;
comment on function tidebase_private.is_over(text) is 'Whether a run has ended, or is not there.';

-- Enqueues the run of one fire time, unless it is there, or the run before it is not over and that is to count.
create or replace function tidebase_private.fire(wanted tidebase.schedules, fires_at timestamptz)
returns text
language plpgsql volatile
as $$
declare
  id text := tidebase_private.id_of_fire(wanted, fires_at);
  run_at timestamptz := tidebase_private.jittered(wanted, fires_at);
begin
  if exists (select from tidebase.run_heads h where h.run_id = id) then
    return null;
  elsif wanted.overlap <> 'allow' and not tidebase_private.is_over(wanted.last_run_id) then
    if wanted.overlap = 'skip' then
      return null;
    end if;
    perform tidebase.cancel_run(wanted.last_run_id, format('schedule %s fires again', wanted.schedule), 'tidebase');
  end if;
  perform tidebase.enqueue_run(wanted.workflow, wanted.input, wanted.queue, id, wanted.metadata, wanted.priority,
    run_at => case when run_at > clock_timestamp() then run_at end, key => wanted.key, max_attempts => wanted.max_attempts);
  return id;
end
$$;
comment on function tidebase_private.fire(tidebase.schedules, timestamptz) is
  'Enqueues the run of a fire time and returns its id; NULL when there is none to enqueue.';

-- The fire times that a schedule still has to answer for, oldest first, up to a hundred; what catch_up passes over is not among them.
create or replace function tidebase_private.times_to_fire(wanted tidebase.schedules, until timestamptz)
returns timestamptz[]
language plpgsql stable
as $$
declare
  oldest timestamptz := greatest(wanted.fired_at, until - case wanted.catch_up when 'none' then interval '1 minute' else wanted.catch_up_window end);
  since timestamptz := oldest;
  reach interval := interval '2 minutes';
  at timestamptz;
  times timestamptz[] := array[]::timestamptz[];
begin
  -- The latest one is looked for from the end: nobody counts the minutes of a year in which nobody looked.
  loop
    if wanted.catch_up <> 'all' then
      since := greatest(oldest, until - reach);
    end if;
    at := tidebase_private.next_time(wanted, since - interval '1 microsecond');
    exit when at <= until or since <= oldest;
    reach := reach * 4;
  end loop;
  while at <= until loop
    if at > wanted.fired_at then
      times := case wanted.catch_up when 'all' then times || at else array[at] end;
    end if;
    exit when cardinality(times) >= 100;
    at := tidebase_private.next_time(wanted, at);
  end loop;
  return times;
end
$$;
comment on function tidebase_private.times_to_fire(tidebase.schedules, timestamptz) is
  'The times up to a moment for which runs are to be enqueued.';

create or replace function tidebase_private.fire_schedule(wanted tidebase.schedules)
returns integer
language plpgsql volatile
as $$
declare
  as_of timestamptz := clock_timestamp();
  times timestamptz[] := tidebase_private.times_to_fire(wanted, as_of);
  at timestamptz;
  id text;
  fired integer := 0;
begin
  -- Whoever looks at the clock waits for nobody: where somebody is at the run that is to be cancelled, the next look does it.
  if wanted.overlap = 'cancel' and cardinality(times) > 0 and not tidebase_private.is_over(wanted.last_run_id) then
    perform from tidebase.run_heads h where h.run_id = wanted.last_run_id for no key update skip locked;
    if not found then
      update tidebase.schedules s set next_at = clock_timestamp() + interval '1 second' where s.schedule = wanted.schedule;
      return 0;
    end if;
  end if;
  foreach at in array times loop
    id := tidebase_private.fire(wanted, at);
    if id is not null then
      wanted.last_run_id := id;
      fired := fired + 1;
    end if;
  end loop;
  wanted.fired_at := case when cardinality(times) >= 100 then times[100] else as_of end;
  update tidebase.schedules s
  set fired_at = wanted.fired_at, last_run_id = wanted.last_run_id, failure = null,
      next_at = tidebase_private.next_time(wanted, wanted.fired_at)
  where s.schedule = wanted.schedule;
  return fired;
end
$$;
comment on function tidebase_private.fire_schedule(tidebase.schedules) is
  'Fires what is due of one schedule and returns how many runs that made. The caller holds the lock of its row.';

-- A schedule that cannot fire keeps no other waiting.
create or replace function tidebase_private.fire_due(max integer)
returns integer
language plpgsql volatile
as $$
declare
  as_of timestamptz := clock_timestamp();
  wanted tidebase.schedules;
  fired integer := 0;
begin
  for wanted in
    select s.* from tidebase.schedules s
    where s.next_at <= as_of
    order by s.next_at
    limit fire_due.max
    for no key update skip locked
  loop
    exit when fired >= fire_due.max;  -- whoever missed much is fired by several, each for a while
    begin
      fired := fired + tidebase_private.fire_schedule(wanted);
    exception when others then
      if tidebase_private.is_passing(sqlstate) then
        raise;
      end if;
      update tidebase.schedules s set failure = left(sqlerrm, 1000), next_at = clock_timestamp() + interval '1 minute'
      where s.schedule = wanted.schedule;
    end;
  end loop;
  return fired;
end
$$;
comment on function tidebase_private.fire_due(integer) is 'Fires schedules that are due, up to max of them, and no more when that has made max runs; how many that made.';

create or replace function tidebase_private.require_schedule(wanted tidebase.schedules)
returns void
language plpgsql volatile
as $$
begin
  perform tidebase_private.require_name(wanted.schedule, 'name', 200);
  perform tidebase_private.require_name(wanted.workflow, 'workflow', 255);
  perform tidebase_private.require_queue(wanted.queue);
  perform tidebase_private.require_priority(wanted.priority);
  if wanted.key is not null then
    perform tidebase_private.require_name(wanted.key, 'key', 255);
  end if;
  if (wanted.cron is null) = (wanted.every is null) then
    perform tidebase_private.raise_invalid('cron', 'or every must be given, and not both');
  elsif wanted.overlap not in ('allow', 'skip', 'cancel') then
    perform tidebase_private.raise_invalid('overlap', 'must be allow, skip or cancel');
  elsif wanted.catch_up not in ('none', 'last', 'all') then
    perform tidebase_private.raise_invalid('catch_up', 'must be none, last or all');
  elsif wanted.max_attempts not between 1 and 1000 then
    perform tidebase_private.raise_invalid('max_attempts', 'must be a number from 1 to 1000');
  elsif jsonb_typeof(wanted.metadata) <> 'object' then
    perform tidebase_private.raise_invalid('metadata', 'must be a JSON object');
  elsif extract(year from wanted.every) <> 0 or extract(month from wanted.every) <> 0 then
    perform tidebase_private.raise_invalid('every', 'must have no months, which have no length: use cron');
  end if;
  perform tidebase_private.require_timezone(wanted.timezone);
  if wanted.cron is not null then
    perform tidebase_private.require_cron(wanted.cron);
  end if;
  perform tidebase_private.require_interval(coalesce(wanted.every, '1 hour'), 'every', '1 second', '3650 days');
  perform tidebase_private.require_interval(wanted.jitter, 'jitter', '0', '1 day');
  perform tidebase_private.require_interval(wanted.catch_up_window, 'catch_up_window', '1 minute', '3650 days');
  perform tidebase_private.require_moment(wanted.anchor, 'starts_at');
  perform tidebase_private.require_payload(wanted.input, 'input');
  perform tidebase_private.require_note(wanted.metadata, 'metadata');
end
$$;
comment on function tidebase_private.require_schedule(tidebase.schedules) is 'Raises TB002 unless a schedule can be kept.';

create or replace function tidebase.put_schedule(
  name text, workflow text, cron text default null, every interval default null, input jsonb default null,
  queue text default 'default', timezone text default 'UTC', overlap text default 'allow', catch_up text default 'last',
  catch_up_window interval default '1 day', jitter interval default '0', enabled boolean default true, key text default null,
  priority integer default 0, max_attempts integer default null, metadata jsonb default null, starts_at timestamptz default null)
returns timestamptz
language plpgsql volatile security definer
set search_path = pg_catalog, tidebase, pg_temp
as $$
declare
  wanted schedules;
  known schedules;
begin
  wanted.schedule := name;
  wanted.workflow := workflow;
  wanted.cron := cron;
  wanted.every := every;
  wanted.input := input;
  wanted.metadata := coalesce(metadata, '{}');
  wanted.queue := coalesce(queue, 'default');
  wanted.timezone := coalesce(timezone, 'UTC');
  wanted.overlap := coalesce(overlap, 'allow');
  wanted.catch_up := coalesce(catch_up, 'last');
  wanted.catch_up_window := coalesce(catch_up_window, '1 day');
  wanted.jitter := coalesce(jitter, '0');
  wanted.enabled := coalesce(enabled, true);
  wanted.key := key;
  wanted.priority := coalesce(priority, 0);
  wanted.max_attempts := max_attempts;
  wanted.anchor := starts_at;
  perform tidebase_private.require_schedule(wanted);
  perform tidebase_private.commit_durably();

  insert into schedules (schedule, workflow, metadata, queue, priority, cron, every, timezone, overlap, catch_up, catch_up_window, jitter,
    enabled, anchor, fired_at)
  values (name, wanted.workflow, wanted.metadata, wanted.queue, wanted.priority, wanted.cron, wanted.every, wanted.timezone, wanted.overlap,
    wanted.catch_up, wanted.catch_up_window, wanted.jitter, wanted.enabled, coalesce(starts_at, date_trunc('second', clock_timestamp())),
    clock_timestamp())
  on conflict on constraint schedules_pkey do nothing;
  select s.* into strict known from schedules s where s.schedule = name for no key update;
  wanted.anchor := coalesce(starts_at, known.anchor);
  -- What it has missed stays missed while its times are the same: a program that starts says the same each time.
  wanted.fired_at := case
    when (wanted.cron, wanted.every, wanted.timezone, wanted.anchor, wanted.enabled)
      is not distinct from (known.cron, known.every, known.timezone, known.anchor, known.enabled) then known.fired_at
    else clock_timestamp() end;
  wanted.fired_at := greatest(wanted.fired_at, starts_at - interval '1 microsecond');
  wanted.next_at := case when wanted.enabled then tidebase_private.next_time(wanted, wanted.fired_at) end;
  update schedules s
  set workflow = wanted.workflow, input = wanted.input, metadata = wanted.metadata, queue = wanted.queue, key = wanted.key,
      priority = wanted.priority, max_attempts = wanted.max_attempts, cron = wanted.cron, every = wanted.every,
      timezone = wanted.timezone, overlap = wanted.overlap, catch_up = wanted.catch_up, catch_up_window = wanted.catch_up_window,
      jitter = wanted.jitter, enabled = wanted.enabled, anchor = wanted.anchor, fired_at = wanted.fired_at,
      next_at = wanted.next_at, failure = null, updated_at = clock_timestamp()
  where s.schedule = name;
  return wanted.next_at;
end
$$;
comment on function tidebase.put_schedule(text, text, text, interval, jsonb, text, text, text, text, interval, interval, boolean, text, integer, integer, jsonb, timestamptz) is
  'Makes a schedule, or makes the one with this name (1 to 200 bytes) what is said here, and returns when it fires next; NULL: it is not enabled. cron: five fields in the time zone, see next_fires; or every: 1 second to 10 years, counted from starts_at, or from when it was made. Each time enqueues a run of the workflow whose id is sched:<name>:<the time in UTC>. overlap: what happens when the run before is not over: allow (both), skip (this time is passed over), cancel (the one before is cancelled). catch_up: what happens to times at which nobody looked: none (a time more than a minute ago is passed over), last (the latest, if it is not longer ago than catch_up_window), all (each within it, oldest first). jitter: up to so much later, spread by name and time. A schedule that is put again as it was goes on as it was; where its times change, or it is enabled, they count from now on. The rest is as for enqueue_run. Errors: TB002.';

create or replace function tidebase.delete_schedule(name text)
returns boolean
language plpgsql volatile security definer
set search_path = pg_catalog, tidebase, pg_temp
as $$
begin
  perform tidebase_private.require_name(name, 'name', 200);
  perform tidebase_private.commit_durably();
  delete from schedules s where s.schedule = delete_schedule.name;
  return found;
end
$$;
comment on function tidebase.delete_schedule(text) is 'Removes a schedule; the runs that it made stay. False when there was none. Errors: TB002.';

create or replace function tidebase.trigger_schedule(name text, run_id text default null, input jsonb default null)
returns text
language plpgsql volatile security definer
set search_path = pg_catalog, tidebase, pg_temp
as $$
declare
  wanted schedules;
begin
  select s.* into wanted from schedules s where s.schedule = trigger_schedule.name;
  if not found then
    perform tidebase_private.raise_schedule_not_found(name);
  end if;
  return (enqueue_run(wanted.workflow, coalesce(input, wanted.input), wanted.queue, run_id, wanted.metadata, wanted.priority,
    key => wanted.key, max_attempts => wanted.max_attempts)).run_id;
end
$$;
comment on function tidebase.trigger_schedule(text, text, jsonb) is
  'Enqueues a run of a schedule now, besides its times, also where it is disabled; returns its id. run_id: by which the call may be made again; input: another one than the schedule''s. Errors: TB002, TB006, TB012.';

create or replace function tidebase.backfill_schedule(name text, since timestamptz, until timestamptz, max integer default 1000)
returns setof text
language plpgsql volatile security definer rows 100
set search_path = pg_catalog, tidebase, pg_temp
as $$
declare
  wanted schedules;
  at timestamptz;
  id text;
  made integer := 0;
begin
  max := coalesce(max, 1000);
  select s.* into wanted from schedules s where s.schedule = backfill_schedule.name;
  if not found then
    perform tidebase_private.raise_schedule_not_found(name);
  elsif max not between 1 and 10000 then
    perform tidebase_private.raise_invalid('max', 'must be a number from 1 to 10000');
  elsif since is null or until is null or since > until then
    perform tidebase_private.raise_invalid('since', 'and until must be given, since not after until');
  end if;
  perform tidebase_private.require_moment(since, 'since');
  perform tidebase_private.require_moment(until, 'until');
  wanted.overlap := 'allow';
  at := tidebase_private.next_time(wanted, since - interval '1 microsecond');
  while at < until and made < max loop
    id := tidebase_private.fire(wanted, at);
    if id is not null then
      made := made + 1;
      return next id;
    end if;
    at := tidebase_private.next_time(wanted, at);
  end loop;
end
$$;
comment on function tidebase.backfill_schedule(text, timestamptz, timestamptz, integer) is
  'Enqueues the runs of a schedule''s times from since on and before until that are not there yet, up to max (1 to 10000), whatever overlap says; returns their ids. Call it again while it returns max. Errors: TB002, TB012.';

create or replace view tidebase.schedule_overview with (security_barrier = true) as
  select
    s.schedule as name,
    s.workflow,
    s.input,
    s.metadata,
    s.queue,
    s.key,
    s.priority,
    s.max_attempts,
    s.cron,
    s.every,
    s.timezone,
    s.overlap,
    s.catch_up,
    s.catch_up_window,
    s.jitter,
    s.enabled,
    s.next_at,
    s.last_run_id,
    h.status as last_status,
    s.failure,
    s.created_at,
    s.updated_at,
    greatest(s.next_at - clock_timestamp(), '0') as next_in
  from tidebase.schedules s
  left join tidebase.run_heads h on h.run_id = s.last_run_id;
comment on view tidebase.schedule_overview is
  'The schedules: what they enqueue, by which clock, when next (NULL: disabled, or never again) and in how long, by the clock of the database, the latest run they made and how that is, and what went wrong when one was to fire last.';

select tidebase_private.allow('function tidebase.put_schedule', 'operator');
select tidebase_private.allow('function tidebase.delete_schedule', 'operator');
select tidebase_private.allow('function tidebase.trigger_schedule', 'operator');
select tidebase_private.allow('function tidebase.backfill_schedule', 'operator');
select tidebase_private.allow('table tidebase.schedule_overview', 'worker', 'approver', 'operator', 'reader');
