-- Errors tell people and programs what is wrong, and what to do.
begin;
select no_plan();
\ir support/helpers.psql
select pg_temp.leased('r');
select tidebase.begin_step('r', 1, 's', '1');
select pg_temp.leased('done');
select tidebase.complete_run('done', 1);
select pg_temp.leased('gone');
select tidebase.cancel_run('gone');

create temp table failing (state text, keys text[], statement text);
insert into failing values
  ('TB001', '{run_id}', $$select tidebase.acquire_run('none', 'w')$$),
  ('TB001', '{run_id}', $$select tidebase.acquire_run(null, 'w')$$),
  ('TB002', '{parameter,rule}', $$select tidebase.acquire_run('r', '')$$),
  ('TB003', '{run_id,status,token,current_token,holder}', $$select tidebase.complete_step('r', 7, 's')$$),
  ('TB003', '{run_id,status,token,current_token,holder}', $$select tidebase.complete_step('r', null, 's')$$),
  ('TB004', '{run_id,status,token,current_token,holder}', $$select tidebase.renew_lease('gone', 1)$$),
  ('TB005', '{run_id,status,token,current_token,holder}', $$select tidebase.renew_lease('done', 1)$$),
  ('TB006', '{run_id,workflow}', $$select tidebase.create_run('wf', '2', 'r')$$),
  ('TB006', '{run_id,workflow,given}', $$select tidebase.create_run('other', '1', 'r')$$),
  ('TB006', '{run_id,step,status,input_hash,given_hash}', $$select tidebase.begin_step('r', 1, 's', '2')$$),
  ('TB007', '{run_id,step,status,lease_token}', $$select tidebase.begin_step('r', 1, 's', '1')$$),
  ('TB007', '{run_id,step,status,lease_token}', $$select tidebase.complete_step('r', 1, 'none')$$),
  ('TB008', '{run_id,step}', $$select tidebase.resolve_review('r', 's', 'retry')$$),
  ('TB009', '{run_id,gate}', $$select tidebase.decide_gate('r', 'g', 'approved', secret => 'x')$$),
  ('TB012', '{run_id,gate}', $$select tidebase.get_gate('r', 'g')$$),
  ('TB012', '{run_id,recovery}', $$select tidebase.finish_recovery('r', 1, 'failed')$$),
  ('TB012', '{run_id,delivery}', $$select tidebase.finish_delivery('r', 1, 1, true)$$),
  ('TB012', '{run_id,channel}', $$select tidebase.remove_channel('r', 1)$$);
create temp table failed as select f.*, e.* from failing f, lateral pg_temp.error_of(f.statement) e (got, message, detail, hint);

select is(got, state, format('%s raises %s: %s', statement, state, coalesce(message, 'no error'))) from failed;
select is(jsonb_typeof(detail::jsonb), 'object', format('the detail of %s is one JSON object (%s)', state, statement)) from failed;
select ok(detail::jsonb ?& keys, format('and programs find %s in it', array_to_string(keys, ', '))) from failed;
select ok(hint <> '', format('%s says what to do: %s', state, hint)) from failed;
select ok(message ~ '^[a-z]' and message !~ '[.!]$', format('the message is part of a sentence: %s', message)) from failed;

-- what the details say
select results_eq(
  $$select d ->> 'token', d ->> 'current_token', d ->> 'holder', d ->> 'status'
    from (select (pg_temp.error_of($q$select tidebase.complete_step('r', 7, 's')$q$)).detail::jsonb d) x$$,
  $$values ('7', '1', 'worker', 'running')$$, 'a lost lease tells which token was given, which is current, and who has it');
select is((pg_temp.error_of($$select tidebase.complete_step('r', null, 's')$$)).detail::jsonb -> 'token', 'null'::jsonb, 'a token that was not given is null');
select is((pg_temp.error_of($$select tidebase.begin_step('r', 1, 's', '2')$$)).detail::jsonb ->> 'input_hash',
  encode(sha256('1'), 'hex'), 'a mismatch tells the hash of the first input');
select is((pg_temp.error_of($$select tidebase.begin_step('r', 1, 's', '2')$$)).detail::jsonb ->> 'given_hash',
  encode(sha256('2'), 'hex'), 'and of the one given');

