"""Nodes that are durable steps: one that was interrupted does not take effect twice.

LangGraph executes a node again that did not end. As a step of a run the database decides whether it may be: see "Is it
safe to rerun?" in the guide. Each task of a graph (a node, at a checkpoint) has a run of its own, whose id follows from
the thread and the task; whoever resumes the thread comes to the same task, and so to the same run.
"""

from __future__ import annotations

import asyncio
import base64
import contextvars
import functools
import inspect
import math
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ParamSpec, TypedDict, TypeVar, cast

from langgraph.checkpoint.serde.base import SerializerProtocol
from langgraph.config import get_config
from langgraph.errors import GraphBubbleUp

from ...client.work import Run
from ...client.work_async import AsyncRun
from ...core.errors import InvalidArgument
from ...core.flow import drive, drive_async
from ...core.options import check
from ...domain.step import StepOptions
from .saver import AsyncTidebaseSaver, TidebaseSaver
from .threads import run_id_of

if TYPE_CHECKING:
    from typing_extensions import Unpack

P = ParamSpec("P")
T = TypeVar("T")

#: The workflow of the runs of nodes.
WORKFLOW = "langgraph.node"

#: The one member of a step's output that is not JSON by itself: bytes of the saver's serializer.
_SERIALIZED = "langgraph.serialized"


class DurableOptions(TypedDict, total=False):
    """The resume contract of a node, as of a step; see :class:`~tidebase.domain.step.StepOptions`.

    Attributes:
        side_effects: what it does to the outside.
        idempotency_key: makes that happen once, however often it is asked for: a text, or a function of the node's
            arguments that returns it. :func:`task_key` is one that is the node's own at this point of the thread.
        replay, checkpoint_invariant, verified_by, retries, retry_delay_s, retry_max_delay_s, timeout_s: as of a step.
    """

    side_effects: Sequence[str]
    idempotency_key: str | Callable[..., str]
    replay: str
    checkpoint_invariant: str
    verified_by: str
    retries: int
    retry_delay_s: float
    retry_max_delay_s: float
    timeout_s: float


@dataclass(frozen=True)
class _Task:
    """Where a node is executed: as LangGraph's config for it says."""

    saver: TidebaseSaver | AsyncTidebaseSaver
    thread_id: str
    namespace: str
    checkpoint_id: str
    task_id: str

    @property
    def run_id(self) -> str:
        return run_id_of(self.thread_id, self.task_id)

    @property
    def about(self) -> dict[str, str]:
        return {"thread_id": self.thread_id, "checkpoint_id": self.checkpoint_id, "task_id": self.task_id}


def _task() -> _Task:
    configurable = get_config().get("configurable") or {}
    saver = configurable.get("__pregel_checkpointer")
    if not isinstance(saver, TidebaseSaver | AsyncTidebaseSaver):
        raise InvalidArgument("a durable node needs a graph that is compiled with a TidebaseSaver")
    if configurable.get("__pregel_durability") == "exit":
        raise InvalidArgument('a durable node needs its checkpoints while it is at work: durability="sync" or "async"')
    namespace = str(configurable.get("checkpoint_ns", "")).rpartition("|")[0]
    return _Task(
        saver,
        str(configurable["thread_id"]),
        namespace,
        str(configurable["checkpoint_map"][namespace]),
        str(configurable["__pregel_task_id"]),
    )


def task_key() -> str:
    """A key for what the node at hand does: the same whenever it is executed again at this point of the thread."""
    return _task().run_id


