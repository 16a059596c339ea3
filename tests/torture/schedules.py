"""Every schedule of a small cast, run on the real functions.

A schedule is an order in which the calls of several actors take effect. Each public function takes the lock of the
run's head before it writes, so calls on one run take effect one after the other, and what two sessions can do to each
other is the sum of these orders. (That they do wait for each other is shown elsewhere: by the isolation specs, and by
the probes that force a race.)

The tree of schedules is walked depth first in one transaction: a savepoint before each call, and back to it for the
next one. So a common beginning is executed once, and nothing is ever committed. At the end of each schedule (where they
are merged: after each call) the rows are checked, and the run is brought to its end (once where the rows are the same):
none may leave it stuck.

Many schedules pass through the same place: calls that were refused, or that had nothing to do, leave no trace. Merged
there, as a model checker does it, hundreds of millions are walked in minutes; a few are also walked one by one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import psycopg
from psycopg import pq

from ..probes.support import value
from .cast import Actor, Answer, Call, Cast, Known
from .oracle import Violation, observe

#: In the session, once. What a schedule has led to: as the answers should say, the rules that are broken, and all rows
#: (of times only whether they have come), so that the same end need not be brought to the run's end again.
SEEN = """
create or replace function pg_temp.seen(out seen text, out everything text) language plpgsql as $$
begin
  select format('%s|%s|%s|%s|%s', h.status, h.lease_token,
    (select string_agg(s.name || '=' || s.output, ',' order by s.name)
      from tidebase.steps s where s.status = 'completed'),
    (select coalesce(g.decision, g.status) from tidebase.gates g),
    (select string_agg(distinct b.invariant, ', ') from tidebase_private.check_invariants('r') b))
  into seen from tidebase.run_heads h;
  select md5(string_agg(regexp_replace(rows.row, '"\\d{4}-\\d\\d-\\d\\dT[^"]*"', 'a time', 'g'), ' ' order by rows.row))
  into everything
  from (@rows@ union all
    select concat_ws(' ', g.name, g.timeout_at < clock_timestamp()) from tidebase.gates g union all
    select concat_ws(' ', h.available_at < clock_timestamp(), h.lease_expires_at < clock_timestamp(),
      h.due_at < clock_timestamp(), h.deadline_at < clock_timestamp()) from tidebase.run_heads h) rows (row);
end
$$"""

#: Whatever happened, somebody who comes later can bring the run to its end.
RESCUE = """
create or replace function pg_temp.rescue() returns text language plpgsql as $$
declare
  head tidebase.run_heads;
  lease tidebase.lease;
begin
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
  return format('%s|%s', head.status,
    (select string_agg(distinct b.invariant, ', ') from tidebase_private.check_invariants('r') b));
end
$$"""

TABLES = """
select string_agg(format('select %%L || to_jsonb(t)::text from %%s t', c.oid::regclass, c.oid::regclass), ' union all ')
from pg_class c where c.relnamespace = 'tidebase'::regnamespace and c.relkind = 'r'"""


@dataclass
class Tally:
    """What was done.

    Attributes:
        schedules: how many there are.
        executed: how many of them were executed to their end, where some were merged.
    """

    schedules: int = 0
    executed: int = 0
    calls: int = 0
    longest: int = 0
    violations: list[str] = field(default_factory=list)


Path = tuple[tuple[Call, Answer], ...]
Place = tuple[str, Known, tuple[Actor, ...]]

#: At this many calls from the root the tree is cut into subtrees, to be shared out.
CUT = 6


class Explorer:
    """Walks the schedules of a cast on one connection, or a share of them."""

    def __init__(self, connection: psycopg.Connection[Any], stop: Callable[[], bool] = lambda: False) -> None:
        self.tally = Tally()
        self._pgconn = connection.pgconn
        self.stop = stop
        self._rescued: set[str] = set()
        self._execute(SEEN.replace("@rows@", value(connection, TABLES)))
        self._execute(RESCUE)

    def run(self, cast: Cast, share: int = 0, shares: int = 1, *, merged: bool = False) -> Tally:
        """Runs every schedule of the cast; or the subtrees of one of several shares, which together are all. Neighbours
        in the tree go in pairs (an actor lives on, or crashes), so an odd number of shares makes them more alike.

        merged: where one has led to the same rows, knowledge and actors as another, what can follow is the same, and is
        executed once.
        """
        self.tally, self._share, self._shares, self._subtrees, self._savepoints = Tally(), share, shares, 0, 0
        self._after: dict[Place, int] | None = {} if merged else None
        self._execute(f"begin; set local synchronous_commit = off; {cast.beginning}")
        known = Known(queued=True, status="queued") if cast.queued else Known()
        try:
            self._walk(known, cast.actors, ())
        finally:
            self._execute("rollback")
        return self.tally

    def _walk(self, known: Known, actors: tuple[Actor, ...], path: Path) -> None:
        """Every schedule that begins with this path."""
        if self._after is None or not path:
            self._walk_on(known, actors, path)
            return
        everything = self._compare(known, path)
        if everything is None:
            return
        place = (everything, known, actors)
        if place in self._after:
            self.tally.schedules += self._after[place]
        else:
            before = self.tally.schedules
            self._walk_on(known, actors, path)
            self._after[place] = self.tally.schedules - before

    def _walk_on(self, known: Known, actors: tuple[Actor, ...], path: Path) -> None:
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
        """The rows are as the answers said, and the run can be brought to its end."""
        self.tally.schedules += 1
        self.tally.executed += 1
        self.tally.longest = max(self.tally.longest, len(path))
        everything = self._compare(known, path)
        if everything is None or everything in self._rescued:
            return
        rescued = self._look("select pg_temp.rescue()", path)[0]
        final = "cancelled|" if known.status == "cancelled" else "completed|"
        if rescued == final:
            self._rescued.add(everything)
        else:
            self._report(f"the run is brought to {rescued} instead of {final}", path)

    def _compare(self, known: Known, path: Path) -> str | None:
        """All rows, in short; None where they are not as the answers said, or break a rule."""
        seen, everything = self._look("select * from pg_temp.seen()", path)
        gate = {"none": "", "overdue": "pending", "closed": "cancelled"}.get(known.gate, known.gate)
        outputs = ",".join(f"{step}={output}" for step, output in known.outputs)
        expected = f"{known.status}|{known.token}|{outputs}|{gate}|"
        if seen != expected:
            self._report(f"there is {seen} instead of {expected}", path)
            return None
        return everything

    def _look(self, statement: str, path: Path) -> tuple[str | None, ...]:
        answer = self._call(Call("checker", "end", statement), len(path))
        return answer.row if answer.code == "ok" else (f"{answer.code} {answer.row[0]}", None)

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
