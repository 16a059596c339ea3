-- Runs: made once, finished once.
begin;
select no_plan();
select matches(tidebase.create_run('wf'), '^run_[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$', 'a run without an id gets run_ and a UUIDv7');
select isnt(tidebase.create_run('wf'), tidebase.create_run('wf'), 'another one each time');
select is(tidebase.create_run('wf', '{"a": 1}', 'r', '{"m": 1}'), 'r', 'an id may be chosen');
select is(tidebase.create_run('wf', '{"a": 1.0}', 'r'), 'r', 'the same id with an equal input is the same run');
select is(tidebase.create_run('wf', run_id => 'r'), 'r', 'no input makes no claim');
select throws_ok($$select tidebase.create_run('wf', '{"a": 2}', 'r')$$, 'TB006', null, 'another input is another run');
select throws_ok($$select tidebase.create_run('other', '{"a": 1}', 'r')$$, 'TB006', null, 'another workflow, too');
select is((select count(*) from tidebase.events where run_id = 'r'), 1::bigint, 'all that is one event');
select throws_ok($$select tidebase.create_run(null)$$, 'TB002', null, 'a workflow has a name');
select throws_ok($$select tidebase.create_run('wf', run_id => ' ')$$, 'TB002', null, 'an id is not blank');
select throws_ok($$select tidebase.create_run('wf', run_id => repeat('ä', 128))$$, 'TB002', null, 'or longer than 255 bytes');
select lives_ok($$select tidebase.create_run('wf', run_id => repeat('ä', 127))$$, 'up to there it is fine');
select throws_ok($$select tidebase.create_run('wf', metadata => '[]')$$, 'TB002', null, 'metadata is an object');
select throws_ok($$select tidebase.create_run('wf', max_attempts => 0)$$, 'TB002', null, 'there is at least one attempt');
select throws_ok($$select tidebase.create_run('wf', retry_delay => '-1 s')$$, 'TB002', null, 'a delay is not negative');

select tidebase.acquire_run('r', 'w');
select is(tidebase.complete_run('r', 1, '{"x": [1]}'), 3::bigint, 'a run is completed');
select is(tidebase.complete_run('r', 1, '{"x": [1.0]}'), 3::bigint, 'the same call again is the same');
select throws_ok($$select tidebase.complete_run('r', 1, '2')$$, 'TB005', null, 'another result comes too late');
select throws_ok($$select tidebase.fail_run('r', 1)$$, 'TB005', null, 'so does a failure');
select results_eq($$select status, result, error, finished_at is not null, lease_expires_at from tidebase.get_run('r')$$,
  $$values ('completed', '{"x": [1]}'::jsonb, null::jsonb, true, null::timestamptz)$$, 'the run has its result');

select tidebase.create_run('wf', run_id => 'f');
select tidebase.acquire_run('f', 'w');
select results_eq($$select seq, status, retry_at from tidebase.fail_run('f', 1, '{"message": "no"}')$$, $$values (3::bigint, 'failed', null::timestamptz)$$, 'a run fails');
select results_eq($$select seq, status from tidebase.fail_run('f', 1, '{"message": "no"}')$$, $$values (3::bigint, 'failed')$$, 'the same call again is the same');
select results_eq($$select status, error, finished_at is not null from tidebase.get_run('f')$$, $$values ('failed', '{"message": "no"}'::jsonb, true)$$, 'its error is kept');
select results_eq($$select outcome, token from tidebase.acquire_run('f', 'w')$$, $$values ('granted', 2::bigint)$$, 'it may be resumed');
select is((select finished_at from tidebase.get_run('f')), null, 'and is not finished then');
select tidebase.complete_run('f', 2);
select is((select error from tidebase.get_run('f')), null, 'an error that was overcome is gone');

select tidebase.create_run('wf', run_id => 'again', max_attempts => 2, retry_delay => '1 hour');
select tidebase.acquire_run('again', 'w');
select results_eq($$select status, retry_at > clock_timestamp() + '29 min' from tidebase.fail_run('again', 1)$$, $$values ('pending', true)$$, 'while attempts are left it is pending');
select results_eq($$select status from tidebase.fail_run('again', 1)$$, $$values ('pending')$$, 'also when told twice');
select results_eq($$select outcome, expires_at is not null from tidebase.acquire_run('again', 'w')$$, $$values ('waiting', true)$$, 'but not before its time');
update tidebase.run_heads set available_at = clock_timestamp() where run_id = 'again';
select is((tidebase.acquire_run('again', 'w')).token, 2::bigint, 'then it is granted');
select is((tidebase.fail_run('again', 2)).status, 'failed', 'the last attempt is the last');
select tidebase.create_run('wf', run_id => 'hard', max_attempts => 5);
select tidebase.acquire_run('hard', 'w');
select is((tidebase.fail_run('hard', 1, retryable => false)).status, 'failed', 'a failure that is not worth it is final at once');

-- listing
select tidebase.create_run('listed', run_id => 'l' || n) from generate_series(1, 5) n;
update tidebase.runs set created_at = '2020-01-01' where workflow = 'listed';
select results_eq($$select run_id from tidebase.list_runs('listed', max => 3)$$, $$values ('l5'), ('l4'), ('l3')$$, 'runs are listed, newest first');
select results_eq($$select run_id from tidebase.list_runs('listed', before => 'l3')$$, $$values ('l2'), ('l1')$$, 'and on from the last one, also among equal times');
select is((select count(*) from tidebase.list_runs('listed', 'running')), 0::bigint, 'by status');
select throws_ok($$select tidebase.list_runs(before => 'none')$$, 'TB001', null, 'from a run that exists');
select throws_ok($$select tidebase.list_runs(max => 0)$$, 'TB002', null, 'a sensible number of them');
select throws_ok($$select tidebase.get_run('none')$$, 'TB001', null, 'an unknown run is not found');
select throws_ok($$select tidebase.get_run(null)$$, 'TB001', null, 'nor is none');
select tidebase.acquire_run('l1', 'w');
update tidebase.run_heads set lease_expires_at = '2020-01-01' where run_id = 'l1';
select is((select lease_lapsed from tidebase.run_overview where run_id = 'l1'), true, 'a silent holder is seen');
select * from finish();
rollback;
