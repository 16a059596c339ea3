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
  perform tidebase_private.require_name(name, 'name', 1024);
  perform tidebase_private.require_name(edge_type, 'edge_type', 255);
  if edge_type = 'fork' then
    perform tidebase_private.raise_invalid('edge_type', 'must not be fork, which marks runs made by fork_run');
  elsif starts_with(name, 'fork:') then
    perform tidebase_private.raise_invalid('name', 'must not begin with fork:, which marks the edges to forks');
  elsif jsonb_typeof(edge_metadata) <> 'object' then
    perform tidebase_private.raise_invalid('edge_metadata', 'must be a JSON object');
  end if;
  perform tidebase_private.require_size(edge_metadata, 'edge_metadata');
  perform tidebase_private.commit_durably();
  head := tidebase_private.fence(run_id, token, 1);
  perform tidebase_private.require_time_left(head);
  select e.* into edge from edges e where e.run_id = create_child.run_id and e.name = create_child.name;
  if found then
    perform tidebase_private.give_back(head, 1);
    perform create_run(workflow, input, run_id => edge.child_run_id);  -- the same child, or TB006
    return row(edge.child_run_id, false)::child;
  end if;

  child_id := create_run(workflow, input, metadata => metadata, deadline => head.deadline_at, max_attempts => max_attempts,
    retry_delay => retry_delay, recovery_webhook => recovery_webhook, budget => budget, traceparent => traceparent);
  if head.has_budget then
    update run_heads h set has_budget = true where h.run_id = child_id;
    perform tidebase_private.open_account(child_id, parent_run_id => head.run_id);
  end if;
  insert into edges (run_id, name, child_run_id, edge_type, metadata)
  values (head.run_id, create_child.name, child_id, create_child.edge_type, coalesce(edge_metadata, '{}'));
  perform tidebase_private.emit(head, 'run.child.created', jsonb_build_object('name', name, 'child_run_id', child_id,
    'workflow', workflow, 'edge_type', edge_type));
  return row(child_id, true)::child;
end
$$;
comment on function tidebase.create_child(text, bigint, text, text, jsonb, text, jsonb, jsonb, integer, interval, text, jsonb, text) is
  'Makes a child of the run, or finds the one that was made under this edge name. The child has the parent''s deadline, shares its budget (beside a smaller one of its own), and is cancelled with it. edge_type: any word but fork; metadata: of the child; edge_metadata: of the edge; the rest is as for create_run. Errors: TB001, TB002, TB003, TB004, TB005, TB006 (the name stands for a child with another workflow or input).';

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

select tidebase_private.allow('function tidebase.create_child', 'worker');
select tidebase_private.allow('function tidebase.run_tree', 'worker', 'approver', 'operator', 'reader');
