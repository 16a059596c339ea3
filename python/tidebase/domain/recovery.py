"""Recovery: getting a run going again, as a call that both executors make; and who tells its webhook.

What the database wrote into its outbox is delivered, signed, with retries. The receiver checks the signature with
:func:`~tidebase.verify_webhook_signature`, and answers with a 2xx status.
"""

from __future__ import annotations

import json
import logging
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from ..core.call import Call, Value, many, rows_of, scalar
from ..core.database import Database
from ..core.errors import TidebaseError
from .courier import Courier, Round
from .lease import new_request_id
from .webhook import SECRET_VARIABLE


@dataclass(frozen=True)
class Recovery:
    """An attempt to recover a run, as the view recovery_history has it."""

    run_id: str
    recovery: int
    reason: str
    actor: str | None
    found_status: str
    status: str
    url: str | None
    delivery_attempts: int
    http_status: int | None
    response: str | None
    error: str | None
    created_at: datetime
    finished_at: datetime | None


@dataclass(frozen=True)
class Delivery:
    """A webhook that is to be delivered. ``attempts``: the number of this attempt."""

    run_id: str
    delivery: int
    attempts: int
    url: str
    body: Value


recover_run = scalar("recover_run", run_id="text", reason="text", actor="text", request_id="text")
claim_deliveries = many(
    "claim_deliveries", Delivery, max="integer", ttl="interval", failing="boolean", besides="text[]"
)
finish_delivery = scalar(
    "finish_delivery",
    run_id="text",
    delivery="integer",
    attempt="integer",
    delivered="boolean",
    http_status="integer",
    response="text",
    error="text",
    max_attempts="integer",
)


def recovery_history(run_id: str) -> Call[list[Recovery]]:
    """The attempts to recover a run, oldest first."""
    return rows_of("recovery_history", Recovery, "recovery", run_id=run_id)


def recover(run_id: str, reason: str, actor: str | None = None) -> Call[int]:
    """The call that makes a run acquirable and tells its webhook: once, however often it has to be made."""
    return recover_run(run_id=run_id, reason=reason, actor=actor, request_id=new_request_id())


class Dispatcher(Courier[Delivery]):
    """Delivers the outbox. Any number may run at once: each delivery is handed to one of them at a time.

    Args:
        database: where the outbox is; the user needs the role operator.
        secret: signs the bodies; by default the environment's ``TIDEBASE_WEBHOOK_SECRET``. Without one nothing is sent.
        allow_private: also deliver to addresses that are not public (loopback, private networks, link-local: where a
            cloud's metadata service is).
        timeout_s: for one delivery altogether, in seconds.
        max_attempts: after which a delivery has failed for good.
        at_once: how many deliveries are under way at the same time; a quarter of them such that were tried before, and
            to one receiver a third at most.
    """

    _log = logging.getLogger("tidebase.webhook")
    _what = "webhooks"

    def __init__(
        self,
        database: Database,
        *,
        secret: str | None = None,
        allow_private: bool = False,
        timeout_s: float = 10.0,
        max_attempts: int = 8,
        at_once: int = 32,
    ) -> None:
        super().__init__(database, secret=secret, allow_private=allow_private, timeout_s=timeout_s, at_once=at_once)
        self._max_attempts = max_attempts

    def dispatch(self, max: int | None = 10) -> int:
        """Delivers what is due now, at most ``max``; returns how many deliveries were tried."""
        return super().dispatch(max)

    def _require(self) -> None:
        if not self._secret:
            raise TidebaseError("webhooks cannot be signed without a secret", hint=f"Set {SECRET_VARIABLE}.")
        super()._require()

    def _round(self, most: int | None) -> _Round:
        return _Round(self, most)


class _Round(Round[Delivery]):
    def __init__(self, dispatcher: Dispatcher, most: int | None) -> None:
        super().__init__(dispatcher, most)
        self._max_attempts = dispatcher._max_attempts
        self._taken = 0
        self._of_receiver: Counter[str] = Counter()

    async def _claim(self, room: int, failing: bool, watch: bool) -> Sequence[Delivery]:
        # A receiver that takes its time has a share, and no more: the others have theirs.
        share = max(self._courier._shares[failing] // 3, 1)
        room = min(room, share, room if self._most is None else self._most - self._taken)
        if room <= 0:
            return []
        due = await self._ask(
            claim_deliveries(
                max=room,
                ttl=self._ttl,
                failing=failing,
                besides=[receiver for receiver, busy in self._of_receiver.items() if busy >= share] or None,
            )
        )
        self._taken += len(due)
        for delivery in due:
            self._of_receiver[_receiver_of(delivery.url)] += 1
        return due

    async def _turn(self, delivery: Delivery) -> None:
        log = self._courier._log
        try:
            body = json.dumps(delivery.body, ensure_ascii=False)
            async with self._client() as client:
                status, error, text = await self._try(client, delivery.url, body, None)
            self._tried += 1
            outcome: str = await self._ask(
                finish_delivery(
                    run_id=delivery.run_id,
                    delivery=delivery.delivery,
                    attempt=delivery.attempts,
                    delivered=error is None,
                    http_status=status,
                    response=text,
                    error=error,
                    max_attempts=self._max_attempts,
                )
            )
            where = (delivery.run_id, delivery.attempts, error or status, outcome)
            log.log(logging.INFO if error is None else logging.WARNING, "run %s: webhook, attempt %d: %s (%s)", *where)
        except Exception as problem:  # it is due again when its time has run out
            log.warning("run %s: webhook: %s: %s", delivery.run_id, type(problem).__name__, problem)
        finally:
            self._of_receiver[_receiver_of(delivery.url)] -= 1


def _receiver_of(url: str) -> str:
    """As the database has it: all of a URL before its path."""
    found = re.match(r"[^/]*//[^/?#]*", url)
    return found[0] if found else url
