-- What must hold of the rows, whoever wrote them and whatever crashed meanwhile.
--
-- Nobody but the functions can write to the tables, so a row that this finds is a defect of Tidebase, or somebody with
-- the owner's rights has changed the tables by hand. One statement looks at everything in one snapshot, so it may be
-- asked while workers are at it.

create or replace function tidebase_private.broken_heads(of_run text)
returns table (run_id text, invariant text, detail jsonb)
language sql stable
as $$
  select h.run_id, rule.invariant, to_jsonb(h)
  from tidebase.run_heads h
  cross join lateral (values
    ('the status of a run is known',
      h.status in ('pending', 'queued', 'running', 'waiting', 'review', 'completed', 'failed', 'cancelled')),
    ('a run has a lease exactly while it is running', (h.status = 'running') = (h.lease_expires_at is not null)),
    ('a run waits for something exactly while it is waiting', (h.status = 'waiting') = (h.waiting_for is not null)),
    ('the counters of a run only grow from zero',
      h.last_seq >= h.durable_seq and least(h.durable_seq, h.lease_token, h.attempt, h.steps_completed) >= 0),
    ('a run has a head and a cold half', exists (select from tidebase.runs r where r.run_id = h.run_id)),
    ('what the head repeats of the cold half is equal', not exists (
      select from tidebase.runs r
      where r.run_id = h.run_id and (r.created_at, hashtextextended(r.workflow, 0)) is distinct from (h.created_at, h.workflow_key))),
    ('the events of a run are 1..n without a gap', (
      select count(*) = h.last_seq and coalesce(min(e.seq), 1) = 1 and coalesce(max(e.seq), 0) = h.last_seq
      from tidebase.events e where e.run_id = h.run_id)),
    ('the attempts of a run are 1..n without a gap', (
      select count(*) = h.attempt and coalesce(min(a.attempt), 1) = 1 and coalesce(max(a.attempt), 0) = h.attempt
      from tidebase.attempts a where a.run_id = h.run_id)),
    ('only the newest attempt lasts, and only while the run is running', not exists (
      select from tidebase.attempts a
      where a.run_id = h.run_id and (a.ended_at is null) <> (a.attempt = h.attempt and h.status = 'running'))),
    ('lease tokens grow with the attempts, up to the present one', not exists (
      select from (
        select a.lease_token, lead(a.lease_token, 1, h.lease_token + 1) over (order by a.attempt) as next
        from tidebase.attempts a where a.run_id = h.run_id) a
      where a.lease_token >= a.next)),
    ('the checkpoints of a run are counted', h.steps_completed = (
      select count(*) from tidebase.steps s where s.run_id = h.run_id and s.status = 'completed')),
    ('a run is in review while a step of it is', h.status <> 'review' or exists (
      select from tidebase.steps s where s.run_id = h.run_id and s.status = 'review')),
    ('a run that waits does so for a gate, a timer or children of its own', h.waiting_for is null or exists (
        select from tidebase.gates g where g.run_id = h.run_id and g.name = h.waiting_for)
      or exists (select from tidebase.awaited w where w.run_id = h.run_id)),
    ('only a run that waits has children that it waits for', h.status = 'waiting' or not exists (
      select from tidebase.awaited w where w.run_id = h.run_id)),
    ('a run that is completed has no step that has not ended', h.status <> 'completed' or not exists (
      select from tidebase.steps s where s.run_id = h.run_id and s.status in ('running', 'review'))),
    ('a run belongs to a queue in its head as in its cold half', h.in_queue = coalesce((
      select r.queue is not null from tidebase.runs r where r.run_id = h.run_id), h.in_queue)),
    ('a run that is queued belongs to a queue, and is found there', h.status <> 'queued' or h.in_queue and exists (
      select from tidebase.queue_entries e where e.run_id = h.run_id)),
    ('the end of a lease is looked at, or was, and then the run is found in its queue', h.status <> 'running' or h.due_at is not null or (
      tidebase_private.is_marked(h) and (not h.in_queue or exists (select from tidebase.queue_entries e where e.run_id = h.run_id)))),
    ('a run that is not over has its dedupe key', h.status in ('completed', 'failed', 'cancelled') or not exists (
      select from tidebase.runs r
      where r.run_id = h.run_id and r.queue is not null and r.dedupe_key is not null and not exists (
        select from tidebase.dedupe_keys d where d.queue = r.queue and d.dedupe_key = r.dedupe_key and d.run_id = r.run_id))),
    ('a run that is cancelled waits for nobody''s decision', h.status <> 'cancelled' or not exists (
      select from tidebase.gates g where g.run_id = h.run_id and g.status = 'pending'))
  ) rule (invariant, holds)
  where (of_run is null or h.run_id = of_run) and not coalesce(rule.holds, false);
