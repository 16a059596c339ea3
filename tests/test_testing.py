"""The kit for tests of workflows: time that passes, crashes at a step, runs that are played again; its fixtures, from
their server to its end; and that it finds what it is there to find.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from itertools import pairwise
from pathlib import Path
from typing import Any

import psycopg
import pytest
from click.testing import CliRunner, Result
from psycopg import sql

from tidebase import (
    AsyncRun,
    AsyncTidebase,
    InvalidArgument,
    Run,
    RunCancelledError,
    RunHeld,
    RunSuspendedError,
    Tidebase,
)
from tidebase.cli import main
from tidebase.testing import (
    Databases,
    Died,
    Rehearsal,
    ReplayMismatch,
    advance,
    clock,
    crash_at,
    rehearse,
    rehearse_async,
    replay,
)

from .conftest import Server
from .support.patience import TEST_S, moments
from .test_migrations import landed, last_state

__all__ = ["landed"]

ON_NEWEST = True
EXAMPLES = Path(__file__).parents[1] / "python" / "examples"


def test_the_examples_are_tested_with_it(server: Server, tmp_path: Path) -> None:
    """In a pytest of their own, with the plugin's own server, which is gone at the end."""
    result = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-p", "tidebase.testing.plugin", "-p", "no:cacheprovider"),
            *("-o", "addopts=", "-v", "--basetemp", str(tmp_path / "base"), str(EXAMPLES)),
        ],
        env={**clean_environment(), "TMPDIR": str(tmp_path), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
        timeout=TEST_S,
    )
    assert result.returncode == 0, result.stdout[-5000:] + result.stderr
    assert "test_the_careless_order_charges_twice PASSED" in result.stdout
    assert not list(tmp_path.glob("tidebase-testing-*"))


def clean_environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "TIDEBASE_TEST"))}


# --- time ---


def times(db: psycopg.Connection[Any]) -> dict[tuple[str, str, str], list[Any]]:
    """Every time that is stored, by its column."""
    found: dict[tuple[str, str, str], list[Any]] = {}
    for (schema, table), kinds in clock.columns(db).items():
        for column, kind in kinds.items():
            if kind.startswith("timestamp"):
                query = sql.SQL("select {0}::text from {1} where isfinite({0})")
                rows = db.execute(query.format(sql.Identifier(column), sql.Identifier(schema, table)))
                found[schema, table, column] = sorted(datetime.fromisoformat(row[0]) for row in rows)
    return found


@last_state
@pytest.mark.breaks_invariants
def test_every_time_that_is_stored_is_moved_or_listed(landed: psycopg.Connection[Any]) -> None:
    """In a database that has been through all: no column can be forgotten, because only what stays is named."""
    with Tidebase(landed) as tide:
        tide.migrate()
    landed.execute("create table tidebase.newcomer (run_id text primary key, at timestamptz)")
    landed.execute("insert into tidebase.newcomer values ('r', now())")
    before = times(landed)
    advance(landed, "3 days", reconcile=False)
    after = times(landed)
    stayed = {
        (f"{schema}.{table}", column)
        for (schema, table, column), values in before.items()
        if values and after[schema, table, column] == values
    }
    assert {one for one in stayed if "_yoyo_" not in one[0]} <= set(clock.KEPT)
    for (schema, table, column), values in before.items():
        if (f"{schema}.{table}", column) not in stayed:
            assert after[schema, table, column] == [value - timedelta(days=3) for value in values], (table, column)
    assert ("tidebase", "newcomer", "at") in before and ("tidebase.newcomer", "at") not in stayed
    assert set(clock.KEPT) <= {(f"{schema}.{table}", column) for schema, table, column in before}
    assert all(clock.KEPT.values())
    landed.execute("drop table tidebase.newcomer")
    assert landed.execute("select * from tidebase.check_invariants()").fetchall() == []


