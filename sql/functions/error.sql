-- Errors: SQLSTATE class TB, a message for people, one JSON object for programs, and what to do next.
--
--   TB001 run not found            TB007 step not begun or already running
--   TB002 invalid argument         TB008 review not open
--   TB003 lease lost               TB009 not entitled
--   TB004 run cancelled            TB010 budget exhausted
--   TB005 run is final             TB011 version conflict
--   TB006 input mismatch           TB012 gate, stream, snapshot or child not found
--   TB014 a step's effect is undecided

create or replace function tidebase_private.raise(code text, message text, detail jsonb, hint text)
returns void
language plpgsql volatile
as $$
begin
  raise exception using errcode = code, message = message, detail = detail::text, hint = hint;
end
$$;
comment on function tidebase_private.raise(text, text, jsonb, text) is
  'Raises a Tidebase error: SQLSTATE, message, DETAIL as one JSON object, HINT.';

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

-- The limit is looked up only for what is large: callers ask first whether pg_column_size() is above a million, which
-- costs nothing. So a limit below that has no effect.
create or replace function tidebase_private.require_size(value jsonb, parameter text)
returns void
language plpgsql stable
as $$
declare
  most bigint := coalesce((select s.value::bigint from tidebase_private.settings s where s.name = 'max_payload_bytes'), 67108864);
begin
  if pg_column_size(value) > most then
    perform tidebase_private.raise_invalid(parameter, format('must take no more than %s bytes', most));
  end if;
end
$$;
comment on function tidebase_private.require_size(jsonb, text) is
  'Raises TB002 when a payload takes more bytes (as jsonb, before compression) than the setting max_payload_bytes, which is 64 MB unless set in tidebase_private.settings, and counts from a million on.';

create or replace function tidebase_private.require_list(value text[], parameter text)
returns void
language plpgsql volatile
as $$
begin
  if array_ndims(value) > 1 then
    perform tidebase_private.raise_invalid(parameter, 'must be a list, not a list of lists');
  elsif array_position(value, null) is not null or '' = any (value) or cardinality(value) > 1000 then
    perform tidebase_private.raise_invalid(parameter, 'must be a list of up to 1000 texts that are not empty');
  end if;
end
$$;
comment on function tidebase_private.require_list(text[], text) is 'Raises TB002 unless it is NULL or a plain list of up to 1000 texts that are not empty.';

create or replace function tidebase_private.require_text(value text, parameter text)
returns void
language plpgsql volatile
as $$
begin
  if octet_length(value) > 1000000 then
    perform tidebase_private.raise_invalid(parameter, 'must be no longer than 1000000 bytes');
  end if;
end
$$;
comment on function tidebase_private.require_text(text, text) is 'Raises TB002 when a text for people is longer than a million bytes.';

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
