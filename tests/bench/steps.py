"""What a step costs a worker, beside one insert of the same payload that is committed by itself."""

from __future__ import annotations

import asyncio
import itertools
import statistics
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psycopg

from tidebase import AsyncTidebase, Run, Tidebase

from .followers import followers
from .harness import PAYLOAD, PAYLOAD_TEXT, Bench, Row, insert, rate, scenario, spread, steps, take_turns
from .processes import together


def in_a_run(bench: Bench, count: int, **options: Any) -> float:
    """The rate of steps in a run of their own; making, leasing and ending it is not counted."""
    return bench.tide.run("bench", lambda run, _: rate(count, lambda: steps(run, count, **options)))


@scenario
def sequential(bench: Bench) -> Iterator[Row]:
    """Steps one after another: as they are by default, begun first, and without a mark of their start."""
    bench.floor()
    count = bench.size(200, 20)

    def behind() -> float:
        with Tidebase(bench.cluster.url, checkpoints="behind") as tide:
            return tide.run("bench", lambda run, _: rate(10 * count, lambda: [steps(run, 10 * count), run.flush()]))

    turns = take_turns(
        bench,
        lambda: rate(count, lambda: insert(bench.connection, count)),
        {
            "steps": lambda: in_a_run(bench, count),
            "written behind": behind,
            "begun before they are executed": lambda: in_a_run(bench, count, mark_start=True),
            "never marked as started": lambda: in_a_run(bench, count, mark_start=False),
        },
    )
    yield turns.row("sequential", "steps", 0.50)
    yield turns.row("sequential", "written behind", 2.0)
    yield turns.row("sequential", "begun before they are executed", None)
    yield turns.row("sequential", "never marked as started", 0.70)


@scenario
def sequential_async(bench: Bench) -> Iterator[Row]:
    """The same awaited; the floor is an insert that is awaited."""
    bench.floor()
    count = bench.size(200, 20)

    async def payload() -> Any:
        return PAYLOAD

    async def floor() -> float:
        async with await psycopg.AsyncConnection.connect(bench.cluster.url, autocommit=True) as connection:
            query = "insert into floor (id, payload) values (%s, %s::jsonb)"
            for number in range(10):
                await connection.execute(query, [number, PAYLOAD_TEXT])
            begun = time.perf_counter()
            for number in range(count):
                await connection.execute(query, [number, PAYLOAD_TEXT])
            return count / (time.perf_counter() - begun)

    async def variant(**options: Any) -> float:
        async def work(run: Any, _: Any) -> float:
            for number in range(10):
                await run.step.options(key=f"first {number}", **options)("work", payload)
            begun = time.perf_counter()
            for number in range(count):
                await run.step.options(key=number, **options)("work", payload)
            return count / (time.perf_counter() - begun)

        async with AsyncTidebase(bench.cluster.url) as tide:
            return float(await tide.run("bench", work))

    async def behind() -> float:
        async def work(run: Any, _: Any) -> float:
            for number in range(10):
                await run.step.options(key=f"first {number}")("work", payload)
            await run.flush()
            begun = time.perf_counter()
            for number in range(10 * count):
                await run.step.options(key=number)("work", payload)
            await run.flush()
            return 10 * count / (time.perf_counter() - begun)

        async with AsyncTidebase(bench.cluster.url, checkpoints="behind") as tide:
            return float(await tide.run("bench", work))

    turns = take_turns(
        bench,
        lambda: asyncio.run(floor()),
        {
            "steps": lambda: asyncio.run(variant()),
            "written behind": lambda: asyncio.run(behind()),
            "never marked as started": lambda: asyncio.run(variant(mark_start=False)),
        },
    )
    yield turns.row("sequential async", "steps", 0.50)
    yield turns.row("sequential async", "written behind", 2.0)
    yield turns.row("sequential async", "never marked as started", 0.70)


