"""What a run does, as a value: a list of stages, each of which is a list of works that are done at the same time.

A work is ``{"kind": ..., "name": ..., "inner": ...}``. The same script is performed by threads and by asyncio.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

Work = dict[str, Any]
Script = list[list[Work]]

#: Steps that are charged for, and how long they are at work, in seconds: at least, at most.
PAID = {
    "quick": (0.0, 0.0),
    "slow": (0.05, 0.6),
    "long": (0.5, 1.5),
    "marked": (0.0, 0.3),
    "unsafe": (0.05, 0.9),
    "keyed": (0.05, 0.5),
    "retried": (0.0, 0.2),
}

#: How often a retried step fails before it is paid for.
FAILURES = 2


def work(text: str, inner: Any = None) -> Work:
    """``"slow a"`` is a slow step with the name a; ``"slow"`` one with the name slow."""
    kind, _, name = text.partition(" ")
    return {"kind": kind, "name": name or kind, "inner": inner}


def script(*stages: str) -> Script:
    """Each stage as a text: works with commas between them."""
    return [[work(text.strip()) for text in stage.split(",")] for stage in stages]


def _line(choose: random.Random) -> Script:
    return script("quick", "slow", "marked", "slow half", "unsafe", "keyed", "retried", "transfer", "quick end")


def _crowd(choose: random.Random) -> Script:
    return script("slow a, marked b, unsafe c, keyed d, quick e", "transfer", "retried, unsafe g", "quick h")


def _ask(choose: random.Random) -> Script:
    return script("slow", "gate", "unsafe, slow half", "transfer")


def _pause(choose: random.Random) -> Script:
    """Siblings are at work while the run is suspended."""
    return script("long a, unsafe b, slow c, pausing gate", "quick half", "marked d, unsafe e, pausing other", "quick")


def _timer(choose: random.Random) -> Script:
    return script("slow a, unsafe b, pausing-timer nap", "timer", "long c, keyed d, pausing-timer doze", "quick")


def _parent(choose: random.Random) -> Script:
    return [
        [work("child first", script("slow", "unsafe", "quick")), work("slow a"), work("unsafe b")],
        [work("slow half")],
        [work("child second", script("slow", "pausing gate", "unsafe")), work("long c"), work("unsafe d")],
        [work("quick end")],
    ]


def _fan(choose: random.Random) -> Script:
    children = {
        "plain": script("slow", "unsafe"),
        "asks": script("quick", "slow a, pausing gate", "keyed"),
        "naps": script("marked", "unsafe, pausing-timer nap"),
        "waits": script("slow", "gate", "quick"),
    }
    return [[work("quick")], [work("fan all", children)], [work("unsafe end")]]


def _session(choose: random.Random) -> Script:
    return script("slow", "unsafe a, keyed b, slow c", "quick half", "transfer", "retried")


def _medley(choose: random.Random) -> Script:
    """Whatever comes; nothing is sure to be at rest while something pauses."""
    numbers = iter(range(100))

    def some() -> Work:
        kinds = (*PAID, *PAID, "transfer", "gate", "pausing", "timer", "pausing-timer", "child")
        kind = choose.choice(kinds)
        inner = script("slow", "unsafe, pausing gate", "quick") if kind == "child" else None
        return work(f"{kind} {kind}{next(numbers)}", inner)

    return [[some() for _ in range(choose.randint(1, 4))] for _ in range(choose.randint(2, 4))]


SCRIPTS: dict[str, Callable[[random.Random], Script]] = {
    "line": _line,
    "pause": _pause,
    "crowd": _crowd,
    "parent": _parent,
    "ask": _ask,
    "fork": _line,  # of a run that is done, where there is one
    "timer": _timer,
    "session": _session,
    "fan": _fan,
    "medley": _medley,
}


def through(body: Script) -> str | None:
    """The step through which a run with this script is forked, if it has one."""
    return "half" if any(w["name"] == "half" for stage in body for w in stage) else None


def works(body: Script) -> Iterator[Work]:
    for stage in body:
        yield from stage
