"""Every public call of the face for asyncio, as a stranger may write it, with the type of what comes back."""

from __future__ import annotations

from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import psycopg
from typing_extensions import assert_type

from tidebase import (
    AsyncRun,
    AsyncRunSession,
    AsyncTidebase,
    AsyncWorker,
    Attempt,
    Bulk,
    Channel,
    ChildSpec,
    Difference,
    Enqueuing,
    Event,
    FanoutFailed,
    GateAnswer,
    GateDecision,
    GateInfo,
    GateOpening,
    InvocationInfo,
    LeaseLost,
    Measurement,
    QueueInfo,
    QueueRate,
    Reconciliation,
    Recovery,
    ReviewInfo,
    RunCount,
    RunInfo,
    RunSize,
    ScheduleInfo,
    Snapshot,
    StalledRun,
    StateVersion,
    StepInfo,
    StepOptions,
    TidebaseError,
    TreeNode,
    UsageByModel,
    UsageByStep,
    UsageTotal,
    UsageTotals,
    WorkerInfo,
    step,
    verify_webhook_signature,
)
from tidebase.client.decorators import StepFunction
from tidebase.client.runs_async import AsyncRuns
from tidebase.client.tide_async import AsyncBound
from tidebase.client.work_async import AsyncStep, AsyncTransaction
from tidebase.schema.migrations import MigrationReport

tide = AsyncTidebase("postgresql://localhost/agents", lease_s=30, holder="worker-1", code_version="2", pool_size=4)
hasty = AsyncTidebase(checkpoints="behind")
straight = AsyncTidebase("postgresql://router/agents", direct=True)


@dataclass
class Plan:
    sections: list[str]


def make_plan(topic: str, depth: int = 1, *, language: str = "en") -> Plan:
    return Plan([topic] * depth + [language])


async def think(topic: str, depth: int = 1) -> Plan:
    return make_plan(topic, depth)


async def ask() -> Plan:
    return await think("topic")


@step("fetch", retries=3, retry_on=(OSError, TimeoutError), timeout_s=20)
async def fetch(url: str, *, limit: int = 10) -> bytes:
    return url.encode()[:limit]


@step()
async def unnamed() -> None: ...


async def steps(run: AsyncRun, topic: str) -> None:
    assert_type(await run.step("plan", make_plan, topic), Plan)
    assert_type(await run.step("think", think, topic, depth=3), Plan)
    assert_type(await run.step("ask", ask, input=topic, retries=3), Plan)
    assert_type(await run.step("wait", lambda: think(topic), key=topic), Plan)
    assert_type(await run.step("no options", ask), Plan)
    assert_type(await run.step("deep", make_plan, topic, 3, language="fr"), Plan)
    assert_type(await run.step("closure", lambda: topic.upper(), input=topic, key=("a", 1), retries=3), str)
    assert_type(await run.step("no input", lambda: 1.5), float)
    assert_type(run.step.options(key=topic, replay="manual"), AsyncStep)
    assert_type(await run.step.options(key=topic, retries=2)("keyed", think, topic), Plan)
    options: StepOptions = {"side_effects": ["email.send"], "idempotency_key": f"send:{run.run_id}"}
    assert_type(await run.step("send", lambda: None, **options), None)


async def decorated(known: StepFunction[[str], Coroutine[Any, Any, Plan]]) -> None:
    assert_type(await step("parse", retries=1)(think)("topic", depth=2), Plan)
    assert_type(await fetch("https://example.org", limit=3), bytes)
    assert_type(await fetch.options(key="a")("https://example.org"), bytes)
    assert_type(await unnamed(), None)
    function = step("parse")(think)
    assert_type(await function("topic"), Plan)
    assert_type(known.name, str)
    assert_type(await known("topic"), Plan)
    assert_type(await known.options(key="a")("topic"), Plan)
    assert_type(unnamed.name, str)


