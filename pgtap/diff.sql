-- The comparison of two runs: what differs, and nothing else.
begin;
select no_plan();
\ir support/helpers.psql
create function pg_temp.made(id text, input jsonb default null) returns bigint language sql as $$
  select tidebase.create_run('wf', input, id);
  select token from tidebase.acquire_run(id, 'worker');
$$;
create function pg_temp.worked(id text, step text, output jsonb, input jsonb default null) returns bigint language sql as $$
  select tidebase.begin_step(id, 1, step, input);
  select tidebase.complete_step(id, 1, step, output);
$$;

-- alike
select pg_temp.made(id, '{"in": 1}') from unnest(array['r', 'twin']) id;
select is_empty($$select * from tidebase.diff_runs('r', 'twin')$$, 'two new runs with the same input are alike');
select tidebase.append_event('twin', 1, 'agent.note');
select pg_temp.worked(id, 'a', '{"x": 1}', '1'), tidebase.set_state(id, 1, '{"n": 1}'), tidebase.set_state(id, 1, '{"n": 2}'), tidebase.open_gate(id, 1, 'g', 'Publish?'), tidebase.open_gate(id, 1, 'open'),
  tidebase.decide_gate(id, 'g', 'approved', 'ada', '{"k": 1}') from unnest(array['r', 'twin']) id;
select is_empty($$select * from tidebase.diff_runs('r', 'twin')$$, 'two runs that did the same are alike, whatever their logs say');
select is_empty($$select * from tidebase.diff_runs('r', 'r')$$, 'a run is like itself');
select tidebase.fork_run('r', 'fork');
select is_empty($$select * from tidebase.diff_runs('r', 'fork')$$, 'and like its fork');
select is_empty($$select * from tidebase.diff_runs('fork', 'r')$$, 'either way round');
select is_empty($$select * from tidebase.diff_runs('fork', 'fork')$$, 'which is like itself');
select pg_temp.made('empty'), pg_temp.made('empty too');
select is_empty($$select * from tidebase.diff_runs('empty', 'empty too')$$, 'two that did nothing are alike');
select pg_temp.made('one', '{"n": [1.0]}'), pg_temp.made('1.0', '{"n": [1]}');
select pg_temp.worked('one', 'a', '1.0', '1'), pg_temp.worked('1.0', 'a', '1', '1.0'), tidebase.set_state('one', 1, '1.0'), tidebase.set_state('1.0', 1, '1'), tidebase.complete_run('one', 1, '[1.0]'), tidebase.complete_run('1.0', 1, '[1]');
select is_empty($$select * from tidebase.diff_runs('one', '1.0')$$, '1.0 is 1');

-- what is under way, or was on the way, is no difference
select tidebase.begin_step('r', 1, 'running', '1'), tidebase.begin_step('r', 1, 'failed', '1');
select tidebase.fail_step('r', 1, 'failed', '"no"');
select is_empty($$select * from tidebase.diff_runs('r', 'twin')$$, 'a step counts when it is completed');
select tidebase.open_gate('r', 1, 'another', 'Really?'), tidebase.start_timer('r', 1, 'timer', '1 hour');
select is_empty($$select * from tidebase.diff_runs('r', 'twin')$$, 'a gate when it is decided');
select tidebase.patch_state('r', 1, '{"n": 3}'), tidebase.restore_state('r', 1, 2), tidebase.save_state('r', 1, 'label');
select is_empty($$select * from tidebase.diff_runs('r', 'twin')$$, 'a state when it is the newest');

-- each kind, each difference
create function pg_temp.differs(one text, other text) returns table (kind text, name text, difference text, value text, other text) language sql as $$
  select kind, name, difference, value::text, other::text from tidebase.diff_runs($1, $2);
