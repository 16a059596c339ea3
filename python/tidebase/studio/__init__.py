"""Studio: the page that shows runs and lets people decide. Its files, as they stand in the package, without a build."""

from .pages import ENTRY, endpoints, home

__all__ = ["ENTRY", "endpoints", "home"]
