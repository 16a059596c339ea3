"""Attempts to get more out of the functions than they are for, from real sessions of members of the roles.

The functions run with their owner's rights, in a session that belongs to the caller: its search_path, its settings, its
temporary objects. So a scenario that calls every function is executed in sessions that are prepared to mislead them,
and must answer and store what it does in an honest one; and what a member tries beside the functions is refused.
"""

from __future__ import annotations

import itertools
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql

from .conftest import first_on_every_version, long, on_every_version, on_newest, on_newest_only
from .probes.kernel import functions
from .probes.support import Connection, attempt, connect, image_of, poll, value, values

ALL = ("worker", "approver", "operator", "reader")
SCHEMAS = "('tidebase'::regnamespace, 'tidebase_private'::regnamespace)"


@contextmanager
def member(db: Connection, url: str, *roles: str, name: str = "mallory", **options: Any) -> Iterator[Connection]:
    """A session of a user who is a member of these roles only, but may make schemas of his own."""
    database = url.partition("?")[0].rpartition("/")[2]
    user = sql.Identifier(f"{name}_{database}")
    db.execute(sql.SQL("create role {} login").format(user))
    db.execute(sql.SQL("grant create on database {} to {}").format(sql.Identifier(database), user))
    for role in roles:
        db.execute(sql.SQL("grant {} to {}").format(sql.Identifier(f"tidebase_{role}"), user))
    try:
        with connect(url.replace("postgres@", f"{name}_{database}@"), **options) as connection:
            yield connection
    finally:
        # A session that ends drops what is temporary, which would meet whoever drops the same.
        sessions = "select pid from pg_stat_activity where usename = %s"
        poll("his session has ended", lambda: not values(db, sessions, f"{name}_{database}"))
        db.execute(sql.SQL("drop owned by {} cascade").format(user))
        db.execute(sql.SQL("drop role {}").format(user))


# --- What an honest session sees --------------------------------------------------------------------------------------