@scenario
def side_by_side(bench: Bench) -> Iterator[Row]:
    """Steps of 32 tasks, or threads, of one run, and of 32 runs of one worker, beside one client's inserts."""
    bench.floor()
    count, width = bench.size(25, 2), bench.size(32, 4)

    async def payload() -> Any:
        return PAYLOAD

    async def some(run: Any, of: object, count: int) -> None:
        for number in range(count):
            await run.step.options(key=(str(of), number, count))("work", payload)

    async def tasks() -> float:
        async def work(run: Any, _: Any) -> float:
            await asyncio.gather(*(some(run, task, 1) for task in range(width)))
            begun = time.perf_counter()
            await asyncio.gather(*(some(run, task, count + 1) for task in range(width)))
            return (count + 1) * width / (time.perf_counter() - begun)

        async with AsyncTidebase(bench.cluster.url) as tide:
            return float(await tide.run("bench", work))

    async def runs() -> float:
        async with AsyncTidebase(bench.cluster.url) as tide:
            sessions = [await tide.runs.attach("bench") for _ in range(width)]
            await asyncio.gather(*(some(session, "first", 1) for session in sessions))
            begun = time.perf_counter()
            await asyncio.gather(*(some(session, "then", count) for session in sessions))
            rate = count * width / (time.perf_counter() - begun)
            for session in sessions:
                await session.complete()
            return rate

    def threads() -> float:
        with bench.tide.runs.attach("bench") as session, ThreadPoolExecutor(width) as pool:
            list(pool.map(lambda thread: steps(session, 1, thread), range(width)))
            firsts = range(width, width + count * width, count)
            return rate(count * width, lambda: list(pool.map(lambda first: steps(session, count, first), firsts)))

    turns = take_turns(
        bench,
        lambda: rate(200, lambda: insert(bench.connection, 200)),
        {
            "32 tasks of one run": lambda: asyncio.run(tasks()),
            "32 threads of one run": threads,
            "32 runs of one worker": lambda: asyncio.run(runs()),
        },
    )
    yield turns.row("side by side", "32 tasks of one run", 3.0)
    yield turns.row("side by side", "32 threads of one run", 3.0)
    yield turns.row("side by side", "32 runs of one worker", 2.0)


@scenario
def eight_processes(bench: Bench) -> Iterator[Row]:
    """Eight processes with a run each, beside eight processes that insert."""
    bench.floor()
    count = bench.size(500, 20)
    processes = bench.size(8, 2)
    turns = take_turns(
        bench,
        lambda: together(bench.cluster.url, "insert", processes, count),
        {"steps": lambda: together(bench.cluster.url, "steps", processes, count)},
    )
    yield turns.row("eight processes", "steps", 0.60)


@scenario
def subscribers(bench: Bench) -> Iterator[Row]:
    """Steps of a run that somebody follows, and while 100 other runs are followed, beside those that nobody follows."""
    count, others = bench.size(1000, 10), bench.size(100, 3)
    for number in range(others):
        bench.tide.runs.create("bench", run_id=f"other-{number}")
    audiences = {"one on that run": ["watched"], "100 on other runs": [f"other-{n}" for n in range(others)]}
    ratios: dict[str, list[float]] = {audience: [] for audience in audiences}
    for audience, followed in audiences.items():  # each with a run of its own: one that was watched rings for a minute
        with bench.tide.runs.attach("bench", run_id="watched" if audience == "one on that run" else None) as session:
            done = itertools.count(0, count)

            def some(session: Run = session, done: Iterator[int] = done) -> float:
                return rate(count, lambda: steps(session, count, next(done)))

            some()
            for _ in range(bench.rounds):
                before = some()
                with followers(bench.cluster.url, followed):
                    time.sleep(0 if bench.quick else 3)  # who has just come looks more often
                    theirs = some()
                ratios[audience].append(theirs / ((before + some()) / 2))
            session.complete()
    for audience, theirs in ratios.items():
        bar = 0.95 if audience == "100 on other runs" else None
        note = "the subscriber and the worker share the cores" if bar is None else ""
        yield spread("subscribers", audience, theirs, "x none", bar, note=note)


@scenario
def processor_time(bench: Bench) -> Iterator[Row]:
    """Processor time a step takes in the client and in the server's process, beside the insert."""
    if not Path("/proc/self/schedstat").exists():
        print("  skipped: only Linux says how long a process was on a processor")
        return
    bench.floor()
    count = bench.size(2000, 50)
    own = {
        "the insert": (bench.connection, lambda: insert(bench.connection, count)),
        "a step": (None, lambda: in_a_run(bench, count)),
    }
    for what, (connection, work) in own.items():
        python, postgres = [], []
        for _ in range(3):
            with psycopg.connect(bench.cluster.url, autocommit=True) as watcher:
                before = time.process_time(), server_time(watcher, connection)
                work()
                python.append((time.process_time() - before[0]) / count * 1e6)
                postgres.append((server_time(watcher, connection) - before[1]) / count * 1e6)
        for side, values, bar in (("Python", python, 100.0), ("Postgres", postgres, 200.0)):
            limit = bar if what == "a step" else None
            yield spread("processor time", f"{what}, {side}", values, "µs", limit, False)


