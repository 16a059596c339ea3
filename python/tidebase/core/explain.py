"""Why a call was refused, where the database has to be asked for that: who may make it, and whose schema it is."""

from __future__ import annotations

from typing import Any

import psycopg

from .call import Audience, Call, audience_of
from .errors import NotEntitled, TidebaseError

#: The protocol between package and schema that this package speaks. It is the schema's when a function that is called
#: here has come, has gone, or answers otherwise: see tidebase.protocol().
PROTOCOL = 10

#: The errors about which the database can say more.
EXPLAINED = (
    psycopg.errors.InsufficientPrivilege,
    psycopg.errors.UndefinedFunction,
    psycopg.errors.UndefinedTable,
    psycopg.errors.UndefinedColumn,
    psycopg.errors.InvalidSchemaName,
)

_PROTOCOL = """
select to_regclass('tidebase.events') is not null,
  (select substring(p.prosrc from '[0-9]+')::integer from pg_proc p
   where p.pronamespace = to_regnamespace('tidebase') and p.proname = 'protocol')"""


def explanation_of(error: TidebaseError, call: Call[Any]) -> Call[Any]:
    """What is to be asked about the error of a call: from the catalogue, which anybody may read."""
    if isinstance(error, NotEntitled):
        return audience_of(call)
    return Call(_PROTOCOL, (), lambda rows: rows[0])


def speaks() -> Call[bool]:
    """Whether the schema that is installed has all that this package calls: its own protocol, or a newer one."""
    return Call(_PROTOCOL, (), lambda rows: bool(rows[0][0]) and (rows[0][1] or 0) >= PROTOCOL)


def explained(error: TidebaseError, answer: Any) -> TidebaseError:
    """The error with what the database has answered."""
    return _forbidden(error, answer) if isinstance(error, NotEntitled) else _mismatched(error, *answer)


def _mismatched(error: TidebaseError, installed: bool, protocol: int | None) -> TidebaseError:
    if not installed or protocol == PROTOCOL:
        return error
    if protocol is None or protocol < PROTOCOL:
        theirs = protocol or "unknown"
        error.hint = f"The schema is older than this package (protocol {theirs}, not {PROTOCOL}): tidebase migrate"
    else:
        error.hint = (
            f"The schema is newer than this package (protocol {protocol}, not {PROTOCOL}): upgrade tidebase-postgres"
        )
    return error


def _forbidden(error: TidebaseError, audiences: list[Audience]) -> TidebaseError:
    """The error of who may not make a call, with the role that it needs."""
    for audience in audiences:
        if not audience.allowed:
            roles, user = audience.roles, audience.user
            if roles:
                needed = f"one of the roles {', '.join(roles)}" if roles[1:] else f"the role {roles[0]}"
                error.hint = f"It needs {needed}. Let an administrator: grant {roles[0]} to {user}"
            else:
                error.hint = (
                    f"Only {audience.owner} may: the roles for others have not been made: tidebase roles --help"
                )
    return error
