"""What the gateway answers stays small, whatever a run has, and the rest can be had page by page."""

from __future__ import annotations

from typing import Any

import httpx
import psycopg
import pytest

from tidebase import Tidebase

from .test_gateway import base as base
from .test_gateway import client_of, gateway

ON_NEWEST = True

STEPS, EVENTS, USES, GATES, CHILDREN = 2500, 5000, 2100, 450, 420
#: A run with more of everything than one answer holds, made at once.
LARGE = (
    f"""insert into tidebase.steps (run_id, name, lease_token, attempt, tries, status, input_hash, output,
      completed_seq, started_at, completed_at)
    select 'r', 's' || i, 1, 1, 1, 'completed', '', jsonb_build_object('n', i, 'text', repeat('x', 900)), i,
      now() + i * interval '1 ms', now() + i * interval '1 ms' from generate_series(1, {STEPS}) i""",
    f"""insert into tidebase.events (run_id, seq, type, payload)
    select 'r', i, 'note', jsonb_build_object('n', i) from generate_series(3, {EVENTS}) i""",
    f"""insert into tidebase.usage (run_id, seq, kind, currency, input_tokens)
    select 'r', i, 'chat', 'USD', i from generate_series(1, {USES}) i""",
    f"""insert into tidebase.gates (run_id, name, status, data, shown_hash, options, created_at)
    select 'r', 'g' || i, 'cancelled', '{{}}', '', '{{approved}}', now() + i * interval '1 ms'
    from generate_series(1, {GATES}) i""",
    f"""with children as (
      insert into tidebase.runs (run_id, workflow, created_at, parent_run_id)
      select 'c' || i, 'w', now() + i * interval '1 ms', 'r' from generate_series(1, {CHILDREN}) i returning run_id),
    heads as (insert into tidebase.run_heads (run_id, last_seq) select run_id, 0 from children)
    insert into tidebase.edges (run_id, name, child_run_id) select 'r', run_id, run_id from children""",
    f"update tidebase.run_heads set last_seq = {EVENTS}, durable_seq = {EVENTS} where run_id = 'r'",
)


def fill(db: psycopg.Connection[Any], tide: Tidebase) -> None:
    with tide.runs.attach("w", run_id="r") as session:
        for n in range(250):
            session.state.set({"n": n, "text": "é" * 10_000})
    with db.transaction():
        db.execute("delete from tidebase.events where run_id = 'r' and seq > 2")
        db.execute("alter table tidebase.edges disable trigger all")
        for statement in LARGE:
            db.execute(statement)  # type: ignore[arg-type]
        db.execute("alter table tidebase.edges enable trigger all")


async def follow(client: httpx.AsyncClient, path: str | None, name: str) -> list[Any]:
    """All rows of a list, its last page first."""
    found: list[Any] = []
    while path is not None:
        answer = await client.get(path)
        assert answer.status_code == 200 and len(answer.content) < 4_000_000
        page = answer.json()
        found = page[name] + found
        path = page["next"]
    return found


@pytest.mark.breaks_invariants
async def test_a_run_with_much_is_shown_in_part_and_the_rest_by_pages(
    database: str, db: psycopg.Connection[Any], tide: Tidebase
) -> None:
    fill(db, tide)
    with gateway(database) as base:
        async with client_of(base) as client:
            answer = await client.get("/runs/r")
            assert answer.status_code == 200 and len(answer.content) < 12_000_000
            run = answer.json()
            assert run["state"]["value"]["n"] == 249
            assert [version["version"] for version in run["stateVersions"]][-2:] == [249, 250]
            assert set(run["truncated"]) == {"steps", "stateVersions", "runEdges", "gates", "usage", "events"}
            assert [event["seq"] for event in run["events"]][-1] == EVENTS
            wanted = {
                "steps": ("name", [f"s{n}" for n in range(1, STEPS + 1)]),
                "events": ("seq", list(range(1, EVENTS + 1))),
                "usage": ("inputTokens", list(range(1, USES + 1))),
                "gates": ("name", [f"g{n}" for n in range(1, GATES + 1)]),
                "runEdges": ("childRunId", [f"c{n}" for n in range(1, CHILDREN + 1)]),
            }
            for name, (key, all_of_them) in wanted.items():
                rest = await follow(client, run["truncated"][name], name)
                assert [row[key] for row in rest + run[name]] == all_of_them
            versions = await client.get(run["truncated"]["stateVersions"])
            shown = [version["version"] for version in versions.json()["stateVersions"] + run["stateVersions"]]
            assert shown == sorted(shown) and len(set(shown)) == len(shown) and shown[-1] == 250


async def test_a_value_that_is_too_long_is_said_to_be_so(
    database: str, db: psycopg.Connection[Any], tide: Tidebase
) -> None:
    long = "é" * 3_000_000
    tide.runs.create("w", long, run_id="r", metadata={"kept": 1})
    with tide.runs.attach("w", run_id="r") as session:
        session.step("large", lambda: long)
        session.step("small", lambda: {"n": 1.50, "e": 10**400})
        session.state.set({"text": long})
        session.emit("note", long)
        session.gates.begin("g", "?" * 900_000, data={"text": long})
    with gateway(database) as base:
        async with client_of(base) as client:
            for path in ("/runs/r", "/runs", "/runs/r/steps", "/runs/r/log", "/runs/r/gates", "/runs/r/state/versions"):
                answer = await client.get(path)
                assert answer.status_code == 200 and len(answer.content) < 100_000, path
                assert '"truncated":' in answer.text, path
            run = (await client.get("/runs/r")).json()
            outputs = {step["name"]: step["output"] for step in run["steps"]}
            assert outputs["small"] == {"n": 1.5, "e": 10**400}
            assert outputs["large"]["truncated"] and outputs["large"]["bytes"] > 10_000
            assert run["truncated"] == {} and run["run"]["metadata"] == {"kept": 1}
            begun = (await client.post("/runs/r/begin")).json()
            assert begun["run"]["input"] == long  # what a worker needs is whole
            body = {"name": "large", "inputHash": "x", "input": 1, "leaseOwner": begun["leaseOwner"]}
            assert (await client.post("/runs/r/steps/begin", json=body)).json()["action"] == "input_mismatch"


async def test_what_is_not_there_is_said_to_be_so(base: str, tide: Tidebase) -> None:
    with tide.runs.attach("w", run_id="r a/ü%") as session:
        session.step("ü/%2F", lambda: 1)
        session.snapshots.create("l", {"n": 1})
    here = "/runs/r%20a%2F%C3%BC%25"
    lists = ("steps", "usage", "log", "children", "recoveries", "gates", "state/versions", "snapshots")
    async with client_of(base) as client:
        for name in lists:
            assert (await client.get(f"/runs/nobody/{name}")).status_code == 404, name
            assert (await client.get(f"{here}/{name}")).status_code == 200, name
        steps = (await client.get(f"{here}/steps?limit=1")).json()
        assert steps["steps"][0]["name"] == "ü/%2F" and steps["next"] is None
        first = steps["steps"][0]["id"]
        assert (await client.get(f"{here}/steps?before={first}")).json() == {"steps": [], "next": None}
        for name in ("steps", "gates", "children"):
            assert (await client.get(f"{here}/{name}?before=nothing")).status_code == 404, name
        for wrong in ("before=-1", "before=x", "limit=0", "limit=1001", "before=99999999999999999999"):
            assert (await client.get(f"{here}/usage?{wrong}")).status_code == 400, wrong
        assert (await client.get(f"{here}/snapshots?limit=1")).json()["cut"] is False
