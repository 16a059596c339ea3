"""The verdict: the ledger's file against the database.

A lease's token says which execution was whose. Under one token a step is charged at most once, whatever happened; under
a later one again only if the process that had charged it was killed afterwards, or was ordered away while it stood
still, before anybody was told that the step is complete.
"""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from ...probes.support import Connection, values
from .book import Entry
from .scripts import PAID, Script, works

Key = tuple[str, str]

#: What differs between two violations of one cause.
QUOTED = re.compile(r"'[^']*'|(?<=token )\d+")

GAPS = """
select h.run_id from tidebase.run_heads h left join tidebase.events e on e.run_id = h.run_id
group by h.run_id, h.last_seq having count(e.seq) <> h.last_seq or max(e.seq) <> h.last_seq or min(e.seq) <> 1"""


@dataclass
class Stored:
    """What the database has in the end."""

    steps: dict[Key, Any]
    gates: dict[Key, Any]
    results: dict[str, Any]
    effects: dict[Key, list[str]]
    edges: dict[Key, str]
    broken: list[str] = field(default_factory=list)


def look(connection: Connection) -> Stored:
    """Reads it, as a superuser."""
    rows = connection.execute("select run_id, name, output from tidebase.steps where status = 'completed'").fetchall()
    steps = {(run, name): output for run, name, output in rows}
    rows = connection.execute("select run_id, name, payload from tidebase.gates where status = 'decided'").fetchall()
    gates = {(run, name): payload for run, name, payload in rows}
    rows = connection.execute(
        "select r.run_id, r.result from tidebase.runs r join tidebase.run_heads h using (run_id)"
        " where h.status = 'completed'"
    ).fetchall()
    results = dict(rows)
    effects: dict[Key, list[str]] = defaultdict(list)
    for run, step, receipt in connection.execute("select run, step, receipt from public.effects").fetchall():
        effects[run, step].append(receipt)
    rows = connection.execute(
        "select run_id, name, child_run_id from tidebase.edges where edge_type <> 'fork'"
    ).fetchall()
    edges = {(run, name): child for run, name, child in rows}
    rows = connection.execute("select run_id, invariant, detail from tidebase_private.check_invariants()").fetchall()
    broken = [f"run {run}: {invariant}: {detail}" for run, invariant, detail in rows]
    broken += [f"run {run}: its log has a gap" for run in values(connection, GAPS)]
    return Stored(steps, gates, results, effects, edges, broken)


@dataclass
class Account:
    """The ledger's entries, sorted.

    Attributes:
        killed: when each process was killed.
    """

    entries: list[Entry]
    killed: dict[int, int]
    runs: dict[str, Entry] = field(default_factory=dict)
    charges: dict[Key, list[Entry]] = field(default_factory=lambda: defaultdict(list))
    told: dict[Key, list[Entry]] = field(default_factory=lambda: defaultdict(list))
    raised: dict[Key, list[Entry]] = field(default_factory=lambda: defaultdict(list))
    holders: dict[str, list[Entry]] = field(default_factory=lambda: defaultdict(list))
    orders: dict[str, list[Entry]] = field(default_factory=lambda: defaultdict(list))
    reviews: dict[Key, list[Entry]] = field(default_factory=lambda: defaultdict(list))
    left: dict[str, list[Entry]] = field(default_factory=lambda: defaultdict(list))
    done: dict[str, Entry] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for entry in self.entries:
            match entry["op"]:
                case "run" | "done" as op:
                    (self.runs if op == "run" else self.done)[entry["run"]] = entry
                case "charge" | "got" | "raised" | "review" as op:
                    by = {"charge": self.charges, "got": self.told, "raised": self.raised, "review": self.reviews}[op]
                    by[entry["run"], entry["step"]].append(entry)
                case "took" | "order" | "left" as op:
                    {"took": self.holders, "order": self.orders, "left": self.left}[op][entry["run"]].append(entry)

    def lived(self, charge: Entry) -> bool:
        """Whether nothing happened to the process that excuses another execution: kill, or an order after a stop."""
        killed = self.killed.get(charge["pid"])
        ordered = [order for order in self.orders[charge["root"]] if order["from"] == charge["pid"]]
        return (killed is None or killed < charge["t"]) and not ordered

    def troubled(self, run: str, until: int) -> bool:
        """Whether a process that had the run was killed or ordered away before that moment."""
        took = [entry for entry in self.holders[run] if entry["t"] <= until]
        return any(
            self.killed.get(entry["pid"], until + 1) <= until
            or any(o["from"] == entry["pid"] and o["t"] <= until for o in self.orders[entry["root"]])
            for entry in took
        )

    def cause(self, charge: Entry) -> str:
        """What the workflow was told instead of the receipt, and what the run was left with."""
        key = charge["run"], charge["step"]
        same = [e for e in self.raised[key] if e["token"] == charge["token"] and e["t"] >= charge["t"]]
        if same:
            return str(same[0]["error"])
        later = [e for e in self.left[charge["root"]] if e["pid"] == charge["pid"] and e["t"] >= charge["t"]]
        return f"nothing; the run was left with {later[0]['error']}" if later else "nothing"


