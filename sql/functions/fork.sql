-- Forks: a new run that begins with what another one had at some point of its log. Replaying it executes only what
-- comes after. And the comparison of two runs, to see where they part.

-- What of a log a fork begins with: the events that its checkpoints, decisions and states are about, renumbered from 2
-- on, each with the number it had. So a fork can be forked again at any point, too. Of the ids of calls those come along
-- by which a workflow that runs from the top recognises what it has written outside of its steps.
create or replace function tidebase_private.copy_events(source text, fork text, through bigint, children text[])
returns bigint
language plpgsql volatile
as $$
declare
  copied bigint;
begin
  insert into tidebase.events (run_id, seq, type, payload, request_id)
  select fork, 1 + row_number() over (order by e.seq), e.type, e.payload || jsonb_build_object('source_seq', e.seq),
    case when starts_with(e.request_id, 'again:') then e.request_id end
  from tidebase.events e
  where e.run_id = source and e.seq <= through and (
    e.type in ('step.completed', 'state.updated', 'state.saved', 'state.restored', 'snapshot.created')
    or e.type = 'run.child.created' and e.payload ->> 'name' = any (children)
    or e.type in ('gate.created', 'gate.voted', 'gate.resolved', 'timer.started', 'timer.fired') and e.payload ->> 'name' in (
      select d.payload ->> 'name' from tidebase.events d
      where d.run_id = source and d.seq <= through and d.type in ('gate.resolved', 'timer.fired')));
  get diagnostics copied = row_count;
  return copied;
end
$$;
comment on function tidebase_private.copy_events(text, text, bigint, text[]) is
  'Copies the events that a fork begins with, those of the children with these names among them, from number 2 on, and returns how many; payload.source_seq is the number in the source.';

-- The children that had a result when the source's log went on from there. They are not made, and paid for, again: the fork
-- gets their results from the same runs. These are locked against purge_runs until the fork's edges hold them.
create or replace function tidebase_private.children_before(head tidebase.run_heads, through bigint)
returns text[]
language plpgsql volatile
as $$
declare
  until timestamptz := (select e.created_at from tidebase.events e where e.run_id = head.run_id and e.seq = through + 1);
  names text[];
begin
  perform from tidebase.run_heads h
  where h.run_id in (select d.child_run_id from tidebase.edges d where d.run_id = head.run_id and d.edge_type <> 'fork')
    and h.status = 'completed'
  order by h.run_id
  for key share;
  select array_agg(d.name) into names
  from tidebase.edges d
  join tidebase.run_heads h on h.run_id = d.child_run_id and h.status = 'completed'
  join tidebase.runs r on r.run_id = d.child_run_id and r.finished_at <= coalesce(until, 'infinity')
  where d.run_id = head.run_id and d.edge_type <> 'fork' and exists (
    select from tidebase.events e
    where e.run_id = head.run_id and e.seq <= through and e.type = 'run.child.created' and e.payload ->> 'name' = d.name);
  return coalesce(names, '{}');
end
$$;
comment on function tidebase_private.children_before(tidebase.run_heads, bigint) is
  'The names of the edges to children that were completed when the run''s log went on after this event.';

-- The rows that these events are about. Gates keep their decision; their secrets are derived from the run's id, so
-- those of the source decide nothing here.
create or replace function tidebase_private.copy_rows(source text, fork text)
returns integer
language plpgsql volatile
as $$
declare
  steps integer;
