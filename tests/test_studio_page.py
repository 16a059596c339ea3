"""Studio in a real browser: every view, every action, two people at once, a break, whatever strangers write."""

from __future__ import annotations

import asyncio
import json
import sys
import threading
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from playwright.async_api import Page, expect

from tidebase import Tidebase

from .conftest import long
from .probes.support import Connection, poll, value, values
from .support.forms import FORMS
from .support.patience import PATIENCE_S
from .support.studio_browser import CHROMIUM, address, chromium, visit
from .support.studio_runs import HOSTILE, LONG, fill
from .test_gateway import running

ON_NEWEST = True

AXE = Path(sys.prefix) / "node" / "node_modules" / "axe-core" / "axe.min.js"
PICTURES = Path(__file__).parents[1] / "build" / "studio"

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")

#: Every view, by the place in the page's hash.
VIEWS = {
    "runs": "runs",
    "found": "runs?status=failed&text=wrong",
    "nothing": "runs?text=there+is+no+such",
    "timeline": "runs/story?sel=step-step_c2VhcmNo",
    "gate": "runs/refund-7",
    "review": "runs/charge-1",
    "log": "runs/story?tab=log",
    "state": "runs/story?tab=state",
    "children": "runs/story?tab=children",
    "usage": "runs/research-9?tab=usage",
    "recovery": "runs/story?tab=deliveries",
    "data": "runs/refund-7?tab=data",
    "no run": "runs/no-such-run",
    "hostile": "runs/hostile",
    "hostile log": "runs/hostile?tab=log",
    "hostile state": "runs/hostile?tab=state",
    "inbox": "inbox",
    "queues": "queues",
    "schedules": "schedules",
    "workers": "workers",
    "health": "health",
    "compare": "compare?left=story&right=story-fork",
    "file": "file",
}


async def faults(page: Page, *rules: str) -> list[str]:
    """What axe-core finds."""
    if not await page.evaluate("Boolean(window.axe)"):
        await page.evaluate(AXE.read_text("utf-8"))
    chosen = {"type": "rule", "values": list(rules)} if rules else {"type": "tag", "values": TAGS}
    found = await page.evaluate(
        """async (runOnly) => (await axe.run(document, { runOnly, resultTypes: ["violations"] })).violations
          .map((one) => `${one.id}: ${one.nodes.slice(0, 3).map((node) => node.html.slice(0, 200)).join(" | ")}`)""",
        chosen,
    )
    return list(found)


TAGS = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]


@long
async def test_every_view_is_whole_for_everybody(database: str, db: Connection, tide: Tidebase) -> None:
    """Light and dark, from 360 pixels on: nothing sticks out, axe-core finds nothing, no stranger's text runs,
    nothing is asked of another host. The pictures are kept in build/studio.
    """
    await asyncio.to_thread(fill, tide, db, 40)
    PICTURES.mkdir(parents=True, exist_ok=True)
    found: dict[str, list[str]] = {}
    with running(database) as server:
        async with chromium() as browser:
            seen = await visit(browser, address(server))
            page = seen.page
            for name, where in VIEWS.items():
                await page.set_viewport_size({"width": 1360, "height": 860})
                await page.emulate_media(color_scheme="light")
                if name == "no run":
                    await page.goto(f"{seen.base}/studio/#/{where}")
                    await expect(page.get_by_role("heading", name="There is no such run")).to_be_visible()
                    seen.complaints.clear()  # the browser writes down each answer 404
                else:
                    await seen.go(where)
                if AXE.exists():
                    found[name] = await faults(page)
                await page.screenshot(path=PICTURES / f"{name}-light-wide.png")
                await page.emulate_media(color_scheme="dark")
                await page.set_viewport_size({"width": 360, "height": 740})
                if AXE.exists():
                    found[f"{name}, dark"] = await faults(page, "color-contrast")
                sticking = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
                assert await page.evaluate(sticking) <= 0, name
                await page.screenshot(path=PICTURES / f"{name}-dark-narrow.png")
                assert "owned" not in await page.title()
            assert await page.evaluate("document.querySelectorAll('#app script, #app img[src=x]').length") == 0
            await seen.well()
    assert {name: faults for name, faults in found.items() if faults} == {}


