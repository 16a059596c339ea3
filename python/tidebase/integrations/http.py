"""Any framework whose HTTP client takes a transport of httpx or httpx2: each request to a model is a step of the run at
hand, known by what is asked. For code that cannot be changed.

It stays honest: only a response that has come whole, with a status of success, is recorded. A stream reaches its caller
as it comes, and ends once it is recorded; a replayed one comes at once. Errors, and responses that say one, are not
recorded: who asks again in the same run asks the model.
"""

from __future__ import annotations

import asyncio
import base64
import json
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from typing import Any, cast

from ..client.work import Run
from ..core.errors import InvalidArgument
from ..domain.step import StepOptions
from ..domain.usage import UsageOptions
from ..domain.workflow import current_run
from ._steps import digest, do_step, do_step_in_thread, scope_of, the_run

__all__ = ["AsyncTidebaseTransport", "TidebaseTransport", "asks_with_json"]

#: Headers that are about how a body was sent, which is recorded as it is without.
_OF_THE_WAY = frozenset({"content-encoding", "content-length", "transfer-encoding", "connection", "keep-alive"})


def asks_with_json(request: Any) -> bool:
    """Whether a request posts JSON, as those to models do."""
    kind: str = request.headers.get("content-type", "")
    return bool(request.method == "POST") and kind.partition(";")[0].strip() == "application/json"


class _Transport:
    def __init__(
        self, inner: Any, *, applies: Callable[[Any], bool] = asks_with_json, step: StepOptions | None = None
    ) -> None:
        self._inner = inner
        self._applies = applies
        self._step = step or StepOptions()
        if {"key", "input", "returns"} & self._step.keys():
            raise InvalidArgument("step must leave key, input and returns out: they are made of the request")

    def _plan(self, run: Any, request: Any) -> tuple[str, str, StepOptions]:
        """Name, key and options of the step. Headers are neither hashed nor stored: they have secrets, and are not the
        same at each try.
        """
        body = request.content
        address = f"{request.url.host}{request.url.path}"
        said = digest([request.method, str(request.url), base64.b64encode(body).decode()])
        options: StepOptions = {**self._step, "input": {"url": address, "bytes": len(body), "sha256": said}}
        return f"http:{request.method} {address}", f"{scope_of(run._hold)}{said[:16]}", options


