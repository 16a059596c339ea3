"""Probes of queues: who is given what, what comes back, what limits let through, what is fair, what the clock fires.

Each returns the violations that it found; see ``kernel`` for the leases, checkpoints and the log.
"""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Callable
from typing import Any

import psycopg

from .support import (
    Connection,
    attempt,
    audit,
    call,
    call_rows,
    connect,
    expire,
    lapse,
    new_run,
    queue,
    together,
    value,
    values,
)


def _named(what: str) -> str:
    """A queue of this probe's own."""
    return f"{what} {uuid.uuid4().hex[:12]}"


def _enqueue(connection: Connection, name: str, run_id: str | None = None, **more: Any) -> str:
    arguments = {"workflow": "probe", "queue": name, "run_id": run_id or uuid.uuid4().hex, **more}
    return str(call(connection, "enqueue_run", **arguments)["run_id"])


def _claim(connection: Connection, name: str, most: int = 1, **more: Any) -> list[dict[str, Any]]:
    """As a worker of its own: two with one name are one."""
    return call_rows(connection, "claim_runs", **{"queues": [name], "holder": _named("probe"), "max": most, **more})


def _overview(connection: Connection, name: str) -> str:
    return str(value(connection, "select q::text from tidebase.queue_overview q where queue = %s", name))


def _broken(connection: Connection, *run_ids: str) -> list[str]:
    query = "select i::text from unnest(%s::text[]) r (id), tidebase_private.check_invariants(r.id) i"
    return [str(row) for row in values(connection, query, list(run_ids))]


# -- claims -----------------------------------------------------------------------------------------------------------


def each_once(url: str) -> list[str]:
    """Many claimers at once, each with its batches: every run is granted once, and completed once."""
    name, found = _named("once"), []
    with connect(url) as connection:
        runs = [{"workflow": "probe", "queue": name, "key": str(n % 7)} for n in range(300)]
        wanted = {row["run_id"] for row in call_rows(connection, "enqueue_runs", runs=psycopg.types.json.Jsonb(runs))}

    def work(mine: Connection, number: int) -> list[str]:
        done: list[str] = []
        while len(done) < 600 and (rows := _claim(mine, name, 1 + number % 5)):
            for row in rows:
                code, answer = attempt(mine, "complete_run", run_id=row["run_id"], token=row["token"])
                if code != "ok":
                    found.append(f"{row['run_id']} was granted and not to be completed: {code}: {answer}")
                done.append(str(row["run_id"]))
        return done

    taken = Counter(run_id for done in together(url, 8, work) for run_id in done)
    found += [f"{run_id} was granted {times} times" for run_id, times in taken.items() if times > 1]
    with connect(url) as connection:
        if set(taken) != wanted:
            # Whoever finds nothing while others hold what is left goes home: what they gave back would be left over.
            found += [f"{len(wanted - set(taken))} runs were left over: {_overview(connection, name)}"]
    return found


def claims_wait_for_nobody(url: str) -> list[str]:
    """While one claim, or somebody at work on a run, is not over, another passes over that, and gets the rest."""
    name, found = _named("waits"), []
    with connect(url) as first, connect(url) as second, connect(url) as third:
        ids = [_enqueue(first, name) for _ in range(4)]
        with first.transaction(), third.transaction():
            mine = [row["run_id"] for row in _claim(first, name)]
            third.execute("select from tidebase.run_heads where run_id = %s for no key update", [ids[1]])
            second.execute("set lock_timeout = '2s'")
            code, theirs = attempt(second, "claim_runs", queues=[name], holder="second", max=1)
            got = [theirs["run_id"]] if code == "ok" and theirs else []
            if code != "ok" or mine != ids[:1] or got != ids[2:3]:
                found.append(
                    f"one has {mine}, a head of {ids} is locked, another claim is answered {code}: {got or theirs}"
                )
    return found


def only_what_is_free(url: str) -> list[str]:
    """An entry only says where to look: what its run is says whether it is granted."""
    name, found = _named("free"), []
    with connect(url) as connection:
        for what in ("complete_run", "cancel_run", None):
            run_id = _enqueue(connection, name)
            (row,) = _claim(connection, name)
            if what == "complete_run":
                call(connection, what, run_id=run_id, token=row["token"])
            elif what is not None:
                call(connection, what, run_id=run_id)
            connection.execute(
                "insert into tidebase.queue_entries (run_id, ready_at, turn, place, priority, pinned, queue, workflow)"
                " values (%s, now(), '-infinity', 0, 0, false, %s, 'probe') on conflict do nothing",
                [run_id, name],
            )
            before = value(connection, "select status from tidebase.run_overview where run_id = %s", run_id)
            if given := _claim(connection, name, 10):
                found.append(f"a run that is {before} was granted: {given}")
    return found


