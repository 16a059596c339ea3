"""``tidebase serve``: the gateway; ``tidebase studio``: the same for one person, with the page opened."""

from __future__ import annotations

import getpass
import logging
import secrets
import socket
from datetime import timedelta
from types import ModuleType
from urllib.parse import quote

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

    It keeps nothing: start as many as you like. GET /openapi.json describes it. Studio, its page, is at /studio/.
    """
    server = loaded()
    if insecure and keys:
        raise click.UsageError("--insecure goes without --key")
    options = {**limits, "lease_s": lease and lease.total_seconds()}
    logging.getLogger("tidebase").setLevel(logging.INFO)
    logging.getLogger("uvicorn").setLevel(logging.INFO)
    server.serve(
        database,
        host=host,
        port=port,
        keys=[server.Key.parse(key) for key in keys],
        insecure=insecure,
        cors=cors,
        hosts=hosts,
        **{name: value for name, value in options.items() if value is not None},
    )


@click.command()
@click.argument("run_id", required=False, metavar="[RUN]")
@database_option
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen on: of this machine.")
@click.option(
    "--port", type=click.IntRange(0, 65535), help="[default: 7374, or any that is free where that one is taken]"
)
@click.option("--browser/--no-browser", default=True, help="Open a browser there.  [default: yes]")
def studio(run_id: str | None, database: str | None, host: str, port: int | None, browser: bool) -> None:
    """Open Studio: a page that shows runs as they are, and lets you decide, repair and fork.

    It is for you alone, under your own name, for as long as this command runs. For several people, each with a key of
    their own, `tidebase serve` has the same page.
    """
    server = loaded()
    if not server.is_loopback(host):
        raise click.UsageError("studio is for this machine; for others there is `tidebase serve` with keys")
    key = server.Key(server.ROLES, secrets.token_urlsafe(24), getpass.getuser())
    place = "runs" if run_id is None else f"runs/{quote(run_id, safe='')}"
    click.echo(f"The key, where the page asks for one: {key.secret}", err=True)
    server.serve(
        database,
        host=host,
        port=free_port(host) if port is None else port,
        keys=[key],
        opened=place if browser else None,
    )


def loaded() -> ModuleType:
    """The gateway's module, if what it needs is there."""
    try:
        from .. import server
    except ImportError as error:
        raise TidebaseError(f"the gateway needs {error.name}", hint="pip install 'tidebase-postgres[server]'") from None
    return server


def free_port(host: str) -> int:
    """The usual one, so that a browser finds again what it has kept; 0, for any, where somebody has that."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, 7374))
        except OSError:
            return 0
    return 7374


COMMANDS = [serve, studio]
