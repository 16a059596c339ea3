"""OpenTelemetry: a root span for each attempt, linked to the one before, and a span for each step that is executed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode, Tracer

from tidebase import AsyncTidebase, RunSuspendedError, Tidebase
from tidebase.core.tracing import current_traceparent

from .probes.support import Connection, grant, new_run, value, values

ON_NEWEST = True


class Spans(list[ReadableSpan]):
    """The spans that have ended, in that order."""

    def named(self, name: str) -> list[ReadableSpan]:
        return [span for span in self if span.name == name]


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def tracer(exporter: InMemorySpanExporter) -> Tracer:
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return provider.get_tracer("test")


@pytest.fixture
def traced(database: str, tracer: Tracer) -> Iterator[Tidebase]:
    with Tidebase(database, tracer=tracer, lease_s=5) as tide:
        yield tide


def spans(exporter: InMemorySpanExporter) -> Spans:
    return Spans(exporter.get_finished_spans())


def traceparent(span: ReadableSpan) -> str:
    return f"00-{span.context.trace_id:032x}-{span.context.span_id:016x}-{span.context.trace_flags:02x}"


def linked(span: ReadableSpan) -> list[int]:
    return [link.context.span_id for link in span.links]


def test_an_attempt_is_a_root_linked_to_the_one_before(
    traced: Tidebase, db: Connection, exporter: InMemorySpanExporter
) -> None:
    broken = True

    def work(run: Any, _: Any) -> str:
        first: str = run.step("first", lambda: "one")
        if broken:
            run.step("second", lambda: 1 / 0)
        return first + str(run.step("second", lambda: "two"))

    with pytest.raises(ZeroDivisionError):
        traced.run("w", work, run_id="r")
    broken = False
    assert traced.run("w", work, run_id="r") == "onetwo"
    assert traced.run("w", work, run_id="r") == "onetwo"  # completed: nothing is done, nothing is told

    found = spans(exporter)
    assert [span.name for span in found] == ["step first", "step second", "run w", "step second", "run w"]
    failed, completed = found.named("run w")
    assert failed.parent is None and completed.parent is None
    assert failed.context.trace_id != completed.context.trace_id
    assert linked(failed) == [] and linked(completed) == [failed.context.span_id]
    assert values(db, "select traceparent from tidebase.run_attempts where run_id = 'r' order by attempt") == [
        traceparent(failed),
        traceparent(completed),
    ]
    assert dict(completed.attributes or {}) == {
        "tidebase.run.id": "r",
        "tidebase.workflow.name": "w",
        "tidebase.attempt": 2,
        "tidebase.lease.token": 2,
        "tidebase.checkpoints": 1,
        "tidebase.outcome": "completed",
    }
    assert (failed.status.status_code, completed.status.status_code) == (StatusCode.ERROR, StatusCode.UNSET)
    assert failed.attributes is not None and failed.attributes["error.type"] == "ZeroDivisionError"
    for step, attempt in zip(found.named("step second"), (failed, completed), strict=True):
        assert step.parent is not None and step.parent.span_id == attempt.context.span_id
    assert [event.name for event in found.named("step second")[0].events] == ["exception"]


def test_what_a_step_does_is_inside_its_span(traced: Tidebase, tracer: Tracer, exporter: InMemorySpanExporter) -> None:
    def ask() -> str:
        with tracer.start_as_current_span("chat"):
            return "answer"

    def work(run: Any, _: Any) -> None:
        run.step("plain", ask)
        run.step.options(timeout_s=60)("limited", ask)  # in a thread of its own
        with tracer.start_as_current_span("mine"):
            run.step("inner", ask)

    traced.run("w", work)
    found = spans(exporter)
    parents = {span.context.span_id: span.name for span in found}
    assert [(s.name, parents[s.parent.span_id]) for s in found if s.parent] == [
        ("chat", "step plain"),
        ("step plain", "run w"),
        ("chat", "step limited"),
        ("step limited", "run w"),
        ("chat", "step inner"),
        ("step inner", "mine"),
        ("mine", "run w"),
    ]


def test_retries_of_a_step_have_a_span_each(traced: Tidebase, exporter: InMemorySpanExporter) -> None:
    tries = iter([ValueError("no"), None])

    def flaky() -> None:
        if error := next(tries):
            raise error

    traced.run("w", lambda run, _: run.step.options(retries=1, retry_delay_s=0.001)("s", flaky))
    steps = spans(exporter).named("step s")
    assert [span.attributes and span.attributes["tidebase.step.attempt"] for span in steps] == [1, 2]
    assert [span.status.status_code for span in steps] == [StatusCode.ERROR, StatusCode.UNSET]


def test_usage_is_told_by_the_conventions(traced: Tidebase, exporter: InMemorySpanExporter) -> None:
    def work(run: Any, _: Any) -> None:
        def ask() -> None:
            for number in (1, 2, 2):  # the last one is a repetition, and not counted
                run.usage.record(
                    provider="acme",
                    model="large",
                    kind="chat",
                    response_id=f"resp-{number}",
                    input_tokens=10,
                    output_tokens=5,
                    cache_read_tokens=4,
                    cost_usd="0.25",
                )

        run.step("ask", ask)
        run.usage.record(input_tokens=1)

    traced.run("w", work)
    step, attempt = spans(exporter)
    assert {name: v for name, v in (step.attributes or {}).items() if "usage" in name or name.startswith("gen_ai")} == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "acme",
        "gen_ai.response.model": "large",
        "gen_ai.response.id": "resp-2",
        "gen_ai.usage.input_tokens": 20,
        "gen_ai.usage.output_tokens": 10,
        "gen_ai.usage.cache_read.input_tokens": 8,
        "tidebase.usage.cost_usd": 0.5,
    }
    assert attempt.attributes is not None and attempt.attributes["gen_ai.usage.input_tokens"] == 1


def test_a_run_that_waits_has_not_failed(traced: Tidebase, exporter: InMemorySpanExporter) -> None:
    def work(run: Any, _: Any) -> str:
        return str(run.gate("ok", "May I?", suspend=True).decision)

    with pytest.raises(RunSuspendedError):
        traced.run("w", work, run_id="r")
    traced.gates.decide("r", "ok", "approved")
    assert traced.run("w", work, run_id="r") == "approved"
    waited, done = spans(exporter).named("run w")
    assert waited.attributes is not None and waited.attributes["tidebase.outcome"] == "suspended"
    assert waited.status.status_code == StatusCode.UNSET and linked(done) == [waited.context.span_id]


def test_a_run_links_to_where_it_was_made(
    database: str, traced: Tidebase, tracer: Tracer, exporter: InMemorySpanExporter
) -> None:
    with Tidebase(database) as other, tracer.start_as_current_span("request") as request:  # which is not told to trace
        other.runs.create("w", run_id="r")
        made_in = current_traceparent()
    traced.run("w", lambda run, _: None, run_id="r")
    attempt = spans(exporter).named("run w")[0]
    assert linked(attempt) == [request.get_span_context().span_id]
    assert made_in is not None and made_in.split("-")[2] == f"{request.get_span_context().span_id:016x}"
    assert current_traceparent() is None


def test_children_link_to_the_step_that_made_them(traced: Tidebase, exporter: InMemorySpanExporter) -> None:
    def child(run: Any, _: Any) -> None:
        run.step("work", lambda: None)

    def parent(run: Any, _: Any) -> None:
        run.fanout("parts", [{"name": f"part-{n}", "workflow": child, "workflow_name": "child"} for n in range(3)])

    traced.run("parent", parent)
    found = spans(exporter)
    assert len(found.named("run child")) == len(found.named("step work")) == 3
    (joining,) = found.named("step join:parts")
    for attempt in found.named("run child"):
        assert attempt.parent is None and joining.context.span_id in linked(attempt)


def test_a_session_is_an_attempt(traced: Tidebase, exporter: InMemorySpanExporter) -> None:
    with traced.runs.attach("w", run_id="r") as session:
        session.step("one", lambda: 1)
        session.complete("done")
    with pytest.raises(ValueError, match="no"), traced.runs.attach("w", run_id="s"):
        raise ValueError("no")
    found = spans(exporter)
    assert [span.name for span in found] == ["step one", "run w", "run w"]
    assert [(span.attributes or {}).get("tidebase.outcome") for span in found] == [None, "completed", "failed"]


def test_a_run_that_another_worker_has_is_not_told(
    traced: Tidebase, db: Connection, exporter: InMemorySpanExporter
) -> None:
    run_id = new_run(db)
    grant(db, run_id)
    with pytest.raises(Exception, match="is held by"):
        traced.run("probe", lambda run, _: None, run_id=run_id, wait_s=0)
    assert spans(exporter) == []


async def test_the_same_awaited(database: str, tracer: Tracer, exporter: InMemorySpanExporter, db: Connection) -> None:
    async def ask() -> str:
        with tracer.start_as_current_span("chat"):
            return "answer"

    async def work(run: Any, _: Any) -> str:
        return str(await run.step("ask", ask))

    async with AsyncTidebase(database, tracer=tracer) as tide:
        assert await tide.run("w", work, run_id="r") == "answer"
    chat, step, attempt = spans(exporter)
    assert chat.parent is not None and chat.parent.span_id == step.context.span_id
    assert step.parent is not None and step.parent.span_id == attempt.context.span_id
    assert value(db, "select traceparent from tidebase.run_attempts where run_id = 'r'") == traceparent(attempt)
    assert trace.get_current_span() is trace.INVALID_SPAN
