"""Attacks on threads: who may put a checkpoint, and what is left of shared values when others are taken away."""

from __future__ import annotations

from typing import Any

from psycopg.types.json import Jsonb

from .support import (
    Connection,
    attempt,
    call,
    call_rows,
    connect,
    expire,
    grant,
    new_run,
    queue,
    take_over,
    value,
    values,
)

Value = tuple[int | None, list[Any], bytes | None]


def checkpoint(
    thread_id: str, checkpoint_id: str, parent_id: str | None = None, items: Value | None = None, **more: Any
) -> dict[str, Any]:
    """The arguments of a checkpoint. ``items``: a list, as the value that it is made from, the pieces of that, and new
    bytes.
    """
    changes = []
    if items is not None:
        base, pieces, content = items
        pieces = [*pieces, *([1] if content is not None else [])]
        version = checkpoint_id
        changes = [{"channel": "list", "version": version, "type": "t", "head": 0, "base": base, "pieces": pieces}]
    return {
        "thread_id": thread_id,
        "namespace": "",
        "checkpoint_id": checkpoint_id,
        "parent_id": parent_id,
        "type": "t",
        "content": checkpoint_id.encode(),
        "metadata": Jsonb({}),
        "changes": Jsonb(changes),
        "contents": [b"", *([items[2]] if items and items[2] is not None else [])],
        **more,
    }


def put(connection: Connection, thread_id: str, checkpoint_id: str, *args: Any, **more: Any) -> tuple[str, Any]:
    """What became of it: an outcome and the whole answer, or a SQLSTATE and the error."""
    code, answer = attempt(connection, "put_checkpoint", **checkpoint(thread_id, checkpoint_id, *args, **more))
    return (answer["outcome"], answer) if code == "ok" else (code, answer)


def forks(connection: Connection, thread_id: str) -> list[str]:
    """The checkpoints of which more than one goes on, and whether there is more than one first one."""
    query = """select coalesce(c.parent_id, 'none') || ' is followed by ' || count(*)
      from tidebase.threads t join tidebase.thread_checkpoints c using (thread)
      where t.thread_id = %s group by c.namespace, c.parent_id having count(*) > 1"""
    return values(connection, query, thread_id)


def _race(url: str, thread_id: str, parent_id: str | None, **more: Any) -> list[str]:
    """Four put what follows the same checkpoint: one has, and commits when the others wait for it."""
    with connect(url) as observer, connect(url) as first, queue(url) as line:
        with first.transaction():
            outcomes = [put(first, thread_id, "by 0", parent_id, **more)[0]]
            futures = []
            for number in range(1, 4):
                futures.append(line.add(lambda c, n=number: put(c, thread_id, f"by {n}", parent_id, **more)))  # type: ignore[misc]
                line.settle(observer)
        outcomes += [future.result()[0] for future in futures]
        found = forks(observer, thread_id)
        return found if outcomes == ["stored"] + ["TB003"] * 3 else [*found, f"four put one checkpoint: {outcomes}"]


def one_goes_on(url: str) -> list[str]:
    """Of several who go on from the same checkpoint one is not refused; whether they say what they have seen or not."""
    found = []
    with connect(url) as db:
        for seen_id in ("first", None):
            thread_id = f"thread {new_run(db)}"
            put(db, thread_id, "first")
            found += _race(url, thread_id, "first", seen_id=seen_id)
    return found


def one_begins(url: str) -> list[str]:
    """Of several who found a namespace empty one puts its first checkpoint, with a thread around it or without."""
    with connect(url) as db:
        thread_id = f"thread {new_run(db)}"
        put(db, thread_id, "elsewhere", namespace="sub")
        return _race(url, thread_id, None, seen_id="") + _race(url, f"thread {new_run(db)}", None, seen_id="")


