-- check_invariants: each rule is seen to be broken where a row breaks it, and none where the functions wrote the rows.
begin;
select no_plan();
\ir support/helpers.psql

-- one run of everything there is
select tidebase.create_run('wf', run_id => 'r', budget => '{"tokens": 1000}');
select tidebase.acquire_run('r', 'w');
select tidebase.record_step('r', 1, 'done', '{"x": 1.50}', '"out"');
select tidebase.begin_step('r', 1, 'running');
select tidebase.begin_step('r', 1, 'failed');
select tidebase.fail_step('r', 1, 'failed');
select tidebase.begin_step('r', 1, 'in review', side_effects => '{send}');
select tidebase.fail_step('r', 1, 'in review');
select tidebase.open_gate('r', 1, 'decided');
select tidebase.decide_gate('r', 'decided', 'approved');
select tidebase.open_gate('r', 1, 'pending');
select tidebase.open_gate('r', 1, 'agreed', required_approvals => 2);
select tidebase.decide_gate('r', 'agreed', 'approved', secret => tidebase.get_gate_secret('r', 'agreed', voter)) from unnest(array['ada', 'bob']) voter;
select tidebase.start_timer('r', 1, 'timer', '0');
select tidebase.set_state('r', 1, value) from unnest(array['1', '2', '3']::jsonb[]) value;
select tidebase.record_usage('r', 1, input_tokens => 3, cost_usd => 0.5);
select tidebase.record_usage(child.run_id, (tidebase.acquire_run(child.run_id, 'w')).token, input_tokens => 4, cost_usd => 0.25)
from tidebase.create_child('r', 1, 'child', 'wf') child;
select tidebase.add_channel('r', 'https://all.example');
select tidebase.create_run('wf', run_id => 'bare');
select tidebase.enqueue_run('wf', run_id => 'queued', dedupe_key => 'k');
select tidebase.create_run('wf', run_id => 'over');
select tidebase.acquire_run('over', 'w');
select tidebase.record_step('over', 1, 'done', '1', '2');
select tidebase.complete_run('over', 1);
select tidebase.compact_run('over');
select tidebase.put_checkpoint('t', '', 'c', 'x', 'x', '{}', changes => '[{"channel": "c", "version": "v", "type": "x", "head": 0, "pieces": [1]}]', contents => '{x,xx}');
select is_empty($$select * from tidebase.check_invariants()$$, 'what the functions wrote breaks no rule');
select is_empty($$select * from tidebase.check_invariants('r')$$, 'nor does one run of it');
select throws_ok($$select tidebase.check_invariants('none')$$, 'TB001', null, 'an unknown run has no rules to keep');

-- each rule, with a statement that breaks it
create function pg_temp.broken_by(statement text) returns text[] language plpgsql as $$
declare
  found text[];
begin
  execute statement;
  select array_agg(distinct c.invariant) into found from tidebase_private.check_invariants() c;
  raise exception using errcode = 'YYYYY', detail = coalesce(found, '{}')::text;
exception when sqlstate 'YYYYY' then
  get stacked diagnostics statement = pg_exception_detail;
  return statement;
end $$;

