"""The command line: what every command prints, exit codes, and a line instead of a traceback."""

from __future__ import annotations

import json
import os
import pty
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from tidebase import Run, Tidebase, TidebaseError
from tidebase.cli import main

from .conftest import Server, on_every_version
from .probes.support import Connection, grant, new_run, value
from .support.gate import expire
from .support.patience import PATIENCE_S

ON_NEWEST = True

COMMAND = [sys.executable, "-c", "from tidebase.cli import main; main()"]
NOBODY = "postgresql://127.0.0.1:1/x"


def environment(database: str | None, **more: str) -> dict[str, str]:
    return {**os.environ, **({"TIDEBASE_DATABASE_URL": database} if database else {}), **more}


def tidebase(*args: str, database: str | None = None, **more: str) -> subprocess.CompletedProcess[str]:
    settings = environment(database, **more)
    return subprocess.run([*COMMAND, *args], env=settings, capture_output=True, text=True, timeout=PATIENCE_S)


@contextmanager
def started(database: str, *args: str) -> Iterator[subprocess.Popen[str]]:
    """The command in a process of its own, which is killed if it outlives the block."""
    pipe = subprocess.PIPE
    process = subprocess.Popen([*COMMAND, *args], env=environment(database), stdout=pipe, stderr=pipe, text=True)
    with process:
        try:
            yield process
        finally:
            process.kill()


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """The exit code, and what it still had to say."""
    output, errors = process.communicate(timeout=PATIENCE_S)
    return process.returncode, output, errors


class Terminal:
    """The commands called in this process, on one database."""

    def __init__(self, database: str) -> None:
        self.database = database

    def call(self, command: str, *args: str, **options: Any) -> Result:
        """Whatever happens, it is no unforeseen exception."""
        result = CliRunner().invoke(main, [command, *args, "--database", self.database], **options)
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exc_info
        assert "Traceback" not in result.stderr
        return result

    def text(self, *args: str, code: int = 0, **options: Any) -> str:
        """What it prints, having exited with the code."""
        result = self.call(*args, **options)
        assert result.exit_code == code, result.output
        return result.stdout

    def json(self, *args: str, code: int = 0, **options: Any) -> Any:
        return json.loads(self.text(*args, "--json", code=code, **options))

    def error(self, *args: str, code: int = 1, **options: Any) -> str:
        """The one line with which it fails."""
        result = self.call(*args, **options)
        assert (result.exit_code, result.stdout) == (code, ""), result.output
        line = result.stderr.splitlines()[-1]
        assert line.startswith("Error: ") and (code == 2 or result.stderr.count("\n") == 1), result.stderr
        return line


@pytest.fixture
def terminal(database: str) -> Terminal:
    return Terminal(database)


def finished(tide: Tidebase, run_id: str, output: Any = "out", workflow: str = "w") -> None:
    tide.run(workflow, lambda run, _: run.step("s", lambda: output), run_id=run_id)


# -- the schema


def test_migrate_and_check(empty_database: str) -> None:
    behind = tidebase("migrate", "--check", database=empty_database)
    assert (behind.returncode, "migration to apply: 0001.core" in behind.stdout) == (1, True)
    assert tidebase("migrate", database=empty_database).returncode == 0
    current = tidebase("migrate", "--check", "--json", "--database", empty_database)
    assert (current.returncode, json.loads(current.stdout)["current"]) == (0, True)
    assert "up to date" in tidebase("migrate", database=empty_database).stdout
    back = tidebase("migrate", "--rollback-to", "nothing", database=empty_database)
    assert "migration rolled back: 0001.core" in back.stdout
    assert tidebase("migrate", "--check", database=empty_database).returncode == 1


def test_migrate_in_json_and_with_a_migration_that_is_not_there(empty_database: str) -> None:
    terminal = Terminal(empty_database)
    assert terminal.json("migrate", "--check", code=1)["current"] is False
    report = terminal.json("migrate")
    assert report["migrations"][0] == "0001.core" and report["current"] is False
    assert "0009.nothing" in terminal.error("migrate", "--rollback-to", "0009.nothing")
    taken_back = terminal.json("migrate", "--rollback-to", "0001.core")["rolled_back"]
    assert "0002.gates" in taken_back and "0001.core" not in taken_back


def test_a_postgres_of_ones_own(tmp_path: Path) -> None:
    folder = {"TIDEBASE_LOCAL_DATA": str(tmp_path / "a folder")}
    first = tidebase("dev", **folder)
    assert first.returncode == 0, first.stderr
    try:
        name, _, url = shlex.split(first.stdout)[1].partition("=")
        assert name == "TIDEBASE_DATABASE_URL" and first.stdout.startswith("export ")
        assert tidebase("migrate", "--check", database=url).returncode == 0
        again = json.loads(tidebase("dev", "--json", **folder).stdout)
        assert again["url"] == url
    finally:
        stopped = tidebase("dev", "--stop", **folder)
    assert stopped.stdout == f"stopped; the data is in {again['data']}\n"
    assert "Traceback" not in tidebase("dev", "--stop", "--json", **folder).stderr


# -- mistakes, help


def test_a_users_mistake_is_a_line() -> None:
    for args, code in (
        (("migrate", "--database", NOBODY), 1),
        (("migrate", "--check", "--rollback-to", "0001.core"), 2),
        (("nonsense",), 2),
    ):
        result = tidebase(*args)
        assert result.returncode == code
        assert "Traceback" not in result.stderr and "rror: " in result.stderr


def test_help_and_version() -> None:
    assert "migrate" in tidebase("--help").stdout
    assert "--check" in tidebase("migrate", "-h").stdout
    assert tidebase("--version").stdout.startswith("tidebase, version ")


@pytest.mark.parametrize("name", sorted(main.commands))
def test_the_help_of_a_command_explains_it_and_every_option(name: str) -> None:
    command = main.commands[name]
    result = CliRunner().invoke(main, [name, "--help"])
    assert result.exit_code == 0 and command.help and command.get_short_help_str(1000) in main_help()
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help and parameter.help.endswith((".", "]", ")"))
            assert all(spelling in result.stdout for spelling in (*parameter.opts, *parameter.secondary_opts))
        else:
            assert parameter.make_metavar(click.Context(command)) in result.stdout


def main_help() -> str:
    return CliRunner().invoke(main, ["--help"], terminal_width=1000).stdout


#: A call of every command that needs a database.
CALLS = (
    ["migrate"],
    ["migrate", "--check"],
    ["runs"],
    ["enqueue", "w"],
    ["queues"],
    ["queue", "q"],
    ["invocations", "q"],
    ["workers"],
    ["schedules"],
    ["schedule", "s"],
    ["retry", "--queue", "q"],
    ["move", "other", "--queue", "q"],
    ["show", "r"],
    ["step", "r", "s"],
    ["timeline", "r"],
    ["events", "r"],
    ["events", "r", "--follow"],
    ["state", "r"],
    ["state", "r", "--versions"],
    ["diff", "r", "s"],
    ["tree", "r"],
    ["usage", "r"],
    ["gates", "r"],
    ["secret", "r", "g"],
    ["decide", "r", "g", "approved"],
    ["reviews", "r"],
    ["review", "r", "s", "fail"],
    ["stalled"],
    ["cancel", "r"],
    ["cancel", "--queue", "q"],
    ["recover", "r"],
    ["fork", "r"],
    ["budget", "r", "--none"],
    ["channels", "r"],
    ["size", "r"],
    ["compact", "r"],
    ["purge", "--older-than", "1d"],
    ["reconcile"],
    ["doctor"],
    ["roles"],
    ["router", "status"],
)


