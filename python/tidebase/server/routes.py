"""The routes of the HTTP API, each a translation to one function of the database and the row that comes of it.

The protocol of Tidebase v0.6 names an owner where a token belongs. So the owner that a client is told ends with the
fencing token of its lease, and whoever sends the owner, in the body or as ``x-tidebase-worker``, sends the token; that
also shows that the client is alive, and renews the lease. Where the client sends no owner at all (the SDKs do so at
state, usage, children, gates, and the end of a run), the call goes with the token of the lease that is held just then:
without a live lease it is refused, and when another worker takes over in between, the database fences it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal
from typing import Any, TypeVar
from urllib.parse import quote
from uuid import uuid4

from msgspec import UNSET

from ..core import codec
from ..core.database_async import AsyncDatabase
from ..core.errors import (
    InputMismatch,
    InvalidArgument,
    LeaseLostError,
    NotEntitled,
    NotFound,
    RunCancelledError,
    RunFinal,
    StepNotRunning,
    TidebaseError,
    only,
)
from ..domain import calls
from ..domain.lease import keep_lease
from ..domain.recovery import recover
from ..domain.workflow import new_run_id
from . import bodies, pages, payloads, shapes
from .refusal import Refused
from .shapes import Shape

R = TypeVar("R")

ALL = frozenset({"worker", "approver", "operator", "reader"})
WORKER = frozenset({"worker"})
OPERATOR = frozenset({"operator"})
DECIDERS = frozenset({"approver", "operator", "reader"})
REVIEWERS = frozenset({"approver", "operator"})


@dataclass(frozen=True)
class Asked:
    """A request, as a handler sees it."""

    database: AsyncDatabase
    path: dict[str, str]
    query: dict[str, str]
    body: Any
    worker: str | None
    roles: frozenset[str]
    person: str | None
    lease_s: float
    traceparent: str | None
    health: Callable[[], Awaitable[list[Shape]]]

    @property
    def run_id(self) -> str:
        return self.path["run_id"]

    async def do(self, call: calls.Call[R]) -> R:
        return await self.database.execute(call)

    async def row(self, most: int = 0) -> calls.RunInfo:
        """The run as the database has it, with values of at most so many bytes."""
        (row,) = await self.do(pages.bounded(calls.get_run(run_id=self.run_id), calls.RunInfo, most))
        return row

    async def run(self, most: int = pages.BY_ITSELF) -> Shape:
        """The run, with values of at most so many bytes."""
        return shapes.run(await self.row(most))

    async def token(self, owner: str | None = None, work_s: float = 0) -> int:
        """The fencing token of an owner, whose lease that renews, or of the lease that is held now.

        Args:
            work_s: for how long there may be work now of which nothing is heard, in seconds.
        """
        if owner is None and self.worker is not None and shapes.token_of(self.worker) is not None:
            owner = self.worker
        if owner is None:
            return (await self.row()).lease_token
        token = shapes.token_of(owner)
        if token is None:
            raise LeaseLostError("lease lost: the lease owner has no token", sqlstate="TB003")
        await self.keep(token, work_s)
        return token

    async def keep(self, token: int, work_s: float = 0) -> None:
        """Renews a lease whose holder has shown that it is alive; what is wrong with it the call itself will say."""
        ttl = timedelta(seconds=min(self.lease_s + work_s, 86_400))
        with suppress(LeaseLostError, RunCancelledError, RunFinal):
            await self.do(keep_lease(self.run_id, token, ttl))


Handler = Callable[[Asked], Awaitable[Shape]]


@dataclass(frozen=True)
class Route:
    """One route: its method and path, who may use it, what it takes and what it answers with."""

    method: str
    path: str
    handler: Handler
    roles: frozenset[str]
    body: type[bodies.Body] | None = None
    members: tuple[str, ...] = ()
    query: tuple[str, ...] = ()
    refusals: tuple[int, ...] = ()

    @property
    def makes_run(self) -> bool:
        """Whether it is about no run yet: what stands in the place of the id is a workflow."""
        return self.body is bodies.CreateRun


ROUTES: list[Route] = []


def route(
    method: str,
    path: str,
    roles: frozenset[str],
    *members: str,
    body: type[bodies.Body] | None = None,
    query: tuple[str, ...] = (),
    refusals: tuple[int, ...] = (),
) -> Callable[[Handler], Handler]:
    """Adds a handler; ``members`` are those of its answer, ``refusals`` the codes beside the usual ones."""

    def add(handler: Handler) -> Handler:
        ROUTES.append(Route(method, path, handler, roles, body, members, query, refusals))
        return handler

    return add


def json_or_none(value: Any) -> str | None:
    return None if value is None else codec.encode(value)


def refuse_channels(body: Any) -> None:
    """Raises Refused where a client wants a gate told to channels of its own: nobody would tell them."""
    if body.channels:
        raise absent("channels of a gate", "Give the run a channel for events of the type gate.created.")


def absent(name: str, hint: str | None = None) -> Refused:
    """The answer where Tidebase v0.6 has something that is not here."""
    error = f"this gateway has no {name}"
    return Refused(501, error=error if hint is None else f"{error}. {hint}", code="not_implemented", name=name)


# -- runs


@route("POST", "/runs/{run_id}", WORKER, "run", body=bodies.CreateRun, refusals=(409,))
async def create_run(asked: Asked) -> Shape:
    """Makes a run of the workflow that stands in the place of the run's id."""
    body: bodies.CreateRun = asked.body
    call = calls.create_run(
        workflow=asked.run_id,
        run_id=body.run_id or new_run_id(),
        input=json_or_none(body.input),
        metadata=json_or_none(body.metadata),
        recovery_webhook=body.recovery_webhook,
        max_attempts=body.max_attempts,
        traceparent=asked.traceparent,
    )
    run_id = await asked.do(calls.with_channels(call, channels(body.channels)))
    (row,) = await asked.do(pages.bounded(calls.get_run(run_id=run_id), calls.RunInfo))
    return {"run": shapes.run(row)}


