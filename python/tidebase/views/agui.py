"""A run's log as AG-UI events, so that agent front ends can follow a run as they are.

Needs ``ag-ui-protocol`` (from 1.0 on) and ``jsonpatch``.

A :class:`Translator` is fed the log in order and keeps what the protocol's order rules need; it reads nothing itself::

    translator = Translator(run_id)
    for event in events:
        state = NO_STATE
        if (version := translator.needs_state(event)) is not None:
            state = ...   # the value of stream ``main``: of that version, or for AT_EVENT as of ``seq=event.seq``
        for text in encode(translator.translate(event, state)):
            ...           # one ``data:`` line

=============================================  =================================================================
in the log                                     in AG-UI
=============================================  =================================================================
run.started                                    RUN_STARTED: every attempt is an AG-UI run, ``<run id>#<attempt>``
step.started                                   STEP_STARTED, named like the step with its key
step.completed, step.failed                    STEP_FINISHED; after a STEP_STARTED where that was not seen
step.review                                    STEP_FINISHED; CUSTOM where the step has ended already
state.updated, .saved, .restored of ``main``   STATE_SNAPSHOT, then STATE_DELTA; CUSTOM where the state is gone
run.completed                                  RUN_FINISHED, outcome success, with the result if it was given
run.suspended                                  RUN_FINISHED, outcome interrupt; its id is the name of the gate or timer
run.failed, status failed                      RUN_ERROR; code: the error's type, or ``failed``
run.cancelled                                  RUN_ERROR; code: ``cancelled``
anything else                                  CUSTOM: name is the type, value ``{"seq": ..., "payload": ...}``
=============================================  =================================================================

An attempt may end while the run goes on by itself, or once somebody has looked at it: run.failed with another status,
run.released, run.lapsed, run.review. Then its AG-UI run stays open, so that a front end does not take the run for
ended, until the next attempt begins: it is closed with the outcome cancelled, right before the next RUN_STARTED.

Nothing may follow the end of an AG-UI run but a RUN_STARTED. What is logged after it (the decision of a gate that the
run is suspended for, say) is held back and follows the next RUN_STARTED. When there is nothing to come but an end, as
when a suspended run is cancelled, an AG-UI run of its own says so: ``<run id>@<seq>``. So is one named that a stream
joined in the middle begins with, where nobody knows the attempt.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, Final

import jsonpatch
from ag_ui.core import (
    PROTOCOL_VERSION,
    BaseEvent,
    CustomEvent,
    Interrupt,
    RunErrorEvent,
    RunFinishedCancelledOutcome,
    RunFinishedEvent,
    RunFinishedInterruptOutcome,
    RunFinishedOutcome,
    RunFinishedSuccessOutcome,
    RunStartedEvent,
    StateDeltaEvent,
    StateSnapshotEvent,
    StepFinishedEvent,
    StepStartedEvent,
)

from ..domain.calls import Event
from ..domain.state import MAIN

#: What :meth:`Translator.needs_state` answers when it wants the state as it was right after the event.
AT_EVENT: Final = 0

#: Passed to :meth:`Translator.translate` where there is no such state, or no more. None is a state: the JSON null.
NO_STATE: Final[Any] = object()

_STATES = ("state.updated", "state.saved", "state.restored")
_STARTS = ("run.created", "run.forked")
_PAUSES = ("run.failed", "run.released", "run.lapsed", "run.review")


def encode(events: Iterable[BaseEvent]) -> list[str]:
    """The JSON text of each event, in the protocol's spelling (camelCase, nothing that is unset)."""
    return [event.model_dump_json(by_alias=True) for event in events]


