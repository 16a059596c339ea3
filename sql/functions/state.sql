-- State: versioned documents that belong to a run, in streams. Versions are 1..n; version k reads exactly as it was
-- written.

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
-- `value` is the new document (set, snapshot), the patch (patch; wanted.patch where it is one of members) or NULL (save,
-- restore; a snapshot of the run's own state). A caller without the lease learns nothing of what there is: everything is looked up behind the fence.
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
    now_is := case when wanted.operation = 'patch' and wanted.patch is null then tidebase_private.merge_patch('{}', value) else value end;
  elsif wanted.patch is not null then
    change := tidebase_private.change_of_members(now_is, wanted.patch);
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
  'Makes a document the next version of a stream and returns the version''s number: 1, 2, 3 ... stream: 1 to 1024 bytes, "main" unless told. label: a name under which the version is found again. importance: transient (may be lost with the last moments of a crashed server: asynchronous commit), normal, checkpoint or milestone. created_by: the database role unless told; an empty text is nobody (NULL). expected_version: the version that the caller has read (0: none); when it is not the newest any more, TB011 and nothing is written. request_id: an id made up for this call; the call repeated with it returns the first one''s version. Errors: TB001, TB002, TB003, TB004, TB005, TB011.';

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

create or replace function tidebase.merge_state(
  run_id text, token bigint, members jsonb, stream text default 'main', label text default null, reason text default null,
  importance text default 'normal', metadata jsonb default null, created_by text default null,
  expected_version integer default null, request_id text default null)
returns integer
language plpgsql volatile security definer
set search_path = pg_catalog, tidebase, pg_temp
set enable_seqscan = off
as $$
declare
  wanted state_versions;
begin
  stream := coalesce(stream, 'main');
  importance := coalesce(importance, 'normal');
  perform tidebase_private.require_state_options(stream, label, importance, metadata, request_id);
  if jsonb_typeof(members) is distinct from 'object' then
    perform tidebase_private.raise_invalid('members', 'must be a JSON object');
  end if;
  wanted := tidebase_private.describe_version(run_id, stream, 'patch', importance, label, reason, metadata, created_by);
  wanted.patch := members;
  return tidebase_private.write_state(wanted, token, members, expected_version, request_id => request_id);
end
$$;
comment on function tidebase.merge_state(text, bigint, jsonb, text, text, text, text, jsonb, text, integer, text) is
  'Makes some members of the newest version of a stream what they are given as, null included, without looking into them (the operator || of jsonb, where patch_state does RFC 7396), and returns the number of the version that comes of it. State that is no object becomes one. members: a JSON object; it is kept with the version (state_patches). The rest is as for set_state. Errors: TB001, TB002, TB003, TB004, TB005, TB011.';

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

create or replace view tidebase.state_patches with (security_barrier = true) as
  select v.run_id, v.stream, v.version, v.patch
  from tidebase.state_versions v
  where v.patch is not null;
comment on view tidebase.state_patches is 'The members that merge_state was given, by the version that came of it.';

select tidebase_private.allow('function tidebase.set_state', 'worker');
select tidebase_private.allow('function tidebase.merge_state', 'worker');
select tidebase_private.allow('table tidebase.state_patches', 'worker', 'approver', 'operator', 'reader');
select tidebase_private.allow('function tidebase.patch_state', 'worker');
select tidebase_private.allow('function tidebase.save_state', 'worker');
select tidebase_private.allow('function tidebase.restore_state', 'worker');
select tidebase_private.allow('function tidebase.get_state', 'worker', 'approver', 'operator', 'reader');
select tidebase_private.allow('function tidebase.list_state_versions', 'worker', 'approver', 'operator', 'reader');
