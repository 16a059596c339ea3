"""Whose it is: what somebody has put into a database beforehand is not executed by who installs Tidebase, and nobody
but the owner and the roles of this installation may do anything with it afterwards.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from click.testing import CliRunner

from tidebase import NotEntitled, TidebaseError
from tidebase.cli import main
from tidebase.schema import migrations

from .conftest import SERVERS, Server, first_on_every_version
from .probes.support import Connection, connect, value, values
from .test_access import Spies
from .test_migrations import MIGRATIONS, schema

SPY = """language plpgsql as $$ begin raise notice 'spy: %', current_user; return null; end $$"""


class Cast:
    """The people around a database: an administrator, and users made for this test, who are dropped at its end."""

    def __init__(self, server: Server, url: str) -> None:
        self.server, self.url = server, url
        self.name = url.partition("?")[0].rpartition("/")[2]
        self.admin = connect(url)
        self.roles: list[str] = []

    def role(self, name: str, options: str = "login") -> str:
        role = f"{name}_{self.name}"
        self.admin.execute(f"create role {role} {options}")
        self.roles.append(role)
        return role

    def session(self, role: str) -> Connection:
        return connect(self.url.replace("postgres@", f"{role}@"))

    def own(self, prefix: str) -> str:
        """A prefix whose roles are dropped at the end, too."""
        prefix = f"{prefix}_{self.name}"
        self.roles += [f"{prefix}_{part}" for part in ("owner", "worker", "approver", "operator", "reader")]
        return prefix

    def close(self) -> None:
        for role in self.roles:
            if values(self.admin, "select 1 from pg_roles where rolname = %s", role):
                self.admin.execute(f"reassign owned by {role} to postgres; drop owned by {role}; drop role {role}")
        self.admin.close()


@pytest.fixture
def people(server: Server, empty_database: str) -> Iterator[Cast]:
    cast = Cast(server, empty_database)
    yield cast
    cast.close()


@pytest.fixture
def mallory(people: Cast) -> str:
    """May create schemas in the database, and nothing else."""
    role = people.role("mallory")
    people.admin.execute(f"grant create on database {people.name} to {role}")
    return role


# --- Nothing of others is executed ------------------------------------------------------------------------------------

#: What mallory has ready in a schema of the name; {s} is the schema.
TRAPS = {
    "an empty schema": "create schema {s}",
    "a function of the server's name": f"create schema {{s}}; create function {{s}}.now() returns timestamptz {SPY}",
    "a function that fits better": "create schema {s}; create function {s}.obj_description(regnamespace, text) returns"
    f" text {SPY}; create function {{s}}.to_regclass(text) returns regclass {SPY}",
    "an operator": "create schema {s}; create function {s}.eq(name, unknown) returns boolean language plpgsql as"
    " $$ begin raise notice 'spy: %', current_user; return true; end $$;"
    " create function {s}.spy(name, text) returns boolean language plpgsql as"
    " $$ begin raise notice 'spy: %', current_user; return true; end $$;"
    " create operator {s}.= (leftarg = name, rightarg = text, function = {s}.spy)",
    "tables with triggers": "create schema {s}; create table {s}.settings (name text primary key, value text);"
    " create table {s}._yoyo_migration (migration_hash text, migration_id text, applied_at_utc timestamp);"
    " create table {s}.function_files (name text primary key, checksum text, applied_at timestamptz);"
    f" create function {{s}}.fire() returns trigger {SPY};"
    " create trigger t before insert on {s}.function_files for each row execute function {s}.fire()",
    "a note that all is well": 'create schema {s}; comment on schema {s} is E\'x\\n{{"files": "PACKAGE"}}\'',
}


@pytest.mark.parametrize("trap", first_on_every_version(TRAPS))
@pytest.mark.parametrize("name", ["tidebase", "tidebase_private"])
def test_a_schema_that_somebody_else_has_made_is_refused(people: Cast, mallory: str, trap: str, name: str) -> None:
    with people.session(mallory) as session:
        text = TRAPS[trap].replace("(name, unknown)", "(name, name)").replace("PACKAGE", migrations.package_checksum())
        session.execute(text.replace("{{", "{").replace("}}", "}").replace("{s}", name))
    spies = Spies(people.admin)
    with pytest.raises(NotEntitled, match=mallory):
        migrations.migrate(people.admin)
    with pytest.raises(NotEntitled, match=mallory):
        migrations.rollback(people.admin)
    assert spies.caught() == set()
    assert not value(people.admin, "select rolsuper from pg_roles where rolname = %s", mallory)
    people.admin.execute(f"drop schema {name} cascade")
    migrations.migrate(people.admin)
    assert spies.caught() == set()


PUT_INTO_OURS = {
    "function": "create function {s}.now() returns timestamptz " + SPY,
    "table": "create table {s}.extra (x integer)",
    "type": "create type {s}.mood as enum ('good')",
    "view": "create view {s}.overview as select 1 as one",
}


@pytest.mark.parametrize("kind", first_on_every_version(PUT_INTO_OURS))
def test_an_object_of_somebody_else_in_our_schema_is_refused(people: Cast, mallory: str, kind: str) -> None:
    people.admin.execute("create schema tidebase_private")
    people.admin.execute(f"grant all on schema tidebase_private to {mallory}")
    with people.session(mallory) as session:
        session.execute(PUT_INTO_OURS[kind].replace("{s}", "tidebase_private"))  # type: ignore[arg-type]
    spies = Spies(people.admin)
    with pytest.raises(NotEntitled, match=f"{kind} tidebase_private.*{mallory}"):
        migrations.migrate(people.admin)
    assert spies.caught() == set()


def test_a_trigger_of_somebody_else_is_refused_at_the_upgrade(people: Cast, mallory: str) -> None:
    """Whoever was given the privilege, by default privileges say, hangs it on a table."""
    migrations.migrate(people.admin)
    people.admin.execute(
        f"grant usage on schema tidebase to {mallory}; grant trigger on tidebase.runs to {mallory};"
        f" grant usage on schema tidebase_private to {mallory}; grant trigger on all tables in schema tidebase_private"
        f" to {mallory}"
    )
    with people.session(mallory) as session:
        session.execute("create schema evil; grant usage on schema evil to public")
        session.execute(f"create function evil.fire() returns trigger {SPY}")
        session.execute(
            "create trigger t before insert on tidebase_private.function_files for each row"
            " execute function evil.fire()"
        )
    spies = Spies(people.admin)
    with pytest.raises(NotEntitled, match=f"trigger t on tidebase_private.function_files belongs to {mallory}"):
        migrations.migrate(people.admin)
    assert spies.caught() == set()
    result = CliRunner().invoke(main, ["doctor", "--database", people.url])
    assert f"PROBLEM  access: the trigger t on tidebase_private.function_files is {mallory}'s" in result.stdout


def test_a_superuser_does_not_upgrade_what_belongs_to_a_user(people: Cast) -> None:
    """Whose functions could be anything. That user itself does."""
    installer = people.role("installer")
    people.admin.execute(f"grant create on database {people.name} to {installer}")
    with people.session(installer) as session:
        migrations.migrate(session, people.own("plain"))
        session.execute(
            f"create or replace function tidebase_private.install_roles(prefix text default null) returns text[] {SPY}"
        )
        session.execute("delete from tidebase_private.function_files; comment on schema tidebase_private is 'old'")
        spies = Spies(people.admin)
        with pytest.raises(NotEntitled, match=f"belongs to {installer}.*as {installer}"):
            migrations.migrate(people.admin)
        assert spies.caught() == set()
        migrations.migrate(session)
        assert migrations.migrate(people.admin).is_current  # to look is harmless


@pytest.mark.parametrize("how", ["a member", "a member of a member", "it logs in"])
def test_a_superuser_hands_nothing_over_to_a_role_of_somebody_elses(people: Cast, how: str) -> None:
    prefix = people.own("trap")
    people.admin.execute(f"create role {prefix}_owner {'login' if how == 'it logs in' else ''}")
    people.roles.append(f"{prefix}_owner")
    if how != "it logs in":
        between = people.role("between", "in role " + f"{prefix}_owner") if "of a" in how else f"{prefix}_owner"
        people.role("mallory", f"login in role {between}")
    with pytest.raises(NotEntitled, match="may act as the role"):
        migrations.migrate(people.admin, prefix)
    assert value(people.admin, "select to_regnamespace('tidebase') is null")


def test_nothing_in_public_is_taken_for_the_servers_own(people: Cast, mallory: str) -> None:
    """Nor in whatever else the session looks through; a superuser's installation and upgrade run nothing of it."""
    people.admin.execute("grant create on schema public to public")
    with people.session(mallory) as session:
        session.execute(f"""
            create schema evil; grant all on schema evil to public;
            create function public.format(text, text) returns text {SPY};
            create function public.now() returns timestamptz {SPY};
            create function evil.clock_timestamp() returns timestamptz {SPY};
            create function evil.obj_description(regnamespace, text) returns text {SPY};
            create function evil.array_agg(name) returns name[] {SPY}""")
    spies = Spies(people.admin)
    people.admin.execute("set search_path = evil, public, pg_catalog; set quote_all_identifiers = on")
    people.admin.execute("select clock_timestamp()")
    assert spies.caught() == {"postgres"}  # they do work
    migrations.migrate(people.admin)
    migrations.rollback(people.admin, to=MIGRATIONS[1])
    migrations.migrate(people.admin)
    assert spies.caught() == set()
    assert migrations.pending(people.admin).is_current


