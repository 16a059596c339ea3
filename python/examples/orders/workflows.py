"""What becomes of an order: four steps, each of them done once, whatever dies on the way.

tidebase worker orders.workflows:tide --queue orders --processes 2
"""

from __future__ import annotations

import os
import time
from typing import Any, TypedDict

from tidebase import Run, Tidebase

#: How long a step takes, in seconds: so that there is something to watch.
PACE_S = float(os.environ.get("ORDERS_PACE_S", "0.5"))

tide = Tidebase()


class Order(TypedDict):
    """The run's input."""

    order: int
    item: str


@tide.workflow("fulfil-order")
def fulfil(run: Run, order: Order) -> dict[str, Any]:
    run.step("reserve", lambda: act(f"reserved {order['item']}"), input=order["item"])
    # It writes to the outside: with a key by which the bank knows it again, a crash in the middle needs no person.
    run.step(
        "charge",
        lambda: act("charged"),
        input=order["order"],
        side_effects=["card.charge"],
        idempotency_key=f"order-{order['order']}",
    )
    parcel = run.step("pack", lambda: act(f"parcel-{order['order']}"), input=order["order"])
    with run.transaction("sent") as tx:  # your own table and the checkpoint, in one transaction
        tx.execute("update orders set status = 'sent' where id = %s", [order["order"]])
    return {"parcel": parcel, "worker": os.getpid()}


def act(what: str) -> str:
    """Stands for what takes its time."""
    time.sleep(PACE_S)
    return what
