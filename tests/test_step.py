"""Steps through the wrapper: done once, retried as declared, refused when their input changed."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pytest

from tidebase import (
    AsyncTidebase,
    InputMismatch,
    InvalidArgument,
    NotSerializable,
    Run,
    StepNotRunning,
    StepOutputDecodeError,
    StepTimeout,
    Tidebase,
    TidebaseError,
    step,
)
from tidebase.core import codec

from .conftest import on_every_version
from .support.values import ALIAS, STRICT, Computed, OneWay, Outer

ON_NEWEST = True


class Calls(list[Any]):
    """A function that notes how it was called."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.append((args, kwargs))
        return {"calls": len(self)}


def resumed(tide: Tidebase, run_id: str, workflow: Any, **options: Any) -> Any:
    """Runs a workflow whose first attempt fails at its end, then again."""

    def first(run: Run, input: Any) -> None:
        workflow(run, input)
        raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        tide.run("w", first, run_id=run_id, **options)
    return tide.run("w", workflow, run_id=run_id, **options)


def test_a_completed_step_is_not_executed_again(tide: Tidebase) -> None:
    calls = Calls()
    assert resumed(tide, "r", lambda run, _: run.step("s", calls, 1, k=2)) == {"calls": 1}
    assert calls == [((1,), {"k": 2})]


@pytest.mark.parametrize("again", ['{"b": [1.0, 2.50], "a": null}', '{ "a" :null, "b":[1,2.5]}'])
def test_the_same_input_in_other_words_is_the_same_checkpoint(tide: Tidebase, again: str) -> None:
    import json

    calls = Calls()
    inputs = iter([{"a": None, "b": [1, 2.5]}, json.loads(again)])
    resumed(tide, "r", lambda run, _: run.step("s", calls, input=next(inputs)))
    assert len(calls) == 1


def test_another_input_is_refused_and_nothing_is_executed(tide: Tidebase) -> None:
    calls = Calls()
    inputs = iter([1, 2])
    with pytest.raises(InputMismatch) as caught:
        resumed(tide, "r", lambda run, _: run.step("s", calls, next(inputs)))
    assert (caught.value.run_id, caught.value.step, len(calls)) == ("r", "s", 1)


def test_keys_tell_steps_of_one_name_apart(tide: Tidebase) -> None:
    def workflow(run: Run, _: Any) -> list[Any]:
        return [run.step.options(key=key)("s", lambda key=key: key * 2, input=key) for key in (1, 2)]

    assert resumed(tide, "r", workflow) == [2, 4]
    assert [info.name for info in tide.runs.steps("r")] == ["s[1]", "s[2]"]


def test_retries_are_used_up_and_the_error_is_the_functions_own(tide: Tidebase) -> None:
    failures: list[ValueError] = []

    def fail() -> None:
        failures.append(ValueError(f"no {len(failures)}"))
        raise failures[-1]

    with pytest.raises(ValueError, match="no 2") as caught:
        tide.run("w", lambda run, _: run.step("s", fail, retries=2, retry_delay_s=0), run_id="r")
    assert caught.value is failures[-1]
    assert (
        "step 's' of run 'r' failed at attempt 3"
        in getattr(caught.value, "__notes__", ["step 's' of run 'r' failed at attempt 3"])[0]
    )
    decisions = [event.payload["decision"] for event in tide.runs.events("r") if event.type == "step.failed"]
    assert decisions == ["auto_retry", "auto_retry", "safe_replay"]


def test_a_step_that_recovers_is_completed(tide: Tidebase) -> None:
    outcomes = iter([ValueError(), ValueError(), 7])

    def flaky() -> Any:
        outcome = next(outcomes)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    assert tide.run("w", lambda run, _: run.step("s", flaky, retries=5, retry_delay_s=0)) == 7


def test_only_the_errors_named_are_retried(tide: Tidebase) -> None:
    calls = Calls()

    def fail() -> None:
        calls()
        raise KeyError

    with pytest.raises(KeyError):
        tide.run("w", lambda run, _: run.step("s", fail, retries=3, retry_delay_s=0, retry_on=OSError))
    assert len(calls) == 1


def test_a_write_to_the_outside_without_a_key_is_never_retried(tide: Tidebase) -> None:
    calls = Calls()

    def charge() -> None:
        calls()
        raise TimeoutError

    with pytest.raises(TimeoutError):
        tide.run("w", lambda run, _: run.step("s", charge, retries=3, retry_delay_s=0, side_effects=["card"]))
    assert len(calls) == 1


def test_a_step_that_takes_too_long_times_out(tide: Tidebase) -> None:
    over = threading.Event()
    with pytest.raises(StepTimeout):
        tide.run("w", lambda run, _: run.step("s", over.wait, timeout_s=0.01), run_id="r")
    over.set()
    assert tide.runs.steps("r")[0].status == "failed"


