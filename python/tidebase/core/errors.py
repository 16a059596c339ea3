"""Every error of Tidebase, and the one table that maps SQLSTATEs to them.

Inside a workflow three things must not be swallowed by an agent's ``except Exception``: the loss of the lease, the
cancellation of the run, its suspension. They derive from :class:`Interruption`, on BaseException's side of the tree as
:class:`asyncio.CancelledError` is. Whoever called ``tide.run`` gets the ordinary exception of the same meaning, which
is both: ``except RunCancelled`` and ``except TidebaseError`` catch it.
"""

from __future__ import annotations

import json
from typing import Any, TypeVar

import psycopg
from psycopg_pool import PoolClosed

from .hints import command, to_review

R = TypeVar("R")


class TidebaseError(Exception):
    """Base of all ordinary errors.

    Attributes:
        sqlstate: the SQLSTATE of the database's error (``TB001`` to ``TB014``), or None.
        detail: the error's DETAIL as a dict: ``run_id``, ``step``, ``token`` ... as far as they apply.
        hint: what to do next, or None.
    """

    def __init__(
        self,
        message: str,
        *,
        sqlstate: str | None = None,
        detail: dict[str, Any] | None = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.sqlstate = sqlstate
        self.detail: dict[str, Any] = detail or {}
        self.hint = hint

    @property
    def run_id(self) -> str | None:
        """The run that the error is about, where it is about one."""
        return self.detail.get("run_id")

    @property
    def step(self) -> str | None:
        """The step that the error is about, where it is about one."""
        return self.detail.get("step")

    def __str__(self) -> str:
        state = f" [{self.sqlstate}]" if self.sqlstate else ""
        hint = f" {self.hint}" if self.hint else ""
        return f"{self.message}{state}.{hint}" if hint else f"{self.message}{state}"


class RunNotFound(TidebaseError, LookupError):
    """TB001: there is no run with this id."""


class InvalidArgument(TidebaseError, ValueError):
    """TB002: an argument breaks a rule that the message names."""


class RunFinal(TidebaseError):
    """TB005: the run is completed and does not change any more."""


class InputMismatch(TidebaseError):
    """TB006: the same run or step was begun with another input; a stored result is never reused for it."""


class StepNotRunning(TidebaseError):
    """TB007: the step was not begun, or is running already, or was completed with another output.

    Without a SQLSTATE: its name was taken before in this attempt; tell several steps of a name apart with ``key``.
    """


class ReviewNotOpen(TidebaseError):
    """TB008: there is no open review to decide."""


class NotEntitled(TidebaseError, PermissionError):
    """TB009, or SQLSTATE 42501: this caller may not do that."""

    def __init__(self, message: str, **kwargs: Any) -> None:
        TidebaseError.__init__(self, message, **kwargs)


class BudgetExhausted(TidebaseError):
    """TB010: the run, or the tree it belongs to, has used up its budget: an operator may raise it."""


class VersionConflict(TidebaseError):
    """TB011: the state has another version than expected."""


class AlreadyQueued(TidebaseError):
    """TB013: another run of the queue has the dedupe key and is not over; ``detail`` has its ``run_id``."""


class NotFound(TidebaseError, LookupError):
    """TB012: there is no such gate, stream, snapshot, child, schedule or channel."""


class Interruption(BaseException):
    """The work on a run must end now, without being reported as its failure. Let it pass.

    Its ``__cause__`` is the ordinary exception of the same meaning.
    """


class LeaseLost(Interruption):
    """TB003: another worker has taken the run over, or a thread; or the lease was given up."""


class RunCancelled(Interruption):
    """TB004: the run was cancelled."""


class Suspended(Interruption):
    """The run waits, and no process needs to live for it."""


class LeaseLostError(TidebaseError, LeaseLost):
    """TB003, as an ordinary exception: what the caller of ``tide.run`` and of a session gets."""


class RunCancelledError(TidebaseError, RunCancelled):
    """TB004, as an ordinary exception: what the caller of ``tide.run`` and of a session gets."""


class RunSuspendedError(TidebaseError, Suspended):
    """The run waits for a gate or a timer: call ``tide.run`` again when it is over."""


class RunHeld(TidebaseError):
    """Another worker holds the run's lease; ``detail`` has its ``holder`` and ``expires_at`` (ISO 8601)."""


class RunNeedsReview(TidebaseError):
    """A person must decide about a step before the run can go on; TB014 when the run was to be completed over it."""


class RunCrashed(TidebaseError):
    """The run has lost as many workers as its ``max_attempts`` allows, and is failed: it is not worked on again before
    an operator recovers it.
    """


class ChildFailed(TidebaseError):
    """A child run was cancelled, or another worker has taken it over; ``detail`` has its ``name`` and ``run_id``."""


class FanoutFailed(TidebaseError):
    """Children of a fan-out failed; the others did not suffer from it.

    Attributes:
        errors: what each of those that have no result raised, by name.
        results: what the others returned, by name. Resuming the run does not work on them again.
    """

    def __init__(self, run_id: str, fanout: str, errors: dict[str, BaseException], results: dict[str, Any]) -> None:
        causes = "; ".join(f"{name}: {type(error).__name__}: {error}" for name, error in errors.items())
        super().__init__(
            f"{len(errors)} of {len(errors) + len(results)} children of fan-out {fanout!r} failed: {causes}",
            detail={"run_id": run_id, "fanout": fanout, "failed": sorted(errors)},
            hint="Resume the run to work on these again.",
        )
        self.errors = errors
        self.results = results


class GateAnswerInvalid(TidebaseError, ValueError):
    """The payload of a gate's answer does not fit the gate's ``response_schema``."""


class StepTimeout(TidebaseError, TimeoutError):
    """An execution of a step took longer than its ``timeout_s``."""


class StepOutputDecodeError(TidebaseError):
    """A stored value does not fit the type that the code now expects; the message names the path in the value.

    The value is stored, and what it came from is not executed again: let the code expect another type.
    """


class NotSerializable(TidebaseError, TypeError):
    """A value cannot be stored as JSON; the message names the path and the reason. Nothing was stored."""


class NotMigrated(TidebaseError):
    """The database does not have Tidebase's schema, or one that is too old or too new for this package."""


class DatabaseUnavailable(TidebaseError, ConnectionError):
    """The database cannot be reached, or was in trouble for too long; ``sqlstate`` has the trouble's, if it told it."""


def interruption(error: BaseException) -> BaseException:
    """What a workflow gets for an error: the Interruption where it is one, else the error itself."""
    for ordinary, inner in (
        (LeaseLostError, LeaseLost),
        (RunCancelledError, RunCancelled),
        (RunSuspendedError, Suspended),
    ):
        if isinstance(error, ordinary):
            result = inner(str(error))
            result.__cause__ = error
            return result
    return error


def only(rows: list[R], run_id: str) -> R:
    """The one row that a view has about a run. Raises RunNotFound."""
    if not rows:
        raise RunNotFound(f"run {run_id!r} does not exist", sqlstate="TB001", detail={"run_id": run_id})
    return rows[0]


_BY_SQLSTATE: dict[str, type[TidebaseError]] = {
    "TB001": RunNotFound,
    "TB002": InvalidArgument,
    "TB003": LeaseLostError,
    "TB004": RunCancelledError,
    "TB005": RunFinal,
    "TB006": InputMismatch,
    "TB007": StepNotRunning,
    "TB008": ReviewNotOpen,
    "TB009": NotEntitled,
    "TB010": BudgetExhausted,
    "TB011": VersionConflict,
    "TB012": NotFound,
    "TB013": AlreadyQueued,
    "TB014": RunNeedsReview,
    "42501": NotEntitled,  # insufficient_privilege
    "3F000": NotMigrated,  # invalid_schema_name
    "42883": NotMigrated,  # undefined_function
    "42P01": NotMigrated,  # undefined_table
    "42703": NotMigrated,  # undefined_column
    "22P05": InvalidArgument,  # untranslatable_character: NUL or a lone surrogate in JSON
    "22P02": InvalidArgument,  # invalid_text_representation: not JSON
    "54000": InvalidArgument,  # program_limit_exceeded: a value larger than the server can hold
    "54001": InvalidArgument,  # statement_too_complex: JSON nested deeper than the server's stack
}
_HINTS = {
    NotMigrated: "Run: tidebase migrate",
    NotEntitled: "Grant the user one of the roles tidebase_worker, _approver, _operator, _reader.",
}


_HINTS_BY_SQLSTATE = {
    "25006": "It is a standby, or default_transaction_read_only is set for this user, this database or this process.",
}


def from_postgres(error: psycopg.Error) -> TidebaseError:
    """The exception for an error of the database or of the connection to it."""
    diagnostic = error.diag
    kind = _BY_SQLSTATE.get(error.sqlstate or "")
    if kind is None and isinstance(error, psycopg.DataError):  # psycopg itself: a NUL, a number that is too large
        kind = InvalidArgument
    if kind is None:
        kind = DatabaseUnavailable if is_transient(error) else TidebaseError
    message = diagnostic.message_primary or str(error).strip() or type(error).__name__
    return _made(kind, error.sqlstate, message, _detail(diagnostic.message_detail), diagnostic.message_hint)


def from_parts(sqlstate: str, message: str, detail: dict[str, Any], hint: str | None) -> TidebaseError:
    """The exception for an error that the database told of in a row."""
    return _made(_BY_SQLSTATE.get(sqlstate, TidebaseError), sqlstate, message, detail, hint)


def _made(
    kind: type[TidebaseError], sqlstate: str | None, message: str, detail: dict[str, Any], hint: str | None
) -> TidebaseError:
    return kind(
        message,
        sqlstate=sqlstate,
        detail=detail,
        hint=_next(kind, detail) or hint or _HINTS_BY_SQLSTATE.get(sqlstate or "") or _HINTS.get(kind),
    )


def _next(kind: type[TidebaseError], detail: dict[str, Any]) -> str | None:
    """The command to go on with, where what the database says is for who calls its functions."""
    run_id, step, budget = (detail.get(name) for name in ("run_id", "step", "budget_run_id"))
    if kind is RunNeedsReview and run_id and step:
        return f"{to_review(run_id, step)}; or call tide.runs.resolve_review."
    if kind is BudgetExhausted and budget:
        return f"An operator may raise it: {command('budget', budget)} --cost-usd AMOUNT; then resume the run."
    return None


def _detail(text: str | None) -> dict[str, Any]:
    try:
        value = json.loads(text or "")
    except ValueError:
        return {"detail": text} if text else {}
    return value if isinstance(value, dict) else {"detail": value}


#: Passing trouble that ends with the session: it became a standby, or it is being shut down, or was idle for too long.
_OF_THE_SESSION = ("25006", "25P03", "25P04", "57P01", "57P02", "57P03", "57P05")


def is_of_the_session(error: BaseException) -> bool:
    """Whether the same call may succeed in another session, and will not in this one: the server behind it only reads
    (25006, after a failover behind one address), or it ends the session (25P03, 25P04, 57P01 to 57P05).
    """
    return isinstance(error, psycopg.Error) and error.sqlstate in _OF_THE_SESSION


def is_transient(error: BaseException) -> bool:
    """Whether the same call may succeed when it is made again: a lost connection, a server that restarts, fails over or
    lacks resources, a lock or a statement that took too long, a serialization failure or a deadlock, a pool that is
    empty (SQLSTATE classes 08, 40, 53, 58; 25006, 25P03, 25P04, 55P03, 57014, 57P01 to 57P05 but 57P04; PostgreSQL
    manual, appendix A). Who cancels a call himself, by Ctrl-C or by cancelling his task, gets no psycopg.Error.
    """
    if isinstance(error, PoolClosed) or not isinstance(error, psycopg.Error):
        return False
    state = error.sqlstate
    if state is None:
        return isinstance(error, (psycopg.OperationalError, psycopg.InterfaceError))
    return state[:2] in ("08", "40", "53", "58") or state in ("55P03", "57014", *_OF_THE_SESSION)
