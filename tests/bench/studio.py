"""Studio in a browser: how soon a long list is there, and what a page keeps while much happens."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
from playwright.async_api import CDPSession, expect

from ..support.studio_browser import CHROMIUM, Visit, Weight, chromium, visit, weigh
from .harness import Bench, Row, new_run, scenario, spread
from .lists import FILL

#: When the first row of the list stood in the page, by the clock that begins with its navigation.
FIRST_ROW = """
new MutationObserver((_, observer) => {
  if (!document.querySelector(".space .row")) return;
  observer.disconnect();
  requestAnimationFrame(() => setTimeout(() => { window.firstRow = performance.now(); }));
}).observe(document, { childList: true, subtree: true });
"""


@contextmanager
def gateway(bench: Bench) -> Iterator[str]:
    """Its address; a process of its own, as it is in life."""
    command = [sys.executable, "-m", "tidebase", "serve", "--insecure", "--port", "0", "--database", bench.cluster.url]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if "http://" in line:
                yield "http://" + line.partition("http://")[2].split()[0].rstrip("/.,")
                break
        else:
            raise AssertionError("the gateway did not start")
    finally:
        process.terminate()
        process.wait()


@scenario
def a_page_of_runs(bench: Bench) -> Iterator[Row]:
    """The first view of 100,000 runs in a browser: from the address to the rows, by who never was there, and again."""
    if CHROMIUM is None:
        print("  no Chromium: a page of runs is not measured")
        return
    number = int(bench.value("select count(*) from tidebase.runs r where starts_with(r.run_id, 'listed')"))
    if not number:  # else the lists were measured before
        number = bench.size(100_000, 300)
        for query in FILL:
            sizes = {"runs": number, "gates": number // 10}
            bench.connection.execute(query, sizes if "%(" in query else None)  # type: ignore[arg-type]
    with gateway(bench) as base:
        first, again = asyncio.run(_views(base, bench.rounds))
    what = f"{number:,} runs"
    yield spread("a page of runs", f"first view of {what}", first, "ms", 1000, at_least=False)
    yield spread("a page of runs", f"{what}, with the files at hand", again, "ms", None, at_least=False)


async def _views(base: str, rounds: int) -> tuple[list[float], list[float]]:
    first, again = [], []
    async with chromium() as browser:
        for _ in range(rounds + 1):
            seen = await visit(browser, base, FIRST_ROW)
            await seen.go("runs")
            first.append(await _first_row(seen))
            await seen.page.reload()
            await seen.ready()
            again.append(await _first_row(seen))
            await seen.page.context.close()
    return first[1:], again[1:]


async def _first_row(seen: Visit) -> float:
    await expect(seen.page.locator(".space .row").first).to_be_visible()
    while not (found := await seen.page.evaluate("window.firstRow ?? 0")):
        await asyncio.sleep(0.01)
    return float(found)


#: What happens in a fiftieth of a second: three events and a step.
HAPPENS = (
    """
    select tidebase.append_event(%(run_id)s, 1, 'agent.said', jsonb_build_object('text', repeat('word ', 20), 'n', n))
    from generate_series(1, 3) n""",
    "select tidebase.record_step(%(run_id)s, 1, %(name)s, '1', to_jsonb(repeat('word ', 20)))",
)


@scenario
def a_live_page(bench: Bench) -> Iterator[Row]:
    """A minute of 200 events a second with a run's pages open: their heap and their documents at the end, beside the
    middle: by then a page has all that it keeps.
    """
    if CHROMIUM is None:
        print("  no Chromium: a live page is not measured")
        return
    seconds = bench.size(60, 2)
    with gateway(bench) as base:
        weights, behind = asyncio.run(_live(bench, base, seconds))
        for name, (middle, end, share) in weights.items():
            note = f"{end.heap / 1e6:.1f} MB, {middle.heap / 1e6:.1f} MB in the middle"
            heap, nodes = end.heap / middle.heap, end.nodes / middle.nodes
            yield Row("a live page", f"{name}: heap", heap, heap, heap, "x", 1.1, False, note)
            note = f"{end.nodes:,}, {middle.nodes:,} in the middle"
            yield Row("a live page", f"{name}: nodes", nodes, nodes, nodes, "x", 1.1, False, note)
            yield Row("a live page", f"{name}: at work", share, share, share, "processors")
    yield Row("a live page", "the last event is shown", behind, behind, behind, "ms")


async def _live(bench: Bench, base: str, seconds: int) -> tuple[dict[str, tuple[Weight, Weight, float]], float]:
    run_id, _ = new_run(bench)
    async with chromium() as browser:
        pages = {"the log": f"runs/{run_id}?tab=log", "the timeline": f"runs/{run_id}", "the list": "runs"}
        seen = {}
        for name, where in pages.items():
            seen[name] = await visit(browser, base)
            await seen[name].go(where)
            await expect(seen[name].page.locator(".live")).to_have_text("live")
        await _happens(bench, run_id, seconds // 2, 0)
        middle = {name: await _least(one) for name, one in seen.items()}
        sessions = {name: await one.page.context.new_cdp_session(one.page) for name, one in seen.items()}
        for session in sessions.values():
            await session.send("Performance.enable", {"timeDomain": "threadTicks"})
        before = {name: await _busy(session) for name, session in sessions.items()}
        begun = time.perf_counter()
        await _happens(bench, run_id, seconds - seconds // 2, seconds // 2)
        last = time.perf_counter()
        shares = {name: (await _busy(session) - before[name]) / (last - begun) for name, session in sessions.items()}
        seq = bench.value("select last_seq from tidebase.run_heads where run_id = %s", run_id)
        await expect(seen["the log"].page.locator(".event .seq").last).to_have_text(str(seq))
        behind = (time.perf_counter() - last) * 1000
        return {name: (middle[name], await _least(one), shares[name]) for name, one in seen.items()}, behind


async def _least(seen: Visit) -> Weight:
    """What it keeps, without what is under way just then."""
    return min([await weigh(seen.page) for _ in range(5)])


async def _busy(session: CDPSession) -> float:
    """The processor time of the page since the session began, in seconds."""
    metrics = await session.send("Performance.getMetrics")
    return float(next(metric["value"] for metric in metrics["metrics"] if metric["name"] == "TaskDuration"))


async def _happens(bench: Bench, run_id: str, seconds: int, since: int) -> None:
    """Two hundred events a second."""

    def happen() -> None:
        with psycopg.connect(bench.cluster.url, autocommit=True) as connection:
            begun = time.perf_counter()
            for n in range(50 * seconds):
                with connection.transaction():
                    for statement in HAPPENS:
                        connection.execute(statement, {"run_id": run_id, "name": f"step {since}-{n}"})
                time.sleep(max(begun + (n + 1) / 50 - time.perf_counter(), 0))

    await asyncio.to_thread(happen)
