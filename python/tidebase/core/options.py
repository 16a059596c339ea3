"""What callers may say. A name that nobody knows is refused, not ignored: a misspelt deadline is none."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import datetime, timedelta
from difflib import get_close_matches
from typing import Any

from .errors import InvalidArgument


def check(kind: type[Any], given: Mapping[str, Any], of: str) -> None:
    """Refuses options that the TypedDict does not know.

    Args:
        of: what they are options of, in words.

    Raises:
        TypeError: there is one; the message names the nearest that is known.
    """
    if type(given) is not dict and not isinstance(given, Mapping):
        raise TypeError(f"the options of {of} must be a dict, and not a {type(given).__name__}")
    known = kind.__annotations__
    if not given.keys() <= known.keys():
        raise TypeError("; ".join(unknown(str(name), known, of) for name in given if name not in known))


def unknown(name: str, known: Collection[str], of: str) -> str:
    """Says that there is no such option, and which is meant."""
    near = get_close_matches(name, known, n=1, cutoff=0.5)
    return f"{of} has no option {name!r}: " + (f"is it {near[0]!r}?" if near else f"it has {', '.join(sorted(known))}")


def require_zone(moment: datetime, name: str) -> None:
    """Refuses a time without a time zone: it means another moment on every machine.

    Raises:
        InvalidArgument: it has none.
    """
    if not isinstance(moment, datetime):
        raise InvalidArgument(f"{name} must be a datetime with a time zone, and not a {type(moment).__name__}")
    if moment.utcoffset() is None:
        raise InvalidArgument(
            f"{name} must have a time zone: {moment!r} is another moment on every machine",
            hint="For instance datetime.now(timezone.utc) + timedelta(hours=1).",
        )


def in_seconds(options: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """Options as parameters of SQL: those of these names are seconds, and become intervals under other names."""
    given = {names.get(name, name): value for name, value in options.items()}
    for name in names.values():
        if given.get(name) is not None:
            given[name] = timedelta(seconds=given[name])
    return given


def target_of(target: Any) -> tuple[str | None, str | None]:
    """Type and id of what a snapshot is of; two times None where nothing is named.

    Raises:
        TypeError: it is no pair of strings.
    """
    if target is None:
        return None, None
    pair = isinstance(target, (tuple, list)) and len(target) == 2
    if not pair or not all(isinstance(part, str) for part in target):
        raise TypeError(
            f"the target of a snapshot is a type and an id, such as ('file', 'draft.md'), and not {target!r}"
        )
    return target[0], target[1]
