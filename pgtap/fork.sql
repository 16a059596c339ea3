-- Forks: a run that begins with what another one had, and leaves that one alone.
begin;
select no_plan();
\ir support/helpers.psql
create temp table before (everything jsonb);
insert into before values (null);

-- Everything that is stored of one run, but for the edges that lead to its forks.
create function pg_temp.picture_of(id text) returns jsonb language plpgsql as $$
declare
  tab regclass;
  content jsonb;
  everything jsonb := '{}';
begin
  for tab in
    select c.oid from pg_class c join pg_attribute a on a.attrelid = c.oid and a.attname = 'run_id'
    where c.relnamespace = 'tidebase'::regnamespace and c.relkind = 'r' and c.relname <> 'edges'
  loop
    execute format('select jsonb_agg(to_jsonb(t) order by t::text) from %s t where t.run_id = %L', tab, id) into content;
    everything := everything || jsonb_build_object(tab, content);
  end loop;
  return everything;
end
$$;
create function pg_temp.secret(id text, gate text) returns text language sql as $$
  select tidebase_private.gate_secret(g) from tidebase.gates g where g.run_id = id and g.name = gate;
$$;
insert into tidebase_private.settings values ('speakers', array[session_user]::text);
create function pg_temp.overdue(id text, gate text) returns void language sql as $$
  update tidebase.gates set timeout_at = clock_timestamp() - interval '1 second' where run_id = id and name = gate;
  select tidebase.get_gate(id, gate);
$$;
create function pg_temp.worked(id text, token bigint, step text, output jsonb) returns bigint language sql as $$
  select tidebase.begin_step(id, token, step, to_jsonb('of ' || step));
  select tidebase.complete_step(id, token, step, output);
$$;
-- What begin_step says to steps that are begun as worked() does.
create function pg_temp.replayed(id text, token bigint, variadic names text[]) returns text[] language sql as $$
  select array_agg((s.start).outcome || coalesce(' ' || ((s.start).output)::text, '') order by n)
  from (select tidebase.begin_step(id, token, name, to_jsonb('of ' || name)) as start, n from unnest(names) with ordinality as u (name, n) offset 0) s;
$$;
-- The log of a fork: each type with the number that the event had in the source.
create function pg_temp.log_of(id text) returns table (seq bigint, type text, source_seq text) language sql as $$
  select e.seq, e.type, e.payload ->> 'source_seq' from tidebase.read_events(id) e order by e.seq;
$$;

-- the source
select tidebase.create_run('wf', '{"in": 1}', 'r', '{"m": 1}', '2100-01-01', 3, '10 s', 'http://hook', '{"cost_usd": 2.50, "tokens": 100}');
select tidebase.acquire_run('r', 'worker', '1 hour');
select pg_temp.worked('r', 1, 'a', '{"x": 1.0}');                                                      -- 3, 4
select tidebase.set_state('r', 1, '{"n": 1.0, "list": ["a"]}');                                        -- 5
select tidebase.patch_state('r', 1, '{"list": ["a", "b"]}', label => 'two', metadata => '{"k": 1}');   -- 6
select tidebase.open_gate('r', 1, 'g', 'Publish?', '{"d": 1}');                                        -- 7
select tidebase.decide_gate('r', 'g', 'approved', 'ada', '{"k": 1}', comment => 'fine', request_id => 'q'); -- 8
select tidebase.start_timer('r', 1, 't', '1 hour');                                                    -- 9
select pg_temp.overdue('r', 't');                                                                      -- 10
select pg_temp.worked('r', 1, 'b', '"done"');                                                          -- 11, 12
select tidebase.save_state('r', 1, 'saved');                                                           -- 13
select tidebase.create_snapshot('r', 1, 'shot', 'file', 'x', '{"lines": 1}');                          -- 14
select tidebase.append_event('r', 1, 'agent.note', request_id => 'note');                              -- 15
select tidebase.record_usage('r', 1, 'b', input_tokens => 50, output_tokens => 20, cost_usd => 1.5);   -- 16
select tidebase.append_event('r', 1, 'agent.note', '{"n": 2}');                                        -- 17
select tidebase.open_gate('r', 1, 'open', 'Really?');                                                  -- 18
select tidebase.start_timer('r', 1, 'running', '1 hour');                                              -- 19
select tidebase.create_child('r', 1, 'child', 'other');                                                -- 20
select tidebase.restore_state('r', 1, 1);                                                              -- 21
select tidebase.set_state('r', 1, '"aside"', 'side');                                                  -- 22
select is(last_seq, 22::bigint, 'the source has come this far') from tidebase.run_overview where run_id = 'r';
update before set everything = pg_temp.picture_of('r');

