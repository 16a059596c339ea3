"""Forks: a new run that begins with what another one had at some point."""

from __future__ import annotations

from typing import Any

from ..core import codec
from ..core.call import Call, scalar
from .workflow import new_run_id

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


def fork(
    run_id: str,
    fork_id: str | None,
    through_step: str | None,
    through_seq: int | None,
    input: Any,
    reason: str | None,
    actor: str | None,
) -> Call[str]:
    """The call that makes a fork, or finds it again."""
    return fork_run(
        run_id=run_id,
        new_run_id=new_run_id(beside=run_id) if fork_id is None else fork_id,
        through_step=through_step,
        through_seq=through_seq,
        input=None if input is None else codec.encode(input),
        reason=reason,
        actor=actor,
    )
