"""Pydantic AI: a capability that makes each request to a model and each call of a tool a step of a run, and each
approval a gate. The framework decides what a unit of work is (``pydantic_ai.durable_exec``), the database what becomes
of it.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import fields, is_dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal, cast

from ..client.work_async import AsyncRun
from ..core.errors import Interruption, InvalidArgument, StepOutputDecodeError
from ..core.names import full_name
from ..domain.gate import GateAnswer, GateOptions
from ..domain.step import StepOptions
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
    surely,
    the_run,
)

try:
    from pydantic import JsonValue, ValidationError
    from pydantic_ai import RunContext
    from pydantic_ai.agent import EventStreamHandler
    from pydantic_ai.capabilities import CapabilityOrdering, RequestInput, WrapRunHandler
    from pydantic_ai.capabilities.model_fallback import ModelFallback
    from pydantic_ai.durable_exec import (
        JSON_CODEC,
        BaseDurabilityCapability,
        CapabilityOperationId,
        DurabilityEngineSpec,
        DurableOperationBackend,
        DurableOperationId,
        EventStreamHandlerId,
        ExternalEventError,
        ExternalEventWaiter,
        JournalCallableOperationBackend,
        ModelRequestId,
        RoleBasedOperationConfig,
        ToolsetCallToolId,
        ToolsetValidateToolArgumentsId,
        conversation_id_from_run_id,
        external_event_scope,
        record_durable_unit,
        replay_scope,
    )
    from pydantic_ai.exceptions import ToolFailed, UserError
    from pydantic_ai.messages import ToolCallPart
    from pydantic_ai.models import Model, ModelRequestParameters
    from pydantic_ai.run import AgentRunResult
    from pydantic_ai.tools import (
        AgentDepsT,
        DeferredToolRequests,
        DeferredToolResults,
        ToolApproved,
        ToolDefinition,
        ToolDenied,
    )
    from pydantic_ai.toolsets import AbstractToolset, ToolsetTool, WrapperToolset
    from pydantic_core import to_jsonable_python
except ImportError as error:
    raise missing("pydantic-ai", __name__, error) from error

if TYPE_CHECKING:
    from ..client.tide_async import AsyncTidebase
    from ..domain.calls import GateDecision

__all__ = ["TidebaseDurability", "ToolContract", "answer", "idempotency_key", "refuse", "tool_contract"]

#: Where a tool's metadata has its contract.
METADATA = "tidebase"

#: What differs from attempt to attempt in the framework's own dataclasses, and means nothing to a model.
_VOLATILE = frozenset({"timestamp", "run_id", "conversation_id"})

#: How ids of tool calls begin that the framework makes up, a new one at each attempt where they belong to no response.
_MADE_UP = "pyd_ai_"

#: The forms in which the framework records what a tool call came to. What a person accepts in a review is none of them.
_RECORDED = frozenset(
    {
        "approval_required",
        "call_deferred",
        "model_retry",
        "validation_error",
        "tool_return",
        "tool_content_result",
        "tool_failed",
        "run_cancelled",
    }
)


def tool_contract(**contract: Any) -> dict[str, Any]:
    """The metadata of a tool with a contract: ``@agent.tool(metadata=tool_contract(side_effects=["email.send"]))``.

    Options: see :class:`ToolContract`. For tools of others (MCP): ``SetToolMetadata(tidebase={...})``.
    """
    return {METADATA: contract_of(contract, "tool")}


class TidebaseDurability(BaseDurabilityCapability[AgentDepsT]):
    """Makes an agent durable: ``Agent(..., capabilities=[TidebaseDurability()])``, or for one run of an agent,
    ``agent.run(..., capabilities=[TidebaseDurability(run)])``.

    Inside a workflow of :class:`~tidebase.AsyncTidebase` each request to a model, each tool call and each look at a
    server's tools is a step; what a response used is recorded; tools that need an approval, or are deferred, ask at
    gates. Outside of a run the agent is as it is without.

    Args:
        run: the run; by default the one that the code at hand works on.
        suspend: at a gate the run waits in the database, and ``tide.run`` raises RunSuspendedError. False: it waits in
            this process.
        gates: ask at a gate about each deferred call that no other capability answers. False: the agent's run ends
            with ``DeferredToolRequests``, as without.
        gate: options of those gates: ``timeout_s``, ``required_approvals`` ...
        model_step: options of the steps that ask a model: ``retries``, ``timeout_s`` ...
        models, event_stream_handler, name: see ``BaseDurabilityCapability``.
    """

    engine_spec = DurabilityEngineSpec(
        engine_name="Tidebase",
        durable_unit_noun="step",
        durable_container_noun="run",
        codec=JSON_CODEC,
        toolset_lifecycles={"function": "enter-always", "mcp": "enter-in-durable-unit", "dynamic": "enter-never"},
        tool_config_key=METADATA,
        cancellation_error_types=(Interruption,),
    )

    def __init__(
        self,
        run: AsyncRun | None = None,
        *,
        suspend: bool = True,
        gates: bool = True,
        gate: GateOptions | None = None,
        model_step: StepOptions | None = None,
        models: Mapping[str, Model] | None = None,
        event_stream_handler: EventStreamHandler[AgentDepsT] | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__(models=models, event_stream_handler=event_stream_handler, name=name)
        self._given = the_run(run, "TidebaseDurability") if run is not None else None
        self._suspend = suspend
        self._gates = gates
        self._gate = gate or GateOptions()
        self._model_step = model_step or StepOptions()

    @property
    def in_durable_context(self) -> bool:
        """Whether there is a run."""
        return self._run() is not None

    def _run(self) -> AsyncRun | None:
        return the_run(self._given, "TidebaseDurability")

    def get_default_run_id(self) -> str | None:
        """The same at each attempt: the run's id, and the how manieth run of this agent in it this is."""
        run = self._run()
        return None if run is None else f"{run.run_id}:{place(run._hold, f'agent {self.name}')}"

    def get_default_conversation_id(self, run_id: str) -> str | None:
        """Made of the id of the agent's run."""
        return conversation_id_from_run_id(run_id) if self.in_durable_context else None

    def get_durable_operation_backend(self) -> DurableOperationBackend[StepOptions | ToolContract]:
        """What makes a unit of work a step."""
        return _Steps(self)

    def get_wrapper_toolset(self, toolset: AbstractToolset[AgentDepsT]) -> AbstractToolset[AgentDepsT] | None:
        """All toolsets as durable ones: those that the agent was made with, and those that this run brings along."""
        if not self.in_durable_context:
            return None
        registered, late = self._toolsets_by_id, dict[str, WrapperToolset[AgentDepsT]]()

        def swap(leaf: AbstractToolset[AgentDepsT]) -> AbstractToolset[AgentDepsT]:
            durable = registered.get(leaf.id or "") or late.get(leaf.id or "")
            if durable is not None and durable.wrapped is leaf:
                return durable
            wrapped = self._wrap_leaf_toolset(leaf)
            if wrapped is None:
                return leaf
            if durable is not None or leaf.id is None:
                problem = "needs an `id`" if leaf.id is None else f"has the `id` of another one, {leaf.id!r}"
                raise UserError(f"A toolset added at run time {problem}: its steps are named after it.")
            late[leaf.id] = wrapped
            return wrapped

        return toolset.visit_and_replace(swap)

    def get_ordering(self) -> CapabilityOrdering:
        """Innermost, and behind whoever answers deferred calls without a gate."""
        return CapabilityOrdering(position="innermost", wrapped_by=(ModelFallback, RequestInput))

    async def wrap_run(self, ctx: RunContext[AgentDepsT], *, handler: WrapRunHandler) -> AgentRunResult[Any]:
        """Waits for the outside at gates, and keeps what is only replayed out of traces."""
        run = self._run()
        if run is None:
            return await handler()
        with external_event_scope(_Waiter(self, run)), replay_scope():
            return await super().wrap_run(ctx, handler=handler)

    async def handle_deferred_tool_calls(
        self, ctx: RunContext[AgentDepsT], *, requests: DeferredToolRequests
    ) -> DeferredToolResults | None:
        """Asks at a gate about each call: all are opened before the first is waited for."""
        run = self._run()
        if run is None or not self._gates:
            return None
        asked: list[tuple[ToolCallPart, bool, str, GateOptions]] = []
        for call, approval in [(c, True) for c in requests.approvals] + [(c, False) for c in requests.calls]:
            step = f"{self.name}__{'approve' if approval else 'answer'}:{call.tool_name}"
            name = full_name(step, f"{_label(run, ctx)}/{call.tool_call_id}")
            shown: dict[str, Any] = {"tool": call.tool_name, "arguments": call.args_as_dict()}
            if metadata := requests.metadata.get(call.tool_call_id):
                shown["metadata"] = to_jsonable_python(metadata)
            choices = ["approved", "rejected", "edited"] if approval else ["responded", "rejected"]
            asked.append((call, approval, name, {**self._gate, "data": shown, "options": choices}))
        prompts = [f"{'Approve' if approval else 'Answer'} {call.tool_name}?" for call, approval, _, _ in asked]
        for (_, _, name, options), prompt in zip(asked, prompts, strict=True):
            await run.gates.begin(name, prompt, **options)
        results = DeferredToolResults()
        for (call, approval, name, options), prompt in zip(asked, prompts, strict=True):
            given = await run.gate(name, prompt, suspend=self._suspend, **options)
            if approval:
                results.approvals[call.tool_call_id] = _approval(given)
            else:
                results.calls[call.tool_call_id] = _result(given)
            if given.actor:
                results.answered_by[call.tool_call_id] = given.actor
        return requests.build_results(approvals=results.approvals, calls=results.calls, answered_by=results.answered_by)


