-- What was missing to prove that every call may be made again, and to ask whether all is well.
-- depends: 0004.speed

-- They take a request_id from now on: a person's decision whose answer was lost is not taken for a second one.
drop function if exists tidebase.resolve_review(text, text, text, jsonb, text, text);
drop function if exists tidebase.record_recovery(text, text, text);
drop function if exists tidebase.recover_run(text, text, text);

create type tidebase.violation as (
  run_id    text,
  invariant text,
  detail    jsonb
);
comment on type tidebase.violation is
  'A row that breaks a rule: of which run, which rule, and the row without its payloads. See check_invariants.';
