-- Who may call what: the whole matrix, written down once more, and compared with the catalogue.
begin;
select no_plan();
\ir support/helpers.psql

create role nobody_at_all;
create temp table role_of (audience text, role text);
insert into role_of values ('worker', 'tidebase_worker'), ('approver', 'tidebase_approver'), ('operator', 'tidebase_operator'), ('reader', 'tidebase_reader'),
  ('stranger', 'nobody_at_all');

create temp table may (name text, worker boolean, approver boolean, operator boolean, reader boolean, stranger boolean);
insert into may values
  ('claim_thread',         true, false, false, false, false),
  ('copy_thread',          true, false, true, false, false),
  ('delete_checkpoints_of_runs', true, false, true, false, false),
  ('delete_thread',        true, false, true, false, false),
  ('get_checkpoint',       true, false, true, true, false),
  ('get_checkpoint_beyond', true, false, true, true, false),
  ('has_checkpoint',       true, false, true, true, false),
  ('list_checkpoints',     true, false, true, true, false),
  ('prune_threads',        true, false, true, false, false),
  ('put_checkpoint',       true, false, false, false, false),
  ('put_checkpoint_writes', true, false, false, false, false),
  ('acquire_run',         true,  false, false, false, false),
  ('add_channel',         true,  false, true,  false, false),
  ('append_event',        true,  false, false, false, false),
  ('begin_step',          true,  false, false, false, false),
  ('begin_step_with',     true,  false, false, false, false),
  ('cancel_run',          false, false, true,  false, false),
  ('claim_channel_deliveries', false, false, true, false, false),
  ('claim_deliveries',    false, false, true,  false, false),
  ('compact_run',         false, false, true,  false, false),
  ('count_runs',          true,  true,  true,  true,  false),
  ('complete_run',        true,  false, false, false, false),
  ('complete_runs',       true,  false, false, false, false),
  ('check_invariants',    false, false, true,  false, false),
  ('complete_step',       true,  false, false, false, false),
  ('record_step',         true,  false, false, false, false),
  ('record_steps',        true,  false, false, false, false),
  ('record_steps_of_runs', true, false, false, false, false),
  ('create_child',        true,  false, false, false, false),
  ('create_run',          true,  false, false, false, false),
  ('create_snapshot',     true,  false, false, false, false),
  ('decide_gate',         false, true,  true,  true,  false),
  ('diff_runs',           true,  true,  true,  true,  false),
  ('fail_run',            true,  false, false, false, false),
  ('fail_step',           true,  false, false, false, false),
  ('find_run',            true,  true,  true,  true,  false),
  ('finish_channel_delivery', false, false, true, false, false),
  ('finish_delivery',     false, false, true,  false, false),
  ('finish_recovery',     false, false, true,  false, false),
  ('fork_run',            true,  false, true,  false, false),
  ('get_gate',            true,  true,  true,  true,  false),
  ('get_gate_secret',  true,  false, false, false,  false),
  ('get_run',             true,  true,  true,  true,  false),
  ('get_state',           true,  true,  true,  true,  false),
  ('list_channels',       true,  true,  true,  true,  false),
  ('list_gates',          true,  true,  true,  true,  false),
  ('list_inbox',          true,  true,  true,  true,  false),
  ('search_runs',         true,  true,  true,  true,  false),
  ('move_run',            false, false, true,  false, false),
  ('list_runs',           true,  true,  true,  true,  false),
  ('list_snapshots',      true,  true,  true,  true,  false),
  ('list_state_versions', true,  true,  true,  true,  false),
  ('load_checkpoints',    true,  false, false, false, false),
  ('merge_state',         true,  false, false, false, false),
  ('new_run_id',          true,  false, true,  false, false),
  ('open_gate',           true,  false, false, false, false),
  ('patch_state',         true,  false, false, false, false),
  ('protocol',            true,  true,  true,  true,  false),
  ('purge_runs',          false, false, true,  false, false),
  ('read_events',         true,  true,  true,  true,  false),
  ('renew_leases',        true,  false, false, false, false),
  ('reconcile',           true,  false, true,  false, false),
  ('require_bucket',      true,  true,  true,  true,  false),
  ('shard_epoch',         true,  true,  true,  true,  false),
  ('shard_map',           true,  true,  true,  true,  false),
  ('record_recovery',     false, false, true,  false, false),
  ('record_usage',        true,  false, false, false, false),
  ('recover_run',         false, false, true,  false, false),
  ('release_run',         true,  false, false, false, false),
  ('remove_channel',      true,  false, true,  false, false),
  ('renew_lease',         true,  false, false, false, false),
  ('resolve_review',      false, true,  true,  false, false),
  ('restore_state',       true,  false, false, false, false),
  ('retry_channel',       true,  false, true,  false, false),
  ('run_tree',            true,  true,  true,  true,  false),
  ('save_state',          true,  false, false, false, false),
  ('set_budget',          false, false, true,  false, false),
  ('set_state',           true,  false, false, false, false),
  ('start_timer',         true,  false, false, false, false),
  ('suspend_for_children', true, false, false, false, false),
  ('suspend_run',         true,  false, false, false, false),
  ('watch_run',           true,  true,  true,  true,  false),
  ('enqueue_run',           true,  false, false, false, false),
  ('enqueue_runs',          true,  false, false, false, false),
  ('claim_runs',            true,  false, false, false, false),
  ('next_ready',            true,  false, false, false, false),
  ('ready_in',              true,  false, false, false, false),
  ('measure',               true,  true,  true,  true,  false),
  ('claim_invocations',     false, false, true,  false, false),
  ('finish_invocation',     false, false, true,  false, false),
  ('put_queue',             false, false, true,  false, false),
  ('pause_queue',           false, false, true,  false, false),
  ('resume_queue',          false, false, true,  false, false),
  ('put_schedule',          false, false, true,  false, false),
  ('delete_schedule',       false, false, true,  false, false),
  ('trigger_schedule',      false, false, true,  false, false),
  ('backfill_schedule',     false, false, true,  false, false),
  ('cancel_runs',           false, false, true,  false, false),
  ('retry_runs',            false, false, true,  false, false),
  ('move_runs',             false, false, true,  false, false),
  ('next_fires',            true,  true,  true,  true,  false),
  ('withdraw_grant',      true,  false, false, false, false);
