"""Connections: one pool, and the executor that sends calls.

Every function of the schema may be called again with the same arguments, so when a connection breaks, or the server
restarts, fails over, is out of something or in somebody's way, the executor just makes the call again, on a new
connection where need be, for at most ``reconnect_s`` seconds; one that is part of the work under a lease for as long as
the lease lasts. Who cancels a call himself has it cancelled.
"""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import TypeVar, cast

import psycopg
from psycopg.pq import TransactionStatus
from psycopg_pool import AsyncConnectionPool, PoolTimeout
from tenacity import AsyncRetrying

from ._tasks import Lock, OwnPool, Place, Places, Side, cancellation_kept, elsewhere, put_back
from .base import LEASE_S, POOL_SIZE, Base, Failure, tell_if_read_only, translate, unconnected
from .call import Call
from .convoy_async import AsyncConvoys
from .doorbell_async import AsyncDoorbell
from .errors import from_postgres, is_of_the_session
from .explain import EXPLAINED, explained, explanation_of
from .forked import lent, notice
from .joint import Joint
from .line_async import AsyncLine, committed_at_once, connect_aside, like_those_of, require_no_router, run, run_again
from .routed import LOOK
from .sessions import (
    LIMITED,
    AsyncConnection,
    connection_arguments,
    discard,
    in_order,
    is_pooled,
    ours,
    session_limits,
)
from .sources import kept_for_block, refuse_in_block

R = TypeVar("R")
AsyncPool = AsyncConnectionPool[AsyncConnection]

#: How long a connection may stay out of the pool between calls, in seconds.
_STAY_S = 60.0

#: The pool gives a failed connection up at once, in seconds, and makes another for who asks next: it would wait longer
#: and longer between its own tries (psycopg_pool's reconnect_timeout), also when the server is there again long since.
_GIVE_UP_S = 0.001

#: What takes more bytes to send goes alone: it would keep the others.
LARGE = 50_000

#: How long a connection of the pool is waited for before it is asked for anew, in seconds.
_ASK_AGAIN_S = 1.0


