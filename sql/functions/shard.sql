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

-- The triggers call it for what is in a bucket of another database: their conditions have looked. Their argument is the column.
create or replace function tidebase_private.refuse_elsewhere()
returns trigger
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  place text := to_jsonb(new) ->> tg_argv[0];
  is_queue boolean := tg_argv[0] = 'queue';
  bucket integer := case when is_queue then tidebase_private.bucket_of_queue(place) else tidebase_private.bucket_of(place) end;
begin
  perform tidebase_private.raise('55000',
    format('%s %L belongs to another database: its bucket is %s', replace(tg_argv[0], '_id', ''), left(place, 255), bucket),
    jsonb_build_object(tg_argv[0], left(place, 255), 'bucket', bucket),
    case when is_queue then 'Call the router; a run that has an id of your own lies beside its queue if the id contains {queue:NAME}.'
      else 'Call the router; an id of your own falls into the bucket of its {tag}.' end);
  return null;
end
$$;
comment on function tidebase_private.refuse_elsewhere() is
  'Raises 55000: a run, a thread, or what belongs to a queue, is not in a bucket of this database.';

create or replace function tidebase_private.own_buckets(owned text)
returns void
language plpgsql volatile
set search_path = pg_catalog, tidebase, pg_temp
as $$
declare
  made record;
begin
  if owned !~ '^[01]+$' or length(owned) > 65536 or length(owned) & (length(owned) - 1) <> 0 then
    perform tidebase_private.raise_invalid('owned', 'must be a digit, 0 or 1, for each of 1, 2, 4 ... 65536 partitions');
  end if;
  for made in
    select t.name, t.of_column, case t.of_column when 'queue' then 'bucket_of_queue' else 'bucket_of' end as looked_up
    from (values ('runs', 'run_id'), ('threads', 'thread_id'), ('queues', 'queue'), ('queue_entries', 'queue'), ('schedules', 'queue')) t (name, of_column)
  loop
    execute format('drop trigger if exists refuse_elsewhere on tidebase.%I', made.name);
    if owned is not null then
      execute format('create trigger refuse_elsewhere before insert on tidebase.%I for each row
        when (not tidebase_private.owns_bucket(tidebase_private.%I(new.%I))) execute function tidebase_private.refuse_elsewhere(%L)',
        made.name, made.looked_up, made.of_column, made.of_column);
    end if;
  end loop;
  delete from tidebase_private.settings s where s.name = 'buckets';
  insert into tidebase_private.settings (name, value) select 'buckets', owned where owned is not null;
end
$$;
comment on function tidebase_private.own_buckets(text) is
  'Says which buckets the database owns: a digit (1: owned) for each of a power of two of partitions; NULL: all. Runs, threads and queues of others are refused from then on. Called by who owns the schema. Errors: TB002.';
