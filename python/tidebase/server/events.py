"""``GET /runs/:runId/events``: a run's events as server-sent events (WHATWG HTML, section 9.2), as they come.

``id:`` is the event's seq, so a client that reconnects (``Last-Event-ID``) goes on where it was. The messages have no
name, and nothing but an event is data: the published SDKs take every message for one (``onmessage``). Behind the last
event the answer ends; whoever connects again gets 204, which tells an EventSource to stop.

Who asks for names (``?named=1``, or the header ``x-tidebase-events: named``) gets ``event: <type>``, and ``event: end``
behind the last one. A browser does not tell its page of comments, so who asks for that (``?alive=1``) gets ``event:
alive`` instead of them, and can notice a connection on which nothing comes any more.
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
from .auth import Keyring, who_asks
from .paths import parameters
from .payloads import Telling
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
        roles = _reader(keyring, request, run_id)
        after = _position(request)
        named = request.query_params.get("named") == "1" or request.headers.get("x-tidebase-events") == "named"
        agui = _format(request) == "ag-ui"
        database: AsyncDatabase = request.app.state.database
        # A look before the answer begins: an unknown run is a 404, a run that is over and known to its end a 204.
        watch = await database.execute(calls.watch_run(run_id=run_id, ttl=timedelta(seconds=60)))
        if watch.status in OVER and 0 < watch.last_seq <= after:
            return Response(status_code=204)
        feeds: Feeds = request.app.state.feeds
        followed = feeds.follow(run_id, after)
        telling: Telling = request.app.state.telling
        content = (
            _as_agui(database, run_id, followed)
            if agui
            else _as_events(telling, run_id, followed, named, for_worker="worker" in roles)
        )
        return EventSourceResponse(
            content,
            ping=HEARTBEAT_S,
            ping_message_factory=ping(request),
            send_timeout=STALLED_S,
            headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
        )

    return endpoint


def ping(request: Request) -> Callable[[], ServerSentEvent] | None:
    """What goes out when nothing else does; None: a comment."""
    return _alive if request.query_params.get("alive") == "1" else None


def _alive() -> ServerSentEvent:
    return ServerSentEvent("{}", event="alive")


async def _as_events(
    telling: Telling, run_id: str, followed: AsyncIterator[Event], named: bool, for_worker: bool
) -> AsyncIterator[ServerSentEvent]:
    yield ServerSentEvent(retry=RETRY_MS, comment="events follow")
    async for row in followed:
        data = _encode(await telling.shape(run_id, row, for_worker)).decode()
        kind = "message" if row.type == "end" else row.type  # as it may have been called before that was reserved
        yield ServerSentEvent(data, event=kind if named else None, id=str(row.seq))
    if named:
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


def _reader(keyring: Keyring, request: Request, run_id: str) -> frozenset[str]:
    """The roles of who follows: by a key in the header, by a cookie, or in ``?token=`` by a token for this run, which
    is good for nothing else, or (as the clients of v0.6 do) by the key itself.
    """
    key = who_asks(keyring, request)
    token = request.query_params.get("token")
    if key is None and token is not None:
        if keyring.may_follow(run_id, token):
            return frozenset({"reader"})
        key = keyring.find(token)
    if key is None:
        raise Refused(401, error="unauthorized", code="unauthorized")
    return key.roles


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
