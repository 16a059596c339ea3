"""The dispatcher of channels: each event of a run is posted, signed, in the order of the log, at least once.

The database knows how far each channel is told, and hands out what comes next to one dispatcher at a time; here it is
only sent. Many channels are told at once, and those whose last attempt has failed have a share of their own: who waits
for a dead receiver keeps none of the living waiting.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from ..core._tasks import ring
from ..core.addresses import public_address
from ..core.call import Call
from ..core.database import Database
from ..core.errors import TidebaseError
from .channel import ChannelDelivery, claim_channel_deliveries, finish_channel_delivery
from .webhook import SECRET_VARIABLE, new_client, post, tls_context

if TYPE_CHECKING:
    import httpx

log = logging.getLogger("tidebase.channels")
R = TypeVar("R")

#: How long a dispatcher that has nothing to do waits before it looks again, in seconds.
_LOOK_S = 1.0
#: How long a channel has its turn while others may wait, in seconds.
_TURN_S = 10.0
#: The most runs that are named to the database at once.
_RUNG = 1000


class ChannelDispatcher:
    """Tells channels what happens to their runs. Any number may run at once: a channel is with one of them at a time.

    Args:
        database: where the channels are; the user needs the role operator.
        secret: signs what goes to channels that have no secret of their own; by default the environment's
            ``TIDEBASE_WEBHOOK_SECRET``. Without one such channels are told nothing.
        allow_private: also deliver to addresses that are not public (loopback, private networks, link-local: where a
            cloud's metadata service is).
        timeout_s: for one delivery altogether, in seconds.
        give_up_after_s: when the same event could not be delivered for so long, in seconds, its channel is given up.
        at_once: how many channels are told at the same time; a quarter of them such whose last attempt has failed.
    """

    def __init__(
        self,
        database: Database,
        *,
        secret: str | None = None,
        allow_private: bool = False,
        timeout_s: float = 10.0,
        give_up_after_s: float = 86_400.0,
        at_once: int = 32,
    ) -> None:
        self._database = database
        self._secret = secret or os.environ.get(SECRET_VARIABLE)
        self._allow_private = allow_private
        self._timeout_s = timeout_s
        self._give_up_after = timedelta(seconds=give_up_after_s)
        self._shares = {False: max(at_once - at_once // 4, 1), True: max(at_once // 4, 1)}

    def dispatch(self, max: int | None = None) -> int:
        """Delivers what is due now, until nothing is any more, or about ``max`` events were sent; returns how many
        were tried.
        """
        # In a thread of its own: this one may have an event loop.
        with ThreadPoolExecutor(1) as thread:
            return thread.submit(asyncio.run, _Round(self, max).until_done()).result()

    def run(self, stop: threading.Event) -> None:
        """Delivers what there is, as it comes, until ``stop`` is set; then what is being sent is sent to its end."""
        with ThreadPoolExecutor(1) as thread:
            thread.submit(asyncio.run, _Round(self, None).until_stopped(stop)).result()

    @contextmanager
    def running(self) -> Iterator[None]:
        """In the block all is delivered as it comes, in another thread."""
        tls_context()  # what is missing is missed here
        stop = threading.Event()
        thread = threading.Thread(target=self.run, args=(stop,), name="tidebase-channels", daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    async def _send(self, client: httpx.AsyncClient, delivery: ChannelDelivery, apart: Apart) -> int:
        """Posts one event; the status of the answer."""
        secret = delivery.secret or self._secret
        if not secret:
            raise TidebaseError(
                "the channel has no secret, and the dispatcher none for it", hint=f"Set {SECRET_VARIABLE}."
            )
        address = None if self._allow_private else await apart(public_address, delivery.url)
        status, _ = await post(client, delivery.url, delivery.body.encode(), secret, address)
        return status


class Apart:
    """Calls that block, in threads: as many as there are channels at once, so that none waits for another's."""

    def __init__(self, threads: ThreadPoolExecutor) -> None:
        self._threads = threads

    async def __call__(self, function: Callable[..., R], *arguments: Any) -> R:
        return await asyncio.get_running_loop().run_in_executor(self._threads, function, *arguments)


class _Round:
    """One life of a dispatcher, in one event loop."""

    def __init__(self, dispatcher: ChannelDispatcher, most: int | None) -> None:
        self._of = dispatcher
        self._most = most
        self._tried = 0
        self._stopping = False
        self._turns: dict[bool, set[asyncio.Task[None]]] = {False: set(), True: set()}
        self._rung: set[str] = set()
        self._tls = tls_context()

    async def until_done(self) -> int:
        """Goes on until nothing is due."""
        with self._apart():
            while await self._begin_turns(watch=False) or self._at_work:
                if self._at_work:
                    await asyncio.wait(self._at_work, return_when=asyncio.FIRST_COMPLETED)
        return self._tried

    async def until_stopped(self, stop: threading.Event) -> None:
        """Goes on until it is told to stop."""
        loop, news = asyncio.get_running_loop(), asyncio.Event()

        def hear(run_id: str) -> None:
            with suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(self._hear, run_id, news)

        with self._apart(), self._of._database.doorbell.overhearing(hear):
            watch = self._of._database.has_connections
            while not stop.is_set():
                news.clear()
                try:
                    begun = await self._begin_turns(watch, news)
                except TidebaseError as error:  # the database comes back, and so do we
                    log.warning("channels cannot be looked at: %s", error)
                    begun = 0
                if not begun:
                    await ring(news, _LOOK_S)
            self._stopping = True
            await asyncio.gather(*self._at_work)

    @contextmanager
    def _apart(self) -> Iterator[None]:
        with ThreadPoolExecutor(sum(self._of._shares.values()) + 1, thread_name_prefix="tidebase-channel") as threads:
            self._call = Apart(threads)
            yield

    def _hear(self, run_id: str, news: asyncio.Event) -> None:
        if len(self._rung) < _RUNG:  # the others come up by themselves
            self._rung.add(run_id)
        news.set()

    async def _begin_turns(self, watch: bool, news: asyncio.Event | None = None) -> int:
        """Gives as many channels their turn as there is room for; how many."""
        begun = 0
        for failing, turns in self._turns.items():
            room = self._of._shares[failing] - len(turns)
            if room <= 0 or self._has_had_enough:
                continue
            rung, self._rung = ([], self._rung) if failing else ([*self._rung], set())
            for delivery in await self._ask(
                claim_channel_deliveries(max=room, ttl=self._ttl, failing=failing, rung=rung or None, watch=watch)
            ):
                begun += 1
                turn = asyncio.create_task(self._turn(delivery))
                turns.add(turn)
                turn.add_done_callback(turns.discard)
                if news is not None:
                    turn.add_done_callback(lambda _: news.set())
        return begun

    @property
    def _at_work(self) -> set[asyncio.Task[None]]:
        return self._turns[False] | self._turns[True]

    @property
    def _has_had_enough(self) -> bool:
        return self._stopping or (self._most is not None and self._tried >= self._most)

    @property
    def _ttl(self) -> timedelta:
        """For how long an event is in hand at most."""
        return timedelta(seconds=30 + 3 * self._of._timeout_s)

    async def _ask(self, call: Call[R]) -> R:
        return await self._call(self._of._database.execute, call)

    async def _turn(self, first: ChannelDelivery) -> None:
        """Sends a channel one event after the other, for a while."""
        delivery, ends = first, time.monotonic() + _TURN_S
        try:
            # A client for each: a connection that was made to one name is used for no other.
            async with new_client(self._of._timeout_s, verify=self._tls) as client:
                while True:
                    status, error = await self._try(client, delivery)
                    self._tried += 1
                    following = await self._ask(
                        finish_channel_delivery(
                            run_id=delivery.run_id,
                            channel=delivery.channel,
                            attempt=delivery.attempt,
                            delivered=error is None,
                            http_status=status,
                            error=error,
                            go_on=time.monotonic() < ends and not self._has_had_enough,
                            ttl=self._ttl,
                            give_up_after=self._of._give_up_after,
                        )
                    )
                    if not following:
                        return
                    (delivery,) = following
        except Exception as problem:  # it is due again when its time has run out
            log.warning("run %s: channel %d: %s: %s", first.run_id, first.channel, type(problem).__name__, problem)

    async def _try(self, client: httpx.AsyncClient, delivery: ChannelDelivery) -> tuple[int | None, str | None]:
        """Sends one event: the status of the answer, and what was wrong."""
        status: int | None = None
        try:
            # The limit is for the whole: httpx's are for each wait, and a receiver may drip.
            status = await asyncio.wait_for(self._of._send(client, delivery, self._call), self._of._timeout_s)
            error = None if 200 <= status < 300 else f"HTTP {status}"
        except Exception as problem:
            is_late = isinstance(problem, asyncio.TimeoutError) and not str(problem)
            error = f"{type(problem).__name__}: {f'no answer within {self._of._timeout_s:g} s' if is_late else problem}"
        if error is not None:
            where = (delivery.run_id, delivery.channel, delivery.seq, delivery.attempt)
            log.warning("run %s: channel %d, event %d, attempt %d: %s", *where, error)
        return status, error
