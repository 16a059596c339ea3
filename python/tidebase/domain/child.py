"""Children: runs that a run starts, one by one or many at once. One child an edge name, so a run that is resumed finds
its children again, and what they did is not done twice.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from math import inf
from typing import Any, NamedTuple, TypedDict, TypeVar

from ..core import codec
from ..core.call import Call, Value, many, one, rows_of, scalar
from ..core.canonical import digest
from ..core.errors import (
    ChildFailed,
    FanoutFailed,
    Interruption,
    RunHeld,
    RunNeedsReview,
    RunSuspendedError,
    TidebaseError,
)
from ..core.flow import Flow
from ..core.hints import command
from ..core.options import check
from ..core.tracing import current_traceparent
from . import workflow
from .lease import Departure, Hold, depart
from .step import Checkpoints, StepOptions, Work
from .usage import Budget, budget_json
from .workflow import Invocation, RunOptions, Started, Worker


@dataclass(frozen=True)
class Child:
    """Answer of create_child: the child's id, and whether this call made it."""

    run_id: str
    created: bool


@dataclass(frozen=True)
class TreeNode:
    """A run of a tree, as run_tree returns it. ``name`` and ``edge_type``: of the edge to it, None for the root."""

    run_id: str
    parent_run_id: str | None
    name: str | None
    edge_type: str | None
    depth: int
    workflow: str
    status: str
    steps_completed: int
    created_at: datetime
    finished_at: datetime | None


@dataclass(frozen=True)
class RunEdge:
    """An edge to a child or a fork of a run, as the view run_edges has it.

    ``source_run_id``: of an edge that a fork took over, the run whose child it is.
    """

    run_id: str
    name: str
    child_run_id: str
    edge_type: str
    metadata: Value
    source_run_id: str | None
    created_at: datetime


create_child = one(
    "create_child",
    Child,
    run_id="text",
    token="bigint",
    name="text",
    workflow="text",
    input="jsonb",
    edge_type="text",
    metadata="jsonb",
    edge_metadata="jsonb",
    max_attempts="integer",
    retry_delay="interval",
    recovery_webhook="text",
    budget="jsonb",
    traceparent="text",
)
suspend_for_children = scalar("suspend_for_children", run_id="text", token="bigint", names="text[]")
run_tree = many("run_tree", TreeNode, run_id="text")


def run_edges(run_id: str, child_run_id: str | None = None) -> Call[list[RunEdge]]:
    """The edges to the children and forks of a run, oldest first, or to one of them."""
    return rows_of("run_edges", RunEdge, "created_at, child_run_id", run_id=run_id, child_run_id=child_run_id)


T = TypeVar("T")

#: How many children of a fan-out are worked on at once, unless told otherwise.
MAX_PARALLEL = 8


class ChildOptions(TypedDict, total=False):
    """What may be said about a child when it is made; its deadline is its parent's.

    Attributes:
        metadata: of the child, a dict of your own.
        edge_metadata: of the edge between the two.
        edge_type: ``child`` unless told; any word but ``fork``.
        budget: a smaller one of its own; it also shares its parent's.
        max_attempts, retry_delay_s, recovery_webhook: as for :class:`~tidebase.domain.workflow.RunOptions`.
    """

    metadata: dict[str, Any] | None
    edge_metadata: dict[str, Any] | None
    edge_type: str
    budget: Budget | None
    max_attempts: int | None
    retry_delay_s: float | None
    recovery_webhook: str | None


class _Spec(TypedDict):
    name: str
    workflow: str | Callable[..., Any]


class ChildSpec(_Spec, total=False):
    """One child of a fan-out.

    Attributes:
        name: of the edge: unique among the run's children.
        workflow: a function ``(run, input)``, or the name of a registered workflow.
        workflow_name: what the child's workflow is called; by default the name, where ``workflow`` is a function.
        input: any value that can be stored as JSON.
        metadata, budget, max_attempts ...: see :class:`ChildOptions`.
    """

    workflow_name: str
    input: Any
    metadata: dict[str, Any] | None
    budget: Budget | None
    max_attempts: int | None
    retry_delay_s: float | None
    recovery_webhook: str | None


class Order(NamedTuple):
    """A child that is wanted: what create_child is told, and who does the work."""

    name: str
    workflow: str
    function: Callable[..., Any] | None
    input: Any
    options: ChildOptions

    @classmethod
    def of(cls, fanout: str, spec: ChildSpec) -> Order:
        """From the description in a fan-out."""
        check(ChildSpec, spec, "a child of a fan-out")
        if "name" not in spec or "workflow" not in spec:
            raise TypeError(f"a child of a fan-out needs a name and a workflow: {spec!r}")
        given = spec["workflow"]
        function = None if isinstance(given, str) else given
        name = spec.get("workflow_name") or (given if isinstance(given, str) else spec["name"])
        options: dict[str, Any] = {key: spec[key] for key in ChildOptions.__annotations__ if key in spec}  # type: ignore[literal-required]
        options.update(edge_type="fanout", edge_metadata={"fanout": fanout})
        return cls(spec["name"], name, function, spec.get("input"), options)  # type: ignore[arg-type]


def make(hold: Hold, order: Order) -> Flow[Child]:
    """Makes a child, or finds it."""
    options = order.options
    check(ChildOptions, options, "a child")
    delay = options.get("retry_delay_s")
    encoded = {
        name: None if value is None else codec.encode(value)
        for name, value in (
            ("input", order.input),
            ("metadata", options.get("metadata")),
            ("edge_metadata", options.get("edge_metadata")),
        )
    }
    child: Child = yield create_child(
        run_id=hold.run_id,
        token=hold.token,
        name=order.name,
        workflow=order.workflow,
        edge_type=options.get("edge_type"),
        max_attempts=options.get("max_attempts"),
        retry_delay=None if delay is None else timedelta(seconds=delay),
        recovery_webhook=options.get("recovery_webhook"),
        budget=budget_json(options.get("budget")),
        traceparent=current_traceparent(),
        **encoded,
    )
    return child


