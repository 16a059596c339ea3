-- State: versioned documents that belong to a run, in streams. Versions are 1..n; version k reads exactly as it was
-- written.
--
-- A version is stored as what changed, so a history costs what was changed, not the size of the document times the
-- number of versions. As in Subversion ("skip-deltas", notes/skip-deltas in its sources), the i-th version after a
-- version that is stored whole is a change of the one whose number has the lowest bit of i cleared: any version is put
-- together from at most log2(i) rows. The next version is stored whole when the changes have grown as large as that.

-- The form of a change:
--
--   {"key": change, ...}   in an object, these members change; {} is no change, of whatever value
--   [value]                the value becomes this one
--   []                     the member goes
--   [keep, tail]           of an array or a string, this many elements or characters stay, and the tail follows:
--                          a conversation or a text that grows costs what was added to it

-- Whether two values are the same to the last zero: 1.0 and 1 are equal, but do not read back alike.
create or replace function tidebase_private.is_same(one jsonb, other jsonb)
returns boolean
language sql immutable
as $$
  select row(one)::record operator(pg_catalog.*=) row(other)::record;
$$;
comment on function tidebase_private.is_same(jsonb, jsonb) is 'Whether two values have the same image, the scale of numbers included.';

create or replace function tidebase_private.apply_change(value jsonb, change jsonb)
returns jsonb
language plpgsql immutable
as $$
declare
  keep integer;
  removed text[];
  changed jsonb;
