"""What differs under asyncio. The face for threads has the same names in ``_threads``."""

from __future__ import annotations

import asyncio
import signal
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any, Generic, TypeVar
from weakref import WeakSet

import psycopg

from ..core._tasks import PerLoop, terminable
from ..core.database_async import AsyncDatabase
from ..core.errors import LeaseLostError, RunCancelledError, TidebaseError
from ..core.flow import drive_async
from ..domain import child
from ..domain.child import Order
from ..domain.heartbeat import AsyncHeartbeats
from ..domain.lease import Hold
from ..domain.subscribe import Feeds
from ..domain.workflow import Worker

if TYPE_CHECKING:
    from ..schema.migrations import MigrationReport

__all__ = ["Crew", "Face", "Feeds", "Here", "apart", "called", "migrate", "terminated", "together"]

D = TypeVar("D")
T = TypeVar("T")


class Face(Generic[D]):
    """What only one of the faces has."""

    _database: D


class Here:
    """What belongs to the running event loop, and to the task that works on a run."""

    def __init__(self, heartbeats: Callable[[], AsyncHeartbeats]) -> None:
        self._beating = PerLoop(heartbeats)
        self._interrupted: WeakSet[asyncio.Task[Any]] = WeakSet()

    def heartbeats(self) -> AsyncHeartbeats:
        """Those of the running loop."""
        return self._beating.here()

    def watch(self, hold: Hold) -> None:
        """When the lease is lost, the task that works on the run is cancelled."""
        task = asyncio.current_task()
        assert task is not None

        def interrupt(error: TidebaseError) -> None:
            self._interrupted.add(task)
            task.cancel()

        hold.on_lost = interrupt

    @asynccontextmanager
    async def working(self) -> AsyncIterator[None]:
        """In the block a workflow is at work. A task that was cancelled for a lost lease is not cancelled any more."""
        task = asyncio.current_task()
        assert task is not None
        try:
            with terminable(task):
                yield
        except (LeaseLostError, RunCancelledError):
            if task in self._interrupted:
                self._interrupted.discard(task)
                if hasattr(task, "uncancel"):  # from Python 3.11 on
                    task.uncancel()
            raise


async def called(result: Awaitable[T]) -> T:
    """What the user's function returned."""
    return await result


async def apart(work: Coroutine[Any, Any, T], name: str) -> T:
    """Work that has a task of its own, which alone is cancelled when its lease is lost."""
    return await asyncio.create_task(work, name=name)


async def together(
    tide: Worker,
    database: AsyncDatabase,
    hold: Hold,
    orders: Sequence[Order],
    functions: Sequence[Callable[..., Any]],
    max_parallel: int,
) -> dict[str, Any]:
    """The results of children that are worked on at the same time, or their errors, by their names."""
    limit = asyncio.Semaphore(max_parallel)

    async def work(order: Order, function: Callable[..., Any]) -> Any:
        async with limit:
            return await drive_async(child.work_on(tide, hold, order, function), database)

    outcomes = await asyncio.gather(*map(work, orders, functions), return_exceptions=True)
    return {order.name: outcome for order, outcome in zip(orders, outcomes, strict=True)}


async def migrate(database: AsyncDatabase, role_prefix: str | None) -> MigrationReport:
    """Installs the schema, in a thread: it takes a while, and its library blocks."""

    def work() -> MigrationReport:
        from ..schema import migrations  # only who installs it needs it

        with psycopg.connect(database.url, autocommit=True) as connection:
            return migrations.migrate(connection, role_prefix)

    return await asyncio.to_thread(work)


class Crew:
    """What a worker works on at the same time, and what waits for a hand.

    Args:
        size: how many hands there are.
        stirred: is set when one of them is free, or fewer wait than ``rouse_at``.
    """

    def __init__(self, size: int, stirred: asyncio.Event) -> None:
        self._size = size
        self._stirred = stirred
        self._tasks: set[asyncio.Task[None]] = set()
        self._queue: deque[tuple[Callable[[Any], Coroutine[Any, Any, None]], Any]] = deque()
        self.rouse_at: int = 0

    @property
    def busy(self) -> int:
        return len(self._tasks)

    @property
    def free(self) -> int:
        return self._size - self.busy

    @property
    def waiting(self) -> int:
        return len(self._queue)

    def start(self, work: Callable[[Any], Coroutine[Any, Any, None]], item: Any) -> None:
        """Begins the work when there is a hand for it."""
        if self.free > 0:
            task = asyncio.create_task(work(item), name=f"tidebase-{item.run_id}")
            self._tasks.add(task)
            task.add_done_callback(self._ended)
        else:
            self._queue.append((work, item))

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if self._queue:
            self.start(*self._queue.popleft())
        if self.waiting <= self.rouse_at:
            self._stirred.set()
        if not task.cancelled():
            task.exception()  # what it was is logged where it was raised

    def take_back(self) -> list[Any]:
        """What waits for a hand, which nobody begins any more."""
        items = [item for _, item in self._queue]
        self._queue.clear()
        return items

    async def settled(self, seconds: float) -> bool:
        """Whether all has ended, in so many seconds at most."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=seconds)
        return not self._tasks

    async def abandon(self, brood: child.Brood) -> None:
        """Gives up what is at work, and its leases."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@contextmanager
def terminated(stop: Callable[[], None]) -> Iterator[None]:
    """While the block runs, SIGTERM and SIGINT call this; in the main thread alone, where nobody else handles them."""
    loop, taken = asyncio.get_running_loop(), []
    defaults = {signal.SIGTERM: signal.SIG_DFL, signal.SIGINT: signal.default_int_handler}
    for number, default in defaults.items():
        try:
            if signal.getsignal(number) is default:
                loop.add_signal_handler(number, stop)
                taken.append(number)
        except (ValueError, RuntimeError, NotImplementedError):
            break
    try:
        yield
    finally:
        for number in taken:
            loop.remove_signal_handler(number)