$$;
select pg_temp.made('in 1', '1'), pg_temp.made('in 2', '2'), pg_temp.made('in none'), pg_temp.made('in null', 'null');
select results_eq($$select * from tidebase.diff_runs('in 1', 'in 2')$$, $$values ('input', null::text, 'value', null::bigint, null::bigint, '1'::jsonb, '2'::jsonb)$$, 'inputs differ');
select results_eq($$select * from pg_temp.differs('in 1', 'in none')$$, $$values ('input', null::text, 'missing', '1', null::text)$$, 'or the other has none');
select results_eq($$select * from pg_temp.differs('in none', 'in 1')$$, $$values ('input', null::text, 'added', null::text, '1')$$, 'or only the other has one');
select results_eq($$select * from pg_temp.differs('in null', 'in none')$$, $$values ('input', null::text, 'missing', 'null', null::text)$$, 'the JSON null is an input');
select results_eq($$select * from pg_temp.differs('in null', 'in 1')$$, $$values ('input', null::text, 'value', 'null', '1')$$, 'that differs from others');

select pg_temp.made(id) from unnest(array['s1', 's2']) id;
select pg_temp.worked('s1', 'same', '1', '1'), pg_temp.worked('s1', 'other output', '"one"', '1'), pg_temp.worked('s1', 'other input', '1', '1'), pg_temp.worked('s1', 'both', '1', '1'), pg_temp.worked('s1', 'only here', '1', '1'),
  pg_temp.worked('s1', 'nothing', null);
select pg_temp.worked('s2', 'same', '1', '1'), pg_temp.worked('s2', 'only there', '2', '1'), pg_temp.worked('s2', 'other output', '"two"', '1'), pg_temp.worked('s2', 'other input', '1', '2'), pg_temp.worked('s2', 'both', '2', '2'),
  pg_temp.worked('s2', 'nothing', '0');
select set_eq($$select * from tidebase.diff_runs('s1', 's2')$$,
  $$values ('step', 'other output', 'value', 6::bigint, 8::bigint, '"one"'::jsonb, '"two"'::jsonb), ('step', 'other input', 'input', 8, 10, '1', '1'), ('step', 'both', 'input', 10, 12, '1', '2'),
    ('step', 'only here', 'missing', 12, null, '1', null), ('step', 'only there', 'added', null, 6, null, '2'), ('step', 'nothing', 'value', 14, 14, 'null', '0')$$,
  'steps differ in their output or input, or one has a step that the other has not');
select set_eq($$select name, difference, seq, other_seq, value, other from tidebase.diff_runs('s2', 's1')$$,
  $$select name, case difference when 'missing' then 'added' when 'added' then 'missing' else difference end, other_seq, seq, other, value from tidebase.diff_runs('s1', 's2')$$, 'the other way round everything is the other way round');

select pg_temp.made(id) from unnest(array['g1', 'g2']) id;
select tidebase.open_gate(id, 1, name, 'Publish ' || name) from unnest(array['g1', 'g2']) id, unnest(array['same', 'decision', 'payload', 'only here', 'only there', 'pending', 'actor']) name;
select tidebase.open_gate('g1', 1, 'not there'), tidebase.open_gate('g2', 1, 'not here');
select tidebase.decide_gate(id, 'same', 'approved', 'ada', '{"n": 1}') from unnest(array['g1', 'g2']) id;
select tidebase.decide_gate('g1', 'decision', 'approved'), tidebase.decide_gate('g2', 'decision', 'rejected');
select tidebase.decide_gate('g1', 'payload', 'approved', payload => '1'), tidebase.decide_gate('g2', 'payload', 'approved', payload => '2');
select tidebase.decide_gate('g1', 'actor', 'approved', 'ada', comment => 'fine'), tidebase.decide_gate('g2', 'actor', 'approved', 'bob');
select tidebase.decide_gate('g1', name, 'approved') from unnest(array['only here', 'not there']) name;
select tidebase.decide_gate('g2', name, 'rejected') from unnest(array['only there', 'not here']) name;
select tidebase.start_timer('g1', 1, 'timer', '1 hour'), tidebase.start_timer('g2', 1, 'timer', '1 hour');
update tidebase.gates set timeout_at = clock_timestamp() - interval '1 second' where run_id = 'g1' and name = 'timer';
select tidebase.get_gate('g1', 'timer');
select results_eq($$select * from tidebase.diff_runs('g1', 'g2') order by name collate "C"$$,
  $$values ('gate', 'decision', 'value', null::bigint, null::bigint, '{"decision": "approved", "payload": null}'::jsonb, '{"decision": "rejected", "payload": null}'::jsonb),
    ('gate', 'not here', 'added', null, null, null, '{"decision": "rejected", "payload": null}'),
    ('gate', 'not there', 'missing', null, null, '{"decision": "approved", "payload": null}', null),
    ('gate', 'only here', 'missing', null, null, '{"decision": "approved", "payload": null}', null),
    ('gate', 'only there', 'added', null, null, null, '{"decision": "rejected", "payload": null}'),
    ('gate', 'payload', 'value', null, null, '{"decision": "approved", "payload": 1}', '{"decision": "approved", "payload": 2}'),
    ('gate', 'timer', 'missing', null, null, '{"decision": "elapsed", "payload": null}', null)$$, 'decisions differ, and what was said with them; who decided does not matter');

