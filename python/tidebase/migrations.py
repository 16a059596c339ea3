"""Installs and upgrades the schema: yoyo applies the tables, a small loader the functions, all in one transaction.

yoyo runs what is in ``sql/migrations`` once each. The files of ``sql/functions`` are whole and idempotent: when the
content of one changed, all are applied again. Both happen in one transaction under an advisory lock, so ten processes
may start at once, and one that is killed in the middle leaves nothing behind.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql

from .errors import TidebaseError, from_postgres

log = logging.getLogger("tidebase.migrations")

# Any number does, as long as it stays the same: the transactions of all versions of this module exclude each other.
_LOCK = 7_433_620_115_001


@dataclass(frozen=True)
class MigrationReport:
    """What a migration did, or (from :func:`pending`) would do.

    Attributes:
        migrations: ids of the migrations applied, in order.
        functions: names of the function files applied.
        roles: the roles created.
        notes: what a person should know, such as roles that could not be created.
    """

    migrations: list[str] = field(default_factory=list)
    functions: list[str] = field(default_factory=list)
    roles: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def is_current(self) -> bool:
        return not (self.migrations or self.functions)


def sql_folder() -> Path:
    """The folder with ``migrations`` and ``functions``: inside the wheel, or in the repository next to ``python``."""
    packaged = Path(__file__).with_name("sql")
    return packaged if packaged.is_dir() else Path(__file__).parents[2] / "sql"


def function_files() -> dict[str, str]:
    """The function files in the order in which they are applied: name and content."""
    return {path.name: path.read_text("utf-8") for path in sorted((sql_folder() / "functions").glob("*.sql"))}


def migrate(connection: psycopg.Connection[Any], role_prefix: str | None = None) -> MigrationReport:
    """Brings the schema up to date; does nothing when it is.

    Args:
        connection: in autocommit mode, as a user who may create schemas in the database (the first time) or owns
            Tidebase's (later). Roles are created when the user may do that, too; otherwise a note says what is missing.
        role_prefix: what the five roles are called; ``tidebase`` unless told, and remembered.
    """
    with _translated(), _locked(connection):
        connection.execute("create schema if not exists tidebase")
        connection.execute("create schema if not exists tidebase_private")
        connection.execute(
            "comment on schema tidebase is 'Tidebase: durable checkpoints for agents. Functions and views are the API.'"
        )
        connection.execute("comment on schema tidebase_private is 'Tidebase: what its functions share; not an API.'")
        backend = _backend(connection)
        todo = backend.to_apply(_migrations())
        applied = [migration.id for migration in todo]
        backend.apply_migrations_only(todo)
        functions = _changed_functions(connection) if not applied else list(function_files())
        if functions:
            _apply_functions(connection)
        roles: list[str] = []
        notes: list[str] = []
        if functions or role_prefix is not None or not _has_roles(connection):
            roles, notes = _install_roles(connection, role_prefix)
    report = MigrationReport(applied, functions, roles, notes)
    if not report.is_current:
        log.info("schema migrated: migrations %s, function files %s", applied, functions)
    return report


def pending(connection: psycopg.Connection[Any]) -> MigrationReport:
    """What :func:`migrate` would apply now. Changes nothing."""
    with _translated():
        if not _exists(connection, "tidebase_private._yoyo_migration"):
            return MigrationReport([migration.id for migration in _migrations()], list(function_files()))
        applied = {row[0] for row in connection.execute("select migration_id from tidebase_private._yoyo_migration")}
        missing = [migration.id for migration in _migrations() if migration.id not in applied]
        return MigrationReport(missing, _changed_functions(connection))


def rollback(connection: psycopg.Connection[Any], to: str | None = None) -> list[str]:
    """Takes back every migration after ``to`` (all of them when it is None), newest first; returns their ids.

    The functions and views go, too, because they belong to the newest tables: an older version of the package puts its
    own back with :func:`migrate`. What was stored in tables that go is lost.
    """
    migrations = _migrations()
    if to is not None and to not in {migration.id for migration in migrations}:
        raise TidebaseError(f"there is no migration {to!r}", hint="See the files in sql/migrations.")
    with _translated(), _locked(connection):
        backend = _backend(connection)
        todo = backend.to_rollback(migrations.filter(lambda migration: to is None or migration.id > to))
        _drop_functions(connection)
        connection.execute("delete from tidebase_private.function_files")
        backend.rollback_migrations(todo)
        if to is None:
            connection.execute("drop schema tidebase, tidebase_private cascade")
    return [migration.id for migration in todo]


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except psycopg.Error as error:
        raise from_postgres(error) from error


@contextmanager
def _locked(connection: psycopg.Connection[Any]) -> Iterator[None]:
    """One transaction under an advisory lock: safe behind a transaction pooler, gone with the connection."""
    with connection.transaction():
        for timeout in ("lock_timeout", "statement_timeout", "idle_in_transaction_session_timeout"):
            connection.execute(sql.SQL("set local {} = 0").format(sql.Identifier(timeout)))
        connection.execute("select pg_advisory_xact_lock(%s)", [_LOCK])
        connection.execute("set local search_path = tidebase_private, pg_catalog")
        connection.execute("set local client_min_messages = warning")
        yield


def _migrations() -> Any:
    from yoyo import read_migrations

    return read_migrations(str(sql_folder() / "migrations"))


def _backend(connection: psycopg.Connection[Any]) -> Any:
    """yoyo on our connection, in our transaction, under our lock.

    yoyo by itself runs each migration on a connection of its own and marks it in another transaction, and its lock is a
    row that a killed process leaves behind. Here its transactions are savepoints of the one that holds the lock.
    """
    from yoyo import internalmigrations
    from yoyo.backends.core.postgresql import PostgresqlPsycopgBackend
    from yoyo.connections import parse_uri

    class Backend(PostgresqlPsycopgBackend):  # type: ignore[misc, unused-ignore]
        def connect(self, dburi: Any) -> Any:
            return connection

        def copy(self) -> Any:
            return nullcontext(self)

        def transaction(self, rollback_on_exit: bool = False) -> Any:
            return connection.transaction(force_rollback=rollback_on_exit)

        def lock(self, timeout: float = 10) -> Any:
            return nullcontext()

        def ensure_internal_schema_updated(self) -> None:
            if internalmigrations.needs_upgrading(self):
                internalmigrations.upgrade(self)

    return Backend(parse_uri("postgresql+psycopg:///"), "_yoyo_migration")


def _exists(connection: psycopg.Connection[Any], relation: str) -> bool:
    row = connection.execute("select to_regclass(%s) is not null", [relation]).fetchone()
    return bool(row and row[0])


def _checksum(content: str) -> str:
    return hashlib.sha256(content.encode()).hexdigest()


def _changed_functions(connection: psycopg.Connection[Any]) -> list[str]:
    applied = dict(connection.execute("select name, checksum from tidebase_private.function_files").fetchall())
    files = function_files()
    changed = [name for name, content in files.items() if applied.get(name) != _checksum(content)]
    return changed + [name for name in applied if name not in files]


def _apply_functions(connection: psycopg.Connection[Any]) -> None:
    """Applies all files, in order, by the server's own parser; the record of privileges is written anew by them."""
    connection.execute("set local check_function_bodies = off")  # a function may call one of a later file
    connection.execute("truncate tidebase_private.privileges")
    connection.execute("delete from tidebase_private.function_files")
    for name, content in function_files().items():
        try:
            connection.execute(content.encode())
        except psycopg.Error as error:
            raise TidebaseError(f"sql/functions/{name}: {error}", sqlstate=error.sqlstate) from error
        connection.execute(
            "insert into tidebase_private.function_files (name, checksum) values (%s, %s)", [name, _checksum(content)]
        )


