"""What all adapters have in common: nobody pays for one who does not use it, their workers may be killed, and what
makes them safe is taken out, to see that their tests notice it.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Awaitable, Callable
from typing import Any
from uuid import uuid4

import pytest

from tidebase import AsyncRun, AsyncTidebase, RunSuspendedError
from tidebase.integrations import _openai_sessions, http, openai_agents, pydantic_ai
from tidebase.integrations.mcp import operating

from . import test_http, test_mcp, test_openai_agents, test_pydantic_ai
from .probes.agents import FRAMEWORKS, kill_agents
from .support.amounts import KILLED_AGENTS
from .support.patience import PATIENCE_S

ON_NEWEST = True
EXTRAS = {"pydantic_ai": "pydantic-ai", "openai_agents": "openai-agents"}


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_killed_agents_do_and_ask_nothing_twice(database: str, framework: str) -> None:
    """SIGKILL at any moment: each effect once, what was ambiguous decided by a person, no recorded question again."""
    found, figures = kill_agents(database, framework, KILLED_AGENTS.test, seed=7)
    assert found == [] and figures["kills"] >= KILLED_AGENTS.test


def test_no_adapter_is_imported_unasked_and_each_names_its_extra() -> None:
    code = f"""
import sys
import tidebase
frameworks = {{"pydantic_ai", "agents", "httpx", "pydantic"}}
assert not any(name.startswith("tidebase.integrations") for name in sys.modules)
assert not frameworks & set(sys.modules), frameworks & set(sys.modules)
for name, extra in {EXTRAS!r}.items():
    for framework in frameworks:
        sys.modules[framework] = None
    try:
        __import__(f"tidebase.integrations.{{name}}")
    except ImportError as error:
        assert f"tidebase-postgres[{{extra}}]" in str(error), error
    else:
        raise AssertionError(name)
import tidebase.integrations.http
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=PATIENCE_S)


# --- mechanisms taken out ---

Patch = pytest.MonkeyPatch
Probe = Callable[..., Awaitable[None]]


def not_a_step(module: Any, *parts: str) -> Callable[[Patch], None]:
    """Whatever has one of the parts in its name is done again at each attempt: no step of it is recorded."""

    def mutate(patch: Patch) -> None:
        whole = module.do_step

        async def do(run: Any, name: str, base: str, body: Any, options: Any, numbered: bool = False) -> Any:
            if any(part in name for part in parts):
                return await body(), True
            return await whole(run, name, base, body, options, numbered)

        patch.setattr(module, "do_step", do)

    return mutate


def no_contract(module: Any) -> Callable[[Patch], None]:
    """What a tool says about its side effects is not told to the database."""

    def mutate(patch: Patch) -> None:
        whole = module.options_of

        def options_of(contract: Any, *call: Any, **known: str) -> Any:
            return whole({name: value for name, value in contract.items() if name != "side_effects"}, *call, **known)

        patch.setattr(module, "options_of", options_of)

    return mutate


def the_same_request(module: Any, name: str) -> Callable[[Patch], None]:
    """Whatever is asked is taken for what was asked before."""
    return lambda patch: patch.setattr(module, name, lambda value: "same")


def read_before_the_lease(patch: Patch) -> None:
    """A session is read, then it is waited for, and then what was read is written back with the new items: of who
    begins at the same moment, all read before the first has written.
    """
    whole, read, everybody = _openai_sessions.TidebaseSession.write, 0, asyncio.Event()

    async def write(self: Any, items: Any, request: Any) -> None:
        nonlocal read
        if everybody.is_set():
            await whole(self, items, request)
            return
        there = await self.get_items()
        read += 1
        if read == 8:
            everybody.set()
        await everybody.wait()
        async with self._writing() as run:
            await self._write(run, "items/1/1", {"items": [*there, *items]}, request)
            await self._write(run, "head", {"epoch": 1, "pages": 1}, None)

    patch.setattr(_openai_sessions.TidebaseSession, "write", write)


def written_again(patch: Patch) -> None:
    """A write to a session has another id at each attempt."""
    recorded = openai_agents._Recorded

    async def once(self: Any, what: str, write: Any, said: str | None) -> Any:
        return await self._step(what, lambda: write(uuid4().hex), {"sha256": said})

    patch.setattr(recorded, "_once", once)


def read_anew(patch: Patch) -> None:
    """A resumed run reads a session as it is now, and not as it read it."""

    async def get_items(self: Any, limit: int | None = None) -> Any:
        return await self._session.get_items(limit)

    patch.setattr(openai_agents._Recorded, "get_items", get_items)


def whoever_has_a_key(patch: Patch) -> None:
    """Keys are not asked for their roles."""
    patch.setattr(operating._Desk, "entitled", lambda self, context, action: self.key(context))


async def roles_over_http(atide: AsyncTidebase, db: Any) -> None:
    with pytest.raises(RunSuspendedError):
        await atide.run("publish", test_mcp.publish, run_id="article-1", input="salt")
    await test_mcp.test_over_http_each_key_has_its_roles(atide, db)


async def approved_once(atide: AsyncTidebase) -> None:
    """What was approved is done once, also where the run must go through it again."""
    script, sent = test_openai_agents.Script([("send", {"to": "ada"})]), []

    @test_openai_agents.function_tool(needs_approval=True)
    @openai_agents.tool_contract(side_effects=["email"])
    def send(to: str) -> str:
        sent.append(to)
        return f"sent to {to}"

    agent: Any = test_openai_agents.Agent(name="a", model=script, tools=[send])

    async def work(run: AsyncRun, input: Any) -> Any:
        said = (await openai_agents.DurableRunner().run(agent, "hello")).final_output
        if run.attempt == 2:
            raise ConnectionError
        return said

    with pytest.raises(RunSuspendedError):
        await atide.run("agent", work, run_id="r")
    (gate,) = await atide.gates.list()
    await atide.gates.decide("r", gate.name, "approved")
    with pytest.raises(ConnectionError):
        await atide.run("agent", work, run_id="r")
    assert await atide.run("agent", work, run_id="r") == "sent to ada"
    assert (sent, script.asked) == (["ada"], 2)


