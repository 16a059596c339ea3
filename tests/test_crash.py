"""Crashes: workers killed at any moment, the server killed under load. What was acknowledged is there afterwards."""

from __future__ import annotations

import logging
import random
import signal
import threading
import uuid
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest

from tidebase import Run, Tidebase, TidebaseError

from .conftest import SERVERS, Server, first_on_every_version, long, on_newest
from .probes import workers as probe_workers
from .probes.support import audit, call, call_rows, connect, expire, grant, new_run, poll, take_over, value, values
from .support import clusters
from .support.amounts import KILLED_WORKERS
from .support.patience import PATIENCE_S
from .test_mechanisms import Edit


@on_newest("server")
@long
def test_killed_workers_cost_no_checkpoint_and_repeat_none(database: str) -> None:
    """SIGKILL, again and again in the middle of a run of ten steps. No step runs again under a later lease once it has
    completed, no output changes, every run gets to its end, and its log has no gap.
    """
    assert probe_workers.worker_kills(database, kills=KILLED_WORKERS.test) == []


class Victim:
    """A server of one's own, with the schema, that can be killed and started again."""

    def __init__(self, folder: Path, version: int, **settings: str) -> None:
        settings = {"max_connections": "100", **settings}
        self.cluster = clusters.cluster(folder / "data", SERVERS[version], settings)
        self.cluster.start()
        self.url = clusters.url(self.cluster)
        self._stopped: list[psutil.Process] = []

    def hold_back_the_log(self) -> None:
        """From now on no WAL reaches the disk unless a commit waits for it: whoever else might flush it is stopped."""
        flushing = "from pg_stat_activity where backend_type in ('walwriter', 'background writer', 'checkpointer')"
        with connect(self.url) as connection:
            poll("all of them are there", lambda: value(connection, f"select count(*) {flushing}") == 3)
            self._stopped = [psutil.Process(pid) for pid in values(connection, f"select pid {flushing}")]

            def stopped_at_rest() -> bool:
                for process in self._stopped:
                    process.suspend()
                if values(connection, f"select wait_event_type {flushing}") == ["Activity"] * 3:
                    return True
                for process in self._stopped:  # one was at work, and may hold a lock that commits need
                    process.resume()
                return False

            poll("whoever flushes the log is stopped while it does nothing", stopped_at_rest)

    def kill(self) -> None:
        """SIGKILL to the postmaster. Its children notice by themselves, unless they are stopped."""
        postmaster = psutil.Process(self.cluster.postmaster_pid())
        postmaster.kill()
        for process in self._stopped:
            process.kill()
        self._stopped = []
        # pg_ctl takes a process that is not quite dead for a server that runs.
        poll("the postmaster is gone", lambda: not postmaster.is_running())

    def restart(self) -> None:
        """Sessions of the dead server may linger, and keep a new one from starting on their shared memory."""

        def started() -> bool:
            try:
                self.cluster.start()
            except TidebaseError:
                return False
            return True

        poll("the server starts again", started)

    def crash(self) -> None:
        self.kill()
        self.restart()

    def stop(self) -> None:
        for process in self._stopped:
            process.resume()
        self.cluster.stop("immediate")


@pytest.fixture
def victim(server: Server, tmp_path: Path) -> Iterator[Victim]:
    """Flushes as Postgres does by default."""
    victim = Victim(tmp_path, server.version)
    yield victim
    victim.stop()


@pytest.fixture
def held_back(server: Server, tmp_path: Path) -> Iterator[Victim]:
    """Set as Postgres is by default, but flushing nothing by itself: what no commit waits for is lost in a crash."""
    victim = Victim(tmp_path, server.version, autovacuum="off")
    victim.hold_back_the_log()
    yield victim
    victim.stop()


@pytest.fixture
def careless(server: Server, tmp_path: Path) -> Iterator[Victim]:
    """The same, and set to commit asynchronously."""
    victim = Victim(tmp_path, server.version, autovacuum="off", synchronous_commit="off")
    with connect(victim.url) as connection:
        connection.execute("set synchronous_commit = on")
        connection.execute("create table flushed ()")
    victim.hold_back_the_log()
    yield victim
    victim.stop()


