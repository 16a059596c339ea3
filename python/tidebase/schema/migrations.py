"""Installs and upgrades the schema: yoyo applies the tables, a small loader the functions, all in one transaction.

yoyo runs what is in ``sql/migrations`` once each. The files of ``sql/functions`` are whole and idempotent: when the
content of one changed, all are applied again.

Who migrates looks first, in the catalogues that everybody may read: what was applied is noted in the comment on the
schema ``tidebase_private``, and who may do what is in the access lists. Where nothing is to do, nothing is locked.
Otherwise one transaction does it all. Commenting on that schema keeps others from migrating meanwhile, which only its
owner can do; then all tables and views are locked at once, the head of the runs first, and only for as long as no
deadlock can come of it: who has one open is named, and it is tried again. From then on nothing is waited for.

Nothing that others have put into the two schemas is executed: see :mod:`tidebase.schema.ownership`.
"""

from __future__ import annotations

import hashlib
import json
import logging
import random
import socket
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, TypeVar

import psycopg
from psycopg import sql
from psycopg.pq import TransactionStatus

from ..core.errors import DatabaseUnavailable, NotEntitled, TidebaseError, from_postgres
from . import ownership, router

log = logging.getLogger("tidebase.migrations")

T = TypeVar("T")
Progress = Callable[[str], None]

#: For how long others are waited for, in seconds, before it is given up.
PATIENCE_S = 300.0


@dataclass(frozen=True)
class MigrationReport:
    """What a migration did, or (from :func:`pending`) would do.

    Attributes:
        migrations: ids of the migrations applied, in order.
        functions: names of the function files applied.
        roles: the roles created.
        notes: what a person should know, such as roles that could not be created.
        access: whether owners or grants were not what they should be.
        shards: of a router, those that were (or would be) brought up to date.
    """

    migrations: list[str] = field(default_factory=list)
    functions: list[str] = field(default_factory=list)
    roles: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    access: bool = False
    shards: list[str] = field(default_factory=list)

    @property
    def is_current(self) -> bool:
        return not (self.migrations or self.functions or self.access or self.shards)


def role_prefix_of(connection: psycopg.Connection[Any]) -> str | None:
    """What the roles are called, as everybody may know; None where nothing (or an older version) is installed."""
    with _translated(), _honest(connection):
        return _noted(_comment(connection)).get("roles")


def sql_folder() -> Path:
    """The folder with ``migrations`` and ``functions``: inside the wheel, or in the repository next to ``python``."""
    packaged = Path(__file__).parents[1] / "sql"
    return packaged if packaged.is_dir() else Path(__file__).parents[3] / "sql"


def function_files() -> dict[str, str]:
    """The function files in the order in which they are applied: name and content."""
    return {path.name: path.read_text("utf-8") for path in sorted((sql_folder() / "functions").glob("*.sql"))}


def migration_files() -> dict[str, str]:
    """The migrations in their order: name and content."""
    paths = sorted((sql_folder() / "migrations").glob("*.sql"))
    return {path.stem: path.read_text("utf-8") for path in paths if not path.stem.endswith(".rollback")}


def migrate(
    connection: psycopg.Connection[Any],
    role_prefix: str | None = None,
    *,
    patience_s: float = PATIENCE_S,
    progress: Progress = log.warning,
) -> MigrationReport:
    """Brings the schema up to date; does nothing, and needs no right, when it is.

    Args:
        connection: in autocommit mode, as a user who may create schemas in the database (the first time) or owns
            Tidebase's (later). Roles are created when the user may do that, too; otherwise a note says what is missing.
        role_prefix: what the five roles are called; ``tidebase`` unless told, and remembered.
        patience_s: for how long to wait for others who have a table open, or migrate themselves, in seconds.
        progress: is told, a line each time, whom it waits for.

    Raises:
        NotEntitled: the user is not the owner, or what is there belongs to somebody whose code it must not run.
        DatabaseUnavailable: others were in the way for too long.
        TidebaseError: the database is not UTF-8, or newer than this package.
    """

    def work() -> MigrationReport:
        found = _look(connection, role_prefix)
        if not found.report.is_current:
            _refuse_extension(connection)
            return _apply(connection, role_prefix, found)
        return found.report

    with _translated():
        shards = [
            shard.name
            for shard, at in _shards(connection)
            if not migrate(at, role_prefix, patience_s=patience_s, progress=progress).is_current
        ]
        with _honest(connection):
            found = _look(connection, role_prefix)
            if not found.report.is_current:
                _refuse_extension(connection)
        report = found.report
        if not report.is_current:
            report = _alone(connection, work, patience_s, progress)
        _let_through(connection, patience_s, progress)
    if not report.is_current:
        log.info("schema migrated: migrations %s, function files %s", report.migrations, report.functions)
    return replace(report, shards=shards)


