"""State: versioned documents of a run, in streams; and snapshots of anything."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal, TypedDict

from ..core import codec
from ..core.call import Call, Function, Value, many, one, scalar
from ..core.errors import NotFound
from ..core.flow import Flow
from ..core.options import check, target_of
from .lease import Hold, new_request_id
from .snapshot import Snapshot, create_snapshot, list_snapshots
from .step import recall_of

if TYPE_CHECKING:
    pass


@dataclass(frozen=True)
class StateVersion:
    """A version of a stream; ``value`` is None where it was not asked for.

    ``operation``: set, patch, save, restore or snapshot. ``seq``: of the version's event.
    """

    stream: str
    version: int
    value: Value
    operation: str
    importance: str
    label: str | None
    reason: str | None
    created_by: str | None
    metadata: Value
    seq: int
    created_at: datetime


_VERSION = {
    "label": "text",
    "stream": "text",
    "reason": "text",
    "importance": "text",
    "metadata": "jsonb",
    "created_by": "text",
    "expected_version": "integer",
    "request_id": "text",
}
set_state = scalar("set_state", run_id="text", token="bigint", value="jsonb", **_VERSION)
patch_state = scalar("patch_state", run_id="text", token="bigint", patch="jsonb", **_VERSION)
merge_state = scalar("merge_state", run_id="text", token="bigint", members="jsonb", **_VERSION)
save_state = scalar("save_state", run_id="text", token="bigint", **_VERSION)
restore_state = scalar("restore_state", run_id="text", token="bigint", version="integer", **_VERSION)
get_state = one(
    "get_state",
    StateVersion,
    run_id="text",
    stream="text",
    version="integer",
    at="timestamptz",
    seq="bigint",
    label="text",
)
list_state_versions = many(
    "list_state_versions",
    StateVersion,
    run_id="text",
    stream="text",
    labeled="boolean",
    before="integer",
    max="integer",
    with_value="boolean",
)


#: The stream that is meant when none is named.
MAIN = "main"

Importance = Literal["transient", "normal", "checkpoint", "milestone"]


class VersionOptions(TypedDict, total=False):
    """What may be said about a version when it is written.

    Attributes:
        reason: why, in words.
        importance: ``transient`` (may be lost with the last moments of a crashed server, and costs no flush),
            ``normal``, ``checkpoint`` or ``milestone``.
        metadata: a dict of your own.
        created_by: by whom; the database role unless told.
    """

    reason: str
    importance: Importance
    metadata: dict[str, Any]
    created_by: str


class StateOptions(VersionOptions, total=False):
    """What may be said about a version of a stream.

    Attributes:
        stream: which one; ``main`` unless told.
        label: a name under which the version is found again.
        expected_version: the version that you have read (0: none): VersionConflict when it is not the newest any more.
    """

    stream: str
    label: str
    expected_version: int


class Moment(TypedDict, total=False):
    """Which version is meant; by default the newest.

    Attributes:
        version: that one.
        at: the newest at that time.
        seq: as it was right after the event with that number.
        label: the newest with that label.
    """

    version: int
    at: datetime
    seq: int
    label: str


def write(
    function: Function[int],
    hold: Hold,
    options: VersionOptions,
    chain: str | None = None,
    of: str | None = None,
    **arguments: Any,
) -> Flow[int]:
    """Writes the next version of a stream with one of the functions that do, and returns its number. Outside of a step:
    unless an earlier attempt has written it.

    Args:
        chain: what it is a version of, where that is no stream that is named.
        of: the stream whose document it is about.
    """
    named = function is set_state or function is patch_state
    check(StateOptions if named else VersionOptions, options, "a version of a state")
    hold.begin()
    metadata = options.get("metadata")
    said: dict[str, Any] = {**options, **arguments, "metadata": None if metadata is None else codec.encode(metadata)}
    recall = recall_of(hold)
    if recall is None:
        request_id = new_request_id()
    else:
        request_id = recall.in_order(chain or said.get("stream") or MAIN, function.name, said, of=of)
    version: int = yield function(run_id=hold.run_id, token=hold.token, request_id=request_id, **said)
    return version


def snapshot(hold: Hold, label: str, target: tuple[str, str] | None, state: Any, options: VersionOptions) -> Flow[int]:
    """Keeps what a target looks like; ``state`` None: what the run's state is."""
    kind, key = target_of(target)
    return write(
        create_snapshot,
        hold,
        options,
        chain=f"snapshot:{kind} {key}",
        of=MAIN if state is None else None,
        label=label,
        target_type=kind,
        target_id=key,
        state=None if state is None else codec.encode(state),
    )


def read(run_id: str, stream: str, moment: Moment) -> Flow[StateVersion]:
    """A version. Raises NotFound."""
    check(Moment, moment, "a moment")
    found: StateVersion = yield get_state(run_id=run_id, stream=stream, **moment)
    return found


def value(run_id: str, stream: str, default: Any, moment: Moment) -> Flow[Any]:
    """The document of a version, or the default where there is none."""
    try:
        return (yield from read(run_id, stream, moment)).value
    except NotFound:
        return default


def versions(
    run_id: str, stream: str | None, labeled: bool, before: int | None, max: int | None, with_value: bool
) -> Call[list[StateVersion]]:
    """The versions of a run's streams, newest first."""
    return list_state_versions(
        run_id=run_id, stream=stream, labeled=labeled, before=before, max=max, with_value=with_value
    )


def snapshots(run_id: str, target: tuple[str, str] | None, label: str | None, max: int | None) -> Call[list[Snapshot]]:
    """Snapshots and saved states, newest first."""
    kind, key = target_of(target)
    return list_snapshots(run_id=run_id, target_type=kind, target_id=key, label=label, max=max)
