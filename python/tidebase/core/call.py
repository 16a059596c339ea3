"""Calls as values: a statement, its parameters and how to read its rows; and each SQL function once, with its
parameters and their SQL types. JSON travels as text both ways: a column of type :data:`Json` stays text until somebody
knows what to decode it as, one of type :data:`Value` is decoded when its row is read.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Annotated, Any, Generic, NewType, TypeVar, get_type_hints

from . import codec
from .options import require_zone
from .places import place_of_queue

R = TypeVar("R")
#: JSON text that has not been decoded.
Json = NewType("Json", str)
#: A JSON column that is decoded when its row is read; None for SQL NULL and for the JSON null.
Value = Annotated[Any, "json"]


@dataclass(slots=True)
class Call(Generic[R]):
    """One statement, which is one round trip and one transaction.

    Attributes:
        held: whether it is part of the work under a lease, which would be lost with it.
        places: the run that it is about, and what must lie beside it; none where it is about several, or about none.
        fenced: whether it makes that run, or changes its head under a lease: where the run is another database's, that
            is refused anyway.
    """

    query: str
    parameters: tuple[Any, ...]
    read: Callable[[list[tuple[Any, ...]]], R]
    held: bool = False
    places: tuple[Any, ...] = ()
    fenced: bool = False


def columns(row: type[Any]) -> str:
    """The select list for a row class: its fields, JSON as text."""
    return ", ".join(f"{name}::text" if hint in _AS_TEXT else name for name, hint in _hints(row).items())


def reader(row: type[R]) -> Callable[[tuple[Any, ...]], R]:
    """Makes an object of the row class from a row of :func:`columns`."""
    decoded = [index for index, hint in enumerate(_hints(row).values()) if hint == Value]
    if not decoded:
        return lambda values: row(*values)

    def read(values: tuple[Any, ...]) -> R:
        changed = list(values)
        for index in decoded:
            changed[index] = codec.readable(changed[index])
        return row(*changed)

    return read


def _hints(row: type[Any]) -> dict[str, Any]:
    hints = get_type_hints(row, include_extras=True)
    return {f.name: hints[f.name] for f in fields(row)}


_AS_TEXT = (Json, Json | None, Value)


#: Parameters that name what a call is about, and what must lie beside that.
_PLACES = ("run_id", "new_run_id", "thread_id", "source_thread_id", "target_thread_id")

#: About more than what these parameters name: a schedule lies with its queue, and a run may be compared with any other.
_ABOUT_SEVERAL = ("trigger_schedule", "diff_runs")


class Function(Generic[R]):
    """A function of the schema: called with its parameters by name it makes a :class:`Call`; None means the default."""

    def __init__(
        self, name: str, select: str, read: Callable[[list[tuple[Any, ...]]], R], /, **parameters: str
    ) -> None:
        self._name = name
        self._select = select
        self._read = read
        self._parameters = parameters
        self._held = "token" in parameters and name != "release_run"
        self._places = [] if name in _ABOUT_SEVERAL else [place for place in _PLACES if place in parameters]
        self._is_enqueued = name == "enqueue_run"
        self._is_fenced = name == "create_run" or (self._held and self._places == ["run_id"])
        self._times = [name for name, kind in parameters.items() if kind == "timestamptz"]
        self._queries: dict[tuple[str, ...], str] = {}

    @property
    def name(self) -> str:
        """The function's name, without its schema."""
        return self._name

    @property
    def parameters(self) -> dict[str, str]:
        """Its parameters, by name, with their SQL types."""
        return dict(self._parameters)

    def __call__(self, **arguments: Any) -> Call[R]:
        values = tuple(arguments.values())
        given = tuple(arguments)
        if None in values:
            given = tuple(name for name in given if arguments[name] is not None)
            values = tuple(arguments[name] for name in given)
        for name in self._times:  # few functions have one
            if name in given:
                require_zone(arguments[name], name)
        query = self._queries.get(given)
        if query is None:
            named = ", ".join(f"{name} => %s::{self._parameters[name]}" for name in given)
            query = self._queries[given] = self._select.format(f"tidebase.{self._name}({named})")
        return Call(query, values, self._read, self._held, self._placed(arguments), self._is_fenced)

    def _placed(self, arguments: dict[str, Any]) -> tuple[Any, ...]:
        if len(self._places) == 1 and not self._is_enqueued:  # nearly all
            place = arguments.get(self._places[0])
            return () if place is None else (place,)
        places = tuple(arguments[name] for name in self._places if arguments.get(name) is not None)
        return (*places, place_of_queue(arguments.get("queue") or "default")) if self._is_enqueued else places


def one(name: str, row: type[R], /, **parameters: str) -> Function[R]:
    """A function that returns one row."""
    read = reader(row)
    return Function(name, f"select {columns(row)} from {{}}", lambda rows: read(rows[0]), **parameters)


def many(name: str, row: type[R], /, **parameters: str) -> Function[list[R]]:
    """A function that returns rows."""
    read = reader(row)
    return Function(name, f"select {columns(row)} from {{}}", lambda rows: list(map(read, rows)), **parameters)


def scalar(name: str, /, **parameters: str) -> Function[Any]:
    """A function that returns one value."""
    return Function(name, "select {}", lambda rows: rows[0][0], **parameters)


def scalars(name: str, /, **parameters: str) -> Function[list[Any]]:
    """A function that returns a set of values."""
    return Function(name, "select * from {}", lambda rows: [row[0] for row in rows], **parameters)


def rows_of(view: str, row: type[R], order: str, **where: Any) -> Call[list[R]]:
    """Rows of a view, those with these values; the names are the code's own, never a caller's."""
    given = {name: value for name, value in where.items() if value is not None}
    condition = " and ".join(f"{name} = %s" for name in given) or "true"
    query = f"select {columns(row)} from tidebase.{view} where {condition} order by {order}"
    read = reader(row)
    places = (given["run_id"],) if "run_id" in given else ()
    return Call(query, tuple(given.values()), lambda rows: list(map(read, rows)), places=places)


@dataclass(frozen=True)
class Audience:
    """For whom a function or a view is. ``user``: who asks; ``allowed``: whether it is for this user; ``roles``: those
    that it was granted to; ``owner``: whose it is. The names are quoted where SQL wants that.
    """

    user: str
    allowed: bool
    roles: list[str]
    owner: str


def audience_of(call: Call[Any]) -> Call[list[Audience]]:
    """For whom the function is that a call is made to, or the view: from the catalogue, which anybody may read."""
    named = re.search(r"\btidebase\.(\w+)", call.query)
    return Call(_AUDIENCE, (named[1] if named else "",), lambda rows: [Audience(*row) for row in rows])


_AUDIENCE = """
select quote_ident(current_user), bool_or(pg_has_role(coalesce(nullif(a.grantee, 0), o.owner), 'usage')),
  coalesce(array_agg(distinct quote_ident(r.rolname)) filter (where r.oid <> o.owner), '{}'),
  quote_ident(pg_get_userbyid(o.owner))
from (
  select p.proowner, coalesce(p.proacl, acldefault('f', p.proowner)), p.pronamespace, p.proname from pg_proc p
  union all
  select c.relowner, coalesce(c.relacl, acldefault('r', c.relowner)), c.relnamespace, c.relname from pg_class c
) o (owner, acl, schema, name)
cross join aclexplode(o.acl) a
left join pg_roles r on r.oid = a.grantee
where o.schema = to_regnamespace('tidebase') and o.name = %s and a.privilege_type in ('EXECUTE', 'SELECT')
group by o.owner
"""
