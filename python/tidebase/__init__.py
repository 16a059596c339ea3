"""Tidebase in Postgres: durable checkpoints for agents, kept in your own database.

Wrap each unit of work in a named step; its result is stored the moment it completes. A run that crashed is called again
with the same id and goes on where it stopped::

    from tidebase import Tidebase

    tide = Tidebase()

    def research(run, input):
        plan = run.step("plan", make_plan, input["question"])
        return run.step("write", write, plan)

    tide.run("research", research, run_id="question-1", input={"question": "..."})
"""

from .mixture import OURS, refuse_mixture

refuse_mixture(__file__)
__distribution__ = OURS
__version__ = "0.1.0"

from .client.tide import Tidebase
from .client.tide_async import AsyncTidebase
from .client.work import Run, RunSession
from .client.work_async import AsyncRun, AsyncRunSession
from .client.worker import Worker
from .client.worker_async import AsyncWorker
from .domain.calls import (
    Attempt,
    Bulk,
    Channel,
    Claim,
    Difference,
    Enqueuing,
    Event,
    GateDecision,
    GateInfo,
    InvocationInfo,
    Measurement,
    QueueInfo,
    QueueRate,
    Reconciliation,
    Recovery,
    ReviewInfo,
    RunCount,
    RunInfo,
    RunSize,
    ScheduleInfo,
    Snapshot,
    StalledRun,
    StateVersion,
    StepInfo,
    TreeNode,
    UsageByModel,
    UsageByStep,
    UsageTotal,
    UsageTotals,
    WorkerInfo,
)
from .domain.child import ChildOptions, ChildSpec
from .core.errors import (
    AlreadyQueued,
    BudgetExhausted,
    ChildFailed,
    DatabaseUnavailable,
    FanoutFailed,
    GateAnswerInvalid,
    InputMismatch,
    Interruption,
    InvalidArgument,
    LeaseLost,
    LeaseLostError,
    NotEntitled,
    NotFound,
    NotMigrated,
    NotSerializable,
    ReviewNotOpen,
    RunCancelled,
    RunCancelledError,
    RunCrashed,
    RunFinal,
    RunHeld,
    RunNeedsReview,
    RunNotFound,
    RunSuspendedError,
    StepNotRunning,
    StepOutputDecodeError,
    StepTimeout,
    Suspended,
    TidebaseError,
    VersionConflict,
)
from .domain.enqueue import EnqueueOptions, EnqueueSpec
from .domain.gate import GateAnswer, GateOpening, GateOptions
from .domain.queue import QueueOptions
from .domain.schedule import ScheduleOptions
from .domain.state import Moment, StateOptions, VersionOptions
from .domain.step import StepOptions
from .domain.usage import Budget, UsageOptions
from .domain.recovery import Dispatcher
from .domain.webhook import verify_webhook_signature
from .domain.workflow import RunOptions

# The last one: for a type checker, whatever is imported from the module `step` makes that the package's `step`.
from .client.decorators import step

__all__ = [
    "AlreadyQueued",
    "AsyncRun",
    "AsyncRunSession",
    "AsyncTidebase",
    "AsyncWorker",
    "Attempt",
    "Budget",
    "BudgetExhausted",
    "Bulk",
    "Channel",
    "ChildFailed",
    "ChildOptions",
    "ChildSpec",
    "Claim",
    "DatabaseUnavailable",
    "Difference",
    "Dispatcher",
    "EnqueueOptions",
    "EnqueueSpec",
    "Enqueuing",
    "Event",
    "FanoutFailed",
    "GateAnswer",
    "GateAnswerInvalid",
    "GateDecision",
    "GateInfo",
    "GateOpening",
    "GateOptions",
    "InputMismatch",
    "Interruption",
    "InvalidArgument",
    "InvocationInfo",
    "LeaseLost",
    "LeaseLostError",
    "Measurement",
    "Moment",
    "NotEntitled",
    "NotFound",
    "NotMigrated",
    "NotSerializable",
    "QueueInfo",
    "QueueOptions",
    "QueueRate",
    "Reconciliation",
    "Recovery",
    "ReviewInfo",
    "ReviewNotOpen",
    "Run",
    "RunCancelled",
    "RunCancelledError",
    "RunCount",
    "RunCrashed",
    "RunFinal",
    "RunHeld",
    "RunInfo",
    "RunNeedsReview",
    "RunNotFound",
    "RunOptions",
    "RunSession",
    "RunSize",
    "RunSuspendedError",
    "ScheduleInfo",
    "ScheduleOptions",
    "Snapshot",
    "StalledRun",
    "StateOptions",
    "StateVersion",
    "StepInfo",
    "StepNotRunning",
    "StepOptions",
    "StepOutputDecodeError",
    "StepTimeout",
    "Suspended",
    "Tidebase",
    "TidebaseError",
    "TreeNode",
    "UsageByModel",
    "UsageByStep",
    "UsageOptions",
    "UsageTotal",
    "UsageTotals",
    "VersionConflict",
    "VersionOptions",
    "Worker",
    "WorkerInfo",
    "step",
    "verify_webhook_signature",
]
