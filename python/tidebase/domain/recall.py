"""What a run writes outside of its steps is written once, although the function runs again from the top at a resume.

Each such write carries an id that the next attempt makes again when it does the same thing, and the database, which
executes a call with the same id once, answers with what stands. What an attempt does otherwise than the one before gets
another id, and is written.
"""

from __future__ import annotations

import hashlib
import json
import threading

#: What these ids begin with: none that is made up for a single call does.
PREFIX = "again:"


class Recall:
    """The ids of one attempt. Those of threads that write at once depend on who comes first."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: dict[str, int] = {}
        self._chains: dict[str, str] = {}

    def of_many(self, *what: object) -> str:
        """For what stands alone: the same thing for the n-th time, in whatever order things are done."""
        key = _digest(*what)
        with self._lock:
            count = self._counts[key] = self._counts.get(key, 0) + 1
        return PREFIX + _digest(key, count)

    def in_order(self, stream: str, *what: object, of: str | None = None) -> str:
        """For what replaces what was there: it is the same only when everything before it in its stream was.

        Args:
            of: another stream that it depends on.
        """
        with self._lock:
            before = self._chains.get(stream, stream), self._chains.get(of, of) if of is not None else None
            self._chains[stream] = _digest(before, *what)
            return PREFIX + self._chains[stream]


def _digest(*what: object) -> str:
    text = json.dumps(what, sort_keys=True, default=repr)
    return hashlib.sha256(text.encode()).hexdigest()[:40]
