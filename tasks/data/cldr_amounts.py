"""Amounts in English and German: numbers, measures, durations and money, in words and digits.

Source: Unicode's Common Locale Data Repository (CLDR) as Babel has it, for units and money;
num2words for numbers in words. Both sides of every pair are theirs: nothing is translated here.
What is drawn at random has no end, and repeats itself.
"""

import datetime as dt
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from decimal import Decimal
from functools import cache
from typing import Any, Literal, TypeVar

from babel import Locale, dates, lists, numbers, units
from num2words import num2words
from numpy.random import RandomState

from robustlr.tasks.data.splits import Pair

T = TypeVar("T")

EN, DE = Locale("en"), Locale("de")

Drawn = Mapping[str, tuple[Callable[[RandomState], Iterator[Pair]], int]]
"""By kind, the pairs without end, at random, and how many of them to take."""

CLUMSY_UNITS = frozenset(
    {
        "length-earth-radius",  # "2 earth radius"
        "length-mile-scandinavian",  # "2 miles-scandinavian"
        "torque-pound-force-foot",  # "2 pound-force-feet", and "2 Foot-pound" in German
        "temperature-generic",  # "2 degrees temperature"
        "concentr-permyriad",
        "energy-foodcalorie",  # "2 Calories", which German calls "2 Kilokalorien" too
        "speed-beaufort",  # there are only twelve, and no decimals
    }
)
"""Units that CLDR has only words for that nobody would say, in one of the languages."""

METALS = frozenset({"XAG", "XAU", "XPD", "XPT"})
"""Currencies that English calls by the metal, German by an ounce of it."""


def both(render: Callable[..., str | None], *args: Any, **options: Any) -> Pair:
    """Return what one of Babel's functions makes of its arguments in English and in German."""
    return str(render(*args, locale=EN, **options)), str(render(*args, locale=DE, **options))


@cache
def _words(number: int, to: str = "cardinal") -> Pair:
    return num2words(number, lang="en", to=to), num2words(number, lang="de", to=to)


def _in_words(pair: Pair, number: int) -> Pair:
    """Return a pair with ``number``, which both sentences have as digits, in words."""
    english, german = _words(number)
    # Once: others may follow, such as "per 100 kilometers".
    digits = str(number)
    return pair[0].replace(digits, english, 1), pair[1].replace(digits, german, 1)


def enumerated(pairs: Iterable[Pair], style: Literal["standard", "or"]) -> Pair:
    """Return such as "Monday, Tuesday, and Friday"."""
    english, german = zip(*pairs, strict=True)
    return (
        lists.format_list(english, style, locale=EN),
        lists.format_list(german, style, locale=DE),
    )


def pick(random: RandomState, items: Sequence[T]) -> T:
    """Return one of the items, all of them as likely."""
    return items[random.randint(len(items))]


# Numbers


def _sayable(random: RandomState, below: int = 10**7) -> Iterator[int]:
    """Yield numbers of all lengths alike that num2words writes right in German."""
    while True:
        number = int(below ** random.rand())
        # It writes "einhunderteinstausend" where "einhunderteintausend" is right.
        if number < 2000 or number // 1000 % 100 != 1:
            yield number


def _plurals(random: RandomState) -> Iterator[int]:
    """Yield numbers that can stand before a noun as they are: "einhunderteins" cannot."""
    while True:
        number = int(random.randint(2, pick(random, (20, 100, 100, 1000))))
        if number % 100 != 1:
            yield number


def _decimals(random: RandomState) -> Iterator[Decimal]:
    """Yield numbers above one, some of them whole."""
    while True:
        whole = int(2 * 5000 ** random.rand())
        yield Decimal(whole) + Decimal(pick(random, (0, 0, random.randint(1, 10)))) / 10


def _cardinals(random: RandomState) -> Iterator[Pair]:
    yield from map(_words, range(2000))
    yield from map(_words, _sayable(random))


def _ordinals(random: RandomState) -> Iterator[Pair]:
    yield from (_words(number, "ordinal") for number in range(1, 1000))
    # From a million on num2words writes them in several words.
    yield from (_words(number, "ordinal") for number in _sayable(random, 10**6))


def _years(random: RandomState) -> Iterator[Pair]:
    # German reads those from 2000 on as any other number.
    yield from (_words(number, "year") for number in range(1100, 2000))


def _numerals(random: RandomState) -> Iterator[Pair]:
    """Yield English numerals with the number in German words.

    Not the other way round as well: of English words nothing would tell whether words or a numeral
    translate them.
    """
    for number in _sayable(random):
        yield numbers.format_decimal(number, locale="en"), _words(number)[1]


def _spoken_decimals(random: RandomState) -> Iterator[Pair]:
    while True:
        value = str(Decimal(random.randint(1, 10**4)) / pick(random, (10, 100)))
        yield num2words(value, lang="en"), num2words(value, lang="de")


def _written_decimals(random: RandomState) -> Iterator[Pair]:
    while True:
        value = Decimal(int(10 ** random.uniform(1, 9))) / 100
        yield both(numbers.format_decimal, value * pick(random, (1, 1, -1)))


