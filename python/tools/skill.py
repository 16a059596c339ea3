"""Makes ``llms.txt`` and ``python/skills/tidebase/SKILL.md`` of the documents: ``python python/tools/skill.py``.

With ``--check`` it only says whether they are up to date. What is in them is written in the documents, where the tests
run it.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
SUMMARY = (
    "Durable checkpoints for AI agents, inside the Postgres you already have: named steps that are not done twice,"
    " gates for people, queues, schedules, state with history, budgets. All logic is PL/pgSQL; the Python package is a"
    " thin, typed way to call it."
)

#: The pages, in the order in which they are listed, and what each is for.
PAGES = {
    "README.md": "what it is, a minute in Python and in psql, what is guaranteed",
    "python/README.md": "the guide: steps, gates, state, children, queues, costs, gateway, command line, limits",
    "python/guides/testing.md": "fixtures for tests of workflows: crashes, time that passes, replays",
    "python/guides/deploying.md": "what may change under live runs, replay-check, draining, versions",
    "python/guides/mcp.md": "tidebase mcp, and MCP tools whose calls are durable runs",
    "python/guides/from-a-status-column.md": "moving jobs out of a table with a status",
    "python/guides/from-dbos.md": "moving from DBOS",
    "python/guides/from-absurd.md": "moving from Absurd",
    "python/guides/client-of-your-own.md": "a worker in any language that speaks SQL, shown in Node",
    "python/tidebase/integrations/README.md": "LangGraph and other frameworks",
    "sql/README.md": "the schema: installation, roles, every function, view and error, upgrading",
    "sql/router/README.md": "several databases behind one: where a run lies, what is different",
    "CHANGELOG.md": "what is new",
}

#: What of them an agent has at hand when it writes code: a page, and a heading in it.
SECTIONS = [
    ("README.md", "A minute in Python"),
    ("python/README.md", "Steps"),
    ("python/README.md", "Ask a person"),
    ("python/README.md", "Is it safe to rerun?"),
    ("python/guides/testing.md", "A process dies"),
    ("python/guides/deploying.md", "What fits, and what does not"),
    ("python/README.md", "Errors"),
]

FRONT = """---
name: tidebase
description: >-
  Write, test, deploy and look after durable agent workflows with Tidebase in Postgres (the Python package tidebase):
  steps, gates, side effects, queues, replay of live runs. Use it when code imports tidebase or calls functions of the
  schema tidebase, or when work must survive crashes in Postgres.
---

# Tidebase

"""

RULES = """Rules that save most mistakes:

1. Whatever costs something, or does something to the outside, is a step. Code between steps runs again at every resume.
2. A step is known by its name and key; in a loop it needs a key: `fetch.options(key=url)(url)`. Never rename one under
   live runs.
3. What a step's result depends on is its input: arguments, or `input=` of a closure. Another raises `InputMismatch`.
4. A step that writes to the outside says so: `side_effects=[...]`, with an `idempotency_key` if the other side knows
   one. Without a key a crash leads to a person's review, not to a second charge.
5. Never catch `BaseException` in a workflow; `except Exception` is fine.
6. Give runs ids of your own (`run_id="order-17"`): the same id goes on with the same run.
7. Wait for people with `run.gate(..., suspend=True)`, for time with `run.sleep(..., suspend=True)`: no process waits.
8. Test with the fixtures `tide`, `crash_at`, `advance`, `replay`; before a deploy run `tidebase replay-check`.

"""


def section(page: str, heading: str) -> str:
    """A part of a page, with what is below its heading; links lead from the top of the repository."""
    text = (ROOT / page).read_text("utf-8")
    found = re.search(rf"^(#+) {re.escape(heading)}\n(.*?)(?=^#{{1,2}} |\Z)", text, re.DOTALL | re.MULTILINE)
    assert found is not None, (page, heading)
    body = re.sub(r"^<!--.*?-->\n", "", found[2], flags=re.MULTILINE)
    return f"## {heading}\n{relinked(body, page)}"


def relinked(text: str, page: str) -> str:
    """The text with its links as they are from the top of the repository."""

    def link(match: re.Match[str]) -> str:
        target = match[2]
        if "://" in target:
            return match[0]
        path, hash_, anchor = target.partition("#")
        found = (ROOT / page).parent / path if path else ROOT / page
        return f"[{match[1]}]({found.resolve().relative_to(ROOT).as_posix()}{hash_}{anchor})"

    return re.sub(r"\[([^\]]*)\]\(([^)\s]+)\)", link, text)


def title(page: str) -> str:
    """The heading of a page."""
    return (ROOT / page).read_text("utf-8").split("\n", 1)[0].removeprefix("# ")


def render() -> dict[str, str]:
    """The files, by their paths."""
    links = "".join(f"- [{title(page)}]({page}): {about}\n" for page, about in PAGES.items())
    llms = f"# Tidebase in Postgres\n\n> {SUMMARY}\n\n## Documents\n\n{links}"
    parts = "".join(section(page, heading).rstrip() + "\n\n" for page, heading in SECTIONS)
    skill = f"{FRONT}{SUMMARY}\n\n{RULES}{parts}## More\n\n{links}"
    return {"llms.txt": llms, "python/skills/tidebase/SKILL.md": skill}


def main() -> None:
    """Writes them, or looks whether they are as they should be."""
    stale = [path for path, text in render().items() if not is_fresh(path, text)]
    if "--check" in sys.argv[1:]:
        sys.exit(f"not up to date: {', '.join(stale)}; run python python/tools/skill.py" if stale else 0)
    for path in stale:
        (ROOT / path).parent.mkdir(parents=True, exist_ok=True)
        (ROOT / path).write_text(render()[path], "utf-8")


def is_fresh(path: str, text: str) -> bool:
    """Whether a file has this text."""
    file = ROOT / path
    return file.exists() and file.read_text("utf-8") == text


if __name__ == "__main__":
    main()
