"""Each SQL function once: its name, its parameters with their SQL types, the row it returns.

A :class:`Call` is a value: a statement, its parameters and how to read its rows. The sync and the async executor of
``database`` send it; nothing here touches a connection. JSON travels as text both ways. A column of type :data:`Json`
stays text until somebody knows what to decode it as; one of type :data:`Value` is decoded right away.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Annotated, Any, Generic, NewType, TypeVar, get_type_hints

from . import codec
from .options import require_zone

R = TypeVar("R")

#: JSON text that has not been decoded.
Json = NewType("Json", str)

#: A JSON column that is decoded when its row is read; None for SQL NULL and for the JSON null.
Value = Annotated[Any, "json"]


@dataclass(slots=True)
class Call(Generic[R]):
    """One statement, which is one round trip and one transaction.

    Attributes:
        held: whether it is part of the work under a lease, which would be lost with it.
    """

    query: str
    parameters: tuple[Any, ...]
    read: Callable[[list[tuple[Any, ...]]], R]
    held: bool = False


@dataclass(frozen=True)
class Lease:
    """Answer of acquire_run; see the type tidebase.lease. ``traceparent``: the span to link to."""

    outcome: str
    token: int | None
    attempt: int | None
    workflow: str | None
    input: Json | None
    result: Json | None
    holder: str | None
    expires_at: datetime | None
    checkpoints: int | None
    traceparent: str | None
    has_budget: bool | None


@dataclass(frozen=True)
class Renewal:
    """A lease that was renewed; see the type tidebase.renewal."""

    run_id: str
    expires_at: datetime


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
class Event:
    """One entry of a run's log; the types and payloads are listed at the top of ``sql/functions/event.sql``."""

    seq: int
    type: str
    payload: Value
    created_at: datetime


@dataclass(frozen=True)
class RunInfo:
    """A run, as the view run_overview has it.

    ``lease_lapsed``: the holder has gone silent and another worker may take over. ``code_version``: of the latest
    attempt. ``finished_at``: None while the run may go on by itself. ``failure_class``: of a failed run, error (its
    work raised one) or crashed (it lost its worker ``max_attempts`` times).
    """

    run_id: str
    workflow: str
    status: str
    attempt: int
    lease_token: int
    holder: str | None
    lease_expires_at: datetime | None
    lease_lapsed: bool
    steps_completed: int
    last_seq: int
    code_version: str | None
    input: Value
    metadata: Value
    result: Value
    error: Value
    created_at: datetime
    updated_at: datetime
    finished_at: datetime | None
    waiting_for: str | None
    available_at: datetime | None
    deadline_at: datetime | None
    max_attempts: int | None
    recovery_webhook: str | None
    cancelled_at: datetime | None
    cancel_reason: str | None
    cancel_actor: str | None
    compacted_at: datetime | None
    failure_class: str | None
    parent_run_id: str | None


@dataclass(frozen=True)
class RunCount:
    """How many runs are in a status; ``estimated``: by the statistics of the last ANALYZE, beyond two thousand."""

    status: str
    runs: int
    estimated: bool


@dataclass(frozen=True)
class Attempt:
    """A lease that was granted, as the view run_attempts has it; ``outcome`` is None while it lasts.

    ``lapsed_at``: the end of its lease that ``reconcile`` saw pass last; nothing has ended by that.
    """

    run_id: str
    attempt: int
    lease_token: int
    holder: str
    code_version: str | None
    started_at: datetime
    ended_at: datetime | None
    outcome: str | None
    error: Value
    traceparent: str | None
    lapsed_at: datetime | None


