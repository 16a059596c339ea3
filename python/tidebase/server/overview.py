"""What a page for people reads: lists with every filter, a run with all that it waits for, the inbox, queues, health.

Rows are told as the database has them, with the JSON names of this API: a duration ends with ``S`` and is in seconds.
No answer has the secret of a gate.
"""

from __future__ import annotations

import asyncio
import functools
import time
from dataclasses import asdict, dataclass, fields
from datetime import datetime, timedelta
from typing import Any, get_type_hints

import msgspec

from ..core import codec
from ..core.database import Database
from ..core.errors import InvalidArgument
from ..domain import calls
from ..domain.calls import Attempt, Call, GateInfo, RunEdge, Value
from ..views import health
from . import pages, shapes
from .refusal import Refused
from .routes import ALL, Asked, before_number, limit, number, page_from, route
from .shapes import Shape

#: What of a value a list shows, in bytes.
_LITTLE = 2_000

#: For how long what was found about the database's health is told again, in seconds.
_FRESH_S = 10.0

FILTERS = ("workflow", "status", "queue", "matching", "metadata", "createdAfter", "createdBefore", "roots")


@dataclass(frozen=True)
class ListedRun:
    """A run in a list."""

    run_id: str
    workflow: str
    status: str
    attempt: int
    max_attempts: int | None
    holder: str | None
    lease_lapsed: bool
    steps_completed: int
    last_seq: int
    code_version: str | None
    metadata: Value
    error_message: str | None
    created_at: datetime
    updated_at: datetime
    finished_at: datetime | None
    waiting_for: str | None
    available_at: datetime | None
    deadline_at: datetime | None
    failure_class: str | None
    cancel_reason: str | None
    parent_run_id: str | None
    queue: str | None
    priority: int | None
    queue_key: str | None
    dedupe_key: str | None


@dataclass(frozen=True)
class StepLine:
    """A step without what went into it and came of it."""

    run_id: str
    name: str
    status: str
    attempt: int
    lease_token: int
    started_at: datetime
    completed_at: datetime | None
    completed_seq: int | None
    decision: str | None
    retry_at: datetime | None
    error: Value
    side_effects: list[str] | None
    idempotency_key: str | None
    replay: str
    retries: int


_STEPS = pages.Section(StepLine, pages.STEPS.source, pages.STEPS.order, pages.STEPS.before)
_GATES = pages.Section(
    GateInfo,
    "(select * from tidebase.gate_overview where run_id = %s)",
    ("created_at", "name"),
)
_ATTEMPTS = pages.Section(Attempt, "(select * from tidebase.run_attempts where run_id = %s)", ("attempt",))


def told(row: Any) -> Shape:
    """A row as the API tells it."""
    kind: Any = type(row)
    return {told_as: _plain(getattr(row, name)) for name, told_as in _names(kind)}


@functools.cache
def _names(row: Any) -> list[tuple[str, str]]:
    hints = get_type_hints(row)
    return [(field.name, _camel(field.name, hints[field.name])) for field in fields(row)]


def _camel(name: str, hint: Any) -> str:
    head, *rest = name.split("_")
    lasts = hint in (timedelta, timedelta | None)
    return head + "".join(part.capitalize() for part in rest) + ("S" if lasts else "")


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return shapes.moment(value)
    return value.total_seconds() if isinstance(value, timedelta) else value


# -- runs


_MESSAGE = "left(coalesce(error ->> 'message', error::text), 300) as error_message"
_COLUMNS = pages.columns(ListedRun, _LITTLE, error_message=_MESSAGE)
_read = pages.reader(ListedRun)


def listed(run_ids: list[str]) -> Call[list[ListedRun]]:
    """These runs, as a list shows them."""
    query = f"select {_COLUMNS} from tidebase.run_overview where run_id = any(%s) order by created_at desc, run_id desc"
    return Call(query, (run_ids,), lambda rows: list(map(_read, rows)))


@dataclass(frozen=True)
class Found:
    """What a search found; ``since``: the run behind which it has not looked, by when and as what it was created."""

    runs: list[ListedRun]
    since: tuple[datetime, str] | None


def searched(given: dict[str, Any]) -> Call[Found]:
    """What a search finds, in one statement."""
    found = calls.search_runs(**given)
    source = found.query.partition(" from ")[2]
    query = f"""
        select {_COLUMNS}, p.next_created_at, p.next_run_id from {source} p
        left join lateral unnest(p.run_ids) i (found_id) on true
        left join tidebase.run_overview o on o.run_id = i.found_id
        order by o.created_at desc, o.run_id desc"""

    def read(rows: list[tuple[Any, ...]]) -> Found:
        (since,) = {row[-2:] for row in rows}
        return Found([_read(row[:-2]) for row in rows if row[0] is not None], since if since[0] else None)

    return Call(query, found.parameters, read)


