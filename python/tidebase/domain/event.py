"""Events: what a worker appends to its run's log."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from ..core import codec
from ..core.call import Value, many, one, scalar
from ..core.flow import Flow
from .lease import Hold, new_request_id
from .step import recall_of


@dataclass(frozen=True)
class Event:
    """One entry of a run's log; the types and payloads are listed at the top of ``sql/functions/event.sql``."""

    seq: int
    type: str
    payload: Value
    created_at: datetime


@dataclass(frozen=True)
class Watch:
    """Answer of watch_run; see the type tidebase.watch."""

    channel: str
    status: str
    last_seq: int
    watched_until: datetime


watch_run = one("watch_run", Watch, run_id="text", ttl="interval")
append_event = scalar(
    "append_event", run_id="text", token="bigint", type="text", payload="jsonb", request_id="text", transient="boolean"
)
read_events = many("read_events", Event, run_id="text", after="bigint", max="integer")


def emit(hold: Hold, type: str, payload: Any, transient: bool) -> Flow[int]:
    """Appends an event and returns its seq."""
    hold.begin()
    text = codec.encode(payload)
    recall = recall_of(hold)
    seq: int = yield append_event(
        run_id=hold.run_id,
        token=hold.token,
        type=type,
        payload=text,
        request_id=new_request_id() if recall is None else recall.of_many("event", type, text, transient),
        transient=transient,
    )
    return seq
