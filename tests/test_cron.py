"""Cron expressions in the database, compared with cronsim, which follows Debian's cron to the letter."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta, timezone
from typing import Any
from zoneinfo import ZoneInfo

import psycopg
import pytest
from cronsim import CronSim, CronSimError
from hypothesis import example, given, settings
from hypothesis import strategies as st

from .conftest import first_on_every_version, long
from .support import amounts

Db = psycopg.Connection[Any]
UTC = timezone.utc

#: Half hours, clocks put back at midnight, a day that was skipped, summer time interrupted by Ramadan ...
ZONES = [
    "UTC",
    "Europe/Berlin",
    "Europe/London",
    "Europe/Dublin",
    "Europe/Istanbul",
    "America/New_York",
    "America/St_Johns",
    "America/Sao_Paulo",
    "America/Santiago",
    "America/Havana",
    "America/Asuncion",
    "America/Caracas",
    "Africa/Casablanca",
    "Africa/Cairo",
    "Asia/Kolkata",
    "Asia/Tehran",
    "Asia/Beirut",
    "Asia/Gaza",
    "Australia/Lord_Howe",
    "Pacific/Apia",
    "Pacific/Auckland",
    "Antarctica/Troll",
]
#: A decade with all that.
BEGIN, END = datetime(2010, 1, 1, tzinfo=UTC), datetime(2020, 1, 1, tzinfo=UTC)

EXPRESSIONS = (
    "30 2 * * *",
    "0 0 * * *",
    "0,30 0-3 * * *",
    "15 1,2,3 1-7 * MON",
    "0 3 L * *",
    "59 23 LW * *",
    "0 12 * * 5L",
    "0 8 * * MON#2",
    "7 4 13 * FRI",
    "0 0 29 2 *",
    "0 */6 * * *",
    "45 * * * *",
    "*/20 1-3 * * *",
    "*/30 * 28-31 mar,OCT sun",
)


def ours(db: Db, expression: str, zone: str, after: datetime, n: int) -> list[datetime]:
    query = "select extract(epoch from f)::float8 from tidebase.next_fires(%s, %s, %s, %s) f"
    return [datetime.fromtimestamp(row[0], UTC) for row in db.execute(query, [expression, zone, after, n])]


def agree(db: Db, expression: str, zone: str, after: datetime, hours: int, n: int = 200) -> None:
    """The first n fires within so many hours are the same."""
    until = after + timedelta(hours=hours)
    expected = theirs(expression, zone, after, until)[:n]
    found = [moment for moment in ours(db, expression, zone, after, len(expected) + 1) if moment <= until][:n]
    assert found == expected, (expression, zone, after)


def theirs(expression: str, zone: str, after: datetime, until: datetime) -> list[datetime]:
    """As cronsim has it: a time of day by its own steps, but for moments that are over already; an interval by its
    fields, minute for minute, since its steps of an hour go astray where a day begins with a gap, or half an hour is
    missing.
    """
    there = ZoneInfo(zone)
    simulated = CronSim(expression, after.astimezone(there))
    if simulated.parts[1].startswith("*") or simulated.parts[2].startswith("*"):
        first = after.replace(second=0, microsecond=0) + timedelta(minutes=1)
        minutes = (first + timedelta(minutes=n) for n in range((until - first) // timedelta(minutes=1) + 1))
        return [moment for moment in minutes if _is_shown(simulated, moment.astimezone(there))]
    found: list[datetime] = []
    for local in simulated:
        moment = local.astimezone(UTC)
        if moment > until:
            break
        if moment > after:
            found.append(moment)
    return found


def _is_shown(simulated: CronSim, local: datetime) -> bool:
    fields = (local.minute in simulated.minutes, local.hour in simulated.hours, local.month in simulated.months)
    return all(fields) and simulated.match_day(local.date())


def changes(zone: str) -> list[datetime]:
    """When the clocks are changed in the decade, to the hour."""
    there, moment, found = ZoneInfo(zone), BEGIN, []
    while moment < END:
        after = moment + timedelta(hours=12)
        if moment.astimezone(there).utcoffset() != after.astimezone(there).utcoffset():
            while moment.astimezone(there).utcoffset() == (moment + timedelta(hours=1)).astimezone(there).utcoffset():
                moment += timedelta(hours=1)
            found.append(moment)
        moment = after
    return found


def agrees(db: Db, zone: str, moment: datetime) -> bool:
    """Whether the server's data about a time zone are Python's, around a moment."""
    for hours in range(-48, 49, 6):
        at = moment + timedelta(hours=hours)
        row = db.execute("select extract(epoch from (%s at time zone %s) - (%s at time zone 'UTC'))", [at, zone, at])
        offset = at.astimezone(ZoneInfo(zone)).utcoffset()
        if offset is None or float(row.fetchone()[0]) != offset.total_seconds():  # type: ignore[index]
            return False
    return True


@pytest.mark.parametrize("zone", first_on_every_version(ZONES))
def test_when_clocks_are_changed_it_fires_as_debians_cron_does(db: Db, zone: str) -> None:
    agree_when_clocks_are_changed(db, zone, amounts.CLOCK_CHANGES.test, (7, 26 * 60))


def agree_when_clocks_are_changed(db: Db, zone: str, most: int, minutes_before: Sequence[int]) -> None:
    """At the first changes of a zone's clocks, and so many minutes before, as if it had fired just then."""
    moments = [moment for moment in changes(zone) if agrees(db, zone, moment)]
    for moment in moments[:most] or [BEGIN]:
        for expression in EXPRESSIONS:
            for minutes in minutes_before:
                agree(db, expression, zone, moment - timedelta(minutes=minutes), 48, n=6)


