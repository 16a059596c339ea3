"""The same from asyncio: what differs is who waits, not what holds."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import psycopg
import pytest

from tidebase import (
    AsyncRun,
    AsyncTidebase,
    InputMismatch,
    InvalidArgument,
    LeaseLostError,
    NotFound,
    RunFinal,
    RunNotFound,
    StepTimeout,
    Tidebase,
    step,
)

from .conftest import on_every_version

ON_NEWEST = True


async def double(number: int) -> int:
    await asyncio.sleep(0)
    return 2 * number


@step("triple")
async def triple(number: int) -> int:
    return 3 * number


@on_every_version
async def test_gathered_steps_are_each_done_once(atide: AsyncTidebase) -> None:
    calls: list[int] = []

    async def noted(number: int) -> int:
        calls.append(number)
        return await double(number)

    async def workflow(run: AsyncRun, input: Any) -> list[int]:
        steps = (run.step.options(key=number)("s", noted, number) for number in range(20))
        results = await asyncio.gather(*steps)
        if run.attempt == 1:
            raise ConnectionResetError
        return [*results, await triple(1), await run.step("plain", lambda: 5)]

    with pytest.raises(ConnectionResetError):
        await atide.run("w", workflow, run_id="r")
    assert await atide.run("w", workflow, run_id="r") == [*range(0, 40, 2), 3, 5]
    assert sorted(calls) == list(range(20))


async def test_another_input_is_refused(atide: AsyncTidebase) -> None:
    async def workflow(run: AsyncRun, input: Any) -> Any:
        await run.step("s", double, run.attempt)
        raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        await atide.run("w", workflow, run_id="r")
    with pytest.raises(InputMismatch):
        await atide.run("w", workflow, run_id="r")


async def test_a_cancelled_task_gives_its_lease_up(atide: AsyncTidebase) -> None:
    reached = asyncio.Event()

    async def workflow(run: AsyncRun, input: Any) -> None:
        reached.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(atide.run("w", workflow, run_id="r"))
    await reached.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (await atide.runs.get("r")).status == "pending"


async def test_a_lost_lease_cancels_the_work(database: str, db: psycopg.Connection[Any]) -> None:
    async def workflow(run: AsyncRun, input: Any) -> None:
        with db.transaction():
            db.execute("update tidebase.run_heads set lease_expires_at = clock_timestamp()")
            db.execute("select tidebase.acquire_run('r', 'thief')")
        await asyncio.Event().wait()  # only the heartbeat can end this

    async with AsyncTidebase(database, lease_s=0.3) as tide:
        with pytest.raises(LeaseLostError):
            await tide.run("w", workflow, run_id="r")
        if sys.version_info >= (3, 11):
            task = asyncio.current_task()
            assert task is not None and task.cancelling() == 0
        assert (await tide.runs.get("r")).holder == "thief"


async def test_except_exception_does_not_swallow_a_lost_lease(
    atide: AsyncTidebase, db: psycopg.Connection[Any]
) -> None:
    swallowed = []

    async def workflow(run: AsyncRun, input: Any) -> None:
        db.execute("update tidebase.run_heads set lease_expires_at = clock_timestamp()")
        db.execute("select tidebase.acquire_run('r', 'thief')")
        try:
            await run.step("s", double, 1)
        except Exception as error:
            swallowed.append(error)

    with pytest.raises(LeaseLostError):
        await atide.run("w", workflow, run_id="r")
    assert swallowed == []


async def test_a_step_that_takes_too_long_times_out(atide: AsyncTidebase) -> None:
    async def workflow(run: AsyncRun, input: Any) -> Any:
        return await run.step("s", asyncio.Event().wait, timeout_s=0.01)

    with pytest.raises(StepTimeout):
        await atide.run("w", workflow)


async def test_sessions_and_transactions(atide: AsyncTidebase, db: psycopg.Connection[Any]) -> None:
    db.execute("create table mine (n int)")
    for attempt in (1, 2):
        async with await atide.runs.attach("w", run_id="r") as session:
            async with session.transaction("t") as tx:
                await tx.execute("insert into mine values (1)")
                tx.result = tx.result or attempt
            assert (tx.result, tx.replayed) == (1, attempt == 2)
            if attempt == 2:
                await session.complete("done")
    assert db.execute("select count(*) from mine").fetchone() == (1,)
    with pytest.raises(RunFinal):
        await atide.runs.attach("w", run_id="r")
    assert [event.seq async for event in atide.runs.events("r", page=2)] == list(range(1, 8))
    assert [info.run_id for info in await atide.runs.list()] == ["r"]
    assert [info.name for info in await atide.runs.steps("r")] == ["t"]


async def test_a_run_made_in_a_transaction_exists_if_that_commits(atide: AsyncTidebase, database: str) -> None:
    async with await psycopg.AsyncConnection.connect(database) as connection:
        await atide.bind(connection).runs.create("w", run_id="rolled back")
        await connection.rollback()
        await atide.bind(connection).runs.create("w", run_id="committed")
    assert [info.run_id for info in await atide.runs.list()] == ["committed"]


async def test_the_schema_is_migrated(empty_database: str) -> None:
    async with AsyncTidebase(empty_database) as tide:
        assert (await tide.migrate()).migrations
        assert (await tide.migrate()).is_current
        assert await tide.run("w", double_of) == 2


async def double_of(run: AsyncRun, input: Any) -> int:
    return await run.step("s", double, 1)


async def test_a_run_and_a_step_are_found_by_their_names(atide: AsyncTidebase, tide: Tidebase) -> None:
    tide.run("w", lambda run, _: run.step("s", lambda: 1, input=2), run_id="apple")
    assert await atide.runs.find("ap") == tide.runs.find("appl") == "apple"
    step = await atide.runs.step("apple", "s")
    assert step == tide.runs.step("apple", "s") and (step.input, step.output) == (2, 1)
    assert await atide.runs.steps("apple", max=1) == tide.runs.steps("apple", max=1) == [step]
    assert await atide.runs.steps("apple", max=0) == []
    tide.runs.create("w", run_id="apricot")
    for wrong, error in ((("ap",), InvalidArgument), (("b",), RunNotFound)):
        with pytest.raises(error):
            await atide.runs.find(*wrong)
        with pytest.raises(error):
            tide.runs.find(*wrong)
    for names, error in ((("apple", "x"), NotFound), (("b", "s"), RunNotFound)):
        with pytest.raises(error):
            await atide.runs.step(*names)
        with pytest.raises(error):
            tide.runs.step(*names)
