-- Gates: a question to people that gets exactly one decision; and timers, which are gates that only time decides.
--
-- The decision falls under the lock of the run's head: a hundred deciders are served one after the other, the first
-- takes it, the others are told what stands. Time decides by the clock of the database: whoever looks at an overdue
-- gate first, be it reconcile, a decider or the run itself, writes the default decision down.

create or replace function tidebase_private.raise_gate_not_found(run_id text, name text)
returns void
language plpgsql volatile
as $$
begin
  perform tidebase_private.raise('TB012', format('run %L has no gate %L', run_id, name),
    jsonb_build_object('run_id', run_id, 'gate', name), 'Gates are made by open_gate; see list_gates.');
end
$$;
comment on function tidebase_private.raise_gate_not_found(text, text) is 'Raises TB012.';

-- Writes the one decision down. If the run was suspended for this gate, it may be acquired again from now on.
create or replace function tidebase_private.settle_gate(
  gate tidebase.gates, decision text, payload jsonb, comment text, actor text, decided_by text, request_id text default null)
returns tidebase.gates
language plpgsql volatile
as $$
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
    update tidebase.run_heads h set status = tidebase_private.free_status(h), waiting_for = null where h.run_id = gate.run_id
    returning h.* into head;
    perform tidebase_private.requeue(head);
    perform tidebase_private.wake_parents(gate.run_id);
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
comment on function tidebase_private.settle_gate(tidebase.gates, text, jsonb, text, text, text, text) is
  'Decides a pending gate. The caller holds the head''s lock and has seen the gate pending under it.';

create or replace function tidebase_private.settle_if_overdue(gate tidebase.gates)
returns tidebase.gates
language plpgsql volatile
as $$
begin
  if gate.status = 'pending' and gate.timeout_at <= clock_timestamp() then
    return tidebase_private.settle_gate(gate, gate.default_decision, null, null, null, 'timeout');
  end if;
  return gate;
end
$$;
comment on function tidebase_private.settle_if_overdue(tidebase.gates) is
  'The gate, with its default decision if its time is over. The caller holds the head''s lock.';

-- All gates of a run whose time is over; returns the head as it is then.
create or replace function tidebase_private.settle_overdue(head tidebase.run_heads)
returns tidebase.run_heads
language plpgsql volatile
as $$
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
comment on function tidebase_private.settle_overdue(tidebase.run_heads) is 'Decides the overdue gates and timers of a run. The caller holds the head''s lock.';

create or replace function tidebase_private.shown_hash(gate tidebase.gates)
returns bytea
language sql stable
as $$
  select tidebase_private.hash_input(case
    when gate.nonce is null then jsonb_build_array(gate.prompt, gate.data)  -- what was hashed before there were nonces
    else jsonb_build_array(gate.prompt, gate.data, gate.capability, gate.options, gate.required_approvals, gate.response_schema)
  end);
$$;
comment on function tidebase_private.shown_hash(tidebase.gates) is 'SHA-256 of all that a gate shows to who decides.';

create or replace function tidebase_private.find_gate(run_id text, name text)
returns tidebase.gates
language sql stable
as $$
  select g from tidebase.gates g where g.run_id = find_gate.run_id and g.name = find_gate.name and g.kind = 'gate';
$$;
comment on function tidebase_private.find_gate(text, text) is 'The gate (no timer); a row of NULLs when there is none.';

-- Raises TB006 when a gate or timer is opened as another one than it is.
create or replace function tidebase_private.require_same_gate(gate tidebase.gates, wanted tidebase.gates)
returns void
language plpgsql volatile
as $$
declare
  shown text[] := array['kind', 'prompt', 'data', 'capability', 'options', 'required_approvals', 'response_schema'];
  changed text;
