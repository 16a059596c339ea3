"""What differs under asyncio. ``_threads`` has the same names for the threads' side of each pair of modules."""

from __future__ import annotations

import asyncio
import inspect
import signal
import sys
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast
from weakref import WeakSet

import psycopg
from psycopg_pool import AsyncConnectionPool
from psycopg_pool.pool_async import MaintenanceTask

from .errors import TidebaseError
from .forked import inherit, keep
from .sessions import AsyncConnection, discard

if TYPE_CHECKING:
    from .line_async import AsyncLine

F = TypeVar("F", bound=Callable[..., Any])
P = TypeVar("P", bound="Place")
R = TypeVar("R")
T = TypeVar("T")

Event = asyncio.Event
Task = asyncio.Task[None]
Promise = asyncio.Future[bool]
#: How often who listens looks whether it is to end, in seconds: a task is cancelled, so it need not.
GLANCE_S: float | None = None


class Lock(asyncio.Lock):
    """One lock for two kinds of blocks: ``async with`` is for those in which something is awaited. ``with`` takes
    nothing and waits for nobody: where nothing is awaited, no other task comes in between.
    """

    def __enter__(self) -> None:
        pass

    def __exit__(self, *error: object) -> None:
        pass


# --- tasks at work in the background ---


def spawn(work: Callable[..., Coroutine[Any, Any, None]], *arguments: Any, name: str) -> Task:
    """Begins the work in a task of its own."""
    return asyncio.create_task(work(*arguments), name=name)


def is_alive(task: Task | None) -> bool:
    """Whether it is still at work."""
    return task is not None and not task.done()


def stop(task: Task | None) -> None:
    """It is to do no more."""
    if task is not None:
        task.cancel()


async def ring(rung: asyncio.Event, seconds: float) -> None:
    """Returns when the event is set; after so many seconds it is set, come what may.

    ``asyncio.wait_for`` of Python before 3.12 can forget that its task was cancelled (bpo-37658).
    """
    timer = asyncio.get_running_loop().call_later(seconds, rung.set)
    try:
        await rung.wait()
    finally:
        timer.cancel()


def promise() -> Promise:
    """One that this event loop waits for."""
    return asyncio.get_running_loop().create_future()


def keep_promise(promise: Promise) -> None:
    """Who waits for it goes on. Who was cancelled meanwhile does not."""
    if not promise.done():
        promise.set_result(True)


async def within(promise: Promise, seconds: float) -> bool:
    """Whether it is kept within so many seconds. What ``asyncio.wait`` does about it costs as much as a step."""
    timer = promise.get_loop().call_later(seconds, _break, promise)
    try:
        return await promise
    finally:
        timer.cancel()


def _break(promise: Promise) -> None:
    if not promise.done():
        promise.set_result(False)


async def sometime(promise: Promise) -> None:
    """It will be kept."""
    await promise


def renewed(promise: Promise) -> Promise:
    """The promise for who waits on: a broken one is not kept any more."""
    return promise.get_loop().create_future()


async def rest(closed: asyncio.Event, seconds: float) -> None:
    """Does nothing for so long; who is closed meanwhile is cancelled."""
    await asyncio.sleep(seconds)


async def elsewhere(function: Callable[..., T], *arguments: Any) -> T:
    """What the function returns, which blocks."""
    return await asyncio.to_thread(function, *arguments)


# --- cancellation, which threads do not know ---

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


def go_apart(work: Coroutine[Any, Any, None]) -> None:
    """Does the work in a task of its own, for whose error nobody asks."""
    task = asyncio.create_task(work)
    _going_on.add(task)
    task.add_done_callback(_gone)


def _gone(task: asyncio.Task[Any]) -> None:
    _going_on.discard(task)
    if not task.cancelled():
        task.exception()


def cancellation_kept(function: F) -> F:
    """A task that is cancelled during the function does not go on after it: psycopg waits with ``asyncio.wait_for``,
    and that of Python before 3.12 forgets a cancellation which comes together with what it waits for (bpo-37658).
    """
    if sys.version_info < (3, 11) or sys.version_info >= (3, 12):
        return function

    @wraps(function)
    async def kept(*args: Any, **kwargs: Any) -> Any:
        task = asyncio.current_task()
        before = task.cancelling() if task else 0
        result = await function(*args, **kwargs)
        if task and task.cancelling() > before:
            raise asyncio.CancelledError
        return result

    return cast(F, kept)


