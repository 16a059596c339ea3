"""What a workflow works with, for asyncio: the run, its steps, gates, state and transactions; and sessions."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, cast, overload

import psycopg

from ..core import codec
from ..core.database_async import AsyncDatabase
from ..core.errors import Interruption, InvalidArgument, RunSuspendedError, interruption
from ..core.flow import Flow, drive_async, nothing, one
from ..core.line_async import require_no_router
from ..core.sessions import AsyncConnection
from ..domain import calls, child, gate, state, workflow
from ..domain.calls import Channel, Snapshot, StateVersion, UsageTotal
from ..domain.child import MAX_PARALLEL, ChildOptions, ChildSpec, Order
from ..domain.event import emit
from ..domain.gate import GateAnswer, GateOpening, GateOptions
from ..domain.join import AsyncJoined, join_async, require_room, require_sight, sight, standing
from ..domain.lease import Hold, drained
from ..domain.state import Moment, StateOptions, VersionOptions, snapshot
from ..domain.step import Checkpoints, StepOptions, Work, current_step, describe, inside, outside, perform, settled
from ..domain.transaction import Skipped, Transaction, Trial
from ..domain.usage import UsageOptions, record
from ..domain.workflow import Started
from ._tasks import apart, called, together

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .tide_async import AsyncTidebase

P = ParamSpec("P")
T = TypeVar("T")


class AsyncStep:
    """``run.step``: does a named piece of work once; on a replay its stored result is returned.

    With asyncio it is awaited. The function may be async or plain; a plain one runs in the event loop's thread, so wrap
    it in ``asyncio.to_thread`` when it blocks.

    ``run.step("plan", make_plan, topic)`` hashes the arguments as the step's input; ``run.step("search", lambda:
    search(plan), input=plan)`` hashes what it is told. Options stand with the second form, or before:
    ``run.step.options(retries=3, key=doc.id)("parse", parse, doc)``. See :class:`~tidebase.domain.step.StepOptions`.

    Raises:
        InputMismatch: the step was begun with another input.
        StepNotRunning: a step of the same name was done in this attempt, or is at work; tell them apart with ``key``.
        InvalidArgument: the name or the key is not allowed, or the input cannot be stored; nothing was executed.
        NotSerializable, StepOutputDecodeError, StepTimeout, and whatever the function raises when no retries are left.
        LeaseLost, RunCancelled: stop; see :class:`~tidebase.core.errors.Interruption`.
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
    """``run.gate``: asks a person and waits for the one decision."""

    def __init__(self, run: AsyncRun) -> None:
        self._run = run

    async def __call__(
        self, name: str, prompt: str | None = None, *, suspend: bool | None = None, **options: Unpack[GateOptions]
    ) -> GateAnswer:
        """Returns the decision; a gate that was decided before returns it at once.

        Args:
            name: unique in the run, among gates and timers.
            prompt: the question. What is asked (prompt and data) is part of the gate: other ones raise InputMismatch.
            suspend: do not wait in this process: the run waits in the database, and ``tide.run`` raises
                RunSuspendedError to its caller. Call it again once the decision has fallen. By default so in a worker,
                which has others to do meanwhile; not under ``tide.run``, and not inside a step.
            options: see :class:`~tidebase.domain.gate.GateOptions`.
        """
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
    """``run.state``: the run's live state, and other documents that it keeps, each with its history."""

    def __init__(self, run: AsyncRun) -> None:
        self._run = run

    async def set(self, value: Any, **options: Unpack[StateOptions]) -> int:
        """Makes a value the next version and returns the version's number.

        Options: see :class:`~tidebase.domain.state.StateOptions`.

        Raises:
            VersionConflict: ``expected_version`` is not the newest one.
            NotSerializable: the value cannot be stored as JSON.
        """
        return await self._run._do(state.write(calls.set_state, self._run._hold, options, value=codec.encode(value)))

    async def patch(self, patch: Any, **options: Unpack[StateOptions]) -> int:
        """Applies a merge patch (RFC 7396: members are set, None removes one, lists are replaced) to the newest version
        and returns the new version's number. What is stored is what changed: a list that grew costs what was added.
        """
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
        """The value, now or at a :class:`~tidebase.domain.state.Moment`; ``default`` where there is none."""
        return await self._run._do(state.value(self._run.run_id, stream, default, moment))

    async def versions(
        self, stream: str | None = None, *, labeled: bool = False, before: int | None = None, max: int | None = None
    ) -> Sequence[StateVersion]:
        """The versions, newest first, without their values; see :meth:`AsyncRuns.state_versions`."""
        return await self._run._database.execute(state.versions(self._run.run_id, stream, labeled, before, max, False))


