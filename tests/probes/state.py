"""Attacks on state, usage, budgets and retention; see ``probes``: each returns the violations that it saw."""

from __future__ import annotations

import json
import random
import threading
from decimal import Decimal
from functools import partial
from typing import Any

import json_merge_patch
from psycopg.types.json import Jsonb

from ..support.patience import PATIENCE_S
from .support import (
    Connection,
    attempt,
    audit,
    behind_the_lock,
    call,
    call_rows,
    connect,
    grant,
    image_of,
    new_run,
    queue,
    tables,
    together,
    values,
)

# -- state


def four_writers(url: str, rnd: random.Random | None = None, each: int = 15) -> list[str]:
    """Sets, patches, saves and restores by four writers at once, against a model in plain Python.

    Each writer knows what it asked for and which version that became; put in the order of their versions, the requests
    applied to the model give every version.
    """
    rnd = rnd or random.Random(4)
    with connect(url) as db:
        run_id = new_run(db)
        grant(db, run_id)
        call(db, "set_state", run_id=run_id, token=1, value=Jsonb(_document(rnd)))
        [first] = [row["value"] for row in call_rows(db, "get_state", run_id=run_id)]
        plans = [[_request(rnd) for _ in range(each)] for _ in range(4)]

        def write(connection: Connection, number: int) -> list[tuple[int, str, dict[str, Any]]]:
            done = []
            for function, arguments in plans[number]:
                encoded = {k: Jsonb(v) if k in ("value", "patch") else v for k, v in arguments.items()}
                version = call(connection, function, run_id=run_id, token=1, **encoded)
                done.append((version, function, arguments))
            return done

        written = sorted((entry for entries in together(url, 4, write) for entry in entries), key=lambda e: e[0])
        versions = [entry[0] for entry in written]
        if versions != list(range(2, 2 + 4 * each)):
            return [f"the versions are not dense: {versions}"]
        model = {1: first}
        for version, function, arguments in written:
            model[version] = _apply(model, version - 1, function, arguments)
        wrong = [
            f"version {version} reads {row['value']!r}, written was {expected!r}"
            for version, expected in model.items()
            if json.dumps((row := call(db, "get_state", run_id=run_id, version=version))["value"], sort_keys=True)
            != json.dumps(expected, sort_keys=True)
        ]
        return wrong + audit(db, run_id)


def _document(rnd: random.Random, depth: int = 3) -> Any:
    kind = rnd.random()
    if depth and kind < 0.5:
        return {rnd.choice("abcde"): _document(rnd, depth - 1) for _ in range(rnd.randrange(4))}
    if depth and kind < 0.7:
        return [_document(rnd, depth - 1) for _ in range(rnd.randrange(4))]
    return rnd.choice([None, True, 0, 1, 2.5, "", "text", "text and more", "x" * 300, -7])


def _request(rnd: random.Random) -> tuple[str, dict[str, Any]]:
    kind = rnd.random()
    if kind < 0.6:
        return "patch_state", {"patch": _document(rnd)}
    if kind < 0.8:
        return "set_state", {"value": _document(rnd)}
    if kind < 0.9:
        return "save_state", {"label": rnd.choice("lmn")}
    return "restore_state", {"version": 1}


def _apply(model: dict[int, Any], last: int, function: str, arguments: dict[str, Any]) -> Any:
    if function == "set_state":
        return arguments["value"]
    if function == "patch_state":
        return json_merge_patch.merge(json.loads(json.dumps(model[last])), arguments["patch"])
    return model[last] if function == "save_state" else model[arguments["version"]]


def compare_and_set(url: str) -> list[str]:
    """Eight writers who have read the same version and wait for the same lock: one of them writes."""
    with connect(url) as db:
        run_id = new_run(db)
        grant(db, run_id)
        call(db, "set_state", run_id=run_id, token=1, value=Jsonb(0))
        outcomes = behind_the_lock(
            url,
            run_id,
            8,
            lambda connection, number: attempt(
                connection, "set_state", run_id=run_id, token=1, value=Jsonb(number), expected_version=1
            ),
        )
        states = sorted(outcome[0] for outcome in outcomes)
        wrong = [] if states == ["TB011"] * 7 + ["ok"] else [f"eight writers expected version 1: {states}"]
        return wrong + audit(db, run_id)


