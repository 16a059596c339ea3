"""The OpenAPI document: made from the routes and from the classes of their bodies, so it cannot differ from them."""

from __future__ import annotations

import functools
import re
from typing import Any

import msgspec

from . import actions, bodies, overview, queues
from .routes import ROUTES, Route

assert queues and actions and overview  # its routes are among ROUTES

Node = dict[str, Any]

_ERROR = {"$ref": "#/components/schemas/Error"}
_TEXTS: dict[int, str] = {
    400: "The request makes no sense.",
    401: "No key, or none of the server's.",
    403: "The key may not do that.",
    404: "There is no such thing.",
    405: "The path does not have this method.",
    409: "The run or the gate is in another state, or the lease was lost.",
    413: "The body is too large.",
    422: "It cannot be done with this run.",
    501: "Tidebase v0.6 has it, and this gateway does not.",
    500: "A fault of the server.",
    503: "The database is out of reach, or not migrated.",
}
_OBJECTS = {
    "run": "object",
    "steps": "array",
    "stateStreams": "array",
    "stateVersions": "array",
    "runEdges": "array",
    "childRuns": "array",
    "recoveryAttempts": "array",
    "channels": "array",
    "channelDeliveries": "array",
    "gates": "array",
    "usage": "array",
    "events": "array",
    "runs": "array",
    "snapshots": "array",
    "recoveryAttempt": "object",
    "step": "object",
    "gate": "object",
    "stateVersion": "object",
    "snapshot": "object",
    "edge": "object",
    "leaseOwner": "string",
    "action": "string",
    "runStatus": "string",
    "requeued": "boolean",
    "created": "boolean",
    "truncated": "object",
    "deduplicated": "boolean",
    "config": "object",
    "queues": "array",
    "schedule": "object",
    "schedules": "array",
    "deleted": "string",
    "cut": "boolean",
    "examined": "integer",
    "counts": "array",
    "attempts": "array",
    "ballots": "array",
    "children": "array",
    "recoveries": "array",
    "totals": "object",
    "byModel": "array",
    "bySteps": "array",
    "records": "array",
    "differences": "array",
    "reviews": "array",
    "workers": "array",
    "fires": "array",
    "findings": "array",
    "accepted": "boolean",
    "recovery": "integer",
    "runId": "string",
    "moved": "boolean",
    "matched": "integer",
    "done": "integer",
    "changed": "boolean",
    "queue": "object",
}
#: What may be absent, and what is of another kind where people look.
_NULLABLE = {"state": ["object", "null"], "next": ["string", "object", "null"], "forkedFrom": ["string", "null"]}


@functools.cache
def document() -> Node:
    """The document (OpenAPI 3.1)."""
    kinds = [*(route.body for route in ROUTES if route.body is not None), bodies.StepOptions, bodies.SignIn]
    _, schemas = msgspec.json.schema_components(kinds, ref_template="#/components/schemas/{name}")
    paths: dict[str, Node] = {}
    for route in ROUTES:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route)
    paths["/health"] = {"get": _open("health", "Whether the server is up.", _object({"ok": {"type": "boolean"}}))}
    paths["/ready"] = {"get": _ready()}
    paths["/metrics"] = {"get": _metrics()}
    paths["/openapi.json"] = {"get": _open("openapi", "This document.", {"type": "object"})}
    paths["/me"] = {"get": _me()}
    paths["/session"] = {"post": _sign_in(), "delete": _sign_out()}
    paths["/overview/runs/events"] = {"get": _list_events()}
    paths["/runs/{run_id}/events"] = {"get": _events()}
    paths["/runs/{run_id}/events/token"] = {"post": _token()}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Tidebase",
            "version": "0.6",
            "description": "Durable checkpoints for agents: the HTTP API of Tidebase v0.6 over Tidebase in Postgres.",
        },
        "components": {
            "schemas": {**schemas, "Error": _object({"error": {"type": "string"}}, additionalProperties=True)},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},  # a browser has a cookie in its place
        },
        "security": [{"key": []}],
        "paths": paths,
    }


def _object(properties: Node, **more: Any) -> Node:
    return {"type": "object", "properties": properties, "required": list(properties), **more}


def _operation(route: Route) -> Node:
    operation: Node = {
        "operationId": route.handler.__name__,
        "summary": (route.handler.__doc__ or "").strip(),
        "description": f"For: {', '.join(sorted(route.roles))}.",
        "parameters": _parameters(route),
        "responses": _responses(_answer(route), {400, 401, 403, 404, 413, 500, 501, 503, *route.refusals}),
    }
    if route.body is not None:
        operation["requestBody"] = {"content": _json({"$ref": f"#/components/schemas/{route.body.__name__}"})}
        operation["requestBody"]["required"] = bool(
            msgspec.json.schema(route.body)["$defs"][route.body.__name__]["required"]
        )
    return operation


def _answer(route: Route) -> Node:
    members = {name: _member(route, name) for name in route.members}
    return _object(members, additionalProperties=True)


def _member(route: Route, name: str) -> Node:
    if name in _NULLABLE:
        return {"type": _NULLABLE[name]}
    if name == "decision":
        return {"type": ["string", "null"]}
    if name == "cut" and route.path.startswith("/overview/runs/{run_id}") and not route.query:
        return {"type": "array"}
    if name == "usage" and route.method == "POST":
        return {"type": "object"}
    return {"type": _OBJECTS[name]}


