"""Following a run: everything, in order, once, to the end; whatever breaks in between."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest

from tidebase import AsyncTidebase, RunNotFound, Tidebase, TidebaseError

from .conftest import on_every_version
from .probes.support import Connection, grant, new_run, poll, value, values
from .support.patience import PATIENCE_S, moments

ON_NEWEST = True


def numbers(tide: Tidebase, run_id: str, after: int = 0) -> list[int]:
    return [event.seq for event in tide.runs.subscribe(run_id, after)]


def write(db: Connection, run_id: str, token: int, count: int) -> None:
    db.execute("select tidebase.append_event(%s, %s, 'test.tick') from generate_series(1, %s)", [run_id, token, count])


@on_every_version
def test_followers_see_each_event_once_in_order_until_the_run_is_over(tide: Tidebase, db: Connection) -> None:
    tide.runs.create("w", run_id="r")
    with ThreadPoolExecutor(9) as pool:
        followers = [pool.submit(numbers, tide, "r", after) for after in range(8)]
        poll("all of them wait", lambda: len(tide._database.doorbell._waiting.get("r", ())) == 8)

        def work(run: Any, _: Any) -> None:
            for number in range(1200):  # more than a page
                run.emit("test.tick", number, transient=True)

        tide.run("w", work, run_id="r")
        seen = [follower.result(PATIENCE_S) for follower in followers]
    assert seen == [list(range(after + 1, 1204)) for after in range(8)]
    assert numbers(tide, "r", 1203) == [] and numbers(tide, "r", 5000) == []


@pytest.mark.parametrize("ending", ["cancel", "fail"])
def test_a_run_that_is_cancelled_or_failed_is_over(tide: Tidebase, db: Connection, ending: str) -> None:
    run_id = new_run(db)
    token = grant(db, run_id)
    with ThreadPoolExecutor(1) as pool:
        follower = pool.submit(numbers, tide, run_id)
        poll("it waits", lambda: run_id in tide._database.doorbell._waiting)
        if ending == "cancel":
            tide.runs.cancel(run_id)
        else:
            db.execute("select tidebase.fail_run(%s, %s)", [run_id, token])
        assert follower.result(PATIENCE_S) == [1, 2, 3]
    if ending == "fail":  # resumed, it has further events, for those who ask again
        grant(db, run_id)
        first = next(iter(tide.runs.subscribe(run_id, 3)))
        assert (first.seq, first.type) == (4, "run.started")


def test_no_connection_is_held_between_events(database: str, db: Connection) -> None:
    with Tidebase(database, pool_size=1) as tide:
        run_id = new_run(db)
        followers = [tide.runs.subscribe(run_id) for _ in range(5)]
        assert [next(follower).seq for follower in followers] == [1] * 5
        assert tide.runs.get(run_id).status == "pending"
        for follower in followers:
            follower.close()  # type: ignore[attr-defined]
    assert tide._database.doorbell._waiting == {}


def test_an_unknown_run_cannot_be_followed(tide: Tidebase) -> None:
    with pytest.raises(RunNotFound):
        next(iter(tide.runs.subscribe("nothing")))


async def collect(tide: AsyncTidebase, run_id: str, after: int = 0) -> list[int]:
    return [event.seq async for event in tide.runs.subscribe(run_id, after)]


async def when(condition: Callable[[], Any]) -> None:
    """Lets the loop go on until the condition holds."""
    for pause in moments():
        if condition():
            return
        await asyncio.sleep(pause)
    raise TimeoutError("it never happened")


async def test_many_tasks_follow_through_one_reader(atide: AsyncTidebase, db: Connection) -> None:
    """However many follow, the log is read for one; those who come late or are far behind read what they missed."""
    run_id = new_run(db)
    token = grant(db, run_id)
    write(db, run_id, token, 30)
    early = [asyncio.create_task(collect(atide, run_id, after)) for after in (0, 5, 32, 32)]
    feeds, feed = atide.runs._feeds._feeds, (asyncio.get_running_loop(), run_id)
    await when(lambda: feed in feeds and feeds[feed].followers == 4 and feeds[feed].last == 32)
    await asyncio.to_thread(write, db, run_id, token, 2500)  # more than is kept for those who are behind
    slow = atide.runs.subscribe(run_id)
    assert (await slow.__anext__()).seq == 1
    late = asyncio.create_task(collect(atide, run_id))
    db.execute("select tidebase.complete_run(%s, %s)", [run_id, token])
    assert [await task for task in early] == [list(range(after + 1, 2534)) for after in (0, 5, 32, 32)]
    assert await late == list(range(1, 2534))
    assert [event.seq async for event in slow] == list(range(2, 2534))
    assert feeds == {}


async def test_one_connection_listens_and_may_be_lost(atide: AsyncTidebase, db: Connection) -> None:
    runs = [new_run(db) for _ in range(20)]
    tokens = {run_id: grant(db, run_id) for run_id in runs}
    followers = [asyncio.create_task(collect(atide, run_id)) for run_id in runs for _ in range(5)]
    listening = "select count(*) from pg_stat_activity where datname = current_database() and query like 'listen %%'"
    await when(lambda: value(db, listening) == 1)
    for number in range(10):
        for run_id in runs:
            write(db, run_id, tokens[run_id], 1)
        if number in (2, 6):
            values(db, listening.replace("count(*)", "pg_terminate_backend(pid)"))
        await asyncio.sleep(0)
    for run_id in runs:
        db.execute("select tidebase.complete_run(%s, %s)", [run_id, tokens[run_id]])
    assert [await follower for follower in followers] == [list(range(1, 14))] * 100
    assert value(db, listening) <= 1


async def give_up(tide: AsyncTidebase, run_id: str) -> None:
    feeds, feed = tide.runs._feeds._feeds, (asyncio.get_running_loop(), run_id)
    tasks = [asyncio.create_task(collect(tide, run_id)) for _ in range(3)]
    await when(lambda: feed in feeds and feeds[feed].started.is_set())
    for task in tasks:
        task.cancel()
    ended = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(end) for end in ended] == [asyncio.CancelledError] * 3
    await when(lambda: feeds == {} and not tide._database.doorbell._waiting)
    with pytest.raises(RunNotFound):
        await collect(tide, "nothing")
    assert feeds == {}


async def test_followers_that_give_up_leave_nothing_behind(database: str, db: Connection) -> None:
    for _ in range(20):  # at any moment of the first look
        async with AsyncTidebase(database) as tide:
            await give_up(tide, new_run(db))


def test_a_doorbell_that_never_rings_costs_a_moment_only(tide: Tidebase, db: Connection) -> None:
    run_id = new_run(db)
    token = grant(db, run_id)
    seen: list[int] = []
    threading.Thread(target=lambda: seen.extend(numbers(tide, run_id)), daemon=True).start()
    poll("it waits", lambda: run_id in tide._database.doorbell._waiting)
    db.execute("delete from tidebase.watches")  # nobody is told
    db.execute("select tidebase.complete_run(%s, %s)", [run_id, token])
    poll("it has seen the end", lambda: seen == [1, 2, 3])


def test_nobody_follows_a_run_inside_a_transaction(tide: Tidebase, db: Connection) -> None:
    run_id = new_run(db)
    with db.transaction(), pytest.raises(TidebaseError, match="inside a transaction"):
        tide.bind(db).runs.subscribe(run_id)


async def test_nor_does_a_task(atide: AsyncTidebase, database: str) -> None:
    async with await psycopg.AsyncConnection.connect(database) as connection:
        with pytest.raises(TidebaseError, match="inside a transaction"):
            atide.bind(connection).runs.subscribe("r")


def test_a_burst_is_followed_to_its_end_although_only_its_beginning_rings(tide: Tidebase, db: Connection) -> None:
    run_id = new_run(db)
    token = grant(db, run_id)
    seen: list[int] = []
    follower = threading.Thread(target=lambda: seen.extend(numbers(tide, run_id)), daemon=True)
    follower.start()
    poll("it waits", lambda: run_id in tide._database.doorbell._waiting)
    for _ in range(500):
        db.execute("select tidebase.append_event(%s, %s, 'tick')", [run_id, token])
    db.execute("select tidebase.complete_run(%s, %s)", [run_id, token])
    follower.join(PATIENCE_S)
    assert seen == list(range(1, 504))
