-- Channels: whom to tell what happens to a run.
--
-- The log is the outbox. A channel is a cursor over it, so a worker writes nothing for it, however many there are, and
-- adding one to a run makes none of its steps slower. A dispatcher takes channels that are due, sends the events after the
-- cursor one by one, and moves it on. It may die at any moment: then its channel is due again when its claim runs out, at
-- the same event; a receiver may see an event twice, never one before another that comes first in the log.
--
-- Nobody tells a channel of new events, for that would be a write by the worker. One that has caught up is looked at again
-- after as long as it has been quiet, between one second and thirty, by an index over what is due. A dispatcher that
-- listens has its quiet runs watched (watch_run), and takes those for which the bell rings at once.

create or replace function tidebase_private.require_claim(max integer, ttl interval)
returns void
language plpgsql volatile
as $$
begin
  if max not between 1 and 1000 then
    perform tidebase_private.raise_invalid('max', 'must be a number from 1 to 1000');
  end if;
  perform tidebase_private.require_interval(ttl, 'ttl', '1 second', '1 day');
end
$$;
comment on function tidebase_private.require_claim(integer, interval) is
  'Raises TB002 unless so many deliveries may be claimed at once, for so long.';

create or replace function tidebase_private.require_channel(url text, secret text, events text[], type text)
returns void
language plpgsql volatile
as $$
begin
  if type <> 'webhook' then
    perform tidebase_private.raise_invalid('type', 'must be webhook');
  elsif url is null or url !~ '^https?://[^[:space:]]+$' or octet_length(url) > 4096 then
    perform tidebase_private.raise_invalid('url', 'must be an http or https URL of at most 4096 bytes');
  elsif secret is not null then
    perform tidebase_private.require_name(secret, 'secret', 1024);
  end if;
  perform tidebase_private.require_list(events, 'events');
  if cardinality(events) > 100 or exists (select from unnest(events) t (name) where not tidebase_private.is_name(t.name, 255)) then
    perform tidebase_private.raise_invalid('events', 'must be up to 100 types of events, each of 1 to 255 bytes');
  end if;
end
$$;
comment on function tidebase_private.require_channel(text, text, text[], text) is 'Raises TB002 unless a channel can be like this.';

create or replace function tidebase_private.lock_channel(run_id text, channel integer)
returns tidebase.channels
language plpgsql volatile
as $$
declare
  chosen tidebase.channels;
begin
  select c.* into chosen from tidebase.channels c
  where c.run_id = lock_channel.run_id and c.channel = lock_channel.channel
  for no key update;
  if not found then
    if not exists (select from tidebase.run_heads h where h.run_id = lock_channel.run_id) then
      perform tidebase_private.raise_run_not_found(run_id);
    end if;
    perform tidebase_private.raise('TB012', format('run %L has no channel %s', run_id, coalesce(channel::text, 'NULL')),
      jsonb_build_object('run_id', run_id, 'channel', channel), 'Channels are made by add_channel, and shown by list_channels.');
  end if;
  return chosen;
end
$$;
comment on function tidebase_private.lock_channel(text, integer) is
  'Takes the row lock of a channel. Who sends waits for no head, and who has that lock waits for nothing. Errors: TB001, TB012.';

-- One channel a URL, however often it is added: the lock of the head makes those who add wait for each other.
create or replace function tidebase.add_channel(
  run_id text, url text, secret text default null, events text[] default null, type text default 'webhook')
returns integer
language plpgsql volatile security definer
set search_path = pg_catalog, tidebase, pg_temp
set enable_seqscan = off
as $$
declare
  wanted text[] := nullif(events, '{}');
  number integer;
