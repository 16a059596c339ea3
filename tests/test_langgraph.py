"""LangGraph: a saver that does what its authors expect of one; threads that do not fork, and store nothing twice."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Annotated, Any, TypedDict

import psycopg
import pytest

from tidebase import (
    AsyncRun,
    AsyncTidebase,
    InvalidArgument,
    LeaseLost,
    LeaseLostError,
    NotSerializable,
    Run,
    RunFinal,
    RunHeld,
    RunNeedsReview,
    Tidebase,
    TidebaseError,
)
from tidebase.core import codec

pytest.importorskip("langgraph.checkpoint.conformance")

from langchain_core.messages import AIMessage, RemoveMessage, ToolMessage
from langgraph.channels.delta import DeltaChannel
from langgraph.checkpoint.conformance import checkpointer_test, validate
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.postgres import PostgresSaver
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.graph import START, StateGraph
from langgraph.graph.message import add_messages
from langgraph.types import Command, Send, interrupt

from tidebase.integrations.langgraph import (
    AsyncTidebaseSaver,
    TidebaseSaver,
    aimport_threads,
    durable,
    import_threads,
    nodes,
    task_key,
)
from tidebase.integrations.langgraph.values import Memory, pieces, split

from .conftest import Server, long
from .probes import graphs
from .probes import threads as probes
from .support.amounts import KILLED_GRAPHS, RACED_GRAPHS
from .test_pooler import pooler

ON_NEWEST = True


async def conformance(name: str, make: Any) -> dict[str, tuple[int, list[str]]]:
    """What the suite of LangGraph's authors says about each capability: how many passed, and which failed."""

    async def savers() -> AsyncIterator[Any]:
        yield make()

    report = await validate(checkpointer_test(name=name)(savers))  # type: ignore[arg-type]
    return {name: (result.tests_passed, result.failures) for name, result in report.results.items()}


ALL = {
    "put": (17, []),
    "put_writes": (10, []),
    "get_tuple": (10, []),
    "list": (16, []),
    "delete_thread": (5, []),
    "delete_for_runs": (7, []),
    "copy_thread": (8, []),
    "prune": (8, []),
}


