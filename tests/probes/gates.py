"""Probes of what a run needs that waits, breaks or is stopped: gates, reviews, cancellation, reconciliation.

Each returns the violations that it found; see ``probes`` for the leases, checkpoints and the log.
"""

from __future__ import annotations

import threading
from typing import Any

from ..support.patience import PATIENCE_S
from .support import (
    Connection,
    attempt,
    audit,
    behind_the_lock,
    call,
    connect,
    expire,
    grant,
    new_run,
    poll,
    queue,
    take_over,
    together,
    value,
    values,
)

# -- gates ------------------------------------------------------------------------------------------------------------


def deciders(url: str, gates: int = 4, decisions: int = 12, connections: int = 4) -> list[str]:
    """Many decide each gate, half of them with a wrong secret, while the run changes hands now and then."""
    with connect(url) as connection:
        runs = [new_run(connection) for _ in range(gates)]
        secrets = {}
        for run_id in runs:
            token = grant(connection, run_id)
            secrets[run_id] = call(connection, "open_gate", run_id=run_id, token=token, name="g", prompt="?")["secret"]
        share = decisions // connections

        def decide(mine: Connection, number: int) -> list[tuple[str, str, bool, str, Any]]:
            seen = []
            for run_id in runs:
                if number == 0:
                    again = call(connection, "open_gate", run_id=run_id, token=take_over(connection, run_id), name="g",
                                 prompt="?")  # fmt: skip
                    secrets[run_id] = again["secret"] or secrets[run_id]
                for turn in range(share):
                    right = (number + turn) % 2 == 0
                    secret = secrets[run_id] if right else "gate_" + "0" * 64
                    actor = f"{number}-{turn}"
                    decision = ("approved", "rejected")[turn % 2]
                    code, answer = attempt(mine, "decide_gate", run_id=run_id, name="g", decision=decision, actor=actor,
                                           secret=secret)  # fmt: skip
                    seen.append((run_id, actor, right, code, answer))
            return seen

        answers = [entry for entries in together(url, connections, decide) for entry in entries]
        found = []
        for run_id in runs:
            standing = connection.execute(
                "select decision, actor from tidebase.gates where run_id = %s", (run_id,)
            ).fetchone()
            resolved = values(
                connection, "select payload from tidebase.events where run_id = %s and type = 'gate.resolved'", run_id
            )
            if len(resolved) != 1:
                found.append(f"{run_id} has {len(resolved)} gate.resolved events")
            mine = [entry for entry in answers if entry[0] == run_id]
            for _, actor, right, code, answer in mine:
                if right != (code == "ok"):
                    found.append(f"{run_id}: {actor}, secret right: {right}, got {code}")
                elif right and (answer["decision"], answer["actor"]) != standing:
                    found.append(f"{run_id}: {actor} was told {answer}, but {standing} stands")
            accepted = [actor for _, actor, _, code, answer in mine if code == "ok" and answer["accepted"]]
            if standing is None or accepted != [standing[1]]:
                found.append(f"{run_id}: accepted were {accepted}, {standing} stands")
        return found + audit(connection)


def deciders_queued(url: str, connections: int = 6) -> list[str]:
    """All deciders wait for the head's lock at once: whatever they read before is out of date."""
    with connect(url) as connection:
        run_id = new_run(connection)
        call(connection, "open_gate", run_id=run_id, token=grant(connection, run_id), name="g")

        def decide(mine: Connection, number: int) -> Any:
            return attempt(mine, "decide_gate", run_id=run_id, name="g", decision="approved", actor=str(number))

        answers = behind_the_lock(url, run_id, connections, decide)
        accepted = [answer["actor"] for code, answer in answers if code == "ok" and answer["accepted"]]
        standing = {answer["actor"] for code, answer in answers if code == "ok"}
        if len(accepted) == 1 and standing == set(accepted):
            return []
        return [f"accepted {accepted}, standing {standing}, answers {answers}"]


