"""Agents of Pydantic AI on runs: what is recorded is not asked or done again, and people are asked at gates."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from decimal import Decimal
from typing import Any, get_args

import psycopg
import pytest

from tidebase import (
    AsyncRun,
    AsyncTidebase,
    BudgetExhausted,
    InputMismatch,
    InvalidArgument,
    RunNeedsReview,
    RunSuspendedError,
    StepOutputDecodeError,
    Tidebase,
)

pydantic_ai = pytest.importorskip("pydantic_ai")

from pydantic_ai import (  # noqa: E402
    Agent,
    ApprovalRequired,
    CallDeferred,
    DeferredToolRequests,
    FunctionToolset,
    ModelResponse,
    ModelRetry,
    RunContext,
    TextPart,
    ToolCallPart,
)
from pydantic_ai.capabilities import RequestInput, SetToolMetadata  # noqa: E402
from pydantic_ai.durable_exec import CallToolResult  # noqa: E402
from pydantic_ai.exceptions import UserError  # noqa: E402
from pydantic_ai.messages import ModelMessage, RetryPromptPart, ToolReturnPart  # noqa: E402
from pydantic_ai.models.function import AgentInfo, DeltaToolCall, FunctionModel  # noqa: E402
from pydantic_ai.models.test import TestModel  # noqa: E402
from pydantic_ai.tools import DeferredToolResults, ToolDenied  # noqa: E402
from pydantic_ai.toolsets import DynamicToolset  # noqa: E402

from tidebase.integrations.pydantic_ai import (  # noqa: E402
    _RECORDED,
    TidebaseDurability,
    answer,
    idempotency_key,
    refuse,
    tool_contract,
)

ON_NEWEST = True


class Script:
    """A model that calls tools in a given order and then says what they returned; counts how often it was asked."""

    def __init__(self, *turns: list[tuple[str, dict[str, Any]]]) -> None:
        self.turns = turns
        self.asked = 0

    def __call__(self, messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        self.asked += 1
        turn = sum(isinstance(message, ModelResponse) for message in messages)
        if turn < len(self.turns):
            calls = enumerate(self.turns[turn])
            return ModelResponse(parts=[ToolCallPart(name, args, f"call-{turn}-{n}") for n, (name, args) in calls])
        said = (p for m in messages for p in m.parts if isinstance(p, ToolReturnPart | RetryPromptPart))
        return ModelResponse(parts=[TextPart(" ".join(str(part.content) for part in said))])

    @property
    def model(self) -> FunctionModel:
        return FunctionModel(self, model_name="gpt-4o-mini")


def workflow(agent: Agent[Any, Any], **options: Any) -> Callable[[AsyncRun, Any], Any]:
    async def run_agent(run: AsyncRun, input: Any) -> Any:
        return (await agent.run(input, **options)).output

    return run_agent


async def failed(tide: AsyncTidebase, run_id: str, function: Callable[..., Any]) -> BaseException:
    """Works on a run whose work fails, and returns why."""
    with pytest.raises(BaseException) as failure:
        await tide.run("agent", function, run_id=run_id, input="hello")
    return failure.value


async def test_nothing_that_is_recorded_is_asked_or_done_again(atide: AsyncTidebase) -> None:
    script, done = Script([("look", {"q": "a"}), ("note", {"q": "b"})], [("look", {"q": "c"})]), []
    agent = Agent(script.model, name="support", capabilities=[TidebaseDurability()])

    @agent.tool_plain
    async def look(q: str) -> str:
        done.append(f"look {q}")
        if q == "c" and len(done) == 3:
            raise ConnectionError
        return f"saw {q}"

    @agent.tool_plain(metadata=tool_contract(side_effects=["note"], idempotency_key="{q}/{call_id}/{run_id}"))
    def note(q: str) -> str:  # in a thread
        done.append(f"note {q} {idempotency_key()}")
        return f"noted {q}"

    assert isinstance(await failed(atide, "r", workflow(agent)), ConnectionError)
    assert await atide.run("agent", workflow(agent), run_id="r") == "saw a noted b saw c"
    # Tools of one answer are at work side by side.
    assert sorted(done[:2]) == ["look a", "note b b/call-0-1/r"] and done[2:] == ["look c", "look c"]
    assert script.asked == 3
    assert {step.name for step in await atide.runs.steps("r")} == {
        "support__model.request[1/1]",
        "support__function_toolset__<agent>.call_tool:look[1/call-0-0]",
        "support__function_toolset__<agent>.call_tool:note[1/call-0-1]",
        "support__model.request[1/2]",
        "support__function_toolset__<agent>.call_tool:look[1/call-1-0]",
        "support__model.request[1/3]",
    }
    note_step = await atide.runs.step("r", "support__function_toolset__<agent>.call_tool:note[1/call-0-1]")
    assert (note_step.idempotency_key, note_step.input) == ("b/call-0-1/r", {"tool": "note", "arguments": {"q": "b"}})
    # A fork asks nothing again, either.
    fork = await atide.runs.fork("r")
    assert await atide.run("agent", workflow(agent), run_id=fork.run_id) == "saw a noted b saw c"
    assert script.asked == 3


async def test_a_request_that_has_changed_is_not_answered_by_the_old_response(atide: AsyncTidebase) -> None:
    agent = Agent(Script([("look", {})]).model, name="a", capabilities=[TidebaseDurability()])

    @agent.tool_plain
    def look() -> str:
        raise ConnectionError

    @agent.instructions
    def today() -> str:
        return instructions

    instructions = "be kind"
    await failed(atide, "r", workflow(agent))
    instructions = "be brief"
    assert isinstance(await failed(atide, "r", workflow(agent)), InputMismatch)


async def test_outside_of_a_run_an_agent_is_as_it_was(tide: Tidebase) -> None:
    agent = Agent(TestModel(), name="a", capabilities=[TidebaseDurability()])
    assert (await agent.run("hello")).output == "success (no tool calls)"
    with pytest.raises(TypeError, match="AsyncTidebase"):
        await asyncio.to_thread(tide.run, "w", lambda run, input: agent.run_sync("hello"))


async def test_what_is_used_is_recorded_with_its_price_and_a_budget_ends_it(atide: AsyncTidebase) -> None:
    script = Script([("look", {})], [("look", {})])
    agent = Agent(script.model, name="a", capabilities=[TidebaseDurability()])

    @agent.tool_plain
    def look() -> str:
        return "seen"

    with pytest.raises(BudgetExhausted):
        await atide.run("agent", workflow(agent), run_id="r", input="hello", budget={"tokens": 100})
    spent = await atide.runs.usage("r")
    assert (spent.records, spent.unpriced, spent.cost_usd > Decimal(0)) == (2, 0, True)
    await atide.runs.set_budget("r", tokens=10_000)
    await atide.run("agent", workflow(agent), run_id="r")
    assert script.asked == 3 and (await atide.runs.usage("r")).records == 3
    steps = await atide.runs.usage_by_step("r")
    assert [row.step for row in steps] == [f"a__model.request[1/{n}]" for n in (1, 2, 3)]


async def test_an_approval_suspends_the_run_and_another_process_goes_on(atide: AsyncTidebase, database: str) -> None:
    """Approved, edited, rejected, a result from outside; and a tool that asks for its approval itself."""
    done: list[Any] = []

    def make() -> tuple[Agent[Any, Any], Script]:
        turns = [("send", {"to": t}) for t in ("ada", "bob", "eve")], [("wait", {}), ("drop", {"n": 3})]
        script = Script(*turns)
        agent = Agent(script.model, name="a", capabilities=[TidebaseDurability()])

        @agent.tool_plain(requires_approval=True, metadata=tool_contract(side_effects=["email"]))
        def send(to: str) -> str:
            done.append(to)
            return f"sent to {to}"

        @agent.tool_plain
        def wait() -> str:
            raise CallDeferred(metadata={"ticket": 7})

        @agent.tool(metadata=tool_contract(side_effects=["drop"]))
        def drop(ctx: RunContext, n: int) -> str:
            if not ctx.tool_call_approved:
                raise ApprovalRequired
            done.append(n)
            return f"dropped {n}"

        return agent, script

    agent, script = make()
    with pytest.raises(RunSuspendedError):
        await atide.run("agent", workflow(agent), run_id="r", input="hello")
    asked = sorted(await atide.gates.list(), key=lambda gate: gate.name)
    assert [(gate.name, gate.prompt, gate.data) for gate in asked] == [
        (f"a__approve:send[1/call-0-{n}]", "Approve send?", {"tool": "send", "arguments": {"to": to}})
        for n, to in enumerate(("ada", "bob", "eve"))
    ]
    await atide.gates.decide("r", asked[0].name, "approved", actor="ann")
    await atide.gates.decide("r", asked[1].name, "edited", payload={"to": "ben"})
    await atide.gates.decide("r", asked[2].name, "rejected", comment="not her")
    async with AsyncTidebase(database) as other:
        agent, second = make()
        with pytest.raises(RunSuspendedError):
            await other.run("agent", workflow(agent), run_id="r")
        assert sorted(done) == ["ada", "ben"]  # tools of one answer are at work side by side
        dropping, waiting = sorted(await other.gates.list(), key=lambda gate: gate.name, reverse=True)
        assert dropping.name == "a__approve:drop[1/call-1-1]" and waiting.data["metadata"] == {"ticket": 7}
        await other.gates.decide("r", dropping.name, "approved")
        await other.gates.decide("r", waiting.name, "responded", payload="it came")
        agent, third = make()
        output = await other.run("agent", workflow(agent), run_id="r")
    assert output == "sent to ada sent to ben not her it came dropped 3"
    assert sorted(done[:2]) == ["ada", "ben"] and done[2:] == [3] and script.asked + second.asked + third.asked == 3


async def test_what_may_have_taken_effect_is_reviewed_and_its_result_may_be_said(atide: AsyncTidebase) -> None:
    script, sent = Script([("send", {"to": "ada"}), ("look", {})]), []
    agent = Agent(script.model, name="a", capabilities=[TidebaseDurability()])

    @agent.tool_plain(metadata=tool_contract(side_effects=["email"], verified_by="the outbox"))
    async def send(to: str) -> str:
        sent.append(to)
        raise TimeoutError

    @agent.tool_plain
    async def look() -> str:
        return "seen"

    assert isinstance(await failed(atide, "r", workflow(agent)), TimeoutError)
    assert isinstance(await failed(atide, "r", workflow(agent)), RunNeedsReview)
    (review,) = await atide.runs.reviews()
    assert review.verified_by == "the outbox"
    await atide.runs.resolve_review("r", review.step, "accept", output={"kind": "letter"})
    assert await atide.run("agent", workflow(agent), run_id="r") == "{'kind': 'letter'} seen"
    assert sent == ["ada"] and script.asked == 2


async def test_what_tells_a_model_to_try_again_is_recorded_and_errors_are_not(atide: AsyncTidebase) -> None:
    script, tries = Script([("pick", {"n": 1})], [("pick", {"n": 2})], [("pick", {"n": 3})]), []
    agent = Agent(script.model, name="a", retries=3, capabilities=[TidebaseDurability()])

    @agent.tool_plain(metadata=tool_contract(retries=1, retry_delay_s=0.01))
    def pick(n: int) -> str:
        tries.append(n)
        if n < 2:
            raise ModelRetry("another one")
        if len(tries) == 2:
            raise ConnectionError
        return f"picked {n}"

    @agent.tool_plain(metadata={"tidebase": {"side_effect": ["x"]}})
    def misspelt() -> str:
        return ""

    output = await atide.run("agent", workflow(agent), run_id="r", input="hello")
    assert output == "another one picked 2 picked 3" and tries == [1, 2, 2, 3]
    script.turns = ([("misspelt", {})],)
    error = await failed(atide, "r2", workflow(agent))
    assert isinstance(error, TypeError) and "side_effects" in str(error)
    with pytest.raises(TypeError, match="side_effects"):
        tool_contract(side_effect=["x"])


async def test_a_key_that_cannot_be_made_is_refused_before_anything_is_done(atide: AsyncTidebase) -> None:
    agent = Agent(Script([("send", {"to": "ada"})]).model, name="a", capabilities=[TidebaseDurability()])

    @agent.tool_plain(metadata=tool_contract(side_effects=["email"], idempotency_key="{order}"))
    def send(to: str) -> str:
        raise AssertionError

    error = await failed(atide, "r", workflow(agent))
    assert isinstance(error, InvalidArgument) and "arguments (to)" in str(error)


async def test_toolsets_of_all_kinds_are_steps_also_those_of_one_run(atide: AsyncTidebase) -> None:
    from mcp.server.mcpserver import MCPServer
    from pydantic_ai.mcp import MCPToolset

    server, done = MCPServer("server"), list[str]()

    @server.tool()
    def remote() -> str:
        done.append("remote")
        return "over there"

    def named(name: str) -> FunctionToolset[Any]:
        def tool() -> str:
            done.append(name)
            return name

        tools = FunctionToolset[Any](id=name)
        tools.add_function(tool, name=name)
        return tools

    script = Script([(name, {}) for name in ("remote", "dynamic", "late", "late_dynamic")], [("late", {})])
    contract = SetToolMetadata[Any](tools=["remote"], tidebase={"side_effects": ["x"], "idempotency_key": "k"})
    agent = Agent(
        script.model,
        name="a",
        toolsets=[MCPToolset(server, id="mcp"), DynamicToolset(lambda _: named("dynamic"), id="dynamic")],
        capabilities=[contract, TidebaseDurability()],
    )

    def late() -> list[Any]:
        return [named("late"), DynamicToolset(lambda _: named("late_dynamic"), id="late_dynamic")]

    async def run_agent(run: AsyncRun, input: Any) -> Any:
        result = await agent.run(input, toolsets=late())
        if run.attempt == 1:
            raise ConnectionError
        return result.output

    assert isinstance(await failed(atide, "r", run_agent), ConnectionError)
    expected = "over there dynamic late late_dynamic late"
    assert await atide.run("agent", run_agent, run_id="r") == expected
    assert sorted(done) == ["dynamic", "late", "late", "late_dynamic", "remote"] and script.asked == 3
    remote_step = await atide.runs.step("r", "a__mcp_server__mcp.call_tool[1/call-0-0]")
    assert remote_step.idempotency_key == "k"
    names = {step.name.partition("[")[0] for step in await atide.runs.steps("r")}
    assert names == {  # what is stored by these names must be found by them for ever
        "a__model.request",
        "a__mcp_server__mcp.get_tools",
        "a__mcp_server__mcp.call_tool",
        "a__dynamic_toolset__dynamic.get_tools",
        "a__dynamic_toolset__dynamic.call_tool:dynamic",
        "a__dynamic_toolset__late_dynamic.get_tools",
        "a__dynamic_toolset__late_dynamic.call_tool:late_dynamic",
        "a__function_toolset__late.call_tool:late",
    }
    for again, problem in ((FunctionToolset([late]), "needs an `id`"), (named("mcp"), "has the `id`")):
        error = await failed(atide, f"r {problem}", workflow(agent, toolsets=[again]))
        assert isinstance(error, UserError) and problem in str(error)


async def test_a_stream_is_live_the_first_time_and_whole_the_second(atide: AsyncTidebase) -> None:
    """Events of the model reach their handler while it speaks; those of tools once, however often the run resumes."""
    released, heard, told = asyncio.Event(), [], []

    async def speak(messages: list[ModelMessage], info: AgentInfo) -> AsyncIterator[str | dict[int, DeltaToolCall]]:
        told.append(len(messages))
        if len(messages) == 1:
            yield {0: DeltaToolCall("look", "{}", tool_call_id="c")}
            return
        yield "salt "
        await asyncio.wait_for(released.wait(), 30)  # the handler has heard the first word by then
        yield "water"

    async def handler(ctx: RunContext, events: Any) -> None:
        async for event in events:
            heard.append(event.event_kind)
            if event.event_kind == "part_start" and getattr(event.part, "content", None) == "salt ":
                released.set()

    durability = TidebaseDurability[Any](event_stream_handler=handler)
    agent = Agent(FunctionModel(stream_function=speak), name="a", capabilities=[durability])

    @agent.tool_plain
    def look() -> str:
        return "seen"

    async def run_agent(run: AsyncRun, input: Any) -> Any:
        async with agent.run_stream(input) as stream:
            words = [word async for word in stream.stream_text(delta=True, debounce_by=None)]
        if run.attempt == 1:
            raise ConnectionError
        return words

    await failed(atide, "r", run_agent)
    first = list(heard)
    assert {"function_tool_call", "function_tool_result", "part_start"} <= set(first) and told == [1, 3]
    assert "".join(await atide.run("agent", run_agent, run_id="r")) == "salt water"
    assert heard == first and told == [1, 3]


async def test_who_asks_outside_gets_a_token_and_the_answer_ends_the_wait(atide: AsyncTidebase) -> None:
    script, tokens = Script([("send", {"to": "ada"})]), list[str]()
    decided: list[DeferredToolResults | None] = [None]

    def ask(ctx: RunContext, requests: DeferredToolRequests, token: str) -> DeferredToolResults | None:
        tokens.append(token)
        return decided[0]

    request = RequestInput[Any](ask, timeout=timedelta(days=7))
    agent = Agent(script.model, name="a", capabilities=[request, TidebaseDurability()])

    @agent.tool_plain(requires_approval=True)
    def send(to: str) -> str:
        return f"sent to {to}"

    async def wait(run_id: str) -> str:
        with pytest.raises(RunSuspendedError):
            await atide.run("agent", workflow(agent), run_id=run_id, input="hello")
        return tokens[-1]

    (token, other) = (await wait("answered"), await wait("refused"))
    assert (await answer(atide, token, {"approvals": {"call-0-0": True}}, actor="ada")).accepted
    await refuse(atide, other, "nobody is here")
    with pytest.raises(InvalidArgument):
        await answer(atide, "none", None)
    assert await atide.run("agent", workflow(agent), run_id="answered") == "sent to ada"
    assert "nobody is here" in await atide.run("agent", workflow(agent), run_id="refused")
    assert len(tokens) == 2  # nobody is asked again by who goes on
    decided[0] = DeferredToolResults(approvals={"call-0-0": ToolDenied("never")})
    assert await atide.run("agent", workflow(agent), run_id="at once", input="hello") == "never"
    assert await atide.gates.list() == []


async def test_without_gates_the_calls_are_the_output_and_in_this_process_one_waits(atide: AsyncTidebase) -> None:
    def make(durability: TidebaseDurability[Any]) -> Agent[Any, Any]:
        output = [str, DeferredToolRequests]
        agent = Agent(Script([("send", {})]).model, name="a", output_type=output, capabilities=[durability])

        @agent.tool_plain(requires_approval=True)
        def send() -> str:
            return "sent"

        return agent

    async def deferred(run: AsyncRun, input: Any) -> list[str]:
        result = await make(TidebaseDurability(gates=False)).run(input)
        return [call.tool_name for call in result.output.approvals]

    assert await atide.run("deferred", deferred, input="hello") == ["send"]
    patient = make(TidebaseDurability(suspend=False, gate={"timeout_s": 0.05, "default_decision": "approved"}))
    assert await atide.run("agent", workflow(patient), input="hello") == "sent"


async def test_agents_that_run_at_once_and_inside_of_tools_are_told_apart(atide: AsyncTidebase) -> None:
    """And one that was made durable for one run of it only."""
    inner_script, outer_script = Script([("look", {})]), Script([("ask", {})])
    inner = Agent(inner_script.model, name="inner", capabilities=[TidebaseDurability()])
    outer = Agent(outer_script.model, name="outer")
    tries = 0

    @inner.tool_plain
    def look() -> str:
        return "seen"

    @outer.tool_plain
    async def ask() -> str:
        nonlocal tries
        said = (await inner.run("look")).output
        tries += 1
        if tries <= 2:
            raise ConnectionError
        return f"it said {said}"

    async def run_agents(run: AsyncRun, input: Any) -> Any:
        runs = (outer.run(f"{n}", capabilities=[TidebaseDurability(run)]) for n in (1, 2))
        results = await asyncio.gather(*runs, return_exceptions=True)
        if run.attempt == 1:
            raise ConnectionError
        return [result.output for result in results] + [(await inner.run("once more")).output]

    await failed(atide, "r", run_agents)
    output = await atide.run("agent", run_agents, run_id="r")
    assert output == ["it said seen", "it said seen", "seen"]
    assert outer_script.asked == 4 and inner_script.asked == 6  # two inside of tools, one beside; none of them twice


def test_every_form_is_known_in_which_the_framework_records_what_a_tool_came_to() -> None:
    """What a person says in a review is told from them by its kind."""
    forms = get_args(get_args(CallToolResult)[0])
    assert {form.__dataclass_fields__["kind"].default for form in forms} == _RECORDED


async def test_what_is_stored_and_does_not_fit_is_no_mistake_of_the_models(
    atide: AsyncTidebase, db: psycopg.Connection[Any]
) -> None:
    script = Script([("send", {})])
    agent = Agent(script.model, name="a", capabilities=[TidebaseDurability()])

    @agent.tool_plain(metadata=tool_contract(side_effects=["x"]))
    def send() -> str:
        raise ConnectionError

    await failed(atide, "r", workflow(agent))
    await failed(atide, "r", workflow(agent))
    await atide.runs.resolve_review(
        "r", (await atide.runs.reviews())[0].step, "accept", output={"kind": "model_retry", "massage": "?"}
    )
    assert isinstance(await failed(atide, "r", workflow(agent)), StepOutputDecodeError)
    assert script.asked == 1
