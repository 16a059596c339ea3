"""The group ``tidebase``, and how its commands end."""

from __future__ import annotations

import io
import logging
import os
import sys
from typing import Any

import click
import psycopg

from .. import __version__
from ..core.errors import TidebaseError, from_postgres
from . import doctor, mcp, migrate, operate, people, queues, replay, router, runs, serve
from .output import visible


class Group(click.Group):
    """Turns the project's own errors into one line and an exit code of 1."""

    def invoke(self, context: click.Context) -> Any:
        try:
            return super().invoke(context)
        except (TidebaseError, psycopg.Error) as error:
            known = from_postgres(error) if isinstance(error, psycopg.Error) else error
            raise click.ClickException(visible(" ".join(str(known).splitlines()))) from None
        except BrokenPipeError:  # the reader has gone, as with `| head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise SystemExit(0) from None
        except KeyboardInterrupt:
            raise SystemExit(130) from None


@click.group(
    cls=Group,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: 0 done; 1 the answer is no, or the command failed; 2 a mistake in the command line.",
)
@click.version_option(__version__, prog_name="tidebase")
@click.option("-v", "--verbose", is_flag=True, help="Log what happens, to standard error.")
def main(verbose: bool) -> None:
    """Tidebase: durable checkpoints for agents, in your own Postgres."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # what its encoding does not have is escaped, and no failure
            stream.reconfigure(errors="backslashreplace")
    logging.basicConfig(level=logging.INFO if verbose else logging.ERROR, format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("yoyo").setLevel(logging.WARNING)


for module in (migrate, router, runs, people, operate, queues, replay, serve, mcp, doctor):
    for command in module.COMMANDS:
        main.add_command(command)
