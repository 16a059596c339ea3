"""The SQL API as a model in plain Python: what each call answers, or with which SQLSTATE it is refused.

There is one thread, no lock and no disk: what is left is the contract, as the comments on the functions state it. Time
is a number of hours, and only ``pass_time`` moves it. An answer of ``...`` is any value but NULL; of a row only the
members that are named count. A grant raises the token by one (on a server that was never promoted).
"""

from __future__ import annotations

import itertools
import pickle
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

Row = dict[str, Any]
_moments = itertools.count()  # of events, across all runs
FINAL = ("cancelled", "completed")
#: The database user of the tests, who is an approver.
LOGIN = "postgres"


class Refused(Exception):
    """The SQLSTATE of a call that is refused: nothing has happened."""


def allows_repetition(contract: Row) -> bool:
    """Whether a contract lets a step be executed again that was begun and did not complete."""
    unsafe = set(contract.get("side_effects") or ()) - {"read"} and contract.get("idempotency_key") is None
    return not unsafe and (contract.get("replay") or "auto") == "auto"


class Step(SimpleNamespace):
    """A unit of work, with the contract under which it was begun last."""

    def decide(self, retryable: bool) -> str:
        replay, effects = self.contract.get("replay"), set(self.contract.get("side_effects", ()))
        if effects - {"read"} and "idempotency_key" not in self.contract:
            return "fail_hard" if replay == "never" else "manual_review"
        if retryable and self.tries <= self.contract.get("retries", 0):
            return "auto_retry"
        return {"never": "fail_hard", "manual": "manual_review"}.get(replay, "safe_replay")

    def may_begin_again(self, token: int, contract: Row) -> bool:
        """By what it declared before and by what it declares now; the key must be the same."""
        same = self.contract.get("idempotency_key") == contract.get("idempotency_key")
        both = allows_repetition(self.contract) and allows_repetition(contract)
        if self.status == "running":
            return bool(self.token != token and same and both)
        if self.status != "failed" or self.decision == "fail_hard":
            return False
        retried = self.decision == "auto_retry" and allows_repetition(contract | {"replay": "auto"})
        return bool(self.allowed == self.attempt or (same and (both or retried)))


class Run(SimpleNamespace):
    """A run with all that hangs on it. A stream is a list of (value, label, seq), an attempt is how it ended."""

    def __init__(self, workflow: str = "", input: Any = None, **given: Any) -> None:
        lease: Row = {
            "token": 0,
            "holder": None,
            "request_id": None,
            "until": 0,
            "available_at": 0,
            "waiting_for": None,
        }
        tree: Row = {"parent": None, "limit": None, "deadline": None, "max_attempts": None, "retry_delay": 0}
        tree |= {"crashed": False, "forgiven": 0, "seen": None, "budgeted": False, "above": None, "taken": frozenset()}
        tree |= {"queue": None, "dedupe_key": None, "is_listed": False}
        parts: Row = {name: {} for name in ("steps", "gates", "streams", "requests", "responses", "children", "forks")}
        super().__init__(**lease | tree | parts | given, workflow=workflow, input=input, status="pending", result=None)
        self.log, self.attempts, self.usage, self.moments = [], [], [], []

    @property
    def free(self) -> str:
        """Its status while whoever comes may take it up."""
        return "pending" if self.queue is None else "queued"

    def is_held(self, token: int | None) -> bool:
        return self.status == "running" and self.token == token

    def emit(self, type: str, **payload: Any) -> int:
        self.log.append((type, payload))
        self.moments.append(next(_moments))
        return len(self.log)

    def find_request(self, request_id: str | None, kind: str) -> Any:
        """What the call that was made with this id answered."""
        found, answer = self.requests.get(request_id, (kind, None))
        if found != kind:
            raise Refused("TB002")
        return answer

    def remember(self, request_id: str | None, kind: str, answer: Any) -> Any:
        if request_id is not None:
            self.requests[request_id] = kind, answer
        return answer

    def ended(self, type: str, token: int | None) -> int | None:
        """The seq of the event with which the attempt of the present token ended: the call is made again."""
        ends = (seq for seq, (found, payload) in enumerate(self.log, 1) if found == type and payload["token"] == token)
        return next(ends, None) if token == self.token and self.status != "cancelled" else None

    def give_up(self, outcome: str, status: str) -> None:
        if self.status == "running":
            self.attempts[-1] = outcome
        self.status, self.waiting_for = status, None
        for gate in self.gates.values() if status in FINAL else ():
            gate.status = "cancelled" if gate.status == "pending" else gate.status

    def review(self, name: str, cause: str) -> None:
        step = self.steps[name]
        step.status, step.decision = "review", "manual_review"
        self.emit("step.review", name=name, attempt=step.attempt, cause=cause)

    def complete(self, name: str, step: Step, output: Any) -> int:
        step.status, step.output = "completed", output
        step.seq = self.emit("step.completed", name=name, attempt=step.attempt)
        return int(step.seq)

    def settle(
        self, name: str, decision: str, by: str, actor: str | None = None, request_id: str | None = None
    ) -> None:
        gate = self.gates[name]
        gate.status, gate.decision, gate.decided_by, gate.request_id = "decided", decision, by, request_id
        if self.waiting_for == name:
            self.status, self.waiting_for = self.free, None
        if gate.kind == "timer":
            self.emit("timer.fired", name=name)
        else:
            self.emit("gate.resolved", name=name, decision=decision, actor=actor, by=by)


