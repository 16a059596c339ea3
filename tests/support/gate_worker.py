"""A worker in a process of its own that charges an external ledger and may be killed at any moment."""

from __future__ import annotations

import os
import signal
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import psycopg

from tidebase import Run, Tidebase
from tidebase.core.errors import RunNeedsReview

CHARGES = 5


class Ledger:
    """The outside: a file to which whole lines are appended, so that what was written stays, whoever dies."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def charge(self, line: str) -> None:
        file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(file, f"{line}\n".encode())
        os.close(file)

    def charges(self) -> list[str]:
        return self.path.read_text().splitlines() if self.path.exists() else []


class Charging:
    """The workflow: charges a few times; says through ``report`` where it is.

    Args:
        keyed: each charge has an idempotency key.
        stop_at: at which report it stops for good, to be killed there and nowhere else.
    """

    def __init__(
        self, ledger: Ledger, keyed: bool, report: Connection | None = None, stop_at: int | None = None
    ) -> None:
        self.ledger = ledger
        self.keyed = keyed
        self.report = report
        self.stop_at = stop_at
        self.reported = 0

    def say(self) -> None:
        if self.report is not None:
            self.report.send_bytes(b".")
            self.reported += 1
            if self.reported == self.stop_at:
                signal.pause()

    def charge(self, line: str) -> str:
        self.say()
        self.ledger.charge(line)
        self.say()
        return line

    def __call__(self, run: Run, input: Any) -> list[str]:
        done = []
        for number in range(CHARGES):
            self.say()
            line = f"{run.run_id} {number}"
            key = {"idempotency_key": line} if self.keyed else {}
            step = run.step.options(key=number, side_effects=["charge"], **key)  # type: ignore[typeddict-item]
            done.append(step("charge", self.charge, line))
        self.say()
        return done


def work(url: str, run_id: str, path: Path, keyed: bool, report: Connection, stop_at: int | None) -> None:
    """The body of the process."""
    with psycopg.connect(url, autocommit=True) as connection:
        tide = Tidebase(connection, lease_s=3600)
        try:
            tide.run("w", Charging(Ledger(path), keyed, report, stop_at), run_id=run_id)
        except RunNeedsReview:
            return
