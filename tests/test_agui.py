"""AG-UI: whatever a run does, and wherever a client joins, it gets a stream that keeps the protocol's rules."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import datetime, timedelta, timezone
from typing import Any

import ag_ui.core as protocol
import jsonpatch
import pytest
from ag_ui.encoder import EventEncoder
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from tidebase import BudgetExhausted, Event, Run, RunSuspendedError, StateVersion, Tidebase, TidebaseError
from tidebase.views.agui import AT_EVENT, NO_STATE, Translator, encode

from .probes.support import Connection, call, grant, new_run
from .support.patience import PATIENCE_S

ON_NEWEST = True

PARSER: TypeAdapter[Any] = TypeAdapter(protocol.Event)
ENDS = ("RUN_FINISHED", "RUN_ERROR")


class Client:
    """A front end that verifies what it gets as the protocol's reference client does, and keeps the state."""

    def __init__(self, thread_id: str = "r") -> None:
        self.thread_id = thread_id
        self.types: list[str] = []
        self.runs: list[str] = []
        self.open: str | None = None
        self.steps: set[str] = set()
        self.seqs: list[int] = []
        self.last: dict[str, Any] = {}
        self.state: Any = NO_STATE

    def receive(self, text: str) -> None:
        parsed = PARSER.validate_json(text)
        assert encode([parsed]) == [text]
        assert EventEncoder().encode(parsed) == f"data: {text}\n\n"
        event = json.loads(text)
        self.last = event
        assert isinstance(event["timestamp"], int)
        assert event["rawEvent"].keys() == {"seq", "type"}
        assert (event["type"] == "RUN_STARTED") == (self.open is None), f"{event['type']} in {self.open}"
        getattr(self, f"on_{event['type'].lower()}", lambda _: None)(event)
        self.types.append(event["type"])
        self.seqs.append(event["rawEvent"]["seq"])

    def on_run_started(self, event: dict[str, Any]) -> None:
        assert event["threadId"] == self.thread_id and event["protocolVersion"] == "1.0"
        assert not self.steps
        self.open = event["runId"]
        self.runs.append(event["runId"])

    def on_run_finished(self, event: dict[str, Any]) -> None:
        assert (event["threadId"], event["runId"]) == (self.thread_id, self.open)
        assert not self.steps
        self.open = None

    def on_run_error(self, event: dict[str, Any]) -> None:
        assert event["message"] and event["code"]
        assert not self.steps
        self.open = None

    def on_step_started(self, event: dict[str, Any]) -> None:
        assert event["stepName"] not in self.steps
        self.steps.add(event["stepName"])

    def on_step_finished(self, event: dict[str, Any]) -> None:
        self.steps.remove(event["stepName"])

    def on_state_snapshot(self, event: dict[str, Any]) -> None:
        self.state = event["snapshot"]

    def on_state_delta(self, event: dict[str, Any]) -> None:
        assert self.state is not NO_STATE
        self.state = jsonpatch.apply_patch(self.state, event["delta"])
        assert len(encode([PARSER.validate_python(event)])[0]) < len(json.dumps(self.state)) + 300


class Log:
    """A run's log and its states, read once; the gateway's part in a translation."""

    def __init__(self, events: Sequence[Event], versions: Sequence[StateVersion], result: Any = None) -> None:
        self.events = events
        self.result = result
        self._versions = {version.version: version for version in versions}

    @classmethod
    def of(cls, tide: Tidebase, run_id: str) -> Log:
        versions = tide.runs.state_versions(run_id, "main", with_value=True, max=10_000)
        return cls(list(tide.runs.events(run_id)), versions, tide.runs.get(run_id).result)

    def at(self, seq: int) -> Any:
        """The state as it was right after an event."""
        earlier = [version for version in self._versions.values() if version.seq <= seq]
        return max(earlier, key=lambda version: version.version).value if earlier else NO_STATE

    def translate(self, translator: Translator, event: Event) -> list[str]:
        wanted = translator.needs_state(event)
        state = NO_STATE
        if wanted is not None:
            state = self.at(event.seq) if wanted == AT_EVENT else self._versions[wanted].value
        return encode(translator.translate(event, state, result=self.result))

    def follow(self, after: int = 0, run_id: str = "r", **options: Any) -> Client:
        """A client that joins behind an event and stays until the end. Where nothing is held back, it is up to date."""
        client, translator = Client(options.get("thread_id", run_id)), Translator(run_id, **options)
        for event in self.events[after:]:
            texts = self.translate(translator, event)
            for text in texts:
                client.receive(text)
            if texts and event.seq > 1:
                assert same(client.state, self.at(event.seq)), event
        return client