-- all there is
select is(tidebase.fork_run('r', 'all', reason => 'why', actor => 'ada'), 'all', 'a fork may be given an id');
select results_eq($$select * from pg_temp.log_of('all')$$,
  $$values (1::bigint, 'run.forked', null::text), (2, 'step.completed', '4'), (3, 'state.updated', '5'), (4, 'state.updated', '6'), (5, 'gate.created', '7'), (6, 'gate.resolved', '8'),
    (7, 'timer.started', '9'), (8, 'timer.fired', '10'), (9, 'step.completed', '12'), (10, 'state.saved', '13'),
    (11, 'snapshot.created', '14'), (12, 'state.restored', '21'), (13, 'state.updated', '22')$$, 'its log begins at 1, and tells what it took over');
select is((select payload from tidebase.read_events('all', 0, 1)), '{"source_run_id": "r", "through_seq": 22, "workflow": "wf", "reason": "why", "actor": "ada"}', 'from where, why, and by whom');
select is((select e.payload - 'source_seq' from tidebase.read_events('all', 5, 1) e), (select payload from tidebase.read_events('r', 7, 1)), 'an event that was taken over says what it said');
select results_eq($$select status, attempt, lease_token, steps_completed, last_seq, workflow, input, metadata, max_attempts, recovery_webhook, deadline_at, result, error from tidebase.get_run('all')$$,
  $$values ('pending', 0, 0::bigint, 2, 13::bigint, 'wf', '{"in": 1}'::jsonb, '{"m": 1}'::jsonb, 3, 'http://hook', null::timestamptz, null::jsonb, null::jsonb)$$, 'it is a new run of the same kind, that waits for a worker');
select is((select last_seq - durable_seq from tidebase.run_heads where run_id = 'all'), 0::bigint, 'all of it is on disk');
select results_eq($$select run_id, name, child_run_id, edge_type, metadata from tidebase.edges where child_run_id = 'all'$$,
  $$values ('r', 'fork:all', 'all', 'fork', '{"through_seq": 22, "reason": "why"}'::jsonb)$$, 'an edge leads to it');
select results_eq($$select parent_run_id, edge_type, depth from tidebase.run_tree('r') where run_id = 'all'$$, $$values ('r', 'fork', 1)$$, 'so the tree has it');
select results_eq($$select outcome, token, checkpoints, input from tidebase.acquire_run('all', 'w')$$, $$values ('granted', 1::bigint, 2, '{"in": 1}'::jsonb)$$, 'it is worked on like any run');
select is(pg_temp.replayed('all', 1, 'a', 'b', 'c'), '{"replay {\"x\": 1.0}","replay \"done\"",execute}', 'the checkpoints replay, what comes after is executed');
select throws_ok($$select tidebase.begin_step('all', 1, 'a', '"another"')$$, 'TB006', null, 'a checkpoint is for its input only');
select throws_ok($$select tidebase.complete_step('all', 1, 'a', '{"x": 1.0}')$$, 'TB007', null, 'and is not completed again');
select is(tidebase.complete_step('all', 1, 'c', '3'), 16::bigint, 'the log goes on from there');
select is((select steps_completed from tidebase.get_run('all')), 3, 'and the count of checkpoints');
select ok(pg_temp.dense('all'), 'without a gap');
select results_eq($$select name, status, attempt, lease_token, side_effects, output::text from tidebase.step_timeline where run_id = 'all' and name <> 'c' order by name$$,
  $$values ('a', 'completed', 1, 0::bigint, null::text[], '{"x": 1.0}'), ('b', 'completed', 1, 0, null, '"done"')$$, 'checkpoints are copied whole, and of no lease');
select is_empty($$select f.name from tidebase.steps f join tidebase.steps s on s.run_id = 'r' and s.name = f.name
  where f.run_id = 'all' and to_jsonb(f) - '{run_id,completed_seq,lease_token,request_id}'::text[] <> to_jsonb(s) - '{run_id,completed_seq,lease_token,request_id}'::text[]$$, 'with their times and contracts');
select is_empty($$select s.name from tidebase.steps s left join tidebase.events e on e.run_id = s.run_id and e.seq = s.completed_seq and e.type = 'step.completed' and e.payload ->> 'name' = s.name
  where s.run_id = 'all' and e.seq is null$$, 'they know the numbers that their events have now');
select is(pg_temp.picture_of('r'), (select everything from before), 'nothing of the source is touched');

-- at every point
select tidebase.fork_run('r', 'at ' || n, through_seq => n) from generate_series(0, 22) n;
select is(pg_temp.picture_of('r'), (select everything from before), 'however often it is forked');
select ok(pg_temp.dense('at ' || n), 'the log of a fork has no gap: through ' || n) from generate_series(0, 22) n;
select set_eq(format($$select name from tidebase.load_checkpoints('at %s')$$, n),
  format($$select name from tidebase.steps where run_id = 'r' and completed_seq <= %s$$, n), 'the checkpoints are those up to ' || n) from generate_series(0, 22) n;
