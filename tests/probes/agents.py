"""Agents of each framework, in worker processes that are killed at any moment of their runs.

An agent reads, writes under a key, and, once a person has approved it, writes without one. What it does to the outside,
each question to its model included, is in a ledger, a file that no worker can take anything back from.

    python -m tests.probes.agents URL FRAMEWORK KILLS SEED

kills so many of them and prints what is wrong, and figures, as JSON. The processes are forked off this one, which has
imported the framework: a worker is at work within milliseconds.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

from tidebase import AsyncRun, AsyncTidebase, RunNeedsReview, RunSuspendedError

from ..support.patience import TEST_S
from .support import Connection, connect, lapse, value
from .workers import Ledger

#: What a worker says with its exit code.
DONE, ASKS, REVIEW, FAILED = 0, 10, 11, 12

#: How often at most a run loses its worker, and what it has just done then; nothing yet, for None.
DEATHS, MOMENTS = 6, (None, "model", "look", "note", "sending", "send")

#: The contracts of the two tools that write.
KEYED: dict[str, Any] = {"side_effects": ["note"], "idempotency_key": "{run_id}/{q}"}
UNKEYED: dict[str, Any] = {"side_effects": ["letter"], "verified_by": "the ledger"}

#: What the user of an MCP client answers.
APPROVED = {"decision": "approved"}

RESULT = "saw a; noted b; sent to ada"


class Outside:
    """What an agent does to the world, each with a moment before and after it in which the worker may be killed."""

    def __init__(self, ledger: Ledger, run_id: str) -> None:
        self.ledger = ledger
        self.run_id = run_id

    async def _do(self, kind: str, **entry: Any) -> None:
        await asyncio.sleep(random.random() / 200)
        self.ledger.write(kind=kind, run=self.run_id, **entry)
        await asyncio.sleep(random.random() / 200)

    async def model(self, turn: int) -> str:
        """Asks the model; returns an id that no other response has."""
        answer = uuid.uuid4().hex
        await self._do("model", turn=turn, answer=answer)
        return answer

    async def look(self, q: str) -> str:
        await self._do("look")
        return f"saw {q}"

    async def note(self, q: str, key: str | None) -> str:
        await self._do("note", key=key)
        return f"noted {q}"

    async def send(self, to: str) -> str:
        self.ledger.write(kind="sending", run=self.run_id)  # who dies now has sent nothing, and nobody can know
        await self._do("send")
        return f"sent to {to}"


#: What the model wants in each turn; then it says what it was told.
TURNS: list[list[tuple[str, dict[str, str]]]] = [
    [("look", {"q": "a"}), ("note", {"q": "b"})],
    [("send", {"to": "ada"})],
]


def pydantic_ai(outside: Outside, tide: AsyncTidebase) -> Callable[[AsyncRun, Any], Awaitable[str]]:
    from pydantic_ai import Agent, ModelResponse, TextPart, ToolCallPart
    from pydantic_ai.messages import ModelMessage, ToolReturnPart
    from pydantic_ai.models.function import AgentInfo, FunctionModel

    from tidebase.integrations.pydantic_ai import TidebaseDurability, idempotency_key, tool_contract

    async def answer(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        turn = sum(isinstance(message, ModelResponse) for message in messages)
        told = await outside.model(turn)
        if turn < len(TURNS):
            calls = [ToolCallPart(name, args, f"{turn} {n}") for n, (name, args) in enumerate(TURNS[turn])]
            return ModelResponse(parts=calls, provider_response_id=told)
        said = (str(p.content) for m in messages for p in m.parts if isinstance(p, ToolReturnPart))
        return ModelResponse(parts=[TextPart("; ".join(said))], provider_response_id=told)

    agent = Agent(FunctionModel(answer), name="agent", capabilities=[TidebaseDurability()])

    @agent.tool_plain
    async def look(q: str) -> str:
        return await outside.look(q)

    @agent.tool_plain(metadata=tool_contract(**KEYED))
    async def note(q: str) -> str:
        return await outside.note(q, idempotency_key())

    @agent.tool_plain(requires_approval=True, metadata=tool_contract(**UNKEYED))
    async def send(to: str) -> str:
        return await outside.send(to)

    async def work(run: AsyncRun, input: Any) -> str:
        return str((await agent.run("write")).output)

    return work


def openai_agents(outside: Outside, tide: AsyncTidebase) -> Callable[[AsyncRun, Any], Awaitable[str]]:
    import agents
    from agents.testing import assistant_message, function_call

    from tidebase.integrations.openai_agents import DurableRunner, TidebaseSession, idempotency_key, tool_contract

    agents.set_tracing_disabled(True)

    class Script(agents.Model):
        async def get_response(self, system_instructions: Any, input: Any, *more: Any, **kw: Any) -> Any:
            outputs = [item["output"] for item in input if item.get("type") == "function_call_output"]
            turn = (0, 1, 1, 2)[len(outputs)]
            told = await outside.model(turn)
            output: list[Any] = [assistant_message("; ".join(outputs))]
            if turn < len(TURNS):
                output = [
                    function_call(name, args, call_id=f"{turn} {n}") for n, (name, args) in enumerate(TURNS[turn])
                ]
            return agents.ModelResponse(output=output, usage=agents.Usage(), response_id=told)

        def stream_response(self, *arguments: Any, **kw: Any) -> Any:
            raise NotImplementedError

    @agents.function_tool
    async def look(q: str) -> str:
        return await outside.look(q)

    @agents.function_tool
    @tool_contract(**KEYED)
    async def note(q: str) -> str:
        return await outside.note(q, idempotency_key())

    @agents.function_tool(needs_approval=True)
    @tool_contract(**UNKEYED)
    async def send(to: str) -> str:
        return await outside.send(to)

    agent = agents.Agent(name="agent", model=Script(), tools=[look, note, send])

    async def work(run: AsyncRun, input: Any) -> str:
        session = TidebaseSession(run.run_id, tide)
        return str((await DurableRunner().run(agent, "write", session=session)).final_output)

    return work


async def by_hand(run: AsyncRun, outside: Outside, ask: Callable[[int], Awaitable[Any]]) -> str:
    """An agent that is written without a framework."""
    await ask(0)
    key = f"{run.run_id}/b"
    done = [
        await run.step("look", lambda: outside.look("a")),
        await run.step("note", lambda: outside.note("b", key), side_effects=["note"], idempotency_key=key),
    ]
    await ask(1)
    if (await run.gate("send", "Send?", suspend=True)).approved:
        done.append(await run.step("send", lambda: outside.send("ada"), side_effects=["letter"]))
    await ask(2)
    return "; ".join(done)


def http(outside: Outside, tide: AsyncTidebase) -> Callable[[AsyncRun, Any], Awaitable[str]]:
    import httpx

    from tidebase.integrations.http import AsyncTidebaseTransport

    class Server(httpx.AsyncBaseTransport):
        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            told = await outside.model(json.loads(request.content)["turn"])
            return httpx.Response(200, json={"id": told})

    client = httpx.AsyncClient(transport=AsyncTidebaseTransport(Server()))

    async def ask(turn: int) -> None:
        await client.post("https://model.example/", json={"turn": turn})

    async def work(run: AsyncRun, input: Any) -> str:
        return await by_hand(run, outside, ask)

    return work


AGENTS = {"pydantic_ai": pydantic_ai, "openai_agents": openai_agents, "http": http}
FRAMEWORKS = (*AGENTS, "mcp")

#: What the framework itself would import in each worker.
MODULES = {
    "pydantic_ai": ["pydantic_ai.models.function", "tidebase.integrations.pydantic_ai"],
    "openai_agents": ["agents.testing", "tidebase.integrations.openai_agents"],
    "http": ["tidebase.integrations.http"],
    "mcp": ["mcp", "mcp.server.mcpserver", "tidebase.integrations.mcp"],
}


@contextlib.asynccontextmanager
async def mcp_server(outside: Callable[[str], Outside], tide: AsyncTidebase) -> AsyncIterator[tuple[Any, Any, Any]]:
    """An MCP server of one tool that is a run, a client that knows tasks, and the tools."""
    from mcp import Client
    from mcp.server.mcpserver import MCPServer

    from tidebase.integrations.mcp import DurableTools

    from ..support.mcp_client import Tasks

    tools, tasks = DurableTools(tide, poll_s=0.01), Tasks()

    @tools.tool(asks=True, max_attempts=100)
    async def agent(run: AsyncRun) -> str:
        world = outside(run.run_id)
        return await by_hand(run, world, lambda turn: run.step(f"model {turn}", lambda: world.model(turn)))

    server = MCPServer("agent", extensions=[tools])
    async with Client(server, extensions=[tasks], elicitation_callback=nobody_is_asked) as client:
        yield client, tasks, tools


async def nobody_is_asked(context: Any, params: Any) -> Any:
    raise AssertionError("of a task one asks oneself")


async def called(url: str) -> str:
    """Calls the tool; returns the task's id. Nobody works on it yet."""
    async with AsyncTidebase(url) as tide, mcp_server(not_here, tide) as (client, tasks, _):
        await client.call_tool("agent", {})
        return str(tasks.tasks[0].task_id)


