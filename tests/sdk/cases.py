"""The cases of cases.json that concern the published Python SDK, run with it as it is:
``cases.py URL KEY READER_KEY CONTROL`` prints what each of them saw.

Run with that SDK in front of everything else on the path: its import name is the same as ours.
"""

from __future__ import annotations

import asyncio
import json
import sys
import threading
import traceback
import urllib.request
from collections.abc import Callable
from typing import Any

from tidebase.aio import AsyncTidebase

import tidebase

URL, KEY, _, CONTROL = sys.argv[1:]
tide = tidebase.Tidebase(URL, api_key=KEY)
CASES: dict[str, Callable[[], Any]] = {}


def case(name: str) -> Callable[[Callable[[], Any]], Callable[[], Any]]:
    def add(look: Callable[[], Any]) -> Callable[[], Any]:
        CASES[name] = look
        return look

    return add


def outside(path: str) -> Any:
    """Asks the test for what a client cannot do: to let a lease run out, or time pass."""
    with urllib.request.urlopen(urllib.request.Request(f"{CONTROL}/{path}", method="POST")) as answer:
        return json.load(answer)


def failure(work: Callable[[], Any]) -> Any:
    """How something fails, as it reaches the user of the SDK."""
    try:
        work()
    except tidebase.RunCancelled:
        return "cancelled"
    except tidebase.TidebaseError as error:
        return [error.status, json.loads(error.body).get("code")]
    except Exception as error:
        return str(error)
    return None


def attach(**options: Any) -> Any:
    return tide.runs.attach("w", heartbeat_s=None, **options)


def no() -> None:
    raise ValueError("no")


def finished() -> Any:
    run = attach(input={"q": 1})
    run.step("s", lambda: 1)
    run.complete({"r": 1})
    return run


def detail(run: Any) -> Any:
    return tide.runs.get(run.run_id)


@case("events-come")
def _() -> Any:
    return [event["type"] for event in tide.runs.subscribe(finished().run_id)]


@case("events-end")
def _() -> Any:
    return [len(list(tide.runs.subscribe(finished().run_id))), "ends"]


@case("events-behind-the-end")
def _() -> Any:
    return list(tide.runs.subscribe(finished().run_id, after=5))


@case("event-id")
def _() -> Any:
    return "number" if isinstance(next(tide.runs.subscribe(finished().run_id))["id"], int) else "text"


@case("event-run-created")
def _() -> Any:
    payload = next(tide.runs.subscribe(finished().run_id))["payload"]
    return [payload["workflowName"], payload["input"]]


@case("event-state")
def _() -> Any:
    run = attach()
    run.state.set({"a": 1})
    run.state.patch({"b": 2})
    run.complete(1)
    seen = [event["payload"] for event in tide.runs.subscribe(run.run_id) if event["type"] == "state.updated"]
    return [[payload["value"], payload["stateVersion"]["version"]] for payload in seen]


@case("input-of-a-run")
def _() -> Any:
    created = tide.runs.create("w")
    return [created["input"], tide.run("w", lambda run, input: input, run_id=created["id"])]


@case("input-of-a-child")
def _() -> Any:
    return attach().child("child", lambda run, input: input)


@case("input-of-a-step")
def _() -> Any:
    return detail(finished())["steps"][0]["input"]


@case("credentials")
def _() -> Any:
    run = attach()
    run.step("s", lambda: 1, credentials=[{"name": "mail", "scopes": ["send"], "reason": "to tell"}])
    return detail(run)["steps"][0]["resumeContract"]["credentials"]


@case("invariants")
def _() -> Any:
    run = attach()
    run.step("s", lambda: 1, checkpoint_invariant={"rows": 3}, verified_by={"query": "select 1"})
    contract = detail(run)["steps"][0]["resumeContract"]
    return [contract["checkpointInvariant"], contract["verifiedBy"]]


@case("hash-alone")
def _() -> Any:
    run = attach()
    return [
        run.step("s", lambda: "first", input_hash="h", input=1),
        run.step("s", lambda: "second", input_hash="h", input=2),
    ]


@case("long-step")
def _() -> Any:
    def work(run: Any, _: Any) -> Any:
        return run.step("s", lambda: (outside(f"lapse/{run.run_id}"), outside("reconcile"), "done")[-1])

    return tide.run("w", work)


