"""Reconciliation: once each, by any number of callers, waiting for nobody, at a cost that only what is due has."""

from __future__ import annotations

import json
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest

from tidebase import Tidebase

from .conftest import first_on_every_version, long
from .probes.support import poll
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
    refusal,
    row,
    status,
    together,
    values,
    waiters,
)

RECONCILE = "tidebase_private.look_at_due(integer, boolean)"
SETTLED = ("run.lapsed", "gate.resolved", "timer.fired", "run.cancelled")


def make_due(db: Db, each: int) -> dict[str, set[str]]:
    """Runs for which time has brought something, by the event that this is to become."""
    due: dict[str, set[str]] = {type: {f"{type} {number}" for number in range(each)} for type in SETTLED}
    for type, run_ids in due.items():
        for run_id in sorted(run_ids):
            token = new_run(db, run_id)
            if type == "gate.resolved":
                open_gate(db, run_id, token, "g", timeout="1 hour")
            elif type == "timer.fired":
                db.execute("select tidebase.start_timer(%s, %s, 'g', '1 hour')", [run_id, token])
                db.execute("select tidebase.suspend_run(%s, %s, 'g')", [run_id, token])
    db.execute("update tidebase.gates set timeout_at = clock_timestamp()")
    db.execute("update tidebase.run_heads set lease_expires_at = clock_timestamp() where run_id like 'run.lapsed%'")
    db.execute("update tidebase.run_heads set deadline_at = clock_timestamp() where run_id like 'run.cancelled%'")
    db.execute("update tidebase.run_heads set due_at = clock_timestamp()")
    return due


def reconcile_all(connection: Db, max: int = 7) -> dict[str, int]:
    """Reconciles until there is nothing to be had any more; how much was done, by this caller's own words."""
    total: Counter[str] = Counter()
    while True:
        runs, *counts = row(
            connection, "select runs, leases, gates, timers, deadlines from tidebase.reconcile(%s)", max
        )
        total.update(dict(zip(SETTLED, counts, strict=True)))
        if runs == 0:
            return dict(+total)


def happened(db: Db) -> Counter[tuple[str, str]]:
    return Counter(
        db.execute("select type, run_id from tidebase.events where type = any (%s)", [list(SETTLED)]).fetchall()
    )


def test_ten_callers_handle_each_expiry_exactly_once_under_load(db: Db, database: str) -> None:
    due = make_due(db, each=150)
    busy = {f"busy {number}": new_run(db, f"busy {number}") for number in range(10)}

    def load(connection: Db) -> dict[str, int]:
        for number in range(20):
            for run_id, token in busy.items():
                connection.execute("select tidebase.append_event(%s, %s, 'tick')", [run_id, token])
                if number == 10:
                    connection.execute("select tidebase.renew_lease(%s, %s, '1 hour')", [run_id, token])
        return {}

    counted: Counter[str] = Counter()
    for share in together(database, [*[reconcile_all] * 10, load]):
        counted.update(share)
    assert counted == dict.fromkeys(SETTLED, 150)
    assert happened(db) == {(type, run_id): 1 for type in SETTLED for run_id in due[type]}
    assert {status(db, run_id) for run_id in due["timer.fired"]} == {"pending"}
    assert {status(db, run_id) for run_id in due["run.lapsed"] | due["gate.resolved"] | set(busy)} == {"running"}
    assert {status(db, run_id) for run_id in due["run.cancelled"]} == {"cancelled"}
    assert broken_logs(db) == []


def reconcile_beside_a_lock(db: Db, url: str) -> tuple[bool, set[str]]:
    """Whether a caller waits for a head that somebody holds, and which runs it handled while that was held."""
    due = make_due(db, each=5)
    held = "run.lapsed 0"
    others = set().union(*due.values()) - {held}
    with psycopg.connect(url, autocommit=True) as other, ThreadPoolExecutor(1) as pool:
        with db.transaction():
            db.execute("select from tidebase.run_heads where run_id = %s for update", [held])
            future = pool.submit(reconcile_all, other)
            with psycopg.connect(url, autocommit=True) as watch:
                waited = False
                while not future.done() and not waited:
                    waited = waiters(watch) > 0
                handled = {run_id for _, run_id in happened(watch)}
        future.result()
    return waited, others - handled


def test_no_caller_waits_for_a_run_that_is_locked(db: Db, database: str) -> None:
    assert reconcile_beside_a_lock(db, database) == (False, set())
    assert ("run.lapsed", "run.lapsed 0") not in happened(db)
    assert reconcile_all(db) == {"run.lapsed": 1}
    assert broken_logs(db) == []


def test_the_wait_is_seen_failing_without_skip_locked(db: Db, database: str) -> None:
    mutate(db, RECONCILE, "for no key update skip locked", "for no key update")
    waited, _ = reconcile_beside_a_lock(db, database)
    assert waited


