-- Lints over the catalogue: what is true of every object, now and later.
begin;
select no_plan();
create temp view ours as select oid as nsp from pg_namespace where nspname in ('tidebase', 'tidebase_private');

-- what there is
select set_eq($$select relname::text from pg_class where relnamespace = 'tidebase'::regnamespace and relkind = 'r'$$,
  '{accounts,attempts,awaited,channels,claims,dedupe_keys,deliveries,edges,endpoints,events,gate_votes,gates,invocations,lanes,queue_entries,queue_starts,queues,recoveries,
    reviews,run_heads,runs,schedules,setbacks,slots,state_streams,state_versions,steps,thread_checkpoints,thread_chunks,thread_values,thread_writes,threads,
    usage,watches,workers}'::text[], 'these are the tables');
select set_eq($$select relname::text from pg_class where relnamespace = 'tidebase_private'::regnamespace and relkind in ('r', 'v') and relname !~ '^_?yoyo'$$,
  '{function_files,gate_key,incarnation,privileges,settings}'::text[], 'and the private ones, beside the migration tool''s');
select set_eq($$select relname::text from pg_class where relnamespace = 'tidebase'::regnamespace and relkind = 'v'$$,
  '{gate_ballots,gate_inbox,gate_overview,invocation_overview,queue_overview,queue_rates,recovery_history,review_inbox,run_attempts,run_edges,run_overview,run_setbacks,run_sizes,schedule_overview,
    stalled_runs,state_patches,step_timeline,usage_by_model,usage_by_step,usage_records,usage_totals,worker_overview}'::text[], 'these are the views');
select set_eq($$select relname::text from pg_class where relnamespace = 'tidebase'::regnamespace and relkind = 'c'$$,
  '{bulk,channel,channel_delivery,checkpoint,checkpoint_put,child,claim,completion,enqueuing,event,gate_decision,gate_opening,invocation,lease,measurement,reconciliation,renewal,run_count,run_difference,
    run_failure,run_page,snapshot,state,step_failure,step_start,thread_checkpoint,thread_checkpoint_beyond,tree_node,usage_total,violation,watch}'::text[], 'these are the types');
select set_eq($$select proname::text from pg_proc where pronamespace = 'tidebase'::regnamespace$$,
  '{acquire_run,add_channel,append_event,backfill_schedule,begin_step,begin_step_with,cancel_run,cancel_runs,check_invariants,claim_channel_deliveries,
    claim_deliveries,claim_invocations,claim_runs,claim_thread,compact_run,complete_run,complete_runs,complete_step,copy_thread,count_runs,create_child,create_run,create_snapshot,
    decide_gate,delete_checkpoints_of_runs,delete_schedule,delete_thread,diff_runs,enqueue_run,enqueue_runs,fail_run,fail_step,find_run,
    finish_channel_delivery,finish_delivery,finish_invocation,finish_recovery,fork_run,get_checkpoint,get_checkpoint_beyond,get_gate,get_gate_secret,get_run,get_state,has_checkpoint,
    list_channels,list_checkpoints,list_gates,list_inbox,list_runs,list_snapshots,list_state_versions,load_checkpoints,measure,merge_state,move_run,move_runs,new_run_id,
    next_fires,next_ready,open_gate,patch_state,pause_queue,protocol,prune_threads,purge_runs,put_checkpoint,put_checkpoint_writes,put_queue,
    put_schedule,read_events,ready_in,reconcile,record_recovery,record_step,record_steps,record_steps_of_runs,record_usage,recover_run,release_run,remove_channel,renew_lease,renew_leases,
    require_bucket,resolve_review,restore_state,resume_queue,retry_channel,retry_runs,run_tree,save_state,search_runs,set_budget,set_state,shard_epoch,shard_map,start_timer,suspend_for_children,
    suspend_run,trigger_schedule,watch_run,withdraw_grant}'::text[], 'these are the functions');
