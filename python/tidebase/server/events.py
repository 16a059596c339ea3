"""``GET /runs/:runId/events``: a run's events as server-sent events (WHATWG HTML, section 9.2), as they come.

``id:`` is the event's seq, so a client that reconnects (``Last-Event-ID``) goes on where it was. After the last event
comes ``event: end``; whoever connects again behind it gets 204, which tells an EventSource to stop.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import datetime, timedelta, timezone

import msgspec
from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.requests import Request
from starlette.responses import Response

from ..core._tasks import to_its_end
from ..core.database_async import AsyncDatabase
from ..core.errors import InvalidArgument, NotFound
from ..domain import calls
from ..domain.calls import Event
from ..domain.subscribe import OVER, Feeds
from . import shapes
from .auth import Keyring
from .paths import parameters
from .refusal import Refused
from .routes import number

#: A comment goes out at least so often, in seconds, so that proxies keep the connection.
HEARTBEAT_S = 15

#: After how many milliseconds a client that lost the connection comes back.
RETRY_MS = 2000

#: For how many seconds a client may read nothing at all before its connection is given up.
STALLED_S = 60

_encode = msgspec.json.Encoder(decimal_format="number").encode


def stream(keyring: Keyring) -> Callable[[Request], Awaitable[Response]]:
    """The endpoint."""

    async def endpoint(request: Request) -> Response:
        run_id = parameters(request)["run_id"]
        _require_reader(keyring, request, run_id)
        after = _position(request)
        agui = _format(request) == "ag-ui"
        database: AsyncDatabase = request.app.state.database
        # A look before the answer begins: an unknown run is a 404, a run that is over and known to its end a 204.
        watch = await database.execute(calls.watch_run(run_id=run_id, ttl=timedelta(seconds=60)))
        if watch.status in OVER and 0 < watch.last_seq <= after:
            return Response(status_code=204)
        feeds: Feeds = request.app.state.feeds
        followed = feeds.follow(run_id, after)
        content = _as_agui(database, run_id, followed) if agui else _as_events(run_id, followed)
        return EventSourceResponse(
            content,
            ping=HEARTBEAT_S,
            send_timeout=STALLED_S,
            headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
        )

    return endpoint


async def _as_events(run_id: str, followed: AsyncIterator[Event]) -> AsyncIterator[ServerSentEvent]:
    yield ServerSentEvent(retry=RETRY_MS, comment="events follow")
    async for row in followed:
        data = _encode(shapes.event(run_id, row)).decode()
        kind = "message" if row.type == "end" else row.type  # as it may have been called before that was reserved
        yield ServerSentEvent(data, event=kind, id=str(row.seq))
    yield ServerSentEvent("{}", event="end")


async def _as_agui(
    database: AsyncDatabase, run_id: str, followed: AsyncIterator[Event]
) -> AsyncIterator[ServerSentEvent]:
    from ..views.agui import Translator, encode

    translator = Translator(run_id)
    async for row in followed:
        state = await _state(database, run_id, translator.needs_state(row), row)
        result = await _result(database, run_id) if row.type == "run.completed" else None
        texts = encode(translator.translate(row, state, result=result))
        for place, text in enumerate(texts, 1):
            # The number only goes with the last of them: who loses the connection in between gets them all again.
            yield ServerSentEvent(text, id=str(row.seq) if place == len(texts) else None)


async def _result(database: AsyncDatabase, run_id: str) -> object:
    return (await to_its_end(database.execute(calls.get_run(run_id=run_id)))).result


async def _state(database: AsyncDatabase, run_id: str, version: int | None, row: Event) -> object:
    from ..views.agui import AT_EVENT, NO_STATE

    if version is None:
        return NO_STATE
    moment = {"seq": row.seq} if version == AT_EVENT else {"version": version}
    try:
        return (await to_its_end(database.execute(calls.get_state(run_id=run_id, **moment)))).value
    except NotFound:  # there was none, or the history was compacted
        return NO_STATE


def token_of(keyring: Keyring) -> Callable[[Request], Awaitable[Response]]:
    """The endpoint that gives a token for following one run, good for less than a minute."""

    async def endpoint(request: Request) -> Response:
        token, expires = keyring.sign(parameters(request)["run_id"])
        moment = shapes.moment(datetime.fromtimestamp(expires, timezone.utc))
        return Response(_encode({"token": token, "expiresAt": moment}), media_type="application/json")

    return endpoint


def _require_reader(keyring: Keyring, request: Request, run_id: str) -> None:
    """A key in the header, or in ``?token=`` a token for this run, or (as the clients of v0.6 do) the key itself."""
    scheme, _, secret = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and keyring.find(secret.strip()) is not None:
        return
    token = request.query_params.get("token")
    if keyring.is_open or (token is not None and (keyring.may_follow(run_id, token) or keyring.find(token))):
        return
    raise Refused(401, error="unauthorized", code="unauthorized")


def _position(request: Request) -> int:
    """The seq that the client has seen: what the browser remembers comes before what the page asked for."""
    seen = request.headers.get("last-event-id")
    if seen is not None and seen.isascii() and seen.isdigit() and len(seen) < 19:
        return int(seen)
    return number(dict(request.query_params), "after", 0)


def _format(request: Request) -> str:
    chosen = request.query_params.get("format", "tidebase")
    if chosen not in ("tidebase", "ag-ui"):
        raise InvalidArgument("format must be tidebase or ag-ui")
    return chosen
