"""Random sequences of calls are answered by the database as by a model of it in plain Python (``support/model.py``).

Every call is made to both. What comes back is compared, and after it all that can be observed of every run; and the
invariants of the rows are checked. Few runs and few names, so that the calls collide. ``TIDEBASE_TORTURE_EXAMPLES=n``
makes more sequences than the ordinary test does.
"""

from __future__ import annotations

import itertools
import os
import time
from collections import Counter
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from random import randrange
from typing import Any, ClassVar

import psycopg
import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

from .conftest import long, on_newest
from .probes.support import Connection, attempt, call, call_rows
from .support.amounts import SEQUENCES
from .support.model import FINAL, LOGIN, Reference, Row, Run
from .test_mechanisms import LIVE, Edit

STEPS = 40
BATCH = 5  # Hypothesis makes most of its examples by changing earlier ones a little; here all are to be different
EXAMPLES = int(os.environ.get("TIDEBASE_TORTURE_EXAMPLES", SEQUENCES))
JSON = {"capability", "input", "output", "error", "result"}
HOURS = {"ttl", "timeout", "duration", "retry_delay", "delay", "every"}
LISTS = {
    "renew_leases",
    "read_events",
    "load_checkpoints",
    "claim_runs",
    "enqueue_runs",
}  # functions that return more than one row
UNREPEATABLE = {
    "claim_runs",
    "enqueue_run",
    "enqueue_runs",
    "move_run",
    "append_event",
    "set_state",
    "patch_state",
    "save_state",
    "restore_state",
    "record_usage",
    "set_budget",
}

MUTANTS = [
    Edit("fence", "and h.lease_token = fence.token", ""),
    Edit("is_taken", LIVE, "return false and"),
    Edit("settle_gate", "head.status = 'waiting'", "false"),
]

OBSERVE = """
select o.run_id, o.status, o.lease_token as token, o.holder, o.waiting_for, o.steps_completed, o.result,
  array(select a.outcome from tidebase.run_attempts a where a.run_id = o.run_id order by a.attempt) as attempts,
  (select jsonb_object_agg(s.name, jsonb_build_array(s.status, s.attempt, s.lease_token, s.decision, s.output))
   from tidebase.step_timeline s where s.run_id = o.run_id) as steps,
  (select jsonb_object_agg(g.name, jsonb_build_array(g.kind, g.status, g.decision, g.decided_by))
   from tidebase.gate_overview g where g.run_id = o.run_id) as gates,
  (select jsonb_object_agg(v.stream, v.number) from (
     select stream, count(*) as number from tidebase.state_versions where run_id = o.run_id group by 1) v) as streams,
  (select jsonb_agg(jsonb_build_array(e.type, e.payload) order by e.seq) from tidebase.events e
   where e.run_id = o.run_id and e.seq > known.seq) as news,
  (select jsonb_agg(i.invariant) from tidebase_private.check_invariants(o.run_id) i) as broken
from unnest(%s::text[], %s::bigint[]) as known (run_id, seq) join tidebase.run_overview o on o.run_id = known.run_id
"""

PASS_TIME = """
with gates as (update tidebase.gates set timeout_at = timeout_at - %(hours)s where run_id = any (%(runs)s)),
  attempts as (update tidebase.attempts set lapsed_at = lapsed_at - %(hours)s where run_id = any (%(runs)s))
  , entries as (update tidebase.queue_entries set ready_at = ready_at - %(hours)s where run_id = any (%(runs)s))
update tidebase.run_heads
set lease_expires_at = lease_expires_at - %(hours)s, available_at = available_at - %(hours)s,
    deadline_at = deadline_at - %(hours)s, due_at = due_at - %(hours)s
where run_id = any (%(runs)s)
"""


#: So that no two times have the same name, a schedule's begin a second earlier whenever time has passed.
PASS_TIME_OF_SCHEDULES = """
update tidebase.schedules
set fired_at = fired_at - %(hours)s, anchor = anchor - %(hours)s - interval '1 second',
    next_at = next_at - %(hours)s - interval '1 second'
where schedule = any (%(names)s)
"""

FIRED = """
select r.run_id, s.schedule,
  extract(epoch from replace(r.run_id, 'sched:' || s.schedule || ':', '')::timestamptz - s.anchor)
from tidebase.schedules s join tidebase.runs r on starts_with(r.run_id, 'sched:' || s.schedule || ':')
where s.schedule = any (%s) and r.run_id <> all (%s)
"""


def observable(run: Run) -> Row:
    """Of a run of the model what ``OBSERVE`` says of one in the database."""
    steps = {n: [s.status, s.attempt, s.token, s.decision, s.output] for n, s in run.steps.items()}
    gates = {n: [g.kind, g.status, g.decision, g.decided_by] for n, g in run.gates.items()}
    return {
        "status": run.status,
        "token": run.token,
        "holder": run.holder,
        "waiting_for": run.waiting_for,
        "steps_completed": sum(s.status == "completed" for s in run.steps.values()),
        "result": run.result,
        "attempts": run.attempts,
        "steps": steps or None,
        "gates": gates or None,
        "streams": {name: len(versions) for name, versions in run.streams.items()} or None,
    }


def matches(expected: Any, got: Any) -> bool:
    if expected is ...:
        return got is not None
    if isinstance(expected, dict) and isinstance(got, dict):
        return all(matches(value, got.get(name)) for name, value in expected.items())
    return bool(expected == got)


