"""Through PgBouncer in transaction mode, where each call may meet another server process."""

from __future__ import annotations

import shutil
import socket
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tidebase import AsyncRun, AsyncTidebase, Run, Tidebase
from tidebase.core import local

from .conftest import Server
from .probes.support import poll

ON_NEWEST = True

CONFIG = """
[databases]
* = host={socket} port=5432 user=postgres
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = any
pool_mode = transaction
default_pool_size = 4
max_client_conn = 200
logfile = {folder}/log
pidfile = {folder}/pid
ignore_startup_parameters = extra_float_digits
"""


@contextmanager
def pooler(server: Server, database: str, folder: Path) -> Iterator[str]:
    """PgBouncer in front of a server; the URL of the database behind it."""
    program = shutil.which("pgbouncer") or shutil.which("/usr/sbin/pgbouncer")
    if program is None:
        pytest.skip("pgbouncer is not installed")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    config = folder / "pgbouncer.ini"
    config.write_text(CONFIG.format(socket=server.cluster.socket_folder, port=port, folder=folder))
    for path in (folder, config):
        _give(path)
    process = subprocess.Popen(
        [*local._as_account("dac_read_search"), program, str(config)], cwd="/", stderr=subprocess.DEVNULL
    )
    name = database.partition("?")[0].rpartition("/")[2]
    url = f"postgresql://postgres@127.0.0.1:{port}/{name}"
    try:
        _reach(url)
        yield url
    finally:
        process.terminate()
        process.wait()


@pytest.fixture
def pooled(server: Server, empty_database: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of an empty database behind PgBouncer."""
    with pooler(server, empty_database, tmp_path_factory.mktemp("pgbouncer")) as url:
        yield url


def _give(path: Path) -> None:
    import os

    if os.geteuid() == 0:
        account = local._account()
        os.chown(path, account.pw_uid, account.pw_gid)


def _reach(url: str) -> None:
    def answers() -> bool:
        with suppress(psycopg.OperationalError):
            psycopg.connect(url).close()
            return True
        return False

    poll("PgBouncer answers", answers)


def test_everything_works_behind_a_pooler(pooled: str) -> None:
    with Tidebase(pooled, lease_s=2, pool_size=20) as tide:
        assert tide.migrate().migrations
        assert tide.migrate().is_current

        def workflow(run: Run, input: Any) -> Any:
            with ThreadPoolExecutor(20) as pool:
                futures = [
                    pool.submit(run.step.options(key=f"{thread}-{number}"), "s", int, number)
                    for thread in range(20)
                    for number in range(20)
                ]
                total = sum(future.result() for future in futures)
            outcomes = iter([ValueError(), None])

            def flaky() -> None:
                if error := next(outcomes):
                    raise error

            run.step("flaky", flaky, retries=1, retry_delay_s=0)
            with run.transaction("t") as tx:
                tx.execute("create table if not exists mine (n int)")
                tx.execute("insert into mine values (%s)", [total])
            if run.attempt == 1:
                raise ConnectionResetError
            return total

        with pytest.raises(ConnectionResetError):
            tide.run("w", workflow, run_id="r")
        assert tide.run("w", workflow, run_id="r") == 20 * sum(range(20))
        assert [event.seq for event in tide.runs.events("r")] == list(range(1, tide.runs.get("r").last_seq + 1))
        with tide.runs.attach("w", run_id="session") as session:
            session.heartbeat()
            opening = session.gates.begin("g", "?")
            assert tide.gates.decide("session", "g", "approved", secret=opening.secret).accepted
            assert session.gate("g", "?").approved
            session.complete()
        with tide._database.connection() as connection:
            assert connection.prepare_threshold is None
            assert connection.execute("select count(*) from mine").fetchone() == (1,)


async def test_everything_works_behind_a_pooler_async(pooled: str) -> None:
    async with AsyncTidebase(pooled, pool_size=20) as tide:
        await tide.migrate()

        async def workflow(run: AsyncRun, input: Any) -> int:
            import asyncio

            steps = (run.step.options(key=number)("s", lambda number=number: number) for number in range(100))
            return sum(await asyncio.gather(*steps))

        assert await tide.run("w", workflow) == sum(range(100))
