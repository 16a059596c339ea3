"""The command ``tidebase``.

Exit codes: 0 done; 1 the answer is no (``migrate --check``: the schema is behind; ``diff``: they differ; ``stalled``,
``doctor``: there is a problem; ``decide``: it was decided before) or the command failed; 2 a mistake in the command
line; 130 interrupted. A user's mistake never ends in a traceback.
"""

import tidebase

from ..mixture import ADVICE, OURS

if getattr(tidebase, "__distribution__", None) != OURS:  # the other package's __init__ has replaced ours
    raise SystemExit(f"Error: {ADVICE}")

from .main import main

__all__ = ["main"]
