-- What the clients said in their own words is lost; the contracts that followed from it stay. A step that was begun with a
-- hash of the client's own is compared by its input again.
alter table tidebase.steps drop column client_hash, drop column options;
alter table tidebase.state_versions drop column patch;
alter table tidebase.usage drop column total_tokens;
-- Takes out the channels with what was kept of their deliveries; what was to be sent yet is not sent.
drop type tidebase.channel_delivery, tidebase.channel;
drop table tidebase.channels;
drop type tidebase.bulk;
drop type tidebase.claim;
drop type tidebase.enqueuing;
drop type tidebase_private.cron;
drop table tidebase.schedules;
drop table tidebase.claims;
drop table tidebase.workers;
drop table tidebase.dedupe_keys;
drop table tidebase.queue_starts;
drop table tidebase.slots;
drop table tidebase.lanes;
drop table tidebase.queue_entries;
drop table tidebase.queues;
drop index tidebase.runs_by_queue;
-- A queued run becomes pending: the older functions know nothing of queues.
update tidebase.run_heads h set status = 'pending' where h.status = 'queued';
update tidebase.runs r set failure_class = 'error' where r.failure_class = 'max_attempts';
update tidebase.runs r set failure_class = null where r.failure_class = 'deadline';
alter table tidebase.runs
  drop constraint run_failure_class_is_known,
  add constraint run_failure_class_is_known check (failure_class in ('error', 'crashed')),
  drop column queue, drop column priority, drop column queue_key, drop column dedupe_key, drop column pinned;
comment on column tidebase.runs.failure_class is 'Of a failed run: error (its work raised one), crashed (it lost its worker max_attempts times).';
alter table tidebase.run_heads drop column in_queue;
