"""Attacks on the invariants: each function takes the URL of a migrated database and returns the violations it saw.

The tests of a room assert that there are none. ``test_mechanisms`` takes out the mechanism that a probe is about and
asserts that the probe then does see violations: a probe that never fails proves nothing. So a probe reports what it
finds instead of stopping there, and takes every error that is not expected for a violation.
"""

from __future__ import annotations

import contextlib
import functools
import random
import threading
import uuid
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg.types.json import Jsonb

from ..support.patience import PATIENCE_S
from .support import (
    Connection,
    attempt,
    audit,
    behind_the_lock,
    call,
    call_rows,
    connect,
    differences,
    expire,
    grant,
    image,
    image_of,
    new_run,
    queue,
    take_over,
    together,
    value,
    values,
)

#: What a wrong token may look like: NULL slips through a guard that compares carelessly.
NEVER_ISSUED = (None, 0, -1, 2**62)


@dataclass(frozen=True)
class Function:
    """A function of the schema: its parameters with their types, and how many, from the first on, must be given."""

    name: str
    parameters: dict[str, str]
    required: int


def functions(connection: Connection, *having: str) -> list[Function]:
    """The functions of the API that have these parameters: new ones are attacked as soon as they exist."""
    rows = connection.execute("""
        select p.proname, p.proargnames[:p.pronargs],
          (select array_agg(t::regtype::text order by n) from unnest(p.proargtypes) with ordinality as a(t, n)),
          p.pronargs - p.pronargdefaults
        from pg_proc p
        where p.pronamespace = 'tidebase'::regnamespace and p.prokind = 'f' and p.pronargs > 0
        order by p.proname""").fetchall()
    found = [Function(name, dict(zip(names, types, strict=True)), required) for name, names, types, required in rows]
    return [function for function in found if function.parameters.keys() >= set(having)]


_BY_TYPE: dict[str, Any] = {
    "text": "probe",
    "jsonb": Jsonb({"by": "probe"}),
    "bigint": 1,
    "integer": 1,
    "numeric": 1,
    "boolean": True,
    "interval": "1 minute",
    "text[]": ["probe"],
    "timestamp with time zone": "2030-01-01",
    "bytea": b"probe",
    "integer[]": [1],
    "bytea[]": [b"probe"],
}
_BY_NAME: dict[str, Any] = {"type": "probe.note", "output": Jsonb("forged"), "result": Jsonb("forged")} | {
    "steps": Jsonb([{"name": "work"}, {"name": "new"}])
}


def mutations(connection: Connection, run_id: str, token: int | None) -> list[tuple[str, dict[str, Any]]]:
    """Every call that writes with a lease token, with sensible arguments: on steps that run, are completed, are new."""
    calls = []
    for function in functions(connection, "run_id", "token"):
        wanted = list(function.parameters)[: function.required] + [n for n in _BY_NAME if n in function.parameters]
        arguments = {name: _BY_NAME.get(name, _BY_TYPE[function.parameters[name]]) for name in wanted}
        for name in ("work", "done", "new") if "name" in arguments else ("",):
            given = arguments | {"run_id": run_id, "token": token} | ({"name": name} if name else {})
            calls.append((function.name, given))
    assert len(calls) >= 8, "the catalogue query has lost the functions"
    return calls


def _refused(connection: Connection, observer: Connection, run_id: str, token: int | None, code: str) -> list[str]:
    """Tries every write with this token: each must raise the code, and nothing may change."""
    found = []
    before = image(observer)
    for function, arguments in mutations(connection, run_id, token):
        got, result = attempt(connection, function, **arguments)
        if got != code:
            found.append(
                f"{function}({arguments.get('name', '')}) with token {token}: {got} instead of {code}: {result}"
            )
    return found + differences(before, image(observer))


# --- Leases -----------------------------------------------------------------------------------------------------------


def one_holder(url: str, workers: int = 8, queued: bool = False) -> list[str]:
    """Workers race for one run, from a barrier or all of them queued behind its lock: one gets it, and the others are
    told who.
    """
    with connect(url) as observer:
        run_id = new_run(observer)
        race = functools.partial(behind_the_lock, url, run_id) if queued else functools.partial(together, url)
        answers = race(
            workers, lambda connection, number: attempt(connection, "acquire_run", run_id=run_id, holder=f"w{number}")
        )
        found = [f"acquire_run: {code}: {error}" for code, error in answers if code != "ok"]
        leases = [lease for code, lease in answers if code == "ok"]
        granted = [lease for lease in leases if lease["outcome"] == "granted"]
        if len(granted) != 1:
            return [*found, f"{len(granted)} of {workers} were granted the lease: {granted}", *audit(observer, run_id)]
        expected = {
            "outcome": "held",
            "token": None,
            "holder": granted[0]["holder"],
            "expires_at": granted[0]["expires_at"],
        }
        for lease in leases:
            told = {name: lease[name] for name in expected}
            if lease is not granted[0] and told != expected:
                found.append(f"a loser was told {told} instead of {expected}")
        return found + audit(observer, run_id)


def takeovers(url: str, rounds: int = 10, threads: int = 4) -> list[str]:
    """Round after round the lease lapses and several take the run over at once: one gets it, under a token that is
    greater than every one before.
    """
    found: list[str] = []
    tokens: list[int] = []
    answers: list[Any] = [None] * threads
    with connect(url) as keeper:
        run_id = new_run(keeper)

        def judge() -> None:
            if any(answers):
                found.extend(f"acquire_run: {code}: {error}" for code, error in answers if code != "ok")
                granted = [lease["token"] for code, lease in answers if code == "ok" and lease["outcome"] == "granted"]
                if len(granted) != 1:
                    found.append(f"{len(granted)} were granted the lease that had lapsed: {granted}")
                if any(token <= max(tokens, default=0) for token in granted):
                    found.append(f"{granted} granted after {max(tokens)}")
                tokens.extend(granted)
            expire(keeper, run_id)

        barrier = threading.Barrier(threads, action=judge)

        def worker(connection: Connection, number: int) -> None:
            for _ in range(rounds):
                barrier.wait(PATIENCE_S)
                answers[number] = attempt(connection, "acquire_run", run_id=run_id, holder=f"w{number}", ttl="1 hour")
            barrier.wait(PATIENCE_S)

        together(url, threads, worker)
        if len(set(tokens)) != len(tokens):
            found.append(f"a token was issued twice: {Counter(tokens).most_common(3)}")
        return found + audit(keeper, run_id)


