-- Leases: one holder, tokens that only grow, a fence before every write.

-- First what only shows in a transaction that has not written yet: which calls leave its commit asynchronous. Each is
-- made in a transaction of its own, on a run that is really there; the run is deleted again below.
set synchronous_commit = on;
select tidebase.create_run('lazy') as lazy_run \gset
select token as lazy_token from tidebase.acquire_run(:'lazy_run', 'w') \gset
select tidebase.append_event(:'lazy_run', :lazy_token, 'note', request_id => 'q') \gset void_
select outcome as void_outcome from tidebase.begin_step(:'lazy_run', :lazy_token, 'done', '1') \gset
select tidebase.complete_step(:'lazy_run', :lazy_token, 'done') \gset void_

begin;
select tidebase.renew_lease(:'lazy_run', :lazy_token) \gset void_
select current_setting('synchronous_commit') as after_renewal \gset
rollback;
begin;
select tidebase.append_event(:'lazy_run', :lazy_token, 'tick', transient => true) \gset void_
select current_setting('synchronous_commit') as after_tick, last_seq - durable_seq as tick_in_doubt from tidebase.run_heads where run_id = :'lazy_run' \gset
select tidebase.append_event(:'lazy_run', :lazy_token, 'note') \gset void_
select current_setting('synchronous_commit') as after_tick_and_note, last_seq - durable_seq as note_in_doubt from tidebase.run_heads where run_id = :'lazy_run' \gset
rollback;
begin;
select tidebase.append_event(:'lazy_run', :lazy_token, 'note') \gset void_
select current_setting('synchronous_commit') as after_note \gset
rollback;
begin;
select outcome as void_outcome from tidebase.begin_step(:'lazy_run', :lazy_token, 'look', side_effects => '{read}') \gset
select current_setting('synchronous_commit') as after_read_step \gset
rollback;
begin;
select outcome as void_outcome from tidebase.begin_step(:'lazy_run', :lazy_token, 'send', side_effects => '{mail}') \gset
select current_setting('synchronous_commit') as after_write_step \gset
rollback;
begin;
select outcome as replayed from tidebase.begin_step(:'lazy_run', :lazy_token, 'done', '1') \gset
select current_setting('synchronous_commit') as after_replay, pg_current_xact_id_if_assigned() is null as replay_is_no_write \gset
rollback;
begin;
select outcome as refused from tidebase.acquire_run(:'lazy_run', 'v') \gset
select pg_current_xact_id_if_assigned() is null as refusal_is_no_write \gset
rollback;
begin;
select status as void_status from tidebase.watch_run(:'lazy_run') \gset
select current_setting('synchronous_commit') as after_watch \gset
select status as void_status from tidebase.watch_run(:'lazy_run') \gset
rollback;
begin;
set local tidebase.durability = 'full';
select tidebase.renew_lease(:'lazy_run', :lazy_token) \gset void_
select current_setting('synchronous_commit') as after_full_renewal \gset
rollback;
begin;
select pg_current_xact_id() as void_xid \gset
select tidebase.append_event(:'lazy_run', :lazy_token, 'tick', transient => true) \gset void_
select current_setting('synchronous_commit') as after_write_and_tick \gset
rollback;
-- A reader that has seen a tick waits until it is on disk, unless it is there by itself.
begin;
select tidebase.append_event(:'lazy_run', :lazy_token, 'tick', transient => true) as tick \gset
select pg_current_wal_insert_lsn() as tick_end \gset
select count(*) as void_events from tidebase.read_events(:'lazy_run', :tick - 2) \gset
select current_setting('synchronous_commit') = 'on' or pg_current_wal_flush_lsn() >= :'tick_end' as reader_waits \gset
rollback;
begin;
select count(*) as void_events from tidebase.read_events(:'lazy_run') \gset
select pg_current_xact_id_if_assigned() is null as reading_is_no_write \gset
rollback;
delete from tidebase.steps where run_id = :'lazy_run';
delete from tidebase.events where run_id = :'lazy_run';
delete from tidebase.attempts where run_id = :'lazy_run';
delete from tidebase.run_heads where run_id = :'lazy_run';
delete from tidebase.runs where run_id = :'lazy_run';

