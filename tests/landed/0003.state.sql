-- The state 0003.state, with runs in the middle of their work.
SET statement_timeout = 0;
SET lock_timeout = 0;
SET idle_in_transaction_session_timeout = 0;
SET client_encoding = 'UTF8';
SET standard_conforming_strings = on;
SELECT pg_catalog.set_config('search_path', '', false);
SET check_function_bodies = false;
SET xmloption = content;
SET client_min_messages = warning;
SET row_security = off;
CREATE SCHEMA tidebase;
COMMENT ON SCHEMA tidebase IS 'Tidebase: durable checkpoints for agents. Functions and views are the API.';
CREATE SCHEMA tidebase_private;
COMMENT ON SCHEMA tidebase_private IS 'Tidebase: what its functions share; not an API.';
CREATE TYPE tidebase.checkpoint AS (
	name text,
	input_hash bytea,
	output jsonb
);
COMMENT ON TYPE tidebase.checkpoint IS 'One completed step, as load_checkpoints returns it.';
CREATE TYPE tidebase.child AS (
	run_id text,
	created boolean
);
COMMENT ON TYPE tidebase.child IS 'Answer of create_child: the child''s id, and whether this call made it.';
CREATE TYPE tidebase.event AS (
	seq bigint,
	type text,
	payload jsonb,
	created_at timestamp with time zone
);
COMMENT ON TYPE tidebase.event IS 'One entry of a run''s log, as read_events returns it.';
CREATE TYPE tidebase.gate_decision AS (
	accepted boolean,
	status text,
	decision text,
	payload jsonb,
	comment text,
	actor text,
	decided_at timestamp with time zone,
	approvals integer,
	required integer
);
COMMENT ON TYPE tidebase.gate_decision IS 'Answer of decide_gate. accepted: whether this call''s decision (or vote) was taken; the rest is what stands now. status pending: more approvals are needed.';
CREATE TYPE tidebase.gate_opening AS (
	status text,
	decision text,
	payload jsonb,
	comment text,
	actor text,
	decided_at timestamp with time zone,
	decided_by text,
	timeout_at timestamp with time zone,
	secret text,
	created boolean
);
COMMENT ON TYPE tidebase.gate_opening IS 'Answer of open_gate. status: pending or decided; the decision with payload, comment, actor, decided_by (secret, approver, timeout); secret: entitles its bearer to decide; created: whether this call made the gate.';
CREATE TYPE tidebase.lease AS (
	outcome text,
	token bigint,
	attempt integer,
	workflow text,
	input jsonb,
	result jsonb,
	holder text,
	expires_at timestamp with time zone,
	checkpoints integer,
	traceparent text
);
COMMENT ON TYPE tidebase.lease IS 'Answer of acquire_run. outcome: granted (token, attempt, input, the number of checkpoints and the traceparent to link to are yours), held (by holder until expires_at), completed (result), waiting, review.';
CREATE TYPE tidebase.reconciliation AS (
	runs integer,
	leases integer,
	gates integer,
	timers integer,
	deadlines integer
);
COMMENT ON TYPE tidebase.reconciliation IS 'Answer of reconcile: how many runs it looked at, and how many leases, gates, timers and deadlines had run out.';
CREATE TYPE tidebase.run_difference AS (
	kind text,
	name text,
	difference text,
	seq bigint,
	other_seq bigint,
	value jsonb,
	other jsonb
);
COMMENT ON TYPE tidebase.run_difference IS 'One thing in which two runs differ. kind: input, step, gate, state or result; difference: missing (the other does not have it), added (only the other has it), input (begun with another input) or value.';
CREATE TYPE tidebase.run_failure AS (
	seq bigint,
	status text,
	retry_at timestamp with time zone
);
COMMENT ON TYPE tidebase.run_failure IS 'Answer of fail_run: the seq of the event, and what the run is now: failed, pending (another attempt from retry_at on) or review.';
CREATE TYPE tidebase.snapshot AS (
	target_type text,
	target_id text,
	stream text,
	version integer,
	label text,
	value jsonb,
	reason text,
	created_by text,
	metadata jsonb,
	seq bigint,
	created_at timestamp with time zone
);
COMMENT ON TYPE tidebase.snapshot IS 'One labeled version: of a target that create_snapshot was given, or of the run''s state (target_type state, target_id the stream).';
CREATE TYPE tidebase.state AS (
	stream text,
	version integer,
	value jsonb,
	operation text,
	importance text,
	label text,
	reason text,
	created_by text,
	metadata jsonb,
	seq bigint,
	created_at timestamp with time zone
);
COMMENT ON TYPE tidebase.state IS 'One version of a stream. operation: set, patch, save, restore or snapshot; importance: transient, normal, checkpoint or milestone; seq: of its event.';
CREATE TYPE tidebase.step_failure AS (
	decision text,
	retry_after interval,
	attempt integer
);
COMMENT ON TYPE tidebase.step_failure IS 'Answer of fail_step. decision: auto_retry (begin the step again after retry_after), safe_replay, manual_review, fail_hard.';
CREATE TYPE tidebase.step_start AS (
	outcome text,
	attempt integer,
	output jsonb
);
COMMENT ON TYPE tidebase.step_start IS 'Answer of begin_step. outcome: execute (run it, as this attempt), replay (output is the checkpoint), review (a person must decide first).';
CREATE TYPE tidebase.tree_node AS (
	run_id text,
	parent_run_id text,
	name text,
	edge_type text,
	depth integer,
	workflow text,
	status text,
	steps_completed integer,
	created_at timestamp with time zone,
	finished_at timestamp with time zone
);
COMMENT ON TYPE tidebase.tree_node IS 'One run of a tree, as run_tree returns it: depth 0 is the run that was asked for; name and edge_type are of the edge to it.';
CREATE TYPE tidebase.usage_total AS (
	recorded boolean,
	records bigint,
	input_tokens bigint,
	output_tokens bigint,
	cost_usd numeric,
	unpriced bigint,
	exhausted boolean,
	seq bigint
);
COMMENT ON TYPE tidebase.usage_total IS 'Answer of record_usage: whether this call was counted (false: that response was before), what the run used so far, how many records have no price, whether a budget is used up, and the seq of the record''s event.';
CREATE TYPE tidebase.watch AS (
	channel text,
	status text,
	last_seq bigint,
	watched_until timestamp with time zone
);
COMMENT ON TYPE tidebase.watch IS 'Answer of watch_run: LISTEN to channel; its payload is the run_id of a watched run that has something new.';
CREATE FUNCTION tidebase.acquire_run(run_id text, holder text, ttl interval DEFAULT '00:01:00'::interval, code_version text DEFAULT NULL::text, request_id text DEFAULT NULL::text, traceparent text DEFAULT NULL::text) RETURNS tidebase.lease
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'tidebase', 'pg_temp'
    AS $$
declare
  head run_heads;
  lapsed jsonb;
begin
  perform tidebase_private.require_name(holder, 'holder', 255);
  perform tidebase_private.require_interval(ttl, 'ttl', '1 millisecond', '1 day');
  if code_version is not null then
    perform tidebase_private.require_name(code_version, 'code_version', 255);
  end if;
  if request_id is not null then
    perform tidebase_private.require_name(request_id, 'request_id', 255);
  end if;
  perform tidebase_private.require_traceparent(traceparent);
  -- Whoever polls for a run that is taken gets the answer without a lock and without a write.
  select h.* into head from run_heads h where h.run_id = acquire_run.run_id;
  if tidebase_private.is_taken(head, request_id) then
    return tidebase_private.lease_refused(head);
  end if;
  perform tidebase_private.commit_durably();
  head := tidebase_private.lock_head(run_id);
  if head.status = 'waiting' then
    head := tidebase_private.settle_overdue(head);
  end if;
  if head.status = 'cancelled' then
    perform tidebase_private.raise_fenced(run_id, head.lease_token);
  elsif tidebase_private.is_taken(head, request_id) then
    return tidebase_private.lease_refused(head);
  end if;
  perform tidebase_private.require_time_left(head);
  if tidebase_private.is_live(head) then
    return tidebase_private.lease_granted(head);  -- the same call again: its answer was lost on the way
  end if;
  if head.status = 'running' then
    lapsed := jsonb_build_object('token', head.lease_token, 'holder', head.holder, 'expired_at', head.lease_expires_at);
    perform tidebase_private.end_attempt(head, 'lapsed');
  end if;
  update run_heads h
  set status = 'running',
      lease_token = h.lease_token + 1,
      attempt = h.attempt + 1,
      holder = acquire_run.holder,
      lease_expires_at = clock_timestamp() + ttl,
      due_at = least(h.due_at, clock_timestamp() + ttl),
      available_at = null,
      last_seq = h.last_seq + 1,
      durable_seq = h.last_seq + 1,
      updated_at = clock_timestamp()
  where h.run_id = acquire_run.run_id
  returning h.* into head;
  insert into attempts (run_id, attempt, lease_token, holder, code_version, request_id, traceparent)
  values (head.run_id, head.attempt, head.lease_token, head.holder, acquire_run.code_version, acquire_run.request_id, acquire_run.traceparent);
  perform tidebase_private.emit(head, 'run.started', jsonb_strip_nulls(jsonb_build_object('attempt', head.attempt,
    'token', head.lease_token, 'holder', head.holder, 'code_version', code_version, 'lapsed', lapsed)));
  return tidebase_private.lease_granted(head);
end
$$;
COMMENT ON FUNCTION tidebase.acquire_run(run_id text, holder text, ttl interval, code_version text, request_id text, traceparent text) IS 'Grants the run''s lease, or says why not. outcome: granted (with token, attempt, input, number of checkpoints), held (by holder until expires_at), completed (with result), waiting (for a gate or timer, or until expires_at after a failed attempt), review (a person must decide about a step). holder: a name for people and logs. ttl: 1 millisecond to 1 day; renew_lease extends it. code_version: what the worker runs, kept with the attempt. request_id: an id made up for this call; the call repeated with it gets the lease that it was granted. traceparent: of the attempts own span (W3C Trace Context), kept with the attempt; the answers traceparent is that of the attempt before it, or of who made the run, to link to. A failed run is granted again. Commits synchronously. Errors: TB001, TB002, TB004.';
CREATE FUNCTION tidebase.append_event(run_id text, token bigint, type text, payload jsonb DEFAULT '{}'::jsonb, request_id text DEFAULT NULL::text, transient boolean DEFAULT false) RETURNS bigint
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'tidebase', 'pg_temp'
    AS $$
declare
  head tidebase.run_heads;
  earlier events;
begin
  perform tidebase_private.require_name(type, 'type', 255);
  if tidebase_private.is_reserved(type) then
    perform tidebase_private.raise_invalid('type', format(
      'must not begin with %s, which marks events that Tidebase writes itself', quote_literal(split_part(type, '.', 1) || '.')));
  end if;
  if request_id is not null then
    perform tidebase_private.require_name(request_id, 'request_id', 255);
  end if;
  if transient then
    perform tidebase_private.commit_lazily();
  else
    perform tidebase_private.commit_durably();
  end if;
  head := tidebase_private.fence(run_id, token, 1);
  if request_id is not null then
    earlier := tidebase_private.find_request(run_id, request_id);
    if earlier.seq is not null then
      perform tidebase_private.give_back(head, 1);
      return earlier.seq;
    end if;
  end if;
  perform tidebase_private.emit(head, type, coalesce(payload, 'null'), request_id);
  return head.last_seq;
end
$$;
COMMENT ON FUNCTION tidebase.append_event(run_id text, token bigint, type text, payload jsonb, request_id text, transient boolean) IS 'Appends an event to the run''s log and returns its seq. Needs the run''s lease token. type: a name of your own, such as "agent.progress"; the prefixes of Tidebase''s own types (run. step. gate. ...) are refused. request_id: an id made up for this call; the call repeated with it returns the first one''s seq. transient: the event may be lost with the last moments of a crashed server (asynchronous commit). Errors: TB001, TB002, TB003, TB004, TB005.';
CREATE FUNCTION tidebase.begin_step(run_id text, token bigint, name text, input jsonb DEFAULT NULL::jsonb, side_effects text[] DEFAULT NULL::text[], idempotency_key text DEFAULT NULL::text, replay text DEFAULT NULL::text, checkpoint_invariant text DEFAULT NULL::text, verified_by text DEFAULT NULL::text, retries integer DEFAULT NULL::integer, retry_delay interval DEFAULT NULL::interval, retry_max_delay interval DEFAULT NULL::interval, timeout interval DEFAULT NULL::interval, credentials text[] DEFAULT NULL::text[], request_id text DEFAULT NULL::text) RETURNS tidebase.step_start
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'tidebase', 'pg_temp'
    AS $$
declare
  head run_heads;
  step steps;
  hash bytea := tidebase_private.hash_input(input);
  nth integer;
begin
  select s.* into step from steps s
  join run_heads h on h.run_id = s.run_id and h.lease_token = begin_step.token and h.status = 'running'
  where s.run_id = begin_step.run_id and s.name = begin_step.name and s.status = 'completed';
  if found then
    if step.input_hash <> hash then
      perform tidebase_private.raise_other_input(step, hash);
    end if;
    return row('replay', step.attempt, step.output)::step_start;
  end if;
  perform tidebase_private.require_name(name, 'name', 1024);
  perform tidebase_private.require_contract(side_effects, idempotency_key, replay, checkpoint_invariant, verified_by,
    credentials, retries, retry_delay, retry_max_delay, timeout);
  if tidebase_private.writes_outside(side_effects) then
    perform tidebase_private.commit_durably();
  else
    perform tidebase_private.commit_lazily();
  end if;
  head := tidebase_private.fence(run_id, token, 1);
  perform tidebase_private.require_time_left(head);
  insert into steps as s (run_id, name, lease_token, attempt, tries, status, input_hash, input, request_id, side_effects,
    idempotency_key, replay, checkpoint_invariant, verified_by, credentials, retries, retry_delay, retry_max_delay, timeout)
  values (head.run_id, begin_step.name, head.lease_token, 1, 1, 'running', hash, begin_step.input, begin_step.request_id,
    begin_step.side_effects, begin_step.idempotency_key, begin_step.replay, begin_step.checkpoint_invariant,
    begin_step.verified_by, begin_step.credentials, begin_step.retries, begin_step.retry_delay,
    begin_step.retry_max_delay, begin_step.timeout)
  on conflict on constraint steps_pkey do update
  set (lease_token, started_at, status, request_id, side_effects, idempotency_key, replay, checkpoint_invariant,
       verified_by, credentials, retries, retry_delay, retry_max_delay, timeout)
    = (excluded.lease_token, excluded.started_at, 'running', excluded.request_id, excluded.side_effects,
       excluded.idempotency_key, excluded.replay, excluded.checkpoint_invariant, excluded.verified_by,
       excluded.credentials, excluded.retries, excluded.retry_delay, excluded.retry_max_delay, excluded.timeout),
    attempt = s.attempt + 1,
    tries = case when s.lease_token = excluded.lease_token then s.tries + 1 else 1 end,
    error = null, decision = null, retry_at = null
  where s.input_hash = excluded.input_hash and tidebase_private.may_begin_again(s, excluded.lease_token)
  returning s.attempt into nth;
  if not found then
    return tidebase_private.begun_already(head, name, hash, request_id);
  elsif head.has_budget then
    perform tidebase_private.require_funds(head);  -- or nothing of this call has happened
  end if;
  perform tidebase_private.emit(head, 'step.started',
    jsonb_build_object('name', name, 'attempt', nth, 'token', head.lease_token));
  return row('execute', nth, null)::step_start;
end
$$;
COMMENT ON FUNCTION tidebase.begin_step(run_id text, token bigint, name text, input jsonb, side_effects text[], idempotency_key text, replay text, checkpoint_invariant text, verified_by text, retries integer, retry_delay interval, retry_max_delay interval, timeout interval, credentials text[], request_id text) IS 'Begins a step, or hands out its checkpoint. outcome: execute (do the work as this attempt, then complete_step or fail_step), replay (output is the checkpoint), review (the step may have taken effect before, and its contract does not allow to repeat it: a person must decide; the run is in review, and the lease is given up). name: 1 to 1024 bytes, unique in the run; by convention name[key] for one of several. input: hashed in canonical form; the same step with another input raises TB006. The resume contract: side_effects ({read} is harmless, anything else writes to the outside), idempotency_key, replay (auto, manual, never), checkpoint_invariant, verified_by, credentials (names only), retries (0 to 1000) with retry_delay and retry_max_delay, timeout. request_id: an id made up for this call; the call repeated with it gets the first answer again (after review TB003, because the lease is given up; acquire_run says review); without it a running step raises TB007. The start of a step that writes to the outside commits synchronously. Errors: TB001, TB002, TB003, TB004, TB005, TB006, TB007, TB010 (a budget is used up; checkpoints are still handed out).';
CREATE FUNCTION tidebase.cancel_run(run_id text, reason text DEFAULT NULL::text, actor text DEFAULT NULL::text, cascade boolean DEFAULT true) RETURNS integer
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'tidebase', 'pg_temp'
    AS $$
declare
  head run_heads;
  who text := coalesce(actor, tidebase_private.caller());
  cancelled integer;
begin
  perform tidebase_private.commit_durably();
  head := tidebase_private.lock_head(run_id);
  if head.status = 'completed' then
    perform tidebase_private.raise_fenced(run_id, head.lease_token);
  end if;
  cancelled := tidebase_private.cancel_one(head, reason, who)::integer;
  if cascade then
    cancelled := cancelled + tidebase_private.cancel_descendants(run_id, reason, who);
  end if;
  return cancelled;
end
$$;
COMMENT ON FUNCTION tidebase.cancel_run(run_id text, reason text, actor text, cascade boolean) IS 'Cancels a run for good: every later call of its worker raises TB004, nothing resurrects it, its pending gates are closed. cascade (by default): its descendants, too, except forks. reason and actor (the database role unless told) go into the log. Returns how many runs this call cancelled: 0 when all were cancelled before. Errors: TB001, TB005 (it is completed).';
SET default_tablespace = '';
SET default_table_access_method = heap;
CREATE TABLE tidebase.deliveries (
    run_id text NOT NULL,
    delivery integer NOT NULL,
    recovery integer,
    url text NOT NULL,
    body jsonb NOT NULL,
    status text DEFAULT 'pending'::text NOT NULL,
    attempts integer DEFAULT 0 NOT NULL,
    next_at timestamp with time zone DEFAULT clock_timestamp(),
    http_status integer,
    response text,
    error text,
    created_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    finished_at timestamp with time zone,
    CONSTRAINT delivery_is_due_while_pending CHECK (((status = 'pending'::text) = (next_at IS NOT NULL))),
    CONSTRAINT delivery_status_is_known CHECK ((status = ANY (ARRAY['pending'::text, 'delivered'::text, 'failed'::text])))
);
COMMENT ON TABLE tidebase.deliveries IS 'The outbox of webhooks: written in the transaction that decided to send, delivered by a dispatcher outside, at least once.';
COMMENT ON COLUMN tidebase.deliveries.next_at IS 'When the next attempt is due; a dispatcher that takes the row pushes it ahead while it works.';
CREATE FUNCTION tidebase.claim_deliveries(max integer DEFAULT 10, ttl interval DEFAULT '00:01:00'::interval) RETURNS SETOF tidebase.deliveries
    LANGUAGE plpgsql SECURITY DEFINER ROWS 10
    SET search_path TO 'pg_catalog', 'tidebase', 'pg_temp'
    AS $$
declare
  as_of timestamptz := clock_timestamp();  -- a volatile function in the condition would rule out the index
begin
  if max is null or max not between 1 and 1000 then
    perform tidebase_private.raise_invalid('max', 'must be a number from 1 to 1000');
  end if;
  perform tidebase_private.require_interval(ttl, 'ttl', '1 second', '1 day');
  return query
    update deliveries d
    set attempts = d.attempts + 1, next_at = clock_timestamp() + ttl
    from (
      select p.run_id, p.delivery from deliveries p
      where p.status = 'pending' and p.next_at <= as_of
      order by p.next_at
      limit claim_deliveries.max
      for no key update skip locked) as due
    where d.run_id = due.run_id and d.delivery = due.delivery
    returning d.*;
end
$$;
COMMENT ON FUNCTION tidebase.claim_deliveries(max integer, ttl interval) IS 'Takes deliveries that are due, at most max (1 to 1000), for ttl: send each and report it with finish_delivery. attempts is the number of this attempt; a report must carry it. Errors: TB002.';
CREATE FUNCTION tidebase.compact_run(run_id text) RETURNS boolean
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'tidebase', 'pg_temp'
    AS $$
declare
  head run_heads;
begin
  perform tidebase_private.commit_durably();
  head := tidebase_private.lock_head(run_id);
  if head.status not in ('completed', 'cancelled') then
    perform tidebase_private.raise('TB002', format('run %L is %s: it may still need its checkpoints', run_id, head.status),
      jsonb_build_object('run_id', run_id, 'status', head.status), 'Only completed and cancelled runs can be compacted.');
  end if;
  update runs r set compacted_at = clock_timestamp() where r.run_id = compact_run.run_id and r.compacted_at is null;
  if not found then
    return false;
  end if;
  update steps s set input = null, output = case when s.output is not null then 'null'::jsonb end, error = null
  where s.run_id = compact_run.run_id;
  perform tidebase_private.drop_history(run_id);
  return true;
end
$$;
COMMENT ON FUNCTION tidebase.compact_run(run_id text) IS 'Takes the inputs and outputs of a run''s steps away, and all but the newest version of each stream; its input and result, its log, gates and usage stay. Only of a run that is completed or cancelled. It cannot be forked any more. Returns false when it was done before. Errors: TB001, TB002.';
CREATE FUNCTION tidebase.complete_run(run_id text, token bigint, result jsonb DEFAULT NULL::jsonb) RETURNS bigint
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'tidebase', 'pg_temp'
    AS $$
declare
  head run_heads;
  wanted jsonb := coalesce(result, 'null');
begin
  perform tidebase_private.commit_durably();
  select h.* into head from run_heads h where h.run_id = complete_run.run_id for no key update;
  if head.status = 'completed' and head.lease_token = token
    and exists (select from runs r where r.run_id = complete_run.run_id and r.result = wanted)
  then
    return head.last_seq;  -- the same call again
  end if;
  head := tidebase_private.fence(run_id, token, 1);
  update runs r set result = wanted, error = null, finished_at = clock_timestamp() where r.run_id = complete_run.run_id;
  perform tidebase_private.end_attempt(head, 'completed');
  update gates g set status = 'cancelled' where g.run_id = complete_run.run_id and g.status = 'pending';
  update run_heads h set status = 'completed', lease_expires_at = null, due_at = null where h.run_id = complete_run.run_id;
  perform tidebase_private.emit(head, 'run.completed', jsonb_build_object('attempt', head.attempt, 'token', head.lease_token));
  return head.last_seq;
end
$$;
COMMENT ON FUNCTION tidebase.complete_run(run_id text, token bigint, result jsonb) IS 'Stores the result and ends the run for good, with its gates that are still open; returns the seq of its last event. The same call again returns the same. Errors: TB001, TB003, TB004, TB005.';
CREATE FUNCTION tidebase.complete_step(run_id text, token bigint, name text, output jsonb DEFAULT NULL::jsonb) RETURNS bigint
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'tidebase', 'pg_temp'
    AS $$
declare
  head run_heads;
  wanted jsonb := coalesce(output, 'null');
  nth integer;
  earlier bigint;
begin
  perform tidebase_private.commit_durably();
  head := tidebase_private.fence(run_id, token, 1, checkpoints => 1);
  update steps s
  set status = 'completed', output = wanted, completed_at = clock_timestamp(), completed_seq = head.last_seq
  where s.run_id = complete_step.run_id and s.name = complete_step.name
    and s.status = 'running' and s.lease_token = complete_step.token
  returning s.attempt into nth;
  if found then
    perform tidebase_private.emit(head, 'step.completed', jsonb_build_object('name', name, 'attempt', nth));
    return head.last_seq;
  end if;
  select s.completed_seq into earlier from steps s
  where s.run_id = complete_step.run_id and s.name = complete_step.name
    and s.status = 'completed' and s.lease_token = complete_step.token and s.output = wanted;
  if not found then
    perform tidebase_private.raise_not_running(run_id, token, name);
  end if;
  perform tidebase_private.give_back(head, 1, checkpoints => 1);
  return earlier;  -- the same call again
end
$$;
COMMENT ON FUNCTION tidebase.complete_step(run_id text, token bigint, name text, output jsonb) IS 'Stores the output of a running step as its checkpoint and returns the seq of the event. Commits synchronously: once it has returned, the step never runs again. A SQL NULL is stored as the JSON null. The same call again returns the same seq. Errors: TB001, TB003, TB004, TB005, TB007.';
CREATE FUNCTION tidebase.create_child(run_id text, token bigint, name text, workflow text, input jsonb DEFAULT NULL::jsonb, edge_type text DEFAULT 'child'::text, metadata jsonb DEFAULT NULL::jsonb, edge_metadata jsonb DEFAULT NULL::jsonb, max_attempts integer DEFAULT NULL::integer, retry_delay interval DEFAULT NULL::interval, recovery_webhook text DEFAULT NULL::text, budget jsonb DEFAULT NULL::jsonb, traceparent text DEFAULT NULL::text) RETURNS tidebase.child
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'tidebase', 'pg_temp'
    AS $$
declare
  head run_heads;
  edge edges;
  child_id text;
begin
  perform tidebase_private.require_name(name, 'name', 1024);
  perform tidebase_private.require_name(edge_type, 'edge_type', 255);
  if edge_type = 'fork' then
    perform tidebase_private.raise_invalid('edge_type', 'must not be fork, which marks runs made by fork_run');
  elsif starts_with(name, 'fork:') then
    perform tidebase_private.raise_invalid('name', 'must not begin with fork:, which marks the edges to forks');
  elsif jsonb_typeof(edge_metadata) <> 'object' then
    perform tidebase_private.raise_invalid('edge_metadata', 'must be a JSON object');
  end if;
  perform tidebase_private.commit_durably();
  head := tidebase_private.fence(run_id, token, 1);
  perform tidebase_private.require_time_left(head);
  select e.* into edge from edges e where e.run_id = create_child.run_id and e.name = create_child.name;
  if found then
    perform tidebase_private.give_back(head, 1);
    perform create_run(workflow, input, run_id => edge.child_run_id);  -- the same child, or TB006
    return row(edge.child_run_id, false)::child;
  end if;
  child_id := create_run(workflow, input, metadata => metadata, deadline => head.deadline_at, max_attempts => max_attempts,
    retry_delay => retry_delay, recovery_webhook => recovery_webhook, budget => budget, traceparent => traceparent);
  if head.has_budget then
    update run_heads h set has_budget = true where h.run_id = child_id;
    perform tidebase_private.open_account(child_id, parent_run_id => head.run_id);
  end if;
  insert into edges (run_id, name, child_run_id, edge_type, metadata)
  values (head.run_id, create_child.name, child_id, create_child.edge_type, coalesce(edge_metadata, '{}'));
  perform tidebase_private.emit(head, 'run.child.created', jsonb_build_object('name', name, 'child_run_id', child_id,
    'workflow', workflow, 'edge_type', edge_type));
  return row(child_id, true)::child;
end
$$;
COMMENT ON FUNCTION tidebase.create_child(run_id text, token bigint, name text, workflow text, input jsonb, edge_type text, metadata jsonb, edge_metadata jsonb, max_attempts integer, retry_delay interval, recovery_webhook text, budget jsonb, traceparent text) IS 'Makes a child of the run, or finds the one that was made under this edge name. The child has the parent''s deadline, shares its budget (beside a smaller one of its own), and is cancelled with it. edge_type: any word but fork; metadata: of the child; edge_metadata: of the edge; the rest is as for create_run. Errors: TB001, TB002, TB003, TB004, TB005, TB006 (the name stands for a child with another workflow or input).';
CREATE FUNCTION tidebase.create_run(workflow text, input jsonb DEFAULT NULL::jsonb, run_id text DEFAULT NULL::text, metadata jsonb DEFAULT NULL::jsonb, deadline timestamp with time zone DEFAULT NULL::timestamp with time zone, max_attempts integer DEFAULT NULL::integer, retry_delay interval DEFAULT NULL::interval, recovery_webhook text DEFAULT NULL::text, budget jsonb DEFAULT NULL::jsonb, traceparent text DEFAULT NULL::text) RETURNS text
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'tidebase', 'pg_temp'
    AS $_$
declare
  id text := coalesce(run_id, tidebase_private.new_run_id());
  existing runs;
  head run_heads;
begin
  perform tidebase_private.require_name(workflow, 'workflow', 255);
  perform tidebase_private.require_name(id, 'run_id', 255);
  if jsonb_typeof(metadata) <> 'object' then
    perform tidebase_private.raise_invalid('metadata', 'must be a JSON object');
  elsif max_attempts not between 1 and 1000 then
    perform tidebase_private.raise_invalid('max_attempts', 'must be a number from 1 to 1000');
  elsif recovery_webhook !~ '^https?://[^[:space:]]+$' then
    perform tidebase_private.raise_invalid('recovery_webhook', 'must be an http or https URL');
  end if;
  perform tidebase_private.require_interval(coalesce(retry_delay, '1 second'), 'retry_delay', '0', '30 days');
  perform tidebase_private.require_budget(budget);
  perform tidebase_private.require_traceparent(traceparent);
  perform tidebase_private.commit_durably();
  insert into runs (run_id, workflow, input, metadata, max_attempts, retry_delay, recovery_webhook, traceparent)
  values (id, create_run.workflow, create_run.input, coalesce(create_run.metadata, '{}'), create_run.max_attempts,
    create_run.retry_delay, create_run.recovery_webhook, create_run.traceparent)
  on conflict on constraint runs_pkey do nothing;
  if not found then
    select r.* into existing from runs r where r.run_id = id;
    if existing.workflow <> workflow then
      perform tidebase_private.raise('TB006', format('run %L belongs to workflow %L, not to %L', id, existing.workflow, workflow),
        jsonb_build_object('run_id', id, 'workflow', existing.workflow, 'given', workflow), 'Use another run_id.');
    elsif input is not null and input is distinct from existing.input then
      perform tidebase_private.raise('TB006', format('run %L was created with another input', id),
        jsonb_build_object('run_id', id, 'workflow', workflow), 'Use another run_id, or leave the input out to go on with the existing run.');
    end if;
    return id;
  end if;
  insert into run_heads (run_id, last_seq, durable_seq, deadline_at, due_at, has_budget)
  values (id, 1, 1, create_run.deadline, create_run.deadline, budget is not null)
  returning * into head;
  if budget is not null then
    perform tidebase_private.open_account(id, budget);
  end if;
  perform tidebase_private.emit(head, 'run.created', jsonb_build_object('workflow', workflow));
  return id;
end
$_$;
COMMENT ON FUNCTION tidebase.create_run(workflow text, input jsonb, run_id text, metadata jsonb, deadline timestamp with time zone, max_attempts integer, retry_delay interval, recovery_webhook text, budget jsonb, traceparent text) IS 'Makes a run and returns its id, generated when run_id is NULL. The same id with the same workflow and an equal input is the same run; with others TB006. An input of SQL NULL makes no claim: it finds an existing run whatever its input. run_id: 1 to 255 bytes. metadata: an object of your own, kept from the first call. deadline: from when the run may not go on: it is cancelled. max_attempts (1 to 1000, by default 1) and retry_delay (by default 1 second, doubled each time, at most 1 hour): how fail_run goes on. recovery_webhook: the URL that is told when the run is to be recovered. budget: {"cost_usd": 2.50, "tokens": 100000}, either or both: what the run and its descendants may use together; see set_budget. traceparent: of the W3C Trace Context in which the run is made, for its first attempt to link to. Errors: TB002, TB006.';
CREATE FUNCTION tidebase.create_snapshot(run_id text, token bigint, label text, target_type text DEFAULT 'run'::text, target_id text DEFAULT NULL::text, state jsonb DEFAULT NULL::jsonb, reason text DEFAULT NULL::text, importance text DEFAULT 'milestone'::text, metadata jsonb DEFAULT NULL::jsonb, created_by text DEFAULT NULL::text, request_id text DEFAULT NULL::text) RETURNS integer
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'tidebase', 'pg_temp'
    AS $$
declare
  id text := coalesce(target_id, 'self');
  snapshots text := tidebase_private.snapshot_stream(target_type, id);
  version integer;
begin
  perform tidebase_private.require_name(label, 'label', 1024);
  perform tidebase_private.require_name(target_type, 'target_type', 255);
  perform tidebase_private.require_name(id, 'target_id', 1024);
  perform tidebase_private.require_state_options('any', label, importance, metadata, request_id);
  version := tidebase_private.write_state(
    tidebase_private.describe_version(run_id, snapshots, 'snapshot', importance, label, reason, metadata, created_by),
    token, state, request_id => request_id);
  if version = 1 then
    update state_streams t set target_type = create_snapshot.target_type, target_id = id
    where t.run_id = create_snapshot.run_id and t.stream = snapshots;
  end if;
  return version;
end
$$;
COMMENT ON FUNCTION tidebase.create_snapshot(run_id text, token bigint, label text, target_type text, target_id text, state jsonb, reason text, importance text, metadata jsonb, created_by text, request_id text) IS 'Keeps what a target looks like under a label and returns the number of the snapshot, 1, 2, 3 ... for each target. target_type and target_id: what it is of, the run itself ("run", "self") unless told. state: the document; left out, the run''s state (stream main) as it is now. importance, metadata, created_by, request_id: as for set_state. Errors: TB001, TB002, TB003, TB004, TB005, TB012 (no state is given, and the run has none).';
CREATE FUNCTION tidebase.decide_gate(run_id text, name text, decision text, actor text DEFAULT NULL::text, payload jsonb DEFAULT NULL::jsonb, secret text DEFAULT NULL::text, comment text DEFAULT NULL::text, request_id text DEFAULT NULL::text) RETURNS tidebase.gate_decision
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'tidebase', 'pg_temp'
    AS $$
