"""Agents of the OpenAI SDK on runs: what is recorded is not asked or done again; interruptions are gates; sessions."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from types import SimpleNamespace
from typing import Any

import pytest

from tidebase import (
    AsyncRun,
    AsyncTidebase,
    BudgetExhausted,
    InputMismatch,
    InvalidArgument,
    RunHeld,
    RunNeedsReview,
    RunSuspendedError,
    TidebaseError,
)
from tidebase.integrations import _openai_sessions

pytest.importorskip("agents")

import agents
from agents import (
    Agent,
    FunctionTool,
    GuardrailFunctionOutput,
    InputGuardrailTripwireTriggered,
    Model,
    ModelProvider,
    ModelResponse,
    RunConfig,
    Session,
    SessionSettings,
    SQLiteSession,
    Usage,
    function_tool,
    handoff,
    input_guardrail,
    output_guardrail,
)
from agents.mcp import MCPServer
from agents.testing import ScriptedModel, assistant_message, function_call
from mcp.types import CallToolResult, TextContent
from mcp.types import Tool as MCPTool

from tidebase.integrations.openai_agents import (
    DurableRunner,
    TidebaseSession,
    _Recorded,
    _Work,
    idempotency_key,
    tool_contract,
)

ON_NEWEST = True
agents.set_tracing_disabled(True)

Call = tuple[str, dict[str, Any]]


class Script(Model):
    """Calls tools in a given order, and then says what they returned since the last word of a user. Counts how often it
    was asked.
    """

    def __init__(self, *turns: list[Call]) -> None:
        self.turns = turns
        self.asked = 0

    def answer(self, given: Any) -> list[Any]:
        self.asked += 1
        items = [] if isinstance(given, str) else given
        last = max((n for n, item in enumerate(items) if item.get("role") == "user"), default=0)
        outputs = [item["output"] for item in items[last:] if item.get("type") == "function_call_output"]
        done = 0
        for turn in self.turns:
            if len(outputs) < done + len(turn):
                calls = enumerate(turn, done)
                return [function_call(name, args, call_id=f"call-{last}-{n}") for n, (name, args) in calls]
            done += len(turn)
        return [assistant_message(" ".join(map(str, outputs)) or "hello")]

    async def get_response(self, system_instructions: Any, input: Any, *more: Any, **options: Any) -> ModelResponse:
        usage = Usage(requests=1, input_tokens=50, output_tokens=20, total_tokens=70)
        return ModelResponse(output=self.answer(input), usage=usage, response_id=None)

    async def stream_response(
        self, system_instructions: Any, input: Any, *more: Any, **options: Any
    ) -> AsyncIterator[Any]:
        scripted = ScriptedModel([self.answer(input)])
        async for event in scripted.stream_response(system_instructions, input, *more, **options):
            yield event


def workflow(agent: Agent[Any], runner: dict[str, Any] | None = None, **options: Any) -> Callable[[AsyncRun, Any], Any]:
    async def run_agent(run: AsyncRun, input: Any) -> Any:
        return (await DurableRunner(**(runner or {})).run(agent, input, **options)).final_output

    return run_agent


async def failed(tide: AsyncTidebase, run_id: str, function: Callable[..., Any]) -> BaseException:
    """Works on a run whose work fails, and returns why: the SDK wraps what a tool raises."""
    with pytest.raises(BaseException) as failure:
        await tide.run("agent", function, run_id=run_id, input="hello")
    error = failure.value
    return error.__cause__ if isinstance(error, agents.UserError) and error.__cause__ else error


async def test_nothing_that_is_recorded_is_asked_or_done_again(atide: AsyncTidebase) -> None:
    script, done = Script([("look", {"q": "a"}), ("note", {"q": "b"}), ("fail", {})], [("note", {"q": "c"})]), []

    @function_tool
    def look(q: str) -> str:
        done.append(f"look {q}")
        return f"saw {q}"

    @function_tool
    @tool_contract(side_effects=["note"], idempotency_key="{q}/{call_id}/{run_id}")
    async def note(q: str) -> dict[str, str]:
        done.append(f"note {q} {idempotency_key()}")
        if q == "c" and len(done) == 4:
            raise ConnectionError
        return {"noted": q}

    @function_tool(failure_error_function=lambda context, error: "it failed")
    def fail() -> str:
        done.append("fail")
        raise ConnectionError

    agent = Agent(name="support", instructions="be kind", model=script, tools=[look, note, fail])
    assert isinstance(await failed(atide, "r", workflow(agent)), ConnectionError)
    output = await atide.run("agent", workflow(agent), run_id="r")
    assert output == "saw a {'noted': 'b'} it failed {'noted': 'c'}" and script.asked == 3
    assert sorted(done[:3]) == ["fail", "look a", "note b b/call-0-1/r"] and len(done) == 5 and done[3] == done[4]
    steps = [step.name for step in await atide.runs.steps("r")]
    assert steps[0] == "support__model.request[1/1]" and steps[-1] == "support__model.request[1/3]"
    assert set(steps[1:4]) == {f"support__tool:{t}[1/call-0-{n}]" for n, t in enumerate(("look", "note", "fail"))}
    fork = await atide.runs.fork("r")
    assert await atide.run("agent", workflow(agent), run_id=fork.run_id) == output and script.asked == 3


async def test_a_changed_request_is_refused_and_a_used_up_budget_ends_it(atide: AsyncTidebase) -> None:
    script = Script([("look", {})], [("look", {})])

    @function_tool
    def look() -> str:
        return "seen"

    agent = Agent(name="a", model=script, tools=[look])
    with pytest.raises(BudgetExhausted):
        await atide.run("agent", workflow(agent), run_id="r", input="hello", budget={"tokens": 100})
    assert (await atide.runs.usage("r")).records == 2 and script.asked == 2
    await atide.runs.set_budget("r", tokens=1000)
    agent.instructions = "another one"
    assert isinstance(await failed(atide, "r", workflow(agent)), InputMismatch)
    agent.instructions = None
    await atide.run("agent", workflow(agent), run_id="r")
    assert script.asked == 3


async def test_an_interruption_suspends_the_run_and_another_process_goes_on(
    atide: AsyncTidebase, database: str
) -> None:
    """Approved, rejected with a word, and approved for good: the tool is not asked about again."""
    done: list[str] = []

    def make() -> tuple[Agent[Any], Script]:
        script = Script([("send", {"to": "ada"}), ("send", {"to": "eve"}), ("drop", {"n": 1})], [("drop", {"n": 2})])

        @function_tool(needs_approval=True)
        @tool_contract(side_effects=["email"])
        def send(to: str) -> str:
            done.append(to)
            return f"sent to {to}"

        async def big(context: Any, arguments: dict[str, Any], call_id: str) -> bool:
            return bool(arguments["n"] > 0)

        @function_tool(needs_approval=big)
        def drop(n: int) -> str:
            done.append(f"{n}")
            return f"dropped {n}"

        return Agent(name="a", model=script, tools=[send, drop]), script

    agent, script = make()
    with pytest.raises(RunSuspendedError):
        await atide.run("agent", workflow(agent), run_id="r", input="hello")
    asked = await atide.gates.list()
    assert [gate.name for gate in asked] == ["a__approve:drop[1/call-0-2]"] + [
        f"a__approve:send[1/call-0-{n}]" for n in (0, 1)
    ] or len(asked) == 3
    by_name = {gate.name: gate for gate in asked}
    first = by_name["a__approve:send[1/call-0-0]"]
    assert (first.prompt, first.data["tool"], first.data["arguments"]) == ("Approve send?", "send", {"to": "ada"})
    # What is shown is enough to go on with the SDK alone.
    shown = await agents.RunState.from_json(agent, first.data["state"])
    assert [item.call_id for item in shown.get_interruptions()] == [f"call-0-{n}" for n in range(3)]
    await atide.gates.decide("r", first.name, "approved")
    await atide.gates.decide("r", "a__approve:send[1/call-0-1]", "rejected", comment="not her")
    await atide.gates.decide("r", "a__approve:drop[1/call-0-2]", "approved", payload={"always": True})
    async with AsyncTidebase(database) as other:
        agent, second = make()
        output = await other.run("agent", workflow(agent), run_id="r")
    assert output == "sent to ada not her dropped 1 dropped 2"
    assert sorted(done) == ["1", "2", "ada"] and script.asked + second.asked == 3


async def test_what_may_have_taken_effect_is_reviewed_and_its_result_may_be_said(atide: AsyncTidebase) -> None:
    script, sent = Script([("send", {"to": "ada"})]), []

    @tool_contract(side_effects=["email"])
    @function_tool(timeout=0.01)
    async def send(to: str) -> str:
        sent.append(to)
        await asyncio.sleep(60)
        return "sent"

    agent = Agent(name="a", model=script, tools=[send])
    assert isinstance(await failed(atide, "r", workflow(agent)), TimeoutError)
    assert isinstance(await failed(atide, "r", workflow(agent)), RunNeedsReview)
    await atide.runs.resolve_review("r", (await atide.runs.reviews())[0].step, "accept", output="it is there")
    assert await atide.run("agent", workflow(agent), run_id="r") == "it is there"
    assert sent == ["ada"] and script.asked == 2


async def test_handoffs_are_followed_and_guardrails_asked_once(atide: AsyncTidebase) -> None:
    """Handoffs to agents, with handoff() and in a circle; models by name; guardrails of agents and of the run."""
    checked: list[str] = []

    def check(kind: Any, name: str, trips: str = "") -> Any:
        @kind(name=name)
        async def guardrail(context: Any, agent: Agent[Any], value: Any) -> GuardrailFunctionOutput:
            checked.append(name)
            return GuardrailFunctionOutput({"why": name}, tripwire_triggered=bool(trips) and trips in str(value))

        return guardrail

    first, second = Script([("transfer_to_second", {})]), Script([("transfer_to_third", {})])
    third = Script([("look", {})])
    tries = 0

    @function_tool
    @tool_contract()
    def look() -> str:
        nonlocal tries
        tries += 1
        if tries == 1:
            raise ConnectionError
        return "seen"

    class Models(ModelProvider):
        def get_model(self, model_name: str | None) -> Model:
            return {"one": first, "two": second, "three": third}[model_name or ""]

    c = Agent(name="third", model="three", tools=[look], output_guardrails=[check(output_guardrail, "out")])
    b = Agent(name="second", model="two", handoffs=[handoff(c)])
    a = Agent(name="first", model="one", handoffs=[b], input_guardrails=[check(input_guardrail, "in", "forbidden")])
    c.handoffs = [a]
    second.answer = lambda given: [function_call("transfer_to_third", {}, call_id="to-third")]  # type: ignore[method-assign]
    third.answer = counting(third, lambda given: [function_call("look", {}, call_id="look")])  # type: ignore[method-assign]
    config = RunConfig(model_provider=Models(), input_guardrails=[check(input_guardrail, "all")])
    options = {"run_config": config}
    assert isinstance(await failed(atide, "r", workflow(a, **options)), ConnectionError)
    third.answer = counting(third, lambda given: [assistant_message(given[-1]["output"])])  # type: ignore[method-assign]
    assert await atide.run("agent", workflow(a, **options), run_id="r") == "seen"
    assert (first.asked, third.asked, sorted(checked)) == (1, 2, ["all", "in", "out"])
    for _ in range(2):
        with pytest.raises(InputGuardrailTripwireTriggered):
            await atide.run("agent", workflow(a, **options), run_id="r2", input="forbidden")
    assert checked.count("in") == 2


def counting(script: Script, answer: Callable[[Any], list[Any]]) -> Callable[[Any], list[Any]]:
    def counted(given: Any) -> list[Any]:
        script.asked += 1
        return answer(given)

    return counted


async def test_a_stream_is_live_and_is_replayed_and_one_that_breaks_off_is_not_recorded(atide: AsyncTidebase) -> None:
    script, told, broken = Script([("look", {})]), list[str](), True

    class Breaking(Script):
        async def stream_response(self, *arguments: Any, **options: Any) -> AsyncIterator[Any]:
            async for event in super().stream_response(*arguments, **options):
                if broken and event.type == "response.completed":
                    raise ConnectionError
                yield event

    script = Breaking([("look", {})])

    @function_tool
    def look() -> str:
        return "seen"

    agent = Agent(name="a", model=script, tools=[look])

    def note(event: Any) -> None:
        told.append(event.data.type if event.type == "raw_response_event" else event.type)

    assert isinstance(await failed(atide, "r", workflow(agent, on_event=note)), ConnectionError)
    assert "response.function_call_arguments.delta" in told and "response.completed" not in told
    broken = False
    told.clear()
    assert await atide.run("agent", workflow(agent, on_event=note), run_id="r") == "seen"
    live = list(told)
    assert live.count("response.completed") == 2 and "response.output_text.delta" in live and script.asked == 3
    fork = await atide.runs.fork("r")
    told.clear()
    assert await atide.run("agent", workflow(agent, on_event=note), run_id=fork.run_id) == "seen"
    assert [one for one in live if not one.endswith(".delta")] == told and script.asked == 3


async def test_tools_of_servers_and_of_agents_are_steps(atide: AsyncTidebase) -> None:
    done: list[str] = []

    class Server(MCPServer):
        name = "server"

        async def connect(self) -> None: ...

        async def cleanup(self) -> None: ...

        async def list_tools(self, *more: Any) -> list[MCPTool]:
            return [MCPTool(name="remote", input_schema={"type": "object", "properties": {}})]

        async def call_tool(self, tool_name: str, arguments: Any, *more: Any, **options: Any) -> CallToolResult:
            done.append(tool_name)
            return CallToolResult(content=[TextContent(type="text", text="over there")])

        async def list_prompts(self) -> Any: ...

        async def get_prompt(self, *more: Any) -> Any: ...

    @function_tool
    def look() -> str:
        done.append("look")
        return "seen"

    @function_tool(needs_approval=True)
    def ask() -> str:
        raise AssertionError

    async def bare(context: Any, arguments: str) -> Any:
        done.append("bare")
        if done.count("bare") == 1:
            raise ConnectionError
        return SimpleNamespace(no="JSON")

    inner, picky = Script([("look", {})]), Script([("ask", {})])
    helper = Agent(name="helper", model=inner, tools=[look]).as_tool("helper", "helps")
    bare_tool = FunctionTool("bare", "", {"type": "object", "properties": {}}, bare, strict_json_schema=False)
    script = Script([("remote", {}), ("helper", {"input": "x"})], [("bare", {})])
    agent = Agent(name="a", model=script, tools=[helper, tool_contract()(bare_tool)], mcp_servers=[Server()])
    runner = {"tools": {"remote": {"side_effects": ["x"], "idempotency_key": "k"}}}
    assert isinstance(await failed(atide, "r", workflow(agent, runner)), ConnectionError)
    output = await atide.run("agent", workflow(agent, runner), run_id="r")
    assert "over there" in output and "seen" in output and "namespace(no='JSON')" in output
    assert sorted(done) == ["bare", "bare", "look", "remote"] and (script.asked, inner.asked) == (3, 2)
    assert (await atide.runs.step("r", "a__tool:remote[1/call-0-0]")).idempotency_key == "k"
    asking = Agent(name="asking", model=picky, tools=[ask]).as_tool("asking", "asks")
    error = await failed(
        atide, "r2", workflow(Agent(name="a", model=Script([("asking", {"input": "x"})]), tools=[asking]))
    )
    assert isinstance(error, TidebaseError) and "approval" in str(error)


async def test_what_makes_no_sense_is_refused(atide: AsyncTidebase) -> None:
    with pytest.raises(TidebaseError, match="outside of a run"):
        DurableRunner()
    agent = Agent(name="a", model=Script())
    error = await failed(atide, "r", workflow(agent, session=SQLiteSession("x")))
    assert isinstance(error, InvalidArgument)
    error = await failed(atide, "r2", workflow(agent, {"tools": {"x": {"side_effect": []}}}))
    assert isinstance(error, TypeError)


# Sessions.


def words(*texts: str) -> list[Any]:
    return [{"role": "user", "content": text} for text in texts]


async def test_a_session_keeps_its_items_in_order_and_in_pages(
    atide: AsyncTidebase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_openai_sessions, "_PAGE_ITEMS", 3)
    session = TidebaseSession("s", atide)
    assert isinstance(session, Session)
    assert (await session.get_items(), await session.pop_item()) == ([], None)
    await session.add_items([])
    everything = words(*"abcdefgh")
    for n in range(0, 8, 2):
        await session.add_items(everything[n : n + 2])
    again = TidebaseSession("s", atide, session_settings=SessionSettings(limit=2))
    assert await session.get_items() == everything and await again.get_items() == everything[-2:]
    for limit in (0, 1, 3, 5, 8, 100):
        assert await again.get_items(limit) == everything[8 - min(limit, 8) :]
    popped = [await again.pop_item() for _ in range(6)]
    assert popped == everything[:1:-1] and await session.get_items() == everything[:2]
    await session.add_items(words("i"))
    assert await session.get_items() == words("a", "b", "i")
    await session.clear_session()
    assert (await again.get_items(), await again.pop_item()) == ([], None)
    await session.add_items(words("j"))
    assert await session.get_items() == words("j")
    assert await atide.runs.stalled() == []  # nobody works with it, and nobody is missed
    pages = [version.stream for version in await atide.runs.state_versions("session:s", "items/1/1")]
    assert len(pages) == 5  # two writes, two items taken away when the pages behind it were gone, and one write


async def test_many_who_write_first_lose_nothing(database: str) -> None:
    """Four workers, each with connections of its own, and two tasks each; nothing is there before."""

    async def write(tide: AsyncTidebase, who: str) -> None:
        session = TidebaseSession("s", tide)
        for n in range(2):
            await session.add_items(words(f"{who} {n} a", f"{who} {n} b"))

    tides = [AsyncTidebase(database, pool_size=2) for _ in range(4)]
    await asyncio.gather(*(write(tide, f"{n} {m}") for n, tide in enumerate(tides) for m in range(2)))
    found = [item["content"] for item in await TidebaseSession("s", tides[0]).get_items()]
    for tide in tides:
        await tide.close()
    assert sorted(found) == sorted(
        f"{n} {m} {k} {x}" for n in range(4) for m in range(2) for k in range(2) for x in "ab"
    )
    assert all(b == a[:-1] + "b" for a, b in zip(found[::2], found[1::2], strict=True))  # each write is whole
    for worker in {one[:3] for one in found}:
        assert [one[4] for one in found if one.startswith(worker)] == ["0", "0", "1", "1"]  # in its order


async def test_who_works_with_a_session_holds_it_for_a_turn(atide: AsyncTidebase, database: str) -> None:
    """Of two workers one is refused, or waits; what both say is one conversation."""
    began, go_on = asyncio.Event(), asyncio.Event()

    @function_tool
    async def look() -> str:
        began.set()
        await go_on.wait()
        return "seen"

    agent = Agent(name="a", model=Script([("look", {})]), tools=[look])
    session = TidebaseSession("s", atide)
    first = asyncio.create_task(atide.run("agent", workflow(agent, session=session), input="first"))
    await began.wait()
    async with AsyncTidebase(database) as other:
        refused = TidebaseSession("s", other, wait_s=0)
        with pytest.raises(RunHeld):
            await other.run("agent", workflow(agent, session=refused), run_id="r", input="second")
        waiting = asyncio.create_task(TidebaseSession("s", other).add_items(words("third")))
        go_on.set()
        assert await first == "seen"
        await waiting
        assert await other.run("agent", workflow(agent, session=refused), run_id="r") == "seen"
        items = await refused.get_items()
    assert [item.get("content") for item in items if item.get("role") == "user"] == ["first", "third", "second"]
    assert [item.get("type") for item in items].index("message") < items.index(words("third")[0])
    async with session, session:  # a turn inside of a turn is the same one
        await session.add_items(words("fourth"))
        with pytest.raises(RunHeld):
            await TidebaseSession("s", atide, wait_s=0).add_items(words("fifth"))


@pytest.mark.parametrize("lost", ["add", "pop", "clear"])
async def test_a_crash_between_a_write_and_its_checkpoint_does_not_repeat_it(
    atide: AsyncTidebase, monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    """Even when somebody else has written meanwhile."""

    class Crash(BaseException):
        """The process is gone."""

    async def converse(run: AsyncRun, input: Any) -> None:
        session, runner = TidebaseSession("s", atide), DurableRunner()
        if lost == "add":
            await runner.run(Agent(name="a", model=Script()), input, session=session)
            return
        recorded = _Recorded(session, _Work(runner, "a", "1"))
        results.append(await (recorded.pop_item() if lost == "pop" else recorded.clear_session()))

    results: list[Any] = []
    name = {"add": "write", "pop": "pop", "clear": "clear"}[lost]
    whole = getattr(TidebaseSession, name)

    async def dies(self: TidebaseSession, *arguments: Any) -> None:
        await whole(self, *arguments)
        raise Crash

    session = TidebaseSession("s", atide)
    await session.add_items(words("a", "b", "c"))
    with monkeypatch.context() as patch:
        patch.setattr(TidebaseSession, name, dies)
        with pytest.raises(Crash):
            await atide.run("converse", converse, run_id="r", input="hello")
    await session.add_items(words("z"))
    await atide.run("converse", converse, run_id="r")
    said = [item.get("content") for item in await session.get_items()]
    if lost == "add":
        assert said[:5] == ["a", "b", "c", "hello", "z"] and len(said) == 6
    elif lost == "pop":
        assert said == ["a", "b", "z"] and results == words("c")
    else:
        assert said == ["z"]
