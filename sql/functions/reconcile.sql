-- Reconciliation: what only time brings about. Nothing is unsafe without it (expiry is a predicate that acquire_run and
-- the gates apply themselves), but it makes visible what has happened, and wakes who waits.

create or replace function tidebase_private.is_marked(head tidebase.run_heads)
returns boolean
language sql stable
as $$
  select exists (
    select from tidebase.attempts a
    where a.run_id = head.run_id and a.attempt = head.attempt and a.lapsed_at = head.lease_expires_at);
$$;
comment on function tidebase_private.is_marked(tidebase.run_heads) is 'Whether it is written down that the run''s lease has run out.';

-- When the run wants looking at next. A lease that is alive is looked at again when it ends, but not within a minute:
-- a heartbeat does not move due_at, so this is the only write that it costs.
create or replace function tidebase_private.next_due(head tidebase.run_heads)
returns timestamptz
language sql stable
as $$
  select case when head.status not in ('completed', 'cancelled') then least(
    case when head.lease_expires_at > clock_timestamp() then greatest(head.lease_expires_at, clock_timestamp() + interval '1 minute')
      when not tidebase_private.is_marked(head) then head.lease_expires_at end,  -- it has run out since it was looked at
    head.deadline_at,
    (select min(g.timeout_at) from tidebase.gates g where g.run_id = head.run_id and g.status = 'pending'),
    (select min(c.available_at) from tidebase.awaited w join tidebase.run_heads c on c.run_id = w.child_run_id
      where w.run_id = head.run_id and c.status in ('pending', 'queued')))
  end;
$$;
comment on function tidebase_private.next_due(tidebase.run_heads) is 'The value of due_at for a run that was just looked at; NULL when there is nothing to wait for.';

-- A lease that ran out, seen before anybody took over. It is written down, once, and that is all: time decides who may
-- take over, not who is fenced. Its holder may be alive, with work in its hands that is paid for.
create or replace function tidebase_private.mark_lapsed(head tidebase.run_heads)
returns boolean
language plpgsql volatile
as $$
begin
  update tidebase.attempts a set lapsed_at = head.lease_expires_at
  where a.run_id = head.run_id and a.attempt = head.attempt and a.lapsed_at is distinct from head.lease_expires_at;
  if not found then
    return false;
  end if;
  perform tidebase_private.requeue(head);
  perform tidebase_private.emit(tidebase_private.advance(head.run_id), 'run.lapsed', jsonb_build_object('attempt', head.attempt,
    'token', head.lease_token, 'holder', head.holder, 'expired_at', head.lease_expires_at));
  return true;
end
$$;
comment on function tidebase_private.mark_lapsed(tidebase.run_heads) is
  'Records that a lease has run out; false when that was recorded before. The caller holds the head''s lock.';

-- Looks at one run; `counts` is added up.
create or replace function tidebase_private.look_at(head tidebase.run_heads, counts tidebase.reconciliation)
returns tidebase.reconciliation
language plpgsql volatile
as $$
declare
  gates integer;
  timers integer;
  child tidebase.run_heads;
begin
  counts.runs := counts.runs + 1;
  if head.deadline_at <= clock_timestamp() and head.status not in ('completed', 'cancelled') then
    -- Its children have the same deadline and come up by themselves: reconcile never waits for a lock.
    perform tidebase_private.cancel_one(head, 'the deadline has passed', 'tidebase');
    update tidebase.runs r set failure_class = 'deadline' where r.run_id = head.run_id;
    counts.deadlines := counts.deadlines + 1;
    return counts;
  end if;
  select count(*) filter (where g.kind = 'gate')::integer, count(*) filter (where g.kind = 'timer')::integer into gates, timers
  from tidebase.gates g
  where g.run_id = head.run_id and g.status = 'pending' and g.timeout_at <= clock_timestamp();
  counts.gates := counts.gates + gates;
  counts.timers := counts.timers + timers;
  head := tidebase_private.settle_overdue(head);
  if head.status = 'running' and not tidebase_private.is_live(head) then
    if tidebase_private.mark_lapsed(head) then
      counts.leases := counts.leases + 1;
      perform tidebase_private.call_for_recovery(head, 'lease_expired');
    end if;
  elsif head.status = 'waiting' then
    child := tidebase_private.find_ready_child(head.run_id);
    if child.run_id is not null then
      perform tidebase_private.go_on(head.run_id, child);
    end if;
  end if;
  perform tidebase_private.wake_parents(head.run_id);
  head := tidebase_private.lock_head(head.run_id);
  update tidebase.run_heads h set due_at = tidebase_private.next_due(head) where h.run_id = head.run_id;
  return counts;