def show(value: Any) -> str:
    """An argument, as one types it in psql."""
    if isinstance(value, Jsonb):
        return f"'{psycopg.types.json.json.dumps(value.obj)}'"  # type: ignore[attr-defined]
    if isinstance(value, list):
        return f"array[{', '.join(map(show, value))}]"
    if isinstance(value, datetime):
        return f"now() + '{round((value - datetime.now(timezone.utc)) / timedelta(hours=1))} hours'"
    return "null" if value is None else str(value) if isinstance(value, int) else f"'{value}'"


RUNS = st.sampled_from(["a"] * 6 + ["a/c"] * 4 + ["f"] * 3 + ["b"] * 2 + ["p", "q", "a!", "a/c!", "nobody"])
QUEUES = st.sampled_from(["one", "one", "two"])
JOBS = st.fixed_dictionaries(
    {
        "run_id": st.sampled_from(["p", "q", "r", "s", "a"]),
        "workflow": st.sampled_from("wwwv"),
        "queue": QUEUES,
        "input": st.sampled_from([None, 1, 1, 2]),
        "dedupe_key": st.sampled_from([None, "d", "d"]),
        "on_duplicate": st.sampled_from(["return", "return", "replace", "reject"]),
        "delay": st.sampled_from([None, None, 1, 2]),
        "max_attempts": st.sampled_from([1, 2]),
        "retry_delay": st.sampled_from([0, 1]),
        "deadline": st.sampled_from([None, None, 2]),
    }
)
SCHEDULES = st.sampled_from(["daily", "daily", "often"])
TOKENS = st.sampled_from(["held"] * 12 + ["current", "previous", "next", None])
LONGER = st.just(3)  # than any grant or renewal before: reconcile does not see a shorter one in time, see below
PLACES = st.integers(0, 5)
SURE = st.sampled_from([True, False, False, False])  # where a run ends there is not much more to be seen
NAMES = st.sampled_from(["x", "y"])
GATES = st.sampled_from(["x", "x", "y"])
SECRETS = ["right", "wrong", "ada's", "bob's", f"{LOGIN}'s"]
INPUTS = st.sampled_from([None, 1, 1])
OUTPUTS = st.sampled_from([None, 1, {"k": 2}])
LIMITS = st.sampled_from([None, None, None, None, 20, 10, 0])
REQUESTS = st.sampled_from([None, "q", "r"])
STREAMS = st.sampled_from(["main", "main", "plan"])
LABELS = st.sampled_from(["one", "two"])
VERSIONS = st.sampled_from([None, None, None, 0, 1, 2])
WHICH = st.sampled_from(
    [{"version": 1}, {"version": 2}, {"label": "one"}, {"label": "two"}, {}, {"version": 1, "label": "one"}]
)
DOCUMENTS = st.recursive(
    st.sampled_from([None, 1, "a", "ab", [1], [1, 2]]),
    lambda inner: st.dictionaries(st.sampled_from("kl"), inner, max_size=2),
    max_leaves=4,
)
CONTRACTS = st.sampled_from(
    [
        {},
        {"retries": 1},
        {"replay": "manual"},
        {"replay": "never"},
        {"side_effects": ["card"]},
        {"side_effects": ["card"], "retries": 1, "replay": "never"},
        {"side_effects": ["card"], "idempotency_key": "k"},
        {"side_effects": ["read"], "retries": 1, "replay": "manual"},
    ]
)


Call = tuple[str, Row]


class Violation(AssertionError):
    """The database and the model differ; with every call up to there, as one types them in psql."""


def running_steps(run: Run) -> dict[str, Any]:
    return {n: s for n, s in run.steps.items() if s.status == "running" and run.is_held(s.token)}


def reviews(run: Run) -> dict[str, Any]:
    return {n: s for n, s in run.steps.items() if s.status == "review"}


def open_gates(run: Run) -> dict[str, Any]:
    return {n: g for n, g in run.gates.items() if g.status == "pending"}


