# Made by python/tools/faces.py out of database_async.py: change that, and run `make faces`.
"""Connections: one pool, and the executor that sends calls.

Every function of the schema may be called again with the same arguments, so when a connection breaks, or the server
restarts, fails over, is out of something or in somebody's way, the executor just makes the call again, on a new
connection where need be, for at most ``reconnect_s`` seconds; one that is part of the work under a lease for as long as
the lease lasts. Who cancels a call himself has it cancelled.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import TypeVar, cast

import psycopg
from psycopg.pq import TransactionStatus
from psycopg_pool import ConnectionPool, PoolTimeout
from tenacity import Retrying

from ._threads import Lock, OwnPool, Place, Places, Side, cancellation_kept, elsewhere, put_back
from .base import LEASE_S, POOL_SIZE, Base, Failure, tell_if_read_only, translate, unconnected
from .call import Call
from .convoy import Convoys
from .doorbell import Doorbell
from .errors import from_postgres, is_of_the_session
from .explain import EXPLAINED, explained, explanation_of
from .forked import lent, notice
from .joint import Joint
from .line import Line, committed_at_once, connect_aside, like_those_of, require_no_router, run, run_again
from .routed import LOOK
from .sessions import LIMITED, Connection, connection_arguments, discard, in_order, is_pooled, ours, session_limits
from .sources import kept_for_block, refuse_in_block

R = TypeVar("R")
Pool = ConnectionPool[Connection]
#: How long a connection may stay out of the pool between calls, in seconds.
_STAY_S = 60.0
#: The pool gives a failed connection up at once, in seconds, and makes another for who asks next: it would wait longer
#: and longer between its own tries (psycopg_pool's reconnect_timeout), also when the server is there again long since.
_GIVE_UP_S = 0.001
#: What takes more bytes to send goes alone: it would keep the others.
LARGE = 50000
#: How long a connection of the pool is waited for before it is asked for anew, in seconds.
_ASK_AGAIN_S = 1.0


class Database(Base[Connection], Side):
    """Sends calls over a pool of its own, or over a pool or a connection of the caller's.

    Args:
        source: a connection string, a ``psycopg_pool.ConnectionPool``, a ``psycopg.Connection``, or None to
            look for a connection string (:func:`tidebase.core.sources.find_url`).
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
        single = source if isinstance(source, psycopg.Connection) else None
        super().__init__(source, single, pool_size=pool_size, reconnect_s=reconnect_s, lease_s=lease_s, joined=joined)
        Side.__init__(self)
        self._places = Places(lambda: _Here(self), source)

    @property
    def doorbell(self) -> Doorbell:
        """That of this process."""
        return self._places.here().doorbell

    @contextmanager
    def connection(self) -> Iterator[Connection]:
        """A connection for as long as the block takes."""
        here, process = (self._here(), os.getpid())
        if self._single is not None:
            refuse_in_block(self)
            with here.lock:  # one connection serves one block at a time
                with kept_for_block(self), lent(self._single):
                    yield self._single
            return
        pool = here.pool
        if pool is None:
            pool = self._surely(here.open_pool)
        here.blocks.append(None)
        try:
            if pool is self._source:
                with pool.connection() as connection:
                    with lent(connection):
                        yield connection
                return
            connection = here.borrow(pool)
            try:
                yield connection
            finally:
                if os.getpid() == process:  # else this is a child, and all of it is the parent's
                    here.give_back(pool, connection)
        finally:
            here.blocks.pop()

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
            return (stack.pop_all(), connection)

    def _surely(self, get: Callable[[], R]) -> R:
        try:
            got: R = Retrying(**self._retries(time.monotonic() + self._reconnect_s))(get)
        except psycopg.Error as error:
            raise translate(error) from error
        return got

    @cancellation_kept
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
                if not self._may_repeat(error):
                    raise
            retries = self._retries(begun + self._patience(call))
            return cast(R, Retrying(**retries)(self._once, call))
        except EXPLAINED as error:
            known = from_postgres(error)
            with suppress(psycopg.Error):
                known = explained(known, self._once(explanation_of(known, call)))
            raise known from error
        except (psycopg.Error, UnicodeEncodeError) as error:
            raise translate(error) from error

    def together(self, joint: Joint[R]) -> R:
        """Makes a call, with others of its kind where they wait for the same. Raises what :meth:`execute` does."""
        if self._single is not None or joint.size > LARGE:
            return self.execute(joint.alone)
        return self._here().convoys.make(joint)

    @cancellation_kept
    def execute_on(self, connection: Connection, call: Call[R]) -> R:
        """Makes the call on this connection, in its transaction."""
        try:
            return run(connection, call)
        except (psycopg.Error, UnicodeEncodeError) as error:
            raise translate(error) from error

    def require_no_router(self) -> None:
        """Raises InvalidArgument where calls can be no part of a transaction, since they commit at a shard."""
        if not self._is_apart:
            self.execute(LOOK)
            self._is_apart = True

    def home(self, run_id: str) -> Database:
        """The database that has the run, where there are several."""
        return self

    def bound(self, connection: Connection) -> Database:
        """The same over the caller's connection, and in the caller's transaction."""
        return Database(connection, joined=True)

    def ringing(self, names: Iterable[str] | None) -> Sequence[Database]:
        """Where the bell rings for these runs and queues; None: for any."""
        return (self,)

    def line(self) -> Line:
        """A connection outside the pool, for what must not wait for one of the pool's."""
        return Line(self.aside, self._instead_of_a_line)

    def aside(self) -> Connection:
        """A new connection outside the pool, in autocommit mode; whoever asks for it closes it."""
        if isinstance(self._source, ConnectionPool):
            return like_those_of(self._source, self._lease_s)
        connection = connect_aside(self.url, self._lease_s)
        if self._is_direct:
            connection.execute(LIMITED, session_limits(self._lease_s))
        return connection

    def listener(self) -> Connection:
        """A new connection to listen on: a pooler drops LISTEN, so ``TIDEBASE_LISTEN_URL`` may lead past it."""
        past = os.environ.get("TIDEBASE_LISTEN_URL")
        return connect_aside(past, self._lease_s) if past else self.aside()

    def close(self) -> None:
        """Closes the pool, if it is one's own, and whatever else was opened; what is needed again is opened anew."""
        notice()
        self.rest()
        self._places.here().close()

    def _here(self) -> _Here:
        self._require_own()
        return self._places.mine()

    def _once(self, call: Call[R]) -> R:
        here = self._here()
        if self._single is not None:
            refuse_in_block(self)
            with here.lock:
                if self._joined:
                    require_no_router(self._single)
                    return run(self._single, call)
                with committed_at_once(self._single):
                    return run(self._single, call)
        pool = here.pool or here.open_pool()
        if len(here.blocks) >= pool.max_size:  # they have all connections, and may wait for this very call
            return here.spare.execute(call)
        return here.over(pool, call)

    def _instead_of_a_line(self, call: Call[R]) -> R:
        here = self._here()
        return here.over(here.pool or here.open_pool(), call, self._lease_s / 6)


