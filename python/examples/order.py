"""An order that is charged and sent, twice: as it should be, and with a mistake that tests with the kit find.

``tidebase worker order:tide`` works on both. See test_order.py for how a workflow is tested.
"""

from __future__ import annotations

from dataclasses import dataclass

from tidebase import Run, Tidebase

tide = Tidebase()


@dataclass(frozen=True)
class Order:
    """The run's input."""

    customer: str
    cents: int


class Bank:
    """Stands for a payment service that recognises a request by its idempotency key, where it has one."""

    def __init__(self) -> None:
        self.charges: list[tuple[str, int]] = []
        self._known: dict[str, int] = {}

    def charge(self, customer: str, cents: int, key: str | None = None) -> int:
        """Takes the money, and returns the number of the charge."""
        if key is not None and key in self._known:
            return self._known[key]
        self.charges.append((customer, cents))
        number = len(self.charges)
        if key is not None:
            self._known[key] = number
        return number


bank = Bank()


@tide.workflow("order")
def order(run: Run, input: Order) -> str:
    """The bank is told a key, so a charge that is made again is the same charge; and who is to look at it is a
    person.
    """
    key = f"order:{run.run_id}"
    charge = run.step(
        "charge",
        lambda: bank.charge(input.customer, input.cents, key),
        input=[input.customer, input.cents],
        side_effects=["card.charge"],
        idempotency_key=key,
    )
    if input.cents > 100_000 and not run.gate("ship", "Ship this?", suspend=True, timeout_s=7 * 86_400).approved:
        return f"charge {charge} is to be paid back"
    return run.step("ship", ship, charge)


@tide.workflow("careless-order")
def careless_order(run: Run, input: Order) -> str:
    """The mistake: nothing says that the step does something to the outside, so after a crash it is done again."""
    charge = run.step("charge", lambda: bank.charge(input.customer, input.cents), input=[input.customer, input.cents])
    return run.step("ship", ship, charge)


def ship(charge: int) -> str:
    """Sends what was paid for."""
    return f"sent for charge {charge}"
