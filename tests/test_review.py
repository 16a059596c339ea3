"""No double fire: what may have taken effect on the outside is repeated by its key or by a person's word, or never."""

from __future__ import annotations

import multiprocessing
import random
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tidebase import InvalidArgument, Run, StepNotRunning, Tidebase
from tidebase.core.errors import RunNeedsReview

from .conftest import Server
from .support.amounts import KILLED_CHARGERS
from .support.gate import (
    Db,
    acquire,
    broken_logs,
    events,
    expire,
    mutate,
    new_run,
    refusal,
    row,
    status,
    together,
    user,
    value,
    values,
)
from .support.gate_worker import CHARGES, Charging, Ledger, work

ON_NEWEST = True

DECIDE_REPLAY = "tidebase_private.decide_replay(tidebase.steps,boolean)"
MAY_REPEAT = "tidebase_private.may_repeat(tidebase.steps,text[],text,text)"
ALLOWS = "tidebase_private.allows_repetition(text[],text,text)"
SOON = 8  # reports, of 3 * CHARGES + 1: most workers are killed before they are done

processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(["tidebase", "tests.support.gate_worker"])


@dataclass
class Massacre:
    """Workers that charge and are killed, over and over, until their runs are completed all the same."""

    url: str
    path: Path
    keyed: bool
    kills: int = 0
    reviews: Counter[str] = field(default_factory=Counter)

    def live_and_die(self, run_id: str, kill_at: int, exactly: bool) -> None:
        """One worker; it is killed once it has reported so many times: right there, or wherever it has got to."""
        ours, theirs = processes.Pipe(duplex=False)
        stop_at = kill_at if exactly else None
        worker = processes.Process(target=work, args=(self.url, run_id, self.path, self.keyed, theirs, stop_at))
        worker.start()
        theirs.close()
        try:
            for _ in range(kill_at):
                ours.recv_bytes()
        except EOFError:
            pass  # it has ended before
        else:
            worker.kill()
        worker.join()
        self.kills += worker.exitcode == -9
        assert worker.exitcode in (0, -9)

    def resolve(self, db: Db, run_id: str) -> None:
        """A person looks into the ledger and says what is to be done."""
        for step in values(db, "select step from tidebase.review_inbox where run_id = %s", run_id):
            line = f"{run_id} {step[7:-1]}"
            decision = "accept" if line in Ledger(self.path).charges() else "retry"
            output = f'"{line}"' if decision == "accept" else None
            db.execute("select tidebase.resolve_review(%s, %s, %s, %s)", [run_id, step, decision, output])
            self.reviews[decision] += 1

    def one_run(self, run_id: str, deaths: int, exact: list[int] | None = None) -> str | None:
        order = random.Random(run_id)
        with psycopg.connect(self.url, autocommit=True) as db:
            for number in range(deaths):
                kill_at = exact[number] if exact else order.randint(1, SOON)
                self.live_and_die(run_id, kill_at, exactly=exact is not None or order.random() < 0.5)
                expire(db, run_id)
                self.resolve(db, run_id)
            tide = Tidebase(db)
            while True:
                try:
                    result = tide.run("w", Charging(Ledger(self.path), self.keyed), run_id=run_id)
                except RunNeedsReview:
                    self.resolve(db, run_id)
                else:
                    break
        expected = [f"{run_id} {number}" for number in range(CHARGES)]
        return None if result == expected else f"{run_id}: {result}"

    def violations(self, kills: int, deaths: int, exact: list[int] | None = None) -> list[str]:
        """Goes on with one run after the other until so many workers were killed; returns what is wrong."""
        wrong = []
        runs = 0
        while self.kills < kills:
            told = self.one_run(f"r{runs}", deaths, exact)
            wrong += [] if told is None else [told]
            runs += 1
        charged = Counter(Ledger(self.path).charges())
        for number in range(runs):
            for charge in range(CHARGES):
                times = charged[f"r{number} {charge}"]
                if times == 0 or (times > 1 and not self.keyed):
                    wrong.append(f"r{number} {charge} was charged {times} times")
        return wrong


def test_every_run_completes_where_the_ledger_knows_its_keys(db: Db, database: str, tmp_path: Path) -> None:
    massacre = Massacre(database, tmp_path / "ledger", keyed=True)
    assert massacre.one_run("killed behind its charge", 1, exact=[3]) is None
    assert massacre.violations(KILLED_CHARGERS.test, deaths=5) == []
    assert not massacre.reviews
    requests = Counter(Ledger(massacre.path).charges())
    assert max(requests.values()) > 1  # so the keys did have something to do
    assert values(db, "select distinct status from tidebase.run_heads") == ["completed"]
    assert broken_logs(db) == []