def same(one: Any, other: Any) -> bool:
    """Equal as JSON: true is not 1."""
    if one is NO_STATE or other is NO_STATE:
        return one is other
    return json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)


def busy(run: Run, input: Any) -> str:
    """Steps in sequence, in parallel and retried; state in all its ways; usage, events, a child."""
    tries = iter([ZeroDivisionError("first"), None])

    def shaky() -> int:
        problem = next(tries)
        if problem is not None:
            raise problem
        return 1

    run.emit("agent.note", ["not", "an", "object"])
    run.state.set({"plan": ["a/b", "c~d"], "done": {}, "notes": "long enough that patches are worth while" * 3})
    run.step("shaky", shaky, retries=1, retry_delay_s=0.0)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda n: run.step.options(key=n)("part", lambda: piece(run, n), input=n), range(4)))
    run.state.save("all parts")
    run.state.patch({"plan": None, "done": {"1": None, "2": True}})
    run.state.set({"other": 1}, stream="scratch")
    run.snapshots.create("page", {"text": "x"}, target=("page", "p"))
    run.state.restore(1)
    run.state.set(None)
    run.state.set({"small": 1})
    run.usage.record(model="m", input_tokens=3)
    run.child("small", lambda child, _: child.step("s", lambda: 1), name="one")
    run.emit("agent.progress", {"seq": "mine"})
    return "the result"


def piece(run: Run, number: int) -> int:
    run.state.patch({"done": {str(number): number == 1}})
    return number


def gated(run: Run, input: Any) -> Any:
    run.step("before", lambda: run.state.set({"asked": False}))
    answer = run.gate("ok?", "Shall I?", data={"to": "ada"}, timeout_s=3600, suspend=True)
    run.sleep("pause", 0.05, suspend=True)
    run.step("after", lambda: run.state.patch({"asked": answer.decision}))
    return answer.decision


def patient(tide: Tidebase, run_id: str) -> None:
    """Gates and timers for which the run is suspended; a gate that is decided while the worker goes on."""
    with pytest.raises(RunSuspendedError):
        tide.run("gated", gated, run_id=run_id)
    tide.gates.decide(run_id, "ok?", "approved", actor="ada")
    with suppress(RunSuspendedError):
        tide.run("gated", gated, run_id=run_id)
    tide.run("gated", gated, run_id=run_id, wait_s=PATIENCE_S)


def stubborn(tide: Tidebase, run_id: str) -> None:
    """Fails, is attempted again, fails for good, is resumed."""

    def work(run: Run, _: Any) -> None:
        run.state.patch({f"attempt {run.attempt}": True})
        with ThreadPoolExecutor(1) as pool:
            pool.submit(run.step, "steady", lambda: 1).result()
        if run.attempt < 3:
            raise RuntimeError(f"attempt {run.attempt}")

    with pytest.raises(RuntimeError):
        tide.run("stubborn", work, run_id=run_id, max_attempts=2, retry_delay_s=0.0)
    tide.runs.recover(run_id, actor="ada")
    tide.run("stubborn", work, run_id=run_id)


def careful(tide: Tidebase, db: Connection, run_id: str) -> None:
    """Steps that may have taken effect: after an error, and after a crash that another worker found."""
    new_run(db, run_id=run_id)
    token = grant(db, run_id)
    write = {"run_id": run_id, "side_effects": ["email.send"]}
    call(db, "begin_step", token=token, name="mail", **write)
    call(db, "fail_step", run_id=run_id, token=token, name="mail", error='{"type": "Timeout"}')
    call(db, "fail_run", run_id=run_id, token=token, error='"in review"')
    tide.runs.resolve_review(run_id, "mail", "accept", output=1)
    token = grant(db, run_id)
    call(db, "begin_step", token=token, name="pay", **write)
    call(db, "begin_step", run_id=run_id, token=token, name="read")
    db.execute("update tidebase.run_heads set lease_expires_at = clock_timestamp() where run_id = %s", [run_id])
    token = grant(db, run_id)
    assert call(db, "begin_step", token=token, name="pay", **write)["outcome"] == "review"
    tide.runs.resolve_review(run_id, "pay", "retry")
    token = grant(db, run_id)
    call(db, "begin_step", token=token, name="pay", **write)
    call(db, "complete_step", run_id=run_id, token=token, name="pay")
    call(db, "release_run", run_id=run_id, token=token)
    token = grant(db, run_id)
    expired = "update tidebase.run_heads set lease_expires_at = now(), due_at = now() where run_id = %s"
    db.execute(expired, [run_id])
    call(db, "reconcile")
    token = grant(db, run_id)
    call(db, "complete_run", run_id=run_id, token=token, result='"mailed"')