def test_what_only_time_brings_has_come(tide: Tidebase, db: psycopg.Connection[Any]) -> None:
    """A lease, a gate, a timer, a deadline, a retry, a delay, a webhook and a channel, in one go."""

    def asking(run: Run, input: Any) -> Any:
        return run.gate("ok", "Ok?", suspend=True, timeout_s=86_400, default_decision="rejected").decision

    def sleeping(run: Run, input: Any) -> str:
        run.sleep("rest", 7 * 86_400, suspend=True)
        return "rested"

    for name, function in (("asking", asking), ("sleeping", sleeping)):
        with pytest.raises(RunSuspendedError):
            tide.run(name, function, run_id=name)
    db.execute("select tidebase.create_run('w', run_id => 'late', deadline => now() + interval '5 days')")
    db.execute("select tidebase.create_run('w', run_id => 'lost')")
    held = db.execute("select token from tidebase.acquire_run('lost', 'somebody', '1 hour')").fetchone()
    db.execute("select tidebase.create_run('w', run_id => 'failing', max_attempts => 3, retry_delay => '1 day')")
    token = db.execute("select token from tidebase.acquire_run('failing', 'me')").fetchone()
    assert token is not None and held is not None
    db.execute("select tidebase.fail_run('failing', %s, '{}')", token)
    tide.enqueue("w", run_id="later", delay_s=6 * 86_400)
    db.execute("select tidebase.add_channel('lost', 'https://example.com/', secret => 'long-and-random')")
    claim = "select count(*) from tidebase.claim_channel_deliveries(max => 10)"

    assert tide.runs.get("failing").status == "pending" and db.execute(claim).fetchone() == (1,)
    assert db.execute(claim).fetchone() == (0,)  # somebody is at it
    assert db.execute("select count(*) from tidebase.claim_runs(array['default'], 'w')").fetchone() == (0,)
    advance(db, timedelta(days=7))
    assert tide.run("asking", asking, run_id="asking") == "rejected"
    assert tide.run("sleeping", sleeping, run_id="sleeping") == "rested"
    with pytest.raises(RunCancelledError):
        tide.run("w", lambda run, input: None, run_id="late")
    assert tide.run("w", lambda run, input: run.attempt, run_id="lost") == 2
    assert "run.lapsed" in [event.type for event in tide.runs.events("lost")]
    assert tide.run("w", lambda run, input: run.attempt, run_id="failing") == 2
    assert db.execute("select run_id from tidebase.claim_runs(array['default'], 'w')").fetchall() == [("later",)]
    assert db.execute(claim).fetchone() == (1,)


def test_each_day_a_schedule_makes_a_run(tide: Tidebase, db: psycopg.Connection[Any]) -> None:
    """Three days in a row have three times, although the clock on the wall shows the same one each time."""
    tide.schedules.put("daily", "report", cron="30 6 * * *", overlap="allow")
    tide.schedules.put("often", "sweep", every_s=300)

    @tide.workflow("report")
    def report(run: Run, input: Any) -> str:
        return run.child("part", lambda run, input: "part")

    for day in range(1, 4):
        advance(db, "1 day")
        for workflow in ("report", "sweep"):
            assert len(tide.runs.list(workflow=workflow)) == day
        made = tide.runs.list(workflow="report", status="queued")
        assert [run.run_id.partition(":")[0] for run in made] == ["sched"]
        assert tide.run("report", run_id=made[0].run_id) == "part"
    ids = sorted(run.run_id for run in tide.runs.list(workflow="report"))
    spread = [datetime.fromisoformat(one.rsplit("daily:", 1)[1].replace("Z", "+00:00")) for one in ids]
    assert [later - earlier for earlier, later in pairwise(spread)] == [timedelta(days=1)] * 2
    assert all(len(tide.runs.tree(run_id)) == 2 for run_id in ids)
    assert deferrable(db) == [(False,), (False,)]


def deferrable(db: psycopg.Connection[Any]) -> list[Any]:
    query = "select condeferrable from pg_constraint where confrelid = 'tidebase.runs'::regclass and contype = 'f'"
    return db.execute(query).fetchall()


@pytest.mark.parametrize("by", ["a week", "-1 day", "0", "1 month", timedelta(0)])
def test_time_passes_by_an_interval(db: psycopg.Connection[Any], by: str | timedelta) -> None:
    with pytest.raises(InvalidArgument):
        advance(db, by)


def test_a_server_of_ones_own_gives_databases_too(server: Server, tmp_path: Path) -> None:
    databases = Databases(tmp_path / "own", server.url("postgres"))
    url = databases.create()
    with Tidebase(url) as tide:
        assert tide.run("w", lambda run, input: input, input=1) == 1
        databases.drop(url)
    databases.stop()
    with server.connect() as connection:
        left = connection.execute("select datname from pg_database where datname like 'tidebase%'").fetchall()
    assert left == []