declare
  right_of text := tidebase_private.entitlement(run_id, name, secret);
  who text := coalesce(actor, case right_of when 'approver' then tidebase_private.caller() end);
  head run_heads;
  gate gates;
begin
  if request_id is not null then
    perform tidebase_private.require_name(request_id, 'request_id', 255);
  end if;
  perform tidebase_private.commit_durably();
  head := tidebase_private.lock_head(run_id);
  select g.* into gate from gates g
  where g.run_id = decide_gate.run_id and g.name = decide_gate.name and g.kind = 'gate';
  if not found then
    perform tidebase_private.raise_gate_not_found(run_id, name);
  elsif head.status = 'cancelled' then
    perform tidebase_private.raise_fenced(run_id, head.lease_token);
  end if;
  gate := tidebase_private.settle_if_overdue(gate);
  if gate.status = 'decided' then
    return tidebase_private.standing(gate, accepted => coalesce(gate.request_id = request_id, false));
  elsif head.status = 'completed' then
    perform tidebase_private.raise_fenced(run_id, head.lease_token);
  elsif decision is null or decision <> all (gate.options) then
    perform tidebase_private.raise_invalid('decision', format('must be one of: %s', array_to_string(gate.options, ', ')));
  end if;
  if gate.required_approvals > 1 and decision <> 'rejected' then
    if not tidebase_private.vote(gate, case right_of when 'secret' then '(secret)' else who end, decision, payload, comment, request_id) then
      return tidebase_private.standing(gate, accepted => false);
    elsif (select count(*) from gate_votes v
      where v.run_id = gate.run_id and v.name = gate.name and v.decision = decide_gate.decision) < gate.required_approvals
    then
      return tidebase_private.standing(gate, accepted => true);
    end if;
  end if;
  gate := tidebase_private.settle_gate(gate, decision, payload, comment, who, right_of, request_id);
  return tidebase_private.standing(gate, accepted => true);
end
$$;
COMMENT ON FUNCTION tidebase.decide_gate(run_id text, name text, decision text, actor text, payload jsonb, secret text, comment text, request_id text) IS 'Decides a gate. accepted: whether this decision was taken; false when another one stands already, which is returned. Entitled is who gives the gate''s secret, or, without one, a member of the approver role. decision: one of the gate''s options. actor: who decides, for the log; the database role unless told. payload: the answer, or the changed arguments. request_id: an id made up for this call; the call repeated with it is accepted again. Errors: TB001, TB002, TB004, TB005, TB009, TB012.';
CREATE FUNCTION tidebase.diff_runs(run_id text, other_run_id text) RETURNS SETOF tidebase.run_difference
    LANGUAGE plpgsql STABLE SECURITY DEFINER ROWS 100
    SET search_path TO 'pg_catalog', 'tidebase', 'pg_temp'
    AS $$
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
COMMENT ON FUNCTION tidebase.diff_runs(run_id text, other_run_id text) IS 'In what two runs differ: their inputs, completed steps (input or output), decided gates, the newest state of each stream, results. Steps and states come in the order of the log, so the first step is where they part. Nothing comes back for runs that are alike. Errors: TB001.';
CREATE FUNCTION tidebase.fail_run(run_id text, token bigint, error jsonb DEFAULT NULL::jsonb, retryable boolean DEFAULT true) RETURNS tidebase.run_failure
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'tidebase', 'pg_temp'
    AS $$
declare
  head run_heads;
  run runs;
  wanted jsonb := coalesce(error, 'null');
  next_status text;
  delay interval;
  failures integer;
begin
  perform tidebase_private.commit_durably();
  head := tidebase_private.lock_head(run_id);
  if head.lease_token = token and head.status in ('failed', 'pending', 'review') and exists (
    select from attempts a where a.run_id = head.run_id and a.attempt = head.attempt and a.outcome = 'failed')
  then
    return row(tidebase_private.last_of_type(run_id, 'run.failed'), head.status, head.available_at)::run_failure;  -- again
  end if;
  head := tidebase_private.fence(run_id, token, 1);
  select r.* into run from runs r where r.run_id = fail_run.run_id;
  -- A lease that was given up, or suspended for a gate, has used no attempt up.
  select count(*)::integer + 1 into failures from attempts a
  where a.run_id = fail_run.run_id and a.outcome in ('failed', 'lapsed');
  next_status := case
    when exists (select from steps s where s.run_id = fail_run.run_id and s.status = 'review') then 'review'
    when coalesce(retryable, true) and failures < coalesce(run.max_attempts, 1) then 'pending'
    else 'failed'
  end;
  if next_status = 'pending' then
    delay := tidebase_private.retry_delay(failures, run.retry_delay, '1 hour');
  end if;
  update runs r
  set error = wanted, finished_at = case when next_status = 'failed' then clock_timestamp() end
  where r.run_id = fail_run.run_id;
  perform tidebase_private.end_attempt(head, 'failed', wanted);
  update run_heads h
  set status = next_status, lease_expires_at = null, available_at = clock_timestamp() + delay
  where h.run_id = fail_run.run_id
  returning h.* into head;
  perform tidebase_private.emit(head, 'run.failed',
    jsonb_build_object('attempt', head.attempt, 'token', head.lease_token, 'error', wanted, 'status', next_status)
      || case when delay is null then '{}' else jsonb_build_object('retry_after', round(extract(epoch from delay), 3)) end);
  return row(head.last_seq, next_status, head.available_at)::run_failure;
end
$$;
COMMENT ON FUNCTION tidebase.fail_run(run_id text, token bigint, error jsonb, retryable boolean) IS 'Ends this attempt with an error and gives the lease up. status: failed (may still be resumed: acquire_run grants it again, and its checkpoints replay), pending (attempts are left: it may be acquired again from retry_at on), review (a person must decide about a step first). error: any JSON, by convention {type, message}. retryable: false rules further attempts out. The same call again returns the same. Errors: TB001, TB003, TB004, TB005.';
CREATE FUNCTION tidebase.fail_step(run_id text, token bigint, name text, error jsonb DEFAULT NULL::jsonb, retryable boolean DEFAULT true) RETURNS tidebase.step_failure
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'tidebase', 'pg_temp'
    AS $$
declare
  head run_heads;
  step steps;
  delay interval;
begin
  perform tidebase_private.commit_durably();
  head := tidebase_private.fence(run_id, token, 1);
  select s.* into step from steps s
  where s.run_id = fail_step.run_id and s.name = fail_step.name and s.lease_token = fail_step.token
    and s.status in ('running', 'failed', 'review');
  if not found then
    perform tidebase_private.raise_not_running(run_id, token, name);
  elsif step.status <> 'running' then
    perform tidebase_private.give_back(head, 1);  -- the same call again
    return row(step.decision, case when step.retry_at is not null then greatest(step.retry_at - clock_timestamp(), '0') end,
      step.attempt)::step_failure;
  end if;
  step.decision := tidebase_private.decide_replay(step, may_retry => coalesce(retryable, true));
  if step.decision = 'auto_retry' then
    delay := tidebase_private.retry_delay(step.tries, step.retry_delay, step.retry_max_delay);
  end if;
  update steps s
  set status = 'failed', error = coalesce(fail_step.error, 'null'), decision = step.decision, retry_at = clock_timestamp() + delay
  where s.run_id = fail_step.run_id and s.name = fail_step.name;
  perform tidebase_private.emit(head, 'step.failed', jsonb_build_object('name', name, 'attempt', step.attempt,
      'error', error, 'decision', step.decision)
    || case when delay is null then '{}' else jsonb_build_object('retry_after', round(extract(epoch from delay), 3)) end);
  if step.decision = 'manual_review' then
    perform tidebase_private.open_review(run_id, name, step.attempt, 'error');
  end if;
  return row(step.decision, delay, step.attempt)::step_failure;
end
$$;
COMMENT ON FUNCTION tidebase.fail_step(run_id text, token bigint, name text, error jsonb, retryable boolean) IS 'Records that a running step failed, and decides what may happen: auto_retry (begin it again after retry_after: exponential, jittered, capped), safe_replay (retries are used up, but resuming the run may execute it again), manual_review (a person must decide before it is executed again: the step is in review), fail_hard (it must not be executed again). A step that writes to the outside without an idempotency key is never retried. error: any JSON, by convention {type, message}. retryable: false rules the retries out. The same call again returns the same decision. Errors: TB001, TB003, TB004, TB005, TB007.';
CREATE FUNCTION tidebase.finish_delivery(run_id text, delivery integer, attempt integer, delivered boolean, http_status integer DEFAULT NULL::integer, response text DEFAULT NULL::text, error text DEFAULT NULL::text, max_attempts integer DEFAULT 8) RETURNS text
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'tidebase', 'pg_temp'
    AS $$
declare
  sent deliveries;
  next_status text;
begin
  perform tidebase_private.commit_durably();
  perform tidebase_private.lock_head(run_id);
  select d.* into sent from deliveries d
  where d.run_id = finish_delivery.run_id and d.delivery = finish_delivery.delivery
  for no key update;  -- who claims it does so without the head's lock
  if not found then
    perform tidebase_private.raise('TB012', format('run %L has no delivery %s', run_id, coalesce(delivery::text, 'NULL')),
      jsonb_build_object('run_id', run_id, 'delivery', delivery), 'Deliveries are handed out by claim_deliveries.');
  elsif sent.status <> 'pending' or sent.attempts is distinct from attempt then
    return sent.status;  -- reported before, or taken over by another dispatcher
  end if;
  next_status := case when delivered then 'delivered' when attempt >= max_attempts then 'failed' else 'pending' end;
  update deliveries d
  set status = next_status, http_status = finish_delivery.http_status, response = left(finish_delivery.response, 10000),
      error = finish_delivery.error, finished_at = case when next_status <> 'pending' then clock_timestamp() end,
      next_at = case when next_status = 'pending'
        then clock_timestamp() + tidebase_private.retry_delay(attempt, '5 seconds', '1 hour') end
  where d.run_id = finish_delivery.run_id and d.delivery = finish_delivery.delivery;
  if next_status <> 'pending' and sent.recovery is not null then
    perform finish_recovery(run_id, sent.recovery, case when delivered then 'succeeded' else 'failed' end, http_status, response, error);
  end if;
  return next_status;
end
$$;
COMMENT ON FUNCTION tidebase.finish_delivery(run_id text, delivery integer, attempt integer, delivered boolean, http_status integer, response text, error text, max_attempts integer) IS 'Reports how an attempt at a delivery ended; returns delivered, pending (it is tried again, with exponential backoff up to an hour) or failed (after max_attempts). A report for an attempt that another dispatcher has taken over changes nothing. Errors: TB001, TB012.';
CREATE FUNCTION tidebase.finish_recovery(run_id text, recovery integer, status text, http_status integer DEFAULT NULL::integer, response text DEFAULT NULL::text, error text DEFAULT NULL::text) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'tidebase', 'pg_temp'
    AS $$
declare
  head run_heads;
begin
  perform tidebase_private.check_recovery_status(status);
  perform tidebase_private.commit_durably();
  head := tidebase_private.lock_head(run_id);
  update recoveries v
  set status = finish_recovery.status, http_status = finish_recovery.http_status, response = left(finish_recovery.response, 10000),
      error = finish_recovery.error, finished_at = clock_timestamp()
  where v.run_id = finish_recovery.run_id and v.recovery = finish_recovery.recovery and v.status = 'pending';
  if found then
    if head.status not in ('completed', 'cancelled') then  -- nothing follows the last event of a run
      perform tidebase_private.emit(tidebase_private.advance(run_id),
        case status when 'succeeded' then 'recovery.delivered' else 'recovery.failed' end,
        jsonb_strip_nulls(jsonb_build_object('recovery', recovery, 'http_status', http_status, 'error', error)));
    end if;
  elsif not exists (
    select from recoveries v where v.run_id = finish_recovery.run_id and v.recovery = finish_recovery.recovery)
  then
    perform tidebase_private.raise('TB012', format('run %L has no recovery %s', run_id, coalesce(recovery::text, 'NULL')),
      jsonb_build_object('run_id', run_id, 'recovery', recovery), 'Recoveries are made by record_recovery.');
  end if;
end
$$;
COMMENT ON FUNCTION tidebase.finish_recovery(run_id text, recovery integer, status text, http_status integer, response text, error text) IS 'Records how an attempt to recover ended: succeeded or failed, with what the webhook answered. The first word stands. Errors: TB001, TB002, TB012.';
CREATE FUNCTION tidebase.fork_run(run_id text, new_run_id text DEFAULT NULL::text, through_step text DEFAULT NULL::text, through_seq bigint DEFAULT NULL::bigint, input jsonb DEFAULT NULL::jsonb, reason text DEFAULT NULL::text, actor text DEFAULT NULL::text) RETURNS text
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'tidebase', 'pg_temp'
    AS $$
declare
  id text := coalesce(new_run_id, tidebase_private.new_run_id());
  origin runs;
  source run_heads;
  head run_heads;
  through bigint;
  copied bigint;
  steps integer;
begin
  perform tidebase_private.require_name(id, 'new_run_id', 255);
  perform tidebase_private.commit_durably();
  select h.* into source from run_heads h where h.run_id = fork_run.run_id for key share;
  if not found then
    perform tidebase_private.raise_run_not_found(run_id);
  elsif exists (select from runs r where r.run_id = id) then
    return tidebase_private.find_fork(run_id, id, through_step, through_seq, input);  -- the same call again
  end if;
  through := tidebase_private.fork_point(source, through_step, through_seq);
  select r.* into origin from runs r where r.run_id = fork_run.run_id;
  if origin.compacted_at is not null then
    perform tidebase_private.raise('TB005', format('run %L was compacted: it has no checkpoints any more', run_id),
      jsonb_build_object('run_id', run_id, 'compacted_at', origin.compacted_at), 'Fork runs before they are compacted.');
  end if;
  insert into runs (run_id, workflow, input, metadata, max_attempts, retry_delay, recovery_webhook)
  values (id, origin.workflow, coalesce(fork_run.input, origin.input), origin.metadata, origin.max_attempts, origin.retry_delay,
    origin.recovery_webhook)
  on conflict on constraint runs_pkey do nothing;
  if not found then
    return tidebase_private.find_fork(run_id, id, through_step, through_seq, input);  -- the same call at the same time
  end if;
  insert into run_heads (run_id, last_seq, durable_seq) values (id, 1, 1) returning * into head;
  perform tidebase_private.emit(head, 'run.forked', jsonb_strip_nulls(jsonb_build_object('source_run_id', run_id,
    'through_seq', through, 'through_step', through_step, 'workflow', origin.workflow, 'reason', reason,
    'actor', coalesce(actor, tidebase_private.caller()))));
  copied := tidebase_private.copy_events(run_id, id, through);
  steps := tidebase_private.copy_rows(run_id, id);
  update run_heads h
  set last_seq = 1 + copied, durable_seq = 1 + copied, steps_completed = steps
  where h.run_id = id;
  perform tidebase_private.copy_budget(run_id, id);
  insert into edges (run_id, name, child_run_id, edge_type, metadata)
  values (fork_run.run_id, 'fork:' || id, id, 'fork', jsonb_strip_nulls(jsonb_build_object('through_seq', through,
    'through_step', through_step, 'asked_seq', through_seq, 'reason', reason)));
  return id;
end
$$;
COMMENT ON FUNCTION tidebase.fork_run(run_id text, new_run_id text, through_step text, through_seq bigint, input jsonb, reason text, actor text) IS 'Makes a new run that begins with what another one had at a point, and returns its id, generated when new_run_id is NULL: the checkpoints, the states with their history, and the gates that were decided up to then. through_step: up to and with that step''s completion; through_seq: up to and with that event (0: nothing but the input); neither: all there is. Working on the fork executes only what comes after. Its log begins at 1 with run.forked and has the events of what it took over; usage does not come along, nor does the deadline; the limits of a budget do, with nothing used. input: another one, by default the source''s. The source is untouched, whatever its status; an edge of type fork leads to the new run. The same call with the same new_run_id finds the fork. Errors: TB001, TB002, TB005 (it was compacted), TB006 (new_run_id is another run, or a fork that was asked for otherwise), TB007 (through_step is not completed).';
CREATE TABLE tidebase.gates (
    run_id text NOT NULL,
    name text NOT NULL,
    kind text DEFAULT 'gate'::text NOT NULL,
    status text DEFAULT 'pending'::text NOT NULL,
    prompt text,
    data jsonb NOT NULL,
    shown_hash bytea NOT NULL,
    options text[] NOT NULL,
    response_schema jsonb,
    capability jsonb,
    required_approvals integer DEFAULT 1 NOT NULL,
    timeout_at timestamp with time zone,
    default_decision text,
    decision text,
    payload jsonb,
    comment text,
    actor text,
    decided_by text,
    request_id text,
    created_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    decided_at timestamp with time zone,
    CONSTRAINT gate_decider_is_known CHECK ((decided_by = ANY (ARRAY['secret'::text, 'approver'::text, 'timeout'::text]))),
    CONSTRAINT gate_has_options CHECK ((cardinality(options) >= 1)),
    CONSTRAINT gate_is_decided_whole CHECK ((((status = 'decided'::text) = (decision IS NOT NULL)) AND ((decision IS NULL) = (decided_by IS NULL)))),
    CONSTRAINT gate_kind_is_known CHECK ((kind = ANY (ARRAY['gate'::text, 'timer'::text]))),
    CONSTRAINT gate_needs_somebody CHECK ((required_approvals >= 1)),
    CONSTRAINT gate_status_is_known CHECK ((status = ANY (ARRAY['pending'::text, 'decided'::text, 'cancelled'::text])))
);
COMMENT ON TABLE tidebase.gates IS 'Questions to people (gate) and waits for a moment (timer): each gets exactly one decision, and every resume sees that one.';
COMMENT ON COLUMN tidebase.gates.shown_hash IS 'SHA-256 of the canonical prompt and data: what the decision is about.';
COMMENT ON COLUMN tidebase.gates.options IS 'The decisions that may be given.';
COMMENT ON COLUMN tidebase.gates.response_schema IS 'A JSON Schema for the payload of the answer, shown to the approver; checked by the client that reads the answer.';
COMMENT ON COLUMN tidebase.gates.capability IS 'What the approval allows, for the audit: any JSON.';
COMMENT ON COLUMN tidebase.gates.required_approvals IS 'How many different people must give the same decision.';
COMMENT ON COLUMN tidebase.gates.timeout_at IS 'When the default decision falls by itself, by the clock of the database.';
COMMENT ON COLUMN tidebase.gates.decided_by IS 'secret (the bearer of the gate''s secret), approver (a member of that role) or timeout.';
COMMENT ON COLUMN tidebase.gates.request_id IS 'The id of the decide_gate call that was accepted, so that the call can be repeated when its answer was lost.';
CREATE VIEW tidebase.gate_overview WITH (security_barrier='true') AS
 SELECT g.run_id,
    g.name,
    g.kind,
    g.status,
    g.prompt,
    g.data,
    g.options,
    g.response_schema,
    g.capability,
    g.required_approvals,
    g.timeout_at,
    g.default_decision,
    g.decision,
    g.payload,
    g.comment,
    g.actor,
    g.decided_by,
    g.created_at,
    g.decided_at
   FROM tidebase.gates g;
COMMENT ON VIEW tidebase.gate_overview IS 'One row a gate or timer: what was asked, and what was decided by whom. Without secrets: those are stored nowhere.';
CREATE FUNCTION tidebase.get_gate(run_id text, name text) RETURNS SETOF tidebase.gate_overview
    LANGUAGE plpgsql SECURITY DEFINER ROWS 1
    SET search_path TO 'pg_catalog', 'tidebase', 'pg_temp'
    AS $$
begin
  if exists (
    select from gates g
    where g.run_id = get_gate.run_id and g.name = get_gate.name and g.status = 'pending' and g.timeout_at <= clock_timestamp())
  then
    perform tidebase_private.settle_overdue(tidebase_private.lock_head(run_id));
  end if;
  return query select o.* from gate_overview o where o.run_id = get_gate.run_id and o.name = get_gate.name;
  if not found then
    perform tidebase_private.raise_gate_not_found(run_id, name);
  end if;
end
$$;
COMMENT ON FUNCTION tidebase.get_gate(run_id text, name text) IS 'The gate_overview row of a gate or timer; one whose time is over gets its default decision first. Errors: TB012.';
CREATE FUNCTION tidebase.get_gate_secret(run_id text, name text) RETURNS text
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'tidebase', 'pg_temp'
    AS $$
declare
  gate gates;
begin
  select g.* into gate from gates g
  where g.run_id = get_gate_secret.run_id and g.name = get_gate_secret.name and g.kind = 'gate';
  if not found then
    perform tidebase_private.raise_gate_not_found(run_id, name);
  end if;
  return case when gate.status = 'pending' then tidebase_private.gate_secret(run_id, name) end;
end
$$;
COMMENT ON FUNCTION tidebase.get_gate_secret(run_id text, name text) IS 'The secret that entitles its bearer to decide a gate, once more, as open_gate gave it; NULL when the gate is decided. For workers, who hand it to approvers. Errors: TB012.';
CREATE TABLE tidebase.attempts (
    run_id text NOT NULL,
    attempt integer NOT NULL,
    lease_token bigint NOT NULL,
    holder text NOT NULL,
    code_version text,
    request_id text,
    started_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    ended_at timestamp with time zone,
    outcome text,
    error jsonb,
    traceparent text,
    CONSTRAINT attempt_ends_with_an_outcome CHECK (((ended_at IS NULL) = (outcome IS NULL))),
    CONSTRAINT attempt_outcome_is_known CHECK ((outcome = ANY (ARRAY['completed'::text, 'failed'::text, 'released'::text, 'suspended'::text, 'lapsed'::text, 'cancelled'::text])))
)
WITH (autovacuum_vacuum_scale_factor='0.05', autovacuum_analyze_scale_factor='0.05');
COMMENT ON TABLE tidebase.attempts IS 'One row a lease granted: who worked on the run, with which code, from when to when, and how it ended.';
COMMENT ON COLUMN tidebase.attempts.request_id IS 'The id of the acquire_run call, so that the call can be repeated when its answer was lost.';
COMMENT ON COLUMN tidebase.attempts.outcome IS 'completed, failed, released (given up in good order), suspended (until a gate or timer is decided), lapsed (taken over after the lease ran out), cancelled; NULL while it lasts.';
COMMENT ON COLUMN tidebase.attempts.traceparent IS 'The traceparent of the attempt''s own span, if its worker traces.';
CREATE TABLE tidebase.run_heads (
    run_id text NOT NULL,
    last_seq bigint DEFAULT 0 NOT NULL,
    durable_seq bigint DEFAULT 0 NOT NULL,
    lease_token bigint DEFAULT 0 NOT NULL,
    lease_expires_at timestamp with time zone,
    watched_until timestamp with time zone,
    updated_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    attempt integer DEFAULT 0 NOT NULL,
    steps_completed integer DEFAULT 0 NOT NULL,
    status text DEFAULT 'pending'::text NOT NULL,
    holder text,
    due_at timestamp with time zone,
    deadline_at timestamp with time zone,
    available_at timestamp with time zone,
    waiting_for text,
    has_budget boolean DEFAULT false NOT NULL,
    CONSTRAINT head_counters_only_grow_from_zero CHECK (((last_seq >= durable_seq) AND (durable_seq >= 0) AND (lease_token >= 0) AND (attempt >= 0) AND (steps_completed >= 0))),
    CONSTRAINT head_lease_matches_status CHECK (((status = 'running'::text) = (lease_expires_at IS NOT NULL))),
    CONSTRAINT head_status_is_known CHECK ((status = ANY (ARRAY['pending'::text, 'queued'::text, 'running'::text, 'waiting'::text, 'review'::text, 'completed'::text, 'failed'::text, 'cancelled'::text]))),
    CONSTRAINT head_waits_for_something CHECK (((status = 'waiting'::text) = (waiting_for IS NOT NULL)))
)
WITH (fillfactor='50', autovacuum_vacuum_scale_factor='0.02', autovacuum_vacuum_threshold='1000', autovacuum_vacuum_cost_delay='0');
COMMENT ON TABLE tidebase.run_heads IS 'The hot half of a run: its lock, its lease, its event counter. Every call takes this row first. Keep it narrow: each call rewrites it.';
COMMENT ON COLUMN tidebase.run_heads.last_seq IS 'The seq of the run''s newest event: events are 1..last_seq without a gap.';
COMMENT ON COLUMN tidebase.run_heads.durable_seq IS 'The seq up to which every event is known to be on disk: that of the last call that committed synchronously. Readers see to the rest.';
COMMENT ON COLUMN tidebase.run_heads.lease_token IS 'The fencing token of the last lease granted. It only grows.';
COMMENT ON COLUMN tidebase.run_heads.lease_expires_at IS 'From when another worker may take over; set exactly while the run is running.';
COMMENT ON COLUMN tidebase.run_heads.watched_until IS 'Until when somebody follows this run: calls ring the doorbell (NOTIFY) only then.';
COMMENT ON COLUMN tidebase.run_heads.attempt IS 'How many leases were granted so far.';
COMMENT ON COLUMN tidebase.run_heads.steps_completed IS 'How many steps of the run have a checkpoint.';
COMMENT ON COLUMN tidebase.run_heads.holder IS 'Who holds or last held the lease: a name for people and logs, never a credential.';
COMMENT ON COLUMN tidebase.run_heads.due_at IS 'When reconcile() looks at the run next: the end of its lease, its deadline, the timeout of a gate or a timer, whichever is first. NULL: nothing to look for.';
COMMENT ON COLUMN tidebase.run_heads.deadline_at IS 'From when the run may not go on: it is cancelled.';
COMMENT ON COLUMN tidebase.run_heads.available_at IS 'Until when nobody may work on the run: the backoff after a failed attempt.';
COMMENT ON COLUMN tidebase.run_heads.waiting_for IS 'The gate or timer for which a waiting run was suspended.';
COMMENT ON COLUMN tidebase.run_heads.has_budget IS 'Whether the run or one above it has a budget: begin_step looks at the accounts only then.';
CREATE TABLE tidebase.runs (
    run_id text NOT NULL,
    workflow text NOT NULL,
    input jsonb,
    metadata jsonb DEFAULT '{}'::jsonb NOT NULL,
    result jsonb,
    error jsonb,
    created_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    finished_at timestamp with time zone,
    max_attempts integer,
    retry_delay interval,
    recovery_webhook text,
    cancelled_at timestamp with time zone,
    cancel_reason text,
    cancel_actor text,
    compacted_at timestamp with time zone,
    traceparent text,
    CONSTRAINT run_id_is_a_short_name CHECK (((octet_length(run_id) >= 1) AND (octet_length(run_id) <= 255))),
    CONSTRAINT run_max_attempts_is_positive CHECK ((max_attempts >= 1)),
    CONSTRAINT run_metadata_is_an_object CHECK ((jsonb_typeof(metadata) = 'object'::text))
)
WITH (autovacuum_vacuum_scale_factor='0.05', autovacuum_analyze_scale_factor='0.05', toast.autovacuum_vacuum_scale_factor='0.05');
COMMENT ON TABLE tidebase.runs IS 'The cold half of a run: what it was asked and what came of it. Its status and lease are in run_heads.';
COMMENT ON COLUMN tidebase.runs.run_id IS 'Chosen by the caller or generated: run_ and a UUIDv7. At most 255 bytes.';
COMMENT ON COLUMN tidebase.runs.input IS 'What the workflow was called with; SQL NULL when no input was stated.';
COMMENT ON COLUMN tidebase.runs.result IS 'The result given to complete_run.';
COMMENT ON COLUMN tidebase.runs.error IS 'The error of the last attempt that failed; cleared when the run completes.';
COMMENT ON COLUMN tidebase.runs.finished_at IS 'When the run completed, failed or was cancelled; NULL while it may go on by itself.';
COMMENT ON COLUMN tidebase.runs.max_attempts IS 'How many attempts at the run there are before a failure is final; NULL means 1.';
COMMENT ON COLUMN tidebase.runs.retry_delay IS 'The delay before the second attempt, doubled for each further one; NULL means 1 second.';
COMMENT ON COLUMN tidebase.runs.recovery_webhook IS 'The URL that is told when the run is to be recovered.';
COMMENT ON COLUMN tidebase.runs.cancelled_at IS 'When the run was cancelled.';
COMMENT ON COLUMN tidebase.runs.cancel_reason IS 'Why, in words.';
COMMENT ON COLUMN tidebase.runs.cancel_actor IS 'By whom, as the caller said it.';
COMMENT ON COLUMN tidebase.runs.compacted_at IS 'When compact_run took the outputs and old states away.';
COMMENT ON COLUMN tidebase.runs.traceparent IS 'The traceparent of W3C Trace Context under which the run was made, if any.';
CREATE VIEW tidebase.run_overview WITH (security_barrier='true') AS
 SELECT r.run_id,
    r.workflow,
    h.status,
    h.attempt,
    h.lease_token,
    h.holder,
    h.lease_expires_at,
    ((h.status = 'running'::text) AND (h.lease_expires_at <= clock_timestamp())) AS lease_lapsed,
    h.steps_completed,
    h.last_seq,
    a.code_version,
    r.input,
    r.metadata,
    r.result,
    r.error,
    r.created_at,
    h.updated_at,
        CASE
            WHEN (h.status = ANY (ARRAY['completed'::text, 'failed'::text, 'cancelled'::text])) THEN COALESCE(r.cancelled_at, r.finished_at)
            ELSE NULL::timestamp with time zone
        END AS finished_at,
    h.waiting_for,
    h.available_at,
    h.deadline_at,
    r.max_attempts,
    r.recovery_webhook,
    r.cancelled_at,
    r.cancel_reason,
    r.cancel_actor,
    r.compacted_at
   FROM ((tidebase.runs r
     JOIN tidebase.run_heads h ON ((h.run_id = r.run_id)))
     LEFT JOIN tidebase.attempts a ON (((a.run_id = h.run_id) AND (a.attempt = h.attempt))));
COMMENT ON VIEW tidebase.run_overview IS 'One row a run: what it was asked, how far it is, who holds it, what came of it. lease_lapsed: the holder has gone silent, and another worker may take over. code_version: of the latest attempt. waiting_for: the gate or timer for which it was suspended.';
CREATE FUNCTION tidebase.get_run(run_id text) RETURNS SETOF tidebase.run_overview
    LANGUAGE plpgsql STABLE SECURITY DEFINER ROWS 1
    SET search_path TO 'pg_catalog', 'tidebase', 'pg_temp'
    AS $$
begin
  return query select o.* from run_overview o where o.run_id = get_run.run_id;
  if not found then
    perform tidebase_private.raise_run_not_found(run_id);
  end if;
end
$$;
COMMENT ON FUNCTION tidebase.get_run(run_id text) IS 'The run_overview row of one run. Errors: TB001.';
CREATE FUNCTION tidebase.get_state(run_id text, stream text DEFAULT 'main'::text, version integer DEFAULT NULL::integer, at timestamp with time zone DEFAULT NULL::timestamp with time zone, seq bigint DEFAULT NULL::bigint, label text DEFAULT NULL::text) RETURNS tidebase.state
    LANGUAGE plpgsql STABLE SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'tidebase', 'pg_temp'
    AS $$
declare
  stored state_versions;
  chosen integer;
begin
  if num_nonnulls(version, at, seq, label) > 1 then
    perform tidebase_private.raise_invalid('version, at, seq and label', 'must not be combined: at most one of them says which version');
  end if;
  chosen := tidebase_private.find_version(run_id, stream, version, at, seq, label);
  select v.* into strict stored from state_versions v
  where v.run_id = get_state.run_id and v.stream = get_state.stream and v.version = chosen;
  return tidebase_private.full_state(stored);
end
$$;
COMMENT ON FUNCTION tidebase.get_state(run_id text, stream text, version integer, at timestamp with time zone, seq bigint, label text) IS 'The state of a stream: now, or at a version, at a time, at an event (as it was right after the event with that seq), or the newest version with a label. Errors: TB001, TB002, TB012 (no such stream or version).';
CREATE FUNCTION tidebase.list_gates(run_id text DEFAULT NULL::text, status text DEFAULT NULL::text, max integer DEFAULT 100) RETURNS SETOF tidebase.gate_overview
    LANGUAGE plpgsql STABLE SECURITY DEFINER ROWS 100
    SET search_path TO 'pg_catalog', 'tidebase', 'pg_temp'
    SET plan_cache_mode TO 'force_custom_plan'
    AS $$
begin
  if max is null or max < 1 or max > 1000 then
    perform tidebase_private.raise_invalid('max', 'must be a number from 1 to 1000');
  end if;
  return query
    select o.*
    from gate_overview o
    where (list_gates.run_id is null or o.run_id = list_gates.run_id)
      and (list_gates.status is null or o.status = list_gates.status)
      and o.kind = 'gate'
    order by o.created_at, o.run_id
    limit list_gates.max;
end
$$;
COMMENT ON FUNCTION tidebase.list_gates(run_id text, status text, max integer) IS 'Gates, oldest first: of a run, in a status (pending, decided, cancelled), at most max (1 to 1000). NULL means any. Errors: TB002.';
CREATE FUNCTION tidebase.list_runs(workflow text DEFAULT NULL::text, status text DEFAULT NULL::text, before text DEFAULT NULL::text, max integer DEFAULT 100, created_after timestamp with time zone DEFAULT NULL::timestamp with time zone, created_before timestamp with time zone DEFAULT NULL::timestamp with time zone) RETURNS SETOF tidebase.run_overview
    LANGUAGE plpgsql STABLE SECURITY DEFINER ROWS 100
    SET search_path TO 'pg_catalog', 'tidebase', 'pg_temp'
    SET plan_cache_mode TO 'force_custom_plan'
    AS $$