class AsyncDatabase(Base[AsyncConnection], Side):
    """Sends calls over a pool of its own, or over a pool or a connection of the caller's.

    Args:
        source: a connection string, a ``psycopg_pool.AsyncConnectionPool``, a ``psycopg.AsyncConnection``, or None to
            look for a connection string (:func:`tidebase.core.sources.find_url`).
        pool_size: how many connections a pool of its own has at most.
        reconnect_s: for how long a call is made again when the database is in trouble, in seconds.
        lease_s: how long leases last, in seconds: work under a lease is not given up before.
        joined: calls belong to the transaction of the caller's connection, which the caller ends.
    """

    def __init__(
        self,
        source: str | AsyncPool | AsyncConnection | None = None,
        *,
        pool_size: int = POOL_SIZE,
        reconnect_s: float = 30.0,
        lease_s: float = LEASE_S,
        joined: bool = False,
    ) -> None:
        single = source if isinstance(source, psycopg.AsyncConnection) else None
        super().__init__(source, single, pool_size=pool_size, reconnect_s=reconnect_s, lease_s=lease_s, joined=joined)
        Side.__init__(self)
        self._places = Places(lambda: _Here(self), source)

    @property
    def doorbell(self) -> AsyncDoorbell:
        """That of this process.

        With asyncio, that of the running event loop.
        """
        return self._places.here().doorbell

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[AsyncConnection]:
        """A connection for as long as the block takes."""
        here, process = self._here(), os.getpid()
        if self._single is not None:
            refuse_in_block(self)
            async with here.lock:  # one connection serves one block at a time
                with kept_for_block(self), lent(self._single):
                    yield self._single
            return
        pool = here.pool
        if pool is None:
            pool = await self._surely(here.open_pool)
        here.blocks.append(None)
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
                if os.getpid() == process:  # else this is a child, and all of it is the parent's
                    await here.give_back(pool, connection)
        finally:
            here.blocks.pop()

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[AsyncConnection]:
        """The same, in a transaction that has begun: in passing trouble it is tried again until then, and no further.

        Raises:
            TidebaseError: it could not be begun.
        """
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
            got: R = await AsyncRetrying(**self._retries(time.monotonic() + self._reconnect_s))(get)
        except psycopg.Error as error:
            raise translate(error) from error
        return got

    @cancellation_kept
    async def execute(self, call: Call[R]) -> R:
        """Makes the call and returns what it returns.

        Raises:
            TidebaseError: the one that stands for the database's error.
        """
        begun = time.monotonic()
        try:
            try:
                return await self._once(call)
            except psycopg.Error as error:
                if not self._may_repeat(error):
                    raise
            retries = self._retries(begun + self._patience(call))
            return cast(R, await AsyncRetrying(**retries)(self._once, call))
        except EXPLAINED as error:
            known = from_postgres(error)
            with suppress(psycopg.Error):
                known = explained(known, await self._once(explanation_of(known, call)))
            raise known from error
        except (psycopg.Error, UnicodeEncodeError) as error:
            raise translate(error) from error

    async def together(self, joint: Joint[R]) -> R:
        """Makes a call, with others of its kind where they wait for the same. Raises what :meth:`execute` does."""
        if self._single is not None or joint.size > LARGE:
            return await self.execute(joint.alone)
        return await self._here().convoys.make(joint)

    @cancellation_kept
    async def execute_on(self, connection: AsyncConnection, call: Call[R]) -> R:
        """Makes the call on this connection, in its transaction."""
        try:
            return await run(connection, call)
        except (psycopg.Error, UnicodeEncodeError) as error:
            raise translate(error) from error

    async def require_no_router(self) -> None:
        """Raises InvalidArgument where calls can be no part of a transaction, since they commit at a shard."""
        if not self._is_apart:
            await self.execute(LOOK)
            self._is_apart = True

    async def home(self, run_id: str) -> AsyncDatabase:
        """The database that has the run, where there are several."""
        return self

    def bound(self, connection: AsyncConnection) -> AsyncDatabase:
        """The same over the caller's connection, and in the caller's transaction."""
        return AsyncDatabase(connection, joined=True)

    def ringing(self, names: Iterable[str] | None) -> Sequence[AsyncDatabase]:
        """Where the bell rings for these runs and queues; None: for any."""
        return (self,)

    def line(self) -> AsyncLine:
        """A connection outside the pool, for what must not wait for one of the pool's."""
        return AsyncLine(self.aside, self._instead_of_a_line)

    async def aside(self) -> AsyncConnection:
        """A new connection outside the pool, in autocommit mode; whoever asks for it closes it."""
        if isinstance(self._source, AsyncConnectionPool):
            return await like_those_of(self._source, self._lease_s)
        connection = await connect_aside(self.url, self._lease_s)
        if self._is_direct:
            await connection.execute(LIMITED, session_limits(self._lease_s))
        return connection

    async def listener(self) -> AsyncConnection:
        """A new connection to listen on: a pooler drops LISTEN, so ``TIDEBASE_LISTEN_URL`` may lead past it."""
        past = os.environ.get("TIDEBASE_LISTEN_URL")
        return await connect_aside(past, self._lease_s) if past else await self.aside()

    async def close(self) -> None:
        """Closes the pool, if it is one's own, and whatever else was opened; what is needed again is opened anew.

        With asyncio that is what belongs to the running event loop. What belongs to event loops that are closed is
        closed, too.
        """
        notice()
        self.rest()
        await self._places.here().close()

    def _here(self) -> _Here:
        self._require_own()
        return self._places.mine()

    async def _once(self, call: Call[R]) -> R:
        here = self._here()
        if self._single is not None:
            refuse_in_block(self)
            async with here.lock:
                if self._joined:
                    await require_no_router(self._single)
                    return await run(self._single, call)
                async with committed_at_once(self._single):
                    return await run(self._single, call)
        pool = here.pool or await here.open_pool()
        if len(here.blocks) >= pool.max_size:  # they have all connections, and may wait for this very call
            return await here.spare.execute(call)
        return await here.over(pool, call)

    async def _instead_of_a_line(self, call: Call[R]) -> R:
        here = self._here()
        return await here.over(here.pool or await here.open_pool(), call, self._lease_s / 6)