begin;
select no_plan();
\ir support/helpers.psql
select is(:'after_renewal'::text, 'off', 'a heartbeat commits asynchronously');
select is(:'after_tick'::text, 'off', 'so does a transient event');
select is(:tick_in_doubt, 1, 'which is not known to be on disk');
select is(:'after_tick_and_note'::text, 'on', 'a durable call after a lazy one makes the transaction durable');
select is(:note_in_doubt, 0, 'and with it all that was in doubt');
select is(:'after_note'::text, 'on', 'an event of one''s own commits synchronously');
select is(:'after_read_step'::text, 'off', 'the start of a step that only reads may be lost');
select is(:'after_write_step'::text, 'on', 'the start of one that writes to the outside may not');
select is(:'replayed'::text || ' ' || :'after_replay'::text, 'replay on', 'a replay leaves the transaction as it is');
select ok(:'replay_is_no_write'::boolean, 'and writes nothing');
select is(:'refused'::text, 'held', 'who is refused a lease');
select ok(:'refusal_is_no_write'::boolean, 'has written nothing either');
select is(:'after_watch'::text, 'off', 'the mark of a watcher may be lost');
select is(:'after_full_renewal'::text, 'on', 'tidebase.durability = full makes every call durable');
select is(:'after_write_and_tick'::text, 'on', 'a lazy call leaves a transaction alone that has written already');
select ok(:'reader_waits'::boolean, 'who reads a transient event waits until it is on disk');
select ok(:'reading_is_no_write'::boolean, 'reading what is on disk writes nothing');

-- granting
select tidebase.create_run('wf', '{"q": 1}', 'r');
select results_eq(
  $$select outcome, token, attempt, workflow, input, result, holder, checkpoints, expires_at > clock_timestamp() + '50 s'
    from tidebase.acquire_run('r', 'ada', code_version => 'v1', request_id => 'q')$$,
  $$values ('granted', 1::bigint, 1, 'wf', '{"q": 1}'::jsonb, null::jsonb, 'ada', 0, true)$$, 'the first who asks gets the lease');
select results_eq($$select outcome, token, attempt, holder, input, expires_at is not null from tidebase.acquire_run('r', 'bob')$$,
  $$values ('held', null::bigint, 1, 'ada', null::jsonb, true)$$, 'the next is told who has it, and until when');
select results_eq($$select outcome, token, holder from tidebase.acquire_run('r', 'ada')$$, $$values ('held', null::bigint, 'ada')$$, 'the same name is not the same holder');
select results_eq($$select outcome, token from tidebase.acquire_run('r', 'ada', request_id => 'p')$$, $$values ('held', null::bigint)$$, 'nor is another call');
select is(pg_temp.answer($$select token, attempt, expires_at from tidebase.acquire_run('r', 'ada', request_id => 'q')$$),
  pg_temp.answer($$select lease_token, attempt, lease_expires_at from tidebase.run_heads where run_id = 'r'$$), 'the same call again is granted the same lease');
select is((select count(*) from tidebase.attempts where run_id = 'r'), 1::bigint, 'and is no other attempt');
select is((select last_seq from tidebase.run_heads where run_id = 'r'), 2::bigint, 'nor another event');
select results_eq($$select payload from tidebase.read_events('r', 1)$$,
  $$values ('{"attempt": 1, "token": 1, "holder": "ada", "code_version": "v1"}'::jsonb)$$, 'the log tells who works with which code');

-- expiry
select pg_temp.lapse('r');
select lives_ok($$select tidebase.begin_step('r', 1, 's')$$, 'a lapsed holder whom nobody replaced may still begin a step');
select lives_ok($$select tidebase.complete_step('r', 1, 's', '1')$$, 'and complete it');
select lives_ok($$select tidebase.renew_lease('r', 1)$$, 'and revive its lease');
select is((tidebase.acquire_run('r', 'bob')).outcome, 'held', 'which is alive then');
select pg_temp.lapse('r');
select results_eq($$select outcome, token, attempt, checkpoints from tidebase.acquire_run('r', 'bob')$$, $$values ('granted', 2::bigint, 2, 1)$$,
  'a lapsed lease is taken over, and the token grows');
