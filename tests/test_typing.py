"""Type checkers read a stranger's code against the package: they accept what is right, and refuse what is wrong.

The code is in ``tests/typed``: ``threads`` and ``tasks`` use every public call of the two faces, ``wrong`` has the
mistakes. mypy and pyright differ in how they solve overloads, ParamSpecs and the keywords of TypedDicts: what one
understands, the other may not. pyright is run as basedpyright, whose wheel has all that it needs.
"""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

ON_NEWEST = True

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "python" / "tidebase"
TYPED = ROOT / "tests" / "typed"
RIGHT = ("threads.py", "tasks.py")

#: Modules of the faces whose names no stranger sees.
INSIDE = {"_tasks.py", "registry.py"}

Mistakes = dict[str, dict[int, str]]


def run(module: str, *arguments: str, package: Path, folder: Path) -> str:
    """What a type checker prints. The package is where an installed one would be: what it does not declare, pyright
    does not guess.
    """
    where = {"PYTHONPATH": str(package), "MYPYPATH": str(package)}
    command = [sys.executable, "-m", module, *arguments]
    result = subprocess.run(command, capture_output=True, text=True, cwd=folder, env={**os.environ, **where})
    if f"No module named {module}" in result.stderr:
        pytest.skip(f"{module} is not installed: it is in the extra `lint`")
    assert result.stdout, result.stderr
    return result.stdout


def mypy(folder: Path, package: Path) -> Mistakes:
    """What `mypy --strict` refuses: by file and line."""
    output = run("mypy", "--strict", "--config-file=", *names(folder), package=package, folder=folder)
    found: Mistakes = {}
    for name, line, message in re.findall(r"^(.+?):(\d+): error: (.*)$", output, re.MULTILINE):
        found.setdefault(name, {}).setdefault(int(line), message)
    assert "Found" in output or "Success" in output, output
    return found


def pyright(folder: Path, package: Path) -> Mistakes:
    """What pyright refuses or warns of in its strict mode: by file and line."""
    (folder / "pyrightconfig.json").write_text('{"include": ["*.py"], "typeCheckingMode": "strict"}')
    output = run("basedpyright", "--pythonpath", sys.executable, "--outputjson", package=package, folder=folder)
    report = json.loads(output)
    assert report["summary"]["filesAnalyzed"] == len(names(folder)), report
    found: Mistakes = {}
    for problem in report["generalDiagnostics"]:
        lines = found.setdefault(Path(problem["file"]).name, {})
        line = problem["range"]["start"]["line"] + 1
        lines[line] = "; ".join(filter(None, [lines.get(line), problem["message"]]))
    return found


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*.py"))


def strangers(folder: Path, *files: str) -> Path:
    """A folder of somebody else's project."""
    for name in files:
        shutil.copy(TYPED / name, folder)
    return folder


@pytest.mark.parametrize("checker", [mypy, pyright], ids=lambda checker: checker.__name__)
def test_a_strangers_code_is_understood_and_its_mistakes_are_refused(
    checker: Callable[[Path, Path], Mistakes], tmp_path: Path
) -> None:
    """Each line with a mistake is refused, and no other one."""
    found = checker(strangers(tmp_path, *RIGHT, "wrong.py"), PACKAGE.parent)
    refused = found.pop("wrong.py", {})
    assert found == {}
    lines = (TYPED / "wrong.py").read_text().splitlines()
    meant = {number: line for number, line in enumerate(lines, start=1) if line.endswith("# refused")}
    assert {number: line for number, line in meant.items() if number not in refused} == {}
    assert {number: message for number, message in refused.items() if number not in meant} == {}


class Signed(ast.NodeTransformer):
    """Every public function of a module returns what nobody expects: its own name, as a Literal. Overloads are counted,
    and what they overload is left alone: no checker looks at it.
    """

    def __init__(self, module: str) -> None:
        self.prefix = module
        self.names: list[str] = []

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        if node.name.startswith("_"):
            return node
        outside, self.prefix = self.prefix, f"{self.prefix}.{node.name}"
        for index, statement in enumerate(node.body):
            node.body[index] = self.visit(statement)
        self.prefix = outside
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> ast.AST:
        public = not node.name.startswith("_") or node.name in ("__call__", "__enter__", "__aenter__")
        overloaded = any(ast.unparse(decorator) == "overload" for decorator in node.decorator_list)
        base = f"{self.prefix}.{node.name}"
        seen = [name for name in self.names if name.partition("#")[0] == base]
        if not public or (seen and not overloaded):
            return node
        name = f"{base}#{len(seen) + 1}" if overloaded else base
        self.names.append(name)
        node.returns = ast.parse(f"typing.Literal[{name!r}]", mode="eval").body
        return node

    visit_AsyncFunctionDef = visit_FunctionDef


def sign(package: Path) -> Iterator[str]:
    """Signs the faces of a copy of the package; returns the names of all that a stranger can call."""
    for path in [*sorted((package / "client").glob("[!_]*.py")), package / "client" / "_threads.py"]:
        if path.name in INSIDE:
            continue
        tree = ast.parse(path.read_text())
        signed = Signed(path.stem)
        if path.name == "_threads.py":  # of which a stranger sees what the face inherits
            tree.body = [signed.visit(node) if getattr(node, "name", "") == "Face" else node for node in tree.body]
        else:
            tree.body = [signed.visit(node) for node in tree.body]
        tree.body.insert(2, ast.parse("import typing").body[0])
        path.write_text(ast.unparse(ast.fix_missing_locations(tree)))
        yield from signed.names


def test_a_strangers_code_uses_every_call_and_every_overload(tmp_path: Path) -> None:
    """In a copy of the package each of them returns its own name: the checker complains of it wherever it is used, and
    says the name of the overload that it has chosen.
    """
    package, folder = tmp_path / "package", tmp_path / "folder"
    folder.mkdir()
    shutil.copytree(PACKAGE, package / "tidebase", ignore=shutil.ignore_patterns("__pycache__"))
    wanted = set(sign(package / "tidebase"))
    assert sum("#" in name for name in wanted) >= 14
    found = pyright(strangers(folder, *RIGHT), package)
    messages = " ".join(message for lines in found.values() for message in lines.values())
    assert wanted - set(re.findall(r"Literal\['([\w.#]+)'\]", messages)) == set()


#: Whose names a stranger sees, and what they are made of.
SEEN = ("tidebase.client.", "tidebase.domain.", "tidebase.core.errors.")


def untold(symbol: dict[str, Any]) -> list[str]:
    """What a checker has to guess about a symbol. What is "partially unknown" follows from another symbol, of which it
    is told, or from psycopg's pools, of which pyright does not know what they are when it looks at a whole package.
    """
    messages = [problem["message"].splitlines()[0] for problem in symbol["diagnostics"]]
    return [message for message in messages if "docstring" not in message and "partially unknown" not in message]


def test_nothing_that_a_stranger_sees_is_of_a_type_to_be_guessed(tmp_path: Path) -> None:
    output = run(
        "basedpyright",
        *("--pythonpath", sys.executable, "--ignoreexternal", "--outputjson", "--verifytypes", "tidebase.client"),
        package=PACKAGE.parent,
        folder=tmp_path,
    )
    symbols = json.loads(output)["typeCompleteness"]["symbols"]
    assert {"tidebase.client.tide.Tidebase.runs", "tidebase.domain.step.StepOptions"} <= {s["name"] for s in symbols}
    guessed = {symbol["name"]: untold(symbol) for symbol in symbols if symbol["name"].startswith(SEEN)}
    assert {name: messages for name, messages in guessed.items() if messages} == {}
