-- What was missing to prove that every call may be made again, and to ask whether all is well.
-- depends: 0004.speed

-- They take a request_id from now on: a person's decision whose answer was lost is not taken for a second one.
drop function if exists tidebase.resolve_review(text, text, text, jsonb, text, text);
drop function if exists tidebase.record_recovery(text, text, text);
drop function if exists tidebase.recover_run(text, text, text);

-- fork_run reads the limits of a budget together with the head now.
drop function if exists tidebase_private.copy_budget(text, text);

-- With status alone it was as cheap as the primary key for "this run, if it is running", as long as the table was small:
-- a fence could read every run that was at work, and at SERIALIZABLE wait for a conflict with all of them.
drop index tidebase.run_heads_alive;
create index run_heads_alive on tidebase.run_heads (status, run_id) where status <> 'completed';

create type tidebase.violation as (
  run_id    text,
  invariant text,
  detail    jsonb
);
comment on type tidebase.violation is
  'A row that breaks a rule: of which run, which rule, and the row without its payloads. See check_invariants.';