def branches_on_purpose(url: str) -> list[str]:
    """Who has seen the newest checkpoint may follow an older one, as long as it still is the newest."""
    with connect(url) as db:
        thread_id = f"thread {new_run(db)}"
        for name, parent in (("a", None), ("b", "a"), ("c", "b")):
            put(db, thread_id, name, parent)
        attempts = [
            ("follows an older one unseen", put(db, thread_id, "x", "b")[0], "TB003"),
            ("a fork that says so", put(db, thread_id, "d", "b", metadata=Jsonb({"source": "fork"}))[0], "stored"),
            ("follows what is not the newest any more", put(db, thread_id, "x", "c", seen_id="c")[0], "TB003"),
            ("a branch from what was seen", put(db, thread_id, "e", "a", seen_id="d")[0], "stored"),
            ("the same call again", put(db, thread_id, "d", "b", metadata=Jsonb({"source": "fork"}))[0], "stored"),
            ("another content under an old name", put(db, thread_id, "d", "b")[0], "TB003"),
        ]
        newest = call(db, "get_checkpoint", thread_id=thread_id)["checkpoint_id"]
        attempts.append(("the newest is the one that came last", newest, "e"))
    return [f"{what}: {got} instead of {expected}" for what, got, expected in attempts if got != expected]


def nobody_else_writes(url: str) -> list[str]:
    """While a run has a thread, nobody writes without its lease, nor under another one; afterwards everybody may."""
    found = []
    with connect(url) as db:
        run_id, other = new_run(db), new_run(db)
        thread_id = f"thread {run_id}"
        token, other_token = grant(db, run_id), grant(db, other)
        call(db, "claim_thread", thread_id=thread_id, run_id=run_id, token=token)
        write = {"namespace": "", "checkpoint_id": "a", "task_id": "t", "task_path": "", "idxs": [0]}
        write |= {"channels": ["c"], "types": ["t"], "contents": [b""]}
        theirs = {"run_id": other, "token": other_token}
        for who, lease in (("without a lease", {}), ("under another lease", theirs)):
            for function, arguments in (
                ("put_checkpoint", checkpoint(thread_id, "a")),
                ("put_checkpoint_writes", {"thread_id": thread_id, **write}),
                ("delete_thread", {"thread_id": thread_id}),
            ):
                code, _ = attempt(db, function, **arguments, **lease)
                if code != "TB003":
                    found.append(f"{function} {who}: {code} instead of TB003")
        code, _ = attempt(db, "claim_thread", thread_id=thread_id, **theirs)
        found += [] if code == "TB003" else [f"a claimed thread was claimed: {code}"]
        if (code := put(db, thread_id, "a", run_id=run_id, token=token)[0]) != "stored":
            found.append(f"its own run could not put: {code}")
        expire(db, run_id)
        if (code := put(db, thread_id, "b", "a")[0]) != "stored":
            found.append(f"a lease that ran out keeps others from writing: {code}")
    return found


def who_was_replaced_writes_nothing(url: str) -> list[str]:
    """The lease is taken over while its former holder waits for the run's head, with a checkpoint and with writes."""
    found = []
    with connect(url) as observer:
        run_id = new_run(observer)
        thread_id = f"thread {run_id}"
        token = grant(observer, run_id)
        put(observer, thread_id, "a", run_id=run_id, token=token)
        with connect(url) as blocker, queue(url) as line:
            with blocker.transaction():
                successor = take_over(blocker, run_id)
                zombie = line.add(lambda c: put(c, thread_id, "zombie", "a", run_id=run_id, token=token))
                line.settle(observer)
            code, _ = zombie.result()
            found += [] if code == "TB003" else [f"a former holder put a checkpoint: {code}"]
        if (code := put(observer, thread_id, "b", "a", run_id=run_id, token=successor)[0]) != "stored":
            found.append(f"the successor could not go on: {code}")
        return found + forks(observer, thread_id)


def _body(db: Connection, thread_id: str, checkpoint_id: str) -> bytes | None:
    row = call(db, "get_checkpoint", thread_id=thread_id, checkpoint_id=checkpoint_id)
    return bytes(row["bodies"][0]) if row and row["bodies"] else None


