"""The Model Context Protocol, with its official client: what the server shows and lets do, for whom; and tools whose
calls are runs, as tasks, as requests for input, and for clients of before.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import httpx2
import psycopg
import pytest
import uvicorn
from mcp import Client, StdioServerParameters
from mcp.client.streamable_http import streamable_http_client
from mcp.server.mcpserver import MCPServer
from mcp.shared.exceptions import MCPError
from mcp_types import (
    CallToolResult,
    ElicitRequestParams,
    ElicitResult,
    Result,
    SubscriptionFilter,
    SubscriptionsListenRequest,
    SubscriptionsListenRequestParams,
    TextResourceContents,
)

from tidebase import AsyncRun, AsyncTidebase, InvalidArgument, RunSuspendedError
from tidebase.integrations.mcp import ACTIONS, DurableTools, create_app, create_server, serve
from tidebase.server.auth import Key

from .support.mcp_client import Tasks, ask, until
from .support.patience import moments
from .test_cli import environment

ON_NEWEST = True

READING = {
    "list_runs",
    "show_run",
    "list_steps",
    "show_step",
    "timeline",
    "list_events",
    "get_state",
    "list_children",
    "list_gates",
    "list_reviews",
    "stalled_runs",
    "get_usage",
    "list_queues",
}


async def told(client: Client, tool: str, **arguments: Any) -> Any:
    result = await client.call_tool(tool, arguments)
    assert isinstance(result, CallToolResult)
    assert not result.is_error, result.content
    return result.structured_content


async def refused(client: Client, tool: str, **arguments: Any) -> str:
    result = await client.call_tool(tool, arguments)
    assert isinstance(result, CallToolResult) and result.is_error
    return result.content[0].text  # type: ignore[union-attr]


async def publish(run: AsyncRun, input: str) -> str:
    text = await run.step("write", lambda: f"about {input}", input=input)
    await run.state.set({"words": 2})
    await run.usage.record(model="m", input_tokens=10, output_tokens=2, cost_usd="0.01")
    answer = await run.gate("publish", "Publish?", data={"text": text}, suspend=True)
    return text if answer.approved else "kept"


@pytest.fixture
async def waiting(atide: AsyncTidebase) -> AsyncTidebase:
    """A run that waits for a person."""
    with pytest.raises(RunSuspendedError):
        await atide.run("publish", publish, run_id="article-1", input="salt")
    return atide


async def test_a_model_looks_at_everything_and_does_nothing(waiting: AsyncTidebase) -> None:
    await waiting.enqueue("other", "x", queue="mail")
    async with Client(create_server(waiting)) as client:
        tools = (await client.list_tools()).tools
        assert {tool.name for tool in tools} == READING
        assert all(tool.annotations and tool.annotations.read_only_hint for tool in tools)
        runs = await told(client, "list_runs", limit=1)
        assert len(runs["runs"]) == 1 and runs["next"]
        assert (await told(client, "list_runs", before=runs["next"]))["runs"][0]["run_id"] == "article-1"
        shown = await told(client, "show_run", run_id="article")  # the beginning is enough
        assert shown["run"]["waiting_for"] == "publish"
        assert shown["pending_gates"][0]["data"] == {"text": "about salt"}
        assert (await told(client, "list_steps", run_id="article-1"))["rows"][0]["output"] == "about salt"
        assert (await told(client, "show_step", run_id="article-1", step="write"))["status"] == "completed"
        bars = (await told(client, "timeline", run_id="article-1"))["bars"]
        assert [bar["kind"] for bar in bars] == ["attempt", "step"] and bars[1]["seconds"] >= 0
        first = await told(client, "list_events", run_id="article-1", limit=2)
        rest = await told(client, "list_events", run_id="article-1", after=first["next"])
        numbers = [event["seq"] for page in (first, rest) for event in page["events"]]
        assert numbers == list(range(1, len(numbers) + 1)) and rest["next"] is None
        assert (await told(client, "get_state", run_id="article-1"))["value"] == {"words": 2}
        assert (await told(client, "get_usage", run_id="article-1"))["totals"]["input_tokens"] == 10
        assert (await told(client, "list_gates"))["gates"][0]["name"] == "publish"
        assert (await told(client, "list_reviews"))["reviews"] == []
        assert (await told(client, "list_children", run_id="article-1"))["children"] == []
        assert "mail" in [queue["queue"] for queue in (await told(client, "list_queues"))["queues"]]
        assert isinstance((await told(client, "stalled_runs"))["runs"], list)
        assert "does not exist" in await refused(client, "show_run", run_id="no-such-run")
        content = (await client.read_resource("tidebase://runs/article-1")).contents[0]
        assert isinstance(content, TextResourceContents)
        assert json.loads(content.text)["run"]["workflow"] == "publish"
        for unknown, why in (
            ("no-such-run", "does not exist"),
            ("x" * 300, "1 to 255 bytes"),
            ("no-such-run/steps", "does not"),
        ):
            with pytest.raises(MCPError, match=why):
                await client.read_resource(f"tidebase://runs/{unknown}")
        content = (await client.read_resource("tidebase://runs/article-1/steps")).contents[0]
        assert isinstance(content, TextResourceContents) and "about salt" in content.text


async def test_answers_are_bounded_whatever_is_stored(atide: AsyncTidebase) -> None:
    async def large(run: AsyncRun, input: Any) -> None:
        for number in range(60):
            await run.step(f"s{number}", lambda: "x" * 3_000, input=number)
        await run.step("huge", lambda: "y" * 500_000)
        await run.state.set({"text": "z" * 300_000})

    await atide.run("large", large, run_id="large-1")
    async with Client(create_server(atide)) as client:
        for tool, more in (
            ("list_steps", {"limit": 100}),
            ("list_events", {"limit": 100}),
            ("show_run", {}),
            ("get_state", {}),
        ):
            result = await client.call_tool(tool, {"run_id": "large-1", **more})
            assert len(json.dumps(result.structured_content)) < 100_000, tool  # type: ignore[union-attr]
        page = await told(client, "list_steps", run_id="large-1", limit=100)
        assert page["rows"][-1]["output"]["truncated"]
        names = [row["name"] for row in page["rows"]]
        while page["next"]:
            page = await told(client, "list_steps", run_id="large-1", limit=100, before=page["next"])
            names = [row["name"] for row in page["rows"]] + names
        assert names == [*(f"s{number}" for number in range(60)), "huge"]


async def test_what_is_allowed_is_done_once_and_for_good(waiting: AsyncTidebase) -> None:
    async with Client(create_server(waiting, allow=list(ACTIONS))) as client:
        fork = await told(client, "fork_run", run_id="article-1", through_step="write", reason="another try")
        assert fork["steps_completed"] == 1
        decided = await told(client, "decide_gate", run_id="article-1", gate="publish", decision="approved")
        assert decided["accepted"] and decided["actor"] == "mcp"
        again = await told(client, "decide_gate", run_id="article-1", gate="publish", decision="rejected")
        assert not again["accepted"] and again["decision"] == "approved"
        assert await waiting.run("publish", publish, run_id="article-1") == "about salt"
        cancelled = await told(client, "cancel_run", run_id=fork["run_id"], reason="not needed")
        assert cancelled["status"] == "cancelled"

        async def fails(run: AsyncRun, input: Any) -> None:
            async def charge() -> None:
                raise TimeoutError("did the bank take it?")

            await run.step("charge", charge, side_effects=["card.charge"])

        with pytest.raises(TimeoutError):
            await waiting.run("fails", fails, run_id="order-1")
        assert (await told(client, "list_reviews"))["reviews"][0]["step"] == "charge"
        await told(client, "resolve_review", run_id="order-1", step="charge", decision="accept", output=7)
        assert (await told(client, "show_step", run_id="order-1", step="charge"))["output"] == 7

        async def breaks(run: AsyncRun, input: Any) -> None:
            raise LookupError

        with pytest.raises(LookupError):
            await waiting.run("breaks", breaks, run_id="broken-1")
        await told(client, "retry_run", run_id="broken-1", reason="mended")
        assert (await waiting.runs.get("broken-1")).status == "pending"
    with pytest.raises(InvalidArgument, match="There are decide, review, cancel, retry, fork"):
        create_server(waiting, allow=["everything"])


@asynccontextmanager
async def served(app: Any) -> AsyncIterator[str]:
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning"))
    task = asyncio.create_task(server.serve())
    try:
        for pause in moments():
            if server.started:
                break
            await asyncio.sleep(pause)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/mcp"
    finally:
        server.should_exit = True
        await task


async def test_over_http_each_key_has_its_roles(waiting: AsyncTidebase, db: psycopg.Connection[Any]) -> None:
    db.execute("insert into tidebase_private.settings values ('speakers', '{postgres}')")  # it decides for who has keys
    keys = [Key.parse("reader:only-looks"), Key.parse("approver@ada:may-decide"), Key.parse("operator:may-cancel")]
    app = create_app(waiting, allow=["decide", "cancel"], keys=keys, hosts=["127.0.0.1"])

    @asynccontextmanager
    async def client(url: str, secret: str) -> AsyncIterator[Client]:
        headers = {"Authorization": f"Bearer {secret}"}
        async with (
            httpx2.AsyncClient(headers=headers) as http,
            Client(streamable_http_client(url, http_client=http)) as connected,
        ):
            yield connected

    async with served(app) as url:
        async with httpx2.AsyncClient() as http:
            assert (await http.post(url, json={})).status_code == 401
            keyed = {"Authorization": "Bearer only-looks"}
            assert (await http.post(url, json={}, headers={**keyed, "Host": "evil.example"})).status_code == 421
            assert (
                await http.post(url, json={}, headers={**keyed, "Origin": "https://evil.example"})
            ).status_code == 403
        async with client(url, "only-looks") as reader:
            assert (await told(reader, "list_gates"))["gates"]
            assert "role approver" in await refused(
                reader, "decide_gate", run_id="article-1", gate="publish", decision="approved"
            )
            assert "role operator" in await refused(reader, "cancel_run", run_id="article-1", reason="why not")
        async with client(url, "may-cancel") as operator:
            assert "role approver" in await refused(
                operator, "decide_gate", run_id="article-1", gate="publish", decision="approved"
            )
        async with client(url, "may-decide") as approver:
            decided = await told(approver, "decide_gate", run_id="article-1", gate="publish", decision="approved")
            assert (decided["accepted"], decided["actor"]) == (True, "ada")
    with pytest.raises(InvalidArgument, match="needs keys"):
        serve(waiting)
    with pytest.raises(InvalidArgument, match="needs keys"):
        serve(waiting, host="0.0.0.0", insecure=True)


async def test_the_command_serves_standard_input_and_output(waiting: AsyncTidebase, database: str) -> None:
    command = ["-m", "tidebase.cli", "mcp", "--allow", "decide,cancel"]
    parameters = StdioServerParameters(command=sys.executable, args=command, env=environment(database))
    async with Client(parameters) as client:
        names = {tool.name for tool in (await client.list_tools()).tools}
        assert names == READING | {"decide_gate", "cancel_run"}
        assert (await told(client, "show_run", run_id="article-1"))["run"]["status"] == "waiting"


# --- tools that are runs ---


@dataclass
class Report:
    topic: str
    pages: int


@pytest.fixture
def executed() -> list[str]:
    return []


@pytest.fixture
def tools(atide: AsyncTidebase, executed: list[str]) -> DurableTools:
    tools = DurableTools(atide, poll_s=0.02)

    @tools.tool()
    async def report(run: AsyncRun, topic: str, pages: int = 3) -> Report:
        """Writes a report."""
        plan = await run.step("plan", lambda: executed.append(topic) or topic.upper(), input=topic)
        answer = await run.gate("publish", "Publish?", data={"plan": plan}, suspend=True)
        return Report(plan if answer.approved else "nothing", pages)

    @tools.tool(max_attempts=1)
    async def breaks(run: AsyncRun) -> str:
        raise LookupError("no such thing")

    @tools.tool(asks=False, description="Somebody else decides.")
    async def quiet(run: AsyncRun, context: str = "") -> str:
        return (await run.gate("ok", "Ok?", suspend=True)).decision

    return tools


def answering(*actions: str) -> Callable[..., Awaitable[ElicitResult]]:
    given = list(actions)

    async def answer(context: Any, params: ElicitRequestParams) -> ElicitResult:
        action = given.pop(0)
        assert "Publish?" in params.message and "SALT" in params.message
        if action in ("decline", "cancel"):
            return ElicitResult(action=action)  # type: ignore[arg-type]
        return ElicitResult(action="accept", content={"decision": action, "comment": "fine"})

    return answer


async def test_a_call_is_a_task_that_outlives_server_and_client(
    atide: AsyncTidebase, tools: DurableTools, executed: list[str], db: psycopg.Connection[Any]
) -> None:
    tasks = Tasks()
    server = MCPServer("reports", extensions=[tools])
    async with Client(server, extensions=[tasks], elicitation_callback=answering()) as client:
        await client.call_tool("report", {"topic": "salt"})
        task = tasks.tasks[0]
        assert task.status == "working"
        async with tools.working():
            asked = await until(client, task.task_id, "input_required")
    question = asked.input_requests["publish"]["params"]
    assert question["requestedSchema"]["properties"]["decision"]["enum"] == ["approved", "rejected"]
    assert (await atide.runs.get(task.task_id)).status == "waiting"  # nobody is there now
    async with Client(
        MCPServer("reports", extensions=[tools]), extensions=[tasks], elicitation_callback=answering()
    ) as client:
        await ask(
            client, "tasks/update", task.task_id, {"unknown": {"action": "accept"}, "publish": {"action": "cancel"}}
        )
        assert (await ask(client, "tasks/get", task.task_id)).status == "input_required"
        accepted = {"publish": {"action": "accept", "content": {"decision": "approved"}}}
        await ask(client, "tasks/update", task.task_id, accepted)
        async with tools.working():
            done = await until(client, task.task_id, "completed")
        assert done.result["structuredContent"] == {"topic": "SALT", "pages": 3}
        assert executed == ["salt"]
        gate = await atide.gates.get(task.task_id, "publish")
        assert (gate.actor, gate.decided_by) == ("mcp client", "secret")

        await client.call_tool("breaks", {})
        async with tools.working():
            broken = await until(client, tasks.tasks[1].task_id, "completed")
        assert broken.result["isError"] and "no such thing" in broken.result["content"][0]["text"]
        await client.call_tool("report", {"topic": "sea"})
        await ask(client, "tasks/cancel", tasks.tasks[2].task_id)
        assert (await ask(client, "tasks/get", tasks.tasks[2].task_id)).status == "cancelled"
        assert len(tasks.tasks) == 3
        result = await client.call_tool("report", {"topic": "sea", "pages": "many"})
        assert isinstance(result, CallToolResult) and result.is_error and len(tasks.tasks) == 3
        await atide.runs.create("other", run_id="not-a-task")
        for unknown in ("no-such-task", "not-a-task"):
            with pytest.raises(MCPError, match="there is no such task"):
                await ask(client, "tasks/get", unknown)
    async with Client(MCPServer("reports", extensions=[tools])) as client:
        with pytest.raises(MCPError, match="required extension"):
            await ask(client, "tasks/get", task.task_id)


@pytest.mark.parametrize("way", ["stdio", "http"])
async def test_who_listens_to_tasks_is_told_of_each_change(atide: AsyncTidebase, tools: DurableTools, way: str) -> None:
    """In its own words of ``tasks/get``; of no task that is somebody else's, and not without the extension."""
    tasks = Tasks()
    server = MCPServer("reports", extensions=[tools], middleware=[tools.push_status])

    def listen(client: Client, wanted: Any) -> Awaitable[Any]:
        filtered = SubscriptionFilter.model_validate({"taskIds": wanted})
        request = SubscriptionsListenRequest(params=SubscriptionsListenRequestParams(notifications=filtered))
        return client.session.send_request(request, Result)  # type: ignore[arg-type]

    async def told(wanted: str) -> dict[str, Any]:
        while (state := await tasks.told.get())["status"] != wanted:
            pass
        return state

    async with (
        served(server.streamable_http_app(stateless_http=True)) if way == "http" else nullcontext(server) as at,
        Client(at, extensions=[tasks], elicitation_callback=answering()) as client,
    ):
        await client.call_tool("report", {"topic": "salt"})
        (task,) = tasks.tasks
        await atide.runs.create("other", run_id="not-a-task")
        listening = asyncio.ensure_future(listen(client, [task.task_id, "not-a-task", task.task_id]))
        assert (await told("working"))["taskId"] == task.task_id
        async with tools.working():
            asked = await told("input_required")
            assert list(asked["inputRequests"]) == ["publish"]
            accepted = {"publish": {"action": "accept", "content": {"decision": "approved"}}}
            await ask(client, "tasks/update", task.task_id, accepted)
            done = await told("completed")
        assert done["result"]["structuredContent"] == {"topic": "SALT", "pages": 3} and "resultType" not in done
        await listening  # there is nothing more to tell
        await listen(client, ["not-a-task", "no-such-task"])
        with pytest.raises(MCPError, match="taskIds must be a list"):
            await listen(client, [7])
        while not tasks.told.empty():  # the client hands on what came at the same time in any order
            assert tasks.told.get_nowait()["taskId"] == task.task_id
    async with Client(server) as client:
        with pytest.raises(MCPError, match="required extension"):
            await listen(client, [task.task_id])
        async with client.listen(tools_list_changed=True) as changes:  # what the server tells of itself is as it was
            assert changes is not None


