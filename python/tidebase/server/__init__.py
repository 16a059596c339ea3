"""The gateway ``tidebase serve`` (the extra ``server``): HTTP and server-sent events for any browser or language."""

from .app import create_app, serve
from .auth import Key

__all__ = ["Key", "create_app", "serve"]
