-- Shards: databases that each own some of the buckets in which runs lie (see bucket_of).
--
-- The setting `buckets` says which: a digit for each partition, 1 where it is owned; the partition of a bucket is its
-- remainder. So their number, a power of two, can be doubled without moving a row. Where nothing is said, the database owns
-- all, and nothing is looked up where runs are made: the triggers that refuse what belongs elsewhere come with the setting.

create or replace function tidebase_private.bucket_of_queue(queue text)
returns integer
language sql immutable
as $$
  select tidebase_private.bucket_of(format('{queue:%s}', queue));
$$;
comment on function tidebase_private.bucket_of_queue(text) is
  'The bucket of a queue: its limits, dedupe keys and schedules are there, and its runs beside them, so that every promise is kept by one database.';

-- In PL/pgSQL, which keeps the plans of its queries: SQL functions that look into a table are planned at each call.
create or replace function tidebase_private.is_shard()
returns boolean
language plpgsql stable
as $$
begin
  return exists (select from tidebase_private.settings s where s.name = 'buckets');
end
$$;
comment on function tidebase_private.is_shard() is 'Whether the database is one of several, and owns only some of the buckets.';

create or replace function tidebase_private.owns_bucket(bucket integer)
returns boolean
language plpgsql stable
as $$
begin
  return coalesce((
    select substr(s.value, (bucket & (length(s.value) - 1)) + 1, 1) = '1'
    from tidebase_private.settings s where s.name = 'buckets'), true);
end
$$;
comment on function tidebase_private.owns_bucket(integer) is 'Whether the runs of a bucket belong into this database.';

create or replace function tidebase_private.in_bucket(run_id text, bucket integer)
returns text
language sql immutable
as $$
  select left(run_id, -4) || lpad(to_hex(bucket), 4, '0');
$$;
comment on function tidebase_private.in_bucket(text, integer) is 'A generated id, moved into a bucket.';

-- Before a row is made that belongs into a bucket, and, where some have moved, before one is changed. The arguments are the
-- column that says which bucket, and what is owned: a condition of the trigger would be planned anew at each statement, and a
-- transaction at a higher level of isolation would find in the settings what was owned some time ago.
create or replace function tidebase_private.refuse_elsewhere()
returns trigger
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  is_queue constant boolean := tg_argv[0] = 'queue';
  owned constant text := tg_argv[1];
  place text;
  bucket integer;
begin
  if is_queue then
    place := new.queue;
    bucket := tidebase_private.bucket_of_queue(place);
  elsif tg_argv[0] = 'thread_id' then
    place := new.thread_id;
    bucket := tidebase_private.bucket_of(place);
  else
    place := new.run_id;
    bucket := tidebase_private.bucket_of(place);
  end if;
  if substr(owned, (bucket & (length(owned) - 1)) + 1, 1) = '1' then
    return new;
  elsif tg_op = 'UPDATE' then
    perform tidebase_private.raise_moved(bucket, place);
  end if;
  perform tidebase_private.raise('55000',
    format('%s %L belongs to another database: its bucket is %s', replace(tg_argv[0], '_id', ''), left(place, 255), bucket),
    jsonb_build_object(tg_argv[0], left(place, 255), 'bucket', bucket),
    case when is_queue then 'Call the router; a run that has an id of your own lies beside its queue if the id contains {queue:NAME}.'
      else 'Call the router; an id of your own falls into the bucket of its {tag}.' end);
  return null;
end
$$;
comment on function tidebase_private.refuse_elsewhere() is
  'Raises 55000: a run, a thread, or what belongs to a queue, is not in a bucket of this database; and 40001 where a run is changed that went to another database with its bucket.';

create or replace function tidebase_private.raise_moved(bucket integer, run_id text default null)
returns void
language plpgsql volatile
as $$
begin
  perform tidebase_private.raise('40001',
    case when run_id is null then format('bucket %s belongs to another database', bucket)
      else format('run %L belongs to another database: its bucket %s went there', left(run_id, 255), bucket) end,
    jsonb_strip_nulls(jsonb_build_object('run_id', left(run_id, 255), 'bucket', bucket)),
    'Read the map of the router again (tidebase.shard_map), and call the database that has the bucket now.');
end
$$;
comment on function tidebase_private.raise_moved(integer, text) is 'Raises 40001: a bucket belongs to another database.';

-- Who has the map of a router and calls a shard by it says in the same statement which bucket it looks for there: what it
-- reads, or begins, is then that of the database whose it is. What is done under a lease the lease fences.
create or replace function tidebase.require_bucket(bucket integer)
returns boolean
language plpgsql stable security definer
set search_path = pg_catalog, tidebase, pg_temp
as $$
declare
  owned text := (select s.value from tidebase_private.settings s where s.name = 'buckets');
begin
  if bucket is null or bucket not between 0 and 65535 then
    perform tidebase_private.raise_invalid('bucket', 'must be a number from 0 to 65535');
  elsif substr(owned, (bucket & (length(owned) - 1)) + 1, 1) = '0' then
    perform tidebase_private.raise_moved(bucket);
  end if;
  return true;
end
$$;
comment on function tidebase.require_bucket(integer) is
  'True where the database owns a bucket of runs, as one that is no shard owns all. For who calls a shard by the map of its router (shard_map): a condition of the statement that makes a call, with the bucket of the run. Errors: TB002; and 40001 where the bucket belongs to another database: read the map again.';

-- The strings are those of the servers of PL/Proxy, which everybody may read in pg_foreign_server. The user and the password
-- that the router has at the shards are not among them: whoever comes to a shard comes as himself.
create or replace function tidebase.shard_map()
returns text[]
language plpgsql stable security definer
set search_path = pg_catalog, tidebase, pg_temp
as $$
begin
  return (
    select array_agg(m.map -> 'shards' -> o.owner::integer ->> 'conninfo' order by o.place)
    from (select t.value::jsonb as map from tidebase_private.settings t where t.name = 'router') m
    cross join jsonb_array_elements_text(m.map -> 'owners') with ordinality o (owner, place));
