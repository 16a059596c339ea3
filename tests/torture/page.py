"""The figures of the page that says why one can believe it: ``python -m tests.torture.page [REPORT]``.

It is made of the report of the last long run (``tests/torture/report.json``; a new REPORT takes its place) and of what
the tests say about themselves, so it cannot claim what is not there.
"""

from __future__ import annotations

import functools
import json
import shutil
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from .. import documents, test_mechanisms, test_races, test_schedules, test_torture
from ..test_isolation import SPECS
from .report import table

PAGE = Path(__file__).parents[1] / "README.md"
MAKER = "tests/torture/page.py"
REPORT = Path(__file__).with_name("report.json")

#: What is promised, by what it holds, and the probes that attack it (`tests/probes`), each seen failing.
PROMISES = (
    (
        "Queues: each run is granted once, what may go on comes back, limits hold, keys take turns; one run a key and"
        " a fire time",
        "an entry says where to look, the head decides, both with `skip locked`; the limited queue's row lock, slots"
        " that mean something while their lease is the run's; start-time fair queueing in one index; unique keys",
        (
            "each_once",
            "claims_wait_for_nobody",
            "only_what_is_free",
            "comes_back",
            "late_comers",
            "limits_hold",
            "young_limits_hold",
            "limits_hold_for_who_is_moved",
            "limits_end_with_their_time",
            "who_is_late_stays_in_order",
            "limits_under_fire",
            "small_keys_are_served",
            "a_low_priority_is_served",
            "one_of_a_key",
            "fires_once",
            "the_clock_waits_for_nobody",
            "wakes_who_sleeps",
            "ended_together",
            "bulk_waits_for_nobody",
        ),
    ),
    (
        "Push: an endpoint is told of a run once at a time, within the limits, and again until it was begun",
        "an entry that was told of is put off; what is on its way counts as what is leased; reports carry their number;"
        " an endpoint that fails has a line of its own",
        ("told_once", "endpoints_wait_for_nobody"),
    ),
    (
        "One holder; tokens only grow, also over a crash and a failover",
        "the head's row lock; the token in the same `update`; a timeline's tokens begin above all before",
        (
            "one_holder",
            "takeovers",
            "short_leases",
            "time_after_waiting",
            "tokens_of_what_is_gone",
            "tokens_of_another_place",
        ),
    ),
    (
        "A replaced holder writes nothing",
        "the token is compared in the statement that takes the lock",
        ("zombie", "replaced_while_waiting", "given_up", "lapsed_holder"),
    ),
    (
        "What was done before somebody else took over is stored, whatever the clock says",
        "only a grant, a release, a suspension or an end gives a token up; the newest token stores",
        ("paid_for", "a_grant_is_withdrawn_by_its_own_call"),
    ),
    (
        "A parent sleeps while its child waits, and no longer; a run does not kill worker after worker",
        "who comes further wakes who waits, under the locks of both; attempts that were cut short count",
        ("parents_are_woken", "no_wake_is_lost", "crashes_are_counted"),
    ),
    (
        "A completed step never runs again, its output never changes; another input is refused",
        "primary key; hash of the canonical input",
        (
            "one_begin",
            "successor_repeats",
            "same_request",
            "checkpoint_is_final",
            "same_input",
            "other_input",
            "worker_kills",
            "many_threads",
            "steps_together",
        ),
    ),
    (
        "The log is 1..n, in commit order, and nobody changes it",
        "a counter under the row lock; no privilege to update",
        ("commit_order", "event_order", "immutable_events", "doorbell", "watching_waits_for_nobody"),
    ),
    (
        "A gate has one decision, of somebody entitled",
        "decided under the lock; an HMAC as secret; a voter is a login, or who is named by a secret",
        (
            "deciders",
            "deciders_queued",
            "suspension",
            "all_that_is_shown",
            "a_secret_dies_with_its_gate",
            "one_vote_each",
        ),
    ),
    (
        "What may have taken effect is repeated only if a person says so",
        "an unfinished attempt parks the run",
        ("one_review",),
    ),
    (
        "State: versions 1..n, each as it was written",
        "numbered under the lock; changes composed",
        ("compare_and_set", "four_writers"),
    ),
    (
        "Cancelled and completed are final; time acts once",
        "a status in the fence; `skip locked`",
        ("cancelled_for_good", "reconciled_once", "one_delivery", "told_in_order"),
    ),
    (
        "Sums are exact, budgets hold, purging leaves no orphan, a fork is whole",
        "accounts locked from the run upwards; what goes is locked against who needs it",
        (
            "exact_sums",
            "nothing_begins_after_the_limit",
            "a_budget_that_comes_late",
            "purge_under_load",
            "purgers_wait_for_nobody",
            "fork_meets_compaction",
        ),
    ),
    (
        "Threads of LangGraph do not fork; nobody writes to one that is claimed; what values share stays",
        "the newest checkpoint is compared under the thread's row lock; the owner's token; chunks go by reference",
        (
            "one_goes_on",
            "one_begins",
            "branches_on_purpose",
            "nobody_else_writes",
            "who_was_replaced_writes_nothing",
            "shared_values_stay",
            "a_base_has_its_version",
            "a_deletion_waits",
        ),
    ),
    (
        "What is acknowledged survives; no deadlock; no error without its SQLSTATE",
        "synchronous commit where it counts; one lock order",
        ("durability", "lock_order", "stress"),
    ),
)


def probe_name(probe: Any) -> str:
    return str((probe.func if isinstance(probe, functools.partial) else probe).__name__)


def mutants() -> Counter[str]:
    """How many mechanisms were taken out, by the probe that noticed."""
    return Counter(probe_name(probe) for _, probe in test_mechanisms.MUTATIONS.values())


def render(report: dict[str, Any]) -> str:
    noticed = mutants()
    lines = [
        "| promise | mechanism | attacked by | mechanisms taken out, and noticed |",
        "| --- | --- | --- | ---: |",
    ]
    for promise, mechanism, probes in PROMISES:
        names = ", ".join(f"`{probe}`" for probe in probes)
        lines.append(f"| {promise} | {mechanism} | {names} | {sum(noticed[probe] for probe in probes)} |")
    more = len(test_schedules.MUTATIONS), len(test_races.MUTATIONS), len(test_torture.MUTATIONS) + 1
    lines += [
        "",
        f"That is {noticed.total()} mutations of the SQL which the probes notice. {more[0]} are noticed by the"
        f" schedules, {more[1]} by the races, {more[2]} by storms and failovers. {len(SPECS)} isolation specs say who"
        " waits for whom.",
        "",
        f"The last long run of `make torture`, {table(report)}",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    if len(sys.argv) > 1:
        shutil.copy(sys.argv[1], REPORT)
    documents.fill(PAGE, MAKER, render(json.loads(REPORT.read_text("utf-8"))))


if __name__ == "__main__":
    main()