def short_leases(url: str, grants: int = 20, threads: int = 4) -> list[str]:
    """Leases of a millisecond, taken over by whoever comes next, without any rounds: no token twice, and for each
    worker they only grow.
    """
    with connect(url) as observer:
        run_id = new_run(observer)
        enough = threading.Event()
        count = iter(range(1, grants + 1))
        lock = threading.Lock()

        def worker(connection: Connection, number: int) -> tuple[list[int], list[str]]:
            mine: list[int] = []
            while not enough.is_set():
                code, lease = attempt(
                    connection, "acquire_run", run_id=run_id, holder=f"w{number}", ttl="1 millisecond"
                )
                if code != "ok":
                    enough.set()
                    return mine, [f"acquire_run: {code}: {lease}"]
                if lease["outcome"] == "granted":
                    mine.append(lease["token"])
                    with lock:
                        if next(count, grants) >= grants:
                            enough.set()
            return mine, []

        results = together(url, threads, worker)
        found = [violation for _, violations in results for violation in violations]
        found += [f"tokens of one worker: {mine}" for mine, _ in results if mine != sorted(set(mine))]
        issued = Counter(token for mine, _ in results for token in mine)
        found += [f"token {token} was issued {times} times" for token, times in issued.items() if times > 1]
        return found + audit(observer, run_id)


def zombie(url: str) -> list[str]:
    """A holder that was replaced, and anyone with a token that was never issued, can write nothing."""
    with connect(url) as old, connect(url) as new, connect(url) as observer:
        run_id = new_run(old)
        stale = grant(old, run_id, "zombie")
        call(old, "begin_step", run_id=run_id, token=stale, name="done")
        call(old, "complete_step", run_id=run_id, token=stale, name="done", output=Jsonb("real"))
        call(old, "begin_step", run_id=run_id, token=stale, name="work")
        fresh = take_over(new, run_id)
        found = []
        for token in (stale, fresh + 1, *NEVER_ISSUED):
            found += _refused(old, observer, run_id, token, "TB003")
        if found:
            return found  # what follows counts on nothing having happened
        # Once more when the successor has given the run up, when it does the step that the zombie has in hand, and when
        # the run is over.
        call(new, "release_run", run_id=run_id, token=fresh)
        found += _refused(old, observer, run_id, stale, "TB003")
        if found:
            return found
        fresh = grant(new, run_id, "successor")
        call(new, "begin_step", run_id=run_id, token=fresh, name="work")
        found += _refused(old, observer, run_id, stale, "TB003")
        if found:
            return found
        call(new, "complete_step", run_id=run_id, token=fresh, name="work", output=Jsonb("the successor's"))
        call(new, "complete_run", run_id=run_id, token=fresh, result=Jsonb("real"))
        found += _refused(old, observer, run_id, stale, "TB003")
        return found + audit(observer, run_id)


def replaced_while_waiting(url: str) -> list[str]:
    """Every write of the holder waits for the run's lock while another takes the run over: when it gets the lock, it
    must notice. What was read before the wait is out of date.
    """
    found = []
    with connect(url) as observer:
        for function, arguments in mutations(observer, "", None):
            run_id = new_run(observer)
            token = grant(observer, run_id)
            call(observer, "begin_step", run_id=run_id, token=token, name="work")
            before: dict[str, Any] = {}

            def replace(blocker: Connection, run_id: str = run_id, before: dict[str, Any] = before) -> None:
                take_over(blocker, run_id)
                before["image"] = image_of(blocker, run_id)

            arguments |= {"run_id": run_id, "token": token}
            ((code, result),) = behind_the_lock(
                url, run_id, 1, lambda c, _, f=function, a=arguments: attempt(c, f, **a), replace
            )
            if code != "TB003":
                found.append(f"{function}, overtaken while it waited: {code} instead of TB003: {result}")
            found += differences(before["image"], image_of(observer, run_id))
        return found + audit(observer)


def given_up(url: str) -> list[str]:
    """A token that is the run's newest is worth nothing any more once the run was released, failed or completed."""
    with connect(url) as holder, connect(url) as observer:
        found = []
        for end, refusal in (("release_run", "TB003"), ("fail_run", "TB003"), ("complete_run", "TB005")):
            run_id = new_run(holder)
            token = grant(holder, run_id)
            call(holder, "begin_step", run_id=run_id, token=token, name="work")
            call(holder, end, run_id=run_id, token=token)
            before = image(observer)
            for function, arguments in mutations(holder, run_id, token):
                if function == end and "result" not in arguments:
                    continue  # the same call again gets the same answer: that is no write
                if end != "complete_run" and function in ("complete_step", "fail_step", "record_step", "record_steps"):
                    continue  # what was done by then is stored: see paid_for
                code, result = attempt(holder, function, **arguments)
                if code != refusal:
                    found.append(f"{function} after {end}: {code} instead of {refusal}: {result}")
            call(holder, end, run_id=run_id, token=token)
            found += differences(before, image(observer))
        return found + audit(observer)


