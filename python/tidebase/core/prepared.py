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

#: How many statements a session prepares at most.
_MOST = 100
_PLACE = re.compile(r"%s")
_LARGEST = 2**63

Connections = Connection | AsyncConnection
Parameters = tuple[Any, ...]


def _whole(value: int) -> bytes:
    if not -_LARGEST <= value < _LARGEST:
        raise OverflowError("it is a numeric, and no plain value")
    return b"%d" % value


#: How a plain value is written.
_PLAIN: dict[type[Any], Any] = {
    str: str.encode,
    bool: lambda value: b"t" if value else b"f",
    int: _whole,
    float: lambda value: repr(value).encode(),
    type(None): lambda value: None,
}
_NUMBERS = {str: 0, bool: 16, float: 701, type(None): 0}


def _number(value: Any) -> int:
    """The number of its type, as a cursor of psycopg's would say it: a cast, and the choice of a function, are then the
    same whichever way the call goes. 0: the server finds out; -1: it is not plain.
    """
    if type(value) is int:
        return 21 if -(2**15) <= value < 2**15 else 23 if -(2**31) <= value < 2**31 else 20
    return _NUMBERS.get(type(value), -1)


class Statement:
    """One that is used in a session with parameters of these types; prepared there once it is used again."""

    def __init__(self, number: int, query: str, types: tuple[int, ...]) -> None:
        places = count(1)
        self.name = b"tidebase_%d" % number
        self.query = _PLACE.sub(lambda match: f"${next(places)}", query).encode()
        self.types = types
        self.is_prepared = False

    def was_prepared(self, result: PGresult, *others: PGresult) -> None:
        """The server has answered. Raises the error that it has answered with."""
        answer(result, *others)
        self.is_prepared = True


def rows(result: PGresult, connection: Connections) -> list[tuple[Any, ...]]:
    """The rows of an answer. What reads them is not kept: it would keep the session, and the answer."""
    reader = Transformer(connection)
    reader.set_pgresult(result, set_loaders=True)
    return reader.load_rows(0, result.ntuples, tuple)


def answer(result: PGresult, *others: PGresult) -> PGresult:
    """The one answer. Raises the error that it is."""
    if others or result.status not in (ExecStatus.TUPLES_OK, ExecStatus.COMMAND_OK):
        raise error_from_result(others[-1] if others else result, encoding="utf-8")
    return result


class _Session:
    """What is known of one: its statements, and how many names it has used up. None is used again: the server may know
    it still.
    """

    def __init__(self) -> None:
        self.statements: dict[tuple[str, tuple[int, ...]], Statement] = {}
        self.names = 0


_sessions: WeakKeyDictionary[Any, _Session] = WeakKeyDictionary()


def again(connection: Connections, query: str, parameters: Parameters) -> Statement | None:
    """The statement, if it was asked for in this session before, with parameters of these types."""
    key = query, tuple(map(_number, parameters))
    try:
        return _sessions[connection].statements[key]
    except KeyError:
        session = _sessions.setdefault(connection, _Session())
        if session.names < _MOST and -1 not in key[1]:
            session.statements[key] = Statement(session.names, query, key[1])
            session.names += 1
        return None


def forget(connection: Connections, lost: Statement) -> None:
    """The session has lost this statement, as after DISCARD ALL."""
    statements = _sessions[connection].statements
    for key in [key for key, statement in statements.items() if statement is lost]:
        del statements[key]


def is_lost(error: psycopg.Error) -> bool:
    """Whether the statement is to be prepared anew: it is not there (26000), is there under its name from before
    (42P05), or was made when the schema was another one (0A000). It has done nothing.
    """
    return error.sqlstate in ("26000", "42P05", "0A000")


def encoded(parameters: Parameters) -> list[bytes | None] | None:
    """The parameters as text; None if one of them is not plain, or has a NUL character."""
    try:
        values = [_PLAIN[type(value)](value) for value in parameters]
    except OverflowError:
        return None
    return None if any(b"\0" in value for value in values if value is not None) else values
