"""State: versioned documents of a run, in streams; and snapshots of anything."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal, TypedDict

from . import calls, codec
from .calls import Snapshot, StateVersion
from .errors import NotFound
from .flow import Flow
from .lease import Hold, new_request_id
from .options import check, target_of
from .step import recall_of

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .run import Run

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
    function: calls.Function[int],
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
    named = function is calls.set_state or function is calls.patch_state
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
        calls.create_snapshot,
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
    found: StateVersion = yield calls.get_state(run_id=run_id, stream=stream, **moment)
    return found


def value(run_id: str, stream: str, default: Any, moment: Moment) -> Flow[Any]:
    """The document of a version, or the default where there is none."""
    try:
        return (yield from read(run_id, stream, moment)).value
    except NotFound:
        return default


class State:
    """``run.state``: the run's live state, and other documents that it keeps, each with its history."""

    def __init__(self, run: Run) -> None:
        self._run = run

    def set(self, value: Any, **options: Unpack[StateOptions]) -> int:
        """Makes a value the next version and returns the version's number; see :class:`StateOptions`.

        Raises:
            VersionConflict: ``expected_version`` is not the newest one.
            NotSerializable: the value cannot be stored as JSON.
        """
        return self._run._do(write(calls.set_state, self._run._hold, options, value=codec.encode(value)))

    def patch(self, patch: Any, **options: Unpack[StateOptions]) -> int:
        """Applies a merge patch (RFC 7396: members are set, None removes one, lists are replaced) to the newest version
        and returns the new version's number. What is stored is what changed: a list that grew costs what was added.
        """
        return self._run._do(write(calls.patch_state, self._run._hold, options, patch=codec.encode(patch)))

    def save(self, label: str, *, stream: str = MAIN, **options: Unpack[VersionOptions]) -> int:
        """Gives the state as it is now a label, in a version of its own. Raises NotFound when there is no state."""
        return self._run._do(write(calls.save_state, self._run._hold, options, label=label, stream=stream))

    def restore(
        self,
        version: int | None = None,
        *,
        label: str | None = None,
        stream: str = MAIN,
        **options: Unpack[VersionOptions],
    ) -> int:
        """Makes an earlier version, by number or label, the newest again: as a new version. Raises NotFound."""
        call = write(calls.restore_state, self._run._hold, options, version=version, label=label, stream=stream)
        return self._run._do(call)

    def get(self, stream: str = MAIN, *, default: Any = None, **moment: Unpack[Moment]) -> Any:
        """The value, now or at a :class:`Moment`; ``default`` where there is none."""
        return self._run._do(value(self._run.run_id, stream, default, moment))

    def versions(
        self, stream: str | None = None, *, labeled: bool = False, before: int | None = None, max: int | None = None
    ) -> Sequence[StateVersion]:
        """The versions, newest first, without their values; see :meth:`tidebase.run.Runs.state_versions`."""
        return self._run._database.execute(versions(self._run.run_id, stream, labeled, before, max, False))


class Snapshots:
    """``run.snapshots``: what a target (a file, a page, the run itself) looked like, kept under a label."""

    def __init__(self, run: Run) -> None:
        self._run = run

    def create(
        self,
        label: str,
        state: Any = None,
        *,
        target: tuple[str, str] | None = None,
        **options: Unpack[VersionOptions],
    ) -> int:
        """Keeps a snapshot and returns its number, counted for each target.

        Args:
            state: what it looks like; None for the run's own state as it is now.
            target: type and id of what it is of; by default the run.
        """
        return self._run._do(snapshot(self._run._hold, label, target, state, options))

    def list(
        self, *, target: tuple[str, str] | None = None, label: str | None = None, max: int | None = None
    ) -> Sequence[Snapshot]:
        """Snapshots and saved states, newest first."""
        return self._run._database.execute(snapshots(self._run.run_id, target, label, max))


def versions(
    run_id: str, stream: str | None, labeled: bool, before: int | None, max: int | None, with_value: bool
) -> calls.Call[list[StateVersion]]:
    """The versions of a run's streams, newest first."""
    return calls.list_state_versions(
        run_id=run_id, stream=stream, labeled=labeled, before=before, max=max, with_value=with_value
    )


def snapshots(
    run_id: str, target: tuple[str, str] | None, label: str | None, max: int | None
) -> calls.Call[list[Snapshot]]:
    """Snapshots and saved states, newest first."""
    kind, key = target_of(target)
    return calls.list_snapshots(run_id=run_id, target_type=kind, target_id=key, label=label, max=max)