def test_what_cannot_be_handled_never_starves_the_rest(db: Db, database: str) -> None:
    """A hundred locked runs are due before all others, and a caller takes no more than two at a time."""
    make_due(db, each=50)
    db.execute("update tidebase.run_heads set due_at = due_at - interval '1 hour' where run_id like 'run.lapsed%'")
    db.execute("update tidebase.run_heads set due_at = due_at - interval '1 hour' where run_id like 'timer.fired%'")
    with psycopg.connect(database, autocommit=True) as other, db.transaction():
        db.execute("select from tidebase.run_heads where run_id ~ '^(run.lapsed|timer.fired)' for update")
        assert reconcile_all(other, max=2) == {"gate.resolved": 50, "run.cancelled": 50}
    assert reconcile_all(db) == {"run.lapsed": 50, "timer.fired": 50}


def test_a_run_that_was_looked_at_for_nothing_is_not_due_again(db: Db) -> None:
    """Its due_at is of an older time: of a lease that was renewed, of a run that failed, of a gate that was decided."""
    renewed, failed, decided = (new_run(db, run_id) for run_id in ("renewed", "failed", "decided"))
    assert renewed == 1
    db.execute("select tidebase.fail_run('failed', %s)", [failed])
    open_gate(db, "decided", decided, "g", timeout="1 minute")
    decide(db, "decided", "g", "approved")
    db.execute("update tidebase.run_heads set due_at = clock_timestamp()")
    before = values(db, "select last_seq from tidebase.run_heads order by run_id")
    assert row(db, "select * from tidebase.reconcile()") == (3, 0, 0, 0, 0)
    assert row(db, "select * from tidebase.reconcile()") == (0, 0, 0, 0, 0)
    assert values(db, "select last_seq from tidebase.run_heads order by run_id") == before
    assert values(db, "select run_id from tidebase.run_heads where due_at is null") == ["failed"]
    assert status(db, "renewed") == "running"


def test_a_lease_that_has_run_out_is_seen_and_its_holder_goes_on_until_it_is_replaced(tide: Tidebase, db: Db) -> None:
    token = new_run(db, "r")
    db.execute("update tidebase.run_heads set due_at = clock_timestamp()")
    assert tide.reconcile().leases == 0
    db.execute("select tidebase.append_event('r', %s, 'still here')", [token])
    expire(db, "r")
    assert tide.reconcile().leases == 1 and tide.reconcile().runs == 0
    db.execute("select tidebase.append_event('r', %s, 'in time')", [token])
    assert acquire(db, "r") == token + 1
    assert refusal(lambda: db.execute("select tidebase.append_event('r', %s, 'too late')", [token])) == "TB003"
    assert refusal(lambda: db.execute("select tidebase.renew_lease('r', %s)", [token])) == "TB003"
    assert values(db, "select outcome from tidebase.attempts order by attempt") == ["lapsed", None]


def idle_runs(db: Db, count: int) -> None:
    """Runs that are leased, have gates and deadlines far ahead, and need nothing."""
    db.execute("truncate tidebase.runs, tidebase.run_heads cascade")
    db.execute(
        """
        with made as (
          insert into tidebase.runs (run_id, workflow)
          select 'idle ' || n, 'w' from generate_series(1, %s) as n returning run_id)
        insert into tidebase.run_heads
          (run_id, status, lease_token, attempt, holder, lease_expires_at, due_at, deadline_at)
        select run_id, 'running', 1, 1, 'worker', clock_timestamp() + interval '1 day',
          clock_timestamp() + interval '1 day', clock_timestamp() + interval '2 days' from made
        """,
        [count],
    )
    with psycopg.connect(db.info.dsn, autocommit=True) as other:
        other.execute("vacuum analyze tidebase.runs, tidebase.run_heads")


def buffers(db: Db, statement: str) -> int:
    """The buffers that a statement reads when its plan and the catalogue are known already."""
    for _ in range(7):  # a plan for any value is considered from the sixth execution on
        db.execute(statement)
    plan = row(db, f"explain (analyze, buffers, timing off, format json) {statement}")[0]
    plan = json.loads(plan) if isinstance(plan, str) else plan
    return int(plan[0]["Plan"]["Shared Hit Blocks"] + plan[0]["Plan"]["Shared Read Blocks"])


@pytest.mark.breaks_invariants
@pytest.mark.parametrize(
    "statement",
    first_on_every_version(["select * from tidebase.reconcile()", "select * from tidebase.claim_deliveries()"]),
)
@long
def test_a_hundred_thousand_runs_that_need_nothing_cost_no_more_than_a_thousand(db: Db, statement: str) -> None:
    costs = []
    for count in (1_000, 100_000):
        idle_runs(db, count)
        db.execute(
            "insert into tidebase.deliveries (run_id, delivery, url, body, next_at)"
            " select run_id, 1, 'https://example.org', '{}', clock_timestamp() + interval '1 day' from tidebase.runs"
        )
        db.execute("analyze tidebase.deliveries")
        costs.append(buffers(db, statement))
        db.execute("truncate tidebase.deliveries")
    # One more level of the index at most; an index that is read from end to end has hundreds of pages.
    assert costs[1] <= costs[0] + 3 and costs[1] < 30, costs