class Machine(RuleBasedStateMachine):
    """Calls the database and the model alike."""

    numbers = itertools.count(1)
    tally: ClassVar[Counter[str]] = Counter()

    def __init__(self, connection: Connection) -> None:
        super().__init__()
        self.connection = connection
        self.model = Reference()
        self.prefix = f"{os.getpid()}.{next(self.numbers)}."
        self.ids: dict[str, str] = {}  # of children: the database makes them up, and the model says parent/edge
        self.seen: dict[str, int] = {}
        self.calls: list[Call] = []
        self.transcript: list[str] = []
        self.failed = False
        self.repeats = True  # every fourth call is made twice
        self.tally["sequences"] += 1

    # What every rule does

    def pick(self, run: str) -> str:
        """A run: another one while it is not there, or over (but for a!, who would not do without it)."""
        alive = [one for one in self.model.runs if self.model.runs[one].status not in FINAL]
        return run.strip("!") if run in alive or run.endswith(("!", "nobody")) or not alive else alive[0]

    def spot(
        self, run: str, name: str, place: int, fits: Callable[[Run], Row], make: Callable[[str], Any]
    ) -> tuple[str, str]:
        """A run and the name of a part of it that fits; one is made if there is none. Place 0: these, whatever."""
        for _ in range(2 if place else 0):
            alive = [(one, run) for one, run in self.model.runs.items() if run.status not in FINAL]
            spots = [(run_id, found) for run_id, run in alive for found in fits(run)]
            if spots:
                return spots[place % len(spots)]
            make(self.pick(run))
        return self.pick(run), name

    def execute(self, run: str, name: str, contract: Row, *then: str) -> None:
        """Begins a step; then: fail (it fails), die (its worker dies, and another one begins it)."""
        self.work("begin_step", run, "held", name=name, input=1, **contract)
        if "fail" in then:
            self.work("fail_step", run, "current", name=name, error=1, retryable=True)
        elif "die" in then:
            self.pass_time_by(2)
            self.work("begin_step", run, "held", name=name, input=1, **contract)

    def id(self, run: str) -> str:
        return self.ids.get(run, self.prefix + run)

    def named(self, value: Any) -> Any:
        """The value with the model's names of runs in it."""
        if isinstance(value, dict):
            return {name: self.named(member) for name, member in value.items()}
        if isinstance(value, str):
            return {made: run for run, made in self.ids.items()}.get(value, value.removeprefix(self.prefix))
        return value

    def sql(self, function: str, arguments: Row) -> Row:
        """The arguments as the database takes them; in the model time is hours, and a secret is right or wrong."""
        given: Row = {}
        for name, value in arguments.items():
            if name in ("value", "patch") or (name in JSON and value is not None):
                given[name] = Jsonb(value)
            elif name in ("run_id", "new_run_id"):
                given[name] = self.id(value)
            elif name in ("queue", "to_queue") or (name == "name" and function.endswith("_schedule")):
                given[name] = self.prefix + value
            elif name == "queues":
                given[name] = [self.prefix + queue for queue in value]
            elif name == "runs":
                given[name] = Jsonb([self.plain(self.sql("enqueue_run", run)) for run in value])
            elif name == "run_ids":
                given[name] = [self.id(run) for run in value]
            elif name in HOURS and value is not None:
                given[name] = f"{value} hours"
            elif name == "deadline" and value is not None:
                given[name] = datetime.now(timezone.utc) + timedelta(hours=value)
            elif name == "limit":
                given |= {"budget": Jsonb({"tokens": value})} if value is not None else {}
            elif name == "secret" and value not in (None, "wrong"):
                query = "select tidebase_private.gate_secret(tidebase_private.find_gate(%s, %s), %s)"
                voter = None if value == "right" else value.removesuffix("'s")
                given[name] = self.connection.execute(query, (given["run_id"], arguments["name"], voter)).fetchone()[0]  # type: ignore[index]
            elif name == "request_id" and function == "claim_runs":
                given[name] = value and self.prefix + value  # of which there is one list for all queues
            elif name not in ("child_id", "given"):
                given[name] = value
        return given

    def plain(self, given: Row) -> Row:
        """As members of an object."""
        plain = {name: value.obj if isinstance(value, Jsonb) else value for name, value in given.items()}
        return {
            name: value.isoformat() if isinstance(value, datetime) else value
            for name, value in plain.items()
            if value is not None
        }

    def fail(self, what: str) -> None:
        self.failed = True
        raise Violation("\n".join([what, "", *self.transcript]))

    def ask(self, function: str, arguments: Row) -> tuple[str, Any]:
        """What the database answers."""
        given = self.sql(function, arguments)
        named = {
            name: show(arguments.get(name) if name.startswith(("run_id", "new_")) else v) for name, v in given.items()
        }
        shown = ", ".join(f"{name} => {text}" for name, text in named.items() if text != "null" or name == "token")
        self.transcript.append(f"select * from tidebase.{function}({shown});")
        self.tally["calls"] += 1
        try:
            rows = call_rows(self.connection, function, **given)
        except psycopg.Error as error:
            self.transcript.append(f"  -- {error.sqlstate}: {error.diag.message_primary}".replace(self.prefix, ""))
            return error.sqlstate or "none", None
        if function == "create_child":
            self.ids[arguments["child_id"]] = rows[0]["run_id"]
        self.name_fired()
        if function == "read_events":
            answer: Any = [row["type"] for row in rows]
        elif function == "renew_leases":
            answer = sorted(self.named(row["run_id"]) for row in rows)
        elif function == "claim_runs":
            answer = sorted([self.named(row["run_id"]), row["token"]] for row in rows)
        elif function == "enqueue_runs":
            answer = [self.named(row) for row in rows]
        elif function == "load_checkpoints":
            answer = sorted((row["name"], row["output"]) for row in rows)
        else:
            answer = self.named(rows[0][function] if rows[0].keys() == {function} else rows[0])
        known = (
            {k: v for k, v in answer.items() if v is not None and not isinstance(v, datetime)}
            if isinstance(answer, dict)
            else answer
        )
        self.transcript.append(f"  -- {known}")
        return "ok", answer

    def name_fired(self) -> None:
        """Runs that a schedule has made have the name of its time, which in the model is an hour."""
        names = [self.prefix + name for name in self.model.schedules]
        if not names:
            return
        for made, schedule, seconds in self.connection.execute(FIRED, [names, [*self.ids.values()]]).fetchall():
            name = schedule.removeprefix(self.prefix)
            self.ids[f"sched:{name}:{self.model.schedules[name]['anchor'] + round(seconds / 3600)}"] = made

    def do(self, function: str, **arguments: Any) -> None:
        """One call, to both."""
        if function == "create_child":
            arguments["child_id"] = f"{arguments['run_id']}/{arguments['name']}"
        self.calls.append((function, arguments))
        got = self.ask(function, arguments)
        if function == "claim_runs":
            arguments["given"] = [run_id for run_id, _ in got[1] or ()]
        expected = self.model.call(function, **arguments)
        self.tally[f"{function}: {expected[0]}"] += 1
        if expected[0] != got[0] or not matches(expected[1], got[1]):
            self.fail(f"{function} was answered {got}, not {expected}")
        self.compare()
        if self.repeats and len(self.calls) % 4 == 0:
            self.repeat(function, arguments)

    def repeat(self, function: str, arguments: Row) -> None:
        """The call once more, since its answer was lost: nothing may come of it."""
        before = {name: len(run.log) for name, run in self.model.runs.items()}
        self.do(function, **arguments)
        after = {name: len(run.log) for name, run in self.model.runs.items()}
        if after != before and (arguments.get("request_id") or function not in UNREPEATABLE):
            self.fail(f"{function} was called again, and wrote again")

    def compare(self) -> None:
        """All that can be observed, of every run."""
        runs = self.model.runs
        seen = ([self.id(run) for run in runs], [self.seen.get(run, 0) for run in runs])
        with self.connection.cursor(row_factory=dict_row) as cursor:
            rows = {self.named(row.pop("run_id")): row for row in cursor.execute(OBSERVE, seen).fetchall()}
        fired = {name for name in self.ids if name.startswith("sched:")}
        if rows.keys() != runs.keys() or not fired <= runs.keys():
            self.fail(f"there are the runs {list(rows)} and {fired}, not {list(runs)}")
        for name, run in runs.items():
            row, news, wanted = rows[name], rows[name].pop("news") or [], run.log[self.seen.get(name, 0) :]
            if broken := row.pop("broken"):
                self.fail(f"run {name} breaks invariants: {broken}")
            differences = {what: (row[what], value) for what, value in observable(run).items() if row[what] != value}
            if differences:
                self.fail(f"run {name} is not as expected: {differences} (database, model)")
            same = len(news) == len(wanted) and all(
                type == found and matches(payload, self.named(stored))
                for (type, payload), (found, stored) in zip(wanted, news, strict=True)
            )
            if not same:
                self.fail(f"the log of {name} goes on with {news}, not with {wanted}")
            self.seen[name] = len(run.log)

    def write(self, run: str, stream: str) -> None:
        for value in ({"k": 1}, [1, {"k": 2}]):
            self.work("set_state", run, "held", stream=stream, value=value)
        self.work("save_state", run, "current", stream=stream, label="one")

    def open(self, run: str, name: str, place: int) -> None:
        given = [{}, {"timeout": 1}, {"required_approvals": 2}][place % 3]
        self.work("open_gate", run, "held", name=name, prompt="p", **given)

    def token(self, run: str, which: Any) -> int | None:
        """The token of a lease, as a caller has it; ``held`` takes the lease first, if it is free."""
        found = self.model.runs.get(run)
        if which == "held" and found is not None and found.status in ("pending", "queued", "failed", "waiting"):
            self.do("acquire_run", run_id=run, holder="ada", ttl=1)
        current = self.model.runs[run].token if run in self.model.runs else 0
        return None if which is None else current + {"held": 0, "current": 0, "previous": -1, "next": 1}[which]

    def work(self, function: str, run: str, which: Any, **arguments: Any) -> None:
        """A call that carries a token."""
        run = self.pick(run)
        self.do(function, run_id=run, token=self.token(run, which), **arguments)

    # The rules: one for a function

    @initialize(attempts=st.sampled_from([1, 2, 3]), limit=LIMITS)
    def begin(self, attempts: int, limit: int | None) -> None:
        given = {"max_attempts": attempts, "retry_delay": 0, "limit": limit}
        self.do("create_run", run_id="a", workflow="w", input=1, **given)

    @rule(hours=st.sampled_from([1, 2]))
    def pass_time(self, hours: int) -> None:
        self.pass_time_by(hours)

    def pass_time_by(self, hours: int) -> None:
        """Leases run out, gates time out, deadlines pass: every moment that is stored moves into the past."""
        self.calls.append(("pass_time", {"hours": hours}))
        self.transcript.append(f"-- {hours} h go by")
        self.model.clock += hours
        self.connection.execute(
            PASS_TIME, {"hours": timedelta(hours=hours), "runs": [self.id(run) for run in self.model.runs]}
        )
        names = [self.prefix + name for name in self.model.schedules]
        self.connection.execute(PASS_TIME_OF_SCHEDULES, {"hours": timedelta(hours=hours), "names": names})
        self.compare()

    @precondition(lambda self: self.calls)
    @rule(back=st.integers(1, 5))
    def again(self, back: int) -> None:
        """A call is made again when others have been made meanwhile, by whoever has not heard of them."""
        function, arguments = self.calls[-1 - back % len(self.calls)]
        if function != "pass_time":
            self.do(function, **arguments)

    @rule(run=st.sampled_from("ab"), workflow=st.sampled_from("wwwv"), input=INPUTS, attempts=st.sampled_from([1, 2]),
          delay=st.sampled_from([0, 1]), deadline=st.sampled_from([None, 2]), limit=LIMITS)  # fmt: skip
    def create_run(
        self, run: str, workflow: str, input: Any, attempts: int, delay: int, deadline: int | None, limit: int | None
    ) -> None:
        given = {"max_attempts": attempts, "retry_delay": delay, "deadline": deadline, "limit": limit}
        self.do("create_run", run_id=run, workflow=workflow, input=input, **given)

    @rule(run=RUNS, token=TOKENS, name=st.sampled_from("ccd"), workflow=st.sampled_from("wwwv"), input=INPUTS)
    def create_child(self, run: str, token: Any, name: str, workflow: str, input: Any) -> None:
        self.work("create_child", run, token, name=name, workflow=workflow, input=input)

    @rule(run=RUNS, holder=st.sampled_from(["ada", "bob"]), ttl=st.sampled_from([1, 2]), request=REQUESTS)
    def acquire_run(self, run: str, holder: str, ttl: int, request: str | None) -> None:
        self.do("acquire_run", run_id=self.pick(run), holder=holder, ttl=ttl, request_id=request)

    @rule(run=RUNS, token=TOKENS, ttl=LONGER)
    def renew_lease(self, run: str, token: Any, ttl: int) -> None:
        self.work("renew_lease", run, token, ttl=ttl)

    @rule(leases=st.lists(st.tuples(RUNS, TOKENS), max_size=3), ttl=LONGER)
    def renew_leases(self, leases: list[tuple[str, Any]], ttl: int) -> None:
        tokens = [self.token(self.pick(run), token) for run, token in leases]
        self.do("renew_leases", run_ids=[self.pick(run) for run, _ in leases], tokens=tokens, ttl=ttl)

    @rule(run=RUNS, token=TOKENS)
    def release_run(self, run: str, token: Any) -> None:
        self.work("release_run", run, token)

    @rule(run=RUNS, token=TOKENS, result=OUTPUTS, sure=SURE)
    def complete_run(self, run: str, token: Any, result: Any, sure: bool) -> None:
        if sure:
            self.work("complete_run", run, token, result=result)

    @rule(run=RUNS, token=TOKENS, error=OUTPUTS, retryable=st.booleans())
    def fail_run(self, run: str, token: Any, error: Any, retryable: bool) -> None:
        self.work("fail_run", run, token, error=error, retryable=retryable)

    @rule(run=RUNS, cascade=st.booleans(), sure=SURE)
    def cancel_run(self, run: str, cascade: bool, sure: bool) -> None:
        if sure:
            self.do("cancel_run", run_id=self.pick(run), cascade=cascade)

    @rule()
    def reconcile(self) -> None:
        self.do("reconcile")

    @rule(job=JOBS)
    def enqueue_run(self, job: Row) -> None:
        self.do("enqueue_run", **job)

    @rule(jobs=st.lists(JOBS, min_size=1, max_size=3))
    def enqueue_runs(self, jobs: list[Row]) -> None:
        self.do("enqueue_runs", runs=jobs)

    @rule(queues=st.sampled_from([["one"], ["one", "two"]]), holder=st.sampled_from(["ada", "bob"]),
          ttl=st.sampled_from([1, 2]), request=REQUESTS)  # fmt: skip
    def claim_runs(self, queues: list[str], holder: str, ttl: int, request: str | None) -> None:
        self.do("claim_runs", queues=queues, holder=holder, max=10, ttl=ttl, request_id=request)

    @rule(
        queue=QUEUES,
        concurrency=st.sampled_from([None, 1, 2]),
        then=st.sampled_from(["put", "put", "pause", "resume", "resume"]),
    )
    def put_queue(self, queue: str, concurrency: int | None, then: str) -> None:
        if then == "put":
            self.do("put_queue", queue=queue, concurrency=concurrency)
        else:
            self.do(f"{then}_queue", queue=queue)

    @rule(queue=QUEUES, sure=SURE)
    def cancel_runs(self, queue: str, sure: bool) -> None:
        if sure:
            self.do("cancel_runs", queue=queue)

    @rule(queue=QUEUES)
    def retry_runs(self, queue: str) -> None:
        self.do("retry_runs", queue=queue)

    @rule(queue=QUEUES)
    def move_runs(self, queue: str) -> None:
        self.do("move_runs", to_queue="two" if queue == "one" else "one", queue=queue)

    @rule(run=RUNS, queue=QUEUES)
    def move_run(self, run: str, queue: str) -> None:
        self.do("move_run", run_id=self.pick(run), to_queue=queue)

    @rule(
        name=SCHEDULES,
        every=st.sampled_from([1, 2]),
        overlap=st.sampled_from(["allow", "skip", "cancel"]),
        catch_up=st.sampled_from(["last", "all"]),
        enabled=st.sampled_from([True, True, False]),
        queue=QUEUES,
    )
    def put_schedule(self, name: str, **given: Any) -> None:
        # One attempt: the pause before another would be a second or so, which is no hour.
        self.do("put_schedule", name=name, workflow="w", max_attempts=1, **given)

    @rule(name=SCHEDULES, run=st.sampled_from("pq"), then=st.sampled_from(["trigger", "trigger", "delete"]))
    def end_schedule(self, name: str, run: str, then: str) -> None:
        if then == "trigger":
            self.do("trigger_schedule", name=name, run_id=run)
        else:
            self.do("delete_schedule", name=name)

    @rule(run=RUNS, token=TOKENS, name=NAMES, input=INPUTS, request=REQUESTS, contract=CONTRACTS)
    def begin_step(self, run: str, token: Any, name: str, input: Any, request: str | None, contract: Row) -> None:
        self.work("begin_step", run, token, name=name, input=input, request_id=request, **contract)

    @rule(run=RUNS, token=TOKENS, name=NAMES, place=PLACES, output=OUTPUTS, contract=CONTRACTS)
    def complete_step(self, run: str, token: Any, name: str, place: int, output: Any, contract: Row) -> None:
        run, name = self.spot(run, name, place, running_steps, lambda run: self.execute(run, name, contract))
        self.work("complete_step", run, token, name=name, output=output)

    @rule(run=RUNS, token=TOKENS, name=NAMES, place=PLACES, retryable=st.booleans(), contract=CONTRACTS)
    def fail_step(self, run: str, token: Any, name: str, place: int, retryable: bool, contract: Row) -> None:
        run, name = self.spot(run, name, place, running_steps, lambda run: self.execute(run, name, contract))
        self.work("fail_step", run, token, name=name, error=place, retryable=retryable)

    @rule(run=RUNS, token=TOKENS, name=NAMES, input=INPUTS, output=OUTPUTS, log_start=st.booleans())
    def record_step(self, run: str, token: Any, name: str, input: Any, output: Any, log_start: bool) -> None:
        self.work("record_step", run, token, name=name, input=input, output=output, log_start=log_start)

    @rule(run=RUNS, name=NAMES, place=PLACES, decision=st.sampled_from(["retry", "accept", "fail"]), output=OUTPUTS)
    def resolve_review(self, run: str, name: str, place: int, decision: str, output: Any) -> None:
        cause = "die" if place % 2 else "fail"
        unsafe = {"side_effects": ["card"]}
        run_id, step = self.spot(run, name, place, reviews, lambda run: self.execute(run, name, unsafe, cause))
        if decision == "accept" and output is None:
            output = 0  # NULL is no result
        self.do("resolve_review", run_id=run_id, step=step, decision=decision, output=output)

    @rule(run=RUNS, unfinished=st.booleans())
    def load_checkpoints(self, run: str, unfinished: bool) -> None:
        self.do("load_checkpoints", run_id=self.pick(run), unfinished=unfinished)

    @rule(run=RUNS, token=TOKENS, name=GATES, prompt=st.sampled_from("ppq"), required=st.sampled_from([1, 2]),
          capability=st.sampled_from([None] * 5 + [1]),
          timing=st.sampled_from([{}, {"timeout": 1}, {"timeout": 2, "default_decision": "rejected"}]))  # fmt: skip
    def open_gate(
        self, run: str, token: Any, name: str, prompt: str, required: int, capability: int | None, timing: Row
    ) -> None:
        shown = {"prompt": prompt, "required_approvals": required, "capability": capability}
        self.work("open_gate", run, token, name=name, **shown, **timing)

    @rule(run=RUNS, token=TOKENS, name=GATES, duration=st.sampled_from([0, 1, 2]))
    def start_timer(self, run: str, token: Any, name: str, duration: int) -> None:
        self.work("start_timer", run, token, name=name, duration=duration)

    @rule(run=RUNS, name=GATES, place=PLACES, decision=st.sampled_from(["approved"] * 5 + ["rejected", "maybe"]),
          actor=st.sampled_from(["ada", "bob"]), secret=st.sampled_from([None] * 4 + SECRETS), request=REQUESTS,
          voter=st.sampled_from([None] * 9 + ["ada", LOGIN]))  # fmt: skip
    def decide_gate(
        self, run: str, name: str, place: int, decision: str, actor: str, secret: str | None, request: str | None,
        voter: str | None,
    ) -> None:  # fmt: skip
        run_id, name = self.spot(run, name, place, open_gates, lambda run: self.open(run, name, place))
        given = {"actor": actor, "secret": secret, "request_id": request, "voter": voter}
        self.do("decide_gate", run_id=run_id, name=name, decision=decision, **given)

    @rule(run=RUNS, token=TOKENS, name=GATES, place=PLACES)
    def suspend_run(self, run: str, token: Any, name: str, place: int) -> None:
        run, name = self.spot(run, name, place, open_gates, lambda run: self.open(run, name, place))
        self.work("suspend_run", run, token, name=name)

    @rule(run=RUNS, name=GATES, place=PLACES)
    def get_gate(self, run: str, name: str, place: int) -> None:
        run_id, name = self.spot(run, name, place, lambda run: run.gates, lambda run: self.open(run, name, place))
        self.do("get_gate", run_id=run_id, name=name)

    @rule(run=RUNS, token=TOKENS, type=st.sampled_from(["agent.said", "agent.said", "run.mine"]), request=REQUESTS)
    def append_event(self, run: str, token: Any, type: str, request: str | None) -> None:
        self.work("append_event", run, token, type=type, request_id=request)

    @rule(run=RUNS, after=st.integers(0, 5), max=st.integers(1, 5))
    def read_events(self, run: str, after: int, max: int) -> None:
        self.do("read_events", run_id=self.pick(run), after=after, max=max)

    @rule(run=RUNS, token=TOKENS, stream=STREAMS, value=DOCUMENTS, expected=VERSIONS, request=REQUESTS)
    def set_state(
        self, run: str, token: Any, stream: str, value: Any, expected: int | None, request: str | None
    ) -> None:
        given = {"expected_version": expected, "request_id": request}
        self.work("set_state", run, token, stream=stream, value=value, **given)

    @rule(run=RUNS, token=TOKENS, stream=STREAMS, patch=DOCUMENTS, expected=VERSIONS, request=REQUESTS)
    def patch_state(
        self, run: str, token: Any, stream: str, patch: Any, expected: int | None, request: str | None
    ) -> None:
        given = {"expected_version": expected, "request_id": request}
        self.work("patch_state", run, token, stream=stream, patch=patch, **given)

    @rule(run=RUNS, token=TOKENS, stream=STREAMS, place=PLACES, label=LABELS, expected=VERSIONS, request=REQUESTS)
    def save_state(
        self, run: str, token: Any, stream: str, place: int, label: str, expected: int | None, request: str | None
    ) -> None:
        given = {"expected_version": expected, "request_id": request}
        run, stream = self.spot(run, stream, place, lambda run: run.streams, lambda run: self.write(run, stream))
        self.work("save_state", run, token, stream=stream, label=label, **given)

    @rule(run=RUNS, token=TOKENS, stream=STREAMS, place=PLACES, which=WHICH, request=REQUESTS)
    def restore_state(self, run: str, token: Any, stream: str, place: int, which: Row, request: str | None) -> None:
        run, stream = self.spot(run, stream, place, lambda run: run.streams, lambda run: self.write(run, stream))
        self.work("restore_state", run, token, stream=stream, request_id=request, **which)

    @rule(run=RUNS, stream=STREAMS, place=PLACES, which=WHICH)
    def get_state(self, run: str, stream: str, place: int, which: Row) -> None:
        run_id, stream = self.spot(run, stream, place, lambda run: run.streams, lambda run: self.write(run, stream))
        self.do("get_state", run_id=run_id, stream=stream, **which)

    @rule(run=RUNS, token=TOKENS, tokens=st.sampled_from([0, 5, 10]), response=REQUESTS, request=REQUESTS)
    def record_usage(self, run: str, token: Any, tokens: int, response: str | None, request: str | None) -> None:
        self.work("record_usage", run, token, input_tokens=tokens, response_id=response, request_id=request)

    @rule(run=RUNS, tokens=LIMITS)
    def set_budget(self, run: str, tokens: int | None) -> None:
        self.do("set_budget", run_id=self.pick(run), tokens=tokens)

    @rule(
        run=RUNS, fork=st.sampled_from("ffgb"), step=st.none() | NAMES, seq=st.none() | st.integers(0, 20), input=INPUTS
    )
    def fork_run(self, run: str, fork: str, step: str | None, seq: int | None, input: Any) -> None:
        through = {"through_step": step, "through_seq": seq}
        self.do("fork_run", run_id=self.pick(run), new_run_id=fork, input=input, **through)

    def compare_histories(self) -> None:
        """Logs and states once more, whole: nothing that was written has changed since."""
        self.seen = {}
        self.compare()
        for name, run in self.model.runs.items():
            found = call_rows(self.connection, "list_state_versions", run_id=self.id(name), max=1000, with_value=True)
            stored = {(row["stream"], row["version"]): (row["value"], row["label"], row["seq"]) for row in found}
            wanted = {(of, n): kept for of, versions in run.streams.items() for n, kept in enumerate(versions, 1)}
            if stored != wanted:
                self.fail(f"the states of {name} are {stored}, not {wanted}")

    def teardown(self) -> None:
        try:
            if not self.failed:
                self.compare_histories()
        finally:
            self.connection.execute("select tidebase_private.forget(%s)", ([self.id(run) for run in self.model.runs],))
            for table in ("queues", "lanes", "slots", "schedules"):
                self.connection.execute(f"delete from tidebase.{table}")  # type: ignore[arg-type]
            # Tokens are counted from 1 again, although these runs are gone.
            self.connection.execute("update tidebase_private.incarnation set tokens_before = 0")


