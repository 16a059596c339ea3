"""An upgrade while others are at work: they wait a moment, and nobody is told of an error, or loses anything."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import psycopg
import pytest

from tidebase import DatabaseUnavailable
from tidebase.schema import migrations

from .conftest import first_on_every_version
from .probes.support import Connection, value, values
from .support.gate import user
from .support.patience import PATIENCE_S, moments
from .support.upgrade import Load
from .test_migrations import MIGRATIONS, connect, every_state, landed, last_state
from .test_run import until

__all__ = ["landed"]


@pytest.fixture
def old(landed: Connection) -> Connection:
    """An earlier package's database, as it is in real life: with its roles."""
    landed.execute("select tidebase_private.install_roles()")
    return landed


@every_state
def test_an_upgrade_under_load_disturbs_nobody(old: Connection, empty_database: str) -> None:
    """Workers and readers that send their calls as of old, before, during and after it; all that they did is there."""
    load = Load(empty_database)
    with load.at_work():
        load.until(completed=5)
        migrations.migrate(old)
        load.until(completed=10)
    assert load.failures == []
    query = "select run_id from tidebase.run_overview where status = 'completed' and run_id like 'load-%%'"
    assert set(load.done) <= set(values(old, query))
    assert values(old, "select c::text from tidebase.check_invariants() c") == []
    assert migrations.pending(old).is_current


#: Of a call that began before an upgrade and waited for it: what it would go on to do on tables that it does not know.
CAUGHT = {
    "select tidebase.create_run('w', run_id => 'caught')": "select workflow from tidebase.runs where run_id = 'caught'",
    "select outcome, token from tidebase.acquire_run('caught', 'h')": "select attempt from tidebase.run_overview"
    " where run_id = 'caught'",
    "select seq from tidebase.append_event('live', 1, 'caught') seq": "select 1 from tidebase.events"
    " where type = 'caught'",
    "select watched_until from tidebase.watch_run('live')": "select 1 from tidebase.watches where run_id = 'live'",
}