@pytest.mark.parametrize(
    "prefix", first_on_every_version(['a"b', "acme", "o'x; drop schema public; --", "$roles$", "two words"])
)
def test_what_an_administrator_runs_is_plain_sql(people: Cast, mallory: str, prefix: str) -> None:
    prefix = f"{prefix}{people.name}"
    installer = people.role("installer")
    people.admin.execute("grant create on schema public to public")
    with people.session(mallory) as session:
        session.execute(f"create function public.format(text, text) returns text {SPY}")
    options = ["roles", "--sql", "--role-prefix", prefix, "--to", installer, "--schemas"]
    script = CliRunner().invoke(main, options).stdout
    spies = Spies(people.admin)
    try:
        for _ in range(2):  # it may be run again
            people.admin.execute(script)  # type: ignore[arg-type]
        assert spies.caught() == set()
        with people.session(installer) as session:  # may neither create roles nor schemas
            report = migrations.migrate(session, prefix)
            assert report.notes == [] and migrations.migrate(session).is_current
            migrations.rollback(session, to=MIGRATIONS[1])
            migrations.migrate(session)
            assert migrations.pending(session).is_current
        owner = "select pg_get_userbyid(relowner) from pg_class where oid = 'tidebase.events'::regclass"
        assert value(people.admin, owner) == f"{prefix}_owner"
    finally:
        people.admin.execute("drop schema if exists tidebase, tidebase_private cascade")
        for part in ("owner", "worker", "approver", "operator", "reader"):
            role = psycopg.sql.Identifier(f"{prefix}_{part}")
            people.admin.execute(psycopg.sql.SQL("drop owned by {}; drop role {}").format(role, role))


