"""What a run writes outside of its steps is written once, although its function runs from the top at each resume."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from typing import Any

import pytest

from tidebase import AsyncTidebase, NotFound, Run, Tidebase, VersionConflict

from .probes.support import Connection, values
from .support.patience import PATIENCE_S

ON_NEWEST = True

Work = Callable[[Run], Any]


class Crash(Exception):
    """Ends an attempt."""


def twice(tide: Tidebase, work: Work, run_id: str = "r") -> Any:
    """Does the work, fails, and resumes the run, which does it again; returns what it returned then."""

    def workflow(run: Run, input: Any) -> Any:
        result = work(run)
        if run.attempt == 1:
            raise Crash
        return result

    with pytest.raises(Crash):
        tide.run("w", workflow, run_id=run_id)
    return tide.run("w", workflow, run_id=run_id)


def documents(tide: Tidebase, stream: str | None = "main", run_id: str = "r") -> list[Any]:
    """Every document that a stream had, in that order."""
    return [version.value for version in tide.runs.state_versions(run_id, stream, with_value=True)][::-1]


def test_the_progress_of_a_resumed_run_does_not_run_backwards(tide: Tidebase) -> None:
    def work(run: Run) -> list[int]:
        return [
            run.state.set({"progress": 0, "todo": ["a"]}),
            run.state.patch({"progress": 0.2}),
            run.state.patch({"progress": 0.6}, reason="well under way", metadata={"n": 1}),
        ]

    assert twice(tide, work) == [1, 2, 3]  # the versions that were made then
    assert [document["progress"] for document in documents(tide)] == [0, 0.2, 0.6]


PROGRESS = f"""
import os, signal, sys
from tidebase import Tidebase

def work(run, input):
    run.state.set({{"progress": 0}})
    run.emit("agent.began", {{"question": input}})
    answer = run.step("ask", lambda: {{"tokens": 7}})
    run.usage.record(model="m", cost_usd="0.10", input_tokens=answer["tokens"])
    run.state.patch({{"progress": 0.5}})
    run.snapshots.create("half", {{"text": "x"}}, target=("file", "a"))
    if os.environ.get("DIE"):
        os.kill(os.getpid(), signal.SIGKILL)
    run.state.patch({{"progress": 1}})
    return run.attempt

with Tidebase(lease_s=0.2) as tide:
    print(tide.run("w", work, run_id="r", input="why", wait_s={PATIENCE_S}))
