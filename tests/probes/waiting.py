"""Probes of parents that wait for their children in the database, of workers that die, and of tokens that come again.

Each returns the violations that it found; see ``probes`` for the leases, checkpoints and the log.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .support import Connection, attempt, audit, call, connect, expire, grant, new_run, queue, take_over, value

# -- parents ----------------------------------------------------------------------------------------------------------


def _family(connection: Connection, **child: Any) -> tuple[str, int, str]:
    """A parent at work, its token, and a child that nobody has taken up."""
    parent = new_run(connection)
    token = grant(connection, parent)
    made = call(connection, "create_child", run_id=parent, token=token, name="c", workflow="probe", **child)
    return parent, token, str(made["run_id"])


def _suspend(connection: Connection, parent: str, token: int) -> Any:
    return call(connection, "suspend_for_children", run_id=parent, token=token, names=["c"])


def _at_work(connection: Connection, child: str) -> Callable[[str], Any]:
    token = grant(connection, child)
    return lambda function, **more: call(connection, function, run_id=child, token=token, **more)


def _completed(connection: Connection, child: str) -> Callable[[], Any]:
    work = _at_work(connection, child)
    return lambda: work("complete_run")


def _completed_with_others(connection: Connection, child: str) -> Callable[[], Any]:
    token = grant(connection, child)
    return lambda: call(connection, "complete_runs", run_ids=[child], tokens=[token])


def _failed(connection: Connection, child: str) -> Callable[[], Any]:
    work = _at_work(connection, child)
    return lambda: work("fail_run", retryable=False)


def _released(connection: Connection, child: str) -> Callable[[], Any]:
    work = _at_work(connection, child)
    return lambda: work("release_run")


def _cancelled(connection: Connection, child: str) -> Callable[[], Any]:
    _at_work(connection, child)
    return lambda: call(connection, "cancel_run", run_id=child)


def _decided(connection: Connection, child: str) -> Callable[[], Any]:
    work = _at_work(connection, child)
    secret = work("open_gate", name="g", prompt="?")["secret"]
    work("suspend_run", name="g")
    return lambda: call(connection, "decide_gate", run_id=child, name="g", decision="approved", secret=secret)


def _reviewed(connection: Connection, child: str) -> Callable[[], Any]:
    work = _at_work(connection, child)
    work("begin_step", name="s", side_effects=["card"])
    work("fail_step", name="s")
    work("fail_run")
    return lambda: call(connection, "resolve_review", run_id=child, step="s", decision="retry")


def _lapsed(connection: Connection, child: str) -> Callable[[], Any]:
    """Its worker has died: who looks after what only time brings about sees it."""
    _at_work(connection, child)

    def reconcile() -> None:
        expire(connection, child)
        connection.execute("update tidebase.run_heads set due_at = clock_timestamp() where run_id = %s", (child,))
        call(connection, "reconcile")

    return reconcile


#: What makes a child ready, by the way in which it comes further.
WAYS = {
    "completed": _completed,
    "completed with others": _completed_with_others,
    "failed": _failed,
    "released": _released,
    "cancelled": _cancelled,
    "decided": _decided,
    "reviewed": _reviewed,
    "lapsed": _lapsed,
}


def parents_are_woken(url: str) -> list[str]:
    """A parent is pending as soon as its child may go on or has ended, and not before; nobody has to poll for it."""
    found = []
    with connect(url) as connection:
        for way, prepare in WAYS.items():
            parent, token, child = _family(connection)
            come_further = prepare(connection, child)
            if not _suspend(connection, parent, token):
                found.append(f"{way}: the parent was not suspended although its child could not go on")
                continue
            status = "select status from tidebase.run_heads where run_id = %s"
            if value(connection, status, parent) != "waiting":
                found.append(f"{way}: the parent does not wait")
            come_further()
            if value(connection, status, parent) != "pending":
                found.append(f"{way}: the parent was not woken, it is {value(connection, status, parent)}")
            found += audit(connection, parent, child)
    return found


def no_wake_is_lost(url: str) -> list[str]:
    """The child ends while the parent is just lying down: the parent sees it, or is woken by it."""
    found = []
    with connect(url) as connection, connect(url) as worker, queue(url) as line:
        parent, token, child = _family(connection)
        child_token = grant(connection, child)
        with worker.transaction():
            call(worker, "complete_run", run_id=child, token=child_token)  # it sees no parent that waits
            answer = line.add(lambda mine: _suspend(mine, parent, token))
            line.settle(connection)
        status = "select status from tidebase.run_heads where run_id = %s"
        if answer.result() and value(connection, status, parent) != "pending":
            found.append("the parent sleeps although its child has ended")
        found += audit(connection, parent, child)
    return found


# -- workers that die -------------------------------------------------------------------------------------------------


def crashes_are_counted(url: str, allowed: int = 3) -> list[str]:
    """A run that kills its worker each time is failed after so many attempts, also if nobody saw the leases run out."""
    with connect(url) as connection:
        run_id = new_run(connection, max_attempts=allowed)
        for number in range(allowed):
            code, lease = attempt(connection, "acquire_run", run_id=run_id, holder=f"worker {number}", ttl="1 hour")
            if (code, lease["outcome"]) != ("ok", "granted"):
                return [f"attempt {number + 1} of {allowed} was not granted: {code} {lease}"]
            expire(connection, run_id)
        lease = call(connection, "acquire_run", run_id=run_id, holder="one more", ttl="1 hour")
        if lease["outcome"] != "failed":
            return [f"after {allowed} dead workers the run was {lease['outcome']} once more"]
        return audit(connection, run_id)


def a_grant_is_withdrawn_by_its_own_call(url: str) -> list[str]:
    """Who was interrupted before the answer came gives the lease back, and never one that came later."""
    found = []
    with connect(url) as connection:
        run_id = new_run(connection)
        lost = {"run_id": run_id, "holder": "interrupted", "ttl": "1 hour", "request_id": "lost answer"}
        call(connection, "acquire_run", **lost)
        take_over(connection, run_id)
        if call(connection, "withdraw_grant", run_id=run_id, request_id="lost answer"):
            found.append("the lease of a successor was given back")
        return found + audit(connection, run_id)


# -- tokens -----------------------------------------------------------------------------------------------------------


def tokens_of_what_is_gone(url: str) -> list[str]:
    """A worker of a run that was purged gets through no fence of the run that is made anew with its id."""
    found = []
    with connect(url) as connection:
        run_id = new_run(connection, run_id="again")
        old = take_over(connection, run_id) if grant(connection, run_id) else 0
        call(connection, "cancel_run", run_id=run_id)
        call(connection, "purge_runs", older_than="0 seconds", statuses=["cancelled"])
        new_run(connection, run_id=run_id)
        new = [grant(connection, run_id), take_over(connection, run_id)]
        if min(new) <= old:
            found.append(f"tokens {new} were issued after {old}")
        code, _ = attempt(connection, "complete_run", run_id=run_id, token=old)
        if code != "TB003":
            found.append(f"a worker of the purged run completes the new one: {code}")
        call(connection, "cancel_run", run_id=run_id)
        call(connection, "purge_runs", older_than="0 seconds", statuses=["cancelled"])
        return found


def tokens_of_another_place(url: str) -> list[str]:
    """What a dump, a standby or pg_upgrade has brought here begins above all that was granted where it came from."""
    with connect(url) as connection:
        run_id = new_run(connection)
        old = grant(connection, run_id)
        connection.execute("update tidebase_private.incarnation set whereabouts = 'where it came from'")
        new = take_over(connection, run_id)
        if new <= old + 1_000_000:
            return [f"token {new} may have been granted where the rows came from, after {old}"]
        if take_over(connection, run_id) != new + 1:
            return ["a grant in the same place leaves a gap"]
        return audit(connection, run_id)
