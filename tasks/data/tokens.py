"""Tokenisers: lines of text to token ids and back.

Those in ``KINDS`` are made from a corpus, and the numbers below are theirs; GPT-2's has its own.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path

from tokenizers import Tokenizer as Engine
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from robustlr.errors import UnavailableError, UserError, unknown
from robustlr.tasks.data import corpora
from robustlr.tasks.data.published import data_folder

PAD = 0
BOS = 1
EOS = 2
UNKNOWN = 3

SPECIAL = ("<pad>", "<bos>", "<eos>", "<unk>")
"""The pieces with the numbers above."""

GPT2_PIECES = 50_257

RARE = 3
"""A word of "lower-word" that neither language has this many times is unknown."""


class Tokenizer:
    """A tokeniser of one kind.

    ``end`` is the number that ends a line or document; ``len`` is the number of pieces.
    """

    def __init__(
        self, engine: Engine, end: int = EOS, dropped: Iterable[int] = (PAD, BOS, EOS)
    ) -> None:
        engine.encode_special_tokens = True  # "<eos>" in a text is a text
        self.end = end
        self._engine = engine
        self._dropped = frozenset(dropped)

    def __len__(self) -> int:
        return int(self._engine.get_vocab_size())

    def encode(self, lines: Sequence[str]) -> list[list[int]]:
        """Return the ids of each line, without anything before or after it."""
        return [piece.ids for piece in self._engine.encode_batch_fast(lines)]

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of ids, in which those for padding, start and end are nothing.

        It is the very text that was encoded for "bpe" and "gpt2"; words are joined with blanks.
        """
        return self._engine.decode(
            [number for number in ids if number not in self._dropped], skip_special_tokens=False
        )


def load_tokenizer(name: str, kind: str, vocabulary: int) -> Tokenizer:
    """Return the tokeniser of a kind for a corpus; it is made once and kept beside the corpus.

    Args:
        name: The corpus.
        kind: "word": what white space separates, in all parts, as the authors of Wikitext-2's
            numbers count it (33,278 words with ``<eos>`` and ``<unk>``; padding and start are two
            more). "lower-word": words and single punctuation marks in lower case, from the training
            part, those that one of its languages has three times (spaCy, which Nero's authors used
            on Multi30k, makes "do" and "n't" of "don't"; here it is "don", "'" and "t"). "bpe":
            byte-level pairs learnt from the training part, one vocabulary for all languages.
            "gpt2": GPT-2's own.
        vocabulary: The number of pieces, the four special ones included; of words the most
            frequent. Fewer if the corpus has no more.

    Raises:
        UserError: there is no such corpus or kind, or the vocabulary is too small, or not GPT-2's.
    """
    if kind == "gpt2":
        return _gpt2(vocabulary)
    if kind not in KINDS:
        raise unknown("kind of tokens", kind, [*KINDS, "gpt2"])
    train, least = KINDS[kind]
    if vocabulary < least:
        raise UserError(f'vocabulary = {vocabulary}: tokens = "{kind}" needs at least {least}.')
    path = corpora.corpus_folder(name) / f"{kind}-{vocabulary}-{corpora.fingerprint(name)}.json"

    def make(made: Path) -> None:
        made.write_text(train(corpora.corpus(name), vocabulary).to_str(), encoding="utf-8")

    corpora.make_once(path, make)
    return Tokenizer(_read(path))


def _gpt2(vocabulary: int) -> Tokenizer:
    if vocabulary != GPT2_PIECES:
        raise UserError(f'vocabulary = {vocabulary}: tokens = "gpt2" has {GPT2_PIECES} pieces.')
    path = data_folder() / "gpt2" / "tokenizer.json"

    def make(made: Path) -> None:
        from robustlr.tasks.data import hub

        hub.save_gpt2(
            made, f"put the file tokenizer.json of openai-community/gpt2 into {path.parent}"
        )

    corpora.make_once(path, make)
    engine = _read(path)
    end = engine.token_to_id("<|endoftext|>")
    if end is None or engine.get_vocab_size() != GPT2_PIECES:
        raise UnavailableError(
            f"{path} is not GPT-2's ({engine.get_vocab_size()} pieces): "
            f"put the file tokenizer.json of openai-community/gpt2 in its place."
        )
    return Tokenizer(engine, end, dropped=(end,))


def _read(path: Path) -> Engine:
    try:
        return Engine.from_str(path.read_text(encoding="utf-8"))
    except Exception as error:  # tokenizers raises nothing narrower
        raise UnavailableError(
            f"{path} is not a tokeniser ({error}): delete it to have it made anew."
        ) from error


def _train_words(parts: corpora.Parts, vocabulary: int) -> Engine:
    pieces = pre_tokenizers.WhitespaceSplit()
    lines = (line for part in corpora.PARTS for texts in parts[part].values() for line in texts)
    return _words(_count(lines, pieces), vocabulary, pieces, None)


def _train_lower_words(parts: corpora.Parts, vocabulary: int) -> Engine:
    pieces, counts = pre_tokenizers.BertPreTokenizer(), Counter[str]()
    lower = normalizers.Lowercase()
    for lines in parts["train"].values():
        own = _count(map(lower.normalize_str, lines), pieces)
        counts.update({word: count for word, count in own.items() if count >= RARE})
    return _words(counts, vocabulary, pieces, lower)


def _count(lines: Iterable[str], pieces: pre_tokenizers.PreTokenizer) -> Counter[str]:
    return Counter(word for line in lines for word, _ in pieces.pre_tokenize_str(line))


def _words(
    counts: Counter[str],
    vocabulary: int,
    pieces: pre_tokenizers.PreTokenizer,
    normalizer: normalizers.Normalizer | None,
) -> Engine:
    """Return a tokeniser of whole words; those that are equally frequent are in order of the text.

    Wikitext-2 has "<unk>" in its text, which is the unknown word's own name.
    """
    words = sorted(counts.keys() - set(SPECIAL), key=lambda word: (-counts[word], word))
    kept = [*SPECIAL, *words][:vocabulary]
    numbers = {word: number for number, word in enumerate(kept)}
    engine = Engine(models.WordLevel(numbers, unk_token=SPECIAL[UNKNOWN]))
    engine.pre_tokenizer = pieces
    engine.normalizer = normalizer
    return engine


def _train_pairs(parts: corpora.Parts, vocabulary: int) -> Engine:
    engine = Engine(models.BPE())
    engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    engine.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    engine.train_from_iterator(chain.from_iterable(parts["train"].values()), trainer)
    return engine


KINDS: Mapping[str, tuple[Callable[[corpora.Parts, int], Engine], int]] = {
    "word": (_train_words, len(SPECIAL) + 1),
    "lower-word": (_train_lower_words, len(SPECIAL) + 1),
    "bpe": (_train_pairs, len(SPECIAL) + 256),
}
"""What makes the tokeniser of each kind, and the smallest vocabulary that it can have."""