end
$$;
comment on function tidebase_private.look_at(tidebase.run_heads, tidebase.reconciliation) is
  'Does for one run whatever time has brought. The caller holds the head''s lock.';

-- What has to do with the moment and not with a run: a lock, a limit, a server that goes down.
create or replace function tidebase_private.is_passing(state text)
returns boolean
language sql immutable
as $$
  select state ~ '^(08|25|40|53|55|57|58)';
$$;
comment on function tidebase_private.is_passing(text) is 'Whether an error of this SQLSTATE is over when the call is made again.';

-- Looked at again later and later, up to an hour, so that it does not keep the others waiting.
create or replace function tidebase_private.set_back(run_id text, state text, message text)
returns void
language plpgsql volatile
as $$
declare
  failures integer;
begin
  insert into tidebase.setbacks as s (run_id, failures, sqlstate, message)
  values (set_back.run_id, 1, set_back.state, left(set_back.message, 1000))
  on conflict on constraint setbacks_pkey do update
  set failures = s.failures + 1, sqlstate = excluded.sqlstate, message = excluded.message, failed_at = clock_timestamp()
  returning s.failures into failures;
  update tidebase.run_heads h
  set due_at = clock_timestamp() + least(interval '1 minute' * 2 ^ least(failures - 1, 10), interval '1 hour')
  where h.run_id = set_back.run_id;
end
$$;
comment on function tidebase_private.set_back(text, text, text) is
  'Notes that reconcile could not look at a run, and lets it be due again later. The caller holds the head''s lock.';

-- Takes runs that are due, each with its lock or not at all: callers share the work instead of waiting for each other,
-- and a run that was looked at is due later or never, so none starves the others.
create or replace function tidebase_private.look_at_due(max integer, one_by_one boolean)
returns tidebase.reconciliation
language plpgsql volatile
as $$
declare
  head tidebase.run_heads;
  counts tidebase.reconciliation := row(0, 0, 0, 0, 0);
  as_of timestamptz := clock_timestamp();  -- a volatile function in the condition would rule out the index
  well text[] := array[]::text[];
begin
  for head in
    select h.* from tidebase.run_heads h
    where h.due_at <= as_of
    order by h.due_at
    limit look_at_due.max
    for no key update skip locked
  loop
    if one_by_one then
      begin
        counts := tidebase_private.look_at(head, counts);
        well := well || head.run_id;
      exception when others then
        if tidebase_private.is_passing(sqlstate) then
          raise;
        end if;
        counts.runs := counts.runs + 1;
        perform tidebase_private.set_back(head.run_id, sqlstate, sqlerrm);
      end;
    else
      counts := tidebase_private.look_at(head, counts);
      well := well || head.run_id;
    end if;
  end loop;
  delete from tidebase.setbacks s where s.run_id = any (well);
  return counts;
end
$$;
comment on function tidebase_private.look_at_due(integer, boolean) is
  'Looks at the runs that are due. one_by_one: each in a subtransaction of its own, so that one that fails is set back and the others are done.';

create or replace function tidebase_private.reconcile_due(max integer)
returns tidebase.reconciliation
language plpgsql volatile
as $$
begin
  begin
    return tidebase_private.look_at_due(max, one_by_one => false);
  exception when others then  -- many subtransactions are a burden to everybody: only where there is a reason
    if tidebase_private.is_passing(sqlstate) then
      raise;
    end if;
  end;
  return tidebase_private.look_at_due(max, one_by_one => true);
end
$$;
comment on function tidebase_private.reconcile_due(integer) is
  'Looks at the runs that are due, in one subtransaction if that goes well.';

create or replace function tidebase.reconcile(max integer default 100)
returns tidebase.reconciliation
language plpgsql volatile security definer
set search_path = pg_catalog, tidebase, pg_temp
as $$
begin
  max := coalesce(max, 100);
  if max not between 1 and 10000 then
    perform tidebase_private.raise_invalid('max', 'must be a number from 1 to 10000');
  end if;
  perform tidebase_private.tidy_queues();
  perform tidebase_private.fire_due(max);
  return tidebase_private.reconcile_due(max);