begin
  if gate.kind = 'gate' and wanted.kind = 'gate' and gate.nonce is null then
    wanted.nonce := null;
    wanted.shown_hash := tidebase_private.shown_hash(wanted);
  end if;
  if gate.kind = wanted.kind and gate.shown_hash = wanted.shown_hash then
    return;
  end if;
  select string_agg(a.key, ', ' order by a.key) into changed
  from jsonb_each(to_jsonb(gate)) a
  join jsonb_each(to_jsonb(wanted)) b on b.key = a.key and b.value <> a.value
  where a.key = any (shown);
  perform tidebase_private.raise('TB006', format('%s %L of run %L was opened with another %s',
      gate.kind, gate.name, gate.run_id, coalesce(changed, 'duration')),
    jsonb_build_object('run_id', gate.run_id, 'gate', gate.name, 'status', gate.status),
    'A decision holds for what was shown. Give the question another name.');
end
$$;
comment on function tidebase_private.require_same_gate(tidebase.gates, tidebase.gates) is
  'Raises TB006 unless what is wanted is what is there: the same kind, and all that is shown.';

-- Makes a gate or a timer, or finds it. What the decision is about is part of its identity: if something else were
-- shown, an old approval would be an approval of something else.
create or replace function tidebase_private.open(wanted tidebase.gates, token bigint)
returns tidebase.gate_opening
language plpgsql volatile
as $$
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
  perform tidebase_private.require_same_gate(gate, wanted);
  gate := tidebase_private.settle_if_overdue(gate);
  return row(gate.status, gate.decision, gate.payload, gate.comment, gate.actor, gate.decided_at, gate.decided_by, gate.timeout_at,
    case when gate.kind = 'gate' then tidebase_private.gate_secret(gate) end, created)::tidebase.gate_opening;
end
$$;
comment on function tidebase_private.open(tidebase.gates, bigint) is 'What open_gate and start_timer share.';

create or replace function tidebase.open_gate(
  run_id text, token bigint, name text, prompt text default null, data jsonb default null, options text[] default null,
  timeout interval default null, capability jsonb default null, default_decision text default null,
  response_schema jsonb default null, required_approvals integer default 1)
returns tidebase.gate_opening
language plpgsql volatile security definer
set search_path = pg_catalog, tidebase, pg_temp
set enable_seqscan = off
as $$
declare
  wanted gates;
begin
  required_approvals := coalesce(required_approvals, 1);
  perform tidebase_private.require_name(name, 'name', 1024);
  wanted.options := coalesce(options, array['approved', 'rejected']);
  perform tidebase_private.require_list(wanted.options, 'options');
  perform tidebase_private.require_text(prompt, 'prompt');
  if cardinality(wanted.options) = 0 then
    perform tidebase_private.raise_invalid('options', 'must not be empty');
  elsif required_approvals not between 1 and 100 then
    perform tidebase_private.raise_invalid('required_approvals', 'must be a number from 1 to 100');
  elsif jsonb_typeof(response_schema) not in ('object', 'boolean') then
    perform tidebase_private.raise_invalid('response_schema', 'must be a JSON Schema: an object or a boolean');
  elsif default_decision is not null and timeout is null then
    perform tidebase_private.raise_invalid('default_decision', 'needs a timeout after which it falls');
  elsif default_decision = '' then
    perform tidebase_private.raise_invalid('default_decision', 'must not be empty');
  end if;
  perform tidebase_private.require_text(default_decision, 'default_decision');
  perform tidebase_private.require_interval(coalesce(timeout, '1 day'), 'timeout', '1 millisecond', '3650 days');

  perform tidebase_private.require_payload(data, 'data');
  perform tidebase_private.require_note(capability, 'capability');
  perform tidebase_private.require_note(response_schema, 'response_schema');
  wanted.run_id := open_gate.run_id;
  wanted.name := open_gate.name;
  wanted.kind := 'gate';
  wanted.status := 'pending';
  wanted.prompt := open_gate.prompt;
  wanted.data := coalesce(open_gate.data, '{}');
  wanted.response_schema := open_gate.response_schema;
  wanted.capability := open_gate.capability;
  wanted.required_approvals := open_gate.required_approvals;
  wanted.nonce := gen_random_uuid();
  wanted.shown_hash := tidebase_private.shown_hash(wanted);
  wanted.created_at := clock_timestamp();
  wanted.timeout_at := wanted.created_at + timeout;
  wanted.default_decision := case when timeout is not null then coalesce(open_gate.default_decision, 'timed_out') end;
  return tidebase_private.open(wanted, token);
