"""Dates and names in English and German, and lists of names.

Source: Unicode's Common Locale Data Repository (CLDR) as Babel has it, on both sides.
"""

import datetime as dt
import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Literal

from babel import Locale, dates
from babel.localedata import locale_identifiers
from numpy.random import RandomState

from robustlr.tasks.data.cldr_amounts import DE, EN, METALS, Drawn, both, enumerated, pick
from robustlr.tasks.data.splits import Pair

YEAR = re.compile(r"\d{4}")


# Dates


def _day(random: RandomState) -> dt.date:
    return dt.date(1900, 1, 1) + dt.timedelta(days=int(random.randint(200 * 365)))


def _moment(random: RandomState) -> dt.datetime:
    return dt.datetime.combine(_day(random), dt.time()) + dt.timedelta(
        seconds=int(random.randint(24 * 60 * 60))
    )


def _days(random: RandomState) -> Iterator[Pair]:
    while True:
        form = pick(random, ("full", "full", "long", "long", "medium", "short"))
        yield both(dates.format_date, _day(random), format=form)


def _parts_of_dates(random: RandomState) -> Iterator[Pair]:
    """Yield dates without a year, or a day, or with an abridged weekday."""
    while True:
        skeleton = pick(random, ("MMMMd", "yMMMM", "yMMMM", "yQQQQ", "GyMMM", "MMMEd", "yMMMEd"))
        yield both(dates.format_skeleton, skeleton, _moment(random))


def _intervals(random: RandomState) -> Iterator[Pair]:
    while True:
        start = _day(random)
        end = start + dt.timedelta(days=int(random.randint(1, pick(random, (20, 200, 800)))))
        yield both(dates.format_interval, start, end, pick(random, ("yMMMd", "yMMMEd", "yMMMM")))


def _times(random: RandomState) -> Iterator[Pair]:
    while True:
        form = pick(random, ("short", "medium", "medium"))
        yield both(dates.format_time, _moment(random), format=form)


def _moments(random: RandomState) -> Iterator[Pair]:
    while True:
        date, form = _moment(random), pick(random, ("full", "long"))
        day, time = (
            both(dates.format_date, date, format=form),
            both(dates.format_time, date, format="short"),
        )
        yield f"{day[0]}, {time[0]}", f"{day[1]}, {time[1]}"


# Names


def _names(table: str) -> list[Pair]:
    """Return what both languages call the codes of a table, such as "territories"."""
    english, german = getattr(EN, table), getattr(DE, table)
    codes = sorted((english.keys() & german.keys()) - METALS)
    # One language may have a currency's years that the other lacks, or has otherwise.
    same = [code for code in codes if YEAR.findall(english[code]) == YEAR.findall(german[code])]
    return [(english[code], german[code]) for code in same]


def _locales() -> list[Pair]:
    """Return such as "French (Canada)" and "Französisch (Kanada)"."""
    locales = [Locale.parse(name) for name in sorted(locale_identifiers()) if "_" in name]
    return [
        (str(locale.get_display_name(EN)), str(locale.get_display_name(DE)))
        for locale in locales
        if not locale.variant
    ]


def _zones() -> list[Pair]:
    """Return the names of zones' times, summer times and so on, and of cities."""
    english, german = EN.meta_zones, DE.meta_zones
    pairs = [
        (str(name), str(german[zone]["long"][season]))
        for zone in sorted(english.keys() & german.keys())
        for season, name in english[zone].get("long", {}).items()
        if season in german[zone].get("long", {})
    ]
    one, other = EN.time_zones, DE.time_zones
    return pairs + [
        (one[zone]["city"], other[zone]["city"])
        for zone in sorted(one.keys() & other.keys())
        if "city" in one[zone] and "city" in other[zone]
    ]


def _calendar() -> list[Pair]:
    """Return the months, weekdays and quarters."""
    tables = [(EN.months, DE.months), (EN.days, DE.days), (EN.quarters, DE.quarters)]
    return [
        (english["format"]["wide"][number], german["format"]["wide"][number])
        for english, german in tables
        for number in sorted(english["format"]["wide"])
    ]


def _enumerations(table: str, random: RandomState) -> Iterator[Pair]:
    """Yield lists of two to four of the names of a table, with "and" or "or"."""
    # A name with a comma or a bracket could be read as several.
    names = [pair for pair in NAMES[table]() if not any({*",("} & {*name} for name in pair)]
    while True:
        # Without what was drawn twice, but in the order drawn.
        chosen = dict.fromkeys(random.randint(len(names), size=random.randint(2, 5)).tolist())
        if len(chosen) > 1:
            style: Literal["standard", "or"] = pick(random, ("standard", "standard", "or"))
            yield enumerated([names[place] for place in chosen], style)


NAMES: Mapping[str, Callable[[], list[Pair]]] = {
    "territories": partial(_names, "territories"),
    "languages": partial(_names, "languages"),
    "scripts": partial(_names, "scripts"),
    "currencies": partial(_names, "currencies"),
    "locales": _locales,
    "zones": _zones,
    "calendar": _calendar,
}
"""Names that both languages have, by kind: all there are."""

DRAWN: Drawn = {
    "days": (_days, 5_000),
    "parts of dates": (_parts_of_dates, 2_000),
    "intervals": (_intervals, 2_000),
    "times": (_times, 1_000),
    "moments": (_moments, 2_000),
    "lists of territories": (partial(_enumerations, "territories"), 4_000),
    "lists of languages": (partial(_enumerations, "languages"), 2_000),
    "lists of currencies": (partial(_enumerations, "currencies"), 1_000),
    "lists of zones": (partial(_enumerations, "zones"), 1_000),
    "lists of months and days": (partial(_enumerations, "calendar"), 1_000),
}
"""How to draw the other kinds, and how many pairs of each make the corpus."""
