-- A step at the price of little more than its insert.
-- depends: 0003.state

-- Each statement on a table parses the table's CHECK constraints anew: on the three tables that every step writes, that
-- was a quarter of a step's time in the server. No role may write to these tables but through the functions, so the
-- rules are kept by them; tidebase_private.check_invariants() looks for rows that break one.
alter table tidebase.run_heads
  drop constraint head_status_is_known,
  drop constraint head_lease_matches_status,
  drop constraint head_counters_only_grow_from_zero,
  drop constraint head_waits_for_something;
alter table tidebase.steps
  drop constraint step_status_is_known,
  drop constraint step_is_completed_whole,
  drop constraint step_failed_with_a_decision,
  drop constraint step_decision_is_known,
  drop constraint step_replay_is_known;
alter table tidebase.events
  drop constraint event_seq_starts_at_one;

alter type tidebase.lease add attribute has_budget boolean;
comment on type tidebase.lease is
  'Answer of acquire_run. outcome: granted (token, attempt, input, the number of checkpoints and the traceparent to link to are yours), held (by holder until expires_at), completed (result), waiting, review. has_budget: whether its steps may meet TB010.';
comment on type tidebase.checkpoint is
  'One step, as load_checkpoints returns it; output is NULL when it did not complete.';

create type tidebase.renewal as (
  run_id     text,
  expires_at timestamptz
);
comment on type tidebase.renewal is 'Answer of renew_leases: one lease that was renewed.';

-- Their parameters have changed.
drop function if exists tidebase.record_step(text, bigint, text, jsonb, jsonb, interval);
drop function if exists tidebase.load_checkpoints(text);
