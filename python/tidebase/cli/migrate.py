"""``tidebase migrate`` and ``tidebase dev``: the schema, and a Postgres to put it into."""

from __future__ import annotations

import json
from dataclasses import asdict

import click

from .. import local, migrations
from ..client import Tidebase
from ..database import Database
from .output import common, print_json


@click.command()
@common
@click.option("--check", is_flag=True, help="Change nothing; exit with 1 when the schema is behind.")
@click.option(
    "--role-prefix", metavar="NAME", help="What the five roles are called: NAME_worker ... [default: tidebase]"
)
@click.option(
    "--rollback-to",
    metavar="ID",
    help="Take back every migration after this one, with what it stored; 'nothing' takes Tidebase out altogether.",
)
def migrate(database: str | None, as_json: bool, check: bool, role_prefix: str | None, rollback_to: str | None) -> None:
    """Install the schema in the database, or bring it up to date.

    Safe to call at every start, by many processes at once. The first time, the user must be allowed to create schemas
    in the database; if it may create roles, too, the five roles are made, otherwise a note says how to make them.
    """
    if check and rollback_to is not None:
        raise click.UsageError("--check and --rollback-to exclude each other")
    with Database(database).connection() as connection:
        if rollback_to is not None:
            _print_rollback(migrations.rollback(connection, None if rollback_to == "nothing" else rollback_to), as_json)
            return
        report = migrations.pending(connection) if check else migrations.migrate(connection, role_prefix)
    _print_report(report, check, as_json)
    if check and not report.is_current:
        raise SystemExit(1)


def _print_report(report: migrations.MigrationReport, check: bool, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps({**asdict(report), "current": report.is_current}))
        return
    verb = "to apply" if check else "applied"
    for migration in report.migrations:
        click.echo(f"migration {verb}: {migration}")
    if report.functions:
        click.echo(f"function files {verb}: {', '.join(report.functions)}")
    if report.roles:
        click.echo(f"roles created: {', '.join(report.roles)}")
    for note in report.notes:
        click.echo(f"note: {note}")
    if report.is_current:
        click.echo("the schema is up to date")


def _print_rollback(taken_back: list[str], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps({"rolled_back": taken_back}))
    for migration in [] if as_json else taken_back:
        click.echo(f"migration rolled back: {migration}")


@click.command()
@click.option("--stop", is_flag=True, help="Stop it; its data stays.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def dev(stop: bool, as_json: bool) -> None:
    """Start a Postgres of your own, with the schema in it, and print its URL: eval "$(tidebase dev)".

    Its data is in ./tidebase-data (TIDEBASE_LOCAL_DATA says otherwise). It goes on running until --stop.
    """
    cluster = local.local_cluster()
    if stop:
        cluster.stop()
        click.echo(json.dumps({"stopped": str(cluster.data)}) if as_json else f"stopped; the data is in {cluster.data}")
        return
    cluster.start()
    with Tidebase(cluster.url) as tide:
        tide.migrate()
    if as_json:
        print_json({"url": cluster.url, "data": str(cluster.data)})
    else:
        click.echo(f"export TIDEBASE_DATABASE_URL='{cluster.url}'")


COMMANDS = [migrate, dev]
