-- The secrets of gates: derived from the key of the database, stored nowhere; and who may decide by one, or without.

-- HMAC-SHA256 (RFC 2104) over the built-in sha256(): no extension is needed. The key is made when this
-- file is installed (below), and anew where it was deleted.
create or replace function tidebase_private.hmac(message bytea)
returns bytea
language plpgsql volatile
as $$
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
comment on function tidebase_private.hmac(bytea) is 'HMAC-SHA256 of the message with the installation''s key.';

create or replace function tidebase_private.xor_pad(key bytea, pad integer)
returns bytea
language plpgsql immutable
as $$
declare
  padded bytea := key || decode(repeat('00', 64 - length(key)), 'hex');
begin
  for i in 0..63 loop
    padded := set_byte(padded, i, get_byte(padded, i) # pad);
  end loop;
  return padded;
end
$$;
comment on function tidebase_private.xor_pad(bytea, integer) is 'A key of at most 64 bytes, zero-padded to a block and combined with a pad byte (RFC 2104).';

-- The secret of a gate is derived, not stored: it can be given out again after a crash, and no dump holds it. The nonce
-- is made with the gate, so the secret dies with it: a run that is made anew under the same id has other secrets. Gates
-- from before there were nonces keep the secret that was handed out. A personal secret ends with the voter's name.
create or replace function tidebase_private.gate_secret(gate tidebase.gates, voter text default null)
returns text
language sql volatile
as $$
  select 'gate_' || encode(tidebase_private.hmac(convert_to(
    case
      when gate.nonce is null and voter is null then format('gate:%s:%s:%s', octet_length(gate.run_id), gate.run_id, gate.name)
      else format('gate of %s:%s:%s:%s:%s%s', coalesce(gate.nonce::text, extract(epoch from gate.created_at)::text),
        octet_length(gate.run_id), gate.run_id, octet_length(gate.name), gate.name, ' for ' || voter)
    end, 'UTF8')), 'hex') || coalesce('_' || voter, '');
$$;
comment on function tidebase_private.gate_secret(tidebase.gates, text) is
  'What entitles its bearer to decide the gate. voter: a personal secret, for this voter; NULL: the general one.';

create or replace function tidebase_private.voter_of(secret text)
returns text
language sql immutable
as $$
  select case when substr(secret, 70, 1) = '_' then substr(secret, 71) end;
$$;
comment on function tidebase_private.voter_of(text) is
  'For whom a secret is, if it is a personal one ("gate_", 64 digits, "_" and the name); NULL for a general one.';

-- A login is one person, whatever roles it sets and whatever it calls itself. One that serves many people has to be
-- named by the owner, for it is believed whom it speaks for.
create or replace function tidebase_private.is_speaker()
returns boolean
language sql stable
as $$
  select coalesce((tidebase_private.spoken_for() ->> 'speaks')::boolean, session_user = any (coalesce((
    select s.value::name[] from tidebase_private.settings s where s.name = 'speakers'), '{}')));
$$;
comment on function tidebase_private.is_speaker() is
  'Whether the login may vote for others: it is named in the setting speakers, an array of logins such as {gateway,bot}.';

create or replace function tidebase_private.myself()
returns jsonb
language sql stable
as $$
  select jsonb_build_object('login', tidebase_private.login(), 'role', tidebase_private.caller(), 'speaks', tidebase_private.is_speaker(),
    'audiences', (
      select coalesce(jsonb_agg(a.audience), '[]') from unnest(array['worker', 'approver', 'operator', 'reader']) a (audience)
      where tidebase_private.caller_is(a.audience)));
$$;
comment on function tidebase_private.myself() is 'Who calls, and what for: what a router tells its shards, for speak_for.';

create or replace function tidebase_private.raise_not_entitled(run_id text, name text, hint text)
returns void
language plpgsql volatile
as $$
begin
  perform tidebase_private.raise('TB009', format('not entitled to decide gate %L of run %L', name, run_id),
    jsonb_build_object('run_id', run_id, 'gate', name), hint);
end
$$;
comment on function tidebase_private.raise_not_entitled(text, text, text) is 'Raises TB009.';

-- Whether the caller may decide, and as what. The secrets are compared by their HMACs, so how long the comparison
-- takes says nothing about the secret ("double HMAC verification").
create or replace function tidebase_private.entitlement(gate tidebase.gates, run_id text, name text, secret text, voter text)
returns text
language plpgsql volatile
as $$
begin
  if secret is not null then
    if gate.run_id is not null and tidebase_private.hmac(convert_to(secret, 'UTF8'))
      = tidebase_private.hmac(convert_to(tidebase_private.gate_secret(gate, tidebase_private.voter_of(secret)), 'UTF8'))
      and coalesce(voter = tidebase_private.voter_of(secret), voter is null)
    then
      return 'secret';
    end if;
  elsif tidebase_private.caller_is('approver') then
    if voter is null or voter = tidebase_private.login() or tidebase_private.is_speaker() then
      return 'approver';
    end if;
    perform tidebase_private.raise_not_entitled(run_id, name,
      format('Login %s votes for itself only, until the owner names it in the setting speakers.', tidebase_private.login()));
  end if;
  perform tidebase_private.raise_not_entitled(run_id, name,
    format('Give the gate''s secret, or call as a member of %s.', tidebase_private.role_name('approver')));
  return null;
end
$$;
comment on function tidebase_private.entitlement(tidebase.gates, text, text, text, text) is
  'secret or approver: by what right the caller decides the gate, and for this voter. A secret that is given must be right. Errors: TB009.';

-- Where several must agree, each vote is somebody's. The bearer of the general secret may be one of the approvers.
create or replace function tidebase_private.require_voter(gate tidebase.gates, voter text, right_of text)
returns void
language plpgsql volatile
as $$
begin
  if voter is not null then
    return;
  elsif right_of = 'secret' then
    perform tidebase_private.raise_not_entitled(gate.run_id, gate.name, format(
      'This gate needs %s people, and its general secret does not say who bears it: vote as a member of %s, or with a personal secret (get_gate_secret with a voter). Rejecting is possible.',
      gate.required_approvals, tidebase_private.role_name('approver')));
  end if;
  perform tidebase_private.raise_not_entitled(gate.run_id, gate.name,
    format('Login %s speaks for others: name the voter.', tidebase_private.login()));
end
$$;
comment on function tidebase_private.require_voter(tidebase.gates, text, text) is 'Raises TB009 when a vote would be nobody''s.';

-- Workers ask on behalf of approvers whom only they know, and may have lost what open_gate told them.
create or replace function tidebase.get_gate_secret(run_id text, name text, voter text default null)
returns text
language plpgsql volatile security definer
set search_path = pg_catalog, tidebase, pg_temp
set enable_seqscan = off
as $$
declare
  gate gates := tidebase_private.find_gate(run_id, name);
begin
  if voter is not null then
    perform tidebase_private.require_name(voter, 'voter', 255);
  end if;
  if gate.run_id is null then
    perform tidebase_private.raise_gate_not_found(run_id, name);
  end if;
  return case when gate.status = 'pending' then tidebase_private.gate_secret(gate, voter) end;
end
$$;
comment on function tidebase.get_gate_secret(text, text, text) is
  'The secret that entitles its bearer to decide a gate, once more, as open_gate gave it; NULL when the gate is decided. voter: a personal secret instead, of up to 255 bytes of name: where several must agree, approving with it is the vote of this voter, who is the same as the database login of that name. For workers, who hand them to approvers. Errors: TB002, TB012.';

select tidebase_private.allow('function tidebase.get_gate_secret', 'worker');

-- Made now: the first two gates of an installation would wait for each other otherwise.
select from tidebase_private.hmac('');
