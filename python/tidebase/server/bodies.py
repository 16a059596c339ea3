"""What clients send: the bodies of the HTTP API, with the JSON names of Tidebase v0.6 (camelCase).

Each class is decoded, checked and described (in the OpenAPI document) by msgspec. Unknown members are ignored.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

Name = Annotated[str, Meta(min_length=1, max_length=1024, pattern=r"\S")]
ShortName = Annotated[str, Meta(min_length=1, max_length=255, pattern=r"\S")]
Url = Annotated[str, Meta(pattern=r"^https?://\S+$")]
Object = dict[str, Any]

Count = Annotated[int, Meta(ge=0, le=10**12)]
Milliseconds = Annotated[int, Meta(ge=1, le=365 * 24 * 3_600_000)]
Importance = Literal["transient", "normal", "checkpoint", "milestone"]


class Body(Struct, rename="camel", omit_defaults=True, kw_only=True):
    """A JSON object."""


class Channel(Body):
    """Whom to tell what happens to a run: all of it, or events of some types. The secret signs what is sent."""

    type: Literal["webhook"]
    url: Url
    secret: Annotated[str, Meta(min_length=1, max_length=1024, pattern=r"\S")] | None = None
    events: Annotated[list[ShortName], Meta(max_length=100)] | None = None


Channels = Annotated[list[Channel], Meta(max_length=100)]
#: Whom a gate would be shown: only an empty list is served; what else makes sense is answered with 501.
GateChannels = Annotated[list[Channel], Meta(extra_json_schema={"maxItems": 0})]


class Owned(Body):
    """What is done under a lease. ``leaseOwner``: whose; without it, whoever holds it at the moment."""

    lease_owner: str | None = None


class CreateRun(Body):
    """A run that is to be made."""

    input: Any = None
    metadata: Object | None = None
    recovery_webhook: Url | None = None
    channels: Channels | None = None
    run_id: ShortName | None = None
    max_attempts: Annotated[int, Meta(ge=1, le=1000)] | None = None


class Enqueue(Body, kw_only=True):
    """A run that any worker of the queue may claim."""

    workflow_name: ShortName
    input: Any = None
    metadata: Object | None = None
    dedupe_key: ShortName | None = None
    delay_ms: Annotated[int, Meta(ge=0, le=3650 * 24 * 3_600_000)] | None = None
    run_at: Annotated[datetime, Meta(tz=True)] | None = None
    max_attempts: Annotated[int, Meta(ge=1, le=1000)] | None = None
    priority: Annotated[int, Meta(ge=-32768, le=32767)] | None = None
    deadline_ms: Milliseconds | None = None
    recovery_webhook: Url | None = None
    channels: Channels | None = None


class Claim(Body, kw_only=True):
    """What a worker may take: one run at most is answered with, whatever the limit."""

    queues: Annotated[list[ShortName], Meta(min_length=1, max_length=1000)]
    lease_owner: ShortName | None = None
    limit: Annotated[int, Meta(ge=1, le=1000)] = 1


class QueueConfig(Body):
    """What a queue may do; what is not given stays as it is."""

    concurrency: Annotated[int, Meta(ge=1, le=1_000_000)] | None = None
    rate_per_minute: Annotated[int, Meta(ge=1, le=1_000_000)] | None = None
    #: Whom to tell of each run, so that it is taken up there; null: nobody.
    invoke_url: Annotated[Url, Meta(max_length=1000)] | UnsetType | None = UNSET


class PutSchedule(Body, kw_only=True):
    """When a workflow is enqueued: five fields of cron, in UTC."""

    cron: Annotated[str, Meta(min_length=1, max_length=1000)]
    workflow_name: ShortName
    input: Any = None
    queue: ShortName = "default"
    max_attempts: Annotated[int, Meta(ge=1, le=1000)] | None = None
    enabled: bool = True


class Begin(Body):
    """Nothing has to be said to begin."""


class Heartbeat(Body):
    """Who is alive."""

    lease_owner: str


class CompleteRun(Owned):
    """What came of a run."""

    result: Any = None


class FailRun(Owned):
    """Why an attempt failed. ``failureClass`` ``permanent``: another attempt is not worth it."""

    error: Any = None
    failure_class: str | None = None


class CancelRun(Body):
    """Why a run is cancelled, and by whom."""

    reason: str | None = None
    actor: str | None = None


class RecoverRun(Body):
    """Why a run is recovered."""

    reason: Name = "manual"


class Credential(Body):
    """A credential that a step needs, and why."""

    name: Name
    scopes: list[str] | None = None
    reason: str | None = None


class StepOptions(Body):
    """The resume contract of a step. ``sideEffect`` and ``onAmbiguousFailure`` are what older clients send."""

    input: Any = None
    retries: Annotated[int, Meta(ge=0, le=1000)] | None = None
    timeout_ms: Milliseconds | None = None
    side_effects: list[Name] | None = None
    idempotency_key: Name | None = None
    replay: Literal["auto", "manual", "never"] | None = None
    checkpoint_invariant: Any = None
    verified_by: Any = None
    credentials: list[Name | Credential] | None = None
    side_effect: Literal["none", "read", "write", "external"] | None = None
    on_ambiguous_failure: Literal["retry", "review", "fail"] | None = None


#: An object that is kept as it came; what of it means something is described, and looked at.
Options = Annotated[Object, Meta(extra_json_schema={"$ref": "#/components/schemas/StepOptions"})]


class BeginStep(Owned, kw_only=True):
    """A step that is to be begun. ``inputHash`` is the client's own hash of the input: it alone decides whether the
    input is the same as before.
    """

    name: Name
    input_hash: Annotated[str, Meta(min_length=1, max_length=1024, pattern=r"\S")]
    input: Any = None
    options: Options | None = None

    def __post_init__(self) -> None:
        if self.options is not None:
            msgspec.convert(self.options, StepOptions)

    @property
    def timeout_s(self) -> float:
        """How long the step may take, as it says itself; 0 where it does not."""
        return float((self.options or {}).get("timeoutMs") or 0) / 1000


class CompleteStep(Body):
    """What a step returned."""

    lease_owner: str
    output: Any = None


class FailStep(Body):
    """Why a step failed. The database decides what follows, whatever ``resumeDecision`` proposes."""

    lease_owner: str
    error: Any = None
    retryable: bool = False
    resume_decision: str | None = None


class ResolveReview(Body):
    """What a person decides about a step that may have taken effect: retry, accept (with its output) or fail."""

    decision: Literal["retry", "accept", "fail"]
    output: Any | UnsetType = UNSET
    actor: str | None = None
    reason: str | None = None


class Version(Owned):
    """What may be said about a version of a state."""

    stream: Name | None = None
    reason: str | None = None
    importance: Importance | None = None
    metadata: Object | None = None
    created_by: str | None = None


class WriteState(Version, kw_only=True):
    """A document."""

    value: Any = None
    label: Name | None = None


class PatchState(Version, kw_only=True):
    """Members that become what they are given as, null included."""

    value: Object | None = None
    label: Name | None = None


class SaveState(Version, kw_only=True):
    """The label that the state as it is now gets."""

    label: Name


class Target(Body):
    """What a snapshot is of."""

    type: ShortName
    id: Name


class CreateSnapshot(Owned, kw_only=True):
    """What something looks like."""

    label: Name
    state: Any = None
    target: Target | None = None
    reason: str | None = None
    metadata: Object | None = None
    created_by: str | None = None


class RecordUsage(Owned):
    """What a call to a model, or to anything else that is paid for, used."""

    step_id: str | None = None
    kind: Name | None = None
    provider: Name | None = None
    model: Name | None = None
    label: Name | None = None
    quantity: Annotated[float, Meta(ge=0, le=1e24)] | None = None
    unit: Name | None = None
    input_tokens: Count | None = None
    output_tokens: Count | None = None
    total_tokens: Count | None = None
    cost_usd: Annotated[float, Meta(ge=0, le=1e12)] | None = None
    metadata: Object | None = None
    response_id: Name | None = None


class CreateChild(Owned, kw_only=True):
    """A child that is to be made, or found."""

    name: Name
    workflow_name: ShortName
    input: Any = None
    metadata: Object | None = None
    recovery_webhook: Url | None = None
    channels: Channels | None = None
    edge_type: ShortName | None = None
    edge_metadata: Object | None = None


class BeginGate(Owned, kw_only=True):
    """A question that is to be asked, or was asked before. ``timeoutMs``: how long the client waits, not the gate."""

    name: Name
    prompt: str
    data: Any = None
    channels: GateChannels | None = None
    capability: Any = None
    timeout_ms: Milliseconds | None = None


class ResolveGate(Body):
    """A decision. ``token`` is the gate's secret; without it the key must be an approver's."""

    decision: Literal["approved", "rejected", "canceled"]
    token: str | None = None
    actor: str | None = None
    payload: Any = None


# -- what people do


class SignIn(Body):
    """A key, or a ticket that a gateway gave out a moment ago."""

    key: Annotated[str, Meta(min_length=1, max_length=4096)] | None = None
    ticket: Annotated[str, Meta(min_length=1, max_length=4096)] | None = None


class Nothing(Body):
    """Nothing has to be said."""


class Done(Body):
    """What somebody does. ``actor``: who, where the key is nobody's in particular."""

    actor: ShortName | None = None


