"""Whatever is set for the database, the role or the process: the answers are the same, or the reason is given."""

from __future__ import annotations

import json
import logging
import re
from datetime import datetime, timedelta, timezone
from typing import Any

import psycopg
import pytest
from psycopg import sql
from psycopg_pool import ConnectionPool

from tidebase import AsyncTidebase, DatabaseUnavailable, InvalidArgument, Run, Tidebase

from .conftest import Server, on_newest

#: What a session may have been set to, by whatever means: three sessions, so that each has every odd choice once.
ODD = {
    "DateStyle": ["SQL, DMY", "German", "Postgres, MDY"],
    "IntervalStyle": ["iso_8601", "sql_standard", "postgres_verbose"],
    "client_encoding": ["LATIN1", "SQL_ASCII", "WIN1252"],
    "bytea_output": ["escape", "hex", "escape"],
    "search_path": ["nowhere", "tidebase_private, tidebase", ""],
    "TimeZone": ["Asia/Kathmandu", "America/New_York", "UTC"],
    "standard_conforming_strings": ["off", "on", "off"],
    "default_transaction_isolation": ["serializable", "repeatable read", "read uncommitted"],
    "default_transaction_deferrable": ["on", "off", "on"],
    "row_security": ["off", "on", "off"],
    "quote_all_identifiers": ["on", "off", "on"],
    "extra_float_digits": ["-15", "3", "0"],
    "lc_numeric": ["C", "C", "C"],
    "lc_messages": ["C", "C", "C"],
}


def scenario(tide: Tidebase, run_id: str) -> list[str]:
    """What the wrapper answers to a run's life, as far as it is not new every time."""

    def work(run: Run, input: Any) -> Any:
        run.step("plain", lambda text: {"text": text, "n": 1.5}, "Größe \\ 'x' \u20ac")
        run.step(
            "kept", lambda: [1, None, {"a": "b"}], input=input, side_effects=["write"], idempotency_key="k", retries=1
        )
        run.emit("agent.note", {"at": "2026-01-02", "word": "naïve €"})
        run.state.set({"progress": 0.25, "word": "ü"})
        run.state.patch({"progress": 1e-7})
        run.snapshots.create("s", {"x": [1.25]})
        run.usage.record(model="m", input_tokens=3, output_tokens=4, cost_usd="0.125")
        run.sleep("nap", 0.001)
        opening = run.gates.begin("ask", "Gehen wir?", data={"amount": "12.50"}, timeout_s=86400)
        tide.gates.decide(run.run_id, "ask", "approved", secret=opening.secret, payload={"p": "ß"})
        return {
            "answer": run.gate("ask", "Gehen wir?", data={"amount": "12.50"}, timeout_s=86400).payload,
            "input": input,
        }

    deadline = datetime(2100, 1, 2, 3, 4, tzinfo=timezone.utc)
    result = tide.run("w", work, run_id=run_id, input={"q": "é", "x": 1.10}, deadline=deadline, metadata={"m": "ñ"})
    again = tide.run("w", work, run_id=run_id)
    info = tide.runs.get(run_id)
    told = [
        result,
        again,
        info.deadline_at == deadline and info.deadline_at.tzinfo is not None,
        info.finished_at is not None and abs((datetime.now(timezone.utc) - info.finished_at).total_seconds()) < 600,
        [(step.name, step.status, step.output, step.started_at.tzinfo is not None) for step in tide.runs.steps(run_id)],
        [(event.seq, event.type, sorted(event.payload)) for event in tide.runs.events(run_id)],
        tide.runs.state(run_id).value,
        [(s.label, s.value) for s in tide.runs.snapshots(run_id)],
        (tide.runs.usage(run_id).input_tokens, str(tide.runs.usage(run_id).cost_usd)),
        [(gate.name, gate.status, gate.payload) for gate in tide.gates.list(run_id=run_id, status=None)],
        [run.run_id for run in tide.runs.list(workflow="w") if run.run_id == run_id],
        tide.reconcile().runs,
    ]
    return [re.sub(run_id, "RUN", json.dumps(thing, default=str, sort_keys=True)) for thing in told]


def listed(choice: str) -> sql.Composable:
    """A list of names, or of words, as SET takes it."""
    return sql.SQL(", ").join(map(sql.Literal, choice.split(", ")))