@case("heartbeat-late")
def _() -> Any:
    run = attach()
    outside(f"lapse/{run.run_id}")
    outside("reconcile")
    return run.heartbeat()["run"]["status"]


@case("heartbeat-replaced")
def _() -> Any:
    run = attach()
    outside(f"lapse/{run.run_id}")
    attach(run_id=run.run_id)
    return failure(run.heartbeat)


@case("heartbeat-in-the-background")
def _() -> Any:
    """The session's own thread notices that it was replaced."""
    lost = threading.Event()
    run = tide.runs.attach("w", heartbeat_s=0.01, on_lease_lost=lambda error: lost.set())
    run.close()
    run._hb_thread.join()
    outside(f"lapse/{run.run_id}")
    attach(run_id=run.run_id)
    run = tidebase.RunSession(tide, run.run, run._lease_owner, heartbeat_s=0.01, on_lease_lost=lambda error: lost.set())
    return lost.wait(30)


@case("step-replaced")
def _() -> Any:
    run = attach()
    outside(f"lapse/{run.run_id}")
    attach(run_id=run.run_id)
    return failure(lambda: run.step("s", lambda: 1)) or "executed"


@case("gate-timeout")
def _() -> Any:
    run = attach()
    said = failure(lambda: run.gate("g", "Sure?", timeout_s=0.01, poll_s=0.02))
    [gate] = detail(run)["gates"]
    body = {"token": gate["resolveToken"], "decision": "approved"}
    resolved = tide.request("POST", f"/runs/{run.run_id}/gates/{gate['id']}/resolve", body)["gate"]
    return [said, gate["status"], resolved["status"]]


@case("gate-payload")
def _() -> Any:
    run = attach()
    gate = run.gates.begin("g", "Sure?")
    token = detail(run)["gates"][0]["resolveToken"]
    body = {"token": token, "decision": "approved"}
    tide.request("POST", f"/runs/{run.run_id}/gates/{gate['gateId']}/resolve", body)
    return run.gate("g", "Sure?").payload


@case("gate-of-a-cancelled-run")
def _() -> Any:
    run = attach()
    gate = run.gates.begin("g", "Sure?")
    tide.runs.cancel(run.run_id)
    return [failure(lambda: run.gates.get(gate["gateId"])), failure(lambda: run.gates.begin("h", "Sure?"))]


@case("webhook-failed")
def _() -> Any:
    run = attach(recovery_webhook=f"{CONTROL}/hook")
    run.fail(ValueError("no"))
    [told] = outside(f"dispatch/{run.run_id}")
    body = json.loads(told["body"])
    signed = tidebase.verify_webhook_signature(told["body"].encode(), told["signature"], "a-webhook-secret")
    shown = [body[name] for name in ("type", "workflowName", "reason", "attempt")]
    return [*shown, body["runId"] == run.run_id, signed]


@case("state-versions")
def _() -> Any:
    run = attach()
    run.state.set({"a": 1})
    run.state.patch({"b": 2})
    run.state.set({"c": 3})
    return [[version["version"], version["patch"]] for version in run.state.versions()]


@case("state-patch")
def _() -> Any:
    run = attach()
    run.state.set({"deep": {"x": 1}, "n": 1, "kept": True})
    return run.state.patch({"deep": {"y": 2}, "n": None})["state"]["value"]


@case("state-author")
def _() -> Any:
    run = attach()
    run.state.set(1)
    run.state.set(2, created_by="ann")
    return [version["createdBy"] for version in run.state.versions()]


@case("state-save")
def _() -> Any:
    run = attach()
    run.state.set({"a": 1})
    saved = run.state.save("here")["stateVersion"]
    return [saved["version"], saved["label"], saved["importance"], len(run.state.versions(labeled=True))]


@case("usage-total")
def _() -> Any:
    usage = attach().usage.record(input_tokens=3, output_tokens=4, total_tokens=10, cost_usd=0.25)["usage"]
    return [usage["totalTokens"], usage["costUsd"]]


@case("fanout")
def _() -> Any:
    def double(run: Any, input: Any) -> Any:
        return run.step("double", lambda: input * 2, input=input)

    run = attach()
    kids = [{"name": f"k{n}", "workflow": double, "workflow_name": "double", "input": n} for n in (1, 2, 3)]
    results = run.fanout("all", kids)
    edges = detail(run)["runEdges"]
    return [results, [edge["metadata"] for edge in edges]]


