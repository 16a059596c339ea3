"""Recovery: getting a run going again, as a call that both executors make."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from ..core.call import Call, Value, many, rows_of, scalar
from .lease import new_request_id


@dataclass(frozen=True)
class Recovery:
    """An attempt to recover a run, as the view recovery_history has it."""

    run_id: str
    recovery: int
    reason: str
    actor: str | None
    found_status: str
    status: str
    url: str | None
    delivery_attempts: int
    http_status: int | None
    response: str | None
    error: str | None
    created_at: datetime
    finished_at: datetime | None


@dataclass(frozen=True)
class Delivery:
    """A webhook that is to be delivered. ``attempts``: the number of this attempt."""

    run_id: str
    delivery: int
    attempts: int
    url: str
    body: Value


recover_run = scalar("recover_run", run_id="text", reason="text", actor="text", request_id="text")
claim_deliveries = many("claim_deliveries", Delivery, max="integer", ttl="interval")
finish_delivery = scalar(
    "finish_delivery",
    run_id="text",
    delivery="integer",
    attempt="integer",
    delivered="boolean",
    http_status="integer",
    response="text",
    error="text",
    max_attempts="integer",
)


def recovery_history(run_id: str) -> Call[list[Recovery]]:
    """The attempts to recover a run, oldest first."""
    return rows_of("recovery_history", Recovery, "recovery", run_id=run_id)


def recover(run_id: str, reason: str, actor: str | None = None) -> Call[int]:
    """The call that makes a run acquirable and tells its webhook: once, however often it has to be made."""
    return recover_run(run_id=run_id, reason=reason, actor=actor, request_id=new_request_id())