class Load:
    """Clients that work without a pause and note what was acknowledged to them, and only then."""

    def __init__(self, url: str, contract: dict[str, Any]) -> None:
        self.url = url
        self.contract = contract
        self.stopping = threading.Event()
        self.lock = threading.Lock()
        self.steps: dict[tuple[str, str], Any] = {}
        self.events: dict[tuple[str, int], Any] = {}
        self.results: dict[str, Any] = {}
        self.tokens: dict[str, list[int]] = defaultdict(list)
        self.found: list[str] = []
        self.acknowledged = 0

    def note(self, kind: dict[Any, Any], key: Any, value: Any) -> None:
        with self.lock:
            if key in kind:
                self.found.append(f"{key} was acknowledged twice")
            kind[key] = value
            self.acknowledged += 1

    def note_token(self, run_id: str, token: int, before: int) -> None:
        with self.lock:
            if token <= before or token in self.tokens[run_id]:
                self.found.append(f"{run_id}: token {token} was granted after {before} was acknowledged")
            self.tokens[run_id].append(token)

    def work(self, number: int) -> None:
        """One run after the other through the wrapper, which has to reconnect by itself."""

        def workflow(run: Run, input: Any) -> list[Any]:
            self.note_token(run.run_id, run.token, 0)
            outputs = []
            for nth in range(20):
                name, made = f"step {nth}", str(uuid.uuid4())
                contract = {**self.contract, "idempotency_key": name} if self.contract else {}
                output = run.step(name, lambda made=made: made, input=nth, **contract)
                self.note(self.steps, (run.run_id, name), output)
                if output != made:
                    self.found.append(f"{run.run_id}: {name} returned {output} instead of what it made, {made}")
                seq = run.emit("probe.note", [number, nth])
                self.note(self.events, (run.run_id, seq), [number, nth])
                outputs.append(output)
            return outputs

        with Tidebase(self.url, reconnect_s=PATIENCE_S) as tide:
            nth = 0
            while not self.stopping.is_set():
                run_id = f"client {number}, run {nth}"
                nth += 1
                try:
                    result = tide.run("load", workflow, run_id=run_id)
                except TidebaseError as error:
                    self.found.append(f"{run_id} did not get to its end: {type(error).__name__}: {error}")
                    return
                self.note(self.results, run_id, result)

    def take_over(self, run_id: str) -> None:
        """Grants of one run, one after the other; connects again by hand when the server is gone."""
        while not self.stopping.is_set():
            try:
                with connect(self.url) as connection:
                    while not self.stopping.is_set():
                        before = max(self.tokens[run_id], default=0)
                        lease = call(connection, "acquire_run", run_id=run_id, holder="h", ttl="1 millisecond")
                        if lease["outcome"] == "granted":
                            self.note_token(run_id, lease["token"], before)
            except psycopg.OperationalError:
                continue

    def missing(self, connection: psycopg.Connection[Any]) -> list[str]:
        """What was acknowledged until now and is not there, or not as it was."""
        with self.lock:
            steps, events, results = dict(self.steps), dict(self.events), dict(self.results)
            tokens = {run_id: max(issued) for run_id, issued in self.tokens.items() if issued}
        found = list(self.found)
        rows = connection.execute(
            "select run_id, name, output from tidebase.steps where status = 'completed'"
        ).fetchall()
        stored = {(run_id, name): output for run_id, name, output in rows}
        found += [f"{key}: {stored.get(key)}, not {made}" for key, made in steps.items() if stored.get(key) != made]
        rows = connection.execute("select run_id, seq, payload from tidebase.events").fetchall()
        log = {(run_id, seq): payload for run_id, seq, payload in rows}
        found += [f"{key}: {log.get(key)}, not {payload}" for key, payload in events.items() if log.get(key) != payload]
        rows = connection.execute("select run_id, result from tidebase.runs").fetchall()
        ended = dict(rows)
        found += [f"{key}: {ended.get(key)}, not {made}" for key, made in results.items() if ended.get(key) != made]
        rows = connection.execute("select run_id, lease_token from tidebase.run_heads").fetchall()
        heads = dict(rows)
        found += [f"{key}: at token {heads.get(key)}" for key, token in tokens.items() if heads.get(key, 0) < token]
        return found


