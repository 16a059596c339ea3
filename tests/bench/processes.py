"""Work in processes of their own, which begin together."""

from __future__ import annotations

import multiprocessing
import time
from typing import Any

import psycopg

from tidebase import Tidebase

from .harness import insert, rate, steps


def together(url: str, work: str, processes: int, count: int) -> float:
    """The rate at which so many processes do it ``count`` times each.

    Args:
        work: ``insert``, ``steps``, or ``direct steps``: those of a router's shards.
    """
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(processes + 1)
    working = [context.Process(target=WORK[work], args=(url, barrier, count), daemon=True) for _ in range(processes)]
    for process in working:
        process.start()
    barrier.wait(120)
    begun = time.perf_counter()
    for process in working:
        process.join()
    assert all(process.exitcode == 0 for process in working)
    return processes * count / (time.perf_counter() - begun)


def _insert(url: str, barrier: Any, count: int) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        insert(connection, 10)
        barrier.wait(120)
        rate(count, lambda: insert(connection, count))


def _steps(url: str, barrier: Any, count: int, direct: bool = False) -> None:
    with Tidebase(url, direct=direct) as tide, tide.runs.attach("bench") as session:
        steps(session, 10)
        barrier.wait(120)
        rate(count, lambda: steps(session, count, 10))


def _direct_steps(url: str, barrier: Any, count: int) -> None:
    _steps(url, barrier, count, direct=True)


WORK = {"insert": _insert, "steps": _steps, "direct steps": _direct_steps}