begin
  type := coalesce(type, 'webhook');
  perform tidebase_private.require_channel(url, secret, events, type);
  perform tidebase_private.commit_durably();
  perform tidebase_private.lock_head(run_id);
  select c.channel into number from channels c where c.run_id = add_channel.run_id and c.url = add_channel.url;
  if found then
    update channels c
    set status = 'active', failures = 0, failing_since = null, next_at = clock_timestamp(), finished_at = null
    where c.run_id = add_channel.run_id and c.channel = number and c.status = 'removed';
    update channels c set secret = add_channel.secret, events = wanted
    where c.run_id = add_channel.run_id and c.channel = number and (c.secret, c.events) is distinct from (add_channel.secret, wanted);
    return number;
  end if;
  select coalesce(max(c.channel), 0) + 1 into number from channels c where c.run_id = add_channel.run_id;
  if number > 100 then
    perform tidebase_private.raise_invalid('run_id', 'must be of a run that has had fewer than 100 channels');
  end if;
  insert into channels (run_id, channel, type, url, secret, events)
  values (add_channel.run_id, number, add_channel.type, add_channel.url, add_channel.secret, wanted)
  on conflict on constraint channels_pkey do nothing;  -- an older snapshot meets a serialization failure here
  return number;
end
$$;
comment on function tidebase.add_channel(text, text, text, text[], text) is
  'Lets a URL be told what happens to a run, from its first event on, and returns the number of the channel. Each event is posted as JSON, signed, in the order of the log, at least once; the channel is delivered when the run is over and its last event has arrived. secret: signs what is sent (1 to 1024 bytes), and is shown to nobody; NULL: the dispatcher''s own does. events: only those of these types, up to 100; NULL or none: all. type: webhook. The same URL is the same channel, up to 100 a run: added again it has the new secret and events, from where it stands. Errors: TB001, TB002.';

create or replace function tidebase.remove_channel(run_id text, channel integer)
returns boolean
language plpgsql volatile security definer
set search_path = pg_catalog, tidebase, pg_temp
set enable_seqscan = off
as $$
declare
  chosen channels := tidebase_private.lock_channel(run_id, channel);
begin
  update channels c
  set status = 'removed', secret = null, next_at = null, sending_seq = null, finished_at = coalesce(c.finished_at, clock_timestamp())
  where c.run_id = chosen.run_id and c.channel = chosen.channel and c.status <> 'removed';
  return found;
end
$$;
comment on function tidebase.remove_channel(text, integer) is
  'Sends nothing more to a channel, and forgets its secret; what is on its way may still arrive. False when it was removed before. Its URL added again goes on where it stood. Errors: TB001, TB012.';

create or replace function tidebase.retry_channel(run_id text, channel integer)
returns boolean
language plpgsql volatile security definer
set search_path = pg_catalog, tidebase, pg_temp
set enable_seqscan = off
as $$
declare
  chosen channels := tidebase_private.lock_channel(run_id, channel);
begin
  update channels c
  set status = 'active', failures = 0, failing_since = null, finished_at = null, next_at = clock_timestamp()
  where c.run_id = chosen.run_id and c.channel = chosen.channel
    and (c.status = 'failed' or c.status = 'active' and c.failures > 0);
  return found;
end
$$;
comment on function tidebase.retry_channel(text, integer) is
  'Tries a channel at once that was given up, or that waits after a failure, from the event at which it stands. False when there is nothing to try again. Errors: TB001, TB012.';

create or replace function tidebase.list_channels(run_id text)
returns setof tidebase.channel
language plpgsql stable security definer rows 10
set search_path = pg_catalog, tidebase, pg_temp
set enable_seqscan = off
as $$
begin
  return query
    select c.channel, c.type, c.url, c.events, c.secret is not null, c.status, c.delivered_seq, c.attempts, c.failures,
      c.failing_since, c.next_at, c.http_status, c.error, c.created_at, c.delivered_at, c.finished_at
    from channels c
    where c.run_id = list_channels.run_id
    order by c.channel;
  if not found and not exists (select from run_heads h where h.run_id = list_channels.run_id) then
    perform tidebase_private.raise_run_not_found(run_id);
  end if;
end
$$;
comment on function tidebase.list_channels(text) is
  'The channels of a run, those that were removed, too, with how far each has been told; without secrets. Errors: TB001.';

