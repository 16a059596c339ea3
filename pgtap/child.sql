-- Children: one an edge name.
begin;
select no_plan();
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
select * from finish();
rollback;
