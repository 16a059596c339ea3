"""What a process of ``make torture`` does: schedules, races, interruptions, probes, storms, failovers, sieges ..."""

from __future__ import annotations

import contextlib
import math
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..conftest import SERVERS
from ..probes.support import connect
from ..support import clusters
from .cast import CASTS
from .failover import failover
from .interruptions import Interrupter
from .ledger.siege import siege
from .races import Racer, all_pairs, calls_from
from .schedules import Explorer
from .storm import FAULTS, Machine, Outcome, small_disk, storm

STORM_S = 25.0
FAILOVER_S = 12.0
MODEL_S = 30.0
SIEGE_S = 25.0


@dataclass(frozen=True)
class Job:
    """What to do.

    Attributes:
        until: by ``time.monotonic()``: what can be left unfinished is, then.
    """

    kind: str
    version: int
    arguments: tuple[Any, ...]
    until: float = math.inf

    def is_over(self) -> bool:
        return time.monotonic() >= self.until

    def __str__(self) -> str:
        return f"{self.kind} {self.arguments} on Postgres {self.version}"


@dataclass
class Result:
    """What a job came to: figures by name, faults by kind, and what it found; and whether it came to its end."""

    job: Job
    complete: bool = True
    seconds: float = 0.0
    figures: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    violations: list[str] = field(default_factory=list)


def perform(job: Job, folder: Path) -> Result:
    begun = time.monotonic()
    own = Path(tempfile.mkdtemp(prefix=job.kind.replace(" ", "-") + "-", dir=folder))
    own.chmod(0o755)
    result = KINDS[job.kind](job, own)
    result.seconds = time.monotonic() - begun
    if not result.violations:
        shutil.rmtree(own, ignore_errors=True)
    return result


@contextlib.contextmanager
def _scratch(job: Job, folder: Path) -> Iterator[str]:
    """The URL of a migrated database that need not survive anything."""
    settings = {"fsync": "off", "shared_buffers": "64MB", "jit": "off", "log_min_messages": "fatal"}
    cluster = clusters.cluster(folder / "data", SERVERS[job.version], settings)
    cluster.start()
    try:
        yield clusters.url(cluster)
    finally:
        cluster.stop("immediate")


def _schedules(job: Job, folder: Path) -> Result:
    name, *share = job.arguments
    with _scratch(job, folder) as url, connect(url) as connection:
        tally = Explorer(connection, job.is_over).run(CASTS[name], *share, merged=job.kind == "schedules")
    figures = Counter({"schedules": tally.schedules, "calls": tally.calls})
    return Result(job, not job.is_over(), figures=figures, violations=tally.violations[:5])


def _races(job: Job, folder: Path) -> Result:
    state, level = job.arguments
    with _scratch(job, folder) as url, Racer(url, level) as racer:
        tally = racer.race(state, all_pairs(state), job.is_over)
    figures = Counter({"races": tally.races, "calls": 2 * tally.races, "waited": tally.waited})
    return Result(job, not job.is_over(), figures=figures, violations=tally.violations[:5])


def _storm(job: Job, folder: Path) -> Result:
    with small_disk(320) as disk:
        machine = Machine(folder, SERVERS[job.version], disk)
        try:
            return _result(job, storm(machine, folder / "journals", STORM_S, job.arguments[0], FAULTS))
        finally:
            machine.cluster.stop("immediate")


def _siege(job: Job, folder: Path) -> Result:
    machine = Machine(folder, SERVERS[job.version])
    try:
        finding = siege(machine, folder / "siege", SIEGE_S, job.arguments[0])
    finally:
        machine.cluster.stop("immediate")
    return Result(job, figures=finding.figures, faults=finding.faults, violations=finding.violations[:10])


def _failover(job: Job, folder: Path) -> Result:
    synchronous = job.kind == "synchronous failover"
    seed = job.arguments[0]
    return _result(job, failover(folder / "pair", SERVERS[job.version], FAILOVER_S, seed, synchronous=synchronous))


def _interruptions(job: Job, folder: Path) -> Result:
    state, share, shares = job.arguments
    with _scratch(job, folder) as url, Interrupter(url) as interrupter:
        tally = interrupter.interrupt(state, calls_from(state)[share::shares], job.is_over, calls_from(state))
    figures = Counter({"interruptions": tally.races, "calls": 2 * tally.races, "waited": tally.waited})
    return Result(job, not job.is_over(), figures=figures, violations=tally.violations[:5])


def _result(job: Job, outcome: Outcome) -> Result:
    figures = Counter({"calls": outcome.calls, "tries": outcome.tries, "answers lost": outcome.lost})
    return Result(job, figures=figures, faults=outcome.faults, violations=outcome.violations[:5])


def _probe(job: Job, folder: Path) -> Result:
    from .long import LONG

    with _scratch(job, folder) as url:
        seen = LONG[job.arguments[0]](url)
    if isinstance(seen, list):
        return Result(job, violations=seen[:5])
    figures = Counter({f"{job.arguments[0]} on {job.version}: {what}": n for what, n in seen.figures.items()})
    return Result(job, figures=figures, violations=seen.found[:5])


def _model(job: Job, folder: Path) -> Result:
    from ..test_reference import Violation, run_for

    try:
        with _scratch(job, folder) as url:
            return Result(job, figures=Counter(run_for(url, MODEL_S, job.arguments[0])))
    except Violation as violation:
        return Result(job, violations=[str(violation)])


KINDS = {
    "schedules": _schedules,
    "schedules one by one": _schedules,
    "races": _races,
    "interruptions": _interruptions,
    "probe": _probe,
    "storm": _storm,
    "synchronous failover": _failover,
    "asynchronous failover": _failover,
    "model": _model,
    "siege": _siege,
}