class AsyncSnapshots:
    """``run.snapshots``: what a target (a file, a page, the run itself) looked like, kept under a label."""

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
        """Keeps a snapshot and returns its number, counted for each target.

        Args:
            state: what it looks like; None for the run's own state as it is now.
            target: type and id of what it is of; by default the run.
        """
        return await self._run._do(snapshot(self._run._hold, label, target, state, options))

    async def list(
        self, *, target: tuple[str, str] | None = None, label: str | None = None, max: int | None = None
    ) -> Sequence[Snapshot]:
        """Snapshots and saved states, newest first."""
        return await self._run._database.execute(state.snapshots(self._run.run_id, target, label, max))


class AsyncUsage:
    """``run.usage``: what the run's calls to models used."""

    def __init__(self, run: AsyncRun) -> None:
        self._run = run

    async def record(self, **options: Unpack[UsageOptions]) -> UsageTotal:
        """Records what a call used and returns the run's totals so far.

        Options: see :class:`~tidebase.domain.usage.UsageOptions`. ``exhausted`` says that a budget is used up: the next
        step that is begun raises BudgetExhausted.
        """
        return await self._run._do(record(self._run._hold, options))


class AsyncChannels:
    """``run.channels``: whom to tell what happens to the run."""

    def __init__(self, run: AsyncRun) -> None:
        self._run = run

    async def add(self, url: str, *, secret: str | None = None, events: Sequence[str] | None = None) -> int:
        """Lets a URL be told; see :meth:`~tidebase.client.runs_async.AsyncRuns.add_channel`."""
        return await self._run._tide.runs.add_channel(self._run.run_id, url, secret=secret, events=events)

    async def list(self) -> Sequence[Channel]:
        """The channels, with how far each is told."""
        return await self._run._tide.runs.channels(self._run.run_id)

    async def remove(self, channel: int) -> bool:
        """Sends nothing more to a channel; False when it was removed before."""
        return await self._run._tide.runs.remove_channel(self._run.run_id, channel)


class AsyncTransaction(Transaction[AsyncConnection]):
    """A :class:`~tidebase.domain.transaction.Transaction` on a :class:`psycopg.AsyncConnection`."""

    async def execute(self, query: Any, parameters: Any = None) -> psycopg.AsyncCursor[Any]:
        """``connection.execute``; on a replay nothing happens, and the cursor has no rows."""
        if self.replayed:
            return cast("psycopg.AsyncCursor[Any]", Skipped())
        return await self.connection.execute(query, parameters)


