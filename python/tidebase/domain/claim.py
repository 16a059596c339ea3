"""Claims: a worker takes up what is due, and works on each run as if it had been asked for by its id."""

from __future__ import annotations

import logging
import threading
from collections import Counter, deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from ..core import tracing
from ..core.call import Json, many, scalar
from ..core.errors import DatabaseUnavailable, TidebaseError, from_parts
from ..core.flow import Flow
from ..core.mark import Answer
from . import workflow
from .lease import Hold, Lease
from .run import Completion, complete_runs
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


@dataclass(eq=False)
class _Ending:
    """A run that has come to its result. ``turn``: what becomes of it: the answer of the call that it was put into,
    or ``_LEADS``, ``_ALONE``.
    """

    run_id: str
    token: int
    result: str
    turn: Future[Completion | DatabaseUnavailable | str]


#: It is to make the call, for itself and whoever has come meanwhile.
_LEADS = "leads"
#: It is to make a call of its own.
_ALONE = "alone"

#: So many runs are completed by one call at most.
_TOGETHER = 500


class Completions:
    """Completes runs together that end while a call is under way: by the next one, and one commit. Whoever comes while
    there is none makes it at once. Safe to use from any thread.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: deque[_Ending] = deque()
        self._is_led = False

    def complete(self, hold: Hold, result: str) -> Flow[None]:
        """Completes a run; as ``complete_run`` would, but not always by a call of its own."""
        own = _Ending(hold.run_id, hold.token, result, Future())
        with self._lock:
            leads = not self._is_led
            self._is_led = True
            if not leads:
                self._waiting.append(own)
        if not leads:
            try:
                yield Answer(own.turn)
            except BaseException:
                self._forsake(own)
                raise
        said = _LEADS if leads else own.turn.result()
        if said is _LEADS:
            said = yield from self._lead(own)
        if isinstance(said, DatabaseUnavailable):
            raise said
        if not isinstance(said, Completion) or said.code == _LOCKED:
            yield from workflow.alone(hold, result)
        elif said.code is not None:
            raise from_parts(said.code, said.message or "", said.detail or {}, said.hint)

    def _lead(self, own: _Ending) -> Flow[Completion | DatabaseUnavailable | str]:
        with self._lock:
            batch = [own]
            while self._waiting and len(batch) < _TOGETHER:
                batch.append(self._waiting.popleft())
        said: Mapping[str, Completion | DatabaseUnavailable] = {}
        call = complete_runs(
            run_ids=[ending.run_id for ending in batch],
            tokens=[ending.token for ending in batch],
            results=[ending.result for ending in batch],
        )
        call.held = True
        try:
            said = {answer.run_id: answer for answer in (yield call)}
        except DatabaseUnavailable as error:
            said = {ending.run_id: error for ending in batch}
        except TidebaseError as error:  # something about one of them, or about the call
            log.warning("%d runs could not be completed together: %s", len(batch), error)
        finally:
            self._pass_on()
            for ending in batch[1:]:
                ending.turn.set_result(said.get(ending.run_id, _ALONE))
        return said.get(own.run_id, _ALONE)

    def _pass_on(self) -> None:
        with self._lock:
            self._is_led = bool(self._waiting)
            if self._waiting:
                self._waiting.popleft().turn.set_result(_LEADS)

    def _forsake(self, own: _Ending) -> None:
        """Nobody waits for this one any more."""
        with self._lock:
            if own in self._waiting:
                self._waiting.remove(own)
                return
            was_to_lead = own.turn.done() and own.turn.result() is _LEADS
        if was_to_lead:
            self._pass_on()


#: lock_not_available: somebody has the run's head locked, who is not waited for while others wait, too.
_LOCKED = "55P03"


def work_on(
    worker: Worker,
    function: Callable[..., Any],
    claim: Claim,
    lease_s: float,
    suspends: bool = True,
    complete: Callable[[Hold, str], Flow[Any]] = workflow.alone,
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
        yield from workflow.attempt(worker, function, invocation, started, complete)
    except workflow.Again:  # what it would have waited for has come: whoever claims it next goes on
        log.info("run %s: queued again", claim.run_id)