def test_no_run_charges_twice_and_every_doubtful_one_is_asked_about(db: Db, database: str, tmp_path: Path) -> None:
    massacre = Massacre(database, tmp_path / "ledger", keyed=False)
    assert massacre.one_run("killed behind its charge", 1, exact=[3]) is None
    assert massacre.one_run("killed before it", 1, exact=[2]) is None
    assert massacre.reviews == {"accept": 1, "retry": 1}
    assert massacre.violations(KILLED_CHARGERS.test, deaths=5) == []
    assert value(db, "select count(*) from tidebase.reviews where resolved_at is null") == 0
    assert value(db, "select count(*) from tidebase.reviews") == massacre.reviews.total()
    assert broken_logs(db) == []


@pytest.mark.parametrize("mechanism", ["the_crash_classification", "the_contract"])
def test_a_double_charge_is_seen_failing_without(db: Db, database: str, tmp_path: Path, mechanism: str) -> None:
    if mechanism == "the_contract":
        mutate(db, ALLOWS, "tidebase_private.writes_outside(side_effects)", "false")
    else:
        for whose in ("step", "may_repeat"):
            contract = f"{whose}.side_effects, {whose}.idempotency_key, {whose}.replay"
            mutate(db, MAY_REPEAT, f"tidebase_private.allows_repetition({contract})", "true")
    massacre = Massacre(database, tmp_path / "ledger", keyed=False)
    # Killed right after its first charge: the third report.
    assert massacre.violations(kills=2, deaths=1, exact=[3]) == [
        "r0 0 was charged 2 times",
        "r1 0 was charged 2 times",
    ]


def begin(db: Db, run_id: str, token: int, contract: dict[str, Any]) -> str:
    given = "".join(f", {name} => %s" for name in contract)
    query = f"select outcome from tidebase.begin_step(%s, %s, 's'{given})"
    return str(value(db, query, run_id, token, *contract.values()))


def fail(db: Db, run_id: str, token: int, retryable: bool = True) -> str:
    query = "select decision from tidebase.fail_step(%s, %s, 's', '\"no\"', %s)"
    return str(value(db, query, run_id, token, retryable))


HARMLESS: list[dict[str, Any]] = [
    {},
    {"side_effects": []},
    {"side_effects": ["read"]},
    {"side_effects": ["charge", "read"], "idempotency_key": "k"},
    {"idempotency_key": "k"},
]
TABLE = [
    *[({**contract}, "safe_replay", "execute") for contract in HARMLESS],
    *[({**contract, "replay": "auto"}, "safe_replay", "execute") for contract in HARMLESS],
    *[({**contract, "replay": "manual"}, "manual_review", "review") for contract in HARMLESS],
    *[({**contract, "replay": "never"}, "fail_hard", "review") for contract in HARMLESS],
    ({"side_effects": ["charge"]}, "manual_review", "review"),
    ({"side_effects": ["read", "charge"]}, "manual_review", "review"),
    ({"side_effects": ["charge"], "replay": "auto"}, "manual_review", "review"),
    ({"side_effects": ["charge"], "replay": "manual"}, "manual_review", "review"),
    ({"side_effects": ["charge"], "replay": "never"}, "fail_hard", "review"),
]


@pytest.mark.parametrize("retries", [None, 1])
@pytest.mark.parametrize("row_number", range(len(TABLE)))
def test_the_table_of_the_resume_contract(db: Db, row_number: int, retries: int | None) -> None:
    contract, at_error, at_crash = TABLE[row_number]
    unsafe = "charge" in contract.get("side_effects", ()) and "idempotency_key" not in contract
    if retries is not None:
        contract = {**contract, "retries": retries}

    token = new_run(db, "error")
    assert begin(db, "error", token, contract) == "execute"
    if retries and not unsafe:
        assert fail(db, "error", token) == "auto_retry"
        assert begin(db, "error", token, contract) == "execute"
    assert fail(db, "error", token) == at_error
    expire(db, "error")
    again = acquire(db, "error")
    if at_error == "fail_hard":
        assert refusal(lambda: begin(db, "error", again, contract)) == "TB007"
    else:
        assert begin(db, "error", again, contract) == ("review" if at_error == "manual_review" else "execute")

    token = new_run(db, "no retry")
    begin(db, "no retry", token, contract)
    assert fail(db, "no retry", token, retryable=False) == at_error

    # Whether its worker died, was fenced or gave the lease up: nobody knows how far the step got.
    for run_id in ("crash", "released"):
        token = new_run(db, run_id)
        begin(db, run_id, token, contract)
        if run_id == "crash":
            expire(db, run_id)
        else:
            db.execute("select tidebase.release_run(%s, %s)", [run_id, token])
        # What the next worker says about the step does not make the earlier execution any safer.
        assert begin(db, run_id, acquire(db, run_id), {"idempotency_key": "k"} if unsafe else contract) == at_crash
        assert status(db, run_id) == ("review" if at_crash == "review" else "running")
        cause = values(db, "select cause from tidebase.review_inbox where run_id = %s", run_id)
        assert cause == (["crash"] if at_crash == "review" else [])
    assert broken_logs(db) == []


