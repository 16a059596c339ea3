"""``tidebase serve``: the gateway."""

from __future__ import annotations

import logging
from datetime import timedelta

import click

from ..core.errors import TidebaseError
from .output import PAUSE, database_option


@click.command()
@database_option
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen on.")
@click.option("--port", type=click.IntRange(0, 65535), default=7373, show_default=True, help="0: any that is free.")
@click.option(
    "--key",
    "keys",
    multiple=True,
    envvar="TIDEBASE_KEYS",
    metavar="ROLE[+ROLE][@NAME]:SECRET",
    help="Who may do what: worker, approver, operator, reader; and whose it is. May be given more than once; better in"
    " TIDEBASE_KEYS, with spaces in between. Without keys one is made that may do everything, and printed.",
)
@click.option("--insecure", is_flag=True, help="Without keys: whoever is on this machine may do everything.")
@click.option(
    "--cors", multiple=True, metavar="ORIGIN", help="A page that may call it from a browser: https://app.example."
)
@click.option(
    "--allow-host",
    "hosts",
    multiple=True,
    metavar="NAME",
    help="A name under which it is asked, where that is not this machine's address: behind a proxy, say.",
)
@click.option("--pool-size", type=click.IntRange(1), metavar="N", help="Connections; streams hold none. [default: 10]")
@click.option("--max-body", type=click.IntRange(1), metavar="BYTES", help="The largest body. [default: 20000000]")
@click.option(
    "--lease",
    type=PAUSE,
    metavar="TIME",
    help="How long a lease lasts without a heartbeat; the clients of v0.6 send none. [default: 5m]",
)
def serve(
    database: str | None,
    host: str,
    port: int,
    keys: tuple[str, ...],
    insecure: bool,
    cors: tuple[str, ...],
    hosts: tuple[str, ...],
    lease: timedelta | None,
    **limits: int | None,
) -> None:
    """Serve the HTTP API of Tidebase v0.6, with GET /runs/ID/events as server-sent events.

    It keeps nothing: start as many as you like. GET /openapi.json describes it.
    """
    try:
        from .. import server
        from ..server.auth import Key
    except ImportError as error:
        raise TidebaseError(f"the gateway needs {error.name}", hint="pip install 'tidebase-postgres[server]'") from None
    if insecure and keys:
        raise click.UsageError("--insecure goes without --key")
    options = {**limits, "lease_s": lease and lease.total_seconds()}
    logging.getLogger("tidebase").setLevel(logging.INFO)
    logging.getLogger("uvicorn").setLevel(logging.INFO)
    server.serve(
        database,
        host=host,
        port=port,
        keys=[Key.parse(key) for key in keys],
        insecure=insecure,
        cors=cors,
        hosts=hosts,
        **{name: value for name, value in options.items() if value is not None},
    )


COMMANDS = [serve]
