"""Studio's side of the gateway: who is signed in and how, what is read for people, and what they do."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import json
import re
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from click.testing import CliRunner
from starlette.applications import Starlette
from starlette.routing import Mount

import tidebase.server
import tidebase.studio
from tidebase import Tidebase
from tidebase.cli import main
from tidebase.server import Key, create_app, runlist
from tidebase.server.auth import Keyring
from tidebase.server.overview import Found
from tidebase.studio.pages import FOLDER, files

from .probes.support import Connection, call, value, values
from .test_gateway import client_of, gateway, running

ON_NEWEST = True

KEYS = ("operator+approver+worker@ada:ada-secret", "reader:reader-secret")
VENDORED = Path(tidebase.studio.__file__).with_name("VENDORED.md")


async def sign_in(client: httpx.AsyncClient, **body: str) -> httpx.Response:
    return await client.post("/session", json=body, headers={"origin": str(client.base_url).rstrip("/")})


# -- the files


def test_the_files_are_small_and_as_they_were_published() -> None:
    assert sum(len(file.compressed) for file in files().values()) < 80_000
    assert all(gzip.decompress(file.compressed) == file.content for file in files().values())
    listed = dict(re.findall(r"^\| ([\w./-]+) \|.*`([0-9a-f]{64})` \|$", VENDORED.read_text("utf-8"), re.MULTILINE))
    assert {f"static/{name}" for name in files() if name.startswith("vendor/")} <= listed.keys()
    for name, checksum in listed.items():
        assert hashlib.sha256((VENDORED.parent / name).read_bytes()).hexdigest() == checksum, name


def test_nothing_in_the_page_leads_out_of_it_or_stands_inline() -> None:
    page = (FOLDER / "index.html").read_text("utf-8")
    assert not re.findall(r"<script(?![^>]*\bsrc=)|<style|\son\w+=|style=", page)
    for name, file in files().items():
        text = file.content.decode()
        if not name.startswith("vendor/"):
            assert set(re.findall(r"https?://[^\s\"'`]+", text)) <= {"http://www.w3.org/2000/svg"}, name
            assert not re.findall(r"innerHTML|dangerouslySetInnerHTML|document\.write|\beval\(|new Function", text), (
                name
            )
        for imported in re.findall(r"(?:from|import) \"([^\"]+)\"", text):
            assert imported.startswith("./") and imported.removeprefix("./") in files(), (name, imported)


async def test_the_page_stands_under_any_path_and_lets_no_strangers_code_in(database: str) -> None:
    with gateway(database, *KEYS) as base:
        async with client_of(base) as client:
            html = {"accept": "text/html"}
            for place, leads in (("/", "studio/"), ("/studio", "studio/")):
                answer = await client.get(place, headers=html)
                assert (answer.status_code, answer.headers["location"]) == (307, leads)
            assert (await client.get("/")).status_code == 404  # a program is told that there is nothing
            answer = await client.get("/studio/")
            policy = answer.headers["content-security-policy"]
            assert "script-src 'self';" in policy and "unsafe" not in policy and "frame-ancestors 'none'" in policy
            assert (
                answer.headers["x-content-type-options"] == "nosniff" and "text/html" in answer.headers["content-type"]
            )
            script = await client.get("/studio/app.js")
            assert (
                script.headers["content-type"].startswith("text/javascript")
                and "gzip" in script.headers["content-encoding"]
            )
            tag = {"if-none-match": script.headers["etag"]}
            assert (await client.get("/studio/app.js", headers=tag)).status_code == 304
            assert (await client.get("/studio/app.js", headers={"accept-encoding": "identity"})).text == script.text
            for path in (
                "../pages.py",
                "..%2Fpages.py",
                "%2Fetc%2Fpasswd",
                "vendor",
                "no.js",
                "vendor/htm-preact.d.ts",
            ):
                assert (await client.get(f"/studio/{path}")).status_code == 404, path


async def test_it_works_below_a_path_of_somebody_elses(database: str) -> None:
    below = create_app(database, keys=[Key.parse(key) for key in KEYS])
    transport = httpx.ASGITransport(app=Starlette(routes=[Mount("/under/here", app=below)]))
    async with httpx.AsyncClient(transport=transport, base_url="http://proxy.example") as client:
        led = await client.get("/under/here/studio")
        assert str(led.next_request and led.next_request.url) == "http://proxy.example/under/here/studio/"
        assert (await client.get("/under/here/studio/app.js")).status_code == 200
        own = {"origin": "http://proxy.example"}
        assert (await client.post("/under/here/session", json={"key": "ada-secret"}, headers=own)).status_code == 200
        assert (await client.get("/under/here/me")).json()["name"] == "ada"
        assert [cookie.path for cookie in client.cookies.jar] == ["/under/here"]


@pytest.mark.parametrize("run", [None, "a/b?"])
def test_the_command_opens_a_browser_that_is_signed_in(run: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}
    monkeypatch.setattr(tidebase.server, "serve", lambda database, **options: given.update(options))
    arguments = ["studio", *([] if run is None else [run]), "--database", "postgresql://nowhere.example/x"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    (key,) = given["keys"]
    assert key.roles == {"worker", "approver", "operator", "reader"} and key.name and key.secret in result.output
    assert given["opened"] == ("runs" if run is None else "runs/a%2Fb%3F") and given["port"] in (0, 7374)
    assert CliRunner().invoke(main, [*arguments, "--no-browser"]).exit_code == 0 and given["opened"] is None
    assert CliRunner().invoke(main, [*arguments, "--host", "0.0.0.0"]).exit_code == 2


# -- who looks


async def test_a_browser_shows_its_key_once_and_has_a_cookie_instead(database: str, tide: Tidebase) -> None:
    with tide.runs.attach("w", run_id="r") as session:
        session.gates.begin("g")
    with gateway(database, *KEYS) as base:
        async with client_of(base) as client:
            own = {"origin": base}
            assert (await client.get("/me")).status_code == 401
            assert (await sign_in(client, key="wrong-secret")).status_code == 401
            assert (await client.post("/session", json={"key": "ada-secret"})).status_code == 403  # by no page of ours
            form = await client.post(
                "/session", content=b'{"key": "ada-secret"}', headers={**own, "content-type": "text/plain"}
            )
            assert form.status_code == 415
            signed = await sign_in(client, key="ada-secret")
            assert signed.json() == {
                "name": "ada",
                "roles": ["approver", "operator"],
                "keyed": True,
                "version": tidebase.__version__,
            }
            cookie = signed.headers["set-cookie"]
            assert (
                "HttpOnly" in cookie and "SameSite=strict" in cookie and "Path" not in cookie and "secret" not in cookie
            )
            assert "Secure" not in cookie
            assert (await client.get("/me")).json()["name"] == "ada"

            # It reads with the cookie alone, and changes something only from its own page, with JSON.
            cancel = {"json": {"reason": "enough"}}
            for headers in ({}, {"origin": "http://localhost:1"}, {"origin": "null"}, {"sec-fetch-site": "same-site"}):
                assert (await client.post("/runs/r/cancel", **cancel, headers=headers)).status_code == 403, headers
            plain = {**own, "content-type": "text/plain"}
            assert (await client.post("/runs/r/cancel", content=b"{}", headers=plain)).status_code == 415
            # A worker's part is none of it: neither its calls nor its secrets.
            assert (await client.post("/runs/w", json={}, headers=own)).status_code == 403
            assert (await client.get("/runs/r")).json()["gates"][0]["resolveToken"] is None
            assert "gate_" not in json.dumps((await client.get("/overview/inbox")).json()["gates"][0]).replace(
                "gate_Zw", ""
            )
            assert (await client.post("/runs/r/cancel", **cancel, headers=own)).status_code == 200
            # A key that is sent counts for more, also a wrong one.
            assert (await client.get("/me", headers={"authorization": "Bearer wrong-secret"})).status_code == 401
            assert (await client.delete("/session", headers=own)).status_code == 200
            assert (await client.get("/me")).status_code == 401
    assert tide.runs.get("r").cancel_actor == "ada"


def test_a_session_is_signed_and_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = [Key.parse(key) for key in KEYS]
    keyring, replica, other = Keyring(keys), Keyring(keys), Keyring([Key.parse("reader:other-secret")])
    cookie = keyring.session(keys[0])
    found = replica.of_session(cookie)
    assert found is not None and (found.name, found.roles) == ("ada", {"approver", "operator"})
    assert other.of_session(cookie) is None and other.cookie != keyring.cookie == replica.cookie
    who, expires, mac = cookie.split(".")
    for forged in (
        f"{who}.{int(expires) + 1}.{mac}",
        f"{who[::-1]}.{expires}.{mac}",
        "",
        ".",
        "..",
        "é.1.x",
        cookie[:-1],
    ):
        assert keyring.of_session(forged) is None
    ticket = keyring.ticket(keys[1])
    assert keyring.of_session(ticket) is None and keyring.take(cookie) is None  # each for its own purpose
    taken = keyring.take(ticket)
    assert taken is not None and taken.roles == {"reader"}
    assert keyring.take(ticket) is None
    late = keyring.ticket(keys[1])
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 61)
    assert keyring.take(late) is None and keyring.of_session(cookie) is not None
    monkeypatch.setattr(time, "time", lambda: now + 13 * 3600)
    assert keyring.of_session(cookie) is None


async def test_without_keys_there_is_nothing_to_sign_in_with_and_no_other_name(database: str) -> None:
    with gateway(database) as base:
        async with client_of(base) as client:
            me = (await client.get("/me")).json()
            assert me["keyed"] is False and me["roles"] == ["approver", "operator", "reader", "worker"]
            assert "set-cookie" not in (await sign_in(client, key="anything")).headers
            for path in ("/studio/", "/me", "/overview/runs", "/overview/runs/events"):
                rebound = await client.get(path, headers={"host": "evil.example"})
                assert rebound.status_code == 421, path
            foreign = {"origin": "https://evil.example"}
            assert (await client.post("/bulk/cancel", json={"workflow": "w"}, headers=foreign)).status_code == 403


# -- what is read


async def found(client: httpx.AsyncClient, **query: Any) -> list[str]:
    """The ids that a search finds, page by page."""
    ids: list[str] = []
    while True:
        answer = await client.get("/overview/runs", params=query)
        assert answer.status_code == 200, answer.text
        page = answer.json()
        ids += [run["runId"] for run in page["runs"]]
        if page["next"] is None:
            return ids
        query.update(page["next"])


async def test_runs_are_found_by_every_filter_whatever_the_page(database: str, db: Connection) -> None:
    db.execute("select tidebase.put_queue('q')")
    db.execute(
        "select tidebase.enqueue_run('w' || n % 2, queue => case when n % 3 = 0 then 'q' else 'p' end,"
        " run_id => 'run-' || n,"
        """ metadata => jsonb_build_object('n', n % 4)) from generate_series(1, 24) n"""
    )
    db.execute("select tidebase.create_run('W0, and more', run_id => 'a,b%2C'), tidebase.cancel_run('run-24', 'no')")
    every = values(db, "select run_id from tidebase.run_overview order by created_at desc, run_id desc")

    def those(condition: str) -> list[str]:
        return values(
            db, f"select run_id from tidebase.run_overview where {condition} order by created_at desc, run_id desc"
        )

    filters: list[tuple[dict[str, str], str]] = [
        ({}, "true"),
        ({"status": "queued"}, "status = 'queued'"),
        ({"workflow": "w1"}, "workflow = 'w1'"),
        ({"workflow": "w0", "status": "cancelled"}, "workflow = 'w0' and status = 'cancelled'"),
        ({"queue": "q"}, "queue = 'q'"),
        ({"queue": "q", "status": "queued", "workflow": "w1"}, "queue = 'q' and status = 'queued' and workflow = 'w1'"),
        ({"matching": "W0"}, "workflow ~* 'w0'"),
        ({"matching": "N-2"}, "run_id ~ 'n-2'"),
        ({"metadata": '{"n": 3}'}, "metadata @> '{\"n\": 3}'"),
        ({"metadata": '{"n": 3}', "queue": "p", "roots": "true"}, "metadata @> '{\"n\": 3}' and queue = 'p'"),
        ({"createdBefore": "2000-01-01T00:00:00Z"}, "false"),
    ]
    with gateway(database) as base:
        async with client_of(base) as client:
            for given, condition in filters:
                for sizes in ({}, {"limit": 3}, {"limit": 1, "effort": 1}, {"effort": 5}):
                    assert await found(client, **given, **sizes) == those(condition), (given, sizes)
            page = (
                await client.get("/overview/runs", params={"matching": "nothing is like this", "effort": 10})
            ).json()
            assert (page["runs"], page["examined"]) == ([], 10) and page["next"]["before"] == every[9]
            ids = (await client.get("/overview/runs", params={"ids": "a%2Cb%252C,run-3,gone"})).json()["runs"]
            assert [run["runId"] for run in ids] == ["a,b%2C", "run-3"]
            for query in (
                "limit=0",
                "effort=0",
                "metadata=[1]",
                "metadata={",
                "status=odd",
                "createdAfter=x",
                "before=gone",
                "createdAfter=2000-01-01T00:00:00",
                "matching=",
                "matching=%00",
                "ids=" + "x," * 300,
            ):
                assert (await client.get(f"/overview/runs?{query}")).status_code in (400, 404), query


async def test_the_inbox_begins_with_what_is_nearest_to_its_deadline(
    database: str, db: Connection, tide: Tidebase
) -> None:
    with tide.runs.attach("w", run_id="r") as session:
        for name, timeout in (("late", 900), ("never", None), ("soon", 60), ("never 2", None)):
            session.gates.begin(name, **({} if timeout is None else {"timeout_s": timeout}))
        session.gates.begin("two", required_approvals=2, timeout_s=3600)
        tide.gates.decide("r", "two", "approved")
    with gateway(database) as base:
        async with client_of(base) as client:
            names, query = [], {"limit": "2"}
            while query:
                page = (await client.get("/overview/inbox", params=query)).json()
                names += [gate["name"] for gate in page["gates"]]
                votes = {gate["name"]: len(gate["ballots"]) for gate in page["gates"]}
                assert votes.get("two", 1) == 1
                query = {**page["next"], "limit": "2"} if page["next"] else {}
            assert names == ["soon", "late", "two", "never", "never 2"]
            assert (await client.get("/overview/inbox?afterRun=r&afterGate=gone")).status_code == 404


async def messages(client: httpx.AsyncClient, path: str, until: int) -> list[tuple[str, Any]]:
    """So many messages of a stream about the list itself."""
    got: list[tuple[str, Any]] = []
    async with client.stream("GET", path) as response:
        assert response.status_code == 200, await response.aread()
        kind = ""
        async for line in response.aiter_lines():
            if line.startswith("event: "):
                kind = line[7:]
            elif line.startswith("data: ") and kind != "counts":
                got.append((kind, json.loads(line[6:])))
                if len(got) == until:
                    break
    return got


async def test_a_list_is_told_as_it_changes_and_asked_for_once(
    database: str, db: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    db.execute("select tidebase.create_run('w', run_id => 'a'), tidebase.create_run('other', run_id => 'z')")
    with running(database) as server:
        base = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
        lists = server.config.app.state.lists  # type: ignore[union-attr]
        async with client_of(base) as client:
            path = "/overview/runs/events?workflow=w&status=pending"
            tasks = [asyncio.create_task(messages(client, path, 3)) for _ in range(5)]
            while sum(watched.viewers for watched in lists._watched.values()) < 10:
                await asyncio.sleep(0.01)
            assert len(lists._watched) == 2  # the list and the counts, whoever looks
            while not all(watched.found is not None for watched in lists._watched.values()):
                await asyncio.sleep(0.01)
            call(db, "create_run", workflow="w", run_id="b")
            (watched,) = [one for one in lists._watched.values() if isinstance(one.found, Found)]
            while len(watched.found.runs) < 2:
                await asyncio.sleep(0.01)
            await asyncio.sleep(0)
            call(db, "cancel_run", run_id="a")
            for got in await asyncio.gather(*tasks):
                (first, shown), (second, came), (third, went) = got
                assert (first, second, third) == ("list", "change", "change")
                assert [run["runId"] for run in shown["runs"]] == ["a"]
                assert [run["runId"] for run in came["runs"]] == ["b"] and came["gone"] == []
                assert went == {"runs": [], "gone": ["a"]}
            while lists._watched:
                await asyncio.sleep(0.01)
            assert (await client.get("/overview/runs/events?status=odd")).status_code == 400
            monkeypatch.setattr(runlist, "MOST", 0)
            assert (await client.get("/overview/runs/events")).status_code == 503


async def test_what_lies_deeper_than_a_list_looks_is_not_said_to_be_gone(
    database: str, db: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runlist, "EFFORT", 4)
    for n in range(3):
        call(db, "create_run", workflow="w", run_id=f"w-{n}")
    with running(database) as server:
        base = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
        lists = server.config.app.state.lists  # type: ignore[union-attr]
        async with client_of(base) as client:
            task = asyncio.create_task(messages(client, "/overview/runs/events?matching=w-", 3))
            while not any(isinstance(watched.found, Found) for watched in lists._watched.values()):
                await asyncio.sleep(0.01)
            (watched,) = [one for one in lists._watched.values() if isinstance(one.found, Found)]
            for n in range(2):
                call(db, "create_run", workflow="w", run_id=f"other-{n}")
            # w-0 is the fifth now.
            while len(watched.found.runs) > 2:
                await asyncio.sleep(0.01)
            call(db, "cancel_run", run_id="w-2")
            while watched.found.runs[0].status != "cancelled":
                await asyncio.sleep(0.01)
            call(db, "create_run", workflow="w", run_id="w-3")
            (first, shown), (_, changed), (_, came) = await task
            assert first == "list" and [run["runId"] for run in shown["runs"]] == ["w-2", "w-1", "w-0"]
            assert shown["since"] is None
            assert [run["runId"] for run in changed["runs"]] == ["w-2"] and changed["gone"] == []
            assert [run["runId"] for run in came["runs"]] == ["w-3"] and came["gone"] == []
            ((_, shown),) = await messages(client, "/overview/runs/events?matching=w-", 1)
            assert shown["since"]["runId"] == "w-2"


async def test_who_only_reads_writes_nothing(database: str, db: Connection, tide: Tidebase) -> None:
    """Over connections that may not write."""
    with tide.runs.attach("w", run_id="r") as session:
        session.step("s", lambda: 1)
        session.gates.begin("g", timeout_s=60)
    read_only = f"{database}&options=-c%20default_transaction_read_only%3Don"
    with gateway(read_only, "reader:reader-secret") as base:
        async with client_of(base, headers={"authorization": "Bearer reader-secret"}) as client:
            for path in (
                "runs",
                "runs?matching=r",
                "counts",
                "runs/r",
                "runs/r/usage",
                "runs/r/children",
                "runs/r/steps/s",
                "inbox",
                "runs/r/differences?other=r",
                "queues",
                "workers",
                "schedules",
                "fires?cron=*+*+*+*+*",
                "health",
            ):
                answer = await client.get(f"/overview/{path}")
                assert answer.status_code == 200, (path, answer.text)
            ((kind, _),) = await messages(client, "/overview/runs/events", 1)
            assert kind == "list"


# -- what people do


async def test_what_is_done_is_said_to_be_theirs_and_a_lost_race_is_no_error(
    database: str, db: Connection, tide: Tidebase
) -> None:
    with tide.runs.attach("w", run_id="r") as session:
        session.gates.begin("g", options=["yes", "no"])
        session.step("s", lambda: {"n": 1}, input=1)
    with gateway(database, *KEYS) as base:
        async with client_of(base, headers={"authorization": "Bearer ada-secret"}) as client:

            async def do(path: str, body: Any = None, method: str = "POST", status: int = 200) -> Any:
                answer = await client.request(method, path, json=body or {})
                assert answer.status_code == status, (path, answer.text)
                return answer.json()

            decided = await do(
                "/runs/r/gates/g/decide", {"decision": "yes", "payload": {"n": 1}, "comment": "fine", "actor": "bob"}
            )
            assert (decided["accepted"], decided["actor"], decided["payload"]) == (True, "ada", {"n": 1})
            lost = await do("/runs/r/gates/g/decide", {"decision": "no"})
            assert (lost["accepted"], lost["decision"], lost["actor"], lost["comment"]) == (False, "yes", "ada", "fine")
            await do("/runs/r/gates/g/decide", {}, status=400)
            assert (await do("/runs/r/budget", {"costUsd": 2.5, "reason": "enough"}))["run"]["runId"] == "r"
            forked = (await do("/runs/r/fork", {"throughStep": "step_cw", "input": {"x": 1}}))["runId"]
            assert tide.runs.get(forked).input == {"x": 1}
            await do("/runs/r/fork", {"throughStep": "none"}, status=409)
            assert (await do(f"/runs/{forked}/move", {"queue": "q", "priority": 3})) == {"moved": True}
            assert (await do("/runs/r/move", {"queue": "q"})) == {"moved": True}
            assert (await do(f"/runs/{forked}/resume"))["recovery"] == 1
            counted = await do("/bulk/cancel", {"workflow": "w", "dryRun": True})
            assert counted == {"matched": 2, "done": 0}
            await do("/bulk/cancel", {"dryRun": True}, status=400)
            assert await do("/bulk/move", {"queue": "q", "toQueue": "p"}) == {"matched": 2, "done": 2}
            assert await do("/bulk/cancel", {"queue": "p", "max": 1}) == {"matched": 1, "done": 1}
            assert await do("/bulk/retry", {"workflow": "w"}) == {"matched": 0, "done": 0}
            assert await do("/queues/p/pause") == {"changed": True} and await do("/queues/p/pause") == {
                "changed": False
            }
            assert await do("/queues/p/resume") == {"changed": True}
            limits = (await do("/queues/p/limits", {"concurrency": 3, "rate": 5, "ratePeriodS": 10}, "PUT"))["queue"]
            assert (limits["concurrency"], limits["ratePeriodS"]) == (3, 10)
            limits = (await do("/queues/p/limits", {"rate": 5}, "PUT"))["queue"]
            assert (limits["concurrency"], limits["rate"]) == (None, 5)
            settings = {
                "workflow": "w",
                "cron": "0 8 * * *",
                "timezone": "Europe/Berlin",
                "queue": "p",
                "overlap": "skip",
            }
            assert (await do("/schedules/s/settings", settings, "PUT"))["schedule"]["overlap"] == "skip"
            await do("/schedules/s/settings", {"workflow": "w", "cron": "nonsense"}, "PUT", status=400)
            run_id = (await do("/schedules/s/trigger", {"input": {"by": "hand"}}))["runId"]
            assert tide.runs.get(run_id).input == {"by": "hand"}
            await do("/schedules/none/trigger", status=404)
            (schedule,) = (await client.get("/overview/schedules")).json()["schedules"]
            assert len(schedule["nextFires"]) == 5
    actors = "select distinct payload ->> 'actor' from tidebase.events where payload ? 'actor'"
    assert values(db, actors) == ["ada"]
    assert value(db, "select count(*) from tidebase.events where type = 'run.moved'") == 4
