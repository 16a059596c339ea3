"""What usually goes wrong, looked at: for ``tidebase doctor``, and for the page of the gateway."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import psycopg

from ..core.errors import TidebaseError
from ..core.sessions import Connection
from ..schema import migrations, ownership
from . import shards

#: Below this many updates a share of them says nothing.
_ENOUGH = 1000


@dataclass(frozen=True)
class Finding:
    """What was looked at, how it is (``ok``, ``note`` or ``problem``), and what to do."""

    check: str
    level: str
    text: str
    advice: str | None = None


Check = Callable[[Connection], Iterator[Finding]]


def look(connection: Connection, deep: bool = False) -> list[Finding]:
    """What was found; ``deep``: every row is looked at, too."""
    checks = (*CHECKS, _invariants) if deep else CHECKS
    return [finding for check in checks for finding in _carefully(check, connection)]


def _carefully(check: Check, connection: Connection) -> Iterator[Finding]:
    """What cannot be looked at is told, and the rest is looked at all the same."""
    try:
        yield from check(connection)
    except (psycopg.Error, TidebaseError) as error:
        name = check.__name__.strip("_").replace("_", " ")
        yield Finding(name, "note", f"cannot be looked at: {str(error).splitlines()[0]}")


def _row(connection: Connection, query: str, *parameters: Any) -> tuple[Any, ...]:
    row = connection.execute(query, parameters or None).fetchone()
    assert row is not None
    return tuple(row)


def _version(connection: Connection) -> Iterator[Finding]:
    number, text = connection.info.server_version, _row(connection, "show server_version")[0]
    if number < 150000:
        yield Finding("version", "problem", f"Postgres {text}", "Tidebase needs Postgres 15 or newer.")
    else:
        yield Finding("version", "ok", f"Postgres {text}")


def _schema(connection: Connection) -> Iterator[Finding]:
    if _row(connection, "select to_regnamespace('tidebase') is null")[0]:
        yield Finding("schema", "problem", "Tidebase is not installed in this database", "Run: tidebase migrate")
        return
    report = migrations.pending(connection)
    if report.migrations or report.functions:
        text = "older than this package" if report.migrations else "of another version than this package"
        yield Finding("schema", "problem", text, "Run: tidebase migrate")
    else:
        yield Finding("schema", "ok", "up to date")
    if report.access:
        text = "owners or grants are not what they should be: after a restore without them, or by hand"
        yield Finding("access", "problem", text, "Run: tidebase migrate")


#: For which audiences the user may do what is theirs, whatever the roles' prefix: those named in the grants.
_MEMBERSHIPS = """
select distinct audience[1] from pg_proc p, aclexplode(p.proacl) granted
join pg_roles r on r.oid = granted.grantee, regexp_match(r.rolname, '_(worker|approver|operator|reader)$') audience
where p.pronamespace = to_regnamespace('tidebase') and audience is not null and pg_has_role(r.oid, 'usage') order by 1
"""


def _roles(connection: Connection) -> Iterator[Finding]:
    user, superuser = _row(connection, "select current_user::text, rolsuper from pg_roles where rolname = current_user")
    if superuser:
        advice = "Give workers a user that is a member of tidebase_worker, people one of tidebase_approver."
        yield Finding("roles", "note", f"{user} is a superuser: nothing is forbidden to it", advice)
        return
    owned = (
        "select coalesce(bool_or(pg_has_role(nspowner, 'usage')), false) from pg_namespace where nspname = 'tidebase'"
    )
    may = [audience for (audience,) in connection.execute(_MEMBERSHIPS).fetchall()]
    if _row(connection, owned)[0]:
        yield Finding("roles", "ok", f"{user} owns it, and may do everything")
    elif may:
        yield Finding("roles", "ok", f"{user} may do what is for: {', '.join(may)}")
    else:
        advice = f"Let its owner: grant tidebase_worker to {user}"
        yield Finding("roles", "problem", f"{user} may do nothing here", advice)


_READABLE = """
select coalesce(bool_or(has_schema_privilege(n.oid, 'usage') and has_table_privilege(c.oid, 'select')), false)
from pg_class c join pg_namespace n on n.oid = c.relnamespace
where n.nspname = 'tidebase_private' and c.relname = 'settings'
"""


def _speakers(connection: Connection) -> Iterator[Finding]:
    """The logins that are believed for whom they vote."""
    if not _row(connection, _READABLE)[0]:
        return
    row = connection.execute("select value from tidebase_private.settings where name = 'speakers'").fetchone()
    if row is None:
        return
    try:
        with connection.transaction():
            logins: list[str] = _row(connection, "select %s::name[]::text[]", row[0])[0]
    except psycopg.DataError:
        advice = "It must be an array of logins: {gateway,bot}. Until then no vote can be given."
        yield Finding("speakers", "problem", f"the setting speakers is {row[0]!r}", advice)
        return
    unknown = [
        name
        for name in logins
        if not _row(connection, "select exists (select from pg_roles where rolname = %s)", name)[0]
    ]
    if unknown:
        yield Finding("speakers", "problem", f"no such login: {', '.join(unknown)}", "Mend the setting speakers.")
    elif logins:
        advice = "Each of these is believed for whom it votes, where several must agree."
        yield Finding("speakers", "note", f"may vote for others: {', '.join(logins)}", advice)


#: Who may do something with a table itself, beside its owner; nobody should.
_TABLES_OPEN = """
select case a.grantee when 0 then 'PUBLIC' else a.grantee::regrole::text end, c.oid::regclass::text,
  lower(a.privilege_type)
