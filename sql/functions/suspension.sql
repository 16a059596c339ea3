-- Suspension: a run gives its lease up and waits in the database.

create or replace function tidebase_private.was_suspended(head tidebase.run_heads, token bigint)
returns boolean
language sql stable
as $$
  select head.lease_token = token and head.status <> 'cancelled' and exists (
    select from tidebase.attempts a
    where a.run_id = head.run_id and a.attempt = head.attempt and a.outcome = 'suspended');
$$;
comment on function tidebase_private.was_suspended(tidebase.run_heads, bigint) is
  'Whether the lease with this token, the newest, was ended by a suspension.';

create or replace function tidebase_private.suspend(head tidebase.run_heads, waiting_for text, children text[] default null)
returns void
language plpgsql volatile
as $$
begin
  perform tidebase_private.end_attempt(head, 'suspended');
  update tidebase.run_heads h
  set status = 'waiting', waiting_for = suspend.waiting_for, lease_expires_at = null
  where h.run_id = head.run_id
  returning h.* into head;
  update tidebase.run_heads h set due_at = tidebase_private.next_due(head) where h.run_id = head.run_id;
  perform tidebase_private.emit(head, 'run.suspended', jsonb_strip_nulls(jsonb_build_object(
    'attempt', head.attempt, 'token', head.lease_token, 'name', waiting_for, 'children', children)));
end
$$;
comment on function tidebase_private.suspend(tidebase.run_heads, text, text[]) is
  'Ends the attempt and lets the run wait for a gate, a timer, or children. The caller has passed the fence for one event.';

-- Ends the work of this process on the run until the gate or timer is decided.
create or replace function tidebase.suspend_run(run_id text, token bigint, name text)
returns boolean
language plpgsql volatile security definer
set search_path = pg_catalog, tidebase, pg_temp
set enable_seqscan = off
as $$
declare
  head run_heads;
  gate gates;
begin
  perform tidebase_private.commit_durably();
  head := tidebase_private.lock_head(run_id);
  if tidebase_private.was_suspended(head, token) then
    return true;  -- the same call again, whatever was decided since
  end if;
  head := tidebase_private.fence(run_id, token, 1);
  select g.* into gate from gates g where g.run_id = suspend_run.run_id and g.name = suspend_run.name;
  if not found then
    perform tidebase_private.raise_gate_not_found(run_id, name);
  elsif gate.status = 'decided' or gate.timeout_at <= clock_timestamp() then
    perform tidebase_private.give_back(head, 1);
    return false;
  end if;
  perform tidebase_private.suspend(head, name);
  return true;
end
$$;
comment on function tidebase.suspend_run(text, bigint, text) is
  'Gives the lease up and lets the run wait for one of its gates or timers, with no process alive: once that is decided, acquire_run grants the run again. False when it is decided already: go on. Errors: TB001, TB003, TB004, TB005, TB012.';

select tidebase_private.allow('function tidebase.suspend_run', 'worker');
