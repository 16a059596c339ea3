"""``tidebase mcp``: a server of the Model Context Protocol through which a model looks at runs, and, where that is
allowed, decides, cancels, retries and forks.

It reads, unless told otherwise: what may be done besides is named when it is started, and tools for anything else are
not there. Over HTTP each request carries a key, whose roles are those of the gateway and of the database.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from datetime import datetime
from functools import wraps
from typing import Annotated, Any, Literal, TypeVar

from mcp.server.mcpserver import Context, MCPServer
from mcp.server.mcpserver.exceptions import ResourceError, ResourceNotFoundError, ToolError
from mcp.server.transport_security import TransportSecuritySettings
from mcp_types import ToolAnnotations
from pydantic import Field
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from ... import __version__
from ...client.tide_async import AsyncTidebase
from ...core.call import Call
from ...core.errors import InvalidArgument, NotFound, RunNotFound, TidebaseError
from ...domain import calls
from ...server import pages
from ...server.auth import ROLES, Key, Keyring
from ...server.origin import FromHere, is_loopback
from . import bounded

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])
log = logging.getLogger("tidebase.mcp")

#: What may be allowed, and which roles may do it.
ACTIONS: dict[str, frozenset[str]] = {
    "decide": frozenset({"approver"}),
    "review": frozenset({"approver", "operator"}),
    "cancel": frozenset({"operator"}),
    "retry": frozenset({"operator"}),
    "fork": frozenset({"operator"}),
}

#: The path of the endpoint over HTTP.
PATH = "/mcp"

INSTRUCTIONS = """Durable runs of agents, kept in Postgres by Tidebase. A run has steps (each a checkpoint), gates
(questions to people), reviews (steps that may have taken effect, about which a person decides), a state, a log of
events, children. Begin with list_runs, stalled_runs, list_gates or list_reviews. Lists come in pages: pass `next`
on."""

Limit = Annotated[int, Field(ge=1, le=100, description="How many rows at most.")]
RunId = Annotated[str, Field(description="The id of the run, or its beginning where only one begins so.")]

_READS = ToolAnnotations(read_only_hint=True, open_world_hint=False)
_ACTS = ToolAnnotations(read_only_hint=False, destructive_hint=True, idempotent_hint=True, open_world_hint=False)


class _Desk:
    """What the tools are made of."""

    def __init__(self, tide: AsyncTidebase, keyring: Keyring | None) -> None:
        self.tide = tide
        self.keyring = keyring

    async def do(self, call: Call[T]) -> T:
        return await self.tide._database.execute(call)

    def key(self, context: Context[Any, Any]) -> Key | None:
        """The key that the request came with; over stdio there is none, and the user of the process may do what was
        allowed.
        """
        if self.keyring is None:
            return None
        request = context.request_context.request
        found = self.keyring.find(bearer(request.headers)) if request is not None else None
        if found is None:
            raise ToolError("a key is needed")
        return found

    def entitled(self, context: Context[Any, Any], action: str) -> Key | None:
        """Raises ToolError unless the key has a role that may do it."""
        key = self.key(context)
        if key is not None and not key.roles & ACTIONS[action]:
            raise ToolError(f"the key must have the role {' or '.join(sorted(ACTIONS[action]))}")
        return key

    async def page(self, section: pages.Section[Any], run_id: str, limit: int, before: str | int | None) -> Any:
        """The newest rows of a section of a run, oldest first."""
        run_id = await self.tide.runs.find(run_id)
        page = await self.do(section.page(run_id, limit, before))
        shown, whole = bounded.rows(reversed(page.rows))
        shown.reverse()
        name = section.order[-1]
        return {"rows": shown, "next": shown[0][name] if shown and (page.cut or not whole) else None}


def bearer(headers: Headers) -> str | None:
    """The secret that a request carries."""
    scheme, _, secret = headers.get("authorization", "").partition(" ")
    return secret.strip() if scheme.lower() == "bearer" else None


def limited(call: Call[list[T]], limit: int) -> Call[list[T]]:
    """A call for rows in an order, and one more than so many at most."""
    return replace(call, query=f"{call.query} limit %s", parameters=(*call.parameters, limit + 1))


def create_server(
    tide: AsyncTidebase, *, allow: Collection[str] = (), keys: Sequence[Key] | None = None, name: str = "tidebase"
) -> MCPServer[Any]:
    """The server, with tools and resources that read, and those for the actions that are allowed.

    Args:
        allow: of :data:`ACTIONS`: decide, review, cancel, retry, fork.
        keys: who may do what, over HTTP; None: no keys are asked for (stdio).

    Raises:
        InvalidArgument: there is no such action.
    """
    unknown = sorted(set(allow) - ACTIONS.keys())
    if unknown:
        raise InvalidArgument(f"{', '.join(unknown)} cannot be allowed", hint=f"There are {', '.join(ACTIONS)}.")
    server: MCPServer[Any] = MCPServer(name, version=__version__, instructions=INSTRUCTIONS, log_level="WARNING")
    desk = _Desk(tide, None if keys is None else Keyring(keys))
    _add_reading(server, desk)
    _add_actions(server, desk, frozenset(allow))
    _add_resources(server, desk)
    return server


def _told(function: F) -> F:
    """The database's refusals are told to the model; what else goes wrong is not."""

    @wraps(function)
    async def told(*args: Any, **kwargs: Any) -> Any:
        try:
            return await function(*args, **kwargs)
        except TidebaseError as error:
            raise ToolError(str(error)) from error

    return told  # type: ignore[return-value]