# --- crashes ---


def test_a_crash_leaves_what_a_dead_process_leaves(tide: Tidebase, db: psycopg.Connection[Any]) -> None:
    left: list[str] = []

    def work(run: Run, input: Any) -> int:
        try:
            return run.step("one", lambda: 1) + run.step("two", lambda: 2)
        except Exception:  # an agent's, which swallows everything
            return 0
        finally:
            left.append("finally")
            run.emit("agent.cleanup")

    with crash_at("two", "after work") as point:
        tide.run("w", work, run_id="r")
    assert point.crashed and left == ["finally"]
    run = tide.runs.get("r")
    assert (run.status, run.holder, run.steps_completed) == ("running", tide.holder, 1)
    assert "agent.cleanup" not in [event.type for event in tide.runs.events("r")]
    with pytest.raises(RunHeld):
        tide.run("w", work, run_id="r")
    advance(db, "2 minutes")
    assert tide.run("w", work, run_id="r") == 3
    assert [(step.name, step.attempt) for step in tide.runs.steps("r")] == [("one", 1), ("two", 1)]


@pytest.mark.parametrize(("when", "balance"), [("before", 100), ("after work", 100), ("after commit", 70)])
def test_a_transaction_crashes_before_and_behind_its_commit(
    tide: Tidebase, db: psycopg.Connection[Any], when: Any, balance: int
) -> None:
    db.execute("create table accounts (balance integer)")
    db.execute("insert into accounts values (100)")

    def pay(run: Run, input: Any) -> None:
        run.transaction("pay", lambda tx: tx.execute("update accounts set balance = balance - 30") and None)

    with crash_at("pay", when):
        tide.run("pay", pay, run_id="r")
    assert db.execute("select balance from accounts").fetchone() == (balance,)
    advance(db, "2 minutes")
    tide.run("pay", pay, run_id="r")
    assert db.execute("select balance from accounts").fetchone() == (70,)


async def test_a_task_among_others_crashes(atide: AsyncTidebase, db: psycopg.Connection[Any]) -> None:
    done: list[int] = []

    async def piece(number: int) -> int:
        await asyncio.sleep(0)
        done.append(number)
        return number

    async def work(run: AsyncRun, input: Any) -> int:
        return sum(await asyncio.gather(*(run.step.options(key=n)("piece", piece, n) for n in range(4))))

    with crash_at("piece[2]", "after work"):
        await atide.run("w", work, run_id="r")
    advance(db, "2 minutes")
    assert await atide.run("w", work, run_id="r") == 6
    assert done.count(2) == 2


def test_a_worker_dies_with_its_process(tide: Tidebase, db: psycopg.Connection[Any]) -> None:
    """It is not there to take up anything else, and the run goes on in another one."""
    done: list[int] = []

    @tide.workflow("w")
    def work(run: Run, input: Any) -> int:
        return run.step("one", lambda: done.append(1) or 1)

    tide.enqueue("w", run_id="r")
    tide.enqueue("w", run_id="later", delay_s=60)
    with crash_at("one", "after work"):
        tide.worker(poll_s=0.01).run()
    assert (tide.runs.get("r").status, done) == ("running", [1])
    advance(db, "2 minutes")
    worker = tide.worker(poll_s=0.01, concurrency=1)
    thread = threading.Thread(target=worker.run)
    thread.start()
    for pause in moments():
        if {tide.runs.get(run_id).status for run_id in ("r", "later")} == {"completed"}:
            break
        threading.Event().wait(pause)
    worker.stop()
    thread.join()
    assert done == [1, 1, 1]


async def test_a_worker_of_asyncio_dies_too(atide: AsyncTidebase) -> None:
    @atide.workflow("w")
    async def work(run: AsyncRun, input: Any) -> int:
        return await run.step("one", lambda: 1)

    await atide.enqueue("w", run_id="r")
    with crash_at("one"):
        await atide.worker(poll_s=0.01).run()
    assert (await atide.runs.get("r")).status == "running"


