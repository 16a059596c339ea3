"""Signing in: a browser shows a key once, and has a cookie instead from then on."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from .. import __version__
from .auth import SESSION_S, Key, Keyring, require_own_page, who_asks
from .bodies import SignIn
from .refusal import Refused, answer
from .shapes import Shape

Endpoint = Callable[[Request], Awaitable[Response]]


def endpoints(keyring: Keyring) -> dict[tuple[str, str], Endpoint]:
    """By method and path. The cookie's path is left to the browser, which knows what stands in front of the gateway."""

    def keep(request: Request, response: Response, value: str, seconds: int) -> None:
        """No script sees it, no other site's page sends it, and nobody on the way where the way is secret."""
        secret_way = request.url.scheme == "https"
        response.set_cookie(
            keyring.cookie, value, max_age=seconds, path=None, secure=secret_way, httponly=True, samesite="strict"
        )

    async def me(request: Request) -> Response:
        """Who asks, and what that one may do."""
        key = who_asks(keyring, request)
        if key is None:
            raise Refused(401, error="unauthorized", code="unauthorized")
        return answer(said(keyring, key))

    async def sign_in(request: Request) -> Response:
        require_own_page(request)
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise Refused(415, error="the body must be application/json", code="not_json")
        try:
            body = msgspec.json.decode(await request.body(), type=SignIn)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            issue = {"message": str(error), "path": "$"}
            raise Refused(400, error="invalid request body", code="invalid_body", issues=[issue]) from None
        key = keyring.find(body.key) if body.ticket is None else keyring.take(body.ticket)
        if key is None:
            raise Refused(401, error="this is none of the gateway's keys", code="unauthorized")
        if keyring.is_open:
            return answer(said(keyring, key))
        value = keyring.session(key)
        seen = keyring.of_session(value)
        assert seen is not None
        response = answer(said(keyring, seen))
        keep(request, response, value, SESSION_S)
        return response

    async def sign_out(request: Request) -> Response:
        require_own_page(request)
        response = answer({"signedOut": True})
        keep(request, response, "", 0)
        return response

    return {("GET", "/me"): me, ("POST", "/session"): sign_in, ("DELETE", "/session"): sign_out}


def said(keyring: Keyring, key: Key) -> Shape:
    """What a page has to know about who looks at it."""
    return {"name": key.name, "roles": sorted(key.roles), "keyed": not keyring.is_open, "version": __version__}
