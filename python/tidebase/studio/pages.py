"""The files of the page, served with what keeps strangers' code out of it.

All of them are small and read once; each is sent compressed to who takes that, and is asked for anew only when it has
changed (its tag is a digest). Every link in them is relative, so the page works under any path in front of a gateway.
"""

from __future__ import annotations

import functools
import gzip
import hashlib
import mimetypes
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

FOLDER = Path(__file__).with_name("static")

#: Where the page is, as a path behind the gateway's own.
ENTRY = "studio/"

#: Code comes from files of this page alone, and is never made of text (Trusted Types); nothing is asked of other hosts;
#: no other page shows this one in a frame, so nobody clicks here without knowing (CSP Level 3).
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
_HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",
    "Vary": "Accept-Encoding",
}
_TYPES = {".js": "text/javascript", ".css": "text/css", ".html": "text/html", ".svg": "image/svg+xml"}

Endpoint = Callable[[Request], Awaitable[Response]]


@dataclass(frozen=True)
class File:
    """A file of the page: as it is, compressed, of what type, and its tag."""

    content: bytes
    compressed: bytes
    media: str
    tag: str


@functools.cache
def files() -> dict[str, File]:
    """All files by their names."""
    found = {}
    for path in sorted(FOLDER.rglob("*")):
        if path.is_file() and path.name[0] != "." and not path.name.endswith(".d.ts"):
            content = path.read_bytes()
            media = _TYPES.get(path.suffix) or mimetypes.guess_type(path.name)[0] or "text/plain"
            tag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
            compressed = gzip.compress(content, 9, mtime=0)
            found[path.relative_to(FOLDER).as_posix()] = File(content, compressed, f"{media}; charset=utf-8", tag)
    return found


async def _file(request: Request) -> Response:
    name = unquote(request.path_params.get("path", "")) or "index.html"
    file = files().get(name)
    if file is None:
        raise HTTPException(404)
    headers = {**_HEADERS, "ETag": file.tag}
    if request.headers.get("if-none-match") == file.tag:
        return Response(status_code=304, headers=headers)
    if "gzip" in request.headers.get("accept-encoding", ""):
        headers["Content-Encoding"] = "gzip"
        return Response(file.compressed, media_type=file.media, headers=headers)
    return Response(file.content, media_type=file.media, headers=headers)


async def _entry(request: Request) -> Response:
    return _to(ENTRY)


async def home(request: Request) -> Response:
    """Leads a person to the page, and no program."""
    if "text/html" not in request.headers.get("accept", ""):
        raise HTTPException(404)
    return _to(ENTRY)


def _to(place: str) -> Response:
    """A reference that the browser resolves: it knows what stands in front of the gateway (RFC 9110, 10.2.2)."""
    return Response(status_code=307, headers={"Location": place, "Cache-Control": "no-store"})


def endpoints() -> dict[str, Endpoint]:
    """What is served, by path."""
    return {"/": home, "/studio": _entry, "/studio/": _file, "/studio/{path:path}": _file}