create temp table may_read (name text, worker boolean, approver boolean, operator boolean, reader boolean, stranger boolean);
insert into may_read values
  -- views
  ('gate_inbox',       true,  true,  true,  true,  false),
  ('gate_overview',    true,  true,  true,  true,  false),
  ('queue_overview',   true,  true,  true,  true,  false),
  ('queue_rates',      true,  true,  true,  true,  false),
  ('schedule_overview', true, true,  true,  true,  false),
  ('worker_overview',  true,  true,  true,  true,  false),
  ('invocation_overview', true, true, true, true,  false),
  ('recovery_history', true,  true,  true,  true,  false),
  ('review_inbox',     true,  true,  true,  true,  false),
  ('run_attempts',     true,  true,  true,  true,  false),
  ('run_edges',        true,  true,  true,  true,  false),
  ('run_overview',     true,  true,  true,  true,  false),
  ('gate_ballots',     true,  true,  true,  true,  false),
  ('run_setbacks',     false, false, true,  true,  false),
  ('run_sizes',        true,  true,  true,  true,  false),
  ('stalled_runs',     true,  true,  true,  true,  false),
  ('state_patches',    true,  true,  true,  true,  false),
  ('step_timeline',    true,  true,  true,  true,  false),
  ('usage_by_model',   true,  true,  true,  true,  false),
  ('usage_by_step',    true,  true,  true,  true,  false),
  ('usage_records',    true,  true,  true,  true,  false),
  ('usage_totals',     true,  true,  true,  true,  false),
  -- tables
  ('claims',            false, false, false, false, false),
  ('endpoints',         false, false, false, false, false),
  ('invocations',       false, false, false, false, false),
  ('dedupe_keys',       false, false, false, false, false),
  ('lanes',             false, false, false, false, false),
  ('queue_entries',     false, false, false, false, false),
  ('queue_starts',      false, false, false, false, false),
  ('queues',            false, false, false, false, false),
  ('schedules',         false, false, false, false, false),
  ('slots',             false, false, false, false, false),
  ('workers',           false, false, false, false, false),
  ('accounts',         false, false, false, false, false),
  ('awaited',          false, false, false, false, false),
  ('attempts',         false, false, false, false, false),
  ('channels',         false, false, false, false, false),
  ('deliveries',       false, false, false, false, false),
  ('edges',            false, false, false, false, false),
  ('events',           false, false, false, false, false),
  ('gate_votes',       false, false, false, false, false),
  ('gates',            false, false, false, false, false),
  ('recoveries',       false, false, false, false, false),
  ('reviews',          false, false, false, false, false),
  ('run_heads',        false, false, false, false, false),
  ('runs',             false, false, false, false, false),
  ('setbacks',         false, false, false, false, false),
  ('state_streams',    false, false, false, false, false),
  ('state_versions',   false, false, false, false, false),
  ('steps',            false, false, false, false, false),
  ('thread_checkpoints', false, false, false, false, false),
  ('thread_chunks',     false, false, false, false, false),
  ('thread_values',     false, false, false, false, false),
  ('thread_writes',     false, false, false, false, false),
  ('threads',           false, false, false, false, false),
  ('usage',            false, false, false, false, false),
  ('watches',          false, false, false, false, false);

