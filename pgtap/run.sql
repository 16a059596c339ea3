-- Runs: made once, finished once.
begin;
select no_plan();
\ir support/helpers.psql

-- ids
select matches(tidebase.create_run('wf'), '^run_[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$', 'a run without an id gets run_ and a UUIDv7');
select isnt(tidebase.create_run('wf'), tidebase.create_run('wf'), 'another one each time');
select is((select count(distinct tidebase.new_run_id()) from generate_series(1, 1000)), 1000::bigint, 'a thousand of them are a thousand');
select ok(abs(extract(epoch from clock_timestamp()) * 1000
    - ('x' || translate(substring(tidebase.new_run_id() from 5 for 13), '-', ''))::bit(48)::bigint) < 60000,
  'they begin with the milliseconds of now, so that new runs are neighbours');

-- creating
select is(tidebase.create_run('wf', '{"a": 1}', 'r', '{"m": 1}'), 'r', 'an id may be chosen');
select is(tidebase.create_run('wf', '{"a": 1.0}', 'r'), 'r', 'the same id with an equal input is the same run');
select is(tidebase.create_run('wf', run_id => 'r'), 'r', 'no input makes no claim');
select is(tidebase.create_run('wf', run_id => 'r', metadata => '{"m": 2}'), 'r', 'other metadata do not make another run');
select results_eq($$select workflow, input, metadata, status, attempt, lease_token, steps_completed, last_seq, result, error, finished_at from tidebase.get_run('r')$$,
  $$values ('wf', '{"a": 1}'::jsonb, '{"m": 1}'::jsonb, 'pending', 0, 0::bigint, 0, 1::bigint, null::jsonb, null::jsonb, null::timestamptz)$$,
  'what the first call said is kept');
select results_eq($$select seq, type, payload from tidebase.read_events('r')$$, $$values (1::bigint, 'run.created', '{"workflow": "wf"}'::jsonb)$$, 'all that is one event');
select throws_ok($$select tidebase.create_run('wf', '{"a": 2}', 'r')$$, 'TB006', null, 'another input is another run');
select throws_ok($$select tidebase.create_run('wf', 'null', 'r')$$, 'TB006', null, 'so is the JSON null, which is an input');
select throws_ok($$select tidebase.create_run('other', '{"a": 1}', 'r')$$, 'TB006', null, 'another workflow, too');
select throws_ok($$select tidebase.create_run('other', run_id => 'r')$$, 'TB006', null, 'also without an input');
select tidebase.create_run('wf', run_id => 'no input');
select throws_ok($$select tidebase.create_run('wf', '1', 'no input')$$, 'TB006', null, 'a run that has no input does not get one later');
select pg_temp.same_again($$select tidebase.create_run('wf', '[1]', 'twice', '{"m": 1}', '2100-01-01', 3, '1 min', 'http://hook')$$, 'a run is made once, however often that is said');
select results_eq($$select deadline_at, max_attempts, recovery_webhook from tidebase.get_run('twice')$$, $$values ('2100-01-01'::timestamptz, 3, 'http://hook')$$, 'with all that was said');

-- arguments of create_run
select throws_ok('select tidebase.create_run(' || arguments || ')', 'TB002', null, 'create_run refuses ' || arguments) from unnest(array[
  'null', '''''', '''   ''', 'repeat(''x'', 256)', 'repeat(''ä'', 128)',
  '''wf'', run_id => ''''', '''wf'', run_id => '' ''', '''wf'', run_id => repeat(''x'', 256)', '''wf'', run_id => repeat(''ä'', 128)',
  '''wf'', metadata => ''[]''', '''wf'', metadata => ''1''', '''wf'', metadata => ''null''', '''wf'', metadata => ''"x"''',
  '''wf'', max_attempts => 0', '''wf'', max_attempts => -1', '''wf'', max_attempts => 1001', '''wf'', max_attempts => 2147483647',
  '''wf'', retry_delay => ''-1 s''', '''wf'', retry_delay => ''31 days''', '''wf'', retry_delay => ''100000 years''',
  '''wf'', recovery_webhook => ''''', '''wf'', recovery_webhook => ''ftp://x''', '''wf'', recovery_webhook => ''https://''',
  '''wf'', recovery_webhook => ''javascript:alert(1)''', '''wf'', recovery_webhook => ''http://a b''',
  '''wf'', deadline => ''infinity''', '''wf'', deadline => ''-infinity''', '''wf'', deadline => ''200000-01-01''']) arguments;
