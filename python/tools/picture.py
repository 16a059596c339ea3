"""The picture of Studio in the README: the page, as it shows the run of the demo.

make demo
python python/tools/picture.py "$TIDEBASE_DATABASE_URL" RUN python/examples/studio.png
"""

from __future__ import annotations

import io
import shutil
import sys
import threading
import time
from pathlib import Path

import uvicorn
from PIL import Image
from playwright.sync_api import sync_playwright

from tidebase.server import create_app

SIZE = {"width": 1280, "height": 640}


def main() -> None:
    database, run_id, target = sys.argv[1:]
    server = uvicorn.Server(uvicorn.Config(create_app(database, insecure=True), port=0, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport=SIZE, color_scheme="light", reduced_motion="reduce")
        page.goto(f"http://127.0.0.1:{port}/studio/#/runs/{run_id}?sel=step-step_cmVhZA")  # the step `read`
        page.locator(".tries-list").wait_for()
        picture = Image.open(io.BytesIO(page.screenshot()))
        browser.close()
    picture.convert("RGB").quantize(128, dither=Image.Dither.NONE).save(target, optimize=True)
    print(f"{target}: {Path(target).stat().st_size} bytes")
    server.should_exit = True
    thread.join()


if __name__ == "__main__":
    main()
