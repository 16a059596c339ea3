"""Attacks on graphs of LangGraph: their processes are killed, and two of them work on one thread."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..support.graph_worker import DONE, IN_REVIEW, INTERRUPTED, OVERTAKEN
from .support import Connection, call, connect, new_run, values
from .threads import forks


class Graphs:
    """Processes that work on threads, and what they noted."""

    def __init__(self, url: str, folder: str) -> None:
        self._ledger = Path(folder) / "ledger"
        self._ledger.touch()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.graph_worker", url, str(self._ledger)],
            cwd=Path(__file__).parents[2],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def tell(self, *words: object) -> list[int]:
        """The exit codes of the processes that did it."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(" ".join(map(str, words)) + "\n")
        self._process.stdin.flush()
        return [int(code) for code in self._process.stdout.readline().split()]

    def lines(self) -> list[str]:
        return self._ledger.read_text().splitlines()

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


@contextmanager
def graphs(url: str) -> Iterator[Graphs]:
    with tempfile.TemporaryDirectory() as folder:
        processes = Graphs(url, folder)
        try:
            yield processes
        finally:
            processes.close()


def _decide(db: Connection, processes: Graphs) -> None:
    """A person looks whether the mail was sent, and says so."""
    for run_id, step in db.execute("select run_id, step from tidebase.review_inbox").fetchall():
        if f"mailed {run_id}" in processes.lines():
            call(db, "resolve_review", run_id=run_id, step=step, decision="accept", output='{"mailed": true}')
        else:
            call(db, "resolve_review", run_id=run_id, step=step, decision="retry")


def _to_its_end(
    db: Connection, processes: Graphs, thread_id: str, dice: random.Random, deaths: int
) -> tuple[int, list[str]]:
    """Works on a thread in process after process; how many died, and what went wrong."""
    died = 0
    for _ in range(100):
        (code,) = processes.tell("work", thread_id, dice.randint(1, 60) if died < deaths else 0)
        if code == DONE:
            return died, []
        if code == -signal.SIGKILL:
            died += 1
            db.execute("update tidebase.run_heads set lease_expires_at = clock_timestamp() where status = 'running'")
        elif code == IN_REVIEW:
            _decide(db, processes)
        elif code != INTERRUPTED:
            return died, [f"{thread_id}: a process ended with {code}"]
    return died, [f"{thread_id} did not come to its end"]


def _repeated(lines: list[str]) -> list[str]:
    """Nodes that ran again although what they did was recorded."""
    recorded: set[str] = set()
    found = []
    for line in lines:
        kind, *rest = line.split()
        if kind == "recorded":
            recorded.add(rest[0])
        elif kind == "ran" and rest[1].rpartition(":")[2] in recorded:
            found.append(f"{rest[0]} ran again after it was recorded: {rest[1]}")
    return found


def killed(processes: Graphs, db: Connection, kills: int, deaths: int = 4, seed: int = 1) -> list[str]:
    """SIGKILL, again and again: no node runs again that was recorded, each effect happens once, every thread ends."""
    dice = random.Random(seed)
    found: list[str] = []
    threads, died = 0, 0
    while died < kills and not found:
        threads += 1
        thread_id = f"killed-{'x' * (threads % 2)}{threads}"
        more, problems = _to_its_end(db, processes, thread_id, dice, deaths)
        died += more
        found += problems + [f"{thread_id}: {fork}" for fork in forks(db, thread_id)]
    lines = [line for line in processes.lines() if "killed-" in line or line.startswith("recorded")]
    effects = Counter(line.split()[0] for line in set(lines))
    mails = sum(line.startswith("mailed ") for line in lines)
    if (effects["charged"], effects["mailed"], mails) != (threads, threads, threads):
        found.append(f"{threads} threads: {effects['charged']} charges, {effects['mailed']} mails, sent {mails} times")
    return found + _repeated(lines)


def two_at_once(processes: Graphs, db: Connection, rounds: int) -> list[str]:
    """Two processes go on with one thread at the same moment: one is refused, and the thread does not fork."""
    found = []
    for number in range(rounds):
        thread_id = f"raced-{number}-{new_run(db)}"
        codes = processes.tell("race", thread_id)
        if sorted(codes) != [OVERTAKEN, INTERRUPTED]:
            found.append(f"two processes ended with {codes}")
        found += [f"{thread_id}: {fork}" for fork in forks(db, thread_id)]
    return found


def attacked(url: str, kills: int, races: int) -> list[str]:
    """Both, on one database."""
    with connect(url) as db, graphs(url) as processes:
        found = two_at_once(processes, db, races) + killed(processes, db, kills)
        return found + values(db, "select c::text from tidebase_private.check_invariants() c")
