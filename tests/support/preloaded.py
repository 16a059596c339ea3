"""What gunicorn --preload loads: an application whose Tidebase was in use before the workers were forked off."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import Any

from tidebase import Run, Tidebase

tide = Tidebase(os.environ["TIDEBASE_DATABASE_URL"], lease_s=3)


@tide.workflow("echo")
def echo(run: Run, text: str) -> list[str]:
    return [run.step.options(key=number)("said", lambda: text) for number in range(5)]


tide.run("echo", input="before", run_id="before")
session = tide.runs.attach("session", run_id="session")  # heartbeats go on in the master


def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """Runs a workflow under the name in the path, and answers with its result and who did it."""
    text = environ["PATH_INFO"].strip("/")
    result = tide.run("echo", input=text, run_id=text)
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [f"{os.getpid()} {' '.join(sorted(set(result)))}".encode()]
