"""Workers that are processes of their own, to be stopped and killed; and the probe that kills them.

They come out of a fork server that has everything imported already, so a new one is at work within milliseconds.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import random
import signal
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from multiprocessing.connection import Connection as Pipe
from pathlib import Path
from typing import Any

import psutil

from tidebase import Run, Tidebase, TidebaseError

from ..support.patience import PATIENCE_S
from .kernel import mutations
from .support import attempt, audit, call, connect, expire, grant, new_run, poll, value, values

context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload([__name__])

STEPS = 10


@contextmanager
def process(target: Any, *arguments: Any) -> Iterator[tuple[Any, Pipe]]:
    """A worker process, called with our pipe to it as its last argument; gone when the block ends."""
    ours, theirs = context.Pipe()
    worker = context.Process(target=target, args=(*arguments, theirs), daemon=True)
    worker.start()
    theirs.close()
    try:
        yield worker, ours
    finally:
        worker.kill()  # also ends one that is stopped
        worker.join()
        worker.close()
        ours.close()


def stop(worker: Any) -> None:
    """SIGSTOP: the process is as good as dead, and does not know it."""
    os.kill(worker.pid, signal.SIGSTOP)
    poll("the process is stopped", lambda: psutil.Process(worker.pid).status() == psutil.STATUS_STOPPED)


def resume(worker: Any) -> None:
    os.kill(worker.pid, signal.SIGCONT)


def named(url: str, name: str) -> str:
    """The URL with a name by which the server knows the connections."""
    return f"{url}&application_name={name}"


def await_end_of_session(connection: Any, name: str) -> None:
    """Waits until the server has noticed that a client is dead, and the last call it made has ended either way."""
    query = "select count(*) from pg_stat_activity where application_name = %s"
    poll("the server ends the dead client's sessions", lambda: value(connection, query, name) == 0)


def write_until_refused(url: str, run_id: str, pipe: Pipe) -> None:
    """Holds the lease and appends without a pause; once refused, tries everything else with the same token."""
    with connect(url) as connection:
        token = grant(connection, run_id, "zombie")
        call(connection, "begin_step", run_id=run_id, token=token, name="done")
        call(connection, "complete_step", run_id=run_id, token=token, name="done")
        call(connection, "begin_step", run_id=run_id, token=token, name="work")
        pipe.send((connection.info.backend_pid, token))
        code, appended = "ok", 0
        while code == "ok":
            code, _ = attempt(connection, "append_event", run_id=run_id, token=token, type="probe.note")
            appended += 1
            if appended <= 3:
                pipe.send(code)
        answers = [("append_event", code)]
        for function, arguments in mutations(connection, run_id, token):
            answers.append((function, attempt(connection, function, **arguments)[0]))
        pipe.send(answers)


def run_a_workflow(url: str, run_id: str, stubborn: bool, pipe: Pipe) -> None:
    """Runs a workflow whose step waits for a word from outside, and says how it ended.

    Args:
        stubborn: the workflow swallows whatever the step raises and goes on. Otherwise it does what agents do:
            ``except Exception``.
    """
    swallowed: list[str] = []

    def work() -> str:
        pipe.send("working")
        pipe.recv()
        return "the zombie's"

    def workflow(run: Run, input: Any) -> Any:
        try:
            return run.step("work", work)
        except BaseException as error:
            if not stubborn and not isinstance(error, Exception):
                raise
            swallowed.append(type(error).__name__)
        return run.step("more", lambda: "the zombie's")

    try:
        with Tidebase(url) as tide:
            tide.run("probe", workflow, run_id=run_id)
        pipe.send(("returned", swallowed))
    except TidebaseError as error:
        pipe.send((type(error).__name__, swallowed))


class Ledger:
    """A file of which every line was written by one ``write(2)`` in append mode: what happened outside the database.

    SIGKILL may cut a write short at the end of a page: that line has no end, and what it tells of was not done either.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def write(self, **entry: Any) -> None:
        os.write(self._file, b"\n" + json.dumps(entry).encode())

    def read(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.path.read_text().splitlines() if line.endswith("}")]

    def close(self) -> None:
        os.close(self._file)


