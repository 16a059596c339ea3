"""Leases: getting one, keeping it while a step takes its time, noticing its loss."""

from __future__ import annotations

import asyncio
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
from typing import Any, cast
from weakref import WeakSet, finalize, ref

import psycopg

from . import calls
from .database import AsyncDatabase, Database
from .doorbell import ring
from .errors import (
    LeaseLostError,
    RunCancelledError,
    RunCrashed,
    RunFinal,
    RunHeld,
    RunNeedsReview,
    RunNotFound,
    RunSuspendedError,
    TidebaseError,
    from_postgres,
)
from .flow import Flow, Listen, drive, drive_async
from .forked import inherit
from .hints import command, to_decide, to_review
from .line import Line
from .mark import Mark
from .recall import Recall
from .tracing import NO_TRACE, Trace

log = logging.getLogger("tidebase.lease")

#: A heartbeat goes out when a third of the lease has passed: two may be lost before it runs out.
_BEATS = 3

#: After so many seconds at most it goes out again when it failed, or somebody had the run locked.
_AGAIN_S = 0.5


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
        process: the one that holds it; a child of a fork that leaves the work does not give it up.
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
    process: int = field(default_factory=os.getpid)
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

    @property
    def is_inherited(self) -> bool:
        """Whether it is the parent of this process that holds it."""
        return os.getpid() != self.process

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
        if isinstance(error, (LeaseLostError, RunCancelledError, RunFinal, RunNotFound)):
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
            raise (yield from _in_review(run_id))
        if lease.outcome == "failed":
            raise RunCrashed(
                f"run {run_id!r} has lost its worker too often",
                detail={"run_id": run_id, "attempt": lease.attempt},
                hint=f"See what kills its workers: {command('show', run_id)}; this gives it its attempts again:"
                f" {command('recover', run_id)}",
            )
        held = lease.outcome == "held"
        hopeless = (not is_dead(lease.holder) or seen not in (None, lease.expires_at)) if held else not patient
        if hopeless if give_up is None else time.monotonic() >= give_up:
            raise _held(run_id, lease) if held else (yield from _waiting(run_id, lease))
        if seen is None and held:
            log.warning("run %s is held by %s until %s: waiting for that", run_id, lease.holder, lease.expires_at)
        seen = lease.expires_at
        yield Listen(run_id, 0.2)


def _in_review(run_id: str) -> Flow[RunNeedsReview]:
    reviews: list[calls.ReviewInfo] = yield calls.review_inbox(run_id)
    hint = f"{to_review(run_id, reviews[0].step)}; or call tide.runs.resolve_review." if reviews else "Call again."
    return RunNeedsReview(f"run {run_id!r} waits for a person's review", detail={"run_id": run_id}, hint=hint)


def _waiting(run_id: str, lease: calls.Lease) -> Flow[RunSuspendedError]:
    until = f" until {lease.expires_at.isoformat()}" if lease.expires_at else ""
    run: calls.RunInfo = yield calls.get_run(run_id=run_id)
    name, hint = run.waiting_for, "Call again when that is over, or give wait_s."
    if name is not None:
        gates: list[calls.GateInfo] = yield calls.gate_named(run_id, name)
        if gates and gates[0].kind == "gate" and gates[0].status == "pending":
            hint = f"{to_decide(run_id, name, gates[0].options)}; then call again, or give wait_s."
        elif not gates:  # but children
            hint = f"See what they wait for: {command('show', run_id)}; call again when that has come, or give wait_s."
    what = f" for {name!r}" if name else ""
    return RunSuspendedError(f"run {run_id!r} waits{what}{until}", detail={"run_id": run_id}, hint=hint)


def _held(run_id: str, lease: calls.Lease) -> RunHeld:
    until = lease.expires_at.isoformat() if lease.expires_at else None
    return RunHeld(
        f"run {run_id!r} is held by {lease.holder} until {until}",
        detail={"run_id": run_id, "holder": lease.holder, "expires_at": until},
        hint="Another worker is at it, or has died: then its lease runs out at that time. Call again, or give wait_s.",
    )


