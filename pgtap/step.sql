-- Steps: executed until completed, never after; and what may become of one that was begun and did not complete.
begin;
select no_plan();
select tidebase.create_run('wf', run_id => 'r');
select tidebase.acquire_run('r', 'w');
create function pg_temp.take_over(id text) returns bigint language sql as $$
  update tidebase.run_heads set lease_expires_at = clock_timestamp() - interval '1 second' where run_id = id;
  select token from tidebase.acquire_run(id, 'next');
$$;
create function pg_temp.dense(id text) returns boolean language sql as $$
  select (select array_agg(seq order by seq) from tidebase.events where run_id = id)
    = (select array_agg(n::bigint) from tidebase.run_heads h, generate_series(1, h.last_seq) n where h.run_id = id);
$$;

select results_eq($$select outcome, attempt, output from tidebase.begin_step('r', 1, 's', '{"a": 1}', request_id => 'q')$$, $$values ('execute', 1, null::jsonb)$$, 'a new step is to be executed');
select results_eq($$select outcome, attempt from tidebase.begin_step('r', 1, 's', '{"a": 1}', request_id => 'q')$$, $$values ('execute', 1)$$, 'the same call again is the same');
select throws_ok($$select tidebase.begin_step('r', 1, 's', '{"a": 1}')$$, 'TB007', null, 'another one finds it running');
select throws_ok($$select tidebase.begin_step('r', 1, 's', '{"a": 2}')$$, 'TB006', null, 'with another input it is another step, while it runs');
select is(tidebase.complete_step('r', 1, 's', '{"x": 1}'), 4::bigint, 'it completes');
select is(tidebase.complete_step('r', 1, 's', '{"x": 1.0}'), 4::bigint, 'the same call again is the same');
select throws_ok($$select tidebase.complete_step('r', 1, 's', '{"x": 2}')$$, 'TB007', null, 'its output never changes');
select throws_ok($$select tidebase.fail_step('r', 1, 's')$$, 'TB007', null, 'it does not fail any more');
select results_eq($$select outcome, attempt, output from tidebase.begin_step('r', 1, 's', '{"a": 1.00}')$$, $$values ('replay', 1, '{"x": 1}'::jsonb)$$, 'it replays');
select throws_ok($$select tidebase.begin_step('r', 1, 's', '{"a": 2}')$$, 'TB006', null, 'but not for another input');
select throws_ok($$select tidebase.begin_step('r', 1, 's')$$, 'TB006', null, 'nor for none');
select throws_ok($$select tidebase.begin_step('r', 9, 's', '{"a": 1}')$$, 'TB003', null, 'nor for a stale token');
select throws_ok($$select tidebase.complete_step('r', 1, 'none')$$, 'TB007', null, 'what was not begun is not completed');
select throws_ok($$select tidebase.fail_step('r', 1, 'none')$$, 'TB007', null, 'and does not fail');
select is((select steps_completed from tidebase.run_overview where run_id = 'r'), 1, 'one checkpoint is counted');
select ok(pg_temp.dense('r'), 'and no number is lost by all that');
select tidebase.begin_step('r', 1, 'nothing');
select tidebase.complete_step('r', 1, 'nothing');
select results_eq($$select name, input_hash, output from tidebase.load_checkpoints('r') order by name$$,
  $$values ('nothing', tidebase_private.hash_input(null), 'null'::jsonb), ('s', tidebase_private.hash_input('{"a": 1}'), '{"x": 1}')$$, 'checkpoints are loaded at once');
select throws_ok($$select tidebase.load_checkpoints('none')$$, 'TB001', null, 'of a run that exists');

-- failure and retries
select tidebase.begin_step('r', 1, 'f', retries => 1, retry_delay => '10 s', retry_max_delay => '1 min');
select results_eq($$select decision, retry_after between '5 s' and '10 s', attempt from tidebase.fail_step('r', 1, 'f', '{"message": "no"}')$$, $$values ('auto_retry', true, 1)$$, 'a failure is retried after a while');
select results_eq($$select decision, retry_after <= '10 s', attempt from tidebase.fail_step('r', 1, 'f', '{"message": "no"}')$$, $$values ('auto_retry', true, 1)$$, 'the same call again is the same');
select throws_ok($$select tidebase.complete_step('r', 1, 'f')$$, 'TB007', null, 'what failed does not complete');
select throws_ok($$select tidebase.begin_step('r', 1, 'f', '1')$$, 'TB006', null, 'another input is refused after a failure, too');
select results_eq($$select outcome, attempt from tidebase.begin_step('r', 1, 'f', retries => 1)$$, $$values ('execute', 2)$$, 'it is begun again');
select results_eq($$select decision, retry_after from tidebase.fail_step('r', 1, 'f')$$, $$values ('safe_replay', null::interval)$$, 'until the retries are used up');
select is(pg_temp.take_over('r'), 2::bigint, 'under another lease');
select results_eq($$select outcome, attempt from tidebase.begin_step('r', 2, 'f', retries => 1)$$, $$values ('execute', 3)$$, 'it is executed again');
select is((tidebase.fail_step('r', 2, 'f')).decision, 'auto_retry', 'with retries of its own');
select tidebase.begin_step('r', 2, 'f2', retries => 5);
select is((tidebase.fail_step('r', 2, 'f2', retryable => false)).decision, 'safe_replay', 'an error that is not worth it is not retried');
select ok(tidebase_private.retry_delay(n, '1 s', '1 min') between least(make_interval(secs => 0.5 * 2 ^ (n - 1)), '30 s') and least(make_interval(secs => 2 ^ (n - 1)), '1 min'),
  'retry ' || n || ' waits exponentially, jittered, capped') from generate_series(1, 10) n;
