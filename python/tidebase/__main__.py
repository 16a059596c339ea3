"""``python -m tidebase``: the command line, also where no ``tidebase`` is on the PATH."""

from .cli import main

main(prog_name="tidebase")