select set_eq($$select proname::text from pg_proc where pronamespace = 'tidebase'::regnamespace$$, $$select name from may$$,
  'every function of the API is in the matrix, and none beside');
select set_eq($$select relname::text from pg_class where relnamespace = 'tidebase'::regnamespace and relkind not in ('i', 'c', 't')$$, $$select name from may_read$$,
  'every table and view, too');
select is(has_function_privilege(o.role, p.oid, 'execute'), (to_jsonb(m) ->> o.audience)::boolean,
  format('%s %s execute %s', o.audience, case when (to_jsonb(m) ->> o.audience)::boolean then 'may' else 'may not' end, m.name))
from may m join pg_proc p on p.pronamespace = 'tidebase'::regnamespace and p.proname = m.name, role_of o order by m.name, o.audience;
select is(has_table_privilege(o.role, c.oid, 'select') or has_any_column_privilege(o.role, c.oid, 'select'), (to_jsonb(m) ->> o.audience)::boolean,
  format('%s %s read %s', o.audience, case when (to_jsonb(m) ->> o.audience)::boolean then 'may' else 'may not' end, m.name))
from may_read m join pg_class c on c.relnamespace = 'tidebase'::regnamespace and c.relname = m.name, role_of o order by m.name, o.audience;

create temp table too_much as
  select format('%s may %s %s', o.role, p.privilege, c.oid::regclass) as what
  from pg_class c, role_of o, unnest(array['insert', 'update', 'delete', 'truncate', 'references', 'trigger']) as p (privilege)
  where c.relnamespace in ('tidebase'::regnamespace, 'tidebase_private'::regnamespace) and c.relkind in ('r', 'v', 'p', 'm', 'f')
    and has_table_privilege(o.role, c.oid, p.privilege)
  union all
  select format('%s may %s columns of %s', o.role, p.privilege, c.oid::regclass)
  from pg_class c, role_of o, unnest(array['insert', 'update', 'references']) as p (privilege)
  where c.relnamespace in ('tidebase'::regnamespace, 'tidebase_private'::regnamespace) and c.relkind in ('r', 'v')
    and has_any_column_privilege(o.role, c.oid, p.privilege);
select is_empty('select what from too_much', 'nobody but the owner changes a table or a view');

-- the private schema
select is_empty(
  $$select p.oid::regprocedure, o.role from pg_proc p, role_of o
    where p.pronamespace = 'tidebase_private'::regnamespace and has_function_privilege(o.role, p.oid, 'execute')$$, 'nobody but the owner executes a private function');
