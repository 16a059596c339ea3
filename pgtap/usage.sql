-- Usage: what calls to models used, exact and once; budgets, and what happens when they are used up.
begin;
select no_plan();
\ir support/helpers.psql
create function pg_temp.stores_nothing(statement text) returns boolean language plpgsql as $$
declare
  before jsonb := pg_temp.picture();
begin
  perform pg_temp.answer(statement);
  return pg_temp.picture() = before;
end
$$;
create function pg_temp.events_of(id text, type text) returns bigint language sql as $$
  select count(*) from tidebase.events e where e.run_id = id and e.type = events_of.type;
$$;
create function pg_temp.child_of(parent text, name text, budget jsonb default null) returns text language plpgsql as $$
declare
  id text := (tidebase.create_child(parent, 1, name, 'wf', budget => budget)).run_id;
begin
  perform tidebase.acquire_run(id, 'worker');
  return id;
end
$$;
-- Which budget is said to be used up when the run begins a step; NULL: it was begun.
create function pg_temp.stopped_by(id text, token bigint default 1) returns text language plpgsql as $$
declare
  error record;
begin
  error := pg_temp.error_of(format('select tidebase.begin_step(%L, %s, %L)', id, token, gen_random_uuid()));
  return case when error.state = 'TB010' then error.detail::jsonb ->> 'budget_run_id' else error.state end;
end
$$;

-- one record
select pg_temp.leased('r');
select results_eq(
  $$select * from tidebase.record_usage('r', 1, 'draft', 'embeddings', 'acme', 'acme-large', 1000, 200, 0.0123, 3, 'images', 'resp-1', 600, 100, 50,
      label => 'first', metadata => '{"a": 1}', request_id => 'q1')$$,
  $$values (true, 1::bigint, 1000::bigint, 200::bigint, 0.0123, 0::bigint, false, 3::bigint)$$, 'a record is counted, and the totals come back');
select results_eq(
  $$select run_id, seq, kind, step, provider, model, response_id, input_tokens, cache_read_tokens, cache_write_tokens, output_tokens, reasoning_tokens, cost,
      currency, quantity, unit, label, metadata, created_at between clock_timestamp() - interval '1 min' and clock_timestamp() from tidebase.usage_records$$,
  $$values ('r', 3::bigint, 'embeddings', 'draft', 'acme', 'acme-large', 'resp-1', 1000::bigint, 600::bigint, 100::bigint, 200::bigint, 50::bigint, 0.0123,
      'USD', 3::numeric, 'images', 'first', '{"a": 1}'::jsonb, true)$$, 'all of it is kept');
