"""Whose Tidebase is: what a migration makes sure of before it executes anything that it finds in a database.

Who owns a schema, or an object in it, decides what happens to whoever uses it: a function of the same name that fits
better, a trigger, an operator. So a migration touches nothing that belongs to somebody who could not do the same
without it. It looks in the catalogues, by their full names, and calls nothing of the database's own.
"""

from __future__ import annotations

import hashlib
from typing import Any

import psycopg
from psycopg import sql

from ..core.errors import NotEntitled

SCHEMAS = ("tidebase", "tidebase_private")

#: Everything in the two schemas that has an owner, and triggers by their functions.
_OWNED = """
select 'schema' as kind, n.nspname::text as name, n.nspowner as owner
from pg_catalog.pg_namespace n where n.nspname = any (%(schemas)s)
union all
select case c.relkind when 'v' then 'view' when 'r' then 'table' else 'relation' end,
  c.oid::pg_catalog.regclass::text, c.relowner
from pg_catalog.pg_class c
join pg_catalog.pg_namespace n on n.oid = c.relnamespace where n.nspname = any (%(schemas)s)
union all
select 'function', p.oid::pg_catalog.regprocedure::text, p.proowner from pg_catalog.pg_proc p
join pg_catalog.pg_namespace n on n.oid = p.pronamespace where n.nspname = any (%(schemas)s)
union all
select 'type', t.oid::pg_catalog.regtype::text, t.typowner from pg_catalog.pg_type t
join pg_catalog.pg_namespace n on n.oid = t.typnamespace where n.nspname = any (%(schemas)s)
union all
select 'operator', o.oid::pg_catalog.regoperator::text, o.oprowner from pg_catalog.pg_operator o
join pg_catalog.pg_namespace n on n.oid = o.oprnamespace where n.nspname = any (%(schemas)s)
union all
select 'operator class', o.opcname::text, o.opcowner from pg_catalog.pg_opclass o
join pg_catalog.pg_namespace n on n.oid = o.opcnamespace where n.nspname = any (%(schemas)s)
union all
select 'collation', o.collname::text, o.collowner from pg_catalog.pg_collation o
join pg_catalog.pg_namespace n on n.oid = o.collnamespace where n.nspname = any (%(schemas)s)
union all
select 'conversion', o.conname::text, o.conowner from pg_catalog.pg_conversion o
join pg_catalog.pg_namespace n on n.oid = o.connamespace where n.nspname = any (%(schemas)s)
union all
select 'trigger', pg_catalog.format('%%s on %%s', t.tgname, t.tgrelid::pg_catalog.regclass), p.proowner
from pg_catalog.pg_trigger t
join pg_catalog.pg_proc p on p.oid = t.tgfoid
join pg_catalog.pg_class c on c.oid = t.tgrelid
join pg_catalog.pg_namespace n on n.oid = c.relnamespace
where n.nspname = any (%(schemas)s) and not t.tgisinternal
"""

#: Who may act as a role without being a superuser: who can log in as it, and its members, however far away.
_ACTORS = """
with recursive members (role, member) as (
  select m.roleid, m.member from pg_catalog.pg_auth_members m
  union
  select e.role, m.member from members e join pg_catalog.pg_auth_members m on m.roleid = e.member
),
actors (role, actor) as (
  select r.oid, r.oid from pg_catalog.pg_roles r where r.rolcanlogin or r.rolcreaterole
  union
  select e.role, e.member from members e
)
select a.role, a.actor, r.rolname::text as name
from actors a join pg_catalog.pg_roles r on r.oid = a.actor where not r.rolsuper
"""

#: A superuser trusts superusers, and roles that nobody else can act as; others trust superusers and the roles of which
#: they are members.
_STRANGERS = f"""
with actors as ({_ACTORS.replace("%", "%%")}), owned as ({_OWNED}),
me as (select r.oid, r.rolsuper from pg_catalog.pg_roles r where r.rolname = current_user)
select o.kind, o.name, pg_catalog.pg_get_userbyid(o.owner)::text as owner, me.rolsuper,
  (select pg_catalog.min(a.name) from actors a where a.role = o.owner and a.actor <> o.owner)
from owned o cross join me
where o.owner <> me.oid
  and not exists (select from pg_catalog.pg_roles r where r.oid = o.owner and r.rolsuper)
  and case when me.rolsuper then exists (select from actors a where a.role = o.owner)
    else not pg_catalog.pg_has_role(me.oid, o.owner, 'usage') end
order by o.kind <> 'schema', o.kind = 'type', o.name
limit 1
"""


