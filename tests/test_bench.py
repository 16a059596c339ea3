"""The benchmark works: what it measures is looked at by people, never by a test."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from .bench.__main__ import main
from .bench.harness import SCENARIOS, Row
from .bench.report import line, markdown, svg
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