def test_each_command_is_called_here() -> None:
    assert {call[0] for call in CALLS} | {"dev", "mcp", "replay-check", "serve", "studio", "worker"} == set(
        main.commands
    )


@pytest.mark.parametrize("call", CALLS, ids=" ".join)
def test_a_database_that_is_down_is_a_line(call: list[str]) -> None:
    terminal = Terminal(NOBODY)
    assert "cannot connect to the database" in terminal.error(*call)
    assert "cannot connect to the database" in terminal.error(*call, "--json")


@pytest.mark.parametrize(
    "url", ["nonsense", "postgresql://[", "host=127.0.0.1 port=x", "postgresql://127.0.0.1:1/\x1b"]
)
def test_a_connection_string_that_is_none_is_a_line(url: str) -> None:
    assert "\x1b" not in Terminal(url).error("runs", color=True)


def test_a_database_without_the_schema_is_a_line(empty_database: str) -> None:
    terminal = Terminal(empty_database)
    for call in CALLS:
        if call[0] not in ("migrate", "doctor"):
            assert "tidebase migrate" in terminal.error(*call)


def test_a_run_that_is_not_there_is_a_line(terminal: Terminal, tide: Tidebase) -> None:
    tide.runs.create("w", run_id="s")
    about_a_run = [call for call in CALLS if call[1:2] == ["r"]]
    for call in [*about_a_run, ["diff", "s", "r"], ["runs", "--before", "r"]]:
        assert "run 'r' does not exist [TB001]" in terminal.error(*call), call
    assert "run 's' has no gate 'g' [TB012]" in terminal.error("secret", "s", "g")
    assert "run 's' has no step 'x'. See: tidebase show s" in terminal.error("step", "s", "x")


def test_every_command_takes_the_beginning_of_an_id(terminal: Terminal, tide: Tidebase) -> None:
    for run_id in ("apple", "apricot"):
        finished(tide, run_id)
    asked(tide, "banana")
    taking = [
        name
        for name, command in main.commands.items()
        if any(p.metavar == "RUN" and isinstance(p, click.Argument) for p in command.params)
    ]
    calls = {call[0]: ["app", *call[2:]] for call in CALLS if len(call) > 1} | {
        "compact": ["app"],
        "diff": ["app", "app"],
        "runs": ["--before", "ban"],
    }
    for name in [*taking, "compact"]:
        assert "TB001" not in terminal.call(name, *calls[name]).output, name
        several = terminal.error(name, *("ap" if word in ("app", "ban") else word for word in calls[name]))
        assert "2 runs begin with 'ap': apple, apricot [TB002]. Give more of the id." in several, name
    assert [run["run_id"] for run in terminal.json("runs", "--before", "ban")] == ["apricot", "apple"]
    assert terminal.text("decide", "ban", "go", "approved") == "decided: approved\n"


@pytest.mark.parametrize(
    "call",
    [
        ["show"],
        ["show", "r", "s"],
        ["runs", "--max", "0"],
        ["runs", "--newer-than", "yesterday"],
        ["runs", "--newer-than", "5"],
        ["runs", "--older-than", "-1d"],
        ["runs", "--older-than", "1000000d"],
        ["runs", "--older-than", "9" * 400 + "d"],
        ["events", "r", "--after", "-1"],
        ["events", "r", "--after", "9" * 30],
        ["timeline", "r", "--width", "39"],
        ["state", "r", "--at", "noon"],
        ["state", "r", "--at", "9" * 12 + "w"],
        ["state", "r", "--version", "one"],
        ["state", "r", "--version", "-1"],
        ["state", "r", "--version", "9" * 30],
        ["state", "r", "--seq", "9" * 30],
        ["state", "r", "--version", "1", "--seq", "2"],
        ["state", "r", "--at", "1m", "--label", "l"],
        ["state", "r", "--label", "l", "--versions"],
        ["decide", "r", "g"],
        ["decide", "r", "g", "approved", "--payload", "{"],
        ["decide", "r", "g", "approved", "--payload", "[" * 100_000],
        ["decide", "r", "g", "approved", "--payload", "@/nowhere/at/all"],
        ["decide", "r", "g", "approved", "--payload", "@/"],
        ["review", "r", "s", "perhaps"],
        ["review", "r", "s", "retry", "--output", "1"],
        ["fork", "r", "--through-step", "s", "--through-seq", "1"],
        ["fork", "r", "--through-seq", "9" * 30],
        ["fork", "r", "--input", "nonsense"],
        ["budget", "r"],
        ["budget", "r", "--none", "--tokens", "1"],
        ["budget", "r", "--none", "--cost-usd", "1"],
        ["budget", "r", "--tokens", "-1"],
        ["budget", "r", "--tokens", "9" * 30],
        ["budget", "r", "--cost-usd", "much"],
        ["budget", "r", "--cost-usd", "-1"],
        ["budget", "r", "--cost-usd", "nan"],
        ["budget", "r", "--cost-usd", "inf"],
        ["compact"],
        ["purge"],
        ["purge", "--older-than", "1d", "--status", "running"],
        ["reconcile", "--every", "0s"],
        ["reconcile", "--every", "1000000d"],
        ["serve", "--port", "65536"],
        ["serve", "--lease", "0s"],
    ],
    ids=lambda call: " ".join(call)[:50],
)
def test_a_mistake_in_the_command_line(call: list[str]) -> None:
    assert len(Terminal(NOBODY).error(*call, code=2)) < 500


def test_bytes_that_are_no_text_are_a_line(database: str) -> None:
    result = subprocess.run(
        [*COMMAND, "show", b"\xff"], env=environment(database), capture_output=True, timeout=PATIENCE_S
    )
    assert (result.returncode, result.stdout) == (1, b"") and result.stderr.startswith(b"Error: ")


# -- looking


def test_runs_are_listed_and_filtered(terminal: Terminal, tide: Tidebase, db: Connection) -> None:
    assert terminal.text("runs") == "no runs\n" and terminal.json("runs") == []
    finished(tide, "old", workflow="other")
    for table in ("runs", "run_heads"):
        db.execute(f"update tidebase.{table} set created_at = created_at - interval '2 hours'")
    finished(tide, "new")
    tide.runs.create("w", run_id="newest")
    lines = terminal.text("runs").splitlines()
    assert [line.split()[:3] for line in lines] == [
        ["RUN", "WORKFLOW", "STATUS"],
        ["newest", "w", "pending"],
        ["new", "w", "completed"],
        ["old", "other", "completed"],
    ]
    assert lines[3].endswith("2h ago") and lines[1].endswith("s ago")
    for filters, expected in (
        ([], ["newest", "new", "old"]),
        (["--status", "completed"], ["new", "old"]),
        (["--workflow", "w"], ["newest", "new"]),
        (["--status", "pending", "--workflow", "other"], []),
        (["--newer-than", "1h30m"], ["newest", "new"]),
        (["--newer-than", "0s"], []),
        (["--older-than", "1h30m"], ["old"]),
        (["--older-than", "0s"], ["newest", "new", "old"]),
        (["--before", "newest"], ["new", "old"]),
        (["--before", "old"], []),
        (["--max", "1"], ["newest"]),
        (["--before", "newest", "--max", "1"], ["new"]),
    ):
        assert [run["run_id"] for run in terminal.json("runs", *filters)] == expected, filters


