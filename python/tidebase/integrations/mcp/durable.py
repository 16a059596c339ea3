"""Tools whose calls are durable runs: what they have done is kept, whatever becomes of the server, the client, or the
connection between them.

A client that knows the tasks extension (``io.modelcontextprotocol/tasks``, SEP-2663) gets a handle at once, and asks
later, from anywhere, as often as it likes: the task is the run. Any other one waits for the result. A gate of the run
is put to the client's user: as an input request of the task, as an ``InputRequiredResult``, or, before MCP 2026-07-28,
as an elicitation.
"""

from __future__ import annotations

import asyncio
import inspect
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Literal, TypeVar, get_type_hints

from mcp.server.context import CallNext, HandlerResult, ServerRequestContext
from mcp.server.extension import Extension, MethodBinding, ToolBinding
from mcp.server.mcpserver import Context
from mcp.server.mcpserver.exceptions import ToolError
from mcp.server.mcpserver.server import require_client_extension
from mcp.server.mcpserver.tools.base import Tool
from mcp.server.request_state import authenticated_principal
from mcp.shared.exceptions import MCPError
from mcp.shared.subscriptions import SUBSCRIPTION_ID_META_KEY
from mcp_types import (
    INVALID_PARAMS,
    CallToolRequestParams,
    CallToolResult,
    ElicitRequest,
    ElicitRequestFormParams,
    ElicitResult,
    InputRequests,
    InputRequiredResult,
    InputResponses,
    Notification,
    NotificationParams,
    RequestParams,
    Result,
    SubscriptionFilter,
    SubscriptionsAcknowledgedNotification,
    SubscriptionsAcknowledgedNotificationParams,
    SubscriptionsListenResult,
    TextContent,
)
from pydantic import ConfigDict

from ...client.tide_async import AsyncTidebase
from ...client.work_async import AsyncRun
from ...core import codec
from ...core.errors import InvalidArgument, NotFound, RunFinal, RunNotFound
from ...domain import calls
from ...domain.gate import GateInfo
from ...domain.run import RunInfo
from .bounded import plain

C = TypeVar("C", bound=Callable[..., Awaitable[Any]])

#: The extension's identifier.
TASKS = "io.modelcontextprotocol/tasks"

#: The protocol revisions that have extensions.
_MODERN = frozenset({"2026-07-28"})

#: For how long the doorbell is to ring for a run whose result is waited for.
_WATCH = timedelta(seconds=60)

#: How many tasks one stream tells of, and the statuses after which there is nothing more to tell.
_LISTENED, _ENDED = 100, frozenset({"completed", "failed", "cancelled"})

#: The result of a call that is answered with a task is not this one.
_handles: ContextVar[list[str] | None] = ContextVar("tidebase_mcp_handles", default=None)


class TaskParams(RequestParams):
    """What ``tasks/get`` and ``tasks/cancel`` are asked."""

    task_id: str


class UpdateTaskParams(TaskParams):
    """What ``tasks/update`` is told."""

    input_responses: InputResponses


class TaskStatusParams(NotificationParams):
    """A task, as ``tasks/get`` has it."""

    model_config = ConfigDict(extra="allow")


class TaskStatusNotification(Notification[TaskStatusParams, Literal["notifications/tasks"]]):
    """What who listens to a task is told, at first and at each change."""

    method: Literal["notifications/tasks"] = "notifications/tasks"
    params: TaskStatusParams


@dataclass
class _Durable:
    """A tool, and the workflow that does its work."""

    tool: Tool
    workflow: str
    returns: Any
    asks: bool
    binding: ToolBinding
    options: dict[str, Any] = field(default_factory=dict)