class DecideGate(Done, kw_only=True):
    """A decision: one of the gate's options, with an answer or changed arguments."""

    decision: Name
    payload: Any | UnsetType = UNSET
    comment: str | None = None


class Resume(Done):
    """Why a run is resumed."""

    reason: Name = "manual"


class SetBudget(Done):
    """What may be used altogether."""

    cost_usd: Annotated[float, Meta(ge=0, le=1e12)] | None = None
    tokens: Count | None = None
    reason: str | None = None


class Fork(Done):
    """From where a new run branches off: behind a step or an event, else at the end; with another input, if given."""

    run_id: ShortName | None = None
    through_step: Name | None = None
    through_seq: Annotated[int, Meta(ge=0, le=2**62)] | None = None
    input: Any | UnsetType = UNSET
    reason: str | None = None


class Move(Done, kw_only=True):
    """Where a run is to wait."""

    queue: ShortName
    priority: Annotated[int, Meta(ge=-32768, le=32767)] | None = None


class Filter(Done):
    """Which runs are meant: at least one of the filters must be given."""

    queue: ShortName | None = None
    workflow: ShortName | None = None
    older_than_s: Annotated[float, Meta(ge=0, le=3e9)] | None = None
    metadata: Object | None = None
    dry_run: bool = False
    max: Annotated[int, Meta(ge=1, le=10_000)] = 1000


