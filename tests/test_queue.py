"""Queues through the package: what is enqueued is worked on, once; what is asked wrongly is refused in words."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from types import SimpleNamespace
from typing import Any

import psycopg
import pytest

from tidebase import (
    AlreadyQueued,
    AsyncRun,
    AsyncTidebase,
    DatabaseUnavailable,
    InvalidArgument,
    LeaseLostError,
    NotFound,
    Run,
    Tidebase,
)
from tidebase.client import worker as worker_of_threads
from tidebase.core.call import Call
from tidebase.core.flow import Flow
from tidebase.core.mark import Answer
from tidebase.domain.claim import Completions
from tidebase.domain.lease import Hold
from tidebase.domain.run import Completion

from .probes.support import attempt, call, connect, poll, queue, value, values

ON_NEWEST = True

Db = psycopg.Connection[Any]


@contextmanager
def at_work(tide: Tidebase, *queues: str, **options: Any) -> Iterator[Any]:
    """A worker in a thread, for as long as the block takes."""
    worker = tide.worker(queues or ("default",), **{"poll_s": 0.2, "drain_s": 5, **options})
    thread = threading.Thread(target=worker.run)
    thread.start()
    try:
        yield worker
    finally:
        worker.stop()
        thread.join()


def status(tide: Tidebase, run_id: str) -> str:
    return tide.runs.get(run_id).status


def test_what_is_enqueued_is_worked_on(tide: Tidebase) -> None:
    @tide.workflow("double")
    def double(run: Run, input: int) -> int:
        return run.step("double", lambda: 2 * input)

    ids = [tide.enqueue("double", n).run_id for n in range(5)]
    ids += [made.run_id for made in tide.enqueue_many([{"workflow": "double", "input": n} for n in range(5, 20)])]
    with at_work(tide):
        poll("all are done", lambda: all(status(tide, run_id) == "completed" for run_id in ids))
    assert [tide.runs.get(run_id).result for run_id in ids] == [2 * n for n in range(20)]
    assert {tide.runs.get(run_id).attempt for run_id in ids} == {1}
    (worker,) = tide.queues.workers()
    assert (worker.holder, worker.queues, worker.running) == (tide.holder, ["default"], 0)


async def test_a_worker_of_tasks_works_as_one_of_threads(atide: AsyncTidebase) -> None:
    @atide.workflow("double")
    async def double(run: AsyncRun, input: int) -> int:
        return await run.step("double", lambda: 2 * input)

    ids = [made.run_id for made in await atide.enqueue_many([{"workflow": "double", "input": n} for n in range(20)])]
    worker = atide.worker(poll_s=0.2)
    working = asyncio.create_task(worker.run())
    while (await atide.runs.get(ids[-1])).status != "completed" or (await atide.queues.get("default")).running:
        await asyncio.sleep(0.02)
    worker.stop()
    await working
    assert [(await atide.runs.get(run_id)).result for run_id in ids] == [2 * n for n in range(20)]


def test_a_run_is_enqueued_if_and_only_if_the_callers_transaction_commits(tide: Tidebase, db: Db) -> None:
    with db.transaction():
        made = tide.bind(db).enqueue("w", run_id="kept")
    with pytest.raises(ZeroDivisionError), db.transaction():
        tide.bind(db).enqueue("w", run_id="gone")
        raise ZeroDivisionError
    assert not made.deduplicated
    assert [run.run_id for run in tide.runs.list()] == ["kept"]


def test_what_fails_is_tried_again_and_then_it_is_a_dead_letter(tide: Tidebase) -> None:
    tries: list[int] = []

    @tide.workflow("fails")
    def fails(run: Run, input: None) -> None:
        tries.append(1)
        raise ValueError("no")

    run_id = tide.enqueue("fails", max_attempts=3, retry_delay_s=0.01).run_id
    with at_work(tide):
        poll("it is given up", lambda: status(tide, run_id) == "failed")
        run = tide.runs.get(run_id)
        assert (len(tries), run.attempt, run.failure_class) == (3, 3, "max_attempts")
        assert tide.queues.get("default").failed == 1
        assert tide.runs.retry_many(queue="default", dry_run=True).matched == 1
        assert tide.runs.retry_many(queue="default").done == 1
        poll("it is given up again", lambda: (status(tide, run_id), len(tries)) == ("failed", 6))


def test_who_waits_for_a_gate_takes_no_hand_and_comes_back(tide: Tidebase) -> None:
    @tide.workflow("asks")
    def asks(run: Run, input: str) -> str:
        run.step("before", lambda: 1)
        return run.gate("ok", "Go on?", suspend=True).decision or "" if input == "ask" else "at once"

    with at_work(tide, concurrency=1):
        waits = tide.enqueue("asks", "ask").run_id
        poll("it waits", lambda: status(tide, waits) == "waiting")
        other = tide.enqueue("asks", "no").run_id
        poll("the hand is free", lambda: status(tide, other) == "completed")
        tide.gates.decide(waits, "ok", "approved")
        poll("it came back", lambda: status(tide, waits) == "completed")
    assert tide.runs.get(waits).result == "approved"


def test_limits_are_kept_and_may_change_meanwhile(tide: Tidebase, db: Db) -> None:
    free, at_once, most = threading.Semaphore(0), 0, 0
    lock = threading.Lock()

    @tide.workflow("slow")
    def slow(run: Run, input: None) -> None:
        nonlocal at_once, most
        with lock:
            at_once, most = at_once + 1, max(most, at_once + 1)
        free.acquire()
        with lock:
            at_once -= 1

    tide.queues.put("q", concurrency=2)
    tide.enqueue_many([{"workflow": "slow", "queue": "q"}] * 12)
    with at_work(tide, "q", concurrency=10):
        poll("two are at work", lambda: at_once == 2 and tide.queues.get("q").held_back_by == "concurrency")
        for _ in range(4):
            free.release()
        poll("four are done", lambda: tide.queues.get("q").ready == 6)
        assert most == 2
        tide.queues.put("q", concurrency=5)
        poll("five are at work", lambda: (at_once, tide.queues.get("q").running) == (5, 5))
        tide.queues.pause("q")
        for _ in range(20):
            free.release()
        poll("none is at work", lambda: tide.queues.get("q").running == 0)
        assert tide.queues.get("q").ready > 0 and tide.queues.get("q").held_back_by == "paused"
        tide.queues.resume("q")
        poll("all are done", lambda: tide.queues.get("q").ready == 0)
    assert most == 5


def test_a_worker_that_stops_lets_its_runs_go_on_and_takes_no_more(tide: Tidebase) -> None:
    begun, go_on = threading.Event(), threading.Event()

    @tide.workflow("slow")
    def slow(run: Run, input: None) -> str:
        begun.set()
        go_on.wait(60)
        return "done"

    first = tide.enqueue("slow").run_id
    with at_work(tide, concurrency=1, drain_s=60) as worker:
        assert begun.wait(60)
        worker.stop()
        second = tide.enqueue("slow").run_id
        go_on.set()
    assert (status(tide, first), status(tide, second)) == ("completed", "queued")


def test_what_takes_longer_than_the_drain_is_given_up_without_counting(tide: Tidebase) -> None:
    begun, go_on = threading.Event(), threading.Event()

    @tide.workflow("slow")
    def slow(run: Run, input: None) -> str:
        begun.set()
        run.step("long", lambda: go_on.wait(60) and "paid")
        return run.step("next", lambda: "done")

    run_id = tide.enqueue("slow").run_id
    with at_work(tide, concurrency=1, drain_s=0) as worker:
        assert begun.wait(60)
        worker.stop()
        poll("it is to go", lambda: all(hold.departure for hold in worker._brood.holds) and worker._brood.holds)
        go_on.set()
    assert status(tide, run_id) == "queued"
    with at_work(tide):
        poll("another goes on", lambda: status(tide, run_id) == "completed")
    run = tide.runs.get(run_id)
    assert (run.attempt, run.result, [step.attempt for step in tide.runs.steps(run_id)]) == (2, "done", [1, 1])
    assert [attempt.outcome for attempt in tide.runs.attempts(run_id)] == ["released", "completed"]


def test_a_worker_takes_only_what_it_knows(tide: Tidebase) -> None:
    tide.workflow("known")(lambda run, input: None)
    strange, known = tide.enqueue("strange").run_id, tide.enqueue("known").run_id
    with at_work(tide):
        poll("what it knows is done", lambda: status(tide, known) == "completed")
    assert status(tide, strange) == "queued"


def test_a_delayed_run_is_taken_up_in_time_by_one_who_sleeps(tide: Tidebase) -> None:
    tide.workflow("w")(lambda run, input: None)
    with at_work(tide, poll_s=3600):
        poll("it sleeps", lambda: tide.queues.workers())
        run_id = tide.enqueue("w", delay_s=0.3).run_id
        now = tide.enqueue("w").run_id  # wakes it, so that it hears of the other
        poll("both are done", lambda: {status(tide, run_id), status(tide, now)} == {"completed"})


def completions(count: int) -> tuple[list[Flow[None]], list[Any]]:
    """Flows of runs that end one after the other, each driven until it wants something: what that is."""
    together = Completions()
    flows = [together.complete(Hold(f"r{n}", n, 1, 60.0), f'"{n}"') for n in range(count)]
    return flows, [next(flow) for flow in flows]


def answer(call: Call[Any], **codes: str) -> list[Completion]:
    """What complete_runs says to such a call."""
    return [
        Completion(run, 9, codes.get(run), "no" if run in codes else None, None, None) for run in call.parameters[0]
    ]


def ends(flow: Flow[None], with_: Any = None) -> bool:
    """Whether a flow ends, when it is given this."""
    try:
        flow.send(with_)
    except StopIteration:
        return True
    return False


def test_what_ends_while_a_call_is_under_way_is_completed_by_the_next() -> None:
    (first, second, third, fourth), (call, *waits) = completions(4)
    assert call.parameters == (["r0"], [0], ['"0"']) and call.held
    assert all(isinstance(wait, Answer) and not wait.future.done() for wait in waits)
    assert ends(first, answer(call))
    assert [wait.future.done() for wait in waits] == [True, False, False]  # who leads now
    call = second.send(None)
    assert call.parameters == (["r1", "r2", "r3"], [1, 2, 3], ['"1"', '"2"', '"3"'])
    assert not waits[1].future.done()  # it hears only after the commit
    assert ends(second, answer(call, r2="TB003", r3="55P03"))
    with pytest.raises(LeaseLostError, match="no"):
        third.send(None)
    alone = fourth.send(None)  # which waits for who has it locked, and nobody with it
    assert "complete_run(" in alone.query and alone.parameters == ("r3", 3, '"3"')
    assert ends(fourth, 9)


@pytest.mark.parametrize("error", [asyncio.CancelledError(), InvalidArgument("no")], ids=["cancelled", "refused"])
def test_who_completes_runs_together_and_does_not_come_to_it_leaves_each_to_itself(error: BaseException) -> None:
    (first, second, third, fourth), (call, *_) = completions(4)
    assert ends(first, answer(call))
    second.send(None)
    if isinstance(error, InvalidArgument):
        assert "complete_run(" in second.throw(error).query
    else:
        with pytest.raises(asyncio.CancelledError):
            second.throw(error)
    for flow in (third, fourth):
        assert "complete_run(" in flow.send(None).query


def test_the_database_is_not_waited_for_twice() -> None:
    (first, second), (call, _) = completions(2)
    assert ends(first, answer(call))
    second.send(None)
    with pytest.raises(DatabaseUnavailable):
        second.throw(DatabaseUnavailable("away"))


def test_who_gives_up_waiting_to_be_completed_holds_nobody_up() -> None:
    (first, second, third, fourth), (call, *_) = completions(4)
    third.close()
    assert ends(first, answer(call))
    second.close()  # which was to make the next call
    call = fourth.send(None)
    assert call.parameters[0] == ["r3"] and ends(fourth, answer(call))


def test_a_run_that_is_locked_at_its_end_holds_no_other_up(tide: Tidebase, db: Db) -> None:
    begun, go_on = threading.Barrier(3, timeout=60), threading.Event()

    @tide.workflow("w")
    def w(run: Run, input: None) -> str:
        begun.wait()
        go_on.wait(60)
        return "done"

    locked, other = tide.enqueue("w").run_id, tide.enqueue("w").run_id
    with at_work(tide, concurrency=2):
        begun.wait()
        with db.transaction():
            db.execute("select from tidebase.run_heads where run_id = %s for no key update", [locked])
            go_on.set()
            poll("the other one is done", lambda: status(tide, other) == "completed")
            assert status(tide, locked) == "running"
        poll("so is the one that was locked", lambda: status(tide, locked) == "completed")


@pytest.mark.parametrize("stops", [False, True], ids=["is slow", "stops"])
def test_what_was_taken_up_ahead_is_given_back(tide: Tidebase, monkeypatch: pytest.MonkeyPatch, stops: bool) -> None:
    """A worker whose runs were short has taken some up for which it then has no hand: others need not wait for it."""
    begun, go_on = threading.Event(), threading.Event()
    monkeypatch.setattr(worker_of_threads, "AHEAD_S", 3600.0)
    monkeypatch.setattr(worker_of_threads, "STALE_S", 3600.0 if stops else 0.1)

    @tide.workflow("w")
    def w(run: Run, input: str) -> None:
        if input == "slow":
            begun.set()
            go_on.wait(60)

    first = tide.enqueue("w", "quick").run_id
    with at_work(tide, concurrency=1) as worker:
        poll("one was short", lambda: status(tide, first) == "completed")
        made = tide.enqueue_many([{"workflow": "w", "input": given} for given in ["slow", *["quick"] * 3]])
        ids = [each.run_id for each in made]
        assert begun.wait(60)
        poll(
            "they are in its hand",
            lambda: stops is False or [status(tide, run_id) for run_id in ids] == ["running"] * 4,
        )
        if stops:
            worker.stop()
        poll("they are given back", lambda: [status(tide, run_id) for run_id in ids[1:]] == ["queued"] * 3)
        assert status(tide, ids[0]) == "running"
        go_on.set()
    with at_work(tide, concurrency=1):
        poll("all are done", lambda: all(status(tide, run_id) == "completed" for run_id in ids))


def test_what_was_given_back_is_not_taken_up_again_at_once(tide: Tidebase) -> None:
    """It would be, again and again, as long as the hand has something long to do."""
    worker = tide.worker(concurrency=1)
    claim = SimpleNamespace(run_id=tide.enqueue("w").run_id, token=1)
    crew = SimpleNamespace(take_back=lambda: [claim])
    worker._pace = 0.01
    assert worker._ahead() == 4
    worker._hand_back_what_waits(crew)
    assert worker._ahead() == 0


def test_what_has_waited_for_a_hand_for_too_long_is_not_begun(tide: Tidebase, db: Db) -> None:
    """Nobody has renewed its lease, so it may be another worker's."""
    tide.workflow("w")(lambda run, input: pytest.fail("it was begun"))
    run_id, worker = tide.enqueue("w").run_id, tide.worker()
    (claim,) = worker._claim(1, False)
    worker._claimed[run_id] -= tide.lease_s / 2
    worker._work(claim)
    assert status(tide, run_id) == "queued" and worker.tally.claims == {} and worker._claimed == {}


