"""Who may ask the gateway what: one probe tries all it can think of, and is loud when any one guard is taken out."""

from __future__ import annotations

import inspect
import re
import textwrap
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from tidebase.server import Key, app, auth, events, origin, payloads, routes
from tidebase.server.auth import Keyring
from tidebase.server.routes import ROUTES

from .probes.support import Connection, call, grant, new_run, value
from .test_gateway import client_of, gateway

ON_NEWEST = True

ADA = "worker+approver+operator@ada:ada-secret"
KEYS = (ADA, "worker:work-secret", "approver@bob:bob-secret", "reader:look-secret")


@dataclass(frozen=True)
class Edit:
    """In this function of the gateway, the first text becomes the second."""

    function: Callable[..., Any]
    text: str
    instead: str

    def apply(self, patch: pytest.MonkeyPatch) -> None:
        source = textwrap.dedent(inspect.getsource(self.function))
        source = source[re.search(r"^(async )?def ", source, re.MULTILINE).start() :]  # type: ignore[union-attr]
        assert self.text in source, f"{self.function.__qualname__} has changed, and has no more: {self.text}"
        made: dict[str, Any] = {}
        code = compile(source.replace(self.text, self.instead), __file__, "exec")
        exec(code, dict(self.function.__globals__), made)
        patch.setattr(self.function, "__code__", made[self.function.__name__].__code__)  # whoever has imported it, too


# -- the probe


def bearer(secret: str) -> dict[str, str]:
    return {"authorization": f"Bearer {secret}"}