select set_eq(format($$select stream, version, value::text, operation, importance, label, metadata, created_at from tidebase.list_state_versions('at %s', with_value => true)$$, n),
  format($$select stream, version, value::text, operation, importance, label, metadata, created_at from tidebase.list_state_versions('r', with_value => true) where seq <= %s$$, n), 'so are the states: ' || n) from generate_series(0, 22) n;
select set_eq(format($$select name, decision from tidebase.gates where run_id = 'at %s'$$, n),
  format($$select g.name, g.decision from tidebase.gates g join tidebase.events e on e.run_id = 'r' and e.type in ('gate.resolved', 'timer.fired') and e.payload ->> 'name' = g.name where g.run_id = 'r' and e.seq <= %s$$, n),
  'and what was decided: ' || n) from generate_series(0, 22) n;
select is_empty(format($$select v.version from tidebase.state_versions v left join tidebase.events e on e.run_id = v.run_id and e.seq = v.seq and e.payload ->> 'stream' = v.stream and (e.payload ->> 'version')::integer = v.version
  where v.run_id = 'at %s' and e.seq is null$$, n), 'each version knows the number of its event: ' || n) from generate_series(0, 22) n;
select is((select steps_completed::bigint from tidebase.get_run('at ' || n)), (select count(*) from tidebase.load_checkpoints('at ' || n)), 'checkpoints are counted: ' || n) from generate_series(0, 22) n;
select is((select array_agg(type) from tidebase.read_events('at 0')), '{run.forked}', 'from the very beginning there is nothing but the input');
select is((select input from tidebase.get_run('at 0')), '{"in": 1}', 'which is the source''s');
select results_eq($$select * from pg_temp.log_of('at 7')$$,
  $$values (1::bigint, 'run.forked', null::text), (2, 'step.completed', '4'), (3, 'state.updated', '5'), (4, 'state.updated', '6')$$, 'a gate that was only opened does not come along');
select tidebase.acquire_run('at 11', 'w');
select is(pg_temp.replayed('at 11', 1, 'a', 'b'), '{"replay {\"x\": 1.0}",execute}', 'a step that was begun and not completed then is executed');

-- the point
select is(tidebase.fork_run('r', 'step a', through_step => 'a'), 'step a', 'a point may be a step');
select results_eq($$select * from pg_temp.log_of('step a')$$, $$values (1::bigint, 'run.forked', null::text), (2, 'step.completed', '4')$$, 'up to its completion');
select is((select payload - 'actor' from tidebase.read_events('step a', 0, 1)), '{"source_run_id": "r", "through_seq": 4, "through_step": "a", "workflow": "wf"}', 'the log says which');
select is((select payload ->> 'actor' from tidebase.read_events('step a', 0, 1)), current_user::text, 'and who called');
select is((select metadata from tidebase.edges where child_run_id = 'step a'), '{"through_seq": 4, "through_step": "a"}', 'so does the edge');
select tidebase.begin_step('r', 1, name) from unnest(array['unfinished', 'failed']) name;
select tidebase.fail_step('r', 1, 'failed');
select tidebase.begin_step('r', 1, 'hard', replay => 'never');
select tidebase.fail_step('r', 1, 'hard');
update before set everything = pg_temp.picture();
select throws_ok(format($$select tidebase.fork_run('r', 'no', through_step => %L)$$, step), 'TB007', null, format('a step is no point before it is completed: "%s"', step)) from unnest(array['unfinished', 'failed', 'hard', 'none', '']) step;
select throws_ok(format($$select tidebase.fork_run('r', 'no', through_seq => %s)$$, seq), 'TB002', null, 'the log has no point ' || seq) from unnest(array[-1, 28, 9223372036854775807, -9223372036854775808]) seq;
select is(last_seq, 27::bigint, 'beyond its last event') from tidebase.get_run('r');
select throws_ok($$select tidebase.fork_run('r', 'no', 'a', 4)$$, 'TB002', null, 'a point is said in one way');
select throws_ok($$select tidebase.fork_run('none', 'no')$$, 'TB001', null, 'an unknown run is not forked');
select throws_ok($$select tidebase.fork_run(null, 'no')$$, 'TB001', null, 'nor is none');
select throws_ok(format($$select tidebase.fork_run('r', %L)$$, id), 'TB002', null, format('%L is no id', left(id, 10))) from unnest(array['', ' ', repeat('x', 256), repeat('ä', 128)]) id;
select is((pg_temp.error_of($$select tidebase.fork_run('r', 'no', through_step => 'unfinished')$$)).detail::jsonb, '{"run_id": "r", "step": "unfinished", "status": "running"}', 'the error says how the step stands');
select is(pg_temp.picture(), (select everything from before), 'all that made nothing');
select matches(tidebase.fork_run('r'), '^run_[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$', 'an id is made up when none is given');
select isnt(tidebase.fork_run('r', through_seq => 4), tidebase.fork_run('r', through_seq => 4), 'another one each time');
select is(tidebase.fork_run('r', 'x''; drop table tidebase.runs; --', reason => '$$'), 'x''; drop table tidebase.runs; --', 'SQL in a name is a name');