#: Each function at least once, in the order of a run's life; {} is the run. Literals are typed by the functions alone.
SCENARIO: list[tuple[str, dict[str, Any]]] = [
    (
        "create_run",
        {"workflow": "w {}", "input": '{"q": 1.50}', "run_id": "{}", "budget": '{"tokens": 1000}', "max_attempts": 3}
        | {
            "deadline": "2100-01-01 00:00:00+00",
            "recovery_webhook": "http://hook.test",
            "metadata": '{"a": "\\"x\\""}',
        },
    ),
    ("create_run", {"workflow": "another", "run_id": "{}"}),
    ("acquire_run", {"run_id": "{}", "holder": "h", "code_version": "v", "request_id": "1", "ttl": "1 hour"}),
    ("acquire_run", {"run_id": "{}", "holder": "somebody else"}),
    ("watch_run", {"run_id": "{}", "ttl": "10 seconds"}),
    ("claim_thread", {"run_id": "{}", "token": 1, "thread_id": "claimed by {}"}),
    ("renew_lease", {"run_id": "{}", "token": 1, "ttl": "1 hour"}),
    ("renew_lease", {"run_id": "{}", "token": 7}),
    ("renew_leases", {"run_ids": ["{}", "none"], "tokens": [1, 1], "ttl": "1 hour"}),
    (
        "begin_step",
        {"run_id": "{}", "token": 1, "name": "a", "input": '{"x": 10.0, "y": "1.0", "z": "\\"2.50"}', "retries": 2}
        | {"side_effects": ["write"], "idempotency_key": "k", "timeout": "1 minute", "replay": "manual"},
    ),
    (
        "begin_step_with",
        {"run_id": "{}", "token": 1, "name": "of the SDK", "input": '{"x": 1.0}', "input_hash": "h"}
        | {"options": '{"sideEffect": "read", "credentials": [{"name": "mail"}], "retries": 1.0, "verifiedBy": [1]}'},
    ),
    ("begin_step_with", {"run_id": "{}", "token": 1, "name": "of the SDK", "input_hash": "another"}),
    ("complete_step", {"run_id": "{}", "token": 1, "name": "a", "output": '{"out": [1, 2.50, "1.0"]}'}),
    ("begin_step", {"run_id": "{}", "token": 1, "name": "a", "input": '{"z": "\\"2.50", "y": "1.0", "x": 10}'}),
    ("begin_step", {"run_id": "{}", "token": 1, "name": "a", "input": '{"z": "\\"2.5", "y": "1.0", "x": 10}'}),
    ("begin_step", {"run_id": "{}", "token": 1, "name": "b", "retries": 1}),
    ("fail_step", {"run_id": "{}", "token": 1, "name": "b", "error": '{"message": "no"}'}),
    (
        "record_step",
        {"run_id": "{}", "token": 1, "name": "c", "input": "5.0", "output": '"c"', "duration": "2 s"}
        | {"log_start": True},
    ),
    ("record_steps", {"run_id": "{}", "token": 1, "steps": '[{"name": "d", "input": 5.0, "output": 1.50}]'}),
    ("record_steps_of_runs", {"runs": '[{"run_id": "{}", "token": 1, "steps": [{"name": "e"}]}]'}),
    ("append_event", {"run_id": "{}", "token": 1, "type": "agent.note", "payload": '{"n": 1.0}', "request_id": "e"}),
    ("append_event", {"run_id": "{}", "token": 1, "type": "agent.note", "payload": '{"n": 2}', "request_id": "e"}),
    ("append_event", {"run_id": "{}", "token": 1, "type": "runner", "payload": "null", "transient": True}),
    ("append_event", {"run_id": "{}", "token": 1, "type": "run.completed"}),
    ("append_event", {"run_id": "{}", "token": 1, "type": ""}),
    ("append_event", {"run_id": "{}", "token": None, "type": "agent.note"}),
    ("set_state", {"run_id": "{}", "token": 1, "value": '{"list": [1, 2], "text": "ab"}', "label": "first"}),
    ("patch_state", {"run_id": "{}", "token": 1, "patch": '{"list": [1, 2, 3.0], "gone": null, "new": {"a": {}}}'}),
    ("merge_state", {"run_id": "{}", "token": 1, "members": '{"new": null}'}),
    ("save_state", {"run_id": "{}", "token": 1, "label": "saved"}),
    ("restore_state", {"run_id": "{}", "token": 1, "label": "first"}),
    ("get_state", {"run_id": "{}", "version": 2}),
    ("list_state_versions", {"run_id": "{}", "with_value": True}),
    ("create_snapshot", {"run_id": "{}", "token": 1, "label": "snap"}),
    ("list_snapshots", {"run_id": "{}"}),
    (
        "record_usage",
        {"run_id": "{}", "token": 1, "model": "m", "input_tokens": 3, "output_tokens": 4, "cost_usd": "0.5"}
        | {"response_id": "x", "metadata": '{"a": null}'},
    ),
    ("set_budget", {"run_id": "{}", "tokens": 2000, "actor": "ops"}),
    ("create_child", {"run_id": "{}", "token": 1, "name": "child", "workflow": "below", "input": '{"c": 1.0}'}),
    ("run_tree", {"run_id": "{}"}),
    ("new_run_id", {"beside": "{}"}),
    ("suspend_for_children", {"run_id": "{}", "token": 1, "names": ["child"]}),
    ("withdraw_grant", {"run_id": "{}", "request_id": "another"}),
    ("open_gate", {"run_id": "{}", "token": 1, "name": "g", "prompt": "Go?", "data": '{"amount": 1.0}'}),
    ("open_gate", {"run_id": "{}", "token": 1, "name": "g", "prompt": "Go?", "data": '{"amount": 2}'}),
    ("get_gate_secret", {"run_id": "{}", "name": "g"}),
    ("start_timer", {"run_id": "{}", "token": 1, "name": "t", "duration": "36 hours"}),
    ("start_timer", {"run_id": "{}", "token": 1, "name": "t", "duration": "1 day 12 hours"}),
    ("suspend_run", {"run_id": "{}", "token": 1, "name": "g"}),
    ("acquire_run", {"run_id": "{}", "holder": "h"}),
    ("decide_gate", {"run_id": "{}", "name": "g", "decision": "approved", "secret": "guessed"}),
    ("decide_gate", {"run_id": "{}", "name": "g", "decision": "approved", "payload": '{"p": 1}', "actor": "ann"}),
    ("get_gate", {"run_id": "{}", "name": "g"}),
    ("list_gates", {"run_id": "{}"}),
    ("reconcile", {}),
    ("acquire_run", {"run_id": "{}", "holder": "h"}),
    ("begin_step", {"run_id": "{}", "token": 2, "name": "w", "side_effects": ["write"]}),
    ("fail_step", {"run_id": "{}", "token": 2, "name": "w"}),
    ("fail_run", {"run_id": "{}", "token": 2, "error": '"no"'}),
    ("resolve_review", {"run_id": "{}", "step": "w", "decision": "accept", "output": "1.0", "actor": "ann"}),
    ("record_recovery", {"run_id": "{}", "actor": "ops"}),
    ("finish_recovery", {"run_id": "{}", "recovery": 1, "status": "failed"}),
    ("recover_run", {"run_id": "{}", "actor": "ops"}),
    (
        "add_channel",
        {"run_id": "{}", "url": "http://channel.test", "secret": "s", "events": ["run.created", "run.failed"]},
    ),
    ("claim_channel_deliveries", {"ttl": "1 day"}),
    ("finish_channel_delivery", {"run_id": "{}", "channel": 1, "attempt": 1, "delivered": True, "http_status": 200}),
    ("finish_channel_delivery", {"run_id": "{}", "channel": 1, "attempt": 2, "delivered": False, "error": "no route"}),
    ("retry_channel", {"run_id": "{}", "channel": 1}),
    ("list_channels", {"run_id": "{}"}),
    ("remove_channel", {"run_id": "{}", "channel": 1}),
    ("claim_deliveries", {"ttl": "1 day"}),
    ("finish_delivery", {"run_id": "{}", "delivery": 1, "attempt": 1, "delivered": True}),
    ("acquire_run", {"run_id": "{}", "holder": "h"}),
    ("release_run", {"run_id": "{}", "token": 3}),
    ("fork_run", {"run_id": "{}", "new_run_id": "{}-fork", "through_step": "a", "actor": "ops"}),
    ("diff_runs", {"run_id": "{}", "other_run_id": "{}-fork"}),
    ("acquire_run", {"run_id": "{}", "holder": "h"}),
    ("load_checkpoints", {"run_id": "{}", "unfinished": True}),
    ("complete_run", {"run_id": "{}", "token": 4, "result": '{"r": 1.0}'}),
    ("complete_run", {"run_id": "{}", "token": 4, "result": '{"r": 1}'}),
    ("complete_runs", {"run_ids": ["{}", "none"], "tokens": [4, 1], "results": ['{"r": 1}', "2"]}),
    ("cancel_run", {"run_id": "{}-fork", "reason": "enough", "actor": "ops"}),
    ("get_run", {"run_id": "{}"}),
    ("get_run", {"run_id": "none"}),
    ("find_run", {"prefix": "{}"}),
    ("list_runs", {"workflow": "w {}"}),
    ("count_runs", {}),
    ("protocol", {}),
    ("require_bucket", {"bucket": 7}),
    ("shard_map", {}),
    ("shard_epoch", {}),
    ("read_events", {"run_id": "{}"}),
    ("check_invariants", {"run_id": "{}"}),
    ("compact_run", {"run_id": "{}"}),
    ("put_queue", {"queue": "q {}", "concurrency": 2, "rate": 5, "rate_period": "1 hour", "key_concurrency": 2}),
    ("pause_queue", {"queue": "q {}"}),
    (
        "enqueue_run",
        {"workflow": "w {}", "queue": "q {}", "run_id": "{}-job", "input": '{"n": 1.50}', "key": "k", "priority": 2}
        | {"dedupe_key": "d", "max_attempts": 2, "delay": "0"},
    ),
    ("enqueue_run", {"workflow": "w {}", "queue": "q {}", "run_id": "{}-other", "dedupe_key": "d"}),
    ("enqueue_run", {"workflow": "w {}", "queue": "q {}", "dedupe_key": "d", "on_duplicate": "reject"}),
    ("enqueue_runs", {"runs": '[{"workflow": "w", "queue": "q {}", "key": "k"}, {"workflow": "w", "queue": "q {}"}]'}),
    ("claim_runs", {"queues": ["q {}"], "holder": "h"}),
    ("resume_queue", {"queue": "q {}"}),
    ("claim_runs", {"queues": ["q {}"], "holder": "h", "max": 1, "ttl": "1 hour", "request_id": "claim {}"}),
    ("claim_runs", {"queues": ["q {}"], "holder": "h", "max": 1, "ttl": "1 hour", "request_id": "claim {}"}),
    ("claim_runs", {"queues": ["q {}"], "holder": "h", "max": 9, "workflows": ["w"], "listen_for": "1 minute"}),
    ("next_ready", {"queues": ["q {}"]}),
    ("ready_in", {"queues": ["q {}"]}),
    ("fail_run", {"run_id": "{}-job", "token": 1, "retryable": False}),
    ("retry_runs", {"queue": "q {}", "failure_class": "error", "actor": "ops"}),
    ("move_run", {"run_id": "{}-job", "to_queue": "p {}", "priority": 1, "actor": "ops"}),
    ("search_runs", {"workflow": "w {}"}),
    ("list_inbox", {}),
    ("move_runs", {"to_queue": "p {}", "queue": "q {}", "priority": 1, "actor": "ops"}),
    ("cancel_runs", {"queue": "p {}", "reason": "enough", "actor": "ops"}),
    ("put_queue", {"queue": "u {}", "endpoint": "http://endpoint.test"}),
    ("enqueue_run", {"workflow": "w {}", "queue": "u {}", "run_id": "{}-push"}),
    ("claim_invocations", {"ttl": "1 day"}),
    ("finish_invocation", {"run_id": "{}-push", "invocation": 1, "delivered": True, "http_status": 202}),
    ("cancel_runs", {"queue": "u {}", "actor": "ops"}),
    ("measure", {}),
    ("next_fires", {"cron": "30 2 29 feb *", "timezone": "Europe/Berlin", "after": "2024-01-01 00:00+00", "n": 2}),
    ("put_schedule", {"name": "s {}", "workflow": "w", "cron": "0 3 * * *", "queue": "r {}", "catch_up": "all"}),
    ("trigger_schedule", {"name": "s {}", "run_id": "{}-fire"}),
    ("backfill_schedule", {"name": "s {}", "since": "2024-01-01 00:00+00", "until": "2024-01-03 00:00+00"}),
    ("reconcile", {}),
    ("delete_schedule", {"name": "s {}"}),
    (
        "put_checkpoint",
        {"thread_id": "t {}", "namespace": "", "checkpoint_id": "a", "type": "x", "content": b"a"}
        | {"metadata": '{"run_id": "{}", "n": 1.0}', "contents": [b"head", b"body"]}
        | {"changes": '[{"channel": "c", "version": "1", "type": "x", "head": 0, "pieces": [1]}]'},
    ),
    (
        "put_checkpoint",
        {"thread_id": "t {}", "namespace": "", "checkpoint_id": "b", "type": "x", "content": b"b"}
        | {"metadata": '{"n": 2}', "parent_id": "a", "channels": ["c"], "versions": ["1"]},
    ),
    (
        "put_checkpoint",
        {"thread_id": "t {}", "namespace": "", "checkpoint_id": "c", "type": "x", "content": b"c"}
        | {"metadata": '{"n": 3}', "parent_id": "a"},
    ),
    (
        "put_checkpoint_writes",
        {"thread_id": "t {}", "namespace": "", "checkpoint_id": "b", "task_id": "k", "task_path": ""}
        | {"idxs": [0], "channels": ["c"], "types": ["x"], "contents": [b"w"]},
    ),
    ("get_checkpoint", {"thread_id": "t {}"}),
    ("get_checkpoint_beyond", {"thread_id": "t {}", "edition": "e", "known": [1], "versions": ["v"]}),
    ("has_checkpoint", {"thread_id": "t {}", "namespace": "", "checkpoint_id": "a"}),
    ("list_checkpoints", {"thread_id": "t {}", "filter": '{"n": 1}'}),
    ("copy_thread", {"source_thread_id": "t {}", "target_thread_id": "u {}"}),
    ("delete_checkpoints_of_runs", {"run_ids": ["{}"]}),
    ("prune_threads", {"thread_ids": ["t {}"]}),
    ("delete_thread", {"thread_id": "t {}"}),
    ("purge_runs", {"older_than": "1000 years"}),
]


