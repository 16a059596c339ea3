"""Convoys: steps that complete side by side go together, and each is stored before its caller hears of it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest

from tidebase import AsyncTidebase, Run, Tidebase
from tidebase.core.call import Call
from tidebase.core.convoy import SENDERS, Convoys
from tidebase.core.convoy_async import AsyncConvoys
from tidebase.core.errors import TidebaseError
from tidebase.core.joint import Joint

ON_NEWEST = True


class Sent:
    """What was sent, in place of a database: a call stays under way until it is let go."""

    def __init__(self) -> None:
        self.calls: list[list[Any]] = []
        self.fails: set[int] = set()

    def joint(self, key: str, content: Any) -> Joint[Any]:
        return Joint(key, content, 10, Call("alone", (content,), list), self.together)

    def together(self, joints: Sequence[Joint[Any]]) -> Call[list[Any]]:
        return Call("together", tuple(joint.content for joint in joints), list)

    def answer(self, call: Call[Any]) -> Any:
        self.calls.append(list(call.parameters))
        if call.query == "alone":
            return call.parameters[0]
        if len(call.parameters) in self.fails:
            raise TidebaseError("no")
        return [None if str(content).startswith("apart") else content for content in call.parameters]


class AwaitedSent(Sent):
    def __init__(self) -> None:
        super().__init__()
        self.gates: list[asyncio.Event] = []

    async def execute(self, call: Call[Any]) -> Any:
        answer = self.answer
        gate = asyncio.Event()
        self.gates.append(gate)
        await gate.wait()
        return answer(call)


async def settled() -> None:
    """Everything that can go on has gone on."""
    for _ in range(20):
        await asyncio.sleep(0)


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody goes before his turn."""
    for module in ("convoy", "convoy_async"):
        monkeypatch.setattr(f"tidebase.core.{module}.PATIENCE_S", 600)


async def comers(sent: AwaitedSent, *come: tuple[str, Any]) -> list[asyncio.Task[Any]]:
    convoys = AsyncConvoys(sent.execute)
    tasks = [asyncio.create_task(convoys.make(sent.joint(key, content))) for key, content in come]
    await settled()
    return tasks


async def let_all_go(sent: AwaitedSent, tasks: list[asyncio.Task[Any]]) -> list[Any]:
    while not all(task.done() for task in tasks):
        for gate in sent.gates:
            gate.set()
        await settled()
    return await asyncio.gather(*tasks, return_exceptions=True)


async def test_who_has_nobody_to_wait_for_goes_at_once(patient: None) -> None:
    sent = AwaitedSent()
    tasks = await comers(sent, ("r", 1))
    assert len(sent.gates) == 1
    assert await let_all_go(sent, tasks) == [1]
    assert sent.calls == [[1]]


async def test_those_who_come_while_a_call_is_under_way_go_together_in_their_order(patient: None) -> None:
    sent = AwaitedSent()
    tasks = await comers(sent, *(("r", n) for n in range(5)))
    assert len(sent.gates) == 1
    assert await let_all_go(sent, tasks) == [0, 1, 2, 3, 4]
    assert sent.calls == [[0], [1, 2, 3, 4]]


async def test_several_runs_go_apart_until_there_are_many(patient: None) -> None:
    sent = AwaitedSent()
    tasks = await comers(sent, *((f"r{n}", n) for n in range(SENDERS + 5)))
    assert len(sent.gates) == SENDERS
    sent.gates[0].set()
    await settled()
    assert len(sent.gates) == SENDERS + 1
    assert await let_all_go(sent, tasks) == list(range(SENDERS + 5))
    assert sorted(sent.calls) == [*([n] for n in range(SENDERS)), list(range(SENDERS, SENDERS + 5))]


@pytest.mark.parametrize("fails", [True, False], ids=["it fails", "some are left out"])
async def test_who_was_not_served_makes_his_own_call(patient: None, fails: bool) -> None:
    sent = AwaitedSent()
    sent.fails = {3} if fails else set()
    tasks = await comers(sent, ("r", 0), ("r", "apart 1"), ("r", "apart 2"), ("r", 3))
    assert await let_all_go(sent, tasks) == [0, "apart 1", "apart 2", 3]
    assert sent.calls[:2] == [[0], ["apart 1", "apart 2", 3]]
    assert sorted(map(str, sent.calls[2:])) == ["['apart 1']", "['apart 2']", *(["[3]"] if fails else [])]