def filters(query: dict[str, str]) -> dict[str, Any]:
    """The filters of a query, as search_runs takes them."""
    metadata = query.get("metadata")
    if metadata is not None:
        try:
            metadata = codec.encode(msgspec.json.decode(metadata, type=dict[str, Any]))
        except (msgspec.DecodeError, RecursionError):
            raise InvalidArgument("metadata must be a JSON object") from None
    return {
        "workflow": query.get("workflow"),
        "status": query.get("status"),
        "queue": query.get("queue"),
        "matching": query.get("matching"),
        "metadata": metadata,
        "created_after": moment(query, "createdAfter"),
        "created_before": moment(query, "createdBefore"),
        "roots": query.get("roots") == "true",
    }


def moment(query: dict[str, str], name: str) -> datetime | None:
    """A time in a query."""
    text = query.get(name)
    if text is None:
        return None
    try:
        found = msgspec.convert(text, datetime)
    except msgspec.ValidationError:
        raise InvalidArgument(f"{name} must be a time such as 2026-01-31T12:00:00Z") from None
    if found.tzinfo is None:
        raise InvalidArgument(f"{name} must name its time zone")
    return found


@route(
    "GET",
    "/overview/runs",
    ALL,
    "runs",
    "next",
    "examined",
    query=(*FILTERS, "ids", "before", "beforeCreatedAt", "limit", "effort"),
)
async def search_runs(asked: Asked) -> Shape:
    """Runs, newest first, by every filter. No more than ``effort`` runs are looked at: ``next`` says with which
    ``before`` and ``beforeCreatedAt`` the search goes on, and is null when it has been through all. ``ids``: just
    these, with commas in between, and a comma in an id as ``%2C``.
    """
    most = limit(asked, 100)
    if "ids" in asked.query:
        ids = asked.query["ids"].split(",")
        if len(ids) > 200:
            raise InvalidArgument("ids must be 200 at most")
        rows = await asked.do(listed([_unquoted(id) for id in ids]))
        return {"runs": [told(row) for row in rows], "next": None, "examined": len(rows)}
    page = await asked.do(
        calls.search_runs(
            **filters(asked.query),
            before=asked.query.get("before"),
            before_created_at=moment(asked.query, "beforeCreatedAt"),
            max=most,
            effort=min(number(asked.query, "effort", 10_000), 2**31 - 1),
        )
    )
    rows = await asked.do(listed(page.run_ids)) if page.run_ids else []
    at = page.next_created_at
    # To the last digit: a time that is cut would lead past runs of the same millisecond.
    next = {"before": page.next_run_id, "beforeCreatedAt": at.isoformat()} if at else None
    return {"runs": [told(row) for row in rows], "next": next, "examined": page.examined}


def _unquoted(id: str) -> str:
    """An id may have a comma in it, which is sent twice percent-encoded."""
    return id.replace("%2C", ",").replace("%25", "%")


@route("GET", "/overview/counts", ALL, "counts")
async def count_runs(asked: Asked) -> Shape:
    """How many runs are in each status."""
    return {"counts": [told(row) for row in await asked.do(calls.count_runs())]}


@route(
    "GET",
    "/overview/runs/{run_id}",
    ALL,
    "run",
    "attempts",
    "steps",
    "gates",
    "ballots",
    "children",
    "recoveries",
    "channels",
    "totals",
    "forkedFrom",
    "cut",
)
async def look_at_run(asked: Asked) -> Shape:
    """A run with the newest of its attempts, steps, gates and timers, children, recoveries and channels, and what it
    has used. ``cut`` names those of which there are more. A value that is too long is ``{"truncated": true, ...}``.
    """
    run_id = asked.run_id
    row = await asked.row(pages.IN_A_PAGE)
    attempts = await asked.do(_ATTEMPTS.page(run_id, 200))
    steps = await asked.do(_STEPS.page(run_id, 1000))
    gates = await asked.do(_GATES.page(run_id, 200))
    edges = await asked.do(pages.CHILDREN.page(run_id, 200))
    recoveries = await asked.do(pages.RECOVERIES.page(run_id, 100))
    channels = await asked.do(pages.bounded(calls.list_channels(run_id=run_id), calls.Channel))
    several = any(gate.required_approvals > 1 for gate in gates.rows)
    totals = await asked.do(calls.usage_totals(run_id))
    sections = (("attempts", attempts), ("steps", steps), ("gates", gates), ("children", edges))
    return {
        "run": told(row),
        "attempts": [told(attempt) for attempt in attempts.rows],
        "steps": [{**told(step), "id": shapes.id_of("step", step.name)} for step in steps.rows],
        "gates": [{**told(gate), "id": shapes.id_of("gate", gate.name)} for gate in gates.rows],
        "ballots": [told(ballot) for ballot in await asked.do(calls.gate_ballots(run_id))] if several else [],
        "children": await _children(asked, edges.rows),
        "recoveries": [told(recovery) for recovery in recoveries.rows],
        "channels": [told(channel) for channel in channels],
        "totals": told(totals[0]),
        "forkedFrom": await asked.do(_forked_from(run_id)),
        "cut": [name for name, page in sections if page.cut],
    }


