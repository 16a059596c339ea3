"""Every schedule of a small cast, run on the real functions.

A schedule is an order in which the calls of several actors take effect. Each public function takes the lock of the
run's head before it writes, so calls on one run take effect one after the other, and what two sessions can do to each
other is the sum of these orders. (That they do wait for each other is shown elsewhere: by the isolation specs, and by
the probes that force a race.)

The tree of schedules is walked depth first in one transaction: a savepoint before each call, and back to it for the
next one. So a common beginning is executed once, nothing is ever committed, and a million schedules take minutes. At
the end of each schedule the rows are checked, and the run is brought to its end: none may leave it stuck.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import psycopg
from psycopg import pq

from .cast import Actor, Answer, Call, Cast, Known
from .oracle import Violation, observe

#: In the session, once: the end of a schedule, checked and then brought to the run's end.
ENDING = """
create or replace function pg_temp.ending() returns text language plpgsql as $$
declare
  head tidebase.run_heads;
  lease tidebase.lease;
  seen text;
begin
  select format('%s|%s|%s|%s|%s', h.status, h.lease_token,
    (select string_agg(s.name || '=' || s.output, ',' order by s.name)
      from tidebase.steps s where s.status = 'completed'),
    (select coalesce(g.decision, g.status) from tidebase.gates g),
    (select string_agg(distinct b.invariant, ', ') from tidebase_private.check_invariants('r') b))
  into seen from tidebase.run_heads h;

  -- Whatever happened, somebody who comes later can bring the run to its end.
  update tidebase.run_heads h
  set deadline_at = null, lease_expires_at = h.lease_expires_at - interval '1 day';
  for i in 1..10 loop
    select h.* into head from tidebase.run_heads h;
    exit when head.status in ('completed', 'cancelled');
    if exists (select from tidebase.steps s where s.status = 'review') then
      perform tidebase.resolve_review('r', 'b', 'accept', '"rescued"');
    end if;
    if head.status = 'waiting' then
      perform tidebase.decide_gate('r', 'g', 'approved');
    end if;
    lease := tidebase.acquire_run('r', 'rescuer');
    if lease.outcome <> 'granted' then
      continue;
    end if;
    if (tidebase.begin_step('r', lease.token, 'a', '1')).outcome = 'execute' then
      perform tidebase.complete_step('r', lease.token, 'a', '"rescued"');
    end if;
    if exists (select from tidebase.steps s where s.name = 'b' and s.decision = 'fail_hard') then
      perform tidebase.complete_run('r', lease.token, '"without b"');
    else
      case (tidebase.begin_step('r', lease.token, 'b', side_effects => '{send}')).outcome
        when 'execute' then
          perform tidebase.complete_step('r', lease.token, 'b', '"rescued"');
          perform tidebase.complete_run('r', lease.token, '"done"');
        when 'replay' then
          perform tidebase.complete_run('r', lease.token, '"done"');
        else null;
      end case;
    end if;
  end loop;
  return format('%s|%s|%s', seen, head.status,
    (select string_agg(distinct b.invariant, ', ') from tidebase_private.check_invariants('r') b));
end
$$"""


@dataclass
class Tally:
    """What was done."""

    schedules: int = 0
    calls: int = 0
    longest: int = 0
    violations: list[str] = field(default_factory=list)

    def add(self, other: Tally) -> None:
        self.schedules += other.schedules
        self.calls += other.calls
        self.longest = max(self.longest, other.longest)
        self.violations += other.violations


Path = tuple[tuple[Call, Answer], ...]

#: At this many calls from the root the tree is cut into subtrees, to be shared out.
CUT = 6


class Explorer:
    """Walks the schedules of a cast on one connection, or a share of them."""

    def __init__(self, connection: psycopg.Connection[Any], stop: Callable[[], bool] = lambda: False) -> None:
        self.tally = Tally()
        self._pgconn = connection.pgconn
        self.stop = stop
        self._execute(ENDING)

    def run(self, cast: Cast, share: int = 0, shares: int = 1) -> Tally:
        """Runs every schedule of the cast; or the subtrees of one of several shares, which together are all. Neighbours
        in the tree go in pairs (an actor lives on, or crashes), so an odd number of shares makes them more alike.
        """
        self.tally, self._share, self._shares, self._subtrees, self._savepoints = Tally(), share, shares, 0, 0
        self._execute("begin; set local synchronous_commit = off; select tidebase.create_run('test', run_id => 'r')")
        try:
            self._walk(Known(), cast.actors, ())
        finally:
            self._execute("rollback")
        return self.tally

    def _walk(self, known: Known, actors: tuple[Actor, ...], path: Path) -> None:
        if len(path) == CUT:
            self._subtrees += 1
            if self._subtrees % self._shares != self._share:
                return
        choices = [(index, call) for index, actor in enumerate(actors) for call in actor.calls(known)]
        if not choices:
            if len(path) >= CUT or self._share == 0:  # one that ends above the cut belongs to the first share
                self._end(known, path)
            return
        for index, call in choices:
            if self.stop():
                return
            answer = self._call(call, len(path))
            longer = (*path, (call, answer))
            try:
                then = observe(known, call, answer)
            except Violation as violation:
                self._report(str(violation), longer)
                continue
            for actor in actors[index].after(call, answer):
                self._walk(then, (*actors[:index], actor, *actors[index + 1 :]), longer)

    def _end(self, known: Known, path: Path) -> None:
        """The rows are as the answers said, no rule is broken, and the run can be brought to its end."""
        self.tally.schedules += 1
        self.tally.longest = max(self.tally.longest, len(path))
        answer = self._call(Call("checker", "ending", "select pg_temp.ending()"), len(path))
        gate = {"none": "", "overdue": "pending", "closed": "cancelled"}.get(known.gate, known.gate)
        outputs = ",".join(f"{step}={output}" for step, output in known.outputs)
        final = "cancelled" if known.status == "cancelled" else "completed"
        expected = f"{known.status}|{known.token}|{outputs}|{gate}||{final}|"
        if answer != Answer("ok", (expected,)):
            self._report(f"the end is {answer.code} {answer.row[0]} instead of {expected}", path)

    def _report(self, violation: str, path: Path) -> None:
        told = [f"  {call.actor}: {call.what} -> {answer.code} {list(answer.row)}" for call, answer in path]
        self.tally.violations.append("\n".join([violation, *told]))

    def _call(self, call: Call, depth: int) -> Answer:
        """Makes a call in the state that this many calls have led to."""
        save = "rollback to" if self._savepoints > depth else "savepoint"
        self._savepoints = depth + 1
        self.tally.calls += 1
        result = self._pgconn.exec_(f"{save} s{depth}; {call.statement}".encode())
        if result.status == pq.ExecStatus.FATAL_ERROR:
            code = (result.error_field(pq.DiagnosticField.SQLSTATE) or b"").decode()
            message = (result.error_field(pq.DiagnosticField.MESSAGE_PRIMARY) or b"").decode()
            self._execute(f"rollback to s{depth}")
            return Answer(code, (message,))
        row = range(result.nfields) if result.ntuples else ()
        cells = [result.get_value(0, column) for column in row]
        return Answer("ok", tuple(None if cell is None else cell.decode() for cell in cells))

    def _execute(self, statement: str) -> None:
        result = self._pgconn.exec_(statement.encode())
        if result.status == pq.ExecStatus.FATAL_ERROR:
            raise AssertionError(f"{statement}: {result.error_message.decode()}")
