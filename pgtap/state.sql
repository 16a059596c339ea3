-- State: versioned documents. Whatever way a version is stored, it reads back as it was written.

-- First what only shows in a transaction that has not written yet. The run is deleted again below.
set synchronous_commit = on;
select tidebase.create_run('lazy') as lazy_run \gset
select token as lazy_token from tidebase.acquire_run(:'lazy_run', 'w') \gset
begin;
select tidebase.set_state(:'lazy_run', :lazy_token, '1', importance => 'transient') as void_version \gset
select current_setting('synchronous_commit') as after_transient, last_seq - durable_seq as in_doubt from tidebase.run_heads where run_id = :'lazy_run' \gset
select tidebase.save_state(:'lazy_run', :lazy_token, 'kept') as void_version \gset
select current_setting('synchronous_commit') as after_save, last_seq - durable_seq as save_in_doubt from tidebase.run_heads where run_id = :'lazy_run' \gset
rollback;
delete from tidebase.events where run_id = :'lazy_run';
delete from tidebase.attempts where run_id = :'lazy_run';
delete from tidebase.run_heads where run_id = :'lazy_run';
delete from tidebase.runs where run_id = :'lazy_run';

begin;
select no_plan();
\ir support/helpers.psql
select is(:'after_transient'::text, 'off', 'a transient version commits asynchronously');
select is(:in_doubt, 1, 'and is not known to be on disk');
select is(:'after_save'::text, 'on', 'a durable version after it makes the transaction durable');
select is(:save_in_doubt, 0, 'and with it all that was in doubt');

-- What is stored: the newest document of a stream, to the last zero.
create function pg_temp.text_of(id text, stream text default 'main') returns text language sql as $$
  select (tidebase.get_state(id, stream)).value::text;
$$;
-- The MergePatch of RFC 7396, section 2, word for word.
create function pg_temp.merged(target jsonb, patch jsonb) returns jsonb language plpgsql as $$
declare
  name text;
  value jsonb;
begin
  if jsonb_typeof(patch) <> 'object' then
    return patch;
  elsif target is null or jsonb_typeof(target) <> 'object' then
    target := '{}';
  end if;
  for name, value in select * from jsonb_each(patch) loop
    target := case value when 'null' then target - name else target || jsonb_build_object(name, pg_temp.merged(target -> name, value)) end;
  end loop;
  return target;
end
$$;

-- the examples of RFC 7396, appendix A
create temp table examples (n serial, original jsonb, patch jsonb, result jsonb);
insert into examples (original, patch, result) values
  ('{"a":"b"}', '{"a":"c"}', '{"a":"c"}'),
  ('{"a":"b"}', '{"b":"c"}', '{"a":"b","b":"c"}'),
  ('{"a":"b"}', '{"a":null}', '{}'),
  ('{"a":"b","b":"c"}', '{"a":null}', '{"b":"c"}'),
  ('{"a":["b"]}', '{"a":"c"}', '{"a":"c"}'),
  ('{"a":"c"}', '{"a":["b"]}', '{"a":["b"]}'),
  ('{"a":{"b":"c"}}', '{"a":{"b":"d","c":null}}', '{"a":{"b":"d"}}'),
  ('{"a":[{"b":"c"}]}', '{"a":[1]}', '{"a":[1]}'),
  ('["a","b"]', '["c","d"]', '["c","d"]'),
  ('{"a":"b"}', '["c"]', '["c"]'),
  ('{"a":"foo"}', 'null', 'null'),
  ('{"a":"foo"}', '"bar"', '"bar"'),
  ('{"e":null}', '{"a":1}', '{"e":null,"a":1}'),
  ('[1,2]', '{"a":"b","c":null}', '{"a":"b"}'),
  ('{}', '{"a":{"bb":{"ccc":null}}}', '{"a":{"bb":{}}}');
create function pg_temp.patched(stream text, original jsonb, patch jsonb) returns jsonb language plpgsql as $$
begin
  perform tidebase.set_state('rfc', 1, original, stream);
  perform tidebase.patch_state('rfc', 1, patch, stream);
  return (tidebase.get_state('rfc', stream)).value;
end
$$;
select pg_temp.leased('rfc');
select is(tidebase_private.merge_patch(original, patch), result, format('RFC 7396: %s patched with %s is %s', original, patch, result)) from examples order by n;
select is(pg_temp.patched('stream ' || n, original, patch), result, format('so it is in a stream: %s with %s', original, patch)) from examples order by n;
select is(pg_temp.merged(original, patch), result, 'the yardstick of this file agrees: example ' || n) from examples order by n;
select is(tidebase_private.merge_patch(null, '{"a":{"b":null},"c":null}'), '{"a":{}}', 'a patch of nothing makes an object of what it sets');
select ok(pg_temp.dense('rfc'), 'the log of all that has no gap');

-- writing
select pg_temp.leased('r');
select is(tidebase.set_state('r', 1, '{"a": 1}'), 1, 'the first version is 1');
select is(tidebase.patch_state('r', 1, '{"b": [1, 2]}', label => 'two', reason => 'why', importance => 'milestone', metadata => '{"m": 1}', created_by => 'ada'), 2, 'the next is 2');
select is(tidebase.save_state('r', 1, 'saved'), 3, 'a save is a version');
select is(tidebase.set_state('r', 1, '{"a": 2}', importance => 'transient'), 4, 'so is a transient one');
select is(tidebase.restore_state('r', 1, 2), 5, 'and a restored one');
select is(tidebase.restore_state('r', 1, label => 'saved', reason => 'back'), 6, 'also by its label');
select results_eq($$select version from tidebase.state_versions where run_id = 'r' and stream = 'main' order by version$$, $$select generate_series(1, 6)$$, 'the versions are 1..n');
select results_eq($$select version, value, operation, importance, label, reason, created_by = current_user, metadata from tidebase.list_state_versions('r', with_value => true) order by version$$,
  $$values (1, '{"a": 1}'::jsonb, 'set', 'normal', null::text, null::text, true, '{}'::jsonb),
    (2, '{"a": 1, "b": [1, 2]}', 'patch', 'milestone', 'two', 'why', false, '{"m": 1}'),
    (3, '{"a": 1, "b": [1, 2]}', 'save', 'checkpoint', 'saved', null, true, '{}'),
    (4, '{"a": 2}', 'set', 'transient', null, null, true, '{}'),
    (5, '{"a": 1, "b": [1, 2]}', 'restore', 'checkpoint', null, null, true, '{}'),
    (6, '{"a": 1, "b": [1, 2]}', 'restore', 'checkpoint', null, 'back', true, '{}')$$, 'each has what was said of it, and by whom');
