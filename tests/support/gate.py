"""What the probes of gates, reviews, cancellation, reconciliation and recovery share."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

import psycopg
from psycopg import sql

from ..probes.support import poll
from .patience import PATIENCE_S

T = TypeVar("T")
Db = psycopg.Connection[Any]


def row(db: Db, query: str, *parameters: Any) -> Any:
    """The first row of a query."""
    return db.execute(query, parameters or None).fetchone()


def value(db: Db, query: str, *parameters: Any) -> Any:
    """The first value of the first row of a query, None without one."""
    found = row(db, query, *parameters)
    return None if found is None else found[0]


def values(db: Db, query: str, *parameters: Any) -> list[Any]:
    """The first value of every row."""
    return [found[0] for found in db.execute(query, parameters or None)]


def until(db: Db, condition: str, *parameters: Any) -> None:
    """Waits until a condition holds in the database."""
    reached(lambda: bool(value(db, f"select {condition}", *parameters)), condition)


def reached(condition: Callable[[], bool], what: str = "the condition") -> None:
    """Waits until a condition holds."""
    poll(what, condition)


def waiters(db: Db) -> int:
    """How many sessions of this database wait for a lock."""
    return int(
        value(
            db,
            "select count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'",
        )
    )


def refusal(call: Callable[[], Any]) -> str | None:
    """The SQLSTATE with which a call is refused; None when it is not."""
    try:
        call()
    except psycopg.Error as error:
        return error.sqlstate
    return None


def new_run(db: Db, run_id: str, **options: Any) -> int:
    """Makes a run, leases it for an hour, and returns the token."""
    create_run(db, run_id, **options)
    return acquire(db, run_id)


def create_run(db: Db, run_id: str, **options: Any) -> None:
    given = "".join(f", {name} => %s" for name in options)
    db.execute(f"select tidebase.create_run('w', run_id => %s{given})", [run_id, *options.values()])


def acquire(db: Db, run_id: str, holder: str = "worker") -> int:
    """Leases a run for an hour and returns the token."""
    outcome, token = row(db, "select outcome, token from tidebase.acquire_run(%s, %s, '1 hour')", run_id, holder)
    assert outcome == "granted", outcome
    return int(token)


def expire(db: Db, run_id: str) -> None:
    """Makes the lease of a run run out now, in the sight of reconcile, too."""
    db.execute(
        "update tidebase.run_heads set lease_expires_at = clock_timestamp(), due_at = clock_timestamp()"
        " where run_id = %s and status = 'running'",
        [run_id],
    )


def status(db: Db, run_id: str) -> str:
    return str(value(db, "select status from tidebase.run_heads where run_id = %s", run_id))


def events(db: Db, run_id: str) -> list[str]:
    """The types of a run's events, in order."""
    return values(db, "select type from tidebase.events where run_id = %s order by seq", run_id)


def open_gate(db: Db, run_id: str, token: int, name: str = "g", **options: Any) -> Any:
    """Opens a gate; the row of the answer: status, decision, secret, created."""
    given = "".join(f", {option} => %s" for option in options)
    return row(
        db,
        f"select status, decision, secret, created from tidebase.open_gate(%s, %s, %s{given})",
        run_id,
        token,
        name,
        *options.values(),
    )


def decide(db: Db, run_id: str, name: str, decision: str, **options: Any) -> Any:
    """Decides a gate; the row of the answer: accepted, status, decision, actor, approvals."""
    given = "".join(f", {option} => %s" for option in options)
    return row(
        db,
        f"select accepted, status, decision, actor, approvals from tidebase.decide_gate(%s, %s, %s{given})",
        run_id,
        name,
        decision,
        *options.values(),
    )


def broken_logs(db: Db) -> list[str]:
    """What is wrong with the logs: gaps, a head that does not match, a final event that is not the last or the only."""
    return values(
        db,
        """
        select format('%s: %s of %s events, head at %s, %s final at %s', h.run_id, count(e.seq), max(e.seq), h.last_seq,
          count(*) filter (where e.type in ('run.completed', 'run.cancelled')),
          max(e.seq) filter (where e.type in ('run.completed', 'run.cancelled')))
        from tidebase.run_heads h left join tidebase.events e on e.run_id = h.run_id
        group by h.run_id
        having count(e.seq) <> h.last_seq or max(e.seq) <> h.last_seq
          or count(*) filter (where e.type in ('run.completed', 'run.cancelled'))
            <> (h.status in ('completed', 'cancelled'))::integer
          or max(e.seq) filter (where e.type in ('run.completed', 'run.cancelled')) <> h.last_seq
        """,
    )


def together(url: str, workers: Sequence[Callable[[Db], T]]) -> list[T]:
    """Runs each worker in a thread with a connection of its own; all start at the same moment."""
    barrier = threading.Barrier(len(workers))

    def work(worker: Callable[[Db], T]) -> T:
        with psycopg.connect(url, autocommit=True) as connection:
            barrier.wait(PATIENCE_S)
            return worker(connection)

    with ThreadPoolExecutor(len(workers)) as pool:
        return list(pool.map(work, workers))


def mutate(db: Db, function: str, old: str, new: str) -> None:
    """Takes a mechanism out of a function: what a probe must notice."""
    source = value(db, "select pg_get_functiondef(%s::regprocedure)", function)
    assert old in source, f"{function} has no {old!r}"
    db.execute(source.replace(old, new))


@contextmanager
def user(db: Db, url: str, *roles: str) -> Iterator[str]:
    """The URL of the database for a user who is a member of these roles only."""
    name = "user_" + "_".join(roles) + "_" + url.partition("?")[0].rpartition("/")[2]
    identifier = sql.Identifier(name)
    db.execute(sql.SQL("create role {} login").format(identifier))
    try:
        for role in roles:
            db.execute(sql.SQL("grant {} to {}").format(sql.Identifier(f"tidebase_{role}"), identifier))
        yield url.replace("postgres@", f"{name}@")
    finally:
        db.execute(sql.SQL("drop role {}").format(identifier))