-- Every function that takes a run says so when there is none; after its other arguments were found to be in order.
create temp table run_calls (statement text);
insert into run_calls values
  ($$select tidebase.acquire_run(%L, 'w')$$),
  ($$select tidebase.add_channel(%L, 'https://x')$$),
  ($$select tidebase.append_event(%L, 1, 'x')$$),
  ($$select tidebase.begin_step(%L, 1, 'x')$$),
  ($$select tidebase.begin_step_with(%L, 1, 'x')$$),
  ($$select tidebase.cancel_run(%L)$$),
  ($$select tidebase.claim_thread(%L, 1, 't')$$),
  ($$select tidebase.complete_run(%L, 1)$$),
  ($$select tidebase.complete_step(%L, 1, 'x')$$),
  ($$select tidebase.create_child(%L, 1, 'x', 'wf')$$),
  ($$select tidebase.decide_gate(%L, 'g', 'approved')$$),
  ($$select tidebase.fail_run(%L, 1)$$),
  ($$select tidebase.fail_step(%L, 1, 'x')$$),
  ($$select tidebase.finish_channel_delivery(%L, 1, 1, true)$$),
  ($$select tidebase.finish_delivery(%L, 1, 1, true)$$),
  ($$select tidebase.finish_invocation(%L, 1, true)$$),
  ($$select tidebase.finish_recovery(%L, 1, 'failed')$$),
  ($$select tidebase.get_run(%L)$$),
  ($$select tidebase.list_channels(%L)$$),
  ($$select tidebase.load_checkpoints(%L)$$),
  ($$select tidebase.open_gate(%L, 1, 'g')$$),
  ($$select tidebase.read_events(%L)$$),
  ($$select tidebase.record_recovery(%L)$$),
  ($$select tidebase.record_step(%L, 1, 'x')$$),
  ($$select tidebase.record_steps(%L, 1, '[{"name": "x"}]')$$),
  ($$select tidebase.recover_run(%L)$$),
  ($$select tidebase.release_run(%L, 1)$$),
  ($$select tidebase.remove_channel(%L, 1)$$),
  ($$select tidebase.renew_lease(%L, 1)$$),
  ($$select tidebase.resolve_review(%L, 'x', 'retry')$$),
  ($$select tidebase.retry_channel(%L, 1)$$),
  ($$select tidebase.start_timer(%L, 1, 'g', '1 hour')$$),
  ($$select tidebase.suspend_for_children(%L, 1, '{c}')$$),
  ($$select tidebase.suspend_run(%L, 1, 'g')$$),
  ($$select tidebase.withdraw_grant(%L, 'q')$$),
  ($$select tidebase.run_tree(%L)$$),
  ($$select tidebase.patch_state(%L, 1, '{}')$$),
  ($$select tidebase.merge_state(%L, 1, '{}')$$),
  ($$select tidebase.list_snapshots(%L)$$),
  ($$select tidebase.diff_runs(%L, 'none')$$),
  ($$select tidebase.set_state(%L, 1, '1')$$),
  ($$select tidebase.get_state(%L)$$),
  ($$select tidebase.fork_run(%L)$$),
  ($$select tidebase.save_state(%L, 1, 'l')$$),
  ($$select tidebase.list_state_versions(%L)$$),
  ($$select tidebase.set_budget(%L)$$),
  ($$select tidebase.compact_run(%L)$$),
  ($$select tidebase.create_snapshot(%L, 1, 'l')$$),
  ($$select tidebase.restore_state(%L, 1, 1)$$),
  ($$select tidebase.record_usage(%L, 1)$$),
  ($$select tidebase.move_run(%L, 'q')$$),
  ($$select tidebase.watch_run(%L)$$);
select throws_ok(format(statement, id), 'TB001', null, format(statement, id) || ' finds no run')
from run_calls, unnest(array['none', null, '', 'r'' or 1=1 --']) id;
select set_eq(
  $$select p.proname::text from pg_proc p
    where p.pronamespace = 'tidebase'::regnamespace and 'run_id' = any (p.proargnames[1:p.pronargs])
      -- the first looks at all runs when it is given none, the next three make the run, then who looks for a gate, or writes to a thread
      and p.proname not in ('check_invariants', 'create_run', 'enqueue_run', 'trigger_schedule', 'get_gate', 'get_gate_secret', 'list_gates', 'delete_thread',
        'put_checkpoint', 'put_checkpoint_writes')$$,
  $$select substring(statement from 'tidebase\.([a-z_]+)') from run_calls$$, 'these are all the functions that take a run');
select throws_ok($$select tidebase.get_gate('none', 'g')$$, 'TB012', null, 'an unknown run has no gate to get');
select is_empty($$select * from tidebase.list_gates('none')$$, 'nor any to list');
select throws_ok($$select tidebase.list_runs(before => 'none')$$, 'TB001', null, 'nor does a list go on from it');

