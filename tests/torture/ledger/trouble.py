"""Trouble from outside: what happens to workers, to their connections and to the server, by chance, from a seed."""

from __future__ import annotations

import contextlib
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql

from ...probes.support import connect, value, values
from ..proxy import Proxy
from ..storm import ROOT, Machine, socket_of
from .book import RIVAL, Book

ROLE = "torture_worker"
Process = subprocess.Popen[bytes]


class Crew:
    """The worker processes, each behind a proxy of its own. A slot's process is started again when it was killed.

    Attributes:
        killed: when each process was killed.
        died: processes that ended otherwise before it was time.
    """

    def __init__(
        self,
        socket: Path,
        folder: Path,
        machine: Machine,
        database: str,
        lease_s: float,
        slots: dict[str, str],
        mutant: str,
    ) -> None:
        self.lease_s = lease_s
        self._folder = folder
        self._socket = socket
        self._machine = machine
        self._database = database
        self._slots = slots
        self._mutant = mutant
        self.killed: dict[int, int] = {}
        self.died: list[str] = []
        self.proxies = {slot: Proxy(socket_of(machine)) for slot in slots}
        self.processes: dict[str, Process] = {}
        self.busy = threading.Lock()  # held while processes are killed, stopped or started

    def __enter__(self) -> Crew:
        for slot, proxy in self.proxies.items():
            proxy.__enter__()
            self.start(slot)
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes.values():
            process.kill()
            process.wait()
        for proxy in self.proxies.values():
            proxy.__exit__()

    def start(self, slot: str) -> None:
        user = "postgres" if slot == "clerk" else ROLE
        url = f"postgresql://{user}@127.0.0.1:{self.proxies[slot].port}/{self._database}?sslmode=disable&gssencmode=disable"
        arguments = [str(self._socket), url, slot, self._slots[slot], str(self.lease_s), *filter(None, [self._mutant])]
        command = [sys.executable, "-m", "tests.torture.ledger.worker", *arguments]
        with (self._folder / f"{slot}.log").open("ab") as log:
            self.processes[slot] = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)

    def kill(self, slot: str) -> None:
        process = self.processes[slot]
        process.kill()
        process.wait()
        self.killed[process.pid] = time.monotonic_ns()
        self.start(slot)

    def tend(self) -> bool:
        """Starts again who ended by mistake; whether everybody has come to an end."""
        with self.busy:
            for slot, process in self.processes.items():
                if process.poll() not in (None, 0) and process.pid not in self.killed:
                    self.died.append(f"worker ended: {slot} with {process.returncode}, see {slot}.log")
                    self.killed[process.pid] = time.monotonic_ns()
                    self.start(slot)
            return all(process.poll() == 0 for process in self.processes.values())

    def workers(self) -> list[str]:
        return [slot for slot in self.processes if slot != "clerk"]


