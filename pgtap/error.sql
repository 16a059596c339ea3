-- Errors tell people and programs what is wrong, and what to do.
begin;
select no_plan();
create function pg_temp.error_of(statement text, out state text, out message text, out detail text, out hint text) language plpgsql as $$
begin
  execute statement;
exception when others then
  get stacked diagnostics state = returned_sqlstate, message = message_text, detail = pg_exception_detail, hint = pg_exception_hint;
end
$$;
select tidebase.create_run('wf', '1', 'r');
select tidebase.acquire_run('r', 'w');
select tidebase.begin_step('r', 1, 's', '1');

create temp table failing (state text, statement text);
insert into failing values
  ('TB001', $$select tidebase.acquire_run('none', 'w')$$),
  ('TB001', $$select tidebase.acquire_run(null, 'w')$$),
  ('TB002', $$select tidebase.acquire_run('r', '')$$),
  ('TB003', $$select tidebase.complete_step('r', 7, 's')$$),
  ('TB006', $$select tidebase.create_run('wf', '2', 'r')$$),
  ('TB006', $$select tidebase.create_run('other', '1', 'r')$$),
  ('TB007', $$select tidebase.begin_step('r', 1, 's', '1')$$),
  ('TB007', $$select tidebase.complete_step('r', 1, 'none')$$),
  ('TB008', $$select tidebase.resolve_review('r', 's', 'retry')$$),
  ('TB009', $$select tidebase.decide_gate('r', 'g', 'approved', secret => 'x')$$),
  ('TB012', $$select tidebase.get_gate('r', 'g')$$);
select is((e).state, f.state, f.state || ': ' || coalesce((e).message, 'no error'))
from failing f, lateral (select pg_temp.error_of(f.statement) as e) x;
select ok(jsonb_typeof((e).detail::jsonb) = 'object', f.state || ' has one JSON object as its detail') from failing f, lateral (select pg_temp.error_of(f.statement) as e) x;
select ok((e).hint <> '', f.state || ' says what to do') from failing f, lateral (select pg_temp.error_of(f.statement) as e) x;
select is(((pg_temp.error_of($$select tidebase.complete_step('r', 7, 's')$$)).detail::jsonb) ->> 'current_token', '1', 'a lost lease tells the current token');
select is((pg_temp.error_of($$select tidebase.acquire_run('x'' or 1=1 --', 'w')$$)).message, 'run ''x'''' or 1=1 --'' does not exist', 'a name is quoted, never executed');
select * from finish();
rollback;
