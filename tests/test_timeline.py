"""The timeline: everything that happened is in it, it stays within its bounds, and no name breaks it."""

from __future__ import annotations

import re
from contextlib import suppress
from datetime import datetime, timedelta, timezone
from typing import Any
from unicodedata import category, east_asian_width
from xml.etree import ElementTree

import click
import pytest

from tidebase import Run, RunNotFound, Tidebase
from tidebase.views.timeline import Bar, Picture, _tick, as_svg, as_text, collect, duration

from .probes.support import Connection, values

ON_NEWEST = True

NOON = datetime(2026, 3, 1, 12, tzinfo=timezone.utc)
DRAWN = {"svg", "title", "style", "rect", "text", "line", "g"}
SVG = "{http://www.w3.org/2000/svg}"

#: What is no character of XML, would move a cursor, or means something in markup.
ODD = "<b>&amp;\"'" + "".join(map(chr, range(32))) + "\x7f\x9b\u202e\u2028\ud800\udfff\ufffe\uffff]]>"


def at(seconds: float) -> datetime:
    return NOON + timedelta(seconds=seconds)


def bar(name: str = "s", start: float = 0, end: float | None = 1, kind: str = "step", status: str = "completed") -> Bar:
    return Bar(kind, name, status, at(start), None if end is None else at(end))


def picture(
    *bars: Bar, seconds: float = 10, run_id: str = "r", workflow: str = "w", status: str = "running"
) -> Picture:
    return Picture(run_id, workflow, status, NOON, at(seconds), list(bars))


def lines(drawn: Picture, width: int | None = 100) -> list[str]:
    return click.unstyle(as_text(drawn, width)).splitlines()


def columns(text: str) -> int:
    """How many columns a terminal takes for a text, said anew."""
    return sum(0 if category(c).startswith("M") else 1 + (east_asian_width(c) in ("W", "F")) for c in text)


def begins(line: str) -> int:
    """The column in which the bar of a line begins."""
    return columns(re.split("[█━▏]", line)[0])


def svg(drawn: Picture) -> ElementTree.Element:
    """The picture as XML, all of whose bars lie in the chart."""
    root = ElementTree.fromstring(as_svg(drawn).encode())
    assert root.tag == f"{SVG}svg"
    for rectangle in rectangles(root):
        x, width = float(rectangle.attrib["x"]), float(rectangle.attrib["width"])
        assert 230 <= x <= x + width <= 230 + 560.11 and width >= 2
        assert 0 <= float(rectangle.attrib["y"]) <= float(root.attrib["height"]) - float(rectangle.attrib["height"])
    for line in root.iter(f"{SVG}line"):
        assert 230 <= float(line.attrib["x1"]) == float(line.attrib["x2"]) <= 230 + 560.11
    return root


def rectangles(root: ElementTree.Element) -> list[ElementTree.Element]:
    return [rectangle for group in root.iter(f"{SVG}g") for rectangle in group.iter(f"{SVG}rect")]


def texts(root: ElementTree.Element) -> str:
    return "\n".join(root.itertext())


# -- from the database


def busy(run: Run, _: Any) -> Any:
    failures = iter([RuntimeError("once")])

    def flaky() -> str:
        for failure in failures:
            raise failure
        return "done"

    run.step("plan", lambda: 1)
    run.step("flaky", flaky, retries=1, retry_delay_s=0)
    run.child("kid", lambda child, _: child.step("k", lambda: 1), name="helper")
    run.gates.begin("open", "Well?")
    return run.gate("approval", "Go on?", suspend=True).decision