def judge(account: Account, stored: Stored) -> list[str]:
    """Every violation, with its kind before the first colon."""
    rules = (_stuck, _paid_twice, _unsafe, _keyed, _reviews, _receipts, _results, _transactions)
    found = [text for rule in rules for text in rule(account, stored)]
    return found + [f"invariant: {text}" for text in stored.broken]


def figures(account: Account) -> Counter[str]:
    """What was done, in numbers."""
    charges = [charge for charges in account.charges.values() for charge in charges]
    lived = [charge for charge in charges if account.lived(charge)]
    return Counter(
        {
            "runs": len(account.runs),
            "calls": len(account.entries),
            "charges": len(charges),
            "steps paid": len(account.charges),
            "charges of workers that lived": len(lived),
            "paid twice without a crash": len(lived) - len({(c["run"], c["step"]) for c in lived}),
            "reviews": sum(map(len, account.reviews.values())),
            "surfaced": sum(map(len, account.left.values())),
        }
    )


def surfaced(account: Account) -> Counter[str]:
    """What ``tide.run`` raised, how often."""
    return Counter(entry["error"].split(" ")[0] for entries in account.left.values() for entry in entries)


def kinds(violations: list[str]) -> Counter[str]:
    """How many there are of each kind and cause."""
    found: Counter[str] = Counter()
    for violation in violations:
        kind, _, rest = violation.partition(":")
        cause = rest.partition("told:")[2].split(";")[0]
        found[f"{kind}:{re.sub(QUOTED, '..', cause)}"[:140]] += 1
    return found


def _stuck(account: Account, stored: Stored) -> Iterator[str]:
    for run in account.runs.keys() - account.done.keys():
        last = account.left[run][-1]["error"] if account.left[run] else "nothing"
        yield f"stuck: run {run} did not come to its end; it was last left with {last}"
    for run in account.done.keys() - stored.results.keys():
        yield f"lost completion: run {run} returned a result, and is not completed"


def _paid_twice(account: Account, stored: Stored) -> Iterator[str]:
    for (run, step), charges in account.charges.items():
        decided = sum(entry["decision"] == "retry" for entry in account.reviews.get((run, step), []))
        for index, charge in enumerate(sorted(charges, key=lambda entry: (entry["token"], entry["t"]))[:-1]):
            later = sorted(charges, key=lambda entry: (entry["token"], entry["t"]))[index + 1]
            if charge["kind"] == "unsafe" and decided:
                decided -= 1  # a person said so; whether it had to come to that is for _reviews
            elif charge["token"] == later["token"] or account.lived(charge):
                what = (
                    f"step {step} ({charge['kind']}) of run {run}, under tokens {charge['token']} and {later['token']}"
                )
                yield f"paid twice without a crash: {what}; it was told: {account.cause(charge)}"
        told = min((entry["token"] for entry in account.told.get((run, step), [])), default=None)
        for charge in charges:
            if told is not None and charge["token"] > told:
                yield f"paid after the receipt was returned: step {step} of run {run} under token {charge['token']}"