class _Here(Place):
    """What belongs to one process."""

    def __init__(self, database: Database) -> None:
        source = database._source
        super().__init__(database.line())
        self._database = database
        self.lock = Lock()
        self.doorbell = Doorbell(database)
        self.pool: Pool | None = source if isinstance(source, ConnectionPool) else None
        self.convoys = Convoys(lambda call: database.execute(call))
        self.blocks: list[None] = []  # one for each that has a connection of the pool
        self._failure = Failure()
        self._at_hand: list[Connection] = []
        self._waiting: list[None] = []
        self._until = 0.0

    def close(self) -> None:
        """Closes what is open; what is needed again is opened anew."""
        self.doorbell.close()
        self.spare.close()
        with self.lock:
            pool = self.pool
            if pool is None or pool is self._database._source:
                return
            self.pool = None
            self._clear_hand(pool)
        pool.close()

    def over(self, pool: Pool, call: Call[R], wait_s: float | None = None) -> R:
        """Makes the call over the pool, whose connection is waited for so long at most."""
        connection = self.borrow(pool, wait_s)  # not pool.connection(), which would commit what is committed
        try:
            if self._database._is_direct and pool is not self._database._source:
                return self._in_ours(connection, call)
            with in_order(connection):
                with committed_at_once(connection):
                    return run(connection, call)
        finally:
            self.give_back(pool, connection)

    def _in_ours(self, connection: Connection, call: Call[R]) -> R:
        """The same in a session of our own; without the contexts, which cost as much as the rest."""
        try:
            return run_again(connection, call)
        except psycopg.Error as error:
            if is_of_the_session(error):
                discard(connection)
            raise

    # The pool's queue costs as much as a call does on the client, so the connection used last stays at hand for who
    # makes one call after another: unless somebody waits for one, and for a minute at most, so that the pool looks
    # after it. Threads come in between anywhere, so each look at the lists is one that may fail.

    def borrow(self, pool: Pool, wait_s: float | None = None) -> Connection:
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
                    return pool.getconn(min(left, _ASK_AGAIN_S))
                except PoolTimeout:
                    if left <= _ASK_AGAIN_S:
                        raise
        finally:
            self._waiting.pop()

    def give_back(self, pool: Pool, connection: Connection) -> None:
        """It was borrowed from the pool."""
        if self._may_stay(pool, connection):
            self._at_hand.append(connection)
            if pool is not self.pool:  # closed meanwhile
                self._clear_hand(pool)
                return
            if not self._waiting:
                return
            try:  # somebody has come meanwhile
                connection = self._at_hand.pop()
            except IndexError:
                return
        put_back(pool, connection)

    def _may_stay(self, pool: Pool, connection: Connection) -> bool:
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

    def _clear_hand(self, pool: Pool) -> None:
        with suppress(IndexError):
            while True:
                pool.putconn(self._at_hand.pop())

    def open_pool(self) -> Pool:
        """One's own pool, which is opened if it is not yet."""
        database, asked = (self._database, time.monotonic())
        with self.lock:
            if self.pool is None:
                with self._failure.shared(asked):
                    pooled = _looked_at(database.url, database._lease_s, database._is_known)
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
                pool.open()
                self.pool = pool
            return self.pool

    def _limited(self, connection: Connection) -> None:
        self.opened(connection)
        connection.execute(LIMITED, session_limits(self._database._lease_s))


def _looked_at(url: str, lease_s: float, is_known: bool) -> bool:
    """Whether a pooler stands between; over a first connection outside the pool: a wrong password or name is told at
    once, not after the pool's timeout.
    """
    try:
        first = connect_aside(url, lease_s)
    except psycopg.Error as error:
        raise elsewhere(unconnected, error, url, lease_s, is_known) from error
    with first as connection:
        tell_if_read_only(connection)
        row = connection.execute("select pg_backend_pid()").fetchone()
        return is_pooled(connection, int(row[0]) if row else 0)
