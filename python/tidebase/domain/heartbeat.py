"""Heartbeats: one thread, or one task, renews all the leases of a process, over a connection of its own.

What is to be renewed when is the same for both (:class:`Beats`). How the thread and the task begin and end is not, and
is written for each: a thread must be let go on to the end of its call, is told so by its event, closes the line behind
itself, and begins anew in a child of a fork; a task is cancelled, whoever does that closes the line, and what belongs
to an event loop is made in it.
"""

from __future__ import annotations

import heapq
import itertools
import logging
import time
from contextlib import AbstractContextManager
from datetime import timedelta
from typing import cast
from weakref import finalize, ref

import psycopg

from ..core import _tasks, _threads
from ..core.database import Database
from ..core.database_async import AsyncDatabase
from ..core.errors import TidebaseError, from_postgres
from ..core.flow import Flow, drive, drive_async
from ..core.forked import inherit
from ..core.line import Line
from .lease import Hold, leases_held, renew_leases

log = logging.getLogger("tidebase.lease")

#: After so many seconds at most it goes out again when it failed, or somebody had the run locked.
_AGAIN_S = 0.5


class Missed:
    """How many heartbeats of this process went out too late, or failed: each was one of three in a lease."""

    count = 0


missed = Missed()

#: A heartbeat goes out when a third of the lease has passed: two may be lost before it runs out.
_BEATS = 3


def renew(holds: list[Hold]) -> Flow[list[Hold]]:
    """One heartbeat of runs, which waits for nobody: one call. Returns the holds whose run somebody has locked just
    now, who is at work on it; a lease that was not renewed for another reason is lost, and one more call learns why.
    """
    run_ids, tokens = [hold.run_id for hold in holds], [hold.token for hold in holds]
    renewed = yield renew_leases(run_ids=run_ids, tokens=tokens, ttl=timedelta(seconds=holds[0].lease_s))
    names = {renewal.run_id for renewal in renewed}
    left = [hold for hold in holds if hold.run_id not in names and not hold.ended.is_set()]
    if not left:
        return []
    held = yield leases_held([hold.run_id for hold in left], [hold.token for hold in left])
    for hold in left:
        if hold.run_id in held or hold.ended.is_set():
            continue
        try:
            yield hold.renewal()  # which meets no row to wait for: it only says what became of the lease
        except (TidebaseError, psycopg.Error) as error:
            known = error if isinstance(error, TidebaseError) else from_postgres(error)
            if not hold.ended.is_set() and not hold.may_have_caused(known):
                hold.accept(known)
    return [hold for hold in left if hold.run_id in held]


