-- Gates and timers: one decision, by somebody entitled, about what was shown.
begin;
select no_plan();

create function pg_temp.leased(id text) returns bigint language sql as $$
  select tidebase.create_run('wf', run_id => id);
  select token from tidebase.acquire_run(id, 'worker');
$$;
create function pg_temp.overdue(id text, gate text) returns void language sql as $$
  update tidebase.gates set timeout_at = clock_timestamp() - interval '1 second' where run_id = id and name = gate;
$$;
create function pg_temp.hint(statement text) returns text language plpgsql as $$
declare
  hint text;
begin
  execute statement;
  return null;
exception when others then
  get stacked diagnostics hint = pg_exception_hint;
  return hint;
end $$;
create function pg_temp.secret(id text, gate text, voter text default null) returns text language sql as $$
  select tidebase_private.gate_secret(g, secret.voter) from tidebase.gates g where g.run_id = id and g.name = gate;
$$;
select pg_temp.leased('r');

-- open_gate
select results_eq(
  $$select status, decision, created from tidebase.open_gate('r', 1, 'g', 'Publish?', '{"a": 1, "b": [2]}')$$,
  $$values ('pending', null::text, true)$$, 'a gate is opened, and waits');
select results_eq(
  $$select status, created from tidebase.open_gate('r', 1, 'g', 'Publish?', '{"b": [2.0], "a": 1}')$$,
  $$values ('pending', false)$$, 'the same question with equal data is the same gate');
select throws_ok($$select tidebase.open_gate('r', 1, 'g', 'Publish?', '{"a": 2}')$$, 'TB006', null, 'other data is another question');
select throws_ok($$select tidebase.open_gate('r', 1, 'g', 'Delete?', '{"a": 1, "b": [2]}')$$, 'TB006', null, 'another prompt is another question');
select tidebase.open_gate('r', 1, 'whole', 'Pay?', '{"to": "x"}', '{yes,no}', null, '{"pay": 100}', null, '{"type": "object"}', 2);
select results_eq($$select created from tidebase.open_gate('r', 1, 'whole', 'Pay?', '{"to": "x"}', '{yes,no}', '1 hour', '{"pay": 100.0}', 'no', '{"type": "object"}', 2)$$,
  $$values (false)$$, 'all that is shown makes a gate this one; how long it waits does not');
select throws_ok(format($$select tidebase.open_gate('r', 1, 'whole', %L, %L, %L, null, %L, null, %L, %s)$$, prompt, data, options, capability, schema, required),
  'TB006', format('gate ''whole'' of run ''r'' was opened with another %s', changed), 'another ' || changed || ' is another question')
from (values
  ('prompt', 'Pay!', '{"to": "x"}', '{yes,no}', '{"pay": 100}', '{"type": "object"}', 2),
  ('data', 'Pay?', '{"to": "y"}', '{yes,no}', '{"pay": 100}', '{"type": "object"}', 2),
  ('options', 'Pay?', '{"to": "x"}', '{yes,no,later}', '{"pay": 100}', '{"type": "object"}', 2),
  ('capability', 'Pay?', '{"to": "x"}', '{yes,no}', '{"pay": 100000}', '{"type": "object"}', 2),
  ('response_schema', 'Pay?', '{"to": "x"}', '{yes,no}', '{"pay": 100}', '{"type": "string"}', 2),
  ('required_approvals', 'Pay?', '{"to": "x"}', '{yes,no}', '{"pay": 100}', '{"type": "object"}', 1)
) as shown (changed, prompt, data, options, capability, schema, required);
select throws_ok($$select tidebase.open_gate('r', 1, 'whole', 'Pay?', '{"to": "x"}')$$, 'TB006',
  'gate ''whole'' of run ''r'' was opened with another capability, options, required_approvals, response_schema', 'what is left out is another one, too');
