"""Who may do what over HTTP: bearer keys with roles, and short-lived tokens for those who cannot send headers.

A key is ``role[+role...][@name]:secret``. The roles are those of the database; they are siblings, not a ladder. The
name says whose the key is: who decides with it decides as this person, and where several must agree this is the voter.
Without any key everybody may do everything, which is to be said (``insecure``); and the loopback interface is all that
such a server listens on.
"""

from __future__ import annotations

import hashlib
import hmac
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from ..core.errors import InvalidArgument

ROLES = frozenset({"worker", "approver", "operator", "reader"})

#: For how long a token for following a run is good, in seconds: it is only looked at when the stream is opened.
TOKEN_S = 50


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

    def _signature(self, run_id: str, expires: int) -> str:
        return hmac.new(self._signing, f"{expires}:{run_id}".encode("utf-8", "replace"), hashlib.sha256).hexdigest()


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode("utf-8", "replace")).digest()
