"""Marks: the start of a step, written when somebody could miss it.

A step that says nothing about the outside may be executed again whatever happens, so it need not be begun before it is
executed. Its start is written once it has been at work for a moment, or before it does anything else with its run. A
quicker step is written in one call when it completes, its start and its checkpoint together.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .call import Call

if TYPE_CHECKING:
    from .flow import Flow

#: How long a step is at work before its start is written, in seconds.
LATE_S = 0.02


@dataclass(frozen=True)
class Answer:
    """In a flow: waits for what somebody else asked for; the answer is read from the future.

    Attributes:
        seconds: how long to wait at most; by default for as long as it takes.
    """

    future: Future[Any]
    seconds: float | None = None


class Mark:
    """The start of one step. Whoever takes the call makes it, once: the clock, the step itself, or nobody.

    Args:
        before: what is to be waited for first.

    Attributes:
        hidden: there is no call: nobody is to see the step at work.
        answer: what the database said, for who did not make the call; there is one once the call is taken.
    """

    def __init__(self, call: Callable[[], Call[Any]] | None, before: Callable[[], Flow[None]] | None = None) -> None:
        self.hidden: bool = call is None
        self._before = before
        self._process = os.getpid()
        self._call = call
        self._lock = threading.Lock()
        self._left: Future[None] | None = None
        self._is_left = False
        self.answer: Future[Any] | None = None

    def drop(self) -> bool:
        """The step is over. Whether its start was not written, and now never will be by itself."""
        with self._lock:
            unwritten, self._call = self._call is not None, None
        return unwritten

    def written(self) -> Flow[None]:
        """Writes the start if nobody has yet, and waits until it is; an error is left to the end of the step.

        A child of a fork leaves that to its parent, whose thread it may be that is at it.
        """
        if os.getpid() != self._process:
            return
        with self._lock:
            call, self._call = self._call, None
            if call is not None:
                self.answer = Future()
        if self.answer is None:
            return
        if call is None:
            yield Answer(self.answer)
            return
        try:
            if self._before is not None:
                yield from self._before()
            self.answer.set_result((yield call()))
        except BaseException as error:
            self.answer.set_exception(error)
            if not isinstance(error, Exception):
                raise

    def leave(self) -> None:
        """The database knows of the step."""
        with self._lock:
            self._is_left = True
        if self._left is not None:
            self._left.set_result(None)

    def known(self) -> Flow[None]:
        """Writes the start, or where the step is over already, waits until the database knows of it."""
        yield from self.written()
        with self._lock:
            if self.answer is None and not self._is_left:
                self._left = self._left or Future()
        if self._left is not None:
            yield Answer(self._left)

    def outcome(self) -> Flow[Any]:
        """The step is over: what the database said to its start; None if it was not written."""
        if self.drop() or self.answer is None:
            return None
        yield Answer(self.answer)
        return self.answer.result()


#: The mark of the step that is being executed here.
current_mark: ContextVar[Mark | None] = ContextVar("tidebase_current_mark", default=None)
