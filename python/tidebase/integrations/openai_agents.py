"""The OpenAI Agents SDK: a runner that makes each response of a model, each tool call and each guardrail a step of a
run, and each interruption a gate; and a session whose items are kept in streams of a run of its own.
"""

from __future__ import annotations

import asyncio
import copy
import inspect
import json
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Any, TypeVar, cast

from ..client.work_async import AsyncRun
from ..core.errors import InvalidArgument, TidebaseError
from ..core.names import full_name
from ..domain.gate import GateAnswer, GateOptions
from ..domain.step import StepOptions, current_step
from ..domain.usage import UsageOptions
from ._steps import (
    ToolContract,
    contract_of,
    digest,
    do_step,
    idempotency_key,
    missing,
    options_of,
    place,
    scope_of,
    surely,
    the_run,
)

try:
    from agents import (
        Agent,
        FunctionTool,
        GuardrailFunctionOutput,
        Handoff,
        InputGuardrail,
        Model,
        ModelProvider,
        ModelResponse,
        OutputGuardrail,
        RunConfig,
        Runner,
        RunState,
        Tool,
        TResponseInputItem,
        UserError,
    )
    from agents.agent_tool_state import get_agent_tool_state_scope, peek_agent_tool_run_result
    from agents.items import ToolApprovalItem, TResponseOutputItem, TResponseStreamEvent
    from agents.result import RunResultBase
    from agents.tool import invoke_function_tool, with_function_tool_failure_error_handler
    from agents.tool_context import ToolContext
    from agents.usage import Usage, deserialize_usage, serialize_usage
    from openai.types.responses import ResponseCompletedEvent
    from pydantic import TypeAdapter
    from pydantic_core import to_jsonable_python

    from ._openai_sessions import TidebaseSession
except ImportError as error:
    raise missing("openai-agents", __name__, error) from error

__all__ = ["DurableRunner", "TidebaseSession", "ToolContract", "idempotency_key", "tool_contract"]

T = TypeVar("T")
_OUTPUT: TypeAdapter[Any] = TypeAdapter(list[TResponseOutputItem])
_EVENT: TypeAdapter[Any] = TypeAdapter(TResponseStreamEvent)

#: The attribute of a tool, or of the function that it was made of, that has its contract.
_CONTRACT = "__tidebase_contract__"

#: The last event of a stream of a model.
_LAST = ("response.completed", "response.incomplete", "response.failed")


def tool_contract(**contract: Any) -> Callable[[T], T]:
    """Declares what a tool does; a decorator for the tool, or for the function that it is made of::

        @function_tool
        @tool_contract(side_effects=["email.send"])
        async def send(to: str) -> str: ...

    Options: see :class:`ToolContract`. An error of such a tool ends the agent's run, so that the database decides what
    becomes of the call, instead of being told to the model.
    """
    checked = contract_of(contract, "tool")

    def declare(tool: T) -> T:
        setattr(tool, _CONTRACT, checked)
        return tool

    return declare


class DurableRunner:
    """Runs agents in a workflow of :class:`~tidebase.AsyncTidebase`: ``await DurableRunner(run).run(agent, input)``.

    A run that is resumed goes through the agents again from the top, and takes what is recorded: responses of models,
    results of tools and guardrails, decisions about interruptions. Handoffs are followed; MCP servers are tools, too.

    Args:
        run: the run; by default the one that the code at hand works on.
        tools: contracts of tools by their names, where they do not declare them themselves, as those of MCP servers.
        suspend: at a gate the run waits in the database, and ``tide.run`` raises RunSuspendedError. False: it waits in
            this process.
        gate: options of the gates: ``timeout_s``, ``required_approvals`` ...
        model_step: options of the steps that ask a model: ``retries``, ``timeout_s`` ...
    """

    def __init__(
        self,
        run: AsyncRun | None = None,
        *,
        tools: Mapping[str, ToolContract] | None = None,
        suspend: bool = True,
        gate: GateOptions | None = None,
        model_step: StepOptions | None = None,
    ) -> None:
        self._run = surely(the_run(run, "DurableRunner"), "DurableRunner")
        self._tools = {name: contract_of(contract, name) for name, contract in (tools or {}).items()}
        self._suspend = suspend
        self._gate = gate or GateOptions()
        self._model_step = model_step or StepOptions()

    async def run(
        self,
        agent: Agent[Any],
        input: str | list[TResponseInputItem],
        *,
        context: Any = None,
        session: TidebaseSession | None = None,
        run_config: RunConfig | None = None,
        on_event: Callable[[Any], Awaitable[None] | None] | None = None,
        **options: Any,
    ) -> RunResultBase:
        """Runs an agent to its end: as ``Runner.run``, and asks at a gate about each tool call that needs an approval.

        The gate shows the call and the ``RunState``. It is ``approved`` or ``rejected``, the comment being what the
        model is told; with the payload ``{"always": true}`` that holds for all further calls of the tool.

        Args:
            session: its lease is held meanwhile: who else wants to write waits.
            on_event: told each event of the stream, as it comes: as ``Runner.run_streamed``.
            options: ``max_turns``, ``hooks``, ``error_handlers`` ...

        Raises:
            RunSuspendedError: somebody has to decide; run the workflow again when that has happened.
            RunHeld: another worker works with the session.
        """
        if session is not None and not isinstance(session, TidebaseSession):
            raise InvalidArgument(f"the session must be a TidebaseSession, and not a {type(session).__name__}")
        label = place(self._run._hold, f"agent {agent.name}")
        work = _Work(self, agent.name, label)
        durable = work.agent(agent)
        options = {
            **options,
            "context": context,
            "run_config": work.config(run_config),
            "session": None if session is None else _Recorded(session, work),
        }
        state: Any = input
        async with session or AsyncExitStack():
            while True:
                result = await _run(durable, state, on_event, options)
                if not result.interruptions:
                    return cast(RunResultBase, result)
                state = await work.decided(durable, result.to_state(), context)


