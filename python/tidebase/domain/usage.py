"""Usage: what a run's calls to models used, what that cost, and what it may cost."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any, TypedDict

from ..core import codec
from ..core.call import Call, Value, one, rows_of, scalar
from ..core.flow import Flow
from ..core.options import check
from .lease import Hold, new_request_id
from .step import recall_of, step_of

if TYPE_CHECKING:
    pass


@dataclass(frozen=True)
class UsageTotal:
    """Answer of record_usage: the run's totals so far.

    ``recorded``: whether this call was counted. ``unpriced``: how many records have no price. ``exhausted``: a budget
    is used up. ``seq``: of the record's event.
    """

    recorded: bool
    records: int
    input_tokens: int
    output_tokens: int
    cost_usd: Decimal
    unpriced: int
    exhausted: bool
    seq: int


@dataclass(frozen=True)
class UsageTotals:
    """What a run used, itself and (``tree_...``) with its descendants, and its limits: a row of usage_totals."""

    run_id: str
    records: int
    unpriced: int
    input_tokens: int
    cache_read_tokens: int
    cache_write_tokens: int
    output_tokens: int
    reasoning_tokens: int
    cost_usd: Decimal
    tree_runs: int
    tree_records: int
    tree_unpriced: int
    tree_input_tokens: int
    tree_output_tokens: int
    tree_cost_usd: Decimal
    cost_limit_usd: Decimal | None
    token_limit: int | None


@dataclass(frozen=True)
class UsageByStep:
    """What a step used, in one currency, as the view usage_by_step has it; a sum is None where nobody knows it."""

    run_id: str
    step: str | None
    currency: str
    records: int
    unpriced: int
    input_tokens: int | None
    cache_read_tokens: int | None
    cache_write_tokens: int | None
    output_tokens: int | None
    reasoning_tokens: int | None
    cost: Decimal | None


@dataclass(frozen=True)
class UsageByModel:
    """What a run used of a model, in one currency, as the view usage_by_model has it."""

    run_id: str
    provider: str | None
    model: str | None
    currency: str
    records: int
    unpriced: int
    input_tokens: int | None
    cache_read_tokens: int | None
    cache_write_tokens: int | None
    output_tokens: int | None
    reasoning_tokens: int | None
    cost: Decimal | None


@dataclass(frozen=True)
class UsageRecord:
    """One record of usage, as the view usage_records has it; ``seq``: of its event."""

    run_id: str
    seq: int
    kind: str
    step: str | None
    provider: str | None
    model: str | None
    response_id: str | None
    input_tokens: int | None
    cache_read_tokens: int | None
    cache_write_tokens: int | None
    output_tokens: int | None
    reasoning_tokens: int | None
    cost: Decimal | None
    currency: str
    quantity: Decimal | None
    unit: str | None
    label: str | None
    metadata: Value
    created_at: datetime
    total_tokens: int | None


record_usage = one(
    "record_usage",
    UsageTotal,
    run_id="text",
    token="bigint",
    step="text",
    kind="text",
    provider="text",
    model="text",
    input_tokens="bigint",
    output_tokens="bigint",
    cost_usd="numeric",
    quantity="numeric",
    unit="text",
    response_id="text",
    cache_read_tokens="bigint",
    cache_write_tokens="bigint",
    reasoning_tokens="bigint",
    cost="numeric",
    currency="text",
    label="text",
    metadata="jsonb",
    request_id="text",
    total_tokens="bigint",
)
set_budget = scalar("set_budget", run_id="text", cost_usd="numeric", tokens="bigint", actor="text", reason="text")


def usage_records(run_id: str, seq: int | None = None) -> Call[list[UsageRecord]]:
    """Every record of usage of a run, in the order of the log, or the one of an event."""
    return rows_of("usage_records", UsageRecord, "seq", run_id=run_id, seq=seq)


def usage_totals(run_id: str) -> Call[list[UsageTotals]]:
    """What a run used, with its descendants: one row."""
    return rows_of("usage_totals", UsageTotals, "run_id", run_id=run_id)


def usage_by_step(run_id: str) -> Call[list[UsageByStep]]:
    """What each step of a run used."""
    return rows_of("usage_by_step", UsageByStep, "step, currency", run_id=run_id)


def usage_by_model(run_id: str) -> Call[list[UsageByModel]]:
    """What a run used of each model."""
    return rows_of("usage_by_model", UsageByModel, "provider, model, currency", run_id=run_id)


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
    total: UsageTotal = yield record_usage(
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
