"""Processes at the queues and at the clock are killed in the short form of ``make torture`` (``probes.crowds``)."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from psycopg.types.json import Jsonb

from .probes import crowds
from .probes.support import Connection, call, call_rows
from .support.amounts import (
    CLAIMED_RUNS,
    CLAIMERS,
    CLOCK_PROCESSES,
    CLOCKS,
    DAYS,
    KILLED_CLAIMERS,
    LARGE_KEY,
    SMALL_KEYS,
    STARTS,
)
from .test_mechanisms import Edit

ON_NEWEST = True


def test_claimers_that_are_killed_complete_each_run_once_and_exceed_no_limit(database: str) -> None:
    outcome = crowds.claimers_under_fire(database, CLAIMED_RUNS.test, CLAIMERS.test, STARTS.test, KILLED_CLAIMERS.test)
    assert outcome.found == []
    assert outcome.figures["claimers killed"] > 0 and outcome.figures["most leased"] > 1
    assert outcome.figures["most granted of a key"] > 0


LEASED = (
    Edit("room_of", "room := queue.concurrency - (", "room := queue.concurrency + 50 - ("),
    Edit("room_of_key", "room := queue.key_concurrency - (", "room := queue.key_concurrency + 50 - ("),
)
GRANTED = (
    Edit("room_of", "queue.rate - tidebase_private", "queue.rate + 50 - tidebase_private"),
    Edit("room_of_key", "queue.key_rate - tidebase_private", "queue.key_rate + 50 - tidebase_private"),
)


@pytest.mark.breaks_invariants
@pytest.mark.parametrize(
    ("edits", "queue", "limits", "seen"),
    [
        (LEASED, crowds.NARROW, {"concurrency": crowds.CONCURRENCY}, "were leased"),
        (LEASED, crowds.NARROW, {"key_concurrency": crowds.KEY_CONCURRENCY}, "of a key"),
        (GRANTED, crowds.RATED, {"rate": STARTS.test, "rate_period": crowds.PERIOD}, "were granted in a second"),
    ],
    ids=["leased", "leased of a key", "granted"],
)
def test_a_limit_that_is_exceeded_is_seen(
    edits: tuple[Edit, ...], queue: str, limits: dict[str, Any], seen: str, db: Connection
) -> None:
    """By who looks, and by the log: otherwise thousands of runs would prove nothing."""
    for edit in edits:
        edit.apply(db)
    call(db, "put_queue", queue=queue, **limits)
    call_rows(db, "enqueue_runs", runs=Jsonb([{"workflow": "w", "queue": queue, "key": "k"}] * 40))
    assert len(call_rows(db, "claim_runs", queues=[queue], holder="greedy", max=40)) == 40
    assert queue != crowds.NARROW or crowds.exceeded(db)
    assert any(seen in text for text in crowds.limits_by_the_log(db, STARTS.test, Counter()))


def test_small_keys_are_served_beside_a_large_one(database: str) -> None:
    outcome = crowds.small_keys_beside_a_large_one(database, LARGE_KEY.test, SMALL_KEYS.test, 5)
    assert outcome.found == []


def test_each_time_of_a_clock_makes_one_run(database: str) -> None:
    outcome = crowds.a_year_goes_by(database, CLOCKS.test, CLOCK_PROCESSES.test, DAYS.test)
    assert outcome.found == []
    assert outcome.figures["times"] > 50


@pytest.mark.breaks_invariants
def test_a_clock_that_passes_over_a_time_is_noticed(database: str, db: Connection) -> None:
    Edit("times_to_fire", "at > wanted.fired_at", "at > wanted.fired_at + interval '7 hours'").apply(db)
    outcome = crowds.a_year_goes_by(database, CLOCKS.test, 1, 2)
    assert any("missed" in text for text in outcome.found)
