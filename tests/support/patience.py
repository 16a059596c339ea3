"""How long tests wait for what must happen before they say that it did not: in one place, for every machine.

Waits end when the thing happens, so a generous limit costs nothing but where something is broken. On a machine that is
slower still, or busier: ``TIDEBASE_TEST_PATIENCE=5 make test`` waits five times as long.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

FACTOR = float(os.environ.get("TIDEBASE_TEST_PATIENCE", "1"))

#: For one thing that must happen, in seconds.
PATIENCE_S = 120 * FACTOR

#: For a test, which may wait for several, in seconds: then a hang is a failure with a traceback.
TEST_S = 900 * FACTOR


def moments() -> Iterator[float]:
    """Moments at which to look whether it has happened, until patience is over: each says how long to pause behind it.
    The pauses grow, so that who waits does not keep a busy machine from getting there.
    """
    end, pause = time.monotonic() + PATIENCE_S, 0.001
    while time.monotonic() < end:
        yield pause
        pause = min(1.2 * pause, 0.02)