def test_more_runs_than_a_page_are_listed_once_each(terminal: Terminal, db: Connection) -> None:
    db.execute("select tidebase.create_run('w', run_id => 'r' || n) from generate_series(1, 205) n")
    assert len(terminal.json("runs")) == 50
    for most, expected in (("100", 100), ("101", 101), ("200", 200), ("1000", 205), ("9" * 30, 205)):
        listed = [run["run_id"] for run in terminal.json("runs", "--max", most)]
        assert len(listed) == len(set(listed)) == expected
    assert len(terminal.text("runs", "--max", "205").splitlines()) == 206


def test_a_status_says_what_one_would_ask_next(terminal: Terminal, tide: Tidebase, db: Connection) -> None:
    asked(tide, "waiting", suspend=True)
    grant(db, new_run(db, run_id="left"))
    expire(db, "left")
    text = terminal.text("runs")
    assert "waiting (go)" in text and "running (lease lapsed)" in text
    assert "waiting (go)" in terminal.text("show", "waiting")


def asked(tide: Tidebase, run_id: str, *options: str, suspend: bool = False, **more: Any) -> str:
    """A run with the open gate `go`, whose secret is returned."""
    with tide.runs.attach("w", run_id=run_id) as session:
        opening = session.gates.begin("go", "Go on?", options=list(options or ("approved", "rejected")), **more)
        if suspend:
            with pytest.raises(BaseException, match="waits for 'go'"):
                session.gate("go", "Go on?", suspend=True)
    return opening.secret


def eventful(run: Run, _: Any) -> str:
    """Does everything that a run can do."""
    run.state.set({"n": 1}, label="first", reason="begin")
    run.state.patch({"n": 2}, importance="milestone")
    run.usage.record(provider="p", model="m", input_tokens=10, output_tokens=5, cost_usd="0.25", step="s")
    run.child("kid", lambda child, _: child.step("k", lambda: 1), name="one")
    run.emit("note", {"text": "hello"})
    return run.step("s", lambda: "out", input={"a": 1})


def test_a_run_is_shown(terminal: Terminal, tide: Tidebase) -> None:
    tide.run("w", eventful, run_id="r", metadata={"team": "a"})
    tide.runs.fork("r", "f")
    text = terminal.text("show", "r")
    for part in (
        "run_id ",
        "r\n",
        "completed",
        '{"team": "a"}',
        "attempts\n",
        "steps\n",
        "children and forks\n",
        "kid",
    ):
        assert part in text
    assert (
        "usage\ntree_" not in text and "cost_usd" in text and "0.25" in text and "error" not in text.split("steps")[0]
    )
    whole = terminal.json("show", "r")
    assert whole["run"]["status"] == "completed" and whole["run"]["result"] == "out"
    assert [step["name"] for step in whole["steps"]] == ["s"] and len(whole["attempts"]) == 1
    assert {child["edge_type"] for child in whole["children"]} >= {"fork"} and len(whole["children"]) == 2
    assert whole["usage"]["cost_usd"] == "0.25" and whole["gates"] == []


def test_of_many_steps_the_latest_are_shown(terminal: Terminal, tide: Tidebase) -> None:
    tide.run("w", lambda run, _: [run.step(f"s{n}", lambda: "out") for n in range(105)], run_id="r")
    names = [f"s{n}" for n in range(105)]
    assert "s5 " in terminal.text("show", "r") and "s4 " not in terminal.text("show", "r")
    assert "steps, the latest 100 (see --steps)\n" in terminal.text("show", "r")
    for most in (0, 3, 104, 105, 2**31 - 1):
        shown = [step["name"] for step in terminal.json("show", "r", "--steps", str(most))["steps"]]
        assert shown == names[max(105 - most, 0) :]


def test_a_failed_run_and_its_gate_are_shown(terminal: Terminal, tide: Tidebase) -> None:
    def work(run: Run, _: Any) -> None:
        run.gates.begin("go", "Go on?")
        run.step("s", lambda: 1 / 0)

    with pytest.raises(ZeroDivisionError):
        tide.run("w", work, run_id="r")
    text = terminal.text("show", "r")
    assert "error" in text and "ZeroDivisionError: division by zero" in text and "Go on?" in text
    assert terminal.json("show", "r")["gates"][0]["status"] == "pending"


def test_a_timeline_is_drawn_and_written(terminal: Terminal, tide: Tidebase, tmp_path: Path) -> None:
    tide.run("w", eventful, run_id="r")
    text = terminal.text("timeline", "r", "--width", "70")
    assert text.startswith("r  w  completed") and "━" in text and "kid" not in text and "child one" in text
    assert max(map(len, text.splitlines())) <= 70
    assert "\x1b[32m" in terminal.text("timeline", "r", color=True)
    assert {bar["kind"] for bar in terminal.json("timeline", "r")["bars"]} >= {"attempt", "step"}
    file = tmp_path / "r.svg"
    assert terminal.text("timeline", "r", "--svg", str(file)) == f"written: {file}\n"
    assert file.read_text("utf-8").startswith("<svg ")
    assert terminal.json("timeline", "r", "--svg", str(file))["run_id"] == "r"
    assert "No such file" in terminal.error("timeline", "r", "--svg", str(tmp_path / "nowhere" / "r.svg"))


def test_the_log_is_printed(terminal: Terminal, tide: Tidebase) -> None:
    finished(tide, "r")
    lines = terminal.text("events", "r").splitlines()
    assert [line.split()[0] for line in lines] == ["1", "2", "3", "4", "5"] and "run.completed" in lines[-1]
    objects = [json.loads(line) for line in terminal.text("events", "r", "--json").splitlines()]
    assert [event["seq"] for event in objects] == [1, 2, 3, 4, 5] and objects[2]["payload"]["name"] == "s"
    assert objects[0]["created_at"].endswith("Z")
    assert terminal.text("events", "r", "--after", "4").count("\n") == 1
    assert terminal.text("events", "r", "--after", "5") == terminal.text("events", "r", "--after", "99") == ""
    assert terminal.text("events", "r", "--follow") == "\n".join(lines) + "\n"
    assert terminal.text("events", "r", "-f", "--after", "5") == ""


def test_following_ends_when_the_run_does(database: str, tide: Tidebase) -> None:
    session = tide.runs.attach("w", run_id="r")
    with started(database, "events", "r", "--follow", "--json") as process:
        assert process.stdout is not None
        first = [json.loads(process.stdout.readline()) for _ in range(2)]
        assert [event["type"] for event in first] == ["run.created", "run.started"]
        session.step("s", lambda: "x" * 100_000)
        then = [json.loads(process.stdout.readline())["type"] for _ in range(2)]
        assert then == ["step.started", "step.completed"] and process.poll() is None
        session.complete()
        code, rest, errors = ended(process)
    assert (code, errors, json.loads(rest)["type"]) == (0, "", "run.completed")


def test_following_is_interrupted(database: str, tide: Tidebase) -> None:
    with tide.runs.attach("w", run_id="r"), started(database, "events", "r", "-f") as process:
        assert process.stdout is not None
        assert "run.created" in process.stdout.readline()
        process.send_signal(signal.SIGINT)
        code, _, errors = ended(process)
    assert (code, errors) == (130, "")