def stopped(tide: Tidebase, run_id: str, when: str) -> None:
    """Cancelled: before a worker came, in the middle of a step, while it waits, after it has failed."""
    tide.runs.create("w", run_id=run_id)
    if when == "running":
        with pytest.raises(TidebaseError), tide.runs.attach("w", run_id=run_id) as session:
            session.step("long", lambda: tide.runs.cancel(run_id, "enough", actor="ada").status, mark_start=True)
    elif when == "waiting":
        with pytest.raises(RunSuspendedError):
            tide.run("w", gated, run_id=run_id)
    elif when == "failed":
        with pytest.raises(ZeroDivisionError):
            tide.run("w", lambda run, _: 1 / 0, run_id=run_id)
    tide.runs.cancel(run_id, None if when == "new" else "enough")


def poor(tide: Tidebase, run_id: str) -> None:
    """Uses up a budget, and is given more."""

    def spend(run: Run, _: Any) -> None:
        for number in range(3):
            run.step(f"s{number}", lambda n=number: run.usage.record(cost_usd="0.60", response_id=f"{n}").records)

    with pytest.raises(BudgetExhausted):
        tide.run("w", spend, run_id=run_id, budget={"cost_usd": 1})
    tide.runs.set_budget(run_id, cost_usd=5)
    tide.run("w", spend, run_id=run_id)


def runs(tide: Tidebase, db: Connection) -> Iterator[str]:
    """Makes runs that together write every type of event that is about a client's run."""
    tide.run("busy", busy, run_id="busy")
    tide.runs.fork("busy", "fork", through_step="part[2]")
    tide.run("busy", busy, run_id="fork")
    patient(tide, "patient")
    stubborn(tide, "stubborn")
    careful(tide, db, "careful")
    poor(tide, "poor")
    yield from ("busy", "fork", "patient", "stubborn", "careful", "poor")
    for when in ("new", "running", "waiting", "failed"):
        stopped(tide, when, when)
        yield when


def test_every_run_joined_at_every_event_keeps_the_rules_and_has_the_stored_state(
    tide: Tidebase, db: Connection
) -> None:
    seen: set[str] = set()
    for run_id in runs(tide, db):
        log = Log.of(tide, run_id)
        seen |= {event.type for event in log.events}
        for after in range(len(log.events)):
            client = log.follow(after, run_id)
            assert client.open is None and client.types[-1] in ENDS
            assert same(client.state, log.at(log.events[-1].seq))
            assert len(set(client.runs)) == len(client.runs)
        whole = log.follow(0, run_id)
        assert set(whole.seqs) == {event.seq for event in log.events}, f"something of {run_id} is lost"
    assert seen >= {
        *("run.created", "run.started", "run.completed", "run.failed", "run.suspended", "run.released", "run.lapsed"),
        *("run.review", "run.cancelled", "run.forked", "run.child.created", "step.started", "step.completed"),
        *("step.failed", "step.review", "step.reviewed", "gate.created", "gate.resolved", "timer.started"),
        *("timer.fired", "state.updated", "state.saved", "state.restored", "snapshot.created", "usage.recorded"),
        *("budget.exhausted", "budget.changed", "recovery.started", "agent.note"),
    }


def pairs(client_texts: Sequence[str]) -> list[tuple[str, Any]]:
    """Type and what matters of each event."""
    telling = ("runId", "stepName", "name", "code", "outcome")
    found = []
    for text in client_texts:
        event = json.loads(text)
        words = [event[key] for key in telling if key in event]
        found.append((event["type"], *(word["type"] if isinstance(word, dict) else word for word in words)))
    return found


