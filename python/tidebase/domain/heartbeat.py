"""Heartbeats: one thread, or one task, renews all the leases of a process, over a connection of its own."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import logging
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, cast
from weakref import finalize, ref

import psycopg

from ..core.database import AsyncDatabase, Database
from ..core.doorbell import ring
from ..core.errors import TidebaseError, from_postgres
from ..core.flow import Flow, drive, drive_async
from ..core.forked import inherit
from ..core.line import Line
from .lease import Hold, leases_held, renew_leases

log = logging.getLogger("tidebase.lease")

#: After so many seconds at most it goes out again when it failed, or somebody had the run locked.
_AGAIN_S = 0.5

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
