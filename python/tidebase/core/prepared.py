"""Calls that are made again and again in a session of our own: prepared once, and then sent straight through libpq. A
cursor of psycopg's costs two to three times as much processor time as all of that.

Only plain values travel so, as text, and only in sessions that nobody else uses or has set up; anything else goes over
a cursor. Nothing here does IO.
"""

from __future__ import annotations

import re
from itertools import count
from typing import Any
from weakref import WeakKeyDictionary

import psycopg
from psycopg.adapt import Transformer
from psycopg.errors import error_from_result
from psycopg.pq import ExecStatus
from psycopg.pq.abc import PGresult

from .sessions import AsyncConnection, Connection

#: How many statements a session keeps at most.
_MOST = 100
_PLACE = re.compile(r"%s")
_ENCODERS: dict[type[Any], Any] = {
    str: str.encode,
    bool: lambda value: b"t" if value else b"f",
    int: lambda value: b"%d" % value,
    float: lambda value: repr(value).encode(),
    type(None): lambda value: None,
}


class Statement:
    """One that is used in a session; prepared there once it is used again."""

    def __init__(self, number: int, query: str, connection: Connection | AsyncConnection) -> None:
        places = count(1)
        self.name = b"tidebase_%d" % number
        self.query = _PLACE.sub(lambda match: f"${next(places)}", query).encode()
        self.is_prepared = False
        self._reader = Transformer(connection)
        self._knows_types = False

    def was_prepared(self, result: PGresult, *others: PGresult) -> None:
        """The server has answered. Raises the error that it has answered with."""
        answer(result, *others)
        self.is_prepared = True

    def rows(self, result: PGresult) -> list[tuple[Any, ...]]:
        """The rows of an answer."""
        self._reader.set_pgresult(result, set_loaders=not self._knows_types)
        self._knows_types = True
        found = self._reader.load_rows(0, result.ntuples, tuple)
        self._reader.set_pgresult(None, set_loaders=False)  # or it would be kept until the next one
        return found


def answer(result: PGresult, *others: PGresult) -> PGresult:
    """The one answer. Raises the error that it is."""
    if others or result.status not in (ExecStatus.TUPLES_OK, ExecStatus.COMMAND_OK):
        raise error_from_result(others[-1] if others else result, encoding="utf-8")
    return result


_statements: WeakKeyDictionary[Any, dict[str, Statement]] = WeakKeyDictionary()


def again(connection: Connection | AsyncConnection, query: str) -> Statement | None:
    """The statement, if it was asked for in this session before."""
    try:
        return _statements[connection][query]
    except KeyError:
        known = _statements.setdefault(connection, {})
        if len(known) < _MOST:
            known[query] = Statement(len(known), query, connection)
        return None


def forget(connection: Connection | AsyncConnection) -> None:
    """The session has lost its statements, as after DISCARD ALL."""
    _statements.pop(connection, None)


def is_lost(error: psycopg.Error) -> bool:
    """Whether the statement is to be prepared anew: it is not there (26000), is there under its name from before
    (42P05), or was made when the schema was another one (0A000). It was not executed.
    """
    return error.sqlstate in ("26000", "42P05", "0A000")


def encoded(parameters: tuple[Any, ...]) -> list[bytes | None] | None:
    """The parameters as text; None if one of them is not plain, or has a NUL character."""
    try:
        values = [_ENCODERS[type(value)](value) for value in parameters]
    except KeyError:
        return None
    return None if any(b"\0" in value for value in values if value is not None) else values
