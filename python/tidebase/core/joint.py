"""Calls that may go together: one transaction and one flush for several of them. Nothing here does IO."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from .call import Call

R = TypeVar("R")


@dataclass(slots=True, eq=False)
class Joint(Generic[R]):
    """In a flow: a call that may wait for others of its kind, and then go with them.

    Attributes:
        key: those with the same key would wait for each other in the database anyway.
        content: what it is about, for ``gather``.
        size: about how many bytes it takes to send.
        alone: the call by itself.
        gather: makes one call of several, all or none of one key; its results are theirs, in their order, or None for
            each that has to be made alone.
    """

    key: Hashable
    content: Any
    size: int
    alone: Call[R]
    gather: Callable[[Sequence[Joint[R]]], Call[list[R | None]]]
