-- Enqueueing: a run that any worker of its queue may take up. It belongs to the caller's transaction.

create or replace function tidebase_private.require_run_at(run_at timestamptz, delay interval)
returns timestamptz
language plpgsql volatile
as $$
begin
  if run_at is not null and delay is not null then
    perform tidebase_private.raise_invalid('delay', 'must not be combined with run_at');
  end if;
  perform tidebase_private.require_moment(run_at, 'run_at');
  perform tidebase_private.require_interval(coalesce(delay, '0'), 'delay', '0', '3650 days');
  return coalesce(run_at, clock_timestamp() + delay);
end
$$;
comment on function tidebase_private.require_run_at(timestamptz, interval) is
  'From when a run may be taken up, NULL: at once. Errors: TB002.';

create or replace function tidebase_private.require_priority(priority integer)
returns void
language plpgsql volatile
as $$
begin
  if priority not between -32768 and 32767 then
    perform tidebase_private.raise_invalid('priority', 'must be a number from -32768 to 32767');
  end if;
end
$$;
comment on function tidebase_private.require_priority(integer) is 'Raises TB002 unless it is NULL or a priority.';

-- Puts a run that nobody has taken up yet into a queue. The caller has just made it, or holds its head's lock.
create or replace function tidebase_private.join_queue(run_id text, queue text, priority integer, key text, run_at timestamptz)
returns void
language plpgsql volatile
as $$
declare
  waits boolean := coalesce(run_at > clock_timestamp(), false);
  moment timestamptz := case when waits then run_at else clock_timestamp() end;
begin
  update tidebase.run_heads h
  set status = 'queued', in_queue = true, available_at = case when waits then run_at end
  where h.run_id = join_queue.run_id;
  insert into tidebase.queue_entries (run_id, ready_at, turn, place, priority, pinned, queue, workflow, key)
  select r.run_id, moment, moment,
    case when not waits then tidebase_private.next_place(join_queue.queue, join_queue.priority, join_queue.key) end,
    join_queue.priority, r.pinned, join_queue.queue, r.workflow, join_queue.key
  from tidebase.runs r where r.run_id = join_queue.run_id;
  if not waits then
    perform tidebase_private.ring_queue(queue);
  end if;
end
$$;
comment on function tidebase_private.join_queue(text, text, integer, text, timestamptz) is
  'Makes a run queued, and writes its entry.';

-- The one run that has a dedupe key, if it is not over; else the key is the caller's, for the run that it is about to make. Each
-- look is a statement of its own: it sees what the one before it has waited for.
create or replace function tidebase_private.take_dedupe_key(queue text, dedupe_key text, run_id text, latest_at timestamptz)
returns tidebase.dedupe_keys
language plpgsql volatile
as $$
declare
  taken tidebase.dedupe_keys;
begin
  for look in 1..100 loop
    insert into tidebase.dedupe_keys (queue, dedupe_key, run_id, latest_at)
    values (take_dedupe_key.queue, take_dedupe_key.dedupe_key, take_dedupe_key.run_id, take_dedupe_key.latest_at)
    on conflict on constraint dedupe_keys_pkey do nothing;
    if found then
      return null;
    end if;
    select d.* into taken from tidebase.dedupe_keys d
    where d.queue = take_dedupe_key.queue and d.dedupe_key = take_dedupe_key.dedupe_key
    for no key update;
    exit when found;  -- else it was purged in between
  end loop;
  if taken.run_id is null then
    perform tidebase_private.raise('40001', format('the key %L of queue %L is taken and given up again at this moment', dedupe_key, queue),
      jsonb_build_object('queue', queue, 'dedupe_key', dedupe_key), 'Make the call again.');
  end if;
  if taken.run_id <> run_id and exists (
    select from tidebase.run_heads h
    join tidebase.runs r on r.run_id = h.run_id and r.queue = taken.queue and r.dedupe_key = taken.dedupe_key
    where h.run_id = taken.run_id and h.status not in ('completed', 'failed', 'cancelled'))
  then
    return taken;
  end if;
  update tidebase.dedupe_keys d set run_id = take_dedupe_key.run_id, latest_at = take_dedupe_key.latest_at
  where d.queue = take_dedupe_key.queue and d.dedupe_key = take_dedupe_key.dedupe_key;
  return null;
