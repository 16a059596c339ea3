-- Takes out the tables and the types with everything that was stored in them. The functions that use them go first:
-- the migration command drops those before it rolls back.
drop type tidebase.watch, tidebase.event, tidebase.checkpoint, tidebase.step_failure, tidebase.step_start, tidebase.lease;
drop table tidebase.events, tidebase.steps, tidebase.attempts, tidebase.run_heads, tidebase.runs;
drop table tidebase_private.privileges, tidebase_private.function_files, tidebase_private.settings;
