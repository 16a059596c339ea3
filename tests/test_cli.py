"""The command line: exit codes, and a line instead of a traceback."""

from __future__ import annotations

import json
import os
import subprocess
import sys


def tidebase(*args: str, database: str | None = None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **({"TIDEBASE_DATABASE_URL": database} if database else {})}
    command = [sys.executable, "-c", "from tidebase.cli import main; main()", *args]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)


def test_migrate_and_check(empty_database: str) -> None:
    behind = tidebase("migrate", "--check", database=empty_database)
    assert (behind.returncode, "migration to apply: 0001.core" in behind.stdout) == (1, True)
    assert tidebase("migrate", database=empty_database).returncode == 0
    current = tidebase("migrate", "--check", "--json", "--database", empty_database)
    assert (current.returncode, json.loads(current.stdout)["current"]) == (0, True)
    assert "up to date" in tidebase("migrate", database=empty_database).stdout
    back = tidebase("migrate", "--rollback-to", "nothing", database=empty_database)
    assert "migration rolled back: 0001.core" in back.stdout
    assert tidebase("migrate", "--check", database=empty_database).returncode == 1


def test_a_users_mistake_is_a_line() -> None:
    for args, code in (
        (("migrate", "--database", "postgresql://127.0.0.1:1/x"), 1),
        (("migrate", "--check", "--rollback-to", "0001.core"), 2),
        (("nonsense",), 2),
    ):
        result = tidebase(*args)
        assert result.returncode == code
        assert "Traceback" not in result.stderr and "rror: " in result.stderr


def test_help_and_version() -> None:
    assert "migrate" in tidebase("--help").stdout
    assert "--check" in tidebase("migrate", "-h").stdout
    assert tidebase("--version").stdout.startswith("tidebase, version ")