def refuse_strangers(connection: psycopg.Connection[Any]) -> None:
    """Raises NotEntitled where something in the two schemas belongs to somebody whom the user does not trust anyway."""
    row = connection.execute(_STRANGERS, {"schemas": list(SCHEMAS)}).fetchone()
    if row is None:
        return
    kind, name, owner, superuser, member = row
    if superuser:
        who = f"{owner}, as whom {member} may act" if member else owner
        raise NotEntitled(
            f"the {kind} {name} belongs to {who}, and a superuser's migration would run what is there with its rights",
            sqlstate="42501",
            hint=f"Run it as {member or owner}; or look at what is there, and drop it if it is not Tidebase's.",
        )
    if kind == "schema":
        raise NotEntitled(
            f"the schema {name} is to be changed, and belongs to {owner}",
            sqlstate="42501",
            hint=f"Let {owner}, or a member of that role, run: tidebase migrate",
        )
    raise NotEntitled(
        f"the {kind} {name} belongs to {owner}, and is not Tidebase's",
        sqlstate="42501",
        hint="Look at what it is, and drop it or put it into another schema.",
    )


def foreign(connection: psycopg.Connection[Any]) -> list[tuple[str, str, str]]:
    """What is in the two schemas, or hangs on their tables, and is neither their owner's nor a superuser's: kind, name
    and owner.
    """
    return connection.execute(
        f"with owned as ({_OWNED})"
        " select o.kind, o.name, r.rolname::text from owned o join pg_catalog.pg_roles r on r.oid = o.owner"
        " where not r.rolsuper and o.owner not in (select c.relowner from pg_catalog.pg_class c"
        "   where c.oid = pg_catalog.to_regclass('tidebase.events')"
        "   union all select n.nspowner from pg_catalog.pg_namespace n where n.nspname = 'tidebase') order by 1, 2",
        {"schemas": list(SCHEMAS)},
    ).fetchall()


def refuse_owner_role(connection: psycopg.Connection[Any], role: str) -> None:
    """Raises NotEntitled where a superuser would hand everything over to a role as which somebody else may act."""
    row = connection.execute(
        f"select a.name from ({_ACTORS}) a join pg_catalog.pg_roles r on r.oid = a.role and r.rolname = %s"
        " where (select s.rolsuper from pg_catalog.pg_roles s where s.rolname = current_user) order by a.name limit 1",
        [role],
    ).fetchone()
    if row is not None:
        raise NotEntitled(
            f"{row[0]} may act as the role {role}, and would own what a superuser installs",
            sqlstate="42501",
            hint="Choose names for roles of its own (tidebase migrate --role-prefix NAME), or install it as that user.",
        )


def guard_sql(role: str) -> str:
    """What both refusals are in SQL alone, for a script that no package is there to run."""
    strangers = _STRANGERS % {"schemas": "array['tidebase', 'tidebase_private']"}
    return f"""
do $guard$
declare
  found record;
begin
  for found in {strangers.strip()} loop
    raise insufficient_privilege using
      message = format('the %s %s belongs to %s: it is not to be run here', found.kind, found.name, found.owner),
      hint = 'Look at what it is; or let its owner do this.';
  end loop;
  for found in
    select a.name from ({_ACTORS}) a
    join pg_catalog.pg_roles r on r.oid = a.role and r.rolname = '{role}'
    where (select s.rolsuper from pg_catalog.pg_roles s where s.rolname = current_user)
  loop
    raise insufficient_privilege using
      message = format('%s may act as the role {role}, and would own what a superuser installs', found.name),
      hint = 'Install it as that user, or take the membership away.';
  end loop;
end
$guard$;
"""


def members_of_others(connection: psycopg.Connection[Any], prefix: str) -> list[str]:
    """A note, where the roles were there before this database's Tidebase and already have members: they get in."""
    roles = [f"{prefix}_{audience}" for audience in ("worker", "approver", "operator", "reader")]
    members = connection.execute(
        "select distinct m.member::pg_catalog.regrole::text from pg_catalog.pg_auth_members m"
        " join pg_catalog.pg_roles r on r.oid = m.roleid join pg_catalog.pg_roles u on u.oid = m.member"
        " where r.rolname = any (%(roles)s) and not u.rolsuper and not exists ("
        "   select from pg_catalog.pg_namespace n, pg_catalog.aclexplode(n.nspacl) a"
        "   where n.nspname = 'tidebase' and a.grantee = r.oid) order by 1 limit 10",
        {"roles": roles},
    ).fetchall()
    if not members:
        return []
    others = connection.execute(
        "select distinct d.datname::text from pg_catalog.pg_shdepend s"
        " join pg_catalog.pg_database d on d.oid = s.dbid join pg_catalog.pg_roles r on r.oid = s.refobjid"
        " where s.refclassid = 'pg_catalog.pg_authid'::pg_catalog.regclass and r.rolname = any (%s)"
        " and d.datname <> pg_catalog.current_database() order by 1 limit 5",
        [roles],
    ).fetchall()
    where = f" (of the Tidebase in {', '.join(name for (name,) in others)})" if others else ""
    return [
        f"The roles {prefix}_... were there already{where}: {', '.join(name for (name,) in members)} may use Tidebase"
        f" in this database, too. It gets roles of its own with: tidebase migrate --role-prefix NAME"
    ]


