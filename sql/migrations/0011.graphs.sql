-- Graphs: a client that remembers values of a thread reads only what came after them.
-- depends: 0010.studio

create type tidebase.thread_checkpoint_beyond as (
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
  writes         bytea[],
  bases          integer[]
);
comment on type tidebase.thread_checkpoint_beyond is
  'A thread_checkpoint of whose values the client has some. bases: of each value the number of the one whose body it begins with; only what comes after that is in bodies. NULL: the body is whole.';

-- One function with a parameter took their place.
drop function if exists tidebase_private.lock_thread(text);
drop function if exists tidebase_private.lock_whole_thread(text);