select ok(tidebase_private.retry_delay(1000, '1 day', '30 days') <= '30 days', 'whatever the numbers');

-- the table of decide_replay: retries left x side effects x key x replay
create temp table decided (effects text[], key text, replay text, may_retry boolean, decision text);
insert into decided values
  (null, null, null, true, 'auto_retry'),          (null, null, null, false, 'safe_replay'),
  ('{}', null, null, false, 'safe_replay'),        ('{read}', null, null, false, 'safe_replay'),
  ('{read,read}', null, 'auto', true, 'auto_retry'),
  ('{mail}', null, null, true, 'manual_review'),   ('{mail}', null, null, false, 'manual_review'),
  ('{mail}', null, 'auto', false, 'manual_review'), ('{read,mail}', null, null, true, 'manual_review'),
  ('{mail}', 'k', null, true, 'auto_retry'),       ('{mail}', 'k', null, false, 'safe_replay'),
  ('{mail}', 'k', 'manual', false, 'manual_review'), (null, null, 'manual', true, 'auto_retry'),
  (null, null, 'manual', false, 'manual_review'),  ('{mail}', null, 'manual', false, 'manual_review'),
  (null, null, 'never', true, 'auto_retry'),       (null, null, 'never', false, 'fail_hard'),
  ('{mail}', null, 'never', true, 'fail_hard'),    ('{mail}', 'k', 'never', false, 'fail_hard');
select is(tidebase_private.decide_replay(jsonb_populate_record(null::tidebase.steps, jsonb_build_object('tries', 1, 'retries', 1,
    'side_effects', d.effects, 'idempotency_key', d.key, 'replay', d.replay)), d.may_retry), d.decision,
  format('side effects %s, key %s, replay %s, may retry %s: %s', d.effects, d.key, d.replay, d.may_retry, d.decision)) from decided d;

-- each row of it, at an error and at a crash
create function pg_temp.at_crash(d decided) returns text language plpgsql as $$
declare
  id text := tidebase.create_run('crash');
  answer text;
begin
  perform tidebase.acquire_run(id, 'w');
  perform tidebase.begin_step(id, 1, 's', side_effects => d.effects, idempotency_key => d.key, replay => d.replay);
  perform pg_temp.take_over(id);
  select outcome into answer from tidebase.begin_step(id, 2, 's', side_effects => d.effects, idempotency_key => d.key, replay => d.replay);
  return answer || ' ' || (select status from tidebase.run_overview where run_id = id);
end
$$;
select is(pg_temp.at_crash(d), case d.decision when 'safe_replay' then 'execute running' else 'review review' end,
  format('after a crash: side effects %s, key %s, replay %s', d.effects, d.key, d.replay)) from decided d where not d.may_retry;

create function pg_temp.at_error(d decided) returns text language plpgsql as $$
declare
  id text := tidebase.create_run('error');
  answer text;
begin
  perform tidebase.acquire_run(id, 'w');
  perform tidebase.begin_step(id, 1, 's', side_effects => d.effects, idempotency_key => d.key, replay => d.replay, retries => d.may_retry::integer);
  select decision into answer from tidebase.fail_step(id, 1, 's');
  return answer || ' ' || (select status from tidebase.step_timeline where run_id = id);
end
$$;
select is(pg_temp.at_error(d), d.decision || case d.decision when 'manual_review' then ' review' else ' failed' end,
  format('after an error: side effects %s, key %s, replay %s, retries %s', d.effects, d.key, d.replay, d.may_retry)) from decided d;

