"""The gateway: Tidebase's HTTP API, and the events of a run as they come, over the functions of the database.

It keeps nothing: any number of replicas serve the same database, and what is written through one is seen through all.
"""

from __future__ import annotations

import asyncio
import logging
import resource
import secrets
import socket
import sys
import threading
import time
import webbrowser
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route as StarletteRoute
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .. import studio
from ..core.base import POOL_SIZE
from ..core.database_async import AsyncDatabase
from ..core.errors import InvalidArgument, RunNotFound, TidebaseError
from ..core.explain import speaks
from ..core.tracing import valid_traceparent
from ..domain.measure import measure
from ..domain.subscribe import Feeds
from . import events, openapi, overview, runlist, sessions
from .auth import ROLES, Key, Keyring, who_asks
from .origin import FromHere, is_loopback
from .paths import Spelled, parameters
from .patience import Bounded, Impatient, Turns
from .payloads import Telling
from .refusal import Refused, answer, refusal
from .routes import ALL, ROUTES, Asked, Route, absent, code_of, status_of

log = logging.getLogger("tidebase.server")

#: The largest body that is read, in bytes.
MAX_BODY = 20_000_000

#: How long a lease lasts without a heartbeat, in seconds: the clients of v0.6 send none while they run a workflow.
LEASE_S = 300.0

#: How long a call waits for a lock, and for an answer of the network, in seconds, before it is made again.
_CALL_S = 5.0

#: For how long it is made again, in seconds; then the client is told to come back.
_RECONNECT_S = 30.0

#: How long the database may take to say that it is there, in seconds.
_READY_S = 2.0

#: How many connections of clients there may be at once.
_CONNECTIONS = 4096

Endpoint = Callable[[Request], Awaitable[Response]]

#: What Tidebase v0.6 and 0.7 have and this gateway does not, by its path.
ABSENT = {
    "agents": "/agents",
    "resources": "/resources",
    "audit": "/audit",
    "grants": "/runs/{run_id}/grants",
}
_METHODS = ["GET", "POST", "PUT", "PATCH", "DELETE"]


