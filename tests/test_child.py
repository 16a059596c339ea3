"""Children: one an edge name, worked on once however often their parent is resumed; fan-outs that lose nobody."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import threading
from typing import Any

import pytest

from tidebase import (
    AsyncTidebase,
    ChildFailed,
    FanoutFailed,
    InputMismatch,
    Run,
    RunCancelledError,
    RunSuspendedError,
    Tidebase,
)

from .conftest import long, on_every_version
from .probes import waiting as probe_waiting
from .probes.support import Connection, audit, values
from .support.patience import PATIENCE_S
from .test_run import until

ON_NEWEST = True

PARENTS = 8
CHILDREN = 20

WORKER = f"""
import sys, threading
from tidebase import Tidebase

tide = Tidebase(sys.argv[1], lease_s=1.0)

def child(run, input):
    with run.transaction("work", input=input) as tx:      # the ledger and the checkpoint commit together
        tx.execute("insert into ledger (entry) values (%s)", [input])
        tx.result = input
    return tx.result

def parent(run, input):
    children = [dict(name=f"c{{n}}", workflow=child, input=f"{{input}}-{{n}}") for n in range({CHILDREN})]
    return run.fanout("all", children, max_parallel=4)

def work(number):
    results[number] = tide.run("parent", parent, run_id=f"p{{number}}", input=number, wait_s={PATIENCE_S})