def _shards(connection: psycopg.Connection[Any]) -> Iterator[tuple[router.Shard, psycopg.Connection[Any]]]:
    """The shards of a router, with a connection to each: they are migrated before it."""
    made = router.read(connection)
    for shard in made.shards if made else ():
        with router.connect(shard) as at:
            yield shard, at


def pending(connection: psycopg.Connection[Any]) -> MigrationReport:
    """What :func:`migrate` would apply now. Changes nothing, and anybody may ask."""
    with _translated():
        shards = [shard.name for shard, at in _shards(connection) if not pending(at).is_current]
        with _honest(connection):
            return replace(_look(connection, None).report, shards=shards)


def route(
    connection: psycopg.Connection[Any],
    made: router.Map | None,
    *,
    patience_s: float = PATIENCE_S,
    progress: Progress = log.warning,
) -> None:
    """Makes a migrated database a router by this map, or (None) a database of its own again. Takes a superuser."""

    def work() -> None:
        _apply_functions(connection)
        _install_roles(connection, None)
        if made is None:
            connection.execute("delete from tidebase_private.settings where name = %s", [router.SETTING])
            router.remove(connection)
        else:
            router.store(connection, made)
            router.install(connection, made)
        _note(connection)

    with _translated():
        _alone(connection, work, patience_s, progress)


def found_router(connection: psycopg.Connection[Any], made: router.Map) -> None:
    """Makes a database the router of these shards: all are migrated, and told what they own, before calls come to them.

    Raises:
        TidebaseError: a shard that is not the only one has runs, threads or queues, or is a router itself.
        NotEntitled: PL/Proxy takes a superuser.
    """
    with _translated():
        row = connection.execute("select rolsuper from pg_catalog.pg_roles where rolname = current_user").fetchone()
        if row is None or not row[0]:
            raise NotEntitled(
                "a router is made by a superuser: PL/Proxy is a language that is not trusted",
                hint="At the shards the user needs no more than to be a member of the roles.",
            )
        migrate(connection)
        for shard in made.shards:
            with router.connect(shard) as at:
                migrate(at)
                if router.is_router(at):
                    raise TidebaseError(f"shard {shard.name} is a router itself")
                if len(made.shards) > 1 and router.is_used(at):
                    raise TidebaseError(
                        f"shard {shard.name} has runs, threads or queues, which would have to be moved",
                        hint="Several shards are made of empty databases.",
                    )
        for place, shard in enumerate(made.shards):
            with router.connect(shard) as at:
                at.execute("select tidebase_private.own_buckets(%s)", [made.owned(place)])
    route(connection, made)


def rollback(
    connection: psycopg.Connection[Any],
    to: str | None = None,
    *,
    patience_s: float = PATIENCE_S,
    progress: Progress = log.warning,
) -> list[str]:
    """Takes back every migration after ``to`` (all of them when it is None), newest first; returns their ids.

    The functions and views go, too, because they belong to the newest tables: an older version of the package puts its
    own back with :func:`migrate`. What was stored in tables that go is lost.
    """
    migrations = _migrations()
    if to is not None and to not in {migration.id for migration in migrations}:
        raise TidebaseError(f"there is no migration {to!r}", hint="See the files in sql/migrations.")

    def work() -> list[str]:
        _refuse_extension(connection)
        backend = _backend(connection)
        todo = backend.to_rollback(migrations.filter(lambda migration: to is None or migration.id > to))
        connection.execute(sql.SQL("comment on schema tidebase_private is {}").format(sql.Literal(ABOUT)))
        _drop_functions(connection)
        connection.execute("delete from tidebase_private.function_files")
        backend.rollback_migrations(todo)
        if to is None:
            connection.execute("drop schema tidebase, tidebase_private cascade")
        return [migration.id for migration in todo]

    with _translated():
        return _alone(connection, work, patience_s, progress)