-- names of others
select is((pg_temp.error_of($$select tidebase.acquire_run('x'' or 1=1 --', 'w')$$)).message, 'run ''x'''' or 1=1 --'' does not exist', 'a name is quoted, never executed');
select is((pg_temp.error_of($$select tidebase.acquire_run('a%sb%Lc', 'w')$$)).message, 'run ''a%sb%Lc'' does not exist', 'nor taken for a format');
select ok(length((pg_temp.error_of(format('select tidebase.acquire_run(%L, ''w'')', repeat('x', 100000)))).message) < 300, 'an endless id makes no endless message');
select is((pg_temp.error_of($$select tidebase.acquire_run(null, 'w')$$)).message, 'run NULL does not exist', 'no id is called NULL');

-- what the functions share
select results_eq($$select * from pg_temp.error_of($q$select tidebase_private.raise('TB099', 'what', '{"a": 1}', 'then')$q$)$$,
  $$values ('TB099', 'what', '{"a": 1}', 'then')$$, 'raise takes a SQLSTATE, a message, a detail and a hint');
select results_eq($$select state, message, detail::jsonb, hint from pg_temp.error_of($q$select tidebase_private.raise_invalid('n', 'must be 1')$q$)$$,
  $$values ('TB002', 'n must be 1', '{"parameter": "n", "rule": "must be 1"}'::jsonb, 'Call again with another n.')$$, 'an invalid argument is named');
select is(tidebase_private.is_name(value, 4), expected, format('%L is %s name of 4 bytes', value, case when expected then 'a' else 'no' end))
from (values ('a', true), ('abcd', true), ('ab c', true), ('éé', true), (null, false), ('', false), ('    ', false), ('abcde', false), ('ééé', false)) as v (value, expected);
select lives_ok($$select tidebase_private.require_name('abcd', 'p', 4)$$, 'what can name something passes');
select throws_ok($$select tidebase_private.require_name('abcde', 'p', 4)$$, 'TB002', 'p must be a text of 1 to 4 bytes that is not blank', 'what cannot is refused, with the rule');
select lives_ok(format('select tidebase_private.require_interval(%L, ''p'', ''1 s'', ''1 min'')', value), value || ' is between 1 s and 1 min')
from unnest(array['1 s', '60 s', '1 min', '30 s']) value;
select throws_ok(format('select tidebase_private.require_interval(%L, ''p'', ''1 s'', ''1 min'')', value), 'TB002', null, coalesce(value, 'NULL') || ' is not')
from unnest(array['0', '-5 s', '61 s', '0.999 s', '1000000 years', '-1000000 years', null]) value;
-- Payloads have a limit, which the installation may set.
insert into tidebase_private.settings (name, value) values ('max_payload_bytes', '1500000');
create function pg_temp.large() returns jsonb language sql as $$select to_jsonb(repeat('x', 2000000))$$;
select tidebase.create_run('wf', run_id => 'large');
select tidebase.acquire_run('large', 'w');
select tidebase.begin_step('large', 1, 's');
select tidebase.begin_step('large', 1, 'sent', side_effects => '{mail}');
select tidebase.fail_step('large', 1, 'sent');
select tidebase.open_gate('large', 1, 'g');
select throws_ok(statement, 'TB002', format('%s must take no more than %s bytes', parameter, case when parameter ~ 'metadata' then 1000000 else 1500000 end), statement || ' is too large')
from (values
  ('input', $$select tidebase.create_run('wf', pg_temp.large())$$),
  ('metadata', $$select tidebase.create_run('wf', metadata => jsonb_build_object('m', pg_temp.large()))$$),
  ('input', $$select tidebase.create_child('large', 1, 'c', 'wf', pg_temp.large())$$),
  ('edge_metadata', $$select tidebase.create_child('large', 1, 'c', 'wf', edge_metadata => jsonb_build_object('m', pg_temp.large()))$$),
  ('input', $$select tidebase.fork_run('large', input => pg_temp.large())$$),
  ('input', $$select tidebase.begin_step('large', 1, 't', pg_temp.large())$$),
  ('output', $$select tidebase.complete_step('large', 1, 's', pg_temp.large())$$),
  ('output', $$select tidebase.record_step('large', 1, 't', output => pg_temp.large())$$),
  ('error', $$select tidebase.fail_step('large', 1, 's', pg_temp.large())$$),
  ('output', $$select tidebase.resolve_review('large', 'sent', 'accept', pg_temp.large())$$),
  ('payload', $$select tidebase.append_event('large', 1, 'x', pg_temp.large())$$),
  ('value', $$select tidebase.set_state('large', 1, pg_temp.large())$$),
  ('value', $$select tidebase.patch_state('large', 1, jsonb_build_object('k', pg_temp.large()))$$),
  ('value', $$select tidebase.create_snapshot('large', 1, 'l', state => pg_temp.large())$$),
  ('metadata', $$select tidebase.set_state('large', 1, '1', metadata => jsonb_build_object('m', pg_temp.large()))$$),
  ('data', $$select tidebase.open_gate('large', 1, 'h', data => pg_temp.large())$$),
  ('payload', $$select tidebase.decide_gate('large', 'g', 'approved', payload => pg_temp.large())$$),
  ('error', $$select tidebase.fail_run('large', 1, pg_temp.large())$$),
  ('result', $$select tidebase.complete_run('large', 1, pg_temp.large())$$)) too (parameter, statement);
delete from tidebase_private.settings where name = 'max_payload_bytes';
select lives_ok($$select tidebase.complete_step('large', 1, 's', pg_temp.large())$$, '64 MB are allowed unless told');
select throws_ok($$select tidebase.begin_step('large', 1, 'many', side_effects => array_fill('mail'::text, array[1001]))$$, 'TB002', null, 'a thousand side effects are enough');
select throws_ok($$select tidebase.open_gate('large', 1, 'many', options => array_fill('yes'::text, array[1001]))$$, 'TB002', null, 'and a thousand options');
select throws_ok($$select tidebase.open_gate('large', 1, 'many', repeat('x', 1000001))$$, 'TB002', null, 'and a prompt of a million bytes');

select * from finish();
rollback;