select is_empty($$select oid::regclass from pg_class where relnamespace in (select nsp from ours) and relkind not in ('r', 'v', 'c', 'i', 't')$$, 'there is nothing else: no sequence, above all');
select is_empty($$select t.tgname from pg_trigger t join pg_class c on c.oid = t.tgrelid where c.relnamespace in (select nsp from ours) and not t.tgisinternal$$, 'no trigger');
select is_empty($$select r.rulename from pg_rewrite r join pg_class c on c.oid = r.ev_class where c.relnamespace in (select nsp from ours) and r.rulename <> '_RETURN'$$, 'and no rule');

select is_empty(
  $$select pg_describe_object(d.classid, d.objid, d.objsubid) from pg_depend d
    where d.refclassid = 'pg_namespace'::regclass and d.refobjid in (select nsp from ours) and d.classid not in ('pg_proc'::regclass, 'pg_class'::regclass, 'pg_type'::regclass)$$,
  'and nothing of another kind: no operator, collation or statistics');
select is_empty($$select t.oid::regtype from pg_type t where t.typnamespace in (select nsp from ours) and t.typtype <> 'c' and t.typcategory <> 'A'$$, 'no domain or enumeration');
select is_empty($$select c.oid::regclass from pg_class c where c.relnamespace in (select nsp from ours) and (c.relrowsecurity or c.relforcerowsecurity)$$, 'no row is hidden by a policy');
select is_empty(
  $$select pg_describe_object(d.classid, d.objid, d.objsubid) from pg_depend d join pg_proc p on d.refclassid = 'pg_proc'::regclass and p.oid = d.refobjid
    where p.pronamespace in (select nsp from ours) and d.classid in ('pg_cast'::regclass, 'pg_operator'::regclass, 'pg_event_trigger'::regclass, 'pg_trigger'::regclass, 'pg_am'::regclass)$$,
  'no cast, operator or trigger hangs on a function');

-- functions
select is_empty($$select p.oid::regprocedure from pg_proc p where p.pronamespace = 'tidebase'::regnamespace and not p.prosecdef$$, 'every function of the API is SECURITY DEFINER');
select is_empty(
  $$select p.oid::regprocedure from pg_proc p where p.pronamespace = 'tidebase'::regnamespace
      and not exists (select from unnest(p.proconfig) c where c ~ '^search_path=pg_catalog, (tidebase, )?pg_temp$')$$,
  'and has a pinned search_path: the catalogue first, temporary objects last');
select is_empty(
  $$select p.oid::regprocedure from pg_proc p where p.pronamespace = 'tidebase'::regnamespace and p.proargnames[1] in ('run_id', 'run_ids')
      and not coalesce('enable_seqscan=off' = any (p.proconfig), false)$$, 'and what is about one run reads by an index, however small the tables are');
select is_empty($$select p.oid::regprocedure from pg_proc p where p.pronamespace = 'tidebase_private'::regnamespace and p.prosecdef$$, 'no private function is SECURITY DEFINER');
select is_empty(
  $$select p.proname from pg_proc p where p.pronamespace in (select nsp from ours) group by p.pronamespace, p.proname having count(*) > 1$$, 'no function is overloaded');
select is_empty(
  $$select p.proname from pg_proc p where p.pronamespace in (select nsp from ours) and exists (
      select from pg_proc q where q.pronamespace = 'pg_catalog'::regnamespace and q.proname = p.proname) and p.pronamespace = 'tidebase'::regnamespace$$,
  'or has the name of one of the server''s');
select is_empty($$select p.oid::regprocedure from pg_proc p where p.pronamespace in (select nsp from ours) and p.proisstrict$$,
  'no function is strict: a guard would be skipped for NULL');
select is_empty($$select p.oid::regprocedure from pg_proc p where p.pronamespace in (select nsp from ours) and p.proleakproof$$, 'or leakproof');
select set_eq($$select l.lanname::text from pg_proc p join pg_language l on l.oid = p.prolang where p.pronamespace in (select nsp from ours)$$, '{sql,plpgsql}'::text[], 'they are written in SQL and PL/pgSQL');
select set_eq(
  $$select p.proname::text from pg_proc p where p.pronamespace = 'tidebase'::regnamespace and p.provolatile = 's'$$,
  '{check_invariants,count_runs,diff_runs,find_run,get_checkpoint,get_checkpoint_beyond,get_run,get_state,has_checkpoint,list_channels,list_checkpoints,list_gates,list_inbox,list_runs,
    list_snapshots,
    list_state_versions,load_checkpoints,next_fires,next_ready,require_bucket,run_tree,search_runs,shard_epoch,shard_map}'::text[], 'the readers are stable (a read of the log may have to wait for the disk)');
