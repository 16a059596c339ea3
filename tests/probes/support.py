"""What the probes share: calls by name, races that are forced with locks, and an audit of what is stored.

Nothing here waits by sleeping for a while and hoping. A race begins at a barrier, or behind a row lock which is let go
once ``pg_stat_activity`` shows everybody waiting for it; a poll only looks again whether that is so. The deadlines are
there so that a broken probe ends with a message; no verdict depends on them.
"""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

import psycopg
from psycopg import sql
from psycopg.rows import dict_row

from ..support.patience import PATIENCE_S, moments

T = TypeVar("T")
Connection = psycopg.Connection[Any]


def connect(url: str, **options: Any) -> Connection:
    return psycopg.connect(url, autocommit=True, **options)


@functools.cache
def _statement(function: str, names: tuple[str, ...]) -> sql.Composed:
    arguments = sql.SQL(", ").join(sql.SQL("{} => {}").format(sql.Identifier(n), sql.Placeholder(n)) for n in names)
    return sql.SQL("select * from tidebase.{}({})").format(sql.Identifier(function), arguments)


def call_rows(connection: Connection, function: str, **arguments: Any) -> list[dict[str, Any]]:
    """Every row that a function of the schema ``tidebase`` returns, called with its parameters by name."""
    with connection.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(_statement(function, tuple(arguments)), arguments).fetchall()


def call(connection: Connection, function: str, **arguments: Any) -> Any:
    """What a function returns: the value of a scalar one, the row of another (a dict), None for no row."""
    rows = call_rows(connection, function, **arguments)
    if not rows:
        return None
    return rows[0][function] if rows[0].keys() == {function} else rows[0]


def attempt(connection: Connection, function: str, **arguments: Any) -> tuple[str, Any]:
    """``("ok", what the function returned)`` or ``(SQLSTATE, the error)``; without a SQLSTATE: ``("none", error)``."""
    try:
        return "ok", call(connection, function, **arguments)
    except psycopg.Error as error:
        return error.sqlstate or "none", error


def values(connection: Connection, query: str, *parameters: Any) -> list[Any]:
    """The first column of a query."""
    return [row[0] for row in connection.execute(query, parameters).fetchall()]  # type: ignore[arg-type]


def value(connection: Connection, query: str, *parameters: Any) -> Any:
    return values(connection, query, *parameters)[0]


def new_run(connection: Connection, **arguments: Any) -> str:
    return str(call(connection, "create_run", **{"workflow": "probe", **arguments}))


def grant(connection: Connection, run_id: str, holder: str = "holder", ttl: str = "1 hour") -> int:
    """The token of a lease that must be granted."""
    lease = call(connection, "acquire_run", run_id=run_id, holder=holder, ttl=ttl)
    assert lease["outcome"] == "granted", lease
    return int(lease["token"])


def expire(connection: Connection, run_id: str) -> None:
    """Makes the run's lease lapse now, behind the back of its holder; needs a superuser."""
    connection.execute(
        "update tidebase.run_heads set lease_expires_at = clock_timestamp() - interval '1 millisecond'"
        " where run_id = %s and status = 'running'",
        (run_id,),
    )


def lapse(connection: Connection, run_id: str) -> None:
    """The same, and whoever looks for what is due finds it: a claim of its queue, or reconcile."""
    expire(connection, run_id)
    connection.execute("update tidebase.run_heads set due_at = lease_expires_at where run_id = %s", (run_id,))


def take_over(connection: Connection, run_id: str, holder: str = "successor") -> int:
    expire(connection, run_id)
    return grant(connection, run_id, holder)


def poll(what: str, condition: Callable[[], Any]) -> Any:
    """Looks until the condition is truthy, and returns it."""
    for pause in moments():
        found = condition()
        if found:
            return found
        time.sleep(pause)
    raise TimeoutError(f"did not happen: {what}")


