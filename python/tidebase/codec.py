"""Values to JSON and back. Never pickle: what is stored can be read by any client, and by people.

A value that a step returns is always what came back through the codec, so it is the same on the first run and on a
replay. Dataclasses, Pydantic models, TypedDicts, enums, dates, UUIDs, decimals ... come back as what the function's
return annotation says; without an annotation they come back as plain JSON.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import typing
from collections.abc import Callable
from decimal import Decimal
from pathlib import PurePath
from typing import Any
from weakref import WeakKeyDictionary

import msgspec

from .errors import NotSerializable, StepOutputDecodeError

_PLAIN = (Any, None, type(None), object, dict, list)


def to_builtins(value: Any) -> Any:
    """The value as dicts, lists, strings, numbers, booleans and None.

    Raises:
        NotSerializable: it holds something that has no such form.
    """
    try:
        return msgspec.to_builtins(value, str_keys=True, enc_hook=_encode_other)
    except RecursionError:
        raise NotSerializable("the value is nested too deeply to be stored as JSON, or contains itself") from None
    except (TypeError, ValueError) as error:
        raise NotSerializable(f"the value cannot be stored as JSON: {error}", hint=_HINT) from None


def dumps(builtins: Any) -> str:
    """JSON text of a value from :func:`to_builtins`, fit for jsonb.

    Raises:
        NotSerializable: NaN and infinities (RFC 8259, section 6), NUL characters and lone surrogates, which jsonb
            cannot hold; the message names the path.
    """
    if builtins is None:
        return "null"
    try:
        text = _ENCODER.encode(builtins)
        text.encode()
    except RecursionError:
        raise NotSerializable("the value is nested too deeply to be stored as JSON, or contains itself") from None
    except (TypeError, ValueError) as error:
        raise NotSerializable(
            f"the value cannot be stored as JSON: {_first_problem(builtins) or error}", hint=_HINT
        ) from None
    if "e+" in text:
        text = _EXPONENT.sub(_without_exponent, text)
    if "\\u0000" in text:
        problem = _first_problem(builtins)
        if problem:
            raise NotSerializable(f"the value cannot be stored as JSON: {problem}", hint=_HINT)
    return text


def encode(value: Any) -> str:
    """JSON text of any value that can be stored."""
    return dumps(to_builtins(value))


def settle(text: str, expected: Any = Any) -> Any:
    """What :func:`decode` will return for this text once jsonb has kept it: its objects' keys are in jsonb's order."""
    decoder = _SETTLER if "{" in text else _DECODER
    return _convert(decoder.decode(text), expected)


def decode(text: str | None, expected: Any = Any) -> Any:
    """The value of a JSON text from the database, as the type that the code expects.

    Raises:
        StepOutputDecodeError: it does not fit that type; the message names the path.
    """
    if text is None:
        return None
    return _convert(_DECODER.decode(text), expected)


def _convert(value: Any, expected: Any) -> Any:
    if expected in _PLAIN:
        return value
    try:
        return msgspec.convert(value, expected, dec_hook=_decode_other)
    except msgspec.ValidationError as error:
        raise StepOutputDecodeError(f"a stored value does not fit {_name(expected)}: {error}", hint=_CHANGED) from error
    except TypeError:
        return _by_pydantic(value, expected)


def returned_type(function: Callable[..., Any]) -> Any:
    """The function's return annotation; Any where there is none or it cannot be resolved."""
    return _hints(function).get("return", Any)


def parameter_type(function: Callable[..., Any], position: int) -> Any:
    """The annotation of a positional parameter; Any where there is none or it cannot be resolved."""
    code = getattr(function, "__code__", None)
    if code is None or position >= code.co_argcount:
        return Any
    return _hints(function).get(code.co_varnames[position], Any)


# Weakly, so that a closure and what it has captured live no longer than without it.
_known: WeakKeyDictionary[Callable[..., Any], dict[str, Any]] = WeakKeyDictionary()


def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    if isinstance(function, functools.partial):
        function = function.func
    if not getattr(function, "__annotations__", None):
        return {}
    try:
        return _known[function]
    except (KeyError, TypeError):
        pass
    try:
        hints = typing.get_type_hints(function)
    except Exception:  # names that exist for the type checker only
        hints = {}
    with contextlib.suppress(TypeError):  # a callable that cannot be hashed or weakly referenced
        _known[function] = hints
    return hints


_HINT = "JSON values, dataclasses and Pydantic models can be stored; NaN, NUL characters and lone surrogates cannot."
_CHANGED = "Has the type changed since the value was stored? Make it accept the value, or give the step another name."


# A string, or a number with a positive exponent.
_EXPONENT = re.compile(r'"(?:[^"\\]|\\.)*"|-?\d+(?:\.\d+)?e\+\d+')


def _without_exponent(match: re.Match[str]) -> str:
    """jsonb keeps decimals: of 1e+23 it would make an integer, which is not that float. 1000...0.0 stays one."""
    text = match[0]
    return text if text.startswith('"') else f"{format(Decimal(text), 'f')}.0"


def _parse_float(text: str) -> float:
    return float(text) + 0.0  # jsonb knows no negative zero


def _jsonb_order(members: list[tuple[str, Any]]) -> dict[str, Any]:
    return dict(sorted(members, key=lambda member: (len(member[0].encode()), member[0].encode())))


# Made once: json.dumps and json.loads make new ones each time they are given options.
_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))
_DECODER = json.JSONDecoder(parse_float=_parse_float)
_SETTLER = json.JSONDecoder(parse_float=_parse_float, object_pairs_hook=_jsonb_order)


def _encode_other(value: Any) -> Any:
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json")
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    raise TypeError(f"a {type(value).__name__} has no JSON form")


def _decode_other(expected: Any, value: Any) -> Any:
    if hasattr(expected, "model_validate"):
        return _by_pydantic(value, expected)
    if isinstance(expected, type) and issubclass(expected, PurePath):
        return expected(value)
    raise TypeError(f"cannot make a {_name(expected)} of JSON")


def _by_pydantic(value: Any, expected: Any) -> Any:
    try:
        import pydantic
    except ImportError:
        raise StepOutputDecodeError(
            f"the annotation {_name(expected)} cannot be decoded",
            hint="Annotate with simpler types, or: pip install pydantic",
        ) from None
    try:
        return pydantic.TypeAdapter(expected).validate_python(value)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"])
        raise StepOutputDecodeError(
            f"a stored value does not fit {_name(expected)}: {first['msg']} - at `${path}`", hint=_CHANGED
        ) from error
    except pydantic.errors.PydanticUserError as error:
        raise StepOutputDecodeError(f"the annotation {_name(expected)} cannot be decoded: {error}") from error


def _name(expected: Any) -> str:
    return getattr(expected, "__name__", None) or str(expected)


def _first_problem(value: Any, path: str = "$") -> str | None:
    """Where a value has something that JSON, or jsonb, cannot hold. Only called when there is such a thing."""
    if isinstance(value, str):
        if "\0" in value:
            return f"{path} has a NUL character"
        return None if _is_text(value) else f"{path} has a lone surrogate"
    if isinstance(value, float):
        return f"{path} is {value}" if value != value or value in (float("inf"), float("-inf")) else None
    if isinstance(value, dict):
        for key, item in value.items():
            problem = _first_problem(key, f"the key {key!r} of {path}") or _first_problem(item, f"{path}.{key}")
            if problem:
                return problem
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            problem = _first_problem(item, f"{path}[{index}]")
            if problem:
                return problem
    return None


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
