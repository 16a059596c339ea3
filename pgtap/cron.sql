-- Cron expressions: what they mean, when clocks are changed, and what is none. tests/test_cron.py compares them with another implementation.
begin;
select no_plan();
\ir support/helpers.psql

create function pg_temp.fires(cron text, zone text, after text, n integer default 3) returns text language sql as $$
  select string_agg(to_char(f at time zone 'UTC', 'MM-DD HH24:MI'), ', ' order by f)
  from tidebase.next_fires(cron, zone, after::timestamptz, n) f;
$$;
select is(pg_temp.fires('*/20 * * * *', 'UTC', '2024-01-01 00:05+00'), '01-01 00:20, 01-01 00:40, 01-01 01:00', 'steps');
select is(pg_temp.fires('5,35 8-9 * * mon-FRI', 'UTC', '2024-01-05 08:35+00'), '01-05 09:05, 01-05 09:35, 01-08 08:05', 'lists, ranges, names');
select is(pg_temp.fires('0 0 29 2 *', 'UTC', '2024-02-29 00:00+00', 1), '02-29 00:00', 'a leap day');
select is(pg_temp.fires('0 0 1,15 * wed', 'UTC', '2024-01-01 00:00+00'), '01-03 00:00, 01-10 00:00, 01-15 00:00', 'either day');
select is(pg_temp.fires('0 0 */2 * wed', 'UTC', '2024-01-01 00:00+00'), '01-03 00:00, 01-17 00:00, 01-31 00:00', 'unless one begins with a star');
select is(pg_temp.fires('0 0 L * *', 'UTC', '2024-02-01 00:00+00', 2), '02-29 00:00, 03-31 00:00', 'the last day');
select is(pg_temp.fires('0 0 LW * *', 'UTC', '2024-03-01 00:00+00', 1), '03-29 00:00', 'the last weekday');
select is(pg_temp.fires('0 0 * * 5L', 'UTC', '2024-03-01 00:00+00', 1), '03-29 00:00', 'the last Friday');
select is(pg_temp.fires('0 0 * * 5#2', 'UTC', '2024-03-01 00:00+00', 1), '03-08 00:00', 'the second Friday');
select is(pg_temp.fires('50/5 23 * * *', 'UTC', '2024-03-01 00:00+00'), '03-01 23:50, 03-01 23:55, 03-02 23:50', 'a beginning with a step');
select is(pg_temp.fires(macro, 'UTC', '2024-03-01 00:00+00', 1), fires, macro)
from (values ('@hourly', '03-01 01:00'), ('@daily', '03-02 00:00'), ('@midnight', '03-02 00:00'), ('@weekly', '03-03 00:00'), ('@monthly', '04-01 00:00'),
  ('@yearly', '01-01 00:00'), ('@annually', '01-01 00:00')) m (macro, fires);
select is(pg_temp.fires('30 2 * * *', 'Europe/Berlin', '2024-03-31 00:00+00', 2), '03-31 01:00, 04-01 00:30', 'a time that is skipped fires when the clocks go forward');
select is(pg_temp.fires('30 2 * * *', 'Europe/Berlin', '2024-10-26 22:00+00', 2), '10-27 00:30, 10-28 01:30', 'one that comes twice fires the first time');
select is(pg_temp.fires('*/30 2 * * *', 'Europe/Berlin', '2024-03-30 23:00+00', 1), '04-01 00:00', 'an interval in a gap does not fire');
select is(pg_temp.fires('*/30 2 * * *', 'Europe/Berlin', '2024-10-26 23:00+00', 4), '10-27 00:00, 10-27 00:30, 10-27 01:00, 10-27 01:30', 'one that comes twice does so twice');
select is(pg_temp.fires('*/30 2 * * *', 'Europe/Berlin', '2024-10-27 00:40+00', 2), '10-27 01:00, 10-27 01:30', 'also from within');
select throws_ok(format('select tidebase.next_fires(%L)', wrong), 'TB002', null, coalesce(wrong, 'NULL') || ' is none')
from unnest(array[null, '', '* * * *', '60 * * * *', '* * * 13 *', '*/0 * * * *', '5-1 * * * *', 'x * * * *', '0 0 31 2 *', '@reboot', '* * * foo *', '* * * * 8']) wrong;
select throws_ok(format('select tidebase.next_fires(''* * * * *'', %L)', wrong), 'TB002', null, wrong || ' is no time zone') from unnest(array['', 'Nowhere', 'UTC+3', 'a;b']) wrong;
select throws_ok($$select tidebase.next_fires('* * * * *', n => 0)$$, 'TB002', null, 'none is no number of them');
select throws_ok($$select tidebase.next_fires('* * * * *', after => 'infinity')$$, 'TB002', null, 'nothing comes after everything');
select * from finish();
rollback;
