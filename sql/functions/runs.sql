-- Lists and counts of runs, by every filter off an index: a page costs the same among any number of runs.

-- An id for people who type: the beginning of it is enough, where only one run's begins so. Compared byte by byte, for no
-- collation of a language keeps what begins alike together; U+10FFFF is the last character there is.
create or replace function tidebase.find_run(prefix text)
returns text
language plpgsql stable security definer
set search_path = pg_catalog, tidebase, pg_temp
set enable_seqscan = off
as $$
declare
  most constant integer := 10;
  candidates text[];
begin
  perform tidebase_private.require_name(prefix, 'prefix', 255);
  if exists (select from runs r where r.run_id = prefix) then
    return prefix;
  end if;
  candidates := array(
    select r.run_id from runs r
    where r.run_id ~>=~ prefix and r.run_id ~<~ (prefix || chr(1114111))
    order by r.run_id using ~<~
    limit most + 1);
  if cardinality(candidates) = 0 then
    perform tidebase_private.raise_run_not_found(prefix);
  elsif cardinality(candidates) > 1 then
    perform tidebase_private.raise('TB002', format('%s runs begin with %L: %s%s',
        case when cardinality(candidates) > most then format('more than %s', most) else cardinality(candidates)::text end,
        prefix, array_to_string(candidates[:most], ', '), case when cardinality(candidates) > most then ' ...' else '' end),
      jsonb_build_object('parameter', 'prefix', 'prefix', prefix, 'run_ids', candidates[:most]), 'Give more of the id.');
  end if;
  return candidates[1];
end
$$;
comment on function tidebase.find_run(text) is
  'The id of the run that has this id, or of the only one whose id begins so. It costs the same among any number of runs. Errors: TB001, TB002 (several begin so; DETAIL has the first ten as run_ids).';

create or replace function tidebase_private.require_status(status text)
returns void
language plpgsql immutable
as $$
declare
  known constant text[] := array['pending', 'queued', 'running', 'waiting', 'review', 'completed', 'failed', 'cancelled'];
begin
  if status <> all (known) then
    perform tidebase_private.raise_invalid('status', format('must be one of: %s', array_to_string(known, ', ')));
  end if;
end
$$;
comment on function tidebase_private.require_status(text) is 'Raises TB002 unless it is NULL or a status that a run may have.';

-- From when on a list goes on behind a run: also when that is gone, if its place is known. A generated id has the time in it.
create or replace function tidebase_private.place_of(run_id text)
returns timestamptz
language plpgsql stable
as $$
declare
  made timestamptz := (select r.created_at from tidebase.runs r where r.run_id = place_of.run_id);
begin
  if made is null and run_id ~ '^run_[0-9a-f]{8}-[0-9a-f]{4}-7' then
    made := to_timestamp((('x' || translate(substring(run_id from 5 for 13), '-', ''))::bit(48)::bigint + 1) / 1000.0);
  elsif made is null then
    perform tidebase_private.raise_run_not_found(run_id);
  end if;
  return made;
end
$$;
comment on function tidebase_private.place_of(text) is 'When a run was made, about so if it is gone. Errors: TB001.';

-- One page of ids for each set of filters that an index serves: the plan is made for each call's values.
create or replace function tidebase_private.page_of_runs(
  workflow text, status text, roots boolean, newest timestamptz, behind text, oldest timestamptz, max integer)
returns setof text
language plpgsql stable
set plan_cache_mode = force_custom_plan
set enable_seqscan = off
as $$
begin
  if status is not null and workflow is not null then
    return query
      select h.run_id from tidebase.run_heads h
      where h.workflow_key = hashtextextended(page_of_runs.workflow, 0) and lower(h.status) = page_of_runs.status
        and (h.created_at, h.run_id) < (newest, behind) and h.created_at > oldest
      order by h.created_at desc, h.run_id desc limit page_of_runs.max;
  elsif status is not null then
    return query
      select h.run_id from tidebase.run_heads h
      where lower(h.status) = page_of_runs.status and (h.created_at, h.run_id) < (newest, behind) and h.created_at > oldest
      order by h.created_at desc, h.run_id desc limit page_of_runs.max;
  elsif workflow is not null then
    return query
      select r.run_id from tidebase.runs r
      where r.workflow = page_of_runs.workflow and (r.created_at, r.run_id) < (newest, behind) and r.created_at > oldest
      order by r.created_at desc, r.run_id desc limit page_of_runs.max;
  elsif roots then
    return query
      select r.run_id from tidebase.runs r
      where r.parent_run_id is null and (r.created_at, r.run_id) < (newest, behind) and r.created_at > oldest
      order by r.created_at desc, r.run_id desc limit page_of_runs.max;
  else
    return query
      select r.run_id from tidebase.runs r
      where (r.created_at, r.run_id) < (newest, behind) and r.created_at > oldest
      order by r.created_at desc, r.run_id desc limit page_of_runs.max;
  end if;
