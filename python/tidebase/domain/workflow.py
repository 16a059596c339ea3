"""A workflow's life: the run is made or found, leased, worked on, and ended. Flows for threads and asyncio alike."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Protocol, TypedDict, TypeVar
from uuid import UUID

from ..core import codec, tracing
from ..core.behind import Behind
from ..core.call import Call
from ..core.errors import (
    BudgetExhausted,
    Interruption,
    InvalidArgument,
    LeaseLostError,
    RunCancelledError,
    RunFinal,
    RunNeedsReview,
    RunSuspendedError,
    StepOutputDecodeError,
    TidebaseError,
)
from ..core.flow import Flow, Invoke, Surely
from ..core.mark import Answer
from ..core.options import check
from ..core.places import bucket_of, place_of_queue
from ..core.tracing import Trace
from .acquire import acquire
from .lease import (
    Checkpointing,
    Departure,
    Hold,
    Lease,
    all_stored,
    at_rest,
    new_request_id,
    release_run,
    withdraw_grant,
)
from .recall import Recall
from .run import RunFailure, complete_run, create_run, fail_run
from .step import Checkpoints, current_step, describe, inside, load_checkpoints
from .usage import Budget, budget_json

if TYPE_CHECKING:
    from opentelemetry.trace import Tracer

log = logging.getLogger("tidebase.run")
T = TypeVar("T")

#: How long a process that is told to go waits for the steps that its other threads and tasks are at, in seconds.
PATIENCE_S = 10.0

#: The run that the code at hand works on; what a function decorated with ``step`` belongs to.
current_run: ContextVar[Any] = ContextVar("tidebase_current_run")


class RunOptions(TypedDict, total=False):
    """What may be said about a run when it is made; a run that exists keeps what it was made with.

    Attributes:
        metadata: a dict of your own. With ``"tidebase.session": True`` in it the run is one that is worked on when
            somebody comes, as a conversation is, and not stalled while nobody does.
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
    """What ``run`` and ``attach`` are asked to do.

    Attributes:
        made: the run is known to exist.
        parent: the lease of the run whose child it is.
    """

    workflow: str
    run_id: str
    input: Any
    wait_s: float | None
    options: RunOptions
    made: bool = False
    parent: Hold | None = None

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

    lease: Lease
    hold: Hold | None
    checkpoints: Checkpoints


class Worker(Protocol):
    """Who works on runs: a Tidebase or an AsyncTidebase."""

    holder: str
    lease_s: float
    code_version: str | None
    tracer: Tracer | None
    marks_late: bool
    checkpoints: Checkpointing

    def _enter(self, started: Started, invocation: Invocation) -> Any: ...

    def _leave(self, hold: Hold) -> None: ...


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


def new_id_in(queue: str) -> str:
    """A fresh id for a run of a queue: in the queue's bucket, since the two lie together."""
    return new_run_id(beside=place_of_queue(queue))


def create(workflow: str, run_id: str | None, input: Any, options: RunOptions, is_repeated: bool = True) -> Call[str]:
    """The call that makes a run, or finds it again.

    Args:
        is_repeated: it is made again where its answer was lost; else the database may make the id.
    """
    check(RunOptions, options, "a run")
    metadata = options.get("metadata")
    delay = options.get("retry_delay_s")
    return create_run(
        workflow=workflow,
        run_id=new_run_id() if run_id is None and is_repeated else run_id,
        input=None if input is None else codec.encode(input),
        metadata=None if metadata is None else codec.encode(metadata),
        deadline=options.get("deadline"),
        max_attempts=options.get("max_attempts"),
        retry_delay=None if delay is None else timedelta(seconds=delay),
        recovery_webhook=options.get("recovery_webhook"),
        budget=budget_json(options.get("budget")),
        traceparent=tracing.current_traceparent(),
    )


