"""Values to JSON and back: the same on the first run and on a replay, or a clear error before anything is stored."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from datetime import date, datetime, timezone
from decimal import Decimal
from enum import Enum
from pathlib import Path
from typing import Any, NamedTuple, TypedDict
from uuid import UUID

import psycopg
import pydantic
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tidebase import NotSerializable, StepOutputDecodeError, codec

from .test_canonical import values


def shape(value: Any) -> Any:
    """A value with its types and the order of its keys, which == does not compare."""
    if isinstance(value, dict):
        return [(key, shape(item)) for key, item in value.items()]
    if isinstance(value, list):
        return [shape(item) for item in value]
    return type(value).__name__, repr(value)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(values, min_size=40, max_size=40))
def test_first_run_and_replay_see_the_same_value(db: psycopg.Connection[Any], examples: list[Any]) -> None:
    texts = [codec.encode(example) for example in examples]
    stored = db.execute("select v::jsonb::text from unnest(%s::text[]) v", [texts]).fetchall()
    assert [shape(codec.settle(text)) for text in texts] == [shape(codec.decode(row[0])) for row in stored]


class Colour(Enum):
    RED = "red"


@dataclass
class Inner:
    when: datetime
    id: UUID


@dataclass
class Outer:
    name: str
    inner: Inner
    several: list[Inner]
    price: Decimal
    colour: Colour
    pair: tuple[int, str]
    tags: set[str] = field(default_factory=set)
    nothing: int | None = None


class Model(pydantic.BaseModel):
    a: int
    b: list[date]


class Typed(TypedDict):
    x: int
    y: list[float]


class Named(NamedTuple):
    left: int
    right: str


INNER = Inner(datetime(2026, 1, 2, 3, 4, 5, 678, tzinfo=timezone.utc), UUID(int=7))
OUTER = Outer("n", INNER, [INNER], Decimal("1.10"), Colour.RED, (1, "b"), {"t"})


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (OUTER, Outer),
        ([OUTER], list[Outer]),
        ({"k": INNER}, dict[str, Inner]),
        (Model(a=1, b=[date(2026, 1, 2)]), Model),
        ([Model(a=1, b=[])], list[Model]),
        (Typed(x=1, y=[0.5]), Typed),
        (Named(1, "r"), Named),
        ((1, "a"), tuple[int, str]),
        ({1, 2}, set[int]),
        (b"\x00\xff", bytes),
        (None, Outer | None),
        (Path("a/b"), Path),
        (1, float),
        (INNER, Inner | Outer),
        (OUTER, Inner | Outer),
    ],
    ids=str,
)
def test_a_value_comes_back_as_its_type(value: Any, expected: Any) -> None:
    text = codec.encode(value)
    assert codec.settle(text, expected) == value
    assert codec.decode(json.dumps(json.loads(text)), expected) == value


class Unknown:
    pass


cyclic: list[Any] = []
cyclic.append(cyclic)
deep: list[Any] = []
for _ in range(100_000):
    deep = [deep]


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"a": [1, float("nan")]}, r"\$\.a\[1\] is nan"),
        ([float("inf")], r"\$\[0\] is inf"),
        ({"a": {"b": "x\0y"}}, r"\$\.a\.b has a NUL"),
        ({"x\0": 1}, r"the key .* has a NUL"),
        (["\ud800"], r"\$\[0\] has a lone surrogate"),
        ({"a": Unknown()}, "Unknown"),
        (cyclic, "nested too deeply"),
        (deep, "nested too deeply"),
        (10**5000, "cannot be stored"),
    ],
    ids=["nan", "infinity", "nul", "nul in a key", "surrogate", "object", "cyclic", "deep", "endless integer"],
)
def test_what_json_cannot_hold_is_refused_with_its_place(value: Any, words: str) -> None:
    with pytest.raises(NotSerializable, match=words):
        codec.encode(value)


def test_a_backslash_before_u0000_is_no_nul() -> None:
    assert codec.settle(codec.encode("\\u0000")) == "\\u0000"


@pytest.mark.parametrize(
    ("text", "expected", "path"),
    [
        ('{"when": "x", "id": "00000000-0000-0000-0000-000000000007"}', Inner, r"\$\.when"),
        ('{"a": "x", "b": []}', Model, r"\$\.a"),
        ('[1, "x"]', list[int], r"\$\[1\]"),
    ],
)
def test_a_stored_value_that_no_longer_fits_is_named(text: str, expected: Any, path: str) -> None:
    with pytest.raises(StepOutputDecodeError, match=path):
        codec.decode(text, expected)
