"""The result as a table, as JSON and as a chart."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from xml.sax.saxutils import escape

from .harness import Row

_WIDTH, _LEFT, _RIGHT, _LINE = 990, 410, 170, 24
_MOST = 2.0


def line(row: Row) -> str:
    """One line of the table: the ratio in front, absolute figures behind."""
    bar = "" if row.bar is None else f"{'≥' if row.at_least else '≤'} {number(row.bar)}"
    mark = {None: " ", True: "✓", False: "✗"}[row.reached]
    spread = f"({number(row.low)} to {number(row.high)})" if row.low != row.high else ""
    what = f"{row.scenario}: {row.variant}"
    return f"{mark} {what:<62} {number(row.value):>8} {row.unit:<14} {bar:<8} {spread:<20} {row.note}".rstrip()


def markdown(rows: Sequence[Row]) -> str:
    """The table as the page about speed has it."""
    lines = ["| | measured | bar | |", "| --- | --- | --- | --- |"]
    for row in rows:
        spread = f" ({number(row.low)} to {number(row.high)})" if row.low != row.high else ""
        bar = "" if row.bar is None else f"{'≥' if row.at_least else '≤'} {number(row.bar)}"
        mark = {None: "", True: "", False: " **missed**"}[row.reached]
        lines.append(
            f"| {row.scenario}: {row.variant} | {number(row.value)} {row.unit}{spread} | {bar}{mark} | {row.note} |"
        )
    return "\n".join(lines) + "\n"


def read(path: Path) -> list[Row]:
    """The rows of a bench.json."""
    known = {field.name for field in fields(Row)}
    found = json.loads(path.read_text("utf-8"))["rows"]
    return [Row(**{name: value for name, value in row.items() if name in known}) for row in found]


def compared(old: Sequence[Row], new: Sequence[Row]) -> str:
    """What became of each figure, as a table; better and worse only where the spreads do not touch. Figures that are
    not ratios are those of a machine and of an hour: they say something only when both were measured in turns there.
    """
    before = {(row.scenario, row.variant): row for row in old}
    lines = ["| | before | now | |", "| --- | --- | --- | --- |"]
    for row in new:
        was = before.pop((row.scenario, row.variant), None)
        if was is not None and was.unit != row.unit:
            was = None
        said = "" if was is None else f"{number(was.value)} {was.unit}"
        now = f"{number(row.value)} {row.unit}"
        lines.append(f"| {row.scenario}: {row.variant} | {said} | {now} | {_change(was, row)} |")
    lines += [f"| {row.scenario}: {row.variant} | {number(row.value)} {row.unit} | | |" for row in before.values()]
    return "\n".join(lines) + "\n"


def _change(was: Row | None, row: Row) -> str:
    if was is None:
        return "new"
    factor = f"x {row.value / was.value:.2f}" if was.value else ""
    if row.low <= was.high and was.low <= row.high:
        return f"{factor} (the spreads overlap)".strip()
    return f"{factor} **{'better' if (row.value > was.value) == _grows(row) else 'worse'}**".strip()


def _grows(row: Row) -> bool:
    """Whether more is better: as its bar says, else as its unit does."""
    return row.at_least if row.bar is not None else row.unit in ("x floor", "x peer", "x none") or "/s" in row.unit


def number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.2f}" if abs(value) < 10 else f"{value:.1f}"


def write(rows: Sequence[Row], about: dict[str, str | int | float], folder: Path) -> list[Path]:
    """Writes bench.json, bench.md and bench.svg and returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    data = folder / "bench.json"
    data.write_text(json.dumps({**about, "rows": [row.as_json() for row in rows]}, indent=2, ensure_ascii=False) + "\n")
    table = folder / "bench.md"
    table.write_text(markdown(rows), "utf-8")
    chart = folder / "bench.svg"
    chart.write_text(svg([row for row in rows if row.unit.startswith("x")]), "utf-8")
    return [data, table, chart]


def svg(rows: Sequence[Row]) -> str:
    """Bars of the ratios, cut off at twice the floor; a line across stands where a bar has to reach, or has to end."""
    scale = (_WIDTH - _LEFT - _RIGHT) / _MOST
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_LINE * (len(rows) + 1)}" '
        'font-family="system-ui, sans-serif" font-size="13">',
        '<rect width="100%" height="100%" fill="white"/>',
    ]
    for index, row in enumerate(rows):
        y = index * _LINE + 12
        colour = {None: "#94a3b8", True: "#0f766e", False: "#b45309"}[row.reached]
        label, figure = escape(f"{row.scenario}: {row.variant}"), escape(f"{number(row.value)} {row.unit}")
        parts.append(f'<text x="{_LEFT - 8}" y="{y + 12}" text-anchor="end">{label}</text>')
        parts.append(
            f'<rect x="{_LEFT}" y="{y}" width="{min(row.value, _MOST) * scale:.1f}" height="16" fill="{colour}"/>'
        )
        parts.append(f'<text x="{_WIDTH - _RIGHT + 12}" y="{y + 12}">{figure}</text>')
        if row.bar is not None and row.bar <= _MOST:
            parts.append(f'<path d="M{_LEFT + row.bar * scale:.1f} {y - 3}v22" stroke="black" stroke-width="2"/>')
    return "\n".join([*parts, "</svg>\n"])
