"""Every snippet of the README runs, in the order in which a reader meets them, on one fresh database."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from .conftest import SERVERS, Server, long, on_every_version
from .patience import PATIENCE_S, TEST_S

ON_NEWEST = True

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"(?:<!-- (?P<note>[^>]*?) -->\n)?```(?P<language>\w*)\n(?P<code>.*?)```", re.DOTALL)


@dataclass(frozen=True)
class Snippet:
    number: int
    language: str
    note: str
    code: str

    def __str__(self) -> str:
        return f"{self.number}-{self.language}"


def snippets() -> list[Snippet]:
    text = (ROOT / "README.md").read_text("utf-8")
    return [
        Snippet(number, match["language"], match["note"] or "", match["code"])
        for number, match in enumerate(BLOCK.finditer(text), 1)
    ]


def run_python(code: str, url: str) -> str:
    environment = {**os.environ, "TIDEBASE_DATABASE_URL": url}
    result = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=PATIENCE_S
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def run_sql(snippet: Snippet, url: str, version: int) -> None:
    command = [str(SERVERS[version] / "psql"), "-X", "-v", "ON_ERROR_STOP=1", "-v", "VERBOSITY=verbose", url]
    result = subprocess.run(command, input=snippet.code, capture_output=True, text=True, timeout=PATIENCE_S)
    expected = re.fullmatch(r"error: (\w{5})", snippet.note)
    if expected is None:
        assert result.returncode == 0, result.stderr
    else:
        assert re.findall(r"ERROR: +(\w{5}):", result.stderr) == [expected[1]], result.stderr


def run_command(line: str, url: str) -> str:
    program, *arguments = shlex.split(line)
    command = [sys.executable, "-m", "tidebase.cli", *arguments] if program == "tidebase" else [program, *arguments]
    environment = {**os.environ, "TIDEBASE_DATABASE_URL": url}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE_S)
    assert result.returncode == 0, (line, result.stdout, result.stderr)
    return result.stdout


def run_with_gateway(lines: list[str], url: str) -> None:
    """The first line starts the gateway (on a port that is free), the others ask it."""
    command = [sys.executable, "-m", "tidebase.cli", *shlex.split(lines[0])[1:], "--port", "0"]
    environment = {**os.environ, "TIDEBASE_DATABASE_URL": url}
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as gateway:
        try:
            assert gateway.stderr is not None
            address = next(match[0] for line in gateway.stderr if (match := re.search(r"http://\S+:\d+", line)))
            for line in lines[1:]:
                assert "http://127.0.0.1:7373" in line
                answer = run_command(line.replace("http://127.0.0.1:7373", address), url)
                assert "event: end" in answer or '"openapi"' in answer, line
        finally:
            gateway.terminate()
        assert gateway.wait(PATIENCE_S) in (0, -signal.SIGTERM)  # uvicorn ends in good order, and then by the signal


@long
def test_every_snippet_runs(server: Server, database: str) -> None:
    printed = ""
    for snippet in snippets():
        if snippet.note.startswith("not run"):
            continue
        if snippet.language == "python":
            printed = run_python(snippet.code, database)
        elif snippet.note == "output":
            # What is done in parallel comes in any order.
            assert sorted(printed.splitlines()) == sorted(snippet.code.splitlines())
        elif snippet.language == "sql":
            run_sql(snippet, database, server.version)
        elif snippet.note == "commands":
            for line in snippet.code.splitlines():
                run_command(line, database)
        elif snippet.note == "gateway":
            run_with_gateway(snippet.code.splitlines(), database)
        elif snippet.note.startswith("from: "):
            source = (ROOT / snippet.note.removeprefix("from: ")).read_text("utf-8").splitlines()
            assert set(snippet.code.splitlines()) <= set(source), snippet
        elif snippet.language == "console":
            targets = re.findall(r"^make (\w+)", snippet.code, re.MULTILINE)
            assert targets and set(targets) <= make_targets(), snippet
        else:
            pytest.fail(f"nobody knows how to run snippet {snippet}")


def make_targets() -> set[str]:
    return set(re.findall(r"^(\w+):.*##", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))


@on_every_version
def test_the_walk_through_in_psql_runs(server: Server, database: str) -> None:
    script = ROOT / "sql" / "examples" / "walkthrough.sql"
    command = [str(SERVERS[server.version] / "psql"), "-X", "-f", str(script), database]
    result = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr


@long
def test_the_demo_kills_an_agent_and_sees_it_finish(database: str) -> None:
    command = [sys.executable, str(ROOT / "python" / "examples" / "demo.py")]
    environment = {**os.environ, "TIDEBASE_DATABASE_URL": database, "NO_COLOR": "1"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=TEST_S)
    assert result.returncode == 0, result.stdout[-5000:] + result.stderr
