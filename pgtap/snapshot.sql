-- Snapshots: numbered for each target, whatever it is called.
begin;
select no_plan();
\ir support/helpers.psql
create temp table before (everything jsonb);

-- taking
select pg_temp.leased('r');
select is(tidebase.create_snapshot('r', 1, 'draft', 'file', 'a.txt', '{"lines": ["one"]}'), 1, 'the first snapshot of a target is 1');
select is(tidebase.create_snapshot('r', 1, 'final', 'file', 'a.txt', '{"lines": ["one", "two"]}', 'why', 'normal', '{"m": 1}', 'ada'), 2, 'the next is 2');
select is(tidebase.create_snapshot('r', 1, 'draft', 'file', 'b.txt', '"other"'), 1, 'another target is counted on its own');
select is(tidebase.create_snapshot('r', 1, 'draft', 'page', 'a.txt', '[1]'), 1, 'so is one of another type');
select results_eq($$select target_type, target_id, version, label, value, reason, created_by = current_user, metadata, seq from tidebase.list_snapshots('r')$$,
  $$values ('page', 'a.txt', 1, 'draft', '[1]'::jsonb, null::text, true, '{}'::jsonb, 6::bigint),
    ('file', 'b.txt', 1, 'draft', '"other"', null, true, '{}', 5),
    ('file', 'a.txt', 2, 'final', '{"lines": ["one", "two"]}', 'why', false, '{"m": 1}', 4),
    ('file', 'a.txt', 1, 'draft', '{"lines": ["one"]}', null, true, '{}', 3)$$, 'they are listed, the newest first, with what was said of them');
select is((select created_by from tidebase.list_snapshots('r', label => 'final')), 'ada', 'whoever took them');
select results_eq($$select seq, type, payload from tidebase.read_events('r', 2, 2)$$,
  $$values (3::bigint, 'snapshot.created', '{"stream": "snapshot:[\"file\", \"a.txt\"]", "version": 1, "operation": "snapshot", "importance": "milestone", "label": "draft"}'::jsonb),
    (4, 'snapshot.created', '{"stream": "snapshot:[\"file\", \"a.txt\"]", "version": 2, "operation": "snapshot", "importance": "normal", "label": "final", "reason": "why"}')$$, 'the log tells of each');
select results_eq($$select version, operation, importance, label, value from tidebase.list_state_versions('r', (select stream from tidebase.list_snapshots('r', label => 'final')), with_value => true)$$,
  $$values (2, 'snapshot', 'normal', 'final', '{"lines": ["one", "two"]}'::jsonb), (1, 'snapshot', 'milestone', 'draft', '{"lines": ["one"]}')$$, 'those of a target are the versions of its stream');
select is((select content from tidebase.state_versions where run_id = 'r' and seq = 4), '{"lines": [1, ["two"]]}', 'of which only what changed is stored');
select is((select value from tidebase.get_state('r', (select stream from tidebase.list_snapshots('r', label => 'final')), label => 'draft')), '{"lines": ["one"]}', 'so get_state finds them, too');
select is(tidebase.create_snapshot('r', 1, 'final', 'file', 'a.txt', '{"lines": []}'), 3, 'a label may be given again');
select results_eq($$select version from tidebase.list_snapshots('r', 'file', 'a.txt', 'final')$$, $$values (3), (2)$$, 'and finds both');
select is(tidebase.create_snapshot('r', 1, 'null', 'file', 'c.txt', 'null'), 1, 'the JSON null is a document');
select is((select value from tidebase.list_snapshots('r', target_id => 'c.txt')), 'null', 'and reads back');