-- A channel that has been told all is looked at again after as long as it has been quiet. A failed run is quiet for long,
-- but may be resumed.
create or replace function tidebase_private.pause_of(idle_since timestamptz, status text)
returns interval
language sql volatile
as $$
  select least(greatest(clock_timestamp() - idle_since, interval '1 second'),
    case status when 'failed' then interval '4 minutes' else interval '30 seconds' end);
$$;
comment on function tidebase_private.pause_of(timestamptz, text) is
  'After how long to look again at a channel that has been quiet since then (NULL: until now), whose run has this status.';

-- What has caught up: over with its run, or to be looked at again.
create or replace function tidebase_private.rest(chosen tidebase.channels)
returns void
language plpgsql volatile
as $$
declare
  head tidebase.run_heads;
begin
  select h.* into head from tidebase.run_heads h where h.run_id = chosen.run_id;
  if head.status in ('completed', 'cancelled') and head.last_seq = chosen.delivered_seq then
    update tidebase.channels c set status = 'delivered', next_at = null, idle_since = null, finished_at = clock_timestamp()
    where c.run_id = chosen.run_id and c.channel = chosen.channel;
    return;
  end if;
  update tidebase.channels c
  set idle_since = coalesce(c.idle_since, clock_timestamp()),
      next_at = clock_timestamp() + tidebase_private.pause_of(chosen.idle_since, head.status)
  where c.run_id = chosen.run_id and c.channel = chosen.channel;
end
$$;
comment on function tidebase_private.rest(tidebase.channels) is
  'Ends a channel whose run is over, or lets it be due again later: there was no event after its cursor.';

-- Most channels that are due have nothing to tell, still: they are put off by one statement, by what their heads say.
create or replace function tidebase_private.put_off(failing boolean, as_of timestamptz, watch boolean)
returns void
language plpgsql volatile
as $$
declare
  unwatched text[];
  run_id text;
begin
  with due as materialized (
    select c.run_id, c.channel, c.delivered_seq, c.idle_since from tidebase.channels c
    where least(c.failures, 1) = failing::integer and c.next_at <= as_of
    order by c.next_at
    limit 1000
    for no key update skip locked),
  quiet as (
    update tidebase.channels c
    set next_at = clock_timestamp() + tidebase_private.pause_of(due.idle_since, h.status)
    from due
    join tidebase.run_heads h on h.run_id = due.run_id
    where c.run_id = due.run_id and c.channel = due.channel and due.idle_since is not null
      and h.last_seq = due.delivered_seq and h.status not in ('completed', 'cancelled')
    returning c.run_id)
  select array_agg(distinct q.run_id order by q.run_id) into unwatched from quiet q
  where watch and not exists (
    select from tidebase.watches w where w.run_id = q.run_id and w.watched_until > as_of + interval '5 minutes');
  foreach run_id in array coalesce(unwatched, '{}') loop
    perform tidebase.watch_run(run_id, '10 minutes');
  end loop;
end
$$;
comment on function tidebase_private.put_off(boolean, timestamptz, boolean) is
  'Lets up to a thousand channels that are due, and have been told all, be due again later. watch: the bell is to ring for them.';

-- The event is sent after this has committed, durably: so it cannot be lost any more in a crash of the server, although
-- it may have been written by a call that did not wait for the disk.
create or replace function tidebase_private.hand_out(chosen tidebase.channels, ttl interval)
returns setof tidebase.channel_delivery
language plpgsql volatile rows 1
as $$
declare
  wanted bigint;
  seen bigint;
  looked_at bigint;