def test_a_process_is_killed(tide: Tidebase, db: psycopg.Connection[Any]) -> None:
    def work(run: Run, input: Any) -> str:
        return run.step("one", lambda: "one") + run.step("two", lambda: "two")

    crash_at.kill(lambda: tide.run("w", work, run_id="r"), "two", "after commit")
    assert [step.name for step in tide.runs.steps("r")] == ["one", "two"]
    assert tide.runs.get("r").status == "running"
    with pytest.raises(Died, match="ended otherwise"):
        crash_at.kill(lambda: None, "two")


def test_a_crash_that_never_comes_is_no_crash(tide: Tidebase) -> None:
    with pytest.raises(Died, match="nobody came by before step 'three'"), crash_at("three"):
        tide.run("w", lambda run, input: run.step("one", lambda: 1), run_id="r")
    with (
        pytest.raises(InvalidArgument, match="when must be one of before, after work, after commit"),
        crash_at("one", "afterwards"),  # type: ignore[arg-type]
    ):
        pass
    with crash_at("again", visit=2):
        for run_id in ("a", "b"):
            tide.run("w", lambda run, input: run.step("again", lambda: 1), run_id=run_id)
    assert [tide.runs.get(run_id).status for run_id in ("a", "b")] == ["completed", "running"]


# --- runs that are played again ---


@dataclass
class Plan:
    terms: list[str]


def research(run: Run, input: dict[str, str]) -> str:
    plan = run.step("plan", lambda: Plan(input["question"].split()), input=input["question"], returns=Plan)
    with ThreadPoolExecutor(2) as pool:
        docs = list(pool.map(lambda term: run.step.options(key=term)("search", str.upper, term), plan.terms))
    run.state.set({"documents": len(docs)})
    run.emit("agent.progress", {"documents": len(docs)})
    if run.gate("publish", "Publish?", data={"documents": len(docs)}).approved:
        run.child("notify", lambda run, input: "told", input=docs)
    run.sleep("cool-down", 0.001)
    parts = [{"name": f"part-{doc}", "workflow": lambda run, input: input, "input": doc} for doc in docs]
    joined = run.fanout("parts", parts)  # type: ignore[arg-type]
    return run.step("write", lambda: " ".join(joined), input=joined)


@pytest.fixture
def recorded(tide: Tidebase) -> str:
    """A run that is over, and went through everything."""

    def decide() -> None:
        for pause in moments():
            if tide.gates.list():
                tide.gates.decide("r", "publish", "approved")
                return
            threading.Event().wait(pause)

    thread = threading.Thread(target=decide)
    thread.start()
    assert tide.run("research", research, run_id="r", input={"question": "salt sea"}) == "SALT SEA"
    thread.join()
    return "r"


def all_rows(db: psycopg.Connection[Any]) -> dict[str, list[Any]]:
    tables = [f"{schema}.{table}" for schema, table in clock.columns(db)]
    return {table: sorted(map(str, db.execute(f"select t from {table} t"))) for table in tables}


def test_what_was_not_changed_fits_and_nothing_is_written(
    tide: Tidebase, recorded: str, db: psycopg.Connection[Any]
) -> None:
    before = all_rows(db)
    found = replay(tide, recorded, research)
    assert (found.outcome, found.at, found.beyond) == ("completed", [], [])
    assert sorted(found.replayed) == ["join:parts", "plan", "search[salt]", "search[sea]", "write"]
    assert all_rows(db) == before
    assert tide.runs.get(recorded).status == "completed"  # and the tide is as it was


def mismatch(tide: Tidebase, run_id: str, function: Callable[[Run, Any], Any], **options: Any) -> list[tuple[str, str]]:
    with pytest.raises(ReplayMismatch) as caught:
        replay(tide, run_id, function, **options)
    return [(problem.kind, problem.name) for problem in caught.value.rehearsal.problems]


def three(run: Run, input: Any, second: str = "two", third: bool = True, value: int = 2, returns: Any = int) -> int:
    total = run.step("one", lambda: 1, returns=returns)
    total += run.step(second, lambda: 2, input=value)
    return total + run.step("three", lambda: 3) if third else total


