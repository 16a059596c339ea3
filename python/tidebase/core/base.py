"""What a ``Database`` and an ``AsyncDatabase`` have in common: what is known without asking a server, and what is done
about trouble with one.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

import psycopg
from psycopg.pq import PGconn, Ping, TransactionStatus
from psycopg_pool import PoolClosed
from tenacity import retry_if_exception, wait_random_exponential

from .call import Call
from .errors import DatabaseUnavailable, InvalidArgument, from_postgres, is_transient
from .forked import inherit, notice
from .sessions import AsyncConnection, Connection, with_limits
from .sources import find_url, inherited_error, is_open, is_pool

log = logging.getLogger("tidebase.database")

C = TypeVar("C", bound=Connection | AsyncConnection)

#: One connection for each step that is in a call right now. More threads than that only queue.
POOL_SIZE = 10

#: How long a lease lasts without a heartbeat, in seconds.
LEASE_S = 60.0


class Base(Generic[C]):
    """Where the database is, and what is asked of it."""

    def __init__(
        self, source: Any, single: C | None, *, pool_size: int, reconnect_s: float, lease_s: float, joined: bool
    ) -> None:
        self._joined = joined
        self._source = source
        self._single = single
        self._pool_size = pool_size
        self._reconnect_s = reconnect_s
        self._lease_s = lease_s
        self._url: str | None = None
        self._finding = threading.RLock()
        self._inherited = False
        self._is_direct = False  # until it is seen that no pooler stands between
        self._is_apart = False  # until it is seen that it is no router
        self._is_known = False  # that a database is there: a user has said so, who may be wrong
        inherit(self)

    def begin_anew(self) -> None:
        """This process is a child of the one that made this."""
        self._inherited = self._inherited or is_open(self._source)
        self._finding = threading.RLock()

    @property
    def url(self) -> str:
        """The connection string in use."""
        if self._single is not None:
            return self._single.info.dsn
        if is_pool(self._source):
            return str(self._source.conninfo)
        with self._finding:
            if self._url is None:
                self._url = find_url(self._source)
            return self._url

    @property
    def joined(self) -> bool:
        """Whether calls belong to a transaction of the caller's, which sees nothing new by waiting."""
        return self._joined

    @property
    def has_connections(self) -> bool:
        """Whether another connection is to be had, at any time: not where the caller's single one is all."""
        return self._single is None

    def is_single(self, connection: C) -> bool:
        """Whether this is the caller's single connection, over which all calls go."""
        return connection is self._single

    def _require_own(self) -> None:
        notice()
        if self._inherited:
            raise inherited_error(self._single is not None)

    def _patience(self, call: Call[Any]) -> float:
        return max(self._reconnect_s, self._lease_s) if call.held else self._reconnect_s

    def _retries(self, until: float) -> dict[str, Any]:
        return {
            "retry": retry_if_exception(self._may_repeat),
            "stop": lambda state: time.monotonic() >= until,
            "wait": wait_random_exponential(multiplier=0.05, max=2),
            "reraise": True,
        }

    def _may_repeat(self, error: BaseException) -> bool:
        """Whether a call may be made again: on the caller's own connection only where that is in order, and not in the
        middle of the caller's transaction.
        """
        if isinstance(error, PoolClosed) and not is_pool(self._source):
            return True  # close() has closed it meanwhile; there is another one when it is asked for
        if not is_transient(error):
            return False
        if self._single is None:
            return True
        return not self._joined and self._single.pgconn.transaction_status == TransactionStatus.IDLE


class Failure:
    """The last failure to connect: who waited for the same is told, too, and does not try after the others."""

    def __init__(self) -> None:
        self._at = 0.0
        self._error: Exception | None = None

    @contextmanager
    def shared(self, asked: float) -> Iterator[None]:
        """Raises at once what another one got after this one had asked."""
        if self._error is not None and self._at >= asked:
            raise self._error
        try:
            yield
        except Exception as error:
            self._at, self._error = time.monotonic(), error
            raise


def translate(error: BaseException) -> BaseException:
    """What the caller gets for an error of psycopg; anything else passes as it is."""
    if isinstance(error, psycopg.Error):
        return from_postgres(error)
    if isinstance(error, UnicodeEncodeError):
        return InvalidArgument("a text has a lone surrogate, which has no UTF-8 form")
    return error


def unconnected(error: psycopg.Error, url: str, lease_s: float, is_known: bool) -> Exception:
    """The error to raise: psycopg's own, upon which the call is made again, where there is a server, which starts or
    stops just now (PostgreSQL manual, section 34.1, PQping), or is known to be there, and does not answer.
    """
    passing = (Ping.REJECT, Ping.NO_RESPONSE) if is_known else (Ping.REJECT,)
    is_address = isinstance(error, psycopg.OperationalError)  # else it is no connection string
    if is_address and PGconn.ping(with_limits(url, lease_s).encode()) in passing:
        return error
    return DatabaseUnavailable(
        f"cannot connect to the database: {str(error).strip()}",
        sqlstate=error.sqlstate,
        hint="Check TIDEBASE_DATABASE_URL, DATABASE_URL or the PG... variables.",
    )


def tell_if_read_only(connection: Connection | AsyncConnection) -> None:
    """Such a session is fine for who looks. A worker's calls are made again for a while, for after a failover that may
    be over soon: here it is told at once.
    """
    asked = ("in_hot_standby", "default_transaction_read_only")
    found = [name for name in asked if connection.pgconn.parameter_status(name.encode()) == b"on"]
    if found:
        log.warning("the database can only be read: %s is on", found[0])