end
$$;
comment on function tidebase.open_gate(text, bigint, text, text, jsonb, text[], interval, jsonb, text, jsonb, integer) is
  'Asks a question that gets exactly one decision; opened again it returns what stands. name: 1 to 1024 bytes, unique in the run. prompt and data: what is shown, with capability, options, required_approvals and response_schema; opened with another one: TB006. options: the decisions that may be given, by default approved and rejected. timeout: after which default_decision falls by itself (timed_out unless told). response_schema: a JSON Schema for the payload of the answer. required_approvals: how many different people must agree (1 to 100, by default 1); one "rejected" settles it at once. capability: what is granted, for the audit. secret: entitles its bearer to decide (where several must agree: to reject; see get_gate_secret): hand it to the approver, keep it out of logs. Errors: TB001, TB002, TB003, TB004, TB005, TB006.';

create or replace function tidebase.start_timer(run_id text, token bigint, name text, duration interval)
returns tidebase.gate_opening
language plpgsql volatile security definer
set search_path = pg_catalog, tidebase, pg_temp
set enable_seqscan = off
as $$
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
comment on function tidebase.start_timer(text, bigint, text, interval) is
  'Starts a durable timer, or finds the one that was started; status is decided once it has fired, timeout_at is when it does. Shares its names with the run''s gates. duration: 0 to 3650 days; with another one TB006. Errors: TB001, TB002, TB003, TB004, TB005, TB006.';

create or replace function tidebase_private.standing(gate tidebase.gates, accepted boolean)
returns tidebase.gate_decision
language sql stable
as $$
  select row(standing.accepted, gate.status, gate.decision, gate.payload, gate.comment, gate.actor, gate.decided_at,
    case when gate.required_approvals = 1 then (gate.status = 'decided')::integer
      else coalesce((select count(*)::integer from tidebase.gate_votes v
        where v.run_id = gate.run_id and v.name = gate.name
        group by v.decision order by count(*) desc limit 1), 0) end,
    gate.required_approvals)::tidebase.gate_decision;
$$;
comment on function tidebase_private.standing(tidebase.gates, boolean) is 'What stands at a gate, as an answer of decide_gate.';

-- Whether this call was taken before: its id alone does not say so, it may have been given to another call, too.
create or replace function tidebase_private.was_said(gate tidebase.gates, voter text, decision text, request_id text)
returns boolean
language sql stable
as $$
  select coalesce(gate.request_id = request_id and gate.decision = decision, false) or exists (
    select from tidebase.gate_votes v
    where v.run_id = gate.run_id and v.name = gate.name and v.voter = was_said.voter and v.decision = was_said.decision
      and v.request_id = was_said.request_id);
$$;
comment on function tidebase_private.was_said(tidebase.gates, text, text, text) is
  'Whether the gate was given this decision, or this vote, by a call with this request id.';

-- Counts a vote; true when it was counted. Who says to be whom (actor) is written down, and counts for nothing.
create or replace function tidebase_private.vote(
  gate tidebase.gates, voter text, decision text, payload jsonb, comment text, actor text, request_id text)
returns boolean
language plpgsql volatile
as $$
begin
  insert into tidebase.gate_votes (run_id, name, voter, decision, payload, comment, request_id)
  values (gate.run_id, gate.name, vote.voter, vote.decision, vote.payload, vote.comment, vote.request_id)
  on conflict on constraint gate_votes_pkey do nothing;
  if not found then
    return tidebase_private.was_said(gate, voter, decision, request_id);
  end if;
  perform tidebase_private.emit(tidebase_private.advance(gate.run_id), 'gate.voted', jsonb_build_object('name', gate.name,
    'voter', voter, 'actor', actor, 'decision', decision, 'required', gate.required_approvals,
    'approvals', (tidebase_private.standing(gate, true)).approvals));
  return true;
