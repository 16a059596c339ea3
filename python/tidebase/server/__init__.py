"""The gateway ``tidebase serve`` (the extra ``server``): HTTP and server-sent events for any browser or language."""

from .app import create_app, serve
from .auth import ROLES, Key
from .origin import is_loopback

__all__ = ["ROLES", "Key", "create_app", "is_loopback", "serve"]
