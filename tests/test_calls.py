"""What the package sends is what the schema has: each call against the catalogue, and those of an earlier package."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import psycopg
import pytest

from tidebase import AsyncTidebase, NotMigrated, Tidebase
from tidebase.core.explain import PROTOCOL
from tidebase.domain import calls

from .probes.support import connect

ON_NEWEST = True

FUNCTIONS = {name: value for name, value in vars(calls).items() if isinstance(value, calls.Function)}
LANDED = sorted((Path(__file__).parent / "landed").glob("*.statements"))

PARAMETERS = """
select a.name, format_type(a.type, null)
from pg_proc p,
  unnest(p.proargnames, coalesce(p.proallargtypes, p.proargtypes::oid[]), p.proargmodes) a (name, type, mode)
where p.pronamespace = 'tidebase'::regnamespace and p.proname = %s and coalesce(a.mode, 'i') in ('i', 'b')"""
SPELT = {"timestamp with time zone": "timestamptz"}

#: Functions that the package has no use for (its commands and its page read views, or make the id themselves), and
#: those of which core knows.
OF_OTHERS = {
    *("check_invariants", "finish_recovery", "new_run_id", "next_ready", "record_recovery"),
    *("protocol", "require_bucket", "shard_epoch", "shard_map"),
}

Db = psycopg.Connection[Any]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_call_has_the_parameters_of_the_catalogue(db: Db, name: str) -> None:
    function = FUNCTIONS[name]
    theirs = {name: SPELT.get(kind, kind) for name, kind in db.execute(PARAMETERS, [function.name]).fetchall()}
    ours = {name: "interval" if "interval" in kind else kind for name, kind in function.parameters.items()}
    assert ours == theirs  # the length of a step goes as a number of seconds


def test_every_public_function_has_a_call(db: Db) -> None:
    query = "select proname from pg_proc where pronamespace = 'tidebase'::regnamespace"
    there = {row[0] for row in db.execute(query).fetchall()}
    assert there == {function.name for function in FUNCTIONS.values()} | OF_OTHERS


@pytest.mark.parametrize("path", LANDED, ids=lambda path: path.stem)
def test_the_statements_of_an_earlier_package_are_understood(db: Db, path: Path) -> None:
    for number, statement in enumerate(path.read_text().splitlines()):
        db.execute(f"prepare landed_{number} as {statement}".encode())


def gone(url: str, protocol: int | None) -> None:
    """The schema of another package: a function is not there, and the protocol is another."""
    with connect(url) as connection:
        connection.execute("drop function tidebase.count_runs()")
        if protocol is None:
            connection.execute("drop function tidebase.protocol()")
        else:
            connection.execute(
                "create or replace function tidebase.protocol() returns integer language sql immutable"
                f" security definer set search_path = pg_catalog, tidebase, pg_temp as 'select {protocol}'"
            )


@pytest.mark.parametrize(
    "protocol, said",
    [
        (None, r"The schema is older than this package \(protocol unknown, not \d+\): tidebase migrate"),
        (PROTOCOL - 1, r"The schema is older than this package \(protocol \d+, not \d+\): tidebase migrate"),
        (PROTOCOL + 1, r"The schema is newer than this package \(protocol \d+, not \d+\): upgrade tidebase-postgres"),
        (PROTOCOL, "does not exist"),
    ],
)
@pytest.mark.breaks_invariants
async def test_a_schema_of_another_package_is_named_as_such(
    database: str, tide: Tidebase, atide: AsyncTidebase, protocol: int | None, said: str
) -> None:
    gone(database, protocol)
    with pytest.raises(NotMigrated, match=said):
        tide.runs.count()
    with pytest.raises(NotMigrated, match=said):
        await atide.runs.count()


def test_the_package_speaks_the_protocol_of_its_schema(db: Db) -> None:
    assert db.execute("select tidebase.protocol()").fetchone() == (PROTOCOL,)
