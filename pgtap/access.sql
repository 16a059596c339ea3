-- Who may call what: the whole matrix, written down once more, and compared with the catalogue.
begin;
select no_plan();

create temp table may (name text, worker boolean, approver boolean, operator boolean, reader boolean);
insert into may values
  ('acquire_run',      true,  false, false, false),
  ('append_event',     true,  false, false, false),
  ('begin_step',       true,  false, false, false),
  ('cancel_run',       false, false, true,  false),
  ('claim_deliveries', false, false, true,  false),
  ('complete_run',     true,  false, false, false),
  ('complete_step',    true,  false, false, false),
  ('create_child',     true,  false, false, false),
  ('create_run',       true,  false, false, false),
  ('decide_gate',      false, true,  true,  true),
  ('fail_run',         true,  false, false, false),
  ('fail_step',        true,  false, false, false),
  ('finish_delivery',  false, false, true,  false),
  ('finish_recovery',  false, false, true,  false),
  ('get_gate',         true,  true,  true,  true),
  ('get_run',          true,  true,  true,  true),
  ('list_gates',       true,  true,  true,  true),
  ('list_runs',        true,  true,  true,  true),
  ('load_checkpoints', true,  false, false, false),
  ('open_gate',        true,  false, false, false),
  ('read_events',      true,  true,  true,  true),
  ('reconcile',        true,  false, true,  false),
  ('record_recovery',  false, false, true,  false),
  ('recover_run',      false, false, true,  false),
  ('release_run',      true,  false, false, false),
  ('renew_lease',      true,  false, false, false),
  ('resolve_review',   false, true,  true,  false),
  ('start_timer',      true,  false, false, false),
  ('suspend_run',      true,  false, false, false),
  ('watch_run',        true,  true,  true,  true);

select set_eq(
  $$select proname::text from pg_proc where pronamespace = 'tidebase'::regnamespace$$, $$select name from may$$,
  'every function of the API is in the matrix, and none beside');
select set_eq(
  $$select p.proname::text, r.audience from pg_proc p, unnest(array['worker', 'approver', 'operator', 'reader']) as r (audience)
    where p.pronamespace = 'tidebase'::regnamespace and has_function_privilege('tidebase_' || r.audience, p.oid, 'execute')$$,
  $$select m.name, r.audience from may m, lateral (values ('worker', m.worker), ('approver', m.approver),
      ('operator', m.operator), ('reader', m.reader)) as r (audience, may) where r.may$$,
  'each role may execute what the matrix says, and nothing else');

select is_empty(
  $$select c.oid::regclass, r.audience, p.privilege from pg_class c, unnest(array['worker', 'approver', 'operator', 'reader']) as r (audience),
      unnest(array['select', 'insert', 'update', 'delete', 'truncate', 'references', 'trigger']) as p (privilege)
    where c.relnamespace in ('tidebase'::regnamespace, 'tidebase_private'::regnamespace) and c.relkind in ('r', 'p')
      and has_table_privilege('tidebase_' || r.audience, c.oid, p.privilege)$$,
  'no role but the owner has any privilege on any table');
select is_empty(
  $$select c.oid::regclass, r.audience, p.privilege from pg_class c, unnest(array['worker', 'approver', 'operator', 'reader']) as r (audience),
      unnest(array['insert', 'update', 'delete', 'truncate', 'references', 'trigger']) as p (privilege)
    where c.relnamespace = 'tidebase'::regnamespace and c.relkind = 'v' and has_table_privilege('tidebase_' || r.audience, c.oid, p.privilege)$$,
  'views are for reading');
select is_empty(
  $$select c.oid::regclass, r.audience from pg_class c, unnest(array['worker', 'approver', 'operator', 'reader']) as r (audience)
    where c.relnamespace = 'tidebase'::regnamespace and c.relkind = 'v' and not has_table_privilege('tidebase_' || r.audience, c.oid, 'select')$$,
  'everyone may read the views');
