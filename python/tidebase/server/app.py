"""The gateway: Tidebase's HTTP API, and the events of a run as they come, over the functions of the database.

It keeps nothing: any number of replicas serve the same database, and what is written through one is seen through all.
"""

from __future__ import annotations

import ipaddress
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
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

from ..database import POOL_SIZE, AsyncDatabase
from ..errors import InvalidArgument, TidebaseError
from ..subscribe import Feeds
from ..tracing import valid_traceparent
from . import events, openapi
from .auth import Key, Keyring
from .routes import ALL, ROUTES, Asked, Refused, Route, code_of, status_of

log = logging.getLogger("tidebase.server")

#: The largest body that is read, in bytes.
MAX_BODY = 20_000_000

#: How long a lease lasts without a heartbeat, in seconds: the clients of v0.6 send none while they run a workflow.
LEASE_S = 300.0

_encode = msgspec.json.Encoder(decimal_format="number").encode

Endpoint = Callable[[Request], Awaitable[Response]]


def answer(body: Any, status: int = 200) -> Response:
    return Response(_encode(body), status, media_type="application/json")


def create_app(
    database: str | None = None,
    *,
    keys: Sequence[Key] = (),
    pool_size: int = POOL_SIZE,
    max_body: int = MAX_BODY,
    lease_s: float = LEASE_S,
    cors: Sequence[str] = (),
) -> Starlette:
    """The ASGI application, for a server of your own; see :func:`serve`.

    Args:
        database: a connection string; see :class:`tidebase.Tidebase`. Its user needs the roles that the keys give.
        keys: who may do what; none: everybody may do everything.
        pool_size: how many connections there are at most; open streams hold none.
        max_body: the largest request body, in bytes.
        lease_s: how long a lease lasts without a heartbeat, in seconds.
        cors: the origins of pages that may call it from a browser.
    """
    keyring = Keyring(keys)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        app.state.database = AsyncDatabase(database, pool_size=pool_size)
        app.state.feeds = Feeds(app.state.database)
        yield
        await app.state.database.close()

    endpoints = [
        StarletteRoute("/health", _health, methods=["GET"]),
        StarletteRoute("/openapi.json", _openapi, methods=["GET"]),
        StarletteRoute("/runs/{run_id}/events", events.stream(keyring), methods=["GET"]),
        StarletteRoute("/runs/{run_id}/events/token", _guarded(events.token_of(keyring), keyring), methods=["POST"]),
        *(
            StarletteRoute(
                route.path, _guarded(_endpoint(route, lease_s), keyring, route.roles), methods=[route.method]
            )
            for route in ROUTES
        ),
    ]
    middleware = [Middleware(_Logged), Middleware(_Limited, max_body=max_body)]
    if cors:
        middleware.insert(
            0, Middleware(CORSMiddleware, allow_origins=list(cors), allow_methods=["*"], allow_headers=["*"])
        )
    return Starlette(
        routes=_merged(endpoints),
        middleware=middleware,
        lifespan=lifespan,
        exception_handlers={
            HTTPException: _http_error,
            TidebaseError: _tidebase_error,
            Refused: _refused,
            Exception: _unforeseen,
        },
    )


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
        scheme, _, secret = request.headers.get("authorization", "").partition(" ")
        key = keyring.find(secret.strip() if scheme.lower() == "bearer" else None)
        if key is None:
            raise Refused(401, error="unauthorized", code="unauthorized")
        if not key.roles & allowed:
            raise Refused(403, error="forbidden", code="forbidden")
        request.state.key = key
        return await endpoint(request)

    return guarded


def _endpoint(route: Route, lease_s: float) -> Endpoint:
    async def endpoint(request: Request) -> Response:
        asked = Asked(
            database=request.app.state.database,
            path=request.path_params,
            query=dict(request.query_params),
            body=None if route.body is None else await _body(request, route.body),
            worker=request.headers.get("x-tidebase-worker"),
            roles=request.state.key.roles,
            person=request.state.key.name,
            lease_s=lease_s,
            traceparent=valid_traceparent(request.headers.get("traceparent")),
        )
        return answer(await route.handler(asked))

    return endpoint


async def _body(request: Request, kind: type[Any]) -> Any:
    try:
        return msgspec.json.decode(await request.body() or b"{}", type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        message, _, path = str(error).partition(" - at ")
        issue = {"message": message, "path": path.strip("`") or "$"}
        raise Refused(400, error="invalid request body", code="invalid_body", issues=[issue]) from None


async def _health(request: Request) -> Response:
    return answer({"ok": True})


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
    return answer({"error": error.message, "code": code_of(error)}, status)


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refused)
    response = answer(error.body, error.status)
    if error.status == 401:
        response.headers["www-authenticate"] = "Bearer"
    return response


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


class _Limited:
    """Refuses bodies that are too large, whether they say so or not."""

    def __init__(self, app: ASGIApp, max_body: int) -> None:
        self._app = app
        self._max_body = max_body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        read = 0

        async def counted() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > self._max_body:
                raise Refused(413, error=f"the body is larger than {self._max_body} bytes", code="too_large")
            return message

        return await self._app(scope, counted, send)


def serve(
    database: str | None = None,
    *,
    host: str = "127.0.0.1",
    port: int = 7373,
    keys: Sequence[Key] = (),
    **options: Any,
) -> None:
    """Runs the gateway until it is told to stop.

    Raises:
        InvalidArgument: it would listen on more than the loopback interface, and has no keys.
    """
    import uvicorn

    if not keys and not is_loopback(host):
        raise InvalidArgument(
            f"a gateway without keys listens on the loopback interface only, not on {host}",
            hint="Give it keys: --key worker+operator:SECRET.",
        )
    uvicorn.run(
        create_app(database, keys=keys, **options),
        host=host,
        port=port,
        access_log=False,
        log_config=None,
        timeout_graceful_shutdown=5,
    )


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server there."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


__all__ = ["create_app", "is_loopback", "serve"]
