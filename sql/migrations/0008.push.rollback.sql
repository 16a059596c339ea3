-- What waits in a queue with an endpoint goes on waiting there, for a worker.
drop type tidebase.measurement;
drop type tidebase.invocation;
update tidebase.queue_entries e set ready_at = clock_timestamp()
from tidebase.invocations i where i.run_id = e.run_id and e.place is null and i.status in ('sending', 'sent', 'waiting');
drop table tidebase.invocations;
drop table tidebase.endpoints;
update tidebase.runs r set failure_class = 'error' where r.failure_class = 'not_begun';
alter table tidebase.runs
  drop constraint run_failure_class_is_known,
  add constraint run_failure_class_is_known check (failure_class in ('error', 'max_attempts', 'crashed', 'deadline'));
comment on column tidebase.runs.failure_class is
  'Of a run that failed: error (its work raised one), max_attempts (the last of several attempts did), crashed (it lost its worker max_attempts times); of a cancelled one: deadline, if that was why.';
