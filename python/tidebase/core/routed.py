"""Whether a database is a router, whose calls go to shards and commit there: they can be no part of a transaction."""

from __future__ import annotations

from .call import Call
from .errors import InvalidArgument
from .sessions import AsyncConnection, Connection

#: Databases that were asked, and are no routers: one look a process.
_SEEN: set[tuple[str, int, str]] = set()


def _refuse(rows: list[tuple[bool]]) -> None:
    if rows[0][0]:
        raise InvalidArgument(
            "the database is a router: a call commits at a shard, and can be no part of a transaction",
            hint="Make the call outside of the transaction; let a step with an idempotency_key write to your tables.",
        )


#: Raises InvalidArgument on a router. The schema is there for everybody to see.
LOOK: Call[None] = Call("select pg_catalog.to_regnamespace('tidebase_router') is not null", (), _refuse)


def is_known(connection: Connection | AsyncConnection) -> bool:
    """Whether it was seen before that this connection's database is no router."""
    return _place(connection) in _SEEN


def know(connection: Connection | AsyncConnection) -> None:
    """It was seen."""
    _SEEN.add(_place(connection))


def _place(connection: Connection | AsyncConnection) -> tuple[str, int, str]:
    info = connection.info
    return info.host, info.port, info.dbname
