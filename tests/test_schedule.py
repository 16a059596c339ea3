"""Schedules through the package: what they say, what they make, what becomes of times that nobody looked at."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from itertools import pairwise
from typing import Any

import psycopg
import pytest

from tidebase import InvalidArgument, NotFound, Tidebase

from .probes.support import values

ON_NEWEST = True

Db = psycopg.Connection[Any]


def passed(db: Db, name: str, minutes: int) -> None:
    """As if nobody had looked for so many minutes; of an interval, at times that are new."""
    db.execute(
        "update tidebase.schedules set fired_at = fired_at - make_interval(mins => %s), next_at = now(),"
        " anchor = anchor - make_interval(mins => %s, secs => 1) where schedule = %s",
        [minutes, minutes, name],
    )


def made(db: Db) -> list[str]:
    return values(db, "select run_id from tidebase.runs order by run_id")


def test_a_schedule_enqueues_a_run_at_its_times(tide: Tidebase, db: Db) -> None:
    schedule = tide.schedules.put("tidy", "w", every_s=60, input={"n": 1}, queue="q", key="k", metadata={"by": "clock"})
    assert schedule.next_at is not None and schedule.enabled
    assert schedule.next_in is not None and schedule.next_in.total_seconds() > 0
    passed(db, "tidy", 1)
    tide.reconcile()
    (run_id,) = made(db)
    run = tide.runs.get(run_id)
    assert run_id.startswith("sched:tidy:20") and run_id.endswith("Z")
    assert (run.workflow, run.input, run.queue, run.queue_key, run.metadata, run.status) == (
        "w",
        {"n": 1},
        "q",
        "k",
        {"by": "clock"},
        "queued",
    )
    schedule = tide.schedules.get("tidy")
    assert (schedule.last_run_id, schedule.last_status, schedule.failure) == (run_id, "queued", None)


@pytest.mark.parametrize("catch_up, runs", [("none", 1), ("last", 1), ("all", 5)])
def test_times_at_which_nobody_looked(tide: Tidebase, db: Db, catch_up: Any, runs: int) -> None:
    tide.schedules.put("s", "w", every_s=60, catch_up=catch_up)
    passed(db, "s", 5)
    tide.reconcile()
    assert len(made(db)) == runs
    tide.reconcile()
    assert len(made(db)) == runs


def test_what_is_longer_ago_than_the_window_is_passed_over(tide: Tidebase, db: Db) -> None:
    tide.schedules.put("s", "w", every_s=60, catch_up="all", catch_up_window_s=120)
    passed(db, "s", 60)
    tide.reconcile()
    assert len(made(db)) in (2, 3)


@pytest.mark.parametrize(
    "overlap, statuses", [("allow", "queued queued"), ("skip", "queued"), ("cancel", "cancelled queued")]
)
def test_while_the_run_before_is_not_over(tide: Tidebase, db: Db, overlap: Any, statuses: str) -> None:
    tide.schedules.put("s", "w", every_s=60, overlap=overlap)
    for _ in range(2):
        passed(db, "s", 1)
        tide.reconcile()
    found = values(db, "select status from tidebase.run_overview order by created_at")
    assert found == statuses.split()


def test_put_again_as_it_was_it_goes_on_as_it_was(tide: Tidebase, db: Db) -> None:
    tide.schedules.put("s", "w", cron="0 3 * * *", timezone="Europe/Berlin")
    db.execute("update tidebase.schedules set fired_at = fired_at - interval '1 day'")
    before = tide.schedules.get("s").next_at
    again = tide.schedules.put("s", "other", cron="0 3 * * *", timezone="Europe/Berlin")
    assert again.workflow == "other" and again.next_at is not None and before is not None and again.next_at < before
    assert values(db, "select fired_at < now() - interval '23 hours' from tidebase.schedules") == [True]
    tide.schedules.put("s", "other", cron="0 4 * * *", timezone="Europe/Berlin")
    assert values(db, "select fired_at < now() - interval '23 hours' from tidebase.schedules") == [False]


def test_one_that_is_disabled_does_not_fire_and_misses_nothing(tide: Tidebase, db: Db) -> None:
    assert tide.schedules.put("s", "w", every_s=60, enabled=False, catch_up="all").next_at is None
    db.execute("update tidebase.schedules set fired_at = fired_at - interval '1 hour'")
    tide.reconcile()
    tide.schedules.put("s", "w", every_s=60, catch_up="all")
    tide.reconcile()
    assert made(db) == []


def test_it_is_triggered_and_filled_up_by_hand(tide: Tidebase, db: Db) -> None:
    tide.schedules.put("s", "w", cron="0 * * * *", input=1)
    run_id = tide.schedules.trigger("s", input=2)
    assert tide.runs.get(run_id).input == 2
    begin = datetime(2024, 1, 1, tzinfo=timezone.utc)
    ids = tide.schedules.backfill("s", begin, begin + timedelta(hours=3))
    assert ids == [f"sched:s:2024-01-01T0{hour}:00:00Z" for hour in range(3)]
    assert tide.schedules.backfill("s", begin, begin + timedelta(hours=4)) == ["sched:s:2024-01-01T03:00:00Z"]
    assert tide.schedules.delete("s") and not tide.schedules.delete("s")
    assert len(made(db)) == 5
    for wrong in (tide.schedules.get, tide.schedules.trigger):
        with pytest.raises(NotFound):
            wrong("s")


def test_one_that_cannot_fire_says_so_and_keeps_no_other_waiting(tide: Tidebase, db: Db) -> None:
    tide.schedules.put("broken", "w", every_s=60)
    tide.schedules.put("whole", "w", every_s=60)
    db.execute("update tidebase.schedules set queue = '' where schedule = 'broken'")
    for name in ("broken", "whole"):
        passed(db, name, 1)
    tide.reconcile()
    assert [run_id.split(":")[1] for run_id in made(db)] == ["whole"]
    assert "queue must be" in (tide.schedules.get("broken").failure or "")


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"cron": "* * * * *", "every_s": 60},
        {"cron": "61 * * * *"},
        {"cron": "* * * * *", "timezone": "Nowhere"},
        {"every_s": 0.5},
        {"every_s": 60, "overlap": "maybe"},
        {"every_s": 60, "catch_up": "some"},
        {"every_s": 60, "jitter_s": -1},
        {"every_s": 60, "max_attempts": 0},
        {"every_s": 60, "queue": ""},
    ],
)
def test_a_schedule_that_cannot_be_is_refused(tide: Tidebase, wrong: Any) -> None:
    with pytest.raises(InvalidArgument):
        tide.schedules.put("s", "w", **wrong)
    assert tide.schedules.list() == []


def test_jitter_is_the_same_for_everybody(tide: Tidebase, db: Db) -> None:
    tide.schedules.put("s", "w", cron="0 * * * *", jitter_s=600)
    begin = datetime(2100, 1, 1, tzinfo=timezone.utc)
    ids = tide.schedules.backfill("s", begin, begin + timedelta(hours=8))
    offsets = values(
        db, "select extract(epoch from ready_at - date_trunc('hour', ready_at)) from tidebase.queue_entries"
    )
    assert len(ids) == 8 and len(set(offsets)) == 8 and all(0 <= offset < 600 for offset in offsets)


def test_a_schedule_begins_when_it_is_said_to(tide: Tidebase, db: Db) -> None:
    """Not one time later, also where it is new; and nothing is caught up that lies before it was made."""
    soon = datetime.now(timezone.utc).replace(microsecond=0) + timedelta(hours=1)
    for again in (86_400, 172_800):
        assert tide.schedules.put("later", "w", every_s=again, starts_at=soon).next_at == soon
    long_ago = soon - timedelta(days=500)
    old = tide.schedules.put(
        "old", "w", every_s=86_400, starts_at=long_ago, catch_up="all", catch_up_window_s=900 * 86_400
    )
    assert old.next_at == soon
    tide.reconcile()
    assert made(db) == []


def test_schedules_that_have_missed_much_are_fired_a_part_at_a_time(tide: Tidebase, db: Db) -> None:
    for name in "abc":
        tide.schedules.put(name, "w", every_s=60, catch_up="all")
        passed(db, name, 50)
    counts = [0]
    for _ in range(3):
        tide.reconcile(20)
        counts.append(len(made(db)))
    assert all(50 <= later - earlier <= 52 for earlier, later in pairwise(counts))
