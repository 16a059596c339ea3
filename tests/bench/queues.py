"""What a queue costs: enqueueing, claiming, waking, many that wait, an old snapshot, workers without work."""

from __future__ import annotations

import json
import random
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import psycopg

from .harness import PAYLOAD, Bench, Row, insert, rate, scenario, spread, take_turns
from .rivals import Side, rivals, tidebase
from .workers import POLL_S

#: What one run consists of in the tables, when it waits: what the bar of enqueue_runs can be reached with at best.
ROWS = (
    """insert into tidebase.runs (run_id, workflow, input, max_attempts, created_at, queue, priority)
    select run_id, workflow, payload, 5, made, 'bare', 0 from given""",
    """insert into tidebase.run_heads (run_id, last_seq, durable_seq, status, in_queue, created_at, workflow_key)
    select run_id, 2, 2, 'queued', true, made, 0 from given""",
    """insert into tidebase.events (run_id, seq, type, payload)
    select run_id, n, 'bare', '{"queue": "bare"}'::jsonb from given cross join generate_series(1, 2) n""",
    """insert into tidebase.queue_entries (run_id, ready_at, turn, place, priority, pinned, queue, workflow)
    select run_id, made, made, 0, 0, false, 'bare', workflow from given""",
)


@scenario
def enqueue_many(bench: Bench) -> Iterator[Row]:
    """`enqueue_runs` of 10,000 runs in one call, beside one insert of as many rows out of the same document."""
    connection, count = bench.connection, bench.size(10_000, 100)
    connection.execute(
        "create table if not exists bare (run_id text primary key, workflow text not null, payload jsonb)"
    )
    run = {"workflow": "bench", "queue": "many", "input": PAYLOAD}
    same, keys = json.dumps([run] * count), json.dumps([{**run, "key": f"key {n}"} for n in range(count)])
    ids = iter(range(1, 1_000_000))

    def bare() -> float:
        return rate(
            count,
            lambda: connection.execute(
                """insert into bare select tidebase_private.nth_run_id(%s,
                    (extract(epoch from now()) * 1000000)::bigint + e.place), e.run ->> 'workflow', e.run -> 'input'
                from jsonb_array_elements(%s::jsonb) with ordinality e (run, place)""",
                [next(ids), same],
            ),
        )

    def enqueue(document: str) -> Callable[[], float]:
        call = "select count(*) from tidebase.enqueue_runs(%s::jsonb)"
        return lambda: rate(count, lambda: connection.execute(call, [document]))

    def rows() -> float:
        connection.execute("drop table if exists given")
        connection.execute(
            """create temp table given as select tidebase_private.nth_run_id(%s::bigint,
                (extract(epoch from now()) * 1000000)::bigint + place) as run_id, 'bare' as workflow,
                %s::jsonb as payload, now() + place * interval '1 microsecond' as made
            from generate_series(1, %s) place""",
            [next(ids), json.dumps(PAYLOAD), count],
        )

        def work() -> None:
            with connection.transaction():
                for query in ROWS:
                    connection.execute(query)  # type: ignore[arg-type]

        return rate(count, work)

    variants = {
        f"{count:,} runs in one call": enqueue(same),
        f"{count:,} runs of as many keys": enqueue(keys),
        "their rows, inserted without a call": rows,
    }
    turns = take_turns(bench, bare, variants)
    for variant, bar in zip(variants, (0.4, None, None), strict=True):
        yield turns.row("enqueue many", variant, bar, "runs")
    connection.execute("delete from tidebase.queue_entries where queue = 'bare'")