def suspension(url: str) -> list[str]:
    """A run never waits for a gate that is decided, whichever of the two comes first."""
    found = []
    for first in ("decision", "suspension"):
        with connect(url) as connection:
            run_id = new_run(connection)
            token = grant(connection, run_id)
            call(connection, "open_gate", run_id=run_id, token=token, name="g")

            def suspend(mine: Connection, number: int, run_id: str = run_id, token: int = token) -> Any:
                return attempt(mine, "suspend_run", run_id=run_id, token=token, name="g")

            def decide(mine: Connection, number: int = 0, run_id: str = run_id) -> Any:
                return attempt(mine, "decide_gate", run_id=run_id, name="g", decision="approved")

            if first == "decision":
                behind_the_lock(url, run_id, 1, suspend, meanwhile=lambda blocker, decide=decide: decide(blocker))
            else:
                behind_the_lock(url, run_id, 1, decide, meanwhile=lambda blocker, suspend=suspend: suspend(blocker, 0))
            status = value(connection, "select status from tidebase.run_heads where run_id = %s", run_id)
            expected = "running" if first == "decision" else "pending"
            if status != expected:
                found.append(f"{first} first: the run is {status}")
    return found


def all_that_is_shown(url: str) -> list[str]:
    """A decision holds for what was shown: opened with another prompt, another capability ..., a gate says so."""
    shown: dict[str, Any] = {
        "prompt": "Pay?",
        "data": '{"to": "x"}',
        "options": ["approved", "rejected"],
        "capability": '{"pay": 100}',
        "response_schema": '{"type": "object"}',
        "required_approvals": 1,
    }
    others = {
        "prompt": "Pay!",
        "data": '{"to": "y"}',
        "options": ["approved", "rejected", "edited"],
        "capability": '{"pay": 100000}',
        "response_schema": "true",
        "required_approvals": 2,
    }
    found = []
    with connect(url) as connection:
        run_id = new_run(connection)
        opened = {"run_id": run_id, "token": grant(connection, run_id), "name": "g"}
        call(connection, "open_gate", **opened, **shown)
        for status in ("pending", "decided"):
            if call(connection, "open_gate", **opened, **shown)["status"] != status:
                found.append(f"opened again as it was, it is not {status}")
            for name, other in others.items():
                code, _ = attempt(connection, "open_gate", **opened, **(shown | {name: other}))
                if code != "TB006":
                    found.append(f"{status}, with another {name}: {code}")
            call(connection, "decide_gate", run_id=run_id, name="g", decision="approved")
        return found + audit(connection)


def a_secret_dies_with_its_gate(url: str) -> list[str]:
    """The run is purged and made again under its id, and asks another question: also while somebody is deciding."""
    with connect(url) as connection, connect(url) as other:
        run_id = new_run(connection)

        def ask(prompt: str) -> str:
            call(connection, "create_run", workflow="probe", run_id=run_id)
            token = grant(connection, run_id)
            return str(call(other, "open_gate", run_id=run_id, token=token, name="g", prompt=prompt)["secret"])

        def forget() -> None:
            call(connection, "cancel_run", run_id=run_id)
            call(connection, "purge_runs", older_than="0")

        found = []
        secrets = [ask("Pay 1?"), call(connection, "get_gate_secret", run_id=run_id, name="g", voter="ada")]
        decision = {"run_id": run_id, "name": "g", "decision": "approved"}
        forget()
        secrets.append(ask("Pay 1000?"))
        for secret in secrets[:2]:
            code, _ = attempt(connection, "decide_gate", **decision, secret=secret)
            if code != "TB009":
                found.append(f"a secret of the gate that is gone: {code}")
        with queue(url) as line:
            with other.transaction():
                # Who decides has seen the gate, and waits for the key that its secret is compared by.
                other.execute("lock table tidebase_private.gate_key in access exclusive mode")
                late = line.add(lambda mine: attempt(mine, "decide_gate", **decision, secret=secrets[2]))
                line.settle(connection)
                forget()
                ask("Pay 1000000?")
            code, answer = late.result(PATIENCE_S)
        if code != "TB009":
            found.append(f"a secret of a gate that went meanwhile: {code} {answer}")
        return found + audit(connection)


