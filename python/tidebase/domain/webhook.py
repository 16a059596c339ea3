"""Webhooks: how what is posted is signed, and where it may go.

The receiver checks the signature with :func:`verify_webhook_signature`, and answers with a 2xx status.
"""

from __future__ import annotations

import hashlib
import hmac
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from ..core.errors import TidebaseError

if TYPE_CHECKING:
    import httpx

SIGNATURE = "x-tidebase-signature"
SIGNATURE_V2 = "x-tidebase-signature-v2"

#: So much of a receiver's answer is read and kept, in bytes.
MAX_ANSWER = 10_000

SECRET_VARIABLE = "TIDEBASE_WEBHOOK_SECRET"


def sign_webhook(body: bytes, secret: str) -> str:
    """The value of the header ``x-tidebase-signature``: ``sha256=`` and the HMAC-SHA256 of the body, in hex."""
    return "sha256=" + hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()


def sign_request(body: bytes, secret: str, url: str, at: int) -> str:
    """The value of the header ``x-tidebase-signature-v2``: ``t=`` and the time, ``v2=`` and the HMAC-SHA256 of time,
    URL and body, in hex. What was sent to one receiver is worth nothing at another, nor later.
    """
    return f"t={at},v2={_of_request(body, secret, url, str(at))}"


def _of_request(body: bytes, secret: str, url: str, at: str) -> str:
    return hmac.new(secret.encode(), f"{at}\n{url}\n".encode() + body, hashlib.sha256).hexdigest()


def verify_webhook_signature(
    body: bytes, signature: str | None, secret: str, *, url: str | None = None, max_age_s: float = 300
) -> bool:
    """Whether a webhook comes from whoever knows the secret; compared in constant time.

    Args:
        body: the raw bytes of the request's body.
        signature: the header ``x-tidebase-signature-v2``; or ``x-tidebase-signature``, with or without ``sha256=``,
            which says nothing of time and place; None when it is missing.
        url: the webhook's URL, as it was given to ``recovery_webhook``; needed for the first of the two.
        max_age_s: how old, or how far ahead, it may be, in seconds; for the first of the two.
    """
    if not signature or not secret:
        return False
    if signature.startswith("t="):
        at, _, given = signature.removeprefix("t=").partition(",v2=")
        if url is None or not (at.isascii() and at.isdigit() and len(at) < 12):
            return False
        expected = _of_request(body, secret, url, at)
        return hmac.compare_digest(expected.encode(), given.encode("utf-8", "replace")) and (
            abs(time.time() - int(at)) <= max_age_s
        )
    expected = sign_webhook(body, secret)
    given = signature if signature.startswith("sha256=") else f"sha256={signature}"
    return hmac.compare_digest(expected.encode(), given.encode("utf-8", "replace"))


def tls_context() -> ssl.SSLContext:
    """Whom to trust: it takes a while to read, so who makes many clients makes it once.

    Raises:
        TidebaseError: httpx is missing.
    """
    try:
        import httpx
    except ImportError:
        raise TidebaseError("webhooks need httpx", hint="pip install 'tidebase-postgres[webhook]'") from None
    return httpx.create_ssl_context(trust_env=False)


def new_client(timeout_s: float, verify: ssl.SSLContext) -> httpx.AsyncClient:
    """What posts webhooks: it follows no redirect, and knows no proxy."""
    import httpx

    return httpx.AsyncClient(timeout=timeout_s, follow_redirects=False, trust_env=False, verify=verify)


async def post(client: httpx.AsyncClient, url: str, body: bytes, secret: str, address: str | None) -> tuple[int, str]:
    """Posts a signed body; the status and the beginning of the answer.

    Args:
        address: where to, of the URL's host, which keeps its name in Host and TLS; None: wherever the name leads.
    """
    headers = {
        "content-type": "application/json",
        "accept-encoding": "identity",
        SIGNATURE: sign_webhook(body, secret),
        SIGNATURE_V2: sign_request(body, secret, url, int(time.time())),
    }
    extensions: dict[str, Any] = {}
    request = client.build_request("POST", url)
    if address is not None:
        headers["host"] = request.url.netloc.decode()
        extensions["sni_hostname"] = request.url.host
    target = request.url if address is None else request.url.copy_with(host=address)
    request = client.build_request("POST", target, content=body, headers=headers, extensions=extensions)
    async with aclosing(await client.send(request, stream=True)) as answer:
        beginning = await _beginning(answer.aiter_raw())
        return answer.status_code, beginning.decode("utf-8", "replace").replace("\0", "")


async def _beginning(chunks: AsyncIterator[bytes]) -> bytes:
    """As much of an answer as is kept, as it was sent: nothing is unpacked."""
    read = b""
    async for chunk in chunks:
        read += chunk[: MAX_ANSWER - len(read)]
        if len(read) >= MAX_ANSWER:
            break
    return read