def shared_values_stay(url: str) -> list[str]:
    """What goes is not what others share; and what a client remembers of it is not taken for something else."""
    found = []
    with connect(url) as db:
        thread_id = f"thread {new_run(db)}"
        made, text, edition = None, b"", None
        for number in range(6):
            content = b"%06d " % number
            parent = f"c{number - 1}" if number else None
            pieces = [[0, len(text)]] if number else []
            metadata = Jsonb({"run_id": f"r{number}"})
            outcome, answer = put(
                db, thread_id, f"c{number}", parent, (made, pieces, content), edition=edition, metadata=metadata
            )
            if outcome != "stored":
                return [f"checkpoint {number}: {outcome}: {answer}"]
            (made,), edition, text = answer["value_numbers"], answer["edition"], text + content
        call(db, "delete_checkpoints_of_runs", run_ids=["r1", "r2", "r5"])
        for number, expected in ((0, text[:7]), (1, None), (4, text[:35]), (5, None)):
            if (body := _body(db, thread_id, f"c{number}")) != expected:
                found.append(f"c{number} has become {body!r}")
        # The number of the last value is given away again; its former owner goes on as if nothing had happened.
        put(db, thread_id, "other", "c4", (None, [], b"other " * 6))
        stale = put(db, thread_id, "stale", "other", (made, [[0, len(text)]], b"more"), edition=edition)
        if stale[0] != "incomplete":
            found.append(f"what was gone was used: {stale[0]}, {_body(db, thread_id, 'stale')!r}")
        call(db, "prune_threads", thread_ids=[thread_id])
        if (left := len(call_rows(db, "list_checkpoints", thread_id=thread_id))) != 1:
            found.append(f"{left} checkpoints are left")
        if stale[0] == "incomplete" and (body := _body(db, thread_id, "other")) != b"other " * 6:
            found.append(f"the newest has become {body!r}")
        chunks = value(
            db,
            "select count(*) from tidebase.thread_chunks k join tidebase.threads t using (thread) where thread_id = %s",
            thread_id,
        )
        if stale[0] == "incomplete" and chunks != 1:
            found.append(f"{chunks} chunks are left, of which one is needed")
        broken = values(db, "select c::text from tidebase_private.check_invariants() c")
        return found + broken


def a_base_has_its_version(url: str) -> list[str]:
    """A number of a value that was lost and given away again is not taken for it: neither by writers nor by readers."""
    found = []
    with connect(url) as db, connect(url) as loser:
        thread_id = f"thread {new_run(db)}"
        edition = put(db, thread_id, "a")[1]["edition"]
        with loser.transaction(force_rollback=True):
            (lost,) = put(loser, thread_id, "lost", "a", (None, [], b"lost"))[1]["value_numbers"]
        put(db, thread_id, "kept", "a", (None, [], b"kept and more"))
        about = {"thread_id": thread_id, "edition": edition, "known": [lost], "versions": ["lost"]}
        read = call(db, "get_checkpoint_beyond", **about)
        if read["bases"] != [None]:
            found.append(f"a reader was sent what comes after another value: {read['bodies']}")
        arguments = checkpoint(thread_id, "b", "kept", (lost, [[0, 4]], b" more"), edition=edition)
        arguments["changes"].obj[0]["base_version"] = "lost"
        if (outcome := call(db, "put_checkpoint", **arguments)["outcome"]) != "incomplete":
            found.append(f"a value was made from another one: {outcome}, {_body(db, thread_id, 'b')!r}")
    return found


def a_deletion_waits(url: str) -> list[str]:
    """A thread is deleted while somebody writes: all of it goes, or what was written comes after it."""
    with connect(url) as db, connect(url) as writer, queue(url) as line:
        thread_id = f"thread {new_run(db)}"
        put(db, thread_id, "a")
        write = {"namespace": "", "checkpoint_id": "a", "task_id": "t", "task_path": "", "idxs": [0]}
        write |= {"channels": ["c"], "types": ["t"], "contents": [b""]}
        with writer.transaction():
            call(writer, "put_checkpoint_writes", thread_id=thread_id, **write)
            deletion = line.add(lambda c: call(c, "delete_thread", thread_id=thread_id))
            line.settle(db)
        deletion.result()
        left = value(
            db, "select count(*) from tidebase.thread_writes where thread not in (select thread from tidebase.threads)"
        )
        return [f"{left} writes belong to no thread"] if left else []
