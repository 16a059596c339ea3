-- Queues, workers, schedules: a job is a run. Channels. What the published SDKs say, as they say it.
-- depends: 0006.kept

-- What a run is to its queue. `in_queue` is in the head, so that whoever frees a run knows without another look that it
-- goes back to where it came from.
alter table tidebase.run_heads add column in_queue boolean not null default false;
comment on column tidebase.run_heads.in_queue is 'Whether the run belongs to a queue: where another run is pending, it is queued.';

alter table tidebase.runs
  add column queue      text,
  add column priority   integer,
  add column queue_key  text,
  add column dedupe_key text,
  add column pinned     boolean not null default false,
  drop constraint run_failure_class_is_known,
  add constraint run_failure_class_is_known check (failure_class in ('error', 'max_attempts', 'crashed', 'deadline'));
comment on column tidebase.runs.queue is 'The queue to which the run belongs; NULL: none, it is worked on by who asks for it.';
comment on column tidebase.runs.priority is 'Higher ones are taken first.';
comment on column tidebase.runs.queue_key is 'Whose run it is: a queue is fair between keys, and may limit each.';
comment on column tidebase.runs.dedupe_key is 'At most one run of a queue that is not over has it; see dedupe_keys.';
comment on column tidebase.runs.pinned is 'Whether only workers with the code_version of its first attempt may take it up.';
comment on column tidebase.runs.failure_class is
  'Of a run that failed: error (its work raised one), max_attempts (the last of several attempts did), crashed (it lost its worker max_attempts times); of a cancelled one: deadline, if that was why.';
create index runs_by_queue on tidebase.runs (queue, created_at desc, run_id desc) where queue is not null;

create table tidebase.queues (
  queue           text not null,
  concurrency     integer,
  key_concurrency integer,
  rate            integer,
  key_rate        integer,
  rate_period     interval not null default '1 minute',
  paused          boolean not null default false,
  lease           interval,
  max_attempts    integer,
  retry_delay     interval,
  created_at      timestamptz not null default clock_timestamp(),
  updated_at      timestamptz not null default clock_timestamp(),
  constraint queues_pkey primary key (queue),
  constraint queue_limits_are_positive check (least(concurrency, key_concurrency, rate, key_rate, max_attempts) >= 1)
);
comment on table tidebase.queues is
  'What a queue may do. A queue without a row has no limits. Whoever takes runs of a limited queue holds the lock of its row, before that of any head.';
comment on column tidebase.queues.concurrency is 'How many of its runs may be leased at once.';
comment on column tidebase.queues.key_concurrency is 'How many runs with the same key may be leased at once.';
comment on column tidebase.queues.rate is 'How many leases may be granted within any rate_period.';
comment on column tidebase.queues.key_rate is 'How many leases may be granted to runs with the same key within any rate_period.';
comment on column tidebase.queues.lease is 'How long a lease lasts where claim_runs says nothing.';
comment on column tidebase.queues.max_attempts is 'Of runs that are enqueued without a number of their own.';

-- The runs that may be taken up, now or later: what claim_runs searches. A row goes when its run is taken, so the table is as
-- large as what waits. It only says where to look: whether a run may be leased is in its head.
create table tidebase.queue_entries (
  run_id       text not null,
  ready_at     timestamptz not null,
  turn         timestamptz not null,
  place        bigint,
  priority     integer not null,
  pinned       boolean not null,
  queue        text not null,
  workflow     text not null,
  key          text,
  code_version text,
  constraint queue_entries_pkey primary key (run_id)
) with (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_cost_delay = 0);
create index queue_entries_ready on tidebase.queue_entries (queue, priority desc, place, turn) where place is not null;
create index queue_entries_delayed on tidebase.queue_entries (queue, ready_at) where place is null;
create index queue_entries_by_key on tidebase.queue_entries (queue, priority, key, place) where place is not null and key is not null;
comment on table tidebase.queue_entries is 'The queued runs, and those whose lease has run out: one row each until it is taken.';
comment on column tidebase.queue_entries.place is
  'Start-time fair queueing (Goyal, Vin, Cheng, SIGCOMM 1996): the round in which it is this run''s turn among those of its priority. NULL: it is delayed until ready_at.';