select throws_ok($$select tidebase.start_timer('r', 1, 'g', '1 hour')$$, 'TB006', null, 'a timer does not take the name of a gate');
select throws_ok($$select tidebase.open_gate('r', 2, 'g', 'Publish?', '{"a": 1, "b": [2]}')$$, 'TB003', null, 'a stale token opens nothing');
select throws_ok($$select tidebase.open_gate('r', null, 'g')$$, 'TB003', null, 'no token opens nothing');
select throws_ok($$select tidebase.open_gate('nope', 1, 'g')$$, 'TB001', null, 'an unknown run has no gates');
select throws_ok($$select tidebase.open_gate('r', 1, ' ')$$, 'TB002', null, 'a gate needs a name');
select throws_ok($$select tidebase.open_gate('r', 1, 'x', options => '{}')$$, 'TB002', null, 'a gate needs options');
select throws_ok($$select tidebase.open_gate('r', 1, 'x', options => array['a', null])$$, 'TB002', null, 'an option is a text');
select throws_ok($$select tidebase.open_gate('r', 1, 'x', options => '{{a},{b}}')$$, 'TB002', null, 'options are a list, not a table');
select throws_ok($$select tidebase.open_gate('r', 1, 'x', required_approvals => 0)$$, 'TB002', null, 'somebody must approve');
select throws_ok($$select tidebase.open_gate('r', 1, 'x', timeout => '-1 second')$$, 'TB002', null, 'a timeout lies ahead');
select throws_ok($$select tidebase.open_gate('r', 1, 'x', default_decision => 'approved')$$, 'TB002', null, 'a default decision needs a timeout');
select throws_ok($$select tidebase.open_gate('r', 1, 'x', response_schema => '[]')$$, 'TB002', null, 'a response schema is an object or a boolean');

-- the secret
select matches((tidebase.open_gate('r', 1, 'g', 'Publish?', '{"a": 1, "b": [2]}')).secret, '^gate_[0-9a-f]{64}$', 'the opener gets the secret');
select is((tidebase.open_gate('r', 1, 'g', 'Publish?', '{"a": 1, "b": [2]}')).secret, pg_temp.secret('r', 'g'), 'and gets the same again');
select isnt(pg_temp.secret('r', 'g'), pg_temp.secret('r', 'whole'), 'another gate has another secret');
create function pg_temp.secret_of(gate jsonb, voter text default null) returns text language sql as $$
  select left(tidebase_private.gate_secret(jsonb_populate_record(null::tidebase.gates, gate), voter), 69);
$$;
select isnt(pg_temp.secret_of(gate || '{"run_id": "a", "name": "b:c"}'), pg_temp.secret_of(gate || '{"run_id": "a:b", "name": "c"}'),
  'run and name cannot be shifted against each other')
from (values ('{}'::jsonb), ('{"nonce": "00000000-0000-0000-0000-000000000000"}')) as gates (gate);
select isnt(pg_temp.secret_of('{"run_id": "a", "name": "b", "created_at": "now"}', 'c'), pg_temp.secret_of('{"run_id": "a", "name": "b for c", "created_at": "now"}'),
  'nor name and voter');
select is(
  sha256((select outer_pad from tidebase_private.gate_key) || sha256((select inner_pad from tidebase_private.gate_key) || 'x'::bytea)),
  tidebase_private.hmac('x'), 'hmac is RFC 2104''s construction');
-- RFC 4231, test case 2: key "Jefe", data "what do ya want for nothing?"
select is(
  encode(sha256(tidebase_private.xor_pad('Jefe', 92) || sha256(tidebase_private.xor_pad('Jefe', 54) || 'what do ya want for nothing?'::bytea)), 'hex'),
  '5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843', 'and gives RFC 4231''s answer');

select set_config('gate_test.old', pg_temp.secret('r', 'g'), true);
delete from tidebase_private.gate_key;
select isnt(pg_temp.secret('r', 'g'), current_setting('gate_test.old'), 'without its key a database makes another');
select is(pg_temp.secret('r', 'g'), (tidebase.open_gate('r', 1, 'g', 'Publish?', '{"a": 1, "b": [2]}')).secret, 'and keeps that');

