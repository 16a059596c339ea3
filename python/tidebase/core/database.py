"""Connections: where the database is, one pool, and the two executors that send calls.

Every function of the schema may be called again with the same arguments, so when a connection breaks, or the server
restarts, fails over, is out of something or in somebody's way, the executor just makes the call again, on a new
connection where need be, for at most ``reconnect_s`` seconds; one that is part of the work under a lease for as long as
the lease lasts. Who cancels a call himself has it cancelled.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager, suppress
from contextvars import ContextVar
from typing import Any, TypeVar, cast
from weakref import WeakSet

import psycopg
from psycopg.pq import PGconn, Ping, TransactionStatus
from psycopg_pool import AsyncConnectionPool, ConnectionPool, PoolClosed, PoolTimeout
from tenacity import AsyncRetrying, Retrying, retry_if_exception, wait_random_exponential

from .call import Call
from .doorbell import AsyncDoorbell, Doorbell
from .errors import DatabaseUnavailable, InvalidArgument, TidebaseError, from_postgres, is_transient
from .explain import EXPLAINED, explained, explanation_of
from .forked import OwnPool, inherit, keep, lent, notice
from .line import (
    LIMITED,
    AsyncLine,
    Line,
    committed_at_once,
    committed_at_once_async,
    discard,
    in_order,
    like_those_of,
    like_those_of_async,
    ours,
    run,
    run_async,
    session_limits,
    with_limits,
)
from .line import AsyncConnection as AsyncConnection
from .line import Connection as Connection
from .loops import PerLoop
from .mark import Marker

log = logging.getLogger("tidebase.database")

R = TypeVar("R")
Pool = ConnectionPool[Connection]
AsyncPool = AsyncConnectionPool[AsyncConnection]

#: One connection for each step that is in a call right now. More threads than that only queue.
POOL_SIZE = 10

#: How long a lease lasts without a heartbeat, in seconds.
LEASE_S = 60.0

#: How long a connection may stay out of the pool between calls, in seconds.
_STAY_S = 60.0

#: The pool gives a failed connection up at once, in seconds, and makes another for who asks next: it would wait longer
#: and longer between its own tries (psycopg_pool's reconnect_timeout), also when the server is there again long since.
_GIVE_UP_S = 0.001

#: How long a connection of the pool is waited for before it is asked for anew, in seconds.
_ASK_AGAIN_S = 1.0

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


def _retries(database: Database | AsyncDatabase, until: float) -> dict[str, Any]:
    return {
        "retry": retry_if_exception(lambda error: _may_repeat(database, error)),
        "stop": lambda state: time.monotonic() >= until,
        "wait": wait_random_exponential(multiplier=0.05, max=2),
        "reraise": True,
    }


def _may_repeat(database: Database | AsyncDatabase, error: BaseException) -> bool:
    """Whether a call may be made again: on the caller's own connection only where that is in order, and not in the
    middle of the caller's transaction.
    """
    if isinstance(error, PoolClosed) and not isinstance(database._source, ConnectionPool | AsyncConnectionPool):
        return True  # close() has closed it meanwhile; there is another one when it is asked for
    if not is_transient(error):
        return False
    if database._single is None:
        return True
    return not database._joined and database._single.pgconn.transaction_status == TransactionStatus.IDLE


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
        reconnect_s: for how long a call is made again when the database is in trouble, in seconds.
        lease_s: how long leases last, in seconds: work under a lease is not given up before.
        joined: calls belong to the transaction of the caller's connection, which the caller ends.
    """

    def __init__(
        self,
        source: str | Pool | Connection | None = None,
        *,
        pool_size: int = POOL_SIZE,
        reconnect_s: float = 30.0,
        lease_s: float = LEASE_S,
        joined: bool = False,
    ) -> None:
        self._joined = joined
        self._source = source
        self._pool_size = pool_size
        self._reconnect_s = reconnect_s
        self._lease_s = lease_s
        self._single: Connection | None = source if isinstance(source, psycopg.Connection) else None
        self._url: str | None = None
        self._inherited = False
        self._is_direct = False  # until it is seen that no pooler stands between
        self._begin()
        inherit(self)

    def _begin(self) -> None:
        """What a process has for itself."""
        self._lock = threading.RLock()
        self.doorbell = Doorbell(self)
        self.marker = Marker()
        self._pool: Pool | None = self._source if isinstance(self._source, ConnectionPool) else None
        self._at_hand: list[Connection] = []
        self._waiting: list[None] = []
        self._until = 0.0
        self._blocks = 0
        self._spare = self.line()
        self._failure = _Failure()

    def begin_anew(self) -> None:
        """This process is a child of the one that made this."""
        self._inherited = self._inherited or is_open(self._source)
        self._begin()

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
        self._require_own()
        if self._single is not None:
            with self._lock, _kept_for_block(self), lent(self._single):  # one connection serves one thread at a time
                yield self._single
            return
        pool, lock, process = self._surely(self._open_pool), self._lock, os.getpid()
        with lock:
            self._blocks += 1
        try:
            if pool is self._source:
                with pool.connection() as connection, lent(connection):
                    yield connection
                return
            connection = self._borrow(pool)
            try:
                yield connection
            finally:
                if os.getpid() == process:  # else this is a child, and all of it is the parent's
                    self._give_back(pool, connection)
        finally:
            if lock is self._lock:
                with lock:
                    self._blocks -= 1

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        """The same, in a transaction that has begun: in passing trouble it is tried again until then, and no further.

        Raises:
            TidebaseError: it could not be begun.
        """
        begun, connection = self._surely(self._begun)
        with begun:
            yield connection

    def _begun(self) -> tuple[ExitStack, Connection]:
        with ExitStack() as stack:
            connection = stack.enter_context(self.connection())
            stack.enter_context(connection.transaction())
            return stack.pop_all(), connection

    def _surely(self, get: Callable[[], R]) -> R:
        try:
            return Retrying(**_retries(self, time.monotonic() + self._reconnect_s))(get)
        except psycopg.Error as error:
            raise _translate(error) from error

    def execute(self, call: Call[R]) -> R:
        """Makes the call and returns what it returns.

        Raises:
            TidebaseError: the one that stands for the database's error.
        """
        begun = time.monotonic()
        try:
            try:
                return self._once(call)
            except psycopg.Error as error:
                if not _may_repeat(self, error):
                    raise
            return cast(R, Retrying(**_retries(self, begun + self._patience(call)))(self._once, call))
        except EXPLAINED as error:
            known = from_postgres(error)
            with suppress(psycopg.Error):
                known = explained(known, self._once(explanation_of(known, call)))
            raise known from error
        except (psycopg.Error, UnicodeEncodeError) as error:
            raise _translate(error) from error

    def execute_on(self, connection: Connection, call: Call[R]) -> R:
        """Makes the call on this connection, in its transaction."""
        try:
            return run(connection, call)
        except (psycopg.Error, UnicodeEncodeError) as error:
            raise _translate(error) from error

    def line(self) -> Line:
        """A connection outside the pool, for what must not wait for one of the pool's."""
        return Line(self.aside, lambda call: self._over_the_pool(call, self._lease_s / 6))

    def aside(self) -> Connection:
        """A new connection outside the pool, in autocommit mode; whoever asks for it closes it."""
        if isinstance(self._source, ConnectionPool):
            return like_those_of(self._source, self._lease_s)
        connection = _connect_aside(self.url, self._lease_s)
        if self._is_direct:
            connection.execute(LIMITED, session_limits(self._lease_s))
        return connection

    def listener(self) -> Connection:
        """A new connection to listen on: a pooler drops LISTEN, so ``TIDEBASE_LISTEN_URL`` may lead past it."""
        past = os.environ.get("TIDEBASE_LISTEN_URL")
        return _connect_aside(past, self._lease_s) if past else self.aside()

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
        """Closes the pool, if it is one's own, and whatever else was opened; what is needed again is opened anew."""
        notice()
        self.doorbell.close()
        self._spare.close()
        with self._lock:
            pool = self._pool
            if pool is None or pool is self._source:
                return
            self._pool = None
            self._clear_hand(pool)
        pool.close()

    def _clear_hand(self, pool: Pool) -> None:
        with suppress(IndexError):
            while True:
                pool.putconn(self._at_hand.pop())

    def _require_own(self) -> None:
        notice()
        if self._inherited:
            raise inherited_error(self._single is not None)

    def _patience(self, call: Call[Any]) -> float:
        return max(self._reconnect_s, self._lease_s) if call.held else self._reconnect_s

    def _once(self, call: Call[R]) -> R:
        self._require_own()
        if self._single is not None:
            _refuse_in_block(self)
            with self._lock:
                if self._joined:
                    return run(self._single, call)
                with committed_at_once(self._single):
                    return run(self._single, call)
        pool = self._pool or self._open_pool()
        if self._blocks >= pool.max_size:  # they have all connections, and may wait for this very call
            return self._spare.execute(call)
        return self._over_the_pool(call)

    def _over_the_pool(self, call: Call[R], wait_s: float | None = None) -> R:
        pool = self._pool or self._open_pool()
        connection = self._borrow(pool, wait_s)  # not pool.connection(), which would commit what has been committed
        try:
            with in_order(connection), committed_at_once(connection):
                return run(connection, call)
        finally:
            self._give_back(pool, connection)

    # The pool's queue costs as much as a call does on the client, so the connection used last stays at hand for who
    # makes one call after another: unless somebody waits for one, and for a minute at most, so that the pool looks
    # after it.

    def _borrow(self, pool: Pool, wait_s: float | None = None) -> Connection:
        try:
            return self._at_hand.pop()
        except IndexError:
            self._waiting.append(None)
        try:
            over = time.monotonic() + (pool.timeout if wait_s is None else wait_s)
            while True:
                with suppress(IndexError):  # another thread may be faster
                    return self._at_hand.pop()
                left = over - time.monotonic()
                try:
                    return pool.getconn(min(left, _ASK_AGAIN_S))
                except PoolTimeout:
                    if left <= _ASK_AGAIN_S:
                        raise
        finally:
            self._waiting.pop()

    def _give_back(self, pool: Pool, connection: Connection) -> None:
        if _may_stay(self, pool, connection):
            self._at_hand.append(connection)
            if pool is not self._pool:  # closed meanwhile
                self._clear_hand(pool)
                return
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
        asked = time.monotonic()
        with self._lock:
            if self._pool is None:
                with self._failure.shared(asked), _first_connection(self.url, self._lease_s) as connection:
                    pooled = _is_pooled(connection, _server_pid(connection))
                    _tell_if_read_only(connection)
                self._is_direct = not pooled
                self._pool = OwnPool(
                    ours(self.url, self._lease_s),
                    min_size=1,
                    max_size=self._pool_size,
                    timeout=self._reconnect_s,
                    reconnect_timeout=_GIVE_UP_S,
                    kwargs=_connection_arguments(pooled),
                    configure=keep if pooled else self._limited,
                    open=True,
                )
            return self._pool

    def _limited(self, connection: Connection) -> None:
        keep(connection)
        connection.execute(LIMITED, session_limits(self._lease_s))


