"""Crashes at a step: the process dies there, or what it does ends there as if it had.

Nothing in the package looks for such a place: while a crash is wanted, what carries out the effects of flows
(:mod:`tidebase.core.flow`) is replaced by something that does the same, and dies at the step.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager, suppress
from typing import Any, Literal, get_args

from ..client.work import Run
from ..client.work_async import AsyncRun
from ..core import flow
from ..core.call import Call
from ..core.database import Database
from ..core.database_async import AsyncDatabase
from ..core.errors import DatabaseUnavailable, InvalidArgument
from ..core.joint import Joint
from ..core.line import Line
from ..core.line_async import AsyncLine
from ..domain.step import current_step

When = Literal["before", "after work", "after commit"]

_ENDS = re.compile(r"\btidebase\.(complete_step|record_step|record_steps)\(")
_NAME = re.compile(r"(\w+) => %s")

_lock = threading.Lock()


class Crashed(BaseException):
    """What stands for the end of the process: nobody who catches errors shall catch it."""


class Died(AssertionError):
    """The process did not die as it was to: nobody came by that step, or something else ended it."""


class CrashPoint:
    """Where a process is to die.

    Args:
        step: the name of the step, with its key: ``charge``, ``send[7]``.
        when: ``before`` (its work has not begun; a step that declares what it does outside is known to be begun),
            ``after work`` (its work is done, its result is not stored: what was done outside is known to nobody),
            ``after commit`` (its result is stored, and nobody was told).
        visit: at the how-manieth time, from 1.
    """

    def __init__(self, step: str, when: When = "before", visit: int = 1) -> None:
        if when not in get_args(When):
            raise InvalidArgument(f"when must be one of {', '.join(get_args(When))}, and not {when!r}")
        if visit < 1:
            raise InvalidArgument("visit must be at least 1")
        self.step, self.when, self.visit = step, when, visit
        self.crashed = False
        self._die: Callable[[], None] = self._raise
        self._dead = False

    def __repr__(self) -> str:
        return f"CrashPoint({self.step!r}, {self.when!r}, visit={self.visit})"

    def passing(self, when: When, step: str | None) -> None:
        """Somebody is there. Raises Crashed, or does not return."""
        if self._dead:
            raise Crashed(f"the process died {self.when} step {self.step!r}")
        if when == self.when and step == self.step:
            self.visit -= 1
            if self.visit == 0:
                self._die()

    def alive(self, database: object) -> None:
        """Raises Crashed where the process is dead: nothing that it still does reaches the database. The heart, which
        beats for the processes to come as well, is told that the database cannot be reached.
        """
        if self._dead and isinstance(database, (Line, AsyncLine)):
            raise DatabaseUnavailable(f"the process died {self.when} step {self.step!r}")
        if self._dead:
            raise Crashed(f"the process died {self.when} step {self.step!r}")

    def _raise(self) -> None:
        self.crashed = self._dead = True
        raise Crashed(f"the process dies {self.when} step {self.step!r}")

    @contextmanager
    def set(self, die: Callable[[], None] | None = None) -> Iterator[None]:
        """While the block runs, whoever comes by dies."""
        if not _lock.acquire(blocking=False):
            raise InvalidArgument("one crash at a time: another one is wanted already")
        if die is not None:
            self._die = die
        originals = [(owner, name, getattr(owner, name)) for owner, name, _ in _REPLACED]
        for owner, name, make in _REPLACED:
            setattr(owner, name, make(self, getattr(owner, name)))
        try:
            yield
        finally:
            for owner, name, original in originals:
                setattr(owner, name, original)
            self._dead = False
            _lock.release()


class CrashAt:
    """:data:`crash_at`."""

    @contextmanager
    def __call__(self, step: str, when: When = "before", *, visit: int = 1) -> Iterator[CrashPoint]:
        """The block is a process that dies at a step: everything that it is in the middle of ends there, as if by
        SIGKILL. Its lease is not given up, no failure is recorded, and nothing that the workflow does on its way out
        (in a ``finally``) reaches the database. The block ends there, too, and what follows is another process::

            with crash_at("charge", when="after work"):
                tide.run("order", order, run_id="order-1")
            advance("2 minutes")    # the lease of the dead runs out
            tide.run("order", order, run_id="order-1")

        ``tide.run`` may be awaited in it, too, and a worker's ``run`` ends there. :meth:`kill` has a process that truly
        dies. Checkpoints that are written behind the work are stored as late as may be: when somebody waits for them.

        Args:
            step, when, visit: see :class:`CrashPoint`.

        Raises:
            Died: nobody came by. What the block raised before it crashed goes on.
        """
        point = CrashPoint(step, when, visit)
        with point.set(), suppress(Crashed):
            yield point
        if not point.crashed:
            raise Died(f"nothing died: nobody came by {when} step {step!r}")

    def kill(self, work: Callable[[], Any], step: str, when: When = "before", *, visit: int = 1) -> None:
        """A child process does the work, and is killed by SIGKILL at the step; returns when it is dead.

        It is a fork of this process, which opens connections of its own.

        Raises:
            Died: it ended otherwise; its traceback is on standard error.
        """
        point = CrashPoint(step, when, visit)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # the parent's threads are left alone in the child
            child = os.fork()
        if child == 0:
            try:
                with point.set(die=lambda: os.kill(os.getpid(), signal.SIGKILL)):
                    work()
            except BaseException:
                traceback.print_exc()
                sys.stderr.flush()
            finally:
                os._exit(1)
        _, status = os.waitpid(child, 0)
        if not (os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL):
            raise Died(f"the process was to be killed {when} step {step!r}, and ended otherwise")


crash_at = CrashAt()


def _ends(effect: Call[Any] | Joint[Any]) -> list[str]:
    """The steps whose checkpoints a call stores."""
    call = effect.alone if isinstance(effect, Joint) else effect
    if _ENDS.search(call.query) is None:
        return []
    arguments = dict(zip(_NAME.findall(call.query), call.parameters, strict=False))
    return [step["name"] for step in json.loads(arguments["steps"])] if "steps" in arguments else [arguments["name"]]


def _step_of(effect: flow.Invoke) -> str | None:
    """The step whose work it is; a workflow's own function is none's."""
    return current_step.get(None)


def _performing(point: CrashPoint, original: Callable[..., Any]) -> Callable[..., Any]:
    def perform(effect: flow.Effect, database: Database) -> Any:
        point.alive(database)
        if isinstance(effect, flow.Aside):
            return None  # nobody is about who could still be at it when the process is dead
        if isinstance(effect, flow.Invoke) and (step := _step_of(effect)) is not None:
            point.passing("before", step)
            result = original(effect, database)
            point.passing("after work", step)
            return result
        result = original(effect, database)
        if isinstance(effect, Call | Joint):
            for step in _ends(effect):
                point.passing("after commit", step)
        return result

    return perform


def _performing_async(point: CrashPoint, original: Callable[..., Any]) -> Callable[..., Any]:
    async def perform(effect: flow.Effect, database: AsyncDatabase) -> Any:
        point.alive(database)
        if isinstance(effect, flow.Aside):
            return None  # nobody is about who could still be at it when the process is dead
        if isinstance(effect, flow.Invoke) and (step := _step_of(effect)) is not None:
            point.passing("before", step)
            result = await original(effect, database)
            point.passing("after work", step)
            return result
        result = await original(effect, database)
        if isinstance(effect, Call | Joint):
            for step in _ends(effect):
                point.passing("after commit", step)
        return result

    return perform


# What is asked outside of any flow, as a worker asks for its next run: a worker in a dead process is dead, too.


def _executing(point: CrashPoint, original: Callable[..., Any]) -> Callable[..., Any]:
    def execute(self: Database, call: Call[Any]) -> Any:
        point.alive(self)
        return original(self, call)

    return execute


def _executing_async(point: CrashPoint, original: Callable[..., Any]) -> Callable[..., Any]:
    async def execute(self: AsyncDatabase, call: Call[Any]) -> Any:
        point.alive(self)
        return await original(self, call)

    return execute


# A transaction commits outside of any flow: its last call is made on its own connection, and then the scope ends.


def _executing_on(point: CrashPoint, original: Callable[..., Any]) -> Callable[..., Any]:
    def execute_on(self: Database, connection: Any, call: Call[Any]) -> Any:
        point.alive(self)
        for step in _ends(call):
            point.passing("after work", step)
        return original(self, connection, call)

    return execute_on


def _executing_on_async(point: CrashPoint, original: Callable[..., Any]) -> Callable[..., Any]:
    async def execute_on(self: AsyncDatabase, connection: Any, call: Call[Any]) -> Any:
        point.alive(self)
        for step in _ends(call):
            point.passing("after work", step)
        return await original(self, connection, call)

    return execute_on


def _committed(point: CrashPoint, trial: Any, joined: Any) -> None:
    if joined is not None and (point.step, point.when) == (trial.name, "after commit"):
        raise InvalidArgument(f"step {trial.name!r} joins a transaction of yours, and only you know when that commits")


def _scope(point: CrashPoint, original: Callable[..., AbstractContextManager[Any]]) -> Callable[..., Any]:
    @contextmanager
    def scope(self: Run, home: Any, trial: Any, joined: Any) -> Iterator[Any]:
        _committed(point, trial, joined)
        point.passing("before", trial.name)
        with original(self, home, trial, joined) as connection:
            yield connection
        point.passing("after commit", trial.name)

    return scope


def _scope_async(point: CrashPoint, original: Callable[..., Any]) -> Callable[..., Any]:
    @asynccontextmanager
    async def scope(self: AsyncRun, home: Any, trial: Any, joined: Any) -> Any:
        _committed(point, trial, joined)
        point.passing("before", trial.name)
        async with original(self, home, trial, joined) as connection:
            yield connection
        point.passing("after commit", trial.name)

    return scope


_REPLACED: list[tuple[Any, str, Callable[[CrashPoint, Callable[..., Any]], Any]]] = [
    (flow, "_perform", _performing),
    (flow, "_perform_async", _performing_async),
    (Database, "execute", _executing),
    (AsyncDatabase, "execute", _executing_async),
    (Database, "execute_on", _executing_on),
    (AsyncDatabase, "execute_on", _executing_on_async),
    (Run, "_scope", _scope),
    (AsyncRun, "_scope", _scope_async),
]
