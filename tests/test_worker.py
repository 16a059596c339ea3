"""Worker processes, killed in the middle: each run is completed once, and nothing that was paid for is lost."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tidebase import Tidebase

from .probes.support import connect, poll, value, values
from .probes.workers import Ledger
from .support import amounts
from .support.patience import PATIENCE_S

ON_NEWEST = True

Db = psycopg.Connection[Any]

#: An application as its author writes it. What a step has done is a line in a file: it was paid for.
APPLICATION = """
import os, time
from tidebase import AsyncTidebase, Tidebase

version = os.environ.get("VERSION")
tide = Tidebase(os.environ["URL"], lease_s=5, code_version=version)
paid = os.open(os.environ["LEDGER"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)


def pay(run, step):
    entry = b'\\n{"run": "%s", "step": "%s", "version": "%s"}'
    os.write(paid, entry % (run.run_id.encode(), step.encode(), str(version).encode()))
    return step


@tide.workflow("three steps")
def three_steps(run, input):
    return [run.step(name, lambda: pay(run, name)) for name in "abc"]


@tide.workflow("some time")
def some_time(run, input):
    for name in "abcd":
        run.step(name, lambda: time.sleep(0.02) or pay(run, name))


@tide.workflow("kills")
def kills(run, input):
    os.kill(os.getpid(), 9)


@tide.workflow("long")
def long(run, input):
    run.step("begun", lambda: pay(run, "begun"))
    while not os.path.exists(os.environ["LEDGER"] + ".go"):
        time.sleep(0.02)
    return "ended"


later = AsyncTidebase(os.environ["URL"])


@later.workflow("later")
async def of_later(run, input):
    return await run.step("a", lambda: 1)
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "application.py").write_text(APPLICATION)
    return tmp_path


def start(
    place: Path, url: str, *options: str, target: str = "application:tide", **more: str
) -> subprocess.Popen[bytes]:
    environment = dict(os.environ, URL=url, LEDGER=str(place / "ledger"), PYTHONUNBUFFERED="1", **more)
    command = [sys.executable, "-m", "tidebase.cli", "worker", target, "--poll", "0.5s", *options]
    with (place / "log").open("ab") as log:
        return subprocess.Popen(command, cwd=place, env=environment, stdout=log, stderr=log, start_new_session=True)


@contextmanager
def workers(place: Path, url: str, count: int, *options: str) -> Iterator[list[subprocess.Popen[bytes]]]:
    started = [start(place, url, *options) for _ in range(count)]
    try:
        yield started
    finally:
        for worker in started:
            worker.kill()
            worker.wait()


def test_workers_that_are_killed_lose_nothing(tmp_path: Path, database: str) -> None:
    assert kill_workers(tmp_path, database, amounts.KILLED_QUEUE_WORKERS.test) == []


def kill_workers(place: Path, url: str, kills: int) -> list[str]:
    """Three processes, one of which is killed again and again; a queue with a limit is among theirs. Returns what is
    wrong.
    """
    (place / "application.py").write_text(APPLICATION)
    options = ("-q", "wide", "-q", "narrow", "--concurrency", "4")
    left = "select count(*) from tidebase.run_overview where status <> 'completed'"
    chance = random.Random(20261127)
    with Tidebase(url) as tide, connect(url) as db:
        tide.queues.put("narrow", concurrency=3)
        specs = [
            {"workflow": "three steps", "queue": "wide" if n % 3 else "narrow", "max_attempts": 50}
            for n in range(25 * kills)
        ]
        ids = {made.run_id for made in tide.enqueue_many(specs)}  # type: ignore[arg-type]
        with workers(place, url, 3, *options) as started:
            for _ in range(kills):
                before = value(db, left)
                poll("they get on", lambda before=before: value(db, left) <= max(before - 5, 0))  # type: ignore[misc]
                victim = chance.randrange(3)
                started[victim].kill()
                started[victim].wait()
                started[victim] = start(place, url, *options)
            poll("all are completed", lambda: value(db, left) == 0)
        ends = Counter(values(db, "select run_id from tidebase.events where type = 'run.completed'"))
        paid = Counter((entry["run"], entry["step"]) for entry in Ledger(place / "ledger").read())
        again = sum(times - 1 for times in paid.values())
        wrong = {
            "other runs have ended than were enqueued": set(ends) != ids,
            "a run has ended twice": set(ends.values()) != {1},
            "a step was paid for by nobody": len(paid) != 3 * len(ids),
            "more was paid for twice than was at work when its process died": again > kills * 4,
            "the limit was exceeded": at_most(db, "narrow") > 3,
        }
    return [what for what, is_so in wrong.items() if is_so]


