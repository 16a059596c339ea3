-- Cron expressions: five fields, as Debian's cron(8) and crontab(5) have them, with the signs L and # of others.
--
-- The search goes from month to day to time of day, in local time: what it costs depends on how many months it passes, never on
-- minutes. What a local time is in real time is looked up last.

-- One term of a field: a number, a name, a range, every nth of either, or (of days) L, LW, 5L, 5#2.
create or replace function tidebase_private.read_cron_term(term text, field text, lowest integer, highest integer, names text[])
returns integer[]
language plpgsql immutable
as $$
declare
  part text;
  ends integer[] := array[]::integer[];
  step integer;
  found integer[];
begin
  if field = 'day-of-month' and term in ('L', 'LW') then
    return array[case term when 'L' then -1 else -2 end];
  elsif field = 'day-of-week' and term ~ '^[0-7]L$' then
    return array[100 + 10 * (left(term, 1)::integer % 7) + 9];
  elsif field = 'day-of-week' and term ~ '^([0-7]|[A-Z]{3})#[1-5]$' then
    return array[100 + 10 * (tidebase_private.read_cron_term(split_part(term, '#', 1), field, lowest, highest, names))[1] % 70
      + right(term, 1)::integer];
  elsif term !~ '^([*]|[0-9A-Z]{1,3}(-[0-9A-Z]{1,3})?)(/[0-9]{1,3})?$' then
    perform tidebase_private.raise_invalid('cron', format('has a %s that is none: %L', field, left(term, 40)));
  end if;
  step := nullif(split_part(term, '/', 2), '')::integer;
  if step = 0 then
    perform tidebase_private.raise_invalid('cron', format('has a %s with a step of 0', field));
  end if;
  if term ~ '^[*]' then
    ends := array[lowest, highest];
  else
    foreach part in array string_to_array(split_part(term, '/', 1), '-') loop
      ends := ends || case when part ~ '^[0-9]+$' then part::integer else array_position(names, part) - 1 + case field when 'month' then 1 else 0 end end;
    end loop;
  end if;
  if array_position(ends, null) is not null or ends[1] not between lowest and highest or ends[2] not between lowest and highest then
    perform tidebase_private.raise_invalid('cron', format('has a %s that is not from %s to %s: %L', field, lowest, highest, left(term, 40)));
  elsif ends[2] < ends[1] then
    perform tidebase_private.raise_invalid('cron', format('has a %s that goes backwards: %L', field, left(term, 40)));
  end if;
  found := array(select generate_series(ends[1], coalesce(ends[2], case when step is null then ends[1] else highest end), coalesce(step, 1)));
  return case when field = 'day-of-week' then array(select distinct f % 7 from unnest(found) f) else found end;
end
$$;
comment on function tidebase_private.read_cron_term(text, text, integer, integer, text[]) is
  'The numbers for which one term of a field stands. Errors: TB002.';

create or replace function tidebase_private.read_cron_field(value text, field text, lowest integer, highest integer, names text[] default '{}')
returns integer[]
language plpgsql immutable
as $$
declare
  term text;
  found integer[] := array[]::integer[];
begin
  foreach term in array string_to_array(value, ',') loop
    found := found || tidebase_private.read_cron_term(term, field, lowest, highest, names);
  end loop;
  return array(select distinct f from unnest(found) f order by f);
end
$$;
comment on function tidebase_private.read_cron_field(text, text, integer, integer, text[]) is
  'The numbers for which a field stands. Errors: TB002.';

create or replace function tidebase_private.read_cron(cron text)
returns tidebase_private.cron
language plpgsql immutable
as $$
declare
  expression text := upper(btrim(cron, E' \t'));
  fields text[];
  answer tidebase_private.cron;
