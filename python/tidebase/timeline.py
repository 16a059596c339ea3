"""When what of a run happened, as text for a terminal and as a picture (SVG), drawn from what the database keeps."""

from __future__ import annotations

import math
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import TYPE_CHECKING
from unicodedata import east_asian_width
from xml.sax.saxutils import escape

import click

if TYPE_CHECKING:
    from .run import GateDesk, Runs

_ALIVE = ("running", "pending", "waiting")

#: The colour of a terminal, and that of the picture, for what a bar has come to.
_COLOURS = {
    "completed": ("green", "#2e9e5b"),
    "failed": ("red", "#d64545"),
    "lapsed": ("red", "#d64545"),
    "rejected": ("red", "#d64545"),
    "cancelled": ("bright_black", "#8a8f98"),
    "review": ("magenta", "#a35bd6"),
    "running": ("cyan", "#2b8fd6"),
}
_OTHER = ("yellow", "#d6a02b")


@dataclass(frozen=True)
class Bar:
    """Something that took time.

    ``kind``: attempt, step, gate, timer, child or fork (the edge's type). ``end``: None while it lasts. ``count``: how
    often a step was begun.
    """

    kind: str
    name: str
    status: str
    start: datetime
    end: datetime | None
    count: int = 1


@dataclass(frozen=True)
class Picture:
    """A run's bars: its attempts, then all else by when it began. ``end``: of the last of them, or now."""

    run_id: str
    workflow: str
    status: str
    start: datetime
    end: datetime
    bars: list[Bar]

    @property
    def seconds(self) -> float:
        """How long all of it took; more than nothing."""
        return max((self.end - self.start).total_seconds(), 0.001)

    def share(self, moment: datetime | None) -> float:
        """Where a moment lies between start (0) and end (1)."""
        return ((moment or self.end) - self.start).total_seconds() / self.seconds


def collect(runs: Runs, gates: GateDesk, run_id: str) -> Picture:
    """Reads what there is to draw. Raises RunNotFound."""
    run = runs.get(run_id)
    attempts = [
        Bar("attempt", f"{a.attempt} {a.holder}", a.outcome or "running", a.started_at, a.ended_at)
        for a in runs.attempts(run_id)
    ]
    bars = [
        Bar("step", s.name, s.status, s.started_at, s.completed_at if s.status != "running" else None, s.attempt)
        for s in runs.steps(run_id)
    ]
    bars += [
        Bar(g.kind, g.name, g.decision or g.status, g.created_at, g.decided_at)
        for g in gates.list(run_id=run_id, status=None, max=1000)
    ]
    bars += [
        Bar(node.edge_type or "child", node.name or node.run_id, node.status, node.created_at, node.finished_at)
        for node in runs.tree(run_id)
        if node.parent_run_id == run_id
    ]
    bars = attempts + sorted(bars, key=lambda bar: (bar.start, bar.name))
    moments = [run.created_at, run.updated_at, *(moment for bar in bars for moment in (bar.start, bar.end) if moment)]
    if run.status in _ALIVE:
        moments.append(datetime.now(timezone.utc))
    return Picture(run_id, run.workflow, run.status, min(moments), max(moments), bars)