def _named(thing: Any, run_id: str) -> Any:
    if isinstance(thing, list):
        return [_named(part, run_id) for part in thing]
    return thing.replace("{}", run_id) if isinstance(thing, str) and "{}" in thing and '": {}' not in thing else thing


def _comparable(thing: Any, run_id: str) -> Any:
    """Without what is new every time: the run's id, times, and what is random."""
    if isinstance(thing, dict):
        return {
            key: _comparable(part, run_id)
            for key, part in thing.items()
            if not (
                key.endswith("_at")
                or key
                in ("secret", "retry_after", "duration", "child_run_id", "actor", "created_by", "runs", "edition")
            )
        }
    if isinstance(thing, list):
        return [_comparable(part, run_id) for part in thing]
    if isinstance(thing, str):
        thing = re.sub(r"gate_[0-9a-f]{64}", "SECRET", thing)
        thing = re.sub(r"run_[-0-9a-f]{36}", "CHILD", thing.replace(run_id, "RUN"))
        return re.sub(r"^\d{4}-\d\d-\d\dT.*", "TIME", thing)
    return thing


#: They tell of everybody's runs: what is of the scenario's own is compared, and no age.
ABOUT_ALL = {"measure", "list_inbox", "claim_deliveries"}


def play(connection: Connection, run_id: str, calls: int | None = None) -> list[tuple[str, Any]]:
    """What each call of the scenario, or of its beginning, answers: its rows, or its SQLSTATE."""
    answers = []
    for function, arguments in SCENARIO[:calls]:
        given = {name: _named(argument, run_id) for name, argument in arguments.items()}
        names = sql.SQL(", ").join(
            sql.SQL("{} => {}").format(sql.Identifier(name), sql.Placeholder(name)) for name in given
        )
        statement = sql.SQL("select pg_catalog.to_jsonb(t) from tidebase.{}({}) t").format(
            sql.Identifier(function), names
        )
        try:
            answer: Any = [_comparable(row[0], run_id) for row in connection.execute(statement, given).fetchall()]
        except psycopg.Error as error:
            assert error.sqlstate, error
            answer = (error.sqlstate, _comparable(error.diag.message_primary, run_id))
        if function in ABOUT_ALL:
            answer = [row for row in answer if "RUN" in json.dumps(row) and "seconds" not in str(row.get("metric"))]
        if function == "reconcile" and isinstance(answer, list):  # others' leases lapse by the clock
            answer = [sorted(row) for row in answer]
        if function in {"load_checkpoints", *ABOUT_ALL} and isinstance(answer, list):  # in no particular order
            answer.sort(key=json.dumps)
        answers.append((function, answer))
    return answers


def stored(db: Connection, run_id: str) -> list[Any]:
    """What is kept of a run and of its fork, as the views show it."""
    found: list[Any] = []
    for view in ("run_overview", "run_attempts", "step_timeline", "gate_overview", "usage_totals", "recovery_history"):
        rows = db.execute(
            f"select to_jsonb(v) - 'duration' from tidebase.{view} v where run_id in (%s, %s)",  # type: ignore[arg-type]
            [run_id, f"{run_id}-fork"],
        ).fetchall()
        found += sorted(json.dumps([view, _comparable(row[0], run_id)], sort_keys=True) for row in rows)
    return found


@pytest.fixture
def honest(database: str, db: Connection) -> tuple[list[Any], list[Any]]:
    with member(db, database, *ALL, name="honest") as connection:
        return play(connection, "honest"), stored(db, "honest")


def deviations(db: Connection, connection: Connection, run_id: str, honest: tuple[list[Any], list[Any]]) -> list[Any]:
    """Where a session sees, or leaves, something else than an honest one."""
    answers = play(connection, run_id)
    wrong = [pair for pair in zip(honest[0], answers, strict=True) if pair[0] != pair[1]]
    kept = stored(db, run_id)
    return wrong + [pair for pair in itertools.zip_longest(honest[1], kept) if pair[0] != pair[1]]


def test_the_scenario_calls_every_function_and_means_it(db: Connection, honest: tuple[list[Any], list[Any]]) -> None:
    called = {function for function, _ in SCENARIO}
    assert called == set(values(db, "select proname from pg_proc where pronamespace = 'tidebase'::regnamespace"))
    refused = {function: answer[0] for function, answer in honest[0] if isinstance(answer, tuple)}
    assert refused == {
        "create_run": "TB006",
        "renew_lease": "TB003",
        "begin_step": "TB006",
        "begin_step_with": "TB006",
        "enqueue_run": "TB013",
        "append_event": "TB003",
        "open_gate": "TB006",
        "decide_gate": "TB009",
        "get_run": "TB001",
        "put_checkpoint": "TB003",
    }
    worked = {function for function, answer in honest[0] if not isinstance(answer, tuple)}
    assert worked == called


# --- Objects of the caller's own --------------------------------------------------------------------------------------

#: Fills a schema with what the functions might take for the server's or for Tidebase's own: every function of the
#: server that they mention, every operator over the types they use, every table and type. Each says who runs it.
SHADOWS = """
do $do$
declare
  own text := '{schema}';
  made record;
  n integer := 0;
begin
  execute format('create function %s.spy() returns boolean language plpgsql as $f$
    begin raise notice ''spy: %%'', current_user; return true; end $f$', own);
  for made in
    select distinct p.proname, pg_get_function_arguments(p.oid) as arguments, pg_get_function_result(p.oid) as result
    from pg_proc p
    where p.pronamespace = 'pg_catalog'::regnamespace and p.prokind = 'f'
      and not exists (select from unnest(p.proargtypes) t join pg_type y on y.oid = t where y.typtype = 'p')
      and p.prorettype not in (select oid from pg_type where typtype = 'p' and typname not in ('void', 'record'))
      and exists (
        select from pg_proc o where o.pronamespace in ('tidebase'::regnamespace, 'tidebase_private'::regnamespace)
          and o.prosrc ~ ('\\m' || p.proname || '\\('))
  loop
    execute format('create function %s.%I(%s) returns %s language plpgsql as $f$
      begin raise notice ''spy: %%'', current_user; return%s; end $f$', own, made.proname, made.arguments, made.result,
      case when made.result = 'void' or made.result like 'SETOF%' or made.result like 'TABLE%'
        or made.arguments like '%OUT %'
        then '' else ' null' end);
  end loop;
  for made in
    select o.oprname, o.oprleft::regtype as l, o.oprright::regtype as r, o.oprresult::regtype as result
    from pg_operator o
    where o.oprnamespace = 'pg_catalog'::regnamespace
      and o.oprleft = any (types) and o.oprright = any (types || array['integer'::regtype]) and o.oprresult <> 0
  loop
    n := n + 1;
    execute format('create function %s.op_%s(l %s, r %s) returns %s language plpgsql as $f$
      begin raise notice ''spy: %%'', current_user; return null; end $f$', own, n, made.l, made.r, made.result);
    execute format('create operator %s.%s (leftarg = %s, rightarg = %s, function = %s.op_%s)',
      own, made.oprname, made.l, made.r, own, n);
  end loop;
  for made in
    select c.relname, string_agg(format('null::%s as %I', format_type(a.atttypid, a.atttypmod), a.attname), ', '
      order by a.attnum) as columns
    from pg_class c join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
    where c.relnamespace = 'tidebase'::regnamespace and c.relkind in ('r', 'v')
    group by c.relname
  loop
    execute format('create {temp} view %s.%I as select %s where %s.spy()', own, made.relname, made.columns, own);
    execute format('grant all on %s.%I to public', own, made.relname);
  end loop;
  for made in
    select c.relname from pg_class c where c.relnamespace = 'tidebase'::regnamespace and c.relkind = 'c'
  loop
    execute format('create type %s.%I as (nothing integer)', own, made.relname);
  end loop;
  for made in
    select t::text as name from unnest(array['text', 'jsonb', 'bytea', 'uuid', 'timestamptz', 'float8', 'interval']) t
  loop
    execute format('create domain %s.%I as pg_catalog.%I check (%s.spy())', own, made.name, made.name, own);
  end loop;
end $do$""".replace(
    "any (types",
    "any (array['text', 'text[]', 'bigint', 'integer', 'numeric', 'jsonb', 'bytea', 'boolean', 'timestamptz',"
    " 'interval', 'name', 'oid']::regtype[]",
)


