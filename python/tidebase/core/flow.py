"""Flows: the logic of the wrapper, written once for threads and for asyncio.

A flow is a generator that yields what it wants done (a call to the database, the user's function, a pause) and is sent
the result, or thrown the error. ``drive`` and ``drive_async`` do what it asks; neither knows what it is about.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import os
import threading
import time
from collections.abc import Awaitable, Callable, Generator
from concurrent.futures import Future, wait
from dataclasses import dataclass
from typing import Any, TypeVar

from ._tasks import go_apart, to_its_end
from .call import Call
from .database import Database
from .database_async import AsyncDatabase
from .errors import LeaseLostError, StepTimeout
from .joint import Joint
from .mark import LATE_S, Answer, Mark

T = TypeVar("T")

#: How often a task that pauses looks whether the pause is to end before its time, in seconds.
_GLANCE_S = 0.2


@dataclass(frozen=True)
class Invoke:
    """The user's function, with a time limit in seconds (None: none). ``mark``: its start, to be written in a while."""

    function: Callable[..., Any]
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] | None = None
    timeout_s: float | None = None
    mark: Mark | None = None


@dataclass(frozen=True)
class Pause:
    """Seconds to wait; ``wake`` ends the wait before its time."""

    seconds: float
    wake: threading.Event | None = None


@dataclass(frozen=True)
class Surely:
    """A call that is made to its end although the work is being cancelled."""

    call: Call[Any]


@dataclass(frozen=True)
class Listen:
    """Seconds to wait for news of a run; the doorbell ends the wait before its time."""

    run_id: str
    seconds: float


@dataclass(frozen=True)
class Aside:
    """A flow that goes its own way: nobody waits for it, nor hears of an error."""

    flow: Flow[None]


Effect = Call[Any] | Joint[Any] | Invoke | Answer | Pause | Surely | Listen | Aside
Flow = Generator[Effect, Any, T]


def one(call: Call[T]) -> Flow[T]:
    """The flow of a single call."""
    result: T = yield call
    return result


def nothing() -> Flow[None]:
    """The flow that asks for nothing."""
    yield from ()


def drive(flow: Flow[T], database: Database) -> T:
    """Runs a flow in this thread."""
    process = os.getpid()
    try:
        effect = next(flow)
        while True:
            try:
                _require_process(process)
                result = _perform(effect, database)
                if type(effect) is Invoke:
                    _require_process(process)
            except BaseException as error:
                effect = flow.throw(error)
            else:
                effect = flow.send(result)
    except StopIteration as stop:
        return stop.value  # type: ignore[no-any-return]


async def drive_async(flow: Flow[T], database: AsyncDatabase) -> T:
    """Runs a flow in this task. A plain function of the user's runs in the event loop's thread."""
    process = os.getpid()
    try:
        effect = next(flow)
        while True:
            try:
                _require_process(process)
                result = await _perform_async(effect, database)
                if type(effect) is Invoke:
                    _require_process(process)
            except BaseException as error:
                effect = flow.throw(error)
            else:
                effect = flow.send(result)
    except StopIteration as stop:
        return stop.value  # type: ignore[no-any-return]


def _require_process(process: int) -> None:
    """A child of a fork that comes out of the user's function does not go on with its parent's work."""
    if os.getpid() != process:
        raise LeaseLostError(
            "this process is a fork of the one that works on the run, which goes on with it",
            hint="Leave a child with os._exit, or at least do not let it return into the workflow.",
        )


