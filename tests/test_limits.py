"""Whatever is passed for a parameter of a public function, what is stored stays what every client can read and a page
can hold; and the error of what is refused is short. Over the catalogue: a new parameter is looked at at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import psycopg
import pytest
from psycopg.types.json import Jsonb

from tests.torture.races import AT_WORK, CHILD, statement_of
from tidebase import Tidebase
from tidebase.client.tide import Bound

#: For each public function arguments with which it does its work on the run of AT_WORK.
CALLS: dict[str, dict[str, str]] = {
    "acquire_run": {"run_id": "'free'", "holder": "'b'"},
    "add_channel": {"run_id": "'r'", "url": "'http://x'", "events": "array['x']"},
    "append_event": {"run_id": "'r'", "token": "1", "type": "'t'"},
    "claim_thread": {"run_id": "'r'", "token": "1", "thread_id": "'t'"},
    "copy_thread": {"source_thread_id": "'t'", "target_thread_id": "'new'"},
    "delete_checkpoints_of_runs": {"run_ids": "array['lg']"},
    "delete_thread": {"thread_id": "'t'"},
    "get_checkpoint": {"thread_id": "'t'"},
    "get_checkpoint_beyond": {"thread_id": "'t'", "known": "array[1]", "versions": "array['v']"},
    "has_checkpoint": {"thread_id": "'t'", "namespace": "''", "checkpoint_id": "'c'"},
    "list_checkpoints": {},
    "prune_threads": {"thread_ids": "array['t']"},
    "put_checkpoint": {"thread_id": "'t'", "namespace": "''", "checkpoint_id": "'d'", "parent_id": "'c'"}
    | {"type": "'x'", "content": "'x'", "metadata": "'{}'"},
    "put_checkpoint_writes": {"thread_id": "'t'", "namespace": "''", "checkpoint_id": "'c'", "task_id": "'k'"}
    | {"task_path": "''", "idxs": "array[0]", "channels": "array['c']", "types": "array['x']"}
    | {"contents": "array['x'::bytea]"},
    "backfill_schedule": {"name": "'s'", "since": "'2024-01-01 00:00+00'", "until": "'2024-01-01 01:00+00'"},
    "cancel_runs": {"queue": "'q'"},
    "claim_runs": {},
    "delete_schedule": {"name": "'s'"},
    "enqueue_run": {"workflow": "'w'"},
    "enqueue_runs": {"runs": """'[{"workflow": "w"}]'"""},
    "move_runs": {"to_queue": "'q'", "queue": "'default'"},
    "next_fires": {"cron": "'* * * * *'"},
    "next_ready": {"queues": "array['q']"},
    "ready_in": {"queues": "array['q']"},
    "measure": {},
    "claim_invocations": {},
    "finish_invocation": {"run_id": "'told'", "invocation": "1", "delivered": "true"},
    "pause_queue": {"queue": "'q'"},
    "put_queue": {"queue": "'q'"},
    "put_schedule": {"name": "'new'", "workflow": "'w'", "every": "'1 hour'"},
    "resume_queue": {"queue": "'q'"},
    "retry_runs": {"workflow": "'w'"},
    "trigger_schedule": {"name": "'s'"},
    "begin_step": {"run_id": "'r'", "token": "1", "name": "'new'", "retries": "1"},
    "begin_step_with": {"run_id": "'r'", "token": "1", "name": "'new'", "input_hash": "'h'"},
    "cancel_run": {"run_id": "'r'"},
    "check_invariants": {},
    "claim_channel_deliveries": {},
    "claim_deliveries": {},
    "compact_run": {"run_id": "'gone'"},
    "complete_run": {"run_id": CHILD.replace("{r}", "r"), "token": "1"},
    "complete_runs": {"run_ids": "array['r']", "tokens": "array[1]"},
    "complete_step": {"run_id": "'r'", "token": "1", "name": "'plain'"},
    "count_runs": {},
    "create_child": {"run_id": "'r'", "token": "1", "name": "'new'", "workflow": "'w'"},
    "create_run": {"workflow": "'w'"},
    "create_snapshot": {"run_id": "'r'", "token": "1", "label": "'l'"},
    "decide_gate": {"run_id": "'r'", "name": "'g'", "decision": "'approved'"},
    "diff_runs": {"run_id": "'r'", "other_run_id": "'over'"},
    "fail_run": {"run_id": CHILD.replace("{r}", "r"), "token": "1"},
    "fail_step": {"run_id": "'r'", "token": "1", "name": "'plain'"},
    "find_run": {"prefix": "'r'"},
    "finish_channel_delivery": {"run_id": "'r'", "channel": "1", "attempt": "0", "delivered": "false"},
    "finish_delivery": {"run_id": "'r'", "delivery": "1", "attempt": "0", "delivered": "false"},
    "finish_recovery": {"run_id": "'r'", "recovery": "1", "status": "'failed'"},
    "fork_run": {"run_id": "'r'"},
    "get_gate": {"run_id": "'r'", "name": "'g'"},
    "get_gate_secret": {"run_id": "'r'", "name": "'g'"},
    "get_run": {"run_id": "'r'"},
    "get_state": {"run_id": "'r'"},
    "list_channels": {"run_id": "'r'"},
    "list_gates": {},
    "list_inbox": {},
    "list_runs": {},
    "move_run": {"run_id": "'free'", "to_queue": "'q'"},
    "search_runs": {},
    "list_snapshots": {"run_id": "'r'"},
    "list_state_versions": {"run_id": "'r'"},
    "load_checkpoints": {"run_id": "'r'"},
    "merge_state": {"run_id": "'r'", "token": "1", "members": "'{\"n\": 2}'"},
    "new_run_id": {},
    "open_gate": {"run_id": "'r'", "token": "1", "name": "'new'", "timeout": "'1 day'"},
    "patch_state": {"run_id": "'r'", "token": "1", "patch": "'{\"n\": 2}'"},
    "protocol": {},
    "require_bucket": {"bucket": 7},
    "shard_map": {},
    "shard_epoch": {},
    "purge_runs": {"older_than": "'1 day'"},
    "read_events": {"run_id": "'r'"},
    "reconcile": {},
    "record_recovery": {"run_id": "'r'"},
    "record_step": {"run_id": "'r'", "token": "1", "name": "'new'"},
    "record_steps": {"run_id": "'r'", "token": "1", "steps": '\'[{"name": "new"}]\''},
    "record_steps_of_runs": {"runs": '\'[{"run_id": "r", "token": 1, "steps": [{"name": "new"}]}]\''},
    "record_usage": {"run_id": "'r'", "token": "1"},
    "recover_run": {"run_id": "'over'"},
    "release_run": {"run_id": "'r'", "token": "1"},
    "remove_channel": {"run_id": "'r'", "channel": "1"},
    "renew_lease": {"run_id": "'r'", "token": "1"},
    "renew_leases": {"run_ids": "array['r']", "tokens": "array[1]"},
    "resolve_review": {"run_id": "'r'", "step": "'broken'", "decision": "'retry'"},
    "restore_state": {"run_id": "'r'", "token": "1", "version": "1"},
    "retry_channel": {"run_id": "'r'", "channel": "1"},
    "run_tree": {"run_id": "'r'"},
    "save_state": {"run_id": "'r'", "token": "1", "label": "'l'"},
    "set_budget": {"run_id": "'r'"},
    "set_state": {"run_id": "'r'", "token": "1", "value": "'1'"},
    "start_timer": {"run_id": "'r'", "token": "1", "name": "'t'", "duration": "'1 day'"},
    "suspend_for_children": {"run_id": "'r'", "token": "1", "names": "array['c']"},
    "suspend_run": {"run_id": "'r'", "token": "1", "name": "'g'"},
    "watch_run": {"run_id": "'r'"},
    "withdraw_grant": {"run_id": "'r'", "request_id": "'grant'"},
}

HUGE = "repeat('x', 5000000)"
#: SQL expressions that are too much of their type.
TOO_MUCH: dict[str, tuple[str, ...]] = {
    "text": (HUGE,),
    "text[]": (f"array[{HUGE}]", "array_fill('x'::text, array[1000000])"),
    "jsonb": (
        "'1e5000'",
        "('[' || repeat('1e131071, ', 5600) || '1]')::jsonb",
        "('[' || repeat('1e-16000, ', 60000) || '1]')::jsonb",
        "(repeat('[', 3000) || repeat(']', 3000))::jsonb",
        "(repeat('{\"k\": ', 3000) || '1' || repeat('}', 3000))::jsonb",
        "jsonb_build_object('k', '1e5000'::jsonb)",
        "jsonb_build_object('k', (repeat('[', 3000) || repeat(']', 3000))::jsonb)",
    ),
    "jsonb[]": ("array['1e5000'::jsonb]", "array_fill('1'::jsonb, array[1000000])"),
    "interval": ("'200000 years'", "'-200000 years'"),
    "timestamp with time zone": ("'infinity'", "'-infinity'", "'200000-01-01 00:00+00'", "'4000-01-01 00:00+00 BC'"),
    "numeric": ("'NaN'", "'Infinity'", "'1e5000'", "'-1e5000'", "'1e-10000'"),
    "bigint": ("'9223372036854775807'", "'-9223372036854775808'"),
    "bigint[]": ("array_fill(1::bigint, array[1000000])",),
    "integer": ("'2147483647'", "'-2147483648'"),
    "boolean": (),
}

PARAMETERS = """
select p.proname, a.name, format_type(a.type, null)
from pg_proc p, unnest(p.proargnames, coalesce(p.proallargtypes, p.proargtypes::oid[]), p.proargmodes)
  with ordinality a (name, type, mode, place)
