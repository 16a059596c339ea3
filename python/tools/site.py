"""Builds the documents and a reference of the Python package into a site: ``python python/tools/site.py FOLDER``.

The documents are those of the repository, with their links to each other; the reference is made of the docstrings. The
site asks nothing of other hosts.
"""

from __future__ import annotations

import argparse
import re
import shutil
import tempfile
from pathlib import Path

from mkdocs.commands.build import build
from mkdocs.config import load_config

ROOT = Path(__file__).parents[2]

#: What the pages are called in the site, by their places in the repository.
PAGES = {
    "README.md": "index.md",
    "python/README.md": "python.md",
    "python/guides/README.md": "guides.md",
    "python/guides/testing.md": "testing.md",
    "python/guides/deploying.md": "deploying.md",
    "python/guides/mcp.md": "mcp.md",
    "python/guides/from-a-status-column.md": "from-a-status-column.md",
    "python/guides/from-dbos.md": "from-dbos.md",
    "python/guides/from-absurd.md": "from-absurd.md",
    "python/guides/client-of-your-own.md": "client-of-your-own.md",
    "python/tidebase/integrations/README.md": "integrations.md",
    "sql/README.md": "sql.md",
    "sql/router/README.md": "router.md",
    "tests/README.md": "proof.md",
    "tests/bench/README.md": "speed.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
}
TITLES = [
    "Tidebase in Postgres",
    "Agents in Python",
    "Guides",
    "Testing",
    "Deploying",
    "MCP",
    "From a status column",
    "From DBOS",
    "From Absurd",
    "A client of your own",
    "Integrations",
    "The schema",
    "Several databases",
    "Why you can believe it",
    "Speed",
    "Changes",
    "Contributing",
]

REFERENCE = """# Reference

::: tidebase
    options:
      members: true
      show_root_heading: false
      inherited_members: true

## tide.runs and tide.gates

::: tidebase.client.runs

## What a workflow works with

::: tidebase.client.work
"""


def page(source: str) -> str:
    """A document with links that lead to the pages of the site; what is no page of it is named, and not linked."""
    folder = (ROOT / source).parent

    def link(match: re.Match[str]) -> str:
        text, target = match[1], match[2]
        name, _, anchor = target.partition("#")
        if re.match(r"[a-z]+:", target) or not name:
            return match[0]
        there = (folder / name).resolve().relative_to(ROOT).as_posix()
        if there in PAGES:
            return f"[{text}]({PAGES[there]}{'#' + anchor if anchor else ''})"
        return f"[{text}](files/{Path(there).name})" if there.endswith(".svg") else text

    return re.sub(r"\[([^\]]*)\]\(([^)\s]+)\)", link, (ROOT / source).read_text("utf-8"))


def write_pages(folder: Path) -> None:
    (folder / "files").mkdir(parents=True)
    for source, name in PAGES.items():
        (folder / name).write_text(page(source), "utf-8")
    for picture in (ROOT / "python" / "examples").glob("*.svg"):
        shutil.copy(picture, folder / "files")
    (folder / "reference.md").write_text(REFERENCE, "utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path, help="where the site goes")
    site = parser.parse_args().folder.absolute()
    with tempfile.TemporaryDirectory() as temporary:
        sources = Path(temporary) / "pages"
        write_pages(sources)
        config = Path(temporary) / "mkdocs.yml"
        config.write_text("site_name: Tidebase in Postgres\n", "utf-8")
        names = [*PAGES.values(), "reference.md"]
        build(
            load_config(
                str(config),
                docs_dir=str(sources),
                site_dir=str(site),
                use_directory_urls=False,
                strict=True,
                theme={"name": "material", "font": False, "features": ["navigation.top", "content.code.copy"]},
                nav=[{title: name} for title, name in zip([*TITLES, "Reference"], names, strict=True)],
                plugins=["search", {"mkdocstrings": {"handlers": {"python": {"paths": [str(ROOT / "python")]}}}}],
                markdown_extensions=["tables", "fenced_code", "toc", "attr_list", "pymdownx.superfences"],
            )
        )
    print(site / "index.html")


if __name__ == "__main__":
    main()
