"""The schema as an extension of Postgres: installed, taken over, updated, dumped and restored; and under pg_cron."""

from __future__ import annotations

import gzip
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tidebase import Tidebase, TidebaseError
from tidebase.core.local import Cluster
from tidebase.schema import extension, migrations

from . import test_pgtap as taps
from .conftest import SERVERS, Server, long, on_every_version
from .probes.support import connect, value
from .support.patience import moments
from .test_migrations import COMPRESSION, LANDED, state_of

NEWEST = extension.versions()[-1]

#: What there is, in one text: functions, columns, constraints, indexes, owners and access lists.
FINGERPRINT = """
select string_agg(line, E'\\n' order by line) from (
  select format('%s %s %s %s', p.oid::regprocedure, p.prosrc, p.proowner::regrole, p.proacl::text) from pg_proc p
  where p.pronamespace in ('tidebase'::regnamespace, 'tidebase_private'::regnamespace)
  union all
  select format('%s.%s %s %s %s', c.oid::regclass, a.attname, a.atttypid::regtype, a.attnotnull, a.atthasdef)
  from pg_attribute a join pg_class c on c.oid = a.attrelid
  where c.relnamespace in ('tidebase'::regnamespace, 'tidebase_private'::regnamespace) and c.relkind in ('r', 'v', 'c')
    and a.attnum > 0 and not a.attisdropped and c.relname !~ 'yoyo'
  union all
  select format('%s %s', c.conname, pg_get_constraintdef(c.oid)) from pg_constraint c
  where c.connamespace in ('tidebase'::regnamespace, 'tidebase_private'::regnamespace)
    and c.conrelid::regclass::text !~ 'yoyo'
  union all
  select pg_get_indexdef(i.indexrelid) from pg_index i join pg_class c on c.oid = i.indrelid
  where c.relnamespace in ('tidebase'::regnamespace, 'tidebase_private'::regnamespace) and c.relname !~ 'yoyo'
  union all
  select format('%s %s %s', c.oid::regclass, c.relowner::regrole, c.relacl::text) from pg_class c
  where c.relnamespace in ('tidebase'::regnamespace, 'tidebase_private'::regnamespace) and c.relkind in ('r', 'v')
    and c.relname !~ 'yoyo') things (line)"""


@pytest.fixture(scope="module", autouse=True)
def files(server: Server) -> None:
    """The extension's files where the server looks for them."""
    config = subprocess.run([SERVERS[server.version] / "pg_config", "--sharedir"], capture_output=True, text=True)
    folder = Path(config.stdout.strip()) / "extension"
    if config.returncode or not os.access(folder, os.W_OK):
        pytest.skip(f"{folder} cannot be written")
    made = folder.parent / f"tidebase-{os.getpid()}"
    for path in extension.build(made, "0.1.0"):
        if path.name.startswith("tidebase"):
            path.replace(folder / path.name)  # whole, whoever else puts it there
    for path in made.iterdir():
        path.unlink()
    made.rmdir()


def fingerprint(connection: psycopg.Connection[Any]) -> list[str]:
    row = connection.execute(FINGERPRINT).fetchone()
    return str(row and row[0]).split("\n")


@pytest.fixture
def extended(empty_database: str) -> str:
    """A database with the extension."""
    with connect(empty_database) as connection:
        connection.execute("create extension tidebase")
    return empty_database