# --- What is there ----------------------------------------------------------------------------------------------------

ABOUT = "Tidebase: what its functions share; not an API."


@dataclass(frozen=True)
class _Found:
    """What a look at the catalogues has shown: what is to do, and the prefix of the roles."""

    report: MigrationReport
    prefix: str


def _look(connection: psycopg.Connection[Any], wanted_prefix: str | None) -> _Found:
    noted = _noted(_comment(connection))
    extension = _extension(connection)
    if extension is not None:
        return _Found(_of_extension(extension, noted), "tidebase")
    prefix = wanted_prefix or noted.get("roles") or "tidebase"
    if noted.get("files") != package_checksum():
        migrations, functions = _missing(connection)
        return _Found(MigrationReport(migrations, functions), prefix)
    as_noted = noted.get("access") == ownership.state(connection)
    moves = ownership.can_hand_over(connection, f"{prefix}_owner") or prefix != noted.get("roles")
    return _Found(MigrationReport(access=not as_noted or moves), prefix)


def _extension(connection: psycopg.Connection[Any]) -> str | None:
    """The version of the extension, where the schema came by ``create extension``."""
    row = connection.execute("select extversion from pg_extension where extname = 'tidebase'").fetchone()
    return str(row[0]) if row else None


def _of_extension(version: str, noted: dict[str, Any]) -> MigrationReport:
    """What the extension lacks, which only ``alter extension`` brings."""
    later = [name for name in migration_files() if name[:4] > version] if version.isdigit() else []
    is_newest = not later and noted.get("files") == package_checksum()
    return MigrationReport(later, [] if is_newest else list(function_files()))


def _refuse_extension(connection: psycopg.Connection[Any]) -> None:
    """What belongs to an extension is changed by that alone: else a dump would not know of it."""
    if _extension(connection) is not None:
        raise TidebaseError(
            "the schema belongs to the extension tidebase",
            hint="Put this package's files in place (make extension), then: alter extension tidebase update",
        )


def _comment(connection: psycopg.Connection[Any]) -> str | None:
    row = connection.execute("select obj_description(to_regnamespace('tidebase_private'), 'pg_namespace')").fetchone()
    return row[0] if row else None


def _noted(comment: str | None) -> dict[str, Any]:
    """What the comment says was applied; nothing, where an older package wrote it."""
    try:
        noted = json.loads((comment or "").partition("\n")[2])
    except ValueError:
        return {}
    return noted if isinstance(noted, dict) else {}


def package_checksum() -> str:
    """Stands for everything in this package's ``sql`` folder."""
    return checksum(json.dumps([[migration.id for migration in _migrations()], function_files(), router.files()]))[:16]


def _missing(connection: psycopg.Connection[Any]) -> tuple[list[str], list[str]]:
    """What is to be applied, as the owner sees it in its tables; everything, where nothing is."""
    everything = [migration.id for migration in _migrations()], list(function_files())
    there = connection.execute(
        "select 1 from pg_class c join pg_namespace n on n.oid = c.relnamespace"
        " where n.nspname = 'tidebase_private' and c.relname = '_yoyo_migration'"
    )
    if there.fetchone() is None:
        return everything
    try:
        with connection.transaction():
            rows = connection.execute("select migration_id from tidebase_private._yoyo_migration").fetchall()
            known = dict(connection.execute("select name, checksum from tidebase_private.function_files").fetchall())
    except psycopg.errors.InsufficientPrivilege:  # another version, and only the owner sees which
        return [], everything[1]
    applied = {row[0] for row in rows}
    if unknown := sorted(applied - set(everything[0])):
        raise TidebaseError(
            f"the database is newer than this package: it has the migration {unknown[-1]}",
            hint="Install the package that migrated it, or let that one roll it back.",
        )
    files = function_files()
    changed = [name for name, content in files.items() if known.get(name) != checksum(content)]
    functions = changed + [name for name in known if name not in files]
    return [name for name in everything[0] if name not in applied], functions or everything[1]


