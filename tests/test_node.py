"""The worker in Node of the guide, with npm's ``pg``: it is killed in the middle of a run, and another one goes on."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tidebase import Tidebase
from tidebase.testing import advance

from .support.node import NODE, NODE_MODULES, node_url
from .support.patience import PATIENCE_S, moments

ON_NEWEST = True
WORKER = Path(__file__).parents[1] / "python" / "examples" / "worker.js"

pytestmark = pytest.mark.skipif(
    NODE is None or not (NODE_MODULES / "pg").exists(), reason="needs Node and npm's pg: make setup"
)


@contextmanager
def working(url: str) -> Iterator[subprocess.Popen[bytes]]:
    environment = {**os.environ, "TIDEBASE_DATABASE_URL": node_url(url), "NODE_PATH": str(NODE_MODULES)}
    with subprocess.Popen([str(NODE), str(WORKER), "mail"], env=environment) as worker:
        try:
            yield worker
        finally:
            worker.kill()


def until(db: psycopg.Connection[Any], query: str) -> None:
    for pause in moments():
        if db.execute(query).fetchone() == (True,):
            return
        db.execute("select pg_sleep(%s)", [pause])
    raise AssertionError(query)


def test_it_is_killed_and_another_one_goes_on(tide: Tidebase, db: psycopg.Connection[Any], database: str) -> None:
    tide.enqueue("greet", {"name": " Ada "}, queue="mail", run_id="greet-1")
    tide.enqueue("unknown", None, queue="mail", run_id="not-for-it")
    with psycopg.connect(database) as holder:
        holder.execute("lock table tidebase.steps in share mode")  # so the first step cannot be begun
        with working(database) as worker:
            until(
                db, "select count(*) > 0 from pg_stat_activity where wait_event_type = 'Lock' and query ~ 'begin_step'"
            )
            worker.kill()
            worker.wait(PATIENCE_S)
    assert tide.runs.get("greet-1").status == "running"
    advance(db, "2 minutes")
    with working(database) as worker:
        until(db, "select status = 'completed' from tidebase.run_overview where run_id = 'greet-1'")
        worker.terminate()
        assert worker.wait(PATIENCE_S) == 0
    run = tide.runs.get("greet-1")
    assert (run.attempt, run.result["text"]) == (2, "Hello Ada")
    assert [step.name for step in tide.runs.steps("greet-1")] == ["name", "greet"]
    assert tide.runs.get("not-for-it").status == "queued"


def test_what_fails_is_told(tide: Tidebase, db: psycopg.Connection[Any], database: str) -> None:
    tide.enqueue("greet", {}, queue="mail", run_id="greet-2", max_attempts=1)
    with working(database):
        until(db, "select status = 'failed' from tidebase.run_overview where run_id = 'greet-2'")
    assert tide.runs.get("greet-2").error["type"] == "TypeError"
    assert tide.runs.step("greet-2", "name").status == "failed"
