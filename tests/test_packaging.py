"""The wheel has everything that a stranger needs who does not clone the repository."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import tidebase

ON_NEWEST = True

ROOT = Path(__file__).parents[1]


def test_the_sql_is_inside_the_wheel_and_found_there(empty_database: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(tmp_path), str(ROOT)]
    built = subprocess.run(command, capture_output=True, text=True)
    if built.returncode != 0 and "No matching distribution" in built.stderr:
        pytest.skip("the build backend cannot be installed: no network")
    assert built.returncode == 0, built.stderr
    (wheel,) = tmp_path.glob("*.whl")
    installed = tmp_path / "installed"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(installed)
    inside = {path.relative_to(installed / "tidebase").as_posix() for path in (installed / "tidebase").rglob("*.sql")}
    assert inside == {
        path.relative_to(ROOT).as_posix() for path in (ROOT / "sql").rglob("*.sql") if "examples" not in path.parts
    }
    assert (installed / "tidebase" / "py.typed").exists()
    assert wheel.name.split("-")[1] == tidebase.__version__
    code = "import tidebase, sys; print(tidebase.__file__, len(tidebase.Tidebase(sys.argv[1]).migrate().migrations))"
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    result = subprocess.run(
        [sys.executable, "-c", code, empty_database], env=environment, capture_output=True, text=True, cwd=tmp_path
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.split()[0].startswith(str(installed)) and int(result.stdout.split()[1]) >= 1


def bound(package: Path) -> dict[str, str]:
    """The names that the imports of a package's ``__init__`` bind, as pyright reads them in their order: an import from
    a module of the package binds the name of that module, too. Each with what it is bound to in the end.
    """
    names: dict[str, str] = {}
    for statement in ast.parse((package / "__init__.py").read_text("utf-8")).body:
        if isinstance(statement, ast.ImportFrom) and statement.level == 1 and statement.module:
            names[statement.module] = "module"
            names.update({alias.asname or alias.name: statement.module for alias in statement.names})
    return names


PACKAGES = sorted(path.parent for path in (ROOT / "python").rglob("__init__.py"))


@pytest.mark.parametrize("package", PACKAGES, ids=lambda path: path.name)
def test_no_public_name_is_a_module_for_a_type_checker(package: Path) -> None:
    """``@step(...)``: "Module is not callable", where something is imported from the module ``step`` afterwards."""
    names = bound(package)
    public = next(
        (
            ast.literal_eval(statement.value)
            for statement in ast.parse((package / "__init__.py").read_text("utf-8")).body
            if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "__all__"
        ),
        [],
    )
    assert [name for name in public if names.get(name) == "module"] == []


def site(tmp_path: Path) -> Path:
    """A folder as pip leaves it when both packages were installed into it."""
    folder = tmp_path / "site"
    shutil.copytree(ROOT / "python" / "tidebase", folder / "tidebase")
    (folder / "tidebase-0.7.0.dist-info").mkdir()
    (folder / "tidebase-0.7.0.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: tidebase\nVersion: 0.7.0\n"
    )
    return folder


def imported(folder: Path, *command: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    result = subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True, cwd=folder)
    assert result.returncode != 0
    return result.stderr


def test_two_packages_of_one_import_name_in_one_environment_are_told_of(tmp_path: Path) -> None:
    folder = site(tmp_path)
    assert "ImportError: the packages tidebase-postgres and tidebase are both" in imported(
        folder, "-c", "import tidebase"
    )
    (folder / "tidebase" / "__init__.py").write_text("# theirs, installed later\n")
    for command in (["-m", "tidebase.cli"], ["-m", "tidebase", "runs"], ["-c", "from tidebase.cli import main"]):
        assert "Error: the packages tidebase-postgres and tidebase are both" in imported(folder, *command)


def test_the_other_package_in_another_folder_is_no_matter(tmp_path: Path) -> None:
    folder = site(tmp_path)
    shutil.rmtree(folder / "tidebase")
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'python'}:{folder}"}
    command = [sys.executable, "-m", "tidebase", "--version"]
    assert subprocess.run(command, env=environment, capture_output=True, cwd=tmp_path).returncode == 0