end
$$;
comment on function tidebase.shard_map() is
  'Of a router: where each partition is, as a connection string without user and password. The partition of a run is its bucket (the last four hexadecimal digits of a generated id, else the first 16 bits of the SHA-256 of the id, or of what stands in its first {braces}) modulo their number, a power of two; the first one is at [1]. NULL from a database that is no router. Read it together with shard_epoch.';

create or replace function tidebase.shard_epoch()
returns bigint
language plpgsql stable security definer
set search_path = pg_catalog, tidebase, pg_temp
as $$
begin
  return (select (t.value::jsonb ->> 'epoch')::bigint from tidebase_private.settings t where t.name = 'router');
end
$$;
comment on function tidebase.shard_epoch() is
  'Of a router: the number of its map (shard_map), which grows with each change. NULL from a database that is no router.';

create or replace function tidebase_private.own_run_id()
returns text
language plpgsql volatile
as $$
declare
  id text := tidebase.new_run_id();
  owned text := (select s.value from tidebase_private.settings s where s.name = 'buckets');
  partition integer := (
    select d.n - 1 from generate_series(1, length(owned)) d (n) where substr(owned, d.n, 1) = '1' order by random() limit 1);
begin
  if partition is null then
    return id;
  end if;
  return tidebase_private.in_bucket(id, tidebase_private.bucket_of(id) & ~(length(owned) - 1) | partition);
end
$$;
comment on function tidebase_private.own_run_id() is 'A fresh id, in a bucket of this database.';

create or replace function tidebase_private.loses_buckets(owned text)
returns boolean
language plpgsql stable
as $$
declare
  former text := coalesce((select s.value from tidebase_private.settings s where s.name = 'buckets'), '1');
begin
  return exists (
    select from unnest(string_to_array(repeat(owned, greatest(length(former) / length(owned), 1)), null),
      string_to_array(repeat(former, greatest(length(owned) / length(former), 1)), null)) d (owned, former)
    where d.owned = '0' and d.former = '1');
end
$$;
comment on function tidebase_private.loses_buckets(text) is 'Whether the database owns a bucket now that it would not own any more.';

-- What has moved is looked for only where it may be there. To make the trigger waits for those who are writing heads now, so
-- whoever reads heads from then on reads all that was ever written here.
create or replace function tidebase_private.watch_for_moved(owned text, loses boolean)
returns void
language plpgsql volatile
set search_path = pg_catalog, tidebase, pg_temp
as $$
declare
  is_watched boolean := exists (
    select from pg_trigger t where t.tgrelid = 'tidebase.run_heads'::regclass and t.tgname = 'refuse_moved');
begin
  if not loses and not is_watched then
    return;
  elsif exists (select from tidebase.run_heads h where not tidebase_private.owns_bucket(tidebase_private.bucket_of(h.run_id))) then
    execute format('create or replace trigger refuse_moved before update on tidebase.run_heads for each row
      execute function tidebase_private.refuse_elsewhere(%L, %L)', 'run_id', owned);
  elsif is_watched then
    drop trigger refuse_moved on tidebase.run_heads;
  end if;
end
$$;
comment on function tidebase_private.watch_for_moved(text, boolean) is
  'From when a bucket with runs went to another database to when they are deleted here, a trigger refuses (40001) what would change them.';

create or replace function tidebase_private.own_buckets(owned text)
returns void
language plpgsql volatile
set search_path = pg_catalog, tidebase, pg_temp
as $$
declare
  made record;
  loses boolean;
begin
  if owned !~ '^[01]+$' or length(owned) > 65536 or length(owned) & (length(owned) - 1) <> 0 then
    perform tidebase_private.raise_invalid('owned', 'must be a digit, 0 or 1, for each of 1, 2, 4 ... 65536 partitions');
  end if;
  loses := tidebase_private.loses_buckets(coalesce(owned, '1'));
  for made in
    select t.name, t.of_column
    from (values ('runs', 'run_id'), ('threads', 'thread_id'), ('queues', 'queue'), ('queue_entries', 'queue'), ('schedules', 'queue')) t (name, of_column)
  loop
    execute format('drop trigger if exists refuse_elsewhere on tidebase.%I', made.name);
    if owned is not null then
      execute format('create trigger refuse_elsewhere before insert on tidebase.%I for each row
        execute function tidebase_private.refuse_elsewhere(%L, %L)', made.name, made.of_column, owned);
    end if;
  end loop;
  delete from tidebase_private.settings s where s.name = 'buckets';
  insert into tidebase_private.settings (name, value) select 'buckets', owned where owned is not null;
  perform tidebase_private.watch_for_moved(owned, loses);
end
$$;
comment on function tidebase_private.own_buckets(text) is
  'Says which buckets the database owns: a digit (1: owned) for each of a power of two of partitions; NULL: all. Runs, threads and queues of others are refused from then on, and so is what would change a run that is here and went to another one (40001). Called by who owns the schema. Errors: TB002.';

select tidebase_private.allow('function tidebase.require_bucket', 'worker', 'approver', 'operator', 'reader');
select tidebase_private.allow('function tidebase.shard_map', 'worker', 'approver', 'operator', 'reader');
select tidebase_private.allow('function tidebase.shard_epoch', 'worker', 'approver', 'operator', 'reader');

-- A shard keeps its word when its functions are made anew: its triggers may be of an earlier package, or gone with a rollback.
select tidebase_private.own_buckets(s.value) from tidebase_private.settings s where s.name = 'buckets';
