-- Recovery: every attempt is kept, and its webhook leaves with the transaction that decided on it.
begin;
select no_plan();
\ir support/helpers.psql
select tidebase.create_run('wf', run_id => 'r', recovery_webhook => 'https://hooks.example/recover');
select tidebase.create_run('wf', run_id => 'plain');
select tidebase.acquire_run(id, 'w') from unnest(array['r', 'plain']) id;
select throws_ok($$select tidebase.create_run('wf', recovery_webhook => 'ftp://x')$$, 'TB002', null, 'a webhook is an http URL');

select throws_ok($$select tidebase.recover_run('r')$$, 'TB002', null, 'a run that somebody holds needs no recovery');
select tidebase.fail_run('plain', 1);
select tidebase.release_run('r', 1);
select is(tidebase.recover_run('plain', 'by hand', 'ada'), 1, 'a failed run is recovered');
select is((select status from tidebase.run_overview where run_id = 'plain'), 'pending', 'it may be acquired');
select results_eq($$select recovery, reason, actor, found_status, status, url from tidebase.recovery_history where run_id = 'plain'$$,
  $$values (1, 'by hand', 'ada', 'failed', 'succeeded', null::text)$$, 'without a webhook that is all there is to it');
select is((tidebase.acquire_run('plain', 'w')).token, 2::bigint, 'and is granted');

select is(tidebase.recover_run('r'), 1, 'a run with a webhook');
select is((select status from tidebase.recovery_history where run_id = 'r'), 'pending', 'waits for its delivery');
select results_eq($$select delivery, attempts, url, body ->> 'runId', body ->> 'recovery' from tidebase.claim_deliveries()$$,
  $$values (1, 1, 'https://hooks.example/recover', 'r', '1')$$, 'a dispatcher gets it');
select is_empty($$select * from tidebase.claim_deliveries()$$, 'and no other one does meanwhile');
select is(tidebase.finish_delivery('r', 1, 1, false, 500, 'oops', 'HTTP 500'), 'pending', 'it is tried again after a failure');
select ok((select next_at > clock_timestamp() from tidebase.deliveries where run_id = 'r'), 'later');
update tidebase.deliveries set next_at = clock_timestamp();
select is((select attempts from tidebase.claim_deliveries()), 2, 'the second attempt');
select is(tidebase.finish_delivery('r', 1, 1, true, 200), 'pending', 'a report of an attempt that was taken over changes nothing');
select is(tidebase.finish_delivery('r', 1, 2, true, 200, 'thanks'), 'delivered', 'the report of the present one does');
select is(tidebase.finish_delivery('r', 1, 2, true, 200, 'thanks'), 'delivered', 'the same call again is the same');
select results_eq($$select status, http_status, response, delivery_attempts from tidebase.recovery_history where run_id = 'r'$$,
  $$values ('succeeded', 200, 'thanks', 2)$$, 'the recovery has what came of it');
select is((select count(*) from tidebase.events where run_id = 'r' and type = 'recovery.delivered'), 1::bigint, 'one event tells of it');