def create_app(
    database: str | None = None,
    *,
    keys: Sequence[Key] = (),
    insecure: bool = False,
    pool_size: int = POOL_SIZE,
    max_body: int = MAX_BODY,
    lease_s: float = LEASE_S,
    cors: Sequence[str] = (),
    hosts: Sequence[str] | None = None,
) -> Starlette:
    """The ASGI application, for a server of your own; see :func:`serve`.

    Args:
        database: a connection string; see :class:`tidebase.Tidebase`. Its user needs the roles that the keys give.
        keys: who may do what.
        insecure: without keys: whoever reaches it may do everything.
        pool_size: how many connections there are at most; open streams hold none.
        max_body: the largest request body, in bytes.
        lease_s: how long a lease lasts without a heartbeat, in seconds.
        cors: the origins of pages that may call it from a browser.
        hosts: the names under which it is asked, beside IP addresses and those of the loopback interface; by default
            any where there are keys, and no other where there are none.

    Raises:
        InvalidArgument: there are no keys, and it is not said that this is meant; or a secret is given twice.
    """
    if not keys and not insecure:
        raise InvalidArgument(
            "a gateway needs keys, or whoever reaches it may do everything",
            hint="Give it keys=[Key.parse('worker+operator:SECRET')], or say insecure=True.",
        )
    keyring = Keyring(keys)
    connections = AsyncDatabase(database, pool_size=pool_size, reconnect_s=_RECONNECT_S, lease_s=3 * _CALL_S)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        await connections.close()

    endpoints = [
        StarletteRoute("/health", _health, methods=["GET"]),
        StarletteRoute("/ready", _ready, methods=["GET"]),
        StarletteRoute("/metrics", _guarded(_metrics, keyring), methods=["GET"]),
        StarletteRoute("/openapi.json", _openapi, methods=["GET"]),
        *(
            StarletteRoute(path, endpoint, methods=[method])
            for (method, path), endpoint in sessions.endpoints(keyring).items()
        ),
        StarletteRoute("/overview/runs/events", _guarded(runlist.stream, keyring), methods=["GET"]),
        StarletteRoute("/runs/{run_id}/events", events.stream(keyring), methods=["GET"]),
        StarletteRoute("/runs/{run_id}/events/token", _guarded(events.token_of(keyring), keyring), methods=["POST"]),
        *(
            StarletteRoute(
                route.path, _guarded(_endpoint(route, lease_s), keyring, route.roles), methods=[route.method]
            )
            for route in ROUTES
        ),
    ]
    names = hosts if hosts is not None or keys else ()
    middleware = [
        Middleware(_Logged),
        Middleware(FromHere, hosts=names, origins=cors),
        *([Middleware(CORSMiddleware, allow_origins=cors, allow_methods=["*"], allow_headers=["*"])] if cors else []),
        Middleware(Spelled),
        Middleware(Bounded, max_body=max_body),
    ]
    absent_ones = [
        StarletteRoute(path + rest, _guarded(_absent(name), keyring), methods=_METHODS)
        for name, path in ABSENT.items()
        for rest in ("", "/{rest:path}")
    ]
    app = Starlette(
        routes=[
            *_merged(endpoints),
            *absent_ones,
            *(StarletteRoute(path, endpoint) for path, endpoint in studio.endpoints().items()),
        ],
        middleware=middleware,
        lifespan=lifespan,
        exception_handlers={
            HTTPException: _http_error,
            TidebaseError: _tidebase_error,
            Refused: _refused,
            Exception: _unforeseen,
        },
    )
    # Not in the lifespan: an application that this one is mounted in does not call it.
    app.state.database = connections
    app.state.feeds = Feeds(connections)
    app.state.lists = runlist.Lists(connections)
    app.state.health = overview.Health(database)
    app.state.keyring = keyring
    app.state.telling = Telling(connections)
    app.state.turns = Turns(max(1, pool_size // 4))
    return app


def _merged(routes: list[StarletteRoute]) -> list[StarletteRoute]:
    """One route a path, so that a wrong method is answered with those that there are (RFC 9110, 15.5.6)."""
    by_path: dict[str, dict[str, Endpoint]] = {}
    for route in routes:
        for method in (route.methods or set()) - {"HEAD"}:
            by_path.setdefault(route.path, {})[method] = route.endpoint
    # What has no parameter in a place comes before what has one there.
    ordered = sorted(by_path.items(), key=lambda item: [part.startswith("{") for part in item[0].split("/")])
    return [StarletteRoute(path, _by_method(methods), methods=list(methods)) for path, methods in ordered]


def _by_method(methods: dict[str, Endpoint]) -> Endpoint:
    async def endpoint(request: Request) -> Response:
        chosen = methods.get("GET" if request.method == "HEAD" else request.method)
        if chosen is None:
            raise HTTPException(405, headers={"Allow": ", ".join(sorted(methods))})
        return await chosen(request)

    return endpoint


def _guarded(endpoint: Endpoint, keyring: Keyring, allowed: frozenset[str] = ALL) -> Endpoint:
    """The same endpoint, for those who may use it; looked at before anything is read."""

    async def guarded(request: Request) -> Response:
        key = who_asks(keyring, request)
        if key is None:
            raise Refused(401, error="unauthorized", code="unauthorized")
        if not key.roles & allowed:
            raise Refused(403, error="forbidden", code="forbidden")
        request.state.key = key
        return await endpoint(request)

    return guarded


def _endpoint(route: Route, lease_s: float) -> Endpoint:
    async def endpoint(request: Request) -> Response:
        path = parameters(request)
        asked = Asked(
            database=request.app.state.database,
            path=path,
            query=dict(request.query_params),
            body=None if route.body is None else await _body(request, route.body),
            worker=request.headers.get("x-tidebase-worker"),
            roles=request.state.key.roles,
            person=request.state.key.name,
            lease_s=lease_s,
            traceparent=valid_traceparent(request.headers.get("traceparent")),
            health=request.app.state.health,
        )
        async with request.app.state.turns.of(None if route.makes_run else path.get("run_id")):
            return answer(await route.handler(asked))

    return endpoint


async def _body(request: Request, kind: type[Any]) -> Any:
    body = await request.body()
    media = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if body and media != "application/json" and not media.endswith("+json"):
        # A page of another site may send a form or a plain text without being asked, and no JSON.
        raise Refused(415, error="the body must be application/json", code="not_json")
    try:
        return msgspec.json.decode(body or b"{}", type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        message, _, path = str(error).partition(" - at ")
        issue = {"message": message, "path": path.strip("`") or "$"}
        raise Refused(400, error="invalid request body", code="invalid_body", issues=[issue]) from None


def _absent(name: str) -> Endpoint:
    async def endpoint(request: Request) -> Response:
        raise absent(name)

    return endpoint


async def _health(request: Request) -> Response:
    return answer({"ok": True})


async def _ready(request: Request) -> Response:
    """Whether it can serve: an orchestrator asks often, waits for nothing, and has no key."""
    try:
        is_understood = await asyncio.wait_for(request.app.state.database.execute(speaks()), _READY_S)
    except (TidebaseError, asyncio.TimeoutError):
        return answer({"ready": False, "reason": "database"}, 503)
    return answer({"ready": True}) if is_understood else answer({"ready": False, "reason": "schema"}, 503)


async def _metrics(request: Request) -> Response:
    try:
        from ..views import metrics
    except ImportError:
        error = "metrics need prometheus-client: pip install 'tidebase-postgres[metrics]'"
        raise Refused(501, error=error, code="not_installed") from None
    measured = await request.app.state.database.execute(measure())
    return Response(metrics.exposition(measured), media_type="text/plain; version=0.0.4; charset=utf-8")


async def _openapi(request: Request) -> Response:
    return answer(openapi.document())


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    response = answer({"error": error.detail.lower(), "code": f"http_{error.status_code}"}, error.status_code)
    response.headers.update(error.headers or {})
    return response


async def _tidebase_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, TidebaseError)
    status = status_of(error)
    if status >= 500:
        log.error("%s %s: %s", request.method, request.url.path, error)
    message = "run not found" if isinstance(error, RunNotFound) else error.message
    response = answer({"error": message, "code": code_of(error)}, status)
    if status == 503:
        response.headers["retry-after"] = "1"
    return response


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refused)
    return refusal(error)


async def _unforeseen(request: Request, error: Exception) -> Response:
    log.error("%s %s failed", request.method, request.url.path, exc_info=error)
    return answer({"error": "internal error", "code": "internal"}, 500)


class _Logged:
    """Logs method, path and status; never the query, which may hold a token."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        raw = scope.get("raw_path", b"").decode("latin-1")  # still percent-encoded: no line breaks in the log
        begun = time.perf_counter()

        async def logged(message: Message) -> None:
            if message["type"] == "http.response.start":
                taken = (time.perf_counter() - begun) * 1000
                log.info("%s %s %d %.1f ms", scope["method"], raw, message["status"], taken)
            await send(message)

        return await self._app(scope, receive, logged)


def serve(
    database: str | None = None,
    *,
    host: str = "127.0.0.1",
    port: int = 7373,
    keys: Sequence[Key] = (),
    insecure: bool = False,
    hosts: Sequence[str] = (),
    opened: str | None = None,
    **options: Any,
) -> None:
    """Runs the gateway until it is told to stop.

    Without keys it makes one, which may do everything, and prints it.

    Args:
        opened: the place in Studio, its page, at which a browser is opened that is signed in with the first key.

    Raises:
        InvalidArgument: it would listen on more than the loopback interface, and nobody has said who may do what.
    """
    import uvicorn

    if not keys and not is_loopback(host):
        raise InvalidArgument(
            f"a gateway without keys listens on the loopback interface only, not on {host}",
            hint="Give it keys: --key worker+operator:SECRET.",
        )
    if not keys and not insecure:
        made = Key(ROLES, secrets.token_urlsafe(24))
        keys = [made]
        _say(
            f"The key of this start, for everything: {made.secret}\n"
            f"Send it as 'Authorization: Bearer {made.secret}', give one of your own with --key, or say --insecure."
        )
    # On the loopback interface another name can only be somebody else's, or that of a proxy, which is to be told.
    names = [*hosts, host] if hosts or is_loopback(host) else None
    if not options.get("cors"):
        log.info(
            "pages of other origins may not call it; --cors ORIGIN allows one, --cors '*' all, as Tidebase v0.6 did"
        )
    _raise_limits()
    app = create_app(database, keys=keys, insecure=insecure, hosts=names, **options)
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        access_log=False,
        log_config=None,
        http=Impatient,
        limit_concurrency=_CONNECTIONS,
        timeout_graceful_shutdown=5,
    )

    class Announced(uvicorn.Server):
        """Says where it is when it is there."""

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            if self.started:
                at = self.servers[0].sockets[0].getsockname()[1]
                page = f"http://{f'[{host}]' if ':' in host else host}:{at}/{studio.ENTRY}"
                _say(f"Studio, its page: {page}")
                if opened is not None:
                    ticket = f"?ticket={app.state.keyring.ticket(keys[0])}" if keys else ""
                    where = f"{page}#/{opened}{ticket}"  # a browser of the terminal would hold everything up
                    threading.Thread(target=webbrowser.open, args=(where,), daemon=True).start()

    server = Announced(config)
    with suppress(KeyboardInterrupt):  # it has ended in good order by then
        server.run()
    if not server.started:
        sys.exit(3)  # as uvicorn.run does


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _raise_limits() -> None:
    """As many files as the system lets this user open: each stream is one."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


__all__ = ["create_app", "is_loopback", "serve"]
