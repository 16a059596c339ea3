"""Many processes at the queues and at the clock, killed, and their sessions terminated; and what they leave.

Each probe has a short form for the tests and a long one for ``make torture``; it returns what it came to.
"""

from __future__ import annotations

import random
import signal
import tempfile
import threading
import time
import uuid
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import psycopg
from cronsim import CronSim

from .support import Connection, call, call_rows, connect, poll, value, values
from .workers import Ledger, context

#: Nobody died of a lock: the codes that a call of a claimer or a meddler may be answered.
LOST = {None, "57P01", "08006", "08003", "none"}
EXPECTED = {"ok", "TB003", "TB004", "TB005", "TB007", "40001"}


@dataclass
class Outcome:
    """What a crowd came to: what it found, and how much there was of what."""

    found: list[str] = field(default_factory=list)
    figures: Counter[str] = field(default_factory=Counter)


class Patient:
    """A session that is opened again when it was terminated, and repeats the call whose answer was lost."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._connection: Connection | None = None

    def call(self, function: str, **arguments: Any) -> tuple[str, list[dict[str, Any]]]:
        while True:
            try:
                if self._connection is None:
                    self._connection = connect(self._url)
                return "ok", call_rows(self._connection, function, **arguments)
            except psycopg.Error as error:
                if self._connection is not None and not self._connection.closed and error.sqlstate not in LOST:
                    if error.sqlstate != "40001":  # the same claim is under way yet
                        return error.sqlstate or "none", []
                else:
                    with suppress(psycopg.Error):
                        if self._connection is not None:
                            self._connection.close()
                    self._connection = None
                    time.sleep(0.002)  # a server that starts sessions may be asked again too soon

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()


class Crowd:
    """Processes that do the same, each with a number of its own; one that is killed comes again."""

    def __init__(self, count: int, work: Callable[..., None], *arguments: Any) -> None:
        self._work, self._arguments = work, arguments
        self._numbers = 0
        self.processes = [self._start() for _ in range(count)]

    def _start(self) -> Any:
        self._numbers += 1
        process = context.Process(target=self._work, args=(*self._arguments, self._numbers), daemon=True)
        process.start()
        return process

    def kill_one(self, chance: random.Random) -> None:
        victim = chance.randrange(len(self.processes))
        self.processes[victim].kill()
        self.processes[victim].join()
        self.processes[victim] = self._start()

    def close(self) -> list[str]:
        """SIGTERM: they end what they are at."""
        for process in self.processes:
            process.terminate()
        found = []
        for process in self.processes:
            process.join()
            if process.exitcode not in (0, -signal.SIGTERM):
                found.append(f"a process ended with {process.exitcode}")
            process.close()
        return found


@contextmanager
def meddling(*deeds: Callable[[], None]) -> Iterator[list[str]]:
    """Each again and again in a thread of its own, for as long as the block takes; what they raised."""
    over, raised = threading.Event(), list[str]()

    def repeat(deed: Callable[[], None]) -> None:
        while not over.is_set():
            try:
                deed()
            except Exception as error:
                raised.append(f"{type(error).__name__}: {error}")
                return

    threads = [threading.Thread(target=repeat, args=(deed,)) for deed in deeds]
    for thread in threads:
        thread.start()
    try:
        yield raised
    finally:
        over.set()
        for thread in threads:
            thread.join()


def terminate_some(connection: Connection, name: str, chance: random.Random) -> int:
    pids = values(connection, "select pid from pg_stat_activity where application_name = %s", name)
    chosen = chance.sample(pids, min(len(pids), 2))
    return sum(bool(value(connection, "select pg_terminate_backend(%s)", pid)) for pid in chosen)


# -- claimers ---------------------------------------------------------------------------------------------------------

NARROW, RATED, WIDE = "narrow", "rated", "wide"
QUEUES = (NARROW, RATED, WIDE)
CONCURRENCY, KEY_CONCURRENCY = 8, 3
PERIOD = timedelta(seconds=1)
#: Of the rate of a queue, what one of its keys may have: four keys use it up, and the runs of the last one go on alone.
KEYS_SHARE = 4


def claim_and_complete(url: str, ledger: Path, number: int) -> None:
    """A claimer that works for no time at all, and now and then does not end what it has begun."""
    over = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: over.set())
    chance, session, book = random.Random(number), Patient(url), Ledger(ledger)
    while not over.is_set():
        order = chance.sample(QUEUES, len(QUEUES))
        request, most = uuid.uuid4().hex, chance.randint(1, 8)
        code, rows = session.call(
            "claim_runs", queues=order, holder=f"claimer {number}", max=most, ttl="1.5 seconds", request_id=request
        )
        if code != "ok":
            book.write(kind="error", call="claim_runs", code=code)
        if not rows:
            over.wait(0.02)
        for row in rows:
            held = {"run_id": row["run_id"], "token": row["token"]}
            book.write(kind="granted", **held)
            fate = chance.random()
            if fate < 0.02:
                continue  # nobody hears of it again until its lease has run out
            function = "release_run" if fate < 0.05 else "fail_run" if fate < 0.08 else "complete_run"
            code, _ = session.call(function, **held)
            book.write(kind="error" if code not in EXPECTED else "done", call=function, code=code, **held)
    session.close()


def claimers_under_fire(url: str, runs: int, claimers: int, rate: int, kills: int, seed: int = 16) -> Outcome:
    """Claimers are killed, and their sessions terminated, while others cancel, reconcile, pause, move and try again:
    each run is completed once, no token is granted to two, nobody waits in a circle, and no limit is exceeded: neither
    for somebody who only looks, nor by the log.
    """
    outcome, chance = Outcome(), random.Random(seed)
    limits = {
        NARROW: {"concurrency": CONCURRENCY, "key_concurrency": KEY_CONCURRENCY},
        RATED: {"rate": rate, "key_rate": rate // KEYS_SHARE, "rate_period": PERIOD},
        WIDE: {},
    }
    with tempfile.TemporaryDirectory() as folder, connect(url) as observer, connect(url) as other, connect(url) as bulk:
        ledger = Path(folder) / "ledger"
        for queue, given in limits.items():
            call(observer, "put_queue", queue=queue, **given)
        specs = [
            {
                "workflow": "w",
                "queue": QUEUES[n % 3],
                "key": key_of(n),
                "max_attempts": 1000,
                "metadata": {"doomed": n % 20 == 0, "movable": n % 10 == 1},
            }
            for n in range(runs)
        ]
        deadlocks = "select deadlocks from pg_stat_database where datname = current_database()"
        before = value(observer, deadlocks)
        begun = time.monotonic()
        call_rows(observer, "enqueue_runs", runs=psycopg.types.json.Jsonb(specs))

        def look() -> None:
            outcome.found += exceeded(observer)
            outcome.figures["looks"] += 1

        def reconcile() -> None:
            call(other, "reconcile")
            time.sleep(0.01)

        def meddle() -> None:
            call(bulk, "pause_queue", queue=NARROW)
            call(bulk, "cancel_runs", metadata=psycopg.types.json.Jsonb({"doomed": True}), max=3)
            call(bulk, "resume_queue", queue=NARROW)
            movable = psycopg.types.json.Jsonb({"movable": True})
            to, queue = chance.sample(QUEUES, 2)
            call(bulk, "move_runs", to_queue=to, queue=queue, metadata=movable, max=5)
            call(bulk, "retry_runs", queue=RATED)
            call(bulk, "put_queue", queue=NARROW, **limits[NARROW])
            time.sleep(0.05)

        name = f"claimer-{uuid.uuid4().hex[:8]}"
        crowd = Crowd(claimers, claim_and_complete, f"{url}&application_name={name}", ledger)
        left = "select count(*) from tidebase.run_heads where status not in ('completed', 'cancelled')"
        try:
            with connect(url) as killer, meddling(look, reconcile, meddle) as raised:
                known = value(killer, left)
                step = max(runs // kills, 1)

                def further() -> bool:
                    return bool(value(killer, left) <= max(known - step, 0) or raised or outcome.found)

                while known > 0 and not raised and not outcome.found:
                    if chance.random() < 0.5:
                        crowd.kill_one(chance)
                        outcome.figures["claimers killed"] += 1
                    else:
                        outcome.figures["sessions terminated"] += terminate_some(killer, name, chance)
                    poll("they get on", further)
                    known = value(killer, left)
            outcome.found += raised
        finally:
            outcome.found += crowd.close()
        outcome.figures["milliseconds"] = round(1000 * (time.monotonic() - begun))
        outcome.found += _account(observer, Ledger(ledger).read(), outcome.figures)
        outcome.found += limits_by_the_log(observer, rate, outcome.figures)
        if (now := value(observer, deadlocks)) != before:
            outcome.found.append(f"{now - before} deadlocks")
        outcome.found += [str(row) for row in observer.execute("select * from tidebase.check_invariants()").fetchall()]
        outcome.figures["runs"] = runs
    return outcome


def key_of(number: int) -> str | None:
    """Seven keys; but of the runs whose rate is limited a fifth have none, and half the same, which goes on longest."""
    if QUEUES[number % 3] != RATED:
        return f"key {number % 7}"
    return [None, None, "a", "b", "c", "d", "d", "d", "d", "d"][number // 3 % 10]


def exceeded(observer: Connection) -> list[str]:
    """What somebody sees who only looks: how many are leased."""
    rows = observer.execute(
        """select r.queue_key, count(*) from tidebase.run_heads h join tidebase.runs r on r.run_id = h.run_id
        where lower(h.status) = 'running' and h.in_queue and r.queue = %s group by 1""",
        [NARROW],
    ).fetchall()
    total = sum(count for _, count in rows)
    by_key = max((count for key, count in rows if key is not None), default=0)
    return [f"{total} are leased, {by_key} of a key"] if total > CONCURRENCY or by_key > KEY_CONCURRENCY else []


def _account(connection: Connection, entries: list[dict[str, Any]], figures: Counter[str]) -> list[str]:
    found = [f"{entry['call']} was answered {entry['code']}" for entry in entries if entry["kind"] == "error"]
    granted = Counter((entry["run_id"], entry["token"]) for entry in entries if entry["kind"] == "granted")
    found += [f"{lease} was granted to {times}" for lease, times in granted.items() if times > 1]
    ended: dict[str, set[int]] = defaultdict(set)
    for entry in entries:
        if entry["kind"] == "done" and entry["call"] == "complete_run" and entry["code"] == "ok":
            ended[entry["run_id"]].add(entry["token"])
    found += [f"{run_id} was completed under {tokens}" for run_id, tokens in ended.items() if len(tokens) > 1]
    completed = Counter(values(connection, "select run_id from tidebase.events where type = 'run.completed'"))
    found += [f"{run_id} is completed {times} times" for run_id, times in completed.items() if times != 1]
    found += [f"{run_id} was completed, and is not" for run_id in ended.keys() - completed.keys()]
    doomed = values(connection, "select run_id from tidebase.runs where metadata @> '{\"doomed\": true}'")
    lost = values(connection, "select run_id from tidebase.run_heads where status <> 'completed'")
    found += [f"{run_id} was lost" for run_id in set(lost) - set(doomed)]
    figures.update({"leases": sum(granted.values()), "completed": len(completed), "cancelled": len(lost)})
    figures["taken over"] = value(connection, "select count(*) from tidebase.attempts where outcome = 'lapsed'")
    return found


def limits_by_the_log(connection: Connection, rate: int, figures: Counter[str]) -> list[str]:
    """At no moment of the log were more leased than is allowed, in no second more were granted."""
    log = connection.execute(
        """select e.created_at, e.run_id, e.type, e.payload ->> 'queue', r.queue_key
        from tidebase.events e join tidebase.runs r on r.run_id = e.run_id
        where e.type in ('run.enqueued', 'run.moved', 'run.started', 'run.released', 'run.completed', 'run.failed',
          'run.cancelled')
        order by e.created_at, e.run_id, e.seq"""
    ).fetchall()
    queue_of: dict[str, str] = {}
    at_work: dict[str, str | None] = {}
    by_key: Counter[str | None] = Counter()
    starts: dict[str | None, list[datetime]] = defaultdict(list)
    found: list[str] = []
    most = most_of_key = 0
    most_starts: Counter[bool] = Counter()
    for moment, run_id, kind, queue, key in log:
        if kind in ("run.enqueued", "run.moved"):
            queue_of[run_id] = queue
        elif kind != "run.started":
            if run_id in at_work:
                by_key[at_work.pop(run_id)] -= 1
        elif queue_of[run_id] == NARROW:
            if run_id not in at_work:
                by_key[key] += 1
            at_work[run_id] = key
            most = max(most, len(at_work))
            most_of_key = max(most_of_key, 0 if key is None else by_key[key])
        elif queue_of[run_id] == RATED:
            for whose, limit in (("", rate), (key, rate // KEYS_SHARE)):
                if whose is None:
                    continue
                times = starts[whose]
                times.append(moment)
                within = len(times) - bisect_right(times, moment - PERIOD)
                most_starts[whose == ""] = max(most_starts[whose == ""], within)
                if within > limit:
                    found.append(f"{within} were granted in a second up to {moment} ({whose or 'all'})")
    if most > CONCURRENCY or most_of_key > KEY_CONCURRENCY:
        found.append(f"by the log {most} were leased, {most_of_key} of a key")
    figures.update({"most leased": most, "most leased of a key": most_of_key})
    figures.update({"most granted in a second": most_starts[True], "most granted of a key": most_starts[False]})
    return found[:10]


# -- keys -------------------------------------------------------------------------------------------------------------


def small_keys_beside_a_large_one(url: str, large: int, keys: int, each: int) -> Outcome:
    """Runs of small keys, enqueued behind all of a large one, are served nearly as soon as in an empty queue."""
    outcome = Outcome()
    with connect(url) as connection:
        small = [{"workflow": "w", "key": f"small {n}"} for n in range(keys)] * each

        def enqueue(queue: str, specs: list[dict[str, Any]]) -> None:
            runs = psycopg.types.json.Jsonb([spec | {"queue": queue} for spec in specs])
            call_rows(connection, "enqueue_runs", runs=runs)

        def serve(queue: str) -> tuple[int, int]:
            """Until all small ones are completed: how many runs were, and the milliseconds that took."""
            begun, done, left = time.monotonic(), 0, len(small)
            while left:
                rows = call_rows(connection, "claim_runs", queues=[queue], holder=queue, max=20)
                if not rows:
                    outcome.found.append(f"{left} runs of small keys were not to be had")
                    break
                for row in rows:
                    call(connection, "complete_run", run_id=row["run_id"], token=row["token"])
                ids = [row["run_id"] for row in rows]
                query = "select count(*) from tidebase.runs where run_id = any(%s) and queue_key <> 'large'"
                left -= value(connection, query, ids)
                done += len(rows)
            return done, round(1000 * (time.monotonic() - begun))

        enqueue("empty", small)
        alone = serve("empty")
        enqueue("full", [{"workflow": "w", "key": "large"}] * large)
        enqueue("full", small)
        connection.execute("analyze tidebase.queue_entries")
        beside = serve("full")
    if beside[0] > 2 * alone[0]:
        outcome.found.append(f"{beside[0]} runs were served until {alone[0]} of small keys were")
    outcome.figures.update(
        {
            "runs of the large key": large,
            "runs of small keys": len(small),
            "served until these were": beside[0],
            "milliseconds in an empty queue": alone[1],
            "milliseconds behind the large key": beside[1],
        }
    )
    return outcome


# -- schedules --------------------------------------------------------------------------------------------------------

CRONS = ("0 */6 * * *", "30 2 * * *", "15 3 * * 1-5", "0 0 1 * *", "45 23 * * 0", "0 12 */3 * *", "5 4 * 2,7 *")
ZONES = ("UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Kolkata")
EVERY = (timedelta(hours=1), timedelta(hours=6), timedelta(hours=8), timedelta(days=1))
POLICIES = ("all", "last", "none")
DAY = timedelta(days=1)
SETTLED = "select not exists (select from tidebase.schedules where next_at <= now()"


def look_at_the_clock(url: str, number: int) -> None:
    over = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: over.set())
    session = Patient(url)
    while not over.is_set():
        if number % 2:
            session.call("reconcile")
        else:  # every worker that finds nothing does so, too
            session.call("claim_runs", queues=["idle"], holder=f"idle {number}")
        over.wait(0.01)
    session.close()


def a_year_goes_by(url: str, schedules: int, processes: int, days: int, seed: int = 50) -> Outcome:
    """Processes look at the clock, are killed and come again, while a year goes by: of expressions all of it at once,
    of intervals a day after the other, by moving what is stored. Each time makes one run, and none is missed that the
    policy promises.
    """
    outcome, chance = Outcome(), random.Random(seed)
    crons = schedules * 2 // 5
    with connect(url) as connection:
        for n in range(schedules):
            given: dict[str, Any] = {"cron": CRONS[n % 7], "timezone": ZONES[n % 5], "catch_up": "all"}
            if n >= crons:
                given = {"every": EVERY[n % 4], "catch_up": POLICIES[n % 3]}
            call(
                connection,
                "put_schedule",
                name=f"s{n}",
                workflow="w",
                queue="year",
                catch_up_window="800 days",
                **given,
            )
        connection.execute(
            "update tidebase.schedules set fired_at = fired_at - %s, next_at = now() where cron is not null",
            [days * DAY],
        )
        since = dict(connection.execute("select schedule, fired_at from tidebase.schedules").fetchall())
        begun = time.monotonic()
        name = f"clock-{uuid.uuid4().hex[:8]}"
        crowd = Crowd(processes, look_at_the_clock, f"{url}&application_name={name}")
        wanted: dict[str, set[datetime]] = defaultdict(set)
        try:
            for day in range(days):
                before = _step(connection)
                if day % 3 == 0:
                    crowd.kill_one(chance)
                    outcome.figures["processes killed"] += 1
                elif day % 3 == 1:
                    outcome.figures["sessions terminated"] += terminate_some(connection, name, chance)
                poll("all have looked at the day", lambda: value(connection, f"{SETTLED} and every is not null)"))
                _expect(connection, before, wanted)
            poll("all have looked at the year", lambda: value(connection, f"{SETTLED})"))
        finally:
            outcome.found += crowd.close()
        outcome.figures["milliseconds"] = round(1000 * (time.monotonic() - begun))
        query = "select schedule, cron, timezone, fired_at from tidebase.schedules where cron is not null"
        for schedule, cron, zone, until in connection.execute(query).fetchall():
            wanted[schedule] = _times(cron, zone, since[schedule], until)
        outcome.found += _compare(connection, wanted)
        failures = values(connection, "select failure from tidebase.schedules where failure is not null")
        outcome.found += [f"a schedule could not fire: {failure}" for failure in failures]
        outcome.figures.update({"clocks": schedules, "days": days, "times": sum(map(len, wanted.values()))})
    return outcome


def _step(connection: Connection) -> dict[str, tuple[datetime, datetime]]:
    """A day goes by for the intervals, which from now on are counted from a second earlier: so all times are new ones.
    From when each was, and up to which moment it had fired.
    """
    rows = connection.execute(
        "update tidebase.schedules set fired_at = fired_at - %s, anchor = anchor - %s, next_at = clock_timestamp()"
        " where every is not null returning schedule, anchor, fired_at",
        [DAY, DAY + timedelta(seconds=1)],
    ).fetchall()
    return {schedule: (anchor, fired_at) for schedule, anchor, fired_at in rows}


def _expect(
    connection: Connection, before: dict[str, tuple[datetime, datetime]], wanted: dict[str, set[datetime]]
) -> None:
    """The times between the two looks, of which the policy promises some."""
    query = "select schedule, every, catch_up, fired_at from tidebase.schedules where every is not null"
    for schedule, every, policy, until in connection.execute(query).fetchall():
        anchor, since = before[schedule]
        first = anchor + ((since - anchor) // every + 1) * every
        times = [first + n * every for n in range((until - first) // every + 1)] if first <= until else []
        if policy == "none":
            times = [moment for moment in times if moment >= until - timedelta(minutes=1)]
        wanted[schedule] |= set(times if policy == "all" else times[-1:])


def _times(cron: str, zone: str, since: datetime, until: datetime) -> set[datetime]:
    """What another implementation says."""
    times = set()
    for moment in CronSim(cron, since.astimezone(ZoneInfo(zone))):
        if moment > until:
            return times
        times.add(moment.astimezone(timezone.utc))
    return times


def _compare(connection: Connection, wanted: dict[str, set[datetime]]) -> list[str]:
    made: dict[str, Counter[datetime]] = defaultdict(Counter)
    for run_id in values(connection, "select run_id from tidebase.runs"):
        _, schedule, moment = run_id.split(":", 2)
        made[schedule][datetime.fromisoformat(moment.replace("Z", "+00:00"))] += 1
    found = []
    for schedule in sorted(made.keys() | wanted.keys()):
        if missed := wanted[schedule] - made[schedule].keys():
            found.append(f"{schedule} has missed {len(missed)} times: {sorted(missed)[:3]}")
        if more := made[schedule].keys() - wanted[schedule]:
            found.append(f"{schedule} has fired {len(more)} times unasked: {sorted(more)[:3]}")
        if twice := [moment for moment, times in made[schedule].items() if times > 1]:
            found.append(f"{schedule} has fired twice: {twice[:3]}")
    return found
