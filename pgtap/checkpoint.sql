-- Threads of LangGraph: what a checkpoint has, what is stored once, what is taken away.
begin;
select no_plan();
\ir support/helpers.psql

create function pg_temp.put(id text, parent text default null, changes jsonb default '[]', contents text[] default '{}', edition text default null,
  metadata jsonb default '{}', namespace text default '', channels text[] default null, versions text[] default null, thread text default 't')
returns tidebase.checkpoint_put language sql as $$
  select tidebase.put_checkpoint(thread, namespace, id, 'x', convert_to(id, 'UTF8'), metadata, parent, channels, versions, changes,
    array(select convert_to(c, 'UTF8') from unnest(contents) c), edition);
$$;
create function pg_temp.changed(base integer, pieces text, version text default 'v') returns jsonb language sql as $$
  select jsonb_build_array(jsonb_build_object('channel', 'c', 'version', version, 'type', 'x', 'head', 0, 'base', base, 'pieces', pieces::jsonb));
$$;
create function pg_temp.body(id text) returns text language sql as $$
  select string_agg(convert_from(h, 'UTF8') || convert_from(b, 'UTF8'), ' ') from tidebase.get_checkpoint('t', '', id) g, unnest(g.heads, g.bodies) v (h, b);
$$;
create function pg_temp.edition(of text default 't') returns text language sql as $$ select thread || '/' || edition from tidebase.threads where thread_id = of $$;

-- a value is made of pieces
select is_empty($$select * from tidebase.get_checkpoint('t')$$, 'there is nothing before something is put');
select is((pg_temp.put('a', null, pg_temp.changed(null, '[1]', 'v1'), '{"2:","one two "}')).outcome, 'stored', 'a thread begins with its first checkpoint');
select is(pg_temp.body('a'), '2:one two ', 'which has its value');
select is((pg_temp.put('b', 'a', pg_temp.changed(1, '[[0, 8], 1]', 'v2'), '{"3:","three "}', pg_temp.edition())).value_numbers, '{2}'::integer[], 'the next one adds to it');
select is(pg_temp.body('b'), '3:one two three ', 'and has all of it');
select is((select array_agg(convert_from(content, 'UTF8') order by position) from tidebase.thread_chunks), array['one two ', 'three '], 'of which nothing is stored twice');
select results_eq($$select bodies[1], bases from tidebase.get_checkpoint_beyond('t', '', 'b', pg_temp.edition(), '{1}', '{v1}')$$, $$values ('three '::bytea, '{1}'::integer[])$$, 'who has what was before reads only what is new');
select results_eq(format($$select bodies[1], bases from tidebase.get_checkpoint_beyond('t', edition => %L, known => '{1}', versions => array[%L])$$, e, v), $$values ('one two three '::bytea, '{NULL}'::integer[])$$, 'all of it who has another one')
from (values ('other', 'v1'), (pg_temp.edition(), 'v0')) o (e, v);
select results_eq($$select bodies[1], bases from tidebase.get_checkpoint_beyond('t', '', 'a', pg_temp.edition(), '{2}', '{v2}')$$, $$values ('one two '::bytea, '{NULL}'::integer[])$$, 'or one that is longer');
select throws_ok($$select tidebase.get_checkpoint_beyond('t', known => '{1}')$$, 'TB002', null, 'a number is known with its version');
select is((pg_temp.put('c', 'b', jsonb_set(pg_temp.changed(2, '[[0, 4], 1]'), '{0,base_version}', '"v0"'), '{"","x"}', pg_temp.edition())).outcome, 'incomplete', 'a base of another version is not used');
select is((pg_temp.put('c', 'b', pg_temp.changed(2, '[[0, 4], 1, [8, 14]]', 'v3'), '{"3:","TWO "}', pg_temp.edition())).outcome, 'stored', 'something in the middle is replaced');
select is(pg_temp.body('c'), '3:one TWO three ', 'and comes back');
select is((pg_temp.put('d', 'c', pg_temp.changed(3, '[[4, 10], 1]', 'v4'), '{"2:","four "}', pg_temp.edition())).outcome, 'stored', 'the beginning goes');
select is(pg_temp.body('d'), '2:TWO thfour ', 'in the middle of a chunk');
select is((pg_temp.put('e', 'd', '[]', '{}', null, '{}', '', '{c}', '{v4}')).outcome, 'stored', 'a checkpoint keeps what did not change');
select is(pg_temp.body('e'), pg_temp.body('d'), 'as it was');
select is((pg_temp.put('f', 'e', '[]', '{}', null, '{}', '', '{c,d}', '{v1,v1}')).channels, '{d}'::text[], 'what is nowhere is asked for');
select is((pg_temp.put('f', 'e', '[]', '{}', null, '{}', '', '{c}', '{v1}')).outcome, 'stored', 'an older version is found');
select is(pg_temp.body('f'), '2:one two ', 'as it was');
select is((pg_temp.put('g', 'f', pg_temp.changed(9, '[[0, 1]]'), '{""}', pg_temp.edition())).outcome, 'incomplete', 'a base that is not there is not used');
select is((pg_temp.put('g', 'f', pg_temp.changed(1, '[[0, 1]]'), '{""}', null)).outcome, 'incomplete', 'nor one of an unknown edition');
select is((pg_temp.put('g', 'f', pg_temp.changed(null, '[]'), '{"none"}')).outcome, 'stored', 'a value may be its head');
select is(pg_temp.body('g'), 'none', 'and nothing else');
select is((pg_temp.put('g', 'f', pg_temp.changed(null, '[]'), '{"none"}')).value_numbers, (select value_numbers from tidebase.get_checkpoint('t')), 'the same call gets the same answer');
select is((select count(*) from tidebase.thread_checkpoints), 7::bigint, 'and changes nothing');
select is((pg_temp.put('g', 'f', pg_temp.changed(null, '[]'), '{"other"}', null, '{"new": true}')).outcome, 'stored', 'the newest may be put again');
select is(pg_temp.body('g'), 'other', 'otherwise');
select pg_temp.put('big' || i, case when i > 1 then 'big' || i - 1 end, pg_temp.changed(nullif(i - 1, 0), case i when 1 then '[1]' else format('[[0, %s], 1, [%s, %s]]', i - 1, i - 1, i * 2 - 3) end),
  array['', case i when 1 then 'a' else 'xy' end], pg_temp.edition(coalesce('many', i::text)), thread => 'many') from generate_series(1, 80) i;