def _forked_from(run_id: str) -> Call[str | None]:
    query = "select run_id from tidebase.run_edges where child_run_id = %s and edge_type = 'fork' limit 1"
    return Call(query, (run_id,), lambda rows: rows[0][0] if rows else None)


async def _children(asked: Asked, edges: list[RunEdge]) -> list[Shape]:
    found = {run.run_id: run for run in await asked.do(listed([edge.child_run_id for edge in edges]))}
    return [
        {"name": edge.name, "edgeType": edge.edge_type, "run": told(found[edge.child_run_id])}
        for edge in edges
        if edge.child_run_id in found
    ]


@route("GET", "/overview/runs/{run_id}/children", ALL, "children", "next", query=("before", "limit"))
async def look_at_children(asked: Asked) -> Shape:
    """The newest children and forks with how they are, or those before one, by its run's id."""
    page = await page_from(asked, pages.CHILDREN, limit(asked, 200), asked.query.get("before"))
    oldest = page.rows[0].child_run_id if page.cut else None
    return {"children": await _children(asked, page.rows), "next": oldest}


@route("GET", "/overview/runs/{run_id}/steps/{step_id}", ALL, "step")
async def look_at_step(asked: Asked) -> Shape:
    """A step with what went into it, what came of it, and its contract."""
    name = shapes.name_of("step", asked.path["step_id"])
    rows = await asked.do(pages.bounded(calls.step_named(asked.run_id, name), calls.StepInfo))
    if not rows:
        raise Refused(404, error="step not found", code="not_found")
    return {"step": {**told(rows[0]), "id": shapes.id_of("step", name)}}


@route("GET", "/overview/runs/{run_id}/usage", ALL, "totals", "byModel", "bySteps", "records", "cut", query=("before",))
async def look_at_usage(asked: Asked) -> Shape:
    """What a run has used, by model and by step, and the newest 500 records, or those before one."""
    run_id = asked.run_id
    await asked.row()
    records = await asked.do(pages.USAGE.page(run_id, 500, before_number(asked)))
    (totals,) = await asked.do(calls.usage_totals(run_id))
    return {
        "totals": told(totals),
        "byModel": [told(row) for row in await asked.do(calls.usage_by_model(run_id))],
        "bySteps": [told(row) for row in (await asked.do(calls.usage_by_step(run_id)))[:500]],
        "records": [told(row) for row in records.rows],
        "cut": records.cut,
    }


@route("GET", "/overview/runs/{run_id}/differences", ALL, "differences", query=("other",))
async def compare_runs(asked: Asked) -> Shape:
    """In what a run and another one differ."""
    if "other" not in asked.query:
        raise InvalidArgument("other must be the id of a run")
    call = calls.diff_runs(run_id=asked.run_id, other_run_id=asked.query["other"])
    rows = await asked.do(pages.bounded(call, calls.Difference, pages.IN_A_PAGE))
    return {"differences": [told(row) for row in rows]}


# -- what waits for people


@route("GET", "/overview/inbox", ALL, "gates", "reviews", "next", query=("afterRun", "afterGate", "limit"))
async def look_at_inbox(asked: Asked) -> Shape:
    """The gates that wait for a decision, those nearest to their deadline first, and the steps in review, oldest first.
    ``next`` says with which ``afterRun`` and ``afterGate`` the gates go on.
    """
    most = limit(asked, 100)
    after_run, after_gate = asked.query.get("afterRun"), asked.query.get("afterGate")
    call = calls.list_inbox(max=most, after_run_id=after_run, after_name=after_gate or "")
    gates = await asked.do(pages.bounded(call, GateInfo, pages.IN_A_PAGE))
    reviews = [] if after_run else await asked.do(_reviews(most))
    runs = {run.run_id: run for run in await asked.do(listed([gate.run_id for gate in gates]))}
    votes = await asked.do(_votes([gate for gate in gates if gate.required_approvals > 1]))
    return {
        "gates": [
            {
                **told(gate),
                "id": shapes.id_of("gate", gate.name),
                "workflow": runs[gate.run_id].workflow if gate.run_id in runs else None,
                "ballots": [told(vote) for vote in votes if (vote.run_id, vote.name) == (gate.run_id, gate.name)],
            }
            for gate in gates
        ],
        "reviews": [{**told(review), "id": shapes.id_of("step", review.step)} for review in reviews],
        "next": {"afterRun": gates[-1].run_id, "afterGate": gates[-1].name} if len(gates) == most else None,
    }


