"""Every pair of calls about one run, raced: the second is made while the first has taken effect, uncommitted.

The run is one that somebody holds by its id, or one of a queue (which has the run's name, so no other run is in it).

Whatever the second one read before it had to wait is out of date when it goes on, and a function may forget to look
again. So each pair is held against its serial orders: the answers and all rows must be as when the second call is made
after the first has ended, or, if the second one did not wait, the other way round. If the first one is taken back, the
second must answer as if it had never been made. The schedules, which take calls one after the other, rest on this.
"""

from __future__ import annotations

import itertools
import json
import re
import select
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from psycopg import pq

from ..probes.support import connect
from ..support.patience import PATIENCE_S

PAST = "clock_timestamp() - interval '1 second'"
CHILD = "(select child_run_id from tidebase.edges where run_id = '{r}' and name = 'c')"

#: The secrets of the gate that two must decide, and none where there is no such gate.
SECRET = "(select tidebase_private.gate_secret(tidebase_private.find_gate('{{r}}', 'two'){}))"
BOBS, ANYBODYS = SECRET.format(", 'bob'"), SECRET.format("")

#: A run with something of everything, held by A with token 1.
AT_WORK = (
    "create_run('w', '1', run_id => '{r}', metadata => '{\"mine\": true}',"
    " recovery_webhook => 'http://hook.test', budget => '{\"tokens\": 100}')",
    "record_recovery('{r}')",
    "add_channel('{r}', 'http://channel.test')",
    "acquire_run('{r}', 'A', '1 hour', request_id => 'grant')",
    "record_step('{r}', 1, 'done', '1', '1')",
    "begin_step('{r}', 1, 'plain', '1')",
    "begin_step('{r}', 1, 'unsafe', '1', side_effects => '{send}')",
    "begin_step('{r}', 1, 'broken', '1', side_effects => '{send}')",
    "fail_step('{r}', 1, 'broken')",
    "open_gate('{r}', 1, 'g', timeout => '1 hour', default_decision => 'late')",
    "open_gate('{r}', 1, 'two', required_approvals => 2)",
    "set_state('{r}', 1, '{\"n\": 1}', label => 'one')",
    "create_child('{r}', 1, 'c', 'w', '1')",
    f"acquire_run({CHILD}, 'A')",
    "record_usage('{r}', 1, input_tokens => 90)",
)
LAPSED = f"update tidebase.run_heads set lease_expires_at = {PAST}, due_at = {PAST} where run_id = '{{r}}'"
LATE = f"update tidebase.run_heads set deadline_at = {PAST}, due_at = {PAST} where run_id = '{{r}}'"
OVERDUE = (
    f"update tidebase.gates set timeout_at = {PAST} where run_id = '{{r}}' and name = 'g'",
    f"update tidebase.run_heads set due_at = {PAST} where run_id = '{{r}}'",
)

#: The same, of a queue: claimed by A with token 1.
ENQUEUED = (
    "enqueue_run('w', '1', '{r}', '{r}', '{\"mine\": true}', key => 'k', dedupe_key => 'd', max_attempts => 3,"
    " retry_delay => '1 hour'{more})"
)
QUEUED = (ENQUEUED.replace("{more}", ""),)
CLAIM = "select count(*) from tidebase.claim_runs(array['{r}'], 'A', ttl => '1 hour', request_id => 'claim')"
CLAIMED = (*QUEUED, CLAIM, *AT_WORK[4:])
#: Its time has come, and the run before it, which is to be cancelled, is the one that the race is about.
DUE = (
    "put_schedule('{r}', 'w', every => '1 hour', queue => '{r}', overlap => 'cancel')",
    "update tidebase.schedules set anchor = anchor - interval '1 hour', fired_at = fired_at - interval '90 minutes',"
    f" next_at = {PAST}, last_run_id = '{{r}}' where schedule = '{{r}}'",
)

#: The endpoint of its queue was told of it.
TOLD = (
    "put_queue('{r}', concurrency => 1, endpoint => 'http://push.test')",
    *QUEUED,
    "select count(*) from tidebase.claim_invocations()",
)

