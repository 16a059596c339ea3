"""What the savers for threads and for asyncio have in common: checkpoints as calls, and rows as checkpoints. Flows."""

from __future__ import annotations

import hashlib
import json
import os
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, cast

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import (
    WRITES_IDX_MAP,
    BaseCheckpointSaver,
    ChannelVersions,
    Checkpoint,
    CheckpointMetadata,
    CheckpointTuple,
    get_checkpoint_id,
    get_checkpoint_metadata,
)
from langgraph.checkpoint.serde.base import SerializerProtocol
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer

from ...core import codec
from ...core.call import Call
from ...core.errors import InvalidArgument, TidebaseError
from ...core.flow import Flow, Pause
from ...domain import calls
from ...domain.calls import CheckpointBeyond, CheckpointPut, ThreadCheckpoint
from .messages import Read, Shown, messages, states
from .values import Key, Known, Memory, head_of, length_of, pieces, split

#: The workflow of the runs under whose leases threads are claimed.
WORKFLOW = "langgraph.thread"

#: What a reader has seen as newest. LangGraph hands a config on from the read to the writes, and keeps keys that begin
#: like this out of the metadata.
SEEN = "__tidebase_seen"

#: What is read again, rather than sent whole, when it is not remembered.
_READ_AGAIN = 65536

#: Checkpoints are read so many at a time, with their values.
PAGE = 25

#: For how long a durable node waits for the checkpoint that it belongs to, in seconds; and between two looks.
_PATIENCE_S = 30.0
_GLANCE_S = 0.005


def run_id_of(*parts: str) -> str:
    """The id of a run that belongs to something of LangGraph's, which may have any length."""
    name = ":".join(("langgraph", *parts))
    return (
        name
        if len(name.encode("utf-8", "replace")) <= 255
        else f"langgraph:{hashlib.sha256(name.encode()).hexdigest()}"
    )


def place_of(config: RunnableConfig) -> tuple[str, str]:
    """The thread and the namespace that a config is about."""
    configurable = config.get("configurable") or {}
    if "thread_id" not in configurable:
        raise InvalidArgument('the config has no thread: {"configurable": {"thread_id": ...}}')
    return str(configurable["thread_id"]), str(configurable.get("checkpoint_ns") or "")


def config_of(thread_id: str, namespace: str, checkpoint_id: str, **more: Any) -> RunnableConfig:
    """The config of a checkpoint."""
    return {
        "configurable": {"thread_id": thread_id, "checkpoint_ns": namespace, "checkpoint_id": checkpoint_id, **more}
    }


def _is_small(value: Any) -> bool:
    """Whether a value stays in the checkpoint: a row of its own would cost more."""
    return value is None or type(value) in (bool, int, float) or (type(value) is str and len(value) <= 256)


class Dumped(NamedTuple):
    """A value as bytes; and if it is a list of messages, what they were, and what is known of its beginning."""

    type: str
    head: bytes
    body: bytes
    shown: Shown | None = None
    read: Read | None = None


class Loaded(NamedTuple):
    """A value made of bytes; and if it is a list of messages, what they are."""

    value: Any
    shown: Shown | None = None
    read: Read | None = None


def _values(row: ThreadCheckpoint) -> Iterable[tuple[str, str, int, bytes, bytes]]:
    """Of each value of a checkpoint: its channel, type, number, head and body."""
    lists = (row.channels, row.types, row.value_numbers, row.heads, row.bodies)
    return zip(*((part or ()) for part in lists), strict=True)