where p.pronamespace = 'tidebase'::regnamespace and p.prokind = 'f' and coalesce(a.mode, 'i') in ('i', 'b')
order by p.proname, a.place"""

PRINTED = """
select string_agg(format('select %1$L, max(octet_length(t::text)) from tidebase.%1$I t', c.relname), ' union all ')
from pg_class c where c.relnamespace = 'tidebase'::regnamespace and c.relkind = 'r'"""

ON_NEWEST = True


@pytest.fixture
def world(db: psycopg.Connection[Any]) -> Iterator[psycopg.Connection[Any]]:
    """A run r with something of everything, and one that is new, one that has failed and one that is cancelled."""
    for call in AT_WORK:
        db.execute(statement_of(call.replace("{r}", "r")))
    for name in ("free", "over", "gone"):
        db.execute("select tidebase.create_run('w', run_id => %s)", [name])
    db.execute("select tidebase.cancel_run('gone')")
    db.execute("select tidebase.acquire_run('over', 'a')")
    db.execute("select tidebase.fail_run('over', 1)")
    db.execute("select tidebase.put_schedule('s', 'w', '0 * * * *')")
    db.execute("select tidebase.put_queue('pushed', endpoint => 'http://127.0.0.1:9/')")
    db.execute("select tidebase.enqueue_run('w', queue => 'pushed', run_id => 'told')")
    db.execute("select tidebase.claim_invocations()")
    db.execute("select tidebase.put_checkpoint('t', '', 'c', 'x', 'x', '{}')")
    yield db


def refusal(db: psycopg.Connection[Any], function: str, arguments: dict[str, str]) -> Exception | None:
    """Why a call is refused; None if it is not, and then nothing that it stored is large. It is taken back."""
    given = ", ".join(f"{name} => {value}" for name, value in arguments.items())
    with db.transaction(force_rollback=True):
        try:
            with db.transaction():
                db.execute(f"select tidebase.{function}({given})")
        except psycopg.Error as error:
            return error
        printed = db.execute(db.execute(PRINTED).fetchone()[0]).fetchall()  # type: ignore[index]
        large = [row for row in printed if (row[1] or 0) > 1_100_000]
        if large:
            return AssertionError(f"stored: {large}")
        for view in (
            "run_overview",
            "gate_overview",
            "step_timeline",
            "run_attempts",
            "usage_totals",
            "recovery_history",
        ):
            db.execute(f"select * from tidebase.{view}").fetchall()  # as any client of Python's reads it
    return None


def too_much(db: psycopg.Connection[Any], *kinds: str) -> Iterator[tuple[str, str, str, Exception | None]]:
    """Each value that is too much for each parameter of these types, and what came of it."""
    for function, parameter, kind in db.execute(PARAMETERS).fetchall():
        for value in TOO_MUCH[kind] if kind in kinds else ():
            yield function, parameter, value, refusal(db, function, {**CALLS[function], parameter: f"{value}::{kind}"})


def test_every_public_function_is_called_here_with_success(world: psycopg.Connection[Any]) -> None:
    """Otherwise a refusal below would say nothing about the value that is too much."""
    functions = {row[0] for row in world.execute(PARAMETERS)}
    assert functions <= set(CALLS)
    assert {function: refusal(world, function, CALLS[function]) for function in CALLS} == dict.fromkeys(CALLS)


@pytest.mark.parametrize(
    "kind", ["text", "text[]", "interval", "timestamp with time zone", "numeric", "bigint", "integer"]
)
def test_what_is_too_much_is_refused_in_a_few_words_or_not_stored(world: psycopg.Connection[Any], kind: str) -> None:
    wrong = []
    for *where, error in too_much(world, kind, "bigint[]" if kind == "bigint" else kind):
        if error is not None:
            state = getattr(error, "sqlstate", None) or ""
            if not state.startswith("TB") or len(str(error)) > 6000:
                wrong.append((*where, state, str(error)[:200]))
    assert wrong == []


def test_json_that_not_every_client_can_read_is_refused(world: psycopg.Connection[Any]) -> None:
    refused = [(*where, getattr(error, "sqlstate", "stored")) for *where, error in too_much(world, "jsonb")]
    assert [where for where in refused if where[-1] != "TB002"] == []


@pytest.mark.parametrize(
    "value",
    [
        [[[1]]] * 3000,
        {"k": ["é" * 10_000, 10**4299, -(10**4299), 1.5e-300] * 10},
        "7" * 100_000,
        [{"n": n, "text": "7" * 5000} for n in range(100)],
    ],
)
def test_what_is_merely_long_is_kept(world: psycopg.Connection[Any], value: Any) -> None:
    world.execute("select tidebase.complete_step('r', 1, 'plain', %s)", [Jsonb(value)])
    kept = world.execute("select output from tidebase.steps where run_id = 'r' and name = 'plain'").fetchone()
    assert kept == (value,)


UNREADABLE = {
    "timestamp with time zone": ("infinity", "-infinity", "200000-01-01 00:00+00"),
    "interval": ("170000000 years", "-170000000 years"),
    "jsonb": ("1e5000", "[" * 1500 + "]" * 1500),
}
STORED = """
select c.relname, a.attname, format_type(a.atttypid, null) from pg_attribute a join pg_class c on c.oid = a.attrelid
where c.relnamespace = 'tidebase'::regnamespace and c.relkind = 'r' and a.attnum > 0 and not a.attisdropped
  -- Nobody can pass those by which pages are cut and times are measured.
  and (c.relname, a.attname) not in (('runs', 'created_at'), ('steps', 'started_at'), ('steps', 'completed_at'))
