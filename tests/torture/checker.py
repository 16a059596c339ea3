"""Holds what clients were told against each other, and against what is stored in the end.

Times decide only where they leave no doubt: that a call was answered before another was made. What may have happened in
any order is not judged by its order.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, NamedTuple

import psycopg

from .client import TRANSIENT
from .journal import Op

#: What a function may answer besides what it is asked for; TB003 to TB005 with every token, TB007 and TB008 as below.
EXPECTED = {"TB003", "TB004", "TB005"} | TRANSIENT - {"40001"}
ALSO = {
    "begin_step": {"TB007"},
    "record_step": {"TB007"},
    "resolve_review": {"TB008"},
    "complete_run": {"TB014"},  # a person came in between who must be asked about a step
}

Rows = dict[tuple[str, Any], Any]


@dataclass
class Stored:
    """What is in the database when all is over."""

    status: dict[str, tuple[str, Any]]
    steps: Rows
    events: dict[str, list[tuple[int, str, Any]]]
    notes: dict[str, list[tuple[str, int]]]
    states: Rows
    responses: set[str]
    gates: Rows
    children: Rows
    broken: list[str]


def look(connection: psycopg.Connection[Any]) -> Stored:
    def rows(query: str) -> list[Any]:
        return connection.execute(query).fetchall()  # type: ignore[arg-type]

    events: dict[str, list[tuple[int, str, Any]]] = defaultdict(list)
    notes: dict[str, list[tuple[str, int]]] = defaultdict(list)
    for run_id, seq, kind, payload in rows("select run_id, seq, type, payload from tidebase.events order by 1, 2"):
        events[run_id].append((seq, kind, payload))
        if kind == "note":
            notes[payload["id"]].append((run_id, seq))
    return Stored(
        {row[0]: (row[1], row[2]) for row in rows("select run_id, status, result from tidebase.run_overview")},
        {
            (row[0], row[1]): (row[2], row[3])
            for row in rows("select run_id, name, output, completed_seq from tidebase.steps where status = 'completed'")
        },
        events,
        notes,
        {
            (row[0], row[1]): row[2]
            for row in rows(
                "select v.run_id, v.version, (tidebase.get_state(v.run_id, version => v.version)).value"
                " from tidebase.state_versions v"
            )
        },
        {row[0] for row in rows("select response_id from tidebase.usage")},
        {(row[0], row[1]): row[2] for row in rows("select run_id, name, decision from tidebase.gates")},
        {(row[0], row[1]): row[2] for row in rows("select run_id, name, child_run_id from tidebase.edges")},
        [str(row) for row in rows("select * from tidebase_private.check_invariants()") + rows(TWO_OF_A_KEY)],
    )


#: Of runs with one key, the younger was made before the older was over.
TWO_OF_A_KEY = """
select 'two of a key', a.run_id, b.run_id, b.created_at from tidebase.runs a
join tidebase.runs b on b.queue = a.queue and b.dedupe_key = a.dedupe_key and b.created_at > a.created_at
where not exists (
  select from tidebase.events e
  where e.run_id = a.run_id and e.created_at <= b.created_at and (
    e.type in ('run.completed', 'run.cancelled') or e.type = 'run.failed' and e.payload ->> 'status' = 'failed'))"""


#: Before every time on the clock.
NEVER = -1


@dataclass
class History:
    """The calls of one storm.

    Attributes:
        crashed: the server crashed on the way, so what commits lazily may be lost: the start of a plain step.
        promoted: when a standby took over that may not have had everything: what was acknowledged by then, on the
            monotonic clock, may be lost.
    """

    ops: list[Op]
    stored: Stored
    crashed: bool = False
    promoted: int = NEVER
    found: list[str] = field(default_factory=list)

    def check(self) -> list[str]:
        self.found = [f"stored: {row}" for row in self.stored.broken]
        for rule in RULES:
            self.found += [f"{rule.__name__.strip('_').replace('_', ' ')}: {text}" for text in rule(self)]
        return self.found

    def of(self, *functions: str) -> list[Op]:
        return [op for op in self.ops if op.function in functions]

    def kept(self, *functions: str) -> list[Op]:
        """The calls that were acknowledged, by a server that did not lose it."""
        return [op for op in self.of(*functions) if op.ok and op.tries[-1].begun > self.promoted]

    def by_run(self, ops: Iterable[Op]) -> dict[str, list[Op]]:
        grouped: dict[str, list[Op]] = defaultdict(list)
        for op in ops:
            grouped[op.run_id].append(op)
        return grouped


class Newest:
    """The greatest number that was acknowledged before a time."""

    def __init__(self, acknowledged: Iterable[tuple[int, int]]) -> None:
        self._times: list[int] = []
        self._greatest: list[int] = []
        for time, number in sorted(acknowledged):
            self._times.append(time)
            self._greatest.append(max(number, self._greatest[-1] if self._greatest else 0))

    def before(self, time: int) -> int:
        index = bisect_left(self._times, time)
        return self._greatest[index - 1] if index else 0


class Grant(NamedTuple):
    """A lease, and the call that was told of it."""

    token: int
    op: Op


def grants(history: History) -> dict[str, list[Grant]]:
    granted: dict[str, list[Grant]] = defaultdict(list)
    for op in history.of("acquire_run", "claim_runs"):
        for row in op.value if op.ok else ():
            if row.get("outcome", "granted") == "granted":
                granted[row.get("run_id", op.run_id)].append(Grant(row["token"], op))
    return granted


def tokens_only_grow(history: History) -> Iterator[str]:
    for granted in grants(history).values():
        newest = Newest((op.ended, token) for token, op in granted)
        yield from (str(op) for token, op in granted if newest.before(op.begun) >= token)
        issued = Counter(token for token, _ in granted)
        yield from (f"{granted[0].op}: {token} was issued {n} times" for token, n in issued.items() if n > 1)


def a_replaced_holder_writes_nothing(history: History) -> Iterator[str]:
    newest = {
        run_id: Newest((op.ended, token) for token, op in granted if op.tries[-1].begun > history.promoted)
        for run_id, granted in grants(history).items()
    }
    for op in history.ops:
        token = op.arguments.get("token")
        if token is not None and op.ok and op.run_id in newest:
            replaced = newest[op.run_id].before(op.tries[-1].begun)
            if replaced > token:
                yield f"token {replaced} was out: {op}"


def what_was_acknowledged_is_there(history: History) -> Iterator[str]:
    stored = history.stored
    for op in history.kept("complete_step"):
        if stored.steps.get((op.run_id, op.arguments["name"])) != (
            op.arguments["output"],
            op.value[0]["complete_step"],
        ):
            yield f"{stored.steps.get((op.run_id, op.arguments['name']))}: {op}"
    for op in history.kept("record_step", "begin_step"):
        row = op.value[0]
        expected = op.arguments.get("output") if row["outcome"] == "recorded" else row["output"]
        if row["outcome"] in ("recorded", "replay"):
            found = stored.steps.get((op.run_id, op.arguments["name"]), (None,))[0]
            if found != expected:
                yield f"{found}: {op}"
    for op in history.kept("append_event"):
        if stored.notes.get(op.arguments["payload"]["id"]) != [(op.run_id, op.value[0]["append_event"])]:
            yield f"{stored.notes.get(op.arguments['payload']['id'])}: {op}"
    for op in history.kept("set_state"):
        if stored.states.get((op.run_id, op.value[0]["set_state"])) != op.arguments["value"]:
            yield str(op)
    for op in history.kept("record_usage"):
        if op.arguments["response_id"] not in stored.responses:
            yield str(op)
    for op in history.kept("create_child"):
        if stored.children.get((op.run_id, op.arguments["name"])) != op.value[0]["run_id"]:
            yield str(op)
    for op in history.kept("enqueue_run"):
        if op.value[0]["run_id"] not in stored.status:
            yield str(op)
    for op in history.kept("complete_run"):
        if stored.status[op.run_id] != ("completed", op.arguments["result"]):
            yield f"{stored.status[op.run_id]}: {op}"
    for op in history.kept("cancel_run"):
        if stored.status[op.run_id][0] != "cancelled":
            yield f"{stored.status[op.run_id]}: {op}"


def what_was_refused_is_not_there(history: History) -> Iterator[str]:
    stored = history.stored
    outputs = {output["id"] for output, _ in stored.steps.values() if output}
    states = {value["id"] for value in stored.states.values()}
    for op in history.ops:
        if not op.refused:
            continue
        there = {
            "complete_step": lambda given: given["output"]["id"] in outputs,
            "record_step": lambda given: given["output"]["id"] in outputs,
            "append_event": lambda given: given["payload"]["id"] in stored.notes,
            "set_state": lambda given: given["value"]["id"] in states,
            "record_usage": lambda given: given["response_id"] in stored.responses,
        }.get(op.function)
        if there is not None and there(op.arguments):
            yield str(op)


def nothing_is_there_twice_or_unasked(history: History) -> Iterator[str]:
    stored = history.stored
    yield from (f"note {unique}: {places}" for unique, places in stored.notes.items() if len(places) > 1)
    asked = {op.arguments["payload"]["id"] for op in history.of("append_event")}
    yield from (f"note {unique} out of nowhere" for unique in stored.notes.keys() - asked)
    versions = Counter(value["id"] for value in stored.states.values())
    yield from (f"state {unique} is there {times} times" for unique, times in versions.items() if times > 1)
    given = {op.arguments["output"]["id"] for op in history.of("complete_step", "record_step")}
    given |= {op.arguments["output"]["id"] for op in history.of("resolve_review") if "output" in op.arguments}
    yield from (f"{step}: {output}" for step, (output, _) in stored.steps.items() if output["id"] not in given)


def permissions(history: History) -> list[Op]:
    """The calls that were answered with a step to execute. When a client does so is its own affair: one that is stopped
    before it reads the answer executes the step long after it was replaced, and nobody can keep it from that.
    """
    return [op for op in history.kept("begin_step") if op.value[0]["outcome"] == "execute"]


def a_run_is_completed_once(history: History) -> Iterator[str]:
    for run_id, log in history.stored.events.items():
        times = sum(kind == "run.completed" for _, kind, _ in log)
        if times > 1:
            yield f"{run_id} was completed {times} times"
    tokens: dict[str, set[int]] = defaultdict(set)
    for op in history.kept("complete_run"):
        tokens[op.run_id].add(op.arguments["token"])
    yield from (f"{run_id} was completed under {found}" for run_id, found in tokens.items() if len(found) > 1)


def a_completed_step_never_runs_again(history: History) -> Iterator[str]:
    completed = {(op.run_id, op.arguments["name"]): op.ended for op in history.kept("complete_step")}
    for op in permissions(history):
        last = op.tries[-1].begun
        if last > completed.get((op.run_id, op.arguments["name"]), last):
            yield str(op)


def an_unsafe_step_is_repeated_only_if_a_person_says_so(history: History) -> Iterator[str]:
    asked: dict[tuple[str, str], list[Op]] = defaultdict(list)
    for op in history.of("resolve_review"):
        if op.arguments["decision"] == "retry" and not op.refused:
            asked[op.run_id, op.arguments["step"]].append(op)
    permitted: dict[tuple[str, str], list[Op]] = defaultdict(list)
    for op in permissions(history):
        if op.arguments["name"].startswith("unsafe"):
            permitted[op.run_id, op.arguments["name"]].append(op)
    for step, ops in permitted.items():
        for first, second in pairwise(sorted(ops, key=lambda op: (op.arguments["token"], op.begun))):
            between = [op for op in asked[step] if op.begun < second.ended and (not op.ok or op.ended > first.begun)]
            if not between:
                yield f"{step} was to be executed again: {second}"


def a_gate_is_decided_once(history: History) -> Iterator[str]:
    accepted: Counter[tuple[str, str]] = Counter()
    for op in history.kept("decide_gate", "open_gate"):
        place, row = (op.run_id, op.arguments["name"]), op.value[0]
        if row["status"] == "decided" and row["decision"] != history.stored.gates.get(place):
            yield f"{history.stored.gates.get(place)} stands: {op}"
        accepted[place] += bool(row.get("accepted"))
    yield from (f"{place} was decided {times} times" for place, times in accepted.items() if times > 1)


def later_calls_get_higher_numbers(history: History) -> Iterator[str]:
    numbered = history.kept("append_event", "complete_step", "release_run", "complete_run")
    for ops in history.by_run(numbered).values():
        newest = Newest((op.ended, op.value[0][op.function]) for op in ops)
        yield from (str(op) for op in ops if newest.before(op.begun) >= op.value[0][op.function])


def a_reader_misses_nothing(history: History) -> Iterator[str]:
    reads = history.by_run(history.kept("read_events"))
    written = history.by_run(history.kept("append_event", "complete_step", "release_run", "complete_run"))
    for run_id, ops in reads.items():
        log = {seq: (kind, payload) for seq, kind, payload in history.stored.events[run_id]}
        newest = Newest((op.ended, op.value[0][op.function]) for op in written.get(run_id, []))
        for op in ops:
            after, seqs = op.arguments["after"], [row["seq"] for row in op.value]
            if seqs != list(range(after + 1, after + 1 + len(seqs))):
                yield f"a gap: {seqs[:5]}: {op}"
            elif len(seqs) < op.arguments["max"] and after + len(seqs) < newest.before(op.tries[-1].begun):
                yield f"{newest.before(op.tries[-1].begun)} was written before, and is not there: {op}"
            yield from (f"{row}: {op}" for row in op.value if log.get(row["seq"]) != (row["type"], row["payload"]))


def errors_are_expected(history: History) -> Iterator[str]:
    for op in history.ops:
        expected = EXPECTED | ALSO.get(op.function, set())
        if history.crashed or history.promoted != NEVER:
            expected = expected | {"TB007"}  # its start was lost with the last moments of a server
        if history.promoted != NEVER:
            expected = expected | {"TB001", "TB008", "TB012"}
        for attempt in op.tries:
            if attempt.kind == "error" and attempt.value not in expected:
                yield f"{attempt.value}: {op}"


RULES: list[Callable[[History], Iterator[str]]] = [
    tokens_only_grow,
    a_replaced_holder_writes_nothing,
    what_was_acknowledged_is_there,
    what_was_refused_is_not_there,
    nothing_is_there_twice_or_unasked,
    a_run_is_completed_once,
    a_completed_step_never_runs_again,
    an_unsafe_step_is_repeated_only_if_a_person_says_so,
    a_gate_is_decided_once,
    later_calls_get_higher_numbers,
    a_reader_misses_nothing,
    errors_are_expected,
]
