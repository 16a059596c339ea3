-- Limits of queues: how many of a queue's runs, or of those with one key, are at work at once, and start within a period.
--
-- The row of a limited queue is locked for the moment of a grant, before any head: there grants are given one after the other, each
-- counts what runs, and what ends meanwhile only makes room. So a limit is never exceeded, and costs nothing where none is set.

create or replace function tidebase_private.has_limits(queue tidebase.queues)
returns boolean
language sql immutable
as $$
  select coalesce(queue.paused or coalesce(queue.concurrency, queue.key_concurrency, queue.rate, queue.key_rate) is not null, false);
$$;
comment on function tidebase_private.has_limits(tidebase.queues) is 'Whether leases of this queue are counted, or none is granted now.';

-- What is at work already counts: of a queue without a limit nobody has written it down. A claim that was under way when the limit
-- was set is seen when it commits, so this is done again for a while.
create or replace function tidebase_private.adopt_leases(queue text)
returns void
language sql volatile
set enable_seqscan = off
as $$
  insert into tidebase.slots (run_id, lease_token, queue, key)
  select h.run_id, h.lease_token, r.queue, r.queue_key
  from tidebase.run_heads h
  join tidebase.runs r on r.run_id = h.run_id
  where lower(h.status) = 'running' and h.in_queue and r.queue = adopt_leases.queue
  on conflict on constraint slots_pkey do nothing;
$$;
comment on function tidebase_private.adopt_leases(text) is 'Counts the leases of a queue that were granted while it had no limits.';

-- The row of a limited queue, locked; of any other without a lock.
create or replace function tidebase_private.lock_queue(queue text)
returns tidebase.queues
language plpgsql volatile
as $$
declare
  settings tidebase.queues;
begin
  select q.* into settings from tidebase.queues q where q.queue = lock_queue.queue;
  if tidebase_private.has_limits(settings) then
    select q.* into settings from tidebase.queues q where q.queue = lock_queue.queue for no key update;
    if settings.updated_at > clock_timestamp() - interval '1 minute' then
      perform tidebase_private.adopt_leases(queue);
    end if;
  end if;
  return settings;
end
$$;
comment on function tidebase_private.lock_queue(text) is 'What a queue may do; where it has limits, nobody else takes its runs until the transaction is over.';

-- A slot means something while its lease is the run's. One whose lease has run out counts until somebody takes the run over: its
-- worker may be alive.
create or replace function tidebase_private.free_slots(queue text, key text default null)
returns void
language sql volatile
as $$
  delete from tidebase.slots s
  using (
    select t.run_id from tidebase.slots t
    left join tidebase.run_heads h on h.run_id = t.run_id and h.status = 'running' and h.lease_token = t.lease_token
    where t.queue = free_slots.queue and (free_slots.key is null or t.key = free_slots.key) and h.run_id is null) over
  where s.run_id = over.run_id;
$$;
comment on function tidebase_private.free_slots(text, text) is 'Forgets the slots of leases that are over. The caller holds the queue''s lock.';

create or replace function tidebase_private.starts_within(queue text, key text, period interval)
returns bigint
language sql volatile
as $$
  select case when key is null
    then (select count(*) from tidebase.queue_starts s
      where s.queue = starts_within.queue and s.started_at > clock_timestamp() - period)
    else (select count(*) from tidebase.queue_starts s
      where s.queue = starts_within.queue and s.key = starts_within.key and s.started_at > clock_timestamp() - period)
    end;
$$;
comment on function tidebase_private.starts_within(text, text, interval) is 'How many leases were granted in the period up to now.';

-- How many more runs of a queue may be leased now, besides `own`, the run that is asked about: it may be in its slot.
create or replace function tidebase_private.room_of(queue tidebase.queues, own text default null)
returns integer
language plpgsql volatile
as $$
declare
  room integer := 2147483647;
