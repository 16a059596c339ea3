-- Retention: what is over goes, with everything that hangs on it; what is alive stays, and so does what it needs.

-- The runs above and below some that are not over for ever: a parent finds its children's results again when it is
-- resumed. Completed and cancelled are for ever; a failed run may be resumed. Forks need nobody.
create or replace function tidebase_private.relatives(run_ids text[])
returns table (run_id text, relative text, status text, finished_at timestamptz)
language sql stable
as $$
  select e.mine, h.run_id, h.status, r.finished_at
  from (
    select c.run_id as mine, c.child_run_id as other from tidebase.edges c
    where c.run_id = any (relatives.run_ids) and c.edge_type <> 'fork'
    union all
    select p.child_run_id, p.run_id from tidebase.edges p
    where p.child_run_id = any (relatives.run_ids) and p.edge_type <> 'fork') e
  join tidebase.run_heads h on h.run_id = e.other
  join tidebase.runs r on r.run_id = e.other
  where h.status not in ('completed', 'cancelled');
$$;
comment on function tidebase_private.relatives(text[]) is 'Parents and children of runs, as far as they may still go on.';

-- The tokens that go with the heads are remembered as one number, so that a run which is made with an old id begins above
-- them: a worker of the old run must not get through the fence of the new one.
create or replace function tidebase_private.forget(run_ids text[])
returns void
language plpgsql volatile
as $$
begin
  update tidebase_private.incarnation i set tokens_before = highest.token
  from (select max(h.lease_token) as token from tidebase.run_heads h where h.run_id = any (run_ids)) highest
  where i.tokens_before < highest.token;
  -- A reader may have the lock of a mark for as long as he likes, who enqueues that of a key: then it is left behind, and means
  -- nothing.
  delete from tidebase.watches t
  where t.run_id in (select w.run_id from tidebase.watches w where w.run_id = any (run_ids) for update skip locked);
  delete from tidebase.setbacks t where t.run_id = any (run_ids);
  delete from tidebase.queue_entries t where t.run_id = any (run_ids);
  delete from tidebase.slots t where t.run_id = any (run_ids);
  delete from tidebase.invocations t where t.run_id = any (run_ids);
  delete from tidebase.dedupe_keys t
  where (t.queue, t.dedupe_key) in (
    select d.queue, d.dedupe_key from tidebase.dedupe_keys d where d.run_id = any (run_ids) for update skip locked);
  delete from tidebase.awaited t where t.run_id = any (run_ids) or t.child_run_id = any (run_ids);
  delete from tidebase.edges t where t.run_id = any (run_ids) or t.child_run_id = any (run_ids);
  delete from tidebase.channels t where t.run_id = any (run_ids);
  delete from tidebase.deliveries t where t.run_id = any (run_ids);
  delete from tidebase.recoveries t where t.run_id = any (run_ids);
  delete from tidebase.reviews t where t.run_id = any (run_ids);
  delete from tidebase.gate_votes t where t.run_id = any (run_ids);
  delete from tidebase.gates t where t.run_id = any (run_ids);
  delete from tidebase.usage t where t.run_id = any (run_ids);
  delete from tidebase.accounts t where t.run_id = any (run_ids);
  delete from tidebase.state_versions t where t.run_id = any (run_ids);
  delete from tidebase.state_streams t where t.run_id = any (run_ids);
  delete from tidebase.events t where t.run_id = any (run_ids);
  delete from tidebase.steps t where t.run_id = any (run_ids);
  delete from tidebase.attempts t where t.run_id = any (run_ids);
  delete from tidebase.run_heads t where t.run_id = any (run_ids);
  delete from tidebase.runs t where t.run_id = any (run_ids);
end
$$;
comment on function tidebase_private.forget(text[]) is 'Deletes runs with everything that hangs on them. The caller holds the locks of their heads.';

