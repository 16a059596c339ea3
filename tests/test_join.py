"""A step that joins the caller's own transaction: it is completed if, and only if, the caller commits.

With real connections: psycopg's own, SQLAlchemy's, Django's.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, AbstractContextManager, asynccontextmanager, contextmanager
from typing import Any

import django.conf
import django.db
import psycopg
import pytest
import sqlalchemy as sa
from psycopg.conninfo import conninfo_to_dict
from sqlalchemy import orm
from sqlalchemy.ext import asyncio as sa_asyncio

from tidebase import AsyncTidebase, InvalidArgument, LeaseLostError, Run, RunNeedsReview, Tidebase, TidebaseError

from .conftest import Server, on_every_version
from .probes.support import Connection, poll, values
from .support.patience import PATIENCE_S
from .test_transaction import count

ON_NEWEST = True

if not django.conf.settings.configured:
    django.conf.settings.configure(USE_TZ=True)

INSERT = "insert into mine values (1)"


class Rollback(Exception):
    """The caller takes its transaction back."""


@pytest.fixture(autouse=True)
def mine(db: psycopg.Connection[Any]) -> None:
    db.execute("create table mine (n int primary key)")


class Base(orm.DeclarativeBase):
    pass


class Mine(Base):
    __tablename__ = "mine"
    n: orm.Mapped[int] = orm.mapped_column(primary_key=True)


def engine_of(database: str) -> sa.Engine:
    return sa.create_engine("postgresql+psycopg://", creator=lambda: psycopg.connect(database), poolclass=sa.NullPool)


@contextmanager
def by_psycopg(database: str) -> Iterator[Any]:
    with psycopg.connect(database) as connection:
        yield connection


@contextmanager
def by_psycopg_in_autocommit(database: str) -> Iterator[Any]:
    with psycopg.connect(database, autocommit=True) as connection, connection.transaction():
        yield connection


@contextmanager
def by_session(database: str) -> Iterator[Any]:
    with orm.Session(engine_of(database)) as session, session.begin():
        yield session


@contextmanager
def by_session_that_begins_by_itself(database: str) -> Iterator[Any]:
    with orm.Session(engine_of(database)) as session:
        yield session
        session.commit()


@contextmanager
def by_scoped_session(database: str) -> Iterator[Any]:
    scoped = orm.scoped_session(orm.sessionmaker(engine_of(database)))
    try:
        yield scoped
        scoped.commit()
    finally:
        scoped.remove()


@contextmanager
def by_sqlalchemy_connection(database: str) -> Iterator[Any]:
    with engine_of(database).begin() as connection:
        yield connection


@contextmanager
def by_sqlalchemy_connection_that_begins_by_itself(database: str) -> Iterator[Any]:
    with engine_of(database).connect() as connection:
        yield connection
        connection.commit()


@contextmanager
def django_connection(database: str) -> Iterator[Any]:
    """As django.db.connection is: made from settings."""
    parts = conninfo_to_dict(database)
    settings = {"ENGINE": "django.db.backends.postgresql", "NAME": parts["dbname"], "USER": parts["user"]}
    handler = django.db.utils.ConnectionHandler(
        {"default": {**settings, "HOST": parts["host"], "PORT": str(parts.get("port", ""))}}
    )
    connection = handler["default"]
    django.db.connections["tidebase"] = connection
    try:
        yield connection
    finally:
        connection.close()


@contextmanager
def by_django(database: str) -> Iterator[Any]:
    with django_connection(database) as connection, django.db.transaction.atomic(using="tidebase"):
        yield connection


KINDS: list[Callable[[str], AbstractContextManager[Any]]] = [
    by_psycopg,
    by_psycopg_in_autocommit,
    by_session,
    by_session_that_begins_by_itself,
    by_scoped_session,
    by_sqlalchemy_connection,
    by_sqlalchemy_connection_that_begins_by_itself,
    by_django,
]
every_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)


def pay(run: Run, connection: Any) -> Any:
    with run.transaction("pay", connection=connection) as tx:
        if not tx.replayed:
            tx.execute(INSERT)
        tx.result = tx.result or ("paid", run.attempt)
    return tx.result


@every_kind
def test_the_step_is_completed_if_the_caller_commits(
    tide: Tidebase, database: str, db: psycopg.Connection[Any], kind: Callable[[str], AbstractContextManager[Any]]
) -> None:
    def workflow(run: Run, input: Any) -> Any:
        with kind(database) as connection:
            result = pay(run, connection)
            # Nobody has committed, and nobody sees anything yet.
            assert run.attempt > 1 or (count(db), tide.runs.steps("r")[0].status) == (0, "running")
        if run.attempt == 1:
            raise ConnectionResetError
        return result

    with pytest.raises(ConnectionResetError):
        tide.run("w", workflow, run_id="r")
    assert (count(db), tide.runs.steps("r")[0].status) == (1, "completed")
    assert tide.run("w", workflow, run_id="r") == ["paid", 1]  # replayed
    assert count(db) == 1


@every_kind
def test_neither_is_there_if_the_caller_rolls_back_who_may_do_it_again(
    tide: Tidebase, database: str, db: psycopg.Connection[Any], kind: Callable[[str], AbstractContextManager[Any]]
) -> None:
    """As one does after a serialization failure: in the same attempt."""
    with tide.runs.attach("w", run_id="r") as session:
        for _ in range(2):
            with pytest.raises(Rollback), kind(database) as connection:
                pay(session, connection)
                raise Rollback
            assert (count(db), tide.runs.steps("r")[0].output) == (0, None)
        with kind(database) as connection:
            assert pay(session, connection) == ["paid", 1]
        assert (count(db), tide.runs.steps("r")[0].status, tide.runs.steps("r")[0].attempt) == (1, "completed", 3)
        session.step("after", lambda: None)


@every_kind
def test_of_a_block_that_fails_nothing_is_left_also_if_the_caller_commits_the_rest(
    tide: Tidebase, database: str, db: psycopg.Connection[Any], kind: Callable[[str], AbstractContextManager[Any]]
) -> None:
    with tide.runs.attach("w", run_id="r") as session:
        with kind(database) as connection:
            with pytest.raises(ZeroDivisionError), session.transaction("pay", connection=connection) as tx:
                tx.execute(INSERT)
                raise ZeroDivisionError
            assert tide.runs.steps("r")[0].status == "failed"
            with pytest.raises(TypeError), session.transaction("pay", connection=connection) as tx:
                tx.execute(INSERT)
                tx.result = object()
        assert (count(db), tide.runs.steps("r")[0].status) == (0, "failed")
        with kind(database) as connection:
            pay(session, connection)
    assert (count(db), tide.runs.steps("r")[0].status) == (1, "completed")


@pytest.mark.parametrize("moment", ["in the block", "before commit", "after commit"])
def test_a_worker_killed_at_any_moment_neither_doubles_nor_loses(
    tide: Tidebase, database: str, db: psycopg.Connection[Any], moment: str
) -> None:
    script = f"""
