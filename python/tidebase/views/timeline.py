"""When what of a run happened, as text for a terminal and as a picture (SVG), drawn from what the database keeps."""

from __future__ import annotations

import math
import re
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import cached_property
from itertools import accumulate, takewhile
from typing import TYPE_CHECKING
from unicodedata import category, east_asian_width
from xml.sax.saxutils import escape

import click

if TYPE_CHECKING:
    from ..client.runs import Runs

#: How many columns the text has at least.
_NARROWEST = 40

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
        """Where a moment lies between start (0) and end (1), as it is drawn."""
        return self.drawn(((moment or self.end) - self.start).total_seconds()) / self.drawn(self.seconds)

    def drawn(self, seconds: float) -> float:
        """So many seconds from the start, without what is left out of the folds before."""
        return seconds - sum(fold.left_out * fold.passed(seconds) for fold in self.folds)

    @cached_property
    def folds(self) -> list[Fold]:
        """The waiting that is drawn shorter than it was, in order: or all else would be too thin to be seen. Where it
        would take two thirds of the picture it is given half: long waits are cut to the same length.
        """
        waits = list(_waits(self))
        waited = sum(end - start for start, end in waits)
        rest = self.seconds - waited
        if rest <= 0 or waited <= 2 * rest:
            return []
        most = _cap([end - start for start, end in waits], rest)
        return [Fold(start, end, most) for start, end in waits if end - start > most]


@dataclass(frozen=True)
class Fold:
    """A time in which a run did nothing but wait, in seconds from the picture's start.

    ``shown``: how long it is drawn.
    """

    start: float
    end: float
    shown: float

    @property
    def place(self) -> tuple[float, float]:
        """From when to when."""
        return self.start, self.end

    @property
    def left_out(self) -> float:
        """How much shorter it is drawn than it was."""
        return self.end - self.start - self.shown

    def passed(self, seconds: float) -> float:
        """How much of it has passed at a time, between nothing (0) and all (1)."""
        return min(max((seconds - self.start) / (self.end - self.start), 0), 1)

    def is_under(self, picture: Picture, bar: Bar) -> bool:
        """Whether a bar goes on through all of it."""
        begun = (bar.start - picture.start).total_seconds()
        ended = ((bar.end or picture.end) - picture.start).total_seconds()
        return begun <= self.start and self.end <= ended


def _waits(picture: Picture) -> Iterator[tuple[float, float]]:
    """When no step and no child was at work, and a gate or timer was waited for, or nobody was there: each time between
    two ends of bars, in seconds from the start.
    """
    changes: list[tuple[float, str, int]] = []
    for bar in picture.bars:
        begun = (bar.start - picture.start).total_seconds()
        ended = ((bar.end or picture.end) - picture.start).total_seconds()
        kind = bar.kind if bar.kind in ("attempt", "step", "gate", "timer", "fork") else "child"
        if kind == "fork" or (bar.end is None and bar.status in ("waiting", "review", "pending") and kind != "gate"):
            kind = "nothing"  # that is at work
        changes += [(begun, kind, 1), (ended, kind, -1)]
    open_now: Counter[str] = Counter()
    unknown = all(bar.kind != "attempt" for bar in picture.bars)  # who was there
    before = 0.0
    for moment, kind, more in [*sorted(changes), (picture.seconds, "nothing", 0)]:
        attended = open_now["attempt"] or unknown
        at_work = open_now["child"] or (open_now["step"] and attended)
        waiting = open_now["gate"] or open_now["timer"] or not attended
        if moment > before and waiting and not at_work:
            yield before, moment
        before = max(before, moment)
        open_now[kind] += more


def _cap(lengths: Sequence[float], room: float) -> float:
    """The length to which the longest are cut, so that all together take so much room."""
    left = room
    ordered = sorted(lengths)
    for number, length in enumerate(ordered):
        share = left / (len(ordered) - number)
        if length > share:
            return share
        left -= length
    return ordered[-1]


def collect(runs: Runs, run_id: str) -> Picture:
    """Reads what there is to draw. Raises RunNotFound."""
    run = runs.get(run_id)
    attempts = [
        Bar("attempt", f"{a.attempt} {a.holder}", a.outcome or "running", a.started_at, a.ended_at)
        for a in runs.attempts(run_id)
    ]
    steps = runs.steps(run_id)
    failures = _failures(runs, run_id) if any(step.status == "failed" for step in steps) else {}
    bars = [
        Bar(
            "step",
            s.name,
            s.status,
            s.started_at,
            failures.get(s.name) if s.status == "failed" else s.completed_at,
            s.attempt,
        )
        for s in steps
    ]
    bars += [Bar(g.kind, g.name, g.decision or g.status, g.created_at, g.decided_at) for g in runs.gates(run_id)]
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


