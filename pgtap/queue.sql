-- Queues: enqueue, claim, limits, order, what becomes of a run that goes back, bulk.
begin;
select no_plan();
\ir support/helpers.psql

create function pg_temp.claimed(variadic queues text[]) returns text language sql as $$
  select string_agg(c.run_id, ',') from tidebase.claim_runs(queues, 'w', 1) c;
$$;
create function pg_temp.queue_up(id text, queue text default 'q', priority integer default 0, key text default null) returns text language sql as $$
  select (tidebase.enqueue_run('wf', run_id => id, queue => queue, priority => priority, key => key)).run_id;
$$;
create function pg_temp.lapse_now(id text) returns void language sql as $$
  update tidebase.run_heads set lease_expires_at = clock_timestamp() - interval '1 second', due_at = clock_timestamp() where run_id = id;
$$;
create function pg_temp.pass_time(id text) returns void language sql as $$
  update tidebase.run_heads set available_at = clock_timestamp() where run_id = id;
  update tidebase.queue_entries set ready_at = clock_timestamp() where run_id = id;
$$;

-- a job is a run
select results_eq($$select * from tidebase.enqueue_run('wf', '{"n": 1}', 'q', 'a')$$, $$values ('a', false)$$, 'a run is enqueued');
select results_eq($$select * from tidebase.enqueue_run('wf', '{"n": 1}', 'q', 'a')$$, $$values ('a', true)$$, 'the same id is the same run');
select throws_ok($$select tidebase.enqueue_run('wf', '{"n": 2}', 'q', 'a')$$, 'TB006', null, 'with the same input');
select results_eq($$select status, queue, priority, max_attempts, pinned from tidebase.run_overview where run_id = 'a'$$, $$values ('queued', 'q', 0, 5, false)$$, 'it is queued');
select results_eq($$select type, payload from tidebase.read_events('a')$$,
  $$values ('run.created', '{"workflow": "wf"}'::jsonb), ('run.enqueued', '{"queue": "q", "priority": 0}')$$, 'and its log says so');
select results_eq($$select run_id, token, attempt, workflow, input, queue, checkpoints, has_budget from tidebase.claim_runs('{other,q}', 'w', 10)$$,
  $$values ('a', 1::bigint, 1, 'wf', '{"n": 1}'::jsonb, 'q', 0, false)$$, 'a claim leases it as acquire_run would');
select is(pg_temp.status('a'), 'running', 'so that it runs');
select is_empty($$select * from tidebase.claim_runs('{q}', 'v', 10)$$, 'nobody else gets it');
select is((tidebase.acquire_run('a', 'v')).outcome, 'held', 'nor by its id');
select isnt(tidebase.release_run('a', 1), null, 'who gives it up');
select is(pg_temp.status('a'), 'queued', 'puts it back by that');
select results_eq($$select run_id, token, attempt from tidebase.claim_runs('{q}', 'w')$$, $$values ('a', 2::bigint, 2)$$, 'and it is claimed again');
select results_eq($$select status from tidebase.fail_run('a', 2, '"no"')$$, $$values ('queued')$$, 'after an error, too');
select is_empty($$select * from tidebase.claim_runs('{q}', 'w')$$, 'when its delay is over');
select cmp_ok(tidebase.next_ready('{q}'), '>', clock_timestamp(), 'which the worker is told');
select pg_temp.pass_time('a');
select isnt_empty($$select * from tidebase.claim_runs('{q}', 'w')$$, 'it comes again');
select isnt(tidebase.complete_run('a', 3, '1'), null, 'it ends');
select is_empty($$select * from tidebase.queue_entries$$, 'and nothing is left of it in the queue');