def paid_for(url: str) -> list[str]:
    """What was done when the lease was given up is stored, until somebody else has been granted one."""
    found = []
    with connect(url) as holder, connect(url) as other:
        for end in ("release_run", "fail_run"):
            run_id = new_run(holder)
            token = grant(holder, run_id)
            for name in ("done", "failed", "late"):
                call(holder, "begin_step", run_id=run_id, token=token, name=name)
            call(holder, end, run_id=run_id, token=token)
            for function, arguments in (
                ("complete_step", {"name": "done"}),
                ("fail_step", {"name": "failed"}),
                ("record_step", {"name": "recorded"}),
                ("record_steps", {"steps": Jsonb([{"name": "and this"}, {"name": "and that"}])}),
            ):
                code, result = attempt(holder, function, run_id=run_id, token=token, **arguments)
                if code != "ok":
                    found.append(f"{function} after {end}: {code}: {result}")
            grant(other, run_id)
            for function in ("complete_step", "fail_step", "record_step"):
                code, result = attempt(holder, function, run_id=run_id, token=token, name="late")
                if code != "TB003":
                    found.append(f"{function} after {end} and a grant: {code}: {result}")
        return found + audit(holder)


def lapsed_holder(url: str) -> list[str]:
    """A holder whose lease has run out, but whom nobody has replaced, may finish what it has in hand, and go on:
    whether or not reconcile has seen it.
    """
    found = []
    with connect(url) as holder:
        run_id = new_run(holder)
        token = grant(holder, run_id)
        call(holder, "begin_step", run_id=run_id, token=token, name="work")
        expire(holder, run_id)
        holder.execute("update tidebase.run_heads set due_at = lease_expires_at")
        holder.execute("select tidebase.reconcile()")
        for function, arguments in (
            ("complete_step", {"name": "work", "output": Jsonb("paid for")}),
            ("append_event", {"type": "probe.note"}),
            ("begin_step", {"name": "next"}),
            ("renew_lease", {"ttl": "1 hour"}),
        ):
            code, result = attempt(holder, function, run_id=run_id, token=token, **arguments)
            if code != "ok":
                found.append(f"{function} of a lapsed holder that nobody has replaced: {code}: {result}")
        outcome = call(holder, "acquire_run", run_id=run_id, holder="another")["outcome"]
        if outcome != "held":
            found.append(f"after the renewal another worker was answered {outcome}")
        return found + audit(holder, run_id)


def time_after_waiting(url: str) -> list[str]:
    """Time is read when it is needed, after the wait for the lock, and not when the transaction began. A lease that has
    run out meanwhile has run out, and one that is granted or renewed lasts for its whole ttl from then.
    """
    found = []
    with connect(url) as observer:
        run_id = new_run(observer)
        token = grant(observer, run_id)
        released = []

        def lapse(blocker: Connection) -> None:
            blocker.execute(
                "update tidebase.run_heads set lease_expires_at = clock_timestamp() where run_id = %s", (run_id,)
            )
            released.append(value(blocker, "select clock_timestamp()"))

        hour = value(observer, "select interval '1 hour'")
        with connect(url) as late, late.transaction():
            late.execute("select")  # the transaction begins while the lease is alive
            lapse(observer)
            code, lease = attempt(late, "acquire_run", run_id=run_id, holder="next", ttl="1 hour")
        if code != "ok" or lease["outcome"] != "granted":
            found.append(f"the lease ran out before acquire_run was called, and the answer was {code}: {lease}")
        else:
            token = lease["token"]
            if lease["expires_at"] < released[-1] + hour:
                found.append(f"a lease of an hour, granted after {released[-1]}, ends at {lease['expires_at']}")
        ((code, until),) = behind_the_lock(
            url, run_id, 1, lambda c, _: attempt(c, "renew_lease", run_id=run_id, token=token, ttl="1 hour"), lapse
        )
        if code != "ok" or until < released[-1] + hour:
            found.append(f"a lease renewed for an hour after {released[-1]}: {code}, {until}")
    return found


def durability(url: str) -> list[str]:
    """What must survive a crash of the server waits for its WAL, also where synchronous_commit is off; a heartbeat and
    the like do not wait, unless they share a transaction with something that must survive.
    """
    found = []
    setting = "select current_setting('synchronous_commit')"
    with connect(url) as connection:

        def after(session: str, *calls: tuple[str, dict[str, Any]]) -> str:
            """The setting at the end of a transaction of these calls, which is then rolled back."""
            run_id = new_run(connection)
            token = grant(connection, run_id)
            call(connection, "begin_step", run_id=run_id, token=token, name="work")
            connection.execute(f"set synchronous_commit = '{session}'")
            result = ""
            with connection.transaction(force_rollback=True):
                for function, arguments in calls:
                    if function == "acquire_run":
                        call(connection, "release_run", run_id=run_id, token=token)
                        connection.execute(f"set local synchronous_commit = '{session}'")
                        call(connection, function, run_id=run_id, holder="next")
                    elif function == "create_run":
                        call(connection, function, workflow="probe")
                    else:
                        call(connection, function, run_id=run_id, token=token, **arguments)
                result = value(connection, setting)
            connection.execute("reset synchronous_commit")
            return result

        work = {"name": "work"}
        durable: list[tuple[str, dict[str, Any]]] = [
            ("create_run", {}),
            ("acquire_run", {}),
            ("complete_step", work),
            ("fail_step", work),
            ("append_event", {"type": "probe.note"}),
            ("begin_step", {"name": "mail", "side_effects": ["email.send"]}),
            ("release_run", {}),
            ("complete_run", {}),
            ("fail_run", {}),
        ]
        lazy: list[tuple[str, dict[str, Any]]] = [
            ("renew_lease", {}),
            ("begin_step", {"name": "look", "side_effects": ["read"]}),
            ("begin_step", {"name": "think"}),
            ("append_event", {"type": "probe.tick", "transient": True}),
        ]
        expected = [("off", [one], "on") for one in durable]
        expected += [("remote_apply", [one], "remote_apply") for one in durable]  # a stronger wish is kept
        expected += [("on", [one], "off") for one in lazy]
        expected += [("on", [durable[2], one], "on") for one in lazy]  # somebody counts on what was written before
        expected += [("on", [one, durable[2]], "on") for one in lazy]
        for session, calls, wanted in expected:
            got = after(session, *calls)
            if got != wanted:
                names = ", ".join(name for name, _ in calls)
                found.append(f"{names} in a session with synchronous_commit = {session}: committed with {got}")
    return found