@pytest.mark.parametrize("mode", ["auto", "legacy"])
async def test_who_knows_no_tasks_waits_and_is_asked(
    atide: AsyncTidebase, tools: DurableTools, executed: list[str], mode: str
) -> None:
    """By an InputRequiredResult, or by an elicitation: the client's own machinery answers either."""
    server = MCPServer("reports", extensions=[tools])
    async with tools.working():
        async with Client(server, mode=mode, elicitation_callback=answering("approved", "decline", "cancel")) as client:
            assert await told(client, "report", topic="salt", pages=1) == {"topic": "SALT", "pages": 1}
            assert await told(client, "report", topic="salt") == {"topic": "nothing", "pages": 3}
            assert "waits for a decision at 'publish', which was not made" in await refused(
                client, "report", topic="salt"
            )
            assert "LookupError: no such thing" in await refused(client, "breaks")
        async with Client(server, mode=mode) as client:
            assert "can ask nobody" in await refused(client, "report", topic="salt")
            calling = asyncio.create_task(told(client, "quiet"))
            for pause in moments():
                if found := [gate for gate in await atide.gates.list() if gate.name == "ok"]:
                    await atide.gates.decide(found[0].run_id, "ok", "approved")
                    break
                await asyncio.sleep(pause)
            assert await calling == {"result": "approved"}


async def test_a_tool_says_what_it_takes(tools: DurableTools) -> None:
    async with Client(MCPServer("reports", extensions=[tools])) as client:
        described = {tool.name: tool for tool in (await client.list_tools()).tools}
    assert described["report"].description == "Writes a report."
    assert set(described["report"].input_schema["properties"]) == {"topic", "pages"}
    assert described["quiet"].description == "Somebody else decides."
    with pytest.raises(InvalidArgument, match="there is a tool 'report' already"):
        tools.tool("report")(publish)
    with pytest.raises(InvalidArgument, match="must be async"):
        tools.tool("sync")(lambda run: None)  # type: ignore[arg-type, return-value]
