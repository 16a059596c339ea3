"""The user's own SQL and the checkpoint commit together, or neither does."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import psycopg
import pytest

from tidebase import LeaseLostError, Run, StepNotRunning, Tidebase, TidebaseError

from .conftest import Server, on_every_version

ON_NEWEST = True


@pytest.fixture(autouse=True)
def mine(db: psycopg.Connection[Any]) -> None:
    db.execute("create table mine (n int primary key)")


def count(db: psycopg.Connection[Any]) -> int:
    row = db.execute("select count(*) from mine").fetchone()
    assert row is not None
    return int(row[0])


def insert(run: Run, input: Any = None) -> Any:
    with run.transaction("t", input=input) as tx:
        tx.execute("insert into mine values (1)")
        tx.result = {"inserted": 1}
    return tx.result


def test_a_replay_does_not_repeat_the_statements(tide: Tidebase, db: psycopg.Connection[Any]) -> None:
    def workflow(run: Run, input: Any) -> Any:
        result = insert(run)
        if run.attempt == 1:
            raise ConnectionResetError
        return result

    with pytest.raises(ConnectionResetError):
        tide.run("w", workflow, run_id="r")
    assert tide.run("w", workflow, run_id="r") == {"inserted": 1}
    assert count(db) == 1


def test_rows_and_the_connection_are_not_there_on_a_replay(tide: Tidebase) -> None:
    with tide.runs.attach("w", run_id="r") as session:
        insert(session)
    with tide.runs.attach("w", run_id="r") as session, session.transaction("t") as tx:
        assert tx.replayed and tx.result == {"inserted": 1}
        with pytest.raises(TidebaseError, match=r"tx\.result"):
            tx.execute("select 1").fetchone()
        with pytest.raises(TidebaseError, match="not repeated"):
            _ = tx.connection


def test_an_error_in_the_block_rolls_both_back(tide: Tidebase, db: psycopg.Connection[Any]) -> None:
    with tide.runs.attach("w", run_id="r") as session:
        with pytest.raises(ZeroDivisionError), session.transaction("t") as tx:
            tx.execute("insert into mine values (1)")
            raise ZeroDivisionError
        assert (count(db), tide.runs.steps("r")[0].status) == (0, "failed")
        insert(session)
    assert (count(db), tide.runs.steps("r")[0].status, tide.runs.steps("r")[0].attempt) == (1, "completed", 2)


@on_every_version
def test_a_lease_lost_in_the_block_rolls_the_users_sql_back(tide: Tidebase, db: psycopg.Connection[Any]) -> None:
    def workflow(run: Run, input: Any) -> None:
        with run.transaction("t") as tx:
            tx.execute("insert into mine values (1)")
            db.execute("update tidebase.run_heads set lease_expires_at = clock_timestamp()")
            db.execute("select tidebase.acquire_run('r', 'thief')")

    with pytest.raises(LeaseLostError):
        tide.run("w", workflow, run_id="r")
    assert count(db) == 0


def test_a_backend_killed_in_the_block_leaves_neither(tide: Tidebase, db: psycopg.Connection[Any]) -> None:
    with tide.runs.attach("w", run_id="r") as session:
        with pytest.raises(psycopg.OperationalError), session.transaction("t") as tx:
            tx.execute("insert into mine values (1)")
            db.execute("select pg_terminate_backend(%s)", [tx.connection.info.backend_pid])
            tx.execute("select 1")
        assert count(db) == 0
        assert insert(session) == {"inserted": 1}
    assert count(db) == 1


class Proxy:
    """A TCP proxy that cuts a connection off in the middle of a COMMIT: before the server sees it, or after it has
    answered, so that the client cannot know.
    """

    def __init__(self, port: int) -> None:
        self._port = port
        self.cut: str | None = None
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            client, _ = self._listener.accept()
            server = socket.create_connection(("127.0.0.1", self._port))
            threading.Thread(target=self._forward, args=(client, server), daemon=True).start()
            threading.Thread(target=self._backward, args=(server, client), daemon=True).start()

    def _forward(self, client: socket.socket, server: socket.socket) -> None:
        with client, server, suppress(OSError):  # the other thread may have closed them already
            while data := self._receive(client):
                if self.cut == "before" and b"COMMIT" in data:
                    self._cut(client, server)
                    return
                if self.cut == "after" and b"COMMIT" in data:
                    self.cut = "answer"
                server.sendall(data)

    def _backward(self, server: socket.socket, client: socket.socket) -> None:
        with client, server, suppress(OSError):  # the other thread may have closed them already
            while data := self._receive(server):
                if self.cut == "answer" and b"COMMIT" in data:
                    self._cut(client, server)
                    return
                client.sendall(data)

    def _cut(self, *sides: socket.socket) -> None:
        self.cut = None
        for side in sides:
            with suppress(OSError):
                side.shutdown(socket.SHUT_RDWR)

    @staticmethod
    def _receive(side: socket.socket) -> bytes:
        try:
            return side.recv(65536)
        except OSError:
            return b""


@contextmanager
def tcp_port(server: Server) -> Iterator[int]:
    """Restarts the server so that it also listens on a port of 127.0.0.1, and back."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    server.cluster.stop()
    server.cluster.port = port
    server.cluster.start()
    try:
        yield port
    finally:
        server.cluster.stop()
        server.cluster.port = None
        server.cluster.start()


@on_every_version
@pytest.mark.parametrize("cut", ["before", "after"])
def test_a_lost_answer_to_commit_neither_doubles_nor_loses(server: Server, cut: str) -> None:
    """After the cut the client asks the database which it was; the row is there exactly if the checkpoint is."""
    name = server.create_database("migrated")
    with tcp_port(server) as port:
        proxy = Proxy(port)
        url = f"postgresql://postgres@127.0.0.1:{proxy.port}/{name}?sslmode=disable&gssencmode=disable"
        with psycopg.connect(url.replace(str(proxy.port), str(port)), autocommit=True) as direct, Tidebase(url) as tide:
            direct.execute("create table mine (n int primary key)")
            session = tide.runs.attach("w", run_id="r")
            proxy.cut = cut
            if cut == "after":
                assert insert(session) == {"inserted": 1}
            else:
                with pytest.raises(psycopg.OperationalError):
                    insert(session)
                assert count(direct) == 0
                assert insert(session) == {"inserted": 1}
            assert count(direct) == 1
            with pytest.raises(StepNotRunning, match="was done in this attempt already"):
                insert(session)
            session.close()
            with tide.runs.attach("w", run_id="r") as session:
                assert insert(session) == {"inserted": 1}
                session.complete()
    server.drop_database(name)
