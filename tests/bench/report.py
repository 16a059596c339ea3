"""The result as a table, as JSON and as a chart."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from xml.sax.saxutils import escape

from .harness import Row

_WIDTH, _LEFT, _LINE = 900, 420, 24


def line(row: Row) -> str:
    """One line of the table: the ratio in front, absolute figures behind."""
    bar = "" if row.bar is None else f"{'≥' if row.at_least else '≤'} {number(row.bar)}"
    mark = {None: " ", True: "✓", False: "✗"}[row.reached]
    spread = f"({number(row.low)} to {number(row.high)})" if row.low != row.high else ""
    what = f"{row.scenario}: {row.variant}"
    return f"{mark} {what:<62} {number(row.value):>8} {row.unit:<14} {bar:<8} {spread:<20} {row.note}".rstrip()


def markdown(rows: Sequence[Row]) -> str:
    """The table as the README has it."""
    lines = ["| | measured | bar | |", "| --- | --- | --- | --- |"]
    for row in rows:
        spread = f" ({number(row.low)} to {number(row.high)})" if row.low != row.high else ""
        bar = "" if row.bar is None else f"{'≥' if row.at_least else '≤'} {number(row.bar)}"
        mark = {None: "", True: "", False: " **missed**"}[row.reached]
        lines.append(
            f"| {row.scenario}: {row.variant} | {number(row.value)} {row.unit}{spread} | {bar}{mark} | {row.note} |"
        )
    return "\n".join(lines) + "\n"


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
    """Bars of all ratios; a line across a bar stands where it has to reach (or where it has to end)."""
    most = max([1.0, *(max(row.value, row.bar or 0) for row in rows if row.value < 10)])
    scale = (_WIDTH - _LEFT - 80) / most
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_LINE * (len(rows) + 1)}" '
        'font-family="system-ui, sans-serif" font-size="13">',
        '<rect width="100%" height="100%" fill="white"/>',
    ]
    for index, row in enumerate(rows):
        y = index * _LINE + 12
        length = min(row.value, most) * scale
        colour = {None: "#94a3b8", True: "#0f766e", False: "#b45309"}[row.reached]
        label, figure = escape(f"{row.scenario}: {row.variant}"), escape(f"{number(row.value)} {row.unit}")
        parts.append(f'<text x="{_LEFT - 8}" y="{y + 12}" text-anchor="end">{label}</text>')
        parts.append(f'<rect x="{_LEFT}" y="{y}" width="{length:.1f}" height="16" fill="{colour}"/>')
        parts.append(f'<text x="{_LEFT + length + 6:.1f}" y="{y + 12}">{figure}</text>')
        if row.bar is not None:
            x = _LEFT + min(row.bar, most) * scale
            parts.append(f'<path d="M{x:.1f} {y - 3}v22" stroke="black" stroke-width="2"/>')
    return "\n".join([*parts, "</svg>\n"])
