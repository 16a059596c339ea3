"""Who may send requests to the gateway at all: no page of another site, nobody under another name, nobody for ever."""

from __future__ import annotations

import asyncio
import re
import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import psycopg
import pytest
from playwright.async_api import async_playwright
from starlette.applications import Starlette
from starlette.routing import Mount

from tidebase import InvalidArgument, Tidebase
from tidebase.server import Key, create_app, patience
from tidebase.server.auth import Keyring

from .conftest import on_newest
from .probes.support import poll
from .support.gate import new_run, open_gate, status
from .support.patience import PATIENCE_S
from .test_cli import started
from .test_gateway import ALL, client_of, gateway, running

Db = psycopg.Connection[Any]
CHROMIUM = shutil.which("chromium")
PLAIN = {"content-type": "text/plain"}
JSON = {"content-type": "application/json"}


@contextmanager
def locked_head(database: str, run_id: str) -> Iterator[Callable[[], None]]:
    """Somebody holds the lock of the run's head, until this is called."""
    with psycopg.connect(database) as other:
        other.execute("select from tidebase.run_heads where run_id = %s for no key update", [run_id])
        yield other.rollback


def waiting(db: Db) -> str:
    """A gate that anybody with a worker's key may decide; its run."""
    open_gate(db, "r", new_run(db, "r"))
    return "r"


@on_newest("server")
@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({"host": "evil.example"}, 421),
        ({"host": "127.0.0.1.evil.example:7373"}, 421),
        ({"host": "localhost.evil.example"}, 421),
        ({"host": "["}, 421),
        ({"origin": "https://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": "http://127.0.0.1:1"}, 403),
        ({"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"}, 403),
        ({"sec-fetch-site": "same-site", "sec-fetch-mode": "no-cors"}, 403),
        ({"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}, 200),
        ({"sec-fetch-site": "same-origin"}, 200),
        ({"sec-fetch-site": "none"}, 200),
        ({"host": "localhost:7373"}, 200),
        ({"host": "10.0.0.1"}, 200),  # an address is nobody's name
        ({"host": "[::1]:7373"}, 200),
        ({}, 200),
    ],
    ids=str,
)
def test_who_is_asked_and_by_whom(database: str, headers: dict[str, str], code: int) -> None:
    with gateway(database) as url:
        assert httpx.get(f"{url}/runs", headers=headers, trust_env=False).status_code == code
        own = {"origin": url, "sec-fetch-site": "same-origin"}
        assert httpx.get(f"{url}/runs", headers=own, trust_env=False).status_code == 200


@on_newest("server")
def test_names_and_pages_that_are_allowed(database: str) -> None:
    page = {"origin": "https://app.example"}
    with gateway(database, ALL, hosts=["tide.example"], cors=["https://app.example"]) as url:
        key = {"authorization": "Bearer a-long-secret"}

        def ask(**headers: str) -> httpx.Response:
            return httpx.get(f"{url}/runs", headers={**key, **headers}, trust_env=False)

        assert ask(host="tide.example").status_code == 200 and ask(host="Tide.Example:443").status_code == 200
        assert ask(host="other.example").status_code == 421
        assert ask(**page).headers["access-control-allow-origin"] == "https://app.example"
        assert ask(origin="https://other.example").status_code == 403
    with gateway(database, ALL) as url:  # the key is what counts
        assert ask(host="any.example").status_code == 200 and ask(**page).status_code == 403


@on_newest("server")
@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", None])
def test_a_body_that_a_page_may_send_unasked_is_refused(database: str, db: Db, kind: str | None) -> None:
    run_id = waiting(db)
    headers = {} if kind is None else {"content-type": kind}
    body = b'{"decision": "approved", "actor": "page"}'
    with gateway(database) as url:
        path = f"{url}/runs/{run_id}/gates/gate_{b'g'.hex()}/resolve"
        assert httpx.post(path, content=body, headers=headers, trust_env=False).status_code == 415
    assert db.execute("select status from tidebase.gate_overview").fetchone() == ("pending",)


@contextmanager
def evil_page() -> Iterator[str]:
    """A site that is somebody else's."""

    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("content-type", "text/html")
            self.end_headers()
            self.wfile.write(b"<!doctype html><title>evil</title>")

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Page)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield f"http://localhost:{server.server_address[1]}"
    server.shutdown()


