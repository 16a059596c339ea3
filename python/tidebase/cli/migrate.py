"""``tidebase migrate``, ``roles`` and ``dev``: the schema, who may use it, and a Postgres to put it into."""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import timedelta

import click

from ..client.tide import Tidebase
from ..core import local
from ..core.database import Database
from ..core.errors import NotMigrated
from ..schema import migrations, ownership
from .output import DURATION, common, named, print_json, print_line, print_table


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
@click.option(
    "--wait",
    type=DURATION,
    default="5m",
    show_default=True,
    metavar="TIME",
    help="How long to wait for others who have a table open; they are named.",
)
def migrate(
    database: str | None,
    as_json: bool,
    check: bool,
    role_prefix: str | None,
    rollback_to: str | None,
    wait: timedelta,
) -> None:
    """Install the schema in the database, or bring it up to date.

    Safe to call at every start, by many processes at once, by anybody where nothing is to do. The first time, the user
    must be allowed to create schemas in the database, or own the schemas tidebase and tidebase_private; if it may
    create roles, too, the five roles are made, otherwise a note says how to make them.
    """
    if check and rollback_to is not None:
        raise click.UsageError("--check and --rollback-to exclude each other")
    with Database(database).connection() as connection:
        if rollback_to is not None:
            to = None if rollback_to == "nothing" else rollback_to
            taken_back = migrations.rollback(connection, to, patience_s=wait.total_seconds(), progress=_tell)
            _print_rollback(taken_back, as_json)
            return
        report = (
            migrations.pending(connection)
            if check
            else migrations.migrate(connection, role_prefix, patience_s=wait.total_seconds(), progress=_tell)
        )
    _print_report(report, check, as_json)
    if check and not report.is_current:
        raise SystemExit(1)


def _tell(line: str) -> None:
    print_line(line, err=True)


def _print_report(report: migrations.MigrationReport, check: bool, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps({**asdict(report), "current": report.is_current}))
        return
    verb = "to apply" if check else "applied"
    for shard in report.shards:
        click.echo(f"shard {shard}: {'is behind' if check else 'brought up to date'}")
    for migration in report.migrations:
        click.echo(f"migration {verb}: {migration}")
    if report.functions:
        click.echo(f"function files {verb}: {', '.join(report.functions)}")
    if report.access and not (report.migrations or report.functions):
        click.echo(f"owners and grants {'are not what they should be' if check else 'repaired'}")
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


@click.command()
@click.option("--database", metavar="URL", help="Where the database is; not needed for --sql.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--sql", "as_sql", is_flag=True, help="Print the SQL that makes them, for an administrator to run.")
@click.option("--role-prefix", default="tidebase", show_default=True, metavar="NAME", help="With --sql: their names.")
@click.option("--to", "installer", metavar="USER", help="With --sql: the user who runs `tidebase migrate`.")
@click.option("--schemas", is_flag=True, help="With --sql and --to: also make the schemas, which that user may not do.")
def roles(
    database: str | None, as_json: bool, as_sql: bool, role_prefix: str, installer: str | None, schemas: bool
) -> None:
    """Show the five roles and their members; or print what makes them.

    Where the user who installs may not create roles: tidebase roles --sql --to USER | psql (as an administrator), and
    then, as that user: tidebase migrate.
    """
    if schemas and not (as_sql and installer):
        raise click.UsageError("--schemas needs --sql and --to")
    if as_sql:
        text = ownership.roles_sql(role_prefix, installer, schemas)
        click.echo(json.dumps({"sql": text}) if as_json else text)
        return
    with Database(named(database)).connection() as connection:
        prefix = migrations.role_prefix_of(connection)
        if prefix is None:
            raise NotMigrated(
                "Tidebase is not installed in this database, or an older one", hint="Run: tidebase migrate"
            )
        rows = connection.execute(_MEMBERS, {"prefix": prefix}).fetchall()
    if as_json:
        print_json([{"role": role, "members": members} for role, members in rows])
    else:
        print_table(["role", "members"], [(role, ", ".join(members)) for role, members in rows], "there are none")


_MEMBERS = """
select r.rolname::text, array(
  select m.member::regrole::text from pg_auth_members m where m.roleid = r.oid order by 1)
from unnest(array['owner', 'worker', 'approver', 'operator', 'reader']) with ordinality as a (audience, n)
join pg_roles r on r.rolname = %(prefix)s || '_' || a.audience order by a.n
"""

COMMANDS = [migrate, roles, dev]