class Spies:
    """The users in whose name an object of the attacker's was executed. Notices outlive a rollback, rows would not."""

    def __init__(self, connection: Connection) -> None:
        self.users: list[str] = []
        connection.add_notice_handler(self._hear)

    def _hear(self, diagnostic: Any) -> None:
        if diagnostic.message_primary.startswith("spy: "):
            self.users.append(diagnostic.message_primary.removeprefix("spy: "))

    def caught(self) -> set[str]:
        found, self.users = set(self.users), []
        return found


def shadow(connection: Connection, schema: str) -> Spies:
    """Makes the caller's own objects, and looks into their schema first."""
    if schema != "pg_temp":
        connection.execute(f"create schema {schema}; grant all on schema {schema} to public")  # type: ignore[arg-type]
    script = SHADOWS.replace("{schema}", schema).replace("{temp}", "temp" if schema == "pg_temp" else "")
    connection.execute(script)  # type: ignore[arg-type]
    spies = Spies(connection)
    connection.execute(f"set search_path = {schema}, tidebase, pg_catalog")  # type: ignore[arg-type]
    connection.execute("select clock_timestamp()" if schema != "pg_temp" else "select 1 from run_heads")
    assert spies.caught() == {connection.info.user}  # they do work, in the attacker's own name
    return spies


PINNED = """from pg_proc p, unnest(p.proconfig) c
    where p.pronamespace = 'tidebase'::regnamespace and starts_with(c, 'search_path=')"""


@pytest.mark.parametrize("schema", first_on_every_version(["evil", "pg_temp"]))
def test_objects_of_the_callers_are_not_taken_for_the_real_ones(
    db: Connection, database: str, honest: tuple[list[Any], list[Any]], schema: str
) -> None:
    with member(db, database, *ALL) as connection:
        spies = shadow(connection, schema)
        assert deviations(db, connection, "first-look", honest) == []
        assert spies.caught() == set()
        connection.execute(f"set search_path = {schema}, tidebase, tidebase_private, pg_catalog; discard plans")  # type: ignore[arg-type]
        assert deviations(db, connection, "second-look", honest) == []
        assert spies.caught() == set()


@pytest.mark.breaks_invariants
@on_newest("server")
def test_each_functions_own_search_path_is_what_keeps_them_out(
    db: Connection, database: str, honest: tuple[list[Any], list[Any]]
) -> None:
    """The mechanism taken out, function by function: the caller's code then runs with the owner's rights, or (where the
    caller's types do not fit together) the answer is another one.
    """
    with member(db, database, *ALL) as connection:
        spies = shadow(connection, "evil")
        connection.execute("set statement_timeout = '30s'")  # a call that never ends is another answer, too
        # What is called from inside is compiled now: first compiled by one that looks elsewhere, it keeps those types.
        assert play(connection, "compiled") == honest[0]
        unharmed, called = [], [function for function, _ in SCENARIO]
        for number, function in enumerate(values(db, f"select p.oid::regprocedure::text {PINNED} order by 1")):
            path = value(db, f"select substr(c, 13) {PINNED} and p.oid = %s::regprocedure", function)
            db.execute(f"alter function {function} reset search_path")  # type: ignore[arg-type]
            upto = called.index(value(db, "select proname from pg_proc where oid = %s::regprocedure", function)) + 1
            differs = play(connection, f"without-{number}", upto) != honest[0][:upto]
            if "tidebase_owner" not in spies.caught() and not differs:
                unharmed.append(function)
            db.execute(f"alter function {function} set search_path = {path}")  # type: ignore[arg-type]
        # A constant, and what only a router has.
        assert unharmed == ["tidebase.protocol()", "tidebase.shard_epoch()", "tidebase.shard_map()"]
        assert play(connection, "mended") == honest[0]
        assert spies.caught() == set()


@pytest.mark.breaks_invariants
@on_newest("server")
def test_pg_temp_is_named_last_because_it_would_come_first(db: Connection, database: str) -> None:
    """A search_path that does not name pg_temp looks for tables there before anywhere else."""
    with member(db, database, *ALL) as connection:
        spies = shadow(connection, "pg_temp")
        for function in values(db, f"select p.oid::regprocedure::text {PINNED}"):
            db.execute(f"alter function {function} set search_path = pg_catalog, tidebase")  # type: ignore[arg-type]
        play(connection, "without")
        assert "tidebase_owner" in spies.caught()


def test_values_of_the_callers_types_are_converted_in_the_callers_name(db: Connection, database: str) -> None:
    with member(db, database, *ALL) as connection:
        spies = Spies(connection)
        connection.execute("""
            create schema evil;
            grant all on schema evil to public;
            create function evil.spy() returns boolean language plpgsql
              as 'begin raise notice ''spy: %'', current_user; return true; end';
            create type evil.box as (x integer);
            create domain evil.id as text check (evil.spy());
            create domain evil.doc as jsonb check (evil.spy());
            create domain evil.list as text[] check (evil.spy());
            create function evil.unbox(evil.box) returns jsonb language plpgsql
              as 'begin perform evil.spy(); return ''{"unboxed": 1}''; end';
            create function evil.unbox_json(evil.box) returns json language plpgsql
              as 'begin perform evil.spy(); return ''{"unboxed": 2}''; end';
            create function evil.unbox_text(evil.box) returns text language plpgsql
              as 'begin perform evil.spy(); return ''boxed''; end';
            create cast (evil.box as jsonb) with function evil.unbox(evil.box) as implicit;
            create cast (evil.box as json) with function evil.unbox_json(evil.box) as implicit;
            create cast (evil.box as text) with function evil.unbox_text(evil.box) as implicit""")
        for call, kept in {
            "create_run(row(1)::evil.box, row(1)::evil.box, 'r')": {"unboxed": 1},
            "create_run('w', to_jsonb(row(1)::evil.box), 'made'::evil.id)": {"x": 1},
            "create_run('w'::evil.id, '[1]'::evil.doc, 'other')": [1],
        }.items():
            run_id = value(connection, f"select tidebase.{call}")
            assert value(connection, "select input from tidebase.get_run(%s)", run_id) == kept
        assert value(connection, "select token from tidebase.acquire_run('r'::evil.id, row(1)::evil.box)") == 1
        connection.execute("select tidebase.begin_step('r', 1, 's', side_effects => '{a}'::evil.list)")
        connection.execute("select tidebase.set_state('r', 1, row(1)::evil.box)")
        connection.execute("select (e).payload::evil.doc, (e).type::evil.id from tidebase.read_events('r') e")
        assert spies.caught() == {connection.info.user}


