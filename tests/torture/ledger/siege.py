"""A siege: workers at work under trouble for a while, then calm until every run has come to its end; the verdict."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psycopg

from ...probes.support import Connection, connect, poll
from ...support.patience import PATIENCE_S
from ..storm import ROOT, Machine, fresh_database
from .book import RIVAL, Book, read
from .scripts import SCRIPTS
from .trouble import ROLE, TROUBLES, Crew, Trouble
from .verdict import Account, figures, judge, look, surfaced

#: When all is calm again: how long it may take until anything is done again, and in all; in seconds.
STILL_S, CALM_S = PATIENCE_S / 3, PATIENCE_S

SMALL = {"a": "threads", "b": "asyncio", RIVAL: "threads"}
LARGE = {"a": "threads", "b": "asyncio", "c": "threads", "d": "asyncio", RIVAL: "asyncio"}

ACCESS = f"""
do $$ begin
  if not exists (select from pg_roles where rolname = '{ROLE}') then create role {ROLE} login; end if;
end $$;
grant tidebase_worker to {ROLE};
create table public.effects (run text, step text, receipt text);
grant select, insert on public.effects to {ROLE}"""


DUE = """
update tidebase.run_heads set due_at = lease_expires_at
where status = 'running' and lease_expires_at < clock_timestamp() and due_at > clock_timestamp()"""


@dataclass
class Finding:
    """What a siege came to. ``surfaced``: what ``tide.run`` raised, which is no violation by itself."""

    figures: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    surfaced: Counter[str] = field(default_factory=Counter)
    violations: list[str] = field(default_factory=list)


@contextmanager
def ledger(folder: Path, seed: int, scripts: tuple[str, ...]) -> Iterator[tuple[Path, Book]]:
    """The ledger's process; where it listens."""
    with tempfile.TemporaryDirectory(prefix="ledger-") as short:  # a socket's path holds 107 bytes
        path = Path(short) / "socket"
        command = [
            sys.executable,
            "-m",
            "tests.torture.ledger.book",
            str(path),
            str(folder / "ledger.jsonl"),
            str(seed),
        ]
        process = subprocess.Popen([*command, *scripts], cwd=ROOT)
        try:
            book = Book(str(path))
            poll("the ledger answers", lambda: _answers(book))
            yield path, book
        finally:
            process.kill()
            process.wait()


def _answers(book: Book) -> bool:
    with contextlib.suppress(OSError):
        return bool(book.ask("state"))
    return False


def siege(
    machine: Machine,
    folder: Path,
    seconds: float,
    seed: int,
    troubles: tuple[str, ...] = TROUBLES,
    *,
    scripts: tuple[str, ...] = tuple(SCRIPTS),
    slots: dict[str, str] = LARGE,
    lease_s: float = 2.5,
    tormentors: int = 2,
    mutant: str = "",
    prepare: Callable[[Connection], None] = lambda connection: None,
    least: tuple[int, int] = (0, 0),
) -> Finding:
    """Lets workers work on scripts in a fresh database under trouble, and judges what they were charged.

    Args:
        slots: the workers, each with its face.
        tormentors: how many troubles there are at once.
        mutant: ``module:function`` that every worker calls first.
        prepare: what is done to the database before.
        least: how many steps are paid and how many troubles there are at least: until then it goes on for the same time
            again.
    """
    folder.mkdir(parents=True, exist_ok=True)
    name = fresh_database(machine)
    with connect(machine.url(name)) as connection:
        connection.execute(ACCESS)  # type: ignore[arg-type]
        prepare(connection)
    with ledger(folder, seed, scripts) as (path, book):
        crew = Crew(path, folder, machine, name, lease_s, {**slots, "clerk": "clerk"}, mutant)
        with crew, _hurry(machine.url(name)):
            poll("every worker is at work", lambda: book.ask("state")["workers"] >= len(slots))
            trouble = Trouble(machine, name, crew, book)
            seeds = [seed * 10 + number for number in range(tormentors)] if troubles else []
            while True:
                with ThreadPoolExecutor() as pool:
                    until = time.monotonic() + seconds
                    raging = [pool.submit(trouble.rage, troubles, until, each) for each in seeds]
                    time.sleep(seconds)
                for each in raging:
                    each.result()
                if book.ask("state")["paid"] >= least[0] and trouble.counts.total() >= least[1]:
                    break
            trouble.heal()
            book.ask("calm")
            _wait(book, crew)
            killed, died = dict(crew.killed), crew.died
    account = Account(read(folder / "ledger.jsonl"), killed)
    with connect(machine.url(name)) as connection:
        found = died + judge(account, look(connection))
    if not found:
        with connect(machine.cluster.url) as connection:
            connection.execute(f"drop database {name} with (force)")  # type: ignore[arg-type]
    return Finding(figures(account), trouble.counts, surfaced(account), found)


@contextmanager
def _hurry(url: str) -> Iterator[None]:
    """While the block runs, reconcile looks at a lease that has run out at once, as it does at one a minute old."""
    over = threading.Event()

    def make_due() -> None:
        while not over.wait(0.2):
            with contextlib.suppress(psycopg.Error), connect(url) as connection:
                connection.execute(DUE)  # type: ignore[arg-type]

    thread = threading.Thread(target=make_due)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _wait(book: Book, crew: Crew) -> None:
    """Until everybody has come to an end, or nothing moves any more: the verdict says which."""
    end = time.monotonic() + CALM_S
    progress, moved = -1, time.monotonic()
    while not crew.tend() and time.monotonic() < min(end, moved + STILL_S):
        now = book.ask("state")["progress"]
        if now != progress:
            progress, moved = now, time.monotonic()
        time.sleep(0.2)
