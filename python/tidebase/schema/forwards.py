"""The functions of a router: for each function of the API one in PL/Proxy that calls it at a shard, and one of the same
signature that chooses the shard and says what came of it as a direct call does.

They are made from the catalogue of a database that has just been migrated, so that none can be missing or differ:
:data:`PLACES` says where a call goes that concerns one shard; those that concern several are in
``sql/router/by_hand.sql``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import psycopg

from ..core.errors import TidebaseError

#: Stand in any database: they look at nothing in it, or at what it is itself.
LOCAL = frozenset({"new_run_id", "next_fires", "protocol", "require_bucket", "shard_epoch", "shard_map"})

#: What of the arguments says where a call goes, by the name of the first one.
PLACES = {
    "run_id": "tidebase_private.bucket_of(run_id)",
    "thread_id": "tidebase_private.bucket_of(thread_id)",
    "source_thread_id": "tidebase_private.bucket_of(source_thread_id)",
    "queue": "tidebase_private.bucket_of_queue(queue)",
    "workflow": "tidebase_private.bucket_of_queue(coalesce(queue, 'default'))",  # enqueue_run
}

#: What else must lie in the same bucket: the thing, its name, and beside what.
TOGETHER = {
    "claim_thread": ("thread", "thread_id", "run", "run_id"),
    "put_checkpoint": ("run", "run_id", "thread", "thread_id"),
    "put_checkpoint_writes": ("run", "run_id", "thread", "thread_id"),
    "delete_thread": ("run", "run_id", "thread", "thread_id"),
    "copy_thread": ("thread", "target_thread_id", "thread", "source_thread_id"),
    "fork_run": ("run", "new_run_id", "run", "run_id"),
    "enqueue_run": ("run", "run_id", "queue", "queue"),
}

#: Asked of all shards at once, as well.
EVERYWHERE = frozenset(
    {
        "check_invariants",
        "count_runs",
        "list_checkpoints",
        "list_gates",
        "list_runs",
        "measure",
        "next_ready",
        "ready_in",
    }
)

#: Volatile, but nothing that somebody would count on to be undone.
LOOKS = frozenset({"get_gate", "get_gate_secret", "measure", "read_events", "ready_in", "watch_run"})

#: Whom the log names where nobody is named: the shard would name the router.
WHO = ("actor", "created_by")

_FUNCTIONS = """
select p.proname::text, pg_get_function_arguments(p.oid), pg_get_function_result(p.oid), p.proretset,
  p.provolatile = 'v', array(
    select quote_ident(n.name) from unnest(p.proargnames[:p.pronargs]) with ordinality n (name, place)
    order by n.place),
  array(select format_type(t.type, null) from unnest(p.proargtypes) with ordinality t (type, place) order by t.place),
  p.prorows::int, t.typtype = 'c', p.prorettype = 'void'::regtype
