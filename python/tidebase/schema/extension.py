"""The schema as an extension of Postgres: its files are made out of the same migrations and functions.

``python -m tidebase.schema.extension FOLDER`` writes them: the control file, a script that installs, one that takes
over what ``tidebase migrate`` has made, update scripts from each earlier state, PGXN's ``META.json``, and a script for
platforms that only offer pg_tle. A version of the extension is the number of the newest migration in it.
"""

from __future__ import annotations

import argparse
import json
from importlib import metadata
from pathlib import Path

from ..mixture import OURS
from . import ownership
from .migrations import ABOUT, function_files, migration_files, package_checksum
from .migrations import checksum as checksum_of

COMMENT = "Durable checkpoints for agents: runs, steps, gates, state and an ordered log"

#: The version that stands for what `tidebase migrate` has made, to be taken over.
MIGRATED = "migrated"

_HEAD = """\\echo Use "create extension tidebase" to load this file. \\quit

set local check_function_bodies = off;
set local standard_conforming_strings = on;
set local search_path = pg_catalog, pg_temp;
"""

_SCHEMAS = """
create schema tidebase;
create schema tidebase_private;
comment on schema tidebase is 'Tidebase: durable checkpoints for agents. Functions and views are the API.';
"""

#: The roles are made where the user may; else everything is the installer's, as with `tidebase migrate`.
_ROLES = """
do $roles$
begin
  perform tidebase_private.install_roles();
exception when insufficient_privilege then
  perform tidebase_private.apply_privileges();
  raise notice 'the roles were not made (%): for now only the installer may use Tidebase', sqlerrm;
end
$roles$;
"""

#: What a dump takes along. Rows that an installation makes by itself would meet those of the dump: they are made when
#: they are needed.
_DUMPED = """
delete from tidebase_private.gate_key;
delete from tidebase_private.incarnation;
"""
_REGISTERED = """
do $registered$
declare
  name regclass;
begin
  for name in
    select c.oid from pg_class c
    where c.relkind = 'r' and (c.relnamespace = 'tidebase'::regnamespace
      or c.oid in ('tidebase_private.settings'::regclass, 'tidebase_private.gate_key'::regclass,
        'tidebase_private.incarnation'::regclass))
  loop
    perform pg_extension_config_dump(name, '');
  end loop;
end
$registered$;
"""

_ADOPT = """
-- What `tidebase migrate` has made becomes the extension's.
do $adopt$
declare
  newest text;
  thing text;
begin
  if to_regclass('tidebase_private._yoyo_migration') is null then
    raise exception 'there is nothing that tidebase migrate has made' using hint = 'create extension tidebase';
  end if;
  select max(m.migration_id) into newest from tidebase_private._yoyo_migration m;
  if left(newest, 4) <> '{number}' then
    raise exception 'the schema is at %, not at {number}', newest
      using hint = format('create extension tidebase version %L', left(newest, 4));
  end if;
  for thing in
    select format('schema %I', n.nspname) from pg_namespace n where n.nspname in ('tidebase', 'tidebase_private')
    union all
    select format('%s %s', case c.relkind when 'v' then 'view' when 'c' then 'type' else 'table' end, c.oid::regclass)
    from pg_class c
    where c.relnamespace in ('tidebase'::regnamespace, 'tidebase_private'::regnamespace)
      and c.relkind in ('r', 'v', 'c')
    union all
    select format('sequence %s', c.oid::regclass)
    from pg_class c
    where c.relnamespace in ('tidebase'::regnamespace, 'tidebase_private'::regnamespace) and c.relkind = 'S'
      and not exists (select from pg_depend d where d.objid = c.oid and d.deptype in ('a', 'i'))
    union all
    select format('function %s', p.oid::regprocedure)
    from pg_proc p where p.pronamespace in ('tidebase'::regnamespace, 'tidebase_private'::regnamespace)
  loop
    execute 'alter extension tidebase add ' || thing;
  end loop;
end
$adopt$;
"""


def versions() -> list[str]:
    """The numbers of the migrations that the extension may be at, oldest first; nobody was ever at the first alone."""
    return [name[:4] for name in migration_files()][1:]


def control() -> str:
    """The control file (PostgreSQL manual, section 38.17.1)."""
    return (
        f"comment = '{COMMENT}'\ndefault_version = '{versions()[-1]}'\nrelocatable = false\n"
        "superuser = false\nschema = pg_catalog\n"
    )


