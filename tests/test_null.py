"""NULL for a parameter that has a default means the default: in every function of the schema.

Generated over the catalogue: each such parameter is left out, and given as NULL, from the same rows; the answer and all
rows must be the same.
"""

from __future__ import annotations

import re
from typing import NamedTuple

import psycopg
import pytest

from .conftest import long
from .probes.support import Connection, tables

#: Runs with something of everything. r is at work, with a child; failed, and done, are over; hooked tells its webhook.
SETUP = """
select tidebase.create_run('w', '1', run_id => id, recovery_webhook => 'http://hook.test', max_attempts => 5)
from unnest(array['r', 'free', 'failed', 'done', 'hooked']) id;
select tidebase.acquire_run(id, 'h', '1 hour') from unnest(array['r', 'failed', 'done', 'hooked']) id;
select tidebase.begin_step('r', 1, 'unsafe', side_effects => '{send}');
select tidebase.begin_step('r', 1, 'plain', retries => 3);
select tidebase.record_step('r', 1, 'done', '1', '1');
select tidebase.create_child('r', 1, 'c', 'w');
select tidebase.set_state('r', 1, '{"n": 1}'), tidebase.set_state('r', 1, '{"n": 2}', label => 'two');
select tidebase.create_snapshot('r', 1, 'snap', state => '[1]');
select tidebase.open_gate('r', 1, 'g');
select tidebase.fail_run('failed', 1, retryable => false), tidebase.complete_run('done', 1);
select tidebase.record_recovery('hooked'), tidebase.claim_deliveries();
update tidebase.deliveries set attempts = 8;
select tidebase.record_recovery('r');
select tidebase.add_channel(id, 'http://channel.test') from unnest(array['hooked', 'r']) id;
update tidebase.channels set attempts = 7, sending_seq = 1, next_at = next_at + interval '1 h' where run_id = 'hooked';
select tidebase.put_schedule('s', 'w', '0 * * * *');
select tidebase.enqueue_run('w', queue => queue, run_id => queue || ' 1') from unnest(array['q', 'default']) queue;
select tidebase.put_queue('u', endpoint => 'http://endpoint.test');
select tidebase.enqueue_run('w', queue => 'u', run_id => 'u 1');
update tidebase.runs set finished_at = finished_at - interval '1 day' where finished_at is not null;
select tidebase.put_checkpoint('t', '', id, 'x', '', '{"run_id": "lg"}', parent)
from (values ('a', null), ('b', 'a')) c (id, parent);
"""

#: A call of each function with a default that is not NULL, with nothing but what it needs.
CALLS = {
    "acquire_run": "run_id => 'free', holder => 'h'",
    "add_channel": "run_id => 'free', url => 'http://channel.test'",
    "backfill_schedule": "name => 's', since => '2024-01-01 00:00+00', until => '2024-01-01 02:00+00'",
    "cancel_runs": "queue => 'q'",
    "claim_runs": "",
    "enqueue_run": "workflow => 'w', run_id => 'new'",
    "move_runs": "to_queue => 'other', queue => 'q'",
    "next_fires": "cron => '0 0 29 2 *'",
    "put_queue": "queue => 'q'",
    "put_schedule": "name => 't', workflow => 'w', every => '1 hour'",
    "retry_runs": "workflow => 'w'",
    "append_event": "run_id => 'r', token => 1, type => 'x'",
    "cancel_run": "run_id => 'r'",
    "claim_channel_deliveries": "",
    "claim_deliveries": "",
    "claim_invocations": "",
    "create_child": "run_id => 'r', token => 1, name => 'new', workflow => 'w'",
    "create_snapshot": "run_id => 'r', token => 1, label => 'new'",
    "fail_run": "run_id => 'r', token => 1",
    "fail_step": "run_id => 'r', token => 1, name => 'plain'",
    "finish_channel_delivery": "run_id => 'hooked', channel => 1, attempt => 7, delivered => true",
    "finish_delivery": "run_id => 'hooked', delivery => 1, attempt => 8, delivered => false",
    "delete_checkpoints_of_runs": "run_ids => '{lg}'",
    "get_checkpoint": "thread_id => 't'",
    "get_checkpoint_beyond": "thread_id => 't'",
    "list_checkpoints": "",
    "prune_threads": "thread_ids => '{t}'",
    "get_state": "run_id => 'r'",
    "list_gates": "",
    "list_inbox": "",
    "search_runs": "",
    "list_runs": "",
    "list_snapshots": "run_id => 'r'",
    "list_state_versions": "run_id => 'r'",
    "load_checkpoints": "run_id => 'r'",
    "merge_state": "run_id => 'r', token => 1, members => '{\"m\": null}'",
    "open_gate": "run_id => 'r', token => 1, name => 'new'",
    "patch_state": "run_id => 'r', token => 1, patch => '{\"m\": 1}'",
    "purge_runs": "older_than => '1 hour'",
    "read_events": "run_id => 'r'",
    "reconcile": "",
    "record_recovery": "run_id => 'r'",
    "record_step": "run_id => 'r', token => 1, name => 'new', input => '1', output => '2'",
    "record_usage": "run_id => 'r', token => 1, input_tokens => 7, cost => 1",
    "recover_run": "run_id => 'failed'",
    "renew_lease": "run_id => 'r', token => 1",
    "renew_leases": "run_ids => '{r}', tokens => '{1}'",
    "restore_state": "run_id => 'r', token => 1, version => 1",
    "save_state": "run_id => 'r', token => 1, label => 'saved'",
    "set_state": "run_id => 'r', token => 1, value => '{}'",
    "watch_run": "run_id => 'r'",
}

