-- Gates, timers, reviews, cancellation, deadlines, recovery: what a run needs that waits, breaks or is stopped.
-- depends: 0001.core

-- What reconcile() goes by: one index over the moment at which a run wants looking at, whatever for. Heartbeats do not
-- touch it, so they stay HOT.
alter table tidebase.run_heads
  add column due_at       timestamptz,
  add column deadline_at  timestamptz,
  add column available_at timestamptz,
  add column waiting_for  text,
  add constraint head_waits_for_something check ((status = 'waiting') = (waiting_for is not null));
create index run_heads_due on tidebase.run_heads (due_at) where due_at is not null;
comment on column tidebase.run_heads.due_at is
  'When reconcile() looks at the run next: the end of its lease, its deadline, the timeout of a gate or a timer, whichever is first. NULL: nothing to look for.';
comment on column tidebase.run_heads.deadline_at is 'From when the run may not go on: it is cancelled.';
comment on column tidebase.run_heads.available_at is 'Until when nobody may work on the run: the backoff after a failed attempt.';
comment on column tidebase.run_heads.waiting_for is 'The gate or timer for which a waiting run was suspended.';

alter table tidebase.runs
  add column max_attempts     integer,
  add column retry_delay      interval,
  add column recovery_webhook text,
  add column cancelled_at     timestamptz,
  add column cancel_reason    text,
  add column cancel_actor     text,
  add constraint run_max_attempts_is_positive check (max_attempts >= 1);
comment on column tidebase.runs.max_attempts is 'How many attempts at the run there are before a failure is final; NULL means 1.';
comment on column tidebase.runs.retry_delay is 'The delay before the second attempt, doubled for each further one; NULL means 1 second.';
comment on column tidebase.runs.recovery_webhook is 'The URL that is told when the run is to be recovered.';
comment on column tidebase.runs.cancelled_at is 'When the run was cancelled.';
comment on column tidebase.runs.cancel_reason is 'Why, in words.';
comment on column tidebase.runs.cancel_actor is 'By whom, as the caller said it.';

-- The key from which the gates' secrets are derived, split as HMAC (RFC 2104) wants it: the inner and the outer padded
-- key. Made by the functions when it is first needed; only the owner can read it.
create table tidebase_private.gate_key (
  only_one  boolean not null default true,
  inner_pad bytea not null,
  outer_pad bytea not null,
  constraint gate_key_pkey primary key (only_one),
  constraint gate_key_is_the_only_one check (only_one)
);
comment on table tidebase_private.gate_key is
  'The key from which every gate''s secret is derived: HMAC-SHA256, as its inner and outer padded key. No secret is stored anywhere.';

create table tidebase.gates (
  run_id             text not null,
  name               text not null,
  kind               text not null default 'gate',
  status             text not null default 'pending',
  prompt             text,
  data               jsonb not null,
  shown_hash         bytea not null,
  options            text[] not null,
  response_schema    jsonb,
  capability         jsonb,
  required_approvals integer not null default 1,
  timeout_at         timestamptz,
  default_decision   text,
  decision           text,
  payload            jsonb,
  comment            text,
  actor              text,
  decided_by         text,
  request_id         text,
  created_at         timestamptz not null default clock_timestamp(),
  decided_at         timestamptz,
  constraint gates_pkey primary key (run_id, name),
  constraint gate_kind_is_known check (kind in ('gate', 'timer')),
  constraint gate_status_is_known check (status in ('pending', 'decided', 'cancelled')),
  constraint gate_is_decided_whole check (
    (status = 'decided') = (decision is not null) and (decision is null) = (decided_by is null)),
  constraint gate_decider_is_known check (decided_by in ('secret', 'approver', 'timeout')),
  constraint gate_has_options check (cardinality(options) >= 1),
  constraint gate_needs_somebody check (required_approvals >= 1)
);
create index gates_pending on tidebase.gates (created_at, run_id) where status = 'pending' and kind = 'gate';
comment on table tidebase.gates is
  'Questions to people (gate) and waits for a moment (timer): each gets exactly one decision, and every resume sees that one.';
comment on column tidebase.gates.shown_hash is 'SHA-256 of the canonical prompt and data: what the decision is about.';
comment on column tidebase.gates.options is 'The decisions that may be given.';
comment on column tidebase.gates.response_schema is 'A JSON Schema for the payload of the answer, shown to the approver; checked by the client that reads the answer.';
comment on column tidebase.gates.capability is 'What the approval allows, for the audit: any JSON.';
comment on column tidebase.gates.required_approvals is 'How many different people must give the same decision.';
comment on column tidebase.gates.timeout_at is 'When the default decision falls by itself, by the clock of the database.';
comment on column tidebase.gates.decided_by is 'secret (the bearer of the gate''s secret), approver (a member of that role) or timeout.';
comment on column tidebase.gates.request_id is 'The id of the decide_gate call that was accepted, so that the call can be repeated when its answer was lost.';

create table tidebase.gate_votes (
  run_id     text not null,
  name       text not null,
  voter      text not null,
  decision   text not null,
  payload    jsonb,
  comment    text,
  request_id text,
  voted_at   timestamptz not null default clock_timestamp(),
  constraint gate_votes_pkey primary key (run_id, name, voter)
);
comment on table tidebase.gate_votes is
  'Who voted what, at a gate that needs several approvals. One vote a voter: the bearers of the gate''s secret are one voter together.';