-- Locks runs that have been over since `before`, oldest first, and returns those that nobody needs any more. A relative
-- that failed, and is as old, needs nobody either; it is locked, too, so that it is not resumed at this very moment.
-- Nobody is waited for: what somebody else has locked is left for the next time; so is a run when another purger has
-- the one at the other end of an edge, or two of them could wait for each other.
create or replace function tidebase_private.choose_dead(before timestamptz, statuses text[], max integer)
returns text[]
language plpgsql volatile
as $$
declare
  chosen text[];
  settled text[];
begin
  select array_agg(c.run_id) into chosen from (
    select h.run_id
    from tidebase.runs r
    join tidebase.run_heads h on h.run_id = r.run_id
    where r.created_at <= before  -- nothing finishes before it was made, and for this there is an index
      and r.finished_at <= before and h.status = any (statuses)
      and not exists (
        select from tidebase_private.relatives(array[r.run_id]) n
        where not (n.status = 'failed' and n.status = any (statuses) and n.finished_at <= before))
    order by r.created_at
    limit choose_dead.max
    for update of h skip locked) c;
  select array_agg(l.run_id) into settled from (
    select h.run_id from tidebase.run_heads h
    where h.run_id in (select n.relative from tidebase_private.relatives(chosen) n) and h.status = 'failed'
    for update skip locked) l;
  return (
    with mine as materialized (
      select t.run_id, t.name from tidebase.edges t
      where t.run_id = any (chosen) or t.child_run_id = any (chosen)
      for update skip locked)
    select array_agg(c.id) from unnest(chosen) as c (id)
    where not exists (
      select from tidebase_private.relatives(array[c.id]) n where n.relative <> all (coalesce(settled, '{}')))
      and not exists (
        select from tidebase.edges t
        where (t.run_id = c.id or t.child_run_id = c.id)
          and not exists (select from mine m where m.run_id = t.run_id and m.name = t.name)));
end
$$;
comment on function tidebase_private.choose_dead(timestamptz, text[], integer) is
  'Some runs that may be purged, at most max, with their heads locked; NULL when there are none.';

-- Purges in rounds: when the leaves of a tree are gone, their parents' turn comes in the same call.
create or replace function tidebase.purge_runs(
  older_than interval, statuses text[] default array['completed', 'failed', 'cancelled'], max integer default 1000)
returns integer
language plpgsql volatile security definer
set search_path = pg_catalog, tidebase, pg_temp
as $$
declare
  before timestamptz;
  chosen text[];
  purged integer := 0;
begin
  max := coalesce(max, 1000);
  statuses := coalesce(statuses, array['completed', 'failed', 'cancelled']);
  perform tidebase_private.require_interval(older_than, 'older_than', '0', '1000 years');
  if max not between 1 and 10000 then
    perform tidebase_private.raise_invalid('max', 'must be a number from 1 to 10000');
  elsif array_ndims(statuses) is distinct from 1
    or array_position(statuses, null) is not null or not statuses <@ array['completed', 'failed', 'cancelled']
  then
    perform tidebase_private.raise_invalid('statuses', 'must be some of completed, failed and cancelled: a run that is alive is never purged');
  end if;
  before := clock_timestamp() - older_than;
  loop
    chosen := tidebase_private.choose_dead(before, statuses, max - purged);
    exit when chosen is null;
    perform tidebase_private.forget(chosen);
    purged := purged + cardinality(chosen);
    exit when purged >= max;
  end loop;
  return purged;
end
$$;
comment on function tidebase.purge_runs(interval, text[], integer) is
  'Deletes runs that have been over for longer than older_than, with everything that hangs on them, oldest first, at most max (1 to 10000); returns how many. Call it again while it returns max. statuses: some of completed, failed, cancelled. A run is kept while it is alive, while a child of it is, and while its parent is; a failed one counts as alive there, since it may be resumed, until it could be purged itself. Errors: TB002.';

-- Makes each stream consist of its newest version, whole.
create or replace function tidebase_private.drop_history(run_id text)
returns void
language plpgsql volatile
as $$
declare
  last record;
