"""Answers that fit into a model's window: so many rows and characters at most, whatever is stored, and it is said what
was left out.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, is_dataclass
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

from msgspec import Raw

#: The most that a value takes, and all rows of an answer together, in characters of JSON.
A_VALUE, AN_ANSWER = 4_000, 60_000


def plain(value: Any) -> Any:
    """A value as JSON has it."""
    if isinstance(value, Raw):
        return json.loads(bytes(value))
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value))
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(item) for item in value]
    if isinstance(value, datetime):
        return value.astimezone(timezone.utc).isoformat().replace("+00:00", "Z")
    if isinstance(value, timedelta):
        return value.total_seconds()
    return str(value) if isinstance(value, Decimal) else value


def row(value: Any, most: int = A_VALUE) -> dict[str, Any]:
    """A row without what says nothing; a value that is too long is ``{"truncated": true, "bytes": ...}``, as at the
    gateway.
    """
    return {name: short(item, most) for name, item in plain(value).items() if item not in (None, [], {})}


def short(value: Any, most: int = A_VALUE) -> Any:
    """A value, if it is not too long."""
    text = json.dumps(value, ensure_ascii=False)
    if len(text) <= most:
        return value
    return {"truncated": True, "bytes": len(text.encode()), "beginning": text[: most // 4]}


def rows(values: Iterable[Any], most: int = AN_ANSWER) -> tuple[list[dict[str, Any]], bool]:
    """As many rows as there is room for, one at least; and whether that is all of them."""
    shown: list[dict[str, Any]] = []
    room = most
    for value in values:
        one = row(value)
        room -= len(json.dumps(one, ensure_ascii=False))
        if room < 0 and shown:
            return shown, False
        shown.append(one)
    return shown, True
