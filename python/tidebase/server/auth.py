"""Who may do what over HTTP: bearer keys with roles, and short-lived tokens for those who cannot send headers.

A key is ``role[+role...][@name]:secret``. The roles are those of the database; they are siblings, not a ladder. The
name says whose the key is: who decides with it decides as this person, and where several must agree this is the voter.
Without any key everybody may do everything, which is to be said (``insecure``); and the loopback interface is all that
such a server listens on.

A browser shows its key once, and has a cookie from then on: which key it was and until when it is good, signed. Scripts
do not see it, and a browser sends it for no page of another site. It is good for nothing that a worker does.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from starlette.requests import HTTPConnection

from ..core.errors import InvalidArgument
from .refusal import Refused

ROLES = frozenset({"worker", "approver", "operator", "reader"})

#: For how long a token for following a run is good, in seconds: it is only looked at when the stream is opened.
TOKEN_S = 50


#: For how long a browser stays signed in, in seconds; and how old a ticket may be that signs one in.
SESSION_S = 12 * 3600
TICKET_S = 60


@dataclass(frozen=True)
class Key:
    """A secret, what its bearer may do, and who that is; the secret is not shown."""

    roles: frozenset[str]
    secret: str = field(repr=False)
    name: str | None = None

    @classmethod
    def parse(cls, text: str) -> Key:
        """From ``worker:SECRET``, ``worker+operator:SECRET`` or ``approver@alice:SECRET``."""
        front, separator, secret = text.partition(":")
        names, named, name = front.partition("@")
        roles = frozenset(names.split("+"))
        nameless = bool(named) and not name.strip()
        if not separator or not roles <= ROLES or len(secret) < 8 or nameless:
            raise InvalidArgument(
                "a key must be role[+role][@name]:secret, with a secret of at least 8 characters",
                hint=f"The roles are {', '.join(sorted(ROLES))}.",
            )
        return cls(roles, secret, name or None)


#: What everybody has where there are no keys.
_ANY = Key(ROLES, "")


class Keyring:
    """The keys of a server. The same keys make the same tokens, so any replica takes what another has given."""

    def __init__(self, keys: Sequence[Key] = ()) -> None:
        self._keys = [(_digest(key.secret), key) for key in keys]
        if len({digest for digest, _ in self._keys}) < len(keys):
            raise InvalidArgument("a secret is given to two keys: who comes with it would be either")
        # Made slow on purpose (RFC 7914): who has a token must not find a short secret out by trying.
        material = "\n".join(sorted(key.secret for key in keys)).encode("utf-8", "replace")
        self._signing = hashlib.scrypt(material, salt=b"tidebase events token", n=1 << 14, r=8, p=1)
        self._marks = {self._mark(digest): key for digest, key in self._keys}
        self._taken: dict[str, int] = {}
        #: Cookies know no port: gateways on one machine have names of their own for theirs.
        self.cookie = f"tidebase_{self._mac('cookie')[:8]}"

    @property
    def is_open(self) -> bool:
        """Whether there are no keys: everybody may do everything."""
        return not self._keys

    def find(self, secret: str | None) -> Key | None:
        """The key with a secret; None when it is none of them.

        Every key is compared, and digests of one length are, so how long it takes says nothing about any of them.
        """
        if self.is_open:
            return _ANY
        given = _digest(secret or "")
        found = [key for digest, key in self._keys if hmac.compare_digest(digest, given)]
        return found[0] if found and secret else None

    def sign(self, run_id: str) -> tuple[str, int]:
        """A token for following this run, and until when (seconds since 1970) it is good."""
        expires = int(time.time()) + TOKEN_S
        return f"{expires}.{self._signature(run_id, expires)}", expires

    def may_follow(self, run_id: str, token: str) -> bool:
        """Whether a token is one for this run, and still good."""
        digits, _, signature = token.partition(".")
        if not (digits.isascii() and digits.isdigit() and len(digits) < 12):
            return False
        expected = self._signature(run_id, int(digits)).encode()
        return hmac.compare_digest(expected, signature.encode("utf-8", "replace")) and time.time() <= int(digits)

    def session(self, key: Key) -> str:
        """What a browser shows instead of this key."""
        return self._sealed("session", self._mark(_digest(key.secret)), int(time.time()) + SESSION_S)

    def of_session(self, value: str) -> Key | None:
        """The key of a session that is still good, for what people do; None when it is none."""
        key = self._marks.get(self._opened("session", value) or "")
        return key and Key(key.roles - {"worker"} or frozenset({"reader"}), key.secret, key.name)

    def ticket(self, key: Key) -> str:
        """What signs a browser in once, within a minute: it may be seen by who sees the commands of this machine."""
        mark = f"{self._mark(_digest(key.secret))}-{secrets.token_hex(8)}"
        return self._sealed("ticket", mark, int(time.time()) + TICKET_S)

    def take(self, ticket: str) -> Key | None:
        """The key of a ticket, the first time."""
        mark = self._opened("ticket", ticket)
        now = int(time.time())
        self._taken = {taken: until for taken, until in self._taken.items() if until >= now}
        if mark is None or mark in self._taken:
            return None
        self._taken[mark] = now + TICKET_S
        return self._marks.get(mark.partition("-")[0])

    def _sealed(self, purpose: str, what: str, expires: int) -> str:
        return f"{what}.{expires}.{self._mac(f'{purpose}:{what}.{expires}')}"

    def _opened(self, purpose: str, value: str) -> str | None:
        """What was sealed for a purpose, if that is true and not too long ago."""
        content, _, mac = value.rpartition(".")
        what, _, digits = content.rpartition(".")
        expected = self._mac(f"{purpose}:{content}").encode()
        if not hmac.compare_digest(expected, mac.encode("utf-8", "replace")):
            return None
        return what if int(digits) >= time.time() else None

    def _mark(self, digest: bytes) -> str:
        """What a key is called where it must not be seen."""
        return self._mac(f"key:{digest.hex()}")[:32]

    def _mac(self, text: str) -> str:
        return hmac.new(self._signing, text.encode("utf-8", "replace"), hashlib.sha256).hexdigest()

    def _signature(self, run_id: str, expires: int) -> str:
        return hmac.new(self._signing, f"{expires}:{run_id}".encode("utf-8", "replace"), hashlib.sha256).hexdigest()


def who_asks(keyring: Keyring, request: HTTPConnection) -> Key | None:
    """By the key that a request brings, or by its cookie; None: by neither.

    A cookie comes by itself with whatever a browser is told to send. Pages of other sites do not get it sent
    (SameSite); those of another port are of the same site, so that what changes something must come from a page of this
    very origin, whatever other origins are allowed here.
    """
    scheme, _, secret = request.headers.get("authorization", "").partition(" ")
    key = keyring.find(secret.strip() if scheme.lower() == "bearer" else None)
    if key is not None or scheme:
        return key
    key = keyring.of_session(request.cookies.get(keyring.cookie, ""))
    if key is not None and request.scope["method"] not in ("GET", "HEAD"):
        require_own_page(request)
    return key


def require_own_page(request: HTTPConnection) -> None:
    """Raises Refused unless a page of this origin asks."""
    origin = request.headers.get("origin")
    own = f"{request.scope.get('scheme', 'http')}://{request.headers.get('host', '')}"
    if origin != own and (origin is not None or request.headers.get("sec-fetch-site") != "same-origin"):
        raise Refused(403, error="only a page of this gateway may ask that with a cookie", code="foreign_origin")


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode("utf-8", "replace")).digest()