# --- Nobody else may do anything --------------------------------------------------------------------------------------

#: Everything that one may be given on the two schemas and what is in them.
HELD = """
select object || ' ' || privilege from (
  select 'schema ' || n.nspname, a.privilege_type, a.grantee from pg_namespace n, aclexplode(n.nspacl) a
  where n.nspname in ('tidebase', 'tidebase_private')
  union all
  select p.oid::regprocedure::text, a.privilege_type, a.grantee
  from pg_proc p, aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) a
  where p.pronamespace in ('tidebase'::regnamespace, 'tidebase_private'::regnamespace)
  union all
  select c.oid::regclass::text, a.privilege_type, a.grantee from pg_class c, aclexplode(c.relacl) a
  where c.relnamespace in ('tidebase'::regnamespace, 'tidebase_private'::regnamespace)
  union all
  select c.attrelid::regclass::text, a.privilege_type, a.grantee from pg_attribute c, aclexplode(c.attacl) a
  where c.attrelid >= 16384
) t (object, privilege, grantee)
where grantee in (select oid from pg_roles where rolname = any (%s) union all select 0)
"""

DEFAULTS = [
    "alter default privileges grant all on tables to {m} with grant option",
    "alter default privileges grant all on functions to {m}",
    "alter default privileges grant all on schemas to {m}",
    "alter default privileges grant select, update on tables to public",
    "alter default privileges grant execute on functions to public",
]


