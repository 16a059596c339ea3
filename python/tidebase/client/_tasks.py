"""What differs under asyncio. The face for threads has the same names in ``_threads``."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
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

__all__ = ["Face", "Feeds", "Here", "apart", "called", "migrate", "together"]

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
