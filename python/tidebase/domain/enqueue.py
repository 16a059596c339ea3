"""Enqueueing: a run that any worker of its queue may take up."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal, TypedDict

from ..core import codec
from ..core.call import Call, many, one
from ..core.options import check, in_seconds, require_zone
from ..core.tracing import current_traceparent
from .usage import Budget, budget_json
from .workflow import new_id_in


@dataclass(frozen=True)
class Enqueuing:
    """Answer of enqueue_run: the run's id, and whether the run was there before."""

    run_id: str
    deduplicated: bool


class EnqueueOptions(TypedDict, total=False):
    """What may be said about a run when it is enqueued.

    Attributes:
        metadata: a dict of your own.
        priority: higher ones are taken first; by default 0.
        run_at: from when it may be taken up, a datetime with a time zone; or delay_s: in so many seconds.
        delay_s: see run_at.
        key: whose run it is: the queue is fair between keys, and may limit each.
        dedupe_key: at most one run of the queue that is not over has it.
        on_duplicate: what another one with the key gets: return (the run that is there), replace (the same, with the
            new input and time, while nobody has begun it), reject (AlreadyQueued).
        max_wait_s: how long at most replace puts the run off, from the first call on.
        max_attempts: how many attempts there are; by default the queue's, or 5.
        retry_delay_s: seconds before the second attempt, doubled for each further one.
        deadline: from when it may not go on: it is cancelled.
        recovery_webhook: the URL that is told when the run is to be recovered.
        budget: what it and its descendants may use together.
        pin: only workers with the code_version of its first attempt go on with it.
    """

    metadata: dict[str, Any] | None
    priority: int
    run_at: datetime | None
    delay_s: float | None
    key: str | None
    dedupe_key: str | None
    on_duplicate: Literal["return", "replace", "reject"]
    max_wait_s: float | None
    max_attempts: int | None
    retry_delay_s: float | None
    deadline: datetime | None
    recovery_webhook: str | None
    budget: Budget | None
    pin: bool


class EnqueueSpec(EnqueueOptions, total=False):
    """One of many runs for enqueue_many: ``workflow`` must be said.

    Attributes:
        workflow: its name.
        input: any value that can be stored as JSON.
        queue: by default "default".
        run_id: the same id is the same run.
    """

    workflow: str
    input: Any
    queue: str
    run_id: str


enqueue_run = one(
    "enqueue_run",
    Enqueuing,
    workflow="text",
    input="jsonb",
    queue="text",
    run_id="text",
    metadata="jsonb",
    priority="integer",
    run_at="timestamptz",
    delay="interval",
    key="text",
    dedupe_key="text",
    on_duplicate="text",
    max_wait="interval",
    max_attempts="integer",
    retry_delay="interval",
    deadline="timestamptz",
    recovery_webhook="text",
    budget="jsonb",
    pin="boolean",
    traceparent="text",
)
enqueue_runs = many("enqueue_runs", Enqueuing, runs="jsonb")

_SECONDS = {"delay_s": "delay", "max_wait_s": "max_wait", "retry_delay_s": "retry_delay"}


def enqueue(workflow: str, queue: str, run_id: str | None, input: Any, options: EnqueueOptions) -> Call[Enqueuing]:
    """The call that enqueues a run; its id is made here, so that it can be repeated."""
    check(EnqueueOptions, options, "enqueue")
    given = in_seconds(options, _SECONDS)
    if given.get("metadata") is not None:
        given["metadata"] = codec.encode(given["metadata"])
    given["budget"] = budget_json(given.get("budget"))
    return enqueue_run(
        workflow=workflow,
        queue=queue,
        run_id=new_id_in(queue) if run_id is None else run_id,
        input=None if input is None else codec.encode(input),
        traceparent=current_traceparent(),
        **given,
    )


def enqueue_many(runs: Iterable[EnqueueSpec]) -> Call[list[Enqueuing]]:
    """The call that enqueues many."""
    return enqueue_runs(runs=codec.encode([_as_json(run) for run in runs]))


def _as_json(run: Mapping[str, Any]) -> dict[str, Any]:
    check(EnqueueSpec, run, "a run")
    given = {_SECONDS.get(name, name): value for name, value in run.items() if value is not None}
    for name in _SECONDS.values():
        if name in given:
            given[name] = f"{given[name]} seconds"
    for name in ("run_at", "deadline"):
        if name in given:
            require_zone(given[name], name)
            given[name] = given[name].isoformat()
    if "budget" in given:
        given["budget"] = {name: str(value) if name == "cost_usd" else value for name, value in given["budget"].items()}
    return given


def moment_in(delay: timedelta) -> Call[datetime]:
    """The moment that is so far ahead, by the clock of the database."""
    return Call("select clock_timestamp() + %s::interval", (delay,), lambda rows: rows[0][0])