select set_eq($$select p.proname::text from pg_proc p where p.pronamespace = 'tidebase'::regnamespace and p.provolatile = 'i'$$, '{protocol}'::text[], 'one is a constant, the rest is volatile');
select is_empty($$select p.oid::regprocedure from pg_proc p where p.pronamespace in (select nsp from ours) and p.proparallel <> 'u'$$, 'and for one process');
select is_empty(
  $$select p.oid::regprocedure, a.name from pg_proc p, unnest(p.proargnames[1:p.pronargs]) as a (name)
    where p.pronamespace = 'tidebase'::regnamespace and a.name !~ '^[a-z][a-z_]*$'$$, 'parameters have plain names');
select is_empty(
  $$select p.oid::regprocedure from pg_proc p where p.pronamespace = 'tidebase'::regnamespace
      and 'run_id' = any (p.proargnames[1:p.pronargs]) and p.proargnames[1] <> 'run_id' and p.proname not in ('create_run', 'enqueue_run', 'trigger_schedule', 'delete_thread', 'put_checkpoint', 'put_checkpoint_writes')$$,
  'the run comes first, but where there need be none');
select is_empty(
  $$select p.oid::regprocedure from pg_proc p where p.pronamespace = 'tidebase'::regnamespace and 'token' = any (p.proargnames) and p.proargnames[2] <> 'token'
      and p.proname not in ('delete_thread', 'put_checkpoint', 'put_checkpoint_writes')$$, 'then the token');
select is_empty(
  $$select p.oid::regprocedure, a.name from pg_proc p, unnest(p.proargnames[1:p.pronargs], p.proargtypes::oid[]) as a (name, type),
      (values ('run_id', 'text'), ('token', 'bigint'), ('name', 'text'), ('step', 'text'), ('ttl', 'interval'), ('timeout', 'interval'), ('max', 'integer'),
        ('request_id', 'text'), ('actor', 'text'), ('reason', 'text'), ('input', 'jsonb'), ('output', 'jsonb'), ('payload', 'jsonb'), ('metadata', 'jsonb'),
        ('value', 'jsonb'), ('budget', 'jsonb'), ('stream', 'text'), ('label', 'text'), ('importance', 'text'), ('seq', 'bigint'), ('version', 'integer'),
        ('cost_usd', 'numeric')) as t (name, type)
    where p.pronamespace = 'tidebase'::regnamespace and a.name = t.name and a.type <> t.type::regtype$$, 'one name has one type in all functions');
select is_empty(
  $$select p.oid::regprocedure from pg_proc p where p.pronamespace = 'tidebase'::regnamespace and p.prorettype in ('json'::regtype, 'jsonb'::regtype, 'record'::regtype)$$,
  'results are typed');

-- what their sources say
create temp view sources as
  select p.oid::regprocedure::text as function, p.proname::text as name, regexp_replace(p.prosrc, '--[^\n]*', '', 'g') as source from pg_proc p where p.pronamespace in (select nsp from ours);
select is_empty($$select function from sources where source ~* '\m(now\(\)|current_timestamp|transaction_timestamp|statement_timestamp|localtimestamp|current_date)'$$,
  'time is that of the moment, not of the transaction''s beginning');
