"""What events say to the clients: their payloads with the members of Tidebase v0.6, beside those that the log has.

A log keeps what happened, once: the input, a document, a question stand in their own places. What a payload needs from
there is read for a whole page of events at once, and for a stream once for all who follow it in this process.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

from msgspec import Raw

from ..core.codec import readable
from ..core.database_async import AsyncDatabase
from ..core.errors import RunNotFound
from ..domain import calls
from ..domain.calls import Event, GateInfo, RunInfo
from . import pages, shapes
from .shapes import Shape

R = TypeVar("R")
Do = Callable[[calls.Call[Any]], Awaitable[Any]]

#: What a payload may need of the run itself, of a document, of a gate, of a child.
_OF_RUN = ("run.created", "run.completed")
_OF_STATE = ("state.updated", "state.restored")
_OF_GATE = ("gate.created", "gate.resolved")
_OF_CHILD = "run.child.created"
_NEEDS = frozenset({*_OF_RUN, *_OF_STATE, *_OF_GATE, _OF_CHILD})

#: For how many events of streams that is kept, and of how many states of a page the documents are read: the newest.
_KEPT, _DOCUMENTS = 64, 200


@dataclass(frozen=True)
class Found:
    """What was read for some events; documents by an event's number, gates and secrets by name, children by id."""

    run: RunInfo | None = None
    documents: dict[int, Raw | None] = field(default_factory=dict)
    gates: dict[str, GateInfo] = field(default_factory=dict)
    secrets: dict[str, str] = field(default_factory=dict)
    children: dict[str, RunInfo] = field(default_factory=dict)


NOTHING = Found()


async def find(do: Do, run_id: str, rows: Sequence[Event], for_worker: bool = False) -> Found:
    """What the payloads of these events need; ``for_worker``: with the secrets of gates that wait."""
    states = [row for row in rows if row.type in _OF_STATE][-_DOCUMENTS:]
    names = [name for row in rows if row.type in _OF_GATE if (name := row.payload.get("name"))]
    children = [id for row in rows if row.type == _OF_CHILD if (id := row.payload.get("child_run_id"))]
    run = None
    if any(row.type in _OF_RUN for row in rows):
        with suppress(RunNotFound):  # purged since
            (run,) = await do(pages.bounded(calls.get_run(run_id=run_id), RunInfo, pages.IN_A_PAGE))
    gates = await do(pages.gates_named(run_id, names)) if names else []
    waiting = [gate.name for gate in gates if gate.status == "pending"] if for_worker else []
    return Found(
        run,
        await do(pages.documents(run_id, [_place(row) for row in states])) if states else {},
        {gate.name: gate for gate in gates},
        await do(pages.secrets(run_id, waiting)) if waiting else {},
        {child.run_id: child for child in await do(pages.bounded(calls.runs_by_id(children), RunInfo, 4000))}
        if children
        else {},
    )


def _place(row: Event) -> tuple[int, str, int]:
    return row.seq, row.payload.get("stream", ""), row.payload.get("version", 0)


class Telling:
    """What the events of streams need, read once for all followers in this process."""

    def __init__(self, database: AsyncDatabase) -> None:
        self._database = database
        self._kept: OrderedDict[tuple[Any, str, int], asyncio.Task[Found]] = OrderedDict()

    async def shape(self, run_id: str, row: Event, for_worker: bool) -> Shape:
        """An event of a stream."""
        found = await self._find(run_id, row) if row.type in _NEEDS else NOTHING
        if for_worker and row.type == "gate.created":  # a secret is kept nowhere
            found = await find(self._database.execute, run_id, [row], for_worker)
        return shape(run_id, row, found)

    async def _find(self, run_id: str, row: Event) -> Found:
        key = asyncio.get_running_loop(), run_id, row.seq
        task = self._kept.get(key)
        if task is None or (task.done() and (task.cancelled() or task.exception() is not None)):
            task = self._kept[key] = asyncio.create_task(find(self._database.execute, run_id, [row]))
            while len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
        return await asyncio.shield(task)  # who goes away takes it from nobody


async def shapes_of(do: Do, run_id: str, rows: Sequence[Event], for_worker: bool) -> list[Shape]:
    """Events of a page, whose payloads are still as they were stored."""
    read = [_read(row) for row in rows]
    found = await find(do, run_id, [row for row in read if row.type in _NEEDS], for_worker)
    return [shape(run_id, row, found) for row in read]


def _read(row: Event) -> Event:
    """Of our own types the payload is an object; those of others go on as they are."""
    if row.type not in _SAID or not isinstance(row.payload, Raw):
        return row
    payload = readable(bytes(row.payload).decode())
    return Event(row.seq, row.type, payload if isinstance(payload, dict) else {}, row.created_at)