def shown(tide: Tidebase, run_id: str, **options: Any) -> list[tuple[str, Any]]:
    log, translator = Log.of(tide, run_id), Translator(run_id, **options)
    return pairs([text for event in log.events for text in log.translate(translator, event)])


def test_a_gate_is_an_interrupt_and_its_decision_opens_the_next_run(tide: Tidebase) -> None:
    def ask(run: Run, _: Any) -> str:
        return run.gate("ok?", "Shall I?", data={"to": "ada"}, timeout_s=60, suspend=True).decision

    with pytest.raises(RunSuspendedError):
        tide.run("ask", ask, run_id="r")
    log, translator = Log.of(tide, "r"), Translator("r")
    texts = [text for event in log.events for text in log.translate(translator, event)]
    assert pairs(texts) == [
        ("RUN_STARTED", "r#1"),
        ("CUSTOM", "run.created"),
        ("CUSTOM", "gate.created"),
        ("RUN_FINISHED", "r#1", "interrupt"),
    ]
    (interrupt,) = json.loads(texts[-1])["outcome"]["interrupts"]
    assert datetime.fromisoformat(interrupt.pop("expiresAt")) == tide.gates.get("r", "ok?").timeout_at
    assert interrupt.pop("responseSchema")["properties"]["decision"] == {"enum": ["approved", "rejected"]}
    assert interrupt == {
        "id": "ok?",
        "reason": "input_required",
        "message": "Shall I?",
        "metadata": {"data": {"to": "ada"}, "options": ["approved", "rejected"], "required": 1},
    }
    tide.gates.decide("r", "ok?", "approved")
    (resolved,) = tide.runs.events("r", after=len(log.events))
    assert translator.translate(resolved) == []  # nothing may follow the end of a run
    tide.run("ask", ask, run_id="r")
    log = Log.of(tide, "r")
    texts = [text for event in log.events[resolved.seq :] for text in log.translate(translator, event)]
    assert pairs(texts) == [
        ("RUN_STARTED", "r#2"),
        ("CUSTOM", "gate.resolved"),
        ("RUN_FINISHED", "r#2", "success"),
    ]
    assert json.loads(texts[1])["value"]["payload"]["decision"] == "approved"
    assert json.loads(texts[-1])["result"] == "approved"


def test_an_attempt_that_is_made_again_ends_when_the_next_one_begins(tide: Tidebase) -> None:
    stubborn(tide, "r")
    told = [word for word in shown(tide, "r", thread_id="t") if not word[0].startswith("STATE")]
    assert told == [
        ("RUN_STARTED", "r#1"),
        ("CUSTOM", "run.created"),
        ("STEP_STARTED", "steady"),
        ("STEP_FINISHED", "steady"),
        ("CUSTOM", "run.failed"),
        ("RUN_FINISHED", "r#1", "cancelled"),
        ("RUN_STARTED", "r#2"),
        ("RUN_ERROR", "RuntimeError"),
        ("RUN_STARTED", "r#3"),
        ("CUSTOM", "recovery.started"),  # held back: the run had ended
        ("CUSTOM", "recovery.delivered"),
        ("RUN_FINISHED", "r#3", "success"),
    ]


def test_a_step_in_review_ends_once_and_its_attempt_when_the_next_one_begins(tide: Tidebase, db: Connection) -> None:
    careful(tide, db, "r")
    told = shown(tide, "r")
    assert told[2:9] == [
        ("STEP_STARTED", "mail"),
        ("STEP_FINISHED", "mail"),
        ("CUSTOM", "step.review"),
        ("CUSTOM", "run.failed"),
        ("CUSTOM", "step.reviewed"),
        ("STEP_STARTED", "mail"),  # a person says that it is completed
        ("STEP_FINISHED", "mail"),
    ]
    taken_over = told.index(("RUN_STARTED", "r#3"))
    assert told[taken_over - 5 : taken_over + 3] == [
        ("STEP_STARTED", "pay"),
        ("STEP_STARTED", "read"),
        ("STEP_FINISHED", "pay"),
        ("STEP_FINISHED", "read"),
        ("RUN_FINISHED", "r#2", "cancelled"),
        ("RUN_STARTED", "r#3"),
        ("CUSTOM", "step.review"),
        ("CUSTOM", "run.review"),
    ]


