"""Bad input ends in a clear error, or comes back equal; and what was there before is still there after it."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from tidebase import InvalidArgument, NotSerializable, Run, Tidebase, TidebaseError

from .conftest import on_newest_only

ON_NEWEST = True

BIG = "x" * 10_000_000
TEXTS: dict[str, str] = {
    "empty": "",
    "blank": " \t\n",
    "10 MB": BIG,
    "NUL": "a\0b",
    "surrogate": "a\ud800",
    "sql": "'; drop table tidebase.runs; --",
    "quotes": "\"'`$$",
    "lines": "a\nb",
    "emoji": "🌊" * 40,
    "percent": "%s %(x)s {} \\",
}
PLACES: dict[str, Callable[[Tidebase, str], Any]] = {
    "run id": lambda tide, text: tide.runs.create("w", run_id=text).run_id,
    "workflow": lambda tide, text: tide.runs.create(text).workflow,
    "step": lambda tide, text: _session(tide, lambda run: run.step(text, lambda: text)),
    "input and output": lambda tide, text: _session(tide, lambda run: run.step("s", lambda: text, input=text)),
    "key of an object": lambda tide, text: _session(tide, lambda run: next(iter(run.step("s", lambda: {text: 1})))),
    "event type": lambda tide, text: _session(tide, lambda run: (run.emit(text), _last(tide).type)[1]),
    "event payload": lambda tide, text: _session(tide, lambda run: (run.emit("x", text), _last(tide).payload)[1]),
    "side effect": lambda tide, text: _session(tide, lambda run: _contract(tide, run, side_effects=[text])),
    "idempotency key": lambda tide, text: _session(tide, lambda run: _contract(tide, run, idempotency_key=text)),
    "gate": lambda tide, text: _session(tide, lambda run: (run.gates.begin(text), tide.gates.list()[0].name)[1]),
    "prompt": lambda tide, text: _session(
        tide, lambda run: (run.gates.begin("g", text), tide.gates.list()[0].prompt)[1]
    ),
}


def _session(tide: Tidebase, work: Callable[[Run], Any]) -> Any:
    with tide.runs.attach("w", run_id="r") as session:
        return work(session)


def _last(tide: Tidebase) -> Any:
    return list(tide.runs.events("r"))[-1]


def _contract(tide: Tidebase, run: Run, **contract: Any) -> Any:
    run.step("s", lambda: 1, **contract)
    info = tide.runs.steps("r")[0]
    return (info.side_effects or [info.idempotency_key])[0]


@on_newest_only
@pytest.mark.parametrize("place", PLACES)
def test_any_text_anywhere_is_refused_clearly_or_comes_back_equal(
    tide: Tidebase, db: psycopg.Connection[Any], place: str
) -> None:
    for kind, text in TEXTS.items():
        db.execute("truncate tidebase.runs, tidebase.edges, tidebase.run_heads, tidebase.attempts")
        db.execute("truncate tidebase.steps, tidebase.gates")
        db.execute("delete from tidebase.events")
        try:
            assert PLACES[place](tide, text) == text, kind
        except (InvalidArgument, NotSerializable) as error:
            assert str(error) and kind not in ("sql", "quotes", "emoji", "percent"), (kind, error)
        gaps = "select count(*), max(seq) from tidebase.events group by run_id having count(*) <> max(seq)"
        assert db.execute(gaps).fetchall() == []


@pytest.mark.parametrize(
    "call",
    [
        "acquire_run('r', 'w', '1000 years')",
        "acquire_run('r', 'w', '-1 day')",
        "acquire_run('r', null)",
        "renew_lease('r', 1, '178000000 years')",
        "begin_step('r', 1, 's', timeout => '1000 years')",
        "begin_step('r', 1, 's', retries => 2147483647)",
        "begin_step('r', 1, null)",
        "create_run(null)",
        "create_run('w', run_id => '')",
        "create_run('w', metadata => '1')",
        "append_event('r', 1, null)",
        "read_events('r', max => 2147483647)",
        "watch_run('r', '1000 years')",
        "open_gate('r', 1, null)",
        "start_timer('r', 1, 't', '1000 years')",
        "list_runs(max => -1)",
    ],
)
def test_an_absurd_argument_is_an_invalid_argument(db: psycopg.Connection[Any], call: str) -> None:
    db.execute("select tidebase.create_run('w', run_id => 'r')")
    with pytest.raises(psycopg.Error) as caught:
        db.execute(f"select tidebase.{call}")
    assert caught.value.sqlstate == "TB002"
    assert json.loads(caught.value.diag.message_detail or "")["parameter"]


@pytest.mark.parametrize("token", [None, -1, 0, 2, 2**63 - 1])
def test_no_other_token_passes(db: psycopg.Connection[Any], token: int | None) -> None:
    db.execute("select tidebase.create_run('w', run_id => 'r')")
    db.execute("select tidebase.acquire_run('r', 'w')")
    with pytest.raises(psycopg.Error) as caught:
        db.execute("select tidebase.begin_step('r', %s::bigint, 's')", [token])
    assert caught.value.sqlstate == "TB003"


def test_deep_nesting_is_refused_by_the_worker_and_by_the_database(tide: Tidebase, db: psycopg.Connection[Any]) -> None:
    deep: Any = 1
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(NotSerializable, match="deep"):
        _session(tide, lambda run: run.step("s", lambda: deep))
    with pytest.raises(psycopg.errors.StatementTooComplex):
        db.execute("select tidebase.create_run('w', %s::jsonb)", ["[" * 100_000 + "]" * 100_000])
    moderate: Any = 1
    for _ in range(200):
        moderate = {"k": [moderate]}
    assert _session(tide, lambda run: run.step("m", lambda: moderate, input=moderate)) == moderate


def test_numbers_keep_their_value(tide: Tidebase) -> None:
    numbers = [0, -0.0, 1.0, 1e22, 1e-300, 2**200, -(10**100), 0.1, 1.7976931348623157e308]
    assert _session(tide, lambda run: run.step("s", lambda: numbers, input=numbers)) == numbers


def test_an_output_of_20_mb_is_kept(tide: Tidebase) -> None:
    output = {"parts": ["é" * 5_000_000, "y" * 10_000_000]}
    assert _session(tide, lambda run: run.step("s", lambda: output)) == output
    assert _session(tide, lambda run: run.step("s", lambda: 1 / 0)) == output  # type: ignore[comparison-overlap]


def test_every_error_of_the_wrapper_is_its_own(tide: Tidebase) -> None:
    for call in (
        lambda: tide.runs.get("none"),
        lambda: tide.runs.list(max=10**6),
        lambda: tide.runs.list(max=2**40),
        lambda: list(tide.runs.events("none")),
        lambda: tide.runs.cancel("none"),
        lambda: tide.runs.create("w", metadata=[1]),  # type: ignore[arg-type]
        lambda: tide.runs.create("w", max_attempts=0),
        lambda: tide.run("w", lambda run, input: 1, run_id="x", input=float("nan")),
    ):
        with pytest.raises(TidebaseError) as caught:
            call()
        assert str(caught.value)
