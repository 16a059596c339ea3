-- Channels: what happens to a run is told to others as it happens.
-- depends: 0007.queues

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
