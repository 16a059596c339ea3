"""Values to JSON and back. Never pickle: what is stored can be read by any client, and by people.

A value that a step returns is always what came back through the codec, so it is the same on the first run and on a
replay. Dataclasses, Pydantic models, TypedDicts, enums, dates, UUIDs, decimals ... come back as what the function's
return annotation says; without an annotation they come back as plain JSON.

The same value has the same text in every process: the elements of a set are put in order, which hash randomisation
does not do. Runs that are under way may still know the text of another order, see :func:`unordered`.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import typing
from collections.abc import Callable, Iterator, Mapping, Set
from dataclasses import dataclass
from decimal import Decimal
from pathlib import PurePath
from typing import Any
from weakref import WeakKeyDictionary

import msgspec

from .canonical import canonical
from .errors import NotSerializable, StepOutputDecodeError

_PLAIN = (Any, None, type(None), object, dict, list)
_CONTAINERS = (dict, list, tuple)


def to_builtins(value: Any) -> Any:
    """The value as dicts, lists, strings, numbers, booleans and None.

    Raises:
        NotSerializable: it holds something that has no such form, or two keys that are the same text in JSON.
    """
    return _ordered(value, _to_builtins(value, _encode_other))


def unordered(value: Any) -> Any:
    """The value as ``to_builtins`` gave it before sets were put in order: what earlier versions have hashed."""
    return _to_builtins(value, _encode_other)


def _to_builtins(value: Any, encode_other: Callable[[Any], Any]) -> Any:
    try:
        return msgspec.to_builtins(value, str_keys=True, enc_hook=encode_other)
    except RecursionError:
        raise NotSerializable("the value is nested too deeply to be stored as JSON, or contains itself") from None
    except (TypeError, ValueError) as error:
        place = _place(value, encode_other)
        raise NotSerializable(f"the value cannot be stored as JSON: {error} - at `{place}`", hint=_HINT) from None


def _place(value: Any, encode_other: Callable[[Any], Any]) -> str:
    """Where the first thing is that has no JSON form. Only called when there is one."""
    path, parts = "$", _parts(value)
    while True:
        for step, part in parts:
            try:
                msgspec.to_builtins(part, str_keys=True, enc_hook=encode_other)
            except (TypeError, ValueError):
                path, parts = path + step, _parts(part)
                break
            except RecursionError:  # it is not what was found first
                continue
        else:
            return path


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    """What a value is made of, each with the step to it in a path."""
    if isinstance(value, Mapping):
        yield from ((f".{key}", item) for key, item in value.items())
    elif isinstance(value, (list, tuple, Set)):
        yield from ((f"[{index}]", item) for index, item in enumerate(value))
    else:
        names = getattr(value, "__struct_fields__", None) or getattr(type(value), "model_fields", None)
        names = names or [field.name for field in getattr(value, "__attrs_attrs__", ())]
        names = names or getattr(value, "__dataclass_fields__", ())
        yield from ((f".{name}", getattr(value, name, None)) for name in names)


def _ordered(value: Any, builtins: Any) -> Any:
    """Puts the elements of all sets in order, and looks for keys that have become one: the builtins are gone through
    beside the value that they were made of.
    """
    if type(builtins) in _CONTAINERS:
        try:
            _put_in_order(value, builtins, "$")
        except ValueError:  # what JSON cannot hold: dumps will say where it is
            return builtins
        except RecursionError:
            raise NotSerializable("the value is nested too deeply to be stored as JSON, or contains itself") from None
    return builtins


def _put_in_order(value: Any, builtins: Any, path: str) -> None:
    if isinstance(builtins, dict):
        if type(value) is not dict and not isinstance(value, Mapping):
            pairs = [(key, _field(value, key), inner) for key, inner in builtins.items()]
        elif len(builtins) < len(value):
            raise NotSerializable(
                f"the value cannot be stored as JSON: {path} has {_twins(value)}", hint="Keys in JSON are text."
            )
        else:
            pairs = list(zip(builtins, value.values(), builtins.values(), strict=False))
        for key, item, inner in pairs:
            if type(inner) in _CONTAINERS:
                _put_in_order(item, inner, f"{path}.{key}")
    elif isinstance(value, (list, tuple, Set)):
        for index, (item, inner) in enumerate(zip(value, builtins, strict=False)):
            if type(inner) in _CONTAINERS:
                _put_in_order(item, inner, f"{path}[{index}]")
        if isinstance(value, Set) and isinstance(builtins, list):
            builtins.sort(key=_rank)
    elif hasattr(value, "model_dump") and hasattr(value, "root"):
        _put_in_order(value.root, builtins, path)


def _rank(value: Any) -> tuple[int, Any]:
    """Numbers come first, as they are counted; then everything else as its canonical text."""
    return (0, value) if isinstance(value, (int, float)) else (1, canonical(value))


def _field(value: Any, key: str) -> Any:
    """What a member of an object's JSON was made of; None where that cannot be found."""
    if isinstance(value, msgspec.Struct):
        names = dict(zip(value.__struct_encode_fields__, value.__struct_fields__, strict=True))
        key = names.get(key, key)
    else:
        for name, described in getattr(type(value), "model_fields", {}).items():
            if key == (described.serialization_alias or described.alias):
                return getattr(value, name, None)
    return getattr(value, key, None)


