"""What clients get: the objects of the HTTP API, with the JSON names of Tidebase v0.6 (camelCase).

Pure functions from the rows of the database. An id is a string that stays the same and may stand in a URL; a step's and
a gate's is made from its name; an event's is its number in the log. An input that was not given is ``{}``.
"""

from __future__ import annotations

import base64
import binascii
import json
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

import msgspec
from msgspec import Raw

from ..core.codec import readable
from ..domain.calls import (
    Channel,
    Event,
    GateInfo,
    QueueInfo,
    Recovery,
    RunEdge,
    RunInfo,
    ScheduleInfo,
    Snapshot,
    StateVersion,
    StepInfo,
    UsageRecord,
    Value,
)

Shape = dict[str, Any]

_STEP_STATUS = {"review": "manual_review"}
_RECOVERY_STATUS = {"succeeded": "delivered"}

#: The clients call the stream "run" that is "main" everywhere else. One that they call "main" is another.
_STREAMS = {"run": "main", "main": "run"}
_SNAPSHOTS = "snapshot:"


def moment(value: datetime | None) -> str | None:
    """ISO 8601 in UTC, with milliseconds and Z."""
    if value is None:
        return None
    return value.astimezone(timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.") + f"{value.microsecond // 1000:03d}Z"


def id_of(kind: str, name: str) -> str:
    """An id that may stand in a URL."""
    return f"{kind}_{base64.urlsafe_b64encode(name.encode()).decode().rstrip('=')}"


def name_of(kind: str, id: str) -> str:
    """The name that an id was made from; an id that is none of ours is taken for the name itself."""
    text = id.removeprefix(f"{kind}_")
    if text != id:
        try:
            name = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)).decode()
        except (binascii.Error, ValueError):
            return id
        if id_of(kind, name) == id:
            return name
    return id


def owner_of(holder: str | None, token: int | None) -> str | None:
    """The owner that a client is told: the holder's name with the lease's fencing token."""
    return None if token is None else f"{holder}#{token}"


def token_of(owner: str) -> int | None:
    """The fencing token inside an owner; None when there is none."""
    digits = owner.rpartition("#")[2]
    return int(digits) if digits.isascii() and digits.isdigit() and len(digits) < 19 else None


def given(value: Any) -> Any:
    """An input; ``{}`` when none was given."""
    return {} if value is None or (isinstance(value, Raw) and bytes(value) == b"null") else value


def members(value: Any) -> Shape:
    """The members of an object, each as it is stored; none if it is no object."""
    if isinstance(value, Raw):
        try:
            return dict(msgspec.json.decode(value, type=dict[str, Raw]))
        except msgspec.DecodeError:
            return {}
    return value if isinstance(value, dict) else {}


def stored_stream(stream: str | None) -> str | None:
    """How the database calls a stream that a client names."""
    return None if stream is None else _STREAMS.get(stream, stream)


@dataclass(frozen=True)
class Stream:
    """A stream as clients know it: its name, and what its versions are of."""

    name: str
    target_type: str
    target_id: str

    @classmethod
    def of(cls, run_id: str, stored: str) -> Stream:
        if stored.startswith(_SNAPSHOTS):
            kind, id = json.loads(stored.removeprefix(_SNAPSHOTS))
            id = run_id if (kind, id) == ("run", "self") else id
            return cls(f"{kind}:{id}", kind, id)
        return cls(_STREAMS.get(stored, stored), "run", run_id)

    @staticmethod
    def of_snapshots(run_id: str, name: str) -> str | None:
        """The stream of the snapshots of a target that is named ``type:id``."""
        kind, colon, id = name.partition(":")
        target = [kind, "self" if (kind, id) == ("run", run_id) else id]
        return _SNAPSHOTS + json.dumps(target, ensure_ascii=False) if colon else None


def run(row: RunInfo) -> Shape:
    leased = row.status == "running"
    return {
        "id": row.run_id,
        "workflowName": row.workflow,
        "input": given(row.input),
        "metadata": row.metadata,
        "status": row.status,
        "result": row.result,
        "error": row.error,
        "recoveryWebhook": row.recovery_webhook,
        "leaseOwner": owner_of(row.holder, row.lease_token) if leased else None,
        "leaseExpiresAt": moment(row.lease_expires_at),
        "attempt": row.attempt,
        "queue": row.queue,
        "dedupeKey": row.dedupe_key,
        "priority": row.priority or 0,
        "runAt": moment(row.available_at),
        "maxAttempts": row.max_attempts or 1,
        "deadlineAt": moment(row.deadline_at),
        "cancelRequestedAt": moment(row.cancelled_at),
        "cancelledAt": moment(row.cancelled_at),
        "cancelReason": row.cancel_reason,
        "cancelActor": row.cancel_actor,
        "failureClass": "max_retries" if row.failure_class in ("crashed", "max_attempts") else None,
        "createdAt": moment(row.created_at),
        "updatedAt": moment(row.updated_at),
        "completedAt": moment(row.finished_at),
    }


