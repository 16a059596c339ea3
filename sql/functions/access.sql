-- Who may call what.
--
-- Each function file ends by saying who its functions are for: `select tidebase_private.allow('function
-- tidebase.acquire_run', 'worker')`. The statement is only recorded, because the roles may not exist yet: on a managed
-- Postgres the user who installs Tidebase may not be allowed to create them. apply_privileges() turns the record into
-- grants for the roles that do exist; install_roles() makes the roles and hands everything to the owner role.
--
-- What is called while Tidebase is installed has a pinned search_path, too: whoever installs it is often a superuser, and
-- public may be a schema in which everybody can make a function that fits better than the server's own.
--
-- The roles are siblings, not a ladder: a worker cannot approve its own gate. Nobody but the owner touches a table.
-- This file is applied first (the files go in alphabetical order).

create or replace function tidebase_private.allow(object text, variadic audience text[])
returns void
language sql volatile
set search_path = pg_catalog, pg_temp
as $$
  insert into tidebase_private.privileges (object, audience)
  select allow.object, unnest(allow.audience)
  on conflict do nothing;
$$;
comment on function tidebase_private.allow(text, text[]) is
  'Records that an object ("function tidebase.f" or "table tidebase.v") is for these audiences: worker, approver, operator, reader.';

create or replace function tidebase_private.role_name(audience text)
returns text
language sql stable
as $$
  select coalesce((select value from tidebase_private.settings where name = 'role_prefix'), 'tidebase') || '_' || audience;
$$;
comment on function tidebase_private.role_name(text) is 'The name of the role for an audience, e.g. tidebase_worker.';

create or replace function tidebase_private.revoke_all(grantee text)
returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
begin
  execute format('revoke all on all functions in schema tidebase, tidebase_private from %I', grantee);
  execute format('revoke all on all tables in schema tidebase, tidebase_private from %I', grantee);
  execute format('revoke all on schema tidebase, tidebase_private from %I', grantee);
end
$$;
comment on function tidebase_private.revoke_all(text) is 'Takes away from a role whatever it may do in the two schemas.';

-- Brings the grants in line with the record: first everything is taken away, then given as recorded. Inside the one
-- transaction of a migration nobody sees the moment between.
create or replace function tidebase_private.apply_privileges()
returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
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
comment on function tidebase_private.apply_privileges() is
  'Grants to the existing roles exactly what the function files allow; takes away the rest, also from PUBLIC.';

-- Who calls: inside a SECURITY DEFINER function current_user is the owner, so the role that was set counts, else the
-- user who logged in. Nobody can set a role without being its member.
create or replace function tidebase_private.caller()
returns text
language sql stable
as $$
  select case when current_setting('role') = 'none' then session_user::text else current_setting('role') end;
$$;
comment on function tidebase_private.caller() is 'The role on whose behalf the function was called.';

create or replace function tidebase_private.caller_is(audience text)
returns boolean
language sql stable
as $$
  select exists (
    select from pg_roles r
    where r.rolname in (tidebase_private.role_name(audience), current_user)
      and pg_has_role(tidebase_private.caller(), r.oid, 'member'));
$$;
comment on function tidebase_private.caller_is(text) is
  'Whether the caller is a member of the audience''s role, or of the role that owns Tidebase. Called from SECURITY DEFINER functions.';

create or replace function tidebase_private.hand_over(new_owner text)
returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
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
comment on function tidebase_private.hand_over(text) is
  'Makes a role the owner of everything in the two schemas: the functions are SECURITY DEFINER and run with its rights.';

-- Makes the five roles and gives each its part. The only piece of the installation that needs more than ownership of
-- the schemas: CREATEROLE (or a superuser). Calling it again repairs grants and ownership.
create or replace function tidebase_private.install_roles(prefix text default null)
returns text[]
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
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
comment on function tidebase_private.install_roles(text) is
  'Creates the five roles where they are missing (needs CREATEROLE), hands every object to the owner role and grants each role its part. prefix: what the roles are called, "tidebase" unless told. Returns the roles that it created. Safe to call again.';
