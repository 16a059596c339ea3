"""Runs: made once, finished once, looked at by anyone who may."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from ..core.call import Call, Value, columns, many, one, reader, scalar


@dataclass(frozen=True)
class RunInfo:
    """A run, as the view run_overview has it.

    ``lease_lapsed``: the holder has gone silent and another worker may take over. ``code_version``: of the latest
    attempt. ``finished_at``: None while the run may go on by itself. ``failure_class``: of a failed run, error (its
    work raised one), max_attempts (the last of several attempts did) or crashed (it lost its worker ``max_attempts``
    times); of a cancelled one deadline, if that was why. ``queue``: where it waits for a worker, if it was enqueued.
    """

    run_id: str
    workflow: str
    status: str
    attempt: int
    lease_token: int
    holder: str | None
    lease_expires_at: datetime | None
    lease_lapsed: bool
    steps_completed: int
    last_seq: int
    code_version: str | None
    input: Value
    metadata: Value
    result: Value
    error: Value
    created_at: datetime
    updated_at: datetime
    finished_at: datetime | None
    waiting_for: str | None
    available_at: datetime | None
    deadline_at: datetime | None
    max_attempts: int | None
    recovery_webhook: str | None
    cancelled_at: datetime | None
    cancel_reason: str | None
    cancel_actor: str | None
    compacted_at: datetime | None
    failure_class: str | None
    parent_run_id: str | None
    queue: str | None
    priority: int | None
    queue_key: str | None
    dedupe_key: str | None
    pinned: bool


@dataclass(frozen=True)
class RunCount:
    """How many runs are in a status; ``estimated``: by the statistics of the last ANALYZE, beyond two thousand."""

    status: str
    runs: int
    estimated: bool


@dataclass(frozen=True)
class RunPage:
    """Answer of search_runs: the ids that it found, where it goes on (None: it has been through all), and how many runs
    it looked at.
    """

    run_ids: list[str]
    next_run_id: str | None
    next_created_at: datetime | None
    examined: int


@dataclass(frozen=True)
class RunFailure:
    """Answer of fail_run; see the type tidebase.run_failure."""

    seq: int
    status: str
    retry_at: datetime | None


@dataclass(frozen=True)
class Completion:
    """One run that complete_runs was asked to complete: the seq of its last event, or the error that came of it."""

    run_id: str
    seq: int | None
    code: str | None
    message: str | None
    detail: Value
    hint: str | None


create_run = scalar(
    "create_run",
    workflow="text",
    input="jsonb",
    run_id="text",
    metadata="jsonb",
    deadline="timestamptz",
    max_attempts="integer",
    retry_delay="interval",
    recovery_webhook="text",
    budget="jsonb",
    traceparent="text",
)
search_runs = one(
    "search_runs",
    RunPage,
    workflow="text",
    status="text",
    queue="text",
    matching="text",
    metadata="jsonb",
    created_after="timestamptz",
    created_before="timestamptz",
    before="text",
    before_created_at="timestamptz",
    roots="boolean",
    max="integer",
    effort="integer",
)
complete_run = scalar("complete_run", run_id="text", token="bigint", result="jsonb")
complete_runs = many("complete_runs", Completion, run_ids="text[]", tokens="bigint[]", results="jsonb[]")
fail_run = one("fail_run", RunFailure, run_id="text", token="bigint", error="jsonb", retryable="boolean")
get_run = one("get_run", RunInfo, run_id="text")
find_run = scalar("find_run", prefix="text")
list_runs = many(
    "list_runs",
    RunInfo,
    workflow="text",
    status="text",
    before="text",
    max="integer",
    created_after="timestamptz",
    created_before="timestamptz",
    before_created_at="timestamptz",
    roots="boolean",
)
count_runs = many("count_runs", RunCount)


def behind_run(run: str | RunInfo | None) -> dict[str, Any]:
    """The parameters by which list_runs goes on behind a run."""
    if isinstance(run, RunInfo):
        return {"before": run.run_id, "before_created_at": run.created_at}
    return {"before": run}


def runs_by_id(run_ids: Sequence[str]) -> Call[list[RunInfo]]:
    """These runs, as far as they exist, oldest first."""
    read = reader(RunInfo)
    query = f"select {columns(RunInfo)} from tidebase.run_overview where run_id = any(%s) order by created_at, run_id"
    return Call(query, (list(run_ids),), lambda rows: list(map(read, rows)))
