-- Steps: executed until completed, never after; and what may become of one that was begun and did not complete.
begin;
select no_plan();
\ir support/helpers.psql
select pg_temp.leased('r');

-- one step, from its beginning to its checkpoint
select results_eq($$select outcome, attempt, output from tidebase.begin_step('r', 1, 's', '{"a": 1}', request_id => 'q')$$, $$values ('execute', 1, null::jsonb)$$, 'a new step is to be executed');
select pg_temp.same_again($$select tidebase.begin_step('r', 1, 's', '{"a": 1}', request_id => 'q')$$, 'the same call again is the same');
select is((select attempt from tidebase.steps where run_id = 'r' and name = 's'), 1, 'and no other attempt');
select throws_ok($$select tidebase.begin_step('r', 1, 's', '{"a": 1}')$$, 'TB007', null, 'a call without an id finds the step running');
select throws_ok($$select tidebase.begin_step('r', 1, 's', '{"a": 1}', request_id => 'p')$$, 'TB007', null, 'so does a call with another');
select throws_ok($$select tidebase.begin_step('r', 1, 's', '{"a": 2}', request_id => 'q')$$, 'TB006', null, 'with another input it is another step, while it runs');
select results_eq($$select status, attempt, lease_token, completed_at, duration, output from tidebase.step_timeline where run_id = 'r' and name = 's'$$,
  $$values ('running', 1, 1::bigint, null::timestamptz, null::interval, null::jsonb)$$, 'a running step is seen');
select pg_temp.same_again($$select tidebase.complete_step('r', 1, 's', '{"x": 1}')$$, 'it completes, once or twice');
select is(tidebase.complete_step('r', 1, 's', '{"x": 1.0}'), 4::bigint, 'an equal output is the same call');
select throws_ok($$select tidebase.complete_step('r', 1, 's', '{"x": 2}')$$, 'TB007', null, 'its output never changes');
select throws_ok($$select tidebase.complete_step('r', 1, 's')$$, 'TB007', null, 'not to none either');
select throws_ok($$select tidebase.fail_step('r', 1, 's')$$, 'TB007', null, 'it does not fail any more');
select is((select output from tidebase.steps where run_id = 'r' and name = 's'), '{"x": 1}', 'after all that the checkpoint is what it was');
select pg_temp.same_again($$select tidebase.begin_step('r', 1, 's', '{"a": 1.00}')$$, 'a replay writes nothing');
select results_eq($$select outcome, attempt, output from tidebase.begin_step('r', 1, 's', '{"a": 1.00}')$$, $$values ('replay', 1, '{"x": 1}'::jsonb)$$, 'it is the checkpoint');
select results_eq($$select outcome from tidebase.begin_step('r', 1, 's', '{"a": 1}', side_effects => '{mail}', replay => 'never', retries => 7)$$, $$values ('replay')$$, 'whatever contract is stated then');
select results_eq($$select outcome from tidebase.begin_step('r', 1, 's', '{"a": 1}', request_id => 'q')$$, $$values ('replay')$$, 'the call that began it finds it completed');
select throws_ok($$select tidebase.begin_step('r', 1, 's', '{"a": 2}')$$, 'TB006', null, 'but not for another input');
select throws_ok($$select tidebase.begin_step('r', 1, 's')$$, 'TB006', null, 'nor for none');
select throws_ok($$select tidebase.begin_step('r', 9, 's', '{"a": 1}')$$, 'TB003', null, 'nor for a stale token');
select throws_ok($$select tidebase.complete_step('r', 1, 'none')$$, 'TB007', null, 'what was not begun is not completed');
select throws_ok($$select tidebase.complete_step('r', 1, null)$$, 'TB007', null, 'nor what has no name');
select throws_ok($$select tidebase.fail_step('r', 1, 'none')$$, 'TB007', null, 'and does not fail');
select throws_ok($$select tidebase.fail_step('r', 1, null)$$, 'TB007', null, 'with a name or without');
select results_eq($$select status, completed_seq, completed_at >= started_at, duration >= '0' from tidebase.step_timeline where run_id = 'r' and name = 's'$$,
  $$values ('completed', 4::bigint, true, true)$$, 'a completed step is seen');
select is((select steps_completed from tidebase.run_overview where run_id = 'r'), 1, 'one checkpoint is counted');
select results_eq($$select type, payload from tidebase.read_events('r', 2)$$,
  $$values ('step.started', '{"name": "s", "attempt": 1, "token": 1}'::jsonb), ('step.completed', '{"name": "s", "attempt": 1}')$$, 'and its two events are all there are');
select ok(pg_temp.dense('r'), 'no number is lost by all that');

-- checkpoints
select tidebase.begin_step('r', 1, 'nothing', request_id => 'n');
select pg_temp.same_again($$select tidebase.complete_step('r', 1, 'nothing')$$, 'a step may have no result');
select is(tidebase.complete_step('r', 1, 'nothing', 'null'), 6::bigint, 'which is the JSON null');
select is((tidebase.begin_step('r', 1, 'nothing', 'null')).outcome, 'replay', 'no input is the JSON null, too');
select tidebase.begin_step('r', 1, 'unfinished');
select results_eq($$select name, input_hash, output from tidebase.load_checkpoints('r') order by name$$,
  $$values ('nothing', tidebase_private.hash_input(null), 'null'::jsonb), ('s', tidebase_private.hash_input('{"a": 1}'), '{"x": 1}')$$, 'the checkpoints are loaded at once, and only those');
select is((select count(*) from tidebase.load_checkpoints('r')), (select steps_completed from tidebase.run_overview where run_id = 'r')::bigint, 'as many as are counted');
select pg_temp.leased('empty');
select is_empty($$select * from tidebase.load_checkpoints('empty')$$, 'a run may have none');
select throws_ok($$select tidebase.load_checkpoints('none')$$, 'TB001', null, 'but must exist');
select throws_ok($$select tidebase.load_checkpoints(null)$$, 'TB001', null, 'and have an id');
select results_eq($$select name, output from tidebase.load_checkpoints('r', unfinished => true) order by name$$,
  $$values ('nothing', 'null'::jsonb), ('s', '{"x": 1}'), ('unfinished', null)$$, 'those that were begun only are loaded, too, if that is wanted');
select pg_temp.leased('own');
select is((tidebase.begin_step('own', 1, 's', '{"a": 2}')).outcome, 'execute', 'another run''s step of that name is another step');

-- a step that is recorded without having been begun
select pg_temp.leased('c');
select results_eq($$select * from tidebase.record_step('c', 1, 's', '{"a": 1}', '{"x": 1}', '2 seconds')$$, $$values ('recorded', 1, null::jsonb)$$, 'a step may be recorded at once');
select pg_temp.same_again($$select tidebase.record_step('c', 1, 's', '{"a": 1.0}', '{"x": 2}')$$, 'again it is a replay, and writes nothing');
select results_eq($$select * from tidebase.record_step('c', 1, 's', '{"a": 1.0}', '{"x": 2}')$$, $$values ('replay', 1, '{"x": 1}'::jsonb)$$, 'of the checkpoint that stands');
select results_eq($$select outcome, output from tidebase.begin_step('c', 1, 's', '{"a": 1}')$$, $$values ('replay', '{"x": 1}'::jsonb)$$, 'as for one that is begun');
select throws_ok($$select tidebase.record_step('c', 1, 's', '{"a": 2}')$$, 'TB006', null, 'with another input it is another step');
select results_eq($$select status, attempt, lease_token, completed_seq, output, duration between '2 seconds' and '3 seconds' from tidebase.step_timeline where run_id = 'c'$$,
  $$values ('completed', 1, 1::bigint, 3::bigint, '{"x": 1}'::jsonb, true)$$, 'it is seen as a step that took its time');