async def test_what_people_do_is_done_once_and_in_their_name(database: str, db: Connection, tide: Tidebase) -> None:
    await asyncio.to_thread(fill, tide, db, 16)
    db.execute("insert into tidebase_private.settings values ('speakers', array[session_user]::text)")
    keys = ["approver+operator@ada:ada-secret", "approver@bob:bob-secret", "reader:reader-secret"]
    with running(database, *keys) as server:
        async with chromium() as browser:
            ada, bob, reader = [await visit(browser, address(server)) for _ in range(3)]
            for seen, secret in ((ada, "ada-secret"), (bob, "bob-secret"), (reader, "reader-secret")):
                await seen.page.goto(f"{seen.base}/studio/#/inbox")
                await seen.page.get_by_label("Key").fill("wrong-secret")
                await seen.button("Sign in").click()
                await expect(seen.page.get_by_text("This is none of the gateway")).to_be_visible()
                seen.complaints.clear()  # the browser writes down each answer 401
                await seen.page.get_by_label("Key").fill(secret)
                await seen.button("Sign in").click()
                await expect(seen.page.get_by_role("heading", name="Inbox")).to_be_visible()
                assert await seen.page.evaluate("document.cookie") == ""
            await expect(ada.page).to_have_title("(5) Inbox · Tidebase Studio")

            # Two people decide at once: one of them is told what stands.
            for seen, option in ((ada, "approved"), (bob, "rejected")):
                ask = seen.page.locator("article", has=seen.page.get_by_role("link", name="publish-1"))
                await ask.get_by_label(option).check()
            await asyncio.gather(
                *(
                    seen.page.locator("article", has_text="publish-1").get_by_role("button", name="Decide").click()
                    for seen in (ada, bob)
                )
            )
            for seen in (ada, bob):
                await expect(seen.page.locator("article", has_text="publish-1")).to_have_count(0)
            said = [await seen.page.locator(".notices").inner_text() for seen in (ada, bob)]
            (decision, actor) = value(
                db, "select array[decision, actor] from tidebase.gates where run_id = 'publish-1'"
            )
            assert sorted(text.split(":")[0] for text in said) == ["Decided", "Somebody was quicker"]
            assert f"{decision} by {actor} stands" in max(said, key=len)

            # A form of the response schema, with what is wrong said before anything is sent.
            ask = ada.page.locator("article", has_text="refund-7")
            await ask.get_by_label("approved").check()
            await ask.get_by_label("Amount in EUR").fill("900")
            await expect(ask.get_by_text("Amount in EUR must be 500 at most.")).to_be_visible()
            await expect(ask.get_by_role("button", name="Decide")).to_be_disabled()
            await ask.get_by_label("Amount in EUR").fill("110.5")
            await ask.get_by_label("Channel").select_option(label="sepa")
            await ask.get_by_label("Comment").fill("without the postage")
            await ask.get_by_role("button", name="Decide").click()
            await expect(ask).to_have_count(0)
            row = db.execute(
                "select payload, comment, actor from tidebase.gates where name = 'approve refund'"
            ).fetchone()
            assert row == (
                {"account": "DE02", "amount": 110.5, "channel": "sepa"},
                "without the postage",
                "ada",
            )

            # Two must agree.
            for seen in (ada, bob):
                ask = seen.page.locator("article", has_text="deploy-42")
                await ask.get_by_label("approved").check()
                await ask.get_by_role("button", name="Decide").click()
                await seen.told("Your vote counts: 1 of 2" if seen is ada else "Decided: approved")
            assert values(db, "select voter from tidebase.gate_ballots where name = 'go live' order by 1") == [
                "ada",
                "bob",
            ]

            # A step that may have taken effect.
            ask = ada.page.locator("article", has_text="charge-1")
            await expect(ask.get_by_text("the bank's list of charges")).to_be_visible()
            await ask.get_by_label("Accept").check()
            await ask.get_by_label("What it really returned").fill('{"charged": 90}')
            await ask.get_by_label("Reason").fill("seen in the list")
            await ask.get_by_role("button", name="Resolve").click()
            await ada.told("Resolved: accept")
            assert value(db, "select output from tidebase.step_timeline where run_id = 'charge-1'") == {"charged": 90}

            await ada.go("runs/report-3")
            await ada.button("Resume").click()
            await ada.submit("Resume the run")
            await expect(ada.page.locator(".run-title .status")).to_have_text("pending")
            await ada.button("Move").click()
            await ada.page.get_by_label("Queue").fill("night")
            await ada.submit("Move the run")
            await expect(ada.page.locator(".run-title .status")).to_have_text("queued")
            await ada.button("Budget").click()
            await ada.page.get_by_label("Cost in USD").fill("1.5")
            await ada.submit("Set the budget")
            await expect(ada.page.locator(".facts").first).to_contain_text("of $1.50")
            await ada.button("Cancel").click()
            await ada.page.get_by_label("Reason").fill("no longer needed")
            await ada.submit("Cancel the run")
            await expect(ada.page.locator(".explain")).to_contain_text("“ada” cancelled it: no longer needed")
            actors = "select payload ->> 'actor' from tidebase.events where run_id = 'report-3' and payload ? 'actor'"
            assert values(db, actors) == ["ada"] * 4

            await ada.go("runs/story?sel=step-step_cGxhbg")
            await ada.button("Fork behind this step").click()
            await ada.page.get_by_label("with another input").check()
            await ada.page.get_by_role("textbox", name="Input").fill('{"topic": "rivers"}')
            await ada.submit("Make the fork")
            await expect(ada.page.locator(".crumbs + .run-title .status")).to_have_text("pending")
            await ada.page.get_by_role("link", name="compare").last.click()
            await expect(ada.page.get_by_text("here they part")).to_be_visible()

            await ada.go("runs?workflow=bulk-1&status=failed")
            await ada.button("All that these filters find").click()
            await ada.page.locator("dialog").get_by_label("Cancel").check()
            failed = value(
                db, "select count(*) from tidebase.run_overview where workflow = 'bulk-1' and status = 'failed'"
            )
            assert failed > 0
            await expect(ada.page.locator("dialog .preview")).to_contain_text(f"{failed} run")
            await ada.submit(f"Cancel {failed} run")
            await ada.told("cancelled")
            await ada.page.locator("h1").hover()  # else what is gone stays under the pointer
            await expect(ada.page.get_by_role("heading", name="Nothing fits")).to_be_visible()

            await ada.go("queues")
            card = ada.page.locator("[data-queue=mail]")
            await card.get_by_role("button", name="Pause").click()
            await expect(card.locator(".held")).to_contain_text("paused")
            await card.get_by_role("button", name="Limits").click()
            await ada.page.get_by_label("At work at once").fill("9")
            await ada.submit("Set the limits")
            assert value(db, "select array[concurrency, rate] from tidebase.queue_overview where queue = 'mail'") == [
                9,
                100,
            ]
            await ada.go("schedules")
            card = ada.page.locator("[data-schedule='nightly cleanup']")
            await card.get_by_role("button", name="Trigger").click()
            await ada.told("Enqueued")
            await card.get_by_role("button", name="Disable").click()
            await expect(card).to_contain_text("disabled")

            # Who may only read is offered nothing, and told no secret.
            for where in ("runs", "runs/publish-1", "runs/hostile", "inbox", "queues", "schedules"):
                await reader.go(where)
                offered = await reader.page.locator("main").get_by_role("button").all_inner_texts()
                assert not {"Cancel", "Fork", "Budget", "Decide", "Pause ", "Limits", "Trigger", "Edit"} & set(
                    offered
                ), where
                assert await reader.page.locator("main input[type=radio][name^=decision]").count() == 0
            await expect(reader.page.locator("main").get_by_role("button", name="Trigger")).to_have_count(0)
            await reader.button("Sign out").click()
            await expect(reader.page.get_by_label("Key")).to_be_visible()
            assert (await reader.page.request.get(f"{reader.base}/overview/counts")).status == 401
            for seen in (ada, bob, reader):
                seen.complaints.clear()
                await seen.well()