begin
  if change = '{}' then
    return value;
  elsif jsonb_typeof(change) = 'object' then
    select array_agg(c.key) filter (where c.value = '[]'),
      jsonb_object_agg(c.key, tidebase_private.apply_change(apply_change.value -> c.key, c.value)) filter (where c.value <> '[]')
    into removed, changed
    from jsonb_each(change) c;
    return (value - coalesce(removed, array[]::text[])) || coalesce(changed, '{}');
  elsif jsonb_array_length(change) = 1 then
    return change -> 0;
  end if;
  keep := (change -> 0)::integer;
  if jsonb_typeof(value) = 'string' then
    return to_jsonb(left(value #>> array[]::text[], keep) || (change ->> 1));
  elsif keep = jsonb_array_length(value) then
    return value || (change -> 1);
  end if;
  return (
    select coalesce(jsonb_agg(e.value order by e.position), '[]')
    from jsonb_array_elements(apply_change.value) with ordinality as e (value, position)
    where e.position <= keep) || (change -> 1);
end
$$;
comment on function tidebase_private.apply_change(jsonb, jsonb) is 'The value after a change.';

-- Two changes, one after the other, as one: the same whatever they are applied to, which RFC 7396 patches do not allow.
create or replace function tidebase_private.compose_changes(first jsonb, second jsonb)
returns jsonb
language plpgsql immutable
as $$
declare
  kept integer;
  keep integer;
begin
  if first is null or first = '{}' then
    return second;
  elsif second is null or second = '{}' then
    return first;
  elsif jsonb_typeof(second) = 'object' and jsonb_typeof(first) = 'object' then
    return first || (
      select coalesce(jsonb_object_agg(c.key, tidebase_private.compose_changes(first -> c.key, c.value)), '{}')
      from jsonb_each(second) c);
  elsif jsonb_typeof(second) = 'array' and jsonb_array_length(second) < 2 then
    return second;
  elsif jsonb_array_length(first) = 1 then
    return jsonb_build_array(tidebase_private.apply_change(first -> 0, second));
  end if;
  kept := (first -> 0)::integer;
  keep := (second -> 0)::integer;
  if keep <= kept then
    return second;
  end if;
  return jsonb_build_array(kept,
    tidebase_private.apply_change(first -> 1, jsonb_build_array(keep - kept, second -> 1)));
end
$$;
comment on function tidebase_private.compose_changes(jsonb, jsonb) is 'One change that does what two do, one after the other; NULL is no change.';

-- What made one value the other. A document may be nested deeper than functions can call themselves: below 50 levels
-- a difference is the whole value.
create or replace function tidebase_private.find_change(old jsonb, new jsonb, depth integer default 0)
returns jsonb
language plpgsql immutable
as $$
declare
  keep integer;
begin
  if tidebase_private.is_same(old, new) then
    return null;
  elsif depth < 50 and jsonb_typeof(old) = 'object' and jsonb_typeof(new) = 'object' then
    return (
      select jsonb_object_agg(key, case
        when n.value is null then '[]'
        when o.value is null then jsonb_build_array(n.value)
        else tidebase_private.find_change(o.value, n.value, depth + 1)
      end)
      from jsonb_each(old) o
      full join jsonb_each(new) n using (key)
      where o.value is null or n.value is null or not tidebase_private.is_same(o.value, n.value));
  elsif jsonb_typeof(old) = 'array' and jsonb_typeof(new) = 'array' then
    select (pair.position - 1)::integer into keep
    from rows from (jsonb_array_elements(old), jsonb_array_elements(new)) with ordinality as pair (old, new, position)
    where not tidebase_private.is_same(pair.old, pair.new)
    order by pair.position
    limit 1;
    if keep > 0 then
      return jsonb_build_array(keep, (
        select coalesce(jsonb_agg(e.value order by e.position), '[]')
        from jsonb_array_elements(new) with ordinality as e (value, position)
        where e.position > keep));
    end if;
  elsif jsonb_typeof(old) = 'string' and jsonb_typeof(new) = 'string' and old <> '""'
    and starts_with(new #>> array[]::text[], old #>> array[]::text[])
  then
    keep := length(old #>> array[]::text[]);
    return jsonb_build_array(keep, substr(new #>> array[]::text[], keep + 1));
  end if;
  return jsonb_build_array(new);
end
$$;
comment on function tidebase_private.find_change(jsonb, jsonb, integer) is 'The change that makes the first value the second; NULL when they are the same.';

-- What a merge patch (RFC 7396) changes in a value, looking only at what the patch names.
create or replace function tidebase_private.change_of_patch(value jsonb, patch jsonb)
returns jsonb
language plpgsql immutable
as $$
begin
  if jsonb_typeof(patch) <> 'object' then
    return tidebase_private.find_change(value, patch);
  elsif value is null or jsonb_typeof(value) <> 'object' then
    return jsonb_build_array(tidebase_private.merge_patch('{}', patch));
  end if;
  return (
    with changes as materialized (  -- or each would be worked out twice a level: for the condition and for the sum
      select p.key, case
          when p.value = 'null' then case when change_of_patch.value ? p.key then '[]'::jsonb end
          when change_of_patch.value ? p.key then tidebase_private.change_of_patch(change_of_patch.value -> p.key, p.value)
          else jsonb_build_array(tidebase_private.merge_patch('{}', p.value))
        end as change
      from jsonb_each(patch) p)
    select jsonb_object_agg(c.key, c.change) from changes c where c.change is not null);
end
$$;
comment on function tidebase_private.change_of_patch(jsonb, jsonb) is
  'The change that an RFC 7396 merge patch makes in a value; NULL when it makes none.';

create or replace function tidebase_private.merge_patch(target jsonb, patch jsonb)
returns jsonb
language plpgsql immutable
as $$
declare
  change jsonb := tidebase_private.change_of_patch(target, patch);
begin
  return case when change is null then target else tidebase_private.apply_change(target, change) end;
end
$$;
comment on function tidebase_private.merge_patch(jsonb, jsonb) is
  'MergePatch(Target, Patch) of RFC 7396, section 2. A patch nested deeper than the server''s stack raises 54001.';

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

create or replace function tidebase_private.raise_no_state(run_id text, stream text, which text)
returns void
language plpgsql volatile
as $$
begin
  if not exists (select from tidebase.run_heads h where h.run_id = raise_no_state.run_id) then
    perform tidebase_private.raise_run_not_found(run_id);
  end if;
  perform tidebase_private.raise('TB012', format('run %L has no state in stream %L%s', run_id, stream, which),
    jsonb_build_object('run_id', run_id, 'stream', stream), 'State is made by set_state or patch_state; see list_state_versions.');
end
$$;
comment on function tidebase_private.raise_no_state(text, text, text) is 'Raises TB001 or TB012; which: e.g. " at version 7".';

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
  wanted.created_by := coalesce(wanted.created_by, tidebase_private.caller());
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

create or replace function tidebase_private.require_state_options(stream text, label text, importance text, metadata jsonb, request_id text)
returns void
language plpgsql volatile
as $$
begin
  perform tidebase_private.require_name(stream, 'stream', 1024);
  if label is not null then
    perform tidebase_private.require_name(label, 'label', 1024);
  end if;
  if request_id is not null then
    perform tidebase_private.require_name(request_id, 'request_id', 255);
  end if;
  if starts_with(stream, 'snapshot:') then
    perform tidebase_private.raise_invalid('stream', 'must not begin with snapshot:, which marks the snapshots of targets');
  elsif importance not in ('transient', 'normal', 'checkpoint', 'milestone') then
    perform tidebase_private.raise_invalid('importance', 'must be transient, normal, checkpoint or milestone');
  elsif jsonb_typeof(metadata) <> 'object' then
    perform tidebase_private.raise_invalid('metadata', 'must be a JSON object');
  end if;
end
$$;
comment on function tidebase_private.require_state_options(text, text, text, jsonb, text) is 'Raises TB002 when what is said about a version makes no sense.';

-- What every write of state does: fences, checks the expected version, finds the change, stores it, tells of it.
-- `value` is the new document (set, snapshot), the patch (patch) or NULL (save, restore; a snapshot of the run's own
-- state). A caller without the lease learns nothing of what there is: everything is looked up behind the fence.
create or replace function tidebase_private.write_state(
  wanted tidebase.state_versions, token bigint, value jsonb, expected_version integer default null,
  request_id text default null, source_version integer default null, source_label text default null)
returns integer
language plpgsql volatile
as $$
declare
  head tidebase.run_heads;
  last tidebase.state_versions;
  now_is jsonb;
  since_base jsonb;
  change jsonb;
  earlier tidebase.events;
  restored integer;
begin
  perform tidebase_private.require_payload(value, 'value');
  perform tidebase_private.require_note(wanted.metadata, 'metadata');
  perform tidebase_private.require_text(wanted.reason, 'reason');
  perform tidebase_private.require_text(wanted.created_by, 'created_by');
  if wanted.importance = 'transient' then
    perform tidebase_private.commit_lazily();
  else
    perform tidebase_private.commit_durably();
  end if;
  head := tidebase_private.fence(wanted.run_id, token, 1);
  if request_id is not null then
    earlier := tidebase_private.find_request(wanted.run_id, request_id,
      array['state.updated', 'state.saved', 'state.restored', 'snapshot.created']);
    if earlier.seq is not null then
      perform tidebase_private.give_back(head, 1);
      return (earlier.payload ->> 'version')::integer;  -- the same call again
    end if;
  end if;

  last := tidebase_private.last_version(wanted.run_id, wanted.stream);
  if expected_version <> coalesce(last.version, 0) then
    perform tidebase_private.raise('TB011',
      format('stream %L of run %L is at version %s, not %s', wanted.stream, wanted.run_id, coalesce(last.version, 0), expected_version),
      jsonb_build_object('run_id', wanted.run_id, 'stream', wanted.stream, 'version', coalesce(last.version, 0),
        'expected_version', expected_version), 'Read the state again, and decide anew.');
  end if;
  if last.version is not null then
    select r.value, r.since_base into now_is, since_base
    from tidebase_private.read_version(wanted.run_id, wanted.stream, last.version,
      tidebase_private.base_of(last.version + 1, last.keyframe)) r;
  elsif wanted.operation in ('save', 'restore') then
    perform tidebase_private.raise_no_state(wanted.run_id, wanted.stream, '');
  end if;
  if wanted.operation = 'restore' then
    if num_nonnulls(source_version, source_label) <> 1 then
      perform tidebase_private.raise_invalid('version and label', 'must say which version: exactly one of them');
    end if;
    restored := tidebase_private.find_version(wanted.run_id, wanted.stream, source_version, label => source_label);
    value := (select r.value from tidebase_private.read_version(wanted.run_id, wanted.stream, restored) r);
  elsif value is null and wanted.operation = 'snapshot' then
    value := (select r.value from tidebase_private.read_version(wanted.run_id, 'main',
      tidebase_private.find_version(wanted.run_id, 'main')) r);
  end if;
  if last.version is null then
    insert into tidebase.state_streams (run_id, stream) values (wanted.run_id, wanted.stream) on conflict do nothing;
    now_is := case wanted.operation when 'patch' then tidebase_private.merge_patch('{}', value) else value end;
  elsif wanted.operation = 'patch' then
    change := tidebase_private.change_of_patch(now_is, value);
  elsif wanted.operation <> 'save' then
    change := tidebase_private.find_change(now_is, value);
  end if;

  wanted.seq := head.last_seq;
  perform tidebase_private.store_version(wanted, last, now_is, change, since_base);
  perform tidebase_private.emit(head,
    case wanted.operation when 'save' then 'state.saved' when 'restore' then 'state.restored' when 'snapshot' then 'snapshot.created'
      else 'state.updated' end,
    jsonb_strip_nulls(jsonb_build_object('stream', wanted.stream, 'version', coalesce(last.version, 0) + 1,
      'operation', wanted.operation, 'importance', wanted.importance, 'label', wanted.label, 'reason', wanted.reason,
      'restored', restored)), request_id);
  return coalesce(last.version, 0) + 1;
end
$$;
comment on function tidebase_private.write_state(tidebase.state_versions, bigint, jsonb, integer, text, integer, text) is
  'Writes the next version of a stream and returns its number. Errors: TB001, TB003, TB004, TB005, TB011, TB012.';

create or replace function tidebase_private.describe_version(
  run_id text, stream text, operation text, importance text, label text, reason text, metadata jsonb, created_by text)
returns tidebase.state_versions
language plpgsql immutable
as $$
declare
  wanted tidebase.state_versions;
begin
  wanted.run_id := run_id;
  wanted.stream := stream;
  wanted.operation := operation;
  wanted.importance := importance;
  wanted.label := label;
  wanted.reason := reason;
  wanted.metadata := metadata;
  wanted.created_by := created_by;
  return wanted;
end
$$;
comment on function tidebase_private.describe_version(text, text, text, text, text, text, jsonb, text) is
  'A version that is to be written, as far as its caller describes it.';

create or replace function tidebase.set_state(
  run_id text, token bigint, value jsonb, stream text default 'main', label text default null, reason text default null,
  importance text default 'normal', metadata jsonb default null, created_by text default null,
  expected_version integer default null, request_id text default null)
returns integer
language plpgsql volatile security definer
set search_path = pg_catalog, tidebase, pg_temp
set enable_seqscan = off
as $$
begin
  stream := coalesce(stream, 'main');
  importance := coalesce(importance, 'normal');
  perform tidebase_private.require_state_options(stream, label, importance, metadata, request_id);
  if value is null then
    perform tidebase_private.raise_invalid('value', 'must not be NULL (the JSON null is a value)');
  end if;
  return tidebase_private.write_state(
    tidebase_private.describe_version(run_id, stream, 'set', importance, label, reason, metadata, created_by),
    token, value, expected_version, request_id => request_id);
end
$$;
comment on function tidebase.set_state(text, bigint, jsonb, text, text, text, text, jsonb, text, integer, text) is
  'Makes a document the next version of a stream and returns the version''s number: 1, 2, 3 ... stream: 1 to 1024 bytes, "main" unless told. label: a name under which the version is found again. importance: transient (may be lost with the last moments of a crashed server: asynchronous commit), normal, checkpoint or milestone. created_by: the database role unless told. expected_version: the version that the caller has read (0: none); when it is not the newest any more, TB011 and nothing is written. request_id: an id made up for this call; the call repeated with it returns the first one''s version. Errors: TB001, TB002, TB003, TB004, TB005, TB011.';

create or replace function tidebase.patch_state(
  run_id text, token bigint, patch jsonb, stream text default 'main', label text default null, reason text default null,
  importance text default 'normal', metadata jsonb default null, created_by text default null,
  expected_version integer default null, request_id text default null)
returns integer
language plpgsql volatile security definer
set search_path = pg_catalog, tidebase, pg_temp
set enable_seqscan = off
as $$
begin
  stream := coalesce(stream, 'main');
  importance := coalesce(importance, 'normal');
  perform tidebase_private.require_state_options(stream, label, importance, metadata, request_id);
  if patch is null then
    perform tidebase_private.raise_invalid('patch', 'must not be NULL (the JSON null is a patch that makes the state null)');
  end if;
  return tidebase_private.write_state(
    tidebase_private.describe_version(run_id, stream, 'patch', importance, label, reason, metadata, created_by),
    token, patch, expected_version, request_id => request_id);
end
$$;
comment on function tidebase.patch_state(text, bigint, jsonb, text, text, text, text, jsonb, text, integer, text) is
  'Applies a merge patch (RFC 7396: members are set, null removes one, arrays are replaced) to the newest version of a stream, or to nothing, and returns the number of the version that comes of it. Only what changed is stored, for an array or a string that grew only what was added. The rest is as for set_state. Errors: TB001, TB002, TB003, TB004, TB005, TB011.';

create or replace function tidebase.save_state(
  run_id text, token bigint, label text, stream text default 'main', reason text default null, importance text default 'checkpoint',
  metadata jsonb default null, created_by text default null, expected_version integer default null, request_id text default null)
returns integer
language plpgsql volatile security definer
set search_path = pg_catalog, tidebase, pg_temp
set enable_seqscan = off
as $$
begin
  stream := coalesce(stream, 'main');
  importance := coalesce(importance, 'checkpoint');
  perform tidebase_private.require_name(label, 'label', 1024);
  perform tidebase_private.require_state_options(stream, label, importance, metadata, request_id);
  return tidebase_private.write_state(
    tidebase_private.describe_version(run_id, stream, 'save', importance, label, reason, metadata, created_by),
    token, null, expected_version, request_id => request_id);
end
$$;
comment on function tidebase.save_state(text, bigint, text, text, text, text, jsonb, text, integer, text) is
  'Gives the state of a stream, as it is now, a label: a new version with the same document. Returns its number. Errors: TB001, TB002, TB003, TB004, TB005, TB011, TB012 (the stream has no state).';

create or replace function tidebase.restore_state(
  run_id text, token bigint, version integer default null, label text default null, stream text default 'main', reason text default null,
  importance text default 'checkpoint', metadata jsonb default null, created_by text default null,
  expected_version integer default null, request_id text default null)
returns integer
language plpgsql volatile security definer
set search_path = pg_catalog, tidebase, pg_temp
set enable_seqscan = off
as $$
begin
  stream := coalesce(stream, 'main');
  importance := coalesce(importance, 'checkpoint');
  perform tidebase_private.require_state_options(stream, label, importance, metadata, request_id);
  return tidebase_private.write_state(
    tidebase_private.describe_version(run_id, stream, 'restore', importance, null, reason, metadata, created_by),
    token, null, expected_version, request_id, source_version => version, source_label => label);
end
$$;
comment on function tidebase.restore_state(text, bigint, integer, text, text, text, text, jsonb, text, integer, text) is
  'Makes the document of an earlier version, named by its number or by its label (the newest that has it), the next version, and returns its number: history stays. Errors: TB001, TB002, TB003, TB004, TB005, TB011, TB012.';

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

create or replace function tidebase.get_state(
  run_id text, stream text default 'main', version integer default null, at timestamptz default null, seq bigint default null,
  label text default null)
returns tidebase.state
language plpgsql stable security definer
set search_path = pg_catalog, tidebase, pg_temp
set enable_seqscan = off
as $$
declare
  stored state_versions;
  chosen integer;
begin
  stream := coalesce(stream, 'main');
  if num_nonnulls(version, at, seq, label) > 1 then
    perform tidebase_private.raise_invalid('version, at, seq and label', 'must not be combined: at most one of them says which version');
  end if;
  chosen := tidebase_private.find_version(run_id, stream, version, at, seq, label);
  select v.* into strict stored from state_versions v
  where v.run_id = get_state.run_id and v.stream = get_state.stream and v.version = chosen;
  return tidebase_private.full_state(stored);
end
$$;
comment on function tidebase.get_state(text, text, integer, timestamptz, bigint, text) is
  'The state of a stream: now, or at a version, at a time, at an event (as it was right after the event with that seq), or the newest version with a label. Errors: TB001, TB002, TB012 (no such stream or version).';

create or replace function tidebase.list_state_versions(
  run_id text, stream text default null, labeled boolean default false, before integer default null, max integer default 100,
  with_value boolean default false)
returns setof tidebase.state
language plpgsql stable security definer rows 100
set search_path = pg_catalog, tidebase, pg_temp
set enable_seqscan = off
set plan_cache_mode = force_custom_plan
as $$
begin
  labeled := coalesce(labeled, false);
  max := coalesce(max, 100);
  with_value := coalesce(with_value, false);
  if max not between 1 and 10000 then
    perform tidebase_private.raise_invalid('max', 'must be a number from 1 to 10000');
  elsif before is not null and stream is null then
    perform tidebase_private.raise_invalid('before', 'needs a stream');
  end if;
  return query
    select (v.full).* from state_streams t, lateral (
      select tidebase_private.full_state(n, with_value) as full
      from state_versions n
      where n.run_id = t.run_id and n.stream = t.stream and (not labeled or n.label is not null)
        and (list_state_versions.before is null or n.version < list_state_versions.before)
      order by n.version desc
      limit list_state_versions.max) v
    where t.run_id = list_state_versions.run_id
      and (list_state_versions.stream is null or t.stream = list_state_versions.stream)
    order by (v.full).seq desc
    limit list_state_versions.max;
  if not found and not exists (select from run_heads h where h.run_id = list_state_versions.run_id) then
    perform tidebase_private.raise_run_not_found(run_id);
  end if;
end
$$;
comment on function tidebase.list_state_versions(text, text, boolean, integer, integer, boolean) is
  'The versions of a run''s streams, or of one, newest first, at most max (1 to 10000); page on with before, the last version seen. labeled: only those with a label. The documents come along only with with_value: value is NULL otherwise. Errors: TB001, TB002.';

select tidebase_private.allow('function tidebase.set_state', 'worker');
select tidebase_private.allow('function tidebase.patch_state', 'worker');
select tidebase_private.allow('function tidebase.save_state', 'worker');
select tidebase_private.allow('function tidebase.restore_state', 'worker');
select tidebase_private.allow('function tidebase.get_state', 'worker', 'approver', 'operator', 'reader');
select tidebase_private.allow('function tidebase.list_state_versions', 'worker', 'approver', 'operator', 'reader');