select results_eq($$select type, payload from tidebase.read_events('c', 2)$$, $$values ('step.completed', '{"name": "s", "attempt": 1}'::jsonb)$$, 'in the log it has one event');
select is((select steps_completed from tidebase.run_overview where run_id = 'c'), 1, 'it is counted once');
select results_eq($$select name, output from tidebase.load_checkpoints('c')$$, $$values ('s', '{"x": 1}'::jsonb)$$, 'and is a checkpoint like any other');
select results_eq($$select outcome from tidebase.record_step('c', 1, 'nothing')$$, $$values ('recorded')$$, 'it need not have an input, or an output');
select is((select output from tidebase.steps where run_id = 'c' and name = 'nothing'), 'null', 'which is the JSON null');
select throws_ok(format($$select tidebase.record_step('c', 1, %L)$$, name), 'TB002', null, format('a step is not called %L', name)) from unnest(array['', ' ', null, repeat('x', 1025)]) name;
select throws_ok(format($$select tidebase.record_step('c', 1, 'd', duration => %L)$$, time), 'TB002', null, format('nor takes it %L', time)) from unnest(array['-1 second', '366 days', 'infinity']::text[]) time where time <> 'infinity' or current_setting('server_version_num')::integer >= 170000;
select tidebase.begin_step('c', 1, 'begun');
select throws_ok($$select tidebase.record_step('c', 1, 'begun')$$, 'TB007', null, 'one that was begun under this lease has to be completed');
select is((select steps_completed from tidebase.run_overview where run_id = 'c'), 2, 'and is not counted');
select tidebase.fail_step('c', 1, 'begun', '"no"');
select results_eq($$select outcome, attempt from tidebase.record_step('c', 1, 'begun', output => '1')$$, $$values ('recorded', 2)$$, 'one that failed may be recorded');
select results_eq($$select status, error, decision from tidebase.steps where run_id = 'c' and name = 'begun'$$, $$values ('completed', null::jsonb, null::text)$$, 'and has not failed then');
select tidebase.begin_step('c', 1, 'left', side_effects => '{mail}');
select tidebase.begin_step('c', 1, 'harmless');
select pg_temp.lapse('c');
select tidebase.acquire_run('c', 'v');
select throws_ok($$select tidebase.record_step('c', 1, 'z')$$, 'TB003', null, 'a zombie records nothing');
select results_eq($$select outcome, attempt from tidebase.record_step('c', 2, 'harmless')$$, $$values ('recorded', 2)$$, 'one that an earlier lease left unfinished may be recorded');
select results_eq($$select outcome from tidebase.record_step('c', 2, 'left')$$, $$values ('review')$$, 'unless it may have taken effect: then a person has to look');
select is((select status from tidebase.run_overview where run_id = 'c'), 'review', 'and the run waits for that');
select is((select steps_completed from tidebase.run_overview where run_id = 'c'), 4, 'it is not counted either');

-- several that are recorded in one call
select pg_temp.leased(run) from unnest(array['side', 'alone']) run;
create temp table given (steps jsonb);
insert into given values ('[{"name": "a", "input": {"n": 1.50}, "output": {"x": 1}, "duration": 2, "log_start": true},
  {"name": "b"}, {"name": "c", "input": null, "output": null, "log_start": true}]');
select results_eq($$select * from tidebase.record_steps('side', 1, (select steps from given))$$,
  $$select 'recorded', 1, null::jsonb from generate_series(1, 3)$$, 'several may be recorded at once');
select tidebase.record_step('alone', 1, step ->> 'name', step -> 'input', step -> 'output', (step ->> 'duration')::float8 * interval '1 second',
  coalesce((step ->> 'log_start')::boolean, false)) from (select jsonb_array_elements(steps) step from given) s;
select results_eq($$select seq, type, payload from tidebase.read_events('side')$$, $$select seq, type, payload from tidebase.read_events('alone')$$, 'the log has what as many calls write');
prepare stored(text) as select name, lease_token, attempt, tries, status, input_hash, input, output, completed_seq, request_id from tidebase.steps where run_id = $1 order by completed_seq;
select results_eq($$execute stored('side')$$, $$execute stored('alone')$$, 'and so has the table of steps');
select results_eq($$select last_seq, durable_seq, steps_completed from tidebase.run_heads where run_id = 'side'$$, $$select last_seq, durable_seq, steps_completed from tidebase.run_heads where run_id = 'alone'$$, 'and the head');
select pg_temp.same_again($$select tidebase.record_steps('side', 1, '[{"name": "b"}, {"name": "a", "input": {"n": 1.5}, "output": 2}]')$$, 'again they are replays, and nothing is written');
select results_eq($$select * from tidebase.record_steps('side', 1, '[{"name": "a", "input": {"n": 1.5}}, {"name": "d"}, {"name": "d", "output": 7}, {"name": "e"}]')$$,
  $$values ('replay', 1, '{"x": 1}'::jsonb), ('recorded', 1, null), ('replay', 1, 'null'), ('recorded', 1, null)$$, 'some may be new, or the same as others');
select throws_ok($$select tidebase.record_steps('side', 1, '[{"name": "f"}, {"name": "a", "input": 2}]')$$, 'TB006', null, 'one that is refused refuses all');
select throws_ok($$select tidebase.record_steps('side', 1, '[{"name": "f"}, {"name": " "}]')$$, 'TB002', null, 'a name is one, also there');
select throws_ok($$select tidebase.record_steps('side', 1, '[{"name": "f", "duration": 31536001}]')$$, 'TB002', null, 'and so is a time');
select is((select count(*) from tidebase.steps where run_id = 'side'), 5::bigint, 'then nothing is stored');
select throws_ok(format($$select tidebase.record_steps('side', 1, %L)$$, wrong), 'TB002', null, format('steps are not %s', wrong)) from unnest(array[null, '1', '{}', '[]', '[1]', '[{}]', '[{"name": 1}]',
  '[{"name": "x", "duration": "1"}]', '[{"name": "x", "log_start": 1}]']) wrong;