ATTACK = """async gateway => {
    const seen = [];
    const ask = async (path, options) => {
        try { seen.push((await (await fetch(gateway + path, options)).text()).includes("victim")); }
        catch (error) { seen.push(false); }
    };
    const body = JSON.stringify({decision: "approved", actor: "page"});
    await ask("/runs");
    await ask("/runs", {mode: "no-cors"});
    await ask("/runs/victim/cancel", {method: "POST", mode: "no-cors"});
    for (const type of ["text/plain", "application/x-www-form-urlencoded"])
        for (const mode of ["cors", "no-cors"])
            await ask("/runs/victim/cancel", {method: "POST", mode, body, headers: {"content-type": type}});
    await ask("/runs/victim/cancel", {method: "POST", body, headers: {"content-type": "application/json"}});
    const form = document.createElement("form");
    Object.assign(form, {method: "POST", action: gateway + "/runs/victim/cancel", enctype: "text/plain"});
    form.target = "frame";
    const frame = Object.assign(document.createElement("iframe"), {name: "frame"});
    document.body.append(frame, form);
    await new Promise(resolve => { frame.onload = resolve; form.submit(); });
    return seen;
}"""


@on_newest("server")
@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
async def test_a_page_of_another_origin_does_and_reads_nothing(database: str, db: Db) -> None:
    new_run(db, "victim")
    with gateway(database) as url, evil_page() as page_url:
        port = url.rpartition(":")[2]
        async with async_playwright() as playwright:
            rebound = f"--host-resolver-rules=MAP rebound.example 127.0.0.1:{port}"
            browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", rebound])
            page = await browser.new_page()
            await page.goto(page_url)
            assert not any(await page.evaluate(ATTACK, url))
            await page.goto(f"http://rebound.example:{port}/runs")  # the gateway as a page of that name's
            assert "victim" not in await page.content()
            await page.goto(f"{url}/runs")  # followed, or typed
            assert "victim" in await page.content()
            await browser.close()
    assert status(db, "victim") == "running"


@on_newest("server")
async def test_an_id_may_have_a_slash(database: str, tide: Tidebase) -> None:
    """The path is split before it is decoded: else the run "victim" would be cancelled here."""
    for run_id in ("victim", "victim/cancel", "a/b/c", "100%", "%2F", "ä ö"):
        tide.runs.create("w", run_id=run_id)
    with gateway(database) as url:
        async with client_of(url) as client:
            for run_id in ("victim/cancel", "a/b/c", "100%", "%2F", "ä ö"):
                spelled = httpx.URL(f"{url}/runs/{''.join(f'%{byte:02X}' for byte in run_id.encode())}")
                assert (await client.get(spelled)).json()["run"]["id"] == run_id
                assert (await client.post(f"{spelled}/cancel", json={})).status_code == 200
                assert tide.runs.get(run_id).status == "cancelled"
            assert (await client.get("/runs/%FF")).status_code == 400
    assert tide.runs.get("victim").status == "pending"


def test_no_run_ends_by_an_event_of_its_own(tide: Tidebase) -> None:
    """``end`` is what ends a stream of events."""

    def work(run: Any, _: Any) -> None:
        with pytest.raises(InvalidArgument, match="type"):
            run.emit("end")

    tide.run("w", work, run_id="r")


# -- keys


def test_a_gateway_makes_a_key_where_none_is_given(database: str) -> None:
    with started(database, "serve", "--port", "0") as process:
        assert process.stderr is not None
        text = ""
        for line in process.stderr:
            text += line
            if "running on" in line:
                break
        made, url = re.search(r"Bearer (\S+)'", text), re.search(r"http://\S+:\d+", text)
        assert made is not None and url is not None and len(made[1]) >= 32
        headers = {"authorization": f"Bearer {made[1]}"}
        assert httpx.get(f"{url[0]}/runs", headers=headers, trust_env=False).status_code == 200
        assert httpx.get(f"{url[0]}/runs", trust_env=False).status_code == 401
        process.terminate()
        process.wait(PATIENCE_S)


def test_who_may_do_what_is_said() -> None:
    with pytest.raises(InvalidArgument, match="needs keys"):
        create_app("postgresql://nowhere/")
    with pytest.raises(InvalidArgument, match="given to two keys"):
        create_app("postgresql://nowhere/", keys=[Key.parse("worker:the-same-one"), Key.parse("reader:the-same-one")])
    slow = Keyring([Key.parse("reader:a-secret")])
    assert slow.may_follow("r", slow.sign("r")[0])


