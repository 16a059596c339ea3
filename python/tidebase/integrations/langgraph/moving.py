"""Threads of another saver, such as LangGraph's own for Postgres."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import BaseCheckpointSaver, ChannelVersions, CheckpointTuple

from .saver import AsyncTidebaseSaver, TidebaseSaver
from .threads import SEEN, config_of, place_of

Place = tuple[str, str, str]


def _place(found: CheckpointTuple) -> Place:
    return (*place_of(found.config), found.checkpoint["id"])


class _Order:
    """In which order checkpoints are put, and what each of them adds."""

    def __init__(self) -> None:
        self._last: dict[tuple[str, str], str] = {}
        self._versions: dict[tuple[str, str], set[tuple[str, Any]]] = {}

    def config(self, found: CheckpointTuple) -> RunnableConfig:
        """The parent, and what is the newest by now: branches are put as they were."""
        thread_id, namespace, checkpoint_id = _place(found)
        newest = self._last.get((thread_id, namespace), "")
        self._last[thread_id, namespace] = checkpoint_id
        parent = ((found.parent_config or {}).get("configurable") or {}).get("checkpoint_id")
        seen = {"thread_id": thread_id, "checkpoint_ns": namespace, "newest": newest}
        return config_of(thread_id, namespace, parent or "", **{SEEN: seen})

    def new_versions(self, found: CheckpointTuple) -> ChannelVersions:
        """Those of the channels that no checkpoint before it had."""
        thread_id, namespace, _ = _place(found)
        there = self._versions.setdefault((thread_id, namespace), set())
        versions = found.checkpoint["channel_versions"]
        new = {channel: version for channel, version in versions.items() if (channel, version) not in there}
        there.update(new.items())
        return new


def _writes(found: CheckpointTuple) -> Iterable[tuple[list[tuple[str, Any]], str, str]]:
    """The writes of each task, its id, and a path: a reader is told the order of the tasks, and not their paths."""
    by_task: dict[str, list[tuple[str, Any]]] = {}
    for task_id, channel, value in found.pending_writes or ():
        by_task.setdefault(task_id, []).append((channel, value))
    return [(writes, task_id, f"{place:06d}") for place, (task_id, writes) in enumerate(by_task.items())]


def _configs(thread_ids: Sequence[str] | None) -> Iterable[RunnableConfig | None]:
    if thread_ids is None:
        return [None]
    return [{"configurable": {"thread_id": thread_id}} for thread_id in thread_ids]


def import_threads(
    source: BaseCheckpointSaver[Any], target: TidebaseSaver, thread_ids: Sequence[str] | None = None
) -> int:
    """Copies threads of another saver, with all checkpoints and writes, and returns how many checkpoints those are.

    It may be done again when it was cut off. Nobody should work on the threads meanwhile.

    Args:
        thread_ids: these threads; by default all of them.
    """
    order = _Order()
    places = sorted({_place(found) for config in _configs(thread_ids) for found in source.list(config)})
    for place in places:
        found = source.get_tuple(config_of(*place))
        if found is None:
            continue
        config = order.config(found)
        put = target.put(config, found.checkpoint, found.metadata, order.new_versions(found))
        for writes, task_id, path in _writes(found):
            target.put_writes(put, writes, task_id, path)
    return len(places)


async def aimport_threads(
    source: BaseCheckpointSaver[Any], target: AsyncTidebaseSaver, thread_ids: Sequence[str] | None = None
) -> int:
    """See :func:`import_threads`."""
    order = _Order()
    places: set[Place] = set()
    for config in _configs(thread_ids):
        async for found in source.alist(config):
            places.add(_place(found))
    for place in sorted(places):
        row = await source.aget_tuple(config_of(*place))
        if row is None:
            continue
        config = order.config(row)
        put = await target.aput(config, row.checkpoint, row.metadata, order.new_versions(row))
        for writes, task_id, path in _writes(row):
            await target.aput_writes(put, writes, task_id, path)
    return len(places)