@case("name-with-slash")
def _() -> Any:
    run = tide.runs.create("team/report")
    return [run["workflowName"], tide.runs.get(run["id"])["run"]["workflowName"]]


@case("queue-with-slash")
def _() -> Any:
    made, again = (tide.enqueue("w", queue="team/mail", dedupe_key="d") for _ in range(2))
    return [made["run"]["queue"], made["run"]["status"], again["deduplicated"]]


@case("schedules")
def _() -> Any:
    made = tide.schedules.set("every/morning", cron="0 7 * * *", workflow_name="w")
    listed = [each["name"] for each in tide.schedules.list() if each["name"] == "every/morning"]
    return [made["cron"], made["enabled"], listed, tide.schedules.delete("every/morning")]


@case("queues")
def _() -> Any:
    tide.queues.configure("limited", concurrency=3)
    config = tide.queues.configure("limited", rate_per_minute=60)["config"]
    (found,) = [each for each in tide.queues.list() if each["name"] == "limited"]
    return [config, found["queued"], found["running"], found["config"] == config]


@case("invoke-url")
def _() -> Any:
    config = tide.queues.configure("pushed", invoke_url=f"{CONTROL}/hook")["config"]
    made = tide.enqueue("greet", queue="pushed", input="ann")["run"]
    (told,) = outside(f"push/{made['id']}")
    signed = tidebase.verify_webhook_signature(told["body"].encode(), told["signature"], "a-webhook-secret")
    asked = json.loads(told["body"])
    result = tide.run(asked["workflowName"], lambda run, input: f"hello {input}", run_id=asked["runId"])
    return [config["invokeUrl"] == f"{CONTROL}/hook", asked["type"], asked["workflowName"], signed, result]


@case("work")
def _() -> Any:
    tide.workflow("double it")(lambda run, input: run.step("s", lambda: 2 * input["n"]))
    made = tide.enqueue("double it", queue="of work", input={"n": 21})
    tide.work(["of work"], stop=iter([False, False, True]).__next__, poll_s=0)
    done = tide.runs.get(made["run"]["id"])["run"]
    return [done["status"], done["result"], done["attempt"]]


@case("unsafe-step-session")
def _() -> Any:
    run = attach()
    for _ in range(2):
        failure(lambda: run.step("send", no, side_effects=["mail"]))
    return [run.step("another", lambda: "goes on"), run.heartbeat()["run"]["status"]]


@case("unsafe-step-again")
def _() -> Any:
    run = attach()
    failure(lambda: run.step("send", no, side_effects=["mail"]))
    return failure(lambda: run.step("send", lambda: 1, side_effects=["mail"])) or "executed again"


@case("retries")
def _() -> Any:
    run = attach()
    tries: list[int] = []

    def flaky() -> int:
        tries.append(1)
        if len(tries) < 3:
            raise ValueError("not yet")
        return len(tries)

    return [run.step("s", flaky, retries=2), detail(run)["steps"][0]["attempt"]]


@case("failed-run-again")
def _() -> Any:
    run = attach()
    run.step("s", lambda: 1)
    run.fail(ValueError("no"))
    executed: list[int] = []
    result = tide.run("w", lambda again, _: again.step("s", lambda: executed.append(1)), run_id=run.run_id)
    return [result, len(executed)]


@case("async")
def _() -> Any:
    async def work() -> Any:
        client = AsyncTidebase(URL, api_key=KEY)

        async def flow(run: Any, input: Any) -> Any:
            await run.state_set({"progress": 0.5})
            return [input, await run.step("s", lambda: asyncio.sleep(0, "awaited"), side_effects=["read"])]

        return await client.run("w", flow)

    return asyncio.run(work())


def main() -> None:
    assert not hasattr(tidebase, "AsyncTidebase"), "this is our own package, not the published SDK"
    seen: dict[str, Any] = {}
    for name, look in CASES.items():
        try:
            seen[name] = look()
        except Exception:
            seen[name] = f"failed: {traceback.format_exc()}"
    print(json.dumps(seen))


if __name__ == "__main__":
    main()