def merge(target: Any, patch: Any) -> Any:
    """MergePatch of RFC 7396, section 2."""
    if not isinstance(patch, dict):
        return patch
    target = target if isinstance(target, dict) else {}
    kept = {name: value for name, value in target.items() if name not in patch}
    return kept | {name: merge(target.get(name), value) for name, value in patch.items() if value is not None}


class Reference:
    """The runs, and the functions of the schema ``tidebase`` by their names."""

    def __init__(self) -> None:
        self.runs: dict[str, Run] = {}
        self.queues: dict[str, Row] = {}
        self.keys: dict[tuple[str, str], str] = {}
        self.claims: dict[str, list[tuple[str, int]]] = {}
        self.schedules: dict[str, Row] = {}
        self.clock = 0

    def call(self, function: str, **arguments: Any) -> tuple[str, Any]:
        """``("ok", the answer)`` or ``(SQLSTATE, None)``."""
        before = pickle.dumps((self.runs, self.queues, self.keys, self.claims, self.schedules))
        try:
            return "ok", getattr(self, function)(**arguments)
        except Refused as refusal:
            self.runs, self.queues, self.keys, self.claims, self.schedules = pickle.loads(before)
            return str(refusal), None

    # What the calls have in common: the fence, the clock, the tree of runs

    def find(self, run_id: str) -> Run:
        if run_id not in self.runs:
            raise Refused("TB001")
        return self.runs[run_id]

    def open(self, run_id: str) -> Run:
        """For those who carry no token."""
        run = self.find(run_id)
        if run.status in FINAL:
            raise Refused("TB004" if run.status == "cancelled" else "TB005")
        return run

    def fence(self, run_id: str, token: int | None, in_time: bool = False) -> Run:
        run = self.find(run_id)
        if run.status == "cancelled" or (in_time and run.is_held(token) and self.is_late(run)):
            raise Refused("TB004")
        if not run.is_held(token):
            raise Refused("TB005" if run.status == "completed" and run.token == token else "TB003")
        return run

    def fence_done(self, run_id: str, token: int | None) -> Run:
        """What was done is stored under the last token, whether or not the lease was given up."""
        run = self.find(run_id)
        if run.status not in FINAL and token == run.token and token:
            return run
        return self.fence(run_id, token)

    def unsettled(self, run: Run, name: str | None = None) -> list[str]:
        """What an earlier lease left unfinished that may have taken effect, oldest first."""
        return [
            other
            for other, step in run.steps.items()
            if other != name
            and step.status == "running"
            and step.token != run.token
            and not allows_repetition(step.contract)
        ]

    def past(self, moment: int | None) -> bool:
        return moment is not None and moment <= self.clock

    def is_late(self, run: Run) -> bool:
        return self.past(run.deadline)

    def is_over(self, gate: SimpleNamespace) -> bool:
        return gate.status == "pending" and self.past(gate.timeout_at)

    def settle_overdue(self, run: Run) -> list[str]:
        """The default decisions fall in the order of time; returns the kinds of what was decided."""
        due = [name for name, gate in run.gates.items() if self.is_over(gate)]
        for name in sorted(due, key=lambda name: run.gates[name].timeout_at):
            run.settle(name, run.gates[name].default, "timeout")
        return [run.gates[name].kind for name in due]

    def below(self, run: Run) -> Iterator[Run]:
        for name, child in run.children.items():
            if name not in run.taken:  # what a fork has taken over is not its own
                yield self.runs[child]
                yield from self.below(self.runs[child])

    def exhausted(self, run: Run) -> list[bool]:
        """Of the run and each one above it: whether the budget is used up."""
        above = run.parent or run.above
        return [
            run.limit is not None and self.spent(run) >= run.limit,
            *(self.exhausted(self.runs[above]) if above else []),
        ]

    def spent(self, run: Run) -> int:
        """What the run used, with its children, and with the forks of these that draw on its budget."""
        names = {name for name, one in self.runs.items() if one is run}
        own = [self.runs[child] for name, child in run.children.items() if name not in run.taken]
        forks = [one for one in self.runs.values() if one.above in names]
        return sum(run.usage) + sum(map(self.spent, own + forks))

    # Runs and their leases

    def create_run(
        self, run_id: str, workflow: str, input: Any = None, deadline: int | None = None, **given: Any
    ) -> Any:
        if run_id not in self.runs:
            until = None if deadline is None else self.clock + deadline
            self.runs[run_id] = Run(workflow, input, deadline=until, **given)
            self.runs[run_id].budgeted = self.runs[run_id].limit is not None
            self.runs[run_id].emit("run.created", workflow=workflow)
        elif self.runs[run_id].workflow != workflow or input not in (None, self.runs[run_id].input):
            raise Refused("TB006")
        return run_id

    def create_child(self, run_id: str, token: int | None, name: str, child_id: str, workflow: str, input: Any) -> Any:
        run = self.fence(run_id, token, in_time=True)
        if name in run.children:
            return {"run_id": self.create_run(run.children[name], workflow, input), "created": False}
        self.create_run(child_id, workflow, input)
        self.runs[child_id].deadline, self.runs[child_id].parent, run.children[name] = run.deadline, run_id, child_id
        self.runs[child_id].budgeted = run.budgeted
        run.emit("run.child.created", name=name, child_run_id=child_id, workflow=workflow)
        return {"run_id": child_id, "created": True}

    def acquire_run(self, run_id: str, holder: str, ttl: int, request_id: str | None = None) -> Any:
        run = self.find(run_id)
        live = run.status == "running" and not self.past(run.until)
        again = live and request_id is not None and request_id == run.request_id
        waits = run.status == "waiting" and not self.is_over(run.gates[run.waiting_for])
        backoff = run.status in ("pending", "queued") and not self.past(run.available_at)
        crashed = run.status == "failed" and run.crashed
        if run.status in ("completed", "review") or (live and not again) or waits or backoff or crashed:
            outcome = {"running": "held", "pending": "waiting", "queued": "waiting"}.get(run.status, run.status)
            return {"outcome": outcome, "token": None, "holder": run.holder, "result": run.result}
        if run.status == "cancelled" or self.is_late(run):
            raise Refused("TB004")
        if run.status == "waiting":
            self.settle_overdue(run)
        if not again and not self.may_start(run_id):
            return {"outcome": "queued", "token": None, "holder": run.holder, "result": run.result}
        if not again:
            lapsed = run.status == "running"
            run.give_up("lapsed", "running")
            if lapsed and run.max_attempts is not None and self.failures(run) >= run.max_attempts:
                run.status, run.crashed = "failed", True
                run.emit("run.failed", attempt=len(run.attempts), token=run.token, status="failed")
                return {"outcome": "failed", "token": None, "holder": run.holder, "result": run.result}
            run.attempts.append(None)
            run.token, run.holder, run.request_id = run.token + 1, holder, request_id
            run.until, run.available_at, run.is_listed = self.clock + ttl, self.clock, False
            run.emit("run.started", attempt=len(run.attempts), token=run.token, holder=holder)
        done = sum(step.status == "completed" for step in run.steps.values())
        granted = {"outcome": "granted", "token": run.token, "attempt": len(run.attempts), "holder": run.holder}
        return granted | {"checkpoints": done, "input": run.input}

    def failures(self, run: Run) -> int:
        """Attempts that failed or lost their worker, since the run was recovered."""
        return sum(outcome in ("failed", "lapsed") for outcome in run.attempts[run.forgiven :])

    def renew_lease(self, run_id: str, token: int | None, ttl: int) -> Any:
        self.fence(run_id, token).until = self.clock + ttl
        return ...

    def renew_leases(self, run_ids: list[str], tokens: list[int | None], ttl: int) -> Any:
        runs = {run_id: self.runs[run_id] for run_id in run_ids if run_id in self.runs}
        held = {
            name for name, token in zip(run_ids, tokens, strict=False) if name in runs and runs[name].is_held(token)
        }
        for name in held:
            runs[name].until = self.clock + ttl
        return sorted(held)

    def release_run(self, run_id: str, token: int | None) -> Any:
        if (seq := self.find(run_id).ended("run.released", token)) is not None:
            return seq
        run = self.fence(run_id, token)
        run.give_up("released", run.free)
        return run.emit("run.released", attempt=len(run.attempts), token=token)

    def complete_run(self, run_id: str, token: int | None, result: Any) -> Any:
        run = self.find(run_id)
        if run.status == "completed" and token == run.token and result == run.result:
            return len(run.log)
        run = self.fence(run_id, token)
        unfinished = [step for step in run.steps.values() if step.status in ("running", "review")]
        if any(step.status == "review" or not allows_repetition(step.contract) for step in unfinished):
            raise Refused("TB014")
        for step in unfinished:
            step.status, step.decision = "failed", "safe_replay"
        run.give_up("completed", "completed")
        run.result = result
        return run.emit("run.completed", attempt=len(run.attempts), token=token)

    def fail_run(self, run_id: str, token: int | None, error: Any, retryable: bool = True) -> Any:
        run = self.find(run_id)
        seq = None if run.crashed else run.ended("run.failed", token)
        if seq is None:
            run = self.fence(run_id, token)
            for name in self.unsettled(run):
                run.review(name, "crash")
            may_go_on = run.free if retryable and self.failures(run) + 1 < (run.max_attempts or 1) else "failed"
            run.give_up("failed", "review" if any(s.status == "review" for s in run.steps.values()) else may_go_on)
            run.available_at = self.clock + (run.retry_delay if run.status in ("pending", "queued") else 0)
            seq = run.emit("run.failed", attempt=len(run.attempts), token=token, error=error, status=run.status)
        return {"seq": seq, "status": run.status}

    def cancel_run(self, run_id: str, cascade: bool) -> Any:
        run = self.find(run_id)
        if run.status == "completed":
            raise Refused("TB005")
        chosen = [one for one in [run, *(self.below(run) if cascade else [])] if one.status not in FINAL]
        for one in chosen:
            one.give_up("cancelled", "cancelled")
            one.emit("run.cancelled")
        return len(chosen)

    def reconcile(self) -> Any:
        counts = dict.fromkeys(("leases", "gates", "timers", "deadlines"), 0)
        self.fire_due()
        for run_id, run in self.runs.items():
            if self.is_late(run) and run.status not in FINAL:
                counts["deadlines"] += self.cancel_run(run_id, cascade=False)
            for kind in self.settle_overdue(run):
                counts[kind + "s"] += 1
            if run.status == "running" and self.past(run.until) and run.seen != (run.token, run.until):
                run.seen, run.is_listed = (run.token, run.until), True  # and that is all
                run.emit("run.lapsed", attempt=len(run.attempts), token=run.token)
                counts["leases"] += 1
        return counts

    # Queues

    def active(self, queue: str, dedupe_key: str | None, but: str | None = None) -> str | None:
        """The run that has a key."""
        owner = self.keys.get((queue, dedupe_key)) if dedupe_key is not None else None
        alive = owner is not None and owner != but and self.runs[owner].status not in (*FINAL, "failed")
        return owner if alive else None

    def enqueue_run(
        self, run_id: str, workflow: str, queue: str, input: Any = None, dedupe_key: str | None = None,
        on_duplicate: str = "return", delay: int | None = None, **given: Any,
    ) -> Any:  # fmt: skip
        if run_id in self.runs:
            return {"run_id": self.create_run(run_id, workflow, input), "deduplicated": True}
        available_at = self.clock + (delay or 0)
        if (owner := self.active(queue, dedupe_key)) is not None:
            known = self.runs[owner]
            if on_duplicate == "reject":
                raise Refused("TB013")
            if on_duplicate == "replace" and known.status == "queued" and not known.attempts:
                if known.workflow != workflow:
                    raise Refused("TB006")
                known.input, known.available_at = input, available_at
                known.emit("run.replaced")
            return {"run_id": owner, "deduplicated": True}
        self.create_run(run_id, workflow, input, **{"max_attempts": 5} | given)
        run = self.runs[run_id]
        run.status, run.queue, run.dedupe_key, run.available_at = "queued", queue, dedupe_key, available_at
        if dedupe_key is not None:
            self.keys[queue, dedupe_key] = run_id
        run.emit("run.enqueued", queue=queue)
        return {"run_id": run_id, "deduplicated": False}

    def enqueue_runs(self, runs: list[Row]) -> Any:
        return [self.enqueue_run(**run) for run in runs]

    def room_of(self, queue: str, own: str | None = None) -> int:
        """How many more may be leased. One whose lease has run out counts until it is taken over."""
        limits = self.queues.get(queue, {})
        if limits.get("paused"):
            return 0
        at_work = [
            one for one, run in self.runs.items() if (run.queue, run.status) == (queue, "running") and one != own
        ]
        return max((limits.get("concurrency") or 1000) - len(at_work), 0)

    def may_start(self, run_id: str) -> bool:
        run = self.runs[run_id]
        key_is_gone = run.status == "failed" and self.active(run.queue, run.dedupe_key, run_id) is not None
        return run.queue is None or (self.room_of(run.queue, run_id) > 0 and not key_is_gone)

    def claim_runs(
        self, queues: list[str], holder: str, max: int, ttl: int, request_id: str | None, given: list[str]
    ) -> Any:
        """given: which runs the database chose, where a limit lets it choose."""
        if request_id in self.claims:
            held = [(one, token) for one, token in self.claims[request_id] if self.runs[one].is_held(token)]
            return sorted([one, token] for one, token in held)
        taken: list[str] = []
        for round in range(2):
            for queue in queues:
                taken += self.claim_from(queue, holder, max - len(taken), ttl, request_id, given)
            if taken:
                break
            if round == 0:
                self.reconcile()
        if request_id is not None and taken:
            self.claims[request_id] = [(one, self.runs[one].token) for one in taken]
        return sorted([one, self.runs[one].token] for one in taken)

    def claim_from(
        self, queue: str, holder: str, max: int, ttl: int, request_id: str | None, given: list[str]
    ) -> list[str]:
        limits = self.queues.get(queue, {})
        if limits.get("paused"):
            return []
        mine = {one: run for one, run in self.runs.items() if run.queue == queue and not self.is_late(run)}
        lapsed = [
            one for one, run in mine.items() if run.status == "running" and run.is_listed and self.past(run.until)
        ]
        taken = [one for one in lapsed if self.acquire_run(one, holder, ttl, request_id)["outcome"] == "granted"]
        free = [one for one, run in mine.items() if run.status == "queued" and self.past(run.available_at)]
        room = min(max - len(taken), self.room_of(queue), len(free))
        chosen = free if room == len(free) else [one for one in free if one in given][:room]
        if len(chosen) < room:
            chosen = free[:room]  # the database has left room: the answers will differ
        for one in chosen:
            self.acquire_run(one, holder, ttl, request_id)
        return taken + chosen

    def put_queue(self, queue: str, concurrency: int | None) -> Any:
        self.queues[queue] = {"paused": self.queues.get(queue, {}).get("paused", False), "concurrency": concurrency}
        return ""

    def pause_queue(self, queue: str, paused: bool = True) -> Any:
        known = self.queues.setdefault(queue, {"paused": False})
        changed = known["paused"] != paused
        known["paused"] = paused
        return changed

    def resume_queue(self, queue: str) -> Any:
        return self.pause_queue(queue, False)

    def found_in(self, queue: str, *statuses: str) -> dict[str, Run]:
        return {one: run for one, run in self.runs.items() if run.queue == queue and run.status in statuses}

    def cancel_runs(self, queue: str) -> Any:
        found = self.found_in(queue, "queued", "running", "waiting", "review", "failed")
        for one in found:
            self.cancel_run(one, cascade=False)
        return {"matched": len(found), "done": len(found)}

    def retry_runs(self, queue: str) -> Any:
        found = self.found_in(queue, "failed")
        done = 0
        for one, run in reversed(found.items()):  # of one key, the youngest
            if self.active(queue, run.dedupe_key, one) is not None:
                continue
            if run.dedupe_key is not None:
                self.keys[queue, run.dedupe_key] = one
            run.status, run.forgiven, run.crashed, run.available_at = "queued", len(run.attempts), False, self.clock
            run.emit("run.retried")
            done += 1
        return {"matched": len(found), "done": done}

    def move_runs(self, to_queue: str, queue: str) -> Any:
        found = self.found_in(queue, "queued")
        done = 0
        for one, run in found.items():
            if self.active(to_queue, run.dedupe_key, one) is not None:
                continue
            if run.dedupe_key is not None:
                del self.keys[queue, run.dedupe_key]
                self.keys[to_queue, run.dedupe_key] = one
            run.queue = to_queue
            run.emit("run.moved", queue=to_queue)
            done += 1
        return {"matched": len(found), "done": done}

    def move_run(self, run_id: str, to_queue: str) -> Any:
        run = self.find(run_id)
        if run.status not in ("pending", "queued"):
            return False
        if run.queue != to_queue and run.dedupe_key is not None:
            if self.active(to_queue, run.dedupe_key, run_id) is not None:
                return False
            del self.keys[run.queue, run.dedupe_key]
            self.keys[to_queue, run.dedupe_key] = run_id
        run.queue, run.status = to_queue, "queued"
        run.max_attempts = run.max_attempts or 5
        run.emit("run.moved", queue=to_queue)
        return True

    # Schedules: a time is a number of hours, and so the end of the id of its run

    def put_schedule(self, name: str, **given: Any) -> Any:
        known = self.schedules.get(name, {"anchor": self.clock, "fired_at": self.clock, "last": None} | given)
        same = all(known[what] == given[what] for what in ("every", "enabled"))
        self.schedules[name] = known | given | {"fired_at": known["fired_at"] if same else self.clock}
        return ... if given["enabled"] else None

    def delete_schedule(self, name: str) -> Any:
        return self.schedules.pop(name, None) is not None

    def trigger_schedule(self, name: str, run_id: str) -> Any:
        if name not in self.schedules:
            raise Refused("TB012")
        return self.enqueue_for(self.schedules[name], run_id)

    def enqueue_for(self, schedule: Row, run_id: str) -> str:
        given = {what: schedule[what] for what in ("workflow", "queue", "max_attempts")}
        return str(self.enqueue_run(run_id, **given)["run_id"])

    def fire_due(self) -> None:
        for name, schedule in self.schedules.items():
            anchor, every = schedule["anchor"], schedule["every"]
            times = [at for at in range(anchor + every, self.clock + 1, every) if at > schedule["fired_at"]]
            if not schedule["enabled"] or not times:
                continue
            for at in times if schedule["catch_up"] == "all" else times[-1:]:
                self.fire(schedule, f"sched:{name}:{at}")
            schedule["fired_at"] = self.clock

    def fire(self, schedule: Row, run_id: str) -> None:
        last = schedule["last"]
        if schedule["overlap"] != "allow" and last is not None and self.runs[last].status not in (*FINAL, "failed"):
            if schedule["overlap"] == "skip":
                return
            self.cancel_run(last, cascade=True)
        schedule["last"] = self.enqueue_for(schedule, run_id)

    # Steps

    def begin_step(
        self, run_id: str, token: int | None, name: str, input: Any, request_id: str | None = None, **contract: Any
    ) -> Any:
        run = self.fence(run_id, token)
        step = run.steps.get(name)
        if step is None or step.status != "completed":  # a checkpoint is handed out whatever the time and the budget
            self.fence(run_id, token, in_time=True)
        writes = set(contract.get("side_effects") or ()) - {"read"}
        if writes and len(run.attempts) > 1 and (step is None or step.status != "completed"):
            for other in self.unsettled(run, name)[:1]:
                self.ask_about(run, other)
                return {"outcome": "review", "attempt": run.steps[other].attempt, "output": {"step": other}}
        if step is not None and (step.input != input or not step.may_begin_again(run.token, contract)):
            return self.begun_already(run, name, step, input, request_id)
        self.require_funds(run)
        before = step or SimpleNamespace(attempt=0, tries=0, token=run.token)
        tries = before.tries + 1 if before.token == run.token else 1
        run.steps[name] = Step(
            input=input,
            token=run.token,
            attempt=before.attempt + 1,
            tries=tries,
            status="running",
            output=None,
            decision=None,
            seq=None,
            request_id=request_id,
            contract=contract,
            allowed=None,
        )
        run.emit("step.started", name=name, attempt=before.attempt + 1, token=token)
        return {"outcome": "execute", "attempt": before.attempt + 1, "output": None}

    def begun_already(self, run: Run, name: str, step: Step, input: Any, request_id: str | None) -> Any:
        if step.input != input:
            raise Refused("TB006")
        if step.status == "completed":
            return {"outcome": "replay", "attempt": step.attempt, "output": step.output}
        if step.status == "running" and step.token == run.token and step.request_id == request_id is not None:
            return {"outcome": "execute", "attempt": step.attempt}
        hopeless = step.status == "failed" and step.decision == "fail_hard"
        if hopeless or (step.status == "running" and step.token == run.token):
            raise Refused("TB007")
        self.ask_about(run, name)
        return {"outcome": "review", "attempt": step.attempt, "output": None}

    def ask_about(self, run: Run, name: str) -> None:
        """A person is asked, and where an earlier attempt left the step the run is parked for that."""
        step = run.steps[name]
        if step.status != "review":
            contract = step.status == "failed" or allows_repetition(step.contract)
            run.review(name, "contract" if contract else "crash")
        if step.token != run.token and run.status == "running":
            run.give_up("released", "review")
            run.emit("run.review", name=name)

    def record_step(self, run_id: str, token: int | None, name: str, input: Any, output: Any, log_start: bool) -> Any:
        run = self.fence_done(run_id, token)
        step = run.steps.get(name)
        if self.is_late(run) and (step is None or step.status != "completed"):
            raise Refused("TB004")
        if step is not None and (step.input != input or not step.may_begin_again(run.token, {})):
            return self.begun_already(run, name, step, input, None)
        self.require_funds(run)
        if step is None:
            step = run.steps[name] = Step(input=input, attempt=0, tries=1, contract={}, allowed=None)
        step.token, step.attempt, step.decision, step.request_id = run.token, step.attempt + 1, None, None
        if log_start:
            run.emit("step.started", name=name, attempt=step.attempt, token=token)
        run.complete(name, step, output)
        return {"outcome": "recorded", "attempt": step.attempt, "output": None}

    def require_funds(self, run: Run) -> None:
        if any(self.exhausted(run)):
            raise Refused("TB010")

    def complete_step(self, run_id: str, token: int | None, name: str, output: Any) -> Any:
        run = self.fence_done(run_id, token)
        step = run.steps.get(name)
        if (
            step is None
            or step.token != token
            or (step.status, step.output) not in [("running", None), ("completed", output)]
        ):
            raise Refused("TB007")
        return step.seq if step.status == "completed" else run.complete(name, step, output)

    def fail_step(self, run_id: str, token: int | None, name: str, error: Any, retryable: bool) -> Any:
        run = self.fence_done(run_id, token)
        step = run.steps.get(name)
        if step is None or step.token != token or step.status == "completed":
            raise Refused("TB007")
        if step.status == "running":
            step.status, step.decision = "failed", step.decide(retryable)
            run.emit("step.failed", name=name, attempt=step.attempt, error=error, decision=step.decision)
            if step.decision == "manual_review":
                run.review(name, "error")
        later = ... if step.decision == "auto_retry" else None
        return {"decision": step.decision, "attempt": step.attempt, "retry_after": later}

    def resolve_review(self, run_id: str, step: str, decision: str, output: Any) -> Any:
        run = self.open(run_id)
        found = run.steps.get(step)
        if found is None or found.status != "review":
            raise Refused("TB008")
        seq = run.emit("step.reviewed", name=step, attempt=found.attempt, decision=decision)
        if decision == "accept":
            run.complete(step, found, output)
        else:
            found.status, found.decision = "failed", "safe_replay" if decision == "retry" else "fail_hard"
            found.allowed = found.attempt if decision == "retry" else None
        if run.status == "review" and all(one.status != "review" for one in run.steps.values()):
            hopeless = any((one.status, one.decision) == ("failed", "fail_hard") for one in run.steps.values())
            run.status = "failed" if hopeless else run.free
        return seq

    def load_checkpoints(self, run_id: str, unfinished: bool) -> Any:
        steps = self.find(run_id).steps.items()
        return sorted((name, step.output) for name, step in steps if unfinished or step.status == "completed")

    # Gates and timers

    def open_gate(
        self, run_id: str, token: int | None, name: str, prompt: str, timeout: int | None = None,
        default_decision: str = "timed_out", required_approvals: int = 1, **shown: Any,
    ) -> Any:  # fmt: skip
        shown = {name: value for name, value in shown.items() if value is not None}
        shown |= {"prompt": prompt, "required": required_approvals}
        return self.ask(run_id, token, name, "gate", shown, timeout, default_decision, required_approvals)

    def start_timer(self, run_id: str, token: int | None, name: str, duration: int) -> Any:
        return self.ask(run_id, token, name, "timer", duration, duration, "elapsed", 1)

    def ask(
        self,
        run_id: str,
        token: int | None,
        name: str,
        kind: str,
        shown: Any,
        time: int | None,
        default: str,
        required: int,
    ) -> Any:
        run = self.fence(run_id, token, in_time=True)
        created = name not in run.gates
        if created:
            timeout_at = None if time is None else self.clock + time
            run.gates[name] = SimpleNamespace(
                kind=kind,
                shown=shown,
                timeout_at=timeout_at,
                default=default,
                required=required,
                status="pending",
                decision=None,
                decided_by=None,
                request_id=None,
                votes={},
            )
            run.emit(f"{kind}.started" if kind == "timer" else "gate.created", name=name)
        gate = run.gates[name]
        if (gate.kind, gate.shown) != (kind, shown):
            raise Refused("TB006")
        if self.is_over(gate):
            run.settle(name, gate.default, "timeout")
        return {"status": gate.status, "decision": gate.decision, "decided_by": gate.decided_by, "created": created}

    def decide_gate(
        self,
        run_id: str,
        name: str,
        decision: str,
        actor: str,
        secret: str | None = None,
        request_id: str | None = None,
        voter: str | None = None,
    ) -> Any:
        """The secret is wrong, right, or somebody's own: "ada's"."""
        gate = self.runs[run_id].gates.get(name) if run_id in self.runs else None
        gate = gate if gate is not None and gate.kind == "gate" else None
        whose = None if secret in (None, "right", "wrong") else secret.removesuffix("'s")
        if secret is not None and (secret == "wrong" or gate is None or voter not in (None, whose)):
            raise Refused("TB009")
        if secret is None and voter not in (None, LOGIN):
            raise Refused("TB009")
        run = self.find(run_id)
        if gate is None:
            raise Refused("TB012")
        if run.status == "cancelled":
            raise Refused("TB004")
        if self.is_over(gate):
            run.settle(name, gate.default, "timeout")
        ballot = LOGIN if secret is None else whose
        said = gate.votes.get(ballot)
        again = request_id is not None and (decision, request_id) in ((gate.decision, gate.request_id), said)
        if gate.status == "decided":
            return self.standing(gate, again)
        self.open(run_id)
        if decision not in ("approved", "rejected"):
            raise Refused("TB002")
        if gate.required > 1 and decision == "approved":
            if ballot is None:
                raise Refused("TB009")
            if said is not None:
                return self.standing(gate, again)
            gate.votes[ballot] = decision, request_id
            run.emit("gate.voted", name=name, voter=ballot, actor=actor, decision=decision, approvals=len(gate.votes))
            if len(gate.votes) < gate.required:
                return self.standing(gate, True)
        run.settle(name, decision, "approver" if secret is None else "secret", actor, request_id)
        return self.standing(gate, True)

    def standing(self, gate: SimpleNamespace, accepted: bool) -> Any:
        approvals = len(gate.votes) if gate.required > 1 else int(gate.status == "decided")
        return {"accepted": accepted, "status": gate.status, "decision": gate.decision, "approvals": approvals}

    def get_gate(self, run_id: str, name: str) -> Any:
        gate = self.runs[run_id].gates.get(name) if run_id in self.runs else None
        if gate is None:
            raise Refused("TB012")
        if self.is_over(gate):
            self.settle_overdue(self.runs[run_id])
        return {"kind": gate.kind, "status": gate.status, "decision": gate.decision, "decided_by": gate.decided_by}

    def suspend_run(self, run_id: str, token: int | None, name: str) -> Any:
        if self.find(run_id).ended("run.suspended", token) is not None:
            return True
        run = self.fence(run_id, token)
        gate = run.gates.get(name)
        if gate is None:
            raise Refused("TB012")
        if gate.status == "decided" or self.is_over(gate):
            return False
        run.give_up("suspended", "waiting")
        run.waiting_for = name
        run.emit("run.suspended", attempt=len(run.attempts), token=token, name=name)
        return True

    # Events, states, usage

    def append_event(self, run_id: str, token: int | None, type: str, request_id: str | None = None) -> Any:
        if type.startswith("run."):
            raise Refused("TB002")
        run = self.fence(run_id, token)
        return run.find_request(request_id, "event") or run.remember(request_id, "event", run.emit(type))

    def read_events(self, run_id: str, after: int, max: int) -> Any:
        return [type for type, _ in self.find(run_id).log[after : after + max]]

    def set_state(self, run_id: str, token: int | None, stream: str, value: Any, **given: Any) -> Any:
        return self.write(run_id, token, stream, "set", lambda versions: value, **given)

    def patch_state(self, run_id: str, token: int | None, stream: str, patch: Any, **given: Any) -> Any:
        return self.write(run_id, token, stream, "patch", lambda old: merge(old[-1][0] if old else {}, patch), **given)

    def save_state(self, run_id: str, token: int | None, stream: str, label: str, **given: Any) -> Any:
        return self.write(run_id, token, stream, "save", lambda old: self.version_of(old)[0], label, **given)

    def restore_state(
        self,
        run_id: str,
        token: int | None,
        stream: str,
        version: int | None = None,
        label: str | None = None,
        **given: Any,
    ) -> Any:
        return self.write(
            run_id, token, stream, "restore", lambda old: self.version_of(old, version, label, True)[0], **given
        )

    def write(
        self, run_id: str, token: int | None, stream: str, operation: str, make: Callable[[list[Any]], Any],
        label: str | None = None, expected_version: int | None = None, request_id: str | None = None,
    ) -> Any:  # fmt: skip
        run = self.fence(run_id, token)
        if (earlier := run.find_request(request_id, "state")) is not None:
            return earlier
        versions = run.streams.get(stream, [])
        if expected_version not in (None, len(versions)):
            raise Refused("TB011")
        value = make(versions)
        type = {"save": "state.saved", "restore": "state.restored"}.get(operation, "state.updated")
        seq = run.emit(type, stream=stream, version=len(versions) + 1, operation=operation, label=label)
        run.streams[stream] = [*versions, (value, label, seq)]
        return run.remember(request_id, "state", len(versions) + 1)

    def version_of(
        self, versions: list[Any], version: int | None = None, label: str | None = None, one: bool = False
    ) -> Any:
        if one and versions and (version is None) == (label is None):
            raise Refused("TB002")
        named = [one for n, one in enumerate(versions, 1) if label in (None, one[1]) and version in (None, n)]
        if not named:
            raise Refused("TB012")
        return named[-1]

    def get_state(self, run_id: str, stream: str, version: int | None = None, label: str | None = None) -> Any:
        if version is not None and label is not None:
            raise Refused("TB002")
        value, label, seq = self.version_of(self.find(run_id).streams.get(stream, []), version, label)
        return {"value": value, "label": label, "seq": seq}

    def record_usage(
        self,
        run_id: str,
        token: int | None,
        input_tokens: int,
        response_id: str | None = None,
        request_id: str | None = None,
    ) -> Any:
        run = self.fence(run_id, token)
        seq = run.find_request(request_id, "usage") or run.responses.get(response_id)
        recorded = seq is None
        if recorded:
            before = self.exhausted(run)
            run.usage.append(input_tokens)
            seq = run.remember(request_id, "usage", run.emit("usage.recorded", input_tokens=input_tokens))
            run.responses |= {} if response_id is None else {response_id: seq}
            if any(now and not then for then, now in zip(before, self.exhausted(run), strict=False)):
                run.emit("budget.exhausted", seq=seq)
        totals = {"records": len(run.usage), "input_tokens": sum(run.usage), "exhausted": any(self.exhausted(run))}
        return totals | {"recorded": recorded, "seq": seq}

    def set_budget(self, run_id: str, tokens: int | None) -> Any:
        run = self.open(run_id)
        run.limit = tokens
        for one in [run, *self.below(run)]:
            one.budgeted = True
        run.emit("budget.changed", tokens=tokens)
        return ""

    # Forks

    def fork_run(
        self,
        run_id: str,
        new_run_id: str,
        through_step: str | None = None,
        through_seq: int | None = None,
        input: Any = None,
    ) -> Any:
        source, asked = self.find(run_id), (through_step, through_seq)
        if new_run_id in self.runs:
            if source.forks.get(new_run_id) != asked or input not in (None, self.runs[new_run_id].input):
                raise Refused("TB006")
            return new_run_id
        if None not in asked or not 0 <= (through_seq or 0) <= len(source.log):
            raise Refused("TB002")
        if through_step is not None and (
            through_step not in source.steps or source.steps[through_step].status != "completed"
        ):
            raise Refused("TB007")
        through = len(source.log) if through_seq is None else through_seq
        through = through if through_step is None else source.steps[through_step].seq

        fork = self.runs[new_run_id] = Run(
            source.workflow,
            source.input if input is None else input,
            limit=source.limit,
            max_attempts=source.max_attempts,
            retry_delay=source.retry_delay,
        )
        source.forks[new_run_id] = asked
        fork.budgeted = source.budgeted
        fork.above = source.parent if source.parent and self.runs[source.parent].budgeted else source.above
        until = source.moments[through] if through < len(source.log) else None
        made = {payload["name"] for type, payload in source.log[:through] if type == "run.child.created"}
        fork.children = {
            name: child
            for name, child in source.children.items()
            if name in made
            and self.runs[child].status == "completed"
            and (until is None or self.runs[child].moments[-1] < until)
        }
        fork.taken = frozenset(fork.children)
        fork.emit("run.forked", source_run_id=run_id, through_seq=through)
        decided = {
            payload["name"] for type, payload in source.log[:through] if type in ("gate.resolved", "timer.fired")
        }
        seqs = {}
        for seq, (type, payload) in enumerate(source.log[:through], 1):
            gate = type.startswith(("gate.", "timer.")) and payload["name"] in decided
            child = type == "run.child.created" and payload["name"] in fork.children
            if gate or child or type == "step.completed" or type.startswith("state."):
                seqs[seq] = fork.emit(type, **payload | {"source_seq": seq})
        fork.steps = {
            name: Step(**vars(step) | {"token": 0, "seq": seqs[step.seq], "request_id": None})
            for name, step in source.steps.items()
            if step.status == "completed" and step.seq in seqs
        }
        fork.gates = {
            name: SimpleNamespace(
                **vars(gate)
                | {"request_id": None, "votes": {who: (said, None) for who, (said, _) in gate.votes.items()}}
            )
            for name, gate in source.gates.items()
            if name in decided
        }
        for stream, versions in source.streams.items():
            taken = [(value, label, seqs[seq]) for value, label, seq in versions if seq in seqs]
            fork.streams |= {stream: taken} if taken else {}
        return new_run_id
