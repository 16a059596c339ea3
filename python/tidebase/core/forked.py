"""Forks: a child of ``os.fork()`` (multiprocessing, gunicorn --preload, celery) shares nothing with its parent.

It has copies of the parent's connections, which lead to the same sessions: what it sends there mixes with what the
parent sends. So in the child they lead nowhere, whatever it does with them, and each object begins anew. The parent
notices nothing. A fork that Python does not hear of (uWSGI makes its own) is noticed at the next call.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol
from weakref import WeakSet

import psycopg
from psycopg_pool import ConnectionPool


class Inheritable(Protocol):
    """What a child of a fork inherits and must not use as it is."""

    def begin_anew(self) -> None:
        """Forgets what belongs to the parent: connections, threads (none survives a fork), locks that one may hold."""


_inheritable: WeakSet[Any] = WeakSet()
_connections: WeakSet[Any] = WeakSet()
_pid = os.getpid()


def inherit(thing: Inheritable) -> None:
    """It begins anew in every child."""
    _inheritable.add(thing)


def keep(connection: psycopg.Connection[Any] | psycopg.AsyncConnection[Any]) -> None:
    """A connection of our own was opened: it leads nowhere in every child."""
    _connections.add(connection)


@contextmanager
def lent(connection: psycopg.Connection[Any] | psycopg.AsyncConnection[Any]) -> Iterator[None]:
    """A connection of the caller's has a transaction of ours, which a child must not end."""
    keep(connection)
    try:
        yield
    finally:
        _connections.discard(connection)


def notice() -> None:
    """Lets this process begin anew if it is a child that nobody has told so."""
    if os.getpid() != _pid:
        _in_child()


def _in_child() -> None:
    global _pid
    _pid = os.getpid()
    ours, theirs = socket.socketpair()
    theirs.close()
    for connection in list(_connections):
        if not connection.closed:
            # To close it would tell the server that the parent leaves: so its number leads to a socket without a peer.
            os.dup2(ours.fileno(), connection.pgconn.socket, inheritable=False)
    ours.close()
    _connections.clear()
    for thing in list(_inheritable):
        thing.begin_anew()


class OwnPool(ConnectionPool[psycopg.Connection[Any]]):
    """A pool of our own. In a child of a fork it is left as it is: its threads are not there, its locks may be held."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._process = os.getpid()
        super().__init__(*args, **kwargs)

    def __del__(self) -> None:
        if os.getpid() == self._process:
            super().__del__()


os.register_at_fork(after_in_child=_in_child)
