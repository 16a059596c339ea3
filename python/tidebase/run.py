"""What a workflow gets to work with, in threads: the run, its steps, its transactions; and sessions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from contextvars import copy_context
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Generic, Literal, ParamSpec, TypeVar, cast, overload

import psycopg

from . import calls, child, codec, gate, state, workflow
from .calls import (
    Attempt,
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
from .child import MAX_PARALLEL, Brood, ChildOptions, ChildSpec, Order
from .database import Connection, Database
from .errors import Interruption, InvalidArgument, RunSuspendedError, TidebaseError, interruption, only
from .event import emit
from .flow import Flow, checked, drive, one
from .fork import fork
from .gate import GateAnswer, GateOpening, GateOptions
from .join import Joined, join, require_room, require_sight, sight, standing
from .lease import Hold
from .recovery import recover
from .state import Moment, Snapshots, State
from .step import Checkpoints, StepOptions, Work, current_step, describe, find_step, inside, outside, perform, resolve
from .subscribe import follow, refuse_joined
from .transaction import Skipped, Transaction, Trial
from .usage import Money, Usage, exact
from .workflow import RunOptions

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .client import Tidebase

P = ParamSpec("P")
T = TypeVar("T")
R = TypeVar("R", bound="Run")


class Step(Generic[R]):
    """``run.step``: does a named piece of work once; on a replay its stored result is returned.

    ``run.step("plan", make_plan, topic)`` hashes the arguments as the step's input; ``run.step("search", lambda:
    search(plan), input=plan)`` hashes what it is told. Options stand with the second form, or before:
    ``run.step.options(retries=3, key=doc.id)("parse", parse, doc)``. See :class:`~tidebase.step.StepOptions`.

    Raises:
        InputMismatch: the step was begun with another input.
        StepNotRunning: a step of the same name was done in this attempt, or is at work; tell them apart with ``key``.
        InvalidArgument: the name or the key is not allowed, or the input cannot be stored; nothing was executed.
        NotSerializable, StepOutputDecodeError, StepTimeout, and whatever the function raises when no retries are left.
        LeaseLost, RunCancelled: stop; see :class:`~tidebase.errors.Interruption`.
    """

    def __init__(self, run: R, options: StepOptions | None = None) -> None:
        self._run = run
        self._options = options

    @overload
    def __call__(self, name: str, function: Callable[[], T], /, **options: Unpack[StepOptions]) -> T: ...

    @overload
    def __call__(self, name: str, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T: ...

    def __call__(self, name: str, function: Callable[..., T], /, *args: Any, **kwargs: Any) -> T:
        return self._run._perform(Work.of(name, function, args, kwargs, self._options))

    def options(self, **options: Unpack[StepOptions]) -> Step[R]:
        """The same, with these options for the next call."""
        return Step(self._run, cast(StepOptions, {**(self._options or {}), **options}))


class Gate:
    """``run.gate``: asks a person and waits for the one decision."""

    def __init__(self, run: Run) -> None:
        self._run = run

    def __call__(
        self, name: str, prompt: str | None = None, *, suspend: bool = False, **options: Unpack[GateOptions]
    ) -> GateAnswer:
        """Returns the decision; a gate that was decided before returns it at once.

        Args:
            name: unique in the run, among gates and timers.
            prompt: the question. What is asked (prompt and data) is part of the gate: other ones raise InputMismatch.
            suspend: do not wait in this process: the run waits in the database, and ``tide.run`` raises
                RunSuspendedError to its caller. Call it again once the decision has fallen.
            options: see :class:`~tidebase.gate.GateOptions`.
        """
        return self._run._do(gate.ask(self._run._hold, name, prompt, options, suspend))


class Gates:
    """``run.gates``: gates for those who cannot block."""

    def __init__(self, run: Run) -> None:
        self._run = run

    def begin(self, name: str, prompt: str | None = None, **options: Unpack[GateOptions]) -> GateOpening:
        """Opens a gate, or finds it; has the secret that entitles its bearer to decide."""
        return self._run._do(gate.begin(self._run._hold, name, prompt, options))

    def get(self, name: str) -> GateAnswer | None:
        """The decision; None while there is none. Raises NotFound."""
        return self._run._do(gate.get(self._run._hold, name))

    def secret(self, name: str, *, voter: str | None = None) -> str | None:
        """The secret of a gate, to be handed out; None when it is decided. Raises NotFound.

        With ``voter`` a personal one: where several people must agree, its bearer votes as this voter.
        """
        return self._run._do(gate.secret(self._run._hold, name, voter))


class SyncTransaction(Transaction[Connection]):
    """A :class:`~tidebase.transaction.Transaction` on a :class:`psycopg.Connection`."""

    def execute(self, query: Any, parameters: Any = None) -> psycopg.Cursor[Any]:
        """``connection.execute``; on a replay nothing happens, and the cursor has no rows."""
        if self.replayed:
            return cast("psycopg.Cursor[Any]", Skipped())
        return self.connection.execute(query, parameters)


class Run:
    """A run that is being worked on. Safe to use from several threads at once.

    Attributes:
        step: does a step; see :class:`Step`.
        gate: asks a person; see :class:`Gate`.
        gates: the same without waiting; see :class:`Gates`.
        state: its live state, with history; see :class:`~tidebase.state.State`.
        snapshots: what other things looked like; see :class:`~tidebase.state.Snapshots`.
        usage: what its calls to models used; see :class:`~tidebase.usage.Usage`.
    """

    def __init__(self, tide: Tidebase, database: Database, hold: Hold, checkpoints: Checkpoints, workflow: str) -> None:
        self._tide = tide
        self._database = database
        self._hold = hold
        self._checkpoints = checkpoints
        self.workflow = workflow
        self.step: Step[Run] = Step(self)
        self.gate = Gate(self)
        self.gates = Gates(self)
        self.state = State(self)
        self.snapshots = Snapshots(self)
        self.usage = Usage(self)

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

    def emit(self, type: str, payload: Any = None, *, transient: bool = False) -> int:
        """Appends an event of one's own to the run's log and returns its seq. A resumed workflow that comes by again,
        outside of a step, and tells the same is recognised, and gets the seq that the event has.

        Args:
            type: a name such as ``agent.progress``; the prefixes of Tidebase's own types are refused.
            payload: any value that can be stored as JSON.
            transient: it may be lost with the last moments of a crashed server, and costs no flush.
        """
        return self._do(emit(self._hold, type, payload, transient))

    def sleep(self, name: str, seconds: float, *, suspend: bool = False) -> None:
        """Waits for a durable timer: a run that is resumed only waits for what is left of it.

        Args:
            suspend: wait in the database, without this process; see :class:`Gate`.
        """
        self._do(gate.sleep(self._hold, name, seconds, suspend))

    def child(
        self,
        workflow_name: str,
        function: Callable[[Run, Any], T] | None = None,
        *,
        name: str | None = None,
        input: Any = None,
        wait_s: float | None = None,
        **options: Unpack[ChildOptions],
    ) -> T:
        """Runs a child to its result. A resumed parent finds the child again, and a completed one returns its result.

        Args:
            workflow_name: the child's workflow; also the name of the edge to it, unless ``name`` says another one.
            function: ``(run, input) -> result``; may be left out when it was registered.
            name: unique among the run's children.
            wait_s: how long to wait while another worker has the child's lease; see :meth:`Tidebase.run`.
            options: see :class:`~tidebase.child.ChildOptions`.

        Raises:
            ChildFailed: the child was cancelled, or taken over. InputMismatch: the name is that of another child.
            Suspended: the child waits for a gate or a timer, and so does this run now.
            Whatever the child's workflow raises: resuming this run works on the child again.
        """
        order = Order(name or workflow_name, workflow_name, None, input, options)
        chosen = self._tide._registry.find(workflow_name, function)
        return self._do(child.accompany(self._tide, self._hold, order, chosen, wait_s))

    def fanout(
        self,
        name: str,
        children: Sequence[ChildSpec],
        *,
        max_parallel: int = MAX_PARALLEL,
        **options: Unpack[StepOptions],
    ) -> list[Any]:
        """Runs children in parallel threads and returns their results in order, kept in the step ``join:<name>``.

        A child that fails does not stop the others; a resumed parent works only on those that have no result.

        Args:
            children: see :class:`~tidebase.child.ChildSpec`.
            max_parallel: how many are worked on at once.
            options: of the joining step, such as ``timeout_s`` or ``retries``.

        Raises:
            FanoutFailed: some failed; it has their errors and the others' results.
            Suspended: none failed, but some wait for a gate or a timer, and so does this run now.
        """
        orders = [Order.of(name, spec) for spec in children]
        functions = [self._tide._registry.find(order.workflow, order.function) for order in orders]

        def collect() -> list[Any]:
            return self._collect(name, orders, functions, max_parallel)

        return self._perform(child.joining(name, orders, collect, options, self._checkpoints))

    def _collect(
        self, name: str, orders: Sequence[Order], functions: Sequence[Callable[..., Any]], max_parallel: int
    ) -> list[Any]:
        brood = Brood(self._tide)
        pool = ThreadPoolExecutor(max(1, min(max_parallel, len(orders))), thread_name_prefix="tidebase-child")
        try:
            futures = {
                order.name: pool.submit(
                    copy_context().run, drive, child.work_on(brood, self._hold, order, function), self._database
                )
                for order, function in zip(orders, functions, strict=True)
            }
            outcomes = {key: future.exception() or future.result() for key, future in futures.items()}
        except BaseException:  # the process is told to go: nobody shall have to wait for the children's leases
            pool.shutdown(wait=False, cancel_futures=True)
            for hold in list(brood.holds):
                drive(workflow.release(hold), self._database)
            raise
        pool.shutdown()
        try:
            return self._do(child.joined(self._hold, name, outcomes))
        except RunSuspendedError as error:  # of a session
            raise interruption(error) from error

    @overload
    def transaction(
        self, name: str, *, connection: Any = None, **options: Unpack[StepOptions]
    ) -> AbstractContextManager[SyncTransaction]: ...

    @overload
    def transaction(
        self,
        name: str,
        function: Callable[[SyncTransaction], T],
        *,
        connection: Any = None,
        **options: Unpack[StepOptions],
    ) -> T: ...

    def transaction(
        self,
        name: str,
        function: Callable[[SyncTransaction], Any] | None = None,
        *,
        connection: Any = None,
        **options: Unpack[StepOptions],
    ) -> Any:
        """A step whose block is a transaction on one connection: its SQL and its checkpoint commit together.

        On a replay the block runs again, but its statements are not executed: see
        :class:`~tidebase.transaction.Transaction`. When the lease was lost meanwhile, all of it is rolled back. With a
        function instead of a block, ``run.transaction("charge", charge)``, that is called with the transaction, and
        what it returns is the result; it may have ``retries``, and is not called on a replay.

        Args:
            connection: your own, in a transaction that you commit: a psycopg.Connection, or a Session or Connection of
                SQLAlchemy or Django on psycopg 3. The step is completed if, and only if, you commit. Commit right
                after the block: until then the run is locked, and after 15 idle seconds the server rolls back.
            options: see :class:`~tidebase.step.StepOptions`. ``timeout_s`` rolls back what takes longer;
                ``side_effects`` and the like are about what is done besides, to the outside: of the SQL a crash leaves
                nothing. ``retries`` need the function; they and ``timeout_s`` cannot be said of your own transaction.

        Raises:
            InvalidArgument: an option, or the connection, cannot be honoured.
            NotSerializable, StepOutputDecodeError, StepTimeout: all of it was rolled back.
        """
        trial = Trial(self._hold, self._checkpoints, name, function, options, connection is not None)
        return self._block(trial, connection) if function is None else self._transact(trial, function, connection)

    @contextmanager
    def _block(self, trial: Trial, given: Any) -> Iterator[SyncTransaction]:
        joined = self._join(given)
        stored = self._do(trial.begin())
        if stored is not None:
            yield SyncTransaction(None, trial.stored(stored))
            return
        transaction, sent, settled = SyncTransaction(None), False, None
        try:
            with self._hold.executing(trial.name), self._scope(trial, joined) as connection:
                transaction = SyncTransaction(connection)
                yield transaction
                if joined is not None:
                    joined.flush()
                call, settled = trial.completion(transaction.result)
                sent = True
                self._database.execute_on(connection, call)
        except Interruption as error:
            inner = self._interruption(error)
            if inner is error:
                raise
            raise inner from error
        except Exception as error:
            known = trial.seen_as(error)
            if self._do(trial.failed(known)) or not sent:
                if known is error:
                    raise
                raise known from error
        transaction.result = settled

    def _transact(self, trial: Trial, function: Callable[[SyncTransaction], T], given: Any) -> T:
        while True:
            try:
                with self._block(trial, given) as transaction:
                    if not transaction.replayed:
                        context = current_step.set(trial.name)
                        try:
                            transaction.result = checked(function(transaction))
                        finally:
                            current_step.reset(context)
                return cast(T, transaction.result)
            except Exception:
                if trial.again_in is None:
                    raise
            self._do(trial.pause())

    def _join(self, given: Any) -> Joined | None:
        """The caller's transaction, if there is one, which can be joined. Nothing has been begun yet."""
        if given is None:
            return None
        joined = join(given)
        if self._database.is_single(joined.connection):
            raise InvalidArgument("connection must be left out: there is no other one")
        require_room(self._database.execute_on(joined.connection, standing()))
        return joined

    @contextmanager
    def _scope(self, trial: Trial, joined: Joined | None) -> Iterator[Connection]:
        """The transaction; in one of the caller's a savepoint, so that a block that fails leaves nothing."""
        if joined is None:
            with self._database.transaction() as connection:
                limit = trial.limit()
                if limit is not None:
                    self._database.execute_on(connection, limit)
                yield connection
            return
        connection = joined.connection
        require_sight(self._database.execute_on(connection, sight(self._hold, trial.name)), trial.name)
        with connection.transaction(), joined.nested():  # the first one refuses to be committed from inside
            yield connection

    def _perform(self, work: Work[T]) -> T:
        return self._do(perform(self._hold, self._checkpoints, work))

    def _do(self, flow: Flow[T]) -> T:
        return drive(inside(flow, self._hold), self._database)

    def _interruption(self, error: BaseException) -> BaseException:
        return interruption(error)