def at_most(db: Db, queue: str) -> int:
    """How many runs of a queue were leased at once, by the log; one that was taken over has been one all the time."""
    rows = db.execute(
        """select e.run_id, e.type from tidebase.events e join tidebase.runs r on r.run_id = e.run_id
        where r.queue = %s and e.type in ('run.started', 'run.released', 'run.completed', 'run.failed')
        order by e.created_at, e.seq""",
        [queue],
    ).fetchall()
    leased: set[str] = set()
    most = 0
    for run_id, kind in rows:
        (leased.add if kind == "run.started" else leased.discard)(run_id)
        most = max(most, len(leased))
    return most


def test_a_run_that_kills_its_worker_is_dead_after_its_attempts_and_the_others_go_on(
    place: Path, database: str, tide: Tidebase, db: Db
) -> None:
    poison = tide.enqueue("kills", max_attempts=3).run_id
    others = [tide.enqueue("three steps").run_id for _ in range(10)]
    worker = start(place, database, "--concurrency", "2")
    try:

        def restarted() -> bool:
            nonlocal worker
            if worker.poll() is not None:
                worker = start(place, database, "--concurrency", "2")
            done = values(db, "select status from tidebase.run_overview where run_id = any(%s)", others)
            return set(done) == {"completed"} and tide.runs.get(poison).status == "failed"

        poll("the poison is dead, and the others are done", restarted)
    finally:
        worker.kill()
        worker.wait()
    run = tide.runs.get(poison)
    assert (run.failure_class, run.attempt) == ("crashed", 3)


def test_sigterm_drains(place: Path, database: str, tide: Tidebase, db: Db) -> None:
    run_id = tide.enqueue("long").run_id
    worker = start(place, database, "--drain", "1m")
    try:
        poll("it is at work", lambda: [step.status for step in tide.runs.steps(run_id)] == ["completed"])
        worker.send_signal(signal.SIGTERM)
        other = tide.enqueue("three steps").run_id
        (place / "ledger.go").touch()
        assert worker.wait(PATIENCE_S) == 0
    finally:
        worker.kill()
        worker.wait()
    assert tide.runs.get(run_id).result == "ended"
    assert tide.runs.get(other).status in ("queued", "completed")  # it may have come before the signal was heard
    assert [attempt.outcome for attempt in tide.runs.attempts(run_id)] == ["completed"]


