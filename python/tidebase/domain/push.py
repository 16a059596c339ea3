"""Push: the runs of a queue with an endpoint are taken up where a URL is told of them.

The database decides which run is to be begun, and when it is told of again; here it is only posted. Who is told checks
the signature with :func:`~tidebase.verify_webhook_signature`, acquires the run and works on it; ``tide.invoked`` does.
"""

from __future__ import annotations

import json
import logging
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from ..core import tracing
from ..core.call import Call, Json, many, rows_of, scalar
from ..core.database import Database
from ..core.errors import InvalidArgument, NotEntitled, RunCancelledError, TidebaseError
from ..core.flow import Flow
from . import workflow
from .courier import Courier, Round
from .lease import Lease, acquire_run, new_request_id
from .webhook import SECRET_VARIABLE, SIGNATURE, SIGNATURE_V2, verify_webhook_signature
from .workflow import Started, Worker

#: What a body says that asks for a run to be begun, or to go on.
TYPES = ("run.invoke", "run.resume")


@dataclass(frozen=True)
class Invocation:
    """A run of which the endpoint of its queue is to be told. ``invocation``: the number of this attempt to."""

    run_id: str
    invocation: int
    queue: str
    url: str
    body: Json


@dataclass(frozen=True)
class InvocationInfo:
    """Of which run an endpoint was told, and what became of it, as the view invocation_overview has it.

    ``status``: sending, sent (answered, and not begun so far), waiting (for another try), begun, failed (given up).
    """

    run_id: str
    queue: str
    status: str
    invocations: int
    attempt: int
    failures: int
    failing_since: datetime | None
    sent_at: datetime
    next_at: datetime | None
    http_status: int | None
    error: str | None


claim_invocations = many(
    "claim_invocations",
    Invocation,
    max="integer",
    ttl="interval",
    failing="boolean",
    besides="text[]",
    give_up_after="interval",
)
finish_invocation = scalar(
    "finish_invocation",
    run_id="text",
    invocation="integer",
    delivered="boolean",
    http_status="integer",
    error="text",
)


def invocation_overview(queue: str) -> Call[list[InvocationInfo]]:
    """What the endpoint of a queue was told, the latest first."""
    return rows_of("invocation_overview", InvocationInfo, "sent_at desc, run_id", queue=queue)


class PushDispatcher(Courier[Invocation]):
    """Tells the endpoints of queues of their runs. Any number may run at once: a run is with one of them at a time.

    Args:
        database: where the queues are; the user needs the role operator.
        secret: signs what is sent; by default the environment's ``TIDEBASE_WEBHOOK_SECRET``.
        allow_private: also to addresses that are not public (loopback, private networks, link-local: where a cloud's
            metadata service is).
        timeout_s: how long an answer is waited for, in seconds. A run that was begun by then goes on all the same.
        give_up_after_s: a run that was told of for so long, in seconds, and never begun, fails: not_begun.
        at_once: how many answers are waited for at the same time; a quarter of them of endpoints that fail, and of one
            queue a third at most.
    """

    _log = logging.getLogger("tidebase.push")
    _what = "endpoints"

    def __init__(
        self,
        database: Database,
        *,
        secret: str | None = None,
        allow_private: bool = False,
        timeout_s: float = 30.0,
        give_up_after_s: float = 86_400.0,
        at_once: int = 32,
    ) -> None:
        super().__init__(database, secret=secret, allow_private=allow_private, timeout_s=timeout_s, at_once=at_once)
        self._give_up_after = timedelta(seconds=give_up_after_s)

    def _round(self, most: int | None) -> _Round:
        return _Round(self, most)


