-- Retention: what is over goes with all that hangs on it; what is alive stays, and what it needs.
begin;
select no_plan();
\ir support/helpers.psql
create function pg_temp.finish(id text, how text) returns void language plpgsql as $$
begin
  case how
    when 'completed' then perform tidebase.complete_run(id, pg_temp.token(id), '{"result": 1}');
    when 'failed' then perform tidebase.fail_run(id, pg_temp.token(id));
    when 'cancelled' then perform tidebase.cancel_run(id, cascade => false);
    when 'running' then null;
    else perform pg_temp.put(id, how);
  end case;
end
$$;
create function pg_temp.age(id text, age interval default '10 days') returns void language sql as $$
  update tidebase.runs set created_at = created_at - age, finished_at = finished_at - age where run_id = id;
$$;
-- A run that is over, or not, for ten days; below another one, if that is wanted.
create function pg_temp.old(id text, how text default 'completed', parent text default null, edge text default 'child') returns void language plpgsql as $$
begin
  perform pg_temp.leased(id);
  perform pg_temp.finish(id, how);
  perform pg_temp.age(id);
  if parent is not null then
    insert into tidebase.edges (run_id, name, child_run_id, edge_type) values (parent, id, id, edge);
  end if;
end
$$;
-- How many runs a purge takes, and which are left of those whose ids begin so.
create function pg_temp.purged(statement text, ids text, out purged integer, out remain text[]) language plpgsql as $$
begin
  execute statement into purged;
  remain := array(select run_id from tidebase.runs where run_id like ids || '%' order by run_id);
end
$$;
create function pg_temp.tables_with(id text) returns setof text language plpgsql as $$
declare
  tab text;
  there boolean;
begin
  for tab in select c.relname from pg_class c join pg_attribute a on a.attrelid = c.oid and a.attname = 'run_id'
    where c.relnamespace = 'tidebase'::regnamespace and c.relkind = 'r'
  loop
    execute format('select exists (select from tidebase.%I where run_id = %L)', tab, id) into there;
    if there then
      return next tab;
    end if;
  end loop;
end
$$;

-- age
select pg_temp.old('age 1');
select pg_temp.leased('age 2');
select tidebase.complete_run('age 2', pg_temp.token('age 2'));
select pg_temp.leased('age 3');
select pg_temp.age('age 3');
select tidebase.complete_run('age 3', pg_temp.token('age 3'));
select results_eq($$select * from pg_temp.purged('select tidebase.purge_runs(''11 days'')', 'age')$$, $$values (0, '{"age 1","age 2","age 3"}'::text[])$$, 'what is younger stays');
select results_eq($$select * from pg_temp.purged('select tidebase.purge_runs(''9 days'')', 'age')$$, $$values (1, '{"age 2","age 3"}'::text[])$$, 'what is older goes; it counts since when a run is over');
select throws_ok($$select tidebase.get_run('age 1')$$, 'TB001', null, 'then nobody knows it');
select is(tidebase.purge_runs('9 days'), 0, 'a second time there is nothing to do');
select lives_ok($$select tidebase.create_run('wf', '"new"', 'age 1')$$, 'its id may be used again');
select is((select last_seq from tidebase.get_run('age 1')), 1::bigint, 'by a run that begins at the beginning');
select is(tidebase.purge_runs('0'), 2, 'what is over may go at once');

-- statuses
select pg_temp.old('s ' || status, status) from unnest(array['pending', 'queued', 'running', 'waiting', 'review', 'completed', 'failed', 'cancelled']) status;
update tidebase.runs set finished_at = created_at where run_id like 's %';
select results_eq($$select * from pg_temp.purged('select tidebase.purge_runs(''1 day'', ''{failed}'')', 's ')$$,
  $$values (1, '{"s cancelled","s completed","s pending","s queued","s review","s running","s waiting"}'::text[])$$, 'only some statuses may be meant');
select results_eq($$select * from pg_temp.purged('select tidebase.purge_runs(''1 day'', ''{cancelled,failed,cancelled}'')', 's ')$$,
  $$values (1, '{"s completed","s pending","s queued","s review","s running","s waiting"}'::text[])$$, 'or several');
