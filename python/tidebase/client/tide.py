# Made by python/tools/faces.py out of tide_async.py: change that, and run `make faces`.
"""``Tidebase``: the way in, for threads."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar, overload

import psycopg

from ..core.base import POOL_SIZE
from ..core.database import Database, Pool
from ..core.errors import LeaseLostError, RunCancelledError, RunNeedsReview, RunSuspendedError, TidebaseError
from ..core.flow import Flow, drive
from ..core.sessions import Connection
from ..core.shards import Shards
from ..core.sources import require_psycopg
from ..domain import calls, push, workflow
from ..domain.calls import Difference, Enqueuing, Measurement, Reconciliation
from ..domain.enqueue import enqueue, enqueue_many
from ..domain.heartbeat import Heartbeats
from ..domain.lease import Checkpointing, Hold, new_holder, require_checkpointing
from ..domain.workflow import Invocation, RunOptions, Started
from ._threads import Face, Here, migrate
from .queues import Queues, Schedules
from .registry import Registry
from .runs import GateDesk, Runs
from .work import Run, RunSession
from .worker import Worker

if TYPE_CHECKING:
    from opentelemetry.trace import Tracer
    from typing_extensions import Unpack

    from ..domain.enqueue import EnqueueOptions, EnqueueSpec
    from ..schema.migrations import MigrationReport
_log = logging.getLogger("tidebase.worker")
T = TypeVar("T")
W = TypeVar("W", bound=Callable[..., Any])


class Tidebase(Face[Database]):
    """Durable runs in your own Postgres.

    Args:
        database: a connection string, a ``psycopg_pool.ConnectionPool`` or a ``psycopg.Connection``. By
            default ``TIDEBASE_DATABASE_URL``, ``DATABASE_URL`` or libpq's variables say where it is; with none of them
            a local Postgres is started (the extra ``local``).
        lease_s: how long a lease lasts without a heartbeat, in seconds: how long a crashed worker's run waits before
            another may take over.
        holder: a name for this worker in the log; by default host, process id and a random part.
        code_version: what this worker runs, kept with each attempt.
        pool_size: how many connections there are at most.
        reconnect_s: for how long a call is made again while the database is out of reach, in seconds.
        tracer: an OpenTelemetry tracer, for a span for each attempt and step; see :mod:`tidebase.core.tracing`.
        checkpoints: ``each``: a step returns once its checkpoint is stored. ``behind``: that of a step which is quick
            and says nothing about the outside is on its way while the next one is executed already, and whatever others
            can see waits for it; a crash repeats the last 64 of those at most. See :mod:`tidebase.core.behind`. Not
            with a connection of yours.
        direct: the database is a router of several: what concerns one run goes straight to the database that has it, as
            the same user, and only the rest through the router; see :mod:`tidebase.core.shards`. Needs a connection
            string.
    """

    def __init__(
        self,
        database: str | Pool | Connection | None = None,
        *,
        lease_s: float = 60.0,
        holder: str | None = None,
        code_version: str | None = None,
        pool_size: int = POOL_SIZE,
        reconnect_s: float = 30.0,
        tracer: Tracer | None = None,
        checkpoints: Checkpointing = "each",
        direct: bool = False,
    ) -> None:
        kind = Shards if direct else Database
        self._database = kind(database, pool_size=pool_size, reconnect_s=reconnect_s, lease_s=lease_s)
        self._here = Here(lambda: Heartbeats(self._database))
        self._registry = Registry()
        self.holder: str = holder or new_holder()
        self.lease_s = lease_s
        self.code_version = code_version
        self.tracer = tracer
        require_checkpointing(checkpoints, self._database.has_connections)
        self.checkpoints: Checkpointing = checkpoints
        self.marks_late: bool = self._database.has_connections
        self.runs: Runs = Runs(self._database, self._attach)
        self.gates: GateDesk = GateDesk(self._database)
        self.queues: Queues = Queues(self._database)
        self.schedules: Schedules = Schedules(self._database)

    @property
    def url(self) -> str:
        """The connection string in use."""
        return self._database.url

    def url_of(self, run_id: str) -> str:
        """The connection string of the database that has a run, or would have one with this id: with ``direct`` that
        of its shard, for tables of your own beside it, else :attr:`url`. A queue and what belongs to it is where the
        id ``{queue:NAME}`` would be.
        """
        return self._database.home(run_id).url

    @property
    def _heartbeats(self) -> Heartbeats:
        return self._here.heartbeats()

    def workflow(self, name: str) -> Callable[[W], W]:
        """Registers a function ``(run, input)`` under a name, so that ``tide.run(name)`` finds it."""
        return self._registry.register(name)

    @overload
    def run(
        self,
        workflow_name: str,
        function: None = None,
        *,
        run_id: str | None = None,
        input: Any = None,
        wait_s: float | None = None,
        **options: Unpack[RunOptions],
    ) -> Any: ...

    @overload
    def run(
        self,
        workflow_name: str,
        function: Callable[[Run, Any], T],
        *,
        run_id: str | None = None,
        input: Any = None,
        wait_s: float | None = None,
        **options: Unpack[RunOptions],
    ) -> T: ...

    def run(
        self,
        workflow_name: str,
        function: Callable[[Run, Any], Any] | None = None,
        *,
        run_id: str | None = None,
        input: Any = None,
        wait_s: float | None = None,
        **options: Unpack[RunOptions],
    ) -> Any:
        """Runs a workflow, from where it stopped if it was run before, and returns its result.

        Args:
            workflow_name: the workflow's name, kept with the run.
            function: ``(run, input) -> result``; may be left out when it was registered with :meth:`workflow`.
            run_id: names the run: the same id continues the same run. By default a new one is made.
            input: any value that can be stored as JSON; left out, an existing run goes on with its own.
            wait_s: how long to wait while another worker holds the lease, or while the run waits for a gate or a timer,
                in seconds. By default for as long as that worker looks dead: until its lease runs out, unless it renews
                it meanwhile.
            options: see :class:`~tidebase.domain.workflow.RunOptions`: metadata, deadline, max_attempts ...

        Raises:
            InputMismatch: the id belongs to another workflow, or to another input.
            RunHeld: another worker is at it. LeaseLostError: another worker has taken it over.
            RunCancelledError: it was cancelled. RunSuspendedError: it waits for a gate or a timer.
            RunNeedsReview: a person must decide about a step before it can go on.
            DatabaseUnavailable: the database was out of reach for too long.
            Whatever the workflow raises: the run is failed, and may be resumed with the same id.
        """
        chosen = self._registry.find(workflow_name, function)
        invocation = Invocation(
            workflow_name, workflow.new_run_id() if run_id is None else run_id, input, wait_s, options
        )
        with self._here.working():
            return drive(workflow.execute(self, chosen, invocation), self._database)

    def enqueue(
        self,
        workflow_name: str,
        input: Any = None,
        *,
        queue: str = "default",
        run_id: str | None = None,
        **options: Unpack[EnqueueOptions],
    ) -> Enqueuing:
        """Makes a run that any worker of the queue may take up; with :meth:`bind` as part of your own transaction.

        Args:
            run_id: names the run: the same id is the same run. By default a new one is made.
            options: see :class:`~tidebase.domain.enqueue.EnqueueOptions`: priority, delay_s, key, dedupe_key ...

        Raises:
            AlreadyQueued: another run has the ``dedupe_key``, and ``on_duplicate`` is reject.
        """
        return self._database.execute(enqueue(workflow_name, queue, run_id, input, options))

    def enqueue_many(self, runs: Iterable[EnqueueSpec]) -> Sequence[Enqueuing]:
        """Enqueues many runs in one call, all or none: dicts with the names of :meth:`enqueue` and ``workflow``."""
        return self._database.execute(enqueue_many(runs))

    def worker(
        self,
        queues: Sequence[str] | Mapping[str, float] = ("default",),
        *,
        concurrency: int = 8,
        poll_s: float = 10.0,
        drain_s: float = 30.0,
        versions: Sequence[str] | None = None,
        suspend: bool = True,
    ) -> Worker:
        """A worker for queues, which knows the registered workflows; see :class:`~tidebase.Worker`."""
        return Worker(
            self, queues, concurrency=concurrency, poll_s=poll_s, drain_s=drain_s, versions=versions, suspend=suspend
        )

    def invoked(
        self, body: bytes, headers: Mapping[str, str], *, secret: str | None = None, url: str | None = None
    ) -> bool:
        """Does what a webhook asks for: works on its run, as a worker would. For the HTTP handler of a queue's
        ``endpoint``, and of a ``recovery_webhook``. Whether this call took the run up: False when somebody else has it,
        when it waits, is over, or its queue has no room. Either is to be answered with a 2xx status: what becomes of
        the run is in the database.

        Args:
            body: the raw bytes of the request's body.
            headers: those of the request.
            secret: what it was signed with; by default the environment's ``TIDEBASE_WEBHOOK_SECRET``.
            url: the URL as the queue has it: then only what was signed for it, and within 5 minutes, is believed.

        Raises:
            NotEntitled: the signature is missing, or wrong: answer with 401.
            InvalidArgument: it asks for something else, which is not for Tidebase.
            TidebaseError: the workflow is not registered; or there is no secret.
        """
        asked = push.told(body, headers, secret, url)
        function: Callable[..., Any] = self._registry.find(asked.workflow, None)
        started = drive(push.take_up(self, asked), self._database)
        if started is None:
            return False
        self._carry_out(push.work_on(self, function, asked, started), asked.run_id)
        return True

    def _carry_out(self, work: Flow[None], run_id: str) -> str:
        """Works on a run that is leased already, and says how that ended."""
        try:
            with self._here.working():
                drive(work, self._database)
        except (RunSuspendedError, RunNeedsReview, RunCancelledError, LeaseLostError) as end:
            _log.info("run %s: %s", run_id, end)
            return workflow.end_of(end)
        except Exception as error:  # it is recorded, and the run tried again if it has attempts left
            _log.warning("run %s failed: %s: %s", run_id, type(error).__name__, error)
            return "failed"
        return "completed"

    def measure(self) -> Sequence[Measurement]:
        """What there is to watch: queues, runs, workers, what is late; all ages by the clock of the database."""
        return self._database.execute(calls.measure())

    def diff(self, run_id: str, other_run_id: str) -> Sequence[Difference]:
        """In what two runs differ, such as a run and its fork; the first step is where they part."""
        return self._database.execute(calls.diff_runs(run_id=run_id, other_run_id=other_run_id))

    def reconcile(self, max: int = 100) -> Reconciliation:
        """Looks at the runs that are due, at most ``max``: leases, gates, timers and deadlines that have run out.

        Nothing is unsafe without it; call it every few seconds from anywhere, by as many processes as you like.
        """
        return self._database.execute(calls.reconcile(max=max))

    def bind(self, connection: Connection) -> Bound:
        """The same database over the caller's connection and in the caller's transaction: a run made there exists if,
        and only if, that transaction commits.

        Raises:
            InvalidArgument: it is not a psycopg connection; of SQLAlchemy's and Django's, pass the one below. At the
                first call: the database is a router of several, whose calls commit there; with ``direct``, a run is
                not in the database of the connection.
        """
        return Bound(connection, self._database)

    def migrate(self, *, role_prefix: str | None = None) -> MigrationReport:
        """Installs the schema or brings it up to date; says what was done. See :mod:`tidebase.schema.migrations`."""
        return migrate(self._database, role_prefix)

    def close(self) -> None:
        """Closes all connections. Leases that are held run out by themselves. What is needed again is opened again."""
        self._heartbeats.close()
        self._database.close()

    def __enter__(self) -> Tidebase:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _enter(self, started: Started, invocation: Invocation) -> Run:
        assert started.hold is not None
        self._here.watch(started.hold)
        self._heartbeats.add(started.hold)
        return Run(self, self._database, started.hold, started.checkpoints, invocation.workflow)

    def _leave(self, hold: Hold) -> None:
        self._heartbeats.remove(hold)
        hold.end()

    def _attach(
        self,
        workflow_name: str,
        run_id: str | None,
        input: Any,
        wait_s: float | None,
        on_lease_lost: Callable[[TidebaseError], None] | None,
        options: RunOptions,
    ) -> RunSession:
        invocation = Invocation(
            workflow_name, workflow.new_run_id() if run_id is None else run_id, input, wait_s, options
        )
        started = drive(workflow.attach(self, invocation), self._database)
        assert started.hold is not None
        started.hold.on_lost = on_lease_lost
        self._heartbeats.add(started.hold)
        return RunSession(self, self._database, started, workflow_name, self._leave)


class Bound:
    """``tide.bind(connection)``: what may be part of the caller's transaction."""

    def __init__(self, connection: Connection, database: Database | None = None) -> None:
        require_psycopg(connection, psycopg.Connection)
        joined = Database(connection, joined=True) if database is None else database.bound(connection)
        self._database = joined
        self.runs: Runs = Runs(self._database)

    def enqueue(
        self,
        workflow_name: str,
        input: Any = None,
        *,
        queue: str = "default",
        run_id: str | None = None,
        **options: Unpack[EnqueueOptions],
    ) -> Enqueuing:
        """Makes a run that workers see when the caller's transaction commits; see :meth:`Tidebase.enqueue`."""
        return self._database.execute(enqueue(workflow_name, queue, run_id, input, options))

    def enqueue_many(self, runs: Iterable[EnqueueSpec]) -> Sequence[Enqueuing]:
        """Many of them, in one call; see :meth:`Tidebase.enqueue_many`."""
        return self._database.execute(enqueue_many(runs))