def test_who_stops_while_the_database_is_away_does_not_try_for_each_run(
    tide: Tidebase, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker, asked = tide.worker(), []

    def execute(call: Any) -> None:
        asked.append(call)
        raise DatabaseUnavailable("away")

    monkeypatch.setattr(tide._database, "execute", execute)
    crew = SimpleNamespace(take_back=lambda: [SimpleNamespace(run_id=f"r{n}", token=1) for n in range(5)])
    worker._hand_back_what_waits(crew, at_once=True)
    assert len(asked) == 1


def test_nothing_is_taken_up_ahead_beside_what_was_begun_before(tide: Tidebase) -> None:
    worker = tide.worker(concurrency=4)
    assert worker._ahead() == 0  # nobody knows how long a run takes
    worker._pace = 0.05
    assert worker._ahead() == 16
    worker._pace = 0.1
    assert worker._ahead() == 10
    worker._begun_before = {"it may kill its worker"}
    assert worker._ahead() == 0
    worker._begun_before, worker._pace = set(), 0.3
    assert worker._ahead() == 0


def test_one_of_a_key(tide: Tidebase) -> None:
    first = tide.enqueue("w", 1, dedupe_key="k")
    assert tide.enqueue("w", 2, dedupe_key="k") == type(first)(first.run_id, True)
    with pytest.raises(AlreadyQueued) as caught:
        tide.enqueue("w", 3, dedupe_key="k", on_duplicate="reject")
    assert caught.value.sqlstate == "TB013" and caught.value.detail["run_id"] == first.run_id
    tide.enqueue("w", 4, dedupe_key="k", on_duplicate="replace", delay_s=60, max_wait_s=600)
    run = tide.runs.get(first.run_id)
    assert run.input == 4 and run.available_at is not None


@pytest.mark.parametrize(
    "wrong",
    [
        {"queue": ""},
        {"queue": "x" * 256},
        {"priority": 40_000},
        {"delay_s": -1},
        {"delay_s": 1, "run_at": datetime(2100, 1, 1, tzinfo=timezone.utc)},
        {"key": " "},
        {"dedupe_key": ""},
        {"on_duplicate": "ignore"},
        {"max_wait_s": 3},
        {"max_attempts": 0},
        {"metadata": []},
    ],
)
def test_what_is_enqueued_wrongly_is_refused(tide: Tidebase, wrong: Any) -> None:
    with pytest.raises(InvalidArgument):
        tide.enqueue("w", **wrong)
    with pytest.raises(InvalidArgument) as caught:
        tide.enqueue_many([{"workflow": "w"}, {"workflow": "w", **wrong}])
    assert "runs[1]" in str(caught.value)
    assert tide.runs.list() == []


def test_words_that_nobody_knows_are_refused(tide: Tidebase) -> None:
    with pytest.raises(TypeError, match="is it 'priority'"):
        tide.enqueue("w", priorty=3)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="is it 'queue'"):
        tide.enqueue_many([{"workflow": "w", "quue": "q"}])  # type: ignore[typeddict-unknown-key]
    with pytest.raises(TypeError, match="is it 'concurrency'"):
        tide.queues.put("q", concurency=3)  # type: ignore[call-arg]
    for wrong in ({"queues": []}, {"concurrency": 0}, {"poll_s": 0}, {"queues": {"q": 0}}):
        with pytest.raises(InvalidArgument):
            tide.worker(**wrong)
    with pytest.raises(NotFound):
        tide.queues.get("never heard of")


