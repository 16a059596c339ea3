"""A storm: clients at work on a few runs, while everything around them breaks; then calm, and the account of it.

Faults are chosen by a seed, and so is what each client does; but processes and a kernel are at work, so a seed does not
repeat a storm exactly. What is found is kept: the journals say what every client did.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import psycopg

from ..probes.support import Connection, call, connect, poll, values
from ..support import clusters
from ..support.patience import PATIENCE_S
from . import journal
from .checker import NEVER, History, look
from .proxy import Proxy

ROOT = Path(__file__).parents[2]
FAKETIME = Path("/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1")
CLIENTS = ("worker", "worker", "worker", "claimer", "claimer", "endpoint", "endpoint", "decider", "decider", "reader")
RUNS = 8
SETTINGS = {"max_connections": "100", "shared_buffers": "32MB", "max_wal_size": "64MB", "min_wal_size": "32MB"}


@dataclass
class Outcome:
    """What a storm came to."""

    calls: int = 0
    tries: int = 0
    lost: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    violations: list[str] = field(default_factory=list)


class Crowd:
    """The client processes, which are started again when they were killed."""

    def __init__(
        self, url: str, folder: Path, runs: list[str], choose: random.Random, *, in_a_hurry: bool = True
    ) -> None:
        self._url = url
        self._hurry = str(int(in_a_hurry))
        self._folder = folder
        self._runs = runs
        self._choose = choose
        self._count = 0
        self.clocks_wrong = 0
        self.processes: list[tuple[str, subprocess.Popen[bytes]]] = []

    def add(self, role: str) -> None:
        self._count += 1
        path = self._folder / f"{role}{self._count}.jsonl"
        environment = dict(os.environ, PYTHONPATH=str(ROOT))
        if FAKETIME.exists() and self._choose.random() < 0.5:
            # A client whose clock is wrong, and other than it was before it was killed. The monotonic one stays right.
            self.clocks_wrong += 1
            shift = self._choose.choice(("-3d", "+30d", "-1y", "+7m"))
            environment |= {"LD_PRELOAD": str(FAKETIME), "FAKETIME": shift, "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
        arguments = (role, self._url, str(path), str(self._choose.getrandbits(32)), self._hurry, *self._runs)
        command = [sys.executable, "-m", "tests.torture.client", *arguments]
        self.processes.append((role, subprocess.Popen(command, env=environment, cwd=ROOT)))

    def any(self, role: str | None = None) -> tuple[str, subprocess.Popen[bytes]]:
        return self._choose.choice([entry for entry in self.processes if role in (None, entry[0])])

    def kill(self, entry: tuple[str, subprocess.Popen[bytes]]) -> None:
        entry[1].kill()
        entry[1].wait()
        self.processes.remove(entry)

    def close(self) -> list[str]:
        """Lets everybody finish the call they are at."""
        for _, process in self.processes:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGCONT)
                process.terminate()
        found = []
        for role, process in self.processes:
            try:
                if process.wait(PATIENCE_S) not in (0, -signal.SIGTERM):
                    found.append(f"a {role} ended with {process.returncode}")
            except subprocess.TimeoutExpired:
                process.kill()
                found.append(f"a {role} did not come to an end")
        return found


@contextlib.contextmanager
def small_disk(megabytes: int) -> Iterator[Path | None]:
    """A file system of this size in memory, where we may mount one (Linux, as root); else None."""
    folder = Path(tempfile.mkdtemp(prefix="torture-"))
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m,mode=0755", "tmpfs", str(folder)], capture_output=True
    )
    try:
        yield folder if mounted.returncode == 0 else None
    finally:
        if mounted.returncode == 0:
            subprocess.run(["umount", "-l", str(folder)], check=False)
        shutil.rmtree(folder, ignore_errors=True)


class Machine:
    """A server that can be hurt."""

    def __init__(self, folder: Path, binaries: Path, disk: Path | None = None, **settings: str) -> None:
        self.cluster = clusters.cluster((disk or folder) / "data", binaries, {**SETTINGS, **settings})
        self.cluster.start()
        self._filler = disk / "filler" if disk else None

    def url(self, database: str) -> str:
        return clusters.url(self.cluster, database)

    @property
    def can_be_full(self) -> bool:
        return self._filler is not None

    def crash(self) -> None:
        """SIGKILL to the postmaster: its backends end at once, wherever they are."""
        with contextlib.suppress(OSError, psutil.Error, ValueError):  # it may be starting again just now
            postmaster = psutil.Process(self.cluster.postmaster_pid())
            postmaster.kill()
            poll("the postmaster is gone", lambda: not postmaster.is_running())
        self.restart()

    def restart(self) -> None:
        def started() -> bool:
            with contextlib.suppress(Exception):  # sessions of the dead server may hold its shared memory for a moment
                self.cluster.start()
                with connect(self.cluster.url):
                    return True
            return False

        poll("the server starts again", started)

    def fill(self) -> None:
        """Not a byte is left on the disk: no table and no log can grow."""
        assert self._filler is not None
        with open(self._filler, "wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(65536))

    def free(self) -> None:
        if self._filler is not None:
            self._filler.unlink(missing_ok=True)
        self.restart()


class Storm:
    """Breaks things, one after the other, for as long as the clients work."""

    def __init__(self, machine: Machine, crowd: Crowd, choose: random.Random, kinds: tuple[str, ...]) -> None:
        self._machine = machine
        self._crowd = crowd
        self._choose = choose
        self.faults: Counter[str] = Counter()
        self._kinds = [kind for kind in kinds if kind != "full disk" or machine.can_be_full]
        self.actions: dict[str, Callable[[], None]] = {
            "a client is killed": self._kill_client,
            "a client is stopped": self._stop_client,
            "a session is terminated": lambda: self._signal("pg_terminate_backend"),
            "a call is cancelled": lambda: self._signal("pg_cancel_backend"),
            "a session is stopped": self._stop_session,
            "the server is killed": machine.crash,
            "full disk": self._full_disk,
        }

    def rage(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            time.sleep(self._choose.uniform(0.1, 0.8))
            if self._kinds:
                kind = self._choose.choice(self._kinds)
                self.actions[kind]()
                self.faults[kind] += 1

    def _kill_client(self) -> None:
        role, _ = entry = self._crowd.any()
        self._crowd.kill(entry)
        self._crowd.add(role)

    def _stop_client(self) -> None:
        _, process = self._crowd.any("worker")
        process.send_signal(signal.SIGSTOP)
        time.sleep(self._choose.uniform(0.1, 1.5))  # longer than most leases
        process.send_signal(signal.SIGCONT)

    def _backends(self, connection: Connection) -> list[int]:
        return values(
            connection,
            "select pid from pg_stat_activity where backend_type = 'client backend' and pid <> pg_backend_pid()",
        )

    def _signal(self, function: str) -> None:
        with contextlib.suppress(psycopg.Error), connect(self._machine.cluster.url) as connection:
            for pid in self._choose.sample(pids := self._backends(connection), min(2, len(pids))):
                connection.execute(f"select {function}(%s)", (pid,))  # type: ignore[arg-type]

    def _stop_session(self) -> None:
        """It may hold a lock, and lets everybody wait."""
        with (
            contextlib.suppress(psycopg.Error, psutil.Error, IndexError),
            connect(self._machine.cluster.url) as connection,
        ):
            process = psutil.Process(self._choose.choice(self._backends(connection)))
            process.suspend()
            time.sleep(self._choose.uniform(0.05, 0.7))
            process.resume()

    def _full_disk(self) -> None:
        self._machine.fill()
        time.sleep(self._choose.uniform(0.2, 1.0))
        self._machine.free()


FAULTS = (
    "a client is killed",
    "a client is killed",
    "a client is stopped",
    "a session is terminated",
    "a session is terminated",
    "a call is cancelled",
    "a session is stopped",
    "the server is killed",
    "full disk",
)


def fresh_database(machine: Machine) -> str:
    """A migrated database of its own on the machine; its name."""
    name = f"storm_{time.monotonic_ns()}"
    with connect(machine.cluster.url) as connection:
        connection.execute(f"create database {name} template {clusters.MIGRATED}")  # type: ignore[arg-type]
    return name


def url_of(proxy: Proxy, name: str) -> str:
    return f"postgresql://postgres@127.0.0.1:{proxy.port}/{name}?sslmode=disable&gssencmode=disable"


def socket_of(machine: Machine) -> str:
    return str(machine.cluster.socket_folder / ".s.PGSQL.5432")


def new_runs(url: str) -> list[str]:
    with connect(url) as connection:
        return [str(call(connection, "create_run", workflow="torture")) for _ in range(RUNS)]


def storm(
    machine: Machine,
    folder: Path,
    seconds: float,
    seed: int,
    faults: tuple[str, ...] = FAULTS,
    prepare: Callable[[Connection], None] = lambda connection: None,
    least: tuple[int, int] = (0, 0),
) -> Outcome:
    """Lets clients work on a few runs of a fresh database while faults strike, and checks what they were told. It goes
    on for as long again until there were so many calls and faults at least: on a busy machine that takes longer.
    """
    choose = random.Random(seed)
    name = fresh_database(machine)
    url = machine.url(name)
    with connect(url) as connection:
        prepare(connection)
    runs = new_runs(url)
    journals = folder / name
    journals.mkdir(parents=True)
    with Proxy(socket_of(machine), chance=0.004, seed=seed) as proxy:
        crowd = Crowd(url_of(proxy, name), journals, runs, choose)
        for role in CLIENTS:
            crowd.add(role)
        raging = Storm(machine, crowd, choose, faults)
        raging.rage(seconds)
        while len(journal.read(journals)) < least[0] or raging.faults.total() < least[1]:
            raging.rage(seconds)
        proxy.chance = 0
        found = crowd.close()
    raging.faults.update({f"a connection breaks {moment} the call": times for moment, times in proxy.broken.items()})
    raging.faults["a client's clock is wrong"] = crowd.clocks_wrong
    outcome = account(journals, url, crashed=bool({"the server is killed", "full disk"} & raging.faults.keys()))
    outcome.violations[:0] = found
    outcome.faults = raging.faults
    if not outcome.violations:
        shutil.rmtree(journals)
    with connect(machine.cluster.url) as connection:
        connection.execute(f"drop database {name} with (force)")  # type: ignore[arg-type]
    return outcome


def account(journals: Path, url: str, crashed: bool = False, promoted: int = NEVER) -> Outcome:
    """What the journals and the database say; then each run is brought to its end."""
    ops = journal.read(journals)
    with connect(url) as connection:
        violations = History(ops, look(connection), crashed, promoted).check() + rescue(connection)
    tries = [attempt for op in ops for attempt in op.tries]
    return Outcome(len(ops), len(tries), sum(attempt.kind == "lost" for attempt in tries), violations=violations)


#: Those that have failed last: another run may have their key.
UNFINISHED = """
select run_id from tidebase.run_heads where status not in ('completed', 'cancelled') order by status = 'failed'"""


UNDECIDED = """
select name from tidebase.steps where run_id = %s and status = 'running'
  and not tidebase_private.allows_repetition(side_effects, idempotency_key, replay)"""


def rescue(connection: Connection) -> list[str]:
    """Whatever happened, each run can be brought to its end by who comes later."""
    past = "lease_expires_at = now() - interval '1 day'"
    connection.execute(f"update tidebase.run_heads set {past} where status = 'running'")
    connection.execute("update tidebase.run_heads set available_at = null")
    connection.execute("delete from tidebase.queues")
    found = []
    for run_id in values(connection, UNFINISHED):
        try:
            _finish(connection, run_id)
        except psycopg.Error as error:
            found.append(f"run {run_id} cannot be finished: {error}")
    broken = values(connection, "select invariant from tidebase_private.check_invariants()")
    found += [f"run {run_id} is stuck" for run_id in values(connection, UNFINISHED)]
    return found + [f"after the rescue: {rule}" for rule in broken]


def _finish(connection: Connection, run_id: str, again: bool = True) -> None:
    for step in values(connection, "select step from tidebase.review_inbox where run_id = %s", run_id):
        call(connection, "resolve_review", run_id=run_id, step=step, decision="fail")
    for gate in values(connection, "select name from tidebase.gate_inbox where run_id = %s", run_id):
        call(connection, "decide_gate", run_id=run_id, name=gate, decision="approved")
    lease = call(connection, "acquire_run", run_id=run_id, holder="rescuer")
    if lease["outcome"] == "failed":  # it has lost all the workers that it may
        call(connection, "recover_run", run_id=run_id)
        lease = call(connection, "acquire_run", run_id=run_id, holder="rescuer")
    if lease["outcome"] != "granted":
        return
    undecided = values(connection, UNDECIDED, run_id)
    if undecided:  # an earlier attempt left it, and a person must say what came of it
        call(connection, "fail_run", run_id=run_id, token=lease["token"])
        if again:
            _finish(connection, run_id, again=False)
    else:
        call(connection, "complete_run", run_id=run_id, token=lease["token"])