def _guard() -> str:
    """A superuser runs nothing of strangers, and hands nothing over to them."""
    return ownership.guard_sql("tidebase_owner")


def install_script() -> str:
    """Installs the newest version."""
    return (
        _HEAD
        + _guard()
        + _SCHEMAS
        + "\n".join(migration_files().values())
        + _functions()
        + _ROLES
        + _DUMPED
        + _REGISTERED
    )


def adopt_script(number: str) -> str:
    """Takes over a schema that ``tidebase migrate`` has brought to this migration."""
    return _HEAD + _guard() + _ADOPT.format(number=number)


def update_script(number: str) -> str:
    """From this migration to the newest."""
    later = [text for name, text in migration_files().items() if name[:4] > number]
    return _HEAD + _guard() + "\n".join(later) + _functions() + _ROLES + _REGISTERED


def _functions() -> str:
    """All function files, and the record of them."""
    files = function_files()
    rows = ",\n  ".join(f"('{name}', '{checksum_of(content)}')" for name, content in files.items())
    noted = json.dumps({"roles": "tidebase", "files": package_checksum()})
    return (
        "\ntruncate tidebase_private.privileges;\ndelete from tidebase_private.function_files;\n"
        + "\n".join(files.values())
        + f"\ninsert into tidebase_private.function_files (name, checksum) values\n  {rows};\n"
        + f"comment on schema tidebase_private is '{ABOUT}\n{noted}';\n"
    )


def scripts() -> dict[str, str]:
    """Every SQL file of the extension, by its name."""
    *earlier, newest = versions()
    made = {f"tidebase--{newest}.sql": install_script(), f"tidebase--{MIGRATED}.sql": adopt_script(newest)}
    made[f"tidebase--{MIGRATED}--{newest}.sql"] = _HEAD + _guard() + _REGISTERED
    for number in earlier:
        made[f"tidebase--{number}.sql"] = adopt_script(number)
        made[f"tidebase--{number}--{newest}.sql"] = update_script(number)
    return made


def tle_script() -> str:
    """Registers the extension with pg_tle (https://github.com/aws/pg_tle), for platforms without a file system."""

    def quoted(text: str) -> str:
        body = "\n".join(line for line in text.splitlines() if not line.startswith("\\echo"))
        return f"$_tidebase_tle_${body}$_tidebase_tle_$"

    newest = versions()[-1]
    made = scripts()
    lines = [
        "-- For platforms that offer pg_tle: run it with the role pgtle_admin, then: create extension tidebase;",
        f"select pgtle.install_extension('tidebase', '{newest}', '{COMMENT}',\n"
        f"{quoted(made[f'tidebase--{newest}.sql'])});",
    ]
    for name, text in made.items():
        parts = name.removesuffix(".sql").split("--")[1:]
        if len(parts) == 1 and parts[0] != newest:
            lines.append(f"select pgtle.install_extension_version_sql('tidebase', '{parts[0]}',\n{quoted(text)});")
        elif len(parts) == 2:
            lines.append(f"select pgtle.install_update_path('tidebase', '{parts[0]}', '{parts[1]}',\n{quoted(text)});")
    return "\n".join([*lines, f"select pgtle.set_default_version('tidebase', '{newest}');", ""])


def meta(version: str) -> str:
    """``META.json`` of the PostgreSQL Extension Network (PGXN Meta Spec 1.0.0)."""
    newest = versions()[-1]
    return json.dumps(
        {
            "name": "tidebase",
            "abstract": COMMENT,
            "version": version,
            "maintainer": "The Tidebase authors",
            "license": "apache_2_0",
            "prereqs": {"runtime": {"requires": {"PostgreSQL": "15.0.0"}}},
            "provides": {"tidebase": {"file": f"tidebase--{newest}.sql", "version": version, "abstract": COMMENT}},
            "meta-spec": {"version": "1.0.0", "url": "https://pgxn.org/meta/spec.txt"},
        },
        indent=2,
    )


def build(folder: Path, version: str) -> list[Path]:
    """Writes all files into a folder, which is made, and returns them."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {
        "tidebase.control": control(),
        "META.json": meta(version) + "\n",
        "tidebase.pg_tle.sql": tle_script(),
        **scripts(),
    }
    for name, text in files.items():
        (folder / name).write_text(text, "utf-8")
    return [folder / name for name in files]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path, help="where the files go; `pg_config --sharedir`/extension installs them")
    for path in build(parser.parse_args().folder, metadata.version(OURS)):
        print(path)


if __name__ == "__main__":
    main()