def test_weights_let_each_queue_come_first_at_times(tide: Tidebase) -> None:
    worker = tide.worker({"often": 9, "seldom": 1})
    first = [worker._order()[0] for _ in range(500)]
    assert first.count("often") > first.count("seldom") > 0


def test_runs_are_moved_and_cancelled_in_bulk(tide: Tidebase) -> None:
    tide.enqueue_many([{"workflow": "w", "queue": "a", "metadata": {"tenant": n % 2}} for n in range(6)])
    assert tide.runs.move_many("b", queue="a", metadata={"tenant": 1}, priority=7).done == 3
    assert {run.priority for run in tide.runs.list() if run.queue == "b"} == {7}
    assert tide.runs.cancel_many(queue="a", dry_run=True).matched == 3
    assert tide.runs.cancel_many(queue="a", reason="no more").done == 3
    assert tide.runs.cancel_many(older_than=timedelta(days=1)).matched == 0
    with pytest.raises(InvalidArgument, match="by mistake"):
        tide.runs.cancel_many()


def test_by_its_id_a_run_of_a_queue_is_worked_on_where_there_is_room(tide: Tidebase) -> None:
    made = tide.enqueue("w", 5)
    assert tide.run("w", lambda run, input: input + 1, run_id=made.run_id) == 6
    tide.queues.pause("default")
    held = tide.enqueue("w", 5).run_id
    with pytest.raises(Exception, match="queue") as caught:
        tide.run("w", lambda run, input: input, run_id=held)
    assert "resume" in str(caught.value) or "room" in str(caught.value)