def test_everything_that_a_run_did_is_drawn(tide: Tidebase) -> None:
    with pytest.raises(BaseException, match="waits for 'approval'"):
        tide.run("w", busy, run_id="r")
    waiting = collect(tide.runs, "r")
    assert waiting.status == "waiting" and waiting.end >= max(bar.start for bar in waiting.bars)
    tide.gates.decide("r", "approval", "approved")
    assert tide.run("w", busy, run_id="r") == "approved"
    tide.runs.fork("r", "branch", through_step="flaky")
    drawn = collect(tide.runs, "r")
    assert [(bar.kind, bar.status) for bar in drawn.bars[:2]] == [("attempt", "suspended"), ("attempt", "completed")]
    others = {(bar.kind, bar.name): bar for bar in drawn.bars[2:]}
    assert others["step", "flaky"].count == 2 and others["step", "plan"].count == 1
    assert others["gate", "approval"].status == "approved" and others["gate", "approval"].end is not None
    assert others["gate", "open"].end is None or others["gate", "open"].status != "pending"
    kid = next(bar for bar in drawn.bars if bar.name == "helper")
    assert kid.status == "completed" and kid.end is not None
    fork = next(bar for bar in drawn.bars if bar.kind == "fork")
    assert fork.status == "pending" and fork.end is None
    starts = [bar.start for bar in drawn.bars[2:]]
    assert starts == sorted(starts) and drawn.start <= min(starts)
    assert all(drawn.start <= bar.start <= (bar.end or drawn.end) <= drawn.end for bar in drawn.bars)
    text, root = "\n".join(lines(drawn)), svg(drawn)
    for name in ("plan", "flaky x2", "gate open", "gate approval", "helper", "fork"):
        assert name in text and name in texts(root)
    assert "approved" in text and len(rectangles(root)) == len(drawn.bars)
    assert len(text.splitlines()) == 1 + len(drawn.bars) + bool(drawn.folds)  # the machine may be slow


def test_a_step_that_failed_ends_where_it_failed(tide: Tidebase) -> None:
    def work(run: Run, _: Any) -> None:
        with suppress(ZeroDivisionError):
            run.step("fails", lambda: 1 / 0)
        run.sleep("pause", 0.05)
        run.step("last", lambda: 1)

    tide.run("w", work, run_id="r")
    bars = {bar.name: bar for bar in collect(tide.runs, "r").bars}
    failed, last = bars["fails"], bars["last"]
    pause = bars["pause"]
    assert (pause.kind, pause.end is not None and pause.end <= last.start) == ("timer", True)
    assert failed.status == "failed" and failed.end is not None
    assert failed.start <= failed.end <= last.start - timedelta(seconds=0.05)


def test_a_run_without_anything_in_it(tide: Tidebase) -> None:
    tide.runs.create("w", run_id="r")
    drawn = collect(tide.runs, "r")
    assert drawn.bars == [] and drawn.status == "pending"
    assert len(lines(drawn)) == 1 and rectangles(svg(drawn)) == []
    with pytest.raises(RunNotFound):
        collect(tide.runs, "nothing")


def test_a_step_that_lasts_goes_on_to_the_end(tide: Tidebase) -> None:
    session = tide.runs.attach("w", run_id="r")
    session.step("s", lambda: check(collect(tide.runs, "r")), mark_start=True)
    session.close()


def check(drawn: Picture) -> None:
    assert [(bar.status, bar.end) for bar in drawn.bars] == [("running", None), ("running", None)]
    assert all(line.split("  ")[-1] == "running" for line in lines(drawn)[1:])
    assert {rectangle.attrib["opacity"] for rectangle in rectangles(svg(drawn))} == {"0.6"}


# -- as text


