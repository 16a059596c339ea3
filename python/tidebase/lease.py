"""Leases: getting one, keeping it while a step takes its time, noticing its loss."""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import itertools
import logging
import os
import secrets
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any
from weakref import WeakSet

from . import calls
from .database import AsyncDatabase, Database
from .errors import (
    LeaseLostError,
    RunCancelledError,
    RunCrashed,
    RunFinal,
    RunHeld,
    RunNeedsReview,
    RunSuspendedError,
    TidebaseError,
)
from .flow import Flow, Listen, drive, drive_async
from .mark import Mark
from .recall import Recall
from .tracing import NO_TRACE, Trace

log = logging.getLogger("tidebase.lease")

#: A heartbeat goes out when a third of the lease has passed: two may be lost before it runs out.
_BEATS = 3


def new_holder() -> str:
    """A name for this worker, unique among all: host, process, and a random part."""
    return f"{socket.gethostname()[:100]}:{os.getpid()}:{secrets.token_hex(4)}"


def is_dead(holder: str | None) -> bool:
    """Whether a worker is known to be gone: it named itself as :func:`new_holder` does, and its process was one of this
    machine, where there is no such process any more.
    """
    host, _, rest = (holder or "").rpartition(":")[0].rpartition(":")
    if host != socket.gethostname()[:100] or not rest.isascii() or not rest.isdigit():
        return False
    try:
        os.kill(int(rest), 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):
        return False
    return False


def new_request_id() -> str:
    """An id for one call, so that it can be repeated when its answer was lost."""
    return secrets.token_urlsafe(12)


#: The lease under which the step is executed that the code at hand is part of.
current_hold: ContextVar[Hold | None] = ContextVar("tidebase_current_hold", default=None)


