"""The commands that look: ``runs``, ``show``, ``step``, ``timeline``, ``events``, ``state``, ``diff``, ``tree``,
``usage``.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict
from datetime import datetime, timedelta, timezone
from itertools import islice
from pathlib import Path
from typing import Any

import click

from ..client.tide import Tidebase
from ..core.errors import RunNotFound
from ..core.hints import command, to_decide, to_review
from ..domain.calls import Event, GateInfo, ReviewInfo, RunInfo, TreeNode
from ..domain.state import MAIN, Moment
from ..views import timeline as drawing
from .output import (
    DURATION,
    SEQ,
    TIME,
    VERSION,
    age,
    common,
    connected,
    plain,
    pretty,
    print_block,
    print_fields,
    print_json,
    print_line,
    print_table,
    short,
)

_PAGE = 100

#: So many characters of a value stand in a table.
_SHORT = 40

#: What was said about a step when it was begun.
_CONTRACT = (
    "side_effects",
    "idempotency_key",
    "replay",
    "checkpoint_invariant",
    "verified_by",
    "credentials",
    "retries",
    "timeout",
)
_MOST_VERSIONS = 10_000


@click.command()
@common
@click.option("--status", help="Only those in this status: pending, running, waiting, review, completed ...")
@click.option("--workflow", help="Only those of this workflow.")
@click.option("--newer-than", type=DURATION, metavar="AGE", help="Only those created since: 1h, 7d.")
@click.option("--older-than", type=DURATION, metavar="AGE", help="Only those created before: 1h, 7d.")
@click.option("--before", metavar="RUN", help="Page on: only those created before this run.")
@click.option("--all", "everything", is_flag=True, help="Children, too; so it is with --status or --workflow.")
@click.option("--max", "limit", type=click.IntRange(1), default=50, show_default=True, help="How many at most.")
def runs(
    database: str | None,
    as_json: bool,
    status: str | None,
    workflow: str | None,
    newer_than: timedelta | None,
    older_than: timedelta | None,
    before: str | None,
    everything: bool,
    limit: int,
) -> None:
    """List runs, newest first: those that no other run has made, unless told otherwise."""
    now = datetime.now(timezone.utc)
    filters = {
        "status": status,
        "workflow": workflow,
        "created_after": None if newer_than is None else now - newer_than,
        "created_before": None if older_than is None else now - older_than,
        "roots": not (everything or status or workflow),
    }
    with connected(database) as tide:
        found = list(islice(_pages(tide, _known(tide, before), filters), min(limit, sys.maxsize)))
    if as_json:
        print_json(found)
        return
    rows = [(r.run_id, r.workflow, status_of(r), r.attempt, r.steps_completed, age(r.created_at)) for r in found]
    print_table(("run", "workflow", "status", "attempt", "steps", "created"), rows, "no runs")


def _known(tide: Tidebase, before: str | None) -> str | None:
    """A run that is gone has a place in the list all the same, if it is in its id."""
    with suppress(RunNotFound):
        return before and tide.runs.find(before)
    return before


def _pages(tide: Tidebase, before: str | RunInfo | None, filters: dict[str, Any]) -> Iterator[RunInfo]:
    while True:
        page = tide.runs.list(before=before, max=_PAGE, **filters)
        yield from page
        if len(page) < _PAGE:
            return
        before = page[-1]


def status_of(run: RunInfo) -> str:
    """The status, with what a reader would ask next."""
    if run.lease_lapsed:
        return "running (lease lapsed)"
    return f"waiting ({run.waiting_for})" if run.status == "waiting" and run.waiting_for else run.status


@click.command()
@common
@click.argument("run_id", metavar="RUN")
@click.option("--steps", "most", type=VERSION, default=100, show_default=True, metavar="N", help="The latest N steps.")
def show(database: str | None, as_json: bool, run_id: str, most: int) -> None:
    """Show a run: its status, attempts, steps, gates, what it used, and what could be done next."""
    with connected(database) as tide:
        run_id = tide.runs.find(run_id)
        run = tide.runs.get(run_id)
        attempts, totals = tide.runs.attempts(run_id), tide.runs.usage(run_id)
        steps = tide.runs.steps(run_id, max=most)
        gates, reviews = tide.runs.gates(run_id), tide.runs.reviews(run_id)
        children = [node for node in tide.runs.tree(run_id) if node.parent_run_id == run_id]
    if as_json:
        parts = {"attempts": attempts, "steps": steps, "gates": gates, "children": children, "usage": totals}
        print_json({"run": run, **parts})
        return
    fields = {key: value for key, value in asdict(run).items() if key not in ("lease_lapsed", "status")}
    fields["error"] = _message(run.error)
    print_fields({"run_id": run.run_id, "status": status_of(run), **fields})
    if attempts:
        _heading("attempts")
        rows = [
            (a.attempt, a.holder, a.started_at, a.ended_at, a.outcome or "at work", _message(a.error)) for a in attempts
        ]
        print_table(("attempt", "holder", "started", "ended", "outcome", "error"), rows, "")
    if steps:
        _heading("steps" if len(steps) < most else f"steps, the latest {most} (see --steps)")
        step_rows = [
            (s.name, s.status, s.attempt, s.started_at, s.duration, _part(s.input), _part(s.output), _message(s.error))
            for s in steps
        ]
        print_table(("step", "status", "attempt", "started", "took", "input", "output", "error"), step_rows, "")
    if gates:
        _heading("gates and timers")
        gate_rows = [(g.name, g.kind, g.status, g.decision, g.actor, g.prompt) for g in gates]
        print_table(("name", "kind", "status", "decision", "actor", "prompt"), gate_rows, "")
    if children:
        _heading("children and forks")
        child_rows = [(c.run_id, c.edge_type, c.workflow, c.status, c.steps_completed) for c in children]
        print_table(("run", "edge", "workflow", "status", "steps"), child_rows, "")
    if totals.tree_records:
        _heading("usage")
        print_fields(_usage_fields(asdict(totals)))
    _print_tracebacks(
        [(f"step {s.name}", s.error) for s in steps if s.status != "completed"] + [("the run", run.error)]
    )
    following = list(_next(run, gates, reviews, children))
    if following:
        _heading("next")
        for line in following:
            print_line(line)


def _next(
    run: RunInfo, gates: Sequence[GateInfo], reviews: Sequence[ReviewInfo], children: Sequence[TreeNode]
) -> Iterator[str]:
    """What could be done so that the run goes on."""
    for review in reviews:
        yield to_review(run.run_id, review.step)
    for gate in gates:
        if gate.kind == "gate" and gate.status == "pending":
            yield to_decide(run.run_id, gate.name, gate.options)
    for child in children:
        if child.edge_type != "fork" and child.status in ("waiting", "review"):
            yield f"See what a child of it waits for: {command('show', child.run_id)}"
    if run.lease_lapsed or run.status == "failed":
        yield f"Let another worker go on with it: {command('recover', run.run_id)}"


def _heading(text: str) -> None:
    print_line("")
    print_line(text)


def _part(value: Any) -> str:
    """As much of a value as stands in a table: `tidebase step` has all of it."""
    text = short(value)
    return text if len(text) <= _SHORT else f"{text[: _SHORT - 1]}…"


def _message(error: Any) -> str | None:
    if isinstance(error, dict) and "message" in error:
        error = ": ".join(str(error[part]) for part in ("type", "message") if part in error)
    return None if error is None else short(error)[:100]


def _print_tracebacks(errors: Iterable[tuple[str, Any]]) -> None:
    """What is known of where errors came from; each once, for those that have it."""
    places: dict[tuple[str, str], list[str]] = {}
    for where, error in errors:
        if isinstance(error, dict) and isinstance(error.get("traceback"), str):
            places.setdefault((_message(error) or "", error["traceback"]), []).append(where)
    for (_, text), names in places.items():
        _heading(f"error of {', '.join(names)}")
        print_block(text)


@click.command()
@common
@click.argument("run_id", metavar="RUN")
@click.argument("name", metavar="NAME")
def step(database: str | None, as_json: bool, run_id: str, name: str) -> None:
    """Show all there is about a step: input, output, errors, contract, and each time it was tried."""
    with connected(database) as tide:
        run_id = tide.runs.find(run_id)
        found = tide.runs.step(run_id, name)
        log = [event for event in tide.runs.events(run_id) if _is_about(event, name)]
        reviews = [review for review in tide.runs.reviews(run_id) if review.step == name]
    if as_json:
        print_json({"step": found, "tries": log})
        return
    fields = {key: value for key, value in asdict(found).items() if key not in ("input", "output", "error", *_CONTRACT)}
    print_fields({**fields, "error": _message(found.error)})
    contract = {key: getattr(found, key) for key in _CONTRACT}
    if any(value not in (None, [], 0, "auto") for value in contract.values()):
        _heading("contract")
        print_fields(contract)
    for heading, value in (("input", found.input), ("output", found.output)):
        if value is not None or (heading == "output" and found.status == "completed"):
            _heading(heading)
            print_block(pretty(value))
    _heading("tries")
    rows = [(e.seq, e.created_at, e.type, e.payload.get("attempt"), _happened(e.payload)) for e in log]
    print_table(("seq", "at", "event", "attempt", "what"), rows, "none is in the log")
    failures = [(f"attempt {e.payload.get('attempt')}", e.payload.get("error")) for e in log]
    _print_tracebacks(failures or [("the step", found.error)])
    if reviews:
        _heading("next")
        print_line(to_review(run_id, name))


def _is_about(event: Event, step: str) -> bool:
    return event.type.startswith("step.") and isinstance(event.payload, dict) and event.payload.get("name") == step


def _happened(payload: dict[str, Any]) -> str:
    """What an event says beside the name and the number of the attempt."""
    said = {key: value for key, value in payload.items() if key not in ("name", "attempt", "token", "error")}
    words = [f"{key}: {short(value)}" for key, value in said.items()]
    return ", ".join([*words, *filter(None, [_message(payload.get("error"))])])


@click.command()
@common
@click.argument("run_id", metavar="RUN")
@click.option("--svg", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE", help="Write a picture instead.")
@click.option("--width", type=click.IntRange(40, 1000), help="Columns of the text. [default: those of the terminal]")
def timeline(database: str | None, as_json: bool, run_id: str, svg: Path | None, width: int | None) -> None:
    """Draw when what of a run happened: attempts, steps, gates, children."""
    with connected(database) as tide:
        run_id = tide.runs.find(run_id)
        picture = drawing.collect(tide.runs, run_id)
    if svg is not None:
        try:
            svg.write_text(drawing.as_svg(picture), "utf-8")
        except OSError as error:
            raise click.FileError(str(svg), str(error.strerror)) from None
        if not as_json:
            click.echo(f"written: {svg}")
    if as_json:
        print_json(picture)
    elif svg is None:
        click.echo(drawing.as_text(picture, width), nl=False)


@click.command()
@common
@click.argument("run_id", metavar="RUN")
@click.option("--after", type=SEQ, default=0, help="Only those with a greater seq.")
@click.option("--follow", "-f", is_flag=True, help="Go on until the run is over.")
def events(database: str | None, as_json: bool, run_id: str, after: int, follow: bool) -> None:
    """Print a run's log, as one line an event; with --json one JSON object a line."""
    with connected(database) as tide:
        run_id = tide.runs.find(run_id)
        for event in tide.runs.subscribe(run_id, after) if follow else tide.runs.events(run_id, after):
            if as_json:
                print_json(event)
            else:
                _print_event(event)


