"""A web application that takes orders and works on none: it enqueues a run in the transaction that keeps the order.

    tidebase migrate
    uvicorn orders.app:app

So there is no order without a run, and no run without an order. The page follows the run live, by server-sent events.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, Header, HTTPException, Request
from fastapi.responses import FileResponse
from psycopg_pool import AsyncConnectionPool
from pydantic import BaseModel, Field
from sse_starlette import EventSourceResponse, ServerSentEvent

from tidebase import AsyncTidebase
from tidebase.core.sources import find_url

PAGE = Path(__file__).with_name("page.html")
TABLE = """
create table if not exists orders (
  id     bigint generated always as identity primary key,
  item   text not null,
  status text not null default 'ordered',
  run_id text
)
"""


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, Any]]:
    """One pool for the application's own tables and for Tidebase."""
    async with AsyncConnectionPool(find_url(), min_size=1, max_size=10) as pool, AsyncTidebase(pool) as tide:
        async with pool.connection() as connection:
            await connection.execute("select pg_advisory_xact_lock(7373)")  # two processes may begin at once
            await connection.execute(TABLE)
        yield {"pool": pool, "tide": tide}


app = FastAPI(title="Orders", lifespan=lifespan)


class Wanted(BaseModel):
    item: str = Field(min_length=1, max_length=100)


class Made(BaseModel):
    order: int
    run_id: str


@app.post("/orders", status_code=202)
async def order(wanted: Wanted, request: Request) -> Made:
    async with request.state.pool.connection() as connection:  # commits at the end, or rolls back
        made = await connection.execute("insert into orders (item) values (%s) returning id", [wanted.item])
        (number,) = await made.fetchone()
        run = await request.state.tide.bind(connection).enqueue(
            "fulfil-order", {"order": number, "item": wanted.item}, queue="orders", run_id=f"order-{number}"
        )
        await connection.execute("update orders set run_id = %s where id = %s", [run.run_id, number])
    return Made(order=number, run_id=run.run_id)


@app.get("/orders/{number}")
async def status(number: int, request: Request) -> dict[str, Any]:
    async with request.state.pool.connection() as connection:
        found = await connection.execute("select item, status, run_id from orders where id = %s", [number])
        row = await found.fetchone()
    if row is None:
        raise HTTPException(404, "no such order")
    run = await request.state.tide.runs.get(row[2])
    return {"item": row[0], "status": row[1], "run": run.status, "result": run.result}


@app.get("/orders/{number}/events")
async def events(number: int, request: Request, last_event_id: Annotated[int, Header(ge=0)] = 0) -> EventSourceResponse:
    """The log of the run as it grows. A browser that was cut off says what it has seen, and goes on from there."""
    async with request.state.pool.connection() as connection:
        found = await connection.execute("select run_id from orders where id = %s", [number])
        row = await found.fetchone()
    if row is None:
        raise HTTPException(404, "no such order")

    async def follow() -> AsyncIterator[ServerSentEvent]:
        async for event in request.state.tide.runs.subscribe(row[0], last_event_id):
            yield ServerSentEvent(json.dumps(asdict(event), default=str), id=str(event.seq))
        yield ServerSentEvent("{}", event="end")

    return EventSourceResponse(follow())


@app.get("/")
async def page() -> FileResponse:
    return FileResponse(PAGE)