def test_a_schema_without_queues_of_its_own_has_none(tide: Tidebase, db: Db) -> None:
    assert tide.queues.list() == [] and tide.queues.workers() == [] and tide.schedules.list() == []
    assert value(db, "select count(*) from tidebase.claim_runs()") == 0


def test_a_claim_that_is_made_twice_at_once_is_granted_once(database: str, db: Db) -> None:
    """The second waits for the first, and gets what that got: else it would be nobody's until its lease ran out."""
    ids = values(db, "select (tidebase.enqueue_run('w', run_id => id)).run_id from unnest(array['a', 'b']) id")
    claim = "select run_id from tidebase.claim_runs('{default}', %s, request_id => 'once')"
    with connect(database) as other, connect(database) as observer, queue(database) as line:
        with other.transaction():
            first = values(other, claim, "one")
            second = line.add(lambda mine: values(mine, claim, "two"))
            line.settle(observer)
        assert second.result() == values(db, claim, "two") == first == ids[:1]
    assert values(db, "select status from tidebase.run_overview order by run_id") == ["running", "queued"]


def test_who_waits_frees_its_hand(tide: Tidebase) -> None:
    """A worker with one hand: a gate, a long timer and a child that asks take none; a step that asks does."""
    began = []

    @tide.workflow("w")
    def w(run: Run, how: str) -> Any:
        began.append(how)
        if how == "gate":
            return run.gate("g", "Go on?").decision
        if how == "timer":
            return run.sleep("t", 3600)
        if how == "child":
            return run.child("c", lambda child, _: child.gate("g", "Go on?").decision)
        if how == "in a step":
            return run.step("ask", lambda: run.gate("g", "Go on?").decision)
        return run.sleep("short", 0.01)

    def waits(how: str) -> bool:
        return status(tide, how) == "waiting"

    for how in ("gate", "timer", "child", "short"):
        tide.enqueue("w", how, run_id=how)
    with at_work(tide, concurrency=1):
        poll("all came by", lambda: status(tide, "short") == "completed")
        assert all(map(waits, ("gate", "timer", "child")))
        tide.gates.decide("gate", "g", "approved")
        (node,) = [node for node in tide.runs.tree("child") if node.run_id != "child"]
        tide.gates.decide(node.run_id, "g", "rejected")
        poll("they come back", lambda: {status(tide, how) for how in ("gate", "child")} == {"completed"})
        assert (tide.runs.get("gate").result, tide.runs.get("child").result) == ("approved", "rejected")
        # A step would be done again: it waits where it is, unless it is told otherwise.
        tide.enqueue("w", "in a step", run_id="in a step")
        poll("it asks", lambda: [gate.run_id for gate in tide.gates.list()] == ["in a step"])
        assert status(tide, "in a step") == "running"
        tide.gates.decide("in a step", "g", "approved")
        poll("it goes on", lambda: status(tide, "in a step") == "completed")
    assert began.count("gate") == 2 and began.count("in a step") == 1


