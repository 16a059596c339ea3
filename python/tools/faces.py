"""Makes what is for threads out of what is for asyncio: ``NAME_async.py`` is the source of the ``NAME.py`` beside it.

What truly differs stands in ``_tasks.py`` and ``_threads.py`` of that folder, which have the same names. A paragraph of
a docstring that begins with "With asyncio" is left out. ``--check`` changes nothing, and fails when a file is not up to
date.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from pathlib import Path

import ast_comments as ast

PACKAGE = Path(__file__).parents[1] / "tidebase"

#: Names of asyncio's side that are not those of the threads' with Async before them.
NAMES = {
    "AsyncTransaction": "SyncTransaction",
    "AsyncConnectionPool": "ConnectionPool",
    "enter_async_context": "enter_context",
    "AbstractAsyncContextManager": "AbstractContextManager",
    "asynccontextmanager": "contextmanager",
    "drive_async": "drive",
    "join_async": "join",
    "__aenter__": "__enter__",
    "__aexit__": "__exit__",
}
WORDS = {
    "asyncio": "threads",
    "tasks": "threads",
    "task": "thread",
    "an AsyncSession or": "a Session or",
    "an async function": "a function",
}
_NAME = re.compile(r"\b(?:" + "|".join(NAMES) + r"|Async(?=[A-Z])|(\w+)_async)\b|\bAsync(?=[A-Z])")


def renamed(text: str) -> str:
    """A name, or a text with names in it, as the face for threads has it."""

    def name(match: re.Match[str]) -> str:
        return NAMES.get(match[0], match[1] or "")

    return re.sub(r"\b_tasks\b", "_threads", _NAME.sub(name, text))


def reworded(docstring: str) -> str:
    """A docstring for threads."""
    paragraphs = docstring.split("\n\n")
    text = renamed("\n\n".join(part for part in paragraphs if not part.strip().startswith("With asyncio")))
    for word, other in WORDS.items():
        text = re.sub(rf"\b{word}\b", other, text)
    return text


class ToThreads(ast.NodeTransformer):  # type: ignore[misc]
    """The tree of a module of asyncio's face becomes that of its twin."""

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> ast.AST:
        return self.visit(ast.FunctionDef(**vars(node)))

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.name = renamed(node.name)
        return self._documented(node)

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        node.name = renamed(node.name)
        documented = self._documented(node)
        documented.body = without_twins(documented.body)
        return documented

    def visit_Module(self, node: ast.Module) -> ast.AST:
        return self._documented(node)

    def visit_AsyncWith(self, node: ast.AsyncWith) -> ast.AST:
        return self.visit(ast.With(**vars(node)))

    def visit_AsyncFor(self, node: ast.AsyncFor) -> ast.AST:
        return self.visit(ast.For(**vars(node)))

    def visit_Await(self, node: ast.Await) -> ast.AST:
        return self.visit(node.value)

    def visit_Subscript(self, node: ast.Subscript) -> ast.AST:
        if isinstance(node.value, ast.Name) and node.value.id == "Awaitable":
            return self.visit(node.slice)
        return self.generic_visit(node)

    def visit_Name(self, node: ast.Name) -> ast.AST:
        node.id = renamed(node.id)
        return node

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        node.attr = renamed(node.attr)
        return self.generic_visit(node)

    def visit_alias(self, node: ast.alias) -> ast.AST:
        node.name = renamed(node.name)
        return node

    def visit_ImportFrom(self, node: ast.ImportFrom) -> ast.AST:
        node.module = renamed(node.module or "") or None
        return self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> ast.AST:
        if isinstance(node.value, str):
            node.value = renamed(node.value)
        return node

    def _documented(self, node: ast.AST) -> ast.AST:
        first = node.body[0] if node.body else None
        if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
            first.value.value = reworded(first.value.value)
        return self.generic_visit(node)


def without_twins(body: list[ast.AST]) -> list[ast.AST]:
    """Overloads that differed in what is awaited have become the same."""
    seen: set[str] = set()
    kept = []
    for node in body:
        text = ast.unparse(node)
        if not (isinstance(node, ast.FunctionDef) and text in seen):
            kept.append(node)
        seen.add(text)
    return kept


def twin(source: Path) -> str:
    """The module for threads, formatted."""
    tree = ToThreads().visit(ast.parse(source.read_text()))
    head = f"# Made by python/tools/faces.py out of {source.name}: change that, and run `make faces`.\n"
    return _ruff(head + ast.unparse(ast.fix_missing_locations(tree)), path_of(source))


def path_of(source: Path) -> Path:
    """Where the module for threads stands."""
    return source.with_name(source.name.replace("_async", ""))


def _ruff(text: str, path: Path) -> str:
    """Imports that are not needed any more go, and the lines get their lengths."""
    for command in (["check", "--quiet", "--fix", "--select", "I,F401", "-"], ["format", "--quiet", "-"]):
        ruff = [sys.executable, "-m", "ruff", command[0], *command[1:-1], "--stdin-filename", str(path), "-"]
        text = subprocess.run(ruff, input=text, text=True, capture_output=True, check=True).stdout
    return text


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--check", action="store_true", help="only say which files are not up to date")
    check = parser.parse_args().check
    stale = 0
    for source in sorted(PACKAGE.glob("*/*_async.py")):
        path, text = path_of(source), twin(source)
        if path.exists() and path.read_text() == text:
            continue
        stale += 1
        print(f"{path.relative_to(PACKAGE)} is {'not up to date with' if check else 'made out of'} {source.name}")
        if not check:
            path.write_text(text)
    return 1 if check and stale else 0


if __name__ == "__main__":
    raise SystemExit(main())