end
$$;
comment on function tidebase_private.vote(tidebase.gates, text, text, jsonb, text, text, text) is
  'Counts a vote once a voter. The caller holds the head''s lock.';

-- Gives a gate its decision, or says which one stands. Strangers are turned away before they lock anything; the lock may
-- then show another gate of that name, for which the caller must be entitled, too.
create or replace function tidebase.decide_gate(
  run_id text, name text, decision text, actor text default null, payload jsonb default null, secret text default null,
  comment text default null, request_id text default null, voter text default null)
returns tidebase.gate_decision
language plpgsql volatile security definer
set search_path = pg_catalog, tidebase, pg_temp
set enable_seqscan = off
as $$
declare
  gate gates := tidebase_private.find_gate(run_id, name);
  seen uuid := gate.nonce;
  right_of text := tidebase_private.entitlement(gate, run_id, name, secret, voter);
  ballot text := case when right_of = 'secret' then tidebase_private.voter_of(secret)
    when tidebase_private.is_speaker() then voter else tidebase_private.login() end;
  who text := coalesce(actor, voter, case right_of when 'secret' then ballot else tidebase_private.caller() end);
  head run_heads;
begin
  if request_id is not null then
    perform tidebase_private.require_name(request_id, 'request_id', 255);
  end if;
  if voter is not null then
    perform tidebase_private.require_name(voter, 'voter', 255);
  end if;
  perform tidebase_private.require_payload(payload, 'payload');
  perform tidebase_private.require_text(actor, 'actor');
  perform tidebase_private.require_text(comment, 'comment');
  perform tidebase_private.commit_durably();
  head := tidebase_private.lock_head(run_id);
  gate := tidebase_private.find_gate(run_id, name);
  if gate.run_id is null then
    perform tidebase_private.raise_gate_not_found(run_id, name);
  elsif gate.nonce is distinct from seen then
    perform tidebase_private.entitlement(gate, run_id, name, secret, voter);
  end if;
  if head.status = 'cancelled' then
    perform tidebase_private.raise_fenced(run_id, head.lease_token);
  end if;
  gate := tidebase_private.settle_if_overdue(gate);
  if gate.status = 'decided' then
    return tidebase_private.standing(gate, accepted => tidebase_private.was_said(gate, ballot, decision, request_id));
  elsif head.status = 'completed' then
    perform tidebase_private.raise_fenced(run_id, head.lease_token);
  elsif decision is null or decision <> all (gate.options) then
    perform tidebase_private.raise_invalid('decision', format('must be one of: %s', left(array_to_string(gate.options, ', '), 1000)));
  end if;

  if gate.required_approvals > 1 and decision <> 'rejected' then
    perform tidebase_private.require_voter(gate, ballot, right_of);
    if not tidebase_private.vote(gate, ballot, decision, payload, comment, who, request_id) then
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
comment on function tidebase.decide_gate(text, text, text, text, jsonb, text, text, text, text) is
  'Decides a gate. accepted: whether this decision was taken; false when another one stands already, which is returned. Entitled is who gives the gate''s secret, or, without one, a member of the approver role. decision: one of the gate''s options. actor: who decides, for the log; the voter or the database role unless told. payload: the answer, or the changed arguments. request_id: an id made up for this call; the call repeated with it, by the same voter for the same decision, is accepted again. Where several must agree, a voter is the database login (session_user), or whom a personal secret names, never the actor; the general secret can only reject. voter: for whom a login votes that the owner has named in the setting speakers. Errors: TB001, TB002, TB004, TB005, TB009, TB012.';

