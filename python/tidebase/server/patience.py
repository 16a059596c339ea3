"""For how long the gateway waits for who sends nothing, and for how many of them."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import h11
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from .refusal import Refused

#: How long a client may take for the head of a request, in seconds, from the connection on: it has shown no key yet.
HEAD_S = 10.0

#: How long a body may bring nothing, and how long it may take altogether, in seconds.
BODY_PAUSE_S = 10.0
BODY_S = 120.0


class Impatient(H11Protocol):
    """uvicorn's HTTP, which by itself waits for ever for the head of a request that was begun."""

    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._unwatch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def _watch(self) -> None:
        if self.conn.their_state is not h11.IDLE:  # the head is there
            self._unwatch()
        elif self._timer is None:
            self._timer = self.loop.call_later(HEAD_S, self._give_up)

    def _unwatch(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _give_up(self) -> None:
        self._timer = None
        if self.conn.their_state is h11.IDLE and not self.transport.is_closing():
            self.transport.abort()


class Bounded:
    """Middleware that refuses bodies that are too large, whether they say so or not, and those that do not come.

    Args:
        max_body: the largest, in bytes.
    """

    def __init__(self, app: ASGIApp, max_body: int) -> None:
        self._app = app
        self._max_body = max_body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        read, complete = 0, False
        until = asyncio.get_running_loop().time() + BODY_S

        async def bounded() -> Message:
            nonlocal read, complete
            if complete:  # now the client's leave is waited for, for as long as the answer takes
                return await receive()
            left = until - asyncio.get_running_loop().time()
            try:
                message = await asyncio.wait_for(receive(), max(min(BODY_PAUSE_S, left), 0))
            except asyncio.TimeoutError:
                raise Refused(408, error="the body of the request does not come", code="too_slow") from None
            complete = not message.get("more_body", False)
            read += len(message.get("body", b""))
            if read > self._max_body:
                raise Refused(413, error=f"the body is larger than {self._max_body} bytes", code="too_large")
            return message

        await self._app(scope, bounded, send)


class Turns:
    """So many requests about one run at a time: those about a run that somebody has locked do not take all connections.

    Args:
        at_once: how many.
    """

    def __init__(self, at_once: int) -> None:
        self._at_once = at_once
        self._places: dict[Any, asyncio.Semaphore] = {}
        self._waiting: Counter[Any] = Counter()

    @asynccontextmanager
    async def of(self, run_id: str | None) -> AsyncIterator[None]:
        """The block is done when it is this run's turn; without a run at once."""
        if run_id is None:
            yield
            return
        key = asyncio.get_running_loop(), run_id
        place = self._places.setdefault(key, asyncio.Semaphore(self._at_once))
        self._waiting[key] += 1
        try:
            async with place:
                yield
        finally:
            self._waiting[key] -= 1
            if not self._waiting[key]:
                del self._waiting[key], self._places[key]
