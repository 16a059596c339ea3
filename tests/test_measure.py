"""What those who watch are told: by the database's clock, to Prometheus, and to orchestrators."""

from __future__ import annotations

import socket
import sys
import threading
import urllib.request
from datetime import timedelta
from typing import Any
from urllib.error import HTTPError

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tidebase import Tidebase
from tidebase.cli.queues import serve_metrics
from tidebase.client import worker as workers
from tidebase.domain.claim import ready_in

from .support.gate import Db, reached, value
from .test_gateway import gateway

ON_NEWEST = True


def read(text: str) -> dict[tuple[str, ...], float]:
    """What an exposition says, by name and the values of its labels."""
    families = text_string_to_metric_families(text)
    return {
        (sample.name.removeprefix("tidebase_"), *sample.labels.values()): sample.value
        for family in families
        for sample in family.samples
    }


def some_runs(tide: Tidebase, db: Db) -> None:
    tide.queues.put("q", concurrency=5, paused=True)
    tide.enqueue_many([{"workflow": "w", "queue": "q"} for _ in range(3)])
    tide.enqueue("w", queue="q", delay_s=600)
    tide.enqueue("w", queue="other", run_id="dead")
    db.execute("update tidebase.queue_entries set ready_at = ready_at - interval '100 seconds' where place is not null")
    db.execute("select tidebase.claim_runs('{other}', 'w')")
    db.execute("select tidebase.fail_run('dead', 1, retryable => false)")


async def test_the_gateway_tells_prometheus(tide: Tidebase, db: Db, database: str) -> None:
    some_runs(tide, db)
    with gateway(database, "reader:reader-secret") as base:
        async with httpx.AsyncClient(base_url=base, headers={"authorization": "Bearer reader-secret"}) as client:
            answer = await client.get("/metrics")
    assert answer.status_code == 200 and answer.headers["content-type"].startswith("text/plain; version=")
    found = read(answer.text)
    assert found["queue_ready_runs", "q"] == 3 and found["queue_delayed_runs", "q"] == 1
    assert found["queue_paused", "q"] == 1 and found["queue_held_back", "q", "paused"] == 1
    assert found["failed_runs", "error", "other"] == 1 and found["runs", "failed"] == 1
    assert found["workers",] == 1 and found["late_seconds",] == 0
    assert found["queue_oldest_ready_seconds", "q"] >= 100


async def test_who_lacks_the_library_is_told(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith(("prometheus_client", "tidebase.views.metrics"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    monkeypatch.delattr("tidebase.views.metrics", raising=False)
    with gateway(database) as base:
        async with httpx.AsyncClient(base_url=base) as client:
            answer = await client.get("/metrics")
    assert (answer.status_code, answer.json()["code"]) == (501, "not_installed")
    assert "tidebase-postgres[metrics]" in answer.json()["error"]


@pytest.mark.breaks_invariants
async def test_a_gateway_is_ready_when_its_database_is(db: Db, database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with gateway(database) as base:
        async with httpx.AsyncClient(base_url=base) as client:

            async def ready() -> tuple[int, Any]:
                answer = await client.get("/ready")
                return answer.status_code, answer.json()

            assert await ready() == (200, {"ready": True})
            body = "language sql immutable security definer set search_path = pg_catalog, tidebase, pg_temp as"
            for protocol, expected in ((99, 200), (1, 503)):
                db.execute(f"create or replace function tidebase.protocol() returns integer {body} 'select {protocol}'")
                status, said = await ready()
                assert status == expected and said.get("reason") == (None if expected == 200 else "schema")
            assert (await client.get("/health")).json() == {"ok": True}
    monkeypatch.setattr("tidebase.server.app._READY_S", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"postgresql://postgres@127.0.0.1:{silent.getsockname()[1]}/x"
        with gateway(url) as base:
            answer = httpx.get(f"{base}/ready")
    assert (answer.status_code, answer.json()) == (503, {"ready": False, "reason": "database"})


def look(port: int, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}") as answer:
            return answer.status, answer.read().decode()
    except HTTPError as refused:
        return refused.code, ""


def test_a_worker_tells_what_it_does(tide: Tidebase, db: Db, database: str) -> None:
    @tide.workflow("w")
    def w(run: Any, input: Any) -> Any:
        if input == "ask":
            run.gate("g", "Go on?")
        if input == "fail":
            raise ValueError("no")

    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    worker = tide.worker(poll_s=0.5)
    serve_metrics(database, port, worker)
    assert (look(port, "/health")[0], look(port, "/ready")[0]) == (503, 503)  # it has not begun
    for given in ("ask", "fail", None):
        tide.enqueue("w", given, max_attempts=1)
    thread = threading.Thread(target=worker.run)
    thread.start()
    try:
        reached(lambda: sum(worker.tally.ends.values()) == 3, "it has worked on all")
        reached(lambda: look(port, "/ready")[0] == 200, "it is ready")
        assert look(port, "/health") == (200, '{"ok": true}')
        told = read(look(port, "/metrics")[1])
    finally:
        worker.stop()
        thread.join()
    assert told["worker_claims_total", "default"] == 3
    ends = {end: told["worker_ends_total", end, "default"] for end in ("completed", "failed", "suspended")}
    assert ends == {"completed": 1, "failed": 1, "suspended": 1}
    assert told["worker_lapses_total",] == 0 and told["worker_heartbeats_late_total",] >= 0
    assert told["queue_waiting_runs", "default"] == 1 and told["failed_runs", "error", "default"] == 1
    assert (look(port, "/health")[0], look(port, "/ready")[0]) == (200, 503)  # it takes nothing up any more


def test_a_worker_is_not_alive_when_it_does_not_go_round(tide: Tidebase, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = tide.worker(poll_s=1)
    assert not worker.is_alive and not worker.is_ready
    now = workers.time.monotonic()
    worker._turned_at, worker._can_claim = now, True
    assert worker.is_alive and worker.is_ready
    worker._turned_at = now - 1000
    assert not worker.is_alive and not worker.is_ready


def test_how_long_to_sleep_and_how_old_goes_by_the_database(
    tide: Tidebase, db: Db, monkeypatch: pytest.MonkeyPatch
) -> None:
    tide.enqueue("w", queue="q", delay_s=3600)
    due: timedelta = tide._database.execute(ready_in(queues=["q"]))
    assert timedelta(minutes=55) < due <= timedelta(hours=1)
    assert not hasattr(workers, "datetime")  # it has no clock but the one that counts seconds
    db.execute("update tidebase.queue_entries set ready_at = clock_timestamp() - interval '1 hour'")
    assert tide._database.execute(ready_in(queues=["q"])) == timedelta(0)
    assert tide._database.execute(ready_in(queues=["empty"])) is None
    worker = tide.worker(["q"], poll_s=10)
    assert worker._patience(idle=True) == 0.005


async def test_a_deadline_of_the_gateway_is_the_databases(
    db: Db, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tidebase.server.queues as module

    assert not hasattr(module, "datetime")
    with gateway(database) as base:
        body = {"workflowName": "w", "deadlineMs": 3_600_000}
        answer = httpx.post(f"{base}/queues/q/enqueue", json=body)
    assert answer.status_code == 200
    left = value(db, "select extract(epoch from deadline_at - clock_timestamp()) from tidebase.run_heads")
    assert 3000 < left <= 3600