def checksum(content: str) -> str:
    return hashlib.sha256(content.encode()).hexdigest()


# --- Alone ------------------------------------------------------------------------------------------------------------


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except psycopg.Error as error:
        raise from_postgres(error) from error


#: A session that likes some of these otherwise would read the files, or the catalogues, in another way.
_SETTINGS = {
    "search_path": "pg_catalog, pg_temp",
    "client_encoding": "UTF8",
    "standard_conforming_strings": "on",
    "quote_all_identifiers": "off",
    "client_min_messages": "warning",
    "check_function_bodies": "off",  # a function may call one of a later file
    "row_security": "off",
    "lock_timeout": "0",
    "statement_timeout": "0",
    "idle_in_transaction_session_timeout": "0",
}


@contextmanager
def _honest(connection: psycopg.Connection[Any]) -> Iterator[None]:
    """A transaction in which names and texts mean what they say, whatever the session is set to."""
    outermost = connection.info.transaction_status == TransactionStatus.IDLE
    with connection.transaction():
        if outermost:  # what others have committed while it waited is to be seen
            connection.execute("set transaction isolation level read committed, read write")
        for name, choice in _SETTINGS.items():
            connection.execute(sql.SQL("set local {} = {}").format(sql.Identifier(name), sql.SQL(choice)))
        yield


#: For how long who works waits behind a migration that cannot get its locks, at most.
_LONGEST_MS = 400


def _alone(
    connection: psycopg.Connection[Any],
    work: Callable[[], T],
    patience_s: float,
    progress: Progress,
) -> T:
    """Does the work in a transaction that nobody comes in between, once those are gone who are in the way."""
    give_up = time.monotonic() + patience_s
    # Short at first: who waits behind us, and whom we wait for, may hold one thing each that the other wants.
    patience_ms = 50
    while True:
        entered = False
        try:
            with _honest(connection):
                _enter(connection, patience_ms)
                entered = True
                return work()
        except psycopg.Error as error:
            if not _is_passing(error, entered):
                raise
            whom = _whom(connection) or f"others ({str(error).splitlines()[0]})"
            if time.monotonic() > give_up:
                raise DatabaseUnavailable(
                    f"others were in the way for {patience_s:.0f} seconds: {whom}",
                    hint="End their transactions (pg_terminate_backend), and migrate again.",
                ) from error
            if patience_ms >= _LONGEST_MS:
                progress(f"waiting for {whom}")
        patience_ms = min(2 * patience_ms, _LONGEST_MS)
        time.sleep(random.uniform(0.1, 0.5))  # meanwhile those who waited behind us get on


def _is_passing(error: psycopg.Error, entered: bool) -> bool:
    """Whether it comes of what somebody else does at the moment; once it is alone, only in what databases share."""
    if isinstance(error, (psycopg.errors.LockNotAvailable, psycopg.errors.QueryCanceled)):
        return not entered
    if isinstance(error, psycopg.errors.DuplicateSchema):
        return True
    if isinstance(error, psycopg.errors.UniqueViolation):
        return error.diag.schema_name == "pg_catalog"
    if isinstance(error, psycopg.errors.InternalError_):
        return "concurrently" in str(error)
    return isinstance(error, (psycopg.errors.DeadlockDetected, psycopg.errors.SerializationFailure))