@pytest.mark.parametrize("when", ["before the installation", "before the upgrade"])
def test_default_privileges_let_nobody_in(people: Cast, when: str) -> None:
    bystander = people.role("bystander")
    if when == "before the upgrade":
        migrations.migrate(people.admin)
        migrations.rollback(people.admin, to=MIGRATIONS[2])
    for statement in DEFAULTS:
        people.admin.execute(statement.replace("{m}", bystander))  # type: ignore[arg-type]
        if "schemas" not in statement:
            people.admin.execute(
                statement.replace("{m}", bystander).replace("privileges", "privileges for role tidebase_owner")  # type: ignore[arg-type]
            )
    try:
        migrations.migrate(people.admin)
        assert values(people.admin, HELD, [bystander]) == []
        with people.session(bystander) as session:
            for statement in ("update tidebase.events set payload = '{}'", "table tidebase_private.gate_key"):
                with pytest.raises(psycopg.errors.InsufficientPrivilege):
                    session.execute(statement)  # type: ignore[arg-type]
    finally:
        people.admin.execute(f"drop owned by {bystander}")
        for statement in DEFAULTS:
            undo = statement.replace("grant option", "").replace(" with", "").replace("{m}", bystander)
            undo = undo.replace("grant", "revoke").replace(" to ", " from ")
            people.admin.execute(undo)  # type: ignore[arg-type]
            if "schemas" not in statement:
                people.admin.execute(undo.replace("privileges", "privileges for role tidebase_owner"))  # type: ignore[arg-type]


def test_what_roles_of_another_installation_may_do_ends(people: Cast) -> None:
    """As after a restore of a dump with grants, a copy of a database, or another prefix."""
    migrations.migrate(people.admin)
    assert migrations.pending(people.admin).is_current
    other, helper = people.role("other_worker"), people.role("helper")
    people.admin.execute(f"""
        grant usage on schema tidebase, tidebase_private to {other};
        grant all on all functions in schema tidebase, tidebase_private to {other};
        grant all on all tables in schema tidebase to {other} with grant option;
        grant select (payload), update (payload) on tidebase.events to {other};
        set role {other}; grant select on tidebase.runs to {helper}; reset role""")
    assert migrations.pending(people.admin).access
    result = CliRunner().invoke(main, ["doctor", "--database", people.url])
    assert result.exit_code == 1 and "which is for nobody but the owner" in result.stdout
    report = migrations.migrate(people.admin)
    assert report.access and not report.migrations and migrations.pending(people.admin).is_current
    assert values(people.admin, HELD, [other, helper]) == []


