"""Values to JSON and back: the same on the first run and on a replay, or a clear error before anything is stored."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from datetime import date, datetime, timezone
from decimal import Decimal
from enum import Enum
from pathlib import Path
from typing import Any, NamedTuple, TypedDict
from uuid import UUID

import attrs
import msgspec
import psycopg
import pydantic
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tidebase import NotSerializable, StepOutputDecodeError
from tidebase.core import codec
from tidebase.core.canonical import digest

from .support import values as sample
from .support.values import COME_BACK, KNOWN
from .test_canonical import texts, values

ON_NEWEST = True


def shape(value: Any) -> Any:
    """A value with its types and the order of its keys, which == does not compare."""
    if isinstance(value, dict):
        return [(key, shape(item)) for key, item in value.items()]
    if isinstance(value, list):
        return [shape(item) for item in value]
    return type(value).__name__, repr(value)


@settings(max_examples=60)
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


class Free(pydantic.BaseModel):
    it: Any


@attrs.define
class Plain:
    it: Any


class Record(msgspec.Struct):
    it: Any


@dataclass
class Described:
    it: Any


class Pair(NamedTuple):
    first: Any
    it: Any


@pytest.mark.parametrize(
    ("value", "place"),
    [
        (Unknown(), "$"),
        ({"n": 1, "a": [1, (2,), {"c": 3}, {"b": Unknown(), "z": Unknown()}]}, "$.a[3].b"),
        ([Described([Free(it={"x": [Unknown()]})])], "$[0].it[0].it.x[0]"),
        ({"p": Plain(Record([0, Unknown()]))}, "$.p.it.it[1]"),
        (Pair(1, {Unknown()}), "$[1][0]"),
        ([[1], {"k": {(1, 2): 3}}], "$[1].k"),
        ([{"good": [cyclic[:0]]}, {"bad": Unknown()}, cyclic], "$[1].bad"),
    ],
    ids=lambda part: part if isinstance(part, str) else "",
)
def test_what_has_no_json_form_is_refused_with_its_place(value: Any, place: str) -> None:
    for store in (codec.encode, codec.settled):
        with pytest.raises(NotSerializable) as caught:
            store(value)
        assert str(caught.value).split(" - at ")[1].startswith(f"`{place}`"), caught.value


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


def through(db: psycopg.Connection[Any], *stored: str) -> list[str]:
    """What jsonb makes of JSON texts."""
    return [row[0] for row in db.execute("select v::jsonb::text from unnest(%s::text[]) v", [list(stored)])]


@pytest.mark.parametrize(("value", "expected"), COME_BACK, ids=range(len(COME_BACK)))
def test_what_a_step_returns_comes_back_as_its_type(db: psycopg.Connection[Any], value: Any, expected: Any) -> None:
    settled = codec.settled(value, expected)
    assert (settled.problem, settled.value, type(settled.value)) == (None, value, type(value))
    assert codec.decode(through(db, settled.text)[0], expected) == value


LEAVES: list[tuple[Any, st.SearchStrategy[Any]]] = [
    (int, st.integers()),
    (str, texts),
    (float, st.floats(allow_nan=False, allow_infinity=False)),
    (bool, st.booleans()),
    (date, st.dates()),
    (datetime, st.datetimes(timezones=st.just(timezone.utc))),
    (UUID, st.uuids()),
    (Decimal, st.decimals(allow_nan=False, allow_infinity=False)),
    (sample.Colour, st.sampled_from(sample.Colour)),
    (sample.Level, st.sampled_from(sample.Level)),
]
MODELS: list[tuple[Any, st.SearchStrategy[Any]]] = [
    (sample.Alias, st.builds(lambda number: sample.Alias(firstName=number), st.integers())),
    (sample.Computed, st.builds(sample.Computed, a=st.integers())),
    (sample.Swapped, st.builds(lambda a, b: sample.Swapped(a=b, b=a), st.integers(), st.integers())),
    (
        sample.Strict,
        st.builds(
            sample.Strict,
            day=st.dates(),
            id=st.uuids(),
            pair=st.lists(st.integers()).map(tuple),
            numbers=st.sets(st.integers()),
            price=st.decimals(allow_nan=False, allow_infinity=False),
        ),
    ),
]
Typed = tuple[Any, st.SearchStrategy[Any]]


def _wrapped(inner: st.SearchStrategy[Typed]) -> st.SearchStrategy[Typed]:
    leaf = st.sampled_from([leaf for leaf in LEAVES if leaf[0] is not bool])
    return st.one_of(
        inner.map(lambda t: (list[t[0]], st.lists(t[1], max_size=3))),  # type: ignore[name-defined]
        inner.map(lambda t: (t[0] | None, t[1] | st.none())),
        st.tuples(inner, inner).map(lambda t: (tuple[t[0][0], t[1][0]], st.tuples(t[0][1], t[1][1]))),  # type: ignore[misc]
        st.tuples(leaf, inner).map(
            lambda t: (dict[t[0][0], t[1][0]], st.dictionaries(t[0][1], t[1][1], max_size=3))  # type: ignore[misc]
        ),
        leaf.map(lambda t: (set[t[0]], st.sets(t[1], max_size=4))),  # type: ignore[name-defined]
        inner.map(lambda t: (sample.Pair[t[0]], st.builds(sample.Pair, t[1], t[1]))),  # type: ignore[name-defined]
    )


#: A type, and a value of it.
annotated = st.recursive(st.sampled_from(LEAVES + MODELS), _wrapped, max_leaves=4).flatmap(
    lambda typed: st.tuples(st.just(typed[0]), typed[1])
)


@settings(max_examples=60)
@given(st.lists(annotated, min_size=20, max_size=20))
def test_a_value_of_any_type_comes_back_from_the_database(
    db: psycopg.Connection[Any], examples: list[tuple[Any, Any]]
) -> None:
    settled = [codec.settled(value, expected) for expected, value in examples]
    assert [outcome.problem for outcome in settled] == [None] * len(examples)
    stored = through(db, *(outcome.text for outcome in settled))
    for text, (expected, value), outcome in zip(stored, examples, settled, strict=True):
        assert codec.decode(text, expected) == outcome.value == value


@pytest.mark.parametrize("name", KNOWN)
def test_an_input_has_the_hash_that_it_always_had(name: str) -> None:
    assert digest(codec.to_builtins(KNOWN[name])).hex()[:32] == HASHES[name]
    assert digest(codec.unordered(KNOWN[name])).hex()[:32] == HASHES[name]


HASHES = {
    "plain": "a0a4eaafd75fda5c4eb1bbe50af243d2",
    "keys": "961202dbe2f2b9d2b11edbe1f3013608",
    "alias": "f8d5a18a40603496ff1ddd617ac21fd7",
    "computed": "21dc6592996ddbe76b85695cc4b7cf6f",
    "nested": "17f24aeb517899684c28f588f8c03910",
    "two names": "0831a54703d0a2e47645c05d0c7d1a86",
    "dataclass": "5b96efdd4f98f7613869d612265d4dbb",
    "named": "5a6bf09d494ed6490a47f0b4df4b6179",
    "path": "ccc5e776a259a789a50b2b7f32c07f60",
    "args": "6130d5529df9b948d24827b6e175ef7d",
}

SETS = """
from tests.support.values import *
from tidebase.core import codec
words = {"salt", "sea", "river", "moon", "tide", 1, 2.5, 16, None, ("a", 1), Colour.RED}
print(codec.encode([words, {"k": frozenset(words)}, Words(set("abcdefg")), Outer(ALIAS, [], {}, set("abcdefg")),
                    Struct(ALIAS, set("abcdefg")), Attrs(ALIAS, set("abcdefg")), {frozenset("ab"), frozenset("cd")}]))