@dataclass(frozen=True)
class StepInfo:
    """A step, as the view step_timeline has it.

    ``attempt``: how often it was begun, 1 when it ran once. ``lease_token``: the lease under which it was last begun.
    ``decision``: what was decided about its last failure.
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


@dataclass(frozen=True)
class RunFailure:
    """Answer of fail_run; see the type tidebase.run_failure."""

    seq: int
    status: str
    retry_at: datetime | None


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


@dataclass(frozen=True)
class StalledRun:
    """A run that does not go on by itself, as the view stalled_runs has it.

    ``reason``: lease_lapsed, review, overdue or not_taken_up.
    """

    run_id: str
    workflow: str
    status: str
    reason: str
    since: datetime
    holder: str | None
    attempt: int
    waiting_for: str | None
    error: Value
    recovery_webhook: str | None


@dataclass(frozen=True)
class Recovery:
    """An attempt to recover a run, as the view recovery_history has it."""

    run_id: str
    recovery: int
    reason: str
    actor: str | None
    found_status: str
    status: str
    url: str | None
    delivery_attempts: int
    http_status: int | None
    response: str | None
    error: str | None
    created_at: datetime
    finished_at: datetime | None


@dataclass(frozen=True)
class Delivery:
    """A webhook that is to be delivered. ``attempts``: the number of this attempt."""

    run_id: str
    delivery: int
    attempts: int
    url: str
    body: Value


@dataclass(frozen=True)
class Reconciliation:
    """Answer of reconcile: how many runs were looked at, and what had run out."""

    runs: int
    leases: int
    gates: int
    timers: int
    deadlines: int


@dataclass(frozen=True)
class Child:
    """Answer of create_child: the child's id, and whether this call made it."""

    run_id: str
    created: bool


@dataclass(frozen=True)
class TreeNode:
    """A run of a tree, as run_tree returns it. ``name`` and ``edge_type``: of the edge to it, None for the root."""

    run_id: str
    parent_run_id: str | None
    name: str | None
    edge_type: str | None
    depth: int
    workflow: str
    status: str
    steps_completed: int
    created_at: datetime
    finished_at: datetime | None


@dataclass(frozen=True)
class StateVersion:
    """A version of a stream; ``value`` is None where it was not asked for.

    ``operation``: set, patch, save, restore or snapshot. ``seq``: of the version's event.
    """

    stream: str
    version: int
    value: Value
    operation: str
    importance: str
    label: str | None
    reason: str | None
    created_by: str
    metadata: Value
    seq: int
    created_at: datetime


@dataclass(frozen=True)
class Snapshot:
    """A labeled version: of a target, or of the run's state (``target_type`` is ``state`` then)."""

    target_type: str
    target_id: str
    stream: str
    version: int
    label: str
    value: Value
    reason: str | None
    created_by: str
    metadata: Value
    seq: int
    created_at: datetime


@dataclass(frozen=True)
class Difference:
    """One thing in which two runs differ.

    ``kind``: input, step, gate, state or result. ``difference``: missing (the other run does not have it), added (only
    the other has it), input (begun with another input) or value.
    """

    kind: str
    name: str | None
    difference: str
    seq: int | None
    other_seq: int | None
    value: Value
    other: Value


@dataclass(frozen=True)
class UsageTotal:
    """Answer of record_usage: the run's totals so far.

    ``recorded``: whether this call was counted. ``unpriced``: how many records have no price. ``exhausted``: a budget
    is used up. ``seq``: of the record's event.
    """

    recorded: bool
    records: int
    input_tokens: int
    output_tokens: int
    cost_usd: Decimal
    unpriced: int
    exhausted: bool
    seq: int


@dataclass(frozen=True)
class UsageTotals:
    """What a run used, itself and (``tree_...``) with its descendants, and its limits: a row of usage_totals."""

    run_id: str
    records: int
    unpriced: int
    input_tokens: int
    cache_read_tokens: int
    cache_write_tokens: int
    output_tokens: int
    reasoning_tokens: int
    cost_usd: Decimal
    tree_runs: int
    tree_records: int
    tree_unpriced: int
    tree_input_tokens: int
    tree_output_tokens: int
    tree_cost_usd: Decimal
    cost_limit_usd: Decimal | None
    token_limit: int | None


@dataclass(frozen=True)
class UsageByStep:
    """What a step used, in one currency, as the view usage_by_step has it; a sum is None where nobody knows it."""

    run_id: str
    step: str | None
    currency: str
    records: int
    unpriced: int
    input_tokens: int | None
    cache_read_tokens: int | None
    cache_write_tokens: int | None
    output_tokens: int | None
    reasoning_tokens: int | None
    cost: Decimal | None


