-- The log of a run: written by every call, read by anyone who may, rung for those who watch.
--
-- Types that the functions write, and their payloads:
--
--   run.created     workflow
--   run.enqueued    queue, priority, key, dedupe_key, run_at (it waits for a worker of this queue)
--   run.replaced    run_at (nobody had begun it: it has another input and time)
--   run.moved       queue, priority, actor (it waits in this queue from now on)
--   run.retried     actor, reason (a failed run that may be taken up again)
--   run.started     attempt, token, holder, code_version; lapsed: {token, holder, expired_at} when an expired lease was taken over
--   run.released    attempt, token
--   run.completed   attempt, token; unfinished: the names of steps that were begun and never ended
--   run.failed      attempt, token, error, status (failed, pending or queued, review), retry_after (seconds; when it is tried again)
--   run.suspended   attempt, token, name (of the gate or timer it waits for); children: the names of those, where it waits for children
--   run.review      name (of the step that a person must decide about)
--   run.lapsed      attempt, token, holder, expired_at (reconcile found the lease run out: it may be taken over; until then its holder may go on)
--   run.cancelled   reason, actor
--   run.child.created   name, child_run_id, workflow, edge_type
--   run.child.ready     name, child_run_id, status (the run waited for this child, and may go on now)
--   step.started    name, attempt, token
--   step.completed  name, attempt
--   step.failed     name, attempt, error, decision, retry_after (seconds; absent unless the step is retried)
--   step.review     name, attempt, cause (crash, error, contract), explanation: it may have taken effect, and a person must decide
--   step.reviewed   name, attempt, decision (retry, accept, fail), actor, reason
--   gate.created    name, prompt, data, options, timeout_at, required
--   gate.voted      name, voter, decision, approvals, required
--   gate.resolved   name, decision, payload, comment, actor, by (secret, approver, timeout)
--   timer.started   name, fires_at
--   timer.fired     name
--   run.forked      source_run_id, through_seq, through_step, workflow, reason, actor (the first event of a fork; copied ones have source_seq)
--   state.updated   stream, version, operation (set, patch), importance, label, reason
--   state.saved, state.restored   the same; restored: the version that was restored
--   snapshot.created    the same, of the stream of the target's snapshots
--   usage.recorded  what was recorded, without what is unknown
--   budget.exhausted    seq (of the usage.recorded that used a budget up)
--   budget.changed  cost_usd, tokens (the new limits), actor, reason
--   recovery.started    recovery, reason, actor, found_status
--   recovery.delivered, recovery.failed   recovery, http_status, error
--
-- Types of one's own take any other name: the prefixes of the functions' own types are reserved.

-- Rings the doorbell for who watches the run. NOTIFY takes a server-wide lock at commit, so that a reader who watches every
-- run there is could slow all workers down. Therefore only the first event of a burst rings: who was woken by it looks again
-- after 20 ms, until nothing new is there. And nobody rings while the queue of notifications fills up, because somebody
-- listens and does not take what is for him.
create or replace function tidebase_private.ring(run_id text, seq bigint)
returns void
language plpgsql volatile
as $$
begin
  if not exists (
      select from tidebase.events e
      where e.run_id = ring.run_id and e.seq = ring.seq - 1 and e.created_at > clock_timestamp() - interval '10 milliseconds')
    and pg_notification_queue_usage() < 0.1
  then
    perform pg_notify('tidebase_events', run_id);
  end if;
end
$$;
comment on function tidebase_private.ring(text, bigint) is
  'Notifies the watchers of a run about the event with this number, unless the event before it is younger than 10 ms, or more than a tenth of the notification queue is taken.';

-- Writes one event with the number that fence() took for it, and rings the doorbell if somebody watches the run.
create or replace function tidebase_private.emit(head tidebase.run_heads, type text, payload jsonb, request_id text default null)
returns void
language plpgsql volatile
as $$
declare
  watched boolean;
begin
  insert into tidebase.events (run_id, seq, type, payload, request_id)
  values (head.run_id, head.last_seq, emit.type, emit.payload, emit.request_id)
  returning exists (
    select from tidebase.watches w where w.run_id = head.run_id and w.watched_until > clock_timestamp()) into watched;
  if watched then
    perform tidebase_private.ring(head.run_id, head.last_seq);
  end if;
end
$$;
comment on function tidebase_private.emit(tidebase.run_heads, text, jsonb, text) is
  'Appends the event with seq head.last_seq; the caller holds the head''s row lock and took the number there.';

