-- The fence: every call of a worker passes it, under the lock of the run's head, and takes its numbers of the log.
--
-- Lock order, kept by every function: the head of a run, then the run's other rows; a parent's head before its child's;
-- a queue's row before any head.
--
-- Every function about one run is planned without sequential scans. A session keeps a plan until the next ANALYZE, so
-- one that was made while a table was small would still be in use when it is large; and a scan would make SERIALIZABLE
-- transactions of different runs conflict.
--
-- Safety comes from tokens; time only decides who may take over. The fencing token is the one of Kleppmann, "How to do
-- distributed locking" (2016): it grows with every grant and goes with every write.

create or replace function tidebase_private.commit_durably()
returns void
language plpgsql volatile
as $$
begin
  if current_setting('synchronous_commit') = 'off' then
    perform set_config('synchronous_commit', 'on', true);
  end if;
end
$$;
comment on function tidebase_private.commit_durably() is
  'This transaction''s commit waits until its WAL is flushed, also where synchronous_commit is off. A stronger setting stays.';

-- For what may be lost harmlessly with the last moments of a crashed server. WAL is ordered, so a crash loses only a
-- suffix of the log. A transaction that has written already belongs to somebody who counts on its durability; one
-- that will write afterwards says so with tidebase.durability = 'full'.
create or replace function tidebase_private.commit_lazily()
returns void
language plpgsql volatile
as $$
begin
  if pg_current_xact_id_if_assigned() is null and current_setting('tidebase.durability', true) is distinct from 'full' then
    perform set_config('synchronous_commit', 'off', true);
  end if;
end
$$;
comment on function tidebase_private.commit_lazily() is
  'This transaction''s commit need not wait for the flush, unless it has written already or tidebase.durability is full.';

-- Tells the caller why the fence did not let the write through. A stale token is reported before a final status: who
-- lost the lease has no part in what became of the run; but a cancelled run says so to everyone.
create or replace function tidebase_private.raise_fenced(run_id text, token bigint)
returns void
language plpgsql volatile
as $$
declare
  head tidebase.run_heads;
  detail jsonb;
begin
  select h.* into head from tidebase.run_heads h where h.run_id = raise_fenced.run_id;
  if not found then
    perform tidebase_private.raise_run_not_found(run_id);
  end if;
  detail := jsonb_build_object('run_id', run_id, 'status', head.status, 'token', token,
    'current_token', head.lease_token, 'holder', head.holder);
  if head.status = 'cancelled' then
    perform tidebase_private.raise('TB004', format('run %L is cancelled', run_id), detail, 'Stop working on it: a cancelled run stays cancelled.');
  elsif token is distinct from head.lease_token then
    perform tidebase_private.raise('TB003', format('the lease of run %L is lost: token %s is not the current one', run_id, coalesce(token::text, 'NULL')),
      detail, 'Stop working on the run; acquire_run grants a new lease when the present one has run out.');
  elsif head.status = 'completed' then
    perform tidebase_private.raise('TB005', format('run %L is completed', run_id), detail, 'A completed run does not change any more.');
  else
    perform tidebase_private.raise('TB003', format('the lease of run %L was given up: the run is %s', run_id, head.status),
      detail, 'Call acquire_run to go on with the run.');
  end if;
end
$$;
comment on function tidebase_private.raise_fenced(text, bigint) is 'Raises TB001, TB003, TB004 or TB005: why a write with this token is refused.';

-- The gate of a write: takes the head's row lock, compares the token in the same statement, and counts the events
-- and checkpoints that the caller is about to write.
--
-- A holder whose lease has run out but whom nobody has replaced passes: its work is paid for, and the lock makes it safe.
create or replace function tidebase_private.fence(run_id text, token bigint, events integer, checkpoints integer default 0)
returns tidebase.run_heads
language plpgsql volatile
as $$
declare
  head tidebase.run_heads;
begin
  update tidebase.run_heads h
  set last_seq = h.last_seq + events,
      durable_seq = case when tidebase_private.is_durable() then h.last_seq + events else h.durable_seq end,
      steps_completed = h.steps_completed + checkpoints,
      updated_at = clock_timestamp()
  where h.run_id = fence.run_id and h.lease_token = fence.token and h.status = 'running'
  returning h.* into head;
  if not found then
    perform tidebase_private.raise_fenced(run_id, token);
  end if;
  return head;
