-- Runs, their leases, their steps and their log.
--
-- Hot and cold are apart: `run_heads` is one narrow row a run that every call updates in place (HOT: none of its
-- changing columns is indexed but `status`), `runs` is written a few times in a run's life. Every key begins with
-- `run_id` and nothing on the hot path uses a sequence, so a run's rows live together and could be spread by run.

create table tidebase_private.settings (
  name  text primary key,
  value text not null
);
comment on table tidebase_private.settings is
  'Installation-wide choices. role_prefix: what the five roles are called (<prefix>_owner, _worker, _approver, _operator, _reader).';

create table tidebase_private.function_files (
  name       text primary key,
  checksum   text not null,
  applied_at timestamptz not null default now()
);
comment on table tidebase_private.function_files is
  'The files of sql/functions as last applied: name, SHA-256 of the content in hex, when.';

create table tidebase_private.privileges (
  object   text not null,
  audience text not null,
  primary key (object, audience),
  constraint privilege_names_an_audience check (audience in ('worker', 'approver', 'operator', 'reader'))
);
comment on table tidebase_private.privileges is
  'Who may use what, as the function files state it with tidebase_private.allow(); apply_privileges() turns it into grants.';

create table tidebase.runs (
  run_id      text primary key,
  workflow    text not null,
  input       jsonb,
  metadata    jsonb not null default '{}',
  result      jsonb,
  error       jsonb,
  created_at  timestamptz not null default clock_timestamp(),
  finished_at timestamptz,
  constraint run_id_is_a_short_name check (octet_length(run_id) between 1 and 255),
  constraint run_metadata_is_an_object check (jsonb_typeof(metadata) = 'object')
);
create index runs_by_age on tidebase.runs (created_at desc, run_id desc);
create index runs_by_workflow on tidebase.runs (workflow, created_at desc, run_id desc);
comment on table tidebase.runs is
  'The cold half of a run: what it was asked and what came of it. Its status and lease are in run_heads.';
comment on column tidebase.runs.run_id is 'Chosen by the caller or generated: run_ and a UUIDv7. At most 255 bytes.';
comment on column tidebase.runs.input is 'What the workflow was called with; SQL NULL when no input was stated.';
comment on column tidebase.runs.result is 'The result given to complete_run.';
comment on column tidebase.runs.error is 'The error of the last attempt that failed; cleared when the run completes.';
comment on column tidebase.runs.finished_at is 'When the run completed, failed or was cancelled; NULL while it may go on by itself.';

create table tidebase.run_heads (
  run_id           text not null,
  last_seq         bigint not null default 0,
  durable_seq      bigint not null default 0,
  lease_token      bigint not null default 0,
  lease_expires_at timestamptz,
  watched_until    timestamptz,
  updated_at       timestamptz not null default clock_timestamp(),
  attempt          integer not null default 0,
  steps_completed  integer not null default 0,
  status           text not null default 'pending',
  holder           text,
  constraint run_heads_pkey primary key (run_id),
  constraint head_status_is_known check (
    status in ('pending', 'queued', 'running', 'waiting', 'review', 'completed', 'failed', 'cancelled')),
  constraint head_lease_matches_status check ((status = 'running') = (lease_expires_at is not null)),
  constraint head_counters_only_grow_from_zero check (
    last_seq >= durable_seq and durable_seq >= 0 and lease_token >= 0 and attempt >= 0 and steps_completed >= 0)
) with (
  -- Room for the next version of every row on its own page keeps the updates HOT; vacuum comes early and unthrottled.
  fillfactor = 50,
  autovacuum_vacuum_scale_factor = 0.02,
  autovacuum_vacuum_threshold = 1000,
  autovacuum_vacuum_cost_delay = 0
);
create index run_heads_alive on tidebase.run_heads (status) where status <> 'completed';
comment on table tidebase.run_heads is
  'The hot half of a run: its lock, its lease, its event counter. Every call takes this row first. Keep it narrow: each call rewrites it.';