def replay(connection: Connection, calls: list[Call]) -> Violation | None:
    """Makes these calls of both again, on fresh runs."""
    machine = Machine(connection)
    machine.repeats = False  # the calls that were made twice are among these
    try:
        for function, arguments in calls:
            machine.pass_time_by(**arguments) if function == "pass_time" else machine.do(function, **arguments)
        machine.compare_histories()
    except Violation as violation:
        return violation
    finally:
        machine.failed = True
        machine.teardown()
    return None


def shrink(connection: Connection, calls: list[Call], violation: Violation) -> Violation:
    """Leaves out what is not needed. Hypothesis would do so, too, but it knows draws, not calls: that takes minutes."""
    size = len(calls)
    while size:
        shorter = [calls[:at] + calls[at + size :] for at in range(0, len(calls), size)]
        found = next(((one, v) for one in shorter if (v := replay(connection, one)) is not None), None)
        if found is None:
            size //= 2
        else:
            calls, violation = found
    return violation


def explore(connection: Connection, examples: int, number: int | None = None) -> None:
    """So many random sequences of calls. Raises the first violation, shrunk. The same number makes the same calls."""
    machines: list[Machine] = []

    def factory() -> Machine:
        machines[:] = [Machine(connection)]
        return machines[0]

    random = settings(
        max_examples=BATCH,
        stateful_step_count=STEPS,
        phases=[Phase.generate],
        database=None,
        deadline=None,  # other tests run at the same time
        print_blob=True,
        suppress_health_check=list(HealthCheck),
    )
    first = randrange(2**32) if number is None else number * 1_000_003
    for batch in range(0, examples, BATCH):
        try:
            run_state_machine_as_test(seed(first + batch)(factory), settings=random)
        except Violation as violation:
            raise shrink(connection, machines[0].calls, violation) from violation