end
$$;
comment on function tidebase_private.fence(text, bigint, integer, integer) is
  'Locks the run''s head, checks the lease token, and takes the next event numbers (last_seq is the newest of them). Errors: TB001, TB003, TB004, TB005.';

-- The same for what ends a step: its work is done and paid for, so it is stored as long as nobody else can have begun it
-- again. Giving the lease up (a release, a suspension, a review, a failure) stops what is to come, not what was done.
create or replace function tidebase_private.fence_done(run_id text, token bigint, events integer, checkpoints integer default 0)
returns tidebase.run_heads
language plpgsql volatile
as $$
declare
  head tidebase.run_heads;
begin
  update tidebase.run_heads h
  set last_seq = h.last_seq + events,
      durable_seq = case when tidebase_private.is_durable() then h.last_seq + events else h.durable_seq end,
      steps_completed = h.steps_completed + checkpoints,
      updated_at = clock_timestamp()
  where h.run_id = fence_done.run_id and h.lease_token = fence_done.token and h.status not in ('completed', 'cancelled')
    and h.lease_token > 0  -- else it was never leased
  returning h.* into head;
  if not found then
    perform tidebase_private.raise_fenced(run_id, token);
  end if;
  return head;
end
$$;
comment on function tidebase_private.fence_done(text, bigint, integer, integer) is
  'As fence, but also under a lease that was granted and given up, while no newer one was granted and the run is not over. Errors: TB001, TB003, TB004, TB005.';

create or replace function tidebase_private.is_durable()
returns boolean
language sql stable
as $$
  select current_setting('synchronous_commit') <> 'off';
$$;
comment on function tidebase_private.is_durable() is 'Whether this transaction''s commit waits for the flush, as it stands now.';

-- For what is done to a run by others than its worker: they carry no token, so the lock is taken first, then numbers.
create or replace function tidebase_private.lock_head(run_id text)
returns tidebase.run_heads
language plpgsql volatile
as $$
declare
  head tidebase.run_heads;
begin
  select h.* into head from tidebase.run_heads h where h.run_id = lock_head.run_id for no key update;
  if not found then
    perform tidebase_private.raise_run_not_found(run_id);
  end if;
  return head;
end
$$;
comment on function tidebase_private.lock_head(text) is 'Takes the row lock of the run''s head. Errors: TB001.';

create or replace function tidebase_private.advance(run_id text)
returns tidebase.run_heads
language sql volatile
as $$
  update tidebase.run_heads h
  set last_seq = h.last_seq + 1,
      durable_seq = case when tidebase_private.is_durable() then h.last_seq + 1 else h.durable_seq end,
      updated_at = clock_timestamp()
  where h.run_id = advance.run_id
  returning h.*;
$$;
comment on function tidebase_private.advance(text) is 'Takes the next event number; the caller holds the head''s lock.';

create or replace function tidebase_private.require_time_left(head tidebase.run_heads)
returns void
language plpgsql volatile
as $$
begin
  if head.deadline_at <= clock_timestamp() then
    perform tidebase_private.raise('TB004', format('the deadline of run %L has passed', head.run_id),
      jsonb_build_object('run_id', head.run_id, 'deadline_at', head.deadline_at),
      'Stop working on it: reconcile cancels it. A new run may be given more time.');
  end if;
end
$$;
comment on function tidebase_private.require_time_left(tidebase.run_heads) is
  'Raises TB004 when the run''s deadline has passed, whether or not reconcile has come round to cancelling it.';

create or replace function tidebase_private.give_back(head tidebase.run_heads, events integer, checkpoints integer default 0)
returns void
language plpgsql volatile
as $$
begin
  update tidebase.run_heads h
  set last_seq = h.last_seq - events,
      durable_seq = least(h.durable_seq, h.last_seq - events),
      steps_completed = h.steps_completed - checkpoints
  where h.run_id = head.run_id;
end
$$;
comment on function tidebase_private.give_back(tidebase.run_heads, integer, integer) is
  'Returns numbers that fence() took in this transaction and that turned out not to be needed: nobody has seen them.';