import os, signal
import psycopg
from tidebase import Tidebase

def die(moment):
    if moment == {moment!r} and os.environ.get("DIE"):
        os.kill(os.getpid(), signal.SIGKILL)

def work(run, input):
    with psycopg.connect({database!r}) as connection:
        with run.transaction("pay", connection=connection) as tx:
            if not tx.replayed:
                tx.execute("insert into mine values (1)")
            die("in the block")
        die("before commit")
    die("after commit")
    return run.attempt

with Tidebase({database!r}, lease_s=0.2) as tide:
    print(tide.run("w", work, run_id="r", wait_s={PATIENCE_S}))
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", script]
    dead = subprocess.run(command, env={**environment, "DIE": "1"}, timeout=PATIENCE_S)
    assert dead.returncode == -signal.SIGKILL
    committed = moment == "after commit"
    poll("the server has noticed", lambda: (count(db) == 1) == committed)
    assert (tide.runs.steps("r")[0].status == "completed") == committed
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE_S)
    assert (done.stdout, count(db)) == ("2\n", 1), done.stderr
    assert tide.runs.steps("r")[0].attempt == (1 if committed else 2)


def test_what_a_session_holds_back_is_written_before_the_step_is_completed(
    tide: Tidebase, database: str, db: psycopg.Connection[Any]
) -> None:
    """So that its errors are those of the block."""
    db.execute(INSERT)
    with tide.runs.attach("w", run_id="r") as session, orm.Session(engine_of(database)) as mapped:
        with pytest.raises(sa.exc.IntegrityError), session.transaction("t", connection=mapped):
            mapped.add(Mine(n=1))
        assert tide.runs.steps("r")[0].status == "failed"
        with session.transaction("t", connection=mapped) as tx:
            mapped.add(Mine(n=2))
            tx.result = [row.n for row in mapped.scalars(sa.select(Mine).order_by(Mine.n))]
        mapped.commit()
        assert (tx.result, count(db)) == ([1, 2], 2)


def test_a_lease_that_was_lost_is_found_out_in_the_block(
    tide: Tidebase, database: str, db: psycopg.Connection[Any]
) -> None:
    session = tide.runs.attach("w", run_id="r")
    with psycopg.connect(database) as connection:
        with pytest.raises(LeaseLostError), session.transaction("t", connection=connection) as tx:
            tx.execute(INSERT)
            db.execute("update tidebase.run_heads set lease_expires_at = clock_timestamp()")
            db.execute("select tidebase.acquire_run('r', 'thief')")
        connection.commit()
    assert count(db) == 0