class DurableTools(Extension):
    """Tools that are workflows, for ``MCPServer(..., extensions=[tools])``::

        tools = DurableTools(tide)

        @tools.tool()
        async def report(run: AsyncRun, topic: str) -> str:
            '''Writes a report.'''
            plan = await run.step("plan", make_plan, topic)
            if not (await run.gate("publish", "Publish this plan?", data=plan, suspend=True)).approved:
                return "not published"
            return await run.step("write", write, plan)

        server = MCPServer("reports", extensions=[tools])

    A call enqueues a run; workers do the work, here (:meth:`working`) or anywhere (``tidebase worker module:tide
    --queue mcp``).

    ``middleware=[tools.push_status]`` tells clients of changes that would otherwise ask for them.

    Args:
        tide: an AsyncTidebase; its workflows ``mcp:<tool>`` are those of the tools.
        queue: in which the runs are enqueued.
        poll_s: how often clients are to ask, in seconds.
    """

    identifier = TASKS

    def __init__(self, tide: AsyncTidebase, *, queue: str = "mcp", poll_s: float = 1.0) -> None:
        if not isinstance(tide, AsyncTidebase):
            raise InvalidArgument("durable tools need an AsyncTidebase")
        if poll_s <= 0:
            raise InvalidArgument("poll_s must be more than 0")
        self._tide = tide
        self._queue = queue
        self._poll_s = poll_s
        self._tools: dict[str, _Durable] = {}

    def tool(
        self,
        name: str | None = None,
        *,
        title: str | None = None,
        description: str | None = None,
        asks: bool = True,
        meta: dict[str, Any] | None = None,
        **options: Any,
    ) -> Callable[[C], C]:
        """Makes a tool of a function whose first parameter is the run; the others are the tool's.

        To be said before the server is made.

        Args:
            name: the tool's; by default the function's.
            description: by default the function's docstring.
            asks: gates are put to the user of the client that has made the call, who then decides them. Not those with
                ``required_approvals``. With False somebody else decides.
            options: of the runs, see :class:`~tidebase.domain.enqueue.EnqueueOptions`: max_attempts, budget, priority
                ...

        Raises:
            InvalidArgument: there is no parameter for the run, or there is a tool with this name.
        """

        def add(function: C) -> C:
            self._add(function, name or function.__name__, title, description, asks, meta, options)
            return function

        return add

    def _add(
        self,
        function: Callable[..., Awaitable[Any]],
        name: str,
        title: str | None,
        description: str | None,
        asks: bool,
        meta: dict[str, Any] | None,
        options: dict[str, Any],
    ) -> None:
        if name in self._tools:
            raise InvalidArgument(f"there is a tool {name!r} already")
        parameters = list(inspect.signature(function).parameters.values())
        if not parameters or not inspect.iscoroutinefunction(function):
            raise InvalidArgument("the function of a durable tool must be async, and take the run first")
        hints = get_type_hints(function, include_extras=True)
        own, workflow = parameters[1:], f"mcp:{name}"

        async def work(run: AsyncRun, input: dict[str, Any]) -> Any:
            arguments = {
                key: codec.decode(codec.encode(value), hints.get(key, Any)) for key, value in (input or {}).items()
            }
            return await function(run, **arguments)

        async def call(tidebase_context: Context[Any, Any], **arguments: Any) -> Any:
            return await self._called(name, tidebase_context, arguments)

        returns = hints.get("return", Any)
        work.__annotations__["return"] = returns
        call.__name__, call.__doc__ = name, description or function.__doc__
        call.__annotations__ = {
            "tidebase_context": Context[Any, Any],
            **{one.name: hints.get(one.name, Any) for one in own},
            "return": returns,
        }
        last = inspect.Parameter("tidebase_context", inspect.Parameter.KEYWORD_ONLY, annotation=Context[Any, Any])
        call.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
            [
                *(one.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=hints.get(one.name, Any)) for one in own),
                last,
            ],
            return_annotation=returns,
        )
        self._tide.workflow(workflow)(work)
        said: dict[str, Any] = {"name": name, "title": title, "description": description}
        binding = ToolBinding(call, meta, {key: value for key, value in said.items() if value is not None})
        self._tools[name] = _Durable(Tool.from_function(call, name=name), workflow, returns, asks, binding, options)

    @asynccontextmanager
    async def working(self, **options: Any) -> AsyncIterator[None]:
        """While the block runs, this process works on the runs of the tools, its own and what others have left; at its
        end what is at work is given up for others. Options: see :class:`~tidebase.AsyncWorker`.
        """
        worker = self._tide.worker([self._queue], **options)
        task = asyncio.create_task(worker.run())
        try:
            yield
        finally:
            worker.stop()
            await task

    # What the server asks of an extension.

    def tools(self) -> Sequence[ToolBinding]:
        return [durable.binding for durable in self._tools.values()]

    def methods(self) -> Sequence[MethodBinding]:
        return [
            MethodBinding("tasks/get", TaskParams, self._get, _MODERN),
            MethodBinding("tasks/update", UpdateTaskParams, self._update, _MODERN),
            MethodBinding("tasks/cancel", TaskParams, self._cancel, _MODERN),
        ]

    async def intercept_tool_call(
        self, params: CallToolRequestParams, ctx: ServerRequestContext[Any, Any], call_next: CallNext
    ) -> HandlerResult:
        if params.name not in self._tools or not _knows_tasks(ctx) or params.request_state is not None:
            return await call_next(ctx)
        handles: list[str] = []
        reset = _handles.set(handles)
        try:
            result = await call_next(ctx)
        finally:
            _handles.reset(reset)
        if not handles:
            return result  # the arguments were refused
        return await self._task(ctx, await self._tide.runs.get(handles[0]), "task")

    # A call.

    async def _called(self, name: str, context: Context[Any, Any], arguments: dict[str, Any]) -> Any:
        durable, handles = self._tools[name], _handles.get()
        principal = _principal(context.request_context)
        state = context.request_state
        if state is None:
            made = await self._tide.enqueue(
                durable.workflow,
                arguments,
                queue=self._queue,
                **{
                    **durable.options,
                    "metadata": {**(durable.options.get("metadata") or {}), "mcp_principal": principal},
                },
            )
            run_id = made.run_id
        else:
            run_id = state
            await self._own(run_id, principal, durable)
            await self._answered(durable, run_id, context.input_responses or {})
        if handles is not None:
            handles.append(run_id)
            return CallToolResult(content=[], is_error=True)  # nobody sees it: the task is the answer
        return await self._result(durable, run_id, context)

    async def _result(self, durable: _Durable, run_id: str, context: Context[Any, Any]) -> Any:
        """Waits for the result, asking what is to be asked."""
        database = self._tide._database
        while True:
            run = await self._tide.runs.get(run_id)
            if run.status == "completed":
                return codec.decode(_text(run.result), durable.returns)
            if (problem := _problem(run)) is not None:
                raise ToolError(problem)
            gates = await self._gates(durable, run)
            if gates and not _can_ask(context.request_context):
                raise ToolError(
                    f"run {run_id} waits for a decision at {gates[0].name!r}, for which this client can ask nobody;"
                    " it goes on when that has fallen"
                )
            if gates and _is_modern(context.request_context):
                return InputRequiredResult(input_requests=_questions(gates), request_state=run_id)
            for gate in gates:
                answer = await context.request_context.session.elicit_form(
                    _question(gate).message, _question(gate).requested_schema, context.request_context.request_id
                )
                await self._answered(durable, run_id, {gate.name: answer})
            if not gates:
                if run.status == "review":
                    raise ToolError(f"run {run_id} waits for a person's review of a step; it goes on after that")
                await database.execute(calls.watch_run(run_id=run_id, ttl=_WATCH))
                await database.doorbell.wait(run_id, self._poll_s)

    async def _gates(self, durable: _Durable, run: RunInfo) -> list[GateInfo]:
        """The questions that the client's user may answer."""
        if not durable.asks:
            return []
        pending = await self._tide.gates.list(run_id=run.run_id, status="pending", max=100)
        return [gate for gate in pending if gate.kind == "gate" and gate.required_approvals == 1]

    async def _answered(self, durable: _Durable, run_id: str, responses: Mapping[str, Any]) -> None:
        """Decides the gates that were answered. Raises ToolError where the user has made no choice: the run waits."""
        left = await self._decide(durable, run_id, responses)
        if left:
            raise ToolError(f"run {run_id} waits for a decision at {left[0]!r}, which was not made")

    async def _decide(self, durable: _Durable, run_id: str, responses: Mapping[str, Any]) -> list[str]:
        """Decides the gates that were answered; what is no question any more is passed over. Returns those that have an
        answer which is no decision.
        """
        run, left = await self._tide.runs.get(run_id), []
        for gate in await self._gates(durable, run):
            response = responses.get(gate.name)
            if not isinstance(response, ElicitResult):
                continue
            decision = _decision(gate, response)
            if decision is None:
                left.append(gate.name)
                continue
            content = dict(response.content or {})
            payload = {key: value for key, value in content.items() if key not in ("decision", "comment")}
            secret = await self._tide.gates.secret(run_id, gate.name)
            if secret is not None:
                comment = content.get("comment")
                await self._tide.gates.decide(
                    run_id,
                    gate.name,
                    decision,
                    payload=payload or None,
                    comment=None if comment is None else str(comment),
                    actor="mcp client",
                    secret=secret,
                )
        return left

    # Tasks.

    async def _get(self, ctx: ServerRequestContext[Any, Any], params: TaskParams) -> dict[str, Any]:
        require_client_extension(ctx, TASKS)
        run, _ = await self._own(params.task_id, _principal(ctx))
        return await self._task(ctx, run, "complete")

    async def _update(self, ctx: ServerRequestContext[Any, Any], params: UpdateTaskParams) -> Result:
        require_client_extension(ctx, TASKS)
        run, durable = await self._own(params.task_id, _principal(ctx))
        await self._decide(durable, run.run_id, params.input_responses)
        return _done()

    async def _cancel(self, ctx: ServerRequestContext[Any, Any], params: TaskParams) -> Result:
        require_client_extension(ctx, TASKS)
        run, _ = await self._own(params.task_id, _principal(ctx))
        with suppress(RunFinal):  # it was done before
            await self._tide.runs.cancel(run.run_id, "the client has cancelled the task", actor="mcp client")
        return _done()

    async def push_status(self, ctx: ServerRequestContext[Any, Any], call_next: CallNext) -> HandlerResult:
        """A middleware of the server: ``MCPServer(..., extensions=[tools], middleware=[tools.push_status])``. Who sends
        ``subscriptions/listen`` with ``taskIds`` is told of these tasks, as they are and at each change; the stream
        ends with the last of them. Of tasks only: for changes of tools and resources there is a stream of its own.
        """
        asked = (ctx.params or {}).get("notifications") if ctx.method == "subscriptions/listen" else None
        wanted = asked.get("taskIds") if isinstance(asked, Mapping) else None
        if wanted is None or ctx.request_id is None or not _is_modern(ctx):
            return await call_next(ctx)
        require_client_extension(ctx, TASKS)
        if not isinstance(wanted, list) or not all(isinstance(one, str) for one in wanted):
            raise MCPError(INVALID_PARAMS, "taskIds must be a list of ids of tasks")
        own: list[str] = []
        for run_id in dict.fromkeys(wanted[:_LISTENED]):
            with suppress(MCPError):
                own.append((await self._own(run_id, _principal(ctx)))[0].run_id)
        meta: dict[str, Any] = {SUBSCRIPTION_ID_META_KEY: ctx.request_id}
        agreed = SubscriptionsAcknowledgedNotificationParams(
            notifications=SubscriptionFilter.model_validate({"taskIds": own}), _meta=meta
        )
        await ctx.session.send_notification(SubscriptionsAcknowledgedNotification(params=agreed), ctx.request_id)
        states: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
        following = asyncio.gather(*(self._follow(ctx, run_id, states) for run_id in own))
        following.add_done_callback(lambda _: states.put_nowait(None))
        try:
            while (state := await states.get()) is not None:
                told = TaskStatusNotification(params=TaskStatusParams.model_validate({**state, "_meta": meta}))
                await ctx.session.send_notification(told, ctx.request_id)  # type: ignore[arg-type]
            await following
        finally:
            following.cancel()
        return SubscriptionsListenResult(_meta=meta)

    async def _follow(
        self, ctx: ServerRequestContext[Any, Any], run_id: str, states: asyncio.Queue[dict[str, Any] | None]
    ) -> None:
        """Hands on each state of a task that differs from the one before by more than its time."""
        database, before = self._tide._database, None
        while True:
            try:
                run = await self._tide.runs.get(run_id)
            except RunNotFound:  # it was purged
                return
            task = await self._task(ctx, run, "complete")
            del task["resultType"]
            state = {**task, "lastUpdatedAt": None}
            if state != before:
                before = state
                states.put_nowait(task)
            if task["status"] in _ENDED:
                return
            await database.execute(calls.watch_run(run_id=run_id, ttl=_WATCH))
            await database.doorbell.wait(run_id, self._poll_s)

    async def _own(
        self, run_id: str, principal: str | None, durable: _Durable | None = None
    ) -> tuple[RunInfo, _Durable]:
        """The run of a task of these tools, which this client has made. Raises MCPError."""
        try:
            run = await self._tide.runs.get(run_id)
        except (RunNotFound, NotFound, InvalidArgument):
            raise MCPError(INVALID_PARAMS, "there is no such task") from None
        found = next((one for one in self._tools.values() if one.workflow == run.workflow), None)
        if found is None or durable not in (None, found) or run.metadata.get("mcp_principal") != principal:
            raise MCPError(INVALID_PARAMS, "there is no such task")
        return run, found

    async def _task(
        self, ctx: ServerRequestContext[Any, Any], run: RunInfo, result_type: Literal["task", "complete"]
    ) -> dict[str, Any]:
        """A task as the extension has it: of a call that is answered with one, and of ``tasks/get``."""
        durable = next(one for one in self._tools.values() if one.workflow == run.workflow)
        status, message, more = await self._standing(durable, run, _can_ask(ctx))
        task = {
            "resultType": result_type,
            "taskId": run.run_id,
            "status": status,
            "createdAt": plain(run.created_at),
            "lastUpdatedAt": plain(run.updated_at),
            "ttlMs": None,  # it is kept until somebody purges it
            "pollIntervalMs": round(self._poll_s * 1000),
        }
        if message is not None:
            task["statusMessage"] = message
        return task if result_type == "task" else {**task, **more}

    async def _standing(self, durable: _Durable, run: RunInfo, asks: bool) -> tuple[str, str | None, dict[str, Any]]:
        """The status of a task, a message about it, and what belongs to that status."""
        if run.status == "completed":
            value = codec.decode(_text(run.result), durable.returns)
            return "completed", None, {"result": _dumped(durable.tool.fn_metadata.convert_result(value))}
        if run.status == "cancelled":
            return "cancelled", run.cancel_reason, {}
        problem = _problem(run)
        if problem is not None:  # the tool has failed, not the protocol
            failure = CallToolResult(content=[TextContent(text=problem)], is_error=True)
            return "completed", problem, {"result": _dumped(failure)}
        gates = await self._gates(durable, run) if asks else []
        if gates:
            questions = {name: _dumped(question) for name, question in _questions(gates).items()}
            return "input_required", gates[0].prompt, {"inputRequests": questions}
        message = {"review": "a person must decide about a step", "queued": "waits for a worker"}.get(run.status)
        return "working", message or (run.waiting_for and f"waits for {run.waiting_for}"), {}


