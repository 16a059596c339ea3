"""What dispatchers have in common that post many things at once: who does well and who fails has a share of its own,
so who waits for a dead receiver keeps none of the living waiting.
"""

from __future__ import annotations

import asyncio
import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import timedelta
from logging import Logger
from typing import TYPE_CHECKING, Any, ClassVar, Generic, NamedTuple, TypeVar

from ..core._tasks import ring
from ..core.addresses import public_address
from ..core.call import Call
from ..core.database import Database
from ..core.errors import TidebaseError
from .webhook import SECRET_VARIABLE, new_client, post, tls_context

if TYPE_CHECKING:
    import httpx

R = TypeVar("R")
D = TypeVar("D")

#: How long a dispatcher that has nothing to do waits before it looks again, in seconds.
_LOOK_S = 1.0


class Courier(ABC, Generic[D]):
    """Posts what the database hands out. Any number may run at once.

    Args:
        database: where it is; the user needs the role operator.
        secret: signs; by default the environment's ``TIDEBASE_WEBHOOK_SECRET``.
        allow_private: also deliver to addresses that are not public (loopback, private networks, link-local: where a
            cloud's metadata service is).
        timeout_s: for one delivery altogether, in seconds.
        at_once: how much is posted at the same time; a quarter of it to whom the last attempt has failed.
    """

    _log: ClassVar[Logger]
    #: What it posts, for logs and names.
    _what: ClassVar[str]

    def __init__(
        self, database: Database, *, secret: str | None, allow_private: bool, timeout_s: float, at_once: int
    ) -> None:
        self._database = database
        self._secret = secret or os.environ.get(SECRET_VARIABLE)
        self._allow_private = allow_private
        self._timeout_s = timeout_s
        self._shares = {False: max(at_once - at_once // 4, 1), True: max(at_once // 4, 1)}

    @abstractmethod
    def _round(self, most: int | None) -> Round[D]: ...

    def _require(self) -> None:
        """What is missing is missed before anything is taken."""
        tls_context()

    def dispatch(self, max: int | None = None) -> int:
        """Delivers what is due now, until nothing is any more, or about ``max`` were sent; returns how many were
        tried.
        """
        self._require()
        # In a thread of its own: this one may have an event loop.
        with ThreadPoolExecutor(1) as thread:
            return thread.submit(asyncio.run, self._round(max).until_done()).result()

    def run(self, stop: threading.Event) -> None:
        """Delivers what there is, as it comes, until ``stop`` is set; then what is being sent is sent to its end."""
        with ThreadPoolExecutor(1) as thread:
            thread.submit(asyncio.run, self._round(None).until_stopped(stop)).result()

    @contextmanager
    def running(self) -> Iterator[None]:
        """In the block all is delivered as it comes, in another thread."""
        with delivering(self):
            yield


@contextmanager
def delivering(*couriers: Courier[Any]) -> Iterator[None]:
    """In the block all of them are at work, each in a thread of its own; then all are told to stop at once."""
    for courier in couriers:
        courier._require()
    stop = threading.Event()
    threads = [
        threading.Thread(target=courier.run, args=(stop,), name=f"tidebase-{courier._what}", daemon=True)
        for courier in couriers
    ]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()


class Answer(NamedTuple):
    """What came of a post: the status and the beginning of the answer, and what was wrong."""

    status: int | None
    error: str | None
    text: str | None


class Apart:
    """Calls that block, in threads: as many as there are deliveries at once, so that none waits for another's."""

    def __init__(self, threads: ThreadPoolExecutor) -> None:
        self._threads = threads

    async def __call__(self, function: Callable[..., R], *arguments: Any) -> R:
        return await asyncio.get_running_loop().run_in_executor(self._threads, function, *arguments)


async def looked_up(function: Callable[..., R], *arguments: Any) -> R:
    """What a call returns that asks a name server, in a thread of its own for which nobody waits, not even the end of
    the process: some servers never answer, and a lookup cannot be cancelled.
    """
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[R] = loop.create_future()

    def settle(value: R | None, problem: Exception | None) -> None:
        if answer.done():
            return  # nobody waits any more
        if problem is None:
            answer.set_result(value)  # type: ignore[arg-type]
        else:
            answer.set_exception(problem)

    def look() -> None:
        value: R | None = None
        problem: Exception | None = None
        try:
            value = function(*arguments)
        except Exception as error:
            problem = error
        with suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(settle, value, problem)

    threading.Thread(target=look, name="tidebase-lookup", daemon=True).start()
    return await answer


class Round(ABC, Generic[D]):
    """One life of a dispatcher, in one event loop."""

    def __init__(self, courier: Courier[D], most: int | None) -> None:
        self._courier = courier
        self._most = most
        self._tried = 0
        self._ended = 0
        self._stopping = False
        self._turns: dict[bool, set[asyncio.Task[None]]] = {False: set(), True: set()}
        self._tls = tls_context()

    @abstractmethod
    async def _claim(self, room: int, failing: bool, watch: bool) -> Sequence[D]:
        """Takes what is due; ``watch``: somebody listens to the bell."""

    @abstractmethod
    async def _turn(self, delivery: D) -> None:
        """Posts one, and reports it."""

    def _hear(self, rung: str, news: asyncio.Event) -> None:
        """The bell has rung."""

    async def until_done(self) -> int:
        """Goes on until nothing is due."""
        with self._apart():
            while True:
                ended = self._ended
                if await self._begin_turns(watch=False):
                    continue  # there may be room for more, to others
                if self._at_work:
                    await asyncio.wait(self._at_work, return_when=asyncio.FIRST_COMPLETED)
                elif ended == self._ended:  # nothing has come to its end, and may be due again, since it was looked for
                    return self._tried

    async def until_stopped(self, stop: threading.Event) -> None:
        """Goes on until it is told to stop."""
        loop, news = asyncio.get_running_loop(), asyncio.Event()

        def hear(rung: str) -> None:
            with suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(self._hear, rung, news)

        database = self._courier._database
        with self._apart(), database.doorbell.overhearing(hear):
            watch = database.has_connections
            while not stop.is_set():
                news.clear()
                try:
                    begun = await self._begin_turns(watch, news)
                except TidebaseError as error:  # the database comes back, and so do we
                    self._courier._log.warning("%s cannot be looked at: %s", self._courier._what, error)
                    begun = 0
                if not begun:
                    await ring(news, _LOOK_S)
            self._stopping = True
            await asyncio.gather(*self._at_work)

    @contextmanager
    def _apart(self) -> Iterator[None]:
        threads = sum(self._courier._shares.values()) + 1
        with ThreadPoolExecutor(threads, thread_name_prefix=f"tidebase-{self._courier._what}") as pool:
            self._call = Apart(pool)
            yield

    async def _begin_turns(self, watch: bool, news: asyncio.Event | None = None) -> int:
        """Begins as many deliveries as there is room for; how many."""
        begun = 0
        for failing, turns in self._turns.items():
            room = self._courier._shares[failing] - len(turns)
            if room <= 0 or self._has_had_enough:
                continue
            for delivery in await self._claim(room, failing, watch):
                begun += 1
                turn = asyncio.create_task(self._turn(delivery))
                turns.add(turn)
                turn.add_done_callback(turns.discard)
                turn.add_done_callback(self._count)
                if news is not None:
                    turn.add_done_callback(lambda _: news.set())
        return begun

    def _count(self, _: asyncio.Task[None]) -> None:
        self._ended += 1

    @property
    def _at_work(self) -> set[asyncio.Task[None]]:
        return self._turns[False] | self._turns[True]

    @property
    def _has_had_enough(self) -> bool:
        return self._stopping or (self._most is not None and self._tried >= self._most)

    @property
    def _ttl(self) -> timedelta:
        """For how long a delivery is in hand at most."""
        return timedelta(seconds=30 + 3 * self._courier._timeout_s)

    async def _ask(self, call: Call[R]) -> R:
        return await self._call(self._courier._database.execute, call)

    def _client(self) -> httpx.AsyncClient:
        """One for each turn: a connection that was made to one name is used for no other."""
        return new_client(self._courier._timeout_s, verify=self._tls)

    async def _try(self, client: httpx.AsyncClient, url: str, body: str, secret: str | None) -> Answer:
        """Posts a body."""
        timeout_s = self._courier._timeout_s
        try:
            # The limit is for the whole: httpx's are for each wait, and a receiver may drip.
            status, text = await asyncio.wait_for(self._send(client, url, body, secret), timeout_s)
            return Answer(status, None if 200 <= status < 300 else f"HTTP {status}", text)
        except Exception as problem:
            is_late = isinstance(problem, asyncio.TimeoutError) and not str(problem)
            why = f"no answer within {timeout_s:g} s" if is_late else problem
            return Answer(None, f"{type(problem).__name__}: {why}", None)

    async def _send(self, client: httpx.AsyncClient, url: str, body: str, secret: str | None) -> tuple[int, str]:
        secret = secret or self._courier._secret
        if not secret:
            raise TidebaseError(
                f"what goes to {self._courier._what} cannot be signed without a secret", hint=f"Set {SECRET_VARIABLE}."
            )
        address = None if self._courier._allow_private else await looked_up(public_address, url)
        return await post(client, url, body.encode(), secret, address)