# -- what comes back --------------------------------------------------------------------------------------------------


def _released(connection: Connection, run_id: str, token: int) -> None:
    call(connection, "release_run", run_id=run_id, token=token)


def _failed(connection: Connection, run_id: str, token: int) -> None:
    call(connection, "fail_run", run_id=run_id, token=token)
    connection.execute("update tidebase.run_heads set available_at = now() where run_id = %s", [run_id])
    connection.execute("update tidebase.queue_entries set ready_at = now() where run_id = %s", [run_id])


def _decided(connection: Connection, run_id: str, token: int) -> None:
    secret = call(connection, "open_gate", run_id=run_id, token=token, name="g")["secret"]
    call(connection, "suspend_run", run_id=run_id, token=token, name="g")
    call(connection, "decide_gate", run_id=run_id, name="g", decision="approved", secret=secret)


def _child_ended(connection: Connection, run_id: str, token: int) -> None:
    child = call(connection, "create_child", run_id=run_id, token=token, name="c", workflow="probe")["run_id"]
    lease = call(connection, "acquire_run", run_id=child, holder="probe")
    call(connection, "suspend_for_children", run_id=run_id, token=token, names=["c"])
    call(connection, "complete_run", run_id=child, token=lease["token"])


def _lapsed(connection: Connection, run_id: str, token: int) -> None:
    lapse(connection, run_id)


def _reviewed(connection: Connection, run_id: str, token: int) -> None:
    arguments = {"run_id": run_id, "token": token, "name": "s"}
    call(connection, "begin_step", **arguments, side_effects=["mail"])
    call(connection, "fail_step", **arguments)
    call(connection, "fail_run", run_id=run_id, token=token)
    call(connection, "resolve_review", run_id=run_id, step="s", decision="retry")


def _recovered(connection: Connection, run_id: str, token: int) -> None:
    call(connection, "fail_run", run_id=run_id, token=token, retryable=False)
    call(connection, "recover_run", run_id=run_id)


def _retried(connection: Connection, run_id: str, token: int) -> None:
    call(connection, "fail_run", run_id=run_id, token=token, retryable=False)
    name = value(connection, "select queue from tidebase.run_overview where run_id = %s", run_id)
    call(connection, "retry_runs", queue=name)


RETURNS: dict[str, Callable[[Connection, str, int], None]] = {
    "was released": _released,
    "failed and has attempts left": _failed,
    "had its gate decided": _decided,
    "had its child completed": _child_ended,
    "lost its worker": _lapsed,
    "was reviewed": _reviewed,
    "was recovered": _recovered,
    "was retried": _retried,
}


def comes_back(url: str) -> list[str]:
    """A run of a queue that may go on returns there by itself, whatever it waited for."""
    found = []
    with connect(url) as connection:
        for what, bring in RETURNS.items():
            name = _named("back")
            run_id = _enqueue(connection, name)
            (row,) = _claim(connection, name)
            bring(connection, run_id, row["token"])
            again = _claim(connection, name)
            if [r["run_id"] for r in again] != [run_id] or again[0]["token"] <= row["token"]:
                found.append(f"a run that {what} was not granted again: {again}; {_overview(connection, name)}")
    return found


def late_comers(url: str) -> list[str]:
    """What is enqueued in a transaction that commits late is found, although the queue has gone on meanwhile."""
    name, found = _named("late"), []
    with connect(url) as late, connect(url) as connection:
        with late.transaction():
            _enqueue(late, name, f"{name}: late")
            for _ in range(5):
                _enqueue(connection, name)
            call(connection, "put_queue", queue=name, concurrency=1)
            (row,) = _claim(connection, name)
            # The mark moves to what is left, behind the one who comes late.
            connection.execute(
                "update tidebase.lanes set moved_at = '-infinity', sweep_at = 'infinity' where queue = %s", [name]
            )
            _claim(connection, name)
        call(connection, "complete_run", run_id=row["run_id"], token=row["token"])
        call(connection, "put_queue", queue=name)
        connection.execute("update tidebase.lanes set sweep_at = now() where queue = %s", [name])
        left = [r["run_id"] for r in _claim(connection, name, 10)]
        left += [r["run_id"] for r in _claim(connection, name, 10)]
        if f"{name}: late" not in left:
            found.append(f"who came late was not found: {left}; {_overview(connection, name)}")
    return found


