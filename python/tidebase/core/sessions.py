"""Sessions: what those of our own are like, what any must be like, how one ends. Nothing here asks a server."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.pq import Conninfo
from psycopg.pq.abc import PGresult

from .errors import InvalidArgument, is_of_the_session

Connection = psycopg.Connection[Any]
AsyncConnection = psycopg.AsyncConnection[Any]


def with_limits(conninfo: str, lease_s: float, **arguments: Any) -> str:
    """The connection string, with limits to how long a peer that has vanished is waited for: a third of the lease, so
    that there is time for another connection (PostgreSQL manual, section 34.1.2). What the user says himself stands: in
    the string, in libpq's variables, or in these arguments.
    """
    third = min(max(lease_s / 3, 1), 30)
    limits = {
        "connect_timeout": max(round(third), 2),
        "tcp_user_timeout": round(third * 1000),
        "keepalives_idle": max(round(third / 2), 1),
        "keepalives_interval": max(round(third / 6), 1),
        "keepalives_count": 3,
    }
    said = {*conninfo_to_dict(conninfo), *arguments}
    said.update(option.keyword.decode() for option in Conninfo.get_defaults() if option.val is not None)
    return make_conninfo(conninfo, **{name: value for name, value in limits.items() if name not in said})


def ours(conninfo: str, lease_s: float) -> str:
    """The same, for a connection of our own: in UTF-8, whatever is set for the user, the database or the process."""
    return make_conninfo(with_limits(conninfo, lease_s), client_encoding="UTF8")


#: Limits of a session of our own that does not go through a pooler, unless somebody has set them: who waits longer for
#: a lock asks again (it may be that of a worker who has vanished), and a transaction that nobody goes on with ends
#: (PostgreSQL manual, section 19.11).
LIMITED = """select set_config(name, value, false)
from (values ('lock_timeout', %s), ('idle_in_transaction_session_timeout', %s)) limits(name, value)
where current_setting(name) = '0'"""


def session_limits(lease_s: float) -> tuple[str, str]:
    """For :data:`LIMITED`: a third of the lease; the lease, and a minute at least."""
    return f"{round(min(max(lease_s / 3, 1), 30) * 1000)}ms", f"{round(max(lease_s, 60) * 1000)}ms"


def connection_arguments(pooled: bool) -> dict[str, Any]:
    """Autocommit: a call is a transaction. Prepared statements only where the session is one's own: behind a pooler in
    transaction mode the next call may meet another server process.
    """
    return {"autocommit": True, "prepare_threshold": None if pooled else 2}


def is_pooled(connection: Connection | AsyncConnection, server_pid: int) -> bool:
    """Whether a pooler stands between: it hands out a process id of its own (as PgBouncer does), not the server's."""
    return connection.info.backend_pid != server_pid


def require_utf8(connection: Connection | AsyncConnection) -> None:
    """Raises InvalidArgument where texts would be lost on the way; what the server says at connect is asked, not it."""
    encoding = connection.pgconn.parameter_status(b"client_encoding")
    if encoding not in (b"UTF8", None):
        raise InvalidArgument(
            f"the client_encoding of this connection is {encoding.decode()}; Tidebase needs UTF8",
            hint="Connect with client_encoding=UTF8, or give Tidebase a connection string: then it does.",
        )


#: What psycopg says of a value that Python has no form for, when it makes the rows of an answer that has come.
UNREADABLE = (psycopg.DataError, OverflowError)


def answer(cursor: psycopg.Cursor[Any] | psycopg.AsyncCursor[Any]) -> PGresult:
    """What the server has sent, of which rows could not be made."""
    if cursor.pgresult is None:  # it is there: rows were made of it
        raise AssertionError("there is no answer")
    return cursor.pgresult


def discard(connection: Connection | AsyncConnection) -> None:
    """Ends the session, so that a pool replaces the connection; also one whose ``close`` gives it back to its pool."""
    connection.pgconn.finish()


@contextmanager
def in_order(connection: Connection | AsyncConnection) -> Iterator[None]:
    """Ends the session after an error that it would give again: the next call is to meet another one."""
    try:
        yield
    except psycopg.Error as error:
        if is_of_the_session(error):
            discard(connection)
        raise