select is((tidebase.acquire_run('r', 'ada', request_id => 'q')).outcome, 'held', 'the call that got the former lease gets this one not');
select results_eq($$select payload #>> '{lapsed,holder}', payload #>> '{lapsed,token}', (payload #>> '{lapsed,expired_at}')::timestamptz < clock_timestamp()
    from tidebase.read_events('r') where type = 'run.started' and payload ->> 'token' = '2'$$,
  $$values ('ada', '1', true)$$, 'the log tells from whom, with which token, since when');
select results_eq($$select attempt, lease_token, holder, code_version, outcome, ended_at is not null from tidebase.run_attempts where run_id = 'r' order by attempt$$,
  $$values (1, 1::bigint, 'ada', 'v1', 'lapsed', true), (2, 2, 'bob', null, null, false)$$, 'and the attempts keep it');
select columns_are('tidebase', 'run_attempts',
  '{run_id,attempt,lease_token,holder,code_version,started_at,ended_at,outcome,error,traceparent,lapsed_at}', 'run_attempts has its columns');

-- renewing
select ok(tidebase.renew_lease('r', 2, '2 hours') between clock_timestamp() + interval '119 min' and clock_timestamp() + interval '2 hours',
  'a lease is renewed from now, by the clock of the database');
select is((select lease_expires_at > clock_timestamp() + interval '119 min' from tidebase.run_heads where run_id = 'r'), true, 'which stands in the head');
select ok(tidebase.renew_lease('r', 2, '1 min') < clock_timestamp() + interval '61 s', 'it may be made shorter');
select is((select last_seq from tidebase.run_heads where run_id = 'r'), (select max(seq) from tidebase.events where run_id = 'r'), 'a heartbeat is no event');

-- the fence: every function with a token, against every state that a run may be in
create temp table writes (statement text);
insert into writes values
  ($$select tidebase.append_event('z', %s, 'x')$$),
  ($$select tidebase.append_event('z', %s, 'x', request_id => 'q', transient => true)$$),
  ($$select tidebase.begin_step('z', %s, 'x')$$),
  ($$select tidebase.begin_step('z', %s, 'running')$$),
  ($$select tidebase.begin_step('z', %s, 'failed')$$),
  ($$select tidebase.begin_step('z', %s, 'completed')$$),
  ($$select tidebase.complete_run('z', %s)$$),
  ($$select tidebase.complete_step('z', %s, 'running')$$),
  ($$select tidebase.complete_step('z', %s, 'completed')$$),
  ($$select tidebase.record_step('z', %s, 'x')$$),
  ($$select tidebase.record_step('z', %s, 'completed')$$),
  ($$select tidebase.record_steps('z', %s, '[{"name": "x"}, {"name": "y"}]')$$),
  ($$select tidebase.record_steps('z', %s, '[{"name": "x"}, {"name": "completed"}]')$$),
  ($$select tidebase.create_child('z', %s, 'x', 'wf')$$),
  ($$select tidebase.create_child('z', %s, 'child', 'wf')$$),
  ($$select tidebase.fail_run('z', %s)$$),
  ($$select tidebase.fail_step('z', %s, 'running')$$),
  ($$select tidebase.fail_step('z', %s, 'failed')$$),
  ($$select tidebase.open_gate('z', %s, 'x')$$),
  ($$select tidebase.open_gate('z', %s, 'g')$$),
  ($$select tidebase.release_run('z', %s)$$),
  ($$select tidebase.renew_lease('z', %s)$$),
  ($$select tidebase.create_snapshot('z', %s, 'l')$$),
  ($$select tidebase.create_snapshot('z', %s, 'l', state => '1')$$),
  ($$select tidebase.patch_state('z', %s, '{"a": 1}')$$),
  ($$select tidebase.merge_state('z', %s, '{"a": 1}')$$),
  ($$select tidebase.begin_step_with('z', %s, 'x', input_hash => 'h', options => '{"sideEffects": ["mail"]}')$$),
  ($$select tidebase.begin_step_with('z', %s, 'completed')$$),
  ($$select tidebase.record_usage('z', %s)$$),
  ($$select tidebase.record_usage('z', %s, response_id => 'x', cost_usd => 1)$$),
  ($$select tidebase.restore_state('z', %s, 1)$$),
  ($$select tidebase.restore_state('z', %s, label => 'none')$$),
  ($$select tidebase.save_state('z', %s, 'l')$$),
  ($$select tidebase.set_state('z', %s, '1')$$),
  ($$select tidebase.set_state('z', %s, '1', expected_version => 7)$$),
  ($$select tidebase.start_timer('z', %s, 'x', '1 s')$$),
  ($$select tidebase.suspend_for_children('z', %s, '{child}')$$),
  ($$select tidebase.suspend_run('z', %s, 'g')$$),
  ($$select tidebase.claim_thread('z', %s, 't')$$),
  ($$select tidebase.put_checkpoint('t', '', 'c', 'x', 'x', '{}', run_id => 'z', token => %s)$$);