-- the same call again
select pg_temp.same_again($$select tidebase.fork_run('r', 'same', through_seq => 12)$$, 'a fork is made once');
select pg_temp.same_again($$select tidebase.fork_run('r', 'same step', through_step => 'b')$$, 'also at a step');
select throws_ok($$select tidebase.fork_run('r', 'same', through_step => 'b')$$, 'TB006', null, 'the same point in other words is another call');
select throws_ok($$select tidebase.fork_run('r', 'same', through_seq => 13)$$, 'TB006', null, 'another point is another fork');
select throws_ok($$select tidebase.fork_run('r', 'same', through_step => 'a')$$, 'TB006', null, 'so is another step');
select throws_ok($$select tidebase.fork_run('r', 'same', through_seq => 0)$$, 'TB006', null, 'or the beginning');
select throws_ok($$select tidebase.fork_run('r', 'r')$$, 'TB006', null, 'a run is no fork of itself');
select pg_temp.leased('stranger');
select throws_ok($$select tidebase.fork_run('r', 'stranger')$$, 'TB006', null, 'a run that is there is no fork');
select throws_ok($$select tidebase.fork_run('stranger', 'same', through_seq => 2)$$, 'TB006', null, 'nor is the fork of another run');
select throws_ok($$select tidebase.fork_run('r', (tidebase.create_child('r', 1, 'child', 'other')).run_id)$$, 'TB006', null, 'or a child');
select tidebase.acquire_run('same', 'w');
select is(tidebase.fork_run('r', 'same', through_seq => 12), 'same', 'the fork is found whatever became of it');
select is((select last_seq from tidebase.get_run('same')), 10::bigint, 'and is not made anew');

-- another input
select tidebase.fork_run('r', 'input', through_step => 'a', input => '{"in": 2}');
select is((tidebase.acquire_run('input', 'w')).input, '{"in": 2}', 'a fork may have another input');
select is(pg_temp.replayed('input', 1, 'a', 'b'), '{"replay {\"x\": 1.0}",execute}', 'the checkpoints are the source''s');
select tidebase.fork_run('r', 'null input', input => 'null');
select is((select input from tidebase.get_run('null input')), 'null', 'the JSON null is an input');
select is((select input from tidebase.get_run('r')), '{"in": 1}', 'the source keeps its own');

-- decisions
select tidebase.fork_run('r', 'gates');
select tidebase.acquire_run('gates', 'w');
select results_eq($$select status, decision, payload, comment, actor, decided_by, created from tidebase.open_gate('gates', 1, 'g', 'Publish?', '{"d": 1}')$$,
  $$values ('decided', 'approved', '{"k": 1}'::jsonb, 'fine', 'ada', 'approver', false)$$, 'a decision comes along, with all that was said');
select throws_ok($$select tidebase.open_gate('gates', 1, 'g', 'Delete?', '{"d": 1}')$$, 'TB006', null, 'for what was shown only');
select isnt((tidebase.open_gate('gates', 1, 'g', 'Publish?', '{"d": 1}')).secret, pg_temp.secret('r', 'g'), 'the secret is another one');
select is((tidebase.open_gate('gates', 1, 'g', 'Publish?', '{"d": 1}')).secret, pg_temp.secret('gates', 'g'), 'of the fork''s own');
select throws_ok($$select tidebase.decide_gate('gates', 'g', 'rejected', secret => pg_temp.secret('r', 'g'))$$, 'TB009', null, 'that of the source is refused');
select results_eq($$select accepted, decision, actor from tidebase.decide_gate('gates', 'g', 'rejected', 'eve', secret => pg_temp.secret('gates', 'g'))$$,
  $$values (false, 'approved', 'ada')$$, 'who decides again is told what stands');