end
$$;
comment on function tidebase_private.take_dedupe_key(text, text, text, timestamptz) is
  'The row of the run that has this key and is not over; a row of NULLs when the key is now that of the given run.';

-- A failed run has lost its key to whoever came meanwhile. The key's lock comes before the head's.
create or replace function tidebase_private.take_key_back(run_id text)
returns tidebase.dedupe_keys
language plpgsql volatile
as $$
declare
  run tidebase.runs;
  taken tidebase.dedupe_keys;
begin
  select r.* into run from tidebase.runs r where r.run_id = take_key_back.run_id;
  if run.queue is null or run.dedupe_key is null then
    return null;
  end if;
  taken := tidebase_private.take_dedupe_key(run.queue, run.dedupe_key, run_id, null);
  delete from tidebase.dedupe_keys d using tidebase.runs r
  where r.run_id = take_key_back.run_id and r.queue <> run.queue  -- moved while the key was waited for: then it has it there
    and d.queue = run.queue and d.dedupe_key = run.dedupe_key and d.run_id = r.run_id;
  return taken;
end
$$;
comment on function tidebase_private.take_key_back(text) is
  'For a run that is to go on after it has failed: the row of another run that has its dedupe_key and is not over; a row of NULLs when there is none.';

-- Puts a duplicate's input and time in the place of those of the run that still waits.
create or replace function tidebase_private.replace_queued(taken tidebase.dedupe_keys, workflow text, input jsonb, run_at timestamptz)
returns void
language plpgsql volatile
as $$
declare
  head tidebase.run_heads := tidebase_private.lock_head(taken.run_id);
  known tidebase.runs;
begin
  if head.status <> 'queued' or head.attempt > 0 then
    return;  -- it is at work with what it has
  end if;
  select r.* into known from tidebase.runs r where r.run_id = taken.run_id;
  perform tidebase_private.require_same(known, workflow, null);
  run_at := least(coalesce(run_at, clock_timestamp()), taken.latest_at);
  update tidebase.runs r set input = replace_queued.input where r.run_id = taken.run_id;
  perform tidebase_private.leave_queue(head);
  perform tidebase_private.join_queue(taken.run_id, known.queue, known.priority, known.queue_key, run_at);
  perform tidebase_private.emit(tidebase_private.advance(taken.run_id), 'run.replaced', jsonb_build_object('run_at', run_at));
end
$$;
comment on function tidebase_private.replace_queued(tidebase.dedupe_keys, text, jsonb, timestamptz) is
  'Gives a run that nobody has begun another input and time. Errors: TB006 (another workflow).';

create or replace function tidebase_private.answer_duplicate(
  taken tidebase.dedupe_keys, on_duplicate text, workflow text, input jsonb, run_at timestamptz)
returns tidebase.enqueuing
language plpgsql volatile
as $$
begin
  if on_duplicate = 'reject' then
    perform tidebase_private.raise('TB013', format('queue %L has a run with the key %L that is not over: %s',
        taken.queue, taken.dedupe_key, taken.run_id),
      jsonb_build_object('queue', taken.queue, 'dedupe_key', taken.dedupe_key, 'run_id', taken.run_id),
      'Wait until it is over, or enqueue with on_duplicate => return or replace.');
  elsif on_duplicate = 'replace' then
    perform tidebase_private.replace_queued(taken, workflow, input, run_at);
  end if;
  return row(taken.run_id, true)::tidebase.enqueuing;
end
$$;
comment on function tidebase_private.answer_duplicate(tidebase.dedupe_keys, text, text, jsonb, timestamptz) is
  'What enqueue_run does when the key is taken. Errors: TB006, TB013.';

create or replace function tidebase.enqueue_run(
  workflow text, input jsonb default null, queue text default 'default', run_id text default null, metadata jsonb default null,
  priority integer default 0, run_at timestamptz default null, delay interval default null, key text default null,
  dedupe_key text default null, on_duplicate text default 'return', max_wait interval default null,
  max_attempts integer default null, retry_delay interval default null, deadline timestamptz default null,
  recovery_webhook text default null, budget jsonb default null, pin boolean default false, traceparent text default null)
