"""What people look at: lists, counts and inboxes among a million runs and a hundred thousand gates."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

from .harness import Bench, Row, scenario, spread

#: A million runs of ten workflows, two thirds of them children; few are alive, one in a hundred has failed.
FILL = (
    """
    insert into tidebase.runs (run_id, workflow, created_at, finished_at, parent_run_id)
    select 'listed' || i, 'workflow ' || mod(i, 10), t, t, case when mod(i, 3) > 0 then 'listed' || i - mod(i, 3) end
    from generate_series(1, %(runs)s) i, lateral (select now() - (%(runs)s - i) * interval '1 second' as t) made
    """,
    """
    insert into tidebase.run_heads (run_id, last_seq, lease_token, attempt, status, lease_expires_at, waiting_for,
      created_at, updated_at, workflow_key)
    select r.run_id, 1, 1, 1, status, case when status = 'running' then now() + interval '1 day' end,
      case when status = 'waiting' then 'g' end, r.created_at, r.created_at, hashtextextended(r.workflow, 0)
    from tidebase.runs r, lateral (select substring(r.run_id from 7)::integer as i) n,
      lateral (select case when mod(i, 1000) = 0 then 'running' when mod(i, 1000) = 1 then 'waiting'
        when mod(i, 1000) = 2 then 'review' when mod(i, 100) = 3 then 'failed' when mod(i, 100) = 4 then 'cancelled'
        else 'completed' end as status) s
    where starts_with(r.run_id, 'listed')
    """,
    """
    insert into tidebase.gates (run_id, name, status, data, shown_hash, options, created_at)
    select 'listed' || i, 'g', case when mod(i, 2) = 0 then 'pending' else 'cancelled' end, '{}', '', '{approved}',
      now()
    from generate_series(1, %(gates)s) i
    """,
    "vacuum analyze tidebase.runs, tidebase.run_heads, tidebase.gates",
)


@scenario
def lists(bench: Bench) -> Iterator[Row]:
    """Pages of a hundred by every filter, counts and inboxes, among a million runs and a hundred thousand gates."""
    sizes = {"runs": bench.size(1_000_000, 3000), "gates": bench.size(100_000, 300)}
    for query in FILL:
        bench.connection.execute(query, sizes if "%(" in query else None)  # type: ignore[arg-type]
    tide = bench.tide
    middle = tide.runs.get(f"listed{sizes['runs'] // 2}")
    pages: dict[str, Callable[[], Any]] = {
        "the newest": tide.runs.list,
        "from the middle on": lambda: tide.runs.list(before=middle),
        "roots": lambda: tide.runs.list(roots=True),
        "of a workflow": lambda: tide.runs.list(workflow="workflow 7", before=middle),
        "of a time": lambda: tide.runs.list(created_before=middle.created_at),
        **{
            status: lambda status=status: tide.runs.list(status=status)  # type: ignore[misc]
            for status in ("completed", "failed", "running", "waiting", "review", "cancelled", "pending")
        },
        "failed ones of a workflow": lambda: tide.runs.list(workflow="workflow 3", status="failed"),
        "completed ones of a workflow": lambda: tide.runs.list(
            workflow="workflow 3", status="completed", before=middle
        ),
        "running ones of a workflow that has none": lambda: tide.runs.list(workflow="workflow 7", status="running"),
        "gates that wait": tide.gates.list,
        "all gates": lambda: tide.gates.list(status=None),
        "gates that are over": lambda: tide.gates.list(status="cancelled"),
    }
    for name, page in pages.items():
        yield milliseconds(bench, f"a page, {name}", page, 25)
    yield milliseconds(bench, "counts by status", tide.runs.count, 50)
    yield milliseconds(bench, "stalled runs", tide.runs.stalled, None)
    yield milliseconds(bench, "reconcile, nothing due", tide.reconcile, 25)


def milliseconds(bench: Bench, name: str, call: Callable[[], Any], bar: float | None) -> Row:
    """How long the call takes."""
    call()
    times = []
    for _ in range(bench.rounds * 3):
        begun = time.perf_counter()
        call()
        times.append((time.perf_counter() - begun) * 1000)
    return spread("lists", name, times, "ms", bar, at_least=False)
