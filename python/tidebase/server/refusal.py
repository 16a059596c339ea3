"""Answers that are no success."""

from __future__ import annotations

from typing import Any

import msgspec
from starlette.responses import Response

_encode = msgspec.json.Encoder(decimal_format="number").encode


class Refused(Exception):
    """An answer that is no success: its status and body."""

    def __init__(self, status: int, **body: Any) -> None:
        super().__init__(status, body)
        self.status = status
        self.body = body


def answer(body: Any, status: int = 200) -> Response:
    return Response(_encode(body), status, media_type="application/json")


def refusal(refused: Refused) -> Response:
    response = answer(refused.body, refused.status)
    if refused.status == 401:
        response.headers["www-authenticate"] = "Bearer"
    return response
