-- Schedules: what fires, when nobody looked, while the run before is not over, by hand.
begin;
select no_plan();
\ir support/helpers.psql

-- Time is not waited for, it is set back; of an interval by a second more, so that its times are new.
create function pg_temp.pass(name text, minutes integer) returns void language sql as $$
  update tidebase.schedules set fired_at = fired_at - make_interval(mins => minutes), anchor = anchor - make_interval(mins => minutes, secs => 1),
    next_at = clock_timestamp() where schedule = name;
$$;
create function pg_temp.made(name text) returns bigint language sql as $$ select count(*) from tidebase.runs where run_id like 'sched:' || name || ':%' $$;

select cmp_ok(tidebase.put_schedule('a', 'wf', every => '1 minute', input => '1', queue => 'q', key => 'k', jitter => '10 seconds'), '>', clock_timestamp(), 'a schedule says when it fires');
select tidebase.reconcile();
select is(pg_temp.made('a'), 0::bigint, 'not before');
select pg_temp.pass('a', 1);
select tidebase.reconcile();
select is(pg_temp.made('a'), 1::bigint, 'and then');
select results_eq($$select workflow, input, queue, queue_key from tidebase.runs$$, $$values ('wf', '1'::jsonb, 'q', 'k')$$, 'a run of its workflow');
select results_eq($$select last_run_id like 'sched:a:%Z', last_status, failure from tidebase.schedule_overview$$, $$values (true, 'queued', null::text)$$, 'which the overview has');
select tidebase.put_schedule('none', 'wf', every => '1 minute', catch_up => 'none'), tidebase.put_schedule('last', 'wf', every => '1 minute', catch_up => 'last'),
  tidebase.put_schedule('all', 'wf', every => '1 minute', catch_up => 'all'), tidebase.put_schedule('window', 'wf', every => '1 minute', catch_up => 'all', catch_up_window => '3 minutes');
select pg_temp.pass(s, 10) from unnest(array['none', 'last', 'all', 'window']) s;
select isnt_empty($$select * from tidebase.claim_runs('{default}', 'w', 1)$$, 'a worker fires what is due, too');
select is(pg_temp.made('none'), 1::bigint, 'what was missed is passed over');
select is(pg_temp.made('last'), 1::bigint, 'or the latest fires');
select is(pg_temp.made('all'), 10::bigint, 'or all');
select is(pg_temp.made('window'), 3::bigint, 'within the window');
select tidebase.put_schedule('skip', 'wf', every => '1 minute', overlap => 'skip'), tidebase.put_schedule('cancel', 'wf', every => '1 minute', overlap => 'cancel');
select pg_temp.pass(s, 1) from unnest(array['skip', 'cancel']) s;
select tidebase.reconcile();
select pg_temp.pass(s, 1) from unnest(array['skip', 'cancel']) s;
select tidebase.reconcile();
select is(pg_temp.made('skip'), 1::bigint, 'while one is not over another may be passed over');
select is(pg_temp.made('cancel'), 2::bigint, 'or come in its place');
select is((select count(*) from tidebase.run_overview where run_id like 'sched:cancel:%' and status = 'cancelled'), 1::bigint, 'which is cancelled');
select tidebase.put_schedule('broken', 'wf', every => '1 minute');
update tidebase.schedules set queue = '' where schedule = 'broken';
select pg_temp.pass('broken', 1);
select lives_ok('select tidebase.reconcile()', 'one that cannot fire keeps nobody waiting');
select matches((select failure from tidebase.schedule_overview where name = 'broken'), 'queue must be', 'and says why');
select is(tidebase.put_schedule('off', 'wf', '0 3 * * *', timezone => 'Europe/Berlin', enabled => false), null, 'one that is disabled does not fire');
select is(tidebase.trigger_schedule('off', 'by hand', '2'), 'by hand', 'but by hand');
select is((select input from tidebase.runs where run_id = 'by hand'), '2', 'with another input');
select results_eq($$select tidebase.backfill_schedule('off', '2024-01-01 00:00+00', '2024-01-03 00:00+00')$$, '{sched:off:2024-01-01T02:00:00Z,sched:off:2024-01-02T02:00:00Z}'::text[], 'or for times that were');
select is_empty($$select tidebase.backfill_schedule('off', '2024-01-01 00:00+00', '2024-01-03 00:00+00')$$, 'once');
select is(tidebase.delete_schedule('off'), true, 'it is removed');
select is(tidebase.delete_schedule('off'), false, 'once');
select throws_ok($$select tidebase.trigger_schedule('off')$$, 'TB012', null, 'then there is none');
select throws_ok($$select tidebase.backfill_schedule('off', now(), now())$$, 'TB012', null, 'for nobody');
select throws_ok($$select tidebase.backfill_schedule('a', now(), now() - interval '1 day')$$, 'TB002', null, 'time goes forward');
select throws_ok($$select tidebase.backfill_schedule('a', now(), now(), 0)$$, 'TB002', null, 'and some are wanted');
select throws_ok(format('select tidebase.put_schedule(''w'', ''wf'', %s)', wrong), 'TB002', null, wrong || ' is refused')
from unnest(array['null', '''* * * * *'', ''1 hour''', 'every => ''1 hour'', overlap => ''maybe''', 'every => ''1 hour'', catch_up => ''some''', 'every => ''1 month''',
  'every => ''1 millisecond''', 'every => ''1 hour'', max_attempts => 0', 'every => ''1 hour'', metadata => ''[]''', 'every => ''1 hour'', key => ''''', 'every => ''1 hour'', timezone => ''x''']) wrong;

-- keys that have no room
select tidebase.put_queue('full', key_concurrency => 1);
select count(*) from tidebase.enqueue_runs((select jsonb_agg(jsonb_build_object('workflow', 'wf', 'queue', 'full', 'key', 'a')) from generate_series(1, 130)));
select is((select count(*) from tidebase.claim_runs('{full}', 'w', 1)), 1::bigint, 'one of a key');
select tidebase.enqueue_run('wf', queue => 'full', key => 'b', run_id => 'b');
update tidebase.queue_entries set place = 500 where run_id = 'b';
select results_eq($$select run_id from tidebase.claim_runs('{full}', 'w', 1)$$, '{b}'::text[], 'behind many of a full key another is found');
select is_empty($$select run_id from tidebase.claim_runs('{full}', 'w', 1)$$, 'where there is one');
select throws_ok(statement, 'TB002', null, statement) from unnest(array['select tidebase.claim_runs(''{}'')', 'select tidebase.claim_runs(max => 0)',
  'select tidebase.put_queue(''q'', max_attempts => 0)', 'select tidebase.put_queue(''q'', concurrency => 0)', 'select tidebase.enqueue_run(''w'', on_duplicate => ''x'')',
  'select tidebase.enqueue_run(''w'', max_wait => ''1 s'')', 'select tidebase.enqueue_run(''w'', key => '''')', 'select tidebase.enqueue_run(''w'', delay => ''1 s'', run_at => now())',
  'select tidebase.enqueue_runs(''[1]'')', 'select tidebase.enqueue_runs(''[{"workflow": "w", "delay": "x"}]'')', 'select tidebase.cancel_runs(queue => ''q'', max => 0)',
  'select tidebase.cancel_runs(status => ''completed'')', 'select tidebase.cancel_runs(failure_class => ''x'')', 'select tidebase.cancel_runs(metadata => ''1'')', 'select tidebase.retry_runs()']) statement;
select * from finish();
rollback;
