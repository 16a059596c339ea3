"""The documents: every snippet of one runs, in the order in which a reader meets them, on a fresh database; every link
leads somewhere; what is made of the sources is up to date.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest

from . import sql_reference
from .conftest import SERVERS, Server, long, on_every_version
from .patience import PATIENCE_S, TEST_S

ON_NEWEST = True

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"(?:<!-- (?P<note>[^>]*?) -->\n)?```(?P<language>\w*)\n(?P<code>.*?)```", re.DOTALL)


@dataclass(frozen=True)
class Snippet:
    place: str
    language: str
    note: str
    code: str

    def __str__(self) -> str:
        return f"{self.place} ({self.language})"


#: In the order in which they are read.
DOCUMENTS = [
    ROOT / name
    for name in (
        "README.md",
        "python/README.md",
        "sql/README.md",
        "tests/README.md",
        "tests/bench/README.md",
        "CONTRIBUTING.md",
        "CHANGELOG.md",
    )
]


def snippets(document: Path) -> list[Snippet]:
    return [
        Snippet(f"{document} {number}", match["language"], match["note"] or "", match["code"])
        for number, match in enumerate(BLOCK.finditer(document.read_text("utf-8")), 1)
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
@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_snippet_runs(server: Server, database: str, document: Path) -> None:
    printed = ""
    for snippet in snippets(document):
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


def test_the_front_page_is_short() -> None:
    assert len((ROOT / "README.md").read_text("utf-8").splitlines()) <= 200


def test_every_document_is_among_those_that_are_tried() -> None:
    tracked = subprocess.run(["git", "ls-files", "*.md"], cwd=ROOT, capture_output=True, text=True).stdout.split()
    if tracked:
        assert {ROOT / name for name in tracked} - set(DOCUMENTS) == {ROOT / "tests/landed/README.md"}


def anchors(path: Path) -> set[str]:
    """What the headings of a document are called in links, as GitHub makes them."""
    text = BLOCK.sub("", path.read_text("utf-8"))
    found: set[str] = set()
    for heading in re.findall(r"^#+ (.+)$", text, re.MULTILINE):
        plain = re.sub(r"[^\w\- ]", "", heading.replace("`", "").lower()).replace(" ", "-")
        number = sum(1 for known in found if re.fullmatch(re.escape(plain) + r"(-\d+)?", known))
        found.add(f"{plain}-{number}" if number else plain)
    return found


def test_every_link_between_the_documents_leads_somewhere() -> None:
    lost = []
    for path in DOCUMENTS:
        text = BLOCK.sub("", path.read_text("utf-8"))
        for target in re.findall(r"\]\(([^)\s]+)\)", text):
            if re.match(r"[a-z]+:", target):
                continue
            name, _, anchor = target.partition("#")
            there = (path.parent / name).resolve() if name else path
            if not there.exists() or (anchor and anchor not in anchors(there)):
                lost.append((str(path.relative_to(ROOT)), target))
    assert lost == []


def test_the_reference_is_what_the_comments_say(database: str) -> None:
    """``python -m tests.sql_reference`` brings it up to date."""
    with psycopg.connect(database) as connection:
        made = sql_reference.reference(connection)
    page = sql_reference.PAGE.read_text("utf-8")
    assert page == sql_reference.replaced(page, made)


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
