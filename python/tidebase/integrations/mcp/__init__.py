"""The Model Context Protocol (the extra ``mcp``): a server that shows runs to a model and lets it act on them
(``tidebase mcp``), and for those who write servers: tools whose calls are durable runs.
"""

from .durable import DurableTools
from .operating import ACTIONS, create_app, create_server, serve

__all__ = ["ACTIONS", "DurableTools", "create_app", "create_server", "serve"]