class Threads(BaseCheckpointSaver[str]):
    """Checkpoints as flows. The clones that LangGraph makes of a saver share its memory and its claims."""

    def __init__(self, serde: SerializerProtocol | None) -> None:
        super().__init__(serde=serde)
        self._memory = Memory()
        self._claims: dict[str, tuple[str, int]] = {}
        self._lease: tuple[str, int] | None = None
        self._refused: OrderedDict[tuple[str, str], TidebaseError] = OrderedDict()

    def get_next_version(self, current: str | int | None, channel: None = None) -> str:
        """The next version of a channel: a number of the same width, and something that no other branch has."""
        number, width = 0, 10
        if isinstance(current, str):
            digits = current.partition(".")[0]
            number, width = int(digits), max(len(digits), width)
        elif current is not None:
            number = int(current)
        return f"{number + 1:0{width}d}.{os.urandom(6).hex()}"

    def _under_lease(self, thread_id: str) -> dict[str, Any]:
        run_id, token = self._claims.get(thread_id) or self._lease or (None, None)
        return {"run_id": run_id, "token": token}

    # Reading

    def _get(self, config: RunnableConfig) -> Flow[CheckpointTuple | None]:
        thread_id, namespace = place_of(config)
        checkpoint_id = get_checkpoint_id(config) or None
        row: ThreadCheckpoint | None = yield from self._read(thread_id, namespace, checkpoint_id)
        self._refused.pop((thread_id, namespace), None)
        if checkpoint_id is None:
            self._memory.note(thread_id, namespace, is_empty=row is None)
        if row is None:
            return None
        return self._tuple(row, self._known_values(row))

    def _read(self, thread_id: str, namespace: str, checkpoint_id: str | None) -> Flow[ThreadCheckpoint | None]:
        """Reads a checkpoint; of the values that are remembered only what comes after them."""
        known = self._memory.of(thread_id, namespace)
        rows: list[CheckpointBeyond] = yield calls.get_checkpoint_beyond(
            thread_id=thread_id,
            namespace=namespace,
            checkpoint_id=checkpoint_id,
            edition=next((one.edition for one in known.values()), None),
            known=list(known),
            versions=[one.version for one in known.values()],
        )
        if not rows:
            return None
        (row,) = rows
        pairs = zip(row.bases or (), row.bodies or (), strict=True)
        return replace(row, bodies=[body if base is None else known[base].body + body for base, body in pairs])

    def _page(
        self,
        config: RunnableConfig | None,
        filter: dict[str, Any] | None,
        before: RunnableConfig | None,
        max: int,
        after: ThreadCheckpoint | None,
    ) -> Call[list[ThreadCheckpoint]]:
        configurable = (config or {}).get("configurable") or {}
        namespace = configurable.get("checkpoint_ns")
        thread_id = configurable.get("thread_id")
        return calls.list_checkpoints(
            thread_id=None if thread_id is None else str(thread_id),
            namespace=None if namespace is None else str(namespace),
            checkpoint_id=configurable.get("checkpoint_id") or None,
            filter=codec.encode(filter) if filter else None,
            before_id=None if before is None else get_checkpoint_id(before) or None,
            max=max,
            after_thread_id=None if after is None else after.thread_id,
            after_namespace=None if after is None else after.namespace,
            after_number=None if after is None else after.number,
        )

    def _tuple(self, row: ThreadCheckpoint, values: dict[str, Any] | None = None) -> CheckpointTuple:
        checkpoint = self.serde.loads_typed((row.type, row.content))
        if values is None:
            values = {
                channel: self.serde.loads_typed((type, head + body)) for channel, type, _, head, body in _values(row)
            }
        writes = [
            (task_id, channel, self.serde.loads_typed((type, content)))
            for task_id, channel, type, content in zip(
                row.task_ids or (), row.write_channels or (), row.write_types or (), row.writes or (), strict=True
            )
        ]
        seen = {"thread_id": row.thread_id, "checkpoint_ns": row.namespace, "newest": row.newest_id}
        return CheckpointTuple(
            config_of(row.thread_id, row.namespace, row.checkpoint_id, **{SEEN: seen}),
            cast(Checkpoint, {**checkpoint, "channel_values": {**checkpoint["channel_values"], **values}}),
            cast(CheckpointMetadata, json.loads(row.metadata)),
            config_of(row.thread_id, row.namespace, row.parent_id) if row.parent_id else None,
            writes,
        )

    def _known_values(self, row: ThreadCheckpoint) -> dict[str, Any]:
        """The values of a checkpoint, which are remembered."""
        values = {}
        versions = self._versions(row)
        for channel, type, number, head, body in _values(row):
            key = (row.thread_id, row.namespace, channel)
            loaded = self._loaded(type, head, body, self._memory.recall(key))
            self._memory.keep(key, Known(row.edition, number, str(versions[channel]), body, loaded.shown, loaded.read))
            values[channel] = loaded.value
        return values

    def _loaded(self, type: str, head: bytes, body: bytes, known: Known | None) -> Loaded:
        """A value made of its bytes: of a list of messages only what comes after those that were made before."""
        if not (type == "msgpack" and head and self._is_plain()):
            return Loaded(self.serde.loads_typed((type, head + body)))
        read = known.read if known is not None else None
        if known is None or read is None or not body.startswith(known.body[: read.bytes]):
            read = Read([], 0)
        new = self.serde.loads_typed((type, head_of(length_of(head) - len(read.states)) + body[read.bytes :]))
        value = [*messages(read.states), *new]
        found = states(new)
        if found is None:
            return Loaded(value)
        found = read.states + found
        return Loaded(value, Shown(value.copy(), found), Read(found, len(body)))

    def _is_plain(self) -> bool:
        """Whether a list is its items, one after the other, each as it would be alone."""
        return type(self.serde) is JsonPlusSerializer

    def _dumped(self, key: Key, value: Any) -> Dumped:
        """A value as bytes: of a list of messages only what is new is serialized."""
        if type(value) is list and value and self._is_plain():
            value = value.copy()
            known = self._memory.recall(key)
            before = known.shown if known is not None else None
            if known is not None and before is not None and before.begins(value):
                new = value[len(before.objects) :]
                found = states(new)  # before they are serialized: what is changed meanwhile is noticed later
                type_, data = self.serde.dumps_typed(new)
                if found is not None and type_ == "msgpack":
                    body = known.body + split(type_, data)[1]
                    return Dumped(type_, head_of(len(value)), body, Shown(value, found, before), known.read)
            found = states(value)
            type_, data = self.serde.dumps_typed(value)
            return Dumped(type_, *split(type_, data), None if found is None else Shown(value, found))
        type_, data = self.serde.dumps_typed(value)
        return Dumped(type_, *split(type_, data))

    def _remember(self, row: ThreadCheckpoint) -> None:
        versions = self._versions(row)
        for channel, _, number, _, body in _values(row):
            known = Known(row.edition, number, str(versions[channel]), body)
            self._memory.keep((row.thread_id, row.namespace, channel), known)

    def _versions(self, row: ThreadCheckpoint) -> ChannelVersions:
        return cast(ChannelVersions, self.serde.loads_typed((row.type, row.content))["channel_versions"])

    # Writing. LangGraph puts a checkpoint in the background, while the nodes that follow it are at work, and no other
    # one behind one that was refused: whoever waits there for a checkpoint learns that none will come.

    def _put(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> Flow[RunnableConfig]:
        place = place_of(config)
        try:
            stored = yield from self._put_once(config, checkpoint, metadata, new_versions)
        except TidebaseError as error:
            self._refused[place] = error
            while len(self._refused) > 1000:
                self._refused.popitem(last=False)
            raise
        self._refused.pop(place, None)
        return stored

    def _seen(self, config: RunnableConfig, thread_id: str, namespace: str, parent_id: str | None) -> str | None:
        """What the database is to find as newest: empty for nothing, None where nobody has looked."""
        seen = config["configurable"].get(SEEN)
        if seen and (seen["thread_id"], seen["checkpoint_ns"]) == (thread_id, namespace):
            return str(seen["newest"])
        return "" if parent_id is None and self._memory.was_empty(thread_id, namespace) else None

    def _put_once(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> Flow[RunnableConfig]:
        thread_id, namespace = place_of(config)
        parent_id = get_checkpoint_id(config) or None
        values = checkpoint["channel_values"]
        large = {channel: value for channel, value in values.items() if not _is_small(value)}
        type, content = self.serde.dumps_typed(
            {**checkpoint, "channel_values": {name: value for name, value in values.items() if name not in large}}
        )
        told = get_checkpoint_metadata(config, metadata)
        fixed = {
            "thread_id": thread_id,
            "namespace": namespace,
            "checkpoint_id": checkpoint["id"],
            "parent_id": parent_id,
            "type": type,
            "content": content,
            "metadata": codec.encode({name: value for name, value in told.items() if name != "writes"}),
            "seen_id": self._seen(config, thread_id, namespace, parent_id),
            **self._under_lease(thread_id),
        }
        changed = {
            channel: self._dumped((thread_id, namespace, channel), value)
            for channel, value in large.items()
            if channel in new_versions
        }
        versions = checkpoint["channel_versions"]
        whole: set[str] = set()
        while True:
            changes = Changes((thread_id, namespace), versions)
            for channel, dumped in changed.items():
                known = None if channel in whole else self._memory.recall((thread_id, namespace, channel))
                if known is None and channel not in whole and parent_id is not None and len(dumped.body) > _READ_AGAIN:
                    known = yield from self._read_again(thread_id, namespace, parent_id, channel)
                changes.add(channel, dumped, known)
            kept = [channel for channel in large if channel not in changed and channel in versions]
            put: CheckpointPut = yield calls.put_checkpoint(
                **fixed,
                channels=kept,
                versions=[str(versions[channel]) for channel in kept],
                **changes.arguments(),
            )
            if put.outcome == "stored":
                changes.remember(self._memory, put)
                return config_of(thread_id, namespace, checkpoint["id"])
            missing = set(put.channels or ())
            if not missing - whole:
                raise TidebaseError(
                    f"checkpoint {checkpoint['id']!r} of thread {thread_id!r} was not stored: {missing}"
                )
            for channel in missing:
                self._memory.forget((thread_id, namespace, channel))
                if channel not in changed:
                    changed[channel] = self._dumped((thread_id, namespace, channel), large[channel])
            whole |= missing

    def _read_again(self, thread_id: str, namespace: str, parent_id: str, channel: str) -> Flow[Known | None]:
        row: ThreadCheckpoint | None = yield from self._read(thread_id, namespace, parent_id)
        if row is not None:
            self._remember(row)
        return self._memory.recall((thread_id, namespace, channel))

    def _put_writes(
        self, config: RunnableConfig, writes: Sequence[tuple[str, Any]], task_id: str, task_path: str
    ) -> Call[int] | None:
        if not writes:
            return None
        thread_id, namespace = place_of(config)
        dumped = [self.serde.dumps_typed(value) for _, value in writes]
        return cast(
            Call[int],
            calls.put_checkpoint_writes(
                thread_id=thread_id,
                namespace=namespace,
                checkpoint_id=get_checkpoint_id(config),
                task_id=task_id,
                task_path=task_path,
                idxs=[WRITES_IDX_MAP.get(channel, place) for place, (channel, _) in enumerate(writes)],
                channels=[channel for channel, _ in writes],
                types=[type for type, _ in dumped],
                contents=[content for _, content in dumped],
                **self._under_lease(thread_id),
            ),
        )

    # Taking away

    def _delete(self, thread_id: str) -> Call[bool]:
        return cast(Call[bool], calls.delete_thread(thread_id=str(thread_id), **self._under_lease(str(thread_id))))

    def _delete_for_runs(self, run_ids: Sequence[str]) -> Flow[None]:
        yield from _in_batches(
            list(map(str, run_ids)), lambda some: calls.delete_checkpoints_of_runs(run_ids=some, max=_BATCH)
        )

    def _prune(self, thread_ids: Sequence[str], strategy: str) -> Flow[None]:
        if isinstance(thread_ids, str):
            raise InvalidArgument("thread_ids must be a list of threads, not a text")
        yield from _in_batches(
            list(map(str, thread_ids)), lambda some: calls.prune_threads(thread_ids=some, strategy=strategy, max=_BATCH)
        )

    # Durable nodes

    def _awaited(self, thread_id: str, namespace: str, checkpoint_id: str) -> Flow[None]:
        """Returns when the checkpoint is stored that a node begins from: else nobody would find what it has done."""
        waited = 0.0
        while not (yield calls.has_checkpoint(thread_id=thread_id, namespace=namespace, checkpoint_id=checkpoint_id)):
            if error := self._refused.get((thread_id, namespace)):
                raise error
            if waited > _PATIENCE_S:
                raise TidebaseError(
                    f"the checkpoint before a durable node was not stored in {_PATIENCE_S:.0f} seconds: {checkpoint_id}"
                )
            yield Pause(_GLANCE_S)
            waited += _GLANCE_S


#: How many checkpoints are taken away in one transaction.
_BATCH = 1000


def _in_batches(names: list[str], call: Any) -> Flow[None]:
    for first in range(0, len(names), 100):
        while (yield call(names[first : first + 100])) >= _BATCH:
            pass


class Changes:
    """The new values of a checkpoint, in the form that put_checkpoint takes."""

    def __init__(self, place: tuple[str, str], versions: ChannelVersions) -> None:
        self._place = place
        self._versions = versions
        self._changes: list[dict[str, Any]] = []
        self._contents: list[bytes] = []
        self._dumped: dict[str, Dumped] = {}
        self._edition: str | None = None

    def add(self, channel: str, dumped: Dumped, known: Known | None) -> None:
        """A value, and what is known of the one before it."""
        if known is not None and self._edition not in (None, known.edition):
            known = None
        found = pieces(b"" if known is None else known.body, dumped.body)
        if known is not None and any(isinstance(piece, list) for piece in found):
            self._edition = known.edition
        else:
            known = None
        self._changes.append(
            {
                "channel": channel,
                "version": str(self._versions[channel]),
                "type": dumped.type,
                "head": self._content(dumped.head),
                "base": None if known is None else known.number,
                "base_version": None if known is None else known.version,
                "pieces": [self._content(piece) if isinstance(piece, bytes) else piece for piece in found],
            }
        )
        self._dumped[channel] = dumped

    def _content(self, content: bytes) -> int:
        self._contents.append(content)
        return len(self._contents) - 1

    def arguments(self) -> dict[str, Any]:
        """The arguments of the call."""
        return {"changes": codec.encode(self._changes), "contents": self._contents, "edition": self._edition}

    def remember(self, memory: Memory, put: CheckpointPut) -> None:
        """They are stored, under these numbers."""
        for (channel, dumped), number in zip(self._dumped.items(), put.value_numbers or (), strict=False):
            known = Known(put.edition, number, str(self._versions[channel]), dumped.body, dumped.shown, dumped.read)
            memory.keep((*self._place, channel), known)
