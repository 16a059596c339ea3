"""Pages of what a run has: so many rows and bytes at most, whatever is stored. They are cut in the database: what is
not sent is never read into memory here. JSON is passed on as the text that it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, Generic, TypeVar, get_type_hints

import msgspec

from ..domain import calls
from ..domain.calls import (
    Call,
    Event,
    GateInfo,
    Recovery,
    RunEdge,
    Snapshot,
    StepInfo,
    UsageRecord,
    Value,
)
from .shapes import Version

R = TypeVar("R")

#: The most that a page takes, in bytes of its rows as text.
PAGE = 2_000_000
#: The most that one value takes: of a row in a page, and of what was asked for by itself.
IN_A_PAGE, BY_ITSELF = 256_000, 4_000_000
#: The most that a text for people takes.
_TEXT = 10_000


@dataclass(frozen=True)
class Page(Generic[R]):
    """The newest rows, oldest first; ``cut``: there are more before them."""

    rows: list[R]
    cut: bool


@dataclass(frozen=True)
class Section(Generic[R]):
    """One kind of what a run has.

    Attributes:
        source: where its rows are; ``%s`` is the id of the run, then come the arguments.
        order: what they are in the order of.
        before: the condition of those that come before a given one; ``%s`` is the id of the run, then the row's name.
    """

    row: type[R]
    source: str
    order: tuple[str, ...]
    before: str = ""
    arguments: tuple[Any, ...] = ()

    def page(self, run_id: str, max: int, before: str | int | None = None) -> Call[Page[R]]:
        """The newest rows, or the newest of those before one."""
        where = "" if before is None else f"where {self.before}"
        query = f"""
            select {", ".join(_hints(self.row))}, there
            from (
              select c.*, row_number() over newest as place, count(*) over () as there,
                sum(octet_length(c::text)) over (newest rows unbounded preceding) as so_far
              from (
                select {columns(self.row, IN_A_PAGE)}
                from {self.source} s {where} order by {_newest("s", self.order)} limit %s) c
              window newest as (order by {_newest("c", self.order)})) numbered
            where place <= %s and (so_far <= %s or place = 1)
            order by place desc"""
        read = reader(self.row)

        def page(rows: list[tuple[Any, ...]]) -> Page[R]:
            return Page([read(row[:-1]) for row in rows], bool(rows) and rows[0][-1] > len(rows))

        given = () if before is None else (run_id, before)
        return Call(query, (run_id, *self.arguments, *given, max + 1, max, PAGE), page)

    def has(self, run_id: str, name: str) -> Call[list[bool]]:
        """Whether a row of that name, the last key of the order, is there."""
        query = f"select exists (select from {self.source} s where s.{self.order[-1]} = %s)"
        return Call(query, (run_id, *self.arguments, name), lambda rows: [row[0] for row in rows])


def _newest(table: str, order: tuple[str, ...]) -> str:
    return ", ".join(f"{table}.{name} desc" for name in order)


STEPS = Section(
    StepInfo,
    "(select * from tidebase.step_timeline where run_id = %s)",
    ("started_at", "name"),
    "(s.started_at, s.name) <"
    " (select b.started_at, b.name from tidebase.step_timeline b where (b.run_id, b.name) = (%s, %s))",
)
GATES = Section(
    GateInfo,
    "(select * from tidebase.gate_overview where run_id = %s and kind = 'gate')",
    ("created_at", "name"),
    "(s.created_at, s.name) <"
    " (select b.created_at, b.name from tidebase.gate_overview b where (b.run_id, b.name) = (%s, %s))",
)
USAGE = Section(
    UsageRecord,
    "(select * from tidebase.usage_records where run_id = %s)",
    ("seq",),
    "s.run_id = %s and s.seq < %s",
)
RECOVERIES = Section(
    Recovery,
    "(select * from tidebase.recovery_history where run_id = %s)",
    ("recovery",),
    "s.run_id = %s and s.recovery < %s",
)
CHILDREN = Section(
    RunEdge,
    "(select * from tidebase.run_edges where run_id = %s)",
    ("created_at", "child_run_id"),
    "(s.created_at, s.child_run_id) <"
    " (select b.created_at, b.child_run_id from tidebase.run_edges b where (b.run_id, b.child_run_id) = (%s, %s))",
)


def events(before: int, max: int) -> Section[Event]:
    """The events before a number: a log has no gaps."""
    after = before - 2 - max if before > max + 2 else 0
    source = f"(select * from tidebase.read_events(%s, {after:d}, {max + 1:d}) where seq < {before:d})"
    return Section(Event, source, ("seq",))


def versions(max: int, stream: str | None = None, labeled: bool = False, before: int | None = None) -> Section[Version]:
    """The versions of all streams, or of one."""
    source = """(
      select v.*, p.patch
      from (select %s::text as run_id) r
      cross join lateral
        tidebase.list_state_versions(r.run_id, %s::text, %s::boolean, %s::integer, %s::integer, true) v
      left join tidebase.state_patches p on (p.run_id, p.stream, p.version) = (r.run_id, v.stream, v.version))"""
    return Section(Version, source, ("seq",), arguments=(stream, labeled, before, max + 1))


def snapshots(max: int) -> Section[Snapshot]:
    """The snapshots of all targets, and the states that have a label."""
    return Section(Snapshot, "tidebase.list_snapshots(%s, max => %s)", ("seq",), arguments=(max + 1,))


def documents(run_id: str, places: Sequence[tuple[int, str, int]]) -> Call[dict[int, msgspec.Raw | None]]:
    """Documents of states, by the number of their events, the newest first as far as a page goes; a place is that
    number, the stream and the version. One that is not there any more is not among them.
    """
    query = f"""
        select seq, value
        from (
          select w.seq, v.value, sum(coalesce(octet_length(v.value), 4)) over (order by w.seq desc) as so_far
          from unnest(%s::bigint[], %s::text[], %s::integer[]) w (seq, stream, version)
          cross join lateral (
            select {_column("value", Value, IN_A_PAGE)}
            from tidebase.list_state_versions(%s, w.stream, before => w.version + 1, max => 1, with_value => true) l
            where l.version = w.version) v) d
        where so_far <= %s"""
    seqs, streams, versions = (list(column) for column in zip(*places, strict=True))
    return Call(query, (seqs, streams, versions, run_id, PAGE), lambda rows: {seq: raw(text) for seq, text in rows})


def gates_named(run_id: str, names: Sequence[str]) -> Call[list[GateInfo]]:
    """Gates of a run."""
    query = f"select {columns(GateInfo, IN_A_PAGE)} from tidebase.gate_overview where run_id = %s and name = any(%s)"
    read = reader(GateInfo)
    return Call(query, (run_id, list(names)), lambda rows: [read(row) for row in rows])


def secrets(run_id: str, names: Sequence[str]) -> Call[dict[str, str]]:
    """The secrets of gates, by their names."""
    query = "select name, tidebase.get_gate_secret(%s, name) from unnest(%s::text[]) name"
    return Call(query, (run_id, list(names)), dict)


def bounded(call: Call[Any], row: type[R], most: int = BY_ITSELF) -> Call[list[R]]:
    """The same call, which reads at most so many bytes of each value."""
    query = call.query.replace(calls.columns(row), columns(row, most), 1)
    read = reader(row)
    return Call(query, call.parameters, lambda rows: [read(values) for values in rows], call.held)


def columns(row: type[Any], most: int, **instead: str) -> str:
    """The select list for a row class, where what is too long is said to be so; ``instead``: columns by other words."""
    return ", ".join(instead.get(name) or _column(name, hint, most) for name, hint in _hints(row).items())


def _column(name: str, hint: Any, most: int) -> str:
    if hint == Value:
        is_long = f"pg_column_size({name}) > {most} or octet_length({name}::text) > {most}"
        said = f"jsonb_build_object('truncated', true, 'bytes', pg_column_size({name}))"
        return f"case when {is_long} then {said} else {name} end::text as {name}"
    if hint in (str, str | None):
        return (
            f"case when octet_length({name}) > {_TEXT} then left({name}, {_TEXT}) || ' ...' else {name} end as {name}"
        )
    return name


def reader(row: type[R]) -> Callable[[tuple[Any, ...]], R]:
    """Makes a row of what :func:`columns` selects; its values go on as the texts that they are."""
    values = [hint == Value for hint in _hints(row).values()]

    def read(texts: tuple[Any, ...]) -> R:
        return row(*(raw(text) if value else text for text, value in zip(texts, values, strict=True)))

    return read


def raw(text: str | None) -> msgspec.Raw | None:
    """JSON that goes on as it is."""
    return None if text is None else msgspec.Raw(text.encode())


def _hints(row: type[Any]) -> dict[str, Any]:
    hints = get_type_hints(row, include_extras=True)
    return {field.name: hints[field.name] for field in fields(row)}
