"""Runs of all kinds, made by the real functions, for a page to show.

python -m tests.support.studio_runs URL [HOW_MANY_MORE]
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import psycopg

from tidebase import Tidebase

#: What would run, or look like something else, if it were taken for more than a text.
HOSTILE = (
    "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"
    "\"'`${1}{{2}} &amp; javascript:alert(1) \u202egnp.exe \u0001\u007f"
)
LONG = "a-very-long-name-without-a-single-space-" * 5
ARABIC = "مراجعة الطلب رقم سبعة"
EMOJI = "🦉 family 👩‍👩‍👧‍👦 flag 🇪🇺"

#: What an approver is asked to fill in.
SCHEMA = """{"type": "object", "required": ["amount", "account"], "properties": {
  "account": {"type": "string", "title": "Account", "minLength": 3, "description": "Who gets it"},
  "amount": {"type": "number", "minimum": 0, "maximum": 500, "title": "Amount in EUR"},
  "urgent": {"type": "boolean", "title": "Urgent"},
  "channel": {"enum": ["sepa", "card", "cheque"], "title": "Channel"},
  "notes": {"type": "array", "items": {"type": "string"}, "title": "Notes"}}}"""

_MANY, _KINDS = (
    part.partition("\n")[2].split(";\n")[:-1]
    for part in Path(__file__).with_suffix(".sql").read_text("utf-8").split("\n\n")[1:]
)


def execute(connection: psycopg.Connection[Any], statements: list[str], texts: dict[str, Any]) -> None:
    """Each statement, with texts in the places of their names."""
    for statement in statements:
        query = re.sub(
            r"(?<!:):(first|last|schema|hostile|arabic|emoji|long)\b", r"%(\1)s", statement.replace("%", "%%")
        )
        connection.execute(query, texts)  # type: ignore[call-overload]


def fill(tide: Tidebase, connection: psycopg.Connection[Any], more: int = 200) -> None:
    """All of it, and so many plain ones before."""
    for first in range(1, more + 1, 10_000):
        execute(connection, _MANY, {"first": first, "last": min(first + 9999, more)})
    texts = {"schema": SCHEMA, "hostile": HOSTILE, "arabic": ARABIC, "emoji": EMOJI, "long": LONG}
    execute(connection, _KINDS, texts)
    tell_a_story(tide)
    tide.diff("story", tide.runs.fork("story", "story-fork", through_step="search", input={"topic": "lakes"}).run_id)


def tell_a_story(tide: Tidebase) -> None:
    """A run with a failed attempt, a retry, children, states, a decision, and everything replayed in the end."""

    def flaky(calls: list[int] = []) -> list[str]:  # noqa: B006
        calls.append(1)
        if len(calls) == 1:
            raise ConnectionError("the index was restarting")
        return ["rivers bring it", "rocks give it"]

    def write(run: Any, input: Any) -> str:
        run.state.set({"status": "planning", "progress": 0, "topic": input["topic"], "plan": []})
        plan = run.step("plan", lambda: ["sea", "salt"], input=input)
        run.state.patch({"status": "searching", "progress": 0.2, "plan": plan}, label="before the search")
        docs = run.step("search", flaky, input=plan, retries=2, retry_delay_s=0.01)
        run.usage.record(provider="openai", model="gpt-4o", input_tokens=1200, output_tokens=340, cost_usd="0.0064")
        parts = run.fanout(
            "parts", [{"name": f"part-{n}", "workflow": "part", "input": doc} for n, doc in enumerate(docs)]
        )
        run.state.patch({"status": "writing", "progress": 0.7, "documents": docs})
        run.emit("agent.progress", {"percent": 70, "note": "half way"})
        answer = run.gate(
            "publish", "Publish this draft?", data={"draft": parts}, options=["approved", "rejected"], suspend=True
        )
        run.snapshots.create("draft", {"text": " ".join(parts)}, target=("file", "draft.md"))
        run.state.patch({"status": "done", "progress": 1})
        return run.step(
            "send",
            lambda: f"sent: {answer.decision}",
            input=parts,
            side_effects=["email.send"],
            idempotency_key="story",
        )

    tide.workflow("part")(lambda run, input: run.step("write", lambda: f"A part about {input}", input=input))
    try:
        tide.run("write", write, run_id="story", input={"topic": "salt"})
    except Exception as error:  # it waits for its gate
        assert "publish" in str(error), error
    tide.gates.decide("story", "publish", "approved", actor="ada", comment="Well written.")
    tide.run("write", write, run_id="story", input={"topic": "salt"})


def main() -> None:
    url, more = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 200
    with Tidebase(url) as tide, psycopg.connect(url, autocommit=True) as connection:
        tide.migrate()
        fill(tide, connection, more)


if __name__ == "__main__":
    main()
