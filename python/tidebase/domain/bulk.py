"""Many runs at once: cancelled, tried again, moved."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypedDict

from ..core import codec
from ..core.call import one
from ..core.options import check


@dataclass(frozen=True)
class Bulk:
    """How many runs were found, and with how many of them it was done."""

    matched: int
    done: int


class RunFilter(TypedDict, total=False):
    """Which runs are meant; at least one of these must be said.

    Attributes:
        queue: those of this queue.
        workflow: those of this workflow.
        older_than: those that were made longer ago than this (a timedelta).
        metadata: those whose metadata contain this.
    """

    queue: str
    workflow: str
    older_than: Any
    metadata: dict[str, Any]


def chosen(given: RunFilter) -> dict[str, Any]:
    """The parameters of a filter."""
    check(RunFilter, given, "a filter")
    metadata = given.get("metadata")
    return {**given, "metadata": None if metadata is None else codec.encode(metadata)}


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