select set_eq(
  $$select p.proname::text from pg_proc p where p.pronamespace = 'tidebase'::regnamespace and 'token' = any (p.proargnames[1:p.pronargs])
      and p.proname not in ('delete_thread', 'put_checkpoint_writes')  -- see checkpoint.sql$$,
  $$select substring(statement from 'tidebase\.([a-z_]+)') from writes$$, 'these are all the functions that take a token');

select tidebase.create_run('wf', run_id => 'z');
select tidebase.acquire_run('z', 'former');
select tidebase.append_event('z', 1, 'x', request_id => 'q');
select tidebase.begin_step('z', 1, step) from unnest(array['running', 'failed', 'completed']) step;
select pg_temp.take_over('z');
select tidebase.begin_step('z', 2, step) from unnest(array['running', 'failed', 'completed']) step;
select tidebase.fail_step('z', 2, 'failed');
select tidebase.complete_step('z', 2, 'completed');
select tidebase.open_gate('z', 2, 'g');
select tidebase.create_child('z', 2, 'child', 'wf');

create temp table stored as select pg_temp.picture();
select throws_ok(format(statement, token), 'TB003', null, format(statement, token) || ' is fenced')
from writes, unnest(array['1', 'null', '0', '-1', '3', '9223372036854775807']) token;
select is(pg_temp.picture(), (table stored), 'and nothing has changed');

create function pg_temp.refusals(with_status text, token text) returns setof text language plpgsql as $$
declare
  expected text := case with_status when 'cancelled' then 'TB004' when 'completed' then case token when '2' then 'TB005' else 'TB003' end else 'TB003' end;
  call text;
begin
  perform pg_temp.put('z', with_status);
  for call in
    select format(w.statement, refusals.token) from writes w
    -- with its own token that call is the same one again, and what was done by then is stored; both have tests of their own
    where not (refusals.token = '2' and (with_status = 'pending' and w.statement like '%release_run%'
      or with_status not in ('completed', 'cancelled') and w.statement ~ '(complete|record|fail)_step'))
  loop
    return next throws_ok(call, expected, null, format('%s on a run that is %s raises %s', call, with_status, expected));
  end loop;
  perform pg_temp.put('z', 'running');
