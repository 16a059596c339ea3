"""Write-behind: a plain step's checkpoint is on its way while the work goes on; whatever can be seen waits for it."""

from __future__ import annotations

import asyncio
import inspect
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any

import psycopg
import pytest

from tidebase import (
    AsyncRun,
    AsyncTidebase,
    InvalidArgument,
    LeaseLostError,
    Run,
    RunSuspendedError,
    Tidebase,
    TidebaseError,
)
from tidebase.core import behind as core
from tidebase.core import flow
from tidebase.core.call import Call
from tidebase.core.joint import Joint
from tidebase.testing import crash_at

from .conftest import long
from .probes import behind as probes
from .probes.support import poll, take_over, value, values
from .support.amounts import KILLED_BEHIND
from .support.patience import PATIENCE_S

ON_NEWEST = True


@pytest.fixture
def behind(database: str) -> Iterator[Tidebase]:
    with Tidebase(database, checkpoints="behind") as client:
        yield client


@pytest.fixture
def nobody_carries(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is on its way stays there until somebody waits for it."""
    perform, perform_async = flow._perform, flow._perform_async

    def but_aside(effect: Any, database: Any) -> Any:
        return None if isinstance(effect, flow.Aside) else perform(effect, database)

    async def but_aside_async(effect: Any, database: Any) -> Any:
        return None if isinstance(effect, flow.Aside) else await perform_async(effect, database)

    monkeypatch.setattr(flow, "_perform", but_aside)
    monkeypatch.setattr(flow, "_perform_async", but_aside_async)
    monkeypatch.setattr(core, "WINDOW_S", 1e9)


def plain(run: Run) -> None:
    """A step whose start is never written, however long this machine takes for it."""
    run.step("plain", lambda: 1, mark_start=False)


def log(db: psycopg.Connection[Any], run_id: str) -> list[str]:
    """What the log tells: types, with the step's name."""
    query = "select concat_ws(' ', type, payload ->> 'name') from tidebase.events where run_id = %s order by seq"
    return values(db, query, run_id)


def test_a_checkpoint_is_stored_while_the_next_step_is_executed(behind: Tidebase, db: psycopg.Connection[Any]) -> None:
    def second() -> int:
        poll("the first is stored", lambda: value(db, "select count(*) from tidebase.steps where name = 'one'"))
        return 2

    def workflow(run: Run, _: Any) -> int:
        return run.step("one", lambda: 1, mark_start=False) + run.step("two", second, mark_start=False)

    assert behind.run("w", workflow, run_id="r") == 3
    told = [line for line in log(db, "r") if line.startswith("step.completed")]
    assert told == ["step.completed one", "step.completed two"]


async def test_so_it_is_in_asyncio(database: str, db: psycopg.Connection[Any]) -> None:
    async def second() -> int:
        query = "select count(*) from tidebase.steps where name = 'one'"
        await asyncio.to_thread(poll, "the first is stored", lambda: value(db, query))
        return 2

    async def workflow(run: AsyncRun, _: Any) -> int:
        return await run.step("one", lambda: 1, mark_start=False) + await run.step("two", second, mark_start=False)

    async with AsyncTidebase(database, checkpoints="behind") as tide:
        assert await tide.run("w", workflow, run_id="r") == 3


#: What a workflow does that others can see, and how its log begins with that.
SEEN: dict[str, Callable[[Run], Any]] = {
    "emit": lambda run: run.emit("agent.note"),
    "sleep": lambda run: run.sleep("t", 0),
    "gate": lambda run: run.gate("g", "Go?", suspend=True),
    "gates.begin": lambda run: run.gates.begin("g", "Go?"),
    "state.set": lambda run: run.state.set({"a": 1}),
    "state.patch": lambda run: run.state.patch({"a": 1}),
    "state.save": lambda run: (run.state.set(1), run.state.save("x")),
    "state.restore": lambda run: (run.state.set(1), run.state.restore(1)),
    "snapshots.create": lambda run: run.snapshots.create("s", {"a": 1}, target=("file", "f")),
    "usage.record": lambda run: run.usage.record(model="m", input_tokens=1),
    "child": lambda run: run.child("c", lambda child, _: 1),
    "fanout": lambda run: run.fanout("f", [{"name": "c", "workflow": lambda child, _: 1}]),
    "step with side effects": lambda run: run.step("mail", lambda: 1, side_effects=["mail"], idempotency_key="k"),
    "step with retries": lambda run: run.step("again", lambda: 1, retries=1),
    "step that is marked": lambda run: run.step("marked", lambda: 1, mark_start=True),
    "step that fails": lambda run: _failing(run),
    "transaction": lambda run: _in_transaction(run),
    "flush": lambda run: run.flush(),
}

#: They are of the run's own, and others see nothing of them; or they are made of what is above.
UNSEEN = {"step", "gates.get", "gates.secret", "state.get", "state.versions", "snapshots.list", "channels.list"} | {
    "channels.add",  # the run's by its id: anybody does the same from anywhere
    "channels.remove",
}


def _failing(run: Run) -> None:
    def fails() -> None:
        raise ValueError("no")

    with suppress(ValueError):
        run.step("fails", fails)


def _in_transaction(run: Run) -> None:
    with run.transaction("sql") as transaction:
        transaction.execute("select 1")


def test_all_that_a_run_does_is_known_here(behind: Tidebase) -> None:
    with behind.runs.attach("w") as run:
        done = {
            f"{name}.{method}" if not callable(part) else name
            for name, part in inspect.getmembers(run)
            if not name.startswith("_") and type(part).__module__.startswith("tidebase")
            for method, _ in inspect.getmembers(type(part), inspect.isfunction)
            if not method.startswith("_")
        } | {name for name, _ in inspect.getmembers(Run, inspect.isfunction) if not name.startswith("_")}
        run.close()
    done -= {"step.options"}
    assert done <= SEEN.keys() | UNSEEN, "say here whether others see it"


@pytest.mark.usefixtures("nobody_carries")
@pytest.mark.parametrize("what", SEEN)
def test_what_others_can_see_waits(behind: Tidebase, db: psycopg.Connection[Any], what: str) -> None:
    """Nobody carries anything, so what does not wait comes before the checkpoint for sure."""
    before: list[int] = []

    def workflow(run: Run, _: Any) -> None:
        plain(run)
        before.append(value(db, "select count(*) from tidebase.steps"))
        SEEN[what](run)
        before.append(value(db, "select count(*) from tidebase.steps where name = 'plain'"))

    with suppress(RunSuspendedError):
        behind.run("w", workflow, run_id="r")
    assert before[:2] in ([0, 1], [0])
    known = ("run.created", "run.acquired", "lease.acquired", "run.started", "run.attempt_started")
    told = [line for line in log(db, "r") if not line.startswith(known)]
    assert told[:2] == ["step.started plain", "step.completed plain"] or told[0] == "step.completed plain", told


@pytest.mark.usefixtures("nobody_carries")
@pytest.mark.parametrize("end", ["complete", "raise", "session.complete", "session.fail", "session.close", "block"])
def test_so_does_the_end(behind: Tidebase, db: psycopg.Connection[Any], end: str) -> None:
    def workflow(run: Run, _: Any) -> None:
        plain(run)
        assert value(db, "select count(*) from tidebase.steps") == 0
        if end == "raise":
            raise ValueError("no")

    with suppress(ValueError):
        if end in ("complete", "raise"):
            behind.run("w", workflow, run_id="r")
        elif end == "block":
            with behind.runs.attach("w", run_id="r") as session:
                workflow(session, None)
        else:
            session = behind.runs.attach("w", run_id="r")
            workflow(session, None)
            session.fail("no") if end == "session.fail" else getattr(session, end.partition(".")[2])()
    assert value(db, "select count(*) from tidebase.steps where status = 'completed'") == 1
    lines = log(db, "r")
    last = max(index for index, line in enumerate(lines) if line.startswith("step.completed"))
    assert last == len(lines) - 2


@pytest.mark.usefixtures("nobody_carries")
def test_a_step_that_takes_a_moment_is_seen_after_what_was_before_it(
    behind: Tidebase, db: psycopg.Connection[Any]
) -> None:
    def slow() -> None:
        poll("it is seen", lambda: value(db, "select count(*) from tidebase.steps where name = 'slow'"))

    def workflow(run: Run, _: Any) -> None:
        plain(run)
        run.step("slow", slow)

    behind.run("w", workflow, run_id="r")
    told = [line for line in log(db, "r") if line.startswith("step.")]
    assert told.index("step.completed plain") < told.index("step.started slow")


@pytest.mark.usefixtures("nobody_carries")
@pytest.mark.parametrize(("pad", "most"), [("", core.WINDOW), ("x" * 90_000, 13)])
async def test_no_more_are_on_their_way_than_the_window_has(database: str, pad: str, most: int) -> None:
    """By number, and by bytes."""
    ahead: list[int] = []
    with psycopg.connect(database, autocommit=True) as db:

        def work(number: int) -> dict[str, Any]:
            query = "select count(*) from tidebase.steps where run_id = current_setting('the.run')"
            ahead.append(number - value(db, query))
            return {"number": number, "pad": pad}

        def workflow(run: Run, _: Any) -> None:
            for number in range(3 * most):
                run.step.options(key=number, mark_start=False)("plain", work, number)

        async def workflow_in_tasks(run: AsyncRun, _: Any) -> None:
            for number in range(3 * most):
                await run.step.options(key=number, mark_start=False)("plain", work, number)

        def in_threads() -> None:
            with Tidebase(database, checkpoints="behind") as tide:
                tide.run("w", workflow, run_id="threads")

        db.execute("set the.run = 'threads'")
        await asyncio.to_thread(in_threads)
        assert most - 1 <= max(ahead) <= most
        ahead.clear()
        db.execute("set the.run = 'tasks'")
        async with AsyncTidebase(database, checkpoints="behind") as tide:
            await tide.run("w", workflow_in_tasks, run_id="tasks")
        assert most - 1 <= max(ahead) <= most


def nested(depth: int) -> Any:
    value: Any = 0
    for _ in range(depth):
        value = [value]
    return value


def test_what_is_refused_ends_the_work_and_nothing_behind_it_is_stored(
    behind: Tidebase, db: psycopg.Connection[Any]
) -> None:
    executed = []

    def workflow(run: Run, _: Any) -> None:
        for number in range(1000):
            executed.append(number)
            run.step.options(key=number)("plain", lambda: nested(600 if number == 3 else 1))  # noqa: B023

    with pytest.raises(InvalidArgument):
        behind.run("w", workflow, run_id="r")
    assert value(db, "select status from tidebase.run_overview") == "failed"
    names = values(db, "select name from tidebase.steps where status = 'completed' order by name")
    assert names == ["plain[0]", "plain[1]", "plain[2]"]
    assert len(executed) < 1000


def test_it_cannot_be_swallowed(behind: Tidebase, db: psycopg.Connection[Any]) -> None:
    """The work was told a result that is not stored: no call of this attempt goes on with it."""

    def workflow(run: Run, _: Any) -> str:
        run.step("bad", lambda: nested(600), mark_start=False)
        for act in (run.flush, lambda: run.emit("agent.note"), lambda: run.step("next", lambda: 1)):
            with pytest.raises(InvalidArgument):
                act()
        return "done"

    with pytest.raises(InvalidArgument):
        behind.run("w", workflow, run_id="r")
    assert value(db, "select status from tidebase.run_overview") == "failed"
    assert "agent.note" not in log(db, "r")
    with behind.runs.attach("w", run_id="r") as session:  # the next attempt is another one
        session.step("bad", lambda: 1)
        session.complete()


@pytest.mark.breaks_invariants  # a lease is made to lapse by hand
def test_who_was_replaced_is_told_and_stores_nothing(behind: Tidebase, db: psycopg.Connection[Any]) -> None:
    def workflow(run: Run, _: Any) -> None:
        run.step("mine", lambda: 1)
        run.flush()
        take_over(db, "r")
        while True:
            run.step.options(key=len(late))("late", lambda: late.append(1))

    late: list[int] = []
    with pytest.raises(LeaseLostError):
        behind.run("w", workflow, run_id="r")
    assert values(db, "select name from tidebase.steps") == ["mine"]
    assert len(late) <= core.WINDOW + 1


def test_threads_of_one_run_write_behind_together(behind: Tidebase, db: psycopg.Connection[Any]) -> None:
    def workflow(run: Run, _: Any) -> None:
        def some(thread: int) -> None:
            for number in range(50):
                run.step.options(key=(thread, number))("plain", lambda: number)  # noqa: B023

        threads = [threading.Thread(target=some, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    behind.run("w", workflow, run_id="r")
    assert value(db, "select count(*) from tidebase.steps where status = 'completed'") == 200


def test_a_child_of_a_fork_stores_at_once_and_leaves_the_rest_to_its_parent(
    behind: Tidebase, db: psycopg.Connection[Any]
) -> None:
    def in_child(run: Run) -> int:
        child = os.fork()
        if child == 0:
            with suppress(BaseException):
                run.step("of the child", lambda: os.getpid())
            os._exit(0)
        os.waitpid(child, 0)
        return 1

    def workflow(run: Run, _: Any) -> None:
        run.step("before", lambda: 1)
        in_child(run)
        run.step("after", lambda: 1)

    behind.run("w", workflow, run_id="r")
    done = values(db, "select name from tidebase.steps where status = 'completed' order by name")
    assert done == ["after", "before", "of the child"]


def a_call(name: str) -> Joint[str]:
    def gather(joints: Sequence[Joint[str]]) -> Call[list[str | None]]:
        return Call("together", tuple(joint.content for joint in joints), list)

    return Joint("run", name, 1, Call("alone", (name,), list), gather)


def sent(behind: core.Behind, name: str) -> list[Any]:
    """What a call asks for on its way: somebody who carries it, or to be waited for."""
    return list(behind.put(a_call(name), lambda answer: None))


def test_whoever_carries_takes_what_has_come_meanwhile_and_the_next_one_is_asked_for_again() -> None:
    behind = core.Behind()
    (aside,) = sent(behind, "a")
    carrier = aside.flow
    assert next(carrier).parameters == ("a",)
    assert sent(behind, "b") == sent(behind, "c") == []
    assert carrier.send("recorded").parameters == ("b", "c")
    with pytest.raises(StopIteration):
        carrier.send(["recorded", "recorded"])
    (again,) = sent(behind, "d")
    assert isinstance(again, flow.Aside)


def test_one_that_is_refused_together_is_told_alone_and_nothing_behind_it_is_made() -> None:
    behind = core.Behind()
    (aside,) = sent(behind, "a")
    carrier = aside.flow
    next(carrier)
    for name in "bcd":
        sent(behind, name)
    assert carrier.send("recorded").parameters == ("b", "c", "d")
    assert carrier.throw(TidebaseError("one of them")).parameters == ("b",)
    assert carrier.send("recorded").parameters == ("c",)
    sent(behind, "e")
    with pytest.raises(StopIteration):
        carrier.throw(TidebaseError("this one"))
    for act in (behind.settled(), behind.put(a_call("f"), lambda answer: None)):
        with pytest.raises(TidebaseError, match="this one"):
            list(act)
    assert list(behind.drained()) == []


def test_who_waits_makes_them_where_the_carrier_was_interrupted() -> None:
    behind = core.Behind()
    (aside,) = sent(behind, "a")
    next(aside.flow)
    waiting = behind.settled()
    answer = next(waiting)
    assert not answer.future.done()
    with pytest.raises(KeyboardInterrupt):
        aside.flow.throw(KeyboardInterrupt())
    assert answer.future.done()
    assert waiting.send(None).parameters == ("a",)
    with pytest.raises(StopIteration):
        waiting.send("recorded")


def test_who_comes_when_all_have_just_arrived_waits_for_nothing() -> None:
    """Between the last arrival and the carrier's look for more: nobody would ever tell him."""
    behind = core.Behind()
    asked: list[Any] = []

    def looks_for_more() -> Any:
        asked.extend(behind._pushed_on())
        return core.Behind._next(behind)

    (aside,) = sent(behind, "a")
    assert next(aside.flow).parameters == ("a",)
    behind._next = looks_for_more  # type: ignore[method-assign]
    with pytest.raises(StopIteration):
        aside.flow.send("recorded")
    assert asked == []


@pytest.mark.parametrize(
    ("when", "stored"), [("before", ["a"]), ("after work", ["a"]), ("after commit", ["a", "b", "c"])]
)
def test_a_crash_of_the_test_kit_loses_what_is_on_its_way(
    behind: Tidebase, db: psycopg.Connection[Any], when: Any, stored: list[str]
) -> None:
    def workflow(run: Run, _: Any) -> None:
        run.step("a", lambda: 1, mark_start=False)
        run.flush()
        for name in "bc":
            run.step(name, lambda: 1, mark_start=False)

    with crash_at("c", when=when):
        behind.run("w", workflow, run_id="r")
    assert values(db, "select name from tidebase.steps where status = 'completed' order by name") == stored


@pytest.mark.parametrize("given", ["", "later", None, 1])
def test_another_way_is_refused(given: Any) -> None:
    for face in (Tidebase, AsyncTidebase):
        with pytest.raises(InvalidArgument, match="checkpoints must be 'each' or 'behind'"):
            face("postgresql://nowhere", checkpoints=given)


def test_the_one_connection_of_the_caller_is_not_used_behind_his_back(db: psycopg.Connection[Any]) -> None:
    with pytest.raises(InvalidArgument, match="needs connections beside the one"):
        Tidebase(db, checkpoints="behind")


def test_a_step_at_the_end_of_the_process_is_stored(database: str, db: psycopg.Connection[Any]) -> None:
    """When the main thread has ended no pool begins a thread any more."""
    code = """
import threading
from tidebase import Tidebase
tide = Tidebase(checkpoints="behind")

def workflow(run, _):
    threading.main_thread().join()
    for number in range(3):
        run.step.options(key=number)("late", lambda: number)

threading.Thread(target=lambda: tide.run("w", workflow, run_id="r")).start()
"""
    environment = {**os.environ, "TIDEBASE_DATABASE_URL": database}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, timeout=PATIENCE_S)
    assert value(db, "select status from tidebase.run_overview where run_id = 'r'") == "completed"
    assert value(db, "select count(*) from tidebase.steps where status = 'completed'") == 3


@long
@pytest.mark.parametrize("face", probes.FACES)
def test_killed_workers_repeat_no_more_than_the_window(database: str, face: str) -> None:
    assert probes.killed_behind(database, KILLED_BEHIND.test, face) == []


@long
def test_the_probe_notices_what_does_not_wait(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What others can see goes first: in a process of the probe's, which is forked with that."""
    assert probes.killed_behind(database, 3, "hasty") != []