begin
  insert into tidebase.steps
  select copy.*
  from tidebase.events e
  join tidebase.steps s on s.run_id = source and s.completed_seq = (e.payload ->> 'source_seq')::bigint,
    lateral jsonb_populate_record(s, jsonb_build_object('run_id', fork, 'completed_seq', e.seq, 'lease_token', 0, 'request_id', null)) copy
  where e.run_id = fork and e.type = 'step.completed';
  get diagnostics steps = row_count;

  insert into tidebase.gates
  select copy.*
  from tidebase.events e
  join tidebase.gates g on g.run_id = source and g.name = e.payload ->> 'name',
    lateral jsonb_populate_record(g, jsonb_build_object('run_id', fork, 'request_id', null)) copy
  where e.run_id = fork and e.type in ('gate.resolved', 'timer.fired');
  insert into tidebase.gate_votes
  select copy.*
  from tidebase.gates g
  join tidebase.gate_votes v on v.run_id = source and v.name = g.name,
    lateral jsonb_populate_record(v, jsonb_build_object('run_id', fork, 'request_id', null)) copy
  where g.run_id = fork;

  insert into tidebase.edges (run_id, name, child_run_id, edge_type, metadata, created_at, source_run_id)
  select fork, d.name, d.child_run_id, d.edge_type, d.metadata, d.created_at, coalesce(d.source_run_id, source)
  from tidebase.events e
  join tidebase.edges d on d.run_id = source and d.name = e.payload ->> 'name' and d.edge_type <> 'fork'
  where e.run_id = fork and e.type = 'run.child.created';

  insert into tidebase.state_versions
  select copy.*
  from tidebase.events e
  join tidebase.state_versions v on v.run_id = source and v.seq = (e.payload ->> 'source_seq')::bigint,
    lateral jsonb_populate_record(v, jsonb_build_object('run_id', fork, 'seq', e.seq)) copy
  where e.run_id = fork and e.type in ('state.updated', 'state.saved', 'state.restored', 'snapshot.created');
  insert into tidebase.state_streams
  select copy.*
  from tidebase.state_streams t, lateral jsonb_populate_record(t, jsonb_build_object('run_id', fork)) copy
  where t.run_id = source and exists (
    select from tidebase.state_versions v where v.run_id = fork and v.stream = t.stream);
  return steps;
end
$$;
comment on function tidebase_private.copy_rows(text, text) is
  'Copies the checkpoints, decided gates, edges and versions of state whose events the fork has; returns how many checkpoints.';

create or replace function tidebase_private.fork_point(head tidebase.run_heads, through_step text, through_seq bigint)
returns bigint
language plpgsql stable
as $$
declare
  step tidebase.steps;
begin
  if num_nonnulls(through_step, through_seq) > 1 then
    perform tidebase_private.raise_invalid('through_step and through_seq', 'must not be combined');
  elsif through_seq not between 0 and head.last_seq then
    perform tidebase_private.raise_invalid('through_seq', format('must be a number from 0 to %s, the run''s last event', head.last_seq));
  elsif through_step is null then
    return coalesce(through_seq, head.last_seq);
  end if;
  select s.* into step from tidebase.steps s where s.run_id = head.run_id and s.name = through_step;
  if step.completed_seq is null then
    perform tidebase_private.raise('TB007', format('step %L of run %L is %s', through_step, head.run_id, coalesce(step.status, 'not begun')),
      jsonb_build_object('run_id', head.run_id, 'step', through_step, 'status', step.status),
      'A run can be forked behind a step that is completed; see step_timeline.');
  end if;
  return step.completed_seq;
end
$$;
comment on function tidebase_private.fork_point(tidebase.run_heads, text, bigint) is
  'The seq up to which a fork takes over what the source has. Errors: TB002, TB007.';

-- What was asked is compared, not what came of it: the source may have gone on since, or may be compacted by now.
create or replace function tidebase_private.find_fork(
  source text, fork text, through_step text, through_seq bigint, input jsonb)
returns text
language plpgsql stable
as $$
begin
  if not exists (
    select from tidebase.edges e
    join tidebase.runs r on r.run_id = e.child_run_id
    where e.run_id = source and e.name = 'fork:' || fork and e.child_run_id = fork
      and e.metadata ->> 'through_step' is not distinct from find_fork.through_step
      and (e.metadata ->> 'asked_seq')::bigint is not distinct from find_fork.through_seq
      and coalesce(find_fork.input = r.input, find_fork.input is null))
  then
    perform tidebase_private.raise('TB006', format('run %L exists, and is not this fork', fork),
      jsonb_build_object('run_id', fork, 'source_run_id', source, 'through_step', through_step, 'through_seq', through_seq),
      'Use another new_run_id.');
  end if;
  return fork;
end
$$;
comment on function tidebase_private.find_fork(text, text, text, bigint, jsonb) is 'The fork that the very same call made before. Errors: TB006.';

-- Makes a run that begins where another one was.
--
-- What is copied never changes any more (checkpoints, decisions, versions), so the source is not locked against its
-- worker, only against purge_runs and compact_run; nothing of it is touched.
create or replace function tidebase.fork_run(
  run_id text, new_run_id text default null, through_step text default null, through_seq bigint default null,
  input jsonb default null, reason text default null, actor text default null)
returns text
language plpgsql volatile security definer
set search_path = pg_catalog, tidebase, pg_temp
set enable_seqscan = off
as $$
declare
  id text := new_run_id;
  origin record;
  head run_heads;
  through bigint;
  copied bigint;
  steps integer;
  made timestamptz;
