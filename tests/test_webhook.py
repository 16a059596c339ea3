"""Webhooks against a real server: signed, tried again, and never sent where they must not go."""

from __future__ import annotations

import gzip
import ipaddress
import itertools
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest

from tidebase import Tidebase, TidebaseError
from tidebase.core import addresses
from tidebase.core.addresses import is_public, public_address
from tidebase.domain.webhook import (
    MAX_ANSWER,
    SECRET_VARIABLE,
    SIGNATURE,
    SIGNATURE_V2,
    sign_request,
    sign_webhook,
    verify_webhook_signature,
)

from .support.gate import Db, broken_logs, create_run, events, reached, row, value, values
from .support.patience import PATIENCE_S
from .support.receiver import Receiver
from .test_channel import Listeners

ON_NEWEST = True

SECRET = "whsec"


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as receiver:
        yield receiver


def recover(tide: Tidebase, db: Db, url: str, run_id: str = "r") -> None:
    """A run that was left, whose webhook is to be told."""
    create_run(db, run_id, recovery_webhook=url)
    db.execute("select tidebase.acquire_run(%s, 'worker')", [run_id])
    db.execute("select tidebase.release_run(%s, 1)", [run_id])
    tide.runs.recover(run_id, "näher gesehen")


def make_due(db: Db) -> None:
    db.execute("update tidebase.deliveries set next_at = clock_timestamp() where status = 'pending'")


def test_a_delivery_is_signed_and_recorded(tide: Tidebase, db: Db, receiver: Receiver) -> None:
    recover(tide, db, receiver.url)
    assert tide.runs.recoveries("r")[0].status == "pending"
    dispatcher = tide.dispatcher(secret=SECRET, allow_private=True)
    assert dispatcher.dispatch() == 1 and dispatcher.dispatch() == 0
    [(path, headers, body)] = receiver.requests
    assert path == "/hook" and headers["content-type"] == "application/json"
    assert json.loads(body) == {
        "type": "run.resume",
        "runId": "r",
        "workflowName": "w",
        "attempt": 1,
        "status": "pending",
        "reason": "näher gesehen",
        "recovery": 1,
    }
    signature = headers[SIGNATURE]
    assert signature == sign_webhook(body, SECRET)
    assert verify_webhook_signature(body, signature, SECRET)
    assert verify_webhook_signature(body, signature.removeprefix("sha256="), SECRET)
    wrong: list[tuple[bytes, str | None, str]] = [
        (body + b" ", signature, SECRET),
        (body, signature, "other"),
        (body, signature, ""),
        (body, None, SECRET),
        (body, "", SECRET),
        (body, "sha256=", SECRET),
        (body, signature[:-1], SECRET),
        (body, "sha256=é", SECRET),
        (body, sign_webhook(body, ""), ""),
    ]
    assert not any(verify_webhook_signature(*case) for case in wrong)
    [recovery] = tide.runs.recoveries("r")
    told = (recovery.status, recovery.url, recovery.delivery_attempts, recovery.http_status, recovery.response)
    assert told == ("succeeded", receiver.url, 1, 200, "thanks")
    assert events(db, "r")[-1] == "recovery.delivered" and broken_logs(db) == []