end
$$;
comment on function tidebase.reconcile(integer) is
  'Looks at the runs that are due, at most max (1 to 10000) of them: leases that have run out (which is written down, and the run''s recovery_webhook is told: the run may be taken over, and until it is its holder may go on), gates whose time is over (the default decision falls), timers, deadlines (the run is cancelled). A lease that was renewed for a shorter time than before is seen at its former end; acquire_run takes it over at once. Any number of callers at once; call it again while it returns runs = max. A run that cannot be looked at is set back (for a minute at first, an hour at most) and shown in run_setbacks; the others are done. What it costs depends on what is due, not on how many runs there are. Errors: TB002.';

-- Each reason by its part of the index over the statuses: what is over is not looked at. A failed run is no stalled one: it
-- is listed by its status, for as long as it is kept.
create or replace view tidebase.stalled_runs with (security_barrier = true) as
  select
    h.run_id,
    r.workflow,
    h.status,
    stalled.reason,
    case when h.status = 'running' then h.lease_expires_at else h.updated_at end as since,
    h.holder,
    h.attempt,
    h.waiting_for,
    r.error,
    r.recovery_webhook
  from (
    select l.run_id, 'lease_lapsed' as reason from tidebase.run_heads l
    where lower(l.status) = 'running' and l.lease_expires_at <= statement_timestamp()
    union all
    select v.run_id, 'review' from tidebase.run_heads v where lower(v.status) = 'review'
    union all
    select w.run_id, 'overdue' from tidebase.run_heads w
    where lower(w.status) = 'waiting' and (
      exists (
        select from tidebase.gates g
        where g.run_id = w.run_id and g.name = w.waiting_for and g.timeout_at <= statement_timestamp())
      or exists (
        select from tidebase.awaited a
        join tidebase.run_heads c on c.run_id = a.child_run_id
        where a.run_id = w.run_id and (c.status in ('completed', 'cancelled', 'failed')
          or c.status = 'running' and c.lease_expires_at <= statement_timestamp()
          or c.status = 'pending' and coalesce(c.available_at, '-infinity') <= statement_timestamp()
          or c.status = 'queued' and coalesce(c.available_at, '-infinity') <= statement_timestamp())))
    union all
    select p.run_id, 'not_taken_up' from tidebase.run_heads p
    where lower(p.status) = 'pending'
      and coalesce(p.available_at, p.updated_at) <= statement_timestamp() - case when p.attempt = 0 then interval '1 minute' else '0' end
  ) stalled
  join tidebase.run_heads h on h.run_id = stalled.run_id
  join tidebase.runs r on r.run_id = h.run_id
  where stalled.reason not in ('lease_lapsed', 'not_taken_up') or not r.metadata @> '{"tidebase.session": true}';
comment on view tidebase.stalled_runs is
  'Runs that are alive and do not go on by themselves: reason is lease_lapsed (the worker has gone silent), review (a person must decide about a step), overdue (its time, or a child that it waits for, has come, and no reconcile has come round), not_taken_up (it may go on and nobody works on it; one that was never begun, for more than a minute). since: from when. A run whose metadata has {"tidebase.session": true} is only worked on when somebody comes, and neither lapsed nor not taken up. Longest first: order by since. Failed runs are listed by their status.';

create or replace view tidebase.run_setbacks with (security_barrier = true) as
  select
    s.run_id,
    r.workflow,
    h.status,
    s.failures,
    s.sqlstate,
    s.message,
    s.failed_at,
    h.due_at as next_at
  from tidebase.setbacks s
  join tidebase.run_heads h on h.run_id = s.run_id
  join tidebase.runs r on r.run_id = s.run_id
  where h.status not in ('completed', 'cancelled');
comment on view tidebase.run_setbacks is
  'Runs that reconcile could not look at when it came round to them last: how often in a row, with what error, and when it comes round again.';

select tidebase_private.allow('function tidebase.reconcile', 'worker', 'operator');
select tidebase_private.allow('table tidebase.run_setbacks', 'operator', 'reader');
select tidebase_private.allow('table tidebase.stalled_runs', 'worker', 'approver', 'operator', 'reader');
