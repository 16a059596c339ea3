# Made by python/tools/faces.py out of worker_async.py: change that, and run `make faces`.
"""A worker for threads: takes up what its queues have, and works on it."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from ..core._threads import ring
from ..core.database import Database
from ..core.errors import DatabaseUnavailable, InvalidArgument, TidebaseError
from ..domain import calls
from ..domain.child import Brood
from ..domain.claim import Claim, Completions, Tally, bell_of, claim_runs, ready_in, work_on
from ..domain.lease import new_request_id
from ._threads import Crew, terminated

if TYPE_CHECKING:
    from .tide import Tidebase
_log = logging.getLogger("tidebase.worker")
#: Where runs are short, a worker takes up ahead of its hands what they begin within so many seconds, at their pace; and
#: no more than so many a hand. What waits for longer all the same is given back, after this many seconds at most.
AHEAD_S: float = 0.25
AHEAD: int = 4
STALE_S: float = 0.5
#: How often a worker reconciles, in seconds, give or take a half: leases and timers that ran out, schedules.
RECONCILE_S: float = 10.0


class Worker:
    """Takes up runs of its queues, as many at once as it has hands for, and works on each as ``tide.run`` would.

    What becomes of a run is in the database: one that fails is queued again while it has attempts left; one that
    suspends itself takes no hand, and comes back when its gate or timer is settled; one whose worker dies is taken over
    when its lease has run out. Only workflows that are registered with the tide are taken.

    Args:
        tide: whose workflows it knows and whose database it is.
        queues: the first one first; or with weights, ``{"mail": 3, "reports": 1}``: then each comes first so often.
        concurrency: how many runs it works on at once.
        poll_s: after how long at most it looks for itself, in seconds. What is enqueued wakes it; through a pooler that
            drops LISTEN nothing does: say 1 there.
        drain_s: when it is to stop, how long what is at work may go on, in seconds; then the leases are given up.
        versions: from which code versions it takes runs over; None: from any.
        suspend: a run that comes to a gate, a timer of 10 seconds and more, or a child that somebody else has, waits in
            the database and frees its hand, unless the call says otherwise; what is not a step is done again when it
            comes back. False: such calls wait here.
    """

    def __init__(
        self,
        tide: Tidebase,
        queues: Sequence[str] | Mapping[str, float] = ("default",),
        *,
        concurrency: int = 8,
        poll_s: float = 10.0,
        drain_s: float = 30.0,
        versions: Sequence[str] | None = None,
        suspend: bool = True,
    ) -> None:
        if isinstance(queues, str):
            queues = (queues,)
        if not queues:
            raise InvalidArgument("a worker needs a queue", hint='For instance queues=["default"].')
        if concurrency < 1:
            raise InvalidArgument("concurrency must be at least 1")
        if poll_s <= 0 or drain_s < 0:
            raise InvalidArgument("poll_s must be more than 0, and drain_s not less")
        weights = queues if isinstance(queues, Mapping) else None
        if weights is not None and min(weights.values()) <= 0:
            raise InvalidArgument("the weight of a queue must be more than 0")
        self._tide = tide
        self._database: Database = tide._database
        self._brood = Brood(tide)
        self._completions = Completions()
        self._weights = weights
        self._stopping = False
        self._rung: Any = None
        self._reconciled_at = time.monotonic()
        self.queues: list[str] = list(queues)
        self.concurrency: int = concurrency
        self.poll_s: float = poll_s
        self.drain_s: float = drain_s
        self.versions: list[str] | None = None if versions is None else list(versions)
        self.suspend: bool = suspend
        #: What it has done so far.
        self.tally: Tally = Tally()
        self._pace: float | None = None  # how long a run takes, in seconds: a mean in which the last ones count most
        self._begun_before: set[str] = set()  # those in hand of which this is not the first attempt
        self._claimed_at = 0.0
        self._claimed: dict[str, float] = {}  # when those were taken up that have not been begun yet
        self._stale_s = min(STALE_S, tide.lease_s / 4)
        self._turned_at: float | None = None
        self._can_claim = False

    @property
    def is_alive(self) -> bool:
        """Whether it goes round: also while it drains, or the database is away."""
        limit = 3 * self.poll_s + 60 + (self.drain_s if self._stopping else 0)
        return self._turned_at is not None and time.monotonic() - self._turned_at < limit

    @property
    def is_ready(self) -> bool:
        """Whether it takes runs up: it has not been stopped, and its last claim was answered."""
        return self.is_alive and (not self._stopping) and self._can_claim

    def stop(self) -> None:
        """Takes nothing up any more: ``run`` returns when what is at work has ended, or ``drain_s`` is over."""
        self._stopping = True
        if self._rung is not None:
            self._rung.set()

    def run(self) -> None:
        """Works until :meth:`stop` is called; where nobody else handles them, SIGTERM and SIGINT call it."""
        _log.info("worker %s: queues %s, concurrency %d", self._tide.holder, ", ".join(self.queues), self.concurrency)
        with self._database.doorbell.listening(*map(bell_of, self.queues)) as rung, terminated(self.stop):
            self._rung = rung
            crew = Crew(self.concurrency, rung)
            try:
                idle = False
                while not self._stopping:
                    self._turned_at = time.monotonic()
                    rung.clear()
                    self._reconcile_now_and_then()
                    self._hand_back_what_waits(crew)
                    ahead = self._ahead()
                    crew.rouse_at = ahead // 2
                    room = crew.free + ahead - crew.waiting if crew.free or crew.waiting <= crew.rouse_at < ahead else 0
                    claims = self._claim(room, idle) if room else []
                    for claim in claims:
                        crew.start(self._work, claim)
                    if len(claims) < room and (claims or not idle):
                        idle = True  # it is known to sleep from now on: what came in between is found by one more look
                        continue
                    idle = idle and (not claims)
                    if len(claims) == room or idle:
                        ring(rung, min(self._patience(idle), self._stale_s if crew.waiting else self.poll_s))
            finally:
                self._drain(crew)

    def _ahead(self) -> int:
        """How many runs to take up for which there is no hand yet. None beside one that was begun before: it may be one
        that kills its worker, and what waits for a hand then has used an attempt up, too.
        """
        pace = self._pace
        if pace is None or pace > AHEAD_S or self._begun_before:
            return 0
        return min(int(self.concurrency * AHEAD_S / pace), self.concurrency * AHEAD)

    def _hand_back_what_waits(self, crew: Crew, at_once: bool = False) -> None:
        """What was taken up ahead, and for which no hand has become free in a while, is left to whoever has one."""
        if not at_once and time.monotonic() - self._claimed_at < self._stale_s:
            return
        claims = crew.take_back()
        if claims:
            self._pace = None  # nothing is taken up ahead until a run has ended: it would be given back again
        for claim in claims:
            if not self._hand_back(claim):
                return  # the leases of the others run out

    def _hand_back(self, claim: Claim) -> bool:
        """Gives up the lease of a run that was not begun. Whether the database is there."""
        self._begun_before.discard(claim.run_id)
        self._claimed.pop(claim.run_id, None)
        try:
            self._database.execute(calls.release_run(run_id=claim.run_id, token=claim.token))
        except TidebaseError as error:
            _log.warning("run %s: its lease was not released: %s", claim.run_id, error)
            return not isinstance(error, DatabaseUnavailable)
        return True

    def _claim(self, room: int, idle: bool) -> list[Claim]:
        try:
            claims = self._database.execute(
                claim_runs(
                    queues=self._order(),
                    holder=self._tide.holder,
                    max=min(room, 1000),
                    ttl=timedelta(seconds=self._tide.lease_s),
                    workflows=self._tide._registry.names(),
                    code_version=self._tide.code_version,
                    versions=self.versions,
                    request_id=new_request_id(),
                    listen_for=timedelta(seconds=min(3 * self.poll_s, 3600)) if idle else None,
                )
            )
        except TidebaseError as error:
            _log.warning("worker %s: nothing could be claimed, trying again: %s", self._tide.holder, error)
            self._can_claim = False
            return []
        self._can_claim = True
        self._claimed_at = time.monotonic()
        self._begun_before |= {claim.run_id for claim in claims if claim.attempt > 1}
        self._claimed.update(dict.fromkeys((claim.run_id for claim in claims), self._claimed_at))
        return claims

    def _order(self) -> list[str]:
        """The queues, the one that comes first first."""
        weights = self._weights
        if weights is None:
            return self.queues
        # A random order in which each comes first by its weight (Efraimidis and Spirakis, 2006).
        return sorted(weights, key=lambda queue: random.random() ** (1 / weights[queue]), reverse=True)

    def _patience(self, idle: bool) -> float:
        """How long to sleep, if nobody rings."""
        pause = self.poll_s * random.uniform(0.8, 1)  # workers that were started together do not look together
        if not idle:
            return pause
        try:
            due: timedelta | None = self._database.execute(ready_in(queues=self.queues))
        except TidebaseError as error:
            _log.warning("worker %s: %s", self._tide.holder, error)
            return pause
        return pause if due is None else min(max(due.total_seconds(), 0.005), pause)

    def _reconcile_now_and_then(self) -> None:
        if time.monotonic() < self._reconciled_at:
            return
        self._reconciled_at = time.monotonic() + RECONCILE_S * random.uniform(0.5, 1.5)
        try:
            done = self._database.execute(calls.reconcile())
            self.tally.lapsed(done.leases)
        except TidebaseError as error:
            _log.warning("worker %s: could not reconcile: %s", self._tide.holder, error)

    def _work(self, claim: Claim) -> None:
        begun = time.monotonic()
        if begun - self._claimed.pop(claim.run_id, begun) > self._tide.lease_s / 2:
            self._hand_back(claim)  # nobody has renewed its lease: it may be another worker's by now
            return
        self.tally.claimed(claim.queue)
        function: Callable[..., Any] = self._tide._registry.find(claim.workflow, None)
        work = work_on(self._brood, function, claim, self._tide.lease_s, self.suspend, self._completions.complete)
        try:
            how = self._tide._carry_out(work, claim.run_id)
        finally:
            self._begun_before.discard(claim.run_id)
        taken = time.monotonic() - begun
        self._pace = taken if self._pace is None else 0.9 * self._pace + 0.1 * taken
        self.tally.ended(claim.queue, how)

    def _drain(self, crew: Crew) -> None:
        """What is at work may end; what takes too long gives its lease up, for another worker to go on at once."""
        self._hand_back_what_waits(crew, at_once=True)
        if not crew.settled(self.drain_s):
            _log.warning("worker %s: gives up %d runs that are at work", self._tide.holder, crew.busy)
            crew.abandon(self._brood)
        _log.info("worker %s: stopped", self._tide.holder)