class RunSession(Run):
    """A run that is worked on outside a function: leased and kept alive until ``complete``, ``fail`` or ``close``.

    What ends the work is raised as an ordinary exception: LeaseLostError, RunCancelledError. As a context manager it
    fails the run on an exception, and otherwise gives the lease up if the run was not ended.
    """

    def __init__(
        self,
        tide: Tidebase,
        database: Database,
        started: workflow.Started,
        workflow_name: str,
        leave: Callable[[Hold], None],
    ) -> None:
        assert started.hold is not None
        super().__init__(tide, database, started.hold, started.checkpoints, workflow_name)
        started.hold.session = True
        self.input = codec.decode(started.lease.input)
        self._leave = leave
        self._open = True

    def heartbeat(self) -> None:
        """Renews the lease now; it is also done in the background."""
        self._do(one(self._hold.renewal()))

    def complete(self, result: Any = None) -> None:
        """Stores the result and ends the run for good."""
        call = calls.complete_run(run_id=self.run_id, token=self.token, result=codec.encode(result))
        self._hold.trace.completed()
        self._leave(self._hold)
        self._do(one(call))
        self._open = False

    def fail(self, error: BaseException | str) -> None:
        """Ends this attempt with an error; the run may be resumed."""
        failure = error if isinstance(error, BaseException) else RuntimeError(error)
        self._hold.trace.failed(failure)
        self._leave(self._hold)
        self._do(one(calls.fail_run(run_id=self.run_id, token=self.token, error=describe(failure))))
        self._open = False

    def close(self) -> None:
        """Gives the lease up without ending the run. Does nothing when the run was ended."""
        if self._open:
            self._open = False
            self._leave(self._hold)
            self._do(workflow.release(self._hold))

    def __enter__(self) -> RunSession:
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if self._open and isinstance(error, Exception):
            self._open = False
            self._hold.trace.failed(error)
            self._leave(self._hold)
            self._do(workflow.fail(self._hold, error))
        self.close()

    def _do(self, flow: Flow[T]) -> T:
        return drive(outside(flow, self._hold), self._database)

    def _interruption(self, error: BaseException) -> BaseException:
        return error


