"""A worker: a process that performs scripts through the public wrapper alone, and says to the ledger what it was told.

``python -m tests.torture.ledger.worker SOCKET URL SLOT FACE LEASE [MUTANT]``: FACE is ``threads``, ``asyncio``, or
``clerk`` for whoever decides gates and reviews and calls ``reconcile``. MUTANT is ``module:function``, called first: it
takes a mechanism out.
"""

from __future__ import annotations

import asyncio
import importlib
import random
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import Any
from uuid import uuid4

from tidebase import AsyncTidebase, Tidebase, TidebaseError

from .book import Book
from .scripts import FAILURES, PAID, Script, Work

#: How many runs a process works on at once.
AT_ONCE = 3

#: How long somebody pauses who has nothing to do, or was refused, in seconds.
PAUSE_S = 0.1

EFFECT = "insert into public.effects (run, step, receipt) values (%s, %s, %s)"


class NotYet(Exception):
    """What a retried step raises before it is paid for."""


def told(error: BaseException) -> str:
    """What was raised, in a word, with the SQLSTATE and what it was raised from."""
    cause = error.__cause__ if isinstance(error.__cause__, Exception) else error
    state = getattr(cause, "sqlstate", None)
    return f"{type(error).__name__}[{state}] {str(cause)[:160]}"


class Actor:
    """What both faces share: who performs which run, and the options of each kind of step."""

    def __init__(self, book: Book, run: Any, root: str) -> None:
        self.book = book
        self.run = run
        self.root = root
        self.about = {"run": run.run_id, "root": root, "token": run.token, "attempt": run.attempt}
        book.ask("took", **self.about)

    def options(self, work: Work) -> dict[str, Any]:
        options: dict[str, Any] = {"input": {"step": work["name"]}}
        return options | {
            "marked": {"mark_start": True},
            "unsafe": {"side_effects": ["pay"]},
            "keyed": {"side_effects": ["pay"], "idempotency_key": self.key(work)},
            "retried": {"retries": 5, "retry_delay_s": 0.05, "retry_on": NotYet},
        }.get(work["kind"], {})

    def key(self, work: Work) -> str:
        return f"{self.run.run_id}/{work['name']}"

    def pace(self, work: Work) -> tuple[float, float]:
        """How long it is at work before it is charged for, and after."""
        choose = random.Random(f"{self.run.run_id}/{work['name']}")
        seconds = choose.uniform(*PAID[work["kind"]])
        before = seconds * choose.random()
        return before, seconds - before

    def charge(self, work: Work) -> str:
        if work["kind"] == "retried" and self.book.ask("try", step=work["name"], **self.about) <= FAILURES:
            raise NotYet(work["name"])
        key = self.key(work) if work["kind"] == "keyed" else None
        return str(self.book.ask("charge", step=work["name"], kind=work["kind"], key=key, **self.about))

    def got(self, work: Work, value: Any) -> Any:
        self.book.ask("got", step=work["name"], kind=work["kind"], value=value, **self.about)
        return value

    def raised(self, work: Work, error: BaseException) -> None:
        self.book.ask("raised", step=work["name"], kind=work["kind"], error=told(error), **self.about)

    def question(self, work: Work) -> dict[str, Any]:
        return {"data": {"gate": work["name"]}, "suspend": work["kind"] == "pausing"}

    def nap(self, work: Work) -> tuple[str, float]:
        return work["name"], random.Random(f"{self.run.run_id}/{work['name']}").uniform(0.1, 1.0)