comment on column tidebase.run_heads.last_seq is 'The seq of the run''s newest event: events are 1..last_seq without a gap.';
comment on column tidebase.run_heads.durable_seq is
  'The seq up to which every event is known to be on disk: that of the last call that committed synchronously. Readers see to the rest.';
comment on column tidebase.run_heads.lease_token is 'The fencing token of the last lease granted. It only grows.';
comment on column tidebase.run_heads.lease_expires_at is 'From when another worker may take over; set exactly while the run is running.';
comment on column tidebase.run_heads.watched_until is 'Until when somebody follows this run: calls ring the doorbell (NOTIFY) only then.';
comment on column tidebase.run_heads.attempt is 'How many leases were granted so far.';
comment on column tidebase.run_heads.steps_completed is 'How many steps of the run have a checkpoint.';
comment on column tidebase.run_heads.holder is 'Who holds or last held the lease: a name for people and logs, never a credential.';

create table tidebase.attempts (
  run_id       text not null,
  attempt      integer not null,
  lease_token  bigint not null,
  holder       text not null,
  code_version text,
  request_id   text,
  started_at   timestamptz not null default clock_timestamp(),
  ended_at     timestamptz,
  outcome      text,
  error        jsonb,
  constraint attempts_pkey primary key (run_id, attempt),
  constraint attempt_outcome_is_known check (outcome in ('completed', 'failed', 'released', 'suspended', 'lapsed', 'cancelled')),
  constraint attempt_ends_with_an_outcome check ((ended_at is null) = (outcome is null))
);
comment on table tidebase.attempts is 'One row a lease granted: who worked on the run, with which code, from when to when, and how it ended.';
comment on column tidebase.attempts.outcome is
  'completed, failed, released (given up in good order), suspended (until a gate or timer is decided), lapsed (taken over after the lease ran out), cancelled; NULL while it lasts.';
comment on column tidebase.attempts.request_id is 'The id of the acquire_run call, so that the call can be repeated when its answer was lost.';

create table tidebase.steps (
  run_id               text not null,
  name                 text not null,
  lease_token          bigint not null,
  started_at           timestamptz not null default clock_timestamp(),
  completed_at         timestamptz,
  completed_seq        bigint,
  attempt              integer not null,
  tries                integer not null,
  status               text not null,
  input_hash           bytea not null,
  request_id           text,
  input                jsonb,
  output               jsonb,
  error                jsonb,
  decision             text,
  retry_at             timestamptz,
  side_effects         text[],
  idempotency_key      text,
  replay               text,
  checkpoint_invariant text,
  verified_by          text,
  credentials          text[],
  retries              integer,
  retry_delay          interval,
  retry_max_delay      interval,
  timeout              interval,
  constraint steps_pkey primary key (run_id, name),
  constraint step_status_is_known check (status in ('running', 'completed', 'failed', 'review')),
  constraint step_is_completed_whole check (
    (status = 'completed') = (completed_seq is not null) and (status = 'completed') = (output is not null)),
  constraint step_failed_with_a_decision check (status <> 'failed' or decision is not null),
  constraint step_decision_is_known check (decision in ('auto_retry', 'safe_replay', 'manual_review', 'fail_hard')),
  constraint step_replay_is_known check (replay in ('auto', 'manual', 'never'))
);
-- Outputs are compressed by lz4 where the server has it: several times cheaper than pglz for the same gain.
do $$
begin
  execute 'alter table tidebase.steps alter output set compression lz4, alter input set compression lz4';
exception when feature_not_supported then null;
end
$$;
comment on table tidebase.steps is
  'The named steps of a run. A completed one is a checkpoint: it never runs again and its output never changes.';
