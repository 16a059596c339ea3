"""State: every version reads back as it was written, whoever writes at once; and a history costs what changed."""

from __future__ import annotations

import json
import random
import string
from typing import Any

import json_merge_patch
import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tidebase import AsyncTidebase, LeaseLostError, NotFound, NotSerializable, Tidebase, VersionConflict

from .conftest import first_on_every_version
from .probes import state as probe_state
from .probes.support import Connection, call, connect, grant, new_run, values
from .support.amounts import EXAMPLES

ON_NEWEST = True

scalars = st.none() | st.booleans() | st.integers(-(10**20), 10**20) | st.text("ab\u00e9\U0001f600 ", max_size=6)
documents = st.recursive(
    scalars | st.sampled_from([0.5, 1e-7, 12345.678]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from("abcdxyz"), inner, max_size=4),
    max_leaves=12,
)


def test_a_merge_patch_does_what_a_published_implementation_does(db: Connection) -> None:
    """10,000 documents, in one query: half of the patches are made from the document that they are for."""
    rnd = random.Random(20)
    pairs = [(target := _document(rnd), _patch(rnd, target)) for _ in range(10_000)]
    texts = [(json.dumps(target), json.dumps(patch)) for target, patch in pairs]
    merged = values(
        db,
        "select tidebase_private.merge_patch(target::jsonb, patch::jsonb)::text"
        " from unnest(%s::text[], %s::text[]) with ordinality as t (target, patch, n) order by n",
        [target for target, _ in texts],
        [patch for _, patch in texts],
    )
    for (target, patch), text, (target_text, _) in zip(pairs, merged, texts, strict=True):
        assert json.loads(text) == json_merge_patch.merge(json.loads(target_text), patch), (target, patch)


def _document(rnd: random.Random, depth: int = 3) -> Any:
    kind = rnd.random()
    if depth and kind < 0.5:
        return {rnd.choice("abcdef"): _document(rnd, depth - 1) for _ in range(rnd.randrange(4))}
    if depth and kind < 0.65:
        return [_document(rnd, depth - 1) for _ in range(rnd.randrange(3))]
    return rnd.choice([None, True, 0, 1, 2.5, "", "text", "texts", -7])


def _patch(rnd: random.Random, target: Any) -> Any:
    if not isinstance(target, dict) or rnd.random() < 0.3:
        return _document(rnd)
    patch = {key: rnd.choice([None, _patch(rnd, value), _document(rnd)]) for key, value in target.items()}
    return {**patch, rnd.choice("abcdefg"): _document(rnd)}


PAIRS = st.lists(st.tuples(documents, documents), min_size=20, max_size=20)


def changes_agree(db: Connection, pairs: list[tuple[Any, Any]]) -> None:
    """For any three documents: the changes from one to the next lead to the last, one after the other or as one."""
    chain = [json.dumps(document) for pair in pairs for document in pair]
    wrong = db.execute(
        "with chain as (select d::jsonb as one, lead(d::jsonb) over w as two, lead(d::jsonb, 2) over w as three"
        "  from unnest(%s::text[]) with ordinality as t (d, n) window w as (order by n)),"
        " changes as (select *, tidebase_private.find_change(one, two) as first,"
        "  tidebase_private.find_change(two, three) as second from chain where three is not null)"
        " select * from changes where"
        "  case when first is null then one else tidebase_private.apply_change(one, first) end::text <> two::text or"
        "  case when first is null and second is null then one else tidebase_private.apply_change(one,"
        "    tidebase_private.compose_changes(first, second)) end::text <> three::text",
        [chain],
    ).fetchall()
    assert wrong == []


@settings(max_examples=EXAMPLES.test)
@given(PAIRS)
def test_changes_are_found_applied_and_composed(db: Connection, pairs: list[tuple[Any, Any]]) -> None:
    changes_agree(db, pairs)


@settings(max_examples=12)
@given(st.randoms(use_true_random=False))
def test_four_writers_at_once_against_a_model(database: str, rnd: random.Random) -> None:
    assert probe_state.four_writers(database, rnd, each=15) == []


def test_a_patch_is_compared_with_the_version_that_it_expects(database: str) -> None:
    assert probe_state.compare_and_set(database) == []