# --- Steps ------------------------------------------------------------------------------------------------------------


def one_begin(url: str, connections: int = 6, queued: bool = True) -> list[str]:
    """Several threads of one holder begin the same step: one may execute it, the first time and after a failure."""
    found = []
    with connect(url) as observer:
        run_id = new_run(observer)
        token = grant(observer, run_id)
        race = functools.partial(behind_the_lock, url, run_id) if queued else functools.partial(together, url)
        for nth, request in ((1, False), (2, True)):
            answers = race(
                connections,
                lambda connection, number: attempt(
                    connection,
                    "begin_step",
                    run_id=run_id,
                    token=token,
                    name="work",
                    request_id=f"request {number} of {nth}" if request else None,  # noqa: B023
                ),
            )
            count = Counter((code, answer["outcome"] if code == "ok" else None) for code, answer in answers)
            if count != Counter({("ok", "execute"): 1, ("TB007", None): connections - 1}):
                found.append(f"attempt {nth}: begin_step of one step, {connections} times at once: {dict(count)}")
            attempts = {answer["attempt"] for code, answer in answers if code == "ok"}
            if attempts != {nth}:
                found.append(f"the step was begun as attempts {attempts} instead of {nth}")
            call(observer, "fail_step", run_id=run_id, token=token, name="work")
        return found + audit(observer, run_id)


def successor_repeats(url: str) -> list[str]:
    """A step that a former holder left unfinished is executed again by its successor, as the next attempt."""
    found = []
    with connect(url) as holder:
        run_id = new_run(holder)
        token = grant(holder, run_id)
        for nth in (1, 2, 3):
            code, answer = attempt(holder, "begin_step", run_id=run_id, token=token, name="work")
            if code != "ok" or (answer["outcome"], answer["attempt"]) != ("execute", nth):
                found.append(f"a step under its lease number {nth}: {code}: {answer}")
            token = take_over(holder, run_id)
        return found + audit(holder, run_id)


def same_request(url: str, connections: int = 6) -> list[str]:
    """The same call, sent again on other connections since its answer was lost, is one beginning."""
    found = []
    with connect(url) as observer:
        run_id = new_run(observer)
        token = grant(observer, run_id)
        for race in (functools.partial(behind_the_lock, url, run_id), functools.partial(together, url)):
            name, request = str(uuid.uuid4()), str(uuid.uuid4())
            answers = race(
                connections,
                lambda connection, _: attempt(
                    connection,
                    "begin_step",
                    run_id=run_id,
                    token=token,
                    name=name,  # noqa: B023
                    request_id=request,  # noqa: B023
                ),
            )
            count = Counter((code, answer["outcome"], answer["attempt"]) for code, answer in answers if code == "ok")
            if count != Counter({("ok", "execute", 1): connections}):
                found.append(f"the same begin_step {connections} times: {answers}")
            appended = behind_the_lock(
                url,
                run_id,
                connections,
                lambda connection, _: attempt(
                    connection,
                    "append_event",
                    run_id=run_id,
                    token=token,
                    type="probe.note",
                    request_id=request,  # noqa: B023
                ),
            )
            if len(set(appended)) != 1 or appended[0][0] != "ok":
                found.append(f"the same append_event {connections} times: {appended}")
        written = Counter(values(observer, "select type from tidebase.events where run_id = %s", run_id))
        if written["step.started"] != 2 or written["probe.note"] != 2:
            found.append(f"two steps begun and two notes appended, but the log has {dict(written)}")
        return found + audit(observer, run_id)


def checkpoint_is_final(url: str) -> list[str]:
    """Nothing changes a completed step: not its own worker, not a successor, not another output or input."""
    found = []
    with connect(url) as holder:
        run_id = new_run(holder)
        token = grant(holder, run_id)
        given = {"run_id": run_id, "name": "work"}
        call(holder, "begin_step", token=token, input=Jsonb({"n": 1}), **given)
        seq = call(holder, "complete_step", token=token, output=Jsonb("first"), **given)
        rows = "select t::text from tidebase.steps t where run_id = %s"
        log = "select t::text from tidebase.events t where run_id = %s and type like 'step.%%'"
        stored = values(holder, rows, run_id), values(holder, log, run_id)

        def expect(what: str, function: str, wanted: tuple[str, Any], **arguments: Any) -> None:
            code, answer = attempt(holder, function, **given, **arguments)
            got = (code, (answer.get("outcome"), answer.get("output")) if isinstance(answer, dict) else answer)
            if got != wanted and (code, None) != wanted:
                found.append(f"{what}: {got} instead of {wanted}")
            if (values(holder, rows, run_id), values(holder, log, run_id)) != stored:
                found.append(f"{what}: the checkpoint or its log changed: {values(holder, rows, run_id)}")

        def attack(who: str, token: int, completes: tuple[str, Any]) -> None:
            replay = ("ok", ("replay", "first"))
            expect(f"{who} completes it again", "complete_step", completes, token=token, output=Jsonb("first"))
            expect(f"{who} changes it", "complete_step", ("TB007", None), token=token, output=Jsonb("second"))
            expect(f"{who} fails it", "fail_step", ("TB007", None), token=token)
            expect(f"{who} begins it", "begin_step", replay, token=token, input=Jsonb({"n": 1}))
            recorded = {"token": token, "output": Jsonb("second")}
            expect(f"{who} records it", "record_step", replay, input=Jsonb({"n": 1}), **recorded)
            for other in (Jsonb({"n": 2}), None):
                expect(f"{who} begins it for another input", "begin_step", ("TB006", None), token=token, input=other)
                expect(f"{who} records it for another input", "record_step", ("TB006", None), input=other, **recorded)
            expect(
                f"{who} makes it a step with side effects",
                "begin_step",
                replay,
                token=token,
                input=Jsonb({"n": 1}),
                side_effects=["email.send"],
                replay="manual",
            )

        attack("its worker", token, ("ok", seq))
        successor = take_over(holder, run_id)
        attack("a successor", successor, ("TB007", None))
        expect("a zombie changes it", "complete_step", ("TB003", None), token=token, output=Jsonb("second"))
        expect("a zombie records it", "record_step", ("TB003", None), token=token, output=Jsonb("second"))
        return found + audit(holder, run_id)


