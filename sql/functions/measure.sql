-- Measures: what those who watch are told, by the database's clock, in one call.

create or replace function tidebase.measure()
returns setof tidebase.measurement
language sql volatile security definer rows 100
set search_path = pg_catalog, tidebase, pg_temp
set enable_seqscan = off
set jit = off
as $$
  with queues as materialized (select * from queue_overview)
  select m.metric, q.queue, m.label, m.value::double precision
  from queues q
  cross join lateral (values
    ('queue_ready_runs', null, q.ready::numeric),
    ('queue_delayed_runs', null, q.delayed),
    ('queue_invoked_runs', null, q.invoked),
    ('queue_running_runs', null, q.running),
    ('queue_waiting_runs', null, q.waiting),
    ('queue_review_runs', null, q.review),
    ('queue_failed_runs', null, q.failed),
    ('queue_oldest_ready_seconds', null, coalesce(greatest(extract(epoch from clock_timestamp() - q.oldest_ready), 0), 0)),
    ('queue_paused', null, q.paused::integer),
    ('queue_endpoint_failures', null, q.endpoint_failures),
    ('queue_held_back', q.held_back_by, 1)
  ) m (metric, label, value)
  where m.value is not null and (m.metric <> 'queue_held_back' or m.label is not null)
  union all
  select 'failed_runs', r.queue, coalesce(r.failure_class, 'error'), count(*)
  from (select h.run_id from run_heads h where lower(h.status) = 'failed' limit 10000) f
  join runs r on r.run_id = f.run_id
  group by r.queue, coalesce(r.failure_class, 'error')
  union all
  select 'runs', null, c.status, c.runs from count_runs() c
  union all
  select 'stalled_runs', null, s.reason, count(*) from stalled_runs s group by s.reason
  union all
  select 'late_seconds', null, null, coalesce(max(greatest(extract(epoch from clock_timestamp() - s.since), 0)), 0)
  from stalled_runs s where s.reason = 'lease_lapsed'
  union all
  select 'workers', null, null, count(*) from workers w where w.seen_at > clock_timestamp() - interval '1 minute';
$$;
comment on function tidebase.measure() is
  'What there is to watch, a row each. Of each queue: queue_ready_runs, queue_delayed_runs, queue_invoked_runs, queue_running_runs, queue_waiting_runs, queue_review_runs, queue_failed_runs (no more than 10,000 are counted), queue_oldest_ready_seconds (how long the next run has waited), queue_paused, queue_endpoint_failures (in a row), queue_held_back by reason. failed_runs by queue and failure class (no more than 10,000 in all); runs by status, as count_runs has them; stalled_runs by reason: lease_lapsed are those whose heartbeat is late, late_seconds by how much at most; workers that were seen within a minute. All ages are by the clock of the database.';

select tidebase_private.allow('function tidebase.measure', 'worker', 'approver', 'operator', 'reader');
