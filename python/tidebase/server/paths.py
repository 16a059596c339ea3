"""Paths are split first, and decoded then (RFC 3986, section 2.4): an id may have a slash, which is sent as %2F."""

from __future__ import annotations

from urllib.parse import quote, unquote, unquote_to_bytes

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from .refusal import Refused, refusal


class Spelled:
    """Middleware that lets the routes see the path as it was sent, each part spelled in one way."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        sent: bytes = scope.get("raw_path") or quote(scope["path"]).encode()
        parts = [unquote_to_bytes(part) for part in sent.split(b"/")]
        try:
            path = "/".join(quote(part.decode(), safe="") for part in parts)
        except UnicodeDecodeError:
            refused = Refused(400, error="the path is not UTF-8", code="invalid_argument")
            await refusal(refused)(scope, receive, send)
            return
        await self._app({**scope, "path": path}, receive, send)


def parameters(request: Request) -> dict[str, str]:
    """What the route's parameters stand for."""
    return {name: unquote(value) for name, value in request.path_params.items()}