@dataclass(frozen=True)
class UsageByModel:
    """What a run used of a model, in one currency, as the view usage_by_model has it."""

    run_id: str
    provider: str | None
    model: str | None
    currency: str
    records: int
    unpriced: int
    input_tokens: int | None
    cache_read_tokens: int | None
    cache_write_tokens: int | None
    output_tokens: int | None
    reasoning_tokens: int | None
    cost: Decimal | None


@dataclass(frozen=True)
class UsageRecord:
    """One record of usage, as the view usage_records has it; ``seq``: of its event."""

    run_id: str
    seq: int
    kind: str
    step: str | None
    provider: str | None
    model: str | None
    response_id: str | None
    input_tokens: int | None
    cache_read_tokens: int | None
    cache_write_tokens: int | None
    output_tokens: int | None
    reasoning_tokens: int | None
    cost: Decimal | None
    currency: str
    quantity: Decimal | None
    unit: str | None
    label: str | None
    metadata: Value
    created_at: datetime


@dataclass(frozen=True)
class RunSize:
    """What a run stores: rows, and bytes of its values as they are stored, as the view run_sizes has it."""

    run_id: str
    run_bytes: int
    steps: int
    step_bytes: int
    events: int
    event_bytes: int
    state_versions: int
    state_bytes: int
    compacted_at: datetime | None


@dataclass(frozen=True)
class Watch:
    """Answer of watch_run; see the type tidebase.watch."""

    channel: str
    status: str
    last_seq: int
    watched_until: datetime


def columns(row: type[Any]) -> str:
    """The select list for a row class: its fields, JSON as text."""
    return ", ".join(f"{name}::text" if hint in _AS_TEXT else name for name, hint in _hints(row).items())


def reader(row: type[R]) -> Callable[[tuple[Any, ...]], R]:
    """Makes an object of the row class from a row of :func:`columns`."""
    decoded = [index for index, hint in enumerate(_hints(row).values()) if hint == Value]
    if not decoded:
        return lambda values: row(*values)

    def read(values: tuple[Any, ...]) -> R:
        changed = list(values)
        for index in decoded:
            changed[index] = codec.readable(changed[index])
        return row(*changed)

    return read


def _hints(row: type[Any]) -> dict[str, Any]:
    hints = get_type_hints(row, include_extras=True)
    return {f.name: hints[f.name] for f in fields(row)}


_AS_TEXT = (Json, Json | None, Value)


class Function(Generic[R]):
    """A function of the schema: called with its parameters by name it makes a :class:`Call`; None means the default."""

    def __init__(
        self, name: str, select: str, read: Callable[[list[tuple[Any, ...]]], R], /, **parameters: str
    ) -> None:
        self._name = name
        self._select = select
        self._read = read
        self._parameters = parameters
        self._held = "token" in parameters and name != "release_run"
        self._times = [name for name, kind in parameters.items() if kind == "timestamptz"]
        self._queries: dict[tuple[str, ...], str] = {}

    @property
    def name(self) -> str:
        """The function's name, without its schema."""
        return self._name

    def __call__(self, **arguments: Any) -> Call[R]:
        values = tuple(arguments.values())
        given = tuple(arguments)
        if any(value is None for value in values):
            given = tuple(name for name in given if arguments[name] is not None)
            values = tuple(arguments[name] for name in given)
        for name in self._times:
            if name in given:
                require_zone(arguments[name], name)
        query = self._queries.get(given)
        if query is None:
            named = ", ".join(f"{name} => %s::{self._parameters[name]}" for name in given)
            query = self._queries[given] = self._select.format(f"tidebase.{self._name}({named})")
        return Call(query, values, self._read, self._held)


def one(name: str, row: type[R], /, **parameters: str) -> Function[R]:
    """A function that returns one row."""
    read = reader(row)
    return Function(name, f"select {columns(row)} from {{}}", lambda rows: read(rows[0]), **parameters)


def many(name: str, row: type[R], /, **parameters: str) -> Function[list[R]]:
    """A function that returns rows."""
    read = reader(row)
    return Function(name, f"select {columns(row)} from {{}}", lambda rows: list(map(read, rows)), **parameters)


def scalar(name: str, /, **parameters: str) -> Function[Any]:
    """A function that returns one value."""
    return Function(name, "select {}", lambda rows: rows[0][0], **parameters)