def test_the_block_cannot_be_committed_from_inside(tide: Tidebase, database: str, db: psycopg.Connection[Any]) -> None:
    with tide.runs.attach("w", run_id="r") as session, psycopg.connect(database) as connection:
        with pytest.raises(psycopg.ProgrammingError), session.transaction("t", connection=connection) as tx:
            tx.execute(INSERT)
            connection.commit()
        connection.commit()
        assert (count(db), tide.runs.steps("r")[0].status) == (0, "failed")


def test_a_transaction_has_one_step(tide: Tidebase, database: str, db: psycopg.Connection[Any]) -> None:
    with tide.runs.attach("w", run_id="r") as session, psycopg.connect(database) as connection:
        pay(session, connection)
        with (
            pytest.raises(TidebaseError, match=r"'pay'.* not committed"),
            session.transaction("next", connection=connection),
        ):
            raise AssertionError
        connection.commit()
        with session.transaction("next", connection=connection) as tx:
            tx.execute("insert into mine values (2)")
        connection.commit()
        assert count(db) == 2


def test_an_unsafe_step_whose_transaction_was_rolled_back_is_for_a_person(tide: Tidebase, database: str) -> None:
    """Whatever it did besides may have taken effect."""
    session = tide.runs.attach("w", run_id="r")
    with psycopg.connect(database) as connection:
        with session.transaction("t", connection=connection, side_effects=["mail.send"]):
            pass
        connection.rollback()
        with (
            pytest.raises(RunNeedsReview),
            session.transaction("t", connection=connection, side_effects=["mail.send"]),
        ):
            raise AssertionError
    assert tide.runs.reviews("r")[0].step == "t"


@on_every_version
def test_who_forgets_to_commit_loses_the_transaction_and_not_the_run(
    tide: Tidebase, database: str, db: psycopg.Connection[Any]
) -> None:
    """The server ends the session that idles on the run's lock; here at once, and by itself after 15 seconds."""
    with tide.runs.attach("w", run_id="r") as session, psycopg.connect(database) as connection:
        pay(session, connection)
        assert connection.execute("show idle_in_transaction_session_timeout").fetchone() == ("15s",)
        connection.execute("set local idle_in_transaction_session_timeout = '100ms'")
        session.emit("x")  # waits for that
        with pytest.raises(psycopg.Error):
            connection.commit()
        assert (count(db), tide.runs.steps("r")[0].status) == (0, "running")


def test_a_function_may_join_as_well(tide: Tidebase, database: str, db: psycopg.Connection[Any]) -> None:
    with tide.runs.attach("w", run_id="r") as session:
        for _ in range(2):
            with psycopg.connect(database) as connection:
                assert session.transaction("t", lambda tx: tx.execute(INSERT).rowcount, connection=connection) == 1
    assert count(db) == 1


@contextmanager
def in_autocommit(database: str) -> Iterator[Any]:
    with psycopg.connect(database, autocommit=True) as connection:
        yield connection


@contextmanager
def in_sqlalchemys_autocommit(database: str) -> Iterator[Any]:
    with engine_of(database).execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
        yield connection


@contextmanager
def in_repeatable_read(database: str) -> Iterator[Any]:
    with psycopg.connect(database) as connection:
        connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        yield connection


@contextmanager
def in_an_aborted_transaction(database: str) -> Iterator[Any]:
    with psycopg.connect(database) as connection:
        with pytest.raises(psycopg.errors.DivisionByZero):
            connection.execute("select 1 / 0")
        yield connection


@contextmanager
def another_driver(database: str) -> Iterator[Any]:
    engine = sa.create_engine("sqlite://")
    with engine.begin() as connection:
        yield connection


@contextmanager
def no_connection(database: str) -> Iterator[Any]:
    yield database


@pytest.mark.parametrize(
    ("kind", "matches"),
    [
        (in_autocommit, "in a transaction"),
        (in_sqlalchemys_autocommit, "in a transaction"),
        (django_connection, "in a transaction"),
        (in_repeatable_read, "READ COMMITTED"),
        (in_an_aborted_transaction, "INERROR"),
        (another_driver, "sqlite3"),
        (no_connection, r"builtins\.str"),
    ],
    ids=lambda kind: getattr(kind, "__name__", ""),
)
def test_what_cannot_be_joined_is_refused_before_anything_is_begun(
    tide: Tidebase, database: str, kind: Callable[[str], AbstractContextManager[Any]], matches: str
) -> None:
    with tide.runs.attach("w", run_id="r") as session, kind(database) as connection:
        with pytest.raises(InvalidArgument, match=matches), session.transaction("t", connection=connection):
            raise AssertionError
        assert list(tide.runs.steps("r")) == []