comment on column tidebase.queue_entries.turn is 'The order within a round: when the run became ready; of one that was served before, the front.';
comment on column tidebase.queue_entries.code_version is 'Of the latest attempt; of the first one where the run is pinned. NULL: it was never begun.';

-- Where a search begins: what was taken lies before it, dead but still in the index as long as an old snapshot needs it.
create table tidebase.lanes (
  queue     text not null,
  priority  integer not null,
  opened_by integer not null,
  place     bigint not null,
  turn      timestamptz not null,
  moved_at  timestamptz not null,
  sweep_at  timestamptz not null,
  constraint lanes_pkey primary key (queue, priority, opened_by)
) with (fillfactor = 50);
comment on table tidebase.lanes is 'One row for each priority that a queue has seen: how far it is. See tidebase_private.tend_lanes.';
comment on column tidebase.lanes.opened_by is 'The process of the server that made the row: two who open a lane at the same moment do not wait for each other, and make two.';
comment on column tidebase.lanes.place is 'The round that is being served: with turn, where the next search begins.';
comment on column tidebase.lanes.sweep_at is 'When the lane is next looked at from its beginning, for who came late.';

-- The leases of limited queues, and when they were granted. A row means something only while its lease is the run's.
create table tidebase.slots (
  run_id      text not null,
  lease_token bigint not null,
  queue       text not null,
  key         text,
  constraint slots_pkey primary key (run_id)
);
create index slots_by_queue on tidebase.slots (queue, key);
comment on table tidebase.slots is 'Who was given a place in a queue with limits; it is free again when that lease is over.';

create table tidebase.queue_starts (
  queue      text not null,
  started_at timestamptz not null,
  key        text
);
create index queue_starts_by_time on tidebase.queue_starts (queue, started_at);
create index queue_starts_by_key on tidebase.queue_starts (queue, key, started_at) where key is not null;
comment on table tidebase.queue_starts is 'When leases of queues with a rate were granted, for as long as that counts.';

create table tidebase.dedupe_keys (
  queue      text not null,
  dedupe_key text not null,
  run_id     text not null,
  latest_at  timestamptz,
  constraint dedupe_keys_pkey primary key (queue, dedupe_key)
);
create index dedupe_keys_by_run on tidebase.dedupe_keys (run_id);
comment on table tidebase.dedupe_keys is 'Which run has a key; free again when that run is over.';
comment on column tidebase.dedupe_keys.latest_at is 'Until when the run may be put off by on_duplicate => replace.';

create table tidebase.workers (
  holder          text not null,
  queues          text[] not null,
  code_version    text,
  started_at      timestamptz not null default clock_timestamp(),
  seen_at         timestamptz not null default clock_timestamp(),
  listening_until timestamptz,
  constraint workers_pkey primary key (holder)
) with (fillfactor = 50);
comment on table tidebase.workers is 'Who takes runs from queues, as of its latest calls; written every few seconds at most.';
comment on column tidebase.workers.listening_until is 'Until when it sleeps and wants to be woken by what is enqueued.';

create table tidebase.claims (
  request_id text not null,
  run_ids    text[] not null,
  tokens     bigint[] not null,
  claimed_at timestamptz not null default clock_timestamp(),
  constraint claims_pkey primary key (request_id)
);
create index claims_by_age on tidebase.claims (claimed_at);
comment on table tidebase.claims is 'What claim_runs granted to a call, for an hour: the call is made again when its answer was lost.';

