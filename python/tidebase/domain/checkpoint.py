"""Threads and their checkpoints, as LangGraph has them; see ``sql/functions/checkpoint.sql``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from ..core.call import Json, many, one, scalar


@dataclass(frozen=True)
class ThreadCheckpoint:
    """A checkpoint of a thread with its values and its pending writes; see the type tidebase.thread_checkpoint."""

    thread_id: str
    namespace: str
    checkpoint_id: str
    parent_id: str | None
    number: int
    created_at: datetime
    type: str
    content: bytes
    metadata: Json
    newest_id: str
    edition: str
    value_numbers: Sequence[int] | None
    channels: Sequence[str] | None
    types: Sequence[str] | None
    heads: Sequence[bytes] | None
    bodies: Sequence[bytes] | None
    task_ids: Sequence[str] | None
    write_channels: Sequence[str] | None
    write_types: Sequence[str] | None
    writes: Sequence[bytes] | None


@dataclass(frozen=True)
class CheckpointBeyond(ThreadCheckpoint):
    """One of whose values the client has some; see the type tidebase.thread_checkpoint_beyond."""

    bases: Sequence[int | None] | None


@dataclass(frozen=True)
class CheckpointPut:
    """What became of a checkpoint that was put; see the type tidebase.checkpoint_put."""

    outcome: str
    edition: str
    channels: Sequence[str] | None
    value_numbers: Sequence[int] | None


put_checkpoint = one(
    "put_checkpoint",
    CheckpointPut,
    thread_id="text",
    namespace="text",
    checkpoint_id="text",
    type="text",
    content="bytea",
    metadata="jsonb",
    parent_id="text",
    channels="text[]",
    versions="text[]",
    changes="jsonb",
    contents="bytea[]",
    edition="text",
    seen_id="text",
    run_id="text",
    token="bigint",
)
put_checkpoint_writes = scalar(
    "put_checkpoint_writes",
    thread_id="text",
    namespace="text",
    checkpoint_id="text",
    task_id="text",
    task_path="text",
    idxs="integer[]",
    channels="text[]",
    types="text[]",
    contents="bytea[]",
    run_id="text",
    token="bigint",
)
get_checkpoint = many("get_checkpoint", ThreadCheckpoint, thread_id="text", namespace="text", checkpoint_id="text")
get_checkpoint_beyond = many(
    "get_checkpoint_beyond",
    CheckpointBeyond,
    thread_id="text",
    namespace="text",
    checkpoint_id="text",
    edition="text",
    known="integer[]",
    versions="text[]",
)
has_checkpoint = scalar("has_checkpoint", thread_id="text", namespace="text", checkpoint_id="text")
list_checkpoints = many(
    "list_checkpoints",
    ThreadCheckpoint,
    thread_id="text",
    namespace="text",
    checkpoint_id="text",
    filter="jsonb",
    before_id="text",
    max="integer",
    after_thread_id="text",
    after_namespace="text",
    after_number="integer",
)
claim_thread = scalar("claim_thread", run_id="text", token="bigint", thread_id="text")
delete_thread = scalar("delete_thread", thread_id="text", run_id="text", token="bigint")
delete_checkpoints_of_runs = scalar("delete_checkpoints_of_runs", run_ids="text[]", max="integer")
copy_thread = scalar("copy_thread", source_thread_id="text", target_thread_id="text")
prune_threads = scalar("prune_threads", thread_ids="text[]", strategy="text", max="integer")