$$;
comment on function tidebase_private.broken_heads(text) is 'What is wrong about runs as such; see check_invariants.';

create or replace function tidebase_private.broken_steps(of_run text)
returns table (run_id text, invariant text, detail jsonb)
language sql stable
as $$
  select s.run_id, rule.invariant, to_jsonb(s) - '{input,output,error}'::text[]
  from tidebase.steps s
  join tidebase.run_heads h on h.run_id = s.run_id
  join tidebase.runs r on r.run_id = s.run_id
  left join tidebase.events e on e.run_id = s.run_id and e.seq = s.completed_seq
  left join (
    select c.run_id, c.payload ->> 'name' as name, count(*) as times
    from tidebase.events c
    where c.type = 'step.completed' and (of_run is null or c.run_id = of_run)
    group by c.run_id, c.payload ->> 'name') completions on completions.run_id = s.run_id and completions.name = s.name
  cross join lateral (values
    ('the status of a step is known', s.status in ('running', 'completed', 'failed', 'review')),
    ('a step is completed with an output and an event, or not at all',
      (s.status = 'completed') = (s.completed_seq is not null) and (s.status = 'completed') = (s.output is not null)),
    ('a step failed with a decision', s.status <> 'failed' or s.decision is not null),
    ('the decision about a failure is known', coalesce(s.decision in ('auto_retry', 'safe_replay', 'manual_review', 'fail_hard'), true)),
    ('the replay of a contract is known', coalesce(s.replay in ('auto', 'manual', 'never'), true)),
    ('a step is counted by its attempts', s.attempt >= s.tries and s.tries >= 1),
    ('a step was begun under a lease that was granted', s.lease_token <= h.lease_token),
    ('the hash of a step is that of its input', r.compacted_at is not null or s.input_hash = tidebase_private.hash_input(s.input)),
    ('a checkpoint is in the log, once', s.completed_seq is null or e.type = 'step.completed' and e.payload ->> 'name' = s.name and completions.times = 1),
    ('a step waits for a review exactly while one is open', (s.status = 'review') = exists (
      select from tidebase.reviews v where v.run_id = s.run_id and v.step = s.name and v.resolved_at is null))
  ) rule (invariant, holds)
  where (of_run is null or s.run_id = of_run) and not coalesce(rule.holds, false);
$$;
comment on function tidebase_private.broken_steps(text) is 'What is wrong about steps; see check_invariants.';

