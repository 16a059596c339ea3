"""What people do to runs, queues and schedules, each a translation to one function of the database.

Who does it is the person whose key it is, if it is somebody's, and else whom the body names. A race that was lost is no
error: the answer is what stands.
"""

from __future__ import annotations

import functools
from datetime import timedelta
from typing import Any
from uuid import uuid4

from msgspec import UNSET

from ..core import codec
from ..core.errors import NotEntitled
from ..domain import calls, queue, schedule
from ..domain.fork import fork
from ..domain.recovery import recover
from . import bodies
from .overview import told
from .refusal import Refused
from .routes import OPERATOR, Asked, exact, json_or_none, route
from .shapes import Shape, name_of

APPROVER = frozenset({"approver"})


def actor(asked: Asked) -> str | None:
    """Who is said to do it."""
    return asked.person or getattr(asked.body, "actor", None)


def span(seconds: float | None) -> timedelta | None:
    return None if seconds is None else timedelta(seconds=seconds)


# -- one run


@route(
    "POST",
    "/runs/{run_id}/gates/{gate_id}/decide",
    APPROVER,
    "accepted",
    "decision",
    body=bodies.DecideGate,
    refusals=(409,),
)
async def decide_gate(asked: Asked) -> Shape:
    """Decides a gate with any of its options. ``accepted`` is false when another decision stands already: the rest says
    which, and whose.
    """
    body: bodies.DecideGate = asked.body
    decide = functools.partial(
        calls.decide_gate,
        run_id=asked.run_id,
        name=name_of("gate", asked.path["gate_id"]),
        decision=body.decision,
        actor=actor(asked),
        payload=None if body.payload is UNSET else codec.encode(body.payload),
        comment=body.comment,
        request_id=uuid4().hex,
    )
    try:
        return told(await asked.do(decide(voter=asked.person)))
    except NotEntitled:
        if asked.person is None:
            raise
    # The gateway's login may not speak for others (the setting speakers): then it decides itself, one voter for all
    # who come through it, and the log has the person as the actor.
    return told(await asked.do(decide()))


@route("POST", "/runs/{run_id}/resume", OPERATOR, "recovery", "run", body=bodies.Resume, refusals=(409,))
async def resume_run(asked: Asked) -> Shape:
    """Makes a run acquirable at once that failed, was left by its worker or waits for a time; its webhook is told."""
    number = await asked.do(recover(asked.run_id, asked.body.reason, actor(asked)))
    return {"recovery": number, "run": told(await asked.row())}


@route("POST", "/runs/{run_id}/budget", OPERATOR, "run", body=bodies.SetBudget, refusals=(409,))
async def set_budget(asked: Asked) -> Shape:
    """Says what a run and its descendants may use together; what is not given has no limit."""
    body: bodies.SetBudget = asked.body
    call = calls.set_budget(
        run_id=asked.run_id,
        cost_usd=exact(body.cost_usd),
        tokens=body.tokens,
        actor=actor(asked),
        reason=body.reason,
    )
    await asked.do(call)
    return {"run": told(await asked.row())}


@route("POST", "/runs/{run_id}/fork", OPERATOR, "runId", body=bodies.Fork, refusals=(409,))
async def fork_run(asked: Asked) -> Shape:
    """Makes a new run that begins with what this one had at a point: behind a step, or an event."""
    body: bodies.Fork = asked.body
    through = None if body.through_step is None else name_of("step", body.through_step)
    run_id = await asked.do(
        fork(
            asked.run_id,
            body.run_id,
            through,
            body.through_seq,
            None if body.input is UNSET else body.input,
            body.reason,
            actor(asked),
        )
    )
    return {"runId": run_id}


@route("POST", "/runs/{run_id}/move", OPERATOR, "moved", body=bodies.Move, refusals=(409,))
async def move_run(asked: Asked) -> Shape:
    """Puts a run that waits for a worker into a queue. ``moved`` is false when it is not waiting for one any more."""
    body: bodies.Move = asked.body
    call = calls.move_run(run_id=asked.run_id, to_queue=body.queue, priority=body.priority, actor=actor(asked))
    return {"moved": await asked.do(call)}


# -- many runs


def chosen(body: bodies.Filter) -> dict[str, Any]:
    return {
        "queue": body.queue,
        "workflow": body.workflow,
        "older_than": span(body.older_than_s),
        "metadata": json_or_none(body.metadata),
        "dry_run": body.dry_run,
        "max": body.max,
    }


