"""The example of a web application with its workers: started as its author would, an order is followed to its end."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
import yaml

from tidebase import Tidebase

from .probes.support import poll, value
from .support.patience import PATIENCE_S

ON_NEWEST = True

EXAMPLES = Path(__file__).parents[1] / "python" / "examples"
ORDERS = EXAMPLES / "orders"

Db = psycopg.Connection[Any]


@contextmanager
def started(log: Path, url: str, *command: str) -> Iterator[None]:
    environment = dict(
        os.environ, DATABASE_URL=url, TIDEBASE_DATABASE_URL="", ORDERS_PACE_S="0.05", PYTHONUNBUFFERED="1"
    )
    with log.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", *command], cwd=EXAMPLES, env=environment, stdout=output, stderr=output
        )
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(PATIENCE_S)
        finally:
            process.kill()


def follow(address: str, after: int = 0) -> list[dict[str, Any]]:
    """The events of a run, as a browser gets them, until it is over."""
    seen = []
    with httpx.stream("GET", address, headers={"last-event-id": str(after)}, timeout=PATIENCE_S) as answer:
        for line in answer.iter_lines():
            if line == "event: end":
                return seen
            if line.startswith("data: "):
                seen.append(json.loads(line.removeprefix("data: ")))
    raise AssertionError(f"the stream ended early: {seen}")


def test_an_order_is_kept_worked_on_and_followed(tmp_path: Path, database: str, tide: Tidebase, db: Db) -> None:
    log = tmp_path / "log"
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    worker = ("tidebase.cli", "worker", "orders.workflows:tide", "--queue", "orders", "--drain", "1s", "--poll", "1s")
    with (
        started(log, database, "uvicorn", "orders.app:app", "--port", str(port)),
        started(log, database, *worker),
        started(log, database, *worker),
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE_S) as client,
    ):
        poll("the application answers", lambda: answers(client))
        assert "EventSource" in client.get("/").text
        assert client.post("/orders", json={"item": ""}).status_code == 422
        assert client.get("/orders/999").status_code == client.get("/orders/999/events").status_code == 404
        orders = [client.post("/orders", json={"item": item}).json() for item in ("salt", "pepper", "cumin")]
        address = f"{client.base_url}/orders/{orders[0]['order']}/events"
        events = follow(address)
        assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
        types = [event["type"] for event in events]
        assert (types[0], types[1], types[-1], types.count("step.completed")) == (
            "run.created",
            "run.enqueued",
            "run.completed",
            4,
        )
        assert follow(address, len(events) - 1) == events[-1:], "who comes back gets what it has not seen"
        for order in orders:
            follow(f"{client.base_url}/orders/{order['order']}/events")
            state = client.get(f"/orders/{order['order']}").json()
            assert (state["status"], state["run"]) == ("sent", "completed"), log.read_text()
            assert state["result"]["parcel"] == f"parcel-{order['order']}"
        assert value(db, "select count(*) from tidebase.workers") == 2
        assert value(db, "select count(*) from public.orders where run_id is null") == 0


def answers(client: httpx.Client) -> bool:
    try:
        return client.get("/").status_code == 200
    except httpx.TransportError:
        return False


def test_the_ways_to_deploy_it_start_the_same_commands() -> None:
    services = yaml.safe_load((ORDERS / "compose.yaml").read_text())["services"]
    assert services["worker"]["deploy"]["replicas"] == 2
    assert services["db"].keys() >= {"healthcheck", "volumes"} and (ORDERS / "Dockerfile").exists()
    for name in ("web", "worker"):
        assert services[name]["depends_on"]["migrate"]["condition"] == "service_completed_successfully"
    units = {path.name: path.read_text() for path in (ORDERS / "systemd").iterdir()}
    for service, unit in (("migrate", "orders-migrate"), ("web", "orders-web"), ("worker", "orders-worker@")):
        command = " ".join(services[service]["command"]).replace(" --host 0.0.0.0", "")
        assert f"ExecStart=/opt/orders/bin/{command}" in units[f"{unit}.service"]
    help = subprocess.run([sys.executable, "-m", "tidebase", "worker", "--help"], capture_output=True, text=True).stdout
    assert all(option in help for option in services["worker"]["command"] if option.startswith("--"))


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not here")
def test_the_units_are_understood_by_systemd(tmp_path: Path) -> None:
    for path in (ORDERS / "systemd").iterdir():
        name = path.name.replace("@.", "@1.")
        (tmp_path / name).write_text(path.read_text().replace("/opt/orders/bin/", "/bin/true "))
    command = ["systemd-analyze", "verify", "--man=no", *map(str, sorted(tmp_path.iterdir()))]
    checked = subprocess.run(command, capture_output=True, text=True)
    assert (checked.returncode, checked.stderr) == (0, "")