class Runs:
    """``tide.runs``: runs seen from outside."""

    def __init__(self, database: Database, attach: Callable[..., RunSession] | None = None) -> None:
        self._database = database
        self._attach = attach

    def create(
        self,
        workflow_name: str,
        input: Any = None,
        *,
        run_id: str | None = None,
        **options: Unpack[RunOptions],
    ) -> RunInfo:
        """Makes a run that nobody works on yet; the same id with the same workflow and input is the same run.

        Options: see :class:`~tidebase.workflow.RunOptions`.

        Raises:
            InputMismatch: the id belongs to another workflow, or to another input.
        """
        return self.get(self._database.execute(workflow.create(workflow_name, run_id, input, options)))

    def get(self, run_id: str) -> RunInfo:
        """One run. Raises RunNotFound."""
        return self._database.execute(calls.get_run(run_id=run_id))

    def find(self, prefix: str) -> str:
        """The id of the run that has this id, or of the only one whose id begins so.

        Raises:
            RunNotFound: there is none. InvalidArgument: several begin so, which ``detail`` has as ``run_ids``.
        """
        found: str = self._database.execute(calls.find_run(prefix=prefix))
        return found

    def list(
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
        return self._database.execute(
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

    def count(self) -> Sequence[RunCount]:
        """How many runs there are in each status; large numbers are estimates, and say so."""
        return self._database.execute(calls.count_runs())

    def cancel(
        self, run_id: str, reason: str | None = None, *, actor: str | None = None, cascade: bool = True
    ) -> RunInfo:
        """Cancels a run for good, and with ``cascade`` its descendants; safe to repeat.

        Raises:
            RunFinal: it is completed.
        """
        self._database.execute(calls.cancel_run(run_id=run_id, reason=reason, actor=actor, cascade=cascade))
        return self.get(run_id)

    def recover(self, run_id: str, reason: str = "manual", *, actor: str | None = None) -> Recovery:
        """Makes a run that was left by its worker, or failed, acquirable at once; tells its webhook, if it has one.

        Raises:
            InvalidArgument: a worker holds it. RunFinal, RunCancelledError: it is over.
        """
        number = self._database.execute(recover(run_id, reason, actor))
        return next(recovery for recovery in self.recoveries(run_id) if recovery.recovery == number)

    def recoveries(self, run_id: str) -> Sequence[Recovery]:
        """Every attempt to recover a run, oldest first."""
        return self._database.execute(calls.recovery_history(run_id))

    def stalled(self) -> Sequence[StalledRun]:
        """The runs that do not go on by themselves, longest first."""
        return self._database.execute(calls.stalled_runs())

    def reviews(self, run_id: str | None = None) -> Sequence[ReviewInfo]:
        """The steps that wait for a person's decision, oldest first."""
        return self._database.execute(calls.review_inbox(run_id))

    def resolve_review(
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
        self._database.execute(resolve(run_id, step, decision, output, actor, reason))

    def fork(
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
        return self.get(self._database.execute(call))

    def tree(self, run_id: str) -> Sequence[TreeNode]:
        """The run with everything below it, depth first: children and (``edge_type`` is ``fork``) forks."""
        return self._database.execute(calls.run_tree(run_id=run_id))

    def state(self, run_id: str, stream: str = state.MAIN, **moment: Unpack[Moment]) -> StateVersion:
        """The state of a run, now or at a :class:`~tidebase.state.Moment`. Raises NotFound where there is none."""
        return drive(state.read(run_id, stream, moment), self._database)

    def state_versions(
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
        return self._database.execute(state.versions(run_id, stream, labeled, before, max, with_value))

    def snapshots(
        self, run_id: str, *, target: tuple[str, str] | None = None, label: str | None = None, max: int | None = None
    ) -> Sequence[Snapshot]:
        """Snapshots and saved states of a run, newest first."""
        return self._database.execute(state.snapshots(run_id, target, label, max))

    def usage(self, run_id: str) -> UsageTotals:
        """What a run used, itself and with its descendants, and its limits. Raises RunNotFound."""
        return only(self._database.execute(calls.usage_totals(run_id)), run_id)

    def usage_by_step(self, run_id: str) -> Sequence[UsageByStep]:
        """What each step of a run used."""
        return self._database.execute(calls.usage_by_step(run_id))

    def usage_by_model(self, run_id: str) -> Sequence[UsageByModel]:
        """What a run used of each model."""
        return self._database.execute(calls.usage_by_model(run_id))

    def set_budget(
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
        self._database.execute(
            calls.set_budget(run_id=run_id, cost_usd=limit, tokens=tokens, actor=actor, reason=reason)
        )
        return self.usage(run_id)

    def size(self, run_id: str) -> RunSize:
        """What a run stores, in rows and bytes. Raises RunNotFound."""
        return only(self._database.execute(calls.run_sizes(run_id)), run_id)

    def compact(self, run_id: str) -> bool:
        """Takes the outputs and old states of a run away that is completed or cancelled; its log and result stay.

        Returns:
            False when that was done before.
        """
        return bool(self._database.execute(calls.compact_run(run_id=run_id)))

    def purge(self, older_than: timedelta, *, statuses: Sequence[str] | None = None, max: int | None = None) -> int:
        """Deletes runs that have been over for longer than that, with everything that hangs on them; returns how many.

        Args:
            statuses: some of ``completed``, ``failed``, ``cancelled``; by default all three.
            max: how many at most, 1 to 10,000, by default 1,000: call again while that many are returned.
        """
        chosen = None if statuses is None else list(statuses)
        return int(self._database.execute(calls.purge_runs(older_than=older_than, statuses=chosen, max=max)))

    def gates(self, run_id: str) -> Sequence[GateInfo]:
        """The gates and the timers of a run, oldest first."""
        return self._database.execute(calls.run_gates(run_id))

    def attempts(self, run_id: str) -> Sequence[Attempt]:
        """Who worked on a run, from when to when, and how that ended."""
        return self._database.execute(calls.run_attempts(run_id))

    def steps(self, run_id: str, *, max: int | None = None) -> Sequence[StepInfo]:
        """The steps of a run, in the order in which they were last begun; with ``max`` only so many, the latest."""
        call = calls.step_timeline(run_id) if max is None else calls.latest_steps(run_id, max)
        return self._database.execute(call)

    def step(self, run_id: str, name: str) -> StepInfo:
        """One step of a run. Raises RunNotFound, NotFound."""
        return drive(find_step(run_id, name), self._database)

    def events(self, run_id: str, after: int = 0, *, page: int = 1000) -> Iterator[Event]:
        """The events that are there now with seq > ``after``, in order, read ``page`` at a time."""
        while True:
            rows = self._database.execute(calls.read_events(run_id=run_id, after=after, max=page))
            yield from rows
            if len(rows) < page:
                return
            after = rows[-1].seq

    def subscribe(self, run_id: str, after: int = 0) -> Iterator[Event]:
        """All events with seq > ``after``, in order, each once, as they come; ends when the run is over (completed,
        cancelled, or failed and not resumed). No connection is held between them. Raises RunNotFound; TidebaseError
        on a bound connection, whose transaction would stay open.
        """
        refuse_joined(self._database)
        return follow(self._database, run_id, after)

    def attach(
        self,
        workflow_name: str,
        *,
        run_id: str | None = None,
        input: Any = None,
        wait_s: float | None = None,
        on_lease_lost: Callable[[TidebaseError], None] | None = None,
        **options: Unpack[RunOptions],
    ) -> RunSession:
        """Makes or finds a run, leases it, and returns a session; for work that is not shaped like a function.

        Args:
            wait_s: how long to wait while another worker has the lease; see :meth:`Tidebase.run`.
            on_lease_lost: called from the heartbeat's thread when the lease is lost.
            options: see :class:`~tidebase.workflow.RunOptions`.

        Raises:
            RunFinal: the run is completed. RunHeld, RunCancelledError, InputMismatch: as for :meth:`Tidebase.run`.
        """
        if self._attach is None:
            raise TidebaseError("a session needs connections of its own", hint="Call attach on the Tidebase itself.")
        return self._attach(workflow_name, run_id, input, wait_s, on_lease_lost, options)


class GateDesk:
    """``tide.gates``: gates seen by those who decide."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def list(
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
        return self._database.execute(
            calls.list_gates(run_id=run_id, status=status, max=max, **calls.behind_gate(after))
        )

    def get(self, run_id: str, name: str) -> GateInfo:
        """One gate. Raises NotFound."""
        return self._database.execute(calls.get_gate(run_id=run_id, name=name))

    def secret(self, run_id: str, name: str, *, voter: str | None = None) -> str | None:
        """The secret of a gate, for workers, who hand it out; None when the gate is decided.

        Args:
            voter: a personal secret: where several people must agree, approving with it is the vote of this voter, who
                is the same as the database login of that name.

        Raises:
            NotFound: there is no such gate. InvalidArgument: the voter's name is blank, or longer than 255 bytes.
        """
        found: str | None = self._database.execute(calls.get_gate_secret(run_id=run_id, name=name, voter=voter))
        return found

    def decide(
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
        return self._database.execute(
            gate.decision(
                run_id, name, decision, actor=actor, payload=payload, secret=secret, comment=comment, voter=voter
            )
        )