def test_a_reader_that_goes_away_ends_it_quietly(database: str, db: Connection) -> None:
    run_id = new_run(db)
    token = grant(db, run_id)
    fill = "select tidebase.append_event(%s, %s, 'note', to_jsonb(repeat('x', 1000))) from generate_series(1, 300)"
    db.execute(fill, (run_id, token))
    for call in (["events", run_id], ["events", run_id, "--follow", "--json"], ["show", run_id], ["--help"]):
        with started(database, *call) as process:
            assert process.stdout is not None
            process.stdout.readline() if call[0] == "events" else None
            process.stdout.close()
            process.stdout = None
            code, _, errors = ended(process)
        assert errors == "" and (code == 0 or call == ["--help"])


def test_state_now_and_as_it_was(terminal: Terminal, tide: Tidebase, db: Connection) -> None:
    with tide.runs.attach("w", run_id="r") as session:
        assert "TB012" in terminal.error("state", "r")
        assert terminal.text("state", "r", "--versions") == "no state\n"
        session.state.set({"n": 1, "text": "søvn"}, label="first", reason="begin")
        session.state.patch({"n": 2})
        session.state.set([3], stream="side")
    db.execute("update tidebase.state_versions set created_at = created_at - interval '1 hour' where version = 1")
    first, second = {"n": 1, "text": "søvn"}, {"n": 2, "text": "søvn"}
    seqs = {version.version: str(version.seq) for version in tide.runs.state_versions("r", "main")}
    then = (datetime.now(timezone.utc) - timedelta(minutes=30)).replace(microsecond=0)
    for moment, expected in (
        ([], second),
        (["--version", "1"], first),
        (["--version", "2"], second),
        (["--seq", seqs[1]], first),
        (["--seq", seqs[2]], second),
        (["--label", "first"], first),
        (["--at", "30m"], first),
        (["--at", then.isoformat()], first),
        (["--at", then.strftime("%Y-%m-%dT%H:%M:%SZ")], first),
        (["--at", then.strftime("%Y-%m-%dT%H:%M:%S")], first),
        (["--at", "0s"], second),
        (["--stream", "side"], [3]),
    ):
        assert json.loads(terminal.text("state", "r", *moment)) == expected, moment
    assert "søvn" in terminal.text("state", "r")
    assert terminal.json("state", "r", "--label", "first")["reason"] == "begin"
    for wrong in (["--version", "3"], ["--seq", "1"], ["--at", "2h"], ["--label", "x"]):
        terminal.error("state", "r", *wrong)
    assert "TB012" in terminal.error("state", "r", "--stream", "x")
    assert [line.split()[0] for line in terminal.text("state", "r", "--versions").splitlines()] == ["VERSION", "2", "1"]
    assert [version["label"] for version in terminal.json("state", "r", "--versions")] == [None, "first"]


def test_two_runs_are_compared(terminal: Terminal, tide: Tidebase) -> None:
    finished(tide, "Left", "x" * 100)
    finished(tide, "right")
    assert terminal.text("diff", "Left", "Left") == "no difference\n"
    assert terminal.json("diff", "Left", "Left") == []
    text = terminal.text("diff", "Left", "right", code=1)
    assert "step" in text and "out" in text and "x" * 60 in text and "x" * 61 not in text
    assert {difference["kind"] for difference in terminal.json("diff", "Left", "right", code=1)} >= {"step"}


def test_a_tree_is_printed(terminal: Terminal, tide: Tidebase) -> None:
    tide.run("w", eventful, run_id="r")
    tide.runs.fork("r", "f")
    root, *below = terminal.text("tree", "r").splitlines()
    assert root == "r  w  completed  1 step"
    assert sorted(line.split(": ")[0] for line in below) == ["    one", "  fork", "  one"]  # it is the fork's, too
    assert "  fork: f  w  pending  1 step" in below
    assert len(terminal.json("tree", "r")) == 4


def test_usage_is_printed(terminal: Terminal, tide: Tidebase) -> None:
    tide.runs.create("w", run_id="nothing")
    tide.run("w", eventful, run_id="r")
    text = terminal.text("usage", "r")
    assert "models\nPROVIDER" in text and "steps\nSTEP" in text and "0.25" in text
    assert terminal.text("usage", "nothing") == "tree_runs  1\n"
    whole = terminal.json("usage", "r")
    assert whole["totals"]["input_tokens"] == 10 and whole["by_model"][0]["model"] == "m"
    assert [row["step"] for row in whole["by_step"]] == ["s"]


def test_what_is_stored_does_not_drive_the_terminal(terminal: Terminal, tide: Tidebase, db: Connection) -> None:
    evil = "e\x1b]0;owned\x07\x1b[2J\x9b31m\r\n\x85\u2028\u202evil"
    name = f"{evil}-run"

    def work(run: Run, _: Any) -> None:
        run.state.set({evil: evil}, label=evil, reason=evil, metadata={evil: evil}, created_by=evil)
        run.usage.record(provider=evil, model=evil, cost_usd=1, label=evil, step=evil)
        run.child(evil, lambda child, _: evil, name=evil, edge_type=evil)
        run.gates.begin(evil, evil, options=[evil, "no"], data={evil: evil})
        run.emit(evil, {evil: [evil]})
        run.step(evil, lambda: evil, input=evil)
        run.step(f"{evil}2", lambda: raising(evil), side_effects=[evil], verified_by=evil)

    with Tidebase(terminal.database, holder=evil) as wicked, pytest.raises(BaseException, match="owned"):
        wicked.run(evil, work, run_id=name, metadata={evil: evil}, input=evil)
    tide.runs.fork(name, f"{name}-fork", reason=evil, actor=evil)
    held = new_run(db, run_id=f"{evil}-held", workflow=evil)
    grant(db, held, evil)
    for call, code in (
        (["runs"], 0),
        (["show", name], 0),
        (["step", name, f"{evil}2"], 0),
        (["timeline", name], 0),
        (["events", name], 0),
        (["state", name], 0),
        (["state", name, "--versions"], 0),
        (["diff", name, held], 1),
        (["tree", name], 0),
        (["usage", name], 0),
        (["gates"], 0),
        (["gates", "--all"], 0),
        (["decide", name, evil, "perhaps"], 1),
        (["decide", name, evil, evil, "--actor", evil], 0),
        (["decide", name, evil, "no"], 1),
        (["timeline", name], 0),
        (["reviews"], 0),
        (["stalled"], 1),
        (["recover", held], 1),
        (["cancel", held, "--reason", evil], 0),
        (["compact", held], 0),
        (["show", f"{name}-nothing"], 1),
    ):
        for format in ([], ["--json"]):
            result = terminal.call(*call, *format, color=True)
            if not (call[0] in ("decide", "cancel") and format):
                assert result.exit_code == code, (call, result.output)
            for word in ("\x1b]", "\x1b[2J", "\x9b", "\x07", "\r", "\x85", "\u2028", "\u202e"):
                assert word not in result.output, (call, format, word)
            if format and result.exit_code == 0:
                assert [json.loads(line) for line in result.stdout.splitlines()], call
    log = [json.loads(line) for line in terminal.text("events", name, "--json").splitlines()]
    assert {evil: [evil]} in [event["payload"] for event in log]


