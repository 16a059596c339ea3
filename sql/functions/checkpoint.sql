-- Threads and their checkpoints, for LangGraph: who may write, and what is stored once.
--
-- Who writes. A checkpoint says which one it follows. It is put only if that is the newest of its namespace, or if the newest is
-- still the one that its writer saw when it read: then it begins a branch on purpose (time travel). So of two who go on from
-- one checkpoint the second is refused, and the chain does not fork. That holds without a lease. Who writes under the
-- lease of a run is fenced by its token besides, and nobody else writes to the thread while that lease is alive.
--
-- What is stored. A value is bytes, which nobody here can read: its head, then its body. The client says how the body is made of
-- pieces of an earlier value's body and of new bytes; so a list of messages that grows by one costs one message, and a row.
-- What is new is cut into chunks, each stored once, and never changed. Chunks of a channel are numbered by position; a body is
-- a few ranges of positions, read by one scan of an index each.
--
-- Lock order: the head of the run, then the thread's row, which is locked for as long as something is put or taken away.

create or replace function tidebase_private.raise_overtaken(thread_id text, namespace text, parent_id text, newest_id text)
returns void
language plpgsql volatile
as $$
begin
  perform tidebase_private.raise('TB003',
    format('thread %L has moved on: its newest checkpoint is %s, not that which this one follows', thread_id,
      coalesce(quote_literal(newest_id), 'none')),
    jsonb_build_object('thread_id', thread_id, 'namespace', namespace, 'parent_id', parent_id, 'newest_id', newest_id),
    'Another worker is at this thread, or was. Read its newest checkpoint and go on from there.');
end
$$;
comment on function tidebase_private.raise_overtaken(text, text, text, text) is 'Raises TB003: somebody else has put a checkpoint meanwhile.';

create or replace function tidebase_private.require_namespace(namespace text)
returns void
language plpgsql volatile
as $$
begin
  if namespace is null or octet_length(namespace) > 1000 then
    perform tidebase_private.raise_invalid('namespace', 'must be a text of at most 1000 bytes');
  end if;
end
$$;
comment on function tidebase_private.require_namespace(text) is 'Raises TB002 unless it can be the namespace of a graph: empty, or that of a subgraph.';

create or replace function tidebase_private.require_contents(contents bytea[], parameter text, more bigint default 0)
returns void
language plpgsql stable
as $$
declare
  size bigint := more + (select coalesce(sum(octet_length(c.content)), 0) from unnest(contents) c (content));
  most bigint;
begin
  if array_ndims(contents) > 1 or array_position(contents, null) is not null then
    perform tidebase_private.raise_invalid(parameter, 'must be a plain list without NULL');
  elsif size > 1000000 then
    most := coalesce((select s.value::bigint from tidebase_private.settings s where s.name = 'max_payload_bytes'), 67108864);
    if size > most then
      perform tidebase_private.raise_invalid(parameter, format('must take no more than %s bytes', most));
    end if;
  end if;
end
$$;
comment on function tidebase_private.require_contents(bytea[], text, bigint) is
  'Raises TB002 when bytes take more than the setting max_payload_bytes, which is 64 MB unless set, and counts from a million on; or when one is NULL.';

-- A share of the lock is enough: it keeps the lease from being granted anew until this is committed, and lets parallel
-- tasks of one worker write at the same time.
create or replace function tidebase_private.fence_shared(run_id text, token bigint)
returns void
language plpgsql volatile
as $$
begin
  perform from tidebase.run_heads h
  where h.run_id = fence_shared.run_id and h.lease_token = fence_shared.token and h.status = 'running'
  for share;
  if not found then
    perform tidebase_private.raise_fenced(run_id, token);
  end if;
end
$$;
comment on function tidebase_private.fence_shared(text, bigint) is
  'Checks the lease token for a write that takes no number of the log. Errors: TB001, TB003, TB004, TB005.';

-- Of which something goes, the strongest lock at once: who writes for a task has only a share of the key.
create or replace function tidebase_private.lock_thread(thread_id text, whole boolean default false)
returns tidebase.threads
language plpgsql volatile
as $$
declare
  chosen tidebase.threads;
begin
  if whole then
    select t.* into chosen from tidebase.threads t where t.thread_id = lock_thread.thread_id for update;
  else
    select t.* into chosen from tidebase.threads t where t.thread_id = lock_thread.thread_id for no key update;
  end if;
  return chosen;
end
$$;
comment on function tidebase_private.lock_thread(text, boolean) is
  'Takes the lock of a thread, of which something may go if it is the whole; NULL where there is none.';

create or replace function tidebase_private.raise_thread_unsettled(thread_id text)
returns void
language plpgsql volatile
as $$
begin
  perform tidebase_private.raise('40001', 'the thread is deleted again and again by others at this moment',
    jsonb_build_object('thread_id', thread_id), 'Make the call again.');
end
$$;
comment on function tidebase_private.raise_thread_unsettled(text) is 'Raises 40001: whoever looks for the thread does not come to an end of it.';

create or replace function tidebase_private.find_or_make_thread(thread_id text)
returns tidebase.threads
language plpgsql volatile
as $$
declare
  chosen tidebase.threads := tidebase_private.lock_thread(thread_id);
begin
  for try in 1..10 loop  -- made by another, and deleted by a third
    exit when chosen.thread is not null;
    insert into tidebase.threads (thread_id) values (find_or_make_thread.thread_id)
    on conflict on constraint threads_pkey do nothing;
    chosen := tidebase_private.lock_thread(thread_id);
  end loop;
  if chosen.thread is null then
    perform tidebase_private.raise_thread_unsettled(thread_id);
  end if;
  return chosen;
end
$$;
comment on function tidebase_private.find_or_make_thread(text) is 'Takes the lock of a thread, which is made if it is not there.';

-- The owner's head is only looked at. Who is granted its lease this very moment takes the thread's lock before he reads it
-- (claim_thread), and so comes after this write.
create or replace function tidebase_private.require_ownership(thread tidebase.threads, run_id text)
returns void
language plpgsql volatile
as $$
declare
  head tidebase.run_heads;
begin
  if thread.owner_run_id is not distinct from run_id then
    return;
  end if;
  select h.* into head from tidebase.run_heads h where h.run_id = thread.owner_run_id;
  if tidebase_private.is_live(head) then
    perform tidebase_private.raise('TB003', format('thread %L is written by run %L, which %s holds', thread.thread_id, head.run_id, head.holder),
      jsonb_build_object('thread_id', thread.thread_id, 'run_id', head.run_id, 'holder', head.holder, 'expires_at', head.lease_expires_at),
      'Wait until its lease is given up, or has run out.');
  end if;
end
$$;
comment on function tidebase_private.require_ownership(tidebase.threads, text) is 'Raises TB003 while another run has the thread, and its lease is alive.';