class Translator:
    """Translates the log of one run, for one stream to one client.

    Args:
        run_id: the run whose log it is.
        thread_id: the AG-UI thread; by default the run's id.
        attempt: the one under way where the stream is joined in the middle, if that is known.
    """

    def __init__(self, run_id: str, thread_id: str | None = None, *, attempt: int | None = None) -> None:
        self._run_id = run_id
        self._thread_id = run_id if thread_id is None else thread_id
        self._attempt = attempt
        self._joined = False
        self._open: str | None = None  # the AG-UI run that has begun and not ended
        self._steps: dict[str, None] = {}  # those that have begun, in that order
        self._waits: dict[str, Event] = {}  # what opened the gates and timers that are undecided
        self._held: list[BaseEvent] = []  # what waits for the next RUN_STARTED
        self._state: Any = NO_STATE  # as the client has it

    def needs_state(self, event: Event) -> int | None:
        """The version of stream ``main`` that :meth:`translate` wants with this event, :data:`AT_EVENT`, or None."""
        if _is_state(event):
            return int(event.payload["version"])
        return AT_EVENT if self._joins(event) else None

    def translate(self, event: Event, state: Any = NO_STATE, *, result: Any = None) -> list[BaseEvent]:
        """What the client is sent for the next event of the log; may be nothing.

        Args:
            state: the value that :meth:`needs_state` asked for; NO_STATE where there is none.
            result: what the run returned, with run.completed. The log does not have it; None: it is not told.
        """
        opening = self._opening(event)
        if self._joins(event) and not _is_state(event) and state is not NO_STATE:
            self._state = state
            opening.append(StateSnapshotEvent(snapshot=state, **_stamp(event)))
        self._joined = True
        is_open = self._open is not None
        events = self._body(event, state, result)
        if is_open:
            return opening + events
        self._held += events
        return []

    def _joins(self, event: Event) -> bool:
        return not self._joined and event.type not in _STARTS

    def _opening(self, event: Event) -> list[BaseEvent]:
        """Begins an AG-UI run where this event has to have one."""
        if event.type == "run.started" or self._joins(event):
            return self._begin(event, self._attempt_id(event))
        if self._open is None and _is_end(event):
            return self._begin(event, f"{self._run_id}@{event.seq}")
        return []

    def _attempt_id(self, event: Event) -> str:
        # Only the run's own events have its attempt; what a step's have is how often the step was begun.
        told = event.payload.get("attempt") if event.type.startswith("run.") else None
        attempt = self._attempt if told is None else told
        return f"{self._run_id}@{event.seq}" if attempt is None else f"{self._run_id}#{attempt}"

    def _begin(self, event: Event, open_id: str) -> list[BaseEvent]:
        # The attempt before, whose worker was lost, gave up or failed, has not completed, and nobody has to answer.
        closing = self._finish(event, RunFinishedCancelledOutcome()) if self._open is not None else []
        self._open = open_id
        started = RunStartedEvent(
            thread_id=self._thread_id, run_id=open_id, protocol_version=PROTOCOL_VERSION, **_stamp(event)
        )
        held, self._held = self._held, []
        return [*closing, started, *held]

    def _body(self, event: Event, state: Any, result: Any) -> list[BaseEvent]:
        """What stands for the event itself."""
        if _is_end(event):
            return self._end(event, result)
        if _is_state(event):
            return [self._change(event, state)]
        match event.type:
            case "run.started":
                return []
            case "step.started":
                return self._start_step(event)
            case "step.completed" | "step.failed":
                return self._end_step(event)
            case "step.review" if event.payload["name"] in self._steps:
                return self._end_step(event)
            case "gate.created" | "timer.started":
                self._waits[event.payload["name"]] = event
            case "gate.resolved" | "timer.fired":
                self._waits.pop(event.payload["name"], None)
        over = self._finish_steps(event) if event.type in _PAUSES else []
        return [*over, _custom(event)]

    def _start_step(self, event: Event) -> list[BaseEvent]:
        name = event.payload["name"]
        # Two starts in a row need an end between them: a step has one span at a time.
        events = self._end_step(event) if name in self._steps else []
        self._steps[name] = None
        return [*events, StepStartedEvent(step_name=name, **_stamp(event))]

    def _end_step(self, event: Event) -> list[BaseEvent]:
        # Its start came before the client did, or in another run: that of a fork, or that of the attempt before.
        events = [] if event.payload["name"] in self._steps else self._start_step(event)
        del self._steps[event.payload["name"]]
        return [*events, StepFinishedEvent(step_name=event.payload["name"], **_stamp(event))]

    def _finish_steps(self, event: Event) -> list[BaseEvent]:
        names, self._steps = self._steps, {}
        return [StepFinishedEvent(step_name=name, **_stamp(event)) for name in names]

    def _change(self, event: Event, state: Any) -> BaseEvent:
        """The state as a patch to what the client has, or whole where that is shorter."""
        before, self._state = self._state, state
        if state is NO_STATE:
            return _custom(event)
        if before is not NO_STATE:
            delta: Any = jsonpatch.make_patch(before, state).patch
            if _size(delta) <= _size(state):
                return StateDeltaEvent(delta=delta, **_stamp(event))
        return StateSnapshotEvent(snapshot=state, **_stamp(event))

    def _end(self, event: Event, result: Any) -> list[BaseEvent]:
        if event.type == "run.completed":
            return self._finish(event, RunFinishedSuccessOutcome(), result)
        if event.type == "run.suspended":
            return self._finish(event, RunFinishedInterruptOutcome(interrupts=[self._interrupt(event.payload["name"])]))
        return self._fail(event)

    def _finish(self, event: Event, outcome: RunFinishedOutcome, result: Any = None) -> list[BaseEvent]:
        assert self._open is not None
        finished = RunFinishedEvent(
            thread_id=self._thread_id, run_id=self._open, result=result, outcome=outcome, **_stamp(event)
        )
        self._open = None
        return [*self._finish_steps(event), finished]

    def _fail(self, event: Event) -> list[BaseEvent]:
        message, code = _reason(event)
        self._open = None
        failed = RunErrorEvent(message=message, code=code, **_stamp(event))
        return [*self._finish_steps(event), failed]

    def _interrupt(self, name: str) -> Interrupt:
        """What a suspended run waits for. Who joined after it was opened knows only its name."""
        opened = self._waits.get(name)
        if opened is None:
            return Interrupt(id=name, reason="tidebase:suspended")
        if opened.type == "timer.started":
            return Interrupt(id=name, reason="tidebase:timer", metadata={"fires_at": opened.payload["fires_at"]})
        return _question(name, opened.payload)


