"""What an operator asks, for asyncio: runs and gates, seen from outside."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal

from ..core.database_async import AsyncDatabase
from ..core.errors import TidebaseError, only
from ..core.flow import drive_async
from ..domain import calls, gate, state, workflow
from ..domain.bulk import chosen
from ..domain.calls import (
    Attempt,
    Bulk,
    Channel,
    Event,
    GateDecision,
    GateInfo,
    Recovery,
    ReviewInfo,
    RunCount,
    RunInfo,
    RunSize,
    Snapshot,
    StalledRun,
    StateVersion,
    StepInfo,
    TreeNode,
    UsageByModel,
    UsageByStep,
    UsageTotals,
)
from ..domain.fork import fork
from ..domain.recovery import recover
from ..domain.state import Moment
from ..domain.step import find_step, resolve
from ..domain.subscribe import refuse_joined
from ..domain.usage import Money, exact
from ..domain.workflow import RunOptions
from ._tasks import Feeds
from .work_async import AsyncRunSession

if TYPE_CHECKING:
    from typing_extensions import Unpack


class AsyncRuns:
    """``tide.runs``: runs seen from outside."""

    def __init__(
        self, database: AsyncDatabase, attach: Callable[..., Awaitable[AsyncRunSession]] | None = None
    ) -> None:
        self._database = database
        self._attach = attach
        self._feeds = Feeds(database)

    async def create(
        self,
        workflow_name: str,
        input: Any = None,
        *,
        run_id: str | None = None,
        **options: Unpack[RunOptions],
    ) -> RunInfo:
        """Makes a run that nobody works on yet; the same id with the same workflow and input is the same run.

        Options: see :class:`~tidebase.domain.workflow.RunOptions`.

        Raises:
            InputMismatch: the id belongs to another workflow, or to another input.
        """
        call = workflow.create(workflow_name, run_id, input, options, is_repeated=not self._database.joined)
        return await self.get(await self._database.execute(call))

    async def get(self, run_id: str) -> RunInfo:
        """One run. Raises RunNotFound."""
        return await self._database.execute(calls.get_run(run_id=run_id))

    async def find(self, prefix: str) -> str:
        """The id of the run that has this id, or of the only one whose id begins so.

        Raises:
            RunNotFound: there is none. InvalidArgument: several begin so, which ``detail`` has as ``run_ids``.
        """
        found: str = await self._database.execute(calls.find_run(prefix=prefix))
        return found

    async def list(
        self,
        *,
        workflow: str | None = None,
        status: str | None = None,
        before: str | RunInfo | None = None,
        max: int | None = None,
        created_after: datetime | None = None,
        created_before: datetime | None = None,
        roots: bool = False,
    ) -> Sequence[RunInfo]:
        """Runs, newest first, at most ``max`` (1 to 1000, by default 100).

        Args:
            before: page on: the last run of the page before, or its id; the run itself is found again also when it was
                purged meanwhile.
            roots: only those that no other run has made as its child; not together with a workflow or a status.
        """
        return await self._database.execute(
            calls.list_runs(
                workflow=workflow,
                status=status,
                max=max,
                created_after=created_after,
                created_before=created_before,
                roots=roots,
                **calls.behind_run(before),
            )
        )

    async def count(self) -> Sequence[RunCount]:
        """How many runs there are in each status; large numbers are estimates, and say so."""
        return await self._database.execute(calls.count_runs())

    async def cancel(
        self, run_id: str, reason: str | None = None, *, actor: str | None = None, cascade: bool = True
    ) -> RunInfo:
        """Cancels a run for good, and with ``cascade`` its descendants; safe to repeat.

        Raises:
            RunFinal: it is completed.
        """
        await self._database.execute(calls.cancel_run(run_id=run_id, reason=reason, actor=actor, cascade=cascade))
        return await self.get(run_id)

    async def cancel_many(
        self,
        *,
        queue: str | None = None,
        workflow: str | None = None,
        status: str | None = None,
        failure_class: str | None = None,
        older_than: timedelta | None = None,
        metadata: dict[str, Any] | None = None,
        reason: str | None = None,
        actor: str | None = None,
        dry_run: bool = False,
        max: int | None = None,
    ) -> Bulk:
        """Cancels up to ``max`` (by default 1,000) runs that are not over: those that the filters find, of which at
        least one must be given. Call it again while it finds as many. ``dry_run`` only counts.
        """
        return await self._database.execute(
            calls.cancel_runs(
                **chosen(queue, workflow, older_than, metadata),
                status=status,
                failure_class=failure_class,
                reason=reason,
                actor=actor,
                dry_run=dry_run,
                max=max,
            )
        )

    async def retry_many(
        self,
        *,
        queue: str | None = None,
        workflow: str | None = None,
        failure_class: str | None = None,
        older_than: timedelta | None = None,
        metadata: dict[str, Any] | None = None,
        reason: str | None = None,
        actor: str | None = None,
        dry_run: bool = False,
        max: int | None = None,
    ) -> Bulk:
        """Lets failed runs be taken up again, with all their attempts; see :meth:`cancel_many`. What is completed of
        them is not done again.
        """
        return await self._database.execute(
            calls.retry_runs(
                **chosen(queue, workflow, older_than, metadata),
                failure_class=failure_class,
                reason=reason,
                actor=actor,
                dry_run=dry_run,
                max=max,
            )
        )

    async def move_many(
        self,
        to_queue: str,
        *,
        queue: str | None = None,
        workflow: str | None = None,
        older_than: timedelta | None = None,
        metadata: dict[str, Any] | None = None,
        priority: int | None = None,
        actor: str | None = None,
        dry_run: bool = False,
        max: int | None = None,
    ) -> Bulk:
        """Puts runs that wait for a worker into another queue; see :meth:`cancel_many`. What is at work stays."""
        return await self._database.execute(
            calls.move_runs(
                to_queue=to_queue,
                **chosen(queue, workflow, older_than, metadata),
                priority=priority,
                actor=actor,
                dry_run=dry_run,
                max=max,
            )
        )

    async def recover(self, run_id: str, reason: str = "manual", *, actor: str | None = None) -> Recovery:
        """Makes a run that was left by its worker, or failed, acquirable at once; tells its webhook, if it has one.

        Raises:
            InvalidArgument: a worker holds it. RunFinal, RunCancelledError: it is over.
        """
        number = await self._database.execute(recover(run_id, reason, actor))
        return next(recovery for recovery in await self.recoveries(run_id) if recovery.recovery == number)

    async def recoveries(self, run_id: str) -> Sequence[Recovery]:
        """Every attempt to recover a run, oldest first."""
        return await self._database.execute(calls.recovery_history(run_id))

    async def add_channel(
        self, run_id: str, url: str, *, secret: str | None = None, events: Sequence[str] | None = None
    ) -> int:
        """Lets a URL be told what happens to a run; returns the number of the channel. The same URL is the same one.

        Args:
            secret: signs what is sent, and is shown to nobody; without one the dispatcher's own does.
            events: only those of these types; by default all.
        """
        given = None if events is None else list(events)
        number: int = await self._database.execute(
            calls.add_channel(run_id=run_id, url=url, secret=secret, events=given)
        )
        return number

    async def channels(self, run_id: str) -> Sequence[Channel]:
        """The channels of a run, with how far each is told."""
        return await self._database.execute(calls.list_channels(run_id=run_id))

    async def remove_channel(self, run_id: str, channel: int) -> bool:
        """Sends nothing more to a channel; False when it was removed before."""
        removed: bool = await self._database.execute(calls.remove_channel(run_id=run_id, channel=channel))
        return removed

    async def retry_channel(self, run_id: str, channel: int) -> bool:
        """Tries a channel at once that was given up, or waits after a failure; False when there is nothing to try."""
        tried: bool = await self._database.execute(calls.retry_channel(run_id=run_id, channel=channel))
        return tried

    async def stalled(self) -> Sequence[StalledRun]:
        """The runs that do not go on by themselves, longest first."""
        return await self._database.execute(calls.stalled_runs())

    async def reviews(self, run_id: str | None = None) -> Sequence[ReviewInfo]:
        """The steps that wait for a person's decision, oldest first."""
        return await self._database.execute(calls.review_inbox(run_id))

    async def resolve_review(
        self,
        run_id: str,
        step: str,
        decision: Literal["retry", "accept", "fail"],
        *,
        output: Any = ...,
        actor: str | None = None,
        reason: str | None = None,
    ) -> None:
        """Decides about a step in review, once: execute it again, accept what it did, or fail the run.

        Args:
            output: with ``accept``: what the step returned, or would have; it becomes its result. None is one, too.

        Raises:
            ReviewNotOpen: it was decided already. InvalidArgument: ``accept`` without an output.
        """
        await self._database.execute(resolve(run_id, step, decision, output, actor, reason))

    async def fork(
        self,
        run_id: str,
        new_run_id: str | None = None,
        *,
        through_step: str | None = None,
        through_seq: int | None = None,
        input: Any = None,
        reason: str | None = None,
        actor: str | None = None,
    ) -> RunInfo:
        """Makes a new run that begins with what another one had at a point: work on it executes only what comes after.

        Args:
            through_step: up to and with that step; through_seq: up to and with that event; neither: all there is.
            input: another input; by default the source's.

        Raises:
            StepNotRunning: the step is not completed. InputMismatch: ``new_run_id`` is another run.
        """
        call = fork(run_id, new_run_id, through_step, through_seq, input, reason, actor)
        return await self.get(await self._database.execute(call))

    async def tree(self, run_id: str) -> Sequence[TreeNode]:
        """The run with everything below it, depth first: children and (``edge_type`` is ``fork``) forks."""
        return await self._database.execute(calls.run_tree(run_id=run_id))

    async def state(self, run_id: str, stream: str = state.MAIN, **moment: Unpack[Moment]) -> StateVersion:
        """The state of a run, now or at a :class:`~tidebase.domain.state.Moment`. Raises NotFound: there is none."""
        return await drive_async(state.read(run_id, stream, moment), self._database)

    async def state_versions(
        self,
        run_id: str,
        stream: str | None = None,
        *,
        labeled: bool = False,
        before: int | None = None,
        max: int | None = None,
        with_value: bool = False,
    ) -> Sequence[StateVersion]:
        """The versions of a run's streams, or of one, newest first, at most ``max`` (1 to 10,000, by default 100).

        Args:
            labeled: only those with a label.
            before: page on with the last version seen.
            with_value: with the documents; without, ``value`` is None.
        """
        return await self._database.execute(state.versions(run_id, stream, labeled, before, max, with_value))

    async def snapshots(
        self, run_id: str, *, target: tuple[str, str] | None = None, label: str | None = None, max: int | None = None
    ) -> Sequence[Snapshot]:
        """Snapshots and saved states of a run, newest first."""
        return await self._database.execute(state.snapshots(run_id, target, label, max))

    async def usage(self, run_id: str) -> UsageTotals:
        """What a run used, itself and with its descendants, and its limits. Raises RunNotFound."""
        return only(await self._database.execute(calls.usage_totals(run_id)), run_id)

    async def usage_by_step(self, run_id: str) -> Sequence[UsageByStep]:
        """What each step of a run used."""
        return await self._database.execute(calls.usage_by_step(run_id))

    async def usage_by_model(self, run_id: str) -> Sequence[UsageByModel]:
        """What a run used of each model."""
        return await self._database.execute(calls.usage_by_model(run_id))

    async def set_budget(
        self,
        run_id: str,
        *,
        cost_usd: Money | None = None,
        tokens: int | None = None,
        actor: str | None = None,
        reason: str | None = None,
    ) -> UsageTotals:
        """Says what a run and its descendants may use together from now on; None is no limit.

        Raises:
            RunFinal, RunCancelledError: it is over.
        """
        limit = None if cost_usd is None else exact(cost_usd)
        await self._database.execute(
            calls.set_budget(run_id=run_id, cost_usd=limit, tokens=tokens, actor=actor, reason=reason)
        )
        return await self.usage(run_id)

    async def size(self, run_id: str) -> RunSize:
        """What a run stores, in rows and bytes. Raises RunNotFound."""
        return only(await self._database.execute(calls.run_sizes(run_id)), run_id)

    async def compact(self, run_id: str) -> bool:
        """Takes the outputs and old states of a run away that is completed or cancelled; its log and result stay.

        Returns:
            False when that was done before.
        """
        return bool(await self._database.execute(calls.compact_run(run_id=run_id)))

    async def purge(
        self, older_than: timedelta, *, statuses: Sequence[str] | None = None, max: int | None = None
    ) -> int:
        """Deletes runs that have been over for longer than that, with everything that hangs on them; returns how many.

        Args:
            statuses: some of ``completed``, ``failed``, ``cancelled``; by default all three.
            max: how many at most, 1 to 10,000, by default 1,000: call again while that many are returned.
        """
        chosen = None if statuses is None else list(statuses)
        return int(await self._database.execute(calls.purge_runs(older_than=older_than, statuses=chosen, max=max)))

    async def gates(self, run_id: str) -> Sequence[GateInfo]:
        """The gates and the timers of a run, oldest first."""
        return await self._database.execute(calls.run_gates(run_id))

    async def attempts(self, run_id: str) -> Sequence[Attempt]:
        """Who worked on a run, from when to when, and how that ended."""
        return await self._database.execute(calls.run_attempts(run_id))

    async def steps(self, run_id: str, *, max: int | None = None) -> Sequence[StepInfo]:
        """The steps of a run, in the order in which they were last begun; with ``max`` only so many, the latest."""
        call = calls.step_timeline(run_id) if max is None else calls.latest_steps(run_id, max)
        return await self._database.execute(call)

    async def step(self, run_id: str, name: str) -> StepInfo:
        """One step of a run. Raises RunNotFound, NotFound."""
        return await drive_async(find_step(run_id, name), self._database)

    async def events(self, run_id: str, after: int = 0, *, page: int = 1000) -> AsyncIterator[Event]:
        """The events that are there now with seq > ``after``, in order, read ``page`` at a time."""
        while True:
            rows = await self._database.execute(calls.read_events(run_id=run_id, after=after, max=page))
            for row in rows:
                yield row
            if len(rows) < page:
                return
            after = rows[-1].seq

    def subscribe(self, run_id: str, after: int = 0) -> AsyncIterator[Event]:
        """All events with seq > ``after``, in order, each once, as they come; ends when the run is over (completed,
        cancelled, or failed and not resumed). No connection is held between them. Raises RunNotFound; TidebaseError
        on a bound connection, whose transaction would stay open.

        With asyncio one of those who follow a run reads its log for all.
        """
        refuse_joined(self._database)
        return self._feeds.follow(run_id, after)

    async def attach(
        self,
        workflow_name: str,
        *,
        run_id: str | None = None,
        input: Any = None,
        wait_s: float | None = None,
        on_lease_lost: Callable[[TidebaseError], None] | None = None,
        **options: Unpack[RunOptions],
    ) -> AsyncRunSession:
        """Makes or finds a run, leases it, and returns a session; for work that is not shaped like a function.

        Args:
            wait_s: how long to wait while another worker has the lease; see :meth:`AsyncTidebase.run`.
            on_lease_lost: called from the heartbeat's task when the lease is lost.
            options: see :class:`~tidebase.domain.workflow.RunOptions`.

        Raises:
            RunFinal: the run is completed. RunHeld, RunCancelledError, InputMismatch: as for :meth:`AsyncTidebase.run`.
        """
        if self._attach is None:
            raise TidebaseError(
                "a session needs connections of its own", hint="Call attach on the AsyncTidebase itself."
            )
        return await self._attach(workflow_name, run_id, input, wait_s, on_lease_lost, options)


