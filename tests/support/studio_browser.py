"""Studio in a real browser: a page that notes what it asked for and complained about, and a way to it that breaks."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from playwright.async_api import Browser, Page, async_playwright, expect

from .patience import PATIENCE_S

CHROMIUM = shutil.which("chromium")
WAIT_MS = 1000 * PATIENCE_S

WATCH = """
window.violations = [];
document.addEventListener("securitypolicyviolation", (event) => window.violations.push(event.violatedDirective));
"""


@dataclass
class Visit:
    """A page, and what it asked for and complained about."""

    page: Page
    base: str
    asked: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    async def go(self, where: str) -> None:
        await self.page.goto(f"{self.base}/studio/#/{where}")
        await self.ready()

    async def ready(self) -> None:
        """Nothing is being read any more. By locators: to wait for an expression is what the policy forbids."""
        await expect(self.page.locator("h1").first).to_be_attached()
        await expect(self.page.locator(".reading, .boot")).to_have_count(0)

    async def well(self) -> None:
        """Nothing went out of the host, nothing was blocked, nothing failed."""
        assert {url.split("/")[2] for url in self.asked if not url.startswith(("data:", "blob:"))} == {
            self.base.split("/")[2]
        }
        assert await self.page.evaluate("window.violations") == []
        assert self.complaints == []

    def button(self, name: str) -> Any:
        return self.page.get_by_role("button", name=name)

    async def submit(self, name: str) -> None:
        """Answers the question that is open."""
        await self.page.locator("dialog").get_by_role("button", name=name).click()
        await expect(self.page.locator("dialog[open]")).to_have_count(0)

    async def told(self, text: str) -> None:
        await expect(self.page.locator(".notices")).to_contain_text(text)

    async def sign_in(self, where: str, secret: str) -> None:
        await self.page.goto(f"{self.base}/studio/#/{where}")
        await self.page.get_by_label("Key").fill(secret)
        await self.button("Sign in").click()
        await expect(self.page.locator(".shell")).to_be_visible()
        await self.ready()


@asynccontextmanager
async def chromium() -> AsyncIterator[Browser]:
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"], timeout=WAIT_MS)
        yield browser
        await browser.close()


async def visit(browser: Browser, base: str, script: str = "", **options: Any) -> Visit:
    """A person of their own: nothing of others is remembered."""
    given = {"viewport": {"width": 1360, "height": 860}, "reduced_motion": "reduce", **options}
    context = await browser.new_context(**given)
    context.set_default_timeout(WAIT_MS)
    expect.set_options(timeout=WAIT_MS)
    await context.add_init_script(WATCH + script)
    visit = Visit(await context.new_page(), base)
    visit.page.on("request", lambda request: visit.asked.append(request.url))
    visit.page.on("pageerror", lambda error: visit.complaints.append(str(error)))
    visit.page.on("console", lambda line: line.type in ("error", "warning") and visit.complaints.append(line.text))
    return visit


def address(server: Any) -> str:
    return f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"


class Relay:
    """What stands between a browser and the gateway, and may fail: it breaks all connections and takes no new ones
    (``cut``), answers that there is nobody behind it (``deny``, as proxies do), or goes on without saying anything on
    what was open (``swallow``). ``mend`` ends that.
    """

    def __init__(self, base: str) -> None:
        self._port = int(base.rpartition(":")[2])
        self._open: set[asyncio.StreamWriter] = set()
        self._silent: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None
        self._denies = False
        self.base = ""

    async def __aenter__(self) -> Relay:
        await self._listen(0)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.cut()

    async def _listen(self, port: int) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", port)
        self.base = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def cut(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        self._abort()

    async def deny(self) -> None:
        self._denies = True
        self._abort()

    async def swallow(self) -> None:
        self._silent |= self._open

    async def mend(self) -> None:
        self._denies = False
        if self._server is None:
            await self._listen(int(self.base.rpartition(":")[2]))

    def _abort(self) -> None:
        for writer in self._open:
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._denies:
            writer.write(b"HTTP/1.1 502 Bad Gateway\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
            writer.close()
            return
        with suppress(OSError):
            there = await asyncio.open_connection("127.0.0.1", self._port)
            both = {writer, there[1]}
            self._open |= both
            await asyncio.gather(self._pass(reader, there[1]), self._pass(there[0], writer))
            self._open -= both

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(65536):
                if writer not in self._silent:
                    writer.write(data)
                    await writer.drain()
        writer.close()


@dataclass(frozen=True, order=True)
class Weight:
    """What a page keeps: bytes of its heap once all garbage is collected, and nodes of its documents."""

    heap: int
    nodes: int


async def weigh(page: Page) -> Weight:
    session = await page.context.new_cdp_session(page)
    await session.send("HeapProfiler.enable")
    for _ in range(3):  # what is let go in the one round may let go of more
        await session.send("HeapProfiler.collectGarbage")
    heap = await session.send("Runtime.getHeapUsage")
    counters = await session.send("Memory.getDOMCounters")
    await session.detach()
    return Weight(int(heap["usedSize"]), int(counters["nodes"]))