def _shown_or_refused(function: F) -> F:
    """The same of resources."""

    @wraps(function)
    async def shown(*args: Any, **kwargs: Any) -> Any:
        try:
            return await function(*args, **kwargs)
        except (RunNotFound, NotFound) as error:
            raise ResourceNotFoundError(str(error)) from error
        except TidebaseError as error:
            raise ResourceError(str(error)) from error

    return shown  # type: ignore[return-value]


def _add_reading(server: MCPServer[Any], desk: _Desk) -> None:
    tide = desk.tide

    def tool(function: F) -> F:
        server.add_tool(_told(function), annotations=_READS)
        return function

    @tool
    async def list_runs(
        workflow: str | None = None,
        status: Literal["pending", "queued", "running", "waiting", "review", "completed", "failed", "cancelled"]
        | None = None,
        limit: Limit = 20,
        before: Annotated[str | None, Field(description="`next` of the page before.")] = None,
    ) -> dict[str, Any]:
        """Runs, newest first: id, workflow, status, what they wait for, their error."""
        found = await tide.runs.list(workflow=workflow, status=status, max=limit, before=before)
        shown, whole = bounded.rows(found)
        return {"runs": shown, "next": shown[-1]["run_id"] if shown and (not whole or len(found) == limit) else None}

    @tool
    async def show_run(run_id: RunId) -> dict[str, Any]:
        """One run: its input, result or error, its latest attempts and steps, what it waits for."""
        return await _shown(desk, run_id)

    @tool
    async def list_steps(
        run_id: RunId,
        limit: Limit = 20,
        before: Annotated[str | None, Field(description="`next` of the page before.")] = None,
    ) -> dict[str, Any]:
        """The steps of a run in the order in which they were begun, the newest page first, with inputs and outputs."""
        return await desk.page(pages.STEPS, run_id, limit, before)  # type: ignore[no-any-return]

    @tool
    async def show_step(run_id: RunId, step: str) -> dict[str, Any]:
        """One step: its input, output, error, and its contract."""
        found = await tide.runs.step(await tide.runs.find(run_id), step)
        return bounded.row(found, bounded.AN_ANSWER // 4)

    @tool
    async def timeline(run_id: RunId, limit: Limit = 50) -> dict[str, Any]:
        """When each attempt and step began, and how long it took: the newest, oldest first."""
        run_id = await tide.runs.find(run_id)
        attempts = await desk.do(limited(_newest_first(calls.run_attempts(run_id)), limit))
        steps = await tide.runs.steps(run_id, max=limit)
        bars = [
            _bar("attempt", str(one.attempt), one.outcome or "running", one.started_at, one.ended_at)
            for one in attempts
        ]
        bars += [_bar("step", one.name, one.status, one.started_at, one.completed_at) for one in steps]
        newest = sorted(bars, key=lambda bar: bar["begun"])[-limit:]
        shown, _ = bounded.rows(newest)
        return {"bars": shown, "more": len(bars) > len(shown)}

    @tool
    async def list_events(
        run_id: RunId,
        after: Annotated[int, Field(ge=0, description="`next` of the page before.")] = 0,
        limit: Limit = 50,
    ) -> dict[str, Any]:
        """The log of a run, in its order, from the event after a number on."""
        run_id = await tide.runs.find(run_id)
        found = await desk.do(calls.read_events(run_id=run_id, after=after, max=limit))
        shown, whole = bounded.rows(found)
        return {"events": shown, "next": shown[-1]["seq"] if shown and (not whole or len(found) == limit) else None}

    @tool
    async def get_state(
        run_id: RunId,
        stream: str = "main",
        version: Annotated[int | None, Field(ge=1, description="By default the newest.")] = None,
    ) -> dict[str, Any]:
        """The state that a run shows of itself, now or in a former version."""
        moment: Any = {} if version is None else {"version": version}
        found = await tide.runs.state(await tide.runs.find(run_id), stream, **moment)
        return bounded.row(found, bounded.AN_ANSWER)

    @tool
    async def list_children(run_id: RunId, limit: Limit = 50) -> dict[str, Any]:
        """The children and forks of a run, oldest first."""
        found = await desk.do(limited(calls.run_edges(await tide.runs.find(run_id)), limit))
        shown, whole = bounded.rows(found[:limit])
        return {"children": shown, "more": not whole or len(found) > limit}

    @tool
    async def list_gates(
        run_id: RunId | None = None,
        status: Annotated[
            Literal["pending", "decided", "cancelled"] | None, Field(description="None: all.")
        ] = "pending",
        limit: Limit = 20,
    ) -> dict[str, Any]:
        """Questions to people, of one run or of all, oldest first: by default those that wait for a decision."""
        found_id = None if run_id is None else await tide.runs.find(run_id)
        found = await tide.gates.list(run_id=found_id, status=status, max=limit + 1)
        shown, whole = bounded.rows(found[:limit])
        return {"gates": shown, "more": not whole or len(found) > limit}

    @tool
    async def list_reviews(run_id: RunId | None = None, limit: Limit = 20) -> dict[str, Any]:
        """Steps that may have taken effect, about which a person must decide whether they are repeated, oldest
        first.
        """
        found_id = None if run_id is None else await tide.runs.find(run_id)
        found = await desk.do(limited(calls.review_inbox(found_id), limit))
        shown, whole = bounded.rows(found[:limit])
        return {"reviews": shown, "more": not whole or len(found) > limit}

    @tool
    async def stalled_runs(limit: Limit = 20) -> dict[str, Any]:
        """Runs that do not go on by themselves, and why, the longest first."""
        found = await desk.do(limited(calls.stalled_runs(), limit))
        shown, whole = bounded.rows(found[:limit])
        return {"runs": shown, "more": not whole or len(found) > limit}

    @tool
    async def get_usage(run_id: RunId) -> dict[str, Any]:
        """Tokens and cost of a run, with and without its descendants, its budget, and by model."""
        run_id = await tide.runs.find(run_id)
        found = await desk.do(limited(calls.usage_by_model(run_id), 50))
        models, whole = bounded.rows(found[:50])
        return {
            "totals": bounded.plain(await tide.runs.usage(run_id)),
            "models": models,
            "more": not whole or len(found) > 50,
        }

    @tool
    async def list_queues(limit: Limit = 50) -> dict[str, Any]:
        """The queues: what waits, what is at work, limits, whether they are paused."""
        found = await desk.do(limited(calls.queue_overview(None), limit))
        shown, whole = bounded.rows(found[:limit])
        return {"queues": shown, "more": not whole or len(found) > limit}


def _bar(kind: str, name: str, status: str, begun: datetime, ended: datetime | None) -> dict[str, Any]:
    seconds = None if ended is None else round((ended - begun).total_seconds(), 3)
    return {"kind": kind, "name": name, "status": status, "begun": begun, "ended": ended, "seconds": seconds}


def _newest_first(call: Call[list[T]]) -> Call[list[T]]:
    return replace(call, query=f"{call.query} desc")


def _add_actions(server: MCPServer[Any], desk: _Desk, allow: frozenset[str]) -> None:
    tide = desk.tide

    def action(name: str) -> Callable[[F], F]:
        def add(function: F) -> F:
            if name in allow:
                server.add_tool(_told(function), annotations=_ACTS)
            return function

        return add

    @action("decide")
    async def decide_gate(
        context: Context[Any, Any],
        run_id: RunId,
        gate: str,
        decision: Annotated[str, Field(description="One of the gate's options.")],
        payload: Annotated[Any, Field(description="The answer, or with `edited` the changed arguments.")] = None,
        comment: str | None = None,
    ) -> dict[str, Any]:
        """Decides a gate, once and for good: only with the word of the person whose decision it is."""
        key = desk.entitled(context, "decide")
        found = await tide.gates.decide(
            await tide.runs.find(run_id),
            gate,
            decision,
            payload=payload,
            comment=comment,
            actor=_actor(key),
            voter=key.name if key else None,
        )
        return bounded.row(found)

    @action("review")
    async def resolve_review(
        context: Context[Any, Any],
        run_id: RunId,
        step: str,
        decision: Literal["retry", "accept", "fail"],
        output: Annotated[Any, Field(description="With `accept`: what the step returned.")] = None,
        reason: str | None = None,
    ) -> dict[str, Any]:
        """Decides about a step that may have taken effect: only with the word of a person who has looked."""
        key = desk.entitled(context, "review")
        run_id = await tide.runs.find(run_id)
        await tide.runs.resolve_review(run_id, step, decision, output=output, actor=_actor(key), reason=reason)
        return await _shown(desk, run_id)

    @action("cancel")
    async def cancel_run(context: Context[Any, Any], run_id: RunId, reason: str) -> dict[str, Any]:
        """Cancels a run for good, with its children."""
        key = desk.entitled(context, "cancel")
        return bounded.row(await tide.runs.cancel(await tide.runs.find(run_id), reason, actor=_actor(key)))

    @action("retry")
    async def retry_run(context: Context[Any, Any], run_id: RunId, reason: str) -> dict[str, Any]:
        """Lets any worker go on with a run that has failed, or was left by its worker; what it completed stays."""
        key = desk.entitled(context, "retry")
        return bounded.row(await tide.runs.recover(await tide.runs.find(run_id), reason, actor=_actor(key)))

    @action("fork")
    async def fork_run(
        context: Context[Any, Any],
        run_id: RunId,
        reason: str,
        through_step: Annotated[str | None, Field(description="What the new run begins with; None: all.")] = None,
    ) -> dict[str, Any]:
        """Makes a new run that begins with what this one had, up to and with a step; work on it does the rest anew."""
        key = desk.entitled(context, "fork")
        run_id = await tide.runs.find(run_id)
        found = await tide.runs.fork(run_id, through_step=through_step, reason=reason, actor=_actor(key))
        return bounded.row(found)


def _actor(key: Key | None) -> str:
    return (key.name if key else None) or "mcp"


def _add_resources(server: MCPServer[Any], desk: _Desk) -> None:
    @server.resource("tidebase://runs/{run_id}", mime_type="application/json")
    @_shown_or_refused
    async def run(run_id: str) -> str:
        """A run as show_run has it."""
        return json.dumps(await _shown(desk, run_id), ensure_ascii=False)

    @server.resource("tidebase://runs/{run_id}/steps", mime_type="application/json")
    @_shown_or_refused
    async def steps(run_id: str) -> str:
        """The newest page of a run's steps."""
        return json.dumps(await desk.page(pages.STEPS, run_id, 20, None), ensure_ascii=False)


async def _shown(desk: _Desk, run_id: str) -> dict[str, Any]:
    tide = desk.tide
    run = await tide.runs.get(await tide.runs.find(run_id))
    attempts = await desk.do(limited(_newest_first(calls.run_attempts(run.run_id)), 5))
    steps = await tide.runs.steps(run.run_id, max=10)
    gates = await tide.gates.list(run_id=run.run_id, status="pending", max=5)
    reviews = await desk.do(limited(calls.review_inbox(run.run_id), 5))
    most = bounded.AN_ANSWER // 3
    return {
        "run": bounded.row(run),
        "latest_attempts": bounded.rows(attempts[:5], most)[0],
        "latest_steps": [bounded.row(one, 500) for one in steps],
        "pending_gates": bounded.rows(gates, most)[0],
        "reviews": bounded.rows(reviews[:5], most)[0],
    }


class _Keyed:
    """Nobody without a key comes further."""

    def __init__(self, app: ASGIApp, keyring: Keyring) -> None:
        self._app = app
        self._keyring = keyring

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and self._keyring.find(bearer(Headers(scope=scope))) is None:
            refused = JSONResponse({"error": "a key is needed"}, 401, {"WWW-Authenticate": "Bearer"})
            await refused(scope, receive, send)
            return
        await self._app(scope, receive, send)


def create_app(
    tide: AsyncTidebase,
    *,
    allow: Collection[str] = (),
    keys: Sequence[Key] = (),
    hosts: Sequence[str] | None = None,
    cors: Sequence[str] = (),
) -> Starlette:
    """The server over streamable HTTP, at ``/mcp``. It keeps no session: start as many as you like.

    Args:
        keys: who may do what; with none, whoever reaches it may do all that is allowed.
        hosts: the names under which it is asked; None: any.
        cors: pages of other origins that may ask.
    """
    server = create_server(tide, allow=allow, keys=keys)
    # Who asks is looked at by the gateway's own middleware, whose rules are stricter, and the same at both.
    unchecked = TransportSecuritySettings(enable_dns_rebinding_protection=False)
    app = server.streamable_http_app(streamable_http_path=PATH, stateless_http=True, transport_security=unchecked)
    app.add_middleware(_Keyed, keyring=Keyring(keys))
    app.user_middleware.insert(0, Middleware(FromHere, hosts=hosts, origins=list(cors)))
    return app


def serve(
    tide: AsyncTidebase,
    *,
    allow: Collection[str] = (),
    host: str = "127.0.0.1",
    port: int = 7374,
    keys: Sequence[Key] = (),
    insecure: bool = False,
    hosts: Sequence[str] = (),
) -> None:
    """Runs the server over HTTP until it is told to stop.

    Raises:
        InvalidArgument: nobody has said who may do what.
    """
    import uvicorn

    if not keys and not (insecure and is_loopback(host)):
        raise InvalidArgument(
            "a server over HTTP needs keys",
            hint="Give it some: --key reader:SECRET; or, on the loopback interface, --insecure.",
        )
    names = [*hosts, host] if hosts or is_loopback(host) else None
    app = create_app(tide, allow=allow, keys=keys, hosts=names)
    uvicorn.run(app, host=host, port=port, access_log=False, timeout_graceful_shutdown=5)


__all__ = ["ACTIONS", "PATH", "ROLES", "create_app", "create_server", "serve"]
