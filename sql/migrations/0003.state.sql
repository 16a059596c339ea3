-- State with its history, usage and budgets, forks, retention.
-- depends: 0002.gates

create table tidebase.state_streams (
  run_id      text not null,
  stream      text not null,
  target_type text,
  target_id   text,
  created_at  timestamptz not null default clock_timestamp(),
  constraint state_streams_pkey primary key (run_id, stream),
  constraint stream_has_a_whole_target check ((target_type is null) = (target_id is null))
);
comment on table tidebase.state_streams is
  'The streams of versioned documents that a run keeps: its live state, others of its choice, and one a target of snapshots.';
comment on column tidebase.state_streams.target_type is 'What the stream''s snapshots are of, e.g. file; NULL for state.';
comment on column tidebase.state_streams.target_id is 'Which one of that type.';

-- A version is stored whole (a keyframe) or as what changed since an earlier one. The earlier one is chosen as
-- Subversion chooses it for its "skip-deltas", so any version is read from a handful of rows, however long the history.
create table tidebase.state_versions (
  run_id      text not null,
  stream      text not null,
  version     integer not null,
  base        integer,
  keyframe    integer not null,
  group_bytes bigint not null,
  seq         bigint not null,
  created_at  timestamptz not null default clock_timestamp(),
  operation   text not null,
  importance  text not null default 'normal',
  content     jsonb not null,
  label       text,
  reason      text,
  created_by  text,
  metadata    jsonb,
  constraint state_versions_pkey primary key (run_id, stream, version),
  constraint state_version_starts_at_one check (version >= 1),
  constraint state_base_is_between check (base >= keyframe and base < version and keyframe <= version),
  constraint state_is_a_keyframe_or_a_change check ((base is null) = (keyframe = version)),
  constraint state_operation_is_known check (operation in ('set', 'patch', 'save', 'restore', 'snapshot')),
  constraint state_importance_is_known check (importance in ('transient', 'normal', 'checkpoint', 'milestone')),
  constraint state_metadata_is_an_object check (jsonb_typeof(metadata) = 'object')
);
create index state_versions_labeled on tidebase.state_versions (run_id, stream, version) where label is not null;
comment on table tidebase.state_versions is 'Every version of every stream: 1..n, never changed. Read them with get_state.';
comment on column tidebase.state_versions.base is 'The version that content is a change of; NULL: content is the whole document.';
comment on column tidebase.state_versions.keyframe is 'The newest version up to this one that is stored whole.';
comment on column tidebase.state_versions.group_bytes is 'How much is stored as changes since the keyframe, with this version: it says when the next one is due.';
comment on column tidebase.state_versions.seq is 'The seq of the version''s event.';
comment on column tidebase.state_versions.content is 'The document, or what changed; see tidebase_private.apply_change.';

create table tidebase.usage (
  run_id             text not null,
  seq                bigint not null,
  created_at         timestamptz not null default clock_timestamp(),
  input_tokens       bigint,
  cache_read_tokens  bigint,
  cache_write_tokens bigint,
  output_tokens      bigint,
  reasoning_tokens   bigint,
  kind               text not null,
  step               text,
  provider           text,
  model              text,
  response_id        text,
  cost               numeric,
  currency           text not null,
  quantity           numeric,
  unit               text,
  label              text,
  metadata           jsonb,
  constraint usage_pkey primary key (run_id, seq),
  constraint usage_counts_upwards check (least(input_tokens, cache_read_tokens, cache_write_tokens, output_tokens,
    reasoning_tokens, cost, quantity) >= 0),
  constraint usage_is_finite check (cost < 'Infinity' and quantity < 'Infinity'),  -- NaN is the greatest numeric
  constraint usage_currency_is_a_code check (currency ~ '^[A-Z]{3}$'),
  constraint usage_metadata_is_an_object check (jsonb_typeof(metadata) = 'object')
);
create unique index usage_once_a_response on tidebase.usage (run_id, response_id) where response_id is not null;
comment on table tidebase.usage is
  'What calls to models and other paid services used. The columns are those of the OpenTelemetry GenAI conventions: kind is gen_ai.operation.name, provider gen_ai.provider.name, model gen_ai.response.model, response_id gen_ai.response.id, input_tokens and output_tokens gen_ai.usage.*, cache_read_tokens gen_ai.usage.cache_read.input_tokens, cache_write_tokens gen_ai.usage.cache_creation.input_tokens.';
comment on column tidebase.usage.seq is 'The seq of the usage.recorded event.';
comment on column tidebase.usage.input_tokens is 'All input tokens, those from and to the cache included.';
comment on column tidebase.usage.output_tokens is 'All output tokens, those for reasoning included.';
comment on column tidebase.usage.cost is 'The price, exact; NULL when nobody knows it, never 0 for that.';
comment on column tidebase.usage.currency is 'ISO 4217.';
comment on column tidebase.usage.quantity is 'How much of the unit was used, where tokens are not the measure: 3 images, 12.5 seconds.';

