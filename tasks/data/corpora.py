"""Text corpora as plain UTF-8 files, a line a sentence or a paragraph: ``LANGUAGES`` has the names.

``FOLDER/train.en``, ``FOLDER/validation.de`` and so on; equal lines of two languages are a pair.
Files that are there are read, whoever put them there; otherwise they are made once.
"""

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

from robustlr.errors import UnavailableError, unknown
from robustlr.tasks.data.published import data_folder, lock

Parts = Mapping[str, Mapping[str, list[str]]]
"""The lines of "train", "validation" and "test", by part and then by language."""

PARTS = ("train", "validation", "test")

LANGUAGES: Mapping[str, tuple[str, ...]] = {
    "pydoc": ("en",),
    "cldr": ("en", "de"),
    "lohelp": ("en", "de"),
    "lohelp-en": ("en",),
    "wikitext-2": ("en",),
    "wikitext-103": ("en",),
    "multi30k": ("de", "en"),
    "iwslt14": ("de", "en"),
}


def corpus(name: str) -> Parts:
    """Return the lines of a corpus; those of two languages are equally many, and none is empty.

    Raises:
        UserError: no corpus has that name, it can be neither read nor made, or a file is damaged.
    """
    folder = corpus_folder(name)
    parts = {
        part: {language: _lines(folder / f"{part}.{language}") for language in LANGUAGES[name]}
        for part in PARTS
    }
    for part, texts in parts.items():
        _check_pairs(folder / part, texts)
    return parts


def fingerprint(name: str) -> str:
    """Return 12 hexadecimal digits that identify the text of a corpus, whatever made it.

    Raises:
        UserError: as for ``corpus``.
    """
    folder, digest = corpus_folder(name), hashlib.sha256()
    for file in _names(name):
        digest.update(hashlib.sha256(_content(folder / file)).digest())
    return digest.hexdigest()[:12]


def corpus_folder(name: str) -> Path:
    """Return the folder that holds the files of a corpus; make them if there is no such folder.

    Raises:
        UserError: no corpus has that name, its files cannot be made, or some are missing.
    """
    if name not in LANGUAGES:
        raise unknown("corpus", name, LANGUAGES)
    folder = data_folder() / versioned(name)
    make_once(folder, lambda made: _write(_produced(name, folder), made))
    missing = [file for file in _names(name) if not (folder / file).exists()]
    if missing:
        raise UnavailableError(
            f"{folder} lacks {', '.join(missing)}: put what is missing there, a line a sentence, "
            f"or delete the folder to have {name} made anew."
        )
    return folder


def make_once(path: Path, make: Callable[[Path], None]) -> None:
    """Have ``make`` write a file or folder unless it is there; nobody ever sees half of it.

    Of several processes one makes it and the others wait.

    Raises:
        UserError: it cannot be written, or ``make`` raises one.
    """
    if path.exists():
        return
    try:
        with lock(path.with_name(f"{path.name}.lock")):
            if path.exists():  # another process may have made it by now
                return
            with TemporaryDirectory(dir=path.parent) as temporary:
                made = Path(temporary) / path.name
                make(made)
                made.rename(path)
    except OSError as error:
        raise UnavailableError(
            f"{path} cannot be written ({error}): "
            f"mend that, or set ROBUSTLR_DATA to another folder."
        ) from error


def versioned(name: str) -> str:
    """Return the name of a corpus, with a version where its text depends on what is installed."""
    if name == "pydoc":
        from robustlr.tasks.data import pydoc

        return pydoc.version()
    if name == "cldr":
        from robustlr.tasks.data import cldr

        return cldr.version()
    return name


def _names(name: str) -> list[str]:
    return [f"{part}.{language}" for part in PARTS for language in LANGUAGES[name]]


def _produced(name: str, folder: Path) -> Parts:
    """Return a corpus from its source, to be written into ``folder``."""
    if name == "pydoc":
        from robustlr.tasks.data import pydoc

        return pydoc.corpus()
    if name == "cldr":
        from robustlr.tasks.data import cldr

        return cldr.corpus()
    if name == "lohelp":
        from robustlr.tasks.data import lohelp

        return lohelp.corpus(lohelp.help_folder())
    if name == "lohelp-en":
        return {
            part: {"en": list(dict.fromkeys(texts["en"]))}
            for part, texts in corpus("lohelp").items()
        }
    from robustlr.tasks.data import hub

    return hub.download(name, f"put {', '.join(_names(name))} into {folder}, a line a sentence")


def _write(parts: Parts, folder: Path) -> None:
    folder.mkdir()
    for part, texts in parts.items():
        for language, lines in texts.items():
            with (folder / f"{part}.{language}").open("w", encoding="utf-8", newline="\n") as file:
                file.writelines(f"{line}\n" for line in lines)


def _lines(path: Path) -> list[str]:
    r"""Return the lines of a file. Only ``\n`` and ``\r\n`` end one: text has other separators."""
    content = _content(path)
    try:
        text = content.decode().replace("\r\n", "\n").removesuffix("\n")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UnavailableError(
            f"line {line} of {path} is not UTF-8: convert the file to UTF-8."
        ) from error
    if not text.strip():
        raise UnavailableError(f"{path} is empty: put its text there, a line a sentence.")
    return text.split("\n")


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UnavailableError(f"{path} cannot be read ({error}): mend that.") from error


def _check_pairs(path: Path, texts: Mapping[str, list[str]]) -> None:
    """Refuse lines of two languages that cannot be pairs; ``path`` lacks the language's suffix."""
    counts = {f"{path}.{language}": len(lines) for language, lines in texts.items()}
    if len(set(counts.values())) > 1:
        found = " and ".join(f"{file} has {count} lines" for file, count in counts.items())
        raise UnavailableError(f"{found}: equal lines must be translations of each other.")
    if len(texts) > 1:
        for language, lines in texts.items():
            for number, line in enumerate(lines, start=1):
                if not line.strip():
                    raise UnavailableError(
                        f"line {number} of {path}.{language} is empty: "
                        f"write its translation there, or delete the line in each language."
                    )
