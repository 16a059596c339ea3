-- What concerns several shards, or makes a choice among them. Of each function what it declares and does; its signature, and
-- what is made of errors, come from the catalogue as for all others (python/tidebase/schema/forwards.py). Where several do the same,
-- {function} is the name of each, and {others} are its arguments behind the first.

-- # create_run
-- An id that is made here may be made for another shard, where one cannot be reached.
  id text;
  dead integer[] := '{}';
begin
  perform tidebase_router.require_alone();
  if run_id is not null then
    return tidebase_router.create_run(tidebase_private.bucket_of(run_id), workflow, input, run_id, metadata, deadline, max_attempts,
      retry_delay, recovery_webhook, budget, traceparent);
  end if;
  loop
    id := tidebase.new_run_id();
    continue when tidebase_router.shard_of(tidebase_private.bucket_of(id)) = any (dead);
    begin
      return tidebase_router.create_run(tidebase_private.bucket_of(id), workflow, input, id, metadata, deadline, max_attempts,
        retry_delay, recovery_webhook, budget, traceparent);
    exception when others then
      get stacked diagnostics its_state = returned_sqlstate, its_message = message_text, its_details = pg_exception_detail,
        its_advice = pg_exception_hint;
      dead := dead || tidebase_router.shard_of(tidebase_private.bucket_of(id));
      if its_message !~ '^PL/Proxy function .*connect' or not exists (select from tidebase_router.shards() s (shard) where s.shard <> all (dead)) then
        perform tidebase_router.raise_again(its_state, its_message, its_details, its_advice);
      end if;
      perform tidebase_router.pass_over(its_state, its_message, its_details, its_advice, tidebase_router.shard_of(tidebase_private.bucket_of(id)));
    end;
  end loop;
end

-- # renew_leases
  part record;
  asked integer := 0;
  lost integer := 0;
begin
  perform tidebase_router.require_alone();
  if coalesce(array_ndims(run_ids), 0) <> 1 or cardinality(run_ids) is distinct from cardinality(tokens) or cardinality(run_ids) > 10000
    or coalesce(array_ndims(tokens), 0) <> 1
  then
    return query select a.* from tidebase_router.renew_leases(0, run_ids, tokens, ttl) a;
    return;
  end if;
  for part in
    select tidebase_router.shard_of(coalesce(tidebase_private.bucket_of(u.run_id), 0)) as shard, array_agg(u.run_id) as run_ids, array_agg(u.token) as tokens
    from unnest(run_ids, tokens) u (run_id, token)
    group by 1
  loop
    asked := asked + 1;
    begin
      return query select a.* from tidebase_router.renew_leases(part.shard, part.run_ids, part.tokens, ttl) a;
    exception when others then
      get stacked diagnostics its_state = returned_sqlstate, its_message = message_text, its_details = pg_exception_detail,
        its_advice = pg_exception_hint;
      perform tidebase_router.pass_over(its_state, its_message, its_details, its_advice, part.shard);
      lost := lost + 1;
    end;
  end loop;
  if lost = asked then
    perform tidebase_router.raise_all_lost();
  end if;
end

-- # complete_runs
-- Runs of a shard that cannot be reached are left to complete_run, which says so.
  part record;
