drop type tidebase.run_count;
drop index tidebase.gates_by_age, tidebase.gates_by_status, tidebase.runs_roots, tidebase.runs_by_prefix,
  tidebase.run_heads_by_status, tidebase.run_heads_by_workflow_and_status;
create index gates_pending on tidebase.gates (created_at, run_id) where status = 'pending' and kind = 'gate';
create index run_heads_alive on tidebase.run_heads (status, run_id) where status <> 'completed';
alter table tidebase.run_heads drop column created_at, drop column workflow_key;
alter table tidebase.runs drop column parent_run_id;
alter table tidebase.run_heads add column watched_until timestamptz;
drop table tidebase.watches;
drop table tidebase.setbacks;
-- A run that waits for its children becomes pending: the older functions know nothing of such a wait.
update tidebase.run_heads h set status = 'pending', waiting_for = null
where h.status = 'waiting' and exists (select from tidebase.awaited w where w.run_id = h.run_id);
-- Gates get the hash by which the older functions look for them. The secrets that were handed out since are lost: the older
-- functions derive others.
update tidebase.gates g
set shown_hash = sha256(convert_to(regexp_replace(jsonb_build_array(g.prompt, g.data)::text,
  E'("(?:[^"\\\\]|\\\\.)*")|([.][0-9]*[1-9])0+(?![0-9])|[.]0+(?![0-9])', E'\\1\\2', 'g'), 'UTF8'))
where g.nonce is not null;
alter table tidebase.gates drop column nonce;
drop table tidebase_private.incarnation;
alter table tidebase.accounts drop column has_forks;
delete from tidebase.edges where source_run_id is not null;
alter table tidebase.edges drop column source_run_id;
drop table tidebase.awaited;
alter table tidebase.runs drop column failure_class, drop column attempts_forgiven;
alter table tidebase.attempts drop column lapsed_at;
drop index tidebase.steps_open;
update tidebase.reviews set cause = 'crash' where cause = 'contract';
alter table tidebase.reviews
  drop column explanation,
  drop constraint review_cause_is_known,
  add constraint review_cause_is_known check (cause in ('crash', 'error'));
comment on column tidebase.gates.shown_hash is 'SHA-256 of the canonical prompt and data: what the decision is about.';
comment on column tidebase.gate_votes.voter is null;
comment on table tidebase.gate_votes is
  'Who voted what, at a gate that needs several approvals. One vote a voter: the bearers of the gate''s secret are one voter together.';