select is((tidebase.get_state('r', version => 2)).created_by, 'ada', 'which may be anybody');
select results_eq($$select seq, type, payload from tidebase.read_events('r', 2)$$,
  $$values (3::bigint, 'state.updated', '{"stream": "main", "version": 1, "operation": "set", "importance": "normal"}'::jsonb),
    (4, 'state.updated', '{"stream": "main", "version": 2, "operation": "patch", "importance": "milestone", "label": "two", "reason": "why"}'),
    (5, 'state.saved', '{"stream": "main", "version": 3, "operation": "save", "importance": "checkpoint", "label": "saved"}'),
    (6, 'state.updated', '{"stream": "main", "version": 4, "operation": "set", "importance": "transient"}'),
    (7, 'state.restored', '{"stream": "main", "version": 5, "operation": "restore", "importance": "checkpoint", "restored": 2}'),
    (8, 'state.restored', '{"stream": "main", "version": 6, "operation": "restore", "importance": "checkpoint", "restored": 3, "reason": "back"}')$$, 'the log tells of each');
select is((select count(*) from tidebase.events e join tidebase.state_versions v using (run_id, seq) where e.run_id = 'r' and (e.payload ->> 'version')::integer = v.version), 6::bigint, 'a version knows the number of its event');
select is(tidebase.patch_state('r', 1, '{"a": {"b": null}, "c": null}', 'patched'), 1, 'a stream may begin with a patch');
select is(pg_temp.text_of('r', 'patched'), '{"a": {}}', 'of nothing');
select is(tidebase.patch_state('r', 1, '[1]', 'list'), 1, 'also with one that is no object');
select is(pg_temp.text_of('r', 'list'), '[1]', 'which is the document then');
select is(tidebase.patch_state('r', 1, '{"none": null}', 'patched'), 2, 'a patch that changes nothing is a version');
select is(tidebase.set_state('r', 1, '{"a": {}}', 'patched'), 3, 'so is the same document again');
select is(pg_temp.text_of('r', 'patched'), '{"a": {}}', 'which reads the same');
select is((tidebase.get_state('r')).version, 6, 'streams are apart');
select is(tidebase.save_state('r', 1, 'no weight', importance => null), 7, 'no importance');
select is((tidebase.get_state('r')).importance, 'checkpoint', 'is the default');
select is(tidebase.set_state('r', 1, '1', 'x''; drop table tidebase.runs; --', 'l''; --', '$$', metadata => '{"''": "''"}', created_by => '"'''), 1, 'SQL in a name is a name');
select is(label || reason || created_by, 'l''; --$$"''', 'and is found by it') from tidebase.get_state('r', 'x''; drop table tidebase.runs; --');
select pg_temp.leased('other');
select is(tidebase.set_state('other', 1, '"other"'), 1, 'another run has streams of its own');
select is(pg_temp.text_of('r'), '{"a": 1, "b": [1, 2]}', 'of the same name');
select ok(pg_temp.dense('r'), 'the log has no gap');

-- reading
update tidebase.state_versions set created_at = '2020-01-01'::timestamptz + make_interval(days => version) where run_id = 'r' and stream = 'main';
select is((tidebase.get_state('r', version => n)).version, n, 'version ' || n || ' is found by its number') from generate_series(1, 7) n;
select is((tidebase.get_state('r', at => '2020-01-01'::timestamptz + make_interval(days => n))).version, n, 'by the time it was made: ' || n) from generate_series(1, 7) n;
select is((tidebase.get_state('r', at => '2020-01-01 23:59:59'::timestamptz + make_interval(days => n))).version, n, 'by a time after that: ' || n) from generate_series(1, 7) n;
select is((tidebase.get_state('r', seq => v.seq)).version, version, 'by its event: ' || version) from tidebase.list_state_versions('r', 'main') v;
select is((tidebase.get_state('r', seq => 10)).version, 6, 'after an event of another stream there is the last one before');
select is((tidebase.get_state('r', seq => 9223372036854775807)).version, 7, 'after all events the newest');
select is((tidebase.get_state('r', at => 'infinity')).version, 7, 'at the end of time as well');
select is((tidebase.get_state('r')).version, 7, 'and now');
select is((tidebase.get_state('r', label => 'saved')).version, 3, 'by its label');
select tidebase.set_state('r', 1, '{"c": 3}', label => 'saved');
select is((tidebase.get_state('r', label => 'saved')).version, 8, 'a label that is given again is that of the newest');
select is(tidebase.restore_state('r', 1, label => 'saved'), 9, 'for restoring, too');
select is(pg_temp.text_of('r'), '{"c": 3}', 'which takes that document');
select is((tidebase.get_state('r')).label, null, 'but not its label');
select ok((select created_at from tidebase.get_state('r')) between clock_timestamp() - interval '1 min' and clock_timestamp(), 'the time is that of the database');
select throws_ok('select tidebase.get_state(''r'', ' || selector || ')', 'TB012', null, 'there is no state with ' || selector) from unnest(array[
  'version => 0', 'version => -1', 'version => 10', 'version => 2147483647', 'version => -2147483648', 'label => ''none''', 'label => ''''', 'seq => 2', 'seq => 0', 'seq => -1',
  'at => ''2020-01-01''', 'at => ''-infinity''', '''none''', '''none'', version => 1', '''none'', label => ''saved''', '''none'', seq => 10', '''none'', at => ''now''']) selector;
select throws_ok('select tidebase.get_state(''r'', ' || selectors || ')', 'TB002', null, 'one way to choose at a time, not ' || selectors) from unnest(array[
  'version => 1, seq => 3', 'version => 1, at => ''now''', 'version => 1, label => ''two''', 'seq => 3, at => ''now''', 'seq => 3, label => ''two''', 'at => ''now'', label => ''two''',
  'version => 1, seq => 3, at => ''now'', label => ''two''']) selectors;
