"""A router: a migrated database whose functions and views are those of shards, to which PL/Proxy passes the calls on.

Its map says which shard has which partition of the buckets, and is a row of its settings. Of the map and of the
catalogue everything else is made, in one transaction: the schema ``tidebase_router``, the servers, functions and views.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from ..core.errors import DatabaseUnavailable, InvalidArgument
from . import forwards

#: Of the buckets: a power of two, which can be doubled without moving a run.
PARTITIONS = 64

#: For how long a shard may take to answer, and a session of the router keeps a connection to one, in seconds.
QUERY_S, CONNECTION_S = 120, 1800

#: What the router's settings call it.
SETTING = "router"


@dataclass(frozen=True)
class Shard:
    """A database that has some of the partitions.

    Attributes:
        name: what people call it.
        conninfo: where it is, without user and password, as the router's server reaches it.
        user: who the router is there: a member of the five roles.
    """

    name: str
    conninfo: str
    user: str
    password: str | None = field(default=None, repr=False)

    @property
    def url(self) -> str:
        return make_conninfo(self.conninfo, user=self.user, password=self.password)


@dataclass(frozen=True)
class Map:
    """Which shard has which partition.

    Attributes:
        epoch: grows with each change.
        shards: in the order in which they came.
        owners: the place of its shard among them, for each partition.
    """

    epoch: int = 0
    shards: tuple[Shard, ...] = ()
    owners: tuple[int, ...] = ()

    def owned(self, place: int) -> str:
        """What the shard is told about its buckets."""
        return "".join("1" if owner == place else "0" for owner in self.owners)

    def first(self, place: int) -> int:
        """The first partition of a shard, which stands for it."""
        return self.owners.index(place)


def read(connection: psycopg.Connection[Any]) -> Map | None:
    """The map; None where the database is no router, or the user may not know."""
    row = connection.execute(
        "select pg_catalog.has_table_privilege(c.oid, 'select') and pg_catalog.has_schema_privilege(n.oid, 'usage')"
        " from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace"
        " where n.nspname = 'tidebase_private' and c.relname = 'settings'"
    ).fetchone()
    if row is None or not row[0]:
        return None
    row = connection.execute("select value from tidebase_private.settings where name = %s", [SETTING]).fetchone()
    if row is None:
        return None
    stored = json.loads(row[0])
    shards = tuple(Shard(**shard) for shard in stored["shards"])
    return Map(stored["epoch"], shards, tuple(stored["owners"]))


def is_router(connection: psycopg.Connection[Any]) -> bool:
    """Whether the database is a router, as everybody may know."""
    row = connection.execute("select pg_catalog.to_regnamespace('tidebase_router') is not null").fetchone()
    return bool(row and row[0])


def shard_at(name: str, url: str) -> Shard:
    """A shard at a connection string. Raises InvalidArgument."""
    try:
        parts = conninfo_to_dict(url)
    except psycopg.ProgrammingError as error:
        raise InvalidArgument(f"not a connection string: {error}") from error
    user, password = parts.pop("user", None), parts.pop("password", None)
    if not user or not parts.get("dbname"):
        raise InvalidArgument("the connection string of a shard must name the user and the database")
    return Shard(name, make_conninfo("", **parts), str(user), None if password is None else str(password))


def spread(shards: list[Shard], epoch: int = 1) -> Map:
    """A map in which these shards, all of them empty, have as many partitions each."""
    if not 1 <= len(shards) <= PARTITIONS:
        raise InvalidArgument(f"a router has 1 to {PARTITIONS} shards")
    if len({shard.name for shard in shards}) < len(shards) or len({shard.conninfo for shard in shards}) < len(shards):
        raise InvalidArgument("two shards have the same name or the same place")
    if len({(shard.user, shard.password) for shard in shards}) > 1:
        raise InvalidArgument("the router is the same user, with the same password, at all shards")
    owners = tuple(partition * len(shards) // PARTITIONS for partition in range(PARTITIONS))
    return Map(epoch, tuple(shards), owners)


def store(connection: psycopg.Connection[Any], made: Map) -> None:
    """Keeps the map; :func:`install` makes the rest."""
    connection.execute(
        "insert into tidebase_private.settings (name, value) values (%s, %s)"
        " on conflict on constraint settings_pkey do update set value = excluded.value",
        [SETTING, json.dumps(asdict(made))],
    )


def folder() -> Path:
    """Where the parts are that are written by hand."""
    packaged = Path(__file__).parents[1] / "sql" / "router"
    return packaged if packaged.is_dir() else Path(__file__).parents[3] / "sql" / "router"


def files() -> dict[str, str]:
    """The parts that are written by hand: name and content."""
    return {path.name: path.read_text("utf-8") for path in sorted(folder().glob("*.sql"))}


def install(connection: psycopg.Connection[Any], made: Map) -> None:
    """Puts the forwards in the place of the functions and views, which have just been applied, in the caller's
    transaction. Takes a superuser: PL/Proxy is a language that is not trusted.
    """
    parts = files()
    owner = _owner(connection)
    with _quiet(connection):
        remove(connection)
        for statement in _foundation(made, owner):
            connection.execute(statement)
        connection.execute(parts["support.sql"].encode())
        connection.execute(parts["inner.sql"].encode())
        connection.execute(forwards.written(connection, parts["by_hand.sql"]).encode())
        _views(connection, made)
        role = sql.Identifier(owner)
        connection.execute(sql.SQL("grant usage on schema tidebase_router to {}").format(role))
        connection.execute(sql.SQL("grant execute on all functions in schema tidebase_router to {}").format(role))
        connection.execute(sql.SQL("grant select on all tables in schema tidebase_router to {}").format(role))
        connection.execute("revoke execute on all functions in schema tidebase_router from public")


def remove(connection: psycopg.Connection[Any]) -> None:
    """Takes away what :func:`install` has made beside functions and views; these must be the database's own again."""
    connection.execute("drop schema if exists tidebase_router cascade")
    servers = connection.execute(
        "select srvname from pg_catalog.pg_foreign_server where srvname ~ '^tidebase(_[0-9]+)?$'"
    ).fetchall()
    for (server,) in servers:
        connection.execute(sql.SQL("drop server {} cascade").format(sql.Identifier(server)))