select matches(tidebase.get_gate_secret('r', 'g', 'ann'), '^gate_[0-9a-f]{64}_ann$', 'a personal secret says whose it is');
select isnt(left(tidebase.get_gate_secret('r', 'g', 'ann'), 69), tidebase.get_gate_secret('r', 'g'), 'and is not the general one');
select isnt(left(tidebase.get_gate_secret('r', 'g', 'ann'), 69), left(tidebase.get_gate_secret('r', 'g', 'bob'), 69), 'nor anybody else''s');
select throws_ok($$select tidebase.get_gate_secret('r', 'g', ' ')$$, 'TB002', null, 'a voter has a name');

-- decide_gate
select throws_ok(format($$select tidebase.decide_gate('r', 'g', 'approved', secret => %L)$$, secret), 'TB009', null, 'a name does not make a secret: ' || secret)
from (values ('gate_ann'), (pg_temp.secret('r', 'g') || '_ann'), (pg_temp.secret('r', 'g') || '_'), (left(pg_temp.secret('r', 'g', 'ann'), 69)),
  (left(pg_temp.secret('r', 'g', 'ann'), 69) || '_bob'), (pg_temp.secret('r', 'g', 'ann') || ' ')) as wrong (secret);
select throws_ok($$select tidebase.decide_gate('r', 'g', 'approved', secret => 'gate_wrong')$$, 'TB009', null, 'a wrong secret decides nothing');
select throws_ok($$select tidebase.decide_gate('r', 'g', 'approved', secret => '')$$, 'TB009', null, 'nor does an empty one');
select throws_ok($$select tidebase.decide_gate('r', 'g', 'approved', secret => pg_temp.secret('r', 'whole'))$$, 'TB009', null, 'nor another gate''s');
select throws_ok($$select tidebase.decide_gate('r', 'g', 'maybe')$$, 'TB002', null, 'a decision is one of the options');
select throws_ok($$select tidebase.decide_gate('r', 'g', null)$$, 'TB002', null, 'and not NULL');
select throws_ok($$select tidebase.decide_gate('r', 'none', 'approved')$$, 'TB012', null, 'an unknown gate is not decided');
select throws_ok($$select tidebase.decide_gate('none', 'g', 'approved')$$, 'TB001', null, 'nor one of an unknown run');
select results_eq(
  $$select accepted, status, decision, payload, comment, actor from tidebase.decide_gate('r', 'g', 'approved', 'ada', '{"k": 1}',
    pg_temp.secret('r', 'g'), 'fine', request_id => 'q')$$,
  $$values (true, 'decided', 'approved', '{"k": 1}'::jsonb, 'fine', 'ada')$$, 'the bearer of the secret decides');
select results_eq(
  $$select accepted, decision, actor from tidebase.decide_gate('r', 'g', 'rejected', 'eve')$$,
  $$values (false, 'approved', 'ada')$$, 'who comes later is told what stands');
select results_eq(
  $$select accepted, decision from tidebase.decide_gate('r', 'g', 'approved', 'ada', request_id => 'q')$$,
  $$values (true, 'approved')$$, 'the same call again is accepted again');
select results_eq(
  $$select status, decision, payload, actor from tidebase.open_gate('r', 1, 'g', 'Publish?', '{"a": 1, "b": [2]}')$$,
  $$values ('decided', 'approved', '{"k": 1}'::jsonb, 'ada')$$, 'opened again, the gate has its decision');
select is((select count(*) from tidebase.events where run_id = 'r' and type = 'gate.resolved'), 1::bigint, 'there is one gate.resolved event');
select is((select count(*) from tidebase.events where run_id = 'r' and payload::text like '%gate\_%' and payload::text ~ 'gate_[0-9a-f]{64}'),
  0::bigint, 'no event holds a secret');

