"""Node, and the modules that ``make setup`` installs for it."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

NODE = shutil.which("node")
NODE_MODULES = Path(sys.prefix) / "node" / "node_modules"


def node_url(url: str) -> str:
    """The URL of a database as npm's ``pg`` reads it: a socket's folder is the host."""
    parts = urlsplit(url)
    query = parse_qs(parts.query)
    folder, port = unquote(query["host"][0]), query["port"][0]
    return f"postgresql://{parts.username}@/{parts.path.strip('/')}?host={folder}&port={port}"
