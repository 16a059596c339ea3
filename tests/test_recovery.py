"""Recovery: every attempt is kept, and what tells somebody is written in the same transaction."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest

from tidebase import InvalidArgument, RunFinal, RunNotFound, Tidebase
from tidebase.core.errors import RunCancelledError

from .support.gate import (
    Db,
    acquire,
    broken_logs,
    create_run,
    decide,
    events,
    expire,
    mutate,
    new_run,
    open_gate,
    reached,
    refusal,
    row,
    status,
    together,
    user,
    value,
    values,
    waiters,
)

ON_NEWEST = True

HOOK = "https://example.org/hook"
FINISH_DELIVERY = "tidebase.finish_delivery(text,integer,integer,boolean,integer,text,text,integer)"


def test_what_is_to_be_sent_is_written_if_and_only_if_the_recovery_is(db: Db, database: str) -> None:
    new_run(db, "r", recovery_webhook=HOOK)
    with psycopg.connect(database) as connection:
        connection.execute("select tidebase.record_recovery('r', 'lost')")
        connection.rollback()
    assert value(db, "select count(*) from tidebase.deliveries") == 0
    assert events(db, "r")[-1] == "run.started"
    assert value(db, "select tidebase.record_recovery('r', 'kept', 'ann')") == 1
    body = value(db, "select body from tidebase.deliveries where url = %s and recovery = 1", HOOK)
    assert body == {
        "type": "run.resume",
        "runId": "r",
        "workflowName": "w",
        "attempt": 1,
        "status": "running",
        "reason": "kept",
        "recovery": 1,
    }
    assert value(db, "select tidebase.record_recovery('r')") == 2
    assert broken_logs(db) == []


def test_recoveries_are_numbered_without_a_gap_by_whoever_makes_them(db: Db, database: str) -> None:
    new_run(db, "r", recovery_webhook=HOOK)
    record = "select tidebase.record_recovery('r')"
    told = together(database, [lambda c: [value(c, record) for _ in range(10)] for _ in range(8)])
    assert sorted(number for each in told for number in each) == list(range(1, 81))
    assert values(db, "select delivery from tidebase.deliveries order by 1") == list(range(1, 81))
    assert events(db, "r").count("recovery.started") == 80 and broken_logs(db) == []


def test_a_recovery_ends_once(db: Db, database: str) -> None:
    create_run(db, "r")
    db.execute("select tidebase.record_recovery('r', 'lost', 'ann')")
    ends = [
        lambda c, n=number: refusal(
            lambda: c.execute(
                "select tidebase.finish_recovery('r', 1, %s, %s, error => %s)",
                ["succeeded" if n % 2 else "failed", 200 + n, f"error {n}"],
            )
        )
        for number in range(8)
    ]
    assert together(database, ends) == [None] * 8
    kept = row(db, "select status, http_status, error, actor, found_status from tidebase.recovery_history")
    number = kept[1] - 200
    assert kept == ("succeeded" if number % 2 else "failed", 200 + number, f"error {number}", "ann", "pending")
    ended = "recovery.delivered" if number % 2 else "recovery.failed"
    assert events(db, "r") == ["run.created", "recovery.started", ended]
    assert refusal(lambda: db.execute("select tidebase.finish_recovery('r', 2, 'failed')")) == "TB012"
    assert refusal(lambda: db.execute("select tidebase.finish_recovery('r', 1, 'perhaps')")) == "TB002"


def test_a_run_that_was_left_or_has_failed_may_be_acquired_at_once(tide: Tidebase, db: Db) -> None:
    for run_id in ("left", "failed", "backing off"):
        new_run(db, run_id, **({"max_attempts": 2, "retry_delay": "1 hour"} if run_id == "backing off" else {}))
    expire(db, "left")
    for run_id in ("failed", "backing off"):
        db.execute("select tidebase.fail_run(%s, 1)", [run_id])
    found = {"left": "running", "failed": "failed", "backing off": "pending"}
    for run_id, before in found.items():
        recovery = tide.runs.recover(run_id, "noticed", actor="ann")
        kept = (recovery.recovery, recovery.reason, recovery.actor, recovery.found_status, recovery.status)
        assert kept == (1, "noticed", "ann", before, "succeeded")
        assert status(db, run_id) == ("running" if run_id == "left" else "pending")  # whoever left it may come back
        assert acquire(db, run_id) == 2
    assert events(db, "left")[2:5] == ["recovery.started", "run.lapsed", "recovery.delivered"]
    assert broken_logs(db) == []


def test_what_needs_no_recovery_is_left_alone(tide: Tidebase, db: Db) -> None:
    for run_id in ("held", "completed", "cancelled", "waiting"):
        new_run(db, run_id)
    db.execute("select tidebase.complete_run('completed', 1)")
    db.execute("select tidebase.cancel_run('cancelled')")
    open_gate(db, "waiting", 1)
    db.execute("select tidebase.suspend_run('waiting', 1, 'g')")
    before = values(db, "select last_seq from tidebase.run_heads where run_id <> 'waiting' order by run_id")
    for run_id, error in (
        ("held", InvalidArgument),
        ("completed", RunFinal),
        ("cancelled", RunCancelledError),
        ("none", RunNotFound),
    ):
        with pytest.raises(error):
            tide.runs.recover(run_id)
    assert before == values(db, "select last_seq from tidebase.run_heads where run_id <> 'waiting' order by run_id")
    assert tide.runs.recover("waiting").status == "succeeded"
    assert status(db, "waiting") == "waiting"
    assert decide(db, "waiting", "g", "approved")[0] and acquire(db, "waiting") == 2
    assert broken_logs(db) == []


def test_a_recovery_that_ends_after_its_run_adds_nothing_to_the_log(db: Db) -> None:
    """The common order: the webhook gets a worker going, the run completes, and then the delivery is reported."""
    for run_id, end in (("r", "select tidebase.complete_run('r', 1)"), ("s", "select tidebase.cancel_run('s')")):
        new_run(db, run_id, recovery_webhook=HOOK)
        db.execute("select tidebase.record_recovery(%s)", [run_id])
        db.execute(end)
    for run_id, number in db.execute("select run_id, attempts from tidebase.claim_deliveries()").fetchall():
        db.execute("select tidebase.finish_delivery(%s, 1, %s, true, 200)", [run_id, number])
    assert values(db, "select status from tidebase.recovery_history") == ["succeeded", "succeeded"]
    assert broken_logs(db) == []


def test_only_operators_recover(db: Db, database: str) -> None:
    new_run(db, "r")
    expire(db, "r")
    for role in ("worker", "approver", "reader", "operator"):
        with user(db, database, role) as url, psycopg.connect(url, autocommit=True) as connection:
            told = refusal(lambda c=connection: c.execute("select tidebase.recover_run('r')"))
            assert told == (None if role == "operator" else "42501")
            who = connection.info.user
    assert value(db, "select actor from tidebase.recovery_history") == who


def due_deliveries(db: Db, count: int) -> None:
    for number in range(count):
        create_run(db, f"r{number}", recovery_webhook=HOOK)
        db.execute("select tidebase.record_recovery(%s)", [f"r{number}"])


def test_no_two_dispatchers_get_the_same_attempt(db: Db, database: str) -> None:
    due_deliveries(db, 60)

    def claim(connection: Db) -> list[Any]:
        mine: list[Any] = []
        while True:
            got = connection.execute("select run_id, delivery, attempts from tidebase.claim_deliveries(3)").fetchall()
            if not got:
                return mine
            mine += got

    told = [each for share in together(database, [claim] * 8) for each in share]
    assert sorted(told) == sorted((f"r{number}", 1, 1) for number in range(60))


def claim_one(db: Db) -> int | None:
    return value(db, "select attempts from tidebase.claim_deliveries()")


def test_a_dispatcher_that_died_is_replaced_and_heard_no_more(db: Db) -> None:
    due_deliveries(db, 1)
    assert claim_one(db) == 1
    assert claim_one(db) is None
    left = value(db, "select next_at - clock_timestamp() between '50 s' and '60 s' from tidebase.deliveries")
    assert left  # the minute that is the default
    db.execute("update tidebase.deliveries set next_at = clock_timestamp()")
    assert claim_one(db) == 2
    before = row(db, "select * from tidebase.deliveries")
    assert value(db, "select tidebase.finish_delivery('r0', 1, 1, false, 500)") == "pending"
    assert row(db, "select * from tidebase.deliveries") == before
    assert value(db, "select tidebase.finish_delivery('r0', 1, 2, true, 200)") == "delivered"
    assert value(db, "select tidebase.finish_delivery('r0', 1, 2, false, 500)") == "delivered"
    assert claim_one(db) is None and events(db, "r0").count("recovery.delivered") == 1


def late_report(db: Db, url: str) -> bool:
    """Lets the report of a dispatcher wait for the claim that replaces it; whether it changed anything."""
    due_deliveries(db, 1)
    assert claim_one(db) == 1
    db.execute("update tidebase.deliveries set next_at = clock_timestamp()")

    report = "select tidebase.finish_delivery('r0', 1, 1, false, 500)"
    with psycopg.connect(url, autocommit=True) as reporter, ThreadPoolExecutor(1) as pool:
        with db.transaction():
            assert claim_one(db) == 2
            future = pool.submit(value, reporter, report)
            with psycopg.connect(url, autocommit=True) as watch:
                reached(lambda: waiters(watch) == 1)
        future.result()
    return row(db, "select attempts, http_status from tidebase.deliveries") != (2, None)


def test_a_report_that_waited_for_another_claim_changes_nothing(db: Db, database: str) -> None:
    assert not late_report(db, database)


def test_a_late_report_is_seen_heard_without_the_look_at_the_attempt(db: Db) -> None:
    mutate(db, FINISH_DELIVERY, "or sent.attempts is distinct from attempt then", "then")
    due_deliveries(db, 1)
    claim_one(db)
    db.execute("update tidebase.deliveries set next_at = clock_timestamp()")
    assert claim_one(db) == 2
    assert value(db, "select tidebase.finish_delivery('r0', 1, 1, false, 500)") == "pending"
    assert value(db, "select http_status from tidebase.deliveries") == 500  # the one who is at it is overruled


def test_failures_are_spaced_out_and_end(db: Db) -> None:
    due_deliveries(db, 1)
    waits = []
    for attempt in range(1, 9):
        assert claim_one(db) == attempt
        told = value(db, "select tidebase.finish_delivery('r0', 1, %s, false, 500, error => 'HTTP 500')", attempt)
        assert told == ("failed" if attempt == 8 else "pending")
        assert claim_one(db) is None
        if attempt < 8:
            wait = value(db, "select extract(epoch from next_at - clock_timestamp())::float8 from tidebase.deliveries")
            waits.append(wait)
            db.execute("update tidebase.deliveries set next_at = clock_timestamp()")
    for attempt, wait in enumerate(waits):
        assert 5 * 2**attempt / 2 - 1 < wait <= 5 * 2**attempt
    history = row(db, "select status, delivery_attempts, http_status, error from tidebase.recovery_history")
    assert history == ("failed", 8, 500, "HTTP 500")
    assert events(db, "r0")[-1] == "recovery.failed" and broken_logs(db) == []