returns tidebase.enqueuing
language plpgsql volatile security definer
set search_path = pg_catalog, tidebase, pg_temp
set enable_seqscan = off
as $$
declare
  id text := coalesce(run_id, new_run_id(beside => case
    when dedupe_key is not null or tidebase_private.is_shard() then format('{queue:%s}', coalesce(queue, 'default')) end));
  settings queues;
  taken dedupe_keys;
begin
  queue := coalesce(queue, 'default');
  priority := coalesce(priority, 0);
  on_duplicate := coalesce(on_duplicate, 'return');
  perform tidebase_private.require_queue(queue);
  perform tidebase_private.require_priority(priority);
  run_at := tidebase_private.require_run_at(run_at, delay);
  if key is not null and not tidebase_private.is_name(key, 255) then
    perform tidebase_private.require_name(key, 'key', 255);
  elsif on_duplicate not in ('return', 'replace', 'reject') then
    perform tidebase_private.raise_invalid('on_duplicate', 'must be return, replace or reject');
  elsif max_wait is not null and (on_duplicate <> 'replace' or dedupe_key is null) then
    perform tidebase_private.raise_invalid('max_wait', 'needs a dedupe_key and on_duplicate => replace');
  end if;
  perform tidebase_private.require_interval(coalesce(max_wait, '0'), 'max_wait', '0', '3650 days');
  if exists (select from run_heads h where h.run_id = id) then
    return row(create_run(workflow, input, id), true)::enqueuing;  -- the same run, or TB006
  end if;
  if dedupe_key is not null then
    perform tidebase_private.require_name(dedupe_key, 'dedupe_key', 255);
    perform tidebase_private.require_payload(input, 'input');
    taken := tidebase_private.take_dedupe_key(queue, dedupe_key, id, clock_timestamp() + max_wait);
    if taken.run_id is not null and on_duplicate = 'replace' then
      perform from run_heads h where h.run_id = taken.run_id for no key update;  -- who has it may be about to end the run
      taken := tidebase_private.take_dedupe_key(queue, dedupe_key, id, clock_timestamp() + max_wait);
    end if;
    if taken.run_id is not null then
      return tidebase_private.answer_duplicate(taken, on_duplicate, workflow, input, run_at);
    end if;
  end if;
  select q.* into settings from queues q where q.queue = enqueue_run.queue;
  perform create_run(workflow, input, id, metadata, deadline, coalesce(max_attempts, settings.max_attempts, 5),
    coalesce(retry_delay, settings.retry_delay), recovery_webhook, budget, traceparent);
  update runs r
  set queue = enqueue_run.queue, priority = enqueue_run.priority, queue_key = enqueue_run.key,
      dedupe_key = enqueue_run.dedupe_key, pinned = coalesce(pin, false)
  where r.run_id = id and r.queue is null;
  if not found then
    return row(id, true)::enqueuing;  -- somebody made it meanwhile
  end if;
  perform tidebase_private.join_queue(id, queue, priority, key, run_at);
  perform tidebase_private.emit(tidebase_private.advance(id), 'run.enqueued', jsonb_strip_nulls(jsonb_build_object(
    'queue', queue, 'priority', priority, 'key', key, 'dedupe_key', dedupe_key, 'run_at', run_at)));
  return row(id, false)::enqueuing;
end
$$;
comment on function tidebase.enqueue_run(text, jsonb, text, text, jsonb, integer, timestamptz, interval, text, text, text, interval, integer, interval, timestamptz, text, jsonb, boolean, text) is
  'Makes a run that any worker of the queue may take up with claim_runs, and returns its id. It belongs to the caller''s transaction: it is seen when that commits. queue: 1 to 255 bytes; it need not be made before. priority (-32768 to 32767): higher ones first; within one the queue is fair between keys, and takes the oldest of a key first. run_at, or delay: from when it may be taken up. dedupe_key: at most one run of the queue with this key is not over (completed, failed or cancelled); on_duplicate says what another one gets: return (the run that is there, the default), replace (the same, with the new input and time while nobody has begun it: debounce; max_wait: how long at most it is put off from the first call on), reject (TB013). max_attempts: by default the queue''s, or 5; retry_delay likewise. pin: only workers with the code_version of its first attempt go on with it. The rest is as for create_run; an id that exists is the same run. deduplicated: whether the run was there before. Errors: TB002, TB006, TB013.';

