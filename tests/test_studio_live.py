"""Studio lives: workers die, connections break, people are called, and what is shown is what is stored."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import Any

import pytest
from playwright.async_api import expect

from tidebase import Tidebase

from .conftest import long
from .probes.support import Connection, call, connect, grant, new_run, poll, value, values
from .probes.workers import process
from .support.patience import PATIENCE_S, moments
from .support.studio_browser import CHROMIUM, Relay, Visit, address, chromium, visit, weigh
from .support.studio_worker import work
from .test_gateway import running

ON_NEWEST = True

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")

#: Shorter than that a page need not notice; the heartbeats of a living worker are in time on a busy machine.
LEASE_S = 3.0


async def received(pipe: Any) -> bytes:
    assert await asyncio.to_thread(pipe.poll, PATIENCE_S), "the worker says nothing"
    return bytes(pipe.recv_bytes())


async def test_a_worker_is_killed_while_people_look(database: str, db: Connection, tide: Tidebase) -> None:
    """They see without asking again that it went silent, who took over, what was replayed, and the end."""
    tide.runs.create("write", run_id="r")
    with running(database) as server:
        async with chromium() as browser:
            page, log, runs = [await visit(browser, address(server)) for _ in range(3)]
            for seen, where in ((page, "runs/r"), (log, "runs/r?tab=log"), (runs, "runs")):
                await seen.go(where)
                await seen.page.evaluate("window.loaded = 'once'")
            status = page.page.locator(".run-title .status")
            row = runs.page.get_by_role("row", name="write")
            with process(work, database, "r", LEASE_S, True) as (worker, pipe):
                assert await received(pipe) == b"it searches"
                (first,) = values(db, "select holder from tidebase.run_attempts where run_id = 'r'")
                await expect(status).to_have_text("running")
                await expect(page.page.locator(".explain")).to_contain_text(f"“{first}” is at work on it")
                await expect(row).to_contain_text("running")
                os.kill(worker.pid, signal.SIGKILL)
                await expect(status).to_have_text("worker silent")
                await expect(page.page.locator(".explain")).to_contain_text(f"Its worker “{first}” has gone silent")
                await expect(page.button("Recover")).to_be_visible()
                await expect(row).to_contain_text("worker silent")
            # With a long lease: were it the same length, a slow machine might show it silent, too.
            with process(work, database, "r", 3600.0, False) as (_, pipe):
                assert await received(pipe) == b"it searches"
                assert await received(pipe) == b"it is done"
            await expect(status).to_have_text("completed")
            await expect(row).to_contain_text("completed")
            (_, second) = values(db, "select holder from tidebase.run_attempts where run_id = 'r' order by attempt")
            assert second != first
            for holder in (first, second):
                await expect(page.page.locator(".labels .attempt", has_text=holder)).to_be_visible()
            await expect(page.page.locator(".bar.attempt[data-status=lapsed]")).to_have_count(1)
            await expect(page.page.locator(".replayed")).to_have_count(1)  # plan
            await expect(page.page.locator(".mark.earlier")).to_have_count(1)  # the search that was cut off
            await expect(log.page.locator(".event .said", has_text=f"took over from {first}")).to_have_count(1)
            await in_order(log, db, "r")
            for seen in (page, log, runs):
                assert await seen.page.evaluate("window.loaded") == "once"
                await seen.well()


async def in_order(log: Visit, db: Connection, run_id: str) -> None:
    """Each number of the log is shown once, in its place."""
    last = value(db, "select last_seq from tidebase.run_heads where run_id = %s", run_id)
    await expect(log.page.locator(".event .seq").last).to_have_text(str(last))
    numbers = await log.page.locator(".event .seq").all_text_contents()
    assert numbers == [str(n) for n in range(1, last + 1)]


async def say(db: Connection, run_id: str, token: int, many: int) -> None:
    """So many events, by the one who holds the run."""
    for n in range(many):
        await asyncio.to_thread(
            call, db, "append_event", run_id=run_id, token=token, type="agent.said", payload=f'{{"n": {n}}}'
        )


@pytest.mark.parametrize("breaks", ["cut", "deny", "swallow"])
async def test_what_happens_while_the_connection_is_broken_is_shown_once_it_is_back(
    database: str, db: Connection, breaks: str
) -> None:
    """Nobody is there; a proxy says that nobody is behind it; or what was open goes on without a word."""
    call(db, "create_run", workflow="w", run_id="r")
    token = grant(db, "r")
    with running(database) as server:
        async with chromium() as browser, Relay(address(server)) as relay:
            log, runs = [await visit(browser, relay.base) for _ in range(2)]
            for seen, where in ((log, "runs/r?tab=log"), (runs, "runs")):
                await seen.page.clock.install()
                await seen.go(where)
                await expect(seen.page.locator(".live")).to_have_text("live")
            await say(db, "r", token, 40)
            await in_order(log, db, "r")
            await getattr(relay, breaks)()
            if breaks != "swallow":
                for seen in (log, runs):
                    await expect(seen.page.locator(".live")).to_have_text("reconnecting")
                    await expect(seen.page.locator(".offline")).to_be_visible()
            await say(db, "r", token, 200)
            call(db, "create_run", workflow="w", run_id="meanwhile")
            await relay.mend()
            if breaks == "swallow":
                for seen in (log, runs):  # as long as a page waits for a word
                    await seen.page.clock.fast_forward(60_000)
            await say(db, "r", token, 40)
            call(db, "complete_run", run_id="r", token=token, result="7")
            await in_order(log, db, "r")
            await expect(log.page.locator(".run-title .status")).to_have_text("completed")
            await expect(runs.page.get_by_role("row", name="r", exact=False)).to_have_count(3)
            await expect(runs.page.get_by_role("row", name="meanwhile")).to_contain_text("pending")
            await expect(runs.page.locator(".space .row", has_text="completed")).to_have_count(1)
            for seen in (log, runs):
                await expect(seen.page.locator(".offline")).to_be_hidden()
                seen.complaints.clear()  # the browser writes down that connections broke
                await seen.well()


#: A page that may be behind others, and a browser whose notices can be read.
NOTES = """
let hidden = false;
Object.defineProperty(document, "hidden", { get: () => hidden });
window.hide = (away) => { hidden = away; document.dispatchEvent(new Event("visibilitychange")); };
window.notes = [];
window.Notification = class extends Notification {
  constructor(title, options) { super(title, options); window.notes.push(this); }
};
"""


async def notes(seen: Visit) -> list[list[str]]:
    return list(await seen.page.evaluate("window.notes.map((note) => [note.title, note.body])"))


def ask(db: Connection, run_id: str, name: str, prompt: str) -> None:
    call(db, "open_gate", run_id=run_id, token=grant(db, new_run(db, run_id=run_id)), name=name, prompt=prompt)


async def test_people_are_called_by_the_title_and_where_they_allowed_it_by_a_notice(
    database: str, db: Connection
) -> None:
    ask(db, "first", "g", "Is it old?")
    with running(database) as server:
        async with chromium() as browser:
            asked = await visit(browser, address(server), NOTES, permissions=["notifications"])
            refused = await visit(browser, address(server), NOTES)
            without = await visit(browser, address(server), "delete window.Notification;")
            for seen in (asked, refused, without):
                await seen.go("inbox")
                await expect(seen.page).to_have_title("(1) Inbox · Tidebase Studio")
            await expect(without.button("Notify me")).to_have_count(0)
            await asked.button("Notify me").click()
            await expect(asked.button("Notifying")).to_have_attribute("aria-pressed", "true")
            if await refused.button("Notify me").count():
                await refused.button("Notify me").click()
            await expect(refused.button("Notifying")).to_have_count(0)

            # Who looks at the page sees it there.
            ask(db, "second", "g", "Is it seen?")
            for seen in (asked, refused, without):
                await expect(seen.page).to_have_title("(2) Inbox · Tidebase Studio")
            assert await notes(asked) == []
            # Who looks at another one is called: once, and by the title everywhere.
            for seen in (asked, refused):
                await seen.go("health")
                await seen.page.evaluate("window.hide(true)")
            ask(db, "third", "g", "Shall it <b>go</b> out?")
            for seen in (asked, refused):
                await expect(seen.page).to_have_title("(3) Health · Tidebase Studio")
            assert await notes(asked) == [["Somebody is asked", "Shall it <b>go</b> out?"]]
            assert await notes(refused) == []
            for n in range(2):
                ask(db, f"more-{n}", "g", "And this?")
            await expect(asked.page).to_have_title("(5) Health · Tidebase Studio")
            assert sum(1 if title == "Somebody is asked" else 2 for title, _ in await notes(asked)) == 3
            await asked.page.evaluate("window.notes.at(-1).onclick()")
            await expect(asked.page.get_by_role("heading", name="Inbox")).to_be_visible()

            # What was decided counts no more; it is remembered who wants to be called.
            for run_id in ("first", "second", "third", "more-0", "more-1"):
                call(db, "decide_gate", run_id=run_id, name="g", decision="approved", actor="ada")
            await expect(asked.page).to_have_title("Inbox · Tidebase Studio")
            await expect(refused.page).to_have_title("Health · Tidebase Studio")
            await asked.page.reload()
            await expect(asked.button("Notifying")).to_have_attribute("aria-pressed", "true")
            await asked.button("Notifying").click()
            await asked.page.evaluate("window.hide(true)")
            ask(db, "last", "g", "And now?")
            await expect(asked.page).to_have_title("(1) Inbox · Tidebase Studio")
            assert await notes(asked) == []
            for seen in (asked, refused, without):
                await seen.well()


async def test_a_view_is_saved_used_and_forgotten(database: str, db: Connection) -> None:
    for n in range(6):
        call(db, "create_run", workflow=f"w{n % 2}", run_id=f"r{n}")
    call(db, "cancel_run", run_id="r0", reason="enough")
    with running(database) as server:
        async with chromium() as browser:
            seen = await visit(browser, address(server))
            views, rows = seen.page.get_by_label("Saved views"), seen.page.locator(".space .row")

            async def save(name: str) -> None:
                await views.select_option(label="Save this view …")
                await seen.page.get_by_label("Name").fill(name)
                await seen.submit("Save")

            await seen.go("runs?workflow=w0&status=cancelled")
            await expect(rows).to_have_count(1)
            await save("What I gave up & <why>")
            await seen.go("runs?workflow=w1")
            await expect(rows).to_have_count(3)
            await save("Others")
            await seen.page.reload()
            await expect(rows).to_have_count(3)
            told = ["Views", "What I gave up & <why>", "✓ Others", "Save this view …", "Forget this view"]
            assert await views.locator("option").all_text_contents() == told

            await views.select_option(label="What I gave up & <why>")
            await expect(rows).to_have_count(1)
            await expect(seen.page).to_have_url(f"{seen.base}/studio/#/runs?workflow=w0&status=cancelled")
            # The same name again is the same view, as it is now.
            await seen.page.get_by_role("navigation", name="Status").get_by_role("link", name="all").click()
            await expect(rows).to_have_count(3)
            await save("What I gave up & <why>")
            await seen.go("runs")
            await views.select_option(label="What I gave up & <why>")
            await expect(rows).to_have_count(3)
            await expect(seen.page).to_have_url(f"{seen.base}/studio/#/runs?workflow=w0")

            await views.select_option(label="Forget this view")
            await expect(views.locator("option")).to_have_text(["Views", "Others", "Save this view …"])
            await expect(rows).to_have_count(3)  # where one is, one stays
            await seen.page.reload()
            await expect(views.locator("option")).to_have_text(["Views", "Others", "Save this view …"])
            other = await visit(browser, address(server))
            await other.go("runs")
            await expect(other.page.get_by_label("Saved views").locator("option")).to_have_text(
                ["Views", "Save this view …"]
            )
            for one in (seen, other):
                await one.well()


async def test_two_people_resolve_one_step_at_once(database: str, db: Connection) -> None:
    """Both have answered before either is heard: one answer stands, and the other one is told so."""
    token = grant(db, new_run(db, run_id="r"))
    begin = {"run_id": "r", "token": token, "name": "charge", "side_effects": ["card.charge"]}
    call(db, "begin_step", **begin)
    call(db, "fail_step", run_id="r", token=token, name="charge", error='{"message": "no answer"}')
    call(db, "fail_run", run_id="r", token=token, error='{"message": "no answer"}')
    with running(database, "approver@ada:ada-secret", "operator@bob:bob-secret") as server:
        async with chromium() as browser:
            ada, bob = [await visit(browser, address(server)) for _ in range(2)]
            for seen, secret, option in ((ada, "ada-secret", "Retry"), (bob, "bob-secret", "Accept")):
                await seen.sign_in("runs/r", secret)
                seen.complaints.clear()  # the browser writes down that nobody was signed in
                await seen.page.get_by_label(option).check()
            with connect(database) as blocker, blocker.transaction():
                blocker.execute("select from tidebase.run_heads where run_id = 'r' for update")
                for seen in (ada, bob):
                    await seen.button("Resolve").click()
                waiting = "select count(*) from pg_stat_activity where wait_event_type = 'Lock'"
                await asyncio.to_thread(poll, "both wait", lambda: value(db, waiting) == 2)
            for seen in (ada, bob):
                await expect(seen.page.locator("[data-review]")).to_have_count(0)
            said = sorted([await seen.page.locator(".notices").inner_text() for seen in (ada, bob)])
            assert said[0].startswith("Resolved: ") and said[1].startswith("Somebody was quicker")
            reviewed = "select payload ->> 'actor' from tidebase.events where type = 'step.reviewed'"
            assert len(values(db, reviewed)) == 1
            for seen in (ada, bob):
                seen.complaints.clear()  # the browser writes down the answer 409
                await seen.well()


async def test_pages_that_nobody_looks_at_keep_no_connection(database: str, db: Connection) -> None:
    """A browser has six connections to one host, for all its pages."""
    token = grant(db, new_run(db, run_id="r"))
    with running(database) as server:
        async with chromium() as browser:
            first = await visit(browser, address(server), NOTES)
            pages = [first, *[Visit(await first.page.context.new_page(), first.base) for _ in range(7)]]
            for seen in pages:
                await seen.go("runs/r?tab=log")
                await expect(seen.page.locator(".live")).to_have_text("live")
                await expect(seen.page.locator(".event")).to_have_count(2)
                await seen.page.evaluate("window.hide(true)")
            await say(db, "r", token, 5)
            await expect(first.page.locator(".event")).to_have_count(2)
            await first.page.evaluate("window.hide(false)")
            await in_order(first, db, "r")
            await first.well()


def happen(db: Connection, run_id: str, token: int, events: int) -> None:
    """So many events, a fifth of them of steps, by hundreds at most."""
    for first in range(0, events, 100):
        some = min(100, events - first)
        with db.transaction():
            db.execute(
                "select tidebase.append_event(%s, %s, 'agent.said', jsonb_build_object('text', repeat('word ', 40)))"
                " from generate_series(1, %s)",
                [run_id, token, some - some // 5],
            )
            db.execute(
                "select tidebase.record_step(%s, %s, format('step %%s', gen_random_uuid()), '1', to_jsonb(n))"
                " from generate_series(1, %s) n",
                [run_id, token, some // 5],
            )


@long
async def test_a_page_keeps_so_much_and_no_more_however_much_happens(database: str, db: Connection) -> None:
    """The newest 5,000 events of a run and 1,000 of its steps. An event is some 500 bytes of the heap: were the later
    ones kept beside them, that would be six megabytes. What is under way comes on top at any moment, so it is looked at
    again.
    """
    token = grant(db, new_run(db, run_id="r"))
    with running(database) as server:
        async with chromium() as browser:
            log, timeline = [await visit(browser, address(server)) for _ in range(2)]
            await log.go("runs/r?tab=log")
            await timeline.go("runs/r")

            async def logged(events: int) -> None:
                await asyncio.to_thread(happen, db, "r", token, events)
                last = value(db, "select last_seq from tidebase.run_heads where run_id = 'r'")
                await expect(log.page.locator(".event .seq").last).to_have_text(str(last))

            async def shown(events: int) -> None:
                await logged(events)
                for _ in range(12):  # and a few now and then: what is kept of one drawing could keep the one before
                    await logged(10)
                last = value(db, "select last_seq from tidebase.run_heads where run_id = 'r'")
                await expect(log.page.get_by_text(f"5,000 of {last:,}")).to_be_visible()
                steps = value(db, "select steps_completed from tidebase.run_heads where run_id = 'r'")
                await expect(timeline.page.locator(".facts").first).to_contain_text(f"steps{steps:,}")
                await expect(timeline.page.get_by_text("The newest 250 of 1,001")).to_be_visible()

            await shown(6000)
            before = [min([await weigh(seen.page) for _ in range(3)]) for seen in (log, timeline)]
            await shown(12_000)
            for seen, least in zip((log, timeline), before, strict=True):
                weight = await weigh(seen.page)
                for _ in moments():
                    if weight.heap < least.heap + 2_000_000 and weight.nodes < least.nodes + 500:
                        break
                    weight = await weigh(seen.page)
                else:
                    raise AssertionError(f"it keeps {weight}, and kept {least}")
            # Who wants more of them sees them, and may put up with that.
            await timeline.button("Show all").click()
            await expect(timeline.page.locator(".labels .label")).to_have_count(1001)
            await log.button("Older").click()
            await expect(log.page.locator(".event")).to_have_count(800)
            for seen in (log, timeline):
                await seen.well()


async def test_a_list_is_whole_however_many_come_at_once(database: str, db: Connection) -> None:
    """A list is told of a hundred at a time, and keeps two thousand where nobody looks at more."""

    def create(many: int, of: str) -> None:
        db.execute("select tidebase.create_run('w', run_id => %s || n) from generate_series(1, %s) n", [of, many])

    create(2300, "old-")
    with running(database) as server:
        async with chromium() as browser:
            seen = await visit(browser, address(server))
            await seen.go("runs")
            await expect(seen.page.locator(".live")).to_have_text("live")
            scroll, space = seen.page.locator(".scroll"), seen.page.locator(".space")

            async def to_the_end(runs: int) -> None:
                """As one who scrolls on for as long as more comes."""
                end = seen.page.get_by_text(f"{runs:,} runs, that is all.")
                while not await end.is_visible():
                    await scroll.evaluate("(box) => { box.scrollTop = box.scrollHeight; }")
                await expect(space).to_have_css("height", f"{36 * runs}px")

            await to_the_end(2300)
            create(1, "at the end-")  # what is looked at stays
            await expect(seen.page.locator(".pill")).to_have_text("1 new")
            await expect(space).to_have_css("height", f"{36 * 2300}px")
            await scroll.evaluate("(box) => { box.scrollTop = 0; }")
            await expect(space).to_have_css("height", f"{36 * 2000}px")
            await expect(seen.page.get_by_role("row", name="at the end-1")).to_be_visible()
            await to_the_end(2301)

            await scroll.evaluate("(box) => { box.scrollTop = 0; }")
            create(700, "new-")
            await expect(space).to_have_css("height", f"{36 * 100}px")
            await to_the_end(3001)
            await seen.well()