def test_the_steps_of_a_worker_that_is_lost_end_when_that_is_found_out(tide: Tidebase, db: Connection) -> None:
    new_run(db, run_id="r")
    call(db, "begin_step", run_id="r", token=grant(db, "r"), name="s")
    db.execute("update tidebase.run_heads set lease_expires_at = now(), due_at = now()")
    call(db, "reconcile")
    assert shown(tide, "r")[2:] == [("STEP_STARTED", "s"), ("STEP_FINISHED", "s"), ("CUSTOM", "run.lapsed")]


@pytest.mark.parametrize(
    ("when", "end"),
    [
        ("new", [("RUN_STARTED", "r@2"), ("CUSTOM", "run.created"), ("RUN_ERROR", "cancelled")]),
        ("running", [("STEP_FINISHED", "long"), ("RUN_ERROR", "cancelled")]),
        ("waiting", [("RUN_FINISHED", "r#1", "interrupt"), ("RUN_STARTED", "r@8"), ("RUN_ERROR", "cancelled")]),
        ("failed", [("RUN_ERROR", "ZeroDivisionError"), ("RUN_STARTED", "r@4"), ("RUN_ERROR", "cancelled")]),
    ],
)
def test_a_cancelled_run_says_so_whenever_it_is_cancelled(tide: Tidebase, when: str, end: list[Any]) -> None:
    stopped(tide, "r", when)
    assert shown(tide, "r")[-len(end) :] == end


def test_a_client_that_joins_gets_a_run_the_state_and_what_comes(tide: Tidebase) -> None:
    with tide.runs.attach("w", run_id="r") as session:
        session.state.set({"a": 1})
        session.step("s", lambda: session.state.patch({"b": 2}))
        session.emit("agent.note")
        session.complete(3)
    log = Log.of(tide, "r")
    assert [event.type for event in log.events][2:] == [
        *("state.updated", "step.started", "state.updated", "step.completed", "agent.note", "run.completed")
    ]

    def joined(after: int, **options: Any) -> list[tuple[str, Any]]:
        translator = Translator("r", **options)
        return pairs([text for event in log.events[after:] for text in log.translate(translator, event)])

    ends = [("CUSTOM", "agent.note"), ("RUN_FINISHED", "r#7", "success")]
    step = [("STEP_STARTED", "s"), ("STEP_FINISHED", "s")]  # begun before the client came
    assert joined(5, attempt=7) == [("RUN_STARTED", "r#7"), ("STATE_SNAPSHOT",), *step, *ends]
    assert joined(4)[:2] == [("RUN_STARTED", "r@5"), ("STATE_SNAPSHOT",)]
    assert joined(7) == [("RUN_STARTED", "r#1"), ("STATE_SNAPSHOT",), ("RUN_FINISHED", "r#1", "success")]


def test_states_that_are_gone_are_events_and_the_next_one_is_whole() -> None:
    translator = Translator("r", attempt=1)
    shown = [
        encode(translator.translate(made(seq, "state.updated", stream="main", version=seq), state))
        for seq, state in enumerate([{"text": "x" * 99, "n": 1}, NO_STATE, {"text": "x" * 99, "n": 2}, None], 2)
    ]
    types = [word[0] for texts in shown for word in pairs(texts)]
    assert types == ["RUN_STARTED", "STATE_SNAPSHOT", "CUSTOM", "STATE_SNAPSHOT", "STATE_SNAPSHOT"]
    assert json.loads(shown[-1][0])["snapshot"] is None


@pytest.mark.parametrize(
    ("error", "told"),
    [
        ({"type": "ValueError", "message": "no"}, ("no", "ValueError")),
        ({"type": "", "message": None}, ("the run failed", "failed")),
        ("out of luck", ("out of luck", "failed")),
        (None, ("the run failed", "failed")),
        ([1], ("the run failed", "failed")),
    ],
)
def test_an_error_has_a_message_and_a_code(error: Any, told: tuple[str, str]) -> None:
    event = made(2, "run.failed", attempt=1, token=1, error=error, status="failed")
    _, failed = map(json.loads, encode(Translator("r").translate(event)))
    assert (failed["message"], failed["code"]) == told


def made(seq: int, type: str, **payload: Any) -> Event:
    moment = datetime(2026, 1, 1, tzinfo=timezone.utc) + timedelta(seconds=seq)
    return Event(seq, type, payload, moment)


