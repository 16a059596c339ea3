"""Retention: what a run stores, and what goes when it is over."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from ..core.call import Call, rows_of, scalar


@dataclass(frozen=True)
class RunSize:
    """What a run stores: rows, and bytes of its values as they are stored, as the view run_sizes has it."""

    run_id: str
    run_bytes: int
    steps: int
    step_bytes: int
    events: int
    event_bytes: int
    state_versions: int
    state_bytes: int
    compacted_at: datetime | None


purge_runs = scalar("purge_runs", older_than="interval", statuses="text[]", max="integer")
compact_run = scalar("compact_run", run_id="text")


def run_sizes(run_id: str) -> Call[list[RunSize]]:
    """What a run stores: one row."""
    return rows_of("run_sizes", RunSize, "run_id", run_id=run_id)
