"""Channels: whom to tell what happens to a run, as calls that both executors make."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, TypeVar

from ..core import codec
from ..core.call import Call, Json, many, scalar

R = TypeVar("R")


@dataclass(frozen=True)
class Channel:
    """A channel of a run; see the type tidebase.channel. Its secret is shown to nobody."""

    channel: int
    type: str
    url: str
    events: Sequence[str] | None
    has_secret: bool
    status: str
    delivered_seq: int
    attempts: int
    failures: int
    failing_since: datetime | None
    next_at: datetime | None
    http_status: int | None
    error: str | None
    created_at: datetime
    delivered_at: datetime | None
    finished_at: datetime | None


@dataclass(frozen=True)
class ChannelDelivery:
    """An event that is to be sent to a channel. ``attempt``: the number of this attempt."""

    run_id: str
    channel: int
    attempt: int
    url: str
    secret: str | None = field(repr=False)
    seq: int
    body: Json


add_channel = scalar("add_channel", run_id="text", url="text", secret="text", events="text[]", type="text")
remove_channel = scalar("remove_channel", run_id="text", channel="integer")
retry_channel = scalar("retry_channel", run_id="text", channel="integer")
list_channels = many("list_channels", Channel, run_id="text")
claim_channel_deliveries = many(
    "claim_channel_deliveries",
    ChannelDelivery,
    max="integer",
    ttl="interval",
    failing="boolean",
    rung="text[]",
    watch="boolean",
)
finish_channel_delivery = many(
    "finish_channel_delivery",
    ChannelDelivery,
    run_id="text",
    channel="integer",
    attempt="bigint",
    delivered="boolean",
    http_status="integer",
    error="text",
    go_on="boolean",
    ttl="interval",
    give_up_after="interval",
)


def with_channels(call: Call[R], channels: Sequence[dict[str, Any]] | None) -> Call[R]:
    """A call that makes a run, and in the same transaction its channels, each with ``type``, ``url``, ``secret`` and
    ``events``. The run's id must be the first column of the call.
    """
    if not channels:
        return call
    query = f"""
        select made.*, (select count(tidebase.add_channel(made.run_id, c.url, c.secret, c.events, c.type))
          from jsonb_to_recordset(%s::jsonb) as c (type text, url text, secret text, events text[])) as channels
        from ({call.query} offset 0) as made (run_id)"""
    parameters = (codec.encode(list(channels)), *call.parameters)
    return replace(call, query=query, parameters=parameters, read=lambda rows: call.read([row[:-1] for row in rows]))
