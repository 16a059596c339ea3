-- Snapshots: what anything looked like (a file, a page, a table of one's own, the run itself), kept under a label. The
-- snapshots of one target are the versions of one stream, so the tenth of a large document costs what changed.

create or replace function tidebase_private.snapshot_stream(target_type text, target_id text)
returns text
language sql immutable
as $$
  select 'snapshot:' || jsonb_build_array(target_type, target_id)::text;
$$;
comment on function tidebase_private.snapshot_stream(text, text) is 'The stream that keeps the snapshots of a target: one a type and id, whatever characters they have.';

create or replace function tidebase.create_snapshot(
  run_id text, token bigint, label text, target_type text default 'run', target_id text default null, state jsonb default null,
  reason text default null, importance text default 'milestone', metadata jsonb default null, created_by text default null,
  request_id text default null)
returns integer
language plpgsql volatile security definer
set search_path = pg_catalog, tidebase, pg_temp
set enable_seqscan = off
as $$
declare
  id text := coalesce(target_id, 'self');
  snapshots text;
  version integer;
begin
  target_type := coalesce(target_type, 'run');
  importance := coalesce(importance, 'milestone');
  snapshots := tidebase_private.snapshot_stream(target_type, id);
  perform tidebase_private.require_name(label, 'label', 1024);
  perform tidebase_private.require_name(target_type, 'target_type', 255);
  perform tidebase_private.require_name(id, 'target_id', 1024);
  perform tidebase_private.require_state_options('any', label, importance, metadata, request_id);
  version := tidebase_private.write_state(
    tidebase_private.describe_version(run_id, snapshots, 'snapshot', importance, label, reason, metadata, created_by),
    token, state, request_id => request_id);
  if version = 1 then
    update state_streams t set target_type = create_snapshot.target_type, target_id = id
    where t.run_id = create_snapshot.run_id and t.stream = snapshots;
  end if;
  return version;
end
$$;
comment on function tidebase.create_snapshot(text, bigint, text, text, text, jsonb, text, text, jsonb, text, text) is
  'Keeps what a target looks like under a label and returns the number of the snapshot, 1, 2, 3 ... for each target. target_type and target_id: what it is of, the run itself ("run", "self") unless told. state: the document; left out, the run''s state (stream main) as it is now. importance, metadata, created_by, request_id: as for set_state. Errors: TB001, TB002, TB003, TB004, TB005, TB012 (no state is given, and the run has none).';

create or replace function tidebase.list_snapshots(
  run_id text, target_type text default null, target_id text default null, label text default null, max integer default 100,
  with_value boolean default true)
returns setof tidebase.snapshot
language plpgsql stable security definer rows 100
set search_path = pg_catalog, tidebase, pg_temp
set enable_seqscan = off
set plan_cache_mode = force_custom_plan
as $$
begin
  max := coalesce(max, 100);
  with_value := coalesce(with_value, true);
  if max not between 1 and 10000 then
    perform tidebase_private.raise_invalid('max', 'must be a number from 1 to 10000');
  end if;
  return query
    select s.type, s.id, (s.full).stream, (s.full).version, (s.full).label, (s.full).value, (s.full).reason,
      (s.full).created_by, (s.full).metadata, (s.full).seq, (s.full).created_at
    from (
      select coalesce(t.target_type, 'state') as type, coalesce(t.target_id, t.stream) as id,
        tidebase_private.full_state(v, with_value) as full
      from state_streams t
      join state_versions v on v.run_id = t.run_id and v.stream = t.stream and v.label is not null
      where t.run_id = list_snapshots.run_id
        and (list_snapshots.target_type is null or coalesce(t.target_type, 'state') = list_snapshots.target_type)
        and (list_snapshots.target_id is null or coalesce(t.target_id, t.stream) = list_snapshots.target_id)
        and (list_snapshots.label is null or v.label = list_snapshots.label)
      order by v.seq desc
      limit list_snapshots.max
      offset 0) s;
  if not found and not exists (select from run_heads h where h.run_id = list_snapshots.run_id) then
    perform tidebase_private.raise_run_not_found(run_id);
  end if;
end
$$;
comment on function tidebase.list_snapshots(text, text, text, text, integer, boolean) is
  'The labeled versions of a run, newest first, at most max (1 to 10000): snapshots, and states that save_state labeled (target_type state, target_id the stream). NULL means any. with_value: false leaves the documents out. Errors: TB001, TB002.';

select tidebase_private.allow('function tidebase.create_snapshot', 'worker');
select tidebase_private.allow('function tidebase.list_snapshots', 'worker', 'approver', 'operator', 'reader');
