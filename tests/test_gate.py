"""Gates: one decision, by somebody entitled, that every resume sees."""

from __future__ import annotations

import subprocess
import threading
from typing import Any

import psycopg
import pytest

from tidebase import (
    AsyncRun,
    AsyncTidebase,
    GateAnswerInvalid,
    InputMismatch,
    NotEntitled,
    Run,
    RunCancelledError,
    RunSuspendedError,
    Tidebase,
    TidebaseError,
)

from . import probe_gates
from .conftest import SERVERS, Server


def test_a_hundred_deciders_at_each_of_two_hundred_gates_make_one_decision(database: str) -> None:
    assert probe_gates.deciders(database, gates=200, decisions=100, connections=10) == []


def test_deciders_that_queue_up_see_the_decision_of_the_first(database: str) -> None:
    assert probe_gates.deciders_queued(database, connections=20) == []


def test_a_run_never_waits_for_a_gate_that_is_decided(database: str) -> None:
    assert probe_gates.suspension(database) == []


def in_thread(work: Any) -> threading.Thread:
    thread = threading.Thread(target=work)
    thread.start()
    return thread


def waiting(tide: Tidebase, name: str = "g") -> str:
    """The run that waits at a gate, once there is one."""
    while not (gates := [gate for gate in tide.gates.list() if gate.name == name]):
        threading.Event().wait(0.01)
    return gates[0].run_id


def test_a_blocked_run_goes_on_with_the_decision_and_so_does_every_resume(tide: Tidebase) -> None:
    def workflow(run: Run, input: Any) -> Any:
        answer = run.gate("g", "Send?", data={"to": "ada"}, options=["approved", "edited", "rejected"])
        if run.attempt == 1:
            raise ConnectionResetError
        return [answer.decision, answer.payload, answer.comment, answer.actor, answer.approved]

    def decide() -> None:
        tide.gates.decide(waiting(tide), "g", "edited", actor="bob", payload={"to": "eve"}, comment="better")

    thread = in_thread(decide)
    with pytest.raises(ConnectionResetError):
        tide.run("w", workflow, run_id="r")
    thread.join()
    assert tide.run("w", workflow, run_id="r") == ["edited", {"to": "eve"}, "better", "bob", True]


def test_an_old_approval_is_not_taken_for_something_else(tide: Tidebase) -> None:
    with tide.runs.attach("w", run_id="r") as session:
        session.gates.begin("g", "Pay?", data={"amount": 10})
        tide.gates.decide("r", "g", "approved")
        for prompt, data in (("Pay?", {"amount": 10_000}), ("Pay everything?", {"amount": 10})):
            with pytest.raises(InputMismatch):
                session.gate("g", prompt, data=data)
        assert session.gate("g", "Pay?", data={"amount": 10.0}).approved


def test_a_blocked_gate_unwinds_when_the_run_is_cancelled(tide: Tidebase) -> None:
    swallowed = []

    def workflow(run: Run, input: Any) -> None:
        try:
            run.gate("g")
        except Exception as error:
            swallowed.append(error)

    thread = in_thread(lambda: tide.runs.cancel(waiting(tide), "enough", actor="ada"))
    with pytest.raises(RunCancelledError):
        tide.run("w", workflow, run_id="r")
    thread.join()
    info = tide.runs.get("r")
    assert (swallowed, info.status, info.cancel_reason, info.cancel_actor) == ([], "cancelled", "enough", "ada")


def test_a_suspended_run_outlives_every_process_and_the_server(server: Server, database: str) -> None:
    def workflow(run: Run, input: Any) -> str:
        run.step("before", lambda: 1)
        return run.gate("g", "Now?", suspend=True).decision

    with Tidebase(database) as tide:
        with pytest.raises(RunSuspendedError):
            tide.run("w", workflow, run_id="r")
        secret = tide.runs.get("r").waiting_for
        assert (tide.runs.get("r").status, secret) == ("waiting", "g")
    server.cluster.stop("immediate")
    server.cluster.start()
    with Tidebase(database) as tide:
        with pytest.raises(RunSuspendedError):
            tide.run("w", workflow, run_id="r")
        thread = in_thread(lambda: tide.gates.decide("r", "g", "approved"))
        assert tide.run("w", workflow, run_id="r", wait_s=60) == "approved"
        thread.join()
        assert tide.runs.steps("r")[0].attempt == 1


