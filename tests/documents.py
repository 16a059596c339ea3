"""The documents: which there are, and what in them is made by a program."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]

_FENCE = re.compile(r"^(```+).*?^\1\s*$", re.DOTALL | re.MULTILINE)
_HEADING = re.compile(r"^#{1,6} +(.*?) *$", re.MULTILINE)


def documents() -> list[Path]:
    """Every Markdown file of the repository, the front page first; not the skill, which is made of the others."""
    folders = [ROOT / name for name in ("docs", "python", "sql", "pgtap", "tests")]
    found = [*ROOT.glob("*.md"), *(path for folder in folders for path in folder.rglob("*.md"))]
    found = [path for path in found if "skills" not in path.parts]
    return sorted(found, key=lambda path: (len(path.relative_to(ROOT).parts), path.name != "README.md", path))


def prose(text: str) -> str:
    """A document without what is in its code blocks."""
    return _FENCE.sub("", text)


def anchors(text: str) -> set[str]:
    """What a link into the document may name: its headings, as GitHub and MkDocs spell them alike."""
    titles = (re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", title) for title in _HEADING.findall(prose(text)))
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def filled(text: str, maker: str, page: str) -> str:
    """The document with the page in the place that is marked as the maker's."""
    begin, end = f"<!-- made by {maker} -->\n", "<!-- end of it -->"
    before, _, rest = text.partition(begin)
    _, _, after = rest.partition(end)
    return f"{before}{begin}{page}{end}{after}"


def fill(document: Path, maker: str, page: str) -> None:
    document.write_text(filled(document.read_text("utf-8"), maker, page), "utf-8")
