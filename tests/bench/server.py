"""What a call costs the server: pgbench, WAL and disk, one hot run, the heads' table, heartbeats."""

from __future__ import annotations

import itertools
import json
import re
import shutil
import statistics
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from .harness import PAYLOAD_TEXT, Bench, Row, new_run, rate, scenario, spread, steps, take_turns
from .steps import fill_runs

FLOOR = f"insert into floor (id, payload) values (1, '{PAYLOAD_TEXT}'::jsonb);\n"
COMPLETE = f"""\\set n :n + 1
select tidebase.complete_step('pgbench ' || :series::text || ' ' || :client_id::text, 1, 'w' || :n::text,
  '{PAYLOAD_TEXT}');
"""
RECORD = COMPLETE.replace("complete_step", "record_step").replace(f"'{PAYLOAD_TEXT}')", f"'null', '{PAYLOAD_TEXT}')")
COUNTED = """begin;
update counter set last = last + 1;
insert into log (seq, payload) select last, '{"n": 1}' from counter;
commit;
"""
APPEND = "select tidebase.append_event(:run_id::text, 1, 'bench.tick', '{\"n\": 1}');\n"
HEARTBEAT = """\\set n random(1, :runs)
select tidebase.renew_lease('beating ' || :n::text, 1, '1 day');
"""


def find_pgbench(bench: Bench) -> str | None:
    """pgbench beside the server, on the path, or where Debian has it."""
    beside = Path(bench.cluster.binaries) / "pgbench"
    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin/pgbench"))
    return str(beside) if beside.exists() else shutil.which("pgbench") or (str(debian[-1]) if debian else None)


def pgbench(bench: Bench, script: str, clients: int, count: int, **variables: str | int) -> float:
    """Transactions a second of this script, with prepared statements; ``count`` for each client."""
    program = find_pgbench(bench)
    assert program is not None
    with tempfile.NamedTemporaryFile("w", suffix=".sql") as file:
        file.write(script)
        file.flush()
        command = [program, "-n", "-M", "prepared", "-f", file.name, "-c", str(clients), "-j", str(min(clients, 2))]
        command += ["-t", str(count), *(f"-D{name}={value}" for name, value in variables.items()), bench.cluster.url]
        result = subprocess.run(command, capture_output=True, text=True, check=True)
    found = re.search(r"tps = ([\d.]+) \(without", result.stdout)
    assert found is not None, result.stdout
    return float(found[1])


