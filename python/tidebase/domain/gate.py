"""Gates: asking a person, and waiting, with a process or without one; and timers, which wait for a moment."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, TypedDict

from ..core import codec
from ..core.call import Call, Value, many, one, rows_of, scalar
from ..core.errors import GateAnswerInvalid, NotFound, RunCancelledError, RunSuspendedError, TidebaseError
from ..core.flow import Flow, Listen
from ..core.hints import to_decide
from ..core.options import check
from .event import watch_run
from .lease import Departure, Hold, depart, new_request_id

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True)
class GateRow:
    """Answer of open_gate and start_timer; see the type tidebase.gate_opening."""

    status: str
    decision: str | None
    payload: Value
    comment: str | None
    actor: str | None
    decided_at: datetime | None
    decided_by: str | None
    timeout_at: datetime | None
    secret: str | None
    created: bool


@dataclass(frozen=True)
class GateDecision:
    """Answer of decide_gate. ``accepted``: whether this decision was taken; the rest is what stands now.

    ``status`` is ``pending`` while more approvals are needed (``approvals`` of ``required``).
    """

    accepted: bool
    status: str
    decision: str | None
    payload: Value
    comment: str | None
    actor: str | None
    decided_at: datetime | None
    approvals: int
    required: int


@dataclass(frozen=True)
class GateInfo:
    """A gate or a timer, as the view gate_overview has it."""

    run_id: str
    name: str
    kind: str
    status: str
    prompt: str | None
    data: Value
    options: list[str]
    response_schema: Value
    capability: Value
    required_approvals: int
    timeout_at: datetime | None
    default_decision: str | None
    decision: str | None
    payload: Value
    comment: str | None
    actor: str | None
    decided_by: str | None
    created_at: datetime
    decided_at: datetime | None


@dataclass(frozen=True)
class Ballot:
    """A vote at a gate that needs several approvals, as the view gate_ballots has it."""

    run_id: str
    name: str
    voter: str
    decision: str
    comment: str | None
    voted_at: datetime


def behind_gate(gate: GateInfo | None) -> dict[str, Any]:
    """The parameters by which list_gates goes on behind a gate."""
    if gate is None:
        return {}
    return {"after_created_at": gate.created_at, "after_run_id": gate.run_id, "after_name": gate.name}


open_gate = one(
    "open_gate",
    GateRow,
    run_id="text",
    token="bigint",
    name="text",
    prompt="text",
    data="jsonb",
    options="text[]",
    timeout="interval",
    default_decision="text",
    capability="jsonb",
    response_schema="jsonb",
    required_approvals="integer",
)
start_timer = one("start_timer", GateRow, run_id="text", token="bigint", name="text", duration="interval")
decide_gate = one(
    "decide_gate",
    GateDecision,
    run_id="text",
    name="text",
    decision="text",
    actor="text",
    payload="jsonb",
    secret="text",
    comment="text",
    request_id="text",
    voter="text",
)
get_gate_secret = scalar("get_gate_secret", run_id="text", name="text", voter="text")
suspend_run = scalar("suspend_run", run_id="text", token="bigint", name="text")
get_gate = one("get_gate", GateInfo, run_id="text", name="text")
list_gates = many(
    "list_gates",
    GateInfo,
    run_id="text",
    status="text",
    max="integer",
    after_created_at="timestamptz",
    after_run_id="text",
    after_name="text",
)


list_inbox = many("list_inbox", GateInfo, max="integer", after_run_id="text", after_name="text")


def gate_ballots(run_id: str, name: str | None = None) -> Call[list[Ballot]]:
    """The votes at the gates of a run, or at one of them."""
    return rows_of("gate_ballots", Ballot, "voted_at, voter", run_id=run_id, name=name)


def run_gates(run_id: str) -> Call[list[GateInfo]]:
    """The gates and timers of a run, oldest first."""
    return rows_of("gate_overview", GateInfo, "created_at, name", run_id=run_id)


def gate_named(run_id: str, name: str) -> Call[list[GateInfo]]:
    """One gate or timer of a run, if it is there."""
    return rows_of("gate_overview", GateInfo, "name", run_id=run_id, name=name)


log = logging.getLogger("tidebase.gate")

#: How often a waiting process looks for itself, in seconds, should the doorbell fail.
POLL_S = 0.5
_WATCH = timedelta(seconds=60)

#: For shorter timers, in seconds, a run does not give its worker up by itself: it would be longer on its way back.
WORTH_S = 10.0

#: The decisions that may be given where nothing is said.
_CHOICES = ("approved", "rejected")


class GateOptions(TypedDict, total=False):
    """What may be said about a gate.

    Attributes:
        data: what is shown with the prompt: any value that can be stored as JSON.
        options: the decisions that may be given; by default ``approved`` and ``rejected``.
        timeout_s: seconds after which the default decision falls by itself; by default never.
        default_decision: which one that is; by default ``timed_out``.
        capability: what an approval allows, for the audit.
        response_schema: a JSON Schema that the answer's payload must fit (needs the extra ``schema``).
        required_approvals: how many different people must agree; by default 1. Each votes with a login of their own, or
            with a personal secret (``gates.secret(name, voter=...)``).
    """

    data: Any
    options: Sequence[str]
    timeout_s: float
    default_decision: str
    capability: Any
    response_schema: dict[str, Any] | bool
    required_approvals: int


@dataclass(frozen=True)
class GateAnswer:
    """The one decision of a gate.

    ``payload`` is the answer, or the changed arguments of an ``edited``; ``decision`` is ``timed_out``, or the default
    that was named, when nobody decided in time (``decided_by`` is ``timeout`` then, else ``secret`` or ``approver``).
    """

    name: str
    decision: str
    payload: Any
    comment: str | None
    actor: str | None
    decided_at: datetime | None
    decided_by: str | None

    @property
    def approved(self) -> bool:
        """Whether the answer is yes: ``approved``, or ``edited`` (approved with other arguments)."""
        return self.decision in ("approved", "edited")


@dataclass(frozen=True)
class GateOpening:
    """A gate that was opened without waiting for it.

    ``answer`` is None while nobody has decided. ``secret`` entitles its bearer to decide (with ``required_approvals``
    only to reject): hand it to the approver, keep it out of logs (the repr does not show it).
    """

    name: str
    answer: GateAnswer | None
    secret: str
    timeout_at: datetime | None

    def __repr__(self) -> str:
        return f"GateOpening(name={self.name!r}, answer={self.answer!r}, timeout_at={self.timeout_at!r})"


def begin(hold: Hold, name: str, prompt: str | None, options: GateOptions) -> Flow[GateOpening]:
    """Opens a gate, or finds it."""
    check(GateOptions, options, "a gate")
    hold.begin()
    schema = options.get("response_schema")
    if schema is not None:
        _validator(schema)  # before anybody is asked
    seconds = options.get("timeout_s")
    choices = options.get("options")
    row: GateRow = yield open_gate(
        run_id=hold.run_id,
        token=hold.token,
        name=name,
        prompt=prompt,
        data=_encoded(options.get("data")),
        options=None if choices is None else list(choices),
        timeout=None if seconds is None else timedelta(seconds=seconds),
        default_decision=options.get("default_decision"),
        capability=_encoded(options.get("capability")),
        response_schema=_encoded(schema),
        required_approvals=options.get("required_approvals"),
    )
    answer = _answer(name, row) if row.status == "decided" else None
    if answer is not None:
        check_answer(answer, schema)
    return GateOpening(name, answer, row.secret or "", row.timeout_at)


def ask(hold: Hold, name: str, prompt: str | None, options: GateOptions, suspend: bool | None) -> Flow[GateAnswer]:
    """Opens a gate and waits for its decision, or suspends the run for it."""
    opening = yield from begin(hold, name, prompt, options)
    if opening.answer is not None:
        return opening.answer
    if hold.is_to_suspend(suspend):
        choices = options.get("options")
        yield from _suspend(hold, name, to_decide(hold.run_id, name, _CHOICES if choices is None else choices))
    log.info("run %s waits for a decision at gate %s", hold.run_id, name)
    decided = yield from wait(hold, name)
    answer = _answer(name, decided)
    check_answer(answer, options.get("response_schema"))
    return answer


def get(hold: Hold, name: str) -> Flow[GateAnswer | None]:
    """The answer of a gate, None while nobody has decided. Raises NotFound."""
    hold.check()
    info: GateInfo = yield get_gate(run_id=hold.run_id, name=name)
    if info.status != "decided":
        return None
    answer = _answer(name, info)
    check_answer(answer, info.response_schema)
    return answer


def secret(hold: Hold, name: str, voter: str | None) -> Flow[str | None]:
    """The secret of a gate, or a voter's personal one. Raises NotFound."""
    hold.check()
    found: str | None = yield get_gate_secret(run_id=hold.run_id, name=name, voter=voter)
    return found


