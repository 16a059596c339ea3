"""Queues and schedules, seen from outside, for asyncio."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from ..core import codec
from ..core.database_async import AsyncDatabase
from ..core.errors import NotFound
from ..domain import calls, queue, schedule
from ..domain.calls import InvocationInfo, QueueInfo, QueueRate, ScheduleInfo, WorkerInfo
from ..domain.workflow import new_run_id

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ..domain.queue import QueueOptions
    from ..domain.schedule import ScheduleOptions


class AsyncQueues:
    """``tide.queues``: what waits, and how much of it may be at work at once."""

    def __init__(self, database: AsyncDatabase) -> None:
        self._database = database

    async def put(self, name: str, **options: Unpack[QueueOptions]) -> QueueInfo:
        """Makes a queue what the options say, also while it runs: what is not said has no limit.

        Options: see :class:`~tidebase.domain.queue.QueueOptions`: concurrency, key_concurrency, rate ...
        """
        await self._database.execute(queue.put(name, options))
        return await self.get(name)

    async def get(self, name: str) -> QueueInfo:
        """One queue. Raises NotFound when nothing is known of it: no limits, and nothing was ever taken from it."""
        found = await self._database.execute(calls.queue_overview(name))
        if not found:
            raise NotFound(f"there is no queue {name!r}", sqlstate="TB012", detail={"queue": name})
        return found[0]

    async def list(self) -> Sequence[QueueInfo]:
        """All queues, by name."""
        return await self._database.execute(calls.queue_overview())

    async def rates(self) -> Sequence[QueueRate]:
        """How many runs a minute end, of each queue in which some did within five minutes."""
        return await self._database.execute(calls.queue_rates())

    async def pause(self, name: str) -> bool:
        """Grants no lease of the queue's runs any more. False when it was paused before."""
        paused: bool = await self._database.execute(calls.pause_queue(queue=name))
        return paused

    async def resume(self, name: str) -> bool:
        """Ends a pause. False when there was none."""
        resumed: bool = await self._database.execute(calls.resume_queue(queue=name))
        return resumed

    async def invocations(self, name: str) -> Sequence[InvocationInfo]:
        """Of which runs the endpoint of a queue was told, and what became of that; the latest first."""
        return await self._database.execute(calls.invocation_overview(name))

    async def workers(self) -> Sequence[WorkerInfo]:
        """Who took runs from queues within a day, those that were seen last first."""
        return await self._database.execute(calls.worker_overview())


class AsyncSchedules:
    """``tide.schedules``: runs that are enqueued by the clock."""

    def __init__(self, database: AsyncDatabase) -> None:
        self._database = database

    async def put(
        self,
        name: str,
        workflow_name: str,
        *,
        cron: str | None = None,
        every_s: float | None = None,
        input: Any = None,
        **options: Unpack[ScheduleOptions],
    ) -> ScheduleInfo:
        """Makes a schedule, or makes the one with this name what is said. Put again as it was, it goes on as it was.

        Args:
            cron: five fields in the schedule's time zone; or ``every_s``, in seconds.
            options: see :class:`~tidebase.domain.schedule.ScheduleOptions`: queue, timezone, overlap, catch_up ...
        """
        await self._database.execute(schedule.put(name, workflow_name, cron, every_s, input, options))
        return await self.get(name)

    async def get(self, name: str) -> ScheduleInfo:
        """One schedule. Raises NotFound."""
        found = await self._database.execute(calls.schedule_overview(name))
        if not found:
            raise NotFound(f"there is no schedule {name!r}", sqlstate="TB012", detail={"schedule": name})
        return found[0]

    async def list(self) -> Sequence[ScheduleInfo]:
        """All schedules, by name."""
        return await self._database.execute(calls.schedule_overview())

    async def delete(self, name: str) -> bool:
        """Removes a schedule; the runs that it made stay. False when there was none."""
        deleted: bool = await self._database.execute(calls.delete_schedule(name=name))
        return deleted

    async def trigger(self, name: str, *, run_id: str | None = None, input: Any = None) -> str:
        """Enqueues a run of a schedule now, besides its times; returns the run's id. Raises NotFound."""
        made: str = await self._database.execute(
            calls.trigger_schedule(
                name=name,
                run_id=new_run_id() if run_id is None else run_id,
                input=None if input is None else codec.encode(input),
            )
        )
        return made

    async def backfill(self, name: str, since: datetime, until: datetime, *, max: int | None = None) -> Sequence[str]:
        """Enqueues the runs of a schedule's times from ``since`` on and before ``until`` that are not there yet, at
        most ``max`` (by default 1,000); returns their ids. Raises NotFound.
        """
        return await self._database.execute(calls.backfill_schedule(name=name, since=since, until=until, max=max))

    async def next_fires(
        self, cron: str, *, timezone: str = "UTC", after: datetime | None = None, n: int = 1
    ) -> Sequence[datetime]:
        """The next times of a cron expression. Raises InvalidArgument, which says what is wrong about it."""
        return await self._database.execute(calls.next_fires(cron=cron, timezone=timezone, after=after, n=n))
