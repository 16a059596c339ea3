-- What the specs call in their setups: run it in a scratch database, as superuser, before any of them.
create schema spec;

-- Every permutation begins with empty tables, and none may leave rows behind that break a rule.
create function spec.reset()
returns void
language plpgsql
as $$
declare
  broken text := (select jsonb_agg(to_jsonb(c)) from tidebase_private.check_invariants() c);
begin
  if broken is not null then
    raise 'the permutation before this one has broken an invariant: %', broken;
  end if;
  execute (
    select 'truncate ' || string_agg(c.oid::regclass::text, ', ')
    from pg_class c
    where c.relnamespace = 'tidebase'::regnamespace and c.relkind = 'r');
end
$$;

-- Makes a run the child of another one: one whose id a spec can name.
create function spec.adopt(parent text, child text)
returns void
language plpgsql
as $$
begin
  perform from tidebase.create_run('demo', run_id => child);
  insert into tidebase.edges (run_id, name, child_run_id, edge_type) values (parent, child, child, 'child');
  perform tidebase_private.emit(tidebase_private.advance(parent), 'run.child.created',
    jsonb_build_object('name', child, 'child_run_id', child));
end
$$;

-- Makes a lease run out now, as if its holder had been silent for long enough.
create function spec.expire(run_id text)
returns void
language sql
as $$
  update tidebase.run_heads h
  set lease_expires_at = clock_timestamp() - interval '1 second', due_at = clock_timestamp() - interval '1 second'
  where h.run_id = expire.run_id;
$$;
