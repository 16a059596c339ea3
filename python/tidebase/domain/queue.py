"""Queues: what waits to be taken up, and how much of it may be at work at once."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, TypedDict

from ..core.call import Call, rows_of, scalar
from ..core.options import check, in_seconds


@dataclass(frozen=True)
class QueueInfo:
    """A queue, as the view queue_overview has it: no more than 10,000 runs are counted of each kind.

    ``oldest_ready``: since when the next runs wait. ``held_back_by``: what keeps those that are ready from being taken:
    paused, concurrency, rate, endpoint (it fails), no worker (none was seen for a minute), or None. ``invoked``: how
    many its endpoint was told of, and has not begun so far.
    """

    queue: str
    ready: int
    delayed: int
    running: int
    waiting: int
    review: int
    failed: int
    oldest_ready: datetime | None
    paused: bool
    concurrency: int | None
    key_concurrency: int | None
    rate: int | None
    key_rate: int | None
    rate_period: timedelta | None
    lease: timedelta | None
    max_attempts: int | None
    retry_delay: timedelta | None
    held_back_by: str | None
    endpoint: str | None
    endpoint_failures: int | None
    endpoint_error: str | None
    invoked: int


@dataclass(frozen=True)
class QueueRate:
    """How many runs of a queue were completed, and failed for good, a minute, as the view queue_rates has it."""

    queue: str
    completed_per_minute: float
    failed_per_minute: float


@dataclass(frozen=True)
class WorkerInfo:
    """Who took runs from queues within a day, as the view worker_overview has it. ``seen_at`` is noted every few
    seconds.
    """

    holder: str
    queues: list[str]
    code_version: str | None
    running: int
    started_at: datetime
    seen_at: datetime


class QueueOptions(TypedDict, total=False):
    """What a queue may do; what is not said has no limit.

    Attributes:
        concurrency: how many of its runs may be leased at once.
        key_concurrency: how many with the same key.
        rate: how many leases may be granted within any rate_period_s.
        rate_period_s: in seconds; by default 60.
        key_rate: the same, of runs with the same key.
        paused: left out, that stays as it is.
        lease_s: how long a lease lasts where the worker says nothing.
        max_attempts: of runs that are enqueued without.
        retry_delay_s: of runs that are enqueued without.
        endpoint: a URL that is told of each run, to take it up there; left out, that stays as it is, empty: none.
    """

    concurrency: int | None
    key_concurrency: int | None
    rate: int | None
    rate_period_s: float | None
    key_rate: int | None
    paused: bool | None
    lease_s: float | None
    max_attempts: int | None
    retry_delay_s: float | None
    endpoint: str | None


put_queue = scalar(
    "put_queue",
    queue="text",
    concurrency="integer",
    key_concurrency="integer",
    rate="integer",
    rate_period="interval",
    key_rate="integer",
    paused="boolean",
    lease="interval",
    max_attempts="integer",
    retry_delay="interval",
    endpoint="text",
)
pause_queue = scalar("pause_queue", queue="text")
resume_queue = scalar("resume_queue", queue="text")

_SECONDS = {"rate_period_s": "rate_period", "lease_s": "lease", "retry_delay_s": "retry_delay"}


def put(queue: str, options: QueueOptions) -> Call[Any]:
    """The call that makes a queue what the options say."""
    check(QueueOptions, options, "a queue")
    given = in_seconds(options, _SECONDS)
    return put_queue(queue=queue, **given)


def queue_overview(queue: str | None = None) -> Call[list[QueueInfo]]:
    """All queues, or one."""
    return rows_of("queue_overview", QueueInfo, "queue", queue=queue)


def queue_rates() -> Call[list[QueueRate]]:
    """The queues in which something ended within five minutes."""
    return rows_of("queue_rates", QueueRate, "queue")


def worker_overview() -> Call[list[WorkerInfo]]:
    """The workers of the last day, those that were seen last first."""
    return rows_of("worker_overview", WorkerInfo, "seen_at desc, holder")