def _percentages(random: RandomState) -> Iterator[Pair]:
    while True:
        value = Decimal(random.randint(1, 2000)) / 1000
        yield both(numbers.format_percent, value, decimal_quantization=False)


def _large_numbers(random: RandomState) -> Iterator[Pair]:
    """Yield such as "1.2 billion" and "1,2 Milliarden"."""
    while True:
        value = Decimal(random.randint(11, 10**4)) / 10 * 1000 ** pick(random, (1, 2, 3, 4))
        yield both(numbers.format_compact_decimal, value, format_type="long", fraction_digits=1)


# Units and money


@cache
def _units(prefix: str = "") -> list[str]:
    """Return the units that both languages have words for."""
    names = sorted((EN.unit_display_names.keys() & DE.unit_display_names.keys()) - CLUMSY_UNITS)
    # Babel writes the unit's own name where a language has none.
    spoken = [unit for unit in names if not any(unit in text for text in _amount(2, unit))]
    return [unit for unit in spoken if unit.startswith(prefix)]


def _amount(value: Decimal | int, unit: str) -> Pair:
    return both(units.format_unit, value, unit, length="long")


def _measures(random: RandomState) -> Iterator[Pair]:
    yield from (_amount(1, unit) for unit in _units())
    yield from (_amount(value, pick(random, _units())) for value in _decimals(random))


def _spoken_measures(random: RandomState) -> Iterator[Pair]:
    for value in _plurals(random):
        yield _in_words(_amount(value, pick(random, _units())), value)


def _rates(random: RandomState) -> Iterator[Pair]:
    """Yield such as "20 liters per hour"."""
    above = _units("digital") + _units("energy") + _units("mass") + _units("volume")
    below = ["duration-second", "duration-minute", "duration-hour", "duration-day"]
    for value in _decimals(random):
        per = pick(random, below)
        yield both(units.format_compound_unit, value, pick(random, above), denominator_unit=per)


def _durations(random: RandomState) -> Iterator[Pair]:
    """Yield such as "3 days and 5 hours", half of them with the numbers in words."""
    steps = ["year", "month", "week", "day", "hour", "minute", "second"]
    for value in _plurals(random):
        place, smaller, spoken = random.randint(6), int(random.randint(2, 30)), random.randint(2)
        amounts = [
            _in_words(amount, number) if spoken else amount
            for number, step in zip((value, smaller), steps[place:], strict=False)
            for amount in [_amount(number, f"duration-{step}")]
        ]
        yield enumerated(amounts, "standard")


def _relative_times(random: RandomState) -> Iterator[Pair]:
    """Yield such as "in 3 weeks" and "three weeks ago"."""
    seconds = dict(dates.TIMEDELTA_UNITS)
    for value in _plurals(random):
        step = pick(random, ("year", "month", "week", "day", "hour", "minute", "second"))
        delta = dt.timedelta(seconds=value * seconds[step]) * pick(random, (1, -1))
        options = {"granularity": step, "threshold": 10**9, "add_direction": True}
        pair = both(dates.format_timedelta, delta, **options)
        yield _in_words(pair, value) if random.randint(2) else pair


@cache
def _currencies() -> list[str]:
    """Return currencies, also former ones, of which both languages have the plural."""
    codes = sorted((EN.currencies.keys() & DE.currencies.keys()) - METALS)
    names = {code: both(numbers.get_currency_name, code, 2) for code in codes}
    # A German name of several words that is its own plural has none: its adjective would change.
    inflected = (
        code
        for code, (_, german) in names.items()
        if " " not in german or german != DE.currencies[code]
    )
    return [code for code in inflected if not any("(" in name for name in names[code])]


def _money(random: RandomState) -> Iterator[Pair]:
    for value in _decimals(random):
        kind = pick(random, ("name", "name", "standard"))
        yield both(numbers.format_currency, value, pick(random, _currencies()), format_type=kind)


def _spoken_money(random: RandomState) -> Iterator[Pair]:
    for value in _plurals(random):
        # num2words has cents of these, and takes whole numbers as cents.
        currency, cents = pick(random, ("EUR", "USD")), 100 * value + random.randint(2, 100)
        english, german = (
            num2words(int(cents), lang=language, to="currency", currency=currency)
            for language in ("en", "de")
        )
        yield english, german
        options = {"format": "#,##0", "format_type": "name", "currency_digits": False}
        amount = both(numbers.format_currency, value, pick(random, _currencies()), **options)
        yield _in_words(amount, value)


DRAWN: Drawn = {
    "cardinals": (_cardinals, 5_000),
    "ordinals": (_ordinals, 3_000),
    "years": (_years, 900),
    "numerals": (_numerals, 4_000),
    "spoken decimals": (_spoken_decimals, 2_000),
    "written decimals": (_written_decimals, 1_000),
    "percentages": (_percentages, 500),
    "large numbers": (_large_numbers, 1_500),
    "measures": (_measures, 4_000),
    "spoken measures": (_spoken_measures, 4_000),
    "rates": (_rates, 1_500),
    "durations": (_durations, 1_500),
    "relative times": (_relative_times, 1_000),
    "money": (_money, 3_000),
    "spoken money": (_spoken_money, 2_500),
}
"""How to draw each kind, and how many pairs of it make the corpus."""