create table tidebase.schedules (
  schedule        text not null,
  workflow        text not null,
  input           jsonb,
  metadata        jsonb not null,
  queue           text not null,
  key             text,
  priority        integer not null,
  max_attempts    integer,
  cron            text,
  every           interval,
  timezone        text not null,
  overlap         text not null,
  catch_up        text not null,
  catch_up_window interval not null,
  jitter          interval not null,
  enabled         boolean not null,
  anchor          timestamptz not null,
  fired_at        timestamptz not null,
  next_at         timestamptz,
  last_run_id     text,
  failure         text,
  created_at      timestamptz not null default clock_timestamp(),
  updated_at      timestamptz not null default clock_timestamp(),
  constraint schedules_pkey primary key (schedule),
  constraint schedule_goes_by_cron_or_interval check ((cron is null) <> (every is null)),
  constraint schedule_overlap_is_known check (overlap in ('allow', 'skip', 'cancel')),
  constraint schedule_catch_up_is_known check (catch_up in ('none', 'last', 'all')),
  constraint schedule_metadata_is_an_object check (jsonb_typeof(metadata) = 'object')
);
create index schedules_due on tidebase.schedules (next_at) where next_at is not null;
comment on table tidebase.schedules is 'What is enqueued by the clock. One run a fire time: the run''s id is made of the schedule''s name and the time.';
comment on column tidebase.schedules.anchor is 'From when an interval is counted.';
comment on column tidebase.schedules.fired_at is 'The fire time up to which everything was fired, or passed over as catch_up and overlap have it.';
comment on column tidebase.schedules.failure is 'What went wrong when it was to fire last; it is tried again every minute.';
comment on column tidebase.schedules.next_at is 'When fire_schedules looks at it next; NULL: it is disabled, or never fires again.';

create type tidebase_private.cron as (
  minutes    integer[],
  hours      integer[],
  days       integer[],
  months     integer[],
  weekdays   integer[],
  either_day boolean,
  fixed      boolean
);
comment on type tidebase_private.cron is
  'A cron expression, read. days: -1 is the last of the month, -2 the last from Monday to Friday; weekdays: 0 (Sunday) to 6, 100 + 10 * day + n is the nth of the month, with n = 9 the last. either_day: one of the two is enough. fixed: a time of day, no interval.';

create type tidebase.enqueuing as (
  run_id       text,
  deduplicated boolean
);
comment on type tidebase.enqueuing is
  'Answer of enqueue_run: the run''s id, and whether it was there before: by its dedupe_key, or by its id.';

create type tidebase.claim as (
  run_id      text,
  token       bigint,
  attempt     integer,
  workflow    text,
  input       jsonb,
  queue       text,
  expires_at  timestamptz,
  checkpoints integer,
  has_budget  boolean,
  traceparent text
);
comment on type tidebase.claim is
  'Answer of claim_runs: one lease that was granted, with what acquire_run says of it (see the type lease), and the queue it came from.';

create type tidebase.bulk as (
  matched integer,
  done    integer
);
comment on type tidebase.bulk is
  'Answer of cancel_runs, retry_runs and move_runs: how many runs were found, and with how many of them it was done.';

-- Channels: what happens to a run is told to others as it happens.

-- A channel is a place in the log of its run, not a row for each event: the calls of a worker write nothing for it.
create table tidebase.channels (
  run_id        text not null,
  channel       integer not null,
  type          text not null default 'webhook',
  url           text not null,
  secret        text,
  events        text[],
  status        text not null default 'active',
  delivered_seq bigint not null default 0,
  sending_seq   bigint,
  attempts      bigint not null default 0,
  failures      integer not null default 0,
  failing_since timestamptz,
  idle_since    timestamptz,
  next_at       timestamptz default clock_timestamp(),
  http_status   integer,
  error         text,
  created_at    timestamptz not null default clock_timestamp(),
  delivered_at  timestamptz,
  finished_at   timestamptz,
  constraint channels_pkey primary key (run_id, channel),
  constraint channel_type_is_known check (type in ('webhook')),
  constraint channel_status_is_known check (status in ('active', 'delivered', 'failed', 'removed')),
  constraint channel_is_due_while_active check ((status = 'active') = (next_at is not null)),
  constraint channel_is_finished_whole check ((status = 'active') = (finished_at is null)),
  constraint channel_forgets_its_secret_when_removed check (status <> 'removed' or secret is null),
  constraint channel_sends_what_comes_next check (sending_seq = delivered_seq + 1),
  constraint channel_counts_from_zero check (least(delivered_seq, attempts, failures) >= 0)
);
-- Those that do well, and those whose last attempt has failed: who waits for the dead keeps none of the living waiting.
create index channels_due on tidebase.channels (least(failures, 1), next_at) where next_at is not null;
comment on table tidebase.channels is
  'Whom to tell what happens to a run, and how far that is done: in the order of the log, at least once, by a dispatcher outside.';
