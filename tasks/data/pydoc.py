"""Python's own documentation of its language: English text that every Python brings along.

Source: the module ``pydoc_data.topics``, which is what ``help("with")`` shows. It is another text in
another version of Python.
"""

import json
import re
from functools import cache
from hashlib import sha256
from pydoc_data.topics import topics

from robustlr.tasks.data.corpora import Parts
from robustlr.tasks.data.splits import split

REVISION = 1
"""To be raised by whoever changes what is made of the source."""

TELLING = 40
"""From how many characters on a paragraph that two topics share says that one contains the other."""


@cache
def corpus() -> Parts:
    """Return the documentation, a paragraph per line; of the characters, 90/5/5 % are in each part.

    Many topics are parts of larger ones: such topics are in one part, and a paragraph is there
    once. Lines that the source breaks are joined with a blank, those of code examples too.
    """
    # The largest first, so that a paragraph stays with what is before and after it.
    names = sorted(topics, key=lambda name: (-len(topics[name]), name))
    paragraphs = [_paragraphs(topics[name]) for name in names]
    keys = [[_key(line) for line in lines if len(line) >= TELLING] for lines in paragraphs]
    seen: set[str] = set()
    lines = [[line for line in own if _is_new(_key(line), seen)] for own in paragraphs]
    parts = split(keys, weights=[sum(map(len, own)) for own in lines])
    return {
        part: {"en": [line for index in indexes for line in lines[index]]}
        for part, indexes in parts.items()
    }


@cache
def version() -> str:
    """Return a name of the text that changes when its source or ``REVISION`` does."""
    source = json.dumps([REVISION, topics], sort_keys=True)
    return f"pydoc-{sha256(source.encode()).hexdigest()[:12]}"


def _paragraphs(text: str) -> list[str]:
    """Return paragraphs as lines, without the rules under headings and around tables."""
    kept = (line for line in text.split("\n") if not re.fullmatch(r"[ *=+~^|-]+", line))
    # "quote-" at the end of a line and "delimited" on the next are one word.
    joined = re.sub(r"(?<=\w-)\n[ ]*(?=\w)", "", "\n".join(kept))
    blocks = re.split(r"\n\s*\n", joined)
    return [line for line in (" ".join(block.split()) for block in blocks) if line]


def _key(line: str) -> str:
    """Return what two paragraphs have in common that differ in the number of a footnote alone."""
    return re.sub(r"\[\d+\]", "", line).strip()


def _is_new(key: str, seen: set[str]) -> bool:
    """Say whether a key is new, and remember it."""
    new = key not in seen
    seen.add(key)
    return new