select cmp_ok((select max(cardinality(parts)) from tidebase.thread_values), '<=', 64, 'a value of many pieces is stored anew');
select is((select octet_length(bodies[1]) from tidebase.get_checkpoint('many')), 159, 'whole');
select is((pg_temp.put('long', null, pg_temp.changed(null, '[1]'), array['', repeat('x', 20000)], thread => 'long')).outcome, 'stored', 'what is long');
select is((select count(*) from tidebase.thread_chunks k join tidebase.threads t using (thread) where thread_id = 'long'), 3::bigint, 'is cut');

-- writes
select is(tidebase.put_checkpoint_writes('t', '', 'g', 'task', 'p2', '{0,1,-1}', '{a,b,e}', '{x,x,x}', array['\x01', '\x02', '\x03']::bytea[]), 3, 'a task writes');
select is(tidebase.put_checkpoint_writes('t', '', 'g', 'task', 'p2', '{0,2,-1}', '{a,b,e}', '{x,x,x}', array['\x04', '\x05', '\x06']::bytea[]), 2, 'again: what is there stays, but for errors and the like');
select is(tidebase.put_checkpoint_writes('t', '', 'g', 'zask', 'p1', '{0}', '{a}', '{x}', array['\x07']::bytea[]), 1, 'another one, too');
select results_eq($$select task_ids, writes from tidebase.get_checkpoint('t')$$, $$values ('{zask,task,task,task,task}'::text[], array['\x07', '\x06', '\x01', '\x02', '\x05']::bytea[])$$, 'they come in the order of their paths');
select is(tidebase.put_checkpoint_writes('early', '', 'later', 'task', null, '{0}', '{a}', '{x}', array['\x01']::bytea[]), 1, 'or before their checkpoint');
select ok(not tidebase.has_checkpoint('early', '', 'later'), 'which is not there yet');
select ok(tidebase.has_checkpoint('t', '', 'g'), 'as this one is');

