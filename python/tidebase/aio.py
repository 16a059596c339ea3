"""``AsyncTidebase``: the same names as in ``client`` and ``run``, awaited. What they do is in the flows both share."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, TypeVar, cast, overload
from weakref import WeakSet

import psycopg

from . import calls, child, codec, gate, migrations, state, workflow
from .calls import (
    Attempt,
    Difference,
    Event,
    GateDecision,
    GateInfo,
    Reconciliation,
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
    UsageTotal,
    UsageTotals,
)
from .child import MAX_PARALLEL, ChildOptions, ChildSpec, Order
from .client import Registry
from .database import POOL_SIZE, AsyncConnection, AsyncDatabase, AsyncPool, require_psycopg
from .errors import (
    Interruption,
    InvalidArgument,
    LeaseLostError,
    RunCancelledError,
    RunSuspendedError,
    TidebaseError,
    interruption,
    only,
)
from .event import emit
from .flow import Flow, drive_async, one
from .fork import fork
from .gate import GateAnswer, GateOpening, GateOptions
from .join import AsyncJoined, join_async, require_room, require_sight, sight, standing
from .lease import AsyncHeartbeats, Hold, new_holder
from .loops import PerLoop
from .recovery import recover
from .state import Moment, StateOptions, VersionOptions, snapshot
from .step import Checkpoints, StepOptions, Work, current_step, describe, find_step, inside, outside, perform, resolve
from .subscribe import Feeds, refuse_joined
from .transaction import Skipped, Transaction, Trial
from .usage import Money, UsageOptions, exact, record
from .workflow import Invocation, RunOptions, Started

if TYPE_CHECKING:
    from opentelemetry.trace import Tracer
    from typing_extensions import Unpack

    from .migrations import MigrationReport

P = ParamSpec("P")
T = TypeVar("T")
W = TypeVar("W", bound=Callable[..., Any])


class AsyncStep:
    """``await run.step(...)``: see :class:`tidebase.run.Step`. The function may be async or plain; a plain one runs in
    the event loop's thread, so wrap it in ``asyncio.to_thread`` when it blocks.
    """

    def __init__(self, run: AsyncRun, options: StepOptions | None = None) -> None:
        self._run = run
        self._options = options

    @overload
    async def __call__(
        self, name: str, function: Callable[[], Awaitable[T]], /, **options: Unpack[StepOptions]
    ) -> T: ...

    @overload
    async def __call__(self, name: str, function: Callable[[], T], /, **options: Unpack[StepOptions]) -> T: ...

    @overload
    async def __call__(
        self, name: str, function: Callable[P, Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs
    ) -> T: ...

    @overload
    async def __call__(self, name: str, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T: ...

    async def __call__(self, name: str, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        return await self._run._perform(Work.of(name, function, args, kwargs, self._options))

    def options(self, **options: Unpack[StepOptions]) -> AsyncStep:
        """The same, with these options for the next call."""
        return AsyncStep(self._run, cast(StepOptions, {**(self._options or {}), **options}))


class AsyncGate:
    """``await run.gate(...)``: see :class:`tidebase.run.Gate`."""

    def __init__(self, run: AsyncRun) -> None:
        self._run = run

    async def __call__(
        self, name: str, prompt: str | None = None, *, suspend: bool = False, **options: Unpack[GateOptions]
    ) -> GateAnswer:
        """Returns the decision; see :meth:`tidebase.run.Gate.__call__`."""
        return await self._run._do(gate.ask(self._run._hold, name, prompt, options, suspend))


class AsyncGates:
    """``run.gates``: gates for those who cannot block."""

    def __init__(self, run: AsyncRun) -> None:
        self._run = run

    async def begin(self, name: str, prompt: str | None = None, **options: Unpack[GateOptions]) -> GateOpening:
        """Opens a gate, or finds it; has the secret that entitles its bearer to decide."""
        return await self._run._do(gate.begin(self._run._hold, name, prompt, options))

    async def get(self, name: str) -> GateAnswer | None:
        """The decision; None while there is none. Raises NotFound."""
        return await self._run._do(gate.get(self._run._hold, name))

    async def secret(self, name: str, *, voter: str | None = None) -> str | None:
        """The secret of a gate, to be handed out; None when it is decided. Raises NotFound.

        With ``voter`` a personal one: where several people must agree, its bearer votes as this voter.
        """
        return await self._run._do(gate.secret(self._run._hold, name, voter))


class AsyncState:
    """``run.state``: see :class:`tidebase.state.State`."""

    def __init__(self, run: AsyncRun) -> None:
        self._run = run

    async def set(self, value: Any, **options: Unpack[StateOptions]) -> int:
        """Makes a value the next version and returns the version's number."""
        return await self._run._do(state.write(calls.set_state, self._run._hold, options, value=codec.encode(value)))

    async def patch(self, patch: Any, **options: Unpack[StateOptions]) -> int:
        """Applies a merge patch (RFC 7396) to the newest version and returns the new version's number."""
        return await self._run._do(state.write(calls.patch_state, self._run._hold, options, patch=codec.encode(patch)))

    async def save(self, label: str, *, stream: str = state.MAIN, **options: Unpack[VersionOptions]) -> int:
        """Gives the state as it is now a label, in a version of its own. Raises NotFound when there is no state."""
        return await self._run._do(state.write(calls.save_state, self._run._hold, options, label=label, stream=stream))

    async def restore(
        self,
        version: int | None = None,
        *,
        label: str | None = None,
        stream: str = state.MAIN,
        **options: Unpack[VersionOptions],
    ) -> int:
        """Makes an earlier version, by number or label, the newest again: as a new version. Raises NotFound."""
        call = state.write(calls.restore_state, self._run._hold, options, version=version, label=label, stream=stream)
        return await self._run._do(call)

    async def get(self, stream: str = state.MAIN, *, default: Any = None, **moment: Unpack[Moment]) -> Any:
        """The value, now or at a :class:`~tidebase.state.Moment`; ``default`` where there is none."""
        return await self._run._do(state.value(self._run.run_id, stream, default, moment))

    async def versions(
        self, stream: str | None = None, *, labeled: bool = False, before: int | None = None, max: int | None = None
    ) -> Sequence[StateVersion]:
        """The versions, newest first, without their values."""
        return await self._run._database.execute(state.versions(self._run.run_id, stream, labeled, before, max, False))