@scenario
def queue_calls(bench: Bench) -> Iterator[Row]:
    """One `enqueue_run`, `claim_runs` of one and of 100, `complete_run`, `acquire_run`, each beside one insert."""
    bench.floor()
    connection, count = bench.connection, bench.size(200, 10)
    enqueue = """select tidebase.enqueue_run('bench', '{"n": 1}', queue => 'calls')"""
    claim = "select run_id, token from tidebase.claim_runs('{calls}', 'bench', %s)"
    held: list[tuple[str, int]] = []

    def fill() -> None:
        connection.execute(
            """select count(*) from tidebase.enqueue_runs((
                select jsonb_agg('{"workflow": "bench", "queue": "calls"}'::jsonb) from generate_series(1, %s)))""",
            [count],
        )

    def one_by_one() -> float:
        return rate(count, lambda: [connection.execute(enqueue) for _ in range(count)])

    def claims(size: int) -> Callable[[], float]:
        def work() -> float:
            fill()
            begun = time.perf_counter()
            got = [connection.execute(claim, [size]).fetchall() for _ in range(count // size)]
            taken = time.perf_counter() - begun
            held.extend(each for some in got for each in some)
            return sum(map(len, got)) / taken

        return work

    def completes() -> float:
        claims(1)()
        mine = held[-count:]
        del held[-count:]
        complete = "select tidebase.complete_run(%s, %s)"
        return rate(count, lambda: [connection.execute(complete, each) for each in mine])

    def acquires() -> float:
        made = "select tidebase.create_run('bench') from generate_series(1, %s)"
        ids = [run_id for (run_id,) in connection.execute(made, [count])]
        acquire = "select token from tidebase.acquire_run(%s, 'bench')"
        return rate(count, lambda: [connection.execute(acquire, [run_id]) for run_id in ids])

    variants = {
        "enqueue_run": one_by_one,
        "claim_runs, one": claims(1),
        f"claim_runs, {min(100, count)}": claims(min(100, count)),
        "complete_run": completes,
        "acquire_run": acquires,
    }
    turns = take_turns(bench, lambda: rate(count, lambda: insert(connection, count)), variants)
    for variant in variants:
        yield turns.row("queue calls", variant, None, "runs")
    connection.execute("delete from tidebase.queue_entries where queue = 'calls'")


@scenario
def queue(bench: Bench) -> Iterator[Row]:
    """Empty runs enqueued, claimed and completed by two processes, beside peers: how many times as many a second."""
    count = bench.size(1000, 40)
    own = [tidebase(bench, who) for who in ("sql", "tasks", "threads")]
    rates: dict[str, list[float]] = {}
    with rivals(bench) as peers:
        for _ in range(bench.size(3, 1)):
            for side in (*own, *peers):
                try:
                    measured = side.rate(count if side.name != "DBOS" else count // 4)
                except TimeoutError as error:
                    print(f"  skipped: {error}")
                    continue
                rates.setdefault(side.name, []).append(measured)
        for side in own:
            yield spread("queue", f"{side.name}, two processes", rates[side.name], "runs/s", note=side.less)
        for side in peers:
            bar = 1.0 if side.name in ("graphile-worker", "pg-boss") else 2.0
            for mine in own[:2]:
                ratios = [a / b for a, b in zip(rates[mine.name], rates.get(side.name, ()))]  # noqa: B905
                if ratios:
                    theirs = f"{statistics.median(rates[side.name]):,.0f} jobs/s; {side.less}" if mine is own[0] else ""
                    yield spread("queue", f"{mine.name}, against {side.name}", ratios, "x peer", bar, note=theirs)


@scenario
def waking(bench: Bench) -> Iterator[Row]:
    """From the commit of `enqueue_run` to the first line of the workflow: a worker that sleeps, one run at a time."""
    bench.floor()
    for who, count, bars, unit in (
        ("threads", bench.size(500, 10), (5.0, 25.0), "the doorbell"),
        ("poller", bench.size(30, 2), (None, POLL_S * 1000), f"poll-only, every {POLL_S} s"),
    ):
        delays: list[float] = []
        floors: list[float] = []
        with Side("", tidebase(bench, who).command, len, int).at_work(1):
            _one(bench, 60)
            for _ in range(count):
                # It sleeps by now; where in its sleep, chance says.
                time.sleep(0.03 if who == "threads" else 0.05 + random.random() * POLL_S)
                floors.append(1000 / rate(1, lambda: insert(bench.connection, 1)))
                delays.append(_one(bench, 60))
        delays.sort()
        middle = statistics.median(delays)
        last = delays[min(len(delays) - 1, int(len(delays) * 0.99))]
        note = f"{middle / statistics.median(floors):.1f} x an insert at that time ({statistics.median(floors):.1f} ms)"
        yield spread("waking", f"{unit}, p50 of {count}", [middle], "ms", bars[0], at_least=False, note=note)
        note = f"longest {delays[-1]:.1f} ms; an insert's p99 {sorted(floors)[int(count * 0.99)]:.1f} ms"
        yield spread("waking", f"{unit}, p99", [last], "ms", bars[1], at_least=False, note=note)


def _one(bench: Bench, seconds: float) -> float:
    """Milliseconds until a run that was enqueued is begun."""
    run_id = bench.value("select run_id from tidebase.enqueue_run('bench', queue => 'bench')")
    committed, give_up = time.time(), time.monotonic() + seconds
    while (result := bench.value("select result from tidebase.runs where run_id = %s", run_id)) is None:
        assert time.monotonic() < give_up, "nobody works"
        time.sleep(0.002)
    return (float(result) - committed) * 1000


@scenario
def many_wait(bench: Bench) -> Iterator[Row]:
    """A claim of a queue with limits and 10,000 keys in which very many wait, in turns with one in which 1,000 do."""
    connection, count = bench.connection, bench.size(500, 20)
    few, many = bench.size(1000, 50), bench.size(1_000_000 if bench.long else 100_000, 500)
    for name, size in (("few", few), ("many", many)):
        connection.execute(
            """select tidebase.put_queue(%s, concurrency => 100000, key_concurrency => 4, rate => 1000000,
                rate_period => '1 second', key_rate => 100)""",
            [name],
        )
        for first in range(0, size, 10_000):
            connection.execute(
                """select count(*) from tidebase.enqueue_runs((
                    select jsonb_agg(jsonb_build_object('workflow', 'bench', 'queue', %s::text,
                      'key', 'key ' || n %% 10000))
                    from generate_series(%s::integer, %s) n))""",
                [name, first + 1, min(first + 10_000, size)],
            )
    connection.execute("vacuum analyze")
    times: dict[str, list[float]] = {"few": [], "many": []}
    for number in range(count + 10):
        for name, measured in times.items():
            begun = time.perf_counter()
            got = connection.execute(f"select run_id, token from tidebase.claim_runs('{{{name}}}', 'bench')").fetchone()
            if number >= 10:
                measured.append((time.perf_counter() - begun) * 1000)
            assert got is not None
            connection.execute("select tidebase.complete_run(%s, %s)", got)
            key = f"key {number * 7 % 10000}"
            connection.execute("select tidebase.enqueue_run('bench', queue => %s, key => %s)", [name, key])
    last = {name: sorted(measured)[int(count * 0.99)] for name, measured in times.items()}
    middle = {name: statistics.median(measured) for name, measured in times.items()}
    note = f"{last['many']:.1f} ms against {last['few']:.1f} ms"
    yield spread(
        "many wait", f"a claim among {many:,}, p99", [last["many"] / last["few"]], f"x {few:,}", 2, False, note
    )
    note = f"{middle['many']:.2f} ms against {middle['few']:.2f} ms"
    yield spread(
        "many wait", f"a claim among {many:,}, p50", [middle["many"] / middle["few"]], f"x {few:,}", None, False, note
    )
    connection.execute("delete from tidebase.queue_entries where queue in ('few', 'many')")
    connection.execute("vacuum tidebase.queue_entries")


@scenario
def an_old_snapshot(bench: Bench) -> Iterator[Row]:
    """Runs a second of two processes before, while, and after another session keeps a snapshot, as a backup does."""
    before, during, after = (
        (60.0, 300.0, 60.0) if bench.long else (bench.size(10, 1), bench.size(20, 1), bench.size(10, 1))
    )
    side, stop = tidebase(bench, "sql"), threading.Event()
    completed = side.completed

    def feed() -> None:
        with psycopg.connect(bench.cluster.url, autocommit=True) as connection:
            fed = tidebase(Bench(bench.cluster, bench.tide, connection), "sql")
            waiting = "select count(*) from (select from tidebase.queue_entries where queue = 'bench' limit 2000) few"
            while not stop.is_set():
                if _value(connection, waiting) < 2000:
                    fed.enqueue(1000)
                else:
                    time.sleep(0.02)

    def measured(seconds: float) -> float:
        first, begun = completed(), time.perf_counter()
        time.sleep(seconds)
        return (completed() - first) / (time.perf_counter() - begun)

    feeding = threading.Thread(target=feed, daemon=True)
    with side.at_work():
        feeding.start()
        side.until(completed() + 2000, 60)
        rates = [measured(before)]
        with psycopg.connect(bench.cluster.url) as old:
            old.execute("set transaction isolation level repeatable read")
            old.execute("select count(*) from tidebase.runs")
            rates.append(measured(during))
        rates.append(measured(after))
        stop.set()
        feeding.join()
        side.until(
            completed() + _value(bench.connection, "select count(*) from tidebase.queue_entries where queue = 'bench'"),
            120,
        )
    note = f"{rates[1]:,.0f} runs/s for {during:.0f} s, {rates[0]:,.0f}/s before"
    yield spread("an old snapshot", "while it is held", [rates[1] / rates[0]], "x before", 0.8, note=note)
    note = f"{rates[2]:,.0f} runs/s"
    yield spread("an old snapshot", "after it", [rates[2] / rates[0]], "x before", 0.8, note=note)


def _value(connection: psycopg.Connection[Any], query: str) -> int:
    row = connection.execute(query).fetchone()  # type: ignore[arg-type]
    assert row is not None
    return int(row[0])


@scenario
def idle_workers(bench: Bench) -> Iterator[Row]:
    """Fifty workers, each with the same hundred queues, that have nothing to do: statements a second in all."""
    seconds = bench.size(30, 2)
    transactions = "select xact_commit + xact_rollback from pg_stat_database where datname = current_database()"
    with Side("", tidebase(bench, "idlers").command, len, int).at_work(1):
        give_up = time.monotonic() + 120
        while (
            bench.value("select count(*) from tidebase.workers where queues[1] = 'idle 0' and listening_until > now()")
            < 50
        ):
            assert time.monotonic() < give_up, "they do not come to rest"
            time.sleep(0.1)
        time.sleep(2)
        first, begun = bench.value(transactions), time.perf_counter()
        time.sleep(seconds)
        done = (bench.value(transactions) - first) / (time.perf_counter() - begun)
    yield spread("idle workers", "fifty on a hundred queues", [done], "statements/s", 20, at_least=False)