@scenario
def by_pgbench(bench: Bench) -> Iterator[Row]:
    """The calls from SQL, by one client and by eight with a run each, beside pgbench's bare insert."""
    if find_pgbench(bench) is None:
        print("  skipped: there is no pgbench")
        return
    bench.floor()
    series = itertools.count()
    for clients in (1, 8):
        count = bench.size(3000 // clients + 500, 50)

        def calls(script: str, begun: bool, clients: int = clients, count: int = count) -> float:
            number = next(series)
            lease_runs(bench, number, clients, count if begun else 0)
            return pgbench(bench, script, clients, count, n=0, series=number)

        variants = {
            f"complete_step, {clients} at once": lambda calls=calls: calls(COMPLETE, True),  # type: ignore[misc]
            f"record_step, {clients} at once": lambda calls=calls: calls(RECORD, False),  # type: ignore[misc]
        }
        turns = take_turns(
            bench,
            lambda clients=clients, count=count: pgbench(bench, FLOOR, clients, count),  # type: ignore[misc]
            variants,
        )
        for variant, bar in zip(variants, (0.65, None), strict=True):
            yield turns.row("pgbench", variant, bar, "calls")


def lease_runs(bench: Bench, series: int, clients: int, count: int) -> None:
    """A leased run for each client, with so many steps that wait to be completed."""
    bench.connection.execute("set synchronous_commit = off")
    for client in range(clients):
        run_id = f"pgbench {series} {client}"
        bench.connection.execute("select tidebase.create_run('bench', run_id => %s)", [run_id])
        bench.connection.execute("select tidebase.acquire_run(%s, 'bench', '1 day')", [run_id])
        for first in range(1, count + 1, 100):  # a head row that one transaction updates often is slow to read for it
            bench.connection.execute(
                "select count(tidebase.begin_step(%s, 1, 'w' || i)) from generate_series(%s::int, %s::int) i",
                [run_id, first, min(first + 99, count)],
            )
    bench.connection.execute("reset synchronous_commit")


@scenario
def wal_and_disk(bench: Bench) -> Iterator[Row]:
    """Bytes of WAL a step writes, and bytes its rows and index entries take on disk."""
    count, warm = bench.size(5000, 100), bench.size(1000, 20)
    for variant, options, bars in (
        ("a step", {}, (1200.0, 1400.0)),
        ("never marked as started", {"mark_start": False}, (None, None)),
        ("begun before it is executed", {"mark_start": True}, (None, None)),
    ):
        bench.connection.execute("vacuum analyze tidebase.steps, tidebase.events, tidebase.run_heads")
        bench.connection.execute("checkpoint")
        with bench.tide.runs.attach("bench") as session:
            steps(session, warm, **options)  # the first change of a page after a checkpoint writes all of it
            wal, size = wal_position(bench), stored(bench)
            steps(session, count, warm, **options)
            wal, size = wal_position(bench) - wal, stored(bench) - size
            session.complete()
        for what, value, bar in (("WAL", wal / count, bars[0]), ("disk", size / count, bars[1])):
            yield spread("WAL and disk", f"{what}, {variant}", [value], "bytes", bar, False, "of a payload of 500")


def wal_position(bench: Bench) -> int:
    return int(bench.value("select pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')::bigint"))


def stored(bench: Bench) -> int:
    return int(
        bench.value(
            "select sum(pg_total_relation_size(oid))::bigint from pg_class"
            " where relnamespace = 'tidebase'::regnamespace and relkind = 'r'"
        )
    )


@scenario
def appenders(bench: Bench) -> Iterator[Row]:
    """Eight writers append to one run, beside eight that insert into a table and update one counter for it."""
    if find_pgbench(bench) is None:
        print("  skipped: there is no pgbench")
        return
    bench.connection.execute("create table log (seq bigint primary key, payload jsonb)")
    bench.connection.execute("create table counter (last bigint)")
    bench.connection.execute("insert into counter values (0)")
    run_id, _ = new_run(bench)
    clients, count = 8, bench.size(300, 20)
    turns = take_turns(
        bench,
        lambda: pgbench(bench, COUNTED, clients, count),
        {"eight writers": lambda: pgbench(bench, APPEND, clients, count, run_id=run_id)},
    )
    yield turns.row("appenders", "eight writers", 0.5, "events")


@scenario
def heads(bench: Bench) -> Iterator[Row]:
    """A million updates of the heads of a thousand runs, with autovacuum: how many are HOT, how the table grows."""
    if find_pgbench(bench) is None:
        print("  skipped: there is no pgbench")
        return
    runs, updates = 1000, bench.size(1_000_000, 4000)
    fill_runs(bench, runs, "running", "beating ")
    before, size = head_updates(bench), int(bench.value("select pg_relation_size('tidebase.run_heads')"))
    clients = 8
    pgbench(bench, HEARTBEAT, clients, updates // clients, runs=runs)
    after, grown = head_updates(bench), int(bench.value("select pg_relation_size('tidebase.run_heads')"))
    done = after[0] - before[0]
    hot = (after[1] - before[1]) / done * 100 if done else 0.0
    yield spread("heads", "HOT updates", [hot], "%", 95, True, f"of {done:,} updates")
    note = f"{size / 1e6:.1f} MB before, {grown / 1e6:.1f} MB after"
    yield spread("heads", f"size after {updates:,} updates", [grown / size], "x", 4, False, note)


def head_updates(bench: Bench) -> tuple[int, int]:
    bench.connection.execute("select pg_stat_force_next_flush()")
    row = bench.connection.execute(
        "select n_tup_upd, n_tup_hot_upd from pg_stat_user_tables where relid = 'tidebase.run_heads'::regclass"
    ).fetchone()
    assert row is not None
    return int(row[0]), int(row[1])


@scenario
def heartbeats(bench: Bench) -> Iterator[Row]:
    """Leases of a worker with many idle runs, a thousand renewed by a statement: a heartbeat against a step."""
    runs, batch = bench.size(100_000, 2000), 1000
    fill_runs(bench, runs, "running", "idle ")
    ratios, absolute = [], []
    with bench.tide.runs.attach("bench") as session:
        steps(session, 20)
        done = 20
        for at in range(0, runs, max(batch, runs // 20)):
            ids = [f"idle {number}" for number in range(at + 1, at + batch + 1)]
            beat = 1 / rate(batch, lambda ids=ids: renew(bench, ids))  # type: ignore[misc]
            step = 1 / rate(100, lambda done=done: steps(session, 100, done))  # type: ignore[misc]
            done += 100
            ratios.append(beat / step)
            absolute.append(beat)
        session.complete()
    note = f"{statistics.median(absolute) * 1e6:.1f} µs a heartbeat, {batch:,} a statement"
    yield spread("heartbeats", f"of {runs:,} idle runs", ratios, "x a step", 0.2, False, note)


def renew(bench: Bench, ids: list[str]) -> None:
    renewed = bench.value("select count(*) from tidebase.renew_leases(%s, %s::bigint[], '1 day')", ids, [1] * len(ids))
    assert renewed == len(ids), f"{renewed} of {len(ids)} leases were renewed"


@scenario
def history(bench: Bench) -> Iterator[Row]:
    """A thousand patches of 200 bytes to a state of 100 KB: what they take on disk, and reading any version."""
    patches = bench.size(1000, 20)
    document = {f"k{number}": f"{number:085}" for number in range(1000)}
    bench.connection.execute("create table documents (id bigint primary key, document jsonb)")
    bench.connection.execute("insert into documents values (1, %s)", [json.dumps(document)])
    before = stored(bench)
    with bench.tide.runs.attach("bench", run_id="history") as session:
        session.state.set(document)
        for n in range(patches):
            session.state.patch({f"k{n % 700}": f"{n:095}", f"n{n}": f"{n:075}"})
    size = (stored(bench) - before) / 1e6
    yield spread("history", f"{patches:,} patches of 200 bytes to 100 KB", [size], "MB", note="with indexes and events")
    plain = "select pg_column_size(document || '{}') from documents where id = 1"
    floor = statistics.median(1 / rate(1, lambda: bench.value(plain)) for _ in range(50))
    query = "select pg_column_size((tidebase.get_state('history', version => %s)).value)"
    reads = [1 / rate(1, lambda n=n: bench.value(query, n)) / floor for n in range(1, patches, 5)]  # type: ignore[misc]
    note = f"{statistics.median(reads) * floor * 1000:.1f} ms"
    yield spread("history", "get_state of any version", reads, "x reading a row", note=note)