# -- usage


def exact_sums(url: str, recorders: int = 16, each: int = 12) -> list[str]:
    """Recorders in a parent and its children, some recording the same responses: the owner has the exact sum."""
    with connect(url) as db:
        root = new_run(db, budget=Jsonb({"cost_usd": 1_000_000}))
        grant(db, root)
        runs = [root]
        for number in range(3):
            child = call(db, "create_child", run_id=root, token=1, name=f"c{number}", workflow="probe")["run_id"]
            grant(db, child)
            runs.append(child)
        expected: dict[tuple[str, str], Decimal] = {}
        plans: list[list[tuple[str, str, Decimal]]] = []
        for number in range(recorders):
            plan = []
            for n in range(each):
                run_id = runs[number % len(runs)]
                response = f"shared-{n}" if n % 3 == 0 else f"{number}-{n}"
                cost = Decimal(n * 7 + 1) / Decimal(10) ** 9
                plan.append((run_id, response, cost))
                expected[run_id, response] = cost
            plans.append(plan)

        def recorder(connection: Connection, number: int) -> int:
            return sum(
                call(connection, "record_usage", run_id=r, token=1, response_id=i, cost_usd=c, input_tokens=2)[
                    "recorded"
                ]
                for r, i, c in plans[number]
            )

        # The first records of all of them wait for the accounts of the tree: what was read before is out of date then.
        with connect(url) as blocker, queue(url) as line:
            with blocker.transaction():
                blocker.execute("select from tidebase.accounts where run_id = %s for update", (root,))
                futures = [line.add(partial(recorder, number=number)) for number in range(recorders)]
                line.settle(db)
            counted = sum(future.result(PATIENCE_S) for future in futures)
        wrong = [] if counted == len(expected) else [f"{counted} records were counted, there are {len(expected)}"]
        row = db.execute(
            "select a.shared_cost_usd, a.shared_tokens, t.tree_cost_usd, t.tree_input_tokens"
            " from tidebase.accounts a join tidebase.usage_totals t using (run_id) where run_id = %s",
            [root],
        ).fetchone()
        total = sum(expected.values())
        if row != (total, 2 * len(expected), total, 2 * len(expected)):
            wrong.append(f"the sums are {row}, recorded were {total} and {2 * len(expected)}")
        return wrong + audit(db, *runs)


def nothing_begins_after_the_limit(url: str, workers: int = 16) -> list[str]:
    """Workers of a tree begin steps and record their price until the budget stops them. Who has been told that it is
    used up never begins a step afterwards; when all have stopped, it is passed by what was under way at most.
    """
    with connect(url) as db:
        root = new_run(db, budget=Jsonb({"cost_usd": 100}))
        grant(db, root)
        runs = [
            call(db, "create_child", run_id=root, token=1, name=f"c{n}", workflow="probe")["run_id"]
            for n in range(workers)
        ]
        for run_id in runs:
            grant(db, run_id)
        seen = threading.Event()

        def work(connection: Connection, number: int) -> list[str]:
            wrong = []
            for step in range(200):
                known = seen.is_set()
                state, answer = attempt(connection, "begin_step", run_id=runs[number], token=1, name=f"s{step}")
                if state == "TB010":
                    return wrong
                if state != "ok":
                    return [*wrong, f"begin_step: {state}: {answer}"]
                if known:
                    wrong.append(f"worker {number} began step {step} after the limit had been passed and seen")
                total = call(connection, "record_usage", run_id=runs[number], token=1, cost_usd=1)
                if total["exhausted"]:
                    seen.set()
                call(connection, "complete_step", run_id=runs[number], token=1, name=f"s{step}")
            return [*wrong, f"worker {number} was never stopped"]

        wrong = [problem for problems in together(url, workers, work) for problem in problems]
        [spent] = values(db, "select shared_cost_usd from tidebase.accounts where run_id = %s", root)
        if not 100 <= spent < 100 + workers:
            wrong.append(f"{spent} were spent of 100")
        [told] = values(
            db, "select count(*) from tidebase.events where type = 'budget.exhausted' and run_id = any(%s)", runs
        )
        if told != 1:
            wrong.append(f"the budget was used up {told} times")
        return wrong + audit(db, root, *runs)


