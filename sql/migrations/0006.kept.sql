-- What is paid for is kept: also where nothing crashed.
-- depends: 0005.proof

-- A step goes to a person also when its contract changed between two attempts.
alter table tidebase.reviews
  add column explanation text,
  drop constraint review_cause_is_known,
  add constraint review_cause_is_known check (cause in ('crash', 'error', 'contract'));
comment on column tidebase.reviews.cause is
  'crash (it was begun, and neither completed nor failed), error (it failed), contract (its contract, or its idempotency key, is not what it was begun with).';
comment on column tidebase.reviews.explanation is 'What about the contract, in words.';

-- The steps that have not ended: what complete_run and the beginning of a write to the outside look for. Only steps that
-- are begun before they complete come in here.
create index steps_open on tidebase.steps (run_id, name) where status in ('running', 'review');

-- A lease that has run out is only marked: it ends when somebody takes over.
alter table tidebase.attempts add column lapsed_at timestamptz;
comment on column tidebase.attempts.lapsed_at is 'The end of its lease that reconcile saw pass last; the attempt may go on after it.';

-- Why a run failed, and the attempts that do not count towards max_attempts.
alter table tidebase.runs
  add column failure_class text,
  add column attempts_forgiven integer not null default 0,
  add constraint run_failure_class_is_known check (failure_class in ('error', 'crashed'));
comment on column tidebase.runs.failure_class is 'Of a failed run: error (its work raised one), crashed (it lost its worker max_attempts times).';
comment on column tidebase.runs.attempts_forgiven is 'The newest attempt at the time of the latest recovery: those up to it do not count towards max_attempts.';

-- Which children a suspended run waits for; a row goes when the wait is over.
create table tidebase.awaited (
  run_id       text not null,
  child_run_id text not null,
  constraint awaited_pkey primary key (run_id, child_run_id)
);
create index awaited_by_child on tidebase.awaited (child_run_id);
comment on table tidebase.awaited is 'The children for which a run is suspended, while it waits.';

-- A fork takes over the children that were completed before its point.
alter table tidebase.edges add column source_run_id text;
comment on column tidebase.edges.source_run_id is 'Of an edge that a fork took over: the run whose child it is. NULL: the run''s own.';
alter table tidebase.accounts add column has_forks boolean not null default false;
comment on column tidebase.accounts.has_forks is 'Whether a fork of a child draws on this budget, so that more than the children''s use is added up here.';

-- Where the tables are, and what no token may be below: see tidebase_private.tokens_before().
create table tidebase_private.incarnation (
  only_one      boolean not null default true,
  whereabouts   text not null,
  tokens_before bigint not null,
  begun_at      timestamptz not null default clock_timestamp(),
  constraint incarnation_pkey primary key (only_one),
  constraint incarnation_is_the_only_one check (only_one)
);
comment on table tidebase_private.incarnation is
  'What this database was when a lease was granted last (server, timeline, table), and the number that every token is above: raised when runs are purged, and when the whereabouts change, for then grants may be missing.';

-- Who follows a run says so here: workers read it, and wait for no reader.
create table tidebase.watches (
  run_id        text not null,
  watched_until timestamptz not null,
  constraint watches_pkey primary key (run_id)
);
comment on table tidebase.watches is 'The runs that somebody follows, and until when their events ring the doorbell.';
alter table tidebase.run_heads drop column watched_until;

-- A run that reconcile cannot look at keeps no other waiting.
create table tidebase.setbacks (
  run_id    text not null,
  failures  integer not null,
  sqlstate  text not null,
  message   text not null,
  failed_at timestamptz not null default clock_timestamp(),
  constraint setbacks_pkey primary key (run_id),
  constraint setback_has_failed check (failures >= 1)
);
comment on table tidebase.setbacks is 'The runs at which reconcile failed when it looked at them last, and how often in a row.';

-- What makes a gate this one: its secret dies with it, and what was approved is all that was shown.
alter table tidebase.gates add column nonce uuid;
comment on column tidebase.gates.nonce is
  'Made with the gate, and part of what its secrets are derived from. NULL: a timer, or a gate from before 0006, whose secret and shown_hash are as they were.';