select throws_ok(format($$select tidebase.record_steps('side', 1, %L)$$, (select jsonb_agg(jsonb_build_object('name', n::text)) from generate_series(1, 1001) n)), 'TB002', null, 'nor more than a thousand');
select pg_temp.leased(run) from unnest(array['overdue', 'spent', 'side 2', 'side 3']) run;
update tidebase.run_heads set deadline_at = clock_timestamp() - interval '1 second' where run_id = 'overdue';
select throws_ok($$select tidebase.record_steps('overdue', 1, '[{"name": "f"}, {"name": "g"}]')$$, 'TB004', null, 'nothing new is recorded after the deadline');
select tidebase.set_budget('spent', tokens => 1);
select tidebase.record_usage('spent', 1, input_tokens => 2);
select throws_ok($$select tidebase.record_steps('spent', 1, '[{"name": "f"}, {"name": "g"}]')$$, 'TB010', null, 'nor when the budget is used up');
select is(tidebase.record_steps_of_runs(jsonb_build_array(
    jsonb_build_object('run_id', 'side 3', 'token', 1, 'steps', steps), jsonb_build_object('run_id', 'side 2', 'token', 1, 'steps', steps),
    jsonb_build_object('run_id', 'side 3', 'token', 1, 'steps', steps), jsonb_build_object('run_id', 'side', 'token', 2, 'steps', '[{"name": "z"}]'::jsonb),
    jsonb_build_object('run_id', 'side', 'token', 1.5, 'steps', '[{"name": "z"}]'::jsonb), jsonb_build_object('run_id', 'none', 'token', 1, 'steps', steps),
    jsonb_build_object('run_id', 'overdue', 'token', 1, 'steps', steps), jsonb_build_object('run_id', 'spent', 'token', 1, 'steps', steps))),
  '{t,t,f,f,f,f,f,f}', 'those of several runs are recorded, or left alone') from given;
select results_eq($$select seq, type, payload from tidebase.read_events('alone')$$, format($$select seq, type, payload from tidebase.read_events(%L)$$, run), 'as by record_step') from unnest(array['side 2', 'side 3']) run;
select is((select count(*) from tidebase.steps where run_id in ('overdue', 'spent') or name = 'z'), 0::bigint, 'nothing of the others is stored');
select throws_ok(format($$select tidebase.record_steps_of_runs(%L)$$, wrong), 'TB002', null, format('runs are not %s', wrong)) from unnest(array[null, '1', '[]', '[1]', '[{"run_id": "side"}]',
  '[{"run_id": "side", "token": 1, "steps": []}]', '[{"run_id": "side", "token": "1", "steps": [{"name": "x"}]}]']) wrong;

-- as if it had been begun
select pg_temp.leased('l');
select results_eq($$select outcome, attempt from tidebase.record_step('l', 1, 's', output => '1', log_start => true)$$, $$values ('recorded', 1)$$, 'it may be logged as if it had been begun');
select results_eq($$select type, payload from tidebase.read_events('l', 2)$$,
  $$values ('step.started', '{"name": "s", "token": 1, "attempt": 1}'::jsonb), ('step.completed', '{"name": "s", "attempt": 1}')$$, 'with its start before its end');
select is((select completed_seq from tidebase.steps where run_id = 'l'), 4::bigint, 'the end is its number');
select pg_temp.same_again($$select tidebase.record_step('l', 1, 's', output => '2', log_start => true)$$, 'again it is a replay, and takes no number');
select throws_ok($$select tidebase.record_step('l', 1, 's', '1', log_start => true)$$, 'TB006', null, 'nor with another input');
select tidebase.begin_step('l', 1, 'mail', side_effects => '{mail}');
select pg_temp.lapse('l');
select tidebase.acquire_run('l', 'v');
select results_eq($$select outcome from tidebase.record_step('l', 2, 'mail', log_start => true)$$, $$values ('review')$$, 'what may have taken effect is reviewed');
select ok(pg_temp.dense('l'), 'no number is lost by that');
select ok(pg_temp.dense('c'), 'no number is lost by all that');
select tidebase.create_run('wf', run_id => 'poor', budget => '{"tokens": 1}');
select tidebase.acquire_run('poor', 'w');
select tidebase.record_usage('poor', 1, input_tokens => 1);
select throws_ok($$select tidebase.record_step('poor', 1, 's')$$, 'TB010', null, 'a budget that is used up holds for it, too');
select is_empty($$select from tidebase.steps where run_id = 'poor'$$, 'nothing is stored then');

-- under another lease
select pg_temp.leased('t');
select tidebase.begin_step('t', 1, 'done', '1');
select tidebase.complete_step('t', 1, 'done', '"first"');
select tidebase.begin_step('t', 1, 'half', '1', request_id => 'q');
select pg_temp.take_over('t');
select throws_ok($$select tidebase.complete_step('t', 1, 'half', '"late"')$$, 'TB003', null, 'who lost the lease does not complete the step');
select throws_ok($$select tidebase.complete_step('t', 2, 'half', '"early"')$$, 'TB007', null, 'who took over begins it first');
select throws_ok($$select tidebase.fail_step('t', 2, 'half')$$, 'TB007', null, 'also to fail it');
select throws_ok($$select tidebase.complete_step('t', 2, 'done', '"first"')$$, 'TB007', null, 'and does not complete what was completed before');
select throws_ok($$select tidebase.begin_step('t', 2, 'half', '2')$$, 'TB006', null, 'the input of a half-done step is that of its beginning');
select results_eq($$select outcome, attempt, output from tidebase.begin_step('t', 2, 'half', '1', request_id => 'q2')$$, $$values ('execute', 2, null::jsonb)$$, 'a half-done step is executed again');
select is((select tries from tidebase.steps where run_id = 't' and name = 'half'), 1, 'with retries that count from the beginning');
select results_eq($$select outcome, output from tidebase.begin_step('t', 2, 'done', '1')$$, $$values ('replay', '"first"'::jsonb)$$, 'a completed one replays');
select throws_ok($$select tidebase.begin_step('t', 2, 'done', '2')$$, 'TB006', null, 'for its input only');
select tidebase.complete_step('t', 2, 'half', '"second"');
select is((select output from tidebase.load_checkpoints('t') where name = 'half'), '"second"'::jsonb, 'the checkpoint is of who held the lease');

-- failure and retries
select pg_temp.leased('e');
select tidebase.begin_step('e', 1, 'f', retries => 1, retry_delay => '10 s', retry_max_delay => '1 min');
select pg_temp.same_again($$select decision, attempt from tidebase.fail_step('e', 1, 'f', '{"message": "no"}')$$, 'a step fails, once or twice');
select results_eq($$select decision, retry_after between '4 s' and '10 s', attempt from tidebase.fail_step('e', 1, 'f', '{"message": "no"}')$$,
  $$values ('auto_retry', true, 1)$$, 'it is retried after a while');
select results_eq($$select type, payload - 'retry_after', (payload ->> 'retry_after')::numeric between 5 and 10 from tidebase.read_events('e', 3)$$,
  $$values ('step.failed', '{"name": "f", "attempt": 1, "error": {"message": "no"}, "decision": "auto_retry"}'::jsonb, true)$$, 'the log tells when, and why it failed');
select results_eq($$select status, error, decision, retry_at between clock_timestamp() and clock_timestamp() + '10 s' from tidebase.step_timeline where run_id = 'e' and name = 'f'$$,
  $$values ('failed', '{"message": "no"}'::jsonb, 'auto_retry', true)$$, 'the timeline, too');