create or replace function tidebase_private.own(thread tidebase.threads, run_id text)
returns void
language plpgsql volatile
as $$
begin
  perform tidebase_private.require_ownership(thread, run_id);
  if run_id is not null and run_id is distinct from thread.owner_run_id then
    update tidebase.threads t set owner_run_id = own.run_id where t.thread_id = thread.thread_id;
  end if;
end
$$;
comment on function tidebase_private.own(tidebase.threads, text) is 'Lets a run have the thread from now on, if nobody else has. The caller holds the thread''s lock.';

create or replace function tidebase.claim_thread(run_id text, token bigint, thread_id text)
returns boolean
language plpgsql volatile security definer
set search_path = pg_catalog, tidebase, pg_temp
set enable_seqscan = off
as $$
declare
  chosen threads;
begin
  perform tidebase_private.require_name(thread_id, 'thread_id', 255);
  perform tidebase_private.commit_durably();
  perform tidebase_private.fence_shared(run_id, token);
  chosen := tidebase_private.find_or_make_thread(thread_id);
  perform tidebase_private.own(chosen, run_id);
  return chosen.owner_run_id is distinct from run_id;
end
$$;
comment on function tidebase.claim_thread(text, bigint, text) is
  'Lets a run have a thread: while its lease is alive, nobody else writes there. Call it when the lease was granted, before the thread is read. A thread that is not there is made. Returns whether it was the run''s before (false) or not (true). Errors: TB001, TB002, TB003 (the lease is lost; or another run has the thread), TB004, TB005.';

-- Bytes [first, last) of a value's body: whole chunks as ranges, and what is left of the chunks at both ends.
create or replace function tidebase_private.slice_value(
  source tidebase.thread_values, first bigint, last bigint, out lead bytea, out parts int4range[], out trail bytea)
language plpgsql stable
as $$
declare
  piece record;
begin
  lead := '';
  trail := '';
  parts := '{}';
  if first = 0 and last = source.bytes then
    parts := source.parts;
    return;
  end if;
  for piece in
    select c.position, c.content, c.start, c.size
    from (
      select c.position, c.content, octet_length(c.content) as size,
        sum(octet_length(c.content)) over (order by p.place, c.position) - octet_length(c.content) as start
      from unnest(source.parts) with ordinality p (range, place)
      join tidebase.thread_chunks c on c.thread = source.thread and c.namespace = source.namespace and c.channel = source.channel
        and c.position >= lower(p.range) and c.position < upper(p.range)) c
    where c.start < last and c.start + c.size > first
    order by c.start
  loop
    if piece.start >= first and piece.start + piece.size <= last then
      parts := tidebase_private.joined(parts, int4range(piece.position, piece.position + 1));
    elsif piece.start < first then
      lead := substr(piece.content, (first - piece.start)::integer + 1, (least(last, piece.start + piece.size) - first)::integer);
    else
      trail := substr(piece.content, 1, (last - piece.start)::integer);
    end if;
  end loop;
end
$$;
comment on function tidebase_private.slice_value(tidebase.thread_values, bigint, bigint) is
  'A part of a body: lead (the end of a chunk that begins before it), ranges of whole chunks, trail (the beginning of one that ends after it).';

create or replace function tidebase_private.joined(parts int4range[], next int4range)
returns int4range[]
language sql immutable
as $$
  select case when upper(parts[cardinality(parts)]) = lower(next)
    then parts[:cardinality(parts) - 1] || int4range(lower(parts[cardinality(parts)]), upper(next))
    else parts || next end;
$$;
comment on function tidebase_private.joined(int4range[], int4range) is 'A range after others; one that begins where the last one ends makes it longer.';

create or replace function tidebase_private.read_parts(source tidebase.thread_values, parts int4range[])
returns bytea
language sql stable
as $$
  select coalesce(string_agg(c.content, '' order by c.place, c.position), '')
  from (
    select c.content, c.position, p.place
    from unnest(parts) with ordinality p (range, place)
    join tidebase.thread_chunks c on c.thread = source.thread and c.namespace = source.namespace and c.channel = source.channel
      and c.position >= lower(p.range) and c.position < upper(p.range)) c;
$$;
comment on function tidebase_private.read_parts(tidebase.thread_values, int4range[]) is 'Some of the chunks of a channel, put together.';

create or replace function tidebase_private.read_body(source tidebase.thread_values)
returns bytea
language sql stable
as $$
  select tidebase_private.read_parts(source, source.parts);
$$;
comment on function tidebase_private.read_body(tidebase.thread_values) is 'The body of a value, put together.';

create or replace function tidebase_private.parts_beyond(source tidebase.thread_values, base tidebase.thread_values)
returns int4range[]
language sql immutable
as $$
  select case
    when base.parts[:n - 1] = source.parts[:n - 1] and lower(base.parts[n]) = lower(source.parts[n]) and upper(base.parts[n]) <= upper(source.parts[n])
    then int4range(upper(base.parts[n]), upper(source.parts[n])) || source.parts[n + 1:] end
  from cardinality(base.parts) n;
$$;
comment on function tidebase_private.parts_beyond(tidebase.thread_values, tidebase.thread_values) is
  'What a value has behind all the chunks of another one; NULL if it does not begin with these.';

-- So long that a row of its own costs little, so short that little is copied where one is cut.
create or replace function tidebase_private.store_chunks(key uuid, namespace text, channel text, content bytea)
returns int4range
language plpgsql volatile
as $$
declare
  size constant integer := 8000;
  number integer := (octet_length(content) + size - 1) / size;
  first integer;
begin
  select c.position + 1 into first from tidebase.thread_chunks c
  where c.thread = key and c.namespace = store_chunks.namespace and c.channel = store_chunks.channel
  order by c.position desc limit 1;
  first := coalesce(first, 1);
  if number = 1 then
    insert into tidebase.thread_chunks (thread, namespace, channel, position, content)
    values (key, store_chunks.namespace, store_chunks.channel, first, store_chunks.content);
    return int4range(first, first + 1);
  end if;
  insert into tidebase.thread_chunks (thread, namespace, channel, position, content)
  select key, store_chunks.namespace, store_chunks.channel, first + i, substr(store_chunks.content, i * size + 1, size)
  from generate_series(0, number - 1) i;
  return int4range(first, first + number);
end
$$;
comment on function tidebase_private.store_chunks(uuid, text, text, bytea) is 'Stores bytes behind all that the channel has; returns their positions.';

-- Puts a value together as the client says: pieces of the base, and new bytes. What is cut out of chunks is stored anew,
-- together with the new bytes beside it. A body of too many ranges is stored in one piece.
create or replace function tidebase_private.compose(base tidebase.thread_values, made tidebase.thread_values, pieces jsonb, contents bytea[])
returns tidebase.thread_values
language plpgsql volatile
as $$
declare
  piece jsonb;
  slice record;
  range int4range;
  pending bytea := ''::bytea;