begin
  if not tidebase_private.is_name(cron, 1000) then
    perform tidebase_private.raise_invalid('cron', 'must be an expression of five fields, of at most 1000 bytes');
  elsif starts_with(expression, '@') then
    expression := case expression when '@HOURLY' then '0 * * * *' when '@DAILY' then '0 0 * * *' when '@MIDNIGHT' then '0 0 * * *'
      when '@WEEKLY' then '0 0 * * 0' when '@MONTHLY' then '0 0 1 * *' when '@YEARLY' then '0 0 1 1 *' when '@ANNUALLY' then '0 0 1 1 *' end;
    if expression is null then
      perform tidebase_private.raise_invalid('cron', 'must be @hourly, @daily, @midnight, @weekly, @monthly, @yearly or @annually, or have five fields');
    end if;
  end if;
  fields := regexp_split_to_array(expression, E'[ \t]+');
  if cardinality(fields) <> 5 then
    perform tidebase_private.raise_invalid('cron', format('must have five fields (minute, hour, day of the month, month, day of the week), and has %s', cardinality(fields)));
  end if;
  answer.minutes := tidebase_private.read_cron_field(fields[1], 'minute', 0, 59);
  answer.hours := tidebase_private.read_cron_field(fields[2], 'hour', 0, 23);
  answer.days := tidebase_private.read_cron_field(fields[3], 'day-of-month', 1, 31);
  answer.months := tidebase_private.read_cron_field(fields[4], 'month', 1, 12, '{JAN,FEB,MAR,APR,MAY,JUN,JUL,AUG,SEP,OCT,NOV,DEC}');
  answer.weekdays := tidebase_private.read_cron_field(fields[5], 'day-of-week', 0, 7, '{SUN,MON,TUE,WED,THU,FRI,SAT}');
  answer.either_day := not (fields[3] ~ '^[*]' or fields[5] ~ '^[*]');
  answer.fixed := not (fields[1] ~ '^[*]' or fields[2] ~ '^[*]');
  return answer;
end
$$;
comment on function tidebase_private.read_cron(text) is 'What a cron expression says. Errors: TB002.';

create or replace function tidebase_private.is_cron_day(wanted tidebase_private.cron, day date)
returns boolean
language plpgsql immutable
as $$
declare
  last date := (date_trunc('month', day) + interval '1 month - 1 day')::date;
  weekday integer := extract(dow from day)::integer;
  number integer := extract(day from day)::integer;
  by_month boolean := number = any (wanted.days)
    or -1 = any (wanted.days) and day = last
    or -2 = any (wanted.days) and day = last - case extract(dow from last)::integer when 0 then 2 when 6 then 1 else 0 end;
  by_week boolean := weekday = any (wanted.weekdays)
    or 100 + 10 * weekday + (number + 6) / 7 = any (wanted.weekdays)
    or 100 + 10 * weekday + 9 = any (wanted.weekdays) and day + 7 > last;
begin
  return case when wanted.either_day then by_month or by_week else by_month and by_week end;
end
$$;
comment on function tidebase_private.is_cron_day(tidebase_private.cron, date) is 'Whether an expression means this day.';

-- The next local time, whatever a time zone makes of it. Twenty-eight years have every weekday of every date; around 2100 it is forty.
create or replace function tidebase_private.next_local(wanted tidebase_private.cron, after timestamp)
returns timestamp
language plpgsql immutable
as $$
declare
  day date := after::date;
  until date := (after + interval '50 years')::date;
  hour integer := extract(hour from after)::integer;
  minute integer;
begin
  -- Later on the same day.
  if extract(month from day) = any (wanted.months) and tidebase_private.is_cron_day(wanted, day) then
    if hour = any (wanted.hours) then
      minute := (select min(m) from unnest(wanted.minutes) m where m > extract(minute from after));
    end if;
    if minute is null then
      hour := (select min(h) from unnest(wanted.hours) h where h > hour);
      minute := wanted.minutes[1];
    end if;
    if hour is not null then
      return day + make_interval(hours => hour, mins => minute);
    end if;
  end if;
  day := day + 1;
  while day < until loop
    if extract(month from day) = any (wanted.months) then
      if tidebase_private.is_cron_day(wanted, day) then
        return day + make_interval(hours => wanted.hours[1], mins => wanted.minutes[1]);
      end if;
      day := day + 1;
    else
      day := (date_trunc('month', day) + interval '1 month')::date;
    end if;
  end loop;
  return null;
end
$$;
comment on function tidebase_private.next_local(tidebase_private.cron, timestamp) is
  'The first local time after another that an expression means; NULL: there is none in 50 years.';

create or replace function tidebase_private.offset_at(timezone text, moment timestamptz)
returns interval
language sql stable
as $$
  select (moment at time zone timezone) - (moment at time zone 'UTC');
