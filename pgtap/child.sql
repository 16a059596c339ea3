-- Children: one an edge name; and the tree they make.
begin;
select no_plan();
\ir support/helpers.psql
select tidebase.create_run('wf', run_id => 'p');
select tidebase.acquire_run('p', 'w');
select is((tidebase.create_child('p', 1, 'c', 'other', '{"n": 1}', 'fanout', '{"m": 1}')).created, true, 'a child is made');
select results_eq($$select created from tidebase.create_child('p', 1, 'c', 'other', '{"n": 1.0}')$$, $$values (false)$$, 'the same name is the same child');
select is((select count(*) from tidebase.edges where run_id = 'p'), 1::bigint, 'there is one edge');
select results_eq(
  $$select r.workflow, r.input, r.metadata, e.edge_type from tidebase.edges e join tidebase.runs r on r.run_id = e.child_run_id where e.run_id = 'p'$$,
  $$values ('other', '{"n": 1}'::jsonb, '{"m": 1}'::jsonb, 'fanout')$$, 'the child is what was asked for');
select throws_ok($$select tidebase.create_child('p', 1, 'c', 'other', '{"n": 2}')$$, 'TB006', null, 'another input is another child');
select throws_ok($$select tidebase.create_child('p', 1, 'c', 'wf', '{"n": 1}')$$, 'TB006', null, 'another workflow, too');
select throws_ok($$select tidebase.create_child('p', 9, 'd', 'wf')$$, 'TB003', null, 'a stale token makes no child');
select throws_ok($$select tidebase.create_child('p', 1, '', 'wf')$$, 'TB002', null, 'an edge needs a name');
select throws_ok($$select tidebase.create_child('p', 1, 'd', 'wf', edge_type => 'fork')$$, 'TB002', null, 'a child is no fork');
select throws_ok($$select tidebase.create_child('none', 1, 'd', 'wf')$$, 'TB001', null, 'an unknown run has no children');
select results_eq($$select seq, type from tidebase.read_events('p') order by seq$$,
  $$values (1::bigint, 'run.created'), (2, 'run.started'), (3, 'run.child.created')$$, 'one event tells of it, and a repetition costs no number');

-- what a child is given
select tidebase.create_run('wf', run_id => 'q', deadline => '2100-01-01', max_attempts => 9, retry_delay => '9 s', recovery_webhook => 'http://q', budget => '{"tokens": 1000}');
select tidebase.acquire_run('q', 'w');
select pg_temp.same_again($$select run_id from tidebase.create_child('q', 1, 'all', 'wf', '{"n": 1}', 'agent', '{"m": 1}', '{"e": [1]}', 3, '5 s', 'https://hook/x', '{"cost_usd": 0.5}')$$,
  'a child is made once, however often that is said');
create temp table made as select name, child_run_id as id from tidebase.edges where run_id = 'q';
select results_eq(
  $$select r.input, r.metadata, r.max_attempts, r.retry_delay, r.recovery_webhook, h.deadline_at, e.edge_type, e.metadata, t.cost_limit_usd, t.token_limit
    from tidebase.edges e join tidebase.runs r on r.run_id = e.child_run_id join tidebase.run_heads h on h.run_id = e.child_run_id
    join tidebase.usage_totals t on t.run_id = e.child_run_id where e.run_id = 'q'$$,
  $$values ('{"n": 1}'::jsonb, '{"m": 1}'::jsonb, 3, '5 s'::interval, 'https://hook/x', '2100-01-01'::timestamptz, 'agent', '{"e": [1]}'::jsonb, 0.5, null::bigint)$$,
  'it has what was asked for, and the deadline of its parent');
select results_eq($$select payload from tidebase.read_events('q', 2)$$,
  $$select jsonb_build_object('name', 'all', 'child_run_id', id, 'workflow', 'wf', 'edge_type', 'agent') from made$$, 'the log tells which it is');