select pg_temp.made(id) from unnest(array['v1', 'v2']) id;
select tidebase.set_state('v1', 1, '{"n": 1}'), tidebase.set_state('v1', 1, '"same"', 'same'), tidebase.set_state('v1', 1, '[1]', 'only here'), tidebase.create_snapshot('v1', 1, 'one', 'file', 'x', '1');
select tidebase.set_state('v2', 1, '"same"', 'same'), tidebase.set_state('v2', 1, '[2]', 'only there'), tidebase.create_snapshot('v2', 1, 'one', 'file', 'x', '2'), tidebase.set_state('v2', 1, '0'), tidebase.patch_state('v2', 1, '{"n": 2}');
select set_eq($$select * from tidebase.diff_runs('v1', 'v2')$$,
  $$values ('state', 'main', 'value', 3::bigint, 7::bigint, '{"n": 1}'::jsonb, '{"n": 2}'::jsonb), ('state', 'only here', 'missing', 5, null, '[1]', null), ('state', 'only there', 'added', null, 4, null, '[2]'),
    ('state', 'snapshot:["file", "x"]', 'value', 6, 5, '1', '2')$$, 'the newest states differ, or one has a stream that the other has not, be it of snapshots');
select tidebase.set_state('v1', 1, 'null', 'null');
select results_eq($$select * from pg_temp.differs('v1', 'v2') where name = 'null'$$, $$values ('state', 'null', 'missing', 'null', null::text)$$, 'the JSON null is a state');

select pg_temp.made(id) from unnest(array['done 1', 'done 2', 'done null', 'not done']) id;
select tidebase.complete_run('done 1', 1, '1'), tidebase.complete_run('done 2', 1, '2'), tidebase.complete_run('done null', 1);
select results_eq($$select * from tidebase.diff_runs('done 1', 'done 2')$$, $$values ('result', null::text, 'value', null::bigint, null::bigint, '1'::jsonb, '2'::jsonb)$$, 'results differ');
select results_eq($$select * from pg_temp.differs('done 1', 'not done')$$, $$values ('result', null::text, 'missing', '1', null::text)$$, 'or the other has none yet');
select results_eq($$select * from pg_temp.differs('not done', 'done 1')$$, $$values ('result', null::text, 'added', null::text, '1')$$, 'or only the other has one');
select results_eq($$select * from pg_temp.differs('not done', 'done null')$$, $$values ('result', null::text, 'added', null::text, 'null')$$, 'no result, that is the JSON null, is one');