# -- limits -----------------------------------------------------------------------------------------------------------


def limits_hold(url: str) -> list[str]:
    """Two who claim at the same moment: the second counts what the first was given."""
    found = []
    for limit in ({"concurrency": 1}, {"key_concurrency": 1}, {"rate": 1}, {"key_rate": 1}):
        name = _named("limit")
        with connect(url) as first, connect(url) as second, connect(url) as observer, queue(url) as line:
            call(first, "put_queue", queue=name, **limit)
            for _ in range(3):
                _enqueue(first, name, key="k")
            with first.transaction():
                mine = _claim(first, name, 3)
                theirs = line.add(lambda connection, name=name: _claim(connection, name, 3))  # type: ignore[misc]
                line.settle(observer)
            given = len(mine) + len(theirs.result()) + len(_claim(second, name, 3))
            if given != 1:
                found.append(f"{limit}: {given} were granted")
            for waiting in values(first, "select run_id from tidebase.queue_entries where queue = %s limit 1", name):
                outcome = call(first, "acquire_run", run_id=waiting, holder="probe")["outcome"]
                if outcome != "queued":
                    found.append(f"{limit}: by its id another one is {outcome}")
    return found


def young_limits_hold(url: str) -> list[str]:
    """A limit that is set while a claim is under way counts what that was given."""
    name, found = _named("young"), []
    with connect(url) as first, connect(url) as second:
        for _ in range(3):
            _enqueue(first, name)
        with first.transaction():
            mine = _claim(first, name)
            call(second, "put_queue", queue=name, concurrency=1)
        if given := _claim(second, name, 3):
            found.append(f"{len(mine)} was leased, the limit is 1, and {len(given)} more were granted")
    return found


def limits_hold_for_who_is_moved(url: str) -> list[str]:
    """Who asks for a run by its id, and waits while it is moved, is held to the limits of where it is then."""
    name, full, found = _named("from"), _named("full"), []
    with connect(url) as blocker, connect(url) as other, connect(url) as observer, queue(url) as line:
        for each in (name, full):
            call(other, "put_queue", queue=each, concurrency=1)
        _enqueue(other, full)
        _claim(other, full)
        run_id = _enqueue(other, name)
        with blocker.transaction():
            blocker.execute("select from tidebase.queues where queue = %s for update", [name])
            asked = line.add(lambda mine: call(mine, "acquire_run", run_id=run_id, holder="probe")["outcome"])
            line.settle(observer)
            call(other, "move_runs", to_queue=full, queue=name)
        if (outcome := asked.result()) != "queued":
            found.append(f"a run that was moved to a full queue is {outcome}")
    return found


def limits_end_with_their_time(url: str) -> list[str]:
    """A run whose worker died while its queue had given out all that it may comes back when there is room again, and
    counts once; also where its end came between two looks at it.
    """
    found = []
    with connect(url) as connection:
        for limit in ("rate", "key_rate"):
            name = _named("full")
            call(connection, "put_queue", queue=name, rate_period="1 hour", **{limit: 3})
            lost, *others = (_enqueue(connection, name, key="k") for _ in range(4))
            (lease,) = _claim(connection, name)
            _lapsed(connection, lost, lease["token"])
            call(connection, "reconcile")
            _claim(connection, name, 2, workflows=["no such"])
            for expected in ({lost}, {others[0]}):
                if (got := {row["run_id"] for row in _claim(connection, name)}) != expected:
                    found.append(f"{limit}: {got} were granted instead of {expected}")
            _lapsed(connection, lost, lease["token"] + 1)
            call(connection, "reconcile")
            if given := _claim(connection, name, 3):
                found.append(f"{limit}: {len(given)} were granted beyond it")
            found += _broken(connection, lost, *others)
            connection.execute(
                "update tidebase.queue_starts set started_at = started_at - interval '2 hours' where queue = %s", [name]
            )
            if lost not in (got := {row["run_id"] for row in _claim(connection, name, 3)}):
                found.append(f"{limit}: whoever lost its worker meanwhile did not come back: {got}")
            for run_id in (lost, *others):
                call(connection, "cancel_run", run_id=run_id)
        name = _named("between")
        run_id = _enqueue(connection, name)
        (lease,) = _claim(connection, name)
        connection.execute(
            "update tidebase.run_heads set lease_expires_at = clock_timestamp() where run_id = %s", [run_id]
        )
        connection.execute(  # as reconcile does with a run that it has looked at
            "update tidebase.run_heads h set due_at = tidebase_private.next_due(h) where run_id = %s", [run_id]
        )
        if [row["run_id"] for row in _claim(connection, name)] != [run_id]:
            found.append(f"a lease that ran out after it was looked at was never seen: {_overview(connection, name)}")
    return found