select throws_ok('select tidebase.get_state(' || arguments || ')', 'TB001', null, 'an unknown run has no state: ' || arguments) from unnest(array[
  '''none''', 'null', '''none'', version => 1', '''none'', seq => 1', '''none'', at => ''now''', '''none'', label => ''x''']) arguments;
select pg_temp.leased('empty');
select throws_ok($$select tidebase.get_state('empty')$$, 'TB012', null, 'a run may have no state');
select is((pg_temp.error_of($$select tidebase.get_state('r', version => 99)$$)).detail::jsonb, '{"run_id": "r", "stream": "main"}', 'the error says where');

-- expected_version
select pg_temp.leased('v');
create temp table before as select pg_temp.picture() as everything;
select throws_ok($$select tidebase.set_state('v', 1, '1', expected_version => 1)$$, 'TB011', null, 'a new stream is not at version 1');
select throws_ok($$select tidebase.patch_state('v', 1, '1', expected_version => -1)$$, 'TB011', null, 'nor at -1');
select is(pg_temp.picture(), (select everything from before), 'nothing is written then, and no event number used');
select is(tidebase.set_state('v', 1, '{"n": 1}', expected_version => 0), 1, 'it is at 0');
select throws_ok($$select tidebase.set_state('v', 1, '{}', expected_version => 0)$$, 'TB011', null, 'not any more, when it has a version');
update before set everything = pg_temp.picture();
select throws_ok('select tidebase.' || call || ', expected_version => ' || expected || ')', 'TB011', null, call || ') expects the newest version, not ' || expected)
from unnest(array['set_state(''v'', 1, ''2''', 'patch_state(''v'', 1, ''2''', 'save_state(''v'', 1, ''l''', 'restore_state(''v'', 1, 1']) call, unnest(array[0, 2, -1, 2147483647]) expected;
select is(pg_temp.picture(), (select everything from before), 'who has read an old version writes nothing');
select is((pg_temp.error_of($$select tidebase.set_state('v', 1, '{}', expected_version => 7)$$)).detail::jsonb,
  '{"run_id": "v", "stream": "main", "version": 1, "expected_version": 7}', 'the error says which version there is');
select is(tidebase.patch_state('v', 1, '{"n": 2}', expected_version => 1), 2, 'who has read the newest writes');
select is(tidebase.save_state('v', 1, 'l', expected_version => 2), 3, 'or saves');
select is(tidebase.restore_state('v', 1, 1, expected_version => 3), 4, 'or restores');
select is(tidebase.set_state('v', 1, '{"n": 5}', expected_version => null), 5, 'NULL expects nothing');
select ok(pg_temp.dense('v'), 'no number was lost');

-- saving and restoring what is not there
update before set everything = pg_temp.picture();
select throws_ok($$select tidebase.save_state('empty', 1, 'l')$$, 'TB012', null, 'nothing cannot be saved');
select throws_ok($$select tidebase.save_state('v', 1, 'l', 'none')$$, 'TB012', null, 'nor in a stream that is not there');
select throws_ok('select tidebase.restore_state(''v'', 1, ' || which || ')', 'TB012', null, 'nothing is restored by ' || which)
from unnest(array['0', '6', '-1', 'label => ''none''', '1, stream => ''none''', 'label => ''l'', stream => ''none''']) which;
select throws_ok('select tidebase.restore_state(''v'', 1' || which || ')', 'TB002', null, format('a restored version is named in one way, not by "%s"', which))
from unnest(array['', ', 1, ''l''', ', null', ', null, null']) which;
select is(pg_temp.picture(), (select everything from before), 'all that wrote nothing');

-- any JSON value is a document
create function pg_temp.written(document jsonb) returns text language plpgsql as $$
begin
  perform tidebase.set_state('any', 1, document, 'doc ' || document::text);
  return pg_temp.text_of('any', 'doc ' || document::text);
end
$$;
select pg_temp.leased('any');
select is(pg_temp.written(document::jsonb), document::jsonb::text, 'a document: ' || left(document, 40)) from unnest(array[
  'null', 'true', 'false', '0', '-1', '1.0', '1.00', '0.10', '1e3', '123456789012345678901234567890.123456789', '""', '"text"', '"äöü 😀 \" \\ \n"', '[]', '[[]]', '[null]', '[1, 1.0, "1"]', '{}', '{"": ""}',
  '{"a": null}', '{"a": {"b": {"c": [1, {"d": null}]}}}', '["[]", [], "{}", {}]', '{"k": []}', '{"k": [1, [2]]}', '{"''": "$$"}', repeat('[', 200) || repeat(']', 200)]) document;
create function pg_temp.sequence(variadic documents text[]) returns text[] language plpgsql as $$
declare
  stream text := 'sequence ' || documents::text;
  document text;
begin
  foreach document in array documents loop
    perform tidebase.set_state('any', 1, document::jsonb, stream);
  end loop;
  return (select array_agg((tidebase.get_state('any', stream, n)).value::text order by n) from generate_subscripts(documents, 1) n);