end
$$;
select pg_temp.refusals(status, token)
from unnest(array['pending', 'queued', 'waiting', 'review', 'failed', 'completed', 'cancelled']) status, unnest(array['2', '1', 'null']) token;
select pg_temp.put('z', 'running');
select is(pg_temp.picture() #- '{tidebase.run_heads}', (table stored) #- '{tidebase.run_heads}', 'all that has changed nothing');
select lives_ok($$select tidebase.renew_lease('z', 2)$$, 'the holder goes on');

-- giving up
select pg_temp.same_again($$select tidebase.release_run('r', 2)$$, 'a lease is released, once or twice');
select is((select array_agg(type) from tidebase.read_events('r', 4)), '{run.started,run.released}', 'with one event');
select results_eq($$select status, holder, lease_expires_at from tidebase.run_overview where run_id = 'r'$$,
  $$values ('pending', 'bob', null::timestamptz)$$, 'the run is pending');
select is((select outcome from tidebase.run_attempts where run_id = 'r' and attempt = 2), 'released', 'and the attempt was given up in good order');
select throws_ok($$select tidebase.release_run('r', 1)$$, 'TB003', null, 'a stale token releases nothing');
select results_eq($$select token, attempt from tidebase.acquire_run('r', 'ada')$$, $$values (3::bigint, 3)$$, 'the run is granted at once, with another token');
select throws_ok($$select tidebase.release_run('r', 2)$$, 'TB003', null, 'and the release does not come again');
select tidebase.complete_run('r', 3, '"over"');
select results_eq($$select outcome, token, result, expires_at from tidebase.acquire_run('r', 'ada')$$,
  $$values ('completed', null::bigint, '"over"'::jsonb, null::timestamptz)$$, 'a completed run has its result to give');
select ok(pg_temp.dense('r'), 'the log of all that has no gap');
select pg_temp.leased('given up');
select tidebase.open_gate('given up', 1, 'g', '?');
create temp table released as select tidebase.release_run('given up', 1) as seq;
select tidebase.decide_gate('given up', 'g', 'approved');
select is(tidebase.release_run('given up', 1), (select seq from released), 'a release made again returns the number of its event, whatever came after it');
select tidebase.acquire_run('given up', 'w');
select pg_temp.lapse('given up');
update tidebase.run_heads set due_at = lease_expires_at where run_id = 'given up';
select tidebase.reconcile();
select ok(tidebase.release_run('given up', 2) > (select seq from released), 'a lease that ran out is released, and an earlier release is not taken for it');
select tidebase.create_run('wf', run_id => 'ran out');
select tidebase.acquire_run('ran out', 'w');
select pg_temp.lapse('ran out');
update tidebase.run_heads set due_at = lease_expires_at where run_id = 'ran out';
select tidebase.reconcile();
select lives_ok($$select tidebase.release_run('ran out', 1)$$, 'also where there was none');

-- what is granted, by status
select tidebase.create_run('wf', run_id => 'status');
select pg_temp.put('status', 'queued');
select is((tidebase.acquire_run('status', 'w')).outcome, 'granted', 'a queued run is granted');
select pg_temp.put('status', 'failed');
select is((tidebase.acquire_run('status', 'w')).token, 2::bigint, 'a failed run is granted again');
select pg_temp.put('status', 'waiting');
select is((tidebase.acquire_run('status', 'w')).outcome, 'waiting', 'a waiting one is not');
select pg_temp.put('status', 'review');
select is((tidebase.acquire_run('status', 'w')).outcome, 'review', 'nor is one that a person must look at');
select pg_temp.put('status', 'cancelled');
select throws_ok($$select tidebase.acquire_run('status', 'w')$$, 'TB004', null, 'a cancelled one raises');
select tidebase.create_run('wf', run_id => 'past', deadline => clock_timestamp() - interval '1 s');
select throws_ok($$select tidebase.acquire_run('past', 'w')$$, 'TB004', null, 'so does one whose deadline has passed');
select tidebase.create_run('wf', run_id => 'soon');
update tidebase.run_heads set available_at = clock_timestamp() + interval '1 min' where run_id = 'soon';
select results_eq($$select outcome, expires_at = (select available_at from tidebase.run_heads where run_id = 'soon') from tidebase.acquire_run('soon', 'w')$$,
  $$values ('waiting', true)$$, 'a run that waits for its next attempt says until when');

-- tokens only grow, however a lease ends
select tidebase.create_run('wf', run_id => 'grow', max_attempts => 100, retry_delay => '0');
create temp table granted (n integer, token bigint);
create function pg_temp.grant_and_end(n integer) returns void language plpgsql as $$
declare
  granted bigint := (tidebase.acquire_run('grow', 'w')).token;
begin
  insert into granted values (n, granted);
  case n % 4
    when 0 then perform tidebase.release_run('grow', granted);
    when 1 then perform tidebase.fail_run('grow', granted);
    when 2 then perform pg_temp.lapse('grow');
    when 3 then
      perform tidebase.start_timer('grow', granted, 't' || n, '0');
      perform tidebase.start_timer('grow', granted, 'u' || n, '1 hour');
      perform tidebase.suspend_run('grow', granted, 'u' || n);
      update tidebase.gates set timeout_at = clock_timestamp() where name = 'u' || n;
  end case;
end
$$;
select pg_temp.grant_and_end(n) from generate_series(1, 12) n;
select results_eq('select token from granted order by n', 'select generate_series(1::bigint, 12)', 'every grant has the next token, after release, failure, lapse and suspension');
select results_eq($$select outcome from tidebase.run_attempts where run_id = 'grow' and attempt <= 4 order by attempt$$,
  $$values ('failed'), ('lapsed'), ('suspended'), ('released')$$, 'each attempt says how it ended');
select ok(pg_temp.dense('grow'), 'and the log has no gap');

-- arguments
select tidebase.create_run('wf', run_id => 'a');
select throws_ok(format($$select tidebase.acquire_run('a', %L)$$, holder), 'TB002', null, format('%L is no holder', left(holder, 10)))
from unnest(array[null, '', '  ', repeat('x', 256), repeat('ä', 128)]) holder;
select throws_ok(format($$select tidebase.acquire_run('a', 'w', %L)$$, ttl), 'TB002', null, format('a lease of %L is refused', ttl))
from unnest(array['0', '-1 s', '0.9 ms', '1 day 1 s', '1000 years']) ttl;
select throws_ok(format($$select tidebase.renew_lease('a', 0, %L)$$, ttl), 'TB002', null, format('so is a renewal by %L', ttl))
from unnest(array['0', '-1 s', '1 day 1 s', '1000 years']) ttl;
select throws_ok(format($$select tidebase.acquire_run('a', 'w', code_version => %L)$$, value), 'TB002', null, format('%L is no code version', left(value, 10)))
from unnest(array['', ' ', repeat('x', 256)]) value;
select throws_ok(format($$select tidebase.acquire_run('a', 'w', request_id => %L)$$, value), 'TB002', null, format('%L is no id of a call', left(value, 10)))
from unnest(array['', ' ', repeat('x', 256)]) value;
select throws_ok($$select tidebase.renew_lease('a', 0)$$, 'TB003', null, 'the token of a run that was never leased is no token');
select throws_ok($$select tidebase.release_run('a', null)$$, 'TB003', null, 'nor does a pending run take a release without one');
select lives_ok($$select tidebase.acquire_run('a', 'ann''; drop table tidebase.runs; --', '1 ms', '%s''"', 'q''; --')$$, 'SQL in a name is a name');
select is((select holder from tidebase.run_attempts where run_id = 'a'), 'ann''; drop table tidebase.runs; --', 'which is kept as it is');

-- Whatever must survive commits synchronously, also for a caller who has turned that off.
select pg_temp.leased(id) from unnest(array['d', 'd2', 'd3', 'd4', 'd5']) id;
update tidebase.runs set recovery_webhook = 'http://hook' where run_id = 'd3';
select tidebase.begin_step('d', 1, 'f');
select tidebase.begin_step('d', 1, 'v', side_effects => '{mail}');
select tidebase.fail_step('d', 1, 'v');
select is(pg_temp.durability(statement), 'on', statement || ' commits synchronously') from (values
  ($$select tidebase.create_run('wf', run_id => 'd6')$$),
  ($$select tidebase.acquire_run('d6', 'w')$$),
  ($$select tidebase.append_event('d', 1, 'x')$$),
  ($$select tidebase.begin_step('d', 1, 'w', side_effects => '{mail}')$$),
  ($$select tidebase.complete_step('d', 1, 'w')$$),
  ($$select tidebase.record_step('d', 1, 'x')$$),
  ($$select tidebase.record_steps('d', 1, '[{"name": "y"}]')$$),
  ($$select tidebase.record_steps_of_runs('[{"run_id": "d", "token": 1, "steps": [{"name": "z"}]}]')$$),
  ($$select tidebase.fail_step('d', 1, 'f')$$),
  ($$select tidebase.resolve_review('d', 'v', 'retry')$$),
  ($$select tidebase.open_gate('d', 1, 'g')$$),
  ($$select tidebase.decide_gate('d', 'g', 'approved')$$),
  ($$select tidebase.start_timer('d', 1, 't', '1 hour')$$),
  ($$select tidebase.create_child('d', 1, 'c', 'wf')$$),
  ($$select tidebase.suspend_run('d', 1, 't')$$),
  ($$select tidebase.release_run('d2', 1)$$),
  ($$select tidebase.fail_run('d3', 1)$$),
  ($$select tidebase.record_recovery('d3')$$),
  ($$select tidebase.finish_delivery('d3', 1, 0, true)$$),
  ($$select tidebase.recover_run('d3')$$),
  ($$select tidebase.finish_recovery('d3', 2, 'failed')$$),
  ($$select tidebase.complete_run('d4', 1)$$),
  ($$select tidebase.cancel_run('d5')$$)) as calls (statement);
select is(pg_temp.durability($$select tidebase.append_event('d6', 1, 'x')$$, setting), setting, 'a stronger setting stays: ' || setting)
from unnest(array['on', 'local', 'remote_write', 'remote_apply']) setting;
select is(last_seq, durable_seq, 'what was committed synchronously is known to be on disk') from tidebase.run_heads where run_id in ('d4', 'd6');
-- traces
create function pg_temp.parent_of(n integer) returns text language sql as $$ select format('00-%s-%s-01', repeat('a', 32), lpad(n::text, 16, '0')) $$;
select tidebase.create_run('wf', run_id => 'traced', traceparent => pg_temp.parent_of(0));
select is((tidebase.acquire_run('traced', 'w', request_id => 'q', traceparent => pg_temp.parent_of(1))).traceparent, pg_temp.parent_of(0),
  'the first attempt links to where the run was made');
select is((tidebase.acquire_run('traced', 'w', request_id => 'q', traceparent => pg_temp.parent_of(1))).traceparent, pg_temp.parent_of(0),
  'the call repeated does, too');
select tidebase.release_run('traced', 1);
select is((tidebase.acquire_run('traced', 'w', traceparent => pg_temp.parent_of(2))).traceparent, pg_temp.parent_of(1), 'the next one to the one before');
select tidebase.release_run('traced', 2);
select is((tidebase.acquire_run('traced', 'w')).traceparent, pg_temp.parent_of(2), 'one that is not traced is told all the same');
select is((tidebase.acquire_run('traced', 'v')).traceparent, null, 'who is refused is told nothing');
select tidebase.release_run('traced', 3);
select is((tidebase.acquire_run('traced', 'w')).traceparent, pg_temp.parent_of(0), 'after an attempt without a trace there is where the run was made');
select results_eq($$select traceparent from tidebase.run_attempts where run_id = 'traced' order by attempt$$,
  $$values (pg_temp.parent_of(1)), (pg_temp.parent_of(2)), (null), (null)$$, 'each attempt keeps its own');
select tidebase.create_child('traced', 4, 'c', 'wf', traceparent => pg_temp.parent_of(5));
select is((tidebase.acquire_run((select child_run_id from tidebase.edges where run_id = 'traced'), 'w')).traceparent, pg_temp.parent_of(5), 'a child links to where it was made, too');
select throws_ok(format($$select tidebase.acquire_run('traced', 'w', traceparent => %L)$$, given), 'TB002', null, format('%L is no traceparent', given))
from unnest(array['', '00', pg_temp.parent_of(1) || '-x', upper(pg_temp.parent_of(1)), pg_temp.parent_of(1) || E'\n', 'ü' || pg_temp.parent_of(1)]) given;
-- many at once
select pg_temp.leased('m' || n) from generate_series(1, 4) n;
select pg_temp.lapse('m2');
select tidebase.acquire_run('m2', 'another');
select tidebase.release_run('m3', 1);
select set_eq($$select run_id, expires_at > clock_timestamp() + interval '59 minutes' from tidebase.renew_leases('{m1,m2,m3,m4,none}', '{1,1,1,1,1}', '1 hour')$$,
  $$values ('m1', true), ('m4', true)$$, 'many leases are renewed at once, but none that is lost or given up');
select is((select lease_expires_at < clock_timestamp() + interval '59 minutes' from tidebase.run_heads where run_id = 'm2'), true, 'whoever has taken over keeps the lease as it was');
select is((select lease_expires_at from tidebase.run_heads where run_id = 'm3'), null, 'and a run that was given up stays so');
select is_empty($$select tidebase.renew_leases('{m1,null}', '{null,1}')$$, 'no token renews nothing, and no run is none');
select is_empty($$select tidebase.renew_leases('{}', '{}')$$, 'there need not be any');
select throws_ok(format($$select tidebase.renew_leases(%L, %L)$$, runs, tokens), 'TB002', null, format('%s and %s do not go together', runs, tokens))
from (values ('{m1,m4}', '{1}'), ('{m1}', null), (null, '{1}'), (null, null), ('{{m1},{m4}}', '{{1},{1}}'), ('{m1}', '{}')) as pair (runs, tokens);
select throws_ok($$select tidebase.renew_leases(array_fill('m1'::text, '{10001}'), array_fill(1::bigint, '{10001}'))$$, 'TB002', null, 'nor are 10,001 renewed');
select throws_ok(format($$select tidebase.renew_leases('{m1}', '{1}', %L)$$, ttl), 'TB002', null, format('or for %L', ttl)) from unnest(array['0', '-1 s', '25 hours']) ttl;
select is((select has_budget from tidebase.acquire_run('m3', 'w')), false, 'who gets a lease is told that the run has no budget');
select tidebase.create_run('wf', run_id => 'rich', budget => '{"tokens": 1}');
select is((select has_budget from tidebase.acquire_run('rich', 'w')), true, 'or that it has one');

select throws_ok($$select tidebase.create_run('wf', traceparent => 'x')$$, 'TB002', null, 'nor is this one, of a run');
select throws_ok($$select tidebase.create_child('traced', 4, 'd', 'wf', traceparent => 'x')$$, 'TB002', null, 'or of a child');


-- a grant whose answer never came
select tidebase.create_run('wf', run_id => 'lost answer');
select tidebase.acquire_run('lost answer', 'w', request_id => 'q1');
select is(tidebase.withdraw_grant('lost answer', 'q2'), false, 'another call has no part in it');
select is(tidebase.withdraw_grant('lost answer', 'q1'), true, 'the lease is given back by the call that got it');
select is(pg_temp.status('lost answer'), 'pending', 'and nobody has to wait for its end');
select is(tidebase.withdraw_grant('lost answer', 'q1'), false, 'once');
select tidebase.acquire_run('lost answer', 'w', request_id => 'q3');
select is(tidebase.withdraw_grant('lost answer', 'q1'), false, 'the next one is not touched');
select is(pg_temp.status('lost answer'), 'running', 'by a call of before');
select throws_ok($$select tidebase.withdraw_grant('lost answer', ' ')$$, 'TB002', null, 'a request has an id that is not blank');
select ok(pg_temp.dense('lost answer'), 'the log has no gap');

-- tokens of what is not here any more
select tidebase.create_run('wf', run_id => 'phoenix');
select pg_temp.take_over('phoenix') from generate_series(1, 5), tidebase.acquire_run('phoenix', 'w');
create temp table ashes as select pg_temp.token('phoenix') as token;
select tidebase.cancel_run('phoenix');
select tidebase.purge_runs('0', '{cancelled}');
select tidebase.create_run('wf', run_id => 'phoenix');
select ok((tidebase.acquire_run('phoenix', 'w')).token > token, 'a run made anew has tokens above those of the one that was purged') from ashes;
select throws_ok(format('select tidebase.complete_step(''phoenix'', %s, ''s'')', token), 'TB003', null, 'so a worker of that one is fenced') from ashes;
update tidebase_private.incarnation set whereabouts = 'on another server';
select tidebase.create_run('wf', run_id => 'restored');
select ok((tidebase.acquire_run('restored', 'w')).token > (extract(epoch from clock_timestamp() - interval '1 minute')::bigint << 20),
  'in a database that is not where it was, tokens begin above all that can have been issued there');
select is((select whereabouts from tidebase_private.incarnation), tidebase_private.whereabouts(), 'which is noticed once');
select * from finish();
rollback;