class Threads(Actor):
    """Performs a script with threads."""

    def perform(self, script: Script) -> dict[str, Any]:
        results: dict[str, Any] = {}
        for stage in script:
            if len(stage) == 1:
                results[stage[0]["name"]] = self.do(stage[0])
                continue
            with ThreadPoolExecutor(len(stage)) as pool:
                futures = {work["name"]: pool.submit(copy_context().run, self.do, work) for work in stage}
            results |= {name: future.result() for name, future in futures.items()}
        return results

    def do(self, work: Work) -> Any:
        try:
            return self.got(work, self._do(work))
        except BaseException as error:
            self.raised(work, error)
            raise

    def _do(self, work: Work) -> Any:
        run, kind, name = self.run, work["kind"], work["name"]
        if kind in PAID:
            return run.step(name, lambda: self.pay(work), **self.options(work))
        if kind == "transfer":
            return self.transfer(work)
        if kind in ("gate", "pausing"):
            return run.gate(name, "Pay?", **self.question(work)).payload
        if kind in ("timer", "pausing-timer"):
            return run.sleep(*self.nap(work), suspend=kind == "pausing-timer")
        if kind == "child":
            return run.child("script", self.play, name=name, input={"script": work["inner"]})
        specs = [
            {"name": each, "workflow": self.play, "input": {"script": script}} for each, script in work["inner"].items()
        ]
        return dict(zip(work["inner"], run.fanout(name, specs), strict=True))

    def play(self, run: Any, input: dict[str, Any]) -> dict[str, Any]:
        return Threads(self.book, run, self.root).perform(input["script"])

    def pay(self, work: Work) -> str:
        before, after = self.pace(work)
        time.sleep(before)
        receipt = self.charge(work)
        time.sleep(after)
        return receipt

    def transfer(self, work: Work) -> Any:
        with self.run.transaction(work["name"]) as tx:
            if not tx.replayed:
                receipt = str(uuid4())
                tx.execute(EFFECT, (self.run.run_id, work["name"], receipt))
                time.sleep(0.03)
                tx.result = receipt
        return tx.result


class Tasks(Actor):
    """Performs a script with asyncio."""

    async def perform(self, script: Script) -> dict[str, Any]:
        results: dict[str, Any] = {}
        for stage in script:
            values = await asyncio.gather(*(self.do(work) for work in stage))
            results |= dict(zip((work["name"] for work in stage), values, strict=True))
        return results

    async def do(self, work: Work) -> Any:
        try:
            value = await self._do(work)
        except BaseException as error:
            self.raised(work, error)
            raise
        return self.got(work, value)

    async def _do(self, work: Work) -> Any:
        run, kind, name = self.run, work["kind"], work["name"]
        if kind in PAID:
            return await run.step(name, lambda: self.pay(work), **self.options(work))
        if kind == "transfer":
            return await self.transfer(work)
        if kind in ("gate", "pausing"):
            return (await run.gate(name, "Pay?", **self.question(work))).payload
        if kind in ("timer", "pausing-timer"):
            return await run.sleep(*self.nap(work), suspend=kind == "pausing-timer")
        if kind == "child":
            return await run.child("script", self.play, name=name, input={"script": work["inner"]})
        specs = [
            {"name": each, "workflow": self.play, "input": {"script": script}} for each, script in work["inner"].items()
        ]
        return dict(zip(work["inner"], await run.fanout(name, specs), strict=True))

    async def play(self, run: Any, input: dict[str, Any]) -> dict[str, Any]:
        return await Tasks(self.book, run, self.root).perform(input["script"])

    async def pay(self, work: Work) -> str:
        before, after = self.pace(work)
        await asyncio.sleep(before)
        receipt = self.charge(work)
        await asyncio.sleep(after)
        return receipt

    async def transfer(self, work: Work) -> Any:
        async with self.run.transaction(work["name"]) as tx:
            if not tx.replayed:
                receipt = str(uuid4())
                await tx.execute(EFFECT, (self.run.run_id, work["name"], receipt))
                await asyncio.sleep(0.03)
                tx.result = receipt
        return tx.result


def arguments(job: dict[str, Any]) -> dict[str, Any]:
    """What the run is made with; a fork has its input already."""
    if "source" in job:
        return {"run_id": job["run"]}
    return {"run_id": job["run"], "input": {"script": job["body"]}}