LEVELS = ("read committed", "repeatable read", "serializable")

#: Where a race begins.
STATES: dict[str, tuple[str, ...]] = {
    "lapsed": (*AT_WORK, LAPSED),
    "completed": (
        *AT_WORK,
        f"select tidebase_private.forget(array[{CHILD}])",
        "resolve_review('{r}', 'broken', 'accept', '1')",
        "complete_step('{r}', 1, 'unsafe', '1')",
        "complete_run('{r}', 1, '1')",
    ),
    "waiting for too long": (*AT_WORK, "suspend_run('{r}', 1, 'g')", *OVERDUE),
    "late": (*AT_WORK, LATE),
    "running": AT_WORK,
    "in review": (*AT_WORK, "fail_run('{r}', 1)"),
    "waiting": (*AT_WORK, "suspend_run('{r}', 1, 'g')"),
    "released": (*AT_WORK, "release_run('{r}', 1)"),
    "failed": (*AT_WORK, "resolve_review('{r}', 'broken', 'retry')", "fail_run('{r}', 1)"),
    "cancelled": (*AT_WORK, "cancel_run('{r}')"),
}

#: Where a race begins that is about a run of a queue.
QUEUE_STATES: dict[str, tuple[str, ...]] = {
    "queued": QUEUED,
    "delayed": (ENQUEUED.replace("{more}", ", delay => '1 hour'"),),
    "behind a limit": (
        "put_queue('{r}', concurrency => 1)",
        "enqueue_run('w', queue => '{r}', run_id => '{r}.full')",
        CLAIM.replace("'claim'", "'full'"),
        *QUEUED,
    ),
    "claimed": CLAIMED,
    "claimed and lapsed": (*CLAIMED, LAPSED),
    "claimed and lapsed, the last time": (
        "put_queue('{r}', concurrency => 1)",
        *(call.replace("max_attempts => 3", "max_attempts => 1") for call in CLAIMED),
        LAPSED,
    ),
    "given up": (*CLAIMED, "release_run('{r}', 1)"),
    "suspended for too long": (*CLAIMED, "suspend_run('{r}', 1, 'g')", *OVERDUE),
    "a dead letter": (*QUEUED, CLAIM, "fail_run('{r}', 1, retryable => false)"),
    "due by the clock": (*QUEUED, *DUE),
    "told of": (*TOLD,),
    "told of, and begun": (*TOLD, "acquire_run('{r}', 'A', '1 hour', request_id => 'grant')"),
}
STATES |= QUEUE_STATES

