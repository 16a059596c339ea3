"""Events: what a worker appends to its run's log."""

from __future__ import annotations

from typing import Any

from . import calls, codec
from .flow import Flow
from .lease import Hold, new_request_id


def emit(hold: Hold, type: str, payload: Any, transient: bool) -> Flow[int]:
    """Appends an event and returns its seq."""
    hold.check()
    seq: int = yield calls.append_event(
        run_id=hold.run_id,
        token=hold.token,
        type=type,
        payload=codec.encode(payload),
        request_id=new_request_id(),
        transient=transient,
    )
    return seq
