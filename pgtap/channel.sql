-- Channels: the log is the outbox, and each channel a place in it.
begin;
select no_plan();
\ir support/helpers.psql
create function pg_temp.due() returns void language sql as $$ update tidebase.channels set next_at = clock_timestamp() where next_at is not null $$;
create function pg_temp.of(id text, number integer default 1) returns tidebase.channels language sql as $$ select * from tidebase.channels where run_id = id and channel = number $$;
create function pg_temp.pause(id text) returns integer language sql as $$
  select round(extract(epoch from next_at - clock_timestamp()))::integer from tidebase.channels where run_id = id $$;
-- Delivers all that is due, and returns what was sent of one run.
create function pg_temp.pump(id text) returns setof text language plpgsql as $$
declare
  sent tidebase.channel_delivery;
begin
  for sent in select * from tidebase.claim_channel_deliveries(1000) loop
    while sent.run_id is not null loop
      if sent.run_id = id then
        return next format('%s %s %s', sent.channel, sent.seq, sent.body ->> 'type');
      end if;
      select * into sent from tidebase.finish_channel_delivery(sent.run_id, sent.channel, sent.attempt, true, 200);
    end loop;
  end loop;
end
$$;

-- adding
select tidebase.create_run('wf', run_id => 'r');
select is(tidebase.add_channel('r', 'https://a.example/hook', 's3cret'), 1, 'a channel has a number');
select is(tidebase.add_channel('r', 'https://a.example/hook', 's3cret'), 1, 'added again it is the same');
select pg_temp.same_again($$select tidebase.add_channel('r', 'https://a.example/hook', 's3cret')$$, 'a channel added');
select is(tidebase.add_channel('r', 'https://b.example/hook', events => '{run.completed,note}'), 2, 'another URL is another one');
select is(tidebase.add_channel('r', 'https://c.example/hook', events => '{}', type => null), 3, 'no types are all of them');
select results_eq($$select channel, type, url, events, has_secret, status, delivered_seq from tidebase.list_channels('r')$$,
  $$values (1, 'webhook', 'https://a.example/hook', null::text[], true, 'active', 0::bigint),
    (2, 'webhook', 'https://b.example/hook', '{run.completed,note}', false, 'active', 0),
    (3, 'webhook', 'https://c.example/hook', null, false, 'active', 0)$$, 'they are listed');
select ok(not exists (select from tidebase.list_channels('r') c where c::text ~ 's3cret'), 'without secrets');
select is((select count(*) from tidebase.events where run_id = 'r'), 1::bigint, 'and the log says nothing of them');
select throws_ok(format('select tidebase.add_channel(%s)', arguments), 'TB002', null, arguments || ' is no channel')
from unnest(array[$$'r', 'ftp://x'$$, $$'r', 'https://a b'$$, $$'r', null$$, $$'r', 'https://' || repeat('x', 4096)$$, $$'r', 'https://x', ''$$,
  $$'r', 'https://x', repeat('x', 1025)$$, $$'r', 'https://x', events => array['x', null]$$, $$'r', 'https://x', events => array['x', ' ']$$,
  $$'r', 'https://x', events => array_fill('x'::text, array[101])$$, $$'r', 'https://x', events => array[repeat('x', 256)]$$,
  $$'r', 'https://x', type => 'pigeon'$$]) arguments;
select ok((pg_temp.error_of($$select tidebase.add_channel('r', 'https://x', repeat('leak', 1000))$$))::text !~ 'leak', 'an error does not tell the secret');
select throws_ok($$select tidebase.add_channel('none', 'https://x')$$, 'TB001', null, 'a channel is of a run');
select throws_ok($$select tidebase.list_channels('none')$$, 'TB001', null, 'an unknown run has no list');
select tidebase.create_run('wf', run_id => 'plain');
select is_empty($$select tidebase.list_channels('plain')$$, 'a run without any has an empty one');

-- in order, one by one
select tidebase.acquire_run('r', 'w');
select tidebase.append_event('r', 1, 'note', '{"n": 1}');
select is(tidebase.remove_channel('r', 3), true, 'a channel is removed');
select is(tidebase.remove_channel('r', 3), false, 'once');
select results_eq($$select * from pg_temp.pump('r')$$, $$values ('1 1 run.created'), ('1 2 run.started'), ('1 3 note'), ('2 3 note')$$,
  'all events, in the order of the log, or those of the types that are wanted');
