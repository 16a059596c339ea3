"""The routes of queues and schedules, each a translation to one function of the database.

The protocol of Tidebase v0.6 names one owner for all runs of a claim, and an owner has the token of one lease here: so
a claim answers with one run at most, whatever its limit.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any
from uuid import uuid4

from msgspec import UNSET

from ..domain import calls, queue, schedule
from ..domain.enqueue import moment_in
from ..domain.queue import QueueOptions
from ..domain.workflow import new_id_in
from . import bodies, pages, shapes
from .refusal import Refused
from .routes import ALL, OPERATOR, WORKER, Asked, channels, json_or_none, route
from .shapes import Shape


@route(
    "POST",
    "/queues/{queue}/enqueue",
    WORKER,
    "run",
    "deduplicated",
    body=bodies.Enqueue,
)
async def enqueue(asked: Asked) -> Shape:
    """Makes a run that any worker of the queue may claim."""
    body: bodies.Enqueue = asked.body
    deadline = None
    if body.deadline_ms is not None:
        deadline = await asked.do(moment_in(timedelta(milliseconds=body.deadline_ms)))
    call = calls.enqueue_run(
        workflow=body.workflow_name,
        queue=asked.path["queue"],
        run_id=new_id_in(asked.path["queue"]),
        input=json_or_none(body.input),
        metadata=json_or_none(body.metadata),
        priority=body.priority,
        run_at=body.run_at,
        delay=None if body.delay_ms is None else timedelta(milliseconds=body.delay_ms),
        dedupe_key=body.dedupe_key,
        max_attempts=body.max_attempts or 1,
        deadline=deadline,
        recovery_webhook=body.recovery_webhook,
        traceparent=asked.traceparent,
    )
    made = await asked.do(call)
    for channel in channels(body.channels) if not made.deduplicated else ():
        await asked.do(calls.add_channel(run_id=made.run_id, **channel))
    return {"run": await _run(asked, made.run_id), "deduplicated": made.deduplicated}


async def _run(asked: Asked, run_id: str) -> Shape:
    (row,) = await asked.do(pages.bounded(calls.get_run(run_id=run_id), calls.RunInfo, 16_000_000))
    return shapes.run(row)


@route("POST", "/queues/claim", WORKER, "runs", "leaseOwner", body=bodies.Claim)
async def claim(asked: Asked) -> Shape:
    """Leases the next run of these queues, if there is one."""
    body: bodies.Claim = asked.body
    holder = body.lease_owner or asked.worker or f"http-{uuid4().hex[:12]}"
    if shapes.token_of(holder) is not None:
        holder = holder.rpartition("#")[0]
    found = await asked.do(
        calls.claim_runs(
            queues=body.queues,
            holder=holder,
            max=1,
            ttl=timedelta(seconds=asked.lease_s),
            request_id=uuid4().hex,
        )
    )
    if not found:
        return {"runs": [], "leaseOwner": holder}
    return {
        "runs": [await _run(asked, found[0].run_id)],
        "leaseOwner": shapes.owner_of(holder, found[0].token),
    }


@route("PUT", "/queues/{queue}/config", OPERATOR, "config", body=bodies.QueueConfig)
async def put_queue(asked: Asked) -> Shape:
    """Makes a queue what the body says; what is not given stays as it is."""
    body: bodies.QueueConfig = asked.body
    name = asked.path["queue"]
    await asked.do(queue.put(name, _changed(await asked.do(calls.queue_overview(name)), body)))
    return {"config": shapes.queue_config((await asked.do(calls.queue_overview(name)))[0])}


def _changed(found: list[calls.QueueInfo], body: bodies.QueueConfig) -> QueueOptions:
    """All that a queue may do, with what is given in the place of what was."""
    options: QueueOptions = {}
    for row in found:
        options = {
            "concurrency": row.concurrency,
            "key_concurrency": row.key_concurrency,
            "rate": row.rate,
            "key_rate": row.key_rate,
            "max_attempts": row.max_attempts,
            "rate_period_s": None if row.rate_period is None else row.rate_period.total_seconds(),
            "lease_s": None if row.lease is None else row.lease.total_seconds(),
            "retry_delay_s": None if row.retry_delay is None else row.retry_delay.total_seconds(),
        }
    if body.concurrency is not None:
        options["concurrency"] = body.concurrency
    if body.rate_per_minute is not None:
        options["rate"] = body.rate_per_minute
        options["rate_period_s"] = 60
    if body.invoke_url is not UNSET:
        options["endpoint"] = body.invoke_url or ""
    return options


@route("GET", "/queues", ALL, "queues")
async def list_queues(asked: Asked) -> Shape:
    """All queues, by name."""
    return {"queues": [shapes.queue(row) for row in await asked.do(calls.queue_overview())]}


@route("PUT", "/schedules/{schedule}", OPERATOR, "schedule", body=bodies.PutSchedule)
async def put_schedule(asked: Asked) -> Shape:
    """Makes a schedule, or makes the one with this name what the body says: cron in UTC, five fields."""
    body: bodies.PutSchedule = asked.body
    name = asked.path["schedule"]
    options: Any = {"queue": body.queue, "max_attempts": body.max_attempts or 1, "enabled": body.enabled}
    await asked.do(schedule.put(name, body.workflow_name, body.cron, None, body.input, options))
    return {"schedule": shapes.schedule((await asked.do(calls.schedule_overview(name)))[0])}


@route("DELETE", "/schedules/{schedule}", OPERATOR, "deleted", refusals=(404,))
async def delete_schedule(asked: Asked) -> Shape:
    """Removes a schedule; the runs that it made stay."""
    name = asked.path["schedule"]
    if not await asked.do(calls.delete_schedule(name=name)):
        raise Refused(404, error="schedule not found")
    return {"deleted": name}


@route("GET", "/schedules", ALL, "schedules")
async def list_schedules(asked: Asked) -> Shape:
    """All schedules, by name."""
    return {"schedules": [shapes.schedule(row) for row in await asked.do(calls.schedule_overview())]}