select is_empty(
  $$select c.oid::regclass, o.role from pg_class c, role_of o where c.relnamespace = 'tidebase_private'::regnamespace and c.relkind in ('r', 'v', 'p')
      and (has_table_privilege(o.role, c.oid, 'select') or has_any_column_privilege(o.role, c.oid, 'select'))$$, 'or reads a private table');
select is_empty(
  $$select c.oid::regclass, o.role from pg_class c, role_of o where c.relnamespace in ('tidebase'::regnamespace, 'tidebase_private'::regnamespace) and c.relkind = 'S'
      and has_sequence_privilege(o.role, c.oid, 'usage')$$, 'or uses a sequence');
select is_empty($$select o.role from role_of o where has_schema_privilege(o.role, 'tidebase_private', 'usage') or has_schema_privilege(o.role, 'tidebase_private', 'create')$$,
  'or looks into the private schema');
select is_empty($$select o.role from role_of o where has_schema_privilege(o.role, 'tidebase', 'create')$$, 'or creates anything in the other');
select set_eq($$select o.audience from role_of o where has_schema_privilege(o.role, 'tidebase', 'usage')$$, '{worker,approver,operator,reader}'::text[], 'which the four roles see');

-- PUBLIC, by the access lists themselves
select is_empty(
  $$select p.oid::regprocedure from pg_proc p, aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) a
    where p.pronamespace in ('tidebase'::regnamespace, 'tidebase_private'::regnamespace) and a.grantee = 0$$, 'PUBLIC may execute nothing');
select is_empty(
  $$select c.oid::regclass from pg_class c, aclexplode(c.relacl) a
    where c.relnamespace in ('tidebase'::regnamespace, 'tidebase_private'::regnamespace) and a.grantee = 0$$, 'PUBLIC may read nothing');
select is_empty($$select n.nspname from pg_namespace n, aclexplode(n.nspacl) a where n.nspname in ('tidebase', 'tidebase_private') and a.grantee = 0$$, 'PUBLIC sees neither schema');
select is_empty(
  $$select x.object, a.grantee::regrole from (
      select p.oid::regprocedure::text, p.proacl from pg_proc p where p.pronamespace in ('tidebase'::regnamespace, 'tidebase_private'::regnamespace)
      union all
      select c.oid::regclass::text, c.relacl from pg_class c where c.relnamespace in ('tidebase'::regnamespace, 'tidebase_private'::regnamespace)) as x (object, acl),
      aclexplode(x.acl) a
    where a.is_grantable and a.grantee <> 'tidebase_owner'::regrole$$, 'nobody may pass on what he was granted');

-- the access lists to the last letter, whoever is granted something: also roles that this file has never heard of
create temp table granted as
  select x.object, coalesce(r.rolname, 'public')::text as grantee, string_agg(distinct a.privilege_type, ',' order by a.privilege_type) as privileges
  from (
    select 'schema ' || n.nspname, coalesce(n.nspacl, acldefault('n', n.nspowner)) from pg_namespace n where n.nspname in ('tidebase', 'tidebase_private')
    union all
    select format('function %s.%s', p.pronamespace::regnamespace, p.proname), coalesce(p.proacl, acldefault('f', p.proowner))
    from pg_proc p where p.pronamespace in ('tidebase'::regnamespace, 'tidebase_private'::regnamespace)
    union all
    select format('table %s.%s', c.relnamespace::regnamespace, c.relname), coalesce(c.relacl, acldefault(case c.relkind when 'S' then 's'::"char" else 'r' end, c.relowner))
    from pg_class c where c.relnamespace in ('tidebase'::regnamespace, 'tidebase_private'::regnamespace) and c.relkind not in ('i', 'I', 't', 'c')
    union all
    select format('column %s.%s', a.attrelid::regclass, a.attname), a.attacl
    from pg_attribute a join pg_class c on c.oid = a.attrelid where c.relnamespace in ('tidebase'::regnamespace, 'tidebase_private'::regnamespace) and a.attacl is not null
    union all
    select format('type %s.%s', t.typnamespace::regnamespace, t.typname), coalesce(t.typacl, acldefault('T', t.typowner))
    from pg_type t where t.typnamespace in ('tidebase'::regnamespace, 'tidebase_private'::regnamespace)) as x (object, acl),
    aclexplode(x.acl) a left join pg_roles r on r.oid = a.grantee
  group by x.object, grantee, r.rolname;