def _principal(ctx: ServerRequestContext[Any, Any]) -> str | None:
    return authenticated_principal(ctx)


def _knows_tasks(ctx: ServerRequestContext[Any, Any]) -> bool:
    capabilities = ctx.session.client_capabilities
    return bool(capabilities and TASKS in (capabilities.extensions or {})) and _is_modern(ctx)


def _is_modern(ctx: ServerRequestContext[Any, Any]) -> bool:
    return (ctx.protocol_version or "") >= min(_MODERN)


def _can_ask(ctx: ServerRequestContext[Any, Any]) -> bool:
    """Whether the client puts forms to somebody. Before there were modes, nothing said of them meant forms."""
    capabilities = ctx.session.client_capabilities
    elicitation = capabilities.elicitation if capabilities else None
    return elicitation is not None and (elicitation.form is not None or elicitation.url is None)


def _done() -> Result:
    return TaskDone()


class TaskDone(Result):
    """An acknowledgement."""

    result_type: Literal["complete"] = "complete"


def _text(value: Any) -> str | None:
    return None if value is None else codec.encode(value)


def _dumped(result: Any) -> dict[str, Any]:
    dumped: dict[str, Any] = result.model_dump(by_alias=True, mode="json", exclude_none=True)
    dumped.pop("resultType", None)
    return dumped


