"""Channels against a real server and real receivers: in order, signed, at least once; none in the way of another."""

from __future__ import annotations

import json
import logging
import socket
import subprocess
import sys
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest

from tidebase import AsyncTidebase, InvalidArgument, NotFound, RunNotFound, Tidebase
from tidebase.domain import dispatcher as dispatchers
from tidebase.domain.dispatcher import ChannelDispatcher
from tidebase.domain.webhook import SECRET_VARIABLE, SIGNATURE, SIGNATURE_V2, verify_webhook_signature

from .conftest import long, on_every_version
from .support.gate import Db, create_run, new_run, reached, row, user, value, values
from .support.patience import PATIENCE_S
from .support.receiver import Answer, Receiver
from .test_cli import Terminal, started
from .test_gateway import gateway

ON_NEWEST = True

SECRET = "the-channel's-own"


class Listeners(Receiver):
    """Receivers by their paths. A path may be held: its requests are answered when it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.held: dict[str, threading.Event] = {}
        self.status: dict[str, int] = defaultdict(lambda: 200)

    def receive(self, path: str, headers: dict[str, str], body: bytes) -> Answer:
        self.requests.append((path, headers, body))
        if path in self.held:
            self.held[path].wait(PATIENCE_S)
        return self.status[path], {}, b""

    def at(self, path: str) -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    def told(self, path: str) -> list[int]:
        """The numbers of the events that a path was told, in the order in which they came."""
        return [json.loads(body)["seq"] for at, _, body in list(self.requests) if at == path]

    def hold(self, path: str) -> threading.Event:
        self.held[path] = threading.Event()
        return self.held[path]


@pytest.fixture
def listeners() -> Iterator[Listeners]:
    with Listeners() as listeners:
        yield listeners
        for held in listeners.held.values():
            held.set()


@contextmanager
def nobody() -> Iterator[str]:
    """The URL of a port at which connections are accepted, and nothing is ever answered."""
    with socket.create_server(("127.0.0.1", 0), backlog=200) as listening:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/"


def note(db: Db, run_id: str, count: int = 1) -> None:
    for number in range(count):
        db.execute("select tidebase.append_event(%s, 1, 'note', %s::jsonb)", [run_id, json.dumps({"n": number})])


def complete(db: Db, run_id: str) -> None:
    db.execute("select tidebase.complete_run(%s, 1)", [run_id])


def make_due(db: Db) -> None:
    db.execute("update tidebase.channels set next_at = clock_timestamp() where status = 'active'")


def channel_status(db: Db, run_id: str) -> list[str]:
    return values(db, "select status from tidebase.channels where run_id = %s order by channel", run_id)


def dispatcher(tide: Tidebase, **options: Any) -> ChannelDispatcher:
    return tide.channel_dispatcher(secret="whsec", allow_private=True, **options)


@on_every_version
def test_the_events_of_a_run_arrive_signed_and_in_order(tide: Tidebase, db: Db, listeners: Listeners) -> None:
    new_run(db, "r")
    assert tide.runs.add_channel("r", listeners.at("/own"), secret=SECRET) == 1
    assert tide.runs.add_channel("r", listeners.at("/shared"), events=["note", "run.completed"]) == 2
    note(db, "r", 3)
    assert dispatcher(tide).dispatch() == 8
    complete(db, "r")
    make_due(db)
    assert dispatcher(tide).dispatch() == 2
    assert (listeners.told("/own"), listeners.told("/shared")) == ([1, 2, 3, 4, 5, 6], [3, 4, 5, 6])
    assert channel_status(db, "r") == ["delivered", "delivered"]
    first = row(db, "select created_at from tidebase.events where run_id = 'r' and seq = 1")[0]
    for path, headers, body in listeners.requests:
        secret, other = (SECRET, "whsec") if path == "/own" else ("whsec", SECRET)
        url = listeners.at(path)
        assert verify_webhook_signature(body, headers[SIGNATURE], secret)
        assert verify_webhook_signature(body, headers[SIGNATURE_V2], secret, url=url)
        assert not verify_webhook_signature(body, headers[SIGNATURE_V2], other, url=url)
    sent = {json.loads(body)["seq"]: json.loads(body) for path, _, body in listeners.requests if path == "/own"}
    at = sent[1].pop("createdAt")
    assert at.endswith("Z") and first.isoformat()[:23] == at[:23]
    assert sent[1] == {
        "type": "run.created", "runId": "r", "workflowName": "w", "seq": 1, "payload": {"workflow": "w"}
    }  # fmt: skip
    assert sent[4]["payload"] == {"n": 1}


def test_a_large_number_is_sent_as_it_was_stored(tide: Tidebase, db: Db, listeners: Listeners) -> None:
    new_run(db, "r")
    tide.runs.add_channel("r", listeners.at("/x"), events=["note"])
    db.execute("select tidebase.append_event('r', 1, 'note', '{\"n\": 12345678901234567890.10}')")
    dispatcher(tide).dispatch()
    assert b"12345678901234567890.10" in listeners.requests[0][2]


def test_a_dead_receiver_holds_up_nobody_else(tide: Tidebase, db: Db, listeners: Listeners) -> None:
    """Neither another channel of the same run, nor another run, nor a worker; more of them than have room at once."""
    with nobody() as silent:
        for number in range(12):
            create_run(db, f"dead {number}")
            tide.runs.add_channel(f"dead {number}", silent)
        new_run(db, "r")
        tide.runs.add_channel("r", silent)
        tide.runs.add_channel("r", listeners.at("/alive"))
        one = dispatcher(tide, timeout_s=0.5, at_once=8)
        with one.running():
            for step in range(1, 6):
                note(db, "r")
                reached(lambda n=step + 2: listeners.told("/alive")[-1:] == [n])  # type: ignore[misc]
            complete(db, "r")
            reached(lambda: channel_status(db, "r")[1] == "delivered")
            reached(lambda: value(db, "select min(failures) from tidebase.channels where url = %s", silent) > 0)
    assert listeners.told("/alive") == list(range(1, 9))
    status, failures, error, told = row(
        db, "select status, failures, error, delivered_seq from tidebase.channels where run_id = 'r' and channel = 1"
    )
    assert (status, failures > 0, error, told) == ("active", True, "TimeoutError: no answer within 0.5 s", 0)


def test_who_waits_for_the_dead_leaves_room_for_the_living(tide: Tidebase, db: Db, listeners: Listeners) -> None:
    """Channels that have failed before have a quarter of the room, however many there are."""
    held = listeners.hold("/dead")
    for number in range(20):
        create_run(db, f"dead {number}")
        tide.runs.add_channel(f"dead {number}", listeners.at("/dead"))
    db.execute("update tidebase.channels set failures = 1, failing_since = clock_timestamp()")
    create_run(db, "r")
    tide.runs.add_channel("r", listeners.at("/alive"))
    with dispatcher(tide, timeout_s=PATIENCE_S, at_once=4).running():
        reached(lambda: len(listeners.told("/dead")) == 1 and listeners.told("/alive") == [1])
        held.set()
    assert len(listeners.told("/dead")) <= 20


def test_a_channel_that_always_has_more_to_tell_waits_for_its_turn(
    tide: Tidebase, db: Db, listeners: Listeners, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatchers, "_TURN_S", 0.0)
    for run_id in ("long", "short"):
        new_run(db, run_id)
        tide.runs.add_channel(run_id, listeners.at(f"/{run_id}"))
    note(db, "long", 20)
    make_due(db)
    dispatcher(tide, at_once=1).dispatch(max=8)
    assert len(listeners.told("/short")) == 2 and len(listeners.told("/long")) >= 3
    dispatcher(tide).dispatch()
    assert listeners.told("/long") == list(range(1, 23))


def test_failures_are_seen_tried_again_and_given_up(tide: Tidebase, db: Db, listeners: Listeners) -> None:
    create_run(db, "r")
    tide.runs.add_channel("r", listeners.at("/x"))
    listeners.status["/x"] = 503
    assert dispatcher(tide).dispatch() == 1 and dispatcher(tide).dispatch() == 0  # not before its time
    [channel] = tide.runs.channels("r")
    assert (channel.status, channel.failures, channel.http_status, channel.error) == ("active", 1, 503, "HTTP 503")
    assert channel.failing_since is not None and channel.next_at is not None and channel.next_at > channel.failing_since
    make_due(db)
    assert dispatcher(tide, give_up_after_s=0).dispatch() == 1
    [channel] = tide.runs.channels("r")
    assert channel.status == "failed" and channel.error is not None
    assert channel.error.startswith("given up after 2 attempts since ") and channel.error.endswith(": HTTP 503")
    listeners.status["/x"] = 200
    assert dispatcher(tide).dispatch() == 0
    assert tide.runs.retry_channel("r", 1) and not tide.runs.retry_channel("r", 1)
    assert dispatcher(tide).dispatch() == 1
    [channel] = tide.runs.channels("r")
    assert (channel.status, channel.delivered_seq, channel.error) == ("active", 1, None)
    listeners.status["/x"] = 410
    db.execute("select tidebase.cancel_run('r')")
    make_due(db)
    dispatcher(tide).dispatch()
    assert channel_status(db, "r") == ["failed"]
    assert listeners.told("/x") == [1, 1, 1, 2]


def test_a_receiver_that_is_not_there_or_sends_elsewhere_is_a_failure(
    tide: Tidebase, db: Db, listeners: Listeners
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    create_run(db, "r")
    tide.runs.add_channel("r", f"http://127.0.0.1:{port}/")
    tide.runs.add_channel("r", listeners.at("/moved"))
    listeners.status["/moved"] = 307
    assert dispatcher(tide).dispatch() == 2
    errors = values(db, "select error from tidebase.channels order by channel")
    assert errors[0].startswith("ConnectError: ") and errors[1] == "HTTP 307"


def test_private_addresses_are_refused_unless_allowed(tide: Tidebase, db: Db, listeners: Listeners) -> None:
    create_run(db, "r")
    for host in ("127.0.0.1", "localhost", "169.254.169.254", "[::ffff:127.0.0.1]"):
        tide.runs.add_channel("r", f"http://{host}:{listeners.port}/x")
    assert tide.channel_dispatcher(secret="whsec").dispatch() == 4
    assert listeners.requests == []
    errors = values(db, "select error from tidebase.channels")
    assert [error for error in errors if "not a public address" not in error] == []


def test_nothing_is_sent_that_cannot_be_signed(
    tide: Tidebase, db: Db, listeners: Listeners, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(SECRET_VARIABLE, raising=False)
    create_run(db, "r")
    tide.runs.add_channel("r", listeners.at("/shared"))
    tide.runs.add_channel("r", listeners.at("/own"), secret=SECRET)
    tide.channel_dispatcher(allow_private=True).dispatch()
    assert listeners.told("/own") == [1] and listeners.told("/shared") == []
    assert "secret" in value(db, "select error from tidebase.channels where channel = 1")
    monkeypatch.setenv(SECRET_VARIABLE, "from-the-environment")
    tide.runs.retry_channel("r", 1)
    tide.channel_dispatcher(allow_private=True).dispatch()
    assert verify_webhook_signature(
        listeners.requests[1][2], listeners.requests[1][1][SIGNATURE], "from-the-environment"
    )


def test_a_secret_is_told_to_nobody(
    tide: Tidebase, db: Db, database: str, listeners: Listeners, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    create_run(db, "r")
    tide.runs.add_channel("r", listeners.at("/x"), secret=SECRET)
    listeners.status["/x"] = 500
    delivery = tide._database.execute(dispatchers.claim_channel_deliveries(max=1))[0]
    assert delivery.secret == SECRET and SECRET not in repr(delivery)
    make_due(db)
    dispatcher(tide).dispatch()
    told = [repr(tide.runs.channels("r")), caplog.text, repr(list(tide.runs.events("r")))]
    told.append(str(listeners.requests[0]))
    with pytest.raises(InvalidArgument) as refused:
        tide.runs.add_channel("r", listeners.at("/y"), secret=SECRET * 100)
    told.append(str(refused.value))
    assert [text for text in told if SECRET in text] == []
    for role in ("worker", "approver", "reader"):
        with user(db, database, role) as url, psycopg.connect(url, autocommit=True) as connection:
            connection.execute("select tidebase.list_channels('r')")
            for statement in ("tidebase.claim_channel_deliveries()", "secret from tidebase.channels"):
                with pytest.raises(psycopg.errors.InsufficientPrivilege):
                    connection.execute(f"select {statement}")


def test_who_may_add_a_channel(db: Db, database: str) -> None:
    create_run(db, "r")
    allowed = []
    for role in ("worker", "approver", "reader", "operator"):
        with user(db, database, role) as url, Tidebase(url) as tide:
            try:
                tide.runs.add_channel("r", "https://hook.example")
                tide.runs.remove_channel("r", 1)
                allowed.append(role)
            except Exception as error:
                assert "permission denied" in str(error)
    assert allowed == ["worker", "operator"]


def test_a_worker_writes_nothing_for_its_channels_and_waits_for_no_dispatcher(db: Db, database: str) -> None:
    token = new_run(db, "r")
    db.execute("select tidebase.add_channel('r', 'https://hook.example')")
    with psycopg.connect(database) as other, db.transaction():
        other.execute("select from tidebase.channels for update")
        db.execute("set local lock_timeout = '1ms'")
        before = value(db, "select xmin::text from tidebase.channels")
        db.execute("select tidebase.record_step('r', %s, 's', output => '1')", [token])
        note(db, "r")
        complete(db, "r")
    assert value(db, "select xmin::text from tidebase.channels") == before


@on_every_version
def test_the_bell_ends_the_wait_of_a_quiet_channel(tide: Tidebase, db: Db, listeners: Listeners) -> None:
    """It would not be looked at for a day: only the doorbell can bring it up."""
    new_run(db, "r")
    tide.runs.add_channel("r", listeners.at("/x"))
    with dispatcher(tide).running():
        reached(lambda: bool(value(db, "select count(*) from tidebase.watches where run_id = 'r'")), "it is watched")
        db.execute("update tidebase.channels set next_at = clock_timestamp() + interval '1 day'")
        note(db, "r")
        reached(lambda: listeners.told("/x") == [1, 2, 3])


def test_a_dispatcher_without_the_bell_looks_by_itself(database: str, db: Db, listeners: Listeners) -> None:
    new_run(db, "r")
    with psycopg.connect(database, autocommit=True) as connection, Tidebase(connection) as tide:
        tide.runs.add_channel("r", listeners.at("/x"))
        with dispatcher(tide).running():
            reached(lambda: listeners.told("/x") == [1, 2])
            note(db, "r")
            reached(lambda: listeners.told("/x") == [1, 2, 3])
    assert value(db, "select count(*) from tidebase.watches") == 0


async def test_a_dispatcher_may_be_called_where_an_event_loop_runs(
    tide: Tidebase, db: Db, listeners: Listeners
) -> None:
    create_run(db, "r")
    tide.runs.add_channel("r", listeners.at("/x"))
    assert dispatcher(tide).dispatch() == 1


def test_a_database_that_goes_away_is_waited_for(
    tide: Tidebase, db: Db, listeners: Listeners, monkeypatch: pytest.MonkeyPatch
) -> None:
    new_run(db, "r")
    tide.runs.add_channel("r", listeners.at("/x"))
    with dispatcher(tide).running():
        reached(lambda: listeners.told("/x") == [1, 2])
        db.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity"
            " where datname = current_database() and pid <> pg_backend_pid()"
        )
        note(db, "r")
        reached(lambda: listeners.told("/x")[-1] == 3)


DISPATCHER = Path(__file__).parent / "support" / "channel_dispatcher.py"


@contextmanager
def process(url: str) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, str(DISPATCHER), url], stderr=subprocess.DEVNULL) as running:
        try:
            yield running
        finally:
            running.kill()


@on_every_version
@long
def test_a_dispatcher_that_is_killed_leaves_out_nothing(
    tide: Tidebase, db: Db, database: str, listeners: Listeners
) -> None:
    """kill -9 while it waits for receivers, beside another dispatcher, beside a receiver that is dead: each channel is
    told every event, and by whom it was told first, in order.
    """
    with nobody() as silent, ExitStack() as others:
        for number in range(6):
            new_run(db, f"r{number}")
            tide.runs.add_channel(f"r{number}", listeners.at(f"/r{number}"), secret=SECRET)
            tide.runs.add_channel(f"r{number}", silent)
        caught = [listeners.hold(f"/r{number}") for number in range(3)]
        with process(database) as victim:
            reached(lambda: all(listeners.told(f"/r{number}") for number in range(3)), "it has three in hand")
            others.enter_context(process(database))
            for _ in range(20):
                for number in range(6):
                    note(db, f"r{number}")
            reached(lambda: all(len(listeners.told(f"/r{number}")) > 5 for number in (3, 4, 5)))
            victim.kill()
            victim.wait(PATIENCE_S)
        for held in caught:
            held.set()
        make_due(db)  # what it had in hand is due when its time has run out
        others.enter_context(process(database))
        for number in range(6):
            note(db, f"r{number}", 5)
            complete(db, f"r{number}")
        living = "select count(*) from tidebase.channels where channel = 1 and status = 'delivered'"
        reached(lambda: value(db, living) == 6, "all are told")
    for number in range(6):
        last = value(db, "select last_seq from tidebase.run_heads where run_id = %s", f"r{number}")
        assert list(dict.fromkeys(listeners.told(f"/r{number}"))) == list(range(1, last + 1))
    for path, headers, body in listeners.requests:
        assert verify_webhook_signature(body, headers[SIGNATURE_V2], SECRET, url=listeners.at(path))
    assert values(db, "select distinct (status, delivered_seq)::text from tidebase.channels where channel = 2") == [
        "(active,0)"
    ]


def quiet_channels(db: Db, count: int) -> None:
    """So many runs, each with a channel that has been told all, hours ago."""
    db.execute(
        "with made as (select tidebase.create_run('w') as run_id from generate_series(1, %s))"
        " insert into tidebase.channels (run_id, channel, url, delivered_seq, idle_since, next_at)"
        " select run_id, 1, 'https://hook.example', 1, clock_timestamp() - interval '5 h', clock_timestamp() from made",
        [count],
    )
    db.execute("analyze tidebase.channels, tidebase.run_heads, tidebase.events")


@on_every_version
@long
def test_quiet_channels_cost_a_few_statements(db: Db) -> None:
    """Ten thousand: each is looked at every half minute, a thousand by one statement."""
    quiet_channels(db, 10_000)
    claim = "select * from tidebase.claim_channel_deliveries(1000)"
    rounds = 0
    while value(db, "select exists (select from tidebase.channels where next_at <= clock_timestamp())"):
        assert db.execute(claim).fetchall() == []
        rounds += 1
    assert rounds <= 11
    waits = "select round(extract(epoch from min(next_at) - clock_timestamp())) between 1 and 30 from tidebase.channels"
    assert value(db, waits)
    due = """
        select c.* from tidebase.channels c
        where least(c.failures, 1) = 0 and c.next_at <= clock_timestamp() - interval '1 s'
        order by c.next_at limit 1000 for no key update skip locked"""
    plan = "\n".join(line for (line,) in db.execute(f"explain {due.replace('clock_timestamp()', 'now()')}").fetchall())
    assert "Index Scan using channels_due" in plan and "Seq Scan" not in plan and "Sort" not in plan
    db.execute("vacuum tidebase.channels")
    assert _pages(db, claim) < 30


def _pages(db: Db, statement: str) -> int:
    for _ in range(7):  # a plan for any value is considered from the sixth execution on
        db.execute(statement)
    plan = row(db, f"explain (analyze, buffers, timing off, format json) {statement}")[0][0]["Plan"]
    return int(plan["Shared Hit Blocks"] + plan["Shared Read Blocks"])


def test_a_worker_has_channels_for_its_run(tide: Tidebase, db: Db, listeners: Listeners) -> None:
    def workflow(run: Any, input: Any) -> int:
        number: int = run.channels.add(listeners.at("/x"), secret=SECRET, events=["run.completed"])
        assert run.channels.add(listeners.at("/y")) == 2 and run.channels.remove(2)
        assert [channel.status for channel in run.channels.list()] == ["active", "removed"]
        return number

    assert tide.run("w", workflow, run_id="r") == 1
    dispatcher(tide).dispatch()
    assert [json.loads(body)["type"] for _, _, body in listeners.requests] == ["run.completed"]
    with pytest.raises(NotFound):
        tide.runs.remove_channel("r", 3)
    with pytest.raises(RunNotFound):
        tide.runs.channels("none")


async def test_a_task_has_them_too(atide: AsyncTidebase) -> None:
    async def workflow(run: Any, input: Any) -> Any:
        await run.channels.add("https://hook.example", events=["note"])
        return [channel.url for channel in await run.channels.list()]

    assert await atide.run("w", workflow, run_id="r") == ["https://hook.example"]
    assert await atide.runs.remove_channel("r", 1) and not await atide.runs.retry_channel("r", 1)


def test_a_run_that_is_made_through_the_gateway_has_its_channels(
    tide: Tidebase, db: Db, database: str, listeners: Listeners
) -> None:
    channel = {"type": "webhook", "url": listeners.at("/x"), "secret": SECRET, "events": ["run.created"]}
    wrong = {**channel, "events": ["é" * 200]}  # too long for the database only
    with gateway(database) as base, httpx.Client(base_url=base) as client:
        for refused in ([wrong], [channel, wrong], [{**channel, "type": "slack"}], [{**channel, "url": "ftp://x"}]):
            assert client.post("/runs/w", json={"channels": refused}).status_code == 400
        assert value(db, "select count(*) from tidebase.runs") == 0
        body = {"runId": "r", "channels": [channel, {"type": "webhook", "url": listeners.at("/y")}]}
        for _ in range(2):  # the call repeated finds the run, and its channels
            assert client.post("/runs/w", json=body).json()["run"]["id"] == "r"
        assert client.post("/runs/r/begin", json={}).status_code == 200
        child = {"name": "c", "workflowName": "below", "channels": [channel]}
        made = [client.post("/runs/r/children", json=child).json() for _ in range(2)]
        assert [answer["created"] for answer in made] == [True, False]
        dispatcher(tide).dispatch()
        seen = client.get("/runs/r")
        below = client.get(f"/runs/{made[0]['run']['id']}").json()
    assert SECRET not in seen.text
    shown = seen.json()["channels"]
    assert [(one["id"], one["type"], one["url"], one["events"], one["hasSecret"]) for one in shown] == [
        ("r:1", "webhook", listeners.at("/x"), ["run.created"], True),
        ("r:2", "webhook", listeners.at("/y"), None, False),
    ]
    told = [(one["channelId"], one["status"], one["httpStatus"]) for one in seen.json()["channelDeliveries"]]
    assert told == [("r:1", "pending", 200), ("r:2", "pending", 200)]
    assert len(below["channels"]) == 1 and below["channelDeliveries"][0]["deliveredSeq"] >= 1
    assert listeners.told("/x") == [1, 1]


def test_the_command_shows_and_tells_them(
    tide: Tidebase, db: Db, database: str, listeners: Listeners, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = Terminal(database)
    create_run(db, "r")
    assert terminal.text("channels", "r") == "no channels\n"
    tide.runs.add_channel("r", listeners.at("/x"), secret=SECRET, events=["run.created"])
    shown = terminal.text("channels", "r")
    assert listeners.at("/x") in shown and "run.created" in shown and "active" in shown and SECRET not in shown
    environment = {SECRET_VARIABLE: "s" * 32}
    assert terminal.json("reconcile", "--webhooks", env=environment)["channels"] == 1
    [channel] = terminal.json("channels", "r")
    assert (channel["failures"], "not a public address" in channel["error"]) == (1, True)
    assert terminal.json("channels", "r", "--retry", "1")[0]["failures"] == 0
    assert terminal.json("channels", "r", "--remove", "1")[0]["status"] == "removed"
    assert "no channel 2" in terminal.error("channels", "r", "--remove", "2")


def test_the_command_tells_them_as_things_happen(db: Db, database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SECRET_VARIABLE, "s" * 32)
    with started(database, "reconcile", "--every", "1h", "--webhooks") as command:
        create_run(db, "r")
        db.execute("select tidebase.add_channel('r', 'http://127.0.0.1:9/')")
        reached(lambda: value(db, "select failures from tidebase.channels") == 1)
        command.terminate()
        assert command.wait(PATIENCE_S) == 0
    assert "not a public address" in value(db, "select error from tidebase.channels")
