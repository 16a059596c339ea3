-- A durable run, driven by hand: the same calls that a client library makes, from psql alone.
--
--   psql "$DATABASE_URL" -f sql/examples/walkthrough.sql
--
-- Two workers take part. The first one plans, begins to search, and goes silent. The second one takes the run over, gets
-- the plan from its checkpoint, searches again, and finishes. Read it along with its output: what is echoed tells the
-- story, the comments say why it is so.
--
-- The schema must be there (`tidebase migrate`); the role tidebase_worker is enough. Each time the script makes a run of
-- its own, so it can be run again and again. It ends with exit code 0 if everything went as told, the refusals too.

\set QUIET on
\set ON_ERROR_STOP on
\set SHOW_CONTEXT never
\pset footer off
\pset null '-'

-- Some calls below must be refused. ON_ERROR_STOP is off for them; this stops the script unless the refusal is the one
-- that was foretold.
create function pg_temp.expect(wanted text, got text)
returns text
language plpgsql
as $$
begin
  if wanted is distinct from got then
    raise exception 'expected %, got %', wanted, got;
  end if;
  return got;
end
$$;


\echo
\echo '1. A run is made: a workflow, and what it is asked.'
\echo

-- The id is generated here; a caller who names the run itself may repeat the call when the answer was lost on the way.
select tidebase.create_run(
  workflow => 'research',
  input    => '{"question": "How do threads share a queue?"}') as run_id \gset
\echo :run_id

\echo
\echo '   The same id with another input is another piece of work, so it is refused: TB006.'
\echo

\set ON_ERROR_STOP off
select tidebase.create_run('research', '{"question": "Something else?"}', run_id => :'run_id');
\set ON_ERROR_STOP on
select pg_temp.expect('TB006', :'SQLSTATE') \gset


\echo
\echo '2. Worker A leases it. Every write will carry the token.'
\echo

select outcome, token, attempt, checkpoints from tidebase.acquire_run(:'run_id', holder => 'worker A', ttl => '60 seconds');
select lease_token as token_a from tidebase.run_overview where run_id = :'run_id' \gset

\echo '   Meanwhile worker B asks for the same run. A lost race is an answer, not an error.'
\echo

select outcome, holder, expires_at > clock_timestamp() as still_good from tidebase.acquire_run(:'run_id', holder => 'worker B');

\echo '   A does its first step: begin, work, complete. The moment complete_step returns, the plan is a checkpoint.'
\echo

-- begin_step wants to know on what the result will depend: the input. It is hashed, and compared ever after.
select outcome, attempt from tidebase.begin_step(:'run_id', :token_a, 'plan', input => '["How do threads share a queue?"]');
select tidebase.complete_step(:'run_id', :token_a, 'plan', output => '["thread", "share", "queue"]') as seq_of_the_event;

\echo '   It begins the second one, tells how far it is by an event of its own ...'
\echo

select outcome, attempt from tidebase.begin_step(:'run_id', :token_a, 'search', input => '["thread", "share", "queue"]');
select tidebase.append_event(:'run_id', :token_a, 'agent.progress', '{"files_read": 120}') as seq_of_the_event;


\echo '3. ... and goes silent. No heartbeat renews its lease any more, and it runs out.'
\echo

-- To be spared a minute of waiting we let its last heartbeat ask for one millisecond, and then see that one through.
-- (A DO block sees no psql variables, hence the setting.)
select tidebase.renew_lease(:'run_id', :token_a, ttl => '1 millisecond') as lease_ends,
  set_config('walkthrough.run_id', :'run_id', false) as setting \gset
do $$
begin
  while not (select o.lease_expires_at <= clock_timestamp() from tidebase.run_overview o where o.run_id = current_setting('walkthrough.run_id')) loop
  end loop;
end
$$;
select status, holder, lease_token, lease_lapsed, steps_completed from tidebase.run_overview where run_id = :'run_id';

\echo '   No janitor has to come first: the next one who asks takes over, with a higher token.'
\echo

select outcome, token, attempt, checkpoints from tidebase.acquire_run(:'run_id', holder => 'worker B');
select lease_token as token_b from tidebase.run_overview where run_id = :'run_id' \gset


\echo '4. Worker A was not dead, only slow. It wakes up and wants to store what it found: TB003.'
\echo '   Its token is not the current one. Nothing is written, whatever A believes about its lease.'
\echo

