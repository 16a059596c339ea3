-- Reconciliation: what only time brings about, once.
begin;
select no_plan();
\ir support/helpers.psql
create function pg_temp.due(id text) returns void language sql as $$
  update tidebase.run_heads set due_at = clock_timestamp() - interval '1 second' where run_id = id;
$$;

select tidebase.create_run('wf', run_id => id) from unnest(array['dead', 'alive', 'gated']) id;
select tidebase.acquire_run(id, 'w') from unnest(array['dead', 'alive', 'gated']) id;
update tidebase.run_heads set lease_expires_at = clock_timestamp() - interval '1 second' where run_id = 'dead';
select results_eq($$select runs, leases from tidebase.reconcile()$$, $$values (0, 0)$$, 'what is not due is not looked at');
select pg_temp.due(id) from unnest(array['dead', 'alive']) id;
select results_eq($$select reason from tidebase.stalled_runs where run_id = 'dead'$$, $$values ('lease_lapsed')$$, 'a silent worker''s run is stalled');
select results_eq($$select runs, leases, gates, timers, deadlines from tidebase.reconcile()$$, $$values (2, 1, 0, 0, 0)$$, 'an expired lease is seen, one that is alive is left alone');
select results_eq($$select status, lease_token from tidebase.run_overview where run_id = 'dead'$$, $$values ('running', 1::bigint)$$, 'its run may be taken over, and that is all');
select results_eq($$select outcome, lapsed_at < clock_timestamp() from tidebase.run_attempts where run_id = 'dead'$$, $$values (null::text, true)$$, 'the attempt keeps when that was');
select results_eq($$select type from tidebase.read_events('dead', 2)$$, $$values ('run.lapsed')$$, 'and so does the log');
select pg_temp.due('dead');
select results_eq($$select runs, leases from tidebase.reconcile()$$, $$values (1, 0)$$, 'once');
select is((tidebase.begin_step('dead', 1, 's')).outcome, 'execute', 'whoever holds it goes on');
select lives_ok($$select tidebase.complete_step('dead', 1, 's')$$, 'and completes what was paid for');
select is((select due_at from tidebase.run_heads where run_id = 'dead'), null, 'nothing is left to look for');
select ok(tidebase.renew_lease('dead', 1) > clock_timestamp(), 'it may even be renewed');
select ok((select due_at > clock_timestamp() from tidebase.run_heads where run_id = 'dead'), 'and is looked at again');
select pg_temp.lapse('dead'), pg_temp.due('dead');
select results_eq($$select runs, leases from tidebase.reconcile()$$, $$values (1, 1)$$, 'when it runs out again, that is seen again');
select is((tidebase.acquire_run('dead', 'v')).token, 2::bigint, 'the next grant raises the token');
select is((select outcome from tidebase.run_attempts where run_id = 'dead' and attempt = 1), 'lapsed', 'and ends the attempt');
select throws_ok($$select tidebase.complete_step('dead', 1, 's')$$, 'TB003', null, 'its former holder is fenced from then on');
select ok((select due_at > clock_timestamp() + interval '30 seconds' from tidebase.run_heads where run_id = 'alive'), 'a live lease is not looked at again at once');
select results_eq($$select runs from tidebase.reconcile()$$, $$values (0)$$, 'nothing is left to do');

select tidebase.open_gate('gated', 1, 'g', '?', timeout => '1 hour', default_decision => 'approved');
select tidebase.start_timer('gated', 1, 't', '1 hour');
select tidebase.suspend_run('gated', 1, 't');
update tidebase.gates set timeout_at = clock_timestamp() - interval '1 second' where run_id = 'gated';
select pg_temp.due('gated');
select is((select reason from tidebase.stalled_runs where run_id = 'gated'), 'overdue', 'a run whose time is over is overdue');
select results_eq($$select runs, gates, timers from tidebase.reconcile()$$, $$values (1, 1, 1)$$, 'gates and timers whose time is over are decided');
select is((select decision from tidebase.gate_overview where run_id = 'gated' and name = 'g'), 'approved', 'by the default decision');
select is((select status from tidebase.run_overview where run_id = 'gated'), 'pending', 'the run that waited may go on');
select throws_ok($$select tidebase.reconcile(0)$$, 'TB002', null, 'max is a sensible number');
select lives_ok($$select tidebase.reconcile(null)$$, 'NULL is the default');

-- A run that cannot be looked at keeps no other waiting.
select tidebase.create_run('wf', run_id => id, deadline => now()) from unnest(array['bad', 'good', 'other']) id;
create function pg_temp.refuse() returns trigger language plpgsql as $$
begin
  if new.run_id = 'bad' then
    raise exception 'no room for %', new.run_id;
  end if;
  return new;
end
$$;
create trigger refuse before insert on tidebase.events for each row execute function pg_temp.refuse();
select results_eq($$select runs, deadlines from tidebase.reconcile()$$, $$values (3, 2)$$, 'where one cannot be looked at, the others are done');
select results_eq($$select run_id, status, failures, sqlstate, message from tidebase.run_setbacks$$, $$values ('bad', 'pending', 1, 'P0001', 'no room for bad')$$, 'it is shown, with its error');
select ok((select next_at between clock_timestamp() + interval '55 seconds' and clock_timestamp() + interval '65 seconds' from tidebase.run_setbacks), 'and set back');
select results_eq($$select runs from tidebase.reconcile()$$, $$values (0)$$, 'so that it is not in the way');
select pg_temp.due('bad');
select results_eq($$select runs, deadlines from tidebase.reconcile()$$, $$values (1, 0)$$, 'until it is due again');
select ok((select failures = 2 and next_at > clock_timestamp() + interval '110 seconds' from tidebase.run_setbacks), 'later and later');
update tidebase.setbacks set failures = 1000000;
select pg_temp.due('bad');
select results_eq($$select runs, deadlines from tidebase.reconcile()$$, $$values (1, 0)$$, 'however often that was');
select ok((select next_at < clock_timestamp() + interval '61 minutes' from tidebase.run_setbacks), 'an hour at most');
drop trigger refuse on tidebase.events;
select pg_temp.due('bad');
select results_eq($$select runs, deadlines from tidebase.reconcile()$$, $$values (1, 1)$$, 'when it can be looked at, it is');
select is_empty($$select from tidebase.setbacks$$, 'and nothing is held against it');
select ok(tidebase_private.is_passing(state), format('%s is of the moment', state)) from unnest(array['40001', '40P01', '55P03', '57014', '53300', '25006', '58030']) state;
select ok(not tidebase_private.is_passing(state), format('%s is not', state)) from unnest(array['P0001', '22003', 'XX000', '23514', 'TB002']) state;
select * from finish();
rollback;