-- order
select pg_temp.queue_up('low', priority => -5), pg_temp.queue_up('first'), pg_temp.queue_up('second'), pg_temp.queue_up('high', priority => 9);
select is(array[pg_temp.claimed('q'), pg_temp.claimed('q'), pg_temp.claimed('q'), pg_temp.claimed('q')], '{high,first,second,low}'::text[], 'the highest priority first, then the oldest');
select pg_temp.queue_up('a' || i, key => 'a') from generate_series(1, 5) i;
select pg_temp.queue_up('b' || i, key => 'b') from generate_series(1, 2) i;
select results_eq($$select run_id from tidebase.claim_runs('{q}', 'w', 10)$$, '{a1,b1,a2,b2,a3,a4,a5}'::text[], 'keys take turns');
select pg_temp.queue_up('x', 'x'), pg_temp.queue_up('y', 'y');
select results_eq($$select run_id from tidebase.claim_runs('{y,x}', 'w', 10)$$, '{y,x}'::text[], 'the first queue first');

-- which runs
select tidebase.enqueue_run('strange', run_id => 'strange', queue => 'q');
select is_empty($$select * from tidebase.claim_runs('{q}', 'w', workflows => '{wf,other}')$$, 'a workflow that the worker does not know waits');
select isnt_empty($$select * from tidebase.claim_runs('{q}', 'w', workflows => '{strange}')$$, 'for who knows it');
select tidebase.enqueue_run('wf', run_id => 'pinned', queue => 'q', pin => true);
select run_id from tidebase.claim_runs('{q}', 'w', code_version => 'v1');
select tidebase.release_run('pinned', 1);
select is_empty($$select * from tidebase.claim_runs('{q}', 'w', code_version => 'v2')$$, 'a pinned run does not go on with other code');
select isnt_empty($$select * from tidebase.claim_runs('{q}', 'w', code_version => 'v1')$$, 'but with that which it began with');
select pg_temp.queue_up('free');
select run_id from tidebase.claim_runs('{q}', 'w', code_version => 'v1');
select tidebase.release_run('free', 1);
select is_empty($$select * from tidebase.claim_runs('{q}', 'w', code_version => 'v3', versions => '{v2,v3}')$$, 'a worker says from which versions it takes over');
select isnt_empty($$select * from tidebase.claim_runs('{q}', 'w', code_version => 'v3', versions => '{v1}')$$, 'and gets those');

-- dedupe
select results_eq($$select run_id, deduplicated from tidebase.enqueue_run('wf', '1', 'd', 'd1', dedupe_key => 'k')$$, $$values ('d1', false)$$, 'the first one with a key');
select results_eq($$select run_id, deduplicated from tidebase.enqueue_run('wf', '2', 'd', 'd2', dedupe_key => 'k')$$, $$values ('d1', true)$$, 'is the only one');
select results_eq($$select run_id, deduplicated from tidebase.enqueue_run('wf', '2', 'e', 'd3', dedupe_key => 'k')$$, $$values ('d3', false)$$, 'of its queue');
select throws_ok($$select tidebase.enqueue_run('wf', '2', 'd', dedupe_key => 'k', on_duplicate => 'reject')$$, 'TB013', null, 'another may be refused');
select tidebase.enqueue_run('wf', '3', 'd', dedupe_key => 'k', on_duplicate => 'replace');
select is((select input from tidebase.run_overview where run_id = 'd1'), '3', 'or take its place');
select throws_ok($$select tidebase.enqueue_run('other', '3', 'd', dedupe_key => 'k', on_duplicate => 'replace')$$, 'TB006', null, 'as the same workflow');
select run_id from tidebase.claim_runs('{d}', 'w');
select tidebase.enqueue_run('wf', '4', 'd', dedupe_key => 'k', on_duplicate => 'replace');
select is((select input from tidebase.run_overview where run_id = 'd1'), '3', 'but not while it is at work');
select tidebase.complete_run('d1', 1);
select results_eq($$select run_id, deduplicated from tidebase.enqueue_run('wf', '2', 'd', 'd2', dedupe_key => 'k')$$, $$values ('d2', false)$$, 'when it is over the key is free');
select tidebase.enqueue_run('wf', '1', 'w', 'put off', dedupe_key => 'k', on_duplicate => 'replace', delay => '1 minute', max_wait => '1 hour');
select tidebase.enqueue_run('wf', '2', 'w', dedupe_key => 'k', on_duplicate => 'replace', delay => '2 hours');
select cmp_ok(tidebase.next_ready('{w}'), '<', clock_timestamp() + interval '61 minutes', 'it is put off no longer than max_wait');