class AsyncRun:
    """A run that is being worked on. Safe to use from several tasks at once.

    Attributes:
        step: does a step; see :class:`AsyncStep`.
        gate: asks a person; see :class:`AsyncGate`.
        gates: the same without waiting; see :class:`AsyncGates`.
        state: its live state, with history; see :class:`~AsyncState`.
        snapshots: what other things looked like; see :class:`~AsyncSnapshots`.
        usage: what its calls to models used; see :class:`~AsyncUsage`.
        channels: whom to tell what happens to it; see :class:`~AsyncChannels`.
    """

    def __init__(
        self, tide: AsyncTidebase, database: AsyncDatabase, hold: Hold, checkpoints: Checkpoints, workflow: str
    ) -> None:
        self._tide = tide
        self._database = database
        self._hold = hold
        self._checkpoints = checkpoints
        self.workflow = workflow
        self.step: AsyncStep = AsyncStep(self)
        self.gate: AsyncGate = AsyncGate(self)
        self.gates: AsyncGates = AsyncGates(self)
        self.state: AsyncState = AsyncState(self)
        self.snapshots: AsyncSnapshots = AsyncSnapshots(self)
        self.usage: AsyncUsage = AsyncUsage(self)
        self.channels: AsyncChannels = AsyncChannels(self)

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
        """Appends an event of one's own to the run's log and returns its seq. A resumed workflow that comes by again,
        outside of a step, and tells the same is recognised, and gets the seq that the event has.

        Args:
            type: a name such as ``agent.progress``; the prefixes of Tidebase's own types are refused.
            payload: any value that can be stored as JSON.
            transient: it may be lost with the last moments of a crashed server, and costs no flush.
        """
        return await self._do(emit(self._hold, type, payload, transient))

    async def flush(self) -> None:
        """Waits until all is stored that the steps so far have returned; at once, where each waits for that by itself.
        For who tells the outside something without a step, under ``checkpoints="behind"``.

        Raises:
            Whatever a checkpoint was refused with.
        """
        await self._do(nothing())

    async def sleep(self, name: str, seconds: float, *, suspend: bool | None = None) -> None:
        """Waits for a durable timer: a run that is resumed only waits for what is left of it.

        Args:
            suspend: wait in the database, without this process; see :class:`AsyncGate`. By default so in a worker, for
                timers of 10 seconds and more.
        """
        await self._do(gate.sleep(self._hold, name, seconds, suspend))

    @overload
    async def child(
        self,
        workflow_name: str,
        function: None = None,
        *,
        name: str | None = None,
        input: Any = None,
        wait_s: float | None = None,
        **options: Unpack[ChildOptions],
    ) -> Any: ...

    @overload
    async def child(
        self,
        workflow_name: str,
        function: Callable[[AsyncRun, Any], Awaitable[T]],
        *,
        name: str | None = None,
        input: Any = None,
        wait_s: float | None = None,
        **options: Unpack[ChildOptions],
    ) -> T: ...

    async def child(
        self,
        workflow_name: str,
        function: Callable[[AsyncRun, Any], Awaitable[Any]] | None = None,
        *,
        name: str | None = None,
        input: Any = None,
        wait_s: float | None = None,
        **options: Unpack[ChildOptions],
    ) -> Any:
        """Runs a child to its result. A resumed parent finds the child again, and a completed one returns its result.

        Args:
            workflow_name: the child's workflow; also the name of the edge to it, unless ``name`` says another one.
            function: ``(run, input) -> result``; may be left out when it was registered.
            name: unique among the run's children.
            wait_s: how long to wait while another worker has the child's lease; see :meth:`AsyncTidebase.run`.
            options: see :class:`~tidebase.domain.child.ChildOptions`.

        Raises:
            ChildFailed: the child was cancelled, or taken over. InputMismatch: the name is that of another child.
            Suspended: the child waits for a gate or a timer, and so does this run now.
            Whatever the child's workflow raises: resuming this run works on the child again.
        """
        order = Order(name or workflow_name, workflow_name, None, input, options)
        chosen = self._tide._registry.find(workflow_name, function)
        work = self._do(child.accompany(self._tide, self._hold, order, chosen, wait_s))
        return await apart(work, f"tidebase-child-{order.name}")

    async def fanout(
        self,
        name: str,
        children: Sequence[ChildSpec],
        *,
        max_parallel: int = MAX_PARALLEL,
        **options: Unpack[StepOptions],
    ) -> list[Any]:
        """Runs children in parallel tasks and returns their results in order, kept in the step ``join:<name>``.

        A child that fails does not stop the others; a resumed parent works only on those that have no result.

        Args:
            children: see :class:`~tidebase.domain.child.ChildSpec`.
            max_parallel: how many are worked on at once.
            options: of the joining step, such as ``timeout_s`` or ``retries``.

        Raises:
            FanoutFailed: some failed; it has their errors and the others' results.
            Suspended: none failed, but some wait for a gate or a timer, and so does this run now.
        """
        orders = [Order.of(name, spec) for spec in children]
        functions = [self._tide._registry.find(order.workflow, order.function) for order in orders]

        async def collect() -> list[Any]:
            outcomes = await together(self._tide, self._database, self._hold, orders, functions, max_parallel)
            try:
                return await self._do(child.joined(self._hold, name, outcomes))
            except RunSuspendedError as error:  # of a session
                raise interruption(error) from error

        results: list[Any] = await self._perform(child.joining(name, orders, collect, options, self._checkpoints))
        return results

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
        """A step whose block is a transaction on one connection: its SQL and its checkpoint commit together.

        On a replay the block runs again, but its statements are not executed: see
        :class:`~tidebase.domain.transaction.Transaction`. When the lease was lost meanwhile, all of it is rolled back.
        With a function instead of a block, ``run.transaction("charge", charge)``, that is called with the transaction,
        and what it returns is the result; it may have ``retries``, and is not called on a replay.

        Args:
            connection: your own, in a transaction that you commit: a psycopg.AsyncConnection, or an AsyncSession or
                AsyncConnection of SQLAlchemy on psycopg 3. The step is completed if, and only if, you commit. Commit
                right after the block: until then the run is locked, and after 15 idle seconds the server rolls back.
            options: see :class:`~tidebase.domain.step.StepOptions`. ``timeout_s`` rolls back what takes longer;
                ``side_effects`` and the like are about what is done besides, to the outside: of the SQL a crash leaves
                nothing. ``retries`` need the function; they and ``timeout_s`` cannot be said of your own transaction.

        Raises:
            InvalidArgument: an option, or the connection, cannot be honoured; or the database is a router of several,
                and ``direct`` was not said.
            NotSerializable, StepOutputDecodeError, StepTimeout: all of it was rolled back.
        """
        trial = Trial(self._hold, self._checkpoints, name, function, options, connection is not None)
        return self._block(trial, connection) if function is None else self._transact(trial, function, connection)

    @asynccontextmanager
    async def _block(self, trial: Trial, given: Any) -> AsyncIterator[AsyncTransaction]:
        home = await self._database.home(self._hold.run_id)
        await home.require_no_router()
        joined = await self._join(home, given)
        stored = await self._do(trial.begin())
        home = await self._database.home(self._hold.run_id)
        if stored is not None:
            yield AsyncTransaction(None, trial.stored(stored))
            return
        transaction, sent, settled = AsyncTransaction(None), False, None
        try:
            with self._hold.executing(trial.name):
                async with self._scope(home, trial, joined) as connection:
                    transaction = AsyncTransaction(connection)
                    yield transaction
                    if joined is not None:
                        await joined.flush()
                    call, settled = trial.completion(transaction.result)
                    sent = True
                    await home.execute_on(connection, call)
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
                            transaction.result = await called(function(transaction))
                        finally:
                            current_step.reset(context)
                return cast(T, transaction.result)
            except Exception:
                if trial.again_in is None:
                    raise
            await self._do(trial.pause())

    async def _join(self, home: AsyncDatabase, given: Any) -> AsyncJoined | None:
        """The caller's transaction, if there is one, which can be joined. Nothing has been begun yet."""
        if given is None:
            return None
        joined = await join_async(given)
        if home.is_single(joined.connection):
            raise InvalidArgument("connection must be left out: there is no other one")
        require_room(await home.execute_on(joined.connection, standing()))
        if home is not self._database:  # it may lead to the router in front of them
            await require_no_router(joined.connection)
        return joined

    @asynccontextmanager
    async def _scope(
        self, home: AsyncDatabase, trial: Trial, joined: AsyncJoined | None
    ) -> AsyncIterator[AsyncConnection]:
        """The transaction; in one of the caller's a savepoint, so that a block that fails leaves nothing."""
        if joined is None:
            async with home.transaction() as connection:
                limit = trial.limit()
                if limit is not None:
                    await home.execute_on(connection, limit)
                yield connection
            return
        connection = joined.connection
        require_sight(await home.execute_on(connection, sight(self._hold, trial.name)), trial.name)
        async with connection.transaction(), joined.nested():  # the first one refuses to be committed from inside
            yield connection

    async def _perform(self, work: Work[T]) -> T:
        return await self._drive(perform(self._hold, self._checkpoints, work))

    async def _do(self, flow: Flow[T]) -> T:
        return await self._drive(settled(flow, self._hold))

    async def _drive(self, flow: Flow[T]) -> T:
        return await drive_async(inside(flow, self._hold), self._database)

    def _interruption(self, error: BaseException) -> BaseException:
        return interruption(error)