from pg_class c join pg_namespace n on n.oid = c.relnamespace cross join aclexplode(c.relacl) a
where n.nspname in ('tidebase', 'tidebase_private') and c.relkind in ('r', 'p') and a.grantee <> c.relowner
union all
select 'PUBLIC', p.oid::regprocedure::text, 'execute'
from pg_proc p join pg_namespace n on n.oid = p.pronamespace
cross join aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) a
where n.nspname in ('tidebase', 'tidebase_private') and a.grantee = 0
union all
select 'PUBLIC', 'schema ' || n.nspname, lower(a.privilege_type) from pg_namespace n cross join aclexplode(n.nspacl) a
where n.nspname in ('tidebase', 'tidebase_private') and a.grantee = 0
order by 1, 2, 3
"""

_ROW_SECURITY = """
select c.oid::regclass::text, c.relforcerowsecurity from pg_class c join pg_namespace n on n.oid = c.relnamespace
where n.nspname in ('tidebase', 'tidebase_private') and (c.relrowsecurity or c.relforcerowsecurity) order by 1
"""


def _access(connection: Connection) -> Iterator[Finding]:
    """Who gets past the functions, and what hides rows from them."""
    open_to = connection.execute(_TABLES_OPEN).fetchall()
    if open_to:
        who, what, how = open_to[0]
        more = f", and {len(open_to) - 1} more" if len(open_to) > 1 else ""
        text = f"{who} may {how} {what}{more}, which is for nobody but the owner"
        yield Finding("access", "problem", text, "Run: tidebase migrate")
    for table, forced in connection.execute(_ROW_SECURITY).fetchall():
        text = f"{table} has row security" + (
            ", forced upon its owner, too: the functions do not see its rows" * forced
        )
        advice = f"alter table {table} no force row level security, disable row level security"
        yield Finding("access", "problem" if forced else "note", text, advice)
    strangers = ownership.foreign(connection)
    for kind, name, owner in strangers[:10]:
        text = f"the {kind} {name} is {owner}'s: what it does, it does to whoever uses Tidebase"
        yield Finding("access", "problem", text, "Look at it, and drop it.")
    if not open_to and not strangers:
        yield Finding("access", "ok", "nobody but the owner reaches the tables")


#: Setting, the values that are fine, level otherwise, advice.
_SETTINGS = (
    ("fsync", ("on",), "problem", "A crash of the machine destroys the database. Set it on."),
    (
        "full_page_writes",
        ("on",),
        "problem",
        "A crash can tear pages. Set it on, unless the file system prevents it.",
    ),
    (
        "synchronous_commit",
        ("on", "local", "remote_write", "remote_apply"),
        "note",
        "Checkpoints are flushed all the same: the functions set it for their own transaction.",
    ),
    (
        "default_transaction_read_only",
        ("off",),
        "note",
        "Whoever is set so can look, and do nothing else: alter role ... reset default_transaction_read_only",
    ),
    ("autovacuum", ("on",), "problem", "The tables grow without end. Set it on."),
    ("track_counts", ("on",), "problem", "Autovacuum does not know when to work. Set it on."),
    (
        "default_toast_compression",
        ("lz4",),
        "note",
        "lz4, where it is built in, is several times faster for large payloads.",
    ),
)


def _settings(connection: Connection) -> Iterator[Finding]:
    for name, fine, level, advice in _SETTINGS:
        value = _row(connection, "select current_setting(%s)", name)[0]
        yield Finding(name, "ok" if value in fine else level, value, None if value in fine else advice)


def _connections(connection: Connection) -> Iterator[Finding]:
    used, limit = _row(
        connection,
        "select count(*) filter (where backend_type = 'client backend'), current_setting('max_connections')::integer"
        " from pg_stat_activity",
    )
    advice = None if used < 0.8 * limit else "Make the pools smaller, or put a pooler in between."
    yield Finding("connections", "note" if advice else "ok", f"{used} of {limit}", advice)


def _transactions(connection: Connection) -> Iterator[Finding]:
    number, oldest = _row(
        connection,
        "select count(*), coalesce(max(extract(epoch from clock_timestamp() - xact_start)), 0)::float"
        " from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()"
        " and xact_start < clock_timestamp() - interval '5 min'",
    )
    if number:
        text = f"{number} open for more than 5 minutes, the oldest for {oldest / 60:.0f} minutes"
        advice = "They keep vacuum from clearing the tables: see pg_stat_activity; idle_in_transaction_session_timeout."
        yield Finding("transactions", "problem" if oldest > 3600 else "note", text, advice)
    else:
        yield Finding("transactions", "ok", "none is open for long")


def _tables(connection: Connection) -> Iterator[Finding]:
    rows = connection.execute(
        "select relname, n_live_tup, n_dead_tup, n_tup_upd, n_tup_hot_upd, pg_total_relation_size(relid),"
        " coalesce(last_autovacuum, last_vacuum)::text from pg_stat_user_tables where schemaname = 'tidebase'"
        " order by relname"
    ).fetchall()
    for name, live, dead, updates, hot, _, vacuumed in rows:
        if name == "run_heads" and updates >= _ENOUGH:
            share = hot / updates
            advice = None if share >= 0.9 else "A long transaction is in the way: see above."
            yield Finding("hot updates", "note" if advice else "ok", f"{share:.1%} of run_heads'", advice)
        if dead > _ENOUGH and dead > live:
            text = f"{name} has {dead} dead rows to {live} live ones; vacuumed last: {vacuumed or 'never'}"
            yield Finding("bloat", "note", text, f"Run: vacuum tidebase.{name}")
    total = sum(row[5] for row in rows)
    yield Finding("size", "ok", f"{total / 1e6:.1f} MB in {len(rows)} tables")


def _notifications(connection: Connection) -> Iterator[Finding]:
    used = float(_row(connection, "select pg_notification_queue_usage()")[0])
    advice = None if used < 0.5 else "A listener is stuck in a transaction: when the queue is full, commits fail."
    yield Finding("notifications", "problem" if advice else "ok", f"the queue is {used:.0%} full", advice)


def _shards(connection: Connection) -> Iterator[Finding]:
    found = shards.look(connection)
    for shard in found.shards if found else ():
        for problem in shard.problems:
            yield Finding("shards", "problem", f"{shard.name}: {problem}", "See: tidebase router status")
        if not shard.problems:
            yield Finding("shards", "ok", f"{shard.name} has {shard.partitions} partitions")


def _stalled(connection: Connection) -> Iterator[Finding]:
    rows = connection.execute(
        "select reason, count(*) from tidebase.stalled_runs group by reason order by reason"
    ).fetchall()
    if rows:
        text = ", ".join(f"{number} {reason}" for reason, number in rows)
        advice = "See: tidebase stalled. `tidebase reconcile --every 5s` ends what has run out."
        yield Finding("stalled runs", "problem", text, advice)
    else:
        yield Finding("stalled runs", "ok", "none")


def _setbacks(connection: Connection) -> Iterator[Finding]:
    rows = connection.execute(
        "select run_id, failures, sqlstate, message from tidebase.run_setbacks order by failures desc, run_id limit 5"
    ).fetchall()
    for run_id, failures, state, message in rows:
        times = "once" if failures == 1 else f"{failures} times"
        text = f"reconcile could not look at run {run_id!r}, {times}: {state}: {message}"
        yield Finding(
            "set back", "problem", text, "It is looked at again by itself, later and later. See: run_setbacks."
        )
    if not rows:
        yield Finding("set back", "ok", "reconcile can look at every run")


def _invariants(connection: Connection) -> Iterator[Finding]:
    (allowed,) = _row(connection, "select has_function_privilege('tidebase.check_invariants(text)', 'execute')")
    if not allowed:
        yield Finding("invariants", "note", "not looked at: only operators may read every row")
        return
    rows = connection.execute(
        "select invariant, count(*), min(run_id) from tidebase.check_invariants() group by invariant order by invariant"
    ).fetchall()
    for rule, number, example in rows:
        advice = (
            "The functions never do this: a table was changed by hand, or it is a defect of Tidebase to be reported."
        )
        yield Finding("invariants", "problem", f"{number} rows (one of run {example!r}) break: {rule}", advice)
    if not rows:
        (number,) = _row(connection, "select count(*) from tidebase.run_overview")
        yield Finding("invariants", "ok", f"every row of {number} runs keeps the rules")


CHECKS: tuple[Check, ...] = (
    _version,
    _schema,
    _roles,
    _access,
    _speakers,
    _settings,
    _connections,
    _transactions,
    _tables,
    _notifications,
    _shards,
    _stalled,
    _setbacks,
)