class AsyncDatabase:
    """The same as :class:`Database`, awaited, over ``psycopg_pool.AsyncConnectionPool``."""

    def __init__(
        self,
        source: str | AsyncPool | AsyncConnection | None = None,
        *,
        pool_size: int = POOL_SIZE,
        reconnect_s: float = 30.0,
        lease_s: float = LEASE_S,
        joined: bool = False,
    ) -> None:
        self._joined = joined
        self._source = source
        self._pool_size = pool_size
        self._reconnect_s = reconnect_s
        self._lease_s = lease_s
        self._single: AsyncConnection | None = source if isinstance(source, psycopg.AsyncConnection) else None
        self._url: str | None = None
        self._inherited = False
        self._is_direct = False  # until it is seen that no pooler stands between
        self._home: asyncio.AbstractEventLoop | None = None
        self._loops = PerLoop(lambda: _Here(self), _Here.leave)
        inherit(self)

    def begin_anew(self) -> None:
        """This process is a child of the one that made this."""
        self._inherited = self._inherited or is_open(self._source)

    @property
    def doorbell(self) -> AsyncDoorbell:
        """That of the running event loop."""
        return self._loops.here().doorbell

    def _here(self) -> _Here:
        """What the running event loop has. Raises TidebaseError: what the caller gave belongs to another one."""
        notice()
        if self._inherited:
            raise inherited_error(self._single is not None)
        here = self._loops.here()
        if here.loop is not self._home and not isinstance(self._source, str | None):
            if self._home is not None and not (self._single is not None and self._home.is_closed()):
                raise TidebaseError(
                    f"this {'pool' if self._single is None else 'connection'} is in use in another event loop",
                    hint="Give AsyncTidebase a connection string: then it has a pool in each event loop.",
                )
            self._home = here.loop
        return here

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
        here = self._here()
        if self._single is not None:
            _refuse_in_block(self)
            async with here.lock:
                with _kept_for_block(self), lent(self._single):
                    yield self._single
            return
        pool = here._pool
        if pool is None:
            pool = await self._surely(here.open_pool)
        here.blocks += 1
        try:
            if pool is self._source:
                async with pool.connection() as connection:
                    with lent(connection):
                        yield connection
                return
            connection = await here.borrow(pool)
            try:
                yield connection
            finally:
                await here.give_back(pool, connection)
        finally:
            here.blocks -= 1

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[AsyncConnection]:
        """The same, in a transaction that has begun; see :meth:`Database.transaction`."""
        begun, connection = await self._surely(self._begun)
        async with begun:
            yield connection

    async def _begun(self) -> tuple[AsyncExitStack, AsyncConnection]:
        async with AsyncExitStack() as stack:
            connection = await stack.enter_async_context(self.connection())
            await stack.enter_async_context(connection.transaction())
            return stack.pop_all(), connection

    async def _surely(self, get: Callable[[], Awaitable[R]]) -> R:
        try:
            return cast(R, await AsyncRetrying(**_retries(self, time.monotonic() + self._reconnect_s))(get))
        except psycopg.Error as error:
            raise _translate(error) from error

    async def execute(self, call: Call[R]) -> R:
        """Makes the call and returns what it returns; see :meth:`Database.execute`."""
        begun = time.monotonic()
        try:
            with _cancellation_kept():
                try:
                    return await self._once(call)
                except psycopg.Error as error:
                    if not _may_repeat(self, error):
                        raise
                retries = _retries(self, begun + self._patience(call))
                return cast(R, await AsyncRetrying(**retries)(self._once, call))
        except EXPLAINED as error:
            known = from_postgres(error)
            with suppress(psycopg.Error):
                known = explained(known, await self._once(explanation_of(known, call)))
            raise known from error
        except (psycopg.Error, UnicodeEncodeError) as error:
            raise _translate(error) from error

    async def execute_on(self, connection: AsyncConnection, call: Call[R]) -> R:
        """Makes the call on this connection, in its transaction."""
        try:
            with _cancellation_kept():
                return await run_async(connection, call)
        except (psycopg.Error, UnicodeEncodeError) as error:
            raise _translate(error) from error

    def line(self) -> AsyncLine:
        """A connection outside the pool, for what must not wait for one of the pool's."""
        return AsyncLine(self.aside, lambda call: self._over_the_pool(call, self._lease_s / 6))

    async def aside(self) -> AsyncConnection:
        """A new connection outside the pool, in autocommit mode; whoever asks for it closes it."""
        if isinstance(self._source, AsyncConnectionPool):
            return await like_those_of_async(self._source, self._lease_s)
        connection = await _connect_aside_async(self.url, self._lease_s)
        if self._is_direct:
            await connection.execute(LIMITED, session_limits(self._lease_s))
        return connection

    async def listener(self) -> AsyncConnection:
        """A new connection to listen on: a pooler drops LISTEN, so ``TIDEBASE_LISTEN_URL`` may lead past it."""
        past = os.environ.get("TIDEBASE_LISTEN_URL")
        return await _connect_aside_async(past, self._lease_s) if past else await self.aside()

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
        """Closes the pool of the running event loop, if it is one's own, and whatever else was opened there; what is
        needed again is opened anew. What belongs to event loops that are closed is closed, too.
        """
        await self._loops.here().close()

    def _patience(self, call: Call[Any]) -> float:
        return max(self._reconnect_s, self._lease_s) if call.held else self._reconnect_s

    async def _once(self, call: Call[R]) -> R:
        here = self._here()
        if self._single is not None:
            _refuse_in_block(self)
            async with here.lock:
                if self._joined:
                    return await run_async(self._single, call)
                async with committed_at_once_async(self._single):
                    return await run_async(self._single, call)
        pool = here._pool or await here.open_pool()
        if here.blocks >= pool.max_size:  # they have all connections, and may wait for this very call
            return await here.spare.execute(call)
        return await self._over_the_pool(call)

    async def _over_the_pool(self, call: Call[R], wait_s: float | None = None) -> R:
        here = self._here()
        pool = here._pool or await here.open_pool()
        connection = await here.borrow(pool, wait_s)
        try:
            with in_order(connection):
                async with committed_at_once_async(connection):
                    return await run_async(connection, call)
        finally:
            await here.give_back(pool, connection)