select is((tidebase.create_child('q', 1, 'all', 'wf', '{"n": 1}', 'other', '{"m": 2}', '{"e": 2}', 1, '1 s', 'http://other', '{"tokens": 1}')).created, false, 'workflow and input are what tells children apart');
select results_eq($$select edge_type, metadata from tidebase.edges where run_id = 'q'$$, $$values ('agent', '{"e": [1]}'::jsonb)$$, 'the rest is that of the first call');
select is((tidebase.create_child('q', 1, 'all', 'wf')).created, false, 'no input makes no claim');
select is((tidebase.create_child('q', 1, 'bare', 'wf')).created, true, 'a name and a workflow are enough');
select results_eq(
  $$select r.input, r.metadata, r.max_attempts, r.retry_delay, r.recovery_webhook, e.edge_type, e.metadata from tidebase.edges e join tidebase.runs r on r.run_id = e.child_run_id
    where e.run_id = 'q' and e.name = 'bare'$$,
  $$values (null::jsonb, '{}'::jsonb, null::integer, null::interval, null::text, 'child', '{}'::jsonb)$$, 'nothing but the deadline and the budget comes from the parent');
select results_eq($$select h.has_budget, a.parent_run_id, a.token_limit from tidebase.edges e join tidebase.run_heads h on h.run_id = e.child_run_id join tidebase.accounts a on a.run_id = h.run_id
    where e.run_id = 'q' order by e.name$$, $$values (true, 'q', null::bigint), (true, 'q', null)$$, 'which is shared');
select is_empty($$select * from tidebase.accounts a join tidebase.edges e on e.child_run_id = a.run_id where e.run_id = 'p'$$, 'where there is none, there is nothing to share');
select throws_ok('select tidebase.create_child(''q'', 1, ''bad'', ''wf'', ' || arguments || ')', 'TB002', null, 'create_child refuses ' || arguments) from unnest(array[
  'edge_metadata => ''[]''', 'edge_metadata => ''1''', 'edge_metadata => ''null''', 'edge_metadata => ''"x"''', 'metadata => ''[]''', 'metadata => ''null''',
  'edge_type => ''''', 'edge_type => '' ''', 'edge_type => repeat(''x'', 256)', 'edge_type => ''fork''',
  'max_attempts => 0', 'max_attempts => 1001', 'retry_delay => ''-1 s''', 'retry_delay => ''31 days''', 'recovery_webhook => ''ftp://x''', 'recovery_webhook => ''''',
  'budget => ''[]''', 'budget => ''{"usd": 1}''', 'budget => ''{"cost_usd": -1}''', 'budget => ''{"tokens": "1"}''']) arguments;
select throws_ok(format('select tidebase.create_child(''q'', 1, %L, ''wf'')', name), 'TB002', null, format('%L names no edge', left(name, 9)))
from unnest(array[null, '', ' ', repeat('x', 1025)]) name;
select throws_ok(format('select tidebase.create_child(''q'', 1, ''bad'', %L)', workflow), 'TB002', null, format('%L is no workflow', left(workflow, 9)))
from unnest(array[null, '', ' ', repeat('x', 256)]) workflow;
select is((select count(*) from tidebase.edges where run_id = 'q'), 2::bigint, 'what is refused makes no child');
select ok(pg_temp.dense('q'), 'and costs no number');
select throws_ok(format($$select tidebase.create_child('q', %s, 'all', 'wf')$$, token), 'TB003', null, token || ' is not the token, also to find a child') from unnest(array['0', '2', 'null']) token;
select tidebase.complete_run('q', 1);
select throws_ok($$select tidebase.create_child('q', 1, 'late', 'wf')$$, 'TB005', null, 'a completed run makes no children');
select pg_temp.leased('stopped');
select tidebase.cancel_run('stopped');
select throws_ok($$select tidebase.create_child('stopped', 1, 'late', 'wf')$$, 'TB004', null, 'nor does a cancelled one');

-- the tree
create function pg_temp.child_of(parent text, name text, edge text default 'child') returns text language plpgsql as $$
declare
  id text := (tidebase.create_child(parent, 1, name, 'wf ' || name, edge_type => edge)).run_id;
begin
  perform tidebase.acquire_run(id, 'worker');
  return id;
