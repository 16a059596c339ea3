-- Lints over the catalogue: what is true of every object, now and later.
begin;
select no_plan();

select is_empty(
  $$select p.oid::regprocedure from pg_proc p where p.pronamespace = 'tidebase'::regnamespace and not p.prosecdef$$,
  'every function of the API is SECURITY DEFINER');
select is_empty(
  $$select p.oid::regprocedure from pg_proc p where p.pronamespace = 'tidebase'::regnamespace
      and not coalesce('search_path=pg_catalog, tidebase, pg_temp' = any (p.proconfig), false)$$,
  'and has a pinned search_path: the catalogue first, temporary objects last');
select is_empty(
  $$select p.oid::regprocedure from pg_proc p where p.pronamespace = 'tidebase_private'::regnamespace and p.prosecdef$$,
  'no private function is SECURITY DEFINER');
select is_empty(
  $$select p.proname from pg_proc p where p.pronamespace in ('tidebase'::regnamespace, 'tidebase_private'::regnamespace)
    group by p.pronamespace, p.proname having count(*) > 1$$, 'no function is overloaded');
select is_empty(
  $$select p.oid::regprocedure from pg_proc p where p.pronamespace in ('tidebase'::regnamespace, 'tidebase_private'::regnamespace)
      and obj_description(p.oid, 'pg_proc') is null$$, 'every function has a comment');
select is_empty(
  $$select p.oid::regprocedure from pg_proc p where p.pronamespace = 'tidebase'::regnamespace
      and obj_description(p.oid, 'pg_proc') !~ 'Errors?: TB\d{3}'$$, 'which names the errors, for the API');
select is_empty(
  $$select c.oid::regclass from pg_class c where c.relnamespace = 'tidebase'::regnamespace and c.relkind in ('r', 'v', 'c')
      and coalesce(obj_description(c.oid, 'pg_class'), obj_description(c.reltype, 'pg_type')) is null$$, 'every table, view and type has a comment');
select set_eq(
  $$select p.proname::text from pg_proc p where p.pronamespace = 'tidebase'::regnamespace and p.provolatile = 's'$$,
  $$values ('get_run'), ('list_runs'), ('list_gates'), ('load_checkpoints')$$, 'the readers are stable, the rest volatile (a read of the log may have to wait for the disk)');
select is_empty(
  $$select p.oid::regprocedure, a.name from pg_proc p, unnest(p.proargnames[1:p.pronargs]) as a (name)
    where p.pronamespace = 'tidebase'::regnamespace and a.name !~ '^[a-z][a-z_]*$'$$, 'parameters have plain names');

select is_empty(
  $$select c.oid::regclass from pg_class c
    where c.relnamespace = 'tidebase'::regnamespace and c.relkind = 'r' and not exists (
      select from pg_index i join pg_attribute a on a.attrelid = c.oid and a.attnum = i.indkey[0]
      where i.indrelid = c.oid and i.indisprimary and a.attname = 'run_id')$$, 'every table''s primary key begins with run_id');
select is_empty(
  $$select c.conname from pg_constraint c
    where c.connamespace = 'tidebase'::regnamespace and c.contype = 'f' and c.conrelid <> 'tidebase.edges'::regclass$$,
  'no foreign key crosses runs, except of edges');
select is_empty($$select t.tgname from pg_trigger t join pg_class c on c.oid = t.tgrelid
    where c.relnamespace = 'tidebase'::regnamespace and not t.tgisinternal$$, 'there is no trigger');
select is_empty($$select c.oid::regclass from pg_class c where c.relnamespace = 'tidebase'::regnamespace and c.relkind = 'S'$$, 'there is no sequence');
select is_empty(
  $$select c.conname from pg_constraint c
    where c.connamespace in ('tidebase'::regnamespace, 'tidebase_private'::regnamespace) and c.contype = 'c' and c.conname ~ '_check\d*$'$$,
  'every check has a name that states its rule');
select is_empty(
  $$select a.attname from pg_index i join pg_attribute a on a.attrelid = i.indrelid and a.attnum = any (i.indkey)
    where i.indrelid = 'tidebase.run_heads'::regclass and a.attname in ('last_seq', 'lease_expires_at', 'watched_until', 'updated_at', 'steps_completed')$$,
  'no index has a column of the head that every call changes: updates stay HOT');
select ok('fillfactor=50' = any (reloptions), 'heads leave room for their next version') from pg_class where oid = 'tidebase.run_heads'::regclass;

-- plpgsql_check, where it is installed.
create function pg_temp.problems() returns setof text language plpgsql as $$
begin
  begin
    create extension if not exists plpgsql_check;
  exception when others then
    return next 'skip';
    return;
  end;
  return query execute $q$
    select format('%s: %s %s (line %s)', p.oid::regprocedure, c.level, c.message, c.lineno)
    from pg_proc p join pg_language l on l.oid = p.prolang and l.lanname = 'plpgsql',
      lateral plpgsql_check_function_tb(p.oid, all_warnings => true) c
    where p.pronamespace in ('tidebase'::regnamespace, 'tidebase_private'::regnamespace)
      -- DDL over names that come from the catalogue and the privilege record, run by whoever installs; and raise() is
      -- volatile because it is called for its effect.
      and not (p.proname in ('apply_privileges', 'hand_over') and c.level = 'security')
      and not (p.proname = 'raise' and c.level = 'performance') $q$;
end
$$;
create temp table problem as select p as text from pg_temp.problems() p;
select case when exists (select from problem where text = 'skip') then skip('plpgsql_check is not installed', 1)
  else is_empty('select text from problem', 'plpgsql_check finds nothing, with all warnings') end;
select * from finish();
rollback;
