"""Time that passes at a word: everything that is stored is moved back, as if it had happened so much earlier.

Nobody asks a clock of the test's for that, so what runs in production is what is tested: a lease has run out because
its end lies in the past. Every column with a time is moved, so what came before what stays as it was; those that are
not are listed with the reason.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import psycopg
from psycopg import sql

from ..core.errors import InvalidArgument, from_postgres
from ..schema.ownership import SCHEMAS

#: The columns that stay as they are, and why.
KEPT = {
    ("tidebase_private.function_files", "applied_at"): "when the schema was installed; nobody decides by it",
    ("tidebase_private.incarnation", "begun_at"): "when this place of the database began; nobody decides by it",
}

#: The id of a run that a schedule made has the time in it, so the id moves, too: else the next time, which is the same
#: by the clock on the wall, would find its run made already.
_MADE = """
select r.run_id, tidebase_private.fire_id(s.schedule, m.at - %(by)s::interval)
from tidebase.schedules s
join tidebase.runs r on starts_with(r.run_id, format('sched:%%s:', s.schedule))
cross join lateral (select right(r.run_id, 20) as text) t
cross join lateral (select to_timestamp(t.text, 'YYYY-MM-DD"T"HH24:MI:SS"Z"')::timestamp at time zone 'UTC' as at) m
where t.text ~ '^\\d{4}-\\d\\d-\\d\\dT\\d\\d:\\d\\d:\\d\\dZ$' and r.run_id = tidebase_private.fire_id(s.schedule, m.at)
order by m.at
"""

_COLUMNS = """
select n.nspname::text, c.relname::text, a.attname::text, t.typname::text
from pg_catalog.pg_attribute a
join pg_catalog.pg_class c on c.oid = a.attrelid and c.relkind in ('r', 'p')
join pg_catalog.pg_namespace n on n.oid = c.relnamespace
join pg_catalog.pg_type t on t.oid = a.atttypid
where n.nspname = any (%s) and a.attnum > 0 and not a.attisdropped
order by 1, 2, a.attnum
"""

_REFERENCES = """
select c.conname::text, c.conrelid::regclass::text, k.confrelid is not null
from pg_catalog.pg_constraint c
left join pg_catalog.pg_constraint k on k.oid = c.oid and k.condeferrable
where c.contype = 'f' and c.confrelid = 'tidebase.runs'::regclass
"""


_RENAME = """
update {0} t set {1} = n.later
from unnest(%s::text[], %s::text[]) n (former, later) where t.{1} = n.former
"""
_RENAME_ALL = """
update {0} t set {1} = (
  select array_agg(coalesce(n.later, i.id) order by i.at)
  from unnest(t.{1}) with ordinality i (id, at)
  left join unnest(%s::text[], %s::text[]) n (former, later) on n.former = i.id)
where t.{1} && %s::text[]
"""


def advance(connection: psycopg.Connection[Any], by: str | timedelta, *, reconcile: bool = True) -> None:
    """Lets time pass, in one transaction: leases, gates, timers, retries, deadlines, delays, schedules, webhooks and
    channels are as they would be so much later, if nobody had looked meanwhile.

    What waits in a process (a pause between two tries of a step, a heartbeat) goes by that process's clock. A run that
    a schedule made gets another id with it, since that is made of its time.

    Args:
        connection: of the owner of the tables, or a superuser, in autocommit mode.
        by: an interval as Postgres writes it, without months (``7 days``, ``90 seconds``), or a timedelta; positive.
        reconcile: then do what is due, as a worker or ``tidebase reconcile`` would.

    Raises:
        InvalidArgument: it is no such interval.
    """
    try:
        step = _interval(connection, by)
        with connection.transaction():
            _move_names(connection, step)
            _move_times(connection, step)
        if reconcile:
            _reconcile(connection)
    except psycopg.Error as error:
        raise from_postgres(error) from error


def _interval(connection: psycopg.Connection[Any], by: str | timedelta) -> timedelta:
    query = "select extract(year from i) = 0 and extract(month from i) = 0, i from (select %s::interval as i) given"
    try:
        row = connection.execute(query, [by]).fetchone()
    except (psycopg.errors.InvalidDatetimeFormat, psycopg.errors.DatetimeFieldOverflow):
        raise InvalidArgument(f"{by!r} is no interval", hint="For instance 7 days, 90 seconds or 1:30:00.") from None
    assert row is not None
    if not row[0]:
        raise InvalidArgument(f"{by!r} must have no months, which have no length: say it in days")
    if not isinstance(row[1], timedelta) or row[1] <= timedelta(0):
        raise InvalidArgument(f"time passes in one direction: {by!r} must be positive")
    return row[1]


def columns(connection: psycopg.Connection[Any]) -> dict[tuple[str, str], dict[str, str]]:
    """The columns of each table of the schema, with their types."""
    tables: dict[tuple[str, str], dict[str, str]] = {}
    for schema, table, column, kind in connection.execute(_COLUMNS, [list(SCHEMAS)]):
        tables.setdefault((schema, table), {})[column] = kind
    return tables


def _move_times(connection: psycopg.Connection[Any], by: timedelta) -> None:
    for (schema, table), kinds in columns(connection).items():
        moved = [
            column
            for column, kind in kinds.items()
            if kind == "timestamptz" and (f"{schema}.{table}", column) not in KEPT
        ]
        if moved:
            assignments = sql.SQL(", ").join(
                sql.SQL("{0} = {0} - %(by)s::interval").format(sql.Identifier(column)) for column in moved
            )
            connection.execute(
                sql.SQL("update {} set {}").format(sql.Identifier(schema, table), assignments), {"by": by}
            )


def _move_names(connection: psycopg.Connection[Any], by: timedelta) -> None:
    names = connection.execute(_MADE, {"by": by}).fetchall()
    if not names:
        return
    references = connection.execute(_REFERENCES).fetchall()
    for name, table, _ in references:
        connection.execute(f'alter table {table} alter constraint "{name}" deferrable initially deferred')
    former, later = [list(column) for column in zip(*names, strict=True)]
    between = [
        f"tidebase-moves:{number}" for number in range(len(names))
    ]  # what one is called next, another one is still
    _rename(connection, former, between)
    _rename(connection, between, later)
    connection.execute("set constraints all immediate")
    for name, table, deferrable in references:
        if not deferrable:
            connection.execute(f'alter table {table} alter constraint "{name}" not deferrable')


def _rename(connection: psycopg.Connection[Any], former: list[str], later: list[str]) -> None:
    """Gives runs other ids, wherever these are kept."""
    for (schema, table), kinds in columns(connection).items():
        for column, kind in kinds.items():
            where = sql.Identifier(schema, table), sql.Identifier(column)
            if kind == "text" and column.endswith("run_id"):
                connection.execute(sql.SQL(_RENAME).format(*where), [former, later])
            elif kind == "_text" and column.endswith("run_ids"):
                connection.execute(sql.SQL(_RENAME_ALL).format(*where), [former, later, former])


def _reconcile(connection: psycopg.Connection[Any]) -> None:
    most = 1000
    while True:
        row = connection.execute("select runs from tidebase.reconcile(%s)", [most]).fetchone()
        if row is None or row[0] < most:
            return