async def gates(run: AsyncRun) -> None:
    assert_type(
        await run.gate("publish", "Publish?", data={"docs": 3}, options=["approved", "later"], timeout_s=60), GateAnswer
    )
    assert_type((await run.gate("suspends", suspend=True)).approved, bool)
    assert_type(await run.gates.begin("publish", "Publish?", required_approvals=2), GateOpening)
    assert_type(await run.gates.get("publish"), GateAnswer | None)
    assert_type(await run.gates.secret("publish", voter="ann"), str | None)
    assert_type(await run.sleep("an hour", 3600, suspend=True), None)


async def states(run: AsyncRun) -> None:
    assert_type(await run.state.set({"a": 1}, label="draft", expected_version=1, importance="milestone"), int)
    assert_type(await run.state.patch({"status": None}, stream="notes"), int)
    assert_type(await run.state.save("before", reason="why", metadata={"by": "me"}), int)
    assert_type(await run.state.restore(label="before"), int)
    assert_type(await run.state.get(default=None, at=datetime.now(timezone.utc)), Any)
    assert_type(await run.state.versions("main", labeled=True, max=10), Sequence[StateVersion])
    assert_type(await run.snapshots.create("v1", {"text": "x"}, target=("file", "draft.md"), created_by="me"), int)
    assert_type(await run.snapshots.list(target=("file", "draft.md"), max=3), Sequence[Snapshot])


async def usage(run: AsyncRun) -> None:
    recorded = await run.usage.record(provider="openai", input_tokens=5, cost_usd=Decimal("0.1"), metadata={})
    assert_type(recorded, UsageTotal)
    assert_type(recorded.exhausted, bool)


async def summarize(run: AsyncRun, input: dict[str, str]) -> list[str]:
    return [run.run_id, *input.values()]


@tide.workflow("summarize")
async def registered(run: AsyncRun, input: Any) -> list[str]:
    return []


async def children(run: AsyncRun) -> None:
    assert_type(await run.child("summarize", summarize, name="first", input={"a": "b"}, wait_s=3), list[str])
    assert_type(await run.child("summarize", input={"a": "b"}, max_attempts=3), Any)
    specs: list[ChildSpec] = [
        {"name": "a", "workflow": "summarize", "input": {"a": "b"}},
        {"name": "b", "workflow": summarize, "budget": {"tokens": 1000}},
    ]
    try:
        assert_type(await run.fanout("all", specs, max_parallel=2, retries=1), list[Any])
    except FanoutFailed as error:
        assert_type(error.errors, dict[str, BaseException])


async def charge(tx: AsyncTransaction) -> int:
    row = await (await tx.execute("insert into charges default values returning 1")).fetchone()
    return int(row[0]) if row else 0


async def transactions(run: AsyncRun, mine: psycopg.AsyncConnection[Any]) -> None:
    assert_type(run.transaction("block", timeout_s=3), AbstractAsyncContextManager[AsyncTransaction])
    assert_type(await run.transaction("function", charge, retries=3), int)
    async with run.transaction("joined", connection=mine, returns=int) as tx:
        assert_type(tx, AsyncTransaction)
        assert_type(await tx.execute("select %s", [1]), psycopg.AsyncCursor[Any])
        assert_type(tx.connection, psycopg.AsyncConnection[Any])
        assert_type(tx.replayed, bool)
        tx.result = 1


async def attributes(run: AsyncRun) -> None:
    assert_type(run.run_id, str)
    assert_type(run.attempt, int)
    assert_type(run.token, int)
    assert_type(run.workflow, str)
    assert_type(await run.flush(), None)
    assert_type(await run.emit("agent.progress", {"done": 3}, transient=True), int)


async def sessions(attached: AsyncRunSession, lost: list[TidebaseError]) -> None:
    session = await tide.runs.attach("research", run_id="r", input={"a": 1}, on_lease_lost=lost.append, max_attempts=3)
    assert_type(session, AsyncRunSession)
    async with attached as entered:
        assert_type(entered, AsyncRunSession)
    assert_type(attached.input, Any)
    assert_type(await attached.heartbeat(), None)
    assert_type(await attached.step("plan", make_plan, "topic"), Plan)
    assert_type(await attached.complete({"a": 1}), None)
    assert_type(await attached.fail("no"), None)
    assert_type(await attached.close(), None)