class Trespasser:
    """Asks for what it may not have, and notes what it gets."""

    def __init__(self, database: str, db: Connection) -> None:
        self.database = database
        self.db = db
        self.got: list[str] = []
        token = grant(db, new_run(db, run_id="r"))
        self.secret = call(db, "open_gate", run_id="r", token=token, name="g")["secret"]
        new_run(db, run_id="other")
        self.keyring = Keyring([Key.parse(key) for key in KEYS])

    def refused(self, what: str, answer: httpx.Response, *statuses: int) -> None:
        if answer.status_code not in statuses:
            self.got.append(f"{what}: {answer.status_code} {answer.text[:200]}")

    def unchanged(self, what: str) -> None:
        """Nobody has decided or cancelled anything."""
        found = value(
            self.db,
            "select array[h.status, g.status] from tidebase.run_heads h join tidebase.gates g using (run_id)"
            " where run_id = 'r'",
        )
        if found != ["running", "pending"]:
            self.got.append(f"{what}: the run and its gate are {found}")

    async def everything(self) -> list[str]:
        with gateway(self.database, *KEYS) as base:
            async with client_of(base) as client:
                await self.looks_for_the_secret(client)
                await self.acts_with_a_key_that_may_only_read(client)
                await self.makes_cookies(client)
                await self.sends_cookies_from_elsewhere(client, base)
                await self.follows_another_run(client)
        with gateway(self.database) as base:
            async with client_of(base) as client:
                await self.comes_from_another_page(client)
        return self.got

    async def looks_for_the_secret(self, client: httpx.AsyncClient) -> None:
        """Whose key is a worker's has it, so it is there to be found."""
        paths = ["/runs/r", "/runs/r/gates", "/runs/r/log", "/runs/r/gates/gate_Zw"]
        seen = [(await client.get(path, headers=bearer("work-secret"))).text for path in paths[:3]]
        assert all(self.secret in text for text in seen)
        assert self.secret in await self.told(client, bearer("work-secret"))
        cookie = {"cookie": f"{self.keyring.cookie}={self.keyring.session(Key.parse(ADA))}"}
        others = {"an approver": bearer("bob-secret"), "a reader": bearer("look-secret"), "a page": cookie}
        for who, headers in others.items():
            for path in (*paths, "/overview/runs/r", "/overview/inbox"):
                if self.secret in (await client.get(path, headers=headers)).text:
                    self.got.append(f"{who} is shown the secret in {path}")
            if self.secret in await self.told(client, headers):
                self.got.append(f"{who} is shown the secret in the stream")

    async def told(self, client: httpx.AsyncClient, headers: dict[str, str]) -> str:
        """The stream of the run, up to its gate."""
        text = ""
        async with client.stream("GET", "/runs/r/events", headers=headers) as response:
            assert response.status_code == 200
            async for line in response.aiter_lines():
                text += line
                if '"gate.created"' in line:
                    break
        return text

    async def acts_with_a_key_that_may_only_read(self, client: httpx.AsyncClient) -> None:
        gate = "/runs/r/gates/gate_Zw"
        for route in ROUTES:
            path = route.path.replace("{run_id}", "r").replace("{gate_id}", "gate_Zw").replace("{", "").replace("}", "")
            if "reader" not in route.roles:
                answer = await client.request(route.method, path, json={}, headers=bearer("look-secret"))
                self.refused(f"a reader's {route.method} {route.path}", answer, 403)
        for path, body in (("/runs/r/cancel", {}), (f"{gate}/decide", {"decision": "approved"})):
            self.refused(f"a reader's {path}", await client.post(path, json=body, headers=bearer("look-secret")), 403)
        answer = await client.post(f"{gate}/resolve", json={"decision": "approved"}, headers=bearer("look-secret"))
        self.refused("a reader resolves a gate without its secret", answer, 409)
        self.unchanged("a reader has acted")

    async def makes_cookies(self, client: httpx.AsyncClient) -> None:
        ring, ada = self.keyring, Key.parse(ADA)
        good = ring.session(ada)
        who, expires, mac = good.split(".")
        cookies = {
            "signed by nobody": f"{who}.{expires}.{'0' * len(mac)}",
            "for longer than it was signed for": f"{who}.{int(expires) + 3600}.{mac}",
            "of yesterday": ring._sealed("session", who, int(time.time()) - 5),
            "that is a ticket": ring.ticket(ada),
            "of a gateway with other keys": Keyring([Key.parse("worker:no-secret-of-it")]).session(
                Key.parse("worker:no-secret-of-it")
            ),
        }
        answer = await client.get("/me", headers={"cookie": f"{ring.cookie}={good}"})
        assert answer.json()["name"] == "ada", "the cookie that is none of these is taken"
        for what, cookie in cookies.items():
            answer = await client.get("/me", headers={"cookie": f"{ring.cookie}={cookie}"})
            self.refused(f"a cookie {what}", answer, 401)
        answer = await client.get("/me", headers={"cookie": f"{ring.cookie}={good}", **bearer("a-wrong-secret")})
        self.refused("a wrong key beside a cookie", answer, 401)
        ticket, own = ring.ticket(ada), {"origin": str(client.base_url).rstrip("/")}
        assert (await client.post("/session", json={"ticket": ticket}, headers=own)).status_code == 200
        client.cookies.clear()
        self.refused("a ticket again", await client.post("/session", json={"ticket": ticket}, headers=own), 401)
        self.refused("a cookie as a ticket", await client.post("/session", json={"ticket": good}, headers=own), 401)
        client.cookies.clear()

    async def sends_cookies_from_elsewhere(self, client: httpx.AsyncClient, base: str) -> None:
        cookie = {"cookie": f"{self.keyring.cookie}={self.keyring.session(Key.parse(ADA))}"}
        for headers in ({}, {"origin": "http://localhost:1"}, {"origin": "null"}, {"sec-fetch-site": "same-site"}):
            answer = await client.post("/runs/r/cancel", json={}, headers={**cookie, **headers})
            self.refused(f"a cookie is sent by a page with {headers}", answer, 403)
            answer = await client.post("/session", json={"key": "look-secret"}, headers=headers)
            self.refused(f"a page with {headers} signs somebody in", answer, 403)
            client.cookies.clear()
        own = {**cookie, "origin": base}
        answer = await client.post("/runs/r/cancel", content=b"{}", headers={**own, "content-type": "text/plain"})
        self.refused("a form is sent", answer, 415)
        self.refused("a page is a worker", await client.post("/runs/w", json={}, headers=own), 403)
        self.unchanged("a page from elsewhere has acted")

    async def follows_another_run(self, client: httpx.AsyncClient) -> None:
        answer = await client.post("/runs/r/events/token", headers=bearer("look-secret"))
        token = answer.json()["token"]
        digits, _, signature = token.partition(".")
        for what, path in {
            "a token of another run": f"/runs/other/events?token={token}",
            "a token for longer": f"/runs/r/events?token={int(digits) + 60}.{signature}",
            "no token": "/runs/r/events",
        }.items():
            async with client.stream("GET", path) as response:
                if response.status_code != 401:
                    self.got.append(f"{what} follows")

    async def comes_from_another_page(self, client: httpx.AsyncClient) -> None:
        """To a gateway without keys, which only whoever is on its machine may ask."""
        for path in ("/overview/runs", "/runs/r", "/studio/", "/me"):
            self.refused(f"another name leads to {path}", await client.get(path, headers={"host": "evil.example"}), 421)
            foreign = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"}
            self.refused(f"another site asks for {path}", await client.get(path, headers=foreign), 403)
        for origin_of in ("https://evil.example", "null", "http://127.0.0.1:1"):
            answer = await client.post("/runs/r/cancel", json={}, headers={"origin": origin_of})
            self.refused(f"a page of {origin_of} cancels", answer, 403)
        answer = await client.post("/runs/r/cancel", content=b"{}", headers={"content-type": "text/plain"})
        self.refused("a form is sent to a gateway without keys", answer, 415)
        self.unchanged("a page of another site has acted")


