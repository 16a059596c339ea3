"""The short form of a siege; and that what it is made of can fail."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from .conftest import SERVERS, long, on_newest
from .probes.support import Connection
from .test_mechanisms import Edit
from .torture.ledger.book import RIVAL, Entry, read
from .torture.ledger.scripts import script, through
from .torture.ledger.siege import SMALL, Finding, ledger, siege
from .torture.ledger.trouble import TROUBLES
from .torture.ledger.verdict import Account, Stored, figures, judge
from .torture.storm import Machine


@pytest.fixture(scope="module")
def machine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    machine = Machine(tmp_path_factory.mktemp("machine"), SERVERS[request.param])
    yield machine
    machine.cluster.stop("immediate")


#: What costs receipts today: a call that is answered with an error which would pass.
REFUSALS = ("a call is cancelled", "the server is read-only", "calls may not wait")


@on_newest("machine")
@long
def test_under_trouble_nothing_is_paid_twice_and_nothing_is_lost(machine: Machine, tmp_path: Path) -> None:
    troubles = tuple(kind for kind in TROUBLES if kind not in REFUSALS)
    finding = siege(machine, tmp_path, 8, 1, troubles, slots=SMALL, lease_s=2, least=(21, 6))
    assert finding.violations == []
    assert finding.figures["steps paid"] > 20 and finding.faults.total() > 5


# -- what it is made of, taken out


FENCING = Edit(
    "mark_lapsed",
    "perform tidebase_private.emit(",
    "update tidebase.run_heads h set lease_token = h.lease_token + 1 where h.run_id = head.run_id;\n"
    "  perform tidebase_private.emit(",
)


def found(machine: Machine, folder: Path, seconds: float, kind: str, **options: Any) -> Finding:
    """The first siege that finds something of this kind."""
    for seed in range(1, 5):
        finding = siege(machine, folder / str(seed), seconds, seed, slots=SMALL, lease_s=1, **options)
        if any(violation.startswith(kind) for violation in finding.violations):
            return finding
    pytest.fail(f"nothing was {kind}")


@on_newest("machine")
def test_a_siege_notices_that_a_lease_is_given_up_while_siblings_are_at_work(machine: Machine, tmp_path: Path) -> None:
    mutant = "tests.torture.ledger.mutants:leave_at_once"
    found(machine, tmp_path, 2, "paid twice", troubles=(), scripts=("pause",), mutant=mutant)


@on_newest("machine")
def test_a_siege_notices_that_time_fences_a_holder(machine: Machine, tmp_path: Path) -> None:
    def mutate(connection: Connection) -> None:
        FENCING.apply(connection)

    found(machine, tmp_path, 4, "paid twice", troubles=("a worker is stopped",), scripts=("line",), prepare=mutate)


# -- the ledger


def test_what_the_ledger_has_acknowledged_is_in_its_file(tmp_path: Path) -> None:
    about = {"run": "r", "root": "r", "token": 1, "attempt": 1, "kind": "keyed"}
    with ledger(tmp_path, 1, ("line",)) as (_, book):
        first = book.ask("charge", step="a", key="k", **about)
        assert book.ask("charge", step="a", key="k", **about) == first
        other = book.ask("charge", step="b", key=None, **about)
        assert book.ask("charges", run="r", step="a") == [first, first] and other != first
    entries = [entry for entry in read(tmp_path / "ledger.jsonl") if entry["op"] == "charge"]
    assert [(entry["receipt"], entry["again"]) for entry in entries] == [(first, False), (first, True), (other, False)]
    assert all(entry["pid"] == os.getpid() for entry in entries)


def test_the_ledger_hands_out_what_a_dead_process_has_begun(tmp_path: Path) -> None:
    with ledger(tmp_path, 1, ("line", "fork")) as (_, book):
        job = book.ask("next", slot="a")
        assert book.ask("next", slot="a", pid=1)["run"] == job["run"]  # to another process, not to this one again
        assert book.ask("next", slot="a", pid=1)["run"] != job["run"]
        assert book.ask("next", slot=RIVAL) == "wait"
        assert job["run"] in book.ask("order", of=1)
        assert book.ask("next", slot=RIVAL)["run"] == job["run"]
        book.ask("calm")
        for run in ("a-1-line", "a-2-fork"):
            book.ask("done", run=run, result=None)
        assert book.ask("next", slot="a") is None


def test_a_script_says_where_it_may_be_forked() -> None:
    assert through(script("quick", "slow half, unsafe", "quick end")) == "half"
    assert through(script("quick half, pausing gate")) == "half"
    assert through(script("quick")) is None


# -- the verdict, on ledgers made up for it

R = {"run": "r", "root": "r"}
RUN: Entry = {"op": "run", "run": "r", "body": script("slow a"), "t": 0}
DONE: Entry = {"op": "done", "run": "r", "result": {"a": "1"}, "t": 90}


def charge(t: int, token: int = 1, pid: int = 7, receipt: str = "1", kind: str = "slow", **more: Any) -> Entry:
    about = {"op": "charge", "step": "a", "kind": kind, "key": None, "again": False, **R}
    return about | {"t": t, "token": token, "pid": pid, "receipt": receipt} | more


def note(op: str, t: int, token: int = 1, pid: int = 7, **more: Any) -> Entry:
    return {"op": op, "t": t, "token": token, "pid": pid, "step": "a", "kind": "slow", **R, **more}


TOOK = note("took", 1)
GOT = note("got", 20, value="1")
REVIEW = {"op": "review", "t": 30, "run": "r", "step": "a", "decision": "retry", "reason": ""}
ORDER = {"op": "order", "t": 15, "run": "r", "from": 7}


def stored(**more: Any) -> Stored:
    return dataclasses.replace(Stored({("r", "a"): "1"}, {}, {"r": {"a": "1"}}, {}, {}), **more)


def found_in(entries: list[Entry], rows: Stored, killed: dict[int, int]) -> list[str]:
    return judge(Account([RUN, TOOK, *entries, DONE], killed), rows)


#: For each kind of violation a ledger that shows it, and no other.
BROKEN: dict[str, tuple[list[Entry], Stored, dict[int, int]]] = {
    "paid twice without a crash": ([charge(10), charge(20, token=2)], stored(), {}),
    "paid after the receipt was returned": ([charge(10), GOT, charge(40, token=2)], stored(), {7: 30}),
    "an unsafe step was executed again": (
        [charge(10, kind="unsafe"), charge(20, token=2, pid=8, kind="unsafe")],
        stored(),
        {7: 15},
    ),
    "keyed twice": (
        [charge(10, kind="keyed", key="k"), charge(20, token=2, kind="keyed", key="l")],
        stored(),
        {7: 15},
    ),
    "review without a crash": ([charge(10, kind="unsafe"), REVIEW], stored(), {}),
    "lost completion": ([charge(10, receipt="2")], stored(), {}),
    "wrong result": ([charge(10)], stored(results={"r": {"a": "2"}}), {}),
    "transaction twice": ([charge(10)], stored(effects={("r", "a"): ["1", "1"]}), {}),
    "transaction": ([charge(10)], stored(effects={("r", "b"): ["1"]}), {}),
    "invariant": ([charge(10)], stored(broken=["the log has a gap"]), {}),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_the_verdict_sees_a_broken_ledger(kind: str) -> None:
    assert {violation.split(":")[0] for violation in found_in(*BROKEN[kind])} == {kind}


def test_the_verdict_sees_what_stands_still_and_what_was_never_stored() -> None:
    assert [text.split(":")[0] for text in judge(Account([RUN], {}), stored())] == ["stuck"]
    assert found_in([charge(10)], stored(results={}), {})[0].startswith("lost completion: run r returned a result")


@pytest.mark.parametrize(
    ("entries", "killed"),
    [
        ([charge(10), GOT], {}),
        ([charge(10), charge(20, token=2, pid=8)], {7: 15}),
        ([charge(10), ORDER, charge(20, token=2, pid=8)], {}),
        ([ORDER, charge(20, token=2, pid=8), charge(30)], {}),  # it stood still before it paid
        ([charge(10, kind="unsafe"), REVIEW, charge(40, token=2, pid=8, kind="unsafe")], {7: 15}),
    ],
    ids=["once", "killed", "ordered away", "woken late", "a person said so"],
)
def test_the_verdict_finds_nothing_where_nothing_is(entries: list[Entry], killed: dict[int, int]) -> None:
    assert found_in(entries, stored(), killed) == []


def test_a_kill_excuses_only_what_was_paid_before_it() -> None:
    entries = [charge(10), charge(20, token=2), charge(30, token=3)]
    assert len(found_in(entries, stored(), {7: 5})) == 2
    assert figures(Account([RUN, TOOK, *entries], {7: 25}))["charges of workers that lived"] == 1