select is((tidebase.decide_gate('gates', 'g', 'approved', 'ada', request_id => 'q')).accepted, false, 'the call that decided the source''s gate has not decided this one');
select throws_ok($$select tidebase.get_gate('gates', 'open')$$, 'TB012', null, 'a question without an answer does not come along');
select results_eq($$select status, created from tidebase.open_gate('gates', 1, 'open', 'Something else?')$$, $$values ('pending', true)$$, 'it is asked anew, and may be another one');
select throws_ok($$select tidebase.decide_gate('gates', 'open', 'approved', secret => pg_temp.secret('r', 'open'))$$, 'TB009', null, 'who holds the source''s secret does not decide it');
select is((tidebase.decide_gate('gates', 'open', 'approved', secret => pg_temp.secret('gates', 'open'))).accepted, true, 'who holds its own does');
select is((tidebase.get_gate('r', 'open')).status, 'pending', 'the source''s question stays open');
select results_eq($$select status, created from tidebase.start_timer('gates', 1, 't', '1 hour')$$, $$values ('decided', false)$$, 'a timer that has fired has fired');
select results_eq($$select status, created, timeout_at > clock_timestamp() + '59 min' from tidebase.start_timer('gates', 1, 'running', '1 hour')$$, $$values ('pending', true, true)$$, 'one that was running starts again');
select throws_ok($$select tidebase.start_timer('gates', 1, 't', '2 hours')$$, 'TB006', null, 'another duration is another timer');
select is((select due_at from tidebase.run_heads where run_id = 'at 22'), null, 'a fork that nobody works on has nothing that is due');
select ok(pg_temp.dense('gates'), 'the log has no gap');
select pg_temp.leased('votes');
select tidebase.open_gate('votes', 1, name, required_approvals => 2) from unnest(array['both', 'one', 'rejected']) name;
select tidebase.decide_gate('votes', 'both', 'approved', voter => who) from unnest(array['ada', 'bob']) who;
select tidebase.decide_gate('votes', 'one', 'approved', voter => 'ada');
select tidebase.decide_gate('votes', 'rejected', 'rejected', 'ada');
select tidebase.fork_run('votes', 'votes too');
select results_eq($$select name, decision from tidebase.list_gates('votes too') order by name$$, $$values ('both', 'approved'), ('rejected', 'rejected')$$, 'a vote is no decision');
select tidebase.acquire_run('votes too', 'w');
select tidebase.open_gate('votes too', 1, 'one', required_approvals => 2);
select is((tidebase.decide_gate('votes too', 'one', 'approved', voter => 'bob')).status, 'pending', 'the votes of the source are not counted');
select tidebase.open_gate('votes', 1, 'late', timeout => '1 hour', default_decision => 'rejected');
select pg_temp.overdue('votes', 'late');
select tidebase.fork_run('votes', 'timeouts');
select results_eq($$select decision, decided_by from tidebase.get_gate('timeouts', 'late')$$, $$values ('rejected', 'timeout')$$, 'what time decided stays decided');

-- state
select pg_temp.leased('s');
select tidebase.set_state('s', 1, jsonb_build_object('n', n, 'list', (select jsonb_agg(i) from generate_series(1, n) i), 'noise', repeat(md5(n::text), 1 + n % 5 * 20)), label => 'label ' || n % 10) from generate_series(1, 60) n;
select tidebase.fork_run('s', 'history', through_seq => 2 + 37);
select is((select count(*) from tidebase.list_state_versions('history')), 37::bigint, 'the history comes along up to the point');
select is_empty($$select n from generate_series(1, 37) n where (tidebase.get_state('history', version => n)).value::text <> (tidebase.get_state('s', version => n)).value::text$$, 'every version of it can be read');
select is_empty($$select n from generate_series(1, 37) n where (tidebase.get_state('history', seq => n + 1)).version <> n$$, 'by the numbers of the fork''s own log');
select is_empty($$select n from generate_series(1, 37) n where (tidebase.get_state('history', at => (tidebase.get_state('s', version => n)).created_at)).version <> n$$, 'by the time it was made');
select is((tidebase.get_state('history', label => 'label 7')).version, 37, 'and by its label');
select throws_ok(format($$select tidebase.get_state('history', version => %s)$$, n), 'TB012', null, 'a later version is not there: ' || n) from unnest(array[38, 60]) n;
select throws_ok($$select tidebase.get_state('history', seq => 1)$$, 'TB012', null, 'nor is one before the first');
select tidebase.acquire_run('history', 'w');
select is(tidebase.patch_state('history', 1, '{"forked": true}', expected_version => 37), 38, 'writing goes on from there');
select is((tidebase.get_state('history')).value - 'forked', (tidebase.get_state('s', version => 37)).value, 'with the document of that point');
select is(tidebase.restore_state('history', 1, label => 'label 3'), 39, 'what came along can be restored');
select is((tidebase.get_state('history')).value, (tidebase.get_state('s', version => 33)).value, 'and is what it was');
select is((tidebase.get_state('s')).version, 60, 'the source does not notice');
select is((tidebase.get_state('s', version => 38)).value ->> 'n', '38', 'and has its own later versions');
select tidebase.acquire_run('at 14', 'w');
select results_eq($$select target_type, target_id, version, label, value from tidebase.list_snapshots('at 14')$$,
  $$values ('file', 'x', 1, 'shot', '{"lines": 1}'::jsonb), ('state', 'main', 3, 'saved', '{"n": 1.0, "list": ["a", "b"]}'), ('state', 'main', 2, 'two', '{"n": 1.0, "list": ["a", "b"]}')$$, 'snapshots come along');
