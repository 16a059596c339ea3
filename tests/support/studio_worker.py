"""A worker in a process of its own whose run is looked at, and which may be killed in the middle of a step."""

from __future__ import annotations

import signal
from multiprocessing.connection import Connection as Pipe
from typing import Any

from tidebase import Run, Tidebase


def work(url: str, run_id: str, lease_s: float, hangs: bool, pipe: Pipe) -> None:
    """The body of the process: ``search`` never ends where it is to be killed there."""

    def search() -> list[str]:
        pipe.send_bytes(b"it searches")
        if hangs:
            signal.pause()
        return ["rivers bring it"]

    def write(run: Run, _: Any) -> str:
        run.step("plan", lambda: ["sea", "salt"])
        found = run.step("search", search)
        return run.step("write", lambda: f"because {found[0]}")

    with Tidebase(url, lease_s=lease_s) as tide:
        tide.run("write", write, run_id=run_id)
    pipe.send_bytes(b"it is done")
