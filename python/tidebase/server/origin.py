"""Who may send requests at all: no page of another site, under no other name than the gateway's own.

A browser sends what any page tells it to, with what it can reach: a gateway on this machine, too. So each request is
looked at before anything is done with it:

- its Host must be a name of the gateway's: a page of ``evil.example`` may let its own name lead to 127.0.0.1 (DNS
  rebinding), and would then read everything as its own;
- its Origin, which browsers send with whatever changes something (Fetch Standard, section 3.2), must be the gateway's
  own or one that was allowed;
- without an Origin, ``Sec-Fetch-Site`` (W3C Fetch Metadata) must not say that another site's page asks; that somebody
  followed a link there is in order.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from .refusal import Refused, refusal


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server there."""
    if host == "localhost":
        return True
    address = _address(host)
    return address is not None and address.is_loopback


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return None


class FromHere:
    """Middleware that refuses what a page of another site asks for.

    Args:
        hosts: the names of the gateway; None: any.
        origins: pages of other sites that may ask; ``*``: all.
    """

    def __init__(self, app: ASGIApp, hosts: Sequence[str] | None, origins: Sequence[str]) -> None:
        self._app = app
        self._hosts = None if hosts is None else {host.lower() for host in hosts}
        self._origins = set(origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        refused = self._refused(scope)
        await (self._app if refused is None else refusal(refused))(scope, receive, send)

    def _refused(self, scope: Scope) -> Refused | None:
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if not self._is_ours(host):
            message = f"the gateway has no name {host!r}; tell it the names that it has (--allow-host)"
            return Refused(421, error=message, code="unknown_host")
        origin, site = headers.get("origin"), headers.get("sec-fetch-site")
        if origin is not None:
            if self._may_ask(origin, f"{scope.get('scheme', 'http')}://{host}"):
                return None
            message = f"pages of {origin} may not ask this gateway; allow them with --cors"
            return Refused(403, error=message, code="foreign_origin")
        if site in ("cross-site", "same-site") and "*" not in self._origins and not _is_navigation(scope, headers):
            return Refused(403, error="pages of other sites may not ask this gateway", code="foreign_origin")
        return None

    def _is_ours(self, host: str) -> bool:
        if self._hosts is None:
            return True
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        return name in self._hosts or is_loopback(name) or _address(name) is not None

    def _may_ask(self, origin: str, own: str) -> bool:
        return origin == own or origin in self._origins or "*" in self._origins


def _is_navigation(scope: Scope, headers: Headers) -> bool:
    return scope["method"] in ("GET", "HEAD") and headers.get("sec-fetch-mode") == "navigate"
