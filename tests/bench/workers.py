"""Programs that work on a queue of their own until they are killed: ``python -m tests.bench.workers WHO URL``."""

from __future__ import annotations

import asyncio
import sys
import threading
import time

import psycopg
from psycopg_pool import ConnectionPool

from tidebase import AsyncTidebase, Tidebase
from tidebase.client import worker

#: How many jobs a worker has in hand at once, and how many it asks for.
HANDS, BATCH = 16, 100
#: How often one that nothing wakes looks for itself.
POLL_S = 0.5


def sql(url: str) -> None:
    """What any client may do: claim a batch by one call, and complete it by one."""
    with psycopg.connect(url, autocommit=True) as connection:
        listen = "interval '1 minute'"
        claim = f"select run_id, token from tidebase.claim_runs('{{bench}}', %s, {BATCH}, listen_for => {listen})"
        complete = "select count(seq) from tidebase.complete_runs(%s, %s::bigint[])"
        connection.execute("listen tidebase_events")
        holder = f"sql {connection.info.backend_pid}"
        while True:
            claimed = connection.execute(claim, [holder]).fetchall()
            if claimed:
                connection.execute(complete, [list(given) for given in zip(*claimed, strict=True)])
            else:
                for _ in connection.notifies(timeout=0.5, stop_after=1):
                    pass


def threads(url: str) -> None:
    with Tidebase(url) as tide:
        tide.workflow("bench")(lambda run, input: time.time())
        tide.worker(["bench"], concurrency=HANDS).run()


def tasks(url: str) -> None:
    async def main() -> None:
        async with AsyncTidebase(url) as tide:

            @tide.workflow("bench")
            async def nothing(run: object, input: object) -> None:
                return None

            await tide.worker(["bench"], concurrency=HANDS).run()

    asyncio.run(main())


def poller(url: str) -> None:
    """A worker that nothing wakes, as behind a pooler that drops LISTEN."""
    worker.bell_of = lambda queue: "another's"
    with Tidebase(url) as tide:
        tide.workflow("bench")(lambda run, input: time.time())
        tide.worker(["bench"], poll_s=POLL_S).run()


def idlers(url: str) -> None:
    """Fifty idle workers, each with a hundred queues, each with a line of its own to listen on."""
    pool = ConnectionPool(url, min_size=1, max_size=10, open=True, kwargs={"autocommit": True})
    names = [f"idle {number}" for number in range(100)]

    def idle() -> None:
        with Tidebase(pool) as tide:
            tide.workflow("bench")(lambda run, input: None)
            tide.worker(names).run()

    for _ in range(50):
        threading.Thread(target=idle).start()


def dbos(url: str) -> None:
    from dbos import DBOS

    DBOS(config={"name": "bench", "system_database_url": url, "log_level": "ERROR", "run_admin_server": False})

    @DBOS.workflow(name="bench")
    def nothing() -> None:
        return None

    DBOS.launch()
    DBOS.register_queue("bench", worker_concurrency=BATCH, polling_interval_sec=0.1)
    threading.Event().wait()


def procrastinate(url: str) -> None:
    import procrastinate

    app = procrastinate.App(connector=procrastinate.PsycopgConnector(conninfo=url, min_size=2, max_size=HANDS))

    @app.task(name="bench", queue="bench")
    async def nothing() -> None:
        return None

    async def main() -> None:
        async with app.open_async():
            await app.run_worker_async(queues=["bench"], concurrency=HANDS, delete_jobs="never")

    asyncio.run(main())


def absurd(url: str) -> None:
    from absurd_sdk import Absurd

    app = Absurd(url, queue_name="bench")

    @app.register_task(name="bench")
    def nothing(params: object, context: object) -> None:
        return None

    app.start_worker(concurrency=HANDS, batch_size=BATCH, poll_interval=0.05)


WHO = {each.__name__: each for each in (sql, threads, tasks, poller, idlers, dbos, procrastinate, absurd)}

if __name__ == "__main__":
    WHO[sys.argv[1]](sys.argv[2])
