-- Leases: one holder, tokens that only grow, a fence before every write.
begin;
select no_plan();
create function pg_temp.lapse(id text) returns void language sql as $$
  update tidebase.run_heads set lease_expires_at = clock_timestamp() - interval '1 second' where run_id = id;
$$;
select tidebase.create_run('wf', '{"q": 1}', 'r');
select results_eq(
  $$select outcome, token, attempt, workflow, input, holder, checkpoints, expires_at > clock_timestamp() + '50 s' from tidebase.acquire_run('r', 'ada', code_version => 'v1', request_id => 'q')$$,
  $$values ('granted', 1::bigint, 1, 'wf', '{"q": 1}'::jsonb, 'ada', 0, true)$$, 'the first who asks gets the lease');
select results_eq($$select outcome, token, holder from tidebase.acquire_run('r', 'bob')$$, $$values ('held', null::bigint, 'ada')$$, 'the next is told who has it');
select results_eq($$select outcome, token, holder from tidebase.acquire_run('r', 'ada')$$, $$values ('held', null::bigint, 'ada')$$, 'the same name is not the same holder');
select results_eq($$select outcome, token, attempt from tidebase.acquire_run('r', 'ada', request_id => 'q')$$, $$values ('granted', 1::bigint, 1)$$, 'the same call again is granted the same lease');

select pg_temp.lapse('r');
select lives_ok($$select tidebase.begin_step('r', 1, 's')$$, 'a lapsed holder whom nobody replaced may still work');
select lives_ok($$select tidebase.renew_lease('r', 1)$$, 'and revive its lease');
select is((tidebase.acquire_run('r', 'bob')).outcome, 'held', 'which is alive then');
select pg_temp.lapse('r');
select results_eq($$select outcome, token, attempt from tidebase.acquire_run('r', 'bob')$$, $$values ('granted', 2::bigint, 2)$$, 'a lapsed lease is taken over, and the token grows');
select is((select payload #>> '{lapsed,holder}' from tidebase.read_events('r') where type = 'run.started' and payload ->> 'token' = '2'), 'ada', 'the log tells from whom');
select results_eq($$select attempt, lease_token, holder, code_version, outcome from tidebase.run_attempts where run_id = 'r' order by attempt$$,
  $$values (1, 1::bigint, 'ada', 'v1', 'lapsed'), (2, 2, 'bob', null, null)$$, 'and the attempts keep it');

-- the fence
create temp table writes (statement text);
insert into writes values
  ($$select tidebase.renew_lease('r', %s)$$), ($$select tidebase.release_run('r', %s)$$), ($$select tidebase.complete_run('r', %s)$$),
  ($$select tidebase.fail_run('r', %s)$$), ($$select tidebase.begin_step('r', %s, 'x')$$), ($$select tidebase.complete_step('r', %s, 's')$$),
  ($$select tidebase.fail_step('r', %s, 's')$$), ($$select tidebase.append_event('r', %s, 'x')$$), ($$select tidebase.open_gate('r', %s, 'x')$$),
  ($$select tidebase.start_timer('r', %s, 'x', '1 s')$$), ($$select tidebase.suspend_run('r', %s, 'x')$$), ($$select tidebase.create_child('r', %s, 'x', 'wf')$$);
create temp table before as select h.*, (select count(*) from tidebase.events) as events, (select count(*) from tidebase.steps) as steps from tidebase.run_heads h where h.run_id = 'r';
select throws_ok(format(statement, token), 'TB003', null, format(statement, token) || ' is fenced') from writes, unnest(array['1', 'null', '3', '-1']) token;
select results_eq($$select h.*, (select count(*) from tidebase.events), (select count(*) from tidebase.steps) from tidebase.run_heads h where h.run_id = 'r'$$,
  $$select * from before$$, 'and nothing has changed');

-- giving up
select is(tidebase.release_run('r', 2), tidebase.release_run('r', 2), 'a lease is released, once or twice');
select is((select status from tidebase.run_overview where run_id = 'r'), 'pending', 'the run is pending');
select throws_ok(format(statement, 2), 'TB003', null, format(statement, 2) || ' is fenced after a release') from writes where statement !~ 'release';
select is((tidebase.acquire_run('r', 'ada')).token, 3::bigint, 'and is granted at once, with another token');
select tidebase.complete_run('r', 3);
select results_eq($$select outcome, result from tidebase.acquire_run('r', 'ada')$$, $$values ('completed', 'null'::jsonb)$$, 'a completed run has its result to give');
select throws_ok(format(statement, 3), 'TB005', null, format(statement, 3) || ' comes too late') from writes where statement !~ 'complete_run';

-- arguments
select tidebase.create_run('wf', run_id => 'a');
select throws_ok($$select tidebase.acquire_run('a', null)$$, 'TB002', null, 'a holder has a name');
select throws_ok($$select tidebase.acquire_run('a', repeat('x', 256))$$, 'TB002', null, 'which is not endless');
select throws_ok(format($$select tidebase.acquire_run('a', 'w', %L)$$, ttl), 'TB002', null, format('a lease of %L is refused', ttl))
from unnest(array['0', '-1 s', '1 day 1 s', '1000 years', null]) ttl;
select throws_ok($$select tidebase.renew_lease('a', 0, '-1 s')$$, 'TB002', null, 'nor is a lease renewed into the past');
select throws_ok($$select tidebase.acquire_run('a', 'w', code_version => '')$$, 'TB002', null, 'a code version is not empty');
select throws_ok($$select tidebase.renew_lease('a', 0)$$, 'TB003', null, 'the token of a run that was never leased is no token');

-- durability by meaning
set local synchronous_commit = off;
select tidebase.acquire_run('a', 'w');
select is(current_setting('synchronous_commit'), 'on', 'a grant commits synchronously');
set local synchronous_commit = on;
select tidebase.renew_lease('a', 1);
select is(current_setting('synchronous_commit'), 'on', 'a lazy call does not touch a transaction that has written already');
set local synchronous_commit = remote_apply;
select tidebase.begin_step('a', 1, 's');
select tidebase.complete_step('a', 1, 's');
select is(current_setting('synchronous_commit'), 'remote_apply', 'a stronger setting stays');
select * from finish();
rollback;

-- The lazy ones, each in a transaction of its own that has written nothing before.
begin;
select tidebase_private.commit_lazily();
select current_setting('synchronous_commit') as lazy \gset
select tidebase_private.commit_durably();
select current_setting('synchronous_commit') as durable \gset
rollback;
begin;
set local tidebase.durability = 'full';
select tidebase_private.commit_lazily();
select current_setting('synchronous_commit') as asked_for \gset
rollback;
begin;
select plan(3);
select is(:'lazy'::text, 'off', 'a lazy call that comes first commits asynchronously');
select is(:'durable'::text, 'on', 'unless a durable one follows');
select is(:'asked_for'::text, 'on', 'or the transaction asks for durability');
select * from finish();
rollback;