begin
  made.parts := '{}';
  made.bytes := 0;
  for piece in select p.item from jsonb_array_elements(pieces) with ordinality p (item, place) order by p.place
  loop
    if made.parts = '{}' and pending = '' and piece = jsonb_build_array(0, base.bytes) then  -- all of it: a list grew
      made.parts := base.parts;
      made.bytes := base.bytes;
    elsif jsonb_typeof(piece) = 'array' then
      slice := tidebase_private.slice_value(base, (piece ->> 0)::bigint, (piece ->> 1)::bigint);
      made.bytes := made.bytes + (piece ->> 1)::bigint - (piece ->> 0)::bigint;
      pending := pending || slice.lead;
      if slice.parts <> '{}' then
        if pending <> '' then
          made.parts := tidebase_private.joined(made.parts, tidebase_private.store_chunks(made.thread, made.namespace, made.channel, pending));
        end if;
        foreach range in array slice.parts loop
          made.parts := tidebase_private.joined(made.parts, range);
        end loop;
        pending := '';
      end if;
      pending := pending || slice.trail;
    else
      pending := pending || contents[piece::integer + 1];
      made.bytes := made.bytes + octet_length(contents[piece::integer + 1]);
    end if;
  end loop;
  if pending <> '' then
    made.parts := tidebase_private.joined(made.parts, tidebase_private.store_chunks(made.thread, made.namespace, made.channel, pending));
  end if;
  if cardinality(made.parts) > 64 then
    made.parts := array[tidebase_private.store_chunks(made.thread, made.namespace, made.channel, tidebase_private.read_body(made))];
  end if;
  return made;
end
$$;
comment on function tidebase_private.compose(tidebase.thread_values, tidebase.thread_values, jsonb, bytea[]) is
  'The value with its parts and its length; its new chunks are stored.';

create or replace function tidebase_private.require_changes(changes jsonb, contents bytea[])
returns void
language plpgsql volatile
as $$
begin
  if jsonb_typeof(changes) <> 'array' or jsonb_array_length(changes) > 1000 then
    perform tidebase_private.raise_invalid('changes', 'must be a list of up to 1000 values');
  elsif exists (
    select from jsonb_array_elements(changes) c (change)
    where not coalesce(tidebase_private.is_name(c.change ->> 'channel', 255) and octet_length(c.change ->> 'version') <= 255
      and tidebase_private.is_name(c.change ->> 'type', 255) and (c.change -> 'head')::integer between 0 and cardinality(contents) - 1
      and jsonb_typeof(c.change -> 'pieces') = 'array' and not exists (
        select from jsonb_array_elements(c.change -> 'pieces') p (piece)
        where not coalesce(case jsonb_typeof(p.piece)
          when 'number' then p.piece::integer between 0 and cardinality(contents) - 1
          when 'array' then jsonb_typeof(c.change -> 'base') = 'number' and (p.piece ->> 0)::bigint between 0 and (p.piece ->> 1)::bigint
        end, false)), false))
  then
    perform tidebase_private.raise_invalid('changes', 'must name for each value its channel, version, type, head and pieces');
  end if;
end
$$;
comment on function tidebase_private.require_changes(jsonb, bytea[]) is 'Raises TB002 unless values can be made like this; see put_checkpoint.';

-- The numbers of values that the checkpoint has in common with others: those of its parent, where it is there and the
-- version is the same, else the latest with that version.
create or replace function tidebase_private.kept_values(key uuid, namespace text, parent_id text, channels text[], versions text[])
returns table (channel text, value integer)
language sql stable
as $$
  select k.channel, coalesce(
    (select v.value
      from tidebase.thread_checkpoints c
      join tidebase.thread_values v on v.thread = c.thread and v.namespace = c.namespace and v.value = any (c.value_numbers)
      where c.thread = key and c.namespace = kept_values.namespace and c.checkpoint_id = kept_values.parent_id
        and v.channel = k.channel and v.version = k.version),
    (select v.value from tidebase.thread_values v
      where v.thread = key and v.namespace = kept_values.namespace and v.channel = k.channel and v.version = k.version
      order by v.value desc limit 1))
  from unnest(channels, versions) k (channel, version);
$$;
comment on function tidebase_private.kept_values(uuid, text, text, text[], text[]) is 'Where values are that were stored before; NULL: nowhere.';

-- Stores the values that are new, and returns the numbers of all that the checkpoint has; or the channels whose values are to
-- be sent whole, since what they were made from is not there any more.
create or replace function tidebase_private.put_values(
  chosen tidebase.threads, namespace text, parent_id text, channels text[], versions text[], changes jsonb, contents bytea[], seen_edition text)
returns tidebase.checkpoint_put
language plpgsql volatile
as $$
declare
  answer tidebase.checkpoint_put;
  kept integer[];
  bases tidebase.thread_values[];
  base tidebase.thread_values;
  made tidebase.thread_values;
  change jsonb;
  place bigint;
begin
  answer.edition := chosen.thread || '/' || chosen.edition;
  if cardinality(channels) > 0 then
    select array_agg(k.channel) filter (where k.value is null), array_agg(k.value) filter (where k.value is not null)
    into answer.channels, kept
    from tidebase_private.kept_values(chosen.thread, namespace, parent_id, channels, versions) k;
  end if;
  for change, place in select c.item, c.place from jsonb_array_elements(changes) with ordinality c (item, place) order by c.place
  loop
    continue when jsonb_typeof(change -> 'base') is distinct from 'number';
    select v.* into base from tidebase.thread_values v
    where v.thread = chosen.thread and v.namespace = put_values.namespace and v.value = (change -> 'base')::integer
      and v.channel = change ->> 'channel' and v.version = coalesce(change ->> 'base_version', v.version) and seen_edition = answer.edition;
    if base.thread is null then
      answer.channels := array_append(answer.channels, change ->> 'channel');
    elsif exists (select from jsonb_array_elements(change -> 'pieces') p (piece) where (p.piece ->> 1)::bigint > base.bytes) then
      perform tidebase_private.raise_invalid('changes', 'must take pieces of what is in the base');
    end if;
    bases[place] := base;
  end loop;
  if answer.channels is not null then
    answer.outcome := 'incomplete';
    return answer;
  end if;

  made.thread := chosen.thread;
  made.namespace := namespace;
  select v.value into made.value from tidebase.thread_values v
  where v.thread = chosen.thread and v.namespace = put_values.namespace
  order by v.value desc limit 1;
  made.value := coalesce(made.value, 0);
  answer.value_numbers := '{}';
  for change, place in select c.item, c.place from jsonb_array_elements(changes) with ordinality c (item, place) order by c.place
  loop
    made.value := made.value + 1;
    made.channel := change ->> 'channel';
    made.version := change ->> 'version';
    made.type := change ->> 'type';
    made.head := contents[(change -> 'head')::integer + 1];
    made := tidebase_private.compose(bases[place], made, change -> 'pieces', contents);
    perform tidebase_private.require_contents(array[made.head], 'changes', made.bytes);
    insert into tidebase.thread_values select made.*;
    answer.value_numbers := answer.value_numbers || made.value;
  end loop;
  answer.outcome := 'stored';
  answer.value_numbers := answer.value_numbers || coalesce(kept, '{}');
  return answer;