def not_here(run_id: str) -> Outside:
    raise AssertionError("who calls does not work")


async def serve_task(tide: AsyncTidebase, run_id: str, ledger: Ledger) -> int:
    """An MCP server that works on its tools' runs, and a client that asks about the task until it knows more."""
    from ..support.mcp_client import ask

    async with (
        mcp_server(lambda run_id: Outside(ledger, run_id), tide) as (client, _, tools),
        tools.working(poll_s=0.01),
    ):
        while True:
            task = await ask(client, "tasks/get", run_id)
            if task.status == "completed":
                return DONE if task.result["structuredContent"] == {"result": RESULT} else FAILED
            if task.status == "input_required":
                await ask(client, "tasks/update", run_id, {"send": {"action": "accept", "content": APPROVED}})
            elif task.status_message == "a person must decide about a step":
                return REVIEW
            await asyncio.sleep(0.005)


def live(url: str, framework: str, run_id: str, path: Path) -> int:
    """One worker, up to its end."""

    async def attempt() -> int:
        async with AsyncTidebase(url, pool_size=3) as tide:
            if framework == "mcp":
                return await serve_task(tide, run_id, Ledger(path))
            work = AGENTS[framework](Outside(Ledger(path), run_id), tide)
            try:
                return DONE if await tide.run("agent", work, run_id=run_id) == RESULT else FAILED
            except RunSuspendedError:
                return ASKS
            except RunNeedsReview:
                return REVIEW

    return asyncio.run(attempt())