class _Here:
    """What an :class:`AsyncDatabase` has in one event loop."""

    def __init__(self, database: AsyncDatabase) -> None:
        source = database._source
        self._database = database
        self.loop = asyncio.get_running_loop()
        self.lock = asyncio.Lock()
        self.doorbell = AsyncDoorbell(database)
        self.spare = database.line()
        self._failure = _Failure()
        self.blocks = 0
        self._source = source
        self._pool: AsyncPool | None = source if isinstance(source, AsyncConnectionPool) else None
        self._connections: WeakSet[AsyncConnection] = WeakSet()
        self._at_hand: list[AsyncConnection] = []
        self._waiting: list[None] = []
        self._until = 0.0

    async def close(self) -> None:
        """Closes what is open; what is needed again is opened anew."""
        await self.doorbell.close()
        self.spare.close()
        async with self.lock:
            pool = self._pool
            if pool is None or pool is self._source:
                return
            self._pool = None
            while self._at_hand:
                await pool.putconn(self._at_hand.pop())
            await pool.close()

    def leave(self) -> None:
        """The loop is closed: nothing of it can be awaited, but the sessions can be ended."""
        self.spare.close()
        for connection in list(self._connections):
            discard(connection)

    async def borrow(self, pool: AsyncPool, wait_s: float | None = None) -> AsyncConnection:
        if self._at_hand:
            return self._at_hand.pop()
        self._waiting.append(None)
        try:
            over = time.monotonic() + (pool.timeout if wait_s is None else wait_s)
            while True:
                left = over - time.monotonic()
                try:
                    return await pool.getconn(min(left, _ASK_AGAIN_S))
                except PoolTimeout:
                    if left <= _ASK_AGAIN_S:
                        raise
        finally:
            self._waiting.pop()

    async def give_back(self, pool: AsyncPool, connection: AsyncConnection) -> None:
        if _may_stay(self, pool, connection):
            self._at_hand.append(connection)
        else:
            await to_its_end(pool.putconn(connection))  # or the pool would never see it again

    async def open_pool(self) -> AsyncPool:
        database, asked = self._database, time.monotonic()
        async with self.lock:
            if self._pool is None:
                with self._failure.shared(asked):
                    async with await _first_connection_async(database.url, database._lease_s) as connection:
                        pooled = _is_pooled(connection, await _server_pid_async(connection))
                        _tell_if_read_only(connection)
                database._is_direct = not pooled
                pool: AsyncPool = AsyncConnectionPool(
                    ours(database.url, database._lease_s),
                    min_size=1,
                    max_size=database._pool_size,
                    timeout=database._reconnect_s,
                    reconnect_timeout=_GIVE_UP_S,
                    kwargs=_connection_arguments(pooled),
                    configure=self._keep if pooled else self._limited,
                    open=False,
                )
                await pool.open()
                self._pool = pool
            return self._pool

    async def _keep(self, connection: AsyncConnection) -> None:
        keep(connection)
        self._connections.add(connection)

    async def _limited(self, connection: AsyncConnection) -> None:
        await self._keep(connection)
        await connection.execute(LIMITED, session_limits(self._database._lease_s))


