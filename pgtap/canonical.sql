-- One text, and one hash, for all equal inputs.
begin;
select no_plan();
create function pg_temp.same(a jsonb, b jsonb) returns boolean language sql as $$
  select tidebase_private.hash_input(a) = tidebase_private.hash_input(b);
$$;
select ok(pg_temp.same('{"a": 1, "b": 2}', '{"b":2,"a":1}'), 'the order of keys and white space do not matter');
select ok(pg_temp.same('{"a": 1}', '{"a": 2, "a": 1}'), 'the last of duplicate keys counts');
select ok(pg_temp.same('1', '1.0'), '1.0 is 1');
select ok(pg_temp.same('[1.50, -0.0, 1e2, 0.0500]', '[1.5, 0, 100, 0.05]'), 'numbers are their values');
select ok(not pg_temp.same('100', '1'), 'zeros before the point are not cut off');
select ok(not pg_temp.same('1.05', '1.5'), 'nor zeros in the middle');
select ok(not pg_temp.same('"1.0"', '"1"'), 'strings are what they are');
select ok(not pg_temp.same('["a\" 1.0"]', '["a\" 1"]'), 'also behind an escaped quote');
select ok(not pg_temp.same('["\\", "1.0"]', '["\\", "1"]'), 'and behind an escaped backslash');
select ok(not pg_temp.same('{"1.0": 1}', '{"1": 1}'), 'keys, too');
select ok(not pg_temp.same('[1, 2]', '[2, 1]'), 'the order of a list matters');
select ok(not pg_temp.same('"a"', '"A"') and not pg_temp.same('null', 'false') and not pg_temp.same('0', 'false'), 'other values differ');
select ok(pg_temp.same(null, 'null'), 'SQL NULL counts as the JSON null');
select is(tidebase_private.canonical('{"k": [1.10, "x 1.10", 20.0, 3]}'), '{"k": [1.1, "x 1.10", 20, 3]}', 'the canonical text is jsonb''s, with the zeros cut off');
select is(encode(tidebase_private.hash_input('{"a": 1.0}'), 'hex'), encode(sha256('{"a": 1}'), 'hex'), 'the hash is SHA-256 of it');
select is(tidebase_private.canonical('"é 𝄞 \u0001"'), '"é 𝄞 \u0001"', 'text beyond ASCII is itself');
select * from finish();
rollback;