class Siege:
    def __init__(self, url: str, framework: str, folder: Path, seed: int) -> None:
        self.url = url
        self.framework = framework
        self.path = folder / "ledger"
        self.ledger = Ledger(self.path)
        self.order = random.Random(seed)
        self.figures: Counter[str] = Counter()

    def live_and_die(self, db: Connection, run_id: str, mortal: bool) -> int | None:
        """One worker. It is killed a moment after an entry of the ledger: None; or comes to its end."""
        size = self.path.stat().st_size
        done, delay = self.order.choice(MOMENTS), self.order.random() ** 2 / 10
        worker = os.fork()
        if worker == 0:
            code = FAILED
            with contextlib.suppress(BaseException):
                code = live(self.url, self.framework, run_id, self.path)
            os._exit(code)
        due = None if done else time.monotonic() + delay
        while True:
            ended, status = os.waitpid(worker, os.WNOHANG)
            if ended:
                code = os.waitstatus_to_exitcode(status)
                return None if code == -signal.SIGKILL else code
            if due is None and self.path.stat().st_size > size:
                with self.path.open("rb") as file:
                    file.seek(size)
                    if f'"kind": "{done}"'.encode() in file.read():
                        due = time.monotonic() + delay / 10
            if mortal and due is not None and time.monotonic() >= due:
                os.kill(worker, signal.SIGKILL)
            time.sleep(0.0005)

    def decide(self, db: Connection, run_id: str) -> None:
        """People approve what they are asked about, and look into the ledger before they say what becomes of a step."""
        for name in [r[0] for r in db.execute("select name from tidebase.gate_inbox where run_id = %s", [run_id])]:
            db.execute("select tidebase.decide_gate(%s, %s, 'approved', 'ann')", [run_id, name])
            self.figures["approvals"] += 1
        for step in [r[0] for r in db.execute("select step from tidebase.review_inbox where run_id = %s", [run_id])]:
            sent = any(entry["kind"] == "send" and entry["run"] == run_id for entry in self.ledger.read())
            decision, output = ("accept", '"sent to ada"') if sent else ("retry", None)
            db.execute("select tidebase.resolve_review(%s, %s, %s, %s)", [run_id, step, decision, output])
            self.figures[f"reviews, {decision}"] += 1

    def begin(self, db: Connection) -> str:
        """The id of a new run: of MCP the task that a client got for its call."""
        if self.framework == "mcp":
            return asyncio.run(called(self.url))
        run_id = f"{self.framework} {self.figures['runs']}"
        db.execute("select tidebase.create_run(workflow => 'agent', run_id => %s)", [run_id])
        return run_id

    def one_run(self, db: Connection) -> list[str]:
        run_id = self.begin(db)
        code, deaths = None, 0
        while code != DONE:
            code = self.live_and_die(db, run_id, mortal=deaths < DEATHS)
            if code is None:
                deaths += 1
                lapse(db, run_id)
                lapse(db, f"session:{run_id}")
            elif code not in (DONE, ASKS, REVIEW):
                return [f"{run_id}: a worker ended with {code}"]
            self.decide(db, run_id)
        self.figures["runs"] += 1
        self.figures["kills"] += deaths
        return [f"{run_id}: {one}" for one in self.violations(db, run_id)]

    def violations(self, db: Connection, run_id: str) -> list[str]:
        entries = [entry for entry in self.ledger.read() if entry["run"] == run_id]
        found = []
        sent = [entry for entry in entries if entry["kind"] == "send"]
        if len(sent) != 1:
            found.append(f"a letter was sent {len(sent)} times")
        keys = {entry["key"] for entry in entries if entry["kind"] == "note"}
        if keys != {f"{run_id}/b"}:
            found.append(f"it was noted under {keys}")
        outputs = db.execute("select output::text from tidebase.step_timeline where run_id = %s", [run_id]).fetchall()
        recorded = " ".join(str(row[0]) for row in outputs)
        for turn in range(3):
            answers = [entry["answer"] for entry in entries if entry["kind"] == "model" and entry["turn"] == turn]
            self.figures["questions"] += len(answers)
            if not answers or [one for one in answers if one in recorded] != answers[-1:]:
                found.append(f"of the answers to question {turn} another one than the last is recorded")
        if self.framework == "openai_agents":
            found += self._session_violations(db, run_id)
        return found

    def _session_violations(self, db: Connection, run_id: str) -> list[str]:
        query = "select value from tidebase.get_state(%s, 'items/1/1')"
        items = value(db, query, f"session:{run_id}")["items"]
        kinds = [item.get("type", item.get("role")) for item in items]
        expected = [
            "user",
            *["function_call"] * 2,
            *["function_call_output"] * 2,
            "function_call",
            "function_call_output",
        ]
        return [] if kinds == [*expected, "message"] else [f"its session has {kinds}"]

    def kill(self, kills: int) -> list[str]:
        found: list[str] = []
        with connect(self.url) as db:
            while self.figures["kills"] < kills:
                found += self.one_run(db)
                if found:
                    break
        return found


def kill_agents(url: str, framework: str, kills: int, seed: int) -> tuple[list[str], dict[str, int]]:
    """What is wrong, and figures: what a process of its own has found."""
    command = [sys.executable, "-m", __name__, url, framework, str(kills), str(seed)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=TEST_S + 5 * kills)
    if result.returncode != 0:
        return [result.stderr[-4000:]], {}
    found, figures = json.loads(result.stdout)
    return found, figures


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        siege = Siege(sys.argv[1], sys.argv[2], Path(folder), int(sys.argv[4]))
        for module in MODULES[sys.argv[2]]:
            __import__(module)
        print(json.dumps([siege.kill(int(sys.argv[3])), siege.figures]))