create or replace function tidebase_private.broken_rows(of_run text)
returns table (run_id text, invariant text, detail jsonb)
language sql stable
as $$
  select r.run_id, 'a run has a head and a cold half', null::jsonb
  from tidebase.runs r
  where (of_run is null or r.run_id = of_run) and not exists (select from tidebase.run_heads h where h.run_id = r.run_id)
  union all
  select g.run_id, 'a gate is decided once', to_jsonb(g) - '{data,payload,capability,response_schema}'::text[]
  from tidebase.gates g
  left join (
    select e.run_id, e.payload ->> 'name' as name, count(*) as times, min(e.payload ->> 'decision') as decision
    from tidebase.events e
    where e.type in ('gate.resolved', 'timer.fired') and (of_run is null or e.run_id = of_run)
    group by e.run_id, e.payload ->> 'name') told on told.run_id = g.run_id and told.name = g.name
  where (of_run is null or g.run_id = of_run)
    and ((g.status = 'decided')::integer <> coalesce(told.times, 0) or told.decision <> g.decision)
  union all
  select g.run_id, rule.invariant, to_jsonb(g) - '{data,payload,capability,response_schema}'::text[]
  from tidebase.gates g
  cross join lateral (
    select coalesce(max(v.votes), 0) as most, coalesce(max(v.votes) filter (where v.decision = g.decision), 0) as agreed
    from (
      select v.decision, count(*) as votes
      from tidebase.gate_votes v
      where v.run_id = g.run_id and v.name = g.name
      group by v.decision) v) v
  cross join lateral (values
    ('the hash of a gate is that of what it shows', g.kind = 'timer' or g.shown_hash = tidebase_private.shown_hash(g)),
    ('a timer has no secret', g.kind = 'gate' or g.nonce is null),
    ('as many people agree to a decision as it needs', g.required_approvals = 1 or case
      when g.status <> 'decided' then v.most < g.required_approvals
      else g.decided_by = 'timeout' or g.decision = 'rejected' or v.agreed >= g.required_approvals
    end)
  ) rule (invariant, holds)
  where (of_run is null or g.run_id = of_run) and not coalesce(rule.holds, false)
  union all
  select v.run_id, 'a vote is in the log, once', to_jsonb(v) - 'payload'
  from tidebase.gate_votes v
  where (of_run is null or v.run_id = of_run) and 1 <> (
    select count(*) from tidebase.events e
    where e.run_id = v.run_id and e.type = 'gate.voted' and e.payload ->> 'name' = v.name
      and e.payload ->> 'voter' = v.voter and e.payload ->> 'decision' = v.decision)
  union all
  select v.run_id, 'the versions of a stream are 1..n without a gap', jsonb_build_object('stream', v.stream)
  from tidebase.state_versions v
  join tidebase.runs r on r.run_id = v.run_id
  where (of_run is null or v.run_id = of_run)
  group by v.run_id, v.stream, r.compacted_at
  having count(*) <> max(v.version) and r.compacted_at is null or bool_or(v.version < 1)
  union all
  select e.run_id, 'an event has a place in the log', to_jsonb(e) - 'payload'
  from tidebase.events e
  where (of_run is null or e.run_id = of_run) and (e.seq < 1 or not exists (
    select from tidebase.run_heads h where h.run_id = e.run_id and h.last_seq >= e.seq))
  union all
  select d.run_id, 'an edge leads to one child, as the log says', to_jsonb(d) - 'metadata'
  from tidebase.edges d
  left join (
    select e.run_id, e.payload ->> 'name' as name, count(*) as times, min(e.payload ->> 'child_run_id') as child_run_id
    from tidebase.events e
    where e.type = 'run.child.created' and (of_run is null or e.run_id = of_run)
    group by e.run_id, e.payload ->> 'name') told on told.run_id = d.run_id and told.name = d.name
  where (of_run is null or d.run_id = of_run) and d.edge_type <> 'fork'
    and (told.times is distinct from 1 or told.child_run_id <> d.child_run_id)
  union all
  select c.run_id, rule.invariant, to_jsonb(c) - 'secret'
  from tidebase.channels c
  left join tidebase.run_heads h on h.run_id = c.run_id
  cross join lateral (values
    ('a channel has told what is in the log', greatest(c.delivered_seq, c.sending_seq) <= h.last_seq),
    ('a channel is done when its run is over, and all of it is told',
      c.status <> 'delivered' or h.status in ('completed', 'cancelled') and c.delivered_seq = h.last_seq)
  ) rule (invariant, holds)
  where (of_run is null or c.run_id = of_run) and not coalesce(rule.holds, false)
  union all
  select w.run_id, 'a run waits only for children of its own', to_jsonb(w)
  from tidebase.awaited w
  where (of_run is null or w.run_id = of_run) and not exists (
    select from tidebase.edges d where d.run_id = w.run_id and d.child_run_id = w.child_run_id and d.edge_type <> 'fork')
  union all
  select a.run_id, 'what was used adds up', to_jsonb(a)
  from tidebase.accounts a
  cross join lateral (
    select count(*) as records, coalesce(sum(u.input_tokens), 0) as input_tokens, coalesce(sum(u.output_tokens), 0) as output_tokens,
      coalesce(sum(u.cost) filter (where u.currency = 'USD'), 0) as cost_usd
    from tidebase.usage u where u.run_id = a.run_id) u
  where (of_run is null or a.run_id = of_run)
    and (a.records, a.input_tokens, a.output_tokens, a.cost_usd)
      is distinct from (u.records, u.input_tokens, u.output_tokens, u.cost_usd)
  union all
  select a.run_id, 'what a tree of runs used adds up at its root', to_jsonb(a)
  from tidebase.accounts a
  join tidebase.run_heads h on h.run_id = a.run_id and h.has_budget
  cross join lateral (
    select a.input_tokens + a.output_tokens + coalesce(sum(c.shared_tokens), 0) as tokens,
      a.cost_usd + coalesce(sum(c.shared_cost_usd), 0) as cost_usd
    from tidebase.accounts c
    where c.parent_run_id = a.run_id) shared
  where (of_run is null or a.run_id = of_run)
    and (a.shared_tokens < shared.tokens or a.shared_cost_usd < shared.cost_usd
      or not a.has_forks and (a.shared_tokens, a.shared_cost_usd) is distinct from (shared.tokens, shared.cost_usd))
    and not exists (  -- of a child that was purged nobody knows any more what it used
      select from tidebase.edges d
      where d.run_id = a.run_id and not exists (select from tidebase.runs r where r.run_id = d.child_run_id));
