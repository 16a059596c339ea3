"""Connections: where the database is, one pool, and the two executors that send calls.

Every function of the schema may be called again with the same arguments, so when a connection breaks, or the server
restarts, the executor just makes the call again on a new connection, for at most ``reconnect_s`` seconds.
"""

from __future__ import annotations

import asyncio
import os
import re
import sys
import threading
import time
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any, TypeVar, cast

import psycopg
from psycopg.conninfo import make_conninfo
from psycopg.pq import TransactionStatus
from psycopg.rows import tuple_row
from psycopg_pool import AsyncConnectionPool, ConnectionPool
from tenacity import AsyncRetrying, Retrying, retry_if_exception, stop_after_delay, wait_random_exponential

from .calls import Call
from .doorbell import AsyncDoorbell, Doorbell
from .errors import DatabaseUnavailable, InvalidArgument, TidebaseError, from_postgres, is_transient
from .mark import Marker

R = TypeVar("R")
Connection = psycopg.Connection[Any]
AsyncConnection = psycopg.AsyncConnection[Any]
Pool = ConnectionPool[Connection]
AsyncPool = AsyncConnectionPool[AsyncConnection]

#: One connection for each step that is in a call right now; heartbeats share them. More threads than that only queue.
POOL_SIZE = 10

#: How long a connection may stay out of the pool between calls, in seconds.
_STAY_S = 60.0

_LIBPQ = ("PGHOST", "PGHOSTADDR", "PGPORT", "PGDATABASE", "PGUSER", "PGSERVICE", "PGSERVICEFILE")


def named_url(given: str | None = None) -> str | None:
    """The connection string: the one given, ``TIDEBASE_DATABASE_URL``, ``DATABASE_URL``, libpq's own variables
    (PostgreSQL manual, section 34.15), which an empty one stands for; None when nothing names a database.

    ``postgresql+psycopg://`` and its like, as SQLAlchemy spells them, are understood.
    """
    url = given or os.environ.get("TIDEBASE_DATABASE_URL") or os.environ.get("DATABASE_URL")
    if url:
        return re.sub(r"^(postgres(?:ql)?)\+\w+://", r"\1://", url)
    return "" if any(os.environ.get(name) for name in _LIBPQ) else None


def find_url(given: str | None = None) -> str:
    """The connection string of :func:`named_url`; with none, a local Postgres is started."""
    url = named_url(given)
    if url is not None:
        return url
    from .local import start_local

    return start_local()


def require_psycopg(given: Any, wanted: type[Any]) -> None:
    """Refuses another library's connection, with what is to be passed of it. Raises InvalidArgument."""
    if not isinstance(given, wanted):
        kind = f"{type(given).__module__}.{type(given).__qualname__}"
        raise InvalidArgument(
            f"connection must be a psycopg.{wanted.__name__}, and not a {kind}",
            hint="Of SQLAlchemy on psycopg 3, pass connection.connection.driver_connection of a Connection that has"
            " begun (of a Session: session.connection()); of Django, django.db.connection.connection, inside atomic().",
        )


def _retries(seconds: float) -> dict[str, Any]:
    return {
        "retry": retry_if_exception(is_transient),
        "stop": stop_after_delay(seconds),
        "wait": wait_random_exponential(multiplier=0.05, max=2),
        "reraise": True,
    }


def _translate(error: BaseException) -> BaseException:
    """What the caller gets for an error of psycopg; anything else passes as it is."""
    if isinstance(error, psycopg.Error):
        return from_postgres(error)
    if isinstance(error, UnicodeEncodeError):
        return InvalidArgument("a text has a lone surrogate, which has no UTF-8 form")
    return error


def _is_pooled(connection: Connection | AsyncConnection, server_pid: int) -> bool:
    """Whether a pooler stands between: it hands out a process id of its own (as PgBouncer does), not the server's."""
    return connection.info.backend_pid != server_pid


