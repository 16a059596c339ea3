-- What no token may be below: also after a purge, a restore, an upgrade of the server or a failover.

-- Where the tables are: on which server, since which promotion, which ones. It changes when a dump is restored, when the server
-- is upgraded by pg_upgrade, when a standby takes over. A server that does not offer one of these functions is known by the
-- others.
create or replace function tidebase_private.whereabouts()
returns text
language plpgsql volatile
as $$
declare
  server text := '';
  timeline text := '';
begin
  begin
    select c.system_identifier::text into server from pg_control_system() c;
    timeline := left(pg_walfile_name(pg_current_wal_insert_lsn()), 8);  -- a WAL file's name begins with its timeline
  exception when feature_not_supported or object_not_in_prerequisite_state or insufficient_privilege or undefined_function then
    null;
  end;
  return concat_ws('/', server, timeline, 'tidebase.run_heads'::regclass::oid);
end
$$;
comment on function tidebase_private.whereabouts() is
  'Server, timeline and table: what tells this incarnation of the database from every other.';

-- Called when the tables turn out to be somewhere else than they were: there may be grants that did not come along. By the
-- clock, no earlier incarnation has come as far as this: it would have had to grant one run a million times a second.
create or replace function tidebase_private.begin_incarnation(whereabouts text)
returns bigint
language sql volatile
as $$
  insert into tidebase_private.incarnation as i (whereabouts, tokens_before)
  values (begin_incarnation.whereabouts, case
    when exists (select from tidebase.attempts) or exists (select from tidebase_private.incarnation)
      then extract(epoch from clock_timestamp())::bigint << 20
    else 0 end)  -- nothing was ever granted here
  on conflict on constraint incarnation_pkey do update
  set whereabouts = excluded.whereabouts, tokens_before = greatest(i.tokens_before, excluded.tokens_before), begun_at = clock_timestamp()
  where i.whereabouts <> excluded.whereabouts
  returning i.tokens_before;
$$;
comment on function tidebase_private.begin_incarnation(text) is
  'Raises tokens_before above every token that another incarnation can have issued. NULL when somebody else just did.';

-- A token must never be issued twice for an id, also where rows are lost: with the run that was purged, in a restored dump,
-- on a promoted standby that did not get the last grants.
create or replace function tidebase_private.tokens_before()
returns bigint
language plpgsql volatile
as $$
declare
  here text := tidebase_private.whereabouts();
  known tidebase_private.incarnation;
begin
  select i.* into known from tidebase_private.incarnation i;
  if known.whereabouts is distinct from here then
    known.tokens_before := tidebase_private.begin_incarnation(here);
    if known.tokens_before is null then
      select i.tokens_before into strict known.tokens_before from tidebase_private.incarnation i;
    end if;
  end if;
  return known.tokens_before;
end
$$;
comment on function tidebase_private.tokens_before() is
  'No token above this number was issued for a run that is not here any more, nor by another incarnation of the database.';

-- Known from the beginning, so that tokens are small numbers until something is lost. A schema of before this had the
-- tokens of a promoted standby begin at the number of its timeline, in steps of 2^32.
insert into tidebase_private.incarnation (whereabouts, tokens_before)
select w.whereabouts, coalesce((('x' || nullif(split_part(w.whereabouts, '/', 2), ''))::bit(32)::bigint - 1) << 32, 0)
from tidebase_private.whereabouts() w (whereabouts)
on conflict do nothing;