def _print_event(event: Event) -> None:
    print_line(f"{event.seq:>5}  {short(event.created_at)}  {event.type:<20}  {short(event.payload)}")


@click.command()
@common
@click.argument("run_id", metavar="RUN")
@click.option("--stream", default=MAIN, show_default=True, help="Which stream.")
@click.option(
    "--at", type=TIME, metavar="TIME", help="As it was then: 2026-03-01T12:00:00Z, or 10m for ten minutes ago."
)
@click.option("--version", type=VERSION, metavar="N", help="This version.")
@click.option("--seq", type=SEQ, metavar="N", help="As it was right after this event.")
@click.option("--label", help="The newest version with this label.")
@click.option("--versions", "history", is_flag=True, help="List the versions, newest first.")
def state(
    database: str | None,
    as_json: bool,
    run_id: str,
    stream: str,
    history: bool,
    **moment: Any,
) -> None:
    """Print a run's state, now or as it was."""
    chosen: Moment = {name: value for name, value in moment.items() if value is not None}  # type: ignore[assignment]
    if len(chosen) + history > 1:
        raise click.UsageError("--at, --version, --seq, --label and --versions exclude each other")
    with connected(database) as tide:
        run_id = tide.runs.find(run_id)
        if history:
            _print_versions(tide, run_id, stream, as_json)
            return
        version = tide.runs.state(run_id, stream, **chosen)
    print_json(version if as_json else version.value)


