"""Usage and budgets: exact sums, counted once, and an end where the budget ends."""

from __future__ import annotations

import builtins
from decimal import Decimal
from typing import Any

import pytest

from tidebase import AsyncTidebase, BudgetExhausted, InvalidArgument, Run, RunFinal, RunNotFound, Tidebase

from .probes import state as probe_state

ON_NEWEST = True


def test_sixteen_recorders_make_an_exact_sum(database: str) -> None:
    assert probe_state.exact_sums(database) == []


def test_no_step_begins_after_the_limit_has_been_passed_and_seen(database: str) -> None:
    assert probe_state.nothing_begins_after_the_limit(database) == []


def test_a_budget_set_on_a_running_tree_counts_everything_once(database: str) -> None:
    assert probe_state.a_budget_that_comes_late(database) == []


def spend(run: Run, _: Any) -> str:
    for number in range(4):
        run.step(f"s{number}", lambda: run.usage.record(cost_usd="0.30", response_id=f"r{run.run_id}").records)
        run.step(f"t{number}", lambda n=number: run.usage.record(cost_usd="0.30", response_id=f"r{n}").records)
    return "done"


def test_an_operator_raises_the_limit_and_the_run_goes_on(tide: Tidebase) -> None:
    with pytest.raises(BudgetExhausted) as stopped:
        tide.run("w", spend, run_id="r", budget={"cost_usd": Decimal("0.60")}, max_attempts=5)
    assert stopped.value.detail["budget_run_id"] == "r" and "tidebase budget r --cost-usd" in str(stopped.value)
    assert tide.runs.get("r").status == "failed"  # at once: the attempts that are left would not get further
    assert [step.name for step in tide.runs.steps("r")] == ["s0", "t0"]
    limits = tide.runs.set_budget("r", cost_usd=Decimal("2.00"), actor="ada", reason="worth it")
    assert (limits.cost_limit_usd, limits.cost_usd) == (Decimal("2.00"), Decimal("0.60"))
    assert tide.run("w", spend, run_id="r") == "done"
    assert tide.runs.usage("r").cost_usd == Decimal("1.50")  # the same response is one record
    types = [event.type for event in tide.runs.events("r")]
    assert types.count("budget.exhausted") == 1 and types.count("budget.changed") == 1
    with pytest.raises(RunFinal):
        tide.runs.set_budget("r", cost_usd=1)


def test_children_share_the_budget_of_their_parent(tide: Tidebase) -> None:
    def parent(run: Run, _: Any) -> None:
        run.child("spend", spend, name="one")
        run.step("after", lambda: None)

    with pytest.raises(BudgetExhausted) as stopped:
        tide.run("p", parent, run_id="p", budget={"cost_usd": 1})
    assert stopped.value.detail["budget_run_id"] == "p" and stopped.value.run_id != "p"
    tide.runs.set_budget("p", cost_usd="1.50")
    with pytest.raises(BudgetExhausted):
        tide.run("p", parent, run_id="p")
    tide.runs.set_budget("p")
    tide.run("p", parent, run_id="p")
    totals = tide.runs.usage("p")
    assert (totals.records, totals.tree_records, totals.tree_cost_usd) == (0, 5, Decimal("1.50"))


def test_usage_is_recorded_for_the_step_that_is_executed(tide: Tidebase) -> None:
    def work(run: Run, _: Any) -> None:
        run.step.options(key="a")("ask", lambda: run.usage.record(provider="x", model="m", input_tokens=5).records)
        run.usage.record(kind="embeddings", model="e", input_tokens=7)
        run.usage.record(quantity=3, unit="images", cost=Decimal("1.10"), currency="EUR", metadata={"a": 1})

    tide.run("w", work, run_id="r")
    by_step = {row.step: row for row in tide.runs.usage_by_step("r") if row.currency == "USD"}
    assert by_step["ask[a]"].input_tokens == 5 and by_step[None].input_tokens == 7
    assert by_step["ask[a]"].cost is None and by_step["ask[a]"].unpriced == 1  # nobody knows a model m
    by_model = {row.model: row for row in tide.runs.usage_by_model("r")}
    assert by_model["m"].provider == "x" and by_model[None].cost == Decimal("1.10")
    assert tide.runs.usage("r").unpriced == 3  # the euros, too: they are no dollars
    with pytest.raises(RunNotFound):
        tide.runs.usage("nothing")


def test_a_price_is_looked_up_where_the_list_is_installed_and_never_made_up(
    tide: Tidebase, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = tide.runs.attach("w", run_id="r")
    known = session.usage.record(provider="openai", model="gpt-4o", input_tokens=1_000_000, output_tokens=0)
    assert known.cost_usd > 0 and known.unpriced == 0
    assert session.usage.record(provider="openai", model="no such model", input_tokens=1).unpriced == 1
    given = session.usage.record(provider="openai", model="gpt-4o", input_tokens=1, cost_usd=0.1)
    assert given.cost_usd == known.cost_usd + Decimal("0.1")

    real = builtins.__import__

    def without(name: str, *arguments: Any) -> Any:
        if name.startswith("genai_prices"):
            raise ImportError(name)
        return real(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", without)
    assert session.usage.record(provider="openai", model="gpt-4o", input_tokens=1).unpriced == 2


@pytest.mark.parametrize(
    "wrong",
    [
        {"cost_usd": float("nan")},
        {"cost_usd": "Infinity"},
        {"cost_usd": -1},
        {"cost_usd": 1, "currency": "EUR"},
        {"cost": 1, "currency": "euro"},
        {"input_tokens": 5, "cache_read_tokens": 6},
        {"output_tokens": 5, "reasoning_tokens": 6},
        {"input_tokens": -1},
        {"kind": " "},
        {"response_id": ""},
    ],
    ids=str,
)
def test_a_record_that_makes_no_sense_is_refused(tide: Tidebase, wrong: dict[str, Any]) -> None:
    session = tide.runs.attach("w", run_id="r")
    with pytest.raises(InvalidArgument):
        session.usage.record(**wrong)
    assert tide.runs.usage("r").records == 0


@pytest.mark.parametrize("wrong", [{"cost_usd": -1}, {"cost_usd": "NaN"}, {"dollars": 1}, {"tokens": "many"}], ids=str)
def test_a_budget_that_makes_no_sense_is_refused(tide: Tidebase, wrong: Any) -> None:
    with pytest.raises((InvalidArgument, ArithmeticError, TypeError)):
        tide.runs.create("w", run_id="r", budget=wrong)
    with pytest.raises(RunNotFound):
        tide.runs.get("r")


async def test_the_same_awaited(atide: AsyncTidebase) -> None:
    async def kid(run: Any, input: Any) -> Any:
        await run.usage.record(cost_usd="0.5")
        return await run.step("s", lambda: input)

    async def parent(run: Any, _: Any) -> Any:
        return await run.fanout("all", [{"name": str(n), "workflow": kid, "input": n} for n in range(3)])

    assert await atide.run("p", parent, run_id="p", budget={"cost_usd": 10}) == [0, 1, 2]
    assert (await atide.runs.usage("p")).tree_cost_usd == Decimal("1.5")
    with pytest.raises(BudgetExhausted):
        await atide.run("p", parent, run_id="q", budget={"cost_usd": 0})
    await atide.runs.set_budget("q", tokens=10)
    assert await atide.run("p", parent, run_id="q") == [0, 1, 2]
    assert len(await atide.runs.usage_by_step("p")) == 0 and len(await atide.runs.usage_by_model("p")) == 0
