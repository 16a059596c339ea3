-- Push: a queue whose runs are taken up where a URL is told of them.
-- depends: 0007.queues

create table tidebase.endpoints (
  queue         text not null,
  url           text not null,
  failures      integer not null default 0,
  failing_since timestamptz,
  failed_at     timestamptz,
  next_at       timestamptz not null default clock_timestamp(),
  http_status   integer,
  error         text,
  constraint endpoints_pkey primary key (queue),
  constraint endpoint_counts_from_zero check (failures >= 0),
  constraint endpoint_fails_since_a_moment check ((failures = 0) = (failing_since is null))
) with (fillfactor = 50);
-- Those that do well, and those that do not: who waits for the dead keeps none of the living waiting.
create index endpoints_due on tidebase.endpoints (least(failures, 1), next_at);
comment on table tidebase.endpoints is
  'Whom to tell of the runs of a queue, so that it takes them up; sent by a dispatcher outside. Its lock comes after that of the queue''s row.';
comment on column tidebase.endpoints.failures is 'How often in a row it did not answer, or with an error.';
comment on column tidebase.endpoints.failed_at is 'When it failed last: what was sent before that is of the same failure.';
comment on column tidebase.endpoints.next_at is 'When it may be told of a run again; while it fails, of one at a time.';
comment on column tidebase.endpoints.error is 'What was wrong last.';

create table tidebase.invocations (
  run_id        text not null,
  invocation    integer not null,
  attempt       integer not null,
  queue         text not null,
  key           text,
  status        text not null,
  failures      integer not null default 0,
  failing_since timestamptz,
  sent_at       timestamptz not null default clock_timestamp(),
  next_at       timestamptz not null,
  http_status   integer,
  error         text,
  constraint invocations_pkey primary key (run_id),
  constraint invocation_status_is_known check (status in ('sending', 'sent', 'waiting', 'begun', 'failed')),
  constraint invocation_counts_from_zero check (least(invocation, failures) >= 0)
);
create index invocations_in_flight on tidebase.invocations (queue, key) where status in ('sending', 'sent');
comment on table tidebase.invocations is
  'Of which runs an endpoint was told, and what became of that: one row a run, of its latest invocation. Written under the lock of the run''s head.';
comment on column tidebase.invocations.invocation is 'The number of the latest one; a report carries it.';
comment on column tidebase.invocations.attempt is 'Which attempt it is to bring about: it is begun when the run has come so far.';
comment on column tidebase.invocations.key is 'The run''s key in the queue, which may limit it.';
comment on column tidebase.invocations.status is
  'sending (a dispatcher is at it), sent (answered, and not begun so far), waiting (for another try), begun, failed (given up: error says why).';
comment on column tidebase.invocations.failures is 'How often in a row the run was not begun.';
comment on column tidebase.invocations.next_at is 'When it is sent again, unless the run is begun by then.';

create type tidebase.invocation as (
  run_id     text,
  invocation integer,
  queue      text,
  url        text,
  body       jsonb
);
comment on type tidebase.invocation is
  'A run that is to be begun where a URL leads: what to send there, signed, and as which invocation to report it with finish_invocation.';

create type tidebase.measurement as (
  metric text,
  queue  text,
  label  text,
  value  double precision
);
comment on type tidebase.measurement is
  'Answer of measure: what was measured, of which queue (NULL: of all), of what kind (a status, a reason, a failure class; NULL: of all).';

alter table tidebase.runs
  drop constraint run_failure_class_is_known,
  add constraint run_failure_class_is_known check (failure_class in ('error', 'max_attempts', 'crashed', 'deadline', 'not_begun'));
comment on column tidebase.runs.failure_class is
  'Of a run that failed: error (its work raised one), max_attempts (the last of several attempts did), crashed (it lost its worker max_attempts times), not_begun (its queue''s endpoint was told of it again and again, and did not take it up); of a cancelled one: deadline, if that was why.';

-- It has one more parameter now.
drop function if exists tidebase.put_queue(text, integer, integer, integer, interval, integer, boolean, interval, integer, interval);
