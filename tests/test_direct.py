"""Direct mode: a client that has the map of a router, beside the router, and beside a database alone.

Routers and shards are those of ``test_router``.
"""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from psycopg.conninfo import conninfo_to_dict

from tidebase import (
    AsyncTidebase,
    DatabaseUnavailable,
    InputMismatch,
    InvalidArgument,
    NotEntitled,
    Run,
    RunNotFound,
    Tidebase,
    TidebaseError,
)
from tidebase.core.call import Call
from tidebase.core.places import bucket_of, place_of_queue
from tidebase.core.shardmap import bucket_at, way_to
from tidebase.domain import calls, subscribe
from tidebase.domain.workflow import new_run_id
from tidebase.schema import forwards, migrations, router

from .conftest import SERVERS, Server, server_settings
from .probes.support import poll
from .support import clusters
from .support.patience import PATIENCE_S
from .test_router import CALLS, CHANCE, HAS_PLPROXY, Connection, Several, made

ON_NEWEST = True

needs_router = pytest.mark.skipif(not HAS_PLPROXY, reason="PL/Proxy is not installed for Postgres 15")


@pytest.fixture(scope="module")
def several(servers: Callable[[int], Server]) -> Iterator[Several]:
    yield from _several(servers(15))


@pytest.fixture
def moving(servers: Callable[[int], Server]) -> Iterator[Several]:
    """Of one's own, whose map changes."""
    yield from _several(servers(15))


def _several(server: Server) -> Iterator[Several]:
    found = made(server)
    yield found
    for name in (found.router, *found.shards, found.alone):
        server.drop_database(name)


def direct(found: Several, **options: Any) -> Tidebase:
    return Tidebase(found.server.url(found.router), direct=True, **options)


def place(found: Several, run_id: str) -> str:
    """The name of the database in which a run lies, as the shards were spread first."""
    return found.shards[(bucket_of(run_id) & (router.PARTITIONS - 1)) * 2 // router.PARTITIONS]


def ids_of(found: Several, shard: str, prefix: str) -> Iterator[str]:
    return (id for id in (f"{prefix}-{n}" for n in range(10_000)) if place(found, id) == shard)


def has(found: Several, shard: str, run_id: str) -> bool:
    with found.connect(shard) as connection:
        row = connection.execute("select from tidebase.runs where run_id = %s", [run_id]).fetchone()
    return row is not None


# --- where a call goes ---


@settings(max_examples=20, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.text(st.characters(blacklist_characters="\0", blacklist_categories=["Cs"])),
            st.text("{}\\ab\n", max_size=8),
            st.builds(lambda queue: place_of_queue(queue), st.text("{}q:\\ü", max_size=5)),
            st.builds(lambda tag: new_run_id(beside=f"{{{tag}}}"), st.text("abc", min_size=1)),
            st.builds(lambda id, text: id + text, st.builds(new_run_id), st.text("\nx{}", max_size=2)),
        ),
        min_size=200,
    )
)
@example(["", "{}", "{}a", "}{", "{a", "a}b{c}d", "\\x41", "{\\}", "run_x", "ü", "{ü}", "\n", "a\n"])
def test_here_and_in_the_database_a_name_has_the_same_bucket(bucket_db: Connection, names: list[str]) -> None:
    query = (
        "select tidebase_private.bucket_of(n), tidebase_private.bucket_of_queue(n)"
        " from unnest(%s::text[]) with ordinality u (n, place) order by place"
    )
    there = bucket_db.execute(query, [names]).fetchall()
    assert there == [(bucket_of(name), bucket_of(place_of_queue(name))) for name in names]


@pytest.fixture(scope="module")
def bucket_db(servers: Callable[[int], Server]) -> Iterator[Connection]:
    server = servers(max(SERVERS))
    name = server.create_database(clusters.MIGRATED)
    with server.connect(name) as connection:
        yield connection
    server.drop_database(name)


#: By hand in the router, and about one run where that is given.
OF_ONE = {"create_run", "list_gates", "list_checkpoints"}


