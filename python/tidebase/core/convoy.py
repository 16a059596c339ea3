# Made by python/tools/faces.py out of convoy_async.py: change that, and run `make faces`.
"""Convoys: calls that come while others are under way wait for them, and then go together.

Nothing waits that has nobody to wait for, so a step after another costs what it did. Each call is durable before its
caller hears of it: who was taken along hears when the one call is back. When that fails, for whatever reason, or who
makes it is cancelled, each makes its own call: it may be made again, so nothing is lost and nothing is done twice.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, Generic, TypeVar, cast

from ._threads import Lock, Promise, keep_promise, promise, renewed, sometime, within
from .call import Call
from .errors import TidebaseError
from .joint import Joint

R = TypeVar("R")
#: How many calls are under way before those of others wait.
SENDERS = 4
#: How many go together at most, and how many bytes.
MOST = 64
MOST_BYTES = 1000000
#: How long a call waits for its turn before it goes by itself, in seconds: another run's may be stuck behind a lock.
PATIENCE_S = 0.1


class _Rider(Generic[R]):
    """Who has come with a call."""

    def __init__(self, joint: Joint[R]) -> None:
        self.joint = joint
        self.turn: Promise | None = None
        self.convoy: list[_Rider[Any]] | None = None  # that it leads
        self.result: R | None = None
        self.has_arrived = False


class Convoys:
    """Those of one process.

    Args:
        execute: makes a call.
    """

    def __init__(self, execute: Callable[[Call[Any]], Any]) -> None:
        self._execute = execute
        self._lock = Lock()
        self._waiting: dict[Hashable, list[_Rider[Any]]] = {}
        self._under_way: set[Hashable] = set()
        self._senders = 0

    def make(self, joint: Joint[R]) -> R:
        """Makes the call, alone or with others.

        Raises:
            TidebaseError: what the call alone has raised.
        """
        rider = _Rider(joint)
        with self._lock:
            if joint.key not in self._under_way and self._senders < SENDERS:
                self._depart([rider])
            else:
                rider.turn = promise()
                self._waiting.setdefault(joint.key, []).append(rider)
        try:
            if rider.turn is not None:
                self._wait(rider, rider.turn)
        except BaseException:
            self._give_up(rider)
            raise
        if rider.convoy is not None:
            self._lead(rider, rider.convoy)
        return cast(R, self._execute(joint.alone)) if rider.result is None else rider.result

    def _wait(self, rider: _Rider[R], turn: Promise) -> None:
        if within(turn, PATIENCE_S):
            return
        with self._lock:
            if self._is_waiting(rider):
                self._strike(rider)
                return
            if rider.convoy is not None or rider.has_arrived:
                return
            rider.turn = turn = renewed(turn)
        sometime(turn)

    def _lead(self, rider: _Rider[R], convoy: list[_Rider[Any]]) -> None:
        try:
            if len(convoy) == 1:
                rider.result = self._execute(rider.joint.alone)
                return
            call = rider.joint.gather([other.joint for other in convoy])
            for other, result in zip(convoy, self._execute(call), strict=True):
                other.result = result
        except TidebaseError:
            if len(convoy) == 1:
                raise
        finally:
            with self._lock:
                self._arrive(convoy)

    def _give_up(self, rider: _Rider[Any]) -> None:
        """It is cancelled: nobody waits for it, and who was to go with it goes alone."""
        with self._lock:
            if self._is_waiting(rider):
                self._strike(rider)
            elif rider.convoy is not None:
                self._arrive(rider.convoy)

    # What follows is done under the lock.

    def _is_waiting(self, rider: _Rider[Any]) -> bool:
        return rider in self._waiting.get(rider.joint.key, ())

    def _strike(self, rider: _Rider[Any]) -> None:
        others = self._waiting[rider.joint.key]
        others.remove(rider)
        if not others:
            del self._waiting[rider.joint.key]

    def _depart(self, convoy: list[_Rider[Any]]) -> None:
        """The first one makes the call for all."""
        self._senders += 1
        self._under_way.update({rider.joint.key for rider in convoy})
        convoy[0].convoy = convoy

    def _arrive(self, convoy: list[_Rider[Any]]) -> None:
        """The call is back: those who were taken along go on, and those who wait set out."""
        self._senders -= 1
        self._under_way.difference_update({rider.joint.key for rider in convoy})
        for rider in convoy[1:]:
            rider.has_arrived = True
            keep_promise(cast(Promise, rider.turn))
        while self._waiting and self._senders < SENDERS:
            ready = [key for key in self._waiting if key not in self._under_way]
            if not ready:
                return
            share = -(-len(ready) // (SENDERS - self._senders))  # each of those who may set out now takes as many
            following = self._taken(ready[:share])
            self._depart(following)
            keep_promise(cast(Promise, following[0].turn))

    def _taken(self, keys: list[Hashable]) -> list[_Rider[Any]]:
        taken: list[_Rider[Any]] = []
        size = 0
        for key in keys:
            for rider in list(self._waiting[key]):
                size += rider.joint.size
                if taken and (len(taken) == MOST or size > MOST_BYTES):
                    return taken
                self._strike(rider)
                taken.append(rider)
        return taken
