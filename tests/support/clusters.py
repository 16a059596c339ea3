"""Servers of the tests' own. A data directory is made once for each Postgres, and copied for each server: to make one
takes seconds, most of them waiting for the disk, and to install the schema another one.
"""

from __future__ import annotations

import atexit
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import psycopg

from tidebase.core import local
from tidebase.schema import migrations

#: The database of each server that has the schema. Nobody stays connected to it: others are made of it.
MIGRATED = "migrated"

#: Where the originals are, for all processes of a test run.
VARIABLE = "TIDEBASE_TEST_CLUSTERS"


#: A file system in memory, where the data of servers is written sooner; not where a container has but little of it.
MEMORY, ENOUGH = Path("/dev/shm"), 6 << 30


def folder() -> Path:
    """Made by the process that asks first, which removes it at its end."""
    if VARIABLE not in os.environ:
        memory = MEMORY if os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free > ENOUGH else None
        made, owner = tempfile.mkdtemp(prefix="tidebase-clusters-", dir=memory), os.getpid()
        os.chmod(made, 0o755)  # the account that Postgres runs under comes through here
        os.environ[VARIABLE] = made
        atexit.register(lambda: os.getpid() == owner and shutil.rmtree(made, ignore_errors=True))
    return Path(os.environ[VARIABLE])


def cluster(data: Path, binaries: Path, settings: dict[str, str] | None = None) -> local.Cluster:
    """A server that is not started yet, with the schema in its database ``migrated``."""
    if not data.exists():
        data.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run(["cp", "-pR", str(_original(binaries)), str(data)], check=True)
    return local.Cluster(data, binaries, settings)


def url(made: local.Cluster, database: str = MIGRATED, user: str = "postgres") -> str:
    return made.url.replace("postgres@/postgres", f"{user}@/{database}")


def _original(binaries: Path) -> Path:
    own = folder() / str(binaries.absolute()).strip("/").replace("/", "-")
    own.mkdir(mode=0o755, exist_ok=True)
    with local._exclusive(own / "lock"):
        if not (own / "ready").exists():
            shutil.rmtree(own / "data", ignore_errors=True)
            _make(local.Cluster(own / "data", binaries, {"fsync": "off", "jit": "off"}))
            (own / "ready").touch()
    return own / "data"


def _make(original: local.Cluster) -> None:
    original.start()
    try:
        with psycopg.connect(original.url, autocommit=True) as connection:
            connection.execute(f"create database {MIGRATED} template template0")
        with psycopg.connect(url(original), autocommit=True) as connection:
            migrations.migrate(connection)
        with psycopg.connect(url(original)):
            pass  # leaves the server's own cache of its catalogue, which comes along with each copy
    finally:
        original.stop()
    (original.data / "server.log").unlink()
