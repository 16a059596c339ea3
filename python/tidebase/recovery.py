"""Recovery: getting a run going again, as a call that both executors make."""

from __future__ import annotations

from . import calls
from .lease import new_request_id


def recover(run_id: str, reason: str, actor: str | None = None) -> calls.Call[int]:
    """The call that makes a run acquirable and tells its webhook: once, however often it has to be made."""
    return calls.recover_run(run_id=run_id, reason=reason, actor=actor, request_id=new_request_id())