end
$$;
comment on function tidebase_private.put_values(tidebase.threads, text, text, text[], text[], jsonb, bytea[], text) is
  'Stores the values of a checkpoint: of the answer''s numbers the first are those of the changes. The caller holds the thread''s lock.';

-- Whether a checkpoint may be put that follows this one. One without a parent is the first of its namespace, if its writer
-- has found none there; else its writer did not look, and the newest is not its concern.
create or replace function tidebase_private.may_follow(parent_id text, newest_id text, seen_id text, is_fork boolean)
returns boolean
language sql immutable
as $$
  select newest_id is null
    or parent_id is not null and newest_id = parent_id
    or case when seen_id is null then parent_id is null or is_fork else newest_id = seen_id end;
$$;
comment on function tidebase_private.may_follow(text, text, text, boolean) is
  'Whether nobody else has put a checkpoint since the writer has read; see put_checkpoint.';

create or replace function tidebase.put_checkpoint(
  thread_id text, namespace text, checkpoint_id text, type text, content bytea, metadata jsonb, parent_id text default null,
  channels text[] default null, versions text[] default null, changes jsonb default null, contents bytea[] default null,
  edition text default null, seen_id text default null, run_id text default null, token bigint default null)
returns tidebase.checkpoint_put
language plpgsql volatile security definer
set search_path = pg_catalog, tidebase, pg_temp
set enable_seqscan = off
as $$
declare
  chosen threads;
  newest thread_checkpoints;
  there thread_checkpoints;
  answer checkpoint_put;
begin
  if not (tidebase_private.is_name(thread_id, 255) and tidebase_private.is_name(checkpoint_id, 255)
    and tidebase_private.is_name(type, 255) and tidebase_private.is_name(coalesce(parent_id, 'none'), 255))
  then
    perform tidebase_private.require_name(thread_id, 'thread_id', 255);
    perform tidebase_private.require_name(checkpoint_id, 'checkpoint_id', 255);
    perform tidebase_private.require_name(type, 'type', 255);
    perform tidebase_private.require_name(parent_id, 'parent_id', 255);
  end if;
  perform tidebase_private.require_namespace(namespace);
  if jsonb_typeof(metadata) is distinct from 'object' then
    perform tidebase_private.raise_invalid('metadata', 'must be an object');
  end if;
  if not tidebase_private.is_small(metadata) then
    perform tidebase_private.require_note(metadata, 'metadata');
  end if;
  changes := coalesce(changes, '[]');
  contents := coalesce(contents, '{}');
  perform tidebase_private.require_contents(contents || content, 'contents');
  if changes <> '[]' then
    perform tidebase_private.require_changes(changes, contents);
  end if;
  if cardinality(channels) is distinct from cardinality(versions) then
    perform tidebase_private.raise_invalid('channels and versions', 'must be two lists of the same length');
  end if;
  if not tidebase_private.is_durable() then
    perform tidebase_private.commit_durably();
  end if;
  if run_id is not null then
    perform tidebase_private.fence_shared(run_id, token);
  end if;
  chosen := tidebase_private.find_or_make_thread(thread_id);
  if run_id is distinct from chosen.owner_run_id then
    perform tidebase_private.own(chosen, run_id);
  end if;

  select c.* into newest from thread_checkpoints c
  where c.thread = chosen.thread and c.namespace = put_checkpoint.namespace
  order by c.number desc limit 1;
  select c.* into there from thread_checkpoints c
  where c.thread = chosen.thread and c.namespace = put_checkpoint.namespace and c.checkpoint_id = put_checkpoint.checkpoint_id;
  if (there.parent_id, there.type, there.content, there.metadata) is not distinct from (parent_id, type, content, metadata) then
    answer.outcome := 'stored';  -- the same call again: its answer was lost on the way
    answer.edition := chosen.thread || '/' || chosen.edition;
    answer.value_numbers := there.value_numbers[:jsonb_array_length(changes)];
    return answer;
  elsif there.thread is not null then
    if there.number <> newest.number then
      perform tidebase_private.raise_overtaken(thread_id, namespace, parent_id, newest.checkpoint_id);
    end if;
  elsif not coalesce(tidebase_private.may_follow(parent_id, newest.checkpoint_id, seen_id, metadata ->> 'source' = 'fork'), false) then
    perform tidebase_private.raise_overtaken(thread_id, namespace, parent_id, newest.checkpoint_id);
  end if;

  answer := tidebase_private.put_values(chosen, namespace, parent_id, channels, versions, changes, contents, edition);
  if answer.outcome <> 'stored' then
    return answer;
  end if;
  insert into thread_checkpoints as c (thread, namespace, number, checkpoint_id, parent_id, type, content, metadata, value_numbers)
  values (chosen.thread, put_checkpoint.namespace, coalesce(newest.number, 0) + 1, put_checkpoint.checkpoint_id, put_checkpoint.parent_id,
    put_checkpoint.type, put_checkpoint.content, put_checkpoint.metadata, answer.value_numbers)
  on conflict on constraint checkpoint_is_put_once do update
  set parent_id = excluded.parent_id, type = excluded.type, content = excluded.content, metadata = excluded.metadata,
    value_numbers = excluded.value_numbers;
  answer.value_numbers := answer.value_numbers[:jsonb_array_length(changes)];
  return answer;
end
$$;
comment on function tidebase.put_checkpoint(text, text, text, text, bytea, jsonb, text, text[], text[], jsonb, bytea[], text, text, text, bigint) is
  'Stores a checkpoint of a thread; a thread that is not there is made. It must follow the newest of its namespace (parent_id), or its writer must have seen the newest when it read (seen_id: as newest_id of get_checkpoint; empty: there was none; NULL: it did not read). One whose metadata has the source fork, and whose writer did not read, may follow any; so may one without a parent whose writer did not read. content: all of it but its large values. channels and versions: of values that were stored before, with that version. changes: values that are new, as [{"channel", "version", "type", "head": i, "base": n, "base_version": v, "pieces": [i, [from, to] ...]}, ...]: the body of each consists of contents, by their index from 0, and of bytes of the body of the value with the number base, which must be of this channel and of the edition that is given, and have come with base_version if that is given; the head is a content, too. run_id and token: the lease under which it is written; then nobody else writes as long as it is alive. The same checkpoint is put again only while it is the newest, or as it is. Commits synchronously. outcome: stored, or incomplete (nothing was stored: the values of these channels are to be sent whole). Errors: TB001, TB002, TB003 (the lease is lost; another run has the thread; or another worker has put a checkpoint meanwhile), TB004, TB005.';

create or replace function tidebase.put_checkpoint_writes(
  thread_id text, namespace text, checkpoint_id text, task_id text, task_path text, idxs integer[], channels text[], types text[],
  contents bytea[], run_id text default null, token bigint default null)