create temp table stated_access as
  select 'schema tidebase' as object, 'tidebase_owner' as grantee, 'CREATE,USAGE' as privileges
  union all select 'schema tidebase_private', 'tidebase_owner', 'CREATE,USAGE'
  union all select 'schema tidebase', o.role, 'USAGE' from role_of o where o.audience <> 'stranger'
  -- the API: its audience, as listed above; the private functions and tables: nobody
  union all select 'function tidebase.' || m.name, o.role, 'EXECUTE' from may m, role_of o where (to_jsonb(m) ->> o.audience)::boolean
  union all select 'table tidebase.' || m.name, o.role, 'SELECT' from may_read m, role_of o where (to_jsonb(m) ->> o.audience)::boolean
  -- the owner: everything, but the log is only read, written to and (a purge) deleted from
  union all select format('function %s.%s', p.pronamespace::regnamespace, p.proname), 'tidebase_owner', 'EXECUTE'
    from pg_proc p where p.pronamespace in ('tidebase'::regnamespace, 'tidebase_private'::regnamespace)
  union all select format('table %s.%s', c.relnamespace::regnamespace, c.relname), 'tidebase_owner', string_agg(a.privilege_type, ',' order by a.privilege_type)
    from pg_class c, aclexplode(acldefault('r', c.relowner)) a
    where c.relnamespace in ('tidebase'::regnamespace, 'tidebase_private'::regnamespace) and c.relkind in ('r', 'v')
      and not (c.oid = 'tidebase.events'::regclass and a.privilege_type in ('UPDATE', 'TRUNCATE'))
    group by c.oid, c.relnamespace, c.relname
  -- types, as the server does it by itself: whoever sees the schema may name them
  union all select format('type %s.%s', t.typnamespace::regnamespace, t.typname), g.grantee, 'USAGE'
    from pg_type t, unnest(array['public', 'tidebase_owner']) as g (grantee) where t.typnamespace in ('tidebase'::regnamespace, 'tidebase_private'::regnamespace);
select is_empty('table granted except table stated_access', 'nothing is granted that is not stated');
select is_empty('table stated_access except table granted', 'and everything that is stated');
select is_empty(
  $$select d.defaclrole::regrole, d.defaclnamespace::regnamespace from pg_default_acl d
    where d.defaclnamespace in ('tidebase'::regnamespace, 'tidebase_private'::regnamespace) or d.defaclrole = 'tidebase_owner'::regrole$$,
  'nor will it be, to objects that are made later');
select is_empty(
  $$select pg_describe_object(d.classid, d.objid, d.objsubid) from pg_shdepend d
    where d.refclassid = 'pg_authid'::regclass and d.refobjid = 'tidebase_owner'::regrole and d.deptype = 'o'
      and not exists (select from pg_namespace n where d.classid = 'pg_namespace'::regclass and n.oid = d.objid and n.nspname in ('tidebase', 'tidebase_private'))
      and not exists (select from pg_proc p where d.classid = 'pg_proc'::regclass and p.oid = d.objid and p.pronamespace in ('tidebase'::regnamespace, 'tidebase_private'::regnamespace))
      and not exists (select from pg_class c where d.classid = 'pg_class'::regclass and c.oid = d.objid and c.relnamespace in ('tidebase'::regnamespace, 'tidebase_private'::regnamespace))
      and not exists (select from pg_type t where d.classid = 'pg_type'::regclass and t.oid = d.objid and t.typnamespace in ('tidebase'::regnamespace, 'tidebase_private'::regnamespace))
      and d.dbid = (select b.oid from pg_database b where b.datname = current_database())$$, 'the owner has nothing in any other schema');