create_run = scalar(
    "create_run",
    workflow="text",
    input="jsonb",
    run_id="text",
    metadata="jsonb",
    deadline="timestamptz",
    max_attempts="integer",
    retry_delay="interval",
    recovery_webhook="text",
    budget="jsonb",
    traceparent="text",
)
acquire_run = one(
    "acquire_run",
    Lease,
    run_id="text",
    holder="text",
    ttl="interval",
    code_version="text",
    request_id="text",
    traceparent="text",
)
renew_lease = scalar("renew_lease", run_id="text", token="bigint", ttl="interval")
renew_leases = many("renew_leases", Renewal, run_ids="text[]", tokens="bigint[]", ttl="interval")
release_run = scalar("release_run", run_id="text", token="bigint")
withdraw_grant = scalar("withdraw_grant", run_id="text", request_id="text")
complete_run = scalar("complete_run", run_id="text", token="bigint", result="jsonb")
fail_run = one("fail_run", RunFailure, run_id="text", token="bigint", error="jsonb", retryable="boolean")
cancel_run = scalar("cancel_run", run_id="text", reason="text", actor="text", cascade="boolean")
recover_run = scalar("recover_run", run_id="text", reason="text", actor="text", request_id="text")
reconcile = one("reconcile", Reconciliation, max="integer")
watch_run = one("watch_run", Watch, run_id="text", ttl="interval")
get_run = one("get_run", RunInfo, run_id="text")
find_run = scalar("find_run", prefix="text")
list_runs = many(
    "list_runs",
    RunInfo,
    workflow="text",
    status="text",
    before="text",
    max="integer",
    created_after="timestamptz",
    created_before="timestamptz",
    before_created_at="timestamptz",
    roots="boolean",
)
count_runs = many("count_runs", RunCount)


def behind_run(run: str | RunInfo | None) -> dict[str, Any]:
    """The parameters by which list_runs goes on behind a run."""
    if isinstance(run, RunInfo):
        return {"before": run.run_id, "before_created_at": run.created_at}
    return {"before": run}


def behind_gate(gate: GateInfo | None) -> dict[str, Any]:
    """The parameters by which list_gates goes on behind a gate."""
    if gate is None:
        return {}
    return {"after_created_at": gate.created_at, "after_run_id": gate.run_id, "after_name": gate.name}


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
complete_step = scalar("complete_step", run_id="text", token="bigint", name="text", output="jsonb")
fail_step = one(
    "fail_step", StepFailure, run_id="text", token="bigint", name="text", error="jsonb", retryable="boolean"
)
load_checkpoints = many("load_checkpoints", Checkpoint, run_id="text", unfinished="boolean")
append_event = scalar(
    "append_event", run_id="text", token="bigint", type="text", payload="jsonb", request_id="text", transient="boolean"
)
read_events = many("read_events", Event, run_id="text", after="bigint", max="integer")


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
claim_deliveries = many("claim_deliveries", Delivery, max="integer", ttl="interval")
finish_delivery = scalar(
    "finish_delivery",
    run_id="text",
    delivery="integer",
    attempt="integer",
    delivered="boolean",
    http_status="integer",
    response="text",
    error="text",
    max_attempts="integer",
)


create_child = one(
    "create_child",
    Child,
    run_id="text",
    token="bigint",
    name="text",
    workflow="text",
    input="jsonb",
    edge_type="text",
    metadata="jsonb",
    edge_metadata="jsonb",
    max_attempts="integer",
    retry_delay="interval",
    recovery_webhook="text",
    budget="jsonb",
    traceparent="text",
)
suspend_for_children = scalar("suspend_for_children", run_id="text", token="bigint", names="text[]")
run_tree = many("run_tree", TreeNode, run_id="text")
fork_run = scalar(
    "fork_run",
    run_id="text",
    new_run_id="text",
    through_step="text",
    through_seq="bigint",
    input="jsonb",
    reason="text",
    actor="text",
)
diff_runs = many("diff_runs", Difference, run_id="text", other_run_id="text")

