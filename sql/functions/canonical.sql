-- The canonical form of a JSON value, and its hash: how the database knows whether a step has the same input.

-- jsonb already has one order of keys (by length, then bytes), one spelling of white space and one of each duplicate.
-- What it keeps is the scale of a number: 1.0 and 1 are equal but print differently. So the zeros that end a fraction
-- are cut off. The pattern takes whole strings in its first branch, so nothing inside a string is touched; a number
-- never prints with an exponent. A pattern with a backslash is written as E'', which standard_conforming_strings does not
-- change. Most inputs have no such zero and never reach the pattern.
create or replace function tidebase_private.canonical(value jsonb)
returns text
language plpgsql immutable
as $$
declare
  canonical text := value::text;
begin
  if canonical collate "C" like '%.%0%' then
    canonical := regexp_replace(canonical, E'("(?:[^"\\\\]|\\\\.)*")|([.][0-9]*[1-9])0+(?![0-9])|[.]0+(?![0-9])', E'\\1\\2', 'g');
  end if;
  return canonical;
end
$$;
comment on function tidebase_private.canonical(jsonb) is
  'One text for all equal jsonb values: jsonb''s own output, with the zeros that end a fraction cut off (1.50 is 1.5, 1.0 is 1).';

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
