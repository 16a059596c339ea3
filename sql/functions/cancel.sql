-- Cancellation: one-way, for good, and for the whole tree below a run if that is wanted.

-- Cancels one run whose head is locked, unless it is final. True when this call did it.
create or replace function tidebase_private.cancel_one(head tidebase.run_heads, reason text, actor text)
returns boolean
language plpgsql volatile
as $$
begin
  if head.status in ('cancelled', 'completed') then
    return false;
  end if;
  perform tidebase_private.end_attempt(head, 'cancelled');
  update tidebase.runs r
  set cancelled_at = clock_timestamp(), finished_at = clock_timestamp(), cancel_reason = cancel_one.reason,
      cancel_actor = cancel_one.actor
  where r.run_id = head.run_id;
  update tidebase.gates g set status = 'cancelled' where g.run_id = head.run_id and g.status = 'pending';
  update tidebase.run_heads h
  set status = 'cancelled', lease_expires_at = null, waiting_for = null, available_at = null, due_at = null
  where h.run_id = head.run_id;
  delete from tidebase.awaited w where w.run_id = head.run_id;
  if head.in_queue then
    perform tidebase_private.leave_queue(head);
  end if;
  perform tidebase_private.emit(tidebase_private.advance(head.run_id), 'run.cancelled',
    jsonb_build_object('reason', reason, 'actor', actor));
  perform tidebase_private.wake_parents(head.run_id);
  return true;
end
$$;
comment on function tidebase_private.cancel_one(tidebase.run_heads, text, text) is
  'Makes a run cancelled and ends what hangs on it. The caller holds the head''s lock.';

-- Cancels the runs below a run, level by level and in the order of their ids within a level. Whatever root a call
-- starts from, it meets two runs of one tree in the same order, so two calls cannot wait for each other.
create or replace function tidebase_private.cancel_descendants(run_id text, reason text, actor text)
returns integer
language plpgsql volatile
as $$
declare
  level text[] := array[run_id];
  child text;
  cancelled integer := 0;
begin
  loop
    select array_agg(distinct e.child_run_id order by e.child_run_id) into level
    from tidebase.edges e
    where e.run_id = any (level) and e.edge_type <> 'fork' and e.source_run_id is null;
    exit when level is null;
    foreach child in array level loop
      cancelled := cancelled
        + tidebase_private.cancel_one(tidebase_private.lock_head(child), reason, actor)::integer;
    end loop;
  end loop;
  return cancelled;
end
$$;
comment on function tidebase_private.cancel_descendants(text, text, text) is
  'Cancels all descendants that are not final; forks are runs of their own and stay. The caller holds the head''s lock. Returns how many it cancelled.';

create or replace function tidebase.cancel_run(
  run_id text, reason text default null, actor text default null, cascade boolean default true)
returns integer
language plpgsql volatile security definer
set search_path = pg_catalog, tidebase, pg_temp
set enable_seqscan = off
as $$
declare
  head run_heads;
  who text := coalesce(actor, tidebase_private.caller());
  cancelled integer;
begin
  cascade := coalesce(cascade, true);
  perform tidebase_private.require_text(reason, 'reason');
  perform tidebase_private.require_text(actor, 'actor');
  perform tidebase_private.commit_durably();
  head := tidebase_private.lock_head(run_id);
  if head.status = 'completed' then
    perform tidebase_private.raise_fenced(run_id, head.lease_token);
  end if;
  cancelled := tidebase_private.cancel_one(head, reason, who)::integer;
  if cascade then
    cancelled := cancelled + tidebase_private.cancel_descendants(run_id, reason, who);
  end if;
  return cancelled;
end
$$;
comment on function tidebase.cancel_run(text, text, text, boolean) is
  'Cancels a run for good: every later call of its worker raises TB004, nothing resurrects it, its pending gates are closed. cascade (by default): its descendants, too, except forks. reason and actor (the database role unless told) go into the log. Returns how many runs this call cancelled: 0 when all were cancelled before. Errors: TB001, TB005 (it is completed).';

select tidebase_private.allow('function tidebase.cancel_run', 'operator');
