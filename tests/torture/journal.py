"""What clients did, as they saw it: a call is on record before it is sent, its answer after it came.

One file a process, one ``write(2)`` a line, so that SIGKILL loses nothing but the last line. An invocation without an
answer may or may not have taken effect: that is what the checker has to cope with. Times are those of the machine's
monotonic clock, which all processes share and which no change of the wall clock touches.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


class Journal:
    def __init__(self, path: Path) -> None:
        self._name = path.stem
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        self._count = 0

    def invoke(self, function: str, arguments: dict[str, Any], again: str | None = None) -> str:
        """Notes that a call is about to be made; ``again``: the one that it repeats."""
        if again is None:
            self._count += 1
            again = f"{self._name}:{os.getpid()}:{self._count}"
        self._write(op=again, f=function, a=arguments, t=time.monotonic_ns())
        return again

    def answer(self, op: str, kind: str, value: Any) -> None:
        """``ok`` with what it returned, ``error`` with the SQLSTATE, ``lost`` when nobody knows what became of it."""
        self._write(op=op, k=kind, v=value, t=time.monotonic_ns())

    def _write(self, **entry: Any) -> None:
        os.write(self._file, json.dumps(entry, default=str).encode() + b"\n")


@dataclass
class Try:
    """One time that a call was made."""

    begun: int
    ended: int | None = None
    kind: str = "lost"
    value: Any = None


@dataclass
class Op:
    """A call, with all its repetitions."""

    id: str
    function: str
    arguments: dict[str, Any]
    tries: list[Try] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """It was acknowledged."""
        return self.tries[-1].kind == "ok"

    @property
    def refused(self) -> bool:
        """It cannot have had an effect: every try was answered with an error."""
        return all(attempt.kind == "error" for attempt in self.tries)

    @property
    def value(self) -> Any:
        return self.tries[-1].value

    @property
    def begun(self) -> int:
        return self.tries[0].begun

    @property
    def ended(self) -> int:
        ended = self.tries[-1].ended
        assert ended is not None
        return ended

    @property
    def run_id(self) -> str:
        return str(self.arguments.get("run_id"))

    def __str__(self) -> str:
        tries = ", ".join(f"{attempt.kind} {attempt.value}" for attempt in self.tries)
        return f"{self.id} {self.function}({self.arguments}) -> {tries}"[:600]


def read(folder: Path) -> list[Op]:
    """Every call of every client, in the order in which they were first made."""
    ops: dict[str, Op] = {}
    for path in sorted(folder.glob("*.jsonl")):
        for entry in _entries(path):
            if "f" in entry:
                op = ops.setdefault(entry["op"], Op(entry["op"], entry["f"], entry["a"]))
                op.tries.append(Try(entry["t"]))
            else:
                last = ops[entry["op"]].tries[-1]
                last.ended, last.kind, last.value = entry["t"], entry["k"], entry["v"]
    return sorted(ops.values(), key=lambda op: op.begun)


def _entries(path: Path) -> Iterator[dict[str, Any]]:
    for line in path.read_bytes().split(b"\n"):
        try:
            yield json.loads(line)
        except ValueError:
            continue  # the process was killed while it wrote the line: what it tells of was not sent
