"""What the research agent reads: the documentation of Python's standard library, as it lies on this machine.

Every public module, class, function and method that has a docstring is a document. ``search`` ranks them for a list of
terms, ``read`` opens one and takes notes. Nothing here knows about Tidebase: these are the plain functions an agent is
made of, with plain values going in and coming out.
"""

from __future__ import annotations

import ast
import inspect
import math
import re
import sysconfig
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

LIBRARY = Path(sysconfig.get_path("stdlib"))
SKIPPED = {
    "test",
    "tests",
    "site-packages",
    "dist-packages",
    "distutils",
    "idlelib",
    "lib2to3",
    "turtledemo",
    "pydoc_data",
    "encodings",
}
STOP_WORDS = frozenset(
    re.findall(
        r"\w+",
        """
        a all also an and any are as at be been best but by can could do does each for from get give good has have how
        i if in into is it its itself just keep make may me most must my need not of on one only or other our out own
        python safe should show so some such take than that the their them then there these they this those to use used
        using want was way we were what when where whether which while who why will with without would you your
        """,
    )
)


@dataclass(frozen=True)
class Hit:
    """A document that was found: its qualified name, the file below the library, the line, how well it fits."""

    name: str
    file: str
    line: int
    score: float


@dataclass(frozen=True)
class Note:
    """What was read in one document.

    Attributes:
        signature: how it is called, or "" for a module.
        sentences: its documentation, sentence by sentence.
        excerpt: the lines of its source that have most to do with the question, and the first one's number.
        use: a line of the library that uses it, as ``file:line  code``; "" when none was found.
    """

    name: str
    file: str
    line: int
    signature: str
    sentences: list[str]
    excerpt: str
    excerpt_line: int
    use: str


def words(text: str) -> list[str]:
    """The words of a text that carry meaning, cut to their stems: ``TimeoutExpired`` is timeout and expir."""
    apart = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", text)
    return [stem(word) for word in re.findall(r"[a-z][a-z0-9]+", apart.lower()) if word not in STOP_WORDS]


def stem(word: str) -> str:
    """The word without the commonest English endings, so that "hangs" finds "hang" and "killed" finds "kill"."""
    for ending in ("ing", "ies", "ied", "ed", "es", "s"):
        if word.endswith(ending) and len(word) - len(ending) >= 3 and not word.endswith("ss"):
            word = word[: -len(ending)] + ("y" if ending in ("ies", "ied") else "")
            if len(word) > 3 and word[-1] == word[-2] and word[-1] in "bdgmnprt":
                word = word[:-1]
            break
    return word.rstrip("e") if len(word) > 4 else word


class Bm25:
    """Okapi BM25 (Robertson and Zaragoza, 2009), weighted by how many of the terms a document has at all."""

    def __init__(self, documents: Iterable[Counter[str]]) -> None:
        self._documents = list(documents)
        self._average = sum(doc.total() for doc in self._documents) / max(1, len(self._documents))
        self._frequency = Counter(word for doc in self._documents for word in doc)

    def scores(self, terms: list[str]) -> list[float]:
        return [self._score(doc, terms) for doc in self._documents]

    def _score(self, doc: Counter[str], terms: list[str]) -> float:
        found = [term for term in terms if doc[term]]
        length = 1.2 * (0.4 + 0.6 * doc.total() / self._average)
        sum_ = sum(self._rarity(term) * doc[term] * 2.2 / (doc[term] + length) for term in found)
        return float(sum_ * (len(found) / len(terms)) ** 0.7) if found else 0.0

    def _rarity(self, term: str) -> float:
        having = self._frequency[term]
        return math.log(1 + (len(self._documents) - having + 0.5) / (having + 0.5))


def search(terms: list[str], limit: int = 6, per_module: int = 3) -> list[Hit]:
    """The documents that fit the terms best. A module in which everything is about the terms lifts its documents."""
    found: list[Hit] = []
    bags: list[Counter[str]] = []
    modules: dict[str, Counter[str]] = {}
    for file in _files():
        for name, node in _symbols(_parse(file), _module(file)):
            text = ast.get_docstring(node)
            if text:
                found.append(Hit(name, file.as_posix(), getattr(node, "lineno", 1), 0.0))
                # The name says more than the prose: it counts twice, and no word counts more than six times.
                bags.append(Counter({word: min(n, 6) for word, n in Counter(words(text)).items()}))
                bags[-1].update(2 * list(set(words(name))))
                modules.setdefault(file.as_posix(), Counter()).update(bags[-1].keys())
    lift = dict(zip(modules, Bm25(modules.values()).scores(terms), strict=True))
    ranked = sorted(
        (Hit(hit.name, hit.file, hit.line, round(own + lift[hit.file], 2))
         for hit, own in zip(found, Bm25(bags).scores(terms), strict=True) if own > 0),
        key=lambda hit: (-hit.score, hit.name),
    )  # fmt: skip
    chosen: list[Hit] = []
    for hit in ranked:
        if sum(other.file == hit.file for other in chosen) < per_module:
            chosen.append(hit)
    return chosen[:limit]