-- lists
select results_eq($$select checkpoint_id, newest_id from tidebase.list_checkpoints('t', max => 2)$$, $$values ('g', 'g'), ('f', 'g')$$, 'the newest come first');
select results_eq($$select checkpoint_id from tidebase.list_checkpoints('t', max => 2, after_thread_id => 't', after_namespace => '', after_number => 6)$$, '{e,d}'::text[], 'then the next page');
select results_eq($$select checkpoint_id from tidebase.list_checkpoints('t', '', before_id => 'c')$$, '{b,a}'::text[], 'those before one');
select results_eq($$select checkpoint_id from tidebase.list_checkpoints(filter => '{"new": true}')$$, '{g}'::text[], 'or with something in their metadata');
select results_eq($$select checkpoint_id from tidebase.list_checkpoints(checkpoint_id => 'b')$$, '{b}'::text[], 'or with an id');

-- what is taken away
select is(tidebase.copy_thread('t', 'copy'), 7, 'a thread is copied');
select is(tidebase.copy_thread('t', 'copy'), 7, 'once');
select is(tidebase.copy_thread('nowhere', 'copy2'), 0, 'where there is one');
select throws_ok($$select tidebase.copy_thread('many', 't')$$, 'TB002', null, 'not over another');
select is(tidebase.copy_thread('many', 'early'), 80, 'but for one without checkpoints');
select is(tidebase.prune_threads('{t,many}', max => 3), 3, 'what is old goes, in batches');
select is(tidebase.prune_threads('{t,many}'), 82, 'to the end');
select is((select count(*) from tidebase.list_checkpoints('t')), 1::bigint, 'the newest stays');
select is(pg_temp.body('g'), 'other', 'with its value');
select is((select cardinality(writes) from tidebase.get_checkpoint('t')), 5, 'and its writes');
select is((select parent_id from tidebase.get_checkpoint('t')), null, 'it has no parent any more');
select is((select count(*) from tidebase.thread_chunks k join tidebase.threads t using (thread) where thread_id = 't'), 0::bigint, 'and nothing else is left');
select pg_temp.put('g' || i, case i when 1 then 'g' else 'g' || i - 1 end, metadata => jsonb_build_object('counters_since_delta_snapshot', jsonb_build_object('c', array[i, i]))) from generate_series(1, 4) i;
select pg_temp.put('sub' || i, null, namespace => 'node:' || i, metadata => jsonb_build_object('parents', jsonb_build_object('', id))) from unnest(array['g', 'g1', 'g4', 'gone']) with ordinality s (id, i);
select pg_temp.put('g5', 'g4', metadata => '{"counters_since_delta_snapshot": {"c": [1, 2]}}');
select is(tidebase.prune_threads('{t}'), 5, 'a channel of differences keeps what it is made from');
select results_eq($$select checkpoint_id from tidebase.list_checkpoints('t')$$, '{g5,g4,g3,sub3,sub4}'::text[], 'and calls of subgraphs go with the step that made them');
select pg_temp.put('r' || i, case when i > 1 then 'r' || i - 1 end, metadata => jsonb_build_object('run_id', 'run ' || i % 2), thread => 'runs') from generate_series(1, 4) i;
select is(tidebase.delete_checkpoints_of_runs('{run 1,other}', max => 1), 1, 'the checkpoints of a run go, in batches');
select is(tidebase.delete_checkpoints_of_runs('{run 1}'), 1, 'to the end');
select results_eq($$select checkpoint_id, parent_id from tidebase.list_checkpoints('runs')$$, $$values ('r4', null::text), ('r2', null)$$, 'what followed has no parent any more');
select is(tidebase.prune_threads('{runs}', 'delete'), 2, 'a thread goes as a whole');
select is(tidebase.delete_thread('long'), true, 'or so');
select is(tidebase.delete_thread('long'), false, 'once');