returns integer
language plpgsql volatile security definer
set search_path = pg_catalog, tidebase, pg_temp
set enable_seqscan = off
as $$
declare
  chosen threads;
  number integer;
begin
  perform tidebase_private.require_name(thread_id, 'thread_id', 255);
  perform tidebase_private.require_namespace(namespace);
  perform tidebase_private.require_name(checkpoint_id, 'checkpoint_id', 255);
  perform tidebase_private.require_name(task_id, 'task_id', 255);
  task_path := coalesce(task_path, '');
  perform tidebase_private.require_text(task_path, 'task_path');
  perform tidebase_private.require_contents(contents, 'contents');
  if (cardinality(idxs), cardinality(channels), cardinality(types)) is distinct from (cardinality(contents), cardinality(contents), cardinality(contents))
    or cardinality(contents) is null or array_position(idxs, null) is not null
    or exists (select from unnest(channels || types) t (name) where not tidebase_private.is_name(t.name, 255))
  then
    perform tidebase_private.raise_invalid('idxs, channels, types and contents', 'must be four lists of the same length, without NULL');
  end if;
  perform tidebase_private.commit_durably();
  if run_id is not null then
    perform tidebase_private.fence_shared(run_id, token);
  end if;
  -- Tasks that end at the same moment do not wait for each other: it is enough that the thread is not deleted.
  for try in 1..10 loop
    select t.* into chosen from threads t where t.thread_id = put_checkpoint_writes.thread_id for key share;
    exit when found;
    perform tidebase_private.find_or_make_thread(thread_id);
  end loop;
  if chosen.thread is null then
    perform tidebase_private.raise_thread_unsettled(thread_id);
  end if;
  perform tidebase_private.require_ownership(chosen, run_id);
  insert into thread_writes as w (thread, namespace, checkpoint_id, task_id, idx, channel, type, content, task_path)
  select chosen.thread, put_checkpoint_writes.namespace, put_checkpoint_writes.checkpoint_id, put_checkpoint_writes.task_id,
    given.idx, given.channel, given.type, given.content, put_checkpoint_writes.task_path
  from unnest(idxs, channels, types, contents) given (idx, channel, type, content)
  order by given.idx
  on conflict on constraint thread_writes_pkey do update
  set channel = excluded.channel, type = excluded.type, content = excluded.content
  where w.idx < 0;
  get diagnostics number = row_count;
  return number;
end
$$;
comment on function tidebase.put_checkpoint_writes(text, text, text, text, text, integer[], text[], text[], bytea[], text, bigint) is
  'Stores what a task wrote after a checkpoint, and returns how many of it are new. idxs, channels, types and contents are four lists of the same length. What is there at its idx stays; below zero it is replaced. The checkpoint may come later. run_id and token: as for put_checkpoint. Commits synchronously. Errors: TB001, TB002, TB003, TB004, TB005.';

-- One checkpoint with all that belongs to it: a scan of an index for each range of each value.
create or replace function tidebase_private.read_checkpoint(chosen tidebase.threads, c tidebase.thread_checkpoints)
returns tidebase.thread_checkpoint
language sql stable
as $$
  select chosen.thread_id, c.namespace, c.checkpoint_id, c.parent_id, c.number, c.created_at, c.type, c.content, c.metadata,
    (select n.checkpoint_id from tidebase.thread_checkpoints n
      where n.thread = c.thread and n.namespace = c.namespace
      order by n.number desc limit 1),
    chosen.thread || '/' || chosen.edition,
    v.numbers, v.channels, v.types, v.heads, v.bodies, w.task_ids, w.channels, w.types, w.contents
  from (
    select array_agg(v.value) as numbers, array_agg(v.channel) as channels, array_agg(v.type) as types,
      array_agg(v.head) as heads, array_agg(tidebase_private.read_body(v)) as bodies
    from tidebase.thread_values v
    where v.thread = c.thread and v.namespace = c.namespace and v.value = any (c.value_numbers)) v,
    (select array_agg(w.task_id order by w.task_path, w.task_id, w.idx) as task_ids,
      array_agg(w.channel order by w.task_path, w.task_id, w.idx) as channels,
      array_agg(w.type order by w.task_path, w.task_id, w.idx) as types,
      array_agg(w.content order by w.task_path, w.task_id, w.idx) as contents
    from tidebase.thread_writes w
    where w.thread = c.thread and w.namespace = c.namespace and w.checkpoint_id = c.checkpoint_id) w;
$$;
comment on function tidebase_private.read_checkpoint(tidebase.threads, tidebase.thread_checkpoints) is 'A checkpoint with its values and its pending writes.';

create or replace function tidebase.get_checkpoint(thread_id text, namespace text default '', checkpoint_id text default null)
returns setof tidebase.thread_checkpoint
language plpgsql stable security definer rows 1
set search_path = pg_catalog, tidebase, pg_temp
set enable_seqscan = off
as $$
declare
  chosen threads;
  part thread_checkpoints;
begin
  if not tidebase_private.is_name(thread_id, 255) then
    perform tidebase_private.require_name(thread_id, 'thread_id', 255);
  end if;
  namespace := coalesce(namespace, '');
  select t.* into chosen from threads t where t.thread_id = get_checkpoint.thread_id;
  part := tidebase_private.find_checkpoint_of(chosen.thread, namespace, checkpoint_id);
  if part.thread is not null then
    return next tidebase_private.read_checkpoint(chosen, part);
  end if;
end
$$;
comment on function tidebase.get_checkpoint(text, text, text) is
  'A checkpoint of a thread: the newest of a namespace (by default that of the graph itself), or that with the id. No row where there is none. Errors: TB002.';

create or replace function tidebase_private.find_checkpoint_of(thread uuid, namespace text, checkpoint_id text)
returns tidebase.thread_checkpoints
language plpgsql stable
as $$
declare
  part tidebase.thread_checkpoints;
begin
  if checkpoint_id is null then
    select c.* into part from tidebase.thread_checkpoints c
    where c.thread = find_checkpoint_of.thread and c.namespace = find_checkpoint_of.namespace
    order by c.number desc limit 1;
  else
    select c.* into part from tidebase.thread_checkpoints c
    where c.thread = find_checkpoint_of.thread and c.namespace = find_checkpoint_of.namespace
      and c.checkpoint_id = find_checkpoint_of.checkpoint_id;
  end if;
  return part;
end
$$;
comment on function tidebase_private.find_checkpoint_of(uuid, text, text) is 'The row of a checkpoint: the newest of a namespace, or that with the id.';

-- Chunks are never changed, and numbers of values are given away again only in another edition; or when what was committed is lost, as in
-- a failover, or was rolled back: then the version is another one.
create or replace function tidebase.get_checkpoint_beyond(
  thread_id text, namespace text default '', checkpoint_id text default null, edition text default null,
  known integer[] default null, versions text[] default null)
