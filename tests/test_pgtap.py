"""The pgTAP files, each on a database of its own."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import psycopg
import pytest

from .conftest import SERVERS, Server
from .support.patience import TEST_S

FOLDER = Path(__file__).parents[1] / "pgtap"
FILES = sorted(FOLDER.glob("*.sql"))

#: Where the profiler is there, all of them run on Postgres 15 to be counted.
ON_NEWEST = 15 in SERVERS and Path("/usr/share/postgresql/15/extension/plpgsql_check.control").exists()


def test_there_are_pgtap_files() -> None:
    assert FILES


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_pgtap(file: Path, server: Server, database: str) -> None:
    with psycopg.connect(database, autocommit=True) as connection:
        try:
            connection.execute("create extension pgtap")
        except psycopg.Error as error:
            pytest.skip(f"pgTAP cannot be loaded: {str(error).splitlines()[0]}")
    assert problems(file, database, SERVERS[server.version]) == ""


def problems(file: Path, url: str, binaries: Path) -> str:
    """What is wrong, by a file's own account."""
    psql = [str(binaries / "psql"), "-X", "-q", "-t", "-A", "-v", "ON_ERROR_STOP=1", "-f", str(file), url]
    result = subprocess.run(psql, capture_output=True, text=True, timeout=TEST_S, cwd=FOLDER)
    found = [line for line in result.stdout.splitlines() if re.match(r"\s*not ok\b|# Looks like|Bail out!", line)]
    if result.returncode == 0 and not found and re.search(r"^ok 1\b", result.stdout, re.MULTILINE):
        return ""
    return "\n".join([f"{file.name} ended with {result.returncode}", *found, result.stderr, result.stdout[-3000:]])