def test_a_result_that_cannot_be_stored_fails_the_step_without_retries(tide: Tidebase) -> None:
    calls = Calls()

    def unstorable() -> Any:
        calls()
        return {"x": float("nan")}

    with pytest.raises(NotSerializable, match=r"\$\.x is nan"):
        tide.run("w", lambda run, _: run.step("s", unstorable, retries=3, retry_delay_s=0))
    assert len(calls) == 1


@dataclass
class Old:
    a: int


@dataclass
class New:
    a: str


def test_a_checkpoint_that_no_longer_fits_its_type_says_where(tide: Tidebase) -> None:
    types = iter([Old, New])
    with pytest.raises(StepOutputDecodeError, match=r"\$\.a") as caught:
        resumed(tide, "r", lambda run, _: run.step("s", lambda: {"a": 1}, returns=next(types)))
    assert (caught.value.run_id, caught.value.step) == ("r", "s")


def test_options_and_arguments_are_not_mixed_up(tide: Tidebase) -> None:
    def workflow(run: Run, _: Any) -> Any:
        with pytest.raises(TypeError, match="topic"):
            run.step("s", lambda topic: topic, topic=1, retries=2)  # type: ignore[call-overload]
        return run.step.options(retries=2)("s", lambda topic, retries: [topic, retries], 1, retries=9)

    assert tide.run("w", workflow) == [1, 9]


def test_threads_share_a_run(tide: Tidebase) -> None:
    def workflow(run: Run, _: Any) -> int:
        with ThreadPoolExecutor(8) as pool:
            futures = [
                pool.submit(run.step.options(key=f"{thread}-{number}"), "s", int, number)
                for thread in range(8)
                for number in range(20)
            ]
            return sum(future.result() for future in futures)

    assert resumed(tide, "r", workflow) == 8 * sum(range(20))
    assert all(info.attempt == 1 for info in tide.runs.steps("r"))


def test_two_threads_cannot_do_the_same_step_at_once(tide: Tidebase) -> None:
    def workflow(run: Run, _: Any) -> Any:
        def nested() -> Any:
            with pytest.raises(StepNotRunning):
                run.step("s", lambda: 2)
            return 1

        return run.step("s", nested)

    assert tide.run("w", workflow) == 1


@step("double", retries=1, retry_delay_s=0)
def double(number: int) -> int:
    """Twice the number."""
    return 2 * number


def test_a_decorated_function_is_a_step_where_a_workflow_calls_it(tide: Tidebase) -> None:
    assert tide.run("w", lambda run, _: [double(1), double.options(key="k")(2)], run_id="r") == [2, 4]
    assert [info.name for info in tide.runs.steps("r")] == ["double", "double[k]"]
    assert double.__doc__ == "Twice the number." and double.__wrapped__(4) == 8
    with pytest.raises(TidebaseError, match="outside a workflow"):
        double(1)


@on_every_version
def test_the_contract_is_kept_with_the_step(tide: Tidebase) -> None:
    options: dict[str, Any] = {
        "side_effects": ["mail"],
        "idempotency_key": "k",
        "replay": "manual",
        "checkpoint_invariant": "i",
        "verified_by": "v",
        "credentials": ["SMTP"],
        "retries": 2,
        "timeout_s": 5,
    }
    tide.run("w", lambda run, _: run.step("s", int, **options), run_id="r")
    info = tide.runs.steps("r")[0]
    assert (info.side_effects, info.idempotency_key, info.replay, info.retries) == (["mail"], "k", "manual", 2)
    assert (info.checkpoint_invariant, info.verified_by, info.credentials) == ("i", "v", ["SMTP"])
    assert info.timeout is not None and info.timeout.total_seconds() == 5


def test_a_step_whose_start_is_not_marked_is_written_once(tide: Tidebase) -> None:
    executed = []

    def work(run: Run, _: Any) -> int:
        number: int = run.step.options(key=1, mark_start=False)("quick", lambda: executed.append(1) or 7)
        if len(executed) < 2:
            raise RuntimeError("once more")
        return number

    with pytest.raises(RuntimeError, match="once more"):
        tide.run("w", work, run_id="r")
    assert executed == [1]
    executed.append(3)
    assert tide.run("w", work, run_id="r") == 7 and executed == [1, 3]
    step = tide.runs.steps("r")[0]
    assert (step.name, step.status, step.attempt, step.output) == ("quick[1]", "completed", 1, 7)
    events = [event.type for event in tide.runs.events("r")]
    assert events.count("step.completed") == 1 and "step.started" not in events


def test_a_step_whose_start_is_not_marked_fails_like_any_other(tide: Tidebase) -> None:
    tries = iter([ValueError("first"), ValueError("second"), None])

    def flaky() -> str:
        if error := next(tries):
            raise error
        return "done"

    def work(run: Run, _: Any) -> str:
        return str(run.step.options(mark_start=False, retries=2, retry_delay_s=0.001)("flaky", flaky))

    assert tide.run("w", work, run_id="r") == "done"
    step = tide.runs.steps("r")[0]
    assert (step.status, step.attempt, step.error) == ("completed", 3, None)
    with pytest.raises(ZeroDivisionError):
        tide.run("w", lambda run, _: run.step.options(mark_start=False)("s", lambda: 1 / 0), run_id="failed")
    failed = tide.runs.steps("failed")[0]
    assert (failed.status, failed.decision, failed.error["type"]) == ("failed", "safe_replay", "ZeroDivisionError")