async def runs(all: AsyncRuns) -> None:
    assert_type(await all.create("research", {"a": 1}, run_id="r", budget={"cost_usd": "2.50"}), RunInfo)
    assert_type((await all.get("r")).status, str)
    assert_type(await all.get("r"), RunInfo)
    assert_type(await all.find("run_01"), str)
    assert_type(await all.list(workflow="w", status="failed", before="r", max=10, roots=False), Sequence[RunInfo])
    assert_type(await all.count(), Sequence[RunCount])
    assert_type(await all.cancel("r", "not needed", actor="me", cascade=False), RunInfo)
    assert_type(await all.recover("r", actor="me"), Recovery)
    assert_type(await all.recoveries("r"), Sequence[Recovery])
    assert_type(await all.stalled(), Sequence[StalledRun])
    assert_type(await all.reviews(), Sequence[ReviewInfo])
    assert_type(await all.resolve_review("r", "send", "accept", output={"id": 1}), None)
    assert_type(await all.fork("r", through_step="plan", reason="again"), RunInfo)
    assert_type(await all.tree("r"), Sequence[TreeNode])
    assert_type(await all.state("r", version=3), StateVersion)
    assert_type(await all.state_versions("r", with_value=True), Sequence[StateVersion])
    assert_type(await all.snapshots("r", label="v1"), Sequence[Snapshot])
    assert_type(await all.usage("r"), UsageTotals)
    assert_type(await all.usage_by_step("r"), Sequence[UsageByStep])
    assert_type(await all.usage_by_model("r"), Sequence[UsageByModel])
    assert_type(await all.set_budget("r", cost_usd=2.5, tokens=None), UsageTotals)
    assert_type(await all.size("r"), RunSize)
    assert_type(await all.compact("r"), bool)
    assert_type(await all.purge(timedelta(days=30), statuses=["completed"]), int)
    assert_type(await all.gates("r"), Sequence[GateInfo])
    assert_type(await all.attempts("r"), Sequence[Attempt])
    assert_type(await all.steps("r", max=3), Sequence[StepInfo])
    assert_type(await all.step("r", "plan"), StepInfo)
    assert_type(all.events("r", after=3, page=10), AsyncIterator[Event])
    assert_type(all.subscribe("r"), AsyncIterator[Event])
    async for event in all.subscribe("r", 3):
        assert_type(event, Event)
        assert_type(event.seq, int)


async def desk() -> None:
    assert_type(await tide.gates.list(run_id="r", status=None), Sequence[GateInfo])
    assert_type(await tide.gates.get("r", "publish"), GateInfo)
    assert_type(await tide.gates.secret("r", "publish"), str | None)
    assert_type(await tide.gates.decide("r", "publish", "approved", actor="me", payload={"a": 1}), GateDecision)


async def way_in(connection: psycopg.AsyncConnection[Any]) -> None:
    async with AsyncTidebase() as opened:
        assert_type(opened, AsyncTidebase)
    assert_type(await tide.run("w", summarize, run_id="r", input={"a": "b"}, wait_s=3, max_attempts=2), list[str])
    assert_type(await tide.run("summarize", deadline=datetime.now(timezone.utc)), Any)
    assert_type(await tide.workflow("again")(summarize)(AsyncRun.__new__(AsyncRun), {}), list[str])
    assert_type(await registered(AsyncRun.__new__(AsyncRun), 1), list[str])
    assert_type(tide.bind(connection), AsyncBound)
    assert_type(await AsyncBound(connection).enqueue("summarize"), Enqueuing)
    assert_type(await AsyncBound(connection).enqueue_many([]), Sequence[Enqueuing])
    assert_type(AsyncBound(connection).runs, AsyncRuns)
    assert_type(tide.url, str)
    assert_type(await tide.url_of("r"), str)
    assert_type(await tide.diff("r", "s"), Sequence[Difference])
    assert_type(await tide.reconcile(max=10), Reconciliation)
    assert_type(await tide.migrate(role_prefix="agents"), MigrationReport)
    assert_type(verify_webhook_signature(b"", None, "secret", url="https://example.org"), bool)
    assert_type(await tide.close(), None)