end
$$;
select is(pg_temp.sequence(variadic documents), documents, 'one after the other: ' || array_to_string(documents, ', ')) from (values
  (array['1', '1.0', '1.00', '1']),
  (array['{"n": 1}', '{"n": 1.0}', '{"n": 1.00}', '{"n": 1}']),
  (array['{"n": [1, 2]}', '{"n": [1.0, 2]}', '{"n": [1.0, 2.0]}', '{"n": [1, 2.0]}']),
  (array['null', '1', '"1"', '[1]', '{"1": 1}', 'null', '{}', '[]', '""']),
  (array['""', '"a"', '"ab"', '"abc"', '"ab"', '"b"', '""', '"b"']),
  (array['"ä"', '"äö"', '"äö😀"', '"äö😀ü"', '"ü"']),
  (array['[]', '[1]', '[1, 2]', '[1, 2, 3]', '[1]', '[]', '[0, 1]', '[0, [1]]', '[0, [1], []]']),
  (array['[[]]', '[[], []]', '[[], [], {}]', '[[], []]', '[{}]']),
  (array['{"a": 1}', '{"b": 1}', '{"a": null}', '{"a": {}}', '{"a": []}', '{}', '{"a": [[]]}', '{"a": [[], []]}']),
  (array['{"a": {"b": 1}}', '{"a": {"b": 1, "c": []}}', '{"a": {"c": [1]}}', '{"a": "x"}', '{"a": "xy"}', '{"a": {"b": 1}}']),
  (array['{"[]": []}', '{"[]": [1]}', '{"[]": [1, "x"]}', '{"[]": "x"}', '{}'])) as sequences (documents);
create function pg_temp.unchanged(document jsonb) returns text[] language plpgsql as $$
declare
  stream text := 'unchanged ' || document::text;
begin
  perform tidebase.set_state('any', 1, document, stream);
  perform tidebase.save_state('any', 1, 'saved', stream);
  perform tidebase.set_state('any', 1, document, stream);
  perform tidebase.restore_state('any', 1, 1, stream => stream);
  perform tidebase.set_state('any', 1, '{"another": [1]}', stream);
  perform tidebase.save_state('any', 1, 'saved', stream);
  perform tidebase.restore_state('any', 1, 2, stream => stream);
  return (select array_agg(value::text order by version) from tidebase.list_state_versions('any', stream, with_value => true));
end
$$;
select is(pg_temp.unchanged(document::jsonb), array[document, document, document, document, '{"another": [1]}', '{"another": [1]}', document], 'what does not change stays the same: ' || document) from unnest(array[
  'null', 'true', '1', '1.0', '""', '"text"', '[]', '[1, 2]', '[[]]', '[{}]', '{}', '{"a": 1}', '{"a": []}']) document;
create function pg_temp.nest(depth integer, inside text) returns jsonb language sql as $$
  select (repeat('{"a": ', depth) || inside || repeat('}', depth))::jsonb;
$$;
select tidebase.set_state('any', 1, pg_temp.nest(200, '1'), 'deep');
select tidebase.set_state('any', 1, pg_temp.nest(200, '2'), 'deep');
select tidebase.patch_state('any', 1, pg_temp.nest(200, '{"b": 3}'), 'deep');
select is((select array_agg(value::text order by version) from tidebase.list_state_versions('any', 'deep', with_value => true)),
  array[pg_temp.nest(200, '1')::text, pg_temp.nest(200, '2')::text, pg_temp.nest(200, '{"b": 3}')::text], 'documents may be nested deeply');
select is(tidebase.patch_state('any', 1, 'null', 'deep'), 4, 'the JSON null is a patch');
select is(pg_temp.text_of('any', 'deep'), 'null', 'that makes the state null');
select is(tidebase.patch_state('any', 1, '{"a": 1}', 'deep'), 5, 'which may be patched in turn');
select is(pg_temp.text_of('any', 'deep'), '{"a": 1}', 'into an object');

-- what is stored
create function pg_temp.stored(id text, name text) returns table (version integer, base integer, content text) language sql as $$
  select v.version, v.base, v.content::text from tidebase.state_versions v where v.run_id = id and v.stream = name order by v.version;
$$;
select pg_temp.leased('s');
select tidebase.set_state('s', 1, '{"m": ["a"], "big": "text"}', 'array');
select tidebase.patch_state('s', 1, '{"m": ["a", "b"]}', 'array');
select tidebase.set_state('s', 1, '{"m": ["a", "b", "c"], "big": "text"}', 'array');
select tidebase.patch_state('s', 1, '{"m": ["a", "b", "c", "d"]}', 'array');
select tidebase.patch_state('s', 1, '{"m": ["a"]}', 'array');
select results_eq($$select * from pg_temp.stored('s', 'array')$$, $$values (1, null::integer, '{"m": ["a"], "big": "text"}'), (2, 1, '{"m": [1, ["b"]]}'), (3, 1, '{"m": [1, ["b", "c"]]}'),
  (4, 3, '{"m": [3, ["d"]]}'), (5, 1, '{"m": [1, []]}')$$, 'of an array that grows only the tail is stored');
select tidebase.set_state('s', 1, '{"t": "ä", "big": "text"}', 'string');
select tidebase.patch_state('s', 1, '{"t": "äb"}', 'string');
select tidebase.set_state('s', 1, '{"t": "äbc", "big": "text"}', 'string');
select tidebase.patch_state('s', 1, '{"t": "äbcd"}', 'string');
select tidebase.patch_state('s', 1, '{"t": "x"}', 'string');
select results_eq($$select * from pg_temp.stored('s', 'string')$$, $$values (1, null::integer, '{"t": "ä", "big": "text"}'), (2, 1, '{"t": [1, "b"]}'), (3, 1, '{"t": [1, "bc"]}'),
  (4, 3, '{"t": [3, "d"]}'), (5, 1, '{"t": ["x"]}')$$, 'so it is of a string');