def _failures(runs: Runs, run_id: str) -> dict[str, datetime]:
    """When each step failed last, which only the log knows."""
    ends = ("step.failed", "step.reviewed")
    return {event.payload["name"]: event.created_at for event in runs.events(run_id) if event.type in ends}


def as_text(picture: Picture, width: int | None = None) -> str:
    """A line a bar, so many columns wide (by default those of the terminal), with the terminal's colours."""
    width = max(width or shutil.get_terminal_size((100, 24)).columns, _NARROWEST)
    labels = [_label(bar) for bar in picture.bars]
    label_width = min(max(map(columns, labels), default=0), (width - 10) // 3)
    notes = [f"{_lasted(picture, bar)}  {_shortened(bar.status, width // 4)}" for bar in picture.bars]
    room = width - label_width - max(map(columns, notes), default=0) - 4
    took = duration(picture.seconds)
    title = _shortened(f"{picture.run_id}  {picture.workflow}", width - len(picture.status) - len(took) - 4)
    lines = [f"{title}  {click.style(picture.status, fg=_colour(picture.status)[0])}  {took}"]
    for bar, label, note in zip(picture.bars, labels, notes, strict=True):
        drawn = click.style(_drawn(picture, bar, room), fg=_colour(bar.status)[0])
        lines.append(f"{fitted(label, label_width)}  {drawn}  {note}")
    if picture.folds:
        waited = duration(sum(fold.end - fold.start for fold in picture.folds))
        lines.append(_shortened(f"┄ is waiting, drawn shorter than it was: {waited}", width))
    return "\n".join(lines) + "\n"


def _drawn(picture: Picture, bar: Bar, room: int) -> str:
    begin = min(int(picture.share(bar.start) * room), room - 1)
    cells = max(round(picture.share(bar.end) * room) - begin, 0)
    mark = "━" * cells if bar.kind == "attempt" else "█" * cells
    line = (" " * begin + (mark or "▏")).ljust(room)
    for fold in picture.folds:
        if fold.is_under(picture, bar):
            first, last = (round(picture.drawn(at) / picture.drawn(picture.seconds) * room) for at in fold.place)
            line = line[:first] + "┄" * (last - first) + line[last:]
    return line


def _label(bar: Bar) -> str:
    times = f" x{bar.count}" if bar.count > 1 else ""
    kind = "" if bar.kind == "step" or bar.name.startswith(f"{bar.kind}:") else f"{bar.kind} "
    return ("" if bar.kind == "attempt" else "  ") + _plain(kind + bar.name) + times


def _plain(text: str) -> str:
    """Without what would move the cursor, or is no character of XML."""
    return "".join(c if c.isprintable() else "�" for c in text)


def columns(text: str) -> int:
    """How many columns of a terminal a text takes."""
    return sum(map(_width, text))


def _width(character: str) -> int:
    if category(character) in ("Mn", "Me"):  # an accent on the character before it
        return 0
    return 2 if east_asian_width(character) in "WF" else 1


def fitted(text: str, width: int) -> str:
    """The text in just so many columns: shortened, or with spaces after it."""
    if columns(text) > width:
        taken = accumulate(map(_width, text))
        text = text[: sum(1 for _ in takewhile(lambda so_many: so_many < width, taken))] + "…"
    return text + " " * (width - columns(text))


def _shortened(text: str, width: int) -> str:
    """The text in so many columns at most, without what would move the cursor."""
    return fitted(_plain(text), width).rstrip()


def _lasted(picture: Picture, bar: Bar) -> str:
    return duration(((bar.end or picture.end) - bar.start).total_seconds()).rjust(8)


def duration(seconds: float) -> str:
    """So many seconds, as people say it: 12 ms, 3.21 s, 4m 05s, 2h 10m, 3d 4h."""
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 59.995:
        return f"{seconds:.2f} s"
    whole = round(seconds)
    for size, unit, lesser, name in ((86400, "d", 3600, "h"), (3600, "h", 60, "m"), (60, "m", 1, "s")):
        if whole >= size:
            return f"{whole // size}{unit} {whole % size // lesser:02}{name}"
    return f"{whole} s"


def _colour(status: str) -> tuple[str, str]:
    if status in ("approved", "fired", "edited"):
        status = "completed"
    return _COLOURS.get(status, _OTHER)


_ROW, _TOP, _LABELS, _CHART, _NOTES = 22, 76, 230, 560, 170
_THINNEST = 2

#: How wide a fold must be to have its length written into it.
_LEGIBLE = 44

_STYLE = """
text { font: 12px ui-sans-serif, system-ui, sans-serif; fill: #24292f }
.title { font-size: 15px; font-weight: 600 } .faint { fill: #6e7781 } .grid { stroke: #d0d7de; stroke-width: 1 }
.background { fill: #ffffff } .fold { fill: #ffffff; opacity: 0.8 }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3 } .faint { fill: #8b949e } .grid { stroke: #30363d } .background, .fold { fill: #0d1117 }
}
"""


def as_svg(picture: Picture) -> str:
    """The same as a picture that stands alone, legible on light and dark pages."""
    height = _TOP + len(picture.bars) * _ROW + 16
    width = _LABELS + _CHART + _NOTES
    name = _plain(f"{picture.run_id} ({picture.workflow})")
    told = f"{picture.status}, {duration(picture.seconds)}, from {picture.start.isoformat(timespec='seconds')}"
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
        ' role="img">',
        f"<title>Timeline of the run {escape(name)}</title>",
        f"<style>{_STYLE}</style>",
        f'<rect class="background" width="{width}" height="{height}" rx="6"/>',
        f'<text class="title" x="12" y="22">{escape(_shortened(name, 100))}</text>',
        f'<text class="faint" x="12" y="40">{escape(told)}</text>',
        *_grid(picture, height),
    ]
    for row, bar in enumerate(picture.bars):
        lines += _svg_bar(picture, bar, _TOP + row * _ROW)
    for fold in picture.folds:
        lines += _svg_fold(picture, fold, height)
    return "\n".join([*lines, "</svg>"]) + "\n"


