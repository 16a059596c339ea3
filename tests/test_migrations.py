"""The schema: installed and upgraded whole, by anyone who may, by any number at once."""

from __future__ import annotations

import gzip
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from click.testing import CliRunner
from psycopg.types.json import Jsonb

from tidebase import Tidebase, TidebaseError
from tidebase.cli import main
from tidebase.schema import migrations

from .conftest import SERVERS, Server, first_on_every_version, on_newest
from .probes.support import Connection, attempt, call, call_rows, expire, grant, lapse, value, values
from .support.patience import PATIENCE_S
from .test_run import until

MIGRATIONS = sorted(
    path.stem for path in (migrations.sql_folder() / "migrations").glob("*.sql") if ".rollback" not in path.name
)

MIGRATE = """
import sys, psycopg
from tidebase.schema import migrations
print(len(migrations.migrate(psycopg.connect(sys.argv[1], autocommit=True)).migrations))
"""


def connect(url: str) -> psycopg.Connection[Any]:
    return psycopg.connect(url, autocommit=True)


def schema(server: Server, url: str) -> str:
    """The schema as pg_dump writes it, without what differs from dump to dump."""
    command = [
        str(SERVERS[server.version] / "pg_dump"),
        "--schema-only",
        "-n",
        "tidebase",
        "-n",
        "tidebase_private",
        url,
    ]
    dump = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return re.sub(r"^(\\(un)?restrict .*|--.*)$", "", dump, flags=re.MULTILINE)


def test_a_fresh_install_and_nothing_the_second_time(empty_database: str) -> None:
    with connect(empty_database) as connection:
        assert migrations.pending(connection).migrations == MIGRATIONS
        assert migrations.migrate(connection).migrations == MIGRATIONS
        assert migrations.pending(connection).is_current
        assert migrations.migrate(connection).is_current


def test_every_migration_has_a_rollback() -> None:
    folder = migrations.sql_folder() / "migrations"
    assert [name for name in MIGRATIONS if not (folder / f"{name}.rollback.sql").exists()] == []