def _unsafe(account: Account, stored: Stored) -> Iterator[str]:
    for (run, step), charges in account.charges.items():
        allowed = 1 + sum(entry["decision"] == "retry" for entry in account.reviews.get((run, step), []))
        if charges[0]["kind"] == "unsafe" and len(charges) > allowed:
            yield f"an unsafe step was executed again: {step} of run {run}: {len(charges)} times, {allowed} allowed"


def _keyed(account: Account, stored: Stored) -> Iterator[str]:
    keys: dict[str, set[Key]] = defaultdict(set)
    for step, charges in account.charges.items():
        for charge in charges:
            if charge["kind"] == "keyed":
                keys[charge["key"]].add(step)
        if sum(not charge["again"] for charge in charges) > 1 and charges[0]["kind"] == "keyed":
            yield f"keyed twice: step {step} was charged under two keys"
    yield from (f"keyed twice: {steps} share the key {key}" for key, steps in keys.items() if len(steps) > 1)


def _reviews(account: Account, stored: Stored) -> Iterator[str]:
    for (run, step), reviews in account.reviews.items():
        for review in reviews[:1]:
            if not account.troubled(run, review["t"]):
                charges = account.charges.get((run, step), [])
                cause = account.cause(charges[0]) if charges else "nothing"
                yield f"review without a crash: step {step} of run {run}; told: {cause}; {review['reason']}"


def _receipts(account: Account, stored: Stored) -> Iterator[str]:
    for (run, step), entries in account.told.items():
        where = {"gate": stored.gates, "pausing": stored.gates}.get(entries[0]["kind"], stored.steps)
        if entries[0]["kind"] not in (*PAID, "transfer", "gate", "pausing"):
            continue
        for value in {json.dumps(entry["value"]) for entry in entries}:
            if json.dumps(where.get((run, step))) != value:
                yield f"lost completion: {step} of run {run}: {value} was returned, {where.get((run, step))} is stored"
    for (run, step), charges in account.charges.items():
        if (run, step) in stored.steps and stored.steps[run, step] not in [charge["receipt"] for charge in charges]:
            yield f"lost completion: step {step} of run {run}: {stored.steps[run, step]}, as is stored, is no receipt"


def _results(account: Account, stored: Stored) -> Iterator[str]:
    for run, entry in account.done.items():
        if stored.results.get(run) != entry["result"]:
            yield f"wrong result: run {run} returned {entry['result']}, and has {stored.results.get(run)}"
        source = account.runs[run].get("source")
        for name, problem in _wrong(run, account.runs[run]["body"], entry["result"], stored):
            yield f"wrong result: {name} of run {run}{f', a fork of {source}' if source else ''}: {problem}"


def _wrong(run: str | None, body: Script, result: Any, stored: Stored) -> Iterator[tuple[str, str]]:
    """Where a result is not what is stored for its works; of a fork's children that it took over, names are checked."""
    if not isinstance(result, dict):
        yield "all", f"{result!r} is no result"
        return
    for work in works(body):
        kind, name = work["kind"], work["name"]
        if name not in result:
            yield name, "it is missing"
        elif kind in (*PAID, "transfer") and run and stored.steps.get((run, name)) != result[name]:
            yield name, f"{result[name]} is not the checkpoint {stored.steps.get((run, name))}"
        elif kind in ("gate", "pausing") and run and stored.gates.get((run, name)) != result[name]:
            yield name, f"{result[name]} is not the answer {stored.gates.get((run, name))}"
        elif kind in ("child", "fan"):
            inner = {name: work["inner"]} if kind == "child" else work["inner"]
            values = {name: result[name]} if kind == "child" else result[name]
            for each, script in inner.items():
                yield from _wrong(stored.edges.get((run or "", each)), script, values.get(each), stored)


def _transactions(account: Account, stored: Stored) -> Iterator[str]:
    for (run, step), receipts in stored.effects.items():
        if len(receipts) > 1:
            yield f"transaction twice: {step} of run {run} took effect {len(receipts)} times"
        if (run, step) in stored.steps and stored.steps[run, step] not in receipts:
            yield f"transaction: {step} of run {run} is not the one that took effect"
        if (run, step) not in stored.steps:
            yield f"transaction: {step} of run {run} took effect without a checkpoint"