-- several approvers: a voter is a login, or whom a personal secret names, or for whom a login votes that may
select tidebase.open_gate('r', 1, 'many', 'All agree?', required_approvals => 3);
select results_eq($$select accepted, status, approvals, required, actor from tidebase.decide_gate('r', 'many', 'approved', 'ada')$$,
  $$values (true, 'pending', 1, 3, null::text)$$, 'one approval of three is not enough');
select results_eq($$select accepted, status, approvals from tidebase.decide_gate('r', 'many', 'approved', 'bob')$$,
  $$values (false, 'pending', 1)$$, 'another name does not make another person');
set local role tidebase_approver;
select results_eq($$select accepted, status, approvals from tidebase.decide_gate('r', 'many', 'approved')$$,
  $$values (false, 'pending', 1)$$, 'nor does another role');
reset role;
select results_eq($$select voter, decision from tidebase.gate_votes where run_id = 'r'$$, $$values (session_user::text collate "default", 'approved')$$, 'the login has voted');
select throws_ok($$select tidebase.decide_gate('r', 'many', 'approved', secret => pg_temp.secret('r', 'many'))$$, 'TB009', null,
  'the general secret does not say whose vote it is');
select is(pg_temp.hint($$select tidebase.decide_gate('r', 'many', 'approved', secret => pg_temp.secret('r', 'many'))$$),
  'This gate needs 3 people, and its general secret does not say who bears it: vote as a member of tidebase_approver, or with a personal secret (get_gate_secret with a voter). Rejecting is possible.',
  'the hint says what to do');
select throws_ok($$select tidebase.decide_gate('r', 'many', 'approved', voter => 'bob')$$, 'TB009', null, 'nobody votes for another');
select lives_ok(format($$select tidebase.decide_gate('r', 'many', 'approved', voter => %L)$$, session_user), 'for oneself one does');
select results_eq($$select accepted, status, approvals from tidebase.decide_gate('r', 'many', 'approved', secret => pg_temp.secret('r', 'many', session_user))$$,
  $$values (false, 'pending', 1)$$, 'the login and the bearer of that name are one');
select throws_ok($$select tidebase.decide_gate('r', 'many', 'approved', secret => pg_temp.secret('r', 'many', 'ada'), voter => 'bob')$$, 'TB009', null,
  'a personal secret is nobody else''s');
select results_eq($$select accepted, status, approvals from tidebase.decide_gate('r', 'many', 'approved', secret => pg_temp.secret('r', 'many', 'ada'), request_id => 'q')$$,
  $$values (true, 'pending', 2)$$, 'the bearer of a personal secret votes');
select results_eq($$select accepted, status, approvals from tidebase.decide_gate('r', 'many', 'approved', 'zoe', secret => pg_temp.secret('r', 'many', 'ada'))$$,
  $$values (false, 'pending', 2)$$, 'once');
select results_eq($$select accepted from tidebase.decide_gate('r', 'many', 'approved', secret => pg_temp.secret('r', 'many', 'ada'), request_id => 'q')$$,
  $$values (true)$$, 'the same call again is accepted again');
insert into tidebase_private.settings values ('speakers', format('{someone,%s}', quote_ident(session_user)));
select throws_ok($$select tidebase.decide_gate('r', 'many', 'approved')$$, 'TB009', null, 'a login that speaks for others says for whom');
select throws_ok($$select tidebase.decide_gate('r', 'many', 'approved', voter => '')$$, 'TB002', null, 'by name');
select results_eq($$select accepted, approvals from tidebase.decide_gate('r', 'many', 'approved', voter => 'ada')$$, $$values (false, 2)$$, 'who has voted has voted');
select results_eq($$select accepted, status, decision, actor from tidebase.decide_gate('r', 'many', 'approved', voter => 'bob')$$,
  $$values (true, 'decided', 'approved', 'bob')$$, 'the third person settles it');
