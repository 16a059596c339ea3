-- The log: 1..n without a gap, append-only.
begin;
select no_plan();
\ir support/helpers.psql
select pg_temp.leased('r');

-- appending
select is(tidebase.append_event('r', 1, 'agent.note', '{"n": 1}'), 3::bigint, 'an event takes the next number');
select is(tidebase.append_event('r', 1, 'agent.note', '{"n": 1}'), 4::bigint, 'an equal one is another event, when the call has no id');
select pg_temp.same_again($$select tidebase.append_event('r', 1, 'agent.note', '{"n": 2}', 'once')$$, 'the same call again is the same event');
select is(tidebase.append_event('r', 1, 'agent.other', '{"n": 3}', 'once'), 5::bigint, 'it is the id that tells, not the content');
select is(tidebase.append_event('r', 1, 'agent.note', request_id => 'twice'), 6::bigint, 'another id is another event');
select is(tidebase.append_event('r', 1, 'tick', transient => true), 7::bigint, 'a number that was given back is given out again');
select pg_temp.same_again($$select tidebase.append_event('r', 1, 'tick', request_id => 't', transient => true)$$, 'a transient call may be repeated, too');
select is(tidebase.append_event('r', 1, 'nothing', null, transient => null), 9::bigint, 'a payload of SQL NULL');
select is((select payload from tidebase.read_events('r', 8)), '{}'::jsonb, 'is the default');
select is(tidebase.append_event('r', 1, 'plain'), 10::bigint, 'no payload');
select is((select payload from tidebase.read_events('r', 9)), '{}'::jsonb, 'is an empty object');
select results_eq($$select type, payload from tidebase.read_events('r', 2, 3)$$,
  $$values ('agent.note', '{"n": 1}'::jsonb), ('agent.note', '{"n": 1}'), ('agent.note', '{"n": 2}')$$, 'the log has what was written, in order');
select ok((select bool_and(created_at <= clock_timestamp()) and count(distinct created_at) > 1 from tidebase.read_events('r')), 'each with its own time, by the clock of the database');
select pg_temp.leased('other');
select is(tidebase.append_event('other', 1, 'agent.note', request_id => 'once'), 3::bigint, 'ids of calls are a run''s own, as numbers are');
select pg_temp.take_over('r');
select is(tidebase.append_event('r', 2, 'agent.note', request_id => 'once'), 5::bigint, 'they outlive the lease');

-- types
create temp table reserved (prefix text);
insert into reserved select unnest(array['run', 'step', 'gate', 'timer', 'state', 'snapshot', 'usage', 'budget', 'child', 'recovery', 'queue',
  'schedule', 'channel', 'delivery', 'tidebase']);
select throws_ok(format($$select tidebase.append_event('r', 2, %L)$$, prefix || '.x'), 'TB002', null, prefix || '. is reserved') from reserved;
select lives_ok(format($$select tidebase.append_event('r', 2, %L)$$, type), type || ' is not')
from unnest(array['run', 'step', 'runner.x', 'my.run.x', 'agent.step', 'timers.x', 'x''; drop table tidebase.events; --', repeat('x', 255)]) type;
select throws_ok(format($$select tidebase.append_event('r', 2, %L)$$, type), 'TB002', null, format('%L is no type', left(type, 10)))
from unnest(array[null, '', ' ', repeat('x', 256), repeat('ä', 128)]) type;
select throws_ok(format($$select tidebase.append_event('r', 2, 'x', request_id => %L)$$, id), 'TB002', null, format('%L is no id of a call', left(id, 10)))
from unnest(array['', ' ', repeat('x', 256)]) id;
select throws_ok(format($$select tidebase.append_event('r', %s, 'x')$$, token), 'TB003', null, token || ' is not the token') from unnest(array['1', '3', 'null']) token;
select throws_ok($$select tidebase.append_event('none', 1, 'x')$$, 'TB001', null, 'nor is there a log of an unknown run');
select ok(pg_temp.dense('r'), 'after all that the numbers are 1..n');
create function pg_temp.rolled_back() returns void language plpgsql as $$
begin
  perform tidebase.append_event('r', 2, 'never');
  raise 'no';
exception when raise_exception then null;
end
$$;
select pg_temp.rolled_back() from generate_series(1, 3);
select tidebase.append_event('r', 2, 'after all');
select ok(pg_temp.dense('r'), 'also after events that were rolled back');

-- reading
select results_eq($$select seq from tidebase.read_events('other', 1, 1)$$, $$values (2::bigint)$$, 'events are read from a number on, so many at a time');
select results_eq($$select seq from tidebase.read_events('other')$$, $$values (1::bigint), (2), (3)$$, 'from the beginning unless told');
select results_eq($$select seq from tidebase.read_events('other', null)$$, $$values (1::bigint), (2), (3)$$, 'NULL is the beginning');
select results_eq($$select count(*) from tidebase.read_events('other', -5)$$, $$values (3::bigint)$$, 'so is what lies before it');
select is_empty($$select * from tidebase.read_events('other', 3)$$, 'after the last there is nothing');
select is_empty($$select * from tidebase.read_events('other', 9223372036854775807)$$, 'nor far beyond');
select throws_ok($$select tidebase.read_events('none')$$, 'TB001', null, 'an unknown run has no events');
select throws_ok($$select tidebase.read_events('none', 5)$$, 'TB001', null, 'from wherever');
select throws_ok(format($$select tidebase.read_events('other', 0, %L)$$, max), 'TB002', null, format('max is not %L', max)) from unnest(array[0, -1, 10001]) max;
select lives_ok($$select tidebase.read_events('other', 0, 10000)$$, 'it may be 10000');
create function pg_temp.followed(size integer) returns bigint[] language plpgsql as $$
declare
  page bigint[];
  seen bigint[] := '{}';
