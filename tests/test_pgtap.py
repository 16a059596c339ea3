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


def test_there_are_pgtap_files() -> None:
    assert FILES


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_pgtap(file: Path, server: Server, database: str) -> None:
    with psycopg.connect(database, autocommit=True) as connection:
        try:
            connection.execute("create extension pgtap")
        except psycopg.Error as error:
            pytest.skip(f"pgTAP cannot be loaded: {str(error).splitlines()[0]}")
    command = [
        str(SERVERS[server.version] / "psql"),
        "-X",
        "-q",
        "-t",
        "-A",
        "-v",
        "ON_ERROR_STOP=1",
        "-f",
        str(file),
        database,
    ]
    result = subprocess.run(command, capture_output=True, text=True, timeout=TEST_S, cwd=FOLDER)
    problems = [line for line in result.stdout.splitlines() if re.match(r"\s*not ok\b|# Looks like|Bail out!", line)]
    assert result.returncode == 0 and not problems, "\n".join([*problems, result.stderr, result.stdout[-3000:]])
    assert re.search(r"^ok 1\b", result.stdout, re.MULTILINE), f"no test ran:\n{result.stdout}{result.stderr}"
