"""``GET /overview/runs/events``: a list of runs as it changes, as server-sent events.

The first message, ``list``, has the newest runs that a filter finds among the newest of all, and in ``since`` the
oldest of those that were looked at (null: all were); ``change`` has those that came or changed after that, and in
``gone`` the ids of those that fit no more; ``counts`` says how many there are in each status. Who connects again begins
with ``list``. With ``?alive=1`` there is an ``alive`` where nothing was told for a while.

The doorbell rings for who watches one run, and ringing for all would cost every worker. So the database is asked every
second, only while somebody looks, once for all who look at the same list, and more rarely where the answer takes long.
Who reads slowly gets the latest state when he comes to it; nothing is kept for him.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

import msgspec
from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.requests import Request
from starlette.responses import Response

from ..core._tasks import to_its_end
from ..core.database_async import AsyncDatabase
from ..domain import calls
from ..domain.calls import Call, RunCount
from . import shapes
from .events import HEARTBEAT_S, RETRY_MS, STALLED_S, ping
from .overview import Found, ListedRun, filters, searched, told
from .refusal import Refused

R = TypeVar("R")

#: How many of the newest runs are followed, and among how many they are looked for.
WINDOW, EFFORT = 100, 2000

#: How often the database is asked at most, in seconds, for a list and for how many there are; and the share of the time
#: that the asking may take.
PAUSE_S, COUNTS_S = 1.0, 3.0
_SHARE = 0.2

#: How many different lists may be looked at through one process.
MOST = 100

_encode = msgspec.json.Encoder(decimal_format="number").encode


class Watched(Generic[R]):
    """What one call finds, asked again and again for all who look at it."""

    def __init__(self, database: AsyncDatabase, call: Call[R], pause_s: float) -> None:
        self._database = database
        self._call = call
        self._pause_s = pause_s
        self._changed = asyncio.Event()
        self._task = asyncio.create_task(self._look())
        self.viewers = 0
        self.found: R | None = None
        self.error: Exception | None = None

    def stop(self) -> None:
        """Nobody looks any more."""
        self._task.cancel()

    async def changes(self) -> AsyncIterator[R]:
        """What is found, and again whenever that is something else."""
        seen: R | None = None
        while True:
            changed = self._changed
            if self.error is not None:
                raise self.error
            if self.found is not None and self.found is not seen:
                seen = self.found
                yield seen
            else:
                await changed.wait()

    async def _look(self) -> None:
        try:
            while True:
                begun = time.monotonic()
                found = await to_its_end(self._database.execute(self._call))
                if found != self.found:
                    self.found = found
                    self._tell()
                await asyncio.sleep(max(self._pause_s, (time.monotonic() - begun) / _SHARE))
        except Exception as error:  # whatever it is, those who look must not wait for ever
            self.error = error
            self._tell()

    def _tell(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


class Lists:
    """The lists that somebody looks at in this process."""

    def __init__(self, database: AsyncDatabase) -> None:
        self._database = database
        self._watched: dict[Any, Watched[Any]] = {}

    def require_room(self, call: Call[Any]) -> None:
        """Raises Refused where too many others are looked at."""
        if _key(call) not in self._watched and len(self._watched) >= MOST:
            raise Refused(503, error="too many different lists are looked at", code="busy")

    @contextmanager
    def watching(self, call: Call[R], pause_s: float = PAUSE_S) -> Iterator[Watched[R]]:
        """What a call finds, for as long as the block takes."""
        key = _key(call)
        watched = self._watched.get(key)
        if watched is None or watched.error is not None:
            self.require_room(call)
            watched = self._watched[key] = Watched(self._database, call, pause_s)
        watched.viewers += 1
        try:
            yield watched
        finally:
            watched.viewers -= 1
            if watched.viewers == 0:
                watched.stop()
                if self._watched.get(key) is watched:
                    del self._watched[key]

    async def messages(self, call: Call[Found]) -> AsyncIterator[ServerSentEvent]:
        """What is told about a list."""
        yield ServerSentEvent(retry=RETRY_MS, comment="a list follows")
        with self.watching(call) as runs, self.watching(calls.count_runs(), COUNTS_S) as counts:
            queue: asyncio.Queue[ServerSentEvent | Exception] = asyncio.Queue(maxsize=1)
            tasks = [
                asyncio.create_task(_into(queue, _of_runs(runs))),
                asyncio.create_task(_into(queue, _of_counts(counts))),
            ]
            try:
                while True:
                    message = await queue.get()
                    if isinstance(message, Exception):
                        raise message
                    yield message
            finally:
                for task in tasks:
                    task.cancel()


def _key(call: Call[Any]) -> Any:
    return asyncio.get_running_loop(), call.query, call.parameters


async def _into(queue: asyncio.Queue[ServerSentEvent | Exception], messages: AsyncIterator[ServerSentEvent]) -> None:
    try:
        async for message in messages:
            await queue.put(message)
    except Exception as error:
        await queue.put(error)


async def _of_runs(watched: Watched[Found]) -> AsyncIterator[ServerSentEvent]:
    before: dict[str, ListedRun] | None = None
    async for found in watched.changes():
        now = {row.run_id: row for row in found.runs}
        if before is None:
            since = found.since and {"createdAt": shapes.moment(found.since[0]), "runId": found.since[1]}
            yield _message("list", {"runs": [told(row) for row in found.runs], "window": WINDOW, "since": since})
        else:
            # What is older than all that was looked at was only pushed out by newer ones: it may fit as before.
            gone = [
                run_id
                for run_id, row in before.items()
                if run_id not in now and (found.since is None or (row.created_at, row.run_id) > found.since)
            ]
            changed = [told(row) for row in found.runs if before.get(row.run_id) != row]
            if changed or gone:
                yield _message("change", {"runs": changed, "gone": gone})
        before = now


async def _of_counts(watched: Watched[list[RunCount]]) -> AsyncIterator[ServerSentEvent]:
    async for counts in watched.changes():
        yield _message("counts", {"counts": [told(count) for count in counts]})


def _message(kind: str, data: Any) -> ServerSentEvent:
    return ServerSentEvent(_encode(data).decode(), event=kind)


async def stream(request: Request) -> Response:
    """The endpoint."""
    lists: Lists = request.app.state.lists
    call = searched({**filters(dict(request.query_params)), "max": WINDOW, "effort": EFFORT})
    # A look before the answer begins: a filter that is none is a 400, and a list too many a 503.
    lists.require_room(call)
    await request.app.state.database.execute(call)
    return EventSourceResponse(
        lists.messages(call),
        ping=HEARTBEAT_S,
        ping_message_factory=ping(request),
        send_timeout=STALLED_S,
        headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
    )
