"""What Prometheus is told: what the database measures when it is asked, and what a worker has done since it began.

The names follow its conventions (https://prometheus.io/docs/practices/naming/). Ages are by the clock of the database.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from prometheus_client import generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector, CollectorRegistry

from ..client.tide import Tidebase
from ..domain.claim import Tally
from ..domain.heartbeat import missed
from ..domain.measure import Measurement

#: What the database measures: what it means, and what tells its values apart.
GAUGES: dict[str, tuple[str, tuple[str, ...]]] = {
    "queue_ready_runs": ("Runs that may be taken up (no more than 10,000 are counted)", ("queue",)),
    "queue_delayed_runs": ("Runs that wait for their time", ("queue",)),
    "queue_invoked_runs": ("Runs that the endpoint was told of, and has not begun so far", ("queue",)),
    "queue_running_runs": ("Runs that are leased", ("queue",)),
    "queue_waiting_runs": ("Runs that are suspended", ("queue",)),
    "queue_review_runs": ("Runs that wait for a person's review", ("queue",)),
    "queue_failed_runs": ("Runs that have failed: the dead letters", ("queue",)),
    "queue_oldest_ready_seconds": ("How long the next run of the queue has waited", ("queue",)),
    "queue_paused": ("Whether the queue is paused", ("queue",)),
    "queue_endpoint_failures": ("How often in a row the endpoint did not answer, or with an error", ("queue",)),
    "queue_held_back": ("What keeps ready runs from being taken", ("queue", "reason")),
    "failed_runs": ("Failed runs by what they died of (no more than 10,000 are counted)", ("queue", "class")),
    "runs": ("Runs by status (beyond 2,000 by the statistics of the last ANALYZE)", ("status",)),
    "stalled_runs": ("Runs that do not go on by themselves; lease_lapsed: their heartbeat is late", ("reason",)),
    "late_seconds": ("By how much the latest heartbeat of all is late", ()),
    "workers": ("Workers that were seen within a minute", ()),
}


def gauges(measured: Iterable[Measurement]) -> Iterator[Metric]:
    """What the database has measured, a family each, also where nothing was found."""
    found: dict[str, list[Measurement]] = {name: [] for name in GAUGES}
    for one in measured:
        if one.metric in found:  # else a newer schema knows more
            found[one.metric].append(one)
    for name, (text, labels) in GAUGES.items():
        family = GaugeMetricFamily(f"tidebase_{name}", text, labels=labels)
        for one in found[name]:
            values = [one.queue or ""] if labels[:1] == ("queue",) else []
            family.add_metric([*values, one.label or ""][: len(labels)], one.value)
        yield family


class _Collector(Collector):
    def __init__(self, collect: Callable[[], Iterator[Metric]]) -> None:
        self._collect = collect

    def collect(self) -> Iterator[Metric]:
        return self._collect()

    def describe(self) -> Iterable[Metric]:
        return ()  # or it would be asked when it is registered


def exposition(measured: Iterable[Measurement]) -> bytes:
    """The text that Prometheus reads."""
    made = CollectorRegistry()
    made.register(_Collector(lambda: gauges(measured)))
    return generate_latest(made)


def registry(tide: Tidebase, tally: Tally | None = None) -> CollectorRegistry:
    """A registry that asks the database each time it is asked itself; with what a worker has done."""
    made = CollectorRegistry()
    made.register(_Collector(lambda: gauges(tide.measure())))
    if tally is not None:
        made.register(_Collector(lambda: _counters(tally)))
    return made


def _counters(tally: Tally) -> Iterator[Metric]:
    claims = CounterMetricFamily("tidebase_worker_claims", "Runs that this worker has claimed", labels=["queue"])
    for queue, number in list(tally.claims.items()):
        claims.add_metric([queue], number)
    ends = CounterMetricFamily("tidebase_worker_ends", "How its work on them ended", labels=["queue", "end"])
    for (queue, end), number in list(tally.ends.items()):
        ends.add_metric([queue, end], number)
    yield from (claims, ends)
    yield CounterMetricFamily("tidebase_worker_lapses", "Leases that it saw run out, anybody's", value=tally.lapses)
    late = missed.count
    yield CounterMetricFamily("tidebase_worker_heartbeats_late", "Its heartbeats that failed or were late", value=late)