-- limits
select tidebase.put_queue('l', concurrency => 2);
select pg_temp.queue_up('l' || i, 'l') from generate_series(1, 5) i;
select results_eq($$select run_id from tidebase.claim_runs('{l}', 'w', 10)$$, '{l1,l2}'::text[], 'no more than the limit are leased');
select is((tidebase.acquire_run('l3', 'v')).outcome, 'queued', 'nor by the id');
select is((select held_back_by from tidebase.queue_overview where queue = 'l'), 'concurrency', 'the overview says why');
select tidebase.complete_run('l1', 1);
select results_eq($$select run_id from tidebase.claim_runs('{l}', 'w', 10)$$, '{l3}'::text[], 'one that ends makes room');
select tidebase.open_gate('l2', 1, 'g');
select tidebase.suspend_run('l2', 1, 'g');
select results_eq($$select run_id from tidebase.claim_runs('{l}', 'w', 10)$$, '{l4}'::text[], 'so does one that is suspended');
select tidebase.decide_gate('l2', 'g', 'approved', 'ann');
select is_empty($$select run_id from tidebase.claim_runs('{l}', 'w', 10)$$, 'which then waits for room itself');
select tidebase.complete_run('l3', 1);
select results_eq($$select run_id from tidebase.claim_runs('{l}', 'w', 10)$$, '{l2}'::text[], 'and goes on before those that were never begun');
select pg_temp.lapse_now('l4');
select tidebase.reconcile();
select results_eq($$select run_id, attempt from tidebase.claim_runs('{l}', 'w', 10)$$, $$values ('l4', 2)$$, 'a run whose worker died is taken over in its own place');
select tidebase.put_queue('l');
select results_eq($$select run_id from tidebase.claim_runs('{l}', 'w', 10)$$, '{l5}'::text[], 'a limit that is taken away limits nobody');
select tidebase.put_queue('l', concurrency => 1);
select pg_temp.queue_up('l6', 'l');
select is_empty($$select run_id from tidebase.claim_runs('{l}', 'w', 10)$$, 'what is leased when one is set counts');
select tidebase.put_queue('kc', key_concurrency => 1);
select pg_temp.queue_up('ka' || i, 'kc', key => 'a') from generate_series(1, 3) i;
select pg_temp.queue_up('kb1', 'kc', key => 'b'), pg_temp.queue_up('kn1', 'kc'), pg_temp.queue_up('kn2', 'kc');
select set_eq($$select run_id from tidebase.claim_runs('{kc}', 'w', 10)$$, '{ka1,kb1,kn1,kn2}'::text[], 'one of each key; what has none is a key of its own');
select tidebase.put_queue('r', rate => 3, rate_period => '1 hour');
select pg_temp.queue_up('r' || i, 'r') from generate_series(1, 5) i;
select is((select count(*) from tidebase.claim_runs('{r}', 'w', 2)), 2::bigint, 'a rate lets so many begin');
select is((select count(*) from tidebase.claim_runs('{r}', 'w', 10)), 1::bigint, 'in the period');
select is((select held_back_by from tidebase.queue_overview where queue = 'r'), 'rate', 'and the overview says so');
update tidebase.queue_starts set started_at = started_at - interval '1 hour';
select is((select count(*) from tidebase.claim_runs('{r}', 'w', 10)), 2::bigint, 'then others');
select is(tidebase.pause_queue('p'), true, 'a queue is paused');
select is(tidebase.pause_queue('p'), false, 'once');
select pg_temp.queue_up('p1', 'p');
select is_empty($$select * from tidebase.claim_runs('{p}', 'w')$$, 'and gives nothing');
select is((tidebase.acquire_run('p1', 'v')).outcome, 'queued', 'to nobody');
select is(tidebase.resume_queue('p'), true, 'until it goes on');
select isnt_empty($$select * from tidebase.claim_runs('{p}', 'w')$$, 'and gives again');

