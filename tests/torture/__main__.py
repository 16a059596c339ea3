"""``make torture MINUTES=n``: everything that is meant to break it, for as long as it is given.

First every schedule of each cast, merged, every pair of calls, raced and interrupted, and the probes of the tests in
their long form; then the schedules one by one, shared out among processes. Beside it, storms, failovers and sieges on
every Postgres that is there, and sequences of calls against the model. A violation is printed when it is found, with
what led to it. The report is written to ``build/torture``.
"""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import replace
from pathlib import Path

import click
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from .. import conftest
from ..support import clusters
from . import report
from .cast import CASTS
from .jobs import KINDS, Job, Result, perform
from .long import LONG
from .races import LEVELS, STATES

#: What takes long is shared out among so many jobs; an odd number, see Explorer.run.
SHARES = 7

ATTACKS = (
    "storm",
    "siege",
    "synchronous failover",
    "siege",
    "storm",
    "asynchronous failover",
    "siege",
    "storm",
    "model",
)


def enumerations() -> Iterator[Job]:
    """What comes to an end: on the newest Postgres, but for the probes."""
    newest = max(conftest.SERVERS)
    for name in CASTS:
        yield Job("schedules", newest, (name,))
    for state in STATES:
        yield Job("races", newest, (state, LEVELS[0]))
    for state in STATES:
        for share in range(SHARES):
            yield Job("interruptions", newest, (state, share, SHARES))
    for version in sorted(conftest.SERVERS):
        for name in LONG:
            yield Job("probe", version, (name,))
    for level in LEVELS[1:]:
        for state in STATES:
            yield Job("races", newest, (state, level))
    for share in range(SHARES):
        for name in CASTS:
            yield Job("schedules one by one", newest, (name, share, SHARES))


def attacks(seed: int) -> Iterator[Job]:
    """Storms, failovers, sieges and sequences of calls, on one Postgres after the other, for ever."""
    versions = sorted(conftest.SERVERS)
    while True:
        for version in versions:
            for kind in ATTACKS:
                seed += 1
                yield Job(kind, version, (seed,))


@click.command()
@click.option("--minutes", default=10.0, show_default=True, help="How long; storms under way are finished.")
@click.option("--seed", type=int, help="Of what is chosen by chance; by default the time.")
@click.option("--processes", default=os.cpu_count() or 2, show_default=True, help="How many jobs at once.")
@click.option("--jobs", type=int, help="End after so many jobs, however long each takes.")
@click.option("--only", multiple=True, type=click.Choice(list(KINDS)), help="Just this kind of attack, or these.")
@click.option("--output", type=click.Path(path_type=Path), default=Path("build/torture"), show_default=True)
def main(
    minutes: float, seed: int | None, processes: int, jobs: int | None, only: tuple[str, ...], output: Path
) -> None:
    """Break it on purpose. Exits with 1 when a violation was found."""
    seed = int(time.time()) if seed is None else seed
    begun = time.monotonic()
    end = begun + minutes * 60
    kinds = set(only or KINDS)
    waiting, endless = [job for job in enumerations() if job.kind in kinds], attacks(seed)
    attackers = kinds - {job.kind for job in enumerations()}
    results: list[Result] = []

    def next_job(running: list[Job]) -> Job | None:
        """One process attacks, the others enumerate while there is anything left."""
        if time.monotonic() >= end or len(results) + len(running) == jobs:
            return None
        attacked = any(job.kind in attackers for job in running)
        if waiting and (attacked or not attackers):
            return waiting.pop(0)
        return next((job for job in endless if job.kind in attackers), None) if attackers else None

    clusters.folder()  # which all processes share
    folder = Path(tempfile.mkdtemp(prefix="tidebase-torture-"))
    folder.chmod(0o755)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[figures]}"),
        TimeRemainingColumn(),
    )
    context = multiprocessing.get_context("forkserver")
    with Progress(*columns) as progress, ProcessPoolExecutor(processes, mp_context=context) as pool:
        bar = progress.add_task(f"seed {seed}", total=minutes * 60, figures="")
        futures: dict[Future[Result], Job] = {}
        while True:
            while len(futures) < processes and (job := next_job(list(futures.values()))):
                job = replace(job, until=end)
                futures[pool.submit(perform, job, folder)] = job
            if not futures:
                break
            done, _ = wait(futures, timeout=1, return_when=FIRST_COMPLETED)
            for future in done:
                job = futures.pop(future)
                result = _result(future, job)
                results.append(result)
                for violation in result.violations:
                    progress.console.print(Text(str(job), "red"), Text(violation), soft_wrap=True)
            progress.update(bar, completed=time.monotonic() - begun, figures=report.headline(results))
    text = report.write(results, output, seed, time.monotonic() - begun)
    click.echo(text)
    if any(result.violations for result in results):
        click.echo(f"what led to it is in {folder}")
        raise SystemExit(1)


def _result(future: Future[Result], job: Job) -> Result:
    try:
        return future.result()
    except Exception as error:
        return Result(job, violations=[f"the job could not go on: {error!r}"])


if __name__ == "__main__":
    main()
