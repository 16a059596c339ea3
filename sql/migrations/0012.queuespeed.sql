-- Queues, faster: many runs end in one call, and what is enqueued goes to the right end of every index.
-- depends: 0011.graphs

create type tidebase.completion as (
  run_id  text,
  seq     bigint,
  code    text,
  message text,
  detail  jsonb,
  hint    text
);
comment on type tidebase.completion is
  'Answer of complete_runs: the run, with the seq of its last event; or with why it was not completed: the SQLSTATE that complete_run would have raised (code), its message, detail and hint.';

-- Lists have the newest first, which an index in ascending order gives as well, read backward. A new run then goes to its right end,
-- for which a B-tree has a short way (PostgreSQL source, nbtinsert.c, "fastpath"), and where pages are left full. In descending
-- order each of these six entries was looked for from the root, and split pages in half.
drop index tidebase.runs_by_age, tidebase.runs_by_workflow, tidebase.runs_roots, tidebase.runs_by_queue,
  tidebase.run_heads_by_status, tidebase.run_heads_by_workflow_and_status;
create index runs_by_age on tidebase.runs (created_at, run_id);
create index runs_by_workflow on tidebase.runs (workflow, created_at, run_id);
create index runs_roots on tidebase.runs (created_at, run_id) where parent_run_id is null;
create index runs_by_queue on tidebase.runs (queue, created_at, run_id) where queue is not null;
create index run_heads_by_status on tidebase.run_heads (lower(status), created_at, run_id);
create index run_heads_by_workflow_and_status on tidebase.run_heads (workflow_key, lower(status), created_at, run_id);

-- A run is completed once, and so is an attempt, often many of one page in one transaction: with room for that on its page a row's
-- new version needs no entries in the indexes. It takes the room somewhere anyway.
alter table tidebase.runs set (fillfactor = 50);
alter table tidebase.attempts set (fillfactor = 50);
