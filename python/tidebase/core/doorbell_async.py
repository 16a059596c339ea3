"""The doorbell: one connection a process, to each database, that listens for news of the runs somebody waits for.

With asyncio it is one an event loop.

A notification only ends a wait early. Whoever waits looks again by itself every now and then, so a doorbell that is out
of order (a lost connection, a pooler that drops LISTEN) costs a moment, never an answer.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import psycopg

from ._tasks import GLANCE_S, Event, Lock, Task, is_alive, rest, ring, spawn, stop

if TYPE_CHECKING:
    from .database_async import AsyncDatabase

log = logging.getLogger("tidebase.doorbell")
CHANNEL = "tidebase_events"

#: How long a broken listening connection is left alone, in seconds.
_REST_S = 5.0


class AsyncDoorbell:
    """Wakes tasks that wait for a run.

    Attributes:
        heard_of: by which map of several databases it listens.
    """

    def __init__(self, database: AsyncDatabase) -> None:
        self._database = database
        self._waiting: dict[str, set[Event]] = defaultdict(set)
        self._overhearing: set[Callable[[str], object]] = set()
        self._lock = Lock()
        self._listeners: dict[AsyncDatabase, tuple[Task, Event]] = {}
        self.heard_of: object = None

    @contextmanager
    def listening(self, *run_ids: str) -> Iterator[Event]:
        """An event that is set when the bell rings for one of the runs, for as long as the block takes. Clear it, look,
        wait for it: whatever comes after the look ends the wait. A queue is rung for as ``queue:`` and its name.
        """
        rung = Event()
        with self._lock:
            for run_id in run_ids:
                self._waiting[run_id].add(rung)
            self._begin()
        try:
            yield rung
        finally:
            with self._lock:
                for run_id in run_ids:
                    self._waiting[run_id].discard(rung)
                    if not self._waiting[run_id]:
                        del self._waiting[run_id]

    @contextmanager
    def overhearing(self, hear: Callable[[str], object]) -> Iterator[None]:
        """In the block ``hear`` is called by who listens with every run for which the bell rings, for whomever."""
        with self._lock:
            self._overhearing.add(hear)
            self._begin()
        try:
            yield
        finally:
            with self._lock:
                self._overhearing.discard(hear)

    async def wait(self, run_id: str, seconds: float) -> None:
        """Returns when the bell rings for the run, or when the time is over."""
        with self.listening(run_id) as rung:
            await ring(rung, seconds)

    def moved(self, heard_of: object) -> None:
        """Runs may be in other databases than before: it listens there."""
        with self._lock:
            self.heard_of = heard_of
            self._end(self._listeners.keys() - set(self._database.ringing(None)))
            if self._waiting or self._overhearing:
                self._begin()

    def close(self) -> None:
        """Stops listening; who waits next listens again."""
        with self._lock:
            self._end(set(self._listeners))

    # What follows is done under the lock.

    def _begin(self) -> None:
        """Somebody listens from now on."""
        if not self._database.has_connections:
            return
        for database in self._database.ringing(None if self._overhearing else self._waiting):
            listener, closed = self._listeners.get(database, (None, Event()))
            if not is_alive(listener):
                task = spawn(self._listen, database, closed, name="tidebase-doorbell")
                self._listeners[database] = task, closed

    def _end(self, databases: Collection[AsyncDatabase]) -> None:
        for database in databases:
            listener, closed = self._listeners.pop(database)
            closed.set()
            stop(listener)

    async def _listen(self, database: AsyncDatabase, closed: Event) -> None:
        while not closed.is_set():
            try:
                async with await database.listener() as connection:
                    await connection.execute(f"listen {CHANNEL}")  # a constant
                    while not closed.is_set():
                        async for notification in connection.notifies(timeout=GLANCE_S):
                            self._ring(notification.payload)
            except psycopg.Error as error:
                if closed.is_set():
                    return
                log.warning("the doorbell is out of order, waits only poll for now: %s", error)
                await rest(closed, _REST_S)

    def _ring(self, run_id: str) -> None:
        with self._lock:
            for rung in self._waiting.get(run_id, ()):
                rung.set()
            for hear in self._overhearing:
                hear(run_id)