@contextmanager
def _quiet(connection: psycopg.Connection[Any]) -> Iterator[None]:
    connection.execute("set local client_min_messages = warning")
    connection.execute("set local check_function_bodies = off")
    yield


def _owner(connection: psycopg.Connection[Any]) -> str:
    row = connection.execute(
        "select pg_get_userbyid(relowner) from pg_class where oid = 'tidebase.events'::regclass"
    ).fetchone()
    return str(row[0]) if row else ""


def _options(values: dict[str, str]) -> sql.Composable:
    return sql.SQL(", ").join(
        sql.SQL("{} {}").format(sql.Identifier(name), sql.Literal(value)) for name, value in values.items()
    )


def _foundation(made: Map, owner: str) -> Iterator[sql.Composed | sql.SQL]:
    """The schema, the servers, and where each shard is."""
    for extension in ("plproxy", "postgres_fdw"):
        yield sql.SQL("create extension if not exists {} with schema public").format(sql.Identifier(extension))
    yield sql.SQL("create schema tidebase_router")
    yield sql.SQL(
        "comment on schema tidebase_router is 'Tidebase: how a router passes calls on to shards; not an API.'"
    )
    # PL/Proxy keeps one connection for equal strings; the user and the password are those of the mapping.
    named = {f"p{number}": made.shards[place].conninfo for number, place in enumerate(made.owners)}
    named |= {"query_timeout": str(QUERY_S), "connection_lifetime": str(CONNECTION_S)}
    yield sql.SQL("create server tidebase foreign data wrapper plproxy options ({})").format(_options(named))
    role = sql.Identifier(owner)
    yield sql.SQL("create user mapping for {} server tidebase options ({})").format(
        role, _options(_credentials(made.shards[0]))
    )
    yield sql.SQL("grant usage on foreign server tidebase to {}").format(role)
    for place, shard in enumerate(made.shards):
        server = sql.Identifier(f"tidebase_{place}")
        options = {name: str(value) for name, value in conninfo_to_dict(shard.conninfo).items()}
        options |= {"use_remote_estimate": "false", "fetch_size": "1000"}
        yield sql.SQL("create server {} foreign data wrapper postgres_fdw options ({})").format(
            server, _options(options)
        )
        # Views are looked at as their owner, who is no superuser and may have no password to give.
        yield sql.SQL("create user mapping for {} server {} options ({})").format(
            role, server, _options({**_credentials(shard), "password_required": "false"})
        )
        yield sql.SQL("grant usage on foreign server {} to {}").format(server, role)
    firsts = [made.first(place) for place in range(len(made.shards))]
    yield sql.SQL(
        "create function tidebase_router.shards() returns setof integer language sql immutable rows {} as {}"
    ).format(sql.Literal(len(firsts)), sql.Literal(f"select unnest('{{{','.join(map(str, firsts))}}}'::integer[])"))
    yield sql.SQL("comment on function tidebase_router.shards() is 'Each shard, by the first partition that it has.'")
    places = ",".join(str(firsts[owner]) for owner in made.owners)
    body = f"select ('{{{places}}}'::integer[])[(bucket & {len(made.owners) - 1}) + 1]"
    yield sql.SQL(
        "create function tidebase_router.shard_of(bucket integer) returns integer language sql immutable as {}"
    ).format(sql.Literal(body))
    yield sql.SQL(
        "comment on function tidebase_router.shard_of(integer) is 'The shard of a bucket, as shards() names it.'"
    )