def _reviews(most: int) -> Call[list[calls.ReviewInfo]]:
    read = pages.reader(calls.ReviewInfo)
    columns = pages.columns(calls.ReviewInfo, pages.IN_A_PAGE)
    query = f"select {columns} from tidebase.review_inbox order by opened_at limit %s"
    return Call(query, (most,), lambda rows: list(map(read, rows)))


def _votes(gates: list[GateInfo]) -> Call[list[calls.Ballot]]:
    query = """
        select v.run_id, v.name, v.voter, v.decision, v.comment, v.voted_at
        from unnest(%s::text[], %s::text[]) g (run_id, name)
        join tidebase.gate_ballots v on v.run_id = g.run_id and v.name = g.name order by v.voted_at, v.voter"""
    keys = [gate.run_id for gate in gates], [gate.name for gate in gates]
    return Call(query, keys, lambda rows: [calls.Ballot(*row) for row in rows])


# -- queues, schedules, workers, health


@route("GET", "/overview/queues", ALL, "queues")
async def look_at_queues(asked: Asked) -> Shape:
    """All queues with their limits, what they hold, what holds them back, and how many runs a minute end in them."""
    rates = {rate.queue: rate for rate in await asked.do(calls.queue_rates())}
    return {
        "queues": [
            {**told(row), **told(rates.get(row.queue, calls.QueueRate(row.queue, 0, 0)))}
            for row in await asked.do(calls.queue_overview())
        ]
    }


@route("GET", "/overview/workers", ALL, "workers")
async def look_at_workers(asked: Asked) -> Shape:
    """The workers of the last day, those that were seen last first; 500 at most."""
    return {"workers": [told(row) for row in (await asked.do(calls.worker_overview()))[:500]]}


@route("GET", "/overview/schedules", ALL, "schedules")
async def look_at_schedules(asked: Asked) -> Shape:
    """All schedules with all that was said about them, and their next times."""
    rows = await asked.do(pages.bounded(calls.schedule_overview(), calls.ScheduleInfo, pages.IN_A_PAGE))
    return {"schedules": [{**told(row), "nextFires": await _fires(asked, row)} for row in rows]}


async def _fires(asked: Asked, row: calls.ScheduleInfo) -> list[str | None]:
    if row.next_at is None:
        return []
    if row.cron is None or row.jitter:
        every = [row.next_at] if row.every is None else [row.next_at + row.every * n for n in range(5)]
        return [shapes.moment(at) for at in every]
    call = calls.next_fires(cron=row.cron, timezone=row.timezone, after=row.next_at, n=4)
    return [shapes.moment(at) for at in [row.next_at, *await asked.do(call)]]


@route("GET", "/overview/fires", ALL, "fires", query=("cron", "timezone"))
async def next_fires(asked: Asked) -> Shape:
    """When a cron expression fires next: five times."""
    call = calls.next_fires(cron=asked.query.get("cron", ""), timezone=asked.query.get("timezone"), n=5)
    return {"fires": [shapes.moment(at) for at in await asked.do(call)]}


@route("GET", "/overview/health", ALL, "findings")
async def look_at_health(asked: Asked) -> Shape:
    """What ``tidebase doctor`` finds, at most ten seconds ago."""
    return {"findings": await asked.health()}


class Health:
    """What was found about a database, for all who ask within a few seconds.

    Args:
        database: its connection string.
    """

    def __init__(self, database: str | None) -> None:
        self._database = database
        self._found: list[Shape] = []
        self._at = float("-inf")
        self._lock = functools.cache(asyncio.Lock)

    async def __call__(self) -> list[Shape]:
        async with self._lock():
            if time.monotonic() > self._at + _FRESH_S:
                self._found = await asyncio.to_thread(self._look)
                self._at = time.monotonic()
            return self._found

    def _look(self) -> list[Shape]:
        source = Database(self._database, pool_size=1, reconnect_s=5)
        try:
            with source.connection() as connection:
                connection.execute("set statement_timeout = '10s'")
                return [asdict(finding) for finding in health.look(connection)]
        finally:
            source.close()