begin
  if max is null or max < 1 or max > 1000 then
    perform tidebase_private.raise_invalid('max', 'must be a number from 1 to 1000');
  end if;
  if before is not null and not exists (select from runs r where r.run_id = list_runs.before) then
    perform tidebase_private.raise_run_not_found(list_runs.before);
  end if;
  return query
    select o.*
    from run_overview o
    where (list_runs.workflow is null or o.workflow = list_runs.workflow)
      and (list_runs.status is null or o.status = list_runs.status)
      and (list_runs.before is null
        or (o.created_at, o.run_id) < (select r.created_at, r.run_id from runs r where r.run_id = list_runs.before))
      and (created_after is null or o.created_at > created_after)
      and (created_before is null or o.created_at < created_before)
    order by o.created_at desc, o.run_id desc
    limit list_runs.max;
end
$$;
COMMENT ON FUNCTION tidebase.list_runs(workflow text, status text, before text, max integer, created_after timestamp with time zone, created_before timestamp with time zone) IS 'Runs, newest first: of a workflow, in a status, older than the run `before` (to page on: the last row''s run_id), created after and before these times, at most max (1 to 1000). NULL means any. Errors: TB001, TB002.';
CREATE FUNCTION tidebase.list_snapshots(run_id text, target_type text DEFAULT NULL::text, target_id text DEFAULT NULL::text, label text DEFAULT NULL::text, max integer DEFAULT 100, with_value boolean DEFAULT true) RETURNS SETOF tidebase.snapshot
    LANGUAGE plpgsql STABLE SECURITY DEFINER ROWS 100
    SET search_path TO 'pg_catalog', 'tidebase', 'pg_temp'
    SET plan_cache_mode TO 'force_custom_plan'
    AS $$
begin
  if max is null or max not between 1 and 10000 then
    perform tidebase_private.raise_invalid('max', 'must be a number from 1 to 10000');
  end if;
  return query
    select s.type, s.id, (s.full).stream, (s.full).version, (s.full).label, (s.full).value, (s.full).reason,
      (s.full).created_by, (s.full).metadata, (s.full).seq, (s.full).created_at
    from (
      select coalesce(t.target_type, 'state') as type, coalesce(t.target_id, t.stream) as id,
        tidebase_private.full_state(v, with_value) as full
      from state_streams t
      join state_versions v on v.run_id = t.run_id and v.stream = t.stream and v.label is not null
      where t.run_id = list_snapshots.run_id
        and (list_snapshots.target_type is null or coalesce(t.target_type, 'state') = list_snapshots.target_type)
        and (list_snapshots.target_id is null or coalesce(t.target_id, t.stream) = list_snapshots.target_id)
        and (list_snapshots.label is null or v.label = list_snapshots.label)
      order by v.seq desc
      limit list_snapshots.max
      offset 0) s;
  if not found and not exists (select from run_heads h where h.run_id = list_snapshots.run_id) then
    perform tidebase_private.raise_run_not_found(run_id);
  end if;
end
$$;
COMMENT ON FUNCTION tidebase.list_snapshots(run_id text, target_type text, target_id text, label text, max integer, with_value boolean) IS 'The labeled versions of a run, newest first, at most max (1 to 10000): snapshots, and states that save_state labeled (target_type state, target_id the stream). NULL means any. with_value: false leaves the documents out. Errors: TB001, TB002.';
CREATE FUNCTION tidebase.list_state_versions(run_id text, stream text DEFAULT NULL::text, labeled boolean DEFAULT false, before integer DEFAULT NULL::integer, max integer DEFAULT 100, with_value boolean DEFAULT false) RETURNS SETOF tidebase.state
    LANGUAGE plpgsql STABLE SECURITY DEFINER ROWS 100
    SET search_path TO 'pg_catalog', 'tidebase', 'pg_temp'
    SET plan_cache_mode TO 'force_custom_plan'
    AS $$
begin
  if max is null or max not between 1 and 10000 then
    perform tidebase_private.raise_invalid('max', 'must be a number from 1 to 10000');
  elsif before is not null and stream is null then
    perform tidebase_private.raise_invalid('before', 'needs a stream');
  end if;
  return query
    select (v.full).* from state_streams t, lateral (
      select tidebase_private.full_state(n, with_value) as full
      from state_versions n
      where n.run_id = t.run_id and n.stream = t.stream and (not labeled or n.label is not null)
        and (list_state_versions.before is null or n.version < list_state_versions.before)
      order by n.version desc
      limit list_state_versions.max) v
    where t.run_id = list_state_versions.run_id
      and (list_state_versions.stream is null or t.stream = list_state_versions.stream)
    order by (v.full).seq desc
    limit list_state_versions.max;
  if not found and not exists (select from run_heads h where h.run_id = list_state_versions.run_id) then
    perform tidebase_private.raise_run_not_found(run_id);
  end if;
end
$$;
COMMENT ON FUNCTION tidebase.list_state_versions(run_id text, stream text, labeled boolean, before integer, max integer, with_value boolean) IS 'The versions of a run''s streams, or of one, newest first, at most max (1 to 10000); page on with before, the last version seen. labeled: only those with a label. The documents come along only with with_value: value is NULL otherwise. Errors: TB001, TB002.';
CREATE FUNCTION tidebase.load_checkpoints(run_id text) RETURNS SETOF tidebase.checkpoint
    LANGUAGE plpgsql STABLE SECURITY DEFINER ROWS 100
    SET search_path TO 'pg_catalog', 'tidebase', 'pg_temp'
    AS $$
begin
  return query
    select s.name, s.input_hash, s.output
    from steps s
    where s.run_id = load_checkpoints.run_id and s.status = 'completed';
  if not found and not exists (select from run_heads h where h.run_id = load_checkpoints.run_id) then
    perform tidebase_private.raise_run_not_found(run_id);
  end if;
end
$$;
COMMENT ON FUNCTION tidebase.load_checkpoints(run_id text) IS 'Every completed step of the run, in no particular order: name, SHA-256 of the canonical input, output. One call replays a whole run. Errors: TB001.';
CREATE FUNCTION tidebase.open_gate(run_id text, token bigint, name text, prompt text DEFAULT NULL::text, data jsonb DEFAULT NULL::jsonb, options text[] DEFAULT NULL::text[], timeout interval DEFAULT NULL::interval, capability jsonb DEFAULT NULL::jsonb, default_decision text DEFAULT NULL::text, response_schema jsonb DEFAULT NULL::jsonb, required_approvals integer DEFAULT 1) RETURNS tidebase.gate_opening
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'tidebase', 'pg_temp'
    AS $$
declare
  wanted gates;
begin
  perform tidebase_private.require_name(name, 'name', 1024);
  wanted.options := coalesce(options, array['approved', 'rejected']);
  if array_ndims(wanted.options) > 1 then
    perform tidebase_private.raise_invalid('options', 'must be a list, not a list of lists');
  elsif cardinality(wanted.options) = 0 or array_position(wanted.options, null) is not null or '' = any (wanted.options) then
    perform tidebase_private.raise_invalid('options', 'must be a list of texts that are not empty');
  elsif required_approvals is null or required_approvals not between 1 and 100 then
    perform tidebase_private.raise_invalid('required_approvals', 'must be a number from 1 to 100');
  elsif jsonb_typeof(response_schema) not in ('object', 'boolean') then
    perform tidebase_private.raise_invalid('response_schema', 'must be a JSON Schema: an object or a boolean');
  elsif default_decision is not null and timeout is null then
    perform tidebase_private.raise_invalid('default_decision', 'needs a timeout after which it falls');
  elsif default_decision = '' then
    perform tidebase_private.raise_invalid('default_decision', 'must not be empty');
  end if;
  perform tidebase_private.require_interval(coalesce(timeout, '1 day'), 'timeout', '1 millisecond', '3650 days');
  wanted.run_id := open_gate.run_id;
  wanted.name := open_gate.name;
  wanted.kind := 'gate';
  wanted.status := 'pending';
  wanted.prompt := open_gate.prompt;
  wanted.data := coalesce(open_gate.data, '{}');
  wanted.shown_hash := tidebase_private.hash_input(jsonb_build_array(wanted.prompt, wanted.data));
  wanted.response_schema := open_gate.response_schema;
  wanted.capability := open_gate.capability;
  wanted.required_approvals := open_gate.required_approvals;
  wanted.created_at := clock_timestamp();
  wanted.timeout_at := wanted.created_at + timeout;
  wanted.default_decision := case when timeout is not null then coalesce(open_gate.default_decision, 'timed_out') end;
  return tidebase_private.open(wanted, token);
end
$$;
COMMENT ON FUNCTION tidebase.open_gate(run_id text, token bigint, name text, prompt text, data jsonb, options text[], timeout interval, capability jsonb, default_decision text, response_schema jsonb, required_approvals integer) IS 'Asks a question that gets exactly one decision; opened again it returns what stands. name: 1 to 1024 bytes, unique in the run. prompt and data: what is shown; with others TB006. options: the decisions that may be given, by default approved and rejected. timeout: after which default_decision falls by itself (timed_out unless told). response_schema: a JSON Schema for the payload of the answer. required_approvals: how many different people must agree (1 to 100); one "rejected" settles it at once. capability: what is granted, for the audit. secret: entitles its bearer to decide: hand it to the approver, keep it out of logs. Errors: TB001, TB002, TB003, TB004, TB005, TB006.';
CREATE FUNCTION tidebase.patch_state(run_id text, token bigint, patch jsonb, stream text DEFAULT 'main'::text, label text DEFAULT NULL::text, reason text DEFAULT NULL::text, importance text DEFAULT 'normal'::text, metadata jsonb DEFAULT NULL::jsonb, created_by text DEFAULT NULL::text, expected_version integer DEFAULT NULL::integer, request_id text DEFAULT NULL::text) RETURNS integer
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'tidebase', 'pg_temp'
    AS $$
begin
  perform tidebase_private.require_state_options(stream, label, importance, metadata, request_id);
  if patch is null then
    perform tidebase_private.raise_invalid('patch', 'must not be NULL (the JSON null is a patch that makes the state null)');
  end if;
  return tidebase_private.write_state(
    tidebase_private.describe_version(run_id, stream, 'patch', importance, label, reason, metadata, created_by),
    token, patch, expected_version, request_id => request_id);
end
$$;
COMMENT ON FUNCTION tidebase.patch_state(run_id text, token bigint, patch jsonb, stream text, label text, reason text, importance text, metadata jsonb, created_by text, expected_version integer, request_id text) IS 'Applies a merge patch (RFC 7396: members are set, null removes one, arrays are replaced) to the newest version of a stream, or to nothing, and returns the number of the version that comes of it. Only what changed is stored, for an array or a string that grew only what was added. The rest is as for set_state. Errors: TB001, TB002, TB003, TB004, TB005, TB011.';
CREATE FUNCTION tidebase.purge_runs(older_than interval, statuses text[] DEFAULT ARRAY['completed'::text, 'failed'::text, 'cancelled'::text], max integer DEFAULT 1000) RETURNS integer
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'tidebase', 'pg_temp'
    AS $$
declare
  before timestamptz;
  chosen text[];
  purged integer := 0;
begin
  perform tidebase_private.require_interval(older_than, 'older_than', '0', '1000 years');
  if max is null or max not between 1 and 10000 then
    perform tidebase_private.raise_invalid('max', 'must be a number from 1 to 10000');
  elsif statuses is null or array_ndims(statuses) is distinct from 1
    or array_position(statuses, null) is not null or not statuses <@ array['completed', 'failed', 'cancelled']
  then
    perform tidebase_private.raise_invalid('statuses', 'must be some of completed, failed and cancelled: a run that is alive is never purged');
  end if;
  before := clock_timestamp() - older_than;
  loop
    chosen := tidebase_private.choose_dead(before, statuses, max - purged);
    exit when chosen is null;
    perform tidebase_private.forget(chosen);
    purged := purged + cardinality(chosen);
    exit when purged >= max;
  end loop;
  return purged;
end
$$;
COMMENT ON FUNCTION tidebase.purge_runs(older_than interval, statuses text[], max integer) IS 'Deletes runs that have been over for longer than older_than, with everything that hangs on them, oldest first, at most max (1 to 10000); returns how many. Call it again while it returns max. statuses: some of completed, failed, cancelled. A run is kept while it is alive, while a child of it is, and while its parent is; a failed one counts as alive there, since it may be resumed, until it could be purged itself. Errors: TB002.';
CREATE FUNCTION tidebase.read_events(run_id text, after bigint DEFAULT 0, max integer DEFAULT 1000) RETURNS SETOF tidebase.event
    LANGUAGE plpgsql SECURITY DEFINER ROWS 100
    SET search_path TO 'pg_catalog', 'tidebase', 'pg_temp'
    AS $$
declare
  entry event;
begin
  if max is null or max < 1 or max > 10000 then
    perform tidebase_private.raise_invalid('max', 'must be a number from 1 to 10000');
  end if;
  for entry in
    select e.seq, e.type, e.payload, e.created_at
    from events e
    where e.run_id = read_events.run_id and e.seq > coalesce(read_events.after, 0)
    order by e.seq
    limit read_events.max
  loop
    return next entry;
  end loop;
  if entry.seq is not null then
    perform tidebase_private.flush_what_was_read(run_id, entry.seq);
  elsif not exists (select from run_heads h where h.run_id = read_events.run_id) then
    perform tidebase_private.raise_run_not_found(run_id);
  end if;
end
$$;
COMMENT ON FUNCTION tidebase.read_events(run_id text, after bigint, max integer) IS 'The events with seq > after, in order, at most max of them (1 to 10000). To follow a run, call it again with the last seq seen: no event at or below that number can appear later, not even after a crash of the server, since the call waits until what it returns is on disk. Errors: TB001, TB002.';
CREATE FUNCTION tidebase.reconcile(max integer DEFAULT 100) RETURNS tidebase.reconciliation
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'tidebase', 'pg_temp'
    AS $$
declare
  head run_heads;
  counts reconciliation := row(0, 0, 0, 0, 0);
  as_of timestamptz := clock_timestamp();  -- a volatile function in the condition would rule out the index
begin
  if max is null or max not between 1 and 10000 then
    perform tidebase_private.raise_invalid('max', 'must be a number from 1 to 10000');
  end if;
  for head in
    select h.* from run_heads h
    where h.due_at <= as_of
    order by h.due_at
    limit reconcile.max
    for no key update skip locked
  loop
    counts := tidebase_private.look_at(head, counts);
  end loop;
  return counts;
end
$$;
COMMENT ON FUNCTION tidebase.reconcile(max integer) IS 'Looks at the runs that are due, at most max (1 to 10000) of them: leases that have run out (the run is pending again), gates whose time is over (the default decision falls), timers, deadlines (the run is cancelled). Any number of callers at once; call it again while it returns runs = max. What it costs depends on what is due, not on how many runs there are. Errors: TB002.';
CREATE FUNCTION tidebase.record_recovery(run_id text, reason text DEFAULT 'manual'::text, actor text DEFAULT NULL::text) RETURNS integer
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'tidebase', 'pg_temp'
    AS $$
declare
  head run_heads;
  run runs;
  number integer;
begin
  perform tidebase_private.require_name(reason, 'reason', 4096);
  perform tidebase_private.commit_durably();
  head := tidebase_private.lock_head(run_id);
  if head.status in ('completed', 'cancelled') then
    perform tidebase_private.raise_fenced(run_id, head.lease_token);
  end if;
  select r.* into run from runs r where r.run_id = record_recovery.run_id;
  select coalesce(max(v.recovery), 0) + 1 into number from recoveries v where v.run_id = record_recovery.run_id;
  insert into recoveries (run_id, recovery, reason, actor, found_status)
  values (head.run_id, number, record_recovery.reason, coalesce(record_recovery.actor, tidebase_private.caller()), head.status);
  if run.recovery_webhook is not null then
    insert into deliveries (run_id, delivery, recovery, url, body)
    select head.run_id, coalesce(max(d.delivery), 0) + 1, number, run.recovery_webhook,
      jsonb_build_object('type', 'run.recovery', 'runId', head.run_id, 'workflowName', run.workflow,
        'status', head.status, 'reason', record_recovery.reason, 'recovery', number)
    from deliveries d where d.run_id = head.run_id;
  end if;
  perform tidebase_private.emit(tidebase_private.advance(run_id), 'recovery.started', jsonb_build_object('recovery', number,
    'reason', reason, 'actor', coalesce(actor, tidebase_private.caller()), 'found_status', head.status));
  return number;
end
$$;
COMMENT ON FUNCTION tidebase.record_recovery(run_id text, reason text, actor text) IS 'Records an attempt to get a run going again and returns its number; where the run has a recovery_webhook, it is told. actor: the database role unless told. Errors: TB001, TB002, TB004, TB005.';
CREATE FUNCTION tidebase.record_step(run_id text, token bigint, name text, input jsonb DEFAULT NULL::jsonb, output jsonb DEFAULT NULL::jsonb, duration interval DEFAULT NULL::interval) RETURNS tidebase.step_start
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'tidebase', 'pg_temp'
    AS $$
declare
  head run_heads;
  hash bytea := tidebase_private.hash_input(input);
  nth integer;
begin
  perform tidebase_private.require_name(name, 'name', 1024);
  perform tidebase_private.require_interval(coalesce(duration, '0'), 'duration', '0', '365 days');
  perform tidebase_private.commit_durably();
  head := tidebase_private.fence(run_id, token, 1, checkpoints => 1);
  perform tidebase_private.require_time_left(head);
  insert into steps as s (run_id, name, lease_token, attempt, tries, status, input_hash, input, started_at, output,
    completed_at, completed_seq)
  values (head.run_id, record_step.name, head.lease_token, 1, 1, 'completed', hash, record_step.input,
    clock_timestamp() - coalesce(duration, '0'), coalesce(record_step.output, 'null'), clock_timestamp(), head.last_seq)
  on conflict on constraint steps_pkey do update
  set (lease_token, started_at, status, output, completed_at, completed_seq, request_id)
    = (excluded.lease_token, excluded.started_at, 'completed', excluded.output, excluded.completed_at,
       excluded.completed_seq, null),
    attempt = s.attempt + 1, error = null, decision = null, retry_at = null
  where s.input_hash = excluded.input_hash and tidebase_private.may_begin_again(s, excluded.lease_token)
  returning s.attempt into nth;
  if not found then
    perform tidebase_private.give_back(head, 0, checkpoints => 1);
    return tidebase_private.begun_already(head, name, hash, null);
  elsif head.has_budget then
    perform tidebase_private.require_funds(head);
  end if;
  perform tidebase_private.emit(head, 'step.completed', jsonb_build_object('name', name, 'attempt', nth));
  return row('recorded', nth, null)::step_start;
end
$$;
COMMENT ON FUNCTION tidebase.record_step(run_id text, token bigint, name text, input jsonb, output jsonb, duration interval) IS 'Stores the output of a step that was not begun: instead of begin_step and complete_step, for work that does nothing to the outside and may be done again. outcome: recorded; replay (it was completed before: output is the checkpoint that stands, and this one is dropped); review (it was begun before, and may have taken effect). duration: how long it took. Commits synchronously: once it has returned, the step never runs again. The same call again says replay, with the same output. Errors: TB001, TB002, TB003, TB004, TB005, TB006, TB007 (it failed for good, or was begun under this lease), TB010 (a budget is used up: nothing is stored).';
CREATE FUNCTION tidebase.record_usage(run_id text, token bigint, step text DEFAULT NULL::text, kind text DEFAULT 'chat'::text, provider text DEFAULT NULL::text, model text DEFAULT NULL::text, input_tokens bigint DEFAULT NULL::bigint, output_tokens bigint DEFAULT NULL::bigint, cost_usd numeric DEFAULT NULL::numeric, quantity numeric DEFAULT NULL::numeric, unit text DEFAULT NULL::text, response_id text DEFAULT NULL::text, cache_read_tokens bigint DEFAULT NULL::bigint, cache_write_tokens bigint DEFAULT NULL::bigint, reasoning_tokens bigint DEFAULT NULL::bigint, cost numeric DEFAULT NULL::numeric, currency text DEFAULT 'USD'::text, label text DEFAULT NULL::text, metadata jsonb DEFAULT NULL::jsonb, request_id text DEFAULT NULL::text) RETURNS tidebase.usage_total
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'tidebase', 'pg_temp'
    AS $$
declare
  head run_heads;
  wanted usage;
  counted bigint;
  used_up boolean;
begin
  if cost_usd is not null and (cost is not null or currency <> 'USD') then
    perform tidebase_private.raise_invalid('cost_usd', 'must stand alone, without cost and another currency');
  end if;
  wanted := row(run_id, 0::bigint, clock_timestamp(), input_tokens, cache_read_tokens, cache_write_tokens, output_tokens, reasoning_tokens, kind, step,
    provider, model, response_id, coalesce(cost, cost_usd), coalesce(currency, 'USD'), quantity, unit, label, metadata);
  perform tidebase_private.require_usage(wanted, request_id);
  perform tidebase_private.commit_durably();
  head := tidebase_private.fence(run_id, token, 1);
  wanted.seq := head.last_seq;
  wanted.created_at := clock_timestamp();
  if request_id is not null then
    counted := (tidebase_private.find_request(run_id, request_id, array['usage.recorded'])).seq;
  end if;
  if counted is null then
    insert into usage select (wanted).* on conflict do nothing;
    if not found then
      counted := (select u.seq from usage u where u.run_id = head.run_id and u.response_id = record_usage.response_id);
    end if;
  end if;
  if counted is not null then
    perform tidebase_private.give_back(head, 1);
    return tidebase_private.account_of(head, false, counted);  -- that response, or that call, was counted before
  end if;
  used_up := tidebase_private.charge(head, wanted);
  perform tidebase_private.emit(head, 'usage.recorded', tidebase_private.without_nulls(
    to_jsonb(wanted) - array['run_id', 'seq', 'created_at']), request_id);
  if used_up then
    perform tidebase_private.emit(tidebase_private.advance(run_id), 'budget.exhausted', jsonb_build_object('seq', head.last_seq));
  end if;
  return tidebase_private.account_of(head, true, head.last_seq);
end
$$;
COMMENT ON FUNCTION tidebase.record_usage(run_id text, token bigint, step text, kind text, provider text, model text, input_tokens bigint, output_tokens bigint, cost_usd numeric, quantity numeric, unit text, response_id text, cache_read_tokens bigint, cache_write_tokens bigint, reasoning_tokens bigint, cost numeric, currency text, label text, metadata jsonb, request_id text) IS 'Records what a call to a model, or to anything else that is paid for, used, and returns the run''s totals so far. kind: gen_ai.operation.name of OpenTelemetry: chat, embeddings, execute_tool ... step: the step it belongs to. input_tokens: all of them, those read from and written to the cache included; output_tokens: all, those for reasoning included. cost_usd, or cost and currency (ISO 4217): exact; left out when nobody knows the price, never 0 for that. quantity and unit: what is not counted in tokens. response_id: the provider''s id of the response: it is counted once in a run, however often it is recorded. request_id: an id made up for this call, for the same purpose. A budget counts input and output tokens, and costs in USD; once it is used up the next begin_step raises TB010. Errors: TB001, TB002, TB003, TB004, TB005.';
CREATE FUNCTION tidebase.recover_run(run_id text, reason text DEFAULT 'manual'::text, actor text DEFAULT NULL::text) RETURNS integer
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'tidebase', 'pg_temp'
    AS $$
declare
  head run_heads;
  number integer;
begin
  head := tidebase_private.lock_head(run_id);
  if tidebase_private.is_live(head) then
    perform tidebase_private.raise('TB002', format('run %L needs no recovery: %s holds it', run_id, head.holder),
      jsonb_build_object('run_id', run_id, 'holder', head.holder, 'expires_at', head.lease_expires_at),
      'Wait for the lease to run out, or cancel the run.');
  end if;
  number := record_recovery(run_id, reason, actor);
  if head.status = 'running' then
    perform tidebase_private.lapse(head);
  elsif head.status in ('failed', 'pending') then
    update run_heads h set status = 'pending', available_at = null where h.run_id = recover_run.run_id;
  end if;
  if not exists (select from runs r where r.run_id = recover_run.run_id and r.recovery_webhook is not null) then
    perform finish_recovery(run_id, number, 'succeeded');
  end if;
  return number;
end
$$;
COMMENT ON FUNCTION tidebase.recover_run(run_id text, reason text, actor text) IS 'Makes a run that was left by its worker or has failed acquirable at once, records the attempt, and tells the recovery webhook where there is one. Returns the number of the recovery. A run in review or waiting stays so. Errors: TB001, TB002 (a worker holds it), TB004, TB005.';
CREATE FUNCTION tidebase.release_run(run_id text, token bigint) RETURNS bigint
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'tidebase', 'pg_temp'
    AS $$
declare
  head run_heads;
begin
  perform tidebase_private.commit_durably();
  select h.* into head from run_heads h where h.run_id = release_run.run_id for no key update;
  if head.status = 'pending' and head.lease_token = token then
    return tidebase_private.last_of_type(run_id, 'run.released');  -- the same call again
  end if;
  head := tidebase_private.fence(run_id, token, 1);
  perform tidebase_private.end_attempt(head, 'released');
  perform tidebase_private.emit(head, 'run.released', jsonb_build_object('attempt', head.attempt, 'token', token));
  update run_heads h set status = 'pending', lease_expires_at = null where h.run_id = release_run.run_id;
  return head.last_seq;
end
$$;
COMMENT ON FUNCTION tidebase.release_run(run_id text, token bigint) IS 'Gives the lease up at once, so that another worker can go on without waiting for it to run out (graceful shutdown). The run is pending again. Returns the event''s seq. Errors: TB001, TB003, TB004, TB005.';
CREATE FUNCTION tidebase.renew_lease(run_id text, token bigint, ttl interval DEFAULT '00:01:00'::interval) RETURNS timestamp with time zone
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'tidebase', 'pg_temp'
    AS $$
declare
  renewed_until timestamptz;
begin
  perform tidebase_private.require_interval(ttl, 'ttl', '1 millisecond', '1 day');
  perform tidebase_private.commit_lazily();
  update run_heads h
  set lease_expires_at = clock_timestamp() + ttl
  where h.run_id = renew_lease.run_id and h.lease_token = renew_lease.token and h.status = 'running'
  returning h.lease_expires_at into renewed_until;
  if not found then
    perform tidebase_private.raise_fenced(run_id, token);
  end if;
  return renewed_until;
end
$$;
COMMENT ON FUNCTION tidebase.renew_lease(run_id text, token bigint, ttl interval) IS 'Extends the lease to ttl from now (1 millisecond to 1 day) and returns when it ends. Also revives a lease that has run out, as long as nobody has taken over. Commits asynchronously: a heartbeat lost with a crashed server only lets the lease end sooner. Errors: TB001, TB002, TB003, TB004, TB005.';
CREATE FUNCTION tidebase.resolve_review(run_id text, step text, decision text, output jsonb DEFAULT NULL::jsonb, actor text DEFAULT NULL::text, reason text DEFAULT NULL::text) RETURNS bigint
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'tidebase', 'pg_temp'
    AS $$
declare
  head run_heads;
  reviewed steps;
  hopeless boolean;
  who text := coalesce(actor, tidebase_private.caller());
begin
  if decision is null or decision not in ('retry', 'accept', 'fail') then
    perform tidebase_private.raise_invalid('decision', 'must be retry, accept or fail');
  end if;
  perform tidebase_private.commit_durably();
  head := tidebase_private.lock_head(run_id);
  if head.status in ('cancelled', 'completed') then
    perform tidebase_private.raise_fenced(run_id, head.lease_token);
  end if;
  select s.* into reviewed from steps s
  where s.run_id = resolve_review.run_id and s.name = resolve_review.step and s.status = 'review';
  if not found then
    perform tidebase_private.raise('TB008', format('step %L of run %L is not in review', step, run_id),
      jsonb_build_object('run_id', run_id, 'step', step), 'It was decided already, or never asked; see read_events.');
  end if;
  head := tidebase_private.advance(run_id);
  perform tidebase_private.emit(head, 'step.reviewed', jsonb_build_object('name', step, 'attempt', reviewed.attempt,
    'decision', decision, 'actor', who, 'reason', reason));
  update reviews v
  set resolved_at = clock_timestamp(), decision = resolve_review.decision, actor = who, reason = resolve_review.reason
  where v.run_id = resolve_review.run_id and v.step = resolve_review.step and v.attempt = reviewed.attempt;
  if decision = 'accept' then
    perform tidebase_private.accept_step(reviewed, output);
  else
    update steps s
    set status = 'failed', decision = case resolve_review.decision when 'retry' then 'safe_replay' else 'fail_hard' end
    where s.run_id = resolve_review.run_id and s.name = resolve_review.step;
  end if;
  if head.status = 'review' and not exists (
    select from steps s where s.run_id = resolve_review.run_id and s.status = 'review')
  then
    -- A step that failed for good fails the run, whichever of several reviews was decided last.
    hopeless := exists (
      select from steps s where s.run_id = resolve_review.run_id and s.status = 'failed' and s.decision = 'fail_hard');
    update run_heads h set status = case when hopeless then 'failed' else 'pending' end
    where h.run_id = resolve_review.run_id;
    update runs r set finished_at = clock_timestamp() where r.run_id = resolve_review.run_id and hopeless;
  end if;
  return head.last_seq;
end
$$;
COMMENT ON FUNCTION tidebase.resolve_review(run_id text, step text, decision text, output jsonb, actor text, reason text) IS 'Decides about a step in review, once: retry (it is executed again when the run is resumed), accept (it did take effect: output is what really came of it, and becomes its checkpoint), fail (it is never executed again in this run, and the run fails). The run may be acquired again, unless it failed. actor: who decides, by default the database role; kept with the reason in the log. Returns the seq of the event. Errors: TB001, TB002, TB004, TB005, TB008.';
CREATE FUNCTION tidebase.restore_state(run_id text, token bigint, version integer DEFAULT NULL::integer, label text DEFAULT NULL::text, stream text DEFAULT 'main'::text, reason text DEFAULT NULL::text, importance text DEFAULT 'checkpoint'::text, metadata jsonb DEFAULT NULL::jsonb, created_by text DEFAULT NULL::text, expected_version integer DEFAULT NULL::integer, request_id text DEFAULT NULL::text) RETURNS integer
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'tidebase', 'pg_temp'
    AS $$
begin
  perform tidebase_private.require_state_options(stream, label, importance, metadata, request_id);
  return tidebase_private.write_state(
    tidebase_private.describe_version(run_id, stream, 'restore', importance, null, reason, metadata, created_by),
    token, null, expected_version, request_id, source_version => version, source_label => label);
end
$$;
COMMENT ON FUNCTION tidebase.restore_state(run_id text, token bigint, version integer, label text, stream text, reason text, importance text, metadata jsonb, created_by text, expected_version integer, request_id text) IS 'Makes the document of an earlier version, named by its number or by its label (the newest that has it), the next version, and returns its number: history stays. Errors: TB001, TB002, TB003, TB004, TB005, TB011, TB012.';
CREATE FUNCTION tidebase.run_tree(run_id text) RETURNS SETOF tidebase.tree_node
    LANGUAGE plpgsql STABLE SECURITY DEFINER ROWS 100
    SET search_path TO 'pg_catalog', 'tidebase', 'pg_temp'
    AS $$
begin
  return query
    with recursive tree as (
      select h.run_id as id, null::text as parent, null::text as edge, null::text as type, 0 as depth, null::timestamptz as made
      from run_heads h
      where h.run_id = run_tree.run_id
      union all
      select e.child_run_id, e.run_id, e.name, e.edge_type, t.depth + 1, e.created_at
      from tree t join edges e on e.run_id = t.id
    ) search depth first by made, edge set place
    select t.id, t.parent, t.edge, t.type, t.depth, r.workflow, h.status, h.steps_completed, r.created_at,
      case when h.status in ('completed', 'failed', 'cancelled') then r.finished_at end
    from tree t
    join run_heads h on h.run_id = t.id
    join runs r on r.run_id = t.id
    order by t.place;
  if not found then
    perform tidebase_private.raise_run_not_found(run_id);
  end if;
end
$$;
COMMENT ON FUNCTION tidebase.run_tree(run_id text) IS 'The run with everything below it, to any depth: children and (edge_type fork) forks, each behind its parent. Errors: TB001.';
CREATE FUNCTION tidebase.save_state(run_id text, token bigint, label text, stream text DEFAULT 'main'::text, reason text DEFAULT NULL::text, importance text DEFAULT 'checkpoint'::text, metadata jsonb DEFAULT NULL::jsonb, created_by text DEFAULT NULL::text, expected_version integer DEFAULT NULL::integer, request_id text DEFAULT NULL::text) RETURNS integer
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'tidebase', 'pg_temp'
    AS $$
begin
  perform tidebase_private.require_name(label, 'label', 1024);
  perform tidebase_private.require_state_options(stream, label, importance, metadata, request_id);
  return tidebase_private.write_state(
    tidebase_private.describe_version(run_id, stream, 'save', importance, label, reason, metadata, created_by),
    token, null, expected_version, request_id => request_id);
end
$$;
COMMENT ON FUNCTION tidebase.save_state(run_id text, token bigint, label text, stream text, reason text, importance text, metadata jsonb, created_by text, expected_version integer, request_id text) IS 'Gives the state of a stream, as it is now, a label: a new version with the same document. Returns its number. Errors: TB001, TB002, TB003, TB004, TB005, TB011, TB012 (the stream has no state).';
CREATE FUNCTION tidebase.set_budget(run_id text, cost_usd numeric DEFAULT NULL::numeric, tokens bigint DEFAULT NULL::bigint, actor text DEFAULT NULL::text, reason text DEFAULT NULL::text) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'tidebase', 'pg_temp'
    AS $$
declare
  head run_heads;
begin
  if cost_usd < 0 or cost_usd > 1e12 or tokens < 0 then  -- also NaN and Infinity
    perform tidebase_private.raise_invalid('cost_usd and tokens', 'must be numbers from 0 on');
  end if;
  perform tidebase_private.commit_durably();
  head := tidebase_private.lock_head(run_id);
  if head.status in ('cancelled', 'completed') then
    perform tidebase_private.raise_fenced(run_id, head.lease_token);
  end if;
  if not head.has_budget then
    perform tidebase_private.share_budget(run_id);
  end if;
  update accounts a set cost_limit_usd = set_budget.cost_usd, token_limit = set_budget.tokens where a.run_id = set_budget.run_id;
  perform tidebase_private.emit(tidebase_private.advance(run_id), 'budget.changed', jsonb_build_object('cost_usd', cost_usd,
    'tokens', tokens, 'actor', coalesce(actor, tidebase_private.caller()), 'reason', reason));