$$;
comment on function tidebase_private.broken_rows(text) is 'What is wrong about gates, streams, events, edges, channels and accounts; see check_invariants.';

create or replace function tidebase_private.broken_threads()
returns table (run_id text, invariant text, detail jsonb)
language sql stable
as $$
  with rows as (
    select c.thread, c.namespace, c.checkpoint_id as name, rule.invariant
    from tidebase.thread_checkpoints c
    cross join lateral (values
      ('the checkpoints of a thread are numbered from one', c.number >= 1),
      ('a checkpoint has the values that it names', cardinality(c.value_numbers) = (
        select count(*) from tidebase.thread_values v
        where v.thread = c.thread and v.namespace = c.namespace and v.value = any (c.value_numbers)))
    ) rule (invariant, holds)
    where not coalesce(rule.holds, false)
    union all
    select v.thread, v.namespace, v.channel || ' ' || v.value, 'a value has all its chunks, and their length'
    from tidebase.thread_values v
    cross join lateral (
      select count(*) as number, coalesce(sum(octet_length(k.content)), 0) as bytes
      from unnest(v.parts) p (range)
      join tidebase.thread_chunks k on k.thread = v.thread and k.namespace = v.namespace and k.channel = v.channel
        and k.position >= lower(p.range) and k.position < upper(p.range)) k
    where k.bytes <> v.bytes or k.number <> (select coalesce(sum(upper(p.range) - lower(p.range)), 0) from unnest(v.parts) p (range))
    union all
    select o.thread, null, o.what, 'what belongs to a thread has one'
    from (
      select distinct c.thread, 'checkpoint' as what from tidebase.thread_checkpoints c
      union all
      select distinct v.thread, 'value' from tidebase.thread_values v
      union all
      select distinct k.thread, 'chunk' from tidebase.thread_chunks k
      union all
      select distinct w.thread, 'write' from tidebase.thread_writes w) o
    where not exists (select from tidebase.threads t where t.thread = o.thread)
  )
  select null, r.invariant, jsonb_build_object('thread_id', t.thread_id, 'thread', r.thread, 'namespace', r.namespace, 'what', r.name)
  from rows r
  left join tidebase.threads t on t.thread = r.thread;
$$;
comment on function tidebase_private.broken_threads() is 'What is wrong about threads and their checkpoints; see check_invariants.';

create or replace function tidebase_private.check_invariants(of_run text default null)
returns table (run_id text, invariant text, detail jsonb)
language sql stable
as $$
  select * from tidebase_private.broken_heads(of_run)
  union all
  select * from tidebase_private.broken_steps(of_run)
  union all
  select * from tidebase_private.broken_rows(of_run)
  union all
  select * from tidebase_private.broken_threads() where of_run is null;
$$;
comment on function tidebase_private.check_invariants(text) is
  'Every row that breaks an invariant: of one run, or (NULL) of all. None is good. It reads all that it is asked about.';

create or replace function tidebase.check_invariants(run_id text default null)
returns setof tidebase.violation
language plpgsql stable security definer rows 10
set search_path = pg_catalog, tidebase, pg_temp
set enable_seqscan = off
set plan_cache_mode = force_custom_plan
set jit = off  -- its estimate is far above what it costs: compiling it takes seconds
as $$
begin
  if run_id is not null and not exists (select from run_heads h where h.run_id = check_invariants.run_id) then
    perform tidebase_private.raise_run_not_found(run_id);
  end if;
  return query select c.run_id, c.invariant, c.detail from tidebase_private.check_invariants(run_id) c;
end
$$;
comment on function tidebase.check_invariants(text) is
  'Looks at every row of a run, or (NULL) of all of them, and returns those that break a rule which the functions keep: the log without a gap, one checkpoint a step, tokens that grow ... None is good. A row that is found is a defect, or was changed by hand; the worker may go on meanwhile. It reads all that it is asked about, once, so for all runs it takes as long as a dump: for operators. Errors: TB001.';

select tidebase_private.allow('function tidebase.check_invariants', 'operator');