def server_time(watcher: psycopg.Connection[Any], connection: psycopg.Connection[Any] | None) -> float:
    """Seconds that the client backends but the watcher's have been on a processor (Linux, /proc/<pid>/schedstat)."""
    query = "select pid from pg_stat_activity where backend_type = 'client backend' and pid <> pg_backend_pid()"
    pids = [row[0] for row in watcher.execute(query)] if connection is None else [connection.info.backend_pid]
    return sum(int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) for pid in pids) / 1e9


def each(run: Run, numbers: range) -> float:
    """The median of the seconds that each of these steps takes."""
    return statistics.median(1 / rate(1, lambda n=number: steps(run, 1, n)) for number in numbers)  # type: ignore[misc]


@scenario
def growth(bench: Bench) -> Iterator[Row]:
    """The time of a step of a long run against that of its 10th, and among a million runs against among a few."""
    sample = bench.size(300, 10)

    for length in (bench.size(1000, 100), bench.size(100_000, 300)):
        with bench.tide.runs.attach("bench") as long, bench.tide.runs.attach("bench") as short:
            fill_steps(bench, long.run_id, length)
            steps(long, 10)
            steps(short, 10)
            starts = range(10, sample * bench.rounds, sample)
            ratios = [each(long, range(at, at + sample)) / each(short, range(at, at + sample)) for at in starts]
        yield spread("growth", f"step {length:,} of a run against step 10", ratios, "x", 1.2, False)

    number = bench.size(1_000_000, 1000)
    with bench.tide.runs.attach("bench") as session:
        bench.floor()

        def inserts(at: int) -> float:
            """How many inserts a step takes; the machine is not the same before and after."""
            plain = statistics.median(1 / rate(1, lambda: insert(bench.connection, 1)) for _ in range(sample))
            return each(session, range(at, at + sample)) / plain

        few = statistics.median(inserts(at) for at in range(0, 3 * sample, sample))
        fill_runs(bench, number)
        bench.connection.execute("checkpoint")
        ratios = [inserts(at) / few for at in range(3 * sample, (3 + bench.rounds) * sample, sample)]
    yield spread("growth", f"a step among {number:,} runs against among a few", ratios, "x", 1.2, False)


FILL = """
with head as (
  update tidebase.run_heads
  set last_seq = last_seq + %(n)s, durable_seq = last_seq + %(n)s, steps_completed = steps_completed + %(n)s
  where run_id = %(run)s
  returning *),
made as (
  insert into tidebase.steps (run_id, name, lease_token, completed_at, completed_seq, attempt, tries, status,
    input_hash, output)
  select run_id, 'filled ' || i, lease_token, clock_timestamp(), last_seq - i, 1, 1, 'completed',
    tidebase_private.hash_input(null), %(output)s::jsonb
  from head, generate_series(0, %(n)s - 1) i
  returning run_id, name, completed_seq)
insert into tidebase.events (run_id, seq, type, payload)
select run_id, completed_seq, 'step.completed', jsonb_build_object('name', name, 'attempt', 1) from made
"""


def fill_steps(bench: Bench, run_id: str, length: int, output: str = PAYLOAD_TEXT) -> None:
    """Gives a run so many completed steps, ``filled 0`` and so on, with their events, by one statement."""
    with bench.connection.transaction():
        bench.connection.execute("set local synchronous_commit = off")
        bench.connection.execute(FILL, {"n": length, "run": run_id, "output": output})
    bench.connection.execute("vacuum analyze tidebase.steps, tidebase.events, tidebase.run_heads")


def fill_runs(bench: Bench, number: int, status: str = "completed", prefix: str = "filled") -> None:
    """Makes so many runs that have had one attempt, by a few statements."""
    with bench.connection.transaction():
        bench.connection.execute("set local synchronous_commit = off")
        values = {"n": number, "prefix": prefix, "status": status}
        for query in (
            "insert into tidebase.runs (run_id, workflow)"
            " select %(prefix)s || i, 'filled' from generate_series(1, %(n)s) i",
            "insert into tidebase.run_heads (run_id, last_seq, lease_token, attempt, status, holder, lease_expires_at)"
            " select %(prefix)s || i, 2, 1, 1, %(status)s, 'bench',"
            " case when %(status)s = 'running' then now() + interval '1 day' end from generate_series(1, %(n)s) i",
            "insert into tidebase.events (run_id, seq, type, payload) select %(prefix)s || i, seq, 'run.created', '{}'"
            " from generate_series(1, %(n)s) i, generate_series(1, 2) seq",
        ):
            bench.connection.execute(query, values)
    bench.connection.execute("vacuum analyze tidebase.runs, tidebase.run_heads, tidebase.events")