def durable(node: Callable[P, T], name: str | None = None, /, **options: Unpack[DurableOptions]) -> Callable[P, T]:
    """A node as a durable step: ``builder.add_node("charge", durable(charge, side_effects=["card.charge"]))``.

    What the node returned is kept before LangGraph hears of it. One that was interrupted is executed again only as its
    contract allows; an unkeyed one that may have taken effect raises RunNeedsReview, until a person has decided
    (``tide.runs.reviews()``). What is not JSON is kept as the saver's serializer writes it.

    A node of this kind asks nobody (``interrupt``): that belongs into a node before it. An async one needs an
    :class:`~tidebase.integrations.langgraph.AsyncTidebaseSaver`.
    """
    check(DurableOptions, options, "a durable node")
    called = str(name or getattr(node, "__name__", type(node).__name__))
    if inspect.iscoroutinefunction(node):

        @functools.wraps(node)
        async def in_loop(*args: P.args, **kwargs: P.kwargs) -> Any:
            async def body() -> Any:
                with _asking_nobody():
                    return await cast(Awaitable[Any], node(*args, **kwargs))

            return await _in_loop(_task(), called, body, _contract(options, args, kwargs))

        return cast(Callable[P, T], in_loop)

    @functools.wraps(node)
    def in_thread(*args: P.args, **kwargs: P.kwargs) -> Any:
        task, contract = _task(), _contract(options, args, kwargs)

        def body() -> Any:
            with _asking_nobody():
                return node(*args, **kwargs)

        if isinstance(task.saver, TidebaseSaver):
            return _in_thread(task, task.saver, called, body, contract)
        context = contextvars.copy_context()
        work = _in_loop(task, called, lambda: asyncio.to_thread(context.run, body), contract)
        return asyncio.run_coroutine_threadsafe(work, task.saver._loop).result()

    return cast(Callable[P, T], in_thread)


@contextmanager
def _asking_nobody() -> Iterator[None]:
    try:
        yield
    except GraphBubbleUp as error:
        raise InvalidArgument("a durable node cannot interrupt the graph: let a node before it do that") from error


def _contract(options: DurableOptions, args: tuple[Any, ...], kwargs: dict[str, Any]) -> StepOptions:
    chosen = dict(options)
    key = chosen.get("idempotency_key")
    if callable(key):
        chosen["idempotency_key"] = key(*args, **kwargs)
    return cast(StepOptions, chosen)


def _in_thread(task: _Task, saver: TidebaseSaver, name: str, body: Callable[[], Any], contract: StepOptions) -> Any:
    drive(saver._awaited(task.thread_id, task.namespace, task.checkpoint_id), saver._database)

    def workflow(run: Run, input: Any) -> Any:
        return run.step.options(**contract)(name, lambda: _kept(body(), saver.serde))

    metadata = {"thread_id": task.thread_id, "node": name}
    result = saver.tide.run(WORKFLOW, workflow, run_id=task.run_id, input=task.about, metadata=metadata)
    return _back(result, saver.serde)


async def _in_loop(task: _Task, name: str, body: Callable[[], Awaitable[Any]], contract: StepOptions) -> Any:
    saver = task.saver
    if not isinstance(saver, AsyncTidebaseSaver):
        raise InvalidArgument("an async node that is durable needs an AsyncTidebaseSaver")
    await drive_async(saver._awaited(task.thread_id, task.namespace, task.checkpoint_id), saver._database)

    async def kept() -> Any:
        return _kept(await body(), saver.serde)

    async def workflow(run: AsyncRun, input: Any) -> Any:
        return await run.step.options(**contract)(name, kept)

    metadata = {"thread_id": task.thread_id, "node": name}
    result = await saver.tide.run(WORKFLOW, workflow, run_id=task.run_id, input=task.about, metadata=metadata)
    return _back(result, saver.serde)


def _kept(value: Any, serde: SerializerProtocol) -> Any:
    """What a node returned, as JSON."""
    if _is_json(value):
        return value
    type, content = serde.dumps_typed(value)
    return {_SERIALIZED: type, "content": base64.b64encode(content).decode()}


def _back(value: Any, serde: SerializerProtocol) -> Any:
    if isinstance(value, dict) and value.keys() == {_SERIALIZED, "content"}:
        return serde.loads_typed((value[_SERIALIZED], base64.b64decode(value["content"])))
    return value


def _is_json(value: Any) -> bool:
    """Whether JSON in Postgres gives back just this, with its types."""
    if isinstance(value, dict):
        simple = type(value) is dict and _SERIALIZED not in value and all(map(_is_json, value.keys()))
        return simple and all(type(key) is str for key in value) and all(map(_is_json, value.values()))
    if isinstance(value, list):
        return type(value) is list and all(map(_is_json, value))
    if isinstance(value, str):
        return type(value) is str and not any(letter == "\0" or "\ud800" <= letter <= "\udfff" for letter in value)
    if isinstance(value, float):
        return type(value) is float and math.isfinite(value) and not value.is_integer()
    return value is None or type(value) is bool or (type(value) is int and abs(value) < 2**53)
