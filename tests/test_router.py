"""A router and its shards against one database: the same calls, the same answers, the same errors.

Two shards and the router are databases of one Postgres 15; PL/Proxy is Debian's (``tests/install-system-packages``).
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tidebase import AsyncTidebase, InvalidArgument, Run, Tidebase
from tidebase.schema import forwards, migrations, router

from .conftest import SERVERS, Server, server_settings
from .support import clusters

ON_NEWEST = True

Connection = psycopg.Connection[Any]

HAS_PLPROXY = 15 in SERVERS and Path("/usr/share/postgresql/15/extension/plproxy.control").exists()

pytestmark = pytest.mark.skipif(not HAS_PLPROXY, reason="PL/Proxy is not installed for Postgres 15")

#: Calls in their order, a line each, of every function of the API: answers that are right, and each kind of error. Runs
#: of one's own ids lie at either shard: r1 at one, r3 at the other.
CALLS = (Path(__file__).parent / "support" / "routed.sql").read_text("utf-8").splitlines()

#: What is new every time.
CHANCE = re.compile(
    r"(run_)?[0-9a-f]{8}-[-0-9a-f]{27}|gate_[0-9a-f]{64}|\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\.\d+)?(\+\d\d(:\d\d)?|Z)?"
)


@dataclass(frozen=True)
class Several:
    """A router and its two shards, and a database alone."""

    server: Server
    router: str
    shards: tuple[str, str]
    alone: str

    def connect(self, name: str, **options: Any) -> Connection:
        return self.server.connect(name, **options)


def made(server: Server, owned: tuple[str, ...] | None = None) -> Several:
    """Four databases; ``owned``: what the shards are told they own, by default what the router thinks."""
    names = [server.create_database(clusters.MIGRATED) for _ in range(4)]
    shards = [router.shard_at(name, server.url(name)) for name in names[:2]]
    plan = router.spread(shards)
    for place, shard in enumerate(plan.shards):
        with router.connect(shard) as connection:
            connection.execute(
                "select tidebase_private.own_buckets(%s)", [owned[place] if owned else plan.owned(place)]
            )
    with server.connect(names[2]) as connection:
        migrations.route(connection, plan)
    return Several(server, names[2], (names[0], names[1]), names[3])


@pytest.fixture(scope="module")
def several(servers: Callable[[int], Server]) -> Iterator[Several]:
    server = servers(15)
    found = made(server)
    yield found
    for name in (found.router, *found.shards, found.alone):
        server.drop_database(name)


def said(connection: Connection, query: str) -> Any:
    """The rows of an answer, as text, or the fields of an error."""
    try:
        rows = connection.execute(query.encode()).fetchall()
    except psycopg.Error as error:
        diagnostic = error.diag
        fields = (diagnostic.message_primary, diagnostic.message_detail, diagnostic.message_hint)
        return (error.sqlstate, *(CHANCE.sub("?", field) if field is not None else None for field in fields))
    return [CHANCE.sub("?", repr(row)) for row in rows]


def test_every_answer_and_every_error_is_that_of_a_database_alone(several: Several) -> None:
    with several.connect(several.alone) as alone, several.connect(several.router) as routed:
        called = {name for call in CALLS for name in re.findall(r"tidebase\.(\w+)\(", call)}
        assert called == {function.name for function in forwards.functions(alone)}
        differ = []
        for call in CALLS:
            there, here = said(alone, call), said(routed, call)
            if there != here:
                differ.append(f"{call}\n  alone:  {there}\n  routed: {here}")
    assert not differ, "\n".join(differ)


def described(connection: Connection) -> list[Any]:
    """All that a caller can see of the API: signatures, defaults, results, comments, grants, columns of views."""
    with connection.transaction():
        connection.execute("set local search_path = pg_catalog, pg_temp")
        functions = connection.execute(
            "select p.proname, pg_get_function_arguments(p.oid), pg_get_function_result(p.oid), p.provolatile,"
            " p.prosecdef, p.prorows, obj_description(p.oid), p.proacl::text, pg_get_userbyid(p.proowner)"
            " from pg_proc p where p.pronamespace = 'tidebase'::regnamespace order by 1, 2"
        ).fetchall()
        views = connection.execute(
            "select c.relname,"
            " array_agg(format('%s %s', a.attname, format_type(a.atttypid, a.atttypmod)) order by a.attnum),"
            " obj_description(c.oid), c.relacl::text, pg_get_userbyid(c.relowner), c.reloptions"
            " from pg_class c join pg_attribute a on a.attrelid = c.oid and a.attnum > 0"
            " where c.relnamespace = 'tidebase'::regnamespace and c.relkind = 'v' group by c.oid order by 1"
        ).fetchall()
    return [*functions, *views]


def test_every_function_and_view_is_there_with_the_same_signature(several: Several) -> None:
    with several.connect(several.alone) as alone, several.connect(several.router) as routed:
        for there, here in zip(described(alone), described(routed), strict=True):
            assert there == here
        own = routed.execute(
            "select proname::text from pg_proc where pronamespace = 'tidebase'::regnamespace"
            " and prosrc !~ 'tidebase_router' order by 1"
        ).fetchall()
        assert {name for (name,) in own} == forwards.LOCAL
        views = "select count(*) from pg_views where schemaname = 'tidebase' and definition !~ 'tidebase_router'"
        assert routed.execute(views).fetchone() == (0,)
        inner = routed.execute(
            "select count(*) from pg_proc p, aclexplode(p.proacl) a"
            " where p.pronamespace = 'tidebase_router'::regnamespace and a.grantee = 0"
        )
        assert inner.fetchone() == (0,)  # nobody but the owner comes past the functions of the API


def test_whoever_makes_nothing_of_an_argument_is_told_so_as_by_a_database_alone(several: Several) -> None:
    """Every function, with nothing but NULL."""
    with several.connect(several.alone) as alone, several.connect(several.router) as routed:
        differ = []
        for function in forwards.functions(alone):
            if function.name in {"new_run_id", "create_run", "claim_runs", "reconcile"}:  # it is an answer
                continue
            call = f"select tidebase.{function.name}({', '.join(['null'] * len(function.types))})"
            there, here = said(alone, call), said(routed, call)
            if (isinstance(there, tuple) or isinstance(here, tuple)) and there != here:
                differ.append(f"{call}\n  alone:  {there}\n  routed: {here}")
    assert not differ, "\n".join(differ)


def test_a_call_is_no_part_of_a_transaction_and_says_so(several: Several) -> None:
    with several.connect(several.router) as connection:
        connection.execute("create table if not exists mine (n integer)")
        connection.execute("select tidebase.create_run('w', run_id => 'seen')")
        with pytest.raises(psycopg.errors.ActiveSqlTransaction, match="has written"), connection.transaction():
            connection.execute("insert into mine values (1)")
            connection.execute("select tidebase.create_run('w', run_id => 'in a transaction')")
        with pytest.raises(psycopg.errors.ActiveSqlTransaction, match="made one before"), connection.transaction():
            connection.execute("select tidebase.create_run('w')")
            connection.execute("select tidebase.create_run('w', run_id => 'in a transaction')")
        with connection.transaction():  # who only looks may do so as often as it likes
            for _ in range(2):
                assert said(connection, "select * from tidebase.find_run('seen')") == ["('seen',)"]
                assert said(connection, "select e.seq from tidebase.read_events('seen', max => 1) e") == ["(1,)"]


def test_what_lies_elsewhere_is_refused_with_what_to_do(several: Several) -> None:
    calls = {
        "select tidebase.fork_run('r1', 'elsewhere')": "new_run_id(beside => 'r1')",
        "select tidebase.enqueue_run('w', queue => 'q', run_id => 'elsewhere')": "{queue:q}",
        "select tidebase.claim_thread('r1', 1, 'elsewhere')": "new_run_id(beside => 'r1')",
        "select tidebase.copy_thread('t4', 'elsewhere')": "new_run_id(beside => 't4')",
        "select * from tidebase.diff_runs('r1', 'r3')": "lie beside it",
    }
    with several.connect(several.router) as connection:
        for call, advice in calls.items():
            state, _, _, hint = said(connection, call)
            assert (state, advice in hint) == ("55000", True), call


def test_pages_over_all_shards_are_those_of_one_list(several: Several) -> None:
    ids = [f"page-{number}" for number in range(23)]
    with several.connect(several.router) as connection:
        for id in ids:
            connection.execute("select tidebase.create_run('paged', run_id => %s)", [id])
        owners = [
            {row[0] for row in at.execute("select run_id from tidebase.runs where workflow = 'paged'").fetchall()}
            for at in (several.connect(name) for name in several.shards)
        ]
        assert owners[0] and owners[1] and owners[0] | owners[1] == set(ids) and not owners[0] & owners[1]
        listed: list[str] = []
        while page := connection.execute(
            "select run_id from tidebase.list_runs('paged', before => %s, max => 4)", [listed[-1] if listed else None]
        ).fetchall():
            listed += [row[0] for row in page]
        assert listed == ids[::-1]
        found: list[str] = []
        before, made = None, None
        while True:
            query = "select * from tidebase.search_runs('paged', before => %s, before_created_at => %s, max => 5)"
            row = connection.execute(query, [before, made]).fetchone()
            assert row is not None
            found, (before, made) = found + row[0], row[1:3]
            if before is None:
                break
        assert found == ids[::-1]


def test_a_gate_is_decided_by_whom_the_router_says(several: Several) -> None:
    """The router may do everything at the shards, and who calls it may not."""
    with several.connect(several.router) as connection:
        for login, role in (("sharon", "approver"), ("ruth", "reader")):
            connection.execute(f"create role {login} login")
            connection.execute(f"grant tidebase_{role} to {login}")
        connection.execute("select tidebase.create_run('w', run_id => 'asks')")
        connection.execute("select tidebase.acquire_run('asks', 'h')")
        connection.execute("select tidebase.open_gate('asks', 1, 'g')")
        try:
            with several.server.connect(several.router, user="ruth") as reader:
                assert said(reader, "select tidebase.decide_gate('asks', 'g', 'approved')")[0] == "TB009"
                assert said(reader, "select tidebase.cancel_run('asks')")[0] == "42501"
                assert said(reader, "select * from tidebase_router.shards()")[0] == "42501"
                assert said(reader, "select status from tidebase.run_overview where run_id = 'asks'") == [
                    "('running',)"
                ]
            with several.server.connect(several.router, user="sharon") as approver:
                assert said(approver, "select d.accepted from tidebase.decide_gate('asks', 'g', 'approved') d") == [
                    "(True,)"
                ]
            decided = "select actor from tidebase.gate_overview where run_id = 'asks'"
            assert said(connection, decided) == ["('sharon',)"]
        finally:
            connection.execute("drop role sharon")
            connection.execute("drop role ruth")


def test_how_a_client_likes_its_dates_changes_nothing(several: Several) -> None:
    query = "select extract(epoch from r.deadline_at), extract(epoch from w.retry_delay)"
    query += " from tidebase.run_overview r, tidebase.queue_overview w"
    query += " where r.run_id = 'dated' and w.queue = 'dated'"
    rows = []
    for options in ("-c datestyle=German -c intervalstyle=sql_standard -c timezone=Asia/Kolkata", "-c timezone=UTC"):
        with several.connect(several.router, options=options) as connection:
            connection.execute(
                "select tidebase.create_run('w', run_id => 'dated', deadline => '2031-02-03 04:05:06.789+00')"
            )
            connection.execute("select tidebase.put_queue('dated', retry_delay => '1 day -00:00:01.5')")
            rows.append(connection.execute(query.encode()).fetchall())
    assert rows[0] == rows[1] and rows[0]


SESSIONS = "select pid from pg_stat_activity where datname = any (%s) and pid <> pg_backend_pid()"


def test_a_connection_that_was_lost_is_told_as_such_and_another_one_opened(several: Several) -> None:
    with several.connect(several.router) as connection, several.connect("postgres") as other:
        connection.execute("select tidebase.create_run('w', run_id => 'lost')")
        locked = several.connect(several.shards[0]), several.connect(several.shards[1])
        for shard in locked:
            shard.execute("begin")
            shard.execute("select from tidebase.run_heads where run_id = 'lost' for update")
        pids = [row[0] for row in other.execute(SESSIONS, [list(several.shards)]).fetchall()]
        ours = {shard.info.backend_pid for shard in locked}
        other.execute(
            "create or replace procedure pg_temp.cut(pids integer[]) language plpgsql as $$ begin"
            " while not exists (select from pg_stat_activity where pid = any (pids) and wait_event_type = 'Lock') loop"
            " perform pg_stat_clear_snapshot(); end loop; perform pg_terminate_backend(p) from unnest(pids) p; end $$"
        )
        with ThreadPoolExecutor(1) as aside:
            cut = aside.submit(other.execute, "call pg_temp.cut(%s)", [[pid for pid in pids if pid not in ours]])
            state, message, _, _ = said(connection, "select tidebase.acquire_run('lost', 'h')")
            cut.result()
        assert (state, message.startswith("a shard cannot be reached")) == ("08006", True)
        for shard in locked:
            shard.close()
        assert said(connection, "select a.outcome from tidebase.acquire_run('lost', 'h') a") == ["('granted',)"]


def work(run: Run, input: Any) -> Any:
    plan = run.step("plan", lambda: {"n": input}, input=input)
    run.state.set({"status": "planned"})
    with pytest.raises(InvalidArgument, match="router"), run.transaction("mine"):
        raise AssertionError("nothing is begun")
    return run.step("send", lambda: plan["n"] + 1, input=plan, side_effects=["mail"], idempotency_key="k")


async def test_the_wrapper_works_through_it_but_for_transactions(several: Several) -> None:
    url = several.server.url(several.router)
    with Tidebase(url) as tide:
        assert [tide.run("w", work, run_id=f"wrapped-{n}", input=n) for n in range(4)] == [1, 2, 3, 4]
        assert tide.runs.get("wrapped-2").status == "completed"
        assert [event.type for event in tide.runs.subscribe("wrapped-1")][-1] == "run.completed"
        ids = {tide.enqueue("queued", n, queue=f"queue {n % 3 + 6}").run_id for n in range(6)}
        tide.workflow("queued")(work)
        worker = tide.worker([f"queue {n}" for n in (6, 7, 8)], poll_s=0.05)
        with ThreadPoolExecutor(1) as aside:
            working = aside.submit(worker.run)
            try:
                ends = {[event.type for event in tide.runs.subscribe(id)][-1] for id in ids}
            finally:
                worker.stop()
            working.result()
        assert ends == {"run.completed"}
        with several.connect(several.router) as connection, pytest.raises(InvalidArgument, match="router"):
            tide.bind(connection).enqueue("w")
    async with AsyncTidebase(url) as atide, await psycopg.AsyncConnection.connect(url) as mine:
        with pytest.raises(InvalidArgument, match="router"):
            await atide.bind(mine).enqueue("w")


def test_two_routers_with_different_maps_make_no_run_twice(servers: Callable[[int], Server]) -> None:
    """The first takes the shards in the other order. Without the owners' check both make the run."""
    server = servers(15)
    found = made(server)
    stale = server.create_database(clusters.MIGRATED)
    names = [*found.shards, found.router, found.alone, stale]
    try:
        with server.connect(stale) as connection:
            shards = [router.shard_at(name, server.url(name)) for name in reversed(found.shards)]
            migrations.route(connection, router.spread(shards))
        with server.connect(stale) as wrong, server.connect(found.router) as right:
            assert said(right, "select tidebase.create_run('w', run_id => 'once')") == ["('once',)"]
            state, message, _, _ = said(wrong, "select tidebase.create_run('w', run_id => 'once')")
            assert (state, "belongs to another database" in message) == ("55000", True)
            assert said(wrong, "select tidebase.create_run('w', run_id => 'twice')")[0] == "55000"
            for name in found.shards:
                with server.connect(name) as shard:
                    shard.execute("select tidebase_private.own_buckets(null)")
            assert said(wrong, "select tidebase.create_run('w', run_id => 'once')") == ["('once',)"]
    finally:
        for name in names:
            server.drop_database(name)