def channels(wanted: list[bodies.Channel] | None) -> list[dict[str, Any]]:
    """The channels of a run that is made, as the database takes them."""
    return [{"type": c.type, "url": c.url, "secret": c.secret, "events": c.events} for c in wanted or ()]


@route("GET", "/runs", ALL, "runs", query=("workflow", "status", "before", "limit"))
async def list_runs(asked: Asked) -> Shape:
    """Runs, newest first, at most 100; page on with ``before``, the last id."""
    call = calls.list_runs(
        workflow=asked.query.get("workflow"),
        status=asked.query.get("status"),
        before=asked.query.get("before"),
        max=limit(asked, 100),
    )
    most = max(16_000_000 // (limit(asked, 100) * 4), 4000)  # of each of its four values
    return {"runs": [shapes.run(row) for row in await asked.do(pages.bounded(call, calls.RunInfo, most))]}


def number(query: dict[str, str], name: str, default: int) -> int:
    """A number in a query."""
    text = query.get(name)
    if text is None:
        return default
    if not (text.isascii() and text.isdigit() and len(text) < 19):
        raise InvalidArgument(f"{name} must be a number")
    return int(text)


def before_number(asked: Asked) -> int | None:
    """The number before which a list goes on."""
    return number(asked.query, "before", 0) if "before" in asked.query else None


def limit(asked: Asked, default: int) -> int:
    """How many rows are wanted."""
    wanted = number(asked.query, "limit", default)
    if not 1 <= wanted <= 1000:
        raise InvalidArgument("limit must be from 1 to 1000")
    return wanted


@route(
    "GET",
    "/runs/{run_id}",
    ALL,
    "run",
    "steps",
    "state",
    "stateStreams",
    "stateVersions",
    "runEdges",
    "childRuns",
    "recoveryAttempts",
    "channels",
    "channelDeliveries",
    "gates",
    "usage",
    "events",
    "truncated",
)
async def get_run(asked: Asked) -> Shape:
    """A run with the newest of all that belongs to it. ``truncated`` has a path for each list that was cut, where it
    goes on before the oldest row shown. A value that is too long is ``{"truncated": true, "bytes": ...}``.
    """
    run_id = asked.run_id
    row = await asked.row(pages.BY_ITSELF)
    run = shapes.run(row)
    events = await asked.do(pages.events(row.last_seq + 1, 2000).page(run_id, 2000))
    steps = await asked.do(pages.STEPS.page(run_id, 1000))
    usage = await asked.do(pages.USAGE.page(run_id, 1000))
    versions = await asked.do(pages.versions(200).page(run_id, 200))
    edges = await asked.do(pages.CHILDREN.page(run_id, 200))
    gates = await asked.do(pages.GATES.page(run_id, 200))
    recoveries = await asked.do(pages.RECOVERIES.page(run_id, 200))
    told = await asked.do(pages.bounded(calls.list_channels(run_id=run_id), calls.Channel))
    children = calls.runs_by_id([edge.child_run_id for edge in edges.rows])
    newest = {version.stream: version for version in versions.rows}
    found = {
        "steps": [shapes.step(step, run["leaseOwner"]) for step in steps.rows],
        "runEdges": [shapes.edge(edge) for edge in edges.rows],
        "recoveryAttempts": [shapes.recovery(recovery) for recovery in recoveries.rows],
        "gates": [shapes.gate(gate, await secret_of(asked, gate)) for gate in gates.rows],
        "usage": [shapes.usage(record) for record in usage.rows],
        "events": await payloads.shapes_of(asked.do, run_id, events.rows, "worker" in asked.roles),
    }
    pages_cut = zip(found, (steps.cut, edges.cut, recoveries.cut, gates.cut, usage.cut, events.cut), strict=True)
    truncated = {name: rest(asked, name, found[name]) for name, is_cut in pages_cut if is_cut}
    if versions.cut:
        truncated["stateVersions"] = str(rest_of_versions(asked, versions))
    return {
        "run": run,
        **found,
        "state": await current_state(asked),
        "stateStreams": [shapes.state_stream(run_id, version) for version in newest.values()],
        "stateVersions": in_order(run_id, versions.rows),
        "childRuns": [shapes.run(child) for child in await asked.do(pages.bounded(children, calls.RunInfo, 4000))],
        "channels": [shapes.channel(run_id, channel) for channel in told],
        "channelDeliveries": [shapes.channel_delivery(run_id, channel) for channel in told],
        "truncated": truncated,
    }


async def current_state(asked: Asked) -> Shape | None:
    """The newest version of the main stream, if there is one."""
    try:
        rows = await asked.do(pages.bounded(calls.get_state(run_id=asked.run_id), calls.StateVersion))
    except NotFound:
        return None
    return shapes.state(asked.run_id, rows[0])


#: The lists that GET /runs/ID cuts, each with its own path and how a row of it is named there.
PATHS: dict[str, tuple[str, Callable[[Shape], str]]] = {
    "steps": ("steps", lambda shape: shape["id"]),
    "runEdges": ("children", lambda shape: shape["childRunId"]),
    "recoveryAttempts": ("recoveries", lambda shape: shape["id"].rpartition(":")[2]),
    "gates": ("gates", lambda shape: shape["id"]),
    "usage": ("usage", lambda shape: shape["id"].rpartition(":")[2]),
    "events": ("log", lambda shape: shape["seq"]),
}


def rest(asked: Asked, name: str, shown: list[Shape]) -> str:
    """Where a list goes on that was cut."""
    path, key = PATHS[name]
    return f"/runs/{quote(asked.run_id, safe='')}/{path}?before={quote(str(key(shown[0])), safe='')}"


def in_order(run_id: str, rows: list[shapes.Version]) -> list[Shape]:
    """Versions stream by stream, oldest first."""
    ordered = sorted(rows, key=lambda row: (shapes.Stream.of(run_id, row.stream).name, row.version))
    return [shapes.state_version(run_id, row) for row in ordered]


def rest_of_versions(asked: Asked, page: pages.Page[shapes.Version]) -> str | None:
    """Where the versions go on: those of the stream of the oldest one shown."""
    if not page.cut:
        return None
    oldest = page.rows[0]
    stream = quote(shapes.Stream.of(asked.run_id, oldest.stream).name, safe="")
    return f"/runs/{quote(asked.run_id, safe='')}/state/versions?stream={stream}&before={oldest.version}"


async def page_from(
    asked: Asked, section: pages.Section[R], most: int, before: str | int | None = None
) -> pages.Page[R]:
    """A page; where it is empty, because there is no such run, or no such row to go on before, that is said."""
    page = await asked.do(section.page(asked.run_id, most, before))
    if not page.rows:
        await asked.run(most=0)
        if before is not None and not isinstance(before, int):
            (is_there,) = await asked.do(section.has(asked.run_id, before))
            if not is_there:
                raise NotFound(f"there is nothing that is called {before!r} to go on before")
    return page


def page_of(name: str, shown: list[Shape], cut: bool, asked: Asked) -> Shape:
    """An answer with a page, and where it goes on."""
    return {name: shown, "next": rest(asked, name, shown) if cut else None}


@route("GET", "/runs/{run_id}/steps", ALL, "steps", "next", query=("before", "limit"))
async def list_steps(asked: Asked) -> Shape:
    """The newest steps, or those before one, in the order in which they were begun."""
    before = asked.query.get("before")
    name = None if before is None else shapes.name_of("step", before)
    page = await page_from(asked, pages.STEPS, limit(asked, 1000), name)
    return page_of("steps", [shapes.step(row) for row in page.rows], page.cut, asked)


@route("GET", "/runs/{run_id}/usage", ALL, "usage", "next", query=("before", "limit"))
async def list_usage(asked: Asked) -> Shape:
    """The newest records of usage, or those before one."""
    page = await page_from(asked, pages.USAGE, limit(asked, 1000), before_number(asked))
    return page_of("usage", [shapes.usage(row) for row in page.rows], page.cut, asked)


@route("GET", "/runs/{run_id}/log", ALL, "events", "next", query=("before", "limit"))
async def list_events(asked: Asked) -> Shape:
    """The newest events, or those before a number; to follow a run there is its stream."""
    before, most = before_number(asked), limit(asked, 1000)
    if before is None:
        before = (await asked.row()).last_seq + 1
    page = await asked.do(pages.events(before, most).page(asked.run_id, most))
    shown = await payloads.shapes_of(asked.do, asked.run_id, page.rows, "worker" in asked.roles)
    return page_of("events", shown, page.cut, asked)


@route("GET", "/runs/{run_id}/children", ALL, "runEdges", "next", query=("before", "limit"))
async def list_children(asked: Asked) -> Shape:
    """The edges to the newest children and forks, or to those before one, by its run's id."""
    page = await page_from(asked, pages.CHILDREN, limit(asked, 200), asked.query.get("before"))
    return page_of("runEdges", [shapes.edge(row) for row in page.rows], page.cut, asked)


@route("GET", "/runs/{run_id}/recoveries", ALL, "recoveryAttempts", "next", query=("before", "limit"))
async def list_recoveries(asked: Asked) -> Shape:
    """The newest attempts to recover the run, or those before one, by its number."""
    page = await page_from(asked, pages.RECOVERIES, limit(asked, 200), before_number(asked))
    return page_of("recoveryAttempts", [shapes.recovery(row) for row in page.rows], page.cut, asked)


@route("GET", "/runs/{run_id}/gates", ALL, "gates", "next", query=("before", "limit"))
async def list_gates(asked: Asked) -> Shape:
    """The newest gates, or those before one; a worker sees the secrets of those that wait."""
    before = asked.query.get("before")
    name = None if before is None else shapes.name_of("gate", before)
    page = await page_from(asked, pages.GATES, limit(asked, 200), name)
    return page_of("gates", [shapes.gate(row, await secret_of(asked, row)) for row in page.rows], page.cut, asked)


async def secret_of(asked: Asked, gate: calls.GateInfo) -> str | None:
    if gate.status != "pending" or "worker" not in asked.roles:
        return None
    secret: str | None = await asked.do(calls.get_gate_secret(run_id=asked.run_id, name=gate.name))
    return secret


@route("POST", "/runs/{run_id}/begin", WORKER, "run", "leaseOwner", body=bodies.Begin, refusals=(409,))
async def begin(asked: Asked) -> Shape:
    """Leases a run, for the worker that the header ``x-tidebase-worker`` names."""
    holder = asked.worker or f"http-{uuid4().hex[:12]}"
    if shapes.token_of(holder) is not None:
        holder = holder.rpartition("#")[0]  # an owner of an earlier lease is a new holder of the same name
    call = calls.acquire_run(
        run_id=asked.run_id,
        holder=holder,
        ttl=timedelta(seconds=asked.lease_s),
        request_id=uuid4().hex,
        traceparent=asked.traceparent,
    )
    try:
        lease = await asked.do(call)
    except RunCancelledError:
        raise Refused(409, error="run is cancelled", code="run_cancelled", run=await asked.run()) from None
    run = await asked.run(most=16_000_000)  # a worker needs its input, and its result when it is completed
    if lease.outcome == "held":
        raise Refused(409, error="run is leased", code="run_leased", leaseOwner=lease.holder)
    if lease.outcome in ("waiting", "queued", "review", "failed"):
        raise Refused(409, error=f"run is in {run['status']}", code=f"run_{lease.outcome}", run=run)
    return {"run": run, "leaseOwner": shapes.owner_of(holder, lease.token) or holder}


@route("POST", "/runs/{run_id}/heartbeat", WORKER, "run", body=bodies.Heartbeat, refusals=(409,))
async def heartbeat(asked: Asked) -> Shape:
    """Renews a lease."""
    try:
        token = await asked.token(asked.body.lease_owner)
        await asked.do(calls.renew_lease(run_id=asked.run_id, token=token, ttl=timedelta(seconds=asked.lease_s)))
    except (LeaseLostError, RunCancelledError, RunFinal) as error:
        code = "run_cancelled" if isinstance(error, RunCancelledError) else "lease_lost"
        raise Refused(409, error="lease lost", code=code, run=await asked.run()) from None
    return {"run": await asked.run()}


@route("POST", "/runs/{run_id}/complete", WORKER, "run", body=bodies.CompleteRun, refusals=(409,))
async def complete_run(asked: Asked) -> Shape:
    """Ends a run with its result; a cancelled run stays as it is."""
    token = await asked.token(asked.body.lease_owner)
    result = codec.encode(asked.body.result)
    with suppress(RunCancelledError):
        await asked.do(calls.complete_run(run_id=asked.run_id, token=token, result=result))
    return {"run": await asked.run()}


@route("POST", "/runs/{run_id}/fail", WORKER, "run", "requeued", body=bodies.FailRun, refusals=(409,))
async def fail_run(asked: Asked) -> Shape:
    """Ends an attempt with an error; a cancelled run stays as it is."""
    body: bodies.FailRun = asked.body
    call = calls.fail_run(
        run_id=asked.run_id,
        token=await asked.token(body.lease_owner),
        error=codec.encode({} if body.error is None else body.error),
        retryable=body.failure_class != "permanent",
    )
    requeued = False
    with suppress(RunCancelledError):
        requeued = (await asked.do(call)).status == "pending"
    return {"run": await asked.run(), "requeued": requeued}


@route("POST", "/runs/{run_id}/cancel", OPERATOR, "run", body=bodies.CancelRun, refusals=(409,))
async def cancel_run(asked: Asked) -> Shape:
    """Cancels a run for good, with its descendants."""
    try:
        await asked.do(
            calls.cancel_run(run_id=asked.run_id, reason=asked.body.reason, actor=asked.person or asked.body.actor)
        )
    except RunFinal:
        raise Refused(409, error="run already completed", code="run_final", run=await asked.run()) from None
    return {"run": await asked.run()}


@route("POST", "/runs/{run_id}/recover", OPERATOR, "recoveryAttempt", body=bodies.RecoverRun, refusals=(409, 422))
async def recover_run(asked: Asked) -> Shape:
    """Makes a run that was left acquirable, and tells its webhook."""
    if (await asked.run())["recoveryWebhook"] is None:
        raise Refused(422, error="run has no recovery webhook", code="no_recovery_webhook")
    number = await asked.do(recover(asked.run_id, asked.body.reason))
    history = await asked.do(calls.recovery_history(asked.run_id))
    return {"recoveryAttempt": next(shapes.recovery(row) for row in history if row.recovery == number)}


# -- steps


@route(
    "POST",
    "/runs/{run_id}/steps/begin",
    WORKER,
    "action",
    body=bodies.BeginStep,
    refusals=(409,),
)
async def begin_step(asked: Asked) -> Shape:
    """Says what to do with a step: execute, return (its output), input_mismatch, locked (it is at work under this very
    lease) or cancelled. One that must not be executed is refused: a person must decide (``step_review``), or it failed
    for good (``step_failed``).
    """
    body: bodies.BeginStep = asked.body
    try:
        token = await asked.token(body.lease_owner, body.timeout_s)
        start = await asked.do(begin_call(asked.run_id, token, body))
    except RunCancelledError:
        return {"action": "cancelled"}
    except StepNotRunning as error:
        step = await find_step(asked, body.name)
        if error.detail.get("status") == "running":
            return {"action": "locked", "step": step}
        raise Refused(409, error=error.message, code="step_failed", step=step) from None
    except InputMismatch as error:
        step = await find_step(asked, body.name)
        expected = step["inputHash"] if step else error.detail.get("input_hash")
        actual = body.input_hash
        return {"action": "input_mismatch", "step": step, "expectedInputHash": expected, "actualInputHash": actual}
    step = await find_step(asked, body.name)
    if start.outcome == "replay":
        return {"action": "return", "step": step, "output": pages.raw(start.output)}
    if start.outcome == "review":
        raise await in_review(asked, body.name, start)
    owner = body.lease_owner or shapes.owner_of("http", token)
    return {"action": "execute", "step": {**(step or {}), "leaseOwner": owner}, "leaseOwner": owner}


def begin_call(run_id: str, token: int, body: bodies.BeginStep) -> calls.Call[calls.StepStart]:
    return calls.begin_step_with(
        run_id=run_id,
        token=token,
        name=body.name,
        input=codec.encode(body.input),
        input_hash=body.input_hash,
        options=json_or_none(body.options),
    )


async def in_review(asked: Asked, name: str, start: calls.StepStart) -> Refused:
    """The refusal of a step, since a person must decide about it, or about another one before."""
    other = None if start.output is None else codec.decode(start.output)
    name = other["step"] if isinstance(other, dict) else name
    message = f"step {name!r} may have taken effect: a person must decide about it"
    return Refused(409, error=message, code="step_review", step=await find_step(asked, name))


async def find_step(asked: Asked, name: str) -> Shape | None:
    rows = await asked.do(pages.bounded(calls.step_named(asked.run_id, name), calls.StepInfo))
    return shapes.step(rows[0]) if rows else None


async def step_after(asked: Asked, name: str) -> Shape:
    step = await find_step(asked, name)
    if step is None:
        raise Refused(404, error="step not found", code="not_found")
    return step


@route("POST", "/runs/{run_id}/steps/{step_id}/complete", WORKER, "step", body=bodies.CompleteStep, refusals=(409,))
async def complete_step(asked: Asked) -> Shape:
    """Stores what a step returned, for good."""
    name = shapes.name_of("step", asked.path["step_id"])
    token = await asked.token(asked.body.lease_owner)
    output = codec.encode(asked.body.output)
    await asked.do(calls.complete_step(run_id=asked.run_id, token=token, name=name, output=output))
    return {"step": await step_after(asked, name)}


@route("POST", "/runs/{run_id}/steps/{step_id}/fail", WORKER, "step", body=bodies.FailStep, refusals=(409,))
async def fail_step(asked: Asked) -> Shape:
    """Records that a step failed."""
    name = shapes.name_of("step", asked.path["step_id"])
    token = await asked.token(asked.body.lease_owner)
    call = calls.fail_step(
        run_id=asked.run_id,
        token=token,
        name=name,
        error=codec.encode(asked.body.error),
        retryable=asked.body.retryable,
    )
    await asked.do(call)
    return {"step": await step_after(asked, name)}


@route(
    "POST",
    "/runs/{run_id}/steps/{step_id}/resolve",
    REVIEWERS,
    "step",
    "run",
    body=bodies.ResolveReview,
    refusals=(409,),
)
async def resolve_review(asked: Asked) -> Shape:
    """Decides about a step in review: in the name of the person whose key it is, if it is somebody's."""
    body: bodies.ResolveReview = asked.body
    name = shapes.name_of("step", asked.path["step_id"])
    call = calls.resolve_review(
        run_id=asked.run_id,
        step=name,
        decision=body.decision,
        output=None if body.output is UNSET else codec.encode(body.output),
        actor=asked.person or body.actor,
        reason=body.reason,
        request_id=uuid4().hex,
    )
    await asked.do(call)
    return {"step": await step_after(asked, name), "run": await asked.run()}


# -- state


async def write_state(asked: Asked, function: calls.Function[int], **what: Any) -> calls.StateVersion:
    """Writes a version with the token of the lease that is held, and reads it back."""
    body: bodies.Version = asked.body
    stream = shapes.stored_stream(body.stream)
    options = {"importance": body.importance, **what}
    version = await asked.do(
        function(
            run_id=asked.run_id,
            token=await asked.token(body.lease_owner),
            stream=stream,
            reason=body.reason,
            metadata=json_or_none(body.metadata),
            created_by=author(asked),
            request_id=uuid4().hex,
            **options,
        )
    )
    call = calls.get_state(run_id=asked.run_id, stream=stream, version=version)
    return (await asked.do(pages.bounded(call, calls.StateVersion)))[0]


def author(asked: Asked) -> str:
    """Who is said to have made a version, else whose the key is; else nobody, and not the gateway's database user."""
    return asked.body.created_by or asked.person or ""


@route("PUT", "/runs/{run_id}/state", WORKER, "state", body=bodies.WriteState, refusals=(409,))
async def set_state(asked: Asked) -> Shape:
    """Makes a document the next version of a stream."""
    body = asked.body
    value = codec.encode({} if body.value is None else body.value)
    row = await write_state(asked, calls.set_state, value=value, label=body.label)
    return {"state": shapes.state(asked.run_id, row)}


@route("PATCH", "/runs/{run_id}/state", WORKER, "state", body=bodies.PatchState, refusals=(409,))
async def patch_state(asked: Asked) -> Shape:
    """Makes members of the newest version of a stream what they are given as, null included (no RFC 7396)."""
    body = asked.body
    row = await write_state(asked, calls.merge_state, members=codec.encode(body.value or {}), label=body.label)
    return {"state": shapes.state(asked.run_id, row)}


@route("POST", "/runs/{run_id}/state/save", WORKER, "stateVersion", body=bodies.SaveState, refusals=(409,))
async def save_state(asked: Asked) -> Shape:
    """Gives the state as it is now a label."""
    body: bodies.SaveState = asked.body
    importance = body.importance or "milestone"
    row = await write_state(asked, calls.save_state, label=body.label, importance=importance)
    return {"stateVersion": shapes.state_version(asked.run_id, row)}


@route(
    "GET",
    "/runs/{run_id}/state/versions",
    ALL,
    "stateVersions",
    "next",
    query=("stream", "labeled", "before", "limit"),
)
async def list_state_versions(asked: Asked) -> Shape:
    """The newest versions of a run's streams, or of one, oldest first; ``before`` is a version of that one."""
    most, labeled = limit(asked, 200), asked.query.get("labeled") == "true"
    named, before = asked.query.get("stream"), before_number(asked)
    page = await asked.do(pages.versions(most, shapes.stored_stream(named), labeled, before).page(asked.run_id, most))
    of_snapshots = named and shapes.Stream.of_snapshots(asked.run_id, named)
    if of_snapshots and not page.rows:
        page = await asked.do(pages.versions(most, of_snapshots, labeled, before).page(asked.run_id, most))
    return {"stateVersions": in_order(asked.run_id, page.rows), "next": rest_of_versions(asked, page)}


@route("POST", "/runs/{run_id}/snapshots", WORKER, "snapshot", body=bodies.CreateSnapshot, refusals=(409,))
async def create_snapshot(asked: Asked) -> Shape:
    """Keeps what something looks like."""
    body: bodies.CreateSnapshot = asked.body
    target = body.target
    version = await asked.do(
        calls.create_snapshot(
            run_id=asked.run_id,
            token=await asked.token(body.lease_owner),
            label=body.label,
            target_type=target and target.type,
            target_id=target and target.id,
            state=codec.encode({} if body.state is None else body.state),
            reason=body.reason,
            metadata=json_or_none(body.metadata),
            created_by=author(asked),
            request_id=uuid4().hex,
        )
    )
    rows = await asked.do(
        calls.list_snapshots(
            run_id=asked.run_id,
            target_type=target.type if target else "run",
            target_id=target.id if target else "self",
            label=body.label,
        )
    )
    return {"snapshot": next(shapes.snapshot(asked.run_id, row) for row in rows if row.version == version)}


@route("GET", "/runs/{run_id}/snapshots", ALL, "snapshots", "cut", query=("limit",))
async def list_snapshots(asked: Asked) -> Shape:
    """Snapshots and saved states, newest first; ``cut``: there are more, which a higher limit may show."""
    most = limit(asked, 200)
    page = await asked.do(pages.snapshots(most).page(asked.run_id, most))
    return {"snapshots": [shapes.snapshot(asked.run_id, row) for row in reversed(page.rows)], "cut": page.cut}


# -- usage and children


@route("POST", "/runs/{run_id}/usage", WORKER, "usage", body=bodies.RecordUsage, refusals=(409,))
async def record_usage(asked: Asked) -> Shape:
    """Records what a call used."""
    body: bodies.RecordUsage = asked.body
    total_so_far = await asked.do(
        calls.record_usage(
            run_id=asked.run_id,
            token=await asked.token(body.lease_owner),
            step=None if body.step_id is None else shapes.name_of("step", body.step_id),
            kind=body.kind or "custom",
            provider=body.provider,
            model=body.model,
            label=body.label,
            quantity=exact(body.quantity),
            unit=body.unit,
            input_tokens=body.input_tokens,
            output_tokens=body.output_tokens,
            total_tokens=body.total_tokens,
            cost_usd=exact(body.cost_usd),
            metadata=json_or_none(body.metadata),
            response_id=body.response_id,
            request_id=uuid4().hex,
        )
    )
    return {"usage": shapes.usage((await asked.do(calls.usage_records(asked.run_id, total_so_far.seq)))[0])}


def exact(value: float | None) -> Decimal | None:
    return None if value is None else Decimal(repr(value))


@route(
    "POST",
    "/runs/{run_id}/children",
    WORKER,
    "run",
    "edge",
    "created",
    body=bodies.CreateChild,
    refusals=(409,),
)
async def create_child(asked: Asked) -> Shape:
    """Makes a child, or finds the one of this name."""
    body: bodies.CreateChild = asked.body
    metadata = {**(body.metadata or {}), "parentRunId": asked.run_id, "parentEdgeName": body.name}
    call = calls.create_child(
        run_id=asked.run_id,
        token=await asked.token(body.lease_owner),
        name=body.name,
        workflow=body.workflow_name,
        input=json_or_none(body.input),
        metadata=codec.encode(metadata),
        recovery_webhook=body.recovery_webhook,
        edge_type=body.edge_type,
        edge_metadata=json_or_none(body.edge_metadata),
        traceparent=asked.traceparent,
    )
    child = await asked.do(calls.with_channels(call, channels(body.channels)))
    edges = await asked.do(calls.run_edges(asked.run_id, child.run_id))
    edge = next(edge for edge in edges if edge.name == body.name)
    run = only(await asked.do(calls.runs_by_id([child.run_id])), child.run_id)
    return {"run": shapes.run(run), "edge": shapes.edge(edge), "created": child.created}


# -- gates


@route("POST", "/runs/{run_id}/gates/begin", WORKER, "action", "gate", body=bodies.BeginGate, refusals=(409,))
async def begin_gate(asked: Asked) -> Shape:
    """Opens a gate, or finds it. It stays open until somebody decides, however long the client waits."""
    body: bodies.BeginGate = asked.body
    refuse_channels(body)
    token = await asked.token(body.lease_owner)
    opening = await asked.do(
        calls.open_gate(
            run_id=asked.run_id,
            token=token,
            name=body.name,
            prompt=body.prompt,
            data=codec.encode({} if body.data is None else body.data),
            options=["approved", "rejected", "canceled"],
            capability=json_or_none(body.capability),
        )
    )
    await asked.keep(token)
    gate = await asked.do(calls.get_gate(run_id=asked.run_id, name=body.name))
    action = "wait" if opening.status == "pending" else "return"
    return {"action": action, "gate": shapes.gate(gate, opening.secret if action == "wait" else None)}


@route("GET", "/runs/{run_id}/gates/{gate_id}", ALL, "gate", "runStatus")
async def get_gate(asked: Asked) -> Shape:
    """A gate, and what its run is at the moment. A worker that asks for one that is open shows that it waits for it,
    and keeps its lease.
    """
    run = await asked.row()
    row = await asked.do(calls.get_gate(run_id=asked.run_id, name=shapes.name_of("gate", asked.path["gate_id"])))
    if "worker" in asked.roles and run.status == "running" and row.status == "pending":
        await asked.keep(run.lease_token)
    return {"gate": shapes.gate(row, await secret_of(asked, row)), "runStatus": run.status}


@route("POST", "/runs/{run_id}/gates/{gate_id}/resolve", DECIDERS, "gate", body=bodies.ResolveGate, refusals=(409,))
async def resolve_gate(asked: Asked) -> Shape:
    """Decides a gate, once: in the name of the person whose key it is, if it is somebody's."""
    body: bodies.ResolveGate = asked.body
    name = shapes.name_of("gate", asked.path["gate_id"])
    if body.token is None and "approver" not in asked.roles:
        raise Refused(409, error="the gate's token is needed", code="not_entitled")
    call = calls.decide_gate(
        run_id=asked.run_id,
        name=name,
        decision=body.decision,
        actor=asked.person or body.actor,
        payload=codec.encode({} if body.payload is None else body.payload),
        secret=body.token,
        request_id=uuid4().hex,
        voter=None if body.token else asked.person,
    )
    try:
        decided = await asked.do(call)
    except (NotEntitled, NotFound) as error:
        code = "not_entitled" if isinstance(error, NotEntitled) else "not_found"
        raise Refused(409, error=error.message, code=code) from None
    if not decided.accepted:
        raise Refused(409, error="gate already resolved", code="already_resolved")
    return {"gate": shapes.gate(await asked.do(calls.get_gate(run_id=asked.run_id, name=name)))}


def status_of(error: TidebaseError) -> int:
    """The HTTP status for an error of the database."""
    name = type(error).__name__
    return {
        "RunNotFound": 404,
        "NotFound": 404,
        "InvalidArgument": 400,
        "NotSerializable": 400,
        "NotEntitled": 403,
        "NotMigrated": 503,
        "DatabaseUnavailable": 503,
    }.get(name, 409 if error.sqlstate and error.sqlstate.startswith("TB") else 500)


def code_of(error: TidebaseError) -> str:
    """A word for programs."""
    return {
        "RunNotFound": "not_found",
        "NotFound": "not_found",
        "InvalidArgument": "invalid_argument",
        "NotSerializable": "invalid_argument",
        "LeaseLostError": "lease_lost",
        "RunCancelledError": "run_cancelled",
        "RunFinal": "run_final",
        "InputMismatch": "input_mismatch",
        "StepNotRunning": "step_not_running",
        "ReviewNotOpen": "review_not_open",
        "RunNeedsReview": "run_needs_review",
        "NotEntitled": "not_entitled",
        "BudgetExhausted": "budget_exhausted",
        "VersionConflict": "version_conflict",
        "NotMigrated": "not_migrated",
        "DatabaseUnavailable": "unavailable",
    }.get(type(error).__name__, "error")