end
$$;
select pg_temp.leased('root');
create temp table tree as select pg_temp.child_of('root', 'z') as z, pg_temp.child_of('root', 'm', 'fanout') as m, pg_temp.child_of('root', 'a') as a;
alter table tree add z2 text, add z1 text, add m1 text, add z21 text;
update tree set z2 = pg_temp.child_of(z, '2');
update tree set m1 = pg_temp.child_of(m, '1'), z1 = pg_temp.child_of(z, '1'), z21 = pg_temp.child_of(z2, '1', 'fanout');
create temp table named as select t.key as name, t.value as id from tree, jsonb_each_text(to_jsonb(tree)) t union all values ('root', 'root');
select results_eq(
  $$select n.name, p.name, t.name, t.edge_type, t.depth, t.workflow from tidebase.run_tree('root') with ordinality t
    join named n on n.id = t.run_id left join named p on p.id = t.parent_run_id order by t.ordinality$$,
  $$values ('root', null, null, null, 0, 'wf'), ('z', 'root', 'z', 'child', 1, 'wf z'), ('z2', 'z', '2', 'child', 2, 'wf 2'), ('z21', 'z2', '1', 'fanout', 3, 'wf 1'),
    ('z1', 'z', '1', 'child', 2, 'wf 1'), ('m', 'root', 'm', 'fanout', 1, 'wf m'), ('m1', 'm', '1', 'child', 2, 'wf 1'), ('a', 'root', 'a', 'child', 1, 'wf a')$$,
  'the tree comes depth first, brothers in the order in which they were made');
select results_eq($$select n.name, t.depth, t.parent_run_id, t.name from tidebase.run_tree((select z from tree)) with ordinality t
    join named n on n.id = t.run_id order by t.ordinality$$,
  $$values ('z', 0, null, null), ('z2', 1, (select z from tree), '2'), ('z21', 2, (select z2 from tree), '1'), ('z1', 1, (select z from tree), '1')$$,
  'from any run on: what is above it is not told');
select results_eq($$select run_id = a, depth from tree, tidebase.run_tree(a)$$, $$values (true, 0)$$, 'a leaf is a tree');
select tidebase.begin_step(a, 1, 's') from tree;
select tidebase.complete_step(a, 1, 's') from tree;
select tidebase.complete_run(a, 1), tidebase.fail_run(m1, 1), tidebase.cancel_run(z21) from tree;
select results_eq(
  $$select n.name, t.status, t.steps_completed, t.finished_at is not null, t.created_at = r.created_at from tidebase.run_tree('root') t join named n on n.id = t.run_id
    join tidebase.runs r on r.run_id = t.run_id where n.name in ('root', 'a', 'm1', 'z21') order by 1$$,
  $$values ('a', 'completed', 1, true, true), ('m1', 'failed', 0, true, true), ('root', 'running', 0, false, true), ('z21', 'cancelled', 0, true, true)$$,
  'with what became of each');
select tidebase.acquire_run(m1, 'again') from tree;
select is((select finished_at from tree, tidebase.run_tree(m1)), null, 'a failed run that goes on is not over');
select tidebase.fork_run('root', 'f'), tidebase.fork_run(z, 'fz'), tidebase.fork_run('f', 'ff') from tree;
insert into named values ('f', 'f'), ('fz', 'fz'), ('ff', 'ff');
select results_eq($$select n.name, t.depth, t.name, t.edge_type from tidebase.run_tree('root') with ordinality t
    join named n on n.id = t.run_id where t.run_id like 'f%' order by t.ordinality$$,
  $$values ('fz', 2, 'fork:fz', 'fork'), ('f', 1, 'fork:f', 'fork'), ('ff', 2, 'fork:ff', 'fork')$$, 'forks are in it, as forks');
select results_eq($$select run_id, depth from tidebase.run_tree('f')$$, $$select 'f', 0 union all select a, 1 from tree union all select 'ff', 1 union all select a, 2 from tree$$,
  'a fork has a tree of its own, with those children of its source that were completed');
select throws_ok(format('select tidebase.run_tree(%L)', id), 'TB001', null, format('there is no tree of %L', id)) from unnest(array['none', '', null]) id;
create function pg_temp.deep(levels integer) returns text language plpgsql as $$
declare
  id text := 'deep';
begin
  for n in 1 .. levels loop
    id := pg_temp.child_of(id, 'level ' || n);
  end loop;
  return id;
end
$$;
select pg_temp.leased('deep');
create temp table deepest as select pg_temp.deep(50) as id;
select results_eq($$select count(*), max(depth), array_agg(depth) = array(select generate_series(0, 50)), array_agg(run_id) @> array[(select id from deepest)] from tidebase.run_tree('deep')$$,
  $$values (51::bigint, 50, true, true)$$, 'a tree may be as deep as it likes');
select pg_temp.leased('wide');
select tidebase.create_child('wide', 1, 'c' || n, 'wf') from generate_series(1, 200) n;
select results_eq($$select name from tidebase.run_tree('wide') where depth = 1$$, $$select 'c' || n from generate_series(1, 200) n$$, 'and as wide');
select is((tidebase.cancel_run('deep')), 51, 'a tree is cancelled from the root to the leaves');
select is((select count(*) from tidebase.run_tree('deep') where status = 'cancelled'), 51::bigint, 'all of it');

