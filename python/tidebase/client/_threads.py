"""What differs in threads. The face for asyncio has the same names in ``_tasks``."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import copy_context
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from ..core._threads import terminable
from ..core.database import Database
from ..core.flow import checked, drive
from ..domain import child, workflow
from ..domain.child import Brood, Order
from ..domain.event import Event
from ..domain.heartbeat import Heartbeats
from ..domain.lease import Hold
from ..domain.subscribe import follow
from ..domain.webhook import Dispatcher
from ..domain.workflow import Worker

if TYPE_CHECKING:
    from ..schema.migrations import MigrationReport

D = TypeVar("D", bound=Database)
T = TypeVar("T")


class Face(Generic[D]):
    """What only one of the faces has."""

    _database: D

    def dispatcher(
        self, *, secret: str | None = None, allow_private: bool = False, timeout_s: float = 10.0, max_attempts: int = 8
    ) -> Dispatcher:
        """Delivers recovery webhooks; see :class:`tidebase.domain.webhook.Dispatcher`."""
        return Dispatcher(
            self._database,
            secret=secret,
            allow_private=allow_private,
            timeout_s=timeout_s,
            max_attempts=max_attempts,
        )


class Feeds:
    """The runs that somebody follows, each by itself."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def follow(self, run_id: str, after: int) -> Iterator[Event]:
        """The events with seq > ``after``, as they come. No connection is held between them."""
        return follow(self._database, run_id, after)


class Here:
    """What belongs to this process."""

    def __init__(self, heartbeats: Callable[[], Heartbeats]) -> None:
        self._beating = heartbeats()

    def heartbeats(self) -> Heartbeats:
        """Those of this process."""
        return self._beating

    def watch(self, hold: Hold) -> None:
        """A thread cannot be interrupted: it hears that its lease is lost when it comes by."""

    @contextmanager
    def working(self) -> Iterator[None]:
        """In the block a workflow is at work."""
        with terminable():
            yield


def called(result: T) -> T:
    """What the user's function returned."""
    checked(result)
    return result


def apart(work: T, name: str) -> T:
    """Work that was done where it was asked for."""
    return work


def together(
    tide: Worker,
    database: Database,
    hold: Hold,
    orders: Sequence[Order],
    functions: Sequence[Callable[..., Any]],
    max_parallel: int,
) -> dict[str, Any]:
    """The results of children that are worked on at the same time, or their errors, by their names."""
    brood = Brood(tide)
    pool = ThreadPoolExecutor(max(1, min(max_parallel, len(orders))), thread_name_prefix="tidebase-child")
    try:
        futures = {
            order.name: pool.submit(copy_context().run, drive, child.work_on(brood, hold, order, function), database)
            for order, function in zip(orders, functions, strict=True)
        }
        outcomes = {key: future.exception() or future.result() for key, future in futures.items()}
    except BaseException:  # the process is told to go: nobody shall have to wait for the children's leases
        pool.shutdown(wait=False, cancel_futures=True)
        for held in list(brood.holds):
            drive(workflow.release(held), database)
        raise
    pool.shutdown()
    return outcomes


def migrate(database: Database, role_prefix: str | None) -> MigrationReport:
    """Installs the schema over a connection of the pool."""
    from ..schema import migrations  # only who installs it needs it

    with database.connection() as connection:
        return migrations.migrate(connection, role_prefix)