async def test_what_is_looked_at_lives_and_is_whole_after_a_break(
    database: str, db: Connection, tide: Tidebase
) -> None:
    half, on = threading.Event(), threading.Event()

    def work(run: Any, _: Any) -> None:
        for n in range(60):
            run.step.options(key=n)("step", lambda: None)
            if n == 30:
                half.set()
                assert on.wait(PATIENCE_S)

    tide.runs.create("w", run_id="live")
    with running(database) as server:
        async with chromium() as browser:
            runs, log = [await visit(browser, address(server)) for _ in range(2)]
            await runs.go("runs")
            await expect(runs.page.locator(".live")).to_have_text("live")
            await log.go("runs/live?tab=log")
            await expect(log.page.locator(".live")).to_have_text("live")
            worker = threading.Thread(target=lambda: tide.run("w", work, run_id="live"))
            worker.start()
            await expect(runs.page.get_by_role("row", name="live")).to_contain_text("running")
            assert await asyncio.to_thread(half.wait, PATIENCE_S)
            last = value(db, "select last_seq from tidebase.run_heads where run_id = 'live'")
            await expect(log.page.locator(".event .seq").last).to_have_text(str(last))
            for connection in list(server.server_state.connections):
                connection.transport.abort()
            await expect(log.page.locator(".live")).to_have_text("reconnecting")
            on.set()
            await asyncio.to_thread(worker.join)
            db.execute("select tidebase.create_run('w', run_id => 'meanwhile')")
            await expect(log.page.locator(".run-title .status")).to_have_text("completed")
            last = value(db, "select last_seq from tidebase.run_heads where run_id = 'live'")
            await expect(log.page.locator(".event .seq").last).to_have_text(str(last))
            numbers = await log.page.locator(".event .seq").all_text_contents()
            assert numbers == [str(n) for n in range(1, last + 1)]
            await expect(runs.page.get_by_role("row", name="live")).to_contain_text("completed")
            await expect(runs.page.get_by_role("row", name="meanwhile")).to_contain_text("pending")

            # While somebody is about to click nothing moves; and a pause is one.
            await runs.page.locator(".scroll").hover()
            db.execute("select tidebase.create_run('w', run_id => 'behind')")
            await expect(runs.page.locator(".pill")).to_have_text("1 new")
            assert await runs.page.get_by_role("row", name="behind").count() == 0
            await runs.page.locator("h1").hover()
            await expect(runs.page.get_by_role("row", name="behind")).to_be_visible()
            await runs.button("Pause").click()
            await poll_lists(server)
            await runs.button("Go on").click()
            await expect(runs.page.locator(".live")).to_have_text("live")
            for seen in (runs, log):
                seen.complaints.clear()  # the browser writes down that connections broke
                await seen.well()


