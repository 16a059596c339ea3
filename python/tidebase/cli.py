"""The command ``tidebase``.

Exit codes: 0 done; 1 the answer is no (``migrate --check``: the schema is behind) or the command failed; 2 a mistake in
the command line. A user's mistake never ends in a traceback.
"""

from __future__ import annotations

import json
import logging
from dataclasses import asdict
from typing import Any

import click

from . import migrations
from .database import Database
from .errors import TidebaseError


class Group(click.Group):
    """Turns the project's own errors into one line and an exit code of 1."""

    def invoke(self, context: click.Context) -> Any:
        try:
            return super().invoke(context)
        except TidebaseError as error:
            raise click.ClickException(str(error)) from None


database_option = click.option(
    "--database",
    metavar="URL",
    help="Where the database is; by default TIDEBASE_DATABASE_URL, DATABASE_URL, or libpq's variables.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="tidebase-postgres", prog_name="tidebase")
@click.option("-v", "--verbose", is_flag=True, help="Log what happens, to standard error.")
def main(verbose: bool) -> None:
    """Tidebase: durable checkpoints for agents, in your own Postgres."""
    logging.basicConfig(level=logging.INFO if verbose else logging.ERROR, format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("yoyo").setLevel(logging.WARNING)


@main.command()
@database_option
@json_option
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
