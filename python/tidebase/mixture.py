"""The package ``tidebase`` of the hosted product has the same import name: pip installs one over the other silently."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

OURS = "tidebase-postgres"
_THEIRS = "tidebase"

ADVICE = (
    f"the packages {OURS} and {_THEIRS} are both installed, and files of the same names have overwritten each other;"
    f" keep one in each environment: pip uninstall -y {_THEIRS} {OURS} && pip install {OURS}"
)


def refuse_mixture(file: str) -> None:
    """Raises ImportError where the other package was installed into the folder in which this file is."""
    try:
        theirs = metadata.distribution(_THEIRS)
    except metadata.PackageNotFoundError:
        return
    if Path(str(theirs.locate_file("tidebase/__init__.py"))).resolve() == Path(file).resolve():
        raise ImportError(ADVICE)