def _approval(given: GateAnswer) -> ToolApproved | ToolDenied:
    if not given.approved:
        return ToolDenied(given.comment or f"The call was not approved ({given.decision}).")
    if given.decision != "edited":
        return ToolApproved()
    if not isinstance(given.payload, dict):
        raise InvalidArgument(f"the answer at gate {given.name!r} is edited, and must have the arguments as an object")
    return ToolApproved(override_args=given.payload)


def _result(given: GateAnswer) -> Any:
    if given.decision == "responded":
        return given.payload
    return ToolFailed(given.comment or f"There is no answer ({given.decision}).")


class _Steps(JournalCallableOperationBackend["StepOptions | ToolContract"]):
    """Each unit of work is a step, named by the framework's convention, which is persisted data."""

    def __init__(self, durability: TidebaseDurability[Any]) -> None:
        def tool(
            operation: DurableOperationId, tool: object | None, name: str
        ) -> StepOptions | ToolContract | Literal[False]:
            if tool is None or isinstance(operation, ToolsetValidateToolArgumentsId):
                return StepOptions()
            definition = cast("ToolsetTool[Any]", tool).tool_def
            declared = (definition.metadata or {}).get(METADATA)
            if declared is False:
                return False
            return StepOptions() if declared is None else contract_of(declared, name)

        super().__init__(
            agent_name=durability.name,
            default_model_id=durability.default_model_id,
            config=RoleBasedOperationConfig(
                model=durability._model_step,
                event=StepOptions(),
                capability=StepOptions(),
                tool=StepOptions(),
                resolve_tool=tool,
            ),
        )
        self._durability = durability

    async def execute(
        self,
        *,
        operation_id: DurableOperationId,
        name: str,
        body: Callable[[], Awaitable[object]],
        cache_key: tuple[object, ...],
        config: StepOptions | ToolContract,
    ) -> object:
        run = surely(self._durability._run(), "a durable agent")
        context = next((part for part in cache_key if isinstance(part, RunContext)), None)
        label = "" if context is None else _label(run, context)
        work, options, base = body, cast(StepOptions, config), label
        match operation_id:
            case ModelRequestId():
                work, options = _metered(run, body), {**options, "input": _request(cache_key)}
            case ToolsetCallToolId() | ToolsetValidateToolArgumentsId():
                tool, arguments = cast("tuple[str, Mapping[str, Any]]", cache_key[:2])
                call = (context.tool_call_id if context is not None else None) or tool
                options = options_of(cast(ToolContract, config), tool, arguments, run_id=run.run_id, call_id=call)
                options["input"] = {"tool": tool, "arguments": _plain(arguments)}
                base = f"{label}/{call}"
            case EventStreamHandlerId():  # events come in the order in which tools end; what they say tells them apart
                base = digest(_plain(cache_key))[:16]
            case CapabilityOperationId():
                options = {**options, "input": {"sha256": digest(_plain(cache_key[:-1]))}}
            case _:  # what is discovered, at each look again
                pass
        known = isinstance(operation_id, (ToolsetCallToolId, ToolsetValidateToolArgumentsId, EventStreamHandlerId))
        payload, executed = await do_step(run, name, base, work, options, numbered=not known)
        record_durable_unit(executed=executed)
        if isinstance(operation_id, ToolsetCallToolId) and not _is_recorded(payload):
            return {"kind": "tool_return", "result": payload}  # a person has said in a review what the call did
        return payload