def _credentials(shard: Shard) -> dict[str, str]:
    return {"user": shard.user} | ({} if shard.password is None else {"password": shard.password})


_COLUMNS = """
select c.relname, array_agg(quote_ident(a.attname) order by a.attnum),
  array_agg(format_type(a.atttypid, a.atttypmod) order by a.attnum),
  coalesce('security_barrier=true' = any (c.reloptions), false)
from pg_class c join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
where c.relnamespace = 'tidebase'::regnamespace and c.relkind = 'v'
group by c.oid order by c.relname
"""


def _views(connection: psycopg.Connection[Any], made: Map) -> None:
    """Each view becomes that of all shards: what is asked of it goes to each, with the conditions."""
    connection.execute("set local search_path = pg_catalog, pg_temp")
    for view, columns, types, is_barrier in connection.execute(_COLUMNS).fetchall():
        listed = sql.SQL(", ").join(sql.SQL(column) for column in columns)
        parts = []
        for place in range(len(made.shards)):
            table = sql.Identifier("tidebase_router", f"{view}_{place}")
            described = ", ".join(f"{column} {kind}" for column, kind in zip(columns, types, strict=True))
            connection.execute(
                sql.SQL(
                    "create foreign table {} ({}) server {} options (schema_name 'tidebase', table_name {})"
                ).format(table, sql.SQL(described), sql.Identifier(f"tidebase_{place}"), sql.Literal(view))
            )
            parts.append(sql.SQL("select {} from {}").format(listed, table))
        connection.execute(
            sql.SQL("create or replace view {} {} as {}").format(
                sql.Identifier("tidebase", view),
                sql.SQL("with (security_barrier = true)" if is_barrier else ""),
                sql.SQL(" union all ").join(parts),
            )
        )


def is_used(connection: psycopg.Connection[Any]) -> bool:
    """Whether something is stored that belongs into a bucket."""
    row = connection.execute(
        "select exists (select from tidebase.runs) or exists (select from tidebase.threads)"
        " or exists (select from tidebase.queues) or exists (select from tidebase.schedules)"
    ).fetchone()
    return bool(row and row[0])


def connect(shard: Shard) -> psycopg.Connection[Any]:
    """A connection to a shard, in autocommit mode. Raises DatabaseUnavailable."""
    try:
        return psycopg.connect(shard.url, autocommit=True, application_name="tidebase router")
    except psycopg.OperationalError as error:
        raise DatabaseUnavailable(
            f"shard {shard.name} cannot be reached: {str(error).strip()}", sqlstate=error.sqlstate
        ) from error
