"""The reference of the SQL API: ``python -m tests.sql_reference`` brings ``sql/README.md`` up to date.

It is made of the comments, signatures and grants in an installed database, so it cannot claim what is not there. A
function stands below the file that defines it.
"""

from __future__ import annotations

import html
import re
import tempfile
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg

from tidebase.core import local
from tidebase.schema import migrations

from . import documents
from .conftest import SERVERS, server_settings

PAGE = documents.ROOT / "sql" / "README.md"
MAKER = "tests/sql_reference.py"
FILES = documents.ROOT / "sql" / "functions"

#: What a function may be refused with: the exception of the Python wrapper, and the meaning.
ERRORS = {
    "TB001": ("RunNotFound", "there is no such run"),
    "TB002": ("InvalidArgument", "an argument breaks a rule; the message names it"),
    "TB003": ("LeaseLostError", "the token is not the current one, or another worker has gone on with the thread"),
    "TB004": ("RunCancelledError", "the run was cancelled"),
    "TB005": ("RunFinal", "the run is completed"),
    "TB006": ("InputMismatch", "the same run, step, child or gate was begun with another input"),
    "TB007": (
        "StepNotRunning",
        "the step was not begun, is running already, was done in this attempt, or failed for good",
    ),
    "TB008": ("ReviewNotOpen", "the step is not in review"),
    "TB009": (
        "NotEntitled",
        "the secret is wrong, the user is no approver, or the vote would be nobody's; also for 42501, with the role"
        " that it takes",
    ),
    "TB010": ("BudgetExhausted", "the budget of the run, or of one above it, is used up"),
    "TB011": ("VersionConflict", "the state has another version than expected"),
    "TB012": ("NotFound", "there is no such gate, stream, version, child, recovery, channel or schedule"),
    "TB013": ("AlreadyQueued", "another run of the queue has the dedupe key, and is not over"),
    "TB014": (
        "RunNeedsReview",
        "the run is to be completed while a step of it may have taken effect and nobody has decided about it",
    ),
}

#: More functions than this are not named beside an error: they are most of those that take a run or a token.
FEW = 8

_FUNCTIONS = """
    select p.proname, obj_description(p.oid, 'pg_proc'), p.proretset,
      replace(format_type(p.prorettype, null), 'tidebase.', ''), coalesce(p.proargnames[1:p.pronargs], '{}'),
      array(
        select format('%s %s', p.proargnames[n], format_type(p.proargtypes[n - 1], null))
          || coalesce(' = ' || regexp_replace(pg_get_function_arg_default(p.oid, n), '::[a-z ]+(\\[\\])?$', ''), '')
        from generate_series(1, p.pronargs) as n order by n),
      array(
        select v.audience from tidebase_private.privileges v
        where v.object = 'function tidebase.' || p.proname
        order by array_position(array['worker', 'approver', 'operator', 'reader'], v.audience))
    from pg_proc p
    where p.pronamespace = 'tidebase'::regnamespace
    order by p.proname
"""
_RELATIONS = """
    select c.relname, coalesce(obj_description(c.oid, 'pg_class'), obj_description(c.reltype, 'pg_type')),
      array(
        select a.attname || ' ' || format_type(a.atttypid, null)
        from pg_attribute a where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped order by a.attnum),
      array(
        select v.audience from tidebase_private.privileges v
        where v.object = 'table tidebase.' || c.relname
        order by array_position(array['worker', 'approver', 'operator', 'reader'], v.audience))
    from pg_class c
    where c.relnamespace = 'tidebase'::regnamespace and (c.relkind = %(kind)s
      or %(kind)s = 'c' and c.relkind = 'r' and exists (select from pg_proc p where p.prorettype = c.reltype))
    order by c.relname
"""


@dataclass(frozen=True)
class Function:
    name: str
    comment: str
    many: bool
    result: str
    names: list[str]
    parameters: list[str]
    audience: list[str]

    @property
    def errors(self) -> set[str]:
        return set(re.findall(r"TB\d{3}", self.comment.partition("Errors:")[2]))


@dataclass(frozen=True)
class Relation:
    name: str
    comment: str
    columns: list[str]
    audience: list[str]


@dataclass(frozen=True)
class Api:
    functions: list[Function]
    views: list[Relation]
    results: list[Relation]