class Database:
    """Sends calls over a pool of its own, or over a pool or a connection of the caller's.

    Args:
        source: a connection string, a ``psycopg_pool.ConnectionPool``, a ``psycopg.Connection``, or None to look for a
            connection string (:func:`find_url`).
        pool_size: how many connections a pool of its own has at most.
        reconnect_s: for how long a call is made again when the connection breaks, in seconds.
        joined: calls belong to the transaction of the caller's connection, which the caller ends.
    """

    def __init__(
        self,
        source: str | Pool | Connection | None = None,
        *,
        pool_size: int = POOL_SIZE,
        reconnect_s: float = 30.0,
        joined: bool = False,
    ) -> None:
        self._joined = joined
        self._source = source
        self._pool_size = pool_size
        self._reconnect_s = reconnect_s
        self._lock = threading.RLock()
        self.doorbell = Doorbell(self)
        self.marker = Marker(self)
        self._pool: Pool | None = source if isinstance(source, ConnectionPool) else None
        self._single: Connection | None = source if isinstance(source, psycopg.Connection) else None
        self._url: str | None = None
        self._at_hand: list[Connection] = []
        self._waiting: list[None] = []
        self._until = 0.0

    @property
    def url(self) -> str:
        """The connection string in use."""
        if self._single is not None:
            return self._single.info.dsn
        if isinstance(self._source, ConnectionPool):
            return str(self._source.conninfo)
        with self._lock:
            if self._url is None:
                self._url = find_url(self._source)  # type: ignore[arg-type]
            return self._url

    @contextmanager
    def connection(self) -> Iterator[Connection]:
        """A connection for as long as the block takes."""
        if self._single is not None:
            with self._lock, _kept_for_block(self):  # one connection serves one thread at a time
                yield self._single
            return
        pool = self._open_pool()
        if pool is self._source:
            with pool.connection() as connection:
                yield connection
            return
        connection = self._borrow(pool)
        try:
            yield connection
        finally:
            self._give_back(pool, connection)

    def execute(self, call: Call[R]) -> R:
        """Makes the call and returns what it returns.

        Raises:
            TidebaseError: the one that stands for the database's error.
        """
        try:
            try:
                return self._once(call)
            except psycopg.Error as error:
                if not is_transient(error) or self._single is not None:
                    raise
            return cast(R, Retrying(**_retries(self._reconnect_s))(self._once, call))
        except (psycopg.Error, UnicodeEncodeError) as error:
            raise _translate(error) from error

    def execute_on(self, connection: Connection, call: Call[R]) -> R:
        """Makes the call on this connection, in its transaction."""
        try:
            return _run(connection, call)
        except (psycopg.Error, UnicodeEncodeError) as error:
            raise _translate(error) from error

    @property
    def listen_url(self) -> str:
        """Where to listen: a pooler drops LISTEN, so ``TIDEBASE_LISTEN_URL`` may lead past it."""
        return os.environ.get("TIDEBASE_LISTEN_URL") or self.url

    @property
    def joined(self) -> bool:
        """Whether calls belong to a transaction of the caller's, which sees nothing new by waiting."""
        return self._joined

    @property
    def has_connections(self) -> bool:
        """Whether another connection is to be had, at any time: not where the caller's single one is all."""
        return self._single is None

    def is_single(self, connection: Connection) -> bool:
        """Whether this is the caller's single connection, over which all calls go."""
        return connection is self._single

    def close(self) -> None:
        """Closes the pool, if it is one's own."""
        self.doorbell.close()
        with self._lock:
            if self._pool is not None and self._pool is not self._source:
                while self._at_hand:
                    self._pool.putconn(self._at_hand.pop())
                self._pool.close()
                self._pool = None

    def _once(self, call: Call[R]) -> R:
        if self._single is not None:
            _refuse_in_block(self)
            with self._lock, _transaction_if_needed(self._single, self._joined):
                return _run(self._single, call)
        pool = self._pool or self._open_pool()
        connection = self._borrow(pool)  # not pool.connection(), which would commit what has been committed
        try:
            if connection.autocommit:
                return _run(connection, call)
            with connection.transaction():
                return _run(connection, call)
        finally:
            self._give_back(pool, connection)

    # The pool's queue costs as much as a call does on the client, so the connection used last stays at hand for who
    # makes one call after another: unless somebody waits for one, and for a minute at most, so that the pool looks
    # after it.

    def _borrow(self, pool: Pool) -> Connection:
        try:
            return self._at_hand.pop()
        except IndexError:
            self._waiting.append(None)
        try:
            return self._at_hand.pop() if self._at_hand else pool.getconn()
        except IndexError:  # another thread was faster
            return pool.getconn()
        finally:
            self._waiting.pop()

    def _give_back(self, pool: Pool, connection: Connection) -> None:
        if _may_stay(self, pool, connection):
            self._at_hand.append(connection)
            if not self._waiting:
                return
            try:  # somebody has come meanwhile
                connection = self._at_hand.pop()
            except IndexError:
                return
        pool.putconn(connection)

    def _open_pool(self) -> Pool:
        if self._pool is not None:
            return self._pool
        with self._lock:
            if self._pool is None:
                with _first_connection(self.url) as connection:
                    pooled = _is_pooled(connection, _server_pid(connection))
                self._pool = ConnectionPool(
                    make_conninfo(self.url, **_connect_options()),
                    min_size=1,
                    max_size=self._pool_size,
                    timeout=self._reconnect_s,
                    kwargs=_connection_arguments(pooled),
                    open=True,
                )
            return self._pool