def test_a_delivery_that_fails_is_tried_again_and_given_up_in_the_end(
    tide: Tidebase, db: Db, receiver: Receiver
) -> None:
    dispatcher = tide.dispatcher(secret=SECRET, allow_private=True, max_attempts=3)
    recover(tide, db, receiver.url, "recovers")
    receiver.answers = [(500, {}, b"oh no"), (404, {}, b"\0 no"), (204, {}, b"")]
    for attempt in (1, 2, 3):
        assert dispatcher.dispatch() == 1
        assert dispatcher.dispatch() == 0  # not before its time
        kept = row(db, "select attempts, http_status, error from tidebase.deliveries")
        assert kept == (attempt, *[(500, "HTTP 500"), (404, "HTTP 404"), (204, None)][attempt - 1])
        make_due(db)
    assert tide.runs.recoveries("recovers")[0].status == "succeeded"
    recover(tide, db, receiver.url, "never does")
    receiver.answers = [(503, {}, b"x" * 20_000)] * 3
    for _ in range(3):
        assert dispatcher.dispatch() == 1
        make_due(db)
    assert dispatcher.dispatch() == 0
    [recovery] = tide.runs.recoveries("never does")
    assert (recovery.status, recovery.delivery_attempts, recovery.error) == ("failed", 3, "HTTP 503")
    assert recovery.response is not None and len(recovery.response) == 10_000
    assert len(receiver.requests) == 6


def test_a_receiver_that_is_not_there_is_an_attempt_that_failed(tide: Tidebase, db: Db) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    recover(tide, db, f"http://127.0.0.1:{port}/")
    assert tide.dispatcher(secret=SECRET, allow_private=True).dispatch() == 1
    kept = row(db, "select status, attempts, http_status, error like 'ConnectError%' from tidebase.deliveries")
    assert kept == ("pending", 1, None, True)


def test_no_redirect_is_followed(tide: Tidebase, db: Db, receiver: Receiver) -> None:
    recover(tide, db, receiver.url)
    receiver.answers = [(code, {"location": receiver.url + "/inner"}, b"") for code in (302, 307)]
    for code in (302, 307):
        tide.dispatcher(secret=SECRET, allow_private=True).dispatch()
        assert row(db, "select status, http_status from tidebase.deliveries") == ("pending", code)
        make_due(db)
    assert [path for path, _, _ in receiver.requests] == ["/hook", "/hook"]