async def _run(agent: Agent[Any], state: Any, on_event: Callable[[Any], Any] | None, options: dict[str, Any]) -> Any:
    """Runs an agent up to its end, or to an interruption."""
    try:
        if on_event is None:
            return await Runner.run(agent, state, **options)
        result = Runner.run_streamed(agent, state, **options)
        async for event in result.stream_events():
            told = on_event(event)
            if inspect.isawaitable(told):
                await told
        return result
    except UserError as error:  # which the SDK makes of what a tool raises
        if isinstance(error.__cause__, TidebaseError):
            raise error.__cause__ from error
        raise


class _Work:
    """One run of an agent: the how manieth in its run, and what of it is recorded."""

    def __init__(self, runner: DurableRunner, name: str, label: str) -> None:
        self.runner = runner
        self.run = runner._run
        self.name = name
        self.label = label
        self._agents: dict[int, Agent[Any]] = {}

    async def step(
        self, what: str, base: str, body: Callable[[], Awaitable[T]], options: StepOptions, numbered: bool = False
    ) -> tuple[T, bool]:
        return await do_step(self.run, f"{self.name}__{what}", base, body, options, numbered)

    def config(self, given: RunConfig | None) -> RunConfig:
        config = copy.copy(given) if given is not None else RunConfig()
        if isinstance(config.model, Model):
            config.model = _DurableModel(config.model, self, None)
        config.model_provider = _DurableProvider(config.model_provider, self)
        config.input_guardrails = [self._guardrail(one) for one in config.input_guardrails or ()]
        config.output_guardrails = [self._guardrail(one) for one in config.output_guardrails or ()]
        return config

    def agent(self, agent: Agent[Any]) -> Agent[Any]:
        """A copy of an agent whose models, tools and guardrails are steps, as are those of whom it hands off to."""
        known = self._agents.get(id(agent))
        if known is not None:
            return known
        durable = copy.copy(agent)
        self._agents[id(agent)] = self._agents[id(durable)] = durable
        durable.__class__ = _durable(type(agent))
        durable.__dict__["_tidebase_work"] = self
        if isinstance(agent.model, Model):
            durable.model = _DurableModel(agent.model, self, None)
        durable.input_guardrails = [self._guardrail(one) for one in agent.input_guardrails]
        durable.output_guardrails = [self._guardrail(one) for one in agent.output_guardrails]
        durable.handoffs = [self._handoff(one) for one in agent.handoffs]
        return durable

    def _handoff(self, given: Any) -> Any:
        if not isinstance(given, Handoff):
            return self.agent(given)
        handoff, invoke = copy.copy(given), given.on_invoke_handoff

        async def on_invoke(context: Any, arguments: str) -> Any:
            return self.agent(await invoke(context, arguments))

        handoff.on_invoke_handoff = on_invoke
        target = given._agent_ref() if given._agent_ref is not None else None
        if isinstance(target, Agent):
            handoff._agent_ref = weakref.ref(self.agent(target))
        return handoff

    def _guardrail(self, guardrail: Any) -> Any:
        check, name = guardrail.guardrail_function, guardrail.get_name()

        async def checked(context: Any, agent: Agent[Any], value: Any) -> GuardrailFunctionOutput:
            async def body() -> dict[str, Any]:
                output = check(context, agent, value)
                if inspect.isawaitable(output):
                    output = await output
                return {"output_info": _plain(output.output_info), "tripwire_triggered": output.tripwire_triggered}

            options: StepOptions = {"input": {"agent": agent.name, "sha256": digest(_plain(value))}}
            found, _ = await self.step(f"guardrail:{name}", f"{self.label}/{agent.name}", body, options)
            return GuardrailFunctionOutput(**found)

        assert isinstance(guardrail, (InputGuardrail, OutputGuardrail))
        return replace(guardrail, guardrail_function=checked, name=name)

    def tool(self, tool: Tool) -> Tool:
        """A tool whose calls are steps: with a contract as it says; without one as the SDK does it, errors told to the
        model included.
        """
        if not isinstance(tool, FunctionTool) or getattr(tool.on_invoke_tool, "__tidebase__", False):
            return tool
        contract = self._contract(tool)
        implementation = getattr(tool.on_invoke_tool, "_invoke_tool_impl", None)
        plain: StepOptions = {}
        if contract is not None and tool.timeout_seconds is not None:
            contract = {"timeout_s": tool.timeout_seconds, **contract}

        async def invoke(context: ToolContext[Any], arguments: str) -> Any:
            async def body() -> Any:
                if contract is not None:
                    return _output(await (implementation or tool.on_invoke_tool)(context, arguments))
                output = await invoke_function_tool(function_tool=tool, context=context, arguments=arguments)
                _refuse_interruptions(tool, context)
                return _output(output)

            call, options = context.tool_call_id, plain
            given = _arguments(arguments)
            if contract is not None:
                options = options_of(contract, tool.name, given, run_id=self.run.run_id, call_id=call)
            options = {**options, "input": {"tool": tool.name, "arguments": given}}
            result, _ = await self.step(
                f"tool:{tool.name}", f"{self.label}/{scope_of(self.run._hold)}{call}", body, options
            )
            return result

        durable = copy.copy(tool)
        durable.timeout_seconds = None
        if implementation is None:
            durable.on_invoke_tool = invoke
        else:  # made of a function: its arguments are looked at before an approval, and its errors told to the model
            invoke.__dict__.update(implementation.__dict__)
            durable._failure_error_function = None
            durable._use_default_failure_error_function = False
            handled = with_function_tool_failure_error_handler(invoke, lambda *_: None)
            durable.on_invoke_tool = cast(Any, handled).__agents_bind_function_tool__(durable)
        cast(Any, durable.on_invoke_tool).__tidebase__ = True
        return durable

    def _contract(self, tool: FunctionTool) -> ToolContract | None:
        named = self.runner._tools.get(tool.name)
        if named is not None:
            return named
        declared = getattr(tool, _CONTRACT, None)
        if declared is None:
            try:
                declared = getattr(tool.__wrapped__, _CONTRACT, None)
            except AttributeError:  # made of no function
                return None
        return cast("ToolContract | None", declared)

    async def decided(self, agent: Agent[Any], state: RunState[Any, Any], context: Any) -> RunState[Any, Any]:
        """The state of an interrupted run with the decisions of people: it is recorded and shown to them, and the run
        goes on with what was shown.
        """

        async def body() -> dict[str, Any]:
            return state.to_json()

        recorded, _ = await self.step("interruption", self.label, body, {}, numbered=True)
        override = {} if context is None else {"context_override": context}
        resumed = await RunState.from_json(agent, recorded, **override)
        pending = resumed.get_interruptions()
        asked: list[tuple[ToolApprovalItem, str, str, GateOptions]] = []
        for item in pending:
            step = f"{self.name}__approve:{item.qualified_name}"
            name = full_name(step, f"{self.label}/{item.call_id}")
            shown = {
                "agent": item.agent.name,
                "tool": item.qualified_name,
                "arguments": _arguments(item.arguments or ""),
                "state": recorded,
            }
            options: GateOptions = {**self.runner._gate, "data": shown, "options": ["approved", "rejected"]}
            asked.append((item, name, f"Approve {item.qualified_name}?", options))
            await self.run.gates.begin(name, asked[-1][2], **options)
        for item, name, prompt, options in asked:
            given = await self.run.gate(name, prompt, suspend=self.runner._suspend, **options)
            always = _is_always(given)
            if given.approved:
                resumed.approve(item, always_approve=always)
            else:
                resumed.reject(item, always_reject=always, rejection_message=given.comment)
        return resumed


