"""An agent is killed with ``kill -9`` in the middle of a step, and another process goes on where it stopped.

    python demo.py ["A question about Python"]

The stage for research_agent.py. It starts the agent as a process of its own, follows the run's events, and kills the
process while its third step is at work. Then it starts a second process for the same run, and shows from the database
what happened: which steps were executed by whom, under which lease, and that the log has no gap. A ledger file that
only the steps' own functions write to is the witness that does not go through the database. The exit code is 0 if
everything was as it should be.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import textwrap
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path

import psycopg
import research_agent
from psycopg.conninfo import conninfo_to_dict

from tidebase import Event, RunInfo, StepInfo, Tidebase, TidebaseError
from tidebase.core.sources import named_url

LEASE_S = 2.5  # short, so that nobody waits long for the dead worker's lease to run out
KILL_AT = 3  # the document that the first worker does not read to its end
PATIENCE_S = 180.0  # for a worker; with a language model, drafting takes its time
STEPS = ("plan", "search", "read", "draft", "finalize")


def main() -> int:
    parser = argparse.ArgumentParser(description="Kills an agent in the middle of a step and lets another go on.")
    parser.add_argument("question", nargs="?", default=research_agent.QUESTION)
    question = parser.parse_args().question
    own = named_url() is None  # then a local Postgres is started, and goes on running
    with Tidebase(lease_s=LEASE_S) as tide, tempfile.TemporaryDirectory() as folder:
        tide.migrate()
        stage = Stage(tide, Path(folder), question)
        say(paint("An agent is killed in the middle of a step, and another goes on", "bold"))
        say(f"\n  question  {question}\n  database  {where(tide.url)}")
        try:
            run_id = perform(stage)
            failed = report(stage, run_id)
        except (Stopped, TidebaseError) as error:
            say(f"\n{stage.worker_log()}\n{paint(str(error), 'red')}")
            return 1
    heading("What to look at next")
    say("  python/examples/research_agent.py is the agent; sql/examples/walkthrough.sql does it from psql.")
    say("  The run is still there:")
    for line in next_steps(tide.url if own else None, run_id):
        say(f"    {line}")
    for claim in failed:
        say(paint(f"\n  FAILED: {claim}", "red"))
    return 1 if failed else 0


class Stopped(Exception):
    """The demo cannot go on; the message says why."""


@dataclass
class Stage:
    """What the demo works with: the database, a folder for the ledgers and the workers' output, the question."""

    tide: Tidebase
    folder: Path
    question: str

    def new_run(self) -> str:
        return self.tide.runs.create("research-agent", research_agent.Question(self.question)).run_id

    def steps(self, run_id: str) -> dict[str, StepInfo]:
        return {step.name: step for step in self.tide.runs.steps(run_id)}

    def ledger(self, run_id: str) -> list[tuple[str, str]]:
        """What the steps' functions wrote down themselves: step and process id."""
        lines = (self.folder / f"{run_id}.ledger").read_text().splitlines()
        return [(step, pid) for step, pid in (line.split() for line in lines)]

    def worker_log(self) -> str:
        log = self.folder / "worker.log"
        return log.read_text(errors="replace") if log.exists() else ""

    @contextmanager
    def worker(self, run_id: str) -> Iterator[subprocess.Popen[bytes]]:
        """A worker process; it does not outlive the block."""
        command = [sys.executable, research_agent.__file__, "--run-id", run_id, "--lease-s", str(LEASE_S), "--"]
        environment = {**os.environ, "AGENT_LEDGER": str(self.folder / f"{run_id}.ledger")}
        if self.tide.url:  # else libpq's own variables lead the worker to the same database
            environment["TIDEBASE_DATABASE_URL"] = self.tide.url
        with open(self.folder / "worker.log", "ab") as log:
            process = subprocess.Popen([*command, self.question], stdout=log, stderr=log, env=environment)
        try:
            yield process
        finally:
            process.kill()
            process.wait()

    def follow(self, run_id: str, process: subprocess.Popen[bytes]) -> Iterator[Event]:
        """The events from now on, as they come, until the process ends."""
        seen = self.tide.runs.get(run_id).last_seq
        end = time.monotonic() + PATIENCE_S
        while True:
            alive = process.poll() is None  # asked first, so that what it wrote before it ended is still read
            for event in self.tide.runs.events(run_id, after=seen):
                seen = event.seq
                yield event
            if not alive:
                return
            if time.monotonic() > end:
                raise Stopped(f"the worker is at it for more than {PATIENCE_S:.0f} seconds")
            time.sleep(0.01)