def renew(holds: list[Hold]) -> Flow[list[Hold]]:
    """One heartbeat of runs, which waits for nobody: one call. Returns the holds whose run somebody has locked just
    now, who is at work on it; a lease that was not renewed for another reason is lost, and one more call learns why.
    """
    run_ids, tokens = [hold.run_id for hold in holds], [hold.token for hold in holds]
    renewed = yield calls.renew_leases(run_ids=run_ids, tokens=tokens, ttl=timedelta(seconds=holds[0].lease_s))
    names = {renewal.run_id for renewal in renewed}
    left = [hold for hold in holds if hold.run_id not in names and not hold.ended.is_set()]
    if not left:
        return []
    held = yield calls.leases_held([hold.run_id for hold in left], [hold.token for hold in left])
    for hold in left:
        if hold.run_id in held or hold.ended.is_set():
            continue
        try:
            yield hold.renewal()  # which meets no row to wait for: it only says what became of the lease
        except (TidebaseError, psycopg.Error) as error:
            if not hold.ended.is_set():
                hold.accept(error if isinstance(error, TidebaseError) else from_postgres(error))
    return [hold for hold in left if hold.run_id in held]


class Beats:
    """When the heartbeat of each run is due. Runs with leases of one length are put together when they are due soon.

    Nobody's hold is kept alive by this: a lease that nobody works under any more is not renewed for ever.
    """

    def __init__(self) -> None:
        self._holds: dict[ref[Hold], int] = {}  # with the number of its place in the plan
        self._due: list[tuple[float, int, ref[Hold]]] = []
        self._numbers = itertools.count()

    def __bool__(self) -> bool:
        return bool(self._holds)

    def add(self, hold: Hold) -> None:
        run_id, holds = hold.run_id, self._holds

        def forget(reference: ref[Hold]) -> None:
            if holds.pop(reference, None) is not None:
                log.warning("run %s: nobody works on it any more, so its lease runs out; close a session", run_id)

        self._plan(ref(hold, forget), hold.lease_s / _BEATS)

    def remove(self, hold: Hold) -> None:
        self._holds.pop(ref(hold), None)  # and from the plan when its turn comes

    def clear(self) -> None:
        self._holds.clear()
        self._due.clear()

    def wait(self) -> float:
        """Seconds until the next one is due."""
        return self._due[0][0] - time.monotonic() if self._due else 0.0

    def take(self) -> list[Hold]:
        """Those that are due, at most a thousand, which are planned again."""
        taken: list[Hold] = []
        soon = time.monotonic()
        while self._due and self._due[0][0] <= soon and len(taken) < 1000:
            _, number, reference = self._due[0]
            hold = reference()
            if hold is not None and taken and hold.lease_s != taken[0].lease_s:
                break
            heapq.heappop(self._due)
            if hold is None or self._holds.get(reference) != number:
                continue
            if hold.lost is not None:
                self.remove(hold)
                continue
            if not taken:
                soon += hold.lease_s / _BEATS / 4
            taken.append(hold)
        for hold in taken:
            self._plan(ref(hold), hold.lease_s / _BEATS)
        return taken

    def hasten(self, holds: list[Hold]) -> None:
        """These were not renewed: they are due again soon."""
        for hold in holds:
            if ref(hold) in self._holds:
                self._plan(ref(hold), min(hold.lease_s / _BEATS / 10, _AGAIN_S))

    def _plan(self, reference: ref[Hold], seconds: float) -> None:
        number = self._holds[reference] = next(self._numbers)
        heapq.heappush(self._due, (time.monotonic() + seconds, number, reference))


