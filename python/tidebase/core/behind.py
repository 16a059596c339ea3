"""Write-behind: calls that are on their way while the work goes on. Nothing here does IO.

Whatever can be seen outside waits for them: the rule of output commit (Elnozahy, Alvisi, Wang, Johnson: A survey of
rollback-recovery protocols in message-passing systems, ACM Computing Surveys 34, 2002). They arrive in their order, and
the first one that is refused is the last one: none of those behind it is made.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from .errors import DatabaseUnavailable, TidebaseError
from .flow import Aside, Flow
from .joint import Joint
from .mark import Answer

#: How many may be on their way, how many bytes, and for how long the first of them, in seconds.
WINDOW = 64
WINDOW_BYTES = 1_000_000
WINDOW_S = 0.1


@dataclass(slots=True, eq=False)
class _Letter:
    """A call on its way. ``accept``: raises what its answer means to the work."""

    joint: Joint[Any]
    accept: Callable[[Any], Any]
    at: float


class Behind:
    """The calls of one run that are on their way. Whoever waits for them makes them, where nobody is at it.

    Attributes:
        failure: what the first one that was refused has met: the work does not go on, since what it was told is not
            stored.
    """

    def __init__(self) -> None:
        self.failure: TidebaseError | None = None
        self._process = os.getpid()
        self._lock = threading.RLock()
        self._letters: deque[_Letter] = deque()
        self._bytes = 0
        self._is_asked = False  # somebody was sent, who has not begun yet
        self._maker: object = None  # who is at it
        self._progress: Future[None] | None = None

    @property
    def is_inherited(self) -> bool:
        """Whether they are those of the parent of this process, who makes them."""
        return os.getpid() != self._process

    def check(self) -> None:
        """Raises what one of them has met."""
        if self.failure is not None:
            raise self.failure

    def put(self, joint: Joint[Any], accept: Callable[[Any], Any]) -> Flow[None]:
        """A call sets out; while the window is full, that is waited for. Raises what an earlier one has met."""
        while self._is_full():
            yield from self._pushed_on()
        with self._lock:
            self.check()
            self._letters.append(_Letter(joint, accept, time.monotonic()))
            self._bytes += joint.size
            if self._is_asked or self._maker is not None:
                return
            self._is_asked = True
        yield Aside(self._make())

    def settled(self) -> Flow[None]:
        """Waits until all have arrived. Raises what one of them has met."""
        yield from self.drained()
        self.check()

    def drained(self) -> Flow[None]:
        """Waits until none is on its way."""
        while self._letters and not self.is_inherited:
            yield from self._pushed_on()

    def _is_full(self) -> bool:
        if not self._letters:
            return False
        if len(self._letters) >= WINDOW or self._bytes >= WINDOW_BYTES:
            return True
        try:
            return time.monotonic() - self._letters[0].at > WINDOW_S
        except IndexError:  # it has arrived meanwhile
            return False

    def _pushed_on(self) -> Flow[None]:
        """Waits until the next of them have arrived; makes them where nobody is at it."""
        with self._lock:
            if not self._letters:  # they have just arrived, and nobody would tell of it again
                return
            is_made, waiting = self._maker is not None, self._progress or Future()
            if is_made:
                self._progress = waiting
        if is_made:
            yield Answer(waiting)
        else:
            yield from self._make()

    def _make(self) -> Flow[None]:
        """Makes them, as many at once as there are, until there are none."""
        maker = object()
        try:
            with self._lock:
                self._is_asked = False
                if self._maker is not None:
                    return
                self._maker = maker
            while letters := self._next():
                failure = None
                try:
                    yield from _made(letters)
                except TidebaseError as error:
                    failure = error
                self._arrived(letters, failure)
        except BaseException:  # whoever waits for them makes them
            if self._maker is maker:
                self._maker = None
                self._arrived([], None)
            raise

    def _next(self) -> list[_Letter]:
        """Those that go now; they are on their way until they have arrived, whoever makes them."""
        with self._lock:
            if not self._letters:
                self._maker = None
            return list(self._letters)

    def _arrived(self, letters: list[_Letter], failure: TidebaseError | None) -> None:
        """Who waits goes on. Behind one that is refused none sets out."""
        with self._lock:
            self.failure = failure or self.failure
            gone = len(letters) if failure is None else len(self._letters)
            for _ in range(gone):
                self._bytes -= self._letters.popleft().joint.size
            waiting, self._progress = self._progress, None
        if waiting is not None:
            waiting.set_result(None)


def _made(letters: list[_Letter]) -> Flow[None]:
    """Makes calls as one, and those alone for which that is not the answer."""
    answers: list[Any] = [None] * len(letters)
    if len(letters) > 1:
        try:
            answers = yield letters[0].joint.gather([letter.joint for letter in letters])
        except DatabaseUnavailable:
            raise
        except TidebaseError:  # one of them is refused: which one, and how, it is told by itself
            pass
    for letter, answer in zip(letters, answers, strict=True):
        letter.accept((yield letter.joint.alone) if answer is None else answer)