@needs_router
def test_a_call_goes_where_the_router_sends_it(several: Several) -> None:
    """Every function; what a router decides for itself, or sends to the shard of a queue, is left to it."""
    by_hand = forwards.parts_of(router.files()["by_hand.sql"])
    with several.connect(several.alone) as connection:
        functions = {function.name: function for function in forwards.functions(connection)}
    named = {"run_id": "r", "thread_id": "t", "source_thread_id": "s"}
    for function in (value for value in vars(calls).values() if isinstance(value, calls.Function)):
        arguments = {name: name[0] for name in function.parameters if not name.endswith("_at")}
        arguments = {name: value for name, value in arguments.items() if function.parameters[name] != "timestamptz"}
        places = function(**arguments).places
        first = next(iter(functions[function.name].names), None)
        if function.name in by_hand and function.name not in OF_ONE:
            assert places == (), function.name
        elif function.name == "enqueue_run":
            assert set(places) == {"r", "{queue:q}"}
        elif function.name == "create_run" or first in named:
            others = forwards.TOGETHER.get(function.name, ("", "", "", ""))
            expected = {arguments[name] for name in (first, others[1], others[3]) if name in function.parameters}
            assert set(places) == (expected if function.name != "create_run" else {"r"}), function.name
        else:
            assert places == (), function.name
    views = {"step_timeline": calls.step_timeline, "run_sizes": calls.run_sizes, "gate_overview": calls.run_gates}
    for look in views.values():
        assert look("r").places == ("r",)
    assert calls.runs_by_id(["r"]).places == calls.review_inbox(None).places == ()
    assert bucket_at(("a{x}", "b{x}")) == bucket_of("x") and bucket_at(("a", "b")) is None and bucket_at(()) is None
    assert bucket_at((5,)) is None


def test_who_comes_to_a_shard_comes_as_the_same_user_and_nothing_of_the_routers_place_is_left() -> None:
    way = conninfo_to_dict(
        way_to(
            "dbname=b host=two sslmode=require user=router password=secret",
            "postgresql://me:mine@one:6000/a?sslrootcert=x&hostaddr=10.0.0.1&application_name=n",
        )
    )
    assert way == {
        "dbname": "b", "host": "two", "port": "", "hostaddr": "", "user": "me", "password": "mine",
        "sslmode": "require", "sslrootcert": "x", "application_name": "n",
    }  # fmt: skip
    assert (
        conninfo_to_dict(way_to("host=two dbname=b sslmode=prefer", "sslmode=verify-full"))["sslmode"] == "verify-full"
    )


@needs_router
def test_the_map_has_no_password_and_is_for_who_may_call(several: Several) -> None:
    with several.connect(several.router) as connection:
        (stored,) = connection.execute(
            "select value::jsonb from tidebase_private.settings where name = 'router'"
        ).fetchone() or ({},)
        shards = [{**shard, "user": "elsewhere", "password": "hush"} for shard in stored["shards"]]
        with connection.transaction(force_rollback=True):
            changed = json.dumps({**stored, "shards": shards})
            connection.execute("update tidebase_private.settings set value = %s where name = 'router'", [changed])
            (owners,) = connection.execute("select tidebase.shard_map()").fetchone() or ((),)
            assert len(owners) == router.PARTITIONS and len(set(owners)) == 2
            assert not re.search("hush|elsewhere|password|user", str(owners))
        connection.execute("create role stranger login")
        try:
            url = several.server.url(several.router, "stranger")
            with Tidebase(url, direct=True) as tide, pytest.raises(NotEntitled, match="grant tidebase_"):
                tide.runs.get("r1")
        finally:
            connection.execute("drop role stranger")


@needs_router
def test_what_cannot_be_direct_says_so(several: Several) -> None:
    url = several.server.url(several.alone)
    with Tidebase(url, direct=True) as tide, pytest.raises(InvalidArgument, match="is none"):
        tide.runs.get("r1")
    with several.connect(several.router) as connection, pytest.raises(InvalidArgument, match="connection string"):
        Tidebase(connection, direct=True)


# --- the same answers ---


def said(tide: Tidebase, call: Call[Any]) -> Any:
    """The rows of an answer, as text, or an error."""
    try:
        rows = tide._database.execute(call)
    except TidebaseError as error:
        detail = {name: CHANCE.sub("?", str(value)) for name, value in error.detail.items()}
        return type(error).__name__, error.sqlstate, CHANCE.sub("?", error.message), detail, error.hint
    return [CHANCE.sub("?", repr([str(value) for value in row])) for row in rows]