class _Here(Place):
    """What belongs to one process.

    With asyncio, to one event loop.
    """

    def __init__(self, database: AsyncDatabase) -> None:
        source = database._source
        super().__init__(database.line())
        self._database = database
        self.lock = Lock()
        self.doorbell = AsyncDoorbell(database)
        self.pool: AsyncPool | None = source if isinstance(source, AsyncConnectionPool) else None
        self.convoys = AsyncConvoys(lambda call: database.execute(call))
        self.blocks: list[None] = []  # one for each that has a connection of the pool
        self._failure = Failure()
        self._at_hand: list[AsyncConnection] = []
        self._waiting: list[None] = []
        self._until = 0.0

    async def close(self) -> None:
        """Closes what is open; what is needed again is opened anew."""
        self.doorbell.close()
        self.spare.close()
        async with self.lock:
            pool = self.pool
            if pool is None or pool is self._database._source:
                return
            self.pool = None
            await self._clear_hand(pool)
        await pool.close()

    async def over(self, pool: AsyncPool, call: Call[R], wait_s: float | None = None) -> R:
        """Makes the call over the pool, whose connection is waited for so long at most."""
        connection = await self.borrow(pool, wait_s)  # not pool.connection(), which would commit what is committed
        try:
            if self._database._is_direct and pool is not self._database._source:
                return await self._in_ours(connection, call)
            with in_order(connection):
                async with committed_at_once(connection):
                    return await run(connection, call)
        finally:
            await self.give_back(pool, connection)

    async def _in_ours(self, connection: AsyncConnection, call: Call[R]) -> R:
        """The same in a session of our own; without the contexts, which cost as much as the rest."""
        try:
            return await run_again(connection, call)
        except psycopg.Error as error:
            if is_of_the_session(error):
                discard(connection)
            raise

    # The pool's queue costs as much as a call does on the client, so the connection used last stays at hand for who
    # makes one call after another: unless somebody waits for one, and for a minute at most, so that the pool looks
    # after it. Threads come in between anywhere, so each look at the lists is one that may fail.

    async def borrow(self, pool: AsyncPool, wait_s: float | None = None) -> AsyncConnection:
        """A connection, which is to be given back."""
        try:
            return self._at_hand.pop()
        except IndexError:
            self._waiting.append(None)
        try:
            over = time.monotonic() + (pool.timeout if wait_s is None else wait_s)
            while True:
                with suppress(IndexError):  # another one may be faster
                    return self._at_hand.pop()
                left = over - time.monotonic()
                try:
                    return await pool.getconn(min(left, _ASK_AGAIN_S))
                except PoolTimeout:
                    if left <= _ASK_AGAIN_S:
                        raise
        finally:
            self._waiting.pop()

    async def give_back(self, pool: AsyncPool, connection: AsyncConnection) -> None:
        """It was borrowed from the pool."""
        if self._may_stay(pool, connection):
            self._at_hand.append(connection)
            if pool is not self.pool:  # closed meanwhile
                await self._clear_hand(pool)
                return
            if not self._waiting:
                return
            try:  # somebody has come meanwhile
                connection = self._at_hand.pop()
            except IndexError:
                return
        await put_back(pool, connection)

    def _may_stay(self, pool: AsyncPool, connection: AsyncConnection) -> bool:
        """Whether it may stay at hand: of one's own pool, in good order, and nobody else is in want of it."""
        if pool is self._database._source or pool is not self.pool or self._waiting or self._at_hand:
            return False
        if connection.pgconn.transaction_status != TransactionStatus.IDLE:
            return False
        now = time.monotonic()
        if now > self._until:
            self._until = now + _STAY_S
            return False
        return True

    async def _clear_hand(self, pool: AsyncPool) -> None:
        with suppress(IndexError):
            while True:
                await pool.putconn(self._at_hand.pop())

    async def open_pool(self) -> AsyncPool:
        """One's own pool, which is opened if it is not yet."""
        database, asked = self._database, time.monotonic()
        async with self.lock:
            if self.pool is None:
                with self._failure.shared(asked):
                    pooled = await _looked_at(database.url, database._lease_s, database._is_known)
                database._is_direct = not pooled
                pool = OwnPool(
                    ours(database.url, database._lease_s),
                    min_size=1,
                    max_size=database._pool_size,
                    timeout=database._reconnect_s,
                    reconnect_timeout=_GIVE_UP_S,
                    kwargs=connection_arguments(pooled),
                    configure=self.opened if pooled else self._limited,
                    open=False,
                )
                await pool.open()
                self.pool = pool
            return self.pool

    async def _limited(self, connection: AsyncConnection) -> None:
        await self.opened(connection)
        await connection.execute(LIMITED, session_limits(self._database._lease_s))


async def _looked_at(url: str, lease_s: float, is_known: bool) -> bool:
    """Whether a pooler stands between; over a first connection outside the pool: a wrong password or name is told at
    once, not after the pool's timeout.
    """
    try:
        first = await connect_aside(url, lease_s)
    except psycopg.Error as error:
        raise await elsewhere(unconnected, error, url, lease_s, is_known) from error
    async with first as connection:
        tell_if_read_only(connection)
        row = await (await connection.execute("select pg_backend_pid()")).fetchone()
        return is_pooled(connection, int(row[0]) if row else 0)