begin
  for last in
    select t.stream, (tidebase_private.last_version(t.run_id, t.stream)).version from tidebase.state_streams t
    where t.run_id = drop_history.run_id
  loop
    update tidebase.state_versions v
    set base = null, keyframe = v.version, group_bytes = 0,
        content = (tidebase_private.read_version(v.run_id, v.stream, v.version)).value
    where v.run_id = drop_history.run_id and v.stream = last.stream and v.version = last.version;
    delete from tidebase.state_versions v
    where v.run_id = drop_history.run_id and v.stream = last.stream and v.version < last.version;
  end loop;
end
$$;
comment on function tidebase_private.drop_history(text) is 'Keeps the newest version of each stream. The caller holds the head''s lock.';

-- The head is locked against fork_run, too, which takes a key share: what it copies must not go meanwhile.
create or replace function tidebase.compact_run(run_id text)
returns boolean
language plpgsql volatile security definer
set search_path = pg_catalog, tidebase, pg_temp
set enable_seqscan = off
as $$
declare
  head run_heads;
begin
  perform tidebase_private.commit_durably();
  -- The strongest lock first: who has a weaker one, and wants more, waits behind those who wait for him.
  perform from run_heads h where h.run_id = compact_run.run_id for update;
  head := tidebase_private.lock_head(run_id);
  if head.status not in ('completed', 'cancelled') then
    perform tidebase_private.raise('TB002', format('run %L is %s: it may still need its checkpoints', run_id, head.status),
      jsonb_build_object('run_id', run_id, 'status', head.status), 'Only completed and cancelled runs can be compacted.');
  end if;
  update runs r set compacted_at = clock_timestamp() where r.run_id = compact_run.run_id and r.compacted_at is null;
  if not found then
    return false;
  end if;
  update steps s set input = null, output = case when s.output is not null then 'null'::jsonb end, error = null
  where s.run_id = compact_run.run_id;
  perform tidebase_private.drop_history(run_id);
  return true;
end
$$;
comment on function tidebase.compact_run(text) is
  'Takes the inputs and outputs of a run''s steps away, and all but the newest version of each stream; its input and result, its log, gates and usage stay. Only of a run that is completed or cancelled. It cannot be forked any more. Returns false when it was done before. Errors: TB001, TB002.';

create or replace view tidebase.run_sizes with (security_barrier = true) as
  select
    r.run_id,
    coalesce(pg_column_size(r.input), 0) + coalesce(pg_column_size(r.result), 0) + coalesce(pg_column_size(r.error), 0)
      + pg_column_size(r.metadata) as run_bytes,
    steps.number as steps,
    steps.bytes as step_bytes,
    events.number as events,
    events.bytes as event_bytes,
    states.number as state_versions,
    states.bytes as state_bytes,
    r.compacted_at
  from tidebase.runs r
  cross join lateral (
    select count(*) as number, coalesce(sum(coalesce(pg_column_size(s.input), 0) + coalesce(pg_column_size(s.output), 0)
      + coalesce(pg_column_size(s.error), 0)), 0) as bytes
    from tidebase.steps s where s.run_id = r.run_id) steps
  cross join lateral (
    select count(*) as number, coalesce(sum(pg_column_size(e.payload)), 0) as bytes
    from tidebase.events e where e.run_id = r.run_id) events
  cross join lateral (
    select count(*) as number, coalesce(sum(pg_column_size(v.content) + coalesce(pg_column_size(v.metadata), 0)), 0) as bytes
    from tidebase.state_versions v where v.run_id = r.run_id) states;
comment on view tidebase.run_sizes is
  'What each run stores: how many rows, and how many bytes its values take as they are stored (compressed), without the overhead of rows and indexes. Ask for one run_id, or wait for all to be added up.';

select tidebase_private.allow('function tidebase.purge_runs', 'operator');
select tidebase_private.allow('function tidebase.compact_run', 'operator');
select tidebase_private.allow('table tidebase.run_sizes', 'worker', 'approver', 'operator', 'reader');