def read(connection: psycopg.Connection[Any]) -> Api:
    functions = [Function(*row) for row in connection.execute(_FUNCTIONS)]
    views, results = ([Relation(*row) for row in connection.execute(_RELATIONS, {"kind": kind})] for kind in ("v", "c"))
    return Api(functions, views, results)


def rooms() -> dict[str, str]:
    """The file that defines each function."""
    pattern = re.compile(r"^create or replace function tidebase\.(\w+)", re.MULTILINE)
    return {
        name: path.stem for path in sorted(FILES.glob("*.sql")) for name in pattern.findall(path.read_text("utf-8"))
    }


def render(api: Api) -> str:
    """The reference as Markdown."""
    headed = {one.name for one in (*api.functions, *api.views)}
    lines = ["", "### Functions", ""]
    by_room = defaultdict(list)
    for function in api.functions:
        by_room[rooms()[function.name]].append(function)
    for room, functions in sorted(by_room.items()):
        names = " · ".join(link(function.name) for function in functions)
        lines.append(f"- [`{room}.sql`](functions/{room}.sql): {names}")
    for _, functions in sorted(by_room.items()):
        for function in functions:
            lines += section(function, headed)
    lines += [
        "",
        "### Results",
        "",
        "What functions return that is no plain value: one row, or (*rows*) any number.",
        "",
    ]
    lines += ["| type | columns | |", "| --- | --- | --- |"]
    lines += [f"| `{one.name}` | {columns(one)} | {prose(one.comment, headed)} |" for one in api.results]
    lines += ["", "### Views"]
    for view in api.views:
        lines += ["", f"#### `{view.name}`", "", f"{prose(view.comment, headed)} *{for_whom(view.audience)}*"]
        lines += ["", f"Columns: {columns(view)}."]
    return "\n".join([*lines, "", *errors(api), ""])


def section(function: Function, headed: set[str]) -> list[str]:
    result = f"`{function.result}`" + (" *rows*" if function.many else "")
    return [
        "",
        f"#### `{function.name}`",
        "",
        f"`{function.name}({', '.join(function.parameters)})` → {result}",
        "",
        f"{prose(function.comment, headed - {function.name, *function.names})} *{for_whom(function.audience)}*",
    ]


def errors(api: Api) -> list[str]:
    lines = [
        "### Errors",
        "",
        "Each has a message for people, `DETAIL` as one JSON object for programs, and a `HINT`.",
        "",
        "| SQLSTATE | exception in Python | meaning | raised by |",
        "| --- | --- | --- | --- |",
    ]
    for sqlstate, (exception, meaning) in ERRORS.items():
        raising = [function.name for function in api.functions if sqlstate in function.errors]
        by = ", ".join(link(name) for name in raising) if len(raising) <= FEW else f"{len(raising)} functions"
        lines.append(f"| `{sqlstate}` | `{exception}` | {meaning} | {by} |")
    return [*lines, ""]


def prose(comment: str, headed: set[str]) -> str:
    """A comment, with links to what it names. What is one plain word is left alone: `reconcile` may be the verb."""
    text = html.escape(comment.strip(), quote=False)
    text = re.sub(r"[*|\[\]]", r"\\\g<0>", text)
    return re.sub(r"\b[a-z]+_[a-z_]+\b", lambda word: link(word[0]) if word[0] in headed else word[0], text)


def link(name: str) -> str:
    return f"[`{name}`](#{name})"


def columns(relation: Relation) -> str:
    return ", ".join(f"`{column}`" for column in relation.columns)


def for_whom(audience: list[str]) -> str:
    return f"For: {', '.join(audience)}." if audience else "For: the owner."


def main() -> None:
    version = max(SERVERS)
    with tempfile.TemporaryDirectory(prefix="tidebase-reference-") as folder:
        Path(folder).chmod(0o755)  # the server may run as another user
        cluster = local.Cluster(Path(folder) / "data", SERVERS[version], server_settings(version))
        cluster.start()
        try:
            with psycopg.connect(cluster.url, autocommit=True) as connection:
                migrations.migrate(connection)
                documents.fill(PAGE, MAKER, render(read(connection)))
        finally:
            cluster.stop("immediate")


if __name__ == "__main__":
    main()
