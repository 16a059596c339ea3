"""In what two runs differ."""

from __future__ import annotations

from dataclasses import dataclass

from ..core.call import Value, many


@dataclass(frozen=True)
class Difference:
    """One thing in which two runs differ.

    ``kind``: input, step, gate, state or result. ``difference``: missing (the other run does not have it), added (only
    the other has it), input (begun with another input) or value.
    """

    kind: str
    name: str | None
    difference: str
    seq: int | None
    other_seq: int | None
    value: Value
    other: Value


diff_runs = many("diff_runs", Difference, run_id="text", other_run_id="text")