def a_budget_that_comes_late(url: str) -> list[str]:
    """A budget is set on a tree while its leaves record: nothing that they used is missing or counted twice."""
    with connect(url) as db:
        root = new_run(db)
        grant(db, root)
        middle = call(db, "create_child", run_id=root, token=1, name="m", workflow="probe")["run_id"]
        grant(db, middle)
        own = call(
            db, "create_child", run_id=root, token=1, name="own", workflow="probe", budget=Jsonb({"tokens": 10**9})
        )["run_id"]
        grant(db, own)
        leaves = []
        used = {"cost_usd": Decimal("0.01"), "output_tokens": 1}
        for number in range(8):
            parent = (root, middle, own)[number % 3]
            leaf = call(db, "create_child", run_id=parent, token=1, name=f"l{number}", workflow="probe")["run_id"]
            grant(db, leaf)
            call(db, "record_usage", run_id=leaf, token=1, **used)  # so that some is there however the race ends
            leaves.append(leaf)

        def work(connection: Connection, number: int) -> None:
            if number == 8:
                call(connection, "set_budget", run_id=root, cost_usd=Decimal(1000))
                return
            for _ in range(25):
                call(
                    connection,
                    "record_usage",
                    run_id=leaves[number],
                    token=1,
                    cost_usd=Decimal("0.01"),
                    output_tokens=1,
                )

        together(url, 9, work)
        for leaf in leaves:
            call(db, "record_usage", run_id=leaf, token=1, **used)
        row = db.execute(
            "select shared_cost_usd, shared_tokens from tidebase.accounts where run_id = %s", [root]
        ).fetchone()
        wrong = [] if row == (Decimal("2.16"), 216) else [f"the sums are {row}, recorded were 2.16 and 216"]
        return wrong + audit(db, root, middle, own, *leaves)


# -- retention


def purge_under_load(url: str, rounds: int = 12) -> list[str]:
    """Two purgers against eight workers who make trees, finish some, fail and resume others, and fork: what is alive
    stays whole, what goes goes with everything.
    """
    stop = threading.Event()
    kept: list[str] = []
    lock = threading.Lock()

    def work(connection: Connection, number: int) -> list[str]:
        if number < 2:
            while not stop.is_set():
                call(connection, "purge_runs", older_than="0", max=5)
            return []
        wrong: list[str] = []
        for round_number in range(rounds):
            wrong += _tree(connection, f"w{number}-{round_number}", kept, lock)
        return wrong

    def all_of_them(connection: Connection, number: int) -> list[str]:
        try:
            return work(connection, number)
        finally:
            if number >= 2:
                with lock:
                    finished.append(number)
                    if len(finished) == 8:
                        stop.set()

    finished: list[int] = []
    wrong = [problem for problems in together(url, 10, all_of_them) for problem in problems]
    with connect(url) as db:
        return wrong + _child_of_who_is_alive(db) + orphans(db) + audit(db, *kept)


def _child_of_who_is_alive(connection: Connection) -> list[str]:
    """However the races ended: a child that is finished stays for as long as its parent lives."""
    parent = new_run(connection)
    kid = {"run_id": parent, "token": grant(connection, parent), "name": "c", "workflow": "probe"}
    child = call(connection, "create_child", **kid)["run_id"]
    call(connection, "complete_run", run_id=child, token=grant(connection, child))
    call(connection, "purge_runs", older_than="0")
    return [] if not call(connection, "create_child", **kid)["created"] else ["a child that was finished was purged"]