async def poll_lists(server: Any) -> None:
    """Nobody looks at any list: the database is not asked any more."""
    lists = server.config.app.state.lists
    await asyncio.to_thread(poll, "nobody is asked", lambda: not lists._watched)


#: Before the browser has told that the one dialog was closed the other one is wanted.
CLOSED_AND_ANOTHER = """
document.querySelector("dialog").close();
dispatchEvent(new KeyboardEvent("keydown", { key: "k", ctrlKey: true }));
"""

FORM = """async ([forms]) => {
  const { faults, draftOf, valueOf } = await import(new URL("form.js", document.baseURI));
  return forms.map(([schema, values]) => values.map((value) =>
    [faults(schema, value), valueOf(schema, draftOf(schema, value, schema), "", true, schema)]));
}"""


async def forms(page: Page) -> None:
    """What a form says about a value is what the standard says, and what fits comes out of it as it went in."""
    answers = await page.evaluate(FORM, [FORMS])
    for (schema, tried), said in zip(FORMS, answers, strict=True):
        for one, (faults, back) in zip(tried, said, strict=True):
            fits = jsonschema.Draft202012Validator(schema).is_valid(one)
            assert fits == (not faults), (schema, one, faults)
            assert not fits or (back["value"], back["problems"]) == (one, []), (schema, one, back)