def ten_steps(url: str, run_id: str, path: Path, pipe: Pipe) -> None:
    """A run of ten steps of about a millisecond. Each rings before it works, and notes in the ledger what it made; the
    workflow notes what it was given.
    """
    ledger = Ledger(path)

    def workflow(run: Run, input: Any) -> list[Any]:
        given = []
        for number in range(STEPS):
            name = f"step {number}"

            def work(number: int = number, name: str = name) -> dict[str, Any]:
                pipe.send_bytes(b".")
                digest = hashlib.pbkdf2_hmac("sha256", name.encode(), b"salt", 1500).hex()
                made = {"number": number, "id": str(uuid.uuid4()), "digest": digest}
                ledger.write(kind="executed", run=run.run_id, step=name, token=run.token, value=made)
                return made

            result = run.step(name, work, input=number)
            ledger.write(kind="given", run=run.run_id, step=name, token=run.token, value=result)
            given.append(result)
        return given

    with Tidebase(url) as tide:
        tide.run("ten steps", workflow, run_id=run_id)


class _Killer:
    """Kills one worker after the other, each at a random moment, and checks every run that gets to its end."""

    def __init__(self, url: str, ledger: Ledger, seed: int) -> None:
        self._url = url
        self._ledger = ledger
        self._dice = random.Random(seed)
        self.kills = 0
        self.found: list[str] = []
        with connect(url) as connection:
            lapsed = "select run_id from tidebase.attempts where outcome = 'lapsed'"
            self.lapsed_before = len(values(connection, lapsed))

    def deliver(self, kills: int) -> None:
        """Goes on until this many live workers were killed in the middle of a run, and the last run has ended."""
        with connect(self._url) as connection:
            while self.kills < kills and not self.found:
                self._one_run(connection, kills)

    def _one_run(self, connection: Any, kills: int) -> None:
        run_id = new_run(connection, workflow="ten steps")
        known: dict[str, Any] = {}
        while not self.found:
            done = value(connection, "select steps_completed from tidebase.run_heads where run_id = %s", run_id)
            moment = self._dice.randint(1, max(STEPS - done, 1)) if self.kills < kills else None
            code = self._one_worker(connection, run_id, moment)
            self._compare(connection, run_id, known)
            status = value(connection, "select status from tidebase.run_heads where run_id = %s", run_id)
            if status == "completed":
                self._check(connection, run_id, known)
                return
            if code != -signal.SIGKILL:
                self.found.append(f"a worker ended by itself, with exit code {code}, and left {run_id} {status}")
            self.kills += 1
            expire(connection, run_id)

    def _one_worker(self, connection: Any, run_id: str, moment: int | None) -> int:
        """Starts a worker and kills it in the step that it enters as the ``moment``-th, or shortly after; with None it
        may live. Returns its exit code.
        """
        name = str(uuid.uuid4())
        with process(ten_steps, named(self._url, name), run_id, self._ledger.path) as (worker, pipe):
            try:
                for _ in range(STEPS if moment is None else moment):
                    pipe.recv_bytes()
                if moment is not None:
                    # Not to wait for anything: this is what makes the moment a random one within the step's cycle.
                    time.sleep(self._dice.uniform(0, 0.004))
                    worker.kill()
            except EOFError:
                pass  # it has finished: fewer steps were left than it seemed
            worker.join()
            code: int = worker.exitcode
        await_end_of_session(connection, name)
        return code

    def _compare(self, connection: Any, run_id: str, known: dict[str, Any]) -> None:
        """A checkpoint that was there after an earlier kill is there now, and the same."""
        now = {row["name"]: row["output"] for row in _checkpoints(connection, run_id)}
        for step, output in known.items():
            if now.get(step) != output:
                self.found.append(f"{run_id}: the checkpoint of {step} was {output} and is {now.get(step)}")
        known.update(now)

    def _check(self, connection: Any, run_id: str, known: dict[str, Any]) -> None:
        self.found += audit(connection, run_id)
        outputs = [known.get(f"step {number}") for number in range(STEPS)]

        def replayed(run: Run, input: Any) -> None:
            self.found.append(f"{run_id} was executed again after it had completed")

        with Tidebase(self._url) as tide:
            if tide.run("ten steps", replayed, run_id=run_id) != outputs:
                self.found.append(f"{run_id}: its result is not the list of its checkpoints")
        tokens = dict(
            connection.execute("select name, lease_token from tidebase.steps where run_id = %s", (run_id,)).fetchall()
        )
        entries = [entry for entry in self._ledger.read() if entry["run"] == run_id]
        for step, token in tokens.items():
            mine = [entry for entry in entries if entry["step"] == step]
            executed = [entry for entry in mine if entry["kind"] == "executed"]
            late = [entry for entry in executed if entry["token"] > token]
            if late:
                self.found.append(f"{run_id}: {step} completed under token {token}, and was executed again: {late}")
            if [entry["value"] for entry in executed if entry["token"] == token] != [known[step]]:
                self.found.append(f"{run_id}: the checkpoint of {step} is not what was made under token {token}")
            given = [entry for entry in mine if entry["kind"] == "given" and entry["value"] != known[step]]
            if given:
                self.found.append(f"{run_id}: {step} has {known[step]}, but a worker was given {given}")