"""


def test_a_set_has_one_text_in_every_process() -> None:
    outputs = {
        subprocess.run(
            [sys.executable, "-c", SETS],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            check=True,
        ).stdout
        for seed in ("1", "2", "3", "4")
    }
    assert len(outputs) == 1
    first = json.loads(outputs.pop())[0]
    assert first == [1, 2.5, 16, "moon", "red", "river", "salt", "sea", "tide", ["a", 1], None]


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({1: "a", "1": "b"}, r"\$ has the keys 1 and '1'"),
        ({"x": [{1.5: 1, "1.5": 2}]}, r"\$\.x\[0\] has the keys 1\.5 and '1\.5'"),
        ({Colour.RED: 1, "red": 2}, r"\$ has the keys <Colour.RED: 'red'> and 'red'"),
        (
            sample.Outer(sample.ALIAS, [], {1: sample.STRICT, "1": sample.STRICT}),
            r"\$\.by_number has the keys 1 and '1'",
        ),  # type: ignore[dict-item]
    ],
    ids=str,
)
def test_keys_that_would_become_one_are_refused(value: Any, words: str) -> None:
    with pytest.raises(NotSerializable, match=words):
        codec.encode(value)
    with pytest.raises(NotSerializable, match=words):
        codec.settled(value)


def test_what_does_not_come_back_is_stored_all_the_same() -> None:
    settled = codec.settled([sample.OneWay(a=1)], list[sample.OneWay])
    assert settled.text == '[{"a":"one"}]' and settled.value is None
    assert "does not fit OneWay" in str(settled.problem) and "$.a" in str(settled.problem)


class Picky(pydantic.BaseModel):
    a: int

    @pydantic.field_validator("a")
    @classmethod
    def look(cls, value: int) -> int:
        return {1: 1}[value]


@dataclass
class Choosy:
    a: int

    def __post_init__(self) -> None:
        if self.a != 1:
            raise ZeroDivisionError("not one")


@pytest.mark.parametrize("expected", [Picky, Choosy, list[Picky], dict[str, Choosy]], ids=str)
def test_an_error_of_the_types_own_is_that_it_does_not_fit(expected: Any) -> None:
    text = {"a": 2} if isinstance(expected, type) and expected in (Picky, Choosy) else None
    value = text or ([{"a": 2}] if expected == list[Picky] else {"k": {"a": 2}})
    with pytest.raises(StepOutputDecodeError, match="does not fit"):
        codec.decode(json.dumps(value), expected)