def test_the_start_of_an_unsafe_step_waits_for_the_disk(database: str, server: Server) -> None:
    with psycopg.connect(database, autocommit=True) as db:
        token = new_run(db, "r")
        for name, contract, expected in [
            ("read", "side_effects => '{read}'", "off"),
            ("plain", "side_effects => null", "off"),
            ("write", "side_effects => '{charge}'", "on"),
            ("keyed", "side_effects => '{charge}', idempotency_key => 'k'", "on"),
        ]:
            for session in ("on", "off"):
                db.execute(f"set synchronous_commit = {session}")
                with db.transaction(force_rollback=True):
                    db.execute(f"select tidebase.begin_step('r', {token}, %s, {contract})", [name])
                    assert value(db, "show synchronous_commit") == expected, (name, session)
        db.execute("select tidebase.begin_step('r', %s, 'charge', side_effects => '{charge}')", [token])
        server.cluster.stop("immediate")
    server.cluster.start()
    with psycopg.connect(database, autocommit=True) as db:
        assert value(db, "select status from tidebase.steps where name = 'charge'") == "running"


def in_review(db: Db, run_id: str = "r") -> int:
    """A run that waits for a person's decision about its step ``s``; the token of its last lease."""
    begin(db, run_id, new_run(db, run_id), {"side_effects": ["charge"], "verified_by": "the bank"})
    expire(db, run_id)
    token = acquire(db, run_id)
    assert begin(db, run_id, token, {"side_effects": ["charge"]}) == "review"
    return token


def test_of_sixteen_who_decide_at_once_one_is_heard(db: Db, database: str) -> None:
    for number in range(10):
        run_id = f"r{number}"
        in_review(db, run_id)
        deciders = [
            lambda c, n=decider, r=run_id: refusal(
                lambda: c.execute(
                    "select tidebase.resolve_review(%s, 's', %s, '1', actor => %s, reason => 'because')",
                    [r, ["retry", "accept", "fail"][n % 3], f"person {n}"],
                )
            )
            for decider in range(16)
        ]
        told = together(database, deciders)
        assert sorted(told, key=str) == [None, *["TB008"] * 15]
        winner = told.index(None)
        decision = ["retry", "accept", "fail"][winner % 3]
        kept = row(db, "select decision, actor, reason from tidebase.reviews where run_id = %s", run_id)
        assert kept == (decision, f"person {winner}", "because")
        assert status(db, run_id) == {"retry": "pending", "accept": "pending", "fail": "failed"}[decision]
        payload = value(db, "select payload from tidebase.events where run_id = %s and type = 'step.reviewed'", run_id)
        audited = {"name": "s", "attempt": 1, "decision": decision, "actor": f"person {winner}", "reason": "because"}
        assert payload == audited
        assert events(db, run_id).count("step.reviewed") == 1
    assert broken_logs(db) == []


def test_the_second_word_is_seen_heard_without_the_look_at_the_step(db: Db, database: str) -> None:
    in_review(db)
    mutate(
        db,
        "tidebase.resolve_review(text,text,text,jsonb,text,text,text)",
        "and s.name = resolve_review.step and s.status = 'review'",
        "and s.name = resolve_review.step",
    )
    told = together(
        database,
        [lambda c: refusal(lambda: c.execute("select tidebase.resolve_review('r', 's', 'retry')")) for _ in range(4)],
    )
    assert told.count(None) > 1


def test_only_approvers_and_operators_review(db: Db, database: str) -> None:
    for role, may in (("worker", False), ("reader", False), ("approver", True), ("operator", True)):
        in_review(db, role)
        with user(db, database, role) as url, psycopg.connect(url, autocommit=True) as connection:
            query = "select tidebase.resolve_review(%s, 's', 'retry')"
            told = refusal(lambda c=connection, q=query, r=role: c.execute(q, [r]))
            who = connection.info.user
        assert told == (None if may else "42501")
        actor = value(db, "select actor from tidebase.reviews where run_id = %s", role)
        assert actor == (who if may else None)


