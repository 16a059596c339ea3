"""Whether a run that is recorded would go on under the code at hand: the workflow is called from the top, and whatever
it asks for is answered from the record, as far as that goes.

No step is executed, and nothing is written: only what the database declares stable is asked of it. The code between the
steps does run, as it would in the next attempt.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from typing import Any, Literal

from ..client.tide import Tidebase
from ..client.tide_async import AsyncTidebase
from ..client.work import Run
from ..client.work_async import AsyncRun
from ..core import codec
from ..core.call import Call, Json
from ..core.canonical import digest
from ..core.database import Database
from ..core.database_async import AsyncDatabase
from ..core.errors import Interruption, InvalidArgument, StepOutputDecodeError, TidebaseError
from ..core.flow import Flow, drive, drive_async
from ..domain import calls
from ..domain.calls import GateInfo, GateRow, Lease, RunEdge, RunInfo, StepInfo, StepStart, UsageTotal
from ..domain.child import Child
from ..domain.lease import Hold
from ..domain.recall import Recall
from ..domain.step import Checkpoint, Checkpoints, Work, current_step
from ..domain.transaction import nothing
from ..domain.workflow import current_run

Kind = Literal["missing", "renamed", "input", "type", "contract", "error", "write"]

_FUNCTION = re.compile(r"\btidebase\.(\w+)\(")
_NAMES = re.compile(r"(\w+) => %s")
_STABLE = """
select proname::text from pg_catalog.pg_proc
where pronamespace = pg_catalog.to_regnamespace('tidebase')
group by proname having pg_catalog.bool_and(provolatile <> 'v')
"""

_LONG_AGO = datetime.min.replace(tzinfo=timezone.utc)

_NO_INPUT = digest(None)

#: How often a workflow may look at a gate that nobody has decided, before it is taken to wait.
_GLANCES = 100

#: What a workflow writes besides its steps, by the function: it is written, or recognised, when it comes by again.
_VERSIONS = frozenset({"set_state", "patch_state", "merge_state", "save_state", "restore_state", "create_snapshot"})


@dataclass(frozen=True)
class Problem:
    """Why a run does not fit.

    Attributes:
        kind: ``missing`` (what was done is not asked for any more), ``renamed`` (it is, by another name: it would be
            done again), ``input`` (with another input: it would be refused), ``type`` (what is stored does not come
            back as what is expected, or it is a thing of another kind now), ``contract`` (a person would be asked),
            ``error`` (the workflow fails on its way), ``write`` (it writes outside of its steps, and cannot be followed
            further).
        name: of the step, gate, timer or child.
    """

    kind: Kind
    name: str
    message: str


@dataclass
class Rehearsal:
    """What came of it.

    Attributes:
        outcome: ``completed`` (the workflow came to its end), ``goes on`` (at what ``at`` names, which is not done
            yet), ``failed`` (with ``problems``, unless the recorded run failed in the same way).
        replayed: the steps whose results were found, in the order in which they were asked for.
        at: where the next attempt would do something new.
        beyond: what was done, and lies behind that: nothing can be said about it.
    """

    run_id: str
    workflow: str
    status: str
    outcome: Literal["completed", "goes on", "failed"] = "goes on"
    replayed: list[str] = field(default_factory=list)
    at: list[str] = field(default_factory=list)
    beyond: list[str] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)

    @property
    def fits(self) -> bool:
        """Whether nothing speaks against it."""
        return not self.problems

    def __str__(self) -> str:
        where = f" at {', '.join(self.at)}" if self.at else ""
        lines = [f"run {self.run_id} ({self.workflow}, {self.status}): {self.outcome}{where}"]
        lines += [f"  {problem.kind}: {problem.message}" for problem in self.problems]
        return "\n".join(lines)


class ReplayMismatch(AssertionError):
    """A recorded run does not fit the workflow.

    Attributes:
        rehearsal: in what.
    """

    def __init__(self, rehearsal: Rehearsal) -> None:
        super().__init__(str(rehearsal))
        self.rehearsal = rehearsal


class _Stop(BaseException):
    """The record ends here: nobody who catches errors shall catch it."""


@dataclass(frozen=True)
class _Frontier:
    """Something that the next attempt would do. ``since``: from when it is on record; None: it is not."""

    name: str
    since: datetime | None
    input: bytes | None = None


@dataclass
class _Record:
    """What is recorded of a run."""

    run: RunInfo
    steps: dict[str, StepInfo]
    gates: dict[str, GateInfo]
    edges: dict[str, RunEdge]
    children: dict[str, RunInfo]
    checkpoints: list[Checkpoint]
    stable: set[str]
    total: UsageTotal


def _read(run_id: str) -> Flow[_Record]:
    run: RunInfo = yield calls.get_run(run_id=run_id)
    if run.compacted_at is not None:
        raise InvalidArgument(f"run {run_id!r} was compacted: what its steps gave is gone")
    steps: list[StepInfo] = yield calls.step_timeline(run_id)
    gates: list[GateInfo] = yield calls.run_gates(run_id)
    edges: list[RunEdge] = yield calls.run_edges(run_id)
    checkpoints: list[Checkpoint] = yield calls.load_checkpoints(run_id=run_id, unfinished=True)
    children: list[RunInfo] = yield calls.runs_by_id([edge.child_run_id for edge in edges])
    totals = yield calls.usage_totals(run_id)
    stable: set[str] = yield Call(_STABLE, (), lambda rows: {row[0] for row in rows})
    known = totals[0]
    total = UsageTotal(
        False,
        known.records,
        known.input_tokens,
        known.output_tokens,
        known.cost_usd,
        known.unpriced,
        False,
        run.last_seq,
    )
    return _Record(
        run,
        {step.name: step for step in steps},
        {gate.name: gate for gate in gates},
        {edge.name: edge for edge in edges if edge.edge_type != "fork"},
        {child.run_id: child for child in children},
        checkpoints,
        stable,
        total,
    )


class _Answers:
    """Answers what a workflow asks for, and notes what it was."""

    def __init__(self, record: _Record, assume: Mapping[str, Any]) -> None:
        self.record = record
        self.report = Rehearsal(record.run.run_id, record.run.workflow, record.run.status)
        self.assumed = {name: codec.encode(value) for name, value in assume.items()}
        self.seen: set[tuple[str, str]] = set()
        self.frontiers: dict[tuple[str, str], _Frontier] = {}
        self.joins: set[str] = set()
        self.progress = 0
        self._versions: dict[Any, int] = {}
        self._glances: dict[str, int] = {}

    def problem(self, kind: Kind, name: str, message: str) -> None:
        found = Problem(kind, name, message)
        if found not in self.report.problems:
            self.report.problems.append(found)

    def visit(self, work: Work[Any], stored: Json | None) -> None:
        """A step comes by; ``stored``: its checkpoint, where the input is the same."""
        name = work.full_name
        self.progress += 1
        self.seen.add(("step", name))
        if work.function.__qualname__ == "Run.fanout.<locals>.collect" or (
            work.function.__qualname__ == "AsyncRun.fanout.<locals>.collect"
        ):
            self.joins.add(name)
        if stored is None:
            return
        self.report.replayed.append(name)
        self._comes_back(work, stored)

    def _comes_back(self, work: Work[Any], stored: Json) -> None:
        expected = Any if work.function is nothing else codec.returned_type(work.function)
        try:
            codec.decode(stored, work.options.get("returns", expected))
        except StepOutputDecodeError as error:
            self.problem(
                "type", work.full_name, f"what step {work.full_name!r} gave does not come back: {error.message}"
            )

    def answer(self, call: Call[Any]) -> Flow[Any]:
        """What a call returns, as far as it can be known; else the record ends here."""
        self.progress += 1
        found = _FUNCTION.search(call.query)
        if found is None or found[1] in self.record.stable:
            return (yield call)
        function = found[1]
        arguments = dict(zip(_NAMES.findall(call.query), call.parameters, strict=False))
        if arguments.get("run_id") == self.record.run.run_id:
            own = getattr(self, f"_{function}", None)
            if own is not None:
                return (yield from own(arguments))
            if function in _VERSIONS:
                return self._counted(function, arguments)
        elif function == "acquire_run":
            return self._child_lease(str(arguments["run_id"]))
        elif function == "withdraw_grant":
            raise _Stop  # nothing was granted
        self.problem(
            "write", function, f"the workflow calls {function} outside of its steps, which a rehearsal does not do"
        )
        raise self._stop("call", function, None)

    def _stop(self, kind: str, name: str, since: datetime | None, input: bytes | None = None) -> _Stop:
        self.frontiers.setdefault((kind, name), _Frontier(name, since, input))
        return _Stop()

    def _counted(self, function: str, arguments: Mapping[str, Any]) -> int:
        """The number of a version or snapshot, as if all had been written by this attempt."""
        snapshot = function == "create_snapshot"
        key = (
            (arguments.get("target_type"), arguments.get("target_id")) if snapshot else arguments.get("stream", "main")
        )
        self._versions[snapshot, key] = number = self._versions.get((snapshot, key), 0) + 1
        return number

    # By the names of the functions: each is a flow that returns what the function does.

    def _begin_step(self, arguments: Mapping[str, Any]) -> Flow[StepStart]:
        name, text = str(arguments["name"]), str(arguments["input"])
        step = self.record.steps.get(name)
        if step is None:
            if name in self.assumed:
                return StepStart("replay", 1, Json(self.assumed[name]))
            self._other_kind("step", name)
            raise self._stop("step", name, None, digest(json.loads(text)))
        same = yield Call(
            "select input is not distinct from %s::jsonb from tidebase.step_timeline where run_id = %s and name = %s",
            (text, step.run_id, name),
            lambda rows: rows[0][0],
        )
        if not same:
            before, now = _short(step.input), _short(json.loads(text))
            self.problem("input", name, f"step {name!r} was begun with {before}, and is now asked for with {now}")
        elif step.status == "completed":
            self.report.replayed.append(name)
            return StepStart("replay", step.attempt, Json(codec.encode(step.output)))
        elif name in self.joins:
            self._stop("step", name, step.started_at)  # noted: its children are looked at
            return StepStart("execute", step.attempt + 1, None)
        elif set(step.side_effects or ()) - {"read"} and step.idempotency_key != arguments.get("idempotency_key"):
            self.problem("contract", name, f"step {name!r} did not complete, and has another idempotency_key now")
        # Of one that was begun again, nobody has kept when it was begun first.
        raise self._stop("step", name, step.started_at if step.attempt == 1 else _LONG_AGO)

    def _fail_step(self, arguments: Mapping[str, Any]) -> Flow[Any]:
        raise _Stop  # of a fan-out: some of its children are not done
        yield

    def _open_gate(self, arguments: Mapping[str, Any]) -> Flow[GateRow]:
        gate = self._gate("gate", arguments)
        shown = {
            "prompt": (gate.prompt, arguments.get("prompt")),
            "data": (gate.data, _parsed(arguments.get("data"), {})),
            "options": (gate.options, arguments.get("options") or ["approved", "rejected"]),
            "capability": (gate.capability, _parsed(arguments.get("capability"))),
            "response_schema": (gate.response_schema, _parsed(arguments.get("response_schema"))),
            "required_approvals": (gate.required_approvals, arguments.get("required_approvals") or 1),
        }
        changed = [name for name, (before, now) in shown.items() if digest(before) != digest(now)]
        if changed:
            self.problem("input", gate.name, f"gate {gate.name!r} was opened with another {', '.join(changed)}")
            raise self._stop("gate", gate.name, gate.created_at)
        return self._row(gate)
        yield

    def _start_timer(self, arguments: Mapping[str, Any]) -> Flow[GateRow]:
        gate = self._gate("timer", arguments)
        duration: timedelta = arguments["duration"]
        if gate.timeout_at is not None and gate.timeout_at - gate.created_at != duration:
            before = gate.timeout_at - gate.created_at
            self.problem("input", gate.name, f"timer {gate.name!r} was started for {before}, and now for {duration}")
            raise self._stop("gate", gate.name, gate.created_at)
        return self._row(gate)
        yield

    def _gate(self, kind: str, arguments: Mapping[str, Any]) -> GateInfo:
        name = str(arguments["name"])
        self.seen.add(("gate", name))
        gate = self.record.gates.get(name)
        if gate is None:
            self._other_kind("gate", name)
            raise self._stop("gate", name, None)
        if gate.kind != kind:
            self.problem("type", name, f"{name!r} was a {gate.kind}, and is a {kind} now")
            raise self._stop("gate", name, gate.created_at)
        return gate

    def _row(self, gate: GateInfo) -> GateRow:
        if gate.status == "pending":
            self.frontiers.setdefault(("gate", gate.name), _Frontier(gate.name, gate.created_at))
        return GateRow(
            gate.status,
            gate.decision,
            gate.payload,
            gate.comment,
            gate.actor,
            gate.decided_at,
            gate.decided_by,
            gate.timeout_at,
            "",
            False,
        )

    def _get_gate(self, arguments: Mapping[str, Any]) -> Flow[GateInfo]:
        name = str(arguments["name"])
        gate = self.record.gates.get(name)
        self._glances[name] = self._glances.get(name, 0) + 1
        if gate is None or self._glances[name] > _GLANCES:
            raise self._stop("gate", name, None if gate is None else gate.created_at)
        return gate
        yield

    def _get_gate_secret(self, arguments: Mapping[str, Any]) -> Flow[str]:
        return ""
        yield

    def _watch_run(self, arguments: Mapping[str, Any]) -> Flow[Any]:
        raise _Stop  # it waits for what was noted when it was opened
        yield

    def _create_child(self, arguments: Mapping[str, Any]) -> Flow[Child]:
        name = str(arguments["name"])
        self.seen.add(("child", name))
        edge = self.record.edges.get(name)
        if edge is None:
            self._other_kind("child", name)
            raise self._stop("child", name, None, digest(_parsed(arguments.get("input"))))
        child = self.record.children[edge.child_run_id]
        if child.workflow != arguments["workflow"]:
            self.problem(
                "type", name, f"child {name!r} is a {child.workflow}, and is wanted as {arguments['workflow']}"
            )
        elif digest(child.input) != digest(_parsed(arguments.get("input"))):
            before, now = _short(child.input), _short(_parsed(arguments.get("input")))
            self.problem("input", name, f"child {name!r} was made with {before}, and is now asked for with {now}")
        else:
            return Child(child.run_id, False)
        raise self._stop("child", name, edge.created_at)
        yield

    def _child_lease(self, run_id: str) -> Lease:
        child = self.record.children.get(run_id)
        if child is None:
            self.problem("write", "acquire_run", f"the workflow works on another run, {run_id!r}, outside of its steps")
            raise self._stop("call", "acquire_run", None)
        if child.status != "completed":
            name = next(edge.name for edge in self.record.edges.values() if edge.child_run_id == run_id)
            raise self._stop("child", name, child.created_at)
        result = Json(codec.encode(child.result))
        return Lease("completed", None, None, child.workflow, None, result, None, None, None, None, None)

    def _append_event(self, arguments: Mapping[str, Any]) -> Flow[int]:
        return self.record.run.last_seq
        yield

    def _record_usage(self, arguments: Mapping[str, Any]) -> Flow[UsageTotal]:
        return self.record.total
        yield

    def _other_kind(self, kind: str, name: str) -> None:
        places: dict[str, Mapping[str, Any]] = {
            "step": self.record.steps,
            "gate": self.record.gates,
            "child": self.record.edges,
        }
        others = [other for other, names in places.items() if other != kind and name in names]
        if others:
            self.problem("type", name, f"{name!r} was a {others[0]}, and is a {kind} now")

    # What it comes to, when the workflow was followed as far as possible.

    def judge(self) -> Rehearsal:
        report = self.report
        report.at = [frontier.name for frontier in self.frontiers.values()]
        new = [frontier for frontier in self.frontiers.values() if frontier.since is None]
        left = self._left()
        for kind, name, ended, input in left:
            word = "is on record" if ended is None else "is done"
            if report.outcome == "failed":
                report.beyond.append(name)
                continue
            if self.frontiers and not new:
                began = [frontier.since for frontier in self.frontiers.values() if frontier.since is not None]
                if ended is None or any(ended > since for since in began):
                    report.beyond.append(name)
                    continue
            twins = [other.name for other in new if input not in (None, _NO_INPUT) and other.input == input]
            if twins:
                self.problem(
                    "renamed",
                    name,
                    f"{kind} {name!r} {word}, and {twins[0]!r} is asked for with the same input:"
                    " it would be done again",
                )
            elif new:
                self.problem(
                    "missing", name, f"{kind} {name!r} {word}, and {new[0].name!r}, which is not, comes before it now"
                )
            else:
                self.problem("missing", name, f"{kind} {name!r} is on record, and is not asked for any more")
        return report

    def _left(self) -> Iterator[tuple[str, str, datetime | None, bytes | None]]:
        """What is on record and was not asked for; not what a step did inside itself."""
        spans = [
            (step.started_at, step.completed_at)
            for name, step in self.record.steps.items()
            if step.completed_at is not None and ("step", name) in self.seen
        ]

        def inside(begin: datetime, end: datetime | None) -> bool:
            return any(start <= begin and end is not None and end <= over for start, over in spans)

        known = bool(self.frontiers) and all(one.since is not None for one in self.frontiers.values())
        hidden = {step.name for step in self.record.steps.values() if step.status != "completed" and self.frontiers}
        for step in self.record.steps.values():
            if (
                ("step", step.name) not in self.seen
                and step.name not in hidden
                and not inside(step.started_at, step.completed_at)
            ):
                yield "step", step.name, step.completed_at, bytes.fromhex(step.input_hash)
        for gate in self.record.gates.values():
            open = gate.status == "pending" and known  # else the workflow goes past a question that nobody has answered
            if ("gate", gate.name) not in self.seen and not open and not inside(gate.created_at, gate.decided_at):
                yield gate.kind, gate.name, gate.decided_at, None
        for edge in self.record.edges.values():
            child = self.record.children[edge.child_run_id]
            if ("child", edge.name) not in self.seen and not inside(edge.created_at, edge.created_at):
                ended = child.finished_at if child.status == "completed" else None
                yield "child", edge.name, ended, digest(child.input)


def _parsed(text: Any, nothing: Any = None) -> Any:
    return nothing if text is None else json.loads(text)


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 200 else text[:199] + "\N{HORIZONTAL ELLIPSIS}"


class _Checkpoints(Checkpoints):
    """Those of the record; each step that comes by is noted."""

    def __init__(self, answers: _Answers) -> None:
        super().__init__(answers.record.checkpoints)
        self._answers = answers

    def recall(self, work: Work[Any]) -> tuple[Any, Json | None]:
        value, stored = super().recall(work)
        self._answers.visit(work, stored)
        return value, stored

    def enter(self, name: str, mark: Any) -> tuple[bool, None]:
        return False, None  # nothing is executed before the record was asked


class _Recorded(Database):
    """Stands for the database, for threads."""

    def __init__(self, database: Database, answers: _Answers) -> None:
        super().__init__(database._source, reconnect_s=database._reconnect_s)
        self._answers = answers
        self._execute = database.execute

    def execute(self, call: Call[Any]) -> Any:
        return drive(self._answers.answer(call), _Executor(self._execute))  # type: ignore[arg-type]


class _RecordedAsync(AsyncDatabase):
    """Stands for the database, for asyncio."""

    def __init__(self, database: AsyncDatabase, answers: _Answers) -> None:
        super().__init__(database._source, reconnect_s=database._reconnect_s)
        self._answers = answers
        self._execute = database.execute

    async def execute(self, call: Call[Any]) -> Any:
        try:
            return await drive_async(self._answers.answer(call), _Executor(self._execute))  # type: ignore[arg-type]
        except _Stop:
            # Who waits beside this one may come as far as it can, before a group of tasks gives all of them up.
            seen = -1
            while seen != self._answers.progress:
                seen = self._answers.progress
                for _ in range(20):
                    await asyncio.sleep(0)
            raise


@dataclass(frozen=True)
class _Executor:
    """What carries out the calls that only read."""

    execute: Callable[[Call[Any]], Any]


@contextmanager
def _instead(tides: Sequence[Any], database: Any) -> Iterator[None]:
    """While the block runs, whatever the workflow asks of its ``tide`` itself is answered from the record, too."""
    stood = {id(tide._database): tide._database for tide in tides if tide is not None}.values()
    for one in stood:
        one.execute = database.execute
    try:
        yield
    finally:
        for one in stood:
            del one.execute


def rehearse(
    tide: Tidebase,
    run_id: str,
    function: Callable[[Run, Any], Any] | None = None,
    *,
    source: Tidebase | None = None,
    assume: Mapping[str, Any] | None = None,
) -> Rehearsal:
    """Plays a recorded run with the code at hand, as far as the record goes. Executes no step, and writes nothing.

    Args:
        tide: where the workflows are registered. Nothing else may use it meanwhile.
        function: the workflow; by default the one that is registered under the run's name for it.
        source: where the run is recorded, if that is not the database of ``tide``.
        assume: results of steps that are new, by their names: with them the run is followed beyond.

    Raises:
        RunNotFound: there is no such run. InvalidArgument: its checkpoints are gone (``compact_run``).
    """
    if isinstance(tide, AsyncTidebase):
        raise InvalidArgument("an AsyncTidebase must be played by rehearse_async, which is awaited")
    recorded = (source or tide)._database
    answers = _Answers(drive(_read(run_id), recorded), assume or {})
    chosen = tide._registry.find(answers.record.run.workflow, function)
    database, hold = _Recorded(recorded, answers), _hold(answers.record.run)
    run = Run(tide, database, hold, _Checkpoints(answers), answers.record.run.workflow)
    with _instead((tide, source), database), _playing(answers, run, chosen) as argument:
        chosen(run, argument)
        answers.report.outcome = "completed"
    return answers.judge()


async def rehearse_async(
    tide: AsyncTidebase,
    run_id: str,
    function: Callable[[AsyncRun, Any], Any] | None = None,
    *,
    source: AsyncTidebase | None = None,
    assume: Mapping[str, Any] | None = None,
) -> Rehearsal:
    """:func:`rehearse`, for workflows of asyncio."""
    recorded = (source or tide)._database
    answers = _Answers(await drive_async(_read(run_id), recorded), assume or {})
    chosen = tide._registry.find(answers.record.run.workflow, function)
    database, hold = _RecordedAsync(recorded, answers), _hold(answers.record.run)
    run = AsyncRun(tide, database, hold, _Checkpoints(answers), answers.record.run.workflow)
    before = asyncio.all_tasks()
    with _instead((tide, source), database), _playing(answers, run, chosen) as argument:
        try:
            await chosen(run, argument)
        finally:  # those beside the one that came to its end first
            others = asyncio.all_tasks() - before
            if others:
                await asyncio.wait(others, timeout=1)
                for task in others:
                    task.cancel()
                await asyncio.gather(*others, return_exceptions=True)
        answers.report.outcome = "completed"
    return answers.judge()


def replay(
    tide: Tidebase,
    run_id: str,
    function: Callable[[Run, Any], Any] | None = None,
    *,
    assume: Mapping[str, Any] | None = None,
) -> Rehearsal:
    """:func:`rehearse`, for tests: raises ReplayMismatch when the run does not fit."""
    found = rehearse(tide, run_id, function, assume=assume)
    if not found.fits:
        raise ReplayMismatch(found)
    return found


def _hold(run: RunInfo) -> Hold:
    hold = Hold(run.run_id, run.lease_token, run.attempt + 1, 60.0)
    hold.recall = Recall()
    return hold


@contextmanager
def _playing(answers: _Answers, run: Any, function: Callable[..., Any]) -> Iterator[Any]:
    """Has the workflow's argument, and takes what ends the workflow."""
    recorded, report = answers.record.run, answers.report
    contexts = current_run.set(run), current_step.set(None)
    try:
        argument = codec.decode(_text(recorded.input), codec.parameter_type(function, 1))
        if recorded.status == "completed":
            try:
                codec.decode(_text(recorded.result), codec.returned_type(function))
            except StepOutputDecodeError as error:
                answers.problem("type", "result", f"the result does not come back: {error.message}")
        yield argument
    except (_Stop, Interruption):
        report.outcome = "goes on"
    except StepOutputDecodeError as error:
        report.outcome = "failed"
        if not report.problems:
            answers.problem("type", error.step or "input", f"what is stored does not come back: {error.message}")
    except TidebaseError as error:
        report.outcome = "failed"
        answers.problem("error", error.step or recorded.workflow, f"the workflow fails: {error}")
    except Exception as error:
        report.outcome = "failed"
        if not (recorded.status == "failed" and (recorded.error or {}).get("type") == type(error).__name__):
            answers.problem("error", recorded.workflow, f"the workflow fails: {type(error).__name__}: {error}")
    finally:
        current_run.reset(contexts[0])
        current_step.reset(contexts[1])


def _text(value: Any) -> str | None:
    return None if value is None else codec.encode(value)


def playable(tide: Tidebase | AsyncTidebase, workflows: Sequence[str]) -> list[str]:
    """The workflows to look at: those that are registered, or some of them. Raises InvalidArgument."""
    known = tide._registry.names()
    others = [name for name in workflows if name not in known]
    if others or not known:
        named = ", ".join(map(repr, others))
        raise InvalidArgument(
            f"no workflow {named} is registered" if others else "no workflow is registered",
            hint=f"There are {', '.join(known)}." if known else "Register them with @tide.workflow(name).",
        )
    return list(workflows) or known