def sleep(hold: Hold, name: str, seconds: float, suspend: bool | None) -> Flow[None]:
    """Waits for a durable timer: what is left of it, when the run was resumed."""
    hold.begin()
    row: GateRow = yield start_timer(
        run_id=hold.run_id, token=hold.token, name=name, duration=timedelta(seconds=seconds)
    )
    if row.status == "decided":
        return
    if hold.is_to_suspend(False if suspend is None and seconds < WORTH_S else suspend):
        yield from _suspend(hold, name)
    yield from wait(hold, name)


def wait(hold: Hold, name: str) -> Flow[GateInfo]:
    """Waits until a gate or timer is decided; the lease is kept alive meanwhile."""
    watched = 0.0
    while True:
        if time.monotonic() >= watched:
            watched = time.monotonic() + _WATCH.total_seconds() / 2
            yield watch_run(run_id=hold.run_id, ttl=_WATCH)
        info: GateInfo = yield get_gate(run_id=hold.run_id, name=name)
        if info.status == "decided":
            return info
        if info.status == "cancelled":
            raise RunCancelledError(f"run {hold.run_id!r} is cancelled", detail={"run_id": hold.run_id, "gate": name})
        hold.begin()
        yield Listen(hold.run_id, POLL_S)


def decision(run_id: str, name: str, decision: str, *, payload: Any, **words: str | None) -> Call[GateDecision]:
    """The call that decides a gate, safe to repeat."""
    return decide_gate(
        run_id=run_id, name=name, decision=decision, payload=_encoded(payload), request_id=new_request_id(), **words
    )


