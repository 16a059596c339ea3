"""The dispatcher of channels: each event of a run is posted, signed, in the order of the log, at least once.

The database knows how far each channel is told, and hands out what comes next to one dispatcher at a time; here it is
only sent.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from datetime import timedelta

from ..core.database import Database
from .channel import ChannelDelivery, claim_channel_deliveries, finish_channel_delivery
from .courier import Courier, Round

#: How long a channel has its turn while others may wait, in seconds.
_TURN_S = 10.0
#: The most runs that are named to the database at once.
_RUNG = 1000


class ChannelDispatcher(Courier[ChannelDelivery]):
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

    _log = logging.getLogger("tidebase.channels")
    _what = "channels"

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
        super().__init__(database, secret=secret, allow_private=allow_private, timeout_s=timeout_s, at_once=at_once)
        self._give_up_after = timedelta(seconds=give_up_after_s)

    def _round(self, most: int | None) -> _Round:
        return _Round(self, most)


class _Round(Round[ChannelDelivery]):
    def __init__(self, dispatcher: ChannelDispatcher, most: int | None) -> None:
        super().__init__(dispatcher, most)
        self._give_up_after = dispatcher._give_up_after
        self._rung: set[str] = set()

    def _hear(self, rung: str, news: asyncio.Event) -> None:
        if len(self._rung) < _RUNG:  # the others come up by themselves
            self._rung.add(rung)
        news.set()

    async def _claim(self, room: int, failing: bool, watch: bool) -> Sequence[ChannelDelivery]:
        rung, self._rung = ([], self._rung) if failing else ([*self._rung], set())
        return await self._ask(
            claim_channel_deliveries(max=room, ttl=self._ttl, failing=failing, rung=rung or None, watch=watch)
        )

    async def _turn(self, delivery: ChannelDelivery) -> None:
        """Sends a channel one event after the other, for a while."""
        log, first, ends = self._courier._log, delivery, time.monotonic() + _TURN_S
        try:
            async with self._client() as client:
                while True:
                    status, error, _ = await self._try(client, delivery.url, delivery.body, delivery.secret)
                    if error is not None:
                        where = (delivery.run_id, delivery.channel, delivery.seq, delivery.attempt)
                        log.warning("run %s: channel %d, event %d, attempt %d: %s", *where, error)
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
                            give_up_after=self._give_up_after,
                        )
                    )
                    if not following:
                        return
                    (delivery,) = following
        except Exception as problem:  # it is due again when its time has run out
            log.warning("run %s: channel %d: %s: %s", first.run_id, first.channel, type(problem).__name__, problem)
