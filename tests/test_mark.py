"""When the start of a step is written: before it is executed, when it takes a moment, or with its checkpoint."""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest

from tidebase import AsyncTidebase, BudgetExhausted, LeaseLostError, Run, RunNeedsReview, StepNotRunning, Tidebase

from .conftest import on_every_version
from .support.gate import until
from .support.patience import PATIENCE_S, moments

ON_NEWEST = True

STEP = ["step.started", "step.completed"]


def types(tide: Tidebase, run_id: str = "r") -> list[str]:
    return [event.type for event in tide.runs.events(run_id)]


def statuses(tide: Tidebase, run_id: str = "r") -> list[str]:
    return [step.status for step in tide.runs.steps(run_id)]


def running(db: psycopg.Connection[Any], name: str = "s") -> None:
    """Returns once the database knows that the step was begun."""
    until(db, f"exists (select from tidebase.steps where name = '{name}' and status = 'running')")


def test_a_quick_step_is_one_call_and_logged_as_any_other(tide: Tidebase, monkeypatch: pytest.MonkeyPatch) -> None:
    queries = []
    execute = tide._database.execute
    monkeypatch.setattr(tide._database, "execute", lambda call: queries.append(call.query) or execute(call))
    assert tide.run("w", lambda run, _: run.step("s", lambda: 1), run_id="r") == 1
    assert [name for name in ("begin_step", "record_step", "complete_step") for q in queries if name in q] == [
        "record_step"
    ]
    assert types(tide) == ["run.created", "run.started", *STEP, "run.completed"]
    step = tide.runs.steps("r")[0]
    assert (step.status, step.attempt, step.output) == ("completed", 1, 1)
    assert step.duration is not None and step.duration.total_seconds() >= 0


def test_a_step_that_takes_a_moment_is_seen_at_work(tide: Tidebase, db: psycopg.Connection[Any]) -> None:
    def work(run: Run, _: Any) -> int:
        return run.step("s", lambda: running(db) or 7)

    assert tide.run("w", work, run_id="r") == 7
    assert types(tide) == ["run.created", "run.started", *STEP, "run.completed"]


async def test_a_step_that_takes_a_moment_is_seen_at_work_awaited(atide: AsyncTidebase) -> None:
    async def look() -> int:
        while [step.status for step in await atide.runs.steps("r")] != ["running"]:
            await asyncio.sleep(0.01)
        return 7

    async def work(run: Any, _: Any) -> int:
        return int(await run.step("s", look))

    assert await atide.run("w", work, run_id="r") == 7
    assert [step.status for step in await atide.runs.steps("r")] == ["completed"]


def test_what_a_step_does_comes_after_its_start(tide: Tidebase) -> None:
    def work(run: Run, _: Any) -> None:
        run.step("outer", lambda: run.step("inner", lambda: run.emit("agent.note")))

    tide.run("w", work, run_id="r")
    log = [(event.type, (event.payload or {}).get("name")) for event in tide.runs.events("r")]
    assert log[2:-1] == [
        ("step.started", "outer"),
        ("step.started", "inner"),
        ("agent.note", None),
        ("step.completed", "inner"),
        ("step.completed", "outer"),
    ]


def test_a_session_keeps_that_order(tide: Tidebase) -> None:
    with tide.runs.attach("w", run_id="r") as session:
        session.step("s", lambda: session.state.set({"a": 1}))
        session.complete()
    assert types(tide)[2:-1] == ["step.started", "state.updated", "step.completed"]


@on_every_version
def test_two_threads_never_execute_a_step_at_once(tide: Tidebase, db: psycopg.Connection[Any]) -> None:
    executed: list[int] = []
    begun, refused = threading.Event(), threading.Event()

    def slow() -> int:
        executed.append(1)
        begun.set()
        assert refused.wait(PATIENCE_S)
        return 1

    def work(run: Run, _: Any) -> int:
        with ThreadPoolExecutor(1) as pool:
            first = pool.submit(lambda: run.step("s", slow))
            assert begun.wait(PATIENCE_S)
            with pytest.raises(StepNotRunning, match="is running already"):
                run.step("s", lambda: pytest.fail("executed twice"))
            refused.set()
            result = first.result()
            with pytest.raises(StepNotRunning, match="was done in this attempt already"):
                run.step("s", lambda: pytest.fail("executed again"))
            return result

    assert tide.run("w", work, run_id="r") == 1
    assert executed == [1] and types(tide)[2:-1] == STEP


