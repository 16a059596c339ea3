"""Connections: what keeps a lease when the pool is full or a row is locked, and what becomes of calls in trouble."""

from __future__ import annotations

import asyncio
import gc
import itertools
import os
import signal
import socket
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from decimal import Decimal
from types import SimpleNamespace
from typing import Any

import psycopg
import pytest
from psycopg.pq import Ping, TransactionStatus
from psycopg_pool import AsyncConnectionPool, ConnectionPool

from tidebase import AsyncRun, AsyncTidebase, InvalidArgument, Run, RunNotFound, Tidebase
from tidebase.core import prepared
from tidebase.core.call import Call
from tidebase.core.errors import TidebaseError, is_transient
from tidebase.core.line import run
from tidebase.domain.lease import Hold

from .conftest import Server, on_every_version
from .support.gate import acquire, reached, until, value
from .support.patience import PATIENCE_S
from .torture.proxy import Proxy

ON_NEWEST = True

Db = psycopg.Connection[Any]

EXPIRES = "select lease_expires_at from tidebase.run_heads where run_id = %s"


def renewed_twice(db: Db, run_id: str) -> None:
    """Returns when the run's lease was renewed after now, and once more."""
    for _ in range(2):
        until(db, f"({EXPIRES}) > %s", run_id, value(db, EXPIRES, run_id))


@contextmanager
def locked(database: str, run_id: str) -> Iterator[None]:
    """Somebody holds the lock of the run's head."""
    with psycopg.connect(database) as other:
        other.execute("select from tidebase.run_heads where run_id = %s for no key update", [run_id])
        yield
        other.rollback()


# --- heartbeats ---


def test_heartbeats_do_not_wait_for_the_pool(database: str, db: Db) -> None:
    with Tidebase(database, lease_s=3, pool_size=2) as tide, tide.runs.attach("w", run_id="r") as session:
        with ExitStack() as blocks:
            for _ in range(2):
                blocks.enter_context(tide._database.connection())
            renewed_twice(db, "r")
        session.complete()


async def test_heartbeats_do_not_wait_for_the_pool_async(database: str, db: Db) -> None:
    async with (
        AsyncTidebase(database, lease_s=3, pool_size=1) as tide,
        await tide.runs.attach("w", run_id="r") as session,
    ):
        async with tide._database.connection():
            await asyncio.to_thread(renewed_twice, db, "r")
        await session.complete()


def test_heartbeats_do_not_wait_for_the_callers_pool(database: str, db: Db) -> None:
    """They connect as that pool does, whatever its arguments are."""
    address, _, options = database.partition("?")
    made = []
    with (
        ConnectionPool(
            lambda: f"{address.rpartition('/')[0]}/nowhere?{options}",
            kwargs=lambda: {"dbname": address.rpartition("/")[2], "autocommit": True},
            configure=made.append,
            min_size=1,
            max_size=1,
        ) as pool,
        Tidebase(pool, lease_s=3) as tide,
        tide.runs.attach("w", run_id="r") as session,
    ):
        with tide._database.connection():
            renewed_twice(db, "r")
        session.complete()
        assert len(made) >= 2


async def test_heartbeats_do_not_wait_for_the_callers_pool_async(database: str, db: Db) -> None:
    async with (
        AsyncConnectionPool(database, kwargs={"autocommit": True}, min_size=1, max_size=1, open=False) as pool,
        AsyncTidebase(pool, lease_s=3) as tide,
        await tide.runs.attach("w", run_id="r") as session,
    ):
        async with tide._database.connection():
            await asyncio.to_thread(renewed_twice, db, "r")
        await session.complete()


def test_a_locked_run_does_not_keep_the_others_from_being_renewed(database: str, db: Db) -> None:
    with Tidebase(database, lease_s=3) as tide:
        sessions = {name: tide.runs.attach("w", run_id=name) for name in ("locked", "other")}
        with locked(database, "locked"):
            renewed_twice(db, "other")
            assert sessions["locked"]._hold.lost is None, "somebody is at work on it"
        renewed_twice(db, "locked")
        for session in sessions.values():
            session.complete()


