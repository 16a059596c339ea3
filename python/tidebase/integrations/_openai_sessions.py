"""Sessions of the OpenAI Agents SDK, in streams of runs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, cast

from agents import SessionSettings, TResponseInputItem

from ..client.work_async import AsyncRunSession
from ..core import codec
from ..core.errors import NotFound, RunNotFound
from ..domain.state import set_state

if TYPE_CHECKING:
    from ..client.tide_async import AsyncTidebase

#: The workflow of the runs that sessions are kept in, and the stream that says which pages there are.
SESSION, _HEAD = "openai-agents-session", "head"

#: Nobody is missed while nobody works with it.
_METADATA = {"tidebase.session": True}

#: How much a page of a session has, when another one is begun.
_PAGE_ITEMS, _PAGE_BYTES = 100, 64_000


#: The sessions whose turn the code at hand is part of.
_turns: ContextVar[tuple[TidebaseSession, ...]] = ContextVar("tidebase_turns", default=())


class TidebaseSession:
    """A conversation that is kept in Postgres: a ``Session`` of the SDK.

    Its items are in streams of the run ``session:<id>``, in pages. Each write is made under the lease of that run, so
    writes of several workers come one after the other, and none is lost. As a context manager, and while a
    ``DurableRunner`` works with it, it holds the lease for a whole turn: nobody else's items come in between.

    Args:
        session_id: names it, and is the same in each process.
        tide: where it is kept.
        wait_s: how long to wait while another worker holds it, in seconds, before RunHeld is raised. By default for
            longer than a lease lasts that nobody renews.
        session_settings: the SDK's: how many items are read by default.
    """

    def __init__(
        self,
        session_id: str,
        tide: AsyncTidebase,
        *,
        wait_s: float | None = None,
        session_settings: SessionSettings | None = None,
    ) -> None:
        self.session_id = session_id
        self.session_settings = session_settings
        self._tide = tide
        self._wait_s = tide.lease_s + 30.0 if wait_s is None else wait_s
        self._held: AsyncRunSession | None = None
        self._turn, self._lock = asyncio.Lock(), asyncio.Lock()

    @property
    def run_id(self) -> str:
        """The run that it is kept in."""
        return f"session:{self.session_id}"

    async def __aenter__(self) -> TidebaseSession:
        turns = _turns.get()
        if self not in turns:
            await self._turn.acquire()
            try:
                self._held = await self._attach()
            except BaseException:
                self._turn.release()
                raise
        _turns.set((*turns, self))
        return self

    async def __aexit__(self, *exc: object) -> None:
        *turns, _ = _turns.get()
        _turns.set(tuple(turns))
        if self in turns:
            return
        held, self._held = self._held, None
        try:
            if held is not None:
                await held.close()
        finally:
            self._turn.release()

    async def get_items(self, limit: int | None = None) -> list[TResponseInputItem]:
        """The items, oldest first: all, or the latest ``limit``."""
        return await self.read(await self.seq(), limit)

    async def add_items(self, items: list[TResponseInputItem]) -> None:
        """Appends items, all or none."""
        await self.write(items, None)

    async def pop_item(self) -> TResponseInputItem | None:
        """Takes the latest item away and returns it; None when there is none."""
        return await self.pop(None)

    async def clear_session(self) -> None:
        """Takes all items away. What was there stays in the history of the run, until that is compacted or purged."""
        await self.clear(None)

    async def seq(self) -> int:
        """The moment that this is: everything is read as it was then. 0: there is nothing yet."""
        try:
            return (await self._tide.runs.get(self.run_id)).last_seq
        except RunNotFound:
            return 0

    async def read(self, seq: int, limit: int | None) -> list[TResponseInputItem]:
        """The items as they were at a moment."""
        if limit is None and self.session_settings is not None:
            limit = self.session_settings.limit
        if not seq or (limit is not None and limit <= 0):
            return []
        epoch, page = await self._head(seq)
        items: list[TResponseInputItem] = []
        while page and (limit is None or len(items) < limit):
            items = [*(await self._page(epoch, page, seq)), *items]
            page -= 1
        return items if limit is None else items[-limit:]

    async def _head(self, seq: int) -> tuple[int, int]:
        """Which pages there are: of the how manieth conversation, and how many."""
        head = await self._stream(_HEAD, seq)
        return (head["epoch"], head["pages"]) if head else (1, 0)

    async def _page(self, epoch: int, page: int, seq: int) -> list[TResponseInputItem]:
        found = await self._stream(_name(epoch, page), seq)
        return cast("list[TResponseInputItem]", found["items"]) if found else []

    async def _stream(self, stream: str, seq: int) -> Any:
        try:
            return (await self._tide.runs.state(self.run_id, stream, seq=seq)).value
        except NotFound:
            return None

    async def write(self, items: list[TResponseInputItem], request: str | None) -> None:
        """Appends items; with a ``request`` once, however often it is tried."""
        if not items:
            return
        async with self._writing() as run:
            seq = await self.seq()
            epoch, page = await self._head(seq)
            there = await self._page(epoch, page, seq) if page else []
            if page and len(there) < _PAGE_ITEMS and len(codec.encode(there)) < _PAGE_BYTES:
                await self._write(run, _name(epoch, page), {"items": [*there, *items]}, request)
            else:  # nobody sees the new page before the head has it
                await self._write(run, _name(epoch, page + 1), {"items": items}, None)
                await self._write(run, _HEAD, {"epoch": epoch, "pages": page + 1}, request)

    async def pop(self, request: str | None) -> TResponseInputItem | None:
        """Takes the latest item away; with a ``request`` once."""
        async with self._writing() as run:
            if request is not None and (popped := await self._popped(request)) is not None:
                return popped
            seq = await self.seq()
            epoch, page = await self._head(seq)
            while page:
                there = await self._page(epoch, page, seq)
                if there:
                    value = {"items": there[:-1], "popped": there[-1]}
                    await self._write(run, _name(epoch, page), value, request, label=request)
                    return there[-1]
                page -= 1
                await self._write(run, _HEAD, {"epoch": epoch, "pages": page}, None)
        return None

    async def _popped(self, request: str) -> TResponseInputItem | None:
        """What an earlier try of this has popped."""
        for version in await self._tide.runs.state_versions(self.run_id, labeled=True):
            if version.label == request:
                value = (await self._tide.runs.state(self.run_id, version.stream, version=version.version)).value
                return cast("TResponseInputItem", value["popped"])
        return None

    async def clear(self, request: str | None) -> None:
        """Takes all items away; with a ``request`` once."""
        async with self._writing() as run:
            epoch, _ = await self._head(await self.seq())
            await self._write(run, _HEAD, {"epoch": epoch + 1, "pages": 0}, request)

    async def _write(
        self, run: AsyncRunSession, stream: str, value: Any, request: str | None, label: str | None = None
    ) -> None:
        """Writes a stream; with a ``request`` once, however often it is tried."""
        if request is None:
            await run.state.set(value, stream=stream)
            return
        call = set_state(
            run_id=run.run_id,
            token=run.token,
            stream=stream,
            value=codec.encode(value),
            label=label,
            request_id=request,
        )
        await self._tide._database.execute(call)

    @asynccontextmanager
    async def _writing(self) -> AsyncIterator[AsyncRunSession]:
        async with self._lock:
            if self._held is not None:
                yield self._held
                return
            async with await self._attach() as run:
                yield run

    async def _attach(self) -> AsyncRunSession:
        return await self._tide.runs.attach(SESSION, run_id=self.run_id, wait_s=self._wait_s, metadata=_METADATA)


def _name(epoch: int, page: int) -> str:
    return f"items/{epoch}/{page}"
