"""Values of many types, for the tests of the codec."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from enum import Enum, IntEnum
from pathlib import Path
from typing import Any, Generic, Literal, NamedTuple, TypedDict, TypeVar
from uuid import UUID

import attrs
import msgspec
import pydantic

T = TypeVar("T")


class Colour(Enum):
    RED = "red"
    GREEN = "green"


class Level(IntEnum):
    LOW = 1


class Alias(pydantic.BaseModel):
    first: int = pydantic.Field(alias="firstName")


class Optional(pydantic.BaseModel):
    first: int = pydantic.Field(5, alias="firstName")


class Computed(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid")
    a: int

    @pydantic.computed_field  # type: ignore[prop-decorator]
    @property
    def twice(self) -> int:
        return self.a * 2


class Open(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="allow")
    a: int

    @pydantic.computed_field  # type: ignore[prop-decorator]
    @property
    def twice(self) -> int:
        return self.a * 2


class Strict(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(strict=True)
    day: date
    id: UUID
    pair: tuple[int, ...]
    numbers: set[int]
    price: Decimal


class Nested(pydantic.BaseModel):
    text: pydantic.Json[dict[str, int]]
    alias: Alias
    computed: list[Computed]
    by_day: dict[date, Strict]


class Swapped(pydantic.BaseModel):
    a: int = pydantic.Field(alias="b")
    b: int = pydantic.Field(alias="a")


class Cat(pydantic.BaseModel):
    kind: Literal["cat"] = pydantic.Field("cat", alias="type")


class Dog(pydantic.BaseModel):
    kind: Literal["dog"] = pydantic.Field("dog", alias="type")


class Pet(pydantic.BaseModel):
    pet: Cat | Dog = pydantic.Field(discriminator="kind")


class TwoNames(pydantic.BaseModel):
    a: int = pydantic.Field(validation_alias="in", serialization_alias="out")


class Box(pydantic.BaseModel, Generic[T]):
    content: T


class Words(pydantic.RootModel[set[str]]):
    pass


@dataclass
class Outer:
    alias: Alias
    several: list[Computed]
    by_number: dict[int, Strict]
    words: set[str] = field(default_factory=set)


@dataclass(frozen=True)
class Pair(Generic[T]):
    left: T
    right: T


class Struct(msgspec.Struct, rename="camel"):
    one_model: Alias
    some_words: set[str]


@attrs.define
class Attrs:
    alias: Alias
    words: set[str]


class Typed(TypedDict):
    alias: Alias
    by_level: dict[Level, int]


class Named(NamedTuple):
    left: int
    right: Computed


class OneWay(pydantic.BaseModel):
    """What it writes it does not read."""

    a: int

    @pydantic.field_serializer("a")
    def spell(self, value: int) -> str:
        return "one" if value == 1 else "many"


ALIAS = Alias(firstName=3)
STRICT = Strict(day=date(2026, 1, 1), id=UUID(int=1), pair=(1, 2), numbers={1, 16, 3}, price=Decimal("1.10"))
NESTED = Nested(
    text='{"a":1}',  # type: ignore[arg-type]
    alias=ALIAS,
    computed=[Computed(a=2)],
    by_day={date(2026, 1, 1): STRICT},
)

#: Values and the types that they come back as.
COME_BACK: list[tuple[Any, Any]] = [
    (ALIAS, Alias),
    (Optional(firstName=1), Optional),
    (Computed(a=1), Computed),
    (Open(a=1), Open),
    (STRICT, Strict),
    (NESTED, Nested),
    (Swapped(a=1, b=2), Swapped),
    (Pet(pet=Dog()), Pet),
    (TwoNames(**{"in": 1}), TwoNames),
    (Box[int](content=1), Box[int]),
    (Box[Alias](content=ALIAS), Box[Alias]),
    (Words({"b", "a"}), Words),
    (Outer(ALIAS, [Computed(a=1)], {1: STRICT}, {"x", "y"}), Outer),
    (Pair(ALIAS, ALIAS), Pair[Alias]),
    (Struct(ALIAS, {"b", "a"}), Struct),
    (Attrs(ALIAS, {"b", "a"}), Attrs),
    ({"alias": ALIAS, "by_level": {Level.LOW: 2}}, Typed),
    (Named(1, Computed(a=1)), Named),
    ([ALIAS], list[Alias]),
    ({1: ALIAS}, dict[int, Alias]),
    ([Computed(a=1), ALIAS], list[Computed | Alias]),
    (Computed(a=1), Computed | None),
    ((ALIAS, 1), tuple[Alias, int]),
    ({1: "x", 2: "y"}, dict[int, str]),
    ({1.5: "x"}, dict[float, str]),
    ({Colour.RED: 1}, dict[Colour, int]),
    ({Level.LOW: 1}, dict[Level, int]),
    ({date(2026, 1, 1): {UUID(int=1): 1}}, dict[date, dict[UUID, int]]),
    ({datetime(2026, 1, 1, tzinfo=timezone.utc): 1}, dict[datetime, int]),
    ({Decimal("1.10"): 1}, dict[Decimal, int]),
    ({timedelta(days=1): timedelta(seconds=1)}, dict[timedelta, timedelta]),
    ({Colour.RED, Colour.GREEN}, set[Colour]),
    (frozenset({(1, "a"), (2, "b")}), frozenset[tuple[int, str]]),
    ({frozenset({1, 2}), frozenset({3})}, set[frozenset[int]]),
    ({1, "a"}, set[int | str]),
]

#: What inputs were known as before: the beginning of the SHA-256 of what earlier versions made of them.
KNOWN: dict[str, Any] = {
    "plain": [1, 1.5, -0.0, 1e23, "é", None, True, {"b": 1, "a": [{}]}],
    "keys": {1: "a", 2.5: "b", date(2026, 1, 1): "c", Colour.RED: "d", UUID(int=1): "e"},
    "alias": ALIAS,
    "computed": Computed(a=1),
    "nested": NESTED.model_copy(update={"by_day": {}}),
    "two names": [TwoNames(**{"in": 1}), Swapped(a=1, b=2), Pet(pet=Dog()), Box[int](content=1)],
    "dataclass": Outer(ALIAS, [Computed(a=1)], {}, {"x"}),
    "named": Named(1, Computed(a=1)),
    "path": [Path("a/b"), b"\x00\xff", Decimal("1.10"), timedelta(days=1), datetime(2026, 1, 1)],
    "args": {"args": ("a", 1), "kwargs": {"x": Colour.RED}},
}