def _grid(picture: Picture, height: int) -> Iterator[str]:
    """Lines at round times; behind a fold they count anew from its end."""
    step = _tick(picture.drawn(picture.seconds))
    begins = [0.0, *(fold.end for fold in picture.folds)]
    ends = [*(fold.start for fold in picture.folds), picture.seconds]
    for begin, end in zip(begins, ends, strict=True):
        for number in range(1 if begin else 0, int((end - begin) / step) + 1):
            x = _x(picture, begin + number * step)
            said = f"+{_at(number * step)}" if begin else _at(number * step)
            yield f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP - 4}" y2="{height - 12}"/>'
            yield f'<text class="faint" x="{x:.1f}" y="{_TOP - 8}" text-anchor="middle">{said}</text>'


def _x(picture: Picture, seconds: float) -> float:
    return _LABELS + picture.drawn(seconds) / picture.drawn(picture.seconds) * _CHART


def _svg_fold(picture: Picture, fold: Fold, height: int) -> Iterator[str]:
    left, right = _x(picture, fold.start), _x(picture, fold.end)
    told = duration(fold.end - fold.start)
    place = f'x="{left:.1f}" y="{_TOP - 4}" width="{right - left:.1f}" height="{height - 12 - _TOP + 4}"'
    yield f'<rect class="fold" {place}><title>{told} of waiting, drawn shorter</title></rect>'
    if right - left > _LEGIBLE:
        middle = (left + right) / 2
        yield f'<text class="faint" x="{middle:.1f}" y="{_TOP - 8}" text-anchor="middle">{told}</text>'


def _tick(seconds: float) -> float:
    """A round number of seconds, of which four to ten fit."""
    most = seconds / 4
    if most >= 86400:
        return most // 86400 * 86400
    if most >= 30:
        sizes = (30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200)
        return max(size for size in sizes if size <= most)
    power: float = 10.0 ** math.floor(math.log10(most))
    return max((power * factor for factor in (1, 2, 5) if power * factor <= most), default=power)


def _at(seconds: float) -> str:
    return f"{seconds * 1000:g} ms" if 0 < seconds < 1 else f"{seconds:g} s" if seconds < 60 else duration(seconds)


def _svg_bar(picture: Picture, bar: Bar, y: int) -> Iterator[str]:
    begin, end = picture.share(bar.start) * _CHART, picture.share(bar.end) * _CHART
    x = _LABELS + min(begin, _CHART - _THINNEST)
    length = max(end - begin, _THINNEST)
    thin = bar.kind == "attempt"
    top, thick = (y + 7, 6) if thin else (y + 3, 14)
    label = _label(bar).replace("  ", "\u2003", 1)
    note = re.sub(r"\s+", " ", _lasted(picture, bar)).strip()
    told = escape(f"{label.strip()}: {_plain(bar.status)}, {note}, from {bar.start.isoformat(timespec='milliseconds')}")
    open_end = ' opacity="0.6"' if bar.end is None else ""
    yield f"<g><title>{told}</title>"
    yield f'<text x="12" y="{y + 14}">{escape(fitted(label, 32).rstrip())}</text>'
    yield (
        f'<rect x="{x:.1f}" y="{top}" width="{length:.1f}" height="{thick}" rx="2"'
        f' fill="{_colour(bar.status)[1]}"{open_end}/>'
    )
    note = escape(f"{note} · {_shortened(bar.status, 14)}")
    yield f'<text class="faint" x="{_LABELS + _CHART + 10}" y="{y + 14}">{note}</text></g>'