def _is_always(given: GateAnswer) -> bool:
    return isinstance(given.payload, dict) and given.payload.get("always") is True


def _arguments(text: str) -> dict[str, Any]:
    """The arguments that a model has given; what is no JSON object is shown as it is."""
    try:
        value = json.loads(text or "{}")
    except ValueError:
        value = text
    return value if isinstance(value, dict) else {"input": value}


def _plain(value: Any) -> Any:
    return to_jsonable_python(value, bytes_mode="base64", serialize_unknown=True)


def _output(value: Any) -> Any:
    """What a tool returned, as the model is shown it: values that are no JSON as text."""
    return value if isinstance(value, str) else to_jsonable_python(value, bytes_mode="base64", fallback=str)


def _refuse_interruptions(tool: FunctionTool, context: ToolContext[Any]) -> None:
    """An agent as a tool is one step, and a step is not interrupted."""
    if context.tool_call is None:
        return
    nested = peek_agent_tool_run_result(context.tool_call, scope_id=get_agent_tool_state_scope(context))
    if getattr(nested, "interruptions", None):
        raise TidebaseError(
            f"the agent behind tool {tool.name!r} needs an approval inside, and nobody can be asked inside of a step",
            hint="Hand off to that agent, or take the approval for the tool that it is.",
        )


