"""Events: what a worker appends to its run's log."""

from __future__ import annotations

from typing import Any

from . import calls, codec
from .flow import Flow
from .lease import Hold, new_request_id
from .step import recall_of


def emit(hold: Hold, type: str, payload: Any, transient: bool) -> Flow[int]:
    """Appends an event and returns its seq."""
    hold.begin()
    text = codec.encode(payload)
    recall = recall_of(hold)
    seq: int = yield calls.append_event(
        run_id=hold.run_id,
        token=hold.token,
        type=type,
        payload=text,
        request_id=new_request_id() if recall is None else recall.of_many("event", type, text, transient),
        transient=transient,
    )
    return seq