end
$$;
COMMENT ON FUNCTION tidebase.set_budget(run_id text, cost_usd numeric, tokens bigint, actor text, reason text) IS 'Says what a run and its descendants may use together, from now on: cost in USD, and input and output tokens; NULL is no limit. What they used before counts. When it is used up (the total has reached it) the next begin_step of any of them raises TB010; raise it, and the run goes on. A child may have a smaller budget of its own. actor: the database role unless told. Errors: TB001, TB002, TB004, TB005.';
CREATE FUNCTION tidebase.set_state(run_id text, token bigint, value jsonb, stream text DEFAULT 'main'::text, label text DEFAULT NULL::text, reason text DEFAULT NULL::text, importance text DEFAULT 'normal'::text, metadata jsonb DEFAULT NULL::jsonb, created_by text DEFAULT NULL::text, expected_version integer DEFAULT NULL::integer, request_id text DEFAULT NULL::text) RETURNS integer
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'tidebase', 'pg_temp'
    AS $$
begin
  perform tidebase_private.require_state_options(stream, label, importance, metadata, request_id);
  if value is null then
    perform tidebase_private.raise_invalid('value', 'must not be NULL (the JSON null is a value)');
  end if;
  return tidebase_private.write_state(
    tidebase_private.describe_version(run_id, stream, 'set', importance, label, reason, metadata, created_by),
    token, value, expected_version, request_id => request_id);
end
$$;
COMMENT ON FUNCTION tidebase.set_state(run_id text, token bigint, value jsonb, stream text, label text, reason text, importance text, metadata jsonb, created_by text, expected_version integer, request_id text) IS 'Makes a document the next version of a stream and returns the version''s number: 1, 2, 3 ... stream: 1 to 1024 bytes, "main" unless told. label: a name under which the version is found again. importance: transient (may be lost with the last moments of a crashed server: asynchronous commit), normal, checkpoint or milestone. created_by: the database role unless told. expected_version: the version that the caller has read (0: none); when it is not the newest any more, TB011 and nothing is written. request_id: an id made up for this call; the call repeated with it returns the first one''s version. Errors: TB001, TB002, TB003, TB004, TB005, TB011.';
CREATE FUNCTION tidebase.start_timer(run_id text, token bigint, name text, duration interval) RETURNS tidebase.gate_opening
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'tidebase', 'pg_temp'
    AS $$
declare
  wanted gates;
begin
  perform tidebase_private.require_name(name, 'name', 1024);
  perform tidebase_private.require_interval(duration, 'duration', '0', '3650 days');
  wanted.run_id := start_timer.run_id;
  wanted.name := start_timer.name;
  wanted.kind := 'timer';
  wanted.status := 'pending';
  wanted.data := '{}';
  wanted.shown_hash := tidebase_private.hash_input(to_jsonb(extract(epoch from duration)));
  wanted.options := array['elapsed'];
  wanted.required_approvals := 1;
  wanted.created_at := clock_timestamp();
  wanted.timeout_at := wanted.created_at + duration;
  wanted.default_decision := 'elapsed';
  return tidebase_private.open(wanted, token);
end
$$;
COMMENT ON FUNCTION tidebase.start_timer(run_id text, token bigint, name text, duration interval) IS 'Starts a durable timer, or finds the one that was started; status is decided once it has fired, timeout_at is when it does. Shares its names with the run''s gates. duration: 0 to 3650 days; with another one TB006. Errors: TB001, TB002, TB003, TB004, TB005, TB006.';
CREATE FUNCTION tidebase.suspend_run(run_id text, token bigint, name text) RETURNS boolean
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'tidebase', 'pg_temp'
    AS $$
declare
  head run_heads;
  gate gates;
begin
  perform tidebase_private.commit_durably();
  head := tidebase_private.lock_head(run_id);
  if head.lease_token = token and head.status <> 'cancelled' and exists (
    select from attempts a where a.run_id = head.run_id and a.attempt = head.attempt and a.outcome = 'suspended')
  then
    return true;  -- the same call again, whatever was decided since
  end if;
  head := tidebase_private.fence(run_id, token, 1);
  select g.* into gate from gates g where g.run_id = suspend_run.run_id and g.name = suspend_run.name;
  if not found then
    perform tidebase_private.raise_gate_not_found(run_id, name);
  elsif gate.status = 'decided' or gate.timeout_at <= clock_timestamp() then
    perform tidebase_private.give_back(head, 1);
    return false;
  end if;
  perform tidebase_private.end_attempt(head, 'suspended');
  update run_heads h
  set status = 'waiting', waiting_for = suspend_run.name, lease_expires_at = null
  where h.run_id = suspend_run.run_id
  returning h.* into head;
  update run_heads h set due_at = tidebase_private.next_due(head) where h.run_id = suspend_run.run_id;
  perform tidebase_private.emit(head, 'run.suspended',
    jsonb_build_object('attempt', head.attempt, 'token', token, 'name', name));
  return true;
end
$$;
COMMENT ON FUNCTION tidebase.suspend_run(run_id text, token bigint, name text) IS 'Gives the lease up and lets the run wait for one of its gates or timers, with no process alive: once that is decided, acquire_run grants the run again. False when it is decided already: go on. Errors: TB001, TB003, TB004, TB005, TB012.';
CREATE FUNCTION tidebase.watch_run(run_id text, ttl interval DEFAULT '00:01:00'::interval) RETURNS tidebase.watch
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'tidebase', 'pg_temp'
    AS $$
declare
  head tidebase.run_heads;
begin
  perform tidebase_private.require_interval(ttl, 'ttl', '1 second', '1 day');
  select h.* into head from run_heads h where h.run_id = watch_run.run_id;
  if not found then
    perform tidebase_private.raise_run_not_found(run_id);
  end if;
  -- A second watcher, or the same one again, costs no write while the mark still has half of its time to go.
  if head.watched_until is null or head.watched_until < clock_timestamp() + ttl / 2 then
    perform tidebase_private.commit_lazily();
    update run_heads h
    set watched_until = greatest(h.watched_until, clock_timestamp() + ttl)
    where h.run_id = watch_run.run_id
    returning h.* into head;
  end if;
  return row('tidebase_events', head.status, head.last_seq, head.watched_until)::watch;
end
$$;
COMMENT ON FUNCTION tidebase.watch_run(run_id text, ttl interval) IS 'Asks for notifications about a run for ttl (1 second to 1 day): LISTEN to the channel first, then watch, then read_events, and call it again before watched_until. Notifications may be lost with a connection or behind a pooler: poll read_events as well, now and then. Errors: TB001, TB002.';
CREATE TABLE tidebase.steps (
    run_id text NOT NULL,
    name text NOT NULL,
    lease_token bigint NOT NULL,
    started_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    completed_at timestamp with time zone,
    completed_seq bigint,
    attempt integer NOT NULL,
    tries integer NOT NULL,
    status text NOT NULL,
    input_hash bytea NOT NULL,
    request_id text,
    input jsonb,
    output jsonb,
    error jsonb,
    decision text,
    retry_at timestamp with time zone,
    side_effects text[],
    idempotency_key text,
    replay text,
    checkpoint_invariant text,
    verified_by text,
    credentials text[],
    retries integer,
    retry_delay interval,
    retry_max_delay interval,
    timeout interval,
    CONSTRAINT step_decision_is_known CHECK ((decision = ANY (ARRAY['auto_retry'::text, 'safe_replay'::text, 'manual_review'::text, 'fail_hard'::text]))),
    CONSTRAINT step_failed_with_a_decision CHECK (((status <> 'failed'::text) OR (decision IS NOT NULL))),
    CONSTRAINT step_is_completed_whole CHECK ((((status = 'completed'::text) = (completed_seq IS NOT NULL)) AND ((status = 'completed'::text) = (output IS NOT NULL)))),
    CONSTRAINT step_replay_is_known CHECK ((replay = ANY (ARRAY['auto'::text, 'manual'::text, 'never'::text]))),
    CONSTRAINT step_status_is_known CHECK ((status = ANY (ARRAY['running'::text, 'completed'::text, 'failed'::text, 'review'::text])))
)
WITH (autovacuum_vacuum_scale_factor='0.05', autovacuum_analyze_scale_factor='0.05', toast.autovacuum_vacuum_scale_factor='0.05');
ALTER TABLE ONLY tidebase.steps ALTER COLUMN input SET COMPRESSION lz4;
ALTER TABLE ONLY tidebase.steps ALTER COLUMN output SET COMPRESSION lz4;
COMMENT ON TABLE tidebase.steps IS 'The named steps of a run. A completed one is a checkpoint: it never runs again and its output never changes.';
COMMENT ON COLUMN tidebase.steps.lease_token IS 'The lease under which the step was last begun.';
COMMENT ON COLUMN tidebase.steps.completed_seq IS 'The seq of the step.completed event.';
COMMENT ON COLUMN tidebase.steps.attempt IS 'How often the step was begun, over all leases: 1 when it ran once.';
COMMENT ON COLUMN tidebase.steps.tries IS 'How often it was begun under the present lease: what the retries are counted by.';
COMMENT ON COLUMN tidebase.steps.input_hash IS 'SHA-256 of the canonical form of the input; see tidebase_private.hash_input.';
COMMENT ON COLUMN tidebase.steps.request_id IS 'The id of the begin_step call, so that the call can be repeated when its answer was lost.';
COMMENT ON COLUMN tidebase.steps.output IS 'The checkpoint. A step without a result has the JSON null.';
COMMENT ON COLUMN tidebase.steps.decision IS 'What fail_step decided about the last failure.';
COMMENT ON COLUMN tidebase.steps.side_effects IS 'Resume contract: what the step does to the outside, e.g. {email.send}; {read} and NULL are harmless.';
COMMENT ON COLUMN tidebase.steps.idempotency_key IS 'Resume contract: the key by which the outside recognises a repetition.';
COMMENT ON COLUMN tidebase.steps.replay IS 'Resume contract: auto, manual or never; NULL means auto.';
COMMENT ON COLUMN tidebase.steps.checkpoint_invariant IS 'Resume contract: what must hold for the checkpoint to be usable, in words.';
COMMENT ON COLUMN tidebase.steps.verified_by IS 'Resume contract: how one finds out whether the step took effect, in words.';
COMMENT ON COLUMN tidebase.steps.credentials IS 'Resume contract: the names (never the values) of the credentials that the step needs.';
COMMENT ON COLUMN tidebase.steps.retries IS 'Resume contract: how often a failure is retried under one lease; NULL means 0.';
COMMENT ON COLUMN tidebase.steps.retry_delay IS 'Resume contract: the delay before the first retry, doubled for each further one; NULL means 1 second.';
COMMENT ON COLUMN tidebase.steps.retry_max_delay IS 'Resume contract: the cap of the delay; NULL means 5 minutes.';
COMMENT ON COLUMN tidebase.steps.timeout IS 'Resume contract: how long one execution may take; enforced by the client that executes it.';
CREATE FUNCTION tidebase_private.accept_step(step tidebase.steps, output jsonb) RETURNS void
    LANGUAGE plpgsql
    AS $$
declare
  head tidebase.run_heads := tidebase_private.advance(step.run_id);
begin
  update tidebase.steps s
  set status = 'completed', output = coalesce(accept_step.output, 'null'), completed_at = clock_timestamp(),
      completed_seq = head.last_seq
  where s.run_id = step.run_id and s.name = step.name;
  update tidebase.run_heads h set steps_completed = h.steps_completed + 1 where h.run_id = step.run_id;
  perform tidebase_private.emit(head, 'step.completed',
    jsonb_build_object('name', step.name, 'attempt', step.attempt, 'accepted', true));
end
$$;
COMMENT ON FUNCTION tidebase_private.accept_step(step tidebase.steps, output jsonb) IS 'Makes a person''s word the checkpoint of a step. The caller holds the head''s lock.';
CREATE FUNCTION tidebase_private.account_of(head tidebase.run_heads, recorded boolean, seq bigint) RETURNS tidebase.usage_total
    LANGUAGE plpgsql STABLE
    AS $$
declare
  account tidebase.accounts;
  total tidebase.usage_total;
begin
  select a.* into account from tidebase.accounts a where a.run_id = head.run_id;
  total := row(recorded, account.records, account.input_tokens, account.output_tokens, account.cost_usd, account.unpriced, false, seq);
  while not total.exhausted and account.run_id is not null loop
    total.exhausted := tidebase_private.is_exhausted(account);
    select a.* into account from tidebase.accounts a where a.run_id = account.parent_run_id;
  end loop;
  return total;
end
$$;
COMMENT ON FUNCTION tidebase_private.account_of(head tidebase.run_heads, recorded boolean, seq bigint) IS 'The answer of record_usage.';
CREATE FUNCTION tidebase_private.advance(run_id text) RETURNS tidebase.run_heads
    LANGUAGE sql
    AS $$
  update tidebase.run_heads h
  set last_seq = h.last_seq + 1,
      durable_seq = case when tidebase_private.is_durable() then h.last_seq + 1 else h.durable_seq end,
      updated_at = clock_timestamp()
  where h.run_id = advance.run_id
  returning h.*;
$$;
COMMENT ON FUNCTION tidebase_private.advance(run_id text) IS 'Takes the next event number; the caller holds the head''s lock.';
CREATE FUNCTION tidebase_private.allow(object text, VARIADIC audience text[]) RETURNS void
    LANGUAGE sql
    AS $$
  insert into tidebase_private.privileges (object, audience)
  select allow.object, unnest(allow.audience)
  on conflict do nothing;
$$;
COMMENT ON FUNCTION tidebase_private.allow(object text, VARIADIC audience text[]) IS 'Records that an object ("function tidebase.f" or "table tidebase.v") is for these audiences: worker, approver, operator, reader.';
CREATE FUNCTION tidebase_private.apply_change(value jsonb, change jsonb) RETURNS jsonb
    LANGUAGE plpgsql IMMUTABLE
    AS $$
declare
  keep integer;
  removed text[];
  changed jsonb;
