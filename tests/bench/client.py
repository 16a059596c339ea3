"""What the client costs beside its steps: replays, empty runs, subscribers' delay, import, memory."""

from __future__ import annotations

import queue
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg

from tidebase import Run
from tidebase.domain import calls

from .harness import PAYLOAD_TEXT, Bench, Row, insert, new_run, rate, scenario, spread, take_turns
from .steps import fill_steps

IDLE = "import psycopg; psycopg.connect({url!r}); print(open('/proc/self/status').read().split('VmRSS:')[1].split()[0])"
REPLAYING = """
from tidebase import Tidebase
kept = []
def work(run, _):
    kept.extend(run.step(f"filled {{n}}", lambda: 1 / 0) for n in range({count}))
    print(open('/proc/self/status').read().split('VmRSS:')[1].split()[0])
Tidebase({url!r}).run("bench", work, run_id={run_id!r})
"""


def replayable(bench: Bench, count: int, payload: str = PAYLOAD_TEXT) -> str:
    """A run with so many completed steps, which nobody holds."""
    run_id, token = new_run(bench)
    fill_steps(bench, run_id, count, payload)
    bench.value("select tidebase.release_run(%s, %s)", run_id, token)
    return run_id


@scenario
def replay(bench: Bench) -> Iterator[Row]:
    """Completed steps of a run that is resumed: loading them all in one round trip, and handing out each."""
    for count, bar in ((1000, 10.0), (10_000, 120.0)):
        count = count if not bench.quick else count // 100
        run_id = replayable(bench, count)
        names = [f"filled {number}" for number in range(count)]
        seconds: list[float] = []
        calls: list[int] = []
        for _ in range(bench.rounds):
            made: list[float] = []
            execute = bench.tide._database.execute

            def counted(call, execute=execute, made=made):  # type: ignore[no-untyped-def]
                begun = time.perf_counter()
                try:
                    return execute(call)
                finally:
                    if "load_checkpoints" in call.query:
                        made.append(time.perf_counter() - begun)

            def work(run: Run, _: object, names: list[str] = names) -> float:
                begun = time.perf_counter()
                for name in names:
                    run.step(name, not_again)
                return time.perf_counter() - begun

            bench.tide._database.execute = counted  # type: ignore[method-assign]
            try:
                with bench.tide.runs.attach("bench", run_id=run_id) as session:
                    seconds.append(work(session, None) + sum(made))
            finally:
                del bench.tide._database.execute
            calls.append(len(made))
        note = f"{max(calls)} round trip; {statistics.median(seconds) / count * 1e6:.1f} µs a step"
        yield spread("replay", f"{count:,} completed steps", [s * 1000 for s in seconds], "ms", bar, False, note)


def not_again() -> None:
    raise AssertionError("a completed step was executed again")


@scenario
def empty_run(bench: Bench) -> Iterator[Row]:
    """Leasing and completing a run that exists and does nothing, beside an insert: how many inserts it takes."""
    bench.floor()
    count = bench.size(100, 5)
    execute = bench.tide._database.execute

    def runs() -> float:
        ids = [bench.value("select tidebase.create_run('bench')") for _ in range(count)]
        begun = time.perf_counter()
        for run_id in ids:
            lease = execute(calls.acquire_run(run_id=run_id, holder="bench"))
            execute(calls.complete_run(run_id=run_id, token=lease.token))
        return count / (time.perf_counter() - begun)

    turns = take_turns(bench, lambda: rate(count, lambda: insert(bench.connection, count)), {"run": runs})
    row = turns.row("empty run", "run", None, "runs")
    times = [1 / ratio for ratio in turns.ratios["run"]]
    yield spread("empty run", "acquire and complete", times, "x floor's time", 4, False, row.note)


@scenario
def delay(bench: Bench) -> Iterator[Row]:
    """From a commit to a subscriber's read, one event at a time, beside a bare notification."""
    ticks = bench.size(300, 10)
    delays: list[float] = []
    with bench.tide.runs.attach("bench", run_id="delay") as session, ThreadPoolExecutor(1) as pool:
        seen: queue.SimpleQueue[float] = queue.SimpleQueue()

        def follow() -> None:
            for _ in bench.tide.runs.subscribe("delay", 2):
                seen.put(time.perf_counter())

        following = pool.submit(follow)
        session.emit("bench.first")
        seen.get()
        for _ in range(ticks):
            session.emit("bench.tick")
            committed = time.perf_counter()
            delays.append((seen.get() - committed) * 1000)
        session.complete()
        following.result()
    floors = []
    with psycopg.connect(bench.cluster.url, autocommit=True) as listener:
        listener.execute("listen bench_floor")
        for _ in range(ticks):
            bench.connection.execute("notify bench_floor")
            committed = time.perf_counter()
            next(listener.notifies(stop_after=1))
            floors.append((time.perf_counter() - committed) * 1000)
    note = f"a bare notification: {statistics.median(floors):.2f} ms"
    yield spread("delay", "from a commit to a subscriber", delays, "ms", note=note)


def python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


@scenario
def importing(bench: Bench) -> Iterator[Row]:
    """Seconds that ``import tidebase`` takes in a new interpreter."""
    code = "import time; begun = time.perf_counter(); import {}; print(time.perf_counter() - begun)"
    times = {name: [float(python(code.format(name))) for _ in range(bench.rounds)] for name in ("tidebase", "psycopg")}
    note = f"of them psycopg {statistics.median(times['psycopg']):.2f} s"
    yield spread("importing", "import tidebase", times["tidebase"], "s", 0.25, False, note)


@scenario
def memory(bench: Bench) -> Iterator[Row]:
    """What a worker takes that keeps the results of replayed steps of 1 KB, above an interpreter with psycopg."""
    if not Path("/proc/self/status").exists():
        print("  skipped: only Linux says what a process takes just now")
        return
    count = bench.size(10_000, 100)
    run_id = replayable(bench, count, '{"text": "' + "y" * 1000 + '"}')
    code = REPLAYING.format(url=bench.cluster.url, run_id=run_id, count=count)
    idle, replaying = int(python(IDLE.format(url=bench.cluster.url))), int(python(code))
    note = f"{replaying / 1024:.0f} MB, idle {idle / 1024:.0f} MB"
    above = [(replaying - idle) / 1024]
    yield spread("memory", f"{count:,} replayed steps of 1 KB", above, "MB", 60, False, note)