def _twins(mapping: Mapping[Any, Any]) -> str:
    """Two keys that are the same text in JSON, in words."""
    seen: dict[str, Any] = {}
    for key in mapping:
        (text,) = msgspec.to_builtins({key: None}, str_keys=True)
        if text in seen:
            return f"the keys {seen[text]!r} and {key!r}, which are the same in JSON"
        seen[text] = key
    return "keys that are the same in JSON"


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


@dataclass(frozen=True)
class Settled:
    """A value that is to be stored, and what it comes back as.

    Attributes:
        text: its JSON.
        value: what :func:`decode` will return for it.
        problem: why it will not, if it does not fit its type.
    """

    text: str
    value: Any = None
    problem: StepOutputDecodeError | None = None


def settled(value: Any, expected: Any = Any) -> Settled:
    """The JSON of a result, written so that it comes back as its type if there is a way. Where there is none, that is
    said, and the result can be stored all the same: it was paid for.

    Raises:
        NotSerializable: it has no JSON form.
    """
    if expected in _PLAIN:
        text = encode(value)
        return Settled(text, settle(text))
    plain = _Models(symmetric=False)
    first = _settled(value, expected, plain)
    if not plain.met or (first.problem is None and _is_equal(first.value, value)):
        return first
    try:
        second = _settled(value, expected, _Models(symmetric=True))
    except NotSerializable:
        return first
    comes_back = second.problem is None and (first.problem is not None or _is_equal(second.value, value))
    return second if comes_back else first


def _settled(value: Any, expected: Any, models: _Models) -> Settled:
    text = dumps(_ordered(value, _to_builtins(value, models)))
    try:
        return Settled(text, settle(text, expected))
    except StepOutputDecodeError as problem:
        return Settled(text, problem=problem)


def _is_equal(one: Any, other: Any) -> bool:
    try:
        return bool(one == other)
    except Exception:  # of the user's own
        return True


def settle(text: str, expected: Any = Any) -> Any:
    """What :func:`decode` will return for this text once jsonb has kept it: its objects' keys are in jsonb's order."""
    decoder = _SETTLER if "{" in text else _DECODER
    return _convert(_whole(decoder, text), expected)


def _whole(decoder: json.JSONDecoder, text: str) -> Any:
    """What the decoder makes of a text; without a look for blanks around it, which the database leaves none of."""
    try:
        value, end = decoder.scan_once(text, 0)  # type: ignore[attr-defined]
        if end == len(text):
            return value
    except StopIteration:
        pass
    return decoder.decode(text)  # or it says what is wrong


def decode(text: str | None, expected: Any = Any) -> Any:
    """The value of a JSON text from the database, as the type that the code expects.

    Raises:
        StepOutputDecodeError: it does not fit that type; the message names the path.
    """
    if text is None:
        return None
    try:
        value = _whole(_DECODER, text)
    except (ValueError, RecursionError) as error:
        raise StepOutputDecodeError(f"a stored value cannot be read: {error}", hint=_UNREAD) from None
    return _convert(value, expected)


def readable(text: str | None) -> Any:
    """The value of a JSON text, for who looks at many: one that cannot be read is
    ``{"unreadable": why, "bytes": its length as text}``.
    """
    try:
        return decode(text)
    except StepOutputDecodeError as error:
        return {"unreadable": error.args[0], "bytes": len((text or "").encode())}


