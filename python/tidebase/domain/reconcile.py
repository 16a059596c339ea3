"""Reconciliation: what only time brings about."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from ..core.call import Call, Value, one, rows_of


@dataclass(frozen=True)
class StalledRun:
    """A run that does not go on by itself, as the view stalled_runs has it.

    ``reason``: lease_lapsed, review, overdue or not_taken_up.
    """

    run_id: str
    workflow: str
    status: str
    reason: str
    since: datetime
    holder: str | None
    attempt: int
    waiting_for: str | None
    error: Value
    recovery_webhook: str | None


@dataclass(frozen=True)
class Reconciliation:
    """Answer of reconcile: how many runs were looked at, and what had run out."""

    runs: int
    leases: int
    gates: int
    timers: int
    deadlines: int


reconcile = one("reconcile", Reconciliation, max="integer")


def stalled_runs() -> Call[list[StalledRun]]:
    """The runs that do not go on by themselves, longest first."""
    return rows_of("stalled_runs", StalledRun, "since, run_id")