def connect(url: str) -> Connection:
    return psycopg.connect(
        url, autocommit=True, options="-c synchronous_commit=off -c plan_cache_mode=force_generic_plan"
    )


def run_for(url: str, seconds: float, number: int) -> dict[str, int]:
    """Random sequences until the time is over, on a database of one's own: how many sequences and calls there were,
    and how many of each function were answered how. The same number begins with the same sequences. Raises the first
    violation, shrunk.
    """
    Machine.tally = Counter()
    until = time.monotonic() + seconds
    with connect(url) as connection:
        for batch in itertools.count():
            if time.monotonic() >= until:
                return dict(Machine.tally)
            explore(connection, 25, number * 1_000_003 + batch)
    raise AssertionError("not reached")


@long
def test_random_calls_are_answered_as_by_the_model(database: str) -> None:
    Machine.tally = Counter()
    began = time.monotonic()
    with connect(database) as connection:
        explore(connection, EXAMPLES)
    seconds = time.monotonic() - began
    print(f"{Machine.tally['sequences']:,} sequences, {Machine.tally['calls']:,} calls, {seconds:.1f} s")


@pytest.mark.breaks_invariants
@on_newest("server")
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: f"{mutant.function}: {mutant.text}"[:60])
def test_a_function_that_is_broken_is_found(mutant: Edit, database: str) -> None:
    """Otherwise thousands of sequences would prove nothing."""
    with connect(database) as connection:
        mutant.apply(connection)
        with pytest.raises(Violation) as found:
            explore(connection, 1000)
    print(found.value)


