"""What torture came to, for the terminal, for programs (JSON) and for tests/README.md (Markdown)."""

from __future__ import annotations

import json
import platform
from collections import Counter, defaultdict
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from .jobs import Result

TITLES = {
    "schedules": "schedules, merged where they meet",
    "schedules one by one": "schedules, one by one",
    "races": "races of two calls",
    "interruptions": "calls held up at a statement",
    "probe": "probes of the tests, in their long form",
    "storm": "storms",
    "synchronous failover": "failovers, synchronous",
    "asynchronous failover": "failovers, asynchronous",
    "model": "sequences against the model",
    "siege": "sieges, with a ledger",
}


def headline(results: Sequence[Result]) -> str:
    figures = sum((result.figures for result in results), Counter[str]())
    violations = sum(len(result.violations) for result in results)
    counts = (f"{figures[what]:,} {what}" for what in ("schedules", "races", "calls"))
    return f"{', '.join(counts)}, {violations} violations"


def summarise(results: Sequence[Result], seed: int, seconds: float) -> dict[str, object]:
    kinds: dict[str, list[Result]] = defaultdict(list)
    for result in results:
        kinds[result.job.kind].append(result)
    return {
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
        "python": platform.python_version(),
        "versions": sorted({result.job.version for result in results}),
        "seed": seed,
        "minutes": round(seconds / 60, 1),
        "kinds": {
            kind: {
                "jobs": len(of_kind),
                "figures": dict(sum((result.figures for result in of_kind), Counter[str]())),
                "violations": sum(len(result.violations) for result in of_kind),
            }
            for kind, of_kind in kinds.items()
        },
        "casts": _casts(results),
        "faults": dict(sum((result.faults for result in results), Counter[str]()).most_common()),
        "violations": [f"{result.job}: {text}" for result in results for text in result.violations],
    }


def _casts(results: Sequence[Result]) -> dict[str, dict[str, int | bool]]:
    """How many schedules of each cast were walked, and whether those are all."""
    return {
        result.job.arguments[0]: {"schedules": result.figures["schedules"], "complete": result.complete}
        for result in results
        if result.job.kind == "schedules"
    }


def table(summary: dict[str, object]) -> str:
    """The figures as Markdown."""
    versions = ", ".join(str(version) for version in summary["versions"])  # type: ignore[attr-defined]
    lines = [
        f"{summary['date']}: {summary['minutes']} minutes on Postgres {versions}, seed {summary['seed']}.",
        "",
        "| attack | times | calls | violations |",
        "| --- | ---: | ---: | ---: |",
    ]
    kinds: dict[str, Any] = summary["kinds"]  # type: ignore[assignment]
    for kind in (kind for kind in TITLES if kind in kinds):
        row = kinds[kind]
        figures = row["figures"]
        times = next(
            (figures[what] for what in ("schedules", "races", "interruptions", "sequences") if what in figures),
            row["jobs"],
        )
        lines.append(f"| {TITLES[kind]} | {times:,} | {figures.get('calls', 0):,} | {row['violations']} |")
    casts = ", ".join(
        f"{name} ({cast['schedules']:,}{'' if cast['complete'] else ', not all'})"
        for name, cast in summary["casts"].items()  # type: ignore[attr-defined]
    )
    faults = ", ".join(f"{kind} ({times:,})" for kind, times in summary["faults"].items())  # type: ignore[attr-defined]
    lines += ["", f"Schedules by cast: {casts or 'none'}.", "", f"Faults on the way: {faults or 'none'}."]
    if "siege" in kinds:
        lines += ["", _paid(kinds["siege"]["figures"])]
    return "\n".join(lines)


def _paid(figures: dict[str, int]) -> str:
    """What the ledger says."""
    count = defaultdict(int, figures)
    return (
        f"The ledger: {count['steps paid']:,} steps of {count['runs']:,} runs were paid for"
        f" {count['charges']:,} times, and {count['paid twice without a crash']:,} of them twice although nobody had"
        f" crashed; people were asked about {count['reviews']:,} steps."
    )


def write(results: Sequence[Result], output: Path, seed: int, seconds: float) -> str:
    summary = summarise(results, seed, seconds)
    output.mkdir(parents=True, exist_ok=True)
    (output / "report.json").write_text(json.dumps(summary, indent=2) + "\n")
    text = table(summary)
    (output / "report.md").write_text(text + "\n")
    return text