-- owners
select tidebase.create_run('langgraph.thread', run_id => 'r');
select tidebase.acquire_run('r', 'w');
select is(tidebase.claim_thread('r', 1, 'mine'), true, 'a run has a thread');
select is(tidebase.claim_thread('r', 1, 'mine'), false, 'once');
select throws_ok($$select pg_temp.put('a', thread => 'mine')$$, 'TB003', null, 'and nobody else');
select throws_ok($$select tidebase.delete_thread('mine', 'r', 2)$$, 'TB003', null, 'with its token');
select throws_ok($$select tidebase.copy_thread('t', 'mine')$$, 'TB003', null, 'nor is another put in its place');
select throws_ok($$select tidebase.prune_threads('{mine}', 'delete')$$, 'TB003', null, 'or nothing');
select is(tidebase.delete_thread('mine', 'r', 1), true, 'it may go');
select tidebase.claim_thread('r', 1, 'mine');
select tidebase.release_run('r', 1);
select is(tidebase.delete_thread('mine'), true, 'whoever deletes it later');
select is_empty($$select from tidebase.runs where run_id = 'r'$$, 'takes the run along that claimed it');

-- what is refused
select throws_ok(format('select pg_temp.put(%s)', wrong), 'TB002', null, wrong || ' is refused')
from unnest(array['''''', 'null', '''x'', parent => ''''', '''x'', null, ''{}''', '''x'', null, ''[{}]''', '''x'', null, pg_temp.changed(null, ''[2]''), ''{"",""}''',
  '''x'', null, pg_temp.changed(null, ''[[0, 1]]''), ''{""}''', '''x'', null, pg_temp.changed(null, ''["a"]''), ''{""}''', '''x'', metadata => ''[]''',
  '''x'', metadata => null', '''x'', namespace => null', '''x'', namespace => repeat(''x'', 1001)', '''x'', channels => ''{a}''']) wrong;
select is((pg_temp.put('g6', 'g5', pg_temp.changed(null, '[1]'), '{"","abc"}')).value_numbers, '{1}'::integer[], 'where nothing is left, numbers begin anew');
select throws_ok($$select pg_temp.put('x', 'g6', pg_temp.changed(1, '[[0, 4]]'), '{""}', pg_temp.edition())$$, 'TB002', null, 'more than there is of a base is refused');
select throws_ok($$select tidebase.put_checkpoint('t', '', 'x', 'x', '', '{}', contents => array[null::bytea])$$, 'TB002', null, 'contents are bytes');
select throws_ok(statement, 'TB002', null, statement) from unnest(array['select tidebase.put_checkpoint_writes(''t'', '''', ''g'', ''t'', '''', ''{0}'', ''{}'', ''{}'', ''{}'')',
  'select tidebase.put_checkpoint_writes(''t'', '''', ''g'', ''t'', '''', ''{0}'', ''{""}'', ''{x}'', ''{a}'')', 'select tidebase.list_checkpoints(max => 0)', 'select tidebase.list_checkpoints(filter => ''1'')',
  'select tidebase.prune_threads(''{t}'', ''some'')', 'select tidebase.prune_threads(''{t}'', max => 0)', 'select tidebase.delete_checkpoints_of_runs(''{r}'', 0)']) statement;
insert into tidebase_private.settings values ('max_payload_bytes', '1000001');
select throws_ok($$select pg_temp.put('x', 'g5', pg_temp.changed(null, '[1]'), array['', repeat('x', 1000001)])$$, 'TB002', 'contents must take no more than 1000001 bytes', 'what is too long is refused');
select is_empty($$select * from tidebase_private.check_invariants()$$, 'the rules hold');
delete from tidebase.thread_chunks where thread = (select thread from tidebase.threads where thread_id = 'many');
delete from tidebase.thread_values where thread = (select thread from tidebase.threads where thread_id = 'early');
delete from tidebase.threads where thread_id = 'copy';
update tidebase.thread_checkpoints set number = -number where checkpoint_id = 'g5';
select set_eq($$select distinct invariant from tidebase.check_invariants()$$, array['the checkpoints of a thread are numbered from one',
  'a checkpoint has the values that it names', 'a value has all its chunks, and their length', 'what belongs to a thread has one'], 'and are looked at');
select * from finish();
