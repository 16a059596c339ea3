"""A TCP proxy that breaks connections: before a request reaches the server, after it was answered, or in between.

It runs in a thread of its own, and passes bytes on. What it breaks off is chosen by chance, so some calls have taken
effect when their connection is lost, and others have not: the client cannot tell.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading
from collections import Counter


class Proxy:
    """Listens on a port of 127.0.0.1 while in its ``with`` block.

    Attributes:
        target: the path of the server's socket; may be changed, for connections made from then on.
        chance: with what probability a request's connection is broken.
        broken: how many were, by moment.
        silent: nothing is passed on, and nobody is told: a black hole.
        accepted: how many connections were made to it.
    """

    def __init__(self, target: str, chance: float = 0.0, seed: int = 0) -> None:
        self.target = target
        self.chance = chance
        self.silent = False
        self.accepted = 0
        self.broken: Counter[str] = Counter()
        self._random = random.Random(seed)
        self._clients: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> Proxy:
        self._thread.start()
        self._server = asyncio.run_coroutine_threadsafe(
            asyncio.start_server(self._serve, "127.0.0.1", 0), self._loop
        ).result()
        self.port: int = self._server.sockets[0].getsockname()[1]
        return self

    def __exit__(self, *_: object) -> None:
        async def close() -> None:
            self._server.close()
            others = asyncio.all_tasks() - {asyncio.current_task()}
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)

        asyncio.run_coroutine_threadsafe(close(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def cut(self) -> None:
        """Breaks every connection, whatever is on its way."""

        def abort() -> None:
            for writer in self._clients:
                writer.transport.abort()

        self._loop.call_soon_threadsafe(abort)

    async def _passable(self) -> None:
        while self.silent:
            await asyncio.sleep(0.01)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        try:
            upstream_reader, upstream_writer = await asyncio.open_unix_connection(self.target)
        except OSError:
            writer.close()
            return
        self._clients.add(writer)
        doomed = asyncio.Event()
        answers = asyncio.create_task(self._answers(upstream_reader, writer, doomed))
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                await self._passable()
                moment = self._moment()
                if moment:
                    self.broken[moment] += 1
                if moment == "before":
                    break
                if moment == "after":
                    doomed.set()
                upstream_writer.write(data)
                await upstream_writer.drain()
                if moment == "in between":
                    break
        upstream_writer.close()
        if not doomed.is_set():
            answers.cancel()
        self._clients.discard(writer)
        writer.close()

    async def _answers(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, doomed: asyncio.Event) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                if doomed.is_set():
                    break  # it has taken effect, and nobody is told
                await self._passable()
                writer.write(data)
                await writer.drain()
        writer.close()

    def _moment(self) -> str | None:
        if self._random.random() >= self.chance:
            return None
        return self._random.choice(("before", "after", "in between"))
