drop index tidebase.gates_by_deadline;
drop function if exists tidebase.search_runs(text, text, text, text, jsonb, timestamptz, timestamptz, text, timestamptz, boolean, integer, integer);
drop function if exists tidebase.list_inbox(integer, text, text);
drop function if exists tidebase.move_run(text, text, integer, text);
drop view if exists tidebase.gate_ballots;
drop type tidebase.run_page;