select set_eq($$select name from sources where source ~* '\mexecute\s+(format|''|[a-z_]+\s*;)'$$, '{apply_privileges,hand_over,install_roles,own_buckets,watch_for_moved}'::text[], 'SQL is put together only where roles and shards are set up');
select set_eq($$select name from sources where source ~* '\mraise\s+(exception|sqlstate|'')'$$, '{raise}'::text[], 'errors are raised in one place');
select is_empty($$select function from sources where replace(source, 'pg_advisory_xact_lock', '') ~* 'advisory'$$, 'nothing hangs on advisory locks of a session, which a pooler would lose');
select set_eq($$select name from sources where source ~* 'advisory'$$, '{claim_runs}'::text[], 'nor on a hash: who repeats a claim waits for the first call, and so may who only has the same hash');
select is_empty($$select function from sources where source ~* 'on conflict\s*\('$$, 'a conflict is named by its constraint: a column could be taken for a parameter');
select set_eq($$select name from sources where source ~* '\mdelete\s+from\M'$$, '{acquire_run,cancel_one,complete_runs,delete_schedule,drop_checkpoints,drop_history,forget,forget_thread,free_slots,go_on,grant_runs,leave_queue,look_at_due,move_found,own_buckets,put_endpoint,suspend_for_children,sweep_thread,
    take_key_back,take_slots,tend_if_due,tidy_queues}'::text[], 'only purging and compaction delete anything, the end of a wait what was waited for, a look at a run what it was set back for, and queues what was taken');
select is_empty($$select function from sources where source ~* '\mtruncate\s+(table\s+)?(tidebase|[a-z_]+\s*;)'$$, 'nothing is emptied');
select is_empty($$select function from sources where source ~* 'update (tidebase\.)?events\M'$$, 'and no event is changed');
select set_eq($$select name from sources where source ~* 'insert into (tidebase\.)?events\M'$$, '{add_steps,complete_runs,emit,emit_step,copy_events,enqueue_all,grant_runs}'::text[], 'events are written side by side, copied for a fork in another place, and many at once in four');
select set_eq($$select name from sources where source ~* 'update (tidebase\.)?state_versions\M'$$, '{drop_history}'::text[], 'only compaction changes a version of a state');
select set_eq($$select name from sources where source ~* 'pg_notify'$$, '{ring,ring_queue}'::text[], 'the bell is rung in one place, and for queues in another');
select set_eq($$select distinct m[1] from sources, regexp_matches(source, '''(TB\d{3})''', 'g') m$$,
  '{TB001,TB002,TB003,TB004,TB005,TB006,TB007,TB008,TB009,TB010,TB011,TB012,TB013,TB014}'::text[], 'these are the SQLSTATEs');
create temp table event_types (type text);
insert into event_types values ('run.created'), ('run.started'), ('run.released'), ('run.completed'), ('run.failed'), ('run.suspended'), ('run.review'), ('run.lapsed'),
  ('run.cancelled'), ('run.forked'), ('run.child.created'), ('run.child.ready'), ('step.started'), ('step.completed'), ('step.failed'), ('step.review'), ('step.reviewed'), ('gate.created'), ('gate.voted'),
  ('gate.resolved'), ('timer.started'), ('timer.fired'), ('recovery.started'), ('recovery.delivered'), ('recovery.failed'), ('state.updated'), ('state.saved'),
  ('state.restored'), ('snapshot.created'), ('usage.recorded'), ('budget.exhausted'), ('budget.changed'), ('run.enqueued'), ('run.replaced'), ('run.moved'), ('run.retried');
select set_eq(
  $$select distinct m[1] from sources, regexp_matches(source, '''((?:run|step|gate|timer|state|snapshot|usage|budget|child|recovery|queue|schedule|channel|delivery)\.[a-z.]+)''', 'g') m
    where m[1] not in ('run.resume', 'run.invoke')  -- what a webhook is told, no event$$,
  'table event_types', 'these are the types of events');
select tidebase.create_run('wf', run_id => 'r');
select tidebase.acquire_run('r', 'w');
select throws_ok(format('select tidebase.append_event(''r'', 1, %L)', type), 'TB002', null, 'nobody else writes ' || type) from event_types;

-- comments
select is_empty($$select p.oid::regprocedure from pg_proc p where p.pronamespace in (select nsp from ours) and coalesce(obj_description(p.oid, 'pg_proc'), '') !~ '\S'$$, 'every function has a comment');
select is_empty(
  $$select p.oid::regprocedure from pg_proc p where p.pronamespace = 'tidebase'::regnamespace and p.pronargs > 0 and obj_description(p.oid, 'pg_proc') !~ 'Errors: TB\d{3}'$$, 'which names the errors, for the API');
