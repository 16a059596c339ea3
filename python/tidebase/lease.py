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
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

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
from .flow import Flow, Pause, drive, drive_async
from .recall import Recall
from .tracing import NO_TRACE, Trace

log = logging.getLogger("tidebase.lease")

#: A heartbeat goes out when a third of the lease has passed: two may be lost before it runs out.
_BEATS = 3


def new_holder() -> str:
    """A name for this worker, unique among all: host, process, and a random part."""
    return f"{socket.gethostname()[:100]}:{os.getpid()}:{secrets.token_hex(4)}"


def new_request_id() -> str:
    """An id for one call, so that it can be repeated when its answer was lost."""
    return secrets.token_urlsafe(12)


@dataclass(eq=False)
class Hold:
    """A lease that is held: what every call carries, and whether it is known to be lost.

    Attributes:
        lost: the error that ended it, once the heartbeat has met one.
        ended: set then, and when the work is over.
        marks_late: whether the start of a step may be written while it is at work (see ``mark``).
        recall: makes the ids of what is written outside of steps, where the work begins from the top at a resume: of a
            workflow, not of a session.
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

    def end(self) -> None:
        """The work is over."""
        self.ended.set()
        self.trace.end()

    def check(self) -> None:
        """Raises the error that ended the lease, if one has."""
        if self.lost is not None:
            raise self.lost

    def lose(self, error: TidebaseError) -> None:
        self.lost = error
        self.ended.set()
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
) -> Flow[tuple[calls.Lease, Trace]]:
    """Gets the run's lease, waiting while another worker has it.

    Args:
        wait_s: how long to wait at most, in seconds, for whatever it is. None waits for as long as the holder looks
            dead: until its lease runs out, unless it renews the lease meanwhile.
        patient: also wait out the backoff after a failed attempt.
        new_trace: makes the trace of the attempt that may be granted now.

    Raises:
        RunHeld: somebody else holds it.
        RunSuspendedError, RunNeedsReview: it waits for something else than a worker.
        RunCrashed: it has killed as many workers as it may.
    """
    request_id = new_request_id()
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
        hopeless = (seen is not None and lease.expires_at != seen) if held else not patient
        if hopeless if give_up is None else time.monotonic() >= give_up:
            raise _held(run_id, lease) if held else _waiting(run_id, lease)
        if seen is None and held:
            log.warning("run %s is held by %s until %s: waiting for that", run_id, lease.holder, lease.expires_at)
        seen = lease.expires_at
        yield Pause(0.2)


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
        hint="Another worker is at it. Call again later, or give wait_s.",
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
