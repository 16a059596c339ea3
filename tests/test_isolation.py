"""Who waits for whom, at each isolation level: specs for Postgres's own `isolationtester`, one session a line of play.

`tests/isolation/*.spec` say what they show; `expected/NAME.out` is what READ COMMITTED prints, and
`expected/NAME.LEVEL.out` is there where a level prints something else than the weaker one before it.
``TIDEBASE_UPDATE_EXPECTED=1`` rewrites them: read the differences before you commit them.
"""

from __future__ import annotations

import difflib
import os
import shutil
import subprocess
from pathlib import Path

import psycopg
import pytest

from .conftest import Server, first_on_every_version
from .support.patience import PATIENCE_S

FOLDER = Path(__file__).parent / "isolation"
EXPECTED = FOLDER / "expected"
SPECS = sorted(FOLDER.glob("*.spec"))
LEVELS = ("read committed", "repeatable read", "serializable")


def find_tester() -> str | None:
    """Debian has the program in postgresql-client-NN; any version of it drives any server."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/lib/pgxs/src/test/isolation/isolationtester"))
    return str(found[-1]) if found else shutil.which("isolationtester")


def play(spec: Path, level: str, url: str) -> str:
    """What the program prints for a spec. The level is the default of every session, so that a spec just says BEGIN."""
    tester = find_tester()
    assert tester is not None
    options = "-c default_transaction_isolation=" + level.replace(" ", "\\ ")
    environment = {**os.environ, "PGOPTIONS": options, "PGISOLATIONTIMEOUT": "30"}
    with spec.open() as script:
        result = subprocess.run(
            [tester, url], stdin=script, capture_output=True, text=True, env=environment, timeout=PATIENCE_S
        )
    assert result.returncode == 0, result.stdout + result.stderr
    # It pads columns, and says on stderr which steps no permutation uses.
    return "".join(f"{line.rstrip()}\n" for line in (result.stdout + result.stderr).splitlines())


def own_file(spec: Path, level: str) -> Path:
    infix = "" if level == LEVELS[0] else "." + level.replace(" ", "_")
    return EXPECTED / f"{spec.stem}{infix}.out"


def expected_file(spec: Path, level: str) -> Path:
    """The file of the level, or of the strongest weaker one that has a file."""
    files = [own_file(spec, weaker) for weaker in LEVELS[: LEVELS.index(level) + 1]]
    return next((file for file in reversed(files) if file.exists()), files[0])


def update(spec: Path, level: str, url: str) -> None:
    """Writes the level's own file, or removes it where the level prints what the weaker one does."""
    number = LEVELS.index(level)
    printed = play(spec, level, url)
    if number > 0 and printed == play(spec, LEVELS[number - 1], url):
        own_file(spec, level).unlink(missing_ok=True)
    else:
        EXPECTED.mkdir(exist_ok=True)
        own_file(spec, level).write_text(printed)


def test_there_are_specs_and_no_stray_expectations() -> None:
    assert SPECS
    known = {own_file(spec, level) for spec in SPECS for level in LEVELS}
    assert set(EXPECTED.glob("*")) <= known


@pytest.mark.parametrize("level", first_on_every_version(LEVELS), ids=lambda level: level.replace(" ", "_"))
@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.stem)
def test_isolation(spec: Path, level: str, server: Server, database: str) -> None:
    if find_tester() is None:
        pytest.skip("no isolationtester: Debian has it in postgresql-client-15")
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute((FOLDER / "setup.sql").read_text())  # type: ignore[arg-type]
    if os.environ.get("TIDEBASE_UPDATE_EXPECTED"):
        update(spec, level, database)
    wanted = expected_file(spec, level)
    differences = difflib.unified_diff(
        wanted.read_text().splitlines() if wanted.exists() else [],
        play(spec, level, database).splitlines(),
        fromfile=str(wanted.relative_to(FOLDER.parent)),
        tofile=f"{level} on Postgres {server.version}",
        lineterm="",
    )
    assert not (text := "\n".join(differences)), text
