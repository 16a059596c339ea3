"""What the commands share: the options, the arguments of their own kinds, and how things are printed."""

from __future__ import annotations

import json
import re
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, is_dataclass
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ..client.tide import Tidebase
from ..core.sources import named_url
from ..views import timeline as drawing

F = TypeVar("F", bound=Callable[..., Any])

_UNITS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}

#: No duration is longer, in days: so that every time that is so long ago exists, and every pause can be waited for.
_LONGEST = 36500

if TYPE_CHECKING:
    ParamType = click.ParamType[Any]
else:  # which is not generic in older ones
    ParamType = click.ParamType

#: Numbers as the database counts: events in a bigint, versions in an integer.
SEQ = click.IntRange(0, 2**63 - 1)
VERSION = click.IntRange(0, 2**31 - 1)


class Duration(ParamType):
    """``30s``, ``5m``, ``2h``, ``30d``, ``1h30m``; ``positive``: more than nothing."""

    name = "duration"

    def __init__(self, *, positive: bool = False) -> None:
        self._positive = positive

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> timedelta:
        if isinstance(value, timedelta):
            return value
        parts = re.findall(r"(\d+(?:\.\d+)?)(ms|[smhdw])", value)
        if not parts or "".join(number + unit for number, unit in parts) != value:
            self.fail(f"{value!r} is no duration such as 30s, 5m, 2h, 30d or 1h30m", param, ctx)
        seconds = sum(float(number) * _UNITS[unit] for number, unit in parts)
        if seconds > _LONGEST * _UNITS["d"]:
            self.fail(f"it must not be longer than {_LONGEST}d", param, ctx)
        if self._positive and not seconds:
            self.fail("it must be longer than nothing", param, ctx)
        return timedelta(seconds=seconds)


class Json(ParamType):
    """JSON, or ``@FILE`` with it, or ``-`` for standard input."""

    name = "json"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        try:
            if value == "-":
                value = sys.stdin.read()
            elif value.startswith("@"):
                value = Path(value[1:]).read_text("utf-8")
            return json.loads(value)
        except (OSError, ValueError) as error:
            self.fail(f"this is no JSON: {error}", param, ctx)
        except RecursionError:
            self.fail("this JSON is nested too deeply", param, ctx)


class Amount(ParamType):
    """A sum of money: ``12.50``."""

    name = "amount"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Decimal:
        if isinstance(value, Decimal):
            return value
        if re.fullmatch(r"[0-9]{1,20}(\.[0-9]{1,20})?", value) is None:
            self.fail(f"{value!r} is no amount such as 12.50", param, ctx)
        return Decimal(value)