create or replace view tidebase.gate_overview with (security_barrier = true) as
  select
    g.run_id,
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
  from tidebase.gates g;
comment on view tidebase.gate_overview is 'One row a gate or timer: what was asked, and what was decided by whom. Without secrets: those are stored nowhere.';

create or replace view tidebase.gate_inbox with (security_barrier = true) as
  select
    g.run_id,
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
  from tidebase.gates g
  join tidebase.runs r on r.run_id = g.run_id
  where g.status = 'pending' and g.kind = 'gate' and (g.timeout_at is null or g.timeout_at > clock_timestamp());
comment on view tidebase.gate_inbox is 'The gates that wait for a decision (decide_gate). Order by created_at.';

create or replace function tidebase.get_gate(run_id text, name text)
returns setof tidebase.gate_overview
language plpgsql volatile security definer rows 1
set search_path = pg_catalog, tidebase, pg_temp
set enable_seqscan = off
as $$
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
comment on function tidebase.get_gate(text, text) is
  'The gate_overview row of a gate or timer; one whose time is over gets its default decision first. Errors: TB012.';

-- One page of names for each set of filters that an index serves: the plan is made for each call's values.
create or replace function tidebase_private.page_of_gates(
  run_id text, status text, oldest timestamptz, behind_run text, behind_name text, max integer)
returns setof tidebase.gates
language plpgsql stable
set plan_cache_mode = force_custom_plan
set enable_seqscan = off
as $$
begin
  if run_id is not null then
    return query
      select g.* from tidebase.gates g
      where g.run_id = page_of_gates.run_id and g.kind = 'gate' and (page_of_gates.status is null or g.status = page_of_gates.status)
        and (g.created_at, g.run_id, g.name) > (oldest, behind_run, behind_name)
      order by g.created_at, g.run_id, g.name limit page_of_gates.max;
  elsif status is not null then
    return query
      select g.* from tidebase.gates g
      where g.kind = 'gate' and g.status = page_of_gates.status and (g.created_at, g.run_id, g.name) > (oldest, behind_run, behind_name)
      order by g.created_at, g.run_id, g.name limit page_of_gates.max;
  else
    return query
      select g.* from tidebase.gates g
      where g.kind = 'gate' and (g.created_at, g.run_id, g.name) > (oldest, behind_run, behind_name)
      order by g.created_at, g.run_id, g.name limit page_of_gates.max;
  end if;
end
$$;
comment on function tidebase_private.page_of_gates(text, text, timestamptz, text, text, integer) is
  'The next gates, oldest first, that were opened after oldest (or at that moment, with a higher run and name than those behind).';

create or replace function tidebase.list_gates(
  run_id text default null, status text default null, max integer default 100,
  after_created_at timestamptz default null, after_run_id text default null, after_name text default null)
returns setof tidebase.gate_overview
language plpgsql stable security definer rows 100
set search_path = pg_catalog, tidebase, pg_temp
set enable_seqscan = off
as $$
declare
  gate gates;
begin
  max := coalesce(max, 100);
  if max < 1 or max > 1000 then
    perform tidebase_private.raise_invalid('max', 'must be a number from 1 to 1000');
  elsif status not in ('pending', 'decided', 'cancelled') then
    perform tidebase_private.raise_invalid('status', 'must be one of: pending, decided, cancelled');
  end if;
  for gate in
    select p.* from tidebase_private.page_of_gates(run_id, status, coalesce(after_created_at, '-infinity'),
      coalesce(after_run_id, ''), coalesce(after_name, ''), max) p
    order by p.created_at, p.run_id, p.name
  loop
    return query select o.* from gate_overview o where o.run_id = gate.run_id and o.name = gate.name;
  end loop;
end
$$;
comment on function tidebase.list_gates(text, text, integer, timestamptz, text, text) is
  'Gates, oldest first, at most max (1 to 1000): of a run, in a status (pending, decided, cancelled). NULL means any. To page on give the last row''s created_at, run_id and name as after_created_at, after_run_id and after_name. A page costs the same among any number of gates. Errors: TB002.';

