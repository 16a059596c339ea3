-- The canonical form of a JSON value, and its hash: how the database knows whether a step has the same input.

-- jsonb already has one order of keys (by length, then bytes), one spelling of white space and one of each duplicate.
-- What it keeps is the scale of a number: 1.0 and 1 are equal but print differently. So the zeros that end a fraction
-- are cut off. The pattern takes whole strings in its first branch, so nothing inside a string is touched; a number
-- never prints with an exponent. A pattern with a backslash is written as E'', which standard_conforming_strings does not
-- change. Most inputs have no such zero and never reach the pattern.
create or replace function tidebase_private.cut_zeros(printed text)
returns text
language sql immutable
as $$
  select case when printed collate "C" like '%.%0%'
    then regexp_replace(printed, E'("(?:[^"\\\\]|\\\\.)*")|([.][0-9]*[1-9])0+(?![0-9])|[.]0+(?![0-9])', E'\\1\\2', 'g')
    else printed end;
$$;
comment on function tidebase_private.cut_zeros(text) is 'JSON as jsonb prints it, without the zeros that end a fraction.';

create or replace function tidebase_private.canonical(value jsonb)
returns text
language plpgsql immutable
as $$
declare
  printed text := value::text;
begin
  if printed collate "C" not like '%.%0%' then
    return printed;
  elsif pg_column_size(value) > 65536 then
    return tidebase_private.canonical_part(value, 8);
  end if;
  return tidebase_private.cut_zeros(printed);
end
$$;
comment on function tidebase_private.canonical(jsonb) is
  'One text for all equal jsonb values: jsonb''s own output, with the zeros that end a fraction cut off (1.50 is 1.5, 1.0 is 1).';

-- The pattern takes longer for each match the longer the text is, so a large value is done in parts: to a few levels,
-- for each level copies what is below it.
create or replace function tidebase_private.canonical_part(value jsonb, levels integer)
returns text
language plpgsql immutable
as $$
begin
  if levels = 0 or pg_column_size(value) <= 65536 or jsonb_typeof(value) not in ('array', 'object') then
    return tidebase_private.cut_zeros(value::text);
  elsif jsonb_typeof(value) = 'object' then
    return (
      select '{' || string_agg(to_jsonb(p.key)::text || ': ' || tidebase_private.canonical_part(p.value, levels - 1), ', '
        order by p.place) || '}'
      from jsonb_each(value) with ordinality p (key, value, place));
  end if;
  return (
    select '[' || string_agg(tidebase_private.canonical_part(p.value, levels - 1), ', ' order by p.place) || ']'
    from jsonb_array_elements(value) with ordinality p (value, place));
end
$$;
comment on function tidebase_private.canonical_part(jsonb, integer) is
  'The canonical form of a value, put together from those of its parts where it is large. levels: so deep, at most.';

create or replace function tidebase_private.hash_input(input jsonb)
returns bytea
language plpgsql immutable
as $$
begin
  return sha256(convert_to(tidebase_private.canonical(coalesce(input, 'null')), 'UTF8'));
end
$$;
comment on function tidebase_private.hash_input(jsonb) is
  'SHA-256 of the canonical form of an input; SQL NULL counts as the JSON null.';
