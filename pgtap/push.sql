-- Push: endpoints of queues, what they are told, when again, and when it is given up.
begin;
select no_plan();
\ir support/helpers.psql
create function pg_temp.queue_up(id text, queue text default 'q', priority integer default 0, key text default null) returns text language sql as $$
  select (tidebase.enqueue_run('wf', run_id => id, queue => queue, priority => priority, key => key)).run_id;
$$;
create function pg_temp.told(max integer default 10, failing boolean default false) returns text language sql as $$
  select string_agg(i.run_id, ',') from tidebase.claim_invocations(max, failing => failing) i;
$$;
create function pg_temp.pass_time() returns void language sql as $$
  update tidebase.invocations set next_at = clock_timestamp();
  update tidebase.queue_entries e set ready_at = clock_timestamp(), turn = clock_timestamp() + c.rank * interval '1 second'
  from (select run_id, row_number() over (order by created_at) as rank from tidebase.runs) c where c.run_id = e.run_id;
  update tidebase.endpoints set next_at = clock_timestamp();
$$;
create function pg_temp.of(id text) returns tidebase.invocation_overview language sql as $$
  select * from tidebase.invocation_overview where run_id = id;
$$;

-- the endpoint
select throws_ok(format('select tidebase.put_queue(''q'', endpoint => %L)', url), 'TB002', null, url || ' is no endpoint')
from unnest(array['ftp://x', 'x', ' ', 'http://a b', 'http://' || repeat('x', 4096)]) url;
select tidebase.put_queue('q', endpoint => 'http://one');
select tidebase.put_queue('q', concurrency => 3);
select is((select endpoint from tidebase.queue_overview where queue = 'q'), 'http://one', 'an endpoint stays as it is');
select tidebase.put_queue('q', concurrency => 3, endpoint => 'http://two');
select is((select endpoint from tidebase.queue_overview where queue = 'q'), 'http://two', 'until there is another one');
select tidebase.put_queue('none', endpoint => 'http://x'), tidebase.put_queue('none', endpoint => '');
select is((select endpoint from tidebase.queue_overview where queue = 'none'), null, 'or none');

-- what it is told
select is(pg_temp.told(), null, 'where nothing waits there is nothing to tell');
select pg_temp.queue_up('low', priority => -1), pg_temp.queue_up('a'), pg_temp.queue_up('b'), pg_temp.queue_up('elsewhere', 'none');
select results_eq($$select run_id, invocation, queue, url, body from tidebase.claim_invocations(2)$$,
  $$values ('a', 1, 'q', 'http://two', '{"type": "run.invoke", "runId": "a", "workflowName": "wf", "attempt": 1, "queue": "q", "invocation": 1}'::jsonb),
    ('b', 1, 'q', 'http://two', '{"type": "run.invoke", "runId": "b", "workflowName": "wf", "attempt": 1, "queue": "q", "invocation": 1}')$$,
  'of the runs in the order of a claim');
select is(pg_temp.status('a'), 'queued', 'who is told of holds no lease');
select is((select (ready, delayed, invoked) from tidebase.queue_overview where queue = 'q'), (1::bigint, 0::bigint, 2::bigint), 'it is counted by itself');
select is(pg_temp.told(), 'low', 'the next ones are others');
select is((select held_back_by from tidebase.queue_overview where queue = 'q'), null, 'nothing is left');
select pg_temp.queue_up('c');
select is(pg_temp.told(), null, 'what is on its way counts towards the limits');
select is((select held_back_by from tidebase.queue_overview where queue = 'q'), 'concurrency', 'which is said');
select is_empty($$select * from tidebase.claim_runs('{q}', 'w', 10)$$, 'for workers, too');
select is((tidebase.acquire_run('c', 'app')).outcome, 'queued', 'and for who asks by the id');
select is((tidebase.acquire_run('a', 'app')).outcome, 'granted', 'who was told has a place');
select is(tidebase.finish_invocation('a', 1, false, 500, 'HTTP 500'), 'begun', 'what is begun is begun, whatever the answer was');
select is((pg_temp.of('a')).status, 'begun', 'and is shown so');
select is((select failures from tidebase.endpoints where queue = 'q'), 0, 'the endpoint does well');
select is(pg_temp.told(), null, 'the lease has the place now');
select tidebase.complete_run('a', 1);
select is(pg_temp.told(), 'c', 'until it is over');