-- what is meant when nothing is said
select pg_temp.leased('d');
insert into before values (pg_temp.picture());
select throws_ok($$select tidebase.create_snapshot('d', 1, 'l')$$, 'TB012', null, 'there is no state to keep');
select throws_ok($$select tidebase.create_snapshot('d', 1, 'l', 'file', 'x')$$, 'TB012', null, 'of any target');
select is(pg_temp.picture(), (select everything from before), 'and nothing is written');
select tidebase.set_state('d', 1, '1', 'side');
select throws_ok($$select tidebase.create_snapshot('d', 1, 'l')$$, 'TB012', null, 'another stream is not the run''s state');
select is(tidebase.create_snapshot('d', 1, 'given', state => '{"given": 1}'), 1, 'a state that is given needs none');
select tidebase.set_state('d', 1, '{"n": 1.0}');
select is(tidebase.create_snapshot('d', 1, 'first'), 2, 'the run''s state is taken');
select tidebase.patch_state('d', 1, '{"n": 2}');
select is(tidebase.create_snapshot('d', 1, 'second'), 3, 'as it is');
select is(tidebase.create_snapshot('d', 1, 'third', 'file', 'x'), 1, 'for a target of one''s own as well');
select is(tidebase.create_snapshot('d', 1, 'fourth', 'file'), 1, 'the id of a target is self, unless told');
select is(tidebase.create_snapshot('d', 1, 'fifth', 'run', 'self', '0'), 4, 'so it may be told');
select results_eq($$select label, target_type, target_id, version, value::text from tidebase.list_snapshots('d')$$,
  $$values ('fifth', 'run', 'self', 4, '0'), ('fourth', 'file', 'self', 1, '{"n": 2}'), ('third', 'file', 'x', 1, '{"n": 2}'), ('second', 'run', 'self', 3, '{"n": 2}'), ('first', 'run', 'self', 2, '{"n": 1.0}'),
    ('given', 'run', 'self', 1, '{"given": 1}')$$, 'a snapshot is of the run and of its state, unless told');
select is((select importance from tidebase.list_state_versions('d', max => 1)), 'milestone', 'and a milestone');
select is((tidebase.get_state('d')).version, 2, 'the state itself has no version more');
select ok(pg_temp.dense('d'), 'and the log no gap');

