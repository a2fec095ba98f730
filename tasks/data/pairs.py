"""Sentence pairs for translation, in batches of sentences of like length."""

from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from robustlr.errors import UserError
from robustlr.task import Batch, Splits
from robustlr.tasks.data.corpora import corpus
from robustlr.tasks.data.tokens import BOS, EOS, PAD, Tokenizer, load_tokenizer


class Ragged(NamedTuple):
    """Sequences of different lengths: all tokens on a device, where each begins on the CPU."""

    tokens: Tensor
    starts: Tensor
    lengths: Tensor

    @classmethod
    def of(cls, sequences: Sequence[Sequence[int]], device: str) -> "Ragged":
        """Return the sequences of token ids."""
        lengths = torch.tensor([len(sequence) for sequence in sequences])
        tokens = torch.tensor([token for sequence in sequences for token in sequence])
        return cls(tokens.to(device), lengths.cumsum(0) - lengths, lengths)

    def padded(self, index: Tensor) -> Tensor:
        """Return the sequences at ``index``, int64 ``[n, longest]``, padded at the end."""
        lengths = self.lengths[index].unsqueeze(1)
        place = torch.arange(int(lengths.max()))
        inside = place < lengths
        where = torch.where(inside, self.starts[index].unsqueeze(1) + place, 0)
        device = self.tokens.device
        where, inside = (t.to(device, non_blocking=True) for t in (where, inside))
        return torch.where(inside, self.tokens[where], PAD)


class PairPart:
    """Pairs of sentences; batches hold pairs of like length, so that little of them is padding.

    ``take`` returns sources ``[n, s]``, which end with EOS, and targets ``[n, t]``, from BOS to EOS.

    Attributes:
        sources: the sources as text.
        references: the targets as text.
        source_lengths: the tokens of each source, EOS included.
        longest: the most tokens of a side, as a model sees it.
        tokenizer: what turns ids into text.
        by_tokens: whether a batch size counts tokens (the longer side of each pair, padding
            included) and not pairs.
    """

    def __init__(
        self,
        sources: Sequence[str],
        targets: Sequence[str],
        tokenizer: Tokenizer,
        *,
        longest: int,
        by_tokens: bool,
        device: str,
    ) -> None:
        encoded = zip(
            tokenizer.encode(sources), tokenizer.encode(targets), sources, targets, strict=True
        )
        kept = [each for each in encoded if max(len(each[0]), len(each[1])) < longest]
        if not kept:
            raise UserError(f"no pair of the corpus is shorter than {longest} tokens")
        self.sources = [source for _, _, source, _ in kept]
        self.references = [target for _, _, _, target in kept]
        self.source_lengths = [len(ids) + 1 for ids, _, _, _ in kept]
        self.longest = longest
        self.tokenizer = tokenizer
        self.by_tokens = by_tokens
        self._sources = Ragged.of([[*ids, EOS] for ids, _, _, _ in kept], device)
        self._targets = Ragged.of([[BOS, *ids, EOS] for _, ids, _, _ in kept], device)

    def __len__(self) -> int:
        return len(self.references)

    def take(self, index: Tensor, seed: int | None = None) -> Batch:
        """Return the pairs at ``index``, each side padded to its longest."""
        return Batch(self._sources.padded(index), self._targets.padded(index))

    def stacked(self, batches: Sequence[Batch]) -> Batch:
        """Return batches side by side, sources ``[k, n, s]`` and targets ``[k, n, t]``.

        What is missing is padding, which no loss sees; a missing source is another of its batch.
        """
        count = max(len(batch) for batch in batches)
        sources, targets = zip(*batches, strict=True)
        # A source of padding alone would leave nothing to attend to.
        whole = [source[torch.arange(count).clamp(max=len(source) - 1)] for source in sources]
        return Batch(_padded(whole, count), _padded(targets, count))

    def groups(self, batch_size: int, seed: int) -> list[Tensor]:
        """Return an epoch's batches in random order, pairs of the same lengths shuffled among them.

        The lengths in each batch do not depend on the seed.
        """
        generator = torch.Generator().manual_seed(seed)
        sources = self._sources.lengths
        targets = self._targets.lengths - 1  # the model sees all but the last token
        longer = torch.maximum(sources, targets)
        shuffled = torch.randperm(len(self), generator=generator)
        span = int(longer.max()) + 1
        lengths = (longer * span + targets) * span + sources
        order = shuffled[lengths[shuffled].argsort(stable=True)]
        ends = self._ends(longer[order].tolist(), batch_size)
        groups = torch.tensor_split(order, ends)
        return [groups[i] for i in torch.randperm(len(groups), generator=generator)]

    def _ends(self, lengths: list[int], batch_size: int) -> list[int]:
        """Return where batches end, the last one left out, of pairs sorted by length."""
        if not self.by_tokens:
            return list(range(batch_size, len(lengths), batch_size))
        ends, start = [], 0
        for place, length in enumerate(lengths):
            if place > start and (place + 1 - start) * length > batch_size:
                ends.append(place)
                start = place
        return ends

    def padding(self, batch_size: int) -> float:
        """Return the share of padding among the tokens of an epoch's batches."""
        lengths = (self._sources.lengths, self._targets.lengths)
        groups = self.groups(batch_size, seed=0)
        padded = sum(int(part[g].max()) * len(g) for part in lengths for g in groups)
        return 1 - sum(int(part.sum()) for part in lengths) / padded


@cache
def load_pairs(
    name: str,
    *,
    source: str,
    target: str,
    tokens: str,
    vocabulary: int,
    longest: int,
    by_tokens: bool,
    device: str,
) -> Splits[PairPart]:
    """Return a parallel corpus from language ``source`` to ``target``, read once per process.

    Pairs with a side of ``longest`` tokens or more, BOS or EOS not counted, are left out.

    Raises:
        UserError: the corpus can be neither read nor made, or has no pair so short.
    """
    parts = corpus(name)
    tokenizer = load_tokenizer(name, tokens, vocabulary)
    return Splits(
        *(
            PairPart(
                parts[part][source],
                parts[part][target],
                tokenizer,
                longest=longest,
                by_tokens=by_tokens,
                device=device,
            )
            for part in Splits._fields
        )
    )


def _padded(tensors: Sequence[Tensor], count: int) -> Tensor:
    """Return tensors ``[n, t]`` as one, ``[k, count, longest]``."""
    longest = max(tensor.shape[1] for tensor in tensors)
    padded = tensors[0].new_full((len(tensors), count, longest), PAD)
    for row, tensor in zip(padded, tensors, strict=True):
        row[: tensor.shape[0], : tensor.shape[1]] = tensor
    return padded
