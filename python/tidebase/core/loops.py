"""Event loops: what belongs to one (a lock, a task, a connection) is of no use in another."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

from .forked import inherit

T = TypeVar("T")


class PerLoop(Generic[T]):
    """One thing for each event loop of this process, made when it is first asked for there.

    Args:
        make: makes it, in the running loop.
        leave: is told of one whose loop is closed.
    """

    def __init__(self, make: Callable[[], T], leave: Callable[[T], None] = lambda thing: None) -> None:
        self._make = make
        self._leave = leave
        self.begin_anew()
        inherit(self)

    def begin_anew(self) -> None:
        """A child of a fork has none of the loops of its parent."""
        self._lock = threading.Lock()
        self._made: dict[asyncio.AbstractEventLoop, T] = {}
        self._last: tuple[asyncio.AbstractEventLoop, T] | None = None

    def here(self) -> T:
        """That of the running event loop."""
        loop, last = asyncio.get_running_loop(), self._last
        if last is not None and last[0] is loop:
            return last[1]
        with self._lock:
            for other in [known for known in self._made if known.is_closed()]:
                self._leave(self._made.pop(other))
            if loop not in self._made:
                self._made[loop] = self._make()
            self._last = loop, self._made[loop]
            return self._made[loop]
