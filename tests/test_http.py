"""Requests to models as steps, through transports of httpx and httpx2: what is recorded, and what is not."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from tidebase import AsyncRun, AsyncTidebase, BudgetExhausted, InvalidArgument, Run, Tidebase
from tidebase.integrations.http import AsyncTidebaseTransport, TidebaseTransport

ON_NEWEST = True
URL = "https://model.example/v1/chat?key=secret"


class Model(httpx.AsyncBaseTransport, httpx.BaseTransport):
    """Answers requests in turn: with an error, a status, JSON, bytes, or a stream of them; keeps what it was asked."""

    def __init__(self, *answers: Any, library: Any = httpx) -> None:
        self.answers = list(answers)
        self.asked: list[Any] = []
        self.library = library
        self.headers = {"x-request-id": "1", "content-type": "application/json"}

    def handle_request(self, request: Any) -> Any:
        self.asked.append(request)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        if isinstance(answer, int):
            return self.library.Response(answer, headers={"retry-after": "1"})
        if isinstance(answer, dict):
            answer = json.dumps(answer).encode()
        if isinstance(answer, bytes):
            body = gzip.compress(answer)
            return self.library.Response(200, headers={**self.headers, "content-encoding": "gzip"}, content=body)
        return self.library.Response(200, headers=self.headers, content=answer())

    async def handle_async_request(self, request: Any) -> Any:
        return self.handle_request(request)


async def test_a_response_is_recorded_and_given_back_as_it_was(atide: AsyncTidebase) -> None:
    """For the same request that is made twice, twice; what is no request to a model is none of a step's business."""
    model = Model({"n": 1}, b"\x00\xff", {"n": 3}, b"page", {"n": 5})
    client = httpx.AsyncClient(transport=AsyncTidebaseTransport(model))

    async def work(run: AsyncRun, input: Any) -> Any:
        first = await client.post(URL, json={"a": 1}, headers={"authorization": f"Bearer {run.attempt}"})
        binary = await client.post(URL, json={"a": 2})
        again = await client.post(URL, json={"a": 1})
        if run.attempt < 2:
            raise ConnectionError
        page = await client.get(URL)
        assert "content-encoding" not in first.headers and first.headers["x-request-id"] == "1"
        return [first.json(), binary.content.hex(), again.json(), page.text]

    with pytest.raises(ConnectionError):
        await atide.run("w", work, run_id="r")
    assert await atide.run("w", work, run_id="r") == [{"n": 1}, "00ff", {"n": 3}, "page"]
    assert len(model.asked) == 4 and (await client.post(URL, json={"a": 1})).json() == {"n": 5}
    steps = await atide.runs.steps("r")
    assert [step.name.partition("[")[0] for step in steps] == ["http:POST model.example/v1/chat"] * 3
    assert "secret" not in str(steps) and "Bearer" not in str(steps)
    await client.aclose()


async def test_another_request_is_another_step(atide: AsyncTidebase) -> None:
    model = Model({"n": 1}, {"n": 2})
    client = httpx.AsyncClient(transport=AsyncTidebaseTransport(model))

    async def work(run: AsyncRun, input: Any) -> Any:
        answer = (await client.post(URL, json={"attempt": run.attempt})).json()
        if run.attempt == 1:
            raise ConnectionError
        return answer

    with pytest.raises(ConnectionError):
        await atide.run("w", work, run_id="r")
    assert await atide.run("w", work, run_id="r") == {"n": 2}


async def test_errors_are_told_and_not_recorded(atide: AsyncTidebase) -> None:
    model = Model(429, httpx.ConnectError("gone"), 500, {"n": 1})
    client = httpx.AsyncClient(transport=AsyncTidebaseTransport(model))

    async def work(run: AsyncRun, input: Any) -> Any:
        refused = await client.post(URL, json={})
        with pytest.raises(httpx.ConnectError):
            await client.post(URL, json={})
        broken = await client.post(URL, json={})
        return [
            refused.status_code,
            refused.headers["retry-after"],
            broken.status_code,
            (await client.post(URL, json={})).json(),
        ]

    assert await atide.run("w", work, run_id="r") == [429, "1", 500, {"n": 1}]
    (step,) = await atide.runs.steps("r")
    assert (step.status, step.attempt) == ("completed", 4)