CHANGES: list[tuple[dict[str, Any], list[tuple[str, str]]]] = [
    ({}, []),
    ({"second": "zwei"}, [("renamed", "two"), ("missing", "three")]),
    ({"second": "zwei", "value": 7}, [("missing", "two"), ("missing", "three")]),
    ({"third": False}, [("missing", "three")]),
    ({"value": 3}, [("input", "two")]),
    ({"returns": dict[str, int]}, [("type", "one")]),
]


@pytest.mark.parametrize(("change", "problems"), CHANGES, ids=[str(change) for change, _ in CHANGES])
def test_a_change_that_does_not_fit_is_named(
    tide: Tidebase, change: dict[str, Any], problems: list[tuple[str, str]]
) -> None:
    tide.run("three", three, run_id="r")

    def changed(run: Run, input: Any) -> int:
        return three(run, input, **change)

    if problems:
        assert mismatch(tide, "r", changed) == problems
    else:
        assert replay(tide, "r", changed).outcome == "completed"


def test_a_live_run_fits_as_far_as_it_has_come(tide: Tidebase, db: psycopg.Connection[Any]) -> None:
    """Stopped in the middle: what lies behind is not missed, what lies before is; no step is executed."""
    with crash_at("two", "after work"):
        tide.run("three", lambda run, input: three(run, input), run_id="r")
    executed: list[str] = []

    def witnessed(name: str) -> Callable[[], int]:
        return lambda: executed.append(name) or 1

    def same(run: Run, input: Any) -> int:
        run.step("one", witnessed("one"))
        return run.step("two", witnessed("two"), input=2, mark_start=False)

    def without(run: Run, input: Any) -> int:
        return run.step("two", witnessed("two"), input=2)

    def inserted(run: Run, input: Any) -> int:
        run.step("zero", witnessed("zero"))
        return same(run, input)

    found = replay(tide, "r", same)
    assert (found.outcome, found.at, found.replayed) == ("goes on", ["two"], ["one"])
    assert mismatch(tide, "r", without) == [("missing", "one")]
    assert mismatch(tide, "r", inserted) == [("missing", "one")]
    assert replay(tide, "r", inserted, assume={"zero": 0}).at == ["two"]
    assert executed == []


def test_nobody_goes_past_a_question_that_is_still_open(tide: Tidebase) -> None:
    def asks(run: Run, input: Any) -> int:
        run.gate("sure", "Sure?", suspend=True)
        return run.step("charge", lambda: 1)

    with pytest.raises(RunSuspendedError):
        tide.run("w", asks, run_id="r")
    assert replay(tide, "r", asks).at == ["sure"]
    assert mismatch(tide, "r", lambda run, input: run.step("charge", lambda: 1)) == [("missing", "sure")]
    assert mismatch(tide, "r", lambda run, input: None) == [("missing", "sure")]


def test_gates_timers_and_children_must_fit_too(tide: Tidebase, recorded: str) -> None:
    def part(change: str) -> Callable[[Run, Any], Any]:
        def changed(run: Run, input: Any) -> Any:
            plan = run.step("plan", lambda: None, input=input["question"], returns=Plan)
            docs = [run.step.options(key=term)("search", str.upper, term) for term in plan.terms]
            prompt = "Really?" if change == "prompt" else "Publish?"
            if change == "kind":
                run.sleep("publish", 1)
            run.gate("publish", prompt, data={"documents": len(docs)})
            name = "tell" if change == "child" else "notify"
            run.child(name, lambda run, input: "told", input=[*docs, 1] if change == "child input" else docs)
            run.sleep("cool-down", 5 if change == "timer" else 0.001)
            if change == "write":
                tide.enqueue("mail")
            if change == "error":
                raise LookupError("no such thing")
            return None

        return changed

    assert mismatch(tide, recorded, part("prompt"))[0] == ("input", "publish")
    assert mismatch(tide, recorded, part("kind"))[0] == ("type", "publish")
    assert ("renamed", "notify") in mismatch(tide, recorded, part("child"))
    assert mismatch(tide, recorded, part("child input"))[0] == ("input", "notify")
    assert mismatch(tide, recorded, part("timer"))[0] == ("input", "cool-down")
    assert mismatch(tide, recorded, part("write"))[0] == ("write", "enqueue_run")
    assert mismatch(tide, recorded, part("error"))[0] == ("error", "research")
    assert tide.runs.list(workflow="mail") == []