_VERSION = {
    "label": "text",
    "stream": "text",
    "reason": "text",
    "importance": "text",
    "metadata": "jsonb",
    "created_by": "text",
    "expected_version": "integer",
    "request_id": "text",
}
set_state = scalar("set_state", run_id="text", token="bigint", value="jsonb", **_VERSION)
patch_state = scalar("patch_state", run_id="text", token="bigint", patch="jsonb", **_VERSION)
save_state = scalar("save_state", run_id="text", token="bigint", **_VERSION)
restore_state = scalar("restore_state", run_id="text", token="bigint", version="integer", **_VERSION)
get_state = one(
    "get_state",
    StateVersion,
    run_id="text",
    stream="text",
    version="integer",
    at="timestamptz",
    seq="bigint",
    label="text",
)
list_state_versions = many(
    "list_state_versions",
    StateVersion,
    run_id="text",
    stream="text",
    labeled="boolean",
    before="integer",
    max="integer",
    with_value="boolean",
)
create_snapshot = scalar(
    "create_snapshot",
    run_id="text",
    token="bigint",
    label="text",
    target_type="text",
    target_id="text",
    state="jsonb",
    reason="text",
    importance="text",
    metadata="jsonb",
    created_by="text",
    request_id="text",
)
list_snapshots = many(
    "list_snapshots",
    Snapshot,
    run_id="text",
    target_type="text",
    target_id="text",
    label="text",
    max="integer",
    with_value="boolean",
)

record_usage = one(
    "record_usage",
    UsageTotal,
    run_id="text",
    token="bigint",
    step="text",
    kind="text",
    provider="text",
    model="text",
    input_tokens="bigint",
    output_tokens="bigint",
    cost_usd="numeric",
    quantity="numeric",
    unit="text",
    response_id="text",
    cache_read_tokens="bigint",
    cache_write_tokens="bigint",
    reasoning_tokens="bigint",
    cost="numeric",
    currency="text",
    label="text",
    metadata="jsonb",
    request_id="text",
)
set_budget = scalar("set_budget", run_id="text", cost_usd="numeric", tokens="bigint", actor="text", reason="text")
purge_runs = scalar("purge_runs", older_than="interval", statuses="text[]", max="integer")
compact_run = scalar("compact_run", run_id="text")


def rows_of(view: str, row: type[R], order: str, **where: Any) -> Call[list[R]]:
    """Rows of a view, those with these values; the names are the code's own, never a caller's."""
    given = {name: value for name, value in where.items() if value is not None}
    condition = " and ".join(f"{name} = %s" for name in given) or "true"
    query = f"select {columns(row)} from tidebase.{view} where {condition} order by {order}"
    read = reader(row)
    return Call(query, tuple(given.values()), lambda rows: list(map(read, rows)))


@dataclass(frozen=True)
class Audience:
    """For whom a function or a view is. ``user``: who asks; ``allowed``: whether it is for this user; ``roles``: those
    that it was granted to; ``owner``: whose it is. The names are quoted where SQL wants that.
    """

    user: str
    allowed: bool
    roles: list[str]
    owner: str


def audience_of(call: Call[Any]) -> Call[list[Audience]]:
    """For whom the function is that a call is made to, or the view: from the catalogue, which anybody may read."""
    named = re.search(r"\btidebase\.(\w+)", call.query)
    return Call(_AUDIENCE, (named[1] if named else "",), lambda rows: [Audience(*row) for row in rows])


_AUDIENCE = """
select quote_ident(current_user), bool_or(pg_has_role(coalesce(nullif(a.grantee, 0), o.owner), 'usage')),
  coalesce(array_agg(distinct quote_ident(r.rolname)) filter (where r.oid <> o.owner), '{}'),
  quote_ident(pg_get_userbyid(o.owner))
from (
  select p.proowner, coalesce(p.proacl, acldefault('f', p.proowner)), p.pronamespace, p.proname from pg_proc p
  union all
  select c.relowner, coalesce(c.relacl, acldefault('r', c.relowner)), c.relnamespace, c.relname from pg_class c
) o (owner, acl, schema, name)
cross join aclexplode(o.acl) a
left join pg_roles r on r.oid = a.grantee
where o.schema = to_regnamespace('tidebase') and o.name = %s and a.privilege_type in ('EXECUTE', 'SELECT')
group by o.owner
"""