def _question(name: str, gate: dict[str, Any]) -> Interrupt:
    """A gate as what the protocol calls input_required: an answer that fits a schema."""
    options = gate.get("options")
    answer = {
        "type": "object",
        "properties": {
            "decision": {"type": "string"} if options is None else {"enum": options},
            "payload": {},
            "comment": {"type": "string"},
        },
        "required": ["decision"],
    }
    return Interrupt(
        id=name,
        reason="input_required",
        message=gate.get("prompt"),
        response_schema=answer,
        expires_at=gate.get("timeout_at"),
        metadata={key: gate.get(key) for key in ("data", "options", "required")},
    )


def _reason(event: Event) -> tuple[str, str]:
    """Why a run ended badly: for people, and for code."""
    if event.type == "run.cancelled":
        return event.payload.get("reason") or "the run was cancelled", "cancelled"
    error = event.payload.get("error")
    if not isinstance(error, dict):
        return error if error and isinstance(error, str) else "the run failed", "failed"
    return str(error.get("message") or "the run failed"), str(error.get("type") or "failed")


def _is_state(event: Event) -> bool:
    return event.type in _STATES and bool(event.payload["stream"] == MAIN)


def _is_end(event: Event) -> bool:
    """Whether the run ends here, or stops to wait for something."""
    if event.type == "run.failed":
        return bool(event.payload["status"] == "failed")
    return event.type in ("run.completed", "run.suspended", "run.cancelled")


def _custom(event: Event) -> BaseEvent:
    return CustomEvent(name=event.type, value={"seq": event.seq, "payload": event.payload}, **_stamp(event))


def _stamp(event: Event) -> dict[str, Any]:
    """When it happened, and where in the log: a client tells a step that failed from one that is completed by that."""
    return {
        "timestamp": int(event.created_at.timestamp() * 1000),
        "raw_event": {"seq": event.seq, "type": event.type},
    }


def _size(value: Any) -> int:
    return len(json.dumps(value, ensure_ascii=False, separators=(",", ":")))