def _tree(connection: Connection, name: str, kept: list[str], lock: threading.Lock) -> list[str]:
    """A parent with a child that is finished, one that failed, and a fork; the parent is alive all the time."""
    parent = new_run(connection, run_id=name)
    held = grant(connection, parent)
    wrong = []
    for number in range(2):
        kid = {"run_id": parent, "token": held, "name": f"c{number}", "workflow": "probe"}
        child = call(connection, "create_child", **kid)["run_id"]
        token = grant(connection, child)
        call(connection, "begin_step", run_id=child, token=token, name="s")
        call(connection, "complete_step", run_id=child, token=token, name="s", output=Jsonb(number))
        call(connection, "set_state", run_id=child, token=token, value=Jsonb({"n": number}))
        if number:
            call(connection, "fail_run", run_id=child, token=token)
        else:
            call(connection, "complete_run", run_id=child, token=token, result=Jsonb("kept"))
        again = call(connection, "create_child", **kid)
        if again != {"run_id": child, "created": False}:
            wrong.append(f"{name}: its child {number} was lost")
        elif number and grant(connection, child, "again") <= token:
            wrong.append(f"{name}: its failed child cannot be resumed")
        elif not number and values(connection, "select result from tidebase.runs where run_id = %s", child) != ["kept"]:
            wrong.append(f"{name}: the result of its child was lost")
    fork = call(connection, "fork_run", run_id=parent)
    before = image_of(connection, fork)
    call(connection, "cancel_run", run_id=parent)
    if image_of(connection, fork) != before:
        wrong.append(f"{name}: its fork has changed")
    with lock:
        kept.append(fork)
    return wrong


def purgers_wait_for_nobody(url: str) -> list[str]:
    """A purger has a parent, and not committed yet; another one comes for the child, and they share an edge."""
    with connect(url) as db, connect(url) as first, queue(url) as line:
        parent = new_run(db)
        grant(db, parent)
        child = call(db, "create_child", run_id=parent, token=1, name="c", workflow="probe")["run_id"]
        for run_id in (child, parent):
            call(db, "cancel_run", run_id=run_id)
        with first.transaction():
            purged = call(first, "purge_runs", older_than="0", max=1)
            second = line.add(lambda connection: call(connection, "purge_runs", older_than="0"))
            line.settle(db)
            waits = not second.done()
        left = call(db, "purge_runs", older_than="0")
    wrong = ["it waits"] if waits else []
    counts = purged, second.result(PATIENCE_S), left
    return wrong + ([] if counts == (1, 0, 1) else [f"purged: {counts}"])


def fork_meets_compaction(url: str) -> list[str]:
    """A fork is held up between its look at the source and the copy of its checkpoints, and the source is compacted."""
    with connect(url) as db, connect(url) as blocker, queue(url) as line:
        source = new_run(db)
        grant(db, source)
        call(db, "record_step", run_id=source, token=1, name="s", input=Jsonb(1), output=Jsonb("dear"))
        call(db, "complete_run", run_id=source, token=1)
        with blocker.transaction(force_rollback=True):
            new_run(blocker, run_id="fork")  # which the fork waits for
            line.add(lambda connection: call(connection, "fork_run", run_id=source, new_run_id="fork"))
            line.settle(db)
            line.add(lambda connection: call(connection, "compact_run", run_id=source))
            line.settle(db)
        answers = line.results()
        outputs = [row["output"] for row in call_rows(db, "load_checkpoints", run_id="fork")]
        broken = values(db, "select invariant from tidebase_private.check_invariants()")
    wrong = [] if answers == ["fork", True] else [f"answered {answers}"]
    return wrong + ([] if outputs == ["dear"] else [f"the fork has the checkpoints {outputs}"]) + broken


def orphans(db: Connection) -> list[str]:
    """Rows of runs that do not exist any more, and runs without a head."""
    found = []
    for table in tables(db, "run_id"):
        query = f"select run_id from {table} t where not exists (select from tidebase.runs r where r.run_id = t.run_id)"
        found += [f"{table}: {run_id} is gone" for run_id in values(db, query)]
    headless = "select run_id from tidebase.runs where run_id not in (select run_id from tidebase.run_heads)"
    return found + [f"{run_id} has no head" for run_id in values(db, headless)]