def test_a_run_alone_is_not_waited_for_either(database: str, db: Db) -> None:
    """The thread must be free for the run that comes next."""
    with Tidebase(database, lease_s=3) as tide:
        first = tide.runs.attach("w", run_id="locked")
        with locked(database, "locked"):
            until(
                db,
                "exists (select from pg_stat_activity where query like '%%run_overview%%' and pid <> pg_backend_pid())",
            )
            second = tide.runs.attach("w", run_id="other")
            renewed_twice(db, "other")
        first.complete()
        second.complete()


@pytest.mark.parametrize("how", ["cancelled", "taken over", "purged"])
def test_a_lease_that_is_lost_is_known_to_be(database: str, db: Db, how: str) -> None:
    lost: list[Any] = []
    with Tidebase(database, lease_s=3) as tide:
        session = tide.runs.attach("w", run_id="r", on_lease_lost=lost.append)
        if how == "taken over":
            db.execute("update tidebase.run_heads set lease_expires_at = now() - interval '1 s'")
            acquire(db, "r")
        else:
            db.execute("select tidebase.cancel_run('r')")
        if how == "purged":
            db.execute("select tidebase.purge_runs('0 s', statuses => '{cancelled}')")
        reached(lambda: bool(lost))
        assert session._hold.ended.is_set()
    expected = {"cancelled": "TB004", "taken over": "TB003", "purged": "TB001"}
    assert [error.sqlstate for error in lost] == [expected[how]]


def test_heartbeats_connect_anew(database: str, db: Db) -> None:
    with Tidebase(database, lease_s=3) as tide, tide.runs.attach("w", run_id="r") as session:
        renewed_twice(db, "r")
        line = tide._heartbeats._line
        assert line is not None and line._connection is not None
        db.execute("select pg_terminate_backend(%s)", [line._connection.info.backend_pid])
        renewed_twice(db, "r")
        session.complete()


def test_heartbeats_use_the_pool_where_the_server_takes_no_more_connections(database: str, db: Db) -> None:
    with psycopg.connect(database, autocommit=True) as admin:
        admin.execute("create role few login connection limit 1 in role tidebase_worker")
    try:
        address, _, options = database.partition("?")
        url = f"{address.replace('postgres@', 'few@')}?{options}"
        with Tidebase(url, lease_s=3, pool_size=1) as tide, tide.runs.attach("w", run_id="r") as session:
            renewed_twice(db, "r")
            session.complete()
    finally:
        db.execute("drop role few")


def test_a_session_that_nobody_refers_to_is_not_renewed(
    database: str, db: Db, caplog: pytest.LogCaptureFixture
) -> None:
    with Tidebase(database, lease_s=1) as tide:
        tide.runs.attach("w", run_id="r", on_lease_lost=lambda error, held=[]: held.append(error))
        gc.collect()
        assert not tide._heartbeats._beats
        until(db, "lease_expires_at < clock_timestamp() from tidebase.run_heads where run_id = 'r'")
    assert "run r: nobody works on it any more" in caplog.text


async def test_a_session_that_nobody_refers_to_is_not_renewed_async(database: str, db: Db) -> None:
    async with AsyncTidebase(database, lease_s=1) as tide:
        await tide.runs.attach("w", run_id="r")
        gc.collect()
        assert not tide._heartbeats._beats


@pytest.mark.parametrize("closed", [True, False], ids=["closed", "collected"])
def test_heartbeats_end_with_their_tidebase(database: str, closed: bool) -> None:
    tide: Tidebase | None = Tidebase(database, lease_s=3600)
    assert tide is not None
    hold = tide.runs.attach("w", run_id="r")._hold
    thread = tide._heartbeats._thread
    assert thread is not None and thread.is_alive()
    if closed:
        tide.close()
    del tide
    gc.collect()
    thread.join(PATIENCE_S)
    assert not thread.is_alive() and isinstance(hold, Hold)


# --- calls inside a block that has the connection ---


def test_a_call_inside_a_transaction_does_not_need_the_pools_last_connection(database: str) -> None:
    def work(run: Run, _: Any) -> None:
        with run.transaction("t") as tx:
            tx.execute("select 1")
            run.emit("agent.note")
            assert run.step("s", lambda: 1) == 1

    with Tidebase(database, pool_size=1, reconnect_s=PATIENCE_S) as tide:
        tide.run("w", work, run_id="r")
        assert "agent.note" in [event.type for event in tide.runs.events("r")]


