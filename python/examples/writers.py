"""Who writes the research agent's article: a language model where a key is at hand, otherwise an extractive writer.

A writer is a function of the question and the notes that returns the article's text in Markdown, with citations [1],
[2] ... in the order of the notes. ``choose`` picks one; put your own in its place.
"""

from __future__ import annotations

import json
import math
import os
import textwrap
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any

from corpus import Note, words

Writer = Callable[[str, list[Note]], str]


def choose() -> Writer:
    """By the key that is in the environment: ANTHROPIC_API_KEY, then OPENAI_API_KEY, else no model at all."""
    if os.environ.get("ANTHROPIC_API_KEY"):
        return anthropic
    if os.environ.get("OPENAI_API_KEY"):
        return openai
    return extractive


def anthropic(question: str, notes: list[Note]) -> str:
    """Claude, by Anthropic's Messages API; ANTHROPIC_MODEL names the model."""
    answer = _post(
        os.environ.get("ANTHROPIC_BASE_URL", "https://api.anthropic.com") + "/v1/messages",
        {"x-api-key": os.environ["ANTHROPIC_API_KEY"], "anthropic-version": "2023-06-01"},
        {
            "model": os.environ.get("ANTHROPIC_MODEL", "claude-sonnet-4-5"),
            "max_tokens": 1200,
            "messages": [{"role": "user", "content": _prompt(question, notes)}],
        },
    )
    return "".join(block.get("text", "") for block in answer["content"])


def openai(question: str, notes: list[Note]) -> str:
    """A model of OpenAI's, or of a server that speaks its Chat Completions API; OPENAI_MODEL names it."""
    answer = _post(
        os.environ.get("OPENAI_BASE_URL", "https://api.openai.com/v1") + "/chat/completions",
        {"authorization": f"Bearer {os.environ['OPENAI_API_KEY']}"},
        {
            "model": os.environ.get("OPENAI_MODEL", "gpt-4.1-mini"),
            "messages": [{"role": "user", "content": _prompt(question, notes)}],
        },
    )
    return str(answer["choices"][0]["message"]["content"])


def extractive(question: str, notes: list[Note]) -> str:
    """Picks the sentences that say most about the question, and shows the code behind them. Always writes the same."""
    terms = set(words(question))
    picked = _pick(terms, notes, limit=6)
    answer = [f"- `{notes[n].name}`: {sentence} [{n + 1}]" for n, sentence in picked]
    parts = ["## In short", "\n".join(_wrapped(line) for line in answer)]
    shown = sorted({n for n, _ in picked if notes[n].signature}, key=lambda n: (not notes[n].excerpt, n))[:3]
    for n in sorted(shown):
        note = notes[n]
        parts += [f"## {note.name} [{n + 1}]", _code(note.signature)]
        if note.excerpt:
            parts += [f"What it does, from line {note.excerpt_line} of its source:", _code(note.excerpt)]
        if note.use:
            parts += ["How the library itself calls it:", _code(note.use)]
    return "\n\n".join(parts)


def _pick(terms: set[str], notes: list[Note], limit: int) -> list[tuple[int, str]]:
    """The best sentences, in reading order: rare terms count more, better documents too, and nothing is said twice."""
    texts = [
        (n, place, text, set(words(text))) for n, note in enumerate(notes) for place, text in enumerate(note.sentences)
    ]
    matched = {term: [any(_akin(term, word) for word in own) for *_, own in texts] for term in sorted(terms)}
    ranked = []
    for index, (n, place, text, own) in enumerate(texts):
        weights = [math.log(1 + len(texts) / sum(hits)) for hits in matched.values() if hits[index]]
        score = (sum(weights) + 0.5 * (place == 0)) / (10 + len(own)) ** 0.5 / (1 + 0.15 * n)
        if weights:
            ranked.append((score, n, place, text, own))
    chosen: list[tuple[int, int, str, set[str]]] = []
    for _, n, place, text, own in sorted(ranked, key=lambda item: (-item[0], item[1], item[2])):
        said = any(len(own & other) > 0.5 * len(own | other) for *_, other in chosen)
        if len(chosen) < limit and not said:
            chosen.append((n, place, text, own))
    return [(n, text) for n, _, text, _ in sorted(chosen, key=lambda item: item[:2])]


def _akin(term: str, word: str) -> bool:
    """Whether the word is the term or a part of it worth the name: "process" will do for "subprocess"."""
    return word == term or (len(word) > 4 and word in term) or (len(term) > 4 and term in word)


def _wrapped(text: str) -> str:
    return textwrap.fill(text, 92, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)


def _code(text: str) -> str:
    return textwrap.indent(text, "    ")


def _prompt(question: str, notes: list[Note]) -> str:
    sources = "\n\n".join(
        "\n".join(
            [f"[{n}] {note.name} ({note.file}:{note.line})", note.signature, *note.sentences, note.excerpt, note.use]
        )
        for n, note in enumerate(notes, 1)
    )
    return (
        "Answer the question from the sources alone, in at most 250 words of Markdown with one short code example. "
        "Cite every claim by the source's number, as [1]. No title and no list of sources: they are added later. "
        "If the sources do not answer the question, say so.\n\n"
        f"Question: {question}\n\nSources:\n\n{sources}"
    )


def _post(url: str, headers: dict[str, str], body: dict[str, Any]) -> Any:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"content-type": "application/json", **headers})
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return json.load(response)
    except urllib.error.HTTPError as error:
        reason = error.read(500).decode(errors="replace")
        raise RuntimeError(f"the model's API answered {error.code}: {reason}") from error
    except OSError as error:  # no network, a timeout, a refused connection
        raise RuntimeError(f"the model's API cannot be reached: {error}") from error