def test_backends_of_shards_are_killed_and_nothing_is_lost_or_doubled(
    servers: Callable[[int], Server],
) -> None:
    """The shards' server crashes with each: it ends every session, and recovers. The router's goes on."""
    server = servers(15)
    data = Path(tempfile.mkdtemp(dir=clusters.folder())) / "shards"
    data.parent.chmod(0o755)
    cluster = clusters.cluster(data, SERVERS[15], server_settings(15))
    cluster.start()
    there, front = Server(15, cluster), server.create_database(clusters.MIGRATED)
    try:
        names = [there.create_database(clusters.MIGRATED) for _ in range(2)]
        with server.connect(front) as connection:
            shards = [router.shard_at(name, there.url(name)) for name in names]
            migrations.found_router(connection, router.spread(shards))
        done: list[tuple[int, int]] = []
        killed = 0

        def agent(run: Run, input: Any) -> int:
            nonlocal killed
            for step in range(4):
                run.step(f"step {step}", lambda step=step: done.append((input, step)), input=step)
                if step == 1 and input % 4 == 0:
                    with there.connect() as other:
                        for (pid,) in other.execute(SESSIONS, [names]).fetchall():
                            with suppress(ProcessLookupError):  # the first one that dies ends the others
                                os.kill(pid, signal.SIGKILL)
                                killed += 1
                    cluster.start()  # waits until it answers
            return int(input)

        with Tidebase(server.url(front)) as tide:
            assert [tide.run("w", agent, run_id=f"run-{n}", input=n) for n in range(8)] == list(range(8))
        assert killed >= 2
        assert sorted(done) == [(run, step) for run in range(8) for step in range(4)]
        with server.connect(front) as connection:
            assert connection.execute("select * from tidebase.check_invariants()").fetchall() == []
            made = "select count(*), count(distinct run_id), bool_and(status = 'completed') from tidebase.run_overview"
            assert connection.execute(made.encode()).fetchone() == (8, 8, True)
    finally:
        server.drop_database(front)
        cluster.stop("immediate")
        shutil.rmtree(data.parent, ignore_errors=True)