def start(worker: Worker, invocation: Invocation, again: bool = False, request_id: str | None = None) -> Flow[Started]:
    """Makes or finds the run, gets its lease and its checkpoints.

    Args:
        again: it was just worked on and failed, with attempts left: wait until it may be tried again.
        request_id: by which ``withdraw`` finds what was granted.
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
        request_id=request_id,
    )
    if lease.outcome == "completed":
        return Started(lease, None, Checkpoints())
    return (yield from granted(worker, lease, invocation.run_id, trace, worker.lease_s))


def granted(
    worker: Worker, lease: Lease, run_id: str, trace: Trace, lease_s: float, suspends: bool = False
) -> Flow[Started]:
    """A lease was granted: what is there of the run is read, and its work may begin."""
    assert lease.token is not None and lease.attempt is not None
    rows = None
    if lease.checkpoints or lease.attempt > 1:
        rows = yield load_checkpoints(run_id=run_id, unfinished=True)
    # A budget that is used up is to stop a step before it is executed.
    marks_late = worker.marks_late and not lease.has_budget
    hold = Hold(run_id, lease.token, lease.attempt, lease_s, trace=trace, marks_late=marks_late, suspends=suspends)
    hold.behind = Behind() if worker.checkpoints == "behind" else None
    trace.granted(lease.attempt or 0, lease.token or 0, lease.checkpoints or 0, lease.traceparent)
    log.info("run %s: attempt %d, %d checkpoints", hold.run_id, hold.attempt, lease.checkpoints or 0)
    return Started(lease, hold, Checkpoints(rows))


def end_of(error: Exception) -> str:
    """How the work on a run ended that has come to no result, by what was raised."""
    ends = {RunSuspendedError: "suspended", RunNeedsReview: "review", RunCancelledError: "cancelled"}
    return next((end for kind, end in ends.items() if isinstance(error, kind)), "lost")


class Again(Exception):
    """This attempt is over, and there is to be another one."""


def execute(worker: Worker, function: Callable[..., T], invocation: Invocation) -> Flow[T]:
    """Runs a workflow from where it stopped, to its result; a run that is completed returns its result at once.

    While a failed run has attempts left, it is tried again, after the delay that the database decided on.
    """
    again = False
    while True:
        request_id = new_request_id()
        try:
            started = yield from start(worker, invocation, again, request_id)
            return (yield from attempt(worker, function, invocation, started))
        except Again:
            again = True
        except BaseException as error:
            if not isinstance(error, (Exception, GeneratorExit)):
                # The process goes, maybe in the moment of the grant: nobody shall wait for the lease to run out.
                yield from withdraw(invocation.run_id, request_id)
            raise


def withdraw(run_id: str, request_id: str) -> Flow[None]:
    """Gives back what acquire_run with this id was granted, if it was, and if it has not ended since."""
    try:
        yield Surely(withdraw_grant(run_id=run_id, request_id=request_id))
    except TidebaseError as refusal:
        log.warning("run %s: its lease was not given back: %s", run_id, refusal)


def alone(hold: Hold, result: str) -> Flow[Any]:
    """Completes a run, by a call of its own."""
    yield complete_run(run_id=hold.run_id, token=hold.token, result=result)


def attempt(
    worker: Worker,
    function: Callable[..., T],
    invocation: Invocation,
    started: Started,
    complete: Callable[[Hold, str], Flow[Any]] = alone,
) -> Flow[T]:
    """Works on a run that is leased, to its result. Raises Again when there is to be another attempt."""
    returns = codec.returned_type(function)
    hold = started.hold
    if hold is None:
        return _decoded(started.lease.result, returns, invocation.run_id, "result")  # type: ignore[no-any-return]
    hold.recall = Recall()
    run = worker._enter(started, invocation)
    contexts = current_run.set(run), current_step.set(None)  # a step of the parent's is none of this run's
    settled = codec.Settled("null")
    try:
        try:
            if invocation.parent is not None:
                invocation.parent.adopt(hold)
                hold.suspends = invocation.parent.suspends
            argument = _decoded(started.lease.input, codec.parameter_type(function, 1), hold.run_id, "input")
            with hold.trace.attempt():
                value = yield Invoke(function, (run, argument))
                settled = codec.settled(value, returns)
                yield from at_rest(hold)
                yield from inside(all_stored(hold), hold)
        except Interruption as error:
            if hold.review is not None:
                yield from at_rest(hold)
                raise hold.review from error
            if hold.departure is None:
                cause = error.__cause__ if isinstance(error.__cause__, TidebaseError) else None
                raise cause or LeaseLostError(str(error)) from error
        except Exception as error:
            yield from at_rest(hold)
            if (yield from _failed(worker, hold, error)):
                raise Again from error
            raise
        yield from at_rest(hold)
        if hold.departure is not None:
            raise (yield from _departed(worker, hold, hold.departure))
        hold.ends = True
        try:
            yield from complete(hold, settled.text)
        except (RunNeedsReview, InvalidArgument) as error:  # a step of it is undecided; or it cannot hold the result
            yield from _failed(worker, hold, error)
            raise
        worker._leave(hold)
        if settled.problem is not None:
            raise _kept(settled.problem, hold.run_id, "result")
        return settled.value  # type: ignore[no-any-return]
    except BaseException as error:
        if not isinstance(error, (Exception, GeneratorExit)):
            # KeyboardInterrupt, SystemExit, CancelledError: the process goes, the run stays.
            if hold.lost is not None:
                raise hold.lost from None
            if not hold.is_inherited:
                yield from _abandoned(worker, hold)
        raise
    finally:
        worker._leave(hold)
        current_run.reset(contexts[0])
        current_step.reset(contexts[1])


def _failed(worker: Worker, hold: Hold, error: Exception) -> Flow[bool]:
    """Ends an attempt that failed. Whether there is to be another one."""
    worker._leave(hold)
    failure = yield from fail(hold, error)
    if failure is not None and failure.status == "pending":
        log.warning("run %s failed (%s), again at %s", hold.run_id, error, failure.retry_at)
        return True
    return False


def _abandoned(worker: Worker, hold: Hold) -> Flow[None]:
    """Gives the lease up because the process goes, once nothing is in flight: else it would be paid for twice.

    What does not end in a while may still do so as long as the process lives; the lease runs out by itself.
    """
    settled = hold.in_flight.settled()
    yield Answer(settled, PATIENCE_S)
    if settled.done():
        yield from at_rest(hold)
        worker._leave(hold)
        yield from release(hold)
    else:
        log.warning("run %s: a step is still at work, so its lease is left to run out", hold.run_id)


def _departed(worker: Worker, hold: Hold, departure: Departure) -> Flow[Exception]:
    """Gives the lease up, now that nothing is in flight; returns what is to be raised."""
    waits: Any = yield departure.call
    worker._leave(hold)
    if waits is not False:
        return departure.error
    yield from release(hold)  # what the run would have waited for has come
    return Again()


def _decoded(text: str | None, expected: Any, run_id: str, what: str) -> Any:
    try:
        return codec.decode(text, expected)
    except StepOutputDecodeError as error:
        raise _kept(error, run_id, what) from error.__cause__


def _kept(problem: StepOutputDecodeError, run_id: str, what: str) -> StepOutputDecodeError:
    """The error of a run's input or result that does not come back as its type: it is stored all the same."""
    problem.detail = {"run_id": run_id}
    problem.hint = f"The {what} of run {run_id!r} is stored as it is. Make the annotation accept it."
    return problem


