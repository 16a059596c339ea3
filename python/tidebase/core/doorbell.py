"""The doorbell: one connection a process that listens for news of the runs somebody waits for.

A notification only ends a wait early. Whoever waits looks again by itself every now and then, so a doorbell that is out
of order (a lost connection, a pooler that drops LISTEN) costs a moment, never an answer.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import psycopg

if TYPE_CHECKING:
    from .database import AsyncDatabase, Database

log = logging.getLogger("tidebase.doorbell")
CHANNEL = "tidebase_events"

#: How long a broken listening connection is left alone, in seconds.
_REST_S = 5.0


class Doorbell:
    """Wakes threads that wait for a run."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._waiting: dict[str, set[threading.Event]] = defaultdict(set)
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._closed = threading.Event()

    @contextmanager
    def listening(self, run_id: str) -> Iterator[threading.Event]:
        """An event that is set when the bell rings for the run, for as long as the block takes. Clear it, look, wait
        for it: whatever comes after the look ends the wait.
        """
        rung = threading.Event()
        with self._lock:
            self._waiting[run_id].add(rung)
            if (self._thread is None or not self._thread.is_alive()) and self._database.has_connections:
                arguments = (self._closed,)
                self._thread = threading.Thread(
                    target=self._listen, args=arguments, name="tidebase-doorbell", daemon=True
                )
                self._thread.start()
        try:
            yield rung
        finally:
            with self._lock:
                self._waiting[run_id].discard(rung)
                if not self._waiting[run_id]:
                    del self._waiting[run_id]

    def wait(self, run_id: str, seconds: float) -> None:
        """Returns when the bell rings for the run, or when the time is over."""
        with self.listening(run_id) as rung:
            rung.wait(seconds)

    def close(self) -> None:
        """Stops listening; who waits next listens again."""
        with self._lock:
            self._closed.set()
            self._closed, self._thread = threading.Event(), None

    def _listen(self, closed: threading.Event) -> None:
        while not closed.is_set():
            try:
                with self._database.listener() as connection:
                    connection.execute(f"listen {CHANNEL}")  # a constant
                    while not closed.is_set():
                        for notification in connection.notifies(timeout=1.0):
                            self._ring(notification.payload)
            except psycopg.Error as error:
                if closed.is_set():
                    return
                log.warning("the doorbell is out of order, waits only poll for now: %s", error)
                closed.wait(_REST_S)

    def _ring(self, run_id: str) -> None:
        with self._lock:
            for rung in self._waiting.get(run_id, ()):
                rung.set()


async def ring(rung: asyncio.Event, seconds: float) -> None:
    """Returns when the event is set; after so many seconds it is set, come what may.

    ``asyncio.wait_for`` of Python before 3.12 can forget that its task was cancelled (bpo-37658).
    """
    timer = asyncio.get_running_loop().call_later(seconds, rung.set)
    try:
        await rung.wait()
    finally:
        timer.cancel()


class AsyncDoorbell:
    """Wakes tasks that wait for a run."""

    def __init__(self, database: AsyncDatabase) -> None:
        self._database = database
        self._waiting: dict[str, set[asyncio.Event]] = defaultdict(set)
        self._task: asyncio.Task[None] | None = None

    @contextmanager
    def listening(self, run_id: str) -> Iterator[asyncio.Event]:
        """An event that is set when the bell rings for the run; see :meth:`Doorbell.listening`."""
        rung = asyncio.Event()
        self._waiting[run_id].add(rung)
        if (self._task is None or self._task.done()) and self._database.has_connections:
            self._task = asyncio.create_task(self._listen(), name="tidebase-doorbell")
        try:
            yield rung
        finally:
            self._waiting[run_id].discard(rung)
            if not self._waiting[run_id]:
                del self._waiting[run_id]

    async def wait(self, run_id: str, seconds: float) -> None:
        """Returns when the bell rings for the run, or when the time is over."""
        with self.listening(run_id) as rung:
            await ring(rung, seconds)

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            self._task = None

    async def _listen(self) -> None:
        while True:
            try:
                async with await self._database.listener() as connection:
                    await connection.execute(f"listen {CHANNEL}")  # a constant
                    async for notification in connection.notifies():
                        for rung in self._waiting.get(notification.payload, ()):
                            rung.set()
            except psycopg.Error as error:
                log.warning("the doorbell is out of order, waits only poll for now: %s", error)
                await asyncio.sleep(_REST_S)
