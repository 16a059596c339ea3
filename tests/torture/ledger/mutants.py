"""Mechanisms of the wrapper, taken out in every worker of a siege: it must notice."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any

from tidebase.core import base, errors
from tidebase.domain import calls, gate, lease


def leave_at_once() -> None:
    """A lease is given up in the moment in which one wants to wait, whatever else is at work."""

    def suspend(hold: lease.Hold, name: str) -> Iterator[Any]:
        yield calls.suspend_run(run_id=hold.run_id, token=hold.token, name=name)
        raise errors.RunSuspendedError("the run waits", detail={"run_id": hold.run_id})

    done: Future[None] = Future()
    done.set_result(None)
    gate._suspend = suspend  # type: ignore[assignment]
    lease.InFlight.settled = lambda self, most=0: done  # type: ignore[method-assign]


def forget_read_only() -> None:
    """A server that is read-only for a moment is an error like any other."""
    known = base.is_transient
    base.is_transient = lambda error: getattr(error, "sqlstate", None) != "25006" and known(error)
