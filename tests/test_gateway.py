"""The gateway: the published client unchanged, streams that lose nothing, keys, and nothing that makes it fall over."""

from __future__ import annotations

import asyncio
import json
import os
import random
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn

import tidebase.server
from tidebase import InvalidArgument, Tidebase
from tidebase.server import Key, create_app, serve
from tidebase.server.app import ABSENT, is_loopback
from tidebase.server.auth import Keyring
from tidebase.server.patience import Impatient
from tidebase.server.routes import ROUTES

from .conftest import Server, long, on_every_version, on_newest
from .probes.support import Connection, call, grant, new_run, poll, value, values
from .support.amounts import DESCRIBED
from .support.patience import PATIENCE_S, TEST_S
from .test_pooler import pooler

ON_NEWEST = True

SDK = Path(sys.prefix) / "sdk"
ROOT = Path(__file__).parents[1]
ALL = "worker+approver+operator+reader:a-long-secret"


@contextmanager
def running(url: str, *keys: str, **options: Any) -> Iterator[uvicorn.Server]:
    """A gateway in this process, on a free port."""
    app = create_app(url, keys=[Key.parse(key) for key in keys], insecure=not keys, **options)
    server = uvicorn.Server(
        uvicorn.Config(
            app, port=0, log_level="error", timeout_graceful_shutdown=1, lifespan="on", backlog=1024, http=Impatient
        )
    )
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    poll("the gateway is up", lambda: server.started or not thread.is_alive())
    try:
        yield server
    finally:
        server.should_exit = True
        thread.join(PATIENCE_S)


@contextmanager
def gateway(url: str, *keys: str, **options: Any) -> Iterator[str]:
    """The URL of a gateway in this process."""
    with running(url, *keys, **options) as server:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"


@pytest.fixture
def base(database: str) -> Iterator[str]:
    with gateway(database) as url:
        yield url


@on_every_version
def test_the_published_client_works_unchanged(database: str) -> None:
    if not SDK.exists():
        pytest.skip("the published client is not there: make setup")
    with gateway(database, ALL) as url:
        command = [sys.executable, str(ROOT / "tests" / "support" / "gateway_client.py"), url, "a-long-secret"]
        environment = {**os.environ, "PYTHONPATH": str(SDK), "PYTHONSAFEPATH": "1"}
        result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE_S)
    assert result.stdout == "done\n", result.stdout + result.stderr


# -- streams


async def events(client: httpx.AsyncClient, path: str, **headers: str) -> AsyncIterator[tuple[str | None, str, Any]]:
    """The events of a stream with names: id, type, data; a comment is of no type."""
    async with client.stream("GET", path, headers={"x-tidebase-events": "named", **headers}) as response:
        if response.status_code == 204:
            return
        assert response.status_code == 200, await response.aread()
        assert response.headers["content-type"].startswith("text/event-stream")
        assert response.headers["cache-control"] == "no-store" and response.headers["x-accel-buffering"] == "no"
        id, kind, data = None, "message", ""
        async for line in response.aiter_lines():
            name, _, text = line.partition(": ")
            if name == "id":
                id = text
            elif name == "event":
                kind = text
            elif name == "data":
                data += text
            elif line == "" and data:
                yield id, kind, json.loads(data)
                id, kind, data = None, "message", ""


def client_of(base: str, **options: Any) -> httpx.AsyncClient:
    limits = httpx.Limits(max_connections=None)
    return httpx.AsyncClient(base_url=base, timeout=PATIENCE_S, limits=limits, trust_env=False, **options)


async def test_a_stream_ends_with_the_run_and_a_reconnect_behind_it_is_told_so(base: str, tide: Tidebase) -> None:
    path = "/runs/plain/events"
    tide.run("w", lambda run, _: run.step("s", lambda: {"n": 1}), run_id="plain")
    async with client_of(base) as client:
        got = [event async for event in events(client, path)]
        assert [id for id, _, _ in got] == ["1", "2", "3", "4", "5", None]
        assert [kind for _, kind, _ in got][-2:] == ["run.completed", "end"]
        assert got[2][2]["payload"]["name"] == "s" and got[2][2]["runId"] == "plain"
        resumed = [id async for id, _, _ in events(client, f"{path}?after=1", **{"Last-Event-ID": "3"})]
        assert resumed == ["4", "5", None]
        assert (await client.get(f"{path}?after=5")).status_code == 204
        assert (await client.get("/runs/nothing/events")).status_code == 404
        assert (await client.get(f"{path}?after=x")).status_code == 400
        assert (await client.get(f"{path}?format=x")).status_code == 400
        agui = [data["type"] async for _, _, data in events(client, f"{path}?format=ag-ui")]
        assert agui[0] == "RUN_STARTED" and agui[-1] == "RUN_FINISHED" and "STEP_FINISHED" in agui


