"""Processes that work on threads of a graph and may die at any moment: ``python -m tests.support.graph_worker``.

Each line on standard input is a command, which is carried out by a process forked off for it: ``work THREAD N`` goes on
with a thread and dies by SIGKILL at its Nth moment (0: never), ``race THREAD`` lets two begin with one at once. The
answer is a line of exit codes. Moments are before and behind each call to the database, and around what a node does.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
import sys
import traceback
from collections.abc import Callable
from typing import Any, TypedDict

from langgraph.checkpoint.base import WRITES_IDX_MAP
from langgraph.graph import END, START, StateGraph
from langgraph.types import Command, interrupt

from tidebase import LeaseLostError, RunNeedsReview, Tidebase
from tidebase.core.database import Database
from tidebase.integrations.langgraph import TidebaseSaver, durable, task_key

from .patience import PATIENCE_S

DONE, OVERTAKEN, IN_REVIEW, INTERRUPTED = 0, 3, 4, 5


class State(TypedDict, total=False):
    plan: str
    read: str
    charged: str
    mailed: bool
    approved: str


class Process:
    """One of them."""

    def __init__(self, url: str, ledger: str, dies_at: int, meet: Callable[[], Any] = lambda: None) -> None:
        self.tide = Tidebase(url)
        self.ledger = os.open(ledger, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        self.moments = itertools.count(1)
        self.dies_at = dies_at
        self.meet = meet
        execute = Database.execute

        def watched(database: Database, call: Any) -> Any:
            self.moment()
            result = execute(database, call)
            self.moment()
            return result

        Database.execute = watched  # type: ignore[method-assign]

    def moment(self) -> None:
        if next(self.moments) == self.dies_at:
            os.kill(os.getpid(), signal.SIGKILL)

    def note(self, *words: str) -> None:
        """What happened outside of the database: it stays, whatever becomes of the process."""
        self.moment()
        os.write(self.ledger, (" ".join(words) + "\n").encode())
        self.moment()

    def graph(self) -> Any:
        def model(state: State) -> State:
            self.note("ran", "model", task_key())
            return {"plan": "to write"}

        def read(state: State) -> State:
            self.note("ran", "read", task_key())
            return {"read": state["plan"]}

        def charge(state: State) -> State:
            self.note("ran", "charge", task_key())
            self.note("charged", task_key())
            return {"charged": "1"}

        def mail(state: State) -> State:
            self.note("ran", "mail", task_key())
            self.note("mailed", task_key())
            return {"mailed": True}

        def ask(state: State) -> State:
            return {"approved": interrupt("go on?")}

        builder = StateGraph(State)
        builder.add_node("model", model)
        builder.add_node("read", read)
        builder.add_node("charge", durable(charge, side_effects=["charge"], idempotency_key=lambda state: task_key()))
        builder.add_node("mail", durable(mail, side_effects=["mail"]))
        builder.add_node("ask", ask)
        builder.add_edge(START, "model")
        builder.add_edge("model", "read")
        builder.add_edge("model", "charge")
        builder.add_edge(["read", "charge"], "mail")
        builder.add_edge("mail", "ask")
        builder.add_edge("ask", END)
        saver = TidebaseSaver(self.tide)
        put_writes, get_tuple = saver.put_writes, saver.get_tuple
        reads = itertools.count(1)

        def met(config: Any) -> Any:
            found = get_tuple(config)
            if next(reads) == 2:  # the first one is for get_state
                self.meet()
            return found

        def noted(config: Any, writes: Any, task_id: str, task_path: str = "") -> None:
            put_writes(config, writes, task_id, task_path)
            if not all(channel in WRITES_IDX_MAP for channel, _ in writes):  # else it failed, or asks
                os.write(self.ledger, f"recorded {task_id}\n".encode())

        saver.put_writes, saver.get_tuple = noted, met  # type: ignore[method-assign]
        return builder.compile(checkpointer=saver)

    def work(self, thread_id: str) -> int:
        """Goes on where the thread is, as far as it gets."""
        graph = self.graph()
        config: Any = {"configurable": {"thread_id": thread_id}}
        try:
            there = graph.get_state(config)
            given: Any = None if there.created_at else {"plan": ""}
            if there.interrupts:
                given = Command(resume="yes")
            state = graph.invoke(given, config, durability="sync" if len(thread_id) % 2 else "async")
        except RunNeedsReview:
            return IN_REVIEW
        except LeaseLostError:
            return OVERTAKEN
        return INTERRUPTED if "__interrupt__" in state else DONE


def fork(work: Callable[[], int]) -> int:
    pid = os.fork()
    if pid == 0:
        code = 99
        try:
            code = work()
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return pid


def main(url: str, ledger: str) -> None:
    for line in sys.stdin:
        command, thread_id, *rest = line.split()
        if command == "race":
            barrier = multiprocessing.get_context("fork").Barrier(2, timeout=PATIENCE_S)
            pids = [fork(lambda: Process(url, ledger, 0, barrier.wait).work(thread_id)) for _ in range(2)]  # noqa: B023
        else:
            pids = [fork(lambda: Process(url, ledger, int(rest[0])).work(thread_id))]  # noqa: B023
        codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
        print(*codes, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
