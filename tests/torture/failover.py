"""A standby is promoted under load: what holds depends on whether the primary waited for it.

Synchronous: a commit is acknowledged once the standby has it on disk, so everything holds as if it were one server.
Asynchronous: the last moments before the failover are lost, acknowledged or not. What remains is one consistent past (a
prefix of every log), and no token is ever issued twice: the promoted server begins above those of its predecessor.
"""

from __future__ import annotations

import contextlib
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import psutil
from psycopg.sql import SQL

from tidebase.core import local

from ..probes.support import Connection, connect, poll, value
from .checker import NEVER
from .journal import read
from .proxy import Proxy
from .storm import CLIENTS, SETTINGS, Crowd, Machine, Outcome, account, fresh_database, new_runs, socket_of, url_of

#: Of so many runs at least, if so many are not over, a lease is granted that an asynchronous standby never hears of.
LOST = 3

STATE = "select count(*) from pg_stat_replication where state = %s and sync_state = %s"


def failover(
    folder: Path,
    binaries: Path,
    seconds: float,
    seed: int,
    *,
    synchronous: bool,
    prepare: Callable[[Connection], None] = lambda connection: None,
    least: int = 0,
) -> Outcome:
    """Clients at work, the primary killed in the middle of it, the standby promoted; then the account. Half of so many
    calls at least are made before, the others behind.
    """
    choose = random.Random(seed)
    primary = Machine(folder / "primary", binaries)
    name = fresh_database(primary)
    with connect(primary.url(name)) as connection:
        prepare(connection)
    standby = _standby(primary, folder / "standby", binaries)
    if synchronous:
        _wait_for_it(primary)
    url = standby.url.replace("/postgres?", f"/{name}?")
    journals = folder / name
    journals.mkdir(parents=True)
    try:
        with Proxy(socket_of(primary)) as proxy:
            # A limit of time also ends the wait for a standby, and the commit is acknowledged all the same: Postgres
            # warns, and nobody reads it. So these clients have none.
            crowd = Crowd(url_of(proxy, name), journals, new_runs(primary.url(name)), choose, in_a_hurry=False)
            for role in CLIENTS:
                crowd.add(role)
            time.sleep(seconds / 2)
            poll("the clients are at work", lambda: len(read(journals)) >= least / 2)
            if not synchronous:
                _fall_behind(primary.url(name), standby)
            _kill(primary)
            promoted = time.monotonic_ns()
            _promote(standby)
            proxy.target = str(standby.socket_folder / ".s.PGSQL.5432")
            time.sleep(seconds / 2)
            poll("the clients are at work again", lambda: len(read(journals)) >= least)
            found = crowd.close()
        outcome = account(journals, url, crashed=True, promoted=NEVER if synchronous else promoted)
        outcome.violations[:0] = found
        outcome.faults[
            "a synchronous standby is promoted" if synchronous else "an asynchronous standby is promoted"
        ] = 1
    finally:
        for cluster in (primary.cluster, standby):
            cluster.stop("immediate")
    if not outcome.violations:
        shutil.rmtree(folder)
    return outcome


def _standby(primary: Machine, folder: Path, binaries: Path) -> local.Cluster:
    """A streaming standby, made of a base backup."""
    folder.mkdir(parents=True)
    folder.chmod(0o777)  # the account that Postgres runs under makes the data directory
    standby = local.Cluster(folder / "data", binaries, SETTINGS)
    source = str(primary.cluster.socket_folder)
    backup = ("-D", str(standby.data), "-h", source, "-p", "5432", "-U", "postgres", "-R", "-c", "fast", "-X", "stream")
    primary.cluster._run("pg_basebackup", *backup)
    (standby.data / ".s.PGSQL.5432.lock").unlink(missing_ok=True)  # the primary's, whose socket is among its data
    standby.start()
    # A newer pg_basebackup than the server writes what that server's libpq does not know.
    _follow(standby, f"host={source} port=5432 user=postgres")
    with connect(primary.cluster.url) as connection:
        poll("the standby streams", lambda: value(connection, STATE, "streaming", "async"))
    return standby


def _follow(standby: local.Cluster, source: str) -> None:
    with connect(standby.url) as connection:
        connection.execute(SQL("alter system set primary_conninfo = {}").format(source))
        connection.execute("select pg_reload_conf()")


def _wait_for_it(primary: Machine) -> None:
    with connect(primary.cluster.url) as connection:
        connection.execute("alter system set synchronous_standby_names = '*'")
        connection.execute("select pg_reload_conf()")
        poll("the standby is synchronous", lambda: value(connection, STATE, "streaming", "sync"))


def _fall_behind(url: str, standby: local.Cluster) -> None:
    """From now on the standby gets nothing: what the primary acknowledges meanwhile is lost with it, among it leases of
    runs that the standby knows.
    """
    _follow(standby, "host=/nowhere")
    with connect(standby.url) as connection:
        poll("the standby is cut off", lambda: not value(connection, "select count(*) from pg_stat_wal_receiver"))
    before = _tokens(url)

    def lost() -> bool:
        granted = [token > before[run_id] for run_id, token in _tokens(url).items() if run_id in before]
        return sum(granted) >= min(LOST, len(granted))

    poll("leases are granted that are lost", lost)


def _tokens(url: str) -> dict[str, int]:
    """The last token of each run that is not over."""
    with connect(url) as connection:
        query = "select run_id, lease_token from tidebase.run_heads where status not in ('completed', 'cancelled')"
        return dict(connection.execute(query).fetchall())


def _kill(primary: Machine) -> None:
    postmaster = psutil.Process(primary.cluster.postmaster_pid())
    children = postmaster.children(recursive=True)
    postmaster.kill()
    for child in children:
        with contextlib.suppress(psutil.Error):
            child.kill()
    poll("the primary is gone", lambda: not any(process.is_running() for process in (postmaster, *children)))


def _promote(standby: local.Cluster) -> None:
    poll("the standby answers", standby.is_ready)
    standby._pg_ctl("-w", "promote")
    with connect(standby.url) as connection:
        poll("the standby is a primary", lambda: not value(connection, "select pg_is_in_recovery()"))
