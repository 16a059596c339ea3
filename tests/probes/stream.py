"""Subscribers over HTTP whose connections break, and what each of them must have seen in the end.

A subscriber keeps whatever it got, with the contents, and how its streams ended; that is compared with the log itself,
so an event that is lost, repeated, out of order or another's shows, and so does an end that comes too early, never, or
twice. Meanwhile somebody looks at what the gateways hold in the database. As in ``probes``, what is found is reported;
nothing waits by sleeping, and the deadlines are only there so that a gateway which forgets somebody ends with a report.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import psycopg

from ..support.patience import PATIENCE_S
from .support import Connection, connect, grant, new_run

#: How many connections a gateway has at most, without the one that listens.
POOL = 10

#: What the probes' own connections are called; every other one is a gateway's, or a pooler's for it.
OWN = "probe"

#: What somebody has seen of an event: its number, its type, its payload.
Seen = tuple[int, str, Any]


def tells(seen: Seen, logged: Seen) -> bool:
    """Whether an event that was sent is one of the log: its payload may have more members, of the protocol's."""
    (*event, payload), (*known, kept) = seen, logged
    return event == known and payload == ({**payload, **kept} if isinstance(kept, dict) else kept)


@dataclass(frozen=True)
class Load:
    """How many there are of what.

    Attributes:
        drops: how often a subscriber loses its connection, at most.
        lead: by how many events a writer is ahead of the quickest subscriber of the run at most, so that they follow
            what is being written.
        patience_s: how long the subscribers may take to reach the end once everything is written, in seconds.
    """

    runs: int
    subscribers: int
    events: int
    drops: int = 3
    writers: int = 4
    seed: int = 5
    lead: int = 40
    patience_s: float = PATIENCE_S


@dataclass
class Outcome:
    """What a probe found wrong, and what it can tell otherwise."""

    problems: list[str] = field(default_factory=list)
    connections: int = 0
    kills: int = 0
    backends: Counter[str] = field(default_factory=Counter)


class Followed:
    """A run with subscribers: how much of it is there, and how much has been seen by the quickest."""

    def __init__(self, id: str, token: int, events: int) -> None:
        self.id = id
        self.token = token
        self.written = 0
        self.left = events
        self.seen = 0
        self.moved = asyncio.Event()

    def see(self, seq: int) -> None:
        self.seen = max(self.seen, seq)
        self.moved.set()

    async def within(self, lead: int) -> None:
        """Returns when the quickest subscriber is no further behind."""
        while self.written - self.seen > lead:
            self.moved.clear()
            await self.moved.wait()


@dataclass
class Gateway:
    """A gateway in a process of its own: its address, and its log so far."""

    address: str
    log: list[str]

    def read(self, lines: Iterable[str]) -> None:
        """Keeps the log; without a reader the gateway would stop at a full pipe."""
        for line in lines:
            self.log.append(line)

    def problems(self) -> list[str]:
        """What went wrong in it that nobody was to notice."""
        return [f"{self.address} logged {line!r}" for line in self.log if re.search("Traceback|ERROR|Error:", line)]


