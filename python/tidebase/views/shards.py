"""The shards of a router, looked at: for ``tidebase router status`` and ``tidebase doctor``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import psycopg

from ..core.errors import TidebaseError
from ..core.sessions import Connection
from ..schema import migrations, router


@dataclass(frozen=True)
class ShardStatus:
    """A shard; ``partitions``: how many the map gives it; ``problems``: what is wrong there."""

    name: str
    conninfo: str
    partitions: int
    problems: list[str]


@dataclass(frozen=True)
class RouterStatus:
    """What the map says, and how the shards are."""

    epoch: int
    shards: list[ShardStatus]


def look(connection: Connection) -> RouterStatus | None:
    """How the shards are; None where the database is no router, or the user may not read its map."""
    made = router.read(connection)
    if made is None:
        return None
    locale = _locale(connection)
    return RouterStatus(made.epoch, [_status(made, place, locale) for place in range(len(made.shards))])


def _status(made: router.Map, place: int, locale: Any) -> ShardStatus:
    shard, owned = made.shards[place], made.owned(place)
    try:
        with router.connect(shard) as at:
            problems = list(_problems(at, owned, locale))
    except (psycopg.Error, TidebaseError) as error:
        problems = [str(error).splitlines()[0]]
    return ShardStatus(shard.name, shard.conninfo, owned.count("1"), problems)


_LOCALE = (
    "select datcollate, datctype, pg_encoding_to_char(encoding) from pg_database where datname = current_database()"
)

#: The roles that the router must be a member of: it asks tables, and speaks for everybody who may call it.
_MISSING = """
select pg_get_userbyid(c.relowner)::text from pg_class c
where c.oid = 'tidebase.events'::regclass and not pg_has_role(c.relowner, 'usage')
"""


def _locale(connection: Connection) -> Any:
    return connection.execute(_LOCALE).fetchone()


def _problems(at: Connection, owned: str, locale: Any) -> Iterator[str]:
    if not migrations.pending(at).is_current:
        yield "the schema is not that of this package (tidebase migrate)"
        return
    for (owner,) in at.execute(_MISSING).fetchall():
        yield f"the router's user is no member of {owner}"
        return
    row = at.execute("select value from tidebase_private.settings where name = 'buckets'").fetchone()
    if row is None or row[0] != owned:
        yield "it owns other buckets than the map says"
    row = at.execute("show statement_timeout").fetchone()
    if row is None or row[0] != "0":
        yield "a statement_timeout is set for the router's user: set it at the router, where it is safe"
    if _locale(at) != locale:
        yield "its encoding or locale is not the router's: texts would be sorted otherwise"