def _has_roles(connection: psycopg.Connection[Any]) -> bool:
    row = connection.execute(
        "select exists (select from pg_roles where rolname = tidebase_private.role_name('owner'))"
    ).fetchone()
    return bool(row and row[0])


def _install_roles(connection: psycopg.Connection[Any], prefix: str | None) -> tuple[list[str], list[str]]:
    """Roles and grants; without the right to create roles, a note instead, and everything belongs to the installer."""
    try:
        with connection.transaction():
            row = connection.execute("select tidebase_private.install_roles(%s)", [prefix]).fetchone()
            return (list(row[0]) if row else []), []
    except psycopg.errors.InsufficientPrivilege as error:
        connection.execute("select tidebase_private.apply_privileges()")
        user = connection.info.user
        note = (
            f"The roles were not set up ({error.diag.message_primary}): for now only {user} may use Tidebase. "
            "An administrator can make them with: select tidebase_private.install_roles();"
        )
        log.warning(note)
        return [], [note]


def _drop_functions(connection: psycopg.Connection[Any]) -> None:
    """Drops views first, then functions: a function may return rows of a view, so CASCADE settles what hangs on it."""
    for schema in ("tidebase", "tidebase_private"):
        views = connection.execute("select viewname from pg_views where schemaname = %s", [schema]).fetchall()
        for (view,) in views:
            connection.execute(sql.SQL("drop view {} cascade").format(sql.Identifier(schema, view)))
        functions = connection.execute(
            "select p.oid::regprocedure::text from pg_proc p where p.pronamespace = %s::regnamespace", [schema]
        ).fetchall()
        for (signature,) in functions:
            connection.execute(sql.SQL("drop function {}").format(sql.SQL(signature)))
