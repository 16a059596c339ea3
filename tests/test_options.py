"""A name that nobody knows is refused with the one that was meant; a time says where on earth it is."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import typing
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

import tidebase
from tidebase import AsyncRun, AsyncTidebase, InvalidArgument, Run, Tidebase, step
from tidebase.domain import calls
from tidebase.integrations._steps import contract_of
from tidebase.integrations.langgraph import durable

ON_NEWEST = True

Use = Callable[[Any, Any, dict[str, Any]], Any]


def _child(run: Any, input: Any) -> None:
    raise AssertionError


def _fanout(run: Any, tide: Any, given: dict[str, Any]) -> Any:
    return run.fanout("f", [{"name": "a", "workflow": _child, **given}])


#: How the options of each TypedDict are given: ``(run, tide, options)``.
USES: dict[str, list[Use]] = {
    "RunOptions": [
        lambda run, tide, given: tide.run("other", _child, **given),
        lambda run, tide, given: tide.runs.create("other", **given),
        lambda run, tide, given: tide.runs.attach("other", **given),
    ],
    "StepOptions": [
        lambda run, tide, given: run.step("s", lambda: 1, **given),
        lambda run, tide, given: run.step("s", lambda: 1, retries=1, **given),
        lambda run, tide, given: run.step.options(**given)("s", lambda x: x, 1),
        lambda run, tide, given: step("s", **given)(lambda: 1)(),
        lambda run, tide, given: step("s")(lambda: 1).options(**given)(),
        lambda run, tide, given: (
            run.transaction("s", **given).__enter__()
            if isinstance(run, Run)
            else run.transaction("s", **given).__aenter__()
        ),
        lambda run, tide, given: run.fanout("f", [], **given),
    ],
    "GateOptions": [
        lambda run, tide, given: run.gate("g", "?", **given),
        lambda run, tide, given: run.gates.begin("g", "?", **given),
    ],
    "ChildOptions": [lambda run, tide, given: run.child("c", _child, **given)],
    "ChildSpec": [_fanout],
    "StateOptions": [
        lambda run, tide, given: run.state.set(1, **given),
        lambda run, tide, given: run.state.patch({}, **given),
    ],
    "VersionOptions": [
        lambda run, tide, given: run.state.save("l", **given),
        lambda run, tide, given: run.state.restore(1, **given),
        lambda run, tide, given: run.snapshots.create("l", {}, **given),
    ],
    "Moment": [
        lambda run, tide, given: run.state.get(**given),
        lambda run, tide, given: tide.runs.state("r", **given),
    ],
    "EnqueueOptions": [lambda run, tide, given: tide.enqueue("other", **given)],
    "EnqueueSpec": [lambda run, tide, given: tide.enqueue_many([{"workflow": "other", **given}])],
    "QueueOptions": [lambda run, tide, given: tide.queues.put("q", **given)],
    "ScheduleOptions": [lambda run, tide, given: tide.schedules.put("s", "other", every_s=60, **given)],
    "UsageOptions": [lambda run, tide, given: run.usage.record(model="m", **given)],
    "Budget": [
        lambda run, tide, given: tide.runs.create("other", budget=given),
        lambda run, tide, given: run.child("c", _child, budget=given),
    ],
    "ToolContract": [lambda run, tide, given: contract_of(given, "t")],
    "DurableOptions": [lambda run, tide, given: durable(lambda state: state, **given)],
}


def _option_types() -> dict[str, type[Any]]:
    """Every public TypedDict of the package."""
    found: dict[str, type[Any]] = {}
    for module in pkgutil.walk_packages(tidebase.__path__, "tidebase."):
        if not module.name.endswith("__main__"):
            members = inspect.getmembers(importlib.import_module(module.name), typing.is_typeddict)
            ours = [(name, kind) for name, kind in members if kind.__module__.startswith("tidebase.")]
            found.update({name: kind for name, kind in ours if not name.startswith("_")})
    return found


def _misspelt(name: str) -> str:
    """With its last two letters changed places, or one left out."""
    return name[:-2] + name[-1] + name[-2] if name[-1] != name[-2] else name[:-1]


CASES = [
    pytest.param(use, misspelt, name, id=f"{kind}-{number}-{misspelt}")
    for kind, known in _option_types().items()
    for number, use in enumerate(USES[kind])
    for name in known.__annotations__
    if name not in ("name", "workflow")
    for misspelt in [_misspelt(name)]
    if misspelt not in known.__annotations__
]


def test_every_kind_of_options_is_here() -> None:
    assert _option_types().keys() == USES.keys()


def test_an_option_that_nobody_knows_is_refused_with_the_nearest(tide: Tidebase) -> None:
    def workflow(run: Run, _: Any) -> None:
        for case in CASES:
            use, misspelt, name = case.values
            with pytest.raises(TypeError, match=f"'{misspelt}': is it '{name}'"):
                use(run, tide, {misspelt: None})  # type: ignore[operator]

    tide.run("w", workflow, run_id="r")
    assert tide.runs.steps("r") == [] and [info.run_id for info in tide.runs.list()] == ["r"]


async def test_an_option_that_nobody_knows_is_refused_awaited(atide: AsyncTidebase) -> None:
    async def workflow(run: AsyncRun, _: Any) -> None:
        for case in CASES:
            use, misspelt, name = case.values
            with pytest.raises(TypeError, match=f"'{misspelt}': is it '{name}'"):
                await use(run, atide, {misspelt: None})  # type: ignore[operator]

    await atide.run("w", workflow, run_id="r")
    assert await atide.runs.steps("r") == [] and [info.run_id for info in await atide.runs.list()] == ["r"]


def test_keywords_that_a_function_does_not_take_were_meant_as_options(tide: Tidebase) -> None:
    def workflow(run: Run, _: Any) -> Any:
        with pytest.raises(TypeError, match=r"retries is meant .* run\.step\.options"):
            run.step("s", lambda topic: topic, 1, retries=3)  # type: ignore[call-overload]
        with pytest.raises(TypeError, match="'retires': is it 'retries'"):
            run.step("s", lambda topic: topic, 1, retires=3)
        return run.step("s", lambda topic, **more: [topic, more], 1, retries=3)

    assert tide.run("w", workflow, run_id="r") == [1, {"retries": 3}]
    assert [info.name for info in tide.runs.steps("r")] == ["s"]


@step("search", retries=1)
def search(input: str = "nothing", *, key: int = 0) -> list[Any]:
    return [input, key]


def test_keywords_of_a_decorated_function_are_its_own(tide: Tidebase) -> None:
    assert tide.run("w", lambda run, _: search(input="salt", key=7), run_id="r") == ["salt", 7]
    (info,) = tide.runs.steps("r")
    assert (info.name, info.input) == ("search", {"args": [], "kwargs": {"input": "salt", "key": 7}})


NAIVE = datetime(2030, 1, 1)


def _takes_a_time() -> list[tuple[calls.Function[Any], str]]:
    functions = [value for value in vars(calls).values() if isinstance(value, calls.Function)]
    return [
        (function, name) for function in functions for name, kind in function._parameters.items() if "timestamp" in kind
    ]


@pytest.mark.parametrize(("function", "name"), _takes_a_time())
def test_a_time_without_a_zone_is_refused_by_every_call(function: calls.Function[Any], name: str) -> None:
    with pytest.raises(InvalidArgument, match=f"{name} must have a time zone"):
        function(**{name: NAIVE})
    assert function(**{name: NAIVE.replace(tzinfo=timezone(timedelta(hours=9)))}).parameters


def test_a_time_without_a_zone_is_refused_where_it_is_given(tide: Tidebase) -> None:
    def workflow(run: Run, _: Any) -> None:
        with pytest.raises(InvalidArgument, match="at must have a time zone"):
            run.state.get(at=NAIVE)

    tide.run("w", workflow, run_id="r")
    for use in (
        lambda: tide.run("w", _child, deadline=NAIVE),
        lambda: tide.runs.create("w", deadline=NAIVE),
        lambda: tide.runs.list(created_after=NAIVE),
        lambda: tide.runs.list(created_before=NAIVE),
        lambda: tide.runs.state("r", at=NAIVE),
    ):
        with pytest.raises(InvalidArgument, match="must have a time zone"):
            use()
    with pytest.raises(InvalidArgument, match="deadline must be a datetime"):
        tide.runs.create("w", deadline="tomorrow")  # type: ignore[arg-type]


@pytest.mark.parametrize("target", [{"type": "file", "id": "a"}, "ab", ("file",), ("file", 1), ("file", "a", "b")])
def test_the_target_of_a_snapshot_is_a_type_and_an_id(tide: Tidebase, target: Any) -> None:
    def workflow(run: Run, _: Any) -> None:
        for use in (lambda: run.snapshots.create("l", {}, target=target), lambda: run.snapshots.list(target=target)):
            with pytest.raises(TypeError, match="a type and an id"):
                use()

    tide.run("w", workflow, run_id="r")
    assert tide.runs.snapshots("r") == []
