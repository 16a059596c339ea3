"""The clients of a storm: processes that call the functions as any client may, and repeat what was not answered.

``python -m tests.torture.client ROLE URL JOURNAL SEED HURRY RUN...``; SIGTERM ends it after the call it is at. HURRY is
1 where some of its sessions set limits of time, at which their calls are broken off.
"""

from __future__ import annotations

import contextlib
import random
import select
import signal
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

from ..support.patience import PATIENCE_S
from .journal import Journal

#: SQLSTATEs after which the same call is made again: it did not happen, and nothing is wrong with it.
TRANSIENT = {"57014", "55P03", "53100", "53200", "53300", "57P03", "25006", "58030", "40001"}
#: The session is gone: whether the call took effect is not known.
BROKEN = {None, "57P01", "57P02", "08006", "08003", "08001", "08P01"}


def _sent(value: Any) -> Any:
    is_json = isinstance(value, dict) or (isinstance(value, list) and bool(value) and isinstance(value[0], dict))
    return Jsonb(value) if is_json else value


def pause(seconds: float) -> None:
    """Waits by no clock at all: time.sleep() is absolute, and fails where the clocks are shifted by libfaketime."""
    select.select([], [], [], seconds)


class Finished(Exception):
    """The storm is over."""


class Client:
    """One session at a time, and a journal."""

    def __init__(self, url: str, journal: Path, seed: int, hurry: bool) -> None:
        self.random = random.Random(seed)
        self.journal = Journal(journal)
        self.name = f"{journal.stem}-{uuid.uuid4().hex[:6]}"
        self.finished = False
        self._url = url
        self._limits = (0, 0, 0, 3, 20, 200) if hurry else (0,)
        self._connection: psycopg.Connection[Any] | None = None
        signal.signal(signal.SIGTERM, self._finish)

    def _finish(self, *_: Any) -> None:
        self.finished = True

    def id(self) -> str:
        return uuid.UUID(int=self.random.getrandbits(128)).hex

    def call(self, function: str, **arguments: Any) -> tuple[str, Any]:
        """``("ok", row)`` or ``("error", SQLSTATE)``. Made again, with the same arguments, for as long as nobody knows
        what became of it, and a few times when it ran into a limit.
        """
        op, again = None, 0
        names = ", ".join(f"{name} => %({name})s" for name in arguments)
        sent = {name: _sent(value) for name, value in arguments.items()}
        while True:
            connection = self._connect()
            op = self.journal.invoke(function, arguments, op)
            try:
                with connection.cursor(row_factory=dict_row) as cursor:
                    rows = cursor.execute(f"select * from tidebase.{function}({names})", sent).fetchall()  # type: ignore[arg-type]
            except psycopg.Error as error:
                if connection.closed or connection.broken or error.sqlstate in BROKEN:
                    self.journal.answer(op, "lost", error.sqlstate)
                    self._drop()
                    continue
                self.journal.answer(op, "error", error.sqlstate)
                again += 1
                if error.sqlstate not in TRANSIENT or (again > 3 and self.finished) or again > 20:
                    return "error", error.sqlstate
                pause(0.01)
                continue
            self.journal.answer(op, "ok", rows)
            return "ok", rows

    def query(self, statement: str) -> list[dict[str, Any]]:
        """A look that nobody has to account for; nothing when it cannot be had just now."""
        try:
            with self._connect().cursor(row_factory=dict_row) as cursor:
                return cursor.execute(statement).fetchall()  # type: ignore[arg-type]
        except psycopg.Error:
            self._drop()
            return []

    def _connect(self) -> psycopg.Connection[Any]:
        patience = time.monotonic() + PATIENCE_S
        while self._connection is None:
            limit = self.random.choice(("statement_timeout", "lock_timeout"))
            options = f"-c {limit}={self.random.choice(self._limits)} -c client_connection_check_interval=100"
            with contextlib.suppress(psycopg.Error):
                self._connection = psycopg.connect(self._url, autocommit=True, connect_timeout=5, options=options)
                self._connection.prepare_threshold = self.random.choice((None, 1, 5))
                break
            if time.monotonic() > patience:
                raise Finished("no server")
            pause(0.05)
        return self._connection

    def _drop(self) -> None:
        if self._connection is not None:
            with contextlib.suppress(psycopg.Error):
                self._connection.close()
        self._connection = None


def work(client: Client, runs: list[str]) -> None:
    """A worker: takes a run, does some of what agents do, and leaves it in one way or another."""
    choose = client.random
    while not client.finished:
        run_id = choose.choice(runs)
        kind, rows = client.call(
            "acquire_run",
            run_id=run_id,
            holder=client.name,
            ttl=choose.choice(("0.1 seconds", "0.3 seconds", "1 second")),
            request_id=client.id(),
        )
        if kind != "ok" or rows[0]["outcome"] != "granted":
            pause(choose.uniform(0, 0.03))
            continue
        held = {"run_id": run_id, "token": rows[0]["token"]}
        for _ in range(choose.randint(1, 20)):
            if client.finished or not choose.choices(*zip(*DEEDS, strict=True))[0](client, held):
                break
            if choose.random() < 0.05:
                pause(choose.uniform(0, 0.4))  # longer than some leases
        else:
            leave(client, held)


