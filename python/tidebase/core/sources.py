"""Where the database is: a connection string that is found somewhere, or a pool or a connection of the caller's."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import psycopg
from psycopg_pool import AsyncConnectionPool, ConnectionPool

from .errors import InvalidArgument, TidebaseError

_LIBPQ = ("PGHOST", "PGHOSTADDR", "PGPORT", "PGDATABASE", "PGUSER", "PGSERVICE", "PGSERVICEFILE")


def named_url(given: str | None = None) -> str | None:
    """The connection string: the one given, ``TIDEBASE_DATABASE_URL``, ``DATABASE_URL``, libpq's own variables
    (PostgreSQL manual, section 34.15), which an empty one stands for; None when nothing names a database.

    ``postgresql+psycopg://`` and its like, as SQLAlchemy spells them, are understood.
    """
    url = given or os.environ.get("TIDEBASE_DATABASE_URL") or os.environ.get("DATABASE_URL")
    if url:
        return re.sub(r"^(postgres(?:ql)?)\+\w+://", r"\1://", url)
    return "" if any(os.environ.get(name) for name in _LIBPQ) else None


def find_url(given: str | None = None) -> str:
    """The connection string of :func:`named_url`; with none, a local Postgres is started."""
    url = named_url(given)
    if url is not None:
        return url
    from .local import start_local

    return start_local()


def require_psycopg(given: Any, wanted: type[Any]) -> None:
    """Refuses another library's connection, with what is to be passed of it. Raises InvalidArgument."""
    if not isinstance(given, wanted):
        kind = f"{type(given).__module__}.{type(given).__qualname__}"
        raise InvalidArgument(
            f"connection must be a psycopg.{wanted.__name__}, and not a {kind}",
            hint="Of SQLAlchemy on psycopg 3, pass connection.connection.driver_connection of a Connection that has"
            " begun (of a Session: session.connection()); of Django, django.db.connection.connection, inside atomic().",
        )


def is_pool(source: object) -> bool:
    """Whether it is a pool of the caller's."""
    return isinstance(source, ConnectionPool | AsyncConnectionPool)


def is_open(source: object) -> bool:
    """Whether it is a pool or a connection of the caller's that leads to a server now."""
    given = isinstance(source, ConnectionPool | AsyncConnectionPool | psycopg.Connection | psycopg.AsyncConnection)
    return given and not source.closed  # type: ignore[attr-defined]


def inherited_error(is_single: bool) -> TidebaseError:
    """For who uses what his parent opened: both would read each other's answers."""
    what = "connection" if is_single else "pool"
    return TidebaseError(
        f"this {what} was opened by the process that this one is a fork of, and is in use there",
        hint=f"Make the Tidebase in the child with a {what} of its own, or give it a connection string: then it opens"
        " its own after a fork.",
    )


#: Whose single connection a block at hand has for itself.
_kept: ContextVar[object] = ContextVar("tidebase_kept", default=None)


@contextmanager
def kept_for_block(database: object) -> Iterator[None]:
    """In the block the single connection of the database is the block's own."""
    refuse_in_block(database)
    _kept.set(database)
    try:
        yield
    finally:
        _kept.set(None)


def refuse_in_block(database: object) -> None:
    """A call inside a transaction on the only connection would be part of it, and what it stores lost with it; or it
    would wait for itself.
    """
    if _kept.get() is database:
        raise TidebaseError(
            "inside a transaction on the only connection, nothing else can be done with the run",
            hint="Do it before or after the block, or give Tidebase a pool or a connection string.",
        )