class AsyncSnapshots:
    """``run.snapshots``: see :class:`tidebase.state.Snapshots`."""

    def __init__(self, run: AsyncRun) -> None:
        self._run = run

    async def create(
        self,
        label: str,
        state: Any = None,
        *,
        target: tuple[str, str] | None = None,
        **options: Unpack[VersionOptions],
    ) -> int:
        """Keeps a snapshot and returns its number, counted for each target."""
        return await self._run._do(snapshot(self._run._hold, label, target, state, options))

    async def list(
        self, *, target: tuple[str, str] | None = None, label: str | None = None, max: int | None = None
    ) -> Sequence[Snapshot]:
        """Snapshots and saved states, newest first."""
        return await self._run._database.execute(state.snapshots(self._run.run_id, target, label, max))


class AsyncUsage:
    """``run.usage``: see :class:`tidebase.usage.Usage`."""

    def __init__(self, run: AsyncRun) -> None:
        self._run = run

    async def record(self, **options: Unpack[UsageOptions]) -> UsageTotal:
        """Records what a call used and returns the run's totals so far."""
        return await self._run._do(record(self._run._hold, options))


class AsyncTransaction(Transaction[AsyncConnection]):
    """A :class:`~tidebase.transaction.Transaction` on a :class:`psycopg.AsyncConnection`."""

    async def execute(self, query: Any, parameters: Any = None) -> psycopg.AsyncCursor[Any]:
        """``connection.execute``; on a replay nothing happens, and the cursor has no rows."""
        if self.replayed:
            return cast("psycopg.AsyncCursor[Any]", Skipped())
        return await self.connection.execute(query, parameters)