returns setof tidebase.thread_checkpoint_beyond
language plpgsql stable security definer rows 1
set search_path = pg_catalog, tidebase, pg_temp
set enable_seqscan = off
as $$
declare
  chosen threads;
  part thread_checkpoints;
  bare thread_checkpoints;
begin
  perform tidebase_private.require_name(thread_id, 'thread_id', 255);
  if array_ndims(known) > 1 or array_ndims(versions) > 1 or cardinality(known) > 1000 or cardinality(known) is distinct from cardinality(versions) then
    perform tidebase_private.raise_invalid('known and versions', 'must be two lists of the same length, of up to 1000');
  end if;
  select t.* into chosen from threads t where t.thread_id = get_checkpoint_beyond.thread_id;
  part := tidebase_private.find_checkpoint_of(chosen.thread, coalesce(namespace, ''), checkpoint_id);
  if part.thread is null then
    return;
  elsif edition is distinct from chosen.thread || '/' || chosen.edition then
    known := '{}';
  end if;
  bare := part;
  bare.value_numbers := '{}';
  return query
    select r.thread_id, r.namespace, r.checkpoint_id, r.parent_id, r.number, r.created_at, r.type, r.content, r.metadata, r.newest_id, r.edition,
      v.numbers, v.channels, v.types, v.heads, v.bodies, r.task_ids, r.write_channels, r.write_types, r.writes, v.bases
    from tidebase_private.read_checkpoint(chosen, bare) r,
      (select array_agg(v.value) as numbers, array_agg(v.channel) as channels, array_agg(v.type) as types, array_agg(v.head) as heads,
        array_agg(tidebase_private.read_parts(v, coalesce(b.parts, v.parts))) as bodies, array_agg(b.value) as bases
      from thread_values v
      left join lateral (
        select k.value, tidebase_private.parts_beyond(v, k) as parts
        from unnest(known, versions) g (value, version)
        join thread_values k on k.thread = v.thread and k.namespace = v.namespace and k.value = g.value
        where k.channel = v.channel and k.version = g.version
        order by k.value desc limit 1) b on b.parts is not null
      where v.thread = part.thread and v.namespace = part.namespace and v.value = any (part.value_numbers)) v;
end
$$;
comment on function tidebase.get_checkpoint_beyond(text, text, text, text, integer[], text[]) is
  'As get_checkpoint, for a client that remembers values. edition: of which they are. known and versions: their numbers, and the versions of their channels that they came with. Of a value that begins with all of one of them, only what comes after that is returned, and the number of that one in bases. Errors: TB002.';

create or replace function tidebase.has_checkpoint(thread_id text, namespace text, checkpoint_id text)
returns boolean
language plpgsql stable security definer
set search_path = pg_catalog, tidebase, pg_temp
set enable_seqscan = off
as $$
begin
  perform tidebase_private.require_name(thread_id, 'thread_id', 255);
  return exists (
    select from threads t
    join thread_checkpoints c on c.thread = t.thread
    where t.thread_id = has_checkpoint.thread_id and c.namespace = has_checkpoint.namespace and c.checkpoint_id = has_checkpoint.checkpoint_id);
end
$$;
comment on function tidebase.has_checkpoint(text, text, text) is 'Whether a checkpoint is stored. Errors: TB002.';

create or replace function tidebase.list_checkpoints(
  thread_id text default null, namespace text default null, checkpoint_id text default null, filter jsonb default null,
  before_id text default null, max integer default 100,
  after_thread_id text default null, after_namespace text default null, after_number integer default null)
returns setof tidebase.thread_checkpoint
language plpgsql stable security definer rows 100
set search_path = pg_catalog, tidebase, pg_temp
set enable_seqscan = off
set plan_cache_mode = force_custom_plan
as $$
begin
  max := coalesce(max, 100);
  if max not between 1 and 10000 then
    perform tidebase_private.raise_invalid('max', 'must be a number from 1 to 10000');
  elsif jsonb_typeof(filter) <> 'object' then
    perform tidebase_private.raise_invalid('filter', 'must be an object');
  elsif filter is not null then
    perform tidebase_private.require_note(filter, 'filter');
  end if;
  return query
    select r.*
    from (
      select t, c
      from threads t
      join thread_checkpoints c on c.thread = t.thread
      where (list_checkpoints.thread_id is null or t.thread_id = list_checkpoints.thread_id)
        and (after_thread_id is null or t.thread_id >= after_thread_id)
        and (after_thread_id is null or t.thread_id > after_thread_id or c.namespace > after_namespace
          or c.namespace = after_namespace and c.number < after_number)
        and (list_checkpoints.namespace is null or c.namespace = list_checkpoints.namespace)
        and (list_checkpoints.checkpoint_id is null or c.checkpoint_id = list_checkpoints.checkpoint_id)
        and (before_id is null or c.checkpoint_id < before_id)
        and (filter is null or c.metadata @> filter)
      order by t.thread_id, c.namespace, c.number desc
      limit list_checkpoints.max) l
    cross join lateral tidebase_private.read_checkpoint(l.t, l.c) r;
end
$$;
comment on function tidebase.list_checkpoints(text, text, text, jsonb, text, integer, text, text, integer) is
  'Checkpoints, the newest first: of one thread or (NULL) of all, of one namespace or of all, one after the other. filter: what their metadata must contain. before_id: only those whose id is less, which are those that were made before. max: 1 to 10000. after_thread_id, after_namespace, after_number: page on with those of the last row seen. Errors: TB002.';

-- What nothing needs any more: values that no checkpoint has, chunks that no value has.
create or replace function tidebase_private.sweep_thread(chosen tidebase.threads)
returns void
language plpgsql volatile
as $$
begin
  update tidebase.threads t set edition = t.edition + 1 where t.thread_id = chosen.thread_id;
  delete from tidebase.thread_values v
  using (
    select v.namespace, v.value from tidebase.thread_values v where v.thread = chosen.thread
    except
    select c.namespace, n.value from tidebase.thread_checkpoints c, unnest(c.value_numbers) n (value) where c.thread = chosen.thread) gone
  where v.thread = chosen.thread and v.namespace = gone.namespace and v.value = gone.value;
  delete from tidebase.thread_chunks k
  where k.thread = chosen.thread and not exists (
    select from (
      select v.namespace, v.channel, range_agg(p.range) as positions
      from tidebase.thread_values v, unnest(v.parts) p (range)
      where v.thread = chosen.thread
      group by v.namespace, v.channel) needed
    where needed.namespace = k.namespace and needed.channel = k.channel and needed.positions @> k.position);
end
$$;
comment on function tidebase_private.sweep_thread(tidebase.threads) is
  'Deletes what no checkpoint of the thread needs, and begins another edition. The caller holds the thread''s lock.';

-- Takes checkpoints away. What followed one of them has no parent any more.
create or replace function tidebase_private.drop_checkpoints(chosen tidebase.threads, namespace text, numbers integer[])
returns void
language plpgsql volatile
as $$
declare
  gone text[];