class _Round(Round[Invocation]):
    def __init__(self, dispatcher: PushDispatcher, most: int | None) -> None:
        super().__init__(dispatcher, most)
        self._give_up_after = dispatcher._give_up_after
        self._of_queue: Counter[str] = Counter()

    async def _claim(self, room: int, failing: bool, watch: bool) -> Sequence[Invocation]:
        # An endpoint that takes its time has a share, and no more: the other queues have theirs.
        share = max(self._courier._shares[failing] // 3, 1)
        told = await self._ask(
            claim_invocations(
                max=min(room, share),
                ttl=self._ttl,
                failing=failing,
                besides=[queue for queue, busy in self._of_queue.items() if busy >= share],
                give_up_after=self._give_up_after,
            )
        )
        for invocation in told:
            self._of_queue[invocation.queue] += 1
        return told

    async def _turn(self, delivery: Invocation) -> None:
        log = self._courier._log
        try:
            async with self._client() as client:
                status, error, _ = await self._try(client, delivery.url, delivery.body, None)
            self._tried += 1
            outcome: str = await self._ask(
                finish_invocation(
                    run_id=delivery.run_id,
                    invocation=delivery.invocation,
                    delivered=error is None,
                    http_status=status,
                    error=error,
                )
            )
            level = logging.WARNING if outcome == "waiting" else logging.INFO
            where = (delivery.run_id, delivery.queue, delivery.invocation)
            log.log(level, "run %s: endpoint of %s, invocation %d: %s (%s)", *where, error or status, outcome)
        except Exception as problem:  # it is due again when its time has run out
            log.warning("run %s: %s: %s", delivery.run_id, type(problem).__name__, problem)
        finally:
            self._of_queue[delivery.queue] -= 1


@dataclass(frozen=True)
class Told:
    """What a webhook asks for: that a run be begun, or go on."""

    type: str
    run_id: str
    workflow: str


def told(body: bytes, headers: Mapping[str, str], secret: str | None, url: str | None) -> Told:
    """What a request asks for whose signature is right.

    Raises:
        NotEntitled: it is not signed with the secret; or, with a URL, for another one, or too long ago.
        InvalidArgument: it asks for something else.
        TidebaseError: there is no secret.
    """
    secret = secret or os.environ.get(SECRET_VARIABLE)
    if not secret:
        raise TidebaseError("webhooks cannot be checked without a secret", hint=f"Set {SECRET_VARIABLE}.")
    given = {name.lower(): value for name, value in headers.items()}
    signature = given.get(SIGNATURE if url is None else SIGNATURE_V2)
    if not verify_webhook_signature(body, signature, secret, url=url):
        raise NotEntitled("the request is not signed by who knows the secret, for this URL and this moment")
    try:
        asked: Any = json.loads(body)
        found = Told(asked["type"], asked["runId"], asked["workflowName"])
    except (ValueError, KeyError, TypeError) as error:
        raise InvalidArgument("the request names no run") from error
    if found.type not in TYPES:
        raise InvalidArgument(f"the request asks for {found.type}, and not for a run to be begun")
    return found


def take_up(worker: Worker, asked: Told) -> Flow[Started | None]:
    """Leases the run, if it is to be had now: not where somebody has it, it waits, is over, or its queue is full."""
    request_id = new_request_id()
    trace = tracing.begin(worker.tracer, asked.workflow, asked.run_id)
    try:
        lease: Lease = yield acquire_run(
            run_id=asked.run_id,
            holder=worker.holder,
            ttl=timedelta(seconds=worker.lease_s),
            code_version=worker.code_version,
            request_id=request_id,
            traceparent=trace.traceparent,
        )
        if lease.outcome != "granted":
            return None
        return (yield from workflow.granted(worker, lease, asked.run_id, trace, worker.lease_s, suspends=True))
    except RunCancelledError:
        return None
    except BaseException as error:
        if not isinstance(error, (Exception, GeneratorExit)):
            yield from workflow.withdraw(asked.run_id, request_id)
        raise


def work_on(worker: Worker, function: Callable[..., Any], asked: Told, started: Started) -> Flow[None]:
    """Works on a run that was taken up, once: what becomes of it then is in the database."""
    invocation = workflow.Invocation(asked.workflow, asked.run_id, None, None, {}, made=True)
    try:
        yield from workflow.attempt(worker, function, invocation, started)
    except workflow.Again as again:
        logging.getLogger("tidebase.push").info("run %s: to be tried again: %s", asked.run_id, again.__cause__)