def queue_config(row: QueueInfo) -> Shape:
    per_minute = None
    if row.rate is not None and row.rate_period:
        per_minute = round(row.rate * 60 / row.rate_period.total_seconds())
    return {"name": row.queue, "concurrency": row.concurrency, "ratePerMinute": per_minute, "invokeUrl": row.endpoint}


def queue(row: QueueInfo) -> Shape:
    """A queue; what is over is not counted, for that would cost the more the longer it is used."""
    return {
        "name": row.queue,
        "queued": row.ready + row.delayed + row.invoked,
        "delayed": row.delayed,
        "running": row.running,
        "waiting": row.waiting,
        "failed": row.failed,
        "completed": None,
        "cancelled": None,
        "paused": row.paused,
        "oldestQueuedAt": moment(row.oldest_ready),
        "heldBackBy": row.held_back_by,
        "config": queue_config(row),
    }


def _fired_at(row: ScheduleInfo) -> str | None:
    """The time that the latest run's id is made of."""
    at = (row.last_run_id or "").removeprefix(f"sched:{row.name}:")
    return f"{at[:-1]}.000Z" if at.endswith("Z") else None


def schedule(row: ScheduleInfo) -> Shape:
    return {
        "id": row.name,
        "name": row.name,
        "cron": row.cron,
        "everyMs": None if row.every is None else round(row.every.total_seconds() * 1000),
        "timezone": row.timezone,
        "workflowName": row.workflow,
        "input": given(row.input),
        "queue": row.queue,
        "maxAttempts": row.max_attempts or 1,
        "enabled": row.enabled,
        "nextRunAt": moment(row.next_at),
        "lastEnqueuedAt": _fired_at(row),
        "lastRunId": row.last_run_id,
        "createdAt": moment(row.created_at),
        "updatedAt": moment(row.updated_at),
    }


def step(row: StepInfo, owner: str | None = None) -> Shape:
    input, hash = unwrapped(row.input)
    retryable = row.status == "failed" and row.decision == "auto_retry"
    said = members(row.options)
    side_effects = row.side_effects or []
    replay = row.replay
    if replay == "auto" and set(side_effects) - {"read"} and row.idempotency_key is None:
        replay = "manual"  # that is what it comes to
    return {
        "id": id_of("step", row.name),
        "runId": row.run_id,
        "name": row.name,
        "inputHash": row.client_hash or hash or row.input_hash,
        "input": given(input),
        "options": {"retries": row.retries} if row.options is None else row.options,
        "resumeContract": {
            "sideEffects": side_effects,
            "idempotencyKey": row.idempotency_key,
            "replay": replay,
            "checkpointInvariant": said.get("checkpointInvariant", row.checkpoint_invariant),
            "verifiedBy": said.get("verifiedBy", row.verified_by),
            "credentials": said.get("credentials", row.credentials or []),
        },
        "status": "failed_retryable" if retryable else _STEP_STATUS.get(row.status, row.status),
        "output": row.output,
        "error": row.error,
        "leaseOwner": owner if row.status == "running" else None,
        "leaseExpiresAt": None,
        "attempt": row.attempt,
        "startedAt": moment(row.started_at),
        "completedAt": moment(row.completed_at),
        "createdAt": moment(row.started_at),
        "updatedAt": moment(row.completed_at or row.started_at),
    }


def unwrapped(input: Any) -> tuple[Any, str | None]:
    """A stored input, and the client's hash where that was kept with it, as it was before state 0007 of the schema."""
    if isinstance(input, Raw) and bytes(input).startswith(b'{"input": ') and b', "inputHash": ' in bytes(input):
        decoded = readable(bytes(input).decode())
        if isinstance(decoded, dict) and decoded.keys() == {"input", "inputHash"}:
            return decoded["input"], str(decoded["inputHash"])
    return input, None


def gate(row: GateInfo, secret: str | None = None) -> Shape:
    return {
        "id": id_of("gate", row.name),
        "runId": row.run_id,
        "name": row.name,
        "prompt": row.prompt,
        "data": row.data,
        "status": row.decision or row.status,
        "decision": row.decision,
        "actor": row.actor,
        "decisionPayload": row.payload,
        "capability": row.capability,
        "channels": [],
        "resolveToken": secret,
        "createdAt": moment(row.created_at),
        "updatedAt": moment(row.decided_at or row.created_at),
        "resolvedAt": moment(row.decided_at),
    }