def _problem(run: RunInfo) -> str | None:
    """Why there will be no result."""
    if run.status == "failed":
        error = run.error if isinstance(run.error, dict) else {}
        return f"{error.get('type', 'error')}: {error.get('message', 'the run has failed')} (run {run.run_id})"
    if run.status == "cancelled":
        return f"run {run.run_id} was cancelled: {run.cancel_reason or 'no reason was given'}"
    return None


def _question(gate: GateInfo) -> ElicitRequestFormParams:
    """A gate as a form: what is shown, and the decisions to choose from, with what the answer has to have."""
    shown = gate.prompt or f"Decide about {gate.name!r}."
    if gate.data not in (None, {}):
        shown += "\n\n" + json.dumps(gate.data, ensure_ascii=False, indent=2)
    if gate.capability is not None:
        shown += "\n\nThis allows: " + json.dumps(gate.capability, ensure_ascii=False)
    properties: dict[str, Any] = {"decision": {"type": "string", "enum": list(gate.options)}}
    schema = gate.response_schema if isinstance(gate.response_schema, dict) else {}
    flat = {"string", "number", "integer", "boolean"}
    for name, about in (schema.get("properties") or {}).items():
        if isinstance(about, dict) and about.get("type") in flat and name not in ("decision", "comment"):
            properties[name] = about
    properties["comment"] = {"type": "string"}
    return ElicitRequestFormParams(
        message=shown, requested_schema={"type": "object", "properties": properties, "required": ["decision"]}
    )


def _questions(gates: Sequence[GateInfo]) -> InputRequests:
    return {gate.name: ElicitRequest(params=_question(gate)) for gate in gates}


def _decision(gate: GateInfo, response: ElicitResult) -> str | None:
    """The decision that an answer stands for; None: it is no decision."""
    if response.action == "accept":
        chosen = (response.content or {}).get("decision")
        return chosen if isinstance(chosen, str) and chosen in gate.options else None
    return "rejected" if response.action == "decline" and "rejected" in gate.options else None


__all__ = [
    "TASKS",
    "DurableTools",
    "TaskParams",
    "TaskStatusNotification",
    "TaskStatusParams",
    "UpdateTaskParams",
]
