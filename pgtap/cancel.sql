-- Cancellation: one-way, idempotent, and down the tree.
begin;
select no_plan();

select tidebase.create_run('wf', run_id => 'p');
select tidebase.acquire_run('p', 'w');
select is((tidebase.create_child('p', 1, 'c', 'wf')).created, true, 'a child is made');
create function pg_temp.child() returns text language sql as $$ select child_run_id from tidebase.edges where run_id = 'p' and name = 'c' $$;
select tidebase.acquire_run(pg_temp.child(), 'w');
select tidebase.create_child(pg_temp.child(), 1, 'grandchild', 'wf');
select tidebase.create_run('wf', run_id => 'fork');
insert into tidebase.edges (run_id, name, child_run_id, edge_type) values ('p', 'f', 'fork', 'fork');
select tidebase.begin_step('p', 1, 's');
select tidebase.open_gate('p', 1, 'g', '?');

select is(tidebase.cancel_run('p', 'too dear', 'ada'), 3, 'a run is cancelled with its descendants');
select is(tidebase.cancel_run('p', 'again', 'bob'), 0, 'and once only');
select results_eq($$select status, cancel_reason, cancel_actor, finished_at is not null from tidebase.run_overview where run_id = 'p'$$,
  $$values ('cancelled', 'too dear', 'ada', true)$$, 'the first reason stands');
select is((select status from tidebase.run_overview where run_id = 'fork'), 'pending', 'a fork is a run of its own');
select is((select outcome from tidebase.run_attempts where run_id = 'p'), 'cancelled', 'the attempt ends with it');

-- nothing that a worker may call gets through
select throws_ok($$select tidebase.acquire_run('p', 'w')$$, 'TB004', null, 'it is not granted any more');
select throws_ok($$select tidebase.renew_lease('p', 1)$$, 'TB004', null, 'its lease is not renewed');
select throws_ok($$select tidebase.release_run('p', 1)$$, 'TB004', null, 'nor released');
select throws_ok($$select tidebase.begin_step('p', 1, 't')$$, 'TB004', null, 'no step begins');
select throws_ok($$select tidebase.complete_step('p', 1, 's')$$, 'TB004', null, 'no step completes');
select throws_ok($$select tidebase.fail_step('p', 1, 's')$$, 'TB004', null, 'no step fails');
select throws_ok($$select tidebase.append_event('p', 1, 'x')$$, 'TB004', null, 'no event is appended');
select throws_ok($$select tidebase.open_gate('p', 1, 'h')$$, 'TB004', null, 'no gate opens');
select throws_ok($$select tidebase.suspend_run('p', 1, 'g')$$, 'TB004', null, 'it does not wait');
select throws_ok($$select tidebase.create_child('p', 1, 'd', 'wf')$$, 'TB004', null, 'it has no more children');
select throws_ok($$select tidebase.complete_run('p', 1)$$, 'TB004', null, 'complete does not resurrect it');
select throws_ok($$select tidebase.fail_run('p', 1)$$, 'TB004', null, 'nor does fail');
select is((select type from tidebase.events where run_id = 'p' order by seq desc limit 1), 'run.cancelled', 'its last event is run.cancelled');

select throws_ok($$select tidebase.cancel_run('none')$$, 'TB001', null, 'an unknown run is not cancelled');
select tidebase.create_run('wf', run_id => 'done');
select tidebase.acquire_run('done', 'w');
select tidebase.complete_run('done', 1);
select throws_ok($$select tidebase.cancel_run('done')$$, 'TB005', null, 'a completed run stays completed');

-- deadlines
select tidebase.create_run('wf', run_id => 'late', deadline => clock_timestamp() + interval '1 hour');
select tidebase.acquire_run('late', 'w');
select tidebase.create_child('late', 1, 'c', 'wf');
select is((select r.deadline_at from tidebase.run_overview r join tidebase.edges e on e.child_run_id = r.run_id where e.run_id = 'late'),
  (select deadline_at from tidebase.run_overview where run_id = 'late'), 'a child has its parent''s deadline');
update tidebase.run_heads set deadline_at = clock_timestamp() - interval '1 second', due_at = clock_timestamp() where run_id = 'late';
select throws_ok($$select tidebase.begin_step('late', 1, 's')$$, 'TB004', null, 'no step begins after the deadline');
select throws_ok($$select tidebase.open_gate('late', 1, 'g')$$, 'TB004', null, 'and no gate opens');
select is((tidebase.reconcile()).deadlines, 1, 'reconcile cancels it');
select is((select cancel_actor from tidebase.run_overview where run_id = 'late'), 'tidebase', 'in its own name');

set local role tidebase_worker;
select throws_ok($$select tidebase.cancel_run('p')$$, '42501', null, 'a worker does not cancel');
reset role;
select * from finish();
rollback;