def test_a_worker_may_be_told_to_wait(tide: Tidebase) -> None:
    @tide.workflow("w")
    def w(run: Run, input: Any) -> str:
        return run.gate("g", "Go on?").decision

    tide.enqueue("w", run_id="r")
    with at_work(tide, suspend=False):
        poll("it asks", lambda: len(tide.gates.list()) == 1)
        assert status(tide, "r") == "running"
        tide.gates.decide("r", "g", "approved")
        poll("it goes on", lambda: status(tide, "r") == "completed")
    assert tide.runs.get("r").attempt == 1


def test_a_key_that_its_run_gives_up_meanwhile_is_taken(database: str, db: Db) -> None:
    """Who replaces the input of a run waits for who is ending it; what it brings is not lost with that run."""
    enqueue = {"workflow": "w", "dedupe_key": "k", "on_duplicate": "replace"}
    first = call(db, "enqueue_run", **enqueue)["run_id"]
    with connect(database) as other, connect(database) as observer, queue(database) as line:
        with other.transaction():
            call(other, "cancel_run", run_id=first)
            second = line.add(lambda mine: call(mine, "enqueue_run", **enqueue))
            line.settle(observer)
        assert not second.result()["deduplicated"] and second.result()["run_id"] != first


def test_who_was_not_moved_has_no_key_there(database: str, db: Db) -> None:
    first = call(db, "enqueue_run", workflow="w", queue="a", dedupe_key="k")["run_id"]
    with connect(database) as other, other.transaction():
        other.execute("select from tidebase.run_heads where run_id = %s for no key update", [first])
        assert call(db, "move_runs", to_queue="b", queue="a") == {"matched": 1, "done": 0}
    assert not call(db, "enqueue_run", workflow="w", queue="b", dedupe_key="k")["deduplicated"]