async def test_a_stream_comes_live_and_is_recorded_when_it_is_whole(atide: AsyncTidebase) -> None:
    """Also for who closes it before its end; one that breaks off is not."""
    read = asyncio.Event()

    async def whole() -> AsyncIterator[bytes]:
        yield b'data: {"n": 1}\n\n'
        await asyncio.wait_for(read.wait(), 30)  # the caller has the first part by then
        yield b'data: {"model": "gpt-4o-mini", "usage": {"prompt_tokens": 7, "completion_tokens": 5}}\n\n'
        yield b"data: [DONE]\n\n"

    async def broken() -> AsyncIterator[bytes]:
        yield b"data: {}\n\n"
        raise httpx.ReadError("gone")

    model = Model(broken, whole, whole)
    client = httpx.AsyncClient(transport=AsyncTidebaseTransport(model))

    async def lines(body: Any, most: int) -> list[str]:
        found: list[str] = []
        async with client.stream("POST", URL, json=body) as response:
            async for line in response.aiter_lines():
                read.set()
                found += [line] if line else []
                if len(found) == most:
                    break
        return found

    async def work(run: AsyncRun, input: Any) -> Any:
        if run.attempt == 1:
            with pytest.raises(httpx.ReadError):
                await lines({}, 9)
        result = [await lines({}, 9), await lines({"other": 1}, 1)]
        if run.attempt == 1:
            raise ConnectionError
        return result

    with pytest.raises(ConnectionError):
        await atide.run("w", work, run_id="r")
    result = await atide.run("w", work, run_id="r")
    assert [len(one) for one in result] == [3, 1] and result[0][2] == "data: [DONE]" and len(model.asked) == 3
    used = await atide.runs.usage("r")
    assert (used.records, used.input_tokens, used.output_tokens, used.unpriced) == (2, 14, 10, 0)


async def test_a_client_on_httpx2_inside_of_steps_and_a_budget(atide: AsyncTidebase) -> None:
    """A step that is not executed again does not shift what comes after it: the same request in two steps is two."""
    httpx2 = pytest.importorskip("httpx2")
    usage = {"input_tokens": 1, "cache_read_input_tokens": 50, "output_tokens": 2}
    anthropic = [{"type": "message_start", "message": {"id": "m", "model": "x", "usage": usage}}]
    anthropic += [{"type": "message_delta", "usage": {"output_tokens": 60}}]
    said = "".join(f"event: e\ndata: {json.dumps(one)}\n\n" for one in anthropic).encode()
    model = Model({"n": 1}, {"n": 2}, said, {"n": 4}, library=httpx2)
    client = httpx2.AsyncClient(transport=AsyncTidebaseTransport(model))

    async def ask() -> Any:
        return (await client.post(URL, json={})).json()

    async def work(run: AsyncRun, input: Any) -> Any:
        first = await run.step("first", ask)
        if run.attempt == 1:
            raise ConnectionError
        second = await run.step("second", ask)
        await client.post(URL, json={"stream": True})
        return [first, second, await ask()]

    with pytest.raises(ConnectionError):
        await atide.run("w", work, run_id="r", budget={"tokens": 100})
    with pytest.raises(BudgetExhausted):
        await atide.run("w", work, run_id="r")
    used = await atide.runs.usage("r")
    assert (used.input_tokens, used.cache_read_tokens, used.output_tokens) == (51, 50, 60)
    await atide.runs.set_budget("r")
    assert await atide.run("w", work, run_id="r") == [{"n": 1}, {"n": 2}, {"n": 4}] and len(model.asked) == 4


def test_a_client_of_threads(tide: Tidebase) -> None:
    model = Model({"n": 1}, 503, {"usage": {"input_tokens": 1, "output_tokens": 2}, "model": "m"}, {"n": 4})
    client = httpx.Client(transport=TidebaseTransport(model, step={"retry_on": OSError}))

    def work(run: Run, input: Any) -> Any:
        first = client.post(URL, json={}).json()
        if run.attempt == 1:
            assert client.post(URL, json={"b": 1}).status_code == 503
        with client.stream("POST", URL, json={"b": 1}) as response:
            second = "".join(response.iter_text())
        if run.attempt == 1:
            raise ConnectionError
        return [first, json.loads(second)["model"]]

    with client:
        with pytest.raises(ConnectionError):
            tide.run("w", work, run_id="r")
        assert tide.run("w", work, run_id="r") == [{"n": 1}, "m"] and len(model.asked) == 3
        assert client.post(URL, json={}).json() == {"n": 4}
    assert tide.runs.usage("r").output_tokens == 2
    with pytest.raises(InvalidArgument):
        TidebaseTransport(model, step={"key": 1})


async def test_each_face_has_a_transport_of_its_own(atide: AsyncTidebase) -> None:
    async def work(run: AsyncRun, input: Any) -> Any:
        with pytest.raises(TypeError, match="Tidebase"):
            httpx.Client(transport=TidebaseTransport(Model())).post(URL, json={})

    await atide.run("w", work)