#: Who may do what.
CALLS = {
    "acquire": "acquire_run('{r}', 'B')",
    "acquire again": "acquire_run('{r}', 'A', request_id => 'grant')",
    "renew": "renew_lease('{r}', 1)",
    "renew many": "renew_leases(array['{r}'], array[1])",
    "release": "release_run('{r}', 1)",
    "complete": "complete_run('{r}', 1, '1')",
    "fail": "fail_run('{r}', 1)",
    "cancel": "cancel_run('{r}')",
    "cancel the child": f"cancel_run({CHILD})",
    "recover": "recover_run('{r}')",
    "record a recovery": "record_recovery('{r}', request_id => 'recovery')",
    "finish a recovery": "finish_recovery('{r}', 1, 'failed')",
    "reconcile": "reconcile()",
    "watch": "watch_run('{r}')",
    "create": "create_run('w', '1', run_id => '{r}')",
    "create another": "create_run('other', '1', run_id => '{r}')",
    "begin a step": "begin_step('{r}', 1, 'new', '1', request_id => 'new')",
    "begin it with a hash": "begin_step_with('{r}', 1, 'new', '3', 'h', '{\"retries\": 1}')",
    "begin it with another input": "begin_step('{r}', 1, 'new', '2')",
    "begin what is done": "begin_step('{r}', 1, 'done', '1')",
    "begin what is in review": "begin_step('{r}', 1, 'broken', '1', side_effects => '{send}')",
    "begin under the next token": "begin_step('{r}', 2, 'plain', '1')",
    "record a step": "record_step('{r}', 1, 'new', '1', '1', log_start => true)",
    "record what was begun": "record_step('{r}', 1, 'plain', '1', '2')",
    "record several": (
        "select to_jsonb(t) from tidebase.record_steps('{r}', 1,"
        " '[{{\"name\": \"new\", \"input\": 1, \"output\": 1}}, {{\"name\": \"other\", \"log_start\": true}}]') t"
    ),
    "complete a step": "complete_step('{r}', 1, 'plain', '1')",
    "complete it with another output": "complete_step('{r}', 1, 'plain', '2')",
    "complete an unsafe step": "complete_step('{r}', 1, 'unsafe', '1')",
    "fail a step": "fail_step('{r}', 1, 'plain')",
    "fail an unsafe step": "fail_step('{r}', 1, 'unsafe')",
    "have it repeated": "resolve_review('{r}', 'broken', 'retry', request_id => 'review')",
    "accept it": "resolve_review('{r}', 'broken', 'accept', '1')",
    "load": "select to_jsonb(t) from tidebase.load_checkpoints('{r}', true) t order by t.name",
    "append": "append_event('{r}', 1, 'note')",
    "append once": "append_event('{r}', 1, 'note', request_id => 'note')",
    "read": "read_events('{r}')",
    "set": "set_state('{r}', 1, '{\"n\": 2}')",
    "set the second version": "set_state('{r}', 1, '{\"n\": 2}', expected_version => 1)",
    "patch": "patch_state('{r}', 1, '{\"m\": 2}', request_id => 'patch')",
    "merge": "merge_state('{r}', 1, '{\"m\": null}', request_id => 'merge')",
    "save": "save_state('{r}', 1, 'saved')",
    "restore": "restore_state('{r}', 1, label => 'one')",
    "snapshot": "create_snapshot('{r}', 1, 'snap')",
    "get the state": "get_state('{r}')",
    "use": "record_usage('{r}', 1, input_tokens => 10, cost_usd => 0.5)",
    "use once": "record_usage('{r}', 1, input_tokens => 10, response_id => 'x')",
    "use in the child": f"record_usage({CHILD}, 1, input_tokens => 10, cost_usd => 0.5)",
    "begin in the child": f"begin_step({CHILD}, 1, 'new')",
    "set a budget": "set_budget('{r}', tokens => 95)",
    "make a child": "create_child('{r}', 1, 'd', 'w')",
    "make the child again": "create_child('{r}', 1, 'c', 'w', '1')",
    "open a gate": "open_gate('{r}', 1, 'new')",
    "open it again": "open_gate('{r}', 1, 'g', timeout => '1 hour', default_decision => 'late')",
    "start a timer": "start_timer('{r}', 1, 'timer', '0')",
    "approve": "decide_gate('{r}', 'g', 'approved', request_id => 'approve')",
    "reject": "decide_gate('{r}', 'g', 'rejected')",
    "the login's vote": "decide_gate('{r}', 'two', 'approved', 'ada')",
    "its vote under another name": "decide_gate('{r}', 'two', 'approved', 'bob')",
    "bob's vote": f"decide_gate('{{r}}', 'two', 'approved', secret => {BOBS})",
    "a bearer's vote": f"decide_gate('{{r}}', 'two', 'approved', secret => {ANYBODYS})",
    "ask for bob's secret": "get_gate_secret('{r}', 'two', 'bob')",
    "look at the gate": "get_gate('{r}', 'g')",
    "suspend": "suspend_run('{r}', 1, 'g')",
    "suspend for the child": "suspend_for_children('{r}', 1, '{c}')",
    "withdraw": "withdraw_grant('{r}', 'grant')",
    "fork": "fork_run('{r}', '{r}.fork')",
    "compact": "compact_run('{r}')",
    "purge": "purge_runs('0', '{completed}')",
    "claim deliveries": "claim_deliveries()",
    "finish a delivery": "finish_delivery('{r}', 1, 0, true)",
    "add a channel": "add_channel('{r}', 'http://another.test', 'secret')",
    "remove a channel": "remove_channel('{r}', 1)",
    "try a channel again": "retry_channel('{r}', 1)",
    "claim channels": "select to_jsonb(t) from tidebase.claim_channel_deliveries() t",
    "finish at a channel": "select to_jsonb(t) from tidebase.finish_channel_delivery('{r}', 1, 1, true) t",
    "cancel many": "cancel_runs(metadata => '{\"mine\": true}')",
    "retry many": "retry_runs(metadata => '{\"mine\": true}')",
    "move many": "move_runs('{r}.other', metadata => '{\"mine\": true}')",
    "move it": "move_run('{r}', '{r}.other')",
}  # fmt: skip

