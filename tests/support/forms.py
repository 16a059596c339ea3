"""Schemas that people are asked by, and values: some fit, some do not."""

from __future__ import annotations

from typing import Any

ADDRESS = {
    "type": "object",
    "required": ["street"],
    "properties": {"street": {"type": "string"}, "floor": {"type": "integer"}},
}
CARD = {
    "type": "object",
    "required": ["by", "number"],
    "properties": {"by": {"const": "card"}, "number": {"type": "string"}},
}
BANK = {
    "type": "object",
    "required": ["by", "iban"],
    "properties": {"by": {"const": "bank"}, "iban": {"type": "string"}},
}
NODE = {"type": "object", "properties": {"name": {"type": "string"}, "next": {"$ref": "#/$defs/node"}}}

#: A schema, and values for it.
FORMS: list[tuple[Any, list[Any]]] = [
    (
        {"$ref": "#/$defs/address", "$defs": {"address": ADDRESS}},
        [{"street": "s", "floor": 2}, {"floor": 2}, {"street": 1}],
    ),
    (
        {"type": "object", "required": ["to"], "properties": {"to": {"$ref": "#/$defs/a"}}, "$defs": {"a": ADDRESS}},
        [
            {"to": {"street": "s"}},
            {"to": {"street": "s", "door": {"left": True}}},
            {"to": {}},
            {"to": {"street": "s"}, "x": [1]},
        ],
    ),
    (
        {"$ref": "#/$defs/node", "$defs": {"node": NODE}},
        [{"name": "a", "next": {"name": "b", "next": {"name": "c"}}}, {"next": 1}],
    ),
    (
        {"oneOf": [CARD, BANK]},
        [{"by": "card", "number": "42"}, {"by": "bank", "iban": "DE"}, {"by": "cash"}, {"by": "card"}],
    ),
    ({"anyOf": [{"type": "string"}, {"type": "integer"}, {"type": "null"}]}, ["x", "", 3, None, 1.5, []]),
    ({"type": ["string", "null"]}, ["x", "", None, 1]),
    (
        {"type": "object", "properties": {"n": {"anyOf": [{"type": "integer"}, {"type": "null"}], "default": None}}},
        [{"n": 1}, {"n": None}, {"n": "1"}],
    ),
    ({"allOf": [ADDRESS, {"required": ["floor"]}]}, [{"street": "s", "floor": 1}, {"street": "s"}]),
    ({"enum": ["a", 1, None, {"deep": [True]}]}, ["a", 1, None, {"deep": [True]}, "b"]),
    (
        {"type": "array", "items": {"enum": ["x", "y"]}, "minItems": 1, "maxItems": 2, "uniqueItems": True},
        [["x"], ["x", "y"], [], ["x", "x"], ["z"]],
    ),
    ({"type": "array", "items": {"type": "array", "items": {"type": "number"}}}, [[[1, 2.5], []], [[]], [["x"]]]),
    (
        {"type": "array", "prefixItems": [{"type": "string"}, {"type": "integer"}], "items": False},
        [["a", 1], ["a", "b"], ["a", 1, 2]],
    ),
    ({"type": "object", "additionalProperties": {"type": "integer"}}, [{"a": 1, "b": 2}, {"a": "x"}, {}]),
    (
        {"type": "object", "properties": {"a": {"type": "string"}}, "additionalProperties": {"type": "integer"}},
        [{"a": "x", "b": 2}, {"b": "y"}, {}],
    ),
    ({"type": "object", "properties": {"a": {"type": "string"}}, "additionalProperties": False}, [{"a": ""}, {"b": 1}]),
    (
        {"type": "object", "properties": {"a": {"type": "boolean"}, "b": {"type": "boolean"}}},
        [{"a": False}, {"b": True, "a": False}, {"a": 0}],
    ),
    (
        {"type": "object", "properties": {"__proto__": {"type": "string"}, "constructor": {"type": "integer"}}},
        [{"constructor": 1}, {}],
    ),
    (
        {"type": "object", "properties": {"a": {"type": "array", "items": {"type": "string"}}, "o": ADDRESS}},
        [{"a": []}, {"a": ["", "x"]}, {"o": {}}],
    ),
    ({"type": "integer", "minimum": 0, "exclusiveMaximum": 10, "multipleOf": 5}, [0, 5, 10, 3, -5, 5.5]),
    ({"type": "number", "multipleOf": 0.01}, [1.5, 0.001]),
    ({"type": "string", "pattern": "^[a-z]+$", "minLength": 2, "maxLength": 3}, ["ab", "abc", "a", "abcd", "AB"]),
    (
        {
            "if": {"properties": {"a": {"const": 1}}, "required": ["a"]},
            "then": {"required": ["b"]},
            "else": {"required": ["c"]},
        },
        [{"a": 1, "b": 2}, {"a": 1}, {"a": 2, "c": 1}, {}],
    ),
    ({"type": "object", "properties": {"x": {"not": {"type": "string"}}}}, [{"x": 1}, {"x": "s"}]),
    (
        {"type": "object", "patternProperties": {"^n_": {"type": "integer"}}, "additionalProperties": False},
        [{"n_a": 1}, {"n_a": "x"}, {"m": 1}],
    ),
    (True, [{"anything": [1]}, "x"]),
    ({}, [{"anything": [1]}]),
]
