"""The cases as a page: ``python -m tests.sdk.table`` brings ``python/tidebase/server/README.md`` up to date."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import documents

CASES = Path(__file__).with_name("cases.json")
PAGE = documents.ROOT / "python" / "tidebase" / "server" / "README.md"
MAKER = "tests/sdk/table.py"


@dataclass(frozen=True)
class Case:
    """What a client does, what the original answers, and what ours does where that is something else, and why.

    Attributes:
        by: the clients that do it: ``python`` (the published SDK) and ``typescript``.
        per: where it answers otherwise to one of the clients.
    """

    name: str
    about: str
    what: str
    by: list[str]
    original: Any
    ours: Any
    why: str | None
    per: dict[str, Any]

    @property
    def differs(self) -> bool:
        return self.why is not None

    def expected(self, client: str) -> Any:
        return self.per.get(client, self.ours)


def cases() -> list[Case]:
    """All cases, in the order of the file."""
    return [
        Case(
            name,
            about,
            case["what"],
            case.get("by", ["typescript"]),
            case["original"],
            case.get("ours", case["original"]),
            case.get("why"),
            case.get("per", {}),
        )
        for about, group in json.loads(CASES.read_text("utf-8")).items()
        for name, case in group.items()
    ]


def _cell(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text.replace("|", "\\|")


def _code(value: Any) -> str:
    return f"`{_cell(value)}`"


def render() -> str:
    """The page: what is answered otherwise first, with the reasons; then what is the same."""
    every = cases()
    lines = [
        f"{sum(not case.differs for case in every)} of {len(every)} cases are answered as the original does.",
        "",
        "### Answered otherwise",
        "",
        "| case | the original | ours | why |",
        "| --- | --- | --- | --- |",
    ]
    for case in every:
        if case.differs:
            ours = " / ".join(dict.fromkeys(_code(case.expected(client)) for client in case.by))
            lines.append(f"| {_cell(case.what)} | {_code(case.original)} | {ours} | {_cell(case.why)} |")
    lines += ["", "### Answered alike", "", "| about | case | the answer |", "| --- | --- | --- |"]
    lines += [f"| {case.about} | {_cell(case.what)} | {_code(case.original)} |" for case in every if not case.differs]
    return "\n".join(["", *lines, ""])


if __name__ == "__main__":
    documents.fill(PAGE, MAKER, render())
