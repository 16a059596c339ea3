"""Leases, fencing and steps under attack: one holder, no zombie's write, one execution, no changed checkpoint.

The probes are in ``probes`` (threads with connections of their own) and ``probe_workers`` (processes); each is seen
failing without its mechanism in ``test_mechanisms``.
"""

from __future__ import annotations

from typing import Any

import psycopg
import pytest
from psycopg.types.json import Jsonb

from tidebase import LeaseLostError, RunCancelledError, Tidebase
from tidebase.core.flow import drive
from tidebase.domain.heartbeat import renew
from tidebase.domain.lease import Hold

from .conftest import long
from .probes import kernel as probes
from .probes import waiting as probe_waiting
from .probes import workers as probe_workers
from .probes.support import (
    call,
    connect,
    differences,
    expire,
    grant,
    image,
    image_of,
    new_run,
    poll,
    take_over,
    value,
    values,
)
from .support.amounts import RANDOM_CALLS, SHORT_LEASES, TAKE_OVERS
from .support.gate import reached, until

Database = psycopg.Connection[Any]


@pytest.mark.parametrize("queued", [False, True], ids=["from a barrier", "queued behind the lock"])
def test_of_fifty_workers_one_gets_the_run_and_the_others_are_told_who(database: str, queued: bool) -> None:
    """I1. Queued behind the lock, all of them have seen the run free before the first of them gets it."""
    assert probes.one_holder(database, workers=50, queued=queued) == []


@long
def test_in_hundreds_of_take_overs_no_token_is_issued_twice(database: str) -> None:
    """I1, with four workers for every lease that lapses: tokens only grow."""
    assert probes.takeovers(database, rounds=TAKE_OVERS.test, threads=4) == []


def test_hundreds_of_leases_of_a_millisecond_all_have_their_own_token(database: str) -> None:
    """I1, with nothing that keeps the workers in step."""
    assert probes.short_leases(database, grants=SHORT_LEASES.test, threads=4) == []


def test_a_lease_that_ends_while_another_waits_for_the_lock_has_ended(database: str) -> None:
    """The transaction's own time, ``now()``, would be from before the wait."""
    assert probes.time_after_waiting(database) == []


def test_zombie_and_forged_tokens_change_nothing(database: str) -> None:
    """I2, for every function that takes a token, as the catalogue lists them."""
    assert probes.zombie(database) == []


@long
def test_zombie_that_was_replaced_while_it_waited_for_the_lock_changes_nothing(database: str) -> None:
    """I2 in the narrowest place: the call had begun when the lease was still its own."""
    assert probes.replaced_while_waiting(database) == []


def test_token_of_a_run_that_was_given_up_or_ended_is_worth_nothing(database: str) -> None:
    """I2: the newest token, but no lease."""
    assert probes.given_up(database) == []


def test_what_was_done_when_the_lease_was_given_up_is_stored_until_the_next_grant(database: str) -> None:
    assert probes.paid_for(database) == []


def test_a_grant_is_withdrawn_by_the_call_that_got_it(database: str) -> None:
    assert probe_waiting.a_grant_is_withdrawn_by_its_own_call(database) == []


def test_workers_that_die_are_counted(database: str) -> None:
    assert probe_waiting.crashes_are_counted(database) == []


def test_no_token_of_a_purged_run_comes_again(database: str) -> None:
    assert probe_waiting.tokens_of_what_is_gone(database) == []


def test_no_token_of_another_incarnation_of_the_database_comes_again(database: str) -> None:
    assert probe_waiting.tokens_of_another_place(database) == []


def test_lapsed_holder_whom_nobody_has_replaced_may_complete_its_step(database: str) -> None:
    """The call to the model is paid for, and the lock makes it safe."""
    assert probes.lapsed_holder(database) == []


def test_stopped_process_that_wakes_up_after_a_take_over_changes_nothing(database: str, db: Database) -> None:
    """I2 with a real zombie: SIGSTOP in the middle of its writes, a take-over, SIGCONT."""
    run_id = new_run(db)
    with probe_workers.process(probe_workers.write_until_refused, database, run_id) as (worker, pipe):
        backend, token = pipe.recv()
        assert [pipe.recv() for _ in range(3)] == ["ok"] * 3
        probe_workers.stop(worker)
        idle = "select state = 'idle' from pg_stat_activity where pid = %s"
        poll("the call that was under way has ended", lambda: value(db, idle, backend))
        assert take_over(db, run_id) > token
        before = image(db)
        probe_workers.resume(worker)
        answers = pipe.recv()
        assert len(answers) > 8
        assert [answer for answer in answers if answer[1] != "TB003"] == []
        assert differences(before, image(db)) == []


