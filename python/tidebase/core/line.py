"""Connections outside the pool: how they are made, and lines: such connections, for what must wait for nobody."""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, TypeVar, cast

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.pq import Conninfo, Format, TransactionStatus
from psycopg.pq.abc import PGresult
from psycopg.rows import tuple_row
from psycopg_pool import AsyncConnectionPool, ConnectionPool

from . import rows
from .call import Call
from .errors import InvalidArgument, is_of_the_session
from .forked import keep

R = TypeVar("R")
Connection = psycopg.Connection[Any]
AsyncConnection = psycopg.AsyncConnection[Any]


def with_limits(conninfo: str, lease_s: float, **arguments: Any) -> str:
    """The connection string, with limits to how long a peer that has vanished is waited for: a third of the lease, so
    that there is time for another connection (PostgreSQL manual, section 34.1.2). What the user says himself stands: in
    the string, in libpq's variables, or in these arguments.
    """
    third = min(max(lease_s / 3, 1), 30)
    limits = {
        "connect_timeout": max(round(third), 2),
        "tcp_user_timeout": round(third * 1000),
        "keepalives_idle": max(round(third / 2), 1),
        "keepalives_interval": max(round(third / 6), 1),
        "keepalives_count": 3,
    }
    said = {*conninfo_to_dict(conninfo), *arguments}
    said.update(option.keyword.decode() for option in Conninfo.get_defaults() if option.val is not None)
    return make_conninfo(conninfo, **{name: value for name, value in limits.items() if name not in said})


def ours(conninfo: str, lease_s: float) -> str:
    """The same, for a connection of our own: in UTF-8, whatever is set for the user, the database or the process."""
    return make_conninfo(with_limits(conninfo, lease_s), client_encoding="UTF8")


#: Limits of a session of our own that does not go through a pooler, unless somebody has set them: who waits longer for
#: a lock asks again (it may be that of a worker who has vanished), and a transaction that nobody goes on with ends
#: (PostgreSQL manual, section 19.11).
LIMITED = """select set_config(name, value, false)
from (values ('lock_timeout', %s), ('idle_in_transaction_session_timeout', %s)) limits(name, value)
where current_setting(name) = '0'"""


def session_limits(lease_s: float) -> tuple[str, str]:
    """For :data:`LIMITED`: a third of the lease; the lease, and a minute at least."""
    return f"{round(min(max(lease_s / 3, 1), 30) * 1000)}ms", f"{round(max(lease_s, 60) * 1000)}ms"


def like_those_of(pool: ConnectionPool[Connection], lease_s: float) -> Connection:
    """A connection as the caller's pool makes them, in autocommit mode."""
    conninfo = _resolved(pool.conninfo) or ""
    arguments = {**(_resolved(pool.kwargs) or {}), "autocommit": True, "prepare_threshold": None}
    connection = pool.connection_class.connect(with_limits(conninfo, lease_s, **arguments), **arguments)
    keep(connection)
    configure = getattr(pool, "_configure", None)
    if configure is not None:
        configure(connection)
        connection.autocommit = True
    return connection


async def like_those_of_async(pool: AsyncConnectionPool[AsyncConnection], lease_s: float) -> AsyncConnection:
    """A connection as the caller's pool makes them, in autocommit mode."""
    conninfo = await _awaited(_resolved(pool.conninfo)) or ""
    arguments = {**(await _awaited(_resolved(pool.kwargs)) or {}), "autocommit": True, "prepare_threshold": None}
    connection = await pool.connection_class.connect(with_limits(conninfo, lease_s, **arguments), **arguments)
    keep(connection)
    configure = getattr(pool, "_configure", None)
    if configure is not None:
        await configure(connection)
        await connection.set_autocommit(True)
    return connection


def _resolved(value: Any) -> Any:
    return value() if callable(value) else value


async def _awaited(value: Any) -> Any:
    return await value if inspect.isawaitable(value) else value


# Rows come in binary and as tuples, however the session or the caller's connection like to show a time, an interval, a
# number or a row; over a cursor of psycopg's own, for the caller's may put parameters in by itself (Django's does).


def _cursor(connection: Connection) -> psycopg.Cursor[Any]:
    cursor = psycopg.Cursor(connection, row_factory=tuple_row)
    cursor.format = Format.BINARY
    return cursor


def _cursor_async(connection: AsyncConnection) -> psycopg.AsyncCursor[Any]:
    cursor = psycopg.AsyncCursor(connection, row_factory=tuple_row)
    cursor.format = Format.BINARY
    return cursor


def _require_utf8(connection: Connection | AsyncConnection) -> None:
    """Raises InvalidArgument where texts would be lost on the way; what the server says at connect is asked, not it."""
    encoding = connection.pgconn.parameter_status(b"client_encoding")
    if encoding not in (b"UTF8", None):
        raise InvalidArgument(
            f"the client_encoding of this connection is {encoding.decode()}; Tidebase needs UTF8",
            hint="Connect with client_encoding=UTF8, or give Tidebase a connection string: then it does.",
        )


