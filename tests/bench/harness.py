"""What the scenarios share: a server of their own, rounds in which floor and variants take turns, rows of results."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import psycopg

from tidebase import Run, Tidebase
from tidebase.core.local import Cluster

#: What a step stores: about 500 bytes of JSON.
PAYLOAD = {"text": "x" * 488}
PAYLOAD_TEXT = '{"text": "' + PAYLOAD["text"] + '"}'

Connection = psycopg.Connection[Any]


@dataclass(frozen=True)
class Row:
    """One line of the result: the median of the rounds with its spread, beside the bar that it has to reach.

    Attributes:
        unit: what value, low, high and bar are in; ``x floor`` is a rate against that of the floor.
        bar: None where there is none. at_least: whether it is to be reached from above.
        note: absolute figures, which mean little on another machine.
    """

    scenario: str
    variant: str
    value: float
    low: float
    high: float
    unit: str
    bar: float | None = None
    at_least: bool = True
    note: str = ""

    @property
    def reached(self) -> bool | None:
        if self.bar is None:
            return None
        return self.value >= self.bar if self.at_least else self.value <= self.bar

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "reached": self.reached}


@dataclass
class Bench:
    """Where it is measured, and how thoroughly: ``quick`` is a smoke test, whose figures mean nothing; ``long``
    is for what needs minutes."""

    cluster: Cluster
    tide: Tidebase
    connection: Connection
    quick: bool = False
    long: bool = False

    @property
    def rounds(self) -> int:
        return 2 if self.quick else 7

    def size(self, full: int, quick: int) -> int:
        return quick if self.quick else full

    def value(self, query: str, *parameters: Any) -> Any:
        """The only value of the only row."""
        row = self.connection.execute(query, parameters or None).fetchone()  # type: ignore[arg-type]
        return None if row is None else row[0]

    def floor(self) -> None:
        """Makes the table of the floor: no index, no key."""
        self.connection.execute("create table if not exists floor (id bigint, payload jsonb)")


Scenario = Callable[[Bench], Iterator[Row]]
SCENARIOS: dict[str, Scenario] = {}


def scenario(function: Scenario) -> Scenario:
    """Registers a function by its name. Its docstring says what is measured."""
    SCENARIOS[function.__name__.replace("_", " ")] = function
    return function


def rate(count: int, work: Callable[[], Any]) -> float:
    """How often a second, when the work does it ``count`` times."""
    begun = time.perf_counter()
    work()
    return count / (time.perf_counter() - begun)


def take_turns(bench: Bench, floor: Callable[[], float], variants: Mapping[str, Callable[[], float]]) -> Turns:
    """Rounds in which the floor is measured before and after each variant; all give a rate."""
    for work in (floor, *variants.values()):
        work()  # plans, caches and connections are made
    turns = Turns({variant: [] for variant in variants}, {variant: [] for variant in variants}, [])
    for _ in range(bench.rounds):
        before = floor()
        for variant, work in variants.items():
            theirs = work()
            after = floor()
            turns.ratios[variant].append(theirs / ((before + after) / 2))
            turns.rates[variant].append(theirs)
            turns.floors.append(after)
            before = after
    return turns


@dataclass
class Turns:
    """Rates of the variants, and their ratios to the floor around them."""

    ratios: dict[str, list[float]]
    rates: dict[str, list[float]]
    floors: list[float]

    def row(self, scenario: str, variant: str, bar: float | None, what: str = "steps") -> Row:
        note = f"{statistics.median(self.rates[variant]):,.0f} {what}/s, floor {statistics.median(self.floors):,.0f}/s"
        return spread(scenario, variant, self.ratios[variant], "x floor", bar, note=note)


def spread(
    scenario: str,
    variant: str,
    values: list[float],
    unit: str,
    bar: float | None = None,
    at_least: bool = True,
    note: str = "",
) -> Row:
    return Row(scenario, variant, statistics.median(values), min(values), max(values), unit, bar, at_least, note)


def insert(connection: Connection, count: int) -> None:
    """The floor: one insert of the payload, committed by itself."""
    for number in range(count):
        connection.execute("insert into floor (id, payload) values (%s, %s::jsonb)", [number, PAYLOAD_TEXT])


def steps(run: Run, count: int, first: int = 0, **options: Any) -> None:
    """So many steps, each with a key of its own, that do nothing but return the payload."""
    for number in range(first, first + count):
        run.step.options(key=number, **options)("work", lambda: PAYLOAD)


def new_run(bench: Bench, workflow: str = "bench") -> tuple[str, int]:
    """A run that is leased for a day, for calls of one's own: its id and its token."""
    run_id = bench.value("select tidebase.create_run(%s)", workflow)
    return run_id, bench.value("select token from tidebase.acquire_run(%s, 'bench', '1 day')", run_id)