@pytest.mark.parametrize("stubborn", [False, True], ids=["except Exception", "except BaseException"])
@pytest.mark.parametrize("successor_is_at_it", [False, True])
def test_stopped_workflow_that_wakes_up_after_a_take_over_ends_with_lease_lost(
    database: str, db: Database, stubborn: bool, successor_is_at_it: bool
) -> None:
    """I2 through the wrapper: the zombie's result is not stored, ``except Exception`` does not swallow the loss, and
    even a workflow that swallows everything gets no further.
    """
    run_id = new_run(db)
    with probe_workers.process(probe_workers.run_a_workflow, database, run_id, stubborn) as (worker, pipe):
        assert pipe.recv() == "working"
        probe_workers.stop(worker)
        token = take_over(db, run_id)
        if successor_is_at_it:
            call(db, "begin_step", run_id=run_id, token=token, name="work")
        before = image(db)
        probe_workers.resume(worker)
        pipe.send("go on")
        ended, swallowed = pipe.recv()
        assert (ended, swallowed) == ("LeaseLostError", ["LeaseLost"] if stubborn else [])
        assert differences(before, image(db)) == []
    call(
        db, "begin_step", run_id=run_id, token=token, name="work", request_id="again"
    ) if not successor_is_at_it else None
    call(db, "complete_step", run_id=run_id, token=token, name="work", output=Jsonb("the successor's"))
    assert value(db, "select output from tidebase.steps where run_id = %s", run_id) == "the successor's"


def test_stopped_workflow_whom_nobody_has_replaced_completes_its_step(database: str, db: Database) -> None:
    """The lease ran out while the process was stopped, and the work is kept all the same."""
    run_id = new_run(db)
    with probe_workers.process(probe_workers.run_a_workflow, database, run_id, False) as (worker, pipe):
        assert pipe.recv() == "working"
        probe_workers.stop(worker)
        expire(db, run_id)
        probe_workers.resume(worker)
        pipe.send("go on")
        assert pipe.recv() == ("returned", [])
    assert value(db, "select result from tidebase.runs where run_id = %s", run_id) == "the zombie's"


def test_what_must_survive_a_crash_is_flushed_whatever_the_session_says(database: str) -> None:
    """``synchronous_commit = off`` in the session, the role or the database does not weaken a grant or a checkpoint."""
    assert probes.durability(database) == []


@pytest.mark.parametrize("queued", [False, True], ids=["from a barrier", "queued behind the lock"])
def test_of_sixteen_that_begin_one_step_one_executes_it(database: str, queued: bool) -> None:
    """I3."""
    assert probes.one_begin(database, connections=16, queued=queued) == []


def test_call_repeated_on_sixteen_connections_is_one_beginning(database: str) -> None:
    """Safe to call twice: the answer was lost, the attempt is the same."""
    assert probes.same_request(database, connections=16) == []


def test_successor_executes_what_its_predecessor_left_unfinished(database: str) -> None:
    """As the next attempt, under its own lease."""
    assert probes.successor_repeats(database) == []


def test_steps_recorded_together_are_as_those_recorded_one_by_one(database: str) -> None:
    """I2 and I4; and nobody waits for a lock while holding one."""
    assert probes.steps_together(database) == []


def test_completed_step_is_changed_by_nothing(database: str) -> None:
    """I3."""
    assert probes.checkpoint_is_final(database) == []


def test_checkpoint_is_reused_for_an_equal_input_and_for_no_other(database: str) -> None:
    """I3: 1.50 is 1.5, but "1.50" is not "1.5"."""
    assert probes.same_input(database) == []


def test_unfinished_step_does_not_change_its_input(database: str) -> None:
    """I3, in every state that a step can be in."""
    assert probes.other_input(database) == []


def test_eight_threads_of_one_run_do_four_hundred_steps_once_each(database: str) -> None:
    """I3 through the wrapper."""
    assert probe_workers.many_threads(database, threads=8, steps=50) == []


def test_every_call_locks_the_head_of_the_run_first(database: str) -> None:
    """The lock order that all functions keep, each held up at the head and looked at: no deadlock can come of it."""
    assert probes.lock_order(database) == []