\set ON_ERROR_STOP off
select tidebase.complete_step(:'run_id', :token_a, 'search', output => '["a.py", "late.py"]');
\set ON_ERROR_STOP on
select pg_temp.expect('TB003', :'SQLSTATE') \gset


\echo
\echo '5. Worker B runs the workflow from the top. The first step is not executed: its checkpoint is handed out.'
\echo

select outcome, attempt, output from tidebase.begin_step(:'run_id', :token_b, 'plan', input => '["How do threads share a queue?"]');

\echo '   Had the code changed the input of that step, the old result would be the answer to another question: TB006.'
\echo

\set ON_ERROR_STOP off
select * from tidebase.begin_step(:'run_id', :token_b, 'plan', input => '["How do processes share a queue?"]');
\set ON_ERROR_STOP on
select pg_temp.expect('TB006', :'SQLSTATE') \gset

\echo
\echo '   The second step was begun and never completed, so it is executed: its second time.'
\echo

select outcome, attempt
from tidebase.begin_step(:'run_id', :token_b, 'search', input => '["thread", "share", "queue"]', retries => 1);

\echo '   It fails. Whether it may be tried again, and when, is decided here and kept: one retry was declared.'
\echo

-- An error is any JSON; by convention it has a type and a message. The delay is exponential, with jitter; a client waits
-- for it, we need not.
select decision, retry_after > '0' as with_a_delay, attempt
from tidebase.fail_step(:'run_id', :token_b, 'search', error => '{"type": "OSError", "message": "the disk is busy"}');
select outcome, attempt
from tidebase.begin_step(:'run_id', :token_b, 'search', input => '["thread", "share", "queue"]', retries => 1);
select tidebase.complete_step(:'run_id', :token_b, 'search', output => '["queue.py", "asyncio/queues.py"]') as seq_of_the_event;

\echo '   Every checkpoint of the run in one call: with it a client replays a thousand steps in one round trip.'
\echo

select name, left(encode(input_hash, 'hex'), 12) as input_hash, output from tidebase.load_checkpoints(:'run_id') order by name;


\echo '6. The run is completed, for good.'
\echo

select tidebase.complete_run(:'run_id', :token_b, result => '{"answer": "By a queue.Queue."}')
  as seq_of_the_event;

\echo '   Whoever asks for it now gets the result instead of a lease ...'
\echo

select outcome, result from tidebase.acquire_run(:'run_id', holder => 'worker C');

\echo '   ... and nothing can be added any more, not even by B: TB005.'
\echo

\set ON_ERROR_STOP off
select tidebase.append_event(:'run_id', :token_b, 'agent.progress', '{"files_read": 121}');
\set ON_ERROR_STOP on
select pg_temp.expect('TB005', :'SQLSTATE') \gset


\echo
\echo '7. The log tells it all. What was refused has left no trace, and no gap.'
\echo

select seq, type, left(payload::text, 70) as payload from tidebase.read_events(:'run_id');
select min(seq) as first, max(seq) as last, count(*) as events, count(*) = max(seq) and min(seq) = 1 as no_gap
from tidebase.read_events(:'run_id');

\echo '   A reader who follows a run asks again with the last number it saw.'
\echo

select seq, type from tidebase.read_events(:'run_id', after => 9);

\echo '   The run and its steps, as views.'
\echo

select status, attempt, lease_token, holder, steps_completed, last_seq, result ->> 'answer' as answer
from tidebase.run_overview
where run_id = :'run_id';

select name, status, attempt as begun, lease_token, duration, completed_seq
from tidebase.step_timeline
where run_id = :'run_id'
order by started_at;

-- The last word: the story went as told, down to the numbers.
select pg_temp.expect('1..12 without a gap', format('%s..%s %s', min(seq), max(seq),
  case when count(*) = max(seq) then 'without a gap' else 'with a gap' end))
from tidebase.read_events(:'run_id') \gset
select pg_temp.expect('plan 1, search 3', string_agg(format('%s %s', name, attempt), ', ' order by name))
from tidebase.step_timeline
where run_id = :'run_id' and status = 'completed' \gset

\echo 'Next: sql/functions/ has these functions, each with its reasons; \\df+ tidebase.* shows their comments.'