-- reviews
select tidebase.create_run('wf', run_id => 'v');
select tidebase.acquire_run('v', 'w');
select tidebase.begin_step('v', 1, 'pay', side_effects => '{card}', verified_by => 'the bank');
select pg_temp.take_over('v');
select is((tidebase.begin_step('v', 2, 'pay')).outcome, 'review', 'what may have taken effect is not repeated');
select results_eq($$select outcome from tidebase.acquire_run('v', 'w')$$, $$values ('review')$$, 'nobody works on the run meanwhile');
select throws_ok($$select tidebase.complete_step('v', 2, 'pay')$$, 'TB003', null, 'the lease is given up');
select results_eq($$select step, cause, verified_by from tidebase.review_inbox where run_id = 'v'$$, $$values ('pay', 'crash', 'the bank')$$, 'a person is asked');
select throws_ok($$select tidebase.resolve_review('v', 'pay', 'maybe')$$, 'TB002', null, 'who has three answers');
select throws_ok($$select tidebase.resolve_review('none', 'pay', 'retry')$$, 'TB001', null, 'about a run that exists');
select throws_ok($$select tidebase.resolve_review('v', 'other', 'retry')$$, 'TB008', null, 'and a step in review');
select lives_ok($$select tidebase.resolve_review('v', 'pay', 'retry', actor => 'ada', reason => 'not at the bank')$$, 'retry');
select throws_ok($$select tidebase.resolve_review('v', 'pay', 'accept')$$, 'TB008', null, 'is one decision, once');
select results_eq($$select decision, actor, reason from tidebase.reviews where run_id = 'v'$$, $$values ('retry', 'ada', 'not at the bank')$$, 'that is kept');
select is((tidebase.acquire_run('v', 'w')).token, 3::bigint, 'the run may go on');
select results_eq($$select outcome, attempt from tidebase.begin_step('v', 3, 'pay', side_effects => '{card}')$$, $$values ('execute', 2)$$, 'and the step is executed again');
select is((tidebase.fail_step('v', 3, 'pay', '"lost"')).decision, 'manual_review', 'an error puts it into review, too');
select is((tidebase.fail_run('v', 3, '"lost"')).status, 'review', 'and the run that fails of it');
select lives_ok($$select tidebase.resolve_review('v', 'pay', 'accept', '{"paid": true}')$$, 'accept');
select is((tidebase.acquire_run('v', 'w')).checkpoints, 1, 'makes a checkpoint');
select results_eq($$select outcome, output from tidebase.begin_step('v', 4, 'pay')$$, $$values ('replay', '{"paid": true}'::jsonb)$$, 'which replays');
select tidebase.begin_step('v', 4, 'mail', side_effects => '{mail}');
select tidebase.fail_step('v', 4, 'mail');
select is((tidebase.begin_step('v', 4, 'mail', side_effects => '{mail}')).outcome, 'review', 'a worker that goes on regardless is stopped at the step');
select lives_ok($$select tidebase.resolve_review('v', 'mail', 'fail')$$, 'fail');
select is((select status from tidebase.run_overview where run_id = 'v'), 'failed', 'fails the run');
select tidebase.acquire_run('v', 'w');
select throws_ok($$select tidebase.begin_step('v', 5, 'mail', side_effects => '{mail}')$$, 'TB007', null, 'and the step is never executed again');
select ok(pg_temp.dense('v'), 'the log of all that has no gap');
select tidebase.cancel_run('v');
select throws_ok($$select tidebase.resolve_review('v', 'mail', 'retry')$$, 'TB004', null, 'a cancelled run has no reviews');

-- arguments
select throws_ok('select tidebase.begin_step(''r'', 2, ' || arguments || ')', 'TB002', null, 'begin_step refuses ' || arguments) from unnest(array[
  'null', '''''', '''  ''', 'repeat(''x'', 1025)', '''x'', retries => -1', '''x'', retries => 1001', '''x'', replay => ''sometimes''',
  '''x'', side_effects => array[null::text]', '''x'', side_effects => array['''']', '''x'', credentials => array[null::text]', '''x'', idempotency_key => ''''',
  '''x'', timeout => ''0''', '''x'', timeout => ''-1 s''', '''x'', retry_delay => ''-1 s''', '''x'', retry_delay => ''2 days''', '''x'', retry_max_delay => ''100 years''']) arguments;
select lives_ok($$select tidebase.begin_step('r', 2, 'x''; drop table tidebase.runs; --', '"'' or 1=1"')$$, 'SQL in a name is a name');
select results_eq($$select side_effects, idempotency_key, replay, checkpoint_invariant, verified_by, credentials, retries, timeout from tidebase.step_timeline where name = 'all'$$,
  $$values ('{a,b}'::text[], 'k', 'manual', 'i', 'v', '{c}'::text[], 3, interval '1 min')$$, 'the contract is kept')
from (select tidebase.begin_step('r', 2, 'all', null, '{a,b}', 'k', 'manual', 'i', 'v', 3, '1 s', '1 min', '1 min', '{c}')) begun;
select * from finish();
rollback;