begin
  if id is not null then
    perform tidebase_private.require_name(id, 'new_run_id', 255);
  end if;
  perform tidebase_private.require_payload(input, 'input');
  perform tidebase_private.require_text(reason, 'reason');
  perform tidebase_private.require_text(actor, 'actor');
  perform tidebase_private.commit_durably();
  perform from run_heads h where h.run_id = fork_run.run_id for key share;
  if not found then
    perform tidebase_private.raise_run_not_found(run_id);
  elsif exists (select from runs r where r.run_id = id) then
    return tidebase_private.find_fork(run_id, id, through_step, through_seq, input);  -- the same call again
  end if;
  id := coalesce(id, tidebase.new_run_id(beside => run_id));
  -- All of one moment: how far the log goes, and the limits that are not in what is copied of it.
  select h as head, r.*, a.cost_limit_usd, a.token_limit, a.parent_run_id as budget_parent into origin
  from run_heads h
  join runs r on r.run_id = h.run_id
  left join accounts a on a.run_id = h.run_id
  where h.run_id = fork_run.run_id;
  through := tidebase_private.fork_point(origin.head, through_step, through_seq);
  if origin.compacted_at is not null then
    perform tidebase_private.raise('TB005', format('run %L was compacted: it has no checkpoints any more', run_id),
      jsonb_build_object('run_id', run_id, 'compacted_at', origin.compacted_at), 'Fork runs before they are compacted.');
  end if;

  insert into runs (run_id, workflow, input, metadata, max_attempts, retry_delay, recovery_webhook)
  values (id, origin.workflow, coalesce(fork_run.input, origin.input), origin.metadata, origin.max_attempts, origin.retry_delay,
    origin.recovery_webhook)
  on conflict on constraint runs_pkey do nothing
  returning created_at into made;
  if not found then
    return tidebase_private.find_fork(run_id, id, through_step, through_seq, input);  -- the same call at the same time
  end if;
  insert into run_heads (run_id, last_seq, durable_seq, created_at, workflow_key)
  values (id, 1, 1, made, hashtextextended(origin.workflow, 0))
  returning * into head;
  perform tidebase_private.emit(head, 'run.forked', jsonb_strip_nulls(jsonb_build_object('source_run_id', run_id,
    'through_seq', through, 'through_step', through_step, 'workflow', origin.workflow, 'reason', reason,
    'actor', coalesce(actor, tidebase_private.caller()))));
  copied := tidebase_private.copy_events(run_id, id, through, tidebase_private.children_before(origin.head, through));
  steps := tidebase_private.copy_rows(run_id, id);
  update run_heads h
  set last_seq = 1 + copied, durable_seq = 1 + copied, steps_completed = steps, has_budget = (origin.head).has_budget
  where h.run_id = id
  returning h.* into head;
  if head.has_budget then
    insert into accounts (run_id, parent_run_id, cost_limit_usd, token_limit)
    values (id, origin.budget_parent, origin.cost_limit_usd, origin.token_limit);
    update accounts a set has_forks = true where a.run_id = origin.budget_parent and not a.has_forks;
  end if;
  insert into edges (run_id, name, child_run_id, edge_type, metadata)
  values (fork_run.run_id, 'fork:' || id, id, 'fork', jsonb_strip_nulls(jsonb_build_object('through_seq', through,
    'through_step', through_step, 'asked_seq', through_seq, 'reason', reason)));
  return id;
end
$$;
comment on function tidebase.fork_run(text, text, text, bigint, jsonb, text, text) is
  'Makes a new run that begins with what another one had at a point, and returns its id, generated when new_run_id is NULL: the checkpoints, the states with their history, and the gates that were decided up to then. through_step: up to and with that step''s completion; through_seq: up to and with that event (0: nothing but the input); neither: all there is. Working on the fork executes only what comes after. Children that were completed by then are its children, too: their results are taken, they are not executed again. Its log begins at 1 with run.forked and has the events of what it took over; usage does not come along, nor does the deadline. The limits of a budget do, with nothing used; and a fork of a child draws on the budget that the child shares with its tree. A generated id lies beside the source''s (see new_run_id). input: another one, by default the source''s. The source is untouched, whatever its status; an edge of type fork leads to the new run. The same call with the same new_run_id finds the fork. Errors: TB001, TB002, TB005 (it was compacted), TB006 (new_run_id is another run, or a fork that was asked for otherwise), TB007 (through_step is not completed).';

select tidebase_private.allow('function tidebase.fork_run', 'worker', 'operator');
