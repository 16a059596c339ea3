"""Lists of messages: of one that grew, only what is new is serialized, and only what is new is made of bytes again.

Messages may be changed in place. So a list is known by its objects and by what they were; and whoever reads it gets
messages of his own.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any, NamedTuple

from langchain_core.messages import (
    AIMessage,
    BaseMessage,
    ChatMessage,
    FunctionMessage,
    HumanMessage,
    RemoveMessage,
    SystemMessage,
    ToolMessage,
)

#: Those whose bytes follow from their fields alone: not subclasses of others, which may do it in another way.
_CLASSES = frozenset({AIMessage, ChatMessage, FunctionMessage, HumanMessage, RemoveMessage, SystemMessage, ToolMessage})

#: What nobody can change.
_SIMPLE = frozenset({str, int, float, bool, type(None), bytes})


class _Odd(Exception):
    """Something else than text, numbers, lists and dicts."""


class State(NamedTuple):
    """A message, as it was."""

    type: type[BaseMessage]
    fields: dict[str, Any]
    nested: list[str]  #: the fields that could be changed in place
    more: dict[str, Any] | None
    set: set[str]


def _copied(value: Any) -> Any:
    kind = type(value)
    if kind in _SIMPLE:
        return value
    if kind is dict:
        return {_copied(key): _copied(item) for key, item in value.items()} if value else {}
    if kind is list:
        return [_copied(item) for item in value] if value else []
    raise _Odd


def _state(message: BaseMessage) -> State:
    fields = message.__dict__.copy()
    nested = [name for name, value in fields.items() if type(value) not in _SIMPLE]
    for name in nested:
        fields[name] = _copied(fields[name])
    more = _copied(message.__pydantic_extra__)
    return State(type(message), fields, nested, more, message.__pydantic_fields_set__.copy())


def _message(state: State) -> BaseMessage:
    fields = state.fields.copy()
    for name in state.nested:
        fields[name] = _copied(fields[name])
    message = state.type.__new__(state.type)
    message.__setstate__(
        {
            "__dict__": fields,
            "__pydantic_extra__": _copied(state.more),
            "__pydantic_fields_set__": state.set.copy(),
            "__pydantic_private__": None,
        }
    )
    return message


def states(values: Any) -> list[State] | None:
    """What the messages of a list are; None if it is something else, or if there is more in them than plain data."""
    if type(values) is not list or not _CLASSES.issuperset(map(type, values)):
        return None
    try:
        return list(map(_state, values))
    except (_Odd, RecursionError):
        return None


def messages(found: Sequence[State]) -> list[BaseMessage]:
    """Messages of their own that are like these."""
    return list(map(_message, found))


class Shown:
    """The messages of which the bytes of a value were made, or that were made of these; and what they were then."""

    def __init__(self, objects: list[Any], found: Sequence[State], before: Shown | None = None) -> None:
        self.objects = objects
        self._fields: list[dict[str, Any]] = [*(before._fields if before else ()), *(state.fields for state in found)]
        self._more: list[dict[str, Any] | None] = [*(before._more if before else ()), *(state.more for state in found)]

    def begins(self, values: list[Any]) -> bool:
        """Whether a list begins with just these messages, unchanged."""
        some = values[: len(self.objects)]
        return (
            len(some) == len(self.objects)
            and all(map(operator.is_, self.objects, some))
            and [message.__dict__ for message in some] == self._fields
            and [message.__pydantic_extra__ for message in some] == self._more
        )


class Read(NamedTuple):
    """What the messages at the beginning of a body are, made of its bytes; and how many bytes those are."""

    states: list[State]
    bytes: int