select is(tidebase.create_snapshot('at 14', 1, 'shot', 'file', 'x', '{"lines": 2}'), 2, 'and are counted on');
select is_empty($$select * from tidebase.list_snapshots('at 13', 'file')$$, 'before the first there is none');
select is((select count(*) from tidebase.state_streams where run_id = 'at 13'), 1::bigint, 'nor a stream for it');

-- a fork of a fork
select tidebase.fork_run('r', 'f');
select tidebase.acquire_run('f', 'w');
select pg_temp.worked('f', 1, 'own', '"own"');
select tidebase.patch_state('f', 1, '{"own": 1}');
select tidebase.fork_run('f', 'ff', through_step => 'a');
select results_eq($$select * from pg_temp.log_of('ff')$$, $$values (1::bigint, 'run.forked', null::text), (2, 'step.completed', '2')$$, 'a fork is forked at a step that it took over');
select tidebase.fork_run('f', 'ff b', through_step => 'b');
select tidebase.fork_run('r', 'f b', through_step => 'b');
select results_eq($$select seq, type, payload - 'source_seq' from tidebase.read_events('ff b', 1)$$, $$select seq, type, payload - 'source_seq' from tidebase.read_events('f b', 1)$$, 'which makes what the source would make');
select is_empty($$select * from tidebase.diff_runs('ff b', 'f b')$$, 'alike in all');
select tidebase.fork_run('f', 'ff all');
select tidebase.fork_run('ff all', 'fff');
select tidebase.acquire_run('fff', 'w');
select is(pg_temp.replayed('fff', 1, 'a', 'b', 'own', 'c'), '{"replay {\"x\": 1.0}","replay \"done\"","replay \"own\"",execute}', 'a fork of a fork of a fork has what all of them did');
select is((tidebase.get_state('fff')).value, '{"n": 1.0, "list": ["a"], "own": 1}', 'the last state');
select is((tidebase.get_state('fff', version => 2)).value, '{"n": 1.0, "list": ["a", "b"]}', 'the first ones');
select is((tidebase.get_gate('fff', 'g')).decision, 'approved', 'and the decisions');
select results_eq($$select run_id, depth from tidebase.run_tree('r') limit 1$$, $$values ('r', 0)$$, 'the tree begins with the source');
select results_eq($$select run_id, parent_run_id, depth from tidebase.run_tree('r') where run_id in ('f', 'ff all', 'fff')$$, $$values ('f', 'r', 1), ('ff all', 'f', 2), ('fff', 'ff all', 3)$$, 'and shows them one below the other');
select ok(pg_temp.dense(id), 'the log has no gap: ' || id) from unnest(array['ff', 'ff b', 'ff all', 'fff']) id;

-- budgets
select results_eq($$select cost_limit_usd, token_limit, records, unpriced, input_tokens, output_tokens, shared_tokens, cost_usd, shared_cost_usd, parent_run_id from tidebase.accounts where run_id = 'at 22'$$,
  $$values (2.50, 100::bigint, 0::bigint, 0::bigint, 0::bigint, 0::bigint, 0::bigint, 0::numeric, 0::numeric, null::text)$$, 'the limits of a budget come along, with nothing used');
select is((select count(*) from tidebase.usage where run_id <> 'r'), 0::bigint, 'usage does not');
select tidebase.record_usage('r', 1, 'b', input_tokens => 40);
select throws_ok($$select tidebase.begin_step('r', 1, 'too expensive')$$, 'TB010', null, 'the source has used its budget up');
select tidebase.acquire_run('at 22', 'w');
select is((tidebase.begin_step('at 22', 1, 'affordable')).outcome, 'execute', 'the fork has not');
select ok((tidebase.record_usage('at 22', 1, input_tokens => 100)).exhausted, 'until it has');
select throws_ok($$select tidebase.begin_step('at 22', 1, 'too expensive')$$, 'TB010', null, 'which stops it, too');
select is((select shared_tokens from tidebase.accounts where run_id = 'r'), 110::bigint, 'the source is not charged');
select tidebase.fork_run('stranger', 'no budget');
select is_empty($$select from tidebase.accounts where run_id = 'no budget'$$, 'a run without a budget has a fork without one');
select is((select has_budget from tidebase.run_heads where run_id = 'no budget'), false, 'that nobody looks for');