create table tidebase.reviews (
  run_id      text not null,
  step        text not null,
  attempt     integer not null,
  cause       text not null,
  opened_at   timestamptz not null default clock_timestamp(),
  resolved_at timestamptz,
  decision    text,
  actor       text,
  reason      text,
  constraint reviews_pkey primary key (run_id, step, attempt),
  constraint review_cause_is_known check (cause in ('crash', 'error')),
  constraint review_decision_is_known check (decision in ('retry', 'accept', 'fail')),
  constraint review_is_resolved_whole check ((resolved_at is null) = (decision is null))
);
create index reviews_open on tidebase.reviews (opened_at, run_id) where resolved_at is null;
comment on table tidebase.reviews is
  'Steps that may have taken effect and are not repeated by themselves: one row each time a person was asked, and what that person decided.';

create table tidebase.edges (
  run_id       text not null,
  name         text not null,
  child_run_id text not null,
  edge_type    text not null default 'child',
  metadata     jsonb not null default '{}',
  created_at   timestamptz not null default clock_timestamp(),
  constraint edges_pkey primary key (run_id, name),
  constraint edge_parent_exists foreign key (run_id) references tidebase.runs (run_id),
  constraint edge_child_exists foreign key (child_run_id) references tidebase.runs (run_id),
  constraint edge_metadata_is_an_object check (jsonb_typeof(metadata) = 'object')
);
create index edges_by_child on tidebase.edges (child_run_id);
comment on table tidebase.edges is 'Which run was started by which (run_id is the parent): one child an edge name.';

create table tidebase.recoveries (
  run_id       text not null,
  recovery     integer not null,
  reason       text not null,
  actor        text,
  status       text not null default 'pending',
  found_status text not null,
  http_status  integer,
  response     text,
  error        text,
  created_at   timestamptz not null default clock_timestamp(),
  finished_at  timestamptz,
  constraint recoveries_pkey primary key (run_id, recovery),
  constraint recovery_status_is_known check (status in ('pending', 'succeeded', 'failed')),
  constraint recovery_is_finished_whole check ((status = 'pending') = (finished_at is null))
);
comment on table tidebase.recoveries is 'Every attempt to get a run going again: why, by whom, what became of it.';
comment on column tidebase.recoveries.found_status is 'The status in which the run was found.';

create table tidebase.deliveries (
  run_id      text not null,
  delivery    integer not null,
  recovery    integer,
  url         text not null,
  body        jsonb not null,
  status      text not null default 'pending',
  attempts    integer not null default 0,
  next_at     timestamptz default clock_timestamp(),
  http_status integer,
  response    text,
  error       text,
  created_at  timestamptz not null default clock_timestamp(),
  finished_at timestamptz,
  constraint deliveries_pkey primary key (run_id, delivery),
  constraint delivery_status_is_known check (status in ('pending', 'delivered', 'failed')),
  constraint delivery_is_due_while_pending check ((status = 'pending') = (next_at is not null))
);
create index deliveries_due on tidebase.deliveries (next_at) where status = 'pending';
comment on table tidebase.deliveries is
  'The outbox of webhooks: written in the transaction that decided to send, delivered by a dispatcher outside, at least once.';
comment on column tidebase.deliveries.next_at is 'When the next attempt is due; a dispatcher that takes the row pushes it ahead while it works.';

create type tidebase.gate_opening as (
  status     text,
  decision   text,
  payload    jsonb,
  comment    text,
  actor      text,
  decided_at timestamptz,
  decided_by text,
  timeout_at timestamptz,
  secret     text,
  created    boolean
);
comment on type tidebase.gate_opening is
  'Answer of open_gate. status: pending or decided; the decision with payload, comment, actor, decided_by (secret, approver, timeout); secret: entitles its bearer to decide; created: whether this call made the gate.';

create type tidebase.gate_decision as (
  accepted   boolean,
  status     text,
  decision   text,
  payload    jsonb,
  comment    text,
  actor      text,
  decided_at timestamptz,
  approvals  integer,
  required   integer
);
comment on type tidebase.gate_decision is
  'Answer of decide_gate. accepted: whether this call''s decision (or vote) was taken; the rest is what stands now. status pending: more approvals are needed.';

create type tidebase.run_failure as (
  seq      bigint,
  status   text,
  retry_at timestamptz
);
comment on type tidebase.run_failure is
  'Answer of fail_run: the seq of the event, and what the run is now: failed, pending (another attempt from retry_at on) or review.';

create type tidebase.reconciliation as (
  runs      integer,
  leases    integer,
  gates     integer,
  timers    integer,
  deadlines integer
);
comment on type tidebase.reconciliation is
  'Answer of reconcile: how many runs it looked at, and how many leases, gates, timers and deadlines had run out.';

create type tidebase.child as (
  run_id  text,
  created boolean
);
comment on type tidebase.child is 'Answer of create_child: the child''s id, and whether this call made it.';

-- These get more parameters or another result: what the function files make anew must not stand beside the old form.
drop function if exists tidebase.create_run(text, jsonb, text, jsonb);
drop function if exists tidebase.fail_run(text, bigint, jsonb);
drop function if exists tidebase_private.finish(tidebase.run_heads, text, jsonb);