@needs_router
def test_every_answer_and_every_error_is_that_of_a_database_alone(several: Several) -> None:
    """Each call that names a run says to its shard which bucket it looks for, whatever it is."""
    with several.connect(several.alone) as connection:
        first = {function.name: (*function.names, None)[0] for function in forwards.functions(connection)}
    literal = re.compile(r"tidebase\.(\w+)\('([^']*)'")
    went, differ = 0, []
    with Tidebase(several.server.url(several.alone)) as alone, direct(several) as tide:
        for line in CALLS:
            call: Call[Any] = Call(line.replace("%", "%%"), (), list)
            found = literal.search(line)
            named = re.search(r"create_run\(.*run_id => '([^']*)'", line)
            if named or (found and first[found[1]] in ("run_id", "thread_id", "source_thread_id")):
                call.places = ((named or found)[1 if named else 2],)  # type: ignore[index]
                went += 1
            there, here = said(alone, call), said(tide, call)
            if there != here:
                differ.append(f"{line}\n  alone:  {there}\n  direct: {here}")
    assert not differ, "\n".join(differ)
    assert went > len(CALLS) / 2


def everything(tide: Tidebase, mine: str) -> list[Any]:
    """What an agent does, by the wrapper."""
    told: list[Any] = []

    def child(run: Run, input: Any) -> Any:
        return run.step("work", lambda: input * 2, input=input)

    def agent(run: Run, input: Any) -> Any:
        plan = run.step("plan", lambda: {"n": input}, input=input)
        run.state.set({"status": "planned"})
        run.state.patch({"more": [1]})
        run.snapshots.create("before")
        run.usage.record(input_tokens=10, cost_usd="0.5")
        run.emit("my.event", {"a": 1})
        kids = run.fanout("kids", [{"name": f"k{n}", "workflow": "child", "input": n} for n in range(3)])
        with run.transaction("mine") as tx:
            tx.execute(f"insert into mine values ('{mine}')")
            tx.result = [str(kids)]
        return run.step("send", lambda: plan["n"] + 1, input=plan, side_effects=["mail"], idempotency_key="k")

    tide.workflow("child")(child)
    for n in range(4):
        id = f"{mine}-{n}"
        told.append(tide.run("agent", agent, run_id=id, input=n, budget={"cost_usd": 5}))
        told.append(tide.run("agent", agent, run_id=id, input=n))
        told.append([(step.name, step.status, step.output) for step in tide.runs.steps(id)])
        told.append([(event.seq, event.type) for event in tide.runs.subscribe(id)])
        told.append(tide.runs.state(id).value)
        told.append(tide.runs.usage(id).tree_cost_usd)
        told.append([(node.depth, node.status) for node in tide.runs.tree(id)])
        fork = tide.runs.fork(id)
        told.append([(row.kind, row.name) for row in tide.diff(id, fork.run_id)])
    for wrong in (
        lambda: tide.run("agent", agent, run_id=f"{mine}-0", input="another"),
        lambda: tide.runs.get("nobody"),
        lambda: tide.runs.cancel(f"{mine}-1"),
        lambda: tide.runs.step(f"{mine}-1", "none"),
        lambda: tide.gates.decide(f"{mine}-1", "none", "approved"),
        lambda: tide.runs.create("", run_id=f"{mine}-1"),
        lambda: tide.runs.get("\0"),
        lambda: tide.runs.get("\ud800"),
    ):
        with pytest.raises(TidebaseError) as caught:
            wrong()
        error = caught.value
        told.append((type(error).__name__, error.sqlstate, CHANCE.sub("?", str(error))))
    tide.workflow("agent")(agent)
    ids = [tide.enqueue("agent", n, queue=f"{mine} {n % 3}").run_id for n in range(6)]
    worker = tide.worker([f"{mine} {n}" for n in range(3)], poll_s=0.05)
    with ThreadPoolExecutor(1) as aside:
        working = aside.submit(worker.run)
        try:
            told += [[event.type for event in tide.runs.subscribe(id)][-1] for id in ids]
        finally:
            worker.stop()
        working.result()
    return json.loads(CHANCE.sub("?", json.dumps(told, default=str)))  # type: ignore[no-any-return]