@pytest.mark.parametrize("options", [{"retries": 1}, {"timeout_s": 1}, {"retry_on": ValueError}], ids=str)
def test_what_the_caller_alone_can_do_is_refused(tide: Tidebase, database: str, options: Any) -> None:
    with tide.runs.attach("w", run_id="r") as session, psycopg.connect(database) as connection:
        with pytest.raises(InvalidArgument, match="the caller's"):
            session.transaction("t", lambda tx: None, connection=connection, **options)
        assert list(tide.runs.steps("r")) == []


def test_the_only_connection_is_not_given_twice(database: str) -> None:
    with psycopg.connect(database) as connection, Tidebase(connection) as tide:
        session = tide.runs.attach("w", run_id="r")
        with pytest.raises(InvalidArgument, match="left out"), session.transaction("t", connection=connection):
            raise AssertionError


@pytest.mark.parametrize("template", ["migrated", "template0"])
def test_another_database_is_refused(tide: Tidebase, server: Server, template: str) -> None:
    """Also one that has a run of that name, as a copy has."""
    name = server.create_database(template)
    with tide.runs.attach("w", run_id="r") as session, psycopg.connect(server.url(name)) as other:
        if template == "migrated":
            with Tidebase(server.url(name)) as copy:
                copy.runs.attach("w", run_id="r").step("t", lambda: None)
        with pytest.raises(TidebaseError) as refused, session.transaction("t", connection=other):
            raise AssertionError
        assert "database of the run" in str(refused.value) or "tidebase" in str(refused.value)
        assert tide.runs.steps("r")[0].status == "failed"
    server.drop_database(name)


# Awaited.


@asynccontextmanager
async def awaited_psycopg(database: str) -> AsyncIterator[Any]:
    async with await psycopg.AsyncConnection.connect(database) as connection:
        yield connection


def async_engine_of(database: str) -> sa_asyncio.AsyncEngine:
    async def connect() -> psycopg.AsyncConnection[Any]:
        return await psycopg.AsyncConnection.connect(database)

    return sa_asyncio.create_async_engine("postgresql+psycopg://", async_creator=connect, poolclass=sa.NullPool)


@asynccontextmanager
async def awaited_session(database: str) -> AsyncIterator[Any]:
    async with sa_asyncio.AsyncSession(async_engine_of(database)) as session, session.begin():
        yield session


@asynccontextmanager
async def awaited_sqlalchemy_connection(database: str) -> AsyncIterator[Any]:
    async with async_engine_of(database).connect() as connection:
        yield connection
        await connection.commit()


@pytest.mark.parametrize(
    "kind", [awaited_psycopg, awaited_session, awaited_sqlalchemy_connection], ids=lambda kind: kind.__name__
)
async def test_the_same_awaited(
    atide: AsyncTidebase,
    database: str,
    db: psycopg.Connection[Any],
    kind: Callable[[str], AbstractAsyncContextManager[Any]],
) -> None:
    async with await atide.runs.attach("w", run_id="r") as session:
        with pytest.raises(Rollback):
            async with kind(database) as connection:
                async with session.transaction("t", connection=connection) as tx:
                    await tx.execute(INSERT)
                raise Rollback
        async with kind(database) as connection:
            with pytest.raises(ZeroDivisionError):
                async with session.transaction("t", connection=connection) as tx:
                    await tx.execute(INSERT)
                    raise ZeroDivisionError
        assert (count(db), (await atide.runs.steps("r"))[0].status) == (0, "failed")
        async with kind(database) as connection:
            async with session.transaction("t", connection=connection) as tx:
                await tx.execute(INSERT)
                tx.result = (1,)
            assert (tx.result, count(db)) == ([1], 0)
        async with kind(database) as connection:
            async with session.transaction("t", connection=connection) as tx:
                assert tx.replayed
            assert tx.result == [1]
    assert count(db) == 1


async def test_what_cannot_be_joined_is_refused_awaited(
    atide: AsyncTidebase, tide: Tidebase, database: str, db: Connection
) -> None:
    session = await atide.runs.attach("w", run_id="r")
    async with await psycopg.AsyncConnection.connect(database, autocommit=True) as connection:
        with pytest.raises(InvalidArgument, match="in a transaction"):
            async with session.transaction("t", connection=connection):
                raise AssertionError
    with psycopg.connect(database) as plain, pytest.raises(InvalidArgument, match="AsyncConnection"):
        async with session.transaction("t", connection=plain):
            raise AssertionError
    async with await psycopg.AsyncConnection.connect(database) as one:
        alone = await AsyncTidebase(one).runs.attach("w", run_id="alone")
        with pytest.raises(InvalidArgument, match="left out"):
            async with alone.transaction("t", connection=one):
                raise AssertionError
    assert values(db, "select count(*) from tidebase.steps") == [0]