@pytest.mark.parametrize(
    "contract",
    first_on_every_version([{"side_effects": ["probe.write"]}, {}]),
    ids=["writing steps", "harmless steps"],
)
@long
def test_killed_server_loses_nothing_that_was_acknowledged(
    victim: Victim, contract: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    """SIGKILL of the postmaster under the load of eight runs and two fights for a lease, three times. No acknowledged
    checkpoint, event, result or token is gone or different, no token comes back, the log has no gap, and the clients
    find the way back by themselves.
    """
    caplog.set_level(logging.ERROR, "psycopg.pool")  # it warns of every try to connect while the server is down
    dice = random.Random(11)
    load = Load(victim.url, contract)
    with connect(victim.url) as connection:
        contested = [new_run(connection) for _ in range(2)]
    with ThreadPoolExecutor(10) as pool:
        clients = [pool.submit(load.work, number) for number in range(8)]
        clients += [pool.submit(load.take_over, run_id) for run_id in contested]
        try:
            for _ in range(3):
                goal = load.acknowledged + dice.randint(200, 600)
                poll("the clients get on", lambda goal=goal: load.acknowledged >= goal or load.found)
                victim.crash()
                with connect(victim.url) as connection:
                    assert load.missing(connection) == []
        finally:
            load.stopping.set()
        for client in clients:
            client.result()
    with connect(victim.url) as connection:
        assert load.missing(connection) == []
        assert audit(connection) == []
        assert len(load.results) >= 8
        for run_id in contested:
            assert take_over(connection, run_id) > max(load.tokens[run_id])


def test_commit_that_need_not_wait_for_the_log_is_lost_here(careless: Victim) -> None:
    """The stage of the tests that follow: on this server a crash does take back what no commit waited for."""
    with connect(careless.url) as connection:
        connection.execute("create table lost ()")
    careless.crash()
    with connect(careless.url) as connection:
        assert value(connection, "select to_regclass('flushed') is not null")
        assert value(connection, "select to_regclass('lost') is null")


@pytest.mark.parametrize(
    "last",
    first_on_every_version(["complete_step", "create_run", "acquire_run", "begin_step", "append_event", "end"]),
)
def test_crash_right_after_the_answer_keeps_what_was_answered(careless: Victim, last: str) -> None:
    """Where the server is set to commit asynchronously, the functions whose effect must survive wait all the same."""
    with connect(careless.url) as connection:
        run_id = new_run(connection, run_id="r")
        token, seq, status = 0, 1, "pending"
        if last != "create_run":
            token, seq, status = grant(connection, run_id), 2, "running"
        if last in ("begin_step", "complete_step"):
            call(connection, "begin_step", run_id=run_id, token=token, name="s", side_effects=["email.send"])
            seq = 3
        if last == "complete_step":
            seq = call(connection, "complete_step", run_id=run_id, token=token, name="s", output='"kept"')
        elif last == "append_event":
            seq = call(connection, "append_event", run_id=run_id, token=token, type="probe.note")
        elif last == "end":
            seq = call(connection, "complete_run", run_id=run_id, token=token)
            status = "completed"
    careless.crash()
    with connect(careless.url) as connection:
        head = connection.execute("select lease_token, last_seq, status from tidebase.run_heads").fetchall()
        assert head == [(token, seq, status)]
        steps = connection.execute("select status, output from tidebase.steps").fetchall()
        assert steps == {"begin_step": [("running", None)], "complete_step": [("completed", "kept")]}.get(last, [])
        assert audit(connection) == []
        if status != "completed":
            assert take_over(connection, run_id) > token


def test_without_the_synchronous_commit_a_crash_takes_acknowledged_work_back(careless: Victim) -> None:
    """The mechanism of the test above taken out: then this stage does show the loss."""
    with connect(careless.url) as connection:
        lazily = Edit("commit_durably", "set_config('synchronous_commit', 'on', true)", "null")
        connection.execute("set synchronous_commit = on")
        lazily.apply(connection)
        run_id = new_run(connection)
        connection.execute("reset synchronous_commit")
        token = grant(connection, run_id)
        call(connection, "begin_step", run_id=run_id, token=token, name="s")
        call(connection, "complete_step", run_id=run_id, token=token, name="s")
    careless.crash()
    with connect(careless.url) as connection:
        head = connection.execute("select lease_token, last_seq, steps_completed from tidebase.run_heads").fetchall()
        assert head == [(0, 1, 0)]


def test_crash_that_takes_a_heartbeat_back_costs_nobody_the_lease(held_back: Victim) -> None:
    """A renewal may be lost: the lease then ends sooner, but the holder is still the holder."""
    with connect(held_back.url) as connection:
        run_id = new_run(connection)
        token = grant(connection, run_id, ttl="1 hour")
        call(connection, "renew_lease", run_id=run_id, token=token, ttl="1 day")
    held_back.crash()
    with connect(held_back.url) as connection:
        assert value(connection, "select lease_expires_at < clock_timestamp() + '2 hours' from tidebase.run_heads")
        call(connection, "begin_step", run_id=run_id, token=token, name="s")
        call(connection, "complete_step", run_id=run_id, token=token, name="s")


@pytest.mark.parametrize("before", ["never begun", "failed", "left by another lease"])
def test_step_whose_start_was_lost_with_the_server_still_completes(held_back: Victim, before: str) -> None:
    """The start of a harmless step is committed asynchronously. When a crash of the server takes it back while the step
    is at work, its result must be stored all the same: the lease is still held, and the work is paid for.
    """
    executed = []

    def work() -> str:
        executed.append(1)
        if before == "failed" and len(executed) == 1:
            raise ValueError
        held_back.crash()
        return "paid for"

    if before == "left by another lease":
        with connect(held_back.url) as connection:
            token = grant(connection, new_run(connection, run_id="r"))
            call(connection, "begin_step", run_id="r", token=token, name="work")
            expire(connection, "r")
    with Tidebase(held_back.url, reconnect_s=PATIENCE_S) as tide:
        result = tide.run("probe", lambda run, input: run.step("work", work, retries=1, retry_delay_s=0.01), run_id="r")
    assert result == "paid for"
    assert executed == ([1, 1] if before == "failed" else [1])
    with connect(held_back.url) as connection:
        assert audit(connection) == []


def test_reader_is_given_no_number_twice_although_a_crash_took_an_event_back(held_back: Victim) -> None:
    """I4: a reader that has seen n never sees a new event at or below n. An event that is committed asynchronously is
    visible before it is safe; a reader that is given it must still be right after a crash.
    """
    with connect(held_back.url) as connection:
        run_id = new_run(connection)
        token = grant(connection, run_id)
        call(connection, "begin_step", run_id=run_id, token=token, name="harmless")
        seen = {row["seq"]: row["payload"] for row in call_rows(connection, "read_events", run_id=run_id)}
    held_back.crash()
    with connect(held_back.url) as connection:
        for _ in range(3):
            call(connection, "append_event", run_id=run_id, token=token, type="probe.note")
        now = {row["seq"]: row["payload"] for row in call_rows(connection, "read_events", run_id=run_id)}
        assert {seq: now.get(seq) for seq in seen} == seen


def test_worker_that_is_told_to_stop_gives_its_run_up(database: str, db: psycopg.Connection[Any]) -> None:
    """SIGTERM, as orchestrators send it before they kill: the next worker does not have to wait for the lease."""
    run_id = new_run(db)
    with probe_workers.process(probe_workers.run_a_workflow, database, run_id, False) as (worker, pipe):
        assert pipe.recv() == "working"
        psutil.Process(worker.pid).send_signal(signal.SIGTERM)
        worker.join()
        assert worker.exitcode == 128 + signal.SIGTERM
    assert value(db, "select status from tidebase.run_heads where run_id = %s", run_id) == "pending"
    assert grant(db, run_id) == 2
