"""A research agent that survives: it answers a question about Python from the standard library's own documentation.

    python research_agent.py "How do I keep a heap of tasks sorted by priority?"

Five steps: plan, search, read, draft, finalize. Each one's result is in Postgres the moment it is there. Kill the
process whenever you like and call it again with the run's id: what was done is not done again.

    python research_agent.py --run-id run_0190...

It needs no key: without one an extractive writer picks and cites sentences. With ANTHROPIC_API_KEY or OPENAI_API_KEY in
the environment, a language model writes the article from the same notes. Without a database in the environment
(TIDEBASE_DATABASE_URL, DATABASE_URL, PGHOST ...) a local Postgres is started.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from dataclasses import dataclass

import corpus
import writers
from corpus import Hit, Note

from tidebase import Run, Tidebase, TidebaseError

QUESTION = "How do I run a subprocess with a timeout and kill it when it hangs?"


@dataclass(frozen=True)
class Question:
    """The run's input."""

    question: str


@dataclass(frozen=True)
class Article:
    """The run's result."""

    title: str
    text: str
    sources: list[str]
    words: int


def research(run: Run, input: Question) -> Article:
    """The workflow. What goes into a step by its arguments is its input; what it returns is its checkpoint."""
    terms = run.step("plan", plan, input.question)
    hits = run.step("search", search, terms)

    def read_all() -> list[Note]:
        record("read")
        notes = []
        for number, hit in enumerate(hits, 1):
            run.emit("agent.reading", {"document": hit.name, "number": number, "of": len(hits)})
            notes.append(corpus.read(hit, terms))
        return notes

    # It needs the run as well, to say how far it is; so it is a closure, and its input is named.
    notes = run.step("read", read_all, input=hits)

    # An API has its bad moments: up to three more tries, 1, 2 and 4 seconds apart.
    text = run.step.options(retries=3)("draft", draft, input.question, notes)
    return run.step("finalize", finalize, input.question, text, notes)


def plan(question: str) -> list[str]:
    """Turns the question into search terms."""
    record("plan")
    terms = list(dict.fromkeys(corpus.words(question)))
    if not terms:
        raise ValueError(f"there is nothing to search for in {question!r}")
    return terms


def search(terms: list[str]) -> list[Hit]:
    """Finds the documents that fit best: it goes through the whole library, which takes a moment."""
    record("search")
    hits = corpus.search(terms)
    if not hits:
        raise LookupError(f"the standard library says nothing about {', '.join(terms)}")
    return hits


def draft(question: str, notes: list[Note]) -> str:
    """Writes the article, by a language model where there is a key for one."""
    record("draft")
    return writers.choose()(question, notes)


def finalize(question: str, text: str, notes: list[Note]) -> Article:
    """Adds what every article has: a title, the numbered sources, its length."""
    record("finalize")
    sources = [f"[{number}] {note.name}, {note.file}:{note.line}" for number, note in enumerate(notes, 1)]
    return Article(question, text.strip(), sources, len(text.split()))


def render(article: Article) -> str:
    """The article as Markdown."""
    sources = "\n".join(f"- {source}" for source in article.sources)
    return f"# {article.title}\n\n{article.text}\n\n## Sources\n\n{sources}\n\n{article.words} words"


def record(step: str) -> None:
    """Notes in the file AGENT_LEDGER, if it is set, that a step's function really runs, and in which process.

    An agent does not need this. It is a witness that does not go through the database, for those who want to see with
    their own eyes how often each step was executed.
    """
    path = os.environ.get("AGENT_LEDGER")
    if path:
        ledger = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            os.write(ledger, f"{step} {os.getpid()}\n".encode())
            os.fsync(ledger)
        finally:
            os.close(ledger)


def main() -> None:
    parser = argparse.ArgumentParser(description="Answers a question from the documentation of the standard library.")
    parser.add_argument("question", nargs="?", help=f"default: {QUESTION}")
    parser.add_argument("--run-id", help="go on with this run, or give a new one this id")
    parser.add_argument(
        "--lease-s", type=float, default=10.0, help="seconds until a dead worker's run may be taken over"
    )
    args = parser.parse_args()
    logging.basicConfig(format="%(name)s: %(message)s")
    logging.getLogger("tidebase").setLevel(logging.DEBUG)  # says which steps are completed, and which are replayed

    try:
        with Tidebase(lease_s=args.lease_s) as tide:
            tide.migrate()
            if args.question is None and args.run_id is not None:
                tide.runs.get(args.run_id)  # only a run that is there already knows its question
                question = None
            else:
                question = Question(args.question or QUESTION)
            article = tide.run("research-agent", research, run_id=args.run_id, input=question)
    except (TidebaseError, LookupError, ValueError, RuntimeError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
    print(render(article))


if __name__ == "__main__":
    main()
