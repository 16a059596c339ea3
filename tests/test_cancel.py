"""Cancellation: one-way, whatever it races with."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any

import psycopg
import pytest

from tidebase import Run, RunCancelled, RunCancelledError, RunFinal, RunSuspendedError, Tidebase

from . import probe_gates


def test_cancelling_races_with_everything_and_one_status_is_final(database: str) -> None:
    assert probe_gates.cancelled_for_good(database, rounds=1000) == []


def test_trees_cancelled_and_completed_crosswise_do_not_deadlock(database: str) -> None:
    assert probe_gates.crosswise(database, connections=16, calls=150) == []


def test_a_worker_hears_of_it_at_its_next_call(tide: Tidebase) -> None:
    seen: list[str] = []

    def workflow(run: Run, input: Any) -> None:
        tide.runs.cancel("r", "enough")
        try:
            run.step("s", lambda: 1)
        except Exception:
            seen.append("swallowed")
        except RunCancelled:
            seen.append("heard")
            raise

    with pytest.raises(RunCancelledError):
        tide.run("w", workflow, run_id="r")
    assert seen == ["heard"] and tide.runs.cancel("r").cancel_reason == "enough"
    with pytest.raises(RunCancelledError):
        tide.run("w", workflow, run_id="r")


def test_a_completed_run_is_not_cancelled(tide: Tidebase) -> None:
    tide.run("w", lambda run, input: 1, run_id="r")
    with pytest.raises(RunFinal):
        tide.runs.cancel("r")


def test_nothing_begins_after_the_deadline(tide: Tidebase, db: psycopg.Connection[Any]) -> None:
    def workflow(run: Run, input: Any) -> None:
        db.execute("update tidebase.run_heads set deadline_at = clock_timestamp()")
        run.step("s", lambda: 1)

    deadline = datetime.now(timezone.utc) + timedelta(hours=1)
    with pytest.raises(RunCancelledError, match="deadline"):
        tide.run("w", workflow, run_id="r", deadline=deadline)
    db.execute("update tidebase.run_heads set due_at = clock_timestamp()")
    assert tide.reconcile().deadlines == 1
    assert tide.runs.get("r").status == "cancelled"


def test_a_run_with_attempts_left_is_tried_again(tide: Tidebase) -> None:
    def workflow(run: Run, input: Any) -> int:
        run.step("once", lambda: 1)
        if run.attempt < 3:
            raise ConnectionResetError
        return run.attempt

    assert tide.run("w", workflow, run_id="r", max_attempts=3, retry_delay_s=0) == 3
    with pytest.raises(ConnectionResetError):
        tide.run("w", workflow, run_id="s", max_attempts=2, retry_delay_s=0)
    assert [info.attempt for info in tide.runs.steps("r")] == [1]


def test_a_run_is_not_tried_again_before_its_time(tide: Tidebase) -> None:
    with tide.runs.attach("w", run_id="r", max_attempts=2, retry_delay_s=3600) as session:
        session.fail("no")
    with pytest.raises(RunSuspendedError):
        tide.run("w", lambda run, input: 1, run_id="r")
    assert tide.runs.recover("r").status == "succeeded"
    assert tide.run("w", lambda run, input: 1, run_id="r") == 1