select pg_temp.old('s ' || status, status) from unnest(array['failed', 'cancelled']) status;
select results_eq($$select * from pg_temp.purged('select tidebase.purge_runs(''0'')', 's ')$$,
  $$values (3, '{"s pending","s queued","s review","s running","s waiting"}'::text[])$$, 'a run that is not over never goes, however old');

-- arguments
select throws_ok('select tidebase.purge_runs(' || arguments || ')', 'TB002', null, 'purge_runs refuses ' || arguments) from unnest(array[
  'null', '''-1 s''', '''1001 years''', '''1 day'', ''{}''', '''1 day'', ''{running}''', '''1 day'', ''{completed,pending}''', '''1 day'', ''{waiting}''',
  '''1 day'', ''{review}''', '''1 day'', ''{queued}''', '''1 day'', ''{lost}''', '''1 day'', ''{completed,null}''', '''1 day'', ''{null}''', '''1 day'', ''{""}''',
  '''1 day'', max => 0', '''1 day'', max => -1', '''1 day'', max => 10001']) arguments;
select lives_ok('select tidebase.purge_runs(' || arguments || ')', 'purge_runs takes ' || arguments) from unnest(array[
  '''1000 years''', '''1000 years'', max => 10000', '''1000 years'', ''{failed}''', '''1000 years'', max => 1', '''1000 years'', null, null']) arguments;

-- trees
select pg_temp.old('live parent', 'running');
select pg_temp.old('live parent, child', 'completed', 'live parent');
select results_eq($$select * from pg_temp.purged('select tidebase.purge_runs(''1 day'')', 'live')$$, $$values (0, '{"live parent","live parent, child"}'::text[])$$,
  'a child of a run that is alive stays: its result may be asked for again');
select is(tidebase.purge_runs('1 day'), 0, 'also when that is ' || status)
from unnest(array['pending', 'queued', 'waiting', 'review']) status, pg_temp.put('live parent', status);
update tidebase.run_heads set status = 'completed', lease_expires_at = null, waiting_for = null where run_id = 'live parent';
update tidebase.runs set finished_at = clock_timestamp() where run_id = 'live parent';
select results_eq($$select * from pg_temp.purged('select tidebase.purge_runs(''1 day'')', 'live')$$, $$values (1, '{"live parent"}'::text[])$$, 'when the parent is over, the child goes in its own time');
select is_empty($$select * from tidebase.edges where run_id = 'live parent'$$, 'with the edge to it');

select pg_temp.old('x', 'completed');
select pg_temp.old('x child', 'running', 'x');
select results_eq($$select * from pg_temp.purged('select tidebase.purge_runs(''1 day'')', 'x')$$, $$values (0, '{x,"x child"}'::text[])$$, 'the parent of a run that is alive stays');
select is(tidebase.purge_runs('1 day'), 0, 'also when that is ' || status)
from unnest(array['pending', 'queued', 'waiting', 'review']) status, pg_temp.put('x child', status);
select pg_temp.put('x child', 'failed');
update tidebase.runs set finished_at = created_at where run_id = 'x child';
select is(tidebase.purge_runs('1 day', '{completed,cancelled}'), 0, 'or failed: it may be resumed');
select is(tidebase.purge_runs('1 day'), 2, 'but a failed child goes, and then its parent');

select pg_temp.old('f', 'failed');
select pg_temp.old('f child', 'completed', 'f');
select results_eq($$select * from pg_temp.purged('select tidebase.purge_runs(''1 day'', ''{completed}'')', 'f')$$, $$values (0, '{f,"f child"}'::text[])$$,
  'a child of a failed run stays: the parent may be resumed');
select results_eq($$select * from pg_temp.purged('select tidebase.purge_runs(''1 day'')', 'f')$$, $$values (2, '{}'::text[])$$, 'when that may go, both go');

select pg_temp.old('t', 'completed');
select pg_temp.old('t1', 'completed', 't'), pg_temp.old('t2', 'cancelled', 't'), pg_temp.old('t11', 'completed', 't1'), pg_temp.old('t12', 'cancelled', 't1'),
  pg_temp.old('t111', 'completed', 't11'), pg_temp.old('t1111', 'completed', 't111');
select results_eq($$select * from pg_temp.purged('select tidebase.purge_runs(''1 day'')', 't')$$, $$values (7, '{}'::text[])$$, 'a whole tree that is over goes in one call');
select pg_temp.old('t', 'completed');
select pg_temp.old('t1', 'completed', 't'), pg_temp.old('t2', 'cancelled', 't'), pg_temp.old('t11', 'running', 't1');
select results_eq($$select * from pg_temp.purged('select tidebase.purge_runs(''1 day'')', 't')$$, $$values (2, '{t1,t11}'::text[])$$,
  'what lives deep down keeps its parent; that one is over, and needs nobody else');
select pg_temp.old('u', 'failed');
select pg_temp.old('u1', 'completed', 'u'), pg_temp.old('u2', 'completed', 'u'), pg_temp.old('u11', 'failed', 'u1');
select is(tidebase.purge_runs('1 day'), 4, 'leaves and roots go first, then what is between them');

-- a number at a time
select pg_temp.old('m' || n) from generate_series(1, 5) n;
select pg_temp.age('m' || n, n * interval '1 day') from generate_series(1, 5) n;
select results_eq($$select * from pg_temp.purged('select tidebase.purge_runs(''1 day'', max => 2)', 'm')$$, $$values (2, '{m1,m2,m3}'::text[])$$, 'at most so many go, the oldest first');
select is(tidebase.purge_runs('1 day', max => 2), 2, 'the next call takes more');
select is(tidebase.purge_runs('1 day', max => 2), 1, 'until all are gone');
select is(tidebase.purge_runs('1 day', max => 2), 0, 'then it says so');
select pg_temp.old('n');
select pg_temp.old('n' || n, 'completed', 'n' || nullif(n - 1, 0)) from generate_series(1, 6) n;
select is(tidebase.purge_runs('1 day', max => 4), 4, 'trees, too');
select is(tidebase.purge_runs('1 day', max => 4), 3, 'bit by bit');
select pg_temp.old('o', 'failed');
select pg_temp.old('o' || n, 'completed', 'o') from generate_series(1, 4) n;
select is(tidebase.purge_runs('1 day', max => 3), 3, 'also in rounds it is no more than that');
select is(tidebase.purge_runs('1 day', max => 3), 2, 'and the rest');

-- forks
select pg_temp.leased('source');
select tidebase.begin_step('source', pg_temp.token('source'), 's');
select tidebase.complete_step('source', pg_temp.token('source'), 's', '"kept"');
select tidebase.set_state('source', pg_temp.token('source'), '{"a": 1}');
select tidebase.fork_run('source', 'fork'), tidebase.fork_run('source', 'fork of nobody'), tidebase.fork_run('fork', 'fork of fork');
select tidebase.complete_run('source', pg_temp.token('source'));
select pg_temp.age('source');
select is(tidebase.purge_runs('1 day'), 1, 'a fork does not keep its source');
select tidebase.acquire_run('fork', 'w');
select results_eq($$select outcome, output from tidebase.begin_step('fork', pg_temp.token('fork'), 's')$$, $$values ('replay', '"kept"'::jsonb)$$, 'it has what it needs itself');
select is((tidebase.get_state('fork')).value, '{"a": 1}', 'its states, too');
select is_empty($$select * from tidebase.edges where run_id = 'source' or child_run_id = 'fork'$$, 'nothing leads to what is gone');
select results_eq($$select run_id from tidebase.run_tree('fork')$$, $$values ('fork'), ('fork of fork')$$, 'the tree begins with the fork');
select tidebase.cancel_run('fork of fork');
select pg_temp.age('fork of fork');
select is(tidebase.purge_runs('1 day'), 1, 'a source that is alive does not keep its fork');
select results_eq($$select run_id from tidebase.run_tree('fork')$$, $$values ('fork')$$, 'which is gone from its tree');

-- all that hangs on a run
select tidebase.create_run('wf', run_id => 'full', recovery_webhook => 'http://hook', budget => '{"tokens": 10}');
select tidebase.acquire_run('full', 'w');
select tidebase.begin_step('full', pg_temp.token('full'), 's', side_effects => '{write}');
select tidebase.fail_step('full', pg_temp.token('full'), 's');
select tidebase.resolve_review('full', 's', 'accept', '1');
select tidebase.open_gate('full', pg_temp.token('full'), 'g', required_approvals => 2);
select tidebase.decide_gate('full', 'g', 'approved', 'ann');
select tidebase.record_recovery('full');
select tidebase.add_channel('full', 'https://hook.example');
select tidebase.record_usage('full', pg_temp.token('full'), output_tokens => 1);
select tidebase.set_state('full', pg_temp.token('full'), '{"a": 1}');
select tidebase.acquire_run(c.run_id, 'w') from tidebase.create_child('full', pg_temp.token('full'), 'c', 'wf') c;
select tidebase.watch_run('full');
select tidebase.suspend_for_children('full', pg_temp.token('full'), '{c}');
select tidebase_private.set_back('full', 'P0001', 'message');
insert into tidebase.queue_entries (run_id, ready_at, turn, priority, pinned, queue, workflow) values ('full', now(), now(), 0, false, 'q', 'wf');
insert into tidebase.slots (run_id, lease_token, queue) values ('full', 1, 'q');
insert into tidebase.dedupe_keys (queue, dedupe_key, run_id) values ('q', 'd', 'full');
insert into tidebase.invocations (run_id, invocation, attempt, queue, status, next_at) values ('full', 1, 1, 'q', 'begun', now());
select set_eq($$select * from pg_temp.tables_with('full')$$,
  $$select c.relname::text from pg_class c join pg_attribute a on a.attrelid = c.oid and a.attname = 'run_id' where c.relnamespace = 'tidebase'::regnamespace and c.relkind = 'r'$$,
  'a run may have rows in every table');
select tidebase.cancel_run('full');
create temp table child as select child_run_id as id from tidebase.edges where run_id = 'full';
select pg_temp.age(id) from (values ('full'), ((select id from child))) v (id);
select tidebase.create_run('wf', run_id => 'bystander');
select tidebase.acquire_run('bystander', 'w');
select tidebase.set_state('bystander', pg_temp.token('bystander'), '1');
select tidebase.record_usage('bystander', pg_temp.token('bystander'));
create temp table bystander as select array(select * from pg_temp.tables_with('bystander') order by 1) as tables;
select is(tidebase.purge_runs('1 day'), 2, 'it is purged');
select is_empty($$select * from pg_temp.tables_with('full')$$, 'then it has a row in none');
select is_empty($$select pg_temp.tables_with(id) from child$$, 'nor does its child');
select is_empty($$select * from tidebase.edges e where 'full' in (e.run_id, e.child_run_id)$$, 'and no edge leads to it');
select is(array(select * from pg_temp.tables_with('bystander') order by 1), tables, 'others keep their rows') from bystander;

-- compact_run
create function pg_temp.worked(id text) returns void language plpgsql as $$
begin
  perform pg_temp.leased(id);
  perform tidebase.begin_step(id, pg_temp.token(id), 'one', to_jsonb(repeat('in', 1000)));
  perform tidebase.complete_step(id, pg_temp.token(id), 'one', to_jsonb(repeat('out', 1000)));
  perform tidebase.begin_step(id, pg_temp.token(id), 'two', '{"x": 1}');
  perform tidebase.fail_step(id, pg_temp.token(id), 'two', '{"message": "no"}');
  perform tidebase.begin_step(id, pg_temp.token(id), 'three', '{"x": 1}');
  perform tidebase.set_state(id, pg_temp.token(id), jsonb_build_object('list', jsonb_build_array(n), 'same', repeat('x', 100)), label => 'v' || n) from generate_series(1, 40) n;
  perform tidebase.set_state(id, pg_temp.token(id), '"only"', 'second');
  perform tidebase.create_snapshot(id, pg_temp.token(id), 'shot ' || n, 'file', 'f', to_jsonb(n)) from generate_series(1, 3) n;
  perform tidebase.open_gate(id, pg_temp.token(id), 'g', 'Go?', '{"y": 1}');
  perform tidebase.decide_gate(id, 'g', 'approved', 'ann', '{"z": 1}');
  perform tidebase.record_usage(id, pg_temp.token(id), input_tokens => 7, cost_usd => 0.5);
end
$$;
select pg_temp.worked(id) from unnest(array['c', 'cc']) id;
update tidebase.runs set input = '{"asked": 1}' where run_id in ('c', 'cc');
select throws_ok($$select tidebase.compact_run('c')$$, 'TB002', null, 'a run that is alive needs its checkpoints');
select throws_ok(format('select tidebase.compact_run(%L)', 'c ' || status), 'TB002', null, 'so does one that is ' || status)
from unnest(array['pending', 'queued', 'waiting', 'review', 'failed']) status, pg_temp.old('c ' || status, status);
select throws_ok(format('select tidebase.compact_run(%L)', id), 'TB001', null, format('there is no run %L', id)) from unnest(array['none', '', null]) id;
select tidebase.complete_run('c', pg_temp.token('c'), '{"result": 1}');
select tidebase.cancel_run('cc');
create temp table before as
  select (select jsonb_agg(e order by e.seq) from tidebase.events e where run_id = 'c') as log, (select jsonb_agg(g) from tidebase.gates g where run_id = 'c') as gates,
    (select jsonb_agg(u) from tidebase.usage u where run_id = 'c') as usage, (select to_jsonb(r) - 'compacted_at' from tidebase.runs r where run_id = 'c') as run,
    (select to_jsonb(h) - 'updated_at' from tidebase.run_heads h where run_id = 'c') as head,
    (select jsonb_agg(to_jsonb(s) - array['input', 'output', 'error'] order by name) from tidebase.steps s where run_id = 'c') as steps,
    (select jsonb_agg(to_jsonb(v) - array['base', 'keyframe', 'group_bytes', 'content'] order by stream)
     from tidebase.state_versions v where run_id = 'c' and version = (select max(w.version) from tidebase.state_versions w where w.run_id = 'c' and w.stream = v.stream)) as states;
create temp table sizes as select * from tidebase.run_sizes where run_id = 'c';
select results_eq($$select steps, events, state_versions, run_bytes > 0, step_bytes > 0, event_bytes > 0, state_bytes > 0, compacted_at from sizes$$,
  $$select 3::bigint, count(*), 44::bigint, true, true, true, true, null::timestamptz from tidebase.events where run_id = 'c'$$, 'run_sizes counts what a run stores');
select is(tidebase.compact_run('c'), true, 'a run that is completed is compacted');
select ok((select compacted_at > clock_timestamp() - interval '1 min' from tidebase.get_run('c')), 'which is kept in mind');
select results_eq($$select name, status, input, output, error from tidebase.step_timeline where run_id = 'c' order by name$$,
  $$values ('one', 'completed', null::jsonb, 'null'::jsonb, null::jsonb), ('three', 'failed', null, null, null), ('two', 'failed', null, null, null)$$, 'inputs, outputs and errors of its steps are gone');
select is((select jsonb_agg(to_jsonb(s) - array['input', 'output', 'error'] order by name) from tidebase.steps s where run_id = 'c'), steps, 'what else is known of the steps stays') from before;
select is((select jsonb_agg(e order by e.seq) from tidebase.events e where run_id = 'c'), log, 'the log stays') from before;
select is((select jsonb_agg(g) from tidebase.gates g where run_id = 'c'), gates, 'so do the gates') from before;
select is((select jsonb_agg(u) from tidebase.usage u where run_id = 'c'), usage, 'and the usage') from before;
select is((select to_jsonb(r) - 'compacted_at' from tidebase.runs r where run_id = 'c'), run, 'its input and result') from before;
select is((select to_jsonb(h) - 'updated_at' from tidebase.run_heads h where run_id = 'c'), head, 'and its head: no event tells of it') from before;
select is((select jsonb_agg(to_jsonb(v) - array['base', 'keyframe', 'group_bytes', 'content'] order by stream) from tidebase.state_versions v where run_id = 'c'), states,
  'each stream has its newest version, with all that is known of it') from before;
select results_eq($$select version, value, label from tidebase.get_state('c')$$, $$select 40, jsonb_build_object('list', '[40]'::jsonb, 'same', repeat('x', 100)), 'v40'$$, 'the newest state can be read');
select is((tidebase.get_state('c', version => 40)).value -> 'list', '[40]', 'by its number');
select is((tidebase.get_state('c', label => 'v40')).version, 40, 'by its label');
select is((tidebase.get_state('c', 'second')).value, '"only"', 'in each stream');
select results_eq($$select label, version, value from tidebase.list_snapshots('c', 'file')$$, $$values ('shot 3', 3, '3'::jsonb)$$, 'the newest snapshot of a target, too');
select results_eq($$select stream, version from tidebase.list_state_versions('c') where stream in ('main', 'second') order by 1$$, $$values ('main', 40), ('second', 1)$$, 'there are no others');
select throws_ok('select tidebase.get_state(''c'', ' || arguments || ')', 'TB012', null, 'nothing is left at ' || arguments)
from unnest(array['version => 39', 'version => 1', 'version => 41', 'label => ''v39''', 'seq => 3', 'at => clock_timestamp() - interval ''1 hour''']) arguments;
select pg_temp.same_again($$select tidebase.compact_run('c') or true$$, 'compacting it again stores nothing');
select is(tidebase.compact_run('c'), false, 'and says so');
select throws_ok($$select tidebase.fork_run('c')$$, 'TB005', null, 'it cannot be forked any more');
select throws_ok($$select tidebase.fork_run('c', through_step => 'one')$$, 'TB005', null, 'nor behind a step');
select throws_ok($$select tidebase.fork_run('c', through_seq => 0)$$, 'TB005', null, 'nor from the beginning');
select results_eq($$select s.steps, s.events, s.state_versions, s.run_bytes = b.run_bytes, s.step_bytes < b.step_bytes, s.event_bytes = b.event_bytes, s.state_bytes < b.state_bytes,
    s.compacted_at is not null from tidebase.run_sizes s join sizes b using (run_id)$$,
  $$select 3::bigint, events, 3::bigint, true, true, true, true, true from sizes$$, 'run_sizes has what is left');
select is((select output from tidebase.step_timeline where run_id = 'cc' and name = 'one'), to_jsonb(repeat('out', 1000)), 'other runs are untouched');
select is(tidebase.compact_run('cc'), true, 'a cancelled run is compacted, too');
select is((tidebase.get_state('cc')).version, 40, 'and has its newest state');
select pg_temp.leased('bare');
select tidebase.complete_run('bare', pg_temp.token('bare'));
select is(tidebase.compact_run('bare'), true, 'also one that has nothing to lose');
select results_eq($$select steps, step_bytes, events, state_versions, state_bytes from tidebase.run_sizes where run_id = 'bare'$$,
  $$values (0::bigint, 0::bigint, 3::bigint, 0::bigint, 0::bigint)$$, 'which has sizes of 0');
select pg_temp.worked('d');
select tidebase.fork_run('d', 'fork of d');
select tidebase.complete_run('d', pg_temp.token('d'));
select tidebase.compact_run('d');
select is((select output from tidebase.load_checkpoints('fork of d')), to_jsonb(repeat('out', 1000)), 'a fork that was made before keeps its checkpoints');
select is((tidebase.get_state('fork of d', version => 7)).value -> 'list', '[7]', 'and every version');
select pg_temp.age(id) from unnest(array['c', 'cc', 'd', 'bare']) id;
select is(tidebase.purge_runs('1 day', '{completed,cancelled}'), 4, 'what was compacted is purged as any other');
select * from finish();
rollback;