def test_heartbeats_stay_off_the_indexes(db: Db) -> None:
    token = new_run(db, "r")
    open_gate(db, "r", token, "g", timeout="1 hour")
    for _ in range(50):
        db.execute("select tidebase.renew_lease('r', %s, '1 hour')", [token])
    with psycopg.connect(db.info.dsn, autocommit=True) as other:
        for _ in range(50):
            other.execute("select tidebase.renew_lease('r', %s, '1 hour')", [token])
    db.execute("select pg_stat_force_next_flush()")
    counts = "select n_tup_upd, n_tup_hot_upd from pg_stat_user_tables where relname = 'run_heads'"
    poll("what the other session has counted is sent when its backend has ended", lambda: row(db, counts)[0] >= 100)
    updated, hot = row(db, counts)
    assert updated - hot <= 3, (updated, hot)


def test_stalled_runs_are_those_that_do_not_go_on_by_themselves(tide: Tidebase, db: Db) -> None:
    for run_id in ("lapsed", "live", "failed", "completed", "cancelled", "released", "backing off", "due again"):
        create_run(db, run_id, **({"max_attempts": 3} if run_id in ("backing off", "due again") else {}))
    session = {"metadata": '{"tidebase.session": true, "of": "ada"}'}
    create_run(db, "quiet session", **session)
    create_run(db, "lapsed session", **session)
    begun = values(db, "select run_id from tidebase.runs")
    create_run(db, "never begun")
    create_run(db, "forgotten")
    db.execute(
        "update tidebase.run_heads set updated_at = updated_at - interval '2 minutes' where run_id = 'forgotten'"
    )
    tokens = {run_id: acquire(db, run_id) for run_id in begun}
    expire(db, "lapsed")
    expire(db, "lapsed session")
    db.execute("select tidebase.release_run('quiet session', %s)", [tokens["quiet session"]])
    for run_id in ("failed", "backing off", "due again"):
        db.execute("select tidebase.fail_run(%s, %s, '\"no\"')", [run_id, tokens[run_id]])
    db.execute(
        "update tidebase.run_heads set available_at = available_at + interval '1 hour' where run_id = 'backing off'"
    )
    db.execute("update tidebase.run_heads set available_at = clock_timestamp() where run_id = 'due again'")
    db.execute("select tidebase.complete_run('completed', %s)", [tokens["completed"]])
    db.execute("select tidebase.cancel_run('cancelled')")
    db.execute("select tidebase.release_run('released', %s)", [tokens["released"]])
    create_run(db, "session in review", **session)
    for run_id in ("in review", "session in review", "waits for ever", "waits in time", "overdue"):
        token = acquire(db, run_id) if run_id.startswith("session") else new_run(db, run_id)
        if run_id.endswith("in review"):
            db.execute("select tidebase.begin_step(%s, %s, 's', side_effects => '{x}')", [run_id, token])
            expire(db, run_id)
            db.execute("select tidebase.begin_step(%s, %s, 's', side_effects => '{x}')", [run_id, acquire(db, run_id)])
        else:
            timeout = {} if run_id == "waits for ever" else {"timeout": "1 hour"}
            open_gate(db, run_id, token, "g", **timeout)
            db.execute("select tidebase.suspend_run(%s, %s, 'g')", [run_id, token])
    db.execute("update tidebase.gates set timeout_at = clock_timestamp() where run_id = 'overdue'")
    assert {stalled.run_id: stalled.reason for stalled in tide.runs.stalled()} == {
        "lapsed": "lease_lapsed",
        "forgotten": "not_taken_up",
        "released": "not_taken_up",
        "due again": "not_taken_up",
        "in review": "review",
        "session in review": "review",
        "overdue": "overdue",
    }
    assert [stalled.since for stalled in tide.runs.stalled()] == sorted(
        stalled.since for stalled in tide.runs.stalled()
    )
    assert next(stalled for stalled in tide.runs.stalled() if stalled.run_id == "due again").error == "no"


@pytest.mark.parametrize("max", [0, -1, 10_001])
def test_how_many_are_taken_is_within_bounds(db: Db, max: Any) -> None:
    assert refusal(lambda: db.execute("select tidebase.reconcile(%s)", [max])) == "TB002"


def test_a_reader_may_not_reconcile_and_a_worker_may(db: Db) -> None:
    may = dict(
        db.execute(
            "select role, has_function_privilege('tidebase_' || role, 'tidebase.reconcile(integer)', 'execute')"
            " from unnest(array['worker', 'operator', 'approver', 'reader']) as role"
        ).fetchall()
    )
    assert may == {"worker": True, "operator": True, "approver": False, "reader": False}
    assert events(db, "none") == []