async def test_who_cannot_see_comments_is_told_that_the_stream_is_alive(
    base: str, tide: Tidebase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And nobody else: the published clients take all that they see for events."""
    monkeypatch.setattr(tidebase.server.events, "HEARTBEAT_S", 0.05)
    monkeypatch.setattr(tidebase.server.runlist, "HEARTBEAT_S", 0.05)
    tide.runs.create("w", run_id="r")

    async def lines(client: httpx.AsyncClient, path: str, until: str) -> list[str]:
        got = []
        async with client.stream("GET", path) as response:
            async for line in response.aiter_lines():
                got.append(line)
                if line.startswith(until):
                    break
        return got

    async with client_of(base) as client:
        for path in ("/runs/r/events?", "/overview/runs/events?"):
            assert (await lines(client, f"{path}alive=1", "event: alive"))[-1] == "event: alive"
            assert "event: alive" not in await lines(client, path, ": ping")


async def test_nobody_misses_an_event_or_sees_one_twice(
    server: Server,
    database: str,
    db: Connection,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Many subscribers of many runs, behind a pooler, who lose the connection at random and come back with the last id;
    the listening connection is killed now and then.
    """
    runs = [new_run(db) for _ in range(10)]
    tokens = {run_id: grant(db, run_id) for run_id in runs}
    dice = random.Random(5)
    monkeypatch.setenv("TIDEBASE_LISTEN_URL", database)
    folder = tmp_path_factory.mktemp("pgbouncer")
    with pooler(server, database, folder) as pooled, gateway(pooled, pool_size=5) as base:

        async def follow(client: httpx.AsyncClient, run_id: str, drops: list[int]) -> list[int]:
            seen: list[int] = []
            while True:
                limit = drops.pop() if drops else 10**9
                header = {"Last-Event-ID": str(seen[-1])} if seen else {}
                async for id, kind, _ in events(client, f"/runs/{run_id}/events", **header):
                    if kind == "end":
                        return seen
                    assert id is not None
                    seen.append(int(id))
                    limit -= 1
                    if limit <= 0:
                        break

        def write() -> None:
            for number in range(20):
                for run_id in runs:
                    query = "select tidebase.append_event(%s, %s, 'test.tick') from generate_series(1, 5)"
                    db.execute(query, [run_id, tokens[run_id]])
                if number % 7 == 3:
                    db.execute(
                        "select pg_terminate_backend(pid) from pg_stat_activity"
                        " where datname = current_database() and query like 'listen %%'"
                    )
            for run_id in runs:
                call(db, "complete_run", run_id=run_id, token=tokens[run_id])

        async with client_of(base) as client:
            plans = [(run_id, [dice.randrange(1, 30) for _ in range(3)]) for run_id in runs for _ in range(10)]
            tasks = [asyncio.create_task(follow(client, run_id, drops)) for run_id, drops in plans]
            await asyncio.to_thread(write)
            assert [await task for task in tasks] == [list(range(1, 104))] * len(plans)


async def test_open_streams_hold_no_connection_and_no_transaction(database: str, db: Connection) -> None:
    """300 streams over a pool of two: other requests are served, and nothing is idle in a transaction."""
    run_id = new_run(db)
    with gateway(database, pool_size=2) as base:
        async with client_of(base) as client:
            streams = [events(client, f"/runs/{run_id}/events") for _ in range(300)]
            firsts = await asyncio.gather(*(stream.__anext__() for stream in streams))
            assert {first[0] for first in firsts} == {"1"}
            assert (await client.get(f"/runs/{run_id}")).status_code == 200
            backends = "select count(*) from pg_stat_activity where datname = current_database()"
            assert value(db, f"{backends} and state like 'idle in%%'") == 0
            assert value(db, backends) <= 2 + 1 + 1  # the pool, the doorbell, this one
            await asyncio.to_thread(call, db, "cancel_run", run_id=run_id)
            lasts = await asyncio.gather(*(stream.__anext__() for stream in streams))
            assert {last[1] for last in lasts} == {"run.cancelled"}
            for stream in streams:
                await stream.aclose()


async def test_what_is_written_through_one_replica_is_seen_through_all(database: str) -> None:
    with gateway(database) as one, gateway(database) as other:
        async with client_of(one) as writer, client_of(other) as reader:
            run_id = (await writer.post("/runs/w", json={})).json()["run"]["id"]
            stream = events(reader, f"/runs/{run_id}/events")
            assert (await stream.__anext__())[1] == "run.created"
            owner = (await writer.post(f"/runs/{run_id}/begin")).json()["leaseOwner"]
            assert (await stream.__anext__())[1] == "run.started"
            assert (await reader.post(f"/runs/{run_id}/heartbeat", json={"leaseOwner": owner})).status_code == 200
            assert (await reader.post(f"/runs/{run_id}/complete", json={"result": 1})).status_code == 200
            assert [kind async for _, kind, _ in stream] == ["run.completed", "end"]


# -- the real guarantees behind the weaker protocol


async def test_an_owner_of_a_former_lease_is_fenced(base: str, db: Connection) -> None:
    async with client_of(base) as client:
        run_id = (await client.post("/runs/w", json={"input": {"q": 1}})).json()["run"]["id"]
        begin = f"/runs/{run_id}/begin"
        first = (await client.post(begin, headers={"x-tidebase-worker": "ada"})).json()["leaseOwner"]
        step = {"name": "s", "inputHash": "x", "leaseOwner": first}
        begun = (await client.post(f"/runs/{run_id}/steps/begin", json=step)).json()
        assert begun["action"] == "execute"
        held = await client.post(begin, headers={"x-tidebase-worker": "ada"})
        assert (held.status_code, held.json()["code"]) == (409, "run_leased")  # the same name is not the same lease
        db.execute("update tidebase.run_heads set lease_expires_at = clock_timestamp()")
        second = (await client.post(begin, headers={"x-tidebase-worker": "ada"})).json()["leaseOwner"]
        assert first != second
        done = f"/runs/{run_id}/steps/{begun['step']['id']}"
        for path, body in [
            (f"{done}/complete", {"leaseOwner": first, "output": 1}),
            (f"{done}/fail", {"leaseOwner": first, "error": {}}),
            (f"{done}/complete", {"leaseOwner": "ada", "output": 1}),
            (f"/runs/{run_id}/heartbeat", {"leaseOwner": first}),
            (f"/runs/{run_id}/complete", {"leaseOwner": first, "result": 1}),
        ]:
            refused = await client.post(path, json=body)
            assert (refused.status_code, refused.json()["code"]) == (409, "lease_lost"), path
        refused = await client.post(f"/runs/{run_id}/steps/begin", json=step)
        assert (refused.status_code, refused.json()["code"]) == (409, "lease_lost")
        again = (await client.post(f"/runs/{run_id}/steps/begin", json={**step, "leaseOwner": second})).json()
        assert again["action"] == "execute" and again["step"]["attempt"] == 2
        other = await client.post(
            f"/runs/{run_id}/steps/begin", json={**step, "leaseOwner": second, "inputHash": "another"}
        )
        assert other.json()["action"] == "input_mismatch"
        assert (other.json()["expectedInputHash"], other.json()["actualInputHash"]) == ("x", "another")


async def test_the_callers_trace_is_kept(base: str, db: Connection) -> None:
    given = f"00-{'a' * 32}-{'b' * 16}-01"
    async with httpx.AsyncClient(base_url=base) as client:
        for header, kept in (
            (given, given),
            (given.upper(), None),
            (f"ff{given[2:]}", None),
            (given.replace("a", "0"), None),
        ):
            made = await client.post("/runs/w", json={}, headers={"traceparent": header})
            run_id = made.json()["run"]["id"]
            begun = await client.post(f"/runs/{run_id}/begin", headers={"traceparent": header})
            child = await client.post(
                f"/runs/{run_id}/children", json={"name": "c", "workflowName": "w"}, headers={"traceparent": header}
            )
            assert [made.status_code, begun.status_code, child.status_code] == [200] * 3
            assert values(db, "select traceparent from tidebase.run_attempts where run_id = %s", run_id) == [kept]
            ids = [run_id, child.json()["run"]["id"]]
            assert values(db, "select traceparent from tidebase.runs where run_id = any(%s)", ids) == [kept, kept]


async def test_without_a_lease_nothing_is_written(base: str) -> None:
    async with client_of(base) as client:
        run_id = (await client.post("/runs/w", json={})).json()["run"]["id"]
        for method, path, body in [
            ("PUT", "state", {"value": 1}),
            ("PATCH", "state", {"value": {}}),
            ("POST", "usage", {}),
            ("POST", "children", {"name": "c", "workflowName": "w"}),
            ("POST", "snapshots", {"label": "l", "state": 1}),
            ("POST", "gates/begin", {"name": "g", "prompt": "?"}),
            ("POST", "complete", {"result": 1}),
            ("POST", "fail", {"error": 1}),
        ]:
            refused = await client.request(method, f"/runs/{run_id}/{path}", json=body)
            assert refused.status_code == 409, path
        assert [event["type"] for event in (await client.get(f"/runs/{run_id}")).json()["events"]] == ["run.created"]


async def test_a_gate_is_decided_once_and_by_who_is_entitled(database: str) -> None:
    with gateway(database, "worker:worker-secret", "reader:reader-secret", "approver:approver-secret") as base:
        async with client_of(base) as client:

            async def ask(role: str, method: str, path: str, body: Any = None) -> httpx.Response:
                header = {"authorization": f"Bearer {role}-secret"}
                return await client.request(method, path, json=body, headers=header)

            run_id = (await ask("worker", "POST", "/runs/w", {})).json()["run"]["id"]
            await ask("worker", "POST", f"/runs/{run_id}/begin")
            begin = {"name": "g", "prompt": "Sure?", "timeoutMs": 3_600_000}
            begun = (await ask("worker", "POST", f"/runs/{run_id}/gates/begin", begin)).json()
            secret, path = begun["gate"]["resolveToken"], f"/runs/{run_id}/gates/{begun['gate']['id']}"
            assert begun["action"] == "wait" and secret.startswith("gate_")
            assert (await ask("worker", "GET", f"/runs/{run_id}")).json()["gates"][0]["resolveToken"] == secret
            for role in ("reader", "approver"):
                assert secret not in (await ask(role, "GET", f"/runs/{run_id}")).text
                assert (await ask(role, "GET", path)).json()["gate"]["resolveToken"] is None
            yes = {"decision": "approved"}
            assert (await ask("worker", "POST", f"{path}/resolve", {**yes, "token": secret})).status_code == 403
            assert (await ask("reader", "POST", f"{path}/resolve", yes)).status_code == 409
            wrong = await ask("reader", "POST", f"{path}/resolve", {**yes, "token": "gate_0"})
            assert (wrong.status_code, wrong.json()["code"]) == (409, "not_entitled")
            unknown = await ask("reader", "POST", f"/runs/{run_id}/gates/x/resolve", {**yes, "token": "t"})
            assert unknown.status_code == 409
            assert (await ask("reader", "POST", f"{path}/resolve", {**yes, "token": secret})).status_code == 200
            again = await ask("approver", "POST", f"{path}/resolve", {"decision": "rejected"})
            assert (again.status_code, again.json()["code"]) == (409, "already_resolved")
            begun = (await ask("worker", "POST", f"/runs/{run_id}/gates/begin", begin)).json()
            assert begun["action"] == "return" and begun["gate"]["resolveToken"] is None


async def test_people_are_told_apart_by_their_keys_and_not_by_what_they_are_called(
    database: str, db: Connection, tide: Tidebase
) -> None:
    db.execute("insert into tidebase_private.settings values ('speakers', array[session_user]::text)")
    with tide.runs.attach("w", run_id="r") as session:
        session.gates.begin("g", required_approvals=2)
        personal = session.gates.secret("g", voter="ada")
    keys = ["approver@ada:ada-secret", "approver@bob:bob-secret", "approver:nobody-secret"]
    with gateway(database, *keys) as base:
        async with client_of(base) as client:

            async def vote(who: str, **more: Any) -> tuple[int, str | None]:
                header = {"authorization": f"Bearer {who}-secret"}
                body = {"decision": "approved", **more}
                answer = await client.post("/runs/r/gates/g/resolve", json=body, headers=header)
                return answer.status_code, answer.json().get("code")

            assert await vote("nobody", actor="zoe") == (409, "not_entitled")  # whose vote would it be?
            assert await vote("ada", actor="bob") == (200, None)
            assert await vote("ada", actor="zoe") == (409, "already_resolved")
            assert await vote("nobody", token=personal) == (409, "already_resolved")  # it is ada's
            assert value(db, "select voter from tidebase.gate_votes") == "ada"
            assert await vote("bob") == (200, None)
    gate = tide.gates.get("r", "g")
    assert (gate.status, gate.actor) == ("decided", "bob")
    assert [e.payload["actor"] for e in tide.runs.events("r") if e.type == "gate.voted"] == ["ada", "bob"]


# -- keys


async def test_no_route_answers_without_the_right_key(database: str, db: Connection) -> None:
    """On every route, before anything is read: a body that is no JSON, and too large, is not even looked at."""
    before = value(db, "select count(*) from tidebase.events")
    keys = [f"{role}:{role}-secret" for role in ("worker", "approver", "operator", "reader")]
    with gateway(database, *keys, max_body=100) as base:
        async with client_of(base) as client:
            for route in ROUTES:
                path = route.path.format(run_id="r", step_id="s", gate_id="g", queue="q", schedule="s")
                for header in ({}, {"authorization": "Bearer wrong-secret"}, {"authorization": "Basic cmVhZGVy"}):
                    answer = await client.request(route.method, path, content=b"x" * 1000, headers=header)
                    assert (answer.status_code, answer.json()["error"]) == (401, "unauthorized"), path
                for role in {"worker", "approver", "operator", "reader"} - route.roles:
                    header = {"authorization": f"Bearer {role}-secret"}
                    answer = await client.request(route.method, path, content=b"x" * 1000, headers=header)
                    assert answer.status_code == 403, (path, role)
            assert (await client.get("/runs/r/events")).status_code == 401
            assert (await client.get("/runs/r/events?token=wrong-secret")).status_code == 401
            assert (await client.post("/runs/r/events/token")).status_code == 401
            assert (await client.get("/health")).json() == {"ok": True}
            assert (await client.get("/ready")).json() == {"ready": True}
            assert (await client.get("/metrics")).status_code == 401
            assert (await client.get("/openapi.json")).status_code == 200
            worker = {"authorization": "Bearer worker-secret"}
            large = await client.post("/runs/w", json={"input": "x" * 200}, headers=worker)
            assert (large.status_code, large.json()["code"]) == (413, "too_large")
    assert value(db, "select count(*) from tidebase.events") == before


async def test_what_is_absent_says_so_to_whoever_has_a_key(database: str) -> None:
    with gateway(database, "reader:reader-secret") as base:
        async with client_of(base) as client:
            for name, path in ABSENT.items():
                for rest in ("", "/a%2Fb/c"):
                    place = path.format(run_id="r") + rest
                    assert (await client.post(place, content=b"x")).status_code == 401, place
                    answer = await client.put(place, headers={"authorization": "Bearer reader-secret"})
                    assert (answer.status_code, answer.json()["name"]) == (501, name)


async def test_a_stream_takes_a_token_that_is_short_lived_and_for_one_run(database: str, tide: Tidebase) -> None:
    tide.runs.create("w", run_id="r")
    tide.runs.cancel("r")
    keyring = Keyring([Key.parse("reader:reader-secret")])
    with gateway(database, "reader:reader-secret") as base:
        async with client_of(base) as client:
            header = {"authorization": "Bearer reader-secret"}
            token = (await client.post("/runs/r/events/token", headers=header)).json()["token"]
            assert len([event async for event in events(client, f"/runs/r/events?token={token}")]) == 3
            assert keyring.may_follow("r", token)  # another replica with the same keys
            expired = "1." + token.partition(".")[2]
            assert not keyring.may_follow("other", token) and not keyring.may_follow("r", expired)
            assert not Keyring([Key.parse("reader:other-secret")]).may_follow("r", token)
            assert (await client.get(f"/runs/other/events?token={token}")).status_code == 401
            assert (await client.get("/runs", params={"token": token})).status_code == 401
            # As the published client does it.
            assert len([event async for event in events(client, "/runs/r/events?token=reader-secret")]) == 3


def test_a_gateway_without_keys_stays_on_its_machine() -> None:
    assert is_loopback("127.0.0.1") and is_loopback("::1") and is_loopback("localhost")
    for host in ("0.0.0.0", "::", "example.com", "10.0.0.1"):
        with pytest.raises(InvalidArgument, match="loopback"):
            serve(host=host)
    for text in ("secret", "boss:long-enough", "worker:short", ":long-enough", "worker"):
        with pytest.raises(InvalidArgument):
            Key.parse(text)
    assert "long-enough" not in repr(Key.parse("worker:long-enough"))


# -- whatever is sent


def described(url: str, folder: Path, *options: str) -> list[str]:
    """What Schemathesis finds wrong with a gateway by its own OpenAPI document."""
    # A limit in bytes, and what depends on what is stored, cannot be said in a schema: such a refusal is no fault.
    # What v0.6 has and the gateway has not is answered with 501.
    config = folder / "schemathesis.toml"
    config.write_text(
        '[checks.positive_data_acceptance]\nexpected-statuses = ["2xx", 400, 404, 409, 422]\n'
        '[checks.not_a_server_error]\nexpected-statuses = ["2xx", "3xx", "4xx", 501]\n',
        "utf-8",
    )
    with gateway(url, ALL) as base:
        command = [
            *[str(Path(sys.executable).with_name("schemathesis")), "--config-file", str(config), "run"],
            *[f"{base}/openapi.json", "--header", "Authorization: Bearer a-long-secret"],
            *["--exclude-path-regex", "/(events|session)$", "--continue-on-failure", *options],
        ]
        result = subprocess.run(command, capture_output=True, text=True, timeout=TEST_S, cwd=folder)
    return [] if result.returncode == 0 else [result.stdout[-6000:]]


@long
@on_newest("server")
def test_no_fault_is_found_by_its_own_description(database: str, tmp_path: Path) -> None:
    """Requests that fit the OpenAPI document, and requests that do not."""
    few = ["--phases", "examples,fuzzing", "--max-examples", str(DESCRIBED.test), "--seed", "7"]
    assert described(database, tmp_path, *few) == []


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b"", 200),
        (b"{}", 200),
        (b"{", 400),
        (b"[]", 400),
        (b"null", 400),
        (b'{"metadata": 1}', 400),
        (b'{"input": "\\u0000"}', 400),
        (b'{"input": "\\ud800"}', 400),
        (b'{"input": NaN}', 400),
        (b'{"input": "\xff"}', 400),
        (b'{"input": ' + b"[" * 5000 + b"]" * 5000 + b"}", 400),
        (b'{"input": 1e400}', 400),
        (b'{"recoveryWebhook": "ftp://x"}', 400),
        (b'{"channels": [{"type": "webhook"}]}', 400),
        (b'{"channels": [{"type": "webhook", "url": "https://x.example"}]}', 200),
        (b'{"unknown": 1, "input": 12345678901234567890123}', 200),
    ],
    ids=lambda value: str(value)[:30],
)
async def test_bodies_of_all_kinds(base: str, content: bytes, status: int) -> None:
    async with client_of(base) as client:
        answer = await client.post("/runs/w", content=content, headers={"content-type": "application/json"})
    assert answer.status_code == status, answer.text
    assert status == 200 or answer.json()["error"]


async def test_paths_of_all_kinds(base: str) -> None:
    async with client_of(base) as client:
        for path, status in [
            ("/runs/%00", 400),
            ("/runs/%F0%9F%98%80", 404),
            ("/runs/" + "x" * 5000, 404),
            ("/runs/'%20or%201=1%20--", 404),
            ("/runs?limit=0", 400),
            ("/runs?limit=x", 400),
            ("/runs?before=nothing", 404),
            ("/runs?status=%00", 400),
            ("/nothing", 404),
        ]:
            answer = await client.get(path)
            assert answer.status_code == status, (path, answer.text)
            assert answer.json()["error"] and answer.json()["code"]
        wrong = await client.request("DELETE", "/runs/r")
        assert (wrong.status_code, set(wrong.headers["allow"].split(", "))) == (405, {"HEAD", "GET", "POST"})