-- Each an object, with no member that enqueue_run does not have as a parameter.
create or replace function tidebase_private.require_members(runs jsonb)
returns void
language plpgsql volatile
as $$
declare
  known constant text[] := array['workflow', 'input', 'queue', 'run_id', 'metadata', 'priority', 'run_at', 'delay', 'key',
    'dedupe_key', 'on_duplicate', 'max_wait', 'max_attempts', 'retry_delay', 'deadline', 'recovery_webhook', 'budget', 'pin', 'traceparent'];
  wrong record;
begin
  select e.place - 1 as place, jsonb_typeof(e.run) as type, (
    select min(k) from jsonb_object_keys(case when jsonb_typeof(e.run) = 'object' then e.run else '{}' end) k where k <> all (known)) as member
  into wrong
  from jsonb_array_elements(runs) with ordinality e (run, place)
  where jsonb_typeof(e.run) <> 'object' or exists (select from jsonb_object_keys(e.run) k where k <> all (known))
  limit 1;
  if found and wrong.type <> 'object' then
    perform tidebase_private.raise_invalid(format('runs[%s]', wrong.place), 'must be a JSON object');
  elsif found then
    perform tidebase_private.raise_invalid(format('runs[%s]', wrong.place),
      format('must have no member %L: they are the parameters of enqueue_run', left(wrong.member, 100)));
  end if;
end
$$;
comment on function tidebase_private.require_members(jsonb) is 'Raises TB002 for the first element that is no object of parameters of enqueue_run.';

-- Many at once, by one statement a table. What needs a look at others, or at a run that may exist, goes one by one.
create or replace function tidebase.enqueue_runs(runs jsonb)
returns setof tidebase.enqueuing
language plpgsql volatile security definer rows 1000
set search_path = pg_catalog, tidebase, pg_temp
set enable_seqscan = off
as $$
begin
  if jsonb_typeof(runs) is distinct from 'array' then
    perform tidebase_private.raise_invalid('runs', 'must be a JSON array of objects');
  elsif jsonb_array_length(runs) > 100000 then
    perform tidebase_private.raise_invalid('runs', 'must have no more than 100000 elements');
  end if;
  return query select * from tidebase_private.enqueue_all(runs);
end
$$;
comment on function tidebase.enqueue_runs(jsonb) is
  'Enqueues many runs in one call: an array of up to 100,000 objects whose members are the parameters of enqueue_run (intervals as text). Returns what that returns, in their order. All or none: one that is wrong raises, and says which. Errors: TB002, TB006, TB013.';

-- One by one, in their order, for what needs a look at others, and for what is wrong: the error says which it was.
create or replace function tidebase_private.enqueue_one_by_one(runs jsonb)
returns setof tidebase.enqueuing
language plpgsql volatile
as $$
declare
  item record;
  place integer;
  state text;
  message text;
  details text;
  advice text;
begin
  for item in
    select e.place, w.*
    from jsonb_array_elements(runs) with ordinality e (run, place)
    cross join lateral jsonb_to_record(e.run) w (workflow text, input jsonb, queue text, run_id text, metadata jsonb,
      priority integer, run_at timestamptz, delay interval, key text, dedupe_key text, on_duplicate text, max_wait interval,
      max_attempts integer, retry_delay interval, deadline timestamptz, recovery_webhook text, budget jsonb, pin boolean,
      traceparent text)
    order by e.place
  loop
    place := item.place::integer - 1;
    return next tidebase.enqueue_run(item.workflow, item.input, item.queue, item.run_id, item.metadata, item.priority, item.run_at,
      item.delay, item.key, item.dedupe_key, item.on_duplicate, item.max_wait, item.max_attempts, item.retry_delay, item.deadline,
      item.recovery_webhook, item.budget, item.pin, item.traceparent);
  end loop;