comment on column tidebase.channels.secret is 'Signs what is sent. NULL: the dispatcher''s own does.';
comment on column tidebase.channels.events is 'The types of events that are wanted. NULL: all.';
comment on column tidebase.channels.status is
  'active, delivered (the run is over, and all of it is told), failed (given up: error says why), removed.';
comment on column tidebase.channels.delivered_seq is 'Up to this event all are delivered, or not wanted.';
comment on column tidebase.channels.sending_seq is 'The event after those, while a dispatcher is at it. NULL: it was reported.';
comment on column tidebase.channels.attempts is 'How often something was handed out to be sent; a report carries the number of its attempt.';
comment on column tidebase.channels.failures is 'How often in a row the next event could not be delivered.';
comment on column tidebase.channels.idle_since is 'Since when nothing new was found; NULL: something is to be sent, or being sent.';
comment on column tidebase.channels.next_at is
  'When to look at it next: for what is new, for another attempt, or, while a dispatcher is at it, in case that it has died.';

create type tidebase.channel as (
  channel       integer,
  type          text,
  url           text,
  events        text[],
  has_secret    boolean,
  status        text,
  delivered_seq bigint,
  attempts      bigint,
  failures      integer,
  failing_since timestamptz,
  next_at       timestamptz,
  http_status   integer,
  error         text,
  created_at    timestamptz,
  delivered_at  timestamptz,
  finished_at   timestamptz
);
comment on type tidebase.channel is
  'A channel of a run, as list_channels returns it, without its secret. status: active, delivered (the run is over, and all of it is told), failed (given up: error says why) or removed. delivered_seq: all up to this event is delivered, or not wanted. failures: in a row, of the event after it, since failing_since. http_status and error: of the last attempt. next_at: when it is looked at next.';

create type tidebase.channel_delivery as (
  run_id  text,
  channel integer,
  attempt bigint,
  url     text,
  secret  text,
  seq     bigint,
  body    jsonb
);
comment on type tidebase.channel_delivery is
  'An event that is to be sent: where to, what to sign it with (NULL: the dispatcher''s own secret), and as which attempt to report it with finish_channel_delivery.';

-- What the published SDKs say about a step, a state or usage is kept as they say it.

alter table tidebase.steps
  add column client_hash text,
  add column options jsonb,
  add constraint step_options_are_an_object check (jsonb_typeof(options) = 'object');
comment on column tidebase.steps.client_hash is
  'The hash of the input that the client has made itself: where it sends one again, the two decide whether the input is the same. NULL: it sent none.';
comment on column tidebase.steps.options is 'The contract in the client''s own words; what follows from it stands in the other columns.';

alter table tidebase.state_versions add column patch jsonb;
comment on column tidebase.state_versions.patch is 'The members that merge_state was given; NULL for a version that was made in another way.';

alter table tidebase.usage
  add column total_tokens bigint,
  add constraint usage_total_counts_upwards check (total_tokens >= 0);
comment on column tidebase.usage.total_tokens is 'The total as the client gave it; a budget counts input_tokens and output_tokens.';

-- It has one more parameter now.
drop function if exists tidebase.record_usage(text, bigint, text, text, text, text, bigint, bigint, numeric, numeric, text, text,
  bigint, bigint, bigint, numeric, text, text, jsonb, text);
