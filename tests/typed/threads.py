"""Every public call of the face for threads, as a stranger may write it, with the type of what comes back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import psycopg
from typing_extensions import assert_type

from tidebase import (
    Attempt,
    Bulk,
    Channel,
    ChildSpec,
    Difference,
    Dispatcher,
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
    Run,
    RunCount,
    RunInfo,
    RunSession,
    RunSize,
    ScheduleInfo,
    Snapshot,
    StalledRun,
    StateVersion,
    StepInfo,
    StepOptions,
    Tidebase,
    TidebaseError,
    TreeNode,
    UsageByModel,
    UsageByStep,
    UsageTotal,
    UsageTotals,
    Worker,
    WorkerInfo,
    step,
    verify_webhook_signature,
)
from tidebase.client.decorators import StepFunction
from tidebase.client.runs import Runs
from tidebase.client.tide import Bound
from tidebase.client.work import Step, SyncTransaction
from tidebase.schema.migrations import MigrationReport

tide = Tidebase("postgresql://localhost/agents", lease_s=30, holder="worker-1", code_version="2", pool_size=4)
hasty = Tidebase(checkpoints="behind")
straight = Tidebase("postgresql://router/agents", direct=True)


@dataclass
class Plan:
    sections: list[str]


def make_plan(topic: str, depth: int = 1, *, language: str = "en") -> Plan:
    return Plan([topic] * depth + [language])


@step("fetch", retries=3, retry_on=(OSError, TimeoutError), timeout_s=20)
def fetch(url: str, *, limit: int = 10) -> bytes:
    return url.encode()[:limit]


@step()
def unnamed() -> None: ...


def steps(run: Run, topic: str) -> None:
    assert_type(run.step("plan", make_plan, topic), Plan)
    assert_type(run.step("deep", make_plan, topic, 3, language="fr"), Plan)
    assert_type(run.step("closure", lambda: topic.upper(), input=topic, key=("a", 1), retries=3), str)
    assert_type(run.step("no input", lambda: 1.5), float)
    assert_type(run.step.options(key=topic, replay="manual"), Step)
    assert_type(run.step.options(key=topic, retries=2)("keyed", make_plan, topic), Plan)
    options: StepOptions = {"side_effects": ["email.send"], "idempotency_key": f"send:{run.run_id}"}
    assert_type(run.step("send", lambda: None, **options), None)


def decorated(known: StepFunction[[str], Plan]) -> None:
    assert_type(step("parse", retries=1)(make_plan)("topic", depth=2), Plan)
    assert_type(fetch("https://example.org", limit=3), bytes)
    assert_type(fetch.options(key="a")("https://example.org"), bytes)
    assert_type(unnamed(), None)
    function = step("parse")(make_plan)
    assert_type(function("topic"), Plan)
    assert_type(known.name, str)
    assert_type(known("topic"), Plan)
    assert_type(known.options(key="a")("topic"), Plan)
    assert_type(unnamed.name, str)


def gates(run: Run) -> None:
    assert_type(
        run.gate("publish", "Publish?", data={"docs": 3}, options=["approved", "later"], timeout_s=60), GateAnswer
    )
    assert_type(run.gate("suspends", suspend=True).approved, bool)
    assert_type(run.gates.begin("publish", "Publish?", required_approvals=2), GateOpening)
    assert_type(run.gates.get("publish"), GateAnswer | None)
    assert_type(run.gates.secret("publish", voter="ann"), str | None)
    assert_type(run.sleep("an hour", 3600, suspend=True), None)


def states(run: Run) -> None:
    assert_type(run.state.set({"a": 1}, label="draft", expected_version=1, importance="milestone"), int)
    assert_type(run.state.patch({"status": None}, stream="notes"), int)
    assert_type(run.state.save("before", reason="why", metadata={"by": "me"}), int)
    assert_type(run.state.restore(label="before"), int)
    assert_type(run.state.get(default=None, at=datetime.now(timezone.utc)), Any)
    assert_type(run.state.versions("main", labeled=True, max=10), Sequence[StateVersion])
    assert_type(run.snapshots.create("v1", {"text": "x"}, target=("file", "draft.md"), created_by="me"), int)
    assert_type(run.snapshots.list(target=("file", "draft.md"), max=3), Sequence[Snapshot])


def usage(run: Run) -> None:
    recorded = run.usage.record(provider="openai", input_tokens=5, cost_usd=Decimal("0.1"), metadata={})
    assert_type(recorded, UsageTotal)
    assert_type(recorded.exhausted, bool)


def summarize(run: Run, input: dict[str, str]) -> list[str]:
    return [run.run_id, *input.values()]


@tide.workflow("summarize")
def registered(run: Run, input: Any) -> list[str]:
    return []


def children(run: Run) -> None:
    assert_type(run.child("summarize", summarize, name="first", input={"a": "b"}, wait_s=3), list[str])
    assert_type(run.child("summarize", input={"a": "b"}, max_attempts=3), Any)
    specs: list[ChildSpec] = [
        {"name": "a", "workflow": "summarize", "input": {"a": "b"}},
        {"name": "b", "workflow": summarize, "budget": {"tokens": 1000}},
    ]
    try:
        assert_type(run.fanout("all", specs, max_parallel=2, retries=1), list[Any])
    except FanoutFailed as error:
        assert_type(error.errors, dict[str, BaseException])


def charge(tx: SyncTransaction) -> int:
    row = tx.execute("insert into charges default values returning 1").fetchone()
    return int(row[0]) if row else 0


def transactions(run: Run, mine: psycopg.Connection[Any]) -> None:
    assert_type(run.transaction("block", timeout_s=3), AbstractContextManager[SyncTransaction])
    assert_type(run.transaction("function", charge, retries=3), int)
    with run.transaction("joined", connection=mine, returns=int) as tx:
        assert_type(tx, SyncTransaction)
        assert_type(tx.execute("select %s", [1]), psycopg.Cursor[Any])
        assert_type(tx.connection, psycopg.Connection[Any])
        assert_type(tx.replayed, bool)
        tx.result = 1


def attributes(run: Run) -> None:
    assert_type(run.run_id, str)
    assert_type(run.attempt, int)
    assert_type(run.token, int)
    assert_type(run.workflow, str)
    assert_type(run.flush(), None)
    assert_type(run.emit("agent.progress", {"done": 3}, transient=True), int)


def sessions(attached: RunSession, lost: list[TidebaseError]) -> None:
    session = tide.runs.attach("research", run_id="r", input={"a": 1}, on_lease_lost=lost.append, max_attempts=3)
    assert_type(session, RunSession)
    with attached as entered:
        assert_type(entered, RunSession)
    assert_type(attached.input, Any)
    assert_type(attached.heartbeat(), None)
    assert_type(attached.step("plan", make_plan, "topic"), Plan)
    assert_type(attached.complete({"a": 1}), None)
    assert_type(attached.fail("no"), None)
    assert_type(attached.close(), None)


def runs(all: Runs) -> None:
    assert_type(all.create("research", {"a": 1}, run_id="r", budget={"cost_usd": "2.50"}), RunInfo)
    assert_type(all.get("r").status, str)
    assert_type(all.get("r"), RunInfo)
    assert_type(all.find("run_01"), str)
    assert_type(all.list(workflow="w", status="failed", before="r", max=10, roots=False), Sequence[RunInfo])
    assert_type(all.count(), Sequence[RunCount])
    assert_type(all.cancel("r", "not needed", actor="me", cascade=False), RunInfo)
    assert_type(all.recover("r", actor="me"), Recovery)
    assert_type(all.recoveries("r"), Sequence[Recovery])
    assert_type(all.stalled(), Sequence[StalledRun])
    assert_type(all.reviews(), Sequence[ReviewInfo])
    assert_type(all.resolve_review("r", "send", "accept", output={"id": 1}), None)
    assert_type(all.fork("r", through_step="plan", reason="again"), RunInfo)
    assert_type(all.tree("r"), Sequence[TreeNode])
    assert_type(all.state("r", version=3), StateVersion)
    assert_type(all.state_versions("r", with_value=True), Sequence[StateVersion])
    assert_type(all.snapshots("r", label="v1"), Sequence[Snapshot])
    assert_type(all.usage("r"), UsageTotals)
    assert_type(all.usage_by_step("r"), Sequence[UsageByStep])
    assert_type(all.usage_by_model("r"), Sequence[UsageByModel])
    assert_type(all.set_budget("r", cost_usd=2.5, tokens=None), UsageTotals)
    assert_type(all.size("r"), RunSize)
    assert_type(all.compact("r"), bool)
    assert_type(all.purge(timedelta(days=30), statuses=["completed"]), int)
    assert_type(all.gates("r"), Sequence[GateInfo])
    assert_type(all.attempts("r"), Sequence[Attempt])
    assert_type(all.steps("r", max=3), Sequence[StepInfo])
    assert_type(all.step("r", "plan"), StepInfo)
    assert_type(all.events("r", after=3, page=10), Iterator[Event])
    assert_type(all.subscribe("r"), Iterator[Event])
    for event in all.subscribe("r", 3):
        assert_type(event, Event)
        assert_type(event.seq, int)


def desk() -> None:
    assert_type(tide.gates.list(run_id="r", status=None), Sequence[GateInfo])
    assert_type(tide.gates.get("r", "publish"), GateInfo)
    assert_type(tide.gates.secret("r", "publish"), str | None)
    assert_type(tide.gates.decide("r", "publish", "approved", actor="me", payload={"a": 1}), GateDecision)


def way_in(connection: psycopg.Connection[Any]) -> None:
    with Tidebase() as opened:
        assert_type(opened, Tidebase)
    assert_type(tide.run("w", summarize, run_id="r", input={"a": "b"}, wait_s=3, max_attempts=2), list[str])
    assert_type(tide.run("summarize", deadline=datetime.now(timezone.utc)), Any)
    assert_type(tide.workflow("again")(summarize)(Run.__new__(Run), {}), list[str])
    assert_type(registered(Run.__new__(Run), 1), list[str])
    assert_type(tide.bind(connection), Bound)
    assert_type(Bound(connection).enqueue("summarize"), Enqueuing)
    assert_type(Bound(connection).enqueue_many([]), Sequence[Enqueuing])
    assert_type(Bound(connection).runs, Runs)
    assert_type(tide.url, str)
    assert_type(tide.url_of("r"), str)
    assert_type(tide.diff("r", "s"), Sequence[Difference])
    assert_type(tide.reconcile(max=10), Reconciliation)
    assert_type(tide.migrate(role_prefix="agents"), MigrationReport)
    assert_type(tide.dispatcher(secret="s", timeout_s=3), Dispatcher)
    assert_type(tide.dispatcher().dispatch(10), int)
    assert_type(verify_webhook_signature(b"", None, "secret", url="https://example.org"), bool)
    assert_type(tide.close(), None)


def errors(run: Run) -> None:
    try:
        run.step("plan", make_plan, "topic")
    except LeaseLost:
        raise
    except TidebaseError as error:
        assert_type(error.sqlstate, str | None)
        assert_type(error.detail, dict[str, Any])
        assert_type(error.run_id, str | None)


def queues() -> None:
    assert_type(tide.enqueue("summarize"), Enqueuing)
    assert_type(tide.enqueue("summarize", 1, queue="q", run_id="r", delay_s=5, dedupe_key="d"), Enqueuing)
    assert_type(tide.enqueue_many([{"workflow": "summarize", "input": 1, "key": "k"}]), Sequence[Enqueuing])
    assert_type(tide.queues.put("q", concurrency=3, rate=10, rate_period_s=60), QueueInfo)
    assert_type(tide.queues.get("q"), QueueInfo)
    assert_type(tide.queues.list(), Sequence[QueueInfo])
    assert_type(tide.queues.rates(), Sequence[QueueRate])
    assert_type(tide.queues.pause("q"), bool)
    assert_type(tide.queues.resume("q"), bool)
    assert_type(tide.queues.workers(), Sequence[WorkerInfo])
    assert_type(tide.queues.put("q", endpoint="https://x"), QueueInfo)
    assert_type(tide.queues.invocations("q"), Sequence[InvocationInfo])
    assert_type(tide.measure(), Sequence[Measurement])
    assert_type(tide.invoked(b"", {}, secret="s", url="https://x"), bool)
    assert_type(tide.runs.cancel_many(queue="q", dry_run=True), Bulk)
    assert_type(tide.runs.retry_many(failure_class="crashed"), Bulk)
    assert_type(tide.runs.move_many("other", queue="q"), Bulk)
    assert_type(tide.schedules.put("s", "summarize", cron="* * * * *", timezone="Europe/Berlin"), ScheduleInfo)
    assert_type(tide.schedules.get("s"), ScheduleInfo)
    assert_type(tide.schedules.list(), Sequence[ScheduleInfo])
    assert_type(tide.schedules.delete("s"), bool)
    assert_type(tide.schedules.trigger("s", run_id="r", input=1), str)
    now = datetime.now(timezone.utc)
    assert_type(tide.schedules.backfill("s", now, now, max=3), Sequence[str])
    assert_type(tide.schedules.next_fires("* * * * *", n=3), Sequence[datetime])
    worker = tide.worker({"q": 2, "other": 1}, concurrency=4, suspend=False)
    assert_type(Worker(tide).is_alive, bool)
    assert_type(Worker(tide).is_ready, bool)
    assert_type(worker, Worker)
    assert_type(Worker(tide, ["q"]).run(), None)
    assert_type(Worker(tide).stop(), None)


def channels(run: Run) -> None:
    assert_type(run.channels.add("https://a.example/hook", secret="s", events=["run.completed"]), int)
    assert_type(run.channels.list(), Sequence[Channel])
    assert_type(run.channels.remove(1), bool)
    assert_type(tide.runs.add_channel("r", "https://a.example/hook"), int)
    assert_type(tide.runs.channels("r"), Sequence[Channel])
    assert_type(tide.runs.remove_channel("r", 1), bool)
    assert_type(tide.runs.retry_channel("r", 1), bool)
    assert_type(tide.channel_dispatcher(secret="s").dispatch(), int)
    assert_type(tide.push_dispatcher(secret="s").dispatch(), int)
