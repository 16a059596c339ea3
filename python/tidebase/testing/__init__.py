"""A kit for tests of workflows: a database for each test, time that passes at a word, crashes at a step, and whether a
workflow that was changed still fits the runs that are under way.

The fixtures are those of the pytest plugin (:mod:`tidebase.testing.plugin`), which comes with the package; the same
things are here as functions, for other ways to test.
"""

from .clock import advance
from .crash import Crashed, CrashPoint, Died, crash_at
from .databases import Databases
from .rehearsal import Problem, Rehearsal, ReplayMismatch, rehearse, rehearse_async, replay

__all__ = [
    "CrashPoint",
    "Crashed",
    "Databases",
    "Died",
    "Problem",
    "Rehearsal",
    "ReplayMismatch",
    "advance",
    "crash_at",
    "rehearse",
    "rehearse_async",
    "replay",
]