#: What is done to queues and by the clock; from the states of runs that are in no queue it changes nothing of theirs.
QUEUE_CALLS = {
    "enqueue": "enqueue_run('w', '1', '{r}', '{r}')",
    "enqueue another": "enqueue_run('w', '1', '{r}', '{r}.new', key => 'k')",
    "enqueue its key": "enqueue_run('w', '2', '{r}', '{r}.new', dedupe_key => 'd')",
    "replace it": "enqueue_run('w', '2', '{r}', '{r}.new', delay => '2 hours', dedupe_key => 'd',"
    " on_duplicate => 'replace')",
    "refuse its key": "enqueue_run('w', '2', '{r}', '{r}.new', dedupe_key => 'd', on_duplicate => 'reject')",
    "enqueue the key where it may be moved": "enqueue_run('w', '2', '{r}.other', '{r}.moved', dedupe_key => 'd')",
    "enqueue many": 'select to_jsonb(t) from tidebase.enqueue_runs(\'[{"workflow": "w", "queue": "{r}"}]\') t',
    "claim": "select to_jsonb(t) from tidebase.claim_runs(array['{r}'], 'C', 5) t",
    "claim once": "select to_jsonb(t) from tidebase.claim_runs(array['{r}'], 'A', 5, request_id => 'claim') t",
    "claim with another code": "select to_jsonb(t) from tidebase.claim_runs(array['{r}'], 'C', 5, workflows => '{w}',"
    " code_version => '2', versions => '{}', request_id => 'other') t",
    "limit the queue": "put_queue('{r}', concurrency => 1, key_rate => 1)",
    "limit it no more": "put_queue('{r}')",
    "pause it": "pause_queue('{r}')",
    "give it an endpoint": "put_queue('{r}', endpoint => 'http://other.test')",
    "tell of it": "select to_jsonb(t) from tidebase.claim_invocations() t",
    "it was told of": "finish_invocation('{r}', 1, true, 200)",
    "it was not told of": "finish_invocation('{r}', 1, false, error => 'no answer')",
    "let it go on": "resume_queue('{r}')",
    "put a schedule": "put_schedule('{r}', 'w', every => '1 hour', queue => '{r}', input => '2')",
    "delete the schedule": "delete_schedule('{r}')",
    "trigger the schedule": "trigger_schedule('{r}', '{r}.triggered')",
    "fill it up": "select to_jsonb(t) from tidebase.backfill_schedule('{r}', now() - interval '3 hours', now()) t",
}
CALLS |= QUEUE_CALLS

#: They wait for nobody: what is locked they leave out, as if it did not concern them.
BULK = {"cancel many", "retry many", "move many"}
CLAIMS = {"claim", "claim once", "claim with another code", "tell of it"}
LEAVE_OUT = {"renew many", "reconcile", "purge", "claim deliveries", "claim channels", "move it"} | BULK | CLAIMS

#: They are one call, made again: that waits for its answer.
REPEATED = {("claim once", "claim once"), ("claim with another code", "claim with another code")}

#: What is neither of the orders, and well: a bulk call is about the runs that were there when it began, and a fork is
#: one more; and who asked for a run by its id, and waited while it was moved, is to ask again (see acquire_run).
NEITHER = {
    *itertools.product(("fork",), BULK),
    *itertools.product(("acquire", "acquire again"), ("move many", "move it")),
}

