"""Retention: what is over goes whole, what is alive stays whole."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from tidebase import AsyncTidebase, InvalidArgument, NotFound, Run, RunFinal, RunNotFound, Tidebase

from .probes import state as probe_state
from .probes.support import Connection

NOW = timedelta(0)


def test_purging_under_load_takes_nothing_alive_and_leaves_no_orphan(database: str) -> None:
    assert probe_state.purge_under_load(database) == []


def test_purgers_wait_for_nobody(database: str) -> None:
    assert probe_state.purgers_wait_for_nobody(database) == []


def test_a_run_is_not_compacted_while_it_is_forked(database: str) -> None:
    assert probe_state.fork_meets_compaction(database) == []


def everything(run: Run, input: Any) -> Any:
    """Leaves a row in as many tables as a run can."""
    run.state.set({"n": 1})
    run.state.patch({"n": 2})
    run.snapshots.create("s")
    run.usage.record(cost_usd=1)
    run.sleep("t", 0)
    run.child("kid", lambda r, i: r.step("k", lambda: i), input=1)
    return run.step("s", lambda: {"big": "x" * 1000}, input={"in": 1})


def test_a_purged_run_leaves_nothing(tide: Tidebase, db: Connection) -> None:
    tide.run("w", everything, run_id="r")
    tide.runs.fork("r", "f")
    assert tide.runs.purge(timedelta(days=1)) == 0
    assert tide.runs.purge(NOW) == 1  # its child has a parent in the fork, which is alive and may need its result
    with pytest.raises(RunNotFound):
        tide.runs.get("r")
    assert [node.depth for node in tide.runs.tree("f")] == [0, 1]
    assert probe_state.orphans(db) == []
    tide.runs.cancel("f")
    assert tide.runs.purge(NOW) == 2
    assert probe_state.orphans(db) == []
    assert tide.run("w", everything, run_id="f") == {"big": "x" * 1000}  # the fork needs nobody


def test_who_is_purged(tide: Tidebase) -> None:
    tide.run("w", lambda run, _: 1, run_id="completed")
    with pytest.raises(ZeroDivisionError):
        tide.run("w", lambda run, _: 1 / 0, run_id="failed")
    tide.runs.create("w", run_id="pending")
    tide.runs.create("w", run_id="cancelled")
    tide.runs.cancel("cancelled")
    tide.runs.attach("w", run_id="running")
    assert tide.runs.purge(NOW, statuses=["cancelled"]) == 1
    assert tide.runs.purge(NOW, max=1) == 1 and tide.runs.purge(NOW) == 1
    assert {run.run_id for run in tide.runs.list()} == {"pending", "running"}
    for wrong in ({"statuses": ["running"]}, {"statuses": []}, {"max": 0}, {"older_than": timedelta(days=-1)}):
        with pytest.raises(InvalidArgument):
            tide.runs.purge(**{"older_than": NOW, **wrong})  # type: ignore[arg-type]


def test_a_compacted_run_keeps_its_log_its_result_and_its_last_state(tide: Tidebase) -> None:
    with pytest.raises(InvalidArgument, match="is pending"):
        tide.runs.create("w", run_id="r")
        tide.runs.compact("r")
    tide.run("w", everything, run_id="r")
    before, events = tide.runs.size("r"), list(tide.runs.events("r"))
    assert tide.runs.compact("r") is True and tide.runs.compact("r") is False
    after = tide.runs.size("r")
    assert after.step_bytes < before.step_bytes / 10 and after.state_versions == 2
    assert list(tide.runs.events("r")) == events
    assert tide.runs.get("r").result == {"big": "x" * 1000} and tide.runs.get("r").compacted_at is not None
    assert tide.runs.state("r").value == {"n": 2} and tide.runs.usage("r").records == 1
    with pytest.raises(NotFound):
        tide.runs.state("r", version=1)
    with pytest.raises(RunFinal):
        tide.runs.fork("r")


async def test_the_same_awaited(atide: AsyncTidebase) -> None:
    await atide.run("w", lambda run, _: run.step("s", lambda: "x" * 100), run_id="r")
    assert (await atide.runs.size("r")).steps == 1
    assert await atide.runs.compact("r") is True
    assert await atide.runs.purge(NOW) == 1