create table tidebase.accounts (
  run_id             text not null,
  parent_run_id      text,
  records            bigint not null default 0,
  unpriced           bigint not null default 0,
  input_tokens       bigint not null default 0,
  cache_read_tokens  bigint not null default 0,
  cache_write_tokens bigint not null default 0,
  output_tokens      bigint not null default 0,
  reasoning_tokens   bigint not null default 0,
  shared_tokens      bigint not null default 0,
  token_limit        bigint,
  cost_usd           numeric not null default 0,
  shared_cost_usd    numeric not null default 0,
  cost_limit_usd     numeric,
  constraint accounts_pkey primary key (run_id),
  constraint account_limits_are_not_negative check (token_limit >= 0 and cost_limit_usd >= 0)
) with (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 1000);
comment on table tidebase.accounts is
  'Running totals of what a run used, and what it may use: one row a run that recorded usage or has a budget, or is below one that has.';
comment on column tidebase.accounts.parent_run_id is 'The parent whose budget also counts for this run.';
comment on column tidebase.accounts.unpriced is 'How many records have no price in USD: the cost is that much too low.';
comment on column tidebase.accounts.shared_cost_usd is 'The cost with that of the descendants; kept where there is a budget.';
comment on column tidebase.accounts.shared_tokens is 'Input and output tokens with those of the descendants; kept where there is a budget.';

alter table tidebase.run_heads add column has_budget boolean not null default false;
comment on column tidebase.run_heads.has_budget is 'Whether the run or one above it has a budget: begin_step looks at the accounts only then.';

alter table tidebase.runs add column compacted_at timestamptz;
comment on column tidebase.runs.compacted_at is 'When compact_run took the outputs and old states away.';
update tidebase.runs set finished_at = cancelled_at where cancelled_at is not null and finished_at is null;

-- Rows come and go by the run: vacuum and analyze follow the share of a table that changed early, or a large table
-- would wait for 20 % of itself.
do $$
declare
  name text;
begin
  foreach name in array array['runs', 'attempts', 'steps', 'events', 'state_versions', 'usage', 'edges'] loop
    execute format('alter table tidebase.%I set (autovacuum_vacuum_scale_factor = 0.05, autovacuum_analyze_scale_factor = 0.05)', name);
  end loop;
  foreach name in array array['runs', 'steps', 'events', 'state_versions'] loop
    execute format('alter table tidebase.%I set (toast.autovacuum_vacuum_scale_factor = 0.05)', name);
  end loop;
end
$$;
do $$
begin
  execute 'alter table tidebase.state_versions alter content set compression lz4';
exception when feature_not_supported then null;  -- a server without lz4
end
$$;

create type tidebase.state as (
  stream     text,
  version    integer,
  value      jsonb,
  operation  text,
  importance text,
  label      text,
  reason     text,
  created_by text,
  metadata   jsonb,
  seq        bigint,
  created_at timestamptz
);
comment on type tidebase.state is
  'One version of a stream. operation: set, patch, save, restore or snapshot; importance: transient, normal, checkpoint or milestone; seq: of its event.';

create type tidebase.snapshot as (
  target_type text,
  target_id   text,
  stream      text,
  version     integer,
  label       text,
  value       jsonb,
  reason      text,
  created_by  text,
  metadata    jsonb,
  seq         bigint,
  created_at  timestamptz
);
comment on type tidebase.snapshot is 'One labeled version: of a target that create_snapshot was given, or of the run''s state (target_type state, target_id the stream).';

create type tidebase.usage_total as (
  recorded      boolean,
  records       bigint,
  input_tokens  bigint,
  output_tokens bigint,
  cost_usd      numeric,
  unpriced      bigint,
  exhausted     boolean,
  seq           bigint
);
comment on type tidebase.usage_total is
  'Answer of record_usage: whether this call was counted (false: that response was before), what the run used so far, how many records have no price, whether a budget is used up, and the seq of the record''s event.';

create type tidebase.tree_node as (
  run_id          text,
  parent_run_id   text,
  name            text,
  edge_type       text,
  depth           integer,
  workflow        text,
  status          text,
  steps_completed integer,
  created_at      timestamptz,
  finished_at     timestamptz
);
comment on type tidebase.tree_node is 'One run of a tree, as run_tree returns it: depth 0 is the run that was asked for; name and edge_type are of the edge to it.';

create type tidebase.run_difference as (
  kind       text,
  name       text,
  difference text,
  seq        bigint,
  other_seq  bigint,
  value      jsonb,
  other      jsonb
);
comment on type tidebase.run_difference is
  'One thing in which two runs differ. kind: input, step, gate, state or result; difference: missing (the other does not have it), added (only the other has it), input (begun with another input) or value.';

-- Where a trace (W3C Trace Context) meets a run: the span in which it was made, and that of each attempt.
alter table tidebase.runs add column traceparent text;
comment on column tidebase.runs.traceparent is 'The traceparent of W3C Trace Context under which the run was made, if any.';
alter table tidebase.attempts add column traceparent text;
comment on column tidebase.attempts.traceparent is 'The traceparent of the attempt''s own span, if its worker traces.';
alter type tidebase.lease add attribute traceparent text;
comment on type tidebase.lease is
  'Answer of acquire_run. outcome: granted (token, attempt, input, the number of checkpoints and the traceparent to link to are yours), held (by holder until expires_at), completed (result), waiting, review.';

-- These get more parameters: what the function files make anew must not stand beside the old form.
drop function if exists tidebase.create_run(text, jsonb, text, jsonb, timestamptz, integer, interval, text);
drop function if exists tidebase.create_child(text, bigint, text, text, jsonb, text, jsonb);
drop function if exists tidebase.list_runs(text, text, text, integer);
drop function if exists tidebase.acquire_run(text, text, interval, text, text);
