"""The benchmark works: what it measures is looked at by people, never by a test."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from .bench.__main__ import main
from .bench.harness import SCENARIOS, Row
from .bench.report import compared, line, markdown, read, svg, write
from .conftest import long


@long
def test_a_quick_round_of_everything_writes_table_data_and_chart(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--quick", "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    data = json.loads((tmp_path / "bench.json").read_text())
    assert data["quick"] is True and data["postgres"] >= 15
    measured = {row["scenario"] for row in data["rows"]}
    assert {
        "sequential",
        "replay",
        "heartbeats",
        "growth",
        "appenders",
        "queue",
        "many wait",
        "idle workers",
    } <= measured
    assert all(row["low"] <= row["value"] <= row["high"] for row in data["rows"])
    assert all(f"{row['scenario']}: {row['variant']}" in printed for row in data["rows"])
    chart = ElementTree.parse(tmp_path / "bench.svg").getroot()
    assert chart.tag.endswith("svg") and len(chart) > 10
    assert (tmp_path / "bench.md").read_text().count("\n") == len(data["rows"]) + 2


def test_the_list_says_what_each_scenario_measures(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--list"]) == 0
    printed = capsys.readouterr().out
    assert all(f"{name}: " in printed and scenario.__doc__ for name, scenario in SCENARIOS.items())


@pytest.mark.parametrize(
    ("value", "bar", "at_least", "reached"),
    [
        (0.5, 0.5, True, True),
        (0.49, 0.5, True, False),
        (4, 4, False, True),
        (4.1, 4, False, False),
        (1, None, True, None),
    ],
)
def test_a_bar_is_reached_or_not(value: float, bar: float | None, at_least: bool, reached: bool | None) -> None:
    row = Row("s", "v", value, value, value, "x floor", bar, at_least)
    assert row.reached is reached and row.as_json()["reached"] is reached
    assert line(row)[0] == {True: "✓", False: "✗", None: " "}[reached]
    assert "s: v" in svg([row]) and "s: v" in markdown([row])


def test_a_scenario_that_is_unknown_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--only", "nothing"])
    assert "invalid choice" in capsys.readouterr().err


def test_two_versions_are_compared_and_a_change_is_one_where_the_spreads_do_not_touch(tmp_path: Path) -> None:
    old = [
        Row("steps", "rate", 0.5, 0.45, 0.55, "x floor", 0.5),
        Row("steps", "time", 100.0, 90.0, 110.0, "µs", 80.0, False),
        Row("steps", "same", 1.0, 0.9, 1.1, "x floor"),
        Row("steps", "gone", 2.0, 2.0, 2.0, "MB"),
        Row("steps", "in other words", 2.0, 2.0, 2.0, "MB"),
    ]
    data, *_ = write(old, {"postgres": 18}, tmp_path)
    new = [
        Row("steps", "rate", 0.7, 0.6, 0.8, "x floor", 0.5),
        Row("steps", "time", 140.0, 120.0, 150.0, "µs", 80.0, False),
        Row("steps", "same", 1.05, 0.95, 1.2, "x floor"),
        Row("steps", "in other words", 2.0, 2.0, 2.0, "kB"),
    ]
    assert read(data) == old
    assert compared(read(data), new).splitlines()[2:] == [
        "| steps: rate | 0.50 x floor | 0.70 x floor | x 1.40 **better** |",
        "| steps: time | 100 µs | 140 µs | x 1.40 **worse** |",
        "| steps: same | 1.00 x floor | 1.05 x floor | x 1.05 (the spreads overlap) |",
        "| steps: in other words |  | 2.00 kB | new |",
        "| steps: gone | 2.00 MB | | |",
    ]