def test_an_argument_that_changes_the_session_changes_nothing_for_the_function(db: Connection, database: str) -> None:
    """Arguments are evaluated before the call; what they set is the session's, not the function's."""
    with member(db, database, *ALL) as connection:
        spies = shadow(connection, "evil")
        connection.execute("set search_path = pg_catalog")
        switched = "case when set_config('search_path', 'evil', false) > '' then 'w' end"
        call = f"select tidebase.create_run({switched}, run_id => 'r')"
        assert value(connection, call) == "r"
        assert value(connection, "select pg_catalog.current_setting('search_path')") == "evil"
        assert spies.caught() == set()


#: The functions that an administrator calls by hand, beside the API.
BY_HAND = ("install_roles()", "apply_privileges()")


@pytest.mark.parametrize("call", BY_HAND)
def test_what_an_administrator_calls_by_hand_takes_nothing_from_public(
    db: Connection, database: str, call: str
) -> None:
    """Where everybody may create in public, as in a database that came from before Postgres 15."""
    with member(db, database, "reader") as connection:
        db.execute("grant create on schema public to public")
        connection.execute("""
            create function public.spy() returns boolean language plpgsql
              as 'begin raise notice ''spy: %'', current_user; return true; end';
            create function public.format(text, text) returns text language plpgsql
              as 'begin perform public.spy(); return pg_catalog.format($1, $2); end'""")
        spies = Spies(db)
        db.execute(f"select tidebase_private.{call}")  # type: ignore[arg-type]
        assert spies.caught() == set()


# --- Settings ---------------------------------------------------------------------------------------------------------

#: What a session may set so that every call fails, and how it likes its own bytea shown: no way to more.
HARMLESS = {"default_transaction_read_only", "exit_on_error", "bytea_output"}
#: And settings that are neither a boolean nor an enumeration.
MORE_SETTINGS = {
    "DateStyle": ["SQL, DMY", "German"],
    "TimeZone": ["Asia/Kathmandu", "America/New_York"],
    "extra_float_digits": ["-15"],
    "lc_numeric": ["C"],
    "tidebase.durability": ["full", "none", "off", ""],
    "plpgsql.extra_errors": ["all"],
    "plpgsql.extra_warnings": ["all"],
    "cursor_tuple_fraction": ["0"],
    "from_collapse_limit": ["1"],
    "join_collapse_limit": ["1"],
    "work_mem": ["64kB"],
    "gin_fuzzy_search_limit": ["1"],
    "default_tablespace": ["pg_default"],
    "search_path": ['""', "pg_temp", "tidebase_private, tidebase, pg_catalog"],
}


def settings(connection: Connection) -> list[tuple[str, str]]:
    """Every setting that a user may change and that has a handful of values, with each value that it has not now."""
    found = [
        (name, choice)
        for name, kind, now, choices in connection.execute(
            "select name, vartype, setting, enumvals from pg_settings"
            " where context = 'user' and vartype in ('bool', 'enum') order by name"
        ).fetchall()
        if name not in HARMLESS and not name.startswith("transaction_")
        for choice in (["off" if now == "on" else "on"] if kind == "bool" else choices)
        if choice != now
    ]
    return found + [(name, choice) for name, choices in MORE_SETTINGS.items() for choice in choices]


def _set(connection: Connection, name: str, choice: str) -> None:
    connection.execute("select pg_catalog.set_config(%s, %s, false)", [name, choice])


#: A function's body is read with the session's standard_conforming_strings.
CHECKPOINTS = ("get_checkpoint", "get_checkpoint_beyond", "list_checkpoints")
BACKSLASHES = ("standard_conforming_strings", "off")


