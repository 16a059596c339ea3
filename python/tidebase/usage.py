"""Usage: what a run's calls to models used, what that cost, and what it may cost."""

from __future__ import annotations

import logging
from decimal import Decimal
from typing import TYPE_CHECKING, Any, TypedDict

from . import calls, codec
from .calls import UsageTotal
from .flow import Flow
from .lease import Hold, new_request_id
from .options import check
from .step import recall_of, step_of

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .run import Run

log = logging.getLogger("tidebase.usage")

Money = Decimal | int | float | str


class Budget(TypedDict, total=False):
    """What a run and its descendants may use together.

    Attributes:
        cost_usd: a Decimal, or a number or text that makes one.
        tokens: input and output tokens together.
    """

    cost_usd: Money
    tokens: int


class UsageOptions(TypedDict, total=False):
    """What was used, in the terms of the OpenTelemetry GenAI conventions; see the function ``record_usage``.

    Attributes:
        provider: ``openai``, ``anthropic`` ...
        model: the model that answered.
        response_id: the provider's id of the response: it is counted once in a run, however often it is recorded.
        kind: the operation: ``chat`` (default), ``embeddings``, ``execute_tool`` ...
        input_tokens: all of them, those read from and written to the cache included.
        cache_read_tokens, cache_write_tokens: those of the input.
        output_tokens: all of them, those for reasoning included.
        reasoning_tokens: those of the output.
        cost_usd: exact. Left out, it is looked up (the extra ``prices``); unknown, it is unknown, and not 0.
        cost, currency: the price in another currency.
        quantity, unit: what is not counted in tokens.
        label: a word of your own.
        step: the step it belongs to; by default the one that is being executed.
        metadata: a dict of your own.
    """

    provider: str
    model: str
    response_id: str
    kind: str
    input_tokens: int
    cache_read_tokens: int
    cache_write_tokens: int
    output_tokens: int
    reasoning_tokens: int
    cost_usd: Money
    cost: Money
    currency: str
    quantity: Money
    unit: str
    label: str
    step: str
    metadata: dict[str, Any]


def record(hold: Hold, options: UsageOptions) -> Flow[UsageTotal]:
    """Records usage and returns the run's totals."""
    check(UsageOptions, options, "usage")
    hold.begin()
    arguments: dict[str, Any] = {"step": step_of(hold), **options}
    if "metadata" in arguments:
        arguments["metadata"] = codec.encode(arguments["metadata"])
    for name in ("cost_usd", "cost", "quantity"):
        if arguments.get(name) is not None:
            arguments[name] = exact(arguments[name])
    if arguments.get("cost_usd") is None and arguments.get("cost") is None:
        arguments["cost_usd"] = price(options)
    recall = recall_of(hold)
    total: UsageTotal = yield calls.record_usage(
        run_id=hold.run_id,
        token=hold.token,
        request_id=new_request_id() if recall is None else recall.of_many("usage", codec.encode(options)),
        **arguments,
    )
    if total.recorded:
        hold.trace.usage(arguments)
    return total


def exact(amount: Money) -> Decimal:
    """The decimal that a number is written as: 0.1 is 0.1."""
    return amount if isinstance(amount, Decimal) else Decimal(str(amount))


def budget_json(budget: Budget | None) -> str | None:
    """A budget as the JSON that ``create_run`` takes, its numbers exact."""
    if budget is None:
        return None
    check(Budget, budget, "a budget")
    members = {name: value for name, value in budget.items() if value is not None}
    return "{" + ", ".join(f"{codec.dumps(name)}: {_number(value)}" for name, value in members.items()) + "}"


def _number(value: Any) -> str:
    return format(exact(value), "f") if isinstance(value, (Decimal, int, float, str)) else codec.encode(value)


def price(options: UsageOptions) -> Decimal | None:
    """What a response costs in USD by the price list of ``genai-prices``; None where that is not known or not there."""
    model = options.get("model")
    if model is None or (options.get("input_tokens") is None and options.get("output_tokens") is None):
        return None
    try:
        from genai_prices import Usage as Tokens
        from genai_prices import calc_price
    except ImportError:
        return None
    try:
        tokens = Tokens(
            input_tokens=options.get("input_tokens"),
            cache_read_tokens=options.get("cache_read_tokens"),
            cache_write_tokens=options.get("cache_write_tokens"),
            output_tokens=options.get("output_tokens"),
        )
        return exact(calc_price(tokens, model, provider_id=options.get("provider")).total_price)
    except (LookupError, ValueError) as unknown:
        log.debug("no price for %s: %s", model, unknown)
        return None


class Usage:
    """``run.usage``: what the run's calls to models used."""

    def __init__(self, run: Run) -> None:
        self._run = run

    def record(self, **options: Unpack[UsageOptions]) -> UsageTotal:
        """Records what a call used and returns the run's totals so far; see :class:`UsageOptions`.

        ``exhausted`` says that a budget is used up: the next step that is begun raises BudgetExhausted.
        """
        return self._run._do(record(self._run._hold, options))
