"""Transactions of the caller's own that a step joins: connections of psycopg, of SQLAlchemy and of Django."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, cast

import psycopg
from psycopg.pq import TransactionStatus

from ..core.call import Call
from ..core.errors import InvalidArgument, TidebaseError
from .lease import Hold


def _nothing() -> None:
    pass


async def _nothing_awaited() -> None:
    pass


@dataclass(frozen=True)
class Joined:
    """A caller's psycopg connection, in a transaction or about to be.

    Attributes:
        nested: begins a savepoint that SQLAlchemy knows of, so that a session that fails is as before the block.
        flush: sends out the writes that a session still holds back.
    """

    connection: psycopg.Connection[Any]
    nested: Callable[[], AbstractContextManager[Any]] = nullcontext
    flush: Callable[[], Any] = _nothing


@dataclass(frozen=True)
class AsyncJoined:
    """The same for what is awaited."""

    connection: psycopg.AsyncConnection[Any]
    nested: Callable[[], AbstractAsyncContextManager[Any]] = nullcontext
    flush: Callable[[], Awaitable[Any]] = _nothing_awaited


def join(given: Any) -> Joined:
    """What is below the connection that a caller has.

    Raises:
        InvalidArgument: there is no psycopg connection below it, or no transaction that could be joined.
    """
    more: dict[str, Any] = {}
    if isinstance(given, _kinds("sqlalchemy.orm", "Session", "scoped_session")):
        more = {"nested": given.begin_nested, "flush": given.flush}
        given = given.connection()
    if isinstance(given, _kinds("sqlalchemy.engine", "Connection")):
        if not given.in_transaction():
            given.exec_driver_sql("select 1")  # or its commit() would not know of a transaction
        more = more or {"nested": given.begin_nested}
        given = given.connection.driver_connection
    elif hasattr(given, "ensure_connection"):  # Django's
        given.ensure_connection()
        if given.get_autocommit():
            raise _none("Put it inside `with django.db.transaction.atomic():`.")
        given = given.connection
    if not isinstance(given, psycopg.Connection):
        raise _other(given, "a psycopg.Connection, or a Session or Connection of SQLAlchemy or Django on psycopg 3")
    _require_transaction(given)
    return Joined(given, **more)


async def join_async(given: Any) -> AsyncJoined:
    """The same for what is awaited. Raises InvalidArgument."""
    more: dict[str, Any] = {}
    if isinstance(given, _kinds("sqlalchemy.ext.asyncio", "AsyncSession", "async_scoped_session")):
        more = {"nested": given.begin_nested, "flush": given.flush}
        given = await given.connection()
    if isinstance(given, _kinds("sqlalchemy.ext.asyncio", "AsyncConnection")):
        if not given.in_transaction():
            await given.exec_driver_sql("select 1")
        more = more or {"nested": given.begin_nested}
        given = (await given.get_raw_connection()).driver_connection
    if not isinstance(given, psycopg.AsyncConnection):
        raise _other(given, "a psycopg.AsyncConnection, or an AsyncSession or AsyncConnection of SQLAlchemy")
    _require_transaction(given)
    return AsyncJoined(given, **more)


def _kinds(module: str, *names: str) -> tuple[type[Any], ...]:
    """Classes of a library, if the program has loaded it."""
    loaded = sys.modules.get(module)
    return tuple(cast("type[Any]", getattr(loaded, name)) for name in names if loaded is not None)


def _require_transaction(connection: psycopg.Connection[Any] | psycopg.AsyncConnection[Any]) -> None:
    status = connection.info.transaction_status
    if connection.autocommit and status == TransactionStatus.IDLE:
        raise _none("Begin one first, for instance with `with connection.transaction():`.")
    if status not in (TransactionStatus.IDLE, TransactionStatus.INTRANS):
        raise InvalidArgument(f"the connection cannot be joined: its transaction is {status.name}")


def _none(hint: str) -> InvalidArgument:
    return InvalidArgument("connection must be in a transaction: it commits each statement by itself", hint=hint)


def _other(given: Any, wanted: str) -> InvalidArgument:
    return InvalidArgument(
        f"connection must be {wanted}, and not a {type(given).__module__}.{type(given).__qualname__}"
    )


def standing() -> Call[tuple[str, str | None]]:
    """The isolation level of the caller's transaction, and the step whose completion it has already."""
    query = "select current_setting('transaction_isolation'), nullif(current_setting('tidebase.joined', true), '')"
    return Call(query, (), lambda rows: rows[0])


def require_room(standing: tuple[str, str | None]) -> None:
    """Refuses a transaction that cannot be joined. Raises InvalidArgument, TidebaseError."""
    isolation, joined = standing
    if joined is not None:
        raise TidebaseError(
            f"this transaction has the completion of step {joined!r}, and is not committed yet",
            hint="Commit it before the run goes on: until then the run is locked.",
        )
    if isolation not in ("read committed", "read uncommitted"):
        raise InvalidArgument(
            f"connection must be at READ COMMITTED: at {isolation.upper()} what it sees is older than the step"
        )


def sight(hold: Hold, name: str) -> Call[bool]:
    """Whether the caller's connection sees the step that has just been begun: not in another database."""
    query = (
        "select exists (select from tidebase.step_timeline"
        " where run_id = %s and name = %s and lease_token = %s and status = 'running')"
    )
    return Call(query, (hold.run_id, name, hold.token), lambda rows: bool(rows[0][0]), places=(hold.run_id,))


def require_sight(sees: bool, name: str) -> None:
    """Raises InvalidArgument."""
    if not sees:
        raise InvalidArgument(f"connection must lead to the database of the run: it does not see step {name!r}")
