"""Who takes part in a schedule: each actor is a value that says what it may call now, and what it is afterwards.

A schedule is a sequence of calls, each of which is one transaction. Nothing here talks to a database, so an actor can
be put back to where it was, as the database can.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import NamedTuple, Protocol

PAST = "clock_timestamp() - interval '1 second'"


class Call(NamedTuple):
    """One call: what it is in a report, its statement, and with which token it writes, or of which invocation."""

    actor: str
    what: str
    statement: str
    token: int | None = None


class Answer(NamedTuple):
    """``ok`` or the SQLSTATE, and the columns of the one row."""

    code: str
    row: tuple[str | None, ...]


class Actor(Protocol):
    def calls(self, known: Known) -> list[Call]:
        """What it may do next; nothing when it is done."""
        ...

    def after(self, call: Call, answer: Answer) -> list[Actor]:
        """What may become of it: more than one when it may crash, or lose the answer on the way."""
        ...


@dataclass(frozen=True)
class Known:
    """What the answers so far say about the run: what a contradiction of is a violation."""

    token: int = 0
    attempt: int = 0
    status: str = "pending"
    lapsed: bool = False
    marked: bool = False  # reconcile has seen that lease run out
    requests: tuple[tuple[str, int], ...] = ()
    outputs: tuple[tuple[str, str], ...] = ()
    running: str = ""  # the request that begin_step told to execute the unsafe step, until a person decides
    begun: int = 0  # the token under which that was
    in_review: bool = False
    gate: str = "none"  # none, pending, overdue, or its decision
    overdue: bool = False
    last_seq: int = 1
    queued: bool = False  # the run belongs to a queue: where another one is pending, it is queued
    told: int = 0  # the number of the latest invocation
    told_at: int = -1  # the last token when the endpoint was told
    in_flight: bool = False  # that is not so long ago that it would be told again

    @property
    def free(self) -> str:
        """The status of a run that whoever comes may take up."""
        return "queued" if self.queued else "pending"

    @property
    def is_told(self) -> bool:
        """The endpoint is to begin the run, and has its time for it."""
        return self.in_flight and self.told_at == self.token


@dataclass(frozen=True)
class Worker:
    """An agent: a plain step, an unsafe one, a gate for which it is suspended, the end.

    Attributes:
        polls: how often it asks for the lease.
        crashes: whether it may die after any of its calls.
        forgets: how many answers may be lost on their way, so that it makes the same call again.
        records: it stores the plain step with one call instead of two.
        stubborn: how many more calls it makes after it was told that the lease is lost.
        quits: whether it may give the run up instead of going on.
        fails: whether the unsafe step may fail, and the run with it.
        claims: it takes what its queue gives instead of asking for the run.
    """

    name: str
    polls: int = 1
    crashes: bool = False
    forgets: int = 0
    records: bool = False
    stubborn: int = 0
    quits: bool = False
    fails: bool = False
    claims: bool = False
    at: str = "acquire"
    token: int = 0
    request: int = 1
    again: Call | None = None
    first: Answer | None = None  # the answer that was lost

    def calls(self, known: Known) -> list[Call]:
        if self.again is not None:
            return [self.again]
        if self.at == "done" or (self.at == "acquire" and self.polls == 0):
            return []
        if self.at == "acquire":
            asks = "claim" if self.claims else self.at
            return [Call(self.name, asks, self._statement(asks))]
        may = [self.at]
        if self.quits:
            may.append("release")
        if self.fails and self.at == "complete b":
            may.append("break b")
        return [Call(self.name, what, self._statement(what), self.token) for what in may]

    def _statement(self, what: str) -> str:
        held = f"'r', {self.token}"
        request = f"request_id => '{self.name}{self.request}'"
        outcome, answer = {
            "claim": (  # one row, also where nothing was granted
                "case count(*) when 0 then 'nothing' else 'granted' end, max(token)",
                f"claim_runs(array['q'], '{self.name}', ttl => '1 hour', {request})",
            ),
            "acquire": ("outcome, token, attempt", f"acquire_run('r', '{self.name}', '1 hour', {request})"),
            "begin a": ("outcome, output", f"begin_step({held}, 'a', '1', {request})"),
            "complete a": ("*", f"complete_step({held}, 'a', '\"a of {self.name}\"')"),
            "record a": ("outcome, output", f"record_step({held}, 'a', '1', '\"a of {self.name}\"')"),
            "begin b": ("outcome, output", f"begin_step({held}, 'b', side_effects => '{{send}}', {request})"),
            "complete b": ("*", f"complete_step({held}, 'b', '\"b of {self.name}\"')"),
            "break b": ("decision", f"fail_step({held}, 'b', '\"no\"')"),
            "open": ("status, decision", f"open_gate({held}, 'g', timeout => '1 hour', default_decision => 'late')"),
            "suspend": ("*", f"suspend_run({held}, 'g')"),
            "complete": ("*", f"complete_run({held}, '\"done\"')"),
            "fail": ("status", f"fail_run({held}, '\"no\"')"),
            "release": ("*", f"release_run({held})"),
        }[what]
        return f"select {outcome} from tidebase.{answer}"

    def after(self, call: Call, answer: Answer) -> list[Actor]:
        if self.again is not None:
            return [replace(self, again=None, first=None)._went_on(call, answer)]
        next_: list[Actor] = [self._went_on(call, answer)]
        if self.forgets > 0:
            next_.append(replace(self, forgets=self.forgets - 1, again=call, first=answer))
        if self.crashes and next_[0] != replace(self, at="done"):
            next_.append(replace(self, at="done"))
        return next_

    def _went_on(self, call: Call, answer: Answer) -> Worker:
        new = replace(self, request=self.request + 1)
        if answer.code != "ok":
            return (
                replace(new, stubborn=self.stubborn - 1)
                if self.stubborn > 0 and self.at != "acquire"
                else replace(new, at="done")
            )
        outcome = answer.row[0]
        if call.what in ("release", "fail"):
            return replace(new, at="acquire")
        if call.what == "break b":
            return replace(new, at="fail")
        if self.at == "acquire":
            if outcome == "granted":
                return replace(
                    new,
                    at="record a" if self.records else "begin a",
                    token=int(answer.row[1] or 0),
                    polls=self.polls - 1,
                )
            return replace(new, at="done" if outcome == "completed" else "acquire", polls=self.polls - 1)
        if outcome == "review":
            return replace(new, at="acquire")
        if self.at == "suspend":
            return replace(new, at="acquire" if outcome == "t" else "open")
        following = {
            "begin a": "complete a" if outcome == "execute" else "begin b",
            "complete a": "begin b",
            "record a": "begin b",
            "begin b": "complete b" if outcome == "execute" else "open",
            "complete b": "open",
            "open": "complete" if outcome == "decided" else "suspend",
            "complete": "done",
        }
        return replace(new, at=following[self.at])


@dataclass(frozen=True)
class Heartbeat:
    """Renews the lease once, with a token that was ever granted: a thread of whoever holds it, or held it once."""

    times: int = 1

    def calls(self, known: Known) -> list[Call]:
        tokens = range(1, known.token + 1) if self.times else ()
        return [
            Call(
                f"heartbeat of {token}", "renew", f"select tidebase.renew_lease('r', {token}, '1 hour') > now()", token
            )
            for token in tokens
        ]

    def after(self, call: Call, answer: Answer) -> list[Actor]:
        return [replace(self, times=self.times - 1)]


#: Of an hour, as all that passes only when the clock says so: schedules that begin alike are walked for minutes.
REPORT = """
select set_config('test.report', tidebase.finish_invocation('r', {}, true, 202), true);
update tidebase.invocations set next_at = next_at + interval '1 hour'
where status = 'sent' and next_at > clock_timestamp();
update tidebase.queue_entries e set ready_at = i.next_at, turn = i.next_at
from tidebase.invocations i where i.run_id = e.run_id and e.place is null;
select current_setting('test.report')"""


@dataclass(frozen=True)
class Dispatcher:
    """Tells the endpoint of the queue of the run, and reports that it answered; or dies in between."""

    polls: int = 2
    crashes: bool = False
    told: int = 0

    def calls(self, known: Known) -> list[Call]:
        if self.told:
            return [Call("dispatcher", "report", REPORT.format(self.told), self.told)]
        ask = "select coalesce(max(invocation), 0) from tidebase.claim_invocations(ttl => '1 hour')"
        return [Call("dispatcher", "tell", ask)] if self.polls else []

    def after(self, call: Call, answer: Answer) -> list[Actor]:
        if self.told:
            return [replace(self, told=0)]
        told = replace(self, polls=self.polls - 1, told=int(answer.row[0] or 0) if answer.code == "ok" else 0)
        return [told, replace(told, told=0)] if self.crashes and told.told else [told]


@dataclass(frozen=True)
class Others:
    """Whoever has a list of things to do, in any order and whenever it makes sense: all of them, or just one."""

    name: str
    todo: tuple[str, ...]
    just_one: bool = False

    def calls(self, known: Known) -> list[Call]:
        wanted = dict.fromkeys(self.todo)
        return [Call(self.name, what, STATEMENTS[what]) for what in wanted if SENSIBLE.get(what, _always)(known)]

    def after(self, call: Call, answer: Answer) -> list[Actor]:
        left = [] if self.just_one else list(self.todo)
        if left:
            left.remove(call.what)
        return [replace(self, todo=tuple(left))]


def _always(known: Known) -> bool:
    return True


STATEMENTS = {
    "the lease runs out": f"update tidebase.run_heads set lease_expires_at = {PAST}, due_at = {PAST}",
    "the gate's time is over": f"update tidebase.gates set timeout_at = {PAST};"
    f" update tidebase.run_heads set due_at = {PAST}",
    "the deadline passes": f"update tidebase.run_heads set deadline_at = {PAST}, due_at = {PAST}",
    "the endpoint's time is over": f"update tidebase.invocations set next_at = {PAST};"
    f" update tidebase.queue_entries set ready_at = {PAST}, turn = {PAST} where place is null;"
    f" update tidebase.endpoints set next_at = {PAST}",
    "enqueue again": "select run_id, deduplicated from tidebase.enqueue_run('test', queue => 'q', run_id => 'r')",
    "reconcile": "select runs, leases, deadlines, gates from tidebase.reconcile()",
    "cancel": "select tidebase.cancel_run('r')",
    "approve": "select accepted, decision from tidebase.decide_gate('r', 'g', 'approved', request_id => '1')",
    "reject": "select accepted, decision from tidebase.decide_gate('r', 'g', 'rejected', request_id => '2')",
    "retry b": "select tidebase.resolve_review('r', 'b', 'retry')",
    "accept b": "select tidebase.resolve_review('r', 'b', 'accept', '\"b of a person\"')",
    "fail b": "select tidebase.resolve_review('r', 'b', 'fail')",
}

#: Time passes only where it changes something: everything else may be called at any moment.
SENSIBLE = {
    "the lease runs out": lambda known: known.status == "running" and not known.lapsed,
    "the gate's time is over": lambda known: known.gate == "pending",
    "the endpoint's time is over": lambda known: known.is_told,
    "the deadline passes": lambda known: known.status not in ("completed", "cancelled") and not known.overdue,
}


@dataclass(frozen=True)
class Cast:
    """Who takes part, and what it is about: a run that somebody asks for by its id, or one of a queue."""

    name: str
    actors: tuple[Actor, ...] = field(default_factory=tuple)
    queued: bool = False
    pushed: bool = False  # the queue has an endpoint

    @property
    def beginning(self) -> str:
        """What there is before anybody comes."""
        if not self.queued:
            return "select tidebase.create_run('test', run_id => 'r')"
        queue = "select tidebase.put_queue('q', endpoint => 'https://endpoint.test'); " if self.pushed else ""
        return f"{queue}select tidebase.enqueue_run('test', queue => 'q', run_id => 'r')"


def clock(*todo: str) -> Others:
    return Others("clock", todo)


LAPSE = "the lease runs out"
EXPIRES = "the gate's time is over"
DEADLINE = "the deadline passes"
SILENT = "the endpoint's time is over"
RECONCILER = Others("reconciler", ("reconcile",))
APPROVER = Others("approver", ("approve",))
REVIEWER = Others("reviewer", ("retry b", "accept b", "fail b"), just_one=True)
CANCELLER = Others("canceller", ("cancel",))
A = Worker("A", polls=2, crashes=True)
B = Worker("B", polls=2)
ONCE = Worker("B", polls=1)
CLAIMER = Worker("B", claims=True)
RECORDER = Worker("B", polls=2, records=True, crashes=True)

#: Each is enumerated to its last schedule; the first ones whenever the tests run.
CASTS = {
    cast.name: cast
    for cast in (
        Cast("two leases run out", (A, RECORDER, clock(LAPSE, LAPSE))),
        Cast("a canceller", (A, B, clock(LAPSE), CANCELLER)),
        Cast("a canceller and an approver", (A, ONCE, clock(LAPSE), CANCELLER, APPROVER)),
        Cast("a heartbeat", (A, B, clock(LAPSE), Heartbeat())),
        Cast("a release", (Worker("A", polls=2, forgets=1, quits=True), ONCE, clock(LAPSE), RECONCILER)),
        Cast("a deadline", (A, B, clock(DEADLINE, LAPSE), RECONCILER)),
        Cast("a reviewer", (A, B, clock(LAPSE), REVIEWER)),
        Cast("errors", (Worker("A", polls=2, fails=True, forgets=1), B, clock(LAPSE), REVIEWER)),
        Cast("everybody", (Worker("A", crashes=True), ONCE, clock(LAPSE), RECONCILER, CANCELLER, APPROVER)),
        Cast(
            "everybody at any time",
            (A, Worker("B", crashes=True), clock(LAPSE, EXPIRES), RECONCILER, CANCELLER, APPROVER),
        ),
        Cast("two claimers", (Worker("A", crashes=True, claims=True), CLAIMER, clock(LAPSE)), queued=True),
        Cast(
            "claimers",
            (
                Worker("A", crashes=True, claims=True),
                Worker("B", polls=2, claims=True),
                clock(LAPSE),
                Others("application", ("enqueue again", "cancel")),
            ),
            queued=True,
        ),
        Cast(
            "claimers whose answers are lost",
            (Worker("A", polls=2, forgets=1, quits=True, claims=True), CLAIMER, clock(LAPSE), RECONCILER),
            queued=True,
        ),
        Cast(
            "a claimer, who asks by the id, and a gate in time",
            (Worker("A", polls=2, crashes=True, claims=True), ONCE, clock(LAPSE, EXPIRES), RECONCILER, APPROVER),
            queued=True,
        ),
        Cast(
            "an endpoint",
            (Dispatcher(polls=3, crashes=True), Worker("B", polls=2, crashes=True), clock(LAPSE, SILENT)),
            queued=True,
            pushed=True,
        ),
        Cast(
            "an endpoint, and whoever comes",
            (Dispatcher(), Worker("A", quits=True), ONCE, clock(LAPSE, SILENT, EXPIRES), RECONCILER, APPROVER),
            queued=True,
            pushed=True,
        ),
        Cast("a reconciler", (A, ONCE, clock(LAPSE), RECONCILER, APPROVER)),
        Cast("two approvers", (A, ONCE, clock(LAPSE), Others("approver", ("approve", "reject")))),
        Cast("a gate in time", (A, B, clock(EXPIRES), APPROVER, RECONCILER)),
        Cast("lost answers", (Worker("A", polls=2, forgets=1), ONCE, clock(LAPSE), APPROVER)),
        Cast(
            "stubborn zombies",
            (Worker("A", polls=1, stubborn=2), Worker("B", polls=2, stubborn=2), clock(LAPSE, LAPSE), APPROVER),
        ),
    )
}