async def test_a_call_inside_a_transaction_does_not_need_the_pools_last_connection_async(database: str) -> None:
    async def work(run: AsyncRun, _: Any) -> None:
        async with run.transaction("t") as tx:
            await tx.execute("select 1")
            await run.emit("agent.note")

    async with AsyncTidebase(database, pool_size=1, reconnect_s=PATIENCE_S) as tide:
        await tide.run("w", work, run_id="r")


def test_as_many_transactions_as_connections_may_all_make_calls(database: str) -> None:
    barrier = threading.Barrier(3)

    def work(run: Run, _: Any) -> None:
        def one(number: int) -> None:
            with run.transaction("t", key=number) as tx:
                tx.execute("select 1")
                barrier.wait(PATIENCE_S)
                run.emit("agent.note")

        with ThreadPoolExecutor(3) as threads:
            list(threads.map(one, range(3)))

    with Tidebase(database, pool_size=3, reconnect_s=PATIENCE_S) as tide:
        tide.run("w", work, run_id="r")


# --- passing trouble ---


def only_reads(db: Db) -> None:
    """As after a failover behind one address: new sessions meet a standby."""
    name = value(db, "select current_database()")
    db.execute(f"alter database {name} set default_transaction_read_only = on")
    end_sessions(db)


def writes_again(db: Db) -> None:
    db.execute(f"alter database {value(db, 'select current_database()')} reset default_transaction_read_only")


def end_sessions(db: Db) -> None:
    others = "datname = current_database() and pid <> pg_backend_pid()"
    db.execute(f"select pg_terminate_backend(pid) from pg_stat_activity where {others}")


TROUBLE = {
    "only reads": (only_reads, writes_again),
    "sessions end": (end_sessions, lambda db: None),
}


@on_every_version
@pytest.mark.parametrize("trouble", TROUBLE)
@pytest.mark.parametrize("mark", [True, False], ids=["begun", "recorded"])
def test_a_checkpoint_outlasts_trouble(database: str, db: Db, trouble: str, mark: bool) -> None:
    """What is paid for is stored when the trouble is over, however short ``reconnect_s`` is, and paid once."""
    begin, end = TROUBLE[trouble]
    executed = []

    def work(run: Run, _: Any) -> int:
        def paid() -> int:
            executed.append(1)
            tide._database._reconnect_s = 0.01  # from now on it is the lease that counts
            begin(db)
            return 7

        with ThreadPoolExecutor(1) as threads:
            timer = threads.submit(lambda: (tried.wait(PATIENCE_S), end(db)))
            result = run.step.options(mark_start=mark)("paid", paid)
            timer.result()
        return result

    with Tidebase(database, lease_s=60) as tide:
        tried = failures_of(tide._database)
        if trouble == "sessions end":
            tried.set()
        assert tide.run("w", work, run_id="r") == 7
        assert tide.run("w", work, run_id="r") == 7
    assert executed == [1]


def failures_of(given: Any) -> threading.Event:
    """Set when three calls have failed."""
    failed, count, once = threading.Event(), itertools.count(1), given._once

    def counted(call: Any) -> Any:
        try:
            return once(call)
        except psycopg.Error:
            if next(count) == 3:
                failed.set()
            raise

    given._once = counted
    return failed


@on_every_version
@pytest.mark.parametrize("setting", ["lock_timeout", "statement_timeout"])
def test_a_checkpoint_waits_for_a_lock_longer_than_one_call_may(database: str, db: Db, setting: str) -> None:
    executed = []

    def work(run: Run, _: Any) -> int:
        def paid() -> int:
            executed.append(1)
            tide._database._reconnect_s = 0.01  # from now on it is the lease that counts
            blocker.execute("select from tidebase.run_heads where run_id = 'r' for no key update")
            return 7

        with ThreadPoolExecutor(1) as threads:
            timer = threads.submit(lambda: (tried.wait(PATIENCE_S), blocker.rollback()))
            result = run.step("paid", paid)
            timer.result()
        return result

    name = value(db, "select current_database()")
    db.execute(f"alter database {name} set {setting} = '50ms'")
    with psycopg.connect(database) as blocker, Tidebase(database, lease_s=60) as tide:
        blocker.execute(f"set {setting} = 0")
        tried = failures_of(tide._database)
        assert tide.run("w", work, run_id="r") == 7
    db.execute(f"alter database {name} reset {setting}")
    assert executed == [1]