@pytest.mark.parametrize("kind", first_on_every_version(["members", "list", "text"]))
def test_a_history_costs_what_changed(db: Connection, kind: str) -> None:
    """Ten times as many changes of a large document store ten times as much, not a hundred times."""
    stored = [_bytes_of_history(db, kind, 50), _bytes_of_history(db, kind, 500)]
    assert stored[1] < 15 * stored[0], stored
    assert stored[1] < 1_250_000, stored  # 500 changes of 200 bytes to 100 KB


def _bytes_of_history(db: Connection, kind: str, changes: int) -> int:
    """Whole histories in the database's own hands: what it stores for so many changes of 200 bytes to 100 KB."""
    run_id = new_run(db)
    grant(db, run_id)
    rnd = random.Random(7)
    word = "".join(rnd.choices(string.ascii_letters, k=100_000))
    document: Any = {"members": {f"k{n}": word[n * 100 : n * 100 + 90] for n in range(1000)}, "list": {"all": [word]}}
    call(db, "set_state", run_id=run_id, token=1, value=json.dumps(document.get(kind, {"all": word})))
    patch = {
        "members": "jsonb_build_object('k' || n %% 700, repeat(md5(n::text), 6))",
        "list": "jsonb_build_object('all', tidebase_private.growing(n))",
        "text": "jsonb_build_object('all', %s || repeat(md5('x'), 6 * n))",
    }[kind]
    db.execute("""create or replace function tidebase_private.growing(n integer) returns jsonb language sql as $$
        select jsonb_agg(repeat(md5(i::text), 6) order by i) from generate_series(1, n) i $$""")
    arguments = [word] if kind == "text" else []
    db.execute(
        f"select tidebase.patch_state(%s, 1, {patch}) from generate_series(1, {changes}) n",  # type: ignore[arg-type]
        [run_id, *arguments],
    )
    [size] = values(db, "select state_bytes from tidebase.run_sizes where run_id = %s", run_id)
    return int(size)


def test_a_version_is_read_from_a_few_rows(db: Connection) -> None:
    """The chain to the whole document has at most as many links as its length has bits."""
    run_id = new_run(db)
    grant(db, run_id)
    call(db, "set_state", run_id=run_id, token=1, value=json.dumps({"text": "x" * 50_000}))
    db.execute(
        "select tidebase.patch_state(%s, 1, jsonb_build_object('n', n)) from generate_series(1, 300) n", [run_id]
    )
    [longest] = values(
        db,
        "with recursive chain as (select version, base, 1 as length from tidebase.state_versions where run_id = %s"
        " union all select c.version, v.base, c.length + 1 from chain c"
        " join tidebase.state_versions v on v.run_id = %s and v.version = c.base)"
        " select max(length) from chain",
        run_id,
        run_id,
    )
    assert longest <= 1 + (300).bit_length()


def test_the_live_state_of_a_run(tide: Tidebase) -> None:
    def work(run: Any, _: Any) -> Any:
        assert run.state.get() is None and run.state.get(default=7) == 7
        assert run.state.set({"progress": 0, "todo": ["a", "b"]}) == 1
        assert run.state.patch({"progress": 0.5, "todo": None}, reason="half", importance="milestone") == 2
        assert run.state.save("before the end", metadata={"by": "test"}) == 3
        with pytest.raises(VersionConflict):
            run.state.set(0, expected_version=2)
        assert run.state.set([1.0], stream="other", expected_version=0) == 1
        assert run.state.restore(1) == 4
        with pytest.raises(NotFound):
            run.state.restore(label="nowhere")
        with pytest.raises(NotSerializable, match="NUL"):
            run.state.set({"a": "\0"})
        assert run.state.get(label="before the end") == run.state.get(version=2) == {"progress": 0.5}
        return [version.operation for version in run.state.versions("main")]

    assert tide.run("w", work, run_id="r") == ["restore", "save", "patch", "set"]
    patched = tide.runs.state("r", version=2)
    assert (patched.value, patched.reason, patched.importance) == ({"progress": 0.5}, "half", "milestone")
    assert tide.runs.state("r", seq=patched.seq - 1).version == tide.runs.state("r", at=patched.created_at).version - 1
    labeled = tide.runs.state_versions("r", labeled=True, with_value=True)
    assert [(v.label, v.value, v.metadata) for v in labeled] == [("before the end", {"progress": 0.5}, {"by": "test"})]
    assert [event.type for event in tide.runs.events("r")][2:5] == ["state.updated", "state.updated", "state.saved"]