def test_two_dispatchers_never_send_the_same_attempt(tide: Tidebase, database: str, db: Db, receiver: Receiver) -> None:
    for number in range(20):
        recover(tide, db, receiver.url, f"r{number}")
    start = threading.Barrier(4)

    def dispatch() -> None:
        with Tidebase(database) as other:
            dispatcher = other.dispatcher(secret=SECRET, allow_private=True)
            start.wait(PATIENCE_S)
            while dispatcher.dispatch(max=2):
                pass

    threads = [threading.Thread(target=dispatch) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    runs = sorted(json.loads(body)["runId"] for _, _, body in receiver.requests)
    assert runs == sorted(f"r{number}" for number in range(20))
    assert value(db, "select count(*) from tidebase.recovery_history where status = 'succeeded'") == 20


def test_one_slow_receiver_does_not_make_the_others_be_told_twice(
    tide: Tidebase, database: str, db: Db, receiver: Receiver
) -> None:
    """While the first delivery takes longer than a claim lasts, another dispatcher comes along."""
    for number in range(3):
        recover(tide, db, receiver.url, f"r{number}")

    def time_passes() -> None:
        receiver.meanwhile = None
        db.execute(
            "update tidebase.deliveries set next_at = clock_timestamp() where attempts = 1 and status = 'pending'"
        )
        with Tidebase(database) as other:
            other.dispatcher(secret=SECRET, allow_private=True, at_once=1).dispatch()

    receiver.meanwhile = time_passes
    tide.dispatcher(secret=SECRET, allow_private=True, at_once=1).dispatch()
    sent = [json.loads(body)["runId"] for _, _, body in receiver.requests]
    # The slow one itself may come twice: at least once is what is promised. The ones behind it need not.
    assert sorted(sent[1:]) in (["r0", "r1", "r2"], ["r1", "r2"])


def test_a_receiver_that_takes_its_time_holds_no_other_up(tide: Tidebase, db: Db, receiver: Receiver) -> None:
    """Of six at once it has two, however many wait for it."""
    with Listeners() as slow:
        held = slow.hold("/slow")
        for number in range(6):
            recover(tide, db, slow.at("/slow"), f"slow{number}")
        recover(tide, db, receiver.url, "quick")
        with tide.dispatcher(secret=SECRET, allow_private=True, at_once=8).running():
            try:
                reached(lambda: bool(receiver.requests))
                assert value(db, "select count(*) from tidebase.deliveries where attempts > 0") == 3
            finally:
                held.set()
            reached(lambda: value(db, "select bool_and(status = 'delivered') from tidebase.deliveries"))
        assert len(slow.requests) == 6


def test_deliveries_are_handed_out_by_whether_they_were_tried_and_by_receiver(tide: Tidebase, db: Db) -> None:
    for run_id, url in (("a", "http://one.test/x?y"), ("b", "http://one.test"), ("c", "http://two.test:80/x")):
        recover(tide, db, url, run_id)
    claim = "select run_id from tidebase.claim_deliveries(failing => %s, besides => %s) order by 1"
    assert values(db, claim, True, None) == []
    assert values(db, claim, False, ["http://one.test", "http://three.test"]) == ["c"]
    assert values(db, claim, False, ["http://two.test"]) == ["a", "b"]
    make_due(db)
    assert values(db, claim, False, None) == []
    assert values(db, claim, True, ["http://two.test:80"]) == ["a", "b"]
    assert values(db, claim, None, None) == ["c"]


def test_a_name_server_that_never_answers_holds_nobody_up(
    tide: Tidebase, db: Db, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lookup cannot be cancelled: who waits for it must not be whom others need, nor whom the end waits for."""
    recover(tide, db, f"http://silent.example.org:{receiver.port}/hook")
    tide.runs.get("r")
    over = threading.Event()
    monkeypatch.setattr(addresses.socket, "getaddrinfo", lambda *_, **__: over.wait(PATIENCE_S) and [])
    try:
        assert tide.dispatcher(secret=SECRET, timeout_s=0.1).dispatch() == 1
    finally:
        over.set()
    assert "no answer within 0.1 s" in value(db, "select error from tidebase.deliveries")


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "10.1.2.3",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "100.64.0.1",
        "0.0.0.0",
        "[::1]",
        "[::]",
        "[fe80::1]",
        "[fd00::1]",
        "[::ffff:127.0.0.1]",
        "[::ffff:169.254.169.254]",
        "localhost",
        "2130706433",
        "0x7f.1",
    ],
)
def test_private_addresses_are_refused_unless_allowed(tide: Tidebase, db: Db, receiver: Receiver, host: str) -> None:
    url = f"http://{host}:{receiver.port}/hook"
    recover(tide, db, url)
    assert tide.dispatcher(secret=SECRET).dispatch() == 1
    assert receiver.requests == []
    status, error = row(db, "select status, error from tidebase.deliveries")
    assert status == "pending" and "not a public address" in error
    if host == "127.0.0.1":
        make_due(db)
        assert tide.dispatcher(secret=SECRET, allow_private=True).dispatch() == 1
        assert len(receiver.requests) == 1


#: IANA's registries of special-purpose addresses, an address of each, and of the ends of the larger ones.
SPECIAL = """
    0.0.0.0 0.255.255.255 10.0.0.1 10.255.255.255 100.64.0.1 100.127.255.255 127.0.0.1 127.255.255.255 169.254.169.254
    172.16.0.1 172.31.255.255 192.0.0.1 192.0.0.8 192.0.0.170 192.0.0.192 192.0.2.1 192.31.196.1 192.52.193.1
    192.88.99.1 192.168.1.1 192.175.48.1 198.18.0.1 198.19.255.255 198.51.100.1 203.0.113.1 224.0.0.1
    239.255.255.255 240.0.0.1 255.255.255.255
    :: ::1 ::7f00:1 ::10.0.0.1 ::ffff:7f00:1 ::ffff:8.8.8.8 ::ffff:0:a9fe:a9fe ::ffff:0:8.8.8.8 64:ff9b::7f00:1
    64:ff9b::a9fe:a9fe 64:ff9b:1::1 64:ff9b:1:ffff:ffff:ffff:ffff:ffff 100::1 100:0:0:1::1 2001::1 2001:2::1 2001:10::1
    2001:20::1 2001:30::1 2001:db8::1 2002::1 2002:a00:1:: 2620:4f:8000::1 3fff::1 3fff:fff::1 4000::1 5f00::1 fc00::1
    fd00:ec2::254 fe80::1 fec0::1 feff::1 ff02::1
"""

PUBLIC = """
    1.1.1.1 8.8.8.8 11.0.0.1 100.63.255.255 100.128.0.1 172.15.255.255 172.32.0.1 192.0.1.1 198.17.255.255
    223.255.255.255 2001:4860:4860::8888 2606:4700:4700::1111 2a00:1450:4001::1 64:ff9b::808:808
"""


def test_which_addresses_are_public() -> None:
    assert [text for text in SPECIAL.split() if is_public(ipaddress.ip_address(text))] == []
    assert [text for text in PUBLIC.split() if not is_public(ipaddress.ip_address(text))] == []


@pytest.mark.parametrize("address", ["64:ff9b::a9fe:a9fe", "64:ff9b::7f00:1", "224.0.0.1", "ff02::1", "2002:7f00:1::"])
def test_addresses_that_stand_for_private_ones_are_refused(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    """NAT64 (RFC 6052) and 6to4 (RFC 3056) carry an IPv4 address inside; a multicast address is no one's."""
    found = [(socket.AF_INET6, socket.SOCK_STREAM, 6, "", (address, 80, 0, 0))]
    monkeypatch.setattr(addresses.socket, "getaddrinfo", lambda *_, **__: found)
    with pytest.raises(TidebaseError):
        public_address("http://example.org/")


def resolving(monkeypatch: pytest.MonkeyPatch, *answers: list[str]) -> None:
    """A name server that gives these answers, one after the other, the last one for good."""
    left = list(answers)

    def answer(host: str, port: int, *_: Any, **__: Any) -> list[Any]:
        addresses = left.pop(0) if len(left) > 1 else left[0]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in addresses]

    monkeypatch.setattr(addresses.socket, "getaddrinfo", answer)


def test_a_name_of_which_one_address_is_private_is_refused(
    tide: Tidebase, db: Db, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    recover(tide, db, f"http://inner.example.org:{receiver.port}/hook")
    tide.runs.get("r")  # the connection is there before names mean something else
    resolving(monkeypatch, ["93.184.215.14", "127.0.0.1"])
    assert tide.dispatcher(secret=SECRET).dispatch() == 1
    assert receiver.requests == []
    assert "not a public address" in value(db, "select error from tidebase.deliveries")


def test_the_address_that_was_checked_is_the_one_that_is_called(
    tide: Tidebase, db: Db, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name that is public when it is looked at and private when it is called leads nowhere private."""
    recover(tide, db, f"http://rebinding.example.org:{receiver.port}/hook")
    tide.runs.get("r")
    called: list[str] = []

    async def call(self: Any, request: Any, **_: Any) -> Any:
        called.append(f"{request.url.host} {request.headers['host']} {request.extensions['sni_hostname']}")
        raise OSError("not really")

    monkeypatch.setattr("httpx.AsyncClient.send", call)
    resolving(monkeypatch, ["93.184.215.14"], ["127.0.0.1"])
    tide.dispatcher(secret=SECRET).dispatch()
    name = "rebinding.example.org"
    assert called == [f"93.184.215.14 {name}:{receiver.port} {name}"]


def test_a_signature_is_for_one_receiver_and_for_a_while(tide: Tidebase, db: Db, receiver: Receiver) -> None:
    recover(tide, db, receiver.url)
    tide.dispatcher(secret=SECRET, allow_private=True).dispatch()
    [(_, headers, body)] = receiver.requests
    signature = headers[SIGNATURE_V2]
    assert verify_webhook_signature(body, signature, SECRET, url=receiver.url)
    assert not verify_webhook_signature(body, signature, SECRET)
    assert not verify_webhook_signature(body, signature, SECRET, url=f"{receiver.url}/other")
    assert not verify_webhook_signature(body + b" ", signature, SECRET, url=receiver.url)
    assert not verify_webhook_signature(body, signature, "other", url=receiver.url)
    now = int(time.time())
    for at, good in ((now - 299, True), (now - 400, False), (now + 400, False)):
        signed = sign_request(body, SECRET, receiver.url, at)
        assert verify_webhook_signature(body, signed, SECRET, url=receiver.url) is good
        later = signed.replace(f"t={at}", f"t={now}")
        assert at == now or not verify_webhook_signature(body, later, SECRET, url=receiver.url)
    for broken in ("t=", "t=,v2=", "t=x,v2=00", f"t={now}", f"t={now},v2=", f"t={'9' * 40},v2=00"):
        assert not verify_webhook_signature(body, broken, SECRET, url=receiver.url)


def test_a_receiver_that_drips_is_left(tide: Tidebase, db: Db) -> None:
    """Each byte comes in time, the answer never."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        over = threading.Event()

        def drip() -> None:
            connection, _ = listening.accept()
            with connection, suppress(OSError):
                connection.recv(65536)
                for byte in itertools.cycle(b"HTTP/1.1 200 OK\r\nX-Slow: "):
                    connection.sendall(bytes([byte]))
                    if over.wait(0.05):
                        return

        threading.Thread(target=drip, daemon=True).start()
        recover(tide, db, f"http://127.0.0.1:{listening.getsockname()[1]}/hook")
        try:
            assert tide.dispatcher(secret=SECRET, allow_private=True, timeout_s=0.5).dispatch() == 1
        finally:
            over.set()
    assert "Timeout" in value(db, "select error from tidebase.deliveries")


def test_an_answer_is_read_no_further_than_it_is_kept(tide: Tidebase, db: Db, receiver: Receiver) -> None:
    bomb = gzip.compress(b"x" * 50_000_000)
    receiver.answers = [(200, {"content-encoding": "gzip"}, bomb)]
    recover(tide, db, receiver.url)
    tide.dispatcher(secret=SECRET, allow_private=True).dispatch()
    assert receiver.requests[0][1]["accept-encoding"] == "identity"
    status, response = row(db, "select status, response from tidebase.deliveries")
    assert status == "delivered" and 0 < len(response) <= MAX_ANSWER and "xxx" not in response


async def test_a_dispatcher_may_be_called_where_an_event_loop_runs(tide: Tidebase, db: Db, receiver: Receiver) -> None:
    recover(tide, db, receiver.url)
    assert tide.dispatcher(secret=SECRET, allow_private=True).dispatch() == 1
    assert len(receiver.requests) == 1


def test_nothing_is_sent_without_a_secret(
    tide: Tidebase, db: Db, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(SECRET_VARIABLE, raising=False)
    recover(tide, db, receiver.url)
    with pytest.raises(TidebaseError, match=SECRET_VARIABLE):
        tide.dispatcher(allow_private=True).dispatch()
    assert value(db, "select attempts from tidebase.deliveries") == 0
    monkeypatch.setenv(SECRET_VARIABLE, SECRET)
    tide.dispatcher(allow_private=True).dispatch()
    assert verify_webhook_signature(receiver.requests[0][2], receiver.requests[0][1][SIGNATURE], SECRET)


@pytest.mark.parametrize("url", ["ftp://example.org", "file:///etc/passwd", "example.org", "http://", "http://a b"])
def test_a_webhook_is_an_http_url(tide: Tidebase, url: str) -> None:
    with pytest.raises(ValueError, match="recovery_webhook"):
        tide.runs.create("w", recovery_webhook=url)