def who_is_late_stays_in_order(url: str) -> list[str]:
    """A run whose deadline passed while it waited is granted to nobody, and breaks no rule until it is cancelled."""
    name = _named("late")
    with connect(url) as connection:
        run_id = _enqueue(connection, name, deadline=value(connection, "select now() + interval '1 hour'"))
        connection.execute(
            "update tidebase.run_heads set deadline_at = now() - interval '1 second' where run_id = %s", [run_id]
        )
        found = [f"{row} was granted" for row in _claim(connection, name)]
        found += _broken(connection, run_id)
        connection.execute("update tidebase.run_heads set due_at = now() where run_id = %s", [run_id])
        call(connection, "reconcile")
        if (status := call(connection, "get_run", run_id=run_id)["status"]) != "cancelled":
            found.append(f"it is {status}")
        found += _broken(connection, run_id)
    return found


def limits_under_fire(url: str) -> list[str]:
    """Claimers, crashes, take-overs and suspensions: at no moment of the log were more at work than is allowed."""
    name, found = _named("fire"), []
    with connect(url) as connection:
        call(connection, "put_queue", queue=name, concurrency=3, key_concurrency=2)
        for n in range(60):
            _enqueue(connection, name, f"{name}: {n}", key=str(n % 4), max_attempts=50)

    def work(mine: Connection, number: int) -> None:
        for turn in range(40):
            for row in _claim(mine, name, 2, ttl="1 hour"):
                fate = (number + turn) % 4
                held = {"run_id": row["run_id"], "token": row["token"]}
                if fate == 0:  # it dies, and the time of its lease passes
                    expire(mine, row["run_id"])
                    mine.execute("update tidebase.run_heads set due_at = now() where run_id = %s", [row["run_id"]])
                elif fate == 1:
                    attempt(mine, "open_gate", **held, name="g")
                    attempt(mine, "suspend_run", **held, name="g")
                    attempt(mine, "cancel_run", run_id=row["run_id"])
                elif fate == 2:
                    attempt(mine, "release_run", **held)
                else:
                    attempt(mine, "complete_run", **held)

    together(url, 6, work)
    with connect(url) as connection:
        rows = connection.execute(
            """select e.created_at, e.type, e.run_id, r.queue_key from tidebase.events e
            join tidebase.runs r on r.run_id = e.run_id
            where r.queue = %s
              and e.type in ('run.started', 'run.released', 'run.completed', 'run.suspended', 'run.cancelled')
            order by e.created_at, e.seq""",
            [name],
        ).fetchall()
        at_work: dict[str, str] = {}
        for _, kind, run_id, key in rows:
            if kind == "run.started":
                at_work[run_id] = key
            else:
                at_work.pop(run_id, None)
            by_key = max(Counter(at_work.values()).values(), default=0)
            if len(at_work) > 3 or by_key > 2:
                found.append(f"{len(at_work)} were at work, {by_key} of one key")
                break
    return found


# -- order ------------------------------------------------------------------------------------------------------------


def small_keys_are_served(url: str) -> list[str]:
    """One key with hundreds of runs, enqueued first, and twenty with three: these are done soon."""
    name, found = _named("fair"), []
    with connect(url) as connection:
        for key, count in [("large", 400), *((f"small {n}", 3) for n in range(20))]:
            runs = [{"workflow": "probe", "queue": name, "key": key}] * count
            call_rows(connection, "enqueue_runs", runs=psycopg.types.json.Jsonb(runs))
        first = _claim(connection, name, 126)
        query = "select count(*) from tidebase.runs where run_id = any(%s) and queue_key like 'small%%'"
        small = value(connection, query, [row["run_id"] for row in first])
        if small != 60:
            found.append(f"of 60 runs of small keys {small} are among the first 126")
        one_by_one = [_enqueue(connection, name, key="late") for _ in range(3)]
        query = "select queue_key from tidebase.runs where run_id = %s"
        order = [value(connection, query, row["run_id"]) for row in _claim(connection, name, 6)]
        if order.count("late") < 3 or len(one_by_one) != 3:
            found.append(f"who comes new is served in turn with who is there, not behind: {order}")
    return found