def _perform(effect: Effect, database: Database) -> Any:
    if isinstance(effect, Call):
        return database.execute(effect)
    if isinstance(effect, Joint):
        return database.together(effect)
    if isinstance(effect, Pause):
        (effect.wake or threading.Event()).wait(effect.seconds)
        return None
    if isinstance(effect, Listen):
        database.doorbell.wait(effect.run_id, effect.seconds)
        return None
    if isinstance(effect, Surely):
        return database.execute(effect.call)
    if isinstance(effect, Aside):
        database.apart.go(lambda: drive(effect.flow, database))
        return None
    if isinstance(effect, Answer):
        if not effect.future.done():
            wait((effect.future,), effect.seconds)
        return None
    if effect.timeout_s is not None:
        return checked(_within(effect.timeout_s, effect))
    if effect.mark is None:
        return checked(effect.function(*effect.args, **(effect.kwargs or {})))
    database.marker.enter(effect.mark, lambda mark: drive(mark.written(), database))
    try:
        return checked(effect.function(*effect.args, **(effect.kwargs or {})))
    finally:
        database.marker.leave(effect.mark)


async def _perform_async(effect: Effect, database: AsyncDatabase) -> Any:
    if isinstance(effect, Call):
        return await database.execute(effect)
    if isinstance(effect, Joint):
        return await database.together(effect)
    if isinstance(effect, Pause):
        await _pause(effect)
        return None
    if isinstance(effect, Listen):
        await database.doorbell.wait(effect.run_id, effect.seconds)
        return None
    if isinstance(effect, Surely):
        return await to_its_end(database.execute(effect.call))
    if isinstance(effect, Aside):
        go_apart(drive_async(effect.flow, database))
        return None
    if isinstance(effect, Answer):
        if effect.future.done():
            return None
        waiting = asyncio.wrap_future(effect.future)
        waiting.add_done_callback(_looked_at)
        await asyncio.wait((waiting,), timeout=effect.seconds)
        return None
    result = effect.function(*effect.args, **(effect.kwargs or {}))
    if not inspect.isawaitable(result):
        return result
    if effect.mark is not None:
        return await _marked(result, effect.mark, database)
    if effect.timeout_s is None:
        return await result
    try:
        return await asyncio.wait_for(result, effect.timeout_s)
    except (asyncio.TimeoutError, TimeoutError) as error:
        if isinstance(error, StepTimeout):
            raise
        raise StepTimeout(f"the step took longer than {effect.timeout_s} seconds") from error


def _looked_at(future: asyncio.Future[Any]) -> None:
    """Whoever waits reads the answer from the future that this one stands for: asyncio need not complain."""
    if not future.cancelled():
        future.exception()


async def _pause(effect: Pause) -> None:
    over = time.monotonic() + effect.seconds
    while effect.wake is not None and not effect.wake.is_set() and over - time.monotonic() > _GLANCE_S:
        await asyncio.sleep(_GLANCE_S)
    if effect.wake is None or not effect.wake.is_set():
        await asyncio.sleep(max(over - time.monotonic(), 0))


async def _marked(result: Awaitable[Any], mark: Mark, database: AsyncDatabase) -> Any:
    """Awaits it; when that takes a while, its start is written meanwhile."""
    writing: list[asyncio.Task[None]] = []  # the loop itself only has weak references

    def write() -> None:
        writing.append(asyncio.create_task(drive_async(mark.written(), database)))

    timer = asyncio.get_running_loop().call_later(LATE_S, write)
    try:
        return await result
    finally:
        timer.cancel()


def checked(result: Any) -> Any:
    """What a plain function returned. Raises TypeError: it was an async one."""
    if inspect.iscoroutine(result):
        result.close()
        raise TypeError("the function is async: use AsyncTidebase")
    return result


def _within(seconds: float, effect: Invoke) -> Any:
    """Runs the function in a thread of its own and gives up waiting after the limit; a thread cannot be killed, so what
    it still does goes on, but its result is dropped.
    """
    future: Future[Any] = Future()
    context = contextvars.copy_context()

    def target() -> None:
        try:
            future.set_result(context.run(effect.function, *effect.args, **(effect.kwargs or {})))
        except BaseException as error:
            future.set_exception(error)

    thread = threading.Thread(target=target, name="tidebase-step", daemon=True)
    thread.start()
    thread.join(seconds)
    if not future.done():
        raise StepTimeout(f"the step took longer than {seconds} seconds")
    return future.result()
