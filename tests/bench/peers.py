"""Others that keep checkpoints in Postgres, where they are installed (the extra ``bench``)."""

from __future__ import annotations

import functools
import importlib.util
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import psycopg

from .harness import PAYLOAD, Bench, Row, insert, rate, scenario, spread, take_turns
from .steps import in_a_run


@dataclass(frozen=True)
class Peer:
    """Who is measured: what does some steps and returns their rate, how many, and where its tables are."""

    work: Callable[[], float]
    count: int
    url: str


@functools.cache
def _installed(url: str, count: int) -> dict[str, Peer]:
    """The peers that are there; made once, for DBOS can be launched once in a process."""
    found: dict[str, Peer] = {}
    if importlib.util.find_spec("dbos"):
        there = url.replace("@/postgres", "@/dbos_bench")
        found["DBOS"] = Peer(dbos(url, there, count), count, there)
    if importlib.util.find_spec("langgraph"):
        found["LangGraph PostgresSaver"] = Peer(langgraph(url, count), count, url)
    return found


@scenario
def peers(bench: Bench) -> Iterator[Row]:
    """Steps of DBOS and of LangGraph with its PostgresSaver, on the same server, beside the same insert."""
    bench.floor()
    count = bench.size(100, 10)
    variants = {who: peer.work for who, peer in _installed(bench.cluster.url, count).items()}
    if not variants:
        print("  skipped: none is installed (make bench PEERS=1)")
        return
    turns = take_turns(bench, lambda: rate(count, lambda: insert(bench.connection, count)), variants)
    for variant in variants:
        yield turns.row("peers", variant, None)


@scenario
def held_snapshot(bench: Bench) -> Iterator[Row]:
    """Steps a second before, while, and after another session keeps a snapshot, of Tidebase and of each peer: a minute,
    two and one with --long. With what was dead in the tables at the end of it, and how they grew.
    """
    before, during, after = (60, 120, 60) if bench.long else (bench.size(5, 0), bench.size(10, 0), bench.size(5, 0))
    count = bench.size(100, 10)
    ours = Peer(lambda: in_a_run(bench, count), count, bench.cluster.url)
    for who, peer in {"Tidebase": ours, **_installed(bench.cluster.url, count)}.items():
        with psycopg.connect(peer.url, autocommit=True) as watcher:
            peer.work()
            first, size = _for(peer, before), _size(watcher)
            with psycopg.connect(peer.url) as old:
                old.execute("set transaction isolation level repeatable read")
                old.execute("select count(*) from pg_class")
                second, dead, grown = _for(peer, during), _dead(watcher), _size(watcher)
            third = _for(peer, after)
        note = f"{second:,.0f} steps/s, {first:,.0f} before; {dead:,} dead tuples; {size:.1f} MB became {grown:.1f} MB"
        yield spread("held snapshot", f"{who}, while it is held", [second / first], "x before", note=note)
        yield spread("held snapshot", f"{who}, after it", [third / first], "x before", note=f"{third:,.0f} steps/s")


def _for(peer: Peer, seconds: float) -> float:
    """The rate of steps for so many seconds, and once at least."""
    begun, done = time.perf_counter(), 0
    while True:
        peer.work()
        done += peer.count
        passed = time.perf_counter() - begun
        if passed >= seconds:
            return done / passed


def _dead(watcher: psycopg.Connection[Any]) -> int:
    row = watcher.execute("select coalesce(sum(n_dead_tup), 0)::bigint from pg_stat_user_tables").fetchone()
    return int(row[0]) if row else 0


def _size(watcher: psycopg.Connection[Any]) -> float:
    """MB of all tables and their indexes."""
    query = "select coalesce(sum(pg_total_relation_size(relid)), 0)::bigint from pg_stat_user_tables"
    row = watcher.execute(query).fetchone()
    return int(row[0]) / 1e6 if row else 0.0


def dbos(server: str, url: str, count: int) -> Callable[[], float]:
    from dbos import DBOS

    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute("create database dbos_bench")
    DBOS(config={"name": "bench", "system_database_url": url, "log_level": "ERROR", "run_admin_server": False})

    @DBOS.step()
    def step(number: int) -> Any:
        return PAYLOAD

    @DBOS.workflow()
    def workflow() -> float:
        return rate(count, lambda: [step(number) for number in range(count)])

    DBOS.launch()
    return workflow


def langgraph(url: str, count: int) -> Callable[[], float]:
    from typing import TypedDict

    from langgraph.checkpoint.postgres import PostgresSaver
    from langgraph.graph import END, START, StateGraph

    class State(TypedDict):
        number: int
        text: str

    def node(state: State) -> State:
        return {"number": state["number"] + 1, "text": PAYLOAD["text"]}

    graph = StateGraph(State)
    graph.add_node("work", node)
    graph.add_edge(START, "work")
    graph.add_conditional_edges("work", lambda state: END if state["number"] >= count else "work")
    threads = iter(range(1_000_000))

    def run() -> float:
        with PostgresSaver.from_conn_string(url) as saver:
            saver.setup()
            compiled = graph.compile(checkpointer=saver)
            config: Any = {"configurable": {"thread_id": f"t{next(threads)}"}, "recursion_limit": count + 10}
            return rate(count, lambda: compiled.invoke({"number": 0, "text": ""}, config))

    return run