def together(url: str, count: int, work: Callable[[Connection, int], T]) -> list[T]:
    """Does ``work(connection, number)`` in ``count`` threads with a connection each, all released by one barrier."""
    barrier = threading.Barrier(count)

    def worker(number: int) -> T:
        with connect(url) as connection:
            barrier.wait(PATIENCE_S)
            return work(connection, number)

    with ThreadPoolExecutor(count) as pool:
        return [future.result() for future in [pool.submit(worker, number) for number in range(count)]]


class Queue:
    """Threads with a connection each, of which one can say that all are waiting for a lock of somebody else's."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._pool = ThreadPoolExecutor(200)
        self._workers: list[tuple[Future[Any], Connection]] = []

    def add(self, work: Callable[[Connection], T]) -> Future[T]:
        connection = connect(self._url)
        future = self._pool.submit(work, connection)
        self._workers.append((future, connection))
        return future

    def settle(self, observer: Connection) -> None:
        """Returns once every thread has either finished or waits for a lock: no further progress by itself."""

        def stuck() -> bool:
            pids = [connection.info.backend_pid for future, connection in self._workers if not future.done()]
            waiting = values(
                observer,
                "select pid from pg_stat_activity"
                " where pid = any(%s) and state = 'active' and wait_event_type = 'Lock'",
                pids,
            )
            return set(waiting) == set(pids)

        poll("every queued call waits for the lock or has finished", stuck)

    def results(self) -> list[Any]:
        return [future.result(PATIENCE_S) for future, _ in self._workers]

    def close(self) -> None:
        for future, connection in self._workers:
            if not future.done():
                connection.cancel_safe()
        self._pool.shutdown()
        for _, connection in self._workers:
            connection.close()


@contextmanager
def queue(url: str) -> Iterator[Queue]:
    line = Queue(url)
    try:
        yield line
    finally:
        line.close()


def behind_the_lock(
    url: str,
    run_id: str,
    count: int,
    work: Callable[[Connection, int], T],
    meanwhile: Callable[[Connection], None] | None = None,
) -> list[T]:
    """Does ``work(connection, number)`` in ``count`` threads while somebody else holds the run's head, lets all of them
    queue up in the order of their numbers, does ``meanwhile`` in the transaction that holds the lock, and lets go.

    This forces what a race only hits by chance: whatever a call reads before it waits is out of date when it goes on.
    """
    with connect(url) as observer, connect(url) as blocker, queue(url) as line:
        with blocker.transaction():
            blocker.execute("select from tidebase.run_heads where run_id = %s for update", (run_id,))
            futures = []
            for number in range(count):
                futures.append(line.add(functools.partial(_numbered, work, number)))
                line.settle(observer)
            if meanwhile is not None:
                meanwhile(blocker)
        return [future.result(PATIENCE_S) for future in futures]


def _numbered(work: Callable[[Connection, int], T], number: int, connection: Connection) -> T:
    return work(connection, number)


Image = dict[str, list[tuple[Any, ...]]]


def tables(connection: Connection, column: str) -> list[str]:
    """The tables of the schema that have this column."""
    return values(
        connection,
        "select c.oid::regclass::text from pg_class c join pg_attribute a on a.attrelid = c.oid and a.attname = %s"
        " where c.relnamespace = 'tidebase'::regnamespace and c.relkind in ('r', 'p') order by 1",
        column,
    )


def image(connection: Connection) -> Image:
    """Every row of every table of the schema, with the transaction that wrote it: a write that changes no value, and
    a row written anew with the old values, show as well.
    """
    with connection.transaction():
        connection.execute("set transaction isolation level repeatable read")
        return {
            table: connection.execute(f"select t.xmin::text, t::text from {table} t").fetchall()  # type: ignore[arg-type]
            for table in tables(connection, "xmin")
        }


def image_of(connection: Connection, run_id: str) -> Image:
    """Every row of one run, as this connection's transaction sees it."""
    return {
        table: connection.execute(f"select t::text from {table} t where run_id = %s", (run_id,)).fetchall()  # type: ignore[arg-type]
        for table in tables(connection, "run_id")
    }