comment on column tidebase.steps.lease_token is 'The lease under which the step was last begun.';
comment on column tidebase.steps.attempt is 'How often the step was begun, over all leases: 1 when it ran once.';
comment on column tidebase.steps.tries is 'How often it was begun under the present lease: what the retries are counted by.';
comment on column tidebase.steps.completed_seq is 'The seq of the step.completed event.';
comment on column tidebase.steps.input_hash is 'SHA-256 of the canonical form of the input; see tidebase_private.hash_input.';
comment on column tidebase.steps.output is 'The checkpoint. A step without a result has the JSON null.';
comment on column tidebase.steps.decision is 'What fail_step decided about the last failure.';
comment on column tidebase.steps.request_id is 'The id of the begin_step call, so that the call can be repeated when its answer was lost.';
comment on column tidebase.steps.side_effects is 'Resume contract: what the step does to the outside, e.g. {email.send}; {read} and NULL are harmless.';
comment on column tidebase.steps.idempotency_key is 'Resume contract: the key by which the outside recognises a repetition.';
comment on column tidebase.steps.replay is 'Resume contract: auto, manual or never; NULL means auto.';
comment on column tidebase.steps.checkpoint_invariant is 'Resume contract: what must hold for the checkpoint to be usable, in words.';
comment on column tidebase.steps.verified_by is 'Resume contract: how one finds out whether the step took effect, in words.';
comment on column tidebase.steps.credentials is 'Resume contract: the names (never the values) of the credentials that the step needs.';
comment on column tidebase.steps.retries is 'Resume contract: how often a failure is retried under one lease; NULL means 0.';
comment on column tidebase.steps.retry_delay is 'Resume contract: the delay before the first retry, doubled for each further one; NULL means 1 second.';
comment on column tidebase.steps.retry_max_delay is 'Resume contract: the cap of the delay; NULL means 5 minutes.';
comment on column tidebase.steps.timeout is 'Resume contract: how long one execution may take; enforced by the client that executes it.';

create table tidebase.events (
  run_id     text not null,
  seq        bigint not null,
  created_at timestamptz not null default clock_timestamp(),
  type       text not null,
  payload    jsonb not null,
  request_id text,
  constraint events_pkey primary key (run_id, seq),
  constraint event_seq_starts_at_one check (seq >= 1)
);
create unique index events_once_a_request on tidebase.events (run_id, request_id) where request_id is not null;
comment on table tidebase.events is
  'The log of a run: 1..n, append-only, no gap. The seq comes from the head row, so row-lock order = commit order = seq order.';
comment on column tidebase.events.request_id is 'The id of the append_event call, so that the call can be repeated when its answer was lost.';

create type tidebase.lease as (
  outcome     text,
  token       bigint,
  attempt     integer,
  workflow    text,
  input       jsonb,
  result      jsonb,
  holder      text,
  expires_at  timestamptz,
  checkpoints integer
);
comment on type tidebase.lease is
  'Answer of acquire_run. outcome: granted (token, attempt, input and the number of checkpoints are yours), held (by holder until expires_at), completed (result), waiting, review.';

create type tidebase.step_start as (
  outcome text,
  attempt integer,
  output  jsonb
);
comment on type tidebase.step_start is
  'Answer of begin_step. outcome: execute (run it, as this attempt), replay (output is the checkpoint), review (a person must decide first).';

create type tidebase.step_failure as (
  decision    text,
  retry_after interval,
  attempt     integer
);
comment on type tidebase.step_failure is
  'Answer of fail_step. decision: auto_retry (begin the step again after retry_after), safe_replay, manual_review, fail_hard.';

create type tidebase.checkpoint as (
  name       text,
  input_hash bytea,
  output     jsonb
);
comment on type tidebase.checkpoint is 'One completed step, as load_checkpoints returns it.';

create type tidebase.event as (
  seq        bigint,
  type       text,
  payload    jsonb,
  created_at timestamptz
);
comment on type tidebase.event is 'One entry of a run''s log, as read_events returns it.';

create type tidebase.watch as (
  channel       text,
  status        text,
  last_seq      bigint,
  watched_until timestamptz
);
comment on type tidebase.watch is
  'Answer of watch_run: LISTEN to channel; its payload is the run_id of a watched run that has something new.';
