"""The group ``tidebase``, and how its commands end."""

from __future__ import annotations

import logging
import os
import sys
from typing import Any

import click

from ..errors import TidebaseError
from . import doctor, migrate, operate, people, runs, serve


class Group(click.Group):
    """Turns the project's own errors into one line and an exit code of 1."""

    def invoke(self, context: click.Context) -> Any:
        try:
            return super().invoke(context)
        except TidebaseError as error:
            raise click.ClickException(str(error)) from None
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
@click.version_option(package_name="tidebase-postgres", prog_name="tidebase")
@click.option("-v", "--verbose", is_flag=True, help="Log what happens, to standard error.")
def main(verbose: bool) -> None:
    """Tidebase: durable checkpoints for agents, in your own Postgres."""
    logging.basicConfig(level=logging.INFO if verbose else logging.ERROR, format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("yoyo").setLevel(logging.WARNING)


for module in (migrate, runs, people, operate, serve, doctor):
    for command in module.COMMANDS:
        main.add_command(command)
