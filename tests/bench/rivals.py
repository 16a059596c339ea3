"""Others that keep a queue in Postgres, where they are installed (``make bench PEERS=1``), and what they do less."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
from psycopg.conninfo import conninfo_to_dict

from .harness import Bench, Connection
from .workers import BATCH

#: Where ``make bench PEERS=1`` puts those that npm has.
NODE = Path(sys.prefix) / "bench-node" / "node_modules"


@dataclass
class Side:
    """One who is measured: what its workers are started with, and how jobs are enqueued and counted.

    Attributes:
        less: what it does not do for a job, in words.
        enqueue: so many empty jobs, as fast as it offers.
        completed: how many are done so far.
    """

    name: str
    command: list[str]
    enqueue: Callable[[int], Any]
    completed: Callable[[], int]
    less: str = ""
    environment: dict[str, str] | None = None

    @contextmanager
    def at_work(self, processes: int = 2) -> Iterator[None]:
        working = [
            subprocess.Popen(self.command, env=self.environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            for _ in range(processes)
        ]
        try:
            yield
        finally:
            for process in working:
                process.kill()
            for process in working:
                process.wait()

    def until(self, count: int, seconds: float) -> None:
        """Until so many are done."""
        give_up = time.monotonic() + seconds
        while self.completed() < count:
            if time.monotonic() > give_up:
                raise TimeoutError(f"{self.name}: {self.completed()} of {count} are done after {seconds} s")
            time.sleep(0.02)

    def rate(self, count: int) -> float:
        """How many jobs a second, from the first that is enqueued to the last that is done, by two processes."""
        with self.at_work():
            before = self.completed()
            self.enqueue(2 * 8)  # both are there, with their connections and their plans
            self.until(before + 2 * 8, 120)
            time.sleep(0.5)
            begun = time.perf_counter()
            self.enqueue(count)
            self.until(before + 2 * 8 + count, 600)
            return count / (time.perf_counter() - begun)


def python(bench: Bench, who: str, url: str | None = None) -> list[str]:
    return [sys.executable, "-m", "tests.bench.workers", who, url or bench.cluster.url]


def tidebase(bench: Bench, who: str) -> Side:
    """This project: a client of psycopg alone (``sql``), or the worker of the package (``threads``, ``tasks``)."""
    connection = bench.connection

    def enqueue(count: int) -> None:
        connection.execute(
            """select count(*) from tidebase.enqueue_runs((
                select jsonb_agg('{"workflow": "bench", "queue": "bench"}'::jsonb) from generate_series(1, %s)))""",
            [count],
        )

    count = "select count(*) from tidebase.run_heads where lower(status) = 'completed' and in_queue"
    names = {"sql": f"SQL, {BATCH} a claim", "threads": "worker of threads", "tasks": "worker of tasks"}
    return Side(names.get(who, who), python(bench, who), enqueue, lambda: int(bench.value(count)))


@contextmanager
def rivals(bench: Bench) -> Iterator[list[Side]]:
    """Those that are installed, each in a database of its own; none in a quick round."""
    found: list[Side] = []
    connections: list[Connection] = []
    for name, make in PEERS.items() if not bench.quick else ():
        try:
            bench.connection.execute(f"drop database if exists {make.__name__}_queue with (force)")  # type: ignore[arg-type]
            bench.connection.execute(f"create database {make.__name__}_queue")  # type: ignore[arg-type]
            url = bench.cluster.url.replace("@/postgres", f"@/{make.__name__}_queue")
            connections.append(psycopg.connect(url, autocommit=True))
            found.append(make(bench, url, connections[-1]))
        except ImportError as missing:
            print(f"  skipped: {name} is not installed ({missing}; make bench PEERS=1)")
    try:
        yield found
    finally:
        for connection in connections:
            connection.close()


def _count(connection: Connection, query: str) -> int:
    row = connection.execute(query).fetchone()  # type: ignore[arg-type]
    return 0 if row is None else int(row[0])


def dbos(bench: Bench, url: str, connection: Connection) -> Side:
    from dbos import DBOSClient

    run = python(bench, "dbos", url)
    with Side("", run, len, int).at_work(1):  # it makes its own tables
        _wait(connection, "select to_regclass('dbos.workflow_status') is not null")
        _wait(connection, "select count(*) > 0 from dbos.queues where name = 'bench'")
    client = DBOSClient(system_database_url=url)

    def enqueue(count: int) -> None:
        for _ in range(count):
            client.enqueue({"workflow_name": "bench", "queue_name": "bench"})

    done = "select count(*) from dbos.workflow_status where status = 'SUCCESS'"
    return Side("DBOS", run, enqueue, lambda: _count(connection, done), "enqueues one by one; no log of events")


def procrastinate(bench: Bench, url: str, connection: Connection) -> Side:
    import procrastinate

    app = procrastinate.App(connector=procrastinate.SyncPsycopgConnector(conninfo=url))
    app.open()
    app.schema_manager.apply_schema()
    task = app.configure_task("bench", queue="bench")

    def enqueue(count: int) -> None:
        task.batch_defer(*({} for _ in range(count)))

    done = "select count(*) from procrastinate_jobs where status = 'succeeded'"
    less = "keeps no result; a job is not fenced from its lost worker"
    return Side("procrastinate", python(bench, "procrastinate", url), enqueue, lambda: _count(connection, done), less)


def absurd(bench: Bench, url: str, connection: Connection) -> Side:
    import absurdctl
    from absurd_sdk import Absurd

    connection.execute(absurdctl.BUNDLED_SCHEMA_SQL)
    client = Absurd(url, queue_name="bench")
    client.create_queue("bench")

    def enqueue(count: int) -> None:
        connection.execute("select absurd.spawn_task('bench', 'bench', '{}') from generate_series(1, %s)", [count])

    done = "select count(*) from absurd.t_bench where state = 'completed'"
    less = "no log of events, no limits of a queue"
    return Side("Absurd", python(bench, "absurd", url), enqueue, lambda: _count(connection, done), less)


def _node(url: str, who: str) -> tuple[list[str], dict[str, str]]:
    node, module = shutil.which("node"), {"graphile": "graphile-worker", "pgboss": "pg-boss"}[who]
    if node is None or not (NODE / module).exists():
        raise ImportError(f"no {module}")
    known = conninfo_to_dict(url)
    names = {"host": "PGHOST", "port": "PGPORT", "user": "PGUSER", "dbname": "PGDATABASE"}
    environment = {"NODE_PATH": str(NODE), "PATH": str(Path(node).parent)}
    environment |= {variable: str(known[name]) for name, variable in names.items() if name in known}
    return [node, str(Path(__file__).with_name("workers.cjs")), who], environment


def graphile(bench: Bench, url: str, connection: Connection) -> Side:
    command, environment = _node(url, "graphile")
    with Side("", command, len, int, "", environment).at_work(1):
        _wait(connection, "select to_regclass('graphile_worker._private_jobs') is not null")

    enqueued = 0

    def enqueue(count: int) -> None:
        nonlocal enqueued
        connection.execute(
            """select count(*) from graphile_worker.add_jobs(array(
                select json_populate_record(null::graphile_worker.job_spec, '{"identifier": "bench"}')
                from generate_series(1, %s)))""",
            [count],
        )
        enqueued += count

    def completed() -> int:
        return enqueued - _count(connection, "select count(*) from graphile_worker._private_jobs")

    less = "deletes a job that is done: no result, no history; one whose worker is lost waits 4 hours"
    return Side("graphile-worker", command, enqueue, completed, less, environment)


def pgboss(bench: Bench, url: str, connection: Connection) -> Side:
    command, environment = _node(url, "pgboss")
    with Side("", command, len, int, "", environment).at_work(1):
        _wait(connection, "select to_regclass('pgboss.job') is not null")
        _wait(connection, "select count(*) > 0 from pgboss.queue where name = 'bench'")

    def enqueue(count: int) -> None:
        connection.execute("insert into pgboss.job (name) select 'bench' from generate_series(1, %s)", [count])

    done = "select count(*) from pgboss.job where name = 'bench' and state = 'completed'"
    less = "a batch ends as one: a failure fails all of it; no log of events, no bell"
    return Side("pg-boss", command, enqueue, lambda: _count(connection, done), less, environment)


def _wait(connection: Connection, query: str) -> None:
    give_up = time.monotonic() + 60
    while True:
        try:
            row = connection.execute(query).fetchone()  # type: ignore[arg-type]
        except psycopg.Error:
            row = None
        if row and row[0]:
            return
        if time.monotonic() > give_up:
            raise TimeoutError(query)
        time.sleep(0.05)


PEERS: dict[str, Callable[[Bench, str, Connection], Side]] = {
    "DBOS": dbos,
    "procrastinate": procrastinate,
    "Absurd": absurd,
    "graphile-worker": graphile,
    "pg-boss": pgboss,
}