update tidebase.steps set retry_at = clock_timestamp() - interval '1 min' where run_id = 'e' and name = 'f';
select is((tidebase.fail_step('e', 1, 'f')).retry_after, '0', 'a delay that is over is none');
select throws_ok($$select tidebase.complete_step('e', 1, 'f')$$, 'TB007', null, 'what failed does not complete');
select throws_ok($$select tidebase.begin_step('e', 1, 'f', '1')$$, 'TB006', null, 'another input is refused after a failure, too');
select results_eq($$select outcome, attempt from tidebase.begin_step('e', 1, 'f', retries => 1)$$, $$values ('execute', 2)$$, 'it is begun again');
select results_eq($$select error, decision, retry_at from tidebase.step_timeline where run_id = 'e' and name = 'f'$$, $$values (null::jsonb, null::text, null::timestamptz)$$, 'and its failure is past');
select results_eq($$select decision, retry_after, attempt from tidebase.fail_step('e', 1, 'f')$$, $$values ('safe_replay', null::interval, 2)$$, 'until the retries are used up');
select is((select payload -> 'error' from tidebase.read_events('e', 5)), 'null', 'an error may be none');
select results_eq($$select outcome, attempt from tidebase.begin_step('e', 1, 'f', retries => 1)$$, $$values ('execute', 3)$$, 'who insists may execute it again');
select tidebase.fail_step('e', 1, 'f');
select is(pg_temp.take_over('e'), 2::bigint, 'under another lease');
select throws_ok($$select tidebase.fail_step('e', 2, 'f')$$, 'TB007', null, 'it has not failed yet');
select results_eq($$select outcome, attempt from tidebase.begin_step('e', 2, 'f', retries => 1)$$, $$values ('execute', 4)$$, 'it is executed again');
select is((tidebase.fail_step('e', 2, 'f')).decision, 'auto_retry', 'with retries of its own');
select tidebase.begin_step('e', 2, 'f2', retries => 5);
select is((tidebase.fail_step('e', 2, 'f2', retryable => false)).decision, 'safe_replay', 'an error that is not worth it is not retried');
select tidebase.begin_step('e', 2, 'f3', retries => 5);
select is((tidebase.fail_step('e', 2, 'f3', retryable => null)).decision, 'auto_retry', 'who does not say gets a retry');
select tidebase.begin_step('e', 2, 'hard', replay => 'never');
select pg_temp.same_again($$select tidebase.fail_step('e', 2, 'hard')$$, 'a step that must not be replayed fails for good');
select throws_ok($$select tidebase.begin_step('e', 2, 'hard', replay => 'never')$$, 'TB007', null, 'and is not begun again');
select throws_ok($$select tidebase.begin_step('e', 2, 'hard', replay => 'auto')$$, 'TB007', null, 'not with a softer contract either');
select is(pg_temp.take_over('e'), 3::bigint, 'nor under another lease');
select throws_ok($$select tidebase.begin_step('e', 3, 'hard', replay => 'never')$$, 'TB007', null, 'where it stays failed');
select ok(pg_temp.dense('e'), 'the log of the failures has no gap');

-- backoff: exponential, half of it kept, half of it random, capped
create temp table delays as
  select n, tidebase_private.retry_delay(n, '1 s', '1 min') as delay, least(2 ^ (n - 1), 60) as whole from generate_series(1, 12) n, generate_series(1, 200);
select is((select count(*) from delays where delay not between make_interval(secs => whole / 2) and make_interval(secs => whole)), 0::bigint, 'a delay is between half and whole of the exponential one, up to the cap');
select ok((select bool_and(spread) from (select max(delay) - min(delay) > make_interval(secs => whole / 4) as spread from delays group by n, whole) s), 'and falls anywhere between');
select ok(tidebase_private.retry_delay(tries, null, null) between half and half * 2, format('unless told, try %s waits about %s', tries, half * 1.5))
from (values (1, interval '0.5 s'), (2, '1 s'), (5, '8 s'), (20, '2.5 min')) as v (tries, half);
select is(tidebase_private.retry_delay(7, '0', '1 min'), '0', 'no delay is no delay');
select is(tidebase_private.retry_delay(7, '1 s', '0'), '0', 'a cap of nothing caps to nothing');
select ok(tidebase_private.retry_delay(tries, '1 day', '30 days') between '15 days' and '30 days', format('after %s tries the cap still holds', tries)) from unnest(array[20, 1000, 2147483647]) tries;

-- The table of the resume contract, row by row: what is written outside, replay, and whether a retry is left.
create temp table contract (outside text, replay text, left_over text, decision text);
insert into contract values
  ('nothing',     null,     'left', 'auto_retry'),    ('nothing',     null,     'used', 'safe_replay'),   ('nothing',     null,     'barred', 'safe_replay'),
  ('nothing',     'auto',   'left', 'auto_retry'),    ('nothing',     'auto',   'used', 'safe_replay'),   ('nothing',     'auto',   'barred', 'safe_replay'),
  ('nothing',     'manual', 'left', 'auto_retry'),    ('nothing',     'manual', 'used', 'manual_review'), ('nothing',     'manual', 'barred', 'manual_review'),
  ('nothing',     'never',  'left', 'auto_retry'),    ('nothing',     'never',  'used', 'fail_hard'),     ('nothing',     'never',  'barred', 'fail_hard'),
  ('with key',    null,     'left', 'auto_retry'),    ('with key',    null,     'used', 'safe_replay'),   ('with key',    null,     'barred', 'safe_replay'),
  ('with key',    'auto',   'left', 'auto_retry'),    ('with key',    'auto',   'used', 'safe_replay'),   ('with key',    'auto',   'barred', 'safe_replay'),
  ('with key',    'manual', 'left', 'auto_retry'),    ('with key',    'manual', 'used', 'manual_review'), ('with key',    'manual', 'barred', 'manual_review'),
  ('with key',    'never',  'left', 'auto_retry'),    ('with key',    'never',  'used', 'fail_hard'),     ('with key',    'never',  'barred', 'fail_hard'),
  ('without key', null,     'left', 'manual_review'), ('without key', null,     'used', 'manual_review'), ('without key', null,     'barred', 'manual_review'),
  ('without key', 'auto',   'left', 'manual_review'), ('without key', 'auto',   'used', 'manual_review'), ('without key', 'auto',   'barred', 'manual_review'),
  ('without key', 'manual', 'left', 'manual_review'), ('without key', 'manual', 'used', 'manual_review'), ('without key', 'manual', 'barred', 'manual_review'),
  ('without key', 'never',  'left', 'fail_hard'),     ('without key', 'never',  'used', 'fail_hard'),     ('without key', 'never',  'barred', 'fail_hard');
-- Each word of it stands for several ways to say it.
create temp table outsides (outside text, effects text[], key text);
insert into outsides values
  ('nothing', null, null), ('nothing', '{}', null), ('nothing', '{read}', null), ('nothing', '{read,read}', null), ('nothing', '{read}', 'k'), ('nothing', null, 'k'),
  ('with key', '{mail}', 'k'), ('with key', '{read,mail}', 'k'),
  ('without key', '{mail}', null), ('without key', '{read,mail}', null), ('without key', '{READ}', null), ('without key', '{"read "}', null);
create temp table leftovers (left_over text, tries integer, retries integer, may_retry boolean);
insert into leftovers values
  ('left', 1, 1, true), ('left', 3, 7, true), ('left', 1000, 1000, true),
  ('used', 1, 0, true), ('used', 1, null, true), ('used', 2, 1, true), ('used', 8, 7, true),
  ('barred', 1, 1, false), ('barred', 1, 0, false), ('barred', 1, 1000, false);