async def test_by_the_keys_and_out_of_a_file(database: str, db: Connection, tide: Tidebase, tmp_path: Path) -> None:
    await asyncio.to_thread(fill, tide, db, 8)
    with running(database) as server:
        async with chromium() as browser:
            seen = await visit(browser, address(server))
            page = seen.page
            await seen.go("health")
            await forms(page)
            await page.keyboard.press("?")
            await expect(page.locator("dialog")).to_contain_text("Keys")
            await page.evaluate(CLOSED_AND_ANOTHER)
            await expect(page.get_by_role("combobox", name="Go to a view")).to_be_focused()
            await page.keyboard.type("refund-7")
            await expect(page.get_by_role("option", name="refund-7 waiting")).to_be_visible()
            await page.keyboard.press("Enter")
            await expect(page.locator("h1")).to_have_text("refund-7")
            await page.keyboard.press("g")
            await page.keyboard.press("r")
            await expect(page.locator(".row.at")).to_have_count(0)
            await expect(page.get_by_role("row", name="story-fork")).to_be_visible()
            rows = page.locator(".space .row").get_by_role("link")
            await page.keyboard.press("j")
            await expect(page.locator(".row.at a")).to_have_text(await rows.nth(0).inner_text())
            await page.keyboard.press("j")
            await expect(page.locator(".row.at a")).to_have_text(await rows.nth(1).inner_text())
            await page.keyboard.press("x")
            await expect(page.locator(".picked")).to_contain_text("1 run picked")
            await page.keyboard.press("/")
            await page.keyboard.type(LONG[:30])
            await expect(page.locator(".space .row")).to_have_count(1)
            assert "text=" in page.url
            await page.reload()  # a filter stays where it is: in the URL
            await expect(page.locator(".space .row")).to_have_count(1)

            await seen.go("runs/hostile")
            async with page.expect_download() as downloading:
                await seen.button("Export").click()
            file = tmp_path / "run.json"
            await (await downloading.value).save_as(file)
            kept = json.loads(file.read_text("utf-8"))
            assert [event["seq"] for event in kept["events"]] == list(range(1, kept["run"]["lastSeq"] + 1))
            assert kept["steps"][0]["output"] == HOSTILE and kept["versions"][0]["value"] == {HOSTILE: HOSTILE}
            await seen.go("file")
            await page.locator("input[type=file]").set_input_files(file)
            await expect(page.locator("h1")).to_have_text("hostile")
            await expect(page.get_by_role("note")).to_contain_text("nothing can be done")
            for tab in ("Log", "State", "Usage", "Data"):
                await page.get_by_role("link", name=tab, exact=True).click()
                await seen.ready()
            assert await seen.button("Cancel").count() == 0
            (tmp_path / "other.json").write_text('{"format": "tidebase-run", "version": 1}')
            await seen.button("Close the file").click()
            await page.locator("input[type=file]").set_input_files(tmp_path / "other.json")
            await expect(page.get_by_role("alert")).to_contain_text("no run that was exported here")
            await seen.well()