results = {{}}
threads = [threading.Thread(target=work, args=[number]) for number in range({PARENTS})]
for thread in threads: thread.start()
for thread in threads: thread.join()
expected = {{number: [f"{{number}}-{{n}}" for n in range({CHILDREN})] for number in range({PARENTS})}}
sys.exit(0 if results == expected else 1)
"""


def start(url: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", WORKER, url], stderr=subprocess.PIPE, text=True)


@on_every_version
@long
def test_parents_killed_and_resumed_twice_at_once_work_on_each_child_once(db: Connection, database: str) -> None:
    db.execute("create table ledger (entry text)")
    first = start(database)
    until(db, "(select count(*) from ledger) >= 30")
    first.send_signal(signal.SIGKILL)
    first.communicate()
    assert values(db, "select count(*) from ledger")[0] < PARENTS * CHILDREN
    for process in [start(database), start(database)]:
        _, errors = process.communicate(timeout=PATIENCE_S)
        assert process.returncode == 0, errors
    entries = values(db, "select entry from ledger")
    assert sorted(entries) == sorted(f"{p}-{c}" for p in range(PARENTS) for c in range(CHILDREN))
    assert values(db, "select count(*) from tidebase.edges") == [PARENTS * CHILDREN]
    assert values(db, "select distinct status from tidebase.run_heads") == ["completed"]
    assert audit(db) == []


def test_one_failure_does_not_lose_the_others_and_a_resume_works_on_that_one_only(tide: Tidebase) -> None:
    executed: list[int] = []

    def child(run: Run, input: int) -> int:
        executed.append(input)
        if input == 3 and len(executed) <= 5:
            raise ValueError("three")
        return input * 10

    def parent(run: Run, _: Any) -> list[int]:
        return run.fanout("all", [{"name": f"c{n}", "workflow": child, "input": n} for n in range(5)], max_parallel=2)

    with pytest.raises(FanoutFailed, match="c3: ValueError: three") as failed:
        tide.run("p", parent, run_id="p")
    assert failed.value.results == {"c0": 0, "c1": 10, "c2": 20, "c4": 40}
    assert isinstance(failed.value.errors["c3"], ValueError) and failed.value.__cause__ is failed.value.errors["c3"]
    assert tide.run("p", parent, run_id="p") == [0, 10, 20, 30, 40]
    assert sorted(executed) == [0, 1, 2, 3, 3, 4]
    assert tide.runs.steps("p")[0].name == "join:all"
    executed.clear()
    fork = tide.runs.fork("p", through_step="join:all")
    assert tide.run("p", parent, run_id=fork.run_id) == [0, 10, 20, 30, 40] and executed == []


def test_trees_to_any_depth(tide: Tidebase) -> None:
    @tide.workflow("node")
    def node(run: Run, input: int) -> int:
        if input == 0:
            return 1
        return 1 + sum(run.fanout("below", [{"name": n, "workflow": "node", "input": input - 1} for n in "ab"]))

    assert tide.run("node", run_id="root", input=4) == 31
    tree = tide.runs.tree("root")
    assert len(tree) == 31 and {run.status for run in tree} == {"completed"}
    assert [run.depth for run in tree[:6]] == [0, 1, 2, 3, 4, 4]  # depth first
    parents = {run.run_id: run for run in tree}
    assert all(run.depth == parents[run.parent_run_id].depth + 1 for run in tree if run.parent_run_id is not None)


def test_a_single_child(tide: Tidebase) -> None:
    seen: list[Any] = []

    def child(run: Run, input: Any) -> Any:
        seen.append((input, tide.runs.get(run.run_id).metadata))
        return run.step("s", lambda: {"got": input})

    def parent(run: Run, fail: bool) -> Any:
        result = run.child("w", child, name="one", input=7, metadata={"a": 1}, edge_type="helper")
        if run.attempt == 1:
            raise RuntimeError("once")
        return result

    with pytest.raises(RuntimeError):
        tide.run("p", parent, run_id="p", input=True)
    assert tide.run("p", parent, run_id="p") == {"got": 7}
    assert seen == [(7, {"a": 1})]
    assert [(n.name, n.edge_type, n.workflow) for n in tide.runs.tree("p")[1:]] == [("one", "helper", "w")]

    def other(run: Run, _: Any) -> Any:
        run.child("w", child, name="one", input=7)
        return run.child("w", child, name="one", input=8)

    with pytest.raises(InputMismatch):
        tide.run("p", other)
    with pytest.raises(ValueError, match="different names"):
        tide.run("p", lambda run, _: run.fanout("f", [{"name": "a", "workflow": child}] * 2))
    assert tide.run("p", lambda run, _: run.fanout("f", [])) == []


def test_a_child_that_waits_suspends_its_parent(tide: Tidebase) -> None:
    def child(run: Run, input: Any) -> bool:
        return run.gate("g", f"May {input}?", suspend=True).approved

    def parent(run: Run, _: Any) -> Any:
        one = run.child("ask", child, name="one", input="one")
        return [one, *run.fanout("more", [{"name": n, "workflow": child, "input": n} for n in ("two", "three")])]

    for waiting in (1, 2):
        with pytest.raises(RunSuspendedError, match="waits for its child"):
            tide.run("p", parent, run_id="p")
        assert tide.runs.get("p").status == "waiting"  # nobody has to wait for a lease, and nobody takes it up in vain
        with pytest.raises(RunSuspendedError, match="waits"):
            tide.run("p", parent, run_id="p")
        attempts = tide.runs.get("p").attempt
        inbox = tide.gates.list()
        assert len(inbox) == waiting
        for gate in inbox:
            tide.gates.decide(gate.run_id, gate.name, "approved")
        assert tide.runs.get("p").status == "pending" and tide.runs.get("p").attempt == attempts
    assert tide.run("p", parent, run_id="p") == [True, True, True]
    with tide.runs.attach("p", run_id="session") as session, pytest.raises(RunSuspendedError):
        session.fanout("more", [{"name": "four", "workflow": child, "input": 4}])


def test_a_child_that_is_cancelled_is_its_parents_problem_not_its_end(tide: Tidebase) -> None:
    def child(run: Run, _: Any) -> None:
        tide.runs.cancel(run.run_id, "not needed")
        run.step("never", lambda: None)

    def parent(run: Run, _: Any) -> str:
        with pytest.raises(ChildFailed, match="is cancelled") as failed:
            run.child("w", child)
        assert failed.value.detail["parent_run_id"] == run.run_id
        return "went on"

    assert tide.run("p", parent) == "went on"


def test_cancelling_the_parent_reaches_its_children(tide: Tidebase) -> None:
    met = threading.Barrier(3)

    def child(run: Run, input: int) -> None:
        run.step("one", lambda: None)
        met.wait(PATIENCE_S)
        met.wait(PATIENCE_S)
        run.step("two", lambda: None)

    def cancel() -> None:
        met.wait(PATIENCE_S)
        tide.runs.cancel("p")
        met.wait(PATIENCE_S)

    thread = threading.Thread(target=cancel)
    thread.start()
    with pytest.raises(RunCancelledError):
        tide.run("p", lambda run, _: run.fanout("f", [{"name": n, "workflow": child} for n in "ab"]), run_id="p")
    thread.join()
    assert {run.status for run in tide.runs.tree("p")} == {"cancelled"}


TERMINATED = """
import sys, threading
from tidebase import Tidebase
tide = Tidebase(sys.argv[1], lease_s=600)
def child(run, input):
    run.step("wait", lambda: threading.Event().wait(2))
