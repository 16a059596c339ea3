"""Following runs through the gateway, in large: what can break does, and each mechanism is seen to be needed."""

from __future__ import annotations

import asyncio
import random
import resource
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import psycopg
import pytest
from starlette.applications import Starlette

from tidebase import AsyncTidebase
from tidebase.core import doorbell_async as doorbell
from tidebase.domain import calls, subscribe
from tidebase.domain.calls import Event
from tidebase.domain.subscribe import OVER, Feed, Feeds
from tidebase.server import events

from .conftest import SERVERS, Server, long, on_every_version
from .probes.stream import (
    OWN,
    POOL,
    Load,
    Outcome,
    Subscriber,
    Watch,
    ask,
    everything_once,
    log_of,
    named,
    own,
    replica,
    status_of,
)
from .probes.support import connect, grant, new_run, poll, values
from .support.amounts import EVENTS, FOLLOWED_RUNS, STREAMS, SUBSCRIBERS
from .support.patience import PATIENCE_S
from .test_gateway import gateway, running
from .test_pooler import pooler

ON_NEWEST = True

LARGE = Load(FOLLOWED_RUNS.test, SUBSCRIBERS.test, EVENTS.test)
SMALL = Load(runs=10, subscribers=80, events=60)
TINY = Load(runs=2, subscribers=12, events=60)

#: How many connections PgBouncer has at most: ``default_pool_size`` of its configuration.
POOLER = 4

#: Of how many runs streams are open.
IDLE = 100

#: What the slow reader has to read: more than the buffers of all the sockets in between hold.
SLOW_EVENTS, SLOW_BYTES = 4000, 5000


@on_every_version
@long
async def test_each_subscriber_sees_each_event_once(server: Server, database: str, tmp_path: Path) -> None:
    """Two replicas: one at the database, one behind PgBouncer that listens past it."""
    load = LARGE if server.version == max(SERVERS) else SMALL
    past = {"TIDEBASE_LISTEN_URL": named(database, "past")}
    limits = {"direct": POOL + 1, "pooled": POOLER, "past": 1}
    with (
        pooler(server, database, tmp_path) as pooled,
        replica(named(database, "direct")) as one,
        replica(named(pooled, "pooled"), **past) as other,
    ):
        outcome = await everything_once(database, [one.address, other.address], limits, load)
    assert outcome.problems + one.problems() + other.problems() == []
    assert outcome.connections > load.subscribers and outcome.kills > 0
    assert outcome.backends["direct"] > 1 and outcome.backends["past"] == 1  # what was counted was there


async def test_replicas_that_cannot_listen_only_poll(server: Server, database: str, tmp_path: Path) -> None:
    """PgBouncer drops LISTEN: nobody is told of anything."""
    limits = {"pooled": POOLER}
    with (
        pooler(server, database, tmp_path) as pooled,
        replica(named(pooled, "pooled")) as one,
        replica(named(pooled, "pooled")) as other,
    ):
        outcome = await everything_once(database, [one.address, other.address], limits, SMALL)
    assert outcome.problems + one.problems() + other.problems() == []


# -- many streams, and slow ones