#: Steps of which one is known already, for a worker that makes its call again.
TOGETHER = (
    '[{"name": "a", "output": 1, "log_start": true}, {"name": "b", "output": 2}, {"name": "c", "log_start": true}]'
)


def steps_together(url: str) -> list[str]:
    """Steps that are recorded in one call have the numbers of as many calls, are stored all or none, and are fenced; of
    several runs, nobody waits for a head that somebody has locked, and only those that may be are recorded.
    """
    found: list[str] = []
    log = "select seq || ' ' || type || ' ' || payload::text from tidebase.events where run_id = %s order by seq"
    with connect(url) as holder, connect(url, options="-c lock_timeout=2s") as other:
        runs = [new_run(holder) for _ in range(4)]
        tokens = [grant(holder, run_id) for run_id in runs]
        together, single, locked, stale = runs

        def expect(what: str, got: object, wanted: object) -> None:
            if got != wanted:
                found.append(f"{what}: {got} instead of {wanted}")

        given = {"run_id": together, "token": tokens[0]}
        expect("they are new", _outcomes(holder, steps=TOGETHER, **given), ["recorded"] * 3)
        for name, output, start in (("a", 1, True), ("b", 2, False), ("c", None, True)):
            step = {"name": name, "output": Jsonb(output), "log_start": start}
            call(holder, "record_step", run_id=single, token=tokens[1], **step)
        logs = [values(holder, log, run_id) for run_id in (together, single)]
        expect("the log", logs[0], logs[1])
        expect("again", _outcomes(holder, steps=TOGETHER, **given), ["replay"] * 3)
        bad = '[{"name": "d"}, {"name": "a", "input": 7}]'
        expect("one of another input", attempt(holder, "record_steps", steps=bad, **given)[0], "TB006")
        expect("what that stored", values(holder, log, together), logs[0])

        new_token = take_over(holder, stale)
        several = [
            {"run_id": run_id, "token": token, "steps": [{"name": "new"}]}
            for run_id, token in zip(runs, tokens, strict=True)
        ] + [{"run_id": together, "token": tokens[0], "steps": [{"name": "a"}]}]
        with holder.transaction():
            holder.execute("select from tidebase.run_heads where run_id = %s for no key update", [locked])
            answer = attempt(other, "record_steps_of_runs", runs=Jsonb(several))
        expect("those of several runs", answer, ("ok", [True, True, False, False, False]))
        zombie = attempt(holder, "record_steps", run_id=stale, token=tokens[3], steps='[{"name": "late"}]')
        expect("a zombie's", zombie[0], "TB003")
        here = values(holder, "select name from tidebase.steps where run_id = any(%s) order by name", [locked, stale])
        expect("what nobody recorded", here, [])
        call(holder, "record_step", run_id=stale, token=new_token, name="after")
        return found + [problem for run_id in runs for problem in audit(holder, run_id)]


def _outcomes(connection: Connection, **arguments: Any) -> list[str]:
    try:
        return [row["outcome"] for row in call_rows(connection, "record_steps", **arguments)]
    except psycopg.Error as error:
        return [str(error.sqlstate)]


#: Pairs of JSON texts, and whether they are the same input.
INPUTS = [
    ("1.50", "1.5", True),
    ("1.0", "1", True),
    ("100.000", "1e2", True),
    ("-0.0", "0", True),
    ('{"a": [1.10, {"b": 2.00}], "c": 3}', '{"c": 3, "a": [1.1, {"b": 2}]}', True),
    ('"\\u0061.0"', '"a.0"', True),
    ('["x\\"", 1.0]', '["x\\"", 1]', True),
    ('["1.0", 2.0]', '["1.0", 2]', True),
    ("100", "10", False),
    ("1.05", "1.5", False),
    ("1.001", "1.01", False),
    ("0.10", "0.010", False),
    ('"1.0"', '"1"', False),
    ('"1.0"', "1.0", False),
    ('"x\\" 1.50"', '"x\\" 1.5"', False),
    ('{"1.0": 1}', '{"1": 1}', False),
    ('["a", 1.0, "b.0"]', '["a", 1.0, "b"]', False),
    ("12345678901234567890.0", "12345678901234567891.0", False),
    ("null", "false", False),
    ("[]", "{}", False),
]


def same_input(url: str) -> list[str]:
    """A stored result is reused for an equal input, however it is spelt, and for no other."""
    found = []
    with connect(url) as holder:
        run_id = new_run(holder)
        token = grant(holder, run_id)
        for number, (first, second, same) in enumerate(INPUTS):
            given = {"run_id": run_id, "token": token, "name": f"step {number}"}
            call(holder, "begin_step", input=first, **given)
            call(holder, "complete_step", **given)
            code, answer = attempt(holder, "begin_step", input=second, **given)
            got = answer["outcome"] if code == "ok" else code
            if got != ("replay" if same else "TB006"):
                found.append(f"{first} and then {second}: {got}")
        return found + audit(holder, run_id)