-- the same call again
select pg_temp.queue_up('again', 'again');
select results_eq($$select run_id, token from tidebase.claim_runs('{again}', 'w', request_id => 'r1')$$, $$values ('again', 1::bigint)$$, 'a claim whose answer was lost');
select pg_temp.queue_up('more', 'again');
select results_eq($$select run_id, token from tidebase.claim_runs('{again}', 'w', request_id => 'r1')$$, $$values ('again', 1::bigint)$$, 'is answered again');
select tidebase.complete_run('again', 1);
select is_empty($$select run_id, token from tidebase.claim_runs('{again}', 'w', request_id => 'r1')$$, 'as far as it still holds');

-- poison
select tidebase.enqueue_run('wf', run_id => 'poison', queue => 'poison', max_attempts => 2);
select run_id from tidebase.claim_runs('{poison}', 'w');
select pg_temp.lapse_now('poison');
select isnt_empty($$select * from tidebase.claim_runs('{poison}', 'w')$$, 'a claim finds by itself whose lease has run out');
select pg_temp.lapse_now('poison');
select is_empty($$select * from tidebase.claim_runs('{poison}', 'w')$$, 'a run that kills its workers');
select results_eq($$select status, failure_class from tidebase.run_overview where run_id = 'poison'$$, $$values ('failed', 'crashed')$$, 'is dead after max_attempts');
select results_eq($$select * from tidebase.retry_runs(failure_class => 'crashed', dry_run => true)$$, $$values (1, 0)$$, 'the dead are counted');
select results_eq($$select * from tidebase.retry_runs(failure_class => 'crashed')$$, $$values (1, 1)$$, 'and tried again');
select isnt_empty($$select * from tidebase.claim_runs('{poison}', 'w')$$, 'with new attempts');
select throws_ok($$select tidebase.cancel_runs()$$, 'TB002', null, 'nothing is done to all runs by mistake');
select pg_temp.queue_up('m' || i, 'from') from generate_series(1, 3) i;
select results_eq($$select * from tidebase.move_runs('to', queue => 'from', max => 2)$$, $$values (2, 2)$$, 'runs are moved');
select is((select count(*) from tidebase.claim_runs('{to}', 'w', 10)), 2::bigint, 'and are found there');
select is(tidebase.move_run(id, 'to'), false, 'what is at work stays where it is') from tidebase.claim_runs('{from}', 'w') c (id);
select pg_temp.queue_up('m4', 'from');
select is(tidebase.move_run('m4', 'elsewhere', 7, 'ada'), true, 'one run is moved');
select results_eq($$select queue, priority from tidebase.run_overview where run_id = 'm4'$$, $$values ('elsewhere', 7)$$, 'to where it was to go');
select throws_ok($$select tidebase.move_run('none', 'to')$$, 'TB001', null, 'one that is there');
select results_eq($$select * from tidebase.cancel_runs(queue => 'from')$$, $$values (1, 1)$$, 'or cancelled');
select is_empty($$select * from tidebase.claim_runs('{from}', 'w')$$, 'and are gone');

-- how fast
select tidebase.enqueue_run('wf', queue => 'paced', run_id => 'paced-' || n) from generate_series(1, 4) n;
select tidebase.claim_runs('{paced}', 'w', 3);
select tidebase.complete_run('paced-1', 1, '1'), tidebase.complete_run('paced-2', 1, '1'), tidebase.fail_run('paced-3', 1, '"no"', retryable => false);
select results_eq(
  $$select round(completed_per_minute::numeric, 2), round(failed_per_minute::numeric, 2) from tidebase.queue_rates where queue = 'paced'$$,
  $$values (0.40, 0.20)$$, 'how many ended in five minutes is told as how many a minute');
