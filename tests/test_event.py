"""The log under attack: 1..n without a gap, nothing new below what a reader has seen, nothing changed, no lost bell.

The probes are in ``probes``; each is seen failing without its mechanism in ``test_mechanisms``.
"""

from __future__ import annotations

import pytest

from .conftest import long
from .probes import kernel as probes
from .support.amounts import TRANSACTIONS


@pytest.mark.parametrize("steps", [False, True], ids=["events", "events and steps"])
@long
def test_sixteen_writers_of_whom_some_roll_back_leave_no_gap(database: str, steps: bool) -> None:
    """I4: a reader that polls all the while sees 1, 2, 3 ..., and in the end what it was given is what is stored."""
    assert probes.event_order(database, writers=16, transactions=TRANSACTIONS.test, steps=steps) == []


def test_nobody_gets_past_a_transaction_that_has_not_ended(database: str) -> None:
    """I4, forced: an event that was numbered, and may still be rolled back, holds up every later one."""
    assert probes.commit_order(database) == []


def test_nobody_can_change_or_delete_an_event(database: str) -> None:
    """I4: not even the owner, with whose rights the functions run, may rewrite or empty the log."""
    assert probes.immutable_events(database) == []


def test_commit_of_a_watched_run_rings_and_of_an_unwatched_one_does_not(database: str) -> None:
    """A notification takes a server-wide lock at commit, so only a run that somebody follows pays for it."""
    assert probes.doorbell(database) == []


def test_nothing_falls_between_a_watch_and_the_read_after_it(database: str) -> None:
    """Forced: the watch begins while a write is under way."""
    assert probes.watching_waits_for_nobody(database) == []