def run_attempts(run_id: str) -> Call[list[Attempt]]:
    """Who worked on a run, and when, in that order."""
    return rows_of("run_attempts", Attempt, "lease_token", run_id=run_id)


def step_timeline(run_id: str) -> Call[list[StepInfo]]:
    """The steps of a run, in the order in which they were last begun."""
    return rows_of("step_timeline", StepInfo, "started_at, name", run_id=run_id)


def latest_steps(run_id: str, max: int) -> Call[list[StepInfo]]:
    """The steps of a run that were begun last, in that order."""
    read = reader(StepInfo)
    latest = "select * from tidebase.step_timeline where run_id = %s order by started_at desc, name desc limit %s"
    query = f"select {columns(StepInfo)} from ({latest}) latest order by started_at, name"
    return Call(query, (run_id, max), lambda rows: list(map(read, rows)))


def step_named(run_id: str, name: str) -> Call[list[StepInfo]]:
    """One step of a run, if it was begun."""
    return rows_of("step_timeline", StepInfo, "name", run_id=run_id, name=name)


def run_gates(run_id: str) -> Call[list[GateInfo]]:
    """The gates and timers of a run, oldest first."""
    return rows_of("gate_overview", GateInfo, "created_at, name", run_id=run_id)


def gate_named(run_id: str, name: str) -> Call[list[GateInfo]]:
    """One gate or timer of a run, if it is there."""
    return rows_of("gate_overview", GateInfo, "name", run_id=run_id, name=name)


def review_inbox(run_id: str | None) -> Call[list[ReviewInfo]]:
    """The open reviews, oldest first."""
    return rows_of("review_inbox", ReviewInfo, "opened_at, run_id, step", run_id=run_id)


def stalled_runs() -> Call[list[StalledRun]]:
    """The runs that do not go on by themselves, longest first."""
    return rows_of("stalled_runs", StalledRun, "since, run_id")


def usage_records(run_id: str, seq: int | None = None) -> Call[list[UsageRecord]]:
    """Every record of usage of a run, in the order of the log, or the one of an event."""
    return rows_of("usage_records", UsageRecord, "seq", run_id=run_id, seq=seq)


def runs_by_id(run_ids: Sequence[str]) -> Call[list[RunInfo]]:
    """These runs, as far as they exist, oldest first."""
    read = reader(RunInfo)
    query = f"select {columns(RunInfo)} from tidebase.run_overview where run_id = any(%s) order by created_at, run_id"
    return Call(query, (list(run_ids),), lambda rows: list(map(read, rows)))


def leases_held(run_ids: Sequence[str], tokens: Sequence[int]) -> Call[set[str]]:
    """Those of these runs whose lease is the one with this token: read without a lock, so nobody is waited for."""
    query = """select r.run_id from tidebase.run_overview r
      join unnest(%s::text[], %s::bigint[]) l (run_id, token) on l.run_id = r.run_id and l.token = r.lease_token
      where r.run_id = any(%s) and r.status = 'running'"""
    return Call(query, (list(run_ids), list(tokens), list(run_ids)), lambda rows: {row[0] for row in rows})


def usage_totals(run_id: str) -> Call[list[UsageTotals]]:
    """What a run used, with its descendants: one row."""
    return rows_of("usage_totals", UsageTotals, "run_id", run_id=run_id)


def usage_by_step(run_id: str) -> Call[list[UsageByStep]]:
    """What each step of a run used."""
    return rows_of("usage_by_step", UsageByStep, "step, currency", run_id=run_id)


def usage_by_model(run_id: str) -> Call[list[UsageByModel]]:
    """What a run used of each model."""
    return rows_of("usage_by_model", UsageByModel, "provider, model, currency", run_id=run_id)


def run_sizes(run_id: str) -> Call[list[RunSize]]:
    """What a run stores: one row."""
    return rows_of("run_sizes", RunSize, "run_id", run_id=run_id)


def recovery_history(run_id: str) -> Call[list[Recovery]]:
    """The attempts to recover a run, oldest first."""
    return rows_of("recovery_history", Recovery, "recovery", run_id=run_id)