def test_a_thousand_pairs_of_threads_execute_each_step_once(tide: Tidebase) -> None:
    executed: list[int] = []

    def one(run: Run, number: int) -> int | None:
        try:
            return run.step.options(key=number)("s", lambda: executed.append(number) or number)
        except StepNotRunning:
            return None

    def work(run: Run, _: Any) -> None:
        barrier = threading.Barrier(2)

        def lane(_: int) -> list[int | None]:
            results = []
            for number in range(1000):
                barrier.wait(PATIENCE_S)
                results.append(one(run, number))
            return results

        with ThreadPoolExecutor(2) as pool:
            lanes = list(pool.map(lane, range(2)))
        assert all(number in pair for number, pair in enumerate(zip(*lanes, strict=True)))

    tide.run("w", work, run_id="r")
    assert sorted(executed) == list(range(1000))


def test_a_budget_that_is_used_up_stops_a_step_before_it_is_executed(tide: Tidebase) -> None:
    def work(run: Run, _: Any) -> None:
        run.usage.record(input_tokens=10)
        run.step("s", lambda: pytest.fail("executed"))

    with pytest.raises(BudgetExhausted):
        tide.run("w", work, run_id="r", budget={"tokens": 10})


def test_a_step_that_an_earlier_attempt_began_is_begun_before_it_is_executed(
    tide: Tidebase, db: psycopg.Connection[Any]
) -> None:
    """It may have done something to the outside then, whatever it says of itself now."""
    with tide.runs.attach("w", run_id="r") as session:
        db.execute("select tidebase.begin_step('r', %s, 's', 'null', side_effects => '{mail}')", [session.token])
    with pytest.raises(RunNeedsReview):
        tide.run("w", lambda run, _: run.step("s", lambda: pytest.fail("executed")), run_id="r")


def test_the_start_of_a_step_whose_lease_is_lost_is_refused(
    tide: Tidebase, db: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    executed = []
    refused = threading.Event()
    execute = tide._database.execute
    monkeypatch.setattr("tidebase.core._threads.LATE_S", 1.0)  # so that the other one is faster, also on a busy machine

    def watched(call: Any) -> Any:
        try:
            return execute(call)
        except LeaseLostError:
            if "begin_step" in call.query:
                refused.set()
            raise

    monkeypatch.setattr(tide._database, "execute", watched)

    def taken_over() -> int:
        executed.append(1)
        db.execute("update tidebase.run_heads set lease_expires_at = now() - interval '1 second'")
        assert db.execute("select outcome from tidebase.acquire_run('r', 'another')").fetchone() == ("granted",)
        assert refused.wait(PATIENCE_S)
        return 1

    with pytest.raises(LeaseLostError):
        tide.run("w", lambda run, _: run.step("s", taken_over), run_id="r")
    assert executed == [1] and statuses(tide) == []


@pytest.mark.parametrize("late", [False, True], ids=["at once", "after a while"])
def test_a_step_that_fails_keeps_its_error(tide: Tidebase, db: psycopg.Connection[Any], late: bool) -> None:
    def fail() -> None:
        if late:
            running(db)
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        tide.run("w", lambda run, _: run.step("s", fail), run_id="r")
    step = tide.runs.steps("r")[0]
    assert (step.status, step.decision, step.attempt) == ("failed", "safe_replay", 1)
    assert types(tide)[2:4] == ["step.started", "step.failed"]
    assert tide.run("w", lambda run, _: run.step("s", lambda: 2), run_id="r") == 2
    assert tide.runs.steps("r")[0].attempt == 2


def test_a_single_connection_writes_the_start_first(database: str) -> None:
    """There is no other connection on which to write it later."""
    with psycopg.connect(database, autocommit=True) as connection:
        tide = Tidebase(connection)
        assert tide.run("w", lambda run, _: run.step("s", lambda: statuses(tide)), run_id="r") == ["running"]


@pytest.mark.parametrize("goes", [False, True], ids=["it sleeps", "it is gone"])
def test_the_thread_that_writes_starts_comes_by_only_while_there_are_steps(
    tide: Tidebase, db: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch, goes: bool
) -> None:
    monkeypatch.setattr("tidebase.core._threads._IDLE_S", 0.01 if goes else 600)
    marker, threads = tide._database.marker, []
    for name in ("first", "second"):
        tide.run("w", lambda run, _, name=name: run.step(name, lambda: running(db, name) or 7), run_id=name)
        assert types(tide, name) == ["run.created", "run.started", *STEP, "run.completed"]
        threads.append(marker._thread)
        for pause in moments():
            if not marker._looks and (marker._thread is None) == goes:
                break
            time.sleep(pause)
        assert not marker._looks and (marker._thread is None) == goes
    assert (threads[0] is threads[1]) == (not goes)
