"""``python -m tests.torture.ledger``: one siege, or a few, and what was found; for whoever mends what it finds."""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path

import click

from ...conftest import SERVERS
from ..storm import Machine
from .scripts import SCRIPTS
from .siege import LARGE, SMALL, siege
from .trouble import TROUBLES
from .verdict import kinds


@click.command()
@click.option("--seconds", default=20.0, show_default=True, help="How long the trouble lasts.")
@click.option("--seed", default=1, show_default=True)
@click.option("--times", default=1, show_default=True, help="So many sieges, with one seed after the other.")
@click.option("--trouble", multiple=True, type=click.Choice(list(dict.fromkeys(TROUBLES))), help="Just this, or these.")
@click.option("--no-trouble", is_flag=True)
@click.option("--script", multiple=True, type=click.Choice(list(SCRIPTS)), help="Just this kind of run, or these.")
@click.option("--lease", default=2.5, show_default=True, help="In seconds.")
@click.option("--version", default=max(SERVERS), show_default=True, help="Of Postgres.")
@click.option("--mutant", default="", help="module:function, which every worker calls first.")
@click.option("--large", is_flag=True, help="Five workers instead of three.")
def main(
    seconds: float,
    seed: int,
    times: int,
    trouble: tuple[str, ...],
    no_trouble: bool,
    script: tuple[str, ...],
    lease: float,
    version: int,
    mutant: str,
    large: bool,
) -> None:
    folder = Path(tempfile.mkdtemp(prefix="tidebase-ledger-"))
    folder.chmod(0o755)
    machine = Machine(folder, SERVERS[version])
    found: Counter[str] = Counter()
    try:
        for number in range(seed, seed + times):
            finding = siege(
                machine,
                folder / f"seed{number}",
                seconds,
                number,
                () if no_trouble else trouble or TROUBLES,
                scripts=script or tuple(SCRIPTS),
                slots=LARGE if large else SMALL,
                lease_s=lease,
                mutant=mutant,
            )
            for what in ("figures", "faults", "surfaced"):
                click.echo(f"{what}: {dict(getattr(finding, what))}")
            for violation in finding.violations:
                click.secho(violation, fg="red")
            found += kinds(finding.violations)
    finally:
        machine.cluster.stop("immediate")
    for kind, count in found.most_common():
        click.echo(f"{count:5} {kind}")
    click.echo(f"the ledgers are in {folder}")
    raise SystemExit(bool(found))


if __name__ == "__main__":
    main()