class Time(ParamType):
    """A time in ISO 8601, in UTC where it names no zone; or a duration: so long ago."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        if isinstance(value, datetime):
            return value
        try:
            moment = datetime.fromisoformat(re.sub(r"[zZ]$", "+00:00", value))
        except ValueError:
            return datetime.now(timezone.utc) - DURATION.convert(value, param, ctx)
        return moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)


DURATION = Duration()
PAUSE = Duration(positive=True)
AMOUNT = Amount()
JSON = Json()
TIME = Time()


def named(given: str | None) -> str:
    """No command but ``dev`` starts a Postgres: in the wrong folder, it would be an empty one that goes on running."""
    url = named_url(given)
    if url is None:
        raise click.UsageError(
            "no database is named. Three ways to do that: --database URL; the environment variable"
            " TIDEBASE_DATABASE_URL (or DATABASE_URL, or libpq's PGHOST ...); or, for a Postgres of your own here:"
            ' eval "$(tidebase dev)"'
        )
    return url


def _named(ctx: click.Context, param: click.Parameter, given: str | None) -> str | None:
    return given if ctx.resilient_parsing else named(given)


database_option = click.option(
    "--database",
    metavar="URL",
    callback=_named,
    help="Where the database is; by default TIDEBASE_DATABASE_URL, DATABASE_URL, or libpq's variables.",
)
_json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def common(command: F) -> F:
    """The options that every command has: ``--database`` and ``--json``."""
    return database_option(_json_option(command))


def connected(database: str | None) -> Tidebase:
    return Tidebase(database)


def until_stopped(pause_s: float) -> Iterator[None]:
    """Goes on, with a pause in between, until SIGTERM comes."""
    stopped = threading.Event()
    # In a thread of its own: the one that is interrupted may have the event's lock, for which the handler would wait.
    signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=stopped.set, daemon=True).start())
    while not stopped.is_set():
        yield
        stopped.wait(pause_s)


def plain(value: Any) -> Any:
    """A value as JSON has it."""
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value))
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, datetime):
        return value.astimezone(timezone.utc).isoformat().replace("+00:00", "Z")
    if isinstance(value, timedelta):
        return value.total_seconds()
    return str(value) if isinstance(value, Decimal) else value


def print_json(value: Any) -> None:
    print_line(_json(value))


def print_line(text: str, *, err: bool = False) -> None:
    """A line with what somebody stored in it."""
    click.echo(visible(text), err=err)


def print_block(text: str) -> None:
    """Several lines, such as a traceback."""
    for line in text.rstrip().split("\n"):
        print_line(line)


def pretty(value: Any) -> str:
    """A value as JSON for people."""
    return json.dumps(plain(value), ensure_ascii=False, indent=2)


def short(value: Any) -> str:
    """A value in a line of text."""
    if value is None:
        return ""
    if isinstance(value, datetime):
        return value.astimezone().strftime("%Y-%m-%d %H:%M:%S")
    if isinstance(value, timedelta):
        return f"{value.total_seconds():.3f} s"
    return visible(_json(value) if isinstance(value, (dict, list, bool)) else str(value))


def _json(value: Any) -> str:
    return json.dumps(plain(value), ensure_ascii=False)


def visible(text: str) -> str:
    """Without control characters: what is stored shall not drive the terminal. They are written as JSON does, so that
    JSON stays JSON.
    """
    return "".join(c if c.isprintable() else json.dumps(c)[1:-1] for c in text)


def age(moment: datetime | None) -> str:
    """How long ago something was."""
    if moment is None:
        return ""
    seconds = max((datetime.now(timezone.utc) - moment).total_seconds(), 0)
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= size:
            return f"{seconds / size:.0f}{unit} ago"
    return f"{seconds:.0f}s ago"


def print_table(columns: Sequence[str], rows: Iterable[Sequence[Any]], nothing: str) -> None:
    """Rows under their headings; by Rich where it is installed and somebody looks: then what is too long is folded, but
    for the ids of runs, which are to be copied.
    """
    texts = [[short(value) for value in row] for row in rows]
    if not texts:
        click.echo(nothing)
        return
    if sys.stdout.isatty() and _print_rich(columns, texts):
        return
    lines = [[column.upper() for column in columns], *texts]
    widths = [max(map(drawing.columns, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        click.echo("  ".join(map(drawing.fitted, line, widths)).rstrip())


def _print_rich(columns: Sequence[str], texts: list[list[str]]) -> bool:
    try:
        from rich.console import Console
        from rich.table import Column, Table
        from rich.text import Text
    except ImportError:
        return False
    width = shutil.get_terminal_size().columns
    made = [
        Column(column, overflow="fold", no_wrap=column == "run" and max(map(drawing.columns, values)) <= width)
        for column, values in zip(columns, zip(*texts, strict=True), strict=True)
    ]
    table = Table(*made, box=None, pad_edge=False, header_style="bold")
    for line in texts:
        table.add_row(*map(Text, line))
    Console(width=width).print(table)
    return True


def print_fields(fields: dict[str, Any]) -> None:
    """Names and values, one a line, those that say something."""
    given = {name: short(value) for name, value in fields.items() if value not in (None, "", [], {})}
    width = max(map(len, given), default=0)
    for name, text in given.items():
        click.echo(f"{name.ljust(width)}  {text}")