def test_whoever_does_without_it_does_not_import_it() -> None:
    code = (
        "import sys, tidebase.cli.main; sys.exit('langgraph' in sys.modules or 'tidebase.integrations' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


async def test_the_suite_of_langgraphs_authors_passes(tide: Tidebase) -> None:
    assert await conformance("TidebaseSaver", lambda: TidebaseSaver(tide)) == ALL


async def test_the_suite_passes_behind_a_pooler(server: Server, database: str, tmp_path: Path) -> None:
    with pooler(server, database, tmp_path) as url, Tidebase(url) as tide:
        assert await conformance("TidebaseSaver", lambda: TidebaseSaver(tide)) == ALL


async def test_the_suite_passes_for_asyncio_behind_a_pooler(server: Server, database: str, tmp_path: Path) -> None:
    with pooler(server, database, tmp_path) as url:
        async with AsyncTidebase(url) as atide:
            assert await conformance("AsyncTidebaseSaver", lambda: AsyncTidebaseSaver(atide)) == ALL


@pytest.mark.parametrize(
    "probe",
    [
        probes.one_goes_on,
        probes.one_begins,
        probes.branches_on_purpose,
        probes.nobody_else_writes,
        probes.who_was_replaced_writes_nothing,
        probes.shared_values_stay,
        probes.a_base_has_its_version,
        probes.a_deletion_waits,
    ],
    ids=lambda probe: probe.__name__,
)
def test_a_thread_withstands(probe: Callable[[str], list[str]], database: str) -> None:
    assert probe(database) == []


@long
def test_processes_are_killed_and_meet_on_one_thread(database: str) -> None:
    """No node that was recorded runs again, each effect happens once; of two on one thread one is refused."""
    assert graphs.attacked(database, KILLED_GRAPHS.test, RACED_GRAPHS.test) == []


# --- Values -----------------------------------------------------------------------------------------------------------


def changed(dice: random.Random, items: list[Any]) -> list[Any]:
    """What may become of a list in a step."""
    new = [{"n": dice.random(), "text": "x" * dice.randint(0, 300), "nul": "\0"} for _ in range(dice.randint(0, 3))]
    place = dice.randint(0, len(items))
    return dice.choice(
        [
            items + new,
            items + new,
            items + new,
            items[:place] + new + items[place:],
            items[:place] + new + items[place + 1 :],
            items[place:] + new,
            items[:1] + items[place:] + new,
            items[::-1],
            new,
        ]
    )


@pytest.mark.parametrize("seed", range(20))
def test_a_value_is_put_together_from_pieces_of_the_one_before(seed: int) -> None:
    dice, serde = random.Random(seed), JsonPlusSerializer()
    items: list[Any] = []
    body = b""
    for _ in range(60):
        items = changed(dice, items)
        kind, data = serde.dumps_typed(items)
        head, new = split(kind, data)
        found = pieces(body, new)
        made = b"".join(piece if isinstance(piece, bytes) else body[piece[0] : piece[1]] for piece in found)
        assert made == new and serde.loads_typed((kind, head + made)) == items
        body = new


def a_checkpoint(number: int, values: dict[str, Any], versions: dict[str, str]) -> Any:
    return {
        "v": 4,
        "id": f"{number:06d}",
        "ts": "",
        "channel_values": values,
        "channel_versions": versions,
        "versions_seen": {},
        "updated_channels": None,
    }


def test_whatever_becomes_of_lists_they_come_back(tide: Tidebase, db: psycopg.Connection[Any]) -> None:
    """Of two savers, of which one forgets everything; branches go on from any checkpoint; chunks of all kinds."""
    dice = random.Random(3)
    saver, forgetful, reader = (TidebaseSaver(tide) for _ in range(3))
    forgetful._memory = Memory(0)
    history: list[tuple[Any, dict[str, Any], dict[str, str]]] = [(None, {}, {})]
    for number in range(150):
        parent, before, versions = history[-1] if dice.random() < 0.8 else dice.choice(history)
        values = {**before, dice.choice("abc"): dice.choice([b"\0", None, "y" * 300, {"z": 1.0}, 7])}
        values["list"] = changed(dice, values.get("list", []))
        if number == 80:
            values["list"] = [{"text": "long " * 5000} for _ in range(20)]
        other = [name for name in values if name not in before or values[name] is not before[name]]
        new = {name: saver.get_next_version(versions.get(name)) for name in other}
        config = {"configurable": {"thread_id": "t", "checkpoint_ns": "", "checkpoint_id": parent}}
        chosen = dice.choice([saver, saver, forgetful])
        made = a_checkpoint(number, values, {**versions, **new})
        put = chosen.put(config, made, {"source": "fork"}, new)  # type: ignore[arg-type]
        history.append((put["configurable"]["checkpoint_id"], values, {**versions, **new}))
    for row in reader.list({"configurable": {"thread_id": "t"}}):
        assert row.checkpoint["channel_values"] == history[int(row.checkpoint["id"]) + 1][1]
    ranges = db.execute("select max(cardinality(parts)) from tidebase.thread_values").fetchone()
    assert ranges is not None and 1 < ranges[0] <= 64
    saver.copy_thread("t", "copy")
    saver.prune(["t"])
    (last,) = reader.list({"configurable": {"thread_id": "t"}})
    assert last.checkpoint["channel_values"] == history[-1][1]
    assert len(list(reader.list(None))) == 151


def test_a_conversation_is_stored_once(tide: Tidebase, db: psycopg.Connection[Any]) -> None:
    """Its messages, and a row for each checkpoint: not the list of messages for each of them."""
    saver = TidebaseSaver(tide)
    config: Any = {"configurable": {"thread_id": "t", "checkpoint_ns": ""}}
    messages: list[str] = []
    version = None
    for number in range(100):
        messages = [*messages, f"{number} ".ljust(1000, "x")]
        version = saver.get_next_version(version)
        made = a_checkpoint(number, {"messages": messages}, {"messages": version})
        config = saver.put(config, made, {}, {"messages": version})
    query = """select (select sum(octet_length(content)) from tidebase.thread_chunks),
      (select max(cardinality(parts)) from tidebase.thread_values)"""
    assert db.execute(query).fetchone() == (100 * 1003, 1)


class Chat:
    """A list of messages that is put again and again."""

    def __init__(self, saver: TidebaseSaver) -> None:
        self.saver = saver
        self.config: Any = {"configurable": {"thread_id": "t"}}
        self.version: str | None = None
        self.number = 0

    def put(self, messages: Any) -> None:
        self.version, self.number = self.saver.get_next_version(self.version), self.number + 1
        made = a_checkpoint(self.number, {"messages": messages}, {"messages": self.version})
        self.config = self.saver.put(self.config, made, {}, {"messages": self.version})

    def got(self, saver: TidebaseSaver | None = None) -> Any:
        found = (saver or self.saver).get_tuple({"configurable": {"thread_id": "t"}})
        assert found is not None
        return found.checkpoint["channel_values"]["messages"]


def test_of_a_chat_only_what_is_new_is_serialized_sent_and_read(
    tide: Tidebase, monkeypatch: pytest.MonkeyPatch
) -> None:
    dumps, loads, execute = JsonPlusSerializer.dumps_typed, JsonPlusSerializer.loads_typed, tide._database.execute
    dumped, loaded, answers = [0], [0], []

    def noted_dumps(self: Any, value: Any) -> Any:
        found = dumps(self, value)
        dumped[0] += len(found[1])
        return found

    def noted_loads(self: Any, data: Any) -> Any:
        loaded[0] += len(data[1])
        return loads(self, data)

    def noted(call: Any) -> Any:
        answers.append(execute(call))
        return answers[-1]

    monkeypatch.setattr(JsonPlusSerializer, "dumps_typed", noted_dumps)
    monkeypatch.setattr(JsonPlusSerializer, "loads_typed", noted_loads)
    monkeypatch.setattr(tide._database, "execute", noted)
    reader, chat = TidebaseSaver(tide), Chat(TidebaseSaver(tide))
    messages: list[Any] = []
    for number in range(12):
        messages = [*messages, AIMessage("x" * 2000, id=str(number), tool_calls=[])]
        dumped[0] = loaded[0] = 0
        chat.put(messages)
        assert chat.got(reader) == messages
        assert 2000 < dumped[0] < 4000 and 2000 < loaded[0] < 4500 and len(answers[-1][0].bodies[0]) < 3000
        messages = chat.got() if number % 2 else messages


@pytest.mark.parametrize(
    "change",
    [
        lambda message: setattr(message, "content", "other"),
        lambda message: message.additional_kwargs.update(new=1),
        lambda message: message.response_metadata["deep"].append({"a": 1}),
        lambda message: message.tool_calls.clear(),
        lambda message: setattr(message, "extra", ["more"]),
    ],
    ids=["content", "a dict", "deep inside", "calls", "a field of its own"],
)
def test_a_message_may_be_changed_in_place(tide: Tidebase, change: Callable[[Any], None]) -> None:
    """Then it is stored so; and whoever has read it before has one of his own."""
    chat = Chat(TidebaseSaver(tide))
    calls: Any = [{"name": "t", "args": {"a": [1]}, "id": "1", "type": "tool_call"}]
    messages: list[Any] = [
        AIMessage("one", id="1", response_metadata={"deep": []}, tool_calls=calls),
        AIMessage("two", id="2"),
    ]
    chat.put(messages)
    first, second = chat.got(), chat.got()
    assert first == second == messages
    change(first[0])
    assert second == chat.got() == messages != first
    second = chat.got()
    for changed in (messages, second):
        change(changed[0])
        chat.put([*changed, AIMessage("three", id="3")])
        assert chat.got() == chat.got(TidebaseSaver(tide)) == [*changed, AIMessage("three", id="3")]
        second = chat.got()


class Chatty(AIMessage):
    """A message of which others have not heard."""


@pytest.mark.parametrize(
    "item",
    [
        AIMessage("\0", additional_kwargs={"a": float("inf"), "b": (1, 2)}),
        AIMessage("\ud800", additional_kwargs={"nan": float("nan")}),
        AIMessage("odd", additional_kwargs={"a": object}),
        ToolMessage("odd", tool_call_id="1", artifact=Path("a")),
        Chatty("mine"),
        {"role": "user"},
        None,
        [AIMessage("inside")],
    ],
    ids=["nul", "surrogate and nan", "a class", "an artifact", "a subclass", "a dict", "none", "a list"],
)
def test_whatever_is_in_a_list_comes_back_as_with_langgraphs_own(tide: Tidebase, item: Any) -> None:
    serde, chat = JsonPlusSerializer(), Chat(TidebaseSaver(tide))
    try:
        expected = serde.loads_typed(serde.dumps_typed([AIMessage("a"), item, item]))
    except Exception as error:
        with pytest.raises(type(error)):
            chat.put([AIMessage("a"), item])
        return
    first = AIMessage("a")
    for more in ([first], [first, item], [first, item, item]):
        chat.put(more)
        chat.got()
    assert repr(chat.got()) == repr(chat.got(TidebaseSaver(tide))) == repr(expected)


def test_what_was_rolled_back_is_not_built_on(tide: Tidebase, database: str) -> None:
    """Its number is given to another value, which is not taken for it."""
    with psycopg.connect(database) as connection:
        chat = Chat(TidebaseSaver(tide.bind(connection)))
        chat.put(["x" * 100])
        connection.commit()
        other = Chat(TidebaseSaver(tide))
        other.config, other.version, other.number = chat.config, chat.version, 1
        chat.put(["x" * 100, "lost" * 100])
        connection.rollback()
        other.put(["x" * 100, "kept" * 100])
        chat.config, chat.version = other.config, other.version
        chat.put(["x" * 100, "lost" * 100, "more" * 100])
        connection.commit()
        assert chat.got() == other.got() == ["x" * 100, "lost" * 100, "more" * 100]


def test_what_cannot_be_stored_is_said(tide: Tidebase, db: psycopg.Connection[Any]) -> None:
    saver = TidebaseSaver(tide)
    db.execute("insert into tidebase_private.settings values ('max_payload_bytes', '1000000')")

    def put(thread_id: str, values: dict[str, Any], **metadata: Any) -> None:
        made = a_checkpoint(1, values, dict.fromkeys(values, "1"))
        saver.put({"configurable": {"thread_id": thread_id}}, made, metadata, made["channel_versions"])  # type: ignore[arg-type]

    with pytest.raises(InvalidArgument, match="contents must take no more than 1000000 bytes"):
        put("t", {"a": ["x" * 1000001]})
    with pytest.raises(InvalidArgument, match="thread_id must be a text of 1 to 255 bytes"):
        put("t" * 256, {})
    with pytest.raises(InvalidArgument):
        put("t\0", {})
    with pytest.raises(NotSerializable):
        put("t", {}, odd=object())
    with pytest.raises(InvalidArgument, match="has no thread"):
        saver.get_tuple({})
    with pytest.raises(InvalidArgument, match="strategy"):
        saver.prune(["t"], strategy="none")
    with pytest.raises(InvalidArgument, match="a list of threads"):
        saver.prune("t")
    assert saver.get_tuple({"configurable": {"thread_id": "t"}}) is None


# --- Graphs -----------------------------------------------------------------------------------------------------------


class State(TypedDict, total=False):
    messages: Annotated[list[Any], add_messages]
    notes: Annotated[list[str], DeltaChannel(lambda notes, more: [*notes, *(n for new in more for n in new)], list)]
    total: int
    asked: str


def a_graph(saver: Any) -> Any:
    """Messages, a subgraph with a memory, parallel tasks that are sent, a question, a channel of differences."""
    inner = StateGraph(State)
    inner.add_node("count", lambda state: {"total": state.get("total", 0) + 1, "notes": ["counted"]})
    inner.add_edge(START, "count")
    builder = StateGraph(State)
    builder.add_node("inner", inner.compile(checkpointer=True))
    builder.add_node("model", lambda state: {"messages": [AIMessage("é\0", id=f"a{len(state['messages'])}")]})
    builder.add_node("each", lambda one: {"notes": [one["note"]]})
    builder.add_node("ask", lambda state: {"asked": interrupt("sure?")})
    builder.add_edge(START, "inner")
    builder.add_edge("inner", "model")
    sent = [Send("each", {"note": f"note {number}"}) for number in range(3)]
    builder.add_conditional_edges("model", lambda state: sent, ["each"])
    builder.add_edge("each", "ask")
    return builder.compile(checkpointer=saver)


def told(state: Any) -> Any:
    messages = [(m.type, m.content) for m in state.values.get("messages", [])]
    # With durability="exit" an early LangGraph keeps the writes of parallel tasks in no particular order, in any saver.
    notes = [
        sorted(turn) for _, turn in itertools.groupby(state.values.get("notes", []), lambda note: note == "counted")
    ]
    values = {**state.values, "messages": messages, "notes": notes}
    return values, state.next, {k: v for k, v in state.metadata.items() if k != "parents"}, len(state.tasks)


def lived(saver: Any) -> Any:
    """What a graph has behind it after two turns, a correction, and another end of the first turn."""
    graph, config = a_graph(saver), {"configurable": {"thread_id": "t"}}
    graph.invoke({"messages": [("user", "one")]}, config)
    graph.invoke(Command(resume="yes"), config)
    middle = graph.get_state(config).config
    graph.invoke({"messages": [("user", "two")]}, config, durability="exit")
    graph.update_state(config, {"messages": [RemoveMessage("a1")], "total": 10})
    graph.invoke(Command(resume="no"), config, durability="sync")
    graph.invoke({"messages": [("user", "other")]}, middle)
    graph.invoke(Command(resume="maybe"), config)
    found = [told(state) for state in graph.get_state_history(config)]
    last = graph.get_state(config)
    assert told(last) == found[0]
    return found, told(last)


def test_a_graph_lives_as_with_langgraphs_own_saver(tide: Tidebase, db: psycopg.Connection[Any]) -> None:
    saver = TidebaseSaver(tide)
    assert lived(saver) == lived(InMemorySaver())
    graph, config = a_graph(saver), {"configurable": {"thread_id": "t"}}
    before = graph.get_state(config)
    assert before.values["notes"][-3:] == ["note 0", "note 1", "note 2"]
    saver.prune(["t"])
    assert graph.get_state(config).values == before.values  # with the checkpoints that notes are made from
    graph.invoke({"messages": [("user", "more")]}, config)
    assert graph.get_state(config).values["notes"][: len(before.values["notes"])] == before.values["notes"]


async def test_a_graph_lives_in_asyncio_too(atide: AsyncTidebase) -> None:
    saver = AsyncTidebaseSaver(atide)
    assert await asyncio.to_thread(lived, saver) == lived(InMemorySaver())
    graph, config = a_graph(saver), {"configurable": {"thread_id": "asynchronous"}}
    await graph.ainvoke({"messages": [("user", "one")]}, config)
    state = await graph.ainvoke(Command(resume="yes"), config)
    assert state["asked"] == "yes" and state["total"] == 1
    assert len([row async for row in saver.alist(config)]) > 3
    with pytest.raises(TidebaseError, match="would block the event loop"):
        saver.get_tuple(config)  # type: ignore[arg-type]
    await asyncio.to_thread(saver.copy_thread, "asynchronous", "copy")
    await asyncio.to_thread(saver.prune, ["copy"])
    await asyncio.to_thread(saver.delete_for_runs, ["none"])
    await asyncio.to_thread(saver.delete_thread, "copy")


def test_whoever_claims_a_thread_has_it_alone(tide: Tidebase, database: str) -> None:
    saver, stranger = TidebaseSaver(tide), TidebaseSaver(Tidebase(database, lease_s=60))
    graph, theirs = (a_graph(saver) for saver in (saver, stranger))
    config: Any = {"configurable": {"thread_id": "t"}}
    with saver.claim("t"):
        graph.invoke({"messages": [("user", "one")]}, config)
        with pytest.raises(LeaseLost):
            theirs.invoke({"messages": [("user", "two")]}, config)
        with pytest.raises(RunHeld), stranger.claim("t", wait_s=0):
            pass
        with pytest.raises(LeaseLost):
            stranger.delete_thread("t")
    theirs.invoke(Command(resume="yes"), config)
    with stranger.claim("t"), pytest.raises(ZeroDivisionError), stranger.claim("u"):
        raise ZeroDivisionError
    with stranger.claim("u"):
        pass
    saver.delete_thread("t")
    assert [run.run_id for run in tide.runs.list()] == ["langgraph:u"]
    stranger.tide.close()


def test_a_run_may_have_its_threads_alone(tide: Tidebase) -> None:
    savers = []

    def work(run: Run, input: Any) -> None:
        savers.append(TidebaseSaver(tide, run=run))
        a_graph(savers[0]).invoke({"messages": []}, {"configurable": {"thread_id": "t"}})
        with pytest.raises(LeaseLost):
            TidebaseSaver(tide).delete_thread("t")

    tide.run("w", work, run_id="r")
    with pytest.raises(RunFinal):
        savers[0].delete_thread("t")
    TidebaseSaver(tide).delete_thread("t")


async def test_a_thread_is_claimed_in_asyncio(atide: AsyncTidebase) -> None:
    async def work(run: AsyncRun, input: Any) -> None:
        await AsyncTidebaseSaver(atide, run=run).adelete_thread("t")

    saver, config = AsyncTidebaseSaver(atide), {"configurable": {"thread_id": "t"}}
    async with saver.claim("t") as session:
        await a_graph(saver).ainvoke({"messages": []}, config)
        assert session.run_id == "langgraph:t"
        with pytest.raises(LeaseLost):
            await AsyncTidebaseSaver(atide).adelete_thread("t")
        with pytest.raises(LeaseLostError):
            await atide.run("w", work)
    await atide.run("w", work)
    assert await saver.aget_tuple(config) is None  # type: ignore[arg-type]


# --- Durable nodes ----------------------------------------------------------------------------------------------------


class Bank:
    """Charges a card; its answers may get lost."""

    def __init__(self) -> None:
        self.charges: list[str] = []
        self.lost = 1

    def charge(self, state: State) -> State:
        self.charges.append(task_key())
        if self.lost:
            self.lost -= 1
            raise TimeoutError
        return {"messages": [AIMessage("charged", id="c")], "total": 1}

    async def acharge(self, state: State) -> State:
        return await asyncio.to_thread(self.charge, state)


def one_node(node: Any, saver: Any) -> Any:
    builder = StateGraph(State)
    builder.add_node("node", node)
    builder.add_edge(START, "node")
    return builder.compile(checkpointer=saver)


CONFIG: Any = {"configurable": {"thread_id": "t"}}


def test_a_node_that_may_have_taken_effect_waits_for_a_person(tide: Tidebase) -> None:
    bank = Bank()
    graph = one_node(durable(bank.charge, "charge", side_effects=["card"]), TidebaseSaver(tide))
    with pytest.raises(TimeoutError):
        graph.invoke({"messages": []}, CONFIG)
    with pytest.raises(RunNeedsReview):
        graph.invoke(None, CONFIG)
    (review,) = tide.runs.reviews()
    assert (review.run_id, review.step) == (bank.charges[0], "charge")
    tide.runs.resolve_review(review.run_id, "charge", "accept", output={"total": 5})
    assert graph.invoke(None, CONFIG)["total"] == 5
    assert len(bank.charges) == 1
    graph.invoke({"messages": []}, CONFIG)
    assert len(set(bank.charges)) == 2


def test_a_node_with_a_key_is_executed_again(tide: Tidebase) -> None:
    bank = Bank()
    node = durable(bank.charge, side_effects=["card"], idempotency_key=lambda state: task_key())
    graph = one_node(node, TidebaseSaver(tide))
    with pytest.raises(TimeoutError):
        graph.invoke({"messages": []}, CONFIG)
    state = graph.invoke(None, CONFIG)
    assert [message.content for message in state["messages"]] == ["charged"]
    assert len(bank.charges) == 2 and len(set(bank.charges)) == 1
    assert tide.runs.get(bank.charges[0]).metadata == {"thread_id": "t", "node": "charge"}


async def test_nodes_are_durable_in_asyncio(atide: AsyncTidebase) -> None:
    for method in ("charge", "acharge"):
        bank = Bank()
        node = durable(getattr(bank, method), "charge", side_effects=["card"], retries=1, idempotency_key=method)
        config: Any = {"configurable": {"thread_id": method}}
        bank.lost = 0
        state = await one_node(node, AsyncTidebaseSaver(atide)).ainvoke({"messages": []}, config)
        assert state["total"] == 1 and len(bank.charges) == 1


async def test_what_cannot_be_durable_is_said(tide: Tidebase) -> None:
    bank = Bank()
    with pytest.raises(InvalidArgument, match="compiled with a TidebaseSaver"):
        one_node(durable(bank.charge), InMemorySaver()).invoke({"messages": []}, CONFIG)
    with pytest.raises(InvalidArgument, match="durability"):
        one_node(durable(bank.charge), TidebaseSaver(tide)).invoke({"messages": []}, CONFIG, durability="exit")
    with pytest.raises(InvalidArgument, match="needs an AsyncTidebaseSaver"):
        await one_node(durable(bank.acharge), TidebaseSaver(tide)).ainvoke({"messages": []}, CONFIG)
    with pytest.raises(InvalidArgument, match="interrupt"):
        asking = durable(lambda state: {"asked": interrupt("?")}, "ask")
        one_node(asking, TidebaseSaver(tide)).invoke({"messages": []}, {"configurable": {"thread_id": "u"}})
    with pytest.raises(TypeError, match="side_effect"):
        durable(bank.charge, side_effect=["card"])  # type: ignore[call-arg]
    assert bank.charges == []


@pytest.mark.parametrize(
    "value",
    [None, {"a": [1, "é", 1.5, True]}, {"a": 1.0}, (1, 2), [b"\0"], {"a": "\0"}, 2**60, {1: 2}, {nodes._SERIALIZED: 1}],
    ids=repr,
)
def test_what_a_node_returns_comes_back_as_it_was(value: Any) -> None:
    serde = JsonPlusSerializer()
    kept = json.loads(codec.encode(nodes._kept(value, serde)))
    back = nodes._back(kept, serde)
    assert repr(back) == repr(list(value) if isinstance(value, tuple) else value)


# --- Moving over ------------------------------------------------------------------------------------------------------


def test_threads_of_the_official_saver_are_taken_over(tide: Tidebase, database: str) -> None:
    """With branches, subgraphs and pending writes; and once more, when it was cut off."""
    with PostgresSaver.from_conn_string(database) as official:
        official.setup()
        lived(official)
        a_graph(official).invoke({"messages": [("user", "asked")]}, {"configurable": {"thread_id": "u"}})
        saver = TidebaseSaver(tide)
        import_threads(official, saver, ["t"])
        assert import_threads(official, saver) == import_threads(official, saver) > 10
        for thread_id in ("t", "u"):
            config: Any = {"configurable": {"thread_id": thread_id}}
            theirs, ours = ([told(s) for s in a_graph(s).get_state_history(config)] for s in (official, saver))
            assert theirs == ours
        assert a_graph(saver).invoke(Command(resume="yes"), config)["asked"] == "yes"


async def test_threads_are_taken_over_in_asyncio(atide: AsyncTidebase) -> None:
    memory = InMemorySaver()
    history, _ = await asyncio.to_thread(lived, memory)
    saver = AsyncTidebaseSaver(atide)
    assert await aimport_threads(memory, saver, ["t"]) > len(history)
    assert [told(state) async for state in a_graph(saver).aget_state_history(CONFIG)] == history