def leave(client: Client, held: dict[str, Any]) -> None:
    fate = client.random.random()
    if fate < 0.4:
        client.call("release_run", **held)
    elif fate < 0.6:
        client.call("fail_run", **held, error={"type": "Torture"})
    elif fate < 0.63:
        client.call("complete_run", **held, result={"id": client.id()})


def plain_step(client: Client, held: dict[str, Any]) -> bool:
    name = f"plain{client.random.randrange(12)}"
    return _step(client, held, name, {})


def unsafe_step(client: Client, held: dict[str, Any]) -> bool:
    name = f"unsafe{client.random.randrange(6)}"
    return _step(client, held, name, {"side_effects": ["send"]})


def _step(client: Client, held: dict[str, Any], name: str, contract: dict[str, Any]) -> bool:
    kind, rows = client.call("begin_step", **held, name=name, input={"of": name}, **contract, request_id=client.id())
    if kind != "ok" or rows[0]["outcome"] != "execute":
        return kind == "ok" and rows[0]["outcome"] == "replay"
    fate = client.random.random()
    if fate < 0.1:
        return False  # as good as dead: nobody knows whether it took effect
    if fate < 0.2:
        return client.call("fail_step", **held, name=name, error={"type": "Torture"})[0] == "ok"
    return client.call("complete_step", **held, name=name, output={"id": client.id()})[0] == "ok"


def recorded_step(client: Client, held: dict[str, Any]) -> bool:
    name = f"recorded{client.random.randrange(12)}"
    output = {"id": client.id()}
    log_start = client.random.random() < 0.5
    return client.call("record_step", **held, name=name, output=output, log_start=log_start)[0] == "ok"


def event(client: Client, held: dict[str, Any]) -> bool:
    unique = client.id()
    return client.call("append_event", **held, type="note", payload={"id": unique}, request_id=unique)[0] == "ok"


def state(client: Client, held: dict[str, Any]) -> bool:
    unique = client.id()
    return client.call("set_state", **held, value={"id": unique}, request_id=unique)[0] == "ok"


def usage(client: Client, held: dict[str, Any]) -> bool:
    unique = client.id()
    return client.call("record_usage", **held, input_tokens=3, response_id=unique, request_id=unique)[0] == "ok"


def gate(client: Client, held: dict[str, Any]) -> bool:
    name = f"gate{client.random.randrange(5)}"
    timeout = client.random.choice((None, "0.3 seconds"))
    kind, rows = client.call("open_gate", **held, name=name, prompt=name, timeout=timeout)
    if kind == "ok" and rows[0]["status"] == "pending" and client.random.random() < 0.5:
        client.call("suspend_run", **held, name=name)
        return False
    return kind == "ok"


def child(client: Client, held: dict[str, Any]) -> bool:
    name = f"child{client.random.randrange(4)}"
    return client.call("create_child", **held, name=name, workflow="torture", input={"of": name})[0] == "ok"


def heartbeat(client: Client, held: dict[str, Any]) -> bool:
    return client.call("renew_lease", **held, ttl="1 second")[0] == "ok"


Deed = Callable[[Client, dict[str, Any]], bool]
DEEDS: list[tuple[Deed, int]] = [
    (plain_step, 6),
    (unsafe_step, 2),
    (recorded_step, 4),
    (event, 6),
    (state, 3),
    (usage, 2),
    (gate, 2),
    (child, 1),
    (heartbeat, 2),
]


QUEUE = "storm"


def claim(client: Client, runs: list[str]) -> None:
    """An application and a worker in one: enqueues, takes what there is, and leaves it in one way or another."""
    choose = client.random
    while not client.finished:
        if choose.random() < 0.4:
            dedupe = {"dedupe_key": f"key{choose.randrange(3)}"} if choose.random() < 0.3 else {}
            if dedupe and choose.random() < 0.3:
                dedupe |= {"on_duplicate": "replace"}
            more = {"key": f"tenant{choose.randrange(3)}", "max_attempts": choose.choice((2, 100)), "retry_delay": "0"}
            delay = choose.choice((None, None, "0.2 seconds"))
            given = {"run_id": client.id(), "queue": QUEUE, "input": {"of": QUEUE}, "delay": delay}
            client.call("enqueue_run", workflow="torture", **given, **more, **dedupe)
        ttl = choose.choice(("0.1 seconds", "0.3 seconds", "1 second"))
        given = {"queues": [QUEUE], "holder": client.name, "max": choose.choice((1, 3)), "ttl": ttl}
        kind, rows = client.call("claim_runs", **given, request_id=client.id())
        for row in rows if kind == "ok" else ():
            held = {"run_id": row["run_id"], "token": row["token"]}
            for _ in range(choose.randint(0, 3)):
                if not choose.choices(*zip(*DEEDS, strict=True))[0](client, held):
                    break
            else:
                if choose.random() < 0.7:
                    client.call("complete_run", **held, result={"id": client.id()})
                else:
                    leave(client, held)
        if not rows:
            pause(choose.uniform(0, 0.03))


