-- The comparison of two runs, such as a run and its fork: where they part, and in what.

create or replace function tidebase_private.last_states(run_id text)
returns table (stream text, seq bigint, value jsonb)
language sql stable
as $$
  select t.stream, (last).seq, (tidebase_private.read_version(t.run_id, t.stream, (last).version)).value
  from tidebase.state_streams t, lateral (select tidebase_private.last_version(t.run_id, t.stream) as last offset 0) v
  where t.run_id = last_states.run_id;
$$;
comment on function tidebase_private.last_states(text) is 'The newest document of each stream of a run.';

create or replace function tidebase_private.outcome_of(gate tidebase.gates)
returns jsonb
language sql immutable
as $$
  select case when gate.status = 'decided' then jsonb_build_object('decision', gate.decision, 'payload', gate.payload) end;
$$;
comment on function tidebase_private.outcome_of(tidebase.gates) is 'What came of a gate or a timer; NULL while nothing did.';

create or replace function tidebase_private.difference(one jsonb, other jsonb)
returns text
language sql immutable
as $$
  select case when one is null then 'added' when other is null then 'missing' else 'value' end;
$$;
comment on function tidebase_private.difference(jsonb, jsonb) is 'What to call the difference of two values that differ.';

create or replace function tidebase.diff_runs(run_id text, other_run_id text)
returns setof tidebase.run_difference
language plpgsql stable security definer rows 100
set search_path = pg_catalog, tidebase, pg_temp
set enable_seqscan = off
as $$
declare
  one runs;
  two runs;
begin
  select r.* into one from runs r where r.run_id = diff_runs.run_id;
  select r.* into two from runs r where r.run_id = diff_runs.other_run_id;
  if one.run_id is null or two.run_id is null then
    perform tidebase_private.raise_run_not_found(case when one.run_id is null then run_id else other_run_id end);
  end if;
  if one.input is distinct from two.input then
    return next row('input', null, tidebase_private.difference(one.input, two.input), null, null, one.input, two.input)::run_difference;
  end if;
  return query
    select d.* from (
      select 'step'::text as kind, name,
        case when a.input_hash <> b.input_hash then 'input' else tidebase_private.difference(a.output, b.output) end as difference,
        a.completed_seq as seq, b.completed_seq as other_seq, a.output as value, b.output as other
      from (select s.* from steps s where s.run_id = diff_runs.run_id and s.status = 'completed') a
      full join (select s.* from steps s where s.run_id = diff_runs.other_run_id and s.status = 'completed') b using (name)
      where a.output is distinct from b.output or a.input_hash <> b.input_hash
      union all
      select 'gate', name, tidebase_private.difference(a.outcome, b.outcome), null, null, a.outcome, b.outcome
      from (select g.name, tidebase_private.outcome_of(g) as outcome from gates g where g.run_id = diff_runs.run_id) a
      full join (select g.name, tidebase_private.outcome_of(g) as outcome from gates g where g.run_id = diff_runs.other_run_id) b using (name)
      where a.outcome is distinct from b.outcome
      union all
      select 'state', stream, tidebase_private.difference(a.value, b.value), a.seq, b.seq, a.value, b.value
      from tidebase_private.last_states(diff_runs.run_id) a
      full join tidebase_private.last_states(diff_runs.other_run_id) b using (stream)
      where a.value is distinct from b.value) d
    order by least(d.seq, d.other_seq), d.kind, d.name;
  if one.result is distinct from two.result then
    return next row('result', null, tidebase_private.difference(one.result, two.result), null, null, one.result, two.result)::run_difference;
  end if;
end
$$;
comment on function tidebase.diff_runs(text, text) is
  'In what two runs differ: their inputs, completed steps (input or output), decided gates, the newest state of each stream, results. Steps and states come in the order of the log, so the first step is where they part. Nothing comes back for runs that are alike. Errors: TB001.';

select tidebase_private.allow('function tidebase.diff_runs', 'worker', 'approver', 'operator', 'reader');