@contextmanager
def terminable(task: asyncio.Task[Any]) -> Iterator[None]:
    """While the block runs, SIGTERM cancels the task, so that the lease is released on the way out; only in the main
    thread, and only where nobody has installed a handler of their own.
    """
    try:
        usable = signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        if usable:
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    except (ValueError, RuntimeError, NotImplementedError):
        usable = False
    try:
        yield
    finally:
        if usable:
            asyncio.get_running_loop().remove_signal_handler(signal.SIGTERM)


# --- connections ---


class OwnPool(AsyncConnectionPool[AsyncConnection]):
    """A pool of our own. ``asyncio.run`` cancels what is still at work at its end, and waits for it: a worker of
    psycopg's pool takes that for a failure of what it does (it opens a connection, say), goes on to wait for more, and
    the process never ends. Here it is cancelled once more, where nothing catches it.
    """

    def run_task(self, task: MaintenanceTask) -> None:
        run = cancellation_kept(task.run)

        async def once() -> None:
            try:
                await run()
            except asyncio.CancelledError:
                if worker := asyncio.current_task():
                    worker.cancel()
                raise

        task.run = once  # type: ignore[method-assign]
        super().run_task(task)


async def connect(conninfo: str) -> AsyncConnection:
    """A connection in autocommit mode, which prepares nothing."""
    return await psycopg.AsyncConnection.connect(conninfo, autocommit=True, prepare_threshold=None)


async def put_back(pool: AsyncConnectionPool[AsyncConnection], connection: AsyncConnection) -> None:
    """Gives it back, also when this is cancelled: or the pool would never see it again."""
    await to_its_end(pool.putconn(connection))


async def resolved(value: Any) -> Any:
    """What a pool was given for its connections: a value, or a function that has it, which may be an async one."""
    if callable(value):
        value = value()
    return await value if inspect.isawaitable(value) else value


# --- event loops: what belongs to one (a lock, a task, a connection) is of no use in another ---


class PerLoop(Generic[T]):
    """One thing for each event loop of this process, made when it is first asked for there.

    Args:
        make: makes it, in the running loop.
        leave: is told of one whose loop is closed.
    """

    def __init__(self, make: Callable[[], T], leave: Callable[[T], None] = lambda thing: None) -> None:
        self._make = make
        self._leave = leave
        self.begin_anew()
        inherit(self)

    def begin_anew(self) -> None:
        """A child of a fork has none of the loops of its parent."""
        self._lock = threading.Lock()
        self._made: dict[asyncio.AbstractEventLoop, T] = {}
        self._last: tuple[asyncio.AbstractEventLoop, T] | None = None

    def here(self) -> T:
        """That of the running event loop."""
        loop, last = asyncio.get_running_loop(), self._last
        if last is not None and last[0] is loop:
            return last[1]
        with self._lock:
            for other in [known for known in self._made if known.is_closed()]:
                self._leave(self._made.pop(other))
            if loop not in self._made:
                self._made[loop] = self._make()
            self._last = loop, self._made[loop]
            return self._made[loop]


class Place:
    """What a database has in one event loop: the part of it that differs."""

    def __init__(self, spare: AsyncLine) -> None:
        self.loop = asyncio.get_running_loop()
        self.spare = spare
        self._opened: WeakSet[AsyncConnection] = WeakSet()

    async def opened(self, connection: AsyncConnection) -> None:
        """The pool has opened it."""
        keep(connection)
        self._opened.add(connection)

    def leave(self) -> None:
        """The loop is closed: nothing of it can be awaited, but the sessions can be ended."""
        self.spare.close()
        for connection in list(self._opened):
            discard(connection)


class Places(PerLoop[P]):
    """What a database has in each event loop.

    Args:
        make: makes it, in the running loop.
        source: where the database is; what the caller gave belongs to the loop in which it is used first.
    """

    def __init__(self, make: Callable[[], P], source: object) -> None:
        super().__init__(make, lambda place: place.leave())
        self._is_given = not isinstance(source, str | None)
        self._is_single = isinstance(source, psycopg.AsyncConnection)
        self._home: asyncio.AbstractEventLoop | None = None

    def mine(self) -> P:
        """That of the running event loop. Raises TidebaseError: what the caller gave belongs to another one."""
        here = self.here()
        if self._is_given and here.loop is not self._home:
            if self._home is not None and not (self._is_single and self._home.is_closed()):
                raise TidebaseError(
                    f"this {'connection' if self._is_single else 'pool'} is in use in another event loop",
                    hint="Give AsyncTidebase a connection string: then it has a pool in each event loop.",
                )
            self._home = here.loop
        return here


class Side:
    """What only one of the two has."""

    def rest(self) -> None:
        """Tasks end by themselves."""
