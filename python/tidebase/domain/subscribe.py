"""Following a run: all of its events in order, each once, until the run is over.

A reader takes what the log has behind the last number that it knows; a lost notification, connection or process only
means that it looks later. Whoever follows says so (``watch_run``) before each look, so that what is written after the
look rings the doorbell, and otherwise looks again by itself every now and then.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from datetime import timedelta
from itertools import islice
from typing import TYPE_CHECKING

from ..core._tasks import ring, to_its_end
from ..core.errors import TidebaseError
from .event import Event, read_events, watch_run

if TYPE_CHECKING:
    from ..core.database import Database
    from ..core.database_async import AsyncDatabase

#: How often a follower looks for itself, in seconds: less and less while nothing comes. Of a burst of events only the
#: first rings the doorbell, so at first that is soon.
POLL_S = 0.02
IDLE_POLL_S = 5.0

#: A run in such a status has no further events, unless a failed one is resumed.
OVER = ("completed", "failed", "cancelled")

_WATCH = timedelta(seconds=60)
_PAGE = 500

#: How many events of a run are kept for those who are a little behind; who is further behind reads them anew.
_KEPT = 1000


def refuse_joined(database: Database | AsyncDatabase) -> None:
    """Raises TidebaseError where the calls are part of a transaction, which would stay open while somebody follows."""
    if database.joined:
        raise TidebaseError(
            "a run cannot be followed inside a transaction",
            hint="Use tide.runs.subscribe: it takes a connection from the pool for each look, and gives it back.",
        )


def follow(database: Database, run_id: str, after: int) -> Iterator[Event]:
    """The events with seq > ``after``, as they come. No connection is held between them."""
    with database.doorbell.listening(run_id) as rung:
        pause = POLL_S
        while True:
            rung.clear()
            watch = database.execute(watch_run(run_id=run_id, ttl=_WATCH))
            pause = POLL_S if watch.last_seq > after else min(2 * pause, IDLE_POLL_S)
            while watch.last_seq > after:
                rows = database.execute(read_events(run_id=run_id, after=after, max=_PAGE))
                for row in rows:
                    yield row
                    after = row.seq
                if len(rows) < _PAGE:
                    break
            if watch.status in OVER and after >= watch.last_seq:
                return
            rung.wait(pause)


class Feed:
    """One reader of a run's log for all who follow it in this process.

    Attributes:
        last: the seq of the newest event that it has read.
        over: whether that is the run's last one.
    """

    def __init__(self, database: AsyncDatabase, run_id: str) -> None:
        self._database = database
        self._run_id = run_id
        self._recent: deque[Event] = deque(maxlen=_KEPT)
        self._changed = asyncio.Event()
        self.followers = 0
        self.last = 0
        self.over = False
        self.error: Exception | None = None
        self.started = asyncio.Event()
        self._reader = asyncio.create_task(self._read(), name=f"tidebase-feed-{run_id}")

    def stop(self) -> None:
        """Nobody follows any more."""
        self._reader.cancel()

    async def behind(self, after: int) -> AsyncIterator[Event]:
        """The events with seq > ``after``, as they come, until the run is over."""
        await self.started.wait()
        while True:
            changed = self._changed
            if self.error is not None:
                raise self.error
            missing = max(self.last - after, 0)
            if missing > len(self._recent):
                read = read_events(run_id=self._run_id, after=after, max=_PAGE)
                rows = await to_its_end(self._database.execute(read))
            else:
                rows = list(islice(reversed(self._recent), missing))[::-1]
            for row in rows:
                yield row
                after = row.seq
                await asyncio.sleep(0)  # who has much to catch up with lets the others go on
            if rows:
                continue
            if self.over and after >= self.last:
                return
            await changed.wait()

    async def _read(self) -> None:
        try:
            with self._database.doorbell.listening(self._run_id) as rung:
                pause = POLL_S
                while True:
                    rung.clear()
                    before = self.last
                    await self._look()
                    pause = POLL_S if self.last > before else min(2 * pause, IDLE_POLL_S)
                    await ring(rung, pause)
        except Exception as error:  # whatever it is, those who follow must not wait for ever
            self.error = error
            self._tell()

    async def _look(self) -> None:
        watch = await to_its_end(self._database.execute(watch_run(run_id=self._run_id, ttl=_WATCH)))
        if not self.started.is_set():
            self.last = watch.last_seq  # who wants older events reads them for himself
        while watch.last_seq > self.last:
            read = read_events(run_id=self._run_id, after=self.last, max=_PAGE)
            rows = await to_its_end(self._database.execute(read))
            self._recent.extend(rows)
            self.last = rows[-1].seq
            self.over = False
            self._tell()
        over = watch.status in OVER
        if over != self.over or not self.started.is_set():
            self.over = over
            self._tell()

    def _tell(self) -> None:
        self.started.set()
        self._changed.set()
        self._changed = asyncio.Event()


class Feeds:
    """The feeds of the runs that somebody follows in this process."""

    def __init__(self, database: AsyncDatabase) -> None:
        self._database = database
        self._feeds: dict[tuple[asyncio.AbstractEventLoop, str], Feed] = {}

    async def follow(self, run_id: str, after: int) -> AsyncIterator[Event]:
        """The events with seq > ``after``, as they come. No connection is held between them."""
        with self._feed(run_id) as feed:
            async for event in feed.behind(after):
                yield event

    @contextmanager
    def _feed(self, run_id: str) -> Iterator[Feed]:
        key = asyncio.get_running_loop(), run_id
        feed = self._feeds.get(key)
        if feed is None or feed.error is not None:
            feed = self._feeds[key] = Feed(self._database, run_id)
        feed.followers += 1
        try:
            yield feed
        finally:
            feed.followers -= 1
            if feed.followers == 0:
                feed.stop()
                if self._feeds.get(key) is feed:
                    del self._feeds[key]