select is_empty(
  $$select c.oid::regclass from pg_class c
    where c.relnamespace in (select nsp from ours) and c.relkind in ('r', 'v', 'c') and c.relname !~ '^_?yoyo'  -- the migration tool's own
      and coalesce(obj_description(c.oid, 'pg_class'), obj_description(c.reltype, 'pg_type'), '') !~ '\S'$$, 'every table, view and type has a comment');
select is_empty($$select n.nspname from pg_namespace n where n.oid in (select nsp from ours) and obj_description(n.oid, 'pg_namespace') is null$$, 'both schemas, too');

-- tables
select is_empty(
  $$select c.oid::regclass from pg_class c
    where c.relnamespace = 'tidebase'::regnamespace and c.relkind = 'r' and not exists (
      select from pg_index i join pg_attribute a on a.attrelid = c.oid and a.attnum = i.indkey[0]
      where i.indrelid = c.oid and i.indisprimary and a.attname = 'run_id')
      and c.relname !~ '^thread(s$|_)'  -- of a thread, which has a key of its own
      and c.relname not in ('queues', 'endpoints', 'lanes', 'queue_starts', 'dedupe_keys', 'workers', 'claims', 'schedules')  -- of a queue, which lies in one place$$, 'every table''s primary key begins with run_id');
select set_eq(
  $$select distinct a.attname::text from pg_class c join pg_index i on i.indrelid = c.oid join pg_attribute a on a.attrelid = c.oid and a.attnum = i.indkey[0]
    where c.relnamespace = 'tidebase'::regnamespace and c.relname like 'thread\_%' and i.indisunique$$, '{thread}'::text[], 'or with that of a thread');
select is_empty(
  $$select c.oid::regclass from pg_class c where c.relnamespace = 'tidebase'::regnamespace and c.relkind = 'r' and not exists (
      select from pg_attribute a where a.attrelid = c.oid and a.attname = 'run_id' and a.atttypid = 'text'::regtype and a.attnotnull)
      and c.relname !~ '^thread(s$|_)' and c.relname not in ('queues', 'endpoints', 'lanes', 'queue_starts', 'workers', 'claims', 'schedules')$$, 'which is a text');
select is_empty(
  $$select i.indexrelid::regclass from pg_index i join pg_class c on c.oid = i.indrelid join pg_attribute a on a.attrelid = c.oid and a.attnum = i.indkey[0]
    where c.relnamespace = 'tidebase'::regnamespace and i.indisunique and a.attname <> 'run_id'
      and c.relname !~ '^thread(s$|_)' and c.relname not in ('queues', 'endpoints', 'lanes', 'dedupe_keys', 'workers', 'claims', 'schedules')$$, 'so does every other key: runs could be spread by it');
select is_empty(
  $$select c.conname from pg_constraint c
    where c.connamespace = 'tidebase'::regnamespace and c.contype = 'f' and c.conrelid <> 'tidebase.edges'::regclass$$, 'no foreign key crosses runs, except of edges');
select is_empty($$select c.conname from pg_constraint c where c.connamespace in (select nsp from ours) and c.contype = 'c' and c.conname ~ '_check\d*$'$$, 'every check has a name that states its rule');
select is_empty($$select c.conname from pg_constraint c where c.connamespace in (select nsp from ours) and c.contype in ('f', 'u', 'x') and c.conname ~ '_(fkey|key|excl)\d*$'$$, 'every other constraint, too');
select is_empty($$select c.conname from pg_constraint c where c.connamespace in (select nsp from ours) and not c.convalidated$$, 'and holds for every row');
select is_empty(
  $$select a.attrelid::regclass, a.attname from pg_attribute a join pg_class c on c.oid = a.attrelid
    where c.relnamespace = 'tidebase'::regnamespace and c.relkind = 'r' and a.attnum > 0 and not a.attisdropped
      and a.atttypid in ('timestamp'::regtype, 'json'::regtype, 'varchar'::regtype, 'money'::regtype, 'timetz'::regtype)$$, 'no column has a type that one regrets');