class AsyncRun:
    """A run that is being worked on; see :class:`tidebase.run.Run`. Safe under ``asyncio.gather``."""

    def __init__(
        self, tide: AsyncTidebase, database: AsyncDatabase, hold: Hold, checkpoints: Checkpoints, workflow: str
    ) -> None:
        self._tide = tide
        self._database = database
        self._hold = hold
        self._checkpoints = checkpoints
        self.workflow = workflow
        self.step = AsyncStep(self)
        self.gate = AsyncGate(self)
        self.gates = AsyncGates(self)
        self.state = AsyncState(self)
        self.snapshots = AsyncSnapshots(self)
        self.usage = AsyncUsage(self)

    @property
    def run_id(self) -> str:
        """The run's id."""
        return self._hold.run_id

    @property
    def attempt(self) -> int:
        """Which attempt at the run this is, from 1."""
        return self._hold.attempt

    @property
    def token(self) -> int:
        """The lease's fencing token, for calls to the SQL functions of one's own."""
        return self._hold.token

    async def emit(self, type: str, payload: Any = None, *, transient: bool = False) -> int:
        """Appends an event of one's own; see :meth:`tidebase.run.Run.emit`."""
        return await self._do(emit(self._hold, type, payload, transient))

    async def sleep(self, name: str, seconds: float, *, suspend: bool = False) -> None:
        """Waits for a durable timer; see :meth:`tidebase.run.Run.sleep`."""
        await self._do(gate.sleep(self._hold, name, seconds, suspend))

    async def child(
        self,
        workflow_name: str,
        function: Callable[[AsyncRun, Any], Awaitable[T]] | None = None,
        *,
        name: str | None = None,
        input: Any = None,
        wait_s: float | None = None,
        **options: Unpack[ChildOptions],
    ) -> T:
        """Runs a child to its result, in a task of its own; see :meth:`tidebase.run.Run.child`."""
        order = Order(name or workflow_name, workflow_name, None, input, options)
        chosen = cast("Callable[..., T]", self._tide._registry.find(workflow_name, function))
        work = self._do(child.accompany(self._tide, self._hold, order, chosen, wait_s))
        return await asyncio.create_task(work, name=f"tidebase-child-{order.name}")

    async def fanout(
        self,
        name: str,
        children: Sequence[ChildSpec],
        *,
        max_parallel: int = MAX_PARALLEL,
        **options: Unpack[StepOptions],
    ) -> list[Any]:
        """Runs children in parallel tasks and returns their results in order, kept in the step ``join:<name>``; see
        :meth:`tidebase.run.Run.fanout`.
        """
        orders = [Order.of(name, spec) for spec in children]
        functions = [self._tide._registry.find(order.workflow, order.function) for order in orders]
        limit = asyncio.Semaphore(max_parallel)

        async def work(order: Order, function: Callable[..., Any]) -> Any:
            async with limit:
                return await drive_async(child.work_on(self._tide, self._hold, order, function), self._database)

        async def collect() -> list[Any]:
            outcomes = await asyncio.gather(*map(work, orders, functions), return_exceptions=True)
            by_name = {order.name: outcome for order, outcome in zip(orders, outcomes, strict=True)}
            try:
                return await self._do(child.joined(self._hold, name, by_name))
            except RunSuspendedError as error:  # of a session
                raise interruption(error) from error

        return cast("list[Any]", await self._perform(child.joining(name, orders, collect, options, self._checkpoints)))

    @overload
    def transaction(
        self, name: str, *, connection: Any = None, **options: Unpack[StepOptions]
    ) -> AbstractAsyncContextManager[AsyncTransaction]: ...

    @overload
    def transaction(
        self,
        name: str,
        function: Callable[[AsyncTransaction], Awaitable[T]],
        *,
        connection: Any = None,
        **options: Unpack[StepOptions],
    ) -> Awaitable[T]: ...

    def transaction(
        self,
        name: str,
        function: Callable[[AsyncTransaction], Awaitable[Any]] | None = None,
        *,
        connection: Any = None,
        **options: Unpack[StepOptions],
    ) -> Any:
        """A step whose block is a transaction; see :meth:`tidebase.run.Run.transaction`. With a function it is awaited:
        ``await run.transaction("charge", charge)``.

        Args:
            connection: your own, in a transaction that you commit: a psycopg.AsyncConnection, or an AsyncSession or
                AsyncConnection of SQLAlchemy on psycopg 3.
        """
        trial = Trial(self._hold, self._checkpoints, name, function, options, connection is not None)
        return self._block(trial, connection) if function is None else self._transact(trial, function, connection)

    @asynccontextmanager
    async def _block(self, trial: Trial, given: Any) -> AsyncIterator[AsyncTransaction]:
        joined = await self._join(given)
        stored = await self._do(trial.begin())
        if stored is not None:
            yield AsyncTransaction(None, trial.stored(stored))
            return
        transaction, sent, settled = AsyncTransaction(None), False, None
        try:
            with self._hold.executing(trial.name):
                async with self._scope(trial, joined) as connection:
                    transaction = AsyncTransaction(connection)
                    yield transaction
                    if joined is not None:
                        await joined.flush()
                    call, settled = trial.completion(transaction.result)
                    sent = True
                    await self._database.execute_on(connection, call)
        except Interruption as error:
            inner = self._interruption(error)
            if inner is error:
                raise
            raise inner from error
        except Exception as error:
            known = trial.seen_as(error)
            if await self._do(trial.failed(known)) or not sent:
                if known is error:
                    raise
                raise known from error
        transaction.result = settled

    async def _transact(self, trial: Trial, function: Callable[[AsyncTransaction], Awaitable[T]], given: Any) -> T:
        while True:
            try:
                async with self._block(trial, given) as transaction:
                    if not transaction.replayed:
                        context = current_step.set(trial.name)
                        try:
                            transaction.result = await function(transaction)
                        finally:
                            current_step.reset(context)
                return cast(T, transaction.result)
            except Exception:
                if trial.again_in is None:
                    raise
            await self._do(trial.pause())

    async def _join(self, given: Any) -> AsyncJoined | None:
        """The caller's transaction, if there is one, which can be joined. Nothing has been begun yet."""
        if given is None:
            return None
        joined = await join_async(given)
        if self._database.is_single(joined.connection):
            raise InvalidArgument("connection must be left out: there is no other one")
        require_room(await self._database.execute_on(joined.connection, standing()))
        return joined

    @asynccontextmanager
    async def _scope(self, trial: Trial, joined: AsyncJoined | None) -> AsyncIterator[AsyncConnection]:
        """The transaction; in one of the caller's a savepoint, so that a block that fails leaves nothing."""
        if joined is None:
            async with self._database.transaction() as connection:
                limit = trial.limit()
                if limit is not None:
                    await self._database.execute_on(connection, limit)
                yield connection
            return
        connection = joined.connection
        require_sight(await self._database.execute_on(connection, sight(self._hold, trial.name)), trial.name)
        async with connection.transaction(), joined.nested():  # the first one refuses to be committed from inside
            yield connection

    async def _perform(self, work: Work[T]) -> T:
        return await self._do(perform(self._hold, self._checkpoints, work))

    async def _do(self, flow: Flow[T]) -> T:
        return await drive_async(inside(flow, self._hold), self._database)

    def _interruption(self, error: BaseException) -> BaseException:
        return interruption(error)