def _enter(connection: psycopg.Connection[Any], patience_ms: int) -> None:
    """Checks whose the schemas are, and locks what there is; others are waited for so long at most."""
    row = connection.execute(
        "select getdatabaseencoding(), setting::int / 2 from pg_settings where name = 'deadlock_timeout'"
    )
    encoding, patience = row.fetchone() or ("", 0)
    if encoding != "UTF8":
        raise TidebaseError(
            f"the database's encoding is {encoding}; Tidebase needs UTF8", hint="create database ... encoding 'UTF8'"
        )
    # Nobody finds out about a deadlock before deadlock_timeout, so none comes of what is given up before.
    short = str(max(min(patience, patience_ms), 1))
    for timeout in ("lock_timeout", "statement_timeout"):
        connection.execute(sql.SQL("set local {} = {}").format(sql.Identifier(timeout), sql.Literal(short)))
    ownership.refuse_strangers(connection)
    for schema in ("tidebase", "tidebase_private"):
        if not _schema_exists(connection, schema):
            connection.execute(sql.SQL("create schema {}").format(sql.Identifier(schema)))
    try:
        connection.execute(
            "comment on schema tidebase is 'Tidebase: durable checkpoints for agents. Functions and views are the API.'"
        )
    except psycopg.errors.InsufficientPrivilege as error:
        raise NotEntitled(
            f"the schema is not up to date, and {connection.info.user} is not its owner",
            sqlstate=error.sqlstate,
            hint="Let its owner, or a member of the owner's role, run: tidebase migrate",
        ) from error
    ownership.refuse_strangers(connection)  # they may have come before the lock was ours
    relations = connection.execute(
        "select nspname, relname from pg_class c join pg_namespace n on n.oid = relnamespace"
        " where nspname in ('tidebase', 'tidebase_private') and relkind in ('r', 'p', 'v')"
        " order by relname <> 'run_heads', relkind = 'v', nspname, relname"
    ).fetchall()
    if relations:
        names = sql.SQL(", ").join(sql.Identifier(*relation) for relation in relations)
        connection.execute(sql.SQL("lock table {} in access exclusive mode").format(names))
    for timeout in ("lock_timeout", "statement_timeout"):
        connection.execute(sql.SQL("set local {} = 0").format(sql.Identifier(timeout)))
    # pg_catalog comes first where it is not named, and what yoyo makes goes into the first that is.
    connection.execute("set local search_path = tidebase_private, pg_temp")


def _schema_exists(connection: psycopg.Connection[Any], schema: str) -> bool:
    row = connection.execute("select to_regnamespace(%s) is not null", [schema]).fetchone()
    return bool(row and row[0])


#: Who has something of ours open, the one that keeps it for longest first.
_HOLDERS = """
select distinct a.pid, a.usename, a.application_name, a.state,
  date_trunc('second', clock_timestamp() - a.xact_start)::text, a.xact_start
from pg_locks l
join pg_stat_activity a on a.pid = l.pid
where l.granted and l.pid <> pg_backend_pid()
  and l.database = (select oid from pg_database where datname = current_database())
  and (l.relation in (
      select c.oid from pg_class c join pg_namespace n on n.oid = c.relnamespace
      where n.nspname in ('tidebase', 'tidebase_private'))
    or l.classid = 'pg_namespace'::regclass
      and l.objid in (select oid from pg_namespace where nspname in ('tidebase', 'tidebase_private'))
      and l.mode <> 'AccessShareLock')
order by a.xact_start
limit 5
"""


def _whom(connection: psycopg.Connection[Any]) -> str:
    """Whom it waits for, in words: sessions that hold a lock on something of Tidebase's."""
    with _honest(connection):
        rows = connection.execute(_HOLDERS).fetchall()
    return ", ".join(
        f"process {pid} ({', '.join(filter(None, [user, program, state, age and f'for {age}']))})"
        for pid, user, program, state, age, _ in rows
    )


# --- What is done -----------------------------------------------------------------------------------------------------


def _apply(connection: psycopg.Connection[Any], role_prefix: str | None, found: _Found) -> MigrationReport:
    backend = _backend(connection)
    todo = backend.to_apply(_migrations())
    applied = [migration.id for migration in todo]
    backend.apply_migrations_only(todo)
    functions = list(function_files()) if applied else found.report.functions
    _apply_functions(connection)
    roles, notes = _install_roles(connection, role_prefix)
    made = router.read(connection)
    if made is not None:
        router.install(connection, made)
    _note(connection)
    _send_back(connection)
    return MigrationReport(applied, functions, roles, notes, found.report.access)


# A call that waited for the migration goes on with the function that it began with, on tables that it does not know.
# It came before the migration's end, so it is sent back: for a second, whoever reads or writes a head or a run, in a
# statement that began before, gets a serialization failure, with which every client makes its call again. Only row
# security looks at what is read; it is taken away afterwards.

_GUARDED = ("run_heads", "runs")

