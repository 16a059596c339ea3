-- The log: 1..n without a gap, append-only.
begin;
select no_plan();
select tidebase.create_run('wf', run_id => 'r');
select tidebase.acquire_run('r', 'w');
create function pg_temp.dense(id text) returns boolean language sql as $$
  select (select array_agg(seq order by seq) from tidebase.events where run_id = id)
    = (select array_agg(n::bigint) from tidebase.run_heads h, generate_series(1, h.last_seq) n where h.run_id = id);
$$;
select is(tidebase.append_event('r', 1, 'agent.note', '{"n": 1}'), 3::bigint, 'an event takes the next number');
select is(tidebase.append_event('r', 1, 'agent.note', '{"n": 2}', 'once'), 4::bigint, 'with an id for the call');
select is(tidebase.append_event('r', 1, 'agent.note', '{"n": 2}', 'once'), 4::bigint, 'the same call again is the same event');
select is(tidebase.append_event('r', 1, 'tick', transient => true), 5::bigint, 'and costs no number');
select is(tidebase.append_event('r', 1, 'nothing', null), 6::bigint, 'a payload of SQL NULL');
select is((select payload from tidebase.read_events('r', 5)), 'null'::jsonb, 'is the JSON null');
select throws_ok(format($$select tidebase.append_event('r', 1, %L)$$, prefix || '.x'), 'TB002', null, prefix || '. is reserved')
from unnest(array['run', 'step', 'gate', 'timer', 'state', 'snapshot', 'usage', 'recovery', 'tidebase']) prefix;
select throws_ok($$select tidebase.append_event('r', 1, '')$$, 'TB002', null, 'a type is not empty');
select throws_ok($$select tidebase.append_event('r', 1, null)$$, 'TB002', null, 'or NULL');
select throws_ok($$select tidebase.append_event('r', 1, repeat('x', 256))$$, 'TB002', null, 'or endless');
select throws_ok($$select tidebase.append_event('r', 1, 'x', request_id => '')$$, 'TB002', null, 'nor is the id of a call empty');
select throws_ok($$select tidebase.append_event('r', 2, 'x')$$, 'TB003', null, 'a stale token appends nothing');
select throws_ok($$select tidebase.append_event('r', null, 'x')$$, 'TB003', null, 'nor does no token');
select throws_ok($$select tidebase.append_event('none', 1, 'x')$$, 'TB001', null, 'nor is there a log of an unknown run');
select ok(pg_temp.dense('r'), 'after all that the numbers are 1..n');

select results_eq($$select seq from tidebase.read_events('r', 2, 2)$$, $$values (3::bigint), (4)$$, 'events are read from a number on, so many at a time');
select is_empty($$select * from tidebase.read_events('r', 99)$$, 'beyond the end there is nothing');
select results_eq($$select count(*) from tidebase.read_events('r', null)$$, $$values (6::bigint)$$, 'NULL is from the beginning');
select throws_ok($$select tidebase.read_events('none')$$, 'TB001', null, 'an unknown run has no events');
select throws_ok($$select tidebase.read_events('r', 0, 0)$$, 'TB002', null, 'max is at least 1');
select throws_ok($$select tidebase.read_events('r', 0, null)$$, 'TB002', null, 'and not NULL');

select results_eq($$select channel, status, last_seq, watched_until > clock_timestamp() + '50 s' from tidebase.watch_run('r')$$,
  $$values ('tidebase_events', 'running', 6::bigint, true)$$, 'a run is watched for a while');
select is((select watched_until from tidebase.watch_run('r')), (select watched_until from tidebase.run_heads where run_id = 'r'), 'watching again soon costs no write');
select throws_ok($$select tidebase.watch_run('none')$$, 'TB001', null, 'an unknown run is not watched');
select throws_ok($$select tidebase.watch_run('r', '0')$$, 'TB002', null, 'nor for no time');
select throws_ok($$select tidebase.watch_run('r', null)$$, 'TB002', null, 'nor for an unknown one');
select throws_ok($$select tidebase.watch_run('r', '1000 years')$$, 'TB002', null, 'nor for ever');
select * from finish();
rollback;