order by 1, 2"""


def all_lists(bound: Bound) -> dict[str, int]:
    """Everything that shows many rows, and how many there are."""
    runs = bound.runs
    lists: dict[str, Sequence[Any]] = {
        "runs": runs.list(), "stalled": runs.stalled(), "gates": runs.gates("r"), "reviews": runs.reviews(),
        "events": list(runs.events("r")), "steps": runs.steps("r"), "attempts": runs.attempts("r"),
        "versions": runs.state_versions("r", with_value=True), "recoveries": runs.recoveries("r"),
        "channels": runs.channels("r"),
        "tree": runs.tree("r"), "usage": runs.usage_by_step("r"), "models": runs.usage_by_model("r"),
        "snapshots": runs.snapshots("r"), "one": [runs.get("r"), runs.size("r"), runs.usage("r")],
    }  # fmt: skip
    return {name: len(rows) for name, rows in lists.items()}


def test_one_value_that_cannot_be_read_hides_no_other(world: psycopg.Connection[Any], tide: Tidebase) -> None:
    """Whatever is in any column, as an earlier version or somebody's hand may have put it there."""
    bound, wrong, tried = tide.bind(world), [], 0
    before = all_lists(bound)
    for table, column, kind in world.execute(STORED).fetchall():
        for value in UNREADABLE.get(kind, ()):
            try:
                with world.transaction(force_rollback=True):
                    world.execute(f"update tidebase.{table} set {column} = '{value}'")
                    tried += 1
                    there = all_lists(bound)
            except psycopg.errors.IntegrityError:
                continue
            except Exception as error:
                wrong.append((table, column, value[:20], f"{type(error).__name__}: {error}"[:200]))
            else:
                wrong += [(table, column, value[:20], name) for name in before if there[name] < before[name]]
    assert tried > 100
    assert wrong == []
