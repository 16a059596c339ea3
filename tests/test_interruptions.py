"""A few calls are held up at each of their statements in each test run; all of them by ``make torture``."""

from __future__ import annotations

import pytest

from . import test_mechanisms
from .conftest import long, on_newest
from .probes.support import Connection
from .torture.interruptions import Interrupter
from .torture.races import CALLS

SHARES = 9  # of the calls that meet them: one of them


@pytest.mark.breaks_invariants  # the functions are changed, and rows go before they are looked at
@on_newest("server")
@pytest.mark.parametrize(
    ("state", "calls"),
    [("completed", ("fork", "acquire", "create")), ("running", ("fork",))],
    ids=["completed", "running"],
)
@long
def test_a_call_that_is_held_up_is_as_one_before_or_after(state: str, calls: tuple[str, ...], database: str) -> None:
    with Interrupter(database) as interrupter:
        tally = interrupter.interrupt(state, calls, others=list(CALLS)[::SHARES])
    assert tally.violations == [], "\n\n".join(tally.violations[:3])
    assert tally.races > 20
    print(f"{state}: {tally.races} interruptions, in {tally.waited} of which the other call waited")


@pytest.mark.breaks_invariants
@on_newest("server")
def test_an_interruption_shows_that_a_mechanism_is_missing(database: str, db: Connection) -> None:
    mutation, _ = test_mechanisms.MUTATIONS["a run is compacted while it is forked"]
    for change in mutation:
        change.apply(db)
    with Interrupter(database) as interrupter:
        assert interrupter.interrupt("completed", ["fork"], others=["compact"]).violations