select is_empty(
  $$select d.adrelid::regclass, pg_get_expr(d.adbin, d.adrelid) from pg_attrdef d join pg_class c on c.oid = d.adrelid
    where c.relnamespace = 'tidebase'::regnamespace and pg_get_expr(d.adbin, d.adrelid) ~ '\m(now\(\)|CURRENT_TIMESTAMP|nextval)'$$, 'defaults have the time of the moment');
select set_eq(
  $$select distinct a.attname::text from pg_index i join pg_attribute a on a.attrelid = i.indrelid and a.attnum = any (i.indkey) where i.indrelid = 'tidebase.run_heads'::regclass$$,
  '{created_at,due_at,run_id,workflow_key}'::text[], 'no index has a column of the head that every call changes: updates stay HOT');
select is_empty(
  $$select a.attname from pg_attribute a where a.attrelid = 'tidebase.run_heads'::regclass and a.attnum > 0 and a.atttypid in ('jsonb'::regtype, 'bytea'::regtype, 'text[]'::regtype)$$, 'the head is narrow');
select ok('fillfactor=50' = any (reloptions), 'heads leave room for their next version') from pg_class where oid = 'tidebase.run_heads'::regclass;
select is_empty($$select c.oid::regclass from pg_class c where c.relnamespace = 'tidebase'::regnamespace and c.relkind = 'v' and not coalesce('security_barrier=true' = any (c.reloptions), false)
    and c.relname <> 'run_overview'$$,  -- hides no row, and a LIMIT on it shall stop the search
  'every view is a security barrier');
select is_empty($$select c.oid::regclass from pg_class c where c.relnamespace in (select nsp from ours) and c.relpersistence <> 'p'$$, 'everything is logged');

-- what the constraints refuse, whoever writes
select throws_ok(statement, '23514', null, statement || ' breaks a rule') from unnest(array[
  $$update tidebase.runs set metadata = '[]'$$,
  $$update tidebase.runs set run_id = ''$$,
  $$update tidebase.runs set max_attempts = 0$$,
  $$update tidebase.attempts set outcome = 'lapsed'$$,
  $$update tidebase.attempts set ended_at = clock_timestamp(), outcome = 'tired'$$,
  $$insert into tidebase.state_streams (run_id, stream, target_type) values ('r', 's', 'file')$$,
  $$insert into tidebase.state_streams (run_id, stream, target_id) values ('r', 's', 'x')$$,
  $$insert into tidebase.state_versions (run_id, stream, version, base, keyframe, group_bytes, seq, operation, content) values ('r', 's', 0, null, 0, 0, 9, 'set', '1')$$,
  $$insert into tidebase.state_versions (run_id, stream, version, base, keyframe, group_bytes, seq, operation, content) values ('r', 's', 2, null, 1, 0, 9, 'set', '1')$$,
  $$insert into tidebase.state_versions (run_id, stream, version, base, keyframe, group_bytes, seq, operation, content) values ('r', 's', 2, 1, 2, 0, 9, 'set', '1')$$,
  $$insert into tidebase.state_versions (run_id, stream, version, base, keyframe, group_bytes, seq, operation, content) values ('r', 's', 2, 2, 1, 0, 9, 'set', '1')$$,
  $$insert into tidebase.state_versions (run_id, stream, version, base, keyframe, group_bytes, seq, operation, content) values ('r', 's', 3, 1, 2, 0, 9, 'set', '1')$$,
  $$insert into tidebase.state_versions (run_id, stream, version, base, keyframe, group_bytes, seq, operation, content) values ('r', 's', 1, null, 1, 0, 9, 'guess', '1')$$,
  $$insert into tidebase.state_versions (run_id, stream, version, base, keyframe, group_bytes, seq, operation, content, importance) values ('r', 's', 1, null, 1, 0, 9, 'set', '1', 'huge')$$,
  $$insert into tidebase.state_versions (run_id, stream, version, base, keyframe, group_bytes, seq, operation, content, metadata) values ('r', 's', 1, null, 1, 0, 9, 'set', '1', '[]')$$,
  $$insert into tidebase.usage (run_id, seq, kind, currency, input_tokens) values ('r', 9, 'chat', 'USD', -1)$$,
  $$insert into tidebase.usage (run_id, seq, kind, currency, cache_read_tokens) values ('r', 9, 'chat', 'USD', -1)$$,
  $$insert into tidebase.usage (run_id, seq, kind, currency, cache_write_tokens) values ('r', 9, 'chat', 'USD', -1)$$,
  $$insert into tidebase.usage (run_id, seq, kind, currency, output_tokens) values ('r', 9, 'chat', 'USD', -1)$$,
  $$insert into tidebase.usage (run_id, seq, kind, currency, reasoning_tokens) values ('r', 9, 'chat', 'USD', -1)$$,
  $$insert into tidebase.usage (run_id, seq, kind, currency, cost) values ('r', 9, 'chat', 'USD', -0.000001)$$,
  $$insert into tidebase.usage (run_id, seq, kind, currency, quantity) values ('r', 9, 'chat', 'USD', -1)$$,
  $$insert into tidebase.usage (run_id, seq, kind, currency, metadata) values ('r', 9, 'chat', 'USD', '[]')$$,
  $$insert into tidebase.usage (run_id, seq, kind, currency) values ('r', 9, 'chat', 'usd')$$,
  $$insert into tidebase.usage (run_id, seq, kind, currency) values ('r', 9, 'chat', 'US')$$,
  $$insert into tidebase.usage (run_id, seq, kind, currency) values ('r', 9, 'chat', '')$$,
  $$insert into tidebase.accounts (run_id, token_limit) values ('r', -1)$$,
  $$insert into tidebase.accounts (run_id, cost_limit_usd) values ('r', -0.1)$$,
  $$insert into tidebase.edges (run_id, name, child_run_id, metadata) values ('r', 'e', 'r', '[]')$$]) statement;