tide.run("p", lambda run, _: run.fanout("f", [dict(name=n, workflow=child) for n in "abc"]), run_id="p")
"""


def test_sigterm_releases_the_leases_of_a_whole_fan_out(db: Connection, database: str) -> None:
    process = subprocess.Popen([sys.executable, "-c", TERMINATED, database], stderr=subprocess.DEVNULL)
    until(db, "(select count(*) from tidebase.steps where name = 'wait') = 3")
    process.terminate()
    assert process.wait(PATIENCE_S) == 128 + signal.SIGTERM
    assert values(db, "select distinct status from tidebase.run_heads") == ["pending"]


async def test_the_same_awaited(atide: AsyncTidebase) -> None:
    active = 0
    most = 0

    async def child(run: Any, input: int) -> int:
        nonlocal active, most
        active += 1
        most = max(most, active)
        await run.step("s", asyncio.sleep, 0.01)
        active -= 1
        if input == 3 and run.attempt == 1:
            raise ValueError("three")
        return input

    async def parent(run: Any, _: Any) -> Any:
        children = [{"name": str(n), "workflow": child, "input": n} for n in range(6)]
        return [await run.child("w", child, input=7), *await run.fanout("f", children, max_parallel=2)]

    with pytest.raises(FanoutFailed):
        await atide.run("p", parent, run_id="p")
    assert await atide.run("p", parent, run_id="p") == [7, 0, 1, 2, 3, 4, 5]
    assert most == 2

    async def cancelled(run: Any, _: Any) -> Any:
        await atide.runs.cancel(run.run_id)
        await run.emit("a.b")

    async def went_on(run: Any, _: Any) -> str:
        with pytest.raises(ChildFailed):
            await run.child("w", cancelled)
        return "went on"

    assert await atide.run("p", went_on) == "went on"

    async def asks(run: Any, _: Any) -> Any:
        return (await run.gate("g", suspend=True)).approved

    async def waits(run: Any, _: Any) -> Any:
        return await run.fanout("f", [{"name": "a", "workflow": asks}])

    with pytest.raises(RunSuspendedError):
        await atide.run("p", waits, run_id="s")
    [gate] = await atide.gates.list()
    await atide.gates.decide(gate.run_id, "g", "approved")
    assert await atide.run("p", waits, run_id="s") == [True]


async def test_a_cancelled_task_releases_its_children(atide: AsyncTidebase) -> None:
    begun = asyncio.Semaphore(0)

    async def child(run: Any, _: Any) -> None:
        async def forever() -> None:
            begun.release()
            await asyncio.Event().wait()

        await run.step("s", forever)

    async def parent(run: Any, _: Any) -> Any:
        return await run.fanout("f", [{"name": n, "workflow": child} for n in "ab"])

    task = asyncio.create_task(atide.run("p", parent, run_id="p"))
    await begun.acquire()
    await begun.acquire()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert {run.status for run in await atide.runs.tree("p")} == {"pending"}


@on_every_version
def test_a_parent_sleeps_for_as_long_as_its_child_waits(database: str) -> None:
    assert probe_waiting.parents_are_woken(database) == []


@on_every_version
def test_a_child_that_ends_while_its_parent_lies_down_is_seen(database: str) -> None:
    assert probe_waiting.no_wake_is_lost(database) == []
