drop type tidebase.renewal;
alter type tidebase.lease drop attribute has_budget;
comment on type tidebase.lease is
  'Answer of acquire_run. outcome: granted (token, attempt, input, the number of checkpoints and the traceparent to link to are yours), held (by holder until expires_at), completed (result), waiting, review.';
comment on type tidebase.checkpoint is 'One completed step, as load_checkpoints returns it.';
alter table tidebase.events
  add constraint event_seq_starts_at_one check (seq >= 1);
alter table tidebase.steps
  add constraint step_status_is_known check (status in ('running', 'completed', 'failed', 'review')),
  add constraint step_is_completed_whole check (
    (status = 'completed') = (completed_seq is not null) and (status = 'completed') = (output is not null)),
  add constraint step_failed_with_a_decision check (status <> 'failed' or decision is not null),
  add constraint step_decision_is_known check (decision in ('auto_retry', 'safe_replay', 'manual_review', 'fail_hard')),
  add constraint step_replay_is_known check (replay in ('auto', 'manual', 'never'));
alter table tidebase.run_heads
  add constraint head_status_is_known check (
    status in ('pending', 'queued', 'running', 'waiting', 'review', 'completed', 'failed', 'cancelled')),
  add constraint head_lease_matches_status check ((status = 'running') = (lease_expires_at is not null)),
  add constraint head_counters_only_grow_from_zero check (
    last_seq >= durable_seq and durable_seq >= 0 and lease_token >= 0 and attempt >= 0 and steps_completed >= 0),
  add constraint head_waits_for_something check ((status = 'waiting') = (waiting_for is not null));