_CLASSES: dict[type[Any], type[Any]] = {}


def _durable(kind: type[Any]) -> type[Any]:
    """A class of agents like this one, whose tools are steps: also those that MCP servers offer at the moment."""
    if kind not in _CLASSES:

        async def get_all_tools(self: Any, run_context: Any) -> list[Tool]:
            work: _Work = self.__dict__["_tidebase_work"]
            return [work.tool(tool) for tool in await kind.get_all_tools(self, run_context)]

        _CLASSES[kind] = type(kind.__name__, (kind,), {"get_all_tools": get_all_tools, "__module__": kind.__module__})
    return _CLASSES[kind]


class _DurableProvider(ModelProvider):
    """Models by name, whose responses are steps."""

    def __init__(self, inner: ModelProvider, work: _Work) -> None:
        self._inner = inner
        self._work = work

    def get_model(self, model_name: str | None) -> Model:
        model = self._inner.get_model(model_name)
        return model if isinstance(model, _DurableModel) else _DurableModel(model, self._work, model_name)

    async def aclose(self) -> None:
        await self._inner.aclose()


class _DurableModel(Model):
    """A model whose responses are steps. The request is hashed, but for what differs at each attempt."""

    def __init__(self, inner: Model, work: _Work, name: str | None) -> None:
        self._inner = inner
        self._work = work
        self._name = name or getattr(inner, "model", None)

    async def close(self) -> None:
        await self._inner.close()

    async def _cleanup_on_run_end(self, owner: object) -> None:
        await self._inner._cleanup_on_run_end(owner)

    def get_retry_advice(self, request: Any) -> Any:
        return self._inner.get_retry_advice(request)

    async def get_response(
        self,
        system_instructions: str | None,
        input: str | list[TResponseInputItem],
        model_settings: Any,
        tools: list[Tool],
        output_schema: Any,
        handoffs: list[Handoff[Any, Any]],
        tracing: Any,
        **kwargs: Any,
    ) -> ModelResponse:
        asked = (system_instructions, input, model_settings, tools, output_schema, handoffs, tracing)

        async def body() -> dict[str, Any]:
            response = await self._inner.get_response(*asked, **kwargs)
            await self._meter(response.usage, response.response_id)
            return {
                "output": [_item(item) for item in response.output],
                "usage": serialize_usage(response.usage),
                "response_id": response.response_id,
                "request_id": response.request_id,
                "raw_usage": response.raw_usage,
            }

        found, _ = await self._step("model.request", asked, kwargs, body)
        usage = deserialize_usage(found["usage"])
        return ModelResponse(**{**found, "output": _OUTPUT.validate_python(found["output"]), "usage": usage})

    async def stream_response(
        self,
        system_instructions: str | None,
        input: str | list[TResponseInputItem],
        model_settings: Any,
        tools: list[Tool],
        output_schema: Any,
        handoffs: list[Handoff[Any, Any]],
        tracing: Any,
        **kwargs: Any,
    ) -> AsyncIterator[TResponseStreamEvent]:
        asked = (system_instructions, input, model_settings, tools, output_schema, handoffs, tracing)
        live: asyncio.Queue[Any] = asyncio.Queue()

        async def body() -> list[Any]:
            kept, whole = [], False
            async for event in self._inner.stream_response(*asked, **kwargs):
                if isinstance(event, ResponseCompletedEvent):
                    whole = True
                    await self._meter(_usage_of(event.response), event.response.id)
                if not event.type.endswith(".delta"):
                    kept.append(_item(event))
                live.put_nowait(event)
            if not whole:
                raise _Unfinished
            return kept

        step = asyncio.ensure_future(self._step("model.request_stream", asked, kwargs, body))
        step.add_done_callback(lambda _: live.put_nowait(None))
        last: list[Any] = []
        try:
            while (event := await live.get()) is not None:
                if event.type in _LAST or last:
                    last.append(event)  # told when the response is recorded
                else:
                    yield event
            recorded, executed = await step
            for event in last if executed else (_EVENT.validate_python(one) for one in recorded):
                yield event
        except _Unfinished:
            for event in last:
                yield event
        finally:
            step.cancel()

    async def _step(
        self, what: str, asked: tuple[Any, ...], more: Mapping[str, Any], body: Callable[[], Awaitable[T]]
    ) -> tuple[T, bool]:
        instructions, given, settings, tools, schema, handoffs, _ = asked
        chosen = {**settings.to_json_dict(), "extra_args": dict(settings.extra_args or {})}
        chosen["extra_args"].pop("prompt_cache_key", None)  # made up at each attempt
        names = [tool.name for tool in tools] + [handoff.tool_name for handoff in handoffs]
        output = None if schema is None else schema.name()
        said = digest(
            _plain([instructions, given, chosen, names, output, sorted(more.items(), key=lambda one: one[0])])
        )
        count = 1 if isinstance(given, str) else len(given)
        work = self._work
        options: StepOptions = {
            **work.runner._model_step,
            "input": {"model": self._name, "items": count, "tools": names, "sha256": said},
        }
        base = f"{work.label}/{scope_of(work.run._hold)}".rstrip("/.")
        return await work.step(what, base, body, options, numbered=True)

    async def _meter(self, usage: Usage, response_id: str | None) -> None:
        """Records what a response used: the next step meets a budget that is used up."""
        used = {
            "model": self._name,
            "response_id": response_id,
            "input_tokens": usage.input_tokens,
            "cache_read_tokens": usage.input_tokens_details.cached_tokens,
            "output_tokens": usage.output_tokens,
            "reasoning_tokens": usage.output_tokens_details.reasoning_tokens,
        }
        if usage.total_tokens or usage.input_tokens or usage.output_tokens:
            known = {name: value for name, value in used.items() if value}
            await self._work.run.usage.record(**cast(UsageOptions, known))


