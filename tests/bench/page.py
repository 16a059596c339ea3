"""Takes the table of the last ``make bench`` over into the page about speed: ``python -m tests.bench.page [TABLE]``."""

from __future__ import annotations

import sys
from pathlib import Path

from .. import documents

PAGE = Path(__file__).with_name("README.md")
MAKER = "tests/bench/page.py"
TABLE = Path("build/bench/bench.md")


def main() -> None:
    table = Path(sys.argv[1]) if len(sys.argv) > 1 else TABLE
    documents.fill(PAGE, MAKER, table.read_text("utf-8"))


if __name__ == "__main__":
    main()