@long
def test_ten_years_of_days(db: Db) -> None:
    for expression in EXPRESSIONS[:10]:
        agree(db, expression, "Europe/Berlin", BEGIN, 10 * 365 * 24)


def _field(lowest: int, highest: int, names: tuple[str, ...] = ()) -> st.SearchStrategy[str]:
    number = st.integers(lowest, highest).map(str)
    value = st.one_of(number, st.sampled_from(names)) if names else number
    # Of one number alone: cronsim takes 3-3/2 for 3/2.
    ends = st.lists(st.integers(lowest, highest), min_size=2, max_size=2, unique=True)
    span = ends.map(lambda p: f"{min(p)}-{max(p)}")
    step = st.tuples(st.one_of(st.just("*"), number, span), st.integers(1, 70)).map(lambda p: f"{p[0]}/{p[1]}")
    one = st.one_of(value, span, step)
    return st.one_of(st.just("*"), one, st.lists(one, min_size=2, max_size=4).map(",".join))


expressions = st.tuples(
    _field(0, 59),
    _field(0, 23),
    st.one_of(_field(1, 31), st.sampled_from(["L", "LW", "1,L", "*"])),
    _field(1, 12, ("jan", "Feb", "DEC")),
    st.one_of(_field(0, 7, ("sun", "Mon", "SAT")), st.sampled_from(["5L", "0#1", "mon#5", "7#2", "1,3#2", "*"])),
).map(" ".join)


#: From BEGIN to a moment of the decade.
MINUTES = st.integers(0, 10 * 365 * 24 * 60)


@settings(max_examples=amounts.CRON_EXPRESSIONS.test)
@given(expressions, st.sampled_from(ZONES), MINUTES)
@example("0 0 31 2,4 *", "UTC", 0)
@example("0 0 * * 1-5/2", "UTC", 0)
@long
def test_any_expression_fires_as_cronsim_says(db: Db, expression: str, zone: str, minutes: int) -> None:
    agree_about_any(db, expression, zone, minutes)


def agree_about_any(db: Db, expression: str, zone: str, minutes: int) -> None:
    """One that cronsim understands fires when it says; another one is refused."""
    after = BEGIN + timedelta(minutes=minutes)
    if not agrees(db, zone, after):
        return
    try:
        next(CronSim(expression, BEGIN))
    except (CronSimError, RuntimeError, StopIteration):
        with pytest.raises(psycopg.Error) as caught:
            ours(db, expression, zone, after, 3)
        assert caught.value.sqlstate == "TB002"
        return
    agree(db, expression, zone, after, 14 * 24, n=5)


@pytest.mark.parametrize(
    "expression",
    first_on_every_version(
        [
            "",
            " ",
            "* * * *",
            "* * * * * *",
            "60 * * * *",
            "* 24 * * *",
            "* * 0 * *",
            "* * * 13 *",
            "* * * * 8",
            "*/0 * * * *",
            "5-1 * * * *",
            "1--2 * * * *",
            "1,,2 * * * *",
            "٣ * * * *",
            "99999999999999 * * * *",
            "*/99999999999999 * * * *",
            "a * * * *",
            "* * * foo *",
            "0 0 31 2 *",
            "0 0 30 feb *",
            "* * L-3 * *",
            "* * * * 1#6",
            "* * * * L",
            "@reboot",
            "@",
            "'; drop table tidebase.runs; --",
            "x" * 10_000_000,
            "* " * 500,
        ]
    ),
)
def test_what_is_no_expression_is_refused_in_words(db: Db, expression: str) -> None:
    with pytest.raises(psycopg.Error) as caught:
        ours(db, expression, "UTC", BEGIN, 1)
    assert caught.value.sqlstate == "TB002"
    assert caught.value.diag.message_primary is not None and len(caught.value.diag.message_primary) < 200


@pytest.mark.parametrize("zone", ["", "Europe/Nowhere", "x" * 10_000, "'", "<+3>-3", "posixrules; --"])
def test_a_time_zone_that_nobody_knows_is_refused(db: Db, zone: str) -> None:
    with pytest.raises(psycopg.Error) as caught:
        ours(db, "* * * * *", zone, BEGIN, 1)
    assert caught.value.sqlstate == "TB002"


@pytest.mark.parametrize("after", ["infinity", "-infinity", "294276-12-31", "4713-01-01 BC"])
def test_the_ends_of_time_are_refused(db: Db, after: str) -> None:
    with pytest.raises(psycopg.Error) as caught:
        db.execute("select tidebase.next_fires('* * * * *', 'UTC', %s::timestamptz)", [after]).fetchall()
    assert caught.value.sqlstate == "TB002"
