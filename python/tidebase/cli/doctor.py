"""``tidebase doctor``: looks at what usually goes wrong, and says what to do about it."""

from __future__ import annotations

import click

from ..core.database import Database
from ..views import health
from .output import common, print_json

_MARKS = {"ok": ("ok", "green"), "note": ("note", "yellow"), "problem": ("PROBLEM", "red")}


@click.command()
@common
@click.option(
    "--deep", is_flag=True, help="Look at every row, too, for one that breaks a rule: as long as a dump takes."
)
def doctor(database: str | None, as_json: bool, deep: bool) -> None:
    """Look for problems: version, schema, roles, settings, tables, stalled runs. Exits with 1 when there is one."""
    source = Database(database)
    with source.connection() as connection:
        findings = health.look(connection, deep)
    source.close()
    if as_json:
        print_json(findings)
    else:
        for finding in findings:
            _print(finding)
    if any(finding.level == "problem" for finding in findings):
        raise SystemExit(1)


def _print(finding: health.Finding) -> None:
    word, colour = _MARKS[finding.level]
    click.echo(f"{click.style(word.ljust(7), fg=colour)}  {finding.check}: {finding.text}")
    if finding.advice:
        click.echo(f"         {finding.advice}")


COMMANDS = [doctor]