select tidebase.set_state('s', 1, '{"a": 1, "b": {"c": 1, "d": 1}}', 'object');
select tidebase.patch_state('s', 1, '{"b": {"c": 1, "d": 2}}', 'object');
select tidebase.patch_state('s', 1, '{"a": null, "e": 1, "none": null}', 'object');
select tidebase.save_state('s', 1, 'l', 'object');
select results_eq($$select * from pg_temp.stored('s', 'object')$$, $$values (1, null::integer, '{"a": 1, "b": {"c": 1, "d": 1}}'), (2, 1, '{"b": {"d": [2]}}'), (3, 1, '{"a": [], "b": {"d": [2]}, "e": [1]}'),
  (4, 3, '{}')$$, 'of an object the members that change, of a save nothing');
create function pg_temp.noise(n integer) returns text language sql as $$ select string_agg(md5(n || ':' || i), '') from generate_series(1, 48) i $$;
select tidebase.set_state('s', 1, jsonb_build_object('x', pg_temp.noise(n)), 'noise') from generate_series(1, 8) n;
select results_eq($$select version from pg_temp.stored('s', 'noise') where base is null$$, $$values (1), (3), (5), (7)$$, 'a version is stored whole when the changes outgrow the document');
select is(count(*), 8::bigint, 'and all are there') from generate_series(1, 8) n where (tidebase.get_state('s', 'noise', n)).value = jsonb_build_object('x', pg_temp.noise(n));
select tidebase.set_state('s', 1, jsonb_build_object('big', pg_temp.noise(0) || pg_temp.noise(1) || pg_temp.noise(2), 'n', 0), 'counter');
select tidebase.patch_state('s', 1, jsonb_build_object('n', n), 'counter') from generate_series(1, 100) n;
select is((select count(*) from pg_temp.stored('s', 'counter') where base is null), 1::bigint, 'small changes of a large document do not store it again');
select ok((select sum(pg_column_size(content)) < 20000 from tidebase.state_versions where run_id = 's' and stream = 'counter'), 'a history costs what was changed');
select is(count(*), 101::bigint, 'and all of it is there') from generate_series(0, 100) n where (tidebase.get_state('s', 'counter', n + 1)).value ->> 'n' = n::text;

-- a long history
create temp table expected (version integer, value jsonb);
create function pg_temp.lived(versions integer) returns void language plpgsql as $$
declare
  value jsonb := '{"list": ["x"], "text": ""}';
  patch jsonb;
  h integer;
  restored integer;
begin
  perform tidebase.set_state('long', 1, value);
  insert into expected values (1, value);
  for n in 2..versions loop
    h := ('x' || left(md5(n::text), 6))::bit(24)::integer;
    if n % 47 = 0 then
      restored := 1 + h % (n - 1);
      perform tidebase.restore_state('long', 1, restored);
      value := (select e.value from expected e where e.version = restored);
    elsif n % 31 = 0 then
      perform tidebase.save_state('long', 1, 'saved ' || n);
    elsif n % 61 = 0 then
      value := jsonb_build_object('set', n, 'list', jsonb_build_array(n), 'deep', jsonb_build_object('d1', 1.0));
      perform tidebase.set_state('long', 1, value);
    else
      patch := case h % 8
        when 0 then jsonb_build_object('k' || h % 7, n)
        when 1 then jsonb_build_object('k' || h % 7, null, 'k' || h % 3, (n || '.0')::numeric)
        when 2 then jsonb_build_object('deep', jsonb_build_object('d' || h % 3, jsonb_build_object('x', n, 'y', null, 'z' || h % 5, jsonb_build_array(h % 9))))
        when 3 then jsonb_build_object('list', coalesce(value -> 'list', '[]') || jsonb_build_array(jsonb_build_object('role', 'user', 'n', n)))
        when 4 then jsonb_build_object('text', coalesce(value ->> 'text', '') || repeat('ä' || h % 10, h % 20))
        when 5 then jsonb_build_object('list', coalesce(value -> 'list', '[]') - -1, 'mixed', '{}'::jsonb)
        when 6 then jsonb_build_object('mixed', (array['[1, {"a": null}]', '{"a": {"b": 1}}', '"[]"', 'null', '{"a": null}', '[]']::jsonb[])[1 + h % 6], 'text', h::text)
        else jsonb_build_object('deep', case when h % 2 = 0 then null else h end, 'noise', pg_temp.noise(h))
      end;
      value := pg_temp.merged(value, patch);
      perform tidebase.patch_state('long', 1, patch);
    end if;
    insert into expected values (n, value);
  end loop;
end
$$;
select pg_temp.leased('long');
select pg_temp.lived(300);
select is_empty($$select version from expected e where (tidebase.get_state('long', version => version)).value::text <> e.value::text$$, 'each of 300 versions reads as it was written, by its number');
select results_eq($$select version, value::text from tidebase.list_state_versions('long', with_value => true, max => 1000) order by version$$, $$select version, value::text from expected order by version$$, 'and in the list of all');
select is_empty($$select e.version from expected e join tidebase.state_versions v on v.run_id = 'long' and v.version = e.version where (tidebase.get_state('long', seq => v.seq)).version <> e.version$$, 'is found by its event');
select is_empty($$select e.version from expected e join tidebase.state_versions v on v.run_id = 'long' and v.version = e.version where (tidebase.get_state('long', at => v.created_at)).version <> e.version$$, 'and by its time');
select ok((select count(*) filter (where base is null) between 2 and 100 from tidebase.state_versions where run_id = 'long'), 'some of them are stored whole');
create temp table chains as
  with recursive chain as (
    select version, version as at, base, version - keyframe as distance from tidebase.state_versions where run_id = 'long'
    union all
    select c.version, v.version, v.base, c.distance from chain c join tidebase.state_versions v on v.run_id = 'long' and v.version = c.base)
  select version, distance, count(*) as rows from chain group by version, distance;
select is_empty($$select version from chains where rows <> 1 + length(replace(distance::bit(16)::text, '0', ''))$$, 'a version is put together from as many rows as its distance has one-bits, and the whole one');
select ok(pg_temp.dense('long'), 'the log has no gap');

