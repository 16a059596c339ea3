"""The ledger: a process of its own, with a file of its own, that every execution of a step is charged to.

``python -m tests.torture.ledger.book SOCKET FILE SEED SCRIPT...`` listens on a Unix socket: one JSON object a line, and
one for an answer. An entry is on disk (``fsync``) before it is acknowledged, so whatever a worker was told is in the
file, however the worker ends. A charge that names a key which was charged before is recognised, and gives the first
receipt. The ledger also hands out the work, so that what a dead worker has begun is found again.

Times are those of the machine's monotonic clock, which all processes share.
"""

from __future__ import annotations

import json
import os
import random
import socket
import socketserver
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

from .scripts import SCRIPTS, through

Entry = dict[str, Any]

#: Where the runs are worked on that were taken away from a worker that stands still.
RIVAL = "rival"


class Book:
    """A client: one connection a request, so it can be used from any thread and after a fork."""

    def __init__(self, path: str) -> None:
        self._path = path

    def ask(self, op: str, **entry: Any) -> Any:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(self._path)
            connection.sendall(json.dumps({"op": op, "pid": os.getpid(), **entry}).encode() + b"\n")
            with connection.makefile("rb") as answers:
                return json.loads(answers.readline())


def read(path: Path) -> list[Entry]:
    """What is in the file, in order."""
    return [json.loads(line) for line in path.read_bytes().splitlines()]


class Ledger:
    """What the process knows. Every method is called with the lock held, and is one request."""

    def __init__(self, file: Path, seed: int, scripts: list[str]) -> None:
        self._file = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        self._choose = random.Random(seed)
        self._scripts = scripts
        self._lock = threading.Lock()
        self._entries = 0
        self._progress = 0
        self._raging = True
        self._numbers: Counter[str] = Counter()
        self._jobs: dict[str, Entry] = {}
        self._keys: dict[str, str] = {}
        self._charges: dict[tuple[str, str], list[str]] = {}
        self._tries: Counter[tuple[str, str]] = Counter()
        self._workers: set[int] = set()

    def handle(self, entry: Entry) -> Any:
        with self._lock:
            entry["t"] = time.monotonic_ns()
            return getattr(self, f"do_{entry['op']}", self._note)(entry)

    def _note(self, entry: Entry) -> None:
        os.write(self._file, json.dumps(entry).encode() + b"\n")
        os.fsync(self._file)
        self._entries += 1
        self._progress += entry["op"] in ("run", "charge", "got", "done")

    def do_charge(self, entry: Entry) -> str:
        """An execution: its receipt."""
        key = entry.get("key")
        receipt = self._keys.get(key) if key else None
        entry["again"] = receipt is not None
        if receipt is None:
            receipt = f"receipt {self._entries}"
        if key:
            self._keys[key] = receipt
        entry["receipt"] = receipt
        self._charges.setdefault((entry["run"], entry["step"]), []).append(receipt)
        self._note(entry)
        return receipt

    def do_try(self, entry: Entry) -> int:
        """An execution that may fail before it costs anything: the how manieth."""
        self._tries[entry["run"], entry["step"]] += 1
        self._note(entry)
        return self._tries[entry["run"], entry["step"]]

    def do_charges(self, entry: Entry) -> list[str]:
        return self._charges.get((entry["run"], entry["step"]), [])

    def do_next(self, entry: Entry) -> Entry | str | None:
        """A run to work on: one that this process has not taken, else a new one. ``wait``, or None when all is done."""
        slot, pid = entry["slot"], entry["pid"]
        self._workers.add(pid)
        mine = [job for job in self._jobs.values() if job["slot"] == slot and not job["done"]]
        job = next((job for job in mine if job["taken"] != pid), None)
        if job is None and self._raging and slot != RIVAL:
            job = self._new(slot)
        if job is not None:
            job["taken"] = pid
            return job
        over = not self._raging and all(job["done"] for job in self._jobs.values())
        return None if over else "wait"

    def _new(self, slot: str) -> Entry:
        self._numbers[slot] += 1
        name = self._scripts[(self._numbers[slot] - 1) % len(self._scripts)]
        job: Entry = {"run": f"{slot}-{self._numbers[slot]}-{name}", "slot": slot, "script": name, "done": False}
        script = SCRIPTS[name](self._choose)
        sources = [other for other in self._jobs.values() if other["done"] and through(other["body"])]
        if name == "fork" and sources:
            source = self._choose.choice(sources)
            script = source["body"]
            job |= {"source": source["run"], "through": through(script)}
        job |= {"body": script, "taken": None}
        self._jobs[job["run"]] = job
        self._note(
            {"op": "run", "t": time.monotonic_ns(), **{k: v for k, v in job.items() if k not in ("taken", "done")}}
        )
        return job

    def do_again(self, entry: Entry) -> None:
        """The process could not finish the run for now."""
        self._jobs[entry["run"]]["taken"] = None

    def do_done(self, entry: Entry) -> None:
        self._jobs[entry["run"]]["done"] = True
        self._note(entry)

    def do_order(self, entry: Entry) -> list[str]:
        """All that this process works on is for somebody else from now on."""
        taken = [j for j in self._jobs.values() if j["taken"] == entry["of"] and not j["done"] and j["slot"] != RIVAL]
        for job in taken:
            self._note({"op": "order", "t": entry["t"], "run": job["run"], "from": entry["of"]})
            job["slot"] = RIVAL
        return [job["run"] for job in taken]

    def do_calm(self, entry: Entry) -> None:
        """No new runs."""
        self._raging = False

    def do_state(self, entry: Entry) -> Entry:
        waiting = any(not job["done"] for job in self._jobs.values())
        return {
            "progress": self._progress,
            "workers": len(self._workers),
            "paid": len(self._charges),
            "over": not self._raging and not waiting,
        }


def main() -> None:
    path, file, seed, *scripts = sys.argv[1:]
    ledger = Ledger(Path(file), int(seed), scripts)

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            if line := self.rfile.readline():
                self.wfile.write(json.dumps(ledger.handle(json.loads(line))).encode() + b"\n")

    class Server(socketserver.ThreadingUnixStreamServer):
        request_queue_size = 128
        daemon_threads = True

        def handle_error(self, *_: object) -> None:
            """Who asked was killed, and does not hear the answer."""

    with Server(path, Handler) as server:
        server.serve_forever()


if __name__ == "__main__":
    main()