-- the order
select pg_temp.made('o1', '1'), pg_temp.made('o2', '2');
select pg_temp.worked(id, 'shared', '0') from unnest(array['o1', 'o2']) id;                                                       -- 3, 4
select tidebase.set_state('o1', 1, '1', 'z'), tidebase.set_state('o2', 1, '2', 'z');                                                -- 5
select pg_temp.worked('o1', 'y', '1'), pg_temp.worked('o2', 'x', '2');                                                            -- 6, 7
select pg_temp.worked('o1', 'w', '1'), pg_temp.worked('o2', 'y', '2');                                                            -- 8, 9
select tidebase.open_gate(id, 1, name) from unnest(array['o1', 'o2']) id, unnest(array['h', 'g']) name;                            -- 10, 11
select tidebase.decide_gate('o1', name, 'approved'), tidebase.decide_gate('o2', name, 'rejected') from unnest(array['h', 'g']) name; -- 12, 13
select tidebase.set_state('o1', 1, '1', 'a');                                                                                     -- 14
select tidebase.complete_run('o1', 1, '1'), tidebase.complete_run('o2', 1, '2');
select results_eq($$select kind, name, seq, other_seq from tidebase.diff_runs('o1', 'o2')$$,
  $$values ('input', null::text, null::bigint, null::bigint), ('state', 'z', 5, 5), ('step', 'x', null, 7), ('step', 'y', 7, 9), ('step', 'w', 9, null), ('state', 'a', 14, null),
    ('gate', 'g', null, null), ('gate', 'h', null, null), ('result', null, null, null)$$, 'the input first, steps and states in the order of the log, then gates, the result last');

-- a fork and its source
select pg_temp.made('source', '{"in": 1}');
select pg_temp.worked('source', 'a', '1'), tidebase.set_state('source', 1, '{"n": 1}'), pg_temp.worked('source', 'b', '"good"'), tidebase.set_state('source', 1, '{"n": 2}');
select tidebase.fork_run('source', 'retry', through_step => 'a', input => '{"in": 2}');
select results_eq($$select * from pg_temp.differs('source', 'retry')$$,
  $$values ('input', null::text, 'value', '{"in": 1}', '{"in": 2}'), ('step', 'b', 'missing', '"good"', null), ('state', 'main', 'missing', '{"n": 2}', null)$$, 'a fork differs by what it did not take over');
select tidebase.acquire_run('retry', 'w');
select pg_temp.worked('retry', 'b', '"better"'), tidebase.set_state('retry', 1, '{"n": 2}');
select results_eq($$select kind, name, difference, value, other from tidebase.diff_runs('source', 'retry')$$,
  $$values ('input', null::text, 'value', '{"in": 1}'::jsonb, '{"in": 2}'::jsonb), ('step', 'b', 'value', '"good"', '"better"')$$, 'and then by what it did differently');

-- unknown runs
select throws_ok($$select tidebase.diff_runs('none', 'r')$$, 'TB001', null, 'an unknown run is like nothing');
select throws_ok($$select tidebase.diff_runs('r', 'none')$$, 'TB001', null, 'and nothing like it');
select throws_ok($$select tidebase.diff_runs('none', 'none')$$, 'TB001', null, 'not even itself');
select throws_ok($$select tidebase.diff_runs('r', null)$$, 'TB001', null, 'a run has an id');
select throws_ok($$select tidebase.diff_runs(null, 'r')$$, 'TB001', null, 'on either side');
select is((pg_temp.error_of($$select tidebase.diff_runs('r', 'none')$$)).detail::jsonb, '{"run_id": "none"}', 'the error says which is unknown');
select is((pg_temp.error_of($$select tidebase.diff_runs('no one', 'none')$$)).detail::jsonb, '{"run_id": "no one"}', 'the first of two');
select is((pg_temp.error_of($$select tidebase.diff_runs('none', null)$$)).detail::jsonb, '{"run_id": "none"}', 'also beside no id');

-- nothing comes of it
create temp table before as select pg_temp.picture() as everything;
select count(*) from tidebase.diff_runs('o1', 'o2');
select is(pg_temp.picture(), (select everything from before), 'comparing changes nothing');
select * from finish();
rollback;