def one_vote_each(url: str) -> list[str]:
    """Where two must agree, one person is one voter: under each name, in each role, and as the bearer of a secret."""
    with connect(url) as connection:
        run_id = new_run(connection)
        token = grant(connection, run_id)
        general = call(connection, "open_gate", run_id=run_id, token=token, name="g", required_approvals=2)["secret"]
        me = connection.info.user
        mine = call(connection, "get_gate_secret", run_id=run_id, name="g", voter=me)
        another = call(connection, "get_gate_secret", run_id=run_id, name="g", voter="another")
        guises: list[dict[str, Any]] = [
            {},
            {"actor": "bob"},
            {"actor": "(secret)"},
            {"secret": general},
            {"secret": general, "actor": "bob"},
            {"secret": mine},
            {"secret": mine, "actor": "bob"},
            {"voter": "bob"},
        ]

        def vote(mine: Connection, number: int) -> tuple[str, Any]:
            if number % 2:
                mine.execute("set role tidebase_approver")
            given = guises[number // 2]
            return attempt(mine, "decide_gate", run_id=run_id, name="g", decision="approved", **given)

        answers = behind_the_lock(url, run_id, 2 * len(guises), vote)
        counted = [answer for code, answer in answers if code == "ok" and answer["accepted"]]
        found = [] if len(counted) == 1 else [f"{len(counted)} votes of one person were counted: {answers}"]
        voters = values(connection, "select voter from tidebase.gate_votes where run_id = %s", run_id)
        if voters != [me]:
            found.append(f"{voters} have voted")
        decision = {"run_id": run_id, "name": "g", "decision": "approved", "secret": another}
        if call(connection, "decide_gate", **decision)["status"] != "decided":
            found.append("the vote of another person is not counted")
        return found + audit(connection)


# -- reviews ----------------------------------------------------------------------------------------------------------


def one_review(url: str, connections: int = 6) -> list[str]:
    """Many decide one review: it is decided once."""
    with connect(url) as connection:
        run_id = new_run(connection)
        call(connection, "begin_step", run_id=run_id, token=grant(connection, run_id), name="s", side_effects=["card"])
        token = take_over(connection, run_id)
        outcome = call(connection, "begin_step", run_id=run_id, token=token, name="s", side_effects=["card"])["outcome"]
        if outcome != "review":
            return [f"a step that may have charged a card is answered with {outcome} after a crash"]

        def resolve(mine: Connection, number: int) -> Any:
            return attempt(mine, "resolve_review", run_id=run_id, step="s", decision="accept", output=str(number))

        codes = sorted(code for code, _ in behind_the_lock(url, run_id, connections, resolve))
        return [] if codes == ["TB008"] * (connections - 1) + ["ok"] else [f"{codes}"]


# -- cancellation -----------------------------------------------------------------------------------------------------


def cancelled_for_good(url: str, rounds: int = 14) -> list[str]:
    """Cancelling meets everything that a worker, a successor or a decider may do, and is before or behind it."""
    found = []
    rivals = ("complete_run", "fail_run", "begin_step", "open_gate", "release_run", "acquire_run", "decide_gate")
    with connect(url) as connection:
        for turn in range(rounds):
            run_id = new_run(connection)
            token = grant(connection, run_id)
            call(connection, "open_gate", run_id=run_id, token=token, name="g")
            rival = rivals[turn % len(rivals)]
            arguments: dict[str, Any] = {"run_id": run_id, "token": token}
            if rival in ("begin_step", "open_gate"):
                arguments["name"] = "x"
            elif rival == "acquire_run":
                expire(connection, run_id)
                arguments = {"run_id": run_id, "holder": "successor"}
            elif rival == "decide_gate":
                arguments = {"run_id": run_id, "name": "g", "decision": "approved"}

            first = turn // len(rivals) % 2  # who queues up first, the canceller or its rival

            def act(mine: Connection, number: int, rival: str = rival, arguments: Any = arguments,
                    run_id: str = run_id, first: int = first) -> Any:  # fmt: skip
                if number == first:
                    return attempt(mine, "cancel_run", run_id=run_id, reason="enough")
                return attempt(mine, rival, **arguments)

            codes = [code for code, _ in behind_the_lock(url, run_id, 2, act)]
            status = value(connection, "select status from tidebase.run_heads where run_id = %s", run_id)
            finals = values(
                connection,
                "select type from tidebase.events where run_id = %s"
                " and type in ('run.completed', 'run.cancelled') order by seq",
                run_id,
            )
            last = values(
                connection, "select type from tidebase.events where run_id = %s order by seq desc limit 1", run_id
            )
            if len(finals) != 1 or finals != last or finals[0] != f"run.{status}":
                found.append(f"cancel against {rival} ({codes}): {status}, {finals}, then {last}")
            for function, more in (
                ("complete_run", {}),
                ("fail_run", {}),
                ("begin_step", {"name": "y"}),
                ("renew_lease", {}),
            ):
                again, _ = attempt(connection, function, run_id=run_id, token=token, **more)
                if again != "TB004" and status == "cancelled":
                    found.append(f"{function} on a cancelled run: {again}")
        return found + audit(connection)


# -- reconciliation ---------------------------------------------------------------------------------------------------


def reconciled_once(url: str, callers: int = 4, runs: int = 40) -> list[str]:
    """Many reconcile at once: each expiry is handled once, and a run that somebody has locked holds nobody up."""
    with connect(url) as connection, connect(url) as blocker:
        kinds: dict[str, list[str]] = {"run.lapsed": [], "gate.resolved": [], "timer.fired": [], "run.cancelled": []}
        for number in range(runs):
            kind = list(kinds)[number % 4]
            run_id = new_run(connection)
            token = grant(connection, run_id)
            if kind == "gate.resolved":
                call(connection, "open_gate", run_id=run_id, token=token, name="g", timeout="1 ms")
            elif kind == "timer.fired":
                call(connection, "start_timer", run_id=run_id, token=token, name="t", duration="1 ms")
            kinds[kind].append(run_id)
        locked = kinds["run.lapsed"].pop()
        expired = "lease_expires_at = clock_timestamp()"
        for run_id in [*kinds["run.lapsed"], locked]:
            connection.execute(f"update tidebase.run_heads set {expired} where run_id = %s", (run_id,))  # type: ignore[arg-type]
        connection.execute(
            "update tidebase.run_heads set deadline_at = clock_timestamp() where run_id = any(%s)",
            (kinds["run.cancelled"],),
        )
        connection.execute("update tidebase.run_heads set due_at = clock_timestamp() where status = 'running'")

        def reconcile(mine: Connection) -> list[str]:
            problems = []
            for _ in range(runs):
                code, answer = attempt(mine, "reconcile", max=7)
                if code != "ok":
                    problems.append(f"reconcile: {code} {answer}")
                    break
                if answer["runs"] == 0:
                    break
            return problems

        held_up = "select pid from pg_stat_activity where %s = any(pg_blocking_pids(pid))"
        with blocker.transaction(), queue(url) as line:
            blocker.execute("select from tidebase.run_heads where run_id = %s for update", (locked,))
            futures = [line.add(reconcile) for _ in range(callers)]
            poll(
                "everybody is done, or somebody waits for who has the run",
                lambda: (
                    all(future.done() for future in futures) or values(connection, held_up, blocker.info.backend_pid)
                ),
            )
            if not all(future.done() for future in futures):
                return ["somebody waits for a run that is locked"]
            found = [problem for future in futures for problem in future.result()]
        for kind, run_ids in kinds.items():
            query = "select run_id from tidebase.events where type = %s and run_id = any(%s)"
            handled = values(connection, query, kind, run_ids)
            if sorted(handled) != sorted(run_ids):
                found.append(f"{kind}: {len(handled)} events for {len(run_ids)} runs, {len(set(handled))} different")
        return found + audit(connection)


def one_delivery(url: str, dispatchers: int = 6) -> list[str]:
    """Many dispatchers claim at once: each delivery is handed to one, and a report of a former attempt is ignored."""
    with connect(url) as connection:
        runs = [new_run(connection, recovery_webhook="https://hooks.example/") for _ in range(10)]
        for run_id in runs:
            call(connection, "record_recovery", run_id=run_id)
        barrier = threading.Barrier(dispatchers)

        def claim(mine: Connection, number: int) -> list[str]:
            barrier.wait(PATIENCE_S)
            claimed: list[str] = []
            while len(claimed) < 2 * len(runs) and (
                rows := mine.execute("select run_id from tidebase.claim_deliveries(2)").fetchall()
            ):
                claimed += [row[0] for row in rows]
            return claimed

        claimed = sorted(run_id for run_ids in together(url, dispatchers, claim) for run_id in run_ids)
        found = [] if claimed == sorted(runs) else [f"claimed: {claimed}"]
        connection.execute("update tidebase.deliveries set next_at = clock_timestamp()")
        connection.execute("select tidebase.claim_deliveries()")
        stale = {"run_id": runs[0], "delivery": 1, "attempt": 1, "delivered": True}
        if call(connection, "finish_delivery", **stale) != "pending":
            found.append("the report of an attempt that was taken over was believed")
        return found


class Receiver:
    """What the channels of some runs are told, in the order in which it arrives."""

    def __init__(self, runs: list[str]) -> None:
        self.told: dict[str, list[int]] = {run_id: [] for run_id in runs}

    def tell(self, mine: Connection, delivery: Any, **more: Any) -> Any:
        """Sends an event and reports it; the next one."""
        self.told[delivery["run_id"]].append(delivery["seq"])
        return report(mine, delivery, **more)

    def tell_all(self, mine: Connection) -> None:
        """Takes its turn as a dispatcher until nothing is due."""
        due = {"rung": list(self.told), "ttl": "1 hour", "max": 1}
        while (delivery := call(mine, "claim_channel_deliveries", **due)) is not None:
            while delivery is not None:
                delivery = self.tell(mine, delivery)

    def missed(self, connection: Connection) -> list[str]:
        """Whose log was not told from end to end, each event once."""
        logs = dict(connection.execute("select run_id, last_seq from tidebase.run_heads").fetchall())
        return [
            f"{run_id} was told {seqs} of {logs[run_id]}"
            for run_id, seqs in self.told.items()
            if seqs != list(range(1, logs[run_id] + 1))
        ]


def report(mine: Connection, delivery: Any, **more: Any) -> Any:
    """Reports an event as delivered; the next one."""
    which = {name: delivery[name] for name in ("run_id", "channel", "attempt")}
    return call(mine, "finish_channel_delivery", **which, delivered=True, **more)


def told_in_order(url: str, dispatchers: int = 6) -> list[str]:
    """Many dispatchers tell channels while their runs go on: each event once, in order; and who is late, or says
    something twice, makes no event be left out.
    """
    with connect(url) as connection:
        runs = [new_run(connection) for _ in range(4)]
        for run_id in runs:
            call(connection, "add_channel", run_id=run_id, url="https://hooks.example/")
            call(connection, "acquire_run", run_id=run_id, holder="w")
        receiver, barrier = Receiver(runs), threading.Barrier(dispatchers)

        def dispatch(mine: Connection, number: int) -> None:
            barrier.wait(PATIENCE_S)
            for run_id in runs * 3:
                if number == 0:
                    call(mine, "append_event", run_id=run_id, token=1, type="note")
                receiver.tell_all(mine)

        together(url, dispatchers, dispatch)
        receiver.tell_all(connection)
        found = receiver.missed(connection) or _late_reports(connection, receiver)
        for run_id in runs:
            call(connection, "complete_run", run_id=run_id, token=1)
        connection.execute("update tidebase.channels set next_at = clock_timestamp() where next_at is not null")
        with connection.transaction(), connect(url) as other:  # who has a channel keeps nobody from the others
            connection.execute("select from tidebase.channels where run_id = %s for update", [runs[0]])
            other.execute("set lock_timeout = '1s'")
            receiver.tell_all(other)
        receiver.tell_all(connection)
        ends = values(connection, "select distinct status from tidebase.channels")
        return found + receiver.missed(connection) + ([] if ends == ["delivered"] else [f"they are {ends}"])


def _late_reports(connection: Connection, receiver: Receiver) -> list[str]:
    """A dispatcher falls silent, another one takes its place, and then it is heard of again."""
    run_id = next(iter(receiver.told))
    for _ in range(4):
        call(connection, "append_event", run_id=run_id, token=1, type="note")
    late = call(connection, "claim_channel_deliveries", rung=[run_id])
    connection.execute("update tidebase.channels set next_at = clock_timestamp() where run_id = %s", [run_id])
    following = receiver.tell(connection, call(connection, "claim_channel_deliveries"))
    report(connection, late)  # what is in hand now was not sent by it
    told = receiver.tell(connection, following, go_on=False)
    report(connection, following, go_on=False)  # the answer was lost
    receiver.tell_all(connection)
    return receiver.missed(connection) + ([] if told is None else ["who does not go on is given more"])