async def errors(run: AsyncRun) -> None:
    try:
        await run.step("plan", make_plan, "topic")
    except LeaseLost:
        raise
    except TidebaseError as error:
        assert_type(error.sqlstate, str | None)
        assert_type(error.detail, dict[str, Any])
        assert_type(error.run_id, str | None)


async def queues() -> None:
    assert_type(await tide.enqueue("summarize"), Enqueuing)
    assert_type(await tide.enqueue("summarize", 1, queue="q", run_id="r", delay_s=5, dedupe_key="d"), Enqueuing)
    assert_type(await tide.enqueue_many([{"workflow": "summarize", "input": 1, "key": "k"}]), Sequence[Enqueuing])
    assert_type(await tide.queues.put("q", concurrency=3, rate=10, rate_period_s=60), QueueInfo)
    assert_type(await tide.queues.get("q"), QueueInfo)
    assert_type(await tide.queues.list(), Sequence[QueueInfo])
    assert_type(await tide.queues.rates(), Sequence[QueueRate])
    assert_type(await tide.queues.pause("q"), bool)
    assert_type(await tide.queues.resume("q"), bool)
    assert_type(await tide.queues.workers(), Sequence[WorkerInfo])
    assert_type(await tide.queues.put("q", endpoint="https://x"), QueueInfo)
    assert_type(await tide.queues.invocations("q"), Sequence[InvocationInfo])
    assert_type(await tide.measure(), Sequence[Measurement])
    assert_type(await tide.invoked(b"", {}, secret="s", url="https://x"), bool)
    assert_type(await tide.runs.cancel_many(queue="q", dry_run=True), Bulk)
    assert_type(await tide.runs.retry_many(failure_class="crashed"), Bulk)
    assert_type(await tide.runs.move_many("other", queue="q"), Bulk)
    assert_type(await tide.schedules.put("s", "summarize", cron="* * * * *", timezone="Europe/Berlin"), ScheduleInfo)
    assert_type(await tide.schedules.get("s"), ScheduleInfo)
    assert_type(await tide.schedules.list(), Sequence[ScheduleInfo])
    assert_type(await tide.schedules.delete("s"), bool)
    assert_type(await tide.schedules.trigger("s", run_id="r", input=1), str)
    now = datetime.now(timezone.utc)
    assert_type(await tide.schedules.backfill("s", now, now, max=3), Sequence[str])
    assert_type(await tide.schedules.next_fires("* * * * *", n=3), Sequence[datetime])
    worker = tide.worker({"q": 2, "other": 1}, concurrency=4, suspend=False)
    assert_type(AsyncWorker(tide).is_alive, bool)
    assert_type(AsyncWorker(tide).is_ready, bool)
    assert_type(worker, AsyncWorker)
    assert_type(await AsyncWorker(tide, ["q"]).run(), None)
    assert_type(AsyncWorker(tide).stop(), None)


async def channels(run: AsyncRun) -> None:
    assert_type(await run.channels.add("https://a.example/hook", secret="s", events=["run.completed"]), int)
    assert_type(await run.channels.list(), Sequence[Channel])
    assert_type(await run.channels.remove(1), bool)
    assert_type(await tide.runs.add_channel("r", "https://a.example/hook"), int)
    assert_type(await tide.runs.channels("r"), Sequence[Channel])
    assert_type(await tide.runs.remove_channel("r", 1), bool)
    assert_type(await tide.runs.retry_channel("r", 1), bool)
