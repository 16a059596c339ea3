"""Forks: only what comes after the point is executed again, and the source is untouched."""

from __future__ import annotations

from functools import partial
from typing import Any

import psycopg
import pytest

from tidebase import (
    AsyncTidebase,
    InputMismatch,
    InvalidArgument,
    NotEntitled,
    Run,
    RunNotFound,
    StepNotRunning,
    Tidebase,
)
from tidebase.domain.workflow import bucket_of, new_run_id

from .probes.support import Connection, audit, grant, image_of, value, values

ON_NEWEST = True

STEPS = [f"s{number:02}" for number in range(20)]


class Agent:
    """A run of twenty steps that writes state in each, and remembers what it executed."""

    def __init__(self) -> None:
        self.executed: list[str] = []

    def __call__(self, run: Run, input: Any) -> Any:
        return [run.step(name, partial(self._work, run, name, input)) for name in STEPS]

    def _work(self, run: Run, name: str, input: Any) -> str:
        self.executed.append(name)
        run.state.patch({name: input, "last": name})
        return f"{name} of {input}"


def source(db: Connection, run_id: str) -> dict[str, Any]:
    """What is stored of a run, without the edges to its forks."""
    return {table: rows for table, rows in image_of(db, run_id).items() if table != "tidebase.edges"}


def test_a_fork_at_every_step_executes_only_what_comes_after(tide: Tidebase, db: Connection) -> None:
    agent = Agent()
    tide.run("agent", agent, run_id="r", input=1)
    assert agent.executed == STEPS
    before = source(db, "r")
    for number, name in enumerate(STEPS):
        agent.executed.clear()
        fork = tide.runs.fork("r", f"fork-{name}", through_step=name, input=2)
        assert (fork.status, fork.steps_completed, fork.attempt) == ("pending", number + 1, 0)
        assert tide.runs.state(fork.run_id).value["last"] == name
        result = tide.run("agent", agent, run_id=fork.run_id)
        assert agent.executed == STEPS[number + 1 :]
        assert result == [f"{s} of {1 if s <= name else 2}" for s in STEPS]
        assert tide.runs.state(fork.run_id).value == {s: 1 if s <= name else 2 for s in STEPS} | {"last": STEPS[-1]}
    assert source(db, "r") == before
    assert audit(db) == []


def test_forks_of_forks_at_every_step_before(tide: Tidebase, db: Connection) -> None:
    """A fork knows the order of what it took over: it can be forked at each of these steps, too."""
    agent = Agent()
    tide.run("agent", agent, run_id="r", input=1)
    tide.runs.fork("r", "child", through_step=STEPS[15])
    before = source(db, "r"), source(db, "child")
    for number in range(0, 15, 2):
        tide.runs.fork("child", f"grandchild-{number}", through_step=STEPS[number])
        agent.executed.clear()
        tide.run("agent", agent, run_id=f"grandchild-{number}", input=1)
        assert agent.executed == STEPS[number + 1 :]
        tide.runs.fork(f"grandchild-{number}", f"last-{number}", through_step=STEPS[number + 2])
        agent.executed.clear()
        assert tide.run("agent", agent, run_id=f"last-{number}") == [f"{s} of 1" for s in STEPS]
        assert agent.executed == STEPS[number + 3 :]
    assert (source(db, "r"), source(db, "child")) == before
    assert audit(db) == []
    assert {node.run_id for node in tide.runs.tree("r")} == set(values(db, "select run_id from tidebase.runs"))


def test_a_fork_at_every_event_has_what_was_there_then(tide: Tidebase, db: Connection) -> None:
    """Whatever the point: the log is dense, the state is the one of that event, the checkpoints are those up to it."""
    agent = Agent()
    tide.run("agent", agent, run_id="r", input=1)
    completed = {step.completed_seq for step in tide.runs.steps("r")}
    for seq in range(0, tide.runs.get("r").last_seq + 1, 3):
        fork = tide.runs.fork("r", through_seq=seq)
        assert fork.steps_completed == len([s for s in completed if s is not None and s <= seq])
        try:
            expected = tide.runs.state("r", seq=seq)
        except LookupError:
            with pytest.raises(LookupError):
                tide.runs.state(fork.run_id)
        else:
            there = tide.runs.state(fork.run_id)
            assert (there.value, there.version) == (expected.value, expected.version)
            assert tide.runs.state(fork.run_id, version=1).value == {"s00": 1, "last": "s00"}
    assert audit(db) == []


def test_a_gate_decided_before_the_point_keeps_its_decision_and_its_secret_is_worth_nothing(tide: Tidebase) -> None:
    secrets = []

    def work(run: Run, _: Any) -> Any:
        opening = run.gates.begin("first", "One?")
        secrets.append(opening.secret)
        if opening.answer is None:
            tide.gates.decide(run.run_id, "first", "approved", actor="ada", secret=opening.secret)
        first = run.gates.get("first")
        run.step("between", lambda: None)
        later = run.gates.begin("second", "Two?")
        secrets.append(later.secret)
        if later.answer is None:
            tide.gates.decide(run.run_id, "second", "rejected", secret=later.secret)
        assert first is not None
        return first.decision, first.actor

    tide.run("w", work, run_id="r")
    tide.runs.fork("r", "f", through_step="between")
    assert [(gate.name, gate.decision) for gate in tide.gates.list(run_id="f", status=None)] == [("first", "approved")]
    session = tide.runs.attach("w", run_id="f")
    opening = session.gates.begin("second", "Two?")
    assert opening.answer is None and opening.secret not in secrets
    for secret in secrets:
        with pytest.raises(NotEntitled):
            tide.gates.decide("f", "second", "approved", secret=secret)
    session.close()
    assert tide.run("w", work, run_id="f") == ["approved", "ada"]