def _is_recorded(payload: object) -> bool:
    return isinstance(payload, dict) and payload.get("kind") in _RECORDED


class _Codec:
    """JSON. What does not decode is no mistake of the model's, for which a ValidationError would be taken."""

    def dump(self, tp: Any, value: Any) -> Any:
        return JSON_CODEC.dump(tp, value)

    def load(self, tp: Any, payload: Any) -> Any:
        try:
            return JSON_CODEC.load(tp, payload)
        except ValidationError as error:
            raise StepOutputDecodeError(f"what is stored is no {tp}: {error}") from error


TidebaseDurability.engine_spec = replace(TidebaseDurability.engine_spec, codec=_Codec())


def _label(run: AsyncRun, context: RunContext[Any]) -> str:
    """Which run of the agent this is: the how manieth, or the id that the caller gave it. Forks have it, too."""
    return (context.run_id or "").removeprefix(f"{run.run_id}:")


def _request(cache_key: tuple[object, ...]) -> dict[str, Any]:
    """What is hashed of a request: the messages, without what differs at each attempt; settings; names of tools."""
    model_id, messages, settings, parameters = cache_key[:4]
    named = [tool.name for tool in (*_tools(parameters, "function_tools"), *_tools(parameters, "output_tools"))]
    count = len(messages) if isinstance(messages, list) else 0
    said = digest([_plain(messages), _plain(settings), named])
    return {"model": model_id, "messages": count, "tools": named, "sha256": said}