-- tricky names
create temp table targets (type text, id text);
insert into targets values ('a:b', 'c'), ('a', 'b:c'), ('a', 'b'), ('a"', 'b'), ('a', '"b'), ('a", "b', 'c'), ('a', 'b", "c'), ('a''', '$$'), ('["a"', '"b"]'), ('a,', 'b'), ('a', ',b'), ('a\', 'b'), ('a', '\b'),
  ('ä', 'ö'), ('😀', '😀'), ('a ', 'b'), ('a', ' b'), ('A', 'b'), ('state', 'main'), ('run', 'tricky'), (E'a\n', E'\tb'), ('x''; drop table tidebase.runs; --', '%s%L'), (repeat('x', 255), repeat('ä', 512));
select pg_temp.leased('tricky');
select tidebase.create_snapshot('tricky', 1, type || ' ' || id, type, id, jsonb_build_array(type, id, 1)) from targets where length(id) < 500;
select tidebase.create_snapshot('tricky', 1, 'long', type, id, '1') from targets where length(id) > 500;
select is((select max(version) from tidebase.list_snapshots('tricky')), 1, 'no two targets are taken for one');
select set_eq($$select target_type, target_id from tidebase.list_snapshots('tricky')$$, $$select type, id from targets$$, 'all are listed as they are called');
select results_eq(format($$select value from tidebase.list_snapshots('tricky', %L, %L)$$, type, id),
  format($$values (jsonb_build_array(%L, %L, 1))$$, type, id), format('%s of type %s is found', to_json(id), to_json(type))) from targets where length(id) < 500;
select is(tidebase.create_snapshot('tricky', 1, 'again', 'a', 'b:c', '2'), 2, 'a second one is of the same target');
select is((select count(*) from tidebase.state_streams where run_id = 'tricky'), (select count(*) from targets), 'there are as many streams as targets');

-- saved states
select pg_temp.leased('s');
select tidebase.set_state('s', 1, '{"n": 1}');
select tidebase.save_state('s', 1, 'saved', reason => 'why', created_by => 'ada', metadata => '{"m": 1}');
select tidebase.set_state('s', 1, '{"n": 2}', label => 'set');
select tidebase.set_state('s', 1, '{"n": 3}', 'side', label => 'set');
select tidebase.set_state('s', 1, '{"n": 4}', 'side');
select tidebase.create_snapshot('s', 1, 'saved', 'file', 'main', '5');
select results_eq($$select target_type, target_id, stream, version, label, value, reason, metadata from tidebase.list_snapshots('s')$$,
  $$values ('file', 'main', 'snapshot:["file", "main"]', 1, 'saved', '5'::jsonb, null::text, '{}'::jsonb), ('state', 'side', 'side', 1, 'set', '{"n": 3}', null, '{}'),
    ('state', 'main', 'main', 3, 'set', '{"n": 2}', null, '{}'), ('state', 'main', 'main', 2, 'saved', '{"n": 1}', 'why', '{"m": 1}')$$, 'states with a label are listed as well, of type state');
select results_eq($$select target_id, version from tidebase.list_snapshots('s', 'state')$$, $$values ('side', 1), ('main', 3), ('main', 2)$$, 'by type');
select results_eq($$select target_type, version from tidebase.list_snapshots('s', target_id => 'main')$$, $$values ('file', 1), ('state', 3), ('state', 2)$$, 'by id');
select results_eq($$select target_type, target_id from tidebase.list_snapshots('s', label => 'saved')$$, $$values ('file', 'main'), ('state', 'main')$$, 'by label');
select results_eq($$select version from tidebase.list_snapshots('s', 'state', 'main', 'saved')$$, $$values (2)$$, 'by all of them');
select results_eq($$select label, seq from tidebase.list_snapshots('s', max => 2)$$, $$values ('saved', 8::bigint), ('set', 6)$$, 'so many at most');
select results_eq($$select version from tidebase.list_snapshots('s', 'state', 'main', max => 1)$$, $$values (3)$$, 'of those that are meant');
select is_empty('select * from tidebase.list_snapshots(''s'', ' || filter || ')', 'nothing is found by ' || filter) from unnest(array[
  '''none''', '''state'', ''none''', '''file'', ''side''', 'label => ''none''', 'label => ''''', '''file'', ''main'', ''set''']) filter;
select is((select count(value) from tidebase.list_snapshots('s', with_value => false)), 0::bigint, 'the documents stay away if they are not wanted');
select is((select count(*) from tidebase.list_snapshots('s', with_value => false)), 4::bigint, 'the rest comes');
select ok((select bool_and(created_at between clock_timestamp() - interval '1 min' and clock_timestamp()) from tidebase.list_snapshots('s')), 'with the time');
select pg_temp.leased('empty');
select is_empty($$select * from tidebase.list_snapshots('empty')$$, 'a run may have no snapshots');
select throws_ok($$select tidebase.list_snapshots('none')$$, 'TB001', null, 'but must exist');
select throws_ok($$select tidebase.list_snapshots(null)$$, 'TB001', null, 'and have an id');
select throws_ok(format($$select tidebase.list_snapshots('s', max => %L)$$, max), 'TB002', null, format('max is not %L', max)) from unnest(array[0, -1, 10001]) max;
select lives_ok(format($$select tidebase.list_snapshots('s', max => %L)$$, max), 'it may be ' || max) from unnest(array[1, 10000]) max;

-- arguments
update before set everything = pg_temp.picture();
select throws_ok('select tidebase.create_snapshot(''s'', 1, ' || arguments || ')', 'TB002', null, 'create_snapshot refuses ' || arguments) from unnest(array[
  'null', '''''', ''' ''', 'repeat(''x'', 1025)', 'repeat(''ä'', 513)', '''l'', ''''', '''l'', '' ''', '''l'', repeat(''x'', 256)', '''l'', ''file'', ''''', '''l'', ''file'', '' ''',
  '''l'', ''file'', repeat(''x'', 1025)', '''l'', importance => ''huge''', '''l'', importance => ''''', '''l'', metadata => ''[]''', '''l'', metadata => ''null''', '''l'', metadata => ''"x"''',
  '''l'', request_id => ''''', '''l'', request_id => '' ''', '''l'', request_id => repeat(''x'', 256)']) arguments;
select throws_ok(format($$select tidebase.create_snapshot('s', %s, 'l')$$, token), 'TB003', null, token || ' is not the token') from unnest(array['0', '2', 'null']) token;
select throws_ok($$select tidebase.create_snapshot('none', 1, 'l')$$, 'TB001', null, 'an unknown run has no snapshots');
select throws_ok($$select tidebase.create_snapshot('none', 1, 'l', 'file', 'x', '1')$$, 'TB001', null, 'of nothing');
select is(pg_temp.picture(), (select everything from before), 'what was refused left nothing behind');
select lives_ok('select tidebase.create_snapshot(''s'', 1, ' || arguments || ')', 'create_snapshot takes ' || arguments) from unnest(array[
  'repeat(''ä'', 512)', '''l'', repeat(''x'', 255)', '''l'', ''file'', repeat(''x'', 1024)', '''l'', importance => ''transient''', '''l'', importance => ''checkpoint''', '''l'', importance => null',
  '''l'', metadata => ''{}''', '''l'', reason => ''''', '''l'', request_id => repeat(''x'', 255)', '''l'', state => ''[]''', '''l; drop table tidebase.runs; --''']) arguments;
select ok(pg_temp.dense('s'), 'the log has no gap');

-- the fence
create function pg_temp.with_state(id text) returns void language sql as $$
  select pg_temp.leased(id);
  select tidebase.set_state(id, 1, '{"a": 1}');
  select tidebase.create_snapshot(id, 1, 'l');
$$;
select pg_temp.with_state(status) from unnest(array['taken', 'cancelled', 'completed', 'failed', 'pending', 'waiting', 'review']) status;
select pg_temp.take_over('taken');
select pg_temp.put(status, status) from unnest(array['cancelled', 'completed', 'failed', 'pending', 'waiting', 'review']) status;
update before set everything = pg_temp.picture();
select throws_ok($$select tidebase.create_snapshot('taken', 1, 'l')$$, 'TB003', null, 'a stale token is fenced');
select throws_ok($$select tidebase.create_snapshot('cancelled', 1, 'l')$$, 'TB004', null, 'no snapshot is taken of a cancelled run');
select throws_ok($$select tidebase.create_snapshot('completed', 1, 'l')$$, 'TB005', null, 'nor of a completed one');
select throws_ok(format($$select tidebase.create_snapshot('%s', 1, 'l')$$, status), 'TB003', null, 'nor of one that is ' || status) from unnest(array['failed', 'pending', 'waiting', 'review']) status;
select throws_ok($$select tidebase.create_snapshot('empty', 9, 'l')$$, 'TB003', null, 'who has no lease does not learn whether there is any state');
select is(pg_temp.picture(), (select everything from before), 'nothing came of it');
select is(tidebase.create_snapshot('taken', 2, 'l'), 2, 'who took over goes on');
select is((select count(*) from tidebase.list_snapshots(status)), 1::bigint, 'they are read of a run that is ' || status) from unnest(array['cancelled', 'completed', 'failed', 'pending', 'waiting', 'review']) status;

-- the same call again, and durability
select pg_temp.with_state('again');
select pg_temp.same_again($$select tidebase.create_snapshot('again', 1, 'l', 'file', 'x', '1', request_id => 'given')$$, 'a snapshot is taken once');
select pg_temp.same_again($$select tidebase.create_snapshot('again', 1, 'l', request_id => 'state')$$, 'also of the run''s state');
select tidebase.patch_state('again', 1, '{"b": 2}');
select is(tidebase.create_snapshot('again', 1, 'l', request_id => 'state'), 2, 'whatever became of it since');
select is(tidebase.create_snapshot('again', 1, 'l', request_id => 'state too'), 3, 'another id is another snapshot');
select pg_temp.take_over('again');
select is(tidebase.create_snapshot('again', 2, 'l', request_id => 'state'), 2, 'ids of calls outlive the lease');
select tidebase.append_event('again', 2, 'note', '{"version": 1}', 'event');
select throws_ok($$select tidebase.create_snapshot('again', 2, 'l', request_id => 'event')$$, 'TB002', null, 'that of another kind of call is refused');
select ok(pg_temp.dense('again'), 'a repetition costs no number');
select is(pg_temp.durability($$select tidebase.create_snapshot('again', 2, 'l')$$), 'on', 'a snapshot commits synchronously');
select is(pg_temp.durability($$select tidebase.create_snapshot('again', 2, 'l', importance => 'transient')$$), 'off', 'a transient one does not');
select is(pg_temp.durability($$select tidebase.create_snapshot('again', 2, 'l')$$, setting), setting, 'a stronger setting stays: ' || setting) from unnest(array['local', 'remote_apply']) setting;
select pg_temp.leased('reserved');
select throws_ok($$select tidebase.set_state('reserved', 1, '1', 'snapshot:["a", "b"]')$$, 'TB002', null, 'no other stream has the name of a target''s snapshots');
select * from finish();
rollback;