class InFlight:
    """The steps and children of a run that are at work in this process: what is paid for, and will be stored."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._works: dict[tuple[object, object], Mark | None] = {}
        self._waiting: list[tuple[int, Future[None]]] = []

    @contextmanager
    def work(self, name: object, mark: Mark | None = None) -> Iterator[None]:
        """One of them, for as long as the block takes. ``mark``: its start, if that is not written yet."""
        key = (name, object())
        with self._lock:
            self._works[key] = mark
        try:
            yield
        finally:
            with self._lock:
                del self._works[key]
                ready = [future for most, future in self._waiting if len(self._works) <= most]
                self._waiting = [(most, future) for most, future in self._waiting if len(self._works) > most]
            for future in ready:
                future.set_result(None)

    def settled(self, most: int = 0) -> Future[None]:
        """Is done once no more than so many are at work."""
        future: Future[None] = Future()
        with self._lock:
            if len(self._works) > most:
                self._waiting.append((most, future))
                return future
        future.set_result(None)
        return future

    def marks(self) -> list[Mark]:
        """The starts of those that nobody has written yet."""
        with self._lock:
            return [mark for mark in self._works.values() if mark is not None]

    @property
    def only(self) -> str | None:
        """The name of the step, where exactly one is at work."""
        with self._lock:
            names = [work[0] for work in self._works]
        return names[0] if len(names) == 1 and isinstance(names[0], str) else None


@dataclass(frozen=True)
class Departure:
    """That a lease is to be given up: what to do about it once nothing is in flight, and what its work is told.

    Attributes:
        error: what whoever begins something new is told, and at last who called ``tide.run``.
        call: gives the lease up, so that the run waits in the database; false when what it would wait for has come.
    """

    error: TidebaseError
    call: calls.Call[Any]


@dataclass(eq=False)
class Hold:
    """A lease that is held: what every call carries, and whether it is known to be lost.

    Attributes:
        lost: the error that ended it, once the heartbeat has met one.
        ended: set then, and when the work is over.
        marks_late: whether the start of a step may be written while it is at work (see ``mark``).
        recall: makes the ids of what is written outside of steps, where the work begins from the top at a resume: of a
            workflow, not of a session.
        in_flight: its steps and children that are at work.
        departure: set when it is to be given up: what is in flight ends first, and nothing new begins.
        review: set when a person must decide about a step: the database may have given the lease up for that.
        session: whether it is that of a session, which nobody unwinds.
        children: the holds of its children in this process.
        stirred: set when the work is over, or to be over soon: ends a backoff before its time.
    """

    run_id: str
    token: int
    attempt: int
    lease_s: float
    lost: TidebaseError | None = None
    ended: threading.Event = field(default_factory=threading.Event)
    on_lost: Callable[[TidebaseError], None] | None = None
    trace: Trace = NO_TRACE
    marks_late: bool = False
    recall: Recall | None = None
    in_flight: InFlight = field(default_factory=InFlight)
    departure: Departure | None = None
    review: TidebaseError | None = None
    session: bool = False
    children: WeakSet[Hold] = field(default_factory=WeakSet)
    stirred: threading.Event = field(default_factory=threading.Event)

    def depart(self, departure: Departure) -> None:
        """Asks for the lease to be given up; the first word stands. Children of the run stop, too, where they can."""
        if self.departure is None:
            self.departure = departure
        self.stirred.set()
        for child in list(self.children):
            child.follow()

    def adopt(self, child: Hold) -> None:
        """A child of the run is worked on in this process."""
        self.children.add(child)
        if self.departure is not None:
            child.follow()

    def follow(self) -> None:
        """The parent gives its lease up: so does this child of it, for whoever comes back to the parent."""
        error = RunSuspendedError(f"run {self.run_id!r} stops with its parent", detail={"run_id": self.run_id})
        self.depart(Departure(error, calls.release_run(run_id=self.run_id, token=self.token)))

    def begin(self) -> None:
        """Something new is to begin: raises what ended the lease, or that it is being given up. Not what a step in
        flight does: that ends first.
        """
        self.check()
        if self.departure is not None and current_hold.get() is not self:
            raise self.departure.error

    @contextmanager
    def executing(self, name: str) -> Iterator[None]:
        """A step is executed here, for as long as the block takes."""
        context = current_hold.set(self)
        try:
            with self.in_flight.work(name):
                yield
        finally:
            current_hold.reset(context)

    def end(self) -> None:
        """The work is over."""
        self.ended.set()
        self.stirred.set()
        self.trace.end()

    def check(self) -> None:
        """Raises the error that ended the lease, if one has."""
        if self.lost is not None:
            raise self.lost

    def lose(self, error: TidebaseError) -> None:
        if self.review is not None:  # it was not lost: what is in flight ends, and is stored
            return
        self.lost = error
        self.ended.set()
        self.stirred.set()
        log.warning("run %s: %s", self.run_id, error)
        if self.on_lost is not None:
            self.on_lost(error)

    def renewal(self) -> calls.Call[Any]:
        return calls.renew_lease(run_id=self.run_id, token=self.token, ttl=timedelta(seconds=self.lease_s))

    def accept(self, error: TidebaseError) -> None:
        """Takes what a heartbeat was answered: a lease that is gone ends the hold, anything else is tried again."""
        if isinstance(error, (LeaseLostError, RunCancelledError, RunFinal)):
            self.lose(error)
        else:
            log.warning("run %s: heartbeat failed, trying again: %s", self.run_id, error)


def acquire(
    run_id: str,
    holder: str,
    lease_s: float,
    code_version: str | None,
    wait_s: float | None,
    patient: bool = False,
    new_trace: Callable[[], Trace] = Trace,
    request_id: str | None = None,
) -> Flow[tuple[calls.Lease, Trace]]:
    """Gets the run's lease, waiting while another worker has it.

    Args:
        wait_s: how long to wait at most, in seconds, for whatever it is. None does not wait for a holder that may be
            alive; for one that is known to be dead (its process was on this machine, and is gone) until its lease runs
            out.
        patient: also wait out the backoff after a failed attempt.
        new_trace: makes the trace of the attempt that may be granted now.
        request_id: by which ``withdraw_grant`` finds what was granted, should the answer be lost.

    Raises:
        RunHeld: somebody else holds it.
        RunSuspendedError, RunNeedsReview: it waits for something else than a worker.
        RunCrashed: it has killed as many workers as it may.
    """
    request_id = request_id or new_request_id()
    give_up = None if wait_s is None else time.monotonic() + wait_s
    seen = None
    while True:
        trace = new_trace()
        lease: calls.Lease = yield calls.acquire_run(
            run_id=run_id,
            holder=holder,
            ttl=timedelta(seconds=lease_s),
            code_version=code_version,
            request_id=request_id,
            traceparent=trace.traceparent,
        )
        if lease.outcome in ("granted", "completed"):
            return lease, trace
        if lease.outcome == "review":
            raise RunNeedsReview(
                f"run {run_id!r} waits for a person's review",
                detail={"run_id": run_id},
                hint="See tide.runs.reviews().",
            )
        if lease.outcome == "failed":
            raise RunCrashed(
                f"run {run_id!r} has lost its worker too often",
                detail={"run_id": run_id, "attempt": lease.attempt},
                hint="See what kills its workers; tide.runs.recover gives it its attempts again.",
            )
        held = lease.outcome == "held"
        hopeless = (not is_dead(lease.holder) or seen not in (None, lease.expires_at)) if held else not patient
        if hopeless if give_up is None else time.monotonic() >= give_up:
            raise _held(run_id, lease) if held else _waiting(run_id, lease)
        if seen is None and held:
            log.warning("run %s is held by %s until %s: waiting for that", run_id, lease.holder, lease.expires_at)
        seen = lease.expires_at
        yield Listen(run_id, 0.2)


def _waiting(run_id: str, lease: calls.Lease) -> RunSuspendedError:
    until = f" until {lease.expires_at.isoformat()}" if lease.expires_at else ""
    return RunSuspendedError(
        f"run {run_id!r} waits{until}", detail={"run_id": run_id}, hint="Call again when that is over, or give wait_s."
    )


def _held(run_id: str, lease: calls.Lease) -> RunHeld:
    until = lease.expires_at.isoformat() if lease.expires_at else None
    return RunHeld(
        f"run {run_id!r} is held by {lease.holder} until {until}",
        detail={"run_id": run_id, "holder": lease.holder, "expires_at": until},
        hint="Another worker is at it, or has died: then its lease runs out at that time. Call again, or give wait_s.",
    )


def renew(holds: list[Hold]) -> Flow[None]:
    """One heartbeat of several runs: one call, and another for each lease that was not renewed, to learn why."""
    left = holds
    if len(holds) > 1:
        renewed = yield calls.renew_leases(
            run_ids=[hold.run_id for hold in holds],
            tokens=[hold.token for hold in holds],
            ttl=timedelta(seconds=holds[0].lease_s),
        )
        names = {renewal.run_id for renewal in renewed}
        left = [hold for hold in holds if hold.run_id not in names]
    for hold in left:
        try:
            yield hold.renewal()
        except TidebaseError as error:
            if not hold.ended.is_set():
                hold.accept(error)


class Beats:
    """When the heartbeat of each run is due. Runs with leases of one length are put together when they are due soon."""

    def __init__(self) -> None:
        self._holds: set[Hold] = set()
        self._due: list[tuple[float, int, Hold]] = []
        self._numbers = itertools.count()

    def __bool__(self) -> bool:
        return bool(self._holds)

    def add(self, hold: Hold) -> None:
        self._holds.add(hold)
        self._plan(hold)

    def remove(self, hold: Hold) -> None:
        self._holds.discard(hold)  # and from the plan when its turn comes

    def wait(self) -> float:
        """Seconds until the next one is due."""
        return self._due[0][0] - time.monotonic()

    def take(self) -> list[Hold]:
        """Those that are due, at most a thousand, which are planned again."""
        soon = time.monotonic() + self._due[0][2].lease_s / _BEATS / 4
        lease_s = self._due[0][2].lease_s
        taken: list[Hold] = []
        while self._due and self._due[0][0] <= soon and self._due[0][2].lease_s == lease_s and len(taken) < 1000:
            hold = heapq.heappop(self._due)[2]
            if hold.lost is not None:
                self._holds.discard(hold)
            elif hold in self._holds:
                taken.append(hold)
        for hold in taken:
            self._plan(hold)
        return taken

    def _plan(self, hold: Hold) -> None:
        heapq.heappush(self._due, (time.monotonic() + hold.lease_s / _BEATS, next(self._numbers), hold))


class Heartbeats:
    """One thread that renews the leases of all runs of this process."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._beats = Beats()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def add(self, hold: Hold) -> None:
        with self._changed:
            self._beats.add(hold)
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._beat, name="tidebase-heartbeat", daemon=True)
                self._thread.start()
            self._changed.notify()

    def remove(self, hold: Hold) -> None:
        with self._changed:
            self._beats.remove(hold)
            self._changed.notify()

    def _beat(self) -> None:
        while True:
            with self._changed:
                if not self._beats:
                    self._thread = None
                    return
                wait = self._beats.wait()
                if wait > 0:
                    self._changed.wait(wait)
                    continue
                holds = self._beats.take()
            try:
                drive(renew(holds), self._database)
            except Exception as error:
                log.warning("heartbeats failed, trying again: %s", error)


class AsyncHeartbeats:
    """One task that renews the leases of all runs of this event loop; who loses one has its work cancelled."""

    def __init__(self, database: AsyncDatabase) -> None:
        self._database = database
        self._beats = Beats()
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def add(self, hold: Hold) -> None:
        self._beats.add(hold)
        self._changed.set()
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._beat(), name="tidebase-heartbeat")

    def remove(self, hold: Hold) -> None:
        self._beats.remove(hold)
        if not self._beats and self._task is not None:
            self._task.cancel()
            self._task = None

    async def _beat(self) -> None:
        while self._beats:
            wait = self._beats.wait()
            if wait > 0:
                self._changed.clear()
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(self._changed.wait(), wait)
                continue
            try:
                await drive_async(renew(self._beats.take()), self._database)
            except Exception as error:
                log.warning("heartbeats failed, trying again: %s", error)


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