-- sources in every status
select pg_temp.leased(status), pg_temp.worked(status, 1, 'a', '1') from unnest(array['pending', 'queued', 'running', 'waiting', 'review', 'completed', 'failed', 'cancelled']) status;
select pg_temp.put(status, status) from unnest(array['pending', 'queued', 'waiting', 'review', 'failed']) status;
select tidebase.complete_run('completed', 1, '"result"');
select tidebase.cancel_run('cancelled', 'enough');
create temp table sources as select status, pg_temp.picture_of(status) as everything from unnest(array['pending', 'queued', 'running', 'waiting', 'review', 'completed', 'failed', 'cancelled']) status;
select is(tidebase.fork_run(status, 'fork of ' || status), 'fork of ' || status, 'a source may be ' || status) from sources;
select is(pg_temp.picture_of(status), everything, format('and stays %s, as it is', status)) from sources;
select results_eq(format($$select status, result, finished_at, cancelled_at from tidebase.get_run('fork of %s')$$, status),
  $$values ('pending', null::jsonb, null::timestamptz, null::timestamptz)$$, 'the fork begins anew: of ' || status) from sources;
select is((tidebase.acquire_run('fork of ' || status, 'w')).outcome, 'granted', 'a worker gets it: of ' || status) from sources;
select is(pg_temp.replayed('fork of ' || status, 1, 'a', 'b'), '{"replay 1",execute}', 'with its checkpoint: of ' || status) from sources;
select is(tidebase.complete_step('fork of ' || status, 1, 'b'), 5::bigint, 'and goes on: of ' || status) from sources;
select tidebase.complete_run('fork of cancelled', 1, '"after all"');
select results_eq($$select status, result from tidebase.get_run('fork of cancelled')$$, $$values ('completed', '"after all"'::jsonb)$$, 'to its own end');

-- apart from then on
select tidebase.fork_run('r', 'alive');
select tidebase.create_child('r', 1, 'child', 'other');
select is(tidebase.cancel_run('r', 'enough'), 2, 'a source is cancelled with its child, not with its forks');
select is(pg_temp.status('alive'), 'pending', 'a fork lives on');
select is((tidebase.acquire_run('alive', 'w')).outcome, 'granted', 'and is worked on');
select is(pg_temp.replayed('alive', 1, 'a', 'b'), '{"replay {\"x\": 1.0}","replay \"done\""}', 'with its checkpoints');
select is(tidebase.cancel_run('alive'), 1, 'and is cancelled on its own');
select is(tidebase.fork_run('r', 'late'), 'late', 'a cancelled run is forked still');
select is(pg_temp.status('late'), 'pending', 'into one that is not');
update before set everything = pg_temp.picture_of('at 21');
select tidebase.compact_run('r');
select is(pg_temp.picture_of('at 21'), (select everything from before), 'compacting the source does not touch its forks');
select throws_ok($$select tidebase.fork_run('r', 'too late')$$, 'TB005', null, 'a compacted run is not forked any more');
select throws_ok($$select tidebase.fork_run('r', 'too late', through_seq => 0)$$, 'TB005', null, 'from no point');
select is(tidebase.fork_run('at 21', 'second hand', through_step => 'b'), 'second hand', 'its forks are');
select tidebase.acquire_run('second hand', 'w');
select is(pg_temp.replayed('second hand', 1, 'a', 'b'), '{"replay {\"x\": 1.0}","replay \"done\""}', 'and have what it had');

-- a step that a person accepted
select pg_temp.leased('reviewed');
select tidebase.begin_step('reviewed', 1, 'mail', '"of mail"', side_effects => '{mail}');
select pg_temp.take_over('reviewed');
select tidebase.begin_step('reviewed', 2, 'mail', '"of mail"', side_effects => '{mail}');
select throws_ok($$select tidebase.fork_run('reviewed', 'no', through_step => 'mail')$$, 'TB007', null, 'a step in review is no point');
select tidebase.fork_run('reviewed', 'in review');
select tidebase.acquire_run('in review', 'w');
select is(pg_temp.replayed('in review', 1, 'mail'), '{execute}', 'nor does it come along');
select tidebase.resolve_review('reviewed', 'mail', 'accept', '"sent"');
select tidebase.fork_run('reviewed', 'accepted', through_step => 'mail');
select tidebase.acquire_run('accepted', 'w');
select is(pg_temp.replayed('accepted', 1, 'mail'), '{"replay \"sent\""}', 'one that was accepted does');
select is(pg_temp.durability($$select tidebase.fork_run('stranger', 'durable')$$), 'on', 'a fork commits synchronously');
select is(pg_temp.durability(format($$select tidebase.fork_run('stranger', 'durable %s')$$, setting), setting), setting, 'a stronger setting stays: ' || setting) from unnest(array['local', 'remote_apply']) setting;