from pg_proc p join pg_type t on t.oid = p.prorettype
where p.pronamespace = 'tidebase'::regnamespace and p.prokind = 'f'
order by p.proname collate "C"
"""


@dataclass(frozen=True)
class Function:
    """A function of the API, as the catalogue has it."""

    name: str
    arguments: str
    result: str
    returns_set: bool
    writes: bool
    names: list[str]
    types: list[str]
    rows: int
    returns_row: bool
    returns_nothing: bool

    @property
    def inner_arguments(self) -> str:
        """In PL/Proxy a word of the query that is a parameter's name is replaced: these names are nothing else's."""
        return ", ".join(["bucket integer", *(f"a{n} {kind}" for n, kind in enumerate(self.types, 1))])

    @property
    def places(self) -> str:
        return ", ".join(f"a{n}" for n in range(1, len(self.types) + 1))

    @property
    def passed(self) -> str:
        """The arguments, as they are passed on to a shard."""
        return ", ".join(
            f"coalesce({name}, tidebase_private.caller())" if name in WHO and self.writes else name
            for name in self.names
        )


def functions(connection: psycopg.Connection[Any]) -> list[Function]:
    """The functions of the API."""
    with connection.transaction():
        connection.execute("set local search_path = pg_catalog, pg_temp")
        rows = connection.execute(_FUNCTIONS).fetchall()
    return [Function(*row) for row in rows]


def written(connection: psycopg.Connection[Any], by_hand: str) -> str:
    """The SQL of all forwards; ``by_hand``: the text with those that are written by hand."""
    bodies = parts_of(by_hand)
    known = functions(connection)
    if unknown := bodies.keys() - {function.name for function in known}:
        raise TidebaseError(f"there is no function {sorted(unknown)[0]}, which is written by hand")
    return "\n".join(_forward(function, bodies.get(function.name)) for function in known if function.name not in LOCAL)


def parts_of(by_hand: str) -> dict[str, tuple[str, str]]:
    """By function: what it declares, and what it does."""
    parts = {}
    for part in by_hand.split("\n-- # ")[1:]:
        names, _, body = part.partition("\n")
        declared, _, rest = body.partition("begin\n")
        done, end, after = rest.rpartition("\nend")
        assert end and not after.strip(), f"the part of {names} does not end with end"
        for name in names.split(", "):
            parts[name] = (declared.rstrip("\n"), done)
    return parts


def _forward(function: Function, by_hand: tuple[str, str] | None) -> str:
    parts = [_inner(function, "on bucket", function.name)]
    if function.name in EVERYWHERE:
        parts.append(_inner(function, "on all", f"all_{function.name}"))
    declared, done = by_hand or _simple(function)
    done = done.replace("{function}", function.name).replace("{others}", ", ".join(function.names[1:]))
    parts.append(_outer(function, declared, done))
    return "\n".join(parts)


def _inner(function: Function, where: str, name: str) -> str:
    arguments = function.inner_arguments
    if where == "on all":
        arguments = arguments.removeprefix("bucket integer").removeprefix(", ")
    places = function.places
    if function.name == "decide_gate":  # whose word it is decides about it
        arguments = arguments.replace("bucket integer", "bucket integer, who jsonb")
        places = places.replace("a1", "case when tidebase_private.speak_for(who) then a1 end", 1)
    result = function.result
    if where == "on all" and not function.returns_set:
        result = f"setof {result}"
    return f"""
create function tidebase_router.{name}({arguments})
returns {result}
language plproxy
as $$
  cluster 'tidebase'; run {where};
  select a.* from tidebase.{function.name}({places}) a;
$$;"""


def _simple(function: Function) -> tuple[str, str]:
    """What a function declares and does that concerns one shard."""
    place = f"coalesce({PLACES[function.names[0]]}, 0)"
    if function.name == "decide_gate":
        place += ", tidebase_private.myself()"
    call = f"tidebase_router.{function.name}({place}, {function.passed})"
    declared, lines = "", []
    if function.name in TOGETHER:
        thing, name, other, beside = TOGETHER[function.name]
        lines.append(f"perform tidebase_router.require_together('{thing}', {name}, '{other}', {beside});")
    if function.writes and function.name not in LOOKS:
        lines.append("perform tidebase_router.require_alone();")
    if function.returns_set:
        lines.append(f"return query select a.* from {call} a;")
    elif function.returns_nothing:
        lines.append(f"perform {call};")
    elif function.returns_row:
        declared = f"  answer {function.result};"
        lines += [f"select a.* into answer from {call} a;", "return answer;"]
    else:
        lines.append(f"return {call};")
    return declared, "\n".join(f"  {line}" for line in lines)


def _outer(function: Function, declared: str, done: str) -> str:
    volatility = "volatile" if function.writes else "stable"
    rows = f" rows {function.rows}" if function.returns_set else ""
    declared = f"{declared}\n" if declared else ""
    return f"""
create or replace function tidebase.{function.name}({function.arguments})
returns {function.result}
language plpgsql {volatility} security definer{rows}
set search_path = pg_catalog, tidebase, pg_temp
set datestyle = 'ISO, MDY'
set intervalstyle = 'postgres'
set client_min_messages = 'warning'
as $$
#variable_conflict use_variable
declare
{declared}  its_state text;
  its_message text;
  its_details text;
  its_advice text;
begin
{done}
exception when others then
  get stacked diagnostics its_state = returned_sqlstate, its_message = message_text, its_details = pg_exception_detail,
    its_advice = pg_exception_hint;
  perform tidebase_router.raise_again(its_state, its_message, its_details, its_advice);
end
$$;"""