exception
  when data_exception then
    perform tidebase_private.raise_invalid('runs', format('must have members of the types of enqueue_run: %s', left(sqlerrm, 200)));
  when others then
    if sqlstate !~ '^TB' then
      raise;
    end if;
    get stacked diagnostics state = returned_sqlstate, message = message_text, details = pg_exception_detail, advice = pg_exception_hint;
    perform tidebase_private.raise(state, format('runs[%s]: %s', place, message), details::jsonb || jsonb_build_object('index', place), advice);
end
$$;
comment on function tidebase_private.enqueue_one_by_one(jsonb) is 'enqueue_run for each. Errors: TB002, TB006, TB013, each with the index.';

-- Whether nothing about a run needs a look: what is not clearly right here is enqueued, or refused, by enqueue_run.
create or replace function tidebase_private.is_plain(run jsonb)
returns boolean
language sql stable
as $$
  select case when jsonb_typeof(run) <> 'object' then false else
    pg_column_size(run) <= 3500 and octet_length(run::text) <= 4300
    and run - array['workflow', 'input', 'queue', 'metadata', 'priority', 'key', 'max_attempts', 'pin'] = '{}'
    and jsonb_typeof(run -> 'workflow') = 'string' and btrim(run ->> 'workflow') <> '' and octet_length(run ->> 'workflow') <= 255
    and coalesce(jsonb_typeof(run -> 'queue') = 'string' and btrim(run ->> 'queue') <> '' and octet_length(run ->> 'queue') <= 255, true)
    and coalesce(jsonb_typeof(run -> 'key') = 'string' and btrim(run ->> 'key') <> '' and octet_length(run ->> 'key') <= 255, true)
    and coalesce(jsonb_typeof(run -> 'metadata') = 'object', true)
    and coalesce(jsonb_typeof(run -> 'pin') = 'boolean', true)
    and coalesce(run ->> 'priority' ~ '^-?[0-9]{1,4}$', true)
    and coalesce(run ->> 'max_attempts' ~ '^[1-9][0-9]{0,2}$', true)
  end;
$$;
comment on function tidebase_private.is_plain(jsonb) is 'Whether a run can be enqueued together with others.';

-- As new_run_id makes them, but for a batch: what is random in them is drawn once, and a fraction of the millisecond stands where
-- RFC 9562 has room for it (section 6.2, method 3). So they are in their order, and go to the end of every index.
create or replace function tidebase_private.nth_run_id(seed bigint, microsecond bigint)
returns text
language sql immutable
as $$
  select 'run_' || (
    lpad(to_hex((microsecond / 1000 << 16) | (7 << 12) | (microsecond % 1000 * 4096 / 1000)), 16, '0')
    || substr('89ab', (microsecond & 3)::integer + 1, 1)
    || right(lpad(to_hex(hashint8extended(microsecond, seed)), 16, '0'), 15))::uuid;
$$;
comment on function tidebase_private.nth_run_id(bigint, bigint) is 'The id of a run that is made in this microsecond since 1970, of a batch with this seed.';

-- A batch is larger than the planner thinks: joined row by row, ten thousand runs of as many keys would take a hundred million looks;
-- and it stays in memory.
create or replace function tidebase_private.enqueue_all(runs jsonb)
returns setof tidebase.enqueuing
language plpgsql volatile rows 1000
set enable_nestloop = off
set work_mem = '64MB'
as $$
declare
  begun bigint := (extract(epoch from clock_timestamp()) * 1000000)::bigint;
  seed bigint := hashtextextended(gen_random_uuid()::text, 0);
  together boolean := tidebase_private.is_shard();
  plain boolean;
  named text[];
