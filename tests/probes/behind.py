"""Workers whose checkpoints are written behind the work, and which are killed in the middle of it."""

from __future__ import annotations

import asyncio
import random
import tempfile
from collections import Counter
from multiprocessing.connection import Connection as Pipe
from pathlib import Path

from tidebase import AsyncRun, AsyncTidebase, Run, Tidebase
from tidebase.core.behind import WINDOW, Behind
from tidebase.core.flow import nothing

from ..support.gate_worker import Ledger
from .support import Connection, audit, connect, expire, values
from .workers import process

STEPS = 200

#: Something that others can see happens after so many steps.
EVERY = 10

#: ``hasty``: the mechanism taken out, so that what others can see waits for nothing.
FACES = ("threads", "tasks")


class Counting:
    """The workflow: steps that count, and now and then an event that says how far it is.

    Args:
        report: is told of each execution.
    """

    def __init__(self, ledger: Ledger, report: Pipe) -> None:
        self.ledger = ledger
        self.report = report

    def count(self, number: int) -> int:
        self.ledger.charge(str(number))
        self.report.send_bytes(b".")
        return number

    def run(self, run: Run, _: None) -> int:
        for number in range(STEPS):
            assert run.step.options(key=number)("count", self.count, number) == number
            if number % EVERY == 0:
                run.emit("agent.seen", number)
        return STEPS

    async def run_in_tasks(self, run: AsyncRun, _: None) -> int:
        for number in range(STEPS):
            assert await run.step.options(key=number)("count", self.count, number) == number
            if number % EVERY == 0:
                await run.emit("agent.seen", number)
        return STEPS


def at_work(url: str, ledger: Path, run_id: str, face: str, report: Pipe) -> None:
    counting = Counting(Ledger(ledger), report)
    if face == "hasty":
        Behind.settled = lambda self: nothing()  # type: ignore[method-assign]
    if face == "tasks":
        asyncio.run(_in_tasks(url, run_id, counting))
        return
    with Tidebase(url, checkpoints="behind") as tide:
        tide.run("counting", counting.run, run_id=run_id)


async def _in_tasks(url: str, run_id: str, counting: Counting) -> None:
    async with AsyncTidebase(url, checkpoints="behind") as tide:
        await tide.run("counting", counting.run_in_tasks, run_id=run_id)


def killed_behind(url: str, kills: int, face: str, seed: int = 1) -> list[str]:
    """SIGKILL at a random execution, again and again. What others can see was stored before they saw it, in the order
    of the work; no more than the window is executed again; what is stored is never executed again.
    """
    dice, found = random.Random(seed), []
    with connect(url) as observer, tempfile.TemporaryDirectory() as folder:
        for number in range(kills):
            run_id, ledger = f"counting {face} {number}", Ledger(Path(folder) / str(number))
            with process(at_work, url, ledger.path, run_id, face) as (worker, report):
                for _ in range(dice.randrange(1, STEPS)):
                    report.recv_bytes()
                worker.kill()
                worker.join()
            executed = len(ledger.charges())
            stored = _stored(observer, run_id)
            found += _unseen(observer, run_id)
            if stored != list(range(len(stored))):
                found.append(f"{run_id}: these are stored, not in the order of the work: {stored}")
            if executed - len(stored) > WINDOW + 1:
                found.append(f"{run_id}: {executed} were executed, and {len(stored)} of them are stored")
            expire(observer, run_id)
            with process(at_work, url, ledger.path, run_id, face) as (worker, report):
                while True:
                    try:
                        report.recv_bytes()
                    except EOFError:
                        break
            times = Counter(map(int, ledger.charges()))
            again = [each for each in stored if times[each] != 1]
            if again or max(times.values()) > 2 or _stored(observer, run_id) != list(range(STEPS)):
                found.append(f"{run_id}: executed again: {again}; in all {times}")
            found += audit(observer, run_id)
    return found


def _stored(observer: Connection, run_id: str) -> list[int]:
    """The numbers of the steps that are stored, in the order in which they were."""
    query = """select output::int from tidebase.step_timeline
      where run_id = %s and status = 'completed' order by completed_seq"""
    return values(observer, query, run_id)


def _unseen(observer: Connection, run_id: str) -> list[str]:
    """What was seen before it was stored."""
    query = """select e.payload from tidebase.events e where e.run_id = %s and e.type = 'agent.seen'
      and e.payload::int + 1 <> (select count(*) from tidebase.step_timeline s
        where s.run_id = e.run_id and s.completed_seq < e.seq)"""
    return [f"{run_id}: {each} was seen before it was stored" for each in values(observer, query, run_id)]
