"""What a step is called: its name, and in brackets the key that tells it from others of that name.

Each key has a spelling of its own: ``fetch[7]`` is the key 7, ``fetch["7"]`` the text "7". A plain text stands as it is
(``fetch[a.example]``); brackets inside a key are escaped, so the last one that opens is where the key begins.
"""

from __future__ import annotations

import json
import re
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from math import isfinite
from numbers import Integral
from pathlib import PurePath
from typing import Any
from uuid import UUID

from .errors import InvalidArgument

#: The most bytes that a step's name may have, with its key.
MAX_BYTES = 1024

#: Texts that cannot be mistaken for anything else.
_PLAIN = re.compile(r'(?!\(|(?:-?[0-9]+(?:\.[0-9]+)?(?:e[-+]?[0-9]+)?|True|False|None)\Z)[^"\[\]]+', re.DOTALL)
_KINDS: tuple[tuple[type[Any], str], ...] = (
    (UUID, "UUID"),
    (datetime, "datetime"),
    (date, "date"),
    (time, "time"),
    (Decimal, "Decimal"),
    (PurePath, "Path"),
)


def full_name(name: str, key: Any) -> str:
    """The name by which the database knows a step.

    Raises:
        InvalidArgument: the database would refuse it, or the key is of a type that has no spelling which is the same
            in every process.
    """
    full = name if key is None else f"{name}[{key if _is_plain(key) else spelling(key)}]"
    require(full, name)
    return full


def former_name(name: str, key: Any) -> str:
    """The name that earlier versions gave a step, where a key was spelled as it prints."""
    return name if key is None else f"{name}[{key}]"


def require(full: Any, name: Any = None) -> None:
    """Refuses what the database would refuse as a step's name, before anything is executed.

    Raises:
        InvalidArgument: it is no text, or blank, or too long, or has a NUL character or a lone surrogate.
    """
    if not isinstance(full, str) or not isinstance(full if name is None else name, str):
        raise InvalidArgument(f"a step's name must be a text, and not {name!r}")
    if full.isascii():
        size = len(full)
    else:
        try:
            size = len(full.encode())
        except UnicodeEncodeError:
            raise InvalidArgument(f"the step's name {full!r} has a lone surrogate") from None
    if size > MAX_BYTES:
        raise InvalidArgument(
            f"the step's name {full[:60]!r}... has {size} bytes: {MAX_BYTES} are allowed, with its key",
            hint="Take a hash of a key that is long.",
        )
    if not full.strip(" "):
        raise InvalidArgument("a step's name must not be blank")
    if "\0" in full:
        raise InvalidArgument(f"the step's name {full!r} has a NUL character")


def spelling(key: Any) -> str:
    """The text of a key, which no other key has.

    Raises:
        InvalidArgument: its type has no such text.
    """
    if isinstance(key, Enum) and not isinstance(key, (str, int)):
        return f"Enum({_quoted(f'{type(key).__name__}.{key.name}')})"
    if isinstance(key, str):
        text = str(key.value) if isinstance(key, Enum) else str(key)
        return text if _PLAIN.fullmatch(text) else _quoted(text)
    if isinstance(key, bool):
        return str(key)
    if isinstance(key, Integral):  # those of NumPy, too
        return str(int(key))
    if isinstance(key, float) and isfinite(key):
        return repr(float(key))
    if isinstance(key, (bytes, bytearray)):
        return f"bytes({_quoted(key.hex())})"
    if isinstance(key, timedelta):
        return f"timedelta({_quoted(repr(key.total_seconds()))})"
    if isinstance(key, tuple):
        return f"({', '.join(map(_element, key))})"
    for kind, word in _KINDS:
        if isinstance(key, kind):
            return f"{word}({_quoted(key.isoformat() if isinstance(key, (date, time)) else str(key))})"
    raise InvalidArgument(
        f"a step's key must be a text, a number, a date, a UUID or the like, and not a {type(key).__name__}",
        hint="Take something that is the same in every process, such as an id of it.",
    )


def _element(key: Any) -> str:
    if key is None:
        return "None"
    return _quoted(key) if type(key) is str else spelling(key)


def _is_plain(key: Any) -> bool:
    return type(key) is str and _PLAIN.fullmatch(key) is not None


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False).replace("[", "\\u005b").replace("]", "\\u005d")
