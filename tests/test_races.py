"""Pairs of calls are raced from every state in each test run; all of them, at each level, by ``make torture``."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from . import test_mechanisms
from .conftest import on_newest
from .probes.support import Connection
from .support.model import Reference
from .torture.races import CALLS, LEVELS, QUEUE_STATES, STATES, Pair, Racer, all_pairs

SHARES = 100  # of all pairs: one of them
SHARES_OF_QUEUES = 2200  # they have many states, and each run of the tests takes a few pairs of each


@on_newest("server")
@pytest.mark.parametrize(
    ("state", "level"),
    [
        *((state, LEVELS[0]) for state in STATES if state not in QUEUE_STATES),
        *(("running", level) for level in LEVELS[1:]),
    ],
)
def test_calls_at_once_are_as_one_after_the_other(state: str, level: str, database: str) -> None:
    with Racer(database, level) as racer:
        tally = racer.race(state, all_pairs(state, list(STATES).index(state), SHARES))
    assert tally.violations == [], "\n\n".join(tally.violations[:3])
    assert tally.races > 0
    print(f"{state}, {level}: {tally.races} races, in {tally.waited} of which the second call waited")


@on_newest("server")
def test_calls_at_once_about_a_run_of_a_queue_are_as_one_after_the_other(database: str) -> None:
    with Racer(database) as racer:
        for place, state in enumerate(QUEUE_STATES):
            tally = racer.race(state, all_pairs(state, 71 * place, SHARES_OF_QUEUES))
            assert tally.violations == [], "\n\n".join(tally.violations[:3])


#: What races showed, once.
FOUND: dict[str, tuple[str, Pair]] = {
    "who watches a run that is purged meanwhile is told so": ("completed", ("purge", "watch")),
    "a checkpoint is handed out late, too": ("late", ("accept it", "begin what is in review")),
    "who replaces a run that is being cancelled makes another": ("queued", ("cancel", "replace it")),
    "who is not moved has no key where it did not come to": ("queued", ("append", "move many")),
    "a claim made twice at once is granted once, and told twice": ("queued", ("claim once", "claim once")),
}


@on_newest("server")
@pytest.mark.parametrize("name", FOUND)
def test_what_a_race_showed_is_mended(name: str, database: str) -> None:
    state, pair = FOUND[name]
    with Racer(database) as racer:
        assert racer.race(state, [pair]).violations == []


#: The mechanisms (of ``test_mechanisms``) without which a race shows, and which one does.
MUTATIONS: dict[str, tuple[str, Pair]] = {
    "a decider does not lock the head": ("running", ("approve", "reject")),
    "a grant does not lock the head": ("lapsed", ("acquire", "acquire")),
    "the fence compares the token before it has the lock": ("lapsed", ("acquire", "append")),
    "a version is numbered before the lock is held": ("running", ("set", "set the second version")),
    "the totals are read before they are written": ("running", ("use", "use in the child")),
    "a claim that is made again does not wait for its answer": ("queued", ("claim once", "claim once")),
    "who replaces a run does not wait for who ends it": ("queued", ("cancel", "replace it")),
}


#: Mechanisms that no probe takes out.
OF_QUEUES = {
    "a claim that is made again does not wait for its answer": (
        test_mechanisms.Edit("claim_runs", "perform pg_advisory_xact_lock(hashtextextended(request_id, 0));", ""),
    ),
    "who replaces a run does not wait for who ends it": (
        test_mechanisms.Edit(
            "enqueue_run", "perform from run_heads h where h.run_id = taken.run_id for no key update;", ""
        ),
    ),
}


@pytest.mark.breaks_invariants
@on_newest("server")
@pytest.mark.parametrize("name", MUTATIONS)
def test_a_race_shows_that_a_mechanism_is_missing(name: str, database: str, db: Connection) -> None:
    """Otherwise thousands of races would prove nothing. It takes a race to see it: in turn, all is well."""
    state, pair = MUTATIONS[name]
    with Racer(database) as racer:
        assert racer.race(state, [pair]).violations == []
    mutation = OF_QUEUES[name] if name in OF_QUEUES else test_mechanisms.MUTATIONS[name][0]
    for change in mutation:
        change.apply(db)
    with Racer(database) as racer:
        assert racer.race(state, [pair]).violations


FUNCTIONS = Path(__file__).parents[1] / "sql" / "functions"
DEFINITION = re.compile(r"create or replace function tidebase\.(\w+)\((.*?)\nas \$\$", re.DOTALL)

THREADS = "about a thread of LangGraph, which is no run: probes.threads, probes.graphs"
#: Functions that may write, and are neither in the model nor raced.
ATTACKED_ELSEWHERE = {
    "claim_thread": THREADS,
    "copy_thread": THREADS,
    "delete_checkpoints_of_runs": THREADS,
    "delete_thread": THREADS,
    "prune_threads": THREADS,
    "put_checkpoint": THREADS,
    "put_checkpoint_writes": THREADS,
    "complete_runs": "it leaves out who is locked at that moment, in no order of calls: probes.queues.ended_together",
    "record_steps_of_runs": "so does this: probes.kernel.steps_together",
    "measure": "it only reads, by the clock",
    "ready_in": "it only reads, by the clock",
    "new_run_id": "it makes an id, and stores nothing",
}


def test_whatever_writes_is_in_the_model_or_raced() -> None:
    sources = "\n".join(path.read_text("utf-8") for path in sorted(FUNCTIONS.glob("*.sql")))
    writing = {name for name, head in DEFINITION.findall(sources) if re.search(r"\bvolatile\b", head)}
    raced = {name for call in CALLS.values() for name in re.findall(r"\b(\w+)\(", call)}
    attacked = {name for name in writing if name in raced or hasattr(Reference, name)}
    assert len(writing) > 70
    assert writing - attacked == ATTACKED_ELSEWHERE.keys()
