-- Children: runs that a run starts. One child an edge name, so a parent that is resumed finds its children again.

create or replace function tidebase.create_child(
  run_id text, token bigint, name text, workflow text, input jsonb default null, edge_type text default 'child',
  metadata jsonb default null, edge_metadata jsonb default null, max_attempts integer default null,
  retry_delay interval default null, recovery_webhook text default null, budget jsonb default null,
  traceparent text default null)
returns tidebase.child
language plpgsql volatile security definer
set search_path = pg_catalog, tidebase, pg_temp
set enable_seqscan = off
as $$
declare
  head run_heads;
  edge edges;
  child_id text;
begin
  edge_type := coalesce(edge_type, 'child');
  perform tidebase_private.require_name(name, 'name', 1024);
  perform tidebase_private.require_name(edge_type, 'edge_type', 255);
  if edge_type = 'fork' then
    perform tidebase_private.raise_invalid('edge_type', 'must not be fork, which marks runs made by fork_run');
  elsif starts_with(name, 'fork:') then
    perform tidebase_private.raise_invalid('name', 'must not begin with fork:, which marks the edges to forks');
  elsif jsonb_typeof(edge_metadata) <> 'object' then
    perform tidebase_private.raise_invalid('edge_metadata', 'must be a JSON object');
  end if;
  perform tidebase_private.require_note(edge_metadata, 'edge_metadata');
  perform tidebase_private.commit_durably();
  head := tidebase_private.fence(run_id, token, 1);
  perform tidebase_private.require_time_left(head);
  select e.* into edge from edges e where e.run_id = create_child.run_id and e.name = create_child.name;
  if found then
    perform tidebase_private.give_back(head, 1);
    perform create_run(workflow, input, run_id => edge.child_run_id);  -- the same child, or TB006
    return row(edge.child_run_id, false)::child;
  end if;

  child_id := create_run(workflow, input, run_id => new_run_id(beside => head.run_id), metadata => metadata, deadline => head.deadline_at, max_attempts => max_attempts,
    retry_delay => retry_delay, recovery_webhook => recovery_webhook, budget => budget, traceparent => traceparent);
  if head.has_budget then
    update run_heads h set has_budget = true where h.run_id = child_id;
    perform tidebase_private.open_account(child_id, parent_run_id => head.run_id);
  end if;
  update runs r set parent_run_id = head.run_id where r.run_id = child_id;
  insert into edges (run_id, name, child_run_id, edge_type, metadata)
  values (head.run_id, create_child.name, child_id, create_child.edge_type, coalesce(edge_metadata, '{}'));
  perform tidebase_private.emit(head, 'run.child.created', jsonb_build_object('name', name, 'child_run_id', child_id,
    'workflow', workflow, 'edge_type', edge_type));
  return row(child_id, true)::child;
end
$$;
comment on function tidebase.create_child(text, bigint, text, text, jsonb, text, jsonb, jsonb, integer, interval, text, jsonb, text) is
  'Makes a child of the run, or finds the one that was made under this edge name. The child''s id lies beside its parent''s (see new_run_id). The child has the parent''s deadline, shares its budget (beside a smaller one of its own), and is cancelled with it. edge_type: any word but fork; metadata: of the child; edge_metadata: of the edge; the rest is as for create_run. Errors: TB001, TB002, TB003, TB004, TB005, TB006 (the name stands for a child with another workflow or input).';

-- Whether a run that is waited for has become something to go on with: it has ended, or a worker may take it up. Of one that
-- waits itself, for children of its own, that is known when these have woken it.
create or replace function tidebase_private.is_ready(child tidebase.run_heads)
returns boolean
language plpgsql volatile
as $$
begin
  if child.status = 'waiting' then
    return exists (
      select from tidebase.gates g
      where g.run_id = child.run_id and g.name = child.waiting_for and g.timeout_at <= clock_timestamp());
  end if;
  return child.status in ('completed', 'cancelled', 'failed') or not tidebase_private.is_taken(child, null);
