"""Recovery webhooks: what the database wrote into its outbox is delivered, signed, with retries.

The receiver checks the signature with :func:`verify_webhook_signature`, and answers with a 2xx status.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import logging
import os
import ssl
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from ..core.addresses import public_address
from ..core.database import Database
from ..core.errors import TidebaseError
from .recovery import Delivery, claim_deliveries, finish_delivery

if TYPE_CHECKING:
    import httpx

log = logging.getLogger("tidebase.webhook")
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


class Dispatcher:
    """Delivers the outbox. Any number may run at once: each delivery is handed to one of them at a time.

    Args:
        database: where the outbox is; the user needs the role operator.
        secret: signs the bodies; by default the environment's ``TIDEBASE_WEBHOOK_SECRET``. Without one nothing is sent.
        allow_private: also deliver to addresses that are not public (loopback, private networks, link-local: where a
            cloud's metadata service is).
        timeout_s: for one delivery altogether, in seconds.
        max_attempts: after which a delivery has failed for good.
    """

    def __init__(
        self,
        database: Database,
        *,
        secret: str | None = None,
        allow_private: bool = False,
        timeout_s: float = 10.0,
        max_attempts: int = 8,
    ) -> None:
        self._database = database
        self._secret = secret or os.environ.get(SECRET_VARIABLE)
        self._allow_private = allow_private
        self._timeout_s = timeout_s
        self._max_attempts = max_attempts

    def dispatch(self, max: int = 10) -> int:
        """Delivers what is due now, at most ``max``; returns how many deliveries were tried."""
        if not self._secret:
            raise TidebaseError("webhooks cannot be signed without a secret", hint=f"Set {SECRET_VARIABLE}.")
        for tried in range(max):
            # One at a time: a slow receiver must not let the claims on the others run out.
            due = self._database.execute(claim_deliveries(max=1))
            if not due:
                return tried
            self._deliver(due[0])
        return max

    def _deliver(self, delivery: Delivery) -> None:
        status: int | None = None
        response = error = None
        try:
            status, response = self._post(delivery)
            if not 200 <= status < 300:
                error = f"HTTP {status}"
        except Exception as problem:
            error = f"{type(problem).__name__}: {problem}"
        outcome = self._database.execute(
            finish_delivery(
                run_id=delivery.run_id,
                delivery=delivery.delivery,
                attempt=delivery.attempts,
                delivered=error is None,
                http_status=status,
                response=response,
                error=error,
                max_attempts=self._max_attempts,
            )
        )
        log.log(
            logging.INFO if error is None else logging.WARNING,
            "run %s: webhook, attempt %d: %s (%s)",
            delivery.run_id,
            delivery.attempts,
            error or status,
            outcome,
        )

    def _post(self, delivery: Delivery) -> tuple[int, str]:
        body = json.dumps(delivery.body, ensure_ascii=False).encode()
        # The address that was checked is the one that is called: a name that resolves to another one a moment later
        # gains nothing.
        address = None if self._allow_private else public_address(delivery.url)

        async def send() -> tuple[int, str]:
            async with new_client(self._timeout_s, tls_context()) as client:
                return await post(client, delivery.url, body, self._secret or "", address)

        # In a thread of its own: this one may have an event loop. The limit is for the whole: httpx's are for each
        # wait, so a receiver that drips a byte a second would hold the dispatcher for ever.
        with ThreadPoolExecutor(1) as thread:
            return thread.submit(asyncio.run, asyncio.wait_for(send(), self._timeout_s)).result()


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
