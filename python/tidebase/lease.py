"""Leases: getting one, keeping it while a step takes its time, noticing its loss."""

from __future__ import annotations

import asyncio
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
    RunFinal,
    RunHeld,
    RunNeedsReview,
    RunSuspendedError,
    TidebaseError,
)
from .flow import Flow, Pause
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
    """

    run_id: str
    token: int
    attempt: int
    lease_s: float
    lost: TidebaseError | None = None
    ended: threading.Event = field(default_factory=threading.Event)
    on_lost: Callable[[TidebaseError], None] | None = None
    trace: Trace = NO_TRACE

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


class Heartbeats:
    """One thread that renews the leases of all runs of this process."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._due: dict[Hold, float] = {}
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def add(self, hold: Hold) -> None:
        with self._changed:
            self._due[hold] = time.monotonic() + hold.lease_s / _BEATS
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._beat, name="tidebase-heartbeat", daemon=True)
                self._thread.start()
            self._changed.notify()

    def remove(self, hold: Hold) -> None:
        with self._changed:
            self._due.pop(hold, None)
            self._changed.notify()

    def _beat(self) -> None:
        while True:
            with self._changed:
                if not self._due:
                    self._thread = None
                    return
                hold, due = min(self._due.items(), key=lambda item: item[1])
                wait = due - time.monotonic()
                if wait > 0:
                    self._changed.wait(wait)
                    continue
                self._due[hold] = time.monotonic() + hold.lease_s / _BEATS
            try:
                self._database.execute(hold.renewal(), patiently=False)
            except TidebaseError as error:
                hold.accept(error)
            except Exception:
                log.exception("run %s: heartbeat failed, trying again", hold.run_id)
            if hold.lost is not None:
                self.remove(hold)


class AsyncHeartbeats:
    """One task a run that renews its lease, and cancels the work when the lease is lost."""

    def __init__(self, database: AsyncDatabase) -> None:
        self._database = database
        self._tasks: dict[Hold, asyncio.Task[None]] = {}

    def add(self, hold: Hold) -> None:
        self._tasks[hold] = asyncio.create_task(self._beat(hold), name=f"tidebase-heartbeat-{hold.run_id}")

    def remove(self, hold: Hold) -> None:
        task = self._tasks.pop(hold, None)
        if task is not None:
            task.cancel()

    async def _beat(self, hold: Hold) -> None:
        while hold.lost is None:
            await asyncio.sleep(hold.lease_s / _BEATS)
            try:
                await self._database.execute(hold.renewal(), patiently=False)
            except TidebaseError as error:
                hold.accept(error)
            except Exception:
                log.exception("run %s: heartbeat failed, trying again", hold.run_id)


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
