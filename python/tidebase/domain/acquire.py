"""How a run comes by its worker: the lease is asked for, and who cannot have it is told what to do."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from datetime import timedelta

from ..core.errors import RunCrashed, RunHeld, RunNeedsReview, RunSuspendedError
from ..core.flow import Flow, Listen
from ..core.hints import command, to_decide, to_review
from ..core.tracing import Trace
from .gate import GateInfo, gate_named
from .lease import Lease, acquire_run, is_dead, new_request_id
from .run import RunInfo, get_run
from .step import ReviewInfo, review_inbox

log = logging.getLogger("tidebase.lease")


def acquire(
    run_id: str,
    holder: str,
    lease_s: float,
    code_version: str | None,
    wait_s: float | None,
    patient: bool = False,
    new_trace: Callable[[], Trace] = Trace,
    request_id: str | None = None,
) -> Flow[tuple[Lease, Trace]]:
    """Gets the run's lease, waiting while another worker has it.

    Args:
        wait_s: how long to wait at most, in seconds, for whatever it is. None does not wait for a holder that may be
            alive; for one that is known to be dead (its process was on this machine, and is gone) until its lease runs
            out.
        patient: also wait out the backoff after a failed attempt.
        new_trace: makes the trace of the attempt that may be granted now.
        request_id: by which ``withdraw_grant`` finds what was granted, should the answer be lost.

    Raises:
        RunHeld: somebody else holds it.
        RunSuspendedError, RunNeedsReview: it waits for something else than a worker.
        RunCrashed: it has killed as many workers as it may.
    """
    request_id = request_id or new_request_id()
    give_up = None if wait_s is None else time.monotonic() + wait_s
    seen = None
    while True:
        trace = new_trace()
        lease: Lease = yield acquire_run(
            run_id=run_id,
            holder=holder,
            ttl=timedelta(seconds=lease_s),
            code_version=code_version,
            request_id=request_id,
            traceparent=trace.traceparent,
        )
        if lease.outcome in ("granted", "completed"):
            return lease, trace
        if lease.outcome == "review":
            raise (yield from _in_review(run_id))
        if lease.outcome == "failed":
            raise RunCrashed(
                f"run {run_id!r} has lost its worker too often",
                detail={"run_id": run_id, "attempt": lease.attempt},
                hint=f"See what kills its workers: {command('show', run_id)}; this gives it its attempts again:"
                f" {command('recover', run_id)}",
            )
        held = lease.outcome == "held"
        hopeless = (not is_dead(lease.holder) or seen not in (None, lease.expires_at)) if held else not patient
        if hopeless if give_up is None else time.monotonic() >= give_up:
            if lease.outcome == "queued":
                raise (yield from _queued(run_id))
            raise _held(run_id, lease) if held else (yield from _waiting(run_id, lease))
        if seen is None and held:
            log.warning("run %s is held by %s until %s: waiting for that", run_id, lease.holder, lease.expires_at)
        seen = lease.expires_at
        yield Listen(run_id, 0.2)


def _in_review(run_id: str) -> Flow[RunNeedsReview]:
    reviews: list[ReviewInfo] = yield review_inbox(run_id)
    hint = f"{to_review(run_id, reviews[0].step)}; or call tide.runs.resolve_review." if reviews else "Call again."
    return RunNeedsReview(f"run {run_id!r} waits for a person's review", detail={"run_id": run_id}, hint=hint)


def _queued(run_id: str) -> Flow[RunSuspendedError]:
    run: RunInfo = yield get_run(run_id=run_id)
    return RunSuspendedError(
        f"run {run_id!r} waits in queue {run.queue!r}, which is paused or has no room for it now",
        detail={"run_id": run_id, "queue": run.queue},
        hint=f"See what holds it back: {command('queue', run.queue or '')}; --resume ends a pause. Or give wait_s.",
    )


def _waiting(run_id: str, lease: Lease) -> Flow[RunSuspendedError]:
    until = f" until {lease.expires_at.isoformat()}" if lease.expires_at else ""
    run: RunInfo = yield get_run(run_id=run_id)
    name, hint = run.waiting_for, "Call again when that is over, or give wait_s."
    if name is not None:
        gates: list[GateInfo] = yield gate_named(run_id, name)
        if gates and gates[0].kind == "gate" and gates[0].status == "pending":
            hint = f"{to_decide(run_id, name, gates[0].options)}; then call again, or give wait_s."
        elif not gates:  # but children
            hint = f"See what they wait for: {command('show', run_id)}; call again when that has come, or give wait_s."
    what = f" for {name!r}" if name else ""
    return RunSuspendedError(f"run {run_id!r} waits{what}{until}", detail={"run_id": run_id}, hint=hint)


def _held(run_id: str, lease: Lease) -> RunHeld:
    until = lease.expires_at.isoformat() if lease.expires_at else None
    return RunHeld(
        f"run {run_id!r} is held by {lease.holder} until {until}",
        detail={"run_id": run_id, "holder": lease.holder, "expires_at": until},
        hint="Another worker is at it, or has died: then its lease runs out at that time. Call again, or give wait_s.",
    )