-- again, and given up
select is(tidebase.finish_invocation('b', 1, true, 202), 'sent', 'an answer is no beginning');
select is(tidebase.finish_invocation('b', 1, false, 500, 'x'), 'sent', 'the first report stands');
select cmp_ok((pg_temp.of('b')).next_at, '>', clock_timestamp() + interval '4 seconds', 'it is told again after a while');
select is((pg_temp.of('b')).error, 'answered with HTTP 202, and not begun', 'the reason is shown');
select is(tidebase.finish_invocation('low', 1, false, null, 'no route'), 'waiting', 'what did not arrive is tried again');
select is((select (failures, error) from tidebase.endpoints where queue = 'q'), (1, 'no route'::text), 'and the endpoint fails');
select is(tidebase.finish_invocation('c', 1, false, null, 'no route'), 'waiting', 'what was sent before that');
select is((select failures from tidebase.endpoints where queue = 'q'), 1, 'is of the same failure');
select pg_temp.pass_time();
select is(pg_temp.told(), null, 'it is none of those that do well');
select is(pg_temp.told(failing => true), 'b', 'and gets one run at a time');
select is(pg_temp.told(failing => true), null, 'whoever asks');
select is(tidebase.finish_invocation('b', 1, true, 200), 'sending', 'a report of an earlier one changes nothing');
select is(tidebase.finish_invocation('b', 2, true, 200), 'sent', 'an answer');
select is((select failures from tidebase.endpoints where queue = 'q'), 0, 'mends it');
select pg_temp.pass_time();
select is((select string_agg(i.run_id, ',') from tidebase.claim_invocations(give_up_after => '0') i), null, 'who has waited too long is given up');
select is((select array_agg(r.run_id || ' ' || r.failure_class order by r.run_id) from tidebase.runs r where r.failure_class is not null),
  '{b not_begun,c not_begun,low not_begun}'::text[], 'as a dead letter');
select ok((select error ->> 'message' ~ '^given up after 2 invocations since .*: answered with HTTP 200, and not begun$' from tidebase.runs where run_id = 'b'), 'with the reason');
select is(((pg_temp.of('b')).status, (pg_temp.of('b')).next_at), ('failed'::text, null::timestamptz), 'which is shown');
select is((tidebase.retry_runs('q', failure_class => 'not_begun')).done, 3, 'it is tried again');
select is(pg_temp.told(), 'b,c,low', 'from the beginning');
select is((pg_temp.of('b')).failures, 0, 'of its failures, too');

-- what comes in between
select tidebase.put_queue('q', endpoint => '');
select tidebase.put_queue('m', endpoint => 'http://m');
select pg_temp.queue_up('moved', 'm'), pg_temp.queue_up('over', 'm'), pg_temp.queue_up('late', 'm');
select is(pg_temp.told(), 'moved,over,late', 'three are told of');
select tidebase.cancel_run('over');
select is(tidebase.finish_invocation('over', 1, true, 200), 'sent', 'an answer about one that is over');
select tidebase.move_runs('m2', 'm');
select tidebase.put_queue('m2', endpoint => 'http://m2');
select is(pg_temp.told(), null, 'what is on its way is not told of in another queue');
update tidebase.run_heads set deadline_at = clock_timestamp() where run_id = 'late';
select pg_temp.pass_time();
select is(pg_temp.told(), 'moved', 'but when it has not been begun; what is past its deadline is not');
select is((tidebase.acquire_run('moved', 'app')).token, 1::bigint, 'it is begun there');
select pg_temp.lapse('moved');
update tidebase.run_heads set due_at = clock_timestamp() where run_id = 'moved';
select results_eq($$select run_id, invocation, body ->> 'attempt' from tidebase.claim_invocations()$$, $$values ('moved', 3, '2')$$, 'a lease that has run out is told of');
select tidebase.renew_lease('moved', 1);
select pg_temp.pass_time();
select is(pg_temp.told(), null, 'not of one that has come back');
select throws_ok($$select tidebase.finish_invocation('elsewhere', 1, true)$$, 'TB012', null, 'an invocation that never was');
select throws_ok($$select tidebase.finish_invocation('nobody', 1, true)$$, 'TB001', null, 'an unknown run');
select throws_ok(format('select tidebase.claim_invocations(%s)', arguments), 'TB002', null, arguments || ' is refused')
from unnest(array['0', '1001', $$ttl => '0'$$, $$give_up_after => '-1 s'$$, 'besides => array[null]']) arguments;

-- keys
select tidebase.put_queue('k', key_concurrency => 1, endpoint => 'http://k');
select pg_temp.queue_up('k' || n, 'k', key => case when n < 4 then 'x' else 'y' end) from generate_series(1, 6) n;
select is(pg_temp.told(), 'k1,k4', 'one of each key');
select is(pg_temp.told(), null, 'and no more');
select tidebase.pause_queue('k'), tidebase.pause_queue('m');
select pg_temp.pass_time();
select is(pg_temp.told(), null, 'a queue that is paused tells nothing');

-- what there is to watch
select is((select value from tidebase.measure() where metric = 'queue_paused' and queue = 'k'), 1::float8, 'what is measured');
select is((select value from tidebase.measure() where metric = 'workers'), (select count(*)::float8 from tidebase.workers), 'of all');
select is((select label from tidebase.measure() where metric = 'queue_held_back' and queue = 'k'), 'paused', 'or why');
select is(tidebase.ready_in('{elsewhere}'), null, 'none is delayed');
select tidebase.enqueue_run('wf', queue => 'd', delay => '1 hour');
select ok(tidebase.ready_in('{d}') between '59 minutes' and '1 hour', 'in how long one is due');
update tidebase.queue_entries set ready_at = clock_timestamp() - interval '1 hour' where queue = 'd';
select is(tidebase.ready_in('{d}'), '0'::interval, 'by now');
select throws_ok($$select tidebase.ready_in(array[null])$$, 'TB002', null, 'a queue has a name');

select is_empty($$select * from tidebase.check_invariants()$$, 'the rules hold');
select * from finish();
rollback;