class _Failure:
    """The last failure to connect: who waited for the same is told, too, and does not try after the others."""

    def __init__(self) -> None:
        self._at = 0.0
        self._error: Exception | None = None

    @contextmanager
    def shared(self, asked: float) -> Iterator[None]:
        """Raises at once what another one got after this one had asked."""
        if self._error is not None and self._at >= asked:
            raise self._error
        try:
            yield
        except Exception as error:
            self._at, self._error = time.monotonic(), error
            raise


def is_open(source: object) -> bool:
    """Whether it is a pool or a connection of the caller's that leads to a server now."""
    given = isinstance(source, ConnectionPool | AsyncConnectionPool | psycopg.Connection | psycopg.AsyncConnection)
    return given and not source.closed  # type: ignore[attr-defined]


def inherited_error(is_single: bool) -> TidebaseError:
    """For who uses what his parent opened: both would read each other's answers."""
    what = "connection" if is_single else "pool"
    return TidebaseError(
        f"this {what} was opened by the process that this one is a fork of, and is in use there",
        hint=f"Make the Tidebase in the child with a {what} of its own, or give it a connection string: then it opens"
        " its own after a fork.",
    )


def _may_stay(database: Database | _Here, pool: Pool | AsyncPool, connection: Connection | AsyncConnection) -> bool:
    """Whether a connection may stay at hand: of one's own pool, in good order, and nobody else is in want of it."""
    if pool is database._source or pool is not database._pool or database._waiting or database._at_hand:
        return False
    if connection.pgconn.transaction_status != TransactionStatus.IDLE:
        return False
    now = time.monotonic()
    if now > database._until:
        database._until = now + _STAY_S
        return False
    return True


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


