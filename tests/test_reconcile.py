"""Reconciliation: once each, by any number of callers, at a cost that does not grow with what needs nothing."""

from __future__ import annotations

import re
from typing import Any

import psycopg

from tidebase import Tidebase

from . import probe_gates


def test_ten_reconcile_at_once_and_handle_each_expiry_once(database: str) -> None:
    assert probe_gates.reconciled_once(database, callers=10, runs=400) == []


def buffers(db: psycopg.Connection[Any]) -> int:
    """How many buffers a reconcile touches that finds nothing due."""
    rows = db.execute("explain (analyze, buffers, timing off) select tidebase.reconcile()").fetchall()
    return sum(int(number) for row in rows for number in re.findall(r"(?:hit|read)=(\d+)", row[0]))


def test_runs_that_need_nothing_cost_nothing(db: psycopg.Connection[Any]) -> None:
    insert = """
      insert into tidebase.run_heads (run_id, status, holder, lease_token, lease_expires_at, due_at)
      select 'idle ' || n, 'running', 'w', 1, 'infinity', clock_timestamp() + interval '1 hour'
      from generate_series(%s::int, %s::int) n"""
    seen = []
    for first, last in ((1, 1_000), (1_001, 100_000)):
        db.execute(insert, [first, last])
        db.execute("vacuum analyze tidebase.run_heads")
        buffers(db)
        seen.append(buffers(db))
    assert seen[1] <= seen[0] + 10, seen


def test_heartbeats_stay_hot(db: psycopg.Connection[Any]) -> None:
    db.execute("select tidebase.create_run('w', run_id => 'r')")
    db.execute("select tidebase.acquire_run('r', 'w')")
    query = """select pg_stat_get_xact_tuples_updated(c), pg_stat_get_xact_tuples_hot_updated(c)
               from (select 'tidebase.run_heads'::regclass::oid) t (c)"""
    with db.transaction():
        before = db.execute(query).fetchone()
        for _ in range(50):
            db.execute("select tidebase.renew_lease('r', 1)")
        after = db.execute(query).fetchone()
    assert before is not None and after is not None
    assert (after[0] - before[0], after[1] - before[1]) == (50, 50)


def test_what_is_stalled_is_seen_with_its_reason(tide: Tidebase, db: psycopg.Connection[Any]) -> None:
    for run_id in ("dead", "alive", "failed", "new", "done"):
        tide.runs.create("w", run_id=run_id)
    db.execute("select tidebase.acquire_run(id, 'w') from unnest(array['dead', 'alive', 'failed', 'done']) id")
    db.execute("update tidebase.run_heads set lease_expires_at = clock_timestamp() where run_id = 'dead'")
    db.execute("select tidebase.fail_run('failed', 1), tidebase.complete_run('done', 1)")
    assert {run.run_id: run.reason for run in tide.runs.stalled()} == {"dead": "lease_lapsed", "failed": "failed"}