begin
  with dropped as (
    delete from tidebase.thread_checkpoints c
    where c.thread = chosen.thread and c.namespace = drop_checkpoints.namespace and c.number = any (numbers)
    returning c.checkpoint_id)
  select array_agg(d.checkpoint_id) into gone from dropped d;
  delete from tidebase.thread_writes w
  where w.thread = chosen.thread and w.namespace = drop_checkpoints.namespace and w.checkpoint_id = any (gone);
  update tidebase.thread_checkpoints c set parent_id = null
  where c.thread = chosen.thread and c.namespace = drop_checkpoints.namespace and c.parent_id = any (gone);
end
$$;
comment on function tidebase_private.drop_checkpoints(tidebase.threads, text, integer[]) is 'Deletes checkpoints with their writes. The caller has locked the whole thread.';

create or replace function tidebase_private.forget_thread(chosen tidebase.threads)
returns void
language plpgsql volatile
as $$
begin
  delete from tidebase.thread_writes t where t.thread = chosen.thread;
  delete from tidebase.thread_checkpoints t where t.thread = chosen.thread;
  delete from tidebase.thread_values t where t.thread = chosen.thread;
  delete from tidebase.thread_chunks t where t.thread = chosen.thread;
  delete from tidebase.threads t where t.thread_id = chosen.thread_id;
end
$$;
comment on function tidebase_private.forget_thread(tidebase.threads) is 'Deletes a thread with all that belongs to it. The caller has locked the whole of it.';

create or replace function tidebase.delete_thread(thread_id text, run_id text default null, token bigint default null)
returns boolean
language plpgsql volatile security definer
set search_path = pg_catalog, tidebase, pg_temp
set enable_seqscan = off
as $$
declare
  chosen threads;
begin
  if run_id is not null then
    perform tidebase_private.fence_shared(run_id, token);
  end if;
  chosen := tidebase_private.lock_thread(thread_id, whole => true);
  if chosen.thread is null then
    return false;
  end if;
  perform tidebase_private.require_ownership(chosen, run_id);
  perform tidebase_private.forget_thread(chosen);
  -- The run that was made to claim it has no other meaning. Its head comes after the thread here, so nobody is waited for.
  if exists (select from runs r where r.run_id = chosen.owner_run_id and r.workflow = 'langgraph.thread') then
    perform from run_heads h where h.run_id = chosen.owner_run_id and h.status in ('pending', 'failed') for update skip locked;
    if found then
      perform tidebase_private.forget(array[chosen.owner_run_id]);
    end if;
  end if;
  return true;
end
$$;
comment on function tidebase.delete_thread(text, text, bigint) is
  'Deletes a thread with all its checkpoints, and the run that was made to claim it (workflow langgraph.thread) unless it is at work; false where there is none. run_id and token: as for put_checkpoint. Errors: TB001, TB003 (the lease is lost, or another run has the thread), TB004, TB005.';

create or replace function tidebase.delete_checkpoints_of_runs(run_ids text[], max integer default 1000)
returns integer
language plpgsql volatile security definer
set search_path = pg_catalog, tidebase, pg_temp
set enable_seqscan = off
as $$
declare
  chosen threads;
  dropped integer := 0;
  part record;
begin
  max := coalesce(max, 1000);
  perform tidebase_private.require_list(run_ids, 'run_ids');
  if max not between 1 and 10000 then
    perform tidebase_private.raise_invalid('max', 'must be a number from 1 to 10000');
  end if;
  for chosen in
    select t.* from threads t
    where t.thread in (
      select c.thread from thread_checkpoints c
      where c.metadata ? 'run_id' and left(c.metadata ->> 'run_id', 255) = any (run_ids))
    order by t.thread_id
    for update
  loop
    perform tidebase_private.require_ownership(chosen, null);
    for part in
      select c.namespace, (array_agg(c.number order by c.number))[:max - dropped] as numbers
      from thread_checkpoints c
      where c.thread = chosen.thread and c.metadata ? 'run_id' and left(c.metadata ->> 'run_id', 255) = any (run_ids)
      group by c.namespace
      order by c.namespace
    loop
      perform tidebase_private.drop_checkpoints(chosen, part.namespace, part.numbers);
      dropped := dropped + cardinality(part.numbers);
    end loop;
    perform tidebase_private.sweep_thread(chosen);
    exit when dropped >= max;
  end loop;
  return dropped;
end
$$;
comment on function tidebase.delete_checkpoints_of_runs(text[], integer) is
  'Deletes the checkpoints whose metadata has one of these run_ids (of LangGraph, up to 255 bytes; up to 1000 of them), with their writes, at most max (1 to 10000); returns how many. Call it again while it returns max. What followed them stays, without a parent. Errors: TB002, TB003 (a run has one of the threads).';

create or replace function tidebase.copy_thread(source_thread_id text, target_thread_id text)
returns integer
language plpgsql volatile security definer
set search_path = pg_catalog, tidebase, pg_temp
set enable_seqscan = off
as $$
declare
  source threads;
  target threads;
  number integer;
begin
  perform tidebase_private.require_name(source_thread_id, 'source_thread_id', 255);
  perform tidebase_private.require_name(target_thread_id, 'target_thread_id', 255);
  perform tidebase_private.commit_durably();
  perform from threads t where t.thread_id in (source_thread_id, target_thread_id) order by t.thread_id for update;
  source := tidebase_private.lock_thread(source_thread_id);
  if source.thread is null then
    return 0;
  end if;
  target := tidebase_private.lock_thread(target_thread_id);
  if target.copied_from = source.thread then  -- the same call again
    return (select count(*)::integer from thread_checkpoints c where c.thread = target.thread);
  elsif exists (select from thread_checkpoints c where c.thread = target.thread) then
    perform tidebase_private.raise_invalid('target_thread_id', 'must be of a thread that has no checkpoints');
  elsif target.thread is not null then
    perform tidebase_private.require_ownership(target, null);
    perform tidebase_private.forget_thread(target);
  end if;
  insert into threads (thread_id, copied_from) values (target_thread_id, source.thread) returning * into target;
  insert into thread_chunks (thread, namespace, channel, position, content)
  select target.thread, k.namespace, k.channel, k.position, k.content from thread_chunks k where k.thread = source.thread;
  insert into thread_values (thread, namespace, value, channel, version, type, head, parts, bytes)
  select target.thread, v.namespace, v.value, v.channel, v.version, v.type, v.head, v.parts, v.bytes
  from thread_values v where v.thread = source.thread;
  insert into thread_writes (thread, namespace, checkpoint_id, task_id, idx, channel, type, content, task_path)
  select target.thread, w.namespace, w.checkpoint_id, w.task_id, w.idx, w.channel, w.type, w.content, w.task_path
  from thread_writes w where w.thread = source.thread;
  insert into thread_checkpoints (thread, namespace, number, checkpoint_id, parent_id, type, content, metadata, value_numbers, created_at)
  select target.thread, c.namespace, c.number, c.checkpoint_id, c.parent_id, c.type, c.content, c.metadata, c.value_numbers, c.created_at
  from thread_checkpoints c where c.thread = source.thread;
  get diagnostics number = row_count;
  return number;