def read(hit: Hit, terms: list[str]) -> Note:
    """Opens a document: its documentation, its signature, the telling lines of its source, and how it is used."""
    file = Path(hit.file)
    source = (LIBRARY / file).read_text("utf-8", errors="replace")
    node = dict(_symbols(ast.parse(source), _module(file)))[hit.name]
    first, excerpt = _excerpt(node, source.splitlines(), set(terms))
    return Note(
        name=hit.name,
        file=hit.file,
        line=hit.line,
        signature=_signature(node),
        sentences=sentences(ast.get_docstring(node) or ""),
        excerpt=excerpt,
        excerpt_line=first,
        use=_use(hit, set(terms)),
    )


def sentences(docstring: str) -> list[str]:
    """The prose of a docstring: no examples, no tables, no headings, no markup."""
    prose = []
    for paragraph in re.split(r"\n\s*\n", inspect.cleandoc(docstring)):
        lines = paragraph.splitlines()
        if (
            any(re.match(r"\s*(>>>|\.\. |:\w|[-=*#|+~]|\w+\s+-- |\S+\(.*\)$)", line) for line in lines)
            or lines[0][:1].isspace()
        ):
            continue
        text = re.sub(r":\w+:`([^`]*)`", r"\1", " ".join(" ".join(lines).split())).replace("``", "")
        prose += re.split(r"(?<=[.!?])\s+(?=[A-Z])", text)
    return [text for text in prose if 5 <= len(text.split()) <= 45 and text[0].isupper() and text[-1] in ".!?"]


Node = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def _files() -> Iterator[Path]:
    """The public modules, relative to the library, in a fixed order: two machines find the same."""
    for path in sorted(LIBRARY.rglob("*.py")):
        file = path.relative_to(LIBRARY)
        hidden = any(part.startswith("_") and part != "__init__.py" for part in file.parts)
        if not hidden and SKIPPED.isdisjoint(file.parts):
            yield file


def _module(file: Path) -> str:
    return ".".join(file.with_suffix("").parts).removesuffix(".__init__")


def _parse(file: Path) -> ast.Module:
    try:
        return ast.parse((LIBRARY / file).read_text("utf-8", errors="replace"))
    except SyntaxError:  # a file that is not meant for this Python
        return ast.Module([], [])


def _symbols(node: Node, name: str) -> Iterator[tuple[str, Node]]:
    yield name, node
    for child in node.body:
        if isinstance(child, ast.ClassDef) and not child.name.startswith("_"):
            yield from _symbols(child, f"{name}.{child.name}")
        elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef) and not child.name.startswith("_"):
            yield f"{name}.{child.name}", child


def _signature(node: Node) -> str:
    if isinstance(node, ast.Module):
        return ""
    if isinstance(node, ast.ClassDef):
        inits = [child for child in node.body if isinstance(child, ast.FunctionDef) and child.name == "__init__"]
        return f"class {node.name}" + (_arguments(inits[0]) if inits else "")
    return ("async " if isinstance(node, ast.AsyncFunctionDef) else "") + node.name + _arguments(node)


def _arguments(function: ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    text = ast.unparse(function.args)
    return "(" + re.sub(r"^(self|cls)(, /)?(, |$)", "", text) + ")"


def _excerpt(node: Node, lines: list[str], terms: set[str], size: int = 9) -> tuple[int, str]:
    """The few lines inside one function that mention most of the terms, and the first one's number."""
    best = (1, 0, [""])  # a single term is no reason to show anything
    for function in ast.walk(node) if not isinstance(node, ast.Module) else ():
        if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        body = function.body[1:] if ast.get_docstring(function) else function.body
        for statement in ast.walk(ast.Module(body, [])):
            if isinstance(statement, ast.stmt):
                first = statement.lineno
                window = lines[first - 1 : min(first - 1 + size, function.end_lineno or first)]
                found = terms.intersection(word for line in window for word in words(line))
                if len(found) > 1:
                    best = max(best, (len(found), -first, window))
    while len(best[2]) > 1 and re.match(r"\s*#|.*:$", best[2][-1]):  # a comment or a block that is cut off
        best[2].pop()
    return -best[1], inspect.cleandoc("\n" + "\n".join(best[2])) if best[1] else ""


def _use(hit: Hit, terms: set[str]) -> str:
    """Where else in the library it is called; of several places the one that has most to do with the terms."""
    call = ".".join(hit.name.split(".")[-2:]) + "("
    best = (0, "")
    for file in _files() if "." in hit.name else ():
        text = "" if file.as_posix() == hit.file else (LIBRARY / file).read_text("utf-8", errors="replace")
        for number, line in enumerate(text.splitlines() if call in text else (), 1):
            code = line.strip()
            if call in code and len(code) <= 80 and not code.startswith(("#", ">>>")):
                best = max(best, (1 + len(terms & set(words(code))), f"{file.as_posix()}:{number}  {code}"))
    return best[1]