class AsyncRunSession(AsyncRun):
    """A run that is worked on outside a function; see :class:`tidebase.run.RunSession`."""

    def __init__(
        self,
        tide: AsyncTidebase,
        database: AsyncDatabase,
        started: Started,
        workflow_name: str,
        leave: Callable[[Hold], None],
    ) -> None:
        assert started.hold is not None
        super().__init__(tide, database, started.hold, started.checkpoints, workflow_name)
        started.hold.session = True
        self.input = codec.decode(started.lease.input)
        self._leave = leave
        self._open = True

    async def heartbeat(self) -> None:
        """Renews the lease now; it is also done in the background."""
        await self._do(one(self._hold.renewal()))

    async def complete(self, result: Any = None) -> None:
        """Stores the result and ends the run for good."""
        call = calls.complete_run(run_id=self.run_id, token=self.token, result=codec.encode(result))
        self._hold.trace.completed()
        self._leave(self._hold)
        await self._do(one(call))
        self._open = False

    async def fail(self, error: BaseException | str) -> None:
        """Ends this attempt with an error; the run may be resumed."""
        failure = error if isinstance(error, BaseException) else RuntimeError(error)
        self._hold.trace.failed(failure)
        self._leave(self._hold)
        await self._do(one(calls.fail_run(run_id=self.run_id, token=self.token, error=describe(failure))))
        self._open = False

    async def close(self) -> None:
        """Gives the lease up without ending the run. Does nothing when the run was ended."""
        if self._open:
            self._open = False
            self._leave(self._hold)
            await self._do(workflow.release(self._hold))

    async def __aenter__(self) -> AsyncRunSession:
        return self

    async def __aexit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if self._open and isinstance(error, Exception):
            self._open = False
            self._hold.trace.failed(error)
            self._leave(self._hold)
            await self._do(workflow.fail(self._hold, error))
        await self.close()

    async def _do(self, flow: Flow[T]) -> T:
        return await drive_async(outside(flow, self._hold), self._database)

    def _interruption(self, error: BaseException) -> BaseException:
        return error


