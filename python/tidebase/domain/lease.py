"""Leases: getting one, keeping it while a step takes its time, noticing its loss."""

from __future__ import annotations

import logging
import os
import secrets
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Literal, get_args
from weakref import WeakSet

from ..core.behind import Behind
from ..core.call import Call, Json, Value, many, one, rows_of, scalar
from ..core.errors import (
    InvalidArgument,
    LeaseLostError,
    RunCancelledError,
    RunFinal,
    RunNotFound,
    RunSuspendedError,
    TidebaseError,
)
from ..core.flow import Flow
from ..core.mark import Answer, Mark
from ..core.tracing import NO_TRACE, Trace
from .recall import Recall


@dataclass(frozen=True)
class Lease:
    """Answer of acquire_run; see the type tidebase.lease. ``traceparent``: the span to link to."""

    outcome: str
    token: int | None
    attempt: int | None
    workflow: str | None
    input: Json | None
    result: Json | None
    holder: str | None
    expires_at: datetime | None
    checkpoints: int | None
    traceparent: str | None
    has_budget: bool | None


@dataclass(frozen=True)
class Renewal:
    """A lease that was renewed; see the type tidebase.renewal."""

    run_id: str
    expires_at: datetime


@dataclass(frozen=True)
class Attempt:
    """A lease that was granted, as the view run_attempts has it; ``outcome`` is None while it lasts.

    ``lapsed_at``: the end of its lease that ``reconcile`` saw pass last; nothing has ended by that.
    """

    run_id: str
    attempt: int
    lease_token: int
    holder: str
    code_version: str | None
    started_at: datetime
    ended_at: datetime | None
    outcome: str | None
    error: Value
    traceparent: str | None
    lapsed_at: datetime | None


acquire_run = one(
    "acquire_run",
    Lease,
    run_id="text",
    holder="text",
    ttl="interval",
    code_version="text",
    request_id="text",
    traceparent="text",
)
renew_lease = scalar("renew_lease", run_id="text", token="bigint", ttl="interval")
renew_leases = many("renew_leases", Renewal, run_ids="text[]", tokens="bigint[]", ttl="interval")
release_run = scalar("release_run", run_id="text", token="bigint")
withdraw_grant = scalar("withdraw_grant", run_id="text", request_id="text")


def keep_lease(run_id: str, token: int, ttl: timedelta) -> Call[datetime | None]:
    """Renews a lease for ``ttl`` from now at least: it does not end sooner than it would have."""
    query = """
        select tidebase.renew_lease(run_id, %s::bigint,
          greatest(%s::interval, least(lease_expires_at - statement_timestamp(), '1 day'::interval)))
        from tidebase.run_overview where run_id = %s"""
    return Call(query, (token, ttl, run_id), lambda rows: rows[0][0] if rows else None, places=(run_id,))


def run_attempts(run_id: str) -> Call[list[Attempt]]:
    """Who worked on a run, and when, in that order."""
    return rows_of("run_attempts", Attempt, "lease_token", run_id=run_id)


def leases_held(run_ids: Sequence[str], tokens: Sequence[int]) -> Call[set[str]]:
    """Those of these runs whose lease is the one with this token: read without a lock, so nobody is waited for."""
    query = """select r.run_id from tidebase.run_overview r
      join unnest(%s::text[], %s::bigint[]) l (run_id, token) on l.run_id = r.run_id and l.token = r.lease_token
      where r.run_id = any(%s) and r.status = 'running'"""
    return Call(query, (list(run_ids), list(tokens), list(run_ids)), lambda rows: {row[0] for row in rows})


log = logging.getLogger("tidebase.lease")

#: Whether each checkpoint is stored before the work goes on, or on its way meanwhile.
Checkpointing = Literal["each", "behind"]


def require_checkpointing(checkpoints: str, has_connections: bool) -> None:
    """Raises InvalidArgument: there is no such way to write checkpoints, or not on the caller's one connection, which
    would be used while the caller uses it.
    """
    if checkpoints not in get_args(Checkpointing):
        raise InvalidArgument(f"checkpoints must be 'each' or 'behind', and not {checkpoints!r}")
    if checkpoints == "behind" and not has_connections:
        raise InvalidArgument(
            "checkpoints='behind' needs connections beside the one that is given",
            hint="Give a connection string or a pool.",
        )


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


#: Nothing is waited for.
_SETTLED: Future[None] = Future()
_SETTLED.set_result(None)