def perform(stage: Stage) -> str:
    """The two acts. Returns the run's id."""
    heading("1  A worker begins, and dies")
    for _ in range(5):
        run_id = stage.new_run()
        if first_act(stage, run_id):
            break
        say("  The worker was through with the step before the signal reached it: once more, with a new run.\n")
    else:
        raise Stopped("five workers were quicker than the signal")

    heading("2  Another worker is given the same run id")
    lease = stage.tide.runs.get(run_id)
    if lease.lease_expires_at is not None:
        left = max(0.0, (lease.lease_expires_at - datetime.now(timezone.utc)).total_seconds())
        say(f"  the dead worker's lease, token {lease.lease_token}, has {left:.1f} s to go; then it may be taken over")
    with stage.worker(run_id) as process:
        say(f"  worker 2, pid {process.pid}, waits for that")
        for event in stage.follow(run_id, process):
            show(event)
            if event.type == "run.started":
                kept = [step.name for step in stage.tide.runs.steps(run_id) if step.status == "completed"]
                say(f"    {paint('replayed', 'green')}    {', '.join(kept)}")
        if process.returncode != 0:
            raise Stopped(f"worker 2 ended with exit code {process.returncode}")
    return run_id


def first_act(stage: Stage, run_id: str) -> bool:
    """Lets a worker work, and kills it while it reads. Returns whether that hit it in the middle of the step."""
    with stage.worker(run_id) as process:
        say(f"  worker 1, pid {process.pid}, run {run_id}")
        for event in stage.follow(run_id, process):
            show(event)
            if event.type == "agent.reading" and event.payload["number"] == min(KILL_AT, event.payload["of"]):
                process.kill()
                process.wait()
                unfinished = stage.steps(run_id)["read"].status == "running"
                if unfinished:
                    say(paint(f"    kill -9     {process.pid}, in the middle of the step", "red"))
                return unfinished
        raise Stopped(f"worker 1 ended by itself with exit code {process.returncode}")


@dataclass
class Story:
    """What the database and the ledger tell about a run.

    Attributes:
        begun: how often each step was begun, by the log. completed: how often it was completed.
        ran: how often each step's function ran, by the ledger.
        leases: the payloads of the run.started events.
    """

    run: RunInfo
    steps: dict[str, StepInfo]
    events: list[Event]
    ledger: list[tuple[str, str]]

    def __post_init__(self) -> None:
        self.begun = Counter(event.payload["name"] for event in self.events if event.type == "step.started")
        self.completed = Counter(event.payload["name"] for event in self.events if event.type == "step.completed")
        self.ran = Counter(step for step, _ in self.ledger)
        self.leases = [event.payload for event in self.events if event.type == "run.started"]

    def attempts(self, step: str) -> list[int]:
        """The attempts at the run in which a step was begun."""
        attempt_of = {lease["token"]: lease["attempt"] for lease in self.leases}
        began = [event.payload for event in self.events if event.type == "step.started"]
        return [attempt_of[payload["token"]] for payload in began if payload["name"] == step]

    def took_place(self, step: str) -> str:
        """In words: in which attempt a step was executed."""
        attempts = self.attempts(step)
        if attempts[0] < attempts[-1]:
            return f"cut off in attempt {attempts[0]}, executed in {attempts[-1]}"
        replayed = f", replayed in {self.run.attempt}" if attempts[-1] < self.run.attempt else ""
        return f"executed in attempt {attempts[-1]}{replayed}"


def report(stage: Stage, run_id: str) -> list[str]:
    """Shows what happened; returns the claims that do not hold."""
    runs = stage.tide.runs
    story = Story(runs.get(run_id), stage.steps(run_id), list(runs.events(run_id)), stage.ledger(run_id))

    heading("3  What the database says")
    say(paint("  step      attempt                               begun  completed  token    took  in ledger", "dim"))
    for name in STEPS:
        step = story.steps[name]
        say(
            f"  {name:<8}  {story.took_place(name):<36}  {story.begun[name]:>5}  {story.completed[name]:>9}"
            f"  {step.lease_token:>5}  {seconds(step.duration):>6}  {story.ran[name]:>9}"
        )
    say(paint("\n  events    the log", "dim"))
    for numbers, subject, what in chapters(story.events):
        say(f"  {numbers:<8}  {subject:<13}  {what}".rstrip())

    # The run is completed: it answers with its stored result, and nothing is executed.
    article = stage.tide.run("research-agent", research_agent.research, run_id=run_id)

    heading("4  Checks")
    failed = []
    for claim, holds in checks(stage, story):
        say(f"  {paint('ok', 'green') if holds else paint('FAILED', 'red')}  {claim}")
        if not holds:
            failed.append(claim)

    heading("5  The article")
    say(textwrap.indent(research_agent.render(article), "  "))
    return failed


