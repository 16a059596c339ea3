"""A process that follows runs: a module of its own, because a new process cannot import ``__main__``."""

from __future__ import annotations

import asyncio
import multiprocessing
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tidebase import AsyncTidebase


@contextmanager
def followers(url: str, run_ids: list[str]) -> Iterator[None]:
    """A process that follows these runs, for as long as the block takes."""
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    process = context.Process(target=follow_all, args=(url, run_ids, ready), daemon=True)
    process.start()
    try:
        while not ready.wait(1):
            assert process.is_alive(), "nobody follows"
        yield
    finally:
        process.kill()
        process.join()


def follow_all(url: str, run_ids: list[str], ready: Any) -> None:
    async def follow(tide: AsyncTidebase, run_id: str, begun: asyncio.Event) -> None:
        async for _ in tide.runs.subscribe(run_id):
            begun.set()

    async def main() -> None:
        async with AsyncTidebase(url) as tide:
            begun = [asyncio.Event() for _ in run_ids]
            tasks = [asyncio.create_task(follow(tide, *each)) for each in zip(run_ids, begun, strict=True)]
            for event in begun:
                await event.wait()
            ready.set()
            await asyncio.gather(*tasks)
            await asyncio.Event().wait()

    asyncio.run(main())
