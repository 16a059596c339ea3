"""The canonical form of a JSON value, as ``tidebase_private.canonical`` in the database has it.

With it a worker recognises, without asking, that a checkpoint it has loaded belongs to the input at hand. It decides
nothing: equal hashes mean equal inputs (SHA-256 has no known collisions), and whenever they differ, for whatever
reason, the database is asked.
"""

from __future__ import annotations

import hashlib
from decimal import Decimal
from json.encoder import encode_basestring
from typing import Any


def canonical(value: Any) -> str:
    """The text that jsonb prints for a value made of dicts, lists, strings, numbers, booleans and None, with the zeros
    that end a fraction cut off. Keys are ordered by their length in bytes, then bytewise, as jsonb orders them.
    """
    if isinstance(value, str):
        return str(encode_basestring(value))
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        return number(repr(value))
    if isinstance(value, dict):
        members = sorted(
            ((key.encode(), item) for key, item in value.items()), key=lambda member: (len(member[0]), member[0])
        )
        return "{" + ", ".join(f"{encode_basestring(key.decode())}: {canonical(item)}" for key, item in members) + "}"
    return "[" + ", ".join(map(canonical, value)) + "]"


def number(text: str) -> str:
    """A number without exponent and without trailing zeros: ``1.50e3`` is ``1500``, ``-0.0`` is ``0``."""
    if "e" in text or "E" in text:
        text = format(Decimal(text), "f")
    if "." in text:
        text = text.rstrip("0").rstrip(".")
    return "0" if text == "-0" else text


def digest(value: Any) -> bytes:
    """SHA-256 of the canonical form: equal to ``steps.input_hash`` for the same input."""
    if value is None:
        return _OF_NULL
    return hashlib.sha256(canonical(value).encode()).digest()


_OF_NULL = hashlib.sha256(b"null").digest()
