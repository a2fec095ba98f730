"""Text for language models: each part is one stream of tokens, cut into windows one after another.

The ids are made once and kept in files of 16 bits each, ``train``, ``validation`` and ``test``, in
a folder beside the corpus. OpenWebText is too large for a device: a part of it reads the windows
of a batch from its file when the training loop takes them.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from functools import cache
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from robustlr.errors import UnavailableError, UserError, unknown
from robustlr.task import Batch, Part, Splits
from robustlr.tasks.data import corpora
from robustlr.tasks.data.published import data_folder
from robustlr.tasks.data.tokens import GPT2_PIECES, Tokenizer, load_tokenizer

WEB = "openwebtext"

HELD_OUT = 2_000
"""Of this many documents of OpenWebText one is for validation and one for the test: 0.05 % each."""

NAMES = (*(name for name, spoken in corpora.LANGUAGES.items() if len(spoken) == 1), WEB)

LARGEST_VOCABULARY = 2**16

TOGETHER = 1_000
"""How many lines are encoded at a time, in several threads."""

COUNTED = 2**22
"""How many tokens are counted at a time, so that a large file is never in memory."""

Ids = np.ndarray[tuple[int], np.dtype[np.uint16]]


class StreamPart:
    """One ``Part`` of a text that stays on the disk.

    Args:
        ids: The part's tokens, memory-mapped.
        context: The number of tokens in a window.
        device: Where the batches are wanted.
    """

    def __init__(self, ids: Ids, context: int, device: str) -> None:
        self._ids = ids
        self._context = context
        self._device = device

    def __len__(self) -> int:
        return (len(self._ids) - 1) // self._context

    def take(self, index: Tensor, seed: int | None = None) -> Batch:
        """Return the windows at ``index`` on the device; ``seed`` decides nothing here."""
        starts = index.cpu().numpy()[:, None] * self._context
        windows = self._ids[starts + np.arange(self._context + 1)].astype(np.int64)
        both = torch.from_numpy(windows)
        if self._device.startswith("cuda"):
            both = both.pin_memory()
        both = both.to(self._device, non_blocking=True)
        return Batch(both[:, :-1], both[:, 1:])


def load_text(
    name: str, *, tokens: str, vocabulary: int, context: int, device: str
) -> Splits[Part]:
    """Return a text: inputs int64 ``[n, context]`` and as targets the tokens that follow them.

    A token of the kind that ends a line or document stands after every one, but GPT-2's newline after
    lines. Windows do not overlap;
    what is left over at a part's end is not used. The parts are ``Batch``es on ``device``, read once
    per process, but those of "openwebtext" are ``StreamPart``s.

    Args:
        name: One of ``NAMES``.
        tokens: The kind of tokeniser; see ``tokens.load_tokenizer``.
        vocabulary: The number of different tokens.
        context: The number of tokens in a window.
        device: Where the batches are wanted.

    Raises:
        UserError: no text has that name, it cannot be had, a part is too short for one window, or
            the tokeniser cannot be made.
    """
    return _load(name, tokens, vocabulary, context, device)


@cache
def _load(name: str, tokens: str, vocabulary: int, context: int, device: str) -> Splits[Part]:
    folder = _encoded(name, tokens, vocabulary)
    return Splits(*(_part(folder / part, name, context, device) for part in corpora.PARTS))


def unigram_perplexity(name: str, tokens: str, vocabulary: int) -> float:
    """Return the validation perplexity of the training part's token frequencies.

    One is added to every count. A language model that is worse has learnt nothing of order.

    Raises:
        UserError: as for ``load_text``.
    """
    folder = _encoded(name, tokens, vocabulary)
    size = len(load_tokenizer(name, tokens, vocabulary))
    train, validation = (_counts(_mapped(folder / part), size) for part in corpora.PARTS[:2])
    surprise = math.log((train + 1).sum()) - np.log(train + 1)
    return math.exp(validation @ surprise / validation.sum())


def _counts(ids: Ids, size: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Return how many times each token is there."""
    counts = np.zeros(size, dtype=np.int64)
    for start in range(0, len(ids), COUNTED):
        counts += np.bincount(ids[start : start + COUNTED], minlength=size)
    return counts