-- waiting for children
create function pg_temp.family(id text, out parent bigint, out child text, out token bigint) language plpgsql as $$
begin
  parent := pg_temp.leased(id);
  child := (tidebase.create_child(id, parent, 'c', 'wf')).run_id;
  token := (tidebase.acquire_run(child, 'w')).token;
  perform tidebase.open_gate(child, token, 'g');
end $$;
create temp table families as select id, f.* from unnest(array['gate', 'done', 'failed', 'cancelled', 'released', 'lapsed', 'review', 'never']) id, pg_temp.family(id) f;
select is(tidebase_private.bucket_of(child), tidebase_private.bucket_of(id), 'a child lies beside its parent') from families;
select tidebase.suspend_run(child, token, 'g') from families where id in ('gate', 'cancelled', 'never');
select tidebase.begin_step(child, token, 's', side_effects => '{card}'), tidebase.fail_step(child, token, 's'), tidebase.fail_run(child, token) from families where id = 'review';
select is(tidebase.suspend_for_children(id, parent, '{c}'), true, 'a run waits for its child: ' || id) from families;
select is(tidebase.suspend_for_children(id, parent, '{c}'), true, 'the same call again is the same') from families;
select set_eq($$select status, waiting_for from families f, tidebase.get_run(f.id)$$, $$values ('waiting', 'c')$$, 'it is waiting');
select is((tidebase.acquire_run(id, 'w')).outcome, 'waiting', 'and not granted meanwhile: ' || id) from families;
select tidebase.decide_gate(child, 'g', 'approved') from families where id = 'gate';
select tidebase.complete_run(child, token) from families where id = 'done';
select tidebase.fail_run(child, token) from families where id = 'failed';
select tidebase.cancel_run(child) from families where id = 'cancelled';
select tidebase.release_run(child, token) from families where id = 'released';
select pg_temp.lapse(child) from families where id = 'lapsed';
select is((tidebase.acquire_run('lapsed', 'w')).outcome, 'granted', 'a child that may be taken over is something to go on with, whether reconcile has come round or not');
select tidebase.resolve_review(child, 's', 'retry') from families where id = 'review';
select results_eq($$select id, status from families, tidebase.get_run(id) order by id$$,
  $$values ('cancelled', 'pending'), ('done', 'pending'), ('failed', 'pending'), ('gate', 'pending'), ('lapsed', 'running'), ('never', 'waiting'), ('released', 'pending'), ('review', 'pending')$$,
  'a run goes on when its child has ended, or may be taken up');
select is((select payload - 'child_run_id' from tidebase.events where run_id = 'gate' order by seq desc limit 1), '{"name": "c", "status": "pending"}', 'the log says with which one');
select is_empty($$select from tidebase.awaited where run_id <> 'never'$$, 'nobody is waited for any more');
select ok(pg_temp.dense(id), 'no log has a gap: ' || id) from families;
select is(tidebase.suspend_for_children('gate', token, '{c}'), false, 'with a child to go on with there is nothing to wait for') from tidebase.acquire_run('gate', 'w');
select tidebase.cancel_run('never');
select is_empty($$select from tidebase.awaited$$, 'a cancelled run waits for nobody');
select throws_ok(format($$select tidebase.suspend_for_children('gate', pg_temp.token('gate'), %L)$$, names), code, null, format('nor does one for %s', names))
from (values ('{none}'::text[], 'TB012'), ('{}', 'TB002'), (null, 'TB002')) v (names, code);
select pg_temp.family('outer');
create temp table inner_child as select child_run_id as id, pg_temp.token(child_run_id) as token from tidebase.edges where run_id = 'outer';
select tidebase.acquire_run(c.run_id, 'w') from inner_child i, tidebase.create_child(i.id, i.token, 'c', 'wf') c;
select tidebase.suspend_for_children(id, token, '{c}') from inner_child;
select tidebase.suspend_for_children('outer', pg_temp.token('outer'), '{c}');
select tidebase.complete_run(e.child_run_id, pg_temp.token(e.child_run_id)) from tidebase.edges e, inner_child i where e.run_id = i.id;
select is(pg_temp.status('outer'), 'pending', 'who waits for one that waits goes on with it');
select * from finish();
rollback;
