"""Giving a lease up is a request: what is in flight ends and is stored, nothing new begins, nothing is paid twice."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tidebase import AsyncRun, AsyncTidebase, FanoutFailed, Run, RunHeld, RunNeedsReview, RunSuspendedError, Tidebase

from .conftest import on_every_version
from .probes.support import Connection, expire, poll, value, values
from .support.patience import PATIENCE_S

ON_NEWEST = True

SUSPENSIONS: dict[str, Callable[[Run], Any]] = {
    "gate": lambda run: run.gate("g", suspend=True),
    "timer": lambda run: run.sleep("g", 3600, suspend=True),
    "child": lambda run: run.child("c", lambda child, _: child.gate("g", suspend=True)),
    "fan-out": lambda run: run.fanout("f", [{"name": "c", "workflow": lambda child, _: child.gate("g", suspend=True)}]),
}


def decide(tide: Tidebase, db: Connection) -> None:
    for gate in tide.gates.list():
        tide.gates.decide(gate.run_id, gate.name, "approved")
    db.execute("update tidebase.gates set timeout_at = clock_timestamp() where kind = 'timer'")


class Ledger:
    """What was executed, how often; a step in it lasts until the other branch has asked for the suspension."""

    def __init__(self) -> None:
        self.executed: Counter[str] = Counter()
        self.working = threading.Event()
        self.go_on = threading.Event()

    def pay(self, name: str) -> str:
        self.executed[name] += 1
        self.working.set()
        assert self.go_on.wait(PATIENCE_S)
        return f"receipt of {name}"


@pytest.mark.parametrize("unsafe", [False, True], ids=["plain", "unsafe"])
@pytest.mark.parametrize("kind", SUSPENSIONS)
def test_what_other_threads_are_at_is_stored_before_the_run_waits(
    tide: Tidebase, db: Connection, kind: str, unsafe: bool
) -> None:
    ledger = Ledger()
    contract: dict[str, Any] = {"side_effects": ["card"]} if unsafe else {}

    def branch(run: Run) -> str:
        receipt = run.step("paid", lambda: ledger.pay("paid"), **contract)
        run.step("after", lambda: ledger.pay("after"))
        return receipt

    def workflow(run: Run, _: Any) -> str:
        with ThreadPoolExecutor(2) as pool:
            paid = pool.submit(branch, run)
            assert ledger.working.wait(PATIENCE_S)
            waits = pool.submit(SUSPENSIONS[kind], run)
            if not ledger.go_on.is_set():
                poll("the suspension is asked for", lambda: run._hold.departure is not None)
            ledger.go_on.set()
            waits.result()
            return paid.result()

    with pytest.raises(RunSuspendedError):
        tide.run("w", workflow, run_id="r")
    assert value(db, "select status from tidebase.run_heads where run_id = 'r'") == "waiting"
    assert ledger.executed == {"paid": 1}
    decide(tide, db)
    assert tide.run("w", workflow, run_id="r", wait_s=PATIENCE_S) == "receipt of paid"
    assert ledger.executed == {"paid": 1, "after": 1}
    assert value(db, "select count(*) from tidebase.reviews") == 0


@pytest.mark.parametrize("kind", ["gate", "timer", "child", "fan-out"])
async def test_what_other_tasks_are_at_is_stored_before_the_run_waits(
    atide: AsyncTidebase, tide: Tidebase, db: Connection, kind: str
) -> None:
    executed: Counter[str] = Counter()
    asked = asyncio.Event()

    async def child(run: AsyncRun, _: Any) -> Any:
        return await run.gate("g", suspend=True)

    async def wait(run: AsyncRun) -> Any:
        if kind == "gate":
            return await run.gate("g", suspend=True)
        if kind == "timer":
            return await run.sleep("g", 3600, suspend=True)
        if kind == "child":
            return await run.child("c", child)
        return await run.fanout("f", [{"name": "c", "workflow": child}])

    async def workflow(run: AsyncRun, _: Any) -> str:
        async def pay() -> str:
            executed["paid"] += 1
            while run._hold.departure is None and not asked.is_set():
                await asyncio.sleep(0.01)
            asked.set()
            return "receipt"

        async def branch() -> str:
            receipt = await run.step("paid", pay, side_effects=["card"])
            await run.step("after", pay_after)
            return receipt

        async def pay_after() -> None:
            executed["after"] += 1

        receipt, _ = await asyncio.gather(branch(), wait(run))
        return receipt

    with pytest.raises(RunSuspendedError):
        await atide.run("w", workflow, run_id="r")
    assert executed == {"paid": 1}
    decide(tide, db)
    assert await atide.run("w", workflow, run_id="r", wait_s=PATIENCE_S) == "receipt"
    assert executed == {"paid": 1, "after": 1}
    assert value(db, "select count(*) from tidebase.reviews") == 0


def test_a_review_loses_nothing_of_what_others_are_at(tide: Tidebase, db: Connection) -> None:
    ledger = Ledger()

    def workflow(run: Run, _: Any) -> str:
        with ThreadPoolExecutor(1) as pool:
            paid = pool.submit(lambda: run.step("paid", lambda: ledger.pay("paid"), mark_start=True))
            poll("it is paid", lambda: ledger.working.is_set() or paid.done())
            try:
                run.step("mail", lambda: None, side_effects=["mail"])
            finally:
                ledger.go_on.set()
            return paid.result()

    tide.runs.create("w", run_id="r")
    db.execute("select from tidebase.acquire_run('r', 'crashed')")
    db.execute("select from tidebase.begin_step('r', 1, 'mail', side_effects => '{mail}')")
    expire(db, "r")
    with pytest.raises(RunNeedsReview, match="'mail'"):
        tide.run("w", workflow, run_id="r")
    assert value(db, "select status from tidebase.steps where name = 'paid'") == "completed"
    assert value(db, "select status from tidebase.run_heads") == "review"
    tide.runs.resolve_review("r", "mail", "accept", output=None)
    assert tide.run("w", workflow, run_id="r") == "receipt of paid"
    assert ledger.executed == {"paid": 1}


def test_one_failed_unsafe_step_does_not_kill_a_session(tide: Tidebase, db: Connection) -> None:
    with tide.runs.attach("w", run_id="r") as session:
        with pytest.raises(ZeroDivisionError):
            session.step("mail", lambda: 1 / 0, side_effects=["mail"])
        with pytest.raises(RunNeedsReview):
            session.step("mail", lambda: 1 / 0, side_effects=["mail"])
        assert session.step("other", lambda: 7) == 7
        session.fail("mail is in review")
    assert value(db, "select status from tidebase.run_heads") == "review"


def test_a_session_waits_for_what_it_is_at_before_it_is_suspended(tide: Tidebase, db: Connection) -> None:
    ledger = Ledger()
    session = tide.runs.attach("w", run_id="r")
    with ThreadPoolExecutor(1) as pool:
        paid = pool.submit(lambda: session.step("paid", lambda: ledger.pay("paid"), side_effects=["card"]))
        assert ledger.working.wait(PATIENCE_S)

        def let_go() -> None:
            poll("the suspension is asked for", lambda: session._hold.departure is not None)
            ledger.go_on.set()

        threading.Thread(target=let_go).start()
        with pytest.raises(RunSuspendedError):
            session.gate("g", suspend=True)
        assert paid.result() == "receipt of paid"
    assert value(db, "select status from tidebase.run_heads") == "waiting"


def test_a_step_in_finally_around_a_suspending_gate_is_not_executed(tide: Tidebase, db: Connection) -> None:
    cleaned: list[int] = []

    def workflow(run: Run, _: Any) -> str:
        try:
            return run.gate("g", suspend=True).decision
        finally:
            run.step("clean up", lambda: cleaned.append(1))

    with pytest.raises(RunSuspendedError, match="waits for 'g'"):
        tide.run("w", workflow, run_id="r")
    assert cleaned == []
    decide(tide, db)
    assert tide.run("w", workflow, run_id="r") == "approved" and cleaned == [1]


def test_a_workflow_that_swallows_its_suspension_is_suspended_all_the_same(tide: Tidebase, db: Connection) -> None:
    def workflow(run: Run, _: Any) -> str:
        with contextlib.suppress(BaseException):
            return run.gate("g", suspend=True).decision
        return "swallowed"

    with pytest.raises(RunSuspendedError):
        tide.run("w", workflow, run_id="r")
    decide(tide, db)
    assert tide.run("w", workflow, run_id="r") == "approved"


def test_a_gate_that_is_decided_while_the_run_unwinds_ends_no_attempt_in_vain(tide: Tidebase, db: Connection) -> None:
    def workflow(run: Run, _: Any) -> str:
        try:
            return run.gate("g", suspend=True).decision
        finally:
            if run.attempt == 1:
                tide.gates.decide("r", "g", "approved")

    assert tide.run("w", workflow, run_id="r", max_attempts=1) == "approved"


def test_a_parent_waits_for_a_child_that_another_worker_is_at(tide: Tidebase, db: Connection, database: str) -> None:
    def parent(run: Run, _: Any) -> Any:
        return run.child("c", lambda child, _: "by this one", name="one")

    tide.runs.create("p", run_id="p")
    token = value(db, "select token from tidebase.acquire_run('p', 'crashed')")
    child = value(db, "select run_id from tidebase.create_child('p', %s, 'one', 'c')", token)
    held = value(db, "select token from tidebase.acquire_run(%s, 'another', '1 hour')", child)
    expire(db, "p")
    with ThreadPoolExecutor(1) as pool:
        result = pool.submit(lambda: tide.run("p", parent, run_id="p"))
        poll("it waits", lambda: child in tide._database.doorbell._waiting)
        db.execute("select tidebase.complete_run(%s, %s, '\"by another\"')", [child, held])
        assert result.result(PATIENCE_S) == "by another"


@on_every_version
def test_a_parent_that_has_waited_long_enough_waits_in_the_database_and_is_woken(
    tide: Tidebase, db: Connection
) -> None:
    def parent(run: Run, _: Any) -> Any:
        return run.child("c", lambda child, _: "by this one", name="one", wait_s=0)

    tide.runs.create("p", run_id="p")
    token = value(db, "select token from tidebase.acquire_run('p', 'crashed')")
    child = value(db, "select run_id from tidebase.create_child('p', %s, 'one', 'c')", token)
    held = value(db, "select token from tidebase.acquire_run(%s, 'another', '1 hour')", child)
    expire(db, "p")
    with pytest.raises(RunSuspendedError, match="waits for its children"):
        tide.run("p", parent, run_id="p")
    assert value(db, "select status from tidebase.run_heads where run_id = 'p'") == "waiting"
    db.execute("select tidebase.release_run(%s, %s)", [child, held])
    assert value(db, "select status from tidebase.run_heads where run_id = 'p'") == "pending"
    assert tide.run("p", parent, run_id="p") == "by this one"


def test_a_parent_whose_child_is_in_review_waits_for_the_person(tide: Tidebase, db: Connection) -> None:
    def child(run: Run, _: Any) -> Any:
        return run.step("mail", lambda: 1 / 0, side_effects=["mail"])

    def parent(run: Run, _: Any) -> Any:
        return run.child("c", child)

    said = []
    for _ in range(3):
        try:
            with pytest.raises(RunSuspendedError) as suspended:
                tide.run("p", parent, run_id="p")
            said.append(str(suspended.value))
        except ZeroDivisionError:  # the step's failure, when it was executed
            continue
    (review,) = tide.runs.reviews()
    assert f"tidebase show {review.run_id}" in said[0] and "tidebase show p" in said[-1]
    tide.runs.resolve_review(review.run_id, "mail", "accept", output="sent")
    assert tide.run("p", parent, run_id="p", wait_s=PATIENCE_S) == "sent"


def test_a_fan_out_whose_list_has_grown_works_on_the_new_ones(tide: Tidebase, db: Connection) -> None:
    worked: list[str] = []
    names = ["a", "b"]
    fail = True

    def child(run: Run, input: Any) -> str:
        worked.append(input)
        if fail and input == "b":
            raise ValueError("not yet")
        return f"result of {input}"

    def parent(run: Run, _: Any) -> list[str]:
        results: list[str] = run.fanout("all", [{"name": n, "workflow": child, "input": n} for n in names])
        run.step("then", lambda: 1 / 0 if len(names) < 4 else None)
        return results

    with pytest.raises(FanoutFailed):
        tide.run("p", parent, run_id="p")
    names.append("c")
    fail = False
    with pytest.raises(ZeroDivisionError):
        tide.run("p", parent, run_id="p")
    assert sorted(worked) == ["a", "b", "b", "c"]
    names.append("d")
    assert tide.run("p", parent, run_id="p") == [f"result of {n}" for n in names]
    assert sorted(worked) == ["a", "b", "b", "c", "d"]


def test_the_second_caller_of_a_run_learns_at_once_that_it_is_held(tide: Tidebase, database: str) -> None:
    begun, over = threading.Event(), threading.Event()

    def workflow(run: Run, _: Any) -> None:
        begun.set()
        assert over.wait(PATIENCE_S)

    with ThreadPoolExecutor(1) as pool, Tidebase(database) as other:
        first = pool.submit(tide.run, "w", workflow, run_id="r")
        assert begun.wait(PATIENCE_S)
        with pytest.raises(RunHeld):
            other.run("w", workflow, run_id="r")
        over.set()
        first.result(PATIENCE_S)


async def test_whoever_is_cancelled_in_the_moment_of_the_grant_leaves_no_lease(database: str, db: Connection) -> None:
    """At three hundred moments of the way from the first call to the workflow's own code."""
    async with AsyncTidebase(database) as tide:
        await tide.run("w", nothing, run_id="warm")
        for number in range(300):
            task = asyncio.create_task(tide.run("w", nothing, run_id=f"r{number}"))
            for _ in range(number % 60):
                await asyncio.sleep(0)
            await asyncio.sleep(number % 7 / 10_000)
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        held = "select run_id from tidebase.run_heads where status = 'running'"
        poll("nobody has a lease", lambda: values(db, held) == [])