class AsyncRuns:
    """``tide.runs``: runs seen from outside; see :class:`tidebase.run.Runs`."""

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
        """Makes a run that nobody works on yet, or finds it."""
        return await self.get(await self._database.execute(workflow.create(workflow_name, run_id, input, options)))

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
        """Cancels a run for good; see :meth:`tidebase.run.Runs.cancel`."""
        await self._database.execute(calls.cancel_run(run_id=run_id, reason=reason, actor=actor, cascade=cascade))
        return await self.get(run_id)

    async def recover(self, run_id: str, reason: str = "manual", *, actor: str | None = None) -> Recovery:
        """Makes a run that was left, or failed, acquirable; see :meth:`tidebase.run.Runs.recover`."""
        number = await self._database.execute(recover(run_id, reason, actor))
        return next(recovery for recovery in await self.recoveries(run_id) if recovery.recovery == number)

    async def recoveries(self, run_id: str) -> Sequence[Recovery]:
        """Every attempt to recover a run, oldest first."""
        return await self._database.execute(calls.recovery_history(run_id))

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
        """Decides about a step in review, once; see :meth:`tidebase.run.Runs.resolve_review`."""
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
        """Makes a new run that begins with what another one had at a point; see :meth:`tidebase.run.Runs.fork`."""
        call = fork(run_id, new_run_id, through_step, through_seq, input, reason, actor)
        return await self.get(await self._database.execute(call))

    async def tree(self, run_id: str) -> Sequence[TreeNode]:
        """The run with everything below it, depth first: children and (``edge_type`` is ``fork``) forks."""
        return await self._database.execute(calls.run_tree(run_id=run_id))

    async def state(self, run_id: str, stream: str = state.MAIN, **moment: Unpack[Moment]) -> StateVersion:
        """The state of a run, now or at a :class:`~tidebase.state.Moment`. Raises NotFound where there is none."""
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
        """The versions of a run's streams, or of one; see :meth:`tidebase.run.Runs.state_versions`."""
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
        """Says what a run and its descendants may use together; see :meth:`tidebase.run.Runs.set_budget`."""
        limit = None if cost_usd is None else exact(cost_usd)
        await self._database.execute(
            calls.set_budget(run_id=run_id, cost_usd=limit, tokens=tokens, actor=actor, reason=reason)
        )
        return await self.usage(run_id)

    async def size(self, run_id: str) -> RunSize:
        """What a run stores, in rows and bytes. Raises RunNotFound."""
        return only(await self._database.execute(calls.run_sizes(run_id)), run_id)

    async def compact(self, run_id: str) -> bool:
        """Takes the outputs and old states of a run away; see :meth:`tidebase.run.Runs.compact`."""
        return bool(await self._database.execute(calls.compact_run(run_id=run_id)))

    async def purge(
        self, older_than: timedelta, *, statuses: Sequence[str] | None = None, max: int | None = None
    ) -> int:
        """Deletes runs that have been over for longer than that; see :meth:`tidebase.run.Runs.purge`."""
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
        """All events with seq > ``after``, in order, each once, as they come; see :meth:`tidebase.run.Runs.subscribe`.
        However many follow a run, one of them reads its log.
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
        """Makes or finds a run, leases it, and returns a session; see :meth:`tidebase.run.Runs.attach`."""
        if self._attach is None:
            raise TidebaseError(
                "a session needs connections of its own", hint="Call attach on the AsyncTidebase itself."
            )
        return await self._attach(workflow_name, run_id, input, wait_s, on_lease_lost, options)


class AsyncGateDesk:
    """``tide.gates``: gates seen by those who decide; see :class:`tidebase.run.GateDesk`."""

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
        """The secret of a gate, for workers; see :meth:`tidebase.run.GateDesk.secret`."""
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
        """Decides a gate; see :meth:`tidebase.run.GateDesk.decide`."""
        return await self._database.execute(
            gate.decision(
                run_id, name, decision, actor=actor, payload=payload, secret=secret, comment=comment, voter=voter
            )
        )


class AsyncTidebase:
    """Durable runs in your own Postgres, for asyncio; the arguments are those of :class:`tidebase.Tidebase`.

    Each event loop that uses it has a pool of its own. Heartbeats are tasks of the loop: code that blocks it for longer
    than the lease lasts also blocks them. When a lease is lost, the task that works on the run is cancelled.
    """

    def __init__(
        self,
        database: str | AsyncPool | AsyncConnection | None = None,
        *,
        lease_s: float = 60.0,
        holder: str | None = None,
        code_version: str | None = None,
        pool_size: int = POOL_SIZE,
        reconnect_s: float = 30.0,
        tracer: Tracer | None = None,
    ) -> None:
        self._database = AsyncDatabase(database, pool_size=pool_size, reconnect_s=reconnect_s, lease_s=lease_s)
        self._beating = PerLoop(lambda: AsyncHeartbeats(self._database))
        self._registry = Registry()
        self._interrupted: WeakSet[asyncio.Task[Any]] = WeakSet()
        self.holder = holder or new_holder()
        self.lease_s = lease_s
        self.code_version = code_version
        self.tracer = tracer
        self.marks_late = self._database.has_connections
        self.runs = AsyncRuns(self._database, self._attach)
        self.gates = AsyncGateDesk(self._database)

    @property
    def url(self) -> str:
        """The connection string in use."""
        return self._database.url

    @property
    def _heartbeats(self) -> AsyncHeartbeats:
        return self._beating.here()

    def workflow(self, name: str) -> Callable[[W], W]:
        """Registers an async function ``(run, input)`` under a name, so that ``tide.run(name)`` finds it."""
        return self._registry.register(name)

    async def run(
        self,
        workflow_name: str,
        function: Callable[[AsyncRun, Any], Awaitable[T]] | None = None,
        *,
        run_id: str | None = None,
        input: Any = None,
        wait_s: float | None = None,
        **options: Unpack[RunOptions],
    ) -> T:
        """Runs a workflow, from where it stopped if it was run before; see :meth:`tidebase.Tidebase.run`."""
        chosen = cast("Callable[..., T]", self._registry.find(workflow_name, function))
        invocation = Invocation(
            workflow_name, workflow.new_run_id() if run_id is None else run_id, input, wait_s, options
        )
        task = asyncio.current_task()
        assert task is not None
        try:
            with _terminable(task):
                return await drive_async(workflow.execute(self, chosen, invocation), self._database)
        except (LeaseLostError, RunCancelledError):
            if task in self._interrupted:
                self._interrupted.discard(task)
                if hasattr(task, "uncancel"):  # from Python 3.11 on
                    task.uncancel()
            raise

    async def diff(self, run_id: str, other_run_id: str) -> Sequence[Difference]:
        """In what two runs differ; see :meth:`tidebase.Tidebase.diff`."""
        return await self._database.execute(calls.diff_runs(run_id=run_id, other_run_id=other_run_id))

    async def reconcile(self, max: int = 100) -> Reconciliation:
        """Looks at the runs that are due; see :meth:`tidebase.Tidebase.reconcile`."""
        return await self._database.execute(calls.reconcile(max=max))

    def bind(self, connection: AsyncConnection) -> AsyncBound:
        """The same database in the caller's transaction; see :meth:`tidebase.Tidebase.bind`."""
        return AsyncBound(connection)

    async def migrate(self, *, role_prefix: str | None = None) -> MigrationReport:
        """Installs the schema or brings it up to date, in a thread; see :func:`tidebase.migrations.migrate`."""

        def work() -> MigrationReport:
            with psycopg.connect(self.url, autocommit=True) as connection:
                return migrations.migrate(connection, role_prefix)

        return await asyncio.to_thread(work)

    async def close(self) -> None:
        """Closes the connections of the running event loop. Leases that are held there run out by themselves. What is
        needed again is opened again.
        """
        self._heartbeats.close()
        await self._database.close()

    async def __aenter__(self) -> AsyncTidebase:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    def _enter(self, started: Started, invocation: Invocation) -> AsyncRun:
        assert started.hold is not None
        task = asyncio.current_task()
        assert task is not None

        def interrupt(error: TidebaseError) -> None:
            self._interrupted.add(task)
            task.cancel()

        started.hold.on_lost = interrupt
        self._heartbeats.add(started.hold)
        return AsyncRun(self, self._database, started.hold, started.checkpoints, invocation.workflow)

    def _leave(self, hold: Hold) -> None:
        self._heartbeats.remove(hold)
        hold.end()

    async def _attach(
        self,
        workflow_name: str,
        run_id: str | None,
        input: Any,
        wait_s: float | None,
        on_lease_lost: Callable[[TidebaseError], None] | None,
        options: RunOptions,
    ) -> AsyncRunSession:
        invocation = Invocation(
            workflow_name, workflow.new_run_id() if run_id is None else run_id, input, wait_s, options
        )
        started = await drive_async(workflow.attach(self, invocation), self._database)
        assert started.hold is not None
        started.hold.on_lost = on_lease_lost
        self._heartbeats.add(started.hold)
        return AsyncRunSession(self, self._database, started, workflow_name, self._leave)


class AsyncBound:
    """``tide.bind(connection)``: what may be part of the caller's transaction."""

    def __init__(self, connection: AsyncConnection) -> None:
        require_psycopg(connection, psycopg.AsyncConnection)
        self.runs = AsyncRuns(AsyncDatabase(connection, joined=True))


@contextmanager
def _terminable(task: asyncio.Task[Any] | None) -> Iterator[None]:
    """While the block runs, SIGTERM cancels the task, so that the lease is released on the way out; only in the main
    thread, and only where nobody has installed a handler of their own.
    """
    try:
        usable = task is not None and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        if usable:
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, cast("asyncio.Task[Any]", task).cancel)
    except (ValueError, RuntimeError, NotImplementedError):
        usable = False
    try:
        yield
    finally:
        if usable:
            asyncio.get_running_loop().remove_signal_handler(signal.SIGTERM)