def _tools(parameters: object, of: str) -> list[ToolDefinition]:
    return list(getattr(parameters, of)) if isinstance(parameters, ModelRequestParameters) else []


def _plain(value: Any) -> Any:
    """A value as JSON that is the same at each attempt."""
    if is_dataclass(value) and not isinstance(value, type):
        own = type(value).__module__.startswith("pydantic_ai")
        members = {f.name: getattr(value, f.name) for f in fields(value) if not (own and f.name in _VOLATILE)}
        if own and str(members.get("tool_call_id") or "").startswith(_MADE_UP):
            members["tool_call_id"] = _MADE_UP
        return {name: _plain(member) for name, member in members.items()}
    if isinstance(value, Mapping):
        return {str(key): _plain(member) for key, member in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(member) for member in value]
    return to_jsonable_python(value, bytes_mode="base64", serialize_unknown=True)


def _metered(run: AsyncRun, body: Callable[[], Awaitable[object]]) -> Callable[[], Awaitable[object]]:
    """Records what a response used, in the step that asked for it: the next step meets a budget that is used up."""

    async def work() -> object:
        response = await body()
        if isinstance(response, dict) and (used := _usage(response)):
            await run.usage.record(**used)
        return response

    return work


def _usage(response: dict[str, Any]) -> UsageOptions:
    usage = response.get("usage") or {}
    counts = {
        "input_tokens": usage.get("input_tokens"),
        "cache_read_tokens": usage.get("cache_read_tokens"),
        "cache_write_tokens": usage.get("cache_write_tokens"),
        "output_tokens": usage.get("output_tokens"),
        "reasoning_tokens": (usage.get("details") or {}).get("reasoning_tokens"),
    }
    words = {
        "provider": response.get("provider_name"),
        "model": response.get("model_name"),
        "response_id": response.get("provider_response_id"),
    }
    if not any(counts.values()):
        return {}
    return cast(UsageOptions, {name: value for name, value in {**counts, **words}.items() if value})


