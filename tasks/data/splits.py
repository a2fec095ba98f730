"""Cuts a corpus into training, validation and test parts that share no sentence."""

from collections import Counter
from collections.abc import Hashable, Iterable, Sequence

from numpy.random import RandomState

from robustlr.tasks.data.corpora import Parts

Pair = tuple[str, str]
"""A sentence in English and its translation into German."""

HELD_OUT = {"validation": 0.05, "test": 0.05}


def split(
    keys: Sequence[Iterable[Hashable]],
    weights: Sequence[int] | None = None,
    kinds: Sequence[Hashable] | None = None,
) -> dict[str, list[int]]:
    """Return the indexes of the items of each part: no key of an item is a key in another part.

    Validation and test have up to 5 % of the items each, or of their ``weights``, and so of every
    kind; items that are linked by their keys into a group too large for that are for training.
    The order is at random, with a fixed seed.
    """
    weights = [1] * len(keys) if weights is None else weights
    kinds = [None] * len(keys) if kinds is None else kinds
    whole = _amounts(range(len(keys)), weights, kinds)
    room = {
        part: {kind: int(share * amount) for kind, amount in whole.items()}
        for part, share in HELD_OUT.items()
    }
    parts: dict[str, list[int]] = {"train": [], **{part: [] for part in room}}
    groups = linked(keys)
    # RandomState: its numbers are the same in every version of NumPy.
    for number in RandomState(0).permutation(len(groups)):
        group = groups[number]
        amounts = _amounts(group, weights, kinds)
        chosen = "train"
        for part, left in room.items():
            if all(left[kind] >= amount for kind, amount in amounts.items()):
                chosen = part
                for kind, amount in amounts.items():
                    left[kind] -= amount
                break
        parts[chosen] += group
    return parts


def split_pairs(pairs: Sequence[Pair], kinds: Sequence[Hashable] | None = None) -> Parts:
    """Return pairs as parts that share no sentence of either language; of every kind 90/5/5 %."""
    keys = [(("en", english), ("de", german)) for english, german in pairs]
    return {
        part: {
            "en": [pairs[index][0] for index in indexes],
            "de": [pairs[index][1] for index in indexes],
        }
        for part, indexes in split(keys, kinds=kinds).items()
    }


def linked(keys: Sequence[Iterable[Hashable]]) -> list[list[int]]:
    """Return the connected components of items that share a key, in order of first appearance."""
    parent = list(range(len(keys)))

    def root(index: int) -> int:
        while parent[index] != index:
            parent[index] = parent[parent[index]]  # shortens the way for the next who asks
            index = parent[index]
        return index

    first: dict[Hashable, int] = {}
    for index, own in enumerate(keys):
        for key in own:
            one, other = root(first.setdefault(key, index)), root(index)
            parent[max(one, other)] = min(one, other)
    groups: dict[int, list[int]] = {}
    for index in range(len(keys)):
        groups.setdefault(root(index), []).append(index)
    return list(groups.values())


def _amounts(
    indexes: Iterable[int], weights: Sequence[int], kinds: Sequence[Hashable]
) -> Counter[Hashable]:
    """Return the weight of some items, by kind."""
    amounts: Counter[Hashable] = Counter()
    for index in indexes:
        amounts[kinds[index]] += weights[index]
    return amounts