begin
  select bool_and(coalesce(tidebase_private.is_plain(e.run), false)),
    array_agg(distinct coalesce(case when jsonb_typeof(e.run) = 'object' then e.run ->> 'queue' end, 'default'))
  into plain, named
  from jsonb_array_elements(runs) e (run);
  if not plain then
    perform tidebase_private.require_members(runs);
    return query select * from tidebase_private.enqueue_one_by_one(runs);
    return;
  end if;
  perform tidebase_private.commit_durably();
  -- The moment grows by a microsecond from one to the next: it is what keeps them in their order.
  return query
    with wanted as materialized (
      select e.place, case when together
          then tidebase_private.in_bucket(tidebase_private.nth_run_id(seed, begun + e.place),
            tidebase_private.bucket_of_queue(coalesce(e.run ->> 'queue', 'default')))
          else tidebase_private.nth_run_id(seed, begun + e.place) end as run_id,
        timestamptz 'epoch' + (begun + e.place) * interval '1 microsecond' as created_at, e.run ->> 'workflow' as workflow,
        e.run -> 'input' as input, coalesce(e.run -> 'metadata', '{}') as metadata, coalesce(e.run ->> 'queue', 'default') as queue,
        coalesce((e.run ->> 'priority')::integer, 0) as priority, e.run ->> 'key' as key,
        coalesce((e.run ->> 'pin')::boolean, false) as pinned, (e.run ->> 'max_attempts')::integer as max_attempts
      from jsonb_array_elements(runs) with ordinality e (run, place)),
    settings as materialized (
      select n.queue, q.max_attempts, q.retry_delay
      from unnest(named) n (queue)
      left join tidebase.queues q on q.queue = n.queue),
    -- Where each lane, and each key of it, is: looked up once.
    lane as materialized (
      select k.queue, k.priority, coalesce(k.key, '') as key, tidebase_private.next_place(k.queue, k.priority, k.key) as place,
        jsonb_strip_nulls(jsonb_build_object('queue', k.queue, 'priority', k.priority, 'key', k.key)) as said
      from (select distinct w.queue, w.priority, w.key from wanted w) k),
    made as (
      insert into tidebase.runs (run_id, workflow, input, metadata, max_attempts, retry_delay, created_at, queue, priority, queue_key, pinned)
      select w.run_id, w.workflow, w.input, w.metadata, coalesce(w.max_attempts, s.max_attempts, 5), s.retry_delay, w.created_at, w.queue,
        w.priority, w.key, w.pinned
      from wanted w
      join settings s on s.queue = w.queue),
    headed as (
      insert into tidebase.run_heads (run_id, last_seq, durable_seq, status, in_queue, created_at, workflow_key)
      select w.run_id, 2, 2, 'queued', true, w.created_at, hashtextextended(w.workflow, 0) from wanted w),
    logged as (
      insert into tidebase.events (run_id, seq, type, payload)
      select w.run_id, e.seq, e.type, case e.seq when 1 then jsonb_build_object('workflow', w.workflow) else l.said end
      from wanted w
      join lane l on l.queue = w.queue and l.priority = w.priority and l.key = coalesce(w.key, '')
      cross join (values (1, 'run.created'), (2, 'run.enqueued')) e (seq, type)),
    turns as (
      select w.*, 0 as behind from wanted w where w.key is null
      union all
      select w.*, row_number() over (partition by w.queue, w.priority, w.key order by w.place) - 1 from wanted w where w.key is not null),
    entered as (
      insert into tidebase.queue_entries (run_id, ready_at, turn, place, priority, pinned, queue, workflow, key)
      select t.run_id, t.created_at, t.created_at, l.place + t.behind, t.priority, t.pinned, t.queue, t.workflow, t.key
      from turns t
      join lane l on l.queue = t.queue and l.priority = t.priority and l.key = coalesce(t.key, ''))
    select w.run_id, false from wanted w order by w.place;
  perform tidebase_private.ring_queue(n.queue) from unnest(named) n (queue);
end
$$;
comment on function tidebase_private.enqueue_all(jsonb) is 'What enqueue_runs does with an array that is not too long. Errors: TB002, TB006, TB013.';

select tidebase_private.allow('function tidebase.enqueue_run', 'worker');
select tidebase_private.allow('function tidebase.enqueue_runs', 'worker');
