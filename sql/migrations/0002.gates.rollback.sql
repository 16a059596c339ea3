-- Takes out gates, reviews, edges, recoveries and deliveries with what they stored. A run that waits or is in review
-- becomes pending: the older functions know nothing of it. A step in review becomes failed.
drop type tidebase.child, tidebase.reconciliation, tidebase.run_failure, tidebase.gate_decision, tidebase.gate_opening;
drop table tidebase.deliveries, tidebase.recoveries, tidebase.edges, tidebase.reviews, tidebase.gate_votes, tidebase.gates;
drop table tidebase_private.gate_key;
update tidebase.run_heads set status = 'pending', waiting_for = null where status in ('waiting', 'review');
update tidebase.steps set status = 'failed', decision = coalesce(decision, 'manual_review') where status = 'review';
alter table tidebase.runs
  drop column max_attempts, drop column retry_delay, drop column recovery_webhook,
  drop column cancelled_at, drop column cancel_reason, drop column cancel_actor;
alter table tidebase.run_heads
  drop column due_at, drop column deadline_at, drop column available_at, drop column waiting_for;
