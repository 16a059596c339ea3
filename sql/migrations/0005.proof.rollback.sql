drop index tidebase.run_heads_alive;
create index run_heads_alive on tidebase.run_heads (status) where status <> 'completed';
drop type tidebase.violation;