@long
@on_every_version
def test_no_setting_of_the_session_changes_what_a_call_does(
    db: Connection, database: str, honest: tuple[list[Any], list[Any]]
) -> None:
    with member(db, database, *ALL) as connection:
        tried = [setting for setting in settings(connection) if setting != BACKSLASHES]
        assert len(tried) > 80
        names = itertools.count()

        def wrong(together: list[tuple[str, str]]) -> list[str]:
            with connect(connection.info.dsn) as session:
                for name, choice in together:
                    _set(session, name, choice)
                return deviations(db, session, f"set-{next(names)}", honest)

        # Many at once, never two of one name; where something is wrong, each by itself.
        groups = [tried[first :: len(tried) // 12] for first in range(len(tried) // 12)]
        found = [(group, wrong(group)) for group in groups]
        suspects = [setting for group, deviation in found if deviation for setting in group]
        assert [(setting, deviation[0]) for setting in suspects if (deviation := wrong([setting]))] == []
        assert [group for group, deviation in found if deviation] == []


def test_nor_does_one_that_reads_backslashes_in_another_way(
    db: Connection, database: str, honest: tuple[list[Any], list[Any]]
) -> None:
    with member(db, database, *ALL) as connection:
        _set(connection, *BACKSLASHES)
        found = deviations(db, connection, "backslashes", honest)
        # The client writes bytes in another way then, as the server does not read them.
        assert [pair for pair in found if pair[0][0] not in CHECKPOINTS] == []


@pytest.mark.parametrize("durability", ["", "off", "none", "full", "FULL", "0"])
@pytest.mark.parametrize("commit", ["off", "local", "on", "remote_write", "remote_apply"])
def test_what_must_be_durable_is_whatever_the_session_says(
    db: Connection, database: str, durability: str, commit: str
) -> None:
    with member(db, database, "worker") as connection:
        _set(connection, "synchronous_commit", commit)
        _set(connection, "tidebase.durability", durability)
        for call in (
            "create_run('w', run_id => 'r')",
            "acquire_run('r', 'h')",
            "begin_step('r', 1, 'out', side_effects => '{write}')",
            "complete_step('r', 1, 'out')",
            "record_step('r', 1, 's')",
            "record_steps('r', 1, '[{\"name\": \"t\"}]')",
            "append_event('r', 1, 'agent.note')",
            "set_state('r', 1, '1')",
            "open_gate('r', 1, 'g')",
            "complete_run('r', 1)",
        ):
            with connection.transaction():
                connection.execute(f"select tidebase.{call}")  # type: ignore[arg-type]
                assert value(connection, "show synchronous_commit") == ("on" if commit == "off" else commit), call


def test_settings_that_a_member_may_not_change(db: Connection, database: str) -> None:
    privileged = ("session_replication_role", "plpgsql.variable_conflict", "zero_damaged_pages", "log_statement")
    with member(db, database, *ALL) as connection:
        play(connection, "r")  # loads plpgsql, and with it its settings
        for name in (*privileged, "session_preload_libraries", "max_stack_depth", "dynamic_library_path"):
            now = value(db, "select current_setting(%s, true)", name)
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                _set(connection, name, now or "")
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute(f"alter role current_user set {name} = '{now or ''}'")  # type: ignore[arg-type]
        for name in ("role", "session_authorization"):
            for wanted in ("tidebase_owner", "postgres"):
                with pytest.raises(psycopg.errors.InsufficientPrivilege):
                    _set(connection, name, wanted)
        dsn = connection.info.dsn
        with pytest.raises(psycopg.OperationalError, match="permission denied"):
            connect(dsn, options="-c role=tidebase_owner")
        connection.execute("alter role current_user set role = 'tidebase_owner'")  # a default that does not take
        with connect(dsn) as again:
            assert value(again, "select current_user") == connection.info.user
        connection.execute("alter role current_user reset all")


# --- Around the functions ---------------------------------------------------------------------------------------------

REFUSED = """
select * from tidebase_private.gate_key
select tidebase_private.gate_secret(null)
select tidebase_private.hmac('x')
select tidebase_private.allow('function tidebase.decide_gate', 'worker')
select tidebase_private.apply_privileges()
select tidebase_private.install_roles('mallory')
select (null::tidebase_private.gate_key).inner_pad
select 'tidebase_private.gate_secret'::regproc
insert into tidebase_private.settings values ('role_prefix', 'mallory')
create view evil.key as select * from tidebase_private.gate_key
create operator evil.## (leftarg = jsonb, rightarg = jsonb, function = tidebase_private.is_same)
create function evil.inherit(bytea) returns bytea language sql return tidebase_private.hmac($1)
create table evil.copy as select * from tidebase.gates
create table evil.copy (like tidebase.gates)
create table evil.child () inherits (tidebase.gates)
create table evil.pointer (run_id text references tidebase.runs)
create table evil.part partition of tidebase.events default
create view evil.heads as select * from tidebase.run_heads; select * from evil.heads
create rule steal as on insert to tidebase.events do also nothing
create rule steal as on select to tidebase.run_overview do instead select 1
create trigger steal before insert on tidebase.events for each row execute function evil.steal()
create trigger steal instead of update on tidebase.run_overview for each row execute function evil.steal()
create event trigger steal on ddl_command_end execute function evil.steal_event()
create policy steal on tidebase.events using (true)
create index steal on tidebase.events ((evil.note(payload)))
create statistics evil.steal on run_id, seq from tidebase.events
create publication steal for table tidebase.events
create function tidebase.extra() returns integer language sql as 'select 1'
create table tidebase.extra (x integer)
create view tidebase.extra as select 1
create type tidebase.extra as (x integer)
create operator tidebase.= (leftarg = text, rightarg = bigint, function = texteq)
create extension pg_stat_statements schema tidebase
create or replace function tidebase.renew_lease(text, bigint, interval) returns timestamptz return now()
alter function tidebase.get_run(text) set search_path = evil
alter function tidebase.get_run(text) security invoker
alter function tidebase.get_run(text) owner to current_user
alter function tidebase.get_run(text) set schema evil
alter function tidebase.get_run(text) depends on extension plpgsql
alter table tidebase.events disable trigger all
alter table tidebase.events add column x integer
alter table tidebase.events enable row level security
alter view tidebase.gate_inbox set (security_barrier = false)
alter view tidebase.gate_inbox owner to current_user
alter schema tidebase rename to stolen
alter schema tidebase_private owner to current_user
alter type tidebase.lease add attribute x integer
alter default privileges for role tidebase_owner grant all on tables to public
alter role tidebase_owner login
alter role tidebase_worker set search_path = evil
alter role current_user superuser
comment on function tidebase.get_run(text) is 'harmless'
drop function tidebase.get_run(text)
drop table tidebase.events
drop schema tidebase cascade
drop owned by tidebase_owner
reassign owned by tidebase_owner to current_user
grant tidebase_owner to current_user
grant tidebase_approver to current_user with admin option
grant select on tidebase.events to current_user
lock table tidebase.run_heads in access share mode
lock table tidebase.gate_inbox
truncate tidebase.events
copy tidebase.events to stdout
copy (select * from tidebase.gates) to stdout
copy tidebase.events from stdin
copy tidebase.run_overview to program 'true'
select * from tidebase.runs for update
select * from tidebase.run_overview for update
select * from tidebase.runs tablesample system (100)
explain (analyze) select * from tidebase.events
table tidebase.state_versions
update tidebase.gate_overview set status = 'decided'
delete from tidebase.step_timeline
merge into tidebase.runs r using (select 1) s on true when matched then delete
cluster tidebase.events using events_pkey
reindex table tidebase.events
set role tidebase_owner
set local role postgres
set session authorization tidebase_owner
select pg_read_file('PG_VERSION')
select * from pg_authid
select * from pg_statistic
select lo_import('/etc/passwd')
""".strip().splitlines()


def test_what_is_beside_the_functions_is_refused(db: Connection, database: str) -> None:
    """By a missing privilege, for somebody who has all four roles and a schema of his own; and nothing has changed."""
    with member(db, database, *ALL) as connection:
        connection.execute("""
            create schema evil;
            create function evil.note(x jsonb) returns text immutable language plpgsql as 'begin return x; end';
            create function evil.steal() returns trigger language plpgsql as 'begin return new; end';
            create function evil.steal_event() returns event_trigger language plpgsql as 'begin end'""")
        play(connection, "before")
        kept = stored(db, "before"), image_of(db, "before")
        found = []
        for statement in REFUSED:
            try:
                with connection.transaction(force_rollback=True):
                    connection.execute(statement)  # type: ignore[arg-type]
                found.append((statement, "done"))
            except psycopg.errors.InsufficientPrivilege:
                pass
            except psycopg.Error as error:
                found.append((statement, error.sqlstate))
        assert found == [], found
        assert (stored(db, "before"), image_of(db, "before")) == kept
        lists = "select proacl::text from pg_proc where oid = 'tidebase.get_run(text)'::regprocedure"
        before = value(db, lists)
        connection.execute("grant execute on function tidebase.get_run(text) to public")  # only warns
        assert value(db, lists) == before
        assert values(connection, "select tablename from pg_stats where schemaname ~ '^tidebase'") == []


def test_the_private_functions_are_out_of_reach_one_by_one(db: Connection, database: str) -> None:
    private = db.execute(
        "select p.oid::regproc::text, (select string_agg(format('null::%s', t::regtype), ', ' order by n)"
        "   from unnest(p.proargtypes) with ordinality as a (t, n))"
        " from pg_proc p where p.pronamespace = 'tidebase_private'::regnamespace"
    ).fetchall()
    assert len(private) > 50
    with member(db, database, *ALL) as connection:
        for function, arguments in private:
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute(f"select {function}({arguments or ''})")


BARRIERS = {
    "gate_inbox": ("name", {"open"}),
    "review_inbox": ("run_id", {"asked"}),
    "stalled_runs": ("run_id", {"asked"}),
}


@pytest.fixture
def hidden(db: Connection) -> None:
    """Rows that the views show, and others that they leave out."""
    db.execute("""
        select tidebase.create_run('w', run_id => id) from unnest(array['asked', 'over', 'gates']) id;
        select tidebase.acquire_run(id, 'h', '1 hour') from unnest(array['asked', 'over', 'gates']) id;
        select tidebase.begin_step(id, 1, 's', side_effects => '{write}') from unnest(array['asked', 'over']) id;
        select tidebase.fail_step(id, 1, 's') from unnest(array['asked', 'over']) id;
        select tidebase.fail_run(id, 1) from unnest(array['asked', 'over']) id;
        select tidebase.cancel_run('over');
        select tidebase.open_gate('gates', 1, name) from unnest(array['open', 'decided']) name;
        select tidebase.decide_gate('gates', 'decided', 'approved');
        select tidebase.open_gate('gates', 1, 'late', timeout => '1 hour');
        update tidebase.gates set timeout_at = clock_timestamp() where name = 'late';
        update tidebase.run_heads set due_at = clock_timestamp() where run_id = 'gates'""")


@pytest.mark.parametrize("view", BARRIERS)
@pytest.mark.usefixtures("hidden")
def test_a_cheap_function_in_a_condition_sees_only_what_the_view_shows(
    db: Connection, database: str, view: str
) -> None:
    column, shown = BARRIERS[view]
    with member(db, database, "reader") as connection:
        heard: list[str] = []
        connection.add_notice_handler(lambda diagnostic: heard.append(diagnostic.message_primary or ""))
        connection.execute("""
            create function pg_temp.leak(text) returns boolean language plpgsql cost 0.0000001
              as 'begin raise notice ''%'', $1; return true; end'""")
        look = f"select count(*) from tidebase.{view} where pg_temp.leak({column})"
        connection.execute(look)  # type: ignore[arg-type]
        connection.execute("set enable_nestloop = off")  # nor by a plan that reads whole tables
        connection.execute(look)  # type: ignore[arg-type]
        assert set(heard) == shown
        # Without the barrier the cheapest condition comes first, and sees the rest.
        db.execute(f"alter view tidebase.{view} set (security_barrier = false)")  # type: ignore[arg-type]
        connection.execute("discard plans")
        connection.execute(look)  # type: ignore[arg-type]
        assert set(heard) > shown


# --- Who decides ------------------------------------------------------------------------------------------------------


@pytest.fixture
def asked(db: Connection) -> str:
    """A run with an open gate g, and its secret."""
    db.execute("select tidebase.create_run('w', run_id => 'r'); select tidebase.acquire_run('r', 'h', '1 hour')")
    return str(value(db, "select secret from tidebase.open_gate('r', 1, 'g')"))


DECIDE = "select accepted, actor from tidebase.decide_gate('r', 'g', 'approved')"


def told(connection: Connection, statement: str = DECIDE) -> Any:
    """(accepted, actor), or the SQLSTATE."""
    try:
        return connection.execute(statement).fetchone()  # type: ignore[arg-type]
    except psycopg.Error as error:
        return error.sqlstate


def attempts_to_decide(connection: Connection, secret: str | None = None) -> list[Any]:
    """What a user is told who tries to pass for an approver."""
    answers = [told(connection)]
    for statement in (
        "set role tidebase_approver",
        "set session authorization tidebase_approver",
        "select set_config('role', 'tidebase_approver', true)",
        "set local role postgres",
    ):
        answers.append(told(connection, f"{statement}; {DECIDE}"))
    connection.execute(f"""
        create schema if not exists evil;
        grant usage on schema evil to public;
        create or replace function evil.decide() returns record language sql security definer as $$ {DECIDE} $$;
        create or replace function evil.decide_as_approver() returns record language plpgsql security definer
          set role = 'none' as $$ declare answer record; begin
            perform set_config('role', 'tidebase_approver', true);
            {DECIDE} into answer; return answer; end $$""")  # type: ignore[arg-type]
    answers.append(told(connection, "select evil.decide()"))
    answers.append(told(connection, "select evil.decide_as_approver()"))
    if secret is not None:
        answers.append(told(connection, DECIDE.replace("approved'", f"approved', secret => '{secret}'")))
    connection.rollback()
    return answers


def test_a_worker_decides_nothing_about_its_own_work(db: Connection, database: str, asked: str) -> None:
    with member(db, database, "worker") as connection:
        assert value(connection, "select tidebase.get_gate_secret('r', 'g')") == asked
        assert set(attempts_to_decide(connection, asked)) == {"42501"}
    assert value(db, "select status from tidebase.gates") == "pending"


@pytest.mark.parametrize("roles", [("reader",), ("operator",), ("worker", "reader"), ("worker", "operator", "reader")])
def test_without_the_secret_only_an_approver_decides(
    db: Connection, database: str, asked: str, roles: tuple[str, ...]
) -> None:
    with member(db, database, *roles) as connection:
        assert set(attempts_to_decide(connection)) == {"TB009", "42501"}
        for role in roles:
            connection.execute(f"set role tidebase_{role}")  # type: ignore[arg-type]
            assert told(connection) == ("42501" if role == "worker" else "TB009")
            connection.execute("reset role")
    assert value(db, "select status from tidebase.gates") == "pending"


@pytest.mark.usefixtures("asked")
def test_an_approvers_function_lends_its_right_to_nobody(db: Connection, database: str) -> None:
    with member(db, database, "approver", name="ann") as ann, member(db, database, "worker", "reader") as connection:
        ann.execute(f"""
            create schema lent;
            grant usage on schema lent to public;
            create function lent.decide() returns record language sql security definer as $$ {DECIDE} $$""")  # type: ignore[arg-type]
        assert told(connection, "select lent.decide()") == "TB009"
        assert value(db, "select status from tidebase.gates") == "pending"
        assert told(ann, "select lent.decide()") == (("t", ann.info.user),)


@pytest.mark.usefixtures("asked")
def test_an_approver_who_has_set_another_role_is_none(db: Connection, database: str) -> None:
    with member(db, database, "approver", "worker", "reader") as connection:
        connection.execute("set role tidebase_worker")
        assert told(connection) == "42501"
        connection.execute("set role tidebase_reader")
        assert told(connection) == "TB009"
        connection.execute("set role none")
        assert told(connection) == (True, connection.info.user)


@pytest.mark.usefixtures("asked")
@pytest.mark.parametrize("instead", ["current_user::text", "session_user::text"])
def test_the_caller_is_neither_the_current_nor_the_session_user(db: Connection, database: str, instead: str) -> None:
    """The mechanism taken out: in a function of the owner's, current_user is the owner; and session_user forgets that
    somebody acts in a lesser role.
    """
    db.execute(f"""
        create or replace function tidebase_private.caller() returns text language sql stable
        as $$ select {instead} $$""")  # type: ignore[arg-type]
    with member(db, database, "approver", "reader", name="ann") as ann, member(db, database, "reader") as connection:
        ann.execute("set role tidebase_reader")
        assert (told(connection)[0] is True) if instead.startswith("current") else (told(ann)[0] is True)


# --- What is read as a part of a statement ----------------------------------------------------------------------------

INJECTIONS = [
    "'; drop schema tidebase cascade; --",
    "' or '1'='1",
    "$$; drop schema tidebase cascade; $$",
    "$function$ begin execute 'drop schema tidebase cascade'; end $function$",
    "\\'; drop schema tidebase cascade; --",
    "E'\\047",
    '"; drop schema tidebase cascade; --',
    '{"a": "\'; drop schema tidebase cascade; --"}',
    "%s %I %L %1$s %99$I %-9999999s %",
    "%%(run_id)s :name $1 ?",
    "{,}{{NULL}}",
    "../../etc/passwd",
    "\u02bc; drop schema tidebase cascade; --",  # a modifier letter that some conversions make an apostrophe
    "\uff07; drop schema tidebase cascade; \uff0d\uff0d",
    "\u202e\u200b\ufeff\u2028",
    "'" * 1000,
    "\U0010ffff" * 70,
    "\r\n\t\b\x0b\x7f",
    "null",
    "-1",
]

#: What a call needs besides the text that is tried, so that it gets as far as possible.
GIVEN: dict[str, Any] = {
    "run_id": "target",
    "prefix": "targ",
    "token": 1,
    "other_run_id": "bystander",
    "name": "s",
    "step": "s",
    "stream": "main",
    "workflow": "w",
    "holder": "h",
    "type": "agent.note",
    "label": "l",
    "decision": "approved",
    "value": "1",
    "patch": "{}",
    "members": "{}",
    "duration": "1 minute",
    "older_than": "1000 years",
    "status": "failed",
    "recovery": 1,
    "delivery": 1,
    "channel": 1,
    "invocation": 1,
    "url": "http://x",
    "attempt": 1,
    "delivered": True,
    "names": ["child"],
    "request_id": "grant",
    "run_ids": ["target"],
    "tokens": [1],
    "runs": [{"workflow": "w"}],
    "steps": '[{"name": "x"}]',
    "queues": ["q"],
    "queue": "no such queue",
    "to_queue": "other",
    "since": "2024-01-01 00:00+00",
    "until": "2024-01-01 01:00+00",
    "cron": "0 0 * * *",
    "thread_id": "t",
    "source_thread_id": "t",
    "target_thread_id": "u",
    "thread_ids": ["t"],
    "namespace": "",
    "checkpoint_id": "c",
    "content": b"",
    "metadata": "{}",
    "task_id": "k",
    "task_path": "",
    "idxs": [0],
    "channels": ["c"],
    "types": ["x"],
    "contents": [b""],
}


TEXTUAL = ("text", "text[]", "jsonb")


@pytest.fixture
def under_attack(db: Connection) -> None:
    db.execute("""
        select tidebase.create_run('w', run_id => id) from unnest(array['target', 'bystander']) id;
        select tidebase.acquire_run(id, 'h', '1 hour') from unnest(array['target', 'bystander']) id;
        select tidebase.begin_step(id, 1, 's') from unnest(array['target', 'bystander']) id;
        select tidebase.set_state(id, 1, '{"a": 1}') from unnest(array['target', 'bystander']) id;
        select tidebase.open_gate(id, 1, 'g') from unnest(array['target', 'bystander']) id""")


@on_newest("server")
@pytest.mark.usefixtures("under_attack")
@long
def test_no_text_is_read_as_a_part_of_a_statement(db: Connection, database: str) -> None:
    """Each parameter that holds text, of each function: the answer is one of Tidebase's own errors, or of the server's
    about a value that it cannot hold, and nothing of another run is touched.
    """
    objects = f"select count(*), sum(hashtext(prosrc)::bigint) from pg_proc where pronamespace in {SCHEMAS}"
    before = db.execute(objects).fetchall()  # type: ignore[arg-type]
    bystander = image_of(db, "bystander")
    wrong: list[Any] = []
    tried = 0
    with member(db, database, *ALL) as mallory:
        become = sql.SQL("set local role {}").format(sql.Identifier(mallory.info.user))
        places = [(f, parameter) for f in functions(db) for parameter, kind in f.parameters.items() if kind in TEXTUAL]
        # Each text meets half of the places, each place half of the texts, of every kind.
        for place, (at, text) in itertools.product(enumerate(places), enumerate(INJECTIONS)):
            number, (function, parameter) = place
            if (number + at) % 2:
                continue
            needed = [*list(function.parameters)[: function.required], "run_id"]
            given = {name: GIVEN[name] for name in needed if name in function.parameters}
            forms: dict[str, Any] = {"text": text, "text[]": [text], "jsonb": json.dumps({text: [text]})}
            given[parameter] = forms[function.parameters[parameter]]
            with db.transaction(force_rollback=True):  # every text meets the same run
                db.execute(become)
                code, _ = attempt(db, function.name, **given)
                if code == "ok":
                    db.execute("reset role")
                    if image_of(db, "bystander") != bystander:
                        wrong.append((function.name, parameter, text[:60], "touched another run"))
                elif not re.match(r"TB\d{3}|22", code):
                    wrong.append((function.name, parameter, text[:60], code))
            tried += 1
    assert wrong == []
    assert tried > 1500
    assert db.execute(objects).fetchall() == before  # type: ignore[arg-type]


@pytest.mark.usefixtures("under_attack")
def test_such_texts_come_back_as_they_were_given(db: Connection, database: str) -> None:
    with member(db, database, *ALL) as connection:
        for text in INJECTIONS:
            given = json.dumps([text])
            if len(text.encode()) < 256 and text.strip():
                run_id = value(connection, "select tidebase.create_run(%s, %s, %s)", text, given, text)
                look = "select run_id, workflow, input from tidebase.get_run(%s)"
                assert connection.execute(look, [run_id]).fetchone() == (text, text, [text])
                assert values(connection, "select run_id from tidebase.list_runs(workflow => %s)", text) == [text]
            connection.execute("select tidebase.append_event('target', 1, 'agent.note', %s)", [given])
        noted = values(connection, "select payload from tidebase.read_events('target') where type = 'agent.note'")
        assert noted == [[text] for text in INJECTIONS]


@pytest.mark.breaks_invariants
def test_a_text_that_is_put_into_a_statement_is_found_out(db: Connection, database: str) -> None:
    """The mechanism taken out: were a value put into a statement, it would be read as a part of it."""
    db.execute("""
        create or replace function tidebase.get_gate_secret(run_id text, name text, voter text default null)
        returns text language plpgsql security definer set search_path = pg_catalog, tidebase, pg_temp as $$
        declare answer text; begin
          execute 'select g.name from gates g where g.run_id = ''' || run_id || '''';
          return answer;
        end $$""")
    with member(db, database, "worker") as connection:
        codes = {
            attempt(connection, "get_gate_secret", run_id=text, name="g")[0]
            for text in INJECTIONS
            if "drop" not in text
        }
        assert "42601" in codes  # a syntax error: no class that the test above lets pass
        assert (
            attempt(connection, "get_gate_secret", run_id="'; drop table gate_votes cascade; --", name="g")[0]
            != "TB012"
        )
    assert value(db, "select to_regclass('tidebase.gate_votes')") is None


# --- What a linter says -----------------------------------------------------------------------------------------------


def _for_pgspot(definition: str, security_definer: bool, composites: list[str]) -> str:
    """A function as pgspot (that is, libpg_query's PL/pgSQL parser) can read it: the fields of a composite variable are
    unknown to it, those of a record are not; RETURN NEXT takes no ROW(...); and what is not SECURITY DEFINER is called
    by functions that are, with their search_path.
    """
    head, body = definition.split("$function$", 1)
    if not security_definer and "SET search_path" not in head:
        head = head.rstrip().removesuffix("AS") + " SET search_path TO 'pg_catalog', 'pg_temp'\nAS "
    kinds = "|".join(composites)
    body = re.sub(rf"^(  \w+) (tidebase\w*\.)?({kinds})( :=.*)?;", r"\1 record\4;", body, flags=re.MULTILINE)
    body = body.replace("return next ", "return query select ")
    return f"create schema tidebase; create schema tidebase_private;\n{head}$function${body};\n"


def pgspot(db: Connection, folder: Path) -> list[str]:
    """What pgspot says of each function as it is installed. No finding is ignored."""
    composites = values(
        db, f"select relname from pg_class where relnamespace in {SCHEMAS} and relkind in ('r', 'v', 'c')"
    )
    # Without defaults: as they are printed, their types are not qualified.
    definitions = db.execute(
        "select p.oid::regproc::text, p.prosecdef, replace(pg_get_functiondef(p.oid), pg_get_function_arguments(p.oid),"  # type: ignore[arg-type]
        f" pg_get_function_identity_arguments(p.oid)) from pg_proc p where p.pronamespace in {SCHEMAS} order by 1"
    ).fetchall()
    for name, security_definer, definition in definitions:
        (folder / f"{name}.sql").write_text(_for_pgspot(definition, security_definer, composites))
    files = sorted(file.name for file in folder.glob("*.sql"))
    assert len(files) == len(definitions) > 100
    result = subprocess.run(
        [str(Path(sys.executable).with_name("pgspot")), *files], cwd=folder, capture_output=True, text=True
    )
    said = re.split(r"^(?=\S+\.sql: $)", result.stdout, flags=re.MULTILINE)
    clean = r"\S+\.sql: \n\s*Errors: 0 Warnings: 0 Unknown: 0\s*(TOTAL:.*\s*)?"  # nor was anything left unread
    found = [text for text in said if text.strip() and not re.fullmatch(clean, text)]
    return found + ([result.stderr] if result.stderr else [])


@on_newest_only
def test_pgspot_finds_nothing(db: Connection, tmp_path: Path) -> None:
    pytest.importorskip("pgspot", reason="pgspot is not installed")
    assert pgspot(db, tmp_path) == []


@on_newest_only
@pytest.mark.breaks_invariants
@pytest.mark.parametrize("path", ["pg_catalog, tidebase", "pg_catalog, public, tidebase, pg_temp", '"$user", pg_temp'])
def test_pgspot_finds_a_search_path_that_is_not_safe(db: Connection, tmp_path: Path, path: str) -> None:
    pytest.importorskip("pgspot", reason="pgspot is not installed")
    db.execute(f"alter function tidebase.renew_lease set search_path = {path}")  # type: ignore[arg-type]
    (found,) = pgspot(db, tmp_path)
    assert "PS004" in found and "renew_lease" in found