create temp table decided as select * from contract natural join outsides natural join leftovers;
select is(tidebase_private.decide_replay(jsonb_populate_record(null::tidebase.steps, jsonb_build_object('tries', d.tries, 'retries', d.retries,
    'side_effects', d.effects, 'idempotency_key', d.key, 'replay', d.replay)), d.may_retry), d.decision,
  format('side effects %s, key %s, replay %s, try %s of 1 + %s, may retry %s: %s', d.effects, d.key, d.replay, d.tries, d.retries, d.may_retry, d.decision)) from decided d;
select is(tidebase_private.writes_outside(effects), outside <> 'nothing', format('%s writes %s', effects, outside)) from outsides;

-- Each row of it at a crash: a step that was begun under a former lease, found by the next.
create function pg_temp.at_crash(effects text[], key text, replay text) returns text language plpgsql as $$
declare
  id text := tidebase.create_run('crash');
  answer text;
begin
  perform tidebase.acquire_run(id, 'w');
  perform tidebase.begin_step(id, 1, 's', null, effects, key, replay, retries => 5);
  perform pg_temp.take_over(id);
  select outcome into answer from tidebase.begin_step(id, 2, 's', null, effects, key, replay, retries => 5);
  return format('%s, run %s, step %s, dense %s', answer, pg_temp.status(id), (select status from tidebase.step_timeline where run_id = id), pg_temp.dense(id));
end
$$;
select is(pg_temp.at_crash(o.effects, o.key, c.replay),
  case c.decision when 'safe_replay' then 'execute, run running, step running, dense t' else 'review, run review, step review, dense t' end,
  format('after a crash: side effects %s, key %s, replay %s', o.effects, o.key, c.replay))
from contract c natural join outsides o where c.left_over = 'barred';

-- And at an error.
create function pg_temp.at_error(effects text[], key text, replay text, retries integer, may_retry boolean) returns text language plpgsql as $$
declare
  id text := tidebase.create_run('error');
  answer text;
begin
  perform tidebase.acquire_run(id, 'w');
  perform tidebase.begin_step(id, 1, 's', null, effects, key, replay, retries => at_error.retries);
  select decision into answer from tidebase.fail_step(id, 1, 's', retryable => may_retry);
  return format('%s, run %s, step %s, dense %s', answer, pg_temp.status(id), (select status from tidebase.step_timeline where run_id = id), pg_temp.dense(id));
end
$$;
select is(pg_temp.at_error(d.effects, d.key, d.replay, d.retries, d.may_retry),
  format('%s, run running, step %s, dense t', d.decision, case d.decision when 'manual_review' then 'review' else 'failed' end),
  format('after an error: side effects %s, key %s, replay %s, retries %s, may retry %s', d.effects, d.key, d.replay, d.retries, d.may_retry))
from decided d where d.tries = 1;

-- A crash while a retry was due is no other crash; and what the step was begun with counts, not what the resumed worker says.
select pg_temp.leased('x');
select tidebase.begin_step('x', 1, 'pay', side_effects => '{card}');
select pg_temp.take_over('x');
select is((tidebase.begin_step('x', 2, 'pay', side_effects => '{read}', idempotency_key => 'k')).outcome, 'review', 'a contract is not softened after the fact');

-- reviews
select pg_temp.leased('v');
select tidebase.begin_step('v', 1, 'pay', '{"eur": 5}', side_effects => '{card}', verified_by => 'the bank', checkpoint_invariant => 'paid once');
select pg_temp.take_over('v');
select results_eq($$select outcome, attempt, output from tidebase.begin_step('v', 2, 'pay', '{"eur": 5}', request_id => 'q')$$, $$values ('review', 1, null::jsonb)$$, 'what may have taken effect is not repeated');
select is((select array_agg(type order by seq) from tidebase.read_events('v', 4)), '{step.review,run.review}', 'the log tells');
select is((select outcome from tidebase.run_attempts where run_id = 'v' and attempt = 2), 'released', 'the lease is given up');
select throws_ok($$select tidebase.begin_step('v', 2, 'pay', '{"eur": 5}', request_id => 'q')$$, 'TB003', null, 'so the call repeated is told that, too');
select results_eq($$select outcome, token from tidebase.acquire_run('v', 'w')$$, $$values ('review', null::bigint)$$, 'nobody works on the run meanwhile');
select throws_ok($$select tidebase.complete_step('v', 2, 'pay')$$, 'TB007', null, 'not even who found it');
select results_eq($$select workflow, step, attempt, cause, side_effects, verified_by, checkpoint_invariant, input from tidebase.review_inbox where run_id = 'v'$$,
  $$values ('wf', 'pay', 1, 'crash', '{card}'::text[], 'the bank', 'paid once', '{"eur": 5}'::jsonb)$$, 'a person is asked, and told how to find out');