@contextmanager
def as_many_files_as_may_be() -> Iterator[None]:
    """As many open sockets as the machine allows, here and in the gateways that are started."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (before[1], before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.fixture
def many_files() -> Iterator[None]:
    with as_many_files_as_may_be():
        yield


@asynccontextmanager
async def following(address: str, subscribers: Sequence[Subscriber], go: asyncio.Event) -> AsyncIterator[None]:
    """The streams are open when the block begins, and have come to their end when it is left."""
    tasks = [asyncio.create_task(each.follow([address], random.Random(1), [], go)) for each in subscribers]
    try:
        for subscriber in subscribers:
            await subscriber.open.wait()
        yield
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


def at_once() -> asyncio.Event:
    go = asyncio.Event()
    go.set()
    return go


async def write(connection: psycopg.AsyncConnection[Any], run_id: str, count: int, size: int = 1) -> None:
    """So many events of so many bytes; the run is held by its first lease."""
    query = "select tidebase.append_event(%s, 1, 'test.tick', to_jsonb(repeat('x', %s))) from generate_series(1, %s)"
    await connection.execute(query, [run_id, size, count])


def problems_of(database: str, subscribers: Sequence[Subscriber]) -> list[str]:
    with connect(database) as connection:
        logs = {run_id: log_of(connection, run_id) for run_id in {each.run_id for each in subscribers}}
    return [problem for each in subscribers for problem in each.problems(logs[each.run_id])]


async def many_streams(database: str, open: int) -> list[str]:
    """Of one gateway: they hold no connections, the one run that is written is followed, and nobody is forgotten."""
    with connect(named(database, OWN)) as connection:
        idle = [new_run(connection) for _ in range(IDLE)]
        written = new_run(connection)
        grant(connection, written)
    waiting = [Subscriber(idle[number % IDLE]) for number in range(open)]
    busy = Subscriber(written)
    watch = Watch({"direct": POOL + 1})
    with replica(named(database, "direct")) as one:
        async with own(database) as db, following(one.address, waiting, at_once()):
            async with following(one.address, [busy], at_once()):
                for _ in range(100):
                    await write(db, written, 2)
                    await watch.look(db)
                await db.execute("select tidebase.complete_run(%s, 1)", [written])
            await watch.look(db)
            assert problems_of(database, [busy]) == [] and len(busy.seen) == 203
            assert {len(each.seen) for each in waiting} == {1} and not any(each.ended for each in waiting)
            for run_id in idle:
                await db.execute("select tidebase.cancel_run(%s)", [run_id])
    assert {each.connections for each in [*waiting, busy]} == {1}
    return problems_of(database, waiting) + watch.problems + one.problems()


@pytest.mark.usefixtures("many_files")
@long
async def test_hundreds_of_streams_are_open_at_once(database: str) -> None:
    assert await many_streams(database, STREAMS.test) == []


@long
async def test_who_does_not_read_holds_nothing_up(database: str) -> None:
    """A client that takes one event of many and then none: no transaction waits for it, and all the others go on."""
    with connect(named(database, OWN)) as connection:
        large, small = new_run(connection), new_run(connection)
        grant(connection, large)
        grant(connection, small)
    slow, brisk, others = Subscriber(large), Subscriber(large), [Subscriber(small) for _ in range(20)]
    watch = Watch({"direct": POOL + 1})
    reads = asyncio.Event()
    with replica(named(database, "direct")) as one:
        async with own(database) as db:
            await write(db, large, SLOW_EVENTS, SLOW_BYTES)
            await db.execute("select tidebase.complete_run(%s, 1)", [large])
            async with following(one.address, [slow], reads):
                async with following(one.address, [brisk], at_once()):
                    pass  # what the gateway has sent to this one by now, it has tried to send to the other
                open_before = await watch.look(db)
                async with following(one.address, others, at_once()):
                    for _ in range(50):
                        await write(db, small, 3)
                        await watch.look(db)
                    await db.execute("select tidebase.complete_run(%s, 1)", [small])
                open_after = await watch.look(db)
                assert len(slow.seen) == 1
                assert problems_of(database, [brisk, *others]) == []
                assert not open_before & open_after, "a transaction is as old as the stream that is not read"
                reads.set()
    assert problems_of(database, [slow]) == [] and len(slow.seen) == SLOW_EVENTS + 3
    assert watch.problems + one.problems() == []


async def test_who_goes_away_in_the_middle_of_a_read_costs_no_connection(database: str) -> None:
    """A lock holds up what is read for the clients until they are gone and the gateway has noticed."""
    with connect(named(database, OWN)) as connection:
        run_id = new_run(connection)
    backends = "select pid from pg_stat_activity where application_name = 'direct' and wait_event_type = 'Lock'"
    with running(named(database, "direct"), pool_size=3) as served, connect(named(database, OWN)) as db:
        address = f"http://127.0.0.1:{served.servers[0].sockets[0].getsockname()[1]}"
        feeds = cast(Starlette, served.config.app).state.feeds._feeds
        with connect(named(database, OWN)) as blocker, blocker.transaction():
            blocker.execute("lock table tidebase.events in access exclusive mode")
            clients = [await ask(address, run_id, 0) for _ in range(3)]
            for reader, _ in clients:
                assert await status_of(reader) == 200
            await asyncio.to_thread(poll, "their events are read", lambda: len(values(db, backends)) >= 2)
            before = set(values(db, backends))
            for _, writer in clients:
                writer.transport.abort()
            await asyncio.to_thread(poll, "the gateway has noticed", lambda: not feeds)
        everybody = "select pid from pg_stat_activity where application_name = 'direct' and query not like 'listen %%'"
        again = Subscriber(run_id)
        async with following(address, [again], at_once()):
            assert before <= set(values(db, everybody))
            db.execute("select tidebase.cancel_run(%s)", [run_id])
        assert problems_of(database, [again]) == []


async def test_who_has_much_to_read_lets_others_go_on(database: str) -> None:
    """Between any two events of one follower somebody else has a turn."""
    async with AsyncTidebase(database) as tide:
        with connect(database) as connection:
            run_id = new_run(connection)
            grant(connection, run_id)
            for query in ("append_event(%s, 1, 'test.tick') from generate_series(1, 700)", "complete_run(%s, 1)"):
                connection.execute(f"select tidebase.{query}", [run_id])  # type: ignore[arg-type]
        turns = 0

        async def another() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        task = asyncio.create_task(another())
        seen = [(event.seq, turns) async for event in tide.runs.subscribe(run_id)]
        task.cancel()
    assert [seq for seq, _ in seen] == list(range(1, 704))
    assert len({moment for _, moment in seen}) == len(seen)


# -- each mechanism taken out

behind, look, follow = Feed.behind, Feed._look, Feeds.follow


async def from_now_on(feed: Feed, after: int) -> AsyncIterator[Event]:
    """Who comes back gets what is new, as of a channel without a log."""
    await feed.started.wait()
    async for event in behind(feed, max(after, feed.last) if after else 0):
        yield event


async def from_what_is_kept(feed: Feed, after: int) -> AsyncIterator[Event]:
    """Who comes back gets what is kept in memory."""
    await feed.started.wait()
    async for event in behind(feed, max(after, feed._recent[0].seq - 1) if after and feed._recent else after):
        yield event


async def what_was_rung(feed: Feed, after: int) -> AsyncIterator[Event]:
    """A ring is taken for one event, and what is older is not read again."""
    await feed.started.wait()
    read = calls.read_events(run_id=feed._run_id, after=after, max=1000)
    while True:
        for event in await feed._database.execute(read):
            yield event
        if feed.over:
            return
        await feed._changed.wait()
        read = calls.read_events(run_id=feed._run_id, after=feed.last - 1, max=1)


async def at_the_status(feed: Feed) -> None:
    """When the run is over its followers are sent away, before the last events are read; until then nothing is."""
    if feed.started.is_set():
        run = await feed._database.execute(calls.get_run(run_id=feed._run_id))
        if run.status in OVER:
            feed.over, feed.last = True, 0
            feed._tell()
        return
    await look(feed)


async def in_a_transaction(feeds: Feeds, run_id: str, after: int) -> AsyncIterator[Event]:
    """A stream keeps a connection, and a transaction on it."""
    async with feeds._database.connection() as connection, connection.transaction():
        await connection.execute("select")
        async for event in follow(feeds, run_id, after):
            yield event


Patch = tuple[Any, str, Any]

FORGOTTEN = " for the end"

#: What takes a mechanism out, and what must be found then.
MUTATIONS: dict[str, tuple[list[Patch], str]] = {
    "Last-Event-ID is ignored": ([(events, "_position", lambda request: 0)], " came twice, 1 first"),
    "who comes back gets what is new": ([(Feed, "behind", from_now_on)], " are missing, "),
    "who comes back gets what is kept": (
        [(Feed, "behind", from_what_is_kept), (subscribe, "_KEPT", 2)],
        " are missing, ",
    ),
    "what was rung for is not read again": ([(Feed, "behind", what_was_rung)], " are missing, "),
    "the end comes before the last events": ([(Feed, "_look", at_the_status)], "behind the end it was answered 200"),
    "nobody looks without a ring": (
        [(subscribe, "POLL_S", 10_000), (doorbell, "_REST_S", 10_000)],
        FORGOTTEN,
    ),
    "a stream holds a transaction": ([(Feeds, "follow", in_a_transaction)], "is idle in transaction"),
}


async def probed(database: str, load: Load) -> Outcome:
    """The probe on a gateway in this process, whose parts can be replaced."""
    with gateway(named(database, "direct"), pool_size=20) as address:
        return await everything_once(database, [address], {"direct": 21}, load)


async def test_nothing_is_found_where_nothing_is_wrong(database: str) -> None:
    assert (await probed(database, TINY)).problems == []


@pytest.mark.parametrize("name", MUTATIONS)
async def test_the_probe_sees_what_is_missing(database: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    patches, text = MUTATIONS[name]
    for where, what, instead in patches:
        monkeypatch.setattr(where, what, instead)
    # However long one waits, who is forgotten does not come to the end; all the others do, sooner or later.
    patience_s = 3 if text == FORGOTTEN else PATIENCE_S
    outcome = await probed(database, replace(TINY, lead=10**6, patience_s=patience_s))
    assert any(text in problem for problem in outcome.problems), outcome.problems
