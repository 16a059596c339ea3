"""How much of the PL/pgSQL is executed by the tests: the statement profiler of plpgsql_check counts, on a server of its
own, which loads it and so keeps one profile for all sessions.

The profile is not transactional: what a pgTAP file did counts, although it takes everything back. Functions in the SQL
language have no statements to count.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest

from . import test_pgtap
from .conftest import SERVERS, Server, long, server_settings
from .probes import kernel as probes
from .probes import queues as probe_queues
from .probes.kernel import Probe
from .probes.support import connect
from .support import clusters

ROOT = Path(__file__).parents[1]
REPORT = ROOT / "build" / "coverage" / "plpgsql.md"
LEAST = 95.0

#: Statements that nothing may reach, by function and line: they stand behind a call that always raises, because
#: a function must end with RETURN.
UNREACHABLE = {("begun_already", "return null;"), ("entitlement", "return null;")}

#: What a pgTAP file, alone in its session, cannot bring about: races, by the probes that force them.
RACES: list[Probe] = [
    functools.partial(probes.one_holder, workers=3, queued=True),
    probe_queues.limits_hold,
    probe_queues.comes_back,
]


@dataclass(frozen=True)
class Statement:
    function: str
    line: int
    text: str
    executions: int


@pytest.fixture(scope="module")
def profiled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Postgres 15 with the profiler on, and a migrated database in which pgTAP and plpgsql_check are installed."""
    if 15 not in SERVERS:
        pytest.skip("needs Debian's Postgres 15")
    settings = server_settings(15) | {
        "shared_preload_libraries": "plpgsql_check",
        "plpgsql_check.profiler": "on",
        "plpgsql_check.profiler_max_shared_chunks": "50000",  # the default of 15000 is for all databases together
    }
    cluster = clusters.cluster(tmp_path_factory.mktemp("profiled") / "data", SERVERS[15], settings)
    try:
        cluster.start()
    except Exception as error:
        pytest.skip(f"plpgsql_check cannot be loaded: {error}")
    server = Server(15, cluster)
    with server.connect() as connection:
        connection.execute(f"create database profiled template {clusters.MIGRATED}")  # type: ignore[arg-type]
    with server.connect("profiled") as connection:
        try:
            connection.execute("create extension pgtap; create extension plpgsql_check")
        except psycopg.Error as error:
            cluster.stop("immediate")
            pytest.skip(f"pgTAP or plpgsql_check is missing: {error}")
    yield server
    cluster.stop("immediate")


def statements(connection: psycopg.Connection[Any]) -> list[Statement]:
    """Every statement of the installed PL/pgSQL functions, with how often it was executed."""
    connection.execute("set search_path = pg_catalog, tidebase, public")  # their bodies are read in this session
    rows = connection.execute("""
        select p.proname, s.lineno, btrim((string_to_array(p.prosrc, E'\\n'))[s.lineno]), s.exec_stmts
        from pg_proc p
        join pg_language l on l.oid = p.prolang and l.lanname = 'plpgsql'
        cross join lateral public.plpgsql_profiler_function_statements_tb(p.oid) s
        where p.pronamespace in ('tidebase'::regnamespace, 'tidebase_private'::regnamespace)
        order by p.proname, s.lineno""").fetchall()
    found = [Statement(*row) for row in rows]
    assert {(s.function, s.text) for s in found} >= UNREACHABLE
    return [s for s in found if (s.function, s.text) not in UNREACHABLE]


def report(found: list[Statement]) -> tuple[str, float]:
    """The functions below 100 %, with the lines that were not executed, as Markdown; and the total in percent."""
    lines = ["| function | statements | executed | not executed |", "| --- | ---: | ---: | --- |"]
    functions = dict.fromkeys(statement.function for statement in found)
    for function in functions:
        own = [statement for statement in found if statement.function == function]
        missed = [statement for statement in own if not statement.executions]
        if missed:
            texts = "; ".join(f"{statement.line}: `{statement.text}`" for statement in missed)
            lines.append(f"| {function} | {len(own)} | {100 * (1 - len(missed) / len(own)):.0f} % | {texts} |")
    executed = sum(1 for statement in found if statement.executions)
    total = 100 * executed / len(found)
    lines += ["", f"{executed} of {len(found)} statements of {len(functions)} functions: {total:.1f} %"]
    return "\n".join(lines), total


@long
def test_the_tests_execute_the_functions(profiled: Server, capsys: pytest.CaptureFixture[str]) -> None:
    with profiled.connect("profiled") as connection:
        connection.execute("select public.plpgsql_profiler_reset_all()")
        _, total = report(statements(connection))
        assert total == 0
        # The profile belongs to a version of a function, and grants make new ones: so roles come first, and are undone.
        for call in ("install_roles()", "install_roles('coverage')"):
            with connection.transaction(force_rollback=True):
                connection.execute(f"select tidebase_private.{call}")  # type: ignore[arg-type]
    for file in test_pgtap.FILES:
        assert test_pgtap.problems(file, profiled.url("profiled"), SERVERS[15]) == ""
    for probe in RACES:
        assert probe(profiled.url("profiled")) == []
    with connect(profiled.url("profiled")) as connection:
        table, total = report(statements(connection))
    REPORT.parent.mkdir(parents=True, exist_ok=True)
    REPORT.write_text(f"# Statements of the PL/pgSQL that pgTAP and the forced races execute\n\n{table}\n")
    with capsys.disabled():
        print(f"\n{table}")
    assert total >= LEAST, table