_GUARD = """
create or replace function tidebase_private.came_later() returns boolean
language plpgsql stable set search_path = pg_catalog, pg_temp
as $$
begin
  if statement_timestamp() < {0}::timestamptz then
    raise sqlstate '40001' using message = 'the schema was upgraded during this call', hint = 'Make it again.';
  end if;
  return true;
end
$$;
comment on function tidebase_private.came_later() is {0}
"""


def _send_back(connection: psycopg.Connection[Any]) -> None:
    """Calls that began before now, and a moment more, are to be made again; the last thing before the commit."""
    row = connection.execute(
        "select pg_get_userbyid(relowner) from pg_class where oid = 'tidebase.run_heads'::regclass"
    )
    owner = sql.Identifier((row.fetchone() or ("",))[0])
    for table in _GUARDED:
        name = sql.Identifier("tidebase", table)
        connection.execute(sql.SQL("drop policy if exists came_later on {}").format(name))
    now = connection.execute("select (clock_timestamp() + interval '250 ms')::text").fetchone()
    connection.execute(sql.SQL(_GUARD).format(sql.Literal(now and now[0])))
    connection.execute(sql.SQL("alter function tidebase_private.came_later() owner to {}").format(owner))
    # A policy's function is called in the name of who reads, also through a view.
    connection.execute("grant execute on function tidebase_private.came_later() to public")
    for table in _GUARDED:
        name = sql.Identifier("tidebase", table)
        connection.execute(
            sql.SQL(
                "create policy came_later on {0} using (tidebase_private.came_later())"
                " with check (tidebase_private.came_later());"
                " alter table {0} enable row level security, force row level security"
            ).format(name)
        )


def _let_through(connection: psycopg.Connection[Any], patience_s: float, progress: Progress) -> None:
    """Takes the guard away once nobody is left whom it is to send back; also one that a killed process left."""
    give_up = time.monotonic() + patience_s
    while True:
        try:
            with _honest(connection):
                row = connection.execute(
                    "select clock_timestamp() > obj_description(p.oid, 'pg_proc')::timestamptz + interval '500 ms'"
                    " from pg_proc p join pg_namespace n on n.oid = p.pronamespace"
                    " where n.nspname = 'tidebase_private' and p.proname = 'came_later'"
                    " and pg_has_role(p.proowner, 'usage')"
                ).fetchone()
                if row is None:
                    return
                if row[0]:
                    connection.execute("set local lock_timeout = 20")
                    names = sql.SQL(", ").join(sql.Identifier("tidebase", table) for table in _GUARDED)
                    connection.execute(sql.SQL("lock table {} in access exclusive mode").format(names))
                    for table in _GUARDED:
                        connection.execute(
                            sql.SQL(
                                "drop policy if exists came_later on {0};"
                                " alter table {0} disable row level security, no force row level security"
                            ).format(sql.Identifier("tidebase", table))
                        )
                    connection.execute("drop function if exists tidebase_private.came_later()")  # another was faster
                    return
        except psycopg.Error as error:
            if not _is_passing(error, False):
                raise
            if time.monotonic() > give_up:
                progress("the guard of the upgrade is left: tidebase migrate takes it away")
                return
        time.sleep(random.uniform(0.1, 0.3))


def _migrations() -> Any:
    """yoyo's list of them, each as one step: the server parses a file in a hundredth of the time in which yoyo cuts it
    into its statements, and they need no savepoints of their own.
    """
    from yoyo import read_migrations
    from yoyo.migrations import MigrationStep, TransactionWrapper, parse_metadata_from_sql_comments

    migrations = read_migrations(str(sql_folder() / "migrations"))
    by_id = {migration.id: migration for migration in migrations}
    for migration in migrations:
        path = Path(migration.path)
        directives, _, statements = parse_metadata_from_sql_comments(path.read_text("utf-8"))
        back = path.with_suffix(".rollback.sql").read_text("utf-8")
        migration._depends = {by_id[name] for name in directives.get("depends", "").split()}
        migration.steps = [TransactionWrapper(MigrationStep(0, statements, back))]
    return migrations


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

        def get_log_data(self, migration: Any = None, operation: str = "apply") -> dict[str, Any]:
            # yoyo asks for the operating system's name of the user, which a container need not have, and the DNS.
            return {
                "id": str(uuid.uuid1()),
                "migration_id": migration and migration.id,
                "migration_hash": migration and migration.hash,
                "username": connection.info.user,
                "hostname": socket.gethostname(),
                "created_at_utc": datetime.now(timezone.utc).replace(tzinfo=None),
                "operation": operation,
            }

    return Backend(parse_uri("postgresql+psycopg:///"), "_yoyo_migration")