def test_a_running_source_goes_on_undisturbed(tide: Tidebase, db: Connection) -> None:
    """The fork is made while the worker holds the run; a later purge of the source leaves the fork alone."""
    forks: list[str] = []

    def work(run: Run, _: Any) -> Any:
        run.step("one", lambda: 1)
        if not forks:
            forks.append(tide.runs.fork(run.run_id, reason="what if").run_id)
        return run.step("two", lambda: 2)

    assert tide.run("w", work, run_id="r") == 2
    assert [s.name for s in tide.runs.steps(forks[0])] == ["one"]
    first = next(iter(tide.runs.events(forks[0])))
    assert (first.seq, first.type, first.payload["reason"]) == (1, "run.forked", "what if")
    assert {(d.kind, d.name, d.difference) for d in tide.diff("r", forks[0])} == {
        ("step", "two", "missing"),
        ("result", None, "missing"),
    }
    assert tide.run("w", work, run_id=forks[0]) == 2 and tide.diff("r", forks[0]) == []


def test_a_fork_does_not_see_half_of_what_its_worker_is_writing(database: str, tide: Tidebase, db: Connection) -> None:
    """The worker has completed a step in a transaction that is still open: it is not in the fork, nor is its event."""
    tide.runs.create("w", run_id="r")
    token = grant(db, "r")
    db.execute("select tidebase.begin_step('r', %s, 's')", [token])
    with psycopg.connect(database) as open_transaction:
        open_transaction.execute("select tidebase.complete_step('r', %s, 's', '1')", [token])
        fork = tide.runs.fork("r")
    assert fork.steps_completed == 0 and fork.last_seq == 1
    assert tide.runs.fork("r").steps_completed == 1
    assert audit(db) == []


def test_what_cannot_be_forked(tide: Tidebase, db: Connection) -> None:
    with pytest.raises(RunNotFound):
        tide.runs.fork("nothing")
    session = tide.runs.attach("w", run_id="r")
    with pytest.raises(ZeroDivisionError):
        session.step("broken", lambda: 1 / 0)
    with pytest.raises(StepNotRunning):
        tide.runs.fork("r", through_step="broken")
    with pytest.raises(StepNotRunning):
        tide.runs.fork("r", through_step="never")
    with pytest.raises(InvalidArgument):
        tide.runs.fork("r", through_step="s", through_seq=1)
    with pytest.raises(InvalidArgument):
        tide.runs.fork("r", through_seq=1000)
    assert tide.runs.fork("r", "f").run_id == tide.runs.fork("r", "f").run_id == "f"
    with pytest.raises(InputMismatch):
        tide.runs.fork("r", "f", through_seq=1)
    with pytest.raises(InputMismatch):
        tide.runs.fork("r", "r")
    assert value(db, "select count(*) from tidebase.runs") == 2


async def test_the_same_awaited(atide: AsyncTidebase) -> None:
    async def work(run: Any, input: Any) -> Any:
        return [await run.step("one", lambda: input), await run.step("two", lambda: input)]

    assert await atide.run("w", work, run_id="r", input=1) == [1, 1]
    fork = await atide.runs.fork("r", through_step="one", input=2)
    assert await atide.run("w", work, run_id=fork.run_id) == [1, 2]
    assert [d.kind for d in await atide.diff("r", fork.run_id)] == ["input", "step", "result"]
    assert [node.depth for node in await atide.runs.tree("r")] == [0, 1]


def test_the_bucket_of_an_id_is_the_same_here_and_in_the_database(db: Connection) -> None:
    ids = [
        "r",
        "{}",
        "{a}b",
        "x{y",
        "{{a}",
        "a}{b}",
        "\\x41",
        "back\\slash",
        "ü",
        "\n",
        "run_x",
        new_run_id(),
        "x" * 255,
    ]
    ids += [new_run_id(beside=id) for id in ids]
    for id in ids:
        assert value(db, "select tidebase_private.bucket_of(%s)", id) == bucket_of(id), id
        assert bucket_of(new_run_id(beside=id)) == bucket_of(id)


def test_a_tree_of_runs_and_forks_lies_in_one_bucket(tide: Tidebase, db: Connection) -> None:
    def grandchild(run: Run, input: Any) -> str:
        return run.run_id

    def child(run: Run, input: Any) -> list[str]:
        return [run.run_id, run.child("grandchild", grandchild)]

    ids = tide.run("root", lambda run, input: run.child("child", child), run_id="order {7}")
    ids.append(tide.runs.fork("order {7}").run_id)
    ids.append(tide.runs.fork(ids[1]).run_id)
    assert {bucket_of(id) for id in ids} == {bucket_of("order {7}")}


def test_a_fork_takes_the_results_of_children_that_were_paid_for(tide: Tidebase, db: Connection) -> None:
    worked: list[str] = []

    def child(run: Run, input: Any) -> str:
        worked.append(input)
        run.usage.record(input_tokens=100)
        return f"result of {input}"

    def parent(run: Run, input: Any) -> list[str]:
        first = run.child("work", child, name="first", input="a")
        run.step("between", lambda: None)
        return [first, run.child("work", child, name="second", input="b")]

    tide.run("parent", parent, run_id="p")
    fork = tide.runs.fork("p", through_step="between")
    assert tide.run("parent", parent, run_id=fork.run_id) == ["result of a", "result of b"]
    assert worked == ["a", "b", "b"]
    whole = tide.runs.fork("p")
    assert tide.run("parent", parent, run_id=whole.run_id) == ["result of a", "result of b"]
    assert worked == ["a", "b", "b"]
    assert values(db, "select tree_input_tokens from tidebase.usage_totals where run_id = %s", whole.run_id) == [0]
