-- Changes: what one JSON document differs in from another, applied, composed and found; and merge patches (RFC 7396).
--
-- The form of a change:
--
--   {"key": change, ...}   in an object, these members change; {} is no change, of whatever value
--   [value]                the value becomes this one
--   []                     the member goes
--   [keep, tail]           of an array or a string, this many elements or characters stay, and the tail follows:
--                          a conversation or a text that grows costs what was added to it

-- Whether two values are the same to the last zero: 1.0 and 1 are equal, but do not read back alike.
create or replace function tidebase_private.is_same(one jsonb, other jsonb)
returns boolean
language sql immutable
as $$
  select row(one)::record operator(pg_catalog.*=) row(other)::record;
$$;
comment on function tidebase_private.is_same(jsonb, jsonb) is 'Whether two values have the same image, the scale of numbers included.';

create or replace function tidebase_private.apply_change(value jsonb, change jsonb)
returns jsonb
language plpgsql immutable
as $$
declare
  keep integer;
  removed text[];
  changed jsonb;
begin
  if change = '{}' then
    return value;
  elsif jsonb_typeof(change) = 'object' then
    select array_agg(c.key) filter (where c.value = '[]'),
      jsonb_object_agg(c.key, tidebase_private.apply_change(apply_change.value -> c.key, c.value)) filter (where c.value <> '[]')
    into removed, changed
    from jsonb_each(change) c;
    return (value - coalesce(removed, array[]::text[])) || coalesce(changed, '{}');
  elsif jsonb_array_length(change) = 1 then
    return change -> 0;
  end if;
  keep := (change -> 0)::integer;
  if jsonb_typeof(value) = 'string' then
    return to_jsonb(left(value #>> array[]::text[], keep) || (change ->> 1));
  elsif keep = jsonb_array_length(value) then
    return value || (change -> 1);
  end if;
  return (
    select coalesce(jsonb_agg(e.value order by e.position), '[]')
    from jsonb_array_elements(apply_change.value) with ordinality as e (value, position)
    where e.position <= keep) || (change -> 1);
end
$$;
comment on function tidebase_private.apply_change(jsonb, jsonb) is 'The value after a change.';

-- Two changes, one after the other, as one: the same whatever they are applied to, which RFC 7396 patches do not allow.
create or replace function tidebase_private.compose_changes(first jsonb, second jsonb)
returns jsonb
language plpgsql immutable
as $$
declare
  kept integer;
  keep integer;
begin
  if first is null or first = '{}' then
    return second;
  elsif second is null or second = '{}' then
    return first;
  elsif jsonb_typeof(second) = 'object' and jsonb_typeof(first) = 'object' then
    return first || (
      select coalesce(jsonb_object_agg(c.key, tidebase_private.compose_changes(first -> c.key, c.value)), '{}')
      from jsonb_each(second) c);
  elsif jsonb_typeof(second) = 'array' and jsonb_array_length(second) < 2 then
    return second;
  elsif jsonb_array_length(first) = 1 then
    return jsonb_build_array(tidebase_private.apply_change(first -> 0, second));
  end if;
  kept := (first -> 0)::integer;
  keep := (second -> 0)::integer;
  if keep <= kept then
    return second;
  end if;
  return jsonb_build_array(kept,
    tidebase_private.apply_change(first -> 1, jsonb_build_array(keep - kept, second -> 1)));
end
$$;
comment on function tidebase_private.compose_changes(jsonb, jsonb) is 'One change that does what two do, one after the other; NULL is no change.';

-- What made one value the other. A document may be nested deeper than functions can call themselves: below 50 levels
-- a difference is the whole value.
create or replace function tidebase_private.find_change(old jsonb, new jsonb, depth integer default 0)
returns jsonb
language plpgsql immutable
as $$
declare
  keep integer;
begin
  if tidebase_private.is_same(old, new) then
    return null;
  elsif depth < 50 and jsonb_typeof(old) = 'object' and jsonb_typeof(new) = 'object' then
    return (
      select jsonb_object_agg(key, case
        when n.value is null then '[]'
        when o.value is null then jsonb_build_array(n.value)
        else tidebase_private.find_change(o.value, n.value, depth + 1)
      end)
      from jsonb_each(old) o
      full join jsonb_each(new) n using (key)
      where o.value is null or n.value is null or not tidebase_private.is_same(o.value, n.value));
  elsif jsonb_typeof(old) = 'array' and jsonb_typeof(new) = 'array' then
    select (pair.position - 1)::integer into keep
    from rows from (jsonb_array_elements(old), jsonb_array_elements(new)) with ordinality as pair (old, new, position)
    where not tidebase_private.is_same(pair.old, pair.new)
    order by pair.position
    limit 1;
    if keep > 0 then
      return jsonb_build_array(keep, (
        select coalesce(jsonb_agg(e.value order by e.position), '[]')
        from jsonb_array_elements(new) with ordinality as e (value, position)
        where e.position > keep));
    end if;
  elsif jsonb_typeof(old) = 'string' and jsonb_typeof(new) = 'string' and old <> '""'
    and starts_with(new #>> array[]::text[], old #>> array[]::text[])
  then
    keep := length(old #>> array[]::text[]);
    return jsonb_build_array(keep, substr(new #>> array[]::text[], keep + 1));
  end if;
  return jsonb_build_array(new);
end
$$;
comment on function tidebase_private.find_change(jsonb, jsonb, integer) is 'The change that makes the first value the second; NULL when they are the same.';

-- What a merge patch (RFC 7396) changes in a value, looking only at what the patch names.
create or replace function tidebase_private.change_of_patch(value jsonb, patch jsonb)
returns jsonb
language plpgsql immutable
as $$
begin
  if jsonb_typeof(patch) <> 'object' then
    return tidebase_private.find_change(value, patch);
  elsif value is null or jsonb_typeof(value) <> 'object' then
    return jsonb_build_array(tidebase_private.merge_patch('{}', patch));
  end if;
  return (
    with changes as materialized (  -- or each would be worked out twice a level: for the condition and for the sum
      select p.key, case
          when p.value = 'null' then case when change_of_patch.value ? p.key then '[]'::jsonb end
          when change_of_patch.value ? p.key then tidebase_private.change_of_patch(change_of_patch.value -> p.key, p.value)
          else jsonb_build_array(tidebase_private.merge_patch('{}', p.value))
        end as change
      from jsonb_each(patch) p)
    select jsonb_object_agg(c.key, c.change) from changes c where c.change is not null);
end
$$;
comment on function tidebase_private.change_of_patch(jsonb, jsonb) is
  'The change that an RFC 7396 merge patch makes in a value; NULL when it makes none.';

-- The other way to patch: the members become what they are given as, null included, and what is in them is replaced.
create or replace function tidebase_private.change_of_members(value jsonb, members jsonb)
returns jsonb
language plpgsql immutable
as $$
begin
  if jsonb_typeof(value) is distinct from 'object' then
    return jsonb_build_array(members);
  end if;
  return (
    with changes as materialized (
      select m.key, case
          when change_of_members.value ? m.key then tidebase_private.find_change(change_of_members.value -> m.key, m.value, 1)
          else jsonb_build_array(m.value)
        end as change
      from jsonb_each(members) m)
    select jsonb_object_agg(c.key, c.change) from changes c where c.change is not null);
end
$$;
comment on function tidebase_private.change_of_members(jsonb, jsonb) is
  'The change that makes some members of a value what they are given as; NULL when it makes none. What is no object becomes one.';

create or replace function tidebase_private.merge_patch(target jsonb, patch jsonb)
returns jsonb
language plpgsql immutable
as $$
declare
  change jsonb := tidebase_private.change_of_patch(target, patch);
begin
  return case when change is null then target else tidebase_private.apply_change(target, change) end;
end
$$;
comment on function tidebase_private.merge_patch(jsonb, jsonb) is
  'MergePatch(Target, Patch) of RFC 7396, section 2. A patch nested deeper than the server''s stack raises 54001.';
