"""Forks: a child of os.fork() has connections of its own, its parent keeps those that it had; and what close() leaves.

Event loops, too: each has a pool of its own.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
from psycopg_pool import ConnectionPool

from tidebase import AsyncRun, AsyncTidebase, LeaseLostError, Run, Tidebase, TidebaseError
from tidebase.core.flow import drive_async
from tidebase.core.mark import Answer

from .support.gate import reached, until, value, values
from .support.patience import PATIENCE_S

ON_NEWEST = True

Db = psycopg.Connection[Any]
LISTENING = "select from pg_stat_activity where datname = current_database() and query ilike 'listen%%'"
ROOT = Path(__file__).parent.parent

pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


@contextmanager
def child(work: Callable[[], Any]) -> Iterator[None]:
    """Does the work in a fork of this process while the block runs; fails unless it has ended well."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    try:
        yield
    finally:
        _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0, "see what it has printed"


def echo(run: Run, text: str) -> list[str]:
    return [run.step.options(key=number)("said", lambda: text) for number in range(3)]


def many(tide: Tidebase, prefix: str, calls: int = 60) -> None:
    """Calls whose answers tell whose they are."""
    for number in range(calls):
        text = f"{prefix}-{number}"
        assert tide.run("echo", echo, input=text, run_id=text) == [text] * 3
        assert tide.runs.get(text).run_id == text


def sessions_of(db: Db) -> set[int]:
    query = "select pid from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()"
    return set(values(db, query))


def test_children_and_their_parent_are_not_given_each_others_answers(database: str, db: Db) -> None:
    """The parent has used everything: its pool, a transaction, heartbeats, the doorbell, the marker's thread."""
    with Tidebase(database, lease_s=3) as tide:
        many(tide, "before", 5)
        session = tide.runs.attach("w", run_id="session")
        session.step.options(mark_start=True)("marked", lambda: 1)
        with tide._database.connection() as connection, connection.transaction():
            mine = connection.execute("select pg_backend_pid()").fetchone()
            with tide._database.doorbell.listening("session"):
                before = sessions_of(db)
                with child(lambda: (connection.close(), many(tide, "one"))), child(lambda: many(tide, "two")):
                    many(tide, "parent")
                assert before <= sessions_of(db), "the parent's sessions outlive its children"
            assert connection.execute("select pg_backend_pid()").fetchone() == mine
        renewed = "(select lease_expires_at from tidebase.run_heads where run_id = 'session')"
        until(db, f"{renewed} > %s", value(db, f"select {renewed}"))
        session.complete()
        many(tide, "after", 5)


def test_a_session_in_a_child_is_renewed_by_the_child(database: str, db: Db) -> None:
    with Tidebase(database, lease_s=1) as tide:
        many(tide, "before", 1)

        def work() -> None:
            session = tide.runs.attach("w", run_id="of the child")
            with psycopg.connect(database, autocommit=True) as mine:
                expires = "(select lease_expires_at from tidebase.run_heads where run_id = 'of the child')"
                for _ in range(3):
                    until(mine, f"{expires} > %s", value(mine, f"select {expires}"))
            session.complete()

        with child(work):
            pass
    assert value(db, "select status from tidebase.run_heads where run_id = 'of the child'") == "completed"


@pytest.mark.parametrize("kind", ["pool", "connection"])
def test_what_the_caller_has_opened_is_refused_in_a_child(database: str, kind: str) -> None:
    opened: Any = (
        ConnectionPool(database, kwargs={"autocommit": True}, min_size=1, open=True)
        if kind == "pool"
        else psycopg.connect(database, autocommit=True)
    )
    with closing(opened), Tidebase(opened) as tide:
        many(tide, "before", 1)

        def work() -> None:
            with pytest.raises(
                TidebaseError, match=f"this {kind} was opened by the process that this one is a fork of"
            ):
                many(tide, "child", 1)

        with child(work):
            pass
        many(tide, "after", 1)


