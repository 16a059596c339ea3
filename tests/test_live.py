"""The gateway under load: many streams, lost connections, several replicas, a pooler in between."""

from __future__ import annotations

import asyncio
import resource
from pathlib import Path

import psycopg

from .conftest import SERVERS, Server
from .probe_live import LISTENERS, Subscriber, everything_once, gateway, stream, subscribe
from .probe_support import Connection, grant, new_run, poll, value, values
from .test_pooler import pooler

BACKENDS = "select count(*) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()"


def test_each_subscriber_sees_everything_once_in_order(server: Server, database: str, tmp_path: Path) -> None:
    """Two replicas: one beside the database, one behind PgBouncer that listens past it."""
    size = (500, 50, 200) if server.version == max(SERVERS) else (100, 10, 100)
    with pooler(server, database, tmp_path) as pooled:
        routes: list[tuple[str, dict[str, str]]] = [(database, {}), (pooled, {"TIDEBASE_LISTEN_URL": database})]
        problems, clients = everything_once(database, routes, *size)
    assert problems == []
    assert sum(client.connections for client in clients) > len(clients)  # they did come back


def test_a_client_that_forgets_where_it_was_is_seen_to_see_things_twice(database: str) -> None:
    problems, _ = everything_once(database, [(database, {})], 20, 4, 100, remembers=False)
    assert problems and all(" twice" in problem and " 0 missing" in problem for problem in problems)


def test_a_gateway_that_cannot_listen_polls(server: Server, database: str, tmp_path: Path) -> None:
    with pooler(server, database, tmp_path) as pooled:  # which drops LISTEN
        problems, _ = everything_once(database, [(pooled, {})], 20, 4, 50)
    assert problems == []


def test_a_thousand_open_streams_hold_no_connections(database: str, db: Connection) -> None:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    idle = [new_run(db) for _ in range(50)]
    written = new_run(db)
    grant(db, written)
    clients = [Subscriber(idle[n % 50]) for n in range(1000)]
    one = Subscriber(written)

    async def follow(address: str) -> None:
        tasks = [asyncio.create_task(stream(address, client, 0)) for client in clients]
        following = asyncio.create_task(subscribe([address], one))
        while not (all(client.seen for client in clients) and one.seen):
            await asyncio.sleep(0.01)
        assert value(db, BACKENDS) <= 11  # the pool, and the one that listens
        assert len(values(db, LISTENERS)) == 1
        assert value(db, f"{BACKENDS} and state like 'idle in transaction%%'") == 0
        for _ in range(20):
            await asyncio.to_thread(db.execute, "select tidebase.append_event(%s, 1, 'test.tick')", [written])
        await asyncio.to_thread(db.execute, "select tidebase.complete_run(%s, 1)", [written])
        await following
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    with gateway(database) as address:
        asyncio.run(follow(address))
    assert one.seen == list(range(1, 24)) and {tuple(client.seen) for client in clients} == {(1,)}


def test_who_does_not_read_holds_nothing_and_misses_nothing(database: str, db: Connection) -> None:
    run_id, other = new_run(db), new_run(db)
    grant(db, run_id)
    grant(db, other)
    text = '"' + "x" * 1000 + '"'
    with gateway(database) as address:
        slow = Subscriber(run_id)

        async def follow() -> None:
            host, port = address.removeprefix("http://").split(":")
            reader, writer = await asyncio.open_connection(host, int(port), limit=1 << 16)
            writer.write(f"GET /runs/{run_id}/events HTTP/1.0\r\n\r\n".encode())
            assert b"200" in await reader.readline()  # and no more for now
            await asyncio.to_thread(
                db.execute,
                "select tidebase.append_event(%s, 1, 'test.tick', %s) from generate_series(1, 20000)",
                [run_id, text],
            )
            await asyncio.to_thread(db.execute, "select tidebase.complete_run(%s, 1)", [run_id])
            brisk = Subscriber(run_id)
            await subscribe([address], brisk)
            assert brisk.seen == list(range(1, 20004))
            with psycopg.connect(database, autocommit=True) as connection:
                poll(
                    "nothing is held for the one that does not read",
                    lambda: (
                        value(connection, f"{BACKENDS} and state <> 'idle' and backend_type = 'client backend'") == 0
                    ),
                )
            async for line in reader:
                if line.startswith(b"id: "):
                    slow.seen.append(int(line[4:]))
            writer.close()

        asyncio.run(follow())
    assert slow.seen == list(range(1, 20004))
