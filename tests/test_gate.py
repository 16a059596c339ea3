"""Gates: one decision each, by somebody entitled, that every resume sees; and timers."""

from __future__ import annotations

import logging
import random
import signal
import subprocess
import sys
import threading
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import psycopg
import pytest

from tidebase import AsyncTidebase, GateAnswerInvalid, InputMismatch, InvalidArgument, NotEntitled, Run, Tidebase
from tidebase.core.errors import RunCancelledError, RunSuspendedError
from tidebase.domain import gate as gate_module

from .conftest import SERVERS, Server
from .probes.support import queue
from .support.amounts import GATES
from .support.gate import (
    Db,
    acquire,
    broken_logs,
    decide,
    events,
    expire,
    mutate,
    new_run,
    open_gate,
    reached,
    refusal,
    row,
    status,
    together,
    until,
    user,
    value,
    waiters,
)
from .support.patience import PATIENCE_S

ON_NEWEST = True

DECIDE = "tidebase.decide_gate(text,text,text,text,jsonb,text,text,text,text)"
SUSPEND = "tidebase.suspend_run(text,bigint,text)"


def hammer(db: Db, url: str, runs: int, gates: int, attempts: int, connections: int) -> list[str]:
    """Decides every gate of every run many times at once, half of the time with a wrong secret; returns what is wrong.

    Meanwhile the runs change hands, and every new holder opens the gates again.
    """
    tokens = {f"r{number}": new_run(db, f"r{number}") for number in range(runs)}
    secrets: dict[tuple[str, str], str] = {}
    for run_id, token in tokens.items():
        for number in range(gates):
            secrets[run_id, f"g{number}"] = open_gate(db, run_id, token, f"g{number}", prompt="Go?")[2]
    # Gate after gate, dealt out to the connections in turn: so they all are at the same gate at the same moment.
    order = random.Random(1)
    shots = [
        (key, number)
        for key in order.sample(list(secrets), len(secrets))
        for number in order.sample(range(attempts), attempts)
    ]
    # The wrong ones: nonsense, nothing, and the secret of another gate.
    names = list(secrets)
    wrong = ["gate_0", "", secrets[names[0]].upper()]
    answers: dict[tuple[str, str], list[tuple[str, Any]]] = defaultdict(list)
    violations: list[str] = []

    def shoot(connection: Db, mine: list[tuple[tuple[str, str], int]]) -> None:
        for key, number in mine:
            entitled = number % 2 == 0
            other = secrets[names[(names.index(key) + 1) % len(names)]]
            secret = secrets[key] if entitled else [*wrong, other][number // 2 % 4]
            actor = f"{number} {'entitled' if entitled else 'not'}"
            decision = "approved" if number % 4 < 2 else "rejected"
            try:
                answer = decide(connection, *key, decision, actor=actor, secret=secret)
            except psycopg.Error as error:
                if entitled or error.sqlstate != "TB009":
                    violations.append(f"{key}: {actor} got {error.sqlstate}")
            else:
                answers[key].append((actor, answer))

    def change_hands(connection: Db) -> None:
        for run_id in list(tokens)[::2]:
            connection.execute("select tidebase.release_run(%s, %s)", [run_id, tokens[run_id]])
            token = acquire(connection, run_id, "another")
            for number in range(gates):
                again = open_gate(connection, run_id, token, f"g{number}", prompt="Go?")
                if again[2] != secrets[run_id, f"g{number}"] or again[3]:
                    violations.append(f"{run_id}: opened again as {again}")

    shares = [shots[start::connections] for start in range(connections)]
    jobs = [*(partial(shoot, mine=mine) for mine in shares), change_hands]
    # The first decisions of all of them wait for the run, so that whatever was read before is out of date.
    with psycopg.connect(db.info.dsn) as blocker, queue(url) as line:
        with blocker.transaction():
            blocker.execute("select from tidebase.run_heads for update")
            futures = [line.add(job) for job in jobs]
            line.settle(db)
        for future in futures:
            future.result()
    for key in secrets:
        accepted = [(actor, answer) for actor, answer in answers[key] if answer[0]]
        if len(accepted) != 1:
            violations.append(f"{key}: accepted {len(accepted)} times")
        if any("not" in actor for actor, _ in answers[key]):
            violations.append(f"{key}: answered somebody who is not entitled")
        told = {answer[1:4] for _, answer in answers[key]}
        standing = row(db, "select status, decision, actor from tidebase.gates where run_id = %s and name = %s", *key)
        if told != {standing}:
            violations.append(f"{key}: {standing} stands, told was {told}")
        if accepted and accepted[0][0] != standing[2]:
            violations.append(f"{key}: {accepted[0][0]} was accepted, {standing[2]} stands")
    resolved = Counter(
        db.execute("select run_id, payload->>'name' from tidebase.events where type = 'gate.resolved'").fetchall()
    )
    violations += [f"{key}: {resolved[key]} gate.resolved events" for key in secrets if resolved[key] != 1]
    return violations + broken_logs(db)


def test_a_hundred_deciders_at_each_gate_bring_about_one_decision_each(db: Db, database: str, server: Server) -> None:
    with user(db, database, "reader", "worker") as url:
        assert hammer(db, url, runs=20, gates=GATES.test, attempts=100, connections=16) == []


WITHOUT = {
    "the_entitlement": (
        "tidebase_private.entitlement(tidebase.gates,text,text,text,text)",
        "perform tidebase_private.raise_not_entitled(",
        "return 'secret'; perform tidebase_private.raise_not_entitled(",
    ),
    "the_status_check": (DECIDE, "if gate.status = 'decided' then", "if false then"),
    "the_lock": (
        DECIDE,
        "head := tidebase_private.lock_head(run_id);",
        "select h.* into head from run_heads h where h.run_id = decide_gate.run_id;",
    ),
}


@pytest.mark.breaks_invariants
@pytest.mark.parametrize("mechanism", WITHOUT)
def test_a_second_decision_is_seen_failing_without(db: Db, database: str, mechanism: str) -> None:
    mutate(db, *WITHOUT[mechanism])
    with user(db, database, "reader", "worker") as url:
        assert hammer(db, url, runs=10, gates=6, attempts=20, connections=8) != []


def test_who_may_decide_is_a_matter_of_the_secret_or_of_the_approver_role(db: Db, database: str) -> None:
    token = new_run(db, "r")
    secrets = {name: open_gate(db, "r", token, name)[2] for name in ("a", "b", "c")}
    for role, given, expected in [
        ("worker", secrets["a"], "42501"),
        ("worker", None, "42501"),
        ("reader", None, "TB009"),
        ("reader", secrets["b"], "TB009"),
        ("approver", secrets["b"], "TB009"),  # a secret that is given must be right
        ("operator", None, "TB009"),
        ("reader", secrets["a"], None),
    ]:
        with user(db, database, role) as url, psycopg.connect(url, autocommit=True) as connection:
            told = refusal(lambda c=connection, s=given: decide(c, "r", "a", "approved", secret=s))
            assert told == expected, (role, given == secrets["a"])
            if expected is not None:
                assert value(db, "select status from tidebase.gates where name = 'a'") == "pending"
    with user(db, database, "approver") as url, psycopg.connect(url, autocommit=True) as connection:
        name = connection.info.user
        assert decide(connection, "r", "b", "rejected")[:4] == (True, "decided", "rejected", name)
        assert decide(connection, "r", "c", "approved", actor="ann")[3] == "ann"
    by = dict(db.execute("select name, decided_by from tidebase.gates").fetchall())
    assert by == {"a": "secret", "b": "approver", "c": "approver"}


def test_a_decision_survives_every_resume_and_the_secret_a_restart_of_the_server(database: str, server: Server) -> None:
    with psycopg.connect(database, autocommit=True) as db:
        token = new_run(db, "r")
        shown = {"prompt": "Go?", "data": '{"amount": 3, "to": "x"}'}
        secret = open_gate(db, "r", token, "g", **shown)[2]
        other = open_gate(db, "r", token, "h")[2]
        assert secret != other
    server.cluster.stop("immediate")
    server.cluster.start()
    with psycopg.connect(database, autocommit=True) as db:
        assert open_gate(db, "r", token, "g", **shown) == ("pending", None, secret, False)
        assert decide(db, "r", "g", "approved", secret=secret, payload='{"n": 1}')[0]
        expire(db, "r")
        token = acquire(db, "r")
        # The same data in another order of its keys are the same data.
        again = open_gate(db, "r", token, "g", prompt="Go?", data='{"to": "x", "amount": 3.0}')
        assert again == ("decided", "approved", secret, False)
        for changed in ({"data": '{"amount": 4, "to": "x"}'}, {"prompt": "Stop?"}, {"prompt": None}, {"data": None}):
            before = value(db, "select last_seq from tidebase.run_heads")
            assert refusal(lambda c={**shown, **changed}: open_gate(db, "r", token, "g", **c)) == "TB006"
            assert value(db, "select last_seq from tidebase.run_heads") == before
        assert broken_logs(db) == []


def test_a_call_that_is_repeated_is_accepted_again_and_no_other(db: Db) -> None:
    token = new_run(db, "r")
    secret = open_gate(db, "r", token)[2]
    first = decide(db, "r", "g", "approved", secret=secret, actor="ann", request_id="one")
    assert decide(db, "r", "g", "approved", secret=secret, actor="ann", request_id="one") == first
    assert not decide(db, "r", "g", "approved", secret=secret, actor="ann", request_id="two")[0]
    assert not decide(db, "r", "g", "approved", secret=secret, actor="ann")[0]
    assert events(db, "r").count("gate.resolved") == 1


def test_a_decision_is_one_of_the_options(db: Db) -> None:
    token = new_run(db, "r")
    open_gate(db, "r", token, "plain")
    open_gate(db, "r", token, "own", options=["red", "blue"])
    for name, decision in (("plain", "edited"), ("plain", None), ("own", "approved"), ("own", "")):
        assert refusal(lambda n=name, d=decision: decide(db, "r", n, d)) == "TB002"
    assert decide(db, "r", "own", "blue")[2] == "blue"
    assert refusal(lambda: decide(db, "r", "none", "approved")) == "TB012"
    for wrong in (
        {"options": []},
        {"options": ["a", None]},
        {"options": [""]},
        {"required_approvals": 0},
        {"default_decision": "x"},
        {"timeout": "-1 s"},
        {"response_schema": "[]"},
    ):
        assert refusal(lambda w=wrong: open_gate(db, "r", token, "wrong", **w)) == "TB002", wrong


def test_nobody_is_counted_twice_where_several_must_agree(db: Db, database: str) -> None:
    token = new_run(db, "r")
    open_gate(db, "r", token, "g", required_approvals=3)
    ann, bob = (value(db, "select tidebase.get_gate_secret('r', 'g', %s)", who) for who in ("ann", "bob"))
    assert decide(db, "r", "g", "approved", actor="me")[::4] == (True, 1)
    for actor in ("ann", "bob", "(secret)", "tidebase_approver"):  # whoever one says to be
        assert decide(db, "r", "g", "approved", actor=actor)[::4] == (False, 1)
    assert decide(db, "r", "g", "approved", secret=ann)[::4] == (True, 2)
    assert decide(db, "r", "g", "approved", secret=ann, actor="bob")[::4] == (False, 2)
    assert status(db, "r") == "running" and "gate.resolved" not in events(db, "r")
    answers = together(database, [lambda c: decide(c, "r", "g", "approved", secret=bob) for _ in range(8)])
    assert sum(answer[0] for answer in answers) == 1
    assert {answer[1] for answer in answers} == {"decided"}
    assert events(db, "r").count("gate.voted") == 3 and events(db, "r").count("gate.resolved") == 1
    assert broken_logs(db) == []


def test_one_person_is_one_voter_whatever_they_say_or_hold(db: Db, database: str) -> None:
    token = new_run(db, "r")
    general = open_gate(db, "r", token, "g", required_approvals=3)[2]
    with user(db, database, "approver") as alice, user(db, database, "approver", "reader") as bob:
        with psycopg.connect(alice) as connection:
            login = connection.info.user
        own = value(db, "select tidebase.get_gate_secret('r', 'g', %s)", login)
        guises: list[dict[str, Any]] = [
            {},
            {"actor": "(secret)"},
            {"actor": "bob", "request_id": "one"},
            {"actor": "bob", "request_id": "two"},
            {"secret": own},
            {"secret": own, "actor": "bob"},
        ]

        def vote(connection: Db, given: dict[str, Any], role: str) -> Any:
            connection.execute(f"set role {role}")
            if "request_id" in given:  # the same call again would be told again that it was accepted
                given = {**given, "request_id": f"{given['request_id']} as {role}"}
            return decide(connection, "r", "g", "approved", **given)

        shots = [lambda c, g=given, r=role: vote(c, g, r) for given in guises for role in ("none", "tidebase_approver")]
        answers = together(alice, shots)
        assert sum(answer[0] for answer in answers) == 1 and {answer[4] for answer in answers} == {1}
        with psycopg.connect(alice, autocommit=True) as connection:
            for given in (
                {"secret": general},
                {"secret": general, "actor": "bob"},
                {"voter": "bob"},
                {"secret": own, "voter": "bob"},
                {"secret": own.replace(login, "bob")},
                {"secret": f"{general}_bob"},
            ):
                assert refusal(lambda g=given: decide(connection, "r", "g", "approved", **g)) == "TB009", given
        with psycopg.connect(bob, autocommit=True) as connection:
            assert decide(connection, "r", "g", "approved", actor=login)[::4] == (True, 2)  # alice has lost no vote
        with user(db, database, "reader") as carol, psycopg.connect(carol, autocommit=True) as connection:
            assert refusal(lambda: decide(connection, "r", "g", "approved", secret=general)) == "TB009"
            personal = value(db, "select tidebase.get_gate_secret('r', 'g', 'carol')")
            assert decide(connection, "r", "g", "approved", secret=personal)[:4] == (
                True,
                "decided",
                "approved",
                "carol",
            )
    voters = db.execute("select voter from tidebase.gate_votes order by voted_at").fetchall()
    assert len(voters) == 3 and voters[0] == (login,) and voters[2] == ("carol",)


def test_a_login_that_the_owner_has_named_votes_for_others(db: Db, database: str) -> None:
    token = new_run(db, "r")
    open_gate(db, "r", token, "g", required_approvals=2)
    with user(db, database, "approver") as url, psycopg.connect(url, autocommit=True) as bot:
        name = bot.info.user
        assert refusal(lambda: decide(bot, "r", "g", "approved", voter="ann")) == "TB009"
        db.execute("insert into tidebase_private.settings values ('speakers', %s::name[]::text)", [[name]])
        assert refusal(lambda: decide(bot, "r", "g", "approved", actor="ann")) == "TB009"  # whose vote is it?
        assert decide(bot, "r", "g", "approved", voter="ann", actor="Ann")[::4] == (True, 1)
        assert decide(bot, "r", "g", "approved", voter="ann", actor="Bob")[::4] == (False, 1)
        db.execute("set role tidebase_approver")
        assert refusal(lambda: decide(db, "r", "g", "approved", voter="bob")) == "TB009"
        db.execute("reset role")
        assert decide(bot, "r", "g", "approved", voter="bob")[:4] == (True, "decided", "approved", "bob")


def test_a_rejection_settles_a_gate_where_several_must_agree(db: Db) -> None:
    token = new_run(db, "r")
    open_gate(db, "r", token, "g", required_approvals=3)
    decide(db, "r", "g", "approved", actor="ann")
    assert decide(db, "r", "g", "rejected", actor="bob")[:4] == (True, "decided", "rejected", "bob")
    assert decide(db, "r", "g", "approved", actor="cyd")[:3] == (False, "decided", "rejected")


@pytest.mark.parametrize("by", ["reconcile", "a late decider", "the run", "a reader"])
def test_an_overdue_gate_gets_its_default_decision_whoever_looks_first(db: Db, by: str) -> None:
    token = new_run(db, "r")
    options = {"timeout": "1 hour", "default_decision": "rejected"}
    secret = open_gate(db, "r", token, "g", **options)[2]
    db.execute("update tidebase.gates set timeout_at = clock_timestamp()")
    db.execute("update tidebase.run_heads set due_at = clock_timestamp()")
    if by == "reconcile":
        assert value(db, "select gates from tidebase.reconcile()") == 1
    elif by == "the run":
        assert open_gate(db, "r", token, "g", **options)[:2] == ("decided", "rejected")
    elif by == "a reader":
        assert value(db, "select decision from tidebase.get_gate('r', 'g')") == "rejected"
    late = decide(db, "r", "g", "approved", secret=secret)
    assert late[:4] == (False, "decided", "rejected", None)
    assert value(db, "select decided_by from tidebase.gates") == "timeout"
    assert value(db, "select gates from tidebase.reconcile()") == 0
    assert events(db, "r").count("gate.resolved") == 1 and broken_logs(db) == []


def test_the_clock_of_the_database_decides_a_gate_that_nobody_looks_at(tide: Tidebase, db: Db) -> None:
    answer = tide.run("w", lambda run, input: run.gate("g", timeout_s=0.001).decision, run_id="r")
    assert answer == "timed_out"
    assert value(db, "select decided_by from tidebase.gates") == "timeout"


SCHEMA = {"type": "object", "required": ["to"], "properties": {"to": {"type": "string"}}}


def asked(tide: Tidebase, db: Db, **answer: Any) -> Any:
    """What a workflow gets that asks with a schema, for an answer that is given before it looks."""

    def workflow(run: Run, input: Any) -> Any:
        opening = run.gates.begin("g", options=["approved", "edited", "responded"], response_schema=SCHEMA)
        if opening.answer is None:
            given = {"secret": opening.secret, **answer}
            tide.gates.decide("r", "g", given.pop("decision", "approved"), **given)
        got = run.gate("g", options=["approved", "edited", "responded"], response_schema=SCHEMA)
        return [got.decision, got.approved, got.payload, got.comment, got.actor]

    return tide.run("w", workflow, run_id="r")


@pytest.mark.parametrize(("decision", "approved"), [("edited", True), ("responded", False)])
def test_an_answer_brings_its_payload(tide: Tidebase, db: Db, decision: str, approved: bool) -> None:
    got = asked(tide, db, decision=decision, payload={"to": "x"}, comment="so", actor="ann")
    assert got == [decision, approved, {"to": "x"}, "so", "ann"]


@pytest.mark.parametrize(
    "answer",
    [{"payload": {"to": 3}, "actor": "ann"}, {"payload": [], "actor": None}, {"actor": "ann"}, {}],
    ids=["wrong", "anonymous", "missing", "missing_and_anonymous"],
)
def test_an_answer_that_does_not_fit_its_schema_is_no_answer(tide: Tidebase, db: Db, answer: dict[str, Any]) -> None:
    with pytest.raises(GateAnswerInvalid):
        asked(tide, db, **answer)


def test_a_schema_that_is_none_is_told_before_anybody_is_asked(tide: Tidebase, db: Db) -> None:
    with pytest.raises(Exception, match="not valid under any of the given schemas"):
        tide.run("w", lambda run, input: run.gate("g", response_schema={"type": "nonsense"}), run_id="r")
    assert value(db, "select count(*) from tidebase.gates") == 0


def in_background(call: Any) -> Any:
    """A thread that does not keep the tests from ending; its result or its exception is in the list."""
    outcome: list[Any] = []

    def work() -> None:
        try:
            outcome.append(call())
        except BaseException as error:
            outcome.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return outcome


@pytest.mark.parametrize("end", ["decided", "cancelled"])
def test_a_blocked_gate_is_woken_by_the_doorbell(
    tide: Tidebase, db: Db, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    monkeypatch.setattr(gate_module, "POLL_S", 3600.0)  # only the doorbell can end the wait
    outcome = in_background(lambda: tide.run("w", lambda run, input: run.gate("g").decision, run_id="r"))
    until(
        db,
        "exists (select from pg_stat_activity"
        " where datname = current_database() and query ilike 'listen%' and state = 'idle')",
    )
    reached(lambda: bool(tide._database.doorbell._waiting.get("r")))
    if end == "decided":
        tide.gates.decide("r", "g", "approved")
    else:
        tide.runs.cancel("r")
    reached(lambda: bool(outcome))
    if end == "decided":
        assert outcome == ["approved"]
    else:
        assert isinstance(outcome[0], RunCancelledError)
        assert value(db, "select status from tidebase.gates") == "cancelled"
    assert broken_logs(db) == []


def test_a_gate_waits_with_a_doorbell_out_of_order_too(tide: Tidebase, db: Db) -> None:
    with psycopg.connect(tide.url, autocommit=True) as single:  # a single connection cannot listen
        outcome = in_background(
            lambda: Tidebase(single).run("w", lambda run, input: run.gate("g").decision, run_id="r")
        )
        until(db, "exists (select from tidebase.gates)")
        tide.gates.decide("r", "g", "rejected")
        reached(lambda: bool(outcome))
    assert outcome == ["rejected"]


def suspending(run: Run, input: Any) -> Any:
    before = run.step("before", lambda: "done once")
    return [before, run.gate("g", "Go?", suspend=True).decision, run.attempt]


def test_a_suspended_run_gives_its_lease_up_and_is_finished_after_the_decision(tide: Tidebase, db: Db) -> None:
    for _ in range(2):  # a second call changes nothing
        with pytest.raises(RunSuspendedError):
            tide.run("w", suspending, run_id="r")
        head = row(db, "select status, waiting_for, lease_expires_at, attempt from tidebase.run_heads")
        assert head == ("waiting", "g", None, 1)
    tide.gates.decide("r", "g", "approved")
    assert status(db, "r") == "pending"
    assert tide.run("w", suspending, run_id="r") == ["done once", "approved", 2]
    assert events(db, "r").count("step.completed") == 1 and broken_logs(db) == []


async def test_the_same_for_asyncio(atide: AsyncTidebase, db: Db) -> None:
    async def workflow(run: Any, input: Any) -> Any:
        await run.sleep("t", 0.001)
        first = (await run.gate("g", suspend=True)).decision
        opening = await run.gates.begin("h", required_approvals=1)
        if opening.answer is None:
            await atide.gates.decide("r", "h", "rejected", secret=opening.secret)
        return [first, (await run.gate("h")).decision, (await run.gates.get("h")).approved]

    with pytest.raises(RunSuspendedError):
        await atide.run("w", workflow, run_id="r")
    assert await atide.run("w", lambda run, input: None, run_id="other") is None
    with pytest.raises(NotEntitled):
        await atide.gates.decide("r", "g", "approved", secret="wrong")
    assert [found.name for found in await atide.gates.list()] == ["g"]
    await atide.gates.decide("r", "g", "approved")
    assert await atide.run("w", workflow, run_id="r") == ["approved", "rejected", False]
    assert broken_logs(db) == []


def test_a_worker_that_waits_goes_on_with_a_suspended_run(tide: Tidebase, database: str, db: Db) -> None:
    with pytest.raises(RunSuspendedError):
        tide.run("w", suspending, run_id="r")
    with Tidebase(database) as other:
        outcome = in_background(lambda: other.run("w", suspending, run_id="r", wait_s=PATIENCE_S))
        until(db, "exists (select from pg_stat_activity where query like '%acquire_run%' and pid <> pg_backend_pid())")
        tide.gates.decide("r", "g", "approved")
        reached(lambda: bool(outcome))
    assert outcome == [["done once", "approved", 2]]


PROCESS = """
import sys
from tidebase import RunSuspendedError, Tidebase
def workflow(run, input):
    run.step("first", lambda: 1)
    answer = run.gate("g", "Go?", suspend=True)
    return run.step("second", lambda: answer.decision)
try:
    print(Tidebase(sys.argv[1]).run("w", workflow, run_id="r"))
except RunSuspendedError:
    print("suspended")
"""


def test_a_suspended_run_survives_the_death_of_everything(database: str, server: Server) -> None:
    def process() -> str:
        return subprocess.run([sys.executable, "-c", PROCESS, database], capture_output=True, text=True).stdout.strip()

    assert process() == "suspended"
    server.cluster.stop("immediate")
    server.cluster.start()
    assert process() == "suspended"
    with Tidebase(database) as tide:
        tide.gates.decide("r", "g", "approved")
    server.cluster.stop("immediate")
    server.cluster.start()
    assert process() == "approved"


def suspend_against_decision(db: Db, url: str, first: str) -> list[str]:
    """Lets a suspension and a decision wait for the same head, in this order; returns what is wrong afterwards."""
    token = new_run(db, "r")
    open_gate(db, "r", token)
    suspend = ("select tidebase.suspend_run('r', %s, 'g')", [token])
    approve = ("select accepted from tidebase.decide_gate('r', 'g', 'approved')", [])
    calls = [suspend, approve] if first == "suspend" else [approve, suspend]

    def call(query: str, parameters: list[Any]) -> Any:
        with psycopg.connect(url, autocommit=True) as connection:
            return value(connection, query, *parameters)

    with ThreadPoolExecutor(2) as pool:
        with db.transaction():
            db.execute("select from tidebase.run_heads where run_id = 'r' for update")
            futures = []
            for position, (query, parameters) in enumerate(calls):
                futures.append(pool.submit(call, query, parameters))
                with psycopg.connect(url, autocommit=True) as watch:
                    reached(lambda w=watch, n=position: waiters(w) == n + 1)
        results = [future.result() for future in futures]
    state = status(db, "r")
    expected = ([True, True], "pending") if first == "suspend" else ([True, False], "running")
    wrong = [] if (results, state) == expected else [f"{first} first: {results}, the run is {state}"]
    stuck = value(
        db,
        "select count(*) from tidebase.run_heads h"
        " join tidebase.gates g on g.run_id = h.run_id and g.name = h.waiting_for where g.status <> 'pending'",
    )
    return wrong + ["it waits for a decided gate"] * stuck + broken_logs(db)


@pytest.mark.parametrize("first", ["suspend", "decide"])
def test_no_run_ever_waits_for_a_gate_that_is_decided(db: Db, database: str, first: str) -> None:
    assert suspend_against_decision(db, database, first) == []


def test_a_run_that_waits_forever_is_seen_failing_without_the_look_at_the_gate(db: Db, database: str) -> None:
    mutate(
        db, SUSPEND, "elsif gate.status = 'decided' or gate.timeout_at <= clock_timestamp() then", "elsif false then"
    )
    assert "it waits for a decided gate" in suspend_against_decision(db, database, "decide")


SLEEPER = """
import sys
from tidebase import Tidebase
Tidebase(sys.argv[1]).run("w", lambda run, input: run.sleep("t", 3600), run_id="r")
"""


def test_a_timer_goes_on_after_a_kill_with_what_is_left_of_it(tide: Tidebase, database: str, db: Db) -> None:
    process = subprocess.Popen([sys.executable, "-c", SLEEPER, database])
    until(db, "exists (select from tidebase.gates where kind = 'timer')")
    process.send_signal(signal.SIGKILL)
    process.wait()
    fires_at = value(db, "select timeout_at from tidebase.gates")
    expire(db, "r")
    outcome = in_background(lambda: tide.run("w", lambda run, input: run.sleep("t", 3600), run_id="r"))
    until(db, "(select attempt = 2 from tidebase.run_heads)")
    reached(lambda: bool(tide._database.doorbell._waiting.get("r")))
    assert value(db, "select timeout_at from tidebase.gates") == fires_at and not outcome
    db.execute("update tidebase.gates set timeout_at = clock_timestamp()")  # an hour later
    reached(lambda: bool(outcome))
    assert outcome == [None]
    assert events(db, "r").count("timer.started") == 1 and events(db, "r").count("timer.fired") == 1
    expire(db, "r")
    with pytest.raises(InputMismatch), tide.runs.attach("w", run_id="other") as session:
        session.sleep("t", 0)
        session.sleep("t", 1)


def test_a_run_that_sleeps_without_a_process_is_woken_by_reconcile(tide: Tidebase, db: Db) -> None:
    def workflow(run: Run, input: Any) -> int:
        run.sleep("t", 3600, suspend=True)
        return run.attempt

    with pytest.raises(RunSuspendedError):
        tide.run("w", workflow, run_id="r")
    assert tide.reconcile().timers == 0
    db.execute("update tidebase.gates set timeout_at = clock_timestamp()")
    db.execute("update tidebase.run_heads set due_at = clock_timestamp()")
    assert tide.reconcile().timers == 1
    assert status(db, "r") == "pending"
    assert tide.run("w", workflow, run_id="r") == 2
    assert events(db, "r").count("timer.fired") == 1 and broken_logs(db) == []


def test_an_overdue_timer_needs_no_reconcile(tide: Tidebase, db: Db) -> None:
    with pytest.raises(RunSuspendedError):
        tide.run("w", lambda run, input: run.sleep("t", 3600, suspend=True), run_id="r")
    db.execute("update tidebase.gates set timeout_at = clock_timestamp()")
    tide.run("w", lambda run, input: run.sleep("t", 3600, suspend=True), run_id="r")
    assert status(db, "r") == "completed" and broken_logs(db) == []


def test_a_timer_is_nothing_that_a_person_decides(tide: Tidebase, db: Db) -> None:
    with tide.runs.attach("w", run_id="r") as session, pytest.raises(LookupError):
        db.execute("select tidebase.start_timer('r', %s, 't', '1 hour')", [session.token])
        tide.gates.decide("r", "t", "elapsed")
    with tide.runs.attach("w", run_id="r") as session, pytest.raises(InputMismatch):
        session.gates.begin("t")  # the name is the timer's
    with tide.runs.attach("w", run_id="s") as session, pytest.raises(InvalidArgument):
        session.gates.begin("")


def test_a_completed_runs_pending_gate_is_out_of_the_inbox_and_stays_undecided(db: Db) -> None:
    token = new_run(db, "r")
    open_gate(db, "r", token, "g", timeout="1 hour")
    db.execute("select tidebase.complete_run('r', %s)", [token])
    db.execute("update tidebase.gates set timeout_at = clock_timestamp()")
    refusal(lambda: decide(db, "r", "g", "approved"))
    refusal(lambda: db.execute("select tidebase.get_gate('r', 'g')"))
    assert value(db, "select count(*) from tidebase.gate_inbox") == 0
    assert broken_logs(db) == []


def test_a_completed_run_leaves_no_gate_in_the_inbox(db: Db) -> None:
    token = new_run(db, "r")
    open_gate(db, "r", token, "g")
    db.execute("select tidebase.complete_run('r', %s)", [token])
    assert value(db, "select count(*) from tidebase.gate_inbox") == 0


def test_no_secret_is_anywhere_but_with_its_bearer(
    database: str, db: Db, tide: Tidebase, server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    told: list[str] = []
    log = server.cluster.data / "server.log"
    # What other tests have logged is theirs: their databases are copies of one, and so their secrets the same.
    logged_before = len(log.read_text())

    def workflow(run: Run, input: Any) -> Any:
        opening = run.gates.begin("g", "Go?", data={"n": 1}, required_approvals=2)
        told.extend([opening.secret, repr(opening), str(opening), f"{opening}"])
        return None

    tide.run("w", workflow, run_id="r")
    tide.run("w", workflow, run_id="s")
    secret = told[0]
    assert secret.startswith("gate_") and len(secret) == 69
    texts = told[1:4]
    for name, decision, given in (
        ("g", "approved", secret[:-1]),
        ("g", "nonsense", secret),
        ("none", "approved", secret),
    ):
        with pytest.raises(Exception) as caught:
            tide.gates.decide("s", name, decision, secret=given)
        texts += [str(caught.value), repr(caught.value), str(vars(caught.value))]
    with tide.runs.attach("w", run_id="t") as session:
        mine = session.gates.begin("g", required_approvals=2)
        told.append(mine.secret)
        personal = session.gates.secret("g", voter="ann")
        assert personal is not None and personal.endswith("_ann")
        told.append(personal.removesuffix("_ann"))
        assert tide.gates.decide("t", "g", "approved", secret=personal).accepted
        assert session.gates.secret("g") == tide.gates.secret("t", "g") == mine.secret
        texts += [repr(tide.gates.get("t", "g")), repr(list(tide.runs.events("t")))]
    dump = subprocess.run(
        [SERVERS[server.version] / "pg_dump", "--inserts", database], capture_output=True, text=True, check=True
    ).stdout
    assert "gate.voted" in dump and "ann" in dump
    texts += [dump, caplog.text, log.read_text()[logged_before:]]
    texts.append(repr(db.execute("select * from pg_stat_activity").fetchall()))
    assert "not entitled to decide gate" in texts[-2]
    for bare in (told[0], told[4], *told[-2:]):
        digits = bare.removeprefix("gate_")
        assert [text[:200] for text in texts if digits in text or digits[:-1] in text] == []
    for name in ("gate_secret(tidebase.gates,text)", "hmac(bytea)"):
        for role in ("worker", "approver", "operator", "reader"):
            may = value(
                db, "select has_function_privilege(%s, %s, 'execute')", f"tidebase_{role}", f"tidebase_private.{name}"
            )
            assert not may


def test_a_suspension_whose_answer_was_lost_may_be_repeated_after_the_decision(db: Db) -> None:
    token = new_run(db, "r")
    open_gate(db, "r", token)
    suspend = "select tidebase.suspend_run('r', %s, 'g')"
    assert value(db, suspend, token) and value(db, suspend, token)
    decide(db, "r", "g", "approved")
    assert value(db, suspend, token)  # it was suspended, whatever has happened since
    assert status(db, "r") == "pending" and events(db, "r").count("run.suspended") == 1
    acquire(db, "r")
    assert refusal(lambda: value(db, suspend, token)) == "TB003"
