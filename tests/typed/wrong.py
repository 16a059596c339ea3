"""What type checkers must refuse: exactly the lines that say so. Each is a mistake that would show only at run time."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import psycopg

from tidebase import AsyncRun, AsyncTidebase, ChildSpec, Run, Tidebase, step

tide = Tidebase()
atide = AsyncTidebase()


def make_plan(topic: str, depth: int = 1) -> list[str]:
    return [topic] * depth


async def think(topic: str) -> str:
    return topic


@step("fetch", retries=3)
def fetch(url: str) -> bytes:
    return url.encode()


def needs_two(run: Run) -> int:
    return run.attempt


def research(run: Run, input: Any) -> int:
    return run.attempt


async def aresearch(run: AsyncRun, input: Any) -> int:
    return run.attempt


def steps(run: Run) -> None:
    run.step("plan", make_plan, 3)  # refused
    run.step("plan", make_plan)  # refused
    run.step("plan", make_plan, "topic", deep=3)  # refused
    run.step("plan", make_plan, "topic", retries=3)  # refused
    run.step("closure", lambda: 1, retry=3)  # refused
    run.step("closure", lambda: 1, retries="3")  # refused
    run.step("closure", lambda: 1, retry_on="OSError")  # refused
    run.step("closure", lambda: 1, side_effects=1)  # refused
    run.step("closure", lambda: 1, replay="always")  # refused
    run.step(make_plan, "topic")  # refused
    run.step.options(retires=3)("plan", make_plan, "topic")  # refused
    run.step.options(retries=3)("plan", make_plan, 3)  # refused
    wrong: int = run.step("plan", make_plan, "topic")  # refused
    print(wrong)


def decorated() -> None:
    fetch(3)  # refused
    fetch("https://example.org", retries=3)  # refused
    fetch.options(timeout=3)("https://example.org")  # refused
    step("parse", retry=3)(make_plan)  # refused
    step(3)  # refused


def rest(run: Run, mine: psycopg.AsyncConnection[Any]) -> None:
    run.gate("publish", timeout=3)  # refused
    run.gate("publish", required_approvals="2")  # refused
    print(run.gate("publish").approve)  # refused
    print(run.gates.get("publish").approved)  # refused
    run.sleep("a while", timedelta(hours=1))  # refused
    run.state.set({}, importance="high")  # refused
    run.state.set({}, version=3)  # refused
    run.state.get(at="yesterday")  # refused
    run.snapshots.create("v1", target="draft.md")  # refused
    run.usage.record(tokens=3)  # refused
    run.usage.record(cost_usd=[])  # refused
    run.child("research", needs_two)  # refused
    run.child("research", aresearch, retries=3)  # refused
    run.child("research", budget={"usd": 3})  # refused
    spec: ChildSpec = {"workflow": "research"}  # refused
    run.fanout("all", [spec], max_parallel="2")  # refused
    run.transaction("charge", needs_two, 3)  # refused
    run.flush("now")  # refused
    run.emit(3)  # refused
    run.token = 3  # refused
    tide.bind(mine)  # refused


def way_in() -> None:
    tide.run("research", needs_two)  # refused
    tide.run("research", research, dead_line=None)  # refused
    tide.run("research", research, deadline="tomorrow")  # refused
    text: str = tide.run("research", research)  # refused
    tide.run(research)  # refused
    tide.runs.create("research", budget=3)  # refused
    tide.runs.list(status=["failed"])  # refused
    tide.runs.purge(30)  # refused
    tide.runs.resolve_review("r", "send", "skip")  # refused
    print(tide.runs.get("r").state)  # refused
    tide.gates.decide("r", "publish", True)  # refused
    Tidebase(lease=30)  # refused
    Tidebase(checkpoints="later")  # refused
    Tidebase(direct="router")  # refused
    tide.url_of(7)  # refused
    print(text)


async def tasks(run: AsyncRun, plain: Run) -> None:
    run.step("think", think, "topic")  # refused
    await run.step("think", think, 3)  # refused
    await run.step("think", think, "topic", key=3)  # refused
    await run.step("closure", lambda: think("topic"), keys=3)  # refused
    number: int = await run.step("think", think, "topic")  # refused
    plan: list[str] = run.step("plan", make_plan, "topic")  # refused
    run.gate("publish")  # refused
    print(run.gate("publish").approved)  # refused
    run.state.set({})  # refused
    await run.child("research", research)  # refused
    await run.transaction("block")  # refused
    with run.transaction("block"):  # refused
        pass
    await atide.run("research", research)  # refused
    atide.runs.get("r")  # refused
    for _ in atide.runs.subscribe("r"):  # refused
        pass
    await plain.state.set({})  # refused
    async with Tidebase():  # refused
        pass
    print(number, plan)