def other_input(url: str) -> list[str]:
    """Another input is refused in whatever state the step is: left behind by an earlier lease, failed, running, and
    completed while the call waited for the lock.
    """
    found = []
    with connect(url) as holder:
        run_id = new_run(holder)
        token = grant(holder, run_id)
        left: dict[str, Any] = {"run_id": run_id, "name": "left behind"}
        failed: dict[str, Any] = {"run_id": run_id, "name": "failed"}
        running: dict[str, Any] = {"run_id": run_id, "name": "running"}

        def expect(token: int, step: dict[str, Any], **arguments: Any) -> None:
            code, answer = attempt(holder, "begin_step", token=token, input="2", **step, **arguments)
            if code != "TB006":
                found.append(f"step {step['name']!r}, begun with another input: {code}: {answer}")

        call(holder, "begin_step", token=token, input="1", **left)
        token = take_over(holder, run_id)
        call(holder, "begin_step", token=token, input="1", **failed)
        call(holder, "fail_step", token=token, **failed)
        call(holder, "begin_step", token=token, input="1", request_id="r", **running)
        expect(token, left)
        expect(token, failed)
        expect(token, running)
        expect(token, running, request_id="r")  # claims to be the same call, and is not
        answers = behind_the_lock(
            url,
            run_id,
            2,
            lambda c, number: attempt(c, "begin_step", token=token, input=str(number + 1), **running),
            lambda blocker: call(blocker, "complete_step", token=token, output="7", **running),
        )
        outcome = (answers[0][0], answers[0][1]["output"] if answers[0][0] == "ok" else None, answers[1][0])
        if outcome != ("ok", 7, "TB006"):
            found.append(f"a step that was completed meanwhile, begun with its input and with another: {answers}")
        return found + audit(holder, run_id)


# --- The log ----------------------------------------------------------------------------------------------------------


class _Reader:
    """Follows a run as a client does, and notices every number that does not come right after the last one."""

    def __init__(self, connection: Connection, run_id: str) -> None:
        self._connection = connection
        self._run_id = run_id
        self.seen: list[tuple[int, str, Any]] = []
        self.violations: list[str] = []

    @property
    def last(self) -> int:
        return self.seen[-1][0] if self.seen else 0

    def read(self) -> None:
        rows = call_rows(self._connection, "read_events", run_id=self._run_id, after=self.last, max=10000)
        numbers = [row["seq"] for row in rows]
        if numbers != list(range(self.last + 1, self.last + 1 + len(numbers))):
            self.violations.append(f"a reader that had seen {self.last} was given {numbers[:20]}")
        self.seen += [(row["seq"], row["type"], row["payload"]) for row in rows]
        below = "select count(*) from tidebase.events where run_id = %s and seq <= %s"
        count = value(self._connection, below, self._run_id, self.last)
        if count != self.last:
            self.violations.append(f"{count} events at or below {self.last}, which a reader has seen")

    def finish(self) -> list[str]:
        """Reads the rest, and compares what was seen on the way with what is stored in the end."""
        self.read()
        rows = self._connection.execute(
            "select seq, type, payload from tidebase.events where run_id = %s order by seq", (self._run_id,)
        ).fetchall()
        if rows != self.seen:
            self.violations.append("the log in the end is not what the reader was given on the way")
        return self.violations


def event_order(url: str, writers: int = 4, transactions: int = 8, steps: bool = False, seed: int = 1) -> list[str]:
    """Writers append to one run at once, in transactions of several events, and some roll back; a reader follows.

    Args:
        steps: the writers also begin and complete steps in between.
    """
    with connect(url) as observer, connect(url) as reading:
        run_id = new_run(observer)
        token = grant(observer, run_id)
        reader = _Reader(reading, run_id)
        finished = threading.Event()

        def write(connection: Connection, number: int) -> tuple[list[Any], list[str]]:
            dice = random.Random(f"{seed} {number}")
            written, found = [], []
            for nth in range(transactions):
                payloads = [[number, nth, part] for part in range(dice.randint(1, 3))]
                committed = False
                try:
                    with connection.transaction():
                        for payload in payloads:
                            call(connection, "append_event", run_id=run_id, token=token, type="probe.note",
                                payload=Jsonb(payload))  # fmt: skip
                        if steps and dice.random() < 0.6:
                            given = {"run_id": run_id, "token": token, "name": f"step {number} {nth}"}
                            call(connection, "begin_step", **given)
                            call(connection, "complete_step" if dice.random() < 0.7 else "fail_step", **given)
                        if dice.random() < 0.3:
                            raise psycopg.Rollback
                        committed = True
                except psycopg.Error as error:
                    found.append(f"a writer: {error.sqlstate}: {error}")
                    committed = False
                written += payloads if committed else []
            return written, found

        def follow() -> None:
            with contextlib.suppress(psycopg.Error):
                while not finished.is_set():
                    reader.read()

        thread = threading.Thread(target=follow)
        thread.start()
        try:
            results = together(url, writers, write)
        finally:
            finished.set()
            thread.join()
        found = [violation for _, violations in results for violation in violations] + reader.finish()
        expected = sorted(payload for written, _ in results for payload in written)
        logged = sorted(payload for _, type, payload in reader.seen if type == "probe.note")
        if logged != expected:
            found.append(f"{len(expected)} events were committed, {len(logged)} are in the log, or others")
        return found + audit(observer, run_id)


def commit_order(url: str) -> list[str]:
    """A slow transaction has appended and not committed yet: nobody can get past it, whatever becomes of it."""
    found = []
    with connect(url) as slow, connect(url) as observer, connect(url) as reading:
        for end in ("commit", "rollback"):
            run_id = new_run(observer)
            token = grant(observer, run_id)
            reader = _Reader(reading, run_id)
            note = {"run_id": run_id, "token": token, "type": "probe.note"}
            with queue(url) as line:
                slow.execute("begin")
                call(slow, "append_event", payload=Jsonb("slow"), **note)
                line.add(lambda connection: attempt(connection, "append_event", payload=Jsonb("fast"), **note))  # noqa: B023
                line.add(
                    lambda connection: attempt(connection, "begin_step", run_id=run_id, token=token, name="s")  # noqa: B023
                )
                line.settle(observer)
                reader.read()
                slow.execute(end)
                found += [f"after a {end}: {code}: {error}" for code, error in line.results() if code != "ok"]
            found += reader.finish() + audit(observer, run_id)
    return found