class _Unfinished(Exception):
    """A stream has ended without a response that is whole."""


def _item(item: Any) -> Any:
    return item.model_dump(mode="json", exclude_unset=True) if hasattr(item, "model_dump") else _plain(item)


def _usage_of(response: Any) -> Usage:
    usage = response.usage
    if usage is None:
        return Usage()
    return Usage(
        requests=1,
        input_tokens=usage.input_tokens,
        output_tokens=usage.output_tokens,
        total_tokens=usage.total_tokens,
        input_tokens_details=usage.input_tokens_details,
        output_tokens_details=usage.output_tokens_details,
    )


class _Recorded:
    """A session as a run sees it: what was read is read again as it was, what was written is not written again."""

    def __init__(self, session: TidebaseSession, work: _Work) -> None:
        self.session_id = session.session_id
        self.session_settings = session.session_settings
        self._session = session
        self._work = work

    async def get_items(self, limit: int | None = None) -> list[TResponseInputItem]:
        seq = await self._step("get", self._session.seq, {"limit": limit})
        return await self._session.read(seq, limit)

    async def add_items(self, items: list[TResponseInputItem]) -> None:
        await self._once("add", lambda request: self._session.write(items, request), digest(_plain(items)))

    async def pop_item(self) -> TResponseInputItem | None:
        return await self._once("pop", self._session.pop, None)

    async def clear_session(self) -> None:
        await self._once("clear", self._session.clear, None)

    async def _once(self, what: str, write: Callable[[str], Awaitable[T]], said: str | None) -> T:
        """The id of the write is made of the step's name, so that a crash before its checkpoint does not repeat it."""
        work = self._work

        async def body() -> T:
            return await write(digest([work.run.run_id, current_step.get()])[:40])

        return await self._step(what, body, {"sha256": said})

    async def _step(self, what: str, body: Callable[[], Awaitable[T]], said: dict[str, Any]) -> T:
        options: StepOptions = {"input": {"session": self.session_id, **said}}
        result, _ = await self._work.step(f"session.{what}", self._work.label, body, options, numbered=True)
        return result