ALL_TABLES = """
select c.oid::regclass::text from pg_class c
where c.relnamespace = 'tidebase'::regnamespace and c.relkind = 'r'
order by 1"""

TABLES = """
select c.oid::regclass::text from pg_class c
where c.relnamespace = 'tidebase'::regnamespace and c.relkind = 'r'
  and c.relname not in (
    'watches',  -- marks of readers, which mean nothing without their run
    'lanes', 'workers',  -- where to look first, and who did
    'slots', 'queue_starts')  -- what limits count, by and by: see the probes
order by 1"""

#: What is new every time: ids, times, chance; and how many bytes a value took where it was looked at.
VOLATILE = re.compile(
    r"(?P<TIME>\d{4}-\d\d-\d\d[T ][0-9:.]+(?:Z|[+-]\d\d(?::\d\d)?))|(?P<CHILD>run_[-0-9a-f]{36})"
    r"|(?P<SECRET>gate_[0-9a-f]{64})"
    r'|(?<="place": )(?P<PLACE>-?\d+)|(?<="turn": )(?P<TURN>"[^"]*")'  # which of two was first, or saw the other
    r'|(?<="nonce": )(?P<NONCE>"[^"]*")'
    r'|(?<="retry_after": )(?P<DELAY>"[^"]*"|[0-9.]+)|(?<="group_bytes": )(?P<SIZE>\d+)'
)

FORGET = """
select tidebase_private.forget(array(select run_id from tidebase.runs));
delete from tidebase.queues; delete from tidebase.lanes; delete from tidebase.claims; delete from tidebase.schedules;
delete from tidebase.endpoints; delete from tidebase.slots; delete from tidebase.queue_starts;
delete from tidebase.workers"""

Rows = tuple[str, ...]
Pair = tuple[str, str]


class Outcome(NamedTuple):
    """The answers in the order of the names of the calls, and all rows in the end."""

    first: str
    second: str
    rows: Rows


@dataclass
class Tally:
    races: int = 0
    waited: int = 0
    violations: list[str] = field(default_factory=list)


class Session:
    """A connection that is given one statement after the other, and need not be waited for."""

    def __init__(self, url: str, level: str = LEVELS[0]) -> None:
        isolation = level.replace(" ", "\\ ")
        options = f"-c default_transaction_isolation={isolation} -c statement_timeout={round(PATIENCE_S)}s"
        self.connection = connect(url, options=options)
        self._pgconn = self.connection.pgconn
        self.pid = self.connection.info.backend_pid

    def send(self, statement: str) -> None:
        self._pgconn.send_query(statement.encode())

    def is_done(self, wait_s: float = 0.0) -> bool:
        if self._pgconn.is_busy():
            if select.select([self._pgconn.socket], [], [], wait_s)[0]:
                self._pgconn.consume_input()
            return not self._pgconn.is_busy()
        return True

    def answer(self) -> str:
        """The rows of the last statement that had any, or the SQLSTATE; waits for it."""
        deadline, found = time.monotonic() + PATIENCE_S, ""
        while True:
            while not self.is_done(1.0):
                if time.monotonic() > deadline:
                    raise TimeoutError("a call of a race was not answered")
            result = self._pgconn.get_result()
            if result is None:
                return found
            if result.status == pq.ExecStatus.FATAL_ERROR:
                found = (result.error_field(pq.DiagnosticField.SQLSTATE) or b"").decode()
            elif result.status == pq.ExecStatus.TUPLES_OK:
                found = "\n".join((result.get_value(row, 0) or b"").decode() for row in range(result.ntuples))

    def execute(self, statement: str) -> str:
        self.send(statement)
        return self.answer()

    def close(self) -> None:
        self.connection.close()


def statement_of(call: str) -> str:
    return call if call.startswith(("update ", "select ")) else f"select to_jsonb(t) from tidebase.{call} t"