begin
  perform tidebase_router.require_alone();
  if coalesce(array_ndims(run_ids), 1) > 1 or coalesce(array_ndims(tokens), 1) > 1 or coalesce(array_ndims(results), 1) > 1
    or cardinality(run_ids) is distinct from cardinality(tokens)
    or cardinality(run_ids) is distinct from coalesce(cardinality(results), cardinality(run_ids))
    or coalesce(cardinality(run_ids), 1001) > 1000
    or cardinality(run_ids) > (select count(distinct u.run_id) from unnest(run_ids) u (run_id))
  then
    return query select a.* from tidebase_router.complete_runs(0, run_ids, tokens, results) a;
    return;
  end if;
  for part in
    select tidebase_router.shard_of(coalesce(tidebase_private.bucket_of(u.run_id), 0)) as shard, array_agg(u.run_id) as run_ids,
      array_agg(u.token) as tokens, array_agg(u.result) as results
    from unnest(run_ids, tokens, results) u (run_id, token, result)
    group by 1
  loop
    begin
      return query select a.* from tidebase_router.complete_runs(part.shard, part.run_ids, part.tokens, part.results) a;
    exception when others then
      get stacked diagnostics its_state = returned_sqlstate, its_message = message_text, its_details = pg_exception_detail,
        its_advice = pg_exception_hint;
      perform tidebase_router.pass_over(its_state, its_message, its_details, its_advice, part.shard);
      return query select u.run_id, null::bigint, '55P03'::text, its_message, null::jsonb, its_advice from unnest(part.run_ids) u (run_id);
    end;
  end loop;
end

-- # record_steps_of_runs
-- Those of a shard that cannot be reached are not recorded.
  part record;
  answer boolean[];
  recorded boolean[];
begin
  perform tidebase_router.require_alone();
  if jsonb_typeof(runs) is distinct from 'array' or jsonb_array_length(runs) not between 1 and 1000
    or exists (
      select from jsonb_array_elements(runs) run
      where jsonb_typeof(run -> 'run_id') is distinct from 'string' or jsonb_typeof(run -> 'token') is distinct from 'number'
        or not tidebase_private.are_steps(run -> 'steps'))
  then
    return tidebase_router.record_steps_of_runs(0, runs);
  end if;
  recorded := array_fill(false, array[jsonb_array_length(runs)]);
  for part in
    select tidebase_router.shard_of(coalesce(tidebase_private.bucket_of(e.run ->> 'run_id'), 0)) as shard,
      jsonb_agg(e.run order by e.nth) as some, array_agg(e.nth order by e.nth) as places
    from jsonb_array_elements(runs) with ordinality e (run, nth)
    group by 1
  loop
    begin
      answer := tidebase_router.record_steps_of_runs(part.shard, part.some);
      for n in 1 .. cardinality(part.places) loop
        recorded[part.places[n]] := answer[n];
      end loop;
    exception when others then
      get stacked diagnostics its_state = returned_sqlstate, its_message = message_text, its_details = pg_exception_detail,
        its_advice = pg_exception_hint;
      perform tidebase_router.pass_over(its_state, its_message, its_details, its_advice, part.shard);
    end;
  end loop;
  return recorded;
end

-- # claim_runs
-- A queue is at one shard: those of the first queue first.
  part record;
  open_places integer := coalesce(max, 1);
  taken integer;
  asked integer := 0;
  lost integer := 0;
begin
  perform tidebase_router.require_alone();
  queues := coalesce(queues, array['default']);
  holder := coalesce(holder, tidebase_private.caller());
  if array_ndims(queues) is distinct from 1 or array_position(queues, null) is not null then
    return query select a.* from tidebase_router.claim_runs(0, queues, holder, max, ttl, workflows, code_version, versions, request_id, listen_for) a;
    return;
  end if;
  for part in
    select tidebase_router.shard_of(tidebase_private.bucket_of_queue(u.queue)) as shard, array_agg(u.queue order by u.place) as queues
    from unnest(queues) with ordinality u (queue, place)
    group by 1 order by min(u.place)
  loop
    asked := asked + 1;
    begin
      return query select a.* from tidebase_router.claim_runs(part.shard, part.queues, holder, open_places, ttl, workflows, code_version, versions,
        request_id, listen_for) a;
      get diagnostics taken = row_count;
      open_places := open_places - taken;
    exception when others then
      get stacked diagnostics its_state = returned_sqlstate, its_message = message_text, its_details = pg_exception_detail,
        its_advice = pg_exception_hint;
      perform tidebase_router.pass_over(its_state, its_message, its_details, its_advice, part.shard);
      lost := lost + 1;
    end;
    exit when open_places <= 0;
  end loop;
  if lost = asked then
    perform tidebase_router.raise_all_lost();
  end if;