def set_all(server: Server, url: str, means: str, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sets everything, for all sessions that are made from now on."""
    if means == "environment":
        escaped = {name: re.sub(r"([\\ ])", r"\\\1", choices[number]) for name, choices in ODD.items()}
        monkeypatch.setenv("PGOPTIONS", " ".join(f"-c {name}={choice}" for name, choice in escaped.items()))
        monkeypatch.setenv("PGCLIENTENCODING", ODD["client_encoding"][number])
        return
    name = url.partition("?")[0].rpartition("/")[2]
    whose = {"database": "database {}", "role": "role postgres in database {}"}[means]
    with server.connect() as admin:
        for setting, choices in ODD.items():
            statement = sql.SQL(f"alter {whose} set {{}} = {{}}").format(  # type: ignore[arg-type]
                sql.Identifier(name), sql.Identifier(setting), listed(choices[number])
            )
            admin.execute(statement)


@on_newest("server")
@pytest.mark.parametrize("means", ["database", "role", "environment"])
async def test_whatever_is_set_for_a_session_the_answers_are_the_same(
    server: Server, database: str, means: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Tidebase(database) as tide:
        honest = scenario(tide, "honest")
    number = ["database", "role", "environment"].index(means)
    set_all(server, database, means, number, monkeypatch)
    with psycopg.connect(database) as session:  # it is so
        assert session.info.parameter_status("client_encoding") == ODD["client_encoding"][number]
        assert session.info.parameter_status("IntervalStyle") == ODD["IntervalStyle"][number]
    with Tidebase(database) as tide:
        assert scenario(tide, "odd") == honest
        run, steps = tide.runs.get("odd"), tide.runs.steps("odd")
    async with AsyncTidebase(database) as atide:
        assert (await atide.runs.get("odd"), await atide.runs.steps("odd")) == (run, steps)
        assert await atide.run("w", aworkflow, run_id="async", input="€") == ["€"]
        assert type((await atide.runs.step("async", "s")).duration) is timedelta


async def echo(text: str) -> list[str]:
    return [text]


async def aworkflow(run: Any, input: str) -> list[str]:
    result: list[str] = await run.step("s", echo, input)
    return result


@on_newest("server")
def test_a_callers_own_session_may_show_times_as_it_likes(server: Server, database: str) -> None:
    odd = "-c DateStyle=German -c IntervalStyle=iso_8601 -c bytea_output=escape -c extra_float_digits=-15"
    with Tidebase(database) as tide:
        honest = scenario(tide, "honest")
    with ConnectionPool(database, kwargs={"options": odd}, min_size=1, open=True) as pool, Tidebase(pool) as tide:
        assert scenario(tide, "pool") == honest
    with psycopg.connect(database, options=odd, autocommit=True) as connection, Tidebase(connection) as tide:
        assert tide.runs.steps("pool")[0].duration is not None
        assert tide.runs.get("pool").created_at.tzinfo is not None


@on_newest("server")
@pytest.mark.parametrize("encoding", ["LATIN1", "SQL_ASCII"])
async def test_a_callers_own_session_in_another_encoding_is_refused_with_the_reason(
    server: Server, database: str, encoding: str
) -> None:
    words = f"client_encoding of this connection is {encoding}; Tidebase needs UTF8.*Connect with client_encoding=UTF8"
    with psycopg.connect(database, client_encoding=encoding, autocommit=True) as connection:
        for tide in (Tidebase(connection), Tidebase(database).bind(connection)):
            with pytest.raises(InvalidArgument, match=words):
                tide.runs.create("w", run_id="r")

        def work(run: Run, _: Any) -> None:
            with run.transaction("t", connection=connection):
                raise AssertionError("never begun")

        with Tidebase(database) as tide, connection.transaction(), pytest.raises(InvalidArgument, match=words):
            tide.run("w", work)
    pool = ConnectionPool(database, kwargs={"client_encoding": encoding}, open=True)
    with pool, pytest.raises(InvalidArgument, match=words):
        Tidebase(pool).run("w", lambda run, _: run.step("s", lambda: "x"))
    async with await psycopg.AsyncConnection.connect(database, client_encoding=encoding) as connection:
        with pytest.raises(InvalidArgument, match=words):
            await AsyncTidebase(connection).runs.create("w", run_id="r")


@on_newest("server")
async def test_where_only_reading_is_possible_that_is_said(
    server: Server, database: str, caplog: pytest.LogCaptureFixture
) -> None:
    reason = "read-only transaction.*default_transaction_read_only is set for this user, this database"
    with Tidebase(database) as tide:
        tide.run("w", lambda run, _: run.step("s", lambda: 1), run_id="r")
    odd = f"{database}&options=-c%20default_transaction_read_only%3Don"
    with caplog.at_level(logging.WARNING, "tidebase.database"):
        with Tidebase(odd, reconnect_s=0.3) as tide:
            assert tide.runs.steps("r")[0].output == 1 and len(list(tide.runs.events("r"))) == 5
            with pytest.raises(DatabaseUnavailable, match=reason):
                tide.runs.create("w")
        async with AsyncTidebase(odd, reconnect_s=0.3) as atide:
            with pytest.raises(DatabaseUnavailable, match=reason):
                await atide.runs.create("w")
    told = [record.getMessage() for record in caplog.records if record.name == "tidebase.database"]
    assert told == ["the database can only be read: default_transaction_read_only is on"] * 2