def fail(hold: Hold, error: Exception) -> Flow[RunFailure | None]:
    """Records that the attempt failed; a run that cannot be told so any more is left as it is (None)."""
    if hold.is_inherited:
        return None
    retryable = not isinstance(error, (BudgetExhausted, StepOutputDecodeError))  # the next one would not get further
    try:
        failure: RunFailure = yield fail_run(
            run_id=hold.run_id, token=hold.token, error=describe(error), retryable=retryable
        )
    except TidebaseError as refusal:
        if hold.review is None:  # else the run is in review already
            log.warning("run %s: its failure was not recorded: %s", hold.run_id, refusal)
        return None
    return failure


def release(hold: Hold) -> Flow[None]:
    """Gives the lease up, so that nobody has to wait for it to run out."""
    if hold.is_inherited:
        return
    try:
        yield Surely(release_run(run_id=hold.run_id, token=hold.token))
    except TidebaseError as refusal:
        log.warning("run %s: its lease was not released: %s", hold.run_id, refusal)


def attach(worker: Worker, invocation: Invocation) -> Flow[Started]:
    """Makes or finds a run and leases it, for a session. Raises RunFinal when it is completed."""
    request_id = new_request_id()
    try:
        started = yield from start(worker, invocation, request_id=request_id)
    except BaseException as error:
        if not isinstance(error, (Exception, GeneratorExit)):
            yield from withdraw(invocation.run_id, request_id)
        raise
    if started.hold is None:
        raise RunFinal(f"run {invocation.run_id!r} is completed", detail={"run_id": invocation.run_id})
    return started
