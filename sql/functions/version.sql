-- Versions: how the documents of a stream are stored and read, as changes of earlier ones.
--
-- A version is stored as what changed, so a history costs what was changed, not the size of the document times the
-- number of versions. As in Subversion ("skip-deltas", notes/skip-deltas in its sources), the i-th version after a
-- version that is stored whole is a change of the one whose number has the lowest bit of i cleared: any version is put
-- together from at most log2(i) rows. The next version is stored whole when the changes have grown as large as that.

-- Puts a version together. Also returns what changed since `base`, which the version after next is stored as.
create or replace function tidebase_private.read_version(
  run_id text, stream text, version integer, base integer default null, out value jsonb, out since_base jsonb)
returns record
language plpgsql stable
as $$
declare
  stored tidebase.state_versions;
  change jsonb;
begin
  loop
    select v.* into strict stored from tidebase.state_versions v
    where v.run_id = read_version.run_id and v.stream = read_version.stream and v.version = coalesce(stored.base, read_version.version);
    if stored.version = base then
      since_base := change;
    end if;
    exit when stored.base is null;
    change := tidebase_private.compose_changes(stored.content, change);
  end loop;
  value := case when change is null then stored.content else tidebase_private.apply_change(stored.content, change) end;
end
$$;
comment on function tidebase_private.read_version(text, text, integer, integer) is
  'The document at a version, and what changed in it since the version `base`. Reads as many rows as the distance to the keyframe has one-bits.';

create or replace function tidebase_private.last_version(run_id text, stream text)
returns tidebase.state_versions
language sql stable
as $$
  select v.* from tidebase.state_versions v
  where v.run_id = last_version.run_id and v.stream = last_version.stream
  order by v.version desc limit 1;
$$;
comment on function tidebase_private.last_version(text, text) is 'The newest version of a stream; a row of NULLs when it has none.';

-- Stores a version behind the newest one. `change` is what it changes there; NULL for the first one, and for one that
-- changes nothing.
create or replace function tidebase_private.store_version(
  wanted tidebase.state_versions, last tidebase.state_versions, value jsonb, change jsonb, since_base jsonb)
returns void
language plpgsql volatile
as $$
begin
  wanted.version := coalesce(last.version, 0) + 1;
  if last.version is not null then
    wanted.keyframe := last.keyframe;
    wanted.base := tidebase_private.base_of(wanted.version, last.keyframe);
    wanted.content := coalesce(tidebase_private.compose_changes(since_base, change), '{}');
    wanted.group_bytes := last.group_bytes + pg_column_size(wanted.content);
  end if;
  if last.version is null or wanted.group_bytes > greatest(pg_column_size(value), 2048) then
    wanted.keyframe := wanted.version;
    wanted.base := null;
    wanted.content := case when change is null then value else tidebase_private.apply_change(value, change) end;
    wanted.group_bytes := 0;
    perform tidebase_private.require_payload(wanted.content, 'value');  -- many patches may have made it grow
  end if;
  wanted.created_at := clock_timestamp();
  wanted.created_by := nullif(coalesce(wanted.created_by, tidebase_private.caller()), '');
  insert into tidebase.state_versions select (wanted).*;
end
$$;
comment on function tidebase_private.store_version(tidebase.state_versions, tidebase.state_versions, jsonb, jsonb, jsonb) is
  'Stores a version as a change of an earlier one, or whole when that is due. value: the document before the change. The caller holds the head''s lock.';

create or replace function tidebase_private.base_of(version integer, keyframe integer)
returns integer
language sql immutable
as $$
  select keyframe + ((version - keyframe) & (version - keyframe - 1));
$$;
comment on function tidebase_private.base_of(integer, integer) is 'The version that this one is stored as a change of: the lowest bit of the distance to the keyframe is cleared.';

-- The number of the newest version that was there at a moment: seqs and times grow with the version, so the primary
-- key is searched by halves, and no other index is needed.
create or replace function tidebase_private.version_at(run_id text, stream text, at timestamptz, seq bigint)
returns integer
language plpgsql stable
as $$
declare
  low integer;
  high integer;
  middle integer;
begin
  select min(v.version) - 1, max(v.version) into low, high from tidebase.state_versions v
  where v.run_id = version_at.run_id and v.stream = version_at.stream;
  while low < high loop
    middle := (low + high + 1) / 2;
    if exists (
      select from tidebase.state_versions v
      where v.run_id = version_at.run_id and v.stream = version_at.stream and v.version = middle
        and (version_at.at is null or v.created_at <= version_at.at)
        and (version_at.seq is null or v.seq <= version_at.seq))
    then
      low := middle;
    else
      high := middle - 1;
    end if;
  end loop;
  return low;
end
$$;
comment on function tidebase_private.version_at(text, text, timestamptz, bigint) is
  'The newest version at a time, or at an event; one below the first when there was none.';

create or replace function tidebase_private.find_version(
  run_id text, stream text, version integer default null, at timestamptz default null, seq bigint default null, label text default null)
returns integer
language plpgsql stable
as $$
declare
  chosen integer := version;
begin
  if label is not null then
    chosen := (
      select v.version from tidebase.state_versions v
      where v.run_id = find_version.run_id and v.stream = find_version.stream and v.label = find_version.label
      order by v.version desc limit 1);
  elsif at is not null or seq is not null then
    chosen := tidebase_private.version_at(run_id, stream, at, seq);
  elsif version is null then
    chosen := (tidebase_private.last_version(run_id, stream)).version;
  end if;
  if not exists (
    select from tidebase.state_versions v
    where v.run_id = find_version.run_id and v.stream = find_version.stream and v.version = chosen)
  then
    perform tidebase_private.raise_no_state(run_id, stream, case
      when version is not null then format(' at version %s', version)
      when label is not null then format(' with label %L', label)
      when at is not null then format(' at %s', at)
      when seq is not null then format(' at event %s', seq)
      else ''
    end);
  end if;
  return chosen;
end
$$;
comment on function tidebase_private.find_version(text, text, integer, timestamptz, bigint, text) is
  'The version that is meant: by number, time, event, label, or the newest. Errors: TB001, TB012.';

create or replace function tidebase_private.full_state(stored tidebase.state_versions, with_value boolean default true)
returns tidebase.state
language sql stable
as $$
  select row(stored.stream, stored.version,
    case when with_value then (tidebase_private.read_version(stored.run_id, stored.stream, stored.version)).value end,
    stored.operation, stored.importance, stored.label, stored.reason, stored.created_by, coalesce(stored.metadata, '{}'),
    stored.seq, stored.created_at)::tidebase.state;
$$;
comment on function tidebase_private.full_state(tidebase.state_versions, boolean) is 'A version as its readers get it.';