def _checkpoints(connection: Any, run_id: str) -> list[dict[str, Any]]:
    query = "select name, output from tidebase.steps where run_id = %s and status = 'completed'"
    return [{"name": name, "output": output} for name, output in connection.execute(query, (run_id,)).fetchall()]


def worker_kills(url: str, kills: int = 4, seed: int = 3) -> list[str]:
    """SIGKILLs live workers in the middle of runs of ten steps, until so many were killed; every run is finished by a
    later worker.
    """
    with tempfile.TemporaryDirectory() as folder, closing(Ledger(Path(folder) / "ledger")) as ledger:
        killer = _Killer(url, ledger, seed)
        killer.deliver(kills)
    with connect(url) as connection:
        lapsed = len(values(connection, "select run_id from tidebase.attempts where outcome = 'lapsed'"))
        if not killer.found and lapsed - killer.lapsed_before != kills:
            killer.found.append(f"{lapsed - killer.lapsed_before} attempts were cut short by {kills} kills")
        return killer.found + audit(connection)


def many_threads(url: str, threads: int = 8, steps: int = 50) -> list[str]:
    """Threads of one ``tide.run`` do steps with keys of their own at once; the next attempt replays each of them."""
    executed: list[tuple[int, int]] = []

    def workflow(run: Run, input: Any) -> list[list[list[int]]]:
        def lane(number: int) -> list[list[int]]:
            def one(nth: int) -> list[int]:
                executed.append((number, nth))
                return [number, nth]

            barrier.wait(PATIENCE_S)
            return [run.step.options(key=f"{number}.{nth}")("cell", one, nth) for nth in range(steps)]

        barrier = threading.Barrier(threads)
        with ThreadPoolExecutor(threads) as pool:
            return list(pool.map(lane, range(threads)))

    expected = [[[number, nth] for nth in range(steps)] for number in range(threads)]
    found = []
    with Tidebase(url) as tide, connect(url) as connection:
        run_id = new_run(connection, workflow="threads")

        def interrupted(run: Run, input: Any) -> None:
            if workflow(run, input) != expected:
                found.append("the threads were given each other's results")
            raise KeyboardInterrupt

        with suppress(KeyboardInterrupt):
            tide.run("threads", interrupted, run_id=run_id)
        if tide.run("threads", workflow, run_id=run_id) != expected:
            found.append("the same steps gave something else when they were asked for again")
        if sorted(executed) != [(number, nth) for number in range(threads) for nth in range(steps)]:
            found.append(f"{len(executed)} executions of {threads * steps} steps")
        return found + audit(connection, run_id)
