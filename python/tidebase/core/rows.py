"""The rows of an answer: one value in them that Python has no form for does not keep the others from being read."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any

import psycopg
from psycopg.adapt import AdaptersMap, Transformer
from psycopg.pq import Format
from psycopg.pq.abc import PGresult
from psycopg.types.datetime import IntervalBinaryLoader, TimestamptzBinaryLoader

Row = tuple[Any, ...]

_FIRST, _LAST = datetime.min.replace(tzinfo=timezone.utc), datetime.max.replace(tzinfo=timezone.utc)


class _NearestMoment(TimestamptzBinaryLoader):
    """A time beyond Python's years, or infinity, is the first or the last that it has."""

    def load(self, data: Any) -> datetime:
        try:
            return super().load(data)
        except psycopg.DataError:
            return _FIRST if _is_negative(data) else _LAST


class _NearestSpan(IntervalBinaryLoader):
    """The same for the length of a time."""

    def load(self, data: Any) -> timedelta:
        try:
            return super().load(data)
        except (psycopg.DataError, OverflowError):
            parts = (bytes(data)[0:], bytes(data)[8:], bytes(data)[12:])  # microseconds, days, months
            return timedelta.min if any(_is_negative(part) for part in parts) else timedelta.max


def _is_negative(data: Any) -> bool:
    return bytes(data[:1])[0] >= 128


def read(result: PGresult, connection: psycopg.Connection[Any] | psycopg.AsyncConnection[Any]) -> list[Row]:
    """All rows of a result in binary, where psycopg itself has refused one of the values."""
    adapters = AdaptersMap(connection.adapters)
    adapters.register_loader("timestamptz", _NearestMoment)
    adapters.register_loader("interval", _NearestSpan)
    transformer = Transformer(_Context(adapters, connection))
    transformer.set_pgresult(result, set_loaders=True, format=Format.BINARY)
    return list(transformer.load_rows(0, result.ntuples, tuple))


class _Context:
    """What psycopg makes a transformer of (its protocol AdaptContext)."""

    def __init__(self, adapters: AdaptersMap, connection: Any) -> None:
        self.adapters = adapters
        self.connection = connection
