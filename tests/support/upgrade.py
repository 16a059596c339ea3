"""Workers and readers as an older wrapper sends their calls, at work while the schema is upgraded under them."""

from __future__ import annotations

import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg

TYPES = {
    **dict.fromkeys(
        ("run_id", "workflow", "holder", "request_id", "name", "type", "prompt", "decision", "actor"), "text"
    ),
    **dict.fromkeys(("input", "output", "payload", "result", "error"), "jsonb"),
    "ttl": "interval",
    "token": "bigint",
    "side_effects": "text[]",
}


def call(columns: str, function: str, **parameters: str) -> str:
    """A call as the wrapper of that time spelt it: named notation, casts, the columns that it knew; it is prepared from
    the third time on. A parameter is given by the name of its value.
    """
    named = ", ".join(f"{name} => %({given})s::{TYPES[name]}" for name, given in parameters.items())
    return f"select {columns} from tidebase.{function}({named}) as answer"


LEASED = {"run_id": "run", "token": "token"}
WORK = [
    call("answer", "create_run", workflow="workflow", input="json", run_id="run"),
    call(
        "outcome, token, attempt, workflow, input::text, result::text, holder, expires_at, checkpoints",
        "acquire_run",
        run_id="run",
        holder="holder",
        ttl="ttl",
        request_id="request",
    ),
    call(
        *("outcome, attempt, output::text", "begin_step"), **LEASED, name="step", input="json", side_effects="effects"
    ),
    call("answer", "renew_lease", **LEASED, ttl="ttl"),
    call("answer", "complete_step", **LEASED, name="step", output="json"),
    call("answer", "append_event", **LEASED, type="type", payload="json"),
    call("watched_until", "watch_run", run_id="run", ttl="ttl"),
    call("status", "open_gate", **LEASED, name="step", prompt="type"),
    call("accepted", "decide_gate", run_id="run", name="step", decision="decision", actor="holder"),
    call("outcome, attempt, output::text", "begin_step", **LEASED, name="last"),
    call("decision, retry_after", "fail_step", **LEASED, name="last", error="json"),
    call("answer", "complete_run", **LEASED, result="json"),
]

READ = """
select seq, type, payload::text from tidebase.read_events(run_id => %(run)s::text, after => 0)
select run_id, status from tidebase.get_run(run_id => %(run)s::text)
select run_id, status, workflow, last_seq from tidebase.run_overview order by created_at desc limit 5
select name, status, attempt from tidebase.step_timeline where run_id = %(run)s
select run_id, name, prompt from tidebase.gate_inbox limit 5
select run_id, reason from tidebase.stalled_runs limit 5
select runs, leases from tidebase.reconcile(max => 10)
""".strip().splitlines()


class Load:
    """Threads that make calls one after the other until they are told to stop.

    Attributes:
        done: the runs that were completed. failures: what a call was told that it should not be. calls: how many.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.done: list[str] = []
        self.failures: list[str] = []
        self.calls = 0
        self.stopped = threading.Event()

    @contextmanager
    def at_work(self, workers: int = 4, readers: int = 2) -> Iterator[Load]:
        threads = [threading.Thread(target=self._guarded, args=(self._work, n)) for n in range(workers)]
        threads += [threading.Thread(target=self._guarded, args=(self._read, n)) for n in range(readers)]
        for thread in threads:
            thread.start()
        try:
            yield self
        finally:
            self.stopped.set()
            for thread in threads:
                thread.join()

    def until(self, completed: int) -> None:
        """Waits until so many more runs are completed, or something has failed."""
        wanted = len(self.done) + completed
        while len(self.done) < wanted and not self.failures:
            self.stopped.wait(0.01)

    def _guarded(self, work: Callable[[psycopg.Connection[Any], int], None], number: int) -> None:
        try:
            with psycopg.connect(self.url, autocommit=True, prepare_threshold=2) as connection:
                work(connection, number)
        except Exception:
            self.failures.append(traceback.format_exc())

    def _call(self, connection: psycopg.Connection[Any], query: str, given: dict[str, Any]) -> list[Any]:
        """A call of the wrapper's: made again for what is passing, as it does."""
        while True:
            try:
                self.calls += 1
                return connection.execute(query, given).fetchall()
            except psycopg.OperationalError as error:
                if (error.sqlstate or "")[:2] != "40":
                    raise

    def _work(self, connection: psycopg.Connection[Any], worker: int) -> None:
        number = 0
        while not self.stopped.is_set():
            number += 1
            given: dict[str, Any] = {
                "workflow": "w", "json": '{"a": 1}', "run": f"load-{worker}-{number}", "holder": f"h{worker}",
                "ttl": "1 minute", "request": f"{worker}-{number}", "step": "s", "last": "t", "type": "agent.note",
                "effects": ["read"], "decision": "approved",
            }  # fmt: skip
            for query in WORK:
                rows = self._call(connection, query, given)
                if "acquire_run" in query:
                    assert rows[0][0] == "granted", rows
                    given["token"] = rows[0][1]
            self.done.append(given["run"])

    def _read(self, connection: psycopg.Connection[Any], reader: int) -> None:
        while not self.stopped.is_set():
            given = {"run": self.done[-1] if self.done else "live"}
            try:
                with connection.transaction():  # several in a snapshot, in an order of its own
                    for query in READ if reader % 2 else READ[::-1]:
                        if "reconcile" not in query:
                            connection.execute(query, given)
            except psycopg.errors.SerializationFailure:  # the transaction is made again
                continue
            self._call(connection, READ[-1], given)