class Trouble:
    """What can happen, by name. Each takes its time, and is over when it returns."""

    def __init__(self, machine: Machine, database: str, crew: Crew, book: Book) -> None:
        self._machine = machine
        self._url = machine.url(database)
        self._crew = crew
        self._book = book
        self._server = threading.Lock()  # one trouble with the whole server at a time
        self.counts: Counter[str] = Counter()
        self.kinds: dict[str, Callable[[random.Random], Any]] = {
            "a worker is killed": self._kill,
            "a worker is stopped": self._stop,
            "a worker is stopped, and its runs are taken over": self._replace,
            "a session is terminated": lambda choose: self._signal(choose, "pg_terminate_backend"),
            "a call is cancelled": lambda choose: self._signal(choose, "pg_cancel_backend"),
            "the server is restarted": self._restart,
            "the server is read-only": self._read_only,
            "packets vanish": self._hole,
            "packets vanish, and connections break": self._cut,
            "a stranger locks a head": self._lock,
            "calls may not wait": self._impatient,
        }

    def rage(self, kinds: tuple[str, ...], until: float, seed: int) -> None:
        choose = random.Random(seed)
        while time.monotonic() < until:
            time.sleep(choose.uniform(0.1, 0.7))
            kind = choose.choice(kinds)
            self.kinds[kind](choose)
            self.counts[kind] += 1

    def heal(self) -> None:
        """Nothing of it is left."""
        for proxy in self._crew.proxies.values():
            proxy.silent = False
        self._set_read_only("off")
        self._alter("reset all")
        self._terminate_all()

    def _kill(self, choose: random.Random) -> None:
        with self._crew.busy:
            self._crew.kill(choose.choice(self._crew.workers()))

    def _stop(self, choose: random.Random) -> None:
        """Also for longer than the lease: nobody takes its runs, so it goes on with them."""
        self._stand_still(choose.choice(self._crew.workers()), choose.uniform(0.2, 2.5) * self._crew.lease_s)

    def _replace(self, choose: random.Random) -> None:
        slot = choose.choice([slot for slot in self._crew.workers() if slot != RIVAL])
        self._stand_still(slot, choose.uniform(1.2, 2) * self._crew.lease_s, replaced=True)

    def _stand_still(self, slot: str, seconds: float, replaced: bool = False) -> None:
        with self._crew.busy:
            process = self._crew.processes[slot]
            process.send_signal(signal.SIGSTOP)
            if replaced:
                self._book.ask("order", of=process.pid)
        time.sleep(seconds)
        process.send_signal(signal.SIGCONT)  # it may have been killed meanwhile

    def _signal(self, choose: random.Random, function: str) -> None:
        with contextlib.suppress(psycopg.Error), connect(self._url) as connection:
            pids = values(connection, "select pid from pg_stat_activity where usename = %s", ROLE)
            for pid in choose.sample(pids, min(2, len(pids))):
                connection.execute(f"select {function}(%s)", (pid,))  # type: ignore[arg-type]

    def _terminate_all(self) -> None:
        with contextlib.suppress(psycopg.Error), connect(self._url) as connection:
            values(connection, "select pg_terminate_backend(pid) from pg_stat_activity where usename = %s", ROLE)

    def _restart(self, choose: random.Random) -> None:
        with self._server:
            self._machine.cluster.stop("immediate")
            time.sleep(choose.uniform(0, 1.5))
            self._machine.restart()

    def _read_only(self, choose: random.Random) -> None:
        with self._server:
            self._set_read_only("on")
            time.sleep(choose.uniform(1, 3))
            self._set_read_only("off")

    def _set_read_only(self, value: str) -> None:
        with connect(self._machine.cluster.url) as connection:
            connection.execute(sql.SQL("alter system set default_transaction_read_only = {}").format(value))
            connection.execute("select pg_reload_conf()")

    def _hole(self, choose: random.Random) -> None:
        """For longer than the lease, now and then."""
        proxy = self._crew.proxies[choose.choice(self._crew.workers())]
        proxy.silent = True
        time.sleep(choose.uniform(0.2, 1.8) * self._crew.lease_s)
        proxy.silent = False

    def _cut(self, choose: random.Random) -> None:
        proxy = self._crew.proxies[choose.choice(self._crew.workers())]
        proxy.silent = True
        time.sleep(choose.uniform(0.2, 1.8) * self._crew.lease_s)
        proxy.cut()
        proxy.silent = False

    def _lock(self, choose: random.Random) -> None:
        with contextlib.suppress(psycopg.Error), connect(self._url) as connection:
            runs = values(connection, "select run_id from tidebase.run_heads where status = 'running'")
            if runs:
                with connection.transaction():
                    locking = "select run_id from tidebase.run_heads where run_id = %s for no key update"
                    value(connection, locking, choose.choice(runs))
                    time.sleep(choose.uniform(0.3, 1.2) * self._crew.lease_s)

    def _impatient(self, choose: random.Random) -> None:
        """The role has a timeout for a while, and a head is locked meanwhile."""
        setting = choose.choice(("lock_timeout", "statement_timeout"))
        self._alter(f"set {setting} = '200ms'")
        self._terminate_all()
        self._lock(choose)
        self._alter(f"reset {setting}")
        self._terminate_all()

    def _alter(self, what: str) -> None:
        with contextlib.suppress(psycopg.Error), connect(self._url) as connection:
            connection.execute("begin read write")
            connection.execute(f"alter role {ROLE} {what}")  # type: ignore[arg-type]
            connection.execute("commit")


TROUBLES = (
    "a worker is killed",
    "a worker is killed",
    "a worker is stopped",
    "a worker is stopped, and its runs are taken over",
    "a session is terminated",
    "a session is terminated",
    "a call is cancelled",
    "a call is cancelled",
    "the server is restarted",
    "the server is read-only",
    "packets vanish",
    "packets vanish, and connections break",
    "a stranger locks a head",
    "a stranger locks a head",
    "calls may not wait",
)
