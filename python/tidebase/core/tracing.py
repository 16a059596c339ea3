"""OpenTelemetry (the extra ``otel``): a span for each attempt, and one for each execution of a step.

Each attempt is the root of a trace of its own, linked to the attempt before it or to the span in which the run was
made: a run may wait for days, and a trace should not (OpenTelemetry specification, "Links between spans"). What
attempts need to know of each other, the ``traceparent`` of W3C Trace Context, is kept with the run in the database.
Replayed steps have no spans: nothing was done.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from .errors import LeaseLost, LeaseLostError, RunCancelled, RunCancelledError, RunSuspendedError, Suspended

if TYPE_CHECKING:
    from opentelemetry.trace import Span, SpanContext, Tracer


_NOTHING = nullcontext()


class Trace:
    """What is told of an attempt: nothing, where nobody traces."""

    traceparent: str | None = None

    def granted(self, attempt: int, token: int, checkpoints: int, traceparent: str | None) -> None:
        """The attempt begins."""

    def attempt(self) -> AbstractContextManager[None]:
        """The workflow's function is at work."""
        return _NOTHING

    def step(self, name: str, attempt: int) -> AbstractContextManager[None]:
        """A step's function is at work."""
        return _NOTHING

    def usage(self, record: Mapping[str, Any]) -> None:
        """Usage was recorded."""

    def completed(self) -> None:
        """The attempt has a result."""

    def failed(self, error: BaseException) -> None:
        """The attempt has none."""

    def end(self) -> None:
        """The attempt is over. May be called again."""


NO_TRACE = Trace()


def begin(tracer: Tracer | None, workflow: str, run_id: str) -> Trace:
    """The trace of an attempt that may be granted; if it is not, it is dropped, and nobody hears of it."""
    return NO_TRACE if tracer is None else Spans(tracer, workflow, run_id)


def current_traceparent() -> str | None:
    """The ``traceparent`` of the span at hand. Loads nothing: whoever has a span has loaded OpenTelemetry's API."""
    trace = sys.modules.get("opentelemetry.trace")
    return None if trace is None else _traceparent(trace.get_current_span().get_span_context())


def valid_traceparent(header: str | None) -> str | None:
    """A ``traceparent`` header, if it is one: others are to be ignored (W3C Trace Context, section 3.2.2)."""
    return header if header is not None and _TRACEPARENT.fullmatch(header) else None


_TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")


def _traceparent(context: SpanContext) -> str | None:
    if not context.is_valid:
        return None
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"


#: Attributes of OpenTelemetry's conventions for generative AI: what is said once, and what adds up.
_NAMES = {
    "kind": "gen_ai.operation.name",
    "provider": "gen_ai.provider.name",
    "model": "gen_ai.response.model",
    "response_id": "gen_ai.response.id",
}
_SUMS = {
    "input_tokens": "gen_ai.usage.input_tokens",
    "output_tokens": "gen_ai.usage.output_tokens",
    "cache_read_tokens": "gen_ai.usage.cache_read.input_tokens",
    "cache_write_tokens": "gen_ai.usage.cache_creation.input_tokens",
    "reasoning_tokens": "gen_ai.usage.reasoning.output_tokens",
    "cost_usd": "tidebase.usage.cost_usd",
}


def _outcome(error: BaseException) -> str:
    """What became of an attempt that did not complete; that a run waits, or that its process ends, is no failure."""
    if isinstance(error, (LeaseLost, LeaseLostError)):
        return "lost"
    if isinstance(error, (RunCancelled, RunCancelledError)):
        return "cancelled"
    if isinstance(error, (Suspended, RunSuspendedError)):
        return "suspended"
    return "failed" if isinstance(error, Exception) else "released"


class Spans(Trace):
    """The spans of one attempt."""

    def __init__(self, tracer: Tracer, workflow: str, run_id: str) -> None:
        from opentelemetry import context, trace

        self._trace = trace
        self._tracer = tracer
        self._run_id = run_id
        self._caller = trace.get_current_span().get_span_context()
        self._span: Span = tracer.start_span(
            f"run {workflow}",
            context=context.Context(),  # a root, whatever goes on around it
            attributes={"tidebase.run.id": run_id, "tidebase.workflow.name": workflow},
        )
        self._context = trace.set_span_in_context(self._span, context.Context())
        self._steps: dict[str, Span] = {}
        self._sums: dict[tuple[int, str], float] = {}
        self.traceparent = _traceparent(self._span.get_span_context())

    def granted(self, attempt: int, token: int, checkpoints: int, traceparent: str | None) -> None:
        self._span.set_attribute("tidebase.attempt", attempt)
        self._span.set_attribute("tidebase.lease.token", token)
        self._span.set_attribute("tidebase.checkpoints", checkpoints)
        earlier = self._parse(traceparent)
        if earlier is not None:
            self._span.add_link(earlier)
        if self._caller.is_valid and (earlier is None or self._caller.span_id != earlier.span_id):
            self._span.add_link(self._caller)

    def _parse(self, traceparent: str | None) -> SpanContext | None:
        if traceparent is None:
            return None
        _, trace_id, span_id, flags = traceparent.split("-")
        return self._trace.SpanContext(
            int(trace_id, 16), int(span_id, 16), is_remote=True, trace_flags=self._trace.TraceFlags(int(flags, 16))
        )

    @contextmanager
    def attempt(self) -> Iterator[None]:
        with self._trace.use_span(self._span, record_exception=False, set_status_on_exception=False):
            try:
                yield
            except BaseException as error:
                self.failed(error)
                raise
        self.completed()

    @contextmanager
    def step(self, name: str, attempt: int) -> Iterator[None]:
        attributes: dict[str, Any] = {
            "tidebase.run.id": self._run_id,
            "tidebase.step.name": name,
            "tidebase.step.attempt": attempt,
        }
        with self._tracer.start_as_current_span(
            f"step {name}",
            context=self._parent(),
            attributes=attributes,
            record_exception=False,
            set_status_on_exception=False,
        ) as span:
            self._steps[name] = span
            try:
                yield
            except BaseException as error:
                self._tell(span, error)
                raise
            finally:
                del self._steps[name]

    def _parent(self) -> Any:
        """The span at hand where it belongs to this attempt (None: that one), else the attempt's: a thread has none."""
        mine, here = self._span.get_span_context(), self._trace.get_current_span().get_span_context()
        return None if here.trace_id == mine.trace_id else self._context

    def usage(self, record: Mapping[str, Any]) -> None:
        span = self._steps.get(record.get("step") or "", self._span)
        for name, attribute in _NAMES.items():
            if record.get(name) is not None:
                span.set_attribute(attribute, record[name])
        for name, attribute in _SUMS.items():
            if record.get(name) is not None:
                key = (span.get_span_context().span_id, attribute)
                total = self._sums[key] = self._sums.get(key, 0) + (
                    float(record[name]) if name == "cost_usd" else record[name]
                )
                span.set_attribute(attribute, total)

    def completed(self) -> None:
        self._span.set_attribute("tidebase.outcome", "completed")

    def failed(self, error: BaseException) -> None:
        self._span.set_attribute("tidebase.outcome", _outcome(error))
        self._tell(self._span, error)

    def _tell(self, span: Span, error: BaseException) -> None:
        if _outcome(error) in ("failed", "lost"):
            span.record_exception(error)
            span.set_attribute("error.type", type(error).__qualname__)
            span.set_status(self._trace.Status(self._trace.StatusCode.ERROR, str(error)))

    def end(self) -> None:
        if self._span.is_recording():
            self._span.end()
