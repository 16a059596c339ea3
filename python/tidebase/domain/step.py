"""Steps: what one does, from the checkpoint that is there already to the error that is final."""

from __future__ import annotations

import inspect
import logging
import os
import time
import traceback
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Generic, Literal, TypedDict, TypeVar, cast

from ..core import codec
from ..core.call import Call, Json, Value, columns, many, one, reader, rows_of, scalar
from ..core.canonical import digest
from ..core.errors import (
    Interruption,
    InvalidArgument,
    NotFound,
    NotSerializable,
    RunNeedsReview,
    StepNotRunning,
    StepOutputDecodeError,
    TidebaseError,
    interruption,
)
from ..core.flow import Flow, Invoke, Pause
from ..core.hints import command, to_review
from ..core.joint import Joint
from ..core.mark import Mark, current_mark
from ..core.names import former_name, full_name
from ..core.options import check, unknown
from .lease import Hold, all_stored, current_hold, new_request_id
from .recall import Recall
from .run import get_run


@dataclass(frozen=True)
class StepStart:
    """Answer of begin_step and record_step; see the type tidebase.step_start."""

    outcome: str
    attempt: int
    output: Json | None


@dataclass(frozen=True)
class StepFailure:
    """Answer of fail_step; see the type tidebase.step_failure."""

    decision: str
    retry_after: timedelta | None
    attempt: int


@dataclass(frozen=True)
class Checkpoint:
    """A step, its output undecoded; see the type tidebase.checkpoint. ``output``: None when it did not complete."""

    name: str
    input_hash: bytes
    output: Json | None


@dataclass(frozen=True)
class StepInfo:
    """A step, as the view step_timeline has it.

    ``attempt``: how often it was begun, 1 when it ran once. ``lease_token``: the lease under which it was last begun.
    ``decision``: what was decided about its last failure. ``options``: the contract in the words of the client, where
    it gave one (``begin_step_with``); ``client_hash``: its own hash of the input.
    """

    run_id: str
    name: str
    status: str
    attempt: int
    lease_token: int
    started_at: datetime
    completed_at: datetime | None
    duration: timedelta | None
    completed_seq: int | None
    decision: str | None
    retry_at: datetime | None
    error: Value
    input: Value
    input_hash: str
    output: Value
    side_effects: list[str] | None
    idempotency_key: str | None
    replay: str
    checkpoint_invariant: str | None
    verified_by: str | None
    credentials: list[str] | None
    retries: int
    timeout: timedelta | None
    options: Value
    client_hash: str | None


@dataclass(frozen=True)
class ReviewInfo:
    """A step that waits for a person's decision, as the view review_inbox has it.

    ``cause``: crash (it was begun and did not end), error (it failed), or contract (it is begun now with another
    contract or idempotency key than it was; ``explanation`` says which).
    """

    run_id: str
    workflow: str
    step: str
    attempt: int
    cause: str
    opened_at: datetime
    side_effects: list[str] | None
    verified_by: str | None
    checkpoint_invariant: str | None
    input: Value
    error: Value
    explanation: str | None


begin_step = one(
    "begin_step",
    StepStart,
    run_id="text",
    token="bigint",
    name="text",
    input="jsonb",
    side_effects="text[]",
    idempotency_key="text",
    replay="text",
    checkpoint_invariant="text",
    verified_by="text",
    credentials="text[]",
    retries="integer",
    retry_delay="interval",
    retry_max_delay="interval",
    timeout="interval",
    request_id="text",
)
begin_step_with = one(
    "begin_step_with",
    StepStart,
    run_id="text",
    token="bigint",
    name="text",
    input="jsonb",
    input_hash="text",
    options="jsonb",
    request_id="text",
)
record_step = one(
    "record_step",
    StepStart,
    run_id="text",
    token="bigint",
    name="text",
    input="jsonb",
    output="jsonb",
    duration="float8 * interval '1 second'",
    log_start="boolean",
)
record_steps = many("record_steps", StepStart, run_id="text", token="bigint", steps="jsonb")
record_steps_of_runs = scalar("record_steps_of_runs", runs="jsonb")
complete_step = scalar("complete_step", run_id="text", token="bigint", name="text", output="jsonb")
fail_step = one(
    "fail_step", StepFailure, run_id="text", token="bigint", name="text", error="jsonb", retryable="boolean"
)
load_checkpoints = many("load_checkpoints", Checkpoint, run_id="text", unfinished="boolean")
resolve_review = scalar(
    "resolve_review",
    run_id="text",
    step="text",
    decision="text",
    output="jsonb",
    actor="text",
    reason="text",
    request_id="text",
)