async def nothing(run: AsyncRun, _: Any) -> None:
    return None


def nobody(run: Run, _: Any) -> None:
    return None


def test_whoever_is_interrupted_in_the_moment_of_the_grant_leaves_no_lease(tide: Tidebase, db: Connection) -> None:
    real = tide._database.execute
    for interrupted in ("acquire_run", "load_checkpoints"):
        run_id = f"r {interrupted}"
        tide.runs.create("w", run_id=run_id)
        db.execute("select tidebase.release_run(%s, token) from tidebase.acquire_run(%s, 'x')", [run_id, run_id])

        def execute(call: Any, interrupted: str = interrupted) -> Any:
            result = real(call)
            if interrupted in call.query:
                raise KeyboardInterrupt
            return result

        tide._database.execute = execute  # type: ignore[method-assign]
        try:
            for work in (tide.run, tide.runs.attach):
                arguments = ("w", nobody) if work == tide.run else ("w",)
                with pytest.raises(KeyboardInterrupt):
                    work(*arguments, run_id=run_id)  # type: ignore[operator]
                assert value(db, "select status from tidebase.run_heads where run_id = %s", run_id) == "pending"
        finally:
            tide._database.execute = real  # type: ignore[method-assign]


def test_what_a_thread_of_ones_own_does_in_a_quick_step_comes_after_its_start(tide: Tidebase, db: Connection) -> None:
    def workflow(run: Run, _: Any) -> None:
        def work() -> None:
            thread = threading.Thread(target=lambda: (run.emit("told", 1), run.usage.record(input_tokens=1)))
            thread.start()
            thread.join()

        run.step("quick", work)

    tide.run("w", workflow, run_id="r")
    assert [event.type for event in tide.runs.events("r")][2:6] == [
        "step.started",
        "told",
        "usage.recorded",
        "step.completed",
    ]
    assert values(db, "select step from tidebase.usage") == ["quick"]


def test_a_process_that_goes_lets_its_other_threads_end_their_steps(tide: Tidebase, db: Connection) -> None:
    ledger = Ledger()

    def workflow(run: Run, _: Any) -> None:
        threading.Thread(target=lambda: run.step("paid", lambda: ledger.pay("paid")), daemon=True).start()
        assert ledger.working.wait(PATIENCE_S)
        threading.Timer(0.1, ledger.go_on.set).start()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tide.run("w", workflow, run_id="r")
    assert value(db, "select status from tidebase.run_heads") == "pending"
    assert value(db, "select status from tidebase.steps") == "completed"