class CancelMany(Filter):
    """Which runs are cancelled, and why."""

    status: Literal["pending", "queued", "running", "waiting", "review", "failed"] | None = None
    failure_class: Literal["error", "max_attempts", "crashed", "deadline"] | None = None
    reason: str | None = None


class RetryMany(Filter):
    """Which failed runs may be taken up again, and why."""

    failure_class: Literal["error", "max_attempts", "crashed", "deadline"] | None = None
    reason: str | None = None


class MoveMany(Filter, kw_only=True):
    """Which runs are to wait where."""

    to_queue: ShortName
    priority: Annotated[int, Meta(ge=-32768, le=32767)] | None = None


class QueueLimits(Body):
    """All that a queue may do; what is not given has no limit."""

    concurrency: Annotated[int, Meta(ge=1, le=1_000_000)] | None = None
    key_concurrency: Annotated[int, Meta(ge=1, le=1_000_000)] | None = None
    rate: Annotated[int, Meta(ge=1, le=1_000_000)] | None = None
    key_rate: Annotated[int, Meta(ge=1, le=1_000_000)] | None = None
    rate_period_s: Annotated[float, Meta(gt=0, le=86_400)] | None = None
    lease_s: Annotated[float, Meta(gt=0, le=86_400)] | None = None
    max_attempts: Annotated[int, Meta(ge=1, le=1000)] | None = None
    retry_delay_s: Annotated[float, Meta(ge=0, le=86_400)] | None = None


class Trigger(Body):
    """The input of the run, where it is not the schedule's."""

    input: Any | UnsetType = UNSET


class ScheduleSettings(Body, kw_only=True):
    """All that is said about a schedule: by a cron expression, or every so many seconds."""

    workflow: ShortName
    cron: Annotated[str, Meta(min_length=1, max_length=1000)] | None = None
    every_s: Annotated[float, Meta(ge=1, le=3e9)] | None = None
    input: Any = None
    queue: ShortName = "default"
    timezone: ShortName = "UTC"
    overlap: Literal["allow", "skip", "cancel"] = "allow"
    catch_up: Literal["none", "last", "all"] = "last"
    catch_up_window_s: Annotated[float, Meta(ge=0, le=3e9)] = 86_400
    jitter_s: Annotated[float, Meta(ge=0, le=86_400)] = 0
    enabled: bool = True
    key: ShortName | None = None
    priority: Annotated[int, Meta(ge=-32768, le=32767)] = 0
    max_attempts: Annotated[int, Meta(ge=1, le=1000)] | None = None
    metadata: Object | None = None