def step_timeline(run_id: str) -> Call[list[StepInfo]]:
    """The steps of a run, in the order in which they were last begun."""
    return rows_of("step_timeline", StepInfo, "started_at, name", run_id=run_id)


def latest_steps(run_id: str, max: int) -> Call[list[StepInfo]]:
    """The steps of a run that were begun last, in that order."""
    read = reader(StepInfo)
    latest = "select * from tidebase.step_timeline where run_id = %s order by started_at desc, name desc limit %s"
    query = f"select {columns(StepInfo)} from ({latest}) latest order by started_at, name"
    return Call(query, (run_id, max), lambda rows: list(map(read, rows)), places=(run_id,))


def step_named(run_id: str, name: str) -> Call[list[StepInfo]]:
    """One step of a run, if it was begun."""
    return rows_of("step_timeline", StepInfo, "name", run_id=run_id, name=name)


def review_inbox(run_id: str | None) -> Call[list[ReviewInfo]]:
    """The open reviews, oldest first."""
    return rows_of("review_inbox", ReviewInfo, "opened_at, run_id, step", run_id=run_id)


log = logging.getLogger("tidebase.step")

#: Options that the database does not keep as they are.
_NOT_KEPT = frozenset({"input", "key", "returns", "retry_on", "mark_start"})

#: How long an input may be, as JSON text, that the database takes for sure.
_LARGE = 100_000

#: The name of the step that is being executed; what its usage is recorded for.
current_step: ContextVar[str | None] = ContextVar("tidebase_current_step")
_PACKAGE = os.path.dirname(os.path.dirname(__file__))
T = TypeVar("T")
R = TypeVar("R")
Replay = Literal["auto", "manual", "never"]


class StepOptions(TypedDict, total=False):
    """What may be said about a step.

    Attributes:
        input: what the result depends on, when the function is a closure: hashed and compared on a replay.
        key: tells one of several from the others: the step is then known as ``name[key]``. A text, a number, a date,
            a UUID, a path, a member of an enum, bytes, or a tuple of those.
        returns: the type that the result comes back as; by default the function's return annotation.
        retries: how often a failure is retried, 0 to 1000; by default 0.
        retry_on: the exceptions that are worth a retry; by default every Exception.
        retry_delay_s: seconds before the first retry, doubled each time; by default 1.
        retry_max_delay_s: the cap of that, in seconds; by default 300.
        timeout_s: how long one execution may take, in seconds; by default any time.
        side_effects: what it does to the outside, e.g. ``["email.send"]``; ``["read"]`` and none are harmless.
        idempotency_key: by which the outside recognises a repetition.
        replay: ``auto`` (default), ``manual`` or ``never``: whether it may be executed again when it did not complete.
        checkpoint_invariant: what must hold for the checkpoint to be usable, in words.
        verified_by: how one finds out whether it took effect, in words.
        credentials: names of the credentials it needs.
        mark_start: when its start is written. True: before it is executed, as for every step with one of the other
            options that the database keeps (from ``retries`` to ``credentials``). By default: when it has been at work
            for 20 ms, or does something else with its run; a quicker step is written in one call when it completes.
            False: never; nobody sees it at work. Not for a step that does something to the outside.
    """

    input: Any
    key: Any
    returns: Any
    retries: int
    retry_on: type[Exception] | tuple[type[Exception], ...]
    retry_delay_s: float
    retry_max_delay_s: float
    timeout_s: float
    side_effects: Sequence[str]
    idempotency_key: str
    replay: Replay
    checkpoint_invariant: str
    verified_by: str
    credentials: Sequence[str]
    mark_start: bool


