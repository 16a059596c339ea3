"""A workflow's life: the run is made or found, leased, worked on, and ended. Flows for threads and asyncio alike."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import time
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Protocol, TypedDict, TypeVar
from uuid import UUID

from . import calls, codec, tracing
from .errors import BudgetExhausted, Interruption, LeaseLostError, TidebaseError
from .flow import Flow, Invoke
from .lease import Hold, acquire
from .options import check
from .recall import Recall
from .step import Checkpoints, current_step, describe
from .usage import Budget, budget_json

if TYPE_CHECKING:
    from opentelemetry.trace import Tracer

log = logging.getLogger("tidebase.run")
T = TypeVar("T")

#: The run that the code at hand works on; what a function decorated with ``step`` belongs to.
current_run: ContextVar[Any] = ContextVar("tidebase_current_run")


class RunOptions(TypedDict, total=False):
    """What may be said about a run when it is made; a run that exists keeps what it was made with.

    Attributes:
        metadata: a dict of your own.
        deadline: from when it may not go on: it is cancelled.
        max_attempts: how many attempts there are before a failure is final; by default 1.
        retry_delay_s: seconds before the second attempt, doubled for each further one; by default 1.
        recovery_webhook: the URL that is told when the run is to be recovered.
        budget: what it and its descendants may use together: ``{"cost_usd": "2.50", "tokens": 100_000}``, either or
            both; when that is used up, the next step raises BudgetExhausted.
    """

    metadata: dict[str, Any] | None
    deadline: datetime | None
    max_attempts: int | None
    retry_delay_s: float | None
    recovery_webhook: str | None
    budget: Budget | None


@dataclass(frozen=True)
class Invocation:
    """What ``run`` and ``attach`` are asked to do. ``made``: the run is known to exist."""

    workflow: str
    run_id: str
    input: Any
    wait_s: float | None
    options: RunOptions
    made: bool = False

    def __post_init__(self) -> None:
        if self.options:
            check(RunOptions, self.options, "a run")

    @classmethod
    def of(cls, workflow: str, run_id: str | None, input: Any, wait_s: float | None, options: RunOptions) -> Invocation:
        """With a new id where none was given."""
        return cls(workflow, new_run_id() if run_id is None else run_id, input, wait_s, options)


@dataclass(frozen=True)
class Started:
    """A run that was found or made: leased (``hold``), or completed before (``hold`` is None)."""

    lease: calls.Lease
    hold: Hold | None
    checkpoints: Checkpoints


class Worker(Protocol):
    """Who works on runs: a Tidebase or an AsyncTidebase."""

    holder: str
    lease_s: float
    code_version: str | None
    tracer: Tracer | None
    marks_late: bool

    def _enter(self, started: Started, invocation: Invocation) -> Any: ...

    def _leave(self, hold: Hold) -> None: ...


_GENERATED = re.compile(r"run_[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")


def bucket_of(run_id: str) -> int:
    """The bucket of a run, as ``tidebase_private.bucket_of`` in the database has it: the last four digits of a
    generated id, else the first 16 bits of the SHA-256 of the id, or of what stands in its first {braces}.
    """
    if _GENERATED.fullmatch(run_id):
        return int(run_id[-4:], 16)
    tag = re.search(r"\{([^}]*)\}", run_id)
    return int.from_bytes(hashlib.sha256((tag[1] if tag and tag[1] else run_id).encode()).digest()[:2], "big")


def new_run_id(beside: str | None = None) -> str:
    """A fresh id: ``run_`` and a UUIDv7 (RFC 9562, section 5.7), made here so that creating a run can be repeated.

    Args:
        beside: a run into whose bucket it shall fall, as ``tidebase.new_run_id`` in the database does it.
    """
    number = (time.time_ns() // 1_000_000) << 80 | int.from_bytes(os.urandom(10), "big")
    if beside is not None:
        number = number & ~0xFFFF | bucket_of(beside)
    number = number & ~(0xF << 76) | 0x7 << 76
    number = number & ~(0x3 << 62) | 0x2 << 62
    return f"run_{UUID(int=number)}"


def create(workflow: str, run_id: str | None, input: Any, options: RunOptions) -> calls.Call[str]:
    """The call that makes a run, or finds it again."""
    check(RunOptions, options, "a run")
    metadata = options.get("metadata")
    delay = options.get("retry_delay_s")
    return calls.create_run(
        workflow=workflow,
        run_id=new_run_id() if run_id is None else run_id,
        input=None if input is None else codec.encode(input),
        metadata=None if metadata is None else codec.encode(metadata),
        deadline=options.get("deadline"),
        max_attempts=options.get("max_attempts"),
        retry_delay=None if delay is None else timedelta(seconds=delay),
        recovery_webhook=options.get("recovery_webhook"),
        budget=budget_json(options.get("budget")),
        traceparent=tracing.current_traceparent(),
    )


def start(worker: Worker, invocation: Invocation, again: bool = False) -> Flow[Started]:
    """Makes or finds the run, gets its lease and its checkpoints.

    Args:
        again: it was just worked on and failed, with attempts left: wait until it may be tried again.
    """
    if not (again or invocation.made):
        yield create(invocation.workflow, invocation.run_id, invocation.input, invocation.options)
    lease, trace = yield from acquire(
        invocation.run_id,
        worker.holder,
        worker.lease_s,
        worker.code_version,
        invocation.wait_s,
        patient=again,
        new_trace=lambda: tracing.begin(worker.tracer, invocation.workflow, invocation.run_id),
    )
    if lease.outcome == "completed":
        return Started(lease, None, Checkpoints())
    assert lease.token is not None and lease.attempt is not None
    rows = None
    if lease.checkpoints or lease.attempt > 1:
        rows = yield calls.load_checkpoints(run_id=invocation.run_id, unfinished=True)
    # A budget that is used up is to stop a step before it is executed.
    marks_late = worker.marks_late and not lease.has_budget
    hold = Hold(invocation.run_id, lease.token, lease.attempt, worker.lease_s, trace=trace, marks_late=marks_late)
    trace.granted(lease)
    log.info("run %s: attempt %d, %d checkpoints", hold.run_id, hold.attempt, lease.checkpoints or 0)
    return Started(lease, hold, Checkpoints(rows))


class _Again(Exception):
    """The attempt failed, and there is another one."""


def execute(worker: Worker, function: Callable[..., T], invocation: Invocation) -> Flow[T]:
    """Runs a workflow from where it stopped, to its result; a run that is completed returns its result at once.

    While a failed run has attempts left, it is tried again, after the delay that the database decided on.
    """
    again = False
    while True:
        started = yield from start(worker, invocation, again)
        try:
            return (yield from _attempt(worker, function, invocation, started))
        except _Again:
            again = True


def _attempt(worker: Worker, function: Callable[..., T], invocation: Invocation, started: Started) -> Flow[T]:
    returns = codec.returned_type(function)
    hold = started.hold
    if hold is None:
        return codec.decode(started.lease.result, returns)  # type: ignore[no-any-return]
    hold.recall = Recall()
    run = worker._enter(started, invocation)
    contexts = current_run.set(run), current_step.set(None)  # a step of the parent's is none of this run's
    try:
        try:
            argument = codec.decode(started.lease.input, codec.parameter_type(function, 1))
            with hold.trace.attempt():
                value = yield Invoke(function, (run, argument))
                result = codec.encode(value)
                decoded = codec.settle(result, returns)
        except Interruption as error:
            cause = error.__cause__ if isinstance(error.__cause__, TidebaseError) else None
            raise cause or LeaseLostError(str(error)) from error
        except Exception as error:
            worker._leave(hold)
            failure = yield from fail(hold, error)
            if failure is not None and failure.status == "pending":
                log.warning("run %s failed (%s), again at %s", hold.run_id, error, failure.retry_at)
                raise _Again from error
            raise
        except BaseException:
            # KeyboardInterrupt, SystemExit, CancelledError: the process goes, the run stays.
            if hold.lost is not None:
                raise hold.lost from None
            worker._leave(hold)
            yield from release(hold)
            raise
        worker._leave(hold)
        yield calls.complete_run(run_id=hold.run_id, token=hold.token, result=result)
        return decoded  # type: ignore[no-any-return]
    finally:
        worker._leave(hold)
        current_run.reset(contexts[0])
        current_step.reset(contexts[1])


def fail(hold: Hold, error: Exception) -> Flow[calls.RunFailure | None]:
    """Records that the attempt failed; a run that cannot be told so any more is left as it is (None)."""
    retryable = not isinstance(error, BudgetExhausted)  # the next attempt would not get further
    try:
        failure: calls.RunFailure = yield calls.fail_run(
            run_id=hold.run_id, token=hold.token, error=describe(error), retryable=retryable
        )
    except TidebaseError as refusal:
        log.warning("run %s: its failure was not recorded: %s", hold.run_id, refusal)
        return None
    return failure


def release(hold: Hold) -> Flow[None]:
    """Gives the lease up, so that nobody has to wait for it to run out."""
    try:
        yield calls.release_run(run_id=hold.run_id, token=hold.token)
    except TidebaseError as refusal:
        log.warning("run %s: its lease was not released: %s", hold.run_id, refusal)