@route("POST", "/bulk/cancel", OPERATOR, "matched", "done", body=bodies.CancelMany)
async def cancel_runs(asked: Asked) -> Shape:
    """Cancels the runs that a filter finds, or says with ``dryRun`` how many these are: ``max`` of them at most."""
    body: bodies.CancelMany = asked.body
    more = {"status": body.status, "failure_class": body.failure_class, "reason": body.reason}
    return told(await asked.do(calls.cancel_runs(**chosen(body), **more, actor=actor(asked))))


@route("POST", "/bulk/retry", OPERATOR, "matched", "done", body=bodies.RetryMany)
async def retry_runs(asked: Asked) -> Shape:
    """Lets the failed runs that a filter finds be taken up again, or says with ``dryRun`` how many these are."""
    body: bodies.RetryMany = asked.body
    more = {"failure_class": body.failure_class, "reason": body.reason}
    return told(await asked.do(calls.retry_runs(**chosen(body), **more, actor=actor(asked))))


@route("POST", "/bulk/move", OPERATOR, "matched", "done", body=bodies.MoveMany)
async def move_runs(asked: Asked) -> Shape:
    """Puts the runs that a filter finds and that wait for a worker into another queue."""
    body: bodies.MoveMany = asked.body
    more = {"to_queue": body.to_queue, "priority": body.priority}
    return told(await asked.do(calls.move_runs(**chosen(body), **more, actor=actor(asked))))


# -- queues and schedules


@route("POST", "/queues/{queue}/pause", OPERATOR, "changed", body=bodies.Nothing)
async def pause_queue(asked: Asked) -> Shape:
    """Lets nobody take anything from a queue until it is resumed."""
    return {"changed": await asked.do(calls.pause_queue(queue=asked.path["queue"]))}


@route("POST", "/queues/{queue}/resume", OPERATOR, "changed", body=bodies.Nothing)
async def resume_queue(asked: Asked) -> Shape:
    """Ends a pause."""
    return {"changed": await asked.do(calls.resume_queue(queue=asked.path["queue"]))}


@route("PUT", "/queues/{queue}/limits", OPERATOR, "queue", body=bodies.QueueLimits)
async def put_limits(asked: Asked) -> Shape:
    """Makes a queue just this: what is not given has no limit."""
    body: bodies.QueueLimits = asked.body
    name = asked.path["queue"]
    options: queue.QueueOptions = {
        "concurrency": body.concurrency,
        "key_concurrency": body.key_concurrency,
        "rate": body.rate,
        "key_rate": body.key_rate,
        "rate_period_s": body.rate_period_s,
        "lease_s": body.lease_s,
        "max_attempts": body.max_attempts,
        "retry_delay_s": body.retry_delay_s,
    }
    await asked.do(queue.put(name, options))
    return {"queue": told((await asked.do(calls.queue_overview(name)))[0])}


@route("POST", "/schedules/{schedule}/trigger", OPERATOR, "runId", body=bodies.Trigger)
async def trigger_schedule(asked: Asked) -> Shape:
    """Enqueues a run of a schedule now, whatever its clock says."""
    body: bodies.Trigger = asked.body
    given = None if body.input is UNSET else codec.encode(body.input)
    return {"runId": await asked.do(calls.trigger_schedule(name=asked.path["schedule"], input=given))}


@route("PUT", "/schedules/{schedule}/settings", OPERATOR, "schedule", body=bodies.ScheduleSettings)
async def put_schedule_settings(asked: Asked) -> Shape:
    """Makes a schedule, or makes the one with this name just what the body says: with ``cron``, or ``everyS``."""
    body: bodies.ScheduleSettings = asked.body
    name = asked.path["schedule"]
    options: Any = {
        "queue": body.queue,
        "timezone": body.timezone,
        "overlap": body.overlap,
        "catch_up": body.catch_up,
        "catch_up_window_s": body.catch_up_window_s,
        "jitter_s": body.jitter_s,
        "enabled": body.enabled,
        "key": body.key,
        "priority": body.priority,
        "max_attempts": body.max_attempts,
        "metadata": body.metadata,
    }
    await asked.do(schedule.put(name, body.workflow, body.cron, body.every_s, body.input, options))
    rows = await asked.do(calls.schedule_overview(name))
    if not rows:  # removed by somebody in that moment
        raise Refused(404, error="schedule not found", code="not_found")
    return {"schedule": told(rows[0])}
