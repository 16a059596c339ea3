"""What a transaction gives back, and what may be said about one: each option is honoured, or refused."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tidebase import (
    AsyncTidebase,
    InvalidArgument,
    NotSerializable,
    Run,
    RunNeedsReview,
    StepOutputDecodeError,
    StepTimeout,
    Tidebase,
    TidebaseError,
)

from .conftest import on_every_version
from .probes.support import poll, values
from .support.patience import PATIENCE_S
from .test_transaction import count

ON_NEWEST = True


@pytest.fixture(autouse=True)
def mine(db: psycopg.Connection[Any]) -> None:
    db.execute("create table mine (n int primary key)")


@dataclass
class Receipt:
    amount: Decimal
    tags: tuple[str, ...]


RECEIPT = Receipt(Decimal("1.50"), ("a", "b"))


def test_the_result_is_at_once_what_a_replay_gives(tide: Tidebase) -> None:
    seen: list[Any] = []

    def workflow(run: Run, input: Any) -> None:
        with run.transaction("plain") as plain:
            if not plain.replayed:
                plain.result = {"b": Decimal("1.50"), "a": (1, 2), "at": RECEIPT}
        with run.transaction("typed", returns=Receipt) as typed:
            if not typed.replayed:
                typed.result = RECEIPT
        seen.append((plain.result, list(plain.result), typed.result, plain.replayed))
        if run.attempt == 1:
            raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        tide.run("w", workflow, run_id="r")
    tide.run("w", workflow, run_id="r")
    assert [attempt[3] for attempt in seen] == [False, True]
    assert seen[0][:3] == seen[1][:3]
    assert seen[0][0]["a"] == [1, 2] and seen[0][2] == RECEIPT


async def test_the_result_is_at_once_what_a_replay_gives_awaited(atide: AsyncTidebase) -> None:
    async with await atide.runs.attach("w", run_id="r") as session:
        async with session.transaction("t", returns=Receipt) as tx:
            tx.result = {"amount": "1.50", "tags": ["a", "b"]}
        async with session.transaction("u") as other:
            other.result = (Decimal(1),)
        assert (tx.result, other.result) == (RECEIPT, ["1"])
    async with await atide.runs.attach("w", run_id="r") as session:
        async with session.transaction("t", returns=Receipt) as tx:
            assert tx.replayed
        assert tx.result == RECEIPT


@pytest.mark.parametrize(
    ("result", "returns", "error"),
    [(object(), Any, NotSerializable), (float("nan"), Any, NotSerializable), ("text", int, StepOutputDecodeError)],
    ids=["object", "nan", "another type"],
)
def test_a_result_that_would_not_come_back_rolls_all_back(
    tide: Tidebase, db: psycopg.Connection[Any], result: Any, returns: Any, error: type[Exception]
) -> None:
    with tide.runs.attach("w", run_id="r") as session:
        with pytest.raises(error), session.transaction("t", returns=returns) as tx:
            tx.execute("insert into mine values (1)")
            tx.result = result
        assert (count(db), tide.runs.steps("r")[0].status) == (0, "failed")
        with session.transaction("t") as tx:
            tx.execute("insert into mine values (1)")
            tx.result = 1
    assert (count(db), tide.runs.steps("r")[0].output) == (1, 1)


@pytest.mark.parametrize(
    "options",
    [{"retries": 3}, {"retry_on": ValueError}, {"retry_delay_s": 1}, {"retry_max_delay_s": 1}, {"mark_start": False}],
    ids=str,
)
async def test_what_a_block_cannot_have_is_refused_before_anything_is_begun(
    tide: Tidebase, atide: AsyncTidebase, options: Any
) -> None:
    """Nobody but its caller can execute a block again; the message names the function form, where that helps."""
    matches = "mark_start" if "mark_start" in options else r"run\.transaction\(name, function"
    session = tide.runs.attach("w", run_id="r")
    with pytest.raises(InvalidArgument, match=matches), session.transaction("t", **options):
        raise AssertionError
    awaited = await atide.runs.attach("w", run_id="a")
    with pytest.raises(InvalidArgument, match=matches):
        async with awaited.transaction("t", **options):
            raise AssertionError
    assert (list(tide.runs.steps("r")), list(tide.runs.steps("a"))) == ([], [])
    with session.transaction("t", retries=0, mark_start=True):
        pass


def test_a_function_is_retried_and_each_failure_is_rolled_back(tide: Tidebase, db: psycopg.Connection[Any]) -> None:
    calls: list[int] = []

    def workflow(run: Run, input: Any) -> Receipt:
        def charge(tx: Any) -> Receipt:
            calls.append(tx.execute("insert into mine values (1)").rowcount)
            run.usage.record(quantity=1, unit="calls")
            if len(calls) < 3:
                raise ConnectionResetError("the bank is busy")
            return RECEIPT

        receipt = run.transaction("charge", charge, retries=2, retry_delay_s=0, input=input)
        if run.attempt == 1:
            raise KeyError
        return receipt

    with pytest.raises(KeyError):
        tide.run("w", workflow, run_id="r", input=7)
    assert tide.run("w", workflow, run_id="r") == RECEIPT
    assert (calls, count(db)) == ([1, 1, 1], 1)  # once more, it was not called at all
    [step] = tide.runs.steps("r")
    assert (step.name, step.attempt, step.retries, step.input) == ("charge", 3, 2, 7)
    assert [(row.step, row.records) for row in tide.runs.usage_by_step("r")] == [("charge", 3)]


def test_a_function_that_goes_on_failing_fails(tide: Tidebase, db: psycopg.Connection[Any]) -> None:
    calls: list[int] = []

    def charge(tx: Any) -> None:
        calls.append(1)
        tx.execute("insert into mine values (1)")
        raise ValueError if len(calls) == 2 else KeyError

    session = tide.runs.attach("w", run_id="r")
    with pytest.raises(ValueError):
        session.transaction("charge", charge, retries=5, retry_on=KeyError, retry_delay_s=0)
    assert (len(calls), count(db), tide.runs.steps("r")[0].status) == (2, 0, "failed")


async def test_a_function_awaited(atide: AsyncTidebase, db: psycopg.Connection[Any]) -> None:
    calls: list[int] = []

    async def charge(tx: Any) -> Receipt:
        calls.append(1)
        await tx.execute("insert into mine values (1)")
        if len(calls) == 1:
            raise ConnectionResetError
        return RECEIPT

    for _ in range(2):
        async with await atide.runs.attach("w", run_id="r") as session:
            assert await session.transaction("charge", charge, retries=1, retry_delay_s=0) == RECEIPT
    assert (len(calls), count(db)) == (2, 1)


def test_an_async_function_in_a_thread_is_refused(tide: Tidebase, db: psycopg.Connection[Any]) -> None:
    async def charge(tx: Any) -> None: ...

    with tide.runs.attach("w") as session, pytest.raises(TypeError, match="AsyncTidebase"):
        session.transaction("charge", charge)


@on_every_version
@pytest.mark.parametrize("how", ["statement", "statements", "idle"])
def test_what_takes_too_long_is_rolled_back(tide: Tidebase, db: psycopg.Connection[Any], how: str) -> None:
    with tide.runs.attach("w", run_id="r") as session:
        with pytest.raises(StepTimeout, match="longer") as late, session.transaction("t", timeout_s=0.2) as tx:
            tx.execute("insert into mine values (1)")
            if how == "statement":
                tx.execute("select pg_sleep(100)")  # the server ends it
            elif how == "idle":
                alive = "select count(*) from pg_stat_activity where pid = %s"  # nobody waits for one who sleeps
                poll("the server ends it", lambda: values(db, alive, tx.connection.info.backend_pid) == [0])
            else:
                for _ in range(10):
                    tx.execute("select pg_sleep(0.03)")
        assert isinstance(late.value.__cause__, psycopg.errors.QueryCanceled) == (how == "statement")
        assert (count(db), tide.runs.steps("r")[0].status) == (0, "failed")
        with session.transaction("t", timeout_s=100) as tx:
            tx.execute("insert into mine values (1)")
    assert count(db) == 1
    with tide._database.connection() as connection:
        assert connection.execute("show statement_timeout").fetchone() == ("0",)


async def test_what_takes_too_long_is_rolled_back_awaited(atide: AsyncTidebase, db: psycopg.Connection[Any]) -> None:
    async with await atide.runs.attach("w", run_id="r") as session:
        with pytest.raises(StepTimeout, match="longer"):
            async with session.transaction("t", timeout_s=0.05) as tx:
                await tx.execute("insert into mine values (1)")
                await tx.execute("select pg_sleep(100)")
    assert count(db) == 0


def test_a_shorter_limit_of_the_users_own_stays(database: str) -> None:
    with Tidebase(f"{database}&options=-c%20statement_timeout%3D1234ms") as tide, tide.runs.attach("w") as session:  # noqa: SIM117
        with session.transaction("t", timeout_s=100) as tx:
            assert tx.execute("show statement_timeout").fetchone() == ("1234ms",)


@pytest.mark.parametrize(
    ("options", "status"),
    [
        ({"side_effects": ["mail.send"]}, "review"),
        ({"side_effects": ["mail.send"], "idempotency_key": "k"}, "completed"),
        ({"replay": "never"}, "review"),
        ({"replay": "manual"}, "review"),
        ({"checkpoint_invariant": "the books balance"}, "completed"),
        ({}, "completed"),
    ],
    ids=str,
)
def test_a_contract_is_about_what_is_done_besides(
    tide: Tidebase, db: psycopg.Connection[Any], options: Any, status: str
) -> None:
    """Of its SQL a crash leaves nothing, so without one a transaction is executed again; with one a person decides."""
    script = f"""