def test_of_failed_runs_with_one_key_one_goes_on(db: Db) -> None:
    ids = []
    for _ in range(2):
        ids.append(call(db, "enqueue_run", workflow="w", dedupe_key="k")["run_id"])
        call(db, "fail_run", run_id=ids[-1], token=call(db, "claim_runs", holder="h")["token"], retryable=False)
    assert call(db, "retry_runs", queue="default") == {"matched": 2, "done": 1}
    assert values(db, "select status from tidebase.run_overview order by created_at") == ["failed", "queued"]
    assert call(db, "acquire_run", run_id=ids[0], holder="h")["outcome"] == "queued"
    assert attempt(db, "recover_run", run_id=ids[0])[0] == "TB013"
    call(db, "complete_run", run_id=ids[1], token=call(db, "claim_runs", holder="h")["token"])
    assert call(db, "acquire_run", run_id=ids[0], holder="h")["outcome"] == "granted"
    assert call(db, "enqueue_run", workflow="w", dedupe_key="k") == {"run_id": ids[0], "deduplicated": True}


def test_who_purges_waits_for_no_key(database: str, db: Db) -> None:
    first = call(db, "enqueue_run", workflow="w", dedupe_key="k")["run_id"]
    call(db, "complete_run", run_id=first, token=call(db, "claim_runs", holder="h")["token"])
    with connect(database) as other, other.transaction():
        second = call(other, "enqueue_run", workflow="w", dedupe_key="k")["run_id"]
        db.execute("set lock_timeout = '2s'")
        assert call(db, "purge_runs", older_than="0", statuses=["completed"]) == 1
    assert call(db, "enqueue_run", workflow="w", dedupe_key="k") == {"run_id": second, "deduplicated": True}