update tidebase.runs set finished_at = finished_at - interval '6 minutes' where run_id in ('paced-1', 'paced-3');
select results_eq(
  $$select round(completed_per_minute::numeric, 2), failed_per_minute from tidebase.queue_rates where queue = 'paced'$$,
  $$values (0.20, 0::double precision)$$, 'and what ended before is not');

-- many at once
select results_eq($$select deduplicated from tidebase.enqueue_runs('[{"workflow": "wf", "queue": "n"}, {"workflow": "wf", "queue": "n", "input": 2}]')$$, '{f,f}'::boolean[], 'many are enqueued in one call');
select is((select count(*) from tidebase.claim_runs('{n}', 'w', 10)), 2::bigint, 'and claimed');
create temp table many as select run_id, place from tidebase.enqueue_runs((
  select jsonb_agg(jsonb_build_object('workflow', 'wf', 'queue', 'many', 'key', 'key ' || n % 7)) from generate_series(1, 3000) n)) with ordinality m (run_id, deduplicated, place);
select is(
  (select count(*) from (select m.place, row_number() over (order by m.run_id collate "C") as by_id, row_number() over (order by r.created_at) as by_time
    from many m join tidebase.runs r on r.run_id = m.run_id) o where o.place = o.by_id and o.place = o.by_time),
  3000::bigint, 'the ids of a batch are in its order, as their times are');
select ok((select bool_and(run_id ~ '^run_[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$') and count(distinct tidebase_private.bucket_of(run_id)) > 2500 from many),
  'and UUIDs of version 7 all over the buckets');
select is((select array_agg(distinct e.place) from many m join tidebase.queue_entries e on e.run_id = m.run_id),
  (select array_agg(n) from generate_series(0::bigint, 428) n), 'each key of a batch has a round for each of its runs');
drop table many;
select throws_like($$select * from tidebase.enqueue_runs('[{"workflow": "wf"}, {"workflow": "wf", "priority": 99999}]')$$, 'runs[1]: priority must be%', 'what is wrong says where');
select throws_ok($$select * from tidebase.enqueue_runs('[{"workflow": "wf", "quue": "n"}]')$$, 'TB002', null, 'a word that nobody knows is refused');
select throws_ok($$select * from tidebase.enqueue_runs('{}')$$, 'TB002', null, 'as is what is no list');

-- many end at once, each as if alone
select pg_temp.queue_up('e' || n, 'ends') from generate_series(1, 8) n;
select is((select count(*) from tidebase.claim_runs('{ends}', 'w', 10)), 8::bigint, 'eight are at work');
select tidebase.begin_step('e2', 1, 'plain'), tidebase.begin_step('e3', 1, 'unsafe', side_effects => '{card}'), tidebase.open_gate('e4', 1, 'g'), tidebase.cancel_run('e5');
select pg_temp.lapse_now('e7');
select tidebase.reconcile();
select isnt_empty($$select from tidebase.queue_entries where run_id = 'e7'$$, 'of one the lease has run out');
create temp table ended as select * from tidebase.complete_runs('{e1,e2,e3,e4,e5,e6,e7,none}', '{1,1,1,1,1,7,1,1}',
  array['{"n": 1.0}', '2', '3', null, '5', '6', (repeat('[', 600) || repeat(']', 600)), '8']::jsonb[]);
select results_eq($$select run_id, seq is not null, code from ended order by run_id$$,
  $$values ('e1', true, null), ('e2', true, null), ('e3', false, 'TB014'), ('e4', true, null), ('e5', false, 'TB004'), ('e6', false, 'TB003'), ('e7', false, 'TB002'), ('none', false, 'TB001')$$,
  'who cannot be completed is told why, and the others are');