import os, signal, sys
from tidebase import Tidebase

with Tidebase(lease_s=0.2) as tide:
    session = tide.runs.attach("w", run_id="r")
    with session.transaction("t", **{options!r}) as tx:
        tx.execute("insert into mine values (1)")
        os.kill(os.getpid(), signal.SIGKILL)
"""
    environment = {**os.environ, "TIDEBASE_DATABASE_URL": tide.url, "PYTHONPATH": os.pathsep.join(sys.path)}
    dead = subprocess.run([sys.executable, "-c", script], env=environment, timeout=PATIENCE_S)
    assert dead.returncode == -signal.SIGKILL

    def workflow(run: Run, input: Any) -> None:
        with run.transaction("t", **options) as tx:
            tx.execute("insert into mine values (1)")

    try:
        tide.run("w", workflow, run_id="r", wait_s=PATIENCE_S)
    except RunNeedsReview:
        assert status == "review"
    assert tide.runs.steps("r")[0].status == status
    assert count(db) == (status == "completed")


@contextmanager
def single(database: str, **options: Any) -> Iterator[Tidebase]:
    with psycopg.connect(database, **options) as connection, Tidebase(connection) as tide:
        yield tide


def test_one_connection_does_not_wait_for_itself(database: str, db: psycopg.Connection[Any]) -> None:
    def workflow(run: Run, input: Any) -> Any:
        with pytest.raises(ZeroDivisionError), run.transaction("t") as tx:
            tx.execute("insert into mine values (1)")
            raise ZeroDivisionError
        with run.transaction("t") as tx:
            tx.execute("insert into mine values (1)")
            tx.result = 2
        return run.step("after", lambda: tx.result)

    with Tidebase(database, pool_size=1) as tide:
        assert tide.run("w", workflow, run_id="pool") == 2
    db.execute("delete from mine")
    for autocommit in (True, False):
        with single(database, autocommit=autocommit) as tide:
            assert tide.run("w", workflow, run_id=f"single {autocommit}") == 2
        assert count(db) == 1
        db.execute("delete from mine")


def test_nothing_else_is_done_inside_a_transaction_on_the_only_connection(
    database: str, db: psycopg.Connection[Any]
) -> None:
    """A paid step would be rolled back with the block."""
    with single(database, autocommit=True) as tide, tide.runs.attach("w", run_id="r") as session:
        for call in (
            lambda: session.step("paid", lambda: 1),
            lambda: session.emit("x"),
            lambda: session.transaction("inner").__enter__(),
        ):
            with pytest.raises(TidebaseError, match="only connection"), session.transaction("t") as tx:
                tx.execute("insert into mine values (1)")
                call()
        assert count(db) == 0
        assert session.step("paid", lambda: 1) == 1


async def test_one_connection_does_not_wait_for_itself_awaited(database: str, db: psycopg.Connection[Any]) -> None:
    async def use(tide: AsyncTidebase, run_id: str, alone: bool) -> None:
        async with await tide.runs.attach("w", run_id=run_id) as session:
            with pytest.raises(ZeroDivisionError):
                async with session.transaction("t") as tx:
                    await tx.execute("insert into mine values (1)")
                    raise ZeroDivisionError
            if alone:
                with pytest.raises(TidebaseError, match="only connection"):
                    async with session.transaction("t") as tx:
                        await session.emit("x")
            async with session.transaction("t") as tx:
                await tx.execute("insert into mine values (1)")
            await session.step("after", lambda: 1)
        assert count(db) == 1
        db.execute("delete from mine")

    async with AsyncTidebase(database, pool_size=1) as tide:
        await use(tide, "pool", alone=False)
    async with await psycopg.AsyncConnection.connect(database, autocommit=True) as connection:
        await use(AsyncTidebase(connection), "single", alone=True)


def test_a_step_of_the_same_name_is_known_to_have_been_begun(tide: Tidebase) -> None:
    """A quick step is executed before the database hears of it, unless the name is known."""
    with tide.runs.attach("w", run_id="r") as session:
        with session.transaction("t") as tx:
            tx.result = 1
        executed: list[int] = []
        with suppress(TidebaseError):  # it may be refused
            assert session.step("t", lambda: executed.append(1) or 2) == 1
        assert executed == []


def test_the_package_does_without_the_libraries_whose_connections_it_joins() -> None:
    code = "import sys, tidebase, tidebase.client.tide_async; assert not {'sqlalchemy', 'django'} & sys.modules.keys()"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment, cwd=Path(__file__).parent)