names = st.sampled_from(["a", "b[1]", "b[2]"])
attempts = st.integers(1, 3)
others = st.sampled_from(
    ["timer.fired", "gate.voted", "run.child.created", "usage.recorded", "step.reviewed", "my.own"]
)
scalars = st.none() | st.booleans() | st.integers(-(10**20), 10**20) | st.text("ab/~\u00e9\U0001f600 ", max_size=6)
KEYS = ["", "a", "b/c", "~"]  # as JSON pointers have to escape them
documents = st.recursive(
    scalars | st.sampled_from([0.5, 1e-7, 12345.678]),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["", "a", "b/c", "~"]), inner, max_size=4)
    ),
    max_leaves=12,
)


def kind(type: str, **payload: st.SearchStrategy[Any]) -> st.SearchStrategy[tuple[str, dict[str, Any]]]:
    return st.tuples(st.just(type), st.fixed_dictionaries(payload))


entries = st.one_of(
    kind("run.started", attempt=attempts),
    kind("run.completed", attempt=attempts),
    kind("run.failed", attempt=attempts, error=documents, status=st.sampled_from(["failed", "pending", "review"])),
    kind("run.suspended", attempt=attempts, name=names),
    kind("run.released", attempt=attempts),
    kind("run.lapsed", attempt=attempts),
    kind("run.review", name=names),
    kind("run.cancelled", reason=st.none() | st.text()),
    *(kind(f"step.{end}", name=names) for end in ("started", "started", "completed", "failed", "review")),
    kind("gate.created", name=names, prompt=st.none() | st.text(), options=st.lists(names, min_size=1)),
    kind("gate.resolved", name=names),
    kind("timer.started", name=names, fires_at=st.just("2026-01-01T00:00:00+00:00")),
    st.tuples(others, st.fixed_dictionaries({"name": names})),
    *(kind("state.updated", stream=st.sampled_from(["main", "main", "x"]), value=documents) for _ in range(3)),
)


def history(entries: Sequence[tuple[str, dict[str, Any]]], first: str | None) -> Log:
    """A log of made-up events, and the states that they tell of."""
    events = [made(1, first, workflow="w")] if first else []
    versions: list[StateVersion] = []
    for seq, (type, payload) in enumerate(entries, len(events) + 1):
        value = payload.get("value")
        event = made(seq, type, **{key: it for key, it in payload.items() if key != "value"})
        if payload.get("stream") == "main":
            event.payload["version"] = len(versions) + 1
            words: Any = ("set", "normal", None, None, "me", {}, seq, event.created_at)
            versions.append(StateVersion("main", len(versions) + 1, value, *words))
        events.append(event)
    return Log(events, versions, result={"fine": True})


@settings(max_examples=100)
@given(st.lists(entries, max_size=30), st.sampled_from([None, "run.created", "run.forked"]), st.integers(0, 5))
def test_no_order_of_events_breaks_the_rules(
    entries: list[tuple[str, dict[str, Any]]], first: str | None, after: int
) -> None:
    log = history(entries, first)
    log.follow()
    log.follow(after, attempt=after or None)


@settings(max_examples=100)
@given(st.lists(documents, min_size=2, max_size=6))
def test_deltas_lead_to_every_state_exactly(values: list[Any]) -> None:
    log = history([("state.updated", {"stream": "main", "value": value}) for value in values], None)
    client = log.follow()
    assert same(client.state, values[-1])
    assert len(client.types) == len(values) + 1


def test_a_small_change_of_a_large_state_is_a_delta() -> None:
    values: list[Any] = [{"items": [{"id": n, "text": f"text {n}"} for n in range(50)]}]
    values.append({"items": [*values[0]["items"][:7], {"id": 7, "text": "new"}, *values[0]["items"][8:]]})
    values.append({"items": values[1]["items"][1:]})
    log = history([("state.updated", {"stream": "main", "value": value}) for value in values], None)
    assert log.follow().types == ["RUN_STARTED", "STATE_SNAPSHOT", "STATE_DELTA", "STATE_DELTA"]


def test_a_thread_may_be_told() -> None:
    (text,) = encode(Translator("r", "t").translate(made(2, "run.started", attempt=4)))
    started = json.loads(text)
    assert (started["threadId"], started["runId"]) == ("t", "r#4")
    assert started["timestamp"] == 1767225602000
    assert started["rawEvent"] == {"seq": 2, "type": "run.started"}
