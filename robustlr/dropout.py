"""Dropout whose masks follow from a trial's seed and step alone, so that many trials can share a step.

Each element's chance is a hash of the trial, the step, the layer and its place in the tensor, as in
counter-based random generators (Salmon et al., 2011). Nothing is drawn in an order, so a trial has
the same masks alone, beside others, and after it was taken up again.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

WORDS = 2
"""How many 32-bit words a key has."""

_ALL = (1 << 64) - 1


class Dropout(nn.Module):
    """Sets elements to 0 at a rate ``p`` in training, and scales the others by 1 / (1 - p).

    It takes the place of ``nn.Dropout``, with a layer for each place: one that is called twice leaves
    out the same elements. Its ``key``, ``[2]``, is set by ``Keys`` before each step; without one it
    is ``nn.Dropout``.

    Raises:
        ValueError: ``p`` is outside [0, 1).
    """

    key: Tensor | None

    def __init__(self, p: float) -> None:
        super().__init__()
        if not 0 <= p < 1:
            raise ValueError(f"p must be at least 0 and below 1, not {p!r}")
        self.p = p
        self.register_buffer("key", None, persistent=False)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return ``inputs``, some of them 0."""
        if not self.training or self.p == 0:
            return inputs
        if self.key is None:
            return nn.functional.dropout(inputs, self.p)
        kept = chances(self.key, inputs.shape) >= round(2**32 * self.p) - 2**31
        return torch.where(kept, inputs / (1 - self.p), 0)


def chances(key: Tensor, shape: Sequence[int]) -> Tensor:
    """Return int32 of a shape that are uniform over all of them, others for every ``key``, ``[2]``.

    An element's number follows from its coordinates alone: padding moves none. Two rounds of a
    multiplicative hash, a word of the key before each: products of int32 keep their lowest 32 bits on
    every device.
    """
    hashed = key[0]
    for dimension, size in enumerate(shape):
        # An odd number for each dimension, of bits that look like chance: powers of one.
        step = pow(0x2545F491, dimension + 1, 2**31)
        places = torch.arange(size, dtype=torch.int32, device=key.device) * step
        hashed = hashed + places.view(-1, *[1] * (len(shape) - dimension - 1))
    for multiplier, word in ((0x21F0AAAD, key[1]), (0x735A2D97, None)):
        hashed = (hashed ^ _shifted(hashed, 16)) * multiplier
        hashed = hashed ^ _shifted(hashed, 15)
        if word is not None:
            hashed = hashed ^ word
    return hashed


def _shifted(words: Tensor, by: int) -> Tensor:
    """Return ``words >> by`` as of unsigned words."""
    return (words >> by) & ((1 << (32 - by)) - 1)


class Keys:
    """The keys of a model's dropout layers, as one tensor ``[layers, 2]``."""

    def __init__(self, model: nn.Module, device: str) -> None:
        layers = [module for module in model.modules() if isinstance(module, Dropout)]
        self.all = torch.zeros(len(layers), WORDS, dtype=torch.int32, device=device)
        for layer, key in zip(layers, self.all, strict=True):
            layer.key = key

    def set(self, seed: int, step: int) -> None:
        """Give the layers their keys for a trial's ``step``."""
        if len(self.all):
            self.all.copy_(keys([(seed, step)], len(self.all))[0])


def keys(trials: Sequence[tuple[int, int]], layers: int) -> Tensor:
    """Return the keys of layers, ``[trials, layers, 2]``, at each trial's ``(seed, step)``."""
    mixed = [_mixed((*trial, layer)) for trial in trials for layer in range(layers)]
    words = torch.tensor(mixed, dtype=torch.int64).view(torch.int32)
    return words.view(len(trials), layers, WORDS)


def _mixed(numbers: Sequence[int]) -> int:
    """Return 64 bits, as a signed number, that depend on all bits of all numbers (as splitmix64)."""
    state = 0
    for number in numbers:
        state = (state + 0x9E3779B97F4A7C15 + number) & _ALL
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _ALL
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _ALL
        state ^= state >> 31
    return state - (1 << 64) if state >> 63 else state