def test_a_child_that_leaves_a_workflow_gives_up_nothing(database: str, db: Db) -> None:
    """Returning, it would complete the parent's steps; raising, it would fail or release the parent's run."""
    with Tidebase(database) as tide:
        for end in ("return", "raise", "exit"):

            def step(end: str = end) -> int:
                pid = os.fork()
                if pid == 0:
                    if end == "raise":
                        raise ValueError("in the child")
                    if end == "exit":
                        raise SystemExit(3)
                    return 0
                return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

            def work(run: Run, _: Any, step: Callable[[], int] = step) -> int:
                return run.step("s", step)

            parent = os.getpid()
            try:
                code = tide.run("w", work, run_id=end)
            except BaseException as error:
                if os.getpid() == parent:
                    raise
                os._exit(42 if isinstance(error, LeaseLostError | SystemExit) else 1)
            if os.getpid() != parent:
                os._exit(1)
            assert code == 42
            assert values(db, "select status from tidebase.run_heads where run_id = %s", end) == ["completed"]
            assert value(db, "select count(*) from tidebase.attempts where run_id = %s", end) == 1


def in_a_pool(prefix: str) -> str:
    many(POOLED[0], prefix, 20)
    return prefix


POOLED: list[Tidebase] = []


def test_multiprocessing_forks(database: str) -> None:
    with Tidebase(database) as tide:
        many(tide, "before", 5)
        POOLED[:] = [tide]
        with multiprocessing.get_context("fork").Pool(3) as workers:
            names = [f"task {number}" for number in range(6)]
            answers = workers.map_async(in_a_pool, names, chunksize=1)
            many(tide, "parent", 20)
            assert answers.get(120) == names
        many(tide, "after", 5)


def test_gunicorn_preloads(database: str, db: Db, tmp_path: Path) -> None:
    environment = {**os.environ, "TIDEBASE_DATABASE_URL": database, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "gunicorn", "--preload", "--workers", "3", "--threads", "2"]
    command += ["--bind", f"unix:{tmp_path}/socket", "--worker-class", "gthread", "--no-control-socket"]
    log = tmp_path / "log"
    with log.open("wb") as output:
        arguments = [*command, "tests.support.preloaded:application"]
        server = subprocess.Popen(arguments, cwd=ROOT, env=environment, stdout=output, stderr=output)
    try:
        reached(lambda: (tmp_path / "socket").exists() or server.poll() is not None)
        transport = httpx.HTTPTransport(uds=f"{tmp_path}/socket", retries=5)
        names, seen = map("r{}".format, itertools.count()), set()

        def served_by_two() -> bool:
            """Asks 30 times; which worker answers is chance."""
            asked = list(itertools.islice(names, 30))
            answers = list(threads.map(lambda name: client.get(f"/{name}").text.split(), asked))
            assert [answer[1:] for answer in answers] == [[name] for name in asked], log.read_text()
            seen.update(answer[0] for answer in answers)
            return len(seen) > 1

        once = {"Connection": "close"}  # the next is for whoever is faster
        with (
            httpx.Client(transport=transport, base_url="http://app", timeout=PATIENCE_S, headers=once) as client,
            ThreadPoolExecutor(6) as threads,
        ):
            reached(served_by_two)
        renewed = "(select lease_expires_at from tidebase.run_heads where run_id = 'session')"
        until(db, f"{renewed} > %s", value(db, f"select {renewed}"))
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(PATIENCE_S)


# --- event loops ---


async def aecho(run: AsyncRun, text: str) -> list[str]:
    return [await run.step.options(key=number)("said", lambda: text) for number in range(3)]


async def amany(tide: AsyncTidebase, prefix: str, calls: int = 20) -> None:
    async def one(text: str) -> None:
        assert await tide.run("echo", aecho, input=text, run_id=text) == [text] * 3

    await asyncio.gather(*(one(f"{prefix}-{number}") for number in range(calls)))


def test_one_tidebase_serves_several_event_loops(database: str, db: Db) -> None:
    """One after another, as asyncio.run in a script or a Celery task has it, and in threads at the same time."""
    tide = AsyncTidebase(database, lease_s=3)
    for number in range(3):
        asyncio.run(amany(tide, f"after-another-{number}"))
    barrier = threading.Barrier(3)

    async def at_once(number: int) -> None:
        session = await tide.runs.attach("w", run_id=f"session-{number}")
        await asyncio.to_thread(barrier.wait, 60)
        await amany(tide, f"at-once-{number}")
        await session.complete()

    with ThreadPoolExecutor(3) as threads:
        list(threads.map(lambda number: asyncio.run(at_once(number)), range(3)))
    asyncio.run(tide.close())
    gc.collect()
    assert value(db, "select count(*) from tidebase.run_heads where status = 'completed'") == 123