-- changes: what find_change finds, apply_change does, and compose_changes does in one
create temp table samples (value jsonb);
insert into samples select unnest(array['null', 'true', '0', '1', '1.0', '""', '"a"', '"ab"', '"abä"', '"[]"', '[]', '[1]', '[1.0]', '[1, 2]', '[2, 1]', '[1, 2, 3]', '[1, null]', '[[]]', '[[], [1]]',
  '[{"a": 1}, {"b": 2}]', '{}', '{"a": 1}', '{"a": 1.0}', '{"a": null}', '{"a": []}', '{"a": [1, 2]}', '{"a": [1, 2, 3]}', '{"a": [1, 2, 3, "x"], "b": {}}', '{"a": "x"}', '{"a": "xy", "b": [0]}',
  '{"a": {"b": 1}}', '{"a": {"b": {"c": []}}, "": ""}', '{"a": {"b": {"c": [1]}, "d": null}, "": "x"}'])::jsonb;
insert into samples select pg_temp.nest(60, inside) from unnest(array['1', '[1]', '{"b": 2}']) inside;
create temp table changes as select a.value as old, b.value as new, tidebase_private.find_change(a.value, b.value) as change from samples a, samples b;
create function pg_temp.applied(value jsonb, change jsonb) returns text language sql as $$
  select (case when change is null then value else tidebase_private.apply_change(value, change) end)::text;
$$;
select is_empty($$select old, new, change from changes where pg_temp.applied(old, change) is distinct from new::text$$, 'the change between two values makes the one the other');
select is_empty($$select old from changes where (change is null) <> (old::text = new::text)$$, 'there is none exactly between what is the same to the last zero');
select is_empty($$select one.old, one.change, two.change from changes one join changes two on two.old::text = one.new::text
  where pg_temp.applied(one.old, tidebase_private.compose_changes(one.change, two.change)) is distinct from two.new::text$$, 'two changes composed do what they do one after the other');
create temp table patches as select a.value as old, b.value as patch, tidebase_private.change_of_patch(a.value, b.value) as change, pg_temp.merged(a.value, b.value) as new from samples a, samples b;
select is_empty($$select old, patch, change from patches where pg_temp.applied(old, change) is distinct from new::text$$, 'the change that a patch makes is what RFC 7396 says');
select is_empty($$select one.old, one.patch, two.patch from patches one join patches two on two.old::text = one.new::text
  where pg_temp.applied(one.old, tidebase_private.compose_changes(one.change, two.change)) is distinct from two.new::text$$, 'also of two patches composed');
select is_empty($$select old, patch from patches where tidebase_private.merge_patch(old, patch)::text is distinct from new::text$$, 'merge_patch says so, too');
select is(tidebase_private.find_change(old::jsonb, new::jsonb)::text, change, format('from %s to %s: %s', old, new, coalesce(change, 'nothing'))) from (values
  ('1', '1', null), ('1', '1.0', '[1.0]'), ('{"a": 1}', '{"a": 1}', null), ('{"a": 1}', '{}', '{"a": []}'), ('{}', '{"a": null}', '{"a": [null]}'), ('[1]', '[1, 2]', '[1, [2]]'),
  ('[1, 2]', '[1]', '[1, []]'), ('[1]', '[2]', '[[2]]'), ('[]', '[1]', '[[1]]'), ('"a"', '"ab"', '[1, "b"]'), ('"ab"', '"a"', '["a"]'), ('""', '"a"', '["a"]'),
  ('{"a": {"b": 1, "c": 2}}', '{"a": {"b": 1, "c": 3}}', '{"a": {"c": [3]}}')) as v (old, new, change);
select is(tidebase_private.compose_changes(null, null), null, 'no change and no change is none');
select is_empty($$select value from samples where pg_temp.applied(value, '{}') <> value::text$$, 'an empty change changes nothing, whatever it is applied to');
select is_empty($$select old, change from changes where pg_temp.applied(old, tidebase_private.compose_changes('{}', change)) is distinct from new::text$$, 'also before another one');
select is_empty($$select old, change from changes where pg_temp.applied(old, tidebase_private.compose_changes(change, '{}')) is distinct from new::text$$, 'and after it');

-- arguments
create temp table writers (name text, call text);
insert into writers values ('set_state', 'tidebase.set_state(%L, %s, ''1'''), ('patch_state', 'tidebase.patch_state(%L, %s, ''{}'''),
  ('save_state', 'tidebase.save_state(%L, %s, ''l'''), ('restore_state', 'tidebase.restore_state(%L, %s, 1');
update before set everything = pg_temp.picture();
select throws_ok('select ' || format(call, 'v', 1) || ', ' || argument || ')', 'TB002', null, name || ' refuses ' || argument) from writers, unnest(array[
  'stream => ''''', 'stream => ''  ''', 'stream => repeat(''x'', 1025)', 'stream => repeat(''ä'', 513)',
  'importance => ''''', 'importance => ''huge''', 'importance => ''NORMAL''', 'metadata => ''[]''', 'metadata => ''1''', 'metadata => ''null''', 'metadata => ''"x"''',
  'request_id => ''''', 'request_id => '' ''', 'request_id => repeat(''x'', 256)']) argument;
select throws_ok('select ' || call, 'TB002', null, 'no such label: ' || call) from unnest(array[
  'tidebase.set_state(''v'', 1, ''1'', label => '''')', 'tidebase.set_state(''v'', 1, ''1'', label => '' '')', 'tidebase.set_state(''v'', 1, ''1'', label => repeat(''x'', 1025))',
  'tidebase.patch_state(''v'', 1, ''1'', label => '''')', 'tidebase.patch_state(''v'', 1, ''1'', label => repeat(''ä'', 513))',
  'tidebase.save_state(''v'', 1, null)', 'tidebase.save_state(''v'', 1, '''')', 'tidebase.save_state(''v'', 1, '' '')', 'tidebase.save_state(''v'', 1, repeat(''x'', 1025))',
  'tidebase.restore_state(''v'', 1, label => '''')', 'tidebase.restore_state(''v'', 1, label => repeat(''x'', 1025))']) call;