DEFAULTS = """
select p.proname, p.proargnames[i] from pg_proc p, generate_series(1, p.pronargs) i
where p.pronamespace = 'tidebase'::regnamespace and i > p.pronargs - p.pronargdefaults
  and pg_get_function_arg_default(p.oid, i) !~ '^NULL' order by 1, 2"""

#: What is new every time: ids, secrets, chance.
CHANCE = re.compile(r"run_[-0-9a-f]{36}|gate_[0-9a-f]{64}|(?<=\"nonce\": )\"[^\"]*\"|(?<=\"retry_after\": )[^,}]*")
MOMENT = re.compile(r'(?<=")\d{4}-\d\d-\d\d[T ][0-9:.]+[+-]\d\d(?::\d\d)?(?=")')


class Outcome(NamedTuple):
    """What a call answered, or its error, and all rows after it."""

    answer: list[str]
    rows: list[str]


def outcome(db: Connection, function: str, arguments: str) -> Outcome:
    """What the call comes to; it is taken back."""
    everything = " union all ".join(
        f"select '{name} ' || to_jsonb(t)::text from {name} t"
        for name in tables(db, "tableoid")  # all have that
    )

    def read(query: str) -> list[str]:
        return [CHANCE.sub("?", text) for (text,) in db.execute(query).fetchall()]  # type: ignore[arg-type]

    def look(query: str) -> list[str]:
        texts = read(query)
        moments = sorted({moment for text in texts for moment in MOMENT.findall(text)} - before)
        # New moments count from the beginning of the call: a minute from then is one, whenever that was. Those of a
        # calendar are years away.
        ages = db.execute(
            "select m, round(extract(epoch from m::timestamptz - %s) / 20)::text from unnest(%s::text[]) m"
            " where m::timestamptz - %s < interval '1 month'",
            (begun, moments, begun),
        ).fetchall()
        known = dict(ages)
        return sorted(MOMENT.sub(lambda found: known.get(found.group(), found.group()), text) for text in texts)

    with db.transaction(force_rollback=True):
        before = {moment for text in read(everything) for moment in MOMENT.findall(text)}
        begun = db.execute("select clock_timestamp()").fetchone()[0]  # type: ignore[index]
        try:
            with db.transaction():
                answer = look(f"select to_jsonb(t)::text from tidebase.{function}({arguments}) t")
        except psycopg.Error as error:
            answer = [f"{error.sqlstate}: {error.diag.message_primary}"]
        rows = look(everything)
    return Outcome(answer, rows)


def differences(db: Connection) -> list[str]:
    """The parameters for which NULL is not the default."""
    found = []
    for function, parameter in db.execute(DEFAULTS).fetchall():  # type: ignore[arg-type]
        plain = outcome(db, function, CALLS[function])
        given = outcome(db, function, ", ".join(filter(None, [CALLS[function], f"{parameter} => null"])))
        if plain.answer[:1] and re.match(r"[0-9A-Z]{5}: ", plain.answer[0]):
            found.append(f"{function} is refused without any: {plain.answer}")
        elif given != plain:
            changed = [line for line in [*given.answer, *given.rows] if line not in [*plain.answer, *plain.rows]]
            found.append(f"{function}({parameter} => null): {changed or 'something is missing'}")
    return found


@pytest.fixture
def rows(db: Connection) -> Connection:
    db.execute(SETUP)
    return db


@pytest.mark.breaks_invariants  # it moves times, and counts of attempts, by hand
def test_null_is_the_default_of_every_parameter_that_has_one(rows: Connection) -> None:
    assert {name for name, _ in rows.execute(DEFAULTS)} == set(CALLS)  # type: ignore[arg-type]
    assert differences(rows) == []


@pytest.mark.breaks_invariants
@pytest.mark.parametrize(
    ("function", "text", "instead"),
    [
        ("cancel_run", "cascade := coalesce(cascade, true);", ""),  # NULL leaves the children alive
        ("acquire_run", "ttl := '60 seconds';", "ttl := '61 minutes';"),  # another default
    ],
)
@long
def test_another_meaning_of_null_is_noticed(rows: Connection, function: str, text: str, instead: str) -> None:
    (definition,) = rows.execute("select pg_get_functiondef(%s::regproc)", (f"tidebase.{function}",)).fetchone() or (
        "",
    )
    assert text in definition
    rows.execute(definition.replace(text, instead))
    assert [line.partition("(")[0] for line in differences(rows)] == [function]
