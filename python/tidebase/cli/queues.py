"""The commands about queues: ``worker``, ``enqueue``, ``queues``, ``queue``, ``invocations``, ``workers``,
``schedules``, ``schedule``, ``retry``, ``move``.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from datetime import datetime, timedelta
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import click

from ..client.tide import Tidebase
from ..client.tide_async import AsyncTidebase
from ..client.worker import Worker
from ..client.worker_async import AsyncWorker
from ..core.errors import NotFound, TidebaseError
from ..domain.bulk import Bulk
from ..domain.courier import delivering
from ..domain.webhook import SECRET_VARIABLE
from .found import found_object
from .output import (
    DURATION,
    JSON,
    PAUSE,
    TIME,
    age,
    common,
    connected,
    print_fields,
    print_json,
    print_line,
    print_table,
    short,
)
from .people import actor_option

_BATCH = 500

#: The length of a progress bar of which nobody knows how long it is.
_UNKNOWN = 1_000_000


@click.command()
@click.argument("target", metavar="MODULE:OBJECT")
@click.option(
    "--queue",
    "-q",
    "queues",
    multiple=True,
    metavar="NAME",
    help="From which: -q mail -q other, the first one first. [default: default]",
)
@click.option(
    "--concurrency", type=click.IntRange(1), default=8, show_default=True, help="Runs at once in each process."
)
@click.option("--processes", type=click.IntRange(1, 1000), default=1, show_default=True, help="How many of them.")
@click.option(
    "--drain",
    type=PAUSE,
    default="30s",
    show_default=True,
    metavar="TIME",
    help="How long runs may go on after SIGTERM; then another worker does.",
)
@click.option(
    "--poll",
    type=PAUSE,
    default="10s",
    show_default=True,
    metavar="TIME",
    help="How often to look for itself: what is enqueued wakes it, but through a pooler that drops LISTEN say 1s.",
)
@click.option(
    "--suspend/--no-suspend",
    default=True,
    show_default=True,
    help="A run that waits for a person, a long timer or somebody else's child frees its hand.",
)
@click.option(
    "--webhooks",
    is_flag=True,
    help="Also deliver webhooks, to channels, and to endpoints of queues; TIDEBASE_WEBHOOK_SECRET signs.",
)
@click.option(
    "--private-receivers",
    is_flag=True,
    help="Deliver them to addresses that are not public, too: this machine, private networks, metadata services.",
)
@click.option(
    "--metrics",
    type=click.IntRange(1, 65535),
    metavar="PORT",
    help="Serve /metrics for Prometheus there, and /health and /ready for orchestrators.",
)
def worker(
    target: str,
    queues: tuple[str, ...],
    concurrency: int,
    processes: int,
    drain: timedelta,
    poll: timedelta,
    suspend: bool,
    webhooks: bool,
    private_receivers: bool,
    metrics: int | None,
) -> None:
    """Work on what queues have, until SIGTERM or Ctrl-C.

    MODULE:OBJECT is your Tidebase, or AsyncTidebase, with its workflows, which also says where the database is.
    The module is looked for in the current folder, too. Only workflows that it registers are taken.

    It also takes up what others have lost, and fires schedules: no other process is needed. Start as many as you like.

    \b
    tidebase worker myapp.workflows:tide
    tidebase worker myapp.workflows:tide -q mail -q default --concurrency 8 --processes 2
    """
    logging.getLogger("tidebase").setLevel(logging.INFO)
    for name in queues:
        if "," in name:  # as other workers have it; but it may be one queue's name
            print_line(f"One queue is called {name!r}. For several, say --queue again for each.", err=True)
    if private_receivers and not webhooks:
        raise click.UsageError("--private-receivers goes with --webhooks")
    if processes > 1:
        raise SystemExit(_several(processes, metrics))
    tide = found_object(target, (Tidebase, AsyncTidebase))
    options: dict[str, Any] = {
        "concurrency": concurrency,
        "drain_s": drain.total_seconds(),
        "poll_s": poll.total_seconds(),
        "suspend": suspend,
    }
    if not tide._registry.names():
        raise TidebaseError(f"{target} has no workflows", hint="Register them with @tide.workflow(name).")
    made = tide.worker(list(queues) or ["default"], **options)
    if metrics is not None:
        serve_metrics(tide.url, metrics, made)
    if webhooks and not os.environ.get(SECRET_VARIABLE):
        raise TidebaseError("webhooks cannot be signed without a secret", hint=f"Set {SECRET_VARIABLE}.")
    with _delivering(tide.url, private_receivers) if webhooks else nullcontext():
        if isinstance(made, AsyncWorker):
            asyncio.run(_work_async(tide, made))
        else:
            with tide:
                made.run()


async def _work_async(tide: AsyncTidebase, worker: AsyncWorker) -> None:
    async with tide:
        await worker.run()


def _several(processes: int, metrics: int | None) -> int:
    """Starts this command so many times, each for one process, and ends when all have."""
    arguments = list(sys.argv[1:])
    for at, argument in enumerate(arguments):
        if argument.startswith("--processes="):
            arguments[at] = "--processes=1"
        elif argument == "--processes":
            arguments[at + 1] = "1"
    started = []
    for number in range(processes):
        own = list(arguments)
        if metrics is not None and number > 0:  # each has a port of its own, counted up
            own += ["--metrics", str(metrics + number)]
        started.append(subprocess.Popen([sys.executable, "-m", "tidebase.cli", *own], start_new_session=True))
    stopping = threading.Event()

    def stop(*_: object) -> None:
        stopping.set()
        for process in started:
            process.send_signal(signal.SIGTERM)

    for number in (signal.SIGTERM, signal.SIGINT):
        # In a thread of its own: the one that is interrupted may have the event's lock, which the handler would want.
        signal.signal(number, lambda *_: threading.Thread(target=stop, daemon=True).start())
    while not stopping.wait(0.5):
        if any(process.poll() is not None for process in started):  # whoever started us shall start all of them again
            stop()
    codes = [process.wait() for process in started]
    return max(abs(code) for code in codes)


def serve_metrics(url: str, port: int, worker: Worker | AsyncWorker) -> None:
    """Serves what Prometheus and orchestrators ask of a worker, in threads that end with the process."""
    try:
        from prometheus_client import make_wsgi_app

        from ..views.metrics import registry
    except ImportError:
        raise TidebaseError("metrics need prometheus-client", hint="pip install 'tidebase-postgres[metrics]'") from None
    metrics = make_wsgi_app(registry(Tidebase(url, pool_size=1), worker.tally))
    looks = {"/health": lambda: worker.is_alive, "/ready": lambda: worker.is_ready}

    def serve(environ: dict[str, Any], start: Callable[..., Any]) -> Any:
        look = looks.get(environ.get("PATH_INFO", ""))
        if look is None:
            return metrics(environ, start)
        well = look()
        start("200 OK" if well else "503 Service Unavailable", [("content-type", "application/json")])
        return [b'{"ok": %s}' % (b"true" if well else b"false")]

    server = make_server("", port, serve, server_class=_Threads, handler_class=_Silent)
    threading.Thread(target=server.serve_forever, name="tidebase-metrics", daemon=True).start()


class _Threads(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _Silent(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """Nobody reads that somebody asks every few seconds."""


@contextmanager
def _delivering(url: str, private_receivers: bool) -> Iterator[None]:
    """Delivers webhooks, to channels and to endpoints beside the work, in other threads; what is being sent is sent."""
    tide = Tidebase(url)
    with delivering(
        tide.dispatcher(allow_private=private_receivers),
        tide.channel_dispatcher(allow_private=private_receivers),
        tide.push_dispatcher(allow_private=private_receivers),
    ):
        yield


@click.command()
@common
@click.argument("workflow")
@click.option("--input", "given", type=JSON, metavar="JSON", help="What it is called with: JSON, @FILE, or -.")
@click.option("--queue", "-q", default="default", show_default=True, metavar="NAME", help="Where it waits.")
@click.option("--id", "run_id", metavar="RUN", help="Its id, else one is made: the same id is the same run.")
@click.option("--priority", type=int, default=0, show_default=True, help="Higher ones first.")
@click.option("--delay", type=DURATION, metavar="TIME", help="Not before so long has passed: 30s, 10m, 2h.")
@click.option("--at", "run_at", type=TIME, metavar="TIME", help="Not before then: 2030-01-31T08:00+01:00.")
@click.option("--key", metavar="KEY", help="Whose run it is: the queue is fair between keys, and may limit each.")
@click.option("--dedupe-key", metavar="KEY", help="At most one run of the queue that is not over has it.")
@click.option(
    "--on-duplicate",
    type=click.Choice(["return", "replace", "reject"]),
    help="What another one with that key gets: the run that is there (return, the default), the same with this"
    " input and time if it has not begun (replace), or an error (reject).",
)
@click.option(
    "--max-attempts", type=click.IntRange(1, 1000), help="How often it is tried. [default: the queue's, or 5]"
)
@click.option("--pin", is_flag=True, help="Only the code that it began with goes on with it.")
def enqueue(
    database: str | None, as_json: bool, workflow: str, given: Any, delay: timedelta | None, **how: Any
) -> None:
    """Enqueue a run of WORKFLOW, by the name under which it is registered, for whoever works on the queue.

    Prints the run's id: tidebase show says what became of it.

    \b
    tidebase enqueue welcome --input '{"user": "Ada"}' --queue mail
    """
    options = {name: value for name, value in how.items() if value is not None}
    if delay is not None:
        options["delay_s"] = delay.total_seconds()
    with connected(database) as tide:
        made = tide.enqueue(workflow, given, **options)
    if as_json:
        print_json(made)
    else:
        print_fields({"run_id": made.run_id, "was there": "yes" if made.deduplicated else "no"})


@click.command()
@common
def queues(database: str | None, as_json: bool) -> None:
    """List the queues: what waits, what is at work, what holds it back."""
    with connected(database) as tide:
        found = tide.queues.list()
    if as_json:
        print_json(found)
        return
    names = ("queue", "ready", "delayed", "running", "waiting", "review", "failed", "oldest", "held back by")
    rows = [
        (q.queue, q.ready, q.delayed, q.running, q.waiting, q.review, q.failed, age(q.oldest_ready), q.held_back_by)
        for q in found
    ]
    print_table(names, rows, "no queues")


_LIMITS = {
    "concurrency": "How many of its runs may be at work at once.",
    "key-concurrency": "How many with the same key.",
    "rate": "How many may begin within a period.",
    "key-rate": "How many with the same key.",
    "max-attempts": "How often a run is tried that says nothing of it.",
}


def _limits(command: Callable[..., Any]) -> Callable[..., Any]:
    for name, text in reversed(_LIMITS.items()):
        command = click.option(f"--{name}", type=click.IntRange(1), metavar="N", help=text)(command)
    return command


@click.command()
@common
@click.argument("name")
@_limits
@click.option("--period", type=PAUSE, metavar="TIME", help="Of the rates. [default: 1m]")
@click.option("--no-limits", is_flag=True, help="Take all limits away.")
@click.option("--endpoint", metavar="URL", help="Whom to tell of each run, to take it up there; '': nobody.")
@click.option("--pause/--resume", "paused", default=None, help="Let nothing begin; or let it go on.")
def queue(
    database: str | None,
    as_json: bool,
    name: str,
    period: timedelta | None,
    no_limits: bool,
    endpoint: str | None,
    paused: bool | None,
    **limits: int | None,
) -> None:
    """Show a queue, or set what it may do: with a limit given, those that are not are taken away."""
    given: dict[str, Any] = {key: value for key, value in limits.items() if value is not None}
    if no_limits and (given or period):
        raise click.UsageError("--no-limits goes without a limit")
    if period is not None:
        given["rate_period_s"] = period.total_seconds()
    with connected(database) as tide:
        if endpoint is not None and not (given or no_limits):  # the limits stay
            given = _limits_of(tide, name)
        if given or no_limits or endpoint is not None:
            tide.queues.put(name, endpoint=endpoint, **given)
        if paused is not None:
            (tide.queues.pause if paused else tide.queues.resume)(name)
        found = tide.queues.get(name)
    if as_json:
        print_json(found)
    else:
        print_fields(asdict(found))


def _limits_of(tide: Tidebase, name: str) -> dict[str, Any]:
    """All that a queue is told, as it is now."""
    try:
        found = tide.queues.get(name)
    except NotFound:
        return {}
    seconds = {"rate_period": found.rate_period, "lease": found.lease, "retry_delay": found.retry_delay}
    return {
        **{limit.replace("-", "_"): getattr(found, limit.replace("-", "_")) for limit in _LIMITS},
        **{f"{key}_s": span and span.total_seconds() for key, span in seconds.items()},
    }


@click.command()
@common
@click.argument("queue")
def invocations(database: str | None, as_json: bool, queue: str) -> None:
    """List of which runs the endpoint of a queue was told, and what became of that; the latest first."""
    with connected(database) as tide:
        found = tide.queues.invocations(queue)
    if as_json:
        print_json(found)
        return
    rows = [
        (i.run_id, i.status, i.invocations, i.failures, age(i.sent_at), i.http_status, short(i.error)) for i in found
    ]
    print_table(("run", "status", "told", "failures", "sent", "http", "error"), rows, "no invocations")


@click.command()
@common
def workers(database: str | None, as_json: bool) -> None:
    """List who took runs from queues within a day."""
    with connected(database) as tide:
        found = tide.queues.workers()
    if as_json:
        print_json(found)
        return
    rows = [(w.holder, ", ".join(w.queues), w.running, w.code_version, age(w.seen_at)) for w in found]
    print_table(("worker", "queues", "running", "code", "seen"), rows, "no workers")


@click.command()
@common
def schedules(database: str | None, as_json: bool) -> None:
    """List the schedules: what they enqueue, and when next."""
    with connected(database) as tide:
        found = tide.schedules.list()
    if as_json:
        print_json(found)
        return
    rows = [
        (
            s.name,
            s.workflow,
            s.queue,
            s.cron or f"every {s.every}",
            s.timezone,
            "never" if s.next_in is None else f"in {timedelta(seconds=round(s.next_in.total_seconds()))}",
            s.last_status,
            short(s.failure),
        )
        for s in found
    ]
    print_table(("schedule", "workflow", "queue", "when", "zone", "next", "last", "failure"), rows, "no schedules")


@click.command()
@common
@click.argument("name")
@click.option("--workflow", help="What it runs; with --cron or --every it makes the schedule, or changes it.")
@click.option("--cron", metavar="EXPRESSION", help="When: five fields, in the time zone.")
@click.option("--every", type=PAUSE, metavar="TIME", help="When: again and again, with this distance.")
@click.option("--timezone", default="UTC", show_default=True, help="Of --cron.")
@click.option("--input", "given", type=JSON, metavar="JSON", help="What it is called with: JSON, @FILE, or -.")
@click.option("--queue", "-q", default="default", show_default=True, help="Where its runs wait.")
@click.option(
    "--overlap",
    type=click.Choice(["allow", "skip", "cancel"]),
    default="allow",
    show_default=True,
    help="While the run before is not over.",
)
@click.option(
    "--catch-up",
    type=click.Choice(["none", "last", "all"]),
    default="last",
    show_default=True,
    help="Of times at which nobody looked.",
)
@click.option("--disabled", is_flag=True, help="It does not fire.")
@click.option("--trigger", is_flag=True, help="Enqueue a run now.")
@click.option("--delete", is_flag=True, help="Remove it; the runs that it made stay.")
@click.option("--since", type=TIME, metavar="TIME", help="Enqueue the runs of its times from then on ...")
@click.option("--until", type=TIME, metavar="TIME", help="... and before then, as far as they are not there.")
def schedule(
    database: str | None,
    as_json: bool,
    name: str,
    workflow: str | None,
    cron: str | None,
    every: timedelta | None,
    given: Any,
    disabled: bool,
    trigger: bool,
    delete: bool,
    since: datetime | None,
    until: datetime | None,
    **options: Any,
) -> None:
    """Show a schedule, make or change it, fire it, or remove it."""
    if (cron is not None or every is not None) and workflow is None:
        raise click.UsageError("--cron and --every need --workflow")
    if workflow is not None and (cron is None) == (every is None):
        raise click.UsageError("--workflow needs --cron or --every, and not both")
    if (since is None) != (until is None):
        raise click.UsageError("--since and --until go together")
    with connected(database) as tide:
        if workflow is not None:
            seconds = None if every is None else every.total_seconds()
            tide.schedules.put(name, workflow, cron=cron, every_s=seconds, input=given, enabled=not disabled, **options)
        if delete:
            gone = tide.schedules.delete(name)
            if as_json:
                print_json({"deleted": gone})
            else:
                print_line(f"{name}: {'deleted' if gone else 'was not there'}")
            raise SystemExit(0 if gone else 1)
        made = [tide.schedules.trigger(name)] if trigger else []
        if since is not None and until is not None:
            made += tide.schedules.backfill(name, since, until)
        found = tide.schedules.get(name)
    if as_json:
        print_json({"schedule": found, "enqueued": made})
        return
    print_fields(asdict(found))
    for run_id in made:
        print_line(f"enqueued: {run_id}")


#: For whom a failed run is one of many.
failure_class_option = click.option(
    "--failure-class",
    type=click.Choice(["error", "max_attempts", "crashed", "not_begun"]),
    help="Those that failed so.",
)


def bulk_filter(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that say which runs."""
    for option in reversed(
        (
            click.option("--queue", "-q", metavar="NAME", help="Those of this queue."),
            click.option("--workflow", help="Those of this workflow."),
            click.option("--older-than", type=DURATION, metavar="AGE", help="Those made longer ago."),
            click.option("--metadata", type=JSON, metavar="JSON", help="Those whose metadata contain this."),
            click.option("--dry-run", is_flag=True, help="Only count them."),
        )
    ):
        command = option(command)
    return command


