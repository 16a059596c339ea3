"""Values as bytes: what a new one has in common with the one before it is not sent again.

Nothing here knows what the bytes mean, but for one thing: a list in MessagePack is its length, and then its items one
after the other. So a list that grew begins with all of what it was, behind its head.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import NamedTuple

from .messages import Read, Shown

#: How many bytes of values a saver remembers. What it has forgotten it reads again, or sends whole.
MEMORY_BYTES = 64 * 1024 * 1024

#: What is shorter is sent again rather than looked for.
_WORTH_IT = 64

#: How much of what follows must be the same, for a place in the old value to be looked at.
_ANCHOR = 256

#: So many values of a thread are named to the database, of which it need not send what the client has.
_MOST = 100

Piece = list[int] | bytes


def split(type: str, data: bytes) -> tuple[bytes, bytes]:
    """Head and body of a serialized value (MessagePack specification, "array format family")."""
    if type != "msgpack" or not data:
        return b"", data
    first = data[0]
    length = 1 if 0x90 <= first <= 0x9F else {0xDC: 3, 0xDD: 5}.get(first, 0)
    return data[:length], data[length:]


def head_of(length: int) -> bytes:
    """The head of a list in MessagePack."""
    if length < 16:
        return bytes((0x90 | length,))
    return b"\xdc" + length.to_bytes(2, "big") if length < 1 << 16 else b"\xdd" + length.to_bytes(4, "big")


def length_of(head: bytes) -> int:
    """How long a list is, by its head."""
    return head[0] & 0x0F if len(head) == 1 else int.from_bytes(head[1:], "big")


def pieces(old: bytes, new: bytes) -> list[Piece]:
    """How the new body is made of ranges ``[from, to]`` of the old one, and of bytes of its own."""
    if old and new.startswith(old):
        return _worth([[0, len(old)], new[len(old) :]])
    ahead = _common(old, new)
    behind = _common(old[ahead:][::-1], new[ahead:][::-1])
    between = new[ahead : len(new) - behind]
    anchor = new[ahead : ahead + _ANCHOR]
    place = old.find(anchor, ahead) if len(between) >= _ANCHOR else -1
    if place > 0:  # what stood in front of it is gone: a window moved on
        length = _common(old[place:], new[ahead:])
        if length > behind:
            return _worth([[0, ahead], [place, place + length], new[ahead + length :]])
    return _worth([[0, ahead], between, [len(old) - behind, len(old)]], new)


def _worth(found: list[Piece], whole: bytes | None = None) -> list[Piece]:
    """Without what is empty; the whole, if there is little in it to be taken over."""
    kept = sum(piece[1] - piece[0] for piece in found if isinstance(piece, list))
    if whole is not None and kept < _WORTH_IT:
        return [whole] if whole else []
    return [piece for piece in found if (piece[1] > piece[0] if isinstance(piece, list) else piece)]


def _common(left: bytes, right: bytes) -> int:
    """How many bytes they begin with in common."""
    low, high = 0, min(len(left), len(right))
    while low < high:
        middle = (low + high + 1) // 2
        if left[low:middle] == right[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


class Known(NamedTuple):
    """A value that is in the database: where it is there, its body; and if it is a list of messages, what they are."""

    edition: str
    number: int
    version: str
    body: bytes
    shown: Shown | None = None
    read: Read | None = None

    @property
    def size(self) -> int:
        """About how many bytes it takes to remember it. A message takes 1,000 beside its text, and is there twice."""
        count = len(self.shown.objects if self.shown else ()) + len(self.read.states if self.read else ())
        return len(self.body) + 1000 * count


#: A channel of a thread: its id, the namespace, the channel's name.
Key = tuple[str, str, str]


class Memory:
    """The value that each channel had last, as far as there is room; and which threads were found empty."""

    def __init__(self, max_bytes: int = MEMORY_BYTES) -> None:
        self._max_bytes = max_bytes
        self._bytes = 0
        self._values: OrderedDict[Key, Known] = OrderedDict()
        self._channels: dict[tuple[str, str], set[str]] = {}
        self._empty: OrderedDict[tuple[str, str], None] = OrderedDict()
        self._lock = threading.Lock()

    def recall(self, key: Key) -> Known | None:
        """What the channel had last, if it is remembered."""
        with self._lock:
            known = self._values.get(key)
            if known is not None:
                self._values.move_to_end(key)
            return known

    def of(self, thread_id: str, namespace: str) -> dict[int, Known]:
        """What is remembered of a thread, by the numbers of the values, of one edition."""
        with self._lock:
            found = [
                self._values[thread_id, namespace, channel]
                for channel in self._channels.get((thread_id, namespace), ())
            ]
        edition = found[0].edition if found else None
        return {known.number: known for known in found[:_MOST] if known.edition == edition}

    def keep(self, key: Key, known: Known) -> None:
        """Remembers a value, in place of the one before."""
        with self._lock:
            self._drop(key)
            if known.size > self._max_bytes:
                return
            self._values[key] = known
            self._channels.setdefault(key[:2], set()).add(key[2])
            self._bytes += known.size
            while self._bytes > self._max_bytes:
                self._drop(next(iter(self._values)))

    def forget(self, key: Key) -> None:
        """The value is not in the database any more."""
        with self._lock:
            self._drop(key)

    def _drop(self, key: Key) -> None:
        known = self._values.pop(key, None)
        if known is not None:
            self._bytes -= known.size
            channels = self._channels[key[:2]]
            channels.discard(key[2])
            if not channels:
                del self._channels[key[:2]]

    # Whoever has found a thread empty, and puts its first checkpoint, does so only if it still is. It stays noted: two
    # who have found it empty at once share this memory.

    def note(self, thread_id: str, namespace: str, is_empty: bool) -> None:
        """What a reader of the newest checkpoint has found."""
        with self._lock:
            self._empty.pop((thread_id, namespace), None)
            if is_empty:
                self._empty[thread_id, namespace] = None
                if len(self._empty) > 100_000:
                    self._empty.popitem(last=False)

    def was_empty(self, thread_id: str, namespace: str) -> bool:
        """Whether whoever looked last found no checkpoint there."""
        with self._lock:
            return (thread_id, namespace) in self._empty