class Racer:
    """Races calls in one database, which is its own."""

    numbers = itertools.count(1)

    def __init__(self, url: str, level: str = "read committed") -> None:
        self._level = level
        self._first, self._second = Session(url, level), Session(url, level)
        self._observer = Session(url)
        tables = [row[0] for row in self._observer.connection.execute(ALL_TABLES).fetchall()]
        self._truncate = f"truncate {', '.join(tables)}"
        self._look(self._truncate)
        tables = [row[0] for row in self._observer.connection.execute(TABLES).fetchall()]
        self._rows = " union all ".join(f"select '{table} ' || to_jsonb(t)::text from {table} t" for table in tables)
        self._made = 0
        self._run_id = ""

    def __enter__(self) -> Racer:
        return self

    def __exit__(self, *_: object) -> None:
        for session in (self._first, self._second, self._observer):
            session.close()

    def race(self, state: str, pairs: Iterable[Pair], stop: Callable[[], bool] = lambda: False) -> Tally:
        """These pairs from this state, in both orders, the first one committed and taken back."""
        tally, base = Tally(), STATES[state]
        pairs = list(pairs)
        before, _ = self._alone(base, None)
        alone = {name: self._alone(base, name) for name in dict.fromkeys(itertools.chain(*pairs))}
        makers = {name for name, (rows, answer) in alone.items() if not is_refused(answer) and rows != before}
        for one, other in pairs:
            if stop():
                break
            if not makers & {one, other}:  # neither has a lock that it would give away
                continue
            there, back = self._in_turn(base, one, other), self._in_turn(base, other, one)
            for first, second, orders in {(one, other, Orders(there, back)), (other, one, Orders(back, there))}:
                for committed in (True, False) if first in makers else ():
                    waited, got = self._at_once(base, first, second, committed)
                    tally.races += 1
                    tally.waited += waited
                    allowed = list(
                        orders.committed(first, second, waited, alone)
                        if committed
                        else orders.taken_back(second, waited, alone, before)
                    )
                    if got not in allowed:
                        then = "commits" if committed else "is taken back"
                        told = "waits, and goes on" if waited else "does not wait"
                        race = f"{state}, {self._level}: {first}; {second} {told} when the first {then}"
                        tally.violations.append(f"{race}: {explain(got, allowed)}")
        return tally

    def _look(self, statement: str) -> str:
        answer = self._observer.execute(statement)
        if is_refused(answer):
            raise AssertionError(f"{answer}: {statement}")
        return answer

    def _build(self, base: tuple[str, ...]) -> None:
        self._made += 1
        if self._made % 200 == 0:
            self._look(self._truncate)  # or every look would pass over what was deleted
        self._run_id = f"race-{next(self.numbers)}"
        # Tokens are counted from 1 again, although the runs before were purged.
        again = "update tidebase_private.incarnation set tokens_before = 0"
        statements = ["begin", again, *(self._text(statement_of(call)) for call in base), "commit"]
        self._look("; ".join(statements))

    def _text(self, statement: str) -> str:
        return statement.replace("{r}", self._run_id)

    def _make(self, name: str) -> str:
        return self._text(statement_of(CALLS[name]))

    def _end(self) -> Rows:
        """All rows, of which none is left."""
        rows = self._look(self._rows)
        self._look(FORGET)
        return tuple(sorted(self._plain(rows).split("\n")))

    def _plain(self, text: str) -> str:
        """Without what is new every time. Children are told apart by what else their rows say."""
        return VOLATILE.sub(lambda match: str(match.lastgroup), text).replace(self._run_id, "RUN")

    def _alone(self, base: tuple[str, ...], name: str | None) -> tuple[Rows, str]:
        self._build(base)
        answer = "" if name is None else self._plain(self._second.execute(self._make(name)))
        return self._end(), answer

    def _in_turn(self, base: tuple[str, ...], earlier: str, later: str) -> Outcome:
        self._build(base)
        answers = [self._plain(self._second.execute(self._make(name))) for name in (earlier, later)]
        return Outcome(*answers, self._end())

    def _at_once(self, base: tuple[str, ...], first: str, second: str, committed: bool) -> tuple[bool, Outcome]:
        self._build(base)
        answer = self._first.execute(f"begin; {self._make(first)}")
        self._second.send(self._make(second))
        waited = self._waits(self._second)
        ended = self._first.execute("commit" if committed else "rollback")
        later = self._second.answer()
        # What could not be serialised is to be repeated; no repetition helps at READ COMMITTED, where there is no need.
        if later == "40001" and self._level != LEVELS[0]:
            later = self._second.execute(self._make(second))
        if ended == "40001" and self._level == "serializable":
            answer, waited = self._first.execute(self._make(first)), False
        return waited, Outcome(self._plain(answer), self._plain(later), self._end())

    def _waits(self, session: Session) -> bool:
        """Whether the call of a session waits for a lock; otherwise it is answered."""
        asked = f"select wait_event_type = 'Lock' from pg_stat_activity where pid = {session.pid}"
        deadline = time.monotonic() + PATIENCE_S
        while not session.is_done(0.001):
            if self._look(asked) == "t":
                return True
            if time.monotonic() > deadline:
                raise TimeoutError("a call of a race neither waits nor is answered")
        return False