end
$$;
comment on function tidebase_private.page_of_runs(text, text, boolean, timestamptz, text, timestamptz, integer) is
  'The ids of the next runs, newest first, that were made before newest (or at that moment, with a lower id than behind) and after oldest.';

create or replace function tidebase.list_runs(
  workflow text default null, status text default null, before text default null, max integer default 100,
  created_after timestamptz default null, created_before timestamptz default null, before_created_at timestamptz default null,
  roots boolean default false)
returns setof tidebase.run_overview
language plpgsql stable security definer rows 100
set search_path = pg_catalog, tidebase, pg_temp
set enable_seqscan = off
as $$
declare
  page text[];
  newest timestamptz := timestamptz 'infinity';
begin
  max := coalesce(max, 100);
  if max < 1 or max > 1000 then
    perform tidebase_private.raise_invalid('max', 'must be a number from 1 to 1000');
  elsif roots and (workflow is not null or status is not null) then
    perform tidebase_private.raise_invalid('roots', 'must not be combined with a workflow or a status');
  end if;
  perform tidebase_private.require_status(status);
  if before is not null then
    newest := coalesce(before_created_at, tidebase_private.place_of(before));
  end if;
  if created_before <= newest then
    newest := created_before;
    before := null;
  end if;
  page := array(select tidebase_private.page_of_runs(workflow, status, coalesce(roots, false), newest, coalesce(before, ''),
    coalesce(created_after, '-infinity'), max));
  return query
    select o.* from run_overview o
    where o.run_id = any (page)
      and (list_runs.workflow is null or o.workflow = list_runs.workflow)  -- a key is a hash, if one of 64 bits
    order by o.created_at desc, o.run_id desc;
end
$$;
comment on function tidebase.list_runs(text, text, text, integer, timestamptz, timestamptz, timestamptz, boolean) is
  'Runs, newest first, at most max (1 to 1000): of a workflow, in a status, created after and before these times; roots: only those that no other run has made as its child (not together with a workflow or a status). NULL means any. To page on give the last row''s run_id as before, and its created_at as before_created_at, so that the next page is found also when that run is purged meanwhile. A page costs the same among any number of runs. Errors: TB001, TB002.';

-- Counted off an index up to two thousand; beyond that what the last ANALYZE has found.
create or replace function tidebase.count_runs()
returns setof tidebase.run_count
language plpgsql stable security definer rows 8
set search_path = pg_catalog, tidebase, pg_temp
set enable_seqscan = off
as $$
declare
  counted run_count;
  total float8 := (select greatest(c.reltuples, 0)::float8 from pg_class c where c.oid = 'tidebase.run_heads'::regclass);
begin
  foreach counted.status in array
    array['pending', 'queued', 'running', 'waiting', 'review', 'completed', 'failed', 'cancelled']
  loop
    counted.runs := (
      select count(*) from (
        select from run_heads h where lower(h.status) = counted.status limit 2001) few);
    counted.estimated := counted.runs > 2000;
    if counted.estimated then
      counted.runs := greatest(counted.runs, round(total * coalesce((
        select m.share
        from pg_stats s, unnest(s.most_common_vals::text::text[], s.most_common_freqs) m (status, share)
        where s.schemaname = 'tidebase' and s.tablename = 'run_heads' and s.attname = 'status'
          and m.status = counted.status), 0))::bigint);
    end if;
    return next counted;
  end loop;
end
$$;
comment on function tidebase.count_runs() is
  'How many runs there are in each status: exact up to 2,000 (estimated is false), beyond that by the statistics of the last ANALYZE.';

select tidebase_private.allow('function tidebase.find_run', 'worker', 'approver', 'operator', 'reader');
select tidebase_private.allow('function tidebase.list_runs', 'worker', 'approver', 'operator', 'reader');
select tidebase_private.allow('function tidebase.count_runs', 'worker', 'approver', 'operator', 'reader');
