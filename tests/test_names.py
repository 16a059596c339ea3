"""Names and keys of steps: each key has a spelling of its own, one name is one step, and what the database would refuse
is refused before anything is executed.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidebase import AsyncRun, AsyncTidebase, InvalidArgument, NotSerializable, Run, StepNotRunning, Tidebase, step
from tidebase.core import names

from .support.values import Colour, Level
from .test_step import Calls, resumed

ON_NEWEST = True

KEYS: list[tuple[Any, str]] = [
    ("a.example", "s[a.example]"),
    ("with space and é", "s[with space and é]"),
    ("2026-01-01", "s[2026-01-01]"),
    ("UUID", "s[UUID]"),
    (1, "s[1]"),
    ("1", 's["1"]'),
    (-1, "s[-1]"),
    ("-1", 's["-1"]'),
    (1.5, "s[1.5]"),
    ("1.5", 's["1.5"]'),
    (1e22, "s[1e+22]"),
    ("1e+22", 's["1e+22"]'),
    (True, "s[True]"),
    ("True", 's["True"]'),
    ("None", 's["None"]'),
    ("", 's[""]'),
    ("b]", 's["b\\u005d"]'),
    ('"', 's["\\""]'),
    ("(1)", 's["(1)"]'),
    ((1, "1", None), 's[(1, "1", None)]'),
    ((1,), "s[(1)]"),
    (("a", ("b", 2)), 's[("a", ("b", 2))]'),
    (UUID(int=1), 's[UUID("00000000-0000-0000-0000-000000000001")]'),
    (str(UUID(int=1)), "s[00000000-0000-0000-0000-000000000001]"),
    (date(2026, 1, 1), 's[date("2026-01-01")]'),
    (datetime(2026, 1, 1, tzinfo=timezone.utc), 's[datetime("2026-01-01T00:00:00+00:00")]'),
    (timedelta(seconds=1), 's[timedelta("1.0")]'),
    (Decimal("1.10"), 's[Decimal("1.10")]'),
    (Path("a/b"), 's[Path("a/b")]'),
    (b"\x00", 's[bytes("00")]'),
    (Colour.RED, 's[Enum("Colour.RED")]'),
    ("Colour.RED", "s[Colour.RED]"),
    (Level.LOW, "s[1]"),
]


@pytest.mark.parametrize(("key", "name"), KEYS, ids=[name for _, name in KEYS])
def test_a_key_is_spelled(key: Any, name: str) -> None:
    assert names.full_name("s", key) == name


scalars = (
    st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs",)), max_size=8)
    | st.sampled_from([name.split("[", 1)[1][:-1] for _, name in KEYS] + ["[", "]", '["', '"]', "(1, ", ", 3)"])
    | st.integers(-3, 20)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.booleans()
    | st.dates(date(2026, 1, 1), date(2026, 1, 2))
)
keys = scalars | st.lists(scalars | st.none(), max_size=3).map(tuple)


def identity(key: Any) -> Any:
    """A key with its type: 1, True and 1.0 are equal."""
    return [identity(item) for item in key] if isinstance(key, tuple) else (type(key).__name__, repr(key))


@given(st.lists(st.tuples(st.sampled_from(["s", 's["a', "s[(1, ", "s[a]", "s["]) | scalars.map(str), keys), min_size=2))
def test_no_two_keyed_steps_have_the_same_name(steps: list[tuple[str, Any]]) -> None:
    known: dict[str, Any] = {}
    for name, key in steps:
        assert known.setdefault(names.full_name(name, key), (name, identity(key))) == (name, identity(key))


class Thing:
    pass


@pytest.mark.parametrize(
    "key", [Thing(), float("nan"), float("inf"), [1], {"a": 1}, {1}, (Thing(),), len], ids=range(8)
)
def test_a_key_that_is_not_the_same_in_every_process_is_refused(tide: Tidebase, key: Any) -> None:
    def workflow(run: Run, _: Any) -> None:
        with pytest.raises(InvalidArgument, match="key must be"):
            run.step.options(key=key)("s", lambda x: x, 1)
        with pytest.raises(InvalidArgument, match="key must be"):
            run.transaction("s", key=key).__enter__()

    tide.run("w", workflow, run_id="r")
    assert tide.runs.steps("r") == []


BAD_NAMES = ["", "  ", "x" * 1025, "é" * 513, "a\0b", "\ud800", 1, None]


@pytest.mark.parametrize("mark_start", [None, True, False])
@pytest.mark.parametrize("name", BAD_NAMES, ids=lambda name: repr(name)[:12])
def test_a_name_that_is_not_allowed_is_refused_before_the_step_is_executed(
    tide: Tidebase, name: Any, mark_start: bool | None
) -> None:
    options: Any = {} if mark_start is None else {"mark_start": mark_start}
    executed: list[int] = []

    def workflow(run: Run, _: Any) -> None:
        with pytest.raises(InvalidArgument, match="step's name"):
            run.step.options(**options)(name, executed.append, 1)

    tide.run("w", workflow, run_id="r")
    assert executed == [] and tide.runs.steps("r") == []


def test_the_database_refuses_the_same_names(tide: Tidebase) -> None:
    """Those that it accepts are no stricter here: a name of 1,024 bytes, one of tabs."""

    def workflow(run: Run, _: Any) -> list[int]:
        return [run.step(name, lambda: 1) for name in ("x" * 1024, "é" * 512, "\t", "a[b]c")]

    assert tide.run("w", workflow) == [1] * 4


@pytest.mark.parametrize("mark_start", [None, True, False])
def test_an_input_that_cannot_be_stored_is_refused_before_the_step_is_executed(
    tide: Tidebase, db: Any, mark_start: bool | None
) -> None:
    db.execute("insert into tidebase_private.settings (name, value) values ('max_payload_bytes', '1000000')")
    options: Any = {} if mark_start is None else {"mark_start": mark_start}
    executed: list[int] = []

    def workflow(run: Run, _: Any) -> None:
        for value, error in (
            ("x" * 1_100_000, InvalidArgument),
            ("\0", NotSerializable),
            (float("nan"), NotSerializable),
            (Thing(), NotSerializable),
        ):
            with pytest.raises(error):
                run.step.options(input=value, **options)("s", executed.append, 1)

    tide.run("w", workflow, run_id="r")
    assert executed == [] and tide.runs.steps("r") == []


def test_a_result_that_the_database_cannot_hold_fails_the_step_without_retries(tide: Tidebase, db: Any) -> None:
    db.execute("insert into tidebase_private.settings (name, value) values ('max_payload_bytes', '1000000')")
    executed: list[int] = []

    def large() -> str:
        executed.append(1)
        return "x" * 1_100_000

    def workflow(run: Run, _: Any) -> None:
        with pytest.raises(InvalidArgument, match="output"):
            run.step("quick", large)
        with pytest.raises(InvalidArgument, match="output"):
            run.step("kept", large, retries=3, retry_delay_s=0)
        with pytest.raises(InvalidArgument, match="output"):
            run.step("unsafe", large, side_effects=["mail"])

    with pytest.raises(Exception):  # noqa: B017 - the unsafe step is in review
        tide.run("w", workflow, run_id="r")
    assert len(executed) == 3
    assert {info.name: info.status for info in tide.runs.steps("r")} == {
        "quick": "failed",
        "kept": "failed",
        "unsafe": "review",
    }


def test_a_result_of_a_run_that_the_database_cannot_hold_fails_the_run(tide: Tidebase, db: Any) -> None:
    db.execute("insert into tidebase_private.settings (name, value) values ('max_payload_bytes', '1000000')")
    with pytest.raises(InvalidArgument, match="result"):
        tide.run("w", lambda run, _: "x" * 1_100_000, run_id="r")
    assert tide.runs.get("r").status == "failed"


@pytest.mark.parametrize(
    ("key", "former"),
    [("1", "s[1]"), ("a[0]", "s[a[0]]"), ("True", "s[True]"), ("", "s[]"), ((1, "a"), "s[(1, 'a')]"),
     (UUID(int=1), f"s[{UUID(int=1)}]"), (Path("a/b"), "s[a/b]"), (Decimal("1.10"), "s[1.10]")],
    ids=str,
)  # fmt: skip
def test_a_run_that_is_under_way_finds_its_steps_by_the_names_of_earlier_versions(
    tide: Tidebase, key: Any, former: str
) -> None:
    calls = Calls()
    first = itertools.count()

    def workflow(run: Run, _: Any) -> Any:
        if next(first) == 0:
            return run.step(former, calls, input=1)  # so it was called
        return run.step.options(key=key, input=1)("s", calls)

    assert resumed(tide, "r", workflow) == {"calls": 1}
    assert len(calls) == 1 and [info.name for info in tide.runs.steps("r")] == [former]


def test_the_former_name_of_one_key_is_not_taken_from_another(tide: Tidebase) -> None:
    """A crash between the steps of the keys 1 and "1", which had the same name."""
    executed: list[Any] = []
    attempts = itertools.count()

    def workflow(run: Run, _: Any) -> list[Any]:
        first = run.step.options(key=1)("s", lambda: executed.append(1) or "number")
        if next(attempts) == 0:
            raise ConnectionResetError
        return [first, run.step.options(key="1")("s", lambda: executed.append("1") or "text")]

    with pytest.raises(ConnectionResetError):
        tide.run("w", workflow, run_id="r")
    assert tide.run("w", workflow, run_id="r") == ["number", "text"]
    assert executed == [1, "1"]


def test_a_plain_name_and_a_keyed_one_are_not_one_step(tide: Tidebase) -> None:
    def workflow(run: Run, _: Any) -> str:
        result = run.step("fetch[b]", lambda: "plain")
        with pytest.raises(StepNotRunning, match="two steps of this run"):
            run.step.options(key="b")("fetch", lambda: pytest.fail("executed"))
        return result

    assert tide.run("w", workflow) == "plain"


@step("decorated")
def decorated() -> int:
    return 1


def _block(run: Run) -> None:
    with run.transaction("s") as tx:
        tx.result = 1


TWICE: dict[str, Callable[[Run], Any]] = {
    "quick": lambda run: run.step("s", lambda: 1),
    "marked": lambda run: run.step("s", lambda: 1, retries=1),
    "hidden": lambda run: run.step("s", lambda: 1, mark_start=False),
    "keyed": lambda run: run.step.options(key=1)("s", lambda x: x, 1),
    "decorated": lambda run: decorated(),
    "block": lambda run: _block(run),
    "transaction": lambda run: run.transaction("s", lambda tx: 1),
    "join": lambda run: run.fanout("f", [{"name": "c", "workflow": lambda run, _: 1}]),
}


@pytest.mark.parametrize("kind", TWICE)
def test_one_name_twice_in_an_attempt_is_refused_executed_or_replayed(tide: Tidebase, kind: str) -> None:
    attempts: list[int] = []

    def workflow(run: Run, _: Any) -> None:
        TWICE[kind](run)
        with pytest.raises(StepNotRunning, match=r"was done in this attempt already\. .* run\.step\.options\(key="):
            TWICE[kind](run)
        attempts.append(len(tide.runs.steps("r")))
        if len(attempts) == 1:
            raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        tide.run("w", workflow, run_id="r")
    tide.run("w", workflow, run_id="r")
    assert attempts == [1, 1]


async def test_one_name_twice_is_refused_awaited(atide: AsyncTidebase) -> None:
    async def workflow(run: AsyncRun, _: Any) -> list[Any]:
        first = await run.step("s", lambda: 1)
        with pytest.raises(StepNotRunning, match="was done in this attempt already"):
            await run.step("s", lambda: 2)
        return [first]

    assert await atide.run("w", workflow) == [1]


def test_one_name_twice_is_refused_in_a_session(tide: Tidebase) -> None:
    with tide.runs.attach("w", run_id="r") as session:
        assert session.step("s", lambda: 1) == 1
        with pytest.raises(StepNotRunning, match="was done in this attempt already"):
            session.step("s", lambda: 2)
    with tide.runs.attach("w", run_id="r") as session:
        assert session.step("s", lambda: 3) == 1


def test_a_step_that_failed_may_be_done_again(tide: Tidebase) -> None:
    outcomes = iter([ValueError(), 7])

    def flaky() -> Any:
        outcome = next(outcomes)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def workflow(run: Run, _: Any) -> Any:
        try:
            return run.step("s", flaky)
        except ValueError:
            return run.step("s", flaky)

    assert tide.run("w", workflow) == 7