class Beats:
    """When the heartbeat of each run is due. Runs with leases of one length are put together when they are due soon.

    Nobody's hold is kept alive by this: a lease that nobody works under any more is not renewed for ever.

    Args:
        lock: keeps threads out of each other's way.
    """

    def __init__(self, lock: AbstractContextManager[object]) -> None:
        self._lock = lock
        self._holds: dict[ref[Hold], int] = {}  # with the number of its place in the plan
        self._due: list[tuple[float, int, ref[Hold]]] = []
        self._numbers = itertools.count()

    def __bool__(self) -> bool:
        return bool(self._holds)

    def add(self, hold: Hold) -> bool:
        """Plans it; whether it is the next one that is due."""
        run_id, holds = hold.run_id, self._holds

        def forget(reference: ref[Hold]) -> None:
            if holds.pop(reference, None) is not None:
                log.warning("run %s: nobody works on it any more, so its lease runs out; close a session", run_id)

        self._plan(ref(hold, forget), hold.lease_s / _BEATS)
        return self._due[0][2]() is hold

    def remove(self, hold: Hold) -> None:
        self._holds.pop(ref(hold), None)  # and from the plan when its turn comes

    def clear(self) -> None:
        self._holds.clear()
        self._due.clear()

    def turn(self) -> Flow[float]:
        """Renews what is due: a flow of calls alone. Returns the seconds until the next is."""
        with self._lock:
            wait = self.wait()
            holds = self.take() if wait <= 0 else []
        if holds:
            try:
                again = yield from renew(holds)
            except Exception as error:
                log.warning("heartbeats failed, trying again: %s", error)
                missed.count += len(holds)
                again = holds
            with self._lock:
                self.hasten(again)
                wait = self.wait()
        return max(wait, 0)

    def wait(self) -> float:
        """Seconds until the next one is due."""
        return self._due[0][0] - time.monotonic() if self._due else 0.0

    def take(self) -> list[Hold]:
        """Those that are due, at most a thousand, which are planned again."""
        taken: list[Hold] = []
        soon = time.monotonic()
        while self._due and self._due[0][0] <= soon and len(taken) < 1000:
            due, number, reference = self._due[0]
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
            if time.monotonic() - due > hold.lease_s / _BEATS:
                missed.count += 1
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
    the pool nor for a lock. It ends when its next turn comes and there is no run any more (one run after the other does
    not begin a thread each), and when this is closed or nobody refers to it.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._begin()
        inherit(self)

    def _begin(self) -> None:
        self._line = self._database.line() if self._database.has_connections else None
        self._lock = _threads.Lock()
        self._beats = Beats(self._lock)
        self._changed = _threads.Event()
        self._thread: _threads.Task | None = None
        self._end = finalize(self, _give_up, self._changed, self._line)
        self._end.atexit = False

    def begin_anew(self) -> None:
        """The leases that the parent holds are renewed by the parent."""
        self._end.detach()  # who has the locks that it takes may not be here
        self._beats.clear()
        self._begin()

    def add(self, hold: Hold) -> None:
        with self._lock:
            is_next = self._beats.add(hold)
            if not _threads.is_alive(self._thread):
                self._thread = _threads.spawn(_beat, ref(self), self._changed, name="tidebase-heartbeat")
        if is_next:
            self._changed.set()

    def remove(self, hold: Hold) -> None:
        with self._lock:
            self._beats.remove(hold)

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
        executor = self._database if self._line is None else cast(Database, self._line)
        return drive(self._beats.turn(), executor)


def _give_up(changed: _threads.Event, line: Line | None) -> None:
    changed.set()
    if line is not None:
        line.close()


def _beat(reference: ref[Heartbeats], changed: _threads.Event) -> None:
    while (heartbeats := reference()) is not None:
        wait = heartbeats.turn()
        del heartbeats
        if wait is None:
            return
        _threads.ring(changed, wait)


class AsyncHeartbeats:
    """One task that renews the leases of all runs of this event loop, as :class:`Heartbeats` does; who loses one has
    its work cancelled.
    """

    def __init__(self, database: AsyncDatabase) -> None:
        self._line = database.line() if database.has_connections else None
        self._database = database
        self._beats = Beats(_tasks.Lock())
        self._changed = _tasks.Event()
        self._task: _tasks.Task | None = None

    def add(self, hold: Hold) -> None:
        is_next = self._beats.add(hold)
        if not _tasks.is_alive(self._task):
            self._task = _tasks.spawn(_beat_async, ref(self), self._changed, name="tidebase-heartbeat")
        if is_next:
            self._changed.set()

    def remove(self, hold: Hold) -> None:
        self._beats.remove(hold)
        if not self._beats:
            self.close()

    def close(self) -> None:
        """Leases that are held run out by themselves from now on."""
        self._beats.clear()
        _tasks.stop(self._task)
        self._task = None
        if self._line is not None:
            self._line.close()

    async def turn(self) -> float | None:
        """Renews what is due; the seconds until the next is, or None when there are no more."""
        self._changed.clear()
        if not self._beats:
            return None
        executor = self._database if self._line is None else cast(AsyncDatabase, self._line)
        return await drive_async(self._beats.turn(), executor)


async def _beat_async(reference: ref[AsyncHeartbeats], changed: _tasks.Event) -> None:
    while (heartbeats := reference()) is not None:
        wait = await heartbeats.turn()
        del heartbeats
        if wait is None:
            return
        await _tasks.ring(changed, wait)
