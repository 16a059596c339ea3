-- What the functions of a router share. `tidebase router` makes the schema, and in it, by its map, shards() and shard_of().

-- A call that a router passes on commits on its own. So it is refused where somebody counts on more: in a transaction that has
-- written something, or has made such a call before.
create function tidebase_router.require_alone()
returns void
language plpgsql volatile
as $$
begin
  if pg_current_xact_id_if_assigned() is not null then
    perform tidebase_router.raise_error('25001', 'a call of a router commits on its own, and this transaction has written something', '',
      'Make the call outside of the transaction, or use the database of the shard itself.');
  elsif coalesce(current_setting('tidebase.forwarded', true), '') not in ('', statement_timestamp()::text) then
    perform tidebase_router.raise_error('25001', 'a call of a router commits on its own, and this transaction has made one before', '',
      'Make each call in a transaction of its own (autocommit).');
  end if;
  perform set_config('tidebase.forwarded', statement_timestamp()::text, true);
end
$$;
comment on function tidebase_router.require_alone() is 'Raises 25001 where a call of the router would not be what it looks like: a part of a transaction.';

create function tidebase_router.require_together(thing text, name text, other text, beside text)
returns void
language plpgsql immutable
as $$
begin
  if name is not null and beside is not null and tidebase_private.bucket_of(name)
    <> (case other when 'queue' then tidebase_private.bucket_of_queue(beside) else tidebase_private.bucket_of(beside) end)
  then
    perform tidebase_router.raise_error('55000', format('%s %L does not lie beside %s %L', thing, left(name, 255), other, left(beside, 255)),
      jsonb_build_object(thing, left(name, 255), other, left(beside, 255))::text,
      case other when 'queue' then format('Let the id contain {queue:%s}, or leave it out.', left(beside, 255))
        else format('Take an id that new_run_id(beside => %L) makes, or one {tag} for both.', left(beside, 255)) end);
  end if;
end
$$;
comment on function tidebase_router.require_together(text, text, text, text) is
  'Raises 55000 unless a thing lies in the bucket of another one: they are written in one transaction.';

create function tidebase_router.raise_error(state text, message text, details text, advice text)
returns void
language plpgsql immutable
as $$
begin
  if details <> '' and advice <> '' then
    raise exception using errcode = state, message = message, detail = details, hint = advice;
  elsif details <> '' then
    raise exception using errcode = state, message = message, detail = details;
  elsif advice <> '' then
    raise exception using errcode = state, message = message, hint = advice;
  end if;
  raise exception using errcode = state, message = message;
end
$$;
comment on function tidebase_router.raise_error(text, text, text, text) is 'Raises an error; a DETAIL or a HINT that is empty is none.';

create function tidebase_router.is_lost(state text, message text)
returns boolean
language sql immutable
as $$
  select state in ('57P01', '57P02', '57P03')
    or state = 'XX000' and (message ~ '^PL/Proxy function .*: (\[.*\] PQ|connect timeout|check_old_conn|Unexpected result type|Lost result|Unfinished connection)');
$$;
comment on function tidebase_router.is_lost(text, text) is 'Whether an error of PL/Proxy means that the shard was not reached, or was lost.';

-- What PL/Proxy makes of an error, and of a connection that breaks, made undone.
create function tidebase_router.raise_again(state text, message text, details text, advice text)
returns void
language plpgsql immutable
as $$
declare
  said text := substring(message from '^[^(]+\(\d+\): \[[^]]*\] REMOTE [^:]*: (.*)$');
begin
  if tidebase_router.is_lost(state, message) then
    perform tidebase_router.raise_error('08006', format('a shard cannot be reached: %s', coalesce(said, regexp_replace(message, '^PL/Proxy function [^:]*: ', ''))), '',
      'The call may be made again with the same arguments.');
  elsif state = 'XX000' and message ~ '^PL/Proxy function .*: query timeout' then
    perform tidebase_router.raise_error('57014', 'a shard did not answer in time', '', 'The call may be made again with the same arguments.');
  elsif said is null then
    perform tidebase_router.raise_error(state, message, details, advice);
  end if;
  perform tidebase_router.raise_error(state, said, regexp_replace(details, '^Remote detail: ', ''), regexp_replace(advice, '^Remote hint: ', ''));
end
$$;
comment on function tidebase_router.raise_again(text, text, text, text) is
  'Raises an error of a call at a shard as the call itself would: without the words around it, and 08006 where the shard was lost.';

-- For what asks one shard after the other: the rest is asked although one is down.
create function tidebase_router.pass_over(state text, message text, details text, advice text, shard integer)
returns void
language plpgsql volatile
as $$
begin
  if not tidebase_router.is_lost(state, message) then
    perform tidebase_router.raise_again(state, message, details, advice);
  end if;
  raise warning 'shard % cannot be reached, and was passed over: %', shard, regexp_replace(message, '^PL/Proxy function [^:]*: ', '');
end
$$;
comment on function tidebase_router.pass_over(text, text, text, text, integer) is 'A warning where a shard was lost; any other error is raised.';

create function tidebase_router.raise_all_lost()
returns void
language plpgsql volatile
as $$
begin
  perform tidebase_router.raise_error('08006', 'no shard can be reached', '', 'See tidebase router status.');
end
$$;
comment on function tidebase_router.raise_all_lost() is 'Raises 08006.';

create function tidebase_router.from_a_random_one()
returns setof integer
language sql volatile
as $$
  select s.shard from tidebase_router.shards() s (shard), (select random() as turn offset 0) r
  order by (row_number() over (order by s.shard) / (count(*) over ())::float8 + r.turn)::numeric % 1;
$$;
comment on function tidebase_router.from_a_random_one() is 'All shards, each by a bucket of its, from a random one on.';
