"""What to type next: command lines that a hint can name, ready to be copied into a shell."""

from __future__ import annotations

import shlex
from collections.abc import Sequence


def command(name: str, *words: str) -> str:
    """The line that calls a command of ``tidebase``; names that look like options are none."""
    dashes = ["--"] if any(word.startswith("-") for word in words) else []
    return shlex.join(["tidebase", name, *dashes, *words])


def to_review(run_id: str, step: str) -> str:
    """How a person looks at a step in review, and decides."""
    line = command("review", run_id, step, "retry")
    return f"Look at it: {command('step', run_id, step)} and decide: {line} (or accept --output JSON, or fail)"


def to_decide(run_id: str, gate: str, options: Sequence[str]) -> str:
    """How a person decides a gate."""
    others = f" (or {', '.join(map(shlex.quote, options[1:]))})" if len(options) > 1 else ""
    return f"Decide it: {command('decide', run_id, gate, *options[:1])}{others}"
