"""What the answers of a schedule must say: each is held against what was answered before.

This is no second implementation: it knows what was acknowledged, and which answers would contradict that. The rows
themselves are looked at by ``tidebase_private.check_invariants``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from .cast import Answer, Call, Known


class Violation(AssertionError):
    """An answer that contradicts an earlier one, or a rule of the API."""


def observe(known: Known, call: Call, answer: Answer) -> Known:
    """What is known after an answer. Raises Violation."""

    def must(condition: bool, rule: str) -> None:
        if not condition:
            raise Violation(f"{rule}: {call.actor}: {call.what} was answered {answer.code} {list(answer.row)}")

    if answer.code == "ok":
        return RULES[call.what](known, call, answer, must)
    must(answer.code.startswith("TB"), "an error has a SQLSTATE of its own")
    if answer.code == "TB004":
        must(known.status == "cancelled" or known.overdue, "a run that is not cancelled says so to nobody")
    elif answer.code == "TB005":
        must(known.status == "completed", "only a completed run is final")
    elif call.token is not None and answer.code == "TB003":
        must(not _holds(known, call), "who holds the lease is not turned away, whatever the time")
        must(not (call.what in PAID and _is_last(known, call)), "what is paid for is kept until the next grant")
        must(known.status != "cancelled", "a cancelled run says so to everybody")
    else:
        may = REFUSALS.get((call.what, answer.code))
        must(may is not None and may(known), "a refusal has its reason")
    return known


Must = Callable[[bool, str], None]


def _holds(known: Known, call: Call) -> bool:
    return known.status == "running" and call.token == known.token


#: What ends a step: taken under the last token, whether or not the lease was given up.
PAID = ("record a", "complete a", "complete b", "break b")


def _is_last(known: Known, call: Call) -> bool:
    return call.token == known.token > 0 and known.status not in ("completed", "cancelled")


def _paid(known: Known, call: Call, must: Must) -> None:
    must(_is_last(known, call), "what was done is stored for who had the lease last, and for nobody else")


def _undecided(known: Known) -> bool:
    """The unsafe step may have taken effect, and nobody has said what came of it."""
    return known.in_review or known.running not in ("", "failed for good")


def _fenced(known: Known, call: Call, must: Must) -> None:
    must(_holds(known, call), "a write goes through for who holds the lease, and for nobody else")


def _put(known: Known, step: str, output: str | None, must: Must) -> Known:
    """The step is completed with this output, for good."""
    outputs = dict(known.outputs)
    must(output is not None and outputs.get(step, output) == output, "a checkpoint never changes")
    return replace(known, outputs=tuple(sorted((outputs | {step: output or ""}).items())))


def _acquire(known: Known, call: Call, answer: Answer, must: Must) -> Known:
    outcome, token = answer.row[0], int(answer.row[1] or 0)
    must(outcome != "held" or (known.status == "running" and not known.lapsed), "a lease that has run out is granted")
    must(
        outcome != "waiting" or (known.status == "waiting" and known.gate == "pending"),
        "a run waits for its gate alone",
    )
    must(outcome != "review" or known.status == "review", "a run is in review while a step is")
    must(outcome != "completed" or known.status == "completed", "a run completes once")
    if outcome != "granted":
        return known
    request = call.statement
    if (request, token) in known.requests and token == known.token:
        must(known.status == "running" and not known.lapsed, "the same call gets the lease while it lasts")
        return known
    must(token > known.token, "tokens grow")
    free = {"pending", "queued", "failed"} | ({"running"} if known.lapsed else set())
    free |= {"waiting"} if known.gate != "pending" else set()
    must(known.status in free, "there is one holder")
    gate = "late" if known.gate == "overdue" and known.status == "waiting" else known.gate
    return replace(
        known,
        token=token,
        status="running",
        lapsed=False,
        marked=False,
        gate=gate,
        requests=(*known.requests, (request, token)),
    )


def _claim(known: Known, call: Call, answer: Answer, must: Must) -> Known:
    outcome, token = answer.row[0], int(answer.row[1] or 0)
    before = [given for request, given in known.requests if request == call.statement]
    if before:
        held = known.status == "running" and before[-1] == known.token
        must((outcome == "granted") == held, "the same call gets what it was granted, as long as it has that")
        must(not held or token == known.token, "the same call gets the same lease")
        return known
    if not (known.status == "queued" or (_is_lost(known) and known.marked)):
        known = _what_time_has_brought(known)
    lost = _is_lost(known)
    must((outcome == "granted") == (known.status == "queued" or lost), "what is free is granted, and nothing else")
    if outcome != "granted":
        return known
    must(token > known.token, "tokens grow")
    requests = (*known.requests, (call.statement, token))
    return replace(known, token=token, status="running", lapsed=False, marked=False, requests=requests)


def _is_lost(known: Known) -> bool:
    return known.status == "running" and known.lapsed


def _what_time_has_brought(known: Known) -> Known:
    """Who finds nothing to do looks for it."""
    if known.gate == "overdue":
        known = replace(known, gate="late", status="queued" if known.status == "waiting" else known.status)
    return replace(known, marked=known.marked or _is_lost(known))


def _tell(known: Known, call: Call, answer: Answer, must: Must) -> Known:
    invocation = int(answer.row[0] or 0)
    if known.is_told or not (known.status == "queued" or (_is_lost(known) and known.marked)):
        known = _what_time_has_brought(known)
    may_begin = known.status == "queued" or _is_lost(known)
    must((invocation > 0) == (may_begin and not known.is_told), "of what may be begun one is told, and once at a time")
    if not invocation:
        return known
    must(invocation == known.told + 1, "invocations are counted")
    return replace(known, told=invocation, told_at=known.token, in_flight=True)


def _report(known: Known, call: Call, answer: Answer, must: Must) -> Known:
    if call.token != known.told:
        return known  # it was told again meanwhile
    begun = known.token > known.told_at
    must(answer.row[0] == ("begun" if begun else "sent"), "a report says whether the run was begun")
    return known if begun else replace(known, in_flight=True)


def _enqueue(known: Known, call: Call, answer: Answer, must: Must) -> Known:
    must(answer.row == ("r", "t"), "an id makes one run")
    return known


def _begin(known: Known, call: Call, answer: Answer, must: Must) -> Known:
    outcome, output = answer.row
    step = call.what[-1]
    _fenced(known, call, must)
    if outcome == "replay":
        must(step in dict(known.outputs), "what is replayed was completed")
        return _put(known, step, output, must)
    must(step not in dict(known.outputs), "a completed step never runs again")
    if step == "a":
        must(outcome == "execute", "a plain step is executed again")
        return known
    if outcome == "review":
        must(known.running not in ("", call.statement), "what is reviewed was begun")
        parked = known.begun != known.token  # what this attempt has seen fail leaves it its lease
        return replace(known, status="review" if parked else known.status, in_review=True)
    must(outcome == "execute" and known.running in ("", call.statement), "an unsafe step is not executed twice unasked")
    return replace(known, running=call.statement, begun=known.token)


def _record(known: Known, call: Call, answer: Answer, must: Must) -> Known:
    outcome, output = answer.row
    _paid(known, call, must)
    must((outcome == "replay") == ("a" in dict(known.outputs)), "a completed step is replayed, and no other")
    return _put(known, "a", output if outcome == "replay" else f'"a of {call.actor}"', must)


def _complete_step(known: Known, call: Call, answer: Answer, must: Must) -> Known:
    _paid(known, call, must)
    step = call.what[-1]
    new = step not in dict(known.outputs)
    seq = int(answer.row[0] or 0)
    must((seq > known.last_seq) == new, "numbers grow, and a repetition gets the first one")
    known = _put(known, step, f'"{step} of {call.actor}"', must)
    return replace(known, last_seq=max(seq, known.last_seq), running="" if step == "b" else known.running)


def _open(known: Known, call: Call, answer: Answer, must: Must) -> Known:
    _fenced(known, call, must)
    status, decision = answer.row
    if status == "decided":
        expected = "late" if known.gate == "overdue" else known.gate
        must(decision == expected, "everybody sees the one decision")
        return replace(known, gate=expected)
    must(status == "pending" and known.gate in ("none", "pending"), "a gate that is decided stays so")
    return replace(known, gate="pending")


def _suspend(known: Known, call: Call, answer: Answer, must: Must) -> Known:
    if answer.row[0] == "f":
        _fenced(known, call, must)
        must(known.gate not in ("none", "pending"), "a run waits for a gate that is pending")
        return known
    if (call.statement, call.token) in [(request, token) for request, token in known.requests]:
        return known  # the same call again, whatever was decided since
    _fenced(known, call, must)
    must(known.gate == "pending", "nobody waits for a decision that has fallen")
    return replace(known, status="waiting", requests=(*known.requests, (call.statement, call.token or 0)))


def _complete(known: Known, call: Call, answer: Answer, must: Must) -> Known:
    if known.status == "completed":
        must(call.token == known.token, "the same call again, and no other")
        return known
    _fenced(known, call, must)
    must({"a", "b"} <= dict(known.outputs).keys(), "the work was done")
    must(not _undecided(known), "no question to a person is buried")
    return _final(known, "completed")


def _release(known: Known, call: Call, answer: Answer, must: Must) -> Known:
    again = (call.statement, call.token or 0)
    if again in known.requests and known.status == known.free and call.token == known.token:
        must(int(answer.row[0] or 0) == known.last_seq, "a repetition gets the first number")
        return known
    _fenced(known, call, must)
    must(int(answer.row[0] or 0) > known.last_seq, "numbers grow")
    return replace(known, status=known.free, last_seq=int(answer.row[0] or 0), requests=(*known.requests, again))


def _break(known: Known, call: Call, answer: Answer, must: Must) -> Known:
    _paid(known, call, must)
    again = (call.statement, call.token or 0)
    if again in known.requests:
        return known  # the same call again, whatever a person has decided since
    must(answer.row[0] == "manual_review", "what may have taken effect is not repeated unasked")
    return replace(known, in_review=True, requests=(*known.requests, again))


def _fail(known: Known, call: Call, answer: Answer, must: Must) -> Known:
    again = (call.statement, call.token or 0)
    if again in known.requests and known.status != "running" and call.token == known.token:
        must(answer.row[0] == known.status, "a repetition says what became of the run")
        return known
    _fenced(known, call, must)
    left = known.running not in ("", "failed for good") and known.begun != known.token
    review = known.in_review or left  # of what an earlier attempt left unfinished, too
    must(answer.row[0] == ("review" if review else "failed"), "a run is in review while a step is")
    return replace(
        known, status=answer.row[0], in_review=review, lapsed=False, marked=False, requests=(*known.requests, again)
    )


def _renew(known: Known, call: Call, answer: Answer, must: Must) -> Known:
    _fenced(known, call, must)
    return replace(known, lapsed=False, marked=False)


def _final(known: Known, status: str) -> Known:
    gate = "closed" if known.gate in ("pending", "overdue") else known.gate
    return replace(known, status=status, gate=gate, lapsed=False, marked=False)


def _reconcile(known: Known, call: Call, answer: Answer, must: Must) -> Known:
    _, leases, deadlines, gates = (int(count or 0) for count in answer.row)
    over = known.overdue and known.status not in ("completed", "cancelled")
    must(deadlines == over, "a deadline cancels a run, once")
    if over:
        return _final(known, "cancelled")
    seen = known.status == "running" and known.lapsed and not known.marked
    must(leases == seen, "a lease is seen to lapse once, when its time is over")
    must(gates == (known.gate == "overdue"), "a gate is decided once, when its time is over")
    if gates:
        known = replace(known, gate="late", status=known.free if known.status == "waiting" else known.status)
    return replace(known, marked=True) if leases else known  # and that is all: its holder goes on until it is replaced


def _cancel(known: Known, call: Call, answer: Answer, must: Must) -> Known:
    must(known.status != "completed", "a completed run stays so")
    must((answer.row[0] == "1") == (known.status != "cancelled"), "a run is cancelled once")
    return _final(known, "cancelled")


def _decide(known: Known, call: Call, answer: Answer, must: Must) -> Known:
    accepted, decision = answer.row
    must(known.gate != "none", "there is a gate")
    if accepted == "f":
        expected = "late" if known.gate == "overdue" else known.gate
        must(decision == expected, "everybody sees the one decision")
    else:
        must(known.gate == "pending", "a gate is decided once")
        expected = {"approve": "approved", "reject": "rejected"}[call.what]
        must(decision == expected, "what was accepted stands")
    woken = known.gate in ("pending", "overdue") and known.status == "waiting"
    return replace(known, gate=expected, status=known.free if woken else known.status)


def _resolve(known: Known, call: Call, answer: Answer, must: Must) -> Known:
    must(known.in_review, "a review is decided once")
    known = replace(known, in_review=False, running="")
    if call.what == "accept b":
        known = _put(known, "b", '"b of a person"', must)
    elif call.what == "fail b":
        known = replace(known, running="failed for good")
    return replace(
        known, status=("failed" if call.what == "fail b" else known.free) if known.status == "review" else known.status
    )


def _time(known: Known, call: Call, answer: Answer, must: Must) -> Known:
    return {
        "the lease runs out": lambda: replace(known, lapsed=True),
        "the gate's time is over": lambda: replace(known, gate="overdue"),
        "the deadline passes": lambda: replace(known, overdue=True),
        "the endpoint's time is over": lambda: replace(known, in_flight=False),
    }[call.what]()


RULES: dict[str, Callable[[Known, Call, Answer, Must], Known]] = {
    "acquire": _acquire,
    "claim": _claim,
    "tell": _tell,
    "report": _report,
    "enqueue again": _enqueue,
    "begin a": _begin,
    "begin b": _begin,
    "record a": _record,
    "complete a": _complete_step,
    "complete b": _complete_step,
    "break b": _break,
    "open": _open,
    "suspend": _suspend,
    "complete": _complete,
    "fail": _fail,
    "release": _release,
    "renew": _renew,
    "reconcile": _reconcile,
    "cancel": _cancel,
    "approve": _decide,
    "reject": _decide,
    "retry b": _resolve,
    "accept b": _resolve,
    "fail b": _resolve,
    "the lease runs out": _time,
    "the gate's time is over": _time,
    "the deadline passes": _time,
    "the endpoint's time is over": _time,
}

#: The other refusals, each with what must be the case.
REFUSALS: dict[tuple[str, str], Callable[[Known], bool]] = {
    ("approve", "TB012"): lambda known: known.gate == "none",
    ("reject", "TB012"): lambda known: known.gate == "none",
    ("retry b", "TB008"): lambda known: not known.in_review,
    ("accept b", "TB008"): lambda known: not known.in_review,
    ("fail b", "TB008"): lambda known: not known.in_review,
    ("break b", "TB007"): lambda known: "b" in dict(known.outputs),
    ("begin b", "TB007"): lambda known: known.running == "failed for good",
    ("complete", "TB014"): _undecided,
}
