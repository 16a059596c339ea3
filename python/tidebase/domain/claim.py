"""Claims: a worker takes up what is due, and works on each run as if it had been asked for by its id."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from ..core import tracing
from ..core.call import Json, many, scalar
from ..core.flow import Flow
from . import workflow
from .lease import Lease
from .workflow import Invocation, Started, Worker

log = logging.getLogger("tidebase.worker")


class Tally:
    """What a worker has done since it began; safe to write from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        #: How many runs it has claimed, by queue.
        self.claims: Counter[str] = Counter()
        #: How its work on them ended, by queue and end: completed, failed, suspended, review, cancelled, lost.
        self.ends: Counter[tuple[str, str]] = Counter()
        #: How many leases of anybody's it was the first to see run out.
        self.lapses: int = 0

    def claimed(self, queue: str) -> None:
        with self._lock:
            self.claims[queue] += 1

    def ended(self, queue: str, how: str) -> None:
        with self._lock:
            self.ends[queue, how] += 1

    def lapsed(self, leases: int) -> None:
        with self._lock:
            self.lapses += leases


@dataclass(frozen=True)
class Claim:
    """Answer of claim_runs: one lease that was granted."""

    run_id: str
    token: int
    attempt: int
    workflow: str
    input: Json | None
    queue: str
    expires_at: datetime
    checkpoints: int
    has_budget: bool
    traceparent: str | None


claim_runs = many(
    "claim_runs",
    Claim,
    queues="text[]",
    holder="text",
    max="integer",
    ttl="interval",
    workflows="text[]",
    code_version="text",
    versions="text[]",
    request_id="text",
    listen_for="interval",
)
ready_in = scalar("ready_in", queues="text[]")


def bell_of(queue: str) -> str:
    """By what the doorbell rings for a queue."""
    return f"queue:{queue}"


def work_on(
    worker: Worker, function: Callable[..., Any], claim: Claim, lease_s: float, suspends: bool = True
) -> Flow[None]:
    """Works on a run that was claimed. What becomes of it when its result is not reached is in the database: it is
    queued again, failed, suspended or in review.
    """
    invocation = Invocation(claim.workflow, claim.run_id, None, None, {}, made=True)
    lease = Lease(
        outcome="granted",
        token=claim.token,
        attempt=claim.attempt,
        workflow=claim.workflow,
        input=claim.input,
        result=None,
        holder=worker.holder,
        expires_at=claim.expires_at,
        checkpoints=claim.checkpoints,
        traceparent=claim.traceparent,
        has_budget=claim.has_budget,
    )
    trace = tracing.begin(worker.tracer, claim.workflow, claim.run_id)
    started: Started = yield from workflow.granted(worker, lease, invocation.run_id, trace, lease_s, suspends)
    try:
        yield from workflow.attempt(worker, function, invocation, started)
    except workflow.Again:  # what it would have waited for has come: whoever claims it next goes on
        log.info("run %s: queued again", claim.run_id)
