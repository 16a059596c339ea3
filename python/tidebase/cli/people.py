"""The commands for people who decide: ``gates``, ``secret``, ``decide``, ``reviews``, ``review``."""

from __future__ import annotations

import getpass
import sys
from typing import Any

import click
from click.core import ParameterSource

from ..core.hints import to_decide, to_review
from .output import JSON, age, common, connected, print_fields, print_json, print_line, print_table


def actor_option(command: Any) -> Any:
    """``--actor``: who does it, for the log; the user of this machine unless told."""
    return click.option(
        "--actor", default=_user, metavar="NAME", help="Who does it, for the log. [default: your user name]"
    )(command)


def _user() -> str | None:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a user id without a name
        return None


@click.command()
@common
@click.argument("run_id", metavar="RUN", required=False)
@click.option("--all", "everything", is_flag=True, help="Also those that are decided.")
@click.option("--max", "limit", type=click.IntRange(1, 1000), default=100, show_default=True, help="How many at most.")
def gates(database: str | None, as_json: bool, run_id: str | None, everything: bool, limit: int) -> None:
    """List the gates that wait for a decision, of all runs or of one, oldest first."""
    with connected(database) as tide:
        if run_id is not None:
            run_id = tide.runs.find(run_id)
        found = tide.gates.list(run_id=run_id, status=None if everything else "pending", max=limit)
    if as_json:
        print_json(found)
        return
    rows = [
        (g.run_id, g.name, g.decision or g.status, "|".join(g.options), g.prompt, age(g.created_at), g.timeout_at)
        for g in found
    ]
    columns = ("run", "gate", "status", "options", "prompt", "opened", "times out")
    print_table(columns, rows, "no gates" if everything else "no gate waits for a decision")
    waiting = next((g for g in found if g.kind == "gate" and g.status == "pending"), None)
    if waiting is not None:
        print_line(to_decide(waiting.run_id, waiting.name, waiting.options), err=True)


@click.command()
@common
@click.argument("run_id", metavar="RUN")
@click.argument("gate")
@click.option("--voter", metavar="NAME", help="A personal secret: what it approves is the vote of this person.")
def secret(database: str | None, as_json: bool, run_id: str, gate: str, voter: str | None) -> None:
    """Print the secret of a gate, to hand it out. For workers. Exits with 1 when the gate is decided."""
    with connected(database) as tide:
        run_id = tide.runs.find(run_id)
        found = tide.gates.secret(run_id, gate, voter=voter)
    if as_json:
        print_json({"secret": found})
    elif found is not None:
        print_line(found)
    else:
        print_line("the gate is decided", err=True)
    if found is None:
        raise SystemExit(1)


@click.command()
@common
@click.argument("run_id", metavar="RUN")
@click.argument("gate")
@click.argument("decision")
@actor_option
@click.option("--payload", type=JSON, metavar="JSON", help="The answer: JSON, @FILE, or - for standard input.")
@click.option("--comment", help="Why, for the log.")
@click.option(
    "--secret",
    envvar="TIDEBASE_GATE_SECRET",
    help="The gate's secret, where the user is no approver; better in TIDEBASE_GATE_SECRET.",
)
@click.option(
    "--voter", metavar="NAME", help="For whom, where several must agree and the user is one who speaks for others."
)
def decide(
    database: str | None, as_json: bool, run_id: str, gate: str, decision: str, actor: str | None, **more: Any
) -> None:
    """Decide a gate. Exits with 1 when another decision stands already."""
    with connected(database) as tide:
        run_id = tide.runs.find(run_id)
        outcome = tide.gates.decide(run_id, gate, decision, actor=actor, **more)
    if as_json:
        print_json(outcome)
    elif outcome.accepted and outcome.status == "pending":
        click.echo(f"counted: {outcome.approvals} of {outcome.required} approvals")
    elif outcome.accepted:
        print_line(f"decided: {outcome.decision}")
    else:
        by = f" by {outcome.actor}" if outcome.actor else ""
        print_line(f"not taken: it is {outcome.decision or outcome.status}{by} already", err=True)
    if not outcome.accepted:
        raise SystemExit(1)


@click.command()
@common
@click.argument("run_id", metavar="RUN", required=False)
def reviews(database: str | None, as_json: bool, run_id: str | None) -> None:
    """List the steps that may have taken effect and wait for a person to say what happened."""
    with connected(database) as tide:
        if run_id is not None:
            run_id = tide.runs.find(run_id)
        found = tide.runs.reviews(run_id)
    if as_json:
        print_json(found)
        return
    rows = [(r.run_id, r.step, r.cause, r.side_effects, r.verified_by, age(r.opened_at)) for r in found]
    print_table(("run", "step", "cause", "side effects", "verify by", "opened"), rows, "nothing to review")
    if found:
        print_line(to_review(found[0].run_id, found[0].step), err=True)


def _asked_output(step: str) -> Any:
    """It becomes the step's result for good, so it is not taken to be null."""
    if not sys.stdin.isatty():
        raise click.UsageError("accept needs --output: what the step returned, as JSON (null if that is nothing)")
    return click.prompt(f"What did {step!r} return, as JSON (null if that is nothing)", type=JSON)


@click.command()
@common
@click.argument("run_id", metavar="RUN")
@click.argument("step")
@click.argument("decision", type=click.Choice(["retry", "accept", "fail"]))
@click.option("--output", type=JSON, metavar="JSON", help="With accept: what the step returned: JSON, @FILE, or -.")
@actor_option
@click.option("--reason", help="Why, for the log.")
def review(database: str | None, as_json: bool, run_id: str, step: str, decision: Any, **more: Any) -> None:
    """Decide about a step in review: execute it again, accept what it did, or fail the run."""
    given = click.get_current_context().get_parameter_source("output") is not ParameterSource.DEFAULT
    if given and decision != "accept":
        raise click.UsageError("--output goes with accept only")
    if decision == "accept" and not given:
        more["output"] = _asked_output(step)
    with connected(database) as tide:
        run_id = tide.runs.find(run_id)
        tide.runs.resolve_review(run_id, step, decision, **more)
        run = tide.runs.get(run_id)
    if as_json:
        print_json(run)
    else:
        print_fields({"run_id": run.run_id, "status": run.status})


COMMANDS = [gates, secret, decide, reviews, review]