select lives_ok('select tidebase.create_run(' || arguments || ')', 'create_run takes ' || arguments) from unnest(array[
  'repeat(''x'', 255)', '''wf'', run_id => repeat(''ä'', 127)', '''wf'', metadata => ''{}''', '''wf'', max_attempts => 1',
  '''wf'', max_attempts => 1000', '''wf'', retry_delay => ''0''', '''wf'', retry_delay => ''30 days''', '''wf'', deadline => ''9999-12-30''',
  '''wf'', recovery_webhook => ''https://x.example/y?z=1''']) arguments;
select is(tidebase.create_run('wf''; drop table tidebase.runs; --', '"''"', 'x''; delete from tidebase.runs; --', '{"''": "$$"}'), 'x''; delete from tidebase.runs; --', 'SQL in a name is a name');
select is((select workflow from tidebase.get_run('x''; delete from tidebase.runs; --')), 'wf''; drop table tidebase.runs; --', 'and is found by it');

-- completing
select tidebase.acquire_run('r', 'w');
select pg_temp.same_again($$select tidebase.complete_run('r', 1, '{"x": [1]}')$$, 'a run is completed, once or twice');
select is(tidebase.complete_run('r', 1, '{"x": [1.0]}'), 3::bigint, 'an equal result is the same call');
select throws_ok($$select tidebase.complete_run('r', 1, '2')$$, 'TB005', null, 'another result comes too late');
select throws_ok($$select tidebase.complete_run('r', 1)$$, 'TB005', null, 'so does none');
select throws_ok($$select tidebase.complete_run('r', 2, '{"x": [1]}')$$, 'TB003', null, 'and the right result with a wrong token');
select throws_ok($$select tidebase.complete_run('r', null, '{"x": [1]}')$$, 'TB003', null, 'or with none');
select throws_ok($$select tidebase.fail_run('r', 1)$$, 'TB005', null, 'it does not fail any more');
select results_eq($$select status, result, error, finished_at is not null, lease_expires_at, lease_lapsed from tidebase.get_run('r')$$,
  $$values ('completed', '{"x": [1]}'::jsonb, null::jsonb, true, null::timestamptz, false)$$, 'the run has its result');
select results_eq($$select type, payload from tidebase.read_events('r', 2)$$, $$values ('run.completed', '{"attempt": 1, "token": 1}'::jsonb)$$, 'its last event says so');
select is((select outcome from tidebase.run_attempts where run_id = 'r'), 'completed', 'so does its attempt');
select pg_temp.leased('void');
select tidebase.complete_run('void', 1);
select is((select result from tidebase.get_run('void')), 'null'::jsonb, 'a run without a result has the JSON null');
select is(tidebase.complete_run('void', 1, 'null'), 3::bigint, 'which is the same');

-- A completed run does not change any more, whatever was left open when it completed.
select pg_temp.leased('open gate');
select tidebase.open_gate('open gate', 1, 'g', '?', timeout => '1 hour');
select tidebase.complete_run('open gate', 1);
select is_empty($$select name from tidebase.gate_inbox where run_id = 'open gate'$$, 'nobody is asked at a gate of a run that is over');
select is((select status from tidebase.get_gate('open gate', 'g')), 'cancelled', 'it is closed with the run');
update tidebase.gates set timeout_at = clock_timestamp() - interval '1 s' where run_id = 'open gate';
select pg_temp.error_of($$select tidebase.get_gate('open gate', 'g')$$);
select is((select type from tidebase.events where run_id = 'open gate' order by seq desc limit 1), 'run.completed', 'a gate that runs out after the end of its run adds nothing to the log');
select is(tidebase.complete_run('open gate', 1), 4::bigint, 'so the completion made again returns the number of its event');
select pg_temp.leased('open step');
select tidebase.begin_step('open step', 1, 's', side_effects => '{mail}');
select tidebase.fail_step('open step', 1, 's');
select throws_ok($$select tidebase.complete_run('open step', 1)$$, 'TB014', null, 'a run is not completed over a question to a person');
select results_eq($$select status from tidebase.fail_run('open step', 1)$$, $$values ('review')$$, 'its attempt is ended, and the run waits for the answer');
select tidebase.resolve_review('open step', 's', 'accept', '1');
select tidebase.acquire_run('open step', 'w');
select lives_ok($$select tidebase.complete_run('open step', pg_temp.token('open step'))$$, 'then it is completed');
select pg_temp.leased('bypass');
select tidebase.begin_step('bypass', 1, 'charge', side_effects => '{card}');
select throws_ok($$select tidebase.complete_run('bypass', 1)$$, 'TB014', null, 'nor over a write to the outside that has not ended');
select pg_temp.take_over('bypass');
select throws_ok($$select tidebase.complete_run('bypass', 2)$$, 'TB014', null, 'nor when an earlier attempt left it');
select results_eq($$select status from tidebase.fail_run('bypass', 2)$$, $$values ('review')$$, 'a person is asked about it');
select results_eq($$select step, cause from tidebase.review_inbox where run_id = 'bypass'$$, $$values ('charge', 'crash')$$, 'who finds it in the inbox');
select pg_temp.leased('renamed');
select tidebase.begin_step('renamed', 1, 'charge', side_effects => '{card}');
select pg_temp.take_over('renamed');
select is((tidebase.begin_step('renamed', 2, 'look', side_effects => '{read}')).outcome, 'execute', 'what is harmless is executed beside it');
select results_eq($$select outcome, output from tidebase.begin_step('renamed', 2, 'charge again', side_effects => '{card}')$$,
  $$values ('review', '{"step": "charge"}'::jsonb)$$, 'under another name it is not done a second time');
select is(pg_temp.status('renamed'), 'review', 'before a person has decided');
select ok(pg_temp.dense('renamed'), 'and the log has no gap');
select pg_temp.leased('closed');
select tidebase.begin_step('closed', 1, step) from unnest(array['b', 'a', 'done']) step;
select tidebase.complete_step('closed', 1, 'done');
select tidebase.complete_run('closed', 1);
select results_eq($$select name, status, error ->> 'type' from tidebase.step_timeline where run_id = 'closed' order by name$$,
  $$values ('a', 'failed', 'Unfinished'), ('b', 'failed', 'Unfinished'), ('done', 'completed', null)$$, 'steps that never ended are closed with their run');
select is((select payload -> 'unfinished' from tidebase.events where run_id = 'closed' order by seq desc limit 1), '["a", "b"]', 'and the log names them');

-- attempts that end without a word
select tidebase.create_run('wf', run_id => 'deadly', max_attempts => 2);
select tidebase.acquire_run('deadly', 'w');
select pg_temp.take_over('deadly');
select pg_temp.lapse('deadly');
select results_eq($$select outcome, token from tidebase.acquire_run('deadly', 'w')$$, $$values ('failed', null::bigint)$$, 'a run that has killed as many workers as it may is not granted any more');
select results_eq($$select status, failure_class, error ->> 'type' from tidebase.get_run('deadly')$$, $$values ('failed', 'crashed', 'WorkerLost')$$, 'it has failed, and says why');
select results_eq($$select outcome from tidebase.acquire_run('deadly', 'w')$$, $$values ('failed')$$, 'for everybody who asks');
select tidebase.recover_run('deadly');
select results_eq($$select outcome, attempt from tidebase.acquire_run('deadly', 'w')$$, $$values ('granted', 3)$$, 'an operator gives it its attempts again');
select pg_temp.take_over('deadly');
select pg_temp.lapse('deadly');
select is((tidebase.acquire_run('deadly', 'w')).outcome, 'failed', 'as many as before');
select ok(pg_temp.dense('deadly'), 'the log has no gap');
select pg_temp.leased('unbounded');
select is(count(pg_temp.take_over('unbounded')), 20::bigint, 'without max_attempts a crash is never the last') from generate_series(1, 20);

-- failing
select pg_temp.leased('f');
select pg_temp.same_again($$select tidebase.fail_run('f', 1, '{"message": "no"}')$$, 'a run fails, once or twice');
select results_eq($$select seq, status, retry_at from tidebase.fail_run('f', 1, '{"message": "no"}')$$, $$values (3::bigint, 'failed', null::timestamptz)$$, 'for good, when there is one attempt');
select results_eq($$select status, error, finished_at is not null from tidebase.get_run('f')$$, $$values ('failed', '{"message": "no"}'::jsonb, true)$$, 'its error is kept');
select results_eq($$select type, payload from tidebase.read_events('f', 2)$$,
  $$values ('run.failed', '{"attempt": 1, "token": 1, "error": {"message": "no"}, "status": "failed"}'::jsonb)$$, 'also in the log');
select results_eq($$select outcome, error from tidebase.run_attempts where run_id = 'f'$$, $$values ('failed', '{"message": "no"}'::jsonb)$$, 'and with the attempt');
select throws_ok($$select tidebase.fail_run('f', 2)$$, 'TB003', null, 'a wrong token fails nothing');
select throws_ok($$select tidebase.complete_run('f', 1)$$, 'TB003', null, 'who failed has no lease any more');
select pg_temp.leased('f2');
select tidebase.fail_run('f2', 1);
select tidebase.record_recovery('f2');
select is((tidebase.fail_run('f2', 1)).seq, 3::bigint, 'a failure made again returns the number of its event, whatever came after it');
select results_eq($$select outcome, token from tidebase.acquire_run('f', 'w')$$, $$values ('granted', 2::bigint)$$, 'it may be resumed');
select throws_ok($$select tidebase.fail_run('f', 1, '{"message": "no"}')$$, 'TB003', null, 'then the former failure is stale');
select results_eq($$select finished_at, error from tidebase.get_run('f')$$, $$values (null::timestamptz, '{"message": "no"}'::jsonb)$$, 'a resumed run is not finished; its last error is still known');
select tidebase.complete_run('f', 2);
select is((select error from tidebase.get_run('f')), null, 'an error that was overcome is gone');

-- attempts
select tidebase.create_run('wf', run_id => 'again', max_attempts => 3, retry_delay => '10 min');
select tidebase.acquire_run('again', 'w');
select pg_temp.same_again($$select tidebase.fail_run('again', 1)$$, 'while attempts are left a run fails to pending');
select results_eq($$select status, retry_at between clock_timestamp() + '4 min 59 s' and clock_timestamp() + '10 min' from tidebase.fail_run('again', 1)$$,
  $$values ('pending', true)$$, 'with a delay, at least half of which is kept');
select is((select finished_at from tidebase.get_run('again')), null, 'it is not finished');
select ok((select (payload ->> 'retry_after')::numeric between 300 and 600 and payload ->> 'status' = 'pending'
  from tidebase.read_events('again', 2)), 'the log has the delay in seconds');
select results_eq($$select outcome, expires_at > clock_timestamp() from tidebase.acquire_run('again', 'w')$$, $$values ('waiting', true)$$, 'nobody gets it before its time');
update tidebase.run_heads set available_at = clock_timestamp() where run_id = 'again';
select is((tidebase.acquire_run('again', 'w')).token, 2::bigint, 'then it is granted');
select ok((tidebase.fail_run('again', 2)).retry_at > clock_timestamp() + interval '9 min 59 s', 'the second delay is twice the first');
update tidebase.run_heads set available_at = clock_timestamp() where run_id = 'again';
select tidebase.acquire_run('again', 'w');
select is((tidebase.fail_run('again', 3)).status, 'failed', 'the last attempt is the last');
select tidebase.create_run('wf', run_id => 'hard', max_attempts => 5);
select tidebase.acquire_run('hard', 'w');
select results_eq($$select status, retry_at from tidebase.fail_run('hard', 1, retryable => false)$$, $$values ('failed', null::timestamptz)$$, 'a failure that is not worth it is final at once');
select tidebase.create_run('wf', run_id => 'maybe', max_attempts => 5);
select tidebase.acquire_run('maybe', 'w');
select is((tidebase.fail_run('maybe', 1, retryable => null)).status, 'pending', 'who does not say gets another attempt');
select is((select error from tidebase.get_run('maybe')), 'null'::jsonb, 'no error is the JSON null');
select tidebase.create_run('wf', run_id => 'review', max_attempts => 5);
select tidebase.acquire_run('review', 'w');
select tidebase.begin_step('review', 1, 's', side_effects => '{mail}');
select tidebase.fail_step('review', 1, 's');
select pg_temp.same_again($$select tidebase.fail_run('review', 1)$$, 'a step in review comes before the attempts that are left');
select results_eq($$select status, retry_at from tidebase.fail_run('review', 1)$$, $$values ('review', null::timestamptz)$$, 'the run is in review');

-- Only an attempt that ended badly is used up.
select tidebase.create_run('wf', run_id => 'patient', max_attempts => 2, retry_delay => '0');
select tidebase.acquire_run('patient', 'w');
select tidebase.release_run('patient', 1);
select tidebase.acquire_run('patient', 'w');
select tidebase.start_timer('patient', 2, 't', '1 hour');
select tidebase.suspend_run('patient', 2, 't');
update tidebase.gates set timeout_at = clock_timestamp() where run_id = 'patient';
select tidebase.acquire_run('patient', 'w');
select is((tidebase.fail_run('patient', 3)).status, 'pending', 'a lease that was released or suspended is no failed attempt');
select tidebase.acquire_run('patient', 'w');
select pg_temp.lapse('patient');
select is((tidebase.acquire_run('patient', 'w')).outcome, 'failed', 'one that lapsed is');

-- looking
select columns_are('tidebase', 'run_overview', '{run_id,workflow,status,attempt,lease_token,holder,lease_expires_at,lease_lapsed,steps_completed,last_seq,
  code_version,input,metadata,result,error,created_at,updated_at,finished_at,waiting_for,available_at,deadline_at,max_attempts,recovery_webhook,
  cancelled_at,cancel_reason,cancel_actor,compacted_at,failure_class,parent_run_id,queue,priority,queue_key,dedupe_key,pinned}', 'run_overview has its columns');
select throws_ok($$select tidebase.get_run('none')$$, 'TB001', null, 'an unknown run is not found');
select throws_ok($$select tidebase.get_run(null)$$, 'TB001', null, 'nor is none');
select tidebase.create_run('wf', run_id => 'seen');
select is((select lease_lapsed from tidebase.get_run('seen')), false, 'a run that nobody holds has not lapsed');
select tidebase.acquire_run('seen', 'w', code_version => 'v1');
select is((select lease_lapsed from tidebase.get_run('seen')), false, 'nor one whose holder lives');
select pg_temp.lapse('seen');
select is((select lease_lapsed from tidebase.get_run('seen')), true, 'a silent holder is seen');
select tidebase.acquire_run('seen', 'v', code_version => 'v2');
select results_eq($$select holder, attempt, lease_lapsed, code_version from tidebase.get_run('seen')$$, $$values ('v', 2, false, 'v2')$$, 'then the next one, with its code');
select tidebase.begin_step('seen', 2, 's');
select tidebase.complete_step('seen', 2, 's');
select results_eq($$select steps_completed, last_seq from tidebase.get_run('seen')$$, $$values (1, 5::bigint)$$, 'and how far the run is');

-- listing
select tidebase.create_run('listed', run_id => 'l' || n) from generate_series(1, 5) n;
update tidebase.runs set created_at = '2020-01-01' where workflow = 'listed';
update tidebase.runs set created_at = '2020-01-02' where run_id = 'l2';
update tidebase.run_heads h set created_at = r.created_at from tidebase.runs r where r.run_id = h.run_id and r.workflow = 'listed';
select results_eq($$select run_id from tidebase.list_runs('listed')$$, $$values ('l2'), ('l5'), ('l4'), ('l3'), ('l1')$$, 'runs are listed, newest first, equal times by id');
select results_eq($$select run_id from tidebase.list_runs('listed', max => 3)$$, $$values ('l2'), ('l5'), ('l4')$$, 'so many of them');
select results_eq($$select run_id from tidebase.list_runs('listed', before => 'l4')$$, $$values ('l3'), ('l1')$$, 'and on from the last one, also among equal times');
select is_empty($$select run_id from tidebase.list_runs('listed', before => 'l1')$$, 'until there are no more');
create function pg_temp.paged(size integer) returns text[] language plpgsql as $$
declare
  page text[];
  seen text[] := '{}';
begin
  loop
    select array_agg(run_id) into page from tidebase.list_runs('listed', before => seen[cardinality(seen)], max => size);
    exit when page is null;
    seen := seen || page;
  end loop;
  return seen;
end
$$;
select is(pg_temp.paged(size), '{l2,l5,l4,l3,l1}', 'pages of ' || size || ' have every run once') from generate_series(1, 6) size;
select is((select count(*) from tidebase.list_runs('listed', 'running')), 0::bigint, 'a status that none has lists none');
select tidebase.acquire_run('l3', 'w');
select results_eq($$select run_id from tidebase.list_runs('listed', 'running')$$, $$values ('l3')$$, 'a status that one has lists it');
select results_eq($$select run_id from tidebase.list_runs(status => 'running', before => 'l4')$$, $$values ('l3')$$, 'filters and pages go together');
select is_empty($$select run_id from tidebase.list_runs('listed'' or true --')$$, 'SQL in a filter is a text');
select ok((select count(*) from tidebase.list_runs()) > 5, 'without a filter there are all');
select results_eq($$select o from tidebase.list_runs('listed', max => 1) o$$, $$select o from tidebase.run_overview o where run_id = 'l2'$$, 'a row is that of run_overview');
select results_eq(
  $$select l.run_id from tidebase.list_runs('listed', created_after => (select created_at from tidebase.runs where run_id = 'l1')) l$$,
  $$select o.run_id from tidebase.run_overview o where o.workflow = 'listed' and o.created_at > (select created_at from tidebase.runs where run_id = 'l1')
    order by o.created_at desc, o.run_id desc$$, 'those created after a time');
select results_eq(
  $$select l.run_id from tidebase.list_runs('listed', created_before => (select created_at from tidebase.runs where run_id = 'l2')) l$$,
  $$select o.run_id from tidebase.run_overview o where o.workflow = 'listed' and o.created_at < (select created_at from tidebase.runs where run_id = 'l2')
    order by o.created_at desc, o.run_id desc$$, 'those created before a time');
select is_empty($$select tidebase.list_runs(created_after => 'infinity')$$, 'no run is created after the end of time');
select ok((select count(*) from tidebase.list_runs(created_after => '-infinity', created_before => 'infinity')) > 5, 'all are created between its ends');
select throws_ok(format($$select tidebase.list_runs(max => %L)$$, max), 'TB002', null, format('max is not %L', max)) from unnest(array[0, -1, 1001]) max;
select lives_ok($$select tidebase.list_runs(max => 1000)$$, 'it may be 1000');
select throws_ok($$select tidebase.list_runs(status => 'runing')$$, 'TB002', null, 'a status that nobody knows is no filter');
select results_eq($$select run_id from tidebase.list_runs('listed', before => 'gone', before_created_at => (select created_at from tidebase.runs where run_id = 'l3'))$$,
  $$select run_id from tidebase.list_runs('listed') where created_at < (select created_at from tidebase.runs where run_id = 'l3') or run_id in ('l3', 'l4', 'l5') and created_at = (select created_at from tidebase.runs where run_id = 'l3') and run_id < 'gone'$$,
  'a list goes on behind a run that is gone, where its time is known');
select lives_ok($$select tidebase.list_runs(before => tidebase.new_run_id())$$, 'or in its id');
select throws_ok($$select tidebase.list_runs('listed', roots => true)$$, 'TB002', null, 'roots stand alone');

-- searching
create function pg_temp.searched(size integer, effort integer) returns text[] language plpgsql as $$
declare
  page tidebase.run_page;
  seen text[] := '{}';
begin
  loop
    page := tidebase.search_runs(workflow => 'listed', before => page.next_run_id, before_created_at => page.next_created_at, max => size, effort => effort);
    seen := seen || page.run_ids;
    exit when page.next_run_id is null;
  end loop;
  return seen;
end
$$;
select is(pg_temp.searched(size, effort), '{l2,l5,l4,l3,l1}', format('a search finds every run once, %s at a time among %s', size, effort))
from unnest(array[1, 2, 100]) size, unnest(array[1, 2, 3, 10000]) effort;
select is((tidebase.search_runs(workflow => 'listed', max => 5)).next_run_id, 'l1', 'a full page may be the last one');
select is((tidebase.search_runs(workflow => 'listed', matching => 'no such', effort => 2)).next_run_id, 'l5', 'a search that found nothing yet says where it goes on');
select is((tidebase.search_runs(workflow => 'listed', matching => 'L3')).run_ids, '{l3}', 'a text is looked for in capital letters or small ones');
select is((tidebase.search_runs(matching => '%')).run_ids, '{}', 'and means just itself');
select is((tidebase.search_runs(workflow => 'listed', metadata => '{"team": 1}')).run_ids, '{}', 'by the metadata');
select is((tidebase.search_runs(workflow => 'listed', status => 'running')).run_ids, '{l3}', 'by the status');
select is((tidebase.search_runs(workflow => 'listed', roots => true)).run_ids, '{l2,l5,l4,l3,l1}', 'those that nobody made as a child');
select is((tidebase.search_runs(workflow => 'listed', created_after => '2020-01-01 12:00+00')).run_ids, '{l2}', 'by the time');
select is((tidebase.search_runs(workflow => 'listed', before => 'l2', created_before => '2020-01-01 12:00+00', max => 1)).run_ids, '{l5}', 'before a time that is earlier');
select tidebase.enqueue_run('listed too', queue => 'sought', run_id => 'queued');
select is((tidebase.search_runs(queue => 'sought', status => status)).run_ids, '{queued}', 'by the queue') from unnest(array['queued', null]) status;
select throws_ok(format('select tidebase.search_runs(%s)', wrong), 'TB002', null, wrong) from unnest(array['max => 0', 'max => 1001', 'effort => 0', 'effort => 100001',
  $$metadata => '[1]'$$, $$matching => ''$$, $$status => 'odd'$$]) wrong;
select throws_ok($$select tidebase.search_runs(before => 'gone')$$, 'TB001', null, 'behind a run that nobody knows');
select pg_temp.leased('with a child');
select tidebase.create_child('with a child', pg_temp.token('with a child'), 'c', 'listed');
select is((select count(*) from tidebase.list_runs(roots => true) l join tidebase.edges e on e.child_run_id = l.run_id), 0::bigint, 'a root is no child');
select is((select parent_run_id from tidebase.list_runs(max => 1)), 'with a child', 'a child says whose it is');
select set_eq($$select status, runs from tidebase.count_runs()$$, $$select s, count(h.run_id) from unnest(array['pending', 'queued', 'running', 'waiting', 'review', 'completed', 'failed', 'cancelled']) s
  left join tidebase.run_heads h on h.status = s group by s$$, 'runs are counted by status');

-- ids that are typed
select tidebase.create_run('typed', run_id => id) from unnest(array['typed', 'typed-1', 'typed-12', 'typed-2', 'Typed-3', 'typed%', 'typed_x', 'týped-4', E'ty\\ped']) id;
select is(tidebase.find_run(given), expected, format('%s is %s', given, expected))
from (values ('typed', 'typed'), ('typed-1', 'typed-1'), ('typed-12', 'typed-12'), ('typed-2', 'typed-2'), ('T', 'Typed-3'), ('tý', 'týped-4'), ('typed_', 'typed_x'),
  ('typed%', 'typed%'), (E'ty\\', E'ty\\ped')) as v (given, expected);
select throws_ok(format('select tidebase.find_run(%L)', given), 'TB001', null, format('nothing begins with %s', given)) from unnest(array['typed-13', 'typed-1 ', 'TYPED', '%', '_yped', 'typeD', 'typed' || chr(1114111)]) given;
select throws_ok(format('select tidebase.find_run(%L)', given), 'TB002', null, format('%L is no beginning', given)) from unnest(array[null, '', ' ', repeat('x', 256)]) given;
select results_eq($$select state, message, detail::jsonb -> 'run_ids', hint from pg_temp.error_of('select tidebase.find_run(''typed-'')')$$,
  $$values ('TB002', '3 runs begin with ''typed-'': typed-1, typed-12, typed-2', '["typed-1", "typed-12", "typed-2"]'::jsonb, 'Give more of the id.')$$, 'where several begin so, they are named');
select tidebase.create_run('typed', run_id => 'many-' || n) from generate_series(10, 29) n;
select ok((pg_temp.error_of('select tidebase.find_run(''many-'')')).message like 'more than 10 runs begin with ''many-'': many-10, % many-19 ...', 'ten of them');
create function pg_temp.looked_at() returns numeric language sql as $$
  select sum(pg_stat_get_xact_tuples_returned(c.oid)) from pg_class c where c.oid = 'tidebase.runs'::regclass
    or c.oid in (select i.indexrelid from pg_index i where i.indrelid = 'tidebase.runs'::regclass)
$$;
set local plan_cache_mode = force_generic_plan;  -- as in a session that has called it often
create temp table looked as select pg_temp.looked_at() as before;
select lives_ok($$select tidebase.find_run('Ty')$$);
select is(pg_temp.looked_at() - before, 1::numeric, 'a beginning is looked up in an index: only what begins so is read') from looked;
set local plan_cache_mode = auto;

-- ids that lie together
select ok(tidebase_private.bucket_of(id) between 0 and 65535, id || ' has a bucket')
from unnest(array['r', '', '{}', '{', 'x{y', '{a}b', E'\\x41', 'ü', repeat('x', 255), 'run_x']) id;
select is(tidebase_private.bucket_of('run_01890a5d-ac96-774b-bcce-b302099a8057'), 32855, 'a generated id says its bucket');
select is(tidebase_private.bucket_of(id), tidebase_private.bucket_of('order-7'), id || ' is where its tag is')
from unnest(array['{order-7}', '{order-7}:step', 'a{order-7}{b}', 'run_{order-7}']) id;
select isnt(tidebase_private.bucket_of('{}order-7'), tidebase_private.bucket_of('order-7'), 'an empty tag is none');
select is((select count(distinct tidebase_private.bucket_of('r' || n)) > 9000 from generate_series(1, 10000) n), true, 'ids of one''s own are spread');
select is(tidebase_private.bucket_of(tidebase.new_run_id(beside => id)), tidebase_private.bucket_of(id), 'an id is made beside ' || id)
from unnest(array['r', '{t}x', tidebase.new_run_id()]) id;
select matches(tidebase.new_run_id('r'), '^run_[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$', 'it is a UUIDv7 like any other');
select throws_ok($$select tidebase.new_run_id(' ')$$, 'TB002', null, 'beside is the id of a run');
select results_eq($$select provolatile::text, prolang = (select oid from pg_language where lanname = 'sql') from pg_proc where proname = 'bucket_of'$$, $$values ('i', true)$$, 'a bucket can be inlined');
select lives_ok($$create index on tidebase.runs (tidebase_private.bucket_of(run_id))$$, 'and indexed');
select * from finish();
rollback;