end
$$;
comment on function tidebase_private.is_ready(tidebase.run_heads) is 'Whether the parent of a run need not wait for it any more.';

-- One after the other: in a condition of the join, is_ready could be asked about every run there is.
create or replace function tidebase_private.find_ready_child(run_id text)
returns tidebase.run_heads
language plpgsql volatile
as $$
declare
  child tidebase.run_heads;
begin
  for child in
    select c.* from tidebase.awaited w
    join tidebase.run_heads c on c.run_id = w.child_run_id
    where w.run_id = find_ready_child.run_id
    order by c.run_id
  loop
    if tidebase_private.is_ready(child) then
      return child;
    end if;
  end loop;
  return null;
end
$$;
comment on function tidebase_private.find_ready_child(text) is 'One of the children that a run waits for which is ready; a row of NULLs if none is.';

create or replace function tidebase_private.has_ready_child(run_id text)
returns boolean
language plpgsql volatile
as $$
begin
  return (tidebase_private.find_ready_child(run_id)).run_id is not null;
end
$$;
comment on function tidebase_private.has_ready_child(text) is 'Whether one of the children that a run waits for is ready.';

create or replace function tidebase_private.go_on(run_id text, child tidebase.run_heads)
returns void
language plpgsql volatile
as $$
declare
  head tidebase.run_heads;
  edge text := (
    select min(e.name) from tidebase.edges e
    where e.run_id = go_on.run_id and e.child_run_id = child.run_id and e.edge_type <> 'fork');
begin
  delete from tidebase.awaited w where w.run_id = go_on.run_id;
  update tidebase.run_heads h set status = tidebase_private.free_status(h), waiting_for = null where h.run_id = go_on.run_id
  returning h.* into head;
  perform tidebase_private.requeue(head);
  perform tidebase_private.emit(tidebase_private.advance(run_id), 'run.child.ready',
    jsonb_build_object('name', edge, 'child_run_id', child.run_id, 'status', child.status));
end
$$;
comment on function tidebase_private.go_on(text, tidebase.run_heads) is
  'Ends a run''s wait for its children, of which this one is ready. The caller holds the head''s lock.';

-- Called when a run has ended, or may be taken up by a worker: whoever waits for it may go on, and whoever waits for that one.
-- The child's lock is held, and a parent's comes before its child's, so nobody is waited for: where somebody has the parent's
-- lock, the child is due at once, and reconcile tries again.
create or replace function tidebase_private.wake_parents(run_id text)
returns void
language plpgsql volatile
as $$
declare
  ready text[] := array[run_id];
  child tidebase.run_heads;
  parent text;
begin
  while cardinality(ready) > 0 loop
    child.run_id := ready[1];
    ready := ready[2:];
    continue when not exists (select from tidebase.awaited w where w.child_run_id = child.run_id);
    select h.* into child from tidebase.run_heads h where h.run_id = child.run_id;
    continue when not tidebase_private.is_ready(child);
    for parent in
      select h.run_id
      from tidebase.run_heads h
      where h.run_id in (select w.run_id from tidebase.awaited w where w.child_run_id = child.run_id) and h.status = 'waiting'
      for no key update skip locked
    loop
      perform tidebase_private.go_on(parent, child);
      ready := ready || parent;
    end loop;
    update tidebase.run_heads h set due_at = clock_timestamp()
    where h.run_id = child.run_id and exists (select from tidebase.awaited w where w.child_run_id = child.run_id);
  end loop;
end
$$;
comment on function tidebase_private.wake_parents(text) is
  'Lets the runs go on that wait for this one, if it is ready. The caller holds its head''s lock.';

-- Ends the work of this process on the run until one of its children has come further.
--
-- The children's heads are locked against change while they are looked at, a parent's lock before its child's: what becomes
-- of a child afterwards finds its parent waiting.
create or replace function tidebase.suspend_for_children(run_id text, token bigint, names text[])
returns boolean
language plpgsql volatile security definer
set search_path = pg_catalog, tidebase, pg_temp
set enable_seqscan = off
as $$
declare
  head run_heads;
  children text[];
