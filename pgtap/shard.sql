-- Shards: what belongs into another database's buckets is refused wherever it would be made.
begin;
select no_plan();
\ir support/helpers.psql
set client_min_messages = warning;

create function pg_temp.names(odd integer) returns setof text language sql as $$
  select format('r%s', n) from generate_series(1, 100) n where tidebase_private.bucket_of('r' || n) & 1 = odd order by n limit 3;
$$;
create function pg_temp.queue(odd integer) returns text language sql as $$
  select min(format('q%s', n)) from generate_series(1, 100) n where tidebase_private.bucket_of_queue('q' || n) & 1 = odd;
$$;

-- a database alone
select ok(not tidebase_private.is_shard(), 'a database is no shard until that is said');
select ok(tidebase_private.owns_bucket(0) and tidebase_private.owns_bucket(65535), 'and owns every bucket');
select is((select count(*) from pg_trigger where tgname = 'refuse_elsewhere'), 0::bigint, 'nothing is looked up');
select is(tidebase_private.bucket_of_queue('mail'), tidebase_private.bucket_of('{queue:mail}'), 'a queue has the bucket of its tag');

-- what it owns
select throws_ok(format('select tidebase_private.own_buckets(%L)', owned), 'TB002', null, format('"%s" says nothing', owned))
from unnest(array['', '101', '12', repeat('1', 131072)]) owned;
select lives_ok($$select tidebase_private.own_buckets('1000')$$, 'the first quarter');
select is(array(select n from generate_series(0, 7) n where tidebase_private.owns_bucket(n)), array[0, 4], 'is every fourth bucket');
select lives_ok($$select tidebase_private.own_buckets('10')$$, 'another word replaces it');
select is(array(select n from generate_series(0, 7) n where tidebase_private.owns_bucket(n)), array[0, 2, 4, 6], 'the even ones');
select lives_ok($$select tidebase_private.own_buckets('1010')$$, 'doubled, the partitions are the same buckets');
select is(array(select n from generate_series(0, 7) n where tidebase_private.owns_bucket(n)), array[0, 2, 4, 6], 'no row moves');
select ok(tidebase_private.is_shard(), 'it is one of several now');

-- runs
select is(tidebase.create_run('wf', run_id => n), n, 'a run of its own is made') from pg_temp.names(0) n;
select throws_ok(format('select tidebase.create_run(%L, run_id => %L)', 'wf', n), '55000',
  format('run %L belongs to another database: its bucket is %s', n, tidebase_private.bucket_of(n)), 'one of another database is not')
from pg_temp.names(1) n;
select is((select count(*) from tidebase.runs), 3::bigint, 'and leaves nothing behind');
select is(tidebase_private.bucket_of(tidebase.fork_run(n)), tidebase_private.bucket_of(n), 'a fork lies beside its source') from pg_temp.names(0) n;
select throws_ok(format('select tidebase.fork_run(%L, %L)', n, other), '55000', null, 'it cannot be made elsewhere')
from pg_temp.names(0) n, pg_temp.names(1) other;

-- threads
select throws_ok(format($$select tidebase.put_checkpoint(%L, '', '1', 'json', '\x00', '{}')$$, n), '55000', null, 'no thread of another database') from pg_temp.names(1) n;

-- queues
select is(tidebase_private.bucket_of((tidebase.enqueue_run('wf', queue => q)).run_id), tidebase_private.bucket_of_queue(q), 'an id is made beside its queue') from pg_temp.queue(0) q;
select is(array(select distinct tidebase_private.bucket_of(e.run_id) from tidebase.enqueue_runs(jsonb_build_array(
    jsonb_build_object('workflow', 'wf', 'queue', q), jsonb_build_object('workflow', 'wf', 'queue', q),
    jsonb_build_object('workflow', 'wf', 'queue', q, 'delay', '1 hour'))) e), array[tidebase_private.bucket_of_queue(q)], 'many of them, too')
from pg_temp.queue(0) q;
select is((select count(distinct e.run_id) from tidebase.enqueue_runs((select jsonb_agg(jsonb_build_object('workflow', 'wf', 'queue', pg_temp.queue(0))) from generate_series(1, 3000))) e), 3000::bigint,
  'three thousand ids in one bucket are three thousand');
select throws_ok(format('select tidebase.enqueue_run(%L, queue => %L)', 'wf', q), '55000', null, 'nothing is put into a queue of another database') from pg_temp.queue(1) q;
select throws_ok(format('select tidebase.enqueue_run(%L, queue => %L, run_id => %L)', 'wf', q, format('fresh {%s}', n)), '55000',
  format('queue %L belongs to another database: its bucket is %s', q, tidebase_private.bucket_of_queue(q)), 'nor a run that lies here')