@contextmanager
def replica(database: str, **environment: str) -> Iterator[Gateway]:
    """One of the gateways, with ``POOL`` connections at most."""
    command = [sys.executable, "-m", "tidebase.cli", "serve", "--insecure", "--port", "0", "--database", database]
    limit = ["--pool-size", str(POOL)]
    with subprocess.Popen(
        [*command, *limit], env={**os.environ, **environment}, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stderr is not None
            address = next(match[0] for line in process.stderr if (match := re.search(r"http://\S+:\d+", line)))
            running = Gateway(address, [])
            threading.Thread(target=running.read, args=[process.stderr], daemon=True).start()
            yield running
        finally:
            process.kill()


async def ask(address: str, run_id: str, after: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Asks for the events behind this one. Over a plain socket, of which a thousand cost little."""
    host = urlsplit(address)
    reader, writer = await asyncio.open_connection(host.hostname, host.port)
    known = f"Last-Event-ID: {after}\r\n" if after else ""
    writer.write(f"GET /runs/{run_id}/events?named=1 HTTP/1.1\r\nHost: localhost\r\n{known}\r\n".encode())
    return reader, writer


async def status_of(reader: asyncio.StreamReader) -> int:
    """The status of the answer, of which the body comes next."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
    status = int(head.split()[1])
    assert status != 200 or "transfer-encoding: chunked" in head, head
    return status


async def blocks(reader: asyncio.StreamReader) -> AsyncIterator[dict[str, str]]:
    """The fields of each block of a stream, as far as it comes (RFC 9112, 7.1; WHATWG HTML, 9.2.6)."""
    rest = b""
    while size := int(await reader.readline() or b"0", 16):
        chunk = await reader.readexactly(size + 2)
        *whole, rest = (rest + chunk[:-2]).split(b"\r\n\r\n")
        for block in whole:
            lines = (line.partition(": ") for line in block.decode().split("\r\n"))
            yield {name: text for name, _, text in lines}


class Subscriber:
    """A client that follows one run to its end, whatever happens to its connections."""

    def __init__(self, run_id: str, followed: Followed | None = None) -> None:
        self.run_id = run_id
        self.followed = followed
        self.seen: list[Seen] = []
        self.connections = 0
        self.ended = False
        self.behind_the_end: int | None = None
        self.open = asyncio.Event()
        self.faults: list[str] = []

    @property
    def last(self) -> int:
        return self.seen[-1][0] if self.seen else 0

    async def follow(self, addresses: Sequence[str], dice: random.Random, drops: list[int], go: asyncio.Event) -> None:
        """Follows until it is told the end; then it asks once more, as who lost the connection right there would."""
        try:
            while not self.ended:
                await self.connect(dice.choice(addresses), drops.pop() if drops else None, dice.random() < 0.5, go)
                if self.connections > 100:
                    self.faults.append("comes back for ever")
                    return
            reader, writer = await ask(dice.choice(addresses), self.run_id, self.last)
            self.behind_the_end = await status_of(reader)
            writer.close()
        except (OSError, asyncio.IncompleteReadError) as error:
            self.faults.append(f"behind {self.last}: {error!r}")

    async def connect(self, address: str, limit: int | None, rudely: bool, go: asyncio.Event) -> None:
        """One connection; after so many events it is gone, without notice. None at all: before the answer."""
        self.connections += 1
        reader, writer = await ask(address, self.run_id, self.last)
        try:
            if limit == 0 and self.open.is_set():
                return
            status = await status_of(reader)
            if status == 200:
                await self._read(reader, limit, go)
                return
            self.ended = True
            if status != 204:
                self.faults.append(f"behind {self.last}: status {status}")
        finally:
            writer.transport.abort() if rudely else writer.close()

    async def _read(self, reader: asyncio.StreamReader, limit: int | None, go: asyncio.Event) -> None:
        count = 0
        async for block in blocks(reader):
            if block.get("event") == "end":
                self.ended = True
                return
            if "id" in block:
                self._see(block)
                count += 1
                if not self.open.is_set():
                    self.open.set()
                    await go.wait()
                if limit is not None and count >= limit:
                    return
        self.faults.append(f"behind {self.last}: the gateway broke the stream off")

    def _see(self, block: dict[str, str]) -> None:
        data = json.loads(block["data"])
        if (str(data["seq"]), data["type"], data["runId"]) != (block["id"], block["event"], self.run_id):
            self.faults.append(f"event {block['id']} {block['event']} has the data {block['data']}")
        self.seen.append((int(block["id"]), block["event"], data["payload"]))
        if self.followed is not None:
            self.followed.see(self.last)

    def problems(self, log: Sequence[Seen]) -> list[str]:
        """What is wrong with what it has seen of a run with this log."""
        found = list(self.faults)
        numbers = [seq for seq, _, _ in self.seen]
        times = Counter(numbers)
        twice = [seq for seq, count in times.items() if count > 1]
        missing = [seq for seq, _, _ in log if seq not in times]
        if twice:
            found.append(f"{len(twice)} came twice, {twice[0]} first")
        if missing:
            found.append(f"{len(missing)} of {len(log)} are missing, {missing[0]} first")
        if numbers != sorted(numbers):
            found.append("out of order")
        if not found and not all(map(tells, self.seen, log)):
            found.append("not what the log says")
        if not self.ended:
            found.append(f"waits behind {self.last} of {len(log)} for the end")
        elif self.behind_the_end != 204:
            found.append(f"behind the end it was answered {self.behind_the_end}")
        return [f"{self.run_id}: {text}" for text in found]


def log_of(connection: Connection, run_id: str) -> list[Seen]:
    """The log itself."""
    query = "select seq, type, payload from tidebase.events where run_id = %s order by seq"
    return list(connection.execute(query, [run_id]).fetchall())


class Watch:
    """Looks at what the gateways hold in the database, and remembers what is more than they may.

    Args:
        limits: by the name of a connection (``application_name``), how many of them there may be.
    """

    def __init__(self, limits: dict[str, int]) -> None:
        self.limits = limits
        self.most: Counter[str] = Counter()
        self.problems: list[str] = []

    async def look(self, connection: psycopg.AsyncConnection[Any]) -> set[tuple[int, Any]]:
        """What is open right now: a transaction for each (server process, when it began)."""
        cursor = await connection.execute(
            "select pid, application_name, state, xact_start from pg_stat_activity"
            " where datname = current_database() and backend_type = 'client backend' and application_name <> %s",
            [OWN],
        )
        rows = await cursor.fetchall()
        held = Counter(name for _, name, _, _ in rows)
        self.most |= held
        # Who has just connected has no name yet, and only counts among all.
        limits = {**self.limits, "": (most := sum(self.limits.values()))}
        for name, count in held.items():
            if count > limits.get(name, 0):
                self.problems.append(f"{count} connections of {name!r}, not {limits.get(name, 0)}")
        if len(rows) > most:
            self.problems.append(f"{len(rows)} connections, not {most}")
        for _, name, state, _ in rows:
            if state is not None and state.startswith("idle in transaction"):
                self.problems.append(f"a connection of {name!r} is {state}")
        return {(pid, begun) for pid, _, _, begun in rows if begun is not None}


def named(url: str, name: str) -> str:
    """The same database, with a name for those who connect by this URL."""
    return f"{url}{'&' if '?' in url else '?'}application_name={name}"


@asynccontextmanager
async def own(url: str) -> AsyncIterator[psycopg.AsyncConnection[Any]]:
    async with await psycopg.AsyncConnection.connect(named(url, OWN), autocommit=True) as connection:
        yield connection


class Everything:
    """Runs that are written and followed at once, while connections break; see :func:`everything_once`."""

    def __init__(self, url: str, addresses: Sequence[str], limits: dict[str, int], load: Load) -> None:
        self.url = url
        self.addresses = addresses
        self.load = load
        self.dice = random.Random(load.seed)
        self.watch = Watch(limits)
        self.outcome = Outcome()
        with connect(named(url, OWN)) as connection:
            ids = [new_run(connection) for _ in range(load.runs)]
            self.runs = [Followed(id, grant(connection, id), load.events) for id in ids]
        followed = [self.runs[number % load.runs] for number in range(load.subscribers)]
        self.subscribers = [Subscriber(run.id, run) for run in followed]

    async def probe(self) -> Outcome:
        go = asyncio.Event()
        tasks = [asyncio.create_task(self._follow(subscriber, go)) for subscriber in self.subscribers]
        try:
            await asyncio.wait_for(self._open_and_write(go), 3 * PATIENCE_S)
            await asyncio.wait(tasks, timeout=self.load.patience_s)
        except asyncio.TimeoutError:
            self.outcome.problems.append("the subscribers fell behind for good")
        for task in tasks:
            task.cancel()
        ended = await asyncio.gather(*tasks, return_exceptions=True)
        self.outcome.problems += [f"{end!r}" for end in ended if isinstance(end, Exception)]
        return self._judge()

    async def _follow(self, subscriber: Subscriber, go: asyncio.Event) -> None:
        dice = random.Random(self.dice.random())
        most = max(self.load.events // 2, 1)
        drops = [dice.randrange(most) for _ in range(dice.randint(0, self.load.drops))]
        await subscriber.follow(self.addresses, dice, drops, go)

    async def _open_and_write(self, go: asyncio.Event) -> None:
        async with AsyncExitStack() as stack:
            observer = await stack.enter_async_context(own(self.url))
            writers = [await stack.enter_async_context(own(self.url)) for _ in range(self.load.writers)]
            for subscriber in self.subscribers:
                await subscriber.open.wait()
            await self.watch.look(observer)  # all of them are open now
            jobs = self._jobs()
            moments = {len(jobs) * part // 9: part for part in range(1, 9)}
            go.set()

            async def write(connection: psycopg.AsyncConnection[Any]) -> None:
                while jobs:
                    run, count = jobs.pop()
                    await self._append(connection, run, count)
                    await self.watch.look(observer)
                    if part := moments.pop(len(jobs), 0):
                        await self._kill(observer, everything=part == 4)

            await asyncio.gather(*(write(connection) for connection in writers))

    def _jobs(self) -> list[tuple[Followed, int]]:
        """What is to be written, in pieces of 1 to 5 events, those of all the runs mixed."""
        jobs = []
        for run in self.runs:
            left = run.left
            while left:
                count = min(self.dice.randint(1, 5), left)
                jobs.append((run, count))
                left -= count
        self.dice.shuffle(jobs)
        return jobs

    async def _append(self, connection: psycopg.AsyncConnection[Any], run: Followed, count: int) -> None:
        await run.within(self.load.lead)
        await connection.execute(
            "select tidebase.append_event(%s, %s, 'test.tick', to_jsonb(n)) from generate_series(1, %s) n",
            [run.id, run.token, count],
        )
        run.written += count
        run.left -= count
        if run.left == 0:
            await connection.execute("select tidebase.complete_run(%s, %s)", [run.id, run.token])

    async def _kill(self, observer: psycopg.AsyncConnection[Any], everything: bool) -> None:
        """Ends the connections that listen, or all that the gateways have."""
        which = "application_name <> %s" if everything else "application_name <> %s and query like 'listen %%'"
        cursor = await observer.execute(
            f"select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database() and {which}"  # type: ignore[arg-type]
            " and backend_type = 'client backend'",
            [OWN],
        )
        self.outcome.kills += len(await cursor.fetchall())

    def _judge(self) -> Outcome:
        with connect(named(self.url, OWN)) as connection:
            logs = {run.id: log_of(connection, run.id) for run in self.runs}
        for id, log in logs.items():
            if [seq for seq, _, _ in log] != list(range(1, self.load.events + 4)):
                self.outcome.problems.append(f"{id}: the log has {len(log)} events")
        for subscriber in self.subscribers:
            self.outcome.problems += subscriber.problems(logs[subscriber.run_id])
            self.outcome.connections += subscriber.connections
        self.outcome.problems += sorted(set(self.watch.problems))
        self.outcome.backends = self.watch.most
        return self.outcome


async def everything_once(url: str, addresses: Sequence[str], limits: dict[str, int], load: Load) -> Outcome:
    """Subscribers of runs that are written, through any of these gateways, each connection through another: they lose
    their connections and come back with the number of the last event, and the gateways lose theirs. Each must see each
    event once, in order, as it is in the log, and the end.

    Args:
        url: the database.
        addresses: the gateways.
        limits: how many connections there may be, by name; see :class:`Watch`.
    """
    return await Everything(url, addresses, limits, load).probe()
