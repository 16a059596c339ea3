"""The map of a router: which database has which run, and what a call at one of them must say. Nothing here does IO."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any, TypeVar

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from .call import Call
from .errors import DatabaseUnavailable, InvalidArgument
from .places import bucket_of

R = TypeVar("R")


@dataclass(frozen=True)
class ShardMap:
    """Which shard has which partition of the buckets.

    Attributes:
        epoch: grows with each change.
        owners: where the shard of each partition is, as the router knows it: a connection string without user and
            password.
    """

    epoch: int
    owners: tuple[str, ...]

    @cached_property
    def places(self) -> tuple[str, ...]:
        """Where the shards are."""
        return tuple(dict.fromkeys(self.owners))

    def place_of(self, bucket: int) -> str:
        """Where a bucket is."""
        return self.owners[bucket & (len(self.owners) - 1)]


def _read(rows: list[tuple[Any, ...]]) -> ShardMap:
    epoch, owners, encoding = rows[0]
    if epoch is None:
        raise InvalidArgument(
            "direct=True is for a router of several databases, and this database is none",
            hint="Leave it out: there is nothing in between.",
        )
    if encoding != "UTF8":  # a bucket is a hash of bytes
        raise InvalidArgument(f"direct=True takes databases in UTF8, and these are in {encoding}")
    return ShardMap(epoch, tuple(owners))


#: Reads the map. Raises InvalidArgument where the database is no router.
READ: Call[ShardMap] = Call(
    "select tidebase.shard_epoch(), tidebase.shard_map(), current_setting('server_encoding')", (), _read
)

#: What a shard says of where it is; all else, and above all who comes, is as for the router.
_WHERE = ("host", "hostaddr", "port", "dbname")


def way_to(place: str, router: str) -> str:
    """The connection string by which who comes to the router comes to a shard, as the same user.

    What the place leaves out is empty: it is neither the router's nor to be found in the environment.
    """
    there, ours = conninfo_to_dict(place), conninfo_to_dict(router)
    said = {name: there.get(name) or "" for name in _WHERE}
    if "sslmode" in there:
        ours.setdefault("sslmode", there["sslmode"])
    return make_conninfo("", **{**ours, **said})


def bucket_at(places: tuple[Any, ...]) -> int | None:
    """The bucket in which all of that lies; None where it is several, or none."""
    if len(places) == 1 and type(places[0]) is str:  # nearly always
        return bucket_of(places[0])
    buckets = {bucket_of(place) if isinstance(place, str) else -1 for place in places}
    return buckets.pop() if len(buckets) == 1 and -1 not in buckets else None


def guarded(call: Call[R], bucket: int) -> Call[R]:
    """The same call, which the shard refuses (40001) unless it has the bucket; one that is fenced it refuses anyway."""
    if call.fenced:
        return call
    return replace(call, query=_guarded(call.query), parameters=(*call.parameters, str(bucket)))


@lru_cache(maxsize=1024)
def _guarded(query: str) -> str:
    return (
        f"with answer as materialized ({query}) select answer.* from answer where tidebase.require_bucket(%s::integer)"
    )


def refused_bucket(error: BaseException) -> int | None:
    """The bucket that a shard has refused as another's, if that is what the error is about."""
    if not isinstance(error, psycopg.Error) or error.sqlstate not in ("40001", "55000"):
        return None
    try:
        bucket = json.loads(error.diag.message_detail or "")["bucket"]
    except (ValueError, KeyError, TypeError):
        return None
    return bucket if isinstance(bucket, int) else None


#: No such run, and no such thing of it: what a shard says of a run that went elsewhere.
_NOT_FOUND = ("TB001", "TB012")


def may_be_elsewhere(error: BaseException, call: Call[Any]) -> bool:
    """Whether the error may mean that the map is an old one: the shard is out of reach, or does not know the run."""
    if isinstance(error, DatabaseUnavailable):
        return True
    if not isinstance(error, psycopg.Error):
        return False
    if error.sqlstate is None:
        return isinstance(error, (psycopg.OperationalError, psycopg.InterfaceError))
    return error.sqlstate[:2] == "08" or error.sqlstate[:3] == "57P" or (call.fenced and error.sqlstate in _NOT_FOUND)