async def test_nobody_does_or_sees_what_is_not_theirs(database: str, db: Connection) -> None:
    assert await Trespasser(database, db).everything() == []


# -- without the guards

SIGNATURE = "if not hmac.compare_digest(expected, mac.encode"

MUTANTS: dict[str, tuple[tuple[Edit, ...], str]] = {
    "the host is not looked at": (
        (Edit(origin.FromHere._is_ours, "return name in", "return True or name in"),),
        "another name",
    ),
    "an origin is not looked at": (
        (Edit(origin.FromHere._may_ask, "return origin == own", "return True or origin == own"),),
        "a page of",
    ),
    "the site is not looked at": (
        (Edit(origin.FromHere._refused, 'if site in ("cross-site", "same-site")', "if False"),),
        "another site",
    ),
    "a cookie is taken from any page": (
        (Edit(auth.require_own_page, "if origin != own", "if False"),),
        "a cookie is sent by a page",
    ),
    "a body may be of any type": ((Edit(app._body, "if body and media", "if False and media"),), "a form is sent"),
    "a cookie's signature is not looked at": (
        (Edit(Keyring._opened, SIGNATURE, f"if False and {SIGNATURE[3:]}"),),
        "a cookie signed by nobody",
    ),
    "a cookie is good for ever": (
        (Edit(Keyring._opened, "if int(digits) >= time.time() else None", ""),),
        "a cookie of yesterday",
    ),
    "a ticket is as good as a cookie": (
        (
            Edit(Keyring._opened, "{purpose}:{content}", "{content}"),
            Edit(Keyring._sealed, "{purpose}:{what}", "{what}"),
            Edit(
                Keyring.of_session,
                'self._opened("session", value) or ""',
                '(self._opened("session", value) or "").partition("-")[0]',
            ),
        ),
        "a cookie that is a ticket",
    ),
    "a ticket is good again and again": ((Edit(Keyring.take, "or mark in self._taken", ""),), "a ticket again"),
    "a cookie counts beside a wrong key": (
        (Edit(auth.who_asks, "or scheme:", "or False:"),),
        "a wrong key beside a cookie",
    ),
    "a page may do a worker's part": ((Edit(Keyring.of_session, 'key.roles - {"worker"}', "key.roles"),), "a page is"),
    "a secret is shown to everybody in lists": (
        (Edit(routes.secret_of, 'or "worker" not in asked.roles', ""),),
        "is shown the secret in /runs/r",
    ),
    "a secret is shown to everybody in the log": (
        (Edit(payloads.find, "if for_worker else []", ""),),
        "is shown the secret in /runs/r/log",
    ),
    "a secret is shown to everybody in the stream": (
        (Edit(events._as_events, "row, for_worker)", "row, True)"),),
        "is shown the secret in the stream",
    ),
    "a key may do everything": ((Edit(app._guarded, "if not key.roles & allowed", "if False"),), "a reader's POST"),
    "a reader may decide": (
        (Edit(routes.resolve_gate, 'if body.token is None and "approver" not in asked.roles', "if False"),),
        "a reader resolves",
    ),
    "a token is good for any run": (
        (Edit(Keyring._signature, "{expires}:{run_id}", "{expires}"),),
        "a token of another run",
    ),
    "a token is good for ever": ((Edit(Keyring._signature, "{expires}:{run_id}", "{run_id}"),), "a token for longer"),
}


@pytest.mark.breaks_invariants
@pytest.mark.parametrize("mutant", MUTANTS)
async def test_a_guard_that_is_taken_out_is_noticed(
    database: str, db: Connection, monkeypatch: pytest.MonkeyPatch, mutant: str
) -> None:
    edits, noticed = MUTANTS[mutant]
    for edit in edits:
        edit.apply(monkeypatch)
    got = await Trespasser(database, db).everything()
    assert any(noticed in one for one in got), got
    assert not any(": 5" in one for one in got), "it does not run any more"