# What the machine found, as short as it can be said.


def test_a_token_that_released_nothing_is_refused(db: Connection) -> None:
    call(db, "create_run", workflow="w", run_id="r")
    assert attempt(db, "release_run", run_id="r", token=0)[0] == "TB003"


def test_a_token_whose_attempt_failed_is_refused_its_release(db: Connection) -> None:
    call(db, "create_run", workflow="w", run_id="r", max_attempts=3, retry_delay="0")
    call(db, "acquire_run", run_id="r", holder="ada")
    assert call(db, "release_run", run_id="r", token=1) == 3
    call(db, "acquire_run", run_id="r", holder="ada")
    assert call(db, "fail_run", run_id="r", token=2)["status"] == "pending"
    assert attempt(db, "release_run", run_id="r", token=2)[0] == "TB003"  # and not the seq of the other's release


def test_a_vote_that_is_repeated_after_the_decision_is_accepted_again(db: Connection) -> None:
    call(db, "create_run", workflow="w", run_id="r")
    call(db, "acquire_run", run_id="r", holder="ada")
    call(db, "open_gate", run_id="r", token=1, name="g", required_approvals=2)
    ada, bob, eve = (
        {
            "secret": call(db, "get_gate_secret", run_id="r", name="g", voter=who),
            "decision": "approved",
            "request_id": who,
        }
        for who in ("ada", "bob", "eve")
    )
    assert call(db, "decide_gate", run_id="r", name="g", **ada)["accepted"]
    assert call(db, "decide_gate", run_id="r", name="g", **bob)["status"] == "decided"
    assert call(db, "decide_gate", run_id="r", name="g", **ada)["accepted"]
    for other in (ada | {"secret": eve["secret"]}, ada | {"decision": "rejected"}, bob | {"decision": "rejected"}):
        assert not call(db, "decide_gate", run_id="r", name="g", **other)["accepted"]  # another call with that id