end

-- # claim_deliveries, claim_channel_deliveries, claim_invocations
  shard integer;
  open_places integer := coalesce(max, 10);
  taken integer;
  asked integer := 0;
  lost integer := 0;
begin
  perform tidebase_router.require_alone();
  for shard in select s.* from tidebase_router.from_a_random_one() s loop
    asked := asked + 1;
    begin
      return query select a.* from tidebase_router.{function}(shard, open_places, {others}) a;
      get diagnostics taken = row_count;
      open_places := open_places - taken;
    exception when others then
      get stacked diagnostics its_state = returned_sqlstate, its_message = message_text, its_details = pg_exception_detail,
        its_advice = pg_exception_hint;
      perform tidebase_router.pass_over(its_state, its_message, its_details, its_advice, shard);
      lost := lost + 1;
    end;
    exit when open_places <= 0;
  end loop;
  if lost = asked then
    perform tidebase_router.raise_all_lost();
  end if;
end

-- # reconcile
  shard integer;
  part tidebase.reconciliation;
  answer tidebase.reconciliation := row(0, 0, 0, 0, 0);
  asked integer := 0;
  lost integer := 0;
begin
  perform tidebase_router.require_alone();
  max := coalesce(max, 100);
  for shard in select s.* from tidebase_router.from_a_random_one() s loop
    asked := asked + 1;
    begin
      select a.* into part from tidebase_router.reconcile(shard, max - answer.runs) a;
      answer := row(answer.runs + part.runs, answer.leases + part.leases, answer.gates + part.gates, answer.timers + part.timers,
        answer.deadlines + part.deadlines);
    exception when others then
      get stacked diagnostics its_state = returned_sqlstate, its_message = message_text, its_details = pg_exception_detail,
        its_advice = pg_exception_hint;
      perform tidebase_router.pass_over(its_state, its_message, its_details, its_advice, shard);
      lost := lost + 1;
    end;
    exit when answer.runs >= max;
  end loop;
  if lost = asked then
    perform tidebase_router.raise_all_lost();
  end if;
  return answer;
end

-- # purge_runs
  shard integer;
  purged integer := 0;
  asked integer := 0;
  lost integer := 0;
begin
  perform tidebase_router.require_alone();
  max := coalesce(max, 1000);
  for shard in select s.* from tidebase_router.from_a_random_one() s loop
    asked := asked + 1;
    begin
      purged := purged + tidebase_router.purge_runs(shard, older_than, statuses, max - purged);
    exception when others then
      get stacked diagnostics its_state = returned_sqlstate, its_message = message_text, its_details = pg_exception_detail,
        its_advice = pg_exception_hint;
      perform tidebase_router.pass_over(its_state, its_message, its_details, its_advice, shard);
      lost := lost + 1;
    end;
    exit when purged >= max;
  end loop;
  if lost = asked then
    perform tidebase_router.raise_all_lost();
  end if;
  return purged;
end

-- # cancel_runs
  shard integer;
  part tidebase.bulk;
  answer tidebase.bulk := row(0, 0);
begin
  perform tidebase_router.require_alone();
  max := coalesce(max, 1000);
  for shard in select s.* from tidebase_router.from_a_random_one() s loop
    select a.* into part from tidebase_router.cancel_runs(shard, queue, workflow, status, failure_class, older_than, metadata, reason,
      coalesce(actor, tidebase_private.caller()), dry_run, max - answer.matched) a;
    answer := row(answer.matched + part.matched, answer.done + part.done);
    exit when answer.matched >= max;
  end loop;
  return answer;
end

-- # retry_runs
  shard integer;
  part tidebase.bulk;
  answer tidebase.bulk := row(0, 0);
