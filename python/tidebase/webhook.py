"""Recovery webhooks: what the database wrote into its outbox is delivered, signed, with retries.

The receiver checks the signature with :func:`verify_webhook_signature`, and answers with a 2xx status.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import json
import logging
import os
import socket
from typing import Any
from urllib.parse import urlsplit

from . import calls
from .database import Database
from .errors import TidebaseError

log = logging.getLogger("tidebase.webhook")
SIGNATURE = "x-tidebase-signature"
SECRET_VARIABLE = "TIDEBASE_WEBHOOK_SECRET"


def sign_webhook(body: bytes, secret: str) -> str:
    """The value of the signature header: ``sha256=`` and the HMAC-SHA256 of the body, in hex."""
    return "sha256=" + hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()


def verify_webhook_signature(body: bytes, signature: str | None, secret: str) -> bool:
    """Whether a webhook's body comes from whoever knows the secret; compared in constant time.

    Args:
        body: the raw bytes of the request's body.
        signature: the header ``x-tidebase-signature``, with or without ``sha256=``; None when it is missing.
    """
    if not signature or not secret:
        return False
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
        timeout_s: for one delivery, in seconds.
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
            due = self._database.execute(calls.claim_deliveries(max=1))
            if not due:
                return tried
            self._deliver(due[0])
        return max

    def _deliver(self, delivery: calls.Delivery) -> None:
        status: int | None = None
        response = error = None
        try:
            status, response = self._post(delivery)
            if not 200 <= status < 300:
                error = f"HTTP {status}"
        except Exception as problem:
            error = f"{type(problem).__name__}: {problem}"
        outcome = self._database.execute(
            calls.finish_delivery(
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

    def _post(self, delivery: calls.Delivery) -> tuple[int, str]:
        try:
            import httpx
        except ImportError:
            raise TidebaseError("webhooks need httpx", hint="pip install 'tidebase-postgres[webhook]'") from None
        body = json.dumps(delivery.body, ensure_ascii=False).encode()
        url = httpx.URL(delivery.url)
        headers = {"content-type": "application/json", SIGNATURE: sign_webhook(body, self._secret or "")}
        extensions: dict[str, Any] = {}
        if not self._allow_private:
            # The address that was checked is the one that is called: a name that resolves to another one a moment
            # later gains nothing. Host and the TLS name stay the name's.
            address = public_address(delivery.url)
            headers["host"] = url.netloc.decode()
            extensions["sni_hostname"] = url.host
            url = url.copy_with(host=address)
        with httpx.Client(timeout=self._timeout_s, follow_redirects=False, trust_env=False) as client:
            answer = client.post(url, content=body, headers=headers, extensions=extensions)
        return answer.status_code, answer.text[:10_000].replace("\0", "")


def public_address(url: str) -> str:
    """The public address of a URL's host.

    Raises:
        TidebaseError: one of its addresses is not public.
    """
    parts = urlsplit(url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    found = socket.getaddrinfo(parts.hostname, port, type=socket.SOCK_STREAM)
    addresses = [str(entry[4][0]) for entry in found]
    for address in addresses:
        if not _is_public(ipaddress.ip_address(address.split("%")[0])):
            raise TidebaseError(f"{parts.hostname} is at {address}, which is not a public address")
    return addresses[0]


_NAT64 = ipaddress.ip_network("64:ff9b::/96")  # RFC 6052


def _is_public(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    """Whether an address is public, and also the IPv4 address that an IPv6 one stands for, where it does."""
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour or (address.teredo[1] if address.teredo else None)
        if inner is None and address in _NAT64:
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if inner is not None and not _is_public(inner):
            return False
    return address.is_global and not address.is_multicast
