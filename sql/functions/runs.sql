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

-- The next candidates of a search, by the index that is the best for it; the rest of what is asked is looked at one by one.
create or replace function tidebase_private.page_of_candidates(
  workflow text, status text, queue text, roots boolean, newest timestamptz, behind text, oldest timestamptz, max integer)
returns setof text
language plpgsql stable
set plan_cache_mode = force_custom_plan
set enable_seqscan = off
as $$
begin
  if queue is not null and coalesce(status, 'completed') in ('completed', 'failed', 'cancelled') then
    return query
      select r.run_id from tidebase.runs r
      where r.queue = page_of_candidates.queue and (r.created_at, r.run_id) < (newest, behind) and r.created_at > oldest
      order by r.created_at desc, r.run_id desc limit page_of_candidates.max;
  else
    return query
      select p from tidebase_private.page_of_runs(
        workflow, status, roots and workflow is null and status is null, newest, behind, oldest, max) p;
  end if;
end
$$;
comment on function tidebase_private.page_of_candidates(text, text, text, boolean, timestamptz, text, timestamptz, integer) is
  'The ids of the next runs that a search has to look at, newest first, as page_of_runs has them.';

-- Those of some runs that fit, in their order. A text is looked for as it is, in capital letters or small ones.
create or replace function tidebase_private.those_that_fit(
  run_ids text[], workflow text, status text, queue text, matching text, metadata jsonb, roots boolean)
returns text[]
language plpgsql stable
set enable_seqscan = off
as $$
begin
  return array(
    select r.run_id
    from unnest(run_ids) with ordinality c (run_id, place)
    join tidebase.runs r on r.run_id = c.run_id
    join tidebase.run_heads h on h.run_id = c.run_id
    where (those_that_fit.workflow is null or r.workflow = those_that_fit.workflow)
      and (those_that_fit.status is null or h.status = those_that_fit.status)
      and (those_that_fit.queue is null or r.queue = those_that_fit.queue)
      and (not roots or r.parent_run_id is null)
      and (those_that_fit.metadata is null or r.metadata @> those_that_fit.metadata)
      and (matching is null or position(lower(matching) in lower(concat_ws(E'\n', r.run_id, r.workflow, r.queue_key, r.dedupe_key,
        h.holder, h.waiting_for, left(r.error ->> 'message', 10000)))) > 0)
    order by c.place);
end
$$;
comment on function tidebase_private.those_that_fit(text[], text, text, text, text, jsonb, boolean) is
  'The ids of those runs that a search finds among these.';

create or replace function tidebase.search_runs(
  workflow text default null, status text default null, queue text default null, matching text default null,
  metadata jsonb default null, created_after timestamptz default null, created_before timestamptz default null,
  before text default null, before_created_at timestamptz default null, roots boolean default false, max integer default 100,
  effort integer default 10000)
returns tidebase.run_page
language plpgsql stable security definer
set search_path = pg_catalog, tidebase, pg_temp
set enable_seqscan = off
as $$
declare
  page run_page := row('{}', null, null, 0)::run_page;
  looked_at text[];
  fitting text[];
  newest timestamptz := timestamptz 'infinity';
begin
  roots := coalesce(roots, false);
  max := coalesce(max, 100);
  effort := coalesce(effort, 10000);
  if max not between 1 and 1000 then
    perform tidebase_private.raise_invalid('max', 'must be a number from 1 to 1000');
  elsif effort not between 1 and 100000 then
    perform tidebase_private.raise_invalid('effort', 'must be a number from 1 to 100000');
  elsif jsonb_typeof(metadata) <> 'object' then
    perform tidebase_private.raise_invalid('metadata', 'must be a JSON object');
  elsif matching is not null then
    perform tidebase_private.require_name(matching, 'matching', 255);
  end if;
  perform tidebase_private.require_status(status);
  perform tidebase_private.require_note(metadata, 'metadata');
  if before is not null then
    newest := coalesce(before_created_at, tidebase_private.place_of(before));
  end if;
  if created_before <= newest then
    newest := created_before;
    before := null;
  end if;
  loop
    looked_at := array(select tidebase_private.page_of_candidates(workflow, status, queue, roots, newest, coalesce(before, ''),
      coalesce(created_after, '-infinity'), least(greatest(max, 200), effort - page.examined)));
    exit when cardinality(looked_at) = 0;
    page.examined := page.examined + cardinality(looked_at);
    fitting := tidebase_private.those_that_fit(looked_at, workflow, status, queue, matching, metadata, roots);
    if cardinality(page.run_ids) + cardinality(fitting) >= max then
      page.run_ids := page.run_ids || fitting[:max - cardinality(page.run_ids)];
      page.next_run_id := page.run_ids[max];
    else
      page.run_ids := page.run_ids || fitting;
      page.next_run_id := looked_at[cardinality(looked_at)];
    end if;
    page.next_created_at := (select r.created_at from runs r where r.run_id = page.next_run_id);
    exit when cardinality(page.run_ids) = max or page.examined = effort;
    before := page.next_run_id;
    newest := page.next_created_at;
  end loop;
  if cardinality(looked_at) = 0 then
    page.next_run_id := null;
    page.next_created_at := null;
  end if;
  return page;
end
$$;
comment on function tidebase.search_runs(
  text, text, text, text, jsonb, timestamptz, timestamptz, text, timestamptz, boolean, integer, integer) is
  'The ids of runs, newest first, at most max (1 to 1000): of a workflow, in a status, of a queue, with matching somewhere in their id, workflow, keys, holder, what they wait for or the message of their error (capital letters or small), with this in their metadata, created after and before these times; roots: only those that no other run has made as its child. NULL means any. It looks at no more than effort runs (1 to 100000), so that a call costs the same among any number: go on with next_run_id as before and next_created_at as before_created_at, until they are NULL. Errors: TB001, TB002.';

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
select tidebase_private.allow('function tidebase.search_runs', 'worker', 'approver', 'operator', 'reader');
select tidebase_private.allow('function tidebase.count_runs', 'worker', 'approver', 'operator', 'reader');