@pytest.mark.parametrize("step", first_on_every_version(range(len(MIGRATIONS))))
def test_an_upgrade_from_each_earlier_schema_is_a_fresh_install(
    server: Server, empty_database: str, database: str, step: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tables of an earlier state, without the functions of the present: those went with the rollback."""
    with connect(empty_database) as connection:
        migrations.migrate(connection)
        assert migrations.rollback(connection, to=MIGRATIONS[step]) == MIGRATIONS[step + 1 :][::-1]
        migrations.migrate(connection)
    assert schema(server, empty_database) == schema(server, database)


COMPRESSION = "default_toast_compression"
LANDED = sorted((Path(__file__).parent / "landed").glob("*.sql.gz"))


def state_of(dump: Path) -> str:
    return dump.name.removesuffix(".sql.gz")


#: From the last of them on every Postgres, from the others on the newest.
every_state = pytest.mark.parametrize("landed", first_on_every_version(LANDED[::-1]), indirect=True, ids=state_of)
last_state = pytest.mark.parametrize("landed", LANDED[-1:], indirect=True, ids=state_of)


#: States that no release had: the next migration came with them.
NEVER_RELEASED = {"0001.core", "0008.push", "0009.checkpoints", "0010.studio", "0011.graphs", "0012.queuespeed"}


def test_there_is_a_dump_of_every_state_that_has_landed() -> None:
    """The newest has one as soon as it is released, and needs it when the next is written."""
    released = [state for state in MIGRATIONS if state not in NEVER_RELEASED]
    assert [state_of(path) for path in LANDED] in (released[:-1], released)


@pytest.fixture(params=LANDED, ids=state_of)
def landed(request: pytest.FixtureRequest, empty_database: str) -> Iterator[Connection]:
    """A database as an earlier package left it, with runs in the middle of their work."""
    dump = gzip.decompress(request.param.read_bytes()).decode()
    with connect(empty_database) as connection:
        if "lz4" not in values(connection, "select unnest(enumvals) from pg_settings where name = %s", COMPRESSION):
            dump = re.sub(r"ALTER TABLE.* SET COMPRESSION lz4;\n", "", dump)
        connection.execute(dump.encode())
    with connect(empty_database) as connection:
        yield connection
        assert values(connection, "select c::text from tidebase.check_invariants() c") == []


def test_runs_of_an_earlier_schema_go_on_after_the_upgrade(
    landed: Connection, request: pytest.FixtureRequest, server: Server, empty_database: str, database: str
) -> None:
    state = state_of(request.node.callspec.params["landed"])
    there = set(values(landed, "select run_id from tidebase.runs"))
    assert migrations.migrate(landed).migrations == MIGRATIONS[MIGRATIONS.index(state) + 1 :]
    assert schema(server, empty_database) == schema(server, database)
    assert values(landed, "select c::text from tidebase.check_invariants() c") == []

    # The worker of that time goes on, as long as nobody has taken its place.
    call(landed, "complete_step", run_id="live", token=1, name="plain", output=Jsonb("by the old worker"))
    expire(landed, "live")
    token = grant(landed, "live")
    assert attempt(landed, "append_event", run_id="live", token=1, type="late")[0] == "TB003"

    def begin(name: str, input: int, **contract: Any) -> Any:
        return call(landed, "begin_step", run_id="live", token=token, name=name, input=Jsonb(input), **contract)

    assert begin("done", 1) == {"outcome": "replay", "attempt": 1, "output": {"kept": True}}
    assert begin("plain", 2)["output"] == "by the old worker"
    assert begin("unsafe", 3, side_effects=["mail"])["outcome"] == "review"
    call(landed, "resolve_review", run_id="live", step="unsafe", decision="accept", output=Jsonb("sent"))
    token = grant(landed, "live")
    assert begin("unsafe", 3)["output"] == "sent"
    if call_rows(landed, "list_state_versions", run_id="live"):
        assert call(landed, "get_state", run_id="live")["value"] == {"progress": 0.7, "phase": "writing"}
        assert value(landed, "select input_tokens from tidebase.usage_totals where run_id = 'live'") == 10
    call(landed, "complete_run", run_id="live", token=token, result=Jsonb("done"))
    seqs = [row["seq"] for row in call_rows(landed, "read_events", run_id="live")]
    assert seqs == list(range(1, len(seqs) + 1))

    if value(landed, "select status from tidebase.run_overview where run_id = 'waits'") == "waiting":
        assert call(landed, "acquire_run", run_id="waits", holder="new worker")["outcome"] == "waiting"
        assert call(landed, "decide_gate", run_id="waits", name="ask", decision="approved")["accepted"]
    if values(landed, "select step from tidebase.review_inbox where run_id = 'in review'"):
        call(landed, "resolve_review", run_id="in review", step="unsafe", decision="retry")
    if "claimed" in there:
        again = call_rows(landed, "claim_runs", queues=["narrow"], holder="old worker", request_id="claim")
        assert [(run["run_id"], run["token"]) for run in again] == [("claimed", 1)]
        lapse(landed, "claimed")
        taken_over = call_rows(landed, "claim_runs", queues=["narrow"], holder="new worker", max=2)
        assert [run["run_id"] for run in taken_over] == ["claimed"]  # the limit is kept
        duplicate = call(landed, "enqueue_run", workflow="landed", queue="narrow", dedupe_key="once")
        assert (duplicate["run_id"], duplicate["deduplicated"]) == ("next", True)
    if "graph" in there:
        assert [row["content"] for row in call_rows(landed, "get_checkpoint", thread_id="conversation")] == [b"two"]
        assert [row["channel"] for row in call_rows(landed, "list_channels", run_id="live")] == [1]
    for run_id in sorted(there - {"live", "over", "cancelled", "delayed"}):  # whose hour may not be over
        expire(landed, run_id)
        call(landed, "complete_run", run_id=run_id, token=grant(landed, run_id))
    assert call(landed, "acquire_run", run_id="over", holder="new worker")["result"] == "result"


@every_state
def test_an_upgrade_can_be_taken_back_with_runs_in_the_middle_of_their_work(
    landed: Connection, request: pytest.FixtureRequest
) -> None:
    state = state_of(request.node.callspec.params["landed"])
    migrations.migrate(landed)
    assert migrations.rollback(landed, to=state) == MIGRATIONS[MIGRATIONS.index(state) + 1 :][::-1]
    migrations.migrate(landed)
    expire(landed, "live")
    token = call(landed, "acquire_run", run_id="live", holder="new worker")["token"]
    # From 0006 on a restored dump is known to be one, and its tokens are far above those that were granted before.
    assert token == 2 if state < "0006" else token > 2


def test_a_shard_refuses_what_is_not_its_own_also_after_a_rollback_and_an_upgrade(db: Connection) -> None:
    """The triggers go with their function; what is owned is a setting, which stays."""
    query = "select 'r' || n from generate_series(1, 99) n where tidebase_private.bucket_of('r' || n) & 1 = 1 limit 1"
    elsewhere = value(db, query)
    db.execute("select tidebase_private.own_buckets('10')")
    assert attempt(db, "create_run", workflow="w", run_id=elsewhere)[0] == "55000"
    migrations.rollback(db, to=MIGRATIONS[-2])
    migrations.migrate(db)
    assert attempt(db, "create_run", workflow="w", run_id=elsewhere)[0] == "55000"


def test_a_rollback_of_everything_leaves_nothing(empty_database: str) -> None:
    with connect(empty_database) as connection:
        migrations.migrate(connection)
        assert migrations.rollback(connection) == MIGRATIONS[::-1]
        rows = connection.execute("select nspname from pg_namespace where nspname like 'tidebase%'").fetchall()
        assert rows == []
        migrations.migrate(connection)
    with pytest.raises(TidebaseError, match="no migration 'x'"), connect(empty_database) as connection:
        migrations.rollback(connection, to="x")


@on_newest("server")
def test_ten_processes_migrate_at_once(empty_database: str) -> None:
    command = [sys.executable, "-c", MIGRATE, empty_database]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(10)]
    applied = sorted(process.communicate(timeout=PATIENCE_S)[0].strip() for process in processes)
    assert [process.returncode for process in processes] == [0] * 10
    assert applied == ["0"] * 9 + [str(len(MIGRATIONS))]


def test_a_process_killed_in_the_middle_leaves_nothing_behind(empty_database: str) -> None:
    """It is stopped at a known point: behind a lock on a table that the last thing it does wants to lock."""
    with connect(empty_database) as setup, connect(empty_database) as watcher:
        migrations.migrate(setup)
        migrations.rollback(setup, to=MIGRATIONS[0])
        with setup.transaction():
            setup.execute("lock table tidebase.run_heads in access share mode")
            process = subprocess.Popen([sys.executable, "-c", MIGRATE, empty_database])
            blocked = (
                "exists (select from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database())"
            )
            until(watcher, blocked)
            process.send_signal(signal.SIGKILL)
            process.wait()
            watcher.execute("select pg_terminate_backend(pid) from pg_stat_activity where wait_event_type = 'Lock'")
        assert migrations.pending(setup).migrations == MIGRATIONS[1:]
        assert migrations.migrate(setup).migrations == MIGRATIONS[1:]


def test_a_changed_function_file_is_applied_again(
    database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(migrations.sql_folder(), tmp_path / "sql")
    monkeypatch.setattr(migrations, "sql_folder", lambda: tmp_path / "sql")
    changed = tmp_path / "sql" / "functions" / "run.sql"
    changed.write_text(changed.read_text("utf-8").replace("'run_' || encode", "'walk_' || encode"), "utf-8")
    with connect(database) as connection:
        assert migrations.pending(connection).functions == ["run.sql"]
        assert migrations.migrate(connection).functions == ["run.sql"]
        row = connection.execute("select tidebase.create_run('w')").fetchone()
        assert row is not None and row[0].startswith("walk_")
        changed.write_text("create function nonsense", "utf-8")
        with pytest.raises(TidebaseError, match=r"sql/functions/run\.sql"):
            migrations.migrate(connection)
        assert connection.execute("select tidebase.create_run('w', run_id => 'r')").fetchone() == ("r",)


def test_grants_survive_a_migration(database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(migrations.sql_folder(), tmp_path / "sql")
    monkeypatch.setattr(migrations, "sql_folder", lambda: tmp_path / "sql")
    changed = tmp_path / "sql" / "functions" / "run.sql"
    changed.write_text(changed.read_text("utf-8") + "\n-- changed\n", "utf-8")
    query = "select has_function_privilege('tidebase_worker', oid, 'execute') from pg_proc where proname = 'create_run'"
    with connect(database) as connection:
        migrations.migrate(connection)
        assert connection.execute(query).fetchone() == (True,)
        assert connection.execute(query.replace("worker", "reader")).fetchone() == (False,)


@pytest.fixture
def owned(server: Server, empty_database: str) -> Any:
    """A database of a user who is no superuser; roles are the cluster's, so those of the fixture are taken out."""
    prefix = "o" + empty_database.partition("?")[0].rpartition("/")[2]
    with connect(empty_database) as admin:
        admin.execute(f"create role {prefix}_user login")
        admin.execute(f"alter database {prefix[1:]} owner to {prefix}_user")
        yield prefix, admin, empty_database.replace("postgres@", f"{prefix}_user@")
        for role in ("user", "app", "owner", "worker", "approver", "operator", "reader"):
            if admin.execute("select from pg_roles where rolname = %s", [f"{prefix}_{role}"]).fetchone() is not None:
                admin.execute(f"reassign owned by {prefix}_{role} to postgres; drop owned by {prefix}_{role}")
                admin.execute(f"drop role {prefix}_{role}")


def test_a_user_who_may_not_create_roles_installs_and_an_administrator_adds_them(owned: Any) -> None:
    """By what the note says, which is plain SQL: nothing of the installer's runs with the administrator's rights."""
    prefix, admin, url = owned
    with connect(url) as user:
        report = migrations.migrate(user, role_prefix=prefix)
        assert report.roles == []
        options = re.findall(r"`tidebase (roles --sql .*?)`", report.notes[0])[0].split()
        with Tidebase(url) as tide:
            assert tide.run("w", lambda run, input: run.step("s", lambda: 1), run_id="r") == 1
        assert migrations.migrate(user).is_current
        admin.execute(CliRunner().invoke(main, options).stdout)
        assert migrations.pending(user).access
        report = migrations.migrate(user)
        assert report.access and not report.notes and migrations.migrate(user).is_current
    admin.execute(f"create role {prefix}_app login in role {prefix}_worker")
    with Tidebase(url.replace(f"{prefix}_user@", f"{prefix}_app@")) as tide:
        assert tide.migrate().is_current
        assert tide.run("w", lambda run, input: 2, run_id="s") == 2
        assert tide.runs.get("r").result == 1
    owner = admin.execute("select pg_get_userbyid(relowner) from pg_class where oid = 'tidebase.runs'::regclass")
    assert owner.fetchone() == (f"{prefix}_owner",)


def test_a_user_who_may_create_roles_installs_with_them(owned: Any) -> None:
    prefix, admin, url = owned
    admin.execute(f"alter role {prefix}_user createrole")
    with connect(url) as user:
        report = migrations.migrate(user, role_prefix=prefix)
        assert len(report.roles) == 5 and report.notes == []
        assert migrations.migrate(user).is_current
        migrations.rollback(user, to=MIGRATIONS[0])
        assert migrations.migrate(user).migrations == MIGRATIONS[1:]
    with Tidebase(url) as tide:
        assert tide.run("w", lambda run, input: run.step("s", lambda: 1)) == 1
