"""What clients send: the bodies of the HTTP API, with the JSON names of Tidebase v0.6 (camelCase).

Each class is decoded, checked and described (in the OpenAPI document) by msgspec. Unknown members are ignored.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

Name = Annotated[str, Meta(min_length=1, max_length=1024, pattern=r"\S")]
ShortName = Annotated[str, Meta(min_length=1, max_length=255, pattern=r"\S")]
Url = Annotated[str, Meta(pattern=r"^https?://\S+$")]
Object = dict[str, Any]

#: Where a gate is to be shown: only an empty list is understood so far.
NoChannels = Annotated[list[Any], Meta(max_length=0)]
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


class CreateRun(Body):
    """A run that is to be made."""

    input: Any = None
    metadata: Object | None = None
    recovery_webhook: Url | None = None
    channels: Channels | None = None
    run_id: ShortName | None = None
    max_attempts: Annotated[int, Meta(ge=1, le=1000)] | None = None


class Begin(Body):
    """Nothing has to be said to begin."""


class Heartbeat(Body):
    """Who is alive."""

    lease_owner: str


class CompleteRun(Body):
    """What came of a run."""

    result: Any = None
    lease_owner: str | None = None


class FailRun(Body):
    """Why an attempt failed. ``failureClass`` ``permanent``: another attempt is not worth it."""

    error: Any = None
    failure_class: str | None = None
    lease_owner: str | None = None


class CancelRun(Body):
    """Why a run is cancelled, and by whom."""

    reason: str | None = None
    actor: str | None = None


class RecoverRun(Body):
    """Why a run is recovered."""

    reason: Name = "manual"


class StepOptions(Body):
    """The resume contract of a step."""

    input: Any = None
    retries: Annotated[int, Meta(ge=0, le=1000)] | None = None
    timeout_ms: Milliseconds | None = None
    side_effects: list[Name] | None = None
    idempotency_key: Name | None = None
    replay: Literal["auto", "manual", "never"] | None = None
    checkpoint_invariant: Any = None
    verified_by: Any = None
    credentials: list[Name] | None = None


class BeginStep(Body):
    """A step that is to be begun. ``inputHash`` is the client's own hash of the input."""

    name: Name
    input_hash: str
    input: Any = None
    options: StepOptions | None = None
    lease_owner: str | None = None


class CompleteStep(Body):
    """What a step returned."""

    lease_owner: str
    output: Any = None


class FailStep(Body):
    """Why a step failed. The database decides what follows, whatever ``resumeDecision`` proposes."""

    lease_owner: str
    error: Any = None
    retryable: bool = True
    resume_decision: str | None = None


class Version(Body):
    """What may be said about a version of a state."""

    stream: Name | None = None
    reason: str | None = None
    importance: Importance | None = None
    metadata: Object | None = None
    created_by: str | None = None


class WriteState(Version, kw_only=True):
    """A document (PUT) or a merge patch (PATCH)."""

    value: Any
    label: Name | None = None


class SaveState(Version, kw_only=True):
    """The label that the state as it is now gets."""

    label: Name


class Target(Body):
    """What a snapshot is of."""

    type: ShortName
    id: Name


class CreateSnapshot(Body):
    """What something looks like."""

    label: Name
    state: Any
    target: Target | None = None
    reason: str | None = None
    metadata: Object | None = None
    created_by: str | None = None


class RecordUsage(Body):
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


class CreateChild(Body):
    """A child that is to be made, or found."""

    name: Name
    workflow_name: ShortName
    input: Any = None
    metadata: Object | None = None
    recovery_webhook: Url | None = None
    channels: Channels | None = None
    edge_type: ShortName | None = None
    edge_metadata: Object | None = None


class BeginGate(Body):
    """A question that is to be asked, or was asked before."""

    name: Name
    prompt: str
    data: Any = None
    channels: NoChannels | None = None
    capability: Any = None
    timeout_ms: Milliseconds | None = None


class ResolveGate(Body):
    """A decision. ``token`` is the gate's secret; without it the key must be an approver's."""

    decision: Literal["approved", "rejected", "canceled"]
    token: str | None = None
    actor: str | None = None
    payload: Any = None