def test_the_database_decides_when_time_is_over(tide: Tidebase) -> None:
    def workflow(run: Run, input: Any) -> list[str]:
        return [
            run.gate("named", timeout_s=0.001, default_decision="rejected").decision,
            run.gate("unnamed", timeout_s=0.001).decision,
        ]

    assert tide.run("w", workflow) == ["rejected", "timed_out"]


def test_a_timer_waits_only_for_what_is_left(tide: Tidebase, db: psycopg.Connection[Any]) -> None:
    def workflow(run: Run, input: Any) -> int:
        run.sleep("nap", 3600, suspend=True)
        return run.attempt

    for _ in range(2):
        with pytest.raises(RunSuspendedError):
            tide.run("w", workflow, run_id="r")
    db.execute("update tidebase.gates set timeout_at = clock_timestamp()")
    db.execute("update tidebase.run_heads set due_at = clock_timestamp()")
    assert tide.reconcile().timers == 1
    assert tide.run("w", workflow, run_id="r") == 2
    assert tide.run("w", lambda run, input: run.sleep("short", 0.01), run_id="s") is None


def test_an_answer_is_checked_against_its_schema(tide: Tidebase) -> None:
    schema = {"type": "object", "required": ["n"], "properties": {"n": {"type": "integer"}}}
    with tide.runs.attach("w", run_id="r") as session:
        for name, payload in (("good", {"n": 1}), ("bad", {"n": "x"})):
            session.gates.begin(name, response_schema=schema)
            tide.gates.decide("r", name, "approved", actor="ada", payload=payload)
        assert session.gate("good", response_schema=schema).payload == {"n": 1}
        with pytest.raises(GateAnswerInvalid, match=r"\$\.n"):
            session.gate("bad", response_schema=schema)
        with pytest.raises(GateAnswerInvalid):
            session.gates.get("bad")
        assert tide.gates.get("r", "good").response_schema == schema


def test_gates_for_those_who_cannot_block(tide: Tidebase) -> None:
    with tide.runs.attach("w", run_id="r") as session:
        opening = session.gates.begin("g", "?")
        assert opening.answer is None and opening.secret not in repr(opening)
        assert session.gates.get("g") is None
        with pytest.raises(NotEntitled):
            tide.gates.decide("r", "g", "approved", secret="gate_wrong")
        first = tide.gates.decide("r", "g", "approved", actor="ada", secret=opening.secret)
        second = tide.gates.decide("r", "g", "rejected", actor="bob")
        assert (first.accepted, second.accepted, second.decision, second.actor) == (True, False, "approved", "ada")
        answer = session.gates.get("g")
        assert answer is not None and answer.approved
        with pytest.raises(TidebaseError, match="has no gate"):
            session.gates.get("none")


async def test_the_same_from_asyncio(atide: AsyncTidebase) -> None:
    import asyncio

    async def workflow(run: AsyncRun, input: Any) -> list[Any]:
        await run.sleep("nap", 0.01)
        opening = await run.gates.begin("early", "?")
        await atide.gates.decide(run.run_id, "early", "approved", secret=opening.secret)
        early = await run.gates.get("early")
        return [early and early.decision, (await run.gate("g", "?")).decision]

    task = asyncio.create_task(atide.run("w", workflow, run_id="r"))
    while [info.name for info in await atide.gates.list(run_id="r")] != ["g"]:
        await asyncio.sleep(0.01)
    assert (await atide.gates.get("r", "g")).status == "pending"
    await atide.gates.decide("r", "g", "rejected")
    assert await task == ["approved", "rejected"]


def test_no_secret_is_in_the_database_or_in_its_log(server: Server, database: str, tide: Tidebase) -> None:
    with tide.runs.attach("w", run_id="r") as session:
        secret = session.gates.begin("g", "?").secret
        with pytest.raises(NotEntitled) as caught:
            tide.gates.decide("r", "g", "approved", secret=secret[:-1])
        assert secret[:-1] not in str(caught.value) + str(caught.value.detail)
        tide.gates.decide("r", "g", "approved", secret=secret)
        session.complete()
    dump = subprocess.run([str(SERVERS[server.version] / "pg_dump"), database], capture_output=True, check=True).stdout
    log = (server.cluster.data / "server.log").read_bytes()
    assert len(secret) > 60 and b"gate.resolved" in dump
    assert secret.encode() not in dump + log