@every_state
@pytest.mark.parametrize("call", CAUGHT)
def test_a_call_that_waited_for_the_upgrade_is_sent_back(
    old: Connection, empty_database: str, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has the function that it began with, and would leave what the new ones do not know, or fail in the middle."""
    old.execute("select tidebase.create_run('w', run_id => 'warm')")
    if "acquire" in call:
        old.execute("select tidebase.create_run('w', run_id => 'caught')")
    with connect(empty_database) as caller, connect(empty_database) as watcher, ThreadPoolExecutor(1) as pool:
        for _ in range(3):  # a worker has made such calls before
            caller.execute(call.replace("'live'", "'warm'" if "watch" in call else "'live'").replace("caught", "warm"))  # type: ignore[arg-type]
        future: Future[Any] = Future()
        send_back = migrations._send_back

        def catch(connection: Connection) -> None:
            nonlocal future
            future = pool.submit(lambda: caller.execute(call).fetchall())  # type: ignore[arg-type]
            until(watcher, f"exists (select from pg_locks where not granted and pid = {caller.info.backend_pid})")
            send_back(connection)

        monkeypatch.setattr(migrations, "_send_back", catch)
        migrations.migrate(old)
        with pytest.raises(psycopg.errors.SerializationFailure, match="upgraded during this call"):
            future.result(PATIENCE_S)
        assert values(old, CAUGHT[call]) in ([], [0])
        caller.execute(call)  # type: ignore[arg-type]
        assert values(old, CAUGHT[call]) not in ([], [0])


@last_state
def test_the_guard_is_gone_when_the_upgrade_is_over(old: Connection) -> None:
    """Also one that was left by a process that was killed at that moment."""
    migrations.migrate(old)
    left = "select count(*) from pg_class where relrowsecurity or relforcerowsecurity"
    assert value(old, left) == 0
    with old.transaction():
        migrations._send_back(old)
    assert value(old, left) == 2
    assert migrations.migrate(old).is_current and value(old, left) == 0
    assert values(old, "select proname from pg_proc where proname = 'came_later'") == []


def test_who_may_only_read_meets_the_guard_as_all_do(db: Connection, database: str) -> None:
    query = "select status from tidebase.run_overview"
    db.execute("select tidebase.create_run('w')")
    with user(db, database, "reader") as url, connect(url) as reader:
        with connect(database) as upgrade, upgrade.transaction():
            migrations._send_back(upgrade)
        for pause in moments():
            try:
                found = values(reader, query)
                break
            except psycopg.errors.SerializationFailure:
                time.sleep(pause)
        assert found == ["pending"]
        migrations.migrate(db)
        assert values(reader, query) == ["pending"]


@pytest.fixture
def behind(empty_database: str) -> Iterator[Connection]:
    with connect(empty_database) as connection:
        migrations.migrate(connection)
        migrations.rollback(connection, to=MIGRATIONS[-2])
        yield connection


class Waits:
    """What a migration tells about its waiting."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.came = threading.Event()

    def __call__(self, line: str) -> None:
        self.lines.append(line)
        self.came.set()


def test_one_open_reader_is_waited_for_and_makes_nobody_else_wait_for_long(
    behind: Connection, empty_database: str
) -> None:
    reader_name = "a report"
    with (
        connect(empty_database) as reader,
        connect(empty_database) as other,
        ThreadPoolExecutor(1) as pool,
    ):
        reader.execute("select set_config('application_name', %s, false)", [reader_name])
        reader.execute("begin; select 1 from tidebase.events limit 0")
        waits = Waits()
        future = pool.submit(migrations.migrate, behind, patience_s=PATIENCE_S, progress=waits)
        assert waits.came.wait(PATIENCE_S)
        assert f"process {reader.info.backend_pid} (postgres, {reader_name}, idle in transaction" in waits.lines[0]
        other.execute(f"set lock_timeout = '{round(PATIENCE_S)}s'")  # an attempt takes less than half a second
        for _ in range(20):
            other.execute("select count(*) from tidebase.run_heads")
        assert not future.done()
        reader.execute("commit")
        assert future.result(PATIENCE_S).migrations == MIGRATIONS[-1:]


def test_who_is_in_the_way_for_too_long_is_named(behind: Connection, empty_database: str) -> None:
    with connect(empty_database) as reader:
        reader.execute("begin; select 1 from tidebase.events limit 0")
        with pytest.raises(DatabaseUnavailable, match=f"process {reader.info.backend_pid}.*pg_terminate_backend"):
            migrations.migrate(behind, patience_s=1)
        reader.execute("rollback")
    assert migrations.pending(behind).migrations == MIGRATIONS[-1:]


@pytest.mark.parametrize(
    "hold",
    first_on_every_version(
        [
            "select pg_advisory_lock(7433620115001)",  # what it was once
            "begin; select pg_advisory_xact_lock_shared(7433620115001)",
            "comment on schema tidebase is 'x'",
            "lock table tidebase.run_heads in access share mode",
            "alter schema tidebase rename to other",
        ]
    ),
)
def test_nobody_else_can_hold_a_migration_up(behind: Connection, empty_database: str, hold: str) -> None:
    name = "holder_" + str(value(behind, "select current_database()"))
    behind.execute(f"create role {name} login")
    try:
        with connect(empty_database.replace("postgres@", f"{name}@")) as holder:
            try:
                holder.execute("begin")
                holder.execute(hold)  # type: ignore[arg-type]
            except psycopg.errors.InsufficientPrivilege:
                pass
            assert migrations.migrate(behind, patience_s=5).migrations == MIGRATIONS[-1:]
    finally:
        behind.execute(f"drop role {name}")


def test_readers_that_lock_in_another_order_see_no_deadlock(behind: Connection, empty_database: str) -> None:
    """The migration gives way before anybody looks for one."""
    with connect(empty_database) as reader, connect(empty_database) as watcher, ThreadPoolExecutor(2) as pool:
        reader.execute("begin; lock table tidebase.steps in access share mode")
        future = pool.submit(migrations.migrate, behind, patience_s=PATIENCE_S)
        until(watcher, "exists (select from pg_locks where not granted and relation = 'tidebase.steps'::regclass)")
        reader.execute("lock table tidebase.run_heads in access share mode")  # which the migration has at that moment
        reader.execute("commit")
        assert future.result(PATIENCE_S).migrations == MIGRATIONS[-1:]
