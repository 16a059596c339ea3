"""A workflow through the gateway, driven by the published client of Tidebase v0.6/0.7 as it is.

Run with that client in front of everything else on the path: its import name is the same as ours.
"""

from __future__ import annotations

import json
import sys
import threading
import time
import urllib.request

import tidebase

tide = tidebase.Tidebase(sys.argv[1], api_key=sys.argv[2])
assert not hasattr(tidebase, "AsyncTidebase"), "this is our own package, not the published client"


def call(method: str, path: str, body: dict) -> dict:
    request = urllib.request.Request(
        tide.url + path,
        data=json.dumps(body).encode(),
        headers={"content-type": "application/json", "authorization": f"Bearer {tide.api_key}"},
        method=method,
    )
    with urllib.request.urlopen(request) as response:
        return json.load(response)


def approve(run_id: str) -> None:
    """What a person does, somewhere else."""
    while True:
        waiting = [gate for gate in tide.runs.get(run_id)["gates"] if gate["status"] == "pending"]
        if waiting:
            body = {"token": waiting[0]["resolveToken"], "decision": "approved", "actor": "ada", "payload": {"a": 1}}
            gate = call("POST", f"/runs/{run_id}/gates/{waiting[0]['id']}/resolve", body)["gate"]
            assert (gate["status"], gate["actor"]) == ("approved", "ada")
            return
        time.sleep(0.02)


tries: list[int] = []
executed: list[str] = []


def flaky() -> int:
    tries.append(1)
    if len(tries) < 3:
        raise ValueError("not yet")
    return len(tries)


def child(run, input):
    executed.append(input)
    return run.step("double", lambda: input * 2, input=input)


def workflow(run, input):
    count = run.step("flaky", flaky, input={"of": input, "float": 1.5}, retries=4, side_effects=["read"])
    run.state.set({"progress": 0})
    run.state.patch({"progress": 0.5, "more": None}, label="half", metadata={"m": 1})
    assert run.state.save("saved")["stateVersion"]["label"] == "saved"
    run.snapshots.create("draft", {"text": "x"}, target={"type": "file", "id": "a.md"})
    run.usage.record(model="m", provider="p", input_tokens=5, output_tokens=2, cost_usd=0.25)
    answer = run.gate("publish", "Publish?", data={"n": count}, poll_s=0.02)
    kids = [{"name": name, "workflow": child, "workflow_name": "child", "input": name} for name in ("a", "b", "c")]
    doubled = run.fanout("kids", kids)
    if len(executed) == 3 and not crashed:
        crashed.append(1)
        raise RuntimeError("in the middle")
    return {"count": count, "approved": answer.approved, "payload": answer.payload, "doubled": doubled}


crashed: list[int] = []
created = tide.runs.create("wf", input="hello", metadata={"who": "test"})
run_id = created["id"]
threading.Thread(target=approve, args=[run_id]).start()
try:
    tide.run("wf", workflow, run_id=run_id)
except RuntimeError as error:
    assert str(error) == "in the middle"
result = tide.run("wf", workflow, run_id=run_id)  # everything is replayed
assert result == {"count": 3, "approved": True, "payload": {"a": 1}, "doubled": ["aa", "bb", "cc"]}, result
assert sorted(executed) == ["a", "b", "c"] and len(tries) == 3
assert tide.run("wf", workflow, run_id=run_id) == result

detail = tide.runs.get(run_id)
assert detail["run"]["status"] == "completed" and detail["run"]["result"] == result and detail["run"]["attempt"] == 2
assert (
    detail["state"]["value"] == {"progress": 0.5, "more": None}
    and [s["status"] for s in detail["steps"]] == ["completed"] * 2
)
assert detail["usage"][0]["costUsd"] == 0.25 and detail["usage"][0]["totalTokens"] == 7
assert len(detail["childRuns"]) == len(detail["runEdges"]) == 3 and detail["runEdges"][0]["edgeType"] == "fanout"
assert detail["gates"][0]["resolveToken"] is None  # it decides nothing any more
seen = [event["seq"] for event in tide.runs.subscribe(run_id, after=2)]
assert seen == list(range(3, detail["events"][-1]["seq"] + 1)), seen

session = tide.runs.attach("session", input={"s": 1}, heartbeat_s=0.05)
assert session.step("one", lambda: 1) == 1 and session.heartbeat()["run"]["status"] == "running"
try:
    session.step("one", lambda: 2, input="another")
    raise AssertionError("another input was accepted")
except ValueError as error:
    assert "input hash changed" in str(error)
begun = session.gates.begin("g", "Now?")
assert begun["status"] == "pending" and session.gates.get(begun["gateId"])["status"] == "pending", begun
assert len(session.state.versions()) == 0 and session.snapshots.list() == []
session.complete({"done": True})
assert tide.runs.get(session.run_id)["run"]["result"] == {"done": True}

cancelled = tide.runs.create("cancelled")
assert tide.runs.cancel(cancelled["id"], "why", "ada")["cancelReason"] == "why"
try:
    tide.run("cancelled", workflow, run_id=cancelled["id"])
    raise AssertionError("a cancelled run was begun")
except tidebase.RunCancelled:
    pass

held = tide.runs.attach("held", heartbeat_s=None)
try:
    tide.run("held", workflow, run_id=held.run_id)
    raise AssertionError("a run that is held was begun")
except tidebase.TidebaseError as error:
    assert "run is leased" in str(error)
held.fail(ValueError("enough"))
assert tide.runs.get(held.run_id)["run"]["status"] == "failed"
assert len(tide.runs.list()) >= 6
print("done")