@needs_router
def test_what_an_agent_does_comes_out_as_in_a_database_alone(several: Several) -> None:
    for name in (several.alone, *several.shards):
        with several.connect(name) as connection:
            connection.execute("create table if not exists mine (said text)")
    with Tidebase(several.server.url(several.alone)) as alone, direct(several) as tide:
        assert everything(tide, "agent") == everything(alone, "agent")
        plain, ahead = everything(alone, "behind"), direct(several, checkpoints="behind")
        with ahead:
            assert everything(ahead, "behind") == plain
    counts = []
    for name in several.shards:
        with several.connect(name) as connection:
            (wrong,) = connection.execute("select count(*) from tidebase.check_invariants()").fetchone() or (1,)
            assert wrong == 0
            counts.append(connection.execute("select count(*) from mine").fetchone())
    assert all(count != (0,) for count in counts)


@needs_router
async def test_with_asyncio_it_is_the_same(several: Several) -> None:
    async def one(run: Any, input: Any) -> Any:
        async def plan() -> int:
            return int(input)

        results = await asyncio.gather(*(run.step.options(key=n)("plan", plan) for n in range(5)))
        async with run.transaction("tx") as tx:
            await tx.execute("insert into of_async values (1)")
            tx.result = sum(results)
        return tx.result

    for name in several.shards:
        with several.connect(name) as connection:
            connection.execute("create table of_async (n integer)")
    async with AsyncTidebase(several.server.url(several.router), direct=True) as tide:
        ids = [f"async-{n}" for n in range(6)]
        results = await asyncio.gather(*(tide.run("w", one, run_id=id, input=n) for n, id in enumerate(ids)))
        assert results == [5 * n for n in range(6)]
        assert {(await tide.runs.get(id)).status for id in ids} == {"completed"}
        assert len({await tide.url_of(id) for id in ids}) == 2
    assert {has(several, place(several, id), id) for id in ids} == {True}


# --- transactions, and bells ---


@needs_router
def test_a_transaction_is_that_of_the_runs_shard(several: Several) -> None:
    for name in several.shards:
        with several.connect(name) as connection:
            connection.execute("create table if not exists ledger (run_id text)")
    shard, other = several.shards
    id, elsewhere = next(ids_of(several, shard, "tx")), next(ids_of(several, other, "tx"))
    with direct(several) as tide, tide.runs.attach("w", run_id=id) as session:
        with pytest.raises(ZeroDivisionError), session.transaction("undone") as tx:
            tx.execute("insert into ledger values ('undone')")
            raise ZeroDivisionError
        with session.transaction("done") as tx:
            tx.execute("insert into ledger values (%s)", [id])
        assert tide.url_of(id) != tide.url_of(elsewhere)
        with psycopg.connect(tide.url_of(id)) as mine:
            with session.transaction("joined", connection=mine) as tx:
                tx.execute("insert into ledger values ('joined')")
            mine.commit()
            mine.execute("insert into ledger values ('kept')")
            made = tide.bind(mine).runs.create("w").run_id
            beside = tide.bind(mine).enqueue("w", queue="mine", run_id=f"{{{id}}} beside {{queue:mine}}")
            mine.rollback()
            assert place(several, made) == shard and not has(several, shard, made) and not beside.deduplicated
            bound = tide.bind(mine)
            calls_elsewhere: list[Callable[[], Any]] = [
                lambda: bound.runs.create("w", run_id=elsewhere),
                lambda: bound.runs.get(elsewhere),
                lambda: bound.enqueue("w", queue=next(queues_of(several, other))),
            ]
            for call in calls_elsewhere:
                with pytest.raises(InvalidArgument, match="not in the database of"):
                    call()
                mine.rollback()
        for url in (tide.url_of(elsewhere), tide.url):
            with (
                psycopg.connect(url) as stranger,
                pytest.raises(InvalidArgument),
                session.transaction(f"at {url}", connection=stranger),
            ):
                raise AssertionError("nothing is begun")
        with psycopg.connect(tide.url) as front, pytest.raises(InvalidArgument, match="router"):
            tide.bind(front).enqueue("w")
    with several.connect(shard) as connection:
        rows = {row[0] for row in connection.execute("select run_id from ledger").fetchall()}
    assert rows == {id, "joined"}


