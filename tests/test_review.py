"""Reviews: what may have taken effect is not repeated without a person's word."""

from __future__ import annotations

from typing import Any

import pytest

from tidebase import ReviewNotOpen, Run, RunNeedsReview, Tidebase

from . import probe_gates


def test_no_card_is_charged_twice_through_250_kills(database: str) -> None:
    assert probe_gates.charges(database, kills=250) == []


def test_with_keys_every_run_completes_through_250_kills(database: str) -> None:
    assert probe_gates.charges(database, kills=250, keyed=True) == []


def test_a_review_is_decided_once(database: str) -> None:
    assert probe_gates.one_review(database, connections=16) == []


def charge(run: Run, input: Any) -> Any:
    def fail() -> Any:
        raise TimeoutError("did the bank hear it?")

    return run.step("charge", fail, side_effects=["card.charge"], verified_by="the bank's list")


@pytest.mark.parametrize(
    ("decision", "status", "outcome"),
    [("accept", "pending", "done"), ("fail", "failed", None), ("retry", "pending", None)],
)
def test_a_person_decides_and_the_run_goes_on_accordingly(
    tide: Tidebase, decision: Any, status: str, outcome: Any
) -> None:
    with pytest.raises(TimeoutError):
        tide.run("w", charge, run_id="r")
    assert tide.runs.get("r").status == "review"
    with pytest.raises(RunNeedsReview):
        tide.run("w", charge, run_id="r")
    (review,) = tide.runs.reviews()
    assert (review.run_id, review.step, review.cause, review.verified_by) == ("r", "charge", "error", "the bank's list")
    tide.runs.resolve_review("r", "charge", decision, output="done", actor="ada", reason="looked")
    with pytest.raises(ReviewNotOpen):
        tide.runs.resolve_review("r", "charge", decision)
    assert (tide.runs.get("r").status, list(tide.runs.reviews())) == (status, [])
    reviewed = next(event for event in tide.runs.events("r") if event.type == "step.reviewed")
    assert (reviewed.payload["actor"], reviewed.payload["reason"]) == ("ada", "looked")
    if outcome:
        assert tide.run("w", charge, run_id="r") == outcome
    else:
        with pytest.raises(TimeoutError if decision == "retry" else Exception):
            tide.run("w", charge, run_id="r")


def test_a_workflow_that_catches_the_error_still_does_not_repeat_the_step(tide: Tidebase) -> None:
    def stubborn(run: Run, input: Any) -> Any:
        try:
            charge(run, input)
        except TimeoutError:
            return charge(run, input)

    with pytest.raises(RunNeedsReview):
        tide.run("w", stubborn, run_id="r")
    assert tide.runs.steps("r")[0].attempt == 1