def a_low_priority_is_served(url: str) -> list[str]:
    """While higher ones keep coming, what has waited for more than a minute has its turn now and then."""
    name, found = _named("low"), []
    with connect(url) as connection:
        low = _enqueue(connection, name, priority=-1)
        connection.execute(
            "update tidebase.queue_entries set ready_at = now() - interval '2 minutes' where run_id = %s", [low]
        )
        for _ in range(300):  # an eighth of all claims: it is missed by all of them once in 10 ** 17 times
            _enqueue(connection, name, priority=1)
            if [row["run_id"] for row in _claim(connection, name)] == [low]:
                return found
        found.append("300 claims passed over a run that had waited for two minutes")
    return found


# -- one of a kind ----------------------------------------------------------------------------------------------------


def one_of_a_key(url: str) -> list[str]:
    """Two who enqueue the same key at the same moment: one run."""
    name, found = _named("dedupe"), []
    with connect(url) as first, connect(url) as observer, queue(url) as line:
        with first.transaction():
            mine = _enqueue(first, name, dedupe_key="k")
            other = line.add(
                lambda connection: call(connection, "enqueue_run", workflow="probe", queue=name, dedupe_key="k")
            )
            line.settle(observer)
        answer = other.result()
        there = values(first, "select run_id from tidebase.runs where queue = %s", name)
        if answer["run_id"] != mine or not answer["deduplicated"] or there != [mine]:
            found.append(f"a key has {there}, the second was answered {answer}")
    return found


def fires_once(url: str) -> list[str]:
    """Two who look at the clock at the same moment: one run for each time."""
    name, found = _named("clock"), []
    with connect(url) as first, connect(url) as second:
        call(first, "put_schedule", name=name, workflow="probe", every="1 minute", queue=name, catch_up="all")
        first.execute(
            "update tidebase.schedules set fired_at = now() - interval '10 minutes', next_at = now(),"
            " anchor = now() - interval '1 hour' where schedule = %s",
            [name],
        )
        with first.transaction():
            call(first, "reconcile")
            second.execute("set lock_timeout = '2s'")
            code, error = attempt(second, "reconcile")
            if code != "ok":
                found.append(f"the second waits for the first: {code}: {error}")
        call(second, "reconcile")
        times = values(first, "select run_id from tidebase.runs where queue = %s", name)
        if len(times) not in (10, 11) or len(set(times)) != len(times):
            found.append(f"ten minutes made {len(times)} runs: {times}")
        first.execute(
            "update tidebase.schedules set fired_at = now() - interval '5 minutes', next_at = now()"
            " where schedule = %s",
            [name],
        )
        call(first, "reconcile")
        again = values(first, "select run_id from tidebase.runs where queue = %s", name)
        if not set(times) <= set(again) or len(again) > len(times) + 1:
            found.append(f"the same minutes made other runs: {len(times)} became {len(again)}")
    return found


def the_clock_waits_for_nobody(url: str) -> list[str]:
    """A run that is to be cancelled for the next one is let be while somebody is at it, and cancelled then."""
    name, found = _named("overlap"), []
    again = (
        "update tidebase.schedules set fired_at = now() - interval '1 minute', next_at = now(),"
        " anchor = anchor - interval '1 second' where schedule = %s"
    )
    with connect(url) as first, connect(url) as second:
        call(first, "put_schedule", name=name, workflow="probe", every="1 minute", queue=name, overlap="cancel")
        first.execute(again, [name])
        call(first, "reconcile")
        (run_id,) = values(first, "select run_id from tidebase.runs where queue = %s", name)
        first.execute(again, [name])
        with first.transaction():
            first.execute("select from tidebase.run_heads where run_id = %s for no key update", [run_id])
            second.execute("set lock_timeout = '2s'")
            code, error = attempt(second, "reconcile")
            if code != "ok":
                found.append(f"who looks at the clock waits for who is at the run: {code}: {error}")
        second.execute("update tidebase.schedules set next_at = now() where schedule = %s", [name])
        call(second, "reconcile")
        status = value(first, "select status from tidebase.run_overview where run_id = %s", run_id)
        if status != "cancelled":
            found.append(f"the run before is {status}")
    return found