@dataclass
class Work(Generic[T]):
    """One step to be done: its name, its function and arguments, its options."""

    name: str
    function: Callable[..., T]
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    options: StepOptions = field(default_factory=StepOptions)
    full_name: str = field(init=False)

    def __post_init__(self) -> None:
        if self.options:
            check(StepOptions, self.options, "a step")
        self.full_name = full_name(self.name, self.options.get("key"))

    @classmethod
    def of(
        cls,
        name: str,
        function: Callable[..., T],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        options: StepOptions | None,
    ) -> Work[T]:
        """Sorts out keywords: alone behind the function they are options, behind arguments they are arguments, too.

        Raises:
            TypeError: they are both, or neither.
        """
        options = options or {}
        if not args and kwargs:
            known = kwargs.keys() & StepOptions.__annotations__.keys()
            if known == kwargs.keys():
                return cls(name, function, options=cast(StepOptions, {**options, **kwargs}))
            if known and not options:
                others = sorted(kwargs.keys() - known)
                near = "; ".join(unknown(name, StepOptions.__annotations__, "a step") for name in others)
                raise TypeError(
                    f"step options and arguments of the function ({', '.join(others)}) together: use "
                    f"run.step.options(...); {near}"
                )
        if kwargs:
            _require_parameters(function, args, kwargs)
        return cls(name, function, args, kwargs, options)

    def input(self, to_builtins: Callable[[Any], Any] = codec.to_builtins) -> Any:
        """What is hashed: the input that was named, else the arguments (a list; an object if there are keywords)."""
        if "input" in self.options:
            return to_builtins(self.options["input"])
        if self.kwargs:
            return to_builtins({"args": self.args, "kwargs": self.kwargs})
        return to_builtins(self.args) if self.args else None

    def mark(self, hold: Hold, text: str) -> Mark | None:
        """Its start, where that may be written later than it is executed, or never.

        Raises:
            InvalidArgument: it is not to be written, but the step does something to the outside: after a crash nobody
                would know.
        """
        marked = self.options.get("mark_start")
        if marked is False and set(self.options.get("side_effects") or ()) - {"read"}:
            raise InvalidArgument("mark_start must not be False for a step that does something to the outside")
        if len(text) > _LARGE:
            return None  # the database may refuse the input, and shall do so before anything is executed
        if marked is False:
            return Mark(None)
        if marked or not hold.marks_late or not self.options.keys() <= _NOT_KEPT:
            return None
        return Mark(lambda: _beginning(hold, self, text), lambda: all_stored(hold))

    def contract(self) -> dict[str, Any]:
        """The options that the database keeps, by the names of begin_step's parameters."""
        options = self.options
        if options.keys() <= _NOT_KEPT:
            return {}
        contract: dict[str, Any] = {
            name: options.get(name)
            for name in ("retries", "idempotency_key", "replay", "checkpoint_invariant", "verified_by")
        }
        for name in ("retry_delay", "retry_max_delay", "timeout"):
            seconds = options.get(f"{name}_s")
            contract[name] = None if seconds is None else timedelta(seconds=seconds)  # type: ignore[arg-type]
        for name in ("side_effects", "credentials"):
            values = options.get(name)
            contract[name] = None if values is None else list(values)  # type: ignore[call-overload]
        return contract