def differences(before: Image, after: Image) -> list[str]:
    """What changed from one image to another."""
    found = []
    for table in before.keys() | after.keys():
        old, new = set(before.get(table, [])), set(after.get(table, []))
        found += [f"{table}: gone: {row}" for row in old - new] + [f"{table}: new: {row}" for row in new - old]
    return found


_AUDIT = {
    "reconcile could not look at it": "select h.run_id, h.sqlstate, h.message from tidebase.setbacks h where {only}",
    "events are not 1..last_seq": """
        select h.run_id, h.last_seq, count(e.seq), min(e.seq), max(e.seq)
        from tidebase.run_heads h left join tidebase.events e on e.run_id = h.run_id
        where {only} group by h.run_id, h.last_seq
        having count(e.seq) <> h.last_seq or max(e.seq) is distinct from h.last_seq or min(e.seq) <> 1""",
    "tokens do not grow with the attempts": """
        select * from (
          select h.run_id, h.attempt, h.lease_token,
            lag(h.lease_token) over (partition by h.run_id order by h.attempt) as previous
          from tidebase.attempts h where {only}) as granted
        where lease_token <= previous""",
    "the head is not at its newest attempt": """
        select h.run_id, h.attempt, h.lease_token, a.attempt, a.lease_token
        from tidebase.run_heads h
        left join (select run_id, max(attempt) as attempt, max(lease_token) as lease_token
                   from tidebase.attempts group by run_id) a on a.run_id = h.run_id
        where {only}
          and (h.attempt, h.lease_token) is distinct from (coalesce(a.attempt, 0), coalesce(a.lease_token, 0))""",
    "more than one attempt has not ended": """
        select h.run_id, count(*) from tidebase.attempts h
        where {only} and h.ended_at is null group by h.run_id having count(*) > 1""",
    "started events do not say the attempts' tokens": """
        select h.run_id, h.attempt, h.lease_token, e.tokens
        from tidebase.attempts h
        left join (select run_id, (payload ->> 'attempt')::integer as attempt,
                     array_agg((payload ->> 'token')::bigint order by seq) as tokens
                   from tidebase.events where type = 'run.started' group by 1, 2) e
          on e.run_id = h.run_id and e.attempt = h.attempt
        where {only} and e.tokens is distinct from array[h.lease_token]""",
    "steps_completed is not the number of checkpoints": """
        select h.run_id, h.steps_completed, s.completed
        from tidebase.run_heads h
        left join (select run_id, count(*) as completed from tidebase.steps
                   where status = 'completed' group by run_id) s
          on s.run_id = h.run_id
        where {only} and h.steps_completed <> coalesce(s.completed, 0)""",
    "a checkpoint without exactly one step.completed event, at its seq": """
        select h.run_id, h.name, h.completed_seq, e.seqs
        from tidebase.steps h
        left join (select run_id, payload ->> 'name' as name, array_agg(seq) as seqs
                   from tidebase.events where type = 'step.completed' group by 1, 2) e
          on e.run_id = h.run_id and e.name = h.name
        where {only} and h.status = 'completed' and e.seqs is distinct from array[h.completed_seq]""",
    "a step.completed event without a checkpoint": """
        select h.run_id, h.seq, h.payload from tidebase.events h
        where {only} and h.type = 'step.completed' and not exists (
          select from tidebase.steps s
          where s.run_id = h.run_id and s.name = h.payload ->> 'name'
            and s.status = 'completed' and s.completed_seq = h.seq)""",
}


def audit(connection: Connection, *run_ids: str) -> list[str]:
    """What is wrong in what is stored for these runs (for all, when none is named)."""
    only, parameters = ("h.run_id = any(%s)", (list(run_ids),)) if run_ids else ("true", ())
    return [
        f"{rule}: {row}"
        for rule, query in _AUDIT.items()
        for row in connection.execute(query.format(only=only), parameters).fetchall()  # type: ignore[arg-type]
    ]