def wakes_who_sleeps(url: str) -> list[str]:
    """Who says that it listens is rung for at the commit of what is enqueued; nobody else is."""
    deserted, attended, found = _named("bell"), _named("bell"), []
    with connect(url) as sleeper, connect(url) as connection:
        sleeper.execute("listen tidebase_events")
        _enqueue(connection, deserted)
        if f"queue:{deserted}" in _heard(sleeper):
            found.append("the bell rang for nobody")
        _claim(sleeper, attended, 10, listen_for="1 minute", holder=attended)
        _enqueue(connection, attended)
        heard = _heard(sleeper)
        if f"queue:{attended}" not in heard:
            found.append(f"the bell did not ring: {heard}")
    return found


def _heard(listener: Connection) -> list[str]:
    """What was notified before now: whoever committed has signalled the listener's server process by then, and that
    passes it on before it says that it is ready again (async.c, "ProcessNotifyInterrupt").
    """
    listener.execute("select 1")
    return [notification.payload for notification in listener.notifies(timeout=0)]


def ended_together(url: str) -> list[str]:
    """Of runs that are completed together each is by itself: who has lost its lease, or given it up, or is over, is
    told so; who is locked is left out, and nobody waits for it; the others are completed.
    """
    name, found = _named("ended"), []
    with connect(url) as first, connect(url) as second:
        ids = [_enqueue(first, name) for _ in range(6)]
        tokens = {row["run_id"]: int(row["token"]) for row in _claim(first, name, 6)}
        expire(first, ids[1])
        first.execute("update tidebase.queue_entries set ready_at = now() where run_id = %s", [ids[1]])
        call(first, "acquire_run", run_id=ids[1], holder="successor")
        call(first, "release_run", run_id=ids[2], token=tokens[ids[2]])
        call(first, "cancel_run", run_id=ids[3])
        with first.transaction():
            first.execute("select from tidebase.run_heads where run_id = %s for no key update", [ids[4]])
            second.execute("set lock_timeout = '2s'")
            together_with = {"run_ids": ids, "tokens": [tokens[run_id] for run_id in ids]}
            code, _ = attempt(second, "complete_runs", **together_with)
        if code != "ok":
            found.append(f"one that cannot be completed fails the others: {code}")
            return found
        said = dict(first.execute("select run_id, status from tidebase.run_heads where run_id = any(%s)", [ids]))
        wanted = ["completed", "running", "queued", "cancelled", "running", "completed"]
        if (got := [said[run_id] for run_id in ids]) != wanted:
            found.append(f"they are {got}, not {wanted}")
        answers = call_rows(second, "complete_runs", **together_with)
        codes = {row["run_id"]: row["code"] for row in answers}
        if [codes.get(run_id) for run_id in ids] != [None, "TB003", "TB003", "TB004", None, None]:
            found.append(f"they are answered {[codes.get(run_id) for run_id in ids]}")
        left = values(first, "select run_id from tidebase.queue_entries where queue = %s", name)
        if left != [ids[2]]:
            found.append(f"the queue has {left}, and the one that was given up is {ids[2]}")
        found += audit(first, *ids)
    return found


def bulk_waits_for_nobody(url: str) -> list[str]:
    """Bulk calls pass over what somebody is at, and never do to all what was meant for some."""
    name, found = _named("bulk"), []
    with connect(url) as first, connect(url) as second:
        ids = [_enqueue(first, name) for _ in range(3)]
        alone = new_run(first)
        with first.transaction():
            first.execute("select from tidebase.run_heads where run_id = %s for no key update", [ids[0]])
            second.execute("set lock_timeout = '2s'")
            for function, more in (("move_runs", {"to_queue": name, "priority": 3}), ("cancel_runs", {})):
                code, answer = attempt(second, function, queue=name, **more)
                if code != "ok" or (answer["matched"], answer["done"]) != (3, 2):
                    found.append(f"{function} beside a lock: {code}: {answer}")
        if value(first, "select status from tidebase.run_overview where run_id = %s", alone) != "pending":
            found.append("a run of no queue was cancelled")
    return found