def test_a_queue_that_nobody_has_paused_is_not_resumed(db: Db) -> None:
    assert not call(db, "resume_queue", queue="q")
    assert call(db, "pause_queue", queue="q") and not call(db, "pause_queue", queue="q")
    assert call(db, "resume_queue", queue="q") and not call(db, "resume_queue", queue="q")


def test_a_key_that_is_nobodys_and_cannot_be_had_is_given_up(db: Db) -> None:
    """Whoever looks for the run that has a key looks so often, and no longer."""
    db.execute("create function public.nothing() returns trigger language plpgsql as 'begin return null; end'")
    db.execute(
        "create trigger lost before insert on tidebase.dedupe_keys for each row execute function public.nothing()"
    )
    db.execute("set statement_timeout = '60s'")
    with pytest.raises(psycopg.errors.SerializationFailure, match="is taken and given up again"):
        db.execute("select tidebase.enqueue_run('w', dedupe_key => 'd')")


def test_what_nothing_is_asked_of_is_no_filter(tide: Tidebase) -> None:
    """Nothing is done to all runs by mistake."""
    for many in (tide.runs.cancel_many, tide.runs.retry_many):
        with pytest.raises(InvalidArgument, match="nothing is done to all runs"):
            many(metadata={})
    with pytest.raises(InvalidArgument, match="nothing is done to all runs"):
        tide.runs.move_many("other", metadata={})