def shape(run_id: str, row: Event, found: Found) -> Shape:
    said = _SAID.get(row.type)
    payload = row.payload if said is None else {**row.payload, **said(run_id, row, found)}
    return shapes.event(run_id, row, payload)


# -- what is said, type by type


def _run_created(run_id: str, row: Event, found: Found) -> Shape:
    parent = found.run and found.run.parent_run_id
    return {
        "workflowName": row.payload.get("workflow"),
        "input": shapes.given(found.run and found.run.input),
        "channels": [],
        **({"parentRunId": parent} if parent else {}),
    }


def _run_started(run_id: str, row: Event, found: Found) -> Shape:
    return {"leaseOwner": shapes.owner_of(row.payload.get("holder"), row.payload.get("token"))}


def _run_completed(run_id: str, row: Event, found: Found) -> Shape:
    return {"result": found.run and found.run.result}


def _run_failed(run_id: str, row: Event, found: Found) -> Shape:
    return {"failureClass": None}


def _child_created(run_id: str, row: Event, found: Found) -> Shape:
    child = found.children.get(row.payload.get("child_run_id", ""))
    return {
        "parentRunId": run_id,
        "parentEdgeName": row.payload.get("name"),
        "childRunId": row.payload.get("child_run_id"),
        "childRun": child and shapes.run(child),
    }


def _step(run_id: str, row: Event, found: Found) -> Shape:
    name = row.payload.get("name")
    return {"stepId": None if name is None else shapes.id_of("step", name)}


def _step_failed(run_id: str, row: Event, found: Found) -> Shape:
    decision = row.payload.get("decision")
    return {**_step(run_id, row, found), "resumeDecision": decision, "retryable": decision == "auto_retry"}


def _version(run_id: str, row: Event, found: Found) -> Shape:
    payload, stored = row.payload, row.payload.get("stream")
    if stored is None:
        return {}
    return {
        "stream": shapes.Stream.of(run_id, stored).name,
        "stateVersion": {
            "id": f"{shapes.stream_id(run_id, stored)}:{payload.get('version')}",
            "streamId": shapes.stream_id(run_id, stored),
            "runId": run_id,
            "version": payload.get("version"),
            "label": payload.get("label"),
            "reason": payload.get("reason"),
            "importance": payload.get("importance"),
            "createdAt": shapes.moment(row.created_at),
        },
    }


def _state(run_id: str, row: Event, found: Found) -> Shape:
    document = found.documents.get(row.seq, {"truncated": True})  # it is among the versions
    return {**_version(run_id, row, found), "value": document}


def _gate_created(run_id: str, row: Event, found: Found) -> Shape:
    """The gate as it was then."""
    gate = found.gates.get(row.payload.get("name", ""))
    if gate is None:
        return {}
    told = shapes.gate(gate, found.secrets.get(gate.name))
    opened = {"status": "pending", "updatedAt": told["createdAt"]}
    decided = dict.fromkeys(("decision", "actor", "decisionPayload", "resolvedAt"))
    return {"gate": {**told, **opened, **decided}}


def _gate_resolved(run_id: str, row: Event, found: Found) -> Shape:
    gate = found.gates.get(row.payload.get("name", ""))
    return {} if gate is None else {"gate": shapes.gate(gate)}


def _usage(run_id: str, row: Event, found: Found) -> Shape:
    payload = row.payload
    record = calls.UsageRecord(
        run_id=run_id,
        seq=row.seq,
        created_at=row.created_at,
        metadata=payload.get("metadata") or {},
        **{name: payload.get(name) for name in _USED},
    )
    return {"usage": shapes.usage(record)}


_USED = tuple(
    name for name in calls.UsageRecord.__dataclass_fields__ if name not in ("run_id", "seq", "created_at", "metadata")
)


def _recovery(run_id: str, row: Event, found: Found) -> Shape:
    return {
        "recoveryAttemptId": f"{run_id}:{row.payload.get('recovery')}",
        "httpStatus": row.payload.get("http_status"),
    }


_SAID: dict[str, Callable[[str, Event, Found], Shape]] = {
    "run.created": _run_created,
    "run.started": _run_started,
    "run.completed": _run_completed,
    "run.failed": _run_failed,
    "run.child.created": _child_created,
    "step.started": _step,
    "step.completed": _step,
    "step.failed": _step_failed,
    "step.review": _step,
    "step.reviewed": _step,
    "state.updated": _state,
    "state.restored": _state,
    "state.saved": _version,
    "snapshot.created": _version,
    "gate.created": _gate_created,
    "gate.resolved": _gate_resolved,
    "usage.recorded": _usage,
    "recovery.started": _recovery,
    "recovery.delivered": _recovery,
    "recovery.failed": _recovery,
}