from pg_temp.queue(1) q, pg_temp.names(0) n limit 1;
select throws_ok(format('select tidebase.move_run(%L, %L)', n, q), '55000', null, 'nor is one moved there') from pg_temp.queue(1) q, pg_temp.names(0) n limit 1;
select throws_ok(format('select tidebase.put_queue(%L)', q), '55000', null, 'it has no limits here') from pg_temp.queue(1) q;
select throws_ok(format('select tidebase.put_schedule(%L, %L, every => %L, queue => %L)', 's', 'wf', '1 hour', q), '55000', null, 'nor schedules') from pg_temp.queue(1) q;

-- schedules
select isnt(tidebase.put_schedule('s', 'wf', every => '1 hour', queue => pg_temp.queue(0), starts_at => now()), null, 'a schedule of a queue of its own');
update tidebase.schedules set fired_at = fired_at - interval '90 minutes', anchor = anchor - interval '90 minutes', next_at = clock_timestamp() where schedule = 's';
select ok((tidebase.reconcile()).runs >= 0, 'it fires');
select is((select count(*) from tidebase.runs where run_id like 'sched:s:%{queue:' || pg_temp.queue(0) || '}' and tidebase_private.bucket_of(run_id) = tidebase_private.bucket_of_queue(pg_temp.queue(0))), 1::bigint,
  'the run of a fire time lies beside its queue, as its id says');

-- who calls a shard by a map
select ok(tidebase.require_bucket(2), 'a bucket of its own may be asked for');
select throws_ok('select tidebase.require_bucket(3)', '40001', 'bucket 3 belongs to another database', 'one of another database may not');
select throws_ok(format('select tidebase.require_bucket(%s)', wrong), 'TB002', null, format('%s is none', wrong)) from unnest(array['null', '-1', '65536']) wrong;
select is((tidebase.shard_map(), tidebase.shard_epoch()), (null::text[], null::bigint), 'only a router has a map');
select is((select count(*) from generate_series(1, 50) where tidebase_private.owns_bucket(tidebase_private.bucket_of(tidebase.create_run('wf')))), 50::bigint,
  'an id that is made here is of a bucket that is owned');

-- what has moved
select ok(not tidebase_private.loses_buckets('1'), 'all is not less');
select ok(not tidebase_private.loses_buckets('1010'), 'nor is the same, in more partitions');
select ok(not tidebase_private.loses_buckets('1011'), 'nor more');
select ok(tidebase_private.loses_buckets('1000'), 'less of more partitions is');
select ok(tidebase_private.loses_buckets('0'), 'or nothing');
create temp table moving as select min(n) as run_id from pg_temp.names(0) n;
select is((select outcome from moving, tidebase.acquire_run(run_id, 'h')), 'granted', 'a run is at work');
select is((select count(*) from pg_trigger where tgname = 'refuse_moved'), 0::bigint, 'nothing looks at it');
select lives_ok($$select tidebase_private.own_buckets('0100')$$, 'its bucket goes to another database');
select throws_ok(format('select tidebase.%s', call), '40001', format('run %L belongs to another database: its bucket %s went there', run_id, tidebase_private.bucket_of(run_id)),
  format('and refused is %s', call))
from moving, unnest(array[format('append_event(%L, 1, %L)', run_id, 'e'), format('record_step(%L, 1, %L, %L, %L)', run_id, 's', '1', '2'),
  format('renew_lease(%L, 1)', run_id), format('complete_run(%L, 1)', run_id), format('cancel_run(%L)', run_id)]) call;
select ok((tidebase.reconcile()).runs >= 0, 'who looks after runs is not held up by it');
select lives_ok($$select tidebase_private.own_buckets('0101')$$, 'the trigger stays while it is here');
select is((select count(*) from pg_trigger where tgname = 'refuse_moved'), 1::bigint, 'as it must');
select lives_ok($$select tidebase_private.own_buckets('1111')$$, 'it comes back');
select is((select count(*) from pg_trigger where tgname = 'refuse_moved'), 0::bigint, 'and nothing is looked at any more');
select ok((select tidebase.append_event(run_id, 1, 'e') > 0 from moving), 'it goes on');

-- alone again
select lives_ok('select tidebase_private.own_buckets(null)', 'it may be alone again');
select is((select count(*) from pg_trigger where tgname = 'refuse_elsewhere'), 0::bigint, 'then nothing is looked up');
select is(tidebase.create_run('wf', run_id => n), n, 'and all runs are made here') from pg_temp.names(1) n;
select * from finish();
rollback;