-- the roles
select is_empty(
  $$select a.role, b.role from role_of a, (select role from role_of union select 'tidebase_owner') b
    where a.role <> b.role and pg_has_role(a.role, b.role, 'member')$$, 'the roles are siblings');
select is_empty(
  $$select rolname from pg_roles where rolname ~ '^tidebase_(owner|worker|approver|operator|reader)$'
      and (rolcanlogin or rolsuper or rolcreaterole or rolcreatedb or rolreplication or rolbypassrls)$$, 'nobody logs in as one of them, and none has powers beyond');
select is_empty(
  $$select c.oid::regclass::text from pg_class c where c.relnamespace in ('tidebase'::regnamespace, 'tidebase_private'::regnamespace)
      and c.relkind in ('r', 'v', 'c') and pg_get_userbyid(c.relowner) <> 'tidebase_owner'
    union all
    select p.oid::regprocedure::text from pg_proc p where p.pronamespace in ('tidebase'::regnamespace, 'tidebase_private'::regnamespace)
      and pg_get_userbyid(p.proowner) <> 'tidebase_owner'
    union all
    select n.nspname from pg_namespace n where n.nspname in ('tidebase', 'tidebase_private') and pg_get_userbyid(n.nspowner) <> 'tidebase_owner'$$,
  'everything belongs to the owner role');
select is(has_table_privilege('tidebase_owner', 'tidebase.events', privilege) or (privilege = 'update' and has_any_column_privilege('tidebase_owner', 'tidebase.events', privilege)),
  false, 'not even the owner may ' || privilege || ' the log') from unnest(array['update', 'truncate']) privilege;
select set_eq($$select p from unnest(array['select', 'insert']) p where has_table_privilege('tidebase_owner', 'tidebase.events', p)$$, '{select,insert}'::text[], 'only append to it and read it');

-- the same, by doing it
select pg_temp.leased('r');
set local role tidebase_reader;
select lives_ok($$select * from tidebase.run_overview$$, 'a reader reads the views');
select lives_ok($$select tidebase.read_events('r')$$, 'and the log');
select throws_ok($$select tidebase.create_run('wf')$$, '42501', null, 'but makes no run');
select throws_ok($$select tidebase.renew_lease('r', 1)$$, '42501', null, 'and has no use for a token');
select throws_ok($$select * from tidebase.runs$$, '42501', null, 'nor for a table');
select throws_ok($$select * from tidebase_private.settings$$, '42501', null, 'private or not');
select throws_ok($$select tidebase_private.apply_privileges()$$, '42501', null, 'it gives itself no rights');
set local role tidebase_worker;
select lives_ok($$select tidebase.complete_run('r', 1)$$, 'a worker works');
select throws_ok($$delete from tidebase.events$$, '42501', null, 'through the functions only');
select throws_ok($$select tidebase.resolve_review('r', 's', 'retry')$$, '42501', null, 'and decides nothing about its own work');
set local role nobody_at_all;
select throws_ok($$select tidebase.get_run('r')$$, '42501', null, 'who has no role gets nothing');
set local role tidebase_owner;
select throws_ok($$update tidebase.events set type = 'x'$$, '42501', null, 'the owner''s update of the log is refused');
reset role;

-- A caller's own objects are not taken for the real ones.
set local role tidebase_worker;
create temp table run_heads as select 'real'::text as run_id, 'completed'::text as status;
create temp table runs as select 'real'::text as run_id;
create function pg_temp.clock_timestamp() returns timestamptz language sql as $$ select '2000-01-01'::timestamptz $$;
grant all on pg_temp.run_heads, pg_temp.runs to public;
discard plans;  -- names are looked up when a statement is planned
select lives_ok($$select tidebase.create_run('wf', run_id => 'real')$$, 'a temporary table of the caller is not written to');
select is((tidebase.acquire_run('real', 'w')).outcome, 'granted', 'and does not stand in for one of ours');
select ok((select created_at > '2020-01-01' from tidebase.get_run('real')), 'nor a function for one of the server''s');
drop table pg_temp.run_heads, pg_temp.runs;
discard plans;
drop function pg_temp.clock_timestamp();
reset role;