$$;
comment on function tidebase_private.offset_at(text, timestamptz) is 'How far a time zone is ahead of UTC at a moment.';

-- When a local time is: once as a rule, twice when the clocks are put back, never when they are put forward.
create or replace function tidebase_private.moments_of(local timestamp, timezone text)
returns timestamptz[]
language plpgsql stable
as $$
declare
  as_utc timestamptz := local at time zone 'UTC';
  before interval := tidebase_private.offset_at(timezone, as_utc - interval '26 hours');
  behind interval := tidebase_private.offset_at(timezone, as_utc + interval '26 hours');
begin
  return array(
    select distinct m.moment
    from unnest(array[as_utc - before, as_utc - behind]) m (moment)
    where (m.moment at time zone timezone) = local
    order by m.moment);
end
$$;
comment on function tidebase_private.moments_of(timestamp, text) is 'The moments at which clocks in a time zone show this time, earliest first.';

-- The moment in which the clocks are put forward over a local time that there is not.
create or replace function tidebase_private.end_of_gap(local timestamp, timezone text)
returns timestamptz
language plpgsql stable
as $$
declare
  low timestamptz := (local at time zone 'UTC') - interval '26 hours';
  high timestamptz := (local at time zone 'UTC') + interval '26 hours';
  before interval := tidebase_private.offset_at(timezone, low);
  middle timestamptz;
begin
  while high - low > interval '1 second' loop
    middle := date_trunc('second', low + (high - low) / 2);
    exit when middle <= low;
    if tidebase_private.offset_at(timezone, middle) = before then
      low := middle;
    else
      high := middle;
    end if;
  end loop;
  return date_trunc('second', high);
end
$$;
comment on function tidebase_private.end_of_gap(timestamp, text) is 'When the clocks of a time zone go forward over this local time.';

-- A time of day: once each day. One that is skipped fires when the clocks go forward, one that comes twice the first time.
create or replace function tidebase_private.next_fixed(wanted tidebase_private.cron, timezone text, after timestamptz)
returns timestamptz
language plpgsql stable
as $$
declare
  local timestamp := after at time zone timezone;
  moment timestamptz;
begin
  loop
    local := tidebase_private.next_local(wanted, local);
    moment := coalesce((tidebase_private.moments_of(local, timezone))[1], tidebase_private.end_of_gap(local, timezone));
    exit when local is null or moment > after;
  end loop;
  return moment;
end
$$;
comment on function tidebase_private.next_fixed(tidebase_private.cron, text, timestamptz) is
  'The next moment of an expression that names times of day.';

-- An interval goes by what the clocks show, whenever they show it: what is skipped does not fire, what comes twice does so twice.
create or replace function tidebase_private.next_shown(wanted tidebase_private.cron, timezone text, after timestamptz)
returns timestamptz
language plpgsql stable
as $$
declare
  here timestamp := after at time zone timezone;
  local timestamp := here;
  back interval := tidebase_private.offset_at(timezone, after) - tidebase_private.offset_at(timezone, after + interval '3 hours');
  first timestamptz;
  again timestamptz;
begin
  loop
    local := tidebase_private.next_local(wanted, local);
    first := (select min(m) from unnest(tidebase_private.moments_of(local, timezone)) m where m > after);
    exit when first is not null or local is null;
  end loop;
  if back > interval '0' then  -- the clocks are about to be put back: an earlier time may come again
    local := here - back;
    loop
      local := tidebase_private.next_local(wanted, local);
      exit when local is null or local > here;
      again := (select min(m) from unnest(tidebase_private.moments_of(local, timezone)) m where m > after);
      exit when again is not null;
    end loop;
  end if;
  return least(first, again);
end
$$;
comment on function tidebase_private.next_shown(tidebase_private.cron, text, timestamptz) is
  'The next moment of an expression that goes by the minute or the hour.';

create or replace function tidebase_private.next_moment(wanted tidebase_private.cron, timezone text, after timestamptz)
returns timestamptz
language plpgsql stable
as $$
begin
  return case when wanted.fixed then tidebase_private.next_fixed(wanted, timezone, after)
    else tidebase_private.next_shown(wanted, timezone, after) end;