@long
def test_random_calls_from_sixteen_connections_do_not_deadlock(database: str) -> None:
    """Every function on four runs, with tokens good and bad: no error but Tidebase's own."""
    assert probes.stress(database, connections=16, calls=RANDOM_CALLS.test) == []


def test_what_the_image_of_a_run_shows_is_all_there_is(db: Database) -> None:
    """The comparison that the zombie's probes rest on sees every table that has rows of a run, and an update that
    changes no value.
    """
    run_id = new_run(db)
    token = take_over(db, run_id)
    call(db, "begin_step", run_id=run_id, token=token, name="work")
    tables = {f"tidebase.{name}" for name in ("runs", "run_heads", "attempts", "steps", "events")}
    assert tables <= {table for table, rows in image_of(db, run_id).items() if rows}
    assert tables <= {table for table, rows in image(db).items() if rows}
    before = image(db)
    assert differences(before, image(db)) == []
    db.execute("update tidebase.run_heads set holder = holder where run_id = %s", (run_id,))
    assert len(differences(before, image(db))) == 2


def test_a_heartbeat_of_many_runs_waits_for_none(database: str, db: Database) -> None:
    """A head that is locked is left out, so a batch can never be part of a deadlock."""
    runs = [new_run(db) for _ in range(3)]
    tokens = [take_over(db, run_id) for run_id in runs]
    with connect(database) as other, other.transaction():
        other.execute("select from tidebase.run_heads where run_id = %s for no key update", [runs[1]])
        db.execute("set lock_timeout = '10s'")
        query = "select run_id from tidebase.renew_leases(%s, %s::bigint[], '1 hour')"
        assert sorted(row[0] for row in db.execute(query, [runs, tokens])) == sorted([runs[0], runs[2]])
    assert sorted(row[0] for row in db.execute(query, [runs, tokens])) == sorted(runs)


def test_the_heartbeats_of_a_process_are_one_call_and_tell_who_has_lost(database: str, db: Database) -> None:
    lost: list[str] = []
    with Tidebase(database, lease_s=3) as tide:
        sessions = [
            tide.runs.attach("w", run_id=f"r{n}", on_lease_lost=lambda error, n=n: lost.append(f"r{n}"))
            for n in range(5)
        ]
        before = values(db, "select lease_expires_at from tidebase.run_heads order by run_id")
        db.execute("update tidebase.run_heads set lease_expires_at = now() - interval '1 s' where run_id = 'r2'")
        assert values(db, "select outcome from tidebase.acquire_run('r2', 'another', '1 hour')") == ["granted"]
        renewed = "select count(*) from tidebase.run_heads where lease_expires_at > %s and run_id <> 'r2'"
        until(db, f"4 = ({renewed})", max(before))
        reached(lambda: lost == ["r2"])
        with pytest.raises(LeaseLostError):
            sessions[2].emit("x.y")
        for number in (0, 1, 3, 4):
            sessions[number].complete(number)
    assert values(db, "select status from tidebase.run_heads order by run_id") == [
        *("completed", "completed", "running", "completed", "completed")
    ]


@pytest.mark.parametrize("ends", [False, True], ids=["behind its back", "by itself"])
def test_a_heartbeat_that_meets_the_end_of_its_run_takes_nothing_from_who_completes_it(
    tide: Tidebase, db: psycopg.Connection[Any], ends: bool
) -> None:
    """The answer of complete_run may still be on its way: that one counts."""
    run_id = new_run(db)
    token = grant(db, run_id)
    hold = Hold(run_id, token, 1, 60.0, ends=ends)
    assert call(db, "complete_run", run_id=run_id, token=token)
    drive(renew([hold]), tide._database)
    assert (hold.lost is None) is ends


@pytest.mark.parametrize("how", ["taken over", "cancelled"])
def test_a_heartbeat_notices_who_has_the_lease_while_the_call_that_completes_hangs(
    tide: Tidebase, db: psycopg.Connection[Any], how: str
) -> None:
    """Or nobody would: no answer may come over a network that is gone."""
    run_id = new_run(db)
    token = grant(db, run_id)
    hold = Hold(run_id, token, 1, 60.0, ends=True)
    if how == "cancelled":
        tide.runs.cancel(run_id)
    else:
        take_over(db, run_id)
    drive(renew([hold]), tide._database)
    assert isinstance(hold.lost, RunCancelledError if how == "cancelled" else LeaseLostError)
