"""Every call about one run is held up at each of its statements, and every other call is made there.

A race (see ``races``) begins when the first call has taken effect. Here the second one begins in the middle of the
first: where that holds the lock which the second needs, it waits; where not, it ends first, and whatever the first has
seen before is out of date. The answers and all rows must be those of one of the two serial orders, all the same.

To be held up, the functions are changed: between their statements they pass a point, each with a number, and wait
there for a lock that has this number. Nothing else of them is touched.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass

from psycopg import errors

from ..probes.support import Connection, connect
from .races import CALLS, LEAVE_OUT, NEITHER, STATES, Orders, Outcome, Racer, Rows, Tally, explain, is_refused, nothing

LOCKS = 7  # the first key of the locks, for them alone

POINT = f"""
create or replace function tidebase_private.point(number integer) returns void language plpgsql as $$
begin
  if current_setting('torture.trace', true) = 'on' then
    raise notice 'point %', number;
  end if;
  perform pg_advisory_xact_lock_shared({LOCKS}, number);
end $$;
grant execute on function tidebase_private.point(integer) to public"""

#: A function that is stable sees what its caller's statement sees: to hold it up shows nothing.
FUNCTIONS = """
select p.proname, pg_get_functiondef(p.oid) from pg_proc p join pg_language l on l.oid = p.prolang
where l.lanname = 'plpgsql' and p.provolatile = 'v' and p.proname <> 'point'
  and p.pronamespace in ('tidebase'::regnamespace, 'tidebase_private'::regnamespace)
order by p.proname"""

#: The end of a line behind which another statement may stand. Whether it may is for the server to say.
BEFORE_A_STATEMENT = re.compile(r"(;|\bbegin|\bthen|\belse|\bloop)$")


@dataclass(frozen=True)
class Point:
    number: int
    function: str
    behind: str

    def __str__(self) -> str:
        return f"{self.function}, behind {self.behind.strip()!r}"


def instrument(connection: Connection) -> dict[int, Point]:
    """Makes the functions pass points, and says which."""
    connection.execute(POINT)
    points: dict[int, Point] = {}
    for name, definition in connection.execute(FUNCTIONS).fetchall():
        lines = definition.split("\n")
        body = lines.index("begin") if "begin" in lines else len(lines)
        for index in reversed([i for i in range(body, len(lines)) if BEFORE_A_STATEMENT.search(lines[i])]):
            number = len(points) + 1
            # RAISE leaves FOUND and the row count as they are.
            passing = f"raise debug 'point %', tidebase_private.point({number});"
            changed = [*lines[: index + 1], passing, *lines[index + 1 :]]
            try:
                connection.execute("\n".join(changed))  # type: ignore[call-overload]
            except (errors.SyntaxError, errors.DatatypeMismatch):
                continue  # the line is not the end of a statement
            lines = changed
            points[number] = Point(number, name, definition.split("\n")[index])
    return points


class Interrupter(Racer):
    """Holds calls up in one database, which is its own, and whose functions it changes."""

    def __init__(self, url: str) -> None:
        with connect(url) as connection:
            self.points = instrument(connection)
        super().__init__(url)
        self._passed: list[int] = []
        self._second.connection.add_notice_handler(
            lambda notice: self._passed.append(int((notice.message_primary or "").removeprefix("point ")))
        )

    def interrupt(
        self,
        state: str,
        calls: Collection[str] = tuple(CALLS),
        stop: Callable[[], bool] = lambda: False,
        others: Collection[str] = tuple(CALLS),
    ) -> Tally:
        """These calls from this state, held up wherever they pass, each met by each of the others that changes
        something.
        """
        tally, base = Tally(), STATES[state]
        before, _ = self._alone(base, None)
        alone = {name: self._alone(base, name) for name in dict.fromkeys([*calls, *others])}
        changed = {name for name, (rows, answer) in alone.items() if not is_refused(answer) and rows != before}
        makers = [name for name in others if name in changed]
        queued = {name for name in makers if self._needs_the_head(base, name)}
        for call in calls:
            orders = {
                other: Orders(self._in_turn(base, call, other), self._in_turn(base, other, call)) for other in makers
            }
            for point in self._points_of(base, call):
                held = False
                for other in makers:
                    if {(call, other), (other, call)} & NEITHER:
                        continue
                    if held and other in queued:
                        continue  # it waits for the lock that the call holds, as another did just now
                    if stop():
                        return tally
                    held, waited, got = self._held_up(base, call, point, other)
                    tally.races += 1
                    tally.waited += waited
                    allowed = self._allowed(orders[other], call, other, alone)
                    if got not in allowed:
                        race = f"{state}: {call}, held up in {self.points[point]}; {other}"
                        tally.violations.append(f"{race}: {explain(got, allowed)}")
        return tally

    def _allowed(self, orders: Orders, call: str, other: str, alone: dict[str, tuple[Rows, str]]) -> list[Outcome]:
        """Outcomes with the answer of the call that was held up first."""
        there, back = orders
        allowed = [there, Outcome(back.second, back.first, back.rows)]
        if other in LEAVE_OUT:
            allowed.append(Outcome(alone[call][1], nothing(other, alone[other][1]), alone[call][0]))
        if call in LEAVE_OUT:
            allowed.append(Outcome(nothing(call, alone[call][1]), alone[other][1], alone[other][0]))
        return allowed

    def _points_of(self, base: tuple[str, ...], call: str) -> list[int]:
        """The points that a call passes, in order."""
        self._build(base)
        self._passed.clear()
        self._second.execute("set torture.trace = 'on'")
        self._second.execute(self._make(call))
        self._second.execute("set torture.trace = 'off'")
        self._end()
        return list(dict.fromkeys(self._passed))

    def _needs_the_head(self, base: tuple[str, ...], call: str) -> bool:
        self._build(base)
        self._first.execute(f"begin; select from tidebase.run_heads where run_id = '{self._run_id}' for no key update")
        self._second.send(self._make(call))
        waits = self._waits(self._second)
        self._first.execute("rollback")
        self._second.answer()
        self._end()
        return waits

    def _held_up(self, base: tuple[str, ...], call: str, point: int, other: str) -> tuple[bool, bool, Outcome]:
        """Whether the call that is held up holds the run's head, whether the other waits, and what came of them."""
        self._build(base)
        self._look(f"select pg_advisory_lock({LOCKS}, {point})")
        self._second.send(self._make(call))
        self._waits(self._second)
        free = "select 1 from tidebase.run_heads where run_id = '{r}' for no key update skip locked"
        held = self._look(self._text(free)) == ""
        self._first.send(self._make(other))
        waited = self._waits(self._first)
        self._look(f"select pg_advisory_unlock({LOCKS}, {point})")
        answers = [self._plain(session.answer()) for session in (self._second, self._first)]
        return held, waited, Outcome(*answers, self._end())
