"""``tidebase router``: one database in front of several shards."""

from __future__ import annotations

import json

import click

from ..core.database import Database
from ..core.errors import TidebaseError
from ..schema import migrations, router
from ..views import shards as looks
from .output import common, print_json, print_table


@click.group("router")
def group() -> None:
    """Spread runs over several databases: the same functions and views, through PL/Proxy."""


@group.command()
@common
@click.option(
    "--shard",
    "shards",
    metavar="NAME=URL",
    multiple=True,
    required=True,
    help="A migrated database and the user that the router is there; once for each.",
)
def init(database: str | None, as_json: bool, shards: tuple[str, ...]) -> None:
    """Make a migrated database the router of these shards: as a superuser of its server, which has PL/Proxy.

    The shards are told which buckets they own. A single one may have runs; several must be empty.
    """
    plan = router.spread([_shard(text) for text in shards])
    with Database(database).connection() as connection:
        if router.read(connection) is not None:
            raise TidebaseError("this database is a router already", hint="Add a shard with: tidebase router add")
        migrations.found_router(connection, plan)
    _said(plan, as_json)


def _shard(text: str) -> router.Shard:
    name, is_given, url = text.partition("=")
    if not is_given or not name or "://" in name:
        raise click.BadParameter("must be NAME=URL", param_hint="--shard")
    return router.shard_at(name, url)


@group.command()
@common
@click.argument("name")
@click.argument("url")
def add(database: str | None, as_json: bool, name: str, url: str) -> None:
    """Add a shard, while no shard has runs, threads or queues: what is there is not moved."""
    with Database(database).connection() as connection:
        known = router.read(connection)
        if known is None:
            raise TidebaseError("this database is no router", hint="Make it one with: tidebase router init")
        plan = router.spread([*known.shards, router.shard_at(name, url)], known.epoch + 1)
        migrations.found_router(connection, plan)
    _said(plan, as_json)


@group.command()
@common
def status(database: str | None, as_json: bool) -> None:
    """Look at the router and all shards. Exits with 1 when something is wrong."""
    with Database(database).connection() as connection:
        found = looks.look(connection)
    if found is None:
        raise TidebaseError(
            "this database is no router, or its map is not for you to read",
            hint="Make it one with: tidebase migrate, and then: tidebase router init",
        )
    if as_json:
        print_json({"epoch": found.epoch, "shards": found.shards})
    else:
        click.echo(f"epoch {found.epoch}")
        print_table(
            ["shard", "database", "partitions", "problem"],
            [(shard.name, shard.conninfo, shard.partitions, "; ".join(shard.problems)) for shard in found.shards],
            "there are none",
        )
    if any(shard.problems for shard in found.shards):
        raise SystemExit(1)


def _said(plan: router.Map, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps({"epoch": plan.epoch, "shards": [shard.name for shard in plan.shards]}))
        return
    for place, shard in enumerate(plan.shards):
        click.echo(f"shard {shard.name}: {plan.owned(place).count('1')} of {len(plan.owners)} partitions")


COMMANDS = [group]
