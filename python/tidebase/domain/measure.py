"""What there is to watch, by the clock of the database."""

from __future__ import annotations

from dataclasses import dataclass

from ..core.call import many


@dataclass(frozen=True)
class Measurement:
    """What was measured, of which queue (None: of all), of what kind; see ``tidebase.measure`` in the database."""

    metric: str
    queue: str | None
    label: str | None
    value: float


measure = many("measure", Measurement)
