"""The worker's canonical form is the database's: otherwise replays would have to ask for every step."""

from __future__ import annotations

import json
import random
from typing import Any

import psycopg
from hypothesis import given, settings
from hypothesis import strategies as st

from tidebase.core.canonical import canonical, digest

from .conftest import long
from .support.amounts import EXAMPLES

texts = st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs",)), max_size=20) | st.sampled_from(
    ["1.0", '"', "\\", '\\" 1.50', "a.0", "\x7f", "\u2028", "é", "𝄞", "", "\n\t\b\f\r\x01\x1f"]
)
numbers = (
    st.integers()
    | st.integers(-(10**40), 10**40)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from([-0.0, 1e22, 1e-7, 5e-324, 1.7976931348623157e308, 1.0, 1.5, 100.0, 0.1 + 0.2, 1e16, 123456789.5])
)
values = st.recursive(
    st.none() | st.booleans() | numbers | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=12,
)


LISTS = st.lists(values, min_size=40, max_size=40)
PAIRS = st.lists(st.tuples(values, values), min_size=40, max_size=40)


def forms_agree(db: psycopg.Connection[Any], examples: list[Any]) -> None:
    rows = db.execute(
        "select tidebase_private.canonical(v::jsonb), tidebase_private.hash_input(v::jsonb) from unnest(%s::text[]) v",
        [[json.dumps(example, ensure_ascii=False) for example in examples]],
    ).fetchall()
    assert [(canonical(example), digest(example)) for example in examples] == rows


def hashes_agree(db: psycopg.Connection[Any], pairs: list[tuple[Any, Any]]) -> None:
    rows = db.execute(
        """select a::jsonb = b::jsonb, tidebase_private.hash_input(a::jsonb) = tidebase_private.hash_input(b::jsonb)
           from unnest(%s::text[], %s::text[]) as pair (a, b)""",
        [[json.dumps(a) for a, _ in pairs], [json.dumps(b) for _, b in pairs]],
    ).fetchall()
    assert all(equal == same for equal, same in rows)


@long
@settings(max_examples=EXAMPLES.test)
@given(LISTS)
def test_worker_and_database_agree_on_the_canonical_form(db: psycopg.Connection[Any], examples: list[Any]) -> None:
    forms_agree(db, examples)


@long
@settings(max_examples=EXAMPLES.test)
@given(PAIRS)
def test_hashes_are_equal_exactly_when_jsonb_values_are(
    db: psycopg.Connection[Any], pairs: list[tuple[Any, Any]]
) -> None:
    hashes_agree(db, pairs)


@long
@settings(max_examples=10)
@given(st.lists(values, min_size=20, max_size=20), st.dictionaries(texts, values, max_size=4))
def test_a_large_value_is_put_together_from_its_parts(
    db: psycopg.Connection[Any], examples: list[Any], more: dict[str, Any]
) -> None:
    """From 64 kB on: by elements and members, in the same order, each as it is by itself."""
    padding = ["x" * 100, 1.50, "1.50", [], {}, {"a": []}] * 700
    large = {**more, "list": [examples * 20, padding, {"nested": [padding, examples]}], "2.0": 2.0}
    row = db.execute(
        "select tidebase_private.canonical(v), tidebase_private.hash_input(v) from (select %s::jsonb) t (v)",
        [json.dumps(large, ensure_ascii=False)],
    ).fetchone()
    assert row == (canonical(large), digest(large))


def test_a_large_value_may_be_deep(db: psycopg.Connection[Any]) -> None:
    """As deep as jsonb goes: its parts are not looked for at every level."""
    noise = "".join(random.Random(1).choices("0123456789abcdef", k=200_000))
    text = "[" * 3000 + f'1.0, 2.50, "{noise}"' + "]" * 3000
    row = db.execute("select tidebase_private.canonical(%s::jsonb)", [text]).fetchone()
    assert row == ("[" * 3000 + f'1, 2.5, "{noise}"' + "]" * 3000,)