begin
  perform tidebase_router.require_alone();
  max := coalesce(max, 1000);
  for shard in select s.* from tidebase_router.from_a_random_one() s loop
    select a.* into part from tidebase_router.retry_runs(shard, queue, workflow, failure_class, older_than, metadata, reason,
      coalesce(actor, tidebase_private.caller()), dry_run, max - answer.matched) a;
    answer := row(answer.matched + part.matched, answer.done + part.done);
    exit when answer.matched >= max;
  end loop;
  return answer;
end

-- # move_runs
-- A queue's runs lie beside it: what is at another shard cannot be moved into it.
  answer tidebase.bulk;
begin
  perform tidebase_router.require_alone();
  if tidebase_router.shard_of(tidebase_private.bucket_of_queue(queue)) <> tidebase_router.shard_of(tidebase_private.bucket_of_queue(to_queue)) then
    perform tidebase_router.raise_error('55000', format('queue %L is at another shard than queue %L', left(to_queue, 255), left(queue, 255)), '',
      'Runs are moved between queues of one shard.');
  end if;
  select a.* into answer from tidebase_router.move_runs(coalesce(tidebase_private.bucket_of_queue(to_queue), 0), to_queue, queue, workflow,
    older_than, metadata, priority, coalesce(actor, tidebase_private.caller()), dry_run, max) a;
  return answer;
end

-- # delete_checkpoints_of_runs
  shard integer;
  dropped integer := 0;
begin
  perform tidebase_router.require_alone();
  max := coalesce(max, 1000);
  for shard in select s.* from tidebase_router.from_a_random_one() s loop
    dropped := dropped + tidebase_router.delete_checkpoints_of_runs(shard, run_ids, max - dropped);
    exit when dropped >= max;
  end loop;
  return dropped;
end

-- # prune_threads
  shard integer;
  dropped integer := 0;
begin
  perform tidebase_router.require_alone();
  max := coalesce(max, 1000);
  for shard in select s.* from tidebase_router.from_a_random_one() s loop
    dropped := dropped + tidebase_router.prune_threads(shard, thread_ids, strategy, max - dropped);
    exit when dropped >= max;
  end loop;
  return dropped;
end

-- # list_runs
begin
  if before is not null and before_created_at is null then
    before_created_at := tidebase_router.place_of(tidebase_private.bucket_of(before), before);
  end if;
  return query
    select a.* from tidebase_router.all_list_runs(workflow, status, before, max, created_after, created_before, before_created_at, roots) a
    order by a.created_at desc, a.run_id desc limit greatest(coalesce(max, 100), 1);
end

-- # list_gates
begin
  if run_id is not null then
    return query select a.* from tidebase_router.list_gates(tidebase_private.bucket_of(run_id), run_id, status, max, after_created_at, after_run_id,
      after_name) a;
    return;
  end if;
  return query
    select a.* from tidebase_router.all_list_gates(run_id, status, max, after_created_at, after_run_id, after_name) a
    order by a.created_at, a.run_id, a.name limit greatest(coalesce(max, 100), 1);
end

-- # list_inbox
  place record;
  due timestamptz := clock_timestamp();
  made timestamptz;
begin
  max := coalesce(max, 100);
  if max not between 1 and 1000 then
    perform tidebase_private.raise_invalid('max', 'must be a number from 1 to 1000');
  end if;
  if after_run_id is not null then
    select p.* into place from tidebase_router.place_in_inbox(tidebase_private.bucket_of(after_run_id), after_run_id, after_name) p;
    if not found then
      perform tidebase_private.raise_gate_not_found(after_run_id, after_name);
    end if;
    due := greatest(due, coalesce(place.due, 'infinity'));
    made := place.made;
  end if;
  return query
    select a.* from tidebase_router.all_page_of_inbox(max, due, made, case when after_run_id is not null then after_run_id end, after_name) a
    order by coalesce(a.timeout_at, 'infinity'), a.created_at, a.run_id, a.name limit max;
end