"""


def test_a_worker_killed_again_and_again_leaves_each_write_once(tide: Tidebase, database: str) -> None:
    environment = {**os.environ, "TIDEBASE_DATABASE_URL": database}
    for _ in range(3):
        dead = subprocess.run([sys.executable, "-c", PROGRESS], env={**environment, "DIE": "1"}, timeout=PATIENCE_S)
        assert dead.returncode == -signal.SIGKILL
    done = subprocess.run(
        [sys.executable, "-c", PROGRESS], env=environment, capture_output=True, text=True, timeout=PATIENCE_S
    )
    assert done.stdout == "4\n", done.stderr
    assert [document["progress"] for document in documents(tide)] == [0, 0.5, 1]
    types = [event.type for event in tide.runs.events("r")]
    assert [types.count(type) for type in ("agent.began", "usage.recorded", "snapshot.created")] == [1, 1, 1]
    totals = tide.runs.usage("r")
    assert (totals.records, totals.cost_usd, totals.input_tokens) == (1, Decimal("0.10"), 7)


def test_money_is_counted_once(tide: Tidebase) -> None:
    def work(run: Run) -> list[bool]:
        same: dict[str, Any] = {"model": "m", "input_tokens": 5, "cost_usd": "0.25", "metadata": {"a": 1}}
        return [run.usage.record(**same).recorded, run.usage.record(**same).recorded]

    assert twice(tide, work) == [False, False]
    assert (tide.runs.usage("r").records, tide.runs.usage("r").cost_usd) == (2, Decimal("0.50"))


def test_events_are_told_once_and_have_the_number_that_they_had(tide: Tidebase) -> None:
    seen: list[list[int]] = []

    def work(run: Run) -> None:
        seen.append(
            [
                run.emit("tick"),
                run.emit("tick"),  # twice in one attempt is twice
                run.emit("tick", transient=True),
                run.emit("told", {"b": 1, "a": 2}),
            ]
        )

    twice(tide, work)
    assert seen[0] == seen[1] and len(set(seen[0])) == 4
    assert [event.type for event in tide.runs.events("r") if event.seq in seen[0]] == ["tick"] * 3 + ["told"]
    assert sum(event.type in ("tick", "told") for event in tide.runs.events("r")) == 4


def test_what_the_attempts_do_differently_is_written_and_all_that_follows_it(tide: Tidebase) -> None:
    """The newest version is what the present attempt wrote last, and not what an earlier one made of it."""

    def work(run: Run) -> None:
        run.state.set("begun")
        run.state.set(f"attempt {run.attempt}")
        run.state.set("done")
        run.state.set("apart", stream="other")
        run.emit("same")
        run.emit("attempt", run.attempt)

    twice(tide, work)
    assert documents(tide) == ["begun", "attempt 1", "done", "attempt 2", "done"]
    assert documents(tide, "other") == ["apart"]
    told = [(event.type, event.payload) for event in tide.runs.events("r") if event.type in ("same", "attempt")]
    assert told == [("same", None), ("attempt", 1), ("attempt", 2)]


def test_every_kind_of_write_is_recognised(tide: Tidebase) -> None:
    def work(run: Run) -> list[int]:
        made = [run.state.set([1]), run.state.save("one"), run.state.set([2]), run.state.restore(label="one")]
        made += [run.state.restore(3), run.snapshots.create("of the run"), run.snapshots.create("of the run")]
        return [*made, run.snapshots.create("file", "x", target=("file", "a"), importance="transient")]

    assert twice(tide, work) == [1, 2, 3, 4, 5, 1, 2, 1]
    assert [version.operation for version in tide.runs.state_versions("r", "main")][::-1] == [
        "set",
        "save",
        "set",
        "restore",
        "restore",
    ]
    assert len(tide.runs.snapshots("r", target=("run", "self"))) == 2


def test_a_snapshot_of_another_state_is_another_one(tide: Tidebase) -> None:
    def work(run: Run) -> None:
        run.state.set({"attempt": run.attempt})
        run.snapshots.create("now")

    twice(tide, work)
    assert [snapshot.value for snapshot in tide.runs.snapshots("r", label="now")] == [{"attempt": 2}, {"attempt": 1}]


def test_a_write_that_expects_a_version_is_recognised_and_one_that_was_refused_is_tried_again(tide: Tidebase) -> None:
    def work(run: Run) -> list[int]:
        first = run.state.set("a", expected_version=0)
        second = run.state.set("b", expected_version=first)
        with pytest.raises(VersionConflict):
            run.state.set("never", expected_version=first)
        with pytest.raises(NotFound):
            run.state.restore(label="nowhere")
        return [first, second, run.state.set("c", expected_version=second)]

    assert twice(tide, work) == [1, 2, 3]
    assert documents(tide) == ["a", "b", "c"]


def test_what_was_written_between_two_attempts_stays_and_is_built_upon(tide: Tidebase) -> None:
    def workflow(run: Run, input: Any) -> None:
        run.state.set({"n": 1})
        if run.attempt == 1:
            raise Crash
        run.state.patch({"m": 2})

    with pytest.raises(Crash):
        tide.run("w", workflow, run_id="r")
    with tide.runs.attach("w", run_id="r") as session:
        session.state.patch({"by hand": True})
    tide.run("w", workflow, run_id="r")
    assert tide.runs.state("r").value == {"n": 1, "by hand": True, "m": 2}


def test_a_session_writes_each_time(tide: Tidebase) -> None:
    """It does not begin from the top: the same thing said again is said again."""
    for _ in range(2):
        with tide.runs.attach("w", run_id="r") as session:
            session.state.set("thinking")
            session.emit("message", "ok")
            session.usage.record(cost_usd=1)
            session.state.set("idle")
    assert documents(tide) == ["thinking", "idle"] * 2
    assert sum(event.type == "message" for event in tide.runs.events("r")) == 2
    assert tide.runs.usage("r").records == 2


def test_a_step_that_is_executed_again_writes_again(tide: Tidebase) -> None:
    """It may see other things this time; so do steps of a fan-out's children, which are runs of their own."""

    def work(run: Run) -> None:
        def step() -> None:
            run.state.set("in a step")
            run.usage.record(cost_usd=1)
            if run.attempt == 1:
                raise Crash

        run.step("s", step)

    with pytest.raises(Crash):
        tide.run("w", lambda run, _: work(run), run_id="r")
    tide.run("w", lambda run, _: work(run), run_id="r")
    assert (documents(tide), tide.runs.usage("r").records) == (["in a step"] * 2, 2)