comment on column tidebase.gates.shown_hash is
  'SHA-256 of the canonical form of what the decision is about: prompt, data, capability, options, required_approvals and response_schema; of a gate without a nonce: prompt and data.';
comment on column tidebase.gate_votes.voter is
  'Whose vote it is: a database login, or whom a personal secret, or a login that speaks for others, named. Of votes from before 0006: what the actor was called, or (secret).';
comment on table tidebase.gate_votes is 'Who voted what, at a gate that needs several approvals. One vote a voter.';

-- Lists of runs by status, newest first, among any number of runs: a page is read off an index. `lower` keeps the plans of
-- all other statements away from these indexes: on a small table "this run, if it is running" would look as cheap by them.
alter table tidebase.run_heads
  add column created_at timestamptz,
  add column workflow_key bigint not null default 0;
update tidebase.run_heads h set created_at = r.created_at, workflow_key = hashtextextended(r.workflow, 0)
from tidebase.runs r where r.run_id = h.run_id;
alter table tidebase.run_heads alter column created_at set not null, alter column created_at set default clock_timestamp();
drop index tidebase.run_heads_alive;
create index run_heads_by_status on tidebase.run_heads (lower(status), created_at desc, run_id desc);
create index run_heads_by_workflow_and_status
  on tidebase.run_heads (workflow_key, lower(status), created_at desc, run_id desc);
comment on column tidebase.run_heads.created_at is 'When the run was made, as in runs: for lists by status.';
comment on column tidebase.run_heads.workflow_key is 'hashtextextended() of the workflow''s name: for lists by workflow and status.';

-- Roots alone: a run of which no other is the parent.
alter table tidebase.runs add column parent_run_id text;
update tidebase.runs r set parent_run_id = e.run_id from tidebase.edges e where e.child_run_id = r.run_id and e.edge_type <> 'fork';
create index runs_roots on tidebase.runs (created_at desc, run_id desc) where parent_run_id is null;
comment on column tidebase.runs.parent_run_id is 'The run that made this one as a child of it; NULL: a root, or a fork.';

create type tidebase.run_count as (
  status    text,
  runs      bigint,
  estimated boolean
);
comment on type tidebase.run_count is 'How many runs are in a status; estimated: by the statistics of the last ANALYZE.';

-- Runs by the beginning of their id: in the order of bytes, whatever the collation of the database.
create index runs_by_prefix on tidebase.runs (run_id text_pattern_ops);

-- Lists of gates, oldest first, all or by status.
drop index tidebase.gates_pending;
create index gates_by_age on tidebase.gates (created_at, run_id, name) where kind = 'gate';
create index gates_by_status on tidebase.gates (status, created_at, run_id, name) where kind = 'gate';

-- They have other parameters now, or other names.
drop function if exists tidebase.list_runs(text, text, text, integer, timestamptz, timestamptz);
drop function if exists tidebase.list_gates(text, text, integer);
drop function if exists tidebase_private.new_run_id();
drop function if exists tidebase_private.copy_events(text, text, bigint);
drop function if exists tidebase_private.lapse(tidebase.run_heads);
drop function if exists tidebase_private.require_size(jsonb, text);
drop function if exists tidebase_private.may_begin_again(tidebase.steps, bigint);
drop function if exists tidebase_private.open_review(text, text, integer, text);
drop function if exists tidebase_private.begun_already(tidebase.run_heads, text, bytea, text);
drop function if exists tidebase.decide_gate(text, text, text, text, jsonb, text, text, text);
drop function if exists tidebase.get_gate_secret(text, text);
drop function if exists tidebase_private.entitlement(text, text, text);
drop function if exists tidebase_private.gate_secret(text, text);
drop function if exists tidebase_private.vote(tidebase.gates, text, text, jsonb, text, text);

-- What anybody may do is found in the access lists now.
drop function if exists tidebase_private.revoke_all(text);