begin
  perform tidebase_private.require_list(names, 'names');
  if coalesce(cardinality(names), 0) = 0 then
    perform tidebase_private.raise_invalid('names', 'must not be empty');
  end if;
  perform tidebase_private.commit_durably();
  head := tidebase_private.lock_head(run_id);
  if tidebase_private.was_suspended(head, token) then
    return true;  -- the same call again, whatever came since
  end if;
  head := tidebase_private.fence(run_id, token, 1);
  select array_agg(distinct e.child_run_id order by e.child_run_id) into children
  from edges e
  where e.run_id = suspend_for_children.run_id and e.name = any (names) and e.edge_type <> 'fork';
  if children is null then
    perform tidebase_private.raise('TB012', format('run %L has no child %L', run_id, names[1]),
      jsonb_build_object('run_id', run_id, 'names', names), 'Children are made by create_child; see run_tree.');
  end if;
  perform from run_heads h where h.run_id = any (children) order by h.run_id for share;
  insert into awaited (run_id, child_run_id) select head.run_id, c from unnest(children) c;
  if tidebase_private.has_ready_child(run_id) then
    delete from awaited w where w.run_id = suspend_for_children.run_id;
    perform tidebase_private.give_back(head, 1);
    return false;
  end if;
  perform tidebase_private.suspend(head, left(array_to_string(names, ', '), 1024), names);
  return true;
end
$$;
comment on function tidebase.suspend_for_children(text, bigint, text[]) is
  'Gives the lease up and lets the run wait for children of it, with no process alive: once one of them has ended, or may be taken up by a worker (its gate was decided, its lease was given up or has run out), acquire_run grants the run again. names: of their edges, at least one. False when one is that far already: go on. Errors: TB001, TB002, TB003, TB004, TB005, TB012.';

-- Depth first, brothers in the order in which they were made.
create or replace function tidebase.run_tree(run_id text)
returns setof tidebase.tree_node
language plpgsql stable security definer rows 100
set search_path = pg_catalog, tidebase, pg_temp
set enable_seqscan = off
as $$
begin
  return query
    with recursive tree as (
      select h.run_id as id, null::text as parent, null::text as edge, null::text as type, 0 as depth, null::timestamptz as made
      from run_heads h
      where h.run_id = run_tree.run_id
      union all
      select e.child_run_id, e.run_id, e.name, e.edge_type, t.depth + 1, e.created_at
      from tree t join edges e on e.run_id = t.id
    ) search depth first by made, edge set place
    select t.id, t.parent, t.edge, t.type, t.depth, r.workflow, h.status, h.steps_completed, r.created_at,
      case when h.status in ('completed', 'failed', 'cancelled') then r.finished_at end
    from tree t
    join run_heads h on h.run_id = t.id
    join runs r on r.run_id = t.id
    order by t.place;
  if not found then
    perform tidebase_private.raise_run_not_found(run_id);
  end if;
end
$$;
comment on function tidebase.run_tree(text) is
  'The run with everything below it, to any depth: children and (edge_type fork) forks, each behind its parent. Errors: TB001.';

create or replace view tidebase.run_edges with (security_barrier = true) as
  select
    e.run_id,
    e.name,
    e.child_run_id,
    e.edge_type,
    e.metadata,
    e.source_run_id,
    e.created_at
  from tidebase.edges e;
comment on view tidebase.run_edges is
  'One row an edge: a child of a run, or (edge_type fork) a fork, with its name and metadata. source_run_id: of an edge that a fork took over, the run whose child it is. Order by created_at.';

select tidebase_private.allow('function tidebase.create_child', 'worker');
select tidebase_private.allow('table tidebase.run_edges', 'worker', 'approver', 'operator', 'reader');
select tidebase_private.allow('function tidebase.suspend_for_children', 'worker');
select tidebase_private.allow('function tidebase.run_tree', 'worker', 'approver', 'operator', 'reader');