def immutable_events(url: str) -> list[str]:
    """No role changes what is in the log or in a checkpoint, not even the owner whose rights the functions run with."""
    found = []
    with connect(url) as connection:
        run_id = new_run(connection)
        token = grant(connection, run_id)
        call(connection, "begin_step", run_id=run_id, token=token, name="work")
        call(connection, "complete_step", run_id=run_id, token=token, name="work")
        before = image(connection)
        rewriting = [
            "update tidebase.events set payload = '\"forged\"'",
            "update tidebase.events set seq = seq + 100",
            "truncate tidebase.events",
            "insert into tidebase.events (run_id, seq, type, payload) values ('r', 1, 't', '{}')"
            " on conflict on constraint events_pkey do update set payload = '\"forged\"'",
            "merge into tidebase.events e using (select 1) as one on true when matched then update set type = 'forged'",
        ]
        touching = [
            "delete from tidebase.events",
            "insert into tidebase.events (run_id, seq, type, payload) values ('r', 1, 't', '{}')",
            "select * from tidebase.events for update",
            "select * from tidebase.events",
            "select * from tidebase.steps",
            "update tidebase.steps set output = '\"forged\"'",
            "update tidebase.step_timeline set output = '\"forged\"'",
            "delete from tidebase.step_timeline",
            "update tidebase.run_heads set lease_token = 0, last_seq = 0",
            "update tidebase.runs set result = '\"forged\"'",
            "alter table tidebase.events disable trigger all",
            "drop table tidebase.events cascade",
            "select tidebase_private.give_back(null, 1)",
        ]
        for audience in ("worker", "reader", "approver", "operator", "owner"):
            role = value(connection, "select tidebase_private.role_name(%s)", audience)
            for statement in rewriting if audience == "owner" else rewriting + touching:
                with connection.transaction(force_rollback=True):
                    connection.execute(f'set local role "{role}"')
                    try:
                        with connection.transaction():
                            connection.execute(statement)
                        found.append(f"{role} may: {statement}")
                    except psycopg.errors.InsufficientPrivilege:
                        pass
                    except psycopg.Error as error:
                        found.append(f"{role} is not stopped by a missing privilege: {statement}: {error}")
        return found + differences(before, image(connection))


def _rung(listener: Connection, ringer: Connection) -> list[str]:
    """The run ids that were notified so far. Notifications come in the order of their commits, so a mark that is
    committed now says when all of them have arrived.
    """
    mark = str(uuid.uuid4())
    ringer.execute("select pg_notify('tidebase_events', %s)", (mark,))
    payloads: list[str] = []
    for notification in listener.notifies(timeout=PATIENCE_S):
        if notification.payload == mark:
            return payloads
        payloads.append(notification.payload)
    raise TimeoutError("a notification did not arrive")


#: The events of before are no burst with those to come.
LET_TIME_PASS = "update tidebase.events set created_at = created_at - interval '1 second'"


def doorbell(url: str) -> list[str]:
    """A commit after watch_run notifies; an unwatched run's, a rolled back one, one after the watch, and one right
    behind another do not.
    """
    found = []
    with connect(url) as listener, connect(url) as worker:
        watched, unwatched = new_run(worker), new_run(worker)
        tokens = {run_id: grant(worker, run_id) for run_id in (watched, unwatched)}
        channel = call(listener, "watch_run", run_id=watched, ttl="1 hour")["channel"]
        listener.execute(f"listen {channel}")

        def expect(what: str, wanted: list[str]) -> None:
            got = _rung(listener, worker)
            if got != wanted:
                found.append(f"{what}: notified {got} instead of {wanted}")
            worker.execute(LET_TIME_PASS)

        def append(run_id: str) -> None:
            call(worker, "append_event", run_id=run_id, token=tokens[run_id], type="probe.note")

        append(unwatched)
        expect("an unwatched run", [])
        append(watched)
        expect("a watched run", [watched])
        with worker.transaction(force_rollback=True):
            append(watched)
        expect("a rollback", [])
        with worker.transaction():
            append(watched)
            append(unwatched)
            append(watched)
        expect("several events of one commit", [watched])
        for function, arguments in (
            ("begin_step", {"name": "work"}),
            ("complete_step", {"name": "work"}),
            ("release_run", {}),
        ):
            call(worker, function, run_id=watched, token=tokens[watched], **arguments)
            expect(function, [watched])
        tokens[watched] = grant(worker, watched)
        expect("acquire_run", [watched])
        worker.execute("update tidebase.events set created_at = clock_timestamp() + interval '1 hour'")
        append(watched)
        expect("the next one of a burst", [])
        worker.execute("update tidebase.watches set watched_until = clock_timestamp() where run_id = %s", (watched,))
        append(watched)
        expect("a watch that has ended", [])
        call(listener, "watch_run", run_id=watched, ttl="1 hour")
        call(worker, "complete_run", run_id=watched, token=tokens[watched])
        expect("complete_run", [watched])
    return found