def deploy(place: Path, url: str, runs: int, deploys: int) -> list[str]:
    """Version after version comes in, under load: two workers of the old one go when two of the new one have come, the
    first at once (what it does not end within a moment is given up), the second when no run is left that is pinned to
    it. Whatever a step does is paid for once; a pinned run is paid for by one version.
    """
    (place / "application.py").write_text(APPLICATION)
    options = ("--concurrency", "4", "--drain")
    found: list[str] = []
    pinned = (
        "select exists (select from tidebase.run_overview o join tidebase.run_attempts a on a.run_id = o.run_id"
        " where o.pinned and o.status <> 'completed' and a.attempt = 1 and a.code_version = %s)"
    )
    seen = "select count(*) from tidebase.worker_overview where code_version = %s"

    def pair(version: int) -> list[subprocess.Popen[bytes]]:
        return [start(place, url, *options, drain, VERSION=f"v{version}") for drain in ("0.1s", "5m")]

    with Tidebase(url) as tide, connect(url) as db:

        def load() -> None:
            specs = [{"workflow": "some time", "pin": n % 2 == 0, "max_attempts": 1} for n in range(runs // deploys)]
            tide.enqueue_many(specs)  # type: ignore[arg-type]

        old = pair(0)
        young = list(old)
        try:
            poll("the first have come", lambda: value(db, seen, "v0") == 2)
            for version in range(1, deploys + 1):
                load()
                poll("they are at work", lambda version=version: value(db, pinned, f"v{version - 1}"))  # type: ignore[misc]
                young = pair(version)
                poll("the new ones have come", lambda version=version: value(db, seen, f"v{version}") == 2)  # type: ignore[misc]
                old[0].send_signal(signal.SIGTERM)
                found += [
                    f"the first of v{version - 1} ended with {code}" for code in [old[0].wait(PATIENCE_S)] if code
                ]
                poll("none is pinned to the old", lambda version=version: not value(db, pinned, f"v{version - 1}"))  # type: ignore[misc]
                old[1].send_signal(signal.SIGTERM)
                found += [
                    f"the second of v{version - 1} ended with {code}" for code in [old[1].wait(PATIENCE_S)] if code
                ]
                old = young
            poll("all are done", lambda: value(db, "select bool_and(status = 'completed') from tidebase.run_overview"))
        finally:
            for worker in {*old, *young}:
                worker.kill()
                worker.wait()
        paid: dict[tuple[str, str], list[str]] = {}
        for entry in Ledger(place / "ledger").read():
            paid.setdefault((entry["run"], entry["step"]), []).append(entry["version"])
        found += [f"{step} was paid for by {versions}" for step, versions in paid.items() if len(versions) > 1]
        made = values(db, "select run_id from tidebase.runs")
        if len(paid) != 4 * len(made):
            found.append(f"{len(paid)} steps of {len(made)} runs were paid for")
        for run_id in values(db, "select run_id from tidebase.runs where pinned"):
            versions = {paid[run_id, step][0] for step in "abcd" if (run_id, step) in paid}
            if len(versions) != 1:
                found.append(f"{run_id} was pinned, and was worked on by {versions}")
    return found


def test_a_rolling_deploy_loses_and_repeats_nothing(tmp_path: Path, database: str) -> None:
    assert deploy(tmp_path, database, amounts.DEPLOYED_RUNS.test, amounts.DEPLOYS.test) == []


def test_several_processes_of_an_asyncio_application_tell_their_metrics(
    place: Path, database: str, tide: Tidebase
) -> None:
    ids = [made.run_id for made in tide.enqueue_many([{"workflow": "later"}] * 20)]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ("--processes", "2", "--metrics", str(port))
    worker = start(place, database, *options, target="application:later")
    try:
        poll("all are done", lambda: all(tide.runs.get(run_id).status == "completed" for run_id in ids))
        poll("both were seen", lambda: len(tide.queues.workers()) == 2)

        def told() -> str:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
                    return str(answer.read().decode())
            except OSError:
                return ""

        text = poll("it tells its metrics", told)
        assert 'tidebase_queue_ready_runs{queue="default"} 0.0' in text and "tidebase_workers 2.0" in text
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(PATIENCE_S) == 0
    finally:
        worker.kill()
        worker.wait()


@pytest.mark.parametrize(
    "target, said",
    [
        ("application", "names no object"),
        ("nowhere:tide", "there is no module 'nowhere'"),
        ("application:nothing", "has no 'nothing'"),
        ("application:pay", "is a function"),
    ],
)
def test_an_application_that_is_none_is_refused_in_words(place: Path, database: str, target: str, said: str) -> None:
    worker = start(place, database, target=target)
    assert worker.wait(PATIENCE_S) == 1
    assert said in (place / "log").read_text()