# -- who sends nothing


@on_newest("server")
def test_requests_that_are_only_begun_are_given_up(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "HEAD_S", 0.2)
    monkeypatch.setattr(patience, "BODY_PAUSE_S", 0.2)
    with running(database, ALL) as server:
        address = server.servers[0].sockets[0].getsockname()
        begun = [b"", b"GET /runs HT", b"GET /health HTTP/1.1\r\nHost: localhost\r\nX-Slow:"]
        sockets = [socket.create_connection(("127.0.0.1", address[1]), 30) for _ in range(60)]
        for number, half in enumerate(sockets):
            half.sendall(begun[number % 3])
        for half in sockets:
            with half:
                assert half.recv(1000) == b""  # the gateway has hung up
        head = "POST /runs/w HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 100\r\n"
        with socket.create_connection(("127.0.0.1", address[1]), 30) as slow:
            slow.sendall(f"{head}Authorization: Bearer a-long-secret\r\n\r\n{{".encode())
            assert slow.recv(1000).startswith(b"HTTP/1.1 408")


@on_newest("server")
async def test_a_database_that_says_nothing_does_not_freeze_the_gateway(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tidebase.server.app._CALL_S", 600.0)
    silent = socket.create_server(("127.0.0.1", 0), backlog=64)
    url = f"postgresql://postgres@127.0.0.1:{silent.getsockname()[1]}/x?gssencmode=disable"
    with gateway(url) as base:
        async with client_of(base) as client:
            asking = [asyncio.create_task(client.get("/runs")) for _ in range(50)]
            accepted, _ = await asyncio.to_thread(silent.accept)  # the gateway is connecting
            assert (await client.get("/health")).json() == {"ok": True}
            assert not any(task.done() for task in asking)
            silent.close()
            accepted.close()
            answers = await asyncio.gather(*asking)
            assert {answer.status_code for answer in answers} == {503}
            assert {answer.headers["retry-after"] for answer in answers} == {"1"}


@on_newest("server")
async def test_requests_about_a_locked_run_leave_connections_to_the_others(database: str, db: Db) -> None:
    token = new_run(db, "locked")
    new_run(db, "other")
    with gateway(database, pool_size=4) as base, locked_head(database, "locked") as release:
        async with client_of(base) as client:
            cancelling = [asyncio.create_task(client.post("/runs/locked/cancel", json={})) for _ in range(20)]
            blocked = "select count(*) from pg_stat_activity where wait_event_type = 'Lock'"
            await asyncio.to_thread(poll, "one waits for the lock", lambda: db.execute(blocked).fetchone() != (0,))
            for _ in range(10):
                assert (await client.get("/runs/other")).status_code == 200
            release()
            assert {answer.status_code for answer in await asyncio.gather(*cancelling)} == {200}
    assert token and status(db, "locked") == "cancelled"


@on_newest("server")
async def test_runs_of_one_workflow_are_made_at_once(database: str, db: Db) -> None:
    """The workflow stands where the id of a run does, and nobody waits for a turn at a workflow."""
    with gateway(database, pool_size=4) as base, psycopg.connect(database) as other:
        other.execute("select tidebase.create_run('w', run_id => 'r0')")  # not committed: who makes r0, too, waits
        async with client_of(base) as client:
            first = asyncio.create_task(client.post("/runs/w", json={"runId": "r0"}))
            blocked = "select count(*) from pg_stat_activity where wait_event_type = 'Lock'"
            await asyncio.to_thread(poll, "it waits", lambda: db.execute(blocked).fetchone() != (0,))
            others = [asyncio.create_task(client.post("/runs/w", json={"runId": f"r{n}"})) for n in range(1, 9)]
            done, _ = await asyncio.wait(others, timeout=PATIENCE_S)
            assert [task.result().status_code for task in done] == [200] * 8
            other.commit()
            assert (await first).status_code == 200


@on_newest("server")
async def test_a_gateway_may_be_a_part_of_another_application(database: str, tide: Tidebase) -> None:
    tide.runs.create("w", run_id="a/b")
    inner = create_app(database, insecure=True)
    app = Starlette(routes=[Mount("/tide", app=inner)])
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
        assert (await client.get("/tide/runs/a%2Fb")).json()["run"]["id"] == "a/b"
        assert (await client.get("/tide/health")).status_code == 200
    await inner.state.database.close()
