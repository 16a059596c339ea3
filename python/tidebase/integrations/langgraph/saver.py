"""Checkpoint savers for LangGraph, for threads and for asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any, TypeVar

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import ChannelVersions, Checkpoint, CheckpointMetadata, CheckpointTuple
from langgraph.checkpoint.serde.base import SerializerProtocol

from ...client.tide import Tidebase
from ...client.tide_async import AsyncTidebase
from ...client.work import Run, RunSession
from ...client.work_async import AsyncRun, AsyncRunSession
from ...core.errors import TidebaseError
from ...core.flow import drive, drive_async
from ...domain import calls
from ...domain.calls import ThreadCheckpoint
from .threads import PAGE, WORKFLOW, Threads, run_id_of

T = TypeVar("T")


#: A thread is worked on when somebody comes, and its run is not missed meanwhile; see the view ``stalled_runs``.
_AS_SOMEBODY_COMES = {"tidebase.session": True}


class TidebaseSaver(Threads):
    """Keeps the checkpoints of a graph: ``builder.compile(checkpointer=TidebaseSaver(tide))``.

    Two who go on from the same checkpoint of a thread do not fork it: the second is refused with LeaseLostError. With
    :meth:`claim`, or as part of a run, there is no second one to begin with. The async methods use threads; in an
    application with asyncio, take :class:`AsyncTidebaseSaver`.

    Args:
        tide: the database. The schema must be there (``tide.migrate()``): a saver makes no tables.
        run: a run whose lease all writes are made under; nobody else writes to these threads while it is alive.
        serde: how values are serialized; by default as LangGraph does it.
    """

    def __init__(self, tide: Tidebase, *, run: Run | None = None, serde: SerializerProtocol | None = None) -> None:
        super().__init__(serde)
        self.tide = tide
        self._database = tide._database
        if run is not None:
            self._lease = run.run_id, run.token

    @contextmanager
    def claim(self, thread_id: str, *, wait_s: float | None = None) -> Iterator[RunSession]:
        """In the block nobody else works on the thread: neither who claims it, nor who writes without.

        Args:
            wait_s: how long to wait for another one; see :meth:`tidebase.Tidebase.run`.

        Raises:
            RunHeld: another worker has it. LeaseLostError: another one has taken it over meanwhile, or writes to it
                under a run of its own.
        """
        run_id = run_id_of(thread_id)
        with self.tide.runs.attach(WORKFLOW, run_id=run_id, wait_s=wait_s, metadata=_AS_SOMEBODY_COMES) as session:
            self._database.execute(calls.claim_thread(run_id=session.run_id, token=session.token, thread_id=thread_id))
            self._claims[thread_id] = session.run_id, session.token
            try:
                yield session
            finally:
                self._claims.pop(thread_id, None)
                session.close()  # also after an error: the work on a thread goes on

    def get_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        """The newest checkpoint of a thread, or the one whose id is given."""
        return drive(self._get(config), self._database)

    def list(
        self,
        config: RunnableConfig | None,
        *,
        filter: dict[str, Any] | None = None,
        before: RunnableConfig | None = None,
        limit: int | None = None,
    ) -> Iterator[CheckpointTuple]:
        """Checkpoints, the newest first, read a page at a time; without a config those of all threads."""
        after: ThreadCheckpoint | None = None
        while limit is None or limit > 0:
            size = PAGE if limit is None else min(PAGE, limit)
            rows = self._database.execute(self._page(config, filter, before, size, after))
            for row in rows:
                yield self._tuple(row)
            if len(rows) < size:
                return
            after = rows[-1]
            limit = None if limit is None else limit - len(rows)

    def put(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> RunnableConfig:
        """Stores a checkpoint behind the one that the config names.

        Raises:
            LeaseLostError: another worker has gone on from there, or has the thread.
        """
        return drive(self._put(config, checkpoint, metadata, new_versions), self._database)

    def put_writes(
        self, config: RunnableConfig, writes: Sequence[tuple[str, Any]], task_id: str, task_path: str = ""
    ) -> None:
        """Stores what a task has written."""
        call = self._put_writes(config, writes, task_id, task_path)
        if call is not None:
            self._database.execute(call)

    def delete_thread(self, thread_id: str) -> None:
        """Deletes a thread."""
        self._database.execute(self._delete(thread_id))

    def delete_for_runs(self, run_ids: Sequence[str]) -> None:
        """Deletes the checkpoints whose metadata has one of these ``run_id``."""
        drive(self._delete_for_runs(run_ids), self._database)

    def copy_thread(self, source_thread_id: str, target_thread_id: str) -> None:
        """Makes a thread with all that another one has."""
        self._database.execute(
            calls.copy_thread(source_thread_id=str(source_thread_id), target_thread_id=str(target_thread_id))
        )

    def prune(self, thread_ids: Sequence[str], *, strategy: str = "keep_latest") -> None:
        """Leaves the newest checkpoint of each namespace (``keep_latest``), or nothing (``delete``); in batches."""
        drive(self._prune(thread_ids, strategy), self._database)

    async def aget_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        """See :meth:`get_tuple`."""
        return await asyncio.to_thread(self.get_tuple, config)

    async def alist(
        self,
        config: RunnableConfig | None,
        *,
        filter: dict[str, Any] | None = None,
        before: RunnableConfig | None = None,
        limit: int | None = None,
    ) -> AsyncIterator[CheckpointTuple]:
        """See :meth:`list`."""
        rows = self.list(config, filter=filter, before=before, limit=limit)
        while (row := await asyncio.to_thread(next, rows, None)) is not None:
            yield row

    async def aput(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> RunnableConfig:
        """See :meth:`put`."""
        return await asyncio.to_thread(self.put, config, checkpoint, metadata, new_versions)

    async def aput_writes(
        self, config: RunnableConfig, writes: Sequence[tuple[str, Any]], task_id: str, task_path: str = ""
    ) -> None:
        """See :meth:`put_writes`."""
        await asyncio.to_thread(self.put_writes, config, writes, task_id, task_path)

    async def adelete_thread(self, thread_id: str) -> None:
        """See :meth:`delete_thread`."""
        await asyncio.to_thread(self.delete_thread, thread_id)

    async def adelete_for_runs(self, run_ids: Sequence[str]) -> None:
        """See :meth:`delete_for_runs`."""
        await asyncio.to_thread(self.delete_for_runs, run_ids)

    async def acopy_thread(self, source_thread_id: str, target_thread_id: str) -> None:
        """See :meth:`copy_thread`."""
        await asyncio.to_thread(self.copy_thread, source_thread_id, target_thread_id)

    async def aprune(self, thread_ids: Sequence[str], *, strategy: str = "keep_latest") -> None:
        """See :meth:`prune`."""
        await asyncio.to_thread(self.prune, thread_ids, strategy=strategy)


class AsyncTidebaseSaver(Threads):
    """Keeps the checkpoints of a graph, for asyncio; see :class:`TidebaseSaver`. It is made in the loop that uses it.

    The plain methods may be called from other threads, as LangGraph does for nodes that are plain functions.
    """

    def __init__(
        self, tide: AsyncTidebase, *, run: AsyncRun | None = None, serde: SerializerProtocol | None = None
    ) -> None:
        super().__init__(serde)
        self.tide = tide
        self._database = tide._database
        self._loop = asyncio.get_running_loop()
        if run is not None:
            self._lease = run.run_id, run.token

    @asynccontextmanager
    async def claim(self, thread_id: str, *, wait_s: float | None = None) -> AsyncIterator[AsyncRunSession]:
        """In the block nobody else works on the thread; see :meth:`TidebaseSaver.claim`."""
        run_id = run_id_of(thread_id)
        attached = await self.tide.runs.attach(WORKFLOW, run_id=run_id, wait_s=wait_s, metadata=_AS_SOMEBODY_COMES)
        async with attached as session:
            await self._database.execute(
                calls.claim_thread(run_id=session.run_id, token=session.token, thread_id=thread_id)
            )
            self._claims[thread_id] = session.run_id, session.token
            try:
                yield session
            finally:
                self._claims.pop(thread_id, None)
                await session.close()

    async def aget_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        """The newest checkpoint of a thread, or the one whose id is given."""
        return await drive_async(self._get(config), self._database)

    async def alist(
        self,
        config: RunnableConfig | None,
        *,
        filter: dict[str, Any] | None = None,
        before: RunnableConfig | None = None,
        limit: int | None = None,
    ) -> AsyncIterator[CheckpointTuple]:
        """Checkpoints, the newest first, read a page at a time; without a config those of all threads."""
        after: ThreadCheckpoint | None = None
        while limit is None or limit > 0:
            size = PAGE if limit is None else min(PAGE, limit)
            rows = await self._database.execute(self._page(config, filter, before, size, after))
            for row in rows:
                yield self._tuple(row)
            if len(rows) < size:
                return
            after = rows[-1]
            limit = None if limit is None else limit - len(rows)

    async def aput(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> RunnableConfig:
        """Stores a checkpoint behind the one that the config names; see :meth:`TidebaseSaver.put`."""
        return await drive_async(self._put(config, checkpoint, metadata, new_versions), self._database)

    async def aput_writes(
        self, config: RunnableConfig, writes: Sequence[tuple[str, Any]], task_id: str, task_path: str = ""
    ) -> None:
        """Stores what a task has written."""
        call = self._put_writes(config, writes, task_id, task_path)
        if call is not None:
            await self._database.execute(call)

    async def adelete_thread(self, thread_id: str) -> None:
        """Deletes a thread."""
        await self._database.execute(self._delete(thread_id))

    async def adelete_for_runs(self, run_ids: Sequence[str]) -> None:
        """Deletes the checkpoints whose metadata has one of these ``run_id``."""
        await drive_async(self._delete_for_runs(run_ids), self._database)

    async def acopy_thread(self, source_thread_id: str, target_thread_id: str) -> None:
        """Makes a thread with all that another one has."""
        await self._database.execute(
            calls.copy_thread(source_thread_id=str(source_thread_id), target_thread_id=str(target_thread_id))
        )

    async def aprune(self, thread_ids: Sequence[str], *, strategy: str = "keep_latest") -> None:
        """Leaves the newest checkpoint of each namespace (``keep_latest``), or nothing (``delete``); in batches."""
        await drive_async(self._prune(thread_ids, strategy), self._database)

    def _there(self, work: Callable[..., Coroutine[Any, Any, T]], *args: Any, **kwargs: Any) -> T:
        """Does it in the event loop, for another thread."""
        try:
            running = asyncio.get_running_loop()
        except RuntimeError:
            running = None
        if running is self._loop:
            raise TidebaseError("this would block the event loop", hint="Await the method that begins with a.")
        return asyncio.run_coroutine_threadsafe(work(*args, **kwargs), self._loop).result()

    def get_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        """See :meth:`aget_tuple`."""
        return self._there(self.aget_tuple, config)

    def list(
        self,
        config: RunnableConfig | None,
        *,
        filter: dict[str, Any] | None = None,
        before: RunnableConfig | None = None,
        limit: int | None = None,
    ) -> Iterator[CheckpointTuple]:
        """See :meth:`alist`."""
        rows = self.alist(config, filter=filter, before=before, limit=limit)

        async def following() -> CheckpointTuple | None:
            return await anext(rows, None)

        while (row := self._there(following)) is not None:
            yield row

    def put(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> RunnableConfig:
        """See :meth:`aput`."""
        return self._there(self.aput, config, checkpoint, metadata, new_versions)

    def put_writes(
        self, config: RunnableConfig, writes: Sequence[tuple[str, Any]], task_id: str, task_path: str = ""
    ) -> None:
        """See :meth:`aput_writes`."""
        self._there(self.aput_writes, config, writes, task_id, task_path)

    def delete_thread(self, thread_id: str) -> None:
        """See :meth:`adelete_thread`."""
        self._there(self.adelete_thread, thread_id)

    def delete_for_runs(self, run_ids: Sequence[str]) -> None:
        """See :meth:`adelete_for_runs`."""
        self._there(self.adelete_for_runs, run_ids)

    def copy_thread(self, source_thread_id: str, target_thread_id: str) -> None:
        """See :meth:`acopy_thread`."""
        self._there(self.acopy_thread, source_thread_id, target_thread_id)

    def prune(self, thread_ids: Sequence[str], *, strategy: str = "keep_latest") -> None:
        """See :meth:`aprune`."""
        self._there(self.aprune, thread_ids, strategy=strategy)
