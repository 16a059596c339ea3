"""Threads of LangGraph, where it is installed: what a conversation takes, beside its own saver for Postgres."""

from __future__ import annotations

import importlib.util
import random
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

from .harness import Bench, Row, scenario, spread

#: The tables of each saver.
THEIRS = ("checkpoints", "checkpoint_blobs", "checkpoint_writes")
OURS = ("threads", "thread_checkpoints", "thread_values", "thread_chunks", "thread_writes")


@dataclass
class Spoken:
    """How long the calls of a conversation took, in milliseconds, and what it takes in the database."""

    puts: list[float] = field(default_factory=list)
    calls: list[float] = field(default_factory=list)
    gets: list[float] = field(default_factory=list)
    first_gets: list[float] = field(default_factory=list)
    bytes: int = 0
    rows: int = 0

    def ends(self, times: list[float]) -> tuple[list[float], list[float]]:
        """The first and the last twentieth, without what only the very first calls cost."""
        some = max(len(times) // 20, 5)
        return times[some : 2 * some], times[-some:]


def milliseconds(work: Callable[[], Any]) -> float:
    begun = time.perf_counter()
    work()
    return (time.perf_counter() - begun) * 1000


def speak(bench: Bench, saver: Any, tables: tuple[str, ...], turns: int, calls: list[float]) -> Spoken:
    """So many turns of a chat, each with a question and an answer of about 400 letters: a checkpoint for either, and
    the writes of the task that answered. At both ends the thread is also read.
    """
    from langchain_core.messages import AIMessage, HumanMessage
    from langgraph.checkpoint.base.id import uuid6

    dice = random.Random(1)
    words = ["".join(dice.choices("abcdefghijklmnopqrstuvwxyz", k=dice.randint(2, 9))) for _ in range(3000)]
    spoken = Spoken()
    config: Any = {"configurable": {"thread_id": "conversation", "checkpoint_ns": ""}}
    newest = dict(config)
    messages: list[Any] = []
    version = None
    for turn in range(turns):
        for step, kind in ((2 * turn, HumanMessage), (2 * turn + 1, AIMessage)):
            message = kind(" ".join(dice.choices(words, k=60)), id=str(uuid6()))
            if step % 2:
                saver.put_writes(config, [("messages", [message])], str(uuid6()))
            messages = [*messages, message]
            version = saver.get_next_version(version, None)
            checkpoint: Any = {
                "v": 4,
                "id": str(uuid6(clock_seq=step)),
                "ts": "2026-01-01T00:00:00+00:00",
                "channel_values": {"messages": messages},
                "channel_versions": {"messages": version, "branch:to:model": version},
                "versions_seen": {"__input__": {}, "model": {"branch:to:model": version}},
                "updated_channels": ["messages"],
            }
            metadata: Any = {"source": "loop", "step": step, "parents": {}}
            calls.clear()
            begun = time.perf_counter()
            config = saver.put(config, checkpoint, metadata, {"messages": version})
            spoken.puts.append((time.perf_counter() - begun) * 1000)
            spoken.calls.append(sum(calls))
        if turn < 10:
            spoken.first_gets.append(milliseconds(lambda: saver.get_tuple(newest)))
    spoken.gets = [milliseconds(lambda: saver.get_tuple(newest)) for _ in range(10)]
    assert len(saver.get_tuple(newest).checkpoint["channel_values"]["messages"]) == 2 * turns
    for table in tables:
        spoken.bytes += bench.value(f"select pg_total_relation_size('{table}')")
        spoken.rows += bench.value(f"select count(*) from {table}")
    return spoken


def timed(saver: Any, calls: list[float]) -> None:
    """Notes how long the database takes for each call of a saver of ours."""
    execute = saver._database.execute

    def noted(call: Any) -> Any:
        begun = time.perf_counter()
        try:
            return execute(call)
        finally:
            calls.append((time.perf_counter() - begun) * 1000)

    saver._database.execute = noted


def official(bench: Bench) -> AbstractContextManager[Any]:
    if importlib.util.find_spec("langgraph.checkpoint.postgres") is None:
        return nullcontext()
    from langgraph.checkpoint.postgres import PostgresSaver

    return PostgresSaver.from_conn_string(bench.cluster.url)


@scenario
def a_conversation(bench: Bench) -> Iterator[Row]:
    """A chat of 1,000 turns in LangGraph: its bytes, its puts and gets at both ends, beside LangGraph's own saver."""
    if importlib.util.find_spec("langgraph") is None:
        print("  skipped: LangGraph is not installed (make bench PEERS=1)")
        return
    from tidebase import Tidebase
    from tidebase.integrations.langgraph import TidebaseSaver

    turns = bench.size(1000, 30)
    with Tidebase(bench.cluster.url) as tide, official(bench) as theirs:
        calls: list[float] = []
        saver = TidebaseSaver(tide)
        timed(saver, calls)
        ours = speak(bench, saver, tuple(f"tidebase.{name}" for name in OURS), turns, calls)
        first, last = ours.ends(ours.calls)
        yield beside("put in the database, the last beside the first", last, first, 1.5)
        first, last = ours.ends(ours.puts)
        yield beside("put with the serializer, the last beside the first", last, first)
        yield beside("get with the serializer, the last beside the first", ours.gets, ours.first_gets)
        if theirs is None:
            return
        theirs.setup()
        official_one = speak(bench, theirs, THEIRS, turns, [])
        bytes = ours.bytes / official_one.bytes
        note = f"{ours.bytes:,} bytes in {ours.rows:,} rows, theirs {official_one.bytes:,} in {official_one.rows:,}"
        yield spread("a conversation", "bytes, beside LangGraph's saver", [bytes], "x", 0.1, at_least=False, note=note)
        yield beside("all puts, beside LangGraph's saver", [sum(ours.puts)], [sum(official_one.puts)], 1)
        yield beside("the last puts, beside LangGraph's saver", last, official_one.ends(official_one.puts)[1], 1)
        yield beside("the last gets, beside LangGraph's saver", ours.gets, official_one.gets, 1)


def beside(what: str, times: list[float], others: list[float], bar: float | None = None) -> Row:
    """Times as a multiple of others, which are not to be much shorter."""
    other = statistics.median(others)
    note = f"{statistics.median(times):,.2f} ms, {other:,.2f} ms"
    return spread("a conversation", what, [one / other for one in times], "x", bar, at_least=False, note=note)