begin
  if change = '{}' then
    return value;
  elsif jsonb_typeof(change) = 'object' then
    select array_agg(c.key) filter (where c.value = '[]'),
      jsonb_object_agg(c.key, tidebase_private.apply_change(apply_change.value -> c.key, c.value)) filter (where c.value <> '[]')
    into removed, changed
    from jsonb_each(change) c;
    return (value - coalesce(removed, array[]::text[])) || coalesce(changed, '{}');
  elsif jsonb_array_length(change) = 1 then
    return change -> 0;
  end if;
  keep := (change -> 0)::integer;
  if jsonb_typeof(value) = 'string' then
    return to_jsonb(left(value #>> array[]::text[], keep) || (change ->> 1));
  elsif keep = jsonb_array_length(value) then
    return value || (change -> 1);
  end if;
  return (
    select coalesce(jsonb_agg(e.value order by e.position), '[]')
    from jsonb_array_elements(apply_change.value) with ordinality as e (value, position)
    where e.position <= keep) || (change -> 1);
end
$$;
COMMENT ON FUNCTION tidebase_private.apply_change(value jsonb, change jsonb) IS 'The value after a change.';
CREATE FUNCTION tidebase_private.apply_privileges() RETURNS void
    LANGUAGE plpgsql
    AS $$
declare
  grantee text;
  granted record;
begin
  revoke all on all functions in schema tidebase, tidebase_private from public;
  revoke all on all tables in schema tidebase, tidebase_private from public;
  revoke all on schema tidebase, tidebase_private from public;
  for grantee in
    select tidebase_private.role_name(audience)
    from unnest(array['worker', 'approver', 'operator', 'reader']) as audience
    where exists (select from pg_roles where rolname = tidebase_private.role_name(audience))
  loop
    perform tidebase_private.revoke_all(grantee);
    execute format('grant usage on schema tidebase to %I', grantee);
  end loop;
  for granted in
    select p.object, tidebase_private.role_name(p.audience) as grantee
    from tidebase_private.privileges p
    join pg_roles r on r.rolname = tidebase_private.role_name(p.audience)
    order by p.object, p.audience
  loop
    execute format('grant %s on %s to %I',
      case when granted.object like 'function %' then 'execute' else 'select' end, granted.object, granted.grantee);
  end loop;
  -- Not even the owner's own functions can rewrite history.
  execute format('revoke update, truncate on tidebase.events from %I',
    (select pg_get_userbyid(c.relowner) from pg_class c where c.oid = 'tidebase.events'::regclass));
end
$$;
COMMENT ON FUNCTION tidebase_private.apply_privileges() IS 'Grants to the existing roles exactly what the function files allow; takes away the rest, also from PUBLIC.';
CREATE FUNCTION tidebase_private.base_of(version integer, keyframe integer) RETURNS integer
    LANGUAGE sql IMMUTABLE
    AS $$
  select keyframe + ((version - keyframe) & (version - keyframe - 1));
$$;
COMMENT ON FUNCTION tidebase_private.base_of(version integer, keyframe integer) IS 'The version that this one is stored as a change of: the lowest bit of the distance to the keyframe is cleared.';
CREATE FUNCTION tidebase_private.begun_already(head tidebase.run_heads, name text, input_hash bytea, request_id text) RETURNS tidebase.step_start
    LANGUAGE plpgsql
    AS $$
declare
  step tidebase.steps;
begin
  select s.* into strict step from tidebase.steps s where s.run_id = head.run_id and s.name = begun_already.name;
  if step.input_hash <> input_hash then
    perform tidebase_private.raise_other_input(step, input_hash);
  end if;
  perform tidebase_private.give_back(head, 1);
  if step.status = 'completed' then
    return row('replay', step.attempt, step.output)::tidebase.step_start;
  elsif step.status = 'review' then
    perform tidebase_private.park(head, name);
    return row('review', step.attempt, null)::tidebase.step_start;
  elsif step.status = 'running' and step.lease_token <> head.lease_token then
    perform tidebase_private.open_review(head.run_id, name, step.attempt, 'crash');
    perform tidebase_private.park(head, name);
    return row('review', step.attempt, null)::tidebase.step_start;
  elsif step.status = 'failed' then
    perform tidebase_private.raise('TB007', format('step %L of run %L failed for good', name, head.run_id),
      jsonb_build_object('run_id', head.run_id, 'step', name, 'status', step.status, 'decision', step.decision),
      'It is not executed again in this run. A new run, or a fork from before the step, may.');
  elsif step.request_id = request_id then
    return row('execute', step.attempt, null)::tidebase.step_start;  -- the same call again: its answer was lost on the way
  end if;
  perform tidebase_private.raise('TB007', format('step %L of run %L is running already under this lease', name, head.run_id),
    jsonb_build_object('run_id', head.run_id, 'step', name, 'status', step.status, 'lease_token', step.lease_token),
    'Two threads began the same step. Give each piece of work its own name or key.');
  return null;
end
$$;
COMMENT ON FUNCTION tidebase_private.begun_already(head tidebase.run_heads, name text, input_hash bytea, request_id text) IS 'The answer of begin_step for a step that is completed, needs a review, was begun by the very same call, or cannot be begun: TB006, TB007.';
CREATE FUNCTION tidebase_private.caller() RETURNS text
    LANGUAGE sql STABLE
    AS $$
  select case when current_setting('role') = 'none' then session_user::text else current_setting('role') end;
$$;
COMMENT ON FUNCTION tidebase_private.caller() IS 'The role on whose behalf the function was called.';
CREATE FUNCTION tidebase_private.caller_is(audience text) RETURNS boolean
    LANGUAGE sql STABLE
    AS $$
  select exists (
    select from pg_roles r
    where r.rolname in (tidebase_private.role_name(audience), current_user)
      and pg_has_role(tidebase_private.caller(), r.oid, 'member'));
$$;
COMMENT ON FUNCTION tidebase_private.caller_is(audience text) IS 'Whether the caller is a member of the audience''s role, or of the role that owns Tidebase. Called from SECURITY DEFINER functions.';
CREATE FUNCTION tidebase_private.cancel_descendants(run_id text, reason text, actor text) RETURNS integer
    LANGUAGE plpgsql
    AS $$
declare
  level text[] := array[run_id];
  child text;
  cancelled integer := 0;
begin
  loop
    select array_agg(distinct e.child_run_id order by e.child_run_id) into level
    from tidebase.edges e
    where e.run_id = any (level) and e.edge_type <> 'fork';
    exit when level is null;
    foreach child in array level loop
      cancelled := cancelled
        + tidebase_private.cancel_one(tidebase_private.lock_head(child), reason, actor)::integer;
    end loop;
  end loop;
  return cancelled;
end
$$;
COMMENT ON FUNCTION tidebase_private.cancel_descendants(run_id text, reason text, actor text) IS 'Cancels all descendants that are not final; forks are runs of their own and stay. The caller holds the head''s lock. Returns how many it cancelled.';
CREATE FUNCTION tidebase_private.cancel_one(head tidebase.run_heads, reason text, actor text) RETURNS boolean
    LANGUAGE plpgsql
    AS $$
begin
  if head.status in ('cancelled', 'completed') then
    return false;
  end if;
  perform tidebase_private.end_attempt(head, 'cancelled');
  update tidebase.runs r
  set cancelled_at = clock_timestamp(), finished_at = clock_timestamp(), cancel_reason = cancel_one.reason,
      cancel_actor = cancel_one.actor
  where r.run_id = head.run_id;
  update tidebase.gates g set status = 'cancelled' where g.run_id = head.run_id and g.status = 'pending';
  update tidebase.run_heads h
  set status = 'cancelled', lease_expires_at = null, waiting_for = null, available_at = null, due_at = null
  where h.run_id = head.run_id;
  perform tidebase_private.emit(tidebase_private.advance(head.run_id), 'run.cancelled',
    jsonb_build_object('reason', reason, 'actor', actor));
  return true;
end
$$;
COMMENT ON FUNCTION tidebase_private.cancel_one(head tidebase.run_heads, reason text, actor text) IS 'Makes a run cancelled and ends what hangs on it. The caller holds the head''s lock.';
CREATE FUNCTION tidebase_private.canonical(value jsonb) RETURNS text
    LANGUAGE plpgsql IMMUTABLE
    AS $$
declare
  canonical text := value::text;
begin
  if canonical collate "C" like '%.%0%' then
    canonical := regexp_replace(canonical, '("(?:[^"\\]|\\.)*")|(\.[0-9]*[1-9])0+(?![0-9])|\.0+(?![0-9])', '\1\2', 'g');
  end if;
  return canonical;
end
$$;
COMMENT ON FUNCTION tidebase_private.canonical(value jsonb) IS 'One text for all equal jsonb values: jsonb''s own output, with the zeros that end a fraction cut off (1.50 is 1.5, 1.0 is 1).';
CREATE FUNCTION tidebase_private.change_of_patch(value jsonb, patch jsonb) RETURNS jsonb
    LANGUAGE plpgsql IMMUTABLE
    AS $$
declare
  key text;
  wanted jsonb;
  here jsonb;
  change jsonb := jsonb_build_object();
begin
  if jsonb_typeof(patch) <> 'object' then
    return tidebase_private.find_change(value, patch);
  elsif value is null or jsonb_typeof(value) <> 'object' then
    return jsonb_build_array(tidebase_private.merge_patch('{}', patch));
  end if;
  for key, wanted in select p.key, p.value from jsonb_each(patch) p loop
    if wanted = 'null' then
      here := case when value ? key then '[]'::jsonb end;
    elsif value ? key then
      here := tidebase_private.change_of_patch(value -> key, wanted);
    else
      here := jsonb_build_array(tidebase_private.merge_patch('{}', wanted));
    end if;
    if here is not null then
      change := change || jsonb_build_object(key, here);
    end if;
  end loop;
  return nullif(change, '{}');
end
$$;
COMMENT ON FUNCTION tidebase_private.change_of_patch(value jsonb, patch jsonb) IS 'The change that an RFC 7396 merge patch makes in a value; NULL when it makes none.';
CREATE TABLE tidebase.usage (
    run_id text NOT NULL,
    seq bigint NOT NULL,
    created_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    input_tokens bigint,
    cache_read_tokens bigint,
    cache_write_tokens bigint,
    output_tokens bigint,
    reasoning_tokens bigint,
    kind text NOT NULL,
    step text,
    provider text,
    model text,
    response_id text,
    cost numeric,
    currency text NOT NULL,
    quantity numeric,
    unit text,
    label text,
    metadata jsonb,
    CONSTRAINT usage_counts_upwards CHECK ((LEAST((input_tokens)::numeric, (cache_read_tokens)::numeric, (cache_write_tokens)::numeric, (output_tokens)::numeric, (reasoning_tokens)::numeric, cost, quantity) >= (0)::numeric)),
    CONSTRAINT usage_currency_is_a_code CHECK ((currency ~ '^[A-Z]{3}$'::text)),
    CONSTRAINT usage_is_finite CHECK (((cost < 'Infinity'::numeric) AND (quantity < 'Infinity'::numeric))),
    CONSTRAINT usage_metadata_is_an_object CHECK ((jsonb_typeof(metadata) = 'object'::text))
)
WITH (autovacuum_vacuum_scale_factor='0.05', autovacuum_analyze_scale_factor='0.05');
COMMENT ON TABLE tidebase.usage IS 'What calls to models and other paid services used. The columns are those of the OpenTelemetry GenAI conventions: kind is gen_ai.operation.name, provider gen_ai.provider.name, model gen_ai.response.model, response_id gen_ai.response.id, input_tokens and output_tokens gen_ai.usage.*, cache_read_tokens gen_ai.usage.cache_read.input_tokens, cache_write_tokens gen_ai.usage.cache_creation.input_tokens.';
COMMENT ON COLUMN tidebase.usage.seq IS 'The seq of the usage.recorded event.';
COMMENT ON COLUMN tidebase.usage.input_tokens IS 'All input tokens, those from and to the cache included.';
COMMENT ON COLUMN tidebase.usage.output_tokens IS 'All output tokens, those for reasoning included.';
COMMENT ON COLUMN tidebase.usage.cost IS 'The price, exact; NULL when nobody knows it, never 0 for that.';
COMMENT ON COLUMN tidebase.usage.currency IS 'ISO 4217.';
COMMENT ON COLUMN tidebase.usage.quantity IS 'How much of the unit was used, where tokens are not the measure: 3 images, 12.5 seconds.';
CREATE FUNCTION tidebase_private.charge(head tidebase.run_heads, record tidebase.usage) RETURNS boolean
    LANGUAGE plpgsql
    AS $$
declare
  cost numeric := case when record.currency = 'USD' then coalesce(record.cost, 0) else 0 end;
  tokens bigint := coalesce(record.input_tokens, 0) + coalesce(record.output_tokens, 0);
  account tidebase.accounts;
  used_up boolean := false;
begin
  insert into tidebase.accounts as a (run_id, records, unpriced, input_tokens, cache_read_tokens, cache_write_tokens, output_tokens,
    reasoning_tokens, cost_usd, shared_tokens, shared_cost_usd)
  values (head.run_id, 1, (record.cost is null or record.currency <> 'USD')::integer, coalesce(record.input_tokens, 0),
    coalesce(record.cache_read_tokens, 0), coalesce(record.cache_write_tokens, 0), coalesce(record.output_tokens, 0),
    coalesce(record.reasoning_tokens, 0), cost, tokens, cost)
  on conflict on constraint accounts_pkey do update
  set records = a.records + 1,
      unpriced = a.unpriced + excluded.unpriced,
      input_tokens = a.input_tokens + excluded.input_tokens,
      cache_read_tokens = a.cache_read_tokens + excluded.cache_read_tokens,
      cache_write_tokens = a.cache_write_tokens + excluded.cache_write_tokens,
      output_tokens = a.output_tokens + excluded.output_tokens,
      reasoning_tokens = a.reasoning_tokens + excluded.reasoning_tokens,
      cost_usd = a.cost_usd + excluded.cost_usd,
      shared_tokens = a.shared_tokens + excluded.shared_tokens,
      shared_cost_usd = a.shared_cost_usd + excluded.shared_cost_usd
  returning a.* into account;
  loop
    used_up := used_up or tidebase_private.is_exhausted(account) and not coalesce(
      account.shared_cost_usd - cost >= account.cost_limit_usd or account.shared_tokens - tokens >= account.token_limit, false);
    exit when account.parent_run_id is null;
    update tidebase.accounts a
    set shared_tokens = a.shared_tokens + tokens, shared_cost_usd = a.shared_cost_usd + cost
    where a.run_id = account.parent_run_id
    returning a.* into account;
  end loop;
  return used_up;
end
$$;
COMMENT ON FUNCTION tidebase_private.charge(head tidebase.run_heads, record tidebase.usage) IS 'Adds to the running totals of the run and of those whose budget it shares. The caller holds the head''s lock.';
CREATE FUNCTION tidebase_private.check_recovery_status(status text) RETURNS void
    LANGUAGE plpgsql
    AS $$
begin
  if status is null or status not in ('succeeded', 'failed') then
    perform tidebase_private.raise_invalid('status', 'must be succeeded or failed');
  end if;
end
$$;
COMMENT ON FUNCTION tidebase_private.check_recovery_status(status text) IS 'Raises TB002 unless a recovery can end like this.';
CREATE FUNCTION tidebase_private.choose_dead(before timestamp with time zone, statuses text[], max integer) RETURNS text[]
    LANGUAGE plpgsql
    AS $$
declare
  chosen text[];
  settled text[];
begin
  select array_agg(c.run_id) into chosen from (
    select h.run_id
    from tidebase.runs r
    join tidebase.run_heads h on h.run_id = r.run_id
    where r.created_at <= before  -- nothing finishes before it was made, and for this there is an index
      and r.finished_at <= before and h.status = any (statuses)
      and not exists (
        select from tidebase_private.relatives(array[r.run_id]) n
        where not (n.status = 'failed' and n.status = any (statuses) and n.finished_at <= before))
    order by r.created_at
    limit choose_dead.max
    for update of h skip locked) c;
  select array_agg(l.run_id) into settled from (
    select h.run_id from tidebase.run_heads h
    where h.run_id in (select n.relative from tidebase_private.relatives(chosen) n) and h.status = 'failed'
    for update skip locked) l;
  return (
    select array_agg(c.id) from unnest(chosen) as c (id)
    where not exists (
      select from tidebase_private.relatives(array[c.id]) n where n.relative <> all (coalesce(settled, '{}'))));
end
$$;
COMMENT ON FUNCTION tidebase_private.choose_dead(before timestamp with time zone, statuses text[], max integer) IS 'Some runs that may be purged, at most max, with their heads locked; NULL when there are none.';
CREATE FUNCTION tidebase_private.commit_durably() RETURNS void
    LANGUAGE plpgsql
    AS $$
begin
  if current_setting('synchronous_commit') = 'off' then
    perform set_config('synchronous_commit', 'on', true);
  end if;
end
$$;
COMMENT ON FUNCTION tidebase_private.commit_durably() IS 'This transaction''s commit waits until its WAL is flushed, also where synchronous_commit is off. A stronger setting stays.';
CREATE FUNCTION tidebase_private.commit_lazily() RETURNS void
    LANGUAGE plpgsql
    AS $$
begin
  if pg_current_xact_id_if_assigned() is null and current_setting('tidebase.durability', true) is distinct from 'full' then
    perform set_config('synchronous_commit', 'off', true);
  end if;
end
$$;
COMMENT ON FUNCTION tidebase_private.commit_lazily() IS 'This transaction''s commit need not wait for the flush, unless it has written already or tidebase.durability is full.';
CREATE FUNCTION tidebase_private.compose_changes(first jsonb, second jsonb) RETURNS jsonb
    LANGUAGE plpgsql IMMUTABLE
    AS $$
declare
  kept integer;
  keep integer;
begin
  if first is null or first = '{}' then
    return second;
  elsif second is null or second = '{}' then
    return first;
  elsif jsonb_typeof(second) = 'object' and jsonb_typeof(first) = 'object' then
    return first || (
      select coalesce(jsonb_object_agg(c.key, tidebase_private.compose_changes(first -> c.key, c.value)), '{}')
      from jsonb_each(second) c);
  elsif jsonb_typeof(second) = 'array' and jsonb_array_length(second) < 2 then
    return second;
  elsif jsonb_array_length(first) = 1 then
    return jsonb_build_array(tidebase_private.apply_change(first -> 0, second));
  end if;
  kept := (first -> 0)::integer;
  keep := (second -> 0)::integer;
  if keep <= kept then
    return second;
  end if;
  return jsonb_build_array(kept,
    tidebase_private.apply_change(first -> 1, jsonb_build_array(keep - kept, second -> 1)));
end
$$;
COMMENT ON FUNCTION tidebase_private.compose_changes(first jsonb, second jsonb) IS 'One change that does what two do, one after the other; NULL is no change.';
CREATE FUNCTION tidebase_private.copy_budget(source text, fork text) RETURNS void
    LANGUAGE plpgsql
    AS $$
begin
  insert into tidebase.accounts (run_id, cost_limit_usd, token_limit)
  select fork, a.cost_limit_usd, a.token_limit from tidebase.accounts a
  where a.run_id = source and num_nonnulls(a.cost_limit_usd, a.token_limit) > 0;
  if found then
    update tidebase.run_heads h set has_budget = true where h.run_id = fork;
  end if;
end
$$;
COMMENT ON FUNCTION tidebase_private.copy_budget(source text, fork text) IS 'Gives a fork the limits of its source, unused.';
CREATE FUNCTION tidebase_private.copy_events(source text, fork text, through bigint) RETURNS bigint
    LANGUAGE plpgsql
    AS $$
declare
  copied bigint;
begin
  insert into tidebase.events (run_id, seq, type, payload)
  select fork, 1 + row_number() over (order by e.seq), e.type, e.payload || jsonb_build_object('source_seq', e.seq)
  from tidebase.events e
  where e.run_id = source and e.seq <= through and (
    e.type in ('step.completed', 'state.updated', 'state.saved', 'state.restored', 'snapshot.created')
    or e.type in ('gate.created', 'gate.voted', 'gate.resolved', 'timer.started', 'timer.fired') and e.payload ->> 'name' in (
      select d.payload ->> 'name' from tidebase.events d
      where d.run_id = source and d.seq <= through and d.type in ('gate.resolved', 'timer.fired')));
  get diagnostics copied = row_count;
  return copied;
end
$$;
COMMENT ON FUNCTION tidebase_private.copy_events(source text, fork text, through bigint) IS 'Copies the events that a fork begins with, from number 2 on, and returns how many; payload.source_seq is the number in the source.';
CREATE FUNCTION tidebase_private.copy_rows(source text, fork text) RETURNS integer
    LANGUAGE plpgsql
    AS $$
declare
  steps integer;
begin
  insert into tidebase.steps
  select copy.*
  from tidebase.events e
  join tidebase.steps s on s.run_id = source and s.completed_seq = (e.payload ->> 'source_seq')::bigint,
    lateral jsonb_populate_record(s, jsonb_build_object('run_id', fork, 'completed_seq', e.seq, 'lease_token', 0, 'request_id', null)) copy
  where e.run_id = fork and e.type = 'step.completed';
  get diagnostics steps = row_count;
  insert into tidebase.gates
  select copy.*
  from tidebase.events e
  join tidebase.gates g on g.run_id = source and g.name = e.payload ->> 'name',
    lateral jsonb_populate_record(g, jsonb_build_object('run_id', fork, 'request_id', null)) copy
  where e.run_id = fork and e.type in ('gate.resolved', 'timer.fired');
  insert into tidebase.gate_votes
  select copy.*
  from tidebase.gates g
  join tidebase.gate_votes v on v.run_id = source and v.name = g.name,
    lateral jsonb_populate_record(v, jsonb_build_object('run_id', fork, 'request_id', null)) copy
  where g.run_id = fork;
  insert into tidebase.state_versions
  select copy.*
  from tidebase.events e
  join tidebase.state_versions v on v.run_id = source and v.seq = (e.payload ->> 'source_seq')::bigint,
    lateral jsonb_populate_record(v, jsonb_build_object('run_id', fork, 'seq', e.seq)) copy
  where e.run_id = fork and e.type in ('state.updated', 'state.saved', 'state.restored', 'snapshot.created');
  insert into tidebase.state_streams
  select copy.*
  from tidebase.state_streams t, lateral jsonb_populate_record(t, jsonb_build_object('run_id', fork)) copy
  where t.run_id = source and exists (
    select from tidebase.state_versions v where v.run_id = fork and v.stream = t.stream);
  return steps;
end
$$;
COMMENT ON FUNCTION tidebase_private.copy_rows(source text, fork text) IS 'Copies the checkpoints, decided gates and versions of state whose events the fork has; returns how many checkpoints.';
CREATE FUNCTION tidebase_private.decide_replay(step tidebase.steps, may_retry boolean) RETURNS text
    LANGUAGE sql IMMUTABLE
    AS $$
  select case
    when tidebase_private.writes_outside(step.side_effects) and step.idempotency_key is null
      then case step.replay when 'never' then 'fail_hard' else 'manual_review' end
    when may_retry and step.tries <= coalesce(step.retries, 0) then 'auto_retry'
    when step.replay = 'never' then 'fail_hard'
    when step.replay = 'manual' then 'manual_review'
    else 'safe_replay'
  end;
$$;
COMMENT ON FUNCTION tidebase_private.decide_replay(step tidebase.steps, may_retry boolean) IS 'What may become of a step that was begun and did not complete: auto_retry, safe_replay, manual_review or fail_hard. may_retry: whether the retries of the contract apply.';
CREATE TABLE tidebase.state_versions (
    run_id text NOT NULL,
    stream text NOT NULL,
    version integer NOT NULL,
    base integer,
    keyframe integer NOT NULL,
    group_bytes bigint NOT NULL,
    seq bigint NOT NULL,
    created_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    operation text NOT NULL,
    importance text DEFAULT 'normal'::text NOT NULL,
    content jsonb NOT NULL,
    label text,
    reason text,
    created_by text,
    metadata jsonb,
    CONSTRAINT state_base_is_between CHECK (((base >= keyframe) AND (base < version) AND (keyframe <= version))),
    CONSTRAINT state_importance_is_known CHECK ((importance = ANY (ARRAY['transient'::text, 'normal'::text, 'checkpoint'::text, 'milestone'::text]))),
    CONSTRAINT state_is_a_keyframe_or_a_change CHECK (((base IS NULL) = (keyframe = version))),
    CONSTRAINT state_metadata_is_an_object CHECK ((jsonb_typeof(metadata) = 'object'::text)),
    CONSTRAINT state_operation_is_known CHECK ((operation = ANY (ARRAY['set'::text, 'patch'::text, 'save'::text, 'restore'::text, 'snapshot'::text]))),
    CONSTRAINT state_version_starts_at_one CHECK ((version >= 1))
)
WITH (autovacuum_vacuum_scale_factor='0.05', autovacuum_analyze_scale_factor='0.05', toast.autovacuum_vacuum_scale_factor='0.05');
ALTER TABLE ONLY tidebase.state_versions ALTER COLUMN content SET COMPRESSION lz4;
COMMENT ON TABLE tidebase.state_versions IS 'Every version of every stream: 1..n, never changed. Read them with get_state.';
COMMENT ON COLUMN tidebase.state_versions.base IS 'The version that content is a change of; NULL: content is the whole document.';
COMMENT ON COLUMN tidebase.state_versions.keyframe IS 'The newest version up to this one that is stored whole.';
COMMENT ON COLUMN tidebase.state_versions.group_bytes IS 'How much is stored as changes since the keyframe, with this version: it says when the next one is due.';
COMMENT ON COLUMN tidebase.state_versions.seq IS 'The seq of the version''s event.';
COMMENT ON COLUMN tidebase.state_versions.content IS 'The document, or what changed; see tidebase_private.apply_change.';
CREATE FUNCTION tidebase_private.describe_version(run_id text, stream text, operation text, importance text, label text, reason text, metadata jsonb, created_by text) RETURNS tidebase.state_versions
    LANGUAGE plpgsql IMMUTABLE
    AS $$
declare
  wanted tidebase.state_versions;
begin
  wanted.run_id := run_id;
  wanted.stream := stream;
  wanted.operation := operation;
  wanted.importance := importance;
  wanted.label := label;
  wanted.reason := reason;
  wanted.metadata := metadata;
  wanted.created_by := created_by;
  return wanted;
end
$$;
COMMENT ON FUNCTION tidebase_private.describe_version(run_id text, stream text, operation text, importance text, label text, reason text, metadata jsonb, created_by text) IS 'A version that is to be written, as far as its caller describes it.';
CREATE FUNCTION tidebase_private.difference(one jsonb, other jsonb) RETURNS text
    LANGUAGE sql IMMUTABLE
    AS $$
  select case when one is null then 'added' when other is null then 'missing' else 'value' end;
$$;
COMMENT ON FUNCTION tidebase_private.difference(one jsonb, other jsonb) IS 'What to call the difference of two values that differ.';
CREATE FUNCTION tidebase_private.drop_history(run_id text) RETURNS void
    LANGUAGE plpgsql
    AS $$
declare
  last record;
begin
  for last in
    select t.stream, (tidebase_private.last_version(t.run_id, t.stream)).version from tidebase.state_streams t
    where t.run_id = drop_history.run_id
  loop
    update tidebase.state_versions v
    set base = null, keyframe = v.version, group_bytes = 0,
        content = (tidebase_private.read_version(v.run_id, v.stream, v.version)).value
    where v.run_id = drop_history.run_id and v.stream = last.stream and v.version = last.version;
    delete from tidebase.state_versions v
    where v.run_id = drop_history.run_id and v.stream = last.stream and v.version < last.version;
  end loop;
end
$$;
COMMENT ON FUNCTION tidebase_private.drop_history(run_id text) IS 'Keeps the newest version of each stream. The caller holds the head''s lock.';
CREATE FUNCTION tidebase_private.emit(head tidebase.run_heads, type text, payload jsonb, request_id text DEFAULT NULL::text) RETURNS void
    LANGUAGE plpgsql
    AS $$
begin
  insert into tidebase.events (run_id, seq, type, payload, request_id)
  values (head.run_id, head.last_seq, emit.type, emit.payload, emit.request_id);
  if head.watched_until > clock_timestamp() then
    perform pg_notify('tidebase_events', head.run_id);
  end if;
end
$$;
COMMENT ON FUNCTION tidebase_private.emit(head tidebase.run_heads, type text, payload jsonb, request_id text) IS 'Appends the event with seq head.last_seq; the caller holds the head''s row lock and took the number there.';
CREATE FUNCTION tidebase_private.end_attempt(head tidebase.run_heads, outcome text, error jsonb DEFAULT NULL::jsonb) RETURNS void
    LANGUAGE plpgsql
    AS $$
begin
  update tidebase.attempts a
  set ended_at = clock_timestamp(), outcome = end_attempt.outcome, error = end_attempt.error
  where a.run_id = head.run_id and a.attempt = head.attempt and a.ended_at is null;
end
$$;
COMMENT ON FUNCTION tidebase_private.end_attempt(head tidebase.run_heads, outcome text, error jsonb) IS 'Closes the attempts row of the present lease.';
CREATE FUNCTION tidebase_private.entitlement(run_id text, name text, secret text) RETURNS text
    LANGUAGE plpgsql
    AS $$
begin
  if secret is not null then
    if tidebase_private.hmac(convert_to(secret, 'UTF8'))
      = tidebase_private.hmac(convert_to(tidebase_private.gate_secret(run_id, name), 'UTF8'))
    then
      return 'secret';
    end if;
  elsif tidebase_private.caller_is('approver') then
    return 'approver';
  end if;
  perform tidebase_private.raise('TB009', format('not entitled to decide gate %L of run %L', name, run_id),
    jsonb_build_object('run_id', run_id, 'gate', name),
    format('Give the gate''s secret, or call as a member of %s.', tidebase_private.role_name('approver')));
  return null;
end
$$;
COMMENT ON FUNCTION tidebase_private.entitlement(run_id text, name text, secret text) IS 'secret or approver: by what right the caller decides. A secret that is given must be right. Errors: TB009.';
CREATE FUNCTION tidebase_private.fence(run_id text, token bigint, events integer, checkpoints integer DEFAULT 0) RETURNS tidebase.run_heads
    LANGUAGE plpgsql
    AS $$
declare
  head tidebase.run_heads;
begin
  update tidebase.run_heads h
  set last_seq = h.last_seq + events,
      durable_seq = case when tidebase_private.is_durable() then h.last_seq + events else h.durable_seq end,
      steps_completed = h.steps_completed + checkpoints,
      updated_at = clock_timestamp()
  where h.run_id = fence.run_id and h.lease_token = fence.token and h.status = 'running'
  returning h.* into head;
  if not found then
    perform tidebase_private.raise_fenced(run_id, token);
  end if;
  return head;
end
$$;
COMMENT ON FUNCTION tidebase_private.fence(run_id text, token bigint, events integer, checkpoints integer) IS 'Locks the run''s head, checks the lease token, and takes the next event numbers (last_seq is the newest of them). Errors: TB001, TB003, TB004, TB005.';
CREATE FUNCTION tidebase_private.find_change(old jsonb, new jsonb, depth integer DEFAULT 0) RETURNS jsonb
    LANGUAGE plpgsql IMMUTABLE
    AS $$
declare
  keep integer;
begin
  if tidebase_private.is_same(old, new) then
    return null;
  elsif depth < 50 and jsonb_typeof(old) = 'object' and jsonb_typeof(new) = 'object' then
    return (
      select jsonb_object_agg(key, case
        when n.value is null then '[]'
        when o.value is null then jsonb_build_array(n.value)
        else tidebase_private.find_change(o.value, n.value, depth + 1)
      end)
      from jsonb_each(old) o
      full join jsonb_each(new) n using (key)
      where o.value is null or n.value is null or not tidebase_private.is_same(o.value, n.value));
  elsif jsonb_typeof(old) = 'array' and jsonb_typeof(new) = 'array' then
    select (pair.position - 1)::integer into keep
    from rows from (jsonb_array_elements(old), jsonb_array_elements(new)) with ordinality as pair (old, new, position)
    where not tidebase_private.is_same(pair.old, pair.new)
    order by pair.position
    limit 1;
    if keep > 0 then
      return jsonb_build_array(keep, (
        select coalesce(jsonb_agg(e.value order by e.position), '[]')
        from jsonb_array_elements(new) with ordinality as e (value, position)
        where e.position > keep));
    end if;
  elsif jsonb_typeof(old) = 'string' and jsonb_typeof(new) = 'string' and old <> '""'
    and starts_with(new #>> array[]::text[], old #>> array[]::text[])
  then
    keep := length(old #>> array[]::text[]);
    return jsonb_build_array(keep, substr(new #>> array[]::text[], keep + 1));
  end if;
  return jsonb_build_array(new);
end
$$;
COMMENT ON FUNCTION tidebase_private.find_change(old jsonb, new jsonb, depth integer) IS 'The change that makes the first value the second; NULL when they are the same.';
CREATE FUNCTION tidebase_private.find_fork(source text, fork text, through_step text, through_seq bigint, input jsonb) RETURNS text
    LANGUAGE plpgsql STABLE
    AS $$
begin
  if not exists (
    select from tidebase.edges e
    join tidebase.runs r on r.run_id = e.child_run_id
    where e.run_id = source and e.name = 'fork:' || fork and e.child_run_id = fork
      and e.metadata ->> 'through_step' is not distinct from find_fork.through_step
      and (e.metadata ->> 'asked_seq')::bigint is not distinct from find_fork.through_seq
      and coalesce(find_fork.input = r.input, find_fork.input is null))
  then
    perform tidebase_private.raise('TB006', format('run %L exists, and is not this fork', fork),
      jsonb_build_object('run_id', fork, 'source_run_id', source, 'through_step', through_step, 'through_seq', through_seq),
      'Use another new_run_id.');
  end if;
  return fork;
end
$$;
COMMENT ON FUNCTION tidebase_private.find_fork(source text, fork text, through_step text, through_seq bigint, input jsonb) IS 'The fork that the very same call made before. Errors: TB006.';
CREATE TABLE tidebase.events (
    run_id text NOT NULL,
    seq bigint NOT NULL,
    created_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    type text NOT NULL,
    payload jsonb NOT NULL,
    request_id text,
    CONSTRAINT event_seq_starts_at_one CHECK ((seq >= 1))
)
WITH (autovacuum_vacuum_scale_factor='0.05', autovacuum_analyze_scale_factor='0.05', toast.autovacuum_vacuum_scale_factor='0.05');
COMMENT ON TABLE tidebase.events IS 'The log of a run: 1..n, append-only, no gap. The seq comes from the head row, so row-lock order = commit order = seq order.';
COMMENT ON COLUMN tidebase.events.request_id IS 'The id of the append_event call, so that the call can be repeated when its answer was lost.';
CREATE FUNCTION tidebase_private.find_request(run_id text, request_id text, types text[] DEFAULT NULL::text[]) RETURNS tidebase.events
    LANGUAGE plpgsql STABLE
    AS $$
declare
  earlier tidebase.events;
begin
  select e.* into earlier from tidebase.events e
  where e.run_id = find_request.run_id and e.request_id = find_request.request_id;
  if found and not coalesce(earlier.type = any (types), not tidebase_private.is_reserved(earlier.type)) then
    perform tidebase_private.raise_invalid('request_id', 'must be new: another call of this run was made with it');
  end if;
  return earlier;
end
$$;
COMMENT ON FUNCTION tidebase_private.find_request(run_id text, request_id text, types text[]) IS 'The event of the call that was made with this request_id; a row of NULLs if there is none. types: what such a call writes; NULL: events of one''s own. Errors: TB002 (it was a call of another kind).';
CREATE FUNCTION tidebase_private.find_version(run_id text, stream text, version integer DEFAULT NULL::integer, at timestamp with time zone DEFAULT NULL::timestamp with time zone, seq bigint DEFAULT NULL::bigint, label text DEFAULT NULL::text) RETURNS integer
    LANGUAGE plpgsql STABLE
    AS $$
declare
  chosen integer := version;
begin
  if label is not null then
    chosen := (
      select v.version from tidebase.state_versions v
      where v.run_id = find_version.run_id and v.stream = find_version.stream and v.label = find_version.label
      order by v.version desc limit 1);
  elsif at is not null or seq is not null then
    chosen := tidebase_private.version_at(run_id, stream, at, seq);
  elsif version is null then
    chosen := (tidebase_private.last_version(run_id, stream)).version;
  end if;
  if not exists (
    select from tidebase.state_versions v
    where v.run_id = find_version.run_id and v.stream = find_version.stream and v.version = chosen)
  then
    perform tidebase_private.raise_no_state(run_id, stream, case
      when version is not null then format(' at version %s', version)
      when label is not null then format(' with label %L', label)
      when at is not null then format(' at %s', at)
      when seq is not null then format(' at event %s', seq)
      else ''
    end);
  end if;
  return chosen;
end
$$;
COMMENT ON FUNCTION tidebase_private.find_version(run_id text, stream text, version integer, at timestamp with time zone, seq bigint, label text) IS 'The version that is meant: by number, time, event, label, or the newest. Errors: TB001, TB012.';
CREATE FUNCTION tidebase_private.flush_what_was_read(run_id text, seq bigint) RETURNS void
    LANGUAGE plpgsql
    AS $$
begin
  if pg_is_in_recovery()
    or seq <= (select h.durable_seq from tidebase.run_heads h where h.run_id = flush_what_was_read.run_id)
    or pg_current_wal_flush_lsn() >= pg_current_wal_insert_lsn()
  then
    return;
  end if;
  perform tidebase_private.commit_durably();
  perform pg_logical_emit_message(true, 'tidebase', '');  -- a record to commit, and with it a flush of all before it
end
$$;
COMMENT ON FUNCTION tidebase_private.flush_what_was_read(run_id text, seq bigint) IS 'Lets this transaction''s commit wait until the event with this number is on disk, where it may not be yet.';
CREATE FUNCTION tidebase_private.forget(run_ids text[]) RETURNS void
    LANGUAGE plpgsql
    AS $$
begin
  delete from tidebase.edges t where t.run_id = any (run_ids) or t.child_run_id = any (run_ids);
  delete from tidebase.deliveries t where t.run_id = any (run_ids);
  delete from tidebase.recoveries t where t.run_id = any (run_ids);
  delete from tidebase.reviews t where t.run_id = any (run_ids);
  delete from tidebase.gate_votes t where t.run_id = any (run_ids);
  delete from tidebase.gates t where t.run_id = any (run_ids);
  delete from tidebase.usage t where t.run_id = any (run_ids);
  delete from tidebase.accounts t where t.run_id = any (run_ids);
  delete from tidebase.state_versions t where t.run_id = any (run_ids);
  delete from tidebase.state_streams t where t.run_id = any (run_ids);
  delete from tidebase.events t where t.run_id = any (run_ids);
  delete from tidebase.steps t where t.run_id = any (run_ids);
  delete from tidebase.attempts t where t.run_id = any (run_ids);
  delete from tidebase.run_heads t where t.run_id = any (run_ids);
  delete from tidebase.runs t where t.run_id = any (run_ids);
end
$$;
COMMENT ON FUNCTION tidebase_private.forget(run_ids text[]) IS 'Deletes runs with everything that hangs on them. The caller holds the locks of their heads.';
CREATE FUNCTION tidebase_private.fork_point(head tidebase.run_heads, through_step text, through_seq bigint) RETURNS bigint
    LANGUAGE plpgsql STABLE
    AS $$
declare
  step tidebase.steps;
begin
  if num_nonnulls(through_step, through_seq) > 1 then
    perform tidebase_private.raise_invalid('through_step and through_seq', 'must not be combined');
  elsif through_seq not between 0 and head.last_seq then
    perform tidebase_private.raise_invalid('through_seq', format('must be a number from 0 to %s, the run''s last event', head.last_seq));
  elsif through_step is null then
    return coalesce(through_seq, head.last_seq);
  end if;
  select s.* into step from tidebase.steps s where s.run_id = head.run_id and s.name = through_step;
  if step.completed_seq is null then
    perform tidebase_private.raise('TB007', format('step %L of run %L is %s', through_step, head.run_id, coalesce(step.status, 'not begun')),
      jsonb_build_object('run_id', head.run_id, 'step', through_step, 'status', step.status),
      'A run can be forked behind a step that is completed; see step_timeline.');
  end if;
  return step.completed_seq;
end
$$;
COMMENT ON FUNCTION tidebase_private.fork_point(head tidebase.run_heads, through_step text, through_seq bigint) IS 'The seq up to which a fork takes over what the source has. Errors: TB002, TB007.';
CREATE FUNCTION tidebase_private.full_state(stored tidebase.state_versions, with_value boolean DEFAULT true) RETURNS tidebase.state
    LANGUAGE sql STABLE
    AS $$
  select row(stored.stream, stored.version,
    case when with_value then (tidebase_private.read_version(stored.run_id, stored.stream, stored.version)).value end,
    stored.operation, stored.importance, stored.label, stored.reason, stored.created_by, coalesce(stored.metadata, '{}'),
    stored.seq, stored.created_at)::tidebase.state;
$$;
COMMENT ON FUNCTION tidebase_private.full_state(stored tidebase.state_versions, with_value boolean) IS 'A version as its readers get it.';
CREATE FUNCTION tidebase_private.gate_secret(run_id text, name text) RETURNS text
    LANGUAGE sql
    AS $$
  select 'gate_' || encode(tidebase_private.hmac(
    convert_to('gate:' || octet_length(run_id) || ':' || run_id || ':' || name, 'UTF8')), 'hex');
$$;
COMMENT ON FUNCTION tidebase_private.gate_secret(run_id text, name text) IS 'What entitles its bearer to decide the gate.';
CREATE FUNCTION tidebase_private.give_back(head tidebase.run_heads, events integer, checkpoints integer DEFAULT 0) RETURNS void
    LANGUAGE plpgsql
    AS $$
begin
  update tidebase.run_heads h
  set last_seq = h.last_seq - events,
      durable_seq = least(h.durable_seq, h.last_seq - events),
      steps_completed = h.steps_completed - checkpoints
  where h.run_id = head.run_id;
end
$$;
COMMENT ON FUNCTION tidebase_private.give_back(head tidebase.run_heads, events integer, checkpoints integer) IS 'Returns numbers that fence() took in this transaction and that turned out not to be needed: nobody has seen them.';
CREATE FUNCTION tidebase_private.hand_over(new_owner text) RETURNS void
    LANGUAGE plpgsql
    AS $$
declare
  object text;
  owner_oid oid := (select r.oid from pg_roles r where r.rolname = new_owner);
begin
  for object in
    select format('function %s', p.oid::regprocedure)
    from pg_proc p
    where p.pronamespace in ('tidebase'::regnamespace, 'tidebase_private'::regnamespace)
      and p.proowner <> owner_oid
    union all
    select format('%s %s', case c.relkind when 'v' then 'view' else 'table' end, c.oid::regclass)
    from pg_class c
    where c.relnamespace in ('tidebase'::regnamespace, 'tidebase_private'::regnamespace)
      and c.relkind in ('r', 'v')
      and c.relowner <> owner_oid
    union all
    select format('type %s', t.oid::regtype)
    from pg_type t
    join pg_class c on c.oid = t.typrelid and c.relkind = 'c'
    where t.typnamespace in ('tidebase'::regnamespace, 'tidebase_private'::regnamespace)
      and t.typowner <> owner_oid
    union all
    select format('schema %I', n.nspname)
    from pg_namespace n
    where n.nspname in ('tidebase', 'tidebase_private')
      and n.nspowner <> owner_oid
  loop
    execute format('alter %s owner to %I', object, new_owner);
  end loop;
end
$$;
COMMENT ON FUNCTION tidebase_private.hand_over(new_owner text) IS 'Makes a role the owner of everything in the two schemas: the functions are SECURITY DEFINER and run with its rights.';
CREATE FUNCTION tidebase_private.hash_input(input jsonb) RETURNS bytea
    LANGUAGE sql IMMUTABLE
    AS $$
  select sha256(convert_to(tidebase_private.canonical(coalesce(input, 'null')), 'UTF8'));
$$;
COMMENT ON FUNCTION tidebase_private.hash_input(input jsonb) IS 'SHA-256 of the canonical form of an input; SQL NULL counts as the JSON null.';
CREATE FUNCTION tidebase_private.hmac(message bytea) RETURNS bytea
    LANGUAGE plpgsql
    AS $$
declare
  key tidebase_private.gate_key;
  bytes bytea;
begin
  select k.* into key from tidebase_private.gate_key k;
  if not found then
    bytes := sha256(uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid()));
    insert into tidebase_private.gate_key (inner_pad, outer_pad)
    values (tidebase_private.xor_pad(bytes, 54), tidebase_private.xor_pad(bytes, 92))  -- 0x36 and 0x5c
    on conflict do nothing;
    select k.* into strict key from tidebase_private.gate_key k;
  end if;
  return sha256(key.outer_pad || sha256(key.inner_pad || message));
end
$$;
COMMENT ON FUNCTION tidebase_private.hmac(message bytea) IS 'HMAC-SHA256 of the message with the installation''s key.';
CREATE FUNCTION tidebase_private.install_roles(prefix text DEFAULT NULL::text) RETURNS text[]
    LANGUAGE plpgsql
    AS $$
declare
  wanted text;
  missing text[] := array[]::text[];
  owner text;
begin
  if prefix is not null then
    -- Roles of a former prefix lose their part.
    foreach wanted in array array['worker', 'approver', 'operator', 'reader'] loop
      wanted := tidebase_private.role_name(wanted);
      if exists (select from pg_roles where rolname = wanted) then
        perform tidebase_private.revoke_all(wanted);
      end if;
    end loop;
    insert into tidebase_private.settings (name, value) values ('role_prefix', prefix)
    on conflict on constraint settings_pkey do update set value = excluded.value;
  end if;
  foreach wanted in array array['owner', 'worker', 'approver', 'operator', 'reader'] loop
    wanted := tidebase_private.role_name(wanted);
    if not exists (select from pg_roles where rolname = wanted) then
      execute format('create role %I nologin', wanted);
      missing := missing || wanted;
    end if;
  end loop;
  owner := tidebase_private.role_name('owner');
  if not (select r.rolsuper from pg_roles r where r.rolname = current_user) then
    execute format('grant %I to %I', owner, current_user);  -- to give objects to a role one must be its member
  end if;
  execute format('grant create on schema tidebase, tidebase_private to %I', owner);
  perform tidebase_private.hand_over(owner);
  perform tidebase_private.apply_privileges();
  return missing;
end
$$;
COMMENT ON FUNCTION tidebase_private.install_roles(prefix text) IS 'Creates the five roles where they are missing (needs CREATEROLE), hands every object to the owner role and grants each role its part. prefix: what the roles are called, "tidebase" unless told. Returns the roles that it created. Safe to call again.';
CREATE FUNCTION tidebase_private.is_durable() RETURNS boolean
    LANGUAGE sql STABLE
    AS $$
  select current_setting('synchronous_commit') <> 'off';
$$;
COMMENT ON FUNCTION tidebase_private.is_durable() IS 'Whether this transaction''s commit waits for the flush, as it stands now.';
CREATE TABLE tidebase.accounts (
    run_id text NOT NULL,
    parent_run_id text,
    records bigint DEFAULT 0 NOT NULL,
    unpriced bigint DEFAULT 0 NOT NULL,
    input_tokens bigint DEFAULT 0 NOT NULL,
    cache_read_tokens bigint DEFAULT 0 NOT NULL,
    cache_write_tokens bigint DEFAULT 0 NOT NULL,
    output_tokens bigint DEFAULT 0 NOT NULL,
    reasoning_tokens bigint DEFAULT 0 NOT NULL,
    shared_tokens bigint DEFAULT 0 NOT NULL,
    token_limit bigint,
    cost_usd numeric DEFAULT 0 NOT NULL,
    shared_cost_usd numeric DEFAULT 0 NOT NULL,
    cost_limit_usd numeric,
    CONSTRAINT account_limits_are_not_negative CHECK (((token_limit >= 0) AND (cost_limit_usd >= (0)::numeric)))
)
WITH (fillfactor='70', autovacuum_vacuum_scale_factor='0.02', autovacuum_vacuum_threshold='1000');
COMMENT ON TABLE tidebase.accounts IS 'Running totals of what a run used, and what it may use: one row a run that recorded usage or has a budget, or is below one that has.';
COMMENT ON COLUMN tidebase.accounts.parent_run_id IS 'The parent whose budget also counts for this run.';
COMMENT ON COLUMN tidebase.accounts.unpriced IS 'How many records have no price in USD: the cost is that much too low.';
COMMENT ON COLUMN tidebase.accounts.shared_tokens IS 'Input and output tokens with those of the descendants; kept where there is a budget.';
COMMENT ON COLUMN tidebase.accounts.shared_cost_usd IS 'The cost with that of the descendants; kept where there is a budget.';
CREATE FUNCTION tidebase_private.is_exhausted(account tidebase.accounts) RETURNS boolean
    LANGUAGE sql IMMUTABLE
    AS $$
  select coalesce(account.shared_cost_usd >= account.cost_limit_usd, false)
    or coalesce(account.shared_tokens >= account.token_limit, false);
$$;
COMMENT ON FUNCTION tidebase_private.is_exhausted(account tidebase.accounts) IS 'Whether nothing is left of a budget.';
CREATE FUNCTION tidebase_private.is_live(head tidebase.run_heads) RETURNS boolean
    LANGUAGE sql
    AS $$
  select head.status = 'running' and head.lease_expires_at > clock_timestamp();
$$;
COMMENT ON FUNCTION tidebase_private.is_live(head tidebase.run_heads) IS 'Whether the run is leased and the lease has not run out, by the clock of this moment.';
CREATE FUNCTION tidebase_private.is_name(value text, max_bytes integer) RETURNS boolean
    LANGUAGE sql IMMUTABLE
    AS $$
  select value is not null and btrim(value) <> '' and octet_length(value) <= max_bytes;
$$;
COMMENT ON FUNCTION tidebase_private.is_name(value text, max_bytes integer) IS 'Whether a text can name something: not NULL, not blank, not too long for an index.';
CREATE FUNCTION tidebase_private.is_reserved(type text) RETURNS boolean
    LANGUAGE sql IMMUTABLE
    AS $$
  select type ~ '^(run|step|gate|timer|state|snapshot|usage|budget|child|recovery|queue|schedule|channel|delivery|tidebase)\.';
$$;
COMMENT ON FUNCTION tidebase_private.is_reserved(type text) IS 'Whether a type of event is one that only the functions write.';
CREATE FUNCTION tidebase_private.is_same(one jsonb, other jsonb) RETURNS boolean
    LANGUAGE sql IMMUTABLE
    AS $$
  select row(one)::record operator(pg_catalog.*=) row(other)::record;
$$;
COMMENT ON FUNCTION tidebase_private.is_same(one jsonb, other jsonb) IS 'Whether two values have the same image, the scale of numbers included.';
CREATE FUNCTION tidebase_private.is_taken(head tidebase.run_heads, request_id text) RETURNS boolean
    LANGUAGE sql
    AS $$
  select case head.status
    when 'completed' then true
    when 'review' then true
    when 'waiting' then not exists (
      select from tidebase.gates g
      where g.run_id = head.run_id and g.name = head.waiting_for and g.timeout_at <= clock_timestamp())
    when 'pending' then coalesce(head.available_at > clock_timestamp(), false)
    when 'running' then head.lease_expires_at > clock_timestamp() and not exists (
      select from tidebase.attempts a
      where a.run_id = head.run_id and a.attempt = head.attempt and a.request_id = is_taken.request_id)
    else false
  end;
$$;
COMMENT ON FUNCTION tidebase_private.is_taken(head tidebase.run_heads, request_id text) IS 'Whether acquire_run refuses the run; not when the very call that was granted the lease is made again.';
CREATE FUNCTION tidebase_private.lapse(head tidebase.run_heads) RETURNS void
    LANGUAGE plpgsql
    AS $$
begin
  perform tidebase_private.end_attempt(head, 'lapsed');
  update tidebase.run_heads h set status = 'pending', lease_expires_at = null where h.run_id = head.run_id;
  perform tidebase_private.emit(tidebase_private.advance(head.run_id), 'run.lapsed',
    jsonb_build_object('attempt', head.attempt, 'token', head.lease_token, 'holder', head.holder));
end
$$;
COMMENT ON FUNCTION tidebase_private.lapse(head tidebase.run_heads) IS 'Makes a run whose lease has run out pending. The caller holds the head''s lock.';
CREATE FUNCTION tidebase_private.last_of_type(run_id text, type text) RETURNS bigint
    LANGUAGE sql STABLE
    AS $$
  select e.seq from tidebase.events e
  where e.run_id = last_of_type.run_id and e.type = last_of_type.type
  order by e.seq desc limit 1;
$$;
COMMENT ON FUNCTION tidebase_private.last_of_type(run_id text, type text) IS 'The seq of the run''s newest event of a type: what a repeated call that ended an attempt returns.';
CREATE FUNCTION tidebase_private.last_states(run_id text) RETURNS TABLE(stream text, seq bigint, value jsonb)
    LANGUAGE sql STABLE
    AS $$
  select t.stream, (last).seq, (tidebase_private.read_version(t.run_id, t.stream, (last).version)).value
  from tidebase.state_streams t, lateral (select tidebase_private.last_version(t.run_id, t.stream) as last offset 0) v
  where t.run_id = last_states.run_id;
$$;
COMMENT ON FUNCTION tidebase_private.last_states(run_id text) IS 'The newest document of each stream of a run.';
CREATE FUNCTION tidebase_private.last_version(run_id text, stream text) RETURNS tidebase.state_versions
    LANGUAGE sql STABLE
    AS $$
  select v.* from tidebase.state_versions v
  where v.run_id = last_version.run_id and v.stream = last_version.stream
  order by v.version desc limit 1;
$$;
COMMENT ON FUNCTION tidebase_private.last_version(run_id text, stream text) IS 'The newest version of a stream; a row of NULLs when it has none.';
CREATE FUNCTION tidebase_private.lease_granted(head tidebase.run_heads) RETURNS tidebase.lease
    LANGUAGE plpgsql STABLE
    AS $$
declare
  answer tidebase.lease;
begin
  answer.outcome := 'granted';
  answer.token := head.lease_token;
  answer.attempt := head.attempt;
  answer.checkpoints := head.steps_completed;
  answer.holder := head.holder;
  answer.expires_at := head.lease_expires_at;
  select r.workflow, r.input, coalesce(earlier.traceparent, r.traceparent)
  into answer.workflow, answer.input, answer.traceparent
  from tidebase.runs r
  left join tidebase.attempts earlier on earlier.run_id = r.run_id and earlier.attempt = head.attempt - 1
  where r.run_id = head.run_id;
  return answer;
end
$$;
COMMENT ON FUNCTION tidebase_private.lease_granted(head tidebase.run_heads) IS 'The answer of acquire_run when the lease is granted.';
CREATE FUNCTION tidebase_private.lease_refused(head tidebase.run_heads) RETURNS tidebase.lease
    LANGUAGE plpgsql STABLE
    AS $$
declare
  run tidebase.runs;
  answer tidebase.lease;
begin
  answer.outcome := case head.status when 'running' then 'held' when 'pending' then 'waiting' else head.status end;
  answer.attempt := head.attempt;
  answer.checkpoints := head.steps_completed;
  answer.holder := head.holder;
  answer.expires_at := coalesce(head.lease_expires_at,
    (select g.timeout_at from tidebase.gates g where g.run_id = head.run_id and g.name = head.waiting_for),
    head.available_at);
  select r.* into run from tidebase.runs r where r.run_id = head.run_id;
  answer.workflow := run.workflow;
  answer.result := run.result;
  return answer;
end
$$;
COMMENT ON FUNCTION tidebase_private.lease_refused(head tidebase.run_heads) IS 'The answer of acquire_run when nothing is granted.';
CREATE FUNCTION tidebase_private.lock_head(run_id text) RETURNS tidebase.run_heads
    LANGUAGE plpgsql
    AS $$
declare
  head tidebase.run_heads;
begin
  select h.* into head from tidebase.run_heads h where h.run_id = lock_head.run_id for no key update;
  if not found then
    perform tidebase_private.raise_run_not_found(run_id);
  end if;
  return head;
end
$$;
COMMENT ON FUNCTION tidebase_private.lock_head(run_id text) IS 'Takes the row lock of the run''s head. Errors: TB001.';
CREATE FUNCTION tidebase_private.look_at(head tidebase.run_heads, counts tidebase.reconciliation) RETURNS tidebase.reconciliation
    LANGUAGE plpgsql
    AS $$
declare
  gates integer;
  timers integer;
begin
  counts.runs := counts.runs + 1;
  if head.deadline_at <= clock_timestamp() and head.status not in ('completed', 'cancelled') then
    -- Its children have the same deadline and come up by themselves: reconcile never waits for a lock.
    perform tidebase_private.cancel_one(head, 'the deadline has passed', 'tidebase');
    counts.deadlines := counts.deadlines + 1;
    return counts;
  end if;
  select count(*) filter (where g.kind = 'gate')::integer, count(*) filter (where g.kind = 'timer')::integer into gates, timers
  from tidebase.gates g
  where g.run_id = head.run_id and g.status = 'pending' and g.timeout_at <= clock_timestamp();
  counts.gates := counts.gates + gates;
  counts.timers := counts.timers + timers;
  head := tidebase_private.settle_overdue(head);
  if head.status = 'running' and not tidebase_private.is_live(head) then
    perform tidebase_private.lapse(head);
    counts.leases := counts.leases + 1;
  end if;
  head := tidebase_private.lock_head(head.run_id);
  update tidebase.run_heads h set due_at = tidebase_private.next_due(head) where h.run_id = head.run_id;
  return counts;
end
$$;
COMMENT ON FUNCTION tidebase_private.look_at(head tidebase.run_heads, counts tidebase.reconciliation) IS 'Does for one run whatever time has brought. The caller holds the head''s lock.';
CREATE FUNCTION tidebase_private.may_begin_again(step tidebase.steps, lease_token bigint) RETURNS boolean
    LANGUAGE sql IMMUTABLE
    AS $$
  select step.status = 'failed' and step.decision <> 'fail_hard'
    or step.status = 'running' and step.lease_token <> lease_token
      and tidebase_private.decide_replay(step, may_retry => false) = 'safe_replay';
$$;
COMMENT ON FUNCTION tidebase_private.may_begin_again(step tidebase.steps, lease_token bigint) IS 'Whether a step may be executed again without asking anybody: it failed, or an earlier lease left it unfinished and its contract allows a repetition.';
CREATE FUNCTION tidebase_private.merge_patch(target jsonb, patch jsonb) RETURNS jsonb
    LANGUAGE plpgsql IMMUTABLE
    AS $$
declare
  change jsonb := tidebase_private.change_of_patch(target, patch);
begin
  return case when change is null then target else tidebase_private.apply_change(target, change) end;
end
$$;
COMMENT ON FUNCTION tidebase_private.merge_patch(target jsonb, patch jsonb) IS 'MergePatch(Target, Patch) of RFC 7396, section 2. A patch nested deeper than the server''s stack raises 54001.';
CREATE FUNCTION tidebase_private.new_run_id() RETURNS text
    LANGUAGE sql
    AS $$
  select 'run_' || encode(
    set_bit(set_bit(
      overlay(uuid_send(gen_random_uuid())
        placing substring(int8send((extract(epoch from clock_timestamp()) * 1000)::bigint) from 3) from 1 for 6),
      52, 1), 53, 1), 'hex')::uuid;
$$;
COMMENT ON FUNCTION tidebase_private.new_run_id() IS 'A fresh id: run_ and a UUIDv7.';
CREATE FUNCTION tidebase_private.next_due(head tidebase.run_heads) RETURNS timestamp with time zone
    LANGUAGE sql STABLE
    AS $$
  select case when head.status not in ('completed', 'cancelled') then least(
    case when head.lease_expires_at > clock_timestamp()
      then greatest(head.lease_expires_at, clock_timestamp() + interval '1 minute') end,
    head.deadline_at,
    (select min(g.timeout_at) from tidebase.gates g where g.run_id = head.run_id and g.status = 'pending'))
  end;
$$;
COMMENT ON FUNCTION tidebase_private.next_due(head tidebase.run_heads) IS 'The value of due_at for a run that was just looked at; NULL when there is nothing to wait for.';
CREATE FUNCTION tidebase_private.open(wanted tidebase.gates, token bigint) RETURNS tidebase.gate_opening
    LANGUAGE plpgsql
    AS $$
declare
  head tidebase.run_heads;
  gate tidebase.gates;
  created boolean;
  moment timestamptz;
begin
  perform tidebase_private.commit_durably();
  head := tidebase_private.fence(wanted.run_id, token, 1);
  perform tidebase_private.require_time_left(head);
  moment := clock_timestamp();  -- the time runs from here, not from before the wait for the lock
  wanted.timeout_at := moment + (wanted.timeout_at - wanted.created_at);
  wanted.created_at := moment;
  insert into tidebase.gates select (wanted).* on conflict on constraint gates_pkey do nothing;
  created := found;
  if created then
    update tidebase.run_heads h set due_at = least(h.due_at, wanted.timeout_at) where h.run_id = wanted.run_id;
    perform tidebase_private.emit(head, wanted.kind || case wanted.kind when 'timer' then '.started' else '.created' end,
      case wanted.kind
        when 'timer' then jsonb_build_object('name', wanted.name, 'fires_at', wanted.timeout_at)
        else jsonb_build_object('name', wanted.name, 'prompt', wanted.prompt, 'data', wanted.data,
          'options', wanted.options, 'timeout_at', wanted.timeout_at, 'required', wanted.required_approvals)
      end);
  else
    perform tidebase_private.give_back(head, 1);
  end if;
  select g.* into strict gate from tidebase.gates g where g.run_id = wanted.run_id and g.name = wanted.name;
  if gate.kind <> wanted.kind or gate.shown_hash <> wanted.shown_hash then
    perform tidebase_private.raise('TB006', format('%s %L of run %L was opened with another prompt or other data',
        gate.kind, gate.name, gate.run_id),
      jsonb_build_object('run_id', gate.run_id, 'gate', gate.name, 'status', gate.status),
      'A decision holds for what was shown. Give the question another name.');
  end if;
  gate := tidebase_private.settle_if_overdue(gate);
  return row(gate.status, gate.decision, gate.payload, gate.comment, gate.actor, gate.decided_at, gate.decided_by, gate.timeout_at,
    case when gate.kind = 'gate' then tidebase_private.gate_secret(gate.run_id, gate.name) end, created)::tidebase.gate_opening;
end
$$;
COMMENT ON FUNCTION tidebase_private.open(wanted tidebase.gates, token bigint) IS 'What open_gate and start_timer share.';
CREATE FUNCTION tidebase_private.open_account(run_id text, budget jsonb DEFAULT NULL::jsonb, parent_run_id text DEFAULT NULL::text) RETURNS void
    LANGUAGE sql
    AS $$
  insert into tidebase.accounts (run_id, parent_run_id, cost_limit_usd, token_limit)
  values (open_account.run_id, open_account.parent_run_id, (budget ->> 'cost_usd')::numeric, (budget ->> 'tokens')::numeric::bigint)
  on conflict on constraint accounts_pkey do update
  set parent_run_id = coalesce(excluded.parent_run_id, accounts.parent_run_id);
$$;
COMMENT ON FUNCTION tidebase_private.open_account(run_id text, budget jsonb, parent_run_id text) IS 'Makes a run''s account, or hangs the one it has below its parent''s.';
CREATE FUNCTION tidebase_private.open_review(run_id text, name text, attempt integer, cause text) RETURNS void
    LANGUAGE plpgsql
    AS $$
begin
  update tidebase.steps s set status = 'review', decision = coalesce(s.decision, 'manual_review')
  where s.run_id = open_review.run_id and s.name = open_review.name;
  insert into tidebase.reviews (run_id, step, attempt, cause) values (run_id, name, attempt, cause);
  perform tidebase_private.emit(tidebase_private.advance(run_id), 'step.review',
    jsonb_build_object('name', name, 'attempt', attempt, 'cause', cause));
end
$$;
COMMENT ON FUNCTION tidebase_private.open_review(run_id text, name text, attempt integer, cause text) IS 'Puts a step into review; cause: crash (it was begun and neither completed nor failed) or error. The caller holds the head''s lock.';
CREATE FUNCTION tidebase_private.outcome_of(gate tidebase.gates) RETURNS jsonb
    LANGUAGE sql IMMUTABLE
    AS $$
  select case when gate.status = 'decided' then jsonb_build_object('decision', gate.decision, 'payload', gate.payload) end;
$$;
COMMENT ON FUNCTION tidebase_private.outcome_of(gate tidebase.gates) IS 'What came of a gate or a timer; NULL while nothing did.';
CREATE FUNCTION tidebase_private.park(head tidebase.run_heads, name text) RETURNS void
    LANGUAGE plpgsql
    AS $$
begin
  perform tidebase_private.end_attempt(head, 'released');
  update tidebase.run_heads h set status = 'review', lease_expires_at = null where h.run_id = head.run_id;
  perform tidebase_private.emit(tidebase_private.advance(head.run_id), 'run.review', jsonb_build_object('name', name));
end
$$;
COMMENT ON FUNCTION tidebase_private.park(head tidebase.run_heads, name text) IS 'Ends the attempt and puts the run into review. The caller holds the head''s lock.';
CREATE FUNCTION tidebase_private.raise(code text, message text, detail jsonb, hint text) RETURNS void
    LANGUAGE plpgsql
    AS $$
begin
  raise exception using errcode = code, message = message, detail = detail::text, hint = hint;
end
$$;
COMMENT ON FUNCTION tidebase_private.raise(code text, message text, detail jsonb, hint text) IS 'Raises a Tidebase error: SQLSTATE, message, DETAIL as one JSON object, HINT.';
CREATE FUNCTION tidebase_private.raise_fenced(run_id text, token bigint) RETURNS void
    LANGUAGE plpgsql
    AS $$
declare
  head tidebase.run_heads;
  detail jsonb;
begin
  select h.* into head from tidebase.run_heads h where h.run_id = raise_fenced.run_id;
  if not found then
    perform tidebase_private.raise_run_not_found(run_id);
  end if;
  detail := jsonb_build_object('run_id', run_id, 'status', head.status, 'token', token,
    'current_token', head.lease_token, 'holder', head.holder);
  if head.status = 'cancelled' then
    perform tidebase_private.raise('TB004', format('run %L is cancelled', run_id), detail, 'Stop working on it: a cancelled run stays cancelled.');
  elsif token is distinct from head.lease_token then
    perform tidebase_private.raise('TB003', format('the lease of run %L is lost: token %s is not the current one', run_id, coalesce(token::text, 'NULL')),
      detail, 'Stop working on the run; acquire_run grants a new lease when the present one has run out.');
  elsif head.status = 'completed' then
    perform tidebase_private.raise('TB005', format('run %L is completed', run_id), detail, 'A completed run does not change any more.');
  else
    perform tidebase_private.raise('TB003', format('the lease of run %L was given up: the run is %s', run_id, head.status),
      detail, 'Call acquire_run to go on with the run.');
  end if;
end
$$;
COMMENT ON FUNCTION tidebase_private.raise_fenced(run_id text, token bigint) IS 'Raises TB001, TB003, TB004 or TB005: why a write with this token is refused.';
CREATE FUNCTION tidebase_private.raise_gate_not_found(run_id text, name text) RETURNS void
    LANGUAGE plpgsql
    AS $$
begin
  perform tidebase_private.raise('TB012', format('run %L has no gate %L', run_id, name),
    jsonb_build_object('run_id', run_id, 'gate', name), 'Gates are made by open_gate; see list_gates.');
end
$$;
COMMENT ON FUNCTION tidebase_private.raise_gate_not_found(run_id text, name text) IS 'Raises TB012.';
CREATE FUNCTION tidebase_private.raise_invalid(parameter text, rule text) RETURNS void
    LANGUAGE plpgsql
    AS $$
begin
  perform tidebase_private.raise('TB002', format('%s %s', parameter, rule),
    jsonb_build_object('parameter', parameter, 'rule', rule), format('Call again with another %s.', parameter));
end
$$;
COMMENT ON FUNCTION tidebase_private.raise_invalid(parameter text, rule text) IS 'Raises TB002: the parameter breaks the rule, e.g. "name must not be empty".';
CREATE FUNCTION tidebase_private.raise_no_state(run_id text, stream text, which text) RETURNS void
    LANGUAGE plpgsql
    AS $$
begin
  if not exists (select from tidebase.run_heads h where h.run_id = raise_no_state.run_id) then
    perform tidebase_private.raise_run_not_found(run_id);
  end if;
  perform tidebase_private.raise('TB012', format('run %L has no state in stream %L%s', run_id, stream, which),
    jsonb_build_object('run_id', run_id, 'stream', stream), 'State is made by set_state or patch_state; see list_state_versions.');
end
$$;
COMMENT ON FUNCTION tidebase_private.raise_no_state(run_id text, stream text, which text) IS 'Raises TB001 or TB012; which: e.g. " at version 7".';
CREATE FUNCTION tidebase_private.raise_not_running(run_id text, token bigint, name text) RETURNS void
    LANGUAGE plpgsql
    AS $$
declare
  step tidebase.steps;
begin
  select s.* into step from tidebase.steps s where s.run_id = raise_not_running.run_id and s.name = raise_not_running.name;
  perform tidebase_private.raise('TB007', format('step %L of run %L is %s', name, run_id, case
      when step.name is null then 'not begun'
      when step.status = 'running' and step.lease_token <> token then 'not begun under this lease'
      when step.status = 'completed' then 'completed already'
      else step.status end),
    jsonb_build_object('run_id', run_id, 'step', name, 'status', step.status, 'lease_token', step.lease_token),
    'Call begin_step and do what it says.');
end
$$;
COMMENT ON FUNCTION tidebase_private.raise_not_running(run_id text, token bigint, name text) IS 'Raises TB007: the step cannot be completed or failed now.';
CREATE FUNCTION tidebase_private.raise_other_input(step tidebase.steps, given bytea) RETURNS void
    LANGUAGE plpgsql
    AS $$
begin
  perform tidebase_private.raise('TB006', format('step %L of run %L was begun with another input', step.name, step.run_id),
    jsonb_build_object('run_id', step.run_id, 'step', step.name, 'status', step.status,
      'input_hash', encode(step.input_hash, 'hex'), 'given_hash', encode(given, 'hex')),
    'Give the step its first input, or another name (or key) if it is another piece of work.');
end
$$;
COMMENT ON FUNCTION tidebase_private.raise_other_input(step tidebase.steps, given bytea) IS 'Raises TB006 for a step.';
CREATE FUNCTION tidebase_private.raise_run_not_found(run_id text) RETURNS void
    LANGUAGE plpgsql
    AS $$
begin
  perform tidebase_private.raise('TB001', format('run %s does not exist', coalesce(quote_literal(left(run_id, 255)), 'NULL')),
    jsonb_build_object('run_id', left(run_id, 255)), 'Create it with create_run, or check the id.');
end
$$;
COMMENT ON FUNCTION tidebase_private.raise_run_not_found(run_id text) IS 'Raises TB001.';
CREATE FUNCTION tidebase_private.read_version(run_id text, stream text, version integer, base integer DEFAULT NULL::integer, OUT value jsonb, OUT since_base jsonb) RETURNS record
    LANGUAGE plpgsql STABLE
    AS $$
declare
  stored tidebase.state_versions;
  change jsonb;
begin
  loop
    select v.* into strict stored from tidebase.state_versions v
    where v.run_id = read_version.run_id and v.stream = read_version.stream and v.version = coalesce(stored.base, read_version.version);
    if stored.version = base then
      since_base := change;
    end if;
    exit when stored.base is null;
    change := tidebase_private.compose_changes(stored.content, change);
  end loop;
  value := case when change is null then stored.content else tidebase_private.apply_change(stored.content, change) end;
end
$$;
COMMENT ON FUNCTION tidebase_private.read_version(run_id text, stream text, version integer, base integer, OUT value jsonb, OUT since_base jsonb) IS 'The document at a version, and what changed in it since the version `base`. Reads as many rows as the distance to the keyframe has one-bits.';
CREATE FUNCTION tidebase_private.relatives(run_ids text[]) RETURNS TABLE(run_id text, relative text, status text, finished_at timestamp with time zone)
    LANGUAGE sql STABLE
    AS $$
  select e.mine, h.run_id, h.status, r.finished_at
  from (
    select c.run_id as mine, c.child_run_id as other from tidebase.edges c
    where c.run_id = any (relatives.run_ids) and c.edge_type <> 'fork'
    union all
    select p.child_run_id, p.run_id from tidebase.edges p
    where p.child_run_id = any (relatives.run_ids) and p.edge_type <> 'fork') e
  join tidebase.run_heads h on h.run_id = e.other
  join tidebase.runs r on r.run_id = e.other
  where h.status not in ('completed', 'cancelled');
$$;
COMMENT ON FUNCTION tidebase_private.relatives(run_ids text[]) IS 'Parents and children of runs, as far as they may still go on.';
CREATE FUNCTION tidebase_private.require_budget(budget jsonb) RETURNS void
    LANGUAGE plpgsql
    AS $$
begin
  if budget is null then
    return;
  elsif jsonb_typeof(budget) <> 'object' then
    perform tidebase_private.raise_invalid('budget', 'must be a JSON object');
  elsif budget - array['cost_usd', 'tokens'] <> '{}' then
    perform tidebase_private.raise_invalid('budget', 'must have no other members than cost_usd and tokens');
  elsif exists (select from jsonb_each(budget) b where jsonb_typeof(b.value) not in ('number', 'null')) then
    perform tidebase_private.raise_invalid('budget', 'must have numbers');
  elsif (budget ->> 'cost_usd')::numeric not between 0 and 1e12 or (budget ->> 'tokens')::numeric not between 0 and 1e18
    or (budget ->> 'tokens')::numeric % 1 <> 0
  then
    perform tidebase_private.raise_invalid('budget', 'must have a cost_usd from 0 to 1e12, and a whole number of tokens from 0 to 1e18');
  end if;
end
$$;
COMMENT ON FUNCTION tidebase_private.require_budget(budget jsonb) IS 'Raises TB002 unless it is NULL or {"cost_usd": number, "tokens": number}.';
CREATE FUNCTION tidebase_private.require_contract(side_effects text[], idempotency_key text, replay text, checkpoint_invariant text, verified_by text, credentials text[], retries integer, retry_delay interval, retry_max_delay interval, timeout interval) RETURNS void
    LANGUAGE plpgsql
    AS $$
begin
  if array_ndims(side_effects) > 1 or array_ndims(credentials) > 1 then
    perform tidebase_private.raise_invalid('side_effects and credentials', 'must be lists, not lists of lists');
  elsif array_position(side_effects, null) is not null or '' = any (side_effects) then
    perform tidebase_private.raise_invalid('side_effects', 'must not contain NULL or an empty text');
  elsif array_position(credentials, null) is not null or '' = any (credentials) then
    perform tidebase_private.raise_invalid('credentials', 'must not contain NULL or an empty text');
  elsif '' in (idempotency_key, checkpoint_invariant, verified_by) then
    perform tidebase_private.raise_invalid('idempotency_key, checkpoint_invariant and verified_by', 'must not be empty');
  elsif replay not in ('auto', 'manual', 'never') then
    perform tidebase_private.raise_invalid('replay', 'must be auto, manual or never');
  elsif retries not between 0 and 1000 then
    perform tidebase_private.raise_invalid('retries', 'must be a number from 0 to 1000');
  end if;
  perform tidebase_private.require_interval(coalesce(retry_delay, '1 second'), 'retry_delay', '0', '1 day');
  perform tidebase_private.require_interval(coalesce(retry_max_delay, '5 minutes'), 'retry_max_delay', '0', '30 days');
  perform tidebase_private.require_interval(coalesce(timeout, '1 day'), 'timeout', '1 millisecond', '365 days');
end
$$;
COMMENT ON FUNCTION tidebase_private.require_contract(side_effects text[], idempotency_key text, replay text, checkpoint_invariant text, verified_by text, credentials text[], retries integer, retry_delay interval, retry_max_delay interval, timeout interval) IS 'Raises TB002 when a part of the resume contract makes no sense.';
CREATE FUNCTION tidebase_private.require_funds(head tidebase.run_heads) RETURNS void
    LANGUAGE plpgsql
    AS $$
declare
  account tidebase.accounts;
begin
  loop
    select a.* into account from tidebase.accounts a where a.run_id = coalesce(account.parent_run_id, head.run_id);
    if tidebase_private.is_exhausted(account) then
      perform tidebase_private.raise('TB010', format('the budget of run %L is used up: %s', account.run_id, concat_ws(' and ',
          case when account.shared_cost_usd >= account.cost_limit_usd
            then format('%s of %s USD', account.shared_cost_usd, account.cost_limit_usd) end,
          case when account.shared_tokens >= account.token_limit
            then format('%s of %s tokens', account.shared_tokens, account.token_limit) end)),
        jsonb_build_object('run_id', head.run_id, 'budget_run_id', account.run_id, 'cost_usd', account.shared_cost_usd,
          'cost_limit_usd', account.cost_limit_usd, 'tokens', account.shared_tokens, 'token_limit', account.token_limit),
        'An operator may raise it with set_budget; then resume the run.');
    end if;
    exit when account.parent_run_id is null;
  end loop;
end
$$;
COMMENT ON FUNCTION tidebase_private.require_funds(head tidebase.run_heads) IS 'Raises TB010 when the run''s budget, or one that it shares, is used up. Costs one read a level.';
CREATE FUNCTION tidebase_private.require_interval(value interval, parameter text, lowest interval, highest interval) RETURNS void
    LANGUAGE plpgsql
    AS $$
begin
  if value is null or value < lowest or value > highest then
    perform tidebase_private.raise_invalid(parameter, format('must be an interval from %s to %s', lowest, highest));
  end if;
end
$$;
COMMENT ON FUNCTION tidebase_private.require_interval(value interval, parameter text, lowest interval, highest interval) IS 'Raises TB002 unless the interval is within the bounds.';
CREATE FUNCTION tidebase_private.require_name(value text, parameter text, max_bytes integer) RETURNS void
    LANGUAGE plpgsql
    AS $$
begin
  if not tidebase_private.is_name(value, max_bytes) then
    perform tidebase_private.raise_invalid(parameter, format('must be a text of 1 to %s bytes that is not blank', max_bytes));
  end if;
end
$$;
COMMENT ON FUNCTION tidebase_private.require_name(value text, parameter text, max_bytes integer) IS 'Raises TB002 unless the text can name something.';
CREATE FUNCTION tidebase_private.require_state_options(stream text, label text, importance text, metadata jsonb, request_id text) RETURNS void
    LANGUAGE plpgsql
    AS $$
begin
  perform tidebase_private.require_name(stream, 'stream', 1024);
  if label is not null then
    perform tidebase_private.require_name(label, 'label', 1024);
  end if;
  if request_id is not null then
    perform tidebase_private.require_name(request_id, 'request_id', 255);
  end if;
  if starts_with(stream, 'snapshot:') then
    perform tidebase_private.raise_invalid('stream', 'must not begin with snapshot:, which marks the snapshots of targets');
  elsif importance not in ('transient', 'normal', 'checkpoint', 'milestone') then
    perform tidebase_private.raise_invalid('importance', 'must be transient, normal, checkpoint or milestone');
  elsif jsonb_typeof(metadata) <> 'object' then
    perform tidebase_private.raise_invalid('metadata', 'must be a JSON object');
  end if;
end
$$;
COMMENT ON FUNCTION tidebase_private.require_state_options(stream text, label text, importance text, metadata jsonb, request_id text) IS 'Raises TB002 when what is said about a version makes no sense.';
CREATE FUNCTION tidebase_private.require_time_left(head tidebase.run_heads) RETURNS void
    LANGUAGE plpgsql
    AS $$
begin
  if head.deadline_at <= clock_timestamp() then
    perform tidebase_private.raise('TB004', format('the deadline of run %L has passed', head.run_id),
      jsonb_build_object('run_id', head.run_id, 'deadline_at', head.deadline_at),
      'Stop working on it: reconcile cancels it. A new run may be given more time.');
  end if;
end
$$;
COMMENT ON FUNCTION tidebase_private.require_time_left(head tidebase.run_heads) IS 'Raises TB004 when the run''s deadline has passed, whether or not reconcile has come round to cancelling it.';
CREATE FUNCTION tidebase_private.require_traceparent(traceparent text) RETURNS void
    LANGUAGE plpgsql IMMUTABLE
    AS $_$
begin
  if traceparent !~ '^[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$' then
    perform tidebase_private.raise_invalid('traceparent', 'must be as in W3C Trace Context: 00-<32 hex digits>-<16>-<2>');
  end if;
end
$_$;
COMMENT ON FUNCTION tidebase_private.require_traceparent(traceparent text) IS 'Raises TB002 unless it is NULL or a traceparent of W3C Trace Context (Recommendation of 2021, section 3.2).';
CREATE FUNCTION tidebase_private.require_usage(wanted tidebase.usage, request_id text) RETURNS void
    LANGUAGE plpgsql
    AS $_$
begin
  perform tidebase_private.require_name(wanted.kind, 'kind', 255);
  if request_id is not null then
    perform tidebase_private.require_name(request_id, 'request_id', 255);
  end if;
  if exists (
    select from unnest(array[wanted.response_id, wanted.step, wanted.provider, wanted.model, wanted.unit, wanted.label]) text
    where text is not null and not tidebase_private.is_name(text, 1024))
  then
    perform tidebase_private.raise_invalid('response_id, step, provider, model, unit and label',
      'must be texts of 1 to 1024 bytes that are not blank');
  end if;
  if least(wanted.input_tokens, wanted.cache_read_tokens, wanted.cache_write_tokens, wanted.output_tokens, wanted.reasoning_tokens) < 0
    or greatest(wanted.input_tokens, wanted.cache_read_tokens, wanted.cache_write_tokens, wanted.output_tokens, wanted.reasoning_tokens) > 1e12
  then
    perform tidebase_private.raise_invalid('numbers of tokens', 'must be from 0 to 1e12');
  elsif coalesce(wanted.cache_read_tokens, 0) + coalesce(wanted.cache_write_tokens, 0) > coalesce(wanted.input_tokens, 0) then
    perform tidebase_private.raise_invalid('input_tokens', 'must include those read from and written to the cache');
  elsif wanted.reasoning_tokens > coalesce(wanted.output_tokens, 0) then
    perform tidebase_private.raise_invalid('output_tokens', 'must include those for reasoning');
  elsif wanted.cost < 0 or wanted.cost > 1e12 or wanted.quantity < 0 or wanted.quantity > 1e24 then  -- also NaN and Infinity
    perform tidebase_private.raise_invalid('cost and quantity', 'must be numbers from 0 on');
  elsif wanted.currency !~ '^[A-Z]{3}$' then
    perform tidebase_private.raise_invalid('currency', 'must be a code of ISO 4217, such as USD');
  elsif jsonb_typeof(wanted.metadata) <> 'object' then
    perform tidebase_private.raise_invalid('metadata', 'must be a JSON object');
  end if;
end
$_$;
COMMENT ON FUNCTION tidebase_private.require_usage(wanted tidebase.usage, request_id text) IS 'Raises TB002 when a record of usage makes no sense.';
CREATE FUNCTION tidebase_private.retry_delay(tries integer, first interval, cap interval) RETURNS interval
    LANGUAGE sql
    AS $$
  select make_interval(secs => (0.5 + random() / 2) * least(
    extract(epoch from coalesce(cap, '5 minutes'))::float8,
    extract(epoch from coalesce(first, '1 second'))::float8 * power(2, least(tries - 1, 60))));
$$;
COMMENT ON FUNCTION tidebase_private.retry_delay(tries integer, first interval, cap interval) IS 'How long to wait after this many tries: first (1 second unless told), doubled each time, capped (5 minutes), at least half of it.';
CREATE FUNCTION tidebase_private.revoke_all(grantee text) RETURNS void
    LANGUAGE plpgsql
    AS $$
begin
  execute format('revoke all on all functions in schema tidebase, tidebase_private from %I', grantee);
  execute format('revoke all on all tables in schema tidebase, tidebase_private from %I', grantee);
  execute format('revoke all on schema tidebase, tidebase_private from %I', grantee);
end
$$;
COMMENT ON FUNCTION tidebase_private.revoke_all(grantee text) IS 'Takes away from a role whatever it may do in the two schemas.';
CREATE FUNCTION tidebase_private.role_name(audience text) RETURNS text
    LANGUAGE sql STABLE
    AS $$
  select coalesce((select value from tidebase_private.settings where name = 'role_prefix'), 'tidebase') || '_' || audience;
$$;
COMMENT ON FUNCTION tidebase_private.role_name(audience text) IS 'The name of the role for an audience, e.g. tidebase_worker.';
CREATE FUNCTION tidebase_private.settle_gate(gate tidebase.gates, decision text, payload jsonb, comment text, actor text, decided_by text, request_id text DEFAULT NULL::text) RETURNS tidebase.gates
    LANGUAGE plpgsql
    AS $$
declare
  head tidebase.run_heads := tidebase_private.advance(gate.run_id);
  settled tidebase.gates;
begin
  update tidebase.gates g
  set status = 'decided', decision = settle_gate.decision, payload = settle_gate.payload, comment = settle_gate.comment,
      actor = settle_gate.actor, decided_by = settle_gate.decided_by, request_id = settle_gate.request_id,
      decided_at = clock_timestamp()
  where g.run_id = gate.run_id and g.name = gate.name
  returning g.* into settled;
  if head.status = 'waiting' and head.waiting_for = gate.name then
    update tidebase.run_heads h set status = 'pending', waiting_for = null where h.run_id = gate.run_id;
  end if;
  if gate.kind = 'timer' then
    perform tidebase_private.emit(head, 'timer.fired', jsonb_build_object('name', gate.name));
  else
    perform tidebase_private.emit(head, 'gate.resolved', jsonb_build_object('name', gate.name, 'decision', decision,
      'payload', payload, 'comment', comment, 'actor', actor, 'by', decided_by));
  end if;
  return settled;
end
$$;
COMMENT ON FUNCTION tidebase_private.settle_gate(gate tidebase.gates, decision text, payload jsonb, comment text, actor text, decided_by text, request_id text) IS 'Decides a pending gate. The caller holds the head''s lock and has seen the gate pending under it.';
CREATE FUNCTION tidebase_private.settle_if_overdue(gate tidebase.gates) RETURNS tidebase.gates
    LANGUAGE plpgsql
    AS $$
begin
  if gate.status = 'pending' and gate.timeout_at <= clock_timestamp() then
    return tidebase_private.settle_gate(gate, gate.default_decision, null, null, null, 'timeout');
  end if;
  return gate;
end
$$;
COMMENT ON FUNCTION tidebase_private.settle_if_overdue(gate tidebase.gates) IS 'The gate, with its default decision if its time is over. The caller holds the head''s lock.';
CREATE FUNCTION tidebase_private.settle_overdue(head tidebase.run_heads) RETURNS tidebase.run_heads
    LANGUAGE plpgsql
    AS $$
declare
  gate tidebase.gates;
begin
  for gate in
    select g.* from tidebase.gates g
    where g.run_id = head.run_id and g.status = 'pending' and g.timeout_at <= clock_timestamp()
    order by g.timeout_at, g.name
  loop
    perform tidebase_private.settle_if_overdue(gate);
  end loop;
  return tidebase_private.lock_head(head.run_id);
end
$$;
COMMENT ON FUNCTION tidebase_private.settle_overdue(head tidebase.run_heads) IS 'Decides the overdue gates and timers of a run. The caller holds the head''s lock.';
CREATE FUNCTION tidebase_private.share_budget(run_id text) RETURNS void
    LANGUAGE plpgsql
    AS $$
declare
  child record;
  head tidebase.run_heads;
begin
  perform tidebase_private.open_account(run_id);
  update tidebase.run_heads h set has_budget = true where h.run_id = share_budget.run_id;
  for child in
    select e.child_run_id as id from tidebase.edges e
    where e.run_id = share_budget.run_id and e.edge_type <> 'fork'
    order by e.child_run_id
  loop
    head := tidebase_private.lock_head(child.id);
    if not head.has_budget then
      perform tidebase_private.share_budget(child.id);
    end if;
    perform tidebase_private.open_account(child.id, parent_run_id => run_id);
  end loop;
  update tidebase.accounts a
  set (shared_tokens, shared_cost_usd) = (
    select a.input_tokens + a.output_tokens + coalesce(sum(c.shared_tokens), 0), a.cost_usd + coalesce(sum(c.shared_cost_usd), 0)
    from tidebase.accounts c
    where c.run_id in (select e.child_run_id from tidebase.edges e where e.run_id = a.run_id and e.edge_type <> 'fork'))
  where a.run_id = share_budget.run_id;
end
$$;
COMMENT ON FUNCTION tidebase_private.share_budget(run_id text) IS 'Gives a run and its descendants accounts that hang together. The caller holds the head''s lock.';
CREATE FUNCTION tidebase_private.snapshot_stream(target_type text, target_id text) RETURNS text
    LANGUAGE sql IMMUTABLE
    AS $$
  select 'snapshot:' || jsonb_build_array(target_type, target_id)::text;
$$;
COMMENT ON FUNCTION tidebase_private.snapshot_stream(target_type text, target_id text) IS 'The stream that keeps the snapshots of a target: one a type and id, whatever characters they have.';
CREATE FUNCTION tidebase_private.standing(gate tidebase.gates, accepted boolean) RETURNS tidebase.gate_decision
    LANGUAGE sql STABLE
    AS $$
  select row(standing.accepted, gate.status, gate.decision, gate.payload, gate.comment, gate.actor, gate.decided_at,
    case when gate.required_approvals = 1 then (gate.status = 'decided')::integer
      else coalesce((select count(*)::integer from tidebase.gate_votes v
        where v.run_id = gate.run_id and v.name = gate.name
        group by v.decision order by count(*) desc limit 1), 0) end,
    gate.required_approvals)::tidebase.gate_decision;
$$;
COMMENT ON FUNCTION tidebase_private.standing(gate tidebase.gates, accepted boolean) IS 'What stands at a gate, as an answer of decide_gate.';
CREATE FUNCTION tidebase_private.store_version(wanted tidebase.state_versions, last tidebase.state_versions, value jsonb, change jsonb, since_base jsonb) RETURNS void
    LANGUAGE plpgsql
    AS $$
begin
  wanted.version := coalesce(last.version, 0) + 1;
  if last.version is not null then
    wanted.keyframe := last.keyframe;
    wanted.base := tidebase_private.base_of(wanted.version, last.keyframe);
    wanted.content := coalesce(tidebase_private.compose_changes(since_base, change), '{}');
    wanted.group_bytes := last.group_bytes + pg_column_size(wanted.content);
  end if;
  if last.version is null or wanted.group_bytes > greatest(pg_column_size(value), 2048) then
    wanted.keyframe := wanted.version;
    wanted.base := null;
    wanted.content := case when change is null then value else tidebase_private.apply_change(value, change) end;
    wanted.group_bytes := 0;
  end if;
  wanted.created_at := clock_timestamp();
  wanted.importance := coalesce(wanted.importance, 'normal');
  wanted.created_by := coalesce(wanted.created_by, tidebase_private.caller());
  insert into tidebase.state_versions select (wanted).*;
end
$$;
COMMENT ON FUNCTION tidebase_private.store_version(wanted tidebase.state_versions, last tidebase.state_versions, value jsonb, change jsonb, since_base jsonb) IS 'Stores a version as a change of an earlier one, or whole when that is due. value: the document before the change. The caller holds the head''s lock.';
CREATE FUNCTION tidebase_private.version_at(run_id text, stream text, at timestamp with time zone, seq bigint) RETURNS integer
    LANGUAGE plpgsql STABLE
    AS $$
declare
  low integer;
  high integer;
  middle integer;
begin
  select min(v.version) - 1, max(v.version) into low, high from tidebase.state_versions v
  where v.run_id = version_at.run_id and v.stream = version_at.stream;
  while low < high loop
    middle := (low + high + 1) / 2;
    if exists (
      select from tidebase.state_versions v
      where v.run_id = version_at.run_id and v.stream = version_at.stream and v.version = middle
        and (version_at.at is null or v.created_at <= version_at.at)
        and (version_at.seq is null or v.seq <= version_at.seq))
    then
      low := middle;
    else
      high := middle - 1;
    end if;
  end loop;
  return low;
end
$$;
COMMENT ON FUNCTION tidebase_private.version_at(run_id text, stream text, at timestamp with time zone, seq bigint) IS 'The newest version at a time, or at an event; one below the first when there was none.';
CREATE FUNCTION tidebase_private.vote(gate tidebase.gates, voter text, decision text, payload jsonb, comment text, request_id text) RETURNS boolean
    LANGUAGE plpgsql
    AS $$
begin
  insert into tidebase.gate_votes (run_id, name, voter, decision, payload, comment, request_id)
  values (gate.run_id, gate.name, vote.voter, vote.decision, vote.payload, vote.comment, vote.request_id)
  on conflict on constraint gate_votes_pkey do nothing;
  if not found then
    return exists (
      select from tidebase.gate_votes v
      where v.run_id = gate.run_id and v.name = gate.name and v.voter = vote.voter and v.request_id = vote.request_id);
  end if;
  perform tidebase_private.emit(tidebase_private.advance(gate.run_id), 'gate.voted', jsonb_build_object('name', gate.name,
    'voter', voter, 'decision', decision, 'required', gate.required_approvals,
    'approvals', (tidebase_private.standing(gate, true)).approvals));
  return true;
end
$$;
COMMENT ON FUNCTION tidebase_private.vote(gate tidebase.gates, voter text, decision text, payload jsonb, comment text, request_id text) IS 'Counts a vote once a voter. The caller holds the head''s lock.';
CREATE FUNCTION tidebase_private.without_nulls(members jsonb) RETURNS jsonb
    LANGUAGE sql IMMUTABLE
    AS $$
  select jsonb_object_agg(m.key, m.value) from jsonb_each(members) m where m.value <> 'null';
$$;
COMMENT ON FUNCTION tidebase_private.without_nulls(members jsonb) IS 'An object without those of its own members that are null.';
CREATE FUNCTION tidebase_private.write_state(wanted tidebase.state_versions, token bigint, value jsonb, expected_version integer DEFAULT NULL::integer, request_id text DEFAULT NULL::text, source_version integer DEFAULT NULL::integer, source_label text DEFAULT NULL::text) RETURNS integer
    LANGUAGE plpgsql
    AS $$
declare
  head tidebase.run_heads;
  last tidebase.state_versions;
  now_is jsonb;
  since_base jsonb;
  change jsonb;
  earlier tidebase.events;
  restored integer;
begin
  if wanted.importance = 'transient' then
    perform tidebase_private.commit_lazily();
  else
    perform tidebase_private.commit_durably();
  end if;
  head := tidebase_private.fence(wanted.run_id, token, 1);
  if request_id is not null then
    earlier := tidebase_private.find_request(wanted.run_id, request_id,
      array['state.updated', 'state.saved', 'state.restored', 'snapshot.created']);
    if earlier.seq is not null then
      perform tidebase_private.give_back(head, 1);
      return (earlier.payload ->> 'version')::integer;  -- the same call again
    end if;
  end if;
  last := tidebase_private.last_version(wanted.run_id, wanted.stream);
  if expected_version <> coalesce(last.version, 0) then
    perform tidebase_private.raise('TB011',
      format('stream %L of run %L is at version %s, not %s', wanted.stream, wanted.run_id, coalesce(last.version, 0), expected_version),
      jsonb_build_object('run_id', wanted.run_id, 'stream', wanted.stream, 'version', coalesce(last.version, 0),
        'expected_version', expected_version), 'Read the state again, and decide anew.');
  end if;
  if last.version is not null then
    select r.value, r.since_base into now_is, since_base
    from tidebase_private.read_version(wanted.run_id, wanted.stream, last.version,
      tidebase_private.base_of(last.version + 1, last.keyframe)) r;
  elsif wanted.operation in ('save', 'restore') then
    perform tidebase_private.raise_no_state(wanted.run_id, wanted.stream, '');
  end if;
  if wanted.operation = 'restore' then
    if num_nonnulls(source_version, source_label) <> 1 then
      perform tidebase_private.raise_invalid('version and label', 'must say which version: exactly one of them');
    end if;
    restored := tidebase_private.find_version(wanted.run_id, wanted.stream, source_version, label => source_label);
    value := (select r.value from tidebase_private.read_version(wanted.run_id, wanted.stream, restored) r);
  elsif value is null and wanted.operation = 'snapshot' then
    value := (select r.value from tidebase_private.read_version(wanted.run_id, 'main',
      tidebase_private.find_version(wanted.run_id, 'main')) r);
  end if;
  if last.version is null then
    insert into tidebase.state_streams (run_id, stream) values (wanted.run_id, wanted.stream) on conflict do nothing;
    now_is := case wanted.operation when 'patch' then tidebase_private.merge_patch('{}', value) else value end;
  elsif wanted.operation = 'patch' then
    change := tidebase_private.change_of_patch(now_is, value);
  elsif wanted.operation <> 'save' then
    change := tidebase_private.find_change(now_is, value);
  end if;
  wanted.seq := head.last_seq;
  perform tidebase_private.store_version(wanted, last, now_is, change, since_base);
  perform tidebase_private.emit(head,
    case wanted.operation when 'save' then 'state.saved' when 'restore' then 'state.restored' when 'snapshot' then 'snapshot.created'
      else 'state.updated' end,
    jsonb_strip_nulls(jsonb_build_object('stream', wanted.stream, 'version', coalesce(last.version, 0) + 1,
      'operation', wanted.operation, 'importance', wanted.importance, 'label', wanted.label, 'reason', wanted.reason,
      'restored', restored)), request_id);
  return coalesce(last.version, 0) + 1;
end
$$;
COMMENT ON FUNCTION tidebase_private.write_state(wanted tidebase.state_versions, token bigint, value jsonb, expected_version integer, request_id text, source_version integer, source_label text) IS 'Writes the next version of a stream and returns its number. Errors: TB001, TB003, TB004, TB005, TB011, TB012.';
CREATE FUNCTION tidebase_private.writes_outside(side_effects text[]) RETURNS boolean
    LANGUAGE sql IMMUTABLE
    AS $$
  select coalesce(not side_effects <@ array['read'], false);
$$;
COMMENT ON FUNCTION tidebase_private.writes_outside(side_effects text[]) IS 'Whether a step declared an effect on the outside: any side effect but "read".';
CREATE FUNCTION tidebase_private.xor_pad(key bytea, pad integer) RETURNS bytea
    LANGUAGE plpgsql IMMUTABLE
    AS $$
declare
  padded bytea := key || decode(repeat('00', 64 - length(key)), 'hex');
begin
  for i in 0..63 loop
    padded := set_byte(padded, i, get_byte(padded, i) # pad);
  end loop;
  return padded;
end
$$;
COMMENT ON FUNCTION tidebase_private.xor_pad(key bytea, pad integer) IS 'A key of at most 64 bytes, zero-padded to a block and combined with a pad byte (RFC 2104).';
CREATE TABLE tidebase.edges (
    run_id text NOT NULL,
    name text NOT NULL,
    child_run_id text NOT NULL,
    edge_type text DEFAULT 'child'::text NOT NULL,
    metadata jsonb DEFAULT '{}'::jsonb NOT NULL,
    created_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    CONSTRAINT edge_metadata_is_an_object CHECK ((jsonb_typeof(metadata) = 'object'::text))
)
WITH (autovacuum_vacuum_scale_factor='0.05', autovacuum_analyze_scale_factor='0.05');
COMMENT ON TABLE tidebase.edges IS 'Which run was started by which (run_id is the parent): one child an edge name.';
CREATE VIEW tidebase.gate_inbox WITH (security_barrier='true') AS
 SELECT g.run_id,
    r.workflow,
    g.name,
    g.prompt,
    g.data,
    g.options,
    g.response_schema,
    g.capability,
    g.required_approvals,
    g.timeout_at,
    g.default_decision,
    g.created_at
   FROM (tidebase.gates g
     JOIN tidebase.runs r ON ((r.run_id = g.run_id)))
  WHERE ((g.status = 'pending'::text) AND (g.kind = 'gate'::text) AND ((g.timeout_at IS NULL) OR (g.timeout_at > clock_timestamp())));
COMMENT ON VIEW tidebase.gate_inbox IS 'The gates that wait for a decision (decide_gate). Order by created_at.';
CREATE TABLE tidebase.gate_votes (
    run_id text NOT NULL,
    name text NOT NULL,
    voter text NOT NULL,
    decision text NOT NULL,
    payload jsonb,
    comment text,
    request_id text,
    voted_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL
);
COMMENT ON TABLE tidebase.gate_votes IS 'Who voted what, at a gate that needs several approvals. One vote a voter: the bearers of the gate''s secret are one voter together.';
CREATE TABLE tidebase.recoveries (
    run_id text NOT NULL,
    recovery integer NOT NULL,
    reason text NOT NULL,
    actor text,
    status text DEFAULT 'pending'::text NOT NULL,
    found_status text NOT NULL,
    http_status integer,
    response text,
    error text,
    created_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    finished_at timestamp with time zone,
    CONSTRAINT recovery_is_finished_whole CHECK (((status = 'pending'::text) = (finished_at IS NULL))),
    CONSTRAINT recovery_status_is_known CHECK ((status = ANY (ARRAY['pending'::text, 'succeeded'::text, 'failed'::text])))
);
COMMENT ON TABLE tidebase.recoveries IS 'Every attempt to get a run going again: why, by whom, what became of it.';
COMMENT ON COLUMN tidebase.recoveries.found_status IS 'The status in which the run was found.';
CREATE VIEW tidebase.recovery_history WITH (security_barrier='true') AS
 SELECT v.run_id,
    v.recovery,
    v.reason,
    v.actor,
    v.found_status,
    v.status,
    d.url,
    COALESCE(d.attempts, 0) AS delivery_attempts,
    COALESCE(v.http_status, d.http_status) AS http_status,
    COALESCE(v.response, d.response) AS response,
    COALESCE(v.error, d.error) AS error,
    v.created_at,
    v.finished_at
   FROM (tidebase.recoveries v
     LEFT JOIN tidebase.deliveries d ON (((d.run_id = v.run_id) AND (d.recovery = v.recovery))));
COMMENT ON VIEW tidebase.recovery_history IS 'Every attempt to recover a run: why, by whom, what its webhook answered, how it ended.';
CREATE TABLE tidebase.reviews (
    run_id text NOT NULL,
    step text NOT NULL,
    attempt integer NOT NULL,
    cause text NOT NULL,
    opened_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    resolved_at timestamp with time zone,
    decision text,
    actor text,
    reason text,
    CONSTRAINT review_cause_is_known CHECK ((cause = ANY (ARRAY['crash'::text, 'error'::text]))),
    CONSTRAINT review_decision_is_known CHECK ((decision = ANY (ARRAY['retry'::text, 'accept'::text, 'fail'::text]))),
    CONSTRAINT review_is_resolved_whole CHECK (((resolved_at IS NULL) = (decision IS NULL)))
);
COMMENT ON TABLE tidebase.reviews IS 'Steps that may have taken effect and are not repeated by themselves: one row each time a person was asked, and what that person decided.';
CREATE VIEW tidebase.review_inbox WITH (security_barrier='true') AS
 SELECT v.run_id,
    r.workflow,
    v.step,
    v.attempt,
    v.cause,
    v.opened_at,
    s.side_effects,
    s.verified_by,
    s.checkpoint_invariant,
    s.input,
    s.error
   FROM (((tidebase.reviews v
     JOIN tidebase.runs r ON ((r.run_id = v.run_id)))
     JOIN tidebase.steps s ON (((s.run_id = v.run_id) AND (s.name = v.step))))
     JOIN tidebase.run_heads h ON (((h.run_id = v.run_id) AND (h.status <> ALL (ARRAY['completed'::text, 'cancelled'::text])))))
  WHERE (v.resolved_at IS NULL);
COMMENT ON VIEW tidebase.review_inbox IS 'The steps that wait for a person''s decision (resolve_review), with what their contract says about how to find out what happened. Order by opened_at.';
CREATE VIEW tidebase.run_attempts WITH (security_barrier='true') AS
 SELECT a.run_id,
    a.attempt,
    a.lease_token,
    a.holder,
    a.code_version,
    a.started_at,
    a.ended_at,
    a.outcome,
    a.error,
    a.traceparent
   FROM tidebase.attempts a;
COMMENT ON VIEW tidebase.run_attempts IS 'One row a lease granted: who worked on the run, with which code, from when to when, how it ended (NULL while it lasts).';
CREATE VIEW tidebase.run_sizes WITH (security_barrier='true') AS
 SELECT r.run_id,
    (((COALESCE(pg_column_size(r.input), 0) + COALESCE(pg_column_size(r.result), 0)) + COALESCE(pg_column_size(r.error), 0)) + pg_column_size(r.metadata)) AS run_bytes,
    steps.number AS steps,
    steps.bytes AS step_bytes,
    events.number AS events,
    events.bytes AS event_bytes,
    states.number AS state_versions,
    states.bytes AS state_bytes,
    r.compacted_at
   FROM (((tidebase.runs r
     CROSS JOIN LATERAL ( SELECT count(*) AS number,
            COALESCE(sum(((COALESCE(pg_column_size(s.input), 0) + COALESCE(pg_column_size(s.output), 0)) + COALESCE(pg_column_size(s.error), 0))), (0)::bigint) AS bytes
           FROM tidebase.steps s
          WHERE (s.run_id = r.run_id)) steps)
     CROSS JOIN LATERAL ( SELECT count(*) AS number,
            COALESCE(sum(pg_column_size(e.payload)), (0)::bigint) AS bytes
           FROM tidebase.events e
          WHERE (e.run_id = r.run_id)) events)
     CROSS JOIN LATERAL ( SELECT count(*) AS number,
            COALESCE(sum((pg_column_size(v.content) + COALESCE(pg_column_size(v.metadata), 0))), (0)::bigint) AS bytes
           FROM tidebase.state_versions v
          WHERE (v.run_id = r.run_id)) states);
COMMENT ON VIEW tidebase.run_sizes IS 'What each run stores: how many rows, and how many bytes its values take as they are stored (compressed), without the overhead of rows and indexes. Ask for one run_id, or wait for all to be added up.';
CREATE VIEW tidebase.stalled_runs WITH (security_barrier='true') AS
 SELECT h.run_id,
    r.workflow,
    h.status,
        CASE
            WHEN (h.status = 'running'::text) THEN 'lease_lapsed'::text
            WHEN (h.status = 'review'::text) THEN 'review'::text
            WHEN (h.status = 'failed'::text) THEN 'failed'::text
            WHEN (h.status = 'waiting'::text) THEN 'overdue'::text
            ELSE 'not_taken_up'::text
        END AS reason,
        CASE
            WHEN (h.status = 'running'::text) THEN h.lease_expires_at
            ELSE h.updated_at
        END AS since,
    h.holder,
    h.attempt,
    h.waiting_for,
    r.error,
    r.recovery_webhook
   FROM (tidebase.run_heads h
     JOIN tidebase.runs r ON ((r.run_id = h.run_id)))
  WHERE ((h.status <> 'completed'::text) AND (((h.status = 'running'::text) AND (h.lease_expires_at <= clock_timestamp())) OR (h.status = ANY (ARRAY['review'::text, 'failed'::text])) OR ((h.status = 'waiting'::text) AND (EXISTS ( SELECT
           FROM tidebase.gates g
          WHERE ((g.run_id = h.run_id) AND (g.name = h.waiting_for) AND (g.timeout_at <= clock_timestamp()))))) OR ((h.status = 'pending'::text) AND (h.attempt > 0) AND (COALESCE(h.available_at, h.updated_at) <= clock_timestamp()))));
COMMENT ON VIEW tidebase.stalled_runs IS 'Runs that do not go on by themselves: reason is lease_lapsed (the worker has gone silent), review (a person must decide about a step), failed, overdue (its time is over, and no reconcile has come round), not_taken_up (it was begun, may go on, and nobody works on it). since: from when. Longest first: order by since.';
CREATE TABLE tidebase.state_streams (
    run_id text NOT NULL,
    stream text NOT NULL,
    target_type text,
    target_id text,
    created_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    CONSTRAINT stream_has_a_whole_target CHECK (((target_type IS NULL) = (target_id IS NULL)))
);
COMMENT ON TABLE tidebase.state_streams IS 'The streams of versioned documents that a run keeps: its live state, others of its choice, and one a target of snapshots.';
COMMENT ON COLUMN tidebase.state_streams.target_type IS 'What the stream''s snapshots are of, e.g. file; NULL for state.';
COMMENT ON COLUMN tidebase.state_streams.target_id IS 'Which one of that type.';
CREATE VIEW tidebase.step_timeline WITH (security_barrier='true') AS
 SELECT s.run_id,
    s.name,
    s.status,
    s.attempt,
    s.lease_token,
    s.started_at,
    s.completed_at,
    (s.completed_at - s.started_at) AS duration,
    s.completed_seq,
    s.decision,
    s.retry_at,
    s.error,
    s.input,
    encode(s.input_hash, 'hex'::text) AS input_hash,
    s.output,
    s.side_effects,
    s.idempotency_key,
    COALESCE(s.replay, 'auto'::text) AS replay,
    s.checkpoint_invariant,
    s.verified_by,
    s.credentials,
    COALESCE(s.retries, 0) AS retries,
    s.timeout
   FROM tidebase.steps s;
COMMENT ON VIEW tidebase.step_timeline IS 'One row a step: how often it was begun (attempt), under which lease last, from when to when, its checkpoint, its failure and what was decided, and its resume contract. Order by started_at.';
CREATE VIEW tidebase.usage_by_model WITH (security_barrier='true') AS
 SELECT u.run_id,
    u.provider,
    u.model,
    u.currency,
    count(*) AS records,
    (count(*) - count(u.cost)) AS unpriced,
    (sum(u.input_tokens))::bigint AS input_tokens,
    (sum(u.cache_read_tokens))::bigint AS cache_read_tokens,
    (sum(u.cache_write_tokens))::bigint AS cache_write_tokens,
    (sum(u.output_tokens))::bigint AS output_tokens,
    (sum(u.reasoning_tokens))::bigint AS reasoning_tokens,
    sum(u.cost) AS cost
   FROM tidebase.usage u
  GROUP BY u.run_id, u.provider, u.model, u.currency;
COMMENT ON VIEW tidebase.usage_by_model IS 'What a run used of each model, by currency; a sum is NULL when nobody knows it. unpriced: records without a price.';
CREATE VIEW tidebase.usage_by_step WITH (security_barrier='true') AS
 SELECT u.run_id,
    u.step,
    u.currency,
    count(*) AS records,
    (count(*) - count(u.cost)) AS unpriced,
    (sum(u.input_tokens))::bigint AS input_tokens,
    (sum(u.cache_read_tokens))::bigint AS cache_read_tokens,
    (sum(u.cache_write_tokens))::bigint AS cache_write_tokens,
    (sum(u.output_tokens))::bigint AS output_tokens,
    (sum(u.reasoning_tokens))::bigint AS reasoning_tokens,
    sum(u.cost) AS cost
   FROM tidebase.usage u
  GROUP BY u.run_id, u.step, u.currency;
COMMENT ON VIEW tidebase.usage_by_step IS 'What each step of a run used, by currency; a sum is NULL when nobody knows it. unpriced: records without a price.';
CREATE VIEW tidebase.usage_records WITH (security_barrier='true') AS
 SELECT u.run_id,
    u.seq,
    u.kind,
    u.step,
    u.provider,
    u.model,
    u.response_id,
    u.input_tokens,
    u.cache_read_tokens,
    u.cache_write_tokens,
    u.output_tokens,
    u.reasoning_tokens,
    u.cost,
    u.currency,
    u.quantity,
    u.unit,
    u.label,
    COALESCE(u.metadata, '{}'::jsonb) AS metadata,
    u.created_at
   FROM tidebase.usage u;
COMMENT ON VIEW tidebase.usage_records IS 'Every record of usage. By the OpenTelemetry GenAI conventions kind is gen_ai.operation.name, provider gen_ai.provider.name, model gen_ai.response.model, response_id gen_ai.response.id; the tokens are gen_ai.usage.*. Order by seq.';
CREATE VIEW tidebase.usage_totals WITH (security_barrier='true') AS
 SELECT h.run_id,
    COALESCE(a.records, (0)::bigint) AS records,
    COALESCE(a.unpriced, (0)::bigint) AS unpriced,
    COALESCE(a.input_tokens, (0)::bigint) AS input_tokens,
    COALESCE(a.cache_read_tokens, (0)::bigint) AS cache_read_tokens,
    COALESCE(a.cache_write_tokens, (0)::bigint) AS cache_write_tokens,
    COALESCE(a.output_tokens, (0)::bigint) AS output_tokens,
    COALESCE(a.reasoning_tokens, (0)::bigint) AS reasoning_tokens,
    COALESCE(a.cost_usd, (0)::numeric) AS cost_usd,
    tree.runs AS tree_runs,
    tree.records AS tree_records,
    tree.unpriced AS tree_unpriced,
    tree.input_tokens AS tree_input_tokens,
    tree.output_tokens AS tree_output_tokens,
    tree.cost_usd AS tree_cost_usd,
    a.cost_limit_usd,
    a.token_limit
   FROM ((tidebase.run_heads h
     LEFT JOIN tidebase.accounts a ON ((a.run_id = h.run_id)))
     CROSS JOIN LATERAL ( WITH RECURSIVE below(run_id) AS (
                 SELECT h.run_id
                UNION ALL
                 SELECT e.child_run_id
                   FROM (below b_1
                     JOIN tidebase.edges e ON (((e.run_id = b_1.run_id) AND (e.edge_type <> 'fork'::text))))
                )
         SELECT count(*) AS runs,
            (COALESCE(sum(c.records), (0)::numeric))::bigint AS records,
            (COALESCE(sum(c.unpriced), (0)::numeric))::bigint AS unpriced,
            (COALESCE(sum(c.input_tokens), (0)::numeric))::bigint AS input_tokens,
            (COALESCE(sum(c.output_tokens), (0)::numeric))::bigint AS output_tokens,
            COALESCE(sum(c.cost_usd), (0)::numeric) AS cost_usd
           FROM (below b
             LEFT JOIN tidebase.accounts c ON ((c.run_id = b.run_id)))) tree);
COMMENT ON VIEW tidebase.usage_totals IS 'What each run used itself, and with its descendants (tree_...; forks are runs of their own), beside its limits. unpriced: how many records have no price in USD, so that the cost is too low. Ask for one run_id: the descendants are added up for each row.';
CREATE TABLE tidebase_private._yoyo_log (
    id character varying(36) NOT NULL,
    migration_hash character varying(64),
    migration_id character varying(255),
    operation character varying(10),
    username character varying(255),
    hostname character varying(255),
    comment character varying(255),
    created_at_utc timestamp without time zone
);
CREATE TABLE tidebase_private._yoyo_migration (
    migration_hash character varying(64) NOT NULL,
    migration_id character varying(255),
    applied_at_utc timestamp without time zone
);
CREATE TABLE tidebase_private._yoyo_version (
    version integer NOT NULL,
    installed_at_utc timestamp without time zone
);
CREATE TABLE tidebase_private.function_files (
    name text NOT NULL,
    checksum text NOT NULL,
    applied_at timestamp with time zone DEFAULT now() NOT NULL
);
COMMENT ON TABLE tidebase_private.function_files IS 'The files of sql/functions as last applied: name, SHA-256 of the content in hex, when.';
CREATE TABLE tidebase_private.gate_key (
    only_one boolean DEFAULT true NOT NULL,
    inner_pad bytea NOT NULL,
    outer_pad bytea NOT NULL,
    CONSTRAINT gate_key_is_the_only_one CHECK (only_one)
);
COMMENT ON TABLE tidebase_private.gate_key IS 'The key from which every gate''s secret is derived: HMAC-SHA256, as its inner and outer padded key. No secret is stored anywhere.';
CREATE TABLE tidebase_private.privileges (
    object text NOT NULL,
    audience text NOT NULL,
    CONSTRAINT privilege_names_an_audience CHECK ((audience = ANY (ARRAY['worker'::text, 'approver'::text, 'operator'::text, 'reader'::text])))
);
COMMENT ON TABLE tidebase_private.privileges IS 'Who may use what, as the function files state it with tidebase_private.allow(); apply_privileges() turns it into grants.';
CREATE TABLE tidebase_private.settings (
    name text NOT NULL,
    value text NOT NULL
);
COMMENT ON TABLE tidebase_private.settings IS 'Installation-wide choices. role_prefix: what the five roles are called (<prefix>_owner, _worker, _approver, _operator, _reader).';
INSERT INTO tidebase.accounts VALUES ('live', NULL, 1, 1, 10, 0, 0, 5, 0, 15, NULL, 0, 0, NULL);
INSERT INTO tidebase.accounts VALUES ('rich', NULL, 0, 0, 0, 0, 0, 0, 0, 0, 1000, 0, 0, NULL);
INSERT INTO tidebase.attempts VALUES ('live', 1, 1, 'old worker', NULL, NULL, '2026-11-24 03:04:52.941564+00', NULL, NULL, NULL, NULL);
INSERT INTO tidebase.attempts VALUES ('waits', 1, 1, 'old worker', NULL, NULL, '2026-11-24 03:04:52.9593+00', '2026-11-24 03:04:52.960766+00', 'suspended', NULL, NULL);
INSERT INTO tidebase.attempts VALUES ('in review', 1, 1, 'old worker', NULL, NULL, '2026-11-24 03:04:52.962412+00', '2026-11-24 03:04:52.965562+00', 'failed', '"lost"', NULL);
INSERT INTO tidebase.attempts VALUES ('over', 1, 1, 'old worker', NULL, NULL, '2026-11-24 03:04:52.967841+00', '2026-11-24 03:04:52.969002+00', 'completed', NULL, NULL);
INSERT INTO tidebase.edges VALUES ('live', 'helper', 'run_01a20b83-6fdb-7864-a0d8-b5cb14a14fb7', 'child', '{}', '2026-11-24 03:04:52.954999+00');
INSERT INTO tidebase.events VALUES ('live', 1, '2026-11-24 03:04:52.938772+00', 'run.created', '{"workflow": "landed"}', NULL);
INSERT INTO tidebase.events VALUES ('live', 2, '2026-11-24 03:04:52.941689+00', 'run.started', '{"token": 1, "holder": "old worker", "attempt": 1}', NULL);
INSERT INTO tidebase.events VALUES ('live', 3, '2026-11-24 03:04:52.944818+00', 'step.started', '{"name": "done", "token": 1, "attempt": 1}', NULL);
INSERT INTO tidebase.events VALUES ('live', 4, '2026-11-24 03:04:52.945515+00', 'step.completed', '{"name": "done", "attempt": 1}', NULL);
INSERT INTO tidebase.events VALUES ('live', 5, '2026-11-24 03:04:52.946329+00', 'step.started', '{"name": "plain", "token": 1, "attempt": 1}', NULL);
INSERT INTO tidebase.events VALUES ('live', 6, '2026-11-24 03:04:52.947093+00', 'step.started', '{"name": "unsafe", "token": 1, "attempt": 1}', NULL);
INSERT INTO tidebase.events VALUES ('live', 7, '2026-11-24 03:04:52.947767+00', 'note', '{"from": "before"}', NULL);
INSERT INTO tidebase.events VALUES ('live', 8, '2026-11-24 03:04:52.949217+00', 'gate.created', '{"data": {}, "name": "ask", "prompt": "Go on?", "options": ["approved", "rejected"], "required": 1, "timeout_at": null}', NULL);
INSERT INTO tidebase.events VALUES ('live', 9, '2026-11-24 03:04:52.952218+00', 'state.updated', '{"stream": "main", "version": 1, "operation": "set", "importance": "normal"}', NULL);
INSERT INTO tidebase.events VALUES ('live', 10, '2026-11-24 03:04:52.953973+00', 'state.updated', '{"stream": "main", "version": 2, "operation": "patch", "importance": "normal"}', NULL);
INSERT INTO tidebase.events VALUES ('run_01a20b83-6fdb-7864-a0d8-b5cb14a14fb7', 1, '2026-11-24 03:04:52.954962+00', 'run.created', '{"workflow": "landed"}', NULL);
INSERT INTO tidebase.events VALUES ('live', 11, '2026-11-24 03:04:52.955408+00', 'run.child.created', '{"name": "helper", "workflow": "landed", "edge_type": "child", "child_run_id": "run_01a20b83-6fdb-7864-a0d8-b5cb14a14fb7"}', NULL);
INSERT INTO tidebase.events VALUES ('live', 12, '2026-11-24 03:04:52.95784+00', 'usage.recorded', '{"kind": "chat", "currency": "USD", "response_id": "r1", "input_tokens": 10, "output_tokens": 5}', NULL);
INSERT INTO tidebase.events VALUES ('waits', 1, '2026-11-24 03:04:52.958486+00', 'run.created', '{"workflow": "landed"}', NULL);
INSERT INTO tidebase.events VALUES ('waits', 2, '2026-11-24 03:04:52.959328+00', 'run.started', '{"token": 1, "holder": "old worker", "attempt": 1}', NULL);
INSERT INTO tidebase.events VALUES ('waits', 3, '2026-11-24 03:04:52.960036+00', 'gate.created', '{"data": {}, "name": "ask", "prompt": "Go on?", "options": ["approved", "rejected"], "required": 1, "timeout_at": null}', NULL);
INSERT INTO tidebase.events VALUES ('waits', 4, '2026-11-24 03:04:52.96119+00', 'run.suspended', '{"name": "ask", "token": 1, "attempt": 1}', NULL);
INSERT INTO tidebase.events VALUES ('in review', 1, '2026-11-24 03:04:52.961693+00', 'run.created', '{"workflow": "landed"}', NULL);
INSERT INTO tidebase.events VALUES ('in review', 2, '2026-11-24 03:04:52.962438+00', 'run.started', '{"token": 1, "holder": "old worker", "attempt": 1}', NULL);
INSERT INTO tidebase.events VALUES ('in review', 3, '2026-11-24 03:04:52.963364+00', 'step.started', '{"name": "unsafe", "token": 1, "attempt": 1}', NULL);
INSERT INTO tidebase.events VALUES ('in review', 4, '2026-11-24 03:04:52.964061+00', 'step.failed', '{"name": "unsafe", "error": "lost", "attempt": 1, "decision": "manual_review"}', NULL);
INSERT INTO tidebase.events VALUES ('in review', 5, '2026-11-24 03:04:52.964597+00', 'step.review', '{"name": "unsafe", "cause": "error", "attempt": 1}', NULL);
INSERT INTO tidebase.events VALUES ('in review', 6, '2026-11-24 03:04:52.965703+00', 'run.failed', '{"error": "lost", "token": 1, "status": "review", "attempt": 1}', NULL);
INSERT INTO tidebase.events VALUES ('over', 1, '2026-11-24 03:04:52.966276+00', 'run.created', '{"workflow": "landed"}', NULL);
INSERT INTO tidebase.events VALUES ('over', 2, '2026-11-24 03:04:52.967873+00', 'run.started', '{"token": 1, "holder": "old worker", "attempt": 1}', NULL);
INSERT INTO tidebase.events VALUES ('over', 3, '2026-11-24 03:04:52.969122+00', 'run.completed', '{"token": 1, "attempt": 1}', NULL);
INSERT INTO tidebase.events VALUES ('cancelled', 1, '2026-11-24 03:04:52.971265+00', 'run.created', '{"workflow": "landed"}', NULL);
INSERT INTO tidebase.events VALUES ('cancelled', 2, '2026-11-24 03:04:52.972612+00', 'run.cancelled', '{"actor": "postgres", "reason": "no more"}', NULL);
INSERT INTO tidebase.events VALUES ('rich', 1, '2026-11-24 03:04:52.973751+00', 'run.created', '{"workflow": "landed"}', NULL);
INSERT INTO tidebase.gates VALUES ('live', 'ask', 'gate', 'pending', 'Go on?', '{}', '\x7e70a7c325f63e3fac831bdb4a7ac5d64fcd964d05c7a0c1f861634c7532c9a1', '{approved,rejected}', NULL, NULL, 1, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, '2026-11-24 03:04:52.948716+00', NULL);
INSERT INTO tidebase.gates VALUES ('waits', 'ask', 'gate', 'pending', 'Go on?', '{}', '\x7e70a7c325f63e3fac831bdb4a7ac5d64fcd964d05c7a0c1f861634c7532c9a1', '{approved,rejected}', NULL, NULL, 1, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, '2026-11-24 03:04:52.959887+00', NULL);
INSERT INTO tidebase.reviews VALUES ('in review', 'unsafe', 1, 'error', '2026-11-24 03:04:52.964246+00', NULL, NULL, NULL, NULL);
INSERT INTO tidebase.run_heads VALUES ('run_01a20b83-6fdb-7864-a0d8-b5cb14a14fb7', 1, 1, 0, NULL, NULL, '2026-11-24 03:04:52.954927+00', 0, 0, 'pending', NULL, NULL, NULL, NULL, NULL, false);
INSERT INTO tidebase.run_heads VALUES ('live', 12, 12, 1, '2026-11-24 04:04:52.941348+00', NULL, '2026-11-24 03:04:52.956612+00', 1, 1, 'running', 'old worker', '2026-11-24 04:04:52.941349+00', NULL, NULL, NULL, false);
INSERT INTO tidebase.run_heads VALUES ('waits', 4, 4, 1, NULL, NULL, '2026-11-24 03:04:52.960602+00', 1, 0, 'waiting', 'old worker', NULL, NULL, NULL, 'ask', false);
INSERT INTO tidebase.run_heads VALUES ('in review', 6, 6, 1, NULL, NULL, '2026-11-24 03:04:52.965171+00', 1, 0, 'review', 'old worker', '2026-11-24 03:05:52.962349+00', NULL, NULL, NULL, false);
INSERT INTO tidebase.run_heads VALUES ('over', 3, 3, 1, NULL, NULL, '2026-11-24 03:04:52.968887+00', 1, 0, 'completed', 'old worker', NULL, NULL, NULL, NULL, false);
INSERT INTO tidebase.run_heads VALUES ('cancelled', 2, 2, 0, NULL, NULL, '2026-11-24 03:04:52.972458+00', 0, 0, 'cancelled', NULL, NULL, NULL, NULL, NULL, false);
INSERT INTO tidebase.run_heads VALUES ('rich', 1, 1, 0, NULL, NULL, '2026-11-24 03:04:52.973406+00', 0, 0, 'pending', NULL, NULL, NULL, NULL, NULL, true);
INSERT INTO tidebase.runs VALUES ('live', 'landed', '{"n": 1}', '{}', NULL, NULL, '2026-11-24 03:04:52.937961+00', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL);
INSERT INTO tidebase.runs VALUES ('run_01a20b83-6fdb-7864-a0d8-b5cb14a14fb7', 'landed', NULL, '{}', NULL, NULL, '2026-11-24 03:04:52.954879+00', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL);
INSERT INTO tidebase.runs VALUES ('waits', 'landed', NULL, '{}', NULL, NULL, '2026-11-24 03:04:52.958401+00', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL);
INSERT INTO tidebase.runs VALUES ('in review', 'landed', NULL, '{}', NULL, '"lost"', '2026-11-24 03:04:52.961615+00', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL);
INSERT INTO tidebase.runs VALUES ('over', 'landed', NULL, '{}', '"result"', NULL, '2026-11-24 03:04:52.966182+00', '2026-11-24 03:04:52.968952+00', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL);
INSERT INTO tidebase.runs VALUES ('cancelled', 'landed', NULL, '{}', NULL, NULL, '2026-11-24 03:04:52.970221+00', '2026-11-24 03:04:52.972271+00', NULL, NULL, NULL, '2026-11-24 03:04:52.972271+00', 'no more', 'postgres', NULL, NULL);
INSERT INTO tidebase.runs VALUES ('rich', 'landed', NULL, '{}', NULL, NULL, '2026-11-24 03:04:52.973374+00', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL);
INSERT INTO tidebase.state_streams VALUES ('live', 'main', NULL, NULL, '2026-11-24 03:04:52.951589+00');
INSERT INTO tidebase.state_versions VALUES ('live', 'main', 1, NULL, 1, 0, 9, '2026-11-24 03:04:52.951937+00', 'set', 'normal', '{"progress": 0.5}', NULL, NULL, 'postgres', NULL);
INSERT INTO tidebase.state_versions VALUES ('live', 'main', 2, 1, 1, 72, 10, '2026-11-24 03:04:52.953861+00', 'patch', 'normal', '{"phase": ["writing"], "progress": [0.7]}', NULL, NULL, 'postgres', NULL);
INSERT INTO tidebase.steps VALUES ('live', 'done', 1, '2026-11-24 03:04:52.944649+00', '2026-11-24 03:04:52.945362+00', 4, 1, 1, 'completed', '\x6b86b273ff34fce19d6b804eff5a3f5747ada4eaa22f1d49c01e52ddb7875b4b', NULL, '1', '{"kept": true}', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL);
INSERT INTO tidebase.steps VALUES ('live', 'plain', 1, '2026-11-24 03:04:52.946255+00', NULL, NULL, 1, 1, 'running', '\xd4735e3a265e16eee03f59718b9b5d03019c07d8b6c51f90da3a666eec13ab35', NULL, '2', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL);
INSERT INTO tidebase.steps VALUES ('live', 'unsafe', 1, '2026-11-24 03:04:52.947038+00', NULL, NULL, 1, 1, 'running', '\x4e07408562bedb8b60ce05c1decfe3ad16b72230967de01f640b7e4729b49fce', NULL, '3', NULL, NULL, NULL, NULL, '{mail}', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL);
INSERT INTO tidebase.steps VALUES ('in review', 'unsafe', 1, '2026-11-24 03:04:52.963294+00', NULL, NULL, 1, 1, 'review', '\x74234e98afe7498fb5daf1f36ac2d78acc339464f950703b8c019892f982b90b', NULL, NULL, NULL, '"lost"', 'manual_review', NULL, '{mail}', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL);
INSERT INTO tidebase.usage VALUES ('live', 12, '2026-11-24 03:04:52.956665+00', 10, NULL, NULL, 5, NULL, 'chat', NULL, NULL, NULL, 'r1', NULL, 'USD', NULL, NULL, NULL, NULL);
INSERT INTO tidebase_private._yoyo_log VALUES ('d1a029ee-e7b3-11f1-b1cc-02fc00000001', 'bf569be113b4879ae24bd92b49d2b9dee707a7f814aa2aa78f86fdd2543ef629', '0001.core', 'apply', 'root', 'localhost', NULL, '2026-11-24 03:04:52.730404');
INSERT INTO tidebase_private._yoyo_log VALUES ('d1a7e4ea-e7b3-11f1-b1cc-02fc00000001', '2de5445b29325de1743f1c540fee8ef8b096843cf2e1f16d57f44baf3f55c113', '0002.gates', 'apply', 'root', 'localhost', NULL, '2026-11-24 03:04:52.780084');
INSERT INTO tidebase_private._yoyo_log VALUES ('d1aca5ac-e7b3-11f1-b1cc-02fc00000001', '0508fa45699f3c992fb382d439e16360fc847642ca51fc3660496ec38dd89206', '0003.state', 'apply', 'root', 'localhost', NULL, '2026-11-24 03:04:52.811221');
INSERT INTO tidebase_private._yoyo_migration VALUES ('bf569be113b4879ae24bd92b49d2b9dee707a7f814aa2aa78f86fdd2543ef629', '0001.core', '2026-11-24 03:04:52.73204');
INSERT INTO tidebase_private._yoyo_migration VALUES ('2de5445b29325de1743f1c540fee8ef8b096843cf2e1f16d57f44baf3f55c113', '0002.gates', '2026-11-24 03:04:52.781535');
INSERT INTO tidebase_private._yoyo_migration VALUES ('0508fa45699f3c992fb382d439e16360fc847642ca51fc3660496ec38dd89206', '0003.state', '2026-11-24 03:04:52.812419');
INSERT INTO tidebase_private._yoyo_version VALUES (2, '2026-11-24 03:04:52.626317');
INSERT INTO tidebase_private.function_files VALUES ('access.sql', '823f4734ea8b4d6619be4fb645146c35e759c21a29812a3fcff4f0bc24533724', '2026-11-24 03:04:52.585778+00');
INSERT INTO tidebase_private.function_files VALUES ('cancel.sql', '2477ea4bc96265bd8184b29630ab65203172660bc322e9518000cb0adf37c5e0', '2026-11-24 03:04:52.585778+00');
INSERT INTO tidebase_private.function_files VALUES ('canonical.sql', '887d719945efd7ba5d463ffa9cc229d5a0013e7354f14f821a5accbdb2534f85', '2026-11-24 03:04:52.585778+00');
INSERT INTO tidebase_private.function_files VALUES ('child.sql', '39d1753b22635a824873e991894c474c131d0d2a9bcc8973a17d1d1131b30f32', '2026-11-24 03:04:52.585778+00');
INSERT INTO tidebase_private.function_files VALUES ('diff.sql', '971b3fe348d7ad8bac85caf9aea5a57b0574240625875a3ea62ed21bef4c4212', '2026-11-24 03:04:52.585778+00');
INSERT INTO tidebase_private.function_files VALUES ('error.sql', '0aa9d77e9ade6ae49c3e994bf6587ea83fdc80c3ee88fcea8adceb175cd40d29', '2026-11-24 03:04:52.585778+00');
INSERT INTO tidebase_private.function_files VALUES ('event.sql', 'c1b696edd86614d9305bd060e74540d33c163fc92f5e8dac6e297c12c2a5312b', '2026-11-24 03:04:52.585778+00');
INSERT INTO tidebase_private.function_files VALUES ('fork.sql', 'dc0e697910da38e277cc18374f90186faca9547171d1ae7cac0d4087062e2ecd', '2026-11-24 03:04:52.585778+00');
INSERT INTO tidebase_private.function_files VALUES ('gate.sql', '50a859704ce25c9a6c8095cecbd573329c5e04607be54d0638e42a761cbe3664', '2026-11-24 03:04:52.585778+00');
INSERT INTO tidebase_private.function_files VALUES ('lease.sql', '1b2625186bce175d7ebd1d9f36c1312a708f17367068351e452a1c60898919ab', '2026-11-24 03:04:52.585778+00');
INSERT INTO tidebase_private.function_files VALUES ('reconcile.sql', '6474428ace3866b4319ed92e9d85cb7ccfd6f977c93e3dbc73fb37d211c0fd3d', '2026-11-24 03:04:52.585778+00');
INSERT INTO tidebase_private.function_files VALUES ('recovery.sql', 'b66612f37b14e696a791d342e929ced1023caa913a91ced3466e6d449a1c55c8', '2026-11-24 03:04:52.585778+00');
INSERT INTO tidebase_private.function_files VALUES ('retention.sql', '492c167de1067daeec7c1322615ded299c901b4f505c128c55172c212c7f8c4d', '2026-11-24 03:04:52.585778+00');
INSERT INTO tidebase_private.function_files VALUES ('run.sql', 'd06db8cebcafb7002b9fe362fd216d9ec89bb6e58a9b91db93c386165d3c6b12', '2026-11-24 03:04:52.585778+00');
INSERT INTO tidebase_private.function_files VALUES ('snapshot.sql', 'aa7ec14292de0fb4f0cde443b134be12072af4a7632ebaf75eaa4628da57e300', '2026-11-24 03:04:52.585778+00');
INSERT INTO tidebase_private.function_files VALUES ('state.sql', 'f33dc1f1aff5ab2043460f9e7c8039bfbefc6f9c048a4d211384ad09304b4036', '2026-11-24 03:04:52.585778+00');
INSERT INTO tidebase_private.function_files VALUES ('step.sql', '4a8e74286b70642af513d40b392111cf8116fcc8595375fc79d46d19d50be698', '2026-11-24 03:04:52.585778+00');
INSERT INTO tidebase_private.function_files VALUES ('usage.sql', '1f9f3fa0ad23daf95256f89c453d7e035d7c13e1c4b6a5f854ec71cfa8556026', '2026-11-24 03:04:52.585778+00');
INSERT INTO tidebase_private.gate_key VALUES (true, '\x774c079e7711b25f2c65a675542aa0ecb67109c507bc5eab2f10ff2f8e4011423636363636363636363636363636363636363636363636363636363636363636', '\x1d266df41d7bd835460fcc1f3e40ca86dc1b63af6dd634c1457a9545e42a7b285c5c5c5c5c5c5c5c5c5c5c5c5c5c5c5c5c5c5c5c5c5c5c5c5c5c5c5c5c5c5c5c');
INSERT INTO tidebase_private.privileges VALUES ('function tidebase.cancel_run', 'operator');
INSERT INTO tidebase_private.privileges VALUES ('function tidebase.create_child', 'worker');
INSERT INTO tidebase_private.privileges VALUES ('function tidebase.run_tree', 'worker');
INSERT INTO tidebase_private.privileges VALUES ('function tidebase.run_tree', 'approver');
INSERT INTO tidebase_private.privileges VALUES ('function tidebase.run_tree', 'operator');
INSERT INTO tidebase_private.privileges VALUES ('function tidebase.run_tree', 'reader');
INSERT INTO tidebase_private.privileges VALUES ('function tidebase.diff_runs', 'worker');
INSERT INTO tidebase_private.privileges VALUES ('function tidebase.diff_runs', 'approver');
INSERT INTO tidebase_private.privileges VALUES ('function tidebase.diff_runs', 'operator');
INSERT INTO tidebase_private.privileges VALUES ('function tidebase.diff_runs', 'reader');
INSERT INTO tidebase_private.privileges VALUES ('function tidebase.append_event', 'worker');
INSERT INTO tidebase_private.privileges VALUES ('function tidebase.read_events', 'worker');
INSERT INTO tidebase_private.privileges VALUES ('function tidebase.read_events', 'approver');
INSERT INTO tidebase_private.privileges VALUES ('function tidebase.read_events', 'operator');
INSERT INTO tidebase_private.privileges VALUES ('function tidebase.read_events', 'reader');
INSERT INTO tidebase_private.privileges VALUES ('function tidebase.watch_run', 'worker');
INSERT INTO tidebase_private.privileges VALUES ('function tidebase.watch_run', 'approver');
INSERT INTO tidebase_private.privileges VALUES ('function tidebase.watch_run', 'operator');
INSERT INTO tidebase_private.privileges VALUES ('function tidebase.watch_run', 'reader');
INSERT INTO tidebase_private.privileges VALUES ('function tidebase.fork_run', 'worker');
INSERT INTO tidebase_private.privileges VALUES ('function tidebase.fork_run', 'operator');
INSERT INTO tidebase_private.privileges VALUES ('function tidebase.open_gate', 'worker');
INSERT INTO tidebase_private.privileges VALUES ('function tidebase.get_gate_secret', 'worker');
INSERT INTO tidebase_private.privileges VALUES ('function tidebase.start_timer', 'worker');
INSERT INTO tidebase_private.privileges VALUES ('function tidebase.suspend_run', 'worker');
INSERT INTO tidebase_private.privileges VALUES ('function tidebase.decide_gate', 'approver');
INSERT INTO tidebase_private.privileges VALUES ('function tidebase.decide_gate', 'operator');
INSERT INTO tidebase_private.privileges VALUES ('function tidebase.decide_gate', 'reader');
INSERT INTO tidebase_private.privileges VALUES ('function tidebase.get_gate', 'worker');
INSERT INTO tidebase_private.privileges VALUES ('function tidebase.get_gate', 'approver');
INSERT INTO tidebase_private.privileges VALUES ('function tidebase.get_gate', 'operator');
INSERT INTO tidebase_private.privileges VALUES ('function tidebase.get_gate', 'reader');
INSERT INTO tidebase_private.privileges VALUES ('function tidebase.list_gates', 'worker');
INSERT INTO tidebase_private.privileges VALUES ('function tidebase.list_gates', 'approver');
INSERT INTO tidebase_private.privileges VALUES ('function tidebase.list_gates', 'operator');
INSERT INTO tidebase_private.privileges VALUES ('function tidebase.list_gates', 'reader');
INSERT INTO tidebase_private.privileges VALUES ('table tidebase.gate_overview', 'worker');
INSERT INTO tidebase_private.privileges VALUES ('table tidebase.gate_overview', 'approver');
INSERT INTO tidebase_private.privileges VALUES ('table tidebase.gate_overview', 'operator');
INSERT INTO tidebase_private.privileges VALUES ('table tidebase.gate_overview', 'reader');
INSERT INTO tidebase_private.privileges VALUES ('table tidebase.gate_inbox', 'worker');
INSERT INTO tidebase_private.privileges VALUES ('table tidebase.gate_inbox', 'approver');
INSERT INTO tidebase_private.privileges VALUES ('table tidebase.gate_inbox', 'operator');
INSERT INTO tidebase_private.privileges VALUES ('table tidebase.gate_inbox', 'reader');
INSERT INTO tidebase_private.privileges VALUES ('table tidebase.run_attempts', 'worker');
INSERT INTO tidebase_private.privileges VALUES ('table tidebase.run_attempts', 'approver');
INSERT INTO tidebase_private.privileges VALUES ('table tidebase.run_attempts', 'operator');
INSERT INTO tidebase_private.privileges VALUES ('table tidebase.run_attempts', 'reader');
INSERT INTO tidebase_private.privileges VALUES ('function tidebase.acquire_run', 'worker');
INSERT INTO tidebase_private.privileges VALUES ('function tidebase.renew_lease', 'worker');
INSERT INTO tidebase_private.privileges VALUES ('function tidebase.release_run', 'worker');
INSERT INTO tidebase_private.privileges VALUES ('function tidebase.reconcile', 'worker');
INSERT INTO tidebase_private.privileges VALUES ('function tidebase.reconcile', 'operator');
INSERT INTO tidebase_private.privileges VALUES ('table tidebase.stalled_runs', 'worker');
INSERT INTO tidebase_private.privileges VALUES ('table tidebase.stalled_runs', 'approver');
INSERT INTO tidebase_private.privileges VALUES ('table tidebase.stalled_runs', 'operator');
INSERT INTO tidebase_private.privileges VALUES ('table tidebase.stalled_runs', 'reader');
INSERT INTO tidebase_private.privileges VALUES ('function tidebase.record_recovery', 'operator');
INSERT INTO tidebase_private.privileges VALUES ('function tidebase.finish_recovery', 'operator');
INSERT INTO tidebase_private.privileges VALUES ('function tidebase.recover_run', 'operator');
INSERT INTO tidebase_private.privileges VALUES ('function tidebase.claim_deliveries', 'operator');
INSERT INTO tidebase_private.privileges VALUES ('function tidebase.finish_delivery', 'operator');
INSERT INTO tidebase_private.privileges VALUES ('table tidebase.recovery_history', 'worker');
INSERT INTO tidebase_private.privileges VALUES ('table tidebase.recovery_history', 'approver');
INSERT INTO tidebase_private.privileges VALUES ('table tidebase.recovery_history', 'operator');
INSERT INTO tidebase_private.privileges VALUES ('table tidebase.recovery_history', 'reader');
INSERT INTO tidebase_private.privileges VALUES ('function tidebase.purge_runs', 'operator');
INSERT INTO tidebase_private.privileges VALUES ('function tidebase.compact_run', 'operator');
INSERT INTO tidebase_private.privileges VALUES ('table tidebase.run_sizes', 'worker');
INSERT INTO tidebase_private.privileges VALUES ('table tidebase.run_sizes', 'approver');
INSERT INTO tidebase_private.privileges VALUES ('table tidebase.run_sizes', 'operator');
INSERT INTO tidebase_private.privileges VALUES ('table tidebase.run_sizes', 'reader');
INSERT INTO tidebase_private.privileges VALUES ('function tidebase.create_run', 'worker');
INSERT INTO tidebase_private.privileges VALUES ('function tidebase.complete_run', 'worker');
INSERT INTO tidebase_private.privileges VALUES ('function tidebase.fail_run', 'worker');
INSERT INTO tidebase_private.privileges VALUES ('function tidebase.get_run', 'worker');
INSERT INTO tidebase_private.privileges VALUES ('function tidebase.get_run', 'approver');
INSERT INTO tidebase_private.privileges VALUES ('function tidebase.get_run', 'operator');
INSERT INTO tidebase_private.privileges VALUES ('function tidebase.get_run', 'reader');
INSERT INTO tidebase_private.privileges VALUES ('function tidebase.list_runs', 'worker');
INSERT INTO tidebase_private.privileges VALUES ('function tidebase.list_runs', 'approver');
INSERT INTO tidebase_private.privileges VALUES ('function tidebase.list_runs', 'operator');
INSERT INTO tidebase_private.privileges VALUES ('function tidebase.list_runs', 'reader');
INSERT INTO tidebase_private.privileges VALUES ('table tidebase.run_overview', 'worker');
INSERT INTO tidebase_private.privileges VALUES ('table tidebase.run_overview', 'approver');
INSERT INTO tidebase_private.privileges VALUES ('table tidebase.run_overview', 'operator');
INSERT INTO tidebase_private.privileges VALUES ('table tidebase.run_overview', 'reader');
INSERT INTO tidebase_private.privileges VALUES ('function tidebase.create_snapshot', 'worker');
INSERT INTO tidebase_private.privileges VALUES ('function tidebase.list_snapshots', 'worker');
INSERT INTO tidebase_private.privileges VALUES ('function tidebase.list_snapshots', 'approver');
INSERT INTO tidebase_private.privileges VALUES ('function tidebase.list_snapshots', 'operator');
INSERT INTO tidebase_private.privileges VALUES ('function tidebase.list_snapshots', 'reader');
INSERT INTO tidebase_private.privileges VALUES ('function tidebase.set_state', 'worker');
INSERT INTO tidebase_private.privileges VALUES ('function tidebase.patch_state', 'worker');
INSERT INTO tidebase_private.privileges VALUES ('function tidebase.save_state', 'worker');
INSERT INTO tidebase_private.privileges VALUES ('function tidebase.restore_state', 'worker');
INSERT INTO tidebase_private.privileges VALUES ('function tidebase.get_state', 'worker');
INSERT INTO tidebase_private.privileges VALUES ('function tidebase.get_state', 'approver');
INSERT INTO tidebase_private.privileges VALUES ('function tidebase.get_state', 'operator');
INSERT INTO tidebase_private.privileges VALUES ('function tidebase.get_state', 'reader');
INSERT INTO tidebase_private.privileges VALUES ('function tidebase.list_state_versions', 'worker');
INSERT INTO tidebase_private.privileges VALUES ('function tidebase.list_state_versions', 'approver');
INSERT INTO tidebase_private.privileges VALUES ('function tidebase.list_state_versions', 'operator');
INSERT INTO tidebase_private.privileges VALUES ('function tidebase.list_state_versions', 'reader');
INSERT INTO tidebase_private.privileges VALUES ('function tidebase.begin_step', 'worker');
INSERT INTO tidebase_private.privileges VALUES ('function tidebase.complete_step', 'worker');
INSERT INTO tidebase_private.privileges VALUES ('function tidebase.record_step', 'worker');
INSERT INTO tidebase_private.privileges VALUES ('function tidebase.fail_step', 'worker');
INSERT INTO tidebase_private.privileges VALUES ('function tidebase.load_checkpoints', 'worker');
INSERT INTO tidebase_private.privileges VALUES ('function tidebase.resolve_review', 'approver');
INSERT INTO tidebase_private.privileges VALUES ('function tidebase.resolve_review', 'operator');
INSERT INTO tidebase_private.privileges VALUES ('table tidebase.review_inbox', 'worker');
INSERT INTO tidebase_private.privileges VALUES ('table tidebase.review_inbox', 'approver');
INSERT INTO tidebase_private.privileges VALUES ('table tidebase.review_inbox', 'operator');
INSERT INTO tidebase_private.privileges VALUES ('table tidebase.review_inbox', 'reader');
INSERT INTO tidebase_private.privileges VALUES ('table tidebase.step_timeline', 'worker');
INSERT INTO tidebase_private.privileges VALUES ('table tidebase.step_timeline', 'approver');
INSERT INTO tidebase_private.privileges VALUES ('table tidebase.step_timeline', 'operator');
INSERT INTO tidebase_private.privileges VALUES ('table tidebase.step_timeline', 'reader');
INSERT INTO tidebase_private.privileges VALUES ('function tidebase.record_usage', 'worker');
INSERT INTO tidebase_private.privileges VALUES ('function tidebase.set_budget', 'operator');
INSERT INTO tidebase_private.privileges VALUES ('table tidebase.usage_records', 'worker');
INSERT INTO tidebase_private.privileges VALUES ('table tidebase.usage_records', 'approver');
INSERT INTO tidebase_private.privileges VALUES ('table tidebase.usage_records', 'operator');
INSERT INTO tidebase_private.privileges VALUES ('table tidebase.usage_records', 'reader');
INSERT INTO tidebase_private.privileges VALUES ('table tidebase.usage_totals', 'worker');
INSERT INTO tidebase_private.privileges VALUES ('table tidebase.usage_totals', 'approver');
INSERT INTO tidebase_private.privileges VALUES ('table tidebase.usage_totals', 'operator');
INSERT INTO tidebase_private.privileges VALUES ('table tidebase.usage_totals', 'reader');
INSERT INTO tidebase_private.privileges VALUES ('table tidebase.usage_by_step', 'worker');
INSERT INTO tidebase_private.privileges VALUES ('table tidebase.usage_by_step', 'approver');
INSERT INTO tidebase_private.privileges VALUES ('table tidebase.usage_by_step', 'operator');
INSERT INTO tidebase_private.privileges VALUES ('table tidebase.usage_by_step', 'reader');
INSERT INTO tidebase_private.privileges VALUES ('table tidebase.usage_by_model', 'worker');
INSERT INTO tidebase_private.privileges VALUES ('table tidebase.usage_by_model', 'approver');
INSERT INTO tidebase_private.privileges VALUES ('table tidebase.usage_by_model', 'operator');
INSERT INTO tidebase_private.privileges VALUES ('table tidebase.usage_by_model', 'reader');
ALTER TABLE ONLY tidebase.accounts
    ADD CONSTRAINT accounts_pkey PRIMARY KEY (run_id);
ALTER TABLE ONLY tidebase.attempts
    ADD CONSTRAINT attempts_pkey PRIMARY KEY (run_id, attempt);
ALTER TABLE ONLY tidebase.deliveries
    ADD CONSTRAINT deliveries_pkey PRIMARY KEY (run_id, delivery);
ALTER TABLE ONLY tidebase.edges
    ADD CONSTRAINT edges_pkey PRIMARY KEY (run_id, name);
ALTER TABLE ONLY tidebase.events
    ADD CONSTRAINT events_pkey PRIMARY KEY (run_id, seq);
ALTER TABLE ONLY tidebase.gate_votes
    ADD CONSTRAINT gate_votes_pkey PRIMARY KEY (run_id, name, voter);
ALTER TABLE ONLY tidebase.gates
    ADD CONSTRAINT gates_pkey PRIMARY KEY (run_id, name);
ALTER TABLE ONLY tidebase.recoveries
    ADD CONSTRAINT recoveries_pkey PRIMARY KEY (run_id, recovery);
ALTER TABLE ONLY tidebase.reviews
    ADD CONSTRAINT reviews_pkey PRIMARY KEY (run_id, step, attempt);
ALTER TABLE ONLY tidebase.run_heads
    ADD CONSTRAINT run_heads_pkey PRIMARY KEY (run_id);
ALTER TABLE ONLY tidebase.runs
    ADD CONSTRAINT runs_pkey PRIMARY KEY (run_id);
ALTER TABLE ONLY tidebase.state_streams
    ADD CONSTRAINT state_streams_pkey PRIMARY KEY (run_id, stream);
ALTER TABLE ONLY tidebase.state_versions
    ADD CONSTRAINT state_versions_pkey PRIMARY KEY (run_id, stream, version);
ALTER TABLE ONLY tidebase.steps
    ADD CONSTRAINT steps_pkey PRIMARY KEY (run_id, name);
ALTER TABLE ONLY tidebase.usage
    ADD CONSTRAINT usage_pkey PRIMARY KEY (run_id, seq);
ALTER TABLE ONLY tidebase_private._yoyo_log
    ADD CONSTRAINT _yoyo_log_pkey PRIMARY KEY (id);
ALTER TABLE ONLY tidebase_private._yoyo_migration
    ADD CONSTRAINT _yoyo_migration_pkey PRIMARY KEY (migration_hash);
ALTER TABLE ONLY tidebase_private._yoyo_version
    ADD CONSTRAINT _yoyo_version_pkey PRIMARY KEY (version);
ALTER TABLE ONLY tidebase_private.function_files
    ADD CONSTRAINT function_files_pkey PRIMARY KEY (name);
ALTER TABLE ONLY tidebase_private.gate_key
    ADD CONSTRAINT gate_key_pkey PRIMARY KEY (only_one);
ALTER TABLE ONLY tidebase_private.privileges
    ADD CONSTRAINT privileges_pkey PRIMARY KEY (object, audience);
ALTER TABLE ONLY tidebase_private.settings
    ADD CONSTRAINT settings_pkey PRIMARY KEY (name);
CREATE INDEX deliveries_due ON tidebase.deliveries USING btree (next_at) WHERE (status = 'pending'::text);
CREATE INDEX edges_by_child ON tidebase.edges USING btree (child_run_id);
CREATE UNIQUE INDEX events_once_a_request ON tidebase.events USING btree (run_id, request_id) WHERE (request_id IS NOT NULL);
CREATE INDEX gates_pending ON tidebase.gates USING btree (created_at, run_id) WHERE ((status = 'pending'::text) AND (kind = 'gate'::text));
CREATE INDEX reviews_open ON tidebase.reviews USING btree (opened_at, run_id) WHERE (resolved_at IS NULL);
CREATE INDEX run_heads_alive ON tidebase.run_heads USING btree (status) WHERE (status <> 'completed'::text);
CREATE INDEX run_heads_due ON tidebase.run_heads USING btree (due_at) WHERE (due_at IS NOT NULL);
CREATE INDEX runs_by_age ON tidebase.runs USING btree (created_at DESC, run_id DESC);
CREATE INDEX runs_by_workflow ON tidebase.runs USING btree (workflow, created_at DESC, run_id DESC);
CREATE INDEX state_versions_labeled ON tidebase.state_versions USING btree (run_id, stream, version) WHERE (label IS NOT NULL);
CREATE UNIQUE INDEX usage_once_a_response ON tidebase.usage USING btree (run_id, response_id) WHERE (response_id IS NOT NULL);
ALTER TABLE ONLY tidebase.edges
    ADD CONSTRAINT edge_child_exists FOREIGN KEY (child_run_id) REFERENCES tidebase.runs(run_id);
ALTER TABLE ONLY tidebase.edges
    ADD CONSTRAINT edge_parent_exists FOREIGN KEY (run_id) REFERENCES tidebase.runs(run_id);