def on_a_terminal(database: str, *args: str, columns: int = 200) -> str:
    """What the command writes on a terminal."""
    ours, theirs = pty.openpty()
    settings = environment(database, COLUMNS=str(columns))
    with subprocess.Popen([*COMMAND, *args], env=settings, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        written = b""
        with suppress(OSError):  # on Linux, the end of a terminal is an error
            while chunk := os.read(ours, 65536):
                written += chunk
    os.close(ours)
    assert process.returncode == 0, written
    return written.decode()


def test_a_table_on_a_terminal_takes_names_as_they_are(database: str, tide: Tidebase) -> None:
    finished(tide, "[red]r[/red] :smile: \x1b]0;owned\x07")
    text = on_a_terminal(database, "runs")
    assert "[red]r[/red] :smile: \\u001b]0;owned" in text and "\x1b]0" not in text and "completed" in text


def test_an_id_is_whole_or_folded_however_narrow_the_terminal_is(database: str, tide: Tidebase) -> None:
    generated, long = tide.runs.create("a-workflow-with-a-long-name " * 4).run_id, "x" * 200
    tide.runs.create("w", run_id=long)
    narrow = on_a_terminal(database, "runs", columns=80)
    assert "".join(line.split()[0] for line in narrow.splitlines() if line.startswith("xx")) == long
    tide.runs.cancel(long)
    tide.runs.purge(timedelta(0))
    for columns in (80, 50):
        assert generated in on_a_terminal(database, "runs", columns=columns)


def failing(run: Run, _: Any) -> None:
    def sometimes() -> str:
        raise ValueError("no luck")

    run.step("fetch", lambda: {"rows": [1, 2]}, input={"url": "https://a.example"})
    run.step(
        "pay me",
        sometimes,
        retries=1,
        retry_delay_s=0,
        input={"amount": "12.50"},
        idempotency_key="k-1",
        side_effects=["card.charge"],
        verified_by="the bank",
    )


def test_inputs_outputs_and_tracebacks_are_shown(terminal: Terminal, tide: Tidebase) -> None:
    with pytest.raises(ValueError):
        tide.run("w", failing, run_id="r-1")
    shown = terminal.text("show", "r")
    for part in (
        '{"url": "https://a.example"}',
        '{"rows": [1, 2]}',
        "error of step pay me",
        'raise ValueError("no luck")',
        "ValueError: no luck\n",
        "Let another worker go on with it: tidebase recover r-1\n",
    ):
        assert part in shown, part
    step = terminal.text("step", "r", "pay me")
    for part in (
        "contract\nside_effects",
        "card.charge",
        "k-1",
        "the bank",
        'input\n{\n  "amount": "12.50"\n}\n',
        "tries\nSEQ",
        "decision: auto_retry",
        "decision: safe_replay",
        'raise ValueError("no luck")',
    ):
        assert part in step, part
    assert "error of attempt 1, attempt 2\n" in step and "output" not in step and "next" not in step
    whole = terminal.json("step", "r", "pay me")
    assert whole["step"]["input"] == {"amount": "12.50"} and "no luck" in whole["step"]["error"]["traceback"]
    assert [event["type"] for event in whole["tries"]] == ["step.started", "step.failed"] * 2
    quick = terminal.text("step", "r", "fetch")
    assert 'output\n{\n  "rows": [\n' in quick and "contract" not in quick and "Traceback" not in quick


def test_a_hint_is_the_next_command(terminal: Terminal, tide: Tidebase) -> None:
    """Each line that is proposed does what it says."""

    def unsafe(run: Run, _: Any) -> Any:
        return run.step("send it", lambda: raising("who knows"), side_effects=["email.send"])

    with pytest.raises(RuntimeError):
        tide.run("w", unsafe, run_id="it's r")
    line = "tidebase review 'it'\"'\"'s r' 'send it' retry"
    with pytest.raises(TidebaseError) as caught:
        tide.run("w", unsafe, run_id="it's r")
    places = [
        str(caught.value),
        terminal.text("show", "it"),
        terminal.text("step", "it", "send it"),
        terminal.call("reviews").stderr,
    ]
    assert all(line in place for place in places), places
    assert "tidebase step 'it'\"'\"'s r' 'send it'" in places[0]
    assert "tidebase reviews 'it'\"'\"'s r'" in terminal.call("stalled").stderr
    assert "pending" in terminal.text(*shlex.split(line)[1:])

    def asking(run: Run, _: Any) -> Any:
        return run.gate("--go", "Go on?", options=["yes", "no way"], suspend=True).decision

    line = "tidebase decide -- --r --go yes"
    for _ in range(2):
        with pytest.raises(TidebaseError) as caught:
            tide.run("w", asking, run_id="--r")
        places.append(str(caught.value))
    places[:4] = [
        CliRunner().invoke(main, ["show", "--database", terminal.database, "--", "--r"]).stdout,
        terminal.call("gates").stderr,
    ]
    assert all(f"{line} (or 'no way')" in place for place in places), places
    words = ["decide", "--database", terminal.database, *shlex.split(line)[2:]]
    assert CliRunner().invoke(main, words).stdout == "decided: yes\n"


def raising(message: str) -> None:
    raise RuntimeError(message)


def test_an_output_that_cannot_show_everything_is_no_failure(database: str, tide: Tidebase) -> None:
    finished(tide, "rød", "日本")
    for call in (["runs"], ["timeline", "rød"], ["show", "rød"], ["events", "rød", "--json"], ["show", "nø"]):
        settings = environment(database, PYTHONIOENCODING="latin-1")
        result = subprocess.run([*COMMAND, *call], env=settings, capture_output=True, timeout=PATIENCE_S)
        assert (result.returncode, b"Traceback" in result.stderr) == (call[1:] == ["nø"], False), result.stderr


# -- people


def test_gates_are_listed_and_decided_once(terminal: Terminal, tide: Tidebase) -> None:
    assert terminal.text("gates") == "no gate waits for a decision\n" and terminal.json("gates") == []
    assert terminal.text("gates", "--all") == "no gates\n"
    asked(tide, "r")
    asked(tide, "s")
    assert [gate["run_id"] for gate in terminal.json("gates")] == ["r", "s"]
    assert [gate["run_id"] for gate in terminal.json("gates", "s")] == ["s"]
    assert len(terminal.json("gates", "--max", "1")) == 1
    assert "approved|rejected" in terminal.text("gates", "r")
    assert (
        terminal.text("decide", "r", "go", "approved", "--actor", "ada", "--comment", "well") == "decided: approved\n"
    )
    refused = terminal.call("decide", "r", "go", "rejected")
    assert (refused.exit_code, refused.stderr) == (1, "not taken: it is approved by ada already\n")
    stands = terminal.json("decide", "r", "go", "rejected", code=1)
    assert (stands["accepted"], stands["decision"], stands["comment"]) == (False, "approved", "well")
    assert [gate["run_id"] for gate in terminal.json("gates")] == ["s"]
    assert [gate["status"] for gate in terminal.json("gates", "--all")] == ["decided", "pending"]
    assert "must be one of: approved, rejected" in terminal.error("decide", "s", "go", "perhaps")
    assert "TB012" in terminal.error("decide", "s", "stop", "approved")


def test_a_decision_of_two_people_is_counted(terminal: Terminal, tide: Tidebase) -> None:
    secret = asked(tide, "r", required_approvals=2)
    assert terminal.text("decide", "r", "go", "approved", "--actor", "ada") == "counted: 1 of 2 approvals\n"
    again = terminal.call("decide", "r", "go", "approved", "--actor", "bob")
    assert (again.exit_code, again.stderr) == (1, "not taken: it is pending already\n")
    assert terminal.text("secret", "r", "go") == f"{secret}\n"
    assert "TB009" in terminal.error("decide", "r", "go", "approved", "--secret", secret)
    personal = terminal.json("secret", "r", "go", "--voter", "bob")["secret"]
    assert terminal.text("decide", "r", "go", "approved", "--secret", personal) == "decided: approved\n"
    assert terminal.json("secret", "r", "go", code=1) == {"secret": None}
    assert terminal.call("secret", "r", "go").stderr == "the gate is decided\n"


def test_a_login_that_speaks_for_others_is_named_and_shown(terminal: Terminal, tide: Tidebase, db: Connection) -> None:
    asked(tide, "r", required_approvals=2)
    assert "TB009" in terminal.error("decide", "r", "go", "approved", "--voter", "ada")
    assert "speakers" not in terminal.call("doctor").stdout
    name = value(db, "select session_user::text")
    db.execute("insert into tidebase_private.settings values ('speakers', %s)", [f"{{{name}}}"])
    assert f"note     speakers: may vote for others: {name}\n" in terminal.call("doctor").stdout
    assert terminal.text("decide", "r", "go", "approved", "--voter", "ada") == "counted: 1 of 2 approvals\n"
    assert terminal.text("decide", "r", "go", "approved", "--voter", "bob") == "decided: approved\n"
    for wrong, text in (("gateway", "the setting speakers is 'gateway'"), ("{nobody}", "no such login: nobody")):
        db.execute("update tidebase_private.settings set value = %s where name = 'speakers'", [wrong])
        assert f"PROBLEM  speakers: {text}" in terminal.text("doctor", code=1)


def test_an_answer_is_given_as_json_by_file_or_standard_input(
    terminal: Terminal, tide: Tidebase, tmp_path: Path
) -> None:
    file = tmp_path / "answer.json"
    file.write_text('{"from": "a file: ø"}', "utf-8")
    for run_id, payload, given, expected in (
        ("json", '{"n": 1.5}', None, {"n": 1.5}),
        ("file", f"@{file}", None, {"from": "a file: ø"}),
        ("standard input", "-", "[1, 2]\n", [1, 2]),
        ("text", '"a"', None, "a"),
    ):
        asked(tide, run_id)
        decided = terminal.json("decide", run_id, "go", "approved", "--payload", payload, input=given)
        assert decided["payload"] == tide.gates.get(run_id, "go").payload == expected
    asked(tide, "wrong")
    assert "NaN" in terminal.error("decide", "wrong", "go", "approved", "--payload", "[NaN]").replace("nan", "NaN")
    terminal.error("decide", "wrong", "go", "approved", "--payload", '"\\u0000"')
    file.write_bytes(b"\xff")
    terminal.error("decide", "wrong", "go", "approved", "--payload", f"@{file}", code=2)
    terminal.error("decide", "wrong", "go", "approved", "--payload", "-", input="", code=2)


def outsider(server: Server, db: Connection, *roles: str) -> Terminal:
    """The database as somebody sees it who is no superuser and a member of these roles."""
    number = value(db, "select count(*) from pg_roles")
    name = f"outsider{number}_{value(db, 'select current_database()')}"
    db.execute(f"create role {name} login")
    for role in roles:
        db.execute(f"grant {role} to {name}")
    return Terminal(server.url(value(db, "select current_database()"), name))


def test_the_bearer_of_the_secret_decides(server: Server, tide: Tidebase, db: Connection) -> None:
    secret = asked(tide, "r")
    reader = outsider(server, db, "tidebase_reader")
    for wrong in ([], ["--secret", "wrong"], ["--secret", secret[:-1]], ["--secret", ""]):
        assert "TB009" in reader.error("decide", "r", "go", "approved", *wrong)
    result = reader.text("decide", "r", "go", "approved", env={"TIDEBASE_GATE_SECRET": secret})
    assert result == "decided: approved\n" and tide.gates.get("r", "go").decided_by == "secret"
    assert "[42501]" in reader.error("cancel", "r")
    assert "42501" in reader.error("migrate", "--rollback-to", "nothing")


def test_steps_in_review_are_decided(terminal: Terminal, tide: Tidebase) -> None:
    assert terminal.text("reviews") == "nothing to review\n" and terminal.json("reviews") == []

    def work(run: Run, _: Any) -> Any:
        return run.step("charge", lambda: raising("lost"), side_effects=["card"], verified_by="the bank")

    for run_id in ("retry", "accept", "fail"):
        with pytest.raises(RuntimeError):
            tide.run("w", work, run_id=run_id)
    assert "the bank" in terminal.text("reviews") and len(terminal.json("reviews")) == 3
    assert [review["run_id"] for review in terminal.json("reviews", "accept")] == ["accept"]
    assert terminal.json("review", "retry", "charge", "retry", "--reason", "not charged")["status"] != "review"
    assert "accept needs --output" in terminal.error("review", "accept", "charge", "accept", code=2)
    text = terminal.text("review", "accept", "charge", "accept", "--output", '{"id": 7}', "--actor", "ada")
    assert text.startswith("run_id  accept\nstatus  ")
    assert tide.run("w", work, run_id="accept") == {"id": 7}
    assert terminal.json("review", "fail", "charge", "fail")["status"] == "failed"
    assert "TB008" in terminal.error("review", "fail", "charge", "retry")
    assert "TB008" in terminal.error("review", "fail", "nothing", "retry")
    assert terminal.json("reviews") == []


# -- acting


def test_stalled_runs_are_listed(terminal: Terminal, tide: Tidebase, db: Connection) -> None:
    assert terminal.text("stalled") == "no run is stalled\n" and terminal.json("stalled") == []
    grant(db, new_run(db, run_id="left"), "somebody")
    expire(db, "left")
    assert "left" in terminal.text("stalled", code=1) and "somebody" in terminal.text("stalled", code=1)
    assert [run["run_id"] for run in terminal.json("stalled", code=1)] == ["left"]


def test_runs_are_cancelled(terminal: Terminal, tide: Tidebase) -> None:
    def parent(run: Run, _: Any) -> None:
        run.child("kid", lambda child, _: child.gate("go", suspend=True), name="one")

    for run_id in ("with", "without"):
        with pytest.raises(BaseException, match="waits"):
            tide.run("w", parent, run_id=run_id)
    assert "cancelled" in terminal.text("cancel", "with", "--reason", "enough", "--actor", "ada")
    assert [node["status"] for node in terminal.json("tree", "with")] == ["cancelled", "cancelled"]
    run = terminal.json("cancel", "without", "--no-cascade")
    assert (run["status"], run["cancel_actor"]) == ("cancelled", tide.runs.get("without").cancel_actor)
    assert terminal.json("tree", "without")[1]["status"] != "cancelled"
    assert tide.runs.get("with").cancel_reason == "enough"
    assert terminal.json("cancel", "with")["cancel_reason"] == "enough"  # again: as it was
    finished(tide, "over")
    assert "TB005" in terminal.error("cancel", "over")


def test_many_runs_are_cancelled(terminal: Terminal, tide: Tidebase) -> None:
    made = [{"workflow": "w", "queue": "q", "metadata": {"tenant": n % 2}, "run_id": f"r{n}"} for n in range(6)]
    tide.enqueue_many(made)  # type: ignore[arg-type]
    tide.enqueue("other", queue="p", run_id="other")
    which = ["cancel", "--queue", "q", "--metadata", '{"tenant": 1}', "--status", "queued"]
    assert terminal.text(*which, "--dry-run") == "3 would be cancelled\n"
    assert terminal.json(*which, "--reason", "enough", "--actor", "ada") == {"matched": 3, "done": 3}
    assert (tide.runs.get("r1").cancel_reason, tide.runs.get("r1").cancel_actor) == ("enough", "ada")
    assert [tide.runs.get(f"r{n}").status for n in range(3)] == ["queued", "cancelled", "queued"]
    assert terminal.text("cancel", "--workflow", "w", "--older-than", "1h") == "cancelled: 0\n"
    assert terminal.text("cancel", "--workflow", "w") == "cancelled: 3\n"
    assert tide.runs.get("other").status == "queued"
    for wrong in (["cancel"], ["cancel", "other", "--queue", "p"], ["cancel", "other", "--dry-run"]):
        assert "either a RUN, or filters" in terminal.error(*wrong, code=2)
    assert "go with a RUN" in terminal.error("cancel", "--queue", "p", "--no-cascade", code=2)
    assert "nothing is done to all runs" in terminal.error("cancel", "--dry-run")


def test_runs_are_recovered(terminal: Terminal, tide: Tidebase, db: Connection) -> None:
    with pytest.raises(RuntimeError):
        tide.run("w", lambda run, _: raising("no"), run_id="r")
    recovery = terminal.json("recover", "r", "--reason", "try again", "--actor", "ada")
    assert (recovery["found_status"], recovery["reason"], recovery["actor"]) == ("failed", "try again", "ada")
    assert "recovery " in terminal.text("recover", "r") and tide.runs.get("r").status == "pending"
    grant(db, "r")
    assert "needs no recovery" in terminal.error("recover", "r")


def test_runs_are_forked(terminal: Terminal, tide: Tidebase) -> None:
    def work(run: Run, input: Any) -> Any:
        return [run.step("a", lambda: input), run.step("b", lambda: input)]

    tide.run("w", work, run_id="r", input=1)
    assert terminal.text("fork", "r", "all").splitlines()[0].split() == ["run_id", "all"]
    assert terminal.json("fork", "r", "all")["steps_completed"] == 2  # again: the same
    assert terminal.json("fork", "r", "one", "--through-step", "a", "--reason", "why")["steps_completed"] == 1
    seq = next(step.completed_seq for step in tide.runs.steps("r") if step.name == "a")
    made = terminal.json("fork", "r", "--through-seq", str(seq), "--input", "-", input='{"n": 2}')
    assert (made["steps_completed"], made["input"]) == (1, {"n": 2})
    assert tide.run("w", work, run_id=made["run_id"]) == [1, {"n": 2}]
    assert "TB007" in terminal.error("fork", "r", "--through-step", "nothing")
    assert "TB002" in terminal.error("fork", "r", "--through-seq", "999")
    assert "TB006" in terminal.error("fork", "r", "one", "--through-step", "b")


def test_budgets_are_set_and_taken_away(terminal: Terminal, tide: Tidebase) -> None:
    tide.runs.create("w", run_id="r")
    assert terminal.text("budget", "r", "--cost-usd", "12.50", "--tokens", "7").split() == [
        *("run_id", "r", "cost_limit_usd", "12.50", "token_limit", "7")
    ]
    totals = terminal.json("budget", "r", "--tokens", "8")
    assert (totals["cost_limit_usd"], totals["token_limit"]) == (None, 8)
    assert "none" in terminal.text("budget", "r", "--none", "--actor", "ada")
    assert tide.runs.usage("r").token_limit is None
    assert terminal.json("budget", "r", "--cost-usd", "0")["cost_limit_usd"] == "0"
    finished(tide, "over")
    assert "TB005" in terminal.error("budget", "over", "--none")


def test_what_is_over_is_measured_and_compacted(terminal: Terminal, tide: Tidebase) -> None:
    for run_id in ("a", "b"):
        finished(tide, run_id, "x" * 1000)
    tide.runs.create("w", run_id="alive")
    assert terminal.json("size", "a")["run_id"] == "a" and "step_bytes" in terminal.text("size", "a")
    assert terminal.text("compact", "a") == "a: compacted\n"
    assert terminal.json("compact", "a", "b") == {"a": False, "b": True}
    assert terminal.text("compact", "a", "b") == "a: was compacted before\nb: was compacted before\n"
    assert "it may still need its checkpoints" in terminal.error("compact", "alive")


def test_what_has_been_over_for_long_is_deleted(terminal: Terminal, tide: Tidebase, db: Connection) -> None:
    db.execute("select tidebase.create_run('w', run_id => 'r' || n) from generate_series(1, 1205) n")
    db.execute("select tidebase.cancel_run(run_id) from tidebase.runs")
    finished(tide, "new")
    assert terminal.text("purge", "--older-than", "1h") == "deleted: 0 runs\n"
    assert terminal.text("purge", "--older-than", "0s", "--status", "completed") == "deleted: 1 run\n"
    assert terminal.json("purge", "--older-than", "0s", "--max", "5") == {"deleted": 5}
    assert terminal.json("purge", "--older-than", "0s", "--status", "failed", "--status", "cancelled", "--max", "1100")
    assert value(db, "select count(*) from tidebase.runs") == 100
    assert terminal.json("purge", "--older-than", "0s") == {"deleted": 100}


def test_what_has_run_out_is_reconciled(terminal: Terminal, db: Connection) -> None:
    assert terminal.text("reconcile") == "runs: 0, leases: 0, gates: 0, timers: 0, deadlines: 0\n"
    for run_id in ("a", "b"):
        grant(db, new_run(db, run_id=run_id))
        expire(db, run_id)
    done = terminal.json("reconcile")
    assert (done["runs"], done["leases"]) == (2, 2)
    assert "TIDEBASE_WEBHOOK_SECRET" in terminal.error("reconcile", "--webhooks")
    assert terminal.json("reconcile", "--webhooks", env={"TIDEBASE_WEBHOOK_SECRET": "s" * 32})["webhooks"] == 0


def test_receivers_that_are_not_public_are_told_where_that_is_said(terminal: Terminal, db: Connection) -> None:
    run_id = new_run(db, recovery_webhook="http://127.0.0.1:9/hook")
    db.execute("select tidebase.fail_run(%s, %s)", [run_id, grant(db, run_id)])
    secret = {"TIDEBASE_WEBHOOK_SECRET": "s" * 32}
    said = []
    for option in ([], ["--private-receivers"]):
        db.execute("update tidebase.deliveries set next_at = clock_timestamp()")
        assert terminal.json("reconcile", "--webhooks", *option, env=secret)["webhooks"] == 1
        said.append(value(db, "select error from tidebase.deliveries"))
    assert "not a public address" in said[0] and "public" not in said[1]
    assert "--webhooks" in terminal.error("reconcile", "--private-receivers", code=2)


def test_it_is_reconciled_again_and_again_until_it_is_told_to_stop(database: str, db: Connection) -> None:
    with started(database, "reconcile", "--every", "10ms", "--json") as process:
        assert process.stdout is not None
        for run_id in ("a", "b"):
            grant(db, new_run(db, run_id=run_id))
            expire(db, run_id)
            assert json.loads(process.stdout.readline())["leases"] == 1
        process.send_signal(signal.SIGTERM)
        assert ended(process) == (0, "", "")


def test_it_is_reconciled_until_it_is_interrupted(database: str, db: Connection) -> None:
    grant(db, new_run(db, run_id="a"))
    expire(db, "a")
    with started(database, "reconcile", "--every", "1h") as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("runs: 1")
        process.send_signal(signal.SIGINT)
        assert ended(process) == (130, "", "")


# -- the gateway


def test_a_gateway_is_not_left_open(terminal: Terminal) -> None:
    assert "loopback interface only" in terminal.error("serve", "--host", "0.0.0.0")
    for key in (
        "nonsense",
        "worker",
        "worker:short",
        "boss:a-long-secret",
        "worker+:a-long-secret",
        ":a-long-secret",
        "worker@ :a-long-secret",
    ):
        assert "a key must be role[+role][@name]:secret" in terminal.error("serve", "--key", key)
    assert "a key must be" in terminal.error("serve", env={"TIDEBASE_KEYS": "worker:a-long-secret nonsense"})


def test_a_gateway_is_served_until_it_is_told_to_stop(database: str) -> None:
    import httpx

    with started(database, "serve", "--port", "0", "--key", "reader:a-long-secret", "--lease", "1m") as process:
        assert process.stderr is not None
        lines = iter(process.stderr.readline, "")
        assert "--cors '*'" in next(line for line in lines if "other origins" in line)
        url = next(line.split(" on ")[1].split()[0] for line in lines if "running on" in line)
        headers = {"authorization": "Bearer a-long-secret"}
        assert httpx.get(f"{url}/runs", headers=headers, trust_env=False).status_code == 200
        assert httpx.get(f"{url}/runs", trust_env=False).status_code == 401
        process.send_signal(signal.SIGINT)
        code, _, errors = ended(process)
    assert (code, "Traceback" in errors) == (0, False)


# -- problems


def findings(terminal: Terminal, code: int) -> dict[str, tuple[str, str]]:
    return {found["check"]: (found["level"], found["text"]) for found in terminal.json("doctor", code=code)}


@pytest.fixture
def safe_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """The test servers have fsync off, which is a problem, and would be one wherever something else is looked at."""
    module = sys.modules["tidebase.views.health"]
    monkeypatch.setattr(module, "_SETTINGS", tuple(found for found in module._SETTINGS if found[0] != "fsync"))


@on_every_version
@pytest.mark.usefixtures("safe_settings")
def test_a_database_is_looked_over(terminal: Terminal, db: Connection) -> None:
    found = findings(terminal, 0)
    assert found["schema"] == ("ok", "up to date") and found["stalled runs"] == ("ok", "none")
    assert found["roles"][0] == "note" and found["version"][0] == "ok"
    assert "ok       schema: up to date\n" in terminal.text("doctor")
    grant(db, new_run(db, run_id="left"))
    expire(db, "left")
    assert findings(terminal, 1)["stalled runs"][0] == "problem"
    text = terminal.text("doctor", code=1)
    assert "PROBLEM  stalled runs: 1 " in text and "tidebase reconcile" in text


@on_every_version
def test_an_empty_database_is_looked_over(empty_database: str) -> None:
    found = findings(Terminal(empty_database), 1)
    assert found["schema"] == ("problem", "Tidebase is not installed in this database")
    assert "PROBLEM  schema: " in Terminal(empty_database).text("doctor", code=1)


@pytest.mark.breaks_invariants
def test_an_older_schema_is_a_problem(terminal: Terminal) -> None:
    terminal.text("migrate", "--rollback-to", "0002.gates")
    assert findings(terminal, 1)["schema"] == ("problem", "older than this package")


OUTSIDERS = "select member::regrole::text from pg_auth_members where roleid = 'tidebase_owner'::regrole"


@pytest.mark.usefixtures("safe_settings")
def test_what_one_may_do_is_looked_over(server: Server, db: Connection) -> None:
    nothing = findings(outsider(server, db), 1)
    assert nothing["roles"][0] == "problem" and nothing["roles"][1].endswith("may do nothing here")
    worker = findings(outsider(server, db, "tidebase_worker"), 0)
    assert worker["roles"][1].endswith("may do what is for: worker") and worker["schema"] == ("ok", "up to date")
    both = findings(outsider(server, db, "tidebase_reader", "tidebase_approver"), 0)
    assert both["roles"][1].endswith("may do what is for: approver, reader") and both["stalled runs"] == ("ok", "none")
    owner = outsider(server, db, "tidebase_owner")
    assert findings(owner, 0)["roles"][1].endswith("owns it, and may do everything")
    db.execute(f"revoke tidebase_owner from {value(db, OUTSIDERS)}")  # or no superuser would migrate here any more


@on_every_version
def test_settings_that_lose_data_are_a_problem(server: Server, terminal: Terminal, db: Connection) -> None:
    name = value(db, "select current_database()")
    for setting in ("synchronous_commit = off", "default_transaction_read_only = on"):
        db.execute(f"alter database {name} set {setting}")
    found = findings(terminal, 1)
    assert found["default_transaction_read_only"] == ("note", "on")
    assert found["synchronous_commit"] == ("note", "off") and found["fsync"] == ("problem", "off")


@pytest.mark.usefixtures("safe_settings")
@pytest.mark.breaks_invariants
def test_every_row_is_looked_at_if_that_is_wanted(server: Server, terminal: Terminal, db: Connection) -> None:
    run_id = new_run(db, run_id="whole")
    assert "ok       invariants: every row of 1 runs keeps the rules\n" in terminal.text("doctor", "--deep")
    assert "invariants" not in terminal.text("doctor")
    auditor = outsider(server, db, "tidebase_operator")
    assert "ok       invariants" in auditor.text("doctor", "--deep")
    db.execute("delete from tidebase.events where run_id = %s", [run_id])
    text = auditor.text("doctor", "--deep", code=1)
    assert "PROBLEM  invariants: 1 rows (one of run 'whole') break: the events of a run are 1..n without a gap" in text


#: SIGTERM comes at one line of the wait after the other, each in a wait of its own: a handler that took the lock of
#: what is waited for would wait for itself.
WAITS = """
import signal, sys, threading, time
from tidebase.cli import output

def interrupting(line):
    lines = 0

    def trace(frame, event, argument):
        nonlocal lines
        if frame.f_code.co_filename != threading.__file__ or threading.current_thread() is not threading.main_thread():
            return None
        if event == "line" and frame.f_code.co_name in ("wait", "__enter__", "__exit__", "_release_save", "_is_owned"):
            lines += 1
            if lines == line:
                sys.settrace(None)
                frame.f_trace = None
                signal.raise_signal(signal.SIGTERM)
                return None
        return trace

    return trace, lambda: lines

for line in range(1, 100):
    trace, seen = interrupting(line)
    sys.settrace(trace)
    rounds = 0
    for _ in output.until_stopped(0.001):
        rounds += 1
        if rounds > 2 and seen() < line:
            break
    sys.settrace(None)
    if seen() < line:
        break
print("stopped at", line - 1)
"""


def test_a_command_stops_wherever_in_its_wait_the_signal_comes() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", WAITS], capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
    assert ended.returncode == 0, ended.stderr
    said, _, lines = ended.stdout.strip().rpartition(" ")
    assert said == "stopped at" and int(lines) > 8
