"""A router and its shards against one database: the same calls, the same answers, the same errors.

Two shards and the router are databases of one Postgres 15; PL/Proxy is Debian's (``tests/install-system-packages``).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tidebase.schema import forwards, migrations, router

from .conftest import SERVERS, Server
from .support import clusters

ON_NEWEST = True

Connection = psycopg.Connection[Any]

HAS_PLPROXY = 15 in SERVERS and Path("/usr/share/postgresql/15/extension/plproxy.control").exists()

pytestmark = pytest.mark.skipif(not HAS_PLPROXY, reason="PL/Proxy is not installed for Postgres 15")

#: Calls in their order, a line each, of every function of the API: answers that are right, and each kind of error. Runs
#: of one's own ids lie at either shard: r1 at one, r2 at the other.
CALLS = (Path(__file__).parent / "support" / "routed.sql").read_text("utf-8").splitlines()

#: What is new every time.
CHANCE = re.compile(
    r"(run_)?[0-9a-f]{8}-[-0-9a-f]{27}|gate_[0-9a-f]{64}|\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\.\d+)?(\+\d\d(:\d\d)?|Z)?"
)


@dataclass(frozen=True)
class Several:
    """A router and its two shards, and a database alone."""

    server: Server
    router: str
    shards: tuple[str, str]
    alone: str

    def connect(self, name: str, **options: Any) -> Connection:
        return self.server.connect(name, **options)


def made(server: Server, owned: tuple[str, ...] | None = None) -> Several:
    """Four databases; ``owned``: what the shards are told they own, by default what the router thinks."""
    names = [server.create_database(clusters.MIGRATED) for _ in range(4)]
    shards = [router.shard_at(name, server.url(name)) for name in names[:2]]
    plan = router.spread(shards)
    for place, shard in enumerate(plan.shards):
        with router.connect(shard) as connection:
            connection.execute(
                "select tidebase_private.own_buckets(%s)", [owned[place] if owned else plan.owned(place)]
            )
    with server.connect(names[2]) as connection:
        migrations.route(connection, plan)
    return Several(server, names[2], (names[0], names[1]), names[3])


@pytest.fixture(scope="module")
def several(servers: Callable[[int], Server]) -> Iterator[Several]:
    server = servers(15)
    found = made(server)
    yield found
    for name in (found.router, *found.shards, found.alone):
        server.drop_database(name)


def said(connection: Connection, query: str) -> Any:
    """The rows of an answer, as text, or the fields of an error."""
    try:
        rows = connection.execute(query.encode()).fetchall()
    except psycopg.Error as error:
        diagnostic = error.diag
        fields = (diagnostic.message_primary, diagnostic.message_detail, diagnostic.message_hint)
        return (error.sqlstate, *(CHANCE.sub("?", field) if field is not None else None for field in fields))
    return [CHANCE.sub("?", repr(row)) for row in rows]


def test_every_answer_and_every_error_is_that_of_a_database_alone(several: Several) -> None:
    with several.connect(several.alone) as alone, several.connect(several.router) as routed:
        called = {name for call in CALLS for name in re.findall(r"tidebase\.(\w+)\(", call)}
        assert called == {function.name for function in forwards.functions(alone)}
        differ = []
        for call in CALLS:
            there, here = said(alone, call), said(routed, call)
            if there != here:
                differ.append(f"{call}\n  alone:  {there}\n  routed: {here}")
    assert not differ, "\n".join(differ)


def described(connection: Connection) -> list[Any]:
    """All that a caller can see of the API: signatures, defaults, results, comments, grants, columns of views."""
    with connection.transaction():
        connection.execute("set local search_path = pg_catalog, pg_temp")
        functions = connection.execute(
            "select p.proname, pg_get_function_arguments(p.oid), pg_get_function_result(p.oid), p.provolatile,"
            " p.prosecdef, p.prorows, obj_description(p.oid), p.proacl::text, pg_get_userbyid(p.proowner)"
            " from pg_proc p where p.pronamespace = 'tidebase'::regnamespace order by 1, 2"
        ).fetchall()
        views = connection.execute(
            "select c.relname,"
            " array_agg(format('%s %s', a.attname, format_type(a.atttypid, a.atttypmod)) order by a.attnum),"
            " obj_description(c.oid), c.relacl::text, pg_get_userbyid(c.relowner), c.reloptions"
            " from pg_class c join pg_attribute a on a.attrelid = c.oid and a.attnum > 0"
            " where c.relnamespace = 'tidebase'::regnamespace and c.relkind = 'v' group by c.oid order by 1"
        ).fetchall()
    return [*functions, *views]


def test_every_function_and_view_is_there_with_the_same_signature(several: Several) -> None:
    with several.connect(several.alone) as alone, several.connect(several.router) as routed:
        for there, here in zip(described(alone), described(routed), strict=True):
            assert there == here
        own = routed.execute(
            "select proname::text from pg_proc where pronamespace = 'tidebase'::regnamespace"
            " and prosrc !~ 'tidebase_router' order by 1"
        ).fetchall()
        assert {name for (name,) in own} == forwards.LOCAL
        views = "select count(*) from pg_views where schemaname = 'tidebase' and definition !~ 'tidebase_router'"
        assert routed.execute(views).fetchone() == (0,)
        inner = routed.execute(
            "select count(*) from pg_proc p, aclexplode(p.proacl) a"
            " where p.pronamespace = 'tidebase_router'::regnamespace and a.grantee = 0"
        )
        assert inner.fetchone() == (0,)  # nobody but the owner comes past the functions of the API


def test_whoever_makes_nothing_of_an_argument_is_told_so_as_by_a_database_alone(several: Several) -> None:
    """Every function, with nothing but NULL."""
    with several.connect(several.alone) as alone, several.connect(several.router) as routed:
        differ = []
        for function in forwards.functions(alone):
            if function.name in {"new_run_id", "create_run", "claim_runs", "reconcile"}:  # it is an answer
                continue
            call = f"select tidebase.{function.name}({', '.join(['null'] * len(function.types))})"
            there, here = said(alone, call), said(routed, call)
            if (isinstance(there, tuple) or isinstance(here, tuple)) and there != here:
                differ.append(f"{call}\n  alone:  {there}\n  routed: {here}")
    assert not differ, "\n".join(differ)
