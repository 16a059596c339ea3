-- Who may call what.
--
-- Each function file ends by saying who its functions are for: `select tidebase_private.allow('function
-- tidebase.acquire_run', 'worker')`. The statement is only recorded, because the roles may not exist yet: on a managed
-- Postgres the user who installs Tidebase may not be allowed to create them. apply_privileges() turns the record into
-- grants for the roles that do exist; install_roles() makes the roles and hands everything to the owner role. All of it is
-- called by `tidebase migrate`, as the user who installs.
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

-- Who may do something with an object of ours, beside its owner: what its access list says, or PUBLIC by default.
create or replace function tidebase_private.granted()
returns table (object text, privilege text, grantee text)
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  with objects as (
    select format('schema %I', n.nspname) as object, n.nspowner as owner, n.nspacl as acl
    from pg_namespace n
    where n.nspname in ('tidebase', 'tidebase_private')
    union all
    select format('%s %I.%I', case p.prokind when 'p' then 'procedure' else 'function' end, n.nspname, p.proname)
        || format('(%s)', pg_get_function_identity_arguments(p.oid)), p.proowner, coalesce(p.proacl, acldefault('f', p.proowner))
    from pg_proc p
    join pg_namespace n on n.oid = p.pronamespace
    where n.nspname in ('tidebase', 'tidebase_private')
    union all
    select format('%s %I.%I', case c.relkind when 'S' then 'sequence' else 'table' end, n.nspname, c.relname), c.relowner, c.relacl
    from pg_class c
    join pg_namespace n on n.oid = c.relnamespace
    where n.nspname in ('tidebase', 'tidebase_private') and c.relkind in ('r', 'p', 'v', 'm', 'f', 'S')
    union all
    select format('(%I) table %I.%I', a.attname, n.nspname, c.relname), c.relowner, a.attacl
    from pg_attribute a
    join pg_class c on c.oid = a.attrelid
    join pg_namespace n on n.oid = c.relnamespace
    where n.nspname in ('tidebase', 'tidebase_private') and c.relkind in ('r', 'p', 'v', 'm', 'f') and a.attacl is not null
  )
  select o.object, lower(a.privilege_type), case a.grantee when 0 then 'public' else quote_ident(pg_get_userbyid(a.grantee)) end
  from objects o
  cross join aclexplode(o.acl) a
  where a.grantee <> o.owner
    and a.grantee <> (select c.relowner from pg_class c where c.oid = 'tidebase.events'::regclass);
$$;
comment on function tidebase_private.granted() is
  'Every privilege on an object of the two schemas that is not its owner''s, nor of who owns the tables: the object with its kind, a column in parentheses before its table, and the grantee, quoted.';

-- What the record says: each object's kind and signature as granted() writes them.
create or replace function tidebase_private.to_grant()
returns table (object text, privilege text, grantee text)
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  with audiences as (
    select a.audience, tidebase_private.role_name(a.audience) as role
    from unnest(array['worker', 'approver', 'operator', 'reader']) as a (audience)
    where exists (select from pg_roles r where r.rolname = tidebase_private.role_name(a.audience))
      -- Not to roles of that name which are somebody else's: who may not hand over to the owner role lets nobody in.
      and exists (
        select from pg_class c
        join pg_roles r on r.oid = c.relowner
        where c.oid = 'tidebase.events'::regclass and r.rolname = tidebase_private.role_name('owner'))
  )
  select 'schema tidebase', 'usage', quote_ident(a.role)
  from audiences a
  union all
  select format('function %I.%I(%s)', n.nspname, f.proname, pg_get_function_identity_arguments(f.oid)), 'execute', quote_ident(a.role)
  from tidebase_private.privileges p
  join audiences a using (audience)
  join pg_proc f on f.oid = substr(p.object, length('function ') + 1)::regproc
  join pg_namespace n on n.oid = f.pronamespace
  where p.object like 'function %'
  union all
  select format('table %I.%I', n.nspname, c.relname), 'select', quote_ident(a.role)
  from tidebase_private.privileges p
  join audiences a using (audience)
  join pg_class c on c.oid = substr(p.object, length('table ') + 1)::regclass
  join pg_namespace n on n.oid = c.relnamespace
  where p.object like 'table %';
$$;
comment on function tidebase_private.to_grant() is
  'The privileges that the record allows, for the roles that exist, once everything belongs to the owner role: object, privilege and grantee as tidebase_private.granted() writes them.';

