"""How a workflow is tested: with the fixtures that come with the package (the extra ``testing``).

python -m pytest python/examples
"""

from __future__ import annotations

import heapq
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import corpus
import order as example
import pytest
from order import Order, careless_order, order
from research_agent import Article, Question, research

from tidebase import Run, RunSuspendedError, Tidebase
from tidebase.testing import ReplayMismatch
from tidebase.testing.crash import CrashAt, When

SMALL, LARGE = Order("ada", 4_200), Order("ada", 420_000)


@pytest.fixture(autouse=True)
def bank(monkeypatch: pytest.MonkeyPatch) -> Iterator[example.Bank]:
    bank = example.Bank()
    monkeypatch.setattr(example, "bank", bank)
    yield bank


@pytest.mark.parametrize("when", ["before", "after work", "after commit"])
def test_whenever_the_process_dies_the_card_is_charged_once(
    tide: Tidebase, crash_at: CrashAt, advance: Callable[..., None], bank: example.Bank, when: When
) -> None:
    with crash_at("charge", when):
        tide.run("order", order, run_id="order-1", input=SMALL)
    advance("2 minutes")  # the lease of the dead process runs out
    assert tide.run("order", order, run_id="order-1") == "sent for charge 1"
    assert bank.charges == [("ada", 4_200)]


def test_the_careless_order_charges_twice(
    tide: Tidebase, crash_at: CrashAt, advance: Callable[..., None], bank: example.Bank
) -> None:
    """What the test above would say of it."""
    with crash_at("charge", "after work"):
        tide.run("order", careless_order, run_id="order-1", input=SMALL)
    advance("2 minutes")
    tide.run("order", careless_order, run_id="order-1")
    assert bank.charges == [("ada", 4_200), ("ada", 4_200)]


def test_nobody_answers_for_a_week(tide: Tidebase, advance: Callable[..., None]) -> None:
    with pytest.raises(RunSuspendedError):
        tide.run("order", order, run_id="order-1", input=LARGE)
    advance("6 days")
    assert tide.runs.get("order-1").status == "waiting"
    advance("1 day")
    assert tide.run("order", order, run_id="order-1") == "charge 1 is to be paid back"


def test_a_workflow_that_was_changed_must_fit_the_runs_that_are_under_way(
    tide: Tidebase, replay: Callable[..., Any]
) -> None:
    with pytest.raises(RunSuspendedError):
        tide.run("order", order, run_id="order-1", input=LARGE)

    def changed(run: Run, input: Order) -> str:
        charge = run.step("charge-card", lambda: 1, input=[input.customer, input.cents])
        run.gate("ship", "Ship this?", suspend=True, timeout_s=7 * 86_400)
        return f"sent for charge {charge}"

    assert replay("order-1", order).at == ["ship"]
    with pytest.raises(ReplayMismatch, match="'charge' is done, and 'charge-card' is asked for with the same input"):
        replay("order-1", changed)


def test_the_research_agent_goes_on_where_it_was_killed(
    tide: Tidebase,
    crash_at: CrashAt,
    advance: Callable[..., None],
    tmp_path: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ledger = tmp_path / "ledger"
    monkeypatch.setenv("AGENT_LEDGER", str(ledger))
    shutil.copy(heapq.__file__, tmp_path / "heapq.py")
    monkeypatch.setattr(corpus, "LIBRARY", tmp_path)  # a smaller one, read sooner
    for key in ("ANTHROPIC_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(key, raising=False)
    question = Question("How do I keep a heap of tasks sorted by priority?")
    crash_at.kill(lambda: tide.run("research-agent", research, run_id="q-1", input=question), "read", "before")
    advance("2 minutes")
    article = tide.run("research-agent", research, run_id="q-1")
    assert isinstance(article, Article) and "heapq" in " ".join(article.sources)
    done = [line.split()[0] for line in ledger.read_text().splitlines()]
    assert sorted(done) == ["draft", "finalize", "plan", "read", "search"]