class Heartbeats:
    """One thread that renews the leases of all runs of this process, over a connection of its own: it waits neither for
    the pool nor for a lock. It ends with the last run, and when this is closed or nobody refers to it.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._begin()
        inherit(self)

    def _begin(self) -> None:
        self._line = self._database.line() if self._database.has_connections else None
        self._beats = Beats()
        self._lock = threading.Lock()
        self._changed = threading.Event()
        self._thread: threading.Thread | None = None
        self._end = finalize(self, _give_up, self._changed, self._line)
        self._end.atexit = False

    def begin_anew(self) -> None:
        """The leases that the parent holds are renewed by the parent."""
        self._end.detach()  # who has the locks that it takes may not be here
        self._beats.clear()
        self._begin()

    def add(self, hold: Hold) -> None:
        with self._lock:
            self._beats.add(hold)
            if self._thread is None or not self._thread.is_alive():
                arguments = (ref(self), self._changed)
                self._thread = threading.Thread(target=_beat, args=arguments, name="tidebase-heartbeat", daemon=True)
                self._thread.start()
        self._changed.set()

    def remove(self, hold: Hold) -> None:
        with self._lock:
            self._beats.remove(hold)
        self._changed.set()

    def close(self) -> None:
        """Leases that are held run out by themselves from now on."""
        with self._lock:
            self._beats.clear()
        self._changed.set()
        if self._line is not None:
            self._line.close()

    def turn(self) -> float | None:
        """Renews what is due; the seconds until the next is, or None when there are no more."""
        self._changed.clear()
        with self._lock:
            if not self._beats:
                self._thread = None
                if self._line is not None:
                    self._line.close()
                return None
            wait = self._beats.wait()
            holds = self._beats.take() if wait <= 0 else []
        if holds:
            executor = self._database if self._line is None else cast(Database, self._line)  # flows of calls alone
            try:
                again = drive(renew(holds), executor)
            except Exception as error:
                log.warning("heartbeats failed, trying again: %s", error)
                again = holds
            with self._lock:
                self._beats.hasten(again)
                wait = self._beats.wait()
        return max(wait, 0)


def _give_up(changed: threading.Event, line: Line | None) -> None:
    changed.set()
    if line is not None:
        line.close()


def _beat(reference: ref[Heartbeats], changed: threading.Event) -> None:
    while (heartbeats := reference()) is not None:
        wait = heartbeats.turn()
        del heartbeats
        if wait is None:
            return
        changed.wait(wait)


class AsyncHeartbeats:
    """One task that renews the leases of all runs of this event loop, as :class:`Heartbeats` does; who loses one has
    its work cancelled.
    """

    def __init__(self, database: AsyncDatabase) -> None:
        self._line = database.line() if database.has_connections else None
        self._database = database
        self._begin()

    def _begin(self) -> None:
        self._beats = Beats()
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def add(self, hold: Hold) -> None:
        self._beats.add(hold)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(_beat_async(ref(self), self._changed), name="tidebase-heartbeat")
        self._changed.set()

    def remove(self, hold: Hold) -> None:
        self._beats.remove(hold)
        if not self._beats:
            self.close()

    def close(self) -> None:
        """Leases that are held run out by themselves from now on."""
        self._beats.clear()
        if self._task is not None:
            self._task.cancel()
            self._task = None
        if self._line is not None:
            self._line.close()

    async def turn(self) -> float | None:
        """Renews what is due; the seconds until the next is, or None when there are no more."""
        self._changed.clear()
        if not self._beats:
            return None
        wait = self._beats.wait()
        holds = self._beats.take() if wait <= 0 else []
        if holds:
            executor = self._database if self._line is None else cast(AsyncDatabase, self._line)  # flows of calls alone
            try:
                again = await drive_async(renew(holds), executor)
            except Exception as error:
                log.warning("heartbeats failed, trying again: %s", error)
                again = holds
            self._beats.hasten(again)
            wait = self._beats.wait()
        return max(wait, 0)


async def _beat_async(reference: ref[AsyncHeartbeats], changed: asyncio.Event) -> None:
    while (heartbeats := reference()) is not None:
        wait = await heartbeats.turn()
        del heartbeats
        if wait is None:
            return
        await ring(changed, wait)


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
