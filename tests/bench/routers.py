"""What several databases cost: steps by a router, and in direct mode, beside those of one database alone."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import psycopg

from tidebase import Tidebase
from tidebase.core import local
from tidebase.schema import migrations, router

from .harness import Bench, Row, rate, scenario, steps, take_turns
from .processes import together

#: Debian's, which has PL/Proxy.
BINARIES = Path("/usr/lib/postgresql/15/bin")
HAS_PLPROXY = Path("/usr/share/postgresql/15/extension/plproxy.control").exists()

#: How a client comes to the steps' database, what it reaches at one client and at eight.
WAYS = {"through the router": (False, 0.60, 0.75), "direct mode": (True, 0.95, 0.95)}


@contextmanager
def databases() -> Iterator[tuple[str, str]]:
    """The URLs of a database alone, and of a router of two shards, all on a server of their own."""
    with tempfile.TemporaryDirectory(prefix="tidebase-bench-") as folder:
        Path(folder).chmod(0o755)
        cluster = local.Cluster(Path(folder) / "data", BINARIES)
        cluster.start()
        try:
            urls = {name: cluster.url.replace("/postgres?", f"/{name}?") for name in ("alone", "front", "one", "two")}
            with psycopg.connect(cluster.url, autocommit=True) as connection:
                for name in urls:
                    connection.execute(f"create database {name}")
            with psycopg.connect(urls["alone"], autocommit=True) as connection:
                migrations.migrate(connection)
            with psycopg.connect(urls["front"], autocommit=True) as connection:
                shards = [router.shard_at(name, urls[name]) for name in ("one", "two")]
                migrations.found_router(connection, router.spread(shards))
            yield urls["alone"], urls["front"]
        finally:
            cluster.stop("immediate")


@scenario
def routers(bench: Bench) -> Iterator[Row]:
    """Steps of one client and of eight, by a router of two shards and in direct mode, beside a database alone."""
    if not HAS_PLPROXY:
        print("  skipped: there is no PL/Proxy for Postgres 15")
        return
    many = bench.size(8, 2)
    with databases() as (alone, front), Tidebase(alone) as plain:
        routed, direct = Tidebase(front), Tidebase(front, direct=True)
        with routed, direct:
            clients = {"through the router": routed, "direct mode": direct}
            count = bench.size(300, 20)

            def one(tide: Tidebase) -> float:
                return tide.run("bench", lambda run, _: rate(count, lambda: steps(run, count)))

            turns = take_turns(
                bench, partial(one, plain), {f"{way}, one client": partial(one, tide) for way, tide in clients.items()}
            )
            for way, (_, bar, _) in WAYS.items():
                yield turns.row("routers", f"{way}, one client", bar)
        each = bench.size(150, 20)

        def eight(url: str, is_direct: bool) -> float:
            return together(url, "direct steps" if is_direct else "steps", many, each)

        variants: dict[str, Callable[[], float]] = {
            f"{way}, eight clients": partial(eight, front, is_direct) for way, (is_direct, _, _) in WAYS.items()
        }
        turns = take_turns(bench, partial(eight, alone, False), variants)
        for way, (_, _, bar) in WAYS.items():
            yield turns.row("routers", f"{way}, eight clients", bar)