def _print_versions(tide: Tidebase, run_id: str, stream: str, as_json: bool) -> None:
    versions = tide.runs.state_versions(run_id, stream, max=_MOST_VERSIONS)
    if as_json:
        print_json(versions)
        return
    rows = [(v.version, v.seq, v.operation, v.importance, v.label, v.reason, v.created_at) for v in versions]
    print_table(("version", "seq", "operation", "importance", "label", "reason", "written"), rows, "no state")


@click.command()
@common
@click.argument("run_id", metavar="RUN")
@click.argument("other", metavar="OTHER")
def diff(database: str | None, as_json: bool, run_id: str, other: str) -> None:
    """Say in what two runs differ, such as a run and its fork. Exits with 1 when they do."""
    with connected(database) as tide:
        run_id, other = tide.runs.find(run_id), tide.runs.find(other)
        differences = tide.diff(run_id, other)
    if as_json:
        print_json(differences)
    else:
        rows = [(d.kind, d.name, d.difference, short(d.value)[:60], short(d.other)[:60]) for d in differences]
        print_table(("kind", "name", "difference", "one", "other"), rows, "no difference")
    if differences:
        raise SystemExit(1)


@click.command()
@common
@click.argument("run_id", metavar="RUN")
def tree(database: str | None, as_json: bool, run_id: str) -> None:
    """Print a run with its children and forks, and theirs."""
    with connected(database) as tide:
        run_id = tide.runs.find(run_id)
        nodes = tide.runs.tree(run_id)
    if as_json:
        print_json(nodes)
        return
    for node in nodes:
        edge = f"{node.edge_type}: " if node.edge_type == "fork" else f"{node.name}: " if node.name else ""
        steps = f"{node.steps_completed} step{'' if node.steps_completed == 1 else 's'}"
        print_line(f"{'  ' * node.depth}{edge}{node.run_id}  {node.workflow}  {node.status}  {steps}")


@click.command()
@common
@click.argument("run_id", metavar="RUN")
def usage(database: str | None, as_json: bool, run_id: str) -> None:
    """Say what a run used and cost, itself and with its descendants."""
    with connected(database) as tide:
        run_id = tide.runs.find(run_id)
        totals = tide.runs.usage(run_id)
        by_model, by_step = tide.runs.usage_by_model(run_id), tide.runs.usage_by_step(run_id)
    if as_json:
        print_json({"totals": totals, "by_model": by_model, "by_step": by_step})
        return
    print_fields(_usage_fields(asdict(totals)))
    counted = ("input_tokens", "output_tokens", "cost", "currency", "records", "unpriced")
    for heading, names, rows in (("models", ("provider", "model"), by_model), ("steps", ("step",), by_step)):
        if rows:
            _heading(heading)
            columns = (*names, *counted)
            print_table(columns, [[getattr(row, column) for column in columns] for row in rows], "")


def _usage_fields(totals: dict[str, Any]) -> dict[str, Any]:
    return {name: plain(value) for name, value in totals.items() if name != "run_id" and value != 0}


COMMANDS = [runs, show, step, timeline, events, state, diff, tree, usage]