-- Both events of a step that is written in one call, by one statement.
create or replace function tidebase_private.emit_step(head tidebase.run_heads, name text, attempt integer)
returns void
language plpgsql volatile
as $$
begin
  insert into tidebase.events (run_id, seq, type, payload)
  values
    (head.run_id, head.last_seq - 1, 'step.started',
      jsonb_build_object('name', name, 'attempt', attempt, 'token', head.lease_token)),
    (head.run_id, head.last_seq, 'step.completed', jsonb_build_object('name', name, 'attempt', attempt));
  if exists (select from tidebase.watches w where w.run_id = head.run_id and w.watched_until > clock_timestamp()) then
    perform tidebase_private.ring(head.run_id, head.last_seq - 1);
  end if;
end
$$;
comment on function tidebase_private.emit_step(tidebase.run_heads, text, integer) is
  'Appends step.started and step.completed as the last two of the numbers that fence() took.';

create or replace function tidebase_private.last_of_type(run_id text, type text)
returns bigint
language sql stable
as $$
  select e.seq from tidebase.events e
  where e.run_id = last_of_type.run_id and e.type = last_of_type.type
  order by e.seq desc limit 1;
$$;
comment on function tidebase_private.last_of_type(text, text) is
  'The seq of the run''s newest event of a type: what a repeated call that ended an attempt returns.';

create or replace function tidebase_private.is_reserved(type text)
returns boolean
language sql immutable
as $$
  select type ~ '^(run|step|gate|timer|state|snapshot|usage|budget|child|recovery|queue|schedule|channel|delivery|tidebase)[.]';
$$;
comment on function tidebase_private.is_reserved(text) is 'Whether a type of event is one that only the functions write.';

-- What an earlier call with this request_id did: the call is made again, because its answer was lost.
create or replace function tidebase_private.find_request(run_id text, request_id text, types text[] default null)
returns tidebase.events
language plpgsql stable
as $$
declare
  earlier tidebase.events;
begin
  select e.* into earlier from tidebase.events e
  where e.run_id = find_request.run_id and e.request_id = find_request.request_id;
  if found and not coalesce(earlier.type = any (types), not tidebase_private.is_reserved(earlier.type)) then
    perform tidebase_private.raise_invalid('request_id', 'must be new: another call of this run was made with it');
  end if;
  return earlier;
end
$$;
comment on function tidebase_private.find_request(text, text, text[]) is
  'The event of the call that was made with this request_id; a row of NULLs if there is none. types: what such a call writes; NULL: events of one''s own. Errors: TB002 (it was a call of another kind).';

-- Appends an event of the worker's own.
--
-- The number comes from the head row under its lock: whoever commits later has the higher number, and a rollback gives
-- the number back.
create or replace function tidebase.append_event(
  run_id text, token bigint, type text, payload jsonb default '{}', request_id text default null, transient boolean default false)
returns bigint
language plpgsql volatile security definer
set search_path = pg_catalog, tidebase, pg_temp
set enable_seqscan = off
as $$
declare
  head tidebase.run_heads;
  earlier events;
begin
  if not tidebase_private.is_name(type, 255) then
    perform tidebase_private.require_name(type, 'type', 255);
  elsif tidebase_private.is_reserved(type) then
    perform tidebase_private.raise_invalid('type', format(
      'must not begin with %s, which marks events that Tidebase writes itself', quote_literal(split_part(type, '.', 1) || '.')));
  elsif type = 'end' then
    perform tidebase_private.raise_invalid('type', 'must not be ''end'', which ends a stream of events');
  end if;
  if request_id is not null then
    perform tidebase_private.require_name(request_id, 'request_id', 255);
  end if;
  if not tidebase_private.is_small(payload) then
    perform tidebase_private.require_payload(payload, 'payload');
  end if;
  if transient then
    perform tidebase_private.commit_lazily();
  elsif not tidebase_private.is_durable() then
    perform tidebase_private.commit_durably();
  end if;

  head := tidebase_private.fence(run_id, token, 1);
  if request_id is not null then
    earlier := tidebase_private.find_request(run_id, request_id);
    if earlier.seq is not null then
      perform tidebase_private.give_back(head, 1);
      return earlier.seq;
    end if;
  end if;
  perform tidebase_private.emit(head, type, coalesce(payload, '{}'), request_id);
  return head.last_seq;
end
$$;
comment on function tidebase.append_event(text, bigint, text, jsonb, text, boolean) is
  'Appends an event to the run''s log and returns its seq. Needs the run''s lease token. type: a name of your own, such as "agent.progress"; the prefixes of Tidebase''s own types (run. step. gate. ...) are refused. request_id: an id made up for this call; the call repeated with it returns the first one''s seq. transient: the event may be lost with the last moments of a crashed server (asynchronous commit). Errors: TB001, TB002, TB003, TB004, TB005.';

