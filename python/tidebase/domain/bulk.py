"""Many runs at once: cancelled, tried again, moved."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from ..core import codec
from ..core.call import one, scalar


@dataclass(frozen=True)
class Bulk:
    """How many runs were found, and with how many of them it was done."""

    matched: int
    done: int


def chosen(
    queue: str | None, workflow: str | None, older_than: timedelta | None, metadata: dict[str, Any] | None
) -> dict[str, Any]:
    """The parameters of the filters that all of them have."""
    return {
        "queue": queue,
        "workflow": workflow,
        "older_than": older_than,
        "metadata": None if metadata is None else codec.encode(metadata),
    }


cancel_runs = one(
    "cancel_runs",
    Bulk,
    queue="text",
    workflow="text",
    status="text",
    failure_class="text",
    older_than="interval",
    metadata="jsonb",
    reason="text",
    actor="text",
    dry_run="boolean",
    max="integer",
)
retry_runs = one(
    "retry_runs",
    Bulk,
    queue="text",
    workflow="text",
    failure_class="text",
    older_than="interval",
    metadata="jsonb",
    reason="text",
    actor="text",
    dry_run="boolean",
    max="integer",
)
move_runs = one(
    "move_runs",
    Bulk,
    to_queue="text",
    queue="text",
    workflow="text",
    older_than="interval",
    metadata="jsonb",
    priority="integer",
    actor="text",
    dry_run="boolean",
    max="integer",
)
move_run = scalar("move_run", run_id="text", to_queue="text", priority="integer", actor="text")