class AsyncTidebaseTransport(_Transport):
    """For asyncio: ``httpx.AsyncClient(transport=AsyncTidebaseTransport(httpx.AsyncHTTPTransport()))``.

    Args:
        inner: what sends the requests.
        applies: which requests are steps; by default those that post JSON. Others go through, as do all outside of a
            run.
        step: options of the steps: ``retries``, ``timeout_s``, ``side_effects`` ...
    """

    async def __aenter__(self) -> AsyncTidebaseTransport:
        await self._inner.__aenter__()
        return self

    async def __aexit__(self, *exc: Any) -> None:
        await self._inner.__aexit__(*exc)

    async def aclose(self) -> None:
        """Closes what sends the requests."""
        await self._inner.aclose()

    async def handle_async_request(self, request: Any) -> Any:
        """Answers a request: with what is recorded, else with what comes."""
        run = the_run(None, "AsyncTidebaseTransport")
        if run is None or not self._applies(request):
            return await self._inner.handle_async_request(request)
        await request.aread()
        name, base, options = self._plan(run, request)
        live: asyncio.Queue[bytes | None] = asyncio.Queue()
        head: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

        async def body() -> dict[str, Any]:
            response = await self._inner.handle_async_request(request)
            if not response.is_success:
                raise _Refused(response)
            if not head.done():
                head.set_result(response)
            chunks = []
            async for chunk in response.aiter_bytes():
                chunks.append(chunk)
                live.put_nowait(chunk)
            recorded = _recorded(response, b"".join(chunks))
            if used := _usage(chunks):
                await run.usage.record(**used)
            return recorded

        step = asyncio.ensure_future(do_step(run, name, base, body, options))
        step.add_done_callback(lambda _: live.put_nowait(None))
        try:
            await asyncio.wait((step, head), return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            step.cancel()
            raise
        library = _library(request)
        if head.done():
            first = head.result()
            stream = _live(library)(live, step)
            return library.Response(first.status_code, headers=_headers(first), stream=stream, request=request)
        try:
            recorded, _ = step.result()
        except _Refused as refusal:
            return refusal.response
        return _response(library, recorded, request)


class TidebaseTransport(_Transport):
    """For threads: ``httpx.Client(transport=TidebaseTransport(httpx.HTTPTransport()))``. A response reaches its caller
    when it is recorded, a stream as well. Arguments: see :class:`AsyncTidebaseTransport`.
    """

    def __enter__(self) -> TidebaseTransport:
        self._inner.__enter__()
        return self

    def __exit__(self, *exc: Any) -> None:
        self._inner.__exit__(*exc)

    def close(self) -> None:
        """Closes what sends the requests."""
        self._inner.close()

    def handle_request(self, request: Any) -> Any:
        """Answers a request: with what is recorded, else with what comes."""
        run = current_run.get(None)
        if run is None or not self._applies(request):
            return self._inner.handle_request(request)
        if not isinstance(run, Run):
            raise TypeError(f"TidebaseTransport needs a run of Tidebase, and not a {type(run).__name__}")
        request.read()
        name, base, options = self._plan(run, request)

        def body() -> dict[str, Any]:
            response = self._inner.handle_request(request)
            if not response.is_success:
                raise _Refused(response)
            content = response.read()
            if used := _usage([content]):
                run.usage.record(**used)
            return _recorded(response, content)

        try:
            recorded = do_step_in_thread(run, name, base, body, options)
        except _Refused as refusal:
            return refusal.response
        return _response(_library(request), recorded, request)


class _Refused(Exception):
    """The response says that there is no answer; it is told to the caller as it is."""

    def __init__(self, response: Any) -> None:
        super().__init__(f"HTTP status {response.status_code}")
        self.response = response


def _library(request: Any) -> Any:
    """httpx or httpx2: that of the request."""
    return sys.modules[type(request).__module__.partition(".")[0]]


def _headers(response: Any) -> list[tuple[str, str]]:
    return [(name, value) for name, value in response.headers.multi_items() if name.lower() not in _OF_THE_WAY]


def _recorded(response: Any, content: bytes) -> dict[str, Any]:
    recorded: dict[str, Any] = {"status": response.status_code, "headers": [list(one) for one in _headers(response)]}
    try:
        text = content.decode()
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:  # which JSON in Postgres cannot hold
        return {**recorded, "base64": base64.b64encode(content).decode()}
    return {**recorded, "text": text}


def _response(library: Any, recorded: dict[str, Any], request: Any) -> Any:
    content = base64.b64decode(recorded["base64"]) if "base64" in recorded else recorded["text"].encode()
    headers = [tuple(one) for one in recorded["headers"]]
    return library.Response(recorded["status"], headers=headers, content=content, request=request)


_STREAMS: dict[str, type[Any]] = {}


def _live(library: Any) -> type[Any]:
    """A stream of the library that hands on what comes, and ends when all of it is recorded."""
    if library.__name__ not in _STREAMS:

        class Live(library.AsyncByteStream):  # type: ignore[misc]
            def __init__(self, live: asyncio.Queue[bytes | None], step: asyncio.Future[Any]) -> None:
                self._live = live
                self._step = step

            async def __aiter__(self) -> AsyncIterator[bytes]:
                while (chunk := await self._live.get()) is not None:
                    yield chunk
                await self._step

            async def aclose(self) -> None:
                """The caller has enough. The rest is read all the same: the response is paid for."""
                try:
                    with suppress(Exception):
                        await asyncio.shield(self._step)
                except asyncio.CancelledError:
                    self._step.cancel()
                    raise

        _STREAMS[library.__name__] = Live
    return _STREAMS[library.__name__]


def _usage(chunks: list[bytes]) -> UsageOptions:
    """What a response says that it used, where it says so as OpenAI's and Anthropic's do, in one piece or a stream."""
    model = response_id = None
    usage: dict[str, Any] = {}
    for message in _messages(b"".join(chunks)):
        inner = message.get("response") or message.get("message") or message
        if isinstance(inner, dict) and isinstance(inner.get("usage"), dict):
            usage.update(inner["usage"])
        if isinstance(inner, dict):
            model, response_id = inner.get("model") or model, inner.get("id") or response_id
    given, told = (usage.get(f"{a}_tokens", usage.get(f"{b}_tokens")) for a, b in _NAMES)
    details, of_output = (usage.get(f"{a}_tokens_details", usage.get(f"{b}_tokens_details")) or {} for a, b in _NAMES)
    read, written = usage.get("cache_read_input_tokens") or 0, usage.get("cache_creation_input_tokens") or 0
    if not isinstance(given, int) and not isinstance(told, int):
        return {}
    used = {
        "model": model,
        "response_id": response_id,
        "input_tokens": (given or 0) + read + written,
        "cache_read_tokens": read or details.get("cached_tokens"),
        "cache_write_tokens": written,
        "output_tokens": told,
        "reasoning_tokens": of_output.get("reasoning_tokens"),
    }
    return cast(UsageOptions, {name: value for name, value in used.items() if value})


_NAMES = (("input", "prompt"), ("output", "completion"))


def _messages(content: bytes) -> Iterator[dict[str, Any]]:
    """The JSON objects of a body: one, or those of server-sent events."""
    lines = content.split(b"\n") if content.lstrip()[:1] != b"{" else [b"data:" + content.replace(b"\n", b" ")]
    for line in lines:
        if line.startswith(b"data:"):
            with suppress(ValueError):
                message = json.loads(line[5:])
                if isinstance(message, dict):
                    yield message