class Orders(NamedTuple):
    """What the calls come to one after the other; an Outcome has the answer of the earlier one first."""

    in_order: Outcome
    reversed: Outcome

    def committed(self, first: str, second: str, waited: bool, alone: dict[str, tuple[Rows, str]]) -> Iterator[Outcome]:
        yield self.in_order
        if second in BULK:  # it may wait for a key; what it says it has found is what there was when it began
            yield self.in_order._replace(second=nothing(second, alone[second][1]))
        if not waited:
            yield Outcome(self.reversed.second, self.reversed.first, self.reversed.rows)
            if second in LEAVE_OUT and (first, second) not in REPEATED:
                rows, answer = alone[first]
                yield Outcome(answer, nothing(second, alone[second][1]), rows)

    def taken_back(
        self, second: str, waited: bool, alone: dict[str, tuple[Rows, str]], before: Rows
    ) -> Iterator[Outcome]:
        rows, answer = alone[second]
        yield Outcome(self.in_order.first, answer, rows)
        if not waited and second in LEAVE_OUT:
            yield Outcome(self.in_order.first, nothing(second, answer), before)


def nothing(call: str, answer: str) -> str:
    """What those who leave out what is locked answer where nothing is left, and who is alone is answered this."""
    if call in BULK and not is_refused(answer):
        return json.dumps(json.loads(answer) | {"done": 0})
    return {
        "purge": "0",
        "move it": "false",
        "reconcile": json.dumps(dict.fromkeys(("runs", "gates", "leases", "timers", "deadlines"), 0)),
    }.get(call, "")


def is_refused(answer: str) -> bool:
    return re.fullmatch(r"[0-9A-Z]{5}", answer) is not None


def explain(got: Outcome, allowed: list[Outcome]) -> str:
    """The nearest of what was allowed, and where it differs."""
    nearest = min(allowed, key=lambda one: len(set(one.rows) ^ set(got.rows)) + 9 * (one[:2] != got[:2]))
    gone, new = Counter(nearest.rows) - Counter(got.rows), Counter(got.rows) - Counter(nearest.rows)
    told = [f"answered {got.first!r}, {got.second!r} instead of {nearest.first!r}, {nearest.second!r}"]
    return "\n".join([*told, *(f"  - {row}" for row in gone), *(f"  + {row}" for row in new)])


def calls_from(state: str) -> list[str]:
    """The calls that may change something from there."""
    return [name for name in CALLS if state in QUEUE_STATES or name not in QUEUE_CALLS]


def all_pairs(state: str, share: int = 0, shares: int = 1) -> list[Pair]:
    """Every pair of calls from a state, a call with itself included; or one of several shares of them."""
    pairs = itertools.combinations_with_replacement(calls_from(state), 2)
    return [pair for pair in pairs if pair not in NEITHER][share::shares]
