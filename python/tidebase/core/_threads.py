"""What differs in threads. ``_tasks`` has the same names for asyncio's side of each pair of modules."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, TimeoutError
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import psycopg
from psycopg_pool import ConnectionPool

from .forked import OwnPool as OwnPool
from .forked import inherit, keep
from .mark import LATE_S, Mark
from .sessions import Connection

if TYPE_CHECKING:
    from .line import Line

F = TypeVar("F", bound=Callable[..., Any])
P = TypeVar("P", bound="Place")
T = TypeVar("T")

Event = threading.Event
Task = threading.Thread
Promise = Future[bool]

#: The thread that has it may take it again: a handler of a signal comes in between anywhere.
Lock = threading.RLock

#: How often who listens looks whether it is to end, in seconds: nobody can interrupt a thread.
GLANCE_S: float | None = 1.0


# --- threads at work in the background ---


def spawn(work: Callable[..., None], *arguments: Any, name: str) -> Task:
    """Begins the work in a thread of its own, for which nobody waits when the process ends."""
    thread = threading.Thread(target=work, args=arguments, name=name, daemon=True)
    thread.start()
    return thread


def is_alive(thread: Task | None) -> bool:
    """Whether it is still at work."""
    return thread is not None and thread.is_alive()


def stop(thread: Task | None) -> None:
    """It is to do no more: it looks for itself."""


def ring(rung: threading.Event, seconds: float) -> None:
    """Returns when the event is set, or when the time is over."""
    rung.wait(seconds)


def promise() -> Promise:
    """One that threads wait for."""
    return Future()


def keep_promise(promise: Promise) -> None:
    """Who waits for it goes on."""
    promise.set_result(True)


def within(promise: Promise, seconds: float) -> bool:
    """Whether it is kept within so many seconds."""
    with suppress(TimeoutError):
        promise.result(seconds)
    return promise.done()


def sometime(promise: Promise) -> None:
    """It will be kept."""
    promise.result()


def renewed(promise: Promise) -> Promise:
    """The promise for who waits on: the same one."""
    return promise


def rest(closed: threading.Event, seconds: float) -> None:
    """Does nothing for so long, unless it is closed meanwhile."""
    closed.wait(seconds)


def elsewhere(function: Callable[..., T], *arguments: Any) -> T:
    """What the function returns, which may block here."""
    return function(*arguments)


# --- cancellation, which threads do not know ---


def cancellation_kept(function: F) -> F:
    """Nobody cancels a thread."""
    return function


@contextmanager
def terminable() -> Iterator[None]:
    """While the block runs, SIGTERM raises SystemExit in the main thread, so that leases are released on the way out.

    Only where nobody has installed a handler of their own: then SIGTERM is theirs.
    """
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return

    def leave(signum: int, frame: Any) -> None:
        raise SystemExit(128 + signum)

    signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


# --- connections ---


def connect(conninfo: str) -> Connection:
    """A connection in autocommit mode, which prepares nothing."""
    return psycopg.connect(conninfo, autocommit=True, prepare_threshold=None)


def put_back(pool: ConnectionPool[Connection], connection: Connection) -> None:
    """Gives it back."""
    pool.putconn(connection)


def resolved(value: Any) -> Any:
    """What a pool was given for its connections: a value, or a function that has it."""
    return value() if callable(value) else value


# --- processes: there is one of everything in each, and a child of a fork begins anew ---


class Place:
    """What a database has in this process: the part of it that differs."""

    def __init__(self, spare: Line) -> None:
        self.spare = spare

    def opened(self, connection: Connection) -> None:
        """The pool has opened it."""
        keep(connection)


class Places(Generic[P]):
    """What a database has in this process.

    Args:
        make: makes it.
        source: where the database is; all threads of a process may use what the caller gave.
    """

    def __init__(self, make: Callable[[], P], source: object) -> None:
        self._make = make
        self.begin_anew()
        inherit(self)

    def begin_anew(self) -> None:
        """A child of a fork uses nothing that its parent has."""
        self._made = self._make()

    def here(self) -> P:
        """That of this process."""
        return self._made

    mine = here


# --- what tasks do without: a timer of the event loop writes the start of a step (``_marked`` in ``flow``) ---

#: The thread that looks after marks looks so often in vain, and then waits until it is told of a step.
_LOOKS = 5

#: It goes when there was nothing to do for this long, in seconds.
_IDLE_S = 10.0

#: How many threads there are at most for what goes its own way.
_MOST_APART = 64


class Marker:
    """One thread that writes the starts of the steps that turn out to take a moment. While steps are made it looks
    after them by itself, so that a step which is over sooner need not tell it anything; then it sleeps.
    """

    def __init__(self) -> None:
        self.begin_anew()
        inherit(self)

    def begin_anew(self) -> None:
        """A child of a fork has no thread yet, and none of its parent's steps."""
        self._at_work: dict[Mark, tuple[float, Callable[[Mark], None]]] = {}
        self._entered = 0
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._looks = False  # whether it comes by without being told
        self._told = threading.Event()

    def enter(self, mark: Mark, write: Callable[[Mark], None]) -> None:
        """The step begins now; ``write`` is what is to be done when it takes a moment."""
        self._at_work[mark] = time.monotonic(), write
        self._entered += 1
        if not self._looks:
            self._tell()

    def leave(self, mark: Mark) -> None:
        """The step has ended."""
        self._at_work.pop(mark, None)

    def _tell(self) -> None:
        with self._lock:
            if self._looks:
                return
            self._looks = True
            if self._thread is None:
                self._thread = threading.Thread(target=self._watch, name="tidebase-marker", daemon=True)
                self._thread.start()
            else:
                self._told.set()

    def _watch(self) -> None:
        seen, vain = self._entered, 0
        while True:
            time.sleep(self._write_due())
            entered = self._entered
            vain = vain + 1 if entered == seen and not self._at_work else 0
            seen = entered
            if vain < _LOOKS or not self._may_sleep():
                continue
            if not self._told.wait(_IDLE_S) and self._may_go():
                return
            self._told.clear()
            vain = 0

    def _write_due(self) -> float:
        """Writes the starts that are due, and says in how many seconds to look again."""
        now, rest = time.monotonic(), LATE_S
        for mark, (begun, write) in list(self._at_work.items()):
            if now - begun < LATE_S:
                rest = min(rest, begun + LATE_S - now)
            elif self._at_work.pop(mark, None) is not None:  # it may have ended meanwhile
                write(mark)
        return rest

    # Who enters a step notes it first and then looks whether the thread comes by; the thread says that it does not,
    # and then looks for a step: one of the two sees the other.

    def _may_sleep(self) -> bool:
        with self._lock:
            self._looks = False
            self._looks = bool(self._at_work)
            return not self._looks

    def _may_go(self) -> bool:
        with self._lock:
            if not self._looks:
                self._thread = None
            return not self._looks


class Apart:
    """Threads for what goes its own way: they are kept for the next, and ended with the process."""

    def __init__(self) -> None:
        self.begin_anew()
        inherit(self)

    def begin_anew(self) -> None:
        """A child of a fork has none of the threads."""
        self._lock = threading.Lock()
        self._threads: ThreadPoolExecutor | None = None

    def go(self, work: Callable[[], None]) -> None:
        """Does it, without anybody who waits for it."""
        with self._lock:
            if self._threads is None:
                self._threads = ThreadPoolExecutor(_MOST_APART, "tidebase-apart")
            with suppress(RuntimeError):  # the process ends, and no thread begins any more: whoever waits does the work
                self._threads.submit(work)

    def end(self) -> None:
        """What has begun ends."""
        with self._lock:
            threads, self._threads = self._threads, None
        if threads is not None:
            threads.shutdown(wait=False)


class Side:
    """What only one of the two has: a thread that writes the starts of steps, and those that work apart."""

    def __init__(self) -> None:
        self.marker = Marker()
        self.apart = Apart()

    def rest(self) -> None:
        """Has nothing at work any more, once what has begun ends."""
        self.apart.end()