def test_members_of_roles_that_were_there_before_are_told_of(people: Cast, server: Server) -> None:
    prefix = people.own("shared")
    second = server.create_database()
    try:
        with server.connect(second) as other:
            migrations.migrate(other, prefix)
        agent = people.role("agent", f"login in role {prefix}_worker")
        (note,) = migrations.migrate(people.admin, prefix).notes
        assert agent in note and second in note and "--role-prefix" in note
        assert migrations.migrate(people.admin, prefix).notes == []  # once
    finally:
        server.drop_database(second)


def test_a_dump_restored_without_owners_or_grants_is_not_up_to_date(
    people: Cast, server: Server, database: str
) -> None:
    command = [str(SERVERS[server.version] / "pg_dump"), "--no-owner", "--no-privileges", database]
    dump = subprocess.run(command, capture_output=True, check=True).stdout
    psql = [str(SERVERS[server.version] / "psql"), "-q", "-X", "-v", "ON_ERROR_STOP=1", people.url]
    subprocess.run(psql, input=dump, check=True, stdout=subprocess.DEVNULL)
    found = migrations.pending(people.admin)
    assert found.access and not found.is_current and not found.migrations
    result = CliRunner().invoke(main, ["migrate", "--check", "--database", people.url])
    assert result.exit_code == 1 and "owners and grants are not what they should be" in result.stdout
    assert "PROBLEM  access" in CliRunner().invoke(main, ["doctor", "--database", people.url]).stdout
    assert migrations.migrate(people.admin).access
    assert migrations.pending(people.admin).is_current
    assert schema(server, people.url) == schema(server, database)


def test_row_security_that_hides_rows_from_the_functions_is_found(people: Cast) -> None:
    migrations.migrate(people.admin)
    people.admin.execute("alter table tidebase.steps enable row level security, force row level security")
    text = CliRunner().invoke(main, ["doctor", "--database", people.url]).stdout
    assert "PROBLEM  access: tidebase.steps has row security, forced upon its owner, too" in text


# --- Who may look -----------------------------------------------------------------------------------------------------


def test_where_nothing_is_to_do_no_right_and_no_lock_is_needed(people: Cast) -> None:
    migrations.migrate(people.admin)
    nobody = people.role("nobody")
    people.admin.execute("begin; lock table tidebase.run_heads, tidebase_private.settings in access exclusive mode")
    people.admin.execute("comment on schema tidebase is 'held'")
    with people.session(nobody) as session:
        session.execute("set lock_timeout = '1s'; set default_transaction_read_only = on")
        assert migrations.pending(session).is_current and migrations.migrate(session).is_current
    people.admin.execute("rollback")


def test_who_is_not_the_owner_is_told_who_is(people: Cast) -> None:
    migrations.migrate(people.admin)
    migrations.rollback(people.admin, to=MIGRATIONS[1])
    with people.session(people.role("agent", "login in role tidebase_worker")) as session:
        assert not migrations.pending(session).is_current
        with pytest.raises(NotEntitled, match="Let tidebase_owner, or a member of that role, run: tidebase migrate"):
            migrations.migrate(session)


def test_a_database_that_is_not_utf8_is_refused(server: Server) -> None:
    with server.connect() as admin:
        admin.execute("create database latin template template0 encoding 'LATIN1' locale 'C'")
    try:
        with server.connect("latin") as connection, pytest.raises(TidebaseError, match="LATIN1; Tidebase needs UTF8"):
            migrations.migrate(connection)
    finally:
        server.drop_database("latin")


def test_a_database_that_is_newer_than_the_package_is_left_alone(people: Cast, monkeypatch: Any) -> None:
    migrations.migrate(people.admin)
    people.admin.execute(
        "insert into tidebase_private._yoyo_migration (migration_hash, migration_id) values ('x', '9999.later')"
    )
    monkeypatch.setattr(migrations, "package_checksum", lambda: "of an older package")
    for call in (migrations.migrate, migrations.pending):
        with pytest.raises(TidebaseError, match=r"newer than this package.*9999\.later"):
            call(people.admin)