def _part(path: Path, name: str, context: int, device: str) -> Part:
    ids = _mapped(path)
    count = (len(ids) - 1) // context
    if count < 1:
        raise UserError(
            f"{path.name} of {name} has {len(ids)} tokens, too few for a window of context = "
            f"{context}: choose a smaller context."
        )
    if name == WEB:
        return StreamPart(ids, context, device)
    stream = torch.from_numpy(ids[: count * context + 1].astype(np.int64)).to(device)
    return Batch(stream[:-1].view(count, context), stream[1:].view(count, context))


def _mapped(path: Path) -> Ids:
    """Return a file of ids; torch wants arrays that can be written to, so writes go nowhere."""
    try:
        return np.memmap(path, dtype=np.uint16, mode="c")
    except (OSError, ValueError) as error:
        raise UnavailableError(
            f"{path} cannot be read ({error}): delete {path.parent} to have it made anew."
        ) from error


def _encoded(name: str, tokens: str, vocabulary: int) -> Path:
    """Return the folder with the ids of each part; make it if there is none."""
    if name not in NAMES:
        raise unknown("text", name, NAMES)
    if vocabulary > LARGEST_VOCABULARY:
        raise UserError(
            f"vocabulary = {vocabulary}: ids are kept in 16 bits, so that "
            f"{LARGEST_VOCABULARY} is the most."
        )
    if name == WEB:
        return _encoded_web(tokens, vocabulary)
    tokenizer = load_tokenizer(name, tokens, vocabulary)
    made_from = corpora.fingerprint(name)
    path = corpora.corpus_folder(name) / f"{tokens}-{vocabulary}-{made_from}"

    def make(made: Path) -> None:
        lines = _lines(corpora.corpus(name))
        if tokens == "gpt2":  # as in the published runs, a line ends as it does in the file
            _write_ids(made, tokenizer, ((part, f"{line}\n") for part, line in lines), end=())
        else:
            _write_ids(made, tokenizer, lines, end=(tokenizer.end,))

    corpora.make_once(path, make)
    return path


def _encoded_web(tokens: str, vocabulary: int) -> Path:
    if (tokens, vocabulary) != ("gpt2", GPT2_PIECES):
        raise UserError(
            f'tokens = "{tokens}", vocabulary = {vocabulary}: {WEB} is there with tokens = "gpt2" '
            f"and vocabulary = {GPT2_PIECES} alone."
        )
    path = data_folder() / f"{WEB}-gpt2"

    def make(made: Path) -> None:
        from robustlr.tasks.data import hub

        texts = _divided(hub.documents(f"copy {path} from a machine that has it"))
        tokenizer = load_tokenizer(WEB, tokens, vocabulary)
        _write_ids(made, tokenizer, texts, end=(tokenizer.end,))

    corpora.make_once(path, make)
    return path


def _lines(parts: corpora.Parts) -> Iterator[tuple[str, str]]:
    """Yield every line of a corpus in one language, with its part."""
    for part, texts in parts.items():
        for lines in texts.values():
            for line in lines:
                yield part, line


def _divided(documents: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yield every document with its part, which its place alone decides."""
    held_out = {0: "validation", 1: "test"}
    for place, document in enumerate(documents):
        yield held_out.get(place % HELD_OUT, "train"), document


def _write_ids(
    folder: Path, tokenizer: Tokenizer, texts: Iterator[tuple[str, str]], end: Sequence[int]
) -> None:
    """Write the ids of each part's texts, ``end`` after each, into a file of its own."""
    folder.mkdir()
    with ExitStack() as stack:
        files = {part: stack.enter_context((folder / part).open("wb")) for part in corpora.PARTS}
        while some := list(islice(texts, TOGETHER)):
            encoded = tokenizer.encode([text for _, text in some])
            for (part, _), ids in zip(some, encoded, strict=True):
                files[part].write(np.array([*ids, *end], dtype=np.uint16).tobytes())