def _suspend(hold: Hold, name: str, how: str | None = None) -> Flow[None]:
    again = "all tide.run with the same run_id once that is over, or with wait_s to wait for it."
    error = RunSuspendedError(
        f"run {hold.run_id!r} waits for {name!r}",
        detail={"run_id": hold.run_id, "gate": name},
        hint=f"C{again}" if how is None else f"{how}; c{again}",
    )
    call = suspend_run(run_id=hold.run_id, token=hold.token, name=name)
    yield from depart(hold, Departure(error, call))


def _answer(name: str, row: GateRow | GateInfo) -> GateAnswer:
    if row.decision is None:
        raise NotFound(f"gate {name!r} has no decision")
    return GateAnswer(name, row.decision, row.payload, row.comment, row.actor, row.decided_at, row.decided_by)


def check_answer(answer: GateAnswer, schema: Any) -> None:
    """Raises GateAnswerInvalid when an answer's payload does not fit the schema; a bare "rejected" needs none."""
    unanswered = answer.decided_by == "timeout" or (answer.decision == "rejected" and answer.payload is None)
    if schema is None or unanswered:
        return
    problem = next(iter(_validator(schema).iter_errors(answer.payload)), None)
    if problem is not None:
        raise GateAnswerInvalid(
            f"the answer at gate {answer.name!r} does not fit its schema: {problem.message} - at `{problem.json_path}`",
            detail={"gate": answer.name, "decision": answer.decision},
        )


def _validator(schema: Any) -> Any:
    try:
        import jsonschema
    except ImportError:
        raise TidebaseError(
            "a response_schema cannot be checked without jsonschema", hint="pip install 'tidebase-postgres[schema]'"
        ) from None
    kind = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
    kind.check_schema(schema)
    return kind(schema)


def _encoded(value: Any) -> str | None:
    return None if value is None else codec.encode(value)