def program(server: Server, name: str, *arguments: str) -> str:
    command = [str(SERVERS[server.version] / name), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_an_extension_is_what_a_migration_makes(extended: str, database: str) -> None:
    with connect(extended) as one, connect(database) as other:
        assert fingerprint(one) == fingerprint(other)
        assert value(one, "select extversion from pg_extension where extname = 'tidebase'") == NEWEST
        for change in ("drop table tidebase.runs cascade", "drop schema tidebase cascade"):
            with pytest.raises(psycopg.errors.DependentObjectsStillExist):
                one.execute(change)
        assert migrations.pending(one).is_current and migrations.migrate(one).is_current
        with pytest.raises(TidebaseError, match="belongs to the extension"):
            migrations.rollback(one)


#: What rests on owners and grants. The functions are the same as after a migration: that is compared.
TAPPED = {"access", "cancel", "fork", "gate", "queue", "retention"}


def test_pgtap_passes_on_an_extension(server: Server, extended: str) -> None:
    if server.version != max(SERVERS):
        pytest.skip("the functions are the same: once is enough")
    name = extended.rsplit("?", 1)[0].rsplit("/", 1)[1]
    for file in taps.FILES:
        if file.stem not in TAPPED:
            continue
        with server.connect() as admin:
            admin.execute(f"drop database if exists {name}_tap")
            admin.execute(f"create database {name}_tap template {name}")
        taps.test_pgtap(file, server, extended.replace(f"/{name}?", f"/{name}_tap?"))


def test_a_dump_takes_the_rows_along(server: Server, extended: str, database: str) -> None:
    with Tidebase(extended) as tide, tide.runs.attach("w", run_id="r", input=1) as session:
        assert session.token == 1
        session.step("s", lambda: {"kept": True})
        secret = session.gates.begin("g").secret
    dump = program(server, "pg_dump", extended)
    assert "CREATE EXTENSION" in dump and "CREATE TABLE" not in dump and "CREATE FUNCTION" not in dump
    name = database.rsplit("?", 1)[0].rsplit("/", 1)[1]
    with server.connect() as admin:
        admin.execute(f"drop database {name}")
        admin.execute(f"create database {name}")
    command = [str(SERVERS[server.version] / "psql"), "-X", "-q", "-v", "ON_ERROR_STOP=1", database]
    subprocess.run(command, input=dump, text=True, check=True, capture_output=True)
    with Tidebase(database) as tide:
        with tide.runs.attach("w", run_id="r") as session:
            assert session.token > 1000  # what was granted after the dump is not granted again
            assert session.step("s", lambda: {"kept": False}) == {"kept": True}
        assert tide.gates.decide("r", "g", "approved", secret=secret).accepted
        with connect(database) as connection:
            assert value(connection, "select count(*) from tidebase.check_invariants()") == 0


@pytest.mark.parametrize("dump", [dump for dump in LANDED if state_of(dump)[:4] < NEWEST], ids=state_of)
def test_what_an_earlier_package_made_is_taken_over_and_updated(
    server: Server, empty_database: str, database: str, dump: Path
) -> None:
    number = state_of(dump)[:4]
    with connect(empty_database) as connection:
        lz4 = value(connection, "select 'lz4' = any (enumvals) from pg_settings where name = %s", COMPRESSION)
        text = gzip.decompress(dump.read_bytes()).decode()
        connection.execute((text if lz4 else re.sub(r"ALTER TABLE.* SET COMPRESSION lz4;\n", "", text)).encode())
    with connect(empty_database) as connection, connect(database) as fresh:
        runs = value(connection, "select count(*) from tidebase.runs")
        with pytest.raises(psycopg.errors.RaiseException, match=f"the schema is at {number}"):
            connection.execute("create extension tidebase version 'migrated'")
        connection.execute(f"create extension tidebase version '{number}'")
        with pytest.raises(TidebaseError, match="alter extension tidebase update"):
            migrations.migrate(connection)
        assert migrations.pending(connection).migrations[-1][:4] == NEWEST
        connection.execute("alter extension tidebase update")
        assert fingerprint(connection) == fingerprint(fresh)
        assert migrations.migrate(connection).is_current
        assert value(connection, "select count(*) from tidebase.runs") == runs
        assert value(connection, "select count(*) from tidebase.check_invariants()") == 0


def test_what_this_package_made_is_taken_over(database: str) -> None:
    with connect(database) as connection:
        before = fingerprint(connection)
        with pytest.raises(psycopg.errors.DuplicateSchema):
            connection.execute("create extension tidebase")
        connection.execute("create extension tidebase version 'migrated'")
        connection.execute("alter extension tidebase update")
        assert fingerprint(connection) == before
        assert migrations.migrate(connection).is_current


def test_a_superuser_hands_nothing_over_to_strangers(server: Server, empty_database: str, database: str) -> None:
    """Who may act as the owner's role would own what a superuser installs, and what he calls at the next update."""
    with server.connect() as admin, connect(empty_database) as connection, connect(database) as installed:
        installed.execute("create extension tidebase version 'migrated'")
        admin.execute("create role mallory login")
        try:
            admin.execute("grant tidebase_owner to mallory")
            with pytest.raises(
                psycopg.errors.InsufficientPrivilege, match="mallory may act as the role tidebase_owner"
            ):
                connection.execute("create extension tidebase")
            with pytest.raises(psycopg.errors.InsufficientPrivilege, match="belongs to tidebase_owner"):
                installed.execute("alter extension tidebase update")
        finally:
            admin.execute("drop role mallory")
        installed.execute("alter extension tidebase update")
        connection.execute("create extension tidebase")


def test_pg_tle_gets_the_same_scripts(empty_database: str) -> None:
    """Its functions are played by some that keep what they are given."""
    kept = "create table kept (name text, body text)"
    calls = {
        "install_extension(name text, version text, description text, body text)": "name || '--' || version",
        "install_extension_version_sql(name text, version text, body text)": "name || '--' || version",
        "install_update_path(name text, source text, target text, body text)": "concat_ws('--', name, source, target)",
        "set_default_version(name text, body text)": "'default'",
    }
    with connect(empty_database) as connection:
        connection.execute(f"{kept}; create schema pgtle")
        for signature, name in calls.items():
            keep = f"insert into kept values ({name}, body)"
            connection.execute(f"create function pgtle.{signature} returns void language sql as $${keep}$$")
        connection.execute(extension.tle_script().encode())
        got = dict(connection.execute("select name, body from kept").fetchall())
        assert got.pop("default") == NEWEST
        scripts = {name.removesuffix(".sql"): text for name, text in extension.scripts().items()}
        assert got == {name: "\n".join(text.splitlines()[1:]) for name, text in scripts.items()}


@pytest.fixture
def scheduled(server: Server, tmp_path: Path) -> Iterator[psycopg.Connection[Any]]:
    """A server of its own with pg_cron and the extension."""
    if not (Path("/usr/share/postgresql") / str(server.version) / "extension" / "pg_cron.control").exists():
        pytest.skip("pg_cron is not installed for this Postgres")
    tmp_path.chmod(0o755)
    settings = {
        "shared_preload_libraries": "pg_cron",
        "cron.database_name": "postgres",
        "cron.use_background_workers": "on",
    }
    cluster = Cluster(tmp_path / "data", SERVERS[server.version], settings)
    cluster.start()
    try:
        with connect(cluster.url) as connection:
            connection.execute("create extension pg_cron; create extension tidebase")
            yield connection
    finally:
        cluster.stop("immediate")


@long
@long
@on_every_version
def test_pg_cron_reconciles(scheduled: psycopg.Connection[Any]) -> None:
    """A lease runs out, and nobody but the server is there to see it. pg_cron begins a job at a full minute."""
    scheduled.execute("select tidebase.create_run('w', run_id => 'r')")
    scheduled.execute("select tidebase.acquire_run('r', 'gone', '1 millisecond')")
    scheduled.execute("update tidebase.run_heads set due_at = clock_timestamp()")
    scheduled.execute("select cron.schedule('tidebase', '* * * * *', 'select tidebase.reconcile()')")
    for _ in moments():
        if value(scheduled, "select count(*) from tidebase.events where type = 'run.lapsed'"):
            break
        scheduled.execute("select pg_sleep(0.2)")
    assert value(scheduled, "select count(*) from tidebase.events where type = 'run.lapsed'") == 1
