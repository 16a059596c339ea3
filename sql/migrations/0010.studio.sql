-- What a page for people needs: a search with a bound, and the gates that wait by their deadline.
-- depends: 0009.checkpoints

create type tidebase.run_page as (
  run_ids         text[],
  next_run_id     text,
  next_created_at timestamptz,
  examined        integer
);
comment on type tidebase.run_page is
  'What a search found, newest first; from where it goes on (NULL: it has been through all); how many runs it looked at.';

-- Those without a deadline come behind all that have one.
create index gates_by_deadline on tidebase.gates ((coalesce(timeout_at, 'infinity'::timestamptz)), created_at, run_id, name)
  where status = 'pending' and kind = 'gate';