@pytest.mark.parametrize(
    "state",
    [
        *("25006", "25P03", "25P04", "40001", "40P01", "53000", "53100", "53200", "53300", "55P03", "57014"),
        *("57P01", "57P02", "57P03", "57P05", "58000", "58030", "08006"),
    ],
)
def test_what_passes(state: str) -> None:
    assert is_transient(with_state(state))


@pytest.mark.parametrize("state", ["57P04", "23505", "42883", "28P01", "3D000", "22P02", "TB003"])
def test_what_does_not_pass(state: str) -> None:
    assert not is_transient(with_state(state))


def with_state(state: str) -> psycopg.Error:
    error = psycopg.OperationalError("trouble")
    error.sqlstate = state
    return error


def test_the_pool_is_asked_anew_when_the_server_is_back(
    database: str, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """psycopg's pool waits longer and longer between its own tries: after six of them for half a minute."""
    monkeypatch.setattr("tidebase.core.database._ASK_AGAIN_S", 0.1)
    socket = f"{server.cluster.socket_folder}/.s.PGSQL.5432"
    with Proxy(socket) as proxy:
        url = f"postgresql://postgres@127.0.0.1:{proxy.port}/{database.partition('?')[0].rpartition('/')[2]}?sslmode=disable"
        with Tidebase(url, reconnect_s=PATIENCE_S) as tide, ThreadPoolExecutor(1) as threads:
            tide.run("w", lambda run, _: run.step("s", lambda: 1), run_id="r")
            tries = count_of(proxy)
            proxy.target = "/nowhere"
            proxy.cut()
            answer = threads.submit(lambda: tide.runs.get("r").status)
            reached(lambda: tries() >= 12)
            proxy.target = socket
            assert answer.result(PATIENCE_S) == "completed"


def count_of(proxy: Proxy) -> Callable[[], int]:
    before = proxy.accepted
    return lambda: proxy.accepted - before


def test_the_first_connection_waits_for_a_server_that_starts(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    refusals = iter([psycopg.OperationalError("the database system is starting up")] * 3)
    connect = psycopg.connect
    states = iter([Ping.REJECT] * 3)

    def once_more(*arguments: Any, **options: Any) -> Any:
        for error in refusals:
            raise error
        return connect(*arguments, **options)

    monkeypatch.setattr("tidebase.core.database.psycopg.connect", once_more)
    monkeypatch.setattr("tidebase.core.base.PGconn", SimpleNamespace(ping=lambda conninfo: next(states)))
    with Tidebase(database) as tide:
        assert tide.run("w", lambda run, _: 1, run_id="r") == 1


def test_a_peer_that_vanishes_is_given_up_in_a_third_of_the_lease(database: str, server: Server) -> None:
    """Whatever leads to the server: the pool, the heartbeats, the doorbell."""
    with Proxy(f"{server.cluster.socket_folder}/.s.PGSQL.5432") as proxy:
        url = f"postgresql://postgres@127.0.0.1:{proxy.port}/{database.partition('?')[0].rpartition('/')[2]}"
        with Tidebase(url, lease_s=30) as tide:
            connections = tide._database
            with connections.connection() as pooled, connections.aside() as aside, connections.listener() as listener:
                for connection in (pooled, aside, listener):
                    assert limits_of(connection) == (10_000, 5, 2, 3)
                    assert connection.info.get_parameters()["connect_timeout"] == "10"
        with Tidebase(f"{url}?tcp_user_timeout=1234", lease_s=30) as tide, tide._database.connection() as said:
            assert limits_of(said)[0] == 1234, "what the user says stands"


def limits_of(connection: psycopg.Connection[Any]) -> tuple[int, ...]:
    with socket.socket(fileno=os.dup(connection.fileno())) as own:
        options = (socket.TCP_USER_TIMEOUT, socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
        return tuple(own.getsockopt(socket.IPPROTO_TCP, option) for option in options)


@on_every_version
def test_sessions_have_limits(database: str) -> None:
    with (
        Tidebase(database, lease_s=30) as tide,
        tide._database.connection() as connection,
        tide._database.aside() as aside,  # as where the pool's are all in use
    ):
        assert limits(connection) == limits(aside) == ("10s", "1min")
    address, _, options = database.partition("?")
    with (
        Tidebase(f"{address}?options=-c%20lock_timeout%3D7s&{options}") as tide,
        tide._database.connection() as connection,
    ):
        assert limits(connection) == ("7s", "1min"), "what the user says stands"


async def test_sessions_have_limits_async(database: str) -> None:
    async with AsyncTidebase(database, lease_s=90) as tide, tide._database.connection() as pooled:
        for connection in (pooled, await tide._database.aside()):
            rows = await connection.execute(LIMITS)
            assert await rows.fetchone() == ("30s", "90s")
        await connection.close()


LIMITS = "select current_setting('lock_timeout'), current_setting('idle_in_transaction_session_timeout')"


def limits(connection: psycopg.Connection[Any]) -> Any:
    return connection.execute(LIMITS).fetchone()


def test_a_transaction_begins_on_a_connection_that_is_there(database: str, db: Db) -> None:
    """The one at hand was broken off while nobody used it: nothing was done yet, so another one is taken."""

    def work(run: Run, _: Any) -> int:
        end_sessions(db)
        with run.transaction("t") as tx:
            tx.result = tx.execute("select 1").fetchone()[0]  # type: ignore[index]
        return int(tx.result)

    with Tidebase(database) as tide:
        assert tide.run("w", work, run_id="r") == 1


async def test_a_transaction_begins_on_a_connection_that_is_there_async(database: str, db: Db) -> None:
    async def work(run: AsyncRun, _: Any) -> int:
        await asyncio.to_thread(end_sessions, db)
        async with run.transaction("t") as tx:
            tx.result = (await (await tx.execute("select 1")).fetchone())[0]  # type: ignore[index]
        return int(tx.result)

    async with AsyncTidebase(database) as tide:
        assert await tide.run("w", work, run_id="r") == 1


# --- a caller's connections that are not in autocommit mode ---


@pytest.mark.parametrize("kind", ["pool", "connection"])
def test_no_worker_vanishes_between_a_call_and_its_commit(database: str, db: Db, kind: str) -> None:
    """Stopped while its call waits for a lock, it has nothing left to say: the call commits without it."""

    def do(opened: Any) -> None:
        with Tidebase(opened) as tide:
            tide.runs.cancel("r")

    with locked_after_creation(database, db) as release:
        pid = os.fork()
        if pid == 0:
            with suppress(BaseException):
                if kind == "pool":
                    with ConnectionPool(database, min_size=1, open=True) as pool:
                        do(pool)
                else:
                    with psycopg.connect(database) as connection:
                        do(connection)
            os._exit(0)
        try:
            waits = "datname = current_database() and wait_event_type = 'Lock' and query like '%%cancel_run%%'"
            until(db, f"exists (select from pg_stat_activity where {waits})")
            os.kill(pid, signal.SIGSTOP)
            release()
            until(db, "(select status from tidebase.run_heads where run_id = 'r') = 'cancelled'")
        finally:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


@contextmanager
def locked_after_creation(database: str, db: Db) -> Iterator[Callable[[], None]]:
    db.execute("select tidebase.create_run('w', run_id => 'r')")
    with psycopg.connect(database) as other:
        other.execute("select from tidebase.run_heads where run_id = 'r' for no key update")
        yield other.rollback


@pytest.mark.parametrize("kind", ["pool", "connection"])
def test_a_callers_connection_is_left_as_it_was(database: str, kind: str) -> None:
    with ConnectionPool(database, min_size=1, max_size=1, open=True) as pool, psycopg.connect(database) as connection:
        opened: Any = pool if kind == "pool" else connection
        with Tidebase(opened) as tide:
            assert tide.run("w", lambda run, _: run.step("s", lambda: 1), run_id="r") == 1
            with pytest.raises(RunNotFound):
                tide.runs.cancel("nothing")
        with pool.connection() as pooled:
            used = pooled if kind == "pool" else connection
            assert not used.autocommit
            assert used.info.transaction_status == TransactionStatus.IDLE
            assert used.execute("select 1").fetchone() == (1,)
            used.rollback()


async def test_a_callers_connection_is_left_as_it_was_async(database: str) -> None:
    async with (
        AsyncConnectionPool(database, min_size=1, max_size=1, open=False) as pool,
        await psycopg.AsyncConnection.connect(database) as connection,
    ):
        opened: Any
        for opened in (pool, connection):
            async with AsyncTidebase(opened) as tide:
                assert await tide.run("w", one_step, run_id=type(opened).__name__) == 1
                with pytest.raises(RunNotFound):
                    await tide.runs.cancel("nothing")
        async with pool.connection() as pooled:
            for used in (pooled, connection):
                assert not used.autocommit
                assert used.info.transaction_status == TransactionStatus.IDLE


async def one_step(run: AsyncRun, _: Any) -> int:
    return await run.step("s", lambda: 1)


# --- statements that are prepared in sessions of our own ---


def told(tide: Tidebase, number: int) -> Any:
    """What a call returns whose texts are anything but ASCII, and whose numbers are large."""
    run_id = tide.runs.create("w", {"text": "ä\u2028'\\", "n": number}, run_id=f"ü {number}").run_id
    return tide.runs.get(run_id).input


@pytest.mark.parametrize("spoil", ["deallocate tidebase_0", "deallocate tidebase_1", None])
def test_a_session_that_lost_its_statements_is_one_like_any_other(database: str, spoil: str | None) -> None:
    with Tidebase(database, pool_size=1) as tide:
        for number in range(6):
            assert told(tide, number) == {"text": "ä\u2028'\\", "n": number}
            if spoil is not None and number in (0, 3):
                with tide._database.connection() as connection, suppress(psycopg.Error):
                    connection.execute(spoil)
        with pytest.raises(RunNotFound):
            tide.runs.get("none")
        with pytest.raises(InvalidArgument, match="NUL"):
            tide.runs.get("nu\0l")
        with pytest.raises(InvalidArgument, match="surrogate"):
            tide.runs.get("\ud800")
        assert told(tide, 7)["n"] == 7


def selected(tide: Tidebase, query: str, *parameters: Any) -> Any:
    """One value, or the name of the error, of a call that is made for the third time."""
    call = Call(query, parameters, lambda rows: rows[0][0])
    for _ in range(2):
        with suppress(TidebaseError):
            tide._database.execute(call)
    try:
        return tide._database.execute(call)
    except TidebaseError as error:
        return error.sqlstate


def test_a_statement_that_is_lost_is_prepared_anew_and_the_others_stay(tide: Tidebase, db: Db) -> None:
    """Its name may still be known to the server, when the schema is another one."""
    db.execute("create table other (a integer); insert into other values (1)")
    changed, same = "select a from other where a = %s::integer", "select %s::integer"
    assert (selected(tide, changed, 1), selected(tide, same, 1)) == (1, 1)
    db.execute("alter table other alter a type bigint")
    assert (selected(tide, changed, 1), selected(tide, same, 1)) == (1, 1)
    with tide._database.connection() as connection:
        statements = prepared._sessions[connection].statements.values()
        assert [statement.is_prepared for statement in statements] == [True] * len(statements)
        names = "select name from pg_prepared_statements where name like 'tidebase%%'"
        known = {str(row[0]).encode() for row in connection.execute(names)}
    assert {statement.name for statement in statements} <= known


@pytest.mark.parametrize(
    ("kind", "value", "expected"),
    [
        ("integer", 2.5, 2),
        ("integer", True, 1),
        ("text", True, "true"),
        ("text", 1.0, "1"),
        ("numeric", 0.1 + 0.2, Decimal("0.3")),
        ("boolean", 1, "42846"),
        ("interval", 5, "42846"),
        ("numeric", 10**100, Decimal(10**100)),
        ("bigint", 2**63 - 1, 2**63 - 1),
        ("bigint", 2**63, "22003"),
        ("text", None, None),
        ("text", "\u00e4", "\u00e4"),
    ],
)
def test_a_value_means_the_same_whichever_way_it_goes(tide: Tidebase, kind: str, value: Any, expected: Any) -> None:
    query = f"select %s::{kind}"
    with tide._database.connection() as connection:
        try:
            plain = run(connection, Call(query, (value,), lambda rows: rows[0][0]))
        except psycopg.Error as error:
            plain = error.sqlstate
    assert plain == expected
    assert selected(tide, query, value) == expected


def test_a_session_that_has_ended_is_not_kept(database: str) -> None:
    """A process that makes many, such as one for each event loop, would run the server out of them."""
    with Tidebase(database, pool_size=1) as tide:
        assert selected(tide, "select %s::integer", 1) == 1
        with tide._database.connection() as connection:
            assert any(statement.is_prepared for statement in prepared._sessions[connection].statements.values())
            kept = weakref.ref(connection)
    del connection
    gc.collect()
    assert kept() is None
