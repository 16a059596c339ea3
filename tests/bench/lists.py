"""What people look at: lists, counts and inboxes among a million runs and a hundred thousand gates, and one run that is
long; and what a large input costs.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx

from tidebase.server import create_app

from .harness import Bench, Row, scenario, spread

#: A million runs of ten workflows, two thirds of them children; few are alive, one in a hundred has failed.
FILL = (
    """
    insert into tidebase.runs (run_id, workflow, created_at, finished_at, parent_run_id)
    select 'listed' || i, 'workflow ' || mod(i, 10), t, t, case when mod(i, 3) > 0 then 'listed' || i - mod(i, 3) end
    from generate_series(1, %(runs)s) i, lateral (select now() - (%(runs)s - i) * interval '1 second' as t) made
    """,
    """
    insert into tidebase.run_heads (run_id, last_seq, lease_token, attempt, status, lease_expires_at, waiting_for,
      created_at, updated_at, workflow_key)
    select r.run_id, 1, 1, 1, status, case when status = 'running' then now() + interval '1 day' end,
      case when status = 'waiting' then 'g' end, r.created_at, r.created_at, hashtextextended(r.workflow, 0)
    from tidebase.runs r, lateral (select substring(r.run_id from 7)::integer as i) n,
      lateral (select case when mod(i, 1000) = 0 then 'running' when mod(i, 1000) = 1 then 'waiting'
        when mod(i, 1000) = 2 then 'review' when mod(i, 100) = 3 then 'failed' when mod(i, 100) = 4 then 'cancelled'
        else 'completed' end as status) s
    where starts_with(r.run_id, 'listed')
    """,
    """
    insert into tidebase.gates (run_id, name, status, data, shown_hash, options, created_at)
    select 'listed' || i, 'g', case when mod(i, 2) = 0 then 'pending' else 'cancelled' end, '{}', '', '{approved}',
      now()
    from generate_series(1, %(gates)s) i
    """,
    "vacuum analyze tidebase.runs, tidebase.run_heads, tidebase.gates",
)


@scenario
def lists(bench: Bench) -> Iterator[Row]:
    """Pages of a hundred by every filter, counts and inboxes, among a million runs and a hundred thousand gates."""
    sizes = {"runs": bench.size(1_000_000, 3000), "gates": bench.size(100_000, 300)}
    for query in FILL:
        bench.connection.execute(query, sizes if "%(" in query else None)  # type: ignore[arg-type]
    tide = bench.tide
    middle = tide.runs.get(f"listed{sizes['runs'] // 2}")
    pages: dict[str, Callable[[], Any]] = {
        "the newest": tide.runs.list,
        "from the middle on": lambda: tide.runs.list(before=middle),
        "roots": lambda: tide.runs.list(roots=True),
        "of a workflow": lambda: tide.runs.list(workflow="workflow 7", before=middle),
        "of a time": lambda: tide.runs.list(created_before=middle.created_at),
        **{
            status: lambda status=status: tide.runs.list(status=status)  # type: ignore[misc]
            for status in ("completed", "failed", "running", "waiting", "review", "cancelled", "pending")
        },
        "failed ones of a workflow": lambda: tide.runs.list(workflow="workflow 3", status="failed"),
        "completed ones of a workflow": lambda: tide.runs.list(
            workflow="workflow 3", status="completed", before=middle
        ),
        "running ones of a workflow that has none": lambda: tide.runs.list(workflow="workflow 7", status="running"),
        "gates that wait": tide.gates.list,
        "all gates": lambda: tide.gates.list(status=None),
        "gates that are over": lambda: tide.gates.list(status="cancelled"),
    }
    for name, page in pages.items():
        yield milliseconds(bench, f"a page, {name}", page, 25)
    yield milliseconds(bench, "counts by status", tide.runs.count, 50)
    yield milliseconds(bench, "stalled runs", tide.runs.stalled, None)
    yield milliseconds(bench, "reconcile, nothing due", tide.reconcile, 25)


def milliseconds(bench: Bench, name: str, call: Callable[[], Any], bar: float | None) -> Row:
    """How long the call takes."""
    call()
    times = []
    for _ in range(bench.rounds * 3):
        begun = time.perf_counter()
        call()
        times.append((time.perf_counter() - begun) * 1000)
    return spread("lists", name, times, "ms", bar, at_least=False)


#: The steps of one run, a kilobyte each, and its log.
LONG = (
    """insert into tidebase.steps (run_id, name, lease_token, attempt, tries, status, input_hash, output, completed_seq,
      started_at, completed_at)
    select 'long', 'step ' || i, 1, 1, 1, 'completed', '', jsonb_build_object('text', repeat('x', 1000)), i + 2,
      now() + i * interval '1 ms', now() + i * interval '1 ms' from generate_series(1, %(steps)s) i""",
    """insert into tidebase.events (run_id, seq, type, payload)
    select 'long', i + 2, 'step.completed', jsonb_build_object('name', 'step ' || i)
    from generate_series(1, %(steps)s) i""",
    """update tidebase.run_heads set last_seq = %(steps)s + 2, durable_seq = %(steps)s + 2, steps_completed = %(steps)s
    where run_id = 'long'""",
)


@scenario
def a_long_run(bench: Bench) -> Iterator[Row]:
    """`GET /runs/ID` of a run of 300,000 steps: its size, its time, and how long the event loop stands still."""
    bench.connection.execute("select tidebase.create_run('w', run_id => 'long'), tidebase.acquire_run('long', 'bench')")
    for query in LONG:
        bench.connection.execute(query, {"steps": bench.size(300_000, 3000)})
    bench.connection.execute("vacuum analyze tidebase.steps, tidebase.events")
    sizes, times, blocks = zip(*asyncio.run(_look(bench.tide.url, bench.rounds)), strict=True)
    yield spread("a long run", "GET /runs/ID, megabytes", sizes, "MB", 64, at_least=False)
    yield spread("a long run", "GET /runs/ID", times, "ms", None, at_least=False)
    yield spread("a long run", "GET /runs/ID, the loop stands still", blocks, "ms", 200, at_least=False)


async def _look(url: str, rounds: int) -> list[tuple[float, float, float]]:
    """Megabytes, milliseconds, and the milliseconds of the longest turn of the loop."""
    app, found = create_app(url, insecure=True), []
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://localhost") as client,
    ):
        for _ in range(rounds + 1):
            turns = asyncio.create_task(_longest_turn())
            begun = time.perf_counter()
            answer = await client.get("/runs/long", timeout=600)
            taken = (time.perf_counter() - begun) * 1000
            turns.cancel()
            assert answer.status_code == 200
            found.append((len(answer.content) / 1e6, taken, await turns))
    return found[1:]


async def _longest_turn() -> float:
    longest, before = 0.0, time.perf_counter()
    try:
        while True:
            await asyncio.sleep(0)
            now = time.perf_counter()
            longest, before = max(longest, (now - before) * 1000), now
    except asyncio.CancelledError:
        return longest


@scenario
def a_large_input(bench: Bench) -> Iterator[Row]:
    """The hash of an input of many numbers that end in a zero: the time a number against that among a hundredth."""
    few, many = bench.size(16_000, 160), bench.size(1_600_000, 1600)
    make = "select jsonb_agg(i + 0.50) from generate_series(1, %s) i"
    hash = "select tidebase_private.hash_input(value) from hashed where n = %s"
    bench.connection.execute("create temp table hashed (n integer, value jsonb)")
    for n in (few, many):
        bench.connection.execute(f"insert into hashed select %s, ({make})", [n, n])  # type: ignore[arg-type]
    ratios = []
    for _ in range(bench.rounds):
        times = {}
        for n in (few, many):
            begun = time.perf_counter()
            bench.connection.execute(hash, [n])
            times[n] = (time.perf_counter() - begun) / n
        ratios.append(times[many] / times[few])
    variant = f"hash of {many:,} numbers, time a number against {few:,}"
    yield spread("a large input", variant, ratios, "x", 3, at_least=False)