def test_a_child_of_a_fan_out_is_outside_of_steps_of_its_own(tide: Tidebase) -> None:
    def child(run: Run, input: Any) -> None:
        run.state.set("once")
        run.usage.record(cost_usd=1)
        if run.attempt == 1:
            raise Crash

    def parent(run: Run, input: Any) -> None:
        run.fanout("f", [{"name": "c", "workflow": child}], retries=1, retry_delay_s=0)

    tide.run("p", parent, run_id="p")
    [_, node] = tide.runs.tree("p")
    assert documents(tide, run_id=node.run_id) == ["once"]
    assert [(row.step, row.records) for row in tide.runs.usage_by_step(node.run_id)] == [(None, 1)]


def test_threads_that_write_at_once_are_recognised_by_what_they_write(tide: Tidebase) -> None:
    """Where order does not matter: events and usage. Streams of their own keep states apart."""

    def work(run: Run) -> None:
        together = threading.Barrier(8)

        def write(n: int) -> None:
            together.wait()
            run.emit("thread", n)
            run.usage.record(quantity=n, unit="images")
            run.state.set(n, stream=f"s{n}")

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(write, range(8)))

    twice(tide, work)
    assert sorted(event.payload for event in tide.runs.events("r") if event.type == "thread") == list(range(8))
    assert tide.runs.usage("r").records == 8
    assert all(documents(tide, f"s{n}") == [n] for n in range(8))


def test_a_fork_recognises_what_came_along_with_it(tide: Tidebase, db: Connection) -> None:
    def workflow(run: Run, input: Any) -> None:
        run.state.set("first")
        run.step("a", lambda: run.state.set("in a step", stream="steps"))
        run.snapshots.create("snap", 1)
        run.emit("told")
        run.step("b", lambda: None)
        run.state.set("second")

    tide.run("w", workflow, run_id="r")
    for source, fork in (("r", "fork"), ("fork", "fork of it")):
        tide.runs.fork(source, fork, through_step="b")
        assert documents(tide, run_id=fork) == ["first"]
        tide.run("w", workflow, run_id=fork)
        assert documents(tide, run_id=fork) == ["first", "second"]
        assert len(tide.runs.snapshots(fork)) == 1
        assert sum(event.type == "told" for event in tide.runs.events(fork)) == 1  # its own: events of one's own stay
    # Ids that somebody made up for one call are that run's: another run may use them.
    with tide.runs.attach("w", run_id="by hand") as session:
        token = session.token
        db.execute("select tidebase.set_state('by hand', %s, '1', request_id => 'mine')", [token])
    tide.runs.fork("by hand", "fork by hand")
    assert values(db, "select count(request_id) from tidebase.events where run_id = 'fork by hand'") == [0]


def test_a_run_of_an_older_worker_writes_once_more(tide: Tidebase, monkeypatch: pytest.MonkeyPatch) -> None:
    """It made up an id for each call."""

    def workflow(run: Run, input: Any) -> None:
        if run.attempt == 1:
            run._hold.recall = None
        run.state.set("x")
        if run.attempt < 3:
            raise Crash

    for _ in range(2):
        with pytest.raises(Crash):
            tide.run("w", workflow, run_id="r")
    tide.run("w", workflow, run_id="r")
    assert documents(tide) == ["x", "x"]


async def test_the_same_awaited(atide: AsyncTidebase) -> None:
    async def workflow(run: Any, input: Any) -> Any:
        made = [await run.state.set({"n": 0}), await run.state.patch({"n": 1}), await run.state.save("saved")]
        made += [await run.snapshots.create("snap", [1]), await run.state.restore(1), await run.emit("told", "x")]
        await run.usage.record(cost_usd="0.5")
        if run.attempt == 1:
            raise Crash
        return made

    with pytest.raises(Crash):
        await atide.run("w", workflow, run_id="r")
    before = [event.type async for event in atide.runs.events("r")]
    made = await atide.run("w", workflow, run_id="r")
    assert made[:5] == [1, 2, 3, 1, 4]
    after = [event.type async for event in atide.runs.events("r")]
    assert after[len(before) :] == ["run.started", "run.completed"]
    assert (await atide.runs.usage("r")).cost_usd == Decimal("0.5")