def _apply_functions(connection: psycopg.Connection[Any]) -> None:
    """Applies all files, in order, by the server's own parser; the record of privileges is written anew by them."""
    connection.execute("truncate tidebase_private.privileges")
    connection.execute("delete from tidebase_private.function_files")
    for name, content in function_files().items():
        try:
            connection.execute(content.encode())
        except psycopg.Error as error:
            raise TidebaseError(f"sql/functions/{name}: {error}", sqlstate=error.sqlstate) from error
        connection.execute(
            "insert into tidebase_private.function_files (name, checksum) values (%s, %s)", [name, checksum(content)]
        )


def _install_roles(connection: psycopg.Connection[Any], prefix: str | None) -> tuple[list[str], list[str]]:
    """Roles and grants; without the right to create roles, a note instead, and everything belongs to the installer."""
    wanted = prefix or _prefix(connection)
    before = ownership.members_of_others(connection, wanted)
    ownership.refuse_owner_role(connection, f"{wanted}_owner")
    try:
        with connection.transaction():
            row = connection.execute("select tidebase_private.install_roles(%s)", [prefix]).fetchone()
            return (list(row[0]) if row else []), before
    except psycopg.errors.InsufficientPrivilege as error:
        if prefix is not None:
            connection.execute(
                "insert into tidebase_private.settings (name, value) values ('role_prefix', %s)"
                " on conflict on constraint settings_pkey do update set value = excluded.value",
                [prefix],
            )
        connection.execute("select tidebase_private.apply_privileges()")
        user = connection.info.user
        options = f"--to {user}" if wanted == "tidebase" else f"--to {user} --role-prefix {wanted}"
        note = (
            f"The roles were not set up ({error.diag.message_primary}): for now only {user} may use Tidebase. "
            f"What `tidebase roles --sql {options}` prints makes them, for an administrator to run; then migrate again."
        )
        log.warning(note)
        return [], [note]


def _prefix(connection: psycopg.Connection[Any]) -> str:
    row = connection.execute("select value from tidebase_private.settings where name = 'role_prefix'").fetchone()
    return str(row[0]) if row else "tidebase"


def _note(connection: psycopg.Connection[Any]) -> None:
    """Notes in the comment on the schema, which everybody can read, what was applied."""
    noted = {"roles": _prefix(connection), "files": package_checksum(), "access": ownership.state(connection)}
    comment = sql.Literal(f"{ABOUT}\n{json.dumps(noted)}")
    connection.execute(sql.SQL("comment on schema tidebase_private is {}").format(comment))


def _drop_functions(connection: psycopg.Connection[Any]) -> None:
    """Drops views first, then functions: a function may return rows of a view, so CASCADE settles what hangs on it."""
    for table in ("runs", "run_heads", "threads", "queues", "queue_entries", "schedules"):  # of a shard
        if connection.execute("select to_regclass(%s) is not null", [f"tidebase.{table}"]).fetchone() == (True,):
            connection.execute(f"drop trigger if exists refuse_elsewhere on tidebase.{table}")
            connection.execute(f"drop trigger if exists refuse_moved on tidebase.{table}")
    for schema in ("tidebase", "tidebase_private"):
        views = connection.execute("select viewname from pg_views where schemaname = %s", [schema]).fetchall()
        for (view,) in views:
            connection.execute(sql.SQL("drop view {} cascade").format(sql.Identifier(schema, view)))
        functions = connection.execute(
            "select p.oid::regprocedure::text from pg_proc p where p.pronamespace = %s::regnamespace", [schema]
        ).fetchall()
        for (signature,) in functions:
            connection.execute(sql.SQL("drop function if exists {}").format(sql.SQL(signature)))