#: What stands for whose everything is and what anybody else may do, a line each.
_STATE = """
with things as (
  select pg_catalog.format('schema %I', n.nspname) as thing, n.nspowner as owner, n.nspacl as acl
  from pg_catalog.pg_namespace n where n.nspname in ('tidebase', 'tidebase_private')
  union all
  select pg_catalog.format('function %I.%I(%s)', n.nspname, p.proname, (
      -- pg_get_function_identity_arguments would leave the schemas out that are in the search_path.
      select pg_catalog.string_agg(pg_catalog.format('%I.%I', ofs.nspname, t.typname), ', ' order by a.place)
      from pg_catalog.unnest(p.proargtypes) with ordinality a (type, place)
      join pg_catalog.pg_type t on t.oid = a.type join pg_catalog.pg_namespace ofs on ofs.oid = t.typnamespace)),
    p.proowner, coalesce(p.proacl, pg_catalog.acldefault('f', p.proowner))
  from pg_catalog.pg_proc p
  join pg_catalog.pg_namespace n on n.oid = p.pronamespace
  where n.nspname in ('tidebase', 'tidebase_private') and p.proname <> 'came_later'  -- is there for a second only
  union all
  select pg_catalog.format('relation %I.%I', n.nspname, c.relname), c.relowner,
    coalesce(c.relacl, pg_catalog.acldefault('r', c.relowner))
  from pg_catalog.pg_class c
  join pg_catalog.pg_namespace n on n.oid = c.relnamespace
  where n.nspname in ('tidebase', 'tidebase_private') and c.relkind in ('r', 'p', 'v', 'm', 'f')
  union all
  select pg_catalog.format('column %I.%I.%I', n.nspname, c.relname, a.attname), c.relowner, a.attacl
  from pg_catalog.pg_attribute a
  join pg_catalog.pg_class c on c.oid = a.attrelid
  join pg_catalog.pg_namespace n on n.oid = c.relnamespace
  where n.nspname in ('tidebase', 'tidebase_private') and a.attacl is not null
)
select pg_catalog.format('%s %s', t.thing, pg_catalog.pg_get_userbyid(t.owner)) as line from things t
union all
select pg_catalog.format('%s %s %s %s', t.thing,
  case a.grantee when 0 then '' else pg_catalog.pg_get_userbyid(a.grantee)::text end, a.privilege_type, a.is_grantable)
from things t cross join pg_catalog.aclexplode(t.acl) a
-- The owner has everything, which is more in newer versions, but for the log.
where a.grantee <> t.owner or t.thing = 'relation tidebase.events' and a.privilege_type in ('UPDATE', 'TRUNCATE')
"""


def state(connection: psycopg.Connection[Any]) -> str:
    """Stands for the owners and access lists of everything in the two schemas."""
    lines = sorted(row[0] for row in connection.execute(_STATE).fetchall())
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def can_hand_over(connection: psycopg.Connection[Any], role: str) -> bool:
    """Whether the owner role is there, the user may act as it, and what is the user's could be its."""
    row = connection.execute(
        "select exists (select from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace"
        " join pg_catalog.pg_roles me on me.oid = c.relowner and me.rolname = current_user"
        " where n.nspname = 'tidebase' and c.relname = 'events' and me.rolname <> %(role)s and exists ("
        "   select from pg_catalog.pg_roles r where r.rolname = %(role)s and pg_catalog.pg_has_role(r.oid, 'usage')))",
        {"role": role},
    ).fetchone()
    return bool(row and row[0])


def roles_sql(prefix: str, installer: str | None, schemas: bool) -> str:
    """What an administrator runs where the user who installs may not create roles (or schemas): plain SQL, in which
    nothing is called but what is the server's.
    """

    def name(text: str) -> str:
        return sql.Identifier(text).as_string()

    def literal(text: str) -> str:
        return sql.Literal(text).as_string()

    lines = [
        "-- Makes the roles of Tidebase. For an administrator (a superuser, or CREATEROLE), in the database where it is"
        " to be.",
        "begin;",
        "set local search_path = pg_catalog, pg_temp;",
    ]
    for audience in ("owner", "worker", "approver", "operator", "reader"):
        role = f"{prefix}_{audience}"
        body = (
            f" begin if not exists (select from pg_catalog.pg_roles where rolname = {literal(role)}) then"
            f" create role {name(role)} nologin; end if; end "
        )
        lines.append(f"do {literal(body)};")
    if installer is None:
        lines.append(f"-- grant {name(f'{prefix}_owner')} to the user who runs `tidebase migrate`;")
    else:
        lines.append(f"grant {name(f'{prefix}_owner')} to {name(installer)};")
        if schemas:
            lines += [f"create schema if not exists {schema} authorization {name(installer)};" for schema in SCHEMAS]
    return "\n".join([*lines, "commit;"])
