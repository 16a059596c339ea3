alter table tidebase.runs reset (fillfactor);
alter table tidebase.attempts reset (fillfactor);
drop function if exists tidebase.complete_runs(text[], bigint[], jsonb[]);
drop function if exists tidebase_private.try_to_complete(text, bigint, jsonb);
drop type tidebase.completion;
drop index tidebase.runs_by_age, tidebase.runs_by_workflow, tidebase.runs_roots, tidebase.runs_by_queue,
  tidebase.run_heads_by_status, tidebase.run_heads_by_workflow_and_status;
create index runs_by_age on tidebase.runs (created_at desc, run_id desc);
create index runs_by_workflow on tidebase.runs (workflow, created_at desc, run_id desc);
create index runs_roots on tidebase.runs (created_at desc, run_id desc) where parent_run_id is null;
create index runs_by_queue on tidebase.runs (queue, created_at desc, run_id desc) where queue is not null;
create index run_heads_by_status on tidebase.run_heads (lower(status), created_at desc, run_id desc);
create index run_heads_by_workflow_and_status
  on tidebase.run_heads (workflow_key, lower(status), created_at desc, run_id desc);