def test_what_a_person_decides_is_what_the_run_goes_on_with(tide: Tidebase, db: Db) -> None:
    executed: list[str] = []

    def workflow(run: Run, input: Any) -> Any:
        return run.step("s", lambda: executed.append(run.run_id) or "executed", side_effects=["charge"])

    for decision in ("retry", "accept", "fail"):
        begin(db, decision, new_run(db, decision), {"side_effects": ["charge"]})
        expire(db, decision)
        with pytest.raises(RunNeedsReview):
            tide.run("w", workflow, run_id=decision)
        with pytest.raises(RunNeedsReview):
            tide.run("w", workflow, run_id=decision)
        assert [review.cause for review in tide.runs.reviews(decision)] == ["crash"]
        tide.runs.resolve_review(decision, "s", decision, output={"ok": 1}, actor="ann")  # type: ignore[arg-type]
        assert list(tide.runs.reviews()) == []
        if decision == "fail":
            assert tide.runs.get("fail").status == "failed"
            with pytest.raises(StepNotRunning):
                tide.run("w", workflow, run_id="fail")
        else:
            result = tide.run("w", workflow, run_id=decision)
            assert result == ({"ok": 1} if decision == "accept" else "executed")
    assert executed == ["retry"] and broken_logs(db) == []


def test_a_run_that_fails_over_an_open_review_waits_for_the_person(tide: Tidebase, db: Db) -> None:
    def workflow(run: Run, input: Any) -> Any:
        return run.step("s", lambda: 1 / 0, side_effects=["charge"], retries=5)

    with pytest.raises(ZeroDivisionError):
        tide.run("w", workflow, run_id="r", max_attempts=3, retry_delay_s=0)
    assert tide.runs.get("r").status == "review" and tide.runs.get("r").attempt == 1
    assert [(review.step, review.cause) for review in tide.runs.reviews()] == [("s", "error")]
    tide.runs.resolve_review("r", "s", "accept", output=7)
    assert tide.run("w", workflow, run_id="r") == 7


def test_a_review_may_be_decided_while_the_run_goes_on(db: Db) -> None:
    token = new_run(db, "r")
    begin(db, "r", token, {"side_effects": ["charge"]})
    assert fail(db, "r", token) == "manual_review"
    assert status(db, "r") == "running"
    db.execute("select tidebase.resolve_review('r', 's', 'retry')")
    assert status(db, "r") == "running"
    assert begin(db, "r", token, {"side_effects": ["charge"]}) == "execute"
    assert fail(db, "r", token) == "manual_review"  # and a person is asked again
    assert value(db, "select count(*) from tidebase.reviews") == 2 and broken_logs(db) == []


def test_a_run_is_not_completed_over_a_question_to_a_person(tide: Tidebase, db: Db) -> None:
    def workflow(run: Run, input: Any) -> str:
        with pytest.raises(ZeroDivisionError):
            run.step("s", lambda: 1 / 0, side_effects=["charge"])
        return "all is well"

    with pytest.raises(RunNeedsReview, match=r"may have taken effect.*tidebase review r s retry"):
        tide.run("w", workflow, run_id="r")
    assert status(db, "r") == "review"
    with pytest.raises(InvalidArgument, match="output must be given with accept"):
        tide.runs.resolve_review("r", "s", "accept")
    tide.runs.resolve_review("r", "s", "accept", output=7)
    assert tide.run("w", lambda run, input: run.step("s", int, side_effects=["charge"]), run_id="r") == 7
    assert broken_logs(db) == []


def test_nothing_is_a_result_too(tide: Tidebase, db: Db) -> None:
    db.execute("select tidebase.begin_step('r', %s, 's', side_effects => '{charge}')", [new_run(db, "r")])
    expire(db, "r")
    with pytest.raises(RunNeedsReview):
        tide.run("w", lambda run, input: run.step("s", int, side_effects=["charge"]), run_id="r")
    tide.runs.resolve_review("r", "s", "accept", output=None)
    assert tide.run("w", lambda run, input: run.step("s", int, side_effects=["charge"]), run_id="r") is None


@pytest.mark.parametrize("order", [("fail", "retry"), ("retry", "fail")])
def test_a_run_of_which_one_step_was_failed_by_a_person_fails(db: Db, order: tuple[str, str]) -> None:
    token = new_run(db, "r")
    for step in order:
        db.execute("select tidebase.begin_step('r', %s, %s, side_effects => '{charge}')", [token, step])
        db.execute("select tidebase.fail_step('r', %s, %s)", [token, step])
    assert value(db, "select status from tidebase.fail_run('r', %s)", token) == "review"
    for step in order:
        db.execute("select tidebase.resolve_review('r', %s, %s)", [step, step])
    assert status(db, "r") == "failed"