begin
  if queue.paused then
    return 0;
  end if;
  if queue.concurrency is not null then
    perform tidebase_private.free_slots(queue.queue);
    room := queue.concurrency - (
      select count(*) from tidebase.slots s where s.queue = room_of.queue.queue and s.run_id is distinct from own)::integer;
  end if;
  if queue.rate is not null then
    room := least(room, queue.rate - tidebase_private.starts_within(queue.queue, null, queue.rate_period)::integer);
  end if;
  return greatest(room - tidebase_private.in_flight(queue.queue, null, own), 0);
end
$$;
comment on function tidebase_private.room_of(tidebase.queues, text) is 'How many leases the queue''s limits allow now, besides those that an endpoint was told of. The caller holds the queue''s lock.';

create or replace function tidebase_private.room_of_key(queue tidebase.queues, key text, own text default null)
returns integer
language plpgsql volatile
as $$
declare
  room integer := 2147483647;
begin
  if key is null then
    return room;
  end if;
  if queue.key_concurrency is not null then
    perform tidebase_private.free_slots(queue.queue, key);
    room := queue.key_concurrency - (
      select count(*) from tidebase.slots s
      where s.queue = room_of_key.queue.queue and s.key = room_of_key.key and s.run_id is distinct from own)::integer;
  end if;
  if queue.key_rate is not null then
    room := least(room, queue.key_rate - tidebase_private.starts_within(queue.queue, key, queue.rate_period)::integer);
  end if;
  return greatest(room - tidebase_private.in_flight(queue.queue, key, own), 0);
end
$$;
comment on function tidebase_private.room_of_key(tidebase.queues, text, text) is 'As room_of, for the runs with one key.';

-- Written down after the grants, so that what is counted is never earlier than what can be seen of it.
create or replace function tidebase_private.take_slots(queue tidebase.queues, run_ids text[])
returns void
language plpgsql volatile
as $$
begin
  if coalesce(queue.concurrency, queue.key_concurrency) is not null then
    insert into tidebase.slots as s (run_id, lease_token, queue, key)
    select h.run_id, h.lease_token, take_slots.queue.queue, r.queue_key
    from tidebase.run_heads h
    join tidebase.runs r on r.run_id = h.run_id
    where h.run_id = any (take_slots.run_ids)
    on conflict on constraint slots_pkey do update
    set lease_token = excluded.lease_token, queue = excluded.queue, key = excluded.key;
  end if;
  if coalesce(queue.rate, queue.key_rate) is not null then
    delete from tidebase.queue_starts s
    where s.queue = take_slots.queue.queue and s.started_at < clock_timestamp() - queue.rate_period;
    insert into tidebase.queue_starts (queue, started_at, key)
    select take_slots.queue.queue, clock_timestamp(), r.queue_key from tidebase.runs r where r.run_id = any (take_slots.run_ids);
  end if;
end
$$;
comment on function tidebase_private.take_slots(tidebase.queues, text[]) is
  'Counts leases that were just granted towards the limits of their queue. The caller holds the queue''s lock.';

-- For who asks for one run by its id: the limits of its queue hold for everybody. The queue's lock comes before the head's.
create or replace function tidebase_private.may_start(run_id text)
returns tidebase.queues
language plpgsql volatile
as $$
declare
  run tidebase.runs;
  settings tidebase.queues;
begin
  select r.* into run from tidebase.runs r where r.run_id = may_start.run_id;
  settings := tidebase_private.lock_queue(run.queue);
  settings.queue := run.queue;  -- also where it has no row
  if tidebase_private.has_limits(settings)
    and least(tidebase_private.room_of(settings, run_id), tidebase_private.room_of_key(settings, run.queue_key, run_id)) < 1
  then
    settings.paused := true;
  else
    settings.paused := false;
  end if;
  return settings;
end
$$;
comment on function tidebase_private.may_start(text) is
  'The queue of a run, locked where it has limits; paused stands for: no lease may be granted now.';