begin
  loop
    select array_agg(seq) into page from tidebase.read_events('r', seen[cardinality(seen)], size);
    exit when page is null;
    seen := seen || page;
  end loop;
  return seen;
end
$$;
select is(pg_temp.followed(size), (select array_agg(seq order by seq) from tidebase.events where run_id = 'r'), 'who follows by ' || size || ' sees every event once')
from unnest(array[1, 2, 5, 100]) size;

-- nobody rewrites it
set local role tidebase_owner;
select throws_ok($$update tidebase.events set payload = '{}'$$, '42501', null, 'not even the owner changes an event');
select throws_ok($$truncate tidebase.events$$, '42501', null, 'or empties the log');
reset role;
select throws_ok($$insert into tidebase.events (run_id, seq, type, payload) values ('r', 1, 'x', '{}')$$, '23505', null, 'a number is taken once');

-- watching
select results_eq($$select channel, status, last_seq, watched_until between clock_timestamp() + '59 s' and clock_timestamp() + '60 s' from tidebase.watch_run('other')$$,
  $$values ('tidebase_events', 'running', 3::bigint, true)$$, 'a run is watched for a while');
select pg_temp.same_again($$select tidebase.watch_run('other')$$, 'watching again soon costs no write');
select ok((tidebase.watch_run('other', '1 hour')).watched_until between clock_timestamp() + interval '9 min' and clock_timestamp() + interval '10 min', 'who wants to watch for longer extends the mark, to ten minutes');
select pg_temp.same_again($$select tidebase.watch_run('other', '1 s')$$, 'who wants less does not shorten it');
update tidebase.watches set watched_until = clock_timestamp() + interval '20 s' where run_id = 'other';
select ok((tidebase.watch_run('other')).watched_until > clock_timestamp() + interval '59 s', 'a mark that has less than half of its time left is renewed');
update tidebase.watches set watched_until = clock_timestamp() - interval '1 s' where run_id = 'other';
select ok((tidebase.watch_run('other')).watched_until > clock_timestamp() + interval '59 s', 'so is one that has run out');
select is((select count(*) from tidebase.events where run_id = 'other'), 3::bigint, 'watching is no event');
select throws_ok($$select tidebase.watch_run('none')$$, 'TB001', null, 'an unknown run is not watched');
select throws_ok($$select tidebase.watch_run(null)$$, 'TB001', null, 'nor is none');
select throws_ok(format($$select tidebase.watch_run('r', %L)$$, ttl), 'TB002', null, format('nobody watches for %L', ttl))
from unnest(array['0', '-1 s', '0.5 s', '25 hours', '1000 years']) ttl;

-- The doorbell. A spy stands in for pg_notify: its schema is searched first.
create schema spy;
create table spy.rung (channel text, run_id text);
create function spy.pg_notify(channel text, message text) returns void language sql as $$ insert into spy.rung values (channel, message) $$;
create function pg_temp.rings(watched_until timestamptz) returns bigint language plpgsql set search_path = spy, pg_catalog as $$
declare
  head tidebase.run_heads;
begin
  truncate spy.rung;
  update tidebase.watches w set watched_until = coalesce(rings.watched_until, '-infinity');
  update tidebase.events set created_at = created_at - interval '1 second';
  head := tidebase_private.advance('other');
  perform tidebase_private.emit(head, 'x', '{}');
  return (select count(*) from spy.rung where channel = 'tidebase_events' and run_id = 'other');
end
$$;
select is(pg_temp.rings(null), 0::bigint, 'an event of a run that nobody watches rings no bell');
select is(pg_temp.rings(clock_timestamp() - interval '1 s'), 0::bigint, 'nor one of a run that nobody watches any more');
select is(pg_temp.rings(clock_timestamp() + interval '1 min'), 1::bigint, 'an event of a watched run rings it, and says which run');
create function pg_temp.rings_for_both(watched_until timestamptz) returns bigint language plpgsql set search_path = spy, pg_catalog as $$
declare
  head tidebase.run_heads;
begin
  truncate spy.rung;
  update tidebase.watches w set watched_until = coalesce(rings_for_both.watched_until, '-infinity');
  update tidebase.events set created_at = created_at - interval '1 second';
  perform tidebase_private.advance('other');
  head := tidebase_private.advance('other');
  perform tidebase_private.emit_step(head, 's', 1);
  return (select count(*) from spy.rung where channel = 'tidebase_events' and run_id = 'other');
end
$$;
update tidebase.events set created_at = clock_timestamp() + interval '1 hour' where run_id = 'other';
truncate spy.rung;
set local search_path = spy, pg_catalog, public;
select tidebase_private.emit(tidebase_private.advance('other'), 'x', '{}');
reset search_path;
select is((select count(*) from spy.rung), 0::bigint, 'the next event of a burst does not');
select is(pg_temp.rings_for_both(null), 0::bigint, 'nor do the two events of a step that is recorded');
select is(pg_temp.rings_for_both(clock_timestamp() + interval '1 min'), 1::bigint, 'which ring it once where somebody watches');
select ok(pg_temp.dense('other'), 'the log has no gap');
select * from finish();
rollback;
