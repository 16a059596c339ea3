"""Push against a real server and real receivers: each run is begun where its endpoint is, once; nobody is held up."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tidebase import InvalidArgument, NotEntitled, Tidebase, TidebaseError
from tidebase.domain.push import PushDispatcher, claim_invocations
from tidebase.domain.webhook import SIGNATURE, SIGNATURE_V2, sign_webhook, verify_webhook_signature

from .conftest import on_every_version
from .support.gate import Db, reached, row, value, values
from .support.patience import PATIENCE_S
from .support.receiver import Answer, Receiver
from .test_cli import Terminal

ON_NEWEST = True

SECRET = "whsec"


class Application(Receiver):
    """A web application that works on the runs of which it is told; by its path it does so, or says something."""

    def __init__(self, tide: Tidebase) -> None:
        super().__init__()
        self.tide = tide
        self.status: dict[str, int] = defaultdict(lambda: 202)
        self.held: dict[str, threading.Event] = {}
        self.took: list[bool] = []

    def receive(self, path: str, headers: dict[str, str], body: bytes) -> Answer:
        self.requests.append((path, headers, body))
        if path in self.held:
            self.held[path].wait(PATIENCE_S)
        if path.startswith("/work"):
            self.took.append(self.tide.invoked(body, headers, secret=SECRET))
        return self.status[path], {}, b""

    def at(self, path: str) -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    def told(self, path: str) -> list[str]:
        """The runs of which a path was told, in order."""
        return [json.loads(body)["runId"] for at, _, body in list(self.requests) if at == path]

    def hold(self, path: str) -> threading.Event:
        self.held[path] = threading.Event()
        return self.held[path]


@pytest.fixture
def application(database: str) -> Iterator[Application]:
    with Tidebase(database) as tide:
        tide.workflow("w")(lambda run, input: run.step("s", lambda: input, input=input))
        with Application(tide) as application:
            yield application
            for held in application.held.values():
                held.set()


def dispatcher(tide: Tidebase, **options: Any) -> PushDispatcher:
    return tide.push_dispatcher(secret=SECRET, allow_private=True, **options)


def pass_time(db: Db) -> None:
    """Whatever was put off is due."""
    db.execute("update tidebase.invocations set next_at = clock_timestamp()")
    db.execute("update tidebase.queue_entries set ready_at = clock_timestamp()")
    db.execute("update tidebase.endpoints set next_at = clock_timestamp()")


def status(db: Db, run_id: str) -> tuple[str, str]:
    """That of the run, and of its invocation."""
    query = "select h.status, i.status from tidebase.run_heads h join tidebase.invocation_overview i using (run_id)"
    found: tuple[str, str] = row(db, f"{query} where run_id = %s", run_id)
    return found


@on_every_version
def test_a_run_is_begun_where_its_endpoint_is(tide: Tidebase, db: Db, application: Application) -> None:
    info = tide.queues.put("q", endpoint=application.at("/work"))
    assert (info.endpoint, info.endpoint_failures, info.invoked) == (application.at("/work"), 0, 0)
    tide.enqueue("w", {"n": 1}, queue="q", run_id="r")
    assert dispatcher(tide).dispatch() == 1 and dispatcher(tide).dispatch() == 0
    [(_, headers, body)] = application.requests
    assert json.loads(body) == {
        "type": "run.invoke", "runId": "r", "workflowName": "w", "attempt": 1, "queue": "q", "invocation": 1
    }  # fmt: skip
    assert verify_webhook_signature(body, headers[SIGNATURE], SECRET)
    assert verify_webhook_signature(body, headers[SIGNATURE_V2], SECRET, url=application.at("/work"))
    assert application.took == [True] and tide.runs.get("r").result == {"n": 1}
    assert status(db, "r") == ("completed", "begun")


def test_what_is_put_off_is_told_of_when_its_time_has_come(tide: Tidebase, db: Db, application: Application) -> None:
    tide.queues.put("q", endpoint=application.at("/work"))
    tide.enqueue("w", queue="q", run_id="r", delay_s=3600)
    assert dispatcher(tide).dispatch() == 0
    db.execute("update tidebase.run_heads set available_at = clock_timestamp()")
    pass_time(db)
    assert dispatcher(tide).dispatch() == 1 and status(db, "r") == ("completed", "begun")


def test_who_has_begun_is_not_told_again(tide: Tidebase, db: Db, application: Application) -> None:
    """Also where the answer does not come, or is an error; when its lease has run out, it is."""
    tide.queues.put("q", endpoint=application.at("/slow"))
    tide.enqueue("w", queue="q", run_id="r")

    def begin() -> None:
        value(db, "select token from tidebase.acquire_run('r', 'application')")

    application.meanwhile = begin
    application.status["/slow"] = 500
    receive = application.receive

    def begin_first(path: str, headers: dict[str, str], body: bytes) -> Answer:
        if not application.requests:
            begin()
        return receive(path, headers, body)

    application.receive = begin_first  # type: ignore[method-assign]
    assert dispatcher(tide).dispatch() == 1
    assert status(db, "r") == ("running", "begun") and tide.queues.get("q").endpoint_failures == 0
    pass_time(db)
    assert dispatcher(tide).dispatch() == 0
    db.execute("update tidebase.run_heads set lease_expires_at = clock_timestamp(), due_at = clock_timestamp()")
    assert dispatcher(tide).dispatch() == 1 and len(application.requests) == 2
    assert json.loads(application.requests[1][2])["attempt"] == 2


def test_who_does_not_begin_is_told_again_and_given_up(
    tide: Tidebase, db: Db, application: Application, database: str
) -> None:
    application.status["/mad"] = 204
    tide.queues.put("q", endpoint=application.at("/mad"))
    tide.enqueue("w", queue="q", run_id="r", recovery_webhook=application.at("/told"))
    waits = []
    for failures in range(1, 4):
        assert dispatcher(tide).dispatch() == 1 and dispatcher(tide).dispatch() == 0
        assert status(db, "r") == ("queued", "sent")
        query = "select failures, extract(epoch from next_at - clock_timestamp()) from tidebase.invocations"
        found = row(db, query)
        assert found[0] == failures
        waits.append(float(found[1]))
        pass_time(db)
    assert waits[0] < 10 and 15 < waits[2] <= 40  # 10 seconds, doubled each time, at least half of it
    assert tide.queues.get("q").endpoint_failures == 0  # it answers
    assert dispatcher(tide, give_up_after_s=0).dispatch() == 0
    run = tide.runs.get("r")
    assert (run.status, run.failure_class) == ("failed", "not_begun") and status(db, "r") == ("failed", "failed")
    assert run.error["message"].startswith("given up after 3 invocations since") and "HTTP 204" in run.error["message"]
    assert tide.runs.recoveries("r")[0].reason == "run_failed"
    printed = Terminal(database).text("invocations", "q")
    assert "failed" in printed and "HTTP 204" in printed
    # It is a dead letter as others are: tried again, it begins anew.
    assert tide.runs.retry_many(failure_class="not_begun").done == 1
    tide.queues.put("q", endpoint=application.at("/work"))
    assert dispatcher(tide).dispatch() == 1 and status(db, "r") == ("completed", "begun")


def test_a_dead_endpoint_is_asked_less_and_less_and_holds_up_no_other(
    tide: Tidebase, db: Db, application: Application
) -> None:
    dead = application.hold("/dead")
    tide.queues.put("dead", endpoint=application.at("/dead"))
    tide.queues.put("refused", endpoint="http://127.0.0.1:1/")
    tide.queues.put("good", endpoint=application.at("/work"))
    tide.enqueue_many([{"workflow": "w", "queue": "dead"} for _ in range(50)])
    tide.enqueue_many([{"workflow": "w", "queue": "refused"} for _ in range(50)])
    with dispatcher(tide, timeout_s=PATIENCE_S).running():
        reached(lambda: value(db, "select failures from tidebase.endpoints where queue = 'refused'") > 0, "it fails")
        tide.enqueue_many([{"workflow": "w", "queue": "good"} for _ in range(50)])
        reached(lambda: len(application.told("/work")) == 50, "the others go on")
        refused = tide.queues.get("refused")
        assert refused.held_back_by == "endpoint" and "ConnectError" in str(refused.endpoint_error)
        assert len(application.told("/dead")) == 8  # its share
        assert value(db, "select count(*) from tidebase.invocations where queue = 'refused'") < 25
        tide.queues.pause("dead")
        dead.set()


def test_an_endpoint_that_is_mended_is_tried_at_once(tide: Tidebase, db: Db, application: Application) -> None:
    tide.queues.put("q", endpoint="http://127.0.0.1:1/")
    tide.enqueue_many([{"workflow": "w", "queue": "q", "run_id": f"r{n}"} for n in range(3)])
    assert dispatcher(tide).dispatch(1) >= 1
    assert dispatcher(tide).dispatch() == 0
    assert tide.queues.put("q", endpoint=application.at("/work"), concurrency=5).endpoint_failures == 0
    assert dispatcher(tide).dispatch() == 3
    assert values(db, "select distinct status from tidebase.run_heads") == ["completed"]
    tide.queues.put("q", concurrency=2)
    assert tide.queues.get("q").endpoint == application.at("/work")  # it stays as it is
    assert tide.queues.put("q", endpoint="").endpoint is None
    tide.enqueue("w", queue="q", run_id="of a worker")
    assert dispatcher(tide).dispatch() == 0


def test_limits_bound_what_is_on_its_way(tide: Tidebase, db: Db, application: Application) -> None:
    tide.queues.put("q", endpoint=application.at("/later"), concurrency=3, key_concurrency=2)
    tide.enqueue_many([{"workflow": "w", "queue": "q", "key": "ab"[n > 2], "run_id": f"r{n}"} for n in range(9)])
    assert dispatcher(tide).dispatch() == 3
    told = application.told("/later")
    assert len(told) == 3 and Counter(run_id > "r2" for run_id in told).most_common(1)[0][1] == 2
    assert tide.queues.get("q").held_back_by == "concurrency" and tide.queues.get("q").invoked == 3
    assert values(db, "select run_id from tidebase.claim_runs('{q}', 'worker', 9)") == []
    other = next(f"r{n}" for n in range(9) if f"r{n}" not in told)
    assert value(db, "select (tidebase.acquire_run(%s, 'somebody')).outcome", other) == "queued"
    # Who was told has its place.
    assert [value(db, "select (tidebase.acquire_run(%s, 'app')).outcome", run_id) for run_id in told] == ["granted"] * 3
    assert dispatcher(tide).dispatch() == 0
    db.execute("select tidebase.complete_run(%s, 1)", [told[0]])
    assert dispatcher(tide).dispatch() == 1
    tide.queues.pause("q")
    db.execute("select tidebase.complete_run(%s, 1)", [told[1]])
    assert dispatcher(tide).dispatch() == 0
    tide.queues.resume("q")
    assert dispatcher(tide).dispatch() == 1


def test_a_lease_that_has_run_out_is_told_of_in_its_own_slot(tide: Tidebase, db: Db, application: Application) -> None:
    tide.queues.put("q", endpoint=application.at("/work"), concurrency=1)
    tide.enqueue("w", queue="q", run_id="r")
    tide.enqueue("w", queue="q", run_id="next")
    value(db, "select token from tidebase.acquire_run('r', 'application that dies')")
    assert dispatcher(tide).dispatch() == 0
    db.execute(
        "update tidebase.run_heads set lease_expires_at = clock_timestamp(), due_at = clock_timestamp()"
        " where run_id = 'r'"
    )
    assert dispatcher(tide).dispatch() == 2
    assert application.told("/work") == ["r", "next"]
    assert values(db, "select distinct status from tidebase.run_heads") == ["completed"]


DISPATCHER = Path(__file__).parent / "support" / "push_dispatcher.py"


def test_dispatchers_that_are_killed_lose_nothing_and_send_nothing_twice(
    tide: Tidebase, db: Db, application: Application, database: str
) -> None:
    """Two of them; the application loses what it was told, and one of them dies with that in its hands."""
    tide.queues.put("q", endpoint=application.at("/lost"))
    lose = application.hold("/lost")
    ids = {made.run_id for made in tide.enqueue_many([{"workflow": "w", "queue": "q"} for _ in range(60)])}
    completed = "select count(*) from tidebase.run_heads where status = 'completed'"
    started = [subprocess.Popen([sys.executable, str(DISPATCHER), database]) for _ in range(2)]
    try:
        reached(lambda: len(application.requests) == 16, "both have their hands full")
        started[0].kill()
        started[0].wait()
        lost = set(application.told("/lost"))
        db.execute("update tidebase.endpoints set url = %s", [application.at("/work")])
        lose.set()
        reached(lambda: value(db, completed) >= 60 - len(lost), "what was not lost is done")
        pass_time(db)
        reached(lambda: value(db, completed) == 60, "all")
    finally:
        for process in started:
            process.kill()
            process.wait()
    told = Counter((body["runId"], body["invocation"]) for body in (json.loads(b) for _, _, b in application.requests))
    assert set(told.values()) == {1} and {run_id for run_id, _ in told} == ids
    assert {run_id for run_id, invocation in told if invocation == 2} == lost
    assert value(db, "select max(attempt) from tidebase.run_heads") == 1


def test_a_report_that_comes_late_changes_nothing(tide: Tidebase, db: Db, application: Application) -> None:
    tide.queues.put("q", endpoint=application.at("/work"))
    tide.enqueue("w", queue="q", run_id="r")
    (first,) = tide._database.execute(claim_invocations())
    assert tide._database.execute(claim_invocations()) == []
    pass_time(db)
    (second,) = tide._database.execute(claim_invocations())
    assert (first.invocation, second.invocation) == (1, 2)
    report = "select tidebase.finish_invocation('r', %s, %s, %s)"
    assert value(db, report, 1, False, None) == "sending" and value(db, report, 2, True, 200) == "sent"
    assert value(db, report, 2, False, 500) == "sent"
    assert value(db, "select failures from tidebase.endpoints") == 0


def test_addresses_that_are_not_public_are_told_nothing(tide: Tidebase, db: Db, application: Application) -> None:
    tide.queues.put("q", endpoint=application.at("/work"))
    tide.enqueue("w", queue="q", run_id="r")
    assert tide.push_dispatcher(secret=SECRET).dispatch() == 1
    assert application.requests == [] and "not a public address" in str(tide.queues.get("q").endpoint_error)
    assert tide.queues.invocations("q")[0].status == "waiting"


def test_an_application_believes_only_who_knows_the_secret(tide: Tidebase, application: Application) -> None:
    body = json.dumps({"type": "run.invoke", "runId": "r", "workflowName": "w"}).encode()
    at = application.tide
    for headers in ({}, {SIGNATURE: sign_webhook(body, "other")}, {SIGNATURE_V2: "t=1,v2=x"}):
        with pytest.raises(NotEntitled):
            at.invoked(body, headers, secret=SECRET)
    with pytest.raises(NotEntitled):
        at.invoked(body, {SIGNATURE: sign_webhook(body, SECRET)}, secret=SECRET, url="http://here")
    for wrong in (b"{}", b"no", json.dumps({"type": "step.completed", "runId": "r", "workflowName": "w"}).encode()):
        with pytest.raises(InvalidArgument):
            at.invoked(wrong, {SIGNATURE: sign_webhook(wrong, SECRET)}, secret=SECRET)
    strange = json.dumps({"type": "run.invoke", "runId": "r", "workflowName": "strange"}).encode()
    with pytest.raises(TidebaseError, match="registered"):
        at.invoked(strange, {SIGNATURE: sign_webhook(strange, SECRET)}, secret=SECRET)
    with pytest.raises(TidebaseError, match="TIDEBASE_WEBHOOK_SECRET"):
        at.invoked(body, {})


def test_what_fails_where_it_was_told_of_is_told_of_again(tide: Tidebase, db: Db, application: Application) -> None:
    """And a gate frees the application; the decision brings the run back."""
    tries: list[int] = []

    @application.tide.workflow("hard")
    def hard(run: Any, input: Any) -> str:
        tries.append(run.attempt)
        if len(tries) == 1:
            raise ValueError("no")
        return str(run.gate("ask", "Go on?").decision)

    tide.queues.put("q", endpoint=application.at("/work"))
    tide.enqueue("hard", queue="q", run_id="r", retry_delay_s=0)
    assert dispatcher(tide).dispatch() >= 1
    reached(lambda: dispatcher(tide).dispatch() >= 0 and tide.runs.get("r").status == "waiting", "it asks")
    tide.gates.decide("r", "ask", "approved")
    reached(lambda: dispatcher(tide).dispatch() >= 0 and tide.runs.get("r").status == "completed", "it ends")
    assert tries == [1, 2, 3] and tide.runs.get("r").result == "approved"


def test_the_pool_is_not_held_while_an_answer_is_waited_for(tide: Tidebase, application: Application) -> None:
    """A slow endpoint has its share of what is waited for, and the others theirs."""
    held = application.hold("/slow")
    tide.queues.put("slow", endpoint=application.at("/slow"))
    tide.queues.put("quick", endpoint=application.at("/work"))
    tide.enqueue_many([{"workflow": "w", "queue": "slow"} for _ in range(60)])
    with dispatcher(tide, timeout_s=PATIENCE_S).running():
        reached(lambda: len(application.told("/slow")) == 8, "its share is full")
        tide.enqueue_many([{"workflow": "w", "queue": "quick"} for _ in range(20)])
        reached(lambda: len(application.told("/work")) == 20, "the others have theirs")
        assert len(application.told("/slow")) == 8
        tide.queues.pause("slow")
        held.set()
