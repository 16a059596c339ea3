-- Children: runs that a run starts. One child an edge name, so a parent that is resumed finds its children again.

create or replace function tidebase.create_child(
  run_id text, token bigint, name text, workflow text, input jsonb default null, edge_type text default 'child',
  metadata jsonb default null)
returns tidebase.child
language plpgsql volatile security definer
set search_path = pg_catalog, tidebase, pg_temp
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
  end if;
  perform tidebase_private.commit_durably();
  head := tidebase_private.fence(run_id, token, 1);
  perform tidebase_private.require_time_left(head);
  select e.* into edge from edges e where e.run_id = create_child.run_id and e.name = create_child.name;
  if found then
    perform tidebase_private.give_back(head, 1);
    perform create_run(workflow, input, run_id => edge.child_run_id);  -- the same child, or TB006
    return row(edge.child_run_id, false)::child;
  end if;

  child_id := create_run(workflow, input, metadata => metadata, deadline => head.deadline_at);
  insert into edges (run_id, name, child_run_id, edge_type) values (head.run_id, create_child.name, child_id, create_child.edge_type);
  perform tidebase_private.emit(head, 'run.child.created', jsonb_build_object('name', name, 'child_run_id', child_id,
    'workflow', workflow, 'edge_type', edge_type));
  return row(child_id, true)::child;
end
$$;
comment on function tidebase.create_child(text, bigint, text, text, jsonb, text, jsonb) is
  'Makes a child of the run, or finds the one that was made under this edge name. The child has the parent''s deadline, and is cancelled with it. edge_type: any word but fork; metadata: of the child. Errors: TB001, TB002, TB003, TB004, TB005, TB006 (the name stands for a child with another workflow or input).';

select tidebase_private.allow('function tidebase.create_child', 'worker');