def work_on(
    worker: Worker, hold: Hold, order: Order, function: Callable[..., T], wait_s: float | None = None
) -> Flow[T]:
    """Makes a child, or finds it, and works on it to its result; a child that is completed returns its result.

    Args:
        wait_s: how long to wait while another worker has the child, in seconds; by default for as long as it takes,
            in the database where the run suspends itself.

    Raises:
        ChildFailed: it was cancelled, or another worker took it over.
        RunSuspendedError: it waits for a gate, a timer or a person, or another worker has it for too long.
        Whatever the child's workflow raises.
    """
    child = yield from make(hold, order)
    if wait_s is None and not hold.suspends:
        wait_s = inf
    invocation = Invocation(order.workflow, child.run_id, None, wait_s, RunOptions(), made=True, parent=hold)
    try:
        with hold.in_flight.work(child):
            return (yield from workflow.execute(worker, function, invocation))
    except RunSuspendedError:
        raise
    except (RunNeedsReview, RunHeld) as error:
        if error.run_id != child.run_id:
            raise
        raise RunSuspendedError(error.message, detail=error.detail, hint=error.hint) from error
    except TidebaseError as error:
        if isinstance(error, Interruption):  # the child's, not the parent's
            raise ChildFailed(
                f"child {order.name!r} of run {hold.run_id!r}: {error.message}",
                sqlstate=error.sqlstate,
                detail={**error.detail, "run_id": child.run_id, "parent_run_id": hold.run_id, "name": order.name},
            ) from error
        raise


def accompany(worker: Worker, hold: Hold, order: Order, function: Callable[..., T], wait_s: float | None) -> Flow[T]:
    """Works on a single child; where it waits, the parent waits for it as well, and no process needs to live."""
    hold.begin()
    try:
        return (yield from work_on(worker, hold, order, function, wait_s))
    except RunSuspendedError as error:
        yield from wait_for(hold, {order.name: error})
        return (yield from accompany(worker, hold, order, function, wait_s))  # a session, whose child may go on


def wait_for(hold: Hold, children: Mapping[str, BaseException]) -> Flow[None]:
    """Lets the run wait in the database for children that wait. Raises what its work is to let pass."""
    names = sorted(children)
    one = children[names[0]]
    look = command("show", (one.run_id if isinstance(one, TidebaseError) else None) or hold.run_id)
    error = RunSuspendedError(
        f"run {hold.run_id!r} waits for its children ({', '.join(names)})",
        detail={"run_id": hold.run_id, "children": names},
        hint=f"See what they wait for: {look}; call tide.run with the same run_id when that has come, or with wait_s.",
    )
    error.__cause__ = next(iter(children.values()))
    call = suspend_for_children(run_id=hold.run_id, token=hold.token, names=names)
    yield from depart(hold, Departure(error, call))


def joining(
    fanout: str, orders: Sequence[Order], collect: Callable[[], Any], options: StepOptions, checkpoints: Checkpoints
) -> Work[list[Any]]:
    """The step that works on the children and keeps their results: once it is completed, nobody asks for them again.

    Where an earlier attempt had another list of children, this is another step: it finds those that are known, with
    their results, and works on the new ones.
    """
    names = [order.name for order in orders]
    if len(set(names)) < len(names):
        raise ValueError(f"the children of fan-out {fanout!r} need different names")
    described = StepOptions(
        input={"fanout": fanout, "join": "all", "children": names},
        checkpoint_invariant="all child run results were collected",
    )
    merged: StepOptions = {**described, **options}
    name, wanted = f"join:{fanout}", digest(codec.to_builtins(merged["input"]))
    if checkpoints.hash_of(name) not in (None, wanted):
        name = f"{name}[{wanted.hex()[:16]}]"
    return Work(name, collect, options=merged)


def joined(hold: Hold, fanout: str, outcomes: Mapping[str, Any]) -> Flow[list[Any]]:
    """The results in the order of the children, when all of them have one; where some wait, the run waits for them.

    Args:
        outcomes: a result or an exception for each name.

    Raises:
        FanoutFailed: some failed; it has the results of the others.
        RunSuspendedError: none failed, but some wait.
    """
    errors = {name: outcome for name, outcome in outcomes.items() if isinstance(outcome, BaseException)}
    failed = {name: error for name, error in errors.items() if not isinstance(error, RunSuspendedError)}
    results = {name: outcome for name, outcome in outcomes.items() if name not in errors}
    if failed:
        raise FanoutFailed(hold.run_id, fanout, errors, results) from next(iter(failed.values()))
    if errors:
        yield from wait_for(hold, errors)
        raise RunSuspendedError(f"children of run {hold.run_id!r} may go on", hint="Call the fan-out again.")
    return list(results.values())


class Brood(Worker):
    """The worker of a fan-out's children: knows which leases are held, so that all can be given up at once."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self.holder = worker.holder
        self.lease_s = worker.lease_s
        self.code_version = worker.code_version
        self.tracer = worker.tracer
        self.marks_late = worker.marks_late
        self.checkpoints = worker.checkpoints
        self.holds: set[Hold] = set()

    def _enter(self, started: Started, invocation: Invocation) -> Any:
        assert started.hold is not None
        self.holds.add(started.hold)
        return self._worker._enter(started, invocation)

    def _leave(self, hold: Hold) -> None:
        self.holds.discard(hold)
        self._worker._leave(hold)