select results_eq(format($$select code, message, detail, hint from ended where run_id = %L$$, id), format($$select state, message, detail::jsonb, hint from pg_temp.error_of(%L)$$, format($$select tidebase.complete_run(%L, %s, '3')$$, id, token)),
  id || ' is told what complete_run says') from (values ('e3', 1), ('e5', 1), ('e6', 7), ('none', 1)) refused (id, token);
select results_eq($$select run_id, result from tidebase.runs where run_id ~ '^e' and result is not null order by run_id$$, $$values ('e1', '{"n": 1.0}'::jsonb), ('e2', '2'), ('e4', 'null')$$, 'each has its own result');
select results_eq($$select code from tidebase.complete_runs('{e7}', '{1}', '{7}')$$, $$values (null::text)$$, 'one whose lease has run out is, too');
select results_eq($$select run_id, seq, code from tidebase.complete_runs('{e1,e7}', '{1,1}', array['{"n": 1}', '7']::jsonb[]) order by run_id$$,
  $$select run_id, last_seq, null::text from tidebase.run_heads where run_id in ('e1', 'e7') order by run_id$$, 'the same call again gets the same');
select is_empty($$select from tidebase.queue_entries where run_id = 'e7'$$, 'and what had gone back to the queue has left it');
select results_eq($$select code from tidebase.complete_runs('{e1}', '{1}', '{2}')$$, $$values ('TB005')$$, 'a completed run does not change any more');
select is((tidebase.complete_runs('{e6,e8}', '{1,1}')).code, null, 'nobody need have a result');
create function pg_temp.left_by(id text) returns jsonb language sql as $$
  select jsonb_build_array(
    (select to_jsonb(h) - '{run_id,created_at,updated_at}'::text[] from tidebase.run_heads h where h.run_id = id),
    (select to_jsonb(r) - '{run_id,created_at,finished_at}'::text[] || jsonb_build_object('over', r.finished_at is not null) from tidebase.runs r where r.run_id = id),
    (select jsonb_agg(jsonb_build_object('outcome', a.outcome, 'ended', a.ended_at is not null, 'error', a.error)) from tidebase.attempts a where a.run_id = id),
    (select jsonb_agg(jsonb_build_array(e.seq, e.type, e.payload) order by e.seq) from tidebase.events e where e.run_id = id),
    (select jsonb_agg(g.status) from tidebase.gates g where g.run_id = id))
$$;
select pg_temp.queue_up(id, 'alike') from unnest('{alone,beside}'::text[]) id;
select is((select count(*) from tidebase.claim_runs('{alike}', 'w', 2)), 2::bigint, 'of two that are alike');
select tidebase.open_gate(id, 1, 'g') from unnest('{alone,beside}'::text[]) id;
select tidebase.complete_run('alone', 1, '[1.50]'), tidebase.complete_runs('{beside}', '{1}', array['[1.50]']::jsonb[]);
select is(pg_temp.left_by('beside'), pg_temp.left_by('alone'), 'one that is completed with others leaves what the one does that is completed by itself');
select is_empty($$select tidebase.complete_runs('{}', '{}')$$, 'there need not be any');
select throws_ok(format($$select tidebase.complete_runs(%L, %L, %L)$$, runs, tokens, results), 'TB002', null, format('%s, %s and %s do not go together', runs, tokens, results))
from (values ('{e1}', '{1,2}', null), ('{e1,e2}', '{1,2}', '{1}'), ('{{e1}}', '{{1}}', null), (null, '{1}', null), ('{e1}', null, null), ('{e1,e1}', '{1,1}', null)) wrong (runs, tokens, results);
select throws_ok($$select tidebase.complete_runs(array(select 'r' || n from generate_series(1, 1001) n), array_fill(1::bigint, '{1001}'))$$, 'TB002', null, 'nor are 1,001 completed at once');

select is_empty('select * from tidebase.check_invariants()', 'nothing is broken by all that');
select * from finish();
rollback;