def watching_waits_for_nobody(url: str) -> list[str]:
    """Who looks on keeps nobody from working: neither a watch whose transaction stays open, nor one that meets another
    reader's, nor one that meets a write under way. A watch that was committed before a call began is heard by it.
    """
    found = []
    with connect(url) as worker, connect(url) as reader, connect(url) as observer:
        run_id = new_run(worker)
        token = grant(worker, run_id)

        def in_the_way(what: str, function: str, **arguments: Any) -> None:
            with queue(url) as line:
                waiting = line.add(lambda connection: call(connection, function, run_id=run_id, **arguments))
                line.settle(observer)
                if not waiting.done():
                    found.append(f"{function} waits for {what}")

        call(reader, "watch_run", run_id=run_id, ttl="1 second")
        with reader.transaction(force_rollback=True):
            call(reader, "watch_run", run_id=run_id)
            call(reader, "read_events", run_id=run_id)
            in_the_way("a reader's watch", "append_event", token=token, type="probe.note")
            in_the_way("a reader's watch", "renew_lease", token=token)
            if not found:  # it would wait, too
                call(observer, "watch_run", run_id=run_id)  # it gives up after 50 ms
        with worker.transaction(force_rollback=True):
            call(worker, "append_event", run_id=run_id, token=token, type="probe.note")
            in_the_way("a write", "watch_run")
        call(reader, "watch_run", run_id=run_id)
        reader.execute("listen tidebase_events")
        worker.execute(LET_TIME_PASS)
        call(worker, "append_event", run_id=run_id, token=token, type="probe.note")
        if run_id not in _rung(reader, observer):
            found.append("an event after the watch was not notified")
    return found


# --- All functions ----------------------------------------------------------------------------------------------------


def lock_order(url: str) -> list[str]:
    """Every call that needs a run's head waits for it before it has locked anything else of the run."""
    found = []
    waited = 0
    with connect(url) as observer, connect(url) as blocker:
        run_id = new_run(observer)
        token = grant(observer, run_id)
        for name in ("work", "done"):
            call(observer, "begin_step", run_id=run_id, token=token, name=name)
        call(observer, "complete_step", run_id=run_id, token=token, name="done")
        tables = [table for table in image_of(observer, run_id) if table != "tidebase.run_heads"]
        calls = mutations(observer, run_id, token)
        calls += [("acquire_run", {"run_id": run_id, "holder": "probe"})]
        for function, arguments in calls:
            with blocker.transaction(force_rollback=True), queue(url) as line:
                blocker.execute("select from tidebase.run_heads where run_id = %s for update", (run_id,))
                waiting = line.add(lambda connection: attempt(connection, function, **arguments))  # noqa: B023
                line.settle(observer)
                if waiting.done():
                    continue
                waited += 1
                for table in tables:
                    query = f"select from {table} where run_id = %s"
                    rows = len(observer.execute(query, (run_id,)).fetchall())
                    free = len(observer.execute(f"{query} for update skip locked", (run_id,)).fetchall())
                    if free != rows:
                        found.append(f"{function} waits for the head with {rows - free} rows of {table} locked")
    if waited < 8:
        found.append(f"only {waited} calls waited for the head: the probe is not one any more")
    return found


def stress(url: str, connections: int = 4, calls: int = 40, seed: int = 7) -> list[str]:
    """Random calls of every function, on four runs, from many connections: no deadlock, no error but Tidebase's own,
    and what is stored stays in order.
    """
    with connect(url) as observer:
        api = functions(observer)
        acquire = next(function for function in api if function.name == "acquire_run")
        runs = [new_run(observer) for _ in range(4)]
        everything = list(runs)
        tokens: dict[str, int] = {}
        lock = threading.Lock()

        def work(connection: Connection, number: int) -> list[str]:
            dice = random.Random(f"{seed} {number}")
            found = []
            for _ in range(calls):
                slot = dice.randrange(len(runs))
                run_id = runs[slot]
                function = dice.choice(api)
                if function.name in ("complete_run", "fail_run", "release_run", "cancel_run") and dice.random() < 0.85:
                    function = acquire  # or no lease would last long enough for the others to do anything
                arguments = _random_arguments(dice, function, run_id, tokens.get(run_id))
                code, answer = attempt(connection, function.name, **arguments)
                if code == "ok" and function.name == "acquire_run" and answer["outcome"] == "granted":
                    tokens[run_id] = answer["token"]
                elif code in ("TB004", "TB005"):
                    with lock:
                        if runs[slot] == run_id:  # a run that is final is boring: on with another
                            runs[slot] = new_run(connection)
                            everything.append(runs[slot])
                elif code != "ok" and not code.startswith("TB"):
                    found.append(f"{function.name}({arguments}): {code}: {answer}")
            return found

        found = [violation for violations in together(url, connections, work) for violation in violations]
        return found + audit(observer, *everything)


def _random_arguments(dice: random.Random, function: Function, run_id: str, token: int | None) -> dict[str, Any]:
    def choose(name: str, type: str) -> Any:
        if name == "run_id":
            return run_id if dice.random() < 0.95 else f"no such run {dice.random()}"
        if name == "token":
            return token if dice.random() < 0.9 else dice.choice((None, 1, (token or 1) - 1))
        if name == "ttl":
            return dice.choice(("1 millisecond", "20 milliseconds", "1 second", "1 minute"))
        if name in ("name", "step", "holder", "request_id", "key"):
            return f"{name} {dice.randrange(3)}"
        if name == "traceparent":
            return dice.choice((f"00-{dice.randrange(16**32):032x}-{dice.randrange(16**16):016x}-01", "forged"))
        if name == "type":
            return dice.choice(("probe.a", "probe.b", "step.forged"))
        if name == "replay":
            return dice.choice(("auto", "manual", "never", "sometimes"))
        if name in ("max", "retries"):
            return dice.randrange(4)
        if type == "jsonb":
            return Jsonb(dice.choice((None, 1, "x", {"a": 1.0})))
        return _BY_TYPE.get(type)

    arguments = {}
    for position, (name, type) in enumerate(function.parameters.items()):
        if position < function.required or name in ("run_id", "token") or dice.random() < 0.3:
            arguments[name] = choose(name, type)
    return arguments


Probe = Callable[[str], list[str]]
