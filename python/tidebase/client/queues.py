# Made by python/tools/faces.py out of queues_async.py: change that, and run `make faces`.
"""Queues and schedules, seen from outside, for threads."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from ..core import codec
from ..core.database import Database
from ..core.errors import NotFound
from ..domain import calls, queue, schedule
from ..domain.calls import InvocationInfo, QueueInfo, QueueRate, ScheduleInfo, WorkerInfo
from ..domain.workflow import new_run_id

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ..domain.queue import QueueOptions
    from ..domain.schedule import ScheduleOptions


class Queues:
    """``tide.queues``: what waits, and how much of it may be at work at once."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def put(self, name: str, **options: Unpack[QueueOptions]) -> QueueInfo:
        """Makes a queue what the options say, also while it runs: what is not said has no limit.

        Options: see :class:`~tidebase.domain.queue.QueueOptions`: concurrency, key_concurrency, rate ...
        """
        self._database.execute(queue.put(name, options))
        return self.get(name)

    def get(self, name: str) -> QueueInfo:
        """One queue. Raises NotFound when nothing is known of it: no limits, and nothing was ever taken from it."""
        found = self._database.execute(calls.queue_overview(name))
        if not found:
            raise NotFound(f"there is no queue {name!r}", sqlstate="TB012", detail={"queue": name})
        return found[0]

    def list(self) -> Sequence[QueueInfo]:
        """All queues, by name."""
        return self._database.execute(calls.queue_overview())

    def rates(self) -> Sequence[QueueRate]:
        """How many runs a minute end, of each queue in which some did within five minutes."""
        return self._database.execute(calls.queue_rates())

    def pause(self, name: str) -> bool:
        """Grants no lease of the queue's runs any more. False when it was paused before."""
        paused: bool = self._database.execute(calls.pause_queue(queue=name))
        return paused

    def resume(self, name: str) -> bool:
        """Ends a pause. False when there was none."""
        resumed: bool = self._database.execute(calls.resume_queue(queue=name))
        return resumed

    def invocations(self, name: str) -> Sequence[InvocationInfo]:
        """Of which runs the endpoint of a queue was told, and what became of that; the latest first."""
        return self._database.execute(calls.invocation_overview(name))

    def workers(self) -> Sequence[WorkerInfo]:
        """Who took runs from queues within a day, those that were seen last first."""
        return self._database.execute(calls.worker_overview())


class Schedules:
    """``tide.schedules``: runs that are enqueued by the clock."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def put(
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
        self._database.execute(schedule.put(name, workflow_name, cron, every_s, input, options))
        return self.get(name)

    def get(self, name: str) -> ScheduleInfo:
        """One schedule. Raises NotFound."""
        found = self._database.execute(calls.schedule_overview(name))
        if not found:
            raise NotFound(f"there is no schedule {name!r}", sqlstate="TB012", detail={"schedule": name})
        return found[0]

    def list(self) -> Sequence[ScheduleInfo]:
        """All schedules, by name."""
        return self._database.execute(calls.schedule_overview())

    def delete(self, name: str) -> bool:
        """Removes a schedule; the runs that it made stay. False when there was none."""
        deleted: bool = self._database.execute(calls.delete_schedule(name=name))
        return deleted

    def trigger(self, name: str, *, run_id: str | None = None, input: Any = None) -> str:
        """Enqueues a run of a schedule now, besides its times; returns the run's id. Raises NotFound."""
        made: str = self._database.execute(
            calls.trigger_schedule(
                name=name,
                run_id=new_run_id() if run_id is None else run_id,
                input=None if input is None else codec.encode(input),
            )
        )
        return made

    def backfill(self, name: str, since: datetime, until: datetime, *, max: int | None = None) -> Sequence[str]:
        """Enqueues the runs of a schedule's times from ``since`` on and before ``until`` that are not there yet, at
        most ``max`` (by default 1,000); returns their ids. Raises NotFound.
        """
        return self._database.execute(calls.backfill_schedule(name=name, since=since, until=until, max=max))

    def next_fires(
        self, cron: str, *, timezone: str = "UTC", after: datetime | None = None, n: int = 1
    ) -> Sequence[datetime]:
        """The next times of a cron expression. Raises InvalidArgument, which says what is wrong about it."""
        return self._database.execute(calls.next_fires(cron=cron, timezone=timezone, after=after, n=n))
