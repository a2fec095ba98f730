"""English and German phrases that mean the same, from tables that the packages bring along.

Source: Unicode's Common Locale Data Repository (CLDR) as Babel has it, and num2words; how pairs are
made of them is in ``cldr_amounts`` and ``cldr_names``.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from importlib.metadata import version as version_of
from itertools import islice
from zlib import crc32

from numpy.random import RandomState

from robustlr.tasks.data import cldr_amounts, cldr_names
from robustlr.tasks.data.corpora import Parts
from robustlr.tasks.data.splits import Pair, split_pairs

REVISION = 2
"""To be raised with every change of the rules here, or in those two modules, that changes a pair."""


def corpus() -> Parts:
    """Return about 59,000 pairs; of every kind 90/5/5 %, and no sentence in two of the parts.

    It is one to one: no sentence, of either language, has two translations.
    """
    labelled = [(pair, kind) for kind, pairs in pairs_by_kind().items() for pair in pairs]
    return split_pairs([pair for pair, _ in labelled], [kind for _, kind in labelled])


def version() -> str:
    """Return a name of the text that changes when the text does."""
    return f"cldr-{REVISION}-babel-{version_of('babel')}-num2words-{version_of('num2words')}"


@cache
def pairs_by_kind() -> Mapping[str, Sequence[Pair]]:
    """Return the pairs of every kind; one of whose sentences an earlier pair has is left out."""
    seen: tuple[set[str], set[str]] = (set(), set())
    pairs = {kind: list(_new(names(), seen)) for kind, names in cldr_names.NAMES.items()}
    for kind, (draw, count) in {**cldr_amounts.DRAWN, **cldr_names.DRAWN}.items():
        # A seed for each kind: to add another leaves this one's pairs alone.
        drawn = draw(RandomState(crc32(kind.encode())))
        # An end to the tries, should a kind have fewer pairs than that.
        pairs[kind] = list(islice(_new(islice(drawn, 5 * count), seen), count))
    return pairs


def _new(pairs: Iterable[Pair], seen: tuple[set[str], set[str]]) -> Iterator[Pair]:
    """Yield the pairs with two sentences that were not seen, with ordinary blanks only."""
    for pair in pairs:
        # CLDR has narrow and unbreakable blanks.
        english, german = (" ".join(sentence.split()) for sentence in pair)
        if english not in seen[0] and german not in seen[1]:
            seen[0].add(english)
            seen[1].add(german)
            yield english, german