class AsyncGateDesk:
    """``tide.gates``: gates seen by those who decide."""

    def __init__(self, database: AsyncDatabase) -> None:
        self._database = database

    async def list(
        self,
        *,
        run_id: str | None = None,
        status: str | None = "pending",
        max: int | None = None,
        after: GateInfo | None = None,
    ) -> Sequence[GateInfo]:
        """Gates, oldest first: by default those that wait; ``status=None`` for all, at most ``max`` (100). Page on with
        ``after=`` the last gate.
        """
        return await self._database.execute(
            calls.list_gates(run_id=run_id, status=status, max=max, **calls.behind_gate(after))
        )

    async def get(self, run_id: str, name: str) -> GateInfo:
        """One gate. Raises NotFound."""
        return await self._database.execute(calls.get_gate(run_id=run_id, name=name))

    async def secret(self, run_id: str, name: str, *, voter: str | None = None) -> str | None:
        """The secret of a gate, for workers, who hand it out; None when the gate is decided.

        Args:
            voter: a personal secret: where several people must agree, approving with it is the vote of this voter, who
                is the same as the database login of that name.

        Raises:
            NotFound: there is no such gate. InvalidArgument: the voter's name is blank, or longer than 255 bytes.
        """
        found: str | None = await self._database.execute(calls.get_gate_secret(run_id=run_id, name=name, voter=voter))
        return found

    async def decide(
        self,
        run_id: str,
        name: str,
        decision: str,
        *,
        actor: str | None = None,
        payload: Any = None,
        secret: str | None = None,
        comment: str | None = None,
        voter: str | None = None,
    ) -> GateDecision:
        """Decides a gate; ``accepted`` is False when another decision stands already, which is returned.

        Args:
            decision: one of the gate's options.
            actor: who decides, for the log; the voter, or the database role, unless told.
            payload: the answer, or with ``edited`` the changed arguments.
            secret: the gate's; without it the database user must be a member of the approver role.
            voter: for whom, where the owner has named the database user as one who speaks for others.

        Raises:
            NotEntitled: the secret is wrong, or there is none and the user is no approver; or several must agree, and
                it cannot be known whose vote this is. NotFound: no such gate.
        """
        return await self._database.execute(
            gate.decision(
                run_id, name, decision, actor=actor, payload=payload, secret=secret, comment=comment, voter=voter
            )
        )