-- the same call again, whatever has happened since
select pg_temp.leased('moved');
select tidebase.fork_run('moved', 'moved fork');
select tidebase.append_event('moved', 1, 'x');
select is(tidebase.fork_run('moved', 'moved fork'), 'moved fork', 'the same call finds the fork when its source has gone on');
select tidebase.fork_run('moved', 'early fork', through_seq => 2, input => '1');
select tidebase.complete_run('moved', 1);
select tidebase.compact_run('moved');
select is(tidebase.fork_run('moved', 'early fork', through_seq => 2, input => '1.0'), 'early fork', 'also when it is compacted');
select throws_ok($$select tidebase.fork_run('moved', 'early fork', through_seq => 2, input => '2')$$, 'TB006', null, 'another input is another fork');
select throws_ok($$select tidebase.create_child('again', 1, 'fork:f', 'wf')$$, 'TB002', null, 'no child has the name of a fork''s edge');
select pg_temp.leased('voted');
select tidebase.open_gate('voted', 1, 'g', required_approvals => 2);
select tidebase.decide_gate('voted', 'g', 'approved', voter => voter) from unnest(array['ada', 'bob']) voter;
select tidebase.fork_run('voted', 'voted fork');
select results_eq($$select approvals, required from tidebase.decide_gate('voted fork', 'g', 'approved', 'eve')$$, $$values (2, 2)$$, 'the votes of a decided gate come along');
select ok(pg_temp.dense('voted fork'), 'with their events');

-- children and budgets come along
select tidebase.create_run('wf', run_id => 'family', budget => '{"tokens": 100}');
select tidebase.acquire_run('family', 'w');
create function pg_temp.had(id text, name text) returns text language plpgsql as $$
declare
  child text := (tidebase.create_child(id, pg_temp.token(id), name, 'wf')).run_id;
begin
  perform tidebase.acquire_run(child, 'w');
  perform tidebase.record_usage(child, pg_temp.token(child), input_tokens => 10);
  return child;
end $$;
create temp table had as select name, pg_temp.had('family', name) as id from unnest(array['early', 'open']) name;
select tidebase.complete_run(id, pg_temp.token(id), '"paid for"') from had where name = 'early';
select tidebase.begin_step('family', 1, 's'), tidebase.complete_step('family', 1, 's');
insert into had select 'late', pg_temp.had('family', 'late');
select tidebase.complete_run(id, pg_temp.token(id), '"later"') from had where name = 'late';
select tidebase.complete_run(id, pg_temp.token(id), '"too late"') from had where name = 'open';
select tidebase.fork_run('family', 'heir', through_step => 's');
select tidebase.acquire_run('heir', 'w');
select results_eq($$select (tidebase.create_child('heir', pg_temp.token('heir'), 'early', 'wf')).*$$, $$select id, false from had where name = 'early'$$, 'a child that was completed before the point is the fork''s, too');
select is((tidebase.create_child('heir', pg_temp.token('heir'), name, 'wf')).created, true, format('one that was %s is not', name)) from unnest(array['open', 'late']) name;
select is((select tree_input_tokens from tidebase.usage_totals where run_id = 'heir'), 0::bigint, 'what it used is not the fork''s');
select is(tidebase.cancel_run('heir'), 3, 'a fork is cancelled without it');
select tidebase.fork_run('family', 'all of it');
select set_eq($$select name from tidebase.edges where run_id = 'all of it'$$, '{early,late,open}'::text[], 'a fork of all there is has every child that is completed');
select tidebase.fork_run('all of it', 'all again');
select set_eq($$select name, source_run_id from tidebase.edges where run_id = 'all again'$$, $$select name, 'family' from had$$, 'and so has a fork of the fork');
select is(tidebase_private.bucket_of(tidebase.fork_run('family')), tidebase_private.bucket_of('family'), 'a fork lies beside its source');
select tidebase.fork_run((select id from had where name = 'early'), 'fork of a child', through_seq => 2);
select tidebase.acquire_run('fork of a child', 'w');
select ok((tidebase.record_usage('fork of a child', pg_temp.token('fork of a child'), input_tokens => 70)).exhausted, 'a fork of a child draws on the budget that the child shares');
select throws_ok($$select tidebase.begin_step('family', 1, 'too much')$$, 'TB010', null, 'which is used up for all of them');
select is_empty($$select * from tidebase.check_invariants('family')$$, 'and adds up');
select is_empty($$select * from tidebase.check_invariants('all again')$$, 'here, too');
select * from finish();
rollback;