def queues_of(found: Several, shard: str) -> Iterator[str]:
    return (queue for queue in (f"q{n}" for n in range(10_000)) if place(found, place_of_queue(queue)) == shard)


LISTENING = (
    "select datname, count(*) from pg_stat_activity where query = 'listen tidebase_events' and datname = any(%s)"
    " group by datname"
)


@needs_router
def test_one_bell_a_shard_wakes_all_who_follow_and_the_workers(
    several: Several, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody looks by himself, for an hour."""
    monkeypatch.setattr(subscribe, "POLL_S", 3600.0)
    monkeypatch.setattr(subscribe, "IDLE_POLL_S", 3600.0)
    ids = [id for shard in several.shards for _, id in zip(range(3), ids_of(several, shard, "bell"), strict=False)]
    queues = [next(queues_of(several, shard)) for shard in several.shards]
    with direct(several) as tide, several.connect("postgres") as watcher, ThreadPoolExecutor(7) as aside:
        tide.workflow("w")(lambda run, input: input)
        worker = tide.worker(queues, poll_s=3600, concurrency=2)
        working = aside.submit(worker.run)
        sessions = {id: tide.runs.attach("w", run_id=id) for id in ids}

        def ends(id: str) -> list[str]:
            return [event.type for event in tide.runs.subscribe(id, after=2)]

        try:
            following = [aside.submit(ends, id) for id in ids]
            bells = tide._database.doorbell._waiting
            poll("all follow", lambda: set(ids) <= bells.keys())
            expected = dict.fromkeys(several.shards, 1)

            def heard() -> bool:
                return dict(watcher.execute(LISTENING, [list(several.shards)]).fetchall()) == expected  # type: ignore[arg-type]

            poll("each shard has one who listens", heard)
            with several.connect(several.router) as front:  # what another one does, by the router
                for id in ids:
                    poll("it is watched", lambda id=id: watched(several, id))  # type: ignore[misc]
                    front.execute("select tidebase.append_event(%s, %s, 'my.event')", [id, sessions[id].token])
            for session in sessions.values():
                session.complete()
            assert [follower.result(PATIENCE_S) for follower in following] == [["my.event", "run.completed"]] * 6
            poll("the worker sleeps", lambda: all(sleeps(several, queue) for queue in queues))
            for n, queue in enumerate(queues):
                made = tide.enqueue("w", n, queue=queue).run_id
                assert [event.type for event in tide.runs.subscribe(made)][-1] == "run.completed"
            assert heard()
        finally:
            worker.stop()
            for session in sessions.values():
                session.close()
        working.result(PATIENCE_S)


def watched(found: Several, run_id: str) -> bool:
    with found.connect(place(found, run_id)) as connection:
        row = connection.execute(
            "select watched_until > now() from tidebase.watches where run_id = %s", [run_id]
        ).fetchone()
    return row == (True,)


def sleeps(found: Several, queue: str) -> bool:
    """Whether a worker is known there to wait for the bell."""
    query = "select exists (select from tidebase.workers where listening_until > now() and queues @> array[%s])"
    with found.connect(place(found, place_of_queue(queue))) as connection:
        return connection.execute(query, [queue]).fetchone() == (True,)


# --- a map that is an old one ---


def switch(found: Several, epoch: int, *, shards: bool = True, front: bool = True) -> None:
    """The two shards change places: what each owned is the other's from now on."""
    at = [router.shard_at(name, found.server.url(name)) for name in found.shards]
    owners = tuple((partition * 2 // router.PARTITIONS + epoch - 1) % 2 for partition in range(router.PARTITIONS))
    plan = router.Map(epoch, tuple(at), owners)
    if shards:
        for number, shard in enumerate(plan.shards):
            with router.connect(shard) as connection:
                connection.execute("select tidebase_private.own_buckets(%s)", [plan.owned(number)])
    if front:
        with found.connect(found.router) as connection:
            migrations.route(connection, plan)


TABLES = """
select table_name from information_schema.columns join information_schema.tables using (table_schema, table_name)
where table_schema = 'tidebase' and column_name = 'run_id' and table_type = 'BASE TABLE' order by 1
"""


def copy(found: Several, run_id: str, source: str, target: str) -> None:
    """Brings a run's rows to another shard, as replication would; they are left where they were, too."""
    with found.connect(source) as one, found.connect(target) as other, other.transaction():
        other.execute("set local session_replication_role = replica")
        for (table,) in one.execute(TABLES).fetchall():
            rows = one.execute(f"select to_jsonb(t) from tidebase.{table} t where run_id = %s", [run_id]).fetchall()
            for (row,) in rows:
                columns = ", ".join(row)
                other.execute(
                    f"insert into tidebase.{table} ({columns}) select {columns}"
                    f" from jsonb_populate_record(null::tidebase.{table}, %s)",
                    [json.dumps(row)],
                )


def delete(found: Several, run_id: str, shard: str) -> None:
    """Behind a move."""
    with found.connect(shard) as connection, connection.transaction():
        connection.execute("set local session_replication_role = replica")
        for (table,) in connection.execute(TABLES).fetchall():
            connection.execute(f"delete from tidebase.{table} where run_id = %s", [run_id])


@needs_router
def test_a_stale_map_is_read_again_and_the_call_made_where_the_run_is_now(moving: Several) -> None:
    """A call under a lease, one that makes a run, one that enqueues, one that looks: each is the first to find out."""
    shard, other = moving.shards
    id, new = (id for _, id in zip(range(2), ids_of(moving, shard, "moved"), strict=False))
    queue = next(queues_of(moving, shard))
    with direct(moving) as works, direct(moving) as makes, direct(moving) as enqueues, direct(moving) as looks:
        session = works.runs.attach("w", run_id=id)
        assert session.step("first", lambda: 1) == 1
        for tide in (makes, enqueues, looks):
            assert tide.runs.get(id).status == "running"
        seen: list[str] = []
        follower = threading.Thread(target=lambda: seen.extend(event.type for event in works.runs.subscribe(id)))
        follower.start()
        poll("it follows", lambda: "step.completed" in seen)
        copy(moving, id, shard, other)
        switch(moving, 2)

        assert session.step("second", lambda: 2) == 2
        assert [steps_at(moving, name, id) for name in (shard, other)] == [["first"], ["first", "second"]]
        assert makes.runs.create("w", run_id=new).run_id == new
        beside = enqueues.enqueue("w", queue=queue).run_id
        assert [has(moving, name, new) or has(moving, name, beside) for name in (shard, other)] == [False, True]
        assert [step.name for step in looks.runs.steps(id)] == ["first", "second"]
        assert {epoch(tide) for tide in (works, makes, enqueues, looks)} == {2}

        delete(moving, id, shard)
        with session.transaction("third") as tx:
            tx.execute("create table if not exists mine (n integer)")
        with moving.connect("postgres") as watcher:
            poll("it listens there", lambda: watcher.execute(LISTENING, [[other]]).fetchone() == (other, 1))
        session.complete()
        follower.join(PATIENCE_S)
        assert not follower.is_alive() and seen[-1] == "run.completed" and seen.count("step.completed") == 3


def epoch(tide: Tidebase) -> int:
    known = tide._database._map  # type: ignore[attr-defined]
    return int(known.epoch)


def steps_at(found: Several, shard: str, run_id: str) -> list[str]:
    with found.connect(shard) as connection:
        query = "select name from tidebase.steps where run_id = %s order by completed_at"
        return [row[0] for row in connection.execute(query, [run_id]).fetchall()]


@needs_router
def test_who_has_an_old_map_and_meets_a_shard_that_has_deleted_the_run_asks_again(moving: Several) -> None:
    shard, other = moving.shards
    id = next(ids_of(moving, shard, "deleted"))
    with direct(moving) as tide:
        session = tide.runs.attach("w", run_id=id)
        copy(moving, id, shard, other)
        switch(moving, 2)
        delete(moving, id, shard)
        with moving.connect(shard) as connection:
            connection.execute(
                "select tidebase_private.own_buckets(value) from tidebase_private.settings where name = 'buckets'"
            )
            triggers = "select count(*) from pg_trigger where tgname = 'refuse_moved'"
            assert connection.execute(triggers).fetchone() == (0,)
        assert session.step("s", lambda: 1) == 1 and epoch(tide) == 2
        session.complete()
        with pytest.raises(RunNotFound):
            tide.runs.get("nobody")


@needs_router
@pytest.mark.parametrize("word", ["to who looks", "to who works"])
def test_without_the_shards_word_who_has_an_old_map_reads_and_writes_what_is_not_so(moving: Several, word: str) -> None:
    shard, other = moving.shards
    id = next(ids_of(moving, shard, "silent"))
    with direct(moving) as stale, direct(moving) as fresh:
        session = stale.runs.attach("w", run_id=id)
        copy(moving, id, shard, other)
        switch(moving, 2)
        fresh.runs.cancel(id)
        with moving.connect(shard) as connection:
            if word == "to who looks":
                connection.execute(
                    "create or replace function tidebase.require_bucket(bucket integer) returns boolean language sql"
                    " stable security definer set search_path = pg_catalog, pg_temp as 'select true'"
                )
                assert stale.runs.get(id).status == "running"
            else:
                connection.execute("drop trigger refuse_moved on tidebase.run_heads")
                assert session.step("lost", lambda: 1) == 1 and epoch(stale) == 1
                assert [steps_at(moving, name, id) for name in (shard, other)] == [["lost"], []]


@needs_router
def test_two_maps_make_no_run_twice_but_where_the_shards_do_not_look(moving: Several) -> None:
    shard = moving.shards[0]
    once, twice = (id for _, id in zip(range(2), ids_of(moving, shard, "once"), strict=False))
    with direct(moving) as stale, direct(moving) as fresh:
        stale.runs.count()
        stale.runs.create("w", run_id="first")
        switch(moving, 2)
        fresh.runs.create("w", run_id=once)
        stale.runs.create("w", run_id=once)
        assert [has(moving, name, once) for name in moving.shards] == [False, True]
    with direct(moving) as stale, direct(moving) as fresh:
        stale.runs.create("w", run_id="first")
        switch(moving, 3)
        for name in moving.shards:
            with moving.connect(name) as connection:
                connection.execute("select tidebase_private.own_buckets(null)")
        fresh.runs.create("w", run_id=twice)
        stale.runs.create("w", run_id=twice)
        assert [has(moving, name, twice) for name in moving.shards] == [True, True]


@needs_router
def test_between_the_word_to_the_shards_and_the_routers_map_a_call_waits(moving: Several) -> None:
    id = next(ids_of(moving, moving.shards[0], "between"))
    with direct(moving, reconnect_s=PATIENCE_S) as tide, ThreadPoolExecutor(1) as aside:
        tide.runs.create("w", run_id="first")
        switch(moving, 2, front=False)
        looked, look = threading.Event(), tide._database._looked_up  # type: ignore[attr-defined]

        def looked_up(known: Any) -> Any:
            found = look(known)
            looked.set()
            return found

        tide._database._looked_up = looked_up  # type: ignore[attr-defined]
        made = aside.submit(tide.runs.create, "w", run_id=id)
        assert looked.wait(PATIENCE_S) and not made.done()
        switch(moving, 2, shards=False)
        assert made.result(PATIENCE_S).run_id == id
    assert [has(moving, name, id) for name in moving.shards] == [False, True]
    with direct(moving, reconnect_s=0.2) as tide:  # and not for ever
        switch(moving, 3, front=False)
        with pytest.raises(TidebaseError, match="belongs to another database") as caught:
            tide.runs.create("w", run_id=id)
        assert caught.value.sqlstate in ("55000", "40001")


# --- crashes ---

WORKER = """
import os, signal, sys, time
from tidebase import Tidebase

url, mode, run_id, ledger, dies, checkpoints = sys.argv[1:]

def note(step):
    with open(ledger, "a") as file:
        file.write(step + "\\n")
    return step

def third():
    if dies == "dies":
        os.kill(os.getpid(), signal.SIGKILL)
    return note("third")

def agent(run, input):
    run.step("first", note, "first")
    run.flush()
    run.step("second", lambda: note("second"), side_effects=["mail"], idempotency_key="k")
    run.step("third", third)
    return [run.step("fourth", note, "fourth"), run.attempt]

with Tidebase(url, direct=mode == "direct", lease_s=1, checkpoints=checkpoints) as tide:
    print(tide.run("agent", agent, run_id=run_id, wait_s=600))
"""


@needs_router
@pytest.mark.parametrize("checkpoints", ["each", "behind"])
@pytest.mark.parametrize("modes", [("direct", "router"), ("router", "direct"), ("direct", "direct")])
def test_a_killed_worker_is_followed_by_one_of_the_other_kind(
    several: Several, tmp_path: Path, modes: tuple[str, str], checkpoints: str
) -> None:
    url = several.server.url(several.router)
    for shard in several.shards:
        run_id = next(ids_of(several, shard, f"killed by {modes} {checkpoints}"))
        ledger = tmp_path / shard
        ends = []
        for mode, dies in zip(modes, ("dies", "lives"), strict=True):
            arguments = [sys.executable, "-c", WORKER, url, mode, run_id, str(ledger), dies, checkpoints]
            ended = subprocess.run(arguments, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
            ends.append((ended.returncode, ended.stdout))
        assert ends == [(-signal.SIGKILL, ""), (0, "['fourth', 2]\n")]
        assert ledger.read_text().split() == ["first", "second", "third", "fourth"]
        with several.connect(shard) as connection:
            assert connection.execute("select * from tidebase.check_invariants(%s)", [run_id]).fetchall() == []


@contextmanager
def elsewhere(version: int) -> Iterator[tuple[Server, Any]]:
    """A server of one's own, which can be stopped."""
    data = Path(tempfile.mkdtemp(dir=clusters.folder())) / "shard"
    data.parent.chmod(0o755)
    cluster = clusters.cluster(data, SERVERS[version], server_settings(version))
    cluster.start()
    try:
        yield Server(version, cluster), cluster
    finally:
        cluster.stop("immediate")
        shutil.rmtree(data.parent, ignore_errors=True)


@needs_router
def test_a_shard_that_is_down_fails_its_own_runs_alone(servers: Callable[[int], Server]) -> None:
    server = servers(15)
    here, front = (server.create_database(clusters.MIGRATED) for _ in range(2))
    with elsewhere(15) as (there, cluster):
        away = there.create_database(clusters.MIGRATED)
        plan = router.spread([router.shard_at("here", server.url(here)), router.shard_at("away", there.url(away))])
        with server.connect(front) as connection:
            migrations.found_router(connection, plan)
        url = server.url(front)
        near, far = "down-0", "down-0"
        ids = [f"down-{n}" for n in range(40)]
        near, *nears = [id for id in ids if bucket_of(id) % router.PARTITIONS < router.PARTITIONS // 2]
        far, *fars = [id for id in ids if id not in (near, *nears)]
        with Tidebase(url, direct=True, reconnect_s=0.5) as tide, Tidebase(url, direct=True, reconnect_s=0.5) as fresh:
            kept, lost = (tide.runs.attach("w", run_id=id) for id in (near, far))
            assert lost.step("first", lambda: 1) == 1
            cluster.stop("immediate")
            assert kept.step("first", lambda: 1) == 1
            assert tide.run("w", lambda run, _: run.step("s", lambda: 2), run_id=nears[0]) == 2
            for one in (tide, fresh):  # one that has been there, and one that has not
                with pytest.raises(DatabaseUnavailable):
                    one.runs.create("w", run_id=fars[0])
                assert one.runs.create("w", run_id=nears[1]).run_id == nears[1]
            cluster.start()
            assert lost.step("first again", lambda: 1) == 1
            assert fresh.runs.create("w", run_id=fars[0]).run_id == fars[0]
            for session in (kept, lost):
                session.complete()
        with pytest.raises(InputMismatch), Tidebase(url, direct=True) as tide:
            tide.runs.create("another", run_id=far)
    for name in (front, here):
        server.drop_database(name)
