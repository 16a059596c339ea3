"""The probes of ``make test`` in their long form: how long that is, is said in ``amounts``."""

from __future__ import annotations

import asyncio
import importlib.util
import random
import tempfile
from collections.abc import Callable
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from .. import (
    test_cancel,
    test_canonical,
    test_cron,
    test_gate,
    test_gateway,
    test_review,
    test_state,
    test_stream,
    test_worker,
)
from ..probes import agents, behind, crowds
from ..probes import kernel as probes
from ..probes import workers as probe_workers
from ..probes.stream import POOL, Load, everything_once, named, replica
from ..probes.support import connect
from ..support.amounts import (
    CANCELLATIONS,
    CLAIMED_RUNS,
    CLAIMERS,
    CLOCK_CHANGES,
    CLOCK_PROCESSES,
    CLOCKS,
    CRON_EXPRESSIONS,
    DAYS,
    DEPLOYED_RUNS,
    DEPLOYS,
    DESCRIBED,
    EVENTS,
    EXAMPLES,
    FOLLOWED_RUNS,
    GATES,
    KILLED_AGENTS,
    KILLED_BEHIND,
    KILLED_CHARGERS,
    KILLED_CLAIMERS,
    KILLED_GRAPHS,
    KILLED_QUEUE_WORKERS,
    KILLED_WORKERS,
    LARGE_KEY,
    RACED_GRAPHS,
    RANDOM_CALLS,
    SHORT_LEASES,
    SMALL_KEYS,
    STARTS,
    STREAMS,
    SUBSCRIBERS,
    TAKE_OVERS,
    TRANSACTIONS,
)
from ..support.gate import user


def _deciders(url: str) -> list[str]:
    with connect(url) as db, user(db, url, "reader", "worker") as member:
        return test_gate.hammer(db, member, runs=20, gates=GATES.torture, attempts=100, connections=16)


def _cancellations(url: str) -> list[str]:
    with connect(url) as db:
        return test_cancel.race(db, url, rounds=CANCELLATIONS.torture)


def _chargers(url: str, keyed: bool) -> list[str]:
    with tempfile.TemporaryDirectory() as folder:
        massacre = test_review.Massacre(url, Path(folder) / "ledger", keyed)
        return massacre.violations(KILLED_CHARGERS.torture, deaths=5)


def _described(url: str) -> list[str]:
    with tempfile.TemporaryDirectory() as folder:
        many = ["--phases", "examples,coverage,fuzzing", "--max-examples", str(DESCRIBED.torture)]
        return test_gateway.described(url, Path(folder), *many)


def _agents(url: str, framework: str) -> list[str]:
    found, _ = agents.kill_agents(url, framework, KILLED_AGENTS.torture, seed=random.randrange(1000))
    return found


def _subscribers(url: str) -> list[str]:
    load = Load(FOLLOWED_RUNS.torture, SUBSCRIBERS.torture, EVENTS.torture)
    limits = {"one": POOL + 1, "other": POOL + 1}
    with replica(named(url, "one")) as one, replica(named(url, "other")) as other:
        outcome = asyncio.run(everything_once(url, [one.address, other.address], limits, load))
    return outcome.problems + one.problems() + other.problems()


def _streams(url: str) -> list[str]:
    with test_stream.as_many_files_as_may_be():
        return asyncio.run(test_stream.many_streams(url, STREAMS.torture))


def _graphs(url: str) -> list[str]:
    """LangGraph's; where it is installed."""
    if importlib.util.find_spec("langgraph") is None:
        return []
    from ..probes.graphs import attacked

    return attacked(url, KILLED_GRAPHS.torture, RACED_GRAPHS.torture)


def _examples(url: str) -> list[str]:
    """What the database makes of values, beside what Python does."""
    many = settings(max_examples=EXAMPLES.torture, deadline=None, suppress_health_check=list(HealthCheck))
    with connect(url) as db:
        many(given(test_canonical.LISTS)(lambda examples: test_canonical.forms_agree(db, examples)))()
        many(given(test_canonical.PAIRS)(lambda pairs: test_canonical.hashes_agree(db, pairs)))()
        many(given(test_state.PAIRS)(lambda pairs: test_state.changes_agree(db, pairs)))()
    return []


