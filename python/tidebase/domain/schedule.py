"""Schedules: runs that are enqueued by the clock."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal, TypedDict

from ..core import codec
from ..core.call import Call, Value, rows_of, scalar, scalars
from ..core.options import check, in_seconds


@dataclass(frozen=True)
class ScheduleInfo:
    """A schedule, as the view schedule_overview has it. ``next_at``: None when it is disabled, or never fires again;
    ``next_in``: in how long that is, by the clock of the database. ``failure``: what went wrong when it was to fire
    last.
    """

    name: str
    workflow: str
    input: Value
    metadata: Value
    queue: str
    key: str | None
    priority: int
    max_attempts: int | None
    cron: str | None
    every: timedelta | None
    timezone: str
    overlap: str
    catch_up: str
    catch_up_window: timedelta
    jitter: timedelta
    enabled: bool
    next_at: datetime | None
    last_run_id: str | None
    last_status: str | None
    failure: str | None
    created_at: datetime
    updated_at: datetime
    next_in: timedelta | None


class ScheduleOptions(TypedDict, total=False):
    """What may be said about a schedule.

    Attributes:
        queue: where its runs wait; by default "default".
        timezone: of the cron expression; by default UTC.
        overlap: when the run before is not over: allow (both), skip (this time is passed over), cancel (the one
            before).
        catch_up: times at which nobody looked: none, last (the latest), all.
        catch_up_window_s: how long ago such a time may be; by default a day.
        jitter_s: up to so much later, spread by name and time.
        enabled: whether it fires; by default it does.
        key: of its runs, as for enqueue.
        priority: of its runs.
        max_attempts: of its runs.
        metadata: of its runs.
        starts_at: from when ``every`` is counted; by default from when it was made.
    """

    queue: str
    timezone: str
    overlap: Literal["allow", "skip", "cancel"]
    catch_up: Literal["none", "last", "all"]
    catch_up_window_s: float
    jitter_s: float
    enabled: bool
    key: str | None
    priority: int
    max_attempts: int | None
    metadata: dict[str, Any] | None
    starts_at: datetime | None


put_schedule = scalar(
    "put_schedule",
    name="text",
    workflow="text",
    cron="text",
    every="interval",
    input="jsonb",
    queue="text",
    timezone="text",
    overlap="text",
    catch_up="text",
    catch_up_window="interval",
    jitter="interval",
    enabled="boolean",
    key="text",
    priority="integer",
    max_attempts="integer",
    metadata="jsonb",
    starts_at="timestamptz",
)
delete_schedule = scalar("delete_schedule", name="text")
trigger_schedule = scalar("trigger_schedule", name="text", run_id="text", input="jsonb")
backfill_schedule = scalars("backfill_schedule", name="text", since="timestamptz", until="timestamptz", max="integer")
next_fires = scalars("next_fires", cron="text", timezone="text", after="timestamptz", n="integer")

_SECONDS = {"catch_up_window_s": "catch_up_window", "jitter_s": "jitter"}


def put(
    name: str, workflow: str, cron: str | None, every_s: float | None, input: Any, options: ScheduleOptions
) -> Call[datetime | None]:
    """The call that makes a schedule what is said."""
    check(ScheduleOptions, options, "a schedule")
    given = in_seconds(options, _SECONDS)
    if given.get("metadata") is not None:
        given["metadata"] = codec.encode(given["metadata"])
    return put_schedule(
        name=name,
        workflow=workflow,
        cron=cron,
        every=None if every_s is None else timedelta(seconds=every_s),
        input=None if input is None else codec.encode(input),
        **given,
    )


def schedule_overview(name: str | None = None) -> Call[list[ScheduleInfo]]:
    """All schedules, or one."""
    return rows_of("schedule_overview", ScheduleInfo, "name", name=name)