select results_eq($$select seq, type, payload from tidebase.read_events('r', 2)$$,
  $$values (3::bigint, 'usage.recorded', '{"kind": "embeddings", "step": "draft", "provider": "acme", "model": "acme-large", "response_id": "resp-1",
    "input_tokens": 1000, "cache_read_tokens": 600, "cache_write_tokens": 100, "output_tokens": 200, "reasoning_tokens": 50, "cost": 0.0123, "currency": "USD",
    "quantity": 3, "unit": "images", "label": "first", "metadata": {"a": 1}}'::jsonb)$$, 'and told in the log');
select results_eq($$select * from tidebase.record_usage('r', 1)$$, $$values (true, 2::bigint, 1000::bigint, 200::bigint, 0.0123, 1::bigint, false, 4::bigint)$$,
  'nothing need be known; a price that nobody knows is counted as such');
select results_eq(
  $$select kind, step, provider, model, response_id, input_tokens, cache_read_tokens, cache_write_tokens, output_tokens, reasoning_tokens, cost, currency,
      quantity, unit, label, metadata from tidebase.usage_records where seq = 4$$,
  $$values ('chat', null::text, null::text, null::text, null::text, null::bigint, null::bigint, null::bigint, null::bigint, null::bigint, null::numeric, 'USD',
      null::numeric, null::text, null::text, '{}'::jsonb)$$, 'what is not known is NULL, never 0');
select is((select payload from tidebase.read_events('r', 3)), '{"kind": "chat", "currency": "USD"}', 'the log leaves it out');
select results_eq($$select records, unpriced from tidebase.record_usage('r', 1, cost_usd => 0)$$, $$values (3::bigint, 1::bigint)$$, 'a price of 0 is a price');
select results_eq($$select cost_usd, unpriced from tidebase.record_usage('r', 1, cost => 0.5)$$, $$values (0.5123, 1::bigint)$$, 'cost is in USD unless told');
select results_eq($$select cost_usd, unpriced from tidebase.record_usage('r', 1, cost => 7, currency => 'EUR')$$, $$values (0.5123, 2::bigint)$$,
  'another currency is not added up, and counts as without a price in USD');
select results_eq($$select cost, currency from tidebase.usage_records where seq = 7$$, $$values (7::numeric, 'EUR')$$, 'it is kept as it is');
select results_eq($$select cost_usd from tidebase.record_usage('r', 1, cost => 0.0001, currency => null)$$, $$values (0.5124)$$, 'no currency is USD');
select ok(pg_temp.dense('r'), 'each record takes one number');

-- money is exact
select pg_temp.leased('money');
select tidebase.record_usage('money', 1, cost_usd => 0.1) from generate_series(1, 10);
select is((select cost_usd::text from tidebase.usage_totals where run_id = 'money'), '1.0', 'ten times 0.1 is 1.0');
select is((tidebase.record_usage('money', 1, cost_usd => 0.0000000000001)).cost_usd::text, '1.0000000000001', 'thirteen decimals are kept');
select is((select cost::text from tidebase.usage_records where run_id = 'money' order by seq desc limit 1), '0.0000000000001', 'in the record, too');
select is((tidebase.record_usage('money', 1, cost_usd => 1e12)).cost_usd::text, '1000000000001.0000000000001', 'and beside a great sum');

-- once
select ok(pg_temp.stores_nothing($$select tidebase.record_usage('r', 1, response_id => 'resp-1', cost_usd => 5, input_tokens => 5)$$), 'a response is counted once');
select results_eq($$select * from tidebase.record_usage('r', 1, response_id => 'resp-1', cost_usd => 5, input_tokens => 5)$$,
  $$values (false, 6::bigint, 1000::bigint, 200::bigint, 0.5124, 2::bigint, false, 3::bigint)$$, 'who records it again is told so, with totals that stayed');
select ok(pg_temp.stores_nothing($$select tidebase.record_usage('r', 1, response_id => 'resp-1', request_id => 'q2')$$), 'also by another call');
select ok(pg_temp.stores_nothing($$select tidebase.record_usage('r', 1, cost_usd => 9, request_id => 'q1')$$), 'a call is counted once, whatever it says the second time');
select is((tidebase.record_usage('r', 1, cost_usd => 9, request_id => 'q1')).recorded, false, 'and is told so');
select is((tidebase.record_usage('r', 1, response_id => 'resp-2', request_id => 'q3')).recorded, true, 'another response is another record');
select is((tidebase.record_usage('money', 1, response_id => 'resp-1', request_id => 'q1')).recorded, true, 'another run may have the same response and the same call');
select pg_temp.take_over('r');
select is((tidebase.record_usage('r', 2, response_id => 'resp-2')).recorded, false, 'ids outlive the lease');
select ok(pg_temp.dense('r'), 'a repetition costs no number');

-- arguments
select throws_ok('select tidebase.record_usage(''r'', 2, ' || arguments || ')', 'TB002', null, 'record_usage refuses ' || arguments) from unnest(array[
  'kind => ''''', 'kind => '' ''', 'kind => repeat(''x'', 256)',
  'input_tokens => -1', 'cache_read_tokens => -1', 'cache_write_tokens => -1', 'output_tokens => -1', 'reasoning_tokens => -1',
  'input_tokens => 1000000000001', 'output_tokens => 9223372036854775807',
  'input_tokens => 10, cache_read_tokens => 11', 'input_tokens => 10, cache_write_tokens => 11', 'input_tokens => 10, cache_read_tokens => 6, cache_write_tokens => 5',
  'input_tokens => 0, cache_read_tokens => 1', 'output_tokens => 10, reasoning_tokens => 11',
  'cost_usd => -0.01', 'cost_usd => ''NaN''', 'cost_usd => ''Infinity''', 'cost_usd => ''-Infinity''', 'cost_usd => 1000000000000.01',
  'cost => -1', 'cost => ''NaN''', 'cost => ''Infinity''', 'cost => 1e13', 'cost_usd => 1, cost => 1', 'cost_usd => 1, currency => ''EUR''', 'cost_usd => 0, cost => 0',
  'quantity => -1', 'quantity => ''NaN''', 'quantity => ''Infinity''', 'quantity => 1e25',
  'currency => ''''', 'currency => ''usd''', 'currency => ''US''', 'currency => ''USDT''', 'currency => E''USD\n''', 'currency => ''ÄÖÜ''',
  'metadata => ''[]''', 'metadata => ''1''', 'metadata => ''null''', 'metadata => ''"x"''',
  'response_id => ''''', 'response_id => '' ''', 'response_id => repeat(''x'', 1025)', 'request_id => ''''', 'request_id => '' ''', 'request_id => repeat(''x'', 256)']) arguments;
select lives_ok('select tidebase.record_usage(''r'', 2, ' || arguments || ')', 'record_usage takes ' || arguments) from unnest(array[
  'kind => ''x''''; drop table tidebase.usage; --''', 'kind => repeat(''x'', 255)', 'input_tokens => 0, output_tokens => 0', 'input_tokens => 1000000000000',
  'input_tokens => 10, cache_read_tokens => 5, cache_write_tokens => 5', 'output_tokens => 10, reasoning_tokens => 10', 'cost_usd => 1e12', 'quantity => 0.5, unit => ''seconds''',
  'currency => ''XAU'', cost => 1', 'metadata => ''{}''', 'response_id => repeat(''x'', 1024)', 'request_id => repeat(''x'', 255)', 'step => ''never begun''']) arguments;

-- who may record
select throws_ok(format($$select tidebase.record_usage('r', %s)$$, token), 'TB003', null, token || ' is not the token') from unnest(array['1', '3', 'null']) token;
select throws_ok($$select tidebase.record_usage('none', 1)$$, 'TB001', null, 'an unknown run uses nothing');
select pg_temp.leased('over');
select tidebase.complete_run('over', 1);
select throws_ok($$select tidebase.record_usage('over', 1)$$, 'TB005', null, 'nor does a completed one');
select throws_ok($$select tidebase.record_usage('over', 2)$$, 'TB003', null, 'for whom it was not the token');
select pg_temp.leased('stopped');
select tidebase.cancel_run('stopped');
select throws_ok($$select tidebase.record_usage('stopped', 1)$$, 'TB004', null, 'nor a cancelled one');
select tidebase.create_run('wf', run_id => 'idle');
select throws_ok($$select tidebase.record_usage('idle', 0)$$, 'TB003', null, 'nor one that nobody works on');

-- by step and by model
select pg_temp.leased('v');
select tidebase.record_usage('v', 1, 'plan', provider => 'acme', model => 'large', input_tokens => 10, cache_read_tokens => 4, cache_write_tokens => 3,
  output_tokens => 5, reasoning_tokens => 2, cost_usd => 0.1);
select tidebase.record_usage('v', 1, 'plan', provider => 'acme', model => 'large', input_tokens => 20, output_tokens => 6, cost_usd => 0.2);
select tidebase.record_usage('v', 1, 'plan', provider => 'acme', model => 'small', input_tokens => 1);
select tidebase.record_usage('v', 1, 'plan', provider => 'acme', model => 'large', cost => 3, currency => 'EUR');
select tidebase.record_usage('v', 1, provider => 'other', model => 'large', output_tokens => 7, cost_usd => 0.4);
select results_eq(
  $$select step, currency, records, unpriced, input_tokens, cache_read_tokens, cache_write_tokens, output_tokens, reasoning_tokens, cost
    from tidebase.usage_by_step where run_id = 'v' order by step nulls last, currency$$,
  $$values ('plan', 'EUR', 1::bigint, 0::bigint, null::bigint, null::bigint, null::bigint, null::bigint, null::bigint, 3::numeric),
    ('plan', 'USD', 3, 1, 31, 4, 3, 11, 2, 0.3), (null, 'USD', 1, 0, null, null, null, 7, null, 0.4)$$, 'usage by step, by currency: what is unknown adds nothing');
select results_eq(
  $$select provider, model, currency, records, unpriced, input_tokens, cache_read_tokens, cache_write_tokens, output_tokens, reasoning_tokens, cost
    from tidebase.usage_by_model where run_id = 'v' order by provider, model, currency$$,
  $$values ('acme', 'large', 'EUR', 1::bigint, 0::bigint, null::bigint, null::bigint, null::bigint, null::bigint, null::bigint, 3::numeric),
    ('acme', 'large', 'USD', 2, 0, 30, 4, 3, 11, 2, 0.3), ('acme', 'small', 'USD', 1, 1, 1, null, null, null, null, null),
    ('other', 'large', 'USD', 1, 0, null, null, null, 7, null, 0.4)$$, 'by model; a cost that nobody knows is NULL');

-- totals, with the descendants
select tidebase.create_run('wf', run_id => 'none used');
select results_eq(
  $$select records, unpriced, input_tokens, cache_read_tokens, cache_write_tokens, output_tokens, reasoning_tokens, cost_usd, tree_runs, tree_records, tree_unpriced,
      tree_input_tokens, tree_output_tokens, tree_cost_usd, cost_limit_usd, token_limit from tidebase.usage_totals where run_id = 'none used'$$,
  $$values (0::bigint, 0::bigint, 0::bigint, 0::bigint, 0::bigint, 0::bigint, 0::bigint, 0::numeric, 1::bigint, 0::bigint, 0::bigint, 0::bigint, 0::bigint, 0::numeric,
      null::numeric, null::bigint)$$, 'a run that used nothing has a row of zeros');
select results_eq(
  $$select records, unpriced, input_tokens, cache_read_tokens, cache_write_tokens, output_tokens, reasoning_tokens, cost_usd, tree_runs, tree_cost_usd
    from tidebase.usage_totals where run_id = 'v'$$,
  $$values (5::bigint, 2::bigint, 31::bigint, 4::bigint, 3::bigint, 18::bigint, 2::bigint, 0.7, 1::bigint, 0.7)$$, 'the others have theirs');
create temp table tree (name text, id text);
insert into tree values ('child', pg_temp.child_of('v', 'child')), ('unused', pg_temp.child_of('v', 'unused'));
insert into tree select 'grandchild', pg_temp.child_of(id, 'grandchild') from tree where name = 'child';
insert into tree select 'great', pg_temp.child_of(id, 'great') from tree where name = 'grandchild';
insert into tree values ('fork', tidebase.fork_run('v', 'fork of v'));
insert into tree select 'fork of child', tidebase.fork_run(id, 'fork of child') from tree where name = 'child';
select tidebase.acquire_run(id, 'w') from tree where name like 'fork%';
select tidebase.record_usage(id, 1, input_tokens => 100, output_tokens => 1, cost_usd => 1) from tree where name in ('child', 'grandchild');
select tidebase.record_usage(id, 1, input_tokens => 1000, output_tokens => 10) from tree where name = 'great';
select tidebase.record_usage(id, 1, input_tokens => 50000, cost_usd => 500) from tree where name like 'fork%';
select results_eq(
  $$select n.name, t.cost_usd, t.tree_runs, t.tree_records, t.tree_unpriced, t.tree_input_tokens, t.tree_output_tokens, t.tree_cost_usd
    from tidebase.usage_totals t join (table tree union all values ('v', 'v')) n (name, id) on n.id = t.run_id order by 1$$,
  $$values ('child', 1::numeric, 3::bigint, 3::bigint, 1::bigint, 1200::bigint, 12::bigint, 2::numeric), ('fork', 500, 1, 1, 0, 50000, 0, 500),
    ('fork of child', 500, 1, 1, 0, 50000, 0, 500), ('grandchild', 1, 2, 2, 1, 1100, 11, 1), ('great', 0, 1, 1, 1, 1000, 10, 0), ('unused', 0, 1, 0, 0, 0, 0, 0),
    ('v', 0.7, 5, 8, 3, 1231, 30, 2.7)$$, 'a tree has what all below it used; forks are runs of their own');

-- budgets: what create_run takes
select throws_ok(format('select tidebase.create_run(''wf'', budget => %L)', budget), 'TB002', null, budget || ' is no budget') from unnest(array[
  '[]', '1', '"1"', 'true', 'null', '{"usd": 1}', '{"cost_usd": 1, "tokens": 1, "calls": null}', '{"cost_usd": "1"}', '{"tokens": "1"}',
  '{"cost_usd": -0.01}', '{"tokens": -1}', '{"cost_usd": 1, "tokens": -1}', '{"tokens": 1e19}']) budget;
select lives_ok(format('select tidebase.create_run(''wf'', budget => %L)', budget), budget || ' is one') from unnest(array[
  '{}', '{"cost_usd": null}', '{"tokens": null, "cost_usd": null}', '{"cost_usd": 0}', '{"tokens": 0}', '{"cost_usd": 0.000000000001}', '{"tokens": 1e18}']) budget;
select tidebase.create_run('wf', run_id => 'limits', budget => '{"cost_usd": 2.50, "tokens": 100000}');
select results_eq($$select cost_limit_usd, token_limit from tidebase.usage_totals where run_id = 'limits'$$, $$values (2.5, 100000::bigint)$$, 'the limits are beside the totals');
select tidebase.create_run('wf', run_id => 'limits', budget => '{"cost_usd": 9}');
select is((select cost_limit_usd from tidebase.usage_totals where run_id = 'limits'), 2.5, 'and are those of the first call');

-- a budget is used up
select tidebase.create_run('wf', run_id => 'b', budget => '{"cost_usd": 1}');
select tidebase.acquire_run('b', 'w');
select tidebase.begin_step('b', 1, 'one', '1');
select tidebase.complete_step('b', 1, 'one', '"done"');
select tidebase.begin_step('b', 1, 'two');
select tidebase.begin_step('b', 1, 'three');
select tidebase.fail_step('b', 1, 'three');
select is((tidebase.record_usage('b', 1, cost_usd => 0.999999)).exhausted, false, 'a budget that is nearly used up is not');
select is((tidebase.begin_step('b', 1, 'four')).outcome, 'execute', 'and steps begin');
select is((tidebase.record_usage('b', 1, input_tokens => 1000000)).exhausted, false, 'what has no price costs nothing');
select is((tidebase.record_usage('b', 1, cost => 100, currency => 'EUR')).exhausted, false, 'nor does another currency');
select is(pg_temp.events_of('b', 'budget.exhausted'), 0::bigint, 'nothing is told of it yet');
select is((tidebase.record_usage('b', 1, cost_usd => 0.000001, response_id => 'last')).exhausted, true, 'a total that has reached the limit has used it up');
select results_eq($$select e.type, e.payload = jsonb_build_object('seq', e.seq - 1) from tidebase.events e where run_id = 'b' order by seq desc limit 2$$,
  $$values ('budget.exhausted', true), ('usage.recorded', false)$$, 'the log tells, and by which record');
select is((tidebase.record_usage('b', 1, response_id => 'last')).exhausted, true, 'who repeats the record is told, too');
select throws_ok($$select tidebase.begin_step('b', 1, 'five')$$, 'TB010', 'the budget of run ''b'' is used up: 1.000000 of 1 USD', 'no step begins any more');
select throws_ok($$select tidebase.begin_step('b', 1, 'three')$$, 'TB010', null, 'nor is one repeated that failed');
select is((pg_temp.error_of($$select tidebase.begin_step('b', 1, 'five')$$)).detail::jsonb,
  '{"run_id": "b", "budget_run_id": "b", "cost_usd": 1, "cost_limit_usd": 1, "tokens": 1000000, "token_limit": null}', 'the error says whose budget, and how much');
select results_eq($$select outcome, output from tidebase.begin_step('b', 1, 'one', '1')$$, $$values ('replay', '"done"'::jsonb)$$, 'a checkpoint is handed out all the same');
select lives_ok($$select tidebase.complete_step('b', 1, 'two')$$, 'what was begun is completed');
select lives_ok($$select tidebase.append_event('b', 1, 'x')$$, 'and the log goes on');
select is((tidebase.record_usage('b', 1, cost_usd => 0.5)).cost_usd, 1.5, 'what was used beyond is recorded');
select is(pg_temp.events_of('b', 'budget.exhausted'), 1::bigint, 'a budget is used up once');
select pg_temp.take_over('b');
select is(pg_temp.stopped_by('b', 2), 'b', 'another worker has no more of it');
select ok(pg_temp.dense('b'), 'the numbers are 1..n');

-- it is changed
select tidebase.set_budget('b', 1.5, actor => 'ann', reason => 'nearly there');
select is(pg_temp.stopped_by('b', 2), 'b', 'a budget that is raised to what was used is used up');
select is(pg_temp.events_of('b', 'budget.exhausted'), 1::bigint, 'which is told by what uses it up only');
select tidebase.set_budget('b', 1.6);
select results_eq($$select payload from tidebase.events where run_id = 'b' and type = 'budget.changed' order by seq$$,
  $$values ('{"cost_usd": 1.5, "tokens": null, "actor": "ann", "reason": "nearly there"}'::jsonb),
    (jsonb_build_object('cost_usd', 1.6, 'tokens', null, 'actor', session_user, 'reason', null))$$, 'the log has who changed it, and why');
select is((tidebase.begin_step('b', 2, 'five')).outcome, 'execute', 'a budget that is raised further lets the run go on');
select is((tidebase.begin_step('b', 2, 'three')).outcome, 'execute', 'also with what failed');
select is((tidebase.record_usage('b', 2, cost_usd => 1)).exhausted, true, 'until it is used up again');
select is(pg_temp.events_of('b', 'budget.exhausted'), 2::bigint, 'which is told again');
select tidebase.set_budget('b', null, 1000000);
select is((pg_temp.error_of($$select tidebase.begin_step('b', 2, 'six')$$)).message, 'the budget of run ''b'' is used up: 1000000 of 1000000 tokens', 'the limit may be another');
select tidebase.set_budget('b');
select is(pg_temp.stopped_by('b', 2), null, 'none is no limit');
select is((tidebase.record_usage('b', 2, cost_usd => 1000)).exhausted, false, 'however much is used');
select results_eq($$select cost_limit_usd, token_limit from tidebase.usage_totals where run_id = 'b'$$, $$values (null::numeric, null::bigint)$$, 'nothing is left of it');
select tidebase.set_budget('b', 0);
select is(pg_temp.stopped_by('b', 2), 'b', 'a budget may be taken away from a run');
select tidebase.create_run('wf', run_id => 'nothing', budget => '{"cost_usd": 0}');
select tidebase.acquire_run('nothing', 'w');
select is(pg_temp.stopped_by('nothing'), 'nothing', 'one of 0 is used up from the beginning');
select is((tidebase.record_usage('nothing', 1, cost_usd => 1)).exhausted, true, 'and stays so');
select is(pg_temp.events_of('nothing', 'budget.exhausted'), 0::bigint, 'nothing used it up');
select throws_ok('select tidebase.set_budget(''b'', ' || arguments || ')', 'TB002', null, 'set_budget refuses ' || arguments)
from unnest(array['-0.01', '''NaN''', '''Infinity''', '''-Infinity''', '1e13', 'null, -1', '1, -1']) arguments;
select throws_ok($$select tidebase.set_budget('none', 1)$$, 'TB001', null, 'an unknown run has no budget');
select throws_ok($$select tidebase.set_budget('over', 1)$$, 'TB005', null, 'a completed one needs none');
select throws_ok($$select tidebase.set_budget('stopped', 1)$$, 'TB004', null, 'nor does a cancelled one');
select pg_temp.leased('failed');
select tidebase.fail_run('failed', 1);
select lives_ok($$select tidebase.set_budget('failed', 1)$$, 'a failed one may be resumed with another');
select lives_ok($$select tidebase.set_budget('none used', 1)$$, 'one that nobody works on has it ready');

-- tokens
select tidebase.create_run('wf', run_id => 't', budget => '{"tokens": 100}');
select tidebase.acquire_run('t', 'w');
select is((tidebase.record_usage('t', 1, input_tokens => 60, cache_read_tokens => 50, output_tokens => 39, reasoning_tokens => 30, cost_usd => 1000)).exhausted, false,
  'a budget of tokens counts input and output, each token once');
select is(pg_temp.stopped_by('t'), null, 'steps begin');
select is((tidebase.record_usage('t', 1, output_tokens => 1)).exhausted, true, 'until the last is used');
select throws_ok($$select tidebase.begin_step('t', 1, 'more')$$, 'TB010', 'the budget of run ''t'' is used up: 100 of 100 tokens', 'then none does');
select tidebase.create_run('wf', run_id => 'both', budget => '{"tokens": 10, "cost_usd": 1}');
select tidebase.acquire_run('both', 'w');
select is((tidebase.record_usage('both', 1, input_tokens => 10)).exhausted, true, 'of two limits the first that is reached counts');
select tidebase.record_usage('both', 1, cost_usd => 1);
select is((pg_temp.error_of($$select tidebase.begin_step('both', 1, 's')$$)).message, 'the budget of run ''both'' is used up: 1 of 1 USD and 10 of 10 tokens', 'if both are, the error says so');
select is(pg_temp.events_of('both', 'budget.exhausted'), 1::bigint, 'the log once');
select tidebase.create_run('wf', run_id => 'at once', budget => '{"tokens": 10, "cost_usd": 1}');
select tidebase.acquire_run('at once', 'w');
select tidebase.record_usage('at once', 1, input_tokens => 10, cost_usd => 1);
select is(pg_temp.events_of('at once', 'budget.exhausted'), 1::bigint, 'also when one record used up both');

-- children share it
select tidebase.create_run('wf', run_id => 'p', budget => '{"cost_usd": 10, "tokens": 1000}');
select tidebase.acquire_run('p', 'w');
create temp table family as select pg_temp.child_of('p', 'c') as c, pg_temp.child_of('p', 'own', '{"cost_usd": 2}') as own, pg_temp.child_of('p', 'other') as other;
alter table family add g text, add own_g text;
update family set g = pg_temp.child_of(c, 'g'), own_g = pg_temp.child_of(own, 'g');
select tidebase.record_usage(g, 1, input_tokens => 10, cost_usd => 1) from family;
select results_eq($$select a.run_id = c, a.run_id = g, shared_cost_usd, cost_usd, shared_tokens from tidebase.accounts a, family where a.run_id in ('p', c, g) order by 1, 2$$,
  $$values (false, false, 1::numeric, 0::numeric, 10::bigint), (false, true, 1, 1, 10), (true, false, 1, 0, 10)$$, 'what a grandchild uses is charged all the way up');
select is((tidebase.record_usage(own_g, 1, cost_usd => 2)).exhausted, true, 'a child may have a smaller budget of its own') from family;
select is(pg_temp.stopped_by(own_g), own, 'which counts for those below it') from family;
select is(pg_temp.stopped_by(own), own, 'and for itself') from family;
select is(pg_temp.stopped_by(id), null, 'but for nobody else') from family, unnest(array['p', c, g, other]) id;
select is(pg_temp.events_of(own_g, 'budget.exhausted'), 1::bigint, 'who used it up has it in the log') from family;
select tidebase.set_budget(own, 5) from family;
select is(pg_temp.stopped_by(own_g), null, 'raised, it lets them go on') from family;
select is((tidebase.record_usage('p', 1, cost_usd => 6.999)).exhausted, false, 'what the parent uses adds to it');
select is((tidebase.record_usage(other, 1, cost_usd => 0.001)).exhausted, true, 'the last of it may be a child''s') from family;
select is(pg_temp.stopped_by(id), 'p', 'then the whole tree stops') from family, unnest(array['p', c, g, own, own_g, other]) id;
select is(pg_temp.events_of(other, 'budget.exhausted'), 1::bigint, 'and the log of that child tells') from family;
select is(pg_temp.events_of('p', 'budget.exhausted'), 0::bigint, 'not that of the parent');
select results_eq($$select e.detail::jsonb ->> 'run_id' = g, e.detail::jsonb ->> 'budget_run_id', (e.detail::jsonb ->> 'cost_usd')::numeric
    from family, pg_temp.error_of(format('select tidebase.begin_step(%L, 1, ''x'')', g)) e$$, $$values (true, 'p', 10::numeric)$$, 'the error names the run, and whose budget it was');
select tidebase.set_budget('p', 12);
select is(pg_temp.stopped_by(id), null, 'raised, it lets all of them go on') from family, unnest(array['p', c, g, own, own_g, other]) id;
select tidebase.record_usage(own, 1, cost_usd => 3) from family;
select is(pg_temp.events_of(own, 'budget.exhausted'), 1::bigint, 'a record that uses up two budgets is one event') from family;
select is(pg_temp.stopped_by(own_g), own, 'the nearest is named') from family;
select is((tidebase.create_child('p', 1, 'late', 'wf')).created, true, 'a child may be made, though nothing is left');
select is(pg_temp.stopped_by(pg_temp.child_of('p', 'late')), 'p', 'but it has nothing to begin with');
select is((tidebase.record_usage(c, 1, cost_usd => 100)).exhausted, true, 'the budget of a parent is told below, too') from family;

-- a budget that comes later
select pg_temp.leased('l');
create temp table later as select pg_temp.child_of('l', 'c') as c, pg_temp.child_of('l', 'own', '{"cost_usd": 100}') as own, pg_temp.child_of('l', 'idle') as idle;
alter table later add g text, add own_g text;
update later set g = pg_temp.child_of(c, 'g'), own_g = pg_temp.child_of(own, 'g');
select tidebase.fork_run('l', 'fork of l');
select tidebase.acquire_run('fork of l', 'w');
select tidebase.record_usage('l', 1, input_tokens => 1, cost_usd => 1);
select tidebase.record_usage(c, 1, output_tokens => 2, cost_usd => 2) from later;
select tidebase.record_usage(g, 1, input_tokens => 4, cost_usd => 4) from later;
select tidebase.record_usage(own, 1, input_tokens => 8, cost_usd => 8) from later;
select tidebase.record_usage(own_g, 1, input_tokens => 16, cost_usd => 16) from later;
select tidebase.record_usage('fork of l', 1, input_tokens => 32, cost_usd => 32);
select tidebase.set_budget('l', 31);
select results_eq(
  $$select n.name, a.shared_cost_usd, a.shared_tokens, p.name
    from tidebase.accounts a join (select 'l' as name, 'l' as id union all select k.key, k.value from later, jsonb_each_text(to_jsonb(later)) k) n on n.id = a.run_id
    left join (select 'l' as name, 'l' as id union all select k.key, k.value from later, jsonb_each_text(to_jsonb(later)) k) p on p.id = a.parent_run_id order by 1$$,
  $$values ('c', 6::numeric, 6::bigint, 'l'), ('g', 4, 4, 'c'), ('idle', 0, 0, 'l'), ('l', 31, 31, null), ('own', 24, 24, 'l'), ('own_g', 16, 16, 'own')$$,
  'a budget that is set later counts what all below used before');
select is(pg_temp.stopped_by(id), 'l', 'where that is too much, they stop') from later, unnest(array['l', c, g, own, own_g, idle]) id;
select is(pg_temp.stopped_by('fork of l'), null, 'a fork does not');
select tidebase.set_budget('l', 32);
select is(pg_temp.stopped_by(id), null, 'with more they go on') from later, unnest(array['l', c, g, own, own_g, idle]) id;
select is((tidebase.record_usage(own_g, 1, cost_usd => 1)).exhausted, true, 'and share it from then on') from later;
select is(pg_temp.stopped_by(pg_temp.child_of(g, 'new')), 'l', 'also with those that are made afterwards') from later;
select tidebase.set_budget('l', 1000);
select tidebase.record_usage(own_g, 1, cost_usd => 75) from later;
select is(pg_temp.stopped_by(own_g), own, 'a child that had a budget keeps it') from later;
select is(pg_temp.stopped_by('l'), null, 'for itself');
select tidebase.set_budget(own) from later;
select is(pg_temp.stopped_by(own_g), null, 'until it is taken back') from later;
select tidebase.set_budget('l', 107);
select is(pg_temp.stopped_by(own_g), 'l', 'which does not end the sharing') from later;

-- a budget below one that has none
select pg_temp.leased('top');
create temp table middle as select pg_temp.child_of('top', 'm') as m;
alter table middle add low text;
update middle set low = pg_temp.child_of(m, 'low');
select tidebase.record_usage(low, 1, cost_usd => 3) from middle;
select tidebase.set_budget(m, 3) from middle;
select is(pg_temp.stopped_by(low), m, 'a child may get one that its parent does not have') from middle;
select is(pg_temp.stopped_by('top'), null, 'which does not stop the parent');
select tidebase.set_budget(m) from middle;
select tidebase.record_usage('top', 1, cost_usd => 4);
select tidebase.set_budget('top', 7);
select is(pg_temp.stopped_by(low), 'top', 'then the parent gets one, and nothing is counted twice or left out') from middle;
select is((select shared_cost_usd from tidebase.accounts where run_id = 'top'), 7::numeric, 'to the cent');

-- forks
select tidebase.fork_run('p', 'fork of p');
select results_eq($$select cost_usd, cost_limit_usd, token_limit from tidebase.usage_totals where run_id = 'fork of p'$$, $$values (0::numeric, 12::numeric, null::bigint)$$,
  'a fork has the limits of its source, unused');
select tidebase.acquire_run('fork of p', 'w');
select is(pg_temp.stopped_by('fork of p'), null, 'and may go on where its source may not');
select tidebase.record_usage('fork of p', 1, cost_usd => 12);
select is(pg_temp.stopped_by('fork of p'), 'fork of p', 'until they are used up');
select * from finish();
rollback;
