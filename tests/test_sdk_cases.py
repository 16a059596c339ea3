"""The published SDKs against the gateway, case by case: the Python one as it is, and under node a client that sends and
reads what the TypeScript one does. What the original answers, and where ours answers otherwise and why, is in
``sdk/cases.json``, of which the gateway's page is made.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tidebase import Tidebase

from . import documents
from .conftest import on_every_version
from .probes.support import connect, value
from .sdk import table
from .support.patience import TEST_S
from .test_gateway import ALL, SDK, gateway

ON_NEWEST = True

HERE = Path(__file__).parent / "sdk"
NODE, MODULES = shutil.which("node"), Path(sys.prefix) / "node"
KEYS = [ALL, "reader:reader-secret"]
SECRET = "a-webhook-secret"


@contextmanager
def outside(url: str) -> Iterator[str]:
    """What a case asks of the world: a lease that has run out, reconcile, what its webhook is told, and when."""
    told: list[dict[str, str]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            what, _, run_id = self.path.strip("/").partition("/")
            body = self.rfile.read(int(self.headers.get("content-length") or 0)).decode()
            answer = json.dumps(self.do(what, run_id, body)).encode()
            self.send_response(200)
            self.send_header("content-length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def do(self, what: str, run_id: str, body: str) -> Any:
            if what == "hook":
                told.append({"body": body, "signature": self.headers["x-tidebase-signature"]})
                return None
            with Tidebase(url) as tide:
                if what in ("dispatch", "push"):
                    dispatcher = tide.dispatcher if what == "dispatch" else tide.push_dispatcher
                    dispatcher(secret=SECRET, allow_private=True).dispatch(max=100)
                    of_run = [each for each in told if json.loads(each["body"])["runId"] == run_id]
                    told[:] = [each for each in told if each not in of_run]
                    return of_run
                if what == "reconcile":
                    tide.reconcile()
                    return None
            with connect(url) as connection:
                if what == "waits":
                    return value(connection, WAITS, run_id)
                connection.execute(LAPSE, [run_id])
                return None

        def log_message(self, format: str, *arguments: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


WAITS = """
select d.next_at > v.created_at + interval '1 second'
from tidebase.deliveries d join tidebase.recoveries v using (run_id, recovery)
where run_id = %s and d.status = 'pending'"""
LAPSE = """
update tidebase.run_heads set lease_expires_at = clock_timestamp() - interval '1 second', due_at = clock_timestamp()
where run_id = %s"""


def seen_by(command: list[str], environment: dict[str, str]) -> dict[str, Any]:
    """What each case saw, of one client."""
    result = subprocess.run(
        command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=TEST_S, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
    seen: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return seen


def wrong(client: str, seen: dict[str, Any]) -> list[str]:
    """Where it is not as the table says."""
    expected = {case.name: case.expected(client) for case in table.cases() if client in case.by}
    assert set(seen) == set(expected)
    return [f"{name}: {seen[name]!r}, not {answer!r}" for name, answer in expected.items() if seen[name] != answer]


@on_every_version
def test_the_python_sdk_gets_what_the_table_says(database: str) -> None:
    if not SDK.exists():
        pytest.skip("the published client is not there: make setup")
    with gateway(database, *KEYS) as url, outside(database) as control:
        command = [sys.executable, str(HERE / "cases.py"), url, "a-long-secret", "reader-secret", control]
        seen = seen_by(command, {"PYTHONPATH": str(SDK), "PYTHONSAFEPATH": "1"})
    assert wrong("python", seen) == []


@on_every_version
def test_a_typescript_client_gets_what_the_table_says(database: str) -> None:
    if NODE is None or not MODULES.exists():
        pytest.skip("node, or its module eventsource, is not there: make setup")
    with gateway(database, *KEYS) as url, outside(database) as control:
        command = [NODE, str(HERE / "cases.mjs"), url, "a-long-secret", "reader-secret", control]
        seen = seen_by(command, {"NODE_FOLDER": str(MODULES)})
    assert wrong("typescript", seen) == []


def test_what_differs_has_a_reason() -> None:
    for case in table.cases():
        others = [case.expected(client) for client in case.by if case.expected(client) != case.original]
        assert case.differs or not others, case.name
        assert case.by and set(case.by) <= {"python", "typescript"}


def test_the_page_is_that_of_the_cases() -> None:
    text = table.PAGE.read_text("utf-8")
    assert text == documents.filled(text, table.MAKER, table.render()), "python -m tests.sdk.table"
