"""A workflow's life through the wrapper: resumed, waited for, given up, lost."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from datetime import timedelta
from typing import Any

import psycopg
import pytest

from tidebase import (
    AsyncTidebase,
    DatabaseUnavailable,
    InputMismatch,
    InvalidArgument,
    LeaseLost,
    LeaseLostError,
    NotEntitled,
    NotMigrated,
    Run,
    RunFinal,
    RunHeld,
    RunNotFound,
    Tidebase,
    TidebaseError,
)

from .conftest import Server, on_every_version
from .probes.support import poll, value
from .support.patience import PATIENCE_S

ON_NEWEST = True


def until(db: psycopg.Connection[Any], condition: str, *parameters: Any) -> None:
    """Waits until a condition holds in the database."""
    poll(condition, lambda: value(db, f"select {condition}", *parameters))


def expire(db: psycopg.Connection[Any], run_id: str) -> None:
    db.execute("update tidebase.run_heads set lease_expires_at = clock_timestamp() where run_id = %s", [run_id])


def test_a_completed_run_returns_its_result_and_calls_nothing(tide: Tidebase) -> None:
    assert tide.run("w", lambda run, input: {"got": input}, run_id="r", input=[1]) == {"got": [1]}
    assert tide.run("w", lambda run, input: 1 / 0, run_id="r") == {"got": [1]}  # type: ignore[comparison-overlap]


@on_every_version
def test_a_failed_run_goes_on_with_its_own_input(tide: Tidebase) -> None:
    with pytest.raises(ZeroDivisionError):
        tide.run("w", lambda run, input: 1 / 0, run_id="r", input={"q": 1})
    info = tide.runs.get("r")
    assert (info.status, info.error["type"], info.attempt) == ("failed", "ZeroDivisionError", 1)
    assert "test_run.py" in info.error["traceback"] and "flow.py" not in info.error["traceback"]
    assert tide.run("w", lambda run, input: [run.attempt, input], run_id="r") == [2, {"q": 1}]


def test_another_input_or_workflow_is_not_the_same_run(tide: Tidebase) -> None:
    tide.run("w", lambda run, input: input, run_id="r", input=1)
    for workflow, input in (("w", 2), ("other", 1)):
        with pytest.raises(InputMismatch):
            tide.run(workflow, lambda run, input: input, run_id="r", input=input)


def test_a_workflow_may_be_registered_by_name(tide: Tidebase) -> None:
    @tide.workflow("named")
    def named(run: Run, input: Any) -> str:
        return f"{run.workflow} {input}"

    assert tide.run("named", input=1) == "named 1"
    with pytest.raises(TidebaseError, match="no workflow 'other'"):
        tide.run("other")


def test_a_run_that_is_held_is_refused_at_once_if_wanted(tide: Tidebase, database: str) -> None:
    with tide.runs.attach("w", run_id="r"), Tidebase(database) as other, pytest.raises(RunHeld) as caught:
        other.run("w", lambda run, input: 1, run_id="r", wait_s=0)
    assert caught.value.detail["holder"] == tide.holder


def test_a_holder_that_renews_its_lease_is_seen_to_be_alive(tide: Tidebase, database: str) -> None:
    """By default tide.run waits while the holder looks dead; the renewal ends the wait, not the lease's end."""
    session = tide.runs.attach("w", run_id="r")
    stop = threading.Event()

    def renew() -> None:
        while not stop.wait(0.05):
            session.heartbeat()

    thread = threading.Thread(target=renew)
    thread.start()
    try:
        with Tidebase(database) as other, pytest.raises(RunHeld):
            other.run("w", lambda run, input: 1, run_id="r")
    finally:
        stop.set()
        thread.join()