def checks(stage: Stage, story: Story) -> Iterator[tuple[str, bool]]:
    """What must hold, and whether it does."""
    run_id = story.run.run_id
    numbers = [event.seq for event in story.events]
    first, second = story.leases[0]["token"], story.leases[-1]["token"]
    once = {name for name in STEPS if story.completed[name] == 1}
    yield f"the log is 1..{len(numbers)}, without a gap", numbers == list(range(1, story.run.last_seq + 1))
    yield f"there were two leases, and the tokens grow: {first}, {second}", len(story.leases) == 2 and first < second
    yield (
        "plan and search were executed once, in attempt 1, and never again",
        {"plan", "search"} <= once and story.attempts("plan") == story.attempts("search") == [1],
    )
    yield (
        "read was begun in both attempts and completed once, in attempt 2",
        "read" in once and story.attempts("read") == [1, 2] and story.steps["read"].lease_token == second,
    )
    yield (
        "draft and finalize were executed in attempt 2 and completed once",
        {"draft", "finalize"} <= once and {*story.attempts("draft"), *story.attempts("finalize")} == {2},
    )
    yield (
        "the ledger agrees: read ran in two processes, plan and search ran once",
        story.ran == story.begun and len({pid for step, pid in story.ledger if step == "read"}) == 2,
    )
    yield (
        "asked again, the completed run gave its result, and nothing was executed for it",
        stage.ledger(run_id) == story.ledger and stage.tide.runs.get(run_id) == story.run,
    )
    refusal = write_as_zombie(stage.tide, run_id, first)
    yield f"a write with the dead worker's token is refused: {refusal}", refusal.startswith("TB003")


def write_as_zombie(tide: Tidebase, run_id: str, token: int) -> str:
    """What the dead worker would be told if it came back and tried to complete its step."""
    with psycopg.connect(tide.url, autocommit=True) as connection:
        try:
            connection.execute("select tidebase.complete_step(%s, %s, 'read', '[]')", [run_id, token])
        except psycopg.Error as error:
            return f"{error.sqlstate} {'lease lost' if error.sqlstate == 'TB003' else error.diag.message_primary}"
    return "it was not"


def chapters(events: list[Event]) -> Iterator[tuple[str, str, str]]:
    """The log in few lines: events in a row about the same step, with the first and the last one's number."""
    subject = ""
    row: list[Event] = []
    for event in events:
        own = event.payload["name"] if event.type.startswith("step.") else event.type
        if row and own != subject and event.type != "agent.reading":
            yield chapter(subject, row)
            row = []
        subject = subject if row else own
        row.append(event)
    yield chapter(subject, row)


def chapter(subject: str, row: list[Event]) -> tuple[str, str, str]:
    numbers = str(row[0].seq) if len(row) == 1 else f"{row[0].seq}-{row[-1].seq}"
    if subject == "run.started":
        lease = row[0].payload
        lapsed = f"; the lease with token {lease['lapsed']['token']} had run out" if "lapsed" in lease else ""
        return numbers, subject, f"attempt {lease['attempt']}, token {lease['token']}{lapsed}"
    kinds = Counter(event.type.removeprefix("step.") for event in row if not event.type.startswith("run."))
    return numbers, subject, ", ".join(kind if n == 1 else f"{kind} x{n}" for kind, n in kinds.items())


def show(event: Event) -> None:
    """One line for an event as it comes."""
    payload = event.payload
    if event.type == "run.started":
        say(f"    lease       attempt {payload['attempt']}, token {payload['token']}")
    elif event.type == "agent.reading":
        say(f"    read        {payload['number']} of {payload['of']}  {payload['document']}")
    elif event.type == "step.completed":
        say(f"    {payload['name']:<10}  {paint('completed', 'green')}")
    elif event.type == "step.failed":
        say(f"    {payload['name']:<10}  {paint('failed', 'red')}: {payload['decision']}")
    elif event.type == "run.completed":
        say(f"    run         {paint('completed', 'green')}")


def seconds(duration: timedelta | None) -> str:
    if duration is None:
        return "-"
    took = duration.total_seconds()
    return f"{took:.1f} s" if took >= 1 else f"{took * 1000:.0f} ms"


def where(url: str) -> str:
    """The database in words, without a password."""
    parts = conninfo_to_dict(url)
    name = parts.get("dbname") or os.environ.get("PGDATABASE") or "the default database"
    return f"{name} at {parts.get('host') or os.environ.get('PGHOST') or 'the default host'}"


def next_steps(url: str | None, run_id: str) -> Iterator[str]:
    """What to type to look at the run; the URL is that of the local Postgres that was started, if one was."""
    script = Path(sys.executable).with_name("tidebase")
    program = os.path.relpath(script) if script.exists() else f"{sys.executable} -m tidebase"
    if url is not None:
        yield f"export TIDEBASE_DATABASE_URL='{url}'"
    yield f"{program} studio {run_id}    # opens a page in your browser: the run, live, with all that it left"
    yield f"{program} timeline {run_id}"
    yield 'psql "$TIDEBASE_DATABASE_URL" -c "table tidebase.step_timeline"' if url else "table tidebase.step_timeline;"
    if url is not None:
        yield f"{program} dev --stop    # stops the local Postgres, which goes on running until then; its data stays"


def heading(text: str) -> None:
    say(f"\n{paint(text, 'bold')}\n")


def say(text: str) -> None:
    print(text, flush=True)


def paint(text: str, style: str) -> str:
    """Colour, where a person looks at a terminal and has not asked for none (https://no-color.org)."""
    if not sys.stdout.isatty() or os.environ.get("NO_COLOR"):
        return text
    code = {"bold": 1, "dim": 2, "red": 31, "green": 32}[style]
    return f"\x1b[{code}m{text}\x1b[0m"


if __name__ == "__main__":
    sys.exit(main())
