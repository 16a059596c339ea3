"""``tidebase mcp``: a server of the Model Context Protocol."""

from __future__ import annotations

import asyncio
import logging

import click

from ..client.tide_async import AsyncTidebase
from ..core.errors import TidebaseError
from .output import database_option


def _names(context: click.Context, parameter: click.Parameter, value: tuple[str, ...]) -> list[str]:
    """``--allow decide,cancel``, or one after the other."""
    return [name.strip() for text in value for name in text.split(",") if name.strip()]


@click.command()
@database_option
@click.option(
    "--allow",
    multiple=True,
    callback=_names,
    metavar="ACTION[,ACTION]",
    help="What may be done besides reading: decide, review, cancel, retry, fork.",
)
@click.option("--http", is_flag=True, help="Serve streamable HTTP at /mcp, and not standard input and output.")
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen on.")
@click.option("--port", type=click.IntRange(0, 65535), default=7374, show_default=True, help="0: any that is free.")
@click.option(
    "--key",
    "keys",
    multiple=True,
    envvar="TIDEBASE_KEYS",
    metavar="ROLE[+ROLE][@NAME]:SECRET",
    help="Over HTTP: who may do what, as for serve; better in TIDEBASE_KEYS, with spaces in between.",
)
@click.option("--insecure", is_flag=True, help="Without keys: whoever is on this machine may do what is allowed.")
@click.option(
    "--allow-host",
    "hosts",
    multiple=True,
    metavar="NAME",
    help="A name under which it is asked, where that is not this machine's address: behind a proxy, say.",
)
def mcp(
    database: str | None,
    allow: list[str],
    http: bool,
    host: str,
    port: int,
    keys: tuple[str, ...],
    insecure: bool,
    hosts: tuple[str, ...],
) -> None:
    """Let a model look at runs, their steps, events, state, gates and costs, over the Model Context Protocol.

    It only reads, unless --allow says what else it may do; what the database user may not do, it may not do either.
    Over standard input and output it serves the program that has started it; with --http whoever has a key.
    """
    try:
        from ..integrations.mcp import create_server, serve
        from ..server.auth import Key
    except ImportError as error:
        raise TidebaseError(f"mcp needs {error.name}", hint="pip install 'tidebase-postgres[mcp]'") from None
    if insecure and keys:
        raise click.UsageError("--insecure goes without --key")
    tide = AsyncTidebase(database)
    if not http:
        asyncio.run(create_server(tide, allow=allow).run_stdio_async())
        return
    logging.getLogger("uvicorn").setLevel(logging.INFO)
    serve(
        tide,
        allow=allow,
        host=host,
        port=port,
        keys=[Key.parse(key) for key in keys],
        insecure=insecure,
        hosts=hosts,
    )


COMMANDS = [mcp]