def _require_parameters(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Refuses keywords that the function does not take, before anything is begun: they were meant as options."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # one that is not written in Python
        return
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        known = StepOptions.__annotations__
        others = [name for name in kwargs if name not in signature.parameters]
        meant = [name for name in others if name in known]
        if meant:
            hint = f"; if {', '.join(meant)} is meant as an option of the step: run.step.options(...)"
        else:
            hint = "".join(f"; {unknown(name, known, 'a step')}" for name in others)
        raise TypeError(f"the function of a step does not take these arguments: {error}{hint}") from None


def describe(error: BaseException) -> str:
    """The JSON that is stored for an error: type, message, and the last frames of its traceback, the user's own."""
    frame = error.__traceback__
    while frame is not None and frame.tb_frame.f_code.co_filename.startswith(_PACKAGE):
        frame = frame.tb_next
    frames = traceback.format_exception(type(error), error, frame, limit=-5)
    text = {"type": type(error).__name__, "message": str(error), "traceback": "".join(frames)[-4000:]}
    return codec.encode({key: _printable(value) for key, value in text.items()})


def _printable(text: str) -> str:
    return text.replace("\0", "\\0").encode("utf-8", "backslashreplace").decode()


def recall_of(hold: Hold) -> Recall | None:
    """What recognises a write of an earlier attempt: None inside a step, which is executed once, and in a session."""
    is_inside = current_hold.get() is hold and current_step.get(None) is not None
    return None if is_inside else hold.recall


class Checkpoints:
    """The steps that are known to have been begun: before the lease was granted (with their checkpoints) or since."""

    def __init__(self, rows: list[Checkpoint] | None = None) -> None:
        self._rows: dict[str, Checkpoint | None] = {row.name: row for row in rows or ()}
        self._marks: dict[str, Mark] = {}
        #: Steps that were completed in a transaction of the caller's; nobody said whether that was committed.
        self.joined: set[str] = set()
        self._claims: dict[str, Work[Any] | None] = {}
        self._owners: dict[str, tuple[str, str]] = {}

    def claim(self, work: Work[Any]) -> None:
        """Takes a step's name for this attempt, until it is given back because the step failed. A step that an earlier
        version called by another name gets that one.

        Raises:
            StepNotRunning: it is at work, or was done in this attempt, under the same name.
        """
        name = work.full_name
        if name.endswith("]"):
            owner = work.name, name
            former = former_name(work.name, work.options.get("key"))
            if former != name and name not in self._rows and self._rows.get(former) and former not in self._owners:
                work.full_name = name = former
            if self._owners.setdefault(name, owner) != owner:
                raise StepNotRunning(
                    f"two steps of this run have the name {name!r}: one with a key, and one without or with another",
                    detail={"step": name},
                    hint="Give one of them another name.",
                )
        other = self._claims.setdefault(name, work)
        if other is not work:
            state = "was done in this attempt already" if other is None else "is running already under this lease"
            raise StepNotRunning(
                f"step {name!r} {state}",
                detail={"step": name, "status": "completed" if other is None else "running"},
                hint="Give each piece of work its own name, or tell them apart: run.step.options(key=...).",
            )

    def done(self, name: str) -> None:
        """The step is done: nobody does it again in this attempt."""
        self._claims[name] = None

    def give_back(self, name: str) -> None:
        """The step failed, so it may be done again."""
        self._claims.pop(name, None)

    def recall(self, work: Work[Any]) -> tuple[Any, Json | None]:
        """The input of a step, as it is known to the database, and its output where it is known here."""
        value = work.input()
        row = self._rows.get(work.full_name)
        if row is None:
            return value, None
        try:
            if digest(value) == row.input_hash:
                return value, row.output
            former = work.input(codec.unordered)
            if digest(former) == row.input_hash:
                return former, row.output
        except (ValueError, RecursionError):  # an integer or a depth that Python does not print
            pass
        return value, None

    def hash_of(self, name: str) -> bytes | None:
        """The hash of the input with which a step was begun by an earlier attempt."""
        row = self._rows.get(name)
        return None if row is None else row.input_hash

    def enter(self, name: str, mark: Mark) -> tuple[bool, Mark | None]:
        """Whether a step may be executed before the database has heard of it: if nobody has begun it before. And the
        mark of another thread that is at it just now.
        """
        if name in self._rows:
            return False, None
        if mark.hidden:
            return True, None
        other = self._marks.setdefault(name, mark)
        if other is not mark:
            return False, other
        if name in self._rows:  # the other left between the two looks
            del self._marks[name]
            return False, None
        return True, None

    def leave(self, name: str, mark: Mark | None) -> None:
        """The database knows of the step."""
        self._rows.setdefault(name, None)
        if mark is not None and self._marks.get(name) is mark:
            del self._marks[name]
            mark.leave()


def perform(hold: Hold, checkpoints: Checkpoints, work: Work[T]) -> Flow[T]:
    """Does a step: takes its checkpoint, or executes it until it completes or its failure is final.

    The flow of every step, with a function or inside a transaction; raises what the step's function raises.
    """
    returns = work.options.get("returns", codec.returned_type(work.function))
    hold.begin()
    checkpoints.claim(work)
    try:
        result = yield from _perform(hold, checkpoints, work, returns)
    except BaseException:
        checkpoints.give_back(work.full_name)
        raise
    checkpoints.done(work.full_name)
    return result


def _perform(hold: Hold, checkpoints: Checkpoints, work: Work[T], returns: Any) -> Flow[T]:
    name = work.full_name
    value, stored = checkpoints.recall(work)
    if stored is not None:
        return cast(T, _decoded(stored, returns, hold, name))
    text = codec.dumps(value)
    mark = work.mark(hold, text)
    if mark is not None:
        entered, other = checkpoints.enter(name, mark)
        if other is not None:
            yield from other.known()  # the database decides about this one
        if not entered:
            mark = None
    at_work = hold.in_flight.enter(name, mark)
    try:
        return (yield from _execute(hold, work, text, returns, mark))
    finally:
        checkpoints.leave(name, mark)
        hold.in_flight.leave(at_work)


def _execute(hold: Hold, work: Work[T], text: str, returns: Any, mark: Mark | None) -> Flow[T]:
    """Executes a step until it completes or its failure is final.

    Args:
        mark: its start, if that is not to be written before it is executed.
    """
    name = work.full_name
    late = mark if mark is not None and not mark.hidden else None
    while True:
        start = (yield from begin(hold, work, text)) if mark is None else None
        if start is not None and start.outcome == "replay":
            return cast(T, _decoded(start.output, returns, hold, name))
        contexts = current_step.set(name), current_mark.set(late), current_hold.set(hold)
        begun = time.monotonic()
        try:
            with hold.trace.step(name, start.attempt if start else 1):
                result = yield Invoke(work.function, work.args, work.kwargs, work.options.get("timeout_s"), late)
                settled = codec.settled(result, returns)
        except Exception as error:
            if late is not None:
                start = yield from late.outcome()
            if start is None:
                yield from begin(hold, work, text)  # the database decides what becomes of it, and keeps the error
            delay = yield from fail(hold, work, text, error)
            if delay is None:
                raise
            yield Pause(delay, hold.stirred)
            hold.check()
            if hold.departure is not None:
                raise hold.departure.error from None
            continue
        finally:
            current_step.reset(contexts[0])
            current_mark.reset(contexts[1])
            current_hold.reset(contexts[2])
            if late is not None:
                late.drop()
        if late is not None:
            start = yield from late.outcome()
        stored: Json | None = None
        try:
            if start is None:
                seconds = time.monotonic() - begun
                stored = yield from record(hold, name, text, settled.text, seconds, log_start=late is not None)
            elif _unless_in_review(start, hold, name).outcome == "replay":
                stored = start.output
            else:
                yield from all_stored(hold)
                completion = complete_step(run_id=hold.run_id, token=hold.token, name=name, output=settled.text)
                yield from _surely_begun(completion, hold, work, text)
        except InvalidArgument as error:  # a result that the database cannot hold
            if start is None:
                yield from begin(hold, work, text)
            yield from fail(hold, work, text, error, lasting=True)
            raise
        if stored is not None:
            return cast(T, _decoded(stored, returns, hold, name))
        if settled.problem is not None:
            raise _kept(settled.problem, hold, name)
        return cast(T, settled.value)


def _beginning(hold: Hold, work: Work[Any], text: str) -> Call[StepStart]:
    return begin_step(
        run_id=hold.run_id,
        token=hold.token,
        name=work.full_name,
        input=text,
        request_id=new_request_id(),
        **work.contract(),
    )


def begin(hold: Hold, work: Work[Any], text: str) -> Flow[StepStart]:
    """Begins a step with this input, as JSON text, once it may be begun."""
    yield from all_stored(hold)
    start: StepStart = yield _beginning(hold, work, text)
    return _unless_in_review(start, hold, work.full_name)


def record(hold: Hold, name: str, text: str, output: str, seconds: float, log_start: bool) -> Flow[Json | None]:
    """Stores the checkpoint of a step that was not begun; returns the one that stands already, if there is one. Where
    checkpoints are written behind the work, it is on its way.
    """
    alone = record_step(
        run_id=hold.run_id,
        token=hold.token,
        name=name,
        input=text,
        output=output,
        duration=seconds,
        log_start=log_start,
    )
    content = name, text, output, seconds, log_start
    joint: Joint[StepStart] = Joint((hold.run_id, hold.token), content, len(text) + len(output), alone, _gathered)
    behind = hold.behind
    if behind is not None and not behind.is_inherited and joint.size <= _LARGE:
        yield from behind.put(joint, lambda recorded: _unless_in_review(recorded, hold, name))
        return None
    yield from all_stored(hold)
    recorded: StepStart = yield joint
    return _unless_in_review(recorded, hold, name).output


def _gathered(joints: Sequence[Joint[StepStart]]) -> Call[list[StepStart | None]]:
    """The one call that records several steps: of one run, or new ones of several."""
    steps: dict[Any, list[str]] = {}
    for joint in joints:
        steps.setdefault(joint.key, []).append(_as_json(*joint.content))
    lists = {key: f"[{','.join(texts)}]" for key, texts in steps.items()}
    if len(lists) == 1:
        (((run_id, token), text),) = lists.items()
        return cast(Call[list[StepStart | None]], record_steps(run_id=run_id, token=token, steps=text))
    runs = [
        f'{{"run_id":{codec.dumps(run_id)},"token":{token},"steps":{text}}}' for (run_id, token), text in lists.items()
    ]
    call_of_all = record_steps_of_runs(runs=f"[{','.join(runs)}]")

    def read(rows: list[tuple[Any, ...]]) -> list[StepStart | None]:
        recorded = dict(zip(lists, call_of_all.read(rows), strict=True))
        return [StepStart("recorded", 1, None) if recorded[joint.key] else None for joint in joints]

    return Call(call_of_all.query, call_of_all.parameters, read)


def _as_json(name: str, text: str, output: str, seconds: float, log_start: bool) -> str:
    start = "true" if log_start else "false"
    return f'{{"name":{codec.dumps(name)},"input":{text},"output":{output},"duration":{seconds!r},"log_start":{start}}}'


def _unless_in_review(start: StepStart, hold: Hold, name: str) -> StepStart:
    if start.outcome == "review":
        found = codec.decode(start.output) or {}  # not this step, but one that was left unfinished before it
        name = found.get("step", name)
        hold.review = RunNeedsReview(
            f"step {name!r} of run {hold.run_id!r} may have taken effect: a person must decide whether it is repeated",
            detail={"run_id": hold.run_id, "step": name},
            hint=f"{to_review(hold.run_id, name)}; or call tide.runs.resolve_review.",
        )
        raise hold.review
    return start


def find_step(run_id: str, name: str) -> Flow[StepInfo]:
    """One step of a run. Raises RunNotFound, NotFound."""
    found: list[StepInfo] = yield step_named(run_id, name)
    if found:
        return found[0]
    yield get_run(run_id=run_id)
    raise NotFound(
        f"run {run_id!r} has no step {name!r}",
        detail={"run_id": run_id, "step": name},
        hint=f"See: {command('show', run_id)}",
    )


def fail(hold: Hold, work: Work[Any], text: str, error: Exception, lasting: bool = False) -> Flow[float | None]:
    """Records a step's failure; returns the seconds after which it is to be begun again, or None when it is final.

    Args:
        lasting: another execution would fail in the same way.
    """
    yield from all_stored(hold)
    name = work.full_name
    lasting = lasting or isinstance(error, (NotSerializable, StepOutputDecodeError))
    call = fail_step(
        run_id=hold.run_id,
        token=hold.token,
        name=name,
        error=describe(error),
        retryable=isinstance(error, work.options.get("retry_on", Exception)) and not lasting,
    )
    failure = yield from _surely_begun(call, hold, work, text)
    if failure.decision == "auto_retry" and failure.retry_after is not None:
        seconds = failure.retry_after.total_seconds()
        log.warning("run %s: step %s failed (%s), again in %.1f s", hold.run_id, name, error, seconds)
        return seconds
    note = f"tidebase: step {name!r} of run {hold.run_id!r} failed at attempt {failure.attempt} ({failure.decision})"
    if hasattr(error, "add_note"):
        error.add_note(note)
    log.warning("%s: %s", note, error)
    return None


def _surely_begun(call: Call[R], hold: Hold, work: Work[Any], text: str) -> Flow[R]:
    """Completes or fails a step; begins it once more where the database has forgotten that it was begun.

    The start of a step that does nothing to the outside commits asynchronously, so a crash of the server may lose it
    while the step is at work. The lease is still the same one, and the work is done: it only needs its row again, or
    where it was begun before, the row is as the try before this one, or an earlier lease, has left it.
    """
    try:
        result: R = yield call
    except StepNotRunning as error:
        status, token = error.detail.get("status"), error.detail.get("lease_token")
        if status in ("completed", "review") or (status == "running" and token == hold.token):
            raise
        log.warning("run %s: a crash of the server lost the start of step %s", hold.run_id, work.full_name)
        yield from begin(hold, work, text)
        result = yield call
    return result


def _decoded(text: str | None, returns: Any, hold: Hold, name: str) -> Any:
    try:
        return codec.decode(text, returns)
    except StepOutputDecodeError as error:
        raise _kept(error, hold, name) from error.__cause__


def _kept(problem: StepOutputDecodeError, hold: Hold, name: str) -> StepOutputDecodeError:
    """The error of a checkpoint that does not come back as its type: it is stored, so the step is done all the same."""
    problem.detail = {"run_id": hold.run_id, "step": name}
    problem.hint = (
        "The step is completed: its result is stored as it is, and the step is not executed again. Make the type accept"
        " it, or ask for another one with returns=."
    )
    return problem


def _written(hold: Hold) -> Flow[None]:
    """The log says that a step was started before it says what the step did. Code in a thread of its own does not know
    which step it belongs to: then it may be any that is in flight.
    """
    mark = current_mark.get()
    if mark is not None:
        yield from mark.written()
    elif current_hold.get() is not hold:
        for other in hold.in_flight.marks():
            yield from other.written()


def step_of(hold: Hold) -> str | None:
    """The step that the code at hand is part of, as far as that is known."""
    return current_step.get(None) if current_hold.get() is hold else hold.in_flight.only


def settled(flow: Flow[T], hold: Hold) -> Flow[T]:
    """The same flow, once all is stored that the work was told: what it does can be seen by others."""
    yield from all_stored(hold)
    return (yield from flow)


def outside(flow: Flow[T], hold: Hold) -> Flow[T]:
    """The same flow, as the user of a session sees it: what ends the work is an ordinary exception."""
    try:
        yield from _written(hold)
        return (yield from flow)
    except Interruption as error:
        if isinstance(error, TidebaseError) or not isinstance(error.__cause__, TidebaseError):
            raise
        raise error.__cause__ from None


def inside(flow: Flow[T], hold: Hold) -> Flow[T]:
    """The same flow, as a workflow sees it: what must not be swallowed is raised as an Interruption."""
    try:
        yield from _written(hold)
        return (yield from flow)
    except TidebaseError as error:
        inner = interruption(error)
        if inner is error:
            raise
        raise inner from error


def resolve(run_id: str, name: str, decision: str, output: Any, actor: str | None, reason: str | None) -> Call[Any]:
    """The call that decides about a step in review: once, however often it has to be made."""
    return resolve_review(
        run_id=run_id,
        step=name,
        decision=decision,
        output=None if output is ... or decision != "accept" else codec.encode(output),
        actor=actor,
        reason=reason,
        request_id=new_request_id(),
    )