# -- push -------------------------------------------------------------------------------------------------------------


def told_once(url: str) -> list[str]:
    """Dispatchers at once: each invocation is handed out once, no more than the limit are on their way, a late report
    changes nothing, and who has begun is not told again.
    """
    name, found = _named("push"), []
    with connect(url) as connection:
        call(connection, "put_queue", queue=name, concurrency=5, endpoint="http://endpoint.test")
        for _ in range(20):
            _enqueue(connection, name)

    def work(mine: Connection, number: int) -> list[tuple[str, int]]:
        return [
            (str(row["run_id"]), int(row["invocation"]))
            for _ in range(5)
            for row in call_rows(mine, "claim_invocations", max=2)
            if row["queue"] == name
        ]

    told = Counter(pair for pairs in together(url, 4, work) for pair in pairs)
    found += [f"{pair} was handed out {times} times" for pair, times in told.items() if times > 1]
    if len(told) != 5:
        found.append(f"{len(told)} are on their way, and 5 may be: {sorted(told)}")
    with connect(url) as connection:
        ids = sorted(run_id for run_id, _ in told)[:3]
        for run_id in ids[:2]:
            code, answer = attempt(connection, "acquire_run", run_id=run_id, holder="app")
            if code != "ok" or answer["outcome"] != "granted":
                found.append(f"who was told of {run_id} does not get it: {code}: {answer}")
        report = {"run_id": ids[0], "invocation": 1, "delivered": False, "error": "cut off"}
        if (outcome := call(connection, "finish_invocation", **report)) != "begun":
            found.append(f"a run that was begun is {outcome}")
        connection.execute("update tidebase.invocations set next_at = clock_timestamp() where queue = %s", [name])
        connection.execute("update tidebase.queue_entries set ready_at = clock_timestamp() where queue = %s", [name])
        call(
            connection, "put_queue", queue=name, concurrency=50
        )  # there is room for all: the order is not the question
        again = {row["run_id"]: row["invocation"] for row in call_rows(connection, "claim_invocations", max=100)}
        if set(ids[:2]) & set(again):
            found.append(f"who has begun {ids[:2]} is told again of {again}")
        if again.get(ids[2]) == 2:
            stale = {"run_id": ids[2], "invocation": 1, "delivered": False, "error": "late"}
            outcome = call(connection, "finish_invocation", **stale)
            failures = value(connection, "select failures from tidebase.invocations where run_id = %s", ids[2])
            if outcome != "sending" or failures != 0:
                found.append(f"a late report made it {outcome}, with {failures} failures")
        else:
            found.append(f"{ids[2]} was not begun, and is not told of again: {again}")
        connection.execute("delete from tidebase.endpoints where queue = %s", [name])
    return found


def endpoints_wait_for_nobody(url: str) -> list[str]:
    """While a dispatcher's claim is not over, or somebody is at work on a run, another gets the rest at once; and one
    endpoint that fails keeps no other waiting.
    """
    busy, other, dead, found = _named("busy"), _named("other"), _named("dead"), []
    with connect(url) as first, connect(url) as second, connect(url) as third:
        for name in (dead, busy, other):
            call(first, "put_queue", queue=name, endpoint="http://endpoint.test")
        ids = {name: [_enqueue(first, name) for _ in range(3)] for name in (dead, busy, other)}
        told = call_rows(first, "claim_invocations", max=1)
        for row in told:
            call(first, "finish_invocation", run_id=row["run_id"], invocation=1, delivered=False, error="no route")
        if {row["queue"] for row in told} != {dead}:
            found.append(f"the first one is {told}, not of {dead}")
        with first.transaction(), third.transaction():
            mine = [row["run_id"] for row in call_rows(first, "claim_invocations", max=1)]
            third.execute("select from tidebase.run_heads where run_id = %s for no key update", [ids[other][0]])
            second.execute("set lock_timeout = '2s'")
            try:
                got = [row["run_id"] for row in call_rows(second, "claim_invocations", max=9)]
            except psycopg.Error as error:
                got = [str(error)]
            if mine != ids[busy][:1] or got != ids[other][1:]:
                found.append(f"of {ids} one has {mine}, the head of {ids[other][0]} is locked, another has {got}")
        for name in ids:
            first.execute("delete from tidebase.endpoints where queue = %s", [name])
    return found
