"""The documents: every snippet runs, in the order in which a reader meets them, on a fresh database for each document;
every link leads somewhere; and what is made by a program is up to date.
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
from typing import Any
from urllib.parse import unquote

import psycopg
import pytest

import tidebase

from . import documents, sql_reference
from .bench import page as bench_page
from .conftest import SERVERS, Server, long, on_every_version
from .documents import ROOT
from .support.node import NODE, NODE_MODULES, node_url
from .support.patience import PATIENCE_S

ON_NEWEST = True

DOCUMENTS = documents.documents()
BLOCK = re.compile(r"(?:<!-- (?P<note>[^>]*?) -->\n)?```(?P<language>\w*)\n(?P<code>.*?)```", re.DOTALL)


@dataclass(frozen=True)
class Snippet:
    number: int
    language: str
    note: str
    code: str

    def __str__(self) -> str:
        return f"{self.number}-{self.language}"


def snippets(document: Path) -> list[Snippet]:
    return [
        Snippet(number, match["language"], match["note"] or "", match["code"])
        for number, match in enumerate(BLOCK.finditer(document.read_text("utf-8")), 1)
    ]


def name_of(document: Path) -> str:
    return document.relative_to(ROOT).as_posix()


def run_python(code: str, url: str) -> str:
    environment = {**os.environ, "TIDEBASE_DATABASE_URL": url}
    result = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=PATIENCE_S
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def run_javascript(code: str, url: str) -> None:
    if NODE is None or not (NODE_MODULES / "pg").exists():
        pytest.skip("needs Node and npm's pg")
    environment = {**os.environ, "TIDEBASE_DATABASE_URL": node_url(url), "NODE_PATH": str(NODE_MODULES)}
    result = subprocess.run([NODE, "-e", code], env=environment, capture_output=True, text=True, timeout=PATIENCE_S)
    assert result.returncode == 0, result.stderr


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
@pytest.mark.parametrize("document", [path for path in DOCUMENTS if snippets(path)], ids=name_of)
def test_every_snippet_runs(document: Path, server: Server, database: str) -> None:
    printed = ""
    for snippet in snippets(document):
        if snippet.note.startswith("not run"):
            continue
        if snippet.language == "python" and not snippet.note.startswith("from: "):
            printed = run_python(snippet.code, database)
        elif snippet.note == "output":
            # What is done in parallel comes in any order.
            assert sorted(printed.splitlines()) == sorted(snippet.code.splitlines())
        elif snippet.note.startswith("from: "):
            source = (ROOT / snippet.note.removeprefix("from: ")).read_text("utf-8").splitlines()
            assert set(snippet.code.splitlines()) <= set(source), snippet
        elif snippet.language == "javascript":
            run_javascript(snippet.code, database)
        elif snippet.language == "sql":
            run_sql(snippet, database, server.version)
        elif snippet.note == "commands":
            for line in snippet.code.splitlines():
                run_command(line, database)
        elif snippet.note == "gateway":
            run_with_gateway(snippet.code.splitlines(), database)
        elif snippet.language == "console":
            targets = re.findall(r"^make (\w+)", snippet.code, re.MULTILINE)
            assert targets and set(targets) <= make_targets(), snippet
        else:
            pytest.fail(f"nobody knows how to run snippet {snippet}")


def make_targets() -> set[str]:
    return set(re.findall(r"^(\w+):.*##", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))


def test_the_front_page_is_short_and_names_the_two_commands() -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    assert len(text.splitlines()) <= 200
    assert re.search(r"^make demo\b.*\nmake test\b", text, re.MULTILINE)


LINK = re.compile(r"\[(?:[^][]|\[[^]]*\])*\]\(([^)\s]+)\)")


def leads_somewhere(target: str, document: Path) -> bool:
    """Without asking anybody outside."""
    if target.startswith("https://"):
        return True
    path, _, anchor = unquote(target).partition("#")
    found = (document.parent / path).resolve() if path else document
    if not found.is_relative_to(ROOT) or not found.exists():
        return False
    return not anchor or anchor in documents.anchors(found.read_text("utf-8"))


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_every_link_leads_somewhere(document: Path) -> None:
    targets = LINK.findall(documents.prose(document.read_text("utf-8")))
    assert [target for target in targets if not leads_somewhere(target, document)] == []


@pytest.mark.parametrize(
    ("target", "leads"),
    [
        ("python/README.md#limits", True),
        ("#what-is-guaranteed", True),
        ("sql/functions", True),
        ("python/README.md#no-such-heading", False),
        ("#no-such-heading", False),
        ("no/such/file.md", False),
        ("../outside.md", False),
    ],
)
def test_a_link_that_leads_nowhere_is_noticed(target: str, leads: bool) -> None:
    assert leads_somewhere(target, ROOT / "README.md") is leads


def test_every_document_is_reached_from_the_front_page() -> None:
    seen, ahead = set[Path](), [ROOT / "README.md"]
    while ahead:
        document = ahead.pop()
        if document not in seen and document.suffix == ".md":
            seen.add(document)
            targets = (target.partition("#")[0] for target in LINK.findall(document.read_text("utf-8")))
            ahead += [(document.parent / target).resolve() for target in targets if "://" not in target]
    assert [name_of(document) for document in DOCUMENTS if document not in seen and "docs" not in document.parts] == []


def test_the_reference_says_what_the_database_says(db: psycopg.Connection[Any]) -> None:
    """``python -m tests.sql_reference`` brings it up to date."""
    api = sql_reference.read(db)
    text = sql_reference.PAGE.read_text("utf-8")
    assert text == documents.filled(text, sql_reference.MAKER, sql_reference.render(api))
    assert set(sql_reference.ERRORS) == {state for function in api.functions for state in function.errors}


def test_every_error_is_told_of() -> None:
    for sqlstate, (exception, _) in sql_reference.ERRORS.items():
        assert sqlstate in (getattr(tidebase, exception).__doc__ or "")
    public = (getattr(tidebase, name) for name in tidebase.__all__)
    errors = [one for one in public if isinstance(one, type) and issubclass(one, tidebase.TidebaseError)]
    text = "".join((ROOT / name / "README.md").read_text("utf-8") for name in ("python", "sql"))
    assert [one.__name__ for one in errors if f"`{one.__name__}`" not in text] == []


def test_the_table_of_the_speed_has_its_place() -> None:
    """``python -m tests.bench.page`` takes that of the last ``make bench`` over."""
    text = bench_page.PAGE.read_text("utf-8")
    other = documents.filled(text, bench_page.MAKER, "another\n")
    lost = [line for line in text.splitlines() if line not in other.splitlines()]
    assert len(lost) > 20 and all(line.startswith("| ") for line in lost)


def test_what_agents_read_is_made_of_the_documents() -> None:
    """``python python/tools/skill.py`` brings it up to date."""
    command = [sys.executable, str(ROOT / "python" / "tools" / "skill.py"), "--check"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S)
    assert result.returncode == 0, result.stderr
    skill = (ROOT / "python" / "skills" / "tidebase" / "SKILL.md").read_text("utf-8")
    assert re.match(r"---\nname: tidebase\ndescription: >-\n(  .+\n){2,8}---\n", skill) and len(skill) < 60_000
    for page in ("llms.txt", "python/skills/tidebase/SKILL.md"):
        targets = LINK.findall(documents.prose((ROOT / page).read_text("utf-8")))
        assert [target for target in targets if not leads_somewhere(target, ROOT / "README.md")] == []


@on_every_version
def test_the_walk_through_in_psql_runs(server: Server, database: str) -> None:
    script = ROOT / "sql" / "examples" / "walkthrough.sql"
    command = [str(SERVERS[server.version] / "psql"), "-X", "-f", str(script), database]
    result = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr
