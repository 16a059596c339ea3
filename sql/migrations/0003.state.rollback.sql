drop type tidebase.run_difference, tidebase.tree_node, tidebase.usage_total, tidebase.snapshot, tidebase.state;
do $$
declare
  name text;
begin
  foreach name in array array['runs', 'steps', 'events'] loop
    execute format('alter table tidebase.%I reset (toast.autovacuum_vacuum_scale_factor)', name);
  end loop;
  foreach name in array array['runs', 'attempts', 'steps', 'events', 'edges'] loop
    execute format('alter table tidebase.%I reset (autovacuum_vacuum_scale_factor, autovacuum_analyze_scale_factor)', name);
  end loop;
end
$$;
alter type tidebase.lease drop attribute traceparent;
comment on type tidebase.lease is
  'Answer of acquire_run. outcome: granted (token, attempt, input and the number of checkpoints are yours), held (by holder until expires_at), completed (result), waiting, review.';
alter table tidebase.attempts drop column traceparent;
alter table tidebase.runs drop column traceparent;
alter table tidebase.runs drop column compacted_at;
alter table tidebase.run_heads drop column has_budget;
drop table tidebase.accounts, tidebase.usage, tidebase.state_versions, tidebase.state_streams;
