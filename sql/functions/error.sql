-- Errors: SQLSTATE class TB, a message for people, one JSON object for programs, and what to do next.
--
--   TB001 run not found            TB007 step not begun or already running
--   TB002 invalid argument         TB008 review not open
--   TB003 lease lost               TB009 not entitled
--   TB004 run cancelled            TB010 budget exhausted
--   TB005 run is final             TB011 version conflict
--   TB006 input mismatch           TB012 gate, stream, snapshot, child, schedule or channel not found
--   TB013 duplicate                TB014 a step's effect is undecided

create or replace function tidebase_private.raise(code text, message text, detail jsonb, hint text)
returns void
language plpgsql volatile
as $$
begin
  if octet_length(message) > 2000 or octet_length(detail::text) > 2000 then  -- a name that somebody passed is in it
    message := left(message, 500) || ' ...';
    detail := (
      select jsonb_object_agg(d.key, case when jsonb_typeof(d.value) = 'string' then to_jsonb(left(d.value #>> '{}', 255)) else d.value end)
      from jsonb_each(detail) d);
  end if;
  raise exception using errcode = code, message = message, detail = detail::text, hint = hint;
end
$$;
comment on function tidebase_private.raise(text, text, jsonb, text) is
  'Raises a Tidebase error: SQLSTATE, message, DETAIL as one JSON object, HINT. Texts that are too long to be read are cut.';

create or replace function tidebase_private.raise_invalid(parameter text, rule text)
returns void
language plpgsql volatile
as $$
begin
  perform tidebase_private.raise('TB002', format('%s %s', parameter, rule),
    jsonb_build_object('parameter', parameter, 'rule', rule), format('Call again with another %s.', parameter));
end
$$;
comment on function tidebase_private.raise_invalid(text, text) is 'Raises TB002: the parameter breaks the rule, e.g. "name must not be empty".';

create or replace function tidebase_private.raise_run_not_found(run_id text)
returns void
language plpgsql volatile
as $$
begin
  perform tidebase_private.raise('TB001', format('run %s does not exist', coalesce(quote_literal(left(run_id, 255)), 'NULL')),
    jsonb_build_object('run_id', left(run_id, 255)), 'Create it with create_run, or check the id.');
end
$$;
comment on function tidebase_private.raise_run_not_found(text) is 'Raises TB001.';

create or replace function tidebase_private.is_name(value text, max_bytes integer)
returns boolean
language sql immutable
as $$
  select value is not null and btrim(value) <> '' and octet_length(value) <= max_bytes;
$$;
comment on function tidebase_private.is_name(text, integer) is 'Whether a text can name something: not NULL, not blank, not too long for an index.';

create or replace function tidebase_private.require_name(value text, parameter text, max_bytes integer)
returns void
language plpgsql volatile
as $$
begin
  if not tidebase_private.is_name(value, max_bytes) then
    perform tidebase_private.raise_invalid(parameter, format('must be a text of 1 to %s bytes that is not blank', max_bytes));
  end if;
end
$$;
comment on function tidebase_private.require_name(text, text, integer) is 'Raises TB002 unless the text can name something.';

-- What a payload may be is what every client can read: so many bytes stored and printed, no number longer than Python's
-- int takes (4300 digits), no deeper nesting than its decoder allows. jsonb itself keeps 1e131071 in 12 bytes. The rest is
-- looked at only where something can be wrong at all: a level takes eight bytes at least.
create or replace function tidebase_private.is_small(value jsonb)
returns boolean
language sql stable
as $$
  select pg_column_size(value) <= 3500 and octet_length(value::text) <= 4300;
$$;
comment on function tidebase_private.is_small(jsonb) is
  'Whether a payload is so small that require_payload has nothing to look at; NULL for NULL.';

-- What is printed at once is small, so that it can be refused before it fills the memory.
create or replace function tidebase_private.printed_bytes(value jsonb, parameter text)
returns bigint
language plpgsql stable
as $$
declare
  printed text;
begin
  if pg_column_size(value) > 16384 and jsonb_typeof(value) = 'array' then
    return (
      select coalesce(sum(2 + case when pg_column_size(e.item) <= 100 and octet_length(e.item::text) <= 4300
        then octet_length(e.item::text) else tidebase_private.printed_bytes(e.item, parameter) end), 0)::bigint
      from jsonb_array_elements(value) e (item));
  elsif pg_column_size(value) > 16384 and jsonb_typeof(value) = 'object' then
    return (
      select coalesce(sum(6 + octet_length(m.key) + tidebase_private.printed_bytes(m.item, parameter)), 0)::bigint
      from jsonb_each(value) m (key, item));
  end if;
  printed := value::text;
  if octet_length(printed) > 4300 and jsonb_typeof(value) <> 'string' and printed ~ '[0-9]{200}' and exists (
    select from jsonb_path_query(value, 'strict $.** ? (@.type() == "number")') n (item)
    where length(translate(n.item::text, '-.', '')) > 4300)
  then
    perform tidebase_private.raise_invalid(parameter, 'must have no number of more than 4300 digits');
  end if;
  return octet_length(printed)::bigint;
end
$$;
comment on function tidebase_private.printed_bytes(jsonb, text) is
  'About how many bytes a payload has as text. Raises TB002 when a number in it has more than 4300 digits.';

-- The limit is looked up only for what is large, so one below a million has no effect.
create or replace function tidebase_private.require_payload(value jsonb, parameter text)
returns void
language plpgsql stable
as $$
declare
  size bigint := pg_column_size(value)::bigint;
  most bigint := 1000000::bigint;
begin
  if tidebase_private.is_small(value) then
    return;
  elsif jsonb_path_exists(value, 'strict $.**{500}') then
    perform tidebase_private.raise_invalid(parameter, 'must not be nested in more than 500 levels');
  end if;
  size := greatest(size, tidebase_private.printed_bytes(value, parameter));
  if size > most then
    most := coalesce((select s.value::bigint from tidebase_private.settings s where s.name = 'max_payload_bytes'), 67108864);
  end if;
  if size > most then
    perform tidebase_private.raise_invalid(parameter, format('must take no more than %s bytes', most));
  end if;
end
$$;
comment on function tidebase_private.require_payload(jsonb, text) is
  'Raises TB002 when a payload is more than every client can read: nested in more than 500 levels, with a number of more than 4300 digits, or with more bytes (as jsonb before compression, or as text) than the setting max_payload_bytes, which is 64 MB unless set in tidebase_private.settings, and counts from a million on.';

-- What stands in lists beside a run, a gate or a version: a page of them must stay a page.
create or replace function tidebase_private.require_note(value jsonb, parameter text)
returns void
language plpgsql stable
as $$
begin
  if tidebase_private.is_small(value) then
    return;
  elsif pg_column_size(value) > 1000000 then
    perform tidebase_private.raise_invalid(parameter, 'must take no more than 1000000 bytes');
  end if;
  perform tidebase_private.require_payload(value, parameter);
end
$$;
comment on function tidebase_private.require_note(jsonb, text) is
  'Raises TB002 when a JSON value that is shown in lists takes more than a million bytes, or is no payload.';

create or replace function tidebase_private.require_list(value text[], parameter text)
returns void
language plpgsql volatile
as $$
begin
  if array_ndims(value) > 1 then
    perform tidebase_private.raise_invalid(parameter, 'must be a list, not a list of lists');
  elsif array_position(value, null) is not null or '' = any (value) or cardinality(value) > 1000 or pg_column_size(value) > 1000000 then
    perform tidebase_private.raise_invalid(parameter, 'must be a list of up to 1000 texts that are not empty, no longer than 1000000 bytes in all');
  end if;
end
$$;
comment on function tidebase_private.require_list(text[], text) is 'Raises TB002 unless it is NULL or a plain list of up to 1000 texts that are not empty, and not longer than a million bytes.';

create or replace function tidebase_private.require_text(value text, parameter text)
returns void
language plpgsql stable
as $$
begin
  if octet_length(value) > 1000000 then
    perform tidebase_private.raise_invalid(parameter, 'must be no longer than 1000000 bytes');
  end if;
end
$$;
comment on function tidebase_private.require_text(text, text) is 'Raises TB002 when a text for people is longer than a million bytes.';

-- Infinity, and years that other clients' calendars do not have.
create or replace function tidebase_private.require_moment(value timestamptz, parameter text)
returns void
language plpgsql volatile
as $$
begin
  if value < '0001-01-02 00:00+00' or value >= '9999-12-31 00:00+00' then
    perform tidebase_private.raise_invalid(parameter, 'must be a time between the years 1 and 9999');
  end if;
end
$$;
comment on function tidebase_private.require_moment(timestamptz, text) is 'Raises TB002 when a point in time is infinite, or of a year that not every client can read.';

create or replace function tidebase_private.require_interval(value interval, parameter text, lowest interval, highest interval)
returns void
language plpgsql volatile
as $$
begin
  if value is null or value < lowest or value > highest then
    perform tidebase_private.raise_invalid(parameter, format('must be an interval from %s to %s', lowest, highest));
  end if;
end
$$;
comment on function tidebase_private.require_interval(interval, text, interval, interval) is
  'Raises TB002 unless the interval is within the bounds.';