-- Who calls, seen from a SECURITY DEFINER function.
create function tidebase.whoami(out caller text, out approver boolean, out worker boolean) language sql security definer as $$
  select tidebase_private.caller(), tidebase_private.caller_is('approver'), tidebase_private.caller_is('worker');
$$;
alter function tidebase.whoami() owner to tidebase_owner;
create role ann in role tidebase_approver;
create role dba in role tidebase_owner;
select results_eq('select * from tidebase.whoami()', $$values (session_user::text collate "default", true, true)$$, 'a superuser is everything');
set local role tidebase_worker;
select results_eq('select * from tidebase.whoami()', $$values ('tidebase_worker', false, true)$$, 'a role that is set counts, not the user who logged in');
set local role ann;
select results_eq('select * from tidebase.whoami()', $$values ('ann', true, false)$$, 'a member of a role has its rights');
set local role dba;
select results_eq('select * from tidebase.whoami()', $$values ('dba', true, true)$$, 'a member of the owner has them all');
set local role nobody_at_all;
select throws_ok('select * from tidebase.whoami()', '42501', null, 'a stranger does not even see the schema');
reset role;
grant usage on schema tidebase to nobody_at_all;
set local role nobody_at_all;
select results_eq('select * from tidebase.whoami()', $$values ('nobody_at_all', false, false)$$, 'and with a way in he is nobody');
reset role;
revoke usage on schema tidebase from nobody_at_all;
drop function tidebase.whoami();

-- What is broken by hand is mended.
create temp table stated as table tidebase_private.privileges;
grant select on tidebase.runs to tidebase_reader;
grant select (input) on tidebase.steps to tidebase_worker;
grant all on tidebase.events to tidebase_operator, public;
grant execute on function tidebase.cancel_run to tidebase_worker, public;
grant execute on function tidebase_private.hmac to public;
grant usage on schema tidebase_private to public, tidebase_reader;
grant update, truncate on tidebase.events to tidebase_owner;
revoke execute on function tidebase.create_run from tidebase_worker;
revoke select on tidebase.run_overview from tidebase_reader;
create function tidebase.made_by_hand() returns integer language sql as 'select 1';
select tidebase_private.apply_privileges();
select is(has_table_privilege('tidebase_reader', 'tidebase.runs', 'select'), false, 'apply_privileges takes away what is not recorded: on a table');
select is(has_any_column_privilege('tidebase_worker', 'tidebase.steps', 'select'), false, 'on a column');
select is(has_table_privilege('tidebase_operator', 'tidebase.events', 'delete') or has_table_privilege('nobody_at_all', 'tidebase.events', 'select'), false, 'on the log');
select is(has_function_privilege('tidebase_worker', 'tidebase.cancel_run(text, text, text, boolean)', 'execute'), false, 'on a function');
select is(has_function_privilege('nobody_at_all', 'tidebase.cancel_run(text, text, text, boolean)', 'execute'), false, 'from PUBLIC');
select is(has_function_privilege('nobody_at_all', 'tidebase_private.hmac(bytea)', 'execute'), false, 'in the private schema, too');
select is(has_schema_privilege('nobody_at_all', 'tidebase_private', 'usage'), false, 'which PUBLIC does not see again');
select is(has_schema_privilege('tidebase_reader', 'tidebase_private', 'usage'), false, 'nor does a role that was let in');
select is(has_table_privilege('tidebase_owner', 'tidebase.events', 'update') or has_table_privilege('tidebase_owner', 'tidebase.events', 'truncate'), false, 'and from the owner');
select is(has_function_privilege('nobody_at_all', 'tidebase.made_by_hand()', 'execute'), false, 'a new function is nobody''s until it is recorded');
select is(has_function_privilege('tidebase_worker', (select oid from pg_proc where proname = 'create_run'), 'execute'), true, 'it gives back what is recorded');
select is(has_table_privilege('tidebase_reader', 'tidebase.run_overview', 'select'), true, 'views, too');