def stream_id(run_id: str, stream: str) -> str:
    return f"{run_id}:{id_of('stream', stream)}"


@dataclass(frozen=True)
class Version(StateVersion):
    """A version with the members that it was patched with, where it was."""

    patch: Value


def state(run_id: str, row: StateVersion) -> Shape:
    return {"runId": run_id, "value": row.value, "version": row.version, "updatedAt": moment(row.created_at)}


def state_version(run_id: str, row: StateVersion | Snapshot) -> Shape:
    return {
        "id": f"{stream_id(run_id, row.stream)}:{row.version}",
        "streamId": stream_id(run_id, row.stream),
        "runId": run_id,
        "stepId": None,
        "version": row.version,
        "value": row.value,
        "patch": row.patch if isinstance(row, Version) else None,
        "label": row.label,
        "reason": row.reason,
        "importance": row.importance if isinstance(row, StateVersion) else "milestone",
        "metadata": row.metadata,
        "createdBy": row.created_by,
        "createdAt": moment(row.created_at),
    }


def state_stream(run_id: str, row: StateVersion) -> Shape:
    """A stream, by its newest version."""
    stream = Stream.of(run_id, row.stream)
    return {
        "id": stream_id(run_id, row.stream),
        "runId": run_id,
        "name": stream.name,
        "targetType": stream.target_type,
        "targetId": stream.target_id,
        "currentVersion": row.version,
        "currentValue": row.value,
        "metadata": row.metadata,
        "createdAt": None,
        "updatedAt": moment(row.created_at),
    }


def snapshot(run_id: str, row: Snapshot) -> Shape:
    return {**state_version(run_id, row), "target": {"type": row.target_type, "id": row.target_id}, "state": row.value}


def edge(row: RunEdge) -> Shape:
    return {
        "id": id_of("edge", f"{row.run_id}/{row.name}"),
        "parentRunId": row.run_id,
        "childRunId": row.child_run_id,
        "name": row.name,
        "edgeType": row.edge_type,
        "metadata": row.metadata,
        "createdAt": moment(row.created_at),
    }


def usage(row: UsageRecord) -> Shape:
    total = row.total_tokens
    if total is None and not (row.input_tokens is None and row.output_tokens is None):
        total = (row.input_tokens or 0) + (row.output_tokens or 0)
    return {
        "id": f"{row.run_id}:{row.seq}",
        "runId": row.run_id,
        "stepId": None if row.step is None else id_of("step", row.step),
        "kind": row.kind,
        "provider": row.provider,
        "model": row.model,
        "label": row.label,
        "quantity": row.quantity,
        "unit": row.unit,
        "inputTokens": row.input_tokens,
        "outputTokens": row.output_tokens,
        "totalTokens": total,
        "costUsd": row.cost if row.currency == "USD" else None,
        "metadata": row.metadata,
        "createdAt": moment(row.created_at),
    }


def recovery(row: Recovery) -> Shape:
    return {
        "id": f"{row.run_id}:{row.recovery}",
        "runId": row.run_id,
        "reason": row.reason,
        "webhookUrl": row.url,
        "status": _RECOVERY_STATUS.get(row.status, row.status),
        "httpStatus": row.http_status,
        "responseBody": row.response,
        "errorText": row.error,
        "createdAt": moment(row.created_at),
        "completedAt": moment(row.finished_at),
    }


def channel(run_id: str, row: Channel) -> Shape:
    """A channel; what it signs with is shown to nobody."""
    return {
        "id": f"{run_id}:{row.channel}",
        "runId": run_id,
        "type": row.type,
        "url": row.url,
        "events": row.events,
        "hasSecret": row.has_secret,
        "status": row.status,
        "createdAt": moment(row.created_at),
    }


def channel_delivery(run_id: str, row: Channel) -> Shape:
    """How far a channel is told: all up to ``deliveredSeq``; the rest is about the event after it."""
    return {
        "id": f"{run_id}:{row.channel}",
        "runId": run_id,
        "channelId": f"{run_id}:{row.channel}",
        "url": row.url,
        "status": "pending" if row.status == "active" else row.status,
        "deliveredSeq": row.delivered_seq,
        "attempts": row.attempts,
        "failures": row.failures,
        "httpStatus": row.http_status,
        "errorText": row.error,
        "nextAttemptAt": moment(row.next_at),
        "deliveredAt": moment(row.delivered_at),
        "createdAt": moment(row.created_at),
        "completedAt": moment(row.finished_at),
    }


def event(run_id: str, row: Event, payload: Any) -> Shape:
    return {
        "id": row.seq,
        "runId": run_id,
        "seq": row.seq,
        "type": row.type,
        "payload": payload,
        "createdAt": moment(row.created_at),
    }