select results_eq($$select payload ->> 'voter', payload ->> 'actor' from tidebase.events where run_id = 'r' and type = 'gate.voted' order by seq$$,
  $$values (session_user::text collate "default", 'ada'), ('ada', 'ada'), ('bob', 'bob')$$, 'the log has who voted, and what they were called');
select tidebase.open_gate('r', 1, 'secretly', 'All agree?', required_approvals => 2);
select tidebase.decide_gate('r', 'secretly', 'approved', voter => 'ada');
select results_eq($$select accepted, status, decision from tidebase.decide_gate('r', 'secretly', 'rejected', secret => pg_temp.secret('r', 'secretly'))$$,
  $$values (true, 'decided', 'rejected')$$, 'one rejection settles it at once, by whomever');

select tidebase.open_gate('r', 1, 'choice', 'Which?', options => '{red,blue}', required_approvals => 2);
select tidebase.decide_gate('r', 'choice', 'red', voter => 'ada');
select results_eq($$select status, approvals, required from tidebase.decide_gate('r', 'choice', 'blue', voter => 'bob')$$, $$values ('pending', 1, 2)$$,
  'people who disagree do not add up');
select results_eq($$select status, decision, approvals from tidebase.decide_gate('r', 'choice', 'blue', voter => 'eve')$$, $$values ('decided', 'blue', 2)$$,
  'the first decision that enough of them share is taken');
delete from tidebase_private.settings where name = 'speakers';

-- time decides
select tidebase.open_gate('r', 1, 'late', 'Soon?', timeout => '1 hour', default_decision => 'rejected');
select pg_temp.overdue('r', 'late');
select results_eq($$select accepted, decision, actor from tidebase.decide_gate('r', 'late', 'approved', 'ada')$$,
  $$values (false, 'rejected', null::text)$$, 'a late decider finds the default decision');
select tidebase.open_gate('r', 1, 'later', 'Soon?', timeout => '1 hour');
select pg_temp.overdue('r', 'later');
select results_eq($$select status, decision, decided_by from tidebase.get_gate('r', 'later')$$,
  $$values ('decided', 'timed_out', 'timeout')$$, 'who looks at an overdue gate settles it');
select throws_ok($$select tidebase.get_gate('r', 'none')$$, 'TB012', null, 'an unknown gate cannot be looked at');

-- timers and suspension
select is((tidebase.start_timer('r', 1, 'timer', '1 hour')).status, 'pending', 'a timer is started');
select throws_ok($$select tidebase.start_timer('r', 1, 'timer', '2 hours')$$, 'TB006', null, 'another duration is another timer');
select throws_ok($$select tidebase.start_timer('r', 1, 'x', '-1 s')$$, 'TB002', null, 'a timer does not run backwards');
select throws_ok($$select tidebase.suspend_run('r', 1, 'none')$$, 'TB012', null, 'a run is not suspended for nothing');
select is(tidebase.suspend_run('r', 1, 'g'), false, 'a run is not suspended for a gate that is decided');
select is(tidebase.suspend_run('r', 1, 'timer'), true, 'a run is suspended for a timer');
select is(tidebase.suspend_run('r', 1, 'timer'), true, 'the same call again is the same');
select is((select status from tidebase.run_overview where run_id = 'r'), 'waiting', 'the run waits');
select results_eq($$select outcome, expires_at is not null from tidebase.acquire_run('r', 'w')$$, $$values ('waiting', true)$$, 'a waiting run is not granted');
select throws_ok($$select tidebase.begin_step('r', 1, 's')$$, 'TB003', null, 'who suspended it has no lease any more');
select pg_temp.overdue('r', 'timer');
select results_eq($$select outcome, token from tidebase.acquire_run('r', 'w')$$, $$values ('granted', 2::bigint)$$, 'once the timer is over, the run is granted, with no janitor');
select results_eq($$select type from tidebase.events where run_id = 'r' order by seq desc limit 3$$,
  $$values ('run.started'), ('timer.fired'), ('run.suspended')$$, 'and the log tells it');

