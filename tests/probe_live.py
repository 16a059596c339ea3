"""Many subscribers over HTTP: each must see a run's events once, in order, to the end, whatever breaks in between."""

from __future__ import annotations

import asyncio
import os
import random
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import psycopg

from .probe_support import connect, values

LISTENERS = "select pid from pg_stat_activity where datname = current_database() and query like 'listen %%'"


@dataclass
class Subscriber:
    """One client: what it has seen, and how it ended."""

    run_id: str
    drops: random.Random | None = None
    seen: list[int] = field(default_factory=list)
    connections: int = 0
    ended: bool = False


@contextmanager
def gateway(database: str, **environment: str) -> Iterator[str]:
    """A gateway in a process of its own; its address."""
    command = [sys.executable, "-m", "tidebase.cli", "serve", "--port", "0", "--database", database]
    with subprocess.Popen(command, env={**os.environ, **environment}, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            address = next(match[0] for line in process.stderr if (match := re.search(r"http://\S+:\d+", line)))
            threading.Thread(target=process.stderr.read, daemon=True).start()  # a log that nobody reads would stop it
            yield address
        finally:
            process.kill()


async def stream(address: str, subscriber: Subscriber, last: int, until: Callable[[], bool] = lambda: False) -> None:
    """Reads the run's events behind ``last`` until they end, the connection breaks, or ``until`` says so.

    HTTP/1.0, so that what comes is the stream and nothing else, over a socket, so that a thousand cost little.
    """
    host = urlsplit(address)
    reader, writer = await asyncio.open_connection(host.hostname, host.port, limit=1 << 20)
    with closing(writer):
        request = f"GET /runs/{subscriber.run_id}/events HTTP/1.0\r\nLast-Event-ID: {last}\r\n\r\n"
        writer.write(request.encode())
        subscriber.connections += 1
        status = (await reader.readline()).split()
        if status[1:2] == [b"204"]:
            subscriber.ended = True
        async for line in reader:
            if line.startswith(b"id: "):
                subscriber.seen.append(int(line[4:]))
                if until():
                    return
            elif line.startswith(b"event: end"):
                subscriber.ended = True
                return


async def subscribe(addresses: Sequence[str], subscriber: Subscriber, remembers: bool = True) -> None:
    """Follows to the end; drops the connection now and then and comes back, to any of the gateways."""
    chance = subscriber.drops
    while not subscriber.ended:
        address = addresses[chance.randrange(len(addresses))] if chance else addresses[0]
        last = subscriber.seen[-1] if subscriber.seen and remembers else 0
        await stream(address, subscriber, last, lambda: chance is not None and chance.random() < 0.01)


def write(database: str, run_ids: Sequence[str], events: int, kills: Callable[[int], None] = lambda _: None) -> None:
    """Writes the runs' events in turns, and completes the runs."""
    with connect(database) as connection:
        for number in range(events):
            for run_id in run_ids:
                connection.execute("select tidebase.append_event(%s, 1, 'test.tick', %s)", [run_id, str(number)])
            kills(number)
        for run_id in run_ids:
            connection.execute("select tidebase.complete_run(%s, 1)", [run_id])


def kill_listeners(database: str) -> int:
    with connect(database) as connection:
        return len(values(connection, LISTENERS.replace("pid", "pg_terminate_backend(pid)", 1)))


def problems_of(subscribers: Sequence[Subscriber], lengths: dict[str, int]) -> list[str]:
    """What is wrong with what they have seen."""
    problems = []
    for subscriber in subscribers:
        wanted = list(range(1, lengths[subscriber.run_id] + 1))
        if subscriber.seen != wanted:
            missing, twice = set(wanted) - set(subscriber.seen), len(subscriber.seen) - len(set(subscriber.seen))
            problems.append(f"{subscriber.run_id}: {len(missing)} missing, {twice} twice, of {len(wanted)}")
    return problems


def everything_once(
    database: str,
    routes: Sequence[tuple[str, dict[str, str]]],
    subscribers: int,
    runs: int,
    events: int,
    remembers: bool = True,
) -> tuple[list[str], list[Subscriber]]:
    """Subscribers of runs that are being written, through gateways that reach the database by these routes, while
    connections break: the clients' own, and those that the gateways listen on.
    """
    run_ids = [f"run-{number}" for number in range(runs)]
    with connect(database) as connection:
        for run_id in run_ids:
            connection.execute("select tidebase.create_run('probe', run_id => %s)", [run_id])
            connection.execute("select tidebase.acquire_run(%s, 'w', '1 hour')", [run_id])
    clients = [Subscriber(run_ids[n % runs], random.Random(n)) for n in range(subscribers)]
    with ExitStack() as stack, ThreadPoolExecutor(4) as writers:
        addresses = [stack.enter_context(gateway(url, **environment)) for url, environment in routes]

        async def follow() -> None:
            tasks = [asyncio.create_task(subscribe(addresses, client, remembers)) for client in clients]
            while not all(client.connections for client in clients):
                await asyncio.sleep(0.01)
            writing = [
                writers.submit(write, database, run_ids[part::4], events, _killing(database, events, part == 0))
                for part in range(4)
            ]
            await asyncio.gather(*tasks)
            for each in writing:
                each.result()

        asyncio.run(follow())
        with psycopg.connect(database, autocommit=True) as connection:
            lengths = dict(connection.execute("select run_id, last_seq::integer from tidebase.run_heads").fetchall())
    return problems_of(clients, lengths), clients


def _killing(database: str, events: int, mine: bool) -> Callable[[int], None]:
    killed = threading.Lock()

    def kill(number: int) -> None:
        if mine and number % max(events // 5, 1) == 0:
            with killed:
                kill_listeners(database)

    return kill