def as_text(picture: Picture, width: int | None = None) -> str:
    """A line a bar, so many columns wide (by default those of the terminal), with the terminal's colours."""
    width = width or shutil.get_terminal_size((100, 24)).columns
    labels = [_label(bar) for bar in picture.bars]
    label_width = min(max(map(_columns, labels), default=0), max(width // 3, 12))
    notes = [f"{_lasted(picture, bar)}  {bar.status}" for bar in picture.bars]
    room = max(width - label_width - max(map(len, notes), default=0) - 4, 10)
    lines = [
        f"{_plain(picture.run_id)}  {_plain(picture.workflow)}  "
        + click.style(picture.status, fg=_colour(picture.status)[0])
        + f"  {duration(picture.seconds)}"
    ]
    for bar, label, note in zip(picture.bars, labels, notes, strict=True):
        drawn = click.style(_drawn(picture, bar, room), fg=_colour(bar.status)[0])
        lines.append(f"{_fitted(label, label_width)}  {drawn}  {note}")
    return "\n".join(lines) + "\n"


def _drawn(picture: Picture, bar: Bar, room: int) -> str:
    begin = min(int(picture.share(bar.start) * room), room - 1)
    cells = max(round(picture.share(bar.end) * room) - begin, 0)
    mark = "━" * cells if bar.kind == "attempt" else "█" * cells
    return (" " * begin + (mark or "▏")).ljust(room)


def _label(bar: Bar) -> str:
    times = f" x{bar.count}" if bar.count > 1 else ""
    kind = "" if bar.kind == "step" or bar.name.startswith(f"{bar.kind}:") else f"{bar.kind} "
    return ("" if bar.kind == "attempt" else "  ") + kind + _plain(bar.name) + times


def _plain(text: str) -> str:
    """Without what would move the cursor, or is no character of XML."""
    return "".join(c if c.isprintable() else "�" for c in text)


def _columns(text: str) -> int:
    return sum(2 if east_asian_width(c) in "WF" else 1 for c in text)


def _fitted(text: str, width: int) -> str:
    if _columns(text) > width:
        while _columns(text) > width - 1:
            text = text[:-1]
        text += "…"
    return text + " " * (width - _columns(text))


def _lasted(picture: Picture, bar: Bar) -> str:
    return duration(((bar.end or picture.end) - bar.start).total_seconds()).rjust(8)


def duration(seconds: float) -> str:
    """So many seconds, as people say it: 12 ms, 3.21 s, 4m 05s, 2h 10m, 3d 4h."""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.2f} s"
    whole = int(seconds)
    for size, unit, lesser, name in ((86400, "d", 3600, "h"), (3600, "h", 60, "m"), (60, "m", 1, "s")):
        if whole >= size:
            return f"{whole // size}{unit} {whole % size // lesser:02}{name}"
    return f"{whole} s"


def _colour(status: str) -> tuple[str, str]:
    if status in ("approved", "fired", "edited"):
        status = "completed"
    return _COLOURS.get(status, _OTHER)


_ROW, _TOP, _LABELS, _CHART, _NOTES = 22, 58, 230, 560, 170

_STYLE = """
text { font: 12px ui-sans-serif, system-ui, sans-serif; fill: #24292f }
.title { font-size: 15px; font-weight: 600 } .faint { fill: #6e7781 } .grid { stroke: #d0d7de; stroke-width: 1 }
.background { fill: #ffffff }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3 } .faint { fill: #8b949e } .grid { stroke: #30363d } .background { fill: #0d1117 }
}
"""


def as_svg(picture: Picture) -> str:
    """The same as a picture that stands alone, legible on light and dark pages."""
    height = _TOP + len(picture.bars) * _ROW + 16
    width = _LABELS + _CHART + _NOTES
    title = escape(f"{_plain(picture.run_id)} ({_plain(picture.workflow)})")
    told = f"{picture.status}, {duration(picture.seconds)}, from {picture.start.isoformat(timespec='seconds')}"
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
        ' role="img">',
        f"<title>Timeline of the run {title}</title>",
        f"<style>{_STYLE}</style>",
        f'<rect class="background" width="{width}" height="{height}" rx="6"/>',
        f'<text class="title" x="12" y="22">{title}</text>',
        f'<text class="faint" x="12" y="40">{escape(told)}</text>',
        *_grid(picture, height),
    ]
    for row, bar in enumerate(picture.bars):
        lines += _svg_bar(picture, bar, _TOP + row * _ROW)
    return "\n".join([*lines, "</svg>"]) + "\n"


def _grid(picture: Picture, height: int) -> Iterator[str]:
    step = _tick(picture.seconds)
    for number in range(int(picture.seconds / step) + 1):
        x = _LABELS + number * step / picture.seconds * _CHART
        yield f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP - 4}" y2="{height - 12}"/>'
        yield f'<text class="faint" x="{x:.1f}" y="{_TOP - 8}" text-anchor="middle">{duration(number * step)}</text>'


def _tick(seconds: float) -> float:
    """A round number of seconds, of which four to ten fit."""
    rough = seconds / 5
    if rough > 20:
        sizes = (30, 60, 120, 300, 600, 1800, 3600, 7200, 21600, 43200, 86400)
        return next((size for size in sizes if size >= rough), math.ceil(rough / 86400) * 86400)
    power: float = 10.0 ** math.floor(math.log10(rough))
    return next((power * factor for factor in (1, 2, 5) if power * factor >= rough), power * 10)


def _svg_bar(picture: Picture, bar: Bar, y: int) -> Iterator[str]:
    x = _LABELS + picture.share(bar.start) * _CHART
    length = max((picture.share(bar.end) - picture.share(bar.start)) * _CHART, 2)
    thin = bar.kind == "attempt"
    top, thick = (y + 7, 6) if thin else (y + 3, 14)
    label = _label(bar).replace("  ", "\u2003", 1)
    note = re.sub(r"\s+", " ", _lasted(picture, bar)).strip()
    told = escape(f"{label.strip()}: {bar.status}, {note}, from {bar.start.isoformat(timespec='milliseconds')}")
    open_end = ' opacity="0.6"' if bar.end is None else ""
    yield f"<g><title>{told}</title>"
    yield f'<text x="12" y="{y + 14}">{escape(_fitted(label, 32).rstrip())}</text>'
    yield (
        f'<rect x="{x:.1f}" y="{top}" width="{length:.1f}" height="{thick}" rx="2"'
        f' fill="{_colour(bar.status)[1]}"{open_end}/>'
    )
    yield f'<text class="faint" x="{_LABELS + _CHART + 10}" y="{y + 14}">{escape(f"{note} · {bar.status}")}</text></g>'
