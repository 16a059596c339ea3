"""Direct mode: whoever has the map of a router calls the shard of a run himself, and the router for the rest.

The map may be an old one. A shard says so of a bucket that is another's, in the statement itself; then the map is read
again, and the call is made where the run is now. So it is where a shard cannot be reached.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from typing import Any, TypeVar

import psycopg

from ._tasks import cancellation_kept
from .base import translate
from .call import Call
from .database_async import AsyncDatabase
from .errors import DatabaseUnavailable, InvalidArgument, TidebaseError
from .joint import Joint
from .places import bucket_of, place_of_queue
from .sessions import AsyncConnection
from .shardmap import READ, ShardMap, bucket_at, guarded, may_be_elsewhere, refused_bucket, way_to

R = TypeVar("R")

#: How long a connection to the router is waited for where a call would be made in vain, in seconds.
_LOOK_S = 1.0

_HINT = "Direct mode comes to each shard as the same user as to the router; see: tidebase router status"


class AsyncShard(AsyncDatabase):
    """One of several databases, which is called for runs that are there.

    Args:
        source: a connection string; or a connection of the caller's to it, whose transaction the calls belong to.
        front: who makes calls of which it is not known where to.
    """

    def __init__(self, source: str | AsyncConnection, front: AsyncShards, **options: Any) -> None:
        super().__init__(source, **options)
        self._front = front
        self._is_known = True

    @cancellation_kept
    async def execute(self, call: Call[R]) -> R:
        """Makes the call where its run is now. One that is about several runs is made here, and once: when it fails,
        each of them has a call of its own.
        """
        if self._joined:
            return await super().execute(call)
        if call.places:
            return await self._front.execute(call)
        try:
            return await self._once(call)
        except psycopg.Error as error:
            raise translate(error) from error

    async def execute_on(self, connection: AsyncConnection, call: Call[R]) -> R:
        """Makes the call on this connection, in its transaction. Raises InvalidArgument where the run is elsewhere."""
        bucket = bucket_at(call.places)
        if bucket is None or call.fenced:
            return await super().execute_on(connection, call)
        try:
            return await super().execute_on(connection, guarded(call, bucket))
        except TidebaseError as error:
            if error.__cause__ is None or refused_bucket(error.__cause__) is None:
                raise
            raise _another(call) from error

    async def listener(self) -> AsyncConnection:
        """A new connection to listen on: ``TIDEBASE_LISTEN_URL`` leads to one database, and there are several."""
        return await self.aside()

    async def once_at(self, bucket: int, call: Call[R]) -> R:
        """Makes the call once. Raises psycopg's errors as they are."""
        return await super()._once(guarded(call, bucket))

    async def _once(self, call: Call[R]) -> R:
        bucket = bucket_at(call.places) if self._joined else None
        if bucket is None:
            return await super()._once(call)
        try:
            return await self.once_at(bucket, call)
        except psycopg.Error as error:
            if refused_bucket(error) is None:
                raise
            raise _another(call) from error

    def _may_repeat(self, error: BaseException) -> bool:
        return refused_bucket(error) is None and super()._may_repeat(error)


def _another(call: Call[Any]) -> InvalidArgument:
    return InvalidArgument(
        f"the transaction is not in the database of {call.places[0]!r}, and cannot be in two",
        hint="tide.url_of says where a run is; beside it lies what has the same {tag} in its id.",
    )