async def test_the_same_names_awaited(atide: AsyncTidebase) -> None:
    async def work(run: Any, _: Any) -> Any:
        await run.state.set({"a": 1})
        await run.state.patch({"b": 2})
        await run.state.save("both")
        await run.state.restore(1)
        assert await run.state.get() == {"a": 1}
        await run.snapshots.create("file", {"text": "x"}, target=("file", "a"))
        assert [s.label for s in await run.snapshots.list()] == ["file", "both"]
        return len(await run.state.versions("main"))

    assert await atide.run("w", work, run_id="r") == 4
    assert (await atide.runs.state("r", label="both")).value == {"a": 1, "b": 2}
    assert len(await atide.runs.state_versions("r")) == 5
    assert (await atide.runs.snapshots("r", target=("file", "a")))[0].value == {"text": "x"}


def test_state_is_written_once_inside_and_outside_of_a_step(tide: Tidebase, db: Connection) -> None:
    """Outside of one, a resumed run comes by again; see ``test_recall``."""

    def work(run: Any, _: Any) -> None:
        run.state.set("outside")
        run.step("inside", lambda: run.state.set("inside", stream="step"))
        if run.attempt == 1:
            raise RuntimeError("once")

    with pytest.raises(RuntimeError):
        tide.run("w", work, run_id="r")
    tide.run("w", work, run_id="r")
    assert [v.version for v in tide.runs.state_versions("r", "main")] == [1]
    assert [v.version for v in tide.runs.state_versions("r", "step")] == [1]


def test_a_zombie_writes_no_state(tide: Tidebase, db: Connection) -> None:
    session = tide.runs.attach("w", run_id="r")
    session.state.set({"mine": True})
    db.execute("update tidebase.run_heads set lease_expires_at = clock_timestamp()")
    grant(db, "r", "successor")
    for write in (
        lambda: session.state.set({"mine": False}),
        lambda: session.state.patch({"mine": False}),
        lambda: session.state.save("mine"),
        lambda: session.state.restore(1),
        lambda: session.snapshots.create("mine"),
    ):
        with pytest.raises(LeaseLostError):
            write()
    assert tide.runs.state("r").value == {"mine": True} and tide.runs.state("r").version == 1


@pytest.mark.parametrize("depth", [60, 499])
def test_a_document_may_be_nested_deeper_than_functions_can_call_themselves(tide: Tidebase, depth: int) -> None:
    deep: Any = 0
    for _ in range(depth):
        deep = {"d": deep}
    session = tide.runs.attach("w", run_id="r")
    session.state.set(json.loads("0"))
    connection = tide._database
    text = '{"d":' * depth + "%s" + "}" * depth
    from tidebase.domain import calls  # the codec of Python itself does not go so deep

    for number in (1, 2):
        write = calls.set_state(run_id="r", token=session.token, value=text % number)
        assert connection.execute(write) == number + 1
    with psycopg.connect(tide.url) as plain:
        row = plain.execute("select (tidebase.get_state('r')).value = %s::jsonb", [text % 2]).fetchone()
    assert row == (True,)


def test_what_cannot_be_written_is_refused_and_nothing_is_lost(db: Connection, database: str) -> None:
    run_id = new_run(db)
    grant(db, run_id)
    call(db, "set_state", run_id=run_id, token=1, value='{"a": 1}')
    deep = '{"d":' * 6000 + "1" + "}" * 6000
    with connect(database) as other:
        for value in ('"\\u0000"', '"\\ud800"', "nan", "{", ""):
            with pytest.raises(psycopg.Error):
                call(other, "patch_state", run_id=run_id, token=1, patch=value)
        with pytest.raises(psycopg.Error, match="500 levels"):
            call(other, "patch_state", run_id=run_id, token=1, patch=deep)
        big = json.dumps({"big": "x" * 10_000_000})
        assert call(other, "patch_state", run_id=run_id, token=1, patch=big) == 2
        assert call(other, "patch_state", run_id=run_id, token=1, patch='{"big": null}') == 3
    assert call(db, "get_state", run_id=run_id)["value"] == {"a": 1}
