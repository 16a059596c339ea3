"""What differs in threads. The face for asyncio has the same names in ``_tasks``."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from contextvars import copy_context
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from ..core._threads import terminable
from ..core.database import Database
from ..core.flow import checked, drive
from ..domain import child, workflow
from ..domain.child import Brood, Order
from ..domain.dispatcher import ChannelDispatcher
from ..domain.event import Event
from ..domain.heartbeat import Heartbeats
from ..domain.lease import Hold
from ..domain.push import PushDispatcher
from ..domain.recovery import Dispatcher
from ..domain.subscribe import follow
from ..domain.workflow import Worker

if TYPE_CHECKING:
    from ..schema.migrations import MigrationReport

D = TypeVar("D", bound=Database)
T = TypeVar("T")


class Face(Generic[D]):
    """What only one of the faces has."""

    _database: D

    def dispatcher(
        self,
        *,
        secret: str | None = None,
        allow_private: bool = False,
        timeout_s: float = 10.0,
        max_attempts: int = 8,
        at_once: int = 32,
    ) -> Dispatcher:
        """Delivers recovery webhooks; see :class:`tidebase.domain.recovery.Dispatcher`."""
        return Dispatcher(
            self._database,
            secret=secret,
            allow_private=allow_private,
            timeout_s=timeout_s,
            max_attempts=max_attempts,
            at_once=at_once,
        )

    def channel_dispatcher(
        self,
        *,
        secret: str | None = None,
        allow_private: bool = False,
        timeout_s: float = 10.0,
        give_up_after_s: float = 86_400.0,
        at_once: int = 32,
    ) -> ChannelDispatcher:
        """Tells channels what happens to their runs; see :class:`tidebase.domain.dispatcher.ChannelDispatcher`."""
        return ChannelDispatcher(
            self._database,
            secret=secret,
            allow_private=allow_private,
            timeout_s=timeout_s,
            give_up_after_s=give_up_after_s,
            at_once=at_once,
        )

    def push_dispatcher(
        self,
        *,
        secret: str | None = None,
        allow_private: bool = False,
        timeout_s: float = 30.0,
        give_up_after_s: float = 86_400.0,
        at_once: int = 32,
    ) -> PushDispatcher:
        """Tells the endpoints of queues of their runs; see :class:`tidebase.domain.push.PushDispatcher`."""
        return PushDispatcher(
            self._database,
            secret=secret,
            allow_private=allow_private,
            timeout_s=timeout_s,
            give_up_after_s=give_up_after_s,
            at_once=at_once,
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


class Crew:
    """What a worker works on at the same time, and what waits for a hand.

    Args:
        size: how many hands there are.
        stirred: is set when one of them is free, or fewer wait than ``rouse_at``.
    """

    def __init__(self, size: int, stirred: threading.Event) -> None:
        self._size = size
        self._stirred = stirred
        self._pool = ThreadPoolExecutor(size, thread_name_prefix="tidebase-worker")
        self._works: dict[Future[None], Any] = {}
        self.rouse_at: int = 0

    @property
    def busy(self) -> int:
        return min(len(self._works), self._size)

    @property
    def free(self) -> int:
        return self._size - self.busy

    @property
    def waiting(self) -> int:
        return max(len(self._works) - self._size, 0)

    def start(self, work: Callable[[Any], None], item: Any) -> None:
        """Begins the work when there is a hand for it."""
        future = self._pool.submit(work, item)
        self._works[future] = item
        future.add_done_callback(self._ended)

    def _ended(self, future: Future[None]) -> None:
        self._works.pop(future, None)
        if self.waiting <= self.rouse_at:
            self._stirred.set()

    def take_back(self) -> list[Any]:
        """What waits for a hand, which nobody begins any more."""
        return [item for future, item in list(self._works.items()) if future.cancel()]

    def settled(self, seconds: float) -> bool:
        """Whether all has ended, in so many seconds at most."""
        wait(list(self._works), timeout=seconds)
        return not self._works

    def abandon(self, brood: Brood) -> None:
        """Gives up what is at work, and its leases: each step that is at work ends first, and nothing new begins. What
        takes longer than the process waits for keeps its lease until that runs out.
        """
        for hold in list(brood.holds):
            hold.follow()
        self.settled(workflow.PATIENCE_S)
        self._pool.shutdown(wait=False, cancel_futures=True)


@contextmanager
def terminated(stop: Callable[[], None]) -> Iterator[None]:
    """While the block runs, SIGTERM and SIGINT call this; in the main thread alone, where nobody else handles them."""
    defaults: dict[signal.Signals, Any] = {
        signal.SIGTERM: signal.SIG_DFL,
        signal.SIGINT: signal.default_int_handler,
    }
    own = threading.current_thread() is threading.main_thread()
    taken = [number for number, default in defaults.items() if own and signal.getsignal(number) is default]
    for number in taken:
        # In a thread of its own: the one that is interrupted may hold the lock that stop wants.
        signal.signal(number, lambda *_: threading.Thread(target=stop, daemon=True).start())
    try:
        yield
    finally:
        for number in taken:
            signal.signal(number, defaults[number])
