"""Snapshots: what anything looked like, kept under a label."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from ..core.call import Value, many, scalar


@dataclass(frozen=True)
class Snapshot:
    """A labeled version: of a target, or of the run's state (``target_type`` is ``state`` then)."""

    target_type: str
    target_id: str
    stream: str
    version: int
    label: str
    value: Value
    reason: str | None
    created_by: str | None
    metadata: Value
    seq: int
    created_at: datetime


create_snapshot = scalar(
    "create_snapshot",
    run_id="text",
    token="bigint",
    label="text",
    target_type="text",
    target_id="text",
    state="jsonb",
    reason="text",
    importance="text",
    metadata="jsonb",
    created_by="text",
    request_id="text",
)
list_snapshots = many(
    "list_snapshots",
    Snapshot,
    run_id="text",
    target_type="text",
    target_id="text",
    label="text",
    max="integer",
    with_value="boolean",
)