begin
  select min(e.seq) filter (where chosen.events is null or e.type = any (chosen.events)), max(e.seq), count(*)
  into wanted, seen, looked_at
  from (
    select l.seq, l.type from tidebase.events l
    where l.run_id = chosen.run_id and l.seq > chosen.delivered_seq
    order by l.seq
    limit case when chosen.events is null then 1 else 1000 end) e;
  if seen is null then
    perform tidebase_private.rest(chosen);
    return;
  end if;
  update tidebase.channels c
  set delivered_seq = coalesce(wanted - 1, seen), sending_seq = wanted, idle_since = null,
      attempts = c.attempts + (wanted is not null)::integer,
      next_at = clock_timestamp() + case when wanted is not null then ttl else '0' end
  where c.run_id = chosen.run_id and c.channel = chosen.channel
  returning c.* into chosen;
  if wanted is null then
    if looked_at < 1000 then
      perform tidebase_private.rest(chosen);
    end if;
    return;
  end if;
  perform tidebase_private.commit_durably();
  return query
    select chosen.run_id, chosen.channel, chosen.attempts, chosen.url, chosen.secret, e.seq,
      jsonb_build_object('type', e.type, 'runId', e.run_id, 'workflowName', r.workflow, 'seq', e.seq, 'payload', e.payload,
        'createdAt', to_char(e.created_at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"'))
    from tidebase.events e
    join tidebase.runs r on r.run_id = e.run_id
    where e.run_id = chosen.run_id and e.seq = wanted;
end
$$;
comment on function tidebase_private.hand_out(tidebase.channels, interval) is
  'The next event that a channel wants, to be sent within ttl; none when it has caught up, or has just passed a thousand that it does not want. The caller holds the channel''s lock.';

-- Those for which the bell has rung need not wait for their time, unless somebody is at them, or they wait after a failure.
create or replace function tidebase_private.wake_channels(rung text[], as_of timestamptz)
returns void
language plpgsql volatile
as $$
begin
  perform tidebase_private.require_list(rung, 'rung');
  update tidebase.channels c set next_at = as_of
  from (
    select w.run_id, w.channel from tidebase.channels w
    where w.run_id = any (rung) and w.idle_since is not null and w.next_at > as_of
    for no key update skip locked) asleep
  where c.run_id = asleep.run_id and c.channel = asleep.channel;
end
$$;
comment on function tidebase_private.wake_channels(text[], timestamptz) is
  'Makes channels of these runs due that have only nothing to send. Errors: TB002.';

create or replace function tidebase.claim_channel_deliveries(
  max integer default 10, ttl interval default '1 minute', failing boolean default false, rung text[] default null,
  watch boolean default false)
returns setof tidebase.channel_delivery
language plpgsql volatile security definer rows 10
set search_path = pg_catalog, tidebase, pg_temp
set enable_seqscan = off
as $$
declare
  chosen channels;
  as_of timestamptz := clock_timestamp();  -- a volatile function in the condition would rule out the index
  sent integer := 0;
begin
  max := coalesce(max, 10);
  ttl := coalesce(ttl, '1 minute');
  failing := coalesce(failing, false);
  perform tidebase_private.require_claim(max, ttl);
  perform tidebase_private.commit_lazily();
  if rung is not null then
    perform tidebase_private.wake_channels(rung, as_of);
  end if;
  perform tidebase_private.put_off(failing, as_of, coalesce(watch, false));
  for chosen in
    select c.* from channels c
    where least(c.failures, 1) = failing::integer and c.next_at <= as_of
    order by c.next_at
    limit 1000
    for no key update skip locked
  loop
    return query select d.* from tidebase_private.hand_out(chosen, ttl) d;
    sent := sent + found::integer;
    exit when sent = max;
  end loop;
end
$$;
comment on function tidebase.claim_channel_deliveries(integer, interval, boolean, text[], boolean) is
  'Takes channels that are due, at most max (1 to 1000), with an event each, for ttl: send it, and report it with finish_channel_delivery, which hands out the next one. A channel is with one dispatcher at a time; after ttl it is due again. failing: those whose last attempt has failed, instead of those that do well: give each kind a share of what you can do at once. rung: runs for which the bell has rung, up to 1000; watch: have it ring for runs of which everything is told; for a dispatcher that listens. A channel without anything new is looked at again after as long as it has been quiet, 1 to 30 seconds (4 minutes when the run has failed). Errors: TB002.';

-- What becomes of a channel whose next event could not be delivered.
create or replace function tidebase_private.set_channel_back(
  chosen tidebase.channels, http_status integer, error text, give_up_after interval)
returns void
language plpgsql volatile
as $$
declare
  as_of timestamptz := clock_timestamp();
  since timestamptz := coalesce(chosen.failing_since, as_of);
  reason text;
begin
  if http_status = 410 then
    reason := 'given up: the receiver says that it is gone for good (HTTP 410)';
  elsif as_of - since >= give_up_after then
    reason := format('given up after %s attempts since %s', chosen.failures + 1, date_trunc('second', since));
  end if;
  update tidebase.channels c
  set failures = c.failures + 1, failing_since = since, sending_seq = null, http_status = set_channel_back.http_status,
      status = case when reason is null then 'active' else 'failed' end,
      error = left(concat_ws(': ', reason, set_channel_back.error), 10000),
      next_at = case when reason is null then as_of + tidebase_private.retry_delay(c.failures + 1, '5 seconds', '1 hour') end,
      finished_at = case when reason is not null then as_of end
  where c.run_id = chosen.run_id and c.channel = chosen.channel;
end
$$;
comment on function tidebase_private.set_channel_back(tidebase.channels, integer, text, interval) is
  'Lets a channel be tried again, with exponential backoff up to an hour, or gives it up. The caller holds its lock.';

create or replace function tidebase.finish_channel_delivery(
  run_id text, channel integer, attempt bigint, delivered boolean, http_status integer default null, error text default null,
  go_on boolean default true, ttl interval default '1 minute', give_up_after interval default '1 day')
returns setof tidebase.channel_delivery
language plpgsql volatile security definer rows 1
set search_path = pg_catalog, tidebase, pg_temp
set enable_seqscan = off
as $$
declare
  chosen channels;
begin
  ttl := coalesce(ttl, '1 minute');
  give_up_after := coalesce(give_up_after, '1 day');
  perform tidebase_private.require_claim(1, ttl);
  perform tidebase_private.require_interval(give_up_after, 'give_up_after', '0', '1 year');
  perform tidebase_private.commit_durably();
  chosen := tidebase_private.lock_channel(run_id, channel);
  if chosen.sending_seq is null or chosen.attempts is distinct from attempt then
    return;  -- reported before, removed meanwhile, or taken over by another dispatcher
  elsif delivered is not true then
    perform tidebase_private.set_channel_back(chosen, http_status, error, give_up_after);
    return;
  end if;
  update channels c
  set delivered_seq = c.sending_seq, sending_seq = null, failures = 0, failing_since = null, next_at = clock_timestamp(),
      delivered_at = clock_timestamp(), http_status = finish_channel_delivery.http_status, error = null
  where c.run_id = chosen.run_id and c.channel = chosen.channel
  returning c.* into chosen;
  if coalesce(go_on, true) then
    return query select d.* from tidebase_private.hand_out(chosen, ttl) d;
  end if;
end
$$;
comment on function tidebase.finish_channel_delivery(text, integer, bigint, boolean, integer, text, boolean, interval, interval) is
  'Reports how an attempt at an event of a channel ended, and hands out the next event of the channel, if there is one: send that too. delivered: the channel moves on. Otherwise the same event is tried again, with exponential backoff up to an hour, and the channel is given up when it has failed for as long as give_up_after (up to a year), or at once after HTTP 410. go_on: false hands out nothing, and lets the channel wait for its turn. A report for an attempt that another dispatcher has taken over, or that was reported before, changes nothing. Errors: TB001, TB002, TB012.';

select tidebase_private.allow('function tidebase.add_channel', 'worker', 'operator');
select tidebase_private.allow('function tidebase.remove_channel', 'worker', 'operator');
select tidebase_private.allow('function tidebase.retry_channel', 'worker', 'operator');
select tidebase_private.allow('function tidebase.list_channels', 'worker', 'approver', 'operator', 'reader');
select tidebase_private.allow('function tidebase.claim_channel_deliveries', 'operator');
select tidebase_private.allow('function tidebase.finish_channel_delivery', 'operator');