-- plpgsql_check, where it is installed: every warning that it has, and no function is left after its first error.
create temp table deliberate (function text, level text, message text, reason text);
insert into deliberate values
  ('tidebase_private.apply_privileges', 'security', 'text type variable is not sanitized', 'DDL: an object is named as the function files have recorded it, with its kind'),
  ('tidebase_private.hand_over', 'security', 'text type variable is not sanitized', 'DDL: an object is named by the catalogue, with its kind'),
  ('tidebase_private.refuse_elsewhere', 'error', 'record "new" has no field "thread_id"', 'it is the trigger of several tables'),
  ('tidebase_private.choose_dead', 'performance', 'routine is marked as VOLATILE, should be STABLE', 'it locks rows');
create function pg_temp.problems(out function text, out level text, out message text, out line text) returns setof record language plpgsql as $$
begin
  begin
    create extension if not exists plpgsql_check;
  exception when others then
    level := 'skip';
    return next;
    return;
  end;
  return query execute $q$
    select p.oid::regproc::text, c.level, c.message, format('line %s: %s', c.lineno, c.query)
    from pg_proc p join pg_language l on l.oid = p.prolang and l.lanname = 'plpgsql',
      lateral plpgsql_check_function_tb(p.oid, case p.prorettype when 'trigger'::regtype then 'tidebase.runs'::regclass else 0 end, fatal_errors => false, all_warnings => true, incomment_options_usage_warning => true) c
    where p.pronamespace in ('tidebase'::regnamespace, 'tidebase_private'::regnamespace) $q$;
end
$$;
create temp table problem as select * from pg_temp.problems();
select case when exists (select from problem where level = 'skip') then skip('plpgsql_check is not installed', 2)
  else collect_tap(
    is_empty('select p.* from problem p where not exists (select from deliberate d where (d.function, d.level, d.message) = (p.function, p.level, p.message))',
      'plpgsql_check finds nothing, with all warnings'),
    is_empty('select d.function, d.message from deliberate d except select p.function, p.message from problem p', 'but what is deliberate')) end;
select * from finish();
rollback;