create or replace view tidebase.gate_ballots with (security_barrier = true) as
  select
    v.run_id,
    v.name,
    v.voter,
    v.decision,
    v.comment,
    v.voted_at
  from tidebase.gate_votes v;
comment on view tidebase.gate_ballots is
  'One row a vote at a gate that needs several approvals: whose it is, for what, and when. Order by voted_at.';

-- The gates behind a place, which need not be one of this database.
create or replace function tidebase_private.page_of_inbox(max integer, due timestamptz, made timestamptz, run_id text, name text)
returns setof tidebase.gate_overview
language plpgsql stable
set enable_seqscan = off
set plan_cache_mode = force_custom_plan
as $$
declare
  gate tidebase.gates;
begin
  for gate in
    select g.* from tidebase.gates g
    where g.kind = 'gate' and g.status = 'pending'
      and (coalesce(g.timeout_at, 'infinity'::timestamptz), g.created_at, g.run_id, g.name)
        > (due, coalesce(made, '-infinity'), coalesce(page_of_inbox.run_id, ''), coalesce(page_of_inbox.name, ''))
    order by coalesce(g.timeout_at, 'infinity'::timestamptz), g.created_at, g.run_id, g.name
    limit page_of_inbox.max
  loop
    return query select o.* from tidebase.gate_overview o where o.run_id = gate.run_id and o.name = gate.name;
  end loop;
end
$$;
comment on function tidebase_private.page_of_inbox(integer, timestamptz, timestamptz, text, text) is
  'A page of list_inbox: the gates whose deadline, time, run and name are behind these.';

create or replace function tidebase.list_inbox(max integer default 100, after_run_id text default null, after_name text default null)
returns setof tidebase.gate_overview
language plpgsql stable security definer rows 100
set search_path = pg_catalog, tidebase, pg_temp
set enable_seqscan = off
as $$
declare
  place gates;
  due timestamptz := clock_timestamp();
begin
  max := coalesce(max, 100);
  if max not between 1 and 1000 then
    perform tidebase_private.raise_invalid('max', 'must be a number from 1 to 1000');
  end if;
  if after_run_id is not null then
    select g.* into place from gates g where g.run_id = after_run_id and g.name = after_name and g.kind = 'gate';
    if not found then
      perform tidebase_private.raise_gate_not_found(after_run_id, after_name);
    end if;
    due := greatest(due, coalesce(place.timeout_at, 'infinity'));
  end if;
  return query select i.* from tidebase_private.page_of_inbox(max, due, place.created_at, place.run_id, place.name) i;
end
$$;
comment on function tidebase.list_inbox(integer, text, text) is
  'The gates that wait for a decision, those nearest to their deadline first, then those without one, oldest first; at most max (1 to 1000). To page on give the last row''s run_id and name as after_run_id and after_name. A page costs the same among any number of gates. Errors: TB002, TB012.';

select tidebase_private.allow('function tidebase.open_gate', 'worker');
select tidebase_private.allow('function tidebase.start_timer', 'worker');
select tidebase_private.allow('function tidebase.decide_gate', 'approver', 'operator', 'reader');
select tidebase_private.allow('function tidebase.get_gate', 'worker', 'approver', 'operator', 'reader');
select tidebase_private.allow('function tidebase.list_gates', 'worker', 'approver', 'operator', 'reader');
select tidebase_private.allow('table tidebase.gate_overview', 'worker', 'approver', 'operator', 'reader');
select tidebase_private.allow('table tidebase.gate_inbox', 'worker', 'approver', 'operator', 'reader');
select tidebase_private.allow('function tidebase.list_inbox', 'worker', 'approver', 'operator', 'reader');
select tidebase_private.allow('table tidebase.gate_ballots', 'worker', 'approver', 'operator', 'reader');