def _parameters(route: Route) -> list[Node]:
    path = [_text(name, "path", required=True) for name in re.findall(r"{(\w+)}", route.path)]
    query = [_number(name) if name == "limit" else _text(name, "query") for name in route.query]
    header = [_text("x-tidebase-worker", "header")] if route.path.endswith("}/begin") else []
    return path + query + header


def _text(name: str, place: str, required: bool = False) -> Node:
    schema: Node = {"type": "string"}
    if required:
        schema["minLength"] = 1
    return {"name": name, "in": place, "required": required, "schema": schema}


def _number(name: str, minimum: int = 1) -> Node:
    return {
        "name": name,
        "in": "query",
        "required": False,
        "schema": {"type": "integer", "minimum": minimum, "maximum": 1000},
    }


def _json(schema: Node) -> Node:
    return {"application/json": {"schema": schema}}


def _responses(schema: Node, refusals: set[int]) -> Node:
    errors = {str(code): {"description": _TEXTS[code], "content": _json(_ERROR)} for code in sorted(refusals)}
    return {"200": {"description": "Done.", "content": _json(schema)}, **errors}


def _open(name: str, summary: str, schema: Node) -> Node:
    return {"operationId": name, "summary": summary, "security": [], "responses": _responses(schema, {500})}


def _flag(name: str) -> Node:
    return {"name": name, "in": "query", "required": False, "schema": {"enum": ["0", "1"]}}


def _events() -> Node:
    after = {"name": "after", "in": "query", "required": False, "schema": {"type": "integer", "minimum": 0}}
    form = {"name": "format", "in": "query", "required": False, "schema": {"enum": ["tidebase", "ag-ui"]}}
    named = _flag("named")
    responses = _responses({}, {400, 401, 404, 500, 503})
    responses["200"] = {
        "description": "Events, as they come.",
        "content": {"text/event-stream": {"schema": {"type": "string"}}},
    }
    responses["204"] = {"description": "The run is over, and the client has seen its last event."}
    return {
        "operationId": "follow_run",
        "summary": "A run's events as server-sent events.",
        "parameters": [
            _text("run_id", "path", required=True),
            after,
            form,
            named,
            _flag("alive"),
            _text("token", "query"),
            _text("Last-Event-ID", "header"),
            _text("x-tidebase-events", "header"),
        ],
        "responses": responses,
    }


def _ready() -> Node:
    is_ready: Node = {"ready": {"type": "boolean"}}
    operation = _open("ready", "Whether the database is there, and its schema is understood.", _object(is_ready))
    not_ready = _object({**is_ready, "reason": {"enum": ["database", "schema"]}})
    operation["responses"]["503"] = {"description": _TEXTS[503], "content": _json(not_ready)}
    return operation


def _metrics() -> Node:
    responses = _responses({}, {401, 403, 500, 501, 503})
    responses["200"] = {
        "description": "What it reads.",
        "content": {"text/plain": {"schema": {"type": "string"}}},
    }
    return {"operationId": "metrics", "summary": "Queues, runs and workers, for Prometheus.", "responses": responses}


def _token() -> Node:
    schema = _object({"token": {"type": "string"}, "expiresAt": {"type": "string"}})
    return {
        "operationId": "get_events_token",
        "summary": "A token for following one run, for a client that cannot send headers; good for less than a minute.",
        "parameters": [_text("run_id", "path", required=True)],
        "responses": _responses(schema, {401, 403, 500}),
    }


_ME = _object(
    {
        "name": {"type": ["string", "null"]},
        "roles": {"type": "array"},
        "keyed": {"type": "boolean"},
        "version": {"type": "string"},
    }
)


def _me() -> Node:
    return {
        "operationId": "me",
        "summary": "Whose the key is, or the cookie, and what it may do. keyed: whether there are keys at all.",
        "responses": _responses(_ME, {401, 500}),
    }


def _sign_in() -> Node:
    return {
        "operationId": "sign_in",
        "summary": "Takes a key, or a ticket, from a page of the gateway, and gives its browser a cookie instead.",
        "security": [],
        "requestBody": {"content": _json({"$ref": "#/components/schemas/SignIn"}), "required": True},
        "responses": _responses(_ME, {400, 401, 403, 413, 500}) | {"415": {"description": "The body is no JSON."}},
    }


def _sign_out() -> Node:
    return {
        "operationId": "sign_out",
        "summary": "Takes the cookie back.",
        "security": [],
        "responses": _responses(_object({"signedOut": {"type": "boolean"}}), {403, 500}),
    }


def _list_events() -> Node:
    responses = _responses({}, {400, 401, 500, 503})
    responses["200"] = {
        "description": "The list, and what changes in it.",
        "content": {"text/event-stream": {"schema": {"type": "string"}}},
    }
    return {
        "operationId": "follow_runs",
        "summary": "The newest runs that a filter finds as they change: list, change and counts, server-sent events.",
        "parameters": [*(_text(name, "query") for name in overview.FILTERS), _flag("alive")],
        "responses": responses,
    }