def _connect_aside(url: str, lease_s: float) -> Connection:
    connection = psycopg.connect(ours(url, lease_s), autocommit=True, prepare_threshold=None)
    keep(connection)
    return connection


async def _connect_aside_async(url: str, lease_s: float) -> AsyncConnection:
    limited = ours(url, lease_s)
    connection = await psycopg.AsyncConnection.connect(limited, autocommit=True, prepare_threshold=None)
    keep(connection)
    return connection


def _connection_arguments(pooled: bool) -> dict[str, Any]:
    """Autocommit: a call is a transaction. Prepared statements only where the session is one's own: behind a pooler in
    transaction mode the next call may meet another server process.
    """
    return {"autocommit": True, "prepare_threshold": None if pooled else 2}


def _first_connection(url: str, lease_s: float) -> Connection:
    """A first connection outside the pool: a wrong password or name is told at once, not after the pool's timeout."""
    try:
        return _connect_aside(url, lease_s)
    except psycopg.Error as error:
        raise _unconnected(error, url, lease_s) from error


async def _first_connection_async(url: str, lease_s: float) -> AsyncConnection:
    try:
        return await _connect_aside_async(url, lease_s)
    except psycopg.Error as error:
        raise await asyncio.to_thread(_unconnected, error, url, lease_s) from error


