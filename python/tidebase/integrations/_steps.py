"""What the adapters share: the run at hand, names that are the same at each attempt, the contract of a tool."""

from __future__ import annotations

import hashlib
import json
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, TypedDict, TypeVar, cast
from weakref import WeakKeyDictionary

from ..client.work_async import AsyncRun
from ..core.errors import InvalidArgument, TidebaseError
from ..core.options import check
from ..domain.lease import Hold, current_hold
from ..domain.step import Replay, StepOptions, current_step
from ..domain.workflow import current_run

if TYPE_CHECKING:
    from ..client.work import Run

T = TypeVar("T")


class ToolContract(TypedDict, total=False):
    """What a tool says about itself, so that the database knows what may be repeated.

    Attributes:
        side_effects: what it does to the outside, e.g. ``["email.send"]``; ``["read"]`` and none are harmless.
        idempotency_key: by which the outside recognises a repetition: a template of the tool's arguments, such as
            ``"refund:{order}"``, which may name ``{run_id}`` and ``{call_id}``, too; or a function of the arguments.
        replay, retries, retry_delay_s, retry_max_delay_s, timeout_s, checkpoint_invariant, verified_by, credentials: as
            for every step, see :class:`~tidebase.domain.step.StepOptions`.
    """

    side_effects: Sequence[str]
    idempotency_key: str | Callable[[Mapping[str, Any]], str]
    replay: Replay
    retries: int
    retry_delay_s: float
    retry_max_delay_s: float
    timeout_s: float
    checkpoint_invariant: str
    verified_by: str
    credentials: Sequence[str]


_idempotency_key: ContextVar[str | None] = ContextVar("tidebase_idempotency_key", default=None)


def idempotency_key() -> str | None:
    """The idempotency key of the tool call that the code at hand is part of, to be sent along; None without one."""
    return _idempotency_key.get()


def contract_of(declared: object, tool: str) -> ToolContract:
    """A declared contract, checked.

    Raises:
        InvalidArgument: it is none.
    """
    if not isinstance(declared, Mapping):
        raise InvalidArgument(f"the contract of tool {tool!r} must be a dict, such as {{'side_effects': ['read']}}")
    contract = cast(ToolContract, dict(declared))
    check(ToolContract, contract, f"the contract of tool {tool!r}")
    return contract


def options_of(contract: ToolContract, tool: str, arguments: Mapping[str, Any], **known: str) -> StepOptions:
    """The options of the step that a call of a tool is; ``known``: what a key's template may name beside arguments.

    Raises:
        InvalidArgument: the key cannot be made of the arguments.
    """
    key = contract.get("idempotency_key")
    if key is None:
        return cast(StepOptions, dict(contract))
    try:
        text = key.format_map({**known, **arguments}) if isinstance(key, str) else key(arguments)
    except (LookupError, AttributeError, ValueError, TypeError) as error:
        raise InvalidArgument(
            f"the idempotency key of tool {tool!r} cannot be made of its arguments ({', '.join(arguments)}): {error!r}"
        ) from error
    return cast(StepOptions, {**contract, "idempotency_key": text})


def is_ambiguous(contract: ToolContract) -> bool:
    """Whether a call that failed may have taken effect, so that a person has to look."""
    return bool(set(contract.get("side_effects") or ()) - {"read"}) and contract.get("idempotency_key") is None


def the_run(given: AsyncRun | None, what: str) -> AsyncRun | None:
    """The run that was given, else the one that the code at hand works on; None outside of any.

    Raises:
        TypeError: it is not one of asyncio.
    """
    run = given if given is not None else current_run.get(None)
    if run is not None and not isinstance(run, AsyncRun):
        raise TypeError(f"{what} needs a run of AsyncTidebase, and not a {type(run).__name__}")
    return run


def surely(run: AsyncRun | None, what: str) -> AsyncRun:
    """The run. Raises TidebaseError: there is none."""
    if run is None:
        raise TidebaseError(
            f"{what} was called outside of a run", hint="Call it in a workflow (tide.run), or hand it the run."
        )
    return run


_counters: WeakKeyDictionary[Hold, Counter[str]] = WeakKeyDictionary()
_lock = threading.Lock()


def nth(hold: Hold, name: str) -> int:
    """How often this was asked for under this lease, with this time: what is done in the same order gets the same
    number at each attempt.
    """
    with _lock:
        counter = _counters.setdefault(hold, Counter())
        counter[name] += 1
        return counter[name]


def scope_of(hold: Hold) -> str:
    """A word for the step that the code at hand is part of: one that is not executed again must not shift the numbers
    of what comes after it.
    """
    within = current_step.get(None) if current_hold.get() is hold else None
    return "" if within is None else f"{digest(within)[:12]}."


def place(hold: Hold, name: str) -> str:
    """A word for the n-th time that this is begun, in this step or outside of any."""
    scope = scope_of(hold)
    return f"{scope}{nth(hold, scope + name)}"


def digest(value: Any) -> str:
    """The SHA-256 of a JSON value, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


async def do_step(
    run: AsyncRun,
    name: str,
    base: str,
    body: Callable[[], Awaitable[T]],
    options: StepOptions,
    numbered: bool = False,
) -> tuple[T, bool]:
    """Does a step; says whether it was executed, or its stored result returned.

    Args:
        base: its key; the second one of the same key in this attempt, and each one where they are ``numbered``, has a
            number behind it. What failed is tried again under the same number.
    """
    executed = False

    async def work() -> Any:
        nonlocal executed
        executed = True
        with _keyed(options.get("idempotency_key")):
            return await body()

    with _numbered(run._hold, name, base, numbered) as key:
        chosen: StepOptions = {**options, "key": key}
        result = await run.step.options(**chosen)(name, work)
    return cast(T, result), executed


def do_step_in_thread(run: Run, name: str, base: str, body: Callable[[], T], options: StepOptions) -> T:
    """The same for a run of Tidebase."""
    with _numbered(run._hold, name, base, False) as key:
        chosen: StepOptions = {**options, "key": key}
        return run.step.options(**chosen)(name, body)


@contextmanager
def _numbered(hold: Hold, name: str, base: str, numbered: bool) -> Iterator[str]:
    counted = f"{name}[{base}]"
    number = nth(hold, counted)
    try:
        yield base if number == 1 and not numbered else f"{base}/{number}"
    except Exception:
        with _lock:
            _counters[hold][counted] -= 1
        raise


@contextmanager
def _keyed(key: str | None) -> Iterator[None]:
    token = _idempotency_key.set(key)
    try:
        yield
    finally:
        _idempotency_key.reset(token)


def missing(extra: str, module: str, error: ImportError) -> ImportError:
    """What is raised when an extra is not installed."""
    return ImportError(
        f"{module} needs the extra {extra!r} ({error}): pip install 'tidebase-postgres[{extra}]'", name=error.name
    )
