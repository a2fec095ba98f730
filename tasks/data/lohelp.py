"""LibreOffice's help in English and German: real sentences, and their published translations.

Source: the Debian packages libreoffice-help-en-us and libreoffice-help-de (MPL-2.0), which install a
page of HTML per topic and language. A page has the same name in both languages and a paragraph the
same id, so that what is a translation of what need not be guessed.
"""

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path

from robustlr.errors import UnavailableError
from robustlr.tasks.data.corpora import Parts
from robustlr.tasks.data.splits import Pair, split_pairs

PACKAGED = Path("/usr/share/libreoffice/help")
"""Where the packages have their files."""

PACKAGES = "Debian's packages libreoffice-help-en-us and libreoffice-help-de"

BLOCKS = frozenset({"h1", "h2", "h3", "h4", "h5", "h6", "p"})
"""The elements that are a paragraph, if they have an id; others are copies of another page's."""


def help_folder() -> Path:
    """Return the folder of the help: ROBUSTLR_LOHELP, or where Debian installs it."""
    chosen = os.environ.get("ROBUSTLR_LOHELP")
    return Path(chosen).expanduser() if chosen else PACKAGED


def corpus(folder: Path) -> Parts:
    """Return the paragraphs of the help, of 90/5/5 %; no sentence is in two of the parts.

    ``folder`` holds the folders "en-US" and "de", as the packages install them. What is the same in
    both languages is left out, and a pair is there once; a sentence can have several translations.

    Raises:
        UnavailableError: the folder has not the help, or a page of it is damaged.
    """
    pages = _pages(folder / "en-US"), _pages(folder / "de")
    pairs = [
        pair
        for name in sorted(pages[0].keys() & pages[1].keys())
        for pair in _aligned(pages[0][name], pages[1][name])
    ]
    if not pairs:
        raise UnavailableError(
            f"{folder} has no paragraph in both English and German: "
            f"replace it by the files of {PACKAGES}, or set ROBUSTLR_LOHELP to where they are."
        )
    return split_pairs(list(dict.fromkeys(pairs)))


def _pages(folder: Path) -> dict[str, Path]:
    """Return the pages of a language by name."""
    try:
        pages = {str(page.relative_to(folder)): page for page in folder.glob("text/**/*.html")}
    except OSError:
        pages = {}
    if not pages:
        raise UnavailableError(
            f"{folder} has no help of LibreOffice's: install {PACKAGES}, "
            f"or set ROBUSTLR_LOHELP to the folder that has their en-US and de."
        )
    return pages


def _aligned(english: Path, german: Path) -> Iterator[Pair]:
    """Yield the paragraphs that two pages both have, unless they are the same in both."""
    ours, theirs = _paragraphs(english), _paragraphs(german)
    for key, text in ours.items():
        translation = theirs.get(key, "")
        if text and translation and text != translation:
            yield text, translation


def _paragraphs(page: Path) -> dict[str, str]:
    """Return the texts of a page by id; an id that it has twice does not tell which is which."""
    try:
        content = page.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise _damaged(page, str(error)) from error
    start, end = content.find('id="DisplayArea"'), content.rfind('<div id="SearchFrame"')
    if start < 0 or end < start:
        raise _damaged(page, "it does not begin and end as a page of the help")
    parser = _Paragraphs()
    # What is around it are menus, the same on every page.
    parser.feed(content[content.rfind("<", 0, start) : end])
    parser.close()
    return {key: text for key, text in parser.texts.items() if parser.times[key] == 1}


@dataclass
class _Span:
    """What was read of an inline element: its text, or the texts of which one is to be shown."""

    name: str = ""
    classes: str = ""
    text: str = ""
    options: dict[str, str] = field(default_factory=dict)

    def shown(self) -> str:
        """Return the text; of some for several systems or programs that for the others."""
        default = (text for name, text in self.options.items() if name.startswith("default"))
        return self.text + next(default, next(iter(self.options.values()), ""))


class _Paragraphs(HTMLParser):
    """Reads the text of every paragraph that has an id."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: dict[str, str] = {}
        self.times: Counter[str] = Counter()
        self._block = ""
        self._open: list[_Span] = []  # the paragraph and the spans in it that are being read

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Begin a paragraph or a span of it."""
        facts = {name: value or "" for name, value in attrs}
        span = _Span(facts.get("id", ""), facts.get("class", ""))
        if tag in BLOCKS and span.name:
            self._block, self._open = tag, [span]
        elif self._open and tag == "span":
            self._open.append(span)
        elif self._open and tag == "br":
            self.handle_data(" ")

    def handle_endtag(self, tag: str) -> None:
        """End a paragraph or a span of it."""
        if self._open and tag == self._block:
            while len(self._open) > 1:
                self._close_span()
            (block,) = self._open
            self._open = []
            self.times[block.name] += 1
            if "code" not in block.classes:
                text = block.shown().replace("\xad", "")  # soft hyphens
                self.texts[block.name] = " ".join(text.split())
        elif len(self._open) > 1 and tag == "span":
            self._close_span()

    def handle_data(self, data: str) -> None:
        """Add text to what is open."""
        if self._open:
            self._open[-1].text += data

    def _close_span(self) -> None:
        span = self._open.pop()
        if self._open[-1].classes == "switchinline":
            self._open[-1].options[span.name] = span.shown()
        else:
            self._open[-1].text += span.shown()


def _damaged(page: Path, what: str) -> UnavailableError:
    return UnavailableError(
        f"{page} is damaged ({what}): install {PACKAGES} again, "
        f"or set ROBUSTLR_LOHELP to a folder that has their en-US and de."
    )