def in_batches(what: str, step: Callable[..., Bulk], dry_run: bool, as_json: bool) -> None:
    """Does it in batches until none is found any more, and says how many there were."""
    matched = done = 0
    quiet = as_json or dry_run or not sys.stderr.isatty()
    with click.progressbar(
        length=_UNKNOWN, label=what, file=sys.stderr, hidden=quiet, show_percent=False, show_eta=False, show_pos=True
    ) as bar:
        while True:
            batch = step(dry_run=dry_run, max=10_000 if dry_run else _BATCH)
            matched, done = matched + batch.matched, done + batch.done
            bar.update(batch.done)
            if dry_run or batch.done == 0 or batch.matched < _BATCH:
                break
    if as_json:
        print_json({"matched": matched, "done": done})
    elif dry_run:
        print_line(f"{matched}{' or more' if matched == 10_000 else ''} would be {what}")
    else:
        print_line(f"{what}: {done}")


@click.command()
@common
@bulk_filter
@failure_class_option
@click.option("--reason", help="Why, for the log.")
@actor_option
def retry(database: str | None, as_json: bool, dry_run: bool, **which: Any) -> None:
    """Let failed runs be taken up again, with all their attempts; what is completed of them is not done again."""
    with connected(database) as tide:
        in_batches("retried", lambda **how: tide.runs.retry_many(**which, **how), dry_run, as_json)


@click.command()
@common
@click.argument("to_queue", metavar="QUEUE")
@bulk_filter
@click.option("--priority", type=int, help="Their priority there. [default: as it is]")
@actor_option
def move(database: str | None, as_json: bool, to_queue: str, dry_run: bool, **which: Any) -> None:
    """Put runs that wait for a worker into another queue."""
    with connected(database) as tide:
        in_batches("moved", lambda **how: tide.runs.move_many(to_queue, **which, **how), dry_run, as_json)


COMMANDS = [worker, enqueue, queues, queue, invocations, workers, schedules, schedule, retry, move]
