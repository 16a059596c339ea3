"""The short form of ``make torture``; and that what it is made of can fail."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from click.testing import CliRunner

from . import documents
from .conftest import SERVERS, long, on_newest
from .probes.support import Connection
from .support.patience import TEST_S
from .test_mechanisms import GRANT, LIVE, Edit
from .torture import page, report
from .torture.__main__ import main
from .torture.checker import RULES, History, Stored
from .torture.failover import failover
from .torture.jobs import Job, Result
from .torture.journal import Journal, Op, Try, read
from .torture.proxy import Proxy
from .torture.storm import Machine, small_disk, socket_of, storm, url_of


@pytest.fixture(scope="module", params=sorted(SERVERS), ids=lambda version: f"pg{version}")
def machine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    with small_disk(320) as disk:
        machine = Machine(tmp_path_factory.mktemp("machine"), SERVERS[request.param], disk)
        yield machine
        machine.cluster.stop("immediate")


#: How long clients are at work, in seconds; ``make torture`` has longer ones (``torture.jobs``).
STORM_S, FAILOVER_S = 6.0, 4.0


@long
def test_a_storm_breaks_no_promise(machine: Machine, tmp_path: Path) -> None:
    outcome = storm(machine, tmp_path, STORM_S, seed=1, least=(150, 8))
    assert outcome.violations == []
    assert outcome.calls > 100 and outcome.faults.total() > 5


@pytest.mark.parametrize(
    ("version", "synchronous"),
    [(max(SERVERS, default=None), True), (min(SERVERS, default=None), False)],
    ids=["synchronous", "asynchronous"],
)
@long
def test_a_failover_breaks_no_promise_that_holds_for_it(version: int, synchronous: bool, tmp_path: Path) -> None:
    outcome = failover(tmp_path, SERVERS[version], FAILOVER_S, 1, synchronous=synchronous, least=60)
    assert outcome.violations == []
    assert outcome.calls > 50


#: Seen by a storm, sooner or later. That an unsafe step is not repeated is seen by a probe, and by schedules: a storm
#: must have the luck to meet one that was begun and not completed.
MUTATIONS = {
    "the fence does not compare the token": (Edit("fence", "and h.lease_token = fence.token", ""),),
    "a grant does not look whether the lease is live": (Edit("is_taken", LIVE, "return false and"),),
    "a grant does not raise the token": (Edit("acquire_run", GRANT, "greatest(h.lease_token, 1)"),),
    "a completed step is recorded again": (
        Edit("record_step", "and tidebase_private.may_begin_again(s, head.lease_token, null, null, null)", ""),
    ),
    "a decision replaces the one before": (Edit("decide_gate", "if gate.status = 'decided' then", "if false then"),),
}


@on_newest("machine")
@pytest.mark.parametrize("name", MUTATIONS)
def test_a_storm_shows_that_a_mechanism_is_missing(name: str, machine: Machine, tmp_path: Path) -> None:
    def mutate(connection: Connection) -> None:
        for edit in MUTATIONS[name]:
            edit.apply(connection)

    faults = ("a client is killed", "a client is stopped")  # that is when it matters
    for seed in range(12):
        if storm(machine, tmp_path, 3 + seed, seed, faults, prepare=mutate, least=(100, 8)).violations:
            return
    pytest.fail(f"nothing was noticed although {name}")


@long
def test_without_its_mechanism_a_promoted_standby_issues_tokens_again(tmp_path: Path) -> None:
    def mutate(connection: Connection) -> None:
        Edit("acquire_run", GRANT, "h.lease_token + 1").apply(connection)

    for seed in range(8):
        folder = tmp_path / str(seed)
        folder.mkdir()
        outcome = failover(folder, SERVERS[max(SERVERS)], 6, seed, synchronous=False, prepare=mutate)
        if any(violation.startswith("tokens only grow") for violation in outcome.violations):
            return
    pytest.fail("nothing was noticed")


# -- the checker, on histories made up for it

RUN = {"run_id": "r"}
HELD = {"run_id": "r", "token": 1}


def op(function: str, begun: int, ended: int, value: Any, kind: str = "ok", **arguments: Any) -> Op:
    return Op(f"{function}@{begun}", function, {**RUN, **arguments}, [Try(begun, ended, kind, value)])


def granted(token: int, begun: int, ended: int) -> Op:
    return op("acquire_run", begun, ended, [{"outcome": "granted", "token": token}])


def begun(name: str, token: int, begun: int, ended: int) -> Op:
    return op("begin_step", begun, ended, [{"outcome": "execute", "output": None}], token=token, name=name)


def completed(begun: int, ended: int, seq: int, output: str = "x", **more: Any) -> Op:
    return op("complete_step", begun, ended, [{"complete_step": seq}], token=1, name="s", output={"id": output}, **more)


def appended(begun: int, ended: int, seq: int, unique: str = "n") -> Op:
    return op("append_event", begun, ended, [{"append_event": seq}], token=1, payload={"id": unique})


def stored(**more: Any) -> Stored:
    empty: dict[str, Any] = {
        "status": {"r": ("running", None)},
        "steps": {},
        "events": defaultdict(list),
        "notes": {},
        "states": {},
        "responses": set(),
        "gates": {},
        "children": {},
        "broken": [],
    }
    return Stored(**(empty | more))


STEP = {("r", "s"): ({"id": "x"}, 3)}
READ = {"seq": 1, "type": "note", "payload": {}}

#: For each rule a history that breaks it, and no other.
BROKEN: dict[str, tuple[list[Op], Stored]] = {
    "tokens only grow": ([granted(2, 0, 1), granted(2, 2, 3)], stored()),
    "a replaced holder writes nothing": ([granted(2, 0, 1), op("renew_lease", 2, 3, [{}], token=1)], stored()),
    "what was acknowledged is there": ([completed(0, 1, 3)], stored()),
    "what was refused is not there": (
        [op("append_event", 0, 1, "TB003", "error", token=1, payload={"id": "n"})],
        stored(notes={"n": [("r", 3)]}),
    ),
    "nothing is there twice or unasked": ([], stored(notes={"n": [("r", 3)]})),
    "a run is completed once": (
        [],
        stored(events={"r": [(1, "run.completed", {}), (2, "run.completed", {})]}),
    ),
    "a completed step never runs again": (
        [completed(0, 1, 3), begun("s", 1, 2, 3)],
        stored(steps=STEP),
    ),
    "an unsafe step is repeated only if a person says so": (
        [begun("unsafe1", 1, 0, 1), begun("unsafe1", 2, 2, 3)],
        stored(),
    ),
    "a gate is decided once": (
        [op("decide_gate", 0, 1, [{"status": "decided", "decision": "approved", "accepted": True}], name="g")],
        stored(gates={("r", "g"): "rejected"}),
    ),
    "later calls get higher numbers": (
        [appended(0, 1, 5, "a"), appended(2, 3, 4, "b")],
        stored(notes={"a": [("r", 5)], "b": [("r", 4)]}),
    ),
    "a reader misses nothing": ([op("read_events", 0, 1, [READ | {"seq": 2}], after=0, max=10)], stored()),
    "errors are expected": ([op("renew_lease", 0, 1, "40P01", "error", token=1)], stored()),
}


def test_there_is_a_broken_history_for_every_rule() -> None:
    assert list(BROKEN) == [rule.__name__.replace("_", " ") for rule in RULES]


@pytest.mark.parametrize("rule", BROKEN)
def test_the_checker_sees_a_broken_history(rule: str) -> None:
    ops, rows = BROKEN[rule]
    assert {violation.split(":")[0] for violation in History(ops, rows).check()} == {rule}


def test_the_checker_finds_nothing_where_nothing_is() -> None:
    ops = [granted(1, 0, 1), begun("s", 1, 1, 2), completed(2, 3, 3), granted(2, 4, 5)]
    assert History(ops, stored(steps=STEP)).check() == []


def test_a_client_may_be_stopped_before_it_reads_what_it_is_to_do() -> None:
    plain = [begun("s", 1, 0, 9), completed(3, 4, 3)]
    assert History(plain, stored(steps=STEP)).check() == []
    said = op("resolve_review", 2, 3, [{"resolve_review": 3}], step="unsafe1", decision="retry")
    unsafe = [begun("unsafe1", 1, 0, 9), said, begun("unsafe1", 2, 4, 5)]
    assert History(unsafe, stored()).check() == []


def test_what_a_promoted_standby_may_lose_is_not_missed() -> None:
    lost = [granted(1, 0, 1), completed(2, 3, 3)]
    assert History(lost, stored(), promoted=4).check() == []
    assert History([*lost, granted(1, 5, 6)], stored(), promoted=4).check() != []


def test_a_journal_says_what_was_answered_and_what_was_not(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "worker1.jsonl")
    first = journal.invoke("append_event", HELD)
    journal.answer(first, "lost", None)
    journal.invoke("append_event", HELD, first)
    journal.answer(first, "ok", [{"append_event": 3}])
    journal.invoke("renew_lease", HELD)
    with open(tmp_path / "worker1.jsonl", "ab") as file:
        file.write(b'{"op": "cut sho')
    answered, silent = read(tmp_path)
    assert ([t.kind for t in answered.tries], answered.ok, answered.refused) == (["lost", "ok"], True, False)
    assert (silent.ok, silent.refused, silent.tries[0].ended) == (False, False, None)


@on_newest("machine")
def test_the_proxy_breaks_a_connection_before_and_after_the_call(machine: Machine) -> None:
    with psycopg.connect(machine.cluster.url, autocommit=True) as observer:
        observer.execute("create table if not exists done (n integer)")
        observer.execute("truncate done")
        with Proxy(socket_of(machine), seed=3) as proxy:
            for number in range(40):
                with psycopg.connect(url_of(proxy, "postgres"), autocommit=True) as client:
                    proxy.chance = 1.0
                    with pytest.raises(psycopg.OperationalError):
                        client.execute("insert into done values (%s)", [number])
                    proxy.chance = 0.0
            assert set(proxy.broken) == {"before", "after", "in between"}
        (done,) = observer.execute("select count(*) from done").fetchone() or (0,)
        observer.execute("drop table done")
    assert proxy.broken["after"] <= done <= proxy.broken["after"] + proxy.broken["in between"]


def test_the_command_writes_its_report(tmp_path: Path) -> None:
    options = {"minutes": TEST_S / 60, "jobs": 1, "only": "probe", "processes": 1, "seed": 7, "output": tmp_path}
    arguments = [text for name, value in options.items() for text in (f"--{name}", str(value))]
    result = CliRunner().invoke(main, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    said = json.loads((tmp_path / "report.json").read_text())
    assert said["seed"] == 7 and said["violations"] == []
    assert said["kinds"] == {"probe": {"jobs": 1, "figures": {}, "violations": 0}}
    assert (tmp_path / "report.md").read_text().strip() in result.output


def test_a_report_adds_up_what_the_jobs_came_to(tmp_path: Path) -> None:
    walked = Result(Job("schedules", 18, ("errors",)), figures=Counter(schedules=1700, calls=20))
    left = Result(Job("schedules", 15, ("a release",)), False, figures=Counter(schedules=300, calls=5))
    broken = Result(Job("model", 18, (3,)), figures=Counter(sequences=2), violations=["it is wrong"])
    text = report.write([walked, left, broken], tmp_path, 7, 60.0)
    assert "| schedules, merged where they meet | 2,000 | 25 | 0 |" in text
    assert "| sequences against the model | 2 | 0 | 1 |" in text
    assert "errors (1,700), a release (300, not all)" in text
    said = json.loads((tmp_path / "report.json").read_text())
    assert said["casts"]["a release"] == {"schedules": 300, "complete": False}
    assert said["violations"] == ["model (3,) on Postgres 18: it is wrong"]


def test_the_page_says_what_the_report_says() -> None:
    """``python -m tests.torture.page`` brings it up to date."""
    text = page.PAGE.read_text("utf-8")
    assert text == documents.filled(text, page.MAKER, page.render(json.loads(page.REPORT.read_text("utf-8"))))
    assert set(page.mutants()) == {probe for _, _, probes in page.PROMISES for probe in probes}