PUSHED = "storm pushed"


def push(client: Client, runs: list[str]) -> None:
    """An application, the dispatcher that tells its endpoint, and the endpoint: each may die, and is slow at times."""
    choose = client.random
    client.call("put_queue", queue=PUSHED, endpoint="https://endpoint.test", concurrency=choose.choice((None, 2)))
    while not client.finished:
        if choose.random() < 0.3:
            client.call("enqueue_run", workflow="torture", run_id=client.id(), queue=PUSHED, retry_delay="0")
        if choose.random() < 0.2:
            batch = [{"workflow": "torture", "queue": PUSHED, "input": n} for n in range(choose.randint(1, 3))]
            client.call("enqueue_runs", runs=batch)
        given = {"max": choose.choice((1, 3)), "ttl": "1 second"}
        kind, rows = client.call("claim_invocations", **given, failing=choose.random() < 0.2)
        for told in rows if kind == "ok" else ():
            if choose.random() < 0.7:
                begin(client, told["run_id"])
            report = {"run_id": told["run_id"], "invocation": told["invocation"]}
            client.call("finish_invocation", **report, delivered=choose.random() < 0.8)
        if not rows:
            pause(choose.uniform(0, 0.03))


def begin(client: Client, run_id: str) -> None:
    """What an endpoint does that is told of a run."""
    given = {"run_id": run_id, "holder": client.name, "ttl": "1 second", "request_id": client.id()}
    kind, rows = client.call("acquire_run", **given)
    if kind == "ok" and rows[0]["outcome"] == "granted":
        held = {"run_id": run_id, "token": rows[0]["token"]}
        if plain_step(client, held) and client.random.random() < 0.7:
            client.call("complete_run", **held, result={"id": client.id()})
        else:
            leave(client, held)


SOME = "order by random() limit 2"
IN_DOUBT = "where status in ('review', 'failed') and side_effects is not null"


def decide(client: Client, runs: list[str]) -> None:
    """People and janitors: gates, reviews, reconciliation, now and then a cancellation."""
    choose = client.random
    while not client.finished:
        client.call("reconcile", max=choose.choice((1, 10, 100)))
        # Also what was decided a moment ago: two people look at the same list.
        for row in client.query(f"select run_id, name from tidebase.gate_overview {SOME}"):
            decision = choose.choice(("approved", "rejected"))
            client.call("decide_gate", **row, decision=decision, actor=client.name, request_id=client.id())
        for row in client.query(f"select run_id, name as step from tidebase.step_timeline {IN_DOUBT} {SOME}"):
            decision = choose.choice(("retry", "retry", "accept", "fail"))
            more = {"output": {"id": client.id()}} if decision == "accept" else {}
            client.call("resolve_review", **row, decision=decision, request_id=client.id(), **more)
        if choose.random() < 0.005:
            client.call("cancel_run", run_id=choose.choice(runs), reason="torture", actor=client.name)
        if choose.random() < 0.1:
            client.call("retry_runs", queue=QUEUE, actor=client.name)
            client.call(choose.choice(("pause_queue", "resume_queue")), queue=QUEUE)
            client.call("resume_queue", queue=QUEUE)
            client.call("put_queue", queue=QUEUE, concurrency=choose.choice((None, None, 2)))
        pause(choose.uniform(0.02, 0.15))


def follow(client: Client, runs: list[str]) -> None:
    """A reader: follows the runs from where it is, and from the beginning now and then."""
    seen = dict.fromkeys(runs, 0)
    while not client.finished:
        run_id = client.random.choice(runs)
        after = 0 if client.random.random() < 0.02 else seen[run_id]
        kind, rows = client.call("read_events", run_id=run_id, after=after, max=500)
        if kind == "ok" and rows:
            seen[run_id] = rows[-1]["seq"]
        pause(client.random.uniform(0, 0.05))


ROLES = {"worker": work, "claimer": claim, "endpoint": push, "decider": decide, "reader": follow}


def main() -> None:
    role, url, journal, seed, hurry, *runs = sys.argv[1:]
    client = Client(url, Path(journal), int(seed), hurry == "1")
    with contextlib.suppress(Finished):
        ROLES[role](client, runs)


if __name__ == "__main__":
    main()