class AsyncDatabase:
    """The same as :class:`Database`, awaited, over ``psycopg_pool.AsyncConnectionPool``."""

    def __init__(
        self,
        source: str | AsyncPool | AsyncConnection | None = None,
        *,
        pool_size: int = POOL_SIZE,
        reconnect_s: float = 30.0,
        joined: bool = False,
    ) -> None:
        self._joined = joined
        self._source = source
        self._pool_size = pool_size
        self._reconnect_s = reconnect_s
        self._lock = asyncio.Lock()
        self.doorbell = AsyncDoorbell(self)
        self._pool: AsyncPool | None = source if isinstance(source, AsyncConnectionPool) else None
        self._single: AsyncConnection | None = source if isinstance(source, psycopg.AsyncConnection) else None
        self._url: str | None = None
        self._at_hand: list[AsyncConnection] = []
        self._waiting: list[None] = []
        self._until = 0.0

    @property
    def url(self) -> str:
        """The connection string in use."""
        if self._single is not None:
            return self._single.info.dsn
        if isinstance(self._source, AsyncConnectionPool):
            return str(self._source.conninfo)
        if self._url is None:
            self._url = find_url(self._source)  # type: ignore[arg-type]
        return self._url

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[AsyncConnection]:
        """A connection for as long as the block takes."""
        if self._single is not None:
            _refuse_in_block(self)
            async with self._lock:
                with _kept_for_block(self):
                    yield self._single
            return
        pool = self._pool or await self._open_pool()
        if pool is self._source:
            async with pool.connection() as connection:
                yield connection
            return
        connection = await self._borrow(pool)
        try:
            yield connection
        finally:
            await self._give_back(pool, connection)

    async def execute(self, call: Call[R]) -> R:
        """Makes the call and returns what it returns; see :meth:`Database.execute`."""
        try:
            with _cancellation_kept():
                try:
                    return await self._once(call)
                except psycopg.Error as error:
                    if not is_transient(error) or self._single is not None:
                        raise
                return cast(R, await AsyncRetrying(**_retries(self._reconnect_s))(self._once, call))
        except (psycopg.Error, UnicodeEncodeError) as error:
            raise _translate(error) from error

    async def execute_on(self, connection: AsyncConnection, call: Call[R]) -> R:
        """Makes the call on this connection, in its transaction."""
        try:
            with _cancellation_kept():
                return await _run_async(connection, call)
        except (psycopg.Error, UnicodeEncodeError) as error:
            raise _translate(error) from error

    @property
    def listen_url(self) -> str:
        """Where to listen: a pooler drops LISTEN, so ``TIDEBASE_LISTEN_URL`` may lead past it."""
        return os.environ.get("TIDEBASE_LISTEN_URL") or self.url

    @property
    def joined(self) -> bool:
        """Whether calls belong to a transaction of the caller's, which sees nothing new by waiting."""
        return self._joined

    @property
    def has_connections(self) -> bool:
        """Whether another connection is to be had, at any time: not where the caller's single one is all."""
        return self._single is None

    def is_single(self, connection: AsyncConnection) -> bool:
        """Whether this is the caller's single connection, over which all calls go."""
        return connection is self._single

    async def close(self) -> None:
        """Closes the pool, if it is one's own."""
        await self.doorbell.close()
        async with self._lock:
            if self._pool is not None and self._pool is not self._source:
                while self._at_hand:
                    await self._pool.putconn(self._at_hand.pop())
                await self._pool.close()
                self._pool = None

    async def _once(self, call: Call[R]) -> R:
        if self._single is not None:
            _refuse_in_block(self)
            async with self._lock, _transaction_if_needed(self._single, self._joined):
                return await _run_async(self._single, call)
        pool = self._pool or await self._open_pool()
        connection = await self._borrow(pool)
        try:
            if connection.autocommit:
                return await _run_async(connection, call)
            async with connection.transaction():
                return await _run_async(connection, call)
        finally:
            await self._give_back(pool, connection)

    async def _borrow(self, pool: AsyncPool) -> AsyncConnection:
        if self._at_hand:
            return self._at_hand.pop()
        self._waiting.append(None)
        try:
            return await pool.getconn()
        finally:
            self._waiting.pop()

    async def _give_back(self, pool: AsyncPool, connection: AsyncConnection) -> None:
        if _may_stay(self, pool, connection):
            self._at_hand.append(connection)
        else:
            await to_its_end(pool.putconn(connection))  # or the pool would never see it again

    async def _open_pool(self) -> AsyncPool:
        async with self._lock:
            if self._pool is None:
                with _first_connection(self.url) as connection:
                    pooled = _is_pooled(connection, _server_pid(connection))
                pool: AsyncPool = AsyncConnectionPool(
                    make_conninfo(self.url, **_connect_options()),
                    min_size=1,
                    max_size=self._pool_size,
                    timeout=self._reconnect_s,
                    kwargs=_connection_arguments(pooled),
                    open=False,
                )
                await pool.open()
                self._pool = pool
            return self._pool


