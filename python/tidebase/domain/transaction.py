"""A step that is a transaction: the user's own SQL and the checkpoint commit together, exactly once."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Generic, TypeVar

import psycopg

from ..core import codec
from ..core.call import Call
from ..core.errors import InvalidArgument, StepNotRunning, StepOutputDecodeError, StepTimeout, TidebaseError
from ..core.flow import Flow, Pause
from .lease import Hold
from .step import Checkpoints, StepOptions, Work, begin, complete_step, fail

C = TypeVar("C")

#: What is said about retries, which only a function can have.
_RETRIES = frozenset({"retries", "retry_on", "retry_delay_s", "retry_max_delay_s"})


class Transaction(Generic[C]):
    """What ``run.transaction`` yields.

    On a replay the block runs again, but nothing of it reaches the database: its effect is there already. ``execute``
    then does nothing; read what you need from ``result``.

    Attributes:
        replayed: whether the transaction was committed by an earlier attempt.
        result: the step's checkpoint: set it in the block. Behind the block it is what a replay gives: it has been to
            JSON and back, as the type that ``returns`` says.
    """

    def __init__(self, connection: C | None, result: Any = None) -> None:
        self._connection = connection
        self.replayed: bool = connection is None
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


class Trial:
    """One step that is a transaction, from its checkpoint to its commit, in as many trials as its function has.

    Attributes:
        name: the step's.
        again_in: seconds until the next trial, where the last one failed and there is another.
    """

    def __init__(
        self,
        hold: Hold,
        checkpoints: Checkpoints,
        name: str,
        function: Callable[..., Any] | None,
        options: StepOptions,
        joins: bool,
    ) -> None:
        """
        Args:
            function: what is done in the transaction; None where it is a block, which cannot be executed again.
            joins: the transaction is the caller's.

        Raises:
            InvalidArgument: an option cannot be honoured.
        """
        self._hold = hold
        self._checkpoints = checkpoints
        self._work: Work[Any] = Work(name, function or nothing, options=options)
        self._returns = options.get("returns", codec.returned_type(function) if function else Any)
        self._limit = options.get("timeout_s")
        self._joins = joins
        self._begun: float | None = None
        self.name = self._work.full_name
        self.again_in: float | None = None
        _require_options(options, function is not None, joins)

    def begin(self) -> Flow[str | None]:
        """Begins the step; the stored output when it is completed already, else None."""
        hold, work = self._hold, self._work
        hold.begin()
        self._checkpoints.claim(work)
        self.name = work.full_name
        try:
            return (yield from self._begin())
        except BaseException:
            self._checkpoints.give_back(self.name)
            raise

    def _begin(self) -> Flow[str | None]:
        hold, work = self._hold, self._work
        first, self._begun, self.again_in = self._begun is None, time.monotonic(), None
        value, stored = self._checkpoints.recall(work)
        if stored is not None and first:
            return stored
        if self._joins and self.name in self._checkpoints.joined:
            # It was completed in a transaction that has ended meanwhile. If it was rolled back, the step has failed.
            yield from self.failed(TidebaseError("the transaction that it had joined was rolled back"))
        start = yield from begin(hold, work, codec.dumps(value))
        self._checkpoints.leave(self.name, None)
        self._begun = time.monotonic()
        return start.output if start.outcome == "replay" else None

    def stored(self, text: str) -> Any:
        """The result of a transaction that was committed before."""
        self._checkpoints.done(self.name)
        try:
            return codec.decode(text, self._returns)
        except StepOutputDecodeError as error:
            error.detail = {"run_id": self._hold.run_id, "step": self.name}
            raise

    def limit(self) -> Call[Any] | None:
        """The call that lets the server end statements, and waits between them, that take longer than ``timeout_s``."""
        if self._limit is None:
            return None
        query = (
            "select set_config(name, least(nullif(setting::bigint, 0), %s)::text, true) from pg_settings"
            " where name in ('statement_timeout', 'idle_in_transaction_session_timeout')"
        )
        return Call(query, (max(1, round(self._limit * 1000)),), lambda rows: None)

    def completion(self, result: Any) -> tuple[Call[int], Any]:
        """The call that must be the last of the transaction: it checks the lease, takes the run's lock and stores. And
        the result as it is from now on, found out before anything is committed.

        Only COMMIT follows. Should the client vanish just then, without a word to the server, the lock is not held for
        longer than a moment.

        Raises:
            NotSerializable, StepOutputDecodeError: the result cannot be stored, or not as what it should come back as.
            StepTimeout: it is too late.
        """
        settled = codec.settled(result, self._returns)
        if settled.problem is not None:
            raise settled.problem
        if self._is_late():
            raise self._timeout()
        call = complete_step(run_id=self._hold.run_id, token=self._hold.token, name=self.name, output=settled.text)
        query = f"{call.query}, set_config('idle_in_transaction_session_timeout', '15s', true)"
        if not self._joins:
            self._checkpoints.done(self.name)
            return replace(call, query=query), settled.value
        self._checkpoints.give_back(self.name)  # the caller may roll it back, and begin anew
        self._checkpoints.joined.add(self.name)
        parameters = (*call.parameters, self.name)
        return replace(
            call, query=f"{query}, set_config('tidebase.joined', %s, true)", parameters=parameters
        ), settled.value

    def seen_as(self, error: Exception) -> Exception:
        """What an error of the block is: the server's answer to one that took too long is a StepTimeout."""
        if not (isinstance(error, psycopg.Error) and self._is_late()):
            return error
        timeout = self._timeout()
        timeout.__cause__ = error
        return timeout

    def failed(self, error: Exception) -> Flow[bool]:
        """Records that the transaction failed. False when it turns out to be committed: only the answer was lost."""
        self._checkpoints.joined.discard(self.name)
        self._checkpoints.give_back(self.name)
        try:
            self.again_in = yield from fail(self._hold, self._work, codec.dumps(self._work.input()), error)
        except StepNotRunning as refusal:
            if refusal.detail.get("status") == "completed":
                self._checkpoints.done(self.name)
                return False
            raise
        return True

    def pause(self) -> Flow[None]:
        """Waits until the next trial."""
        yield Pause(self.again_in or 0.0, self._hold.stirred)
        self._hold.check()
        if self._hold.departure is not None:
            raise self._hold.departure.error

    def _is_late(self) -> bool:
        return self._limit is not None and self._begun is not None and time.monotonic() - self._begun >= self._limit

    def _timeout(self) -> StepTimeout:
        return StepTimeout(f"the transaction took longer than {self._limit} seconds, and was rolled back")


def _require_options(options: StepOptions, is_function: bool, joins: bool) -> None:
    if options.get("mark_start") is False:
        raise InvalidArgument("mark_start must not be False for a transaction, which is always begun first")
    asked = sorted(name for name in _RETRIES & options.keys() if name != "retries" or options.get("retries"))
    if asked and joins:
        raise InvalidArgument(
            f"{', '.join(asked)} cannot be said where the transaction is the caller's, who alone can begin another one"
        )
    if asked and not is_function:
        raise InvalidArgument(
            f"{', '.join(asked)} cannot be said of a block, which only the caller can execute again",
            hint="Give the function instead: run.transaction(name, function, retries=...).",
        )
    if joins and options.get("timeout_s") is not None:
        raise InvalidArgument(
            "timeout_s cannot be said where the transaction is the caller's: it would hold for all of it",
            hint="Set statement_timeout in it, or transaction_timeout.",
        )


def nothing() -> None:
    """Stands for the block, where a function is wanted."""