select throws_ok($$select tidebase.set_state('v', 1, null)$$, 'TB002', null, 'NULL is no document');
select throws_ok($$select tidebase.patch_state('v', 1, null)$$, 'TB002', null, 'and no patch');
select throws_ok('select ' || format(call, 'v', token) || ')', 'TB003', null, name || ' needs the token, not ' || token) from writers, unnest(array['0', '2', 'null']) token;
select throws_ok('select ' || format(call, 'none', 1) || ')', 'TB001', null, name || ' needs a run') from writers;
select is(pg_temp.picture(), (select everything from before), 'what was refused left nothing behind');
select lives_ok('select ' || format(call, 'v', 1) || ', ' || argument || ')', name || ' takes ' || argument) from writers, unnest(array[
  'importance => ''transient''', 'importance => ''normal''', 'importance => ''checkpoint''', 'importance => ''milestone''', 'importance => null', 'metadata => ''{}''', 'metadata => null',
  'reason => ''''', 'created_by => ''x''', 'request_id => null']) argument;
select lives_ok($$select tidebase.set_state('v', 1, '1', repeat('ä', 512), repeat('x', 1024), request_id => repeat('x', 255))$$, 'names may be long');
select lives_ok($$select tidebase.save_state('v', 1, repeat('ä', 512), repeat('ä', 512))$$, 'also of what is saved');
select ok(pg_temp.dense('v'), 'the log has no gap');

-- the fence
create function pg_temp.with_state(id text) returns void language sql as $$
  select pg_temp.leased(id);
  select tidebase.set_state(id, 1, '{"a": 1}');
$$;
select pg_temp.with_state(status) from unnest(array['taken', 'cancelled', 'completed', 'failed', 'pending', 'waiting', 'review']) status;
select pg_temp.take_over('taken');
select pg_temp.put(status, status) from unnest(array['cancelled', 'completed', 'failed', 'pending', 'waiting', 'review']) status;
update before set everything = pg_temp.picture();
select throws_ok('select ' || format(call, 'taken', 1) || ')', 'TB003', null, 'a stale token is fenced: ' || name) from writers;
select throws_ok('select ' || format(call, 'cancelled', 1) || ')', 'TB004', null, 'nobody writes to a cancelled run: ' || name) from writers;
select throws_ok('select ' || format(call, 'completed', 1) || ')', 'TB005', null, 'nor to a completed one: ' || name) from writers;
select throws_ok('select ' || format(call, status, 1) || ')', 'TB003', null, format('nor to one that is %s: %s', status, name)) from writers, unnest(array['failed', 'pending', 'waiting', 'review']) status;
select throws_ok($$select tidebase.restore_state('taken', 1, 99)$$, 'TB003', null, 'who lost the lease does not learn which versions there are');
select throws_ok($$select tidebase.save_state('empty', 9, 'l')$$, 'TB003', null, 'or whether there are any');
select is(pg_temp.picture(), (select everything from before), 'nothing came of it');
select is(tidebase.patch_state('taken', 2, '{"b": 2}'), 2, 'who took over goes on');
select is(pg_temp.text_of('taken'), '{"a": 1, "b": 2}', 'from what was there');
select is(pg_temp.text_of(status), '{"a": 1}', 'state is read of a run that is ' || status) from unnest(array['cancelled', 'completed', 'failed', 'pending', 'waiting', 'review']) status;

-- the same call again
select pg_temp.leased('again');
select pg_temp.same_again($$select tidebase.set_state('again', 1, '{"a": 1}', label => 'one', expected_version => 0, request_id => 'set')$$, 'a document is set once');
select pg_temp.same_again($$select tidebase.patch_state('again', 1, '{"b": 2}', expected_version => 1, request_id => 'patch')$$, 'a patch is applied once');
select pg_temp.same_again($$select tidebase.save_state('again', 1, 'one', expected_version => 2, request_id => 'save')$$, 'a state is saved once');
select pg_temp.same_again($$select tidebase.restore_state('again', 1, label => 'one', expected_version => 3, request_id => 'restore')$$, 'and restored once');
select pg_temp.same_again($$select tidebase.set_state('again', 1, '0', 'new stream', importance => 'transient', request_id => 'transient')$$, 'also what is transient');
select is(tidebase.set_state('again', 1, '{"other": 1}', request_id => 'set'), 1, 'it is the id that tells, not the content');
select is(tidebase.patch_state('again', 1, '{"b": 2}', request_id => 'patch too'), 5, 'another id is another version');
select pg_temp.with_state('third');
select is(tidebase.patch_state('third', 1, '{"b": 2}', request_id => 'patch'), 2, 'ids of calls are a run''s own');
select pg_temp.take_over('again');
select is(tidebase.patch_state('again', 2, '{"b": 2}', request_id => 'patch'), 2, 'they outlive the lease');
select tidebase.append_event('again', 2, 'note', '{"version": 1}', 'event');
select throws_ok('select ' || format(call, 'again', 2) || ', request_id => ''event'')', 'TB002', null, name || ' refuses the id of another kind of call') from writers;
select ok(pg_temp.dense('again'), 'a repetition costs no number');

-- durability
select pg_temp.with_state('d');
select is(pg_temp.durability('select ' || format(call, 'd', 1) || ')'), 'on', name || ' commits synchronously') from writers;
select is(pg_temp.durability('select ' || format(call, 'd', 1) || ', importance => ''transient'')'), 'off', name || ' does not when the version is transient') from writers;
select is(pg_temp.durability('select ' || format(call, 'd', 1) || ')', setting), setting, format('%s leaves a stronger setting: %s', name, setting)) from writers, unnest(array['local', 'remote_apply']) setting;
set local synchronous_commit = on;