def _convert(value: Any, expected: Any) -> Any:
    if expected in _PLAIN:
        return value
    try:
        return msgspec.convert(value, expected, str_keys=True, dec_hook=_decode_other)
    except msgspec.ValidationError as error:
        raise StepOutputDecodeError(f"a stored value does not fit {_name(expected)}: {error}", hint=_CHANGED) from error
    except TypeError:
        return _by_pydantic(value, expected)
    except StepOutputDecodeError:
        raise
    except Exception as error:  # of the type's own, when it is made
        raise StepOutputDecodeError(
            f"a stored value does not fit {_name(expected)}: {type(error).__name__}: {error}", hint=_CHANGED
        ) from error


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
_UNREAD = "It is older than the limits of what can be stored, or was written by hand: look at it in psql."
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


class _Models:
    """Encodes what msgspec does not know, and notes whether a Pydantic model was among it.

    A model is written by the names of its fields; ``symmetric``: by what its validation reads.
    """

    def __init__(self, symmetric: bool) -> None:
        self._how = {"by_alias": True, "round_trip": True} if symmetric else {}
        self.met = False

    def __call__(self, value: Any) -> Any:
        if hasattr(value, "model_dump"):
            self.met = True
            return value.model_dump(mode="json", **self._how)
        if isinstance(value, os.PathLike):
            return os.fspath(value)
        raise TypeError(f"a {type(value).__name__} has no JSON form")


_encode_other = _Models(symmetric=False)


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
        return _validate(value, expected)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"])
        raise StepOutputDecodeError(
            f"a stored value does not fit {_name(expected)}: {first['msg']} - at `${path}`", hint=_CHANGED
        ) from error
    except (pydantic.errors.PydanticUserError, pydantic.errors.PydanticUndefinedAnnotation) as error:
        raise StepOutputDecodeError(f"the annotation {_name(expected)} cannot be decoded: {error}") from error
    except Exception as error:  # of a validator's own
        raise StepOutputDecodeError(
            f"a stored value does not fit {_name(expected)}: {type(error).__name__}: {error}", hint=_CHANGED
        ) from error


def _validate(value: Any, expected: Any) -> Any:
    """Makes a value of JSON as Pydantic reads JSON, where strict models take text for a date. Fields are found by their
    aliases and by their names; computed ones, which nobody can set, are left out where a model forbids them.
    """
    import pydantic

    try:
        adapter = _adapter(expected)
    except TypeError:  # it cannot be hashed
        adapter = pydantic.TypeAdapter(expected)
    names = {"by_alias": True, "by_name": True} if _knows_names(pydantic.VERSION) else {}
    try:
        return adapter.validate_json(_ENCODER.encode(value), **names)
    except pydantic.ValidationError as error:
        forbidden = [problem["loc"] for problem in error.errors() if problem["type"] == "extra_forbidden"]
        computed = _computed(expected, set()) if forbidden else set()
        surplus = [place for place in forbidden if place[-1] in computed]
        if not surplus:
            raise
        reduced = json.loads(_ENCODER.encode(value))
        for place in surplus:
            _leave_out(reduced, place)
        return adapter.validate_json(_ENCODER.encode(reduced), **names)


def _leave_out(value: Any, place: tuple[int | str, ...]) -> None:
    """Takes a member away. A place names the branches of unions, too, which are no part of the value."""
    for part in place[:-1]:
        if part in value if isinstance(value, dict) else isinstance(value, list) and isinstance(part, int):
            value = value[part]
    if isinstance(value, dict):
        value.pop(place[-1], None)


def _computed(expected: Any, seen: set[Any]) -> set[Any]:
    """The names of the computed fields of all models that a type is made of."""
    try:
        if expected in seen:
            return set()
        seen.add(expected)
    except TypeError:
        return set()
    found: set[Any] = set()
    inner = list(typing.get_args(expected))
    if isinstance(expected, type):
        for name, described in getattr(expected, "model_computed_fields", {}).items():
            found |= {name, described.alias}
        inner += [field.annotation for field in getattr(expected, "model_fields", {}).values()]
        with contextlib.suppress(Exception):  # names that exist for the type checker only
            inner += typing.get_type_hints(expected).values()
    return found.union(*(_computed(part, seen) for part in inner)) - {None}


@functools.lru_cache(maxsize=256)
def _adapter(expected: Any) -> Any:
    import pydantic

    return pydantic.TypeAdapter(expected)


@functools.cache
def _knows_names(version: str) -> bool:
    return tuple(map(int, version.split(".")[:2])) >= (2, 11)


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