class InFlight:
    """The steps and children of a run that are at work in this process: what is paid for, and will be stored."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._works: dict[tuple[object, object], Mark | None] = {}
        self._waiting: list[tuple[int, Future[None]]] = []

    @contextmanager
    def work(self, name: object, mark: Mark | None = None) -> Iterator[None]:
        """One of them, for as long as the block takes. ``mark``: its start, if that is not written yet."""
        key = self.enter(name, mark)
        try:
            yield
        finally:
            self.leave(key)

    def enter(self, name: object, mark: Mark | None = None) -> tuple[object, object]:
        """One of them begins; what :meth:`leave` is to be given. What every step does needs no context manager."""
        key = (name, object())
        with self._lock:
            self._works[key] = mark
        return key

    def leave(self, key: tuple[object, object]) -> None:
        """It has ended."""
        with self._lock:
            del self._works[key]
            if not self._waiting:
                return
            ready = [future for most, future in self._waiting if len(self._works) <= most]
            self._waiting = [(most, future) for most, future in self._waiting if len(self._works) > most]
        for future in ready:
            future.set_result(None)

    def settled(self, most: int = 0) -> Future[None]:
        """Is done once no more than so many are at work."""
        with self._lock:
            if len(self._works) <= most:
                return _SETTLED
            future: Future[None] = Future()
            self._waiting.append((most, future))
        return future

    def marks(self) -> list[Mark]:
        """The starts of those that nobody has written yet."""
        if not self._works:  # what begins later is not meant
            return []
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
    call: Call[Any]


@dataclass(eq=False)
class Hold:
    """A lease that is held: what every call carries, and whether it is known to be lost.

    Attributes:
        lost: the error that ended it, once the heartbeat has met one.
        ended: set then, and when the work is over.
        ends: whether its run is being completed: what may have become of the lease by that is for that call to say.
        marks_late: whether the start of a step may be written while it is at work (see ``mark``).
        behind: the checkpoints that are on their way while the work goes on, where it need not wait for each.
        recall: makes the ids of what is written outside of steps, where the work begins from the top at a resume: of a
            workflow, not of a session.
        in_flight: its steps and children that are at work.
        departure: set when it is to be given up: what is in flight ends first, and nothing new begins.
        review: set when a person must decide about a step: the database may have given the lease up for that.
        session: whether it is that of a session, which nobody unwinds.
        suspends: whether the run waits in the database where nothing else is said: who works on it has others to do.
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
    ends: bool = False
    on_lost: Callable[[TidebaseError], None] | None = None
    trace: Trace = NO_TRACE
    marks_late: bool = False
    behind: Behind | None = None
    recall: Recall | None = None
    in_flight: InFlight = field(default_factory=InFlight)
    departure: Departure | None = None
    review: TidebaseError | None = None
    session: bool = False
    suspends: bool = False
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
        self.depart(Departure(error, release_run(run_id=self.run_id, token=self.token)))

    def is_to_suspend(self, told: bool | None) -> bool:
        """Whether to wait in the database. Inside a step only where it is told so: the step would be done again."""
        return told if told is not None else self.suspends and current_hold.get() is not self

    def begin(self) -> None:
        """Something new is to begin: raises what ended the lease, or that it is being given up. Not what a step in
        flight does: that ends first.
        """
        self.check()
        if self.behind is not None:
            self.behind.check()
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

    def renewal(self) -> Call[Any]:
        return renew_lease(run_id=self.run_id, token=self.token, ttl=timedelta(seconds=self.lease_s))

    def may_have_caused(self, error: TidebaseError) -> bool:
        """Whether a heartbeat may have met what the call that completes the run has done, before its answer is here.
        That somebody else has the lease, or that the run is cancelled, is no work of that call, which may hang.
        """
        if not self.ends or isinstance(error, RunCancelledError):
            return False
        return not isinstance(error, LeaseLostError) or error.detail.get("current_token") == self.token

    def accept(self, error: TidebaseError) -> None:
        """Takes what a heartbeat was answered: a lease that is gone ends the hold, anything else is tried again."""
        if isinstance(error, (LeaseLostError, RunCancelledError, RunFinal, RunNotFound)):
            self.lose(error)
        else:
            log.warning("run %s: heartbeat failed, trying again: %s", self.run_id, error)


def all_stored(hold: Hold) -> Flow[None]:
    """Waits until all is stored that the work was told. Raises what was not: the work cannot go on without it."""
    if hold.behind is not None:
        yield from hold.behind.settled()


def at_rest(hold: Hold, most: int = 0) -> Flow[None]:
    """Waits until no more than so many steps and children are at work, and nothing of theirs is on its way."""
    yield Answer(hold.in_flight.settled(most))
    yield from drained(hold)


def drained(hold: Hold) -> Flow[None]:
    """Waits until nothing is on its way."""
    if hold.behind is not None:
        yield from hold.behind.drained()


def depart(hold: Hold, departure: Departure) -> Flow[None]:
    """Asks for the lease to be given up. A workflow is unwound first, so this raises what the caller is to let pass. A
    session has nobody who would unwind it: it waits for what is in flight, and then gives the lease up, unless what it
    would wait for has come.
    """
    hold.depart(departure)
    if not hold.session:
        raise departure.error
    yield from at_rest(hold, 1 if current_hold.get() is hold else 0)
    waits: Any = yield departure.call
    if waits is not False:
        raise departure.error
    hold.departure = None
