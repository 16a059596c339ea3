"""Connections outside the pool: how they are made, and lines: such connections, for what must wait for nobody."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeVar, cast

import psycopg
from psycopg.generators import execute
from psycopg.pq import Format, TransactionStatus
from psycopg.rows import tuple_row
from psycopg_pool import AsyncConnectionPool

from . import prepared, routed, rows
from ._tasks import Lock, connect, resolved
from .call import Call
from .forked import keep
from .sessions import UNREADABLE, AsyncConnection, answer, discard, in_order, ours, require_utf8, with_limits

R = TypeVar("R")


async def connect_aside(url: str, lease_s: float) -> AsyncConnection:
    """A connection of our own, in autocommit mode."""
    connection = await connect(ours(url, lease_s))
    keep(connection)
    return connection


async def like_those_of(pool: AsyncConnectionPool[AsyncConnection], lease_s: float) -> AsyncConnection:
    """A connection as the caller's pool makes them, in autocommit mode."""
    conninfo = await resolved(pool.conninfo) or ""
    arguments = {**(await resolved(pool.kwargs) or {}), "autocommit": True, "prepare_threshold": None}
    connection = await pool.connection_class.connect(with_limits(conninfo, lease_s, **arguments), **arguments)
    keep(connection)
    configure = getattr(pool, "_configure", None)
    if configure is not None:
        await configure(connection)
        await connection.set_autocommit(True)
    return connection


# Rows come in binary and as tuples, however the session or the caller's connection like to show a time, an interval, a
# number or a row; over a cursor of psycopg's own, for the caller's may put parameters in by itself (Django's does).


def _cursor(connection: AsyncConnection) -> psycopg.AsyncCursor[Any]:
    cursor = psycopg.AsyncCursor(connection, row_factory=tuple_row)
    cursor.format = Format.BINARY
    return cursor


async def run(connection: AsyncConnection, call: Call[R]) -> R:
    """Makes a call on this connection."""
    require_utf8(connection)
    cursor = _cursor(connection)
    await cursor.execute(call.query, call.parameters)
    try:
        return call.read(await cursor.fetchall())
    except UNREADABLE:
        return call.read(rows.read(answer(cursor), connection))


async def require_no_router(connection: AsyncConnection) -> None:
    """Raises InvalidArgument where calls on this connection would be no part of its transaction."""
    if not routed.is_known(connection):
        await run(connection, routed.LOOK)
        routed.know(connection)


async def run_again(connection: AsyncConnection, call: Call[R]) -> R:
    """Makes a call in a session of our own, outside of any transaction; a statement that was used there before is
    prepared. See :mod:`tidebase.core.prepared`.
    """
    statement = prepared.again(connection, call.query, call.parameters) if connection.autocommit else None
    values = None if statement is None else prepared.encoded(call.parameters)
    if statement is None or values is None:
        return await run(connection, call)
    require_utf8(connection)
    try:
        if not statement.is_prepared:
            connection.pgconn.send_prepare(statement.name, statement.query, statement.types)
            statement.was_prepared(*await connection.wait(execute(connection.pgconn)))
        connection.pgconn.send_query_prepared(statement.name, values, None, Format.BINARY)
        result = prepared.answer(*await connection.wait(execute(connection.pgconn)))
    except psycopg.Error as error:
        if not prepared.is_lost(error):
            raise
        prepared.forget(connection, statement)
        return await run(connection, call)
    try:
        return call.read(prepared.rows(result, connection))
    except UNREADABLE:
        return call.read(rows.read(result, connection))


# A caller's connection may not be in autocommit mode. A BEGIN and a COMMIT around a call would be ways of their own: a
# worker that vanishes in between leaves a lock behind for as long as the server takes it to be there. (psycopg's
# pipeline sends them in pieces, too.) To switch the mode is no message to the server.


@asynccontextmanager
async def committed_at_once(connection: AsyncConnection) -> AsyncIterator[None]:
    """In the block a statement is a transaction; in a transaction of the caller's it is a part of that."""
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


class AsyncLine:
    """One connection outside the pool: opened at the first call, and anew after a failure.

    Args:
        connect: makes the connection.
        otherwise: makes a call where there is none to be had, such as when the server takes no more connections.
    """

    def __init__(
        self, connect: Callable[[], Awaitable[AsyncConnection]], otherwise: Callable[[Call[Any]], Awaitable[Any]]
    ) -> None:
        self._connect = connect
        self._otherwise = otherwise
        self._lock = Lock()
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
                    return await run(connection, call)
            finally:
                if connection.pgconn.transaction_status != TransactionStatus.IDLE:  # broken, or interrupted
                    discard(connection)

    def close(self) -> None:
        """Closes the connection; the next call opens another."""
        with self._lock:
            connection, self._connection = self._connection, None
            if connection is not None:
                discard(connection)
