"""Cancellation: one-way, against everything that may happen at the same moment; deadlines; attempts that are left."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta, timezone
from typing import Any

import psycopg
import pytest
from psycopg.types.json import Jsonb

from tidebase import RunFinal, Tidebase
from tidebase.core.errors import RunCancelled, RunCancelledError, RunSuspendedError

from .probes.support import queue
from .support.amounts import CANCELLATIONS
from .support.gate import (
    Db,
    acquire,
    broken_logs,
    create_run,
    decide,
    events,
    mutate,
    new_run,
    open_gate,
    refusal,
    row,
    status,
    together,
    until,
    user,
    value,
    values,
)
from .support.patience import PATIENCE_S

ON_NEWEST = True

CANCEL_ONE = "tidebase_private.cancel_one(tidebase.run_heads,text,text)"
RIVALS: dict[str, str] = {
    "complete": "select tidebase.complete_run(%s, 1, '1')",
    "fail": "select tidebase.fail_run(%s, 1, '1')",
    "begin": "select tidebase.begin_step(%s, 1, 's')",
    "gate": "select tidebase.open_gate(%s, 1, 'new')",
    "decide": "select tidebase.decide_gate(%s, 'g', 'approved')",
    "take over": "select tidebase.acquire_run(%s, 'another', '1 hour')",
    "suspend": "select tidebase.suspend_run(%s, 1, 'g')",
    "child": "select tidebase.create_child(%s, 1, 'c', 'w')",
}
WORKER_CALLS: dict[str, str] = {
    "renew": "select tidebase.renew_lease(%s, 1)",
    "release": "select tidebase.release_run(%s, 1)",
    "begin": RIVALS["begin"],
    "complete a step": "select tidebase.complete_step(%s, 1, 'done', '2')",
    "fail a step": "select tidebase.fail_step(%s, 1, 'open')",
    "emit": "select tidebase.append_event(%s, 1, 'mine')",
    "open a gate": "select tidebase.open_gate(%s, 1, 'other')",
    "start a timer": "select tidebase.start_timer(%s, 1, 't', '1 hour')",
    "suspend": RIVALS["suspend"],
    "make a child": RIVALS["child"],
    "complete": "select tidebase.complete_run(%s, 1, '2')",
    "fail": "select tidebase.fail_run(%s, 1, '2')",
    "acquire": "select tidebase.acquire_run(%s, 'another', '1 hour')",
}


def a_run(db: Db, run_id: str, lapsed: bool = False) -> None:
    """A leased run with a completed step, an open one and a gate."""
    assert new_run(db, run_id) == 1
    for step in ("done", "open"):
        db.execute("select tidebase.begin_step(%s, 1, %s)", [run_id, step])
    db.execute("select tidebase.complete_step(%s, 1, 'done', '1')", [run_id])
    open_gate(db, run_id, 1)
    if lapsed:
        db.execute("update tidebase.run_heads set lease_expires_at = clock_timestamp() where run_id = %s", [run_id])


def race(db: Db, url: str, rounds: int) -> list[str]:
    """Cancels runs at the very moment at which something else happens to them; returns what is wrong afterwards."""
    rivals = [list(RIVALS)[number % len(RIVALS)] for number in range(rounds)]
    for number, rival in enumerate(rivals):
        a_run(db, f"r{number}", lapsed=rival == "take over")
    start = threading.Barrier(2)

    def cancel(connection: Db) -> list[str | None]:
        return [meet(connection, f"r{number}", "select tidebase.cancel_run(%s)") for number in range(rounds)]

    def oppose(connection: Db) -> list[str | None]:
        return [meet(connection, f"r{number}", RIVALS[rival]) for number, rival in enumerate(rivals)]

    def meet(connection: Db, run_id: str, query: str) -> str | None:
        start.wait(PATIENCE_S)
        return refusal(lambda: connection.execute(query, [run_id]))

    cancelled, opposed = together(url, [cancel, oppose])
    wrong = broken_logs(db)
    for number, rival in enumerate(rivals):
        run_id = f"r{number}"
        end = status(db, run_id)
        if cancelled[number] is None:
            right = end == "cancelled" and opposed[number] in (None, "TB004")
        else:
            right = rival == "complete" and (end, cancelled[number], opposed[number]) == ("completed", "TB005", None)
        if not right:
            wrong.append(f"{run_id} against {rival}: {cancelled[number]}, {opposed[number]}, it is {end}")
    children = "select run_id from tidebase.run_heads where run_id ~ '^run_' and status <> 'cancelled'"
    return wrong + [f"{child} was left" for child in values(db, children)]


def test_a_cancellation_and_whatever_else_happens_make_one_end_of_it(db: Db, database: str) -> None:
    assert race(db, database, CANCELLATIONS.test) == []
    ended = dict(db.execute("select status, count(*) from tidebase.run_heads group by 1").fetchall())
    assert ended["cancelled"] > 0.8 * CANCELLATIONS.test
    kept = "select h.*, r.* from tidebase.run_heads h join tidebase.runs r using (run_id) where run_id = %s"
    raced = "select run_id from tidebase.run_heads where run_id ~ '^r[0-9]' order by random() limit 30"
    for run_id in values(db, raced):
        before = row(db, kept, run_id)
        for name, query in WORKER_CALLS.items():
            told = refusal(lambda r=run_id, q=query: db.execute(q, [r]))
            if status(db, run_id) == "cancelled":
                assert told == "TB004", name
            else:  # completed: whoever wants to acquire it is told its result
                assert told == (None if name == "acquire" else "TB005"), name
        assert row(db, kept, run_id) == before
    assert broken_logs(db) == []


def test_a_second_end_is_seen_failing_without_the_look_at_the_status(db: Db, database: str) -> None:
    """cancel_run itself looks first, so the reconciler and the cascade are what depends on cancel_one."""
    parent_and_child(db, "parent", "child")
    mutate(db, CANCEL_ONE, "if head.status in ('cancelled', 'completed') then", "if false then")
    db.execute("select tidebase.complete_run('child', 1)")
    db.execute("select tidebase.cancel_run('parent')")
    assert broken_logs(db) != [] and status(db, "child") == "cancelled"


@pytest.mark.breaks_invariants
def test_a_second_end_is_seen_failing_without_the_lock(db: Db, database: str) -> None:
    """Between the look and the deed it waits, until the rival has come to its end."""
    mutate(
        db,
        "tidebase.cancel_run(text,text,text,boolean)",
        "head := tidebase_private.lock_head(run_id);",
        "select h.* into head from run_heads h where h.run_id = cancel_run.run_id; perform pg_advisory_xact_lock(7);",
    )
    a_run(db, "r")
    with psycopg.connect(database, autocommit=True) as holder, queue(database) as line:
        holder.execute("select pg_advisory_lock(7)")
        cancelled = line.add(lambda connection: refusal(lambda: connection.execute("select tidebase.cancel_run('r')")))
        line.settle(db)
        db.execute(RIVALS["complete"], ["r"])
        holder.execute("select pg_advisory_unlock(7)")
        assert cancelled.result(PATIENCE_S) is None
    assert broken_logs(db) != []


def parent_and_child(db: Db, parent: str, child: str) -> None:
    """Two leased runs, one below the other."""
    new_run(db, parent)
    edge(db, parent, child)
    acquire(db, child)


def edge(db: Db, parent: str, child: str, edge_type: str = "child") -> None:
    create_run(db, child)
    db.execute(
        "insert into tidebase.edges (run_id, name, child_run_id, edge_type) values (%s, %s, %s, %s)",
        [parent, child, child, edge_type],
    )
    if edge_type != "fork":
        db.execute(
            "select tidebase_private.emit(tidebase_private.advance(%s), 'run.child.created', %s)",
            [parent, Jsonb({"name": child, "child_run_id": child})],
        )


def tree(db: Db, root: str, width: int = 3) -> list[str]:
    """A tree of three levels; its runs, the root first."""
    create_run(db, root)
    runs = [root]
    for first in range(width):
        edge(db, root, f"{root}.{first}")
        runs.append(f"{root}.{first}")
        for second in range(width):
            edge(db, f"{root}.{first}", f"{root}.{first}.{second}")
            runs.append(f"{root}.{first}.{second}")
    return runs


def test_a_cancellation_reaches_the_whole_tree_but_no_fork(tide: Tidebase, db: Db) -> None:
    runs = tree(db, "root")
    edge(db, "root.1", "fork", "fork")
    edge(db, "fork", "fork.child")
    token = acquire(db, "root.2")
    done = acquire(db, "root.0")
    db.execute("select tidebase.complete_run('root.0', %s)", [done])
    info = tide.runs.cancel("root", "not wanted", actor="ann")
    assert (info.status, info.cancel_reason, info.cancel_actor) == ("cancelled", "not wanted", "ann")
    assert {run_id: status(db, run_id) for run_id in runs} == {
        run_id: "completed" if run_id == "root.0" else "cancelled" for run_id in runs
    }
    assert (status(db, "fork"), status(db, "fork.child")) == ("pending", "pending")
    assert refusal(lambda: db.execute("select tidebase.renew_lease('root.2', %s)", [token])) == "TB004"
    assert value(db, "select tidebase.cancel_run('root')") == 0
    assert value(db, "select count(*) from tidebase.events where type = 'run.cancelled'") == len(runs) - 1
    with pytest.raises(RunFinal):
        tide.runs.cancel("root.0")
    assert broken_logs(db) == []


def test_without_cascade_the_children_stay(tide: Tidebase, db: Db) -> None:
    tree(db, "root", width=1)
    tide.runs.cancel("root", cascade=False)
    assert [status(db, run_id) for run_id in ("root", "root.0", "root.0.0")] == ["cancelled", "pending", "pending"]
    assert value(db, "select tidebase.cancel_run('root')") == 2  # said again, and meant for all of them


def test_trees_that_are_cancelled_and_completed_crosswise_never_deadlock(db: Db, database: str) -> None:
    trees = [tree(db, f"t{number}", width=3) for number in range(12)]
    everything = [run_id for runs in zip(*trees, strict=True) for run_id in runs]
    tokens = {run_id: acquire(db, run_id) for run_id in everything}

    def client(connection: Db, number: int) -> list[str | None]:
        mine = everything[number * 7 % len(everything) :] + everything[: number * 7 % len(everything)]
        if number % 2:
            mine.reverse()
        told = []
        for turn, run_id in enumerate(mine[:60]):
            query, *parameters = [
                ("select tidebase.cancel_run(%s)", run_id),
                ("select tidebase.complete_run(%s, %s)", run_id, tokens[run_id]),
                ("select tidebase.create_child(%s, %s, 'another', 'w')", run_id, tokens[run_id]),
                ("select tidebase.append_event(%s, %s, 'tick')", run_id, tokens[run_id]),
            ][(turn + number) % 4]
            told.append(refusal(lambda q=query, p=parameters: connection.execute(q, p)))
        return told

    told = together(database, [lambda c, n=number: client(c, n) for number in range(16)])
    assert {state for each in told for state in each} <= {None, "TB004", "TB005"}
    assert broken_logs(db) == []
    left = """
        select e.child_run_id from tidebase.edges e
        join tidebase.run_heads p on p.run_id = e.run_id
        join tidebase.run_heads c on c.run_id = e.child_run_id
        where p.status = 'cancelled' and c.status not in ('cancelled', 'completed')
    """
    assert values(db, left) == []


def test_a_workflow_is_stopped_at_its_next_call_whatever_it_catches(tide: Tidebase, db: Db) -> None:
    seen: list[str] = []

    def workflow(run: Any, input: Any) -> None:
        tide.runs.cancel("r", "enough")
        try:
            run.step("s", lambda: seen.append("executed"), mark_start=True)
        except Exception:
            seen.append("swallowed")
        except RunCancelled:
            seen.append("seen")
            raise

    with pytest.raises(RunCancelledError):
        tide.run("w", workflow, run_id="r")
    assert seen == ["seen"] and status(db, "r") == "cancelled"
    with pytest.raises(RunCancelledError):
        tide.run("w", workflow, run_id="r")
    assert events(db, "r")[-1] == "run.cancelled"


def test_only_operators_cancel(db: Db, database: str) -> None:
    new_run(db, "r")
    for role in ("worker", "approver", "reader", "operator"):
        with user(db, database, role) as url, psycopg.connect(url, autocommit=True) as connection:
            told = refusal(lambda c=connection: c.execute("select tidebase.cancel_run('r', 'why')"))
            assert told == (None if role == "operator" else "42501")
            who = connection.info.user
    assert value(db, "select payload->>'actor' from tidebase.events where type = 'run.cancelled'") == who


def test_nothing_is_decided_or_reviewed_any_more_in_a_cancelled_run(tide: Tidebase, db: Db) -> None:
    new_run(db, "r")
    secret = open_gate(db, "r", 1, timeout="1 hour")[2]
    db.execute("select tidebase.begin_step('r', 1, 's', side_effects => '{x}')")
    db.execute("select tidebase.fail_step('r', 1, 's')")
    assert [review.step for review in tide.runs.reviews()] == ["s"]
    db.execute("select tidebase.cancel_run('r')")
    db.execute("update tidebase.gates set timeout_at = clock_timestamp()")
    assert refusal(lambda: decide(db, "r", "g", "approved", secret=secret)) == "TB004"
    assert refusal(lambda: db.execute("select tidebase.resolve_review('r', 's', 'retry')")) == "TB004"
    assert value(db, "select status from tidebase.get_gate('r', 'g')") == "cancelled"
    assert list(tide.gates.list()) == [] and broken_logs(db) == []


def test_what_nobody_can_review_any_more_is_out_of_the_inbox(tide: Tidebase, db: Db) -> None:
    new_run(db, "r")
    db.execute("select tidebase.begin_step('r', 1, 's', side_effects => '{x}')")
    db.execute("select tidebase.fail_step('r', 1, 's')")
    db.execute("select tidebase.cancel_run('r')")
    assert list(tide.runs.reviews()) == []


@pytest.fixture
def past_deadline(db: Db) -> str:
    new_run(db, "r", deadline=datetime.now(timezone.utc) + timedelta(hours=1))
    db.execute("update tidebase.run_heads set deadline_at = clock_timestamp(), due_at = clock_timestamp()")
    return "r"


def test_nothing_new_is_begun_after_the_deadline_with_or_without_reconcile(db: Db, past_deadline: str) -> None:
    for name in ("begin", "open a gate", "start a timer", "make a child"):
        assert refusal(lambda q=WORKER_CALLS[name]: db.execute(q, ["r"])) == "TB004", name
    db.execute("select tidebase.release_run('r', 1)")
    assert refusal(lambda: db.execute("select tidebase.acquire_run('r', 'another')")) == "TB004"
    assert status(db, "r") == "pending"
    assert value(db, "select deadlines from tidebase.reconcile()") == 1
    assert status(db, "r") == "cancelled" and value(db, "select deadlines from tidebase.reconcile()") == 0
    assert events(db, "r")[-1] == "run.cancelled" and broken_logs(db) == []


def test_what_was_begun_before_the_deadline_may_be_completed_until_it_is_cancelled(db: Db) -> None:
    new_run(db, "r")
    db.execute("select tidebase.begin_step('r', 1, 's')")
    db.execute("update tidebase.run_heads set deadline_at = clock_timestamp(), due_at = clock_timestamp()")
    db.execute("select tidebase.complete_step('r', 1, 's', '1')")
    db.execute("select tidebase.reconcile()")
    assert refusal(lambda: db.execute("select tidebase.renew_lease('r', 1)")) == "TB004"


def test_a_child_has_the_deadline_of_its_parent(db: Db) -> None:
    new_run(db, "r", deadline=datetime.now(timezone.utc) + timedelta(hours=1))
    child = value(db, "select run_id from tidebase.create_child('r', 1, 'c', 'w')")
    again = row(db, "select run_id, created from tidebase.create_child('r', 1, 'c', 'w')")
    assert again == (child, False)
    assert refusal(lambda: db.execute("select tidebase.create_child('r', 1, 'c', 'other')")) == "TB006"
    assert value(db, "select count(distinct deadline_at) from tidebase.run_heads") == 1
    db.execute("update tidebase.run_heads set deadline_at = clock_timestamp(), due_at = clock_timestamp()")
    assert value(db, "select deadlines from tidebase.reconcile()") == 2


def test_a_failed_attempt_is_followed_by_another_after_the_backoff(tide: Tidebase, db: Db) -> None:
    create_run(db, "r", max_attempts=3, retry_delay="1 hour")
    for attempt in (1, 2):
        token = acquire(db, "r")
        told = row(db, "select status, retry_at - clock_timestamp() from tidebase.fail_run('r', %s, '1')", token)
        longest = timedelta(hours=1)  # doubled, but capped at an hour; half of it at least is kept
        assert told[0] == "pending" and longest / 2 - timedelta(minutes=1) < told[1] <= longest
        assert row(db, "select status from tidebase.fail_run('r', %s, '1')", token)[0] == "pending"
        outcome, until_then = row(db, "select outcome, expires_at from tidebase.acquire_run('r', 'early')")
        assert (outcome, until_then) == ("waiting", value(db, "select available_at from tidebase.run_heads"))
        with pytest.raises(RunSuspendedError):
            tide.run("w", lambda run, input: None, run_id="r")
        assert value(db, "select attempt from tidebase.run_heads") == attempt
        db.execute("update tidebase.run_heads set available_at = clock_timestamp()")
    token = acquire(db, "r")
    assert row(db, "select status, retry_at from tidebase.fail_run('r', %s, '1')", token) == ("failed", None)
    assert acquire(db, "r") == 4  # resumed by hand
    assert broken_logs(db) == []


def test_an_error_that_is_not_worth_it_is_final_at_once(db: Db) -> None:
    create_run(db, "r", max_attempts=3)
    told = value(db, "select status from tidebase.fail_run('r', %s, '1', retryable => false)", acquire(db, "r"))
    assert told == "failed"


def test_the_attempts_of_a_run_are_made_in_one_call(tide: Tidebase, db: Db) -> None:
    tries: list[int] = []

    def flaky(run: Any, input: Any) -> str:
        run.step("once", lambda: tries.append(0))
        tries.append(run.attempt)
        if run.attempt < 3:
            raise ValueError("not yet")
        return "done"

    assert tide.run("w", flaky, run_id="r", max_attempts=3, retry_delay_s=0.01) == "done"
    assert tries == [0, 1, 2, 3]
    assert tide.runs.get("r").max_attempts == 3
    with pytest.raises(ZeroDivisionError):
        tide.run("w", lambda run, input: 1 / 0, run_id="s", max_attempts=2, retry_delay_s=0)
    assert (tide.runs.get("s").status, tide.runs.get("s").attempt) == ("failed", 2)
    assert broken_logs(db) == []


def test_a_suspension_uses_no_attempt_up(tide: Tidebase, db: Db) -> None:
    create_run(db, "r", max_attempts=2)
    token = acquire(db, "r")
    open_gate(db, "r", token)
    db.execute("select tidebase.suspend_run('r', %s, 'g')", [token])
    decide(db, "r", "g", "approved")
    told = value(db, "select status from tidebase.fail_run('r', %s, '1')", acquire(db, "r"))
    assert told == "pending"  # the first failure of two


def test_a_cancellation_ends_the_wait_for_the_next_attempt(tide: Tidebase, database: str, db: Db) -> None:
    def fails(run: Any, input: Any) -> None:
        raise ValueError("no")

    call: Callable[[], Any] = lambda: tide.run("w", fails, run_id="r", max_attempts=2, retry_delay_s=3600)  # noqa: E731
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(call)
        until(db, "exists (select from tidebase.run_heads where available_at is not null)")
        db.execute("select tidebase.cancel_run('r')")
        with pytest.raises(RunCancelledError):
            future.result()
