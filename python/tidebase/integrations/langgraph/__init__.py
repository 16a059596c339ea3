"""LangGraph on Tidebase: its checkpoints in your own Postgres, and nodes that are durable steps.

::

    from tidebase import Tidebase
    from tidebase.integrations.langgraph import TidebaseSaver, durable

    graph = builder.compile(checkpointer=TidebaseSaver(Tidebase()))
"""

from .moving import aimport_threads, import_threads
from .nodes import DurableOptions, durable, task_key
from .saver import AsyncTidebaseSaver, TidebaseSaver

__all__ = [
    "AsyncTidebaseSaver",
    "DurableOptions",
    "TidebaseSaver",
    "aimport_threads",
    "durable",
    "import_threads",
    "task_key",
]