def test_what_is_done_to_the_outside_has_to_be_marked(tide: Tidebase) -> None:
    def work(run: Run, _: Any) -> None:
        run.step.options(mark_start=False, side_effects=["read"])("look", lambda: 1)
        run.step.options(mark_start=False, side_effects=["email.send"])("send", lambda: pytest.fail("executed"))

    with pytest.raises(InvalidArgument, match="mark_start"):
        tide.run("w", work, run_id="r")
    assert [step.name for step in tide.runs.steps("r")] == ["look"]


async def test_a_step_whose_start_is_not_marked_awaited(atide: AsyncTidebase) -> None:
    async def one() -> int:
        return 1

    async def work(run: Any, _: Any) -> int:
        return int(await run.step.options(mark_start=False)("s", one))

    assert await atide.run("w", work, run_id="r") == 1
    assert [event.type async for event in atide.runs.events("r")] == [
        "run.created",
        "run.started",
        "step.completed",
        "run.completed",
    ]


def test_a_set_as_input_replays_also_in_the_order_that_an_earlier_version_hashed(tide: Tidebase) -> None:
    calls = Calls()
    numbers = {8, 1, 16, 3}
    inputs: Any = iter([codec.unordered(numbers), numbers])  # first as a list, in the order of that process
    assert codec.unordered(numbers) != codec.to_builtins(numbers)
    resumed(tide, "r", lambda run, _: run.step("s", calls, input=next(inputs)))
    assert len(calls) == 1


def one_way() -> OneWay:
    return OneWay(a=1)


@pytest.mark.parametrize("options", [{}, {"retries": 2, "retry_delay_s": 0}, {"side_effects": ["mail"]}], ids=str)
def test_a_result_that_does_not_come_back_is_paid_once(tide: Tidebase, options: Any) -> None:
    executed: list[int] = []

    def pay() -> OneWay:
        executed.append(1)
        return one_way()

    def workflow(run: Run, _: Any) -> Any:
        for _again in range(2):
            with pytest.raises(
                StepOutputDecodeError, match=r"does not fit OneWay.* stored .* not executed again"
            ) as caught:
                run.step("s", pay, **options)
            assert (caught.value.run_id, caught.value.step) == ("r", "s")
        return run.step("s", pay, returns=dict, **options)

    assert resumed(tide, "r", workflow) == {"a": "one"}
    assert executed == [1]
    (info,) = tide.runs.steps("r")
    assert (info.status, info.attempt, info.output) == ("completed", 1, {"a": "one"})


async def test_a_result_that_does_not_come_back_is_paid_once_awaited(atide: AsyncTidebase) -> None:
    executed: list[int] = []

    async def pay() -> OneWay:
        executed.append(1)
        return one_way()

    async def workflow(run: Any, _: Any) -> None:
        await run.step("s", pay)

    for _attempt in range(2):
        with pytest.raises(StepOutputDecodeError, match="stored"):
            await atide.run("w", workflow, run_id="r", max_attempts=3, retry_delay_s=0)
    assert executed == [1]
    assert (await atide.runs.get("r")).attempt == 2  # another attempt does not get further


def test_a_result_of_a_run_that_does_not_come_back_is_stored(tide: Tidebase) -> None:
    executed: list[int] = []

    def workflow(run: Run, _: Any) -> OneWay:
        executed.append(1)
        return one_way()

    for _attempt in range(2):
        with pytest.raises(StepOutputDecodeError, match=r"does not fit OneWay.* result of run 'r' is stored"):
            tide.run("w", workflow, run_id="r")
    assert executed == [1]
    info = tide.runs.get("r")
    assert (info.status, info.result) == ("completed", {"a": "one"})


def test_an_input_of_a_run_that_does_not_come_back_is_said_and_nothing_is_executed(tide: Tidebase) -> None:
    def workflow(run: Run, input: OneWay) -> None:
        pytest.fail("executed")

    for _attempt in range(2):
        with pytest.raises(StepOutputDecodeError, match=r"does not fit OneWay.* input of run 'r' is stored"):
            tide.run("w", workflow, run_id="r", input=one_way(), max_attempts=3)


def test_a_run_gets_its_input_as_its_type(tide: Tidebase) -> None:
    plain = Outer(ALIAS, [Computed(a=1)], {1: STRICT}, {"b", "a"})

    def typed(run: Run, input: Outer) -> Outer:
        return run.step("s", give, input)

    def give(value: Outer) -> Outer:
        return value

    assert resumed(tide, "r", typed, input=plain) == plain