class AsyncRunSession(AsyncRun):
    """A run that is worked on outside a function: leased and kept alive until ``complete``, ``fail`` or ``close``.

    What ends the work is raised as an ordinary exception: LeaseLostError, RunCancelledError. As a context manager it
    fails the run on an exception, and otherwise gives the lease up if the run was not ended.
    """

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
        self.input: Any = codec.decode(started.lease.input)
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
        await self._end(one(calls.fail_run(run_id=self.run_id, token=self.token, error=describe(failure))))
        self._open = False

    async def close(self) -> None:
        """Gives the lease up without ending the run. Does nothing when the run was ended."""
        if self._open:
            self._open = False
            self._leave(self._hold)
            await self._end(workflow.release(self._hold))

    async def __aenter__(self) -> AsyncRunSession:
        return self

    async def __aexit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if self._open and isinstance(error, Exception):
            self._open = False
            self._hold.trace.failed(error)
            self._leave(self._hold)
            await self._end(workflow.fail(self._hold, error))
        await self.close()

    async def _end(self, flow: Flow[T]) -> T:
        await self._drive(drained(self._hold))
        return await self._drive(flow)

    async def _drive(self, flow: Flow[T]) -> T:
        return await drive_async(outside(flow, self._hold), self._database)

    def _interruption(self, error: BaseException) -> BaseException:
        return error
