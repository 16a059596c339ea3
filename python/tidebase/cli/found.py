"""An object of the user's, by its name."""

from __future__ import annotations

import importlib
import sys
from typing import Any

from ..core.errors import TidebaseError


def found_object(name: str, kinds: tuple[type[Any], ...]) -> Any:
    """The object that MODULE:OBJECT names, looked for from the folder at hand as ``python -m`` does.

    Raises:
        TidebaseError: there is none, or it is of another kind. What the module itself raises goes on.
    """
    wanted = " or ".join(kind.__name__ for kind in kinds)
    module_name, _, attribute = name.partition(":")
    if not module_name or not attribute:
        raise TidebaseError(f"{name!r} names no object", hint="For instance myapp.tasks:tide.")
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not (module_name + ".").startswith(error.name + "."):
            raise
        raise TidebaseError(
            f"there is no module {error.name!r} here", hint="Call from the folder that has it."
        ) from None
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise TidebaseError(f"{module_name} has no {attribute!r}", hint=f"It must be a {wanted}.")
        found = getattr(found, part)
    if not isinstance(found, kinds):
        raise TidebaseError(f"{name} is a {type(found).__name__}", hint=f"It must be a {wanted}.")
    return found