def _may_stay(
    database: Database | AsyncDatabase, pool: Pool | AsyncPool, connection: Connection | AsyncConnection
) -> bool:
    """Whether a connection may stay at hand: of one's own pool, in good order, and nobody else is in want of it."""
    if pool is database._source or database._waiting or database._at_hand:
        return False
    if connection.pgconn.transaction_status != TransactionStatus.IDLE:
        return False
    now = time.monotonic()
    if now > database._until:
        database._until = now + _STAY_S
        return False
    return True


def _run(connection: Connection, call: Call[R]) -> R:
    cursor = connection.cursor(row_factory=tuple_row)  # the caller's connection may make its rows otherwise
    return call.read(cursor.execute(call.query, call.parameters).fetchall())


async def _run_async(connection: AsyncConnection, call: Call[R]) -> R:
    cursor = connection.cursor(row_factory=tuple_row)
    return call.read(await (await cursor.execute(call.query, call.parameters)).fetchall())


_going_on: set[asyncio.Task[Any]] = set()


async def to_its_end(work: Coroutine[Any, Any, R]) -> R:
    """Does the work, which goes on to its end by itself when this is cancelled: meant for what is short.

    A pool never gets back a connection of which the return was cancelled; and psycopg closes one when it is cancelled
    again while it waits for the query that it has cancelled, which a server on AnyIO does to the task of a client that
    is gone until that task ends.
    """
    task = asyncio.create_task(work)
    _going_on.add(task)  # the loop itself only has weak references
    task.add_done_callback(_going_on.discard)
    return await asyncio.shield(task)


@contextmanager
def _cancellation_kept() -> Iterator[None]:
    """A task that is cancelled during the block does not go on after it: psycopg waits with ``asyncio.wait_for``, and
    that of Python before 3.12 forgets a cancellation which comes together with what it waits for (bpo-37658).
    """
    task = None if sys.version_info < (3, 11) or sys.version_info >= (3, 12) else asyncio.current_task()
    before = task.cancelling() if task else 0
    yield
    if task and task.cancelling() > before:
        raise asyncio.CancelledError


#: Whose single connection a block at hand has for itself.
_kept: ContextVar[object] = ContextVar("tidebase_kept", default=None)


@contextmanager
def _kept_for_block(database: Database | AsyncDatabase) -> Iterator[None]:
    _refuse_in_block(database)
    _kept.set(database)
    try:
        yield
    finally:
        _kept.set(None)


def _refuse_in_block(database: Database | AsyncDatabase) -> None:
    """A call inside a transaction on the only connection would be part of it, and what it stores lost with it; or it
    would wait for itself.
    """
    if _kept.get() is database:
        raise TidebaseError(
            "inside a transaction on the only connection, nothing else can be done with the run",
            hint="Do it before or after the block, or give Tidebase a pool or a connection string.",
        )


def _transaction_if_needed(connection: Connection | AsyncConnection, joined: bool) -> Any:
    """A caller's connection may not be in autocommit mode: the call is a transaction all the same."""
    return nullcontext() if joined or connection.autocommit else connection.transaction()


def _connect_options() -> dict[str, str]:
    # TCP keepalives notice a peer that is gone within about a minute instead of hours.
    return {"keepalives_idle": "30", "keepalives_interval": "10", "keepalives_count": "3"}


def _connection_arguments(pooled: bool) -> dict[str, Any]:
    """Autocommit: a call is a transaction. Prepared statements only where the session is one's own: behind a pooler in
    transaction mode the next call may meet another server process.
    """
    return {"autocommit": True, "prepare_threshold": None if pooled else 2}


def _first_connection(url: str) -> Connection:
    """A first connection outside the pool: a wrong password or name is told at once, not after the pool's timeout."""
    try:
        return psycopg.connect(make_conninfo(url, **_connect_options()), autocommit=True, prepare_threshold=None)
    except psycopg.Error as error:
        raise DatabaseUnavailable(
            f"cannot connect to the database: {str(error).strip()}",
            sqlstate=error.sqlstate,
            hint="Check TIDEBASE_DATABASE_URL, DATABASE_URL or the PG... variables.",
        ) from error


def _server_pid(connection: Connection) -> int:
    row = connection.execute("select pg_backend_pid()").fetchone()
    return int(row[0]) if row else 0