class _Waiter(ExternalEventWaiter):
    """Waits for the outside at a gate, whose secret is in the token: :func:`answer` and :func:`refuse` decide it."""

    def __init__(self, durability: TidebaseDurability[Any], run: AsyncRun) -> None:
        self._durability = durability
        self._run = run

    async def wait(
        self, name: str, *, ask: Callable[[str], Awaitable[JsonValue]], timeout: timedelta | None
    ) -> JsonValue:
        run, step = self._run, f"{self._durability.name}__external_event.{name}"
        key = place(run._hold, step)
        gate = full_name(step, key)
        options: GateOptions = {"options": ["answered", "rejected"]}
        if timeout is not None:
            options["timeout_s"] = timeout.total_seconds()
        opening = await run.gates.begin(gate, f"{name}?", **options)
        token = _token(run.run_id, gate, opening.secret)
        told, _ = await do_step(run, f"{step}.ask", key, lambda: ask(token), {})
        if told is not None and opening.answer is None:
            await run._tide.gates.decide(run.run_id, gate, "answered", payload=told, secret=opening.secret)
        given = await run.gate(gate, f"{name}?", suspend=self._durability._suspend, **options)
        if given.decision != "answered":
            raise ExternalEventError(given.comment or f"{name} was {given.decision}")
        return cast(JsonValue, given.payload)


def _token(run_id: str, gate: str, secret: str) -> str:
    return base64.urlsafe_b64encode(json.dumps([run_id, gate, secret]).encode()).decode()


async def answer(tide: AsyncTidebase, token: str, payload: Any, *, actor: str | None = None) -> GateDecision:
    """Answers what an agent waits for (``RequestInput``, ``wait_for_external_event``); the run may go on.

    Args:
        token: what was handed out: it entitles its bearer to answer.
        payload: JSON; for RequestInput that of ``DeferredToolResults``.

    Raises:
        InvalidArgument: it is no such token. NotEntitled: its secret is wrong.
    """
    run_id, gate, secret = _read(token)
    return await tide.gates.decide(run_id, gate, "answered", payload=payload, secret=secret, actor=actor)


async def refuse(tide: AsyncTidebase, token: str, reason: str, *, actor: str | None = None) -> GateDecision:
    """Ends what an agent waits for without an answer: it is told the reason."""
    run_id, gate, secret = _read(token)
    return await tide.gates.decide(run_id, gate, "rejected", comment=reason, secret=secret, actor=actor)


def _read(token: str) -> tuple[str, str, str]:
    try:
        run_id, gate, secret = json.loads(base64.urlsafe_b64decode(token))
    except ValueError as error:
        raise InvalidArgument("the token is none that was handed out here") from error
    return run_id, gate, secret
