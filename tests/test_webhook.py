"""Recovery webhooks: signed, retried, handed to one dispatcher at a time, and kept away from private addresses."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import psycopg
import pytest

from tidebase import Tidebase, TidebaseError, verify_webhook_signature
from tidebase.webhook import public_address, sign_webhook

from . import probe_gates


class Receiver(ThreadingHTTPServer):
    """A web server that notes what it gets, and answers as it is told."""

    def __init__(self) -> None:
        self.got: list[tuple[str, bytes]] = []
        self.answers = iter([200])
        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/hook"


class Handler(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.got.append((self.headers["x-tidebase-signature"], body))
        status = next(self.server.answers)
        self.send_response(status)
        if status == 302:
            self.send_header("location", self.server.url)
        self.end_headers()
        self.wfile.write(b"thanks")

    def log_message(self, *args: Any) -> None: ...


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def due(db: psycopg.Connection[Any]) -> None:
    db.execute("update tidebase.deliveries set next_at = clock_timestamp() where status = 'pending'")


def test_a_delivery_is_signed_and_kept(tide: Tidebase, receiver: Receiver) -> None:
    tide.runs.create("w", run_id="r", recovery_webhook=receiver.url)
    tide.runs.recover("r", "stuck", actor="ada")
    dispatcher = tide.dispatcher(secret="s3cret", allow_private=True)
    assert (dispatcher.dispatch(), dispatcher.dispatch()) == (1, 0)
    ((signature, body),) = receiver.got
    assert verify_webhook_signature(body, signature, "s3cret")
    assert not verify_webhook_signature(body + b" ", signature, "s3cret")
    assert not verify_webhook_signature(body, signature, "other")
    assert not verify_webhook_signature(body, None, "s3cret")
    assert json.loads(body)["runId"] == "r"
    (recovery,) = tide.runs.recoveries("r")
    assert (recovery.status, recovery.http_status, recovery.response, recovery.actor) == (
        "succeeded",
        200,
        "thanks",
        "ada",
    )


def test_a_failing_receiver_is_tried_again_and_given_up(
    tide: Tidebase, db: psycopg.Connection[Any], receiver: Receiver
) -> None:
    receiver.answers = iter([500, 302, 503])
    tide.runs.create("w", run_id="r", recovery_webhook=receiver.url)
    tide.runs.recover("r")
    dispatcher = tide.dispatcher(secret="s", allow_private=True, max_attempts=3)
    for _ in range(3):
        due(db)
        assert dispatcher.dispatch() == 1
        assert dispatcher.dispatch() == 0
    (recovery,) = tide.runs.recoveries("r")
    assert (recovery.status, recovery.http_status, recovery.delivery_attempts) == ("failed", 503, 3)
    assert len(receiver.got) == 3, "no redirect is followed"


def test_what_is_rolled_back_is_not_sent(tide: Tidebase, db: psycopg.Connection[Any]) -> None:
    tide.runs.create("w", run_id="r", recovery_webhook="https://hooks.example/")
    with pytest.raises(ZeroDivisionError), db.transaction():
        db.execute("select tidebase.record_recovery('r')")
        raise ZeroDivisionError
    assert tide.dispatcher(secret="s").dispatch() == 0


@pytest.mark.parametrize(
    "url",
    ["http://127.0.0.1/", "http://10.0.0.1/", "http://169.254.169.254/latest", "http://[::1]/", "http://localhost/",
     "http://192.168.1.1:8080/", "http://0.0.0.0/", "http://[::ffff:127.0.0.1]/", "http://2130706433/"],
)  # fmt: skip
def test_private_addresses_are_refused(tide: Tidebase, url: str) -> None:
    with pytest.raises(TidebaseError, match="not a public address"):
        public_address(url)
    tide.runs.create("w", run_id="r", recovery_webhook=url)
    tide.runs.recover("r")
    assert tide.dispatcher(secret="s", max_attempts=1).dispatch() == 1
    (recovery,) = tide.runs.recoveries("r")
    assert recovery.status == "failed" and "not a public address" in (recovery.error or "")


def test_nothing_is_sent_unsigned(tide: Tidebase, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TIDEBASE_WEBHOOK_SECRET", raising=False)
    with pytest.raises(TidebaseError, match="signed"):
        tide.dispatcher().dispatch()
    assert sign_webhook(b"x", "k").startswith("sha256=")


def test_each_delivery_is_handed_to_one_dispatcher(database: str) -> None:
    assert probe_gates.one_delivery(database) == []
