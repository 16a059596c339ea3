"""What Prometheus is told, made of the views when it asks: depth and age of queues, runs by status, workers.

The names follow its conventions (https://prometheus.io/docs/practices/naming/): a gauge each, ages in seconds.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timezone

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector, CollectorRegistry

from ..client.tide import Tidebase

#: What is told of each queue, and what it means.
_QUEUE = {
    "ready": "Runs that may be taken up (no more than 10,000 are counted)",
    "delayed": "Runs that wait for their time",
    "running": "Runs that are leased",
    "waiting": "Runs that are suspended",
    "review": "Runs that wait for a person's review",
    "failed": "Runs that have failed: the dead letters",
}


class _Queues(Collector):
    def __init__(self, tide: Tidebase) -> None:
        self._tide = tide

    def collect(self) -> Iterator[GaugeMetricFamily]:
        now = datetime.now(timezone.utc)
        queues = self._tide.queues.list()
        for name, text in _QUEUE.items():
            family = GaugeMetricFamily(f"tidebase_queue_{name}_runs", text, labels=["queue"])
            for queue in queues:
                family.add_metric([queue.queue], getattr(queue, name))
            yield family
        oldest = GaugeMetricFamily(
            "tidebase_queue_oldest_ready_seconds", "How long the next run of the queue has waited", labels=["queue"]
        )
        paused = GaugeMetricFamily("tidebase_queue_paused", "Whether the queue is paused", labels=["queue"])
        held = GaugeMetricFamily(
            "tidebase_queue_held_back", "What keeps ready runs from being taken", labels=["queue", "reason"]
        )
        for queue in queues:
            age = 0.0 if queue.oldest_ready is None else (now - queue.oldest_ready).total_seconds()
            oldest.add_metric([queue.queue], max(age, 0.0))
            paused.add_metric([queue.queue], float(queue.paused))
            if queue.held_back_by is not None:
                held.add_metric([queue.queue, queue.held_back_by], 1.0)
        yield from (oldest, paused, held)


class _Runs(Collector):
    def __init__(self, tide: Tidebase) -> None:
        self._tide = tide

    def collect(self) -> Iterator[GaugeMetricFamily]:
        runs = GaugeMetricFamily(
            "tidebase_runs", "Runs by status (beyond 2,000 by the statistics of the last ANALYZE)", labels=["status"]
        )
        for count in self._tide.runs.count():
            runs.add_metric([count.status], count.runs)
        yield runs
        workers = self._tide.queues.workers()
        now = datetime.now(timezone.utc)
        alive = [worker for worker in workers if (now - worker.seen_at).total_seconds() < 60]
        yield GaugeMetricFamily("tidebase_workers", "Workers that were seen within a minute", value=len(alive))
        stalled: dict[str, int] = {}
        for run in self._tide.runs.stalled():
            stalled[run.reason] = stalled.get(run.reason, 0) + 1
        family = GaugeMetricFamily("tidebase_stalled_runs", "Runs that do not go on by themselves", labels=["reason"])
        for reason, number in stalled.items():
            family.add_metric([reason], number)
        yield family


def registry(tide: Tidebase) -> CollectorRegistry:
    """A registry that asks the database each time it is asked itself."""
    made = CollectorRegistry()
    made.register(_Queues(tide))
    made.register(_Runs(tide))
    return made