-- Makes sure that what this transaction has seen of a run's log is on disk when it ends.
--
-- A call that commits asynchronously is visible before its WAL is flushed: if the server crashed right then, the event
-- would be gone and its number given to another one, and a reader that had seen it would miss that one. So the reader
-- waits for the flush, only when it has read beyond the last synchronous commit, and only if there is something to
-- flush. A standby has received nothing that its primary had not flushed.
create or replace function tidebase_private.flush_what_was_read(run_id text, seq bigint)
returns void
language plpgsql volatile
as $$
begin
  if pg_is_in_recovery()
    or seq <= (select h.durable_seq from tidebase.run_heads h where h.run_id = flush_what_was_read.run_id)
    or pg_current_wal_flush_lsn() >= pg_current_wal_insert_lsn()
  then
    return;
  end if;
  perform tidebase_private.commit_durably();
  perform pg_logical_emit_message(true, 'tidebase', '');  -- a record to commit, and with it a flush of all before it
end
$$;
comment on function tidebase_private.flush_what_was_read(text, bigint) is
  'Lets this transaction''s commit wait until the event with this number is on disk, where it may not be yet.';

create or replace function tidebase.read_events(run_id text, after bigint default 0, max integer default 1000)
returns setof tidebase.event
language plpgsql volatile security definer rows 100
set search_path = pg_catalog, tidebase, pg_temp
set enable_seqscan = off
as $$
declare
  entry event;
begin
  max := coalesce(max, 1000);
  if max < 1 or max > 10000 then
    perform tidebase_private.raise_invalid('max', 'must be a number from 1 to 10000');
  end if;
  for entry in
    select e.seq, e.type, e.payload, e.created_at
    from events e
    where e.run_id = read_events.run_id and e.seq > coalesce(read_events.after, 0)
    order by e.seq
    limit read_events.max
  loop
    return next entry;
  end loop;
  if entry.seq is not null then
    perform tidebase_private.flush_what_was_read(run_id, entry.seq);
  elsif not exists (select from run_heads h where h.run_id = read_events.run_id) then
    perform tidebase_private.raise_run_not_found(run_id);
  end if;
end
$$;
comment on function tidebase.read_events(text, bigint, integer) is
  'The events with seq > after, in order, at most max of them (1 to 10000). To follow a run, call it again with the last seq seen: no event at or below that number can appear later, not even after a crash of the server, since the call waits until what it returns is on disk. Errors: TB001, TB002.';

-- Says that somebody follows the run, so that calls ring the doorbell for the next while.
--
-- The mark stands in a table that workers only read: who looks on takes no lock that a worker waits for, however long the
-- transaction lasts. Another reader may be at the same row; he is not waited for either, for then it is marked. A call that
-- began before the mark was committed does not ring, so who begins to follow looks again after a moment.
create or replace function tidebase.watch_run(run_id text, ttl interval default '60 seconds')
returns tidebase.watch
language plpgsql volatile security definer
set search_path = pg_catalog, tidebase, pg_temp
set enable_seqscan = off
set lock_timeout = '30s'
as $$
declare
  head run_heads;
  marked timestamptz;
begin
  ttl := coalesce(ttl, '60 seconds');
  perform tidebase_private.require_interval(ttl, 'ttl', '1 second', '1 day');
  ttl := least(ttl, interval '10 minutes');
  select h.* into head from run_heads h where h.run_id = watch_run.run_id;
  if not found then
    perform tidebase_private.raise_run_not_found(run_id);
  end if;
  select w.watched_until into marked from watches w where w.run_id = watch_run.run_id;
  -- A second watcher, or the same one again, costs no write while the mark still has half of its time to go.
  if not pg_is_in_recovery() and coalesce(marked < clock_timestamp() + ttl / 2, true) then
    perform tidebase_private.commit_lazily();
    begin
      perform set_config('lock_timeout', '50ms', true);  -- until the function ends, since that sets it, too
      insert into watches as w (run_id, watched_until) values (head.run_id, clock_timestamp() + ttl)
      on conflict on constraint watches_pkey do update set watched_until = greatest(w.watched_until, excluded.watched_until)
      returning w.watched_until into marked;
    exception when lock_not_available then
      null;
    end;
  end if;
  return row('tidebase_events', head.status, head.last_seq, coalesce(marked, clock_timestamp()))::watch;
end
$$;
comment on function tidebase.watch_run(text, interval) is
  'Asks for notifications about a run for ttl (1 second to 1 day, of which 10 minutes are granted at most): LISTEN to the channel first, then watch, then read_events, and call it again before watched_until. Of events that follow within 10 ms of each other only the first one rings: read again after 20 ms until there is nothing new. Notifications may be lost with a connection or behind a pooler, and there are none on a hot standby: poll read_events as well, now and then. Takes no lock that a worker waits for. Errors: TB001, TB002.';

select tidebase_private.allow('function tidebase.append_event', 'worker');
select tidebase_private.allow('function tidebase.read_events', 'worker', 'approver', 'operator', 'reader');
select tidebase_private.allow('function tidebase.watch_run', 'worker', 'approver', 'operator', 'reader');