-- Brings the grants in line with the record. What is taken away is found in the access lists, not in a list of names: it
-- may be a former prefix' role, or another database's, or whoever the default privileges of the installer are for.
create or replace function tidebase_private.apply_privileges()
returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  change record;
begin
  for change in
    select * from tidebase_private.granted() except select * from tidebase_private.to_grant()
  loop
    execute format('revoke %s %s from %s cascade', change.privilege,
      case when change.object like '(%' then regexp_replace(change.object, '^(\(.*\)) table ', '\1 on table ')
        else 'on ' || change.object end, change.grantee);
  end loop;
  for change in
    select * from tidebase_private.to_grant() except select * from tidebase_private.granted()
  loop
    execute format('grant %s on %s to %s', change.privilege, change.object, change.grantee);
  end loop;

  -- Not even the owner's own functions can rewrite history.
  execute format('revoke update, truncate on tidebase.events from %I',
    (select pg_get_userbyid(c.relowner) from pg_class c where c.oid = 'tidebase.events'::regclass));
end
$$;
comment on function tidebase_private.apply_privileges() is
  'Grants to the existing roles exactly what the function files allow; takes away what anybody else but the owner may do, PUBLIC, too.';

-- A router's call says on whose behalf it is made, for as long as its transaction lasts. It counts only where the login may
-- do everything anyway: inside a SECURITY DEFINER function current_user is the owner.
create or replace function tidebase_private.speak_for(who jsonb)
returns boolean
language plpgsql volatile
as $$
begin
  perform set_config('tidebase.caller', who::text, true);
  return true;
end
$$;
comment on function tidebase_private.speak_for(jsonb) is
  'Says for whom the owner''s login speaks in this transaction, as tidebase_private.myself() tells it where the call was made. Always true.';

create or replace function tidebase_private.spoken_for()
returns jsonb
language plpgsql stable
as $$
begin
  if current_setting('tidebase.caller', true) <> '' and pg_has_role(session_user, current_user, 'member') then
    return current_setting('tidebase.caller')::jsonb;
  end if;
  return null;
end
$$;
comment on function tidebase_private.spoken_for() is 'For whom a router speaks; NULL where a call is the login''s own.';

create or replace function tidebase_private.login()
returns text
language sql stable
as $$
  select coalesce(tidebase_private.spoken_for() ->> 'login', session_user::text);
$$;
comment on function tidebase_private.login() is 'The login on whose behalf the function was called.';

-- Who calls: inside a SECURITY DEFINER function current_user is the owner, so the role that was set counts, else the
-- user who logged in. Nobody can set a role without being its member.
create or replace function tidebase_private.caller()
returns text
language sql stable
as $$
  select coalesce(tidebase_private.spoken_for() ->> 'role',
    case when current_setting('role') = 'none' then session_user::text else current_setting('role') end);
$$;
comment on function tidebase_private.caller() is 'The role on whose behalf the function was called.';

create or replace function tidebase_private.caller_is(audience text)
returns boolean
language sql stable
as $$
  select coalesce((tidebase_private.spoken_for() -> 'audiences') ? caller_is.audience, exists (
    select from pg_roles r
    where r.rolname in (tidebase_private.role_name(audience), current_user)
      and pg_has_role(tidebase_private.caller(), r.oid, 'member')));
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
    -- Schemas that an administrator has made stay those of who installs, if it may make none itself.
    select format('schema %I', n.nspname)
    from pg_namespace n
    where n.nspname in ('tidebase', 'tidebase_private')
      and n.nspowner <> owner_oid
      and has_database_privilege(current_database(), 'create')
  loop
    execute format('alter %s owner to %I', object, new_owner);
  end loop;
end
$$;
comment on function tidebase_private.hand_over(text) is
  'Makes a role the owner of everything in the two schemas (of the schemas themselves, if the caller may create schemas): the functions are SECURITY DEFINER and run with its rights.';

-- Makes the five roles and gives each its part. `tidebase migrate` calls it. It needs CREATEROLE where roles are missing;
-- where an administrator has made them (`tidebase roles --sql`), to be a member of the owner role is enough. An
-- administrator does not call it: it belongs to whoever installed Tidebase, and would run with the administrator's rights.
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
  if not pg_has_role(current_user, owner, 'usage') then
    execute format('grant %I to %I', owner, current_user);  -- to give objects to a role one must be its member
  end if;
  execute format('grant create, usage on schema tidebase, tidebase_private to %I', owner);
  perform tidebase_private.hand_over(owner);
  perform tidebase_private.apply_privileges();
  return missing;
end
$$;
comment on function tidebase_private.install_roles(text) is
  'Creates the five roles where they are missing (needs CREATEROLE), hands every object to the owner role and grants each role its part. prefix: what the roles are called, "tidebase" unless told. Returns the roles that it created. Safe to call again; not for a superuser, unless everything belongs to one.';

-- What a package and a schema must agree on, as one number: a package looks at it when a call is not understood.
create or replace function tidebase.protocol()
returns integer
language sql immutable security definer
set search_path = pg_catalog, tidebase, pg_temp
as $$
  select 10;
$$;
comment on function tidebase.protocol() is
  'The protocol between packages and the schema: raised when a function that packages call has come, has gone, or answers otherwise. An older or newer package works as long as it calls nothing that differs.';

select tidebase_private.allow('function tidebase.protocol', 'worker', 'approver', 'operator', 'reader');