class AsyncShards(AsyncDatabase):
    """The databases of a router: each call goes to that of its run, with the router's own word where that is.

    Args:
        source: the connection string of the router; by default looked for as always.
    """

    def __init__(self, source: Any = None, **options: Any) -> None:
        if source is not None and not isinstance(source, str):
            raise InvalidArgument(
                "direct=True takes the connection string of a router, and no pool or connection",
                hint="The same user comes to the shards, by the map of the router.",
            )
        super().__init__(source, **options)
        self._options = options
        self._map: ShardMap | None = None
        self._shards: dict[str, AsyncShard] = {}

    async def home(self, run_id: str) -> AsyncShard:
        """The database of a run, or of one that would have this id."""
        return await self._surely_at(bucket_of(run_id))

    def bound(self, connection: AsyncConnection) -> AsyncShard:
        """A shard, by a connection of the caller's."""
        return AsyncShard(connection, self, joined=True)

    async def together(self, joint: Joint[R]) -> R:
        """Makes a call, with others for the same shard where they wait for the same."""
        bucket = bucket_at(joint.alone.places)
        if bucket is None:
            return await super().together(joint)
        shard = await self._surely_at(bucket)
        return await shard.together(joint)

    async def close(self) -> None:
        """Closes all pools, and whatever else was opened; what is needed again is opened anew."""
        await super().close()
        for shard in list(self._shards.values()):
            await shard.close()

    def ringing(self, names: Iterable[str] | None) -> list[AsyncDatabase]:
        """Those of the shards at which the bell rings for these; None: for any."""
        if self._map is None:
            return []
        if names is None:
            return [self._at(place) for place in self._map.places]
        places = [self._map.place_of(_bucket_of_bell(name)) for name in names]
        return [self._at(place) for place in dict.fromkeys(places)]

    async def _once(self, call: Call[R]) -> R:
        bucket = bucket_at(call.places)
        if bucket is None:
            return await super()._once(call)
        known = await self._known()
        while True:
            place = known.place_of(bucket)
            try:
                return await self._at(place).once_at(bucket, call)
            except (psycopg.Error, DatabaseUnavailable) as error:
                refused = refused_bucket(error)
                if refused not in (None, bucket):  # another thing that the call is about is another shard's
                    raise translate(error) from error
                if refused is None and not may_be_elsewhere(error, call):
                    raise
                known = await self._looked_up(known)
                if known.place_of(bucket) == place:
                    if isinstance(error, DatabaseUnavailable):
                        error.hint = _HINT
                    raise

    def _may_repeat(self, error: BaseException) -> bool:
        """Also while the shards, or the router, are told what is whose."""
        return super()._may_repeat(error) or refused_bucket(error) is not None

    async def _surely_at(self, bucket: int) -> AsyncShard:
        if self._map is None:
            await self._surely(self._known)
        known = await self._known()
        return self._at(known.place_of(bucket))

    def _at(self, place: str) -> AsyncShard:
        try:
            return self._shards[place]
        except KeyError:
            return self._shards.setdefault(place, AsyncShard(way_to(place, self.url), self, **self._options))

    async def _known(self) -> ShardMap:
        """The map, which is read when it is first asked for."""
        known = self._map
        if known is None:
            known = self._newest(await super()._once(READ))
        bell = self.doorbell
        if bell.heard_of is not known:
            bell.moved(known)
        return known

    async def _looked_up(self, known: ShardMap) -> ShardMap:
        """The map as the router has it now; this one where the router does not answer."""
        with suppress(psycopg.Error, TidebaseError):
            here = self._here()
            found = self._newest(await here.over(here.pool or await here.open_pool(), READ, _LOOK_S))
            if found is not known:
                await self._leave(found)
            return await self._known()
        return known

    def _newest(self, found: ShardMap) -> ShardMap:
        """A router's standby may be behind: of two maps the newer one stands."""
        if self._map is None or self._map.epoch < found.epoch:
            self._map = found
        return self._map

    async def _leave(self, found: ShardMap) -> None:
        """Shards that are on the map no more are not called any more."""
        for place in [place for place in list(self._shards) if place not in found.places]:
            shard = self._shards.pop(place, None)
            if shard is not None:
                await shard.close()


def _bucket_of_bell(name: str) -> int:
    """Where the bell rings for a run, or for a queue: ``queue:`` and its name."""
    return bucket_of(place_of_queue(name.removeprefix("queue:")) if name.startswith("queue:") else name)
