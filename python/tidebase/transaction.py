"""A step that is a transaction: the user's own SQL and the checkpoint commit together, exactly once."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Generic, TypeVar

from . import calls, codec
from .errors import StepNotRunning, TidebaseError
from .flow import Flow
from .lease import Hold
from .step import Checkpoints, Work, begin, fail

C = TypeVar("C")


class Transaction(Generic[C]):
    """What ``run.transaction`` yields.

    On a replay the block runs again, but nothing of it reaches the database: its effect is there already. ``execute``
    then does nothing; read what you need from ``result``.

    Attributes:
        replayed: whether the transaction was committed by an earlier attempt.
        result: the step's checkpoint: set it in the block; on a replay it is what was set then.
    """

    def __init__(self, connection: C | None, result: Any = None) -> None:
        self._connection = connection
        self.replayed = connection is None
        self.result = result

    @property
    def connection(self) -> C:
        """The psycopg connection, inside the transaction; on a replay there is none, and a TidebaseError is raised."""
        if self._connection is None:
            raise TidebaseError(
                "this transaction was committed before and is not repeated", hint="Test `tx.replayed` first."
            )
        return self._connection


class Skipped:
    """The cursor of a statement that is not repeated: it has no rows to give."""

    def __getattr__(self, name: str) -> Any:
        raise TidebaseError(
            f"the statement was executed when the transaction was committed; there is no {name} of it now",
            hint="Put what you need later into `tx.result`, and test `tx.replayed` before you read rows.",
        )


def begin_transaction(hold: Hold, checkpoints: Checkpoints, work: Work[None]) -> Flow[calls.Json | None]:
    """Begins the step; the stored output when it is completed already, else None."""
    hold.begin()
    value = work.input()
    stored = checkpoints.find(work.full_name, value)
    if stored is not None:
        return stored
    start = yield from begin(hold, work, codec.dumps(value))
    return start.output if start.outcome == "replay" else None


def completion(hold: Hold, name: str, result: Any) -> calls.Call[int]:
    """The call that must be the last of the transaction: it checks the lease, takes the run's lock and stores.

    Only COMMIT follows. Should the client vanish just then, without a word to the server, the lock is not held for
    longer than a moment.
    """
    call = calls.complete_step(run_id=hold.run_id, token=hold.token, name=name, output=codec.encode(result))
    return replace(call, query=f"{call.query}, set_config('idle_in_transaction_session_timeout', '15s', true)")


def was_rolled_back(hold: Hold, work: Work[None], error: Exception) -> Flow[bool]:
    """Records that the transaction failed. False when it turns out to be committed: only the answer was lost."""
    try:
        yield from fail(hold, work, codec.dumps(work.input()), error)
    except StepNotRunning as refusal:
        if refusal.detail.get("status") == "completed":
            return False
        raise
    return True


def nothing() -> None:
    """Stands for the block, where a function is wanted."""
