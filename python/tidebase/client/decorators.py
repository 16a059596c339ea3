"""``@step``: a function that is a step wherever a workflow calls it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Generic, ParamSpec, TypeVar

from ..core.errors import TidebaseError
from ..core.options import check
from ..domain.step import StepOptions, Work
from ..domain.workflow import current_run

if TYPE_CHECKING:
    from typing_extensions import Unpack

P = ParamSpec("P")
T = TypeVar("T")


class StepFunction(Generic[P, T]):
    """A function decorated with :func:`step`. Calling it in a workflow does the step; its arguments are the input.

    ``__wrapped__`` is the plain function, for tests.
    """

    def __init__(self, name: str, function: Callable[P, T], options: StepOptions) -> None:
        check(StepOptions, options, "a step")
        self.name = name
        self._options = options
        functools.update_wrapper(self, function)
        self.__wrapped__ = function

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> T:
        run = current_run.get(None)
        if run is None:
            raise TidebaseError(
                f"the step {self.name!r} was called outside a workflow",
                hint="In a thread of your own use run.step(...); to call the plain function use its __wrapped__.",
            )
        # Every keyword is the function's, also one that has the name of an option.
        result: T = run._perform(Work(self.name, self.__wrapped__, args, kwargs, self._options))
        return result

    def options(self, **options: Unpack[StepOptions]) -> StepFunction[P, T]:
        """The same step with other options for one call, such as a key: ``fetch.options(key=url)(url)``."""
        merged: StepOptions = {**self._options, **options}
        return StepFunction(self.name, self.__wrapped__, merged)


def step(name: str | None = None, **options: Unpack[StepOptions]) -> Callable[[Callable[P, T]], StepFunction[P, T]]:
    """Makes a function a step: ``@step("fetch", retries=3)``. The name is the function's unless told.

    Works for plain functions under :class:`~tidebase.Tidebase`, for async ones under :class:`~tidebase.AsyncTidebase`.
    """

    def decorate(function: Callable[P, T]) -> StepFunction[P, T]:
        return StepFunction(name or str(getattr(function, "__name__", "step")), function, options)

    return decorate
