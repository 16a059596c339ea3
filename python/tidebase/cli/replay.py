"""``tidebase replay-check``: whether the code at hand fits the runs that are under way."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from datetime import datetime
from typing import Any

import click

from ..client.tide import Tidebase
from ..client.tide_async import AsyncTidebase
from ..core.errors import TidebaseError
from ..domain.run import RunInfo
from ..testing.rehearsal import Rehearsal, playable, rehearse, rehearse_async
from .found import found_object
from .output import JSON, TIME, ParamType, database_option, print_json, print_line

#: The statuses of a run that may go on.
_ALIVE = ("pending", "queued", "running", "waiting", "review", "failed")

_PAGE = 200


class Assumption(ParamType):
    """``NAME=JSON``: what a new step is taken to give."""

    name = "assumption"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, Any]:
        if isinstance(value, tuple):
            return value
        name, equals, text = value.partition("=")
        if not name or not equals:
            self.fail(f"{value!r} is not NAME=JSON", param, ctx)
        return name, JSON.convert(text, param, ctx)


@click.command("replay-check")
@click.argument("target", metavar="MODULE:OBJECT")
@database_option
@click.option(
    "--workflow", "-w", "workflows", multiple=True, metavar="NAME", help="Only these. [default: all of OBJECT]"
)
@click.option("--since", type=TIME, metavar="TIME", help="Only runs made since then: a time, or so long ago (30d).")
@click.option("--run", "run_ids", multiple=True, metavar="RUN", help="Only these runs, also those that are over.")
@click.option("--max", "most", type=click.IntRange(1), metavar="N", help="At most so many runs, the newest first.")
@click.option(
    "--assume",
    type=Assumption(),
    multiple=True,
    metavar="NAME=JSON",
    help="A step is new, and is taken to give this: what lies behind it is looked at, too.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON, one run a line.")
def replay_check(
    target: str,
    database: str | None,
    workflows: tuple[str, ...],
    since: datetime | None,
    run_ids: tuple[str, ...],
    most: int | None,
    assume: tuple[tuple[str, Any], ...],
    as_json: bool,
) -> None:
    """Play the runs that may go on with the code at hand, before it is deployed: no step is executed, nothing is
    written.

    OBJECT is a Tidebase, or an AsyncTidebase, with its workflows. The runs are in the database that it names, or in
    that of --database: a copy of the live one, say. Exits with 1 when a run does not fit: a step of it is missing or
    renamed, is asked for with another input, or does not come back as its type.
    """
    tide = found_object(target, (Tidebase, AsyncTidebase))
    chosen = playable(tide, workflows)
    with Tidebase(database or tide.url) as source:
        found = (
            (source.runs.get(source.runs.find(run_id)) for run_id in run_ids)
            if run_ids
            else _alive(source, chosen, since)
        )
        runs = [run for _, run in zip(range(most), found, strict=False)] if most else list(found)
        reports = _rehearsals(tide, source, runs, dict(assume))
        counts: Counter[bool] = Counter()
        for report in reports:
            counts[report.fits] += 1
            if as_json:
                print_json({**asdict(report), "fits": report.fits})
            elif not report.fits:
                for line in str(report).splitlines():
                    print_line(line)
    if not as_json:
        click.echo(f"{counts[True] + counts[False]} run(s) looked at: {counts[True]} fit, {counts[False]} do not")
    raise SystemExit(1 if counts[False] else 0)


def _alive(source: Tidebase, workflows: list[str], since: datetime | None) -> Iterator[RunInfo]:
    for workflow in workflows:
        for status in _ALIVE:
            last: RunInfo | None = None
            while True:
                page = source.runs.list(workflow=workflow, status=status, created_after=since, before=last, max=_PAGE)
                yield from page
                if len(page) < _PAGE:
                    break
                last = page[-1]


def _rehearsals(
    tide: Tidebase | AsyncTidebase, source: Tidebase, runs: list[RunInfo], assume: dict[str, Any]
) -> Iterator[Rehearsal]:
    """With the workflows of one and the runs of the other."""
    known = set(tide._registry.names())
    others = sorted({run.workflow for run in runs} - known)
    if others:
        raise TidebaseError(f"no workflow {', '.join(map(repr, others))} is registered")
    for run in runs:
        if isinstance(tide, AsyncTidebase):
            yield asyncio.run(_rehearse_async(tide, source.url, run.run_id, assume))
        else:
            yield rehearse(tide, run.run_id, source=source, assume=assume)


async def _rehearse_async(tide: AsyncTidebase, url: str, run_id: str, assume: dict[str, Any]) -> Rehearsal:
    async with tide, AsyncTidebase(url) as source:
        return await rehearse_async(tide, run_id, source=source, assume=assume)


COMMANDS = [replay_check]