end
$$;
comment on function tidebase.copy_thread(text, text) is
  'Makes a thread with all checkpoints and writes of another one, and returns how many checkpoints it has; 0 where there is no source. The target must have none. Errors: TB002, TB003 (a run has the target).';

-- The checkpoints that keep_latest leaves: of each namespace the newest, and those before it that it is made from. (A
-- DeltaChannel keeps what was added since a snapshot of it in the writes of that many steps, and counts them.)
create or replace function tidebase_private.kept_checkpoints(key uuid)
returns table (namespace text, number integer)
language sql stable
as $$
  with recursive newest as (
    select n.namespace, c.*
    from (select distinct c.namespace from tidebase.thread_checkpoints c where c.thread = key) n
    cross join lateral (
      select c.number, c.parent_id, (
        select coalesce(max((k.counts ->> 1)::integer), 0)
        from jsonb_each(case when jsonb_typeof(c.metadata -> 'counters_since_delta_snapshot') = 'object'
          then c.metadata -> 'counters_since_delta_snapshot' else '{}' end) k (channel, counts)) as steps
      from tidebase.thread_checkpoints c
      where c.thread = key and c.namespace = n.namespace
      order by c.number desc limit 1) c
  ), kept as (
    select n.namespace, n.number, n.parent_id, n.steps from newest n
    union all
    select c.namespace, c.number, c.parent_id, k.steps - 1
    from kept k
    join tidebase.thread_checkpoints c on c.thread = key and c.namespace = k.namespace and c.checkpoint_id = k.parent_id
    where k.steps > 0
  )
  select k.namespace, k.number from kept k;
$$;
comment on function tidebase_private.kept_checkpoints(uuid) is 'What pruning a thread leaves of each of its namespaces.';

-- The namespaces of calls of subgraphs (their name ends with the task's id, after a colon) whose checkpoint of the graph
-- itself goes, or is gone, too.
create or replace function tidebase_private.finished_calls(key uuid)
returns setof text
language sql stable
as $$
  select n.namespace
  from (select distinct c.namespace from tidebase.thread_checkpoints c where c.thread = key and strpos(c.namespace, ':') > 0) n
  cross join lateral (
    select c.metadata -> 'parents' ->> '' as root_id from tidebase.thread_checkpoints c
    where c.thread = key and c.namespace = n.namespace
    order by c.number desc limit 1) newest
  join tidebase.thread_checkpoints root on root.thread = key and root.namespace = '' and root.checkpoint_id = newest.root_id
  where root.number not in (select k.number from tidebase_private.kept_checkpoints(key) k where k.namespace = '');
$$;
comment on function tidebase_private.finished_calls(uuid) is 'What pruning a thread takes away as a whole.';

create or replace function tidebase_private.prune_thread(chosen tidebase.threads, max integer)
returns integer
language plpgsql volatile
as $$
declare
  part record;
  dropped integer := 0;
  calls text[] := array(select tidebase_private.finished_calls(chosen.thread));
begin
  for part in
    select c.namespace, (array_agg(c.number order by c.number))[:max] as numbers
    from tidebase.thread_checkpoints c
    where c.thread = chosen.thread and (c.namespace = any (calls) or (c.namespace, c.number) not in (
      select k.namespace, k.number from tidebase_private.kept_checkpoints(chosen.thread) k))
    group by c.namespace
    order by c.namespace desc  -- calls know by the graph's own checkpoints whether they are over
  loop
    exit when dropped >= max;
    perform tidebase_private.drop_checkpoints(chosen, part.namespace, part.numbers[:max - dropped]);
    dropped := dropped + least(cardinality(part.numbers), max - dropped);
  end loop;
  if dropped > 0 then
    perform tidebase_private.sweep_thread(chosen);
  end if;
  return dropped;
end
$$;
comment on function tidebase_private.prune_thread(tidebase.threads, integer) is 'Takes old checkpoints of a thread away, at most max. The caller holds its lock.';

create or replace function tidebase.prune_threads(thread_ids text[], strategy text default 'keep_latest', max integer default 1000)
returns integer
language plpgsql volatile security definer
set search_path = pg_catalog, tidebase, pg_temp
set enable_seqscan = off
as $$
declare
  chosen threads;
  dropped integer := 0;
begin
  max := coalesce(max, 1000);
  strategy := coalesce(strategy, 'keep_latest');
  perform tidebase_private.require_list(thread_ids, 'thread_ids');
  if strategy not in ('keep_latest', 'delete') then
    perform tidebase_private.raise_invalid('strategy', 'must be keep_latest or delete');
  elsif max not between 1 and 10000 then
    perform tidebase_private.raise_invalid('max', 'must be a number from 1 to 10000');
  end if;
  for chosen in
    select t.* from threads t where t.thread_id = any (thread_ids) order by t.thread_id for update
  loop
    if strategy = 'delete' then
      perform tidebase_private.require_ownership(chosen, null);
      dropped := dropped + (select count(*)::integer from thread_checkpoints c where c.thread = chosen.thread);
      perform tidebase_private.forget_thread(chosen);
    else
      dropped := dropped + tidebase_private.prune_thread(chosen, max - dropped);
    end if;
    exit when dropped >= max;
  end loop;
  return dropped;
end
$$;
comment on function tidebase.prune_threads(text[], text, integer) is
  'Takes old checkpoints of these threads away (up to 1000), oldest first, and returns how many. strategy: keep_latest keeps the newest of each namespace, with those before it that a DeltaChannel is made from; the namespaces of subgraphs go with the checkpoint that called them. delete takes whole threads. max: about how many at a time, 1 to 10000; call it again while it returns as many. A worker that is at a thread may go on. Errors: TB002, TB003 (delete: a run has one of the threads).';

select tidebase_private.allow('function tidebase.claim_thread', 'worker');
select tidebase_private.allow('function tidebase.put_checkpoint', 'worker');
select tidebase_private.allow('function tidebase.put_checkpoint_writes', 'worker');
select tidebase_private.allow('function tidebase.get_checkpoint', 'worker', 'operator', 'reader');
select tidebase_private.allow('function tidebase.get_checkpoint_beyond', 'worker', 'operator', 'reader');
select tidebase_private.allow('function tidebase.has_checkpoint', 'worker', 'operator', 'reader');
select tidebase_private.allow('function tidebase.list_checkpoints', 'worker', 'operator', 'reader');
select tidebase_private.allow('function tidebase.delete_thread', 'worker', 'operator');
select tidebase_private.allow('function tidebase.delete_checkpoints_of_runs', 'worker', 'operator');
select tidebase_private.allow('function tidebase.copy_thread', 'worker', 'operator');
select tidebase_private.allow('function tidebase.prune_threads', 'worker', 'operator');