-- list_state_versions
select pg_temp.leased('l');
select is_empty($$select * from tidebase.list_state_versions('l')$$, 'a run may have no versions');
select tidebase.set_state('l', 1, '{"n": 1}');
select tidebase.set_state('l', 1, '"x"', 'side', label => 'labeled');
select tidebase.patch_state('l', 1, '{"n": 2}', label => 'labeled');
select tidebase.patch_state('l', 1, '{"n": 3}');
select tidebase.save_state('l', 1, 'end');
select results_eq($$select stream, version from tidebase.list_state_versions('l')$$, $$values ('main', 4), ('main', 3), ('main', 2), ('side', 1), ('main', 1)$$, 'the newest come first, of all streams');
select results_eq($$select version from tidebase.list_state_versions('l', 'main')$$, $$values (4), (3), (2), (1)$$, 'or of one');
select results_eq($$select stream, version from tidebase.list_state_versions('l', labeled => true)$$, $$values ('main', 4), ('main', 2), ('side', 1)$$, 'or only those with a label');
select results_eq($$select version from tidebase.list_state_versions('l', 'main', true)$$, $$values (4), (2)$$, 'or both');
select results_eq($$select version from tidebase.list_state_versions('l', 'main', max => 2)$$, $$values (4), (3)$$, 'so many at most');
select results_eq($$select stream, version from tidebase.list_state_versions('l', max => 4)$$, $$values ('main', 4), ('main', 3), ('main', 2), ('side', 1)$$, 'over all streams together');
select results_eq($$select version from tidebase.list_state_versions('l', 'main', before => 3)$$, $$values (2), (1)$$, 'or those before one');
select results_eq($$select version from tidebase.list_state_versions('l', 'main', true, before => 4, max => 1)$$, $$values (2)$$, 'in any combination');
select is_empty($$select * from tidebase.list_state_versions('l', 'main', before => 1)$$, 'before the first there are none');
select is_empty($$select * from tidebase.list_state_versions('l', 'none')$$, 'nor in a stream that is not there');
select is((select count(value) from tidebase.list_state_versions('l')), 0::bigint, 'the documents stay away');
select results_eq($$select version, value from tidebase.list_state_versions('l', 'main', with_value => true)$$, $$values (4, '{"n": 3}'::jsonb), (3, '{"n": 3}'), (2, '{"n": 2}'), (1, '{"n": 1}')$$, 'unless they are wanted');
select set_eq($$select stream, version, operation, importance, label, seq, created_at, metadata from tidebase.list_state_versions('l', 'main')$$,
  $$select g.stream, g.version, g.operation, g.importance, g.label, g.seq, g.created_at, g.metadata from generate_series(1, 4) n, tidebase.get_state('l', version => n) g$$, 'else a version is what get_state says');
select throws_ok(format($$select tidebase.list_state_versions('l', max => %L)$$, max), 'TB002', null, format('max is not %L', max)) from unnest(array[0, -1, 10001]) max;
select lives_ok(format($$select tidebase.list_state_versions('l', max => %L)$$, max), 'it may be ' || max) from unnest(array[1, 10000]) max;
select throws_ok($$select tidebase.list_state_versions('l', before => 3)$$, 'TB002', null, 'a version to go on before is one of a stream');
select throws_ok($$select tidebase.list_state_versions('none')$$, 'TB001', null, 'an unknown run has no versions');
select throws_ok($$select tidebase.list_state_versions('none', 'main')$$, 'TB001', null, 'in whatever stream');
select throws_ok($$select tidebase.list_state_versions(null)$$, 'TB001', null, 'nor has none');
-- Members as they are given.
select pg_temp.leased('merged');
select is(tidebase.merge_state('merged', 1, '{"n": null, "deep": {"x": 1}}'), 1, 'the first version of a stream may be made of members');
select is((tidebase.get_state('merged')).value, '{"n": null, "deep": {"x": 1}}', 'with a null');
select tidebase.merge_state('merged', 1, '{"deep": {"y": 2}, "list": [1]}');
select is((tidebase.get_state('merged')).value, '{"n": null, "deep": {"y": 2}, "list": [1]}', 'nobody looks into them');
select tidebase.merge_state('merged', 1, '{"list": [1, 2]}', created_by => '');
select is((tidebase.get_state('merged')).value, '{"n": null, "deep": {"y": 2}, "list": [1, 2]}', 'a list that grows is replaced');
select is((tidebase.get_state('merged')).created_by, null, 'an empty text is nobody');
select tidebase.merge_state('merged', 1, '{}');
select is((tidebase.get_state('merged')).value, '{"n": null, "deep": {"y": 2}, "list": [1, 2]}', 'no member changes nothing');
select tidebase.set_state('merged', 1, '[1]');
select tidebase.merge_state('merged', 1, '{"a": 1}');
select is((tidebase.get_state('merged')).value, '{"a": 1}', 'what is no object becomes one');
select results_eq($$select version, patch from tidebase.state_patches where run_id = 'merged' order by version$$,
  $$values (1, '{"n": null, "deep": {"x": 1}}'::jsonb), (2, '{"deep": {"y": 2}, "list": [1]}'), (3, '{"list": [1, 2]}'), (4, '{}'), (6, '{"a": 1}')$$, 'they are kept');
select throws_ok(format('select tidebase.merge_state(''merged'', 1, %L)', members), 'TB002', null, coalesce(members, 'NULL') || ' has no members')
from unnest(array['1', '[]', 'null', null]) members;
select is(tidebase.merge_state('merged', 1, '{"b": 2}', request_id => 'm'), tidebase.merge_state('merged', 1, '{"b": 2}', request_id => 'm'), 'the same call again');
select throws_ok($$select tidebase.merge_state('merged', 1, '{}', expected_version => 1)$$, 'TB011', null, 'a version may be expected');

select * from finish();
rollback;