-- # list_checkpoints
begin
  if thread_id is not null then
    return query select a.* from tidebase_router.list_checkpoints(tidebase_private.bucket_of(thread_id), thread_id, namespace, checkpoint_id, filter,
      before_id, max, after_thread_id, after_namespace, after_number) a;
    return;
  end if;
  return query
    select a.* from tidebase_router.all_list_checkpoints(thread_id, namespace, checkpoint_id, filter, before_id, max, after_thread_id,
      after_namespace, after_number) a
    order by a.thread_id, a.namespace, a.number desc limit greatest(coalesce(max, 100), 1);
end

-- # search_runs
-- A shard has looked at its runs down to where it would go on: the page ends at the newest of these places.
  page tidebase.run_page := row('{}', null, null, 0);
begin
  if before is not null and before_created_at is null then
    before_created_at := tidebase_router.place_of(tidebase_private.bucket_of(before), before);
  end if;
  with parts as materialized (
    select a.* from tidebase_router.all_search_runs(workflow, status, queue, matching, metadata, created_after, created_before, before,
      before_created_at, roots, max, effort) a),
  ends as (
    select p.next_created_at as made, p.next_run_id as run_id from parts p where p.next_run_id is not null
    order by 1 desc, 2 desc limit 1),
  hits as (
    select u.run_id, u.made, row_number() over (order by u.made desc, u.run_id desc) as place
    from parts p cross join lateral unnest(p.run_ids, p.times) u (run_id, made)
    where not exists (select from ends e where (u.made, u.run_id) < (e.made, e.run_id))),
  kept as (select h.* from hits h where h.place <= coalesce(max, 100)),
  last as (
    (select k.made, k.run_id from kept k where k.place = coalesce(max, 100))
    union all
    (select e.made, e.run_id from ends e)
    order by 1 desc, 2 desc limit 1)
  select array(select k.run_id from kept k order by k.place), (select l.run_id from last l), (select l.made from last l),
    (select sum(p.examined)::integer from parts p)
  into page;
  return page;
end

-- # count_runs
begin
  return query
    select a.status, sum(a.runs)::bigint, bool_or(a.estimated) from tidebase_router.all_count_runs() a
    group by a.status
    order by array_position(array['pending', 'queued', 'running', 'waiting', 'review', 'completed', 'failed', 'cancelled'], a.status);
end

-- # find_run
  most constant integer := 10;
  candidates text[];
begin
  perform tidebase_private.require_name(prefix, 'prefix', 255);
  candidates := array(
    select c.run_id from tidebase_router.all_runs_like(prefix, most + 1) c (run_id) order by c.run_id using ~<~ limit most + 1);
  if prefix = any (candidates) then
    return prefix;
  elsif cardinality(candidates) = 0 then
    perform tidebase_private.raise_run_not_found(prefix);
  elsif cardinality(candidates) > 1 then
    perform tidebase_private.raise('TB002', format('%s runs begin with %L: %s%s',
        case when cardinality(candidates) > most then format('more than %s', most) else cardinality(candidates)::text end,
        prefix, array_to_string(candidates[:most], ', '), case when cardinality(candidates) > most then ' ...' else '' end),
      jsonb_build_object('parameter', 'prefix', 'prefix', prefix, 'run_ids', candidates[:most]), 'Give more of the id.');
  end if;
  return candidates[1];
end

-- # measure
-- A worker of queues at several shards is seen at each.
begin
  return query
    select a.metric, a.queue, a.label, case when a.metric in ('late_seconds', 'workers') then max(a.value) else sum(a.value) end
    from tidebase_router.all_measure() a
    group by a.metric, a.queue, a.label;
end

-- # next_ready
begin
  return (select min(a.at) from tidebase_router.all_next_ready(queues) a (at));
end

-- # ready_in
begin
  return (select min(a.delay) from tidebase_router.all_ready_in(queues) a (delay));
end

-- # check_invariants
begin
  if run_id is not null then
    return query select a.* from tidebase_router.check_invariants(tidebase_private.bucket_of(run_id), run_id) a;
    return;
  end if;
  return query select a.* from tidebase_router.all_check_invariants(run_id) a;
