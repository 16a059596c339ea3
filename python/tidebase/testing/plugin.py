"""The pytest plugin: it is there as soon as the package is installed, and does nothing before a fixture is asked for.

``tide`` (and ``async_tide``) is a Tidebase on a database of the test's own, at ``tidebase_url``; ``advance``,
``crash_at`` and ``replay`` are about that database. The server is the embedded one, started when the first test asks
for it and stopped at the end; processes of pytest-xdist share it. TIDEBASE_TEST_DATABASE_URL names another one.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from ..client.tide import Tidebase
    from ..client.tide_async import AsyncTidebase
    from .crash import CrashAt
    from .databases import Databases
    from .rehearsal import Rehearsal


def pytest_unconfigure(config: pytest.Config) -> None:
    """The process that has made the folder stops the server."""
    databases: Databases | None = getattr(config, "_tidebase_databases", None)
    if databases is not None and getattr(config, "_tidebase_owner", None) == os.getpid():
        databases.stop()
        os.environ.pop("TIDEBASE_TESTING_FOLDER", None)


def pytest_configure(config: pytest.Config) -> None:
    """With pytest-xdist, the process that distributes the tests makes the folder, before the others begin."""
    if getattr(config.option, "numprocesses", None) and not hasattr(config, "workerinput"):
        _databases(config)


def _databases(config: pytest.Config) -> Databases:
    from .databases import FOLDER_VARIABLE, URL_VARIABLE, Databases, make_folder

    databases: Databases | None = getattr(config, "_tidebase_databases", None)
    if databases is None:
        if FOLDER_VARIABLE not in os.environ:
            os.environ[FOLDER_VARIABLE] = str(make_folder())
            config._tidebase_owner = os.getpid()  # type: ignore[attr-defined]
        databases = Databases(Path(os.environ[FOLDER_VARIABLE]), os.environ.get(URL_VARIABLE) or None)
        config._tidebase_databases = databases  # type: ignore[attr-defined]
    return databases


@pytest.fixture(scope="session")
def tidebase_databases(pytestconfig: pytest.Config) -> Databases:
    """Makes databases with the schema."""
    return _databases(pytestconfig)


@pytest.fixture
def tidebase_url(tidebase_databases: Databases) -> Iterator[str]:
    """The URL of a database of the test's own, with the schema."""
    url = tidebase_databases.create()
    yield url
    tidebase_databases.drop(url)


@pytest.fixture
def tide(tidebase_url: str) -> Iterator[Tidebase]:
    """A Tidebase on the test's own database."""
    from ..client.tide import Tidebase

    with Tidebase(tidebase_url) as client:
        yield client


@pytest.fixture
async def async_tide(tidebase_url: str) -> AsyncIterator[AsyncTidebase]:
    """An AsyncTidebase on the test's own database; needs pytest-asyncio in its mode ``auto``."""
    from ..client.tide_async import AsyncTidebase

    async with AsyncTidebase(tidebase_url) as client:
        yield client


@pytest.fixture
def advance(tidebase_url: str) -> Callable[..., None]:
    """Lets time pass in the test's database: ``advance("7 days")``; see :func:`tidebase.testing.advance`."""

    def advance_by(by: str | timedelta, *, reconcile: bool = True) -> None:
        import psycopg

        from .clock import advance

        with psycopg.connect(tidebase_url, autocommit=True) as connection:
            advance(connection, by, reconcile=reconcile)

    return advance_by


@pytest.fixture
def crash_at() -> CrashAt:
    """Lets the process die at a step: ``with crash_at("charge", when="after work"):``; see
    :data:`tidebase.testing.crash_at`.
    """
    from .crash import crash_at

    return crash_at


@pytest.fixture
def replay(tide: Tidebase) -> Callable[..., Rehearsal]:
    """Fails unless a recorded run fits a workflow: ``replay(run_id, function)``; see
    :func:`tidebase.testing.replay`.
    """

    def replay_run(run_id: str, function: Any = None, **options: Any) -> Rehearsal:
        from .rehearsal import replay

        return replay(tide, run_id, function, **options)

    return replay_run
