"""Some schedules of a few casts are walked in each test run; all of all casts by ``make torture``."""

from __future__ import annotations

import psycopg
import pytest

from .conftest import SERVERS, long, on_newest
from .probes.support import connect
from .test_mechanisms import GRANT, LIVE, Edit
from .torture.cast import APPROVER, CASTS, LAPSE, Cast, Worker, clock
from .torture.schedules import Explorer

SHARES = 7  # of the schedules that are walked one by one
MERGED = 3  # of those that are merged where they meet
CLAIMED = 9  # of those in which a call looks at whole queues


@pytest.mark.parametrize(
    ("name", "server"),
    [
        ("two leases run out", max(SERVERS, default=None)),
        ("a reviewer", max(SERVERS, default=None)),
        ("a canceller", max(SERVERS, default=None)),
        ("two claimers", max(SERVERS, default=None)),
        ("an endpoint", max(SERVERS, default=None)),
    ],
    indirect=["server"],
)
@long
def test_schedules_of_a_cast_keep_the_invariants(name: str, database: str) -> None:
    with connect(database) as connection:
        tally = Explorer(connection).run(CASTS[name], 0, CLAIMED if CASTS[name].queued else MERGED, merged=True)
    assert tally.violations == [], "\n\n".join(tally.violations[:3])
    print(f"{name}: {tally.schedules:,} schedules, {tally.calls:,} calls, up to {tally.longest} in a row")


@on_newest("server")
@long
def test_schedules_keep_the_invariants_one_by_one(database: str) -> None:
    with connect(database) as connection:
        tally = Explorer(connection).run(CASTS["two leases run out"], 0, SHARES)
    assert tally.violations == [], "\n\n".join(tally.violations[:3])
    assert tally.schedules == tally.executed > 1000


@on_newest("server")
def test_merged_schedules_are_as_many_as_there_are_one_by_one(db: psycopg.Connection[object]) -> None:
    cast = Cast("small", (Worker("A", polls=2, crashes=True), clock(LAPSE), APPROVER))
    explorer = Explorer(db)
    one_by_one, merged = explorer.run(cast), explorer.run(cast, merged=True)
    assert one_by_one.violations == merged.violations == []
    assert one_by_one.schedules == merged.schedules > 3 * merged.executed


#: What is taken out, and the cast of which a schedule shows it.
MUTATIONS = (
    (Edit("is_taken", LIVE, "return false and"), "two leases run out"),
    (Edit("acquire_run", GRANT, "greatest(h.lease_token, 1)"), "two leases run out"),
    (Edit("fence", "and h.lease_token = fence.token", ""), "two leases run out"),
    (Edit("fence", "and h.status = 'running'", ""), "a canceller"),
    (Edit("complete_run", "and h.lease_token = complete_run.token and h.status = 'running'", ""),
     "a canceller and an approver"),
    (Edit("allows_repetition", "idempotency_key is not null or not", "not false or not"), "two leases run out"),
    (Edit("fence_done", "h.lease_token = fence_done.token and", ""), "two leases run out"),
    (Edit("begun_already", "step.request_id = request_id", "false"), "lost answers"),
    (Edit("begun_already", "perform tidebase_private.give_back(head, 1);", ""), "two leases run out"),
    (Edit("mark_lapsed", "return true", "perform tidebase_private.give_up(head); return true"), "a reconciler"),
    (Edit("settle_gate", "head.status = 'waiting'", "false"), "a gate in time"),
    (Edit("decide_gate", "if gate.status = 'decided' then", "if false then"), "two approvers"),
    (Edit("suspend_run", "gate.status = 'decided' or", ""), "two approvers"),
    (Edit("resolve_review", "and s.status = 'review';", ";"), "a reviewer"),
    (Edit("renew_lease", "and h.lease_token = renew_lease.token", ""), "a heartbeat"),
    (Edit("decide_replay", "else 'manual_review' end", "else 'safe_replay' end"), "errors"),
    (Edit("mark_lapsed", "perform tidebase_private.requeue(head);", "null;"), "claimers"),
    (Edit("invoke", "'sending', as_of + ttl)", "'sending', as_of)"), "an endpoint"),
    (Edit("finish_invocation", "head.attempt >= told.attempt", "false"), "an endpoint"),
    (Edit("fail_run", "s.status = 'review') then 'review'", "s.status = 'review') then 'failed'"), "errors"),
)  # fmt: skip


@pytest.mark.breaks_invariants
@on_newest("server")
@pytest.mark.parametrize(
    ("mutation", "name"),
    MUTATIONS,
    ids=lambda value: f"{value.function}: {value.text}"[:60] if isinstance(value, Edit) else "",
)
def test_a_schedule_shows_that_a_mechanism_is_missing(
    mutation: Edit, name: str, db: psycopg.Connection[object]
) -> None:
    """Otherwise a million schedules would prove nothing."""
    mutation.apply(db)
    explorer = Explorer(db)
    explorer.stop = lambda: bool(explorer.tally.violations)
    assert explorer.run(CASTS[name], merged=True).violations