def test_an_event_loop_ends_while_its_pool_opens_a_connection(database: str, db: Db) -> None:
    """Who logs in waits for a lock, and the loop is left without a word to the pool."""

    async def left_open() -> None:
        tide = AsyncTidebase(database)
        await tide.runs.create("w")
        db.execute("begin")
        db.execute("lock table pg_authid")
        calls = [asyncio.create_task(tide.runs.create("w")) for _ in range(3)]
        newcomer = "select from pg_locks where relation = 'pg_authid'::regclass and not granted"
        await asyncio.to_thread(until, db, f"exists ({newcomer})")
        del calls

    loop = threading.Thread(target=lambda: asyncio.run(left_open()), daemon=True)
    loop.start()
    loop.join(PATIENCE_S)
    has_ended = not loop.is_alive()
    db.execute("rollback")
    assert has_ended


def test_event_loops_of_a_child(database: str) -> None:
    tide = AsyncTidebase(database)
    asyncio.run(amany(tide, "before", 3))
    with child(lambda: asyncio.run(amany(tide, "child"))):
        asyncio.run(amany(tide, "parent"))


def test_a_callers_connection_stays_in_its_event_loop(database: str) -> None:
    async def work() -> None:
        async with await psycopg.AsyncConnection.connect(database, autocommit=True) as connection:
            tide = AsyncTidebase(connection)
            await amany(tide, "here", 1)

            def elsewhere() -> None:
                with pytest.raises(TidebaseError, match="in use in another event loop"):
                    asyncio.run(amany(tide, "there", 1))

            await asyncio.to_thread(elsewhere)

    asyncio.run(work())


async def test_an_answer_that_is_an_error_is_not_complained_about(database: str) -> None:
    complaints: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: complaints.append(context))

    def flow(future: Future[Any]) -> Any:
        yield Answer(future, 60)

    async with AsyncTidebase(database) as tide:
        future: Future[Any] = Future()
        waiting = asyncio.create_task(drive_async(flow(future), tide._database))
        await asyncio.sleep(0)
        future.set_exception(ValueError("refused"))
        await waiting
        del waiting, future
        gc.collect()
        await asyncio.sleep(0)
    assert complaints == []


# --- after close() ---


def test_what_was_closed_is_opened_again(database: str, db: Db) -> None:
    tide = Tidebase(database, lease_s=3)
    for number in range(3):
        many(tide, f"sync-{number}", 3)
        session = tide.runs.attach("w", run_id=f"session-{number}")
        renewed = f"(select lease_expires_at from tidebase.run_heads where run_id = 'session-{number}')"
        until(db, f"{renewed} > %s", value(db, f"select {renewed}"))
        session.step.options(mark_start=True)("marked", lambda: 1)
        with tide._database.doorbell.listening(f"session-{number}") as rung:
            until(
                db,
                "exists (select from pg_stat_activity where datname = current_database() and query ilike 'listen%%')",
            )
            db.execute("select pg_notify('tidebase_events', %s)", [f"session-{number}"])
            assert rung.wait(PATIENCE_S)
        session.complete()
        tide.close()
        reached(lambda: not sessions_of(db))


async def test_what_was_closed_is_opened_again_async(database: str, db: Db) -> None:
    tide = AsyncTidebase(database, lease_s=3)
    for number in range(3):
        await amany(tide, f"async-{number}", 3)
        session = await tide.runs.attach("w", run_id=f"session-{number}")
        renewed = f"(select lease_expires_at from tidebase.run_heads where run_id = 'session-{number}')"
        await asyncio.to_thread(until, db, f"{renewed} > %s", value(db, f"select {renewed}"))
        await session.complete()
        await tide.close()
        await asyncio.to_thread(reached, lambda: not sessions_of(db))