select throws_ok(format($$select tidebase.resolve_review('v', 'pay', %L)$$, decision), 'TB002', null, format('%L is no answer', decision)) from unnest(array['maybe', '', null, 'RETRY']) decision;
select throws_ok($$select tidebase.resolve_review('v', 'pay', 'retry', request_id => '')$$, 'TB002', null, 'a request has an id that is not blank');
select throws_ok($$select tidebase.resolve_review('none', 'pay', 'retry')$$, 'TB001', null, 'nor is there one about an unknown run');
select throws_ok(format($$select tidebase.resolve_review('v', %L, 'retry')$$, step), 'TB008', null, format('nor about %L', step)) from unnest(array['other', '', null]) step;
select results_eq($$select seq from tidebase.resolve_review('v', 'pay', 'retry', actor => 'ada', reason => 'not at the bank', request_id => 'r1') seq$$, $$values (7::bigint)$$, 'retry');
select is((select payload from tidebase.read_events('v', 6)), '{"name": "pay", "attempt": 1, "decision": "retry", "actor": "ada", "reason": "not at the bank"}', 'is written down');
select throws_ok(format($$select tidebase.resolve_review('v', 'pay', %L, '1')$$, decision), 'TB008', null, decision || ' comes too late then') from unnest(array['retry', 'accept', 'fail']) decision;
select results_eq($$select decision, actor, reason, resolved_at is not null from tidebase.reviews where run_id = 'v'$$, $$values ('retry', 'ada', 'not at the bank', true)$$, 'the first decision stands');
select is_empty($$select * from tidebase.review_inbox where run_id = 'v'$$, 'nobody is asked any more');
select is((tidebase.acquire_run('v', 'w')).token, 3::bigint, 'the run may go on');
select results_eq($$select outcome, attempt from tidebase.begin_step('v', 3, 'pay', '{"eur": 5}', side_effects => '{card}')$$, $$values ('execute', 2)$$, 'and the step is executed again');
select is((tidebase.fail_step('v', 3, 'pay', '"lost"')).decision, 'manual_review', 'an error puts it into review, too');
select pg_temp.same_again($$select tidebase.fail_step('v', 3, 'pay', '"lost"')$$, 'once');
select pg_temp.same_again($$select tidebase.resolve_review('v', 'pay', 'retry', request_id => 'r1')$$, 'a decision whose answer was lost is not taken for one about the next review:');
select results_eq($$select attempt, cause, error from tidebase.review_inbox where run_id = 'v'$$, $$values (2, 'error', '"lost"'::jsonb)$$, 'which is another question');
select throws_ok($$select tidebase.complete_step('v', 3, 'pay')$$, 'TB007', null, 'a step in review does not complete by itself');
select is((tidebase.fail_run('v', 3, '"lost"')).status, 'review', 'the run that fails of it is in review');
select lives_ok($$select tidebase.resolve_review('v', 'pay', 'accept', '{"paid": true}')$$, 'accept');
select results_eq($$select outcome, checkpoints from tidebase.acquire_run('v', 'w')$$, $$values ('granted', 1)$$, 'makes a checkpoint');
select results_eq($$select outcome, output from tidebase.begin_step('v', 4, 'pay', '{"eur": 5}')$$, $$values ('replay', '{"paid": true}'::jsonb)$$, 'which replays');
select throws_ok($$select tidebase.begin_step('v', 4, 'pay', '{"eur": 6}')$$, 'TB006', null, 'for its input only');
select results_eq($$select name, output from tidebase.load_checkpoints('v')$$, $$values ('pay', '{"paid": true}'::jsonb)$$, 'and is loaded like any other');
select tidebase.begin_step('v', 4, 'mail', side_effects => '{mail}');
select tidebase.fail_step('v', 4, 'mail');
select is((tidebase.begin_step('v', 4, 'mail', side_effects => '{mail}')).outcome, 'review', 'a worker that goes on regardless is stopped at the step');
select is((select count(*) from tidebase.reviews where run_id = 'v' and step = 'mail'), 1::bigint, 'without a second question');
select is(pg_temp.status('v'), 'running', 'and may do whatever else there is to do');
select is((tidebase.fail_run('v', 4)).status, 'review', 'before it says that it is done');
select lives_ok($$select tidebase.resolve_review('v', 'mail', 'fail')$$, 'fail');
select results_eq($$select status, finished_at is not null from tidebase.run_overview where run_id = 'v'$$, $$values ('failed', true)$$, 'fails the run');
select is((select actor from tidebase.reviews where run_id = 'v' and step = 'mail'), session_user::text, 'who does not say who decides is the database role');
select tidebase.acquire_run('v', 'w');
select throws_ok($$select tidebase.begin_step('v', 5, 'mail', side_effects => '{mail}')$$, 'TB007', null, 'and the step is never executed again');
select tidebase.begin_step('v', 5, 'void', side_effects => '{mail}');
select tidebase.fail_step('v', 5, 'void');
select throws_ok($$select tidebase.resolve_review('v', 'void', 'accept')$$, 'TB002', null, 'what the step did must be said');
select tidebase.resolve_review('v', 'void', 'accept', 'null');
select is((select output from tidebase.load_checkpoints('v') where name = 'void'), 'null'::jsonb, 'nothing is the JSON null');
select is(pg_temp.status('v'), 'running', 'a decision that nobody waited for leaves the run to its worker');
select is((select steps_completed from tidebase.run_overview where run_id = 'v')::bigint, (select count(*) from tidebase.load_checkpoints('v')), 'the checkpoints are counted');
select ok(pg_temp.dense('v'), 'the log of all that has no gap');

-- two steps in review
select pg_temp.leased('two');
select tidebase.begin_step('two', 1, step, side_effects => '{mail}') from unnest(array['a', 'b']) step;
select tidebase.fail_step('two', 1, step) from unnest(array['a', 'b']) step;
select tidebase.fail_run('two', 1);
select tidebase.resolve_review('two', 'a', 'retry');
select is(pg_temp.status('two'), 'review', 'a run stays in review while a step is');
select tidebase.resolve_review('two', 'b', 'retry');
select is(pg_temp.status('two'), 'pending', 'then it may go on');
create function pg_temp.decided(a text, b text) returns text language plpgsql as $$
declare
  id text := tidebase.create_run('wf');
begin
  perform tidebase.acquire_run(id, 'w');
  perform tidebase.begin_step(id, 1, step, side_effects => '{mail}') from unnest(array['a', 'b']) step;
  perform tidebase.fail_step(id, 1, step) from unnest(array['a', 'b']) step;
  perform tidebase.fail_run(id, 1);
  perform tidebase.resolve_review(id, 'a', a, '1');
  perform tidebase.resolve_review(id, 'b', b, '1');
  return pg_temp.status(id) || case when (select finished_at from tidebase.get_run(id)) is null then '' else ' and finished' end;
end
$$;
select is(pg_temp.decided(a, b), case when 'fail' in (a, b) then 'failed and finished' else 'pending' end,
  format('two reviews, %s and %s: one that fails its step fails the run, whichever comes last', a, b))
from unnest(array['retry', 'accept', 'fail']) a, unnest(array['retry', 'accept', 'fail']) b;
select pg_temp.leased('cancelled');
select tidebase.begin_step('cancelled', 1, 's', side_effects => '{mail}');
select tidebase.fail_step('cancelled', 1, 's');
select tidebase.cancel_run('cancelled');
select throws_ok($$select tidebase.resolve_review('cancelled', 's', 'retry')$$, 'TB004', null, 'a review of a cancelled run is not decided');
select is_empty($$select * from tidebase.review_inbox where run_id = 'cancelled'$$, 'nor is anybody asked about it');

-- deadlines
select pg_temp.leased('late');
select tidebase.begin_step('late', 1, 'paid for');
update tidebase.run_heads set deadline_at = clock_timestamp() - interval '1 s' where run_id = 'late';
select throws_ok($$select tidebase.begin_step('late', 1, 's')$$, 'TB004', null, 'no step begins after the deadline');
select lives_ok($$select tidebase.complete_step('late', 1, 'paid for', '1')$$, 'but one that was begun before may complete');
select is((tidebase.begin_step('late', 1, 'paid for')).outcome, 'replay', 'and replay');