select pg_temp.leased('again');
select tidebase.start_timer('again', 1, 'timer', '1 hour');
select tidebase.suspend_run('again', 1, 'timer');
select pg_temp.overdue('again', 'timer');
select tidebase.get_gate('again', 'timer');
select lives_ok($$select tidebase.suspend_run('again', 1, 'timer')$$, 'a suspension may be said again, also when the timer is over meanwhile');

-- what is seen
select tidebase.open_gate('r', 2, 'open', 'Now?', '{"x": 1}');
select results_eq($$select name, prompt from tidebase.gate_inbox where run_id = 'r' order by created_at$$, $$values ('whole', 'Pay?'), ('open', 'Now?')$$, 'the inbox has what waits, and nothing else');
select results_eq($$select name from tidebase.list_gates('r', 'pending')$$, $$values ('whole'), ('open')$$, 'list_gates filters');
select is((select count(*) from tidebase.list_gates('r')), 8::bigint, 'list_gates has all gates, no timers');
select throws_ok($$select tidebase.list_gates(max => 0)$$, 'TB002', null, 'list_gates wants a sensible max');
select tidebase.cancel_run('r', 'enough');
select throws_ok($$select tidebase.decide_gate('r', 'open', 'approved')$$, 'TB004', null, 'a gate of a cancelled run is not decided');
select is((select status from tidebase.gate_overview where run_id = 'r' and name = 'open'), 'cancelled', 'it is closed');
select is(array_agg(seq order by seq), (select array_agg(n::bigint) from generate_series(1, (select last_seq from tidebase.run_heads where run_id = 'r')) n),
  'the log has no gap') from tidebase.events where run_id = 'r';

-- who may
select pg_temp.leased('rights');
select tidebase.open_gate('rights', 1, 'g', 'May I?');
select set_config('test.secret', pg_temp.secret('rights', 'g'), true);
set local role tidebase_worker;
select throws_ok($$select tidebase.decide_gate('rights', 'g', 'approved', secret => current_setting('test.secret'))$$, '42501', null,
  'a worker cannot decide its own gate, not even with the secret');
set local role tidebase_reader;
select throws_ok($$select tidebase.decide_gate('rights', 'g', 'approved')$$, 'TB009', null, 'a reader is no approver');
select throws_ok($$select * from tidebase_private.gate_key$$, '42501', null, 'nobody but the owner reads the key');
select throws_ok($$select tidebase_private.gate_secret(null)$$, '42501', null, 'or derives a secret');
set local role tidebase_approver;
select is((tidebase.decide_gate('rights', 'g', 'approved')).actor, 'tidebase_approver', 'an approver decides, and is named');
reset role;

select pg_temp.leased('secretive');
select secret from tidebase.open_gate('secretive', 1, 'g') \gset secretive_
select is(tidebase.get_gate_secret('secretive', 'g'), :'secretive_secret', 'a worker is told the secret again');
select tidebase.decide_gate('secretive', 'g', 'approved');
select is(tidebase.get_gate_secret('secretive', 'g'), null, 'not when it decides nothing any more');
select throws_ok($$select tidebase.get_gate_secret('secretive', 'none')$$, 'TB012', null, 'an unknown gate has none');
select pg_temp.leased('over');
select tidebase.open_gate('over', 1, 'g');
select throws_ok($$select tidebase.open_gate('over', 1, 'x', timeout => '1 hour', default_decision => '')$$, 'TB002', null, 'nothing is no default decision');
select tidebase.complete_run('over', 1);
select throws_ok($$select tidebase.decide_gate('over', 'g', 'approved')$$, 'TB005', null, 'a gate that a completed run left open is not decided any more');

