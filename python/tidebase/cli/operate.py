"""The commands that act on runs: ``stalled``, ``cancel``, ``recover``, ``fork``, ``budget``, ``channels``, ``size``,
``compact``, ``purge``, ``reconcile``.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from datetime import timedelta
from decimal import Decimal
from itertools import chain
from typing import Any

import click

from ..client.tide import Tidebase
from ..core.errors import DatabaseUnavailable
from ..core.hints import command
from ..domain.courier import Courier, delivering
from .output import (
    AMOUNT,
    DURATION,
    JSON,
    PAUSE,
    SEQ,
    VERSION,
    age,
    common,
    connected,
    print_fields,
    print_json,
    print_line,
    print_table,
    until_stopped,
)
from .people import actor_option
from .queues import bulk_filter, failure_class_option, in_batches
from .runs import status_of

_BATCH = 1000


@click.command()
@common
def stalled(database: str | None, as_json: bool) -> None:
    """List the runs that do not go on by themselves, and why. Exits with 1 when there are any."""
    with connected(database) as tide:
        found = tide.runs.stalled()
    if as_json:
        print_json(found)
    else:
        rows = [(s.run_id, s.workflow, s.status, s.reason, age(s.since), s.holder) for s in found]
        print_table(("run", "workflow", "status", "reason", "since", "holder"), rows, "no run is stalled")
        for reason, run_id in {s.reason: s.run_id for s in reversed(found)}.items():
            print_line(_next(reason, run_id), err=True)
    if found:
        raise SystemExit(1)


def _next(reason: str, run_id: str) -> str:
    """What could be done, so that a run goes on that is stalled for this reason."""
    if reason == "review":
        return f"A person must decide: {command('reviews', run_id)}"
    if reason == "overdue":
        return f"Look at what has run out: {command('reconcile')}"
    if reason == "lease_lapsed":
        return f"Let another worker go on with it: {command('recover', run_id)}"
    return f"Nobody works on it; call tide.run with its id, where its workflow is known: {command('show', run_id)}"


#: The statuses of runs that can be cancelled.
_ALIVE = ["pending", "queued", "running", "waiting", "review", "failed"]


@click.command()
@common
@click.argument("run_id", metavar="[RUN]", required=False)
@bulk_filter
@click.option("--status", type=click.Choice(_ALIVE), help="Those in this status.")
@failure_class_option
@click.option("--reason", help="Why, for the log.")
@actor_option
@click.option("--cascade/--no-cascade", default=None, help="Of RUN: its descendants, too. [default: cascade]")
def cancel(
    database: str | None,
    as_json: bool,
    run_id: str | None,
    dry_run: bool,
    reason: str | None,
    actor: str | None,
    cascade: bool | None,
    **which: Any,
) -> None:
    """Cancel a run for good; or all runs that are not over and that the filters find, each by itself."""
    filtered = dry_run or any(value is not None for value in which.values())
    if (run_id is None) == (not filtered):
        raise click.UsageError("give either a RUN, or filters such as --queue, --workflow or --status")
    if run_id is None and cascade is not None:
        raise click.UsageError("--cascade and --no-cascade go with a RUN")
    which |= {"reason": reason, "actor": actor}
    with connected(database) as tide:
        if run_id is None:
            in_batches("cancelled", lambda **how: tide.runs.cancel_many(**which, **how), dry_run, as_json)
            return
        run = tide.runs.cancel(tide.runs.find(run_id), reason=reason, actor=actor, cascade=cascade is not False)
    _print_run(run, as_json)


@click.command()
@common
@click.argument("run_id", metavar="RUN")
@click.option("--reason", default="manual", show_default=True, help="Why, for the log.")
@actor_option
def recover(database: str | None, as_json: bool, run_id: str, reason: str, actor: str | None) -> None:
    """Make a run that its worker left, or that failed, available to the next worker at once."""
    with connected(database) as tide:
        run_id = tide.runs.find(run_id)
        recovery = tide.runs.recover(run_id, reason, actor=actor)
    if as_json:
        print_json(recovery)
    else:
        print_fields(asdict(recovery))


@click.command()
@common
@click.argument("run_id", metavar="RUN")
@click.argument("new_run_id", metavar="[NEW]", required=False)
@click.option("--through-step", metavar="STEP", help="Up to and with this step.")
@click.option("--through-seq", type=SEQ, metavar="N", help="Up to and with this event.")
@click.option("--input", "given", type=JSON, metavar="JSON", help="Another input: JSON, @FILE, or -.")
@click.option("--reason", help="Why, for the log.")
@actor_option
def fork(database: str | None, as_json: bool, run_id: str, new_run_id: str | None, given: Any, **point: Any) -> None:
    """Make a new run that begins with what another one had at a point."""
    if None not in (point["through_step"], point["through_seq"]):
        raise click.UsageError("--through-step and --through-seq exclude each other")
    with connected(database) as tide:
        run_id = tide.runs.find(run_id)
        run = tide.runs.fork(run_id, new_run_id, input=given, **point)
    _print_run(run, as_json)


def _print_run(run: Any, as_json: bool) -> None:
    if as_json:
        print_json(run)
    else:
        print_fields({"run_id": run.run_id, "status": status_of(run), "steps_completed": run.steps_completed})


@click.command()
@common
@click.argument("run_id", metavar="RUN")
@click.option(
    "--cost-usd", type=AMOUNT, metavar="USD", help="What it may cost from its beginning, with its descendants: 12.50."
)
@click.option("--tokens", type=SEQ, metavar="N", help="How many tokens it may use.")
@click.option("--none", "unlimited", is_flag=True, help="Take the limits away.")
@click.option("--reason", help="Why, for the log.")
@actor_option
def budget(
    database: str | None,
    as_json: bool,
    run_id: str,
    cost_usd: Decimal | None,
    tokens: int | None,
    unlimited: bool,
    **who: Any,
) -> None:
    """Set what a run and its descendants may use together. What is not given is not limited."""
    if unlimited == (cost_usd is not None or tokens is not None):
        raise click.UsageError("give --cost-usd, --tokens or both, or else --none")
    with connected(database) as tide:
        run_id = tide.runs.find(run_id)
        totals = tide.runs.set_budget(run_id, cost_usd=cost_usd, tokens=tokens, **who)
    if as_json:
        print_json(totals)
    else:
        limits = {"cost_limit_usd": totals.cost_limit_usd, "token_limit": totals.token_limit}
        print_fields({"run_id": run_id, **(limits if not unlimited else {"limits": "none"})})


@click.command()
@common
@click.argument("run_id", metavar="RUN")
@click.option("--retry", type=VERSION, metavar="N", help="Try this one again at once.")
@click.option("--remove", type=VERSION, metavar="N", help="Send nothing more to this one.")
def channels(database: str | None, as_json: bool, run_id: str, retry: int | None, remove: int | None) -> None:
    """List whom a run tells what happens to it, and how far each is told."""
    with connected(database) as tide:
        run_id = tide.runs.find(run_id)
        if retry is not None:
            tide.runs.retry_channel(run_id, retry)
        if remove is not None:
            tide.runs.remove_channel(run_id, remove)
        found = tide.runs.channels(run_id)
    if as_json:
        print_json(found)
        return
    rows = [
        (
            c.channel,
            c.url,
            ", ".join(c.events or ["all"]),
            c.status,
            c.delivered_seq,
            c.failures,
            c.http_status,
            c.error,
        )
        for c in found
    ]
    print_table(("channel", "url", "events", "status", "told", "failures", "http", "error"), rows, "no channels")


@click.command()
@common
@click.argument("run_id", metavar="RUN")
def size(database: str | None, as_json: bool, run_id: str) -> None:
    """Say what a run stores, in rows and bytes."""
    with connected(database) as tide:
        run_id = tide.runs.find(run_id)
        stored = tide.runs.size(run_id)
    if as_json:
        print_json(stored)
    else:
        print_fields(asdict(stored))


@click.command()
@common
@click.argument("run_ids", metavar="RUN...", nargs=-1, required=True)
def compact(database: str | None, as_json: bool, run_ids: tuple[str, ...]) -> None:
    """Take outputs and old states of runs away that are over; the log and the result stay."""
    with connected(database) as tide:
        done = {run_id: tide.runs.compact(run_id) for run_id in map(tide.runs.find, run_ids)}
    if as_json:
        print_json(done)
        return
    for run_id, changed in done.items():
        print_line(f"{run_id}: {'compacted' if changed else 'was compacted before'}")


@click.command()
@common
@click.option("--older-than", type=DURATION, required=True, metavar="AGE", help="Over for longer than this: 30d.")
@click.option(
    "--status",
    "statuses",
    multiple=True,
    type=click.Choice(["completed", "failed", "cancelled"]),
    help="Only those; may be given more than once. [default: all three]",
)
@click.option("--max", "limit", type=click.IntRange(1), metavar="N", help="How many at most. [default: all]")
def purge(
    database: str | None, as_json: bool, older_than: timedelta, statuses: tuple[str, ...], limit: int | None
) -> None:
    """Delete runs that have been over for long, with everything that hangs on them; in batches."""
    deleted = 0
    with connected(database) as tide:
        while limit is None or deleted < limit:
            batch = _BATCH if limit is None else min(_BATCH, limit - deleted)
            gone = tide.runs.purge(older_than, statuses=list(statuses) or None, max=batch)
            deleted += gone
            if gone < batch:
                break
    if as_json:
        print_json({"deleted": deleted})
    else:
        click.echo(f"deleted: {deleted} run{'' if deleted == 1 else 's'}")


@click.command()
@common
@click.option("--every", type=PAUSE, metavar="TIME", help="Again and again, with this pause: 5s.")
@click.option(
    "--webhooks",
    is_flag=True,
    help="Also deliver recovery webhooks, events to channels, and runs to the endpoints of their queues;"
    " TIDEBASE_WEBHOOK_SECRET signs what has no secret.",
)
@click.option(
    "--private-receivers",
    is_flag=True,
    help="Deliver them to addresses that are not public, too: this machine, private networks, metadata services.",
)
def reconcile(
    database: str | None, as_json: bool, every: timedelta | None, webhooks: bool, private_receivers: bool
) -> None:
    """Look at what has run out: leases, gates, timers, deadlines. Any number of processes may do it at once.

    Without --every it ends when nothing is due any more. With it, channels and endpoints are told as things happen.
    """
    if private_receivers and not webhooks:
        raise click.UsageError("--private-receivers goes with --webhooks")
    with connected(database) as tide:
        couriers: dict[str, Courier[Any]] = {
            "webhooks": tide.dispatcher(allow_private=private_receivers),
            "channels": tide.channel_dispatcher(allow_private=private_receivers),
            "endpoints": tide.push_dispatcher(allow_private=private_receivers),
        }
        if every is None:
            done = _all_due(tide)
            if webhooks:
                done.update({name: courier.dispatch(None) for name, courier in couriers.items()})
            _print_done(done, as_json)
            return
        pauses = until_stopped(every.total_seconds())
        first = next(pauses)  # from here on SIGTERM is heard
        with delivering(*couriers.values() if webhooks else ()):
            for _ in chain([first], pauses):
                try:
                    done = _all_due(tide)
                except DatabaseUnavailable as error:  # it comes back, and so do we
                    print_line(f"Error: {error}", err=True)
                    continue
                if any(done.values()):
                    _print_done(done, as_json)


def _all_due(tide: Tidebase) -> Counter[str]:
    done: Counter[str] = Counter()
    while True:
        looked_at = asdict(tide.reconcile(_BATCH))
        done.update(looked_at)
        if looked_at["runs"] < _BATCH:
            break
    return done


def _print_done(done: Counter[str], as_json: bool) -> None:
    if as_json:
        print_json(dict(done))
    else:
        click.echo(", ".join(f"{name}: {number}" for name, number in done.items()))


COMMANDS = [stalled, cancel, recover, fork, budget, channels, size, compact, purge, reconcile]
