"""A client's side of MCP's tasks, over the protocol's official client."""

from __future__ import annotations

import asyncio
from typing import Any, Literal

from mcp import Client
from mcp.client.extension import ClaimContext, ClientExtension, NotificationBinding, ResultClaim
from mcp_types import CallToolResult, NotificationParams, Request, RequestParams, Result
from pydantic import ConfigDict

from .patience import moments


class _Task(Result):
    result_type: Literal["task"] = "task"
    task_id: str
    status: str
    created_at: str
    last_updated_at: str
    ttl_ms: int | None
    poll_interval_ms: int


class _TaskState(Result):
    task_id: str
    status: str
    status_message: str | None = None
    result: dict[str, Any] | None = None
    input_requests: dict[str, Any] | None = None


class _Named(RequestParams):
    task_id: str
    input_responses: dict[str, Any] | None = None


class _TaskRequest(Request[_Named, str]):
    method: str
    params: _Named
    name_param = "taskId"


async def ask(client: Client, method: str, task_id: str, responses: dict[str, Any] | None = None) -> Any:
    request = _TaskRequest(method=method, params=_Named(task_id=task_id, input_responses=responses))
    return await client.session.send_request(request, _TaskState if method == "tasks/get" else Result)  # type: ignore[arg-type]


class _Told(NotificationParams):
    model_config = ConfigDict(extra="allow")


class Tasks(ClientExtension):
    """A client's side of the extension: it keeps the handle, and says so; and what it is told of tasks."""

    identifier = "io.modelcontextprotocol/tasks"

    def __init__(self) -> None:
        self.tasks: list[_Task] = []
        self.told: asyncio.Queue[dict[str, Any]] = asyncio.Queue()

    def notifications(self) -> list[NotificationBinding[Any]]:
        async def tell(params: _Told) -> None:
            self.told.put_nowait(params.model_dump(by_alias=True))

        return [NotificationBinding(method="notifications/tasks", params_type=_Told, handler=tell)]

    def claims(self) -> list[ResultClaim[Any]]:
        async def resolve(task: _Task, context: ClaimContext) -> CallToolResult:
            self.tasks.append(task)
            return CallToolResult(content=[], is_error=True)

        return [ResultClaim(result_type="task", model=_Task, resolve=resolve)]


async def until(client: Client, task_id: str, wanted: str) -> Any:
    for pause in moments():
        state = await ask(client, "tasks/get", task_id)
        if state.status == wanted:
            return state
        await asyncio.sleep(pause)
    raise AssertionError(state)
