"""Others that keep checkpoints in Postgres, where they are installed (the extra ``bench``)."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from typing import Any

from .harness import PAYLOAD, Bench, Row, insert, rate, scenario, take_turns


@scenario
def peers(bench: Bench) -> Iterator[Row]:
    """Steps of DBOS and of LangGraph with its PostgresSaver, on the same server, beside the same insert."""
    bench.floor()
    count = bench.size(100, 10)
    variants: dict[str, Callable[[], float]] = {}
    if importlib.util.find_spec("dbos"):
        variants["DBOS"] = dbos(bench, count)
    if importlib.util.find_spec("langgraph"):
        variants["LangGraph PostgresSaver"] = langgraph(bench, count)
    if not variants:
        print("  skipped: none is installed (make bench PEERS=1)")
        return
    turns = take_turns(bench, lambda: rate(count, lambda: insert(bench.connection, count)), variants)
    for variant in variants:
        yield turns.row("peers", variant, None)


def dbos(bench: Bench, count: int) -> Callable[[], float]:
    from dbos import DBOS

    bench.connection.execute("create database dbos_bench")
    url = bench.cluster.url.replace("@/postgres", "@/dbos_bench")
    DBOS(config={"name": "bench", "system_database_url": url, "log_level": "ERROR", "run_admin_server": False})

    @DBOS.step()
    def step(number: int) -> Any:
        return PAYLOAD

    @DBOS.workflow()
    def workflow() -> float:
        return rate(count, lambda: [step(number) for number in range(count)])

    DBOS.launch()
    return workflow


def langgraph(bench: Bench, count: int) -> Callable[[], float]:
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
        with PostgresSaver.from_conn_string(bench.cluster.url) as saver:
            saver.setup()
            compiled = graph.compile(checkpointer=saver)
            config: Any = {"configurable": {"thread_id": f"t{next(threads)}"}, "recursion_limit": count + 10}
            return rate(count, lambda: compiled.invoke({"number": 0, "text": ""}, config))

    return run