def test_the_lease_of_a_process_that_is_gone_is_waited_out(tide: Tidebase, db: psycopg.Connection[Any]) -> None:
    tide.runs.create("w", run_id="r")
    gone = subprocess.run(
        [sys.executable, "-c", "from tidebase.domain.lease import new_holder; print(new_holder())"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    db.execute("select tidebase.acquire_run('r', %s, %s)", [gone, timedelta(seconds=0.5)])
    assert tide.run("w", lambda run, input: run.attempt, run_id="r") == 2


def test_the_lease_of_a_holder_that_may_be_alive_is_waited_for_only_if_asked(
    tide: Tidebase, db: psycopg.Connection[Any]
) -> None:
    tide.runs.create("w", run_id="r")
    db.execute("select tidebase.acquire_run('r', 'somewhere else', %s)", [timedelta(seconds=2)])
    with pytest.raises(RunHeld, match="give wait_s"):
        tide.run("w", lambda run, input: run.attempt, run_id="r")
    assert tide.run("w", lambda run, input: run.attempt, run_id="r", wait_s=PATIENCE_S) == 2


def test_heartbeats_keep_the_lease_of_a_long_step(database: str, db: psycopg.Connection[Any]) -> None:
    with Tidebase(database, lease_s=0.3) as tide:

        def long(run: Run, input: Any) -> int:
            for _ in range(3):
                row = db.execute("select lease_expires_at from tidebase.run_heads where run_id = 'r'").fetchone()
                assert row is not None
                until(db, "(select lease_expires_at > %s from tidebase.run_heads where run_id = 'r')", row[0])
            return run.step("s", int)

        assert tide.run("w", long, run_id="r") == 0


def test_except_exception_does_not_swallow_a_lost_lease(tide: Tidebase, db: psycopg.Connection[Any]) -> None:
    reached = []

    def workflow(run: Run, input: Any) -> None:
        expire(db, "r")
        db.execute("select tidebase.acquire_run('r', 'thief')")
        try:
            run.step("s", lambda: 1)
        except Exception:
            reached.append("swallowed")
        except LeaseLost:
            reached.append("seen")
            raise
        reached.append("went on")

    with pytest.raises(LeaseLostError) as caught:
        tide.run("w", workflow, run_id="r")
    assert reached == ["seen"]
    assert caught.value.sqlstate == "TB003" and caught.value.detail["current_token"] == 2
    assert tide.runs.get("r").holder == "thief"


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_a_process_that_is_told_to_leave_gives_its_lease_up(tide: Tidebase, error: type[BaseException]) -> None:
    def leave(run: Run, input: Any) -> None:
        raise error

    with pytest.raises(error):
        tide.run("w", leave, run_id="r")
    assert tide.runs.get("r").status == "pending"


WORKER = """
import sys, threading
from tidebase import Tidebase
def workflow(run, input):
    run.emit("ready")
    threading.Event().wait()
Tidebase(sys.argv[1]).run("w", workflow, run_id="r")
"""


def test_sigterm_gives_the_lease_up(database: str, tide: Tidebase, db: psycopg.Connection[Any]) -> None:
    process = subprocess.Popen([sys.executable, "-c", WORKER, database])
    until(db, "exists (select from tidebase.events where type = 'ready')")
    process.send_signal(signal.SIGTERM)
    assert process.wait(PATIENCE_S) == 128 + signal.SIGTERM
    assert tide.runs.get("r").status == "pending"
    assert [event.type for event in tide.runs.events("r")][-1] == "run.released"


def test_a_handler_of_ones_own_for_sigterm_stays(tide: Tidebase) -> None:
    def mine(signum: int, frame: Any) -> None: ...

    before = signal.signal(signal.SIGTERM, mine)
    try:
        assert tide.run("w", lambda run, input: signal.getsignal(signal.SIGTERM) is mine)
        assert signal.getsignal(signal.SIGTERM) is mine
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_broken_connection_is_replaced(tide: Tidebase, db: psycopg.Connection[Any]) -> None:
    def workflow(run: Run, input: Any) -> int:
        total = 0
        for number in range(3):
            db.execute(
                """select pg_terminate_backend(pid) from pg_stat_activity
                   where datname = current_database() and pid <> pg_backend_pid()"""
            )
            total += run.step.options(key=number)("s", lambda: 1)
        return total

    assert tide.run("w", workflow, run_id="r") == 3
    assert all(info.attempt == 1 for info in tide.runs.steps("r"))


def test_sessions_end_as_they_are_told(tide: Tidebase) -> None:
    with tide.runs.attach("w", run_id="completed", input={"q": 1}) as session:
        assert session.input == {"q": 1} and session.step("s", lambda: 1) == 1
        session.complete("done")
    with tide.runs.attach("w", run_id="left") as session:
        session.step("s", lambda: 1)
    with pytest.raises(ValueError), tide.runs.attach("w", run_id="failed"):
        raise ValueError("no")
    tide.runs.attach("w", run_id="told").fail("no")
    statuses = [tide.runs.get(run_id).status for run_id in ("completed", "left", "failed", "told")]
    assert statuses == ["completed", "pending", "failed", "failed"]
    with pytest.raises(RunFinal):
        tide.runs.attach("w", run_id="completed")


def test_a_session_hears_that_its_lease_is_lost(database: str, db: psycopg.Connection[Any]) -> None:
    lost = threading.Event()
    with Tidebase(database, lease_s=0.3) as tide:
        session = tide.runs.attach("w", run_id="r", on_lease_lost=lambda error: lost.set())
        with db.transaction():
            expire(db, "r")
            db.execute("select tidebase.acquire_run('r', 'thief')")
        assert lost.wait(PATIENCE_S)
        with pytest.raises(LeaseLostError):
            session.step("s", lambda: 1)


def test_runs_and_events_are_paged_through(tide: Tidebase) -> None:
    made = [tide.runs.create("w", run_id=f"r{number}").run_id for number in range(5)]
    first = tide.runs.list(max=3)
    rest = tide.runs.list(before=first[-1].run_id)
    assert [info.run_id for info in (*first, *rest)] == made[::-1]
    with tide.runs.attach("w", run_id="r0") as session:
        for _ in range(10):
            session.emit("tick")
    assert [event.seq for event in tide.runs.events("r0", page=4)] == list(range(1, 14))
    assert [event.seq for event in tide.runs.events("r0", after=11, page=1)] == [12, 13]
    with pytest.raises(RunNotFound):
        tide.runs.get("none")


def test_a_run_made_in_a_transaction_exists_if_that_commits(tide: Tidebase, database: str) -> None:
    with psycopg.connect(database) as connection:
        tide.bind(connection).runs.create("w", run_id="rolled back")
        connection.rollback()
        tide.bind(connection).runs.create("w", run_id="committed")
    assert [info.run_id for info in tide.runs.list()] == ["committed"]


@pytest.mark.parametrize("autocommit", [True, False])
def test_one_connection_of_the_callers_serves(database: str, autocommit: bool) -> None:
    with psycopg.connect(database, autocommit=autocommit) as connection:
        assert Tidebase(connection).run("w", lambda run, input: run.step("s", lambda: 3), run_id="r") == 3
    with Tidebase(database) as other:
        assert other.runs.get("r").status == "completed"


def test_a_pool_of_the_callers_serves(database: str) -> None:
    from psycopg_pool import ConnectionPool

    with ConnectionPool(database, min_size=1, max_size=2, open=True) as pool:
        tide = Tidebase(pool)
        assert tide.run("w", lambda run, input: run.step("s", lambda: 3)) == 3
        tide.close()
        assert not pool.closed


def test_what_holds_a_run_is_seen(database: str) -> None:
    with Tidebase(database, holder="ada", code_version="v2") as tide:
        tide.run("w", lambda run, input: None, run_id="r", metadata={"team": "x"})
        info = tide.runs.get("r")
        assert (info.holder, info.code_version, info.metadata) == ("ada", "v2", {"team": "x"})


def test_where_the_database_is(monkeypatch: pytest.MonkeyPatch, database: str, empty_database: str) -> None:
    monkeypatch.setenv("DATABASE_URL", empty_database)
    monkeypatch.setenv("TIDEBASE_DATABASE_URL", database.replace("postgresql://", "postgresql+psycopg://"))
    with Tidebase() as tide:
        assert tide.url == database
        assert tide.run("w", lambda run, input: 1) == 1
    monkeypatch.delenv("TIDEBASE_DATABASE_URL")
    assert Tidebase().url == empty_database
    monkeypatch.delenv("DATABASE_URL")
    monkeypatch.setenv("PGHOST", "somewhere")
    assert Tidebase().url == ""


@pytest.mark.parametrize("url", ["postgresql://127.0.0.1:1/x", "postgresql://nobody@/x?host=/nowhere", "nonsense"])
def test_a_database_that_is_not_there_is_told_at_once(url: str) -> None:
    with pytest.raises(DatabaseUnavailable, match="cannot connect"):
        Tidebase(url).runs.list()


def test_a_database_without_the_schema_says_what_to_do(empty_database: str) -> None:
    with Tidebase(empty_database) as tide, pytest.raises(NotMigrated, match="tidebase migrate"):
        tide.runs.list()


@on_every_version
def test_the_worker_role_is_enough_for_a_worker_and_for_nothing_else(
    server: Server, db: psycopg.Connection[Any], database: str
) -> None:
    name = "agent_" + database.partition("?")[0].rpartition("/")[2]
    db.execute(f"create role {name} login")
    try:
        with Tidebase(database.replace("postgres@", f"{name}@")) as tide:
            with pytest.raises(NotEntitled):
                tide.runs.list()
            db.execute(f"grant tidebase_worker to {name}")
            assert tide.run("w", lambda run, input: run.step("s", lambda: 1), run_id="r") == 1
            assert tide.runs.steps("r")[0].status == "completed"
            with tide._database.connection() as connection, pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute("select * from tidebase.runs")
            with pytest.raises(NotEntitled):
                tide.runs.cancel("r")
    finally:
        db.execute(f"drop owned by {name}; drop role {name}")


@on_every_version
@pytest.mark.parametrize("prefix", ["tidebase", "My Prefix"])
async def test_who_may_not_is_told_which_role_it_takes(server: Server, empty_database: str, prefix: str) -> None:
    name = "agent_" + empty_database.partition("?")[0].rpartition("/")[2]
    url = empty_database.replace("postgres@", f"{name}@")
    with psycopg.connect(empty_database, autocommit=True) as admin, Tidebase(empty_database) as owner:
        owner.migrate(role_prefix=prefix)
        admin.execute(f"create role {name} login")

        def role(audience: str) -> str:
            full = f"{prefix}_{audience}"
            return f'"{full}"' if " " in full else full

        everybody = ", ".join(sorted(map(role, ("approver", "operator", "reader", "worker")), key=str.lower))
        try:
            with Tidebase(url) as tide:
                some = (
                    f"It needs one of the roles {everybody}. Let an administrator: grant {role('approver')} to {name}$"
                )
                for look in (lambda: tide.runs.list(), lambda: tide.runs.steps("r")):  # a function, a view
                    with pytest.raises(NotEntitled, match=some):
                        look()
                admin.execute(f"grant {role('reader')} to {name}")
                assert tide.runs.list() == []
                only = (
                    f"It needs the role {role('operator')}. Let an administrator: grant {role('operator')} to {name}$"
                )
                with pytest.raises(NotEntitled, match=only):
                    tide.runs.cancel("r")
                with psycopg.connect(url) as connection, pytest.raises(NotEntitled, match="permission denied"):
                    tide.bind(connection).runs.create("w")
            async with AsyncTidebase(url) as atide:
                with pytest.raises(NotEntitled, match=only):
                    await atide.runs.cancel("r")
        finally:
            admin.execute(f"drop owned by {name}; drop role {name}")
            if prefix != "tidebase":
                for audience in ("worker", "approver", "operator", "reader", "owner"):
                    admin.execute(f"drop owned by {role(audience)} cascade; drop role {role(audience)}")


def test_a_callers_connection_may_make_its_rows_otherwise(database: str) -> None:
    with psycopg.connect(database, autocommit=True, row_factory=psycopg.rows.dict_row) as connection:  # type: ignore[arg-type]
        tide = Tidebase(connection)
        assert tide.run("w", lambda run, _: run.step("s", lambda: 1), run_id="r") == 1
        assert [step.name for step in tide.runs.steps("r")] == ["s"]


@pytest.mark.parametrize("given", ["a string", 1, None], ids=str)
def test_what_is_no_psycopg_connection_is_refused_with_what_to_pass(tide: Tidebase, given: Any) -> None:
    with pytest.raises(
        InvalidArgument, match=r"must be a psycopg\.Connection, and not a builtins.*driver_connection.*Django"
    ):
        tide.bind(given)


def test_sqlalchemys_connection_is_bound_by_the_one_below(tide: Tidebase, database: str) -> None:
    """As the refusal says it."""
    sqlalchemy = pytest.importorskip("sqlalchemy")
    engine = sqlalchemy.create_engine(database.replace("postgresql://", "postgresql+psycopg://"))
    for end in ("rollback", "commit"):
        with engine.connect() as connection:
            with pytest.raises(InvalidArgument, match=r"a sqlalchemy.*driver_connection"):
                tide.bind(connection)
            connection.begin()
            tide.bind(connection.connection.driver_connection).runs.create("w", run_id=f"r-{end}")
            getattr(connection, end)()
    engine.dispose()
    assert [run.run_id for run in tide.runs.list()] == ["r-commit"]
