"""The workflows that were registered by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from ..core.errors import TidebaseError

T = TypeVar("T")
W = TypeVar("W", bound=Callable[..., Any])


class Registry:
    """The workflows that were registered by name."""

    def __init__(self) -> None:
        self._workflows: dict[str, Callable[..., Any]] = {}

    def register(self, name: str) -> Callable[[W], W]:
        def decorate(function: W) -> W:
            self._workflows[name] = function
            return function

        return decorate

    def names(self) -> list[str]:
        """Those that are registered."""
        return list(self._workflows)

    def find(self, name: str, function: Callable[..., T] | None) -> Callable[..., T]:
        if function is not None:
            return function
        try:
            return self._workflows[name]
        except KeyError:
            raise TidebaseError(
                f"no workflow {name!r} is registered",
                hint="Pass its function, or decorate it with @tide.workflow(name).",
            ) from None