select is(tidebase.record_recovery('r', 'again'), 2, 'the next recovery has the next number');
select tidebase.claim_deliveries();
select is(tidebase.finish_delivery('r', 2, 1, false, error => 'no route', max_attempts => 1), 'failed', 'at last it is given up');
select is((select status from tidebase.recovery_history where run_id = 'r' and recovery = 2), 'failed', 'and the recovery has failed');
select lives_ok($$select tidebase.finish_recovery('r', 2, 'succeeded')$$, 'a second word');
select is((select status from tidebase.recovery_history where run_id = 'r' and recovery = 2), 'failed', 'does not replace the first');
select throws_ok($$select tidebase.finish_recovery('r', 9, 'failed')$$, 'TB012', null, 'an unknown recovery is not finished');
select throws_ok($$select tidebase.finish_recovery('r', 1, 'maybe')$$, 'TB002', null, 'a recovery succeeds or fails');
select throws_ok($$select tidebase.finish_delivery('r', 9, 1, true)$$, 'TB012', null, 'an unknown delivery is not reported');
select throws_ok($$select tidebase.claim_deliveries(0)$$, 'TB002', null, 'max is a sensible number');
select tidebase.record_recovery('r', 'answer lost', request_id => 'q');
select tidebase.recover_run('r', 'answer lost', request_id => 'q2');
select pg_temp.same_again($$select tidebase.record_recovery('r', 'answer lost', request_id => 'q')$$, 'a recovery');
select pg_temp.same_again($$select tidebase.recover_run('r', 'answer lost', request_id => 'q2')$$, 'a run recovered');
select throws_ok($$select tidebase.record_recovery('r', request_id => ' ')$$, 'TB002', null, 'a request has an id that is not blank');
select throws_ok($$select tidebase.record_recovery('none')$$, 'TB001', null, 'an unknown run is not recovered');
select throws_ok($$select tidebase.record_recovery('r', ' ')$$, 'TB002', null, 'a recovery has a reason');
select tidebase.cancel_run('r');
select throws_ok($$select tidebase.recover_run('r')$$, 'TB004', null, 'a cancelled run is not recovered');
select tidebase.create_run('wf', run_id => 'vague', recovery_webhook => 'http://hook');
select tidebase.record_recovery('vague');
select tidebase.claim_deliveries();
select pg_temp.error_of($$select tidebase.finish_delivery('vague', 1, null, true)$$);
select is((select status from tidebase.deliveries where run_id = 'vague'), 'pending', 'a report that does not say which attempt it is about changes nothing');
select pg_temp.leased('left');
select throws_ok($$select tidebase.recover_run('left')$$, 'TB002', null, 'a run that is held needs no recovery');
select pg_temp.lapse('left');
select is(tidebase.recover_run('left'), 1, 'one that its worker has left does');
select is(pg_temp.status('left'), 'running', 'and may be acquired at once, as it might before');
select ok((select lapsed_at is not null from tidebase.attempts where run_id = 'left'), 'that the lease ran out is written down');
select is((tidebase.acquire_run('left', 'next')).attempt, 2, 'and another begins');
select ok(pg_temp.dense('left'), 'the log has no gap');
-- Nobody has to ask: a run that stands still calls.
select tidebase.create_run('wf', run_id => id, recovery_webhook => 'http://hook') from unnest(array['fails', 'lapses', 'retried', 'over']) id;
select tidebase.create_run('wf', run_id => 'mute');
select tidebase.acquire_run(id, 'w') from unnest(array['fails', 'lapses', 'over', 'mute']) id;
select tidebase.fail_run('fails', 1, '"no"');
select results_eq($$select body from tidebase.deliveries where run_id = 'fails' and status = 'pending' and next_at <= clock_timestamp()$$,
  $$values ('{"type": "run.resume", "runId": "fails", "workflowName": "wf", "attempt": 1, "status": "failed", "reason": "run_failed", "recovery": 1}'::jsonb)$$,
  'a run that has failed calls its webhook at once');
select results_eq($$select type from tidebase.events where run_id = 'fails' order by seq desc limit 2$$, $$values ('recovery.started'), ('run.failed')$$, 'after it has failed');
select is((select actor from tidebase.recovery_history where run_id = 'fails'), 'tidebase', 'in nobody''s name');
select is((tidebase.fail_run('fails', 1, '"no"')).seq, (select e.seq from tidebase.events e where e.run_id = 'fails' and e.type = 'run.failed'), 'the same call again');
select tidebase.acquire_run('fails', 'w');
select tidebase.fail_run('fails', 2);
select is((select count(*) from tidebase.deliveries where run_id = 'fails'), 1::bigint, 'it does not call again while it is to be heard');
select tidebase.finish_delivery('fails', 1, 0, true);
select tidebase.acquire_run('fails', 'w');
select tidebase.fail_run('fails', 3);
select ok((select d.next_at - v.created_at between '2 seconds' and '6 seconds' from tidebase.deliveries d join tidebase.recoveries v using (run_id, recovery)
  where run_id = 'fails' and delivery = 2), 'the second call within an hour waits for some seconds');
select pg_temp.lapse('lapses');
select pg_temp.lapse('mute');
update tidebase.run_heads set due_at = clock_timestamp() where run_id in ('lapses', 'mute');
select tidebase.reconcile();
select results_eq($$select body ->> 'reason', body ->> 'status', next_at <= clock_timestamp() from tidebase.deliveries where run_id = 'lapses'$$,
  $$values ('lease_expired', 'running', true)$$, 'a lease that has run out is told, too');
select is_empty($$select from tidebase.recoveries where run_id = 'mute'$$, 'who has no webhook says nothing');
update tidebase.run_heads set due_at = clock_timestamp() where run_id = 'lapses';
select tidebase.reconcile();
select is((select count(*) from tidebase.recoveries where run_id = 'lapses'), 1::bigint, 'once for each lease');
select tidebase.complete_run('over', 1);
select is_empty($$select from tidebase.recoveries where run_id = 'over'$$, 'a run that is completed does not call');
update tidebase.runs set max_attempts = 2 where run_id = 'retried';
select tidebase.acquire_run('retried', 'w');
select tidebase.fail_run('retried', 1);
select is_empty($$select from tidebase.recoveries where run_id = 'retried'$$, 'nor one that has attempts left');

select * from finish();
rollback;