def _cron(url: str) -> list[str]:
    """Each change of the clocks of each zone, and random expressions, beside cronsim."""
    many = settings(max_examples=CRON_EXPRESSIONS.torture, deadline=None, suppress_health_check=list(HealthCheck))
    zones = st.sampled_from(test_cron.ZONES)
    with connect(url) as db:
        for zone in test_cron.ZONES:
            test_cron.agree_when_clocks_are_changed(db, zone, CLOCK_CHANGES.torture, (0, 7, 30, 67, 26 * 60))
        many(given(test_cron.expressions, zones, test_cron.MINUTES)(lambda *of: test_cron.agree_about_any(db, *of)))()
    return []


def _queue_workers(url: str) -> list[str]:
    with tempfile.TemporaryDirectory() as folder:
        return test_worker.kill_workers(Path(folder), url, KILLED_QUEUE_WORKERS.torture)


def _claimers(url: str) -> crowds.Outcome:
    runs, rate = CLAIMED_RUNS.torture, STARTS.torture
    outcome = crowds.claimers_under_fire(url, runs, CLAIMERS.torture, rate, KILLED_CLAIMERS.torture)
    reached = outcome.figures["most granted in a second"], outcome.figures["most granted of a key"]
    if reached != (rate, rate // crowds.KEYS_SHARE):
        outcome.found.append(f"no rate has held anybody up: {reached} were granted in a second")
    return outcome


def _year(url: str) -> crowds.Outcome:
    return crowds.a_year_goes_by(url, CLOCKS.torture, CLOCK_PROCESSES.torture, DAYS.torture)


def _deploys(url: str) -> list[str]:
    with tempfile.TemporaryDirectory() as folder:
        return test_worker.deploy(Path(folder), url, DEPLOYED_RUNS.torture, DEPLOYS.torture)


#: What each does with the URL of a migrated database; it returns the violations that it saw, or these and figures.
LONG: dict[str, Callable[[str], list[str] | crowds.Outcome]] = {
    "short leases": lambda url: probes.short_leases(url, grants=SHORT_LEASES.torture),
    "killed workers": lambda url: probe_workers.worker_kills(url, kills=KILLED_WORKERS.torture),
    "killed behind the work, in threads": lambda url: behind.killed_behind(url, KILLED_BEHIND.torture, "threads"),
    "killed behind the work, in tasks": lambda url: behind.killed_behind(url, KILLED_BEHIND.torture, "tasks"),
    "killed workers of queues": _queue_workers,
    "graphs": _graphs,
    "take-overs": lambda url: probes.takeovers(url, rounds=TAKE_OVERS.torture),
    "writers": lambda url: probes.event_order(url, writers=16, transactions=TRANSACTIONS.torture, steps=True),
    "random calls": lambda url: probes.stress(url, connections=16, calls=RANDOM_CALLS.torture),
    "deciders": _deciders,
    "cancellations": _cancellations,
    "killed chargers with keys": lambda url: _chargers(url, keyed=True),
    "killed chargers without": lambda url: _chargers(url, keyed=False),
    "subscribers": _subscribers,
    "streams": _streams,
    "examples": _examples,
    "expressions and clocks": _cron,
    "claimers": _claimers,
    "keys": lambda url: crowds.small_keys_beside_a_large_one(url, LARGE_KEY.torture, SMALL_KEYS.torture, 5),
    "a year": _year,
    "deploys": _deploys,
    "requests made up of the description": _described,
    "killed agents of Pydantic AI": lambda url: _agents(url, "pydantic_ai"),
    "killed agents of the OpenAI SDK": lambda url: _agents(url, "openai_agents"),
    "killed agents over HTTP": lambda url: _agents(url, "http"),
    "killed tasks of MCP": lambda url: _agents(url, "mcp"),
}