select is_empty($$select * from pg_temp.pump('r')$$, 'and nothing after that');
select is((select body from tidebase.claim_channel_deliveries()), null, 'what has caught up is not due');
select is((pg_temp.of('r')).status, 'active', 'a channel waits for its run');
select tidebase.append_event('r', 1, 'note', '{"n": 2}');
select pg_temp.due();
create temp table sent as select * from tidebase.claim_channel_deliveries(1);
select results_eq($$select run_id, channel, attempt, url, secret, seq, body - 'createdAt' from sent$$,
  $$values ('r', 1, 4::bigint, 'https://a.example/hook', 's3cret', 4::bigint,
    '{"type": "note", "runId": "r", "workflowName": "wf", "seq": 4, "payload": {"n": 2}}'::jsonb)$$, 'a dispatcher gets what to send, where to, and the secret');
select is((select body ->> 'createdAt' from sent), (select to_char(created_at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"') from tidebase.events where run_id = 'r' and seq = 4),
  'with the time of the event');
select is((select count(*) from tidebase.claim_channel_deliveries(10) where channel = 1), 0::bigint, 'nobody else does meanwhile');
select pg_temp.due();
select is((select attempt from tidebase.claim_channel_deliveries(1) where channel = 1), 5::bigint, 'until the claim has run out');
select is_empty($$select * from tidebase.finish_channel_delivery('r', 1, 4, true)$$, 'then the first one is heard no more');
select is_empty($$select * from tidebase.finish_channel_delivery('r', 1, null, true)$$, 'nor one that does not say which attempt it is about');
select is((pg_temp.of('r')).delivered_seq, 3::bigint, 'and nothing is skipped');
select lives_ok($$select tidebase.finish_channel_delivery('r', 1, 5, true, 204)$$, 'the second one reports');
select is_empty($$select * from tidebase.finish_channel_delivery('r', 1, 5, true, 204)$$, 'the same call again');
select is((pg_temp.of('r')).delivered_seq, 4::bigint, 'changes nothing');
select throws_ok($$select tidebase.finish_channel_delivery('r', 9, 1, true)$$, 'TB012', null, 'an unknown channel is not reported');
select throws_ok($$select tidebase.remove_channel('r', 9)$$, 'TB012', null, 'or removed');
select throws_ok($$select tidebase.retry_channel('r', null)$$, 'TB012', null, 'or tried again');
select throws_ok($$select tidebase.finish_channel_delivery('none', 1, 1, true)$$, 'TB001', null, 'nor one of an unknown run');
select throws_ok(format('select tidebase.claim_channel_deliveries(%s)', arguments), 'TB002', null, arguments || ' is no claim')
from unnest(array['0', '1001', $$ttl => '0'$$, $$rung => array['a', null]$$]) arguments;

-- another turn
select tidebase.append_event('r', 1, 'x') from generate_series(1, 2);
select pg_temp.due();
select attempt as attempt from tidebase.claim_channel_deliveries() where channel = 1 \gset
select is_empty(format('select * from tidebase.finish_channel_delivery(''r'', 1, %s, true, go_on => false)', :attempt), 'who does not go on gets nothing');
select is_empty(format('select * from tidebase.finish_channel_delivery(''r'', 1, %s, true, go_on => false)', :attempt), 'and reports once');
select is((pg_temp.of('r')).delivered_seq, 5::bigint, 'so no event is skipped');
select results_eq($$select * from pg_temp.pump('r')$$, $$values ('1 6 x')$$, 'the next in turn does');

-- failures
select tidebase.create_run('wf', run_id => 'bad');
select tidebase.add_channel('bad', 'https://bad.example');
select attempt as attempt from tidebase.claim_channel_deliveries() where run_id = 'bad' \gset
select is_empty(format('select * from tidebase.finish_channel_delivery(''bad'', 1, %s, false, 500, ''HTTP 500'')', :attempt), 'a failure hands out nothing');
select results_eq($$select status, failures, http_status, error, delivered_seq from tidebase.list_channels('bad')$$, $$values ('active', 1, 500, 'HTTP 500', 0::bigint)$$, 'it is kept');
select ok(pg_temp.pause('bad') between 2 and 5, 'and tried again later');
select pg_temp.due();
select is((select count(*) from tidebase.claim_channel_deliveries(1000) where run_id = 'bad'), 0::bigint, 'apart from those that do well');
select is((select seq from tidebase.claim_channel_deliveries(1000, failing => true) where run_id = 'bad'), 1::bigint, 'the same event');
select tidebase.finish_channel_delivery('bad', 1, 2, false, error => 'no route');
select ok(pg_temp.pause('bad') between 5 and 10, 'then later still');
select is(tidebase.retry_channel('bad', 1), true, 'somebody has it tried at once');
select pg_temp.same_again($$select tidebase.retry_channel('bad', 1) and false$$, 'what is due already');
select is((select attempt from tidebase.claim_channel_deliveries(1000) where run_id = 'bad'), 3::bigint, 'as if nothing had happened');
select tidebase.finish_channel_delivery('bad', 1, 3, false, error => 'no route', give_up_after => '0');
select results_eq($$select status, next_at, error ~ '^given up after 1 attempts since .*: no route$', finished_at is not null from tidebase.list_channels('bad')$$,
  $$values ('failed', null::timestamptz, true, true)$$, 'after a time it is given up, with the reason');
select pg_temp.due();
select is_empty($$select * from tidebase.claim_channel_deliveries(1000, failing => true) where run_id = 'bad'$$, 'and left alone');
select is(tidebase.retry_channel('bad', 1), true, 'until it is tried again');
select is((select attempt from tidebase.claim_channel_deliveries(1000) where run_id = 'bad'), 4::bigint, 'from the event at which it stood');
select tidebase.finish_channel_delivery('bad', 1, 4, false, 410, 'HTTP 410');
select is((pg_temp.of('bad')).error, 'given up: the receiver says that it is gone for good (HTTP 410): HTTP 410', 'one that is gone for good is given up at once');
select tidebase.retry_channel('bad', 1);
select is((select * from pg_temp.pump('bad')), '1 1 run.created', 'a receiver that is back');
select results_eq($$select status, failures, error, http_status from tidebase.list_channels('bad')$$, $$values ('active', 0, null::text, 200)$$, 'is in order again');
select is(tidebase.retry_channel('bad', 1), false, 'and needs no second try');
select throws_ok($$select tidebase.finish_channel_delivery('bad', 1, 5, false, give_up_after => '-1 s')$$, 'TB002', null, 'it is given up after a time, not before');

-- how often a quiet one is looked at
select tidebase.create_run('wf', run_id => 'quiet');
select tidebase.add_channel('quiet', 'https://quiet.example');
select pg_temp.pump('quiet');
select is(pg_temp.pause('quiet'), 1, 'at first it is looked at after a second');
create function pg_temp.quiet_for(silence interval) returns integer language sql as $$
  update tidebase.channels set idle_since = clock_timestamp() - silence, next_at = clock_timestamp() where run_id = 'quiet';
  select from tidebase.claim_channel_deliveries(1000, watch => true);
  select pg_temp.pause('quiet') $$;
select is(pg_temp.quiet_for('10 s'), 10, 'then after as long as it has been quiet');
select is(pg_temp.quiet_for('1 h'), 30, 'up to half a minute');
select ok((select watched_until > clock_timestamp() + interval '9 minutes' from tidebase.watches where run_id = 'quiet'), 'and the bell rings for it, if somebody listens');
select is_empty($$select * from tidebase.claim_channel_deliveries(1000, rung => '{quiet}') where run_id = 'quiet'$$, 'a bell that rings for nothing');
select tidebase.acquire_run('quiet', 'w');
select is_empty($$select * from tidebase.claim_channel_deliveries(1000) where run_id = 'quiet'$$, 'it is not due before its time');
select is((select seq from tidebase.claim_channel_deliveries(1000, rung => '{quiet}') where run_id = 'quiet'), 2::bigint, 'unless the bell has rung');
select is_empty($$select * from tidebase.claim_channel_deliveries(1000, rung => '{quiet}') where run_id = 'quiet'$$, 'but not while somebody is at it');
select tidebase.finish_channel_delivery('quiet', 1, 2, false);
select is_empty($$select * from tidebase.claim_channel_deliveries(1000, failing => true, rung => '{quiet}') where run_id = 'quiet'$$, 'nor while it waits after a failure');
select tidebase.retry_channel('quiet', 1);
select tidebase.fail_run('quiet', 1);
select pg_temp.pump('quiet');
select is((pg_temp.of('quiet')).status, 'active', 'a failed run may be resumed');
select is(pg_temp.quiet_for('1 h'), 240, 'but is looked at less often');

-- many that nobody wants
select tidebase.create_run('wf', run_id => 'long');
select tidebase.acquire_run('long', 'w');
select tidebase.add_channel('long', 'https://rare.example', events => '{run.completed}');
insert into tidebase.events (run_id, seq, type, payload) select 'long', n, 'tick', '{}' from generate_series(3, 1500) n;
update tidebase.run_heads set last_seq = 1500, durable_seq = 1500 where run_id = 'long';
select is_empty($$select * from tidebase.claim_channel_deliveries(1000)$$, 'nobody reads all of a log at once');
select is((pg_temp.of('long')).delivered_seq, 1000::bigint, 'a thousand are enough');
select is_empty($$select * from tidebase.claim_channel_deliveries(1000)$$, 'and the next');
select is((pg_temp.of('long')).delivered_seq, 1500::bigint, 'with the next look, at once');
select tidebase.complete_run('long', 1);
select pg_temp.due();
select is((select * from pg_temp.pump('long')), '1 1501 run.completed', 'the one that is wanted arrives');
select results_eq($$select status, delivered_seq, next_at, finished_at is not null from tidebase.list_channels('long')$$,
  $$values ('delivered', 1501::bigint, null::timestamptz, true)$$, 'and with the last event the channel is done');

-- changing, removing, and what goes with its run
select tidebase.add_channel('r', 'https://a.example/hook', 'other', '{note}');
select results_eq($$select secret, events, delivered_seq from tidebase.channels where run_id = 'r' and channel = 1$$,
  $$values ('other', '{note}'::text[], 6::bigint)$$, 'added again with another secret it has that one, from where it stands');
select tidebase.append_event('r', 1, 'note');
select pg_temp.due();
select attempt as attempt from tidebase.claim_channel_deliveries() where run_id = 'r' and channel = 1 \gset
select tidebase.remove_channel('r', 1);
select results_eq($$select secret, status, sending_seq from tidebase.channels where run_id = 'r' and channel = 1$$, $$values (null::text, 'removed', null::bigint)$$,
  'what is removed has no secret any more');
select is_empty(format('select * from tidebase.finish_channel_delivery(''r'', 1, %s, true)', :attempt), 'who was at it hears no more of it');
select is(tidebase.retry_channel('r', 1), false, 'and it is not tried again');
select is(tidebase.add_channel('r', 'https://a.example/hook', 'third'), 1, 'until it is added again');
select is((select * from pg_temp.pump('r')), '1 7 note', 'from where it stood');
select tidebase.add_channel('r', format('https://%s.example', n)) from generate_series(4, 100) n;
select throws_ok($$select tidebase.add_channel('r', 'https://one.too.many')$$, 'TB002', null, 'a hundred are enough');
select tidebase.fork_run('r', 'forked');
select is_empty($$select * from tidebase.list_channels('forked')$$, 'a fork has none');
select tidebase.cancel_run('r');
select pg_temp.due();
select is((select count(*) from pg_temp.pump('r') p where p ~ ' 8 run.cancelled$'), 98::bigint, 'a cancellation is the last event, too, for all who want it');
select results_eq($$select status, count(*) from tidebase.channels where run_id = 'r' group by status order by 1$$,
  $$values ('delivered', 99::bigint), ('removed', 1)$$, 'and who does not is done, too');
select is(tidebase.add_channel('long', 'https://late.example', events => '{run.created}'), 2, 'who comes late');
select is((select * from pg_temp.pump('long')), '2 1 run.created', 'hears it from the beginning');
select is_empty($$select * from tidebase_private.check_invariants()$$, 'all of it holds together');
select throws_ok($$update tidebase.channels set delivered_seq = 5, sending_seq = 9 where run_id = 'bad'$$, '23514', null, 'a channel leaves nothing out');
update tidebase.channels set delivered_seq = 5000 where run_id = 'bad';
select is((select invariant from tidebase_private.check_invariants('bad')), 'a channel has told what is in the log', 'a cursor beyond the log is seen');
update tidebase.runs set finished_at = clock_timestamp() - interval '1 day', created_at = clock_timestamp() - interval '1 day' where run_id = 'long';
select tidebase.purge_runs('1 hour');
select is_empty($$select * from tidebase.channels where run_id = 'long'$$, 'what is purged takes its channels with it');
select * from finish();
rollback;