def test_the_bars_are_where_they_belong() -> None:
    drawn = picture(bar("a", 0, 5), bar("b", 5, 10), bar("c", 2.5, 2.5), bar("d", 10, None), bar("e", 0, 10, "attempt"))
    _, *rows = lines(drawn, 60)
    first = begins(rows[0])
    room = rows[4].count("━")
    assert [row.count("█") for row in rows[:2]] == [room // 2, room - room // 2]
    assert [begins(row) - first for row in rows] == [0, room // 2, room // 4, room - 1, 0]
    assert "▏" in rows[2] and len({columns(re.split("[█━▏]", row)[-1]) for row in (rows[1], rows[4])}) == 1


@pytest.mark.parametrize("width", [40, 80, 200])
@pytest.mark.parametrize("name", ["x" * 500, "日本語" * 100, "e\u0301" * 300, "short", "é" * 38, "語" * 19])
def test_no_line_is_wider_than_it_may_be(width: int, name: str) -> None:
    bars = [
        bar(name, 0, 10, "attempt"),
        bar(name, 0, 400_000_000),
        bar(name, 3, None, name),
        bar("s", 3, 4, "gate", name),
        Bar("step", name, "completed", at(1), at(2), 1000),
    ]
    drawn = picture(*bars, run_id=name, workflow=name, status="completed", seconds=400_000_000)
    rows = lines(drawn, width)
    assert max(map(columns, rows)) <= width and len(rows) == 6
    assert len({begins(row) for row in rows[1:]}) == 1
    assert "completed" in rows[0] and all(re.search("[█━▏]", row) for row in rows[1:])


def test_the_width_is_that_of_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = picture(bar("x" * 300), bar("y", 0, 10))
    for given, expected in (("120", 120), ("10", 40)):
        monkeypatch.setenv("COLUMNS", given)
        assert lines(drawn, None) == lines(drawn, expected)


@pytest.mark.parametrize("name", ["日本語のステップ", "\uff46\uff55\uff4c\uff4c", "e\u0301clair", "🌊 wave", "ascii"])
def test_wide_and_combining_characters_align(name: str) -> None:
    _, *rows = lines(picture(bar(name, 0, 10), bar("plain", 0, 10)))
    assert begins(rows[0]) == begins(rows[1]) and columns(rows[0]) == columns(rows[1])


def test_no_name_drives_the_terminal() -> None:
    drawn = picture(bar(ODD), bar("s", kind=ODD), bar("s", status=ODD), run_id=ODD, workflow=ODD)
    text = as_text(drawn, 500)
    assert all(character.isprintable() or character == "\n" for character in click.unstyle(text))
    assert text.count("\n") == 4 and "<b>&amp;" in text


# -- as a picture


def test_markup_and_odd_characters_do_not_break_the_picture() -> None:
    bars = [bar(ODD), bar("s", kind=ODD), bar("s", status=ODD), bar(ODD, kind="attempt")]
    root = svg(picture(*bars, run_id=ODD, workflow=ODD))
    assert texts(root).count("<b>&amp;\"'") >= 2 * 4 + 2
    assert {element.tag.removeprefix(SVG) for element in root.iter()} <= DRAWN


@pytest.mark.parametrize("seconds", [0, 1e-6, 0.001, 0.5, 7, 59.9, 3600, 1e6, 1e9])
def test_the_bars_of_any_run_lie_in_the_chart(seconds: float) -> None:
    moments = [0, seconds / 3, seconds * 0.999, seconds]
    bars = [bar(f"s{a}-{b}", a, b) for a in moments for b in moments if a <= b] + [bar("open", seconds, None)]
    drawn = picture(*bars, seconds=seconds)
    root = svg(drawn)
    assert len(rectangles(root)) == len(bars)
    assert 1 <= len(list(root.iter(f"{SVG}line"))) <= 11
    assert len(lines(drawn)) == len(bars) + 1


def test_a_long_name_is_whole_in_the_tooltip_and_short_in_the_picture() -> None:
    root = svg(picture(bar("x" * 500, status="y" * 500), run_id="z" * 255))
    assert "x" * 500 in texts(root) and "y" * 500 in texts(root) and "z" * 255 in texts(root)
    assert all(len(text.text or "") <= 100 for text in root.iter(f"{SVG}text"))


def test_a_picture_of_nothing() -> None:
    assert rectangles(svg(picture(seconds=0))) == [] and len(lines(picture(seconds=0))) == 1


# -- waiting

#: Two attempts of seconds, and a day of waiting for a gate in between.
PATIENT = [
    bar("1 host", 0, 4, "attempt", "suspended"),
    bar("2 host", 90_000, 90_003, "attempt"),
    bar("plan", 0, 1),
    bar("search", 1, 3.5),
    bar("approve", 3.5, 90_000, "gate", "approved"),
    bar("publish", 90_000, 90_003),
]


def cells(drawn: Picture) -> list[int]:
    return [row.count("█") + row.count("━") for row in lines(drawn)[1 : len(drawn.bars) + 1]]


def test_a_long_wait_leaves_room_for_what_was_done() -> None:
    drawn = picture(*PATIENT, seconds=90_003)
    assert [(fold.start, fold.end) for fold in drawn.folds] == [(4, 90_000)]
    assert drawn.drawn(90_003) == pytest.approx(13) and drawn.share(at(4)) == pytest.approx(4 / 13)
    assert drawn.share(at(90_000)) == pytest.approx(10 / 13) and drawn.share(None) == 1
    first, second, plan, search, gate, publish = cells(drawn)
    assert first > second > 10 and plan > 3 and search > 8 and publish == second
    assert gate <= 4 and "┄" * 20 in lines(drawn)[5]
    assert lines(drawn)[0].endswith("1d 01h")
    assert lines(drawn)[-1] == "┄ is waiting, drawn shorter than it was: 1d 00h"
    root = svg(drawn)
    widths = [float(rectangle.attrib["width"]) for rectangle in rectangles(root)]
    assert widths == pytest.approx([172.3, 129.2, 43.1, 107.7, 280, 129.2], abs=0.2)
    (fold,) = (rectangle for rectangle in root.iter(f"{SVG}rect") if rectangle.get("class") == "fold")
    assert float(fold.attrib["x"]) == pytest.approx(402.3) and float(fold.attrib["width"]) == pytest.approx(258.5)
    assert "1d 00h of waiting" in texts(root) and "\n+2 s\n" in texts(root)


@pytest.mark.parametrize("number", [1, 2, 7, 60])
def test_all_waiting_together_takes_half_of_the_picture(number: int) -> None:
    bars = [bar(f"s{n}", 1000 * n, 1000 * n + 1) for n in range(number)]
    bars += [bar(f"g{n}", 1000 * n + 1, 1000 * (n + 1), "gate", "approved") for n in range(number)]
    drawn = picture(bar("1", 0, 1000 * number, "attempt"), *bars, seconds=1000 * number)
    assert len(drawn.folds) == number and drawn.drawn(drawn.seconds) == pytest.approx(2 * number)
    assert all(fold.shown == pytest.approx(1) for fold in drawn.folds)
    svg(drawn)
    assert max(map(columns, lines(drawn))) <= 100


def test_short_waits_stay_as_they_are_beside_a_long_one() -> None:
    waits = [bar("a", 10, 11, "timer", "fired"), bar("b", 20, 5000, "gate", "approved")]
    drawn = picture(bar("1", 0, 5010, "attempt"), bar("s", 0, 20), *waits[1:], bar("t", 5000, 5010), seconds=5010)
    assert [(fold.start, fold.end, fold.shown) for fold in drawn.folds] == [(20, 5000, 30)]
    more = picture(*drawn.bars[:1], bar("s", 0, 10), bar("s", 11, 20), *waits, bar("t", 5000, 5010), seconds=5010)
    assert [(fold.start, fold.end, fold.shown) for fold in more.folds] == [(20, 5000, 28)]


@pytest.mark.parametrize(
    "bars",
    [
        [],
        [bar("1", 0, 10, "attempt"), bar("g", 4, 10, "gate")],  # not much longer than the rest
        [bar("1", 0, 1000, "attempt"), bar("s", 0, 1000), bar("g", 0, 1000, "gate")],  # a step was at work meanwhile
        [bar("1", 0, 1000, "attempt"), bar("s", 0, 1), bar("c", 1, 1000, "child"), bar("g", 1, 1000, "gate")],
        [bar("1", 0, 1000, "attempt"), bar("s", 0, 1)],  # somebody was there, and not waiting
        [bar("1", 0, 0, "attempt"), bar("g", 0, 1000, "gate")],  # there is nothing else to be seen
    ],
    ids=["nothing", "short", "step", "child", "attempt", "only"],
)
def test_what_is_no_waiting_is_not_folded(bars: list[Bar]) -> None:
    drawn = picture(*bars, seconds=max([(b.end - NOON).total_seconds() for b in bars if b.end], default=10))
    assert drawn.folds == [] and drawn.share(at(drawn.seconds / 2)) == 0.5
    assert len(lines(drawn)) == len(bars) + 1


@pytest.mark.parametrize("status", ["waiting", "review", "pending", "running"])
def test_who_waits_for_a_child_that_waits_waits(status: str) -> None:
    bars = [bar("1", 0, 3, "attempt", "suspended"), bar("s", 0, 2), bar("c", 2, None, "child", status)]
    assert bool(picture(*bars, seconds=1000).folds) == (status != "running")


@pytest.mark.breaks_invariants
def test_a_run_that_waited_is_folded(tide: Tidebase, db: Connection) -> None:
    def work(run: Run, _: Any) -> str:
        run.step("before", lambda: 1)
        return run.gate("go", "Go on?", suspend=True).decision

    with suppress(BaseException):
        tide.run("w", work, run_id="r")
    for table in ("steps", "gates", "attempts", "runs"):  # a day ago
        for column in values(
            db,
            "select attname from pg_attribute where attrelid = %s::regclass and atttypid = 'timestamptz'::regtype",
            f"tidebase.{table}",
        ):
            db.execute(f"update tidebase.{table} set {column} = {column} - interval '1 day'")
    assert "┄" in lines(collect(tide.runs, "r"))[-1]
    tide.gates.decide("r", "go", "approved")
    assert tide.run("w", work, run_id="r") == "approved"
    drawn = collect(tide.runs, "r")
    assert drawn.seconds > 86_000 and drawn.drawn(drawn.seconds) < 60
    assert lines(drawn)[-1].startswith("┄ is waiting, drawn shorter than it was: 1d 00h")


# -- times


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0, "0 ms"),
        (0.0004, "0 ms"),
        (0.012, "12 ms"),
        (0.9994, "999 ms"),
        (0.9996, "1.00 s"),
        (1, "1.00 s"),
        (3.214, "3.21 s"),
        (59.994, "59.99 s"),
        (59.996, "1m 00s"),
        (60, "1m 00s"),
        (245.4, "4m 05s"),
        (3599.9, "1h 00m"),
        (7800, "2h 10m"),
        (86399, "23h 59m"),
        (86400, "1d 00h"),
        (273600, "3d 04h"),
        (1e8, "1157d 09h"),
    ],
)
def test_a_duration_is_said_as_people_do(seconds: float, said: str) -> None:
    assert duration(seconds) == said


@pytest.mark.parametrize(
    ("seconds", "tick"),
    [
        (0.001, 0.0002),
        (0.01, 0.002),
        (1, 0.2),
        (4, 1),
        (10, 2),
        (100, 20),
        (120, 30),
        (600, 120),
        (3600, 900),
        (7200, 1800),
        (86400, 21600),
        (4 * 86400, 86400),
        (30 * 86400, 7 * 86400),
    ],
)
def test_a_tick_is_a_round_number(seconds: float, tick: float) -> None:
    assert _tick(seconds) == pytest.approx(tick)


def test_four_to_ten_ticks_fit() -> None:
    seconds = 0.001
    while seconds < 1e9:
        assert 4 - 1e-9 <= seconds / _tick(seconds) <= 10 + 1e-9, seconds
        seconds *= 1.037