-- gates from before there were nonces
select pg_temp.leased('old');
select tidebase.open_gate('old', 1, 'g', 'Go?', '{"n": 1.0}', capability => '1', required_approvals => 2);
update tidebase.gates set nonce = null, shown_hash = tidebase_private.hash_input('["Go?", {"n": 1}]') where run_id = 'old';
select results_eq($$select status, created from tidebase.open_gate('old', 1, 'g', 'Go?', '{"n": 1}', capability => '2')$$, $$values ('pending', false)$$,
  'they are what their prompt and data say');
select throws_ok($$select tidebase.open_gate('old', 1, 'g', 'Go?', '{"n": 2}', capability => '1')$$, 'TB006', null, 'and nothing else');
select is(tidebase.get_gate_secret('old', 'g'), 'gate_' || encode(tidebase_private.hmac('gate:3:old:g'), 'hex'), 'they keep the secret that was handed out');
select matches(tidebase.get_gate_secret('old', 'g', 'bob'), '^gate_[0-9a-f]{64}_bob$', 'and may have personal ones');
select tidebase.decide_gate('old', 'g', 'approved', secret => tidebase.get_gate_secret('old', 'g', 'bob'));
update tidebase.gate_votes set voter = '(secret)' where run_id = 'old';
select results_eq($$select status, approvals from tidebase.decide_gate('old', 'g', 'approved')$$, $$values ('decided', 2)$$, 'votes that were given before count');

-- a secret dies with its gate
select pg_temp.leased('anew');
select secret from tidebase.open_gate('anew', 1, 'g', 'Pay 1?') \gset former_
select tidebase.get_gate_secret('anew', 'g', 'ada') as secret \gset former_personal_
select tidebase.cancel_run('anew');
select tidebase.purge_runs('0');
select tidebase.create_run('wf', run_id => 'anew');
select token from tidebase.acquire_run('anew', 'w') \gset anew_
select tidebase.open_gate('anew', :anew_token, 'g', 'Pay 1000?');
select throws_ok(format($$select tidebase.decide_gate('anew', 'g', 'approved', secret => %L)$$, :'former_secret'), 'TB009', null, 'the secret of a gate that is gone decides nothing');
select throws_ok(format($$select tidebase.decide_gate('anew', 'g', 'approved', secret => %L)$$, :'former_personal_secret'), 'TB009', null, 'nor does a personal one');
select is((tidebase.decide_gate('anew', 'g', 'approved', secret => tidebase.get_gate_secret('anew', 'g'))).accepted, true, 'its own does');

-- the inbox
select pg_temp.leased('asks');
delete from tidebase.gates g where g.status = 'pending' and g.kind = 'gate';  -- those of before
select tidebase.open_gate('asks', (tidebase.get_run('asks')).lease_token, name, timeout => timeout)
from (values ('never', null), ('late', interval '1 hour'), ('soon', '1 minute'), ('never 2', null)) g (name, timeout);
select results_eq($$select name from tidebase.list_inbox()$$, $$values ('soon'), ('late'), ('never'), ('never 2')$$, 'the inbox begins with the nearest deadline, and ends with what has none');
select results_eq(format($$select name from tidebase.list_inbox(1, 'asks', %L)$$, behind), format('values (%L)', name), name || ' comes behind ' || behind)
from (values ('soon', 'late'), ('late', 'never'), ('never', 'never 2')) g (behind, name);
select is_empty($$select name from tidebase.list_inbox(1, 'asks', 'never 2')$$, 'and nothing behind the last');
update tidebase.gates g set timeout_at = clock_timestamp() where g.name = 'soon';
select results_eq($$select name from tidebase.list_inbox(max => 1)$$, $$values ('late')$$, 'what is overdue is decided already');
select throws_ok($$select tidebase.list_inbox(0)$$, 'TB002', null, 'no page is empty');
select throws_ok($$select tidebase.list_inbox(1, 'asks', 'gone')$$, 'TB012', null, 'and begins behind a gate that is there');

select * from finish();
rollback;