async def reads_a_session_once(atide: AsyncTidebase) -> None:
    """A resumed run goes on from the conversation that it knew, whatever was said since."""
    script = test_openai_agents.Script()
    session = openai_agents.TidebaseSession("s", atide)

    async def work(run: AsyncRun, input: Any) -> Any:
        agent: Any = test_openai_agents.Agent(name="a", model=script)
        said = (await openai_agents.DurableRunner().run(agent, "hello", session=session)).final_output
        if run.attempt == 1:
            raise ConnectionError
        return said

    await session.add_items(test_openai_agents.words("before"))
    with pytest.raises(ConnectionError):
        await atide.run("agent", work, run_id="r")
    await session.add_items(test_openai_agents.words("since"))
    assert await atide.run("agent", work, run_id="r") == "hello" and script.asked == 1


async def once_of_a_session(atide: AsyncTidebase) -> None:
    with pytest.MonkeyPatch.context() as patch:
        await test_openai_agents.test_a_crash_between_a_write_and_its_checkpoint_does_not_repeat_it(atide, patch, "add")


#: What is taken out, and what must notice it.
MUTANTS: dict[str, tuple[Callable[[Patch], None], Probe]] = {
    "pydantic-ai: a recorded question is asked again": (
        not_a_step(pydantic_ai, "model.request"),
        test_pydantic_ai.test_nothing_that_is_recorded_is_asked_or_done_again,
    ),
    "pydantic-ai: an approved call is made again": (
        not_a_step(pydantic_ai, "call_tool"),
        test_pydantic_ai.test_an_approval_suspends_the_run_and_another_process_goes_on,
    ),
    "pydantic-ai: what may have taken effect is done again": (
        no_contract(pydantic_ai),
        test_pydantic_ai.test_what_may_have_taken_effect_is_reviewed_and_its_result_may_be_said,
    ),
    "pydantic-ai: another question gets the old answer": (
        the_same_request(pydantic_ai, "digest"),
        test_pydantic_ai.test_a_request_that_has_changed_is_not_answered_by_the_old_response,
    ),
    "pydantic-ai: a stream is asked for again": (
        not_a_step(pydantic_ai, "model.request_stream"),
        test_pydantic_ai.test_a_stream_is_live_the_first_time_and_whole_the_second,
    ),
    "openai-agents: a recorded question is asked again": (
        not_a_step(openai_agents, "model.request"),
        test_openai_agents.test_nothing_that_is_recorded_is_asked_or_done_again,
    ),
    "openai-agents: an approved call is made again": (not_a_step(openai_agents, "tool:"), approved_once),
    "openai-agents: what may have taken effect is done again": (
        no_contract(openai_agents),
        test_openai_agents.test_what_may_have_taken_effect_is_reviewed_and_its_result_may_be_said,
    ),
    "openai-agents: another question gets the old answer": (
        the_same_request(openai_agents, "digest"),
        test_openai_agents.test_a_changed_request_is_refused_and_a_used_up_budget_ends_it,
    ),
    "openai-agents: a stream is asked for again": (
        not_a_step(openai_agents, "model.request_stream"),
        test_openai_agents.test_a_stream_is_live_and_is_replayed_and_one_that_breaks_off_is_not_recorded,
    ),
    "openai-agents: sessions are read before they are held": (
        read_before_the_lease,
        test_openai_agents.test_many_who_write_first_lose_nothing,
    ),
    "openai-agents: a write to a session is repeated": (written_again, once_of_a_session),
    "openai-agents: a session is read as it is now": (read_anew, reads_a_session_once),
    "http: a recorded request is made again": (
        not_a_step(http, "http:"),
        test_http.test_a_response_is_recorded_and_given_back_as_it_was,
    ),
    "http: a stream is asked for again": (
        not_a_step(http, "http:"),
        test_http.test_a_stream_comes_live_and_is_recorded_when_it_is_whole,
    ),
    "http: another request gets the old response": (
        the_same_request(http, "digest"),
        test_http.test_another_request_is_another_step,
    ),
    "mcp: a key does whatever is allowed to any": (whoever_has_a_key, roles_over_http),
}


@pytest.mark.parametrize("mutant", MUTANTS)
async def test_what_is_taken_out_of_an_adapter_is_noticed(
    atide: AsyncTidebase, database: str, db: Any, monkeypatch: pytest.MonkeyPatch, mutant: str
) -> None:
    mutate, probe = MUTANTS[mutant]
    wanted = {"atide": atide, "database": database, "db": db}
    mutate(monkeypatch)
    with pytest.raises((Exception, pytest.fail.Exception)) as noticed:
        await probe(**{name: value for name, value in wanted.items() if name in probe.__annotations__})
    assert not isinstance(noticed.value, (AttributeError, NameError, TypeError))  # it still fits into its place


@pytest.mark.parametrize("probe", [approved_once, reads_a_session_once])
async def test_what_they_notice_by_holds_where_nothing_is_taken_out(atide: AsyncTidebase, probe: Probe) -> None:
    """The probes that are not tests themselves."""
    await probe(atide)