select is_empty(
  $$select p.oid::regprocedure, r.audience from pg_proc p, unnest(array['worker', 'approver', 'operator', 'reader']) as r (audience)
    where p.pronamespace = 'tidebase_private'::regnamespace and has_function_privilege('tidebase_' || r.audience, p.oid, 'execute')$$,
  'nobody but the owner executes a private function');
select is_empty(
  $$select r.audience from unnest(array['worker', 'approver', 'operator', 'reader']) as r (audience)
    where has_schema_privilege('tidebase_' || r.audience, 'tidebase_private', 'usage') or has_schema_privilege('tidebase_' || r.audience, 'tidebase', 'create')$$,
  'nobody but the owner looks into the private schema, or creates in the other');

create role nobody_at_all;
select is_empty(
  $$select p.oid::regprocedure from pg_proc p where p.pronamespace in ('tidebase'::regnamespace, 'tidebase_private'::regnamespace)
      and has_function_privilege('nobody_at_all', p.oid, 'execute')$$, 'PUBLIC may execute nothing');
select is_empty(
  $$select c.oid::regclass from pg_class c where c.relnamespace in ('tidebase'::regnamespace, 'tidebase_private'::regnamespace)
      and c.relkind in ('r', 'v') and has_table_privilege('nobody_at_all', c.oid, 'select')$$, 'PUBLIC may read nothing');
select is_empty(
  $$select from unnest(array['worker', 'approver', 'operator', 'reader', 'owner']) a, unnest(array['worker', 'approver', 'operator', 'reader', 'owner']) b
    where a <> b and pg_has_role('tidebase_' || a, 'tidebase_' || b, 'member')$$, 'the roles are siblings');

select is_empty(
  $$select c.oid::regclass::text from pg_class c where c.relnamespace in ('tidebase'::regnamespace, 'tidebase_private'::regnamespace)
      and c.relkind in ('r', 'v', 'c') and pg_get_userbyid(c.relowner) <> 'tidebase_owner'
    union all
    select p.oid::regprocedure::text from pg_proc p where p.pronamespace in ('tidebase'::regnamespace, 'tidebase_private'::regnamespace)
      and pg_get_userbyid(p.proowner) <> 'tidebase_owner'$$, 'everything belongs to the owner role');
select is(has_table_privilege('tidebase_owner', 'tidebase.events', 'update'), false, 'not even the owner may change an event');
select is(has_table_privilege('tidebase_owner', 'tidebase.events', 'truncate'), false, 'or empty the log');
set local role tidebase_owner;
select throws_ok($$update tidebase.events set type = 'x'$$, '42501', null, 'so an update of the log is refused');
reset role;

-- What is broken by hand is mended.
grant select on tidebase.runs to tidebase_reader;
revoke execute on function tidebase.create_run from tidebase_worker;
select tidebase_private.apply_privileges();
select is(has_table_privilege('tidebase_reader', 'tidebase.runs', 'select'), false, 'apply_privileges takes away what is not recorded');
select is(has_function_privilege('tidebase_worker', (select oid from pg_proc where proname = 'create_run'), 'execute'), true, 'and gives back what is');
select throws_ok($$select tidebase_private.allow('function tidebase.f', 'everyone')$$, '23514', null, 'an audience is one of four');

select set_eq($$select unnest(tidebase_private.install_roles('acme'))$$,
  $$values ('acme_owner'), ('acme_worker'), ('acme_approver'), ('acme_operator'), ('acme_reader')$$, 'the roles may have another prefix');
select is(has_function_privilege('acme_worker', (select oid from pg_proc where proname = 'create_run'), 'execute'), true, 'which get their part');
select is((select pg_get_userbyid(relowner) from pg_class where oid = 'tidebase.runs'::regclass), 'acme_owner'::name, 'and own everything');
select is_empty($$select unnest(tidebase_private.install_roles())$$, 'a second time there is nothing to create, and the prefix is remembered');

-- Who calls, seen from a SECURITY DEFINER function.
set local role acme_approver;
select is((select current_setting('role')), 'acme_approver', 'a role that is set');
reset role;
select * from finish();
rollback;