async def test_tasks_come_as_far_as_the_record(atide: AsyncTidebase, db: psycopg.Connection[Any]) -> None:
    """One of them is not done: the others are looked at all the same."""

    async def work(run: AsyncRun, input: Any, late: int = 2) -> list[str]:
        async def piece(n: int) -> str:
            return str(await run.step.options(key=n)("piece", lambda: f"p{n}", input=n))

        return await asyncio.gather(*(piece(n) for n in (late, 0, 1)))

    async def changed(run: AsyncRun, input: Any) -> list[str]:
        return [await run.step.options(key=0)("piece", lambda: "p", input="other")]

    with crash_at("piece[2]", "before"):
        await atide.run("w", work, run_id="r")
    advance(db, "2 minutes")
    token = db.execute("select token from tidebase.acquire_run('r', 'me')").fetchone()
    for n in (0, 1):
        db.execute("select tidebase.record_step('r', %s, %s, %s, '\"x\"')", [token and token[0], f"piece[{n}]", str(n)])
    found = await rehearse_async(atide, "r", work)
    assert found.fits and found.at == ["piece[2]"] and sorted(found.replayed) == ["piece[0]", "piece[1]"]
    found = await rehearse_async(atide, "r", changed)
    assert ("input", "piece[0]") in [(problem.kind, problem.name) for problem in found.problems]


def test_a_run_in_the_middle_of_a_fan_out_is_looked_at(tide: Tidebase) -> None:
    def survey(run: Run, input: Any, wanted: tuple[str, ...] = ("a", "b")) -> list[Any]:
        def child(run: Run, input: Any) -> str:
            if input == "b":
                run.gate("ok", "Ok?", suspend=True)
            return str(input)

        return run.fanout("parts", [{"name": name, "workflow": child, "input": name} for name in wanted])

    with pytest.raises(RunSuspendedError):
        tide.run("survey", survey, run_id="r")
    assert sorted(replay(tide, "r", survey).at) == ["b", "join:parts"]

    def changed(run: Run, input: Any) -> list[Any]:
        return survey(run, input, ("a", "c"))

    assert not rehearse(tide, "r", changed).fits


MODULE = """
from tidebase import Tidebase
tide = Tidebase()

@tide.workflow("three")
def three(run, input):
    return run.step("one", lambda: 1) + run.step("{second}", lambda: 2, input=2)

@tide.workflow("other")
def other(run, input):
    pass
"""


def test_a_deploy_is_checked_on_the_command_line(
    tide: Tidebase, database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with crash_at("three"):
        tide.run("three", three, run_id="live")
    tide.run("three", three, run_id="over")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("TIDEBASE_DATABASE_URL", database)
    monkeypatch.setenv("PGOPTIONS", "-c default_transaction_read_only=on")  # a standby will do

    def check(second: str, *options: str) -> Result:
        module = f"replay_check_{second}"
        (tmp_path / f"{module}.py").write_text(MODULE.format(second=second))
        importlib.invalidate_caches()
        return CliRunner().invoke(main, ["replay-check", f"{module}:tide", *options])

    good = check("two")
    assert (good.exit_code, good.output) == (0, "1 run(s) looked at: 1 fit, 0 do not\n"), good
    bad = check("zwei")
    assert bad.exit_code == 1
    assert "renamed: step 'two' is done, and 'zwei' is asked for with the same input" in bad.output
    assert check("zwei", "--workflow", "other").exit_code == 0
    assert "no workflow 'none' is registered" in check("two", "--workflow", "none").output
    report = json.loads(check("zwei", "--run", "over", "--json", "--assume", "zwei=2").output.splitlines()[-1])
    assert [(problem["kind"], problem["name"]) for problem in report["problems"]] == [
        ("missing", "two"),
        ("missing", "three"),
    ]
    assert check("zwei", "--since", datetime.now(timezone.utc).isoformat()).exit_code == 0


def test_what_was_compacted_cannot_be_played(tide: Tidebase) -> None:
    tide.run("three", three, run_id="r")
    tide.runs.compact("r")
    with pytest.raises(InvalidArgument, match="was compacted"):
        replay(tide, "r", three)


def test_a_report_is_readable() -> None:
    assert str(Rehearsal("r", "w", "running", at=["two"])) == "run r (w, running): goes on at two"