-- the record
select tidebase_private.allow('function tidebase.made_by_hand', 'worker', 'reader');
select tidebase_private.allow('function tidebase.made_by_hand', 'worker');
select is(has_function_privilege('tidebase_worker', 'tidebase.made_by_hand()', 'execute'), false, 'allow only takes a note');
select tidebase_private.apply_privileges();
select set_eq($$select o.audience from role_of o where has_function_privilege(o.role, 'tidebase.made_by_hand()', 'execute')$$, '{worker,reader}'::text[], 'which apply_privileges carries out');
drop function tidebase.made_by_hand();
delete from tidebase_private.privileges where object = 'function tidebase.made_by_hand';
select throws_ok($$select tidebase_private.allow('function tidebase.f', 'everyone')$$, '23514', null, 'an audience is one of four');
select throws_ok($$select tidebase_private.allow('function tidebase.f', 'owner')$$, '23514', null, 'the owner needs no permission');
select throws_ok($$select tidebase_private.allow('function tidebase.f', null)$$, '23502', null, 'and nobody is nobody');
select set_eq('table tidebase_private.privileges', 'table stated', 'the record is as it was');

-- names of the roles
select is(tidebase_private.role_name('worker'), 'tidebase_worker', 'the roles are called tidebase_ and their part');
select is_empty($$select unnest(tidebase_private.install_roles())$$, 'where all are there, none is made');
select set_eq($$select unnest(tidebase_private.install_roles('acme'))$$,
  $$values ('acme_owner'), ('acme_worker'), ('acme_approver'), ('acme_operator'), ('acme_reader')$$, 'the roles may have another prefix');
select is(tidebase_private.role_name('worker'), 'acme_worker', 'which is remembered');
select is_empty(
  $$select m.name, o.audience from may m join pg_proc p on p.pronamespace = 'tidebase'::regnamespace and p.proname = m.name, role_of o
    where o.audience <> 'stranger' and has_function_privilege('acme_' || o.audience, p.oid, 'execute') <> (to_jsonb(m) ->> o.audience)::boolean$$, 'they have their part of the functions');
select is_empty(
  $$select m.name, o.audience from may_read m join pg_class c on c.relnamespace = 'tidebase'::regnamespace and c.relname = m.name, role_of o
    where o.audience <> 'stranger' and has_table_privilege('acme_' || o.audience, c.oid, 'select') <> (to_jsonb(m) ->> o.audience)::boolean$$, 'and of the views');
select is_empty(
  $$select c.oid::regclass::text from pg_class c where c.relnamespace in ('tidebase'::regnamespace, 'tidebase_private'::regnamespace)
      and c.relkind in ('r', 'v', 'c') and pg_get_userbyid(c.relowner) <> 'acme_owner'
    union all
    select p.oid::regprocedure::text from pg_proc p where p.pronamespace in ('tidebase'::regnamespace, 'tidebase_private'::regnamespace)
      and pg_get_userbyid(p.proowner) <> 'acme_owner'$$, 'and own everything');
select is(has_table_privilege('acme_owner', 'tidebase.events', 'update') or has_table_privilege('acme_owner', 'tidebase.events', 'truncate'), false, 'except the right to rewrite history');
select is_empty(
  $$select distinct o.role from pg_proc p, role_of o
    where p.pronamespace = 'tidebase'::regnamespace and o.audience <> 'stranger' and has_function_privilege(o.role, p.oid, 'execute')$$,
  'the roles of the former prefix have no part any more');
set local role acme_worker;
select lives_ok($$select tidebase.create_run('wf', run_id => 'acme')$$, 'a worker of that name works');
set local role acme_reader;
select throws_ok($$select tidebase.create_run('wf')$$, '42501', null, 'a reader reads');
reset role;
select is_empty($$select unnest(tidebase_private.install_roles())$$, 'a second time there is nothing to create');
select lives_ok(format('select tidebase_private.install_roles(%L)', prefix), format('%L is a prefix', prefix)) from unnest(array['my-app', 'Zoo', 'two words', 'x.y', 'a"b; drop schema tidebase; --']) prefix;
select * from finish();
rollback;