def work_in_threads(book: Book, url: str, slot: str, lease_s: float) -> None:
    tide = Tidebase(url, lease_s=lease_s)

    def play(run: Any, input: dict[str, Any]) -> dict[str, Any]:
        return Threads(book, run, run.run_id).perform(input["script"])

    def once(job: dict[str, Any]) -> Any:
        if job.get("source"):
            tide.runs.fork(job["source"], job["run"], through_step=job["through"])
        if job["script"] == "session":
            return session(job)
        return tide.run("script", play, wait_s=random.choice((None, 0.0, 1.0)), **arguments(job))

    def session(job: dict[str, Any]) -> Any:
        if tide.runs.create("script", arguments(job)["input"], run_id=job["run"]).status == "completed":
            return tide.run("script", play, **arguments(job))
        with tide.runs.attach("script", **arguments(job)) as open_session:
            result = play(open_session, open_session.input)
            open_session.complete(result)
        return result

    def loop() -> None:
        while (job := book.ask("next", slot=slot)) is not None:
            if job != "wait":
                try:
                    book.ask("done", run=job["run"], result=once(job))
                    continue
                except BaseException as error:
                    book.ask("left", run=job["run"], error=told(error))
                    if not isinstance(error, Exception):
                        raise
                book.ask("again", run=job["run"])
            time.sleep(PAUSE_S)

    threads = [threading.Thread(target=loop) for _ in range(AT_ONCE)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    tide.close()


async def work_in_tasks(book: Book, url: str, slot: str, lease_s: float) -> None:
    tide = AsyncTidebase(url, lease_s=lease_s)

    async def play(run: Any, input: dict[str, Any]) -> dict[str, Any]:
        return await Tasks(book, run, run.run_id).perform(input["script"])

    async def once(job: dict[str, Any]) -> Any:
        if job.get("source"):
            await tide.runs.fork(job["source"], job["run"], through_step=job["through"])
        if job["script"] == "session":
            return await session(job)
        return await tide.run("script", play, wait_s=random.choice((None, 0.0, 1.0)), **arguments(job))

    async def session(job: dict[str, Any]) -> Any:
        info = await tide.runs.create("script", arguments(job)["input"], run_id=job["run"])
        if info.status == "completed":
            return await tide.run("script", play, **arguments(job))
        async with await tide.runs.attach("script", **arguments(job)) as open_session:
            result = await play(open_session, open_session.input)
            await open_session.complete(result)
        return result

    async def loop() -> None:
        while (job := book.ask("next", slot=slot)) is not None:
            if job != "wait":
                try:
                    book.ask("done", run=job["run"], result=await once(job))
                    continue
                except BaseException as error:
                    book.ask("left", run=job["run"], error=told(error))
                    if not isinstance(error, Exception):
                        raise
                book.ask("again", run=job["run"])
            await asyncio.sleep(PAUSE_S)

    await asyncio.gather(*(loop() for _ in range(AT_ONCE)))
    await tide.close()


class Clerk:
    """Decides gates and reviews, and lets time have its effect, until the ledger says that all is over."""

    def __init__(self, book: Book, url: str) -> None:
        self._book = book
        self._tide = Tidebase(url)
        self._decided: dict[tuple[Any, ...], str | None] = {}

    def work(self) -> None:
        reconciled = 0.0
        while not self._book.ask("state")["over"]:
            self._try(self._gates)
            self._try(self._reviews)
            if time.monotonic() - reconciled > 0.5:
                reconciled = time.monotonic()
                self._try(self._tide.reconcile)
            time.sleep(PAUSE_S)

    def _try(self, act: Callable[[], object]) -> None:
        try:
            act()
        except TidebaseError as error:
            self._book.ask("clerk", error=told(error))

    def _gates(self) -> None:
        for gate in self._tide.gates.list():
            self._tide.gates.decide(gate.run_id, gate.name, "approved", actor="clerk", payload=gate.data)

    def _reviews(self) -> None:
        """What the ledger has a receipt for was executed; the rest was not."""
        for review in self._tide.runs.reviews():
            about = {"run": review.run_id, "step": review.step}
            decided = review.run_id, review.step, review.opened_at
            if decided not in self._decided:
                charges = self._book.ask("charges", **about)
                self._decided[decided] = charges[0] if charges else None
                decision = "accept" if charges else "retry"
                self._book.ask("review", decision=decision, reason=str(review)[:300], **about)
            output = self._decided[decided]
            decision = "retry" if output is None else "accept"
            self._tide.runs.resolve_review(review.run_id, review.step, decision, output=output, actor="clerk")  # type: ignore[arg-type]


def main() -> None:
    path, url, slot, face, lease, *mutant = sys.argv[1:]
    if mutant:
        module, _, function = mutant[0].partition(":")
        getattr(importlib.import_module(module), function)()
    book = Book(path)
    if face == "clerk":
        Clerk(book, url).work()
    elif face == "threads":
        work_in_threads(book, url, slot, float(lease))
    else:
        asyncio.run(work_in_tasks(book, url, slot, float(lease)))


if __name__ == "__main__":
    main()
