-- Recovery webhooks are delivered several at once; leases whose end nobody would have seen.
-- depends: 0012.queuespeed

-- It has two more parameters now.
drop function if exists tidebase.claim_deliveries(integer, interval);

-- A take-over that a limit was in the way of took the run out of its queue for good: reconcile puts it back.
update tidebase.run_heads h set due_at = clock_timestamp()
where lower(h.status) = 'running' and h.in_queue and h.due_at is null
  and not exists (select from tidebase.queue_entries e where e.run_id = h.run_id);
update tidebase.attempts a set lapsed_at = null
from tidebase.run_heads h
where lower(h.status) = 'running' and h.in_queue and a.run_id = h.run_id and a.attempt = h.attempt
  and a.lapsed_at = h.lease_expires_at
  and not exists (select from tidebase.queue_entries e where e.run_id = h.run_id);