@pytest.mark.breaks_invariants  # it moves times by hand
def test_a_lease_that_was_renewed_for_less_may_be_taken_over_at_its_end(db: Connection) -> None:
    """Surprising, but right: a heartbeat moves no index entry, so reconcile sees that end when the former one comes."""
    call(db, "create_run", workflow="w", run_id="r")
    call(db, "acquire_run", run_id="r", holder="ada", ttl="1 day")
    call(db, "renew_lease", run_id="r", token=1, ttl="1 hour")
    db.execute(PASS_TIME, {"hours": timedelta(hours=2), "runs": ["r"]})
    assert call(db, "reconcile")["leases"] == 0
    assert call(db, "acquire_run", run_id="r", holder="bob")["outcome"] == "granted"


def test_a_repeated_failure_says_what_was_decided_since(db: Connection) -> None:
    """Surprising, but right: once a person has decided, fail_step made again says what that person decided."""
    call(db, "create_run", workflow="w", run_id="r")
    call(db, "acquire_run", run_id="r", holder="ada")
    call(db, "begin_step", run_id="r", token=1, name="s", side_effects=["card"])
    assert call(db, "fail_step", run_id="r", token=1, name="s")["decision"] == "manual_review"
    call(db, "resolve_review", run_id="r", step="s", decision="retry")
    assert call(db, "fail_step", run_id="r", token=1, name="s")["decision"] == "safe_replay"
