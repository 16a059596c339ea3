"""A real browser follows a run: the progress bar moves to the end, through a connection that breaks."""

from __future__ import annotations

import io
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from playwright.async_api import Page, async_playwright

from tidebase import Tidebase

from .probes.support import poll
from .support.patience import PATIENCE_S
from .test_gateway import running

ON_NEWEST = True

PAGE = Path(__file__).parents[1] / "python" / "examples" / "progress.html"
CHROMIUM = shutil.which("chromium")
GREEN = (0x1A, 0x7F, 0x5A)
WIDTH = 600
WAIT_MS = 1000 * PATIENCE_S


async def bar(page: Page) -> list[bool]:
    """What a person sees: whether the bar is green, at every tenth of its length."""
    box = await page.locator("#track").bounding_box()
    assert box is not None
    image = Image.open(io.BytesIO(await page.screenshot())).convert("RGB")
    row = box["y"] + box["height"] / 2
    spots = [(int(box["x"] + box["width"] * (tenth + 0.5) / 10), int(row)) for tenth in range(10)]
    return [image.getpixel(spot) == GREEN for spot in spots]


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
async def test_a_progress_bar_moves_to_the_end_through_a_disconnect(database: str, tide: Tidebase) -> None:
    half, resumed = threading.Event(), threading.Event()

    def work(run: Any, _: Any) -> None:
        for percent in range(10, 100, 10):
            run.emit("agent.progress", {"percent": percent})
            if percent == 50:
                half.set()
                assert resumed.wait(PATIENCE_S)

    tide.runs.create("w", run_id="r")
    with running(database, cors=["*"]) as server:
        port = server.servers[0].sockets[0].getsockname()[1]
        async with async_playwright() as playwright:
            browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"], timeout=WAIT_MS)
            page = await browser.new_page(viewport={"width": WIDTH, "height": 300}, color_scheme="light")
            page.set_default_timeout(WAIT_MS)
            await page.goto(f"{PAGE.as_uri()}?gateway=http://127.0.0.1:{port}&run=r")
            await page.wait_for_function("window.seen.length === 1")
            assert await bar(page) == [False] * 10
            worker = threading.Thread(target=lambda: tide.run("w", work, run_id="r"))
            worker.start()
            await page.wait_for_function("document.getElementById('track').getAttribute('aria-valuenow') === '50'")
            assert half.is_set() and await bar(page) == [True] * 5 + [False] * 5
            for connection in list(server.server_state.connections):
                connection.transport.abort()
            poll("nobody is connected", lambda: not server.server_state.connections)
            resumed.set()
            await page.wait_for_function("document.body.dataset.ended === 'yes'")
            worker.join()
            assert await bar(page) == [True] * 10
            assert await page.evaluate("window.seen") == list(range(1, 13))
            assert await page.evaluate("window.opened") == 2
            await browser.close()