def _unconnected(error: psycopg.Error, url: str, lease_s: float) -> Exception:
    """The error to raise: psycopg's own, upon which the call is made again, where there is a server, which starts or
    stops just now (PostgreSQL manual, section 34.1, PQping).
    """
    is_address = isinstance(error, psycopg.OperationalError)  # else it is no connection string
    if is_address and PGconn.ping(with_limits(url, lease_s).encode()) == Ping.REJECT:
        return error
    return DatabaseUnavailable(
        f"cannot connect to the database: {str(error).strip()}",
        sqlstate=error.sqlstate,
        hint="Check TIDEBASE_DATABASE_URL, DATABASE_URL or the PG... variables.",
    )


def _tell_if_read_only(connection: Connection | AsyncConnection) -> None:
    """Such a session is fine for who looks. A worker's calls are made again for a while, for after a failover that may
    be over soon: here it is told at once.
    """
    asked = ("in_hot_standby", "default_transaction_read_only")
    found = [name for name in asked if connection.pgconn.parameter_status(name.encode()) == b"on"]
    if found:
        log.warning("the database can only be read: %s is on", found[0])


_OF_THE_SERVER = "select pg_backend_pid()"


def _server_pid(connection: Connection) -> int:
    row = connection.execute(_OF_THE_SERVER).fetchone()
    return int(row[0]) if row else 0


async def _server_pid_async(connection: AsyncConnection) -> int:
    row = await (await connection.execute(_OF_THE_SERVER)).fetchone()
    return int(row[0]) if row else 0
