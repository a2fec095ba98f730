"""Published corpora on the Hugging Face hub, read as plain data through the ``datasets`` library.

Every repository is pinned to a commit, and its files are streamed: nothing is left in the
library's cache, and of OpenWebText only some documents at a time are in memory.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from shutil import copyfile
from textwrap import shorten
from typing import Any

from robustlr.errors import UnavailableError
from robustlr.tasks.data.corpora import Parts

PATIENCE_SECONDS = 10.0
"""How long the hub may take to answer at all; its own library would try for half a minute."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where a corpus is: a repository at a commit, and the file and the number of rows of a part."""

    repository: str
    revision: str
    files: Mapping[str, str]
    rows: Mapping[str, int]


def _wikitext(configuration: str, train: int) -> Source:
    return Source(
        repository="Salesforce/wikitext",
        revision="b08601e04326c79dfdd32d625aee71d232d685c3",
        files={
            part: f"{configuration}/{part}-*.parquet" for part in ("train", "validation", "test")
        },
        rows={"train": train, "validation": 3_760, "test": 4_358},
    )


SOURCES: Mapping[str, Source] = {
    "wikitext-2": _wikitext("wikitext-2-v1", 36_718),  # words, with <unk>
    "wikitext-103": _wikitext("wikitext-103-raw-v1", 1_801_350),
    "multi30k": Source(  # task 1 of WMT16's multimodal translation
        repository="bentrevett/multi30k",
        revision="37e118600232bb5298ca011a8a7e7a44e863c36a",
        files={"train": "train.jsonl", "validation": "val.jsonl", "test": "test.jsonl"},
        rows={"train": 29_000, "validation": 1_014, "test": 1_000},
    ),
    "iwslt14": Source(  # fairseq's split; the hub's own conversion, as main has a loading script
        repository="bbaaaa/iwslt14-de-en-preprocess",
        revision="a196fe6bc827b42b32c7ab4b080eaed3239edadf",
        files={part: f"de-en/{part}/0000.parquet" for part in ("train", "validation", "test")},
        rows={"train": 160_239, "validation": 7_283, "test": 6_750},
    ),
    "openwebtext": Source(
        repository="Skylion007/openwebtext",
        revision="b4325f019c648b1641a1784748667e8b74e5e064",
        files={"train": "plain_text/train-*.parquet"},
        rows={"train": 8_013_769},
    ),
}


def download(name: str, otherwise: str) -> Parts:
    """Return a corpus of ``SOURCES`` other than OpenWebText.

    Args:
        name: The corpus.
        otherwise: What to do by hand where it cannot be downloaded.

    Raises:
        UserError: the hub cannot be reached, or what arrives is not the corpus.
    """
    parts: dict[str, dict[str, list[str]]] = {}
    for part in SOURCES[name].files:
        lines = parts[part] = {}
        for row in _rows(name, part, otherwise):
            for language, line in _texts(row).items():
                lines.setdefault(language, []).append(line)
    return parts


def documents(otherwise: str) -> Iterator[str]:
    """Yield the documents of OpenWebText in their published order.

    Raises:
        UserError: as for ``download``.
    """
    for row in _rows("openwebtext", "train", otherwise):
        yield row["text"]


def save_gpt2(path: Path, otherwise: str) -> None:
    """Write GPT-2's own tokeniser to ``path``.

    Raises:
        UserError: the hub cannot be reached.
    """
    from huggingface_hub import hf_hub_download

    try:
        _knock()
        revision = "607a30d783dfa663caf39e06633721c8d4cfcd7e"
        copyfile(
            hf_hub_download("openai-community/gpt2", "tokenizer.json", revision=revision), path
        )
    except Exception as error:  # of three libraries
        raise _unavailable("GPT-2's tokeniser", error, otherwise) from error


def _texts(row: Mapping[str, Any]) -> dict[str, str]:
    """Return a row's line by language, in which only a pair's white space is changed."""
    if "text" in row:
        return {"en": row["text"].removesuffix("\n")}
    pair = row.get("translation", row)
    return {language: " ".join(pair[language].split()) for language in ("de", "en")}


def _rows(name: str, part: str, otherwise: str) -> Iterator[dict[str, Any]]:
    """Yield the rows of a part, as many as there should be."""
    source, count = SOURCES[name], 0
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise UnavailableError(
            f"{name} needs the package datasets, which is not installed: "
            f"pip install 'robustlr[text]', or {otherwise}."
        ) from error
    try:
        _knock()
        rows = load_dataset(
            source.repository,
            data_files={part: source.files[part]},
            revision=source.revision,
            split=part,
            streaming=True,
        )
        for row in rows:
            count += 1
            yield row
    except Exception as error:  # of datasets, its file systems and its formats
        raise _unavailable(name, error, otherwise) from error
    if count != source.rows[part]:
        reason = f"{part} has {count} rows, not {source.rows[part]}"
        raise _unavailable(name, ValueError(reason), otherwise)


def _knock() -> None:
    """Fail at once if nobody answers at the hub's address, or HF_HUB_OFFLINE forbids to ask."""
    from huggingface_hub import constants, get_session

    get_session().head(constants.ENDPOINT, timeout=PATIENCE_SECONDS)


def _unavailable(what: str, error: Exception, otherwise: str) -> UnavailableError:
    first, *_ = (str(error) or type(error).__name__).splitlines()
    reason = shorten(first, 200).rstrip(".:")
    return UnavailableError(
        f"{what} could not be read from the Hugging Face hub ({reason}): "
        f"try again with a network, or {otherwise}."
    )