end

-- # diff_runs
begin
  if tidebase_router.shard_of(tidebase_private.bucket_of(run_id)) <> tidebase_router.shard_of(tidebase_private.bucket_of(other_run_id)) then
    perform tidebase_router.raise_error('55000', format('run %L is at another shard than run %L', left(other_run_id, 255), left(run_id, 255)), '',
      'A run is compared with its forks, which lie beside it.');
  end if;
  return query select a.* from tidebase_router.diff_runs(coalesce(tidebase_private.bucket_of(run_id), 0), run_id, other_run_id) a;
end

-- # enqueue_runs
-- All or none: so all of one shard.
  item record;
  shard integer;
begin
  perform tidebase_router.require_alone();
  if jsonb_typeof(runs) = 'array' then
    for item in
      select distinct coalesce(e.run ->> 'queue', 'default') as queue, e.run ->> 'run_id' as run_id
      from jsonb_array_elements(runs) e (run) where jsonb_typeof(e.run) = 'object'
    loop
      perform tidebase_router.require_together('run', item.run_id, 'queue', item.queue);
      if tidebase_router.shard_of(tidebase_private.bucket_of_queue(item.queue)) <> shard then
        perform tidebase_router.raise_error('55000', 'these runs are for queues of several shards, and are enqueued all or none', '',
          'Make a call for each queue.');
      end if;
      shard := tidebase_router.shard_of(tidebase_private.bucket_of_queue(item.queue));
    end loop;
  end if;
  return query select a.* from tidebase_router.enqueue_runs(coalesce(shard, 0), runs) a;
end

-- # put_schedule
-- A schedule lives with its queue. Its name is in the ids of its runs, and so is the queue's, which are 255 bytes at most.
  bucket integer := tidebase_private.bucket_of_queue(coalesce(queue, 'default'));
  known text;
begin
  perform tidebase_router.require_alone();
  if octet_length(name) + octet_length(queue) > 220 then
    perform tidebase_private.raise_invalid('name', 'and queue must have no more than 220 bytes together');
  end if;
  select a.queue into known from tidebase_router.all_schedules(name) a (queue)
  where tidebase_private.bucket_of_queue(a.queue) <> bucket limit 1;
  if found then
    perform tidebase_router.raise_error('55000', format('schedule %L lives with queue %L', left(name, 255), left(known, 255)), '',
      'Delete it first: delete_schedule.');
  end if;
  return tidebase_router.put_schedule(bucket, name, workflow, cron, every, input, queue, timezone, overlap, catch_up, catch_up_window, jitter,
    enabled, key, priority, max_attempts, metadata, starts_at);
end

-- # delete_schedule
  shard integer;
  deleted boolean := false;
begin
  perform tidebase_router.require_alone();
  for shard in select s.* from tidebase_router.shards() s loop
    deleted := tidebase_router.delete_schedule(shard, name) or deleted;
  end loop;
  return deleted;
end

-- # trigger_schedule
-- Who repeats a call makes the id, and does not know the queue: it is moved beside it, each time to the same place.
  queue text;
begin
  perform tidebase_router.require_alone();
  queue := (select a.queue from tidebase_router.all_schedules(name) a (queue) limit 1);
  if run_id ~ '^run_[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$' then
    run_id := tidebase_private.in_bucket(run_id, tidebase_private.bucket_of_queue(queue));
  end if;
  perform tidebase_router.require_together('run', run_id, 'queue', queue);
  return tidebase_router.trigger_schedule(coalesce(tidebase_private.bucket_of_queue(queue), 0), name, run_id, input);
end

-- # backfill_schedule
  queue text;
begin
  perform tidebase_router.require_alone();
  queue := (select a.queue from tidebase_router.all_schedules(name) a (queue) limit 1);
  return query select a.* from tidebase_router.backfill_schedule(coalesce(tidebase_private.bucket_of_queue(queue), 0), name, since, until, max) a;
end
