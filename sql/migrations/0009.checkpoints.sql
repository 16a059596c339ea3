-- Threads: the checkpoints of LangGraph, and what they share.
-- depends: 0008.push

-- The id of a thread is in one table only. The others know it by a key of 16 bytes that no thread after it has, under
-- whatever id; every primary key begins with it.
create table tidebase.threads (
  thread_id    text not null,
  thread       uuid not null default gen_random_uuid(),
  edition      integer not null default 1,
  owner_run_id text,
  copied_from  uuid,
  created_at   timestamptz not null default clock_timestamp(),
  constraint threads_pkey primary key (thread_id),
  constraint thread_has_a_key_of_its_own unique (thread)
);
comment on table tidebase.threads is
  'The threads that have checkpoints. Who puts one holds the lock of this row; it is written when the owner changes, and when something is taken away.';
comment on column tidebase.threads.edition is 'Counts how often something was taken away: what a client remembers of an earlier edition may be gone.';
comment on column tidebase.threads.owner_run_id is 'The run under whose lease the thread was written last: while that is alive, nobody else writes.';
comment on column tidebase.threads.copied_from is 'The key of the thread of which this one was made.';

create table tidebase.thread_checkpoints (
  thread        uuid not null,
  namespace     text not null,
  number        integer not null,
  checkpoint_id text not null,
  parent_id     text,
  type          text not null,
  content       bytea not null,
  metadata      jsonb not null,
  value_numbers integer[] not null,
  created_at    timestamptz not null default clock_timestamp(),
  constraint thread_checkpoints_pkey primary key (thread, namespace, number),
  constraint checkpoint_is_put_once unique (thread, namespace, checkpoint_id),
  constraint checkpoint_metadata_is_an_object check (jsonb_typeof(metadata) = 'object')
);
create index thread_checkpoints_by_run on tidebase.thread_checkpoints (left(metadata ->> 'run_id', 255)) where metadata ? 'run_id';
comment on table tidebase.thread_checkpoints is 'The checkpoints of a thread: one row each, with all but its large values.';
comment on column tidebase.thread_checkpoints.namespace is 'Empty for the graph itself, else that of a subgraph.';
comment on column tidebase.thread_checkpoints.number is
  'The order in which they were put: the newest has the highest, whatever the clocks say with which clients make their ids.';
comment on column tidebase.thread_checkpoints.content is 'The checkpoint as the client''s serializer wrote it, which type names.';
comment on column tidebase.thread_checkpoints.value_numbers is 'Its large values, in thread_values.';

-- A value is a head (of a list in MessagePack: its length) and a body, which consists of chunks: ranges of positions, one
-- after the other. A list that grows has the chunks of the list before it and one more, so its versions share them.
create table tidebase.thread_values (
  thread    uuid not null,
  namespace text not null,
  value     integer not null,
  channel   text not null,
  version   text not null,
  type      text not null,
  head      bytea not null,
  parts     int4range[] not null,
  bytes     bigint not null,
  constraint thread_values_pkey primary key (thread, namespace, value)
);
create index thread_values_by_version on tidebase.thread_values (thread, namespace, channel, version, value);
comment on table tidebase.thread_values is 'The values of channels, as far as they are not in their checkpoint: never changed.';
comment on column tidebase.thread_values.version is 'The version of the channel with which it came.';
comment on column tidebase.thread_values.parts is 'The positions of its chunks, in the order of the body.';
comment on column tidebase.thread_values.bytes is 'The length of the body.';

create table tidebase.thread_chunks (
  thread    uuid not null,
  namespace text not null,
  channel   text not null,
  position  integer not null,
  content   bytea not null,
  constraint thread_chunks_pkey primary key (thread, namespace, channel, position)
);
comment on table tidebase.thread_chunks is 'What the values of a channel consist of, each piece once: never changed.';

create table tidebase.thread_writes (
  thread        uuid not null,
  namespace     text not null,
  checkpoint_id text not null,
  task_id       text not null,
  idx           integer not null,
  channel       text not null,
  type          text not null,
  content       bytea not null,
  task_path     text not null,
  constraint thread_writes_pkey primary key (thread, namespace, checkpoint_id, task_id, idx)
);
comment on table tidebase.thread_writes is
  'What the tasks of a step wrote, before the next checkpoint has it: a task that has written is not executed again. It may come before its checkpoint.';
comment on column tidebase.thread_writes.idx is 'The place among the writes of the task; below zero for what is kept once for each task: an error, an interrupt.';

create type tidebase.thread_checkpoint as (
  thread_id      text,
  namespace      text,
  checkpoint_id  text,
  parent_id      text,
  number         integer,
  created_at     timestamptz,
  type           text,
  content        bytea,
  metadata       jsonb,
  newest_id      text,
  edition        text,
  value_numbers  integer[],
  channels       text[],
  types          text[],
  heads          bytea[],
  bodies         bytea[],
  task_ids       text[],
  write_channels text[],
  write_types    text[],
  writes         bytea[]
);
comment on type tidebase.thread_checkpoint is
  'A checkpoint of a thread with its values and its pending writes, each as parallel lists. newest_id: of the namespace, at that moment. edition: to be given back with the numbers of values. A value is its head and its body, one after the other, in the form that its type names. The writes come in the order in which the steps apply them.';

create type tidebase.checkpoint_put as (
  outcome       text,
  edition       text,
  channels      text[],
  value_numbers integer[]
);
comment on type tidebase.checkpoint_put is
  'What became of put_checkpoint. stored: value_numbers are those of the changes, in their order. incomplete: nothing was stored; the values of these channels are to be sent whole.';