-- arguments
select pg_temp.leased('a');
select throws_ok('select tidebase.begin_step(''a'', 1, ' || arguments || ')', 'TB002', null, 'begin_step refuses ' || arguments) from unnest(array[
  'null', '''''', '''  ''', 'repeat(''x'', 1025)', 'repeat(''ä'', 513)', '''x'', retries => -1', '''x'', retries => 1001', '''x'', retries => 2147483647',
  '''x'', replay => ''sometimes''', '''x'', replay => ''''', '''x'', replay => ''AUTO''',
  '''x'', side_effects => array[null::text]', '''x'', side_effects => array[''mail'', null]', '''x'', side_effects => array['''']', '''x'', side_effects => array[''read'', '''']',
  '''x'', side_effects => ''{{a},{b}}''', '''x'', credentials => ''{{a},{b}}''',
  '''x'', credentials => array[null::text]', '''x'', credentials => array['''']',
  '''x'', idempotency_key => ''''', '''x'', checkpoint_invariant => ''''', '''x'', verified_by => ''''',
  '''x'', timeout => ''0''', '''x'', timeout => ''-1 s''', '''x'', timeout => ''366 days''', '''x'', timeout => ''100000 years''',
  '''x'', retry_delay => ''-1 s''', '''x'', retry_delay => ''2 days''', '''x'', retry_delay => ''1000 years''',
  '''x'', retry_max_delay => ''-1 s''', '''x'', retry_max_delay => ''31 days''', '''x'', retry_max_delay => ''100 years''']) arguments;
select is_empty($$select * from tidebase.steps where run_id = 'a'$$, 'and begins nothing');
select lives_ok('select tidebase.begin_step(''a'', 1, ' || arguments || ')', 'begin_step takes ' || arguments) from unnest(array[
  'repeat(''x'', 1024)', 'repeat(''ä'', 512)', '''x1'', retries => 0', '''x2'', retries => 1000', '''x3'', side_effects => ''{}''', '''x4'', credentials => ''{}''',
  '''x5'', timeout => ''1 ms''', '''x6'', timeout => ''365 days''', '''x7'', retry_delay => ''0''', '''x8'', retry_delay => ''1 day''', '''x9'', retry_max_delay => ''30 days''']) arguments;
select lives_ok($$select tidebase.begin_step('a', 1, 'x''; drop table tidebase.runs; --', '"'' or 1=1"', side_effects => '{"'';--"}')$$, 'SQL in a name is a name');
select lives_ok($$select tidebase.complete_step('a', 1, 'x''; drop table tidebase.runs; --', '"'' or 1=1"')$$, 'all the way');
select results_eq($$select name from tidebase.load_checkpoints('a')$$, $$values ('x''; drop table tidebase.runs; --')$$, 'and is kept as it is');
select columns_are('tidebase', 'step_timeline', '{run_id,name,status,attempt,lease_token,started_at,completed_at,duration,completed_seq,decision,retry_at,error,
  input,input_hash,output,side_effects,idempotency_key,replay,checkpoint_invariant,verified_by,credentials,retries,timeout,options,client_hash}', 'step_timeline has its columns');
select columns_are('tidebase', 'review_inbox', '{run_id,workflow,step,attempt,cause,opened_at,side_effects,verified_by,checkpoint_invariant,input,error,explanation}', 'review_inbox has its columns');
select tidebase.begin_step('a', 1, 'all', '1', '{a,b}', 'k', 'manual', 'i', 'v', credentials => '{c}', retries => 3, retry_delay => '1 s',
  retry_max_delay => '1 min', timeout => '1 min');
select results_eq($$select input, input_hash, side_effects, idempotency_key, replay, checkpoint_invariant, verified_by, credentials, retries, timeout from tidebase.step_timeline where run_id = 'a' and name = 'all'$$,
  $$values ('1'::jsonb, encode(sha256('1'), 'hex'), '{a,b}'::text[], 'k', 'manual', 'i', 'v', '{c}'::text[], 3, interval '1 min')$$, 'the contract is kept');
select results_eq($$select replay, retries from tidebase.step_timeline where run_id = 'a' and name = 'x3'$$, $$values ('auto', 0)$$, 'and shown with its defaults');
select tidebase.fail_step('a', 1, 'all');
select tidebase.begin_step('a', 1, 'all', '1', '{d}', 'k', 'auto', retries => 9);
select results_eq($$select side_effects, idempotency_key, replay, checkpoint_invariant, retries from tidebase.step_timeline where run_id = 'a' and name = 'all'$$,
  $$values ('{d}'::text[], 'k', 'auto', null::text, 9)$$, 'a step that is begun again has the contract of that beginning');
select tidebase.create_run('wf', run_id => 'hurried', deadline => clock_timestamp() + interval '1 hour');
select tidebase.acquire_run('hurried', 'w');
select results_eq($$select outcome from tidebase.record_step('hurried', 1, 'in time')$$, $$values ('recorded')$$, 'a step may be recorded before the deadline');
update tidebase.run_heads set deadline_at = clock_timestamp() - interval '1 s' where run_id = 'hurried';
select throws_ok($$select tidebase.record_step('hurried', 1, 'too late')$$, 'TB004', null, 'none after it');
select results_eq($$select outcome, output from tidebase.record_step('hurried', 1, 'in time')$$, $$values ('replay', 'null'::jsonb)$$, 'but the same call again finds what it stored');
select throws_ok($$select tidebase.record_step('hurried', 1, 'in time', '1')$$, 'TB006', null, 'by its input');
select throws_ok($$select tidebase.begin_step('hurried', 1, 'too late')$$, 'TB004', null, 'or begun');
select throws_ok($$select tidebase.open_gate('hurried', 1, 'too late')$$, 'TB004', null, 'or asked about');

-- two contracts
create temp table contracts (n integer, side_effects text[], idempotency_key text, replay text, strict boolean);
insert into contracts values
  (1, null, null, null, false), (2, '{read}', null, 'auto', false), (3, '{card}', 'k', null, false), (4, '{card}', 'l', null, false),
  (5, '{card}', null, null, true), (6, null, null, 'never', true), (7, null, null, 'manual', true), (8, null, 'k', null, false);
create function pg_temp.begun_twice(a contracts, b contracts) returns text language plpgsql as $$
declare
  id text := format('contracts %s %s', a.n, b.n);
  token bigint := pg_temp.leased(id);
begin
  perform tidebase.begin_step(id, token, 's', side_effects => a.side_effects, idempotency_key => a.idempotency_key, replay => a.replay);
  token := pg_temp.take_over(id);
  return (tidebase.begin_step(id, token, 's', side_effects => b.side_effects, idempotency_key => b.idempotency_key, replay => b.replay)).outcome;
end $$;
select is(pg_temp.begun_twice(a, b),
  case when a.strict or b.strict or a.idempotency_key is distinct from b.idempotency_key then 'review' else 'execute' end,
  format('begun as %s, begun again as %s: the stricter of two contracts counts, and the key must be the same', a, b)) from contracts a, contracts b;
select results_eq($$select distinct i.cause, i.explanation from contracts a, contracts b, tidebase.review_inbox i
    where not a.strict and i.run_id = format('contracts %s %s', a.n, b.n) order by 2$$,
  $$values ('contract', 'it declares now that it must not be repeated'), ('contract', 'its idempotency key was another one')$$, 'the person is told what has changed');
select set_eq($$select i.cause, i.explanation from contracts a, contracts b, tidebase.review_inbox i
    where a.strict and i.run_id = format('contracts %s %s', a.n, b.n)$$, $$values ('crash', null::text)$$, 'or that nothing of it could be repeated');
select pg_temp.leased('retried');
select tidebase.begin_step('retried', 1, 's', side_effects => '{card}', idempotency_key => 'k', retries => 3, replay => 'never');
select is((tidebase.fail_step('retried', 1, 's')).decision, 'auto_retry', 'a failure is retried');
select is((tidebase.begin_step('retried', 1, 's', side_effects => '{card}', idempotency_key => 'k', retries => 3, replay => 'never')).outcome, 'execute', 'under the same key');
select tidebase.fail_step('retried', 1, 's');
select is((tidebase.begin_step('retried', 1, 's', side_effects => '{card}', idempotency_key => 'l', retries => 3, replay => 'never')).outcome, 'review', 'not under another one');
select tidebase.resolve_review('retried', 's', 'retry');
select is((tidebase.begin_step('retried', 1, 's', side_effects => '{card}', idempotency_key => 'm')).outcome, 'execute', 'unless a person has allowed it');
select is((tidebase.record_step('contracts 3 3', 2, 'plain')).outcome, 'recorded', 'a plain step is recorded');
select pg_temp.leased('keyed');
select tidebase.begin_step('keyed', 1, 's', side_effects => '{card}', idempotency_key => 'k');
select pg_temp.take_over('keyed');
select is((tidebase.record_step('keyed', 2, 's')).outcome, 'review', 'not in the place of one that had a key');

-- what was done when the lease was given up
create function pg_temp.given_up(id text, how text) returns bigint language plpgsql as $$
declare
  token bigint := pg_temp.leased(id);
begin
  perform tidebase.begin_step(id, token, s) from unnest(array['done', 'failed']) s;
  case how
    when 'released' then perform tidebase.release_run(id, token);
    when 'suspended' then perform tidebase.open_gate(id, token, 'g'), tidebase.suspend_run(id, token, 'g');
    when 'failed' then perform tidebase.fail_run(id, token);
    when 'in review' then
      perform tidebase.begin_step(id, token, 'pay', side_effects => '{card}'), tidebase.fail_step(id, token, 'pay'),
        tidebase.fail_run(id, token);
  end case;
  return token;
end $$;
create temp table ways as select how, pg_temp.given_up('was ' || how, how) as token from unnest(array['released', 'suspended', 'failed', 'in review']) how;
create temp table stati as select how, pg_temp.status('was ' || how) as status from ways;
select throws_ok(format('select tidebase.begin_step(%L, %s, ''new'')', 'was ' || how, token), 'TB003', null, 'nothing is begun under a lease that was ' || how) from ways;
select pg_temp.same_again(format('select tidebase.complete_step(%L, %s, ''done'', ''1'')', 'was ' || how, token), 'what was done when it was ' || how) from ways;
select is((tidebase.fail_step('was ' || how, token, 'failed')).decision, 'safe_replay', 'a failure, too: ' || how) from ways;
select is((tidebase.record_step('was ' || how, token, 'recorded')).outcome, 'recorded', 'and what was not begun: ' || how) from ways;
select is(pg_temp.status('was ' || how), status, 'the run stays as it is: ' || how) from stati;
select ok(pg_temp.dense('was ' || how), 'its log has no gap: ' || how) from ways;
select tidebase.acquire_run('was released', 'next');
select throws_ok($$select tidebase.record_step('was released', 1, 'late')$$, 'TB003', null, 'a newer lease ends that');

-- a run that was never leased has no token, not even the one that it begins with
select tidebase.create_run('wf', run_id => 'never leased');
select throws_ok(format($$select tidebase.%s('never leased', 0, 's')$$, call), 'TB003', null, call || ' needs a lease that was granted')
from unnest(array['record_step', 'complete_step', 'fail_step']) call;

-- a step that was to be retried, and then had to be decided about
select pg_temp.leased('in doubt');
select tidebase.begin_step('in doubt', 1, 's', retries => 1, retry_delay => '1 hour');
select is((tidebase.fail_step('in doubt', 1, 's')).decision, 'auto_retry', 'it is to be retried');
select is((tidebase.begin_step('in doubt', 1, 's', side_effects => '{card}')).outcome, 'review', 'with a stricter contract a person is asked');
select results_eq($$select decision, retry_after from tidebase.fail_step('in doubt', 1, 's')$$, $$values ('manual_review', null::interval)$$, 'and the failure told again has no retry any more');
-- In the words of the SDKs.
select pg_temp.leased('sdk');
select is((tidebase.begin_step_with('sdk', 1, 's', '1', 'h', '{"sideEffects": ["mail", ""], "idempotencyKey": "k", "replay": "manual", "retries": 2, "timeoutMs": 1500.5,
  "checkpointInvariant": {"rows": 3}, "verifiedBy": "eye", "credentials": ["db", {"name": "mail", "scopes": ["send"]}, {"reason": "none"}], "own": [1], "sideEffect": null}')).outcome,
  'execute', 'a step is begun');
select results_eq($$select side_effects, idempotency_key, replay, retries, timeout, checkpoint_invariant, verified_by, credentials, client_hash, options -> 'own'
    from tidebase.step_timeline where run_id = 'sdk'$$,
  $$values ('{mail}'::text[], 'k', 'manual', 2, interval '1.5005 seconds', '{"rows": 3}', 'eye', '{db,mail}'::text[], 'h', '[1]'::jsonb)$$, 'with its contract');
select tidebase.complete_step('sdk', 1, 's', '"out"');
select is((tidebase.begin_step_with('sdk', 1, 's', '2', 'h')).output, '"out"', 'the same hash is the same input');
select throws_ok($$select tidebase.begin_step_with('sdk', 1, 's', '1', 'i')$$, 'TB006', null, 'another hash is another one');
select is((tidebase.begin_step_with('sdk', 1, 's', '1')).output, '"out"', 'without a hash the input decides');
select is((tidebase.begin_step('sdk', 1, 's', '1')).output, '"out"', 'for begin_step, too');
select throws_ok($$select tidebase.begin_step('sdk', 1, 's', '2')$$, 'TB006', null, 'which knows no hash');
select tidebase.begin_step('sdk', 1, 'before', '{"input": 1, "inputHash": "old"}');
select tidebase.complete_step('sdk', 1, 'before');
select is((tidebase.begin_step_with('sdk', 1, 'before', '1', 'old')).outcome, 'replay', 'a hash that was kept with the input is found');
select throws_ok($$select tidebase.begin_step_with('sdk', 1, 'before', '1', 'new')$$, 'TB006', null, 'another one is another one');
select results_eq(
  $$select o, tidebase_private.side_effects_of(o::jsonb), tidebase_private.replay_of(o::jsonb)
    from unnest(array['{}', '{"sideEffect": "none"}', '{"sideEffect": "external"}', '{"sideEffects": [], "sideEffect": "write"}', '{"sideEffects": ["a"], "sideEffect": "write"}',
      '{"onAmbiguousFailure": "review"}', '{"onAmbiguousFailure": "fail"}', '{"replay": "auto", "onAmbiguousFailure": "fail"}']) o$$,
  $$values ('{}', null::text[], null), ('{"sideEffect": "none"}', null, null), ('{"sideEffect": "external"}', '{external}', null),
    ('{"sideEffects": [], "sideEffect": "write"}', '{write}', null), ('{"sideEffects": ["a"], "sideEffect": "write"}', '{a}', null),
    ('{"onAmbiguousFailure": "review"}', null, 'manual'), ('{"onAmbiguousFailure": "fail"}', null, 'never'),
    ('{"replay": "auto", "onAmbiguousFailure": "fail"}', null, 'auto')$$, 'what older clients say still counts');
select throws_ok(format('select tidebase.begin_step_with(''sdk'', 1, ''x'', options => %L)', o), 'TB002', null, o || ' is no contract')
from unnest(array['1', '[]', 'null', '{"sideEffects": "mail"}', '{"sideEffects": [1]}', '{"credentials": [1]}', '{"credentials": {}}', '{"idempotencyKey": 1}',
  '{"retries": -1}', '{"retries": 1.5}', '{"retries": "1"}', '{"retries": 1001}', '{"timeoutMs": 0}', '{"timeoutMs": 1e300}', '{"replay": "sometimes"}', '{"sideEffect": "x"}',
  '{"onAmbiguousFailure": "ask"}']) o;
select throws_ok($$select tidebase.begin_step_with('sdk', 1, 'x', input_hash => ' ')$$, 'TB002', null, 'a hash is not blank');
select tidebase.begin_step_with('sdk', 1, 'unsafe', options => '{"sideEffect": "external"}');
select is((tidebase.fail_step('sdk', 1, 'unsafe')).decision, 'manual_review', 'a legacy side effect is one');

select * from finish();
rollback;