end
$$;
comment on function tidebase_private.next_moment(tidebase_private.cron, text, timestamptz) is
  'The first moment after another that an expression means in a time zone; NULL: none in 50 years.';

create or replace function tidebase_private.next_fire(cron text, timezone text, after timestamptz)
returns timestamptz
language sql stable
as $$
  select tidebase_private.next_moment(tidebase_private.read_cron(cron), timezone, after);
$$;
comment on function tidebase_private.next_fire(text, text, timestamptz) is
  'The first moment after another that a cron expression means in a time zone; NULL: none in 50 years.';

create or replace function tidebase_private.require_cron(cron text)
returns void
language plpgsql stable
as $$
begin
  if tidebase_private.next_local(tidebase_private.read_cron(cron), '2000-01-01') is null then
    perform tidebase_private.raise_invalid('cron', 'must be possible: there is no such day');
  end if;
end
$$;
comment on function tidebase_private.require_cron(text) is 'Raises TB002 unless it is a cron expression that fires at all.';

create or replace function tidebase_private.raise_timezone(timezone text)
returns void
language plpgsql stable
as $$
begin
  perform tidebase_private.raise_invalid('timezone', format('must be a name that Postgres knows (pg_timezone_names), and not %L', left(timezone, 40)));
end
$$;
comment on function tidebase_private.raise_timezone(text) is 'Raises TB002.';

create or replace function tidebase_private.require_timezone(timezone text)
returns void
language plpgsql stable
as $$
begin
  if not tidebase_private.is_name(timezone, 100) then
    perform tidebase_private.raise_invalid('timezone', 'must be a name such as Europe/Berlin');
  elsif timezone ~ '[^A-Za-z0-9_+/-]'
    -- UTC+3 and the like would be taken for a rule of POSIX, with the sign the other way round. All names are read from files.
    or timezone ~ '[0-9]' and timezone !~ '/' and not exists (select from pg_timezone_names z where lower(z.name) = lower(timezone))
  then
    perform tidebase_private.raise_timezone(timezone);
  end if;
  perform clock_timestamp() at time zone timezone;
exception when invalid_parameter_value then
  perform tidebase_private.raise_timezone(timezone);
end
$$;
comment on function tidebase_private.require_timezone(text) is 'Raises TB002 unless Postgres knows the time zone.';

create or replace function tidebase.next_fires(cron text, timezone text default 'UTC', after timestamptz default null, n integer default 1)
returns setof timestamptz
language plpgsql stable security definer rows 10
set search_path = pg_catalog, tidebase, pg_temp
as $$
declare
  at timestamptz := coalesce(after, clock_timestamp());
  wanted tidebase_private.cron;
begin
  timezone := coalesce(timezone, 'UTC');
  n := coalesce(n, 1);
  perform tidebase_private.require_timezone(timezone);
  perform tidebase_private.require_cron(cron);
  perform tidebase_private.require_moment(after, 'after');
  if n not between 1 and 1000 then
    perform tidebase_private.raise_invalid('n', 'must be a number from 1 to 1000');
  end if;
  wanted := tidebase_private.read_cron(cron);
  for number in 1..n loop
    at := tidebase_private.next_moment(wanted, timezone, at);
    exit when at is null or at >= '9999-12-31 00:00+00';
    return next at;
  end loop;
end
$$;
comment on function tidebase.next_fires(text, text, timestamptz, integer) is
  'The next n (1 to 1000) moments after another (by default now) that a cron expression means: minute, hour, day of the month, month, day of the week, in the local time of a time zone. Numbers, names (jan, MON), lists (1,15), ranges (1-5), steps (*/10, 8-18/2, 5/15); 0 and 7 are Sunday; L is the last day of the month, LW the last from Monday to Friday, 5L the last Friday, 5#2 the second. Where both days are restricted, one of them is enough, unless one begins with * (crontab(5) of Debian). @hourly, @daily, @midnight, @weekly, @monthly, @yearly and @annually stand for what they say. When the clocks are put forward or back (cron(8) of Debian): a time of day that is skipped fires in that moment, one that comes twice fires the first time; where minute or hour begins with *, it goes by what the clocks show: what is skipped does not fire, what comes twice does so twice. Errors: TB002.';

select tidebase_private.allow('function tidebase.next_fires', 'worker', 'approver', 'operator', 'reader');