@pytest.mark.parametrize("who", ["waits", "rides", "leads", "is to lead"])
async def test_who_is_cancelled_takes_nobody_along(patient: None, who: str) -> None:
    sent = AwaitedSent()
    tasks = await comers(sent, *(("r", n) for n in range(4)))
    if who == "is to lead":
        sent.gates[0].set()
        while not tasks[0].done():  # its turn has been given to the next one, who has not heard of it yet
            await asyncio.sleep(0)
        tasks[1].cancel()
    else:
        if who != "waits":
            sent.gates[0].set()
            await settled()
        tasks[1 if who == "leads" else 2].cancel()
    results = await let_all_go(sent, tasks)
    gone = 1 if who in ("leads", "is to lead") else 2
    assert isinstance(results.pop(gone), asyncio.CancelledError)
    assert results == [n for n in range(4) if n != gone]


async def test_whose_turn_does_not_come_goes_by_himself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tidebase.core.convoy_async.PATIENCE_S", 0.001)
    sent = AwaitedSent()
    tasks = await comers(sent, ("r", 0), ("r", 1))
    while len(sent.gates) < 2:
        await asyncio.sleep(0.001)
    sent.gates[1].set()
    assert await tasks[1] == 1
    assert await let_all_go(sent, tasks[:1]) == [0]


def test_threads_go_together(patient: None) -> None:
    sent, first, rest = Sent(), threading.Event(), threading.Event()

    def execute(call: Call[Any]) -> Any:
        if not first.is_set():
            first.set()
            rest.wait()
        return sent.answer(call)

    convoys = Convoys(execute)
    with ThreadPoolExecutor(8) as pool:
        leader = pool.submit(convoys.make, sent.joint("r", 0))
        first.wait()
        others = [pool.submit(convoys.make, sent.joint("r", n)) for n in range(1, 6)]
        while len(convoys._waiting.get("r", ())) < 5:
            threading.Event().wait(0.001)
        rest.set()
        assert [future.result() for future in (leader, *others)] == list(range(6))
    assert [sorted(call) for call in sent.calls] == [[0], [1, 2, 3, 4, 5]]


# --- and with the database ---

LOCKED = "select from tidebase.run_heads where run_id = 'r' for no key update"


def events(tide: Tidebase) -> list[tuple[int, str]]:
    return [(event.seq, event.type) for event in tide.runs.events("r")]


def test_threads_of_a_run_are_stored_in_one_transaction(database: str, tide: Tidebase, patient: None) -> None:
    """And the log is the one that they would have written one by one."""
    convoys = tide._database._here().convoys

    def work(run: Run, _: Any) -> list[int]:
        with psycopg.connect(database) as other, ThreadPoolExecutor(9) as pool:
            other.execute(LOCKED)
            made = [pool.submit(run.step.options(mark_start=False), f"s{n}", lambda n=n: n) for n in range(9)]
            while sum(map(len, convoys._waiting.values())) < 8:
                threading.Event().wait(0.001)
            other.rollback()
            return [future.result() for future in made]

    assert tide.run("w", work, run_id="r") == list(range(9))
    with psycopg.connect(database) as connection:
        written = connection.execute("select xmin, count(*) from tidebase.steps group by 1 order by 2").fetchall()
    assert [count for _, count in written] == [1, 8]
    assert events(tide) == list(
        enumerate(["run.created", "run.started", *["step.completed"] * 9, "run.completed"], start=1)
    )
    assert tide.run("w", lambda run, _: run.step("s3", lambda: 1 / 0), run_id="r") == list(range(9))


async def test_tasks_of_many_runs_are_stored_together(atide: AsyncTidebase, db: psycopg.Connection[Any]) -> None:
    async def one(number: int) -> int:
        return number

    async def work(run: Any, number: int) -> list[int]:
        return list(await asyncio.gather(*(run.step(f"s{n}", one, n * number) for n in range(3))))

    results = await asyncio.gather(*(atide.run("w", work, run_id=f"r{n}", input=n) for n in range(20)))
    assert results == [[0, n, 2 * n] for n in range(20)]
    count, transactions = db.execute("select count(*), count(distinct xmin::text) from tidebase.steps").fetchone() or (
        0,
        0,
    )
    assert count == 60 and transactions < 60