def run(connection: Connection, call: Call[R]) -> R:
    """Makes a call on this connection."""
    _require_utf8(connection)
    cursor = _cursor(connection)
    cursor.execute(call.query, call.parameters)
    try:
        return call.read(cursor.fetchall())
    except _UNREADABLE:
        return call.read(rows.read(_result(cursor), connection))


async def run_async(connection: AsyncConnection, call: Call[R]) -> R:
    """Makes a call on this connection."""
    _require_utf8(connection)
    cursor = _cursor_async(connection)
    await cursor.execute(call.query, call.parameters)
    try:
        return call.read(await cursor.fetchall())
    except _UNREADABLE:
        return call.read(rows.read(_result(cursor), connection))


# What psycopg says of a value that Python has no form for, when it makes the rows of an answer that has come.
_UNREADABLE = (psycopg.DataError, OverflowError)


def _result(cursor: psycopg.Cursor[Any] | psycopg.AsyncCursor[Any]) -> PGresult:
    if cursor.pgresult is None:  # it is there: rows were made of it
        raise AssertionError("there is no answer")
    return cursor.pgresult


# A caller's connection may not be in autocommit mode. A BEGIN and a COMMIT around a call would be ways of their own: a
# worker that vanishes in between leaves a lock behind for as long as the server takes it to be there. (psycopg's
# pipeline sends them in pieces, too.) To switch the mode is no message to the server.


@contextmanager
def committed_at_once(connection: Connection) -> Iterator[None]:
    """In the block a statement is a transaction; in a transaction of the caller's it is a part of that."""
    if connection.autocommit:
        yield
    elif connection.pgconn.transaction_status != TransactionStatus.IDLE:
        with connection.transaction():
            yield
    else:
        connection.autocommit = True
        try:
            yield
        finally:
            if connection.pgconn.transaction_status == TransactionStatus.IDLE:
                connection.autocommit = False


@asynccontextmanager
async def committed_at_once_async(connection: AsyncConnection) -> AsyncIterator[None]:
    """The same, awaited."""
    if connection.autocommit:
        yield
    elif connection.pgconn.transaction_status != TransactionStatus.IDLE:
        async with connection.transaction():
            yield
    else:
        await connection.set_autocommit(True)
        try:
            yield
        finally:
            if connection.pgconn.transaction_status == TransactionStatus.IDLE:
                await connection.set_autocommit(False)


def discard(connection: Connection | AsyncConnection) -> None:
    """Ends the session, so that a pool replaces the connection; also one whose ``close`` gives it back to its pool."""
    connection.pgconn.finish()


@contextmanager
def in_order(connection: Connection | AsyncConnection) -> Iterator[None]:
    """Ends the session after an error that it would give again: the next call is to meet another one."""
    try:
        yield
    except psycopg.Error as error:
        if is_of_the_session(error):
            discard(connection)
        raise


class Line:
    """One connection outside the pool: opened at the first call, and anew after a failure.

    Args:
        connect: makes the connection.
        otherwise: makes a call where there is none to be had, such as when the server takes no more connections.
    """

    def __init__(self, connect: Callable[[], Connection], otherwise: Callable[[Call[Any]], Any]) -> None:
        self._connect = connect
        self._otherwise = otherwise
        self._lock = threading.Lock()
        self._connection: Connection | None = None

    def execute(self, call: Call[R]) -> R:
        """Makes the call, once. Raises psycopg's errors as they are."""
        with self._lock:
            if self._connection is None or self._connection.closed:
                try:
                    self._connection = self._connect()
                except psycopg.OperationalError:
                    return cast(R, self._otherwise(call))
            connection = self._connection
            try:
                with in_order(connection):
                    return run(connection, call)
            finally:
                if connection.pgconn.transaction_status != TransactionStatus.IDLE:  # broken, or interrupted
                    discard(connection)

    def close(self) -> None:
        """Closes the connection; the next call opens another."""
        with self._lock:
            connection, self._connection = self._connection, None
            if connection is not None:
                discard(connection)


class AsyncLine:
    """The same as :class:`Line`, awaited."""

    def __init__(
        self, connect: Callable[[], Awaitable[AsyncConnection]], otherwise: Callable[[Call[Any]], Awaitable[Any]]
    ) -> None:
        self._connect = connect
        self._otherwise = otherwise
        self._lock = asyncio.Lock()
        self._connection: AsyncConnection | None = None

    async def execute(self, call: Call[R]) -> R:
        """Makes the call, once. Raises psycopg's errors as they are."""
        async with self._lock:
            if self._connection is None or self._connection.closed:
                try:
                    self._connection = await self._connect()
                except psycopg.OperationalError:
                    return cast(R, await self._otherwise(call))
            connection = self._connection
            try:
                with in_order(connection):
                    return await run_async(connection, call)
            finally:
                if connection.pgconn.transaction_status != TransactionStatus.IDLE:  # broken, or interrupted
                    discard(connection)

    def close(self) -> None:
        """Closes the connection; the next call opens another."""
        connection, self._connection = self._connection, None
        if connection is not None:
            discard(connection)