create temp table wrong (rule text, statement text);
insert into wrong values
  ('a run belongs to a queue in its head as in its cold half', $$update tidebase.run_heads set in_queue = false where run_id = 'queued'$$),
  ('a run belongs to a queue in its head as in its cold half', $$update tidebase.runs set queue = 'q', priority = 0 where run_id = 'bare'$$),
  ('a run that is queued belongs to a queue, and is found there', $$delete from tidebase.queue_entries$$),
  ('a run that is queued belongs to a queue, and is found there', $$update tidebase.run_heads set status = 'queued' where run_id = 'bare'$$),
  ('the end of a lease is looked at, or was, and then the run is found in its queue', $$update tidebase.run_heads set due_at = null where run_id = 'r'$$),
  ('a run that is not over has its dedupe key', $$delete from tidebase.dedupe_keys$$),
  ('a run that is not over has its dedupe key', $$update tidebase.dedupe_keys set run_id = 'bare'$$),
  ('the status of a run is known', $$update tidebase.run_heads set status = 'lost'$$),
  ('a run has a lease exactly while it is running', $$update tidebase.run_heads set lease_expires_at = null$$),
  ('a run has a lease exactly while it is running', $$update tidebase.run_heads set status = 'pending'$$),
  ('a run waits for something exactly while it is waiting', $$update tidebase.run_heads set status = 'waiting', lease_expires_at = null$$),
  ('a run waits for something exactly while it is waiting', $$update tidebase.run_heads set waiting_for = 'pending'$$),
  ('the counters of a run only grow from zero', $$update tidebase.run_heads set last_seq = -1$$),
  ('the counters of a run only grow from zero', $$update tidebase.run_heads set durable_seq = last_seq + 1$$),
  ('the counters of a run only grow from zero', $$update tidebase.run_heads set lease_token = -1$$),
  ('a run has a head and a cold half', $$delete from tidebase.runs where run_id = 'bare'$$),
  ('a run has a head and a cold half', $$delete from tidebase.run_heads where run_id = 'bare'$$),
  ('what the head repeats of the cold half is equal', $$update tidebase.run_heads set workflow_key = 7$$),
  ('what the head repeats of the cold half is equal', $$update tidebase.runs set created_at = created_at - interval '1 s'$$),
  ('the events of a run are 1..n without a gap', $$delete from tidebase.events where run_id = 'r' and seq = 2$$),
  ('the events of a run are 1..n without a gap', $$delete from tidebase.events e using tidebase.run_heads h where h.run_id = e.run_id and e.seq = h.last_seq$$),
  ('the events of a run are 1..n without a gap', $$update tidebase.run_heads set last_seq = last_seq + 1$$),
  ('the attempts of a run are 1..n without a gap', $$update tidebase.attempts set attempt = 2 where run_id = 'r'$$),
  ('the attempts of a run are 1..n without a gap', $$update tidebase.run_heads set attempt = attempt + 1$$),
  ('only the newest attempt lasts, and only while the run is running', $$update tidebase.attempts set ended_at = started_at, outcome = 'lapsed' where run_id = 'r'$$),
  ('only the newest attempt lasts, and only while the run is running', $$update tidebase.attempts set ended_at = null, outcome = null where run_id = 'over'$$),
  ('lease tokens grow with the attempts, up to the present one', $$update tidebase.attempts set lease_token = 2 where run_id = 'r'$$),
  ('the checkpoints of a run are counted', $$update tidebase.run_heads set steps_completed = 7$$),
  ('a run is in review while a step of it is', $$update tidebase.run_heads set status = 'review' where run_id = 'bare'$$),
  ('a run that waits does so for a gate, a timer or children of its own', $$update tidebase.run_heads set status = 'waiting', waiting_for = 'pending' where run_id = 'bare'$$),
  ('only a run that waits has children that it waits for', $$insert into tidebase.awaited select 'r', e.child_run_id from tidebase.edges e where e.run_id = 'r'$$),
  ('a run waits only for children of its own', $$insert into tidebase.awaited values ('bare', 'over')$$),
  ('a run that is completed has no step that has not ended', $$update tidebase.run_heads set status = 'completed', lease_expires_at = null where run_id = 'r'$$),
  ('a run that is cancelled waits for nobody''s decision', $$update tidebase.run_heads set status = 'cancelled', lease_expires_at = null where run_id = 'r'$$),
  ('the status of a step is known', $$update tidebase.steps set status = 'finished' where name = 'running'$$),
  ('a step is completed with an output and an event, or not at all', $$update tidebase.steps set status = 'completed' where name = 'running'$$),
  ('a step is completed with an output and an event, or not at all', $$update tidebase.steps set output = '1' where name = 'running'$$),
  ('a step failed with a decision', $$update tidebase.steps set decision = null where name = 'failed'$$),
  ('the decision about a failure is known', $$update tidebase.steps set decision = 'perhaps' where name = 'failed'$$),
  ('the replay of a contract is known', $$update tidebase.steps set replay = 'perhaps' where name = 'failed'$$),
  ('a step is counted by its attempts', $$update tidebase.steps set tries = 2 where name = 'running'$$),
  ('a step is counted by its attempts', $$update tidebase.steps set tries = 0 where name = 'running'$$),
  ('a step was begun under a lease that was granted', $$update tidebase.steps set lease_token = 2 where name = 'running'$$),
  ('the hash of a step is that of its input', $$update tidebase.steps set input = '{"x": 1.6}' where name = 'done' and run_id = 'r'$$),
  ('the hash of a step is that of its input', $$update tidebase.steps set input_hash = '\x00' where name = 'running'$$),
  ('a checkpoint is in the log, once', $$update tidebase.steps set completed_seq = 1 where name = 'done' and run_id = 'r'$$),
  ('a checkpoint is in the log, once', $$update tidebase.events set type = 'step.completed', payload = '{"name": "done"}' where run_id = 'r' and seq = 2$$),
  ('a step waits for a review exactly while one is open', $$update tidebase.steps set status = 'review' where name = 'running'$$),
  ('a step waits for a review exactly while one is open', $$update tidebase.reviews set resolved_at = opened_at, decision = 'retry'$$),
  ('the hash of a gate is that of what it shows', $$update tidebase.gates set capability = '1' where name = 'pending'$$),
  ('the hash of a gate is that of what it shows', $$update tidebase.gates set nonce = null where name = 'pending'$$),
  ('a timer has no secret', $$update tidebase.gates set nonce = gen_random_uuid() where kind = 'timer'$$),
  ('as many people agree to a decision as it needs', $$delete from tidebase.gate_votes where voter = 'ada'$$),
  ('as many people agree to a decision as it needs', $$update tidebase.gates set status = 'pending', decision = null, decided_by = null, decided_at = null where name = 'agreed'$$),
  ('a vote is in the log, once', $$update tidebase.gate_votes set voter = 'eve' where voter = 'ada'$$),
  ('a vote is in the log, once', $$insert into tidebase.gate_votes (run_id, name, voter, decision) values ('r', 'pending', 'ada', 'approved')$$),
  ('a gate is decided once', $$update tidebase.gates set decision = 'rejected' where name = 'decided'$$),
  ('a gate is decided once', $$update tidebase.gates set status = 'decided', decision = 'approved', decided_by = 'approver', decided_at = created_at where name = 'pending'$$),
  ('a gate is decided once', $$update tidebase.gates set status = 'pending', decision = null, decided_by = null, decided_at = null where name = 'decided'$$),
  ('the versions of a stream are 1..n without a gap', $$delete from tidebase.state_versions where run_id = 'r' and version = 2$$),
  ('an event has a place in the log', $$insert into tidebase.events (run_id, seq, type, payload) values ('r', 0, 'x', '{}')$$),
  ('an event has a place in the log', $$insert into tidebase.events (run_id, seq, type, payload) values ('nobody', 1, 'x', '{}')$$),
  ('an edge leads to one child, as the log says', $$insert into tidebase.edges (run_id, name, child_run_id, edge_type) values ('r', 'another', 'bare', 'child')$$),
  ('an edge leads to one child, as the log says', $$update tidebase.edges set child_run_id = 'bare'$$),
  ('a channel has told what is in the log', $$update tidebase.channels set delivered_seq = 1000$$),
  ('a channel has told what is in the log', $$update tidebase.channels set sending_seq = 1000, delivered_seq = 999$$),
  ('a channel has told what is in the log', $$update tidebase.channels set run_id = 'nobody'$$),
  ('a channel is done when its run is over, and all of it is told', $$update tidebase.channels set status = 'delivered', next_at = null, finished_at = created_at$$),
  ('a channel is done when its run is over, and all of it is told', $$update tidebase.channels set run_id = 'over', status = 'delivered', next_at = null, finished_at = created_at$$),
  ('the checkpoints of a thread are numbered from one', $$update tidebase.thread_checkpoints set number = 0$$),
  ('a checkpoint has the values that it names', $$delete from tidebase.thread_values$$),
  ('a value has all its chunks, and their length', $$delete from tidebase.thread_chunks$$),
  ('a value has all its chunks, and their length', $$update tidebase.thread_chunks set content = 'xxx'$$),
  ('what belongs to a thread has one', $$delete from tidebase.threads$$),
  ('what was used adds up', $$update tidebase.accounts set input_tokens = input_tokens + 1$$),
  ('what was used adds up', $$update tidebase.accounts set cost_usd = cost_usd + 0.000001$$),
  ('what was used adds up', $$delete from tidebase.usage where run_id = 'r'$$),
  ('what a tree of runs used adds up at its root', $$update tidebase.accounts set shared_tokens = 6 where run_id = 'r'$$),
  ('what a tree of runs used adds up at its root', $$update tidebase.accounts set shared_cost_usd = 0.74 where run_id = 'r'$$);
select ok(rule = any (pg_temp.broken_by(statement)), statement || ' is found') from wrong;

select set_eq(
  $$select replace(m[1], '''''', '''')
    from pg_proc p, regexp_matches(p.prosrc, E'[(, ]''((?:[^''\n]|'''')+ (?:[^''\n]|'''')+ (?:[^''\n]|'''')+)''', 'g') m
    where p.pronamespace = 'tidebase_private'::regnamespace and p.proname like 'broken\_%'$$,
  'select rule from wrong', 'these are all the rules');
select * from finish();
rollback;
